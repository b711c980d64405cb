//! Storage paths that their workers do not serve: what waits for them, and what follows when one is served again but
//! leads to another directory than before.
//!
//! - A sync that is under way and has no other worker on that side waits ([`Lack::RootDir`]).
//! - What was read from another root than before is no part of the source: the sync restarts, and a mirror that has
//!   begun to delete stops. What was written to another root is compared again ([`recheck`](super::recheck)).
//! - A worker may open another root long before its heartbeat is heard. So each assignment names the roots that its
//!   work is counted for, and an agent that has another one open does nothing for it.

use super::boots::{is_other_root, only_root_of};
use super::hold::{Hold, Lack};
use super::stage::Stage;
use super::sync::Sync;
use super::task::{Task, TaskState};
use super::worker::unavailable;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::task::{PoolMember, TaskSpec};
use crate::wire::ticket::Claims;
use crate::wire::worker::UnavailablePath;
use crate::wire::{AbsPath, SyncNo, TaskId, WorkerId};

impl Sync {
    fn path(&self, at_source: bool) -> &AbsPath {
        let request = &self.request;
        if at_source { &request.source_path } else { &request.destination_path }
    }
}

impl State {
    /// The heartbeat of a worker names other storage paths, or other roots, than the one before.
    pub(super) fn look_at_storage(&mut self, id: &WorkerId, now: Now) {
        for no in self.working.clone() {
            self.release_if_served(no, now);
            for at_source in [true, false] {
                self.hold_if_lost(no, id, at_source, now);
            }
            self.restart_if_source_replaced(no, id, now);
        }
    }

    /// A sync that waits for a storage path goes on where a worker serves that.
    fn release_if_served(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let Some(Hold::Storage { lack, .. }) = &sync.hold else { return };
        let Lack::Root { worker, at_source, flush } = lack else { return };
        let path = sync.path(*at_source);
        let itself = self.workers.get(worker).is_some_and(|w| w.can_work() && w.holds(path));
        if itself || !flush && self.workers.pool(path).next().is_some() {
            self.release(no, now);
        }
    }

    /// Whether the worker that a lack names is known not to serve the path any more (it is silent, or reports the path
    /// as unavailable), and another worker serves it: then there is nothing to wait for.
    pub(super) fn is_served_elsewhere(&self, no: SyncNo, lack: &Lack) -> bool {
        let Lack::Root { worker, at_source, flush: false } = lack else { return false };
        let Some(sync) = self.syncs.get(&no) else { return false };
        let path = sync.path(*at_source);
        let serves = self.workers.get(worker).is_some_and(|w| w.active && w.holds(path));
        !serves && self.able(sync, path).next().is_some()
    }

    /// Whether the worker that a lack names serves the path again, and has reported another root than the one that it
    /// was given work for: there is nothing to wait for.
    pub(super) fn is_replaced(&self, no: SyncNo, lack: &Lack) -> bool {
        let Lack::Root { worker, at_source, .. } = lack else { return false };
        let Some(sync) = self.syncs.get(&no) else { return false };
        let path = sync.path(*at_source);
        let known = if *at_source { &sync.source_roots } else { &sync.reach };
        let here = self.workers.get(worker).filter(|w| w.can_work() && w.holds(path));
        let here = here.and_then(|w| w.place_of_writes(path));
        let then = known.get(worker).and_then(Option::as_ref);
        then.zip(here).is_some_and(|(then, here)| is_other_root(then, &here))
    }

