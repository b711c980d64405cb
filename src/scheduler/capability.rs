//! Which workers can do what: read-only questions about workers, leases and waiting polls.

use super::place::Place;
use super::sync_job::SyncJob;
use super::task::Task;
use super::worker_registry::Worker;
use super::{Caller, State};
use crate::wire::{AssignmentId, WorkerId};

/// Maximum number of destination workers in an assignment.
pub(super) const MAX_POOL_MEMBERS: usize = 64;

impl State {
    /// Active workers that serve a place and support the options of a sync.
    pub(super) fn capable_workers<'a>(
        &'a self,
        sync: &'a SyncJob,
        place: Place<'a>,
    ) -> impl Iterator<Item = &'a Worker> {
        self.workers
            .accepting(place)
            .filter(|w| w.supports_options() || !sync.has_nondefault_options())
    }

    /// Where the content of a task is read: at the source, or at the destination of which it sends the copy.
    pub(super) fn read_place<'a>(&'a self, sync: &'a SyncJob, task: &Task) -> Place<'a> {
        let relay = task.lease().and_then(|lease| lease.relay.as_ref());
        let holder = relay.and_then(|relay| self.syncs.get(relay.holder));
        holder.map_or(sync.source(), SyncJob::destination)
    }

    /// A flush is done by the worker that wrote, or by one under the same kernel with the same open
    /// root, because they share a page cache. After a reboot no worker can flush what was only in
    /// the cache.
    pub(super) fn can_flush(&self, sync: &SyncJob, task: &Task, worker: &Worker) -> bool {
        let Some(bound) = &task.pinned_to else { return true };
        let wrote = sync.unflushed_writers.get(bound).and_then(Option::as_ref);
        let same_place = worker.boot_and_root(&sync.request.destination_path).as_ref() == wrote;
        same_place && (worker.last_heartbeat.worker_id == *bound || wrote.is_some())
    }

    /// The workers through which a worker may write in an attempt. If it serves the destination, it is the first: an
    /// agent that is not listed does not write itself.
    pub(super) fn reachable_writers<'a>(
        &'a self,
        sync: &'a SyncJob,
        worker: &WorkerId,
        attempt: u32,
    ) -> impl Iterator<Item = &'a Worker> {
        let place = sync.destination();
        let itself = self
            .workers
            .get(worker)
            .filter(move |w| w.is_active && w.drained.is_none() && self.workers.serves(w, place));
        let near = self.workers.reachable(place, worker, attempt);
        let others = near.filter(move |w| w.last_heartbeat.worker_id != *worker);
        itself
            .into_iter()
            .chain(others)
            .filter(|w| w.supports_options() || !sync.has_nondefault_options())
            .take(MAX_POOL_MEMBERS)
    }

    pub(super) fn leased_task(&self, worker: &WorkerId, assignment: AssignmentId) -> Option<&Task> {
        let task = self.tasks.by_assignment(assignment)?;
        task.lease().filter(|lease| lease.worker == *worker).map(|_| task)
    }

    /// Waiting polls of workers that serve the source of a sync.
    pub(super) fn idle_polls<'a>(&'a self, sync: &'a SyncJob) -> impl Iterator<Item = Caller> {
        let polls = self.poll_queue.polls_at(sync.source_storage);
        let able = |worker: &WorkerId| self.workers.get(worker).is_some_and(Worker::accepts_work);
        polls.filter(move |(_, poll)| able(&poll.worker)).map(|(caller, _)| caller)
    }
}
