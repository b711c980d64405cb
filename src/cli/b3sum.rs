//! Lists of BLAKE3 digests, as `b3sum` writes and checks them:
//!
//! ```text
//! af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262  dir/empty
//! \ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f  two\nlines
//! ```
//!
//! A line that begins with a backslash has escapes (`\\`, `\n`, `\r`) in its name. Extensions to the format of b3sum:
//! `\xHH` is a byte of a name that b3sum refuses (these files are in a list of their own), and a line that begins with `#`
//! is a comment.

use super::error::{CliError, Result};
use crate::util::units;
use crate::wire::path::escape_bytes;
use crate::wire::{Digest, RelPath};

/// More malformed lines are only counted.
const MAX_REPORTED_LINES: usize = 10;
/// The longest line: no path is that long.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Splits text that arrives in chunks into lines.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Passes each complete line, without its newline, to `each`.
    ///
    /// # Errors
    /// Those of `each`; a line that is too long.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut parts = piece.split(|b| *b == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            if self.partial.is_empty() {
                each(part)?;
            } else {
                self.partial.extend_from_slice(part);
                each(&self.partial)?;
                self.partial.clear();
            }
        }
        self.partial.extend_from_slice(last);
        if self.partial.len() > MAX_LINE_BYTES {
            return Err(CliError::new("a line of more than 16 MiB: this is not a list of files"));
        }
        Ok(())
    }

    /// The text after the last newline.
    pub(super) fn partial_line(&self) -> &[u8] {
        &self.partial
    }
}

#[derive(Debug, Default)]
pub(super) struct DigestListReader {
    splitter: LineSplitter,
    lines: ParsedLines,
}

#[derive(Debug, Default)]
struct ParsedLines {
    digests: Vec<ListedDigest>,
    count: u64,
    /// The first errors.
    errors: Vec<String>,
    error_count: usize,
}

/// The digests of files, sorted by name. Uses about 100 bytes plus the name for each.
#[derive(Debug, Default)]
pub(super) struct DigestList(Vec<ListedDigest>);

#[derive(Debug)]
struct ListedDigest {
    path: Box<[u8]>,
    digest: Digest,
}

impl DigestListReader {
    /// # Errors
    /// A line is too long.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.splitter.push(piece, |line| {
            self.lines.add(line);
            Ok(())
        })
    }

    /// Ends a list, which may lack the last newline; another one may follow.
    ///
    /// # Errors
    /// As [`DigestListReader::push`].
    pub(super) fn end_list(&mut self) -> Result<()> {
        if self.splitter.partial_line().is_empty() { Ok(()) } else { self.push(b"\n") }
    }

    /// The complete list. Of two lines for one name the later one is used.
    ///
    /// # Errors
    /// Malformed lines, with their numbers.
    pub(super) fn finish(mut self, what: &str) -> Result<DigestList> {
        self.end_list()?;
        let ParsedLines { digests: mut list, count, errors, error_count } = self.lines;
        if error_count > 0 {
            let lines = units::pluralize(count, "line", "lines");
            let message = format!("{error_count} of the {lines} of {what} can't be used");
            return Err(CliError::new(message).with_listed(errors, error_count).with_hint(
                "a line is the digest of b3sum, two blanks and a name relative to the PATH",
            ));
        }
        // The sort is stable and `dedup` keeps the first of two, so the later line has to come first.
        list.reverse();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        list.dedup_by(|a, b| a.path == b.path);
        Ok(DigestList(list))
    }
}

impl ParsedLines {
    fn add(&mut self, line: &[u8]) {
        self.count += 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            return;
        }
        match parse_line(line) {
            Ok(listed) => self.digests.push(listed),
            Err(reason) => {
                self.error_count += 1;
                if self.errors.len() < MAX_REPORTED_LINES {
                    let shown = escape_bytes(&line[..line.len().min(120)]);
                    self.errors.push(format!("line {}: `{shown}` {reason}", self.count));
                }
            }
        }
    }
}

fn parse_line(line: &[u8]) -> Result<ListedDigest, String> {
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, name) = line.split_at_checked(64).ok_or("is too short")?;
    let name = name.strip_prefix(b"  ").ok_or("has no two blanks behind 64 digits")?;
    let digest = std::str::from_utf8(digest).ok().and_then(|s| s.to_ascii_lowercase().parse().ok());
    let digest: Digest = digest.ok_or("does not begin with a digest of 64 hexadecimal digits")?;
    let name = if escaped { unescape_name(name)? } else { name.to_vec() };
    let path = RelPath::new(&name).map_err(|e| format!("names a file with a path that {e}"))?;
    if path.is_root() {
        return Err("names no file".to_owned());
    }
    Ok(ListedDigest { path: path.as_bytes().into(), digest })
}

