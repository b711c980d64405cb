//! Large files: compared or sent range by range, published as a whole; one name of each, the others
//! become links to it.

use super::phases::Failure;
use super::stage::Stage;
use super::sync::Sync;
use super::task::{Course, Large, Task};
use super::{Effect, NewTask, Now, State, records};
use crate::util::units;
use crate::wire::manifest::Manifest;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{Base64Bytes, TaskReport, TaskSpec, WorkItem};
use crate::wire::{BytePath, Digest, SyncNo, TaskId, WorkerId};

/// Ranges of one file that have a task at the same time.
const RANGES_AHEAD: usize = 32;
/// A file whose source changes under the copy is begun anew so often.
const MAX_RESTARTS: u32 = 5;

impl Sync {
    /// What was sent of a file is void.
    pub(super) fn unsend(&mut self, large: &Large) {
        if self.counts() {
            let counters = &mut self.counters;
            counters.bytes_done = counters.bytes_done.saturating_sub(large.sent);
            counters.kept_bytes = counters.kept_bytes.saturating_sub(large.kept);
        }
    }
}

/// The name of the file that `item` is about. Manifests are not read here but for this: an error
/// without a name helps nobody.
fn name_of(item: &WorkItem) -> BytePath {
    let (WorkItem::Copy { manifest, .. } | WorkItem::Large { manifest, .. }) = item;
    first_name(&manifest.0)
}

fn first_name(manifest: &[u8]) -> BytePath {
    let first = Manifest::decode(manifest).ok().and_then(|m| m.entries.into_iter().next());
    first.map_or_else(BytePath::default, |entry| BytePath(entry.path.as_bytes().to_vec()))
}

impl State {
    /// The name of the large file that a task is about.
    pub(super) fn name_of_large(&self, task: &Task) -> Option<BytePath> {
        Some(self.large(task.sync, task.large?)?.path.clone())
    }

    /// A large file that is not published yet.
    pub(super) fn large(&self, no: SyncNo, file: TaskId) -> Option<&Large> {
        self.syncs.get(&no)?.larges.get(&file)
    }