    /// A sync that is under way waits where nobody serves its source, or its destination, any more. One that waits
    /// already gets the reason of now: the cause may be another one than at first.
    fn hold_if_lost(&mut self, no: SyncNo, id: &WorkerId, at_source: bool, now: Now) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.state == SyncState::Progress) else {
            return;
        };
        let path = sync.path(at_source);
        let Some(worker) = self.workers.get(id) else { return };
        let Some(lost) = unavailable(&worker.said, path).cloned() else { return };
        let served = self.workers.pool(path).next().is_some();
        let flush = match &sync.hold {
            None => (!served).then_some(false),
            Some(Hold::Operator) => None,
            Some(Hold::Storage { lack: Lack::Room, .. }) => (!served).then_some(false),
            Some(Hold::Storage { lack: Lack::Root { worker, at_source: side, flush }, .. }) => {
                (worker == id && *side == at_source).then_some(*flush)
            }
        };
        if let Some(flush) = flush {
            let lack = Lack::Root { worker: id.clone(), at_source, flush };
            self.hold(no, lack, sentence(id, &lost), now);
        }
    }

    /// A sync waits for the storage path of a worker that wrote and has not flushed.
    pub(super) fn hold_flush(
        &mut self,
        no: SyncNo,
        id: &WorkerId,
        lost: &UnavailablePath,
        now: Now,
    ) {
        let lack = Lack::Root { worker: id.clone(), at_source: false, flush: true };
        let why = sentence(id, lost);
        if !self.hold(no, lack.clone(), why.clone(), now) {
            self.give_up_waiting(no, &lack, &why, now);
        }
    }

    /// What a sync can't go on without, if a worker reports that it lost it and no other one has it.
    pub(super) fn lost_storage(&self, sync: &Sync) -> Option<(Lack, String)> {
        [true, false].into_iter().find_map(|at_source| {
            let path = sync.path(at_source);
            if self.workers.pool(path).next().is_some() {
                return None;
            }
            let active = self.workers.all().filter(|w| w.active);
            let mut lost = active.filter_map(|w| Some((w, unavailable(&w.said, path)?)));
            let (worker, lost) = lost.next()?;
            let id = worker.said.worker_id.clone();
            let why = sentence(&id, lost);
            Some((Lack::Root { worker: id, at_source, flush: false }, why))
        })
    }

    /// A task was done by `worker`, and through the workers that `wrote`: storage of theirs that its sync waited for is there
    /// again.
    pub(super) fn found_storage(
        &mut self,
        id: TaskId,
        by: &WorkerId,
        wrote: &[WorkerId],
        now: Now,
    ) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (no, reads) = (task.sync, task.at_source());
        let Some(Hold::Storage { lack, .. }) = self.syncs.get(&no).and_then(|s| s.hold.as_ref())
        else {
            return;
        };
        let Lack::Root { worker, at_source, .. } = lack else { return };
        let there = match at_source {
            true => reads && worker == by,
            false => wrote.contains(worker) || !reads && worker == by,
        };
        if there {
            self.release(no, now);
        }
    }

    /// Notes from which root a worker reads the source of the sync of a task that it was given.
    pub(super) fn note_source_root(&mut self, id: TaskId, worker: &WorkerId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.at_source()) else { return };
        if task.spec == TaskSpec::CleanUp {
            return;
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        if sync.source_roots.get(worker).is_some() {
            return;
        }
        let known = self.workers.get(worker);
        if let Some(place) = known.and_then(|w| w.place_of_writes(&sync.request.source_path)) {
            sync.source_roots.add(worker, Some(&place));
            let no = sync.no;
            self.changed(no, now);
        }
    }

    /// Notes the workers through which a task may write that is being handed out.
    pub(super) fn note_reach(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.writes()) else { return };
        let Some(lease) = task.lease() else { return };
        let Some(sync) = self.syncs.get(&task.sync).filter(|sync| !sync.dry_run()) else { return };
        let destination = &sync.request.destination_path;
        let itself = self.workers.get(&lease.worker).filter(|w| w.holds(destination));
        let reached = self.writers_for(sync, &lease.worker, task.attempt).chain(itself);
        let reached = reached.filter(|w| w.said.incarnation.is_some());
        let reached: Vec<_> =
            reached.map(|w| (w.said.worker_id.clone(), w.place_of_writes(destination))).collect();
        let no = task.sync;
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let mut changed = false;
        for (id, place) in &reached {
            changed |= sync.reach.add(id, place.as_ref());
            // What is at the path in the end may be the root of before again: then nothing else shows that some of
            // the sync went to another one.
            if let Some(place) = place {
                changed |= sync.reach.note_root(id, place) | sync.writers.note_root(id, place);
            }
        }
        if changed {
            self.changed(no, now);
        }
    }

    /// Binds what a ticket allows to the roots that the writes of a task will be counted for.
    pub(super) fn expect_roots(
        &self,
        claims: &mut Claims,
        sync: &Sync,
        task: &Task,
        members: &[PoolMember],
    ) {
        let Some(lease) = task.lease() else { return };
        let itself = std::iter::once(&lease.worker);
        for worker in members.iter().map(|member| &member.worker_id).chain(itself) {
            let place = match (&task.spec, &task.bound) {
                (TaskSpec::Flush, Some(bound)) => sync.writers.get(bound),
                _ => sync.reach.get(worker),
            };
            if let Some(root) = self.root_under_its_kernel(worker, place) {
                claims.restrict_to_root(worker, root);
            }
        }
    }

    /// The root that a worker reads the source of a sync from.
    pub(super) fn source_root<'a>(&self, sync: &'a Sync, worker: &WorkerId) -> Option<&'a str> {
        self.root_under_its_kernel(worker, sync.source_roots.get(worker))
    }

    /// The root of a noted place of a worker, where the worker runs under the kernel that numbered it.
    fn root_under_its_kernel<'a>(
        &self,
        worker: &WorkerId,
        place: Option<&'a Option<String>>,
    ) -> Option<&'a str> {
        let boot = self.workers.get(worker)?.said.boot_id.as_ref()?;
        only_root_of(place?.as_ref()?, boot)
    }

    /// A worker reads the source of a sync from another root than before.
    fn restart_if_source_replaced(&mut self, no: SyncNo, id: &WorkerId, now: Now) {
        let Some(sync) = self.syncs.get(&no).filter(|s| s.is_active()) else { return };
        let path = &sync.request.source_path;
        let then = sync.source_roots.get(id).and_then(Option::as_ref);
        let here = self.workers.get(id).filter(|w| w.holds(path));
        let here = here.and_then(|w| w.place_of_writes(path));
        let (Some(then), Some(here)) = (then, here) else { return };
        if !is_other_root(then, &here) {
            return;
        }
        if sync.stage == Stage::Prune {
            let why = format!(
                "the storage path of worker {id} that holds the source {path} leads to another directory than \
                 when the sync began"
            );
            let stop = sync.stop(&why, "check what is mounted there, and submit the sync again");
            return self.halt(no, stop, now);
        }
        if sync.stage < Stage::Prune {
            tracing::warn!(sync = %sync.id, worker = %id, "its source was replaced: the sync restarts");
            self.sync_anew(no, now);
            self.delay_scans(no, now);
        }
    }

    /// Keeps the scans of a sync that restarts for as long as workers may still publish what they read from the root
    /// before: it would replace what the new pass brings.
    fn delay_scans(&mut self, no: SyncNo, now: Now) {
        let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let scans = self.syncs.get(&no).map(|sync| sync.tasks.clone()).unwrap_or_default();
        for id in scans {
            self.set_state(id, TaskState::Delayed { until_ms });
            let key = self.tasks.get(&id).map(Task::key);
            key.into_iter().for_each(|key| self.put(key));
        }
    }
}

fn sentence(id: &WorkerId, lost: &UnavailablePath) -> String {
    format!("storage path {} of worker {id} is unavailable: {}", lost.path, lost.reason)
}