fn unescape_name(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'\\') => b'\\',
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'x') => parse_hex_byte(bytes.next(), bytes.next())
                    .ok_or("has \\x without two hexadecimal digits behind it")?,
                _ => {
                    return Err("has a backslash with no n, r, x or backslash behind it".to_owned());
                }
            },
            byte => *byte,
        });
    }
    Ok(out)
}

fn parse_hex_byte(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

impl DigestList {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The index of `path`.
    pub(super) fn position_of(&self, path: &[u8]) -> Option<usize> {
        self.0.binary_search_by(|listed| (*listed.path).cmp(path)).ok()
    }

    /// The digest at an index of [`DigestList::position_of`].
    pub(super) fn digest_at(&self, at: usize) -> Digest {
        self.0[at].digest
    }

    /// The sorted names with their indices.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.0.iter().map(|listed| &*listed.path).enumerate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    fn read(pieces: &[&[u8]]) -> Result<DigestList> {
        let mut reader = DigestListReader::default();
        for piece in pieces {
            reader.push(piece)?;
        }
        reader.finish("the list")
    }

    #[test]
    fn names_are_read_as_b3sum_escapes_them() {
        let text = format!(
            "{HEX}  plain\n\\{HEX}  a\\nb\\\\c\\rd\n{HEX}  ./dir//x\r\n{upper}  -rf\n{HEX}   two blanks",
            upper = HEX.to_uppercase()
        );
        // However the pieces are cut.
        for size in [1, 7, text.len()] {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let list = read(&pieces).unwrap();
            let names: Vec<&[u8]> = list.names().map(|(_, name)| name).collect();
            let expected = [&b" two blanks"[..], b"-rf", b"a\nb\\c\rd", b"dir/x", b"plain"];
            assert_eq!(names, expected, "{size}");
            assert_eq!(list.digest_at(list.position_of(b"dir/x").unwrap()).to_string(), HEX);
        }
        let raw = [HEX.as_bytes(), b"  \xff\xfe\n"].concat();
        assert_eq!(read(&[&raw]).unwrap().position_of(b"\xff\xfe"), Some(0));
        let commented = format!("# why\n{HEX}  #a\n#\n");
        assert_eq!(read(&[commented.as_bytes()]).unwrap().position_of(b"#a"), Some(0));
        let mut reader = DigestListReader::default();
        reader.push(format!("{HEX}  a").as_bytes()).unwrap();
        reader.end_list().unwrap();
        reader.push(format!("{HEX}  b\n").as_bytes()).unwrap();
        assert_eq!(reader.finish("both").unwrap().len(), 2);
        let escaped = format!("\\{HEX}  a\\xff\\xFE\n");
        assert_eq!(read(&[escaped.as_bytes()]).unwrap().position_of(b"a\xff\xfe"), Some(0));
        for bad in ["\\x", "\\xf", "\\xg0"] {
            assert!(read(&[format!("\\{HEX}  a{bad}\n").as_bytes()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_later_of_two_lines_for_one_name_is_used() {
        let other = "0".repeat(64);
        let text = format!("{HEX}  a\n{HEX}  b\n{other}  a\n");
        let list = read(&[text.as_bytes()]).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list.digest_at(list.position_of(b"a").unwrap()).to_string(), other);
    }

    #[test]
    fn all_malformed_lines_are_reported_with_their_numbers() {
        let text = format!(
            "{HEX}  ok\n{HEX} one\nshort\n{}  x\n{HEX}  /abs\n{HEX}  ../x\n\\{HEX}  a\\t\n{HEX}  .\n",
            "g".repeat(64)
        );
        let e = read(&[text.as_bytes()]).unwrap_err();
        assert_eq!(e.exit.code(), 1);
        let printed = e.render();
        for part in [
            "7 of the 8 lines of the list",
            "line 2:",
            "has no two blanks",
            "line 3: `short` is too short",
            "line 4:",
            "line 5:",
            "must be relative",
            "must not contain `..`",
            "line 7:",
            "line 8:",
        ] {
            assert!(printed.contains(part), "{part} in {printed}");
        }
    }
}
