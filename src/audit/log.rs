//! Appending lines to the audit log.
//!
//! Space is allocated before a change is made ([`AuditLog::reserve`]), so that a full disk refuses the change instead
//! of hiding it. A line is on stable storage when [`AuditLog::append`] returns.
//!
//! What another process does to the file shows at the next line. Where the file was moved away (logrotate), the chain
//! continues in a new one. Where it was cut, replaced or changed, the chain continues from the last line that this
//! process wrote, so that its break stays visible, and a line says what was found. Masters that share a `data_dir` may
//! append to the same log, one at a time.

use super::files::{Tail, current_path, list_files, numbered_path, open, read_tail};
use super::record::{AuditAction, AuditEntry, Head};
use crate::config::AuditConfig;
use crate::util::private_files;
use jiff::Timestamp;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Held while lines are written.
const LOCK_NAME: &str = "audit.lock";
/// Space is allocated in steps of this size, and released when the log is closed.
const ALLOCATION_STEP: u64 = 256 << 10;
/// Space for denials that are written between a reservation and the line that it is for.
const RESERVE_SLACK: u64 = 32 << 10;
/// How much of an incomplete line is shown in the line that reports it.
const MAX_SHOWN_FRAGMENT_BYTES: usize = 512;

/// What the first line of each file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The installation.
    pub installation: String,
    /// The host.
    pub host: String,
}

/// An audit log that is appended to. All functions block.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    origin: Origin,
    limits: AuditConfig,
    /// The last line that this process wrote or found; `None` before the file was opened for the first time.
    head: Option<Head>,
    /// Whether this process wrote a line.
    has_written: bool,
    open: Option<OpenFile>,
    lock: Option<File>,
    /// Lines of the log itself that are written before the next entry.
    notes: Vec<AuditEntry>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// The device and the inode.
    id: (u64, u64),
    bytes: u64,
    /// Space is allocated to this length.
    allocated: u64,
}

impl AuditLog {
    /// A log in `dir`. Its file is opened when it is needed.
    pub fn new(dir: &Path, origin: Origin, limits: AuditConfig) -> Self {
        AuditLog {
            dir: dir.to_owned(),
            origin,
            limits,
            head: None,
            has_written: false,
            open: None,
            lock: None,
            notes: Vec::new(),
        }
    }

    /// The file that lines are appended to.
    pub fn path(&self) -> PathBuf {
        current_path(&self.dir)
    }

    /// The last line; `None` before the file was opened.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// Takes effect with the next line.
    pub fn set_limits(&mut self, limits: AuditConfig) {
        self.limits = limits;
    }

