//! Slots: each polls for an assignment, executes it and sends the result, one after the other.

use super::concurrency::{ConcurrencyController, MEASUREMENT_WINDOW};
use super::heartbeat::Heartbeater;
use super::job::{AgentContext, Job, JobResult, TaskOutcome, Writers, run_blocking};
use super::lease_table::{AssignmentGuard, StopReason};
use super::pages::{PageSink, ScanEnd};
use super::preflight::check_roots;
use super::prune::{PruneSpec, prune_subtree};
use super::scan::{Listing, ScanOptions, scan_source};
use super::{copy, publish, range};
use crate::client::{ClientError, MasterClient};
use crate::data::ticket_verifier::boottime;
use crate::fs::WalkOptions;
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::rlimits;
use crate::util::shutdown::Shutdown;
use crate::wire::manifest::{FileListPart, Manifest, ManifestError};
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::task::{
    Assignment, PageReply, ResultOutcome, ScanPage, TaskReport, TaskResult, TaskSpec,
};
use rustix::io::Errno;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the master may hold a poll until there is work.
const MAX_POLL_WAIT: Duration = Duration::from_secs(20);
/// The reply to a poll that took this share of its lease is followed by a heartbeat at once.
const LATE_POLL_DIVISOR: u32 = 4;
const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// After a task that ran out of descriptors or memory, its slot polls again after this.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// For the repetition of a poll that a shutdown interrupted.
const LAST_POLL_TIMEOUT: Duration = Duration::from_secs(2);

/// What all slots share.
pub(super) struct Slots {
    pub(super) cx: Arc<AgentContext>,
    pub(super) client: MasterClient,
    pub(super) heartbeater: Heartbeater,
    pub(super) shutdown: Shutdown,
    pub(super) next_poll_number: AtomicU64,
    pub(super) concurrency: ConcurrencyController,
}

/// Posts the pages of one assignment to the master.
struct MasterPageSink<'a> {
    slots: &'a Slots,
    assignment: &'a Assignment,
}

impl PageSink for MasterPageSink<'_> {
    async fn post_page(&self, page: &ScanPage) -> Result<PageReply, String> {
        let MasterPageSink { slots, assignment } = self;
        let (worker, id) = (&slots.cx.worker_id, assignment.assignment_id);
        let corruption = slots.cx.corruption_counts.counter_for(&assignment.request_id);
        let page = match corruption.take_count() {
            0 => Cow::Borrowed(page),
            integrity_errors => Cow::Owned(ScanPage { integrity_errors, ..page.clone() }),
        };
        let posted =
            slots.retry(|| slots.client.send_scan_page(worker, id, &page, &corruption)).await;
        posted.map_err(|e| e.to_string())
    }
}

