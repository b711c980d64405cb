//! The tasks of a sync that may be assigned, by the workers that may take them, so that a poll
//! needs no walk over all tasks.

use super::task::{Task, TaskState};
use crate::wire::TaskId;
use std::collections::{BTreeMap, BTreeSet};

/// Each ready task is in one of these, the oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReadyQueue {
    /// Walks: for workers that serve the source, while the window has space.
    pub(super) scans: BTreeSet<TaskId>,
    /// For workers that serve the source.
    pub(super) at_source: BTreeSet<TaskId>,
    /// For workers that serve the destination.
    pub(super) at_destination: BTreeSet<TaskId>,
    /// Flushes, by the boot id and root that were written to (`None`: not reported): for the
    /// writer, or another worker with the same.
    pub(super) pinned: BTreeMap<Option<String>, BTreeSet<TaskId>>,
    /// The key in `pinned` of each task.
    pinned_boots: BTreeMap<TaskId, Option<String>>,
    /// Leased walks.
    pub(super) leased_scans: usize,
}

impl ReadyQueue {
    /// Indexes a task by its state; `boot` is the boot id of the worker that it is pinned to.
    pub(super) fn insert(&mut self, task: &Task, boot: Option<&String>) {
        match &task.state {
            TaskState::Ready if task.pinned_to.is_some() => {
                let boot = boot.cloned();
                self.pinned_boots.insert(task.id, boot.clone());
                self.pinned.entry(boot).or_default().insert(task.id);
            }
            TaskState::Ready => drop(self.queue_for(task).insert(task.id)),
            TaskState::Leased(_) => self.leased_scans += usize::from(task.is_scan()),
            TaskState::Delayed { .. } => {}
        }
    }

    /// Removes a task, before its state changes.
    pub(super) fn remove(&mut self, task: &Task) {
        match &task.state {
            TaskState::Ready if task.pinned_to.is_some() => {
                let Some(boot) = self.pinned_boots.remove(&task.id) else { return };
                if let Some(filed) = self.pinned.get_mut(&boot) {
                    filed.remove(&task.id);
                    if filed.is_empty() {
                        self.pinned.remove(&boot);
                    }
                }
            }
            TaskState::Ready => drop(self.queue_for(task).remove(&task.id)),
            TaskState::Leased(_) => self.leased_scans -= usize::from(task.is_scan()),
            TaskState::Delayed { .. } => {}
        }
    }

    fn queue_for(&mut self, task: &Task) -> &mut BTreeSet<TaskId> {
        match (task.is_scan(), task.runs_at_source()) {
            (true, _) => &mut self.scans,
            (false, true) => &mut self.at_source,
            (false, false) => &mut self.at_destination,
        }
    }
}
