//! The task table: all tasks, their leases, and the indexes by which they are found. A task changes its state only
//! here, so that the indexes always agree with it.

use super::relay_table::UnitNo;
use super::task::{Lease, Task, TaskState};
use crate::wire::{AssignmentId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

#[derive(Debug, Default)]
pub(super) struct TaskTable {
    tasks: BTreeMap<TaskId, Task>,
    indexes: TaskIndexes,
    last_id: u64,
}

#[derive(Debug, Default)]
struct TaskIndexes {
    by_assignment: HashMap<AssignmentId, TaskId>,
    /// Leased tasks.
    by_worker: HashMap<WorkerId, BTreeMap<AssignmentId, TaskId>>,
    /// Delayed tasks by the end of the delay.
    delayed: BTreeSet<(u64, TaskId)>,
    by_sync: BTreeMap<SyncNo, SyncTasks>,
}

/// The tasks of a sync.
#[derive(Debug, Default)]
pub(super) struct SyncTasks {
    ids: BTreeSet<TaskId>,
    ready: ReadyQueue,
    scan_count: usize,
    /// Manifest bytes in the store, of tasks and large files.
    manifest_bytes: u64,
    /// Maximum number of outstanding tasks; follows from the workers.
    window: usize,
}

/// The tasks of a sync that may be assigned, by the workers that may take them, so that a poll needs no walk over all
/// tasks. Each ready task is in one of these, the oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ReadyQueue {
    /// Walks: for workers that serve the source, while the window has space.
    pub(super) scans: BTreeSet<TaskId>,
    /// For workers that serve the source.
    pub(super) at_source: BTreeSet<TaskId>,
    /// For workers that serve the source, or a destination with a copy; their units say which.
    pub(super) in_units: BTreeSet<TaskId>,
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

static NO_TASKS: LazyLock<SyncTasks> = LazyLock::new(SyncTasks::default);

impl SyncTasks {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tasks that may be assigned.
    pub(super) fn ready(&self) -> &ReadyQueue {
        &self.ready
    }

    pub(super) fn scan_count(&self) -> usize {
        self.scan_count
    }

    /// How full the window is, with `large_files` that are not published, and at most `max_bytes` of manifests. Scans
    /// do not count: only they can empty a window that they fill.
    pub(super) fn window_fill(&self, large_files: usize, max_bytes: u64) -> f64 {
        let tasks = self.ids.len() - self.scan_count + large_files;
        let by_tasks = tasks as f64 / self.window.max(1) as f64;
        by_tasks.max(self.manifest_bytes as f64 / max_bytes as f64)
    }
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
            (false, true) if task.unit.is_some() => &mut self.in_units,
            (false, true) => &mut self.at_source,
            (false, false) => &mut self.at_destination,
        }
    }
}

impl TaskTable {
    pub(super) fn get(&self, id: TaskId) -> Option<&Task> {
        self.tasks.get(&id)
    }

