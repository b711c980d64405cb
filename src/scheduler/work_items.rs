//! New work: scans, batches and large files, range by range. Of a file with several names one is sent; the others become
//! links to it.

use super::large_file::{LargeFile, LargeFileState};
use super::relay_table::SharedFileNo;
use super::shared_manifests::shared_manifest_key;
use super::task::{RetryHistory, Task};
use super::{State, record_keys};
use crate::wire::manifest::Manifest;
use crate::wire::task::{Base64Bytes, TaskSpec, WorkItem};
use crate::wire::{BytePath, Digest, RelPath, SyncNo, TaskId};

/// Maximum number of range tasks of one file.
const MAX_RANGE_TASKS: usize = 32;

/// The name of the entry in a work item. Manifests are decoded only for this: an error without a
/// name is of no use.
pub(super) fn item_name(item: &WorkItem) -> BytePath {
    let (WorkItem::Copy { manifest, .. } | WorkItem::Large { manifest, .. }) = item;
    first_entry_name(&manifest.0)
}

fn first_entry_name(manifest: &[u8]) -> BytePath {
    let first = Manifest::decode(manifest).ok().and_then(|m| m.entries.into_iter().next());
    first.map_or_else(BytePath::default, |entry| BytePath(entry.path.as_bytes().to_vec()))
}

/// A stored manifest.
#[derive(Debug, Clone)]
pub(super) struct StoredManifest {
    pub(super) key: String,
    /// In bytes.
    pub(super) length: u64,
    pub(super) digest: Digest,
    /// The name of its first entry.
    pub(super) first_name: BytePath,
}

impl StoredManifest {
    fn new(key: String, manifest: &[u8]) -> Self {
        let (length, digest) = (manifest.len() as u64, blake3::hash(manifest).into());
        StoredManifest { key, length, digest, first_name: first_entry_name(manifest) }
    }
}

/// A large file that a scan found.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundLargeFile {
    pub(super) size: u64,
    /// The requested length of its ranges.
    pub(super) range_length: u64,
    pub(super) hardlink_group: Option<Digest>,
    /// Number of restarts after changes of the source.
    pub(super) restarts: u32,
}

impl State {
    /// Stores a manifest that destinations of a group share.
    pub(super) fn store_shared_manifest(
        &mut self,
        group: SyncNo,
        manifest: Vec<u8>,
    ) -> StoredManifest {
        let key = shared_manifest_key(group, self.allocate_task_id().0);
        let stored = StoredManifest::new(key.clone(), &manifest);
        self.outbox.put_blob(key, manifest);
        stored
    }

    /// Adds a task with a manifest that other destinations share.
    pub(super) fn add_task_sharing(&mut self, task: Task, manifest: &StoredManifest) -> TaskId {
        self.shared_manifests.add_owner(&manifest.key, task.sync);
        let (manifest_key, manifest_bytes) = (Some(manifest.key.clone()), manifest.length);
        self.add_task_of(Task { manifest_key, manifest_bytes, ..task }, &manifest.digest.0)
    }

    pub(super) fn large_file(&self, no: SyncNo, file: TaskId) -> Option<&LargeFile> {
        self.syncs.get(no)?.large_files.get(&file)
    }

    /// Stores a changed large file.
    pub(super) fn store_large_file(&mut self, large: LargeFile) {
        self.outbox.write_record(large.record_key());
        if let Some(sync) = self.syncs.get_mut(large.sync) {
            sync.large_files.insert(large.id, large);
        }
    }

