//! Slots: each polls for an assignment, executes it, and sends the result, one after the other.

use super::concurrency::{ConcurrencyController, MEASUREMENT_WINDOW};
use super::heartbeat::Heartbeater;
use super::job::{ExecutorContext, Job, TaskOutcome, Writers, entry_error};
use super::lease_table::{AssignmentGuard, LeaseTable, StopReason};
use super::preflight::check_roots;
use super::prune::{PruneSpec, prune_subtree};
use super::publish::CommitSpec;
use super::scan::{Listing, PageSink, ScanEnd, ScanOptions, scan_source};
use super::{copy, publish, range};
use crate::client::{ClientError, MasterClient};
use crate::data::gate::boottime;
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::rlimits;
use crate::util::shutdown::Shutdown;
use crate::wire::RelPath;
use crate::wire::manifest::{FileListPart, Manifest};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{
    Assignment, Cursor, PageReply, ResultOutcome, ScanPage, TaskReport, TaskResult, TaskSpec,
};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the master may let a poll wait for work.
const MAX_POLL_WAIT: Duration = Duration::from_secs(20);
/// A poll that took this share of its lease to arrive wants a heartbeat at once.
const LATE_POLL_DIVISOR: u32 = 4;
/// How soon a request that failed is sent again.
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// A slot whose work met with a shortage of descriptors or memory asks for more only after this.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// How long a poll that was given up on may take to say whether it had got something.
const LAST_POLL_TIMEOUT: Duration = Duration::from_secs(2);

/// What all slots share.
pub struct Slots {
    /// What executors act with.
    pub cx: ExecutorContext,
    /// The master.
    pub client: Arc<MasterClient>,
    /// The heart.
    pub heartbeater: Arc<Heartbeater>,
    /// What is in hand.
    pub lease_table: Arc<LeaseTable>,
    /// No more work is taken after this.
    pub shutdown: Shutdown,
    /// Numbers polls.
    pub next_poll_number: AtomicU64,
    /// How many slots ask for work.
    pub concurrency: ConcurrencyController,
}

/// Posts the pages of one assignment.
struct MasterPageSink<'a> {
    slots: &'a Slots,
    assignment: &'a Assignment,
}

impl PageSink for MasterPageSink<'_> {
    async fn post_page(&self, page: &ScanPage) -> Result<PageReply, String> {
        let MasterPageSink { slots, assignment } = self;
        let (worker, id) = (&slots.cx.worker_id, assignment.assignment_id);
        let damage = slots.cx.corruption_counts.counter_for(&assignment.request_id);
        let page = match damage.take_count() {
            0 => Cow::Borrowed(page),
            integrity_errors => Cow::Owned(ScanPage { integrity_errors, ..page.clone() }),
        };
        let posted = slots.retry(|| slots.client.send_scan_page(worker, id, &page, &damage)).await;
        posted.map_err(|e| e.to_string())
    }
}

impl Slots {
    /// One slot of this number (from 0): works until it is told to stop, and ends what it has in hand.
    pub async fn run_slot(self: Arc<Self>, slot: usize) {
        tokio::select! {
            () = self.heartbeater.wait_registered() => {}
            () = self.shutdown.cancelled() => return,
        }
        while !self.shutdown.is_cancelled() {
            tokio::select! {
                () = self.concurrency.wait_allowed(slot) => {}
                () = self.shutdown.cancelled() => return,
            }
            let number = self.next_poll_number.fetch_add(1, Ordering::Relaxed);
            let poll_id = format!("{}-{number}", self.heartbeater.incarnation);
            if let Some((assignment, since)) = self.poll_for_work(&poll_id).await {
                self.execute_assignment(assignment, since).await;
            }
        }
    }

    /// Lets the number of slots follow what is moved, for ever.
    pub async fn adjust_concurrency(&self) {
        let mut windows = tokio::time::interval(MEASUREMENT_WINDOW);
        loop {
            windows.tick().await;
            self.concurrency.end_window(self.cx.limits.moved_bytes(), Instant::now());
        }
    }

