//! Failures of tasks: a task is retried, if possible on another worker, or fails.

use super::task::{Task, TaskState};
use super::{Now, State};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::units;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::FailedStep;
use crate::wire::task::{TaskReport, TaskSpec};
use crate::wire::{BytePath, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;
use std::time::Duration;

const RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

impl State {
    /// A task failed as a whole on `worker`, with the failed entry in `errors` if it is about one file: it is retried,
    /// if possible on another worker, or fails.
    pub(super) fn retry_or_fail_task(
        &mut self,
        id: TaskId,
        worker: &WorkerId,
        reason: String,
        errors: Vec<EntryError>,
        now: Now,
    ) {
        let Some(task) = self.record_attempt(id, worker, &reason, now) else { return };
        if self.pause_on_storage_errors(&task, &errors, now) {
            return self.requeue_after_backoff(id, now);
        }
        if task.hit_resource_shortage(&errors) {
            self.edit_task(id, |task| task.history.uncharged_retries += 1);
            return self.requeue_after_backoff(id, now);
        }
        if task.spec == TaskSpec::Discard && task.history.failures >= 3 {
            let what = "a part file could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", task.sync), sync = %task.sync, why = reason, "{what}");
            self.remove_task(id);
            return;
        }
        // A failed flush is final: the kernel reports a write error only once, and the next flush
        // would succeed without the data. A flush that was refused because the storage is gone did
        // not run.
        let tried = |error: &EntryError| error.class != ErrorClass::StorageGone;
        let final_flush = task.spec == TaskSpec::Flush && errors.iter().any(tried);
        let is_final = final_flush || self.is_already_present(&task);
        if is_final || !self.is_retry_useful(&task, &task.history.failed_on, &errors) {
            let mut error = errors.into_iter().next();
            if let Some(error) = &mut error {
                error.attribute(worker, task.history.failures + 1);
            }
            return self.fail_task(id, &reason, error, now);
        }
        self.edit_task(id, |task| task.history.failures += 1);
        self.requeue_after_backoff(id, now);
    }

    /// Records a failed attempt, whether or not it is charged.
    fn record_attempt(
        &mut self,
        id: TaskId,
        worker: &WorkerId,
        reason: &str,
        now: Now,
    ) -> Option<Task> {
        // It is repeated from the source.
        self.leave_unit(id);
        let task = self.tasks.get_mut(id)?;
        task.history.failed_on.insert(worker.clone());
        task.history.last_error = Some(reason.to_owned());
        let task = task.clone();
        if matches!(task.spec, TaskSpec::Prune { apply: true, .. })
            && let Some(deleter) = self.syncs.get_mut(task.sync).and_then(|s| s.deleter.as_mut())
        {
            deleter.has_failed = true;
            self.mark_changed(task.sync, now);
        }
        Some(task)
    }

    /// Whether a task failed only because no worker of the destination could be reached, and at least one of them has
    /// sent nothing since the first such failure: it may be restarting. After the heartbeat time-out it is not active,
    /// and gets no tasks. One that sends heartbeats all the same is charged for once between two of them.
    pub(super) fn is_destination_awaited(&self, id: TaskId, report: &TaskReport) -> bool {
        let Some(task) = self.tasks.get(id).filter(|task| task.may_retry_uncharged()) else {
            return false;
        };
        if report.unreachable.is_empty() || !report.failures.is_empty() {
            return false;
        }
        task.history.unreached_since_ms.is_none_or(|since| {
            let is_alive = |id| self.workers.get(id).is_some_and(|w| w.was_heard_since(since));
            !report.unreachable.iter().all(is_alive)
        })
    }

    /// Queues a task for which [`is_destination_awaited`](Self::is_destination_awaited) holds.
    pub(super) fn retry_when_reachable(
        &mut self,
        id: TaskId,
        worker: &WorkerId,
        reason: String,
        unreachable: &[WorkerId],
        now: Now,
    ) {
        let Some(task) = self.record_attempt(id, worker, &reason, now) else { return };
        // Failures of another process of a worker are not those of the one before.
        let is_other_process = |since: &u64| {
            let since_ms = |id| self.workers.get(id).map(|w| w.process_since_ms);
            unreachable.iter().filter_map(since_ms).any(|began| began > *since)
        };
        let since = task.history.unreached_since_ms.filter(|since| !is_other_process(since));
        self.edit_task(id, |task| {
            task.history.uncharged_retries += 1;
            task.history.unreached_since_ms = Some(since.unwrap_or(now.mono_ms));
        });
        self.requeue_after_backoff(id, now);
    }

    /// A worker is back: tasks that failed because it could not be reached are not delayed any longer.
    pub(super) fn end_waits_for_destination(&mut self, worker: &WorkerId) {
        let Some(worker) = self.workers.get(worker).filter(|w| w.is_active) else { return };
        let syncs = self.tasks.syncs().filter_map(|no| self.syncs.get(no));
        let served = syncs.filter(|sync| self.workers.serves(worker, sync.destination()));
        let waiting = |task: &&Task| {
            task.history.unreached_since_ms.is_some()
                && matches!(task.state, TaskState::Delayed { .. })
        };
        let tasks = served.flat_map(|sync| self.tasks.of_sync(sync.no)).filter(waiting);
        let tasks: Vec<TaskId> = tasks.map(|task| task.id).collect();
        self.outbox.request_dispatch_if(!tasks.is_empty());
        tasks.into_iter().for_each(|id| self.store_task_state(id, TaskState::Ready));
    }

    /// Records the outcome or the expired lease of a task that is still leased.
    pub(super) fn judge_worker(&mut self, id: TaskId, worker: &WorkerId, failed: bool, now: Now) {
        let Some(task) = self.tasks.get(id) else { return };
        let (no, at_source) = (task.sync, task.runs_at_source());
        self.workers.health.record_outcome(worker, failed, now);
        if !failed || self.workers.health.quarantine_reason(worker).is_some() {
            return;
        }
        let Some(sync) = self.syncs.get(no) else { return };
        let peers = self.capable_workers(sync, sync.place(at_source));
        let peers: Vec<WorkerId> = peers.map(|w| w.last_heartbeat.worker_id.clone()).collect();
        // Tasks that were reserved for other workers may be for none now.
        self.outbox
            .request_dispatch_if(self.workers.health.quarantine_if_worse(worker, &peers, now));
    }

    /// Whether a retry can help: a permanent error only on a worker that has not tried yet, a
    /// transient one for a number of times, a task that failed as a whole (a peer is unavailable)
    /// for twice as many.
    pub(super) fn is_retry_useful(
        &self,
        task: &Task,
        tried: &BTreeSet<WorkerId>,
        errors: &[EntryError],
    ) -> bool {
        let most = self.settings.max_retries;
        if errors.is_empty() {
            return task.history.failures < 2 * most;
        }
        let may_pass = |e: &EntryError| {
            use ErrorClass::{Changed, Damaged, StorageGone, Transient};
            // What a relay could not send is sent from the source.
            matches!(e.class, Transient | Changed | StorageGone | Damaged)
                || e.side == Some(Side::Relay)
        };
        if errors.iter().any(may_pass) {
            return task.history.failures < most;
        }
        let blocked = errors.iter().any(|e| e.class == ErrorClass::Permanent);
        blocked && self.has_untried_worker(task, tried)
    }

    fn has_untried_worker(&self, task: &Task, tried: &BTreeSet<WorkerId>) -> bool {
        let Some(sync) = self.syncs.get(task.sync) else { return false };
        let place = sync.place(task.runs_at_source());
        self.capable_workers(sync, place).any(|w| !tried.contains(&w.last_heartbeat.worker_id))
    }

    /// Queues a failed task: at once if another worker can take it, else after a delay.
    pub(super) fn requeue_after_backoff(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.deprioritised_until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        let Some(task) = self.tasks.get(id) else { return };
        let elsewhere = self.has_untried_worker(task, &task.history.failed_on);
        // Spread tasks that failed together; the delay of a task is deterministic.
        let seed = task.id.0 ^ task.sync.0.rotate_left(32);
        let wait = RETRY_BACKOFF.jittered_delay(
            (task.history.failures + task.history.uncharged_retries).saturating_sub(1),
            seed,
        );
        let wait = u64::try_from(wait.as_millis());
        let until_ms = now.mono_ms.saturating_add(wait.unwrap_or(u64::MAX));
        let state = if elsewhere { TaskState::Ready } else { TaskState::Delayed { until_ms } };
        self.store_task_state(id, state);
    }

    pub(super) fn fail_task(&mut self, id: TaskId, why: &str, error: Option<EntryError>, now: Now) {
        let Some(task) = self.tasks.get(id).cloned() else { return };
        let worker = task.lease().map(|l| l.worker.clone());
        let what = match &task.spec {
            TaskSpec::Scan { dir, .. } => format!("list `{dir}`"),
            TaskSpec::Prune { dir, .. } => format!("delete in `{dir}`"),
            TaskSpec::CleanUp => "remove the anchors of hard links".to_owned(),
            TaskSpec::List { .. } => "look up listed names".to_owned(),
            TaskSpec::Copy { .. } if task.history.entry.is_some() => "copy".to_owned(),
            TaskSpec::Copy { files, dirs, .. } => {
                format!("copy {}", units::pluralize(files + dirs, "entry", "entries"))
            }
            other => other.kind().to_owned(),
        };
        let path = match &task.spec {
            TaskSpec::Scan { dir, .. } | TaskSpec::Prune { dir, .. } => {
                BytePath(dir.as_bytes().to_vec())
            }
            _ => task
                .history
                .entry
                .clone()
                .or_else(|| Some(self.large_file(task.sync, task.large_file?)?.path.clone()))
                .unwrap_or_default(),
        };
        let is_unreported = error.is_none();
        let error = error.unwrap_or_else(|| EntryError {
            worker_id: worker,
            attempt: task.attempt,
            ..EntryError::new(&path.0, None, &what, why)
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
        let Some(sync) = self.syncs.get_mut(task.sync) else { return };
        if !sync.is_active() {
            let what = "a file of an ended sync could not be removed";
            warn_ratelimited!(format_args!("{what} (sync {})", sync.id), sync = %sync.id, why, "{what}");
            return;
        }
        // The last worker may have left anchors that were not reported.
        sync.needs_clean_up |=
            is_unreported && sync.keeps_hard_links() && task.may_leave_link_anchors();
        let occupied = sync.can_defer_blocked(std::slice::from_ref(&error));
        match &task.spec {
            TaskSpec::Copy { files, dirs, .. } => {
                let count = sync.count_failed_entries(*files, *dirs);
                self.record_failure(task.sync, error, count, manifest);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } if occupied => {
                self.defer_blocked_entries(task.sync, 1, vec![error]);
            }
            TaskSpec::Range { .. } | TaskSpec::Commit { .. } => {
                let count = sync.count_failed_entries(1, 0);
                self.record_failure(task.sync, error, count, None);
            }
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => {
                for no in self.scan_receivers(task.sync) {
                    self.record_failed_scan(no, &task.spec, error.clone(), now);
                }
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
                let error = EntryError { class: ErrorClass::Permanent, ..error };
                self.record_failed_step(task.sync, step, error);
            }
            TaskSpec::Discard => {}
        }
        self.mark_changed(task.sync, now);
    }

    /// A scan of a sync, or of its group, failed.
    fn record_failed_scan(&mut self, no: SyncNo, spec: &TaskSpec, error: EntryError, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let counts = sync.counts_entries();
        let step = if counts { FailedStep::List } else { FailedStep::ReadBack };
        let unfit = error.class == ErrorClass::InvalidRequest;
        let of_root = match spec {
            TaskSpec::Scan { dir, cursor } => dir.is_root() && cursor.is_none(),
            // An unusable root is no error of a listed name.
            _ => unfit || error.path.0.is_empty() && error.class == ErrorClass::Permanent,
        };
        sync.source_root_failed |= counts && of_root;
        // A listed name or directory must exist: its absence is an error.
        let class = if unfit { error.class } else { ErrorClass::Permanent };
        self.record_failed_step(no, step, EntryError { class, ..error });
        self.mark_changed(no, now);
    }

    /// Keeps the manifest of a failed batch, if the error names no entry of it.
    fn take_failed_manifest(&mut self, id: TaskId, error: &EntryError) -> Option<String> {
        let task = self.tasks.get(id).filter(|_| error.path.0.is_empty())?;
        let TaskSpec::Copy { files, dirs, .. } = task.spec else { return None };
        let (sync, entries) = (self.syncs.get(task.sync)?, files.saturating_add(dirs));
        let max_entries = self.settings.max_failed_entries;
        let has_room = sync.failure_list.has_room_for_batch(entries, max_entries);
        if entries == 0 || !sync.is_active() || !has_room {
            return None;
        }
        self.tasks.get_mut(id)?.manifest_key.take()
    }
}
