//! Entries in whose place a directory stands that is not empty. A mirror deletes such a directory, but only
//! after its guards; so the entries are set aside, and the source is walked again when the deletion is done.
//!
//! ```text
//! Copy ──EISDIR──▶ set aside ─▶ Count ─▶ (guards) ─▶ Prune ─▶ Replace ─▶ done, or failed for another reason
//!                       └── nothing is deleted (an error, a guard, a filter) ─▶ failed with EISDIR
//! ```

use super::stage::Stage;
use super::sync::{Failed, Sync};
use super::{Now, State};
use crate::wire::SyncNo;
use crate::wire::options::{EntryAction, FileRecord, FileState, Tally};
use crate::wire::sync::FileError;
use crate::wire::task::TaskReport;
use serde::{Deserialize, Serialize};

/// Errors that are kept in full.
const MAX_ERRORS: usize = 100;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Blocked {
    /// How many entries.
    files: u64,
    /// Why they could not be brought; the first ones.
    errors: Vec<FileError>,
    /// How many entries that have no error here were found in the same state when all was read back.
    #[serde(default)]
    read_back: u64,
}

impl Blocked {
    /// Whether there is nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.files == 0
    }

    /// How many of `errors` are about entries without an error here.
    fn count_unnoted(&self, errors: &[FileError]) -> u64 {
        let noted = |error: &&FileError| self.errors.iter().any(|known| known.path == error.path);
        errors.iter().filter(|error| !noted(error)).count() as u64
    }

    /// Whether the entries that failed with `errors` when all was read back can be those that were set aside when
    /// they were copied. Beyond the errors that are kept only the number of entries decides.
    fn can_be(&self, errors: &[FileError]) -> bool {
        let without_error = self.files.saturating_sub(self.errors.len() as u64);
        self.read_back.saturating_add(self.count_unnoted(errors)) <= without_error
    }

    /// All is read back anew.
    pub(super) fn begin_readback(&mut self) {
        self.read_back = 0;
    }
}

/// Whether a directory that is not empty stands in the place of the entry.
fn is_occupied(error: &FileError) -> bool {
    error.errno.as_deref() == Some("EISDIR") && error.operation.ends_with("destination")
}

impl Sync {
    /// Whether entries that failed with `errors` wait for the deletion of the directories in their place.
    /// When all is read back, only those that waited before: another one was copied and is missing now.
    pub(super) fn can_set_aside(&self, errors: &[FileError]) -> bool {
        let stage_fits = match self.stage {
            Stage::Copy => true,
            Stage::Readback => self.blocked.can_be(errors),
            _ => false,
        };
        self.request.options.delete.is_some()
            && stage_fits
            && !errors.is_empty()
            && errors.iter().all(is_occupied)
    }

    fn set_aside(&mut self, files: u64, errors: Vec<FileError>) {
        if self.stage != Stage::Copy {
            // They were set aside when they were copied.
            self.blocked.read_back += self.blocked.count_unnoted(&errors);
            return;
        }
        if self.dry_run() {
            self.counters.files_done += files;
            let tally = Tally { count: files, bytes: 0 };
            self.counters.actions.entry(EntryAction::Create).or_default().merge(tally);
            return;
        }
        self.blocked.files += files;
        let room = MAX_ERRORS.saturating_sub(self.blocked.errors.len());
        self.blocked.errors.extend(errors.into_iter().take(room));
    }

    /// Takes up to `files` entries out of those that were set aside, and returns how many there were: only
    /// these are counted when the source is walked again.
    pub(super) fn take_back(&mut self, files: u64) -> u64 {
        let taken = files.min(self.blocked.files);
        self.blocked.files -= taken;
        taken
    }

    /// Counts what a batch of the second walk brought of what was set aside.
    pub(super) fn count_replaced(&mut self, report: &TaskReport) {
        let files = self.take_back(report.files_done);
        self.counters.files_done += files;
        if files > 0 {
            self.counters.bytes_done = self.counters.bytes_done.saturating_add(report.bytes_done);
            let done = report.actions.iter().filter(|(action, _)| **action != EntryAction::Skip);
            let done = done.map(|(action, tally)| (*action, *tally)).collect();
            self.counters.add_actions(&done);
        }
    }

    /// Whether the source is to be walked again for what was set aside: the directories were deleted. After an error
    /// extra entries may have been counted, and nothing was deleted.
    pub(super) fn wants_replacing(&self) -> bool {
        !self.blocked.is_empty() && self.stage == Stage::Prune
    }
}

impl State {
    /// Sets `files` entries aside that could not be brought because of `errors`. A dry run counts and records them
    /// as created, as the sync does after the directories in their place were deleted.
    pub(super) fn set_aside(&mut self, no: SyncNo, files: u64, errors: Vec<FileError>) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if sync.dry_run() {
            let created = errors.iter().map(|error| FileRecord {
                path: error.path.clone(),
                state: FileState::Done,
                action: Some(EntryAction::Create),
                bytes: 0,
                digest: None,
                message: None,
            });
            let created = created.collect();
            sync.set_aside(files, errors);
            return self.record_files(no, created);
        }
        sync.set_aside(files, errors);
    }

    /// Ends with what was set aside, before the sync goes on to `next`: nothing is going to delete the
    /// directories in their place, or the second walk did not find the entries any more.
    pub(super) fn settle_blocked(&mut self, no: SyncNo, next: Option<Stage>, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if sync.blocked.is_empty() || next.is_some_and(|next| next <= Stage::Replace) {
            return;
        }
        let Blocked { files, errors, .. } = std::mem::take(&mut sync.blocked);
        if sync.stage == Stage::Replace {
            sync.counters.files_skipped += files;
            return;
        }
        sync.count_failed(Failed::Entries { files, dirs: 0 });
        let mut left = files;
        let last = errors.len().saturating_sub(1);
        for (at, error) in errors.into_iter().enumerate() {
            let count = if at == last { left.max(1) } else { 1 };
            left = left.saturating_sub(count);
            self.note_given_up(no, error, count);
        }
        self.changed(no, now);
    }
}
