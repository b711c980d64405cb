//! What was written and is not flushed yet, remembered across restarts of the agent and of its host.
//!
//! ```text
//! clean ──first file made below a destination──▶ unflushed since …, under boot …
//!   ▲                                                │             │
//!   └────────────── flushed ─────────────────────────┘             │ another boot, or a flush failed
//!                                                                  ▼
//!                              what changed in that span is *suspect*: compared by content
//! ```
//!
//! A kernel that crashes may leave a file with its length and its time and without its content. Both are what the next
//! sync goes by, so it would pass such a file over for ever. The note is on stable storage before the first file gets
//! its name, so it is there after every crash. What changed in the span tells the file's own change time, which nobody
//! can set: a file that is found right gets its time again, which moves the change time out of the span.

use super::error::Result;
use super::root::Place;
use super::target::{Step, Target};
use crate::util::private_files;
use crate::wire::AbsPath;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The clock of a file server, and ours before and after a restart, may differ by so many seconds.
const SKEW: i64 = 600;

/// A span of time in which what changed is not to be trusted, in seconds since 1970; both ends are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    from: i64,
    until: i64,
}

impl Span {
    fn around(from: i64, until: i64) -> Span {
        // A clock that is behind what it was tells nothing about the end.
        let until = if until < from { i64::MAX } else { until.saturating_add(SKEW) };
        Span { from: from.saturating_sub(SKEW), until }
    }

    fn merge(self, other: Option<Span>) -> Span {
        let Some(other) = other else { return self };
        Span { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// Whether the object of `stat` changed in it.
    pub(super) fn holds(&self, stat: &Stat) -> bool {
        (self.from..=self.until).contains(&stat.st_ctime)
    }
}

/// Since when a destination has unflushed writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Dirty {
    /// In seconds since 1970.
    since: i64,
    /// The kernel that has them.
    boot: Option<String>,
    /// Counts the files that were begun.
    #[serde(skip)]
    files: u64,
}

/// What is known of one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unflushed: Option<Dirty>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suspect: Option<Span>,
}

/// How it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    path: AbsPath,
    #[serde(flatten)]
    note: Note,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    /// `None`: nothing outlives this process.
    file: Option<PathBuf>,
    boot: Option<String>,
    notes: Mutex<BTreeMap<Vec<u8>, (AbsPath, Note)>>,
}

/// A flush that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flushing {
    since: i64,
    files: u64,
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

