//! A configuration file, opened and parsed. Problems of the file and of its YAML are recorded.

use super::document::{self, Node, NodeKind};
use super::reader::Diagnostics;
use super::report::Pos;
use crate::util::shell_quote::quote_for_shell;
use crate::util::units;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Enough for ten thousand workers; rejects a data file that was given by mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Opens and parses `path`; `None` after an error.
pub(super) fn open(path: &Path, diagnostics: &Diagnostics) -> Option<Node> {
    let read = read(path).map_err(|message| diagnostics.error(None, message));
    let (bytes, mode) = read.ok()?;
    if mode & 0o044 != 0 {
        let argument = quote_for_shell(path.as_os_str().as_encoded_bytes());
        diagnostics.exposure_error.set(Some(format!(
            "holds a password, and its mode {mode:04o} lets other users read it — run `chmod 600 {argument}`, or \
             take the password out and give it in the environment variable REDIS_URL"
        )));
    }
    parse(&bytes, diagnostics)
}

fn read(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let failed = |cause: std::io::Error| format!("cannot be read: {cause}");
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if meta.is_dir() {
        return Err("is a directory — give the file in it".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let max = units::format_bytes(MAX_FILE_BYTES);
        return Err(format!("is larger than {max} — this is hardly a configuration file"));
    }
    Ok((bytes, meta.permissions().mode() & 0o7777))
}

/// The tree of `bytes`. A file with only comments is a map without keys; an empty file
/// is rejected, because it is probably the result of a full disk, not a request for all defaults.
pub(super) fn parse(bytes: &[u8], diagnostics: &Diagnostics) -> Option<Node> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        diagnostics.error(None, "is UTF-16 text — save it as UTF-8");
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = position_after(&bytes[..error.valid_up_to()]);
            diagnostics.error(at, "not UTF-8 text — save the file as UTF-8");
            return None;
        }
    };
    if text.trim().is_empty() {
        diagnostics.error(None, "is empty — write `{}` if every setting shall have its default");
        return None;
    }
    let empty = Node { at: Pos { line: 1, col: 1 }, kind: NodeKind::Null };
    let root = document::parse(text).map_err(|error| diagnostics.error(error.at, error.message));
    Some(root.ok()?.unwrap_or(empty))
}

/// The position after `before`, which is valid UTF-8.
fn position_after(before: &[u8]) -> Pos {
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let is_char_start = |b: &&u8| **b & 0xc0 != 0x80;
    Pos { line, col: before[start..].iter().filter(is_char_start).count() + 1 }
}
