//! Lists of BLAKE3 digests, as `b3sum` writes and checks them:
//!
//! ```text
//! af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262  dir/empty
//! \ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f  two\nlines
//! ```
//!
//! A line that begins with a backslash has escapes (`\\`, `\n`, `\r`) in its name; `\xHH`, a byte of a
//! name that b3sum refuses, is ours: such files are listed apart. A line that begins with `#` is a comment, which b3sum
//! does not know.

use super::failure::Failure;
use crate::util::units;
use crate::wire::path::escape_bytes;
use crate::wire::{Digest, RelPath};

/// So many lines that can't be read are told; the rest is counted.
const MAX_TOLD: usize = 10;
/// Longer lines are no digest and a name: trees that deep do not exist.
const MAX_LINE: usize = 16 << 20;

/// Cuts text that comes in pieces into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes a piece and gives `each` line that is complete, without its end.
    ///
    /// # Errors
    /// What `each` says; a line without end.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut parts = piece.split(|b| *b == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            if self.rest.is_empty() {
                each(part)?;
            } else {
                self.rest.extend_from_slice(part);
                each(&self.rest)?;
                self.rest.clear();
            }
        }
        self.rest.extend_from_slice(last);
        if self.rest.len() > MAX_LINE {
            return Err(Failure::new("a line of more than 16 MiB: this is not a list of files"));
        }
        Ok(())
    }

    /// What stands behind the last line's end.
    pub(super) fn rest(&self) -> &[u8] {
        &self.rest
    }
}

/// Reads a list.
#[derive(Debug, Default)]
pub(super) struct Reader {
    lines: Lines,
    list: Vec<Listed>,
    number: u64,
    faults: Vec<String>,
    faulty: u64,
}

/// The digests of files, sorted by name. Takes about 100 bytes and the name for each.
#[derive(Debug, Default)]
pub(super) struct Digests(Vec<Listed>);

#[derive(Debug)]
struct Listed {
    path: Box<[u8]>,
    digest: Digest,
}

impl Reader {
    /// Takes the next piece of the text.
    ///
    /// # Errors
    /// It is no text of lines.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let Reader { lines, list, number, faults, faulty } = self;
        lines.push(piece, |line| {
            *number += 1;
            take(line, *number, list, faults, faulty);
            Ok(())
        })
    }

    /// Takes another text of lines; the one before it may lack the end of its last line.
    ///
    /// # Errors
    /// As [`Reader::update`].
    pub(super) fn push_list(&mut self, text: &[u8]) -> Result<(), Failure> {
        if !self.lines.rest().is_empty() {
            self.push(b"\n")?;
        }
        self.push(text)
    }

    /// The list, complete. A name that stands there twice has the digest of the later line.
    ///
    /// # Errors
    /// Lines that are no digest and a name, all at once, by number.
    pub(super) fn end(mut self, what: &str) -> Result<Digests, Failure> {
        if !self.lines.rest().is_empty() {
            self.number += 1;
            let line = self.lines.rest();
            take(line, self.number, &mut self.list, &mut self.faults, &mut self.faulty);
        }
        if self.faulty > 0 {
            let mut failure = Failure::new(format!(
                "{} of the {} of {what} can't be used",
                self.faulty,
                units::pluralize(self.number, "line", "lines")
            ));
            failure.notes = self.faults;
            if self.faulty > MAX_TOLD as u64 {
                failure.notes.push(format!("and {} more", self.faulty - MAX_TOLD as u64));
            }
            return Err(failure.hinted(
                "a line is the digest of b3sum, two blanks and a name relative to the PATH",
            ));
        }
        let mut list = self.list;
        // Stable, and `dedup` keeps the first of two: so the later line is to come first.
        list.reverse();
        list.sort_by(|a, b| a.path.cmp(&b.path));
        list.dedup_by(|a, b| a.path == b.path);
        Ok(Digests(list))
    }
}

