//! Tasks that are lost with their workers. An entry may crash each agent that works on it, so such
//! tasks are not retried without bound.
//!
//! ```text
//! ordinary ──lost `max_worker_losses` times──▶ isolated ──lost once more──▶ failed
//!    ▲                                            │ a batch: one task for each entry
//!    └───── the process turns out to be alive ────┘
//! ```
//!
//! A task is *lost with its worker* when a new process of the worker reports while the old one held
//! the task, or when the lease ends and the worker was silent for all of it. These do not count:
//! returned tasks, tasks revoked by an operator or for a hanging path, the end of a draining
//! worker, a restart of the master, and a task that was assigned to a process that had already
//! ended. If the process reports later, it was only disconnected or suspended, and the loss is
//! retracted.
//!
//! An isolated task runs on a worker that holds nothing else, and only one such task runs at a
//! time, so that it alone can cause the next loss. If no worker is idle, one is reserved. The state
//! holds no manifests: the owner of the state reads the manifest ([`Effect::ReadEntries`]) and
//! returns its entries ([`Event::ManifestEntries`](super::Event::ManifestEntries)).

use super::pages::RetryHistory;
use super::placement::RunnableSync;
use super::sync_job::SyncJob;
use super::task::{DEPRIORITISED_MS, Task, TaskState};
use super::worker_registry::Worker;
use super::{Effect, NewTask, Now, State};
use crate::util::units;
use crate::wire::manifest::Manifest;
use crate::wire::task::{Base64Bytes, TaskSpec, WorkItem};
use crate::wire::worker::WorkerStatus;
use crate::wire::{BytePath, TaskId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum duration of a reservation.
const MAX_RESERVATION_MS: u64 = 5 * 60 * 1000;
/// Time without a reservation after one that expired: the tasks of the worker may wait for other
/// work, as a walk waits for its batches.
const RESERVATION_PAUSE_MS: u64 = 6 * MAX_RESERVATION_MS;

/// No agent can receive a task, end and report as another process in less time. So the poll that
/// got the task had waited in the queue, and its process had already ended.
const MIN_RESTART_MS: u64 = 10;

/// A process with which a task was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkerLoss {
    pub(super) worker: WorkerId,
    incarnation: Option<String>,
}

/// An entry of a batch, as a batch of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct SingleEntry {
    /// Its name.
    pub path: BytePath,
    /// The batch.
    pub item: WorkItem,
}

#[derive(Debug, Default)]
pub(super) struct Isolation {
    tasks: BTreeSet<TaskId>,
    running: Option<TaskId>,
    /// The reserved worker, the task, and the end on the scheduler's clock.
    reserved: Option<(WorkerId, TaskId, u64)>,
    /// No reservation before this time on the scheduler's clock: the last worker did not become
    /// idle.
    unreserved_until_ms: u64,
}

