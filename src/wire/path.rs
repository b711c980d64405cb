//! Paths are bytes. [`BytePath`] is any name to report, [`AbsPath`] a cleaned absolute path,
//! [`RelPath`] a path below a root that cannot leave it.
//!
//! In JSON each is a string, or, where its bytes are not UTF-8, `{"path": shown, "path_b64": exact}`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// The longest absolute path that a request may name, in bytes (Linux `PATH_MAX`).
pub const MAX_ABS_PATH_BYTES: usize = 4096;
/// The longest file name, in bytes (Linux `NAME_MAX`).
pub const MAX_NAME_BYTES: usize = 255;

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing between the quotes.
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
    /// Longer than the kernel takes.
    #[error("is {0} bytes long, at most {MAX_ABS_PATH_BYTES} are allowed")]
    TooLong(usize),
    /// A component longer than a file name can be.
    #[error("has a component of {0} bytes, at most {MAX_NAME_BYTES} are allowed")]
    NameTooLong(usize),
}

/// Any bytes that name something, kept exactly; for reports.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BytePath(pub Vec<u8>);

/// An absolute path without `.`, `..`, doubled or trailing slashes; at most [`MAX_ABS_PATH_BYTES`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbsPath(Vec<u8>);

/// A path below a root: components joined by `/`, none empty, `.`, `..` or holding NUL.
/// The empty path is the root itself. Its length is not limited (trees go deeper than `PATH_MAX`).
///
/// Order is that of a depth-first walk with names sorted by bytes: component by component.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Vec<u8>);

impl AbsPath {
    /// Cleans `bytes` lexically.
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
        let rel = normalize(bytes)?;
        let mut out = Vec::with_capacity(rel.len() + 1);
        out.push(b'/');
        out.extend_from_slice(&rel);
        Ok(AbsPath(out))
    }

    /// The bytes, starting with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What of `other` lies below `self`, by components: `/data` holds `/data/x`, not `/database`.
    pub fn relativize(&self, other: &AbsPath) -> Option<RelPath> {
        if self.0 == b"/" {
            return Some(RelPath(other.0[1..].to_vec()));
        }
        let rest = other.0.strip_prefix(self.0.as_slice())?;
        match rest.first() {
            None => Some(RelPath::default()),
            Some(b'/') => Some(RelPath(rest[1..].to_vec())),
            Some(_) => None,
        }
    }

    /// Whether `other` is `self` or lies below it.
    pub fn contains(&self, other: &AbsPath) -> bool {
        let rest = other.0.strip_prefix(self.0.as_slice());
        self.0 == b"/" || rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    }

    /// The bytes of the path itself, and of all that hold it, from `/` down.
    pub fn ancestors_from_root(&self) -> impl Iterator<Item = &[u8]> {
        let ends = (1..self.0.len()).filter(|at| self.0[*at] == b'/').chain([self.0.len()]);
        let below = ends.filter(|end| *end > 1).map(|end| &self.0[..end]);
        std::iter::once(&self.0[..1]).chain(below)
    }

    /// `self` with `rel` below it.
    pub fn join(&self, rel: &RelPath) -> AbsPath {
        let mut out = self.0.clone();
        if !rel.is_root() {
            if out != b"/" {
                out.push(b'/');
            }
            out.extend_from_slice(rel.as_bytes());
        }
        AbsPath(out)
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

    /// The number of components that `self` and `other` share from the start.
    pub fn shared_components(&self, other: &AbsPath) -> usize {
        let parts = |p: &AbsPath| -> Vec<Vec<u8>> {
            p.0.split(|b| *b == b'/').skip(1).map(<[u8]>::to_vec).collect()
        };
        parts(self).iter().zip(parts(other).iter()).take_while(|(a, b)| a == b).count()
    }
}

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        RelPath::default()
    }

    /// Checks and cleans `bytes` (doubled slashes, `.` components and a trailing slash go).
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
    /// A `name` that is empty, `.`, `..`, too long, or holds a slash or NUL.
    pub fn child(&self, name: &[u8]) -> Result<RelPath, PathError> {
        if name.is_empty() || name == b"." {
            return Err(PathError::Empty);
        }
        if name.contains(&b'/') {
            return Err(PathError::NotRelative);
        }
        check_component(name)?;
        let mut out = Vec::with_capacity(self.0.len() + 1 + name.len());
        out.extend_from_slice(&self.0);
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        Ok(RelPath(out))
    }

    /// `self` with all of `rel` below it.
    pub fn join(&self, rel: &RelPath) -> RelPath {
        if self.is_root() {
            return rel.clone();
        }
        let mut out = self.0.clone();
        if !rel.is_root() {
            out.push(b'/');
            out.extend_from_slice(&rel.0);
        }
        RelPath(out)
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
        self.is_root()
            || other.0.strip_prefix(self.0.as_slice()).is_some_and(|r| r.is_empty() || r[0] == b'/')
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
    for c in bytes.split(|b| *b == b'/') {
        if c.is_empty() || c == b"." {
            continue;
        }
        check_component(c)?;
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(c);
    }
    Ok(out)
}

/// Bytes for a human: printable UTF-8 as it is, everything else (control bytes, bidirectional
/// controls, broken UTF-8, the backslash) as `\#ooo`, so that a name can't write to a terminal.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let octal = |out: &mut String, raw: &[u8]| {
        for b in raw {
            out.push_str(&format!("\\#{b:03o}"));
        }
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let hidden = c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
            if hidden || c == '\\' {
                octal(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                out.push(c);
            }
        }
        octal(&mut out, chunk.invalid());
    }
    out
}

macro_rules! impl_escaped_display {
    ($($t:ty),*) => {$(
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
    )*};
}
impl_escaped_display!(BytePath, AbsPath, RelPath);

impl<'de> Deserialize<'de> for BytePath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        deserialize_bytes(d).map(BytePath)
    }
}

impl<'de> Deserialize<'de> for AbsPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        AbsPath::new(deserialize_bytes(d)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        RelPath::new(deserialize_bytes(d)?).map_err(de::Error::custom)
    }
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
    struct V;
    impl<'de> Visitor<'de> for V {
        type Value = Vec<u8>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path: a string, or {\"path_b64\": base64} where it is not UTF-8")
        }
        fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
            Ok(v.as_bytes().to_vec())
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut exact = None;
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "path" => drop(map.next_value::<String>()?),
                    "path_b64" => {
                        let text: String = map.next_value()?;
                        exact = Some(B64.decode(text).map_err(de::Error::custom)?);
                    }
                    other => return Err(de::Error::unknown_field(other, &["path", "path_b64"])),
                }
            }
            exact.ok_or_else(|| de::Error::missing_field("path_b64"))
        }
    }
    d.deserialize_any(V)
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
