//! Storage paths that are not served, or that lead to another directory than before.
//!
//! - A started sync without another worker on that side pauses
//!   ([`StorageProblem::PathUnavailable`]).
//! - If a worker read the source from another root than before, the sync restarts, and a mirror that has begun to
//!   delete stops. Writes to another root are compared again ([`recheck`](super::recheck)).
//! - A worker may open another root long before its heartbeat arrives. So each assignment names the expected roots, and
//!   an agent with another root open does nothing for it.

use super::boot_ids::{boot_part, is_different_root};
use super::pause::{Pause, StorageProblem};
use super::phase::PhaseState;
use super::storage_pause::describe_unavailable;
use super::task::{Task, TaskState};
use super::worker_registry::unavailable_path;
use super::{Now, State};
use crate::util::units;
use crate::wire::hint::NO_SPACE_HINT;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::sync::SyncState;
use crate::wire::task::TaskSpec;
use crate::wire::worker::UnavailablePath;
use crate::wire::{SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;

/// Maximum time to wait for a silent worker that has not flushed, before its writes count as lost.
const FLUSH_TIMEOUT_MS: u64 = 10 * 60 * 1000;

impl State {
    /// Releases syncs with usable storage, and fails those that were paused for too long.
    pub(super) fn tick_pauses(&mut self, now: Now) {
        let served = self.tasks.syncs().filter(|no| match self.syncs.get(*no).map(|s| &s.pause) {
            Some(Some(Pause::Storage { problem, .. })) => self.is_served_elsewhere(*no, problem),
            _ => false,
        });
        for no in served.collect::<Vec<SyncNo>>() {
            self.end_storage_pause(no, now);
        }
        let mut overdue: Vec<(SyncNo, StorageProblem, String)> = Vec::new();
        let patience = self.settings.no_space_ms;
        for no in self.tasks.syncs() {
            let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { continue };
            match &mut sync.pause {
                Some(Pause::Storage { problem, reason: why, since_ms, probe_ms }) => {
                    let since = *since_ms.get_or_insert(now.mono_ms);
                    if now.mono_ms.saturating_sub(since) > patience {
                        overdue.push((no, problem.clone(), why.clone()));
                    }
                    self.outbox.request_dispatch_if(*probe_ms <= now.mono_ms);
                }
                // It does not pause (again): tasks without usable storage fail at once.
                None if patience == 0 || sync.pause_exhausted => {
                    let sync = self.syncs.get(no);
                    overdue.extend(
                        sync.and_then(|sync| self.find_unavailable_storage(sync))
                            .map(|(problem, why)| (no, problem, why)),
                    );
                }
                _ => {}
            }
        }
        for (no, problem, why) in overdue {
            self.fail_paused_tasks(no, &problem, &why, now);
        }
    }

    /// The maximum pause is over: tasks without a lease fail, and the sync does not pause again.
    fn fail_paused_tasks(&mut self, no: SyncNo, problem: &StorageProblem, why: &str, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        tracing::warn!(sync = %sync.id, why, "the storage did not come back: the sync fails");
        (sync.pause, sync.pause_exhausted) = (None, true);
        let waited = units::pluralize(self.settings.no_space_ms / 60_000, "minute", "minutes");
        let (why, errno, class) = match problem {
            StorageProblem::NoSpace => {
                (format!("{why}; waited {waited} for room"), Some("ENOSPC"), ErrorClass::Transient)
            }
            StorageProblem::PathUnavailable { .. } => {
                (format!("{why}; waited {waited} for it"), None, ErrorClass::StorageGone)
            }
        };
        // A failed task may add a discard of its part file, which cannot be done either.
        while let Some(id) = self.next_task_to_fail(no, problem) {
            let Some(task) = self.tasks.get(id) else { return };
            let error = EntryError {
                errno: errno.map(str::to_owned),
                hint: errno.map(|_| NO_SPACE_HINT.to_owned()),
                attempt: task.attempt,
                class,
                ..EntryError::new(b"", None, task.spec.kind(), why.clone())
            };
            self.fail_task(id, &why, Some(error), now);
        }
        self.outbox.mark_dirty(no);
        self.mark_changed(no, now);
        self.outbox.request_dispatch();
    }

    /// A task without a lease that cannot be done without the storage.
    fn next_task_to_fail(&self, no: SyncNo, problem: &StorageProblem) -> Option<TaskId> {
        let fails = |task: &&Task| {
            // On a full destination tasks that need no space are still done.
            let needs_room =
                !matches!(task.spec, TaskSpec::Flush | TaskSpec::Discard | TaskSpec::CleanUp);
            task.lease().is_none() && (*problem != StorageProblem::NoSpace || needs_room)
        };
        self.tasks.of_sync(no).find(fails).map(|task| task.id)
    }

    /// Handles flush tasks that can no longer be done: the host of the writer was rebooted (then
    /// all is compared again, if that can help), or no capable worker appeared for a long time.
    pub(super) fn check_pending_flushes(&mut self, now: Now) {
        let mut timed_out: Vec<(TaskId, String)> = Vec::new();
        let mut gone: Vec<(SyncNo, WorkerId, UnavailablePath)> = Vec::new();
        let mut lost: Vec<(TaskId, String)> = Vec::new();
        let mut in_time: Vec<TaskId> = Vec::new();
        for task in self.tasks.values() {
            let Some(bound) = &task.pinned_to else { continue };
            let Some(sync) = self.syncs.get(task.sync) else { continue };
            let destination = &sync.request.destination_path;
            let place = sync.unflushed_writers.get(bound).and_then(Option::as_ref);
            let boot = place.map(|place| boot_part(place));
            let writer = self.workers.get(bound);
            let under = || boot.into_iter().flat_map(|boot| self.workers.with_boot(boot));
            let mut flushers = under()
                .chain(writer)
                .filter(|w| w.is_ready() && self.workers.serves(w, sync.destination()));
            let waits = !sync.can_dispatch(now);
            if waits
                || task.state != TaskState::Ready
                || flushers.any(|w| self.can_flush(sync, task, w))
            {
                in_time.push(task.id);
                continue;
            }
            let runs = under().any(|w| w.is_active);
            let here = writer.filter(|w| w.is_active);
            let rebooted =
                here.is_some_and(|w| w.last_heartbeat.boot_id.as_deref() != boot && !runs);
            let same_kernel = here.filter(|w| w.last_heartbeat.boot_id.as_deref() == boot);
            let replaced = same_kernel.is_some_and(|w| {
                w.available_root(destination).is_some()
                    && w.boot_and_root(destination).as_ref() != place
            });
            let lost_path = here.and_then(|w| unavailable_path(&w.last_heartbeat, destination));
            if let (Some(path), false) = (lost_path, rebooted) {
                in_time.push(task.id);
                gone.push((sync.no, bound.clone(), path.clone()));
            } else if rebooted {
                let why = format!(
                    "the host of worker {bound} was rebooted before what it wrote was flushed; submit the sync again"
                );
                lost.push((task.id, why));
            } else if replaced {
                let why = format!(
                    "the storage path of worker {bound} that holds {destination} leads to another directory \
                     than the one that it wrote to; submit the sync again"
                );
                lost.push((task.id, why));
            } else if now.mono_ms.saturating_sub(task.waiting_since_ms) > FLUSH_TIMEOUT_MS {
                let why = format!(
                    "worker {bound} wrote to the destination and did not return to flush it; submit the sync again"
                );
                timed_out.push((task.id, why));
            }
        }
        for id in in_time {
            if let Some(task) = self.tasks.get_mut(id) {
                task.waiting_since_ms = now.mono_ms;
            }
        }
        for (no, worker, path) in gone {
            self.pause_for_flush(no, &worker, &path, now);
        }
        lost.retain(|(id, _)| !self.recheck_after_reboot(*id, now));
        for (id, why) in timed_out.into_iter().chain(lost) {
            self.fail_task(id, &why, None, now);
        }
    }

    /// A heartbeat reports other storage paths or roots than the previous one.
    pub(super) fn handle_storage_change(&mut self, id: &WorkerId, now: Now) {
        let mut all: BTreeSet<SyncNo> = self.tasks.syncs().collect();
        // A destination that follows the scans of its group may have no task at present.
        let followers = all.iter().flat_map(|no| self.syncs.destinations_of(*no));
        all.extend(followers.collect::<Vec<_>>());
        for no in all {
            self.resume_if_served(no, now);
            for at_source in [true, false] {
                self.pause_if_unavailable(no, id, at_source, now);
            }
            self.restart_if_source_replaced(no, id, now);
        }
    }

    /// Pauses a started sync if no worker serves its source or its destination any more. A paused sync
    /// gets the present reason, which may differ from the first.
    fn pause_if_unavailable(&mut self, no: SyncNo, id: &WorkerId, at_source: bool, now: Now) {
        let Some(sync) = self.syncs.get(no).filter(|s| s.state == SyncState::Progress) else {
            return;
        };
        let place = sync.place(at_source);
        let path = place.path;
        let Some(worker) = self.workers.get(id).filter(|w| self.workers.sees(w, place)) else {
            return;
        };
        let Some(lost) = unavailable_path(&worker.last_heartbeat, path).cloned() else { return };
        let served = self.workers.accepting(sync.place(at_source)).next().is_some();
        let flush = match &sync.pause {
            None => (!served).then_some(false),
            Some(Pause::Operator) => None,
            Some(Pause::Storage { problem: StorageProblem::NoSpace, .. }) => {
                (!served).then_some(false)
            }
            Some(Pause::Storage {
                problem: StorageProblem::PathUnavailable { worker, at_source: side, flush },
                ..
            }) => (worker == id && *side == at_source).then_some(*flush),
        };
        if let Some(flush) = flush {
            let problem = StorageProblem::PathUnavailable { worker: id.clone(), at_source, flush };
            self.pause_for_storage(no, problem, describe_unavailable(id, &lost), now);
        }
    }

    /// Pauses a sync for a worker that wrote and has not flushed.
    fn pause_for_flush(&mut self, no: SyncNo, id: &WorkerId, lost: &UnavailablePath, now: Now) {
        let problem =
            StorageProblem::PathUnavailable { worker: id.clone(), at_source: false, flush: true };
        let why = describe_unavailable(id, lost);
        if !self.pause_for_storage(no, problem.clone(), why.clone(), now) {
            self.fail_paused_tasks(no, &problem, &why, now);
        }
    }

    /// A worker reads the source from another root than before.
    fn restart_if_source_replaced(&mut self, no: SyncNo, id: &WorkerId, now: Now) {
        let Some(sync) = self.syncs.get(no).filter(|s| s.is_active() && !s.is_group()) else {
            return;
        };
        let path = &sync.request.source_path;
        // What other destinations read may have been sent on to it.
        let group = sync.group().filter(|_| sync.shares_source());
        let shared = group.and_then(|group| self.syncs.get(group)?.source_roots.get(id));
        let then = sync.source_roots.get(id).or(shared).and_then(Option::as_ref);
        let here = self.workers.get(id).filter(|w| w.available_root(path).is_some());
        let here = here.and_then(|w| w.boot_and_root(path));
        let (Some(then), Some(here)) = (then, here) else { return };
        if !is_different_root(then, &here) {
            return;
        }
        if sync.phase == PhaseState::DeleteExtraneous {
            let why = format!(
                "the storage path of worker {id} that holds the source {path} leads to another directory than \
                 when the sync began"
            );
            let stop = sync
                .mirror_stop_for(&why, "check what is mounted there, and submit the sync again");
            return self.stop_mirror(no, stop, now);
        }
        if sync.phase < PhaseState::DeleteExtraneous {
            tracing::warn!(sync = %sync.id, worker = %id, "its source was replaced: the sync restarts");
            self.restart_sync(no, now);
            self.delay_scans(no, now);
        }
    }

    /// Delays the scans of a restarted sync while workers may still publish what they read from the
    /// old root: that would replace what the new pass copies.
    fn delay_scans(&mut self, no: SyncNo, now: Now) {
        for id in self.tasks.ids_of_sync(no) {
            self.store_task_state(id, self.delayed_by_lease(now));
        }
    }
}