fn take(
    line: &[u8],
    number: u64,
    list: &mut Vec<Listed>,
    faults: &mut Vec<String>,
    faulty: &mut u64,
) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.starts_with(b"#") {
        return;
    }
    match parse(line) {
        Ok(listed) => list.push(listed),
        Err(why) => {
            *faulty += 1;
            if faults.len() < MAX_TOLD {
                let shown = escape_bytes(&line[..line.len().min(120)]);
                faults.push(format!("line {number}: `{shown}` {why}"));
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Listed, String> {
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, name) = line.split_at_checked(64).ok_or("is too short")?;
    let name = name.strip_prefix(b"  ").ok_or("has no two blanks behind 64 digits")?;
    let digest = std::str::from_utf8(digest).map(str::to_ascii_lowercase);
    let digest: Digest = digest
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or("does not begin with a digest of 64 hexadecimal digits")?;
    let name = if escaped { unescaped(name)? } else { name.to_vec() };
    let path = RelPath::new(&name).map_err(|e| format!("names a file whose path {e}"))?;
    if path.is_root() {
        return Err("names no file".to_owned());
    }
    Ok(Listed { path: path.as_bytes().into(), digest })
}

fn unescaped(name: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'\\') => b'\\',
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b'x') => hex(bytes.next(), bytes.next())
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

fn hex(high: Option<&u8>, low: Option<&u8>) -> Option<u8> {
    let digit = |b: Option<&u8>| char::from(*b?).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

impl Digests {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where `path` stands in it.
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        self.0.binary_search_by(|listed| (*listed.path).cmp(path)).ok()
    }

    /// The digest at a place that [`Digests::find`] gave.
    pub(super) fn digest(&self, at: usize) -> Digest {
        self.0[at].digest
    }

    /// The names, sorted, with their places.
    pub(super) fn names(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.0.iter().map(|listed| &*listed.path).enumerate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    fn read(pieces: &[&[u8]]) -> Result<Digests, Failure> {
        let mut reader = Reader::default();
        for piece in pieces {
            reader.push(piece)?;
        }
        reader.end("the list")
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
            assert_eq!(list.digest(list.find(b"dir/x").unwrap()).to_string(), HEX);
        }
        let raw = [HEX.as_bytes(), b"  \xff\xfe\n"].concat();
        assert_eq!(read(&[&raw]).unwrap().find(b"\xff\xfe"), Some(0));
        let commented = format!("# why\n{HEX}  #a\n#\n");
        assert_eq!(read(&[commented.as_bytes()]).unwrap().find(b"#a"), Some(0));
        let mut reader = Reader::default();
        reader.push(format!("{HEX}  a").as_bytes()).unwrap();
        reader.push_list(format!("{HEX}  b\n").as_bytes()).unwrap();
        assert_eq!(reader.end("both").unwrap().len(), 2);
        let escaped = format!("\\{HEX}  a\\xff\\xFE\n");
        assert_eq!(read(&[escaped.as_bytes()]).unwrap().find(b"a\xff\xfe"), Some(0));
        for bad in ["\\x", "\\xf", "\\xg0"] {
            assert!(read(&[format!("\\{HEX}  a{bad}\n").as_bytes()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_later_of_two_lines_counts() {
        let other = "0".repeat(64);
        let text = format!("{HEX}  a\n{HEX}  b\n{other}  a\n");
        let list = read(&[text.as_bytes()]).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list.digest(list.find(b"a").unwrap()).to_string(), other);
    }

    #[test]
    fn lines_that_are_none_are_all_told_with_their_numbers() {
        let text = format!(
            "{HEX}  ok\n{HEX} one\nshort\n{}  x\n{HEX}  /abs\n{HEX}  ../x\n\\{HEX}  a\\t\n{HEX}  .\n",
            "g".repeat(64)
        );
        let e = read(&[text.as_bytes()]).unwrap_err();
        assert_eq!(e.exit.code(), 1);
        let said = e.render();
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
            assert!(said.contains(part), "{part} in {said}");
        }
    }
}