impl Ledger {
    /// One that is kept in `file`, for a process under the kernel's boot `boot`. What it says of an earlier boot is
    /// suspect from now on.
    ///
    /// # Errors
    /// It can't be read or written. One that makes no sense is an error as well: what was not flushed is not known then.
    pub fn open(file: &Path, boot: Option<String>) -> io::Result<Ledger> {
        let kept: Vec<Kept> = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (mut notes, mut changed) = (BTreeMap::new(), false);
        for Kept { path, mut note } in kept {
            if let Some(dirty) = note.unflushed.take_if(|dirty| dirty.boot != boot) {
                tracing::warn!(
                    "the host was restarted before what was written to {path} was flushed: what changed there \
                     since is compared by content"
                );
                note.suspect = Some(Span::around(dirty.since, now()).merge(note.suspect));
                changed = true;
            }
            notes.insert(path.as_bytes().to_vec(), (path, note));
        }
        let ledger = Ledger { file: Some(file.to_owned()), boot, notes: Mutex::new(notes) };
        if changed {
            ledger.save(&ledger.notes())?;
        }
        Ok(ledger)
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, (AbsPath, Note)>> {
        self.notes.lock()
    }

    /// Puts it on stable storage. Nothing to note is no file.
    fn save(&self, notes: &BTreeMap<Vec<u8>, (AbsPath, Note)>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if notes.is_empty() {
            return match fs::remove_file(file) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        let kept =
            notes.values().map(|(path, note)| Kept { path: path.clone(), note: note.clone() });
        let text = serde_json::to_vec(&kept.collect::<Vec<_>>())?;
        // It names destinations.
        private_files::replace_file(file, &text)
    }

    fn save_or_warn(&self, notes: &BTreeMap<Vec<u8>, (AbsPath, Note)>) {
        if let Err(e) = self.save(notes) {
            let file = self.file.as_deref().unwrap_or(Path::new("")).display();
            tracing::error!(
                "cannot write {file}: {e}; if this host crashes now, it is unknown what was not flushed; let the \
                 agent's user write there, or set another data_dir"
            );
        }
    }

    /// A file is about to be made below the destination `path`.
    fn writes(&self, path: &AbsPath) {
        let mut notes = self.notes();
        if let Some((_, Note { unflushed: Some(dirty), .. })) = notes.get_mut(path.as_bytes()) {
            dirty.files += 1;
            return;
        }
        let known = notes.entry(path.as_bytes().to_vec());
        let (_, note) = known.or_insert_with(|| (path.clone(), Note::default()));
        note.unflushed = Some(Dirty { since: now(), boot: self.boot.clone(), files: 1 });
        self.save_or_warn(&notes);
    }

    /// A flush of `path` begins.
    fn begin(&self, path: &AbsPath) -> Flushing {
        let notes = self.notes();
        let dirty = notes.get(path.as_bytes()).and_then(|(_, note)| note.unflushed.as_ref());
        Flushing { since: now(), files: dirty.map_or(0, |dirty| dirty.files) }
    }

    /// It succeeded: what was written before it began is on stable storage.
    fn flushed(&self, path: &AbsPath, begun: Flushing) {
        let mut notes = self.notes();
        let Some((_, note)) = notes.get_mut(path.as_bytes()) else { return };
        match &mut note.unflushed {
            Some(dirty) if dirty.files > begun.files => dirty.since = begun.since,
            _ => note.unflushed = None,
        }
        notes.retain(|_, (_, note)| *note != Note::default());
        self.save_or_warn(&notes);
    }

    /// It failed: some of what was written is lost, and the kernel will not say so again.
    fn failed(&self, path: &AbsPath, begun: Flushing) {
        let mut notes = self.notes();
        let Some((_, note)) = notes.get_mut(path.as_bytes()) else { return };
        let since = note.unflushed.as_ref().map_or(begun.since, |dirty| dirty.since);
        note.suspect = Some(Span::around(since, now()).merge(note.suspect));
        if let Some(dirty) = &mut note.unflushed {
            dirty.since = begun.since;
        }
        self.save_or_warn(&notes);
    }

    /// When what is suspect at or below `path` changed; `None` where nothing is.
    pub(super) fn suspects(&self, path: &AbsPath) -> Option<Span> {
        let notes = self.notes();
        let near = notes.values().filter(|(other, _)| other.contains(path) || path.contains(other));
        near.filter_map(|(_, note)| note.suspect).reduce(|a, b| a.merge(Some(b)))
    }
}

impl Target {
    /// To be called before a file with content is made.
    ///
    /// # Errors
    /// The storage path leads elsewhere than to the open root.
    pub(super) fn writes(&self) -> Result<()> {
        self.check_root_once()?;
        self.tree.root.ledger().writes(&self.tree.path());
        Ok(())
    }

    /// Whether the content of what is there, of which this is the stat, may be another one than its length and time
    /// tell.
    pub(super) fn is_suspect(&self, stat: &Stat) -> bool {
        self.suspect.is_some_and(|span| span.holds(stat))
    }

    /// Gives the file at `place`, of which this is the stat, the time that it has: that moves its change time.
    pub(super) fn touch(&self, place: &Place<'_>, stat: &Stat) -> Step<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec as i64,
            },
        };
        rustix::fs::utimensat(&place.dir, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Runs a flush, and notes what became of it.
    pub(super) fn noting(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let (ledger, path) = (self.tree.root.ledger(), self.tree.path());
        let begun = ledger.begin(&path);
        let done = flush();
        match done {
            Ok(()) => ledger.flushed(&path, begun),
            Err(_) => ledger.failed(&path, begun),
        }
        done
    }
}

#[cfg(test)]
mod tests;
