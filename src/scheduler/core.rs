//! The operations that every other file builds on: tasks and records change, and the indexes of them with them.

use super::event::{Effect, Now};
use super::large_file::LargeFile;
use super::task::{Task, TaskState, WorkerLoss};
use super::{State, record_keys, task};
use crate::wire::task::TaskSpec;
use crate::wire::{BytePath, Digest, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;

/// The fields of a new task that differ from the defaults.
pub(super) struct NewTask {
    pub(super) sync: SyncNo,
    pub(super) spec: TaskSpec,
    /// A manifest that is already stored …
    pub(super) manifest_key: Option<String>,
    /// … its size, if it counts for this task, and its digest.
    pub(super) manifest_bytes: u64,
    pub(super) manifest_digest: Option<Digest>,
    pub(super) large_file: Option<TaskId>,
    pub(super) pinned_to: Option<WorkerId>,
    pub(super) failures: u32,
    pub(super) resource_retries: u32,
    pub(super) failed_on: BTreeSet<WorkerId>,
    pub(super) losses: Vec<WorkerLoss>,
    pub(super) entry: Option<BytePath>,
    pub(super) last_error: Option<String>,
    pub(super) state: TaskState,
}

impl NewTask {
    pub(super) fn ready(sync: SyncNo, spec: TaskSpec) -> Self {
        NewTask {
            sync,
            spec,
            manifest_key: None,
            manifest_bytes: 0,
            manifest_digest: None,
            large_file: None,
            pinned_to: None,
            failures: 0,
            resource_retries: 0,
            failed_on: BTreeSet::new(),
            losses: Vec::new(),
            entry: None,
            last_error: None,
            state: TaskState::Ready,
        }
    }

    pub(super) fn for_large_file(large: &LargeFile, spec: TaskSpec) -> Self {
        NewTask {
            manifest_key: Some(large.manifest_key.clone()),
            manifest_digest: Some(large.manifest_digest),
            large_file: Some(large.id),
            ..NewTask::ready(large.sync, spec)
        }
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

    /// Changes the state of a task and all indexes of it.
    pub(super) fn set_task_state(&mut self, id: TaskId, state: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        if let TaskState::Delayed { until_ms } = &state {
            self.delayed.insert((*until_ms, id));
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.queue.remove(task);
        task.state = state;
        let boot =
            task.pinned_to.as_ref().and_then(|bound| sync.unflushed_writers.get(bound)?.as_ref());
        sync.queue.insert(task, boot);
    }

    /// Indexes a new or loaded task.
    pub(super) fn insert_task(&mut self, mut task: Task) {
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.tasks.insert(task.id);
        sync.scan_count += usize::from(task.is_scan());
        // A damaged record may hold any length.
        sync.manifest_bytes = sync.manifest_bytes.saturating_add(task.manifest_bytes);
        let no = task.sync;
        if self.syncs_with_tasks.insert(no) {
            self.update_window(no);
        }
        let (id, until) = (task.id, TaskState::Delayed { until_ms: u64::MAX });
        let state = std::mem::replace(&mut task.state, until);
        self.tasks.insert(id, task);
        self.set_task_state(id, state);
        self.isolate_if_lost(id);
    }

    /// Random bytes that are never repeated.
    pub(super) fn draw_random(&mut self) -> [u8; 32] {
        self.draw_count += 1;
        *blake3::keyed_hash(&self.seed, &self.draw_count.to_le_bytes()).as_bytes()
    }

    pub(super) fn put_record(&mut self, key: String) {
        self.effects.push(Effect::PutRecord(key));
    }

    pub(super) fn allocate_task_id(&mut self) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        self.put_record(record_keys::META_KEY.to_owned());
        id
    }

    /// Adds a task and stores its manifest, if it has one of its own.
    pub(super) fn add_task(&mut self, new: NewTask, manifest: Option<Vec<u8>>) -> TaskId {
        let id = self.allocate_task_id();
        let digest = match (&manifest, &new.manifest_digest) {
            (Some(bytes), _) => task::task_digest(new.sync, id, &new.spec, bytes),
            (None, Some(of)) => task::task_digest(new.sync, id, &new.spec, &of.0),
            (None, None) => task::task_digest(new.sync, id, &new.spec, &[]),
        };
        let mut blob = new.manifest_key;
        let mut blob_bytes = new.manifest_bytes;
        if let Some(bytes) = manifest {
            let key = format!("m/{}/{id}", new.sync);
            blob_bytes = bytes.len() as u64;
            self.effects.push(Effect::PutBlob(key.clone(), bytes));
            blob = Some(key);
        }
        let task = Task {
            id,
            sync: new.sync,
            spec: new.spec,
            manifest_key: blob,
            manifest_bytes: blob_bytes,
            digest,
            attempt: 0,
            failures: new.failures,
            resource_retries: new.resource_retries,
            failed_on: new.failed_on,
            losses: new.losses,
            entry: new.entry,
            is_unsplittable: false,
            large_file: new.large_file,
            pinned_to: new.pinned_to,
            last_error: new.last_error,
            waiting_since_ms: self.last_tick_ms.unwrap_or(0),
            deprioritised_until_ms: 0,
            state: new.state,
        };
        self.put_record(task.record_key());
        self.insert_task(task);
        self.needs_dispatch = true;
        id
    }

    /// Removes a task, its lease and its own manifest. The manifest of a large file is kept.
    pub(super) fn remove_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.isolation.remove(id);
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        self.effects.push(Effect::DeleteRecord(task.record_key()));
        if let Some(lease) = task.lease() {
            self.lease_index.remove(lease);
        }
        // The manifest of a large file is removed with the file, a name list with the sync.
        let shared = task.large_file.is_some() || matches!(task.spec, TaskSpec::List { .. });
        if let (Some(blob), false) = (&task.manifest_key, shared) {
            self.effects.push(Effect::DeleteBlob(blob.clone()));
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.queue.remove(&task);
            sync.tasks.remove(&id);
            sync.scan_count -= usize::from(task.is_scan());
            sync.manifest_bytes = sync.manifest_bytes.saturating_sub(task.manifest_bytes);
            if sync.tasks.is_empty() {
                self.syncs_with_tasks.remove(&task.sync);
            }
        }
        self.dirty_syncs.insert(task.sync);
        // A scan may wait for the space in the window.
        self.needs_dispatch = true;
        Some(task)
    }

    pub(super) fn mark_changed(&mut self, no: SyncNo, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            // Clean-up does not change the time of an ended sync.
            sync.updated_ms = sync.ended_ms.unwrap_or(now.wall_ms);
            self.effects.push(Effect::PutRecord(sync.record_key()));
            self.effects.extend(sync.take_unsaved_keys().map(Effect::PutRecord));
            self.dirty_syncs.insert(no);
        }
    }
}
