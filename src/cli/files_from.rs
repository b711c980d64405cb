//! `--files-from`: the list of names to copy. Names are bytes: `#` does not start a comment, `-` not an option.

use super::error::{CliError, Result};
use super::exit::Exit;
use super::sanitize::display_path;
use crate::wire::path::escape_bytes;
use crate::wire::{AbsPath, BytePath, RelPath};
use std::io::{ErrorKind, IsTerminal, Read};
use std::path::Path;

/// More invalid names are only counted.
const MAX_REPORTED_NAMES: usize = 10;

/// Reads the list in `file` (`-`: standard input), separated by NUL bytes or newlines.
///
/// # Errors
/// Those of [`read_input`] and [`parse_list`].
pub(super) fn read_list(file: &Path, nul: bool, sources: &[AbsPath]) -> Result<Vec<BytePath>> {
    parse_list(&read_input(file, "the list of names")?, nul, sources)
}

pub(super) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// The content of a file or of standard input (`-`). `what` names it in messages.
///
/// # Errors
/// The file can't be read, or standard input is a terminal.
pub(super) fn read_input(file: &Path, what: &str) -> Result<Vec<u8>> {
    if !is_stdin(file) {
        return std::fs::read(file).map_err(|e| {
            let not_found = e.kind() == ErrorKind::NotFound;
            CliError::new(format!("cannot read {what} {}: {e}", display_path(file)))
                .with_exit(if not_found { Exit::NotFound } else { Exit::Error })
        });
    }
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        return Err(CliError::usage(format!(
            "{what} is expected on standard input, which is a terminal"
        ))
        .with_hint("e.g. find DIR -print0 | ctl sync submit SRC DST --files-from - -0"));
    }
    let mut raw = Vec::new();
    stdin
        .read_to_end(&mut raw)
        .map_err(|e| CliError::new(format!("cannot read {what} from standard input: {e}")))?;
    Ok(raw)
}

/// Splits `raw` into names relative to the source. Empty names are skipped; with newlines as separators a carriage
/// return before one is part of it.
///
/// # Errors
/// Names outside the source, with their numbers; NUL bytes without `nul`.
fn parse_list(raw: &[u8], nul: bool, sources: &[AbsPath]) -> Result<Vec<BytePath>> {
    if !nul && raw.contains(&0) {
        return Err(CliError::usage("the list of names holds NUL bytes")
            .with_hint("for a NUL-separated list (find -print0) add -0"));
    }
    // A byte order mark at the start of a text file is not part of the first name.
    let raw = if nul { raw } else { raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw) };
    let (separator, unit) = if nul { (0, "name") } else { (b'\n', "line") };
    let mut names = Vec::new();
    let mut errors = Vec::new();
    for (index, name) in raw.split(|b| *b == separator).enumerate() {
        let name = if nul { name } else { name.strip_suffix(b"\r").unwrap_or(name) };
        if name.is_empty() {
            continue;
        }
        match relative_to_source(name, sources) {
            Ok(name) => names.push(name),
            Err(reason) => {
                errors.push(format!("{unit} {}: `{}` {reason}", index + 1, escape_bytes(name)))
            }
        }
    }
    if errors.is_empty() {
        return Ok(names);
    }
    let count = errors.len();
    errors.truncate(MAX_REPORTED_NAMES);
    Err(CliError::usage(format!("{count} of the names to copy can't be used"))
        .with_listed(errors, count)
        .with_hint("names are relative to SRC, or absolute below it"))
}

/// The name as the master accepts it: relative to the source.
fn relative_to_source(name: &[u8], sources: &[AbsPath]) -> Result<BytePath, String> {
    if !name.starts_with(b"/") {
        RelPath::new(name).map_err(|e| e.to_string())?;
        return Ok(BytePath(name.to_vec()));
    }
    let absolute = AbsPath::new(name).map_err(|e| e.to_string())?;
    match sources.iter().find_map(|source| source.relativize(&absolute)) {
        Some(root) if root.is_root() => Ok(BytePath(b".".to_vec())),
        Some(below) => Ok(BytePath(below.as_bytes().to_vec())),
        None => Err("does not lie below SRC".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> [AbsPath; 2] {
        [AbsPath::new("/src").unwrap(), AbsPath::new("/link/to").unwrap()]
    }

    fn bytes(raw: &[u8], nul: bool) -> Vec<Vec<u8>> {
        parse_list(raw, nul, &source()).unwrap().into_iter().map(|name| name.0).collect()
    }

    #[test]
    fn nul_separated_names_are_kept_byte_for_byte() {
        let raw = b"new\nline\0\xff\xfe\0-rf\0# no comment\0 sp ace \0cr\r\0/src/abs\0";
        assert_eq!(
            bytes(raw, true),
            [&b"new\nline"[..], b"\xff\xfe", b"-rf", b"# no comment", b" sp ace ", b"cr\r", b"abs"]
        );
    }

    #[test]
    fn lines_may_end_in_either_way_and_the_last_needs_no_end() {
        assert_eq!(bytes(b"#a\r\n\n-b\n\xff", false), [&b"#a"[..], b"-b", b"\xff"]);
    }

    #[test]
    fn a_byte_order_mark_at_the_start_of_a_text_file_is_no_part_of_a_name() {
        assert_eq!(bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb", false), [&b"a"[..], b"\xef\xbb\xbfb"]);
        assert_eq!(bytes(b"\xef\xbb\xbf/src/a\n", false), [b"a"]);
        assert_eq!(bytes(b"\xef\xbb\xbf", false), Vec::<Vec<u8>>::new());
        // A list with NUL bytes is no text: each byte belongs to a name.
        assert_eq!(bytes(b"\xef\xbb\xbfa\0", true), [b"\xef\xbb\xbfa"]);
    }

    #[test]
    fn absolute_names_may_begin_with_any_spelling_of_the_source() {
        assert_eq!(bytes(b"/src/a\n/link/to/b\n/src/", false), [&b"a"[..], b"b", b"."]);
    }

    #[test]
    fn all_names_outside_the_source_are_reported_at_once() {
        let e = parse_list(b"ok\n../x\n/srcs/y\na/../../b", false, &source()).unwrap_err();
        assert_eq!(e.exit.code(), 2);
        let text = e.render();
        for part in ["3 of the names", "line 2: `../x`", "line 3: `/srcs/y`", "line 4:"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn of_many_bad_names_the_first_are_reported_and_the_others_counted() {
        let list = "../x\n".repeat(MAX_REPORTED_NAMES + 3);
        let failure = parse_list(list.as_bytes(), false, &source()).unwrap_err();
        assert_eq!(failure.notes.len(), MAX_REPORTED_NAMES + 1);
        assert!(failure.notes[0].starts_with("line 1: ") && failure.message.starts_with("13 of"));
        assert_eq!(failure.notes[MAX_REPORTED_NAMES], "and 3 more");
    }

    #[test]
    fn an_empty_list_is_not_an_error() {
        assert_eq!(bytes(b"\n\r\n\n", false), Vec::<Vec<u8>>::new());
        assert_eq!(bytes(b"", true), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_missing_minus_zero_is_reported() {
        let e = parse_list(b"a\0b\0", false, &source()).unwrap_err();
        assert!(e.render().contains("-0"));
    }
}
