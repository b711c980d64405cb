//! Isolation of tasks that were lost with their workers. One of their entries may crash each agent that works on it, so
//! they are not retried without bound.
//!
//! A test walks the table: what a task is, what happens, what it is then. The last loss is that of the number
//! `max_worker_losses`; the entries of a split batch are isolated tasks.
//!
//! ```text
//! Ordinary | it is lost                           | Ordinary
//! Ordinary | it is lost for the last time         | Isolated
//! Ordinary | a batch is lost for the last time    | Split
//! Isolated | its process turns out to be alive    | Ordinary
//! Isolated | it is lost once more                 | Failed
//! Isolated | it is done                           | Done
//! ```
//!
//! A task is *lost with its worker* when a new process of the worker reports while the old one held the task, or when
//! the lease ends and the worker was silent for all of it. These do not count: returned tasks, tasks revoked by an
//! operator or for a hanging path, the end of a draining worker, a restart of the master, and a task that was assigned
//! to a process that had already ended. If the process reports later, it was only disconnected or suspended, and the
//! loss is retracted.
//!
//! An isolated task runs on a worker that holds nothing else, and only one such task runs at a time, so that it alone
//! can cause the next loss. If no worker is idle, one is reserved. The state holds no manifests: the owner of the state
//! reads the manifest ([`Effect::ReadEntries`](super::Effect::ReadEntries)) and returns its entries
//! ([`Event::ManifestEntries`](super::Event::ManifestEntries)).

use crate::wire::{TaskId, WorkerId};
use std::collections::BTreeSet;

/// Maximum duration of a reservation.
const MAX_RESERVATION_MS: u64 = 5 * 60 * 1000;

/// Time without a reservation after one that expired: the tasks of the worker may wait for other
/// work, as a walk waits for its batches.
const RESERVATION_PAUSE_MS: u64 = 6 * MAX_RESERVATION_MS;

#[derive(Debug, Default)]
pub(super) struct Isolation {
    tasks: BTreeSet<TaskId>,
    running: Option<TaskId>,
    reserved: Option<Reservation>,
    /// No reservation before this time on the scheduler's clock: the last worker did not become
    /// idle.
    unreserved_until_ms: u64,
}

/// A busy worker gets no other task, so that it becomes idle for this one.
#[derive(Debug)]
struct Reservation {
    worker: WorkerId,
    task: TaskId,
    /// On the scheduler's clock.
    until_ms: u64,
}

impl Isolation {
    pub(super) fn contains(&self, id: TaskId) -> bool {
        self.tasks.contains(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.iter().copied()
    }

    /// The isolated task that was leased last.
    pub(super) fn running(&self) -> Option<TaskId> {
        self.running.filter(|id| self.contains(*id))
    }

    pub(super) fn insert(&mut self, id: TaskId, is_leased: bool) {
        self.tasks.insert(id);
        if is_leased {
            self.running = Some(id);
        }
    }

    pub(super) fn mark_leased(&mut self, id: TaskId) {
        if self.contains(id) {
            (self.running, self.reserved) = (Some(id), None);
        }
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    /// What a polling worker gets while no isolated task runs. `found`: an isolated task that it can
    /// do; `is_valid`: whether the task of a reservation still waits for its worker.
    pub(super) fn decide(
        &mut self,
        worker: &WorkerId,
        found: Option<TaskId>,
        is_idle: bool,
        is_valid: impl Fn(&WorkerId, TaskId) -> bool,
        now_ms: u64,
    ) -> IsolationDecision {
        let before = self.reserved.take();
        let expired = before.as_ref().map(|r| r.until_ms).filter(|until_ms| *until_ms <= now_ms);
        if let Some(until_ms) = expired {
            self.unreserved_until_ms = until_ms.saturating_add(RESERVATION_PAUSE_MS);
        }
        self.reserved = before.filter(|r| {
            now_ms < r.until_ms && self.tasks.contains(&r.task) && is_valid(&r.worker, r.task)
        });
        match (found, &self.reserved) {
            (None, _) => IsolationDecision::Ordinary,
            (Some(id), _) if is_idle => IsolationDecision::RunAlone(id),
            (Some(_), Some(reserved)) if reserved.worker != *worker => IsolationDecision::Ordinary,
            (Some(_), Some(_)) => IsolationDecision::Wait,
            (Some(_), None) if now_ms < self.unreserved_until_ms => IsolationDecision::Ordinary,
            (Some(task), None) => {
                let until_ms = now_ms.saturating_add(MAX_RESERVATION_MS);
                self.reserved = Some(Reservation { worker: worker.clone(), task, until_ms });
                IsolationDecision::Wait
            }
        }
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
