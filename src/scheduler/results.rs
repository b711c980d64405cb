//! Results. A result is accepted only if it names a current lease, its worker and the digest of the
//! task. It counts once, because the task is removed.

use super::phase::PhaseState;
use super::task::Task;
use super::validate::{are_actions_possible, count_failed_entries, validate_item};
use super::{Now, Reply, State};
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::task::{ResultOutcome, ResultReply, TaskReport, TaskResult, TaskSpec, WorkItem};
use crate::wire::{TaskId, WorkerId};

/// Whether an error may be the fault of the worker that reports it. A full disk, a changed source and storage that is
/// not served are not.
fn is_worker_fault(error: &EntryError) -> bool {
    !error.is_no_space() && matches!(error.class, ErrorClass::Transient | ErrorClass::Permanent)
}

impl State {
    pub(super) fn handle_result(&mut self, result: TaskResult, now: Now) -> Result<Reply, Problem> {
        let named = result.assignment_id.is_some();
        let ack = |outcome: ResultOutcome| {
            let outcome = named.then_some(outcome);
            Ok(Reply::Result(ResultReply { status: "ack".to_owned(), outcome }))
        };
        let is_current = |task: &&Task| {
            result.attempt.is_none_or(|attempt| attempt == task.attempt)
                && result.task_digest.is_none_or(|digest| digest == task.digest)
        };
        let Some(task) = self.find_result_task(&result)?.filter(is_current) else {
            return ack(ResultOutcome::Stale);
        };
        let (id, no) = (task.id, task.sync);
        let process = task.lease().is_some_and(|lease| lease.incarnation.is_some());
        let verified = process && result.task_digest.is_some() && result.report.is_some();
        let report = match result.report {
            Some(report) => report,
            None if result.success => self.assumed_report(id),
            None => TaskReport::default(),
        };
        self.record_work(id, &report, now);
        self.handle_damaged_copies(id, &result.worker_id, &report.failures, now);
        if report.returned {
            // A worker that wrote may have left something: the next attempt must not be the first.
            let unbegun = report.writers.is_empty();
            if let Some(task) = self.tasks.get_mut(id).filter(|_| unbegun) {
                task.attempt = task.attempt.saturating_sub(1);
            }
            self.requeue_task(id, now);
            return ack(ResultOutcome::Applied);
        }
        self.mark_progress(no, now);
        // Unusable storage is not the fault of the worker.
        let gone = report.failures.iter().any(|e| e.class == ErrorClass::StorageGone);
        let failed = !result.success && !gone || report.failures.iter().any(is_worker_fault);
        if !gone {
            self.resume_if_storage_works(id, &result.worker_id, &report.writers, now);
        }
        self.judge_worker(id, &result.worker_id, failed, now);
        if result.success {
            self.complete_task(id, &result.worker_id, report, verified, now);
            return ack(ResultOutcome::Applied);
        }
        let why = result.message.unwrap_or_else(|| "the agent gave no reason".to_owned());
        if !report.unreachable.is_empty() {
            self.stop_relays_of(no, now);
        }
        if self.is_destination_awaited(id, &report) {
            self.retry_when_reachable(id, &result.worker_id, why, &report.unreachable, now);
            return ack(ResultOutcome::Applied);
        }
        if let Some(task) = self.tasks.get_mut(id) {
            task.history.unreached_since_ms =
                (!report.unreachable.is_empty()).then_some(now.mono_ms);
        }
        self.retry_or_fail_task(id, &result.worker_id, why, report.failures, now);
        ack(ResultOutcome::Applied)
    }

