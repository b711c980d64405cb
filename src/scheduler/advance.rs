//! Carries out what the phase machine decides: the first tasks of a phase, and the end of a sync.

use super::final_state::final_state;
use super::phase::PhaseState;
use super::task::Task;
use super::{Now, State};
use crate::wire::sync::SyncOutcome;
use crate::wire::task::TaskSpec;
use crate::wire::{RelPath, SyncNo, WorkerId};

impl State {
    /// Advances a sync without tasks to its next phase.
    pub(super) fn advance_phase(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        let active = sync.is_active();
        let idle = self.tasks.sync_tasks(no).is_empty() && sync.large_files.is_empty();
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
    }

    fn enter_phase(&mut self, no: SyncNo, phase: PhaseState) {
        self.clear_hardlink_groups(no);
        let Some(sync) = self.syncs.get_mut(no) else { return };
        sync.phase = phase;
        if phase == PhaseState::Readback {
            if sync.recheck.is_pending {
                sync.recheck.begin();
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
                self.outbox.put(key);
            }
        }
        if is_full {
            self.delete_name_list(no);
        }
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        self.release_paths(no, now);
    }
}
