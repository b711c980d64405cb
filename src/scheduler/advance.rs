//! Carries out what the phase machine decides: the first tasks of a phase, and the end of a sync.

use super::mirror_guards::unverified_reason;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, State};
use crate::wire::entry_report::EntryAction;
use crate::wire::options::Verify;
use crate::wire::sync::{SyncOutcome, SyncState};
use crate::wire::task::TaskSpec;
use crate::wire::{RelPath, SyncNo, WorkerId};

impl State {
    /// Advances a sync without tasks to its next phase.
    pub(super) fn advance_phase(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        let active = sync.is_active();
        if let (Some(group), false) = (sync.group(), active) {
            self.update_group_scans(group, now);
            self.update_group(group, now);
        }
        let Some(sync) = self.syncs.get(no) else { return };
        if sync.is_group() && active {
            self.update_group_scans(no, now);
            return self.update_group(no, now);
        }
        let idle = self.tasks.sync_tasks(no).is_empty()
            && sync.large_files.is_empty()
            && !sync.follows_group();
        if !active {
            self.release_paths(no, now);
        }
        if !idle {
            return;
        }
        if !active {
            match self.syncs.get(no) {
                Some(sync) if !sync.is_deleted => self.clear_worker_records(no),
                Some(sync) if sync.revoked_leases.is_none() => self.remove_sync(no, now),
                _ => {}
            }
            return;
        }
        let Some(sync) = self.syncs.get_mut(no) else { return };
        if let Some(stop) = sync.check_guards(sync.next_phase()) {
            tracing::warn!(sync = %sync.id, why = stop.reason, "a mirror does not delete");
            sync.mirror_stop = Some(stop);
        }
        let next = sync.next_phase();
        self.resolve_blocked(no, next, now);
        let Some(sync) = self.syncs.get_mut(no) else { return };
        match sync.next_phase() {
            Some(next) => self.enter_phase(no, next),
            // Check again: there may be something to compare now.
            None if self.recheck_after_replacement(no) => return self.advance_phase(no, now),
            None => self.finish_sync(no, now),
        }
        self.mark_changed(no, now);
        self.outbox.unmark_dirty(no);
        // A group ends with the last of its destinations.
        let group = self.syncs.get(no).and_then(SyncJob::group);
        group.into_iter().for_each(|group| self.outbox.mark_dirty(group));
    }

    fn enter_phase(&mut self, no: SyncNo, phase: PhaseState) {
        self.clear_hardlink_groups(no);
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let before = std::mem::replace(&mut sync.phase, phase);
        if phase == PhaseState::Readback {
            if sync.recheck.is_pending {
                sync.recheck.begin(before);
                // They describe the previous pass.
                (sync.counters.verified_files, sync.counters.repaired_files) = (0, 0);
            }
            sync.blocked.readback_count = 0;
            sync.record_log.readback_from = Some(sync.record_log.length);
        }
        match phase {
            PhaseState::Copy | PhaseState::Readback | PhaseState::CopyBlocked => self.add_scans(no),
            PhaseState::CountExtraneous | PhaseState::DeleteExtraneous => {
                let apply = phase == PhaseState::DeleteExtraneous;
                let spec = TaskSpec::Prune { dir: RelPath::root(), cursor: None, apply };
                self.add_task(Task::new(no, spec));
            }
            PhaseState::CleanUp => {
                sync.needs_clean_up = false;
                self.add_task(Task::new(no, TaskSpec::CleanUp));
            }
            PhaseState::FlushBeforeDelete | PhaseState::Flush => {
                let writers: Vec<WorkerId> =
                    sync.unflushed_writers.iter().map(|(worker, _)| worker.clone()).collect();
                for worker in writers {
                    let flush = Task::new(no, TaskSpec::Flush);
                    self.add_task(Task { pinned_to: Some(worker), ..flush });
                }
            }
        }
    }

