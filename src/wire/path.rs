//! Paths are bytes. [`BytePath`] is any path in a report, [`AbsPath`] a normalized absolute path,
//! [`RelPath`] a path below a root that cannot leave it.
//!
//! In JSON each is a string, or, if its bytes are not UTF-8, `{"path": escaped, "path_b64": exact}`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::fmt;

/// The maximum length of an absolute path in a request, in bytes (Linux `PATH_MAX`).
const MAX_ABS_PATH_BYTES: usize = 4096;
/// The maximum length of a file name, in bytes (Linux `NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;

/// The reason why a path is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The empty string.
    #[error("must not be empty")]
    Empty,
    /// An absolute path was expected.
    #[error("must be absolute (start with `/`)")]
    NotAbsolute,
    /// A relative path was expected.
    #[error("must be relative (not start with `/`)")]
    NotRelative,
    /// A `..` component.
    #[error("must not contain `..`")]
    DotDot,
    /// A NUL byte.
    #[error("must not contain a NUL byte")]
    Nul,
    /// Longer than the kernel accepts.
    #[error("is {0} bytes long, at most {MAX_ABS_PATH_BYTES} are allowed")]
    TooLong(usize),
    /// A component longer than a file name can be.
    #[error("has a component of {0} bytes, at most {MAX_NAME_BYTES} are allowed")]
    NameTooLong(usize),
}

/// Any bytes, kept exactly; for reports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BytePath(pub Vec<u8>);

/// An absolute path without `.`, `..`, doubled or trailing slashes; at most `PATH_MAX` bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsPath(Vec<u8>);

/// A path below a root: components separated by `/`, none of them empty, `.`, `..` or with NUL.
/// The empty path is the root itself. Its length is not limited (trees can be deeper than `PATH_MAX`).
///
/// Ordered as in a depth-first walk with names sorted by bytes: component by component.
#[derive(Clone, PartialEq, Eq, Hash, Default, minicbor::Encode)]
#[cbor(transparent)]
pub struct RelPath(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>);

impl AbsPath {
    /// Normalizes `bytes` lexically.
    ///
    /// # Errors
    /// A path that is empty, relative, too long, or has a `..` component or NUL.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        if bytes[0] != b'/' {
            return Err(PathError::NotAbsolute);
        }
        if bytes.len() > MAX_ABS_PATH_BYTES {
            return Err(PathError::TooLong(bytes.len()));
        }
        Ok(AbsPath([b"/", normalize(bytes)?.as_slice()].concat()))
    }

    /// The bytes, starting with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path of `other` below `self`, by components: `/data` contains `/data/x`, not `/database`.
    pub fn relativize(&self, other: &AbsPath) -> Option<RelPath> {
        strip_base(&self.0, &other.0).map(|rest| RelPath(rest.to_vec()))
    }

    /// Whether `other` is `self` or lies below it.
    pub fn contains(&self, other: &AbsPath) -> bool {
        strip_base(&self.0, &other.0).is_some()
    }

    /// The bytes of `/`, of each directory on the way to this path, and of the path itself.
    pub fn ancestors_from_root(&self) -> impl Iterator<Item = &[u8]> {
        let ends = (1..self.0.len()).filter(|at| self.0[*at] == b'/').chain([self.0.len()]);
        let below = ends.filter(|end| *end > 1).map(|end| &self.0[..end]);
        std::iter::once(&self.0[..1]).chain(below)
    }

    /// `self` with `rel` below it.
    pub fn join(&self, rel: &RelPath) -> AbsPath {
        AbsPath(join_bytes(&self.0, &rel.0))
    }

    /// The last component; empty for `/`.
    pub fn file_name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The directory above; `None` for `/`.
    pub fn parent(&self) -> Option<AbsPath> {
        if self.0 == b"/" {
            return None;
        }
        let at = self.0.iter().rposition(|b| *b == b'/')?;
        Some(AbsPath(self.0[..at.max(1)].to_vec()))
    }

    /// The number of components that `self` and `other` have in common from the start.
    pub fn shared_components(&self, other: &AbsPath) -> usize {
        let [ours, theirs] = [self, other].map(|path| path.0.split(|b| *b == b'/').skip(1));
        ours.zip(theirs).take_while(|(a, b)| a == b).count()
    }
}

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        RelPath::default()
    }

    /// Checks and normalizes `bytes` (removes doubled slashes, `.` components and a trailing slash).
    ///
    /// # Errors
    /// An absolute path, a `..` component, NUL, or a component over [`MAX_NAME_BYTES`] bytes.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let bytes = bytes.as_ref();
        if bytes.first() == Some(&b'/') {
            return Err(PathError::NotRelative);
        }
        normalize(bytes).map(RelPath)
    }

    /// The bytes, without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, from the top.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// `self` with one more component.
    ///
    /// # Errors
    /// A `name` that is empty, `.`, `..`, too long, or contains a slash or NUL.
    pub fn child(&self, name: &[u8]) -> Result<RelPath, PathError> {
        if name.is_empty() || name == b"." {
            return Err(PathError::Empty);
        }
        if name.contains(&b'/') {
            return Err(PathError::NotRelative);
        }
        check_component(name)?;
        Ok(RelPath(join_bytes(&self.0, name)))
    }

    /// `self` with all of `rel` below it.
    pub fn join(&self, rel: &RelPath) -> RelPath {
        RelPath(join_bytes(&self.0, &rel.0))
    }

    /// The last component; `None` for the root.
    pub fn file_name(&self) -> Option<&[u8]> {
        if self.is_root() { None } else { self.0.rsplit(|b| *b == b'/').next() }
    }

    /// The path above; `None` for the root.
    pub fn parent(&self) -> Option<RelPath> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(RelPath(self.0[..end].to_vec()))
    }

    /// Whether `other` is `self` or lies below it.
    pub fn contains(&self, other: &RelPath) -> bool {
        strip_base(&self.0, &other.0).is_some()
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The bytes of `path` below `base`; empty if they are equal.
pub(crate) fn strip_base<'a>(base: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    match path.strip_prefix(base)? {
        rest if base.is_empty() || base == b"/" || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix(b"/"),
    }
}

