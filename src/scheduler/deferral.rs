//! Counts and resolves [blocked entries](super::blocked).

use super::blocked::BlockedEntries;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::{Now, State};
use crate::wire::SyncNo;
use crate::wire::entry_report::{EntryAction, FileRecord, FileState, Tally};
use crate::wire::outcome::EntryError;
use crate::wire::sync::FailedStep;
use crate::wire::task::TaskReport;

/// Maximum number of errors kept in full.
const MAX_BLOCKED_ERRORS: usize = 100;

impl SyncJob {
    /// Counts failed entries of a task, and returns the number of failures. In later passes only
    /// deferred entries count; the others were counted as copied before.
    pub(super) fn count_failed_entries(&mut self, files: u64, dirs: u64) -> u64 {
        let all = files.saturating_add(dirs);
        if all == 0 {
            // A batch without entries can fail too, and then there is an error.
            self.counters.add_failed_steps(FailedStep::List, 1);
            return 1;
        }
        let (files, dirs) = match self.phase {
            PhaseState::Copy => (files, dirs),
            PhaseState::CopyBlocked => (self.take_deferred(files), 0),
            _ => (0, 0),
        };
        let again = all.saturating_sub(files.saturating_add(dirs));
        self.counters.add_failed(files, dirs);
        self.counters.add_failed_steps(FailedStep::ReadBack, again);
        all
    }

    /// Whether entries that failed with `errors` are deferred until the directories in their place
    /// are deleted. The read-back pass accepts only entries that were deferred before: any other
    /// one was copied and is missing now.
    pub(super) fn can_defer_blocked(&self, errors: &[EntryError]) -> bool {
        let stage_fits = match self.phase {
            PhaseState::Copy => true,
            PhaseState::Readback => self.blocked.may_include(errors),
            _ => false,
        };
        self.request.options.delete.is_some()
            && stage_fits
            && !errors.is_empty()
            && errors.iter().all(EntryError::is_blocked_by_directory)
    }

    /// Removes up to `files` deferred entries and returns their number: only these are counted in
    /// the second walk.
    pub(super) fn take_deferred(&mut self, files: u64) -> u64 {
        let taken = files.min(self.blocked.files);
        self.blocked.files -= taken;
        taken
    }

    /// Counts the deferred entries that a batch of the second walk copied.
    pub(super) fn count_copied_blocked(&mut self, report: &TaskReport) {
        let files = self.take_deferred(report.files_done);
        self.counters.files_done += files;
        if files > 0 {
            self.counters.bytes_done = self.counters.bytes_done.saturating_add(report.bytes_done);
            let done = report.actions.iter().filter(|(action, _)| **action != EntryAction::Skip);
            let done = done.map(|(action, tally)| (*action, *tally)).collect();
            self.counters.add_actions(&done);
        }
    }
}

impl State {
    /// Defers `files` entries that failed with `errors`. A dry run counts and records them as
    /// created, because the sync would create them after the deletion.
    pub(super) fn defer_blocked_entries(
        &mut self,
        no: SyncNo,
        files: u64,
        errors: Vec<EntryError>,
    ) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        if sync.phase != PhaseState::Copy {
            // They were deferred when they were copied.
            sync.blocked.readback_count += sync.blocked.count_unrecorded(&errors);
        } else if sync.is_dry_run() {
            sync.counters.files_done += files;
            let tally = Tally { count: files, bytes: 0 };
            sync.counters.actions.entry(EntryAction::Create).or_default().merge(tally);
            let created = errors.into_iter().map(|error| FileRecord {
                path: error.path,
                state: FileState::Done,
                action: Some(EntryAction::Create),
                bytes: 0,
                digest: None,
                error: None,
            });
            self.record_files(no, created.collect());
        } else {
            sync.blocked.files += files;
            let room = MAX_BLOCKED_ERRORS.saturating_sub(sync.blocked.errors.len());
            sync.blocked.errors.extend(errors.into_iter().take(room));
        }
    }

    /// Resolves deferred entries before the sync enters `next`: either nothing will delete the
    /// directories in their place, or the second walk did not find the entries any more.
    pub(super) fn resolve_blocked(&mut self, no: SyncNo, next: Option<PhaseState>, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        if sync.blocked.is_empty() || next.is_some_and(|next| next <= PhaseState::CopyBlocked) {
            return;
        }
        let BlockedEntries { files, errors, .. } = std::mem::take(&mut sync.blocked);
        if sync.phase == PhaseState::CopyBlocked {
            sync.counters.files_skipped += files;
            return;
        }
        sync.counters.add_failed(files, 0);
        let mut left = files;
        let last = errors.len().saturating_sub(1);
        for (at, error) in errors.into_iter().enumerate() {
            let count = if at == last { left.max(1) } else { 1 };
            left = left.saturating_sub(count);
            self.record_failure(no, error, count, None);
        }
        self.mark_changed(no, now);
    }
}