    fn finish_sync(&mut self, no: SyncNo, now: Now) {
        let uptime_ms = self.retention_clock.uptime_ms(now);
        let Some(sync) = self.syncs.get_mut(no) else { return };
        (sync.ended_ms, sync.ended_uptime_ms) = (Some(now.wall_ms), Some(uptime_ms));
        (sync.state, sync.outcome, sync.reason) = final_state(sync);
        tracing::info!(sync = %sync.id, state = sync.state.as_str(), "sync ended");
        let is_full = sync.outcome == Some(SyncOutcome::Full);
        if let (true, false, Some(root)) = (is_full, sync.is_dry_run(), &sync.source_root) {
            let file_system = root.file_system.clone();
            for key in self.source_history.remember(&sync.request, file_system, now.wall_ms) {
                self.outbox.write_record(key);
            }
        }
        if is_full {
            self.delete_name_list(no);
        }
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        self.release_paths(no, now);
        self.ended_syncs.add(no, now.mono_ms);
    }
}

/// The final state of a sync. `COMPLETED` only if every found entry is accounted for and none
/// failed.
fn final_state(sync: &SyncJob) -> (SyncState, Option<SyncOutcome>, Option<String>) {
    let counters = &sync.counters;
    let files = counters.files_done + counters.files_skipped + counters.files_failed;
    let dirs = counters.dirs_done + counters.dirs_failed;
    let failed: u64 = sync.error_counts.values().fold(0, |sum, n| sum.saturating_add(*n));
    if failed > 0 {
        let outcome = match (sync.source_root_failed, sync.has_hard_failures) {
            (true, _) => None,
            (false, true) if copied_nothing(sync) => None,
            (false, false) if counters.unverified == 0 => Some(SyncOutcome::VanishedOnly),
            (false, false) => Some(SyncOutcome::Unverified),
            (false, true) => Some(SyncOutcome::Partial),
        };
        return (SyncState::Failed, outcome, Some(failure_reason(sync, failed)));
    }
    let unverified = unverified_reason(counters.unverified);
    if let (Some(stop), false) = (&sync.mirror_stop, sync.is_dry_run()) {
        let outcome = match (stop.copy_complete, &unverified) {
            (false, _) => SyncOutcome::CopyStopped,
            // It is not known that everything was copied.
            (true, Some(_)) => SyncOutcome::Unverified,
            (true, None) => SyncOutcome::DeleteStopped,
        };
        return (SyncState::Failed, Some(outcome), Some(stop.reason.clone()));
    }
    if files != counters.files_total || dirs != counters.dirs_total {
        let reason = format!(
            "the counters do not add up ({files} of {} files, {dirs} of {} directories): this is a \
             defect; submit the sync again",
            counters.files_total, counters.dirs_total
        );
        return (SyncState::Failed, Some(SyncOutcome::Partial), Some(reason));
    }
    let outcome = if unverified.is_some() { SyncOutcome::Unverified } else { SyncOutcome::Full };
    if let Some(stop) = &sync.mirror_stop {
        let would = if stop.copy_complete {
            "refuse to delete (exit 25)"
        } else {
            "stop before it copies (exit 8)"
        };
        let reason = format!("a real run would {would}: {}", stop.reason);
        return (SyncState::Completed, Some(outcome), Some(reason));
    }
    let lost = sync.record_log.error.as_ref();
    let lost =
        lost.map(|why| format!("the outcome of each file is not completely recorded: {why}"));
    (SyncState::Completed, Some(outcome), unverified.or(lost))
}

/// Whether every file (or without files, every directory) failed.
fn copied_nothing(sync: &SyncJob) -> bool {
    let counters = &sync.counters;
    let (files, dirs) = (counters.files_failed, counters.dirs_failed);
    let none = counters.files_done + counters.files_skipped == 0;
    none && (files > 0 || counters.dirs_done == 0 && dirs > 0)
}

fn failure_reason(sync: &SyncJob, failed: u64) -> String {
    let of_root =
        sync.errors.iter().find(|error| sync.source_root_failed && error.path.0.is_empty());
    if let Some(error) = of_root {
        return error.message.clone();
    }
    let cause = sync.error_counts.iter().max_by_key(|(_, n)| **n).map(|(c, _)| c.as_str());
    let mut reason = format!("{failed} failed, most of them: {}", cause.unwrap_or("unknown"));
    let options = &sync.request.options;
    if options.verify == Verify::Readback && sync.record_log.readback_from.is_none() {
        reason.push_str("; nothing was read back, because of these errors");
    }
    let deletes = options.delete.is_some() && !options.dry_run;
    if deletes && !sync.counters.actions.contains_key(&EntryAction::Delete) {
        reason.push_str("; nothing was deleted, because of these errors");
    }
    reason
}