fn join_bytes(base: &[u8], rel: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if base.is_empty() || base == b"/" || rel.is_empty() { b"" } else { b"/" };
    [base, slash, rel].concat()
}

fn check_component(c: &[u8]) -> Result<(), PathError> {
    if c == b".." {
        return Err(PathError::DotDot);
    }
    if c.contains(&0) {
        return Err(PathError::Nul);
    }
    if c.len() > MAX_NAME_BYTES {
        return Err(PathError::NameTooLong(c.len()));
    }
    Ok(())
}

fn normalize(bytes: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(bytes.len());
    for c in bytes.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".") {
        check_component(c)?;
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(c);
    }
    Ok(out)
}

/// Text for a message or a log: printable UTF-8 remains, everything else (control bytes, bidirectional
/// controls, invalid UTF-8, the backslash) becomes `\#ooo`, so that a file name can't control a terminal.
pub fn escape_bytes(bytes: &[u8]) -> String {
    escape_octal(bytes, "\\#", |out, c| {
        let is_plain = !is_hidden(c) && c != '\\';
        if is_plain {
            out.push(c);
        }
        is_plain
    })
}

/// Whether a terminal does not display the character as it is.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text of `bytes`: characters as `push` adds them; the bytes of those that it does not add, and of invalid UTF-8,
/// in octal digits after `prefix`.
pub fn escape_octal(
    bytes: &[u8],
    prefix: &str,
    push: impl Fn(&mut String, char) -> bool,
) -> String {
    let mut out = String::with_capacity(bytes.len());
    let octal = |out: &mut String, raw: &[u8]| {
        raw.iter().for_each(|b| out.push_str(&format!("{prefix}{b:03o}")));
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !push(&mut out, c) {
                octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out
}

/// User input for an error message: escaped, in backticks, at most 80 characters.
pub fn quote(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        None => format!("`{}`", escape_bytes(text.as_bytes())),
        Some((end, _)) => format!("`{}…`", escape_bytes(&text.as_bytes()[..end])),
    }
}

/// A path that leaves its root is an error.
impl<'b, C> minicbor::Decode<'b, C> for RelPath {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let position = d.position();
        let invalid = |e: PathError| minicbor::decode::Error::message(e.to_string()).at(position);
        RelPath::new(d.bytes()?).map_err(invalid)
    }
}