    /// The leased task of a result.
    fn find_result_task(&self, result: &TaskResult) -> Result<Option<&Task>, Problem> {
        if let Some(assignment) = result.assignment_id {
            // Not by the id: a deleted sync has none any more and is still cleaned up.
            let named =
                |t: &&Task| self.syncs.get(t.sync).is_some_and(|sync| sync.id == result.request_id);
            return Ok(self.leased_task(&result.worker_id, assignment).filter(named));
        }
        let Some(sync) = self.syncs.find(&result.request_id) else { return Ok(None) };
        let held: Vec<&Task> = self
            .tasks
            .held_by(&result.worker_id)
            .filter(|t| t.sync == sync.no)
            // An agent that reports an incarnation names its assignments; this result is from
            // another program.
            .filter(|t| t.lease().is_some_and(|lease| lease.incarnation.is_none()))
            .collect();
        match held.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            many => {
                let (worker, sync) = (&result.worker_id, &result.request_id);
                let detail =
                    format!("worker {worker} holds {} assignments of sync `{sync}`", many.len());
                let problem = Problem::new(ProblemCode::AssignmentAmbiguous, detail);
                Err(problem.with_hint("say which one in assignment_id"))
            }
        }
    }

    /// The report of a bare success: all of the task was done.
    fn assumed_report(&self, id: TaskId) -> TaskReport {
        match self.tasks.get(id).map(|t| &t.spec) {
            Some(TaskSpec::Copy { files, dirs, bytes }) => TaskReport {
                files_done: *files,
                dirs_done: *dirs,
                bytes_done: *bytes,
                ..TaskReport::default()
            },
            Some(TaskSpec::Range { length, .. }) => {
                TaskReport { bytes_done: *length, ..TaskReport::default() }
            }
            _ => TaskReport::default(),
        }
    }

    /// Records what a report implies whatever the outcome: writers (each must flush), anchors to
    /// clean up, bytes sent.
    fn record_work(&mut self, id: TaskId, report: &TaskReport, now: Now) {
        let Some(no) = self.tasks.get(id).map(|t| t.sync) else { return };
        self.count_integrity_errors(no, report.integrity_errors);
        let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active() && !s.is_dry_run()) else {
            return;
        };
        for worker in &report.writers {
            let destination = &sync.request.destination_path;
            let heard = || self.workers.get(worker).map(|k| k.boot_and_root(destination));
            // The first boot id is kept: writes under it are lost after a reboot.
            if let Some(boot) = sync.possible_writers.get(worker).cloned().or_else(heard) {
                sync.unflushed_writers.add(worker, boot.as_ref());
            }
        }
        sync.needs_clean_up |= report.needs_clean_up && sync.phase < PhaseState::CleanUp;
        let counters = &mut sync.counters;
        counters.sent_bytes = counters.sent_bytes.saturating_add(report.bytes_sent);
        counters.cloned_bytes = counters.cloned_bytes.saturating_add(report.bytes_cloned);
        self.mark_changed(no, now);
    }

    fn complete_task(
        &mut self,
        id: TaskId,
        worker: &WorkerId,
        report: TaskReport,
        verified: bool,
        now: Now,
    ) {
        let Some(task) = self.tasks.get(id).cloned() else { return };
        let readback = self.syncs.get(task.sync).is_some_and(|s| s.phase == PhaseState::Readback);
        let fits = match &task.spec {
            // An agent that sends no digest has read nothing back.
            TaskSpec::Copy { .. } | TaskSpec::Scan { .. } | TaskSpec::List { .. }
                if readback && !verified =>
            {
                false
            }
            TaskSpec::Copy { files, dirs, .. } => {
                count_failed_entries(*files, *dirs, &report).is_some()
                    && are_actions_possible(&report, files.saturating_add(*dirs))
            }
            // It ends with its last page. A bare success is all that a guide agent can report.
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => !verified,
            // Such an agent has deleted nothing.
            TaskSpec::Prune { .. } => false,
            _ => {
                report.replacement.as_ref().is_none_or(|item| validate_item(item).is_ok())
                    && are_actions_possible(&report, 1)
            }
        };
        if !fits {
            let why = "the agent's report does not match the task".to_owned();
            return self.retry_or_fail_task(id, worker, why, Vec::new(), now);
        }
        if !verified {
            let all = self.scan_receivers(task.sync);
            all.into_iter().for_each(|no| self.count_unverified(no));
        }
        match &task.spec {
            TaskSpec::Copy { .. } => self.complete_batch(&task, worker, report, now),
            TaskSpec::Range { offset, length, .. } => {
                self.complete_range(&task, (*offset, *length), worker, report, now);
            }
            TaskSpec::Commit { .. } => self.complete_commit(&task, worker, report, now),
            TaskSpec::Flush | TaskSpec::CleanUp if !report.failures.is_empty() => {
                let why = format!("the {} failed", task.spec.kind());
                return self.retry_or_fail_task(id, worker, why, report.failures, now);
            }
            TaskSpec::Scan { .. }
            | TaskSpec::List { .. }
            | TaskSpec::Prune { .. }
            | TaskSpec::CleanUp
            | TaskSpec::Discard
            | TaskSpec::Flush => {
                self.remove_task(id);
                if let (Some(bound), Some(sync)) = (&task.pinned_to, self.syncs.get_mut(task.sync))
                {
                    sync.unflushed_writers.remove(bound);
                }
            }
        }
        self.mark_changed(task.sync, now);
    }

    fn complete_batch(&mut self, task: &Task, worker: &WorkerId, mut report: TaskReport, now: Now) {
        self.remove_task(task.id);
        self.share_copied_batch(task, &report);
        if report.bytes_done > 0 && report.failures.iter().all(|e| !e.is_no_space()) {
            self.resume_after_write(task.sync, now);
        }
        let Some(sync) = self.syncs.get_mut(task.sync) else { return };
        let counters = &mut sync.counters;
        if sync.phase == PhaseState::Readback {
            counters.verified_files = counters.verified_files.saturating_add(report.files_skipped);
            counters.repaired_files = counters.repaired_files.saturating_add(report.files_done);
        } else if sync.phase == PhaseState::CopyBlocked {
            sync.count_copied_blocked(&report);
        } else {
            let kept = report.bytes_kept.min(report.bytes_done);
            counters.files_done += report.files_done;
            counters.files_skipped += report.files_skipped;
            counters.dirs_done += report.dirs_done;
            counters.bytes_done = counters.bytes_done.saturating_add(report.bytes_done);
            counters.bytes_skipped = counters.bytes_skipped.saturating_add(report.bytes_skipped);
            counters.kept_bytes = counters.kept_bytes.saturating_add(kept);
            counters.add_actions(&report.actions);
            sync.add_metadata_warnings(std::mem::take(&mut report.warnings));
        }
        self.record_files(task.sync, std::mem::take(&mut report.records));
        if !report.failures.is_empty() {
            self.retry_or_fail_entries(task, worker, report, now);
        }
    }

    /// Entries of a batch failed: they are retried as a batch of their own, or fail.
    fn retry_or_fail_entries(
        &mut self,
        task: &Task,
        worker: &WorkerId,
        mut report: TaskReport,
        now: Now,
    ) {
        let TaskSpec::Copy { files, dirs, .. } = task.spec else { return };
        let Some((failed_files, failed_dirs)) = count_failed_entries(files, dirs, &report) else {
            return;
        };
        if let Some(sync) = self.syncs.get(task.sync)
            && sync.can_defer_blocked(&report.failures)
        {
            report.failures.iter_mut().for_each(|error| error.attribute(worker, 0));
            return self.defer_blocked_entries(task.sync, failed_files, report.failures);
        }
        let failed = (failed_files, failed_dirs);
        let retry = report.retry.filter(
            |item| matches!(item, WorkItem::Copy { files, dirs, .. } if (*files, *dirs) == failed),
        );
        let mut history = task.history.clone();
        history.failed_on.insert(worker.clone());
        history.unreached_since_ms = None;
        let waits = self.pause_on_storage_errors(task, &report.failures, now);
        let met_shortage = !waits && task.hit_resource_shortage(&report.failures);
        let is_charged = !waits && !met_shortage;
        let again = !is_charged || self.is_retry_useful(task, &history.failed_on, &report.failures);
        // A full disk or a lack of descriptors is not charged to the task.
        history.failures += u32::from(is_charged);
        history.uncharged_retries += u32::from(met_shortage);
        if let (Some(item), true) = (retry, again) {
            history.last_error = report.failures.first().map(|e| match e.path.0.is_empty() {
                true => e.to_string(),
                false => format!("{}: {e}", e.path),
            });
            if let Some(id) = self.add_work_item(task.sync, item, Some(history)) {
                self.requeue_after_backoff(id, now);
            }
            return;
        }
        if let Some(sync) = self.syncs.get_mut(task.sync) {
            sync.count_failed_entries(failed_files, failed_dirs);
        }
        for mut error in report.failures {
            error.attribute(worker, task.history.failures + 1);
            self.record_failure(task.sync, error, 1, None);
        }
    }
}
