//! A journal of unflushed writes that survives restarts of the agent and of its host.
//!
//! ```text
//! clean ──first file made below a destination──▶ unflushed since …, under boot …
//!   ▲                                                │             │
//!   └────────────── flushed ─────────────────────────┘             │ another boot, or a flush failed
//!                                                                  ▼
//!                              what changed in that span is *suspect*: compared by content
//! ```
//!
//! A kernel crash may leave a file with its length and its mtime but without its content. The next sync compares
//! these two and would skip such a file for ever. The record is on stable storage before the first file gets its
//! name, so it exists after every crash. A file's ctime, which cannot be set, shows whether it changed in the span; a
//! verified file gets its mtime set again, which moves its ctime out of the span.

use super::run_as::as_agent;
use crate::util::private_files;
use crate::wire::AbsPath;
use parking_lot::Mutex;
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Allowed difference between the clocks of a file server and of this host before and after a restart, in seconds.
const MAX_CLOCK_SKEW_SECS: i64 = 600;

/// A span of time, in seconds since 1970, both ends included: files that changed in it are not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SuspectSpan {
    from: i64,
    until: i64,
}

impl SuspectSpan {
    fn with_skew(from: i64, until: i64) -> SuspectSpan {
        // A clock that went back does not show the end of the span.
        let until = if until < from { i64::MAX } else { until.saturating_add(MAX_CLOCK_SKEW_SECS) };
        SuspectSpan { from: from.saturating_sub(MAX_CLOCK_SKEW_SECS), until }
    }

    fn merge(self, other: Option<SuspectSpan>) -> SuspectSpan {
        let Some(other) = other else { return self };
        SuspectSpan { from: self.from.min(other.from), until: self.until.max(other.until) }
    }

    /// Whether the object of `stat` changed in the span.
    pub(super) fn contains(&self, stat: &Stat) -> bool {
        (self.from..=self.until).contains(&stat.st_ctime)
    }
}

/// Since when a destination has unflushed writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UnflushedWrites {
    /// In seconds since 1970.
    since: i64,
    /// The boot id of the kernel that has them.
    boot_id: Option<String>,
    /// Counts the files that were created.
    #[serde(skip)]
    file_count: u64,
}

/// The state of one destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DestinationState {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unflushed: Option<UnflushedWrites>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suspect: Option<SuspectSpan>,
}

/// A stored record.
#[derive(Debug, Serialize, Deserialize)]
struct JournalRecord {
    path: AbsPath,
    #[serde(flatten)]
    state: DestinationState,
}

/// The journal of all destinations of this process.
#[derive(Debug, Default)]
pub struct DirtyJournal {
    /// `None`: nothing outlives this process.
    file: Option<PathBuf>,
    boot: Option<String>,
    destinations: Mutex<BTreeMap<AbsPath, DestinationState>>,
}

/// A flush in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlushStart {
    since: i64,
    file_count: u64,
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

impl DirtyJournal {
    /// Opens the journal that is stored in `file`, for a process under the boot `boot`. Unflushed writes of an
    /// earlier boot become suspect.
    ///
    /// # Errors
    /// It can't be read, written or parsed. Without it, the unflushed writes are unknown.
    pub fn open(file: &Path, boot: Option<String>) -> io::Result<DirtyJournal> {
        let kept: Vec<JournalRecord> = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let (mut notes, mut changed) = (BTreeMap::new(), false);
        for JournalRecord { path, state: mut note } in kept {
            if let Some(dirty) = note.unflushed.take_if(|dirty| dirty.boot_id != boot) {
                tracing::warn!(
                    "the host was restarted before what was written to {path} was flushed: what changed there \
                     since is compared by content"
                );
                note.suspect =
                    Some(SuspectSpan::with_skew(dirty.since, unix_seconds()).merge(note.suspect));
                changed = true;
            }
            notes.insert(path, note);
        }
        let ledger =
            DirtyJournal { file: Some(file.to_owned()), boot, destinations: Mutex::new(notes) };
        if changed {
            ledger.save(&ledger.destinations.lock())?;
        }
        Ok(ledger)
    }

    /// Puts it on stable storage. An empty journal has no file.
    fn save(&self, notes: &BTreeMap<AbsPath, DestinationState>) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if notes.is_empty() {
            return match fs::remove_file(file) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        let kept = notes
            .iter()
            .map(|(path, note)| JournalRecord { path: path.clone(), state: note.clone() });
        let text = serde_json::to_vec(&kept.collect::<Vec<_>>())?;
        // It names destinations.
        as_agent(|| private_files::replace_file(file, &text))
    }

    fn save_or_warn(&self, notes: &BTreeMap<AbsPath, DestinationState>) {
        if let Err(e) = self.save(notes) {
            let file = self.file.as_deref().unwrap_or(Path::new("")).display();
            tracing::error!(
                "cannot write {file}: {e}; if this host crashes now, it is unknown what was not flushed; let the \
                 agent's user write there, or set another data_dir"
            );
        }
    }

    /// A file is about to be created below the destination `path`.
    pub(super) fn record_write(&self, path: &AbsPath) {
        let mut notes = self.destinations.lock();
        if let Some(DestinationState { unflushed: Some(dirty), .. }) = notes.get_mut(path) {
            dirty.file_count += 1;
            return;
        }
        let note = notes.entry(path.clone()).or_default();
        note.unflushed = Some(UnflushedWrites {
            since: unix_seconds(),
            boot_id: self.boot.clone(),
            file_count: 1,
        });
        self.save_or_warn(&notes);
    }

    /// A flush of `path` begins.
    pub(super) fn begin_flush(&self, path: &AbsPath) -> FlushStart {
        let notes = self.destinations.lock();
        let dirty = notes.get(path).and_then(|note| note.unflushed.as_ref());
        FlushStart { since: unix_seconds(), file_count: dirty.map_or(0, |dirty| dirty.file_count) }
    }

    /// The flush ended. If it succeeded, writes before its begin are on stable storage. If it failed, some writes are
    /// lost, and the kernel does not report that again.
    pub(super) fn end_flush(&self, path: &AbsPath, begun: FlushStart, has_succeeded: bool) {
        let mut notes = self.destinations.lock();
        let Some(note) = notes.get_mut(path) else { return };
        if !has_succeeded {
            let since = note.unflushed.as_ref().map_or(begun.since, |dirty| dirty.since);
            note.suspect = Some(SuspectSpan::with_skew(since, unix_seconds()).merge(note.suspect));
        }
        match &mut note.unflushed {
            Some(dirty) if !has_succeeded || dirty.file_count > begun.file_count => {
                dirty.since = begun.since;
            }
            _ => note.unflushed = None,
        }
        notes.retain(|_, note| *note != DestinationState::default());
        self.save_or_warn(&notes);
    }

    /// When suspect files at or below `path` changed; `None` where there are none.
    pub(super) fn suspect_span(&self, path: &AbsPath) -> Option<SuspectSpan> {
        let notes = self.destinations.lock();
        let near = notes.iter().filter(|(other, _)| other.contains(path) || path.contains(other));
        near.filter_map(|(_, note)| note.suspect).reduce(|a, b| a.merge(Some(b)))
    }
}

#[cfg(test)]
mod tests;
