//! The files of an audit log, and reading their lines.

use super::record::{AuditRecord, Head, line_digest};
use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file that lines are appended to.
const CURRENT_NAME: &str = "audit.jsonl";
/// A longer line is not one of this program: it is read in parts.
const MAX_LINE_BYTES: u64 = 256 << 10;

/// A file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditFile {
    /// Its path.
    pub path: PathBuf,
    /// Full files are numbered, the oldest lowest; `None`: the file that lines are appended to.
    pub number: Option<u64>,
}

/// The path of the file that lines are appended to.
pub(super) fn current_path(dir: &Path) -> PathBuf {
    dir.join(CURRENT_NAME)
}

/// The path of a full file.
pub(super) fn numbered_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("audit.{number:06}.jsonl"))
}

/// The files of the log in `dir`, the oldest first. Blocks.
///
/// # Errors
/// The directory cannot be read.
pub fn list_files(dir: &Path) -> io::Result<Vec<AuditFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_prefix("audit.").and_then(|rest| rest.strip_suffix(".jsonl"));
        let number = number.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        match number.and_then(|digits| digits.parse().ok()) {
            Some(number) => files.push(AuditFile { path: dir.join(name), number: Some(number) }),
            None if name == CURRENT_NAME => {
                files.push(AuditFile { path: dir.join(name), number: None });
            }
            None => {}
        }
    }
    files.sort_by_key(|file| file.number.unwrap_or(u64::MAX));
    Ok(files)
}

/// Opens a file of the log, which is a regular file and no link.
///
/// # Errors
/// A system call failed, or it is something else.
pub(super) fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // Does not wait for the other end of a FIFO.
    let flags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Opens all files of the log in `dir` for reading, the oldest first, while a master may append to them. Blocks.
///
/// # Errors
/// The directory or a file cannot be read.
pub fn open_files(dir: &Path) -> io::Result<Vec<(AuditFile, File)>> {
    loop {
        let files = list_files(dir)?;
        let opened: io::Result<Vec<_>> = files
            .iter()
            .map(|file| Ok((file.clone(), open(&file.path, OpenOptions::new().read(true))?)))
            .collect();
        // The file that lines are appended to gets a number when it is full, and the oldest one is removed.
        if list_files(dir)? == files {
            return opened;
        }
    }
}

/// Calls `process` with each line of a file without its line end, and whether it has one: the last line may lack it,
/// and a line that is too long for this program is read in parts. Blocks.
///
/// # Errors
/// The file cannot be read, or `process` returned an error.
pub fn read_lines<E: From<io::Error>>(
    file: impl Read,
    mut process: impl FnMut(&[u8], bool) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let is_complete = line.last() == Some(&b'\n');
        line.truncate(line.len() - usize::from(is_complete));
        process(&line, is_complete)?;
    }
}

/// The end of a file.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The end of the chain in this file; `None`: it has no line.
    pub(super) head: Option<Head>,
    /// Whether the last line is a record.
    pub(super) ends_with_record: bool,
    /// Whether the file has the line of the given head, or begins with the one after it.
    pub(super) has_head: bool,
    /// Bytes after the last line end.
    pub(super) fragment: Vec<u8>,
    /// The length without the fragment.
    pub(super) complete_bytes: u64,
}

/// Reads a file from its start to its end, and looks for a head. Blocks.
pub(super) fn read_tail(mut file: &File, head: Head) -> io::Result<Tail> {
    let (mut tail, mut last) = (Tail::default(), None);
    file.seek(SeekFrom::Start(0))?;
    read_lines::<io::Error>(file, |part, is_complete| {
        tail.fragment.extend_from_slice(part);
        if is_complete {
            let line = std::mem::take(&mut tail.fragment);
            tail.complete_bytes += line.len() as u64 + 1;
            tail.has_head |= line_digest(&line) == head.digest
                || last.is_none() && record_of(&line).is_some_and(|r| r.prev == head.digest);
            last = Some(line);
        }
        Ok(())
    })?;
    let Some(line) = last else { return Ok(tail) };
    let seq = match record_of(&line) {
        Some(record) => {
            tail.ends_with_record = true;
            record.seq
        }
        None => highest_seq(file)?,
    };
    tail.head = Some(Head { seq, digest: line_digest(&line) });
    Ok(tail)
}

fn record_of(line: &[u8]) -> Option<AuditRecord> {
    serde_json::from_slice(line).ok()
}

/// The highest number of a record in a file, or 0.
fn highest_seq(mut file: &File) -> io::Result<u64> {
    let mut highest = 0;
    file.seek(SeekFrom::Start(0))?;
    read_lines::<io::Error>(file, |line, _| {
        highest = highest.max(record_of(line).map_or(0, |record| record.seq));
        Ok(())
    })?;
    Ok(highest)
}
