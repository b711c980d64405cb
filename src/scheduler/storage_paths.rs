//! Storage paths that are not served, or that lead to another directory than before.
//!
//! - A started sync without another worker on that side pauses
//!   ([`StorageProblem::PathUnavailable`]).
//! - If a worker read the source from another root than before, the sync restarts, and a mirror
//!   that has begun to delete stops. Writes to another root are compared again
//!   ([`recheck`](super::recheck)).
//! - A worker may open another root long before its heartbeat arrives. So each assignment names the
//!   expected roots, and an agent with another root open does nothing for it.

use super::boot_ids::{is_different_root, unambiguous_root};
use super::pause::{Pause, StorageProblem};
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::task::{Task, TaskState};
use super::worker_registry::unavailable_path;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::task::{PoolMember, TaskSpec};
use crate::wire::ticket::Claims;
use crate::wire::worker::UnavailablePath;
use crate::wire::{AbsPath, SyncNo, TaskId, WorkerId};

impl SyncJob {
    fn storage_path(&self, at_source: bool) -> &AbsPath {
        let request = &self.request;
        if at_source { &request.source_path } else { &request.destination_path }
    }
}

impl State {
    /// A heartbeat reports other storage paths or roots than the previous one.
    pub(super) fn handle_storage_change(&mut self, id: &WorkerId, now: Now) {
        for no in self.syncs_with_tasks.clone() {
            self.resume_if_served(no, now);
            for at_source in [true, false] {
                self.pause_if_unavailable(no, id, at_source, now);
            }
            self.restart_if_source_replaced(no, id, now);
        }
    }

    fn resume_if_served(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let Some(Pause::Storage { problem: lack, .. }) = &sync.pause else { return };
        let StorageProblem::PathUnavailable { worker, at_source, flush } = lack else { return };
        let path = sync.storage_path(*at_source);
        let itself = self.workers.get(worker).is_some_and(|w| w.is_ready() && w.serves(path));
        if itself || !flush && self.workers.accepting(path).next().is_some() {
            self.end_storage_pause(no, now);
        }
    }

    /// Whether another worker serves the path and the named one does not (it is silent, or reports
    /// the path as unavailable): then there is nothing to wait for.
    pub(super) fn is_served_elsewhere(&self, no: SyncNo, lack: &StorageProblem) -> bool {
        let StorageProblem::PathUnavailable { worker, at_source, flush: false } = lack else {
            return false;
        };
        let Some(sync) = self.syncs.get(&no) else { return false };
        let path = sync.storage_path(*at_source);
        let serves = self.workers.get(worker).is_some_and(|w| w.is_active && w.serves(path));
        !serves && self.capable_workers(sync, path).next().is_some()
    }

    /// Whether the named worker serves the path again with another root than the assigned one: then
    /// there is nothing to wait for.
    pub(super) fn is_replaced(&self, no: SyncNo, lack: &StorageProblem) -> bool {
        let StorageProblem::PathUnavailable { worker, at_source, .. } = lack else { return false };
        let Some(sync) = self.syncs.get(&no) else { return false };
        let path = sync.storage_path(*at_source);
        let known = if *at_source { &sync.source_roots } else { &sync.possible_writers };
        let here = self.workers.get(worker).filter(|w| w.is_ready() && w.serves(path));
        let here = here.and_then(|w| w.boot_and_root(path));
        let then = known.get(worker).and_then(Option::as_ref);
        then.zip(here).is_some_and(|(then, here)| is_different_root(then, &here))
    }

