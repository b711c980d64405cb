//! A configuration file, opened and parsed; what is wrong with it as a file or as YAML is noted.

use super::document::{self, Kind, Node};
use super::reader::Diagnostics;
use super::report::Pos;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Room for ten thousand workers; a data file given by mistake stops here.
const MAX_BYTES: u64 = 4 << 20;

/// A parsed file.
pub(super) struct ConfigSource {
    pub(super) root: Node,
    /// The permission bits of the file.
    mode: u32,
}

impl ConfigSource {
    /// Notes an error where the file holds a secret that other users may read; to be called when all of it
    /// was read.
    pub(super) fn check_privacy(&self, path: &Path, findings: &Diagnostics) {
        if !findings.has_secret() || self.mode & 0o044 == 0 {
            return;
        }
        let shown = path.display().to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
        let quoted = match shown.chars().all(plain) {
            true => shown,
            false => format!("'{}'", shown.replace('\'', r"'\''")),
        };
        let mode = self.mode;
        findings.error(
            None,
            format!(
                "holds a password, and its mode {mode:04o} lets other users read it — run \
                 `chmod 600 {quoted}`, or take the password out and give it in the environment variable \
                 REDIS_URL"
            ),
        );
    }
}

/// Opens and parses `path`; `None` when a problem was noted that ends the reading.
pub(super) fn open(path: &Path, findings: &Diagnostics) -> Option<ConfigSource> {
    match read(path) {
        Ok((bytes, mode)) => parse(&bytes, findings).map(|root| ConfigSource { root, mode }),
        Err(message) => {
            findings.error(None, message);
            None
        }
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let why = |cause: std::io::Error| format!("cannot be read: {cause}");
    let file = File::open(path).map_err(why)?;
    let meta = file.metadata().map_err(why)?;
    if meta.is_dir() {
        return Err("is a directory — give the file in it".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() as u64 > MAX_BYTES {
        let most = crate::util::units::format_bytes(MAX_BYTES);
        return Err(format!("is larger than {most} — this is hardly a configuration file"));
    }
    Ok((bytes, meta.permissions().mode() & 0o7777))
}

/// The tree of `bytes`. A file of nothing but comments is a map without keys; a file of nothing at
/// all is refused, for it is more likely the remains of a full disk than a wish for every default.
pub(super) fn parse(bytes: &[u8], findings: &Diagnostics) -> Option<Node> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        findings.error(None, "is UTF-16 text — save it as UTF-8");
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(flaw) => {
            let at = position_after(&bytes[..flaw.valid_up_to()]);
            findings.error(at, "not UTF-8 text — save the file as UTF-8");
            return None;
        }
    };
    if text.trim().is_empty() {
        findings.error(None, "is empty — write `{}` if every setting shall have its default");
        return None;
    }
    let start = Pos { line: 1, col: 1 };
    match document::parse(text) {
        Ok(Some(node)) => Some(node),
        Ok(None) => Some(Node { at: start, kind: Kind::Null }),
        Err(flaw) => {
            findings.error(flaw.at, flaw.message);
            None
        }
    }
}

/// The place right behind `before`, all of it valid UTF-8.
fn position_after(before: &[u8]) -> Pos {
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let starts_a_char = |b: &&u8| **b & 0xc0 != 0x80;
    Pos { line, col: before[start..].iter().filter(starts_a_char).count() + 1 }
}
