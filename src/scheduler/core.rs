//! The operations that every other file builds on: tasks and records change, and the indexes of them with them.

use super::relay_table::{UnitNo, UnitTask};
use super::sync_job::SyncJob;
use super::task::{Task, TaskState, task_digest};
use super::{Effect, Now, State, record_keys};
use crate::wire::task::TaskSpec;
use crate::wire::{Digest, SyncNo, TaskId};

impl State {
    /// The boot id and root under which the worker wrote that a flush is pinned to.
    fn pinned_boot(&self, task: &Task) -> Option<String> {
        let writers = &self.syncs.get(task.sync)?.unflushed_writers;
        writers.get(task.pinned_to.as_ref()?)?.clone()
    }

    pub(super) fn set_task_state(&mut self, id: TaskId, state: TaskState) {
        let Some(task) = self.tasks.get(id) else { return };
        let boot = self.pinned_boot(task);
        self.tasks.set_state(id, state, boot.as_ref());
        self.update_unit(id);
    }

    fn update_unit(&mut self, id: TaskId) {
        let Some((task, unit)) = self.tasks.get(id).and_then(|task| Some((task, task.unit?)))
        else {
            return;
        };
        let sender = task.lease().map(|lease| lease.relay.as_ref().map(|relay| relay.holder));
        let is_ready = task.state == TaskState::Ready;
        self.relays.update_task(unit, task.sync, UnitTask { id, is_ready, sender });
    }

    /// Adds a task to a unit.
    pub(super) fn join_unit(&mut self, id: TaskId, unit: UnitNo) {
        self.tasks.set_unit(id, Some(unit));
        self.update_unit(id);
        self.outbox.request_dispatch();
    }

    /// Makes a task an ordinary one, that reads the source.
    pub(super) fn leave_unit(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(id) else { return };
        if let Some(unit) = task.unit {
            self.relays.remove_task(unit, task.sync);
            self.tasks.set_unit(id, None);
            self.outbox.request_dispatch();
        }
    }

    /// A sync does not need a manifest any more.
    pub(super) fn release_manifest(&mut self, no: SyncNo, key: String) {
        if self.shared_manifests.release(&key, no) {
            self.outbox.delete_blob(key);
        }
    }

    /// Changes the state of a task, and stores it.
    pub(super) fn store_task_state(&mut self, id: TaskId, state: TaskState) {
        self.set_task_state(id, state);
        let Some(task) = self.tasks.get(id) else { return };
        let (key, no) = (task.record_key(), task.sync);
        self.outbox.write_record(key);
        self.outbox.mark_dirty(no);
        self.outbox.request_dispatch();
    }

    /// Changes a task, but not its state, and stores it.
    pub(super) fn edit_task(&mut self, id: TaskId, edit: impl FnOnce(&mut Task)) {
        if let Some(task) = self.tasks.get_mut(id) {
            edit(task);
            let key = task.record_key();
            self.outbox.write_record(key);
        }
    }

    /// Isolates a task that was lost too often.
    pub(super) fn isolate_if_lost(&mut self, id: TaskId) {
        let most = self.settings.max_worker_losses as usize;
        let lost = self.tasks.get(id).filter(|task| task.history.losses.len() >= most);
        let Some(task) = lost else { return };
        self.isolation.insert(id, task.lease().is_some());
        let unread =
            task.needs_split() || (task.has_entry_manifest() && task.history.entry.is_none());
        if let (Some(key), true, false) = (&task.manifest_key, unread, task.is_unsplittable) {
            self.outbox.push(Effect::ReadEntries { task: id, key: key.clone() });
        }
    }

    /// Indexes a new or loaded task.
    pub(super) fn insert_task(&mut self, task: Task) {
        let (id, no) = (task.id, task.sync);
        if self.syncs.get(no).is_none() {
            return;
        }
        let boot = self.pinned_boot(&task);
        if self.tasks.insert(task, boot.as_ref()) {
            self.update_window(no);
        }
        self.isolate_if_lost(id);
    }

    pub(super) fn allocate_task_id(&mut self) -> TaskId {
        self.outbox.write_record(record_keys::META_KEY.to_owned());
        self.tasks.allocate_id()
    }