impl Slots {
    /// Runs the slot of this number (from 0) until the shutdown, and then until its task has ended.
    pub(super) async fn run_slot(self: Arc<Self>, slot: usize) {
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

    /// Adjusts the number of slots to the throughput. Never returns.
    pub(super) async fn adjust_concurrency(&self) {
        let mut windows = tokio::time::interval(MEASUREMENT_WINDOW);
        loop {
            windows.tick().await;
            self.concurrency.end_window(self.cx.limits.moved_bytes(), Instant::now());
        }
    }

    /// Polls until there is a reply or the shutdown; with the time at which the poll was sent.
    pub(super) async fn poll_for_work(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        tokio::select! {
            polled = self.poll_until_reply(poll_id) => polled,
            // The master may have answered the interrupted poll. The same poll id gets the same lease, which is
            // returned instead of expiring.
            () = self.shutdown.cancelled() => {
                let since = boottime();
                let repeated = self.send_poll(Duration::ZERO, poll_id);
                let reply = tokio::time::timeout(LAST_POLL_TIMEOUT, repeated).await;
                reply.ok()?.ok()?.map(|assignment| (assignment, since))
            }
        }
    }

    async fn poll_until_reply(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        let mut failures = 0;
        loop {
            let since = boottime();
            let error = match self.send_poll(MAX_POLL_WAIT, poll_id).await {
                Ok(reply) => return reply.map(|assignment| (assignment, since)),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_retryable() {
                // A master that restarted may not have registered this worker: a heartbeat does that.
                self.heartbeater.send_soon();
                if failures == 1 {
                    tracing::warn!("the request for work failed: {error}");
                }
            }
            self.back_off(&error, failures).await;
        }
    }

    async fn send_poll(&self, wait: Duration, id: &str) -> Result<Option<Assignment>, ClientError> {
        let incarnation = Some(self.heartbeater.incarnation.as_str());
        self.client.poll_assignment(&self.cx.worker_id, wait, Some(id), incarnation).await
    }

    async fn back_off(&self, error: &ClientError, failures: u32) {
        let delay = error.retry_after().unwrap_or_else(|| RETRY_BACKOFF.delay(failures));
        self.client.back_off(delay).await;
    }

    /// Executes an assignment that was requested at `since`, and sends its result.
    async fn execute_assignment(&self, assignment: Assignment, since: Duration) {
        let Some(guard) = self.cx.lease_table.insert(&assignment, since) else { return };
        let lease = Duration::from_secs(assignment.lease_seconds);
        let limited = self.cx.limits.apply_share(&assignment);
        if limited || boottime().saturating_sub(since) > lease / LATE_POLL_DIVISOR {
            self.heartbeater.send_soon();
        }
        if self.shutdown.is_cancelled() {
            guard.return_unstarted();
        }
        let kind = assignment.task.kind();
        let (sync, task) = (assignment.request_id.clone(), assignment.task_id);
        let (attempt, id) = (assignment.attempt, assignment.assignment_id);
        tracing::debug!(%sync, %task, kind, attempt, assignment = %id, "begun");
        let _busy = assignment.task.sends_content().then(|| self.concurrency.mark_busy());
        let writers = Writers::default();
        let job = Job {
            cx: &self.cx,
            assignment: &assignment,
            writers: &writers,
            deadline: guard.deadline(),
            ticket: guard.ticket(),
            byte_counter: guard.byte_counter(),
        };
        let outcome = tokio::select! {
            biased;
            why = guard.wait_stopped() => {
                tracing::info!(%sync, %task, kind, ?why, "stopped");
                // The master expects no result of a lease that expired or was revoked.
                (why == StopReason::Returned).then(returned)
            }
            outcome = self.run_task(job) => outcome.unwrap_or_else(|failed| Some(*failed)),
        };
        let Some(mut outcome) = outcome else { return };
        let short = report_shortage(&mut outcome, kind, rlimits::detect_resource_exhaustion);
        let is_gone = |error: &EntryError| error.class == ErrorClass::StorageGone;
        if outcome.report.failures.iter().any(is_gone) {
            // The heartbeat reports the storage path, and the master assigns nothing more that needs it.
            self.heartbeater.send_soon();
        }
        if let Some(message) = outcome.message.as_ref().filter(|_| !outcome.report.returned) {
            let cause = format_args!("{kind} failed: {message} (sync {sync})");
            warn_ratelimited!(cause, %sync, %task, kind, "failed: {message}");
        }
        outcome.report.writers = writers.worker_ids();
        outcome.report.integrity_errors = self.cx.corruption_counts.counter_for(&sync).take_count();
        self.send_result(&assignment, outcome, &guard).await;
        if short {
            self.heartbeater.send_soon();
            tokio::select! {
                () = tokio::time::sleep(SHORTAGE_PAUSE) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// `Ok(None)`: no result is sent.
    async fn run_task(&self, job: Job<'_>) -> JobResult<Option<TaskOutcome>> {
        let Assignment { task, assignment_id, request_id, .. } = job.assignment;
        // The file of the agent has the last word, whatever the task is.
        job.identity()?;
        let mut manifest = Vec::new();
        if task.has_manifest() {
            let corruption = self.cx.corruption_counts.counter_for(request_id);
            let get =
                || self.client.fetch_manifest(&self.cx.worker_id, *assignment_id, &corruption);
            manifest = match self.retry(get).await {
                Ok(bytes) => bytes,
                // The assignment is not valid any more.
                Err(e) if e.is_not_found() => return Ok(None),
                Err(e) => {
                    return Err(TaskOutcome::failed(format!("cannot get the manifest: {e}")).into());
                }
            };
        }
        job.check_source_root().await?;
        let outcome = self.dispatch_task(job, manifest).await;
        // The pages of a scan were checked one by one.
        let Some(outcome) = outcome.unwrap_or_else(|failed| Some(*failed)) else { return Ok(None) };
        // Content that was read from another directory does not count.
        job.check_source_root().await.map_err(|mut gone| {
            gone.report.bytes_sent = outcome.report.bytes_sent;
            gone
        })?;
        Ok(Some(outcome))
    }

    async fn dispatch_task(
        &self,
        job: Job<'_>,
        manifest: Vec<u8>,
    ) -> JobResult<Option<TaskOutcome>> {
        let batch = || Manifest::decode(&manifest).map_err(invalid_manifest);
        let task = &job.assignment.task;
        if job.assignment.options.dry_run && only_writes(task) {
            let why = format!("a dry run changes nothing: no {} is done", task.kind());
            return Err(TaskOutcome::failed(why).into());
        }
        if job.assignment.relay.is_some() && !can_be_relayed(task) {
            let why = format!("a relay sends batches and ranges: no {} is done there", task.kind());
            return Err(TaskOutcome::failed(why).into());
        }
        let outcome = match task {
            TaskSpec::Scan { dir, cursor } => {
                let listing = Listing::Subtree { dir: dir.clone(), cursor: cursor.clone() };
                return self.run_scan(job, listing).await;
            }
            TaskSpec::List { start } => {
                let list = FileListPart::decode(&manifest).map_err(invalid_manifest)?;
                return self.run_scan(job, Listing::Names { list, start: *start }).await;
            }
            TaskSpec::Prune { dir, cursor, apply } => {
                let filter = job.build_filter()?;
                let (dir, cursor, apply) = (dir.clone(), cursor.clone(), *apply);
                return self.run_prune(job, PruneSpec { dir, cursor, apply, filter }).await;
            }
            TaskSpec::Copy { .. } => copy::copy_batch(job, batch()?, manifest.into()).await,
            TaskSpec::Range { offset, length, compare } => {
                range::transfer_range(job, batch()?, (*offset, *length), *compare).await
            }
            TaskSpec::Commit { range_length, chain, in_place } => {
                publish::commit_file(job, batch()?, *range_length, &chain.0, *in_place).await
            }
            TaskSpec::Discard => publish::discard_parts(job, batch()?).await,
            TaskSpec::CleanUp => publish::clean_up(job).await,
            TaskSpec::Flush => publish::flush_destination(job).await,
        };
        outcome.map(Some)
    }

    async fn run_scan(&self, job: Job<'_>, listing: Listing) -> JobResult<Option<TaskOutcome>> {
        let (source, filter) = (job.open_source().await?, job.build_filter()?);
        if listing.starts_at_root()
            && let Err(error) = check_roots(job, &source).await
        {
            return Ok(ScanEnd::from(error).into_outcome(job));
        }
        let Assignment { options, destination_path, task_digest, .. } = job.assignment;
        // Under the path of the destination this host may have another storage.
        let destination = self.cx.roots.tree(destination_path).filter(|_| job.may_write_locally());
        let destination = match destination {
            Some(tree) => {
                let identity = source.identity().clone();
                let tree = tree.acting_as(identity.clone());
                run_blocking(&identity, "reading the destination", move || tree.root_inode())
                    .await?
            }
            None => None,
        };
        let walk = WalkOptions { filter, links: options.links, destination };
        let scan_options = ScanOptions { walk, recursive: options.recursive };
        let sink = MasterPageSink { slots: self, assignment: job.assignment };
        let builder = job.batch_builder();
        let end = scan_source(source, listing, scan_options, builder, *task_digest, &sink);
        Ok(end.await.into_outcome(job))
    }

    async fn run_prune(&self, job: Job<'_>, spec: PruneSpec) -> JobResult<Option<TaskOutcome>> {
        let source = job.open_source().await?;
        let sink = MasterPageSink { slots: self, assignment: job.assignment };
        Ok(prune_subtree(job, source, spec, &sink).await.into_outcome(job))
    }

    /// Repeats a request until the master accepts or permanently refuses it.
    async fn retry<T, F>(&self, request: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut failures = 0;
        loop {
            match request().await {
                Err(error) if error.is_retryable() => {
                    failures += 1;
                    tracing::debug!("a request to the master failed: {error}");
                    self.back_off(&error, failures).await;
                }
                reply => return reply,
            }
        }
    }

    /// Repeats a result until it is acknowledged or the master revokes the assignment. A late result does no harm:
    /// it counts, or matches no assignment.
    async fn send_result(
        &self,
        assignment: &Assignment,
        outcome: TaskOutcome,
        guard: &AssignmentGuard,
    ) {
        let result = TaskResult {
            request_id: assignment.request_id.clone(),
            worker_id: self.cx.worker_id.clone(),
            success: outcome.success,
            message: outcome.message,
            assignment_id: Some(assignment.assignment_id),
            attempt: Some(assignment.attempt),
            task_digest: Some(assignment.task_digest),
            report: Some(outcome.report),
        };
        let corruption = self.cx.corruption_counts.counter_for(&assignment.request_id);
        let reply = tokio::select! {
            reply = self.retry(|| self.client.send_result(&result, &corruption)) => reply,
            () = guard.wait_revoked() => return,
        };
        let (sync, task, attempt) = (&result.request_id, assignment.task_id, assignment.attempt);
        match reply {
            Ok(reply) if reply.outcome == Some(ResultOutcome::Stale) => {
                tracing::info!(%sync, %task, attempt, "late result ignored");
            }
            Ok(_) => tracing::debug!(%sync, %task, attempt, success = result.success, "counted"),
            Err(e) => tracing::error!(%sync, "a result was refused: {e}"),
        }
    }
}

/// Whether the task ran out of descriptors or memory. Where it failed as a whole and this host has such a shortage
/// now, the shortage becomes its error, so that it does not count against the files.
fn report_shortage(
    outcome: &mut TaskOutcome,
    kind: &str,
    shortage: impl FnOnce() -> Option<(Errno, String)>,
) -> bool {
    let failures = &mut outcome.report.failures;
    if !outcome.success
        && !outcome.report.returned
        && failures.is_empty()
        && let Some((errno, why)) = shortage()
    {
        let message = match &outcome.message {
            Some(message) => format!("{message}; {why}"),
            None => why,
        };
        failures.push(EntryError::new(b"", None, kind, message).with_errno(errno));
    }
    failures.iter().any(EntryError::is_resource_exhaustion)
}

/// Whether a dry run has no use for the task.
fn only_writes(task: &TaskSpec) -> bool {
    use TaskSpec::{CleanUp, Commit, Discard, Prune, Range};
    matches!(task, Range { .. } | Commit { .. } | Discard | Prune { apply: true, .. } | CleanUp)
}

/// Whether the content that the task sends may come from a copy instead of the source.
fn can_be_relayed(task: &TaskSpec) -> bool {
    matches!(task, TaskSpec::Copy { .. } | TaskSpec::Range { .. })
}

fn invalid_manifest(error: ManifestError) -> Box<TaskOutcome> {
    TaskOutcome::failed(format!("the manifest is invalid: {error}")).into()
}

fn returned() -> TaskOutcome {
    let report = TaskReport { returned: true, ..TaskReport::default() };
    TaskOutcome { report, ..TaskOutcome::failed("the agent is stopping") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::RelPath;
    use crate::wire::outcome::Side;
    use crate::wire::task::Base64Bytes;

    /// The errors of a task on a host without free descriptors, and whether the slot pauses.
    fn errnos_and_shortage(mut done: TaskOutcome) -> (Vec<Option<String>>, bool) {
        let short =
            report_shortage(&mut done, "copy", || Some((Errno::MFILE, "no descriptor".to_owned())));
        (done.report.failures.into_iter().map(|failure| failure.errno).collect(), short)
    }

    fn entry_failed(error: EntryError) -> TaskOutcome {
        TaskOutcome::succeeded(crate::agent::job::failure_report(error))
    }

    #[test]
    fn a_resource_shortage_of_the_host_is_the_error_of_a_task_that_failed_as_a_whole() {
        let emfile = || Some("EMFILE".to_owned());
        let failure = |errno: &str| EntryError {
            errno: Some(errno.to_owned()),
            ..EntryError::new(b"f", Side::Source, "open", "failed")
        };
        assert_eq!(errnos_and_shortage(TaskOutcome::failed("it failed")), (vec![emfile()], true));
        assert_eq!(
            errnos_and_shortage(TaskOutcome::succeeded(TaskReport::default())),
            (vec![], false)
        );
        assert_eq!(errnos_and_shortage(returned()), (vec![], false));
        let eio = Some("EIO".to_owned());
        assert_eq!(errnos_and_shortage(entry_failed(failure("EIO"))), (vec![eio.clone()], false));
        assert_eq!(errnos_and_shortage(entry_failed(failure("EMFILE"))), (vec![emfile()], true));
        let failed = TaskOutcome { success: false, ..entry_failed(failure("EIO")) };
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