    /// Adds a large file of a size, with the length of its ranges, and the first of them. Its total
    /// is counted by the caller.
    pub(super) fn add_large(
        &mut self,
        no: SyncNo,
        manifest: Vec<u8>,
        (size, length): (u64, u64),
        restarts: u32,
        group: Option<Digest>,
    ) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let known = group.is_some_and(|group| sync.groups.contains(&group));
        let begun = group.is_some() && sync.larges.values().any(|large| large.group == group);
        if known || sync.dry_run() {
            // Another name of it is there to link to; or nothing is sent.
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: size };
            self.add_task(NewTask::ready(no, spec), Some(manifest));
            return;
        }
        // Lengths come from agents: keep the arithmetic safe and the count of ranges bounded.
        let least = crate::wire::task::range_length(size, 1 << 20);
        let range_length = length.clamp(1024, 1 << 62).next_power_of_two().max(least);
        let id = self.take_number();
        let large = Large {
            id,
            sync: no,
            path: first_name(&manifest),
            size,
            range_length,
            blob: format!("m/{no}/{id}"),
            blob_bytes: manifest.len() as u64,
            manifest_digest: blake3::hash(&manifest).into(),
            next: 0,
            restarts,
            course: Course::Waiting,
            group,
            sent: 0,
            kept: 0,
            unhashed: false,
            done: Vec::new(),
            done_count: 0,
        };
        self.effects.push(Effect::PutBlob(large.blob.clone(), manifest));
        self.put(large.key());
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.blob_bytes += large.blob_bytes;
            sync.larges.insert(id, large);
        }
        if !begun {
            self.begin_large(no, id);
        }
    }

    /// Begins with the ranges of a large file.
    fn begin_large(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let compares = sync.compares();
        let Some(large) = sync.larges.get_mut(&id) else { return };
        // Of nothing there is no range to compare.
        let compared = compares && large.size > 0;
        large.course = if compared { Course::Comparing } else { Course::Sending };
        let key = large.key();
        self.put(key);
        self.more_ranges(no, id);
    }

    /// Keeps some range tasks of a large file ready; when all ranges are done, adds the commit.
    fn more_ranges(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let out = sync.tasks.iter().filter_map(|t| self.tasks.get(t));
        let mut out = out.filter(|t| t.large == Some(id)).count();
        let Some(large) = sync.larges.get(&id) else { return };
        let mut large = large.clone();
        let compare = large.course == Course::Comparing;
        let before = large.next;
        let asks = compare && large.done_count == 0 && sync.asks_first();
        let ahead = if asks { 1 } else { RANGES_AHEAD };
        while out < ahead && large.next < large.ranges() {
            let (offset, length) = large.range(large.next);
            let spec = TaskSpec::Range { offset, length, compare };
            self.add_task(NewTask::of_large(&large, spec), None);
            large.next += 1;
            out += 1;
        }
        if out == 0 && large.done_count == large.ranges() {
            let mut chain = Vec::new();
            if !large.unhashed {
                chain = large.done.iter().flatten().flat_map(|d| d.0).collect();
            }
            let range_length = large.range_length;
            let spec =
                TaskSpec::Commit { range_length, chain: Base64Bytes(chain), in_place: compare };
            self.add_task(NewTask::of_large(&large, spec), None);
        }
        if large.next != before {
            self.put(large.key());
            if let Some(sync) = self.syncs.get_mut(&no) {
                sync.larges.insert(id, large);
            }
        }
    }

    pub(super) fn range_done(
        &mut self,
        task: &Task,
        (offset, length): (u64, u64),
        worker: WorkerId,
        mut report: TaskReport,
        now: Now,
    ) {
        let Some(file) = task.large else { return };
        if self.is_found(task) {
            return self.found_too(task, file, &report, now);
        }
        if !report.unchanged {
            // Of directories that were made on the way.
            self.record_files(task.sync, std::mem::take(&mut report.records));
        }
        if let Some(error) = report.failures.first() {
            let failure = Failure { worker, why: error.to_string(), errors: report.failures };
            return self.failed(task.id, failure, now);
        }
        if report.unchanged {
            return self.found_there(task, file, report, now);
        }
        if let Some(item) = report.replacement {
            return self.replace_large(task, file, item, worker, now);
        }
        let comparing = self.large(task.sync, file).map(|l| l.course) == Some(Course::Comparing);
        if comparing && (report.differs || report.digest.is_none()) {
            return self.send_instead(task, file);
        }
        self.drop_task(task.id);
        if !comparing {
            self.found_room(task.sync, now);
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        let counts = sync.counts() && !comparing;
        let Some(large) = sync.larges.get_mut(&file) else { return };
        let index = offset / large.range_length;
        large.done.resize(large.ranges() as usize, None);
        large.unhashed |= report.digest.is_none();
        large.done[index as usize] = Some(report.digest.unwrap_or(Digest([0; 32])));
        large.done_count += 1;
        if !comparing {
            let kept = report.bytes_kept.min(length);
            large.sent = large.sent.saturating_add(length);
            large.kept = large.kept.saturating_add(kept);
            if counts {
                let counters = &mut sync.counters;
                counters.bytes_done = counters.bytes_done.saturating_add(length);
                counters.kept_bytes = counters.kept_bytes.saturating_add(kept);
            }
        }
        let keys = [large.key(), large.value_key(index)];
        keys.into_iter().for_each(|key| self.put(key));
        self.more_ranges(task.sync, file);
    }

    /// The destination holds a large file, already or because the task has brought all of it: it is counted. Where another task brought it meanwhile,
    /// what we sent of it is not to be left there.
    fn found_there(&mut self, task: &Task, file: TaskId, report: TaskReport, now: Now) {
        let no = task.sync;
        let Some(mut large) = self.large(no, file).cloned() else { return };
        let (size, group) = (large.size, large.group.take());
        let brought = report.files_done > 0;
        if brought {
            self.found_room(no, now);
        }
        let ranges = self.ranges_of(no, file);
        let mut ranges = ranges.iter().filter_map(|id| self.tasks.get(id));
        // One that begins again for want of its part file may have left some of that.
        let again = large.sent > 0 || large.restarts > 0;
        let tried = |range: &Task| range.attempt > u32::from(range.lease().is_some());
        if again || ranges.clone().any(tried) {
            self.discard(no, file, Some(task.id), now);
        } else if large.course == Course::Sending
            && ranges.any(|range| range.id != task.id && range.lease().is_some())
        {
            large.course = Course::Found;
            self.only_those_out(&large, task.id);
            self.put(large.key());
            if let Some(sync) = self.syncs.get_mut(&no) {
                sync.larges.insert(file, large);
            }
        } else {
            self.remove_large(no, file);
        }
        if let Some(sync) = self.syncs.get_mut(&no).filter(|sync| brought && sync.counts()) {
            sync.counters.bytes_done = sync.counters.bytes_done.saturating_add(size);
        }
        self.count_large(no, size, brought, report);
        self.group_done(no, group);
    }

    /// Drops the tasks of a file that nobody is out with, and the one that is done.
    fn only_those_out(&mut self, large: &Large, done: TaskId) {
        for id in self.ranges_of(large.sync, large.id) {
            if id == done || self.tasks.get(&id).is_some_and(|range| range.lease().is_none()) {
                self.drop_task(id);
            }
        }
    }

    /// A range is back of a file that another one found there.
    fn found_too(&mut self, task: &Task, file: TaskId, report: &TaskReport, now: Now) {
        if !report.unchanged || task.attempt > 1 {
            return self.discard(task.sync, file, Some(task.id), now);
        }
        self.drop_task(task.id);
        if self.ranges_of(task.sync, file).is_empty() {
            self.remove_large(task.sync, file);
        }
    }

    /// Whether a task is about a large file that was found at the destination, and counted.
    pub(super) fn is_found(&self, task: &Task) -> bool {
        let large = task.large.and_then(|file| self.large(task.sync, file));
        large.is_some_and(|large| large.course == Course::Found)
    }

    /// The tasks of a large file.
    pub(super) fn ranges_of(&self, no: SyncNo, file: TaskId) -> Vec<TaskId> {
        let Some(sync) = self.syncs.get(&no) else { return Vec::new() };
        let of_file = |id: &TaskId| self.tasks.get(id).is_some_and(|t| t.large == Some(file));
        sync.tasks.iter().copied().filter(of_file).collect()
    }

    /// Counts a large file that is as it shall be: brought over, or there already.
    fn count_large(&mut self, no: SyncNo, size: u64, brought: bool, report: TaskReport) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if sync.stage == Stage::Replace {
            let replaced = if brought { sync.take_back(1) } else { 0 };
            sync.counters.files_done += replaced;
            if replaced > 0 {
                sync.counters.add_actions(&report.actions);
            }
            return self.record_files(no, report.records);
        }
        let counters = &mut sync.counters;
        match (sync.stage == Stage::Readback, brought) {
            (true, true) => counters.repaired_files += 1,
            (true, false) => counters.verified_files += 1,
            (false, true) => counters.files_done += 1,
            (false, false) => {
                counters.files_skipped += 1;
                counters.bytes_skipped = counters.bytes_skipped.saturating_add(size);
            }
        }
        if sync.counts() {
            sync.counters.add_actions(&report.actions);
            sync.add_notes(report.warnings);
        }
        self.record_files(no, report.records);
    }

    /// The source of a large file changed: what was sent is void, the file begins anew as what it is
    /// now.
    fn replace_large(
        &mut self,
        task: &Task,
        file: TaskId,
        item: WorkItem,
        worker: WorkerId,
        now: Now,
    ) {
        let Some(large) = self.large(task.sync, file) else { return };
        let (restarts, old_size, group) = (large.restarts, large.size, large.group);
        if restarts >= MAX_RESTARTS {
            let message = format!("the source changed under the copy {} times", restarts + 1);
            let error = FileError {
                path: name_of(&item),
                operation: "read source".to_owned(),
                errno: None,
                message: message.clone(),
                hint: None,
                worker_id: Some(worker),
                attempt: restarts + 1,
                class: ErrorClass::Changed,
            };
            return self.give_up(task.id, &message, Some(error), now);
        }
        self.discard(task.sync, file, Some(task.id), now);
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            // It is one file as before; only its bytes are others.
            let counts = sync.counts();
            if counts {
                sync.counters.bytes_total = sync.counters.bytes_total.saturating_sub(old_size);
            }
            match item {
                WorkItem::Large { manifest, size, range_length, hardlink_group: group } => {
                    if counts {
                        sync.counters.add_bytes_total(size);
                    }
                    let sizes = (size, range_length);
                    self.add_large(task.sync, manifest.0, sizes, restarts + 1, group);
                }
                copy @ WorkItem::Copy { .. } => {
                    // Small now. It is counted anew by `add_work`.
                    if counts {
                        sync.counters.files_total = sync.counters.files_total.saturating_sub(1);
                    }
                    self.add_work(task.sync, copy, None);
                }
            }
        }
        self.next_of_group(task.sync, group);
    }

    pub(super) fn committed(
        &mut self,
        task: &Task,
        worker: WorkerId,
        report: TaskReport,
        now: Now,
    ) {
        let Some(file) = task.large else { return };
        let in_place = matches!(task.spec, TaskSpec::Commit { in_place: true, .. });
        if in_place && (report.differs || report.part_lost) {
            return self.send_instead(task, file);
        }
        if report.part_lost {
            return self.send_again(task, file, report.failures.into_iter().next(), now);
        }
        if let Some(error) = report.failures.first() {
            let failure = Failure { worker, why: error.to_string(), errors: report.failures };
            return self.failed(task.id, failure, now);
        }
        if let Some(large) = self.remove_large(task.sync, file) {
            self.count_large(task.sync, large.size, !in_place, report);
            self.group_done(task.sync, large.group);
        }
    }

    /// A file that was compared differs: it is sent. Nothing changed but what we know of it.
    fn send_instead(&mut self, task: &Task, file: TaskId) {
        let Some(mut large) = self.large(task.sync, file).cloned() else { return };
        large.course = Course::Sending;
        self.begin_again(large);
    }

    /// The part file of a large file got lost: what was sent is void, all ranges are sent again.
    fn send_again(&mut self, task: &Task, file: TaskId, error: Option<FileError>, now: Now) {
        let Some(mut large) = self.large(task.sync, file).cloned() else { return };
        if large.restarts >= MAX_RESTARTS {
            let why = format!(
                "its part file was removed {}",
                units::pluralize(u64::from(large.restarts) + 1, "time", "times")
            );
            return self.give_up(task.id, &why, error, now);
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.unsend(&large);
        }
        (large.sent, large.kept) = (0, 0);
        large.restarts += 1;
        self.begin_again(large);
    }

    /// Begins again with the first range of a file.
    fn begin_again(&mut self, mut large: Large) {
        let (no, file) = (large.sync, large.id);
        self.drop_parts(no, &large);
        (large.next, large.done_count, large.unhashed) = (0, 0, false);
        large.done.clear();
        self.put(large.key());
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.larges.insert(file, large);
        }
        self.more_ranges(no, file);
    }

    /// Drops the tasks of a large file, and the values of its ranges.
    fn drop_parts(&mut self, no: SyncNo, large: &Large) {
        for id in self.ranges_of(no, large.id) {
            self.drop_task(id);
        }
        for (index, done) in large.done.iter().enumerate() {
            if done.is_some() {
                self.effects.push(Effect::Delete(large.value_key(index as u64)));
            }
        }
    }

    /// Forgets a large file with its tasks, manifest and range records.
    pub(super) fn remove_large(&mut self, no: SyncNo, file: TaskId) -> Option<Large> {
        let large = self.forget_large(no, file)?;
        self.effects.push(Effect::DeleteBlob(large.blob.clone()));
        Some(large)
    }

    /// … but not its manifest: a task takes it over.
    pub(super) fn forget_large(&mut self, no: SyncNo, file: TaskId) -> Option<Large> {
        let sync = self.syncs.get_mut(&no)?;
        let large = sync.larges.remove(&file)?;
        sync.blob_bytes = sync.blob_bytes.saturating_sub(large.blob_bytes);
        self.effects.push(Effect::Delete(large.key()));
        self.drop_parts(no, &large);
        self.touched.insert(no);
        Some(large)
    }

    /// One name of a file is there: the others, also those that are found later, become links to it.
    fn group_done(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(group)) = (self.syncs.get_mut(&no), group) else { return };
        sync.groups.insert(group);
        let others = sync.larges.values().filter(|large| large.group == Some(group));
        let others: Vec<TaskId> = others.map(|large| large.id).collect();
        self.put(records::group_key(no, &group));
        for id in others {
            let Some(large) = self.forget_large(no, id) else { continue };
            let spec = TaskSpec::Copy { files: 1, dirs: 0, bytes: large.size };
            let new = NewTask {
                blob: Some(large.blob),
                blob_bytes: large.blob_bytes,
                manifest_digest: Some(large.manifest_digest),
                ..NewTask::ready(no, spec)
            };
            self.add_task(new, None);
        }
    }

    /// The name that the others of a group waited for can't be brought: the next one is.
    pub(super) fn next_of_group(&mut self, no: SyncNo, group: Option<Digest>) {
        let (Some(sync), Some(_)) = (self.syncs.get(&no), group) else { return };
        let of_group = || sync.larges.values().filter(|large| large.group == group);
        if of_group().any(|large| large.course != Course::Waiting) {
            return;
        }
        if let Some(id) = of_group().map(|large| large.id).next() {
            self.begin_large(no, id);
        }
    }

    /// Forgets which files with several names were brought: nobody asks any more, or anew.
    pub(super) fn forget_groups(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        for group in std::mem::take(&mut sync.groups) {
            self.effects.push(Effect::Delete(records::group_key(no, &group)));
        }
    }
}
