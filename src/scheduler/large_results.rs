//! Results of ranges and commits of large files.

use super::large_file::LargeFileState;
use super::phase::PhaseState;
use super::task::Task;
use super::work_items::{FoundLargeFile, item_name};
use super::{Now, State};
use crate::util::units;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::task::{TaskReport, TaskSpec, WorkItem};
use crate::wire::{Digest, SyncNo, TaskId, WorkerId};

/// Maximum number of restarts of a file because its source changed during the copy.
const MAX_RESTARTS: u32 = 5;

impl State {
    pub(super) fn complete_range(
        &mut self,
        task: &Task,
        (offset, length): (u64, u64),
        worker: &WorkerId,
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
            let why = error.to_string();
            return self.retry_or_fail_task(task.id, worker, why, report.failures, now);
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
        let Some(sync) = self.syncs.get_mut(task.sync) else { return };
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
        if let Some(shared) = large.shared.filter(|_| !comparing) {
            // Of a copy that a relay sent the digest is known from the source.
            let relay = task.lease().and_then(|lease| lease.relay.as_ref());
            let digest = relay.map_or(report.digest, |relay| relay.digest);
            self.relays.record_range(shared, index, task.sync, digest);
        }
        let keys = [large.record_key(), large.range_record_key(index)];
        keys.into_iter().for_each(|key| self.outbox.write_record(key));
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
        // A file that was restarted for a lost part file may have left a part of that.
        let again = large.sent_bytes > 0 || large.restarts > 0;
        let tried = |range: &Task| range.attempt > u32::from(range.lease().is_some());
        let is_other = |range: &Task| range.id != task.id && range.lease().is_some();
        if again || self.tasks.of_file(no, file).any(tried) {
            self.discard_large_file(no, file, Some(task.id), now);
        } else if large.state == LargeFileState::Sending
            && self.tasks.of_file(no, file).any(is_other)
        {
            large.state = LargeFileState::AlreadyPresent;
            for id in self.large_file_tasks(no, file) {
                if id == task.id || !self.tasks.is_leased(id) {
                    self.remove_task(id);
                }
            }
            self.store_large_file(large);
        } else {
            self.remove_large_file(no, file);
        }
        if let Some(sync) = self.syncs.get_mut(no).filter(|sync| brought && sync.counts_entries()) {
            sync.counters.bytes_done = sync.counters.bytes_done.saturating_add(size);
        }
        self.count_large_file(no, size, brought, report);
        self.complete_hardlink_group(no, group);
    }

    /// A range of a file that another range found present has ended.
    fn confirm_present_file(&mut self, task: &Task, file: TaskId, report: &TaskReport, now: Now) {
        if !report.unchanged || task.attempt > 1 {
            return self.discard_large_file(task.sync, file, Some(task.id), now);
        }
        self.remove_task(task.id);
        if self.tasks.of_file(task.sync, file).next().is_none() {
            self.remove_large_file(task.sync, file);
        }
    }

    /// Counts a large file that is complete, either sent or already present.
    fn count_large_file(&mut self, no: SyncNo, size: u64, brought: bool, report: TaskReport) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let is_deferred =
            brought && sync.phase == PhaseState::CopyBlocked && sync.take_deferred(1) > 0;
        let counters = &mut sync.counters;
        match (sync.phase, brought) {
            (PhaseState::CopyBlocked, _) if is_deferred => {
                counters.files_done += 1;
                counters.add_actions(&report.actions);
            }
            (PhaseState::CopyBlocked, _) => {}
            (PhaseState::Readback, true) => counters.repaired_files += 1,
            (PhaseState::Readback, false) => counters.verified_files += 1,
            (_, true) => counters.files_done += 1,
            (_, false) => {
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
        worker: &WorkerId,
        now: Now,
    ) {
        let Some(large) = self.large_file(task.sync, file) else { return };
        let (restarts, old_size, group) = (large.restarts, large.size, large.hardlink_group);
        if restarts >= MAX_RESTARTS {
            let message = format!("the source changed under the copy {} times", restarts + 1);
            let error = EntryError {
                worker_id: Some(worker.clone()),
                attempt: restarts + 1,
                class: ErrorClass::Changed,
                ..EntryError::new(&item_name(&item).0, Side::Source, "read", message.clone())
            };
            return self.fail_task(task.id, &message, Some(error), now);
        }
        self.discard_large_file(task.sync, file, Some(task.id), now);
        if let Some(sync) = self.syncs.get_mut(task.sync) {
            // It is still one file; only its size changed.
            let counts = sync.counts_entries();
            if counts {
                sync.counters.bytes_total = sync.counters.bytes_total.saturating_sub(old_size);
            }
            match item {
                WorkItem::Large { manifest, size, range_length, hardlink_group } => {
                    if counts {
                        sync.counters.add_bytes_total(size);
                    }
                    let restarts = restarts + 1;
                    let found = FoundLargeFile { size, range_length, hardlink_group, restarts };
                    self.add_large_file(task.sync, manifest.0, found);
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
        worker: &WorkerId,
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
            let why = error.to_string();
            return self.retry_or_fail_task(task.id, worker, why, report.failures, now);
        }
        let large = self.syncs.get_mut(task.sync).and_then(|sync| sync.large_files.get_mut(&file));
        if let Some(shared) = large.and_then(|large| large.shared.take()) {
            self.relays.leave_file(shared, task.sync, true);
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
    fn resend_large_file(
        &mut self,
        task: &Task,
        file: TaskId,
        error: Option<EntryError>,
        now: Now,
    ) {
        let Some(mut large) = self.large_file(task.sync, file).cloned() else { return };
        if large.restarts >= MAX_RESTARTS {
            let why = format!(
                "its part file was removed {}",
                units::pluralize(u64::from(large.restarts) + 1, "time", "times")
            );
            return self.fail_task(task.id, &why, error, now);
        }
        if let Some(sync) = self.syncs.get_mut(task.sync) {
            sync.rollback_sent(&large);
        }
        (large.sent_bytes, large.kept_bytes) = (0, 0);
        large.restarts += 1;
        self.restart_ranges(large);
    }
}