    /// Pauses a started sync whose source or destination no worker serves any more. A paused sync
    /// gets the present reason, which may differ from the first.
    fn pause_if_unavailable(&mut self, no: SyncNo, id: &WorkerId, at_source: bool, now: Now) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.state == SyncState::Progress) else {
            return;
        };
        let path = sync.storage_path(at_source);
        let Some(worker) = self.workers.get(id) else { return };
        let Some(lost) = unavailable_path(&worker.last_heartbeat, path).cloned() else { return };
        let served = self.workers.accepting(path).next().is_some();
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
            let lack = StorageProblem::PathUnavailable { worker: id.clone(), at_source, flush };
            self.pause_for_storage(no, lack, describe_unavailable(id, &lost), now);
        }
    }

    /// Pauses a sync for a worker that wrote and has not flushed.
    pub(super) fn pause_for_flush(
        &mut self,
        no: SyncNo,
        id: &WorkerId,
        lost: &UnavailablePath,
        now: Now,
    ) {
        let lack =
            StorageProblem::PathUnavailable { worker: id.clone(), at_source: false, flush: true };
        let why = describe_unavailable(id, lost);
        if !self.pause_for_storage(no, lack.clone(), why.clone(), now) {
            self.fail_paused_tasks(no, &lack, &why, now);
        }
    }

    /// The path that a worker reports as unavailable and that no other worker serves, if any.
    pub(super) fn find_unavailable_storage(
        &self,
        sync: &SyncJob,
    ) -> Option<(StorageProblem, String)> {
        [true, false].into_iter().find_map(|at_source| {
            let path = sync.storage_path(at_source);
            if self.workers.accepting(path).next().is_some() {
                return None;
            }
            let active = self.workers.all().filter(|w| w.is_active);
            let mut lost =
                active.filter_map(|w| Some((w, unavailable_path(&w.last_heartbeat, path)?)));
            let (worker, lost) = lost.next()?;
            let id = worker.last_heartbeat.worker_id.clone();
            let why = describe_unavailable(&id, lost);
            Some((StorageProblem::PathUnavailable { worker: id, at_source, flush: false }, why))
        })
    }

    /// A task was done by `by`, and through the workers `wrote`: a pause for storage of theirs
    /// ends.
    pub(super) fn resume_if_storage_works(
        &mut self,
        id: TaskId,
        by: &WorkerId,
        wrote: &[WorkerId],
        now: Now,
    ) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (no, reads) = (task.sync, task.runs_at_source());
        let Some(Pause::Storage { problem: lack, .. }) =
            self.syncs.get(&no).and_then(|s| s.pause.as_ref())
        else {
            return;
        };
        let StorageProblem::PathUnavailable { worker, at_source, .. } = lack else { return };
        let there = match at_source {
            true => reads && worker == by,
            false => wrote.contains(worker) || !reads && worker == by,
        };
        if there {
            self.end_storage_pause(no, now);
        }
    }

    /// Records the root from which a worker reads the source.
    pub(super) fn record_source_reader(&mut self, id: TaskId, worker: &WorkerId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.runs_at_source()) else { return };
        if task.spec == TaskSpec::CleanUp {
            return;
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        if sync.source_roots.get(worker).is_some() {
            return;
        }
        let known = self.workers.get(worker);
        if let Some(place) = known.and_then(|w| w.boot_and_root(&sync.request.source_path)) {
            sync.source_roots.add(worker, Some(&place));
            let no = sync.no;
            self.mark_changed(no, now);
        }
    }

    /// Records the workers through which a task may write that is being assigned.
    pub(super) fn record_possible_writers(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.writes_destination()) else {
            return;
        };
        let Some(lease) = task.lease() else { return };
        let Some(sync) = self.syncs.get(&task.sync).filter(|sync| !sync.is_dry_run()) else {
            return;
        };
        let destination = &sync.request.destination_path;
        let itself = self.workers.get(&lease.worker).filter(|w| w.serves(destination));
        let reached = self.reachable_writers(sync, &lease.worker, task.attempt).chain(itself);
        let reached = reached.filter(|w| w.last_heartbeat.incarnation.is_some());
        let reached: Vec<_> = reached
            .map(|w| (w.last_heartbeat.worker_id.clone(), w.boot_and_root(destination)))
            .collect();
        let no = task.sync;
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let mut changed = false;
        for (id, place) in &reached {
            changed |= sync.possible_writers.add(id, place.as_ref());
            // The first root may be open again at the end: then nothing else shows that some writes
            // went to another one.
            if let Some(place) = place {
                changed |= sync.possible_writers.record_root_change(id, place)
                    | sync.unflushed_writers.record_root_change(id, place);
            }
        }
        if changed {
            self.mark_changed(no, now);
        }
    }

    /// Adds the roots for which the writes of a task count to its ticket.
    pub(super) fn add_expected_roots(
        &self,
        claims: &mut Claims,
        sync: &SyncJob,
        task: &Task,
        members: &[PoolMember],
    ) {
        let Some(lease) = task.lease() else { return };
        let itself = std::iter::once(&lease.worker);
        for worker in members.iter().map(|member| &member.worker_id).chain(itself) {
            let place = match (&task.spec, &task.pinned_to) {
                (TaskSpec::Flush, Some(bound)) => sync.unflushed_writers.get(bound),
                _ => sync.possible_writers.get(worker),
            };
            if let Some(root) = self.current_root(worker, place) {
                claims.restrict_to_root(worker, root);
            }
        }
    }

    /// The root from which a worker must read the source.
    pub(super) fn expected_source_root<'a>(
        &self,
        sync: &'a SyncJob,
        worker: &WorkerId,
    ) -> Option<&'a str> {
        self.current_root(worker, sync.source_roots.get(worker))
    }

    /// The recorded root of a worker, if it runs under the kernel that numbered the root.
    fn current_root<'a>(
        &self,
        worker: &WorkerId,
        place: Option<&'a Option<String>>,
    ) -> Option<&'a str> {
        let boot = self.workers.get(worker)?.last_heartbeat.boot_id.as_ref()?;
        unambiguous_root(place?.as_ref()?, boot)
    }

    /// A worker reads the source from another root than before.
    fn restart_if_source_replaced(&mut self, no: SyncNo, id: &WorkerId, now: Now) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.is_active()) else { return };
        let path = &sync.request.source_path;
        let then = sync.source_roots.get(id).and_then(Option::as_ref);
        let here = self.workers.get(id).filter(|w| w.serves(path));
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
        let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let scans = self.syncs.get(&no).map(|sync| sync.tasks.clone()).unwrap_or_default();
        for id in scans {
            self.set_task_state(id, TaskState::Delayed { until_ms });
            let key = self.tasks.get(&id).map(Task::record_key);
            key.into_iter().for_each(|key| self.put_record(key));
        }
    }
}

fn describe_unavailable(id: &WorkerId, lost: &UnavailablePath) -> String {
    format!("storage path {} of worker {id} is unavailable: {}", lost.path, lost.reason)
}
