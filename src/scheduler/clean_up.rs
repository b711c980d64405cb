//! Removal of work: what a sync that stops, restarts or is removed leaves to be discarded.

use super::boot_ids::BootIds;
use super::large_file::{LargeFile, LargeFileState};
use super::phase::PhaseState;
use super::sync_job::{MirrorStop, ScanOwner, SyncJob};
use super::task::{Task, TaskState};
use super::{Effect, Now, State, record_keys};
use crate::wire::task::TaskSpec;
use crate::wire::{SyncNo, TaskId};

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

impl State {
    /// Stops a mirror before it does damage. What was written is still cleaned up and flushed.
    pub(super) fn stop_mirror(&mut self, no: SyncNo, stop: MirrorStop, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        tracing::warn!(sync = %sync.id, why = stop.reason, "a mirror stops");
        sync.mirror_stop = Some(stop);
        if sync.phase == PhaseState::DeleteExtraneous {
            sync.mark_all_unflushed();
        }
        self.abandon_tasks(no, now);
        self.mark_changed(no, now);
    }

    /// The scans of its group find no work for a sync any more, and other destinations get nothing from it.
    pub(super) fn leave_group_scans(&mut self, no: SyncNo, next: ScanOwner) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let Some(group) = sync.group() else { return };
        sync.scan_owner = next;
        self.outbox.write_record(sync.record_key());
        self.relays.remove_holder_everywhere(group, no);
        self.outbox.mark_dirty(group);
    }

    /// Removes a large file that will not be published, and adds a task that deletes its part file.
    /// `reported` is the task of the file that a worker has just reported, if any.
    pub(super) fn discard_large_file(
        &mut self,
        no: SyncNo,
        file: TaskId,
        reported: Option<TaskId>,
        now: Now,
    ) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let ended = !sync.is_active();
        let Some(large) = sync.large_files.get(&file).cloned() else { return };
        if matches!(large.state, LargeFileState::Comparing | LargeFileState::Waiting) {
            // Nothing was written yet.
            self.remove_large_file(no, file);
            return;
        }
        sync.rollback_sent(&large);
        // Other workers may write until their leases end: those of other ranges, and after a cancel
        // any.
        let is_other = |range: &Task| Some(range.id) != reported && range.lease().is_some();
        let others = self.tasks.of_file(no, file).any(is_other);
        self.add_discard(no, Some(large.manifest_key), 0, ended || others, now);
        self.detach_large_file(no, file);
    }

    /// Adds a task that removes what a batch or large file left at the destination. `late`: after a
    /// lease, because other workers may still write.
    pub(super) fn add_discard(
        &mut self,
        no: SyncNo,
        manifest_key: Option<String>,
        manifest_bytes: u64,
        late: bool,
        now: Now,
    ) {
        let state = if late { self.delayed_by_lease(now) } else { TaskState::Ready };
        let discard = Task::new(no, TaskSpec::Discard);
        self.add_task(Task { manifest_key, manifest_bytes, state, ..discard });
    }

    /// Removes all tasks of a sync. Part files are deleted later, and so are temporary files of
    /// batches that were ever leased: a killed worker leaves some, and no retry reuses them.
    pub(super) fn abandon_tasks(&mut self, no: SyncNo, now: Now) {
        self.leave_group_scans(no, ScanOwner::GroupBefore);
        let Some(sync) = self.syncs.get(no) else { return };
        let writes = !sync.is_dry_run();
        let larges: Vec<TaskId> = sync.large_files.keys().copied().collect();
        for id in self.tasks.ids_of_sync(no) {
            self.record_revoked_lease(id, now);
        }
        for file in larges {
            self.discard_large_file(no, file, None, now);
        }
        for id in self.tasks.ids_of_sync(no) {
            let Some(task) = self.tasks.get_mut(id) else { continue };
            match task.spec {
                TaskSpec::Discard => {}
                TaskSpec::Copy { .. } if writes && task.attempt > 0 => {
                    let (blob, blob_bytes) = (task.manifest_key.take(), task.manifest_bytes);
                    self.remove_task(id);
                    self.add_discard(no, blob, blob_bytes, true, now);
                }
                _ => drop(self.remove_task(id)),
            }
        }
    }

    /// Removes the worker records of an ended sync: there are no more flushes.
    pub(super) fn clear_worker_records(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        // Also those that were removed but are still stored.
        let unsaved = sync.take_unsaved_keys().into_iter();
        self.outbox.extend(unsaved.chain(sync.worker_record_keys()).map(Effect::WriteRecord));
        (sync.unflushed_writers, sync.possible_writers) = (BootIds::default(), BootIds::default());
        sync.source_roots = BootIds::default();
        self.outbox.mark_failures_dirty(no);
    }

    pub(super) fn remove_sync(&mut self, no: SyncNo, now: Now) {
        self.delete_name_list(no);
        self.delete_failure_list(no);
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        if let Some(sync) = self.syncs.remove(no) {
            self.outbox.write_record(sync.record_key());
            self.outbox.extend(sync.filter_key().map(Effect::WriteRecord));
            self.outbox.push(Effect::DeleteFileRecords(no));
        }
        self.release_paths(no, now);
    }

    /// Deletes the stored parts of a name list. A sync that did not copy everything keeps them for
    /// a retry.
    pub(super) fn delete_name_list(&mut self, no: SyncNo) {
        // The list of a group is kept until the group does not need it any more.
        let Some(sync) = self.syncs.get_mut(no).filter(|sync| sync.group().is_none()) else {
            return;
        };
        let (owner, parts) = (sync.name_list_owner(), sync.name_list_parts.take().unwrap_or(0));
        for index in 0..parts {
            self.outbox.delete_blob(record_keys::name_list_key(owner, index));
        }
    }

    /// Removes the tasks of a sync; an active one restarts. What the destination has already is skipped.
    pub(super) fn restart_sync(&mut self, no: SyncNo, now: Now) {
        self.leave_group_scans(no, ScanOwner::Itself);
        let Some(sync) = self.syncs.get(no).filter(|sync| !sync.is_group()) else { return };
        let larges: Vec<TaskId> = sync.large_files.keys().copied().collect();
        let tasks = self.tasks.ids_of_sync(no);
        let active = sync.is_active();
        tasks.iter().for_each(|id| self.record_revoked_lease(*id, now));
        larges.into_iter().for_each(|file| drop(self.remove_large_file(no, file)));
        tasks.into_iter().for_each(|id| drop(self.remove_task(id)));
        if active {
            self.clear_hardlink_groups(no);
            self.delete_failure_list(no);
            if let Some(sync) = self.syncs.get_mut(no) {
                // Results of present leases will match nothing.
                sync.mark_all_unflushed();
                sync.reset_progress();
            }
            self.add_scans(no);
            self.mark_changed(no, now);
        }
    }
}