    /// Adds a large file and its first ranges. The caller counts its total.
    pub(super) fn add_large_file(&mut self, no: SyncNo, manifest: Vec<u8>, found: FoundLargeFile) {
        if self.is_copied_whole(no, found.hardlink_group) {
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: found.size };
            self.add_task_with(Task::new(no, spec), manifest);
            return;
        }
        let id = self.allocate_task_id();
        let stored = StoredManifest::new(format!("m/{no}/{id}"), &manifest);
        self.outbox.put_blob(stored.key.clone(), manifest);
        self.insert_large_file(no, id, stored, found, None);
    }

    /// Adds a large file that other destinations get as well.
    pub(super) fn add_large_file_sharing(
        &mut self,
        no: SyncNo,
        manifest: &StoredManifest,
        found: FoundLargeFile,
        shared: SharedFileNo,
    ) {
        if self.is_copied_whole(no, found.hardlink_group) {
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: found.size };
            self.add_task_sharing(Task::new(no, spec), manifest);
            return;
        }
        let id = self.allocate_task_id();
        self.shared_manifests.add_owner(&manifest.key, no);
        self.relays.join_file(shared, no, id);
        self.insert_large_file(no, id, manifest.clone(), found, Some(shared));
    }

    /// Whether a large file is a batch of one entry: another name of it is present and can be linked to, or nothing is
    /// sent.
    fn is_copied_whole(&self, no: SyncNo, group: Option<Digest>) -> bool {
        self.syncs.get(no).is_some_and(|sync| {
            sync.is_dry_run() || group.is_some_and(|group| sync.hardlink_groups.contains(&group))
        })
    }

    fn insert_large_file(
        &mut self,
        no: SyncNo,
        id: TaskId,
        manifest: StoredManifest,
        found: FoundLargeFile,
        shared: Option<SharedFileNo>,
    ) {
        let Some(sync) = self.syncs.get(no) else { return };
        let FoundLargeFile { size, range_length, hardlink_group: group, restarts } = found;
        let begun =
            group.is_some() && sync.large_files.values().any(|large| large.hardlink_group == group);
        // Lengths come from agents: keep the arithmetic safe and the number of ranges bounded.
        let least = crate::wire::task::range_length(size, 1 << 20);
        let range_length = range_length.clamp(1024, 1 << 62).next_power_of_two().max(least);
        let large = LargeFile {
            id,
            sync: no,
            path: manifest.first_name,
            size,
            range_length,
            manifest_key: manifest.key,
            manifest_bytes: manifest.length,
            manifest_digest: manifest.digest,
            next_range: 0,
            restarts,
            state: LargeFileState::Waiting,
            hardlink_group: group,
            sent_bytes: 0,
            kept_bytes: 0,
            has_unhashed_range: false,
            range_digests: Vec::new(),
            ranges_done: 0,
            shared,
        };
        self.tasks.add_manifest_bytes(no, large.manifest_bytes);
        self.store_large_file(large);
        if !begun {
            self.start_large_file(no, id);
        }
    }

    /// Adds a range task to the unit of its range.
    fn join_range_unit(&mut self, id: TaskId, shared: SharedFileNo, index: u64) {
        let Some((files, complete)) = self.relays.members_of_file(shared) else { return };
        let has_range = |(no, file): (&SyncNo, &TaskId)| {
            let large = self.large_file(*no, *file)?;
            let is_kept = large.state == LargeFileState::Sending;
            large.range_digests.get(index as usize)?.filter(|_| is_kept).map(|_| *no)
        };
        let holders = files.iter().filter_map(has_range).chain(complete.iter().copied()).collect();
        if let Some(unit) = self.relays.range_unit(shared, index, holders) {
            self.join_unit(id, unit);
        }
    }

    fn start_large_file(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let compares = sync.compares_large_files();
        let Some(large) = sync.large_files.get_mut(&id) else { return };
        // An empty file has no range to compare.
        let compared = compares && large.size > 0;
        large.state = if compared { LargeFileState::Comparing } else { LargeFileState::Sending };
        let key = large.record_key();
        self.outbox.write_record(key);
        self.add_range_tasks(no, id);
    }

    /// Keeps some range tasks ready; after the last range, adds the commit.
    pub(super) fn add_range_tasks(&mut self, no: SyncNo, id: TaskId) {
        let out = self.tasks.of_file(no, id).count();
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let probes = sync.probes_first_range();
        let Some(large) = sync.large_files.get_mut(&id) else { return };
        let compare = large.state == LargeFileState::Comparing;
        let ahead = if compare && probes && large.ranges_done == 0 { 1 } else { MAX_RANGE_TASKS };
        let mut specs = Vec::new();
        while out + specs.len() < ahead && large.next_range < large.range_count() {
            let (offset, length) = large.range(large.next_range);
            specs.push(TaskSpec::Range { offset, length, compare });
            large.next_range += 1;
        }
        let is_changed = !specs.is_empty();
        if out == 0 && !is_changed && large.ranges_done == large.range_count() {
            let mut chain = Vec::new();
            if !large.has_unhashed_range {
                chain = large.range_digests.iter().flatten().flat_map(|d| d.0).collect();
            }
            let (range_length, chain) = (large.range_length, Base64Bytes(chain));
            specs.push(TaskSpec::Commit { range_length, chain, in_place: compare });
        }
        let (record, manifest) = (large.record_key(), large.manifest_digest);
        let (shared, range_length) = (large.shared, large.range_length);
        let manifest_key = Some(large.manifest_key.clone());
        for spec in specs {
            let (manifest_key, large_file) = (manifest_key.clone(), Some(id));
            let task = Task { manifest_key, large_file, ..Task::new(no, spec) };
            let range = match (shared, &task.spec) {
                (Some(shared), TaskSpec::Range { offset, compare: false, .. }) => {
                    Some((shared, offset / range_length))
                }
                _ => None,
            };
            let added = self.add_task_of(task, &manifest.0);
            if let Some((shared, index)) = range {
                self.join_range_unit(added, shared, index);
            }
        }
        if is_changed {
            self.outbox.write_record(record);
        }
    }

    /// Whether a task belongs to a large file that was found present and counted.
    pub(super) fn is_already_present(&self, task: &Task) -> bool {
        let large = task.large_file.and_then(|file| self.large_file(task.sync, file));
        large.is_some_and(|large| large.state == LargeFileState::AlreadyPresent)
    }

    pub(super) fn large_file_tasks(&self, no: SyncNo, file: TaskId) -> Vec<TaskId> {
        self.tasks.of_file(no, file).map(|task| task.id).collect()
    }

    /// Restarts with the first range of a file.
    pub(super) fn restart_ranges(&mut self, mut large: LargeFile) {
        let (no, file) = (large.sync, large.id);
        self.remove_ranges(no, &large);
        // Its part file holds nothing that could be sent on, and what it lacks now the others got long ago.
        if let Some(shared) = large.shared.take() {
            self.relays.leave_file(shared, no, false);
        }
        (large.next_range, large.ranges_done, large.has_unhashed_range) = (0, 0, false);
        large.range_digests.clear();
        self.store_large_file(large);
        self.add_range_tasks(no, file);
    }

    /// Removes the tasks of a large file and the records of its ranges.
    fn remove_ranges(&mut self, no: SyncNo, large: &LargeFile) {
        for id in self.large_file_tasks(no, large.id) {
            self.remove_task(id);
        }
        for (index, done) in large.range_digests.iter().enumerate() {
            if done.is_some() {
                self.outbox.write_record(large.range_record_key(index as u64));
            }
        }
    }

    /// Removes a large file with its tasks, manifest and range records.
    pub(super) fn remove_large_file(&mut self, no: SyncNo, file: TaskId) -> Option<LargeFile> {
        let large = self.detach_large_file(no, file)?;
        self.release_manifest(no, large.manifest_key.clone());
        Some(large)
    }

    /// Like [`State::remove_large_file`], but keeps the manifest for another task.
    pub(super) fn detach_large_file(&mut self, no: SyncNo, file: TaskId) -> Option<LargeFile> {
        let sync = self.syncs.get_mut(no)?;
        let large = sync.large_files.remove(&file)?;
        if let Some(shared) = large.shared {
            self.relays.leave_file(shared, no, false);
        }
        self.tasks.remove_manifest_bytes(no, large.manifest_bytes);
        self.outbox.write_record(large.record_key());
        self.remove_ranges(no, &large);
        self.outbox.mark_dirty(no);
        Some(large)
    }

    /// One name of a file is present: its other names, also those found later, become links to it.
    pub(super) fn complete_hardlink_group(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(group)) = (self.syncs.get_mut(no), group) else { return };
        sync.hardlink_groups.insert(group);
        let others = sync.large_files.values().filter(|large| large.hardlink_group == Some(group));
        let others: Vec<TaskId> = others.map(|large| large.id).collect();
        self.outbox.write_record(record_keys::group_key(no, &group));
        for id in others {
            let Some(large) = self.detach_large_file(no, id) else { continue };
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: large.size };
            let (manifest_key, manifest_bytes) = (Some(large.manifest_key), large.manifest_bytes);
            let task = Task { manifest_key, manifest_bytes, ..Task::new(no, spec) };
            self.add_task_of(task, &large.manifest_digest.0);
        }
    }

    /// The name that the others of a group wait for cannot be copied: the next one starts.
    pub(super) fn start_next_of_group(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(_)) = (self.syncs.get(no), group) else { return };
        let of_group = || sync.large_files.values().filter(|large| large.hardlink_group == group);
        if of_group().any(|large| large.state != LargeFileState::Waiting) {
            return;
        }
        if let Some(id) = of_group().map(|large| large.id).next() {
            self.start_large_file(no, id);
        }
    }

    /// Removes the records of hard-link groups; they are not needed any more.
    pub(super) fn clear_hardlink_groups(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        for group in std::mem::take(&mut sync.hardlink_groups) {
            self.outbox.write_record(record_keys::group_key(no, &group));
        }
    }

    /// The first tasks of a sync: a scan of the source, or the parts of its name list.
    pub(super) fn add_scans(&mut self, no: SyncNo) {
        let list = self.syncs.get(no).and_then(|s| Some((s.name_list_owner(), s.name_list_parts?)));
        match list {
            None => {
                let spec = TaskSpec::Scan { dir: RelPath::root(), cursor: None };
                self.add_task(Task::new(no, spec));
            }
            Some((owner, parts)) => {
                for index in 0..parts {
                    let manifest_key = Some(record_keys::name_list_key(owner, index));
                    let list = Task::new(no, TaskSpec::List { start: 0 });
                    self.add_task(Task { manifest_key, ..list });
                }
            }
        }
    }

    /// Counts entries that a scan found for a sync.
    pub(super) fn count_found(&mut self, no: SyncNo, files: u64, dirs: u64, bytes: u64) {
        if let Some(sync) = self.syncs.get_mut(no).filter(|sync| sync.counts_entries()) {
            sync.counters.files_total += files;
            sync.counters.dirs_total += dirs;
            sync.counters.add_bytes_total(bytes);
        }
    }

    /// Adds the work that a walk found, or that is tried again after the attempts of `again`.
    pub(super) fn add_work_item(
        &mut self,
        no: SyncNo,
        item: WorkItem,
        again: Option<RetryHistory>,
    ) -> Option<TaskId> {
        self.syncs.get(no)?;
        let is_first = again.is_none();
        match item {
            WorkItem::Copy { manifest, files, dirs, bytes } => {
                if is_first {
                    self.count_found(no, files, dirs, bytes);
                }
                let spec = TaskSpec::Copy { files, dirs, bytes };
                let history = again.unwrap_or_default();
                Some(self.add_task_with(Task { history, ..Task::new(no, spec) }, manifest.0))
            }
            WorkItem::Large { manifest, size, range_length, hardlink_group } => {
                if is_first {
                    self.count_found(no, 1, 0, size);
                }
                let found = FoundLargeFile { size, range_length, hardlink_group, restarts: 0 };
                self.add_large_file(no, manifest.0, found);
                None
            }
        }
    }
}
