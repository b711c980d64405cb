//! Failures: retry or fail a task, remove the work of a sync.

use super::boot_ids::{BootIds, boot_part};
use super::pause::is_storage_gone;
use super::sync_job::FailureCount;
use super::task::{LargeFileState, Task, TaskState};
use super::worker_registry::unavailable_path;
use super::{Effect, NewTask, Now, State, records};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::units;
use crate::wire::sync::{ErrorClass, FailedStep, FileError};
use crate::wire::task::TaskSpec;
use crate::wire::worker::UnavailablePath;
use crate::wire::{BytePath, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;
use std::time::Duration;

/// Maximum time to wait for a silent worker that has not flushed, before its writes count as lost.
const FLUSH_TIMEOUT_MS: u64 = 10 * 60 * 1000;
const RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// A task that failed as a whole.
pub(super) struct TaskFailure {
    pub(super) worker: WorkerId,
    pub(super) reason: String,
    /// The failed entry, for a task about one file.
    pub(super) errors: Vec<FileError>,
}

impl State {
    /// A task failed as a whole: it is retried, if possible on another worker, or fails.
    pub(super) fn retry_or_fail_task(&mut self, id: TaskId, failure: TaskFailure, now: Now) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.failed_on.insert(failure.worker.clone());
        task.last_error = Some(failure.reason.clone());
        let task = task.clone();
        if matches!(task.spec, TaskSpec::Prune { apply: true, .. })
            && let Some(deleter) = self.syncs.get_mut(&task.sync).and_then(|s| s.deleter.as_mut())
        {
            deleter.has_failed = true;
            self.mark_changed(task.sync, now);
        }
        if self.pause_on_storage_errors(&task, &failure.errors, now) {
            self.end_lease(id);
            self.requeue_after_backoff(id, now);
            return;
        }
        if task.hit_resource_shortage(&failure.errors) {
            self.end_lease(id);
            if let Some(task) = self.tasks.get_mut(&id) {
                task.resource_retries += 1;
            }
            self.requeue_after_backoff(id, now);
            return;
        }
        if task.spec == TaskSpec::Discard && task.failures >= 3 {
            let what = "a part file could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", task.sync), sync = %task.sync, why = failure.reason, "{what}");
            self.remove_task(id);
            return;
        }
        // A failed flush is final: the kernel reports a write error only once, and the next flush
        // would succeed without the data. A flush that was refused because the storage is gone did
        // not run.
        let tried = |error: &FileError| !is_storage_gone(error);
        let final_flush = task.spec == TaskSpec::Flush && failure.errors.iter().any(tried);
        let in_vain = final_flush || self.is_already_present(&task);
        if in_vain || !self.is_retry_useful(&task, &task.failed_on, &failure.errors) {
            let mut error = failure.errors.into_iter().next();
            if let Some(error) = &mut error {
                error.worker_id.get_or_insert(failure.worker);
                error.attempt = error.attempt.max(task.failures + 1);
            }
            self.fail_task(id, &failure.reason, error, now);
            return;
        }
        self.end_lease(id);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.failures += 1;
        }
        self.requeue_after_backoff(id, now);
    }

    fn end_lease(&mut self, id: TaskId) {
        if let Some(lease) = self.tasks.get(&id).and_then(Task::lease) {
            self.lease_index.remove(lease);
        }
    }

    /// Whether a retry can help: a permanent error only on a worker that has not tried yet, a
    /// transient one for a number of times, a task that failed as a whole (a peer is unavailable)
    /// for twice as many.
    pub(super) fn is_retry_useful(
        &self,
        task: &Task,
        tried: &BTreeSet<WorkerId>,
        errors: &[FileError],
    ) -> bool {
        let most = self.settings.max_retries;
        if errors.is_empty() {
            return task.failures < 2 * most;
        }
        let may_pass = |e: &FileError| {
            use ErrorClass::{Changed, StorageGone, Transient};
            matches!(e.class, Transient | Changed | StorageGone)
        };
        if errors.iter().any(may_pass) {
            return task.failures < most;
        }
        let blocked = errors.iter().any(|e| e.class == ErrorClass::Permanent);
        blocked && self.has_untried_worker(task, tried)
    }

    fn has_untried_worker(&self, task: &Task, tried: &BTreeSet<WorkerId>) -> bool {
        let Some(sync) = self.syncs.get(&task.sync) else { return false };
        let request = &sync.request;
        let path =
            if task.runs_at_source() { &request.source_path } else { &request.destination_path };
        self.capable_workers(sync, path).any(|w| !tried.contains(&w.last_heartbeat.worker_id))
    }

    /// Queues a failed task: at once if another worker can take it, else after a delay.
    pub(super) fn requeue_after_backoff(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id) else { return };
        let elsewhere = self.has_untried_worker(task, &task.failed_on);
        // Spread tasks that failed together; the delay of a task is deterministic.
        let seed = task.id.0 ^ task.sync.0.rotate_left(32);
        let wait = RETRY_BACKOFF
            .jittered_delay((task.failures + task.resource_retries).saturating_sub(1), seed);
        let wait = u64::try_from(wait.as_millis());
        let until_ms = now.mono_ms.saturating_add(wait.unwrap_or(u64::MAX));
        if let Some(task) = self.tasks.get_mut(&id) {
            task.deprioritised_until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            let (key, no) = (task.record_key(), task.sync);
            let state = if elsewhere { TaskState::Ready } else { TaskState::Delayed { until_ms } };
            self.set_task_state(id, state);
            self.put_record(key);
            self.dirty_syncs.insert(no);
            self.needs_dispatch = true;
        }
    }

    pub(super) fn fail_task(&mut self, id: TaskId, why: &str, error: Option<FileError>, now: Now) {
        let Some(task) = self.tasks.get(&id).cloned() else { return };
        let worker = task.lease().map(|l| l.worker.clone());
        let what = match &task.spec {
            TaskSpec::Scan { dir, .. } => format!("list `{dir}`"),
            TaskSpec::Prune { dir, .. } => format!("delete in `{dir}`"),
            TaskSpec::CleanUp => "remove the anchors of hard links".to_owned(),
            TaskSpec::List { .. } => "look up listed names".to_owned(),
            TaskSpec::Copy { .. } if task.entry.is_some() => "copy".to_owned(),
            TaskSpec::Copy { files, dirs, .. } => {
                format!("copy {}", units::pluralize(files + dirs, "entry", "entries"))
            }
            other => other.kind().to_owned(),
        };
        let path = match &task.spec {
            TaskSpec::Scan { dir, .. } | TaskSpec::Prune { dir, .. } => {
                BytePath(dir.as_bytes().to_vec())
            }
            _ => task.entry.clone().or_else(|| self.large_file_name(&task)).unwrap_or_default(),
        };
        let untold = error.is_none();
        let error = error.unwrap_or(FileError {
            path,
            operation: what,
            errno: None,
            message: why.to_owned(),
            hint: None,
            worker_id: worker,
            attempt: task.attempt,
            class: ErrorClass::Transient,
        });
        let found = self.is_already_present(&task);
        if let Some(file) = task.large_file {
            let group = self.large_file(task.sync, file).and_then(|large| large.hardlink_group);
            self.discard_large_file(task.sync, file, Some(id), now);
            self.start_next_of_group(task.sync, group);
        }
        let manifest = self.take_failed_manifest(id, &error);
        self.remove_task(id);
        if found {
            // The file is present and was counted.
            return;
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        if !sync.is_active() {
            let what = "a file of an ended sync could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", sync.id), sync = %sync.id, why, "{what}");
            return;
        }
        // The last worker may have left anchors that were not reported.
        sync.needs_clean_up |= untold && sync.keeps_hard_links() && task.may_leave_link_anchors();
        let occupied = sync.can_defer_blocked(std::slice::from_ref(&error));
        match &task.spec {
            TaskSpec::Copy { files, dirs, .. } => {
                let count = sync.count_failed_entries(*files, *dirs);
                self.record_batch_failure(task.sync, error, count, manifest);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } if occupied => {
                self.defer_blocked_entries(task.sync, 1, vec![error]);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } => {
                let count = sync.count_failed_entries(1, 0);
                self.record_failure(task.sync, error, count);
            }
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => {
                let counts = sync.counts_entries();
                let step = if counts { FailedStep::List } else { FailedStep::ReadBack };
                let unfit = error.class == ErrorClass::InvalidRequest;
                let of_root = match &task.spec {
                    TaskSpec::Scan { dir, cursor } => dir.is_root() && cursor.is_none(),
                    // An unusable root is no error of a listed name.
                    _ => unfit || error.path.0.is_empty() && error.class == ErrorClass::Permanent,
                };
                sync.source_root_failed |= counts && of_root;
                // A listed name or directory must exist: its absence is an error.
                let class = if unfit { error.class } else { ErrorClass::Permanent };
                let error = FileError { class, ..error };
                self.count_and_record_failure(task.sync, error, FailureCount::Step(step, 1));
            }
            TaskSpec::Flush | TaskSpec::Prune { .. } | TaskSpec::CleanUp => {
                if let Some(bound) = &task.pinned_to {
                    sync.unflushed_writers.remove(bound);
                }
                let step = match task.spec {
                    TaskSpec::Flush => FailedStep::Flush,
                    TaskSpec::CleanUp => FailedStep::CleanUp,
                    _ => FailedStep::Delete,
                };
                let error = FileError { class: ErrorClass::Permanent, ..error };
                self.count_and_record_failure(task.sync, error, FailureCount::Step(step, 1));
            }
            TaskSpec::Discard => {}
        }
        self.mark_changed(task.sync, now);
    }

    /// Keeps the manifest of a failed batch, if the error names no entry of it.
    fn take_failed_manifest(&mut self, id: TaskId, error: &FileError) -> Option<String> {
        let task = self.tasks.get(&id).filter(|_| error.path.0.is_empty())?;
        let TaskSpec::Copy { files, dirs, .. } = task.spec else { return None };
        if !self.can_list_batch(task.sync, files.saturating_add(dirs)) {
            return None;
        }
        self.tasks.get_mut(&id)?.manifest_key.take()
    }

    pub(super) fn count_and_record_failure(
        &mut self,
        no: SyncNo,
        error: FileError,
        failed: FailureCount,
    ) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.count_failure(failed);
        }
        self.record_failure(no, error, failed.total());
    }

    /// Records an error that stands for `count` failures, which are already counted.
    pub(super) fn record_failure(&mut self, no: SyncNo, error: FileError, count: u64) {
        self.record_batch_failure(no, error, count, None);
    }

    /// Like [`State::record_failure`]; with a `manifest` the error stands for all entries of a
    /// batch.
    fn record_batch_failure(
        &mut self,
        no: SyncNo,
        error: FileError,
        count: u64,
        manifest: Option<String>,
    ) {
        self.list_failure(no, &error, count, manifest);
        self.record_failed_file(no, &error);
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.record_error(error, count);
        }
    }

    /// Removes a large file that will not be published, and adds a task that deletes its part file.
    /// `told` is the task of the file whose worker has just reported, if any.
    pub(super) fn discard_large_file(
        &mut self,
        no: SyncNo,
        file: TaskId,
        told: Option<TaskId>,
        now: Now,
    ) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
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
        let ranges = self.large_file_tasks(no, file);
        let mut others = ranges.iter().filter_map(|id| self.tasks.get(id));
        let others = others.any(|range| Some(range.id) != told && range.lease().is_some());
        let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let state =
            if ended || others { TaskState::Delayed { until_ms } } else { TaskState::Ready };
        let blob = Some(large.manifest_key);
        self.add_task(
            NewTask { manifest_key: blob, state, ..NewTask::ready(no, TaskSpec::Discard) },
            None,
        );
        self.detach_large_file(no, file);
    }

    /// Removes all tasks of a sync. Part files are deleted later, and so are temporary files of
    /// batches that were ever leased: a killed worker leaves some, and no retry reuses them.
    pub(super) fn abandon_tasks(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let writes = !sync.is_dry_run();
        let larges: Vec<TaskId> = sync.large_files.keys().copied().collect();
        for id in sync.tasks.clone() {
            self.record_revoked_lease(id, now);
        }
        for file in larges {
            self.discard_large_file(no, file, None, now);
        }
        let tasks: Vec<TaskId> =
            self.syncs.get(&no).map(|s| s.tasks.iter().copied().collect()).unwrap_or_default();
        for id in tasks {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            match task.spec {
                TaskSpec::Discard => {}
                TaskSpec::Copy { .. } if writes && task.attempt > 0 => {
                    let (blob, blob_bytes) = (task.manifest_key.take(), task.manifest_bytes);
                    self.remove_task(id);
                    let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
                    let state = TaskState::Delayed { until_ms };
                    let discard = NewTask::ready(no, TaskSpec::Discard);
                    self.add_task(
                        NewTask {
                            manifest_key: blob,
                            manifest_bytes: blob_bytes,
                            state,
                            ..discard
                        },
                        None,
                    );
                }
                _ => drop(self.remove_task(id)),
            }
        }
    }

    /// After every event: advances syncs whose tasks are done, then dispatches to waiting polls.
    pub(super) fn advance_and_dispatch(&mut self, now: Now) {
        while let Some(no) = self.dirty_syncs.pop_first() {
            self.advance_phase(no, now);
        }
        if std::mem::take(&mut self.needs_dispatch) {
            self.dispatch_waiting_polls(now);
            // Dispatch marks syncs as dirty (their state changed) but ends none.
            self.dirty_syncs.clear();
            self.needs_dispatch = false;
        }
    }

    /// Handles flush tasks that can no longer be done: the host of the writer was rebooted (then
    /// all is compared again, if that can help), or no capable worker appeared for a long time.
    pub(super) fn check_pending_flushes(&mut self, now: Now) {
        let mut vain: Vec<(TaskId, String)> = Vec::new();
        let mut gone: Vec<(SyncNo, WorkerId, UnavailablePath)> = Vec::new();
        let mut lost: Vec<(TaskId, String)> = Vec::new();
        let mut in_time: Vec<TaskId> = Vec::new();
        for task in
            self.syncs_with_tasks.iter().filter_map(|no| self.syncs.get(no)).flat_map(|s| &s.tasks)
        {
            let Some(task) = self.tasks.get(task) else { continue };
            let Some(bound) = &task.pinned_to else { continue };
            let Some(sync) = self.syncs.get(&task.sync) else { continue };
            let destination = &sync.request.destination_path;
            let place = sync.unflushed_writers.get(bound).and_then(Option::as_ref);
            let boot = place.map(|place| boot_part(place));
            let writer = self.workers.get(bound);
            let under = || boot.into_iter().flat_map(|boot| self.workers.with_boot(boot));
            let mut flushers =
                under().chain(writer).filter(|w| w.is_ready() && w.serves(destination));
            let waits = !sync.can_dispatch(now);
            if waits
                || task.state != TaskState::Ready
                || flushers.any(|w| self.can_flush(sync, task, w))
            {
                in_time.push(task.id);
                continue;
            }
            let runs = under().any(|w| w.is_active);
            let here = writer.filter(|w| w.is_active);
            let rebooted =
                here.is_some_and(|w| w.last_heartbeat.boot_id.as_deref() != boot && !runs);
            let same_kernel = here.filter(|w| w.last_heartbeat.boot_id.as_deref() == boot);
            let replaced = same_kernel.is_some_and(|w| {
                w.serves(destination) && w.boot_and_root(destination).as_ref() != place
            });
            let lost_path = here.and_then(|w| unavailable_path(&w.last_heartbeat, destination));
            if let (Some(path), false) = (lost_path, rebooted) {
                in_time.push(task.id);
                gone.push((sync.no, bound.clone(), path.clone()));
            } else if replaced && !rebooted {
                lost.push((
                    task.id,
                    format!(
                        "the storage path of worker {bound} that holds {destination} leads to another directory \
                         than the one that it wrote to; submit the sync again"
                    ),
                ));
            } else if rebooted {
                lost.push((
                    task.id,
                    format!(
                        "the host of worker {bound} was rebooted before what it wrote was flushed; \
                     submit the sync again"
                    ),
                ));
            } else if now.mono_ms.saturating_sub(task.waiting_since_ms) > FLUSH_TIMEOUT_MS {
                vain.push((
                    task.id,
                    format!(
                        "worker {bound} wrote to the destination and did not return to flush it; \
                     submit the sync again"
                    ),
                ));
            }
        }
        for id in in_time {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.waiting_since_ms = now.mono_ms;
            }
        }
        for (no, worker, path) in gone {
            self.pause_for_flush(no, &worker, &path, now);
        }
        lost.retain(|(id, _)| !self.recheck_after_reboot(*id, now));
        for (id, why) in vain.into_iter().chain(lost) {
            self.fail_task(id, &why, None, now);
        }
    }

    /// Removes the worker records of an ended sync: there are no more flushes.
    pub(super) fn clear_worker_records(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        // Also those that were removed but are still stored.
        self.effects.extend(sync.take_unsaved_keys().map(Effect::PutRecord));
        self.effects.extend(sync.worker_record_keys().map(Effect::DeleteRecord));
        (sync.unflushed_writers, sync.possible_writers) = (BootIds::default(), BootIds::default());
        sync.source_roots = BootIds::default();
        self.dirty_failure_lists.insert(no);
    }

    pub(super) fn remove_sync(&mut self, no: SyncNo, now: Now) {
        self.delete_name_list(no);
        self.delete_failure_list(no);
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        if let Some(sync) = self.syncs.remove(&no) {
            if self.by_id.get(&sync.id) == Some(&no) {
                self.by_id.remove(&sync.id);
            }
            self.effects.push(Effect::DeleteRecord(sync.record_key()));
            self.effects.extend(sync.filter_key().map(Effect::DeleteRecord));
            self.effects.push(Effect::DeleteFileRecords(no));
        }
        self.release_paths(no, now);
    }

    /// Deletes the stored parts of a name list. A sync that did not copy everything keeps them for
    /// a retry.
    pub(super) fn delete_name_list(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let (owner, parts) = (sync.name_list_owner(), sync.name_list_parts.take().unwrap_or(0));
        for index in 0..parts {
            self.effects.push(Effect::DeleteBlob(records::name_list_key(owner, index)));
        }
    }

    /// The store lost data: manifests are gone, so every active sync restarts. What the destination
    /// has already is skipped.
    pub(super) fn restart_all_syncs(&mut self, now: Now) {
        let all: Vec<SyncNo> = self.syncs.keys().copied().collect();
        for no in all {
            self.restart_sync(no, now);
        }
    }

    /// Removes the tasks of a sync; an active one restarts.
    pub(super) fn restart_sync(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let larges: Vec<TaskId> = sync.large_files.keys().copied().collect();
        let tasks: Vec<TaskId> = sync.tasks.iter().copied().collect();
        let active = sync.is_active();
        tasks.iter().for_each(|id| self.record_revoked_lease(*id, now));
        larges.into_iter().for_each(|file| drop(self.remove_large_file(no, file)));
        tasks.into_iter().for_each(|id| drop(self.remove_task(id)));
        if active {
            self.clear_hardlink_groups(no);
            self.delete_failure_list(no);
            if let Some(sync) = self.syncs.get_mut(&no) {
                // Results of present leases will match nothing.
                sync.mark_all_unflushed();
                sync.reset_progress();
            }
            self.add_scans(no);
            self.mark_changed(no, now);
        }
    }
}
