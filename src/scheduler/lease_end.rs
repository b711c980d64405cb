//! Leases that end without a result: expired, returned, revoked, or lost with their worker ([`isolation`](super::isolation)).

use super::single_entries::SingleEntry;
use super::sync_job::SyncJob;
use super::task::{DEPRIORITISED_MS, RetryHistory, Task, TaskState, WorkerLoss};
use super::{Now, State};

use super::worker_registry::Worker;
use crate::util::units;
use crate::wire::task::{TaskSpec, WorkItem};
use crate::wire::worker::WorkerStatus;
use crate::wire::{SyncNo, TaskId, WorkerId};

/// No agent can receive a task, end and report as another process in less time. So the poll that
/// got the task had waited in the queue, and its process had already ended.
const MIN_RESTART_MS: u64 = 10;

/// Maximum number of expired or returned leases of a task: it appears to crash its workers.
const MAX_ATTEMPTS: u32 = 20;

impl State {
    /// Whether a task counts as lost when another process of its worker reports.
    pub(super) fn counts_as_loss(&self, worker: &WorkerId, id: TaskId, now: Now) -> bool {
        let Some(lease) = self.tasks.get(id).and_then(Task::lease) else { return false };
        // A draining worker may end at its time-out with tasks.
        let drained = |w: &Worker| w.last_heartbeat.status == WorkerStatus::Draining;
        let drained = self.workers.get(worker).is_none_or(drained);
        !drained && now.mono_ms.saturating_sub(lease.granted_ms) >= MIN_RESTART_MS
    }

    /// Whether the process that holds a task was silent for a whole lease.
    pub(super) fn is_holder_silent(&self, id: TaskId, now: Now) -> bool {
        let Some(lease) = self.tasks.get(id).and_then(Task::lease) else { return false };
        // A master without a heartbeat of the worker cannot know.
        self.is_process_silent(&lease.worker, lease.incarnation.as_ref(), now)
    }

    fn is_process_silent(&self, worker: &WorkerId, incarnation: Option<&String>, now: Now) -> bool {
        self.workers.get(worker).is_some_and(|known| {
            known.last_heartbeat.incarnation.as_ref() == incarnation
                && now.mono_ms.saturating_sub(known.last_seen_ms) >= self.settings.lease_ms
        })
    }

    /// A worker died while it held a task.
    pub(super) fn handle_worker_loss(&mut self, id: TaskId, now: Now) {
        self.mark_possible_writes(id, now);
        self.leave_unit_after_loss(id);
        let most = self.settings.max_worker_losses as usize;
        let Some(task) = self.tasks.get_mut(id) else { return };
        let Some(lease) = task.lease() else { return };
        let loss =
            WorkerLoss { worker: lease.worker.clone(), incarnation: lease.incarnation.clone() };
        task.history.losses.push(loss);
        task.deprioritised_until_ms = now.mono_ms.saturating_add(DEPRIORITISED_MS);
        let (key, no, times) = (task.record_key(), task.sync, task.history.losses.len());
        let (what, workers) = (task.description(), task.describe_losses());
        self.outbox.write_record(key);
        if times > most {
            let why = format!(
                "its worker died or sent no heartbeats {} while it had this task, the last time with no other \
                 task: {workers}; see the logs of these agents and of their kernels (out of memory?)",
                units::pluralize(times as u64, "time", "times")
            );
            return self.fail_lost_task(id, &why, now);
        }
        tracing::warn!(sync = %no, task = %id, times, workers, "{what} was lost with its worker");
        if times == most {
            self.isolate_if_lost(id);
        }
        self.requeue_task(id, now);
    }