macro_rules! impl_text_forms {
    ($($t:ty: $from_bytes:expr),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&escape_bytes(&self.0))
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", escape_bytes(&self.0))
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                serialize_bytes(&self.0, s)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                $from_bytes(deserialize_bytes(d)?).map_err(de::Error::custom)
            }
        }
    )*};
}
impl_text_forms!(BytePath: any_bytes, AbsPath: AbsPath::new, RelPath: RelPath::new);

fn any_bytes(bytes: Vec<u8>) -> Result<BytePath, Infallible> {
    Ok(BytePath(bytes))
}

fn serialize_bytes<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => s.serialize_str(text),
        Err(_) => {
            let mut map = s.serialize_map(Some(2))?;
            map.serialize_entry("path", &escape_bytes(bytes))?;
            map.serialize_entry("path_b64", &B64.encode(bytes))?;
            map.end()
        }
    }
}

fn deserialize_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    struct PathVisitor;
    impl<'de> Visitor<'de> for PathVisitor {
        type Value = Vec<u8>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path: a string, or {\"path_b64\": base64} if it is not UTF-8")
        }
        fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
            Ok(v.as_bytes().to_vec())
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Exact {
                #[serde(rename = "path")]
                _escaped: Option<String>,
                path_b64: String,
            }
            let exact = Exact::deserialize(MapAccessDeserializer::new(map))?;
            B64.decode(exact.path_b64).map_err(de::Error::custom)
        }
    }
    d.deserialize_any(PathVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_cannot_leave_its_root() {
        for bad in [&b".."[..], b"a/../b", b"/etc", b"a\0b", b"a/.."] {
            assert!(RelPath::new(bad).is_err(), "{bad:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(RelPath::root().child(bad).is_err(), "{bad:?}");
        }
        assert!(RelPath::new([b'x'; 256]).is_err());
        assert_eq!(RelPath::new("a//./b/").unwrap().as_bytes(), b"a/b");
    }

    #[test]
    fn a_storage_path_contains_paths_by_component() {
        let abs = |s: &str| AbsPath::new(s).unwrap();
        assert!(abs("/data").contains(&abs("/data/x")));
        assert!(abs("/data").contains(&abs("/data/")));
        assert!(!abs("/data").contains(&abs("/database")));
        assert!(abs("/").contains(&abs("/anything")));
        assert_eq!(abs("/").relativize(&abs("/a/b")).unwrap().as_bytes(), b"a/b");
        assert_eq!(abs("/a/b").parent().unwrap(), abs("/a"));
        assert_eq!(abs("/a").parent().unwrap(), abs("/"));
        assert_eq!(abs("/").join(&RelPath::new("x").unwrap()), abs("/x"));
        assert_eq!(abs("/a/b/c").shared_components(&abs("/a/b/d")), 2);
        for bad in ["", "a", "/a/../b", "/\0"] {
            assert!(AbsPath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_sort_in_depth_first_order() {
        let rel = |s: &str| RelPath::new(s).unwrap();
        // By plain bytes `a-b` would come before `a/c`, because `-` sorts before `/`.
        let mut all = [rel("a-b"), rel("a/c"), rel("b"), rel("a")];
        all.sort();
        assert_eq!(all, [rel("a"), rel("a/c"), rel("a-b"), rel("b")]);
    }

    #[test]
    fn non_utf8_paths_round_trip_in_json() {
        for raw in [&b"plain"[..], b"new\nline", b"\xff\xfe/x", "sm\u{f6}r".as_bytes()] {
            let path = BytePath(raw.to_vec());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<BytePath>(&text).unwrap(), path, "{text}");
        }
    }

    #[test]
    fn escaped_names_cannot_control_a_terminal() {
        assert_eq!(escape_bytes(b"a\x1b[31m\n\xff\\"), "a\\#033[31m\\#012\\#377\\#134");
        assert_eq!(escape_bytes("caf\u{e9} \u{202e}x".as_bytes()), "caf\u{e9} \\#342\\#200\\#256x");
    }
}