    /// Adds a task without a manifest, or with one that is not part of its digest.
    pub(super) fn add_task(&mut self, task: Task) -> TaskId {
        self.add_task_of(task, &[])
    }

    /// Adds a task with a stored manifest, which its digest covers by `manifest`.
    pub(super) fn add_task_of(&mut self, task: Task, manifest: &[u8]) -> TaskId {
        let id = self.allocate_task_id();
        let digest = task_digest(task.sync, id, &task.spec, manifest);
        self.add_numbered_task(id, digest, task)
    }

    /// Adds a task and stores its manifest.
    pub(super) fn add_task_with(&mut self, mut task: Task, manifest: Vec<u8>) -> TaskId {
        let id = self.allocate_task_id();
        let key = format!("m/{}/{id}", task.sync);
        (task.manifest_key, task.manifest_bytes) = (Some(key.clone()), manifest.len() as u64);
        let digest = task_digest(task.sync, id, &task.spec, &manifest);
        self.outbox.put_blob(key, manifest);
        self.add_numbered_task(id, digest, task)
    }

    fn add_numbered_task(&mut self, id: TaskId, digest: Digest, task: Task) -> TaskId {
        let waiting_since_ms = self.last_tick_ms.unwrap_or(0);
        let task = Task { id, digest, waiting_since_ms, ..task };
        self.outbox.write_record(task.record_key());
        self.insert_task(task);
        self.outbox.request_dispatch();
        id
    }

    /// The state of a task that waits until no worker can write any more that held a lease.
    pub(super) fn delayed_by_lease(&self, now: Now) -> TaskState {
        TaskState::Delayed { until_ms: now.mono_ms.saturating_add(self.settings.lease_ms) }
    }

    /// Removes a task, its lease and its own manifest. The manifest of a large file is kept.
    pub(super) fn remove_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(id)?;
        self.isolation.remove(id);
        if let Some(unit) = task.unit {
            self.relays.remove_task(unit, task.sync);
        }
        self.outbox.write_record(task.record_key());
        // The manifest of a large file is removed with the file, a name list with the sync.
        let shared = task.large_file.is_some() || matches!(task.spec, TaskSpec::List { .. });
        if let (Some(blob), false) = (&task.manifest_key, shared) {
            self.release_manifest(task.sync, blob.clone());
        }
        self.outbox.mark_dirty(task.sync);
        // A scan may wait for the space in the window.
        self.outbox.request_dispatch();
        Some(task)
    }

    pub(super) fn mark_changed(&mut self, no: SyncNo, now: Now) {
        if let Some(sync) = self.syncs.get_mut(no) {
            // Clean-up does not change the time of an ended sync.
            sync.updated_ms = sync.ended_ms.unwrap_or(now.wall_ms);
            self.outbox.write_record(sync.record_key());
            self.outbox.extend(sync.take_unsaved_keys().into_iter().map(Effect::WriteRecord));
            self.outbox.mark_dirty(no);
        }
    }

    /// How full the window of a sync is: a scan is suspended at 1 and continues below 0.5.
    pub(super) fn window_fill(&self, sync: &SyncJob) -> f64 {
        let tasks = self.tasks.sync_tasks(sync.no);
        tasks.window_fill(sync.large_files.len(), self.settings.window_bytes)
    }

    /// Recomputes the windows of syncs with tasks if the set of workers or the settings changed.
    pub(super) fn update_windows(&mut self) {
        let version = Some(self.workers.version());
        if std::mem::replace(&mut self.windows_version, version) == version {
            return;
        }
        for no in self.tasks.syncs().collect::<Vec<_>>() {
            self.update_window(no);
        }
    }

    /// Maximum number of outstanding tasks of a sync: enough for each slot to have the next ones
    /// ready. More would only use memory.
    pub(super) fn update_window(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get(no) else { return };
        let most = self.settings.window_tasks;
        let mut window = 0;
        for worker in self.workers.accepting(sync.source()) {
            window += 4 * worker.last_heartbeat.slots.unwrap_or(1) as usize;
            if window >= most {
                break;
            }
        }
        self.tasks.set_window(no, window.clamp(64.min(most), most));
    }
}