    /// Asks for work until there is an answer, with the time at which it was asked.
    pub(super) async fn poll_for_work(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        let mut failures = 0;
        loop {
            let since = boottime();
            let answer = tokio::select! {
                answer = self.send_poll(MAX_POLL_WAIT, poll_id) => answer,
                () = self.shutdown.cancelled() => return self.poll_before_exit(poll_id).await,
            };
            let error = match answer {
                Ok(answer) => return answer.map(|assignment| (assignment, since)),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_retryable() {
                // It may have forgotten us (a restart): the next heartbeat makes us known.
                self.heartbeater.send_soon();
                if failures == 1 {
                    tracing::warn!("asking for work failed: {error}");
                }
            }
            let wait = error.retry_after().unwrap_or_else(|| RETRY_BACKOFF.delay(failures));
            tokio::select! {
                () = self.client.back_off(wait) => {}
                () = self.shutdown.cancelled() => return self.poll_before_exit(poll_id).await,
            }
        }
    }

    async fn send_poll(&self, wait: Duration, id: &str) -> Result<Option<Assignment>, ClientError> {
        let incarnation = Some(self.heartbeater.incarnation.as_str());
        self.client.poll_assignment(&self.cx.worker_id, wait, Some(id), incarnation).await
    }

    /// The agent stops while a poll is out. The master may have answered it already: the same poll
    /// brings the same lease, to be handed back instead of left to run out.
    async fn poll_before_exit(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        let since = boottime();
        let answer =
            tokio::time::timeout(LAST_POLL_TIMEOUT, self.send_poll(Duration::ZERO, poll_id)).await;
        answer.ok()?.ok()?.map(|assignment| (assignment, since))
    }

    /// Executes an assignment whose poll was sent at `since`, and sends its result.
    async fn execute_assignment(&self, assignment: Assignment, since: Duration) {
        let Some(grip) = self.lease_table.insert(&assignment, since) else { return };
        let lease = Duration::from_secs(assignment.lease_seconds);
        let limited = self.cx.limits.apply_share(&assignment);
        if limited || boottime().saturating_sub(since) > lease / LATE_POLL_DIVISOR {
            self.heartbeater.send_soon();
        }
        if self.shutdown.is_cancelled() {
            grip.return_unstarted();
        }
        let kind = assignment.task.kind();
        let (sync, task) = (assignment.request_id.clone(), assignment.task_id);
        let (attempt, id) = (assignment.attempt, assignment.assignment_id);
        tracing::debug!(%sync, %task, kind, attempt, assignment = %id, "begun");
        let _busy = assignment.task.sends_content().then(|| self.concurrency.mark_busy());
        let writers = Writers::default();
        let until = grip.deadline();
        let moved = grip.byte_counter();
        let job = Job {
            cx: &self.cx,
            assignment: &assignment,
            writers: &writers,
            deadline: &until,
            byte_counter: moved,
        };
        let done = tokio::select! {
            biased;
            why = grip.wait_stopped() => {
                tracing::info!(%sync, %task, kind, ?why, "stopped");
                match why {
                    StopReason::Returned => Some(returned()),
                    // The master has given it to somebody else, or to nobody.
                    StopReason::Revoked | StopReason::Expired => None,
                }
            }
            done = self.run_task(job) => done,
        };
        let Some(mut done) = done else { return };
        let short = report_shortage(&mut done, kind, rlimits::detect_resource_exhaustion);
        let gone = |error: &FileError| error.class == ErrorClass::StorageGone;
        if done.report.failures.iter().any(gone) {
            // The master learns which storage path it is, and gives nothing more that needs it.
            self.heartbeater.send_soon();
        }
        if let Some(message) = done.message.as_ref().filter(|_| !done.report.returned) {
            let cause = format_args!("{kind} failed: {message} (sync {sync})");
            warn_ratelimited!(cause, %sync, %task, kind, "failed: {message}");
        }
        done.report.writers = writers.worker_ids();
        done.report.integrity_errors =
            self.cx.corruption_counts.counter_for(&assignment.request_id).take_count();
        self.send_result(&assignment, done, &grip).await;
        if short {
            self.heartbeater.send_soon();
            tokio::select! {
                () = tokio::time::sleep(SHORTAGE_PAUSE) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// Executes a task. `None`: the master knows already.
    async fn run_task(&self, job: Job<'_>) -> Option<TaskOutcome> {
        let assignment = job.assignment;
        let manifest = if assignment.task.has_manifest() {
            let id = assignment.assignment_id;
            let damage = self.cx.corruption_counts.counter_for(&assignment.request_id);
            match self.retry(|| self.client.fetch_manifest(&self.cx.worker_id, id, &damage)).await {
                Ok(bytes) => bytes,
                // Not ours any more.
                Err(e) if e.is_not_found() => return None,
                Err(e) => {
                    return Some(TaskOutcome::failed(format!("cannot get the manifest: {e}")));
                }
            }
        } else {
            Vec::new()
        };
        if let Err(gone) = job.check_source_root().await {
            return Some(*gone);
        }
        match self.dispatch_task(job, manifest).await {
            // What a walk found is with the master already, and was checked page by page.
            Ok(None) => None,
            Ok(Some(done)) => match job.check_source_root().await {
                Ok(()) => Some(done),
                // What was read is not what is found under the path: it is brought again.
                Err(gone) => {
                    let bytes_sent = done.report.bytes_sent;
                    let report = TaskReport { bytes_sent, ..gone.report };
                    Some(TaskOutcome { report, ..*gone })
                }
            },
            Err(e) => Some(TaskOutcome::failed(format!("the manifest is invalid: {e}"))),
        }
    }

    async fn dispatch_task(
        &self,
        job: Job<'_>,
        manifest: Vec<u8>,
    ) -> Result<Option<TaskOutcome>, crate::wire::manifest::ManifestError> {
        let batch = || Manifest::decode(&manifest);
        if job.assignment.options.dry_run && only_writes(&job.assignment.task) {
            let kind = job.assignment.task.kind();
            return Ok(Some(TaskOutcome::failed(format!(
                "a dry run changes nothing: no {kind} is done"
            ))));
        }
        let done = match &job.assignment.task {
            TaskSpec::Scan { dir, cursor } => {
                let listing = Listing::Subtree { dir: dir.clone(), cursor: cursor.clone() };
                return Ok(self.run_scan(job, listing).await);
            }
            TaskSpec::List { start } => {
                let listing =
                    Listing::Names { list: FileListPart::decode(&manifest)?, start: *start };
                return Ok(self.run_scan(job, listing).await);
            }
            TaskSpec::Copy { .. } => copy::copy_batch(job, batch()?, manifest.into()).await,
            TaskSpec::Range { offset, length, compare } => {
                range::transfer_range(job, batch()?, (*offset, *length), *compare).await
            }
            TaskSpec::Commit { range_length, chain, in_place } => {
                let (range_length, in_place) = (*range_length, *in_place);
                let ending = CommitSpec { range_length, chaining_values: &chain.0, in_place };
                publish::commit_file(job, batch()?, ending).await
            }
            TaskSpec::Discard => publish::discard_parts(job, batch()?).await,
            TaskSpec::Prune { dir, cursor, apply } => {
                return Ok(self.run_prune(job, dir.clone(), cursor.clone(), *apply).await);
            }
            TaskSpec::CleanUp => publish::clean_up(job).await,
            TaskSpec::Flush => publish::flush_destination(job).await,
        };
        Ok(Some(done))
    }

    async fn run_scan(&self, job: Job<'_>, listing: Listing) -> Option<TaskOutcome> {
        let found = job.open_source().await.and_then(|tree| Ok((tree, job.build_filter()?)));
        let (source, filter) = match found {
            Ok(found) => found,
            Err(done) => return Some(*done),
        };
        if listing.starts_at_root()
            && let Err(error) = check_roots(job, &source).await
        {
            let (message, error) = (error.to_string(), Some(error));
            return self.finish_scan(job, ScanEnd::Failed { message, error });
        }
        let options = &job.assignment.options;
        let (links, recursive, uncut) = (options.links, options.recursive, options.dry_run);
        let there = self.cx.roots.tree(&job.assignment.destination_path);
        let destination = there.and_then(|tree| tree.root_inode());
        let by_data = job.splits_by_data();
        let manner = ScanOptions {
            filter,
            links,
            destination,
            recursive,
            without_ranges: uncut,
            ranges_by_data: by_data,
        };
        let post = MasterPageSink { slots: self, assignment: job.assignment };
        let digest = job.assignment.task_digest;
        self.finish_scan(
            job,
            scan_source(source, listing, manner, job.chunk_bytes(), digest, &post).await,
        )
    }

    async fn run_prune(
        &self,
        job: Job<'_>,
        dir: RelPath,
        cursor: Option<Cursor>,
        apply: bool,
    ) -> Option<TaskOutcome> {
        let found = job.open_source().await.and_then(|tree| Ok((tree, job.build_filter()?)));
        let (source, filter) = match found {
            Ok(found) => found,
            Err(done) => return Some(*done),
        };
        let post = MasterPageSink { slots: self, assignment: job.assignment };
        let end = prune_subtree(job, source, PruneSpec { dir, cursor, apply, filter }, &post).await;
        self.finish_scan(job, end)
    }

    /// What is to be said of a scan (or prune) beside its pages.
    fn finish_scan(&self, job: Job<'_>, end: ScanEnd) -> Option<TaskOutcome> {
        match end {
            ScanEnd::Reported => None,
            ScanEnd::Failed { message, error } => {
                let seen = |error: FileError| match error.worker_id {
                    Some(_) => error,
                    None => job.with_observer(error, &self.cx.worker_id),
                };
                let failures = error.map(seen).into_iter().collect();
                let report = TaskReport { failures, ..TaskReport::default() };
                Some(TaskOutcome { report, ..TaskOutcome::failed(message) })
            }
        }
    }

    /// Sends the same request until it is answered, or refused for good. It may be dropped.
    async fn retry<T, F>(&self, request: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut failures = 0;
        loop {
            match request().await {
                Err(error) if error.is_retryable() => {
                    failures += 1;
                    tracing::debug!("the master cannot be asked: {error}");
                    let wait = error.retry_after().unwrap_or_else(|| RETRY_BACKOFF.delay(failures));
                    self.client.back_off(wait).await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a result until it is acknowledged. A late one does no harm: it counts, or matches
    /// nothing. Only the master's word that the assignment is void ends it before.
    async fn send_result(
        &self,
        assignment: &Assignment,
        done: TaskOutcome,
        grip: &AssignmentGuard,
    ) {
        let result = TaskResult {
            request_id: assignment.request_id.clone(),
            worker_id: self.cx.worker_id.clone(),
            success: done.success,
            message: done.message,
            assignment_id: Some(assignment.assignment_id),
            attempt: Some(assignment.attempt),
            task_digest: Some(assignment.task_digest),
            report: Some(done.report),
        };
        let dropped = async {
            // Whatever else stopped the work does not stop its result.
            while grip.stop_reason() != Some(StopReason::Revoked) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let damage = self.cx.corruption_counts.counter_for(&assignment.request_id);
        let answer = tokio::select! {
            answer = self.retry(|| self.client.send_result(&result, &damage)) => answer,
            () = dropped => return,
        };
        let (task, attempt) = (assignment.task_id, assignment.attempt);
        match answer {
            Ok(reply) if reply.outcome == Some(ResultOutcome::Stale) => {
                tracing::info!(sync = %result.request_id, %task, attempt, "late result ignored");
            }
            Ok(_) => {
                tracing::debug!(sync = %result.request_id, %task, attempt, success = result.success, "counted")
            }
            Err(e) => tracing::error!(sync = %result.request_id, "a result was refused: {e}"),
        }
    }
}

/// Whether a task met with a host that is out of descriptors or memory. One that failed as a whole while
/// it is our own that is says so: the files in it are not to blame.
fn report_shortage(
    done: &mut TaskOutcome,
    kind: &str,
    shortage: impl FnOnce() -> Option<(&'static str, String)>,
) -> bool {
    let failures = &mut done.report.failures;
    if !done.success
        && !done.report.returned
        && failures.is_empty()
        && let Some((errno, why)) = shortage()
    {
        let message = done.message.as_ref().map_or(why.clone(), |said| format!("{said}; {why}"));
        let errno = Some(errno.to_owned());
        failures.push(FileError { errno, ..entry_error(b"", kind, message) });
    }
    failures.iter().any(FileError::is_resource_exhaustion)
}

/// Whether a task is of no use but to write.
fn only_writes(task: &TaskSpec) -> bool {
    use TaskSpec::{CleanUp, Commit, Discard, Prune, Range};
    matches!(task, Range { .. } | Commit { .. } | Discard | Prune { apply: true, .. } | CleanUp)
}

fn returned() -> TaskOutcome {
    let report = TaskReport { returned: true, ..TaskReport::default() };
    TaskOutcome { report, ..TaskOutcome::failed("the agent is stopping") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::task::Base64Bytes;

    /// The errors that a task ends with, where the host has no descriptor left, and whether the worker rests.
    fn errnos_and_shortage(mut done: TaskOutcome) -> (Vec<Option<String>>, bool) {
        let short =
            report_shortage(&mut done, "copy", || Some(("EMFILE", "no descriptor".to_owned())));
        (done.report.failures.into_iter().map(|failure| failure.errno).collect(), short)
    }

    #[test]
    fn a_resource_shortage_of_the_host_is_the_error_of_a_task_that_failed_as_a_whole() {
        let emfile = || Some("EMFILE".to_owned());
        let blamed = |errno: &str| FileError {
            errno: Some(errno.to_owned()),
            ..entry_error(b"f", "open source", "failed")
        };
        assert_eq!(errnos_and_shortage(TaskOutcome::failed("it failed")), (vec![emfile()], true));
        assert_eq!(
            errnos_and_shortage(TaskOutcome::succeeded(TaskReport::default())),
            (vec![], false)
        );
        assert_eq!(errnos_and_shortage(returned()), (vec![], false));
        let eio = Some("EIO".to_owned());
        assert_eq!(
            errnos_and_shortage(TaskOutcome::entry_failed(blamed("EIO"))),
            (vec![eio.clone()], false)
        );
        assert_eq!(
            errnos_and_shortage(TaskOutcome::entry_failed(blamed("EMFILE"))),
            (vec![emfile()], true)
        );
        let failed = TaskOutcome { success: false, ..TaskOutcome::entry_failed(blamed("EIO")) };
        assert_eq!(errnos_and_shortage(failed), (vec![eio], false), "its own error says why");
        let mut without = TaskOutcome::failed("it failed");
        assert!(!report_shortage(&mut without, "copy", || None));
        assert!(without.report.failures.is_empty());
    }

    #[test]
    fn tasks_that_change_the_destination_are_write_only() {
        let dir = RelPath::root;
        let chain = || Base64Bytes(Vec::new());
        for (task, expected) in [
            (TaskSpec::Scan { dir: dir(), cursor: None }, false),
            (TaskSpec::List { start: 0 }, false),
            (TaskSpec::Copy { files: 1, dirs: 1, bytes: 1 }, false),
            (TaskSpec::Range { offset: 0, length: 1, compare: false }, true),
            (TaskSpec::Commit { range_length: 1, chain: chain(), in_place: false }, true),
            (TaskSpec::Discard, true),
            (TaskSpec::Prune { dir: dir(), cursor: None, apply: false }, false),
            (TaskSpec::Prune { dir: dir(), cursor: None, apply: true }, true),
            (TaskSpec::CleanUp, true),
            (TaskSpec::Flush, false),
        ] {
            assert_eq!(only_writes(&task), expected, "{task:?}");
        }
    }
}
