//! Carries out what the phase machine decides: the first tasks of a phase, and the end of a sync.

use super::final_state::final_state;
use super::phase::{PhaseState, PhaseWork};
use super::task::Task;
use super::{Now, State};
use crate::wire::sync::SyncOutcome;
use crate::wire::task::TaskSpec;
use crate::wire::{RelPath, SyncNo, WorkerId};

impl State {
    /// Advances a sync without tasks to its next phase.
    pub(super) fn advance_phase(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        let (active, forgotten) = (sync.is_active(), sync.is_deleted);
        let idle = self.tasks.sync_tasks(no).is_empty() && sync.large_files.is_empty();
        if !active {
            self.release_paths(no, now);
        }
        if !idle {
            return;
        }
        if !active {
            if forgotten {
                if !self.has_revoked_leases(no) {
                    self.remove_sync(no, now);
                }
            } else {
                self.clear_worker_records(no);
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
            if sync.recheck.is_pending() {
                sync.recheck.begin();
                // They describe the previous pass.
                (sync.counters.verified_files, sync.counters.repaired_files) = (0, 0);
            }
            sync.blocked.reset_readback();
            sync.record_log.readback_from = Some(sync.record_log.length);
        }
        match phase.work() {
            PhaseWork::Walk => self.add_scans(no),
            PhaseWork::Extraneous { apply } => {
                let spec = TaskSpec::Prune { dir: RelPath::root(), cursor: None, apply };
                self.add_task(Task::new(no, spec));
            }
            PhaseWork::CleanUp => {
                sync.needs_clean_up = false;
                self.add_task(Task::new(no, TaskSpec::CleanUp));
            }
            PhaseWork::Flush => {
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
        if sync.outcome == Some(SyncOutcome::Full) && !sync.is_dry_run() {
            let (request, root) = (sync.request.clone(), sync.source_root.clone());
            let (changed, dropped) = match root {
                Some(root) => self.source_history.remember(&request, root.file_system, now.wall_ms),
                None => (None, None),
            };
            [changed, dropped].into_iter().flatten().for_each(|key| self.outbox.put(key));
        }
        if self.syncs.get(no).is_some_and(|s| s.outcome == Some(SyncOutcome::Full)) {
            self.delete_name_list(no);
        }
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        self.release_paths(no, now);
    }
}
