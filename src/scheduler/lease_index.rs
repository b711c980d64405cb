//! Leases by assignment and by worker.

use super::task::Lease;
use crate::wire::{AssignmentId, TaskId, WorkerId};
use std::collections::{BTreeMap, HashMap};

/// All leases, by assignment and by worker.
#[derive(Debug, Default)]
pub(super) struct LeaseIndex {
    by_assignment: HashMap<AssignmentId, TaskId>,
    by_worker: HashMap<WorkerId, BTreeMap<AssignmentId, TaskId>>,
}

impl LeaseIndex {
    pub(super) fn insert(&mut self, lease: &Lease, task: TaskId) {
        self.by_assignment.insert(lease.assignment, task);
        self.by_worker.entry(lease.worker.clone()).or_default().insert(lease.assignment, task);
    }

    pub(super) fn remove(&mut self, lease: &Lease) {
        self.by_assignment.remove(&lease.assignment);
        if let Some(held) = self.by_worker.get_mut(&lease.worker) {
            held.remove(&lease.assignment);
            if held.is_empty() {
                self.by_worker.remove(&lease.worker);
            }
        }
    }

    pub(super) fn get(&self, assignment: &AssignmentId) -> Option<&TaskId> {
        self.by_assignment.get(assignment)
    }

    pub(super) fn held_by(&self, worker: &WorkerId) -> impl Iterator<Item = TaskId> + use<'_> {
        self.by_worker.get(worker).into_iter().flat_map(|held| held.values().copied())
    }

    pub(super) fn worker_count(&self) -> usize {
        self.by_worker.len()
    }

    pub(super) fn leased_tasks(&self) -> impl Iterator<Item = TaskId> {
        self.by_assignment.values().copied()
    }
}
