//! What of a sync may be handed out now, filed by who may take it, so that a poll is answered without a
//! walk over all tasks.

use super::task::{Task, TaskState};
use crate::wire::TaskId;
use std::collections::{BTreeMap, BTreeSet};

/// The tasks of a sync that are ready, each in one of these, the oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReadyQueue {
    /// Walks: for workers that hold the source, as long as the window has room.
    pub(super) scans: BTreeSet<TaskId>,
    /// For workers that hold the source.
    pub(super) at_source: BTreeSet<TaskId>,
    /// For workers that hold the destination.
    pub(super) at_destination: BTreeSet<TaskId>,
    /// Flushes, by the boot under which was written (`None`: the writer did not say): for the writer,
    /// or another worker under the same boot.
    pub(super) pinned: BTreeMap<Option<String>, BTreeSet<TaskId>>,
    /// Under which boot each of those is filed.
    pinned_boots: BTreeMap<TaskId, Option<String>>,
    /// Walks that a worker has.
    pub(super) leased_scans: usize,
}

impl ReadyQueue {
    /// Files a task by its state; `boot` is that of what it is bound to.
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

    /// Takes a task out, before its state changes.
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
