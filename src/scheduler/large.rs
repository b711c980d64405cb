//! Large files: compared or sent range by range, published as a whole. Of a file with several names
//! one is sent; the others become links to it.

use super::failures::TaskFailure;
use super::phase::PhaseState;
use super::sync_job::SyncJob;
use super::task::{LargeFile, LargeFileState, Task};
use super::{Effect, NewTask, Now, State, records};
use crate::util::units;
use crate::wire::manifest::Manifest;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{Base64Bytes, TaskReport, TaskSpec, WorkItem};
use crate::wire::{BytePath, Digest, SyncNo, TaskId, WorkerId};

/// Maximum number of range tasks of one file.
const MAX_RANGE_TASKS: usize = 32;
/// Maximum number of restarts of a file whose source changes during the copy.
const MAX_RESTARTS: u32 = 5;

impl SyncJob {
    /// Subtracts the bytes of ranges that must be sent again.
    pub(super) fn rollback_sent(&mut self, large: &LargeFile) {
        if self.counts_entries() {
            let counters = &mut self.counters;
            counters.bytes_done = counters.bytes_done.saturating_sub(large.sent_bytes);
            counters.kept_bytes = counters.kept_bytes.saturating_sub(large.kept_bytes);
        }
    }
}

/// The name of the entry in a work item. Manifests are decoded only for this: an error without a
/// name is of no use.
fn item_name(item: &WorkItem) -> BytePath {
    let (WorkItem::Copy { manifest, .. } | WorkItem::Large { manifest, .. }) = item;
    first_entry_name(&manifest.0)
}

fn first_entry_name(manifest: &[u8]) -> BytePath {
    let first = Manifest::decode(manifest).ok().and_then(|m| m.entries.into_iter().next());
    first.map_or_else(BytePath::default, |entry| BytePath(entry.path.as_bytes().to_vec()))
}

impl State {
    pub(super) fn large_file_name(&self, task: &Task) -> Option<BytePath> {
        Some(self.large_file(task.sync, task.large_file?)?.path.clone())
    }

    pub(super) fn large_file(&self, no: SyncNo, file: TaskId) -> Option<&LargeFile> {
        self.syncs.get(&no)?.large_files.get(&file)
    }