    /// Allocates space for entries of so many bytes, which [`append`](Self::append) then writes.
    ///
    /// # Errors
    /// There is no space, or the file cannot be used.
    pub fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        self.locked(|log| log.prepare(bytes + RESERVE_SLACK))
    }

    /// Appends a line for each entry, and waits until they are on stable storage. After an error none of them is in
    /// the file, unless the error is one of the device.
    ///
    /// # Errors
    /// A system call failed; the call may be repeated.
    pub fn append(&mut self, entries: &[AuditEntry]) -> io::Result<()> {
        self.locked(|log| {
            log.prepare(entries.iter().map(AuditEntry::max_line_bytes).sum())?;
            log.write(entries)
        })
    }

    /// Releases space that is allocated and not used.
    pub fn close(&mut self) {
        // Otherwise it is released when the file gets a number, or with the file.
        let _ = self.locked(|log| {
            log.check_file()?;
            log.open.as_ref().map_or(Ok(()), |open| open.file.set_len(open.bytes))
        });
        self.open = None;
    }

    /// Runs `action` while no other process writes. After an error the file is opened and examined again.
    fn locked(&mut self, action: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        if self.lock.is_none() {
            private_files::create_dir(&self.dir)?;
            self.lock = Some(private_files::open_file(&self.dir.join(LOCK_NAME))?);
        }
        let lock = || self.lock.as_ref().ok_or(io::ErrorKind::NotFound);
        flock(lock()?, FlockOperation::LockExclusive)?;
        let result = action(self);
        if result.is_err() {
            self.open = None;
        }
        if let Some(lock) = &self.lock {
            flock(lock, FlockOperation::Unlock)?;
        }
        result
    }

    /// Opens the file if it is not open, begins a new one if it would get too large, and allocates space.
    fn prepare(&mut self, bytes: u64) -> io::Result<()> {
        self.check_file()?;
        if self.open.is_none() {
            self.open_file(None)?;
        }
        let is_full = |open: &OpenFile, bytes| {
            open.bytes > 0 && open.bytes.saturating_add(bytes) > self.limits.max_file_size
        };
        if self.open.as_ref().is_some_and(|open| is_full(open, bytes + self.note_bytes())) {
            self.rotate()?;
        }
        let needed = bytes + self.note_bytes();
        self.open.as_mut().map_or(Ok(()), |open| open.allocate(needed))
    }

    fn note_bytes(&self) -> u64 {
        self.notes.iter().map(AuditEntry::max_line_bytes).sum()
    }

    fn write(&mut self, entries: &[AuditEntry]) -> io::Result<()> {
        let (Some(open), Some(mut head)) = (&mut self.open, self.head) else { return Ok(()) };
        let (time, mut text) = (Timestamp::now(), Vec::new());
        for entry in self.notes.iter().chain(entries) {
            head.append(entry, time, &mut text);
        }
        let written = open.file.write_all_at(&text, open.bytes);
        if let Err(e) = written.and_then(|()| open.file.sync_data()) {
            // What was written in part would be taken for a line that a crash cut.
            let _ = open.file.set_len(open.bytes);
            return Err(e);
        }
        open.bytes += text.len() as u64;
        self.head = Some(head);
        self.has_written = true;
        self.notes.clear();
        Ok(())
    }

    /// Closes the open file if it is not as this process left it.
    fn check_file(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let found = match fs::symlink_metadata(self.path()) {
            Ok(found) => Some(((found.dev(), found.ino()), found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let expected = open.bytes;
        match found {
            Some((id, bytes)) if id == open.id && bytes == expected => Ok(()),
            Some((id, bytes)) if id == open.id => {
                self.open_file(Some(format!("it had {expected} bytes and has {bytes}")))
            }
            Some((_, bytes)) => self.open_file(Some(format!(
                "it had {expected} bytes and was replaced by another file of {bytes}"
            ))),
            None => self.open_file(None),
        }
    }

    /// Opens the file and finds the end of its chain. `finding`: how the file differs from what it was, if it does.
    fn open_file(&mut self, finding: Option<String>) -> io::Result<()> {
        self.open = None;
        let path = self.path();
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open(&path, options)?;
        let meta = file.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            let message = format!("it belongs to uid {}", meta.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        if meta.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        let own = self.head.filter(|_| self.has_written);
        let tail = read_tail(&file, own.unwrap_or(Head::START))?;
        let (head, notes) = self.continue_chain(own, &tail, finding)?;
        if !tail.fragment.is_empty() {
            file.set_len(tail.complete_bytes)?;
        }
        if tail.head.is_none() {
            // The name of a new file.
            File::open(&self.dir)?.sync_all()?;
        }
        self.head = Some(head);
        // After an error all is found again, except for what was removed or is explained already.
        self.notes
            .retain(|note| [AuditAction::REPAIRED, AuditAction::DAMAGED].contains(&&*note.action));
        for note in notes {
            if !self.notes.iter().any(|known| known.action == note.action) {
                self.notes.push(note);
            }
        }
        let (id, bytes) = ((meta.dev(), meta.ino()), tail.complete_bytes);
        self.open = Some(OpenFile { file, id, bytes, allocated: bytes });
        Ok(())
    }

    /// The end of the chain to continue, and the lines of the log about it. `own`: the last line that this process
    /// wrote.
    fn continue_chain(
        &self,
        own: Option<Head>,
        tail: &Tail,
        finding: Option<String>,
    ) -> io::Result<(Head, Vec<AuditEntry>)> {
        let mut notes = Vec::new();
        if !tail.fragment.is_empty() {
            let shown = &tail.fragment[..tail.fragment.len().min(MAX_SHOWN_FRAGMENT_BYTES)];
            let detail = format!(
                "the file ended with {} bytes that are no complete line, which were removed: {}",
                tail.fragment.len(),
                shown.escape_ascii()
            );
            notes.push(self.note(AuditAction::REPAIRED, Some(detail)));
        }
        let damage = |detail: &str| self.note(AuditAction::DAMAGED, Some(detail.to_owned()));
        let Some(own) = own else {
            if tail.head.is_some() && !tail.ends_with_record {
                notes.push(damage("the last line is not a record"));
            }
            notes.push(self.note(AuditAction::STARTED, None));
            let head = match tail.head {
                Some(end) => Some(end),
                None => self.newest_full_file_head()?,
            };
            return Ok((head.unwrap_or(Head::START), notes));
        };
        let is_in_full_file = !tail.has_head && self.is_in_full_file(own)?;
        let head = match tail.head {
            // Another master wrote the lines after it, and may have begun a new file.
            Some(end) if tail.ends_with_record && (tail.has_head || is_in_full_file) => end,
            // The file was full.
            None if is_in_full_file => {
                notes.push(self.note(AuditAction::CONTINUED, None));
                self.newest_full_file_head()?.unwrap_or(own)
            }
            None if finding.is_none() => {
                let detail = "the file was moved away or removed".to_owned();
                notes.push(self.note(AuditAction::CONTINUED, Some(detail)));
                own
            }
            _ => {
                let finding = finding.map(|text| format!(": {text}")).unwrap_or_default();
                notes.push(damage(&format!("the file is not the one that was written{finding}")));
                own
            }
        };
        Ok((head, notes))
    }

    fn note(&self, action: &str, detail: Option<String>) -> AuditEntry {
        AuditEntry {
            installation: Some(self.origin.installation.clone()),
            host: Some(self.origin.host.clone()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            detail,
            ..AuditEntry::of_log(action)
        }
    }

    /// The end of the chain in the newest full file.
    fn newest_full_file_head(&self) -> io::Result<Option<Head>> {
        let files = list_files(&self.dir)?;
        let Some(newest) = files.iter().rfind(|file| file.number.is_some()) else {
            return Ok(None);
        };
        Ok(read_tail(&open(&newest.path, OpenOptions::new().read(true))?, Head::START)?.head)
    }

    /// Whether a full file has the line of this head, the newest one first.
    fn is_in_full_file(&self, head: Head) -> io::Result<bool> {
        for file in list_files(&self.dir)?.iter().rev().filter(|file| file.number.is_some()) {
            if read_tail(&open(&file.path, OpenOptions::new().read(true))?, head)?.has_head {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Gives the file a number, removes the oldest ones, and begins a new file.
    fn rotate(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            // Otherwise the space stays allocated as long as the file exists.
            let _ = open.file.set_len(open.bytes);
        }
        let files = list_files(&self.dir)?;
        let numbers: Vec<u64> = files.iter().filter_map(|file| file.number).collect();
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        fs::rename(self.path(), numbered_path(&self.dir, number))?;
        // Before the new file is made: on a full disk it gets the space.
        let kept = usize::try_from(self.limits.max_files).unwrap_or(usize::MAX);
        let excess = (numbers.len() + 1).saturating_sub(kept);
        for file in files.iter().filter(|file| file.number.is_some()).take(excess) {
            fs::remove_file(&file.path)?;
        }
        self.open_file(None)
    }
}

impl OpenFile {
    /// Allocates space for so many bytes after the last line, without a change of the length.
    fn allocate(&mut self, bytes: u64) -> io::Result<()> {
        if self.bytes.saturating_add(bytes) <= self.allocated {
            return Ok(());
        }
        let allocate = |bytes: u64| {
            fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.bytes, bytes)
                .map(|()| self.bytes.saturating_add(bytes))
        };
        let allocated = match allocate(bytes.max(ALLOCATION_STEP)) {
            Err(Errno::NOSPC | Errno::DQUOT) => allocate(bytes),
            other => other,
        };
        self.allocated = match allocated {
            // This file system cannot: a full disk shows when a line is written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => u64::MAX,
            allocated => allocated?,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
