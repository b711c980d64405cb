//! Isolation of tasks that were lost with their workers. One of their entries may crash each agent that works on it, so
//! they are not retried without bound.
//!
//! ```text
//! ordinary ──lost `max_worker_losses` times──▶ isolated ──lost once more──▶ failed
//!    ▲                                            │ a batch: one task for each entry
//!    └───── the process turns out to be alive ────┘
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

#[derive(Debug, Default)]
pub(super) struct Isolation {
    pub(super) tasks: BTreeSet<TaskId>,
    pub(super) running: Option<TaskId>,
    /// The reserved worker, the task, and the end on the scheduler's clock.
    pub(super) reserved: Option<(WorkerId, TaskId, u64)>,
    /// No reservation before this time on the scheduler's clock: the last worker did not become
    /// idle.
    pub(super) unreserved_until_ms: u64,
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
