//! Pages and results. Each is believed only if it names a lease that is current, its worker and the
//! task's digest; it counts once, because the task is gone with it.

use super::checks::{failed_of, item_fits, plausible};
use super::phases::Failure;
use super::task::{Large, Task, TaskState};
use super::{NewTask, Now, Reply, State};
use crate::wire::problem::Problem;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{
    PageAction, PageReply, ResultOutcome, ResultReply, ScanPage, SyncResult, TaskReport, TaskSpec,
    WorkItem,
};
use crate::wire::{AssignmentId, Digest, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;

/// Ranges of one file that have a task at the same time.
const RANGES_AHEAD: usize = 32;
/// A file whose source changes under the copy is begun anew so often.
const MAX_RESTARTS: u32 = 5;
/// Subtrees that a scan is asked to give away at a time.
const MAX_SPAWN: u32 = 16;

fn stop() -> Reply {
    Reply::Page(PageReply { action: PageAction::Stop, spawn: 0 })
}

impl State {
    pub(super) fn page(
        &mut self,
        worker: &WorkerId,
        assignment: AssignmentId,
        page: ScanPage,
        now: Now,
    ) -> Reply {
        let Some(task) = self.held(worker, assignment) else { return stop() };
        let Some(lease) = task.lease() else { return stop() };
        if task.digest != page.task_digest || !task.is_scan() {
            return stop();
        }
        let (id, no, attempt) = (task.id, task.sync, task.attempt);
        if page.page.checked_add(1) == Some(lease.page) {
            // The reply to this page was lost: what it said counts already.
            return self.after_page(id);
        }
        if page.page != lease.page {
            return stop();
        }
        if let Err(why) = plausible(&page, &task.spec) {
            let detail = format!("a page of worker {worker} cannot be: {why}");
            let problem = Problem::new(422, "Unprocessable Content", "bad_page", detail);
            return Reply::Refused(Box::new(problem));
        }
        for item in page.work {
            self.add_work(no, item, 0, BTreeSet::new(), None);
        }
        for dir in page.spawn {
            self.add_task(NewTask::ready(no, TaskSpec::Scan { dir, cursor: None }), None);
        }
        if let Some(sync) = self.syncs.get_mut(&no) {
            for mut error in page.errors {
                error.worker_id.get_or_insert_with(|| worker.clone());
                error.attempt = error.attempt.max(attempt);
                sync.counters.files_total += 1;
                sync.counters.files_failed += 1;
                sync.record_error(error, 1);
            }
        }
        self.changed(no, now);
        let Some(next) = page.next else {
            self.drop_task(id);
            return Reply::Page(PageReply { action: PageAction::Done, spawn: 0 });
        };
        let lease_ms = self.settings.lease_ms;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.spec = next;
            if let TaskState::Leased(lease) = &mut task.state {
                lease.page += 1;
                lease.deadline_ms = now.mono_ms + lease_ms;
            }
            let key = task.key();
            self.put(key);
        }
        self.after_page(id)
    }

    /// Whether a scan shall go on.
    fn after_page(&mut self, id: TaskId) -> Reply {
        let Some(sync) = self.tasks.get(&id).and_then(|t| self.syncs.get(&t.sync)) else {
            return stop();
        };
        if self.outstanding(sync) < 1.0 {
            let ready = sync.tasks.iter().filter_map(|t| self.tasks.get(t));
            let ready = ready.filter(|t| t.at_source() && t.state == TaskState::Ready).count();
            let idle = self.idle_polls(sync).saturating_sub(ready);
            let spawn = u32::try_from(idle).unwrap_or(MAX_SPAWN).min(MAX_SPAWN);
            return Reply::Page(PageReply { action: PageAction::Continue, spawn });
        }
        if let Some(task) = self.tasks.get_mut(&id) {
            if let Some(lease) = task.lease() {
                self.leases.remove(lease);
            }
            // Going on later is not another try.
            task.attempt = task.attempt.saturating_sub(1);
            task.state = TaskState::Ready;
            let key = task.key();
            self.put(key);
        }
        Reply::Page(PageReply { action: PageAction::Hold, spawn: 0 })
    }

    /// Adds what a scan found, or what is to be tried again (`failures` > 0: it is counted already).
    pub(super) fn add_work(
        &mut self,
        no: SyncNo,
        item: WorkItem,
        failures: u32,
        tried: BTreeSet<WorkerId>,
        error: Option<String>,
    ) -> Option<TaskId> {
        let first = failures == 0;
        match item {
            WorkItem::Copy { manifest, files, dirs, bytes } => {
                if first && let Some(sync) = self.syncs.get_mut(&no) {
                    sync.counters.files_total += files;
                    sync.counters.dirs_total += dirs;
                    sync.counters.add_bytes_total(bytes);
                }
                let spec = TaskSpec::Copy { files, dirs, bytes };
                let new =
                    NewTask { failures, tried, last_error: error, ..NewTask::ready(no, spec) };
                Some(self.add_task(new, Some(manifest.0)))
            }
            WorkItem::Large { manifest, size, range_length, group: _ } => {
                if first && let Some(sync) = self.syncs.get_mut(&no) {
                    sync.counters.files_total += 1;
                    sync.counters.add_bytes_total(size);
                }
                self.add_large(no, manifest.0, size, range_length, 0);
                None
            }
        }
    }

    /// Adds a large file and its first ranges. Its total is counted by the caller.
    fn add_large(&mut self, no: SyncNo, manifest: Vec<u8>, size: u64, length: u64, restarts: u32) {
        // Lengths come from agents: keep the arithmetic safe and the count of ranges bounded.
        let least = crate::wire::task::range_length(size, 1 << 20);
        let range_length = length.clamp(1024, 1 << 62).next_power_of_two().max(least);
        let id = self.take_number();
        let large = Large {
            id,
            sync: no,
            size,
            range_length,
            blob: format!("m/{no}/{id}"),
            blob_bytes: manifest.len() as u64,
            manifest_digest: blake3::hash(&manifest).into(),
            next: 0,
            restarts,
            sent: 0,
            unhashed: false,
            done: Vec::new(),
            done_count: 0,
        };
        self.effects.push(super::Effect::PutBlob(large.blob.clone(), manifest));
        self.put(large.key());
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.blob_bytes += large.blob_bytes;
            sync.larges.insert(id, large);
        }
        self.more_ranges(no, id);
    }

    /// Keeps some range tasks of a large file ready; when all ranges are done, adds the commit.
    pub(super) fn more_ranges(&mut self, no: SyncNo, id: TaskId) {
        let Some(sync) = self.syncs.get(&no) else { return };
        let out = sync.tasks.iter().filter_map(|t| self.tasks.get(t));
        let mut out = out.filter(|t| t.large == Some(id)).count();
        let Some(large) = sync.larges.get(&id) else { return };
        let mut large = large.clone();
        let before = large.next;
        while out < RANGES_AHEAD && large.next < large.ranges() {
            let (offset, length) = large.range(large.next);
            self.add_task(
                NewTask::of_large(&large, TaskSpec::Range { offset, length, compare: false }),
                None,
            );
            large.next += 1;
            out += 1;
        }
        if out == 0 && large.done_count == large.ranges() {
            let mut chain = Vec::new();
            if !large.unhashed {
                chain = large.done.iter().flatten().flat_map(|d| d.0).collect();
            }
            let chain = crate::wire::task::Blob(chain);
            let spec =
                TaskSpec::Commit { range_length: large.range_length, chain, in_place: false };
            self.add_task(NewTask::of_large(&large, spec), None);
        }
        if large.next != before {
            self.put(large.key());
            if let Some(sync) = self.syncs.get_mut(&no) {
                sync.larges.insert(id, large);
            }
        }
    }

    pub(super) fn result(&mut self, result: SyncResult, now: Now) -> Reply {
        let named = result.assignment_id.is_some();
        let ack = |outcome: ResultOutcome| {
            let outcome = named.then_some(outcome);
            Reply::Result(ResultReply { status: "ack".to_owned(), outcome })
        };
        let task = match self.task_of(&result) {
            Ok(Some(task)) => task,
            Ok(None) => return ack(ResultOutcome::Stale),
            Err(problem) => return Reply::Refused(problem),
        };
        let wrong_attempt = result.attempt.is_some_and(|a| a != task.attempt);
        let wrong_digest = result.task_digest.is_some_and(|d| d != task.digest);
        if wrong_attempt || wrong_digest {
            return ack(ResultOutcome::Stale);
        }
        let id = task.id;
        let verified = result.task_digest.is_some();
        let report = match result.report {
            Some(report) => report,
            None if result.success => self.assumed(id),
            None => TaskReport::default(),
        };
        self.note_writers(id, &report);
        if report.handed_back {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.attempt = task.attempt.saturating_sub(1);
            }
            self.requeue(id, now);
        } else if result.success {
            self.succeeded(id, result.worker_id, report, verified, now);
        } else {
            let why = result.message.unwrap_or_else(|| "the agent gave no reason".to_owned());
            let failure = Failure { worker: result.worker_id, why, errors: report.failures };
            self.failed(id, failure, now);
        }
        ack(ResultOutcome::Applied)
    }

    /// The leased task that a result is about.
    fn task_of(&self, result: &SyncResult) -> Result<Option<&Task>, Box<Problem>> {
        if let Some(assignment) = result.assignment_id {
            // Not by the name: a sync that was deleted has none any more, and is still cleaned up.
            let named = |t: &&Task| {
                self.syncs.get(&t.sync).is_some_and(|sync| sync.id == result.request_id)
            };
            return Ok(self.held(&result.worker_id, assignment).filter(named));
        }
        let Some(no) = self.by_id.get(&result.request_id) else { return Ok(None) };
        let held: Vec<&Task> = self
            .leases
            .of(&result.worker_id)
            .filter_map(|id| self.tasks.get(&id))
            .filter(|t| t.sync == *no)
            .collect();
        match held.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            many => Err(Box::new(
                Problem::new(
                    409,
                    "Conflict",
                    "assignment_unclear",
                    format!(
                        "worker {} holds {} assignments of sync `{}`",
                        result.worker_id,
                        many.len(),
                        result.request_id
                    ),
                )
                .hinted("say which one in assignment_id"),
            )),
        }
    }

    /// What a bare success means: all of the task was done.
    fn assumed(&self, id: TaskId) -> TaskReport {
        match self.tasks.get(&id).map(|t| &t.spec) {
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

    /// Remembers who wrote: each of them flushes in the end.
    fn note_writers(&mut self, id: TaskId, report: &TaskReport) {
        let Some(no) = self.tasks.get(&id).map(|t| t.sync) else { return };
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        for worker in &report.wrote {
            let heard = || self.workers.known.get(worker).map(|k| k.said.boot_id.clone());
            // The first boot is kept: what was written under it is lost if there was another since.
            if let Some(boot) = sync.reach.get(worker).cloned().or_else(heard) {
                sync.writers.entry(worker.clone()).or_insert(boot);
            }
        }
    }

    fn succeeded(
        &mut self,
        id: TaskId,
        worker: WorkerId,
        report: TaskReport,
        verified: bool,
        now: Now,
    ) {
        let Some(task) = self.tasks.get(&id).cloned() else { return };
        let fits = match &task.spec {
            TaskSpec::Copy { files, dirs, .. } => failed_of(*files, *dirs, &report).is_some(),
            // It ends with its last page. A bare success is all that an agent of the guide can say.
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => !verified,
            _ => report.replace.as_ref().is_none_or(|item| item_fits(item).is_ok()),
        };
        if !fits {
            let why = "the agent's report does not add up to the task".to_owned();
            return self.failed(id, Failure { worker, why, errors: Vec::new() }, now);
        }
        if !verified && let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.counters.unverified += 1;
        }
        match &task.spec {
            TaskSpec::Copy { .. } => self.copied(&task, worker, report, now),
            TaskSpec::Range { offset, length, .. } => {
                self.range_done(&task, *offset, *length, worker, report, now);
            }
            TaskSpec::Commit { .. } => self.committed(&task, worker, report, now),
            TaskSpec::Scan { .. }
            | TaskSpec::List { .. }
            | TaskSpec::Prune { .. }
            | TaskSpec::Sweep
            | TaskSpec::Discard => {
                self.drop_task(id);
            }
            TaskSpec::Flush if !report.failures.is_empty() => {
                let why = "it could not be flushed".to_owned();
                return self.failed(id, Failure { worker, why, errors: report.failures }, now);
            }
            TaskSpec::Flush => {
                self.drop_task(id);
                if let (Some(bound), Some(sync)) = (&task.bound, self.syncs.get_mut(&task.sync)) {
                    sync.writers.remove(bound);
                }
            }
        }
        self.changed(task.sync, now);
    }

    fn copied(&mut self, task: &Task, worker: WorkerId, report: TaskReport, now: Now) {
        self.drop_task(task.id);
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            let counters = &mut sync.counters;
            counters.files_done += report.files_done;
            counters.files_skipped += report.files_skipped;
            counters.dirs_done += report.dirs_done;
            counters.bytes_done = counters.bytes_done.saturating_add(report.bytes_done);
            counters.bytes_skipped = counters.bytes_skipped.saturating_add(report.bytes_skipped);
        }
        if !report.failures.is_empty() {
            self.entries_failed(task, worker, report, now);
        }
    }

    /// Some entries of a batch failed: they are tried again as a batch of their own, or given up.
    fn entries_failed(&mut self, task: &Task, worker: WorkerId, report: TaskReport, now: Now) {
        let TaskSpec::Copy { files, dirs, .. } = task.spec else { return };
        let Some((failed_files, failed_dirs)) = failed_of(files, dirs, &report) else { return };
        let retry = match report.retry {
            Some(WorkItem::Copy { manifest, files, dirs, bytes })
                if (files, dirs) == (failed_files, failed_dirs) =>
            {
                Some(WorkItem::Copy { manifest, files, dirs, bytes })
            }
            _ => None,
        };
        let mut tried = task.tried.clone();
        tried.insert(worker.clone());
        let again = self.worth_another_try(task, &tried, &report.failures);
        if let (Some(item), true) = (retry, again) {
            let error = report.failures.first().map(|e| match e.path.0.is_empty() {
                true => e.message.clone(),
                false => format!("{}: {}", e.path, e.message),
            });
            let added = self.add_work(task.sync, item, task.failures + 1, tried, error);
            if let Some(id) = added {
                self.delay(id, now);
            }
            return;
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.counters.files_failed += failed_files;
            sync.counters.dirs_failed += failed_dirs;
            for mut error in report.failures {
                error.worker_id.get_or_insert_with(|| worker.clone());
                error.attempt = error.attempt.max(task.failures + 1);
                sync.record_error(error, 1);
            }
        }
    }

    fn range_done(
        &mut self,
        task: &Task,
        offset: u64,
        length: u64,
        worker: WorkerId,
        report: TaskReport,
        now: Now,
    ) {
        let Some(file) = task.large else { return };
        if let Some(error) = report.failures.first() {
            let failure = Failure { worker, why: error.message.clone(), errors: report.failures };
            return self.failed(task.id, failure, now);
        }
        if report.unchanged {
            return self.found_there(task, file, now);
        }
        if let Some(item) = report.replace {
            return self.replace_large(task, file, item, worker, now);
        }
        self.drop_task(task.id);
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        let Some(large) = sync.larges.get_mut(&file) else { return };
        let index = offset / large.range_length;
        large.done.resize(large.ranges() as usize, None);
        large.unhashed |= report.digest.is_none();
        large.done[index as usize] = Some(report.digest.unwrap_or(Digest([0; 32])));
        large.done_count += 1;
        large.sent = large.sent.saturating_add(length);
        sync.counters.bytes_done = sync.counters.bytes_done.saturating_add(length);
        let keys = [large.key(), large.value_key(index)];
        keys.into_iter().for_each(|key| self.put(key));
        self.more_ranges(task.sync, file);
    }

    /// The destination holds a large file already. Where somebody else brought it meanwhile, what we
    /// sent of it is not to be left there.
    fn found_there(&mut self, task: &Task, file: TaskId, now: Now) {
        let Some(sync) = self.syncs.get(&task.sync) else { return };
        let Some(large) = sync.larges.get(&file) else { return };
        let size = large.size;
        let mut ranges = sync.tasks.iter().filter_map(|id| self.tasks.get(id));
        let begun = large.sent > 0 || ranges.any(|t| t.large == Some(file) && t.attempt > 1);
        if begun {
            self.discard(task.sync, file, now);
        } else {
            self.remove_large(task.sync, file);
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.counters.files_skipped += 1;
            sync.counters.bytes_skipped = sync.counters.bytes_skipped.saturating_add(size);
        }
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
        let restarts =
            self.syncs.get(&task.sync).and_then(|s| s.larges.get(&file)).map_or(0, |l| l.restarts);
        if restarts >= MAX_RESTARTS {
            let message = format!("the source changed under the copy {} times", restarts + 1);
            let error = FileError {
                path: crate::wire::BytePath::default(),
                operation: "read source".to_owned(),
                errno: None,
                message: message.clone(),
                worker_id: Some(worker),
                attempt: restarts + 1,
                class: ErrorClass::Changed,
            };
            return self.give_up(task.id, &message, Some(error), now);
        }
        let old_size =
            self.syncs.get(&task.sync).and_then(|s| s.larges.get(&file)).map_or(0, |l| l.size);
        self.discard(task.sync, file, now);
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            // It is one file as before; only its bytes are others.
            sync.counters.bytes_total = sync.counters.bytes_total.saturating_sub(old_size);
            match item {
                WorkItem::Large { manifest, size, range_length, group: _ } => {
                    sync.counters.add_bytes_total(size);
                    self.add_large(task.sync, manifest.0, size, range_length, restarts + 1);
                }
                copy @ WorkItem::Copy { .. } => {
                    // Small now. It is counted anew by `add_work`.
                    sync.counters.files_total = sync.counters.files_total.saturating_sub(1);
                    self.add_work(task.sync, copy, 0, BTreeSet::new(), None);
                }
            }
        }
    }

    fn committed(&mut self, task: &Task, worker: WorkerId, report: TaskReport, now: Now) {
        if let (true, Some(file)) = (report.part_lost, task.large) {
            return self.send_again(task, file, report.failures.into_iter().next(), now);
        }
        if let Some(error) = report.failures.first() {
            let failure = Failure { worker, why: error.message.clone(), errors: report.failures };
            return self.failed(task.id, failure, now);
        }
        let Some(file) = task.large else { return };
        if self.remove_large(task.sync, file).is_some()
            && let Some(sync) = self.syncs.get_mut(&task.sync)
        {
            sync.counters.files_done += 1;
        }
    }

    /// The part file of a large file got lost: what was sent is void, all ranges are sent again.
    fn send_again(&mut self, task: &Task, file: TaskId, error: Option<FileError>, now: Now) {
        let large = self.syncs.get(&task.sync).and_then(|s| s.larges.get(&file)).cloned();
        let Some(mut large) = large else { return };
        if large.restarts >= MAX_RESTARTS {
            let why = format!("its part file was removed {} times", large.restarts + 1);
            return self.give_up(task.id, &why, error, now);
        }
        for (index, done) in large.done.iter().enumerate() {
            if done.is_some() {
                self.effects.push(super::Effect::Delete(large.value_key(index as u64)));
            }
        }
        let sent = std::mem::take(&mut large.sent);
        (large.next, large.done_count, large.unhashed) = (0, 0, false);
        large.done.clear();
        large.restarts += 1;
        self.put(large.key());
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.counters.bytes_done = sync.counters.bytes_done.saturating_sub(sent);
            sync.larges.insert(file, large);
        }
        self.drop_task(task.id);
        self.more_ranges(task.sync, file);
    }

    /// Forgets a large file with its tasks, manifest and range records.
    pub(super) fn remove_large(&mut self, no: SyncNo, file: TaskId) -> Option<Large> {
        let large = self.forget_large(no, file)?;
        self.effects.push(super::Effect::DeleteBlob(large.blob.clone()));
        Some(large)
    }

    /// … but not its manifest: a task that removes the part file takes it over.
    pub(super) fn forget_large(&mut self, no: SyncNo, file: TaskId) -> Option<Large> {
        let sync = self.syncs.get_mut(&no)?;
        let large = sync.larges.remove(&file)?;
        sync.blob_bytes = sync.blob_bytes.saturating_sub(large.blob_bytes);
        let tasks: Vec<TaskId> = sync.tasks.iter().copied().collect();
        for id in tasks {
            if self.tasks.get(&id).is_some_and(|t| t.large == Some(file)) {
                self.drop_task(id);
            }
        }
        self.effects.push(super::Effect::Delete(large.key()));
        for (index, done) in large.done.iter().enumerate() {
            if done.is_some() {
                self.effects.push(super::Effect::Delete(large.value_key(index as u64)));
            }
        }
        self.touched.insert(no);
        Some(large)
    }
}