impl Isolation {
    pub(super) fn contains(&self, id: TaskId) -> bool {
        self.tasks.contains(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn mark_leased(&mut self, id: TaskId) {
        if self.contains(id) {
            (self.running, self.reserved) = (Some(id), None);
        }
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }
}

/// What isolated tasks mean for a polling worker.
pub(super) enum IsolationDecision {
    /// Normal placement.
    Ordinary,
    /// It gets this task.
    RunAlone(TaskId),
    /// It gets nothing until it is idle.
    Wait,
}

/// The entries of a manifest, each as a batch of its own; empty if it cannot be decoded.
pub fn single_entries(manifest: &[u8]) -> Vec<SingleEntry> {
    let Ok(Manifest { dirs, entries }) = Manifest::decode(manifest) else { return Vec::new() };
    let single = |entry: crate::wire::manifest::Entry| {
        let above = dirs.iter().filter(|d| d.path != entry.path && d.path.contains(&entry.path));
        let is_dir = u64::from(entry.is_dir());
        let (path, bytes) = (BytePath(entry.path.as_bytes().to_vec()), entry.size());
        let manifest = Manifest { dirs: above.cloned().collect(), entries: vec![entry] };
        let manifest = Base64Bytes(manifest.encode());
        let item = WorkItem::Copy { manifest, files: 1 - is_dir, dirs: is_dir, bytes };
        SingleEntry { path, item }
    };
    entries.into_iter().map(single).collect()
}

impl Task {
    /// The workers with which it was lost, with the number of times if more than one.
    fn describe_losses(&self) -> String {
        let mut times: BTreeMap<&WorkerId, usize> = BTreeMap::new();
        for loss in &self.losses {
            *times.entry(&loss.worker).or_default() += 1;
        }
        let words = times.into_iter().map(|(worker, n)| match n {
            1 => worker.to_string(),
            n => format!("{worker} ({n} times)"),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// For messages.
    fn description(&self) -> String {
        match (&self.spec, &self.entry) {
            (spec, Some(path)) if path.0.is_empty() => {
                format!("the {} task of the root", spec.kind())
            }
            (spec, Some(path)) => format!("the {} task of `{path}`", spec.kind()),
            (TaskSpec::Copy { files, dirs, .. }, None) => {
                format!("a copy task of {}", units::pluralize(files + dirs, "entry", "entries"))
            }
            (spec, None) => format!("a {} task", spec.kind()),
        }
    }

    /// Whether it is split into one task for each entry.
    fn needs_split(&self) -> bool {
        matches!(self.spec, TaskSpec::Copy { files, dirs, .. } if files + dirs > 1)
            && !self.is_unsplittable
    }

    /// Whether its manifest names its entry.
    fn has_entry_manifest(&self) -> bool {
        use TaskSpec::{Commit, Copy, Range};
        matches!(self.spec, Copy { .. } | Range { .. } | Commit { .. })
    }

    pub(super) fn failed_or_lost_on(&self, worker: &WorkerId) -> bool {
        self.failed_on.contains(worker) || self.losses.iter().any(|loss| loss.worker == *worker)
    }
}

impl State {
    /// Isolates a task that was lost too often.
    pub(super) fn isolate_if_lost(&mut self, id: TaskId) {
        let most = self.settings.max_worker_losses as usize;
        let Some(task) = self.tasks.get(&id).filter(|task| task.losses.len() >= most) else {
            return;
        };
        self.isolation.tasks.insert(id);
        if task.lease().is_some() {
            self.isolation.running = Some(id);
        }
        let unread = task.needs_split() || (task.has_entry_manifest() && task.entry.is_none());
        if let (Some(key), true, false) = (&task.manifest_key, unread, task.is_unsplittable) {
            self.effects.push(Effect::ReadEntries { task: id, key: key.clone() });
        }
    }

    /// Whether a task counts as lost when another process of its worker reports.
    pub(super) fn counts_as_loss(&self, worker: &WorkerId, id: TaskId, now: Now) -> bool {
        let Some(lease) = self.tasks.get(&id).and_then(Task::lease) else { return false };
        // A draining worker may end at its time-out with tasks.
        let drained = |w: &Worker| w.last_heartbeat.status == WorkerStatus::Draining;
        let drained = self.workers.get(worker).is_none_or(drained);
        !drained && now.mono_ms.saturating_sub(lease.granted_ms) >= MIN_RESTART_MS
    }

    /// Whether the process that holds a task was silent for a whole lease.
    pub(super) fn is_holder_silent(&self, id: TaskId, now: Now) -> bool {
        let Some(lease) = self.tasks.get(&id).and_then(Task::lease) else { return false };
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
        let most = self.settings.max_worker_losses as usize;
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(lease) = task.lease() else { return };
        let loss =
            WorkerLoss { worker: lease.worker.clone(), incarnation: lease.incarnation.clone() };
        task.losses.push(loss);
        task.deprioritised_until_ms = now.mono_ms.saturating_add(DEPRIORITISED_MS);
        let (key, no, times) = (task.record_key(), task.sync, task.losses.len());
        let (what, workers) = (task.description(), task.describe_losses());
        self.put_record(key);
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
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let no = task.sync;
        let copies = matches!(task.spec, TaskSpec::Copy { .. });
        let left = if copies { task.manifest_key.take() } else { None };
        let blob_bytes = task.manifest_bytes;
        tracing::error!(sync = %no, task = %id, "{} has failed: {why}", task.description());
        self.fail_task(id, why, None, now);
        let Some(blob) = left else { return };
        if self.syncs.get(&no).is_none_or(SyncJob::is_dry_run) {
            return self.effects.push(Effect::DeleteBlob(blob));
        }
        let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let state = TaskState::Delayed { until_ms };
        let discard = NewTask::ready(no, TaskSpec::Discard);
        self.add_task(
            NewTask { manifest_key: Some(blob), manifest_bytes: blob_bytes, state, ..discard },
            None,
        );
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
        for task in self.tasks.values_mut().filter(|task| task.losses.iter().any(is_it)) {
            task.losses.retain(|loss| !is_it(loss));
            changed.push(task.record_key());
            if task.losses.len() < most {
                self.isolation.tasks.remove(&task.id);
            }
        }
        self.needs_dispatch |= !changed.is_empty();
        changed.into_iter().for_each(|key| self.put_record(key));
    }

    /// The entries of the manifest of an isolated task were read.
    pub(super) fn split_isolated_task(&mut self, id: TaskId, entries: Vec<SingleEntry>, now: Now) {
        if !self.isolation.contains(id) {
            return;
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        self.needs_dispatch = true;
        let key = task.record_key();
        if !task.needs_split() {
            task.entry = entries.into_iter().next().map(|entry| entry.path);
            return self.put_record(key);
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
            return self.put_record(key);
        }
        let Some(task) = self.remove_task(id) else { return };
        tracing::info!(sync = %task.sync, task = %id, entries = entries.len(), "each entry is a task of its own now");
        for SingleEntry { path, item } in entries {
            let again = RetryHistory {
                failures: task.failures,
                resource_retries: task.resource_retries,
                failed_on: task.failed_on.clone(),
                last_error: task.last_error.clone(),
                losses: task.losses.clone(),
                entry: Some(path),
            };
            let added = self.add_work_item(task.sync, item, Some(again));
            if let Some(one) = added.and_then(|id| self.tasks.get_mut(&id)) {
                // The attempt shows that earlier attempts may have left something.
                one.attempt = task.attempt;
            }
        }
        self.mark_changed(task.sync, now);
    }

    /// Whether a polling worker gets an isolated task, or is reserved for one.
    pub(super) fn decide_isolation(
        &mut self,
        worker: &WorkerId,
        open: &[RunnableSync],
        now: Now,
    ) -> IsolationDecision {
        if self.isolation.is_empty() {
            return IsolationDecision::Ordinary;
        }
        if self.lease_index.held_by(worker).any(|held| self.isolation.contains(held)) {
            return IsolationDecision::Wait;
        }
        let leased = |id: TaskId| self.tasks.get(&id).is_some_and(|task| task.lease().is_some());
        if self.isolation.running.is_some_and(|id| self.isolation.contains(id) && leased(id)) {
            return IsolationDecision::Ordinary;
        }
        let stands = |(holder, id, until): &(WorkerId, TaskId, u64)| {
            let waits = |task: &Task| task.state == TaskState::Ready;
            now.mono_ms < *until
                && self.isolation.contains(*id)
                && self.tasks.get(id).is_some_and(waits)
                && self.workers.get(holder).is_some_and(|w| w.is_ready())
        };
        let before = self.isolation.reserved.clone();
        let ended = before.as_ref().map(|(.., until_ms)| *until_ms);
        let reserved = before.filter(stands);
        if let Some(until_ms) = ended.filter(|until_ms| *until_ms <= now.mono_ms) {
            self.isolation.unreserved_until_ms = until_ms.saturating_add(RESERVATION_PAUSE_MS);
        }
        let busy = self.lease_index.held_by(worker).next().is_some();
        let found = self.find_isolated_task(worker, open, now);
        let turn = match (found, &reserved) {
            (None, _) => IsolationDecision::Ordinary,
            (Some(id), _) if !busy => IsolationDecision::RunAlone(id),
            (Some(_), Some((holder, ..))) if holder != worker => IsolationDecision::Ordinary,
            (Some(_), Some(_)) => IsolationDecision::Wait,
            (Some(_), None) if now.mono_ms < self.isolation.unreserved_until_ms => {
                IsolationDecision::Ordinary
            }
            (Some(id), None) => {
                let until_ms = now.mono_ms.saturating_add(MAX_RESERVATION_MS);
                self.isolation.reserved = Some((worker.clone(), id, until_ms));
                return IsolationDecision::Wait;
            }
        };
        self.isolation.reserved = reserved;
        turn
    }

    /// The first isolated task that a worker can do now.
    fn find_isolated_task(
        &self,
        worker: &WorkerId,
        open: &[RunnableSync],
        now: Now,
    ) -> Option<TaskId> {
        let worker = self.workers.get(worker)?;
        let tasks = self.isolation.tasks.iter().filter_map(|id| self.tasks.get(id));
        let mut ready = tasks.filter(|task| {
            task.state == TaskState::Ready
                && !task.needs_split()
                && open.iter().any(|open| open.no == task.sync)
        });
        ready.find(|task| self.can_run_task(task, worker, now)).map(|task| task.id)
    }

    /// Describes the task of a sync with the most losses.
    pub(super) fn loss_reason(&self, sync: &SyncJob) -> Option<String> {
        let tasks = sync.tasks.iter().filter_map(|id| self.tasks.get(id));
        let worst = tasks.max_by_key(|task| task.losses.len()).filter(|t| !t.losses.is_empty())?;
        let most = self.settings.max_worker_losses as usize;
        let next = match worst.losses.len() < most {
            true => {
                let times = units::pluralize(most as u64, "time", "times");
                format!("after {times} each entry of it runs alone on a worker")
            }
            false => "it runs alone on a worker, and fails if that one is lost too".to_owned(),
        };
        let (what, times) = (worst.description(), worst.losses.len());
        let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
        Some(format!(
            "{what} was lost with its worker {times} ({}): {next}",
            worst.describe_losses()
        ))
    }
}