    /// The caller changes neither the state nor another indexed field.
    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(&id)
    }

    /// The caller changes neither the worker nor the assignment.
    pub(super) fn lease_mut(&mut self, id: TaskId) -> Option<&mut Lease> {
        match &mut self.tasks.get_mut(&id)?.state {
            TaskState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn is_leased(&self, id: TaskId) -> bool {
        self.get(id).is_some_and(|task| task.lease().is_some())
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Task> {
        self.tasks.values()
    }

    /// As for [`TaskTable::get_mut`].
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Task> {
        self.tasks.values_mut()
    }

    pub(super) fn by_assignment(&self, assignment: AssignmentId) -> Option<&Task> {
        self.get(*self.indexes.by_assignment.get(&assignment)?)
    }

    pub(super) fn held_by(&self, worker: &WorkerId) -> impl Iterator<Item = &Task> + use<'_> {
        let held = self.indexes.by_worker.get(worker).into_iter().flat_map(BTreeMap::values);
        held.filter_map(|id| self.tasks.get(id))
    }

    pub(super) fn leased(&self) -> impl Iterator<Item = &Task> {
        self.indexes.by_assignment.values().filter_map(|id| self.tasks.get(id))
    }

    /// Number of workers with leases.
    pub(super) fn worker_count(&self) -> usize {
        self.indexes.by_worker.len()
    }

    pub(super) fn sync_tasks(&self, no: SyncNo) -> &SyncTasks {
        self.indexes.by_sync.get(&no).unwrap_or(&NO_TASKS)
    }

    pub(super) fn of_sync(&self, no: SyncNo) -> impl Iterator<Item = &Task> {
        self.sync_tasks(no).ids.iter().filter_map(|id| self.tasks.get(id))
    }

    pub(super) fn ids_of_sync(&self, no: SyncNo) -> Vec<TaskId> {
        self.sync_tasks(no).ids.iter().copied().collect()
    }

    pub(super) fn of_file(&self, no: SyncNo, file: TaskId) -> impl Iterator<Item = &Task> {
        self.of_sync(no).filter(move |task| task.large_file == Some(file))
    }

    /// The syncs that have tasks.
    pub(super) fn syncs(&self) -> impl Iterator<Item = SyncNo> {
        self.indexes.by_sync.iter().filter(|(_, tasks)| !tasks.is_empty()).map(|(no, _)| *no)
    }

    /// Delayed tasks after the end of their delay.
    pub(super) fn due(&self, now_ms: u64) -> Vec<TaskId> {
        let due = self.indexes.delayed.range(..=(now_ms, TaskId(u64::MAX)));
        due.map(|(_, id)| *id).collect()
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.indexes.delayed.first().map(|(at, _)| *at)
    }

    pub(super) fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Restores the number of the last task.
    pub(super) fn set_last_id(&mut self, id: u64) {
        self.last_id = id;
    }

    pub(super) fn allocate_id(&mut self) -> TaskId {
        self.last_id += 1;
        TaskId(self.last_id)
    }

    pub(super) fn set_window(&mut self, no: SyncNo, window: usize) {
        if let Some(tasks) = self.indexes.by_sync.get_mut(&no) {
            tasks.window = window;
        }
    }

    /// Counts the manifest of a large file.
    pub(super) fn add_manifest_bytes(&mut self, no: SyncNo, bytes: u64) {
        let tasks = self.indexes.by_sync.entry(no).or_default();
        // A damaged record may hold any length.
        tasks.manifest_bytes = tasks.manifest_bytes.saturating_add(bytes);
    }

    pub(super) fn remove_manifest_bytes(&mut self, no: SyncNo, bytes: u64) {
        let Some(tasks) = self.indexes.by_sync.get_mut(&no) else { return };
        tasks.manifest_bytes = tasks.manifest_bytes.saturating_sub(bytes);
        if tasks.is_empty() && tasks.manifest_bytes == 0 {
            self.indexes.by_sync.remove(&no);
        }
    }

    /// Adds a task; `boot` as for [`TaskTable::set_state`]. True: it is the first one of its sync.
    pub(super) fn insert(&mut self, task: Task, boot: Option<&String>) -> bool {
        self.add_manifest_bytes(task.sync, task.manifest_bytes);
        let tasks = self.indexes.by_sync.entry(task.sync).or_default();
        let is_first = tasks.is_empty();
        tasks.ids.insert(task.id);
        tasks.scan_count += usize::from(task.is_scan());
        self.indexes.insert(&task, boot);
        self.tasks.insert(task.id, task);
        is_first
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.indexes.remove(&task);
        if let Some(tasks) = self.indexes.by_sync.get_mut(&task.sync) {
            tasks.ids.remove(&id);
            tasks.scan_count -= usize::from(task.is_scan());
        }
        self.remove_manifest_bytes(task.sync, task.manifest_bytes);
        Some(task)
    }

    /// Adds a task to a unit, or removes it from its unit.
    pub(super) fn set_unit(&mut self, id: TaskId, unit: Option<UnitNo>) {
        let Some(task) = self.tasks.get_mut(&id).filter(|task| task.pinned_to.is_none()) else {
            return;
        };
        self.indexes.remove(task);
        task.unit = unit;
        self.indexes.insert(task, None);
    }

    /// Changes the state of a task. `boot`: the boot id and root under which the worker wrote that it is pinned to.
    pub(super) fn set_state(&mut self, id: TaskId, state: TaskState, boot: Option<&String>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        self.indexes.remove(task);
        task.state = state;
        self.indexes.insert(task, boot);
    }
}

impl TaskIndexes {
    fn insert(&mut self, task: &Task, boot: Option<&String>) {
        match &task.state {
            TaskState::Ready => {}
            TaskState::Delayed { until_ms } => drop(self.delayed.insert((*until_ms, task.id))),
            TaskState::Leased(lease) => {
                self.by_assignment.insert(lease.assignment, task.id);
                let held = self.by_worker.entry(lease.worker.clone()).or_default();
                held.insert(lease.assignment, task.id);
            }
        }
        if let Some(tasks) = self.by_sync.get_mut(&task.sync) {
            tasks.ready.insert(task, boot);
        }
    }

    fn remove(&mut self, task: &Task) {
        match &task.state {
            TaskState::Ready => {}
            TaskState::Delayed { until_ms } => drop(self.delayed.remove(&(*until_ms, task.id))),
            TaskState::Leased(lease) => {
                self.by_assignment.remove(&lease.assignment);
                if let Some(held) = self.by_worker.get_mut(&lease.worker) {
                    held.remove(&lease.assignment);
                    if held.is_empty() {
                        self.by_worker.remove(&lease.worker);
                    }
                }
            }
        }
        if let Some(tasks) = self.by_sync.get_mut(&task.sync) {
            tasks.ready.remove(task);
        }
    }
}

#[cfg(test)]
impl TaskTable {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn lease_count(&self) -> usize {
        self.indexes.by_assignment.len()
    }

    pub(super) fn delayed(&self) -> &BTreeSet<(u64, TaskId)> {
        &self.indexes.delayed
    }

    pub(super) fn window(&self, no: SyncNo) -> usize {
        self.sync_tasks(no).window
    }
}

#[cfg(test)]
impl std::ops::Index<&TaskId> for TaskTable {
    type Output = Task;

    fn index(&self, id: &TaskId) -> &Task {
        &self.tasks[id]
    }
}