    /// Adds a large file and its first ranges. The caller counts its total.
    pub(super) fn add_large_file(
        &mut self,
        no: SyncNo,
        manifest: Vec<u8>,
        (size, length): (u64, u64),
        restarts: u32,
        group: Option<Digest>,
    ) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let known = group.is_some_and(|group| sync.hardlink_groups.contains(&group));
        let begun =
            group.is_some() && sync.large_files.values().any(|large| large.hardlink_group == group);
        if known || sync.is_dry_run() {
            // Another name of it is present and can be linked to, or nothing is sent.
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: size };
            self.add_task(NewTask::ready(no, spec), Some(manifest));
            return;
        }
        // Lengths come from agents: keep the arithmetic safe and the number of ranges bounded.
        let least = crate::wire::task::range_length(size, 1 << 20);
        let range_length = length.clamp(1024, 1 << 62).next_power_of_two().max(least);
        let id = self.allocate_task_id();
        let large = LargeFile {
            id,
            sync: no,
            path: first_entry_name(&manifest),
            size,
            range_length,
            manifest_key: format!("m/{no}/{id}"),
            manifest_bytes: manifest.len() as u64,
            manifest_digest: blake3::hash(&manifest).into(),
            next_range: 0,
            restarts,
            state: LargeFileState::Waiting,
            hardlink_group: group,
            sent_bytes: 0,
            kept_bytes: 0,
            has_unhashed_range: false,
            range_digests: Vec::new(),
            ranges_done: 0,
        };
        self.effects.push(Effect::PutBlob(large.manifest_key.clone(), manifest));
        self.put_record(large.record_key());
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.manifest_bytes += large.manifest_bytes;
            sync.large_files.insert(id, large);
        }
        if !begun {
            self.start_large_file(no, id);
        }
    }

    fn start_large_file(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let compares = sync.compares_large_files();
        let Some(large) = sync.large_files.get_mut(&id) else { return };
        // An empty file has no range to compare.
        let compared = compares && large.size > 0;
        large.state = if compared { LargeFileState::Comparing } else { LargeFileState::Sending };
        let key = large.record_key();
        self.put_record(key);
        self.add_range_tasks(no, id);
    }

    /// Keeps some range tasks ready; after the last range, adds the commit.
    fn add_range_tasks(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let out = sync.tasks.iter().filter_map(|t| self.tasks.get(t));
        let mut out = out.filter(|t| t.large_file == Some(id)).count();
        let Some(large) = sync.large_files.get(&id) else { return };
        let mut large = large.clone();
        let compare = large.state == LargeFileState::Comparing;
        let before = large.next_range;
        let asks = compare && large.ranges_done == 0 && sync.probes_first_range();
        let ahead = if asks { 1 } else { MAX_RANGE_TASKS };
        while out < ahead && large.next_range < large.range_count() {
            let (offset, length) = large.range(large.next_range);
            let spec = TaskSpec::Range { offset, length, compare };
            self.add_task(NewTask::for_large_file(&large, spec), None);
            large.next_range += 1;
            out += 1;
        }
        if out == 0 && large.ranges_done == large.range_count() {
            let mut chain = Vec::new();
            if !large.has_unhashed_range {
                chain = large.range_digests.iter().flatten().flat_map(|d| d.0).collect();
            }
            let range_length = large.range_length;
            let spec =
                TaskSpec::Commit { range_length, chain: Base64Bytes(chain), in_place: compare };
            self.add_task(NewTask::for_large_file(&large, spec), None);
        }
        if large.next_range != before {
            self.put_record(large.record_key());
            if let Some(sync) = self.syncs.get_mut(&no) {
                sync.large_files.insert(id, large);
            }
        }
    }

    pub(super) fn complete_range(
        &mut self,
        task: &Task,
        (offset, length): (u64, u64),
        worker: WorkerId,
        mut report: TaskReport,
        now: Now,
    ) {
        let Some(file) = task.large_file else { return };
        if self.is_already_present(task) {
            return self.confirm_present_file(task, file, &report, now);
        }
        if !report.unchanged {
            // Records of directories that were created for the file.
            self.record_files(task.sync, std::mem::take(&mut report.records));
        }
        if let Some(error) = report.failures.first() {
            let failure =
                TaskFailure { worker, reason: error.to_string(), errors: report.failures };
            return self.retry_or_fail_task(task.id, failure, now);
        }
        if report.unchanged {
            return self.complete_present_file(task, file, report, now);
        }
        if let Some(item) = report.replacement {
            return self.restart_changed_file(task, file, item, worker, now);
        }
        let comparing =
            self.large_file(task.sync, file).map(|l| l.state) == Some(LargeFileState::Comparing);
        if comparing && (report.differs || report.digest.is_none()) {
            return self.send_differing_file(task, file);
        }
        self.remove_task(task.id);
        if !comparing {
            self.resume_after_write(task.sync, now);
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        let counts = sync.counts_entries() && !comparing;
        let Some(large) = sync.large_files.get_mut(&file) else { return };
        let index = offset / large.range_length;
        large.range_digests.resize(large.range_count() as usize, None);
        large.has_unhashed_range |= report.digest.is_none();
        large.range_digests[index as usize] = Some(report.digest.unwrap_or(Digest([0; 32])));
        large.ranges_done += 1;
        if !comparing {
            let kept = report.bytes_kept.min(length);
            large.sent_bytes = large.sent_bytes.saturating_add(length);
            large.kept_bytes = large.kept_bytes.saturating_add(kept);
            if counts {
                let counters = &mut sync.counters;
                counters.bytes_done = counters.bytes_done.saturating_add(length);
                counters.kept_bytes = counters.kept_bytes.saturating_add(kept);
            }
        }
        let keys = [large.record_key(), large.range_record_key(index)];
        keys.into_iter().for_each(|key| self.put_record(key));
        self.add_range_tasks(task.sync, file);
    }

    /// The destination has the large file, either before this task or because this task sent all of
    /// it: it is counted. Ranges that other tasks sent are discarded.
    fn complete_present_file(&mut self, task: &Task, file: TaskId, report: TaskReport, now: Now) {
        let no = task.sync;
        let Some(mut large) = self.large_file(no, file).cloned() else { return };
        let (size, group) = (large.size, large.hardlink_group.take());
        let brought = report.files_done > 0;
        if brought {
            self.resume_after_write(no, now);
        }
        let ranges = self.large_file_tasks(no, file);
        let mut ranges = ranges.iter().filter_map(|id| self.tasks.get(id));
        // A file that was restarted for a lost part file may have left a part of that.
        let again = large.sent_bytes > 0 || large.restarts > 0;
        let tried = |range: &Task| range.attempt > u32::from(range.lease().is_some());
        if again || ranges.clone().any(tried) {
            self.discard_large_file(no, file, Some(task.id), now);
        } else if large.state == LargeFileState::Sending
            && ranges.any(|range| range.id != task.id && range.lease().is_some())
        {
            large.state = LargeFileState::AlreadyPresent;
            self.remove_unleased_ranges(&large, task.id);
            self.put_record(large.record_key());
            if let Some(sync) = self.syncs.get_mut(&no) {
                sync.large_files.insert(file, large);
            }
        } else {
            self.remove_large_file(no, file);
        }
        if let Some(sync) = self.syncs.get_mut(&no).filter(|sync| brought && sync.counts_entries())
        {
            sync.counters.bytes_done = sync.counters.bytes_done.saturating_add(size);
        }
        self.count_large_file(no, size, brought, report);
        self.complete_hardlink_group(no, group);
    }

    /// Removes the tasks of a file without a lease, and the finished one.
    fn remove_unleased_ranges(&mut self, large: &LargeFile, done: TaskId) {
        for id in self.large_file_tasks(large.sync, large.id) {
            if id == done || self.tasks.get(&id).is_some_and(|range| range.lease().is_none()) {
                self.remove_task(id);
            }
        }
    }

    /// A range of a file that another range found present has ended.
    fn confirm_present_file(&mut self, task: &Task, file: TaskId, report: &TaskReport, now: Now) {
        if !report.unchanged || task.attempt > 1 {
            return self.discard_large_file(task.sync, file, Some(task.id), now);
        }
        self.remove_task(task.id);
        if self.large_file_tasks(task.sync, file).is_empty() {
            self.remove_large_file(task.sync, file);
        }
    }

    /// Whether a task belongs to a large file that was found present and counted.
    pub(super) fn is_already_present(&self, task: &Task) -> bool {
        let large = task.large_file.and_then(|file| self.large_file(task.sync, file));
        large.is_some_and(|large| large.state == LargeFileState::AlreadyPresent)
    }

    pub(super) fn large_file_tasks(&self, no: SyncNo, file: TaskId) -> Vec<TaskId> {
        let Some(sync) = self.syncs.get(&no) else { return Vec::new() };
        let of_file = |id: &TaskId| self.tasks.get(id).is_some_and(|t| t.large_file == Some(file));
        sync.tasks.iter().copied().filter(of_file).collect()
    }

    /// Counts a large file that is complete, either sent or already present.
    fn count_large_file(&mut self, no: SyncNo, size: u64, brought: bool, report: TaskReport) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if sync.phase == PhaseState::CopyBlocked {
            let replaced = if brought { sync.take_deferred(1) } else { 0 };
            sync.counters.files_done += replaced;
            if replaced > 0 {
                sync.counters.add_actions(&report.actions);
            }
            return self.record_files(no, report.records);
        }
        let counters = &mut sync.counters;
        match (sync.phase == PhaseState::Readback, brought) {
            (true, true) => counters.repaired_files += 1,
            (true, false) => counters.verified_files += 1,
            (false, true) => counters.files_done += 1,
            (false, false) => {
                counters.files_skipped += 1;
                counters.bytes_skipped = counters.bytes_skipped.saturating_add(size);
            }
        }
        if sync.counts_entries() {
            sync.counters.add_actions(&report.actions);
            sync.add_metadata_warnings(report.warnings);
        }
        self.record_files(no, report.records);
    }

    /// The source of a large file changed: sent ranges are void, and the file restarts with its
    /// present content.
    fn restart_changed_file(
        &mut self,
        task: &Task,
        file: TaskId,
        item: WorkItem,
        worker: WorkerId,
        now: Now,
    ) {
        let Some(large) = self.large_file(task.sync, file) else { return };
        let (restarts, old_size, group) = (large.restarts, large.size, large.hardlink_group);
        if restarts >= MAX_RESTARTS {
            let message = format!("the source changed under the copy {} times", restarts + 1);
            let error = FileError {
                path: item_name(&item),
                operation: "read source".to_owned(),
                errno: None,
                message: message.clone(),
                hint: None,
                worker_id: Some(worker),
                attempt: restarts + 1,
                class: ErrorClass::Changed,
            };
            return self.fail_task(task.id, &message, Some(error), now);
        }
        self.discard_large_file(task.sync, file, Some(task.id), now);
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            // It is still one file; only its size changed.
            let counts = sync.counts_entries();
            if counts {
                sync.counters.bytes_total = sync.counters.bytes_total.saturating_sub(old_size);
            }
            match item {
                WorkItem::Large { manifest, size, range_length, hardlink_group: group } => {
                    if counts {
                        sync.counters.add_bytes_total(size);
                    }
                    let sizes = (size, range_length);
                    self.add_large_file(task.sync, manifest.0, sizes, restarts + 1, group);
                }
                copy @ WorkItem::Copy { .. } => {
                    // It is small now. `add_work_item` counts it again.
                    if counts {
                        sync.counters.files_total = sync.counters.files_total.saturating_sub(1);
                    }
                    self.add_work_item(task.sync, copy, None);
                }
            }
        }
        self.start_next_of_group(task.sync, group);
    }

    pub(super) fn complete_commit(
        &mut self,
        task: &Task,
        worker: WorkerId,
        report: TaskReport,
        now: Now,
    ) {
        let Some(file) = task.large_file else { return };
        let in_place = matches!(task.spec, TaskSpec::Commit { in_place: true, .. });
        if in_place && (report.differs || report.part_lost) {
            return self.send_differing_file(task, file);
        }
        if report.part_lost {
            return self.resend_large_file(task, file, report.failures.into_iter().next(), now);
        }
        if let Some(error) = report.failures.first() {
            let failure =
                TaskFailure { worker, reason: error.to_string(), errors: report.failures };
            return self.retry_or_fail_task(task.id, failure, now);
        }
        if let Some(large) = self.remove_large_file(task.sync, file) {
            self.count_large_file(task.sync, large.size, !in_place, report);
            self.complete_hardlink_group(task.sync, large.hardlink_group);
        }
    }

    /// A compared file differs and is sent.
    fn send_differing_file(&mut self, task: &Task, file: TaskId) {
        let Some(mut large) = self.large_file(task.sync, file).cloned() else { return };
        large.state = LargeFileState::Sending;
        self.restart_ranges(large);
    }

    /// The part file was lost: all ranges are sent again.
    fn resend_large_file(&mut self, task: &Task, file: TaskId, error: Option<FileError>, now: Now) {
        let Some(mut large) = self.large_file(task.sync, file).cloned() else { return };
        if large.restarts >= MAX_RESTARTS {
            let why = format!(
                "its part file was removed {}",
                units::pluralize(u64::from(large.restarts) + 1, "time", "times")
            );
            return self.fail_task(task.id, &why, error, now);
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.rollback_sent(&large);
        }
        (large.sent_bytes, large.kept_bytes) = (0, 0);
        large.restarts += 1;
        self.restart_ranges(large);
    }

    /// Restarts with the first range of a file.
    fn restart_ranges(&mut self, mut large: LargeFile) {
        let (no, file) = (large.sync, large.id);
        self.remove_ranges(no, &large);
        (large.next_range, large.ranges_done, large.has_unhashed_range) = (0, 0, false);
        large.range_digests.clear();
        self.put_record(large.record_key());
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.large_files.insert(file, large);
        }
        self.add_range_tasks(no, file);
    }

    /// Removes the tasks of a large file and the records of its ranges.
    fn remove_ranges(&mut self, no: SyncNo, large: &LargeFile) {
        for id in self.large_file_tasks(no, large.id) {
            self.remove_task(id);
        }
        for (index, done) in large.range_digests.iter().enumerate() {
            if done.is_some() {
                self.effects.push(Effect::DeleteRecord(large.range_record_key(index as u64)));
            }
        }
    }

    /// Removes a large file with its tasks, manifest and range records.
    pub(super) fn remove_large_file(&mut self, no: SyncNo, file: TaskId) -> Option<LargeFile> {
        let large = self.detach_large_file(no, file)?;
        self.effects.push(Effect::DeleteBlob(large.manifest_key.clone()));
        Some(large)
    }

    /// Like [`State::remove_large_file`], but keeps the manifest for another task.
    pub(super) fn detach_large_file(&mut self, no: SyncNo, file: TaskId) -> Option<LargeFile> {
        let sync = self.syncs.get_mut(&no)?;
        let large = sync.large_files.remove(&file)?;
        sync.manifest_bytes = sync.manifest_bytes.saturating_sub(large.manifest_bytes);
        self.effects.push(Effect::DeleteRecord(large.record_key()));
        self.remove_ranges(no, &large);
        self.dirty_syncs.insert(no);
        Some(large)
    }

    /// One name of a file is present: its other names, also those found later, become links to it.
    fn complete_hardlink_group(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(group)) = (self.syncs.get_mut(&no), group) else { return };
        sync.hardlink_groups.insert(group);
        let others = sync.large_files.values().filter(|large| large.hardlink_group == Some(group));
        let others: Vec<TaskId> = others.map(|large| large.id).collect();
        self.put_record(records::group_key(no, &group));
        for id in others {
            let Some(large) = self.detach_large_file(no, id) else { continue };
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: large.size };
            let new = NewTask {
                manifest_key: Some(large.manifest_key),
                manifest_bytes: large.manifest_bytes,
                manifest_digest: Some(large.manifest_digest),
                ..NewTask::ready(no, spec)
            };
            self.add_task(new, None);
        }
    }

    /// The name that the others of a group wait for cannot be copied: the next one starts.
    pub(super) fn start_next_of_group(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(_)) = (self.syncs.get(&no), group) else { return };
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
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        for group in std::mem::take(&mut sync.hardlink_groups) {
            self.effects.push(Effect::DeleteRecord(records::group_key(no, &group)));
        }
    }
}