    /// Fails a task that was lost too often, and discards what the dead agents left of it.
    fn fail_lost_task(&mut self, id: TaskId, why: &str, now: Now) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let no = task.sync;
        let copies = matches!(task.spec, TaskSpec::Copy { .. });
        let left = if copies { task.manifest_key.take() } else { None };
        let blob_bytes = task.manifest_bytes;
        tracing::error!(sync = %no, task = %id, "{} has failed: {why}", task.description());
        self.fail_task(id, why, None, now);
        let Some(blob) = left else { return };
        if self.syncs.get(no).is_none_or(SyncJob::is_dry_run) {
            return self.release_manifest(no, blob);
        }
        self.add_discard(no, Some(blob), blob_bytes, true, now);
    }

    /// Retracts the losses of a process that reports: it was only disconnected or suspended.
    pub(super) fn retract_losses(
        &mut self,
        worker: &WorkerId,
        incarnation: Option<&String>,
        restarted: bool,
        now: Now,
    ) {
        if incarnation.is_none() || !(restarted || self.is_process_silent(worker, incarnation, now))
        {
            return;
        }
        let most = self.settings.max_worker_losses as usize;
        let is_it =
            |loss: &WorkerLoss| loss.worker == *worker && loss.incarnation.as_ref() == incarnation;
        let mut changed: Vec<String> = Vec::new();
        for task in self.tasks.values_mut().filter(|task| task.history.losses.iter().any(is_it)) {
            task.history.losses.retain(|loss| !is_it(loss));
            changed.push(task.record_key());
            if task.history.losses.len() < most {
                self.isolation.remove(task.id);
            }
        }
        self.outbox.request_dispatch_if(!changed.is_empty());
        changed.into_iter().for_each(|key| self.outbox.write_record(key));
    }

    /// The entries of the manifest of an isolated task were read.
    pub(super) fn split_isolated_task(&mut self, id: TaskId, entries: Vec<SingleEntry>, now: Now) {
        if !self.isolation.contains(id) {
            return;
        }
        let Some(task) = self.tasks.get_mut(id) else { return };
        self.outbox.request_dispatch();
        let key = task.record_key();
        if !task.needs_split() {
            task.history.entry = entries.into_iter().next().map(|entry| entry.path);
            return self.outbox.write_record(key);
        }
        let sum = entries.iter().fold((0, 0, 0), |sum: (u64, u64, u64), entry| match &entry.item {
            WorkItem::Copy { files, dirs, bytes, .. } => {
                (sum.0 + files, sum.1 + dirs, sum.2.saturating_add(*bytes))
            }
            WorkItem::Large { .. } => sum,
        });
        if !matches!(task.spec, TaskSpec::Copy { files, dirs, bytes } if sum == (files, dirs, bytes))
        {
            tracing::error!(sync = %task.sync, task = %id, "the manifest cannot be split: its entries stay one task");
            task.is_unsplittable = true;
            return self.outbox.write_record(key);
        }
        let Some(task) = self.remove_task(id) else { return };
        tracing::info!(sync = %task.sync, task = %id, entries = entries.len(), "each entry is a task of its own now");
        for SingleEntry { path, item } in entries {
            let history = RetryHistory { entry: Some(path), ..task.history.clone() };
            let added = self.add_work_item(task.sync, item, Some(history));
            if let Some(one) = added.and_then(|id| self.tasks.get_mut(id)) {
                // The attempt shows that earlier attempts may have left something.
                one.attempt = task.attempt;
            }
        }
        self.mark_changed(task.sync, now);
    }

    /// Queues a task again after its worker ended without a report of where it wrote: every worker that it could
    /// reach must flush.
    pub(super) fn requeue_lost(&mut self, id: TaskId, now: Now) {
        self.mark_possible_writes(id, now);
        self.leave_unit_after_loss(id);
        self.requeue_task(id, now);
    }

    /// The destination of a sync could not be reached: others do not wait for what it sends to them, or could send.
    pub(super) fn stop_relays_of(&mut self, no: SyncNo, now: Now) {
        let Some(group) = self.syncs.get(no).and_then(SyncJob::group) else { return };
        let sent = self.relays.sent_by(group, no);
        sent.into_iter().for_each(|id| self.requeue_lost(id, now));
        self.relays.remove_holder_everywhere(group, no);
    }

    /// A worker with a lease on a writing task may have written through any reachable worker.
    fn mark_possible_writes(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(id).filter(|t| t.writes_destination()) else { return };
        let no = task.sync;
        self.record_revoked_lease(id, now);
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.mark_all_unflushed();
        }
        self.mark_changed(no, now);
    }

    /// Queues a task again; its next lease has a higher attempt.
    pub(super) fn requeue_task(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(id) else { return };
        if task.attempt.saturating_sub(task.history.uncharged_retries) >= MAX_ATTEMPTS {
            let worker = task.lease().map(|lease| format!(", last on worker {}", lease.worker));
            let worker = worker.unwrap_or_default();
            let why = format!("its lease expired or was returned {MAX_ATTEMPTS} times{worker}");
            return self.fail_task(id, &why, None, now);
        }
        self.store_task_state(id, TaskState::Ready);
    }
}
