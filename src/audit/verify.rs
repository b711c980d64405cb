//! The check of the chain.

use super::files::{open_files, read_lines};
use super::record::{AuditAction, AuditRecord, Head, NO_LINE, line_digest};
use std::io;
use std::path::{Path, PathBuf};

/// The first place at which the chain is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// The file.
    pub file: PathBuf,
    /// The line in the file, from 1.
    pub line: u64,
    /// What is wrong, and what that means.
    pub meaning: String,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Verification {
    /// The files, the oldest first.
    pub files: Vec<PathBuf>,
    /// How many lines were checked: all, or those before the break.
    pub lines: u64,
    /// The number of the first line: more than 1 if older files were removed.
    pub first_seq: Option<u64>,
    /// The last line that was checked.
    pub head: Option<Head>,
    /// The installation that the last line with a name of one names.
    pub installation: Option<String>,
    /// What is no break, e.g. a line that was cut by a crash.
    pub notes: Vec<String>,
    /// The first place at which the chain is broken.
    pub first_break: Option<Break>,
}

/// Checks the files of the log in `dir`. `expected`: a position of the chain that was noted elsewhere. Blocks.
///
/// # Errors
/// A file cannot be read.
pub fn verify(dir: &Path, expected: Option<Head>) -> io::Result<Verification> {
    let mut check = Check { found: Verification::default(), expected, has_expected: false };
    let files = open_files(dir)?;
    for (index, (file, opened)) in files.iter().enumerate() {
        let is_last = index + 1 == files.len();
        check.found.files.push(file.path.clone());
        let mut number = 0;
        let mut fragment = false;
        let result = read_lines::<Stop>(opened, |line, is_complete| {
            number += 1;
            // More follows after something that was taken for the end.
            if fragment {
                return Err(Stop::Broken(number - 1, TOO_LONG.to_owned()));
            }
            fragment = !is_complete;
            if is_complete {
                check.check_line(line, number).map_err(|meaning| Stop::Broken(number, meaning))?;
            }
            Ok(())
        });
        let result = match result {
            Ok(()) if fragment && !is_last => Err(Stop::Broken(
                number,
                "the last line of a full file has no line end: the file was cut".to_owned(),
            )),
            other => other,
        };
        match result {
            Ok(()) if fragment => check.found.notes.push(format!(
                "{}: the last line is incomplete: the master is writing it, or was killed while it wrote it; no \
                 change of it was acknowledged",
                file.path.display()
            )),
            Ok(()) => {}
            Err(Stop::Broken(line, meaning)) => {
                check.found.first_break = Some(Break { file: file.path.clone(), line, meaning });
                return Ok(check.found);
            }
            Err(Stop::Unreadable(e)) => return Err(e),
        }
        if is_last {
            let meaning = check.check_expected();
            check.found.first_break =
                meaning.map(|meaning| Break { file: file.path.clone(), line: number, meaning });
        }
    }
    Ok(check.found)
}

const TOO_LONG: &str = "the line is too long to be a record: it was changed or inserted";

enum Stop {
    Broken(u64, String),
    Unreadable(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Stop::Unreadable(e)
    }
}

struct Check {
    found: Verification,
    expected: Option<Head>,
    has_expected: bool,
}

impl Check {
    /// Checks the next line, which is line `number` of its file. The error says what is wrong.
    fn check_line(&mut self, line: &[u8], number: u64) -> Result<(), String> {
        let record: AuditRecord = serde_json::from_slice(line)
            .map_err(|_| "the line is not a record: it was changed or damaged".to_owned())?;
        match self.found.head {
            Some(last) => check_link(last, &record)?,
            None if record.seq == 1 && record.prev != NO_LINE => {
                return Err("line 1 of the log has a line before it: it was changed".to_owned());
            }
            None => self.found.first_seq = Some(record.seq),
        }
        let entry = &record.entry;
        if self.found.head.is_none() && entry.action == AuditAction::DAMAGED {
            let detail = entry.detail.as_deref().unwrap_or_default();
            return Err(format!("lines before record {} were removed: {detail}", record.seq));
        }
        if number == 1 && entry.installation.is_none() {
            return Err(format!(
                "the file begins with record {}, which does not name the installation: lines before it were removed",
                record.seq
            ));
        }
        let head = Head { seq: record.seq, digest: line_digest(line) };
        if let Some(expected) = self.expected.filter(|expected| expected.seq == head.seq) {
            if expected != head {
                return Err(format!(
                    "record {} is not the one with the expected digest: it or records before it were changed, and the \
                     digests of all later ones were computed again",
                    head.seq
                ));
            }
            self.has_expected = true;
        }
        if [AuditAction::REPAIRED, AuditAction::DAMAGED, AuditAction::UNWRITTEN]
            .contains(&entry.action.as_str())
        {
            let detail = entry.detail.as_deref().unwrap_or_default();
            let text = format!("record {} ({}): {detail}", record.seq, record.time);
            self.found.notes.push(text);
        }
        self.found.installation = entry.installation.clone().or(self.found.installation.take());
        self.found.head = Some(head);
        self.found.lines += 1;
        Ok(())
    }

    /// What is wrong with the expected position, after the last line.
    fn check_expected(&mut self) -> Option<String> {
        let expected = self.expected.filter(|_| !self.has_expected)?;
        let last = self.found.head.map_or(0, |head| head.seq);
        if expected.seq > last {
            return Some(format!(
                "the log ends with record {last}, but record {} was written: the records after {last} were removed",
                expected.seq
            ));
        }
        self.found.notes.push(format!(
            "record {} is older than the oldest file that is kept: its digest was not compared",
            expected.seq
        ));
        None
    }
}

/// Whether a record follows `last`. The error says what is wrong.
fn check_link(last: Head, record: &AuditRecord) -> Result<(), String> {
    let (expected, found) = (last.seq.saturating_add(1), record.seq);
    if found > expected {
        let missing = match found - 1 {
            one if one == expected => format!("record {one} is"),
            to => format!("records {expected} to {to} are"),
        };
        return Err(format!(
            "record {found} follows record {}: {missing} missing, removed or moved",
            last.seq
        ));
    }
    if found < expected {
        return Err(format!(
            "record {found} follows record {}: it was inserted, copied or moved",
            last.seq
        ));
    }
    if record.prev != last.digest {
        return Err(format!(
            "record {found} does not have the digest of the line before it: record {} was changed after it was \
             written, or was put in place of another one",
            last.seq
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
