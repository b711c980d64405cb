//! Slots: each polls for an assignment, executes it, and sends the result, one after the other.

use super::execute::{Context, Done, Job, Writers, entry_error};
use super::hand::{Grip, Hand, Stopped};
use super::heartbeat::Heart;
use super::preflight::preflight;
use super::prune::{Prune, prune};
use super::publish::Ending;
use super::scan::{Listing, Manner, Pages, ScanEnd, scan};
use super::tune::{Tuning, WINDOW};
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
const POLL_WAIT: Duration = Duration::from_secs(20);
/// A poll that took this share of its lease to arrive wants a heartbeat at once.
const LATE_SHARE: u32 = 4;
/// How soon a request that failed is sent again.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// A slot whose work met with a shortage of descriptors or memory asks for more only after this.
const SHORT_REST: Duration = Duration::from_secs(1);
/// How long a poll that was given up on may take to say whether it had got something.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What all slots share.
pub struct Slots {
    /// What executors act with.
    pub cx: Context,
    /// The master.
    pub client: Arc<MasterClient>,
    /// The heart.
    pub heart: Arc<Heart>,
    /// What is in hand.
    pub hand: Arc<Hand>,
    /// No more work is taken after this.
    pub stop: Shutdown,
    /// Numbers polls.
    pub polls: AtomicU64,
    /// How many slots ask for work.
    pub tuning: Tuning,
}

/// Posts the pages of one assignment.
struct Post<'a> {
    slots: &'a Slots,
    assignment: &'a Assignment,
}

impl Pages for Post<'_> {
    async fn post(&self, page: &ScanPage) -> Result<PageReply, String> {
        let Post { slots, assignment } = self;
        let (worker, id) = (&slots.cx.worker, assignment.assignment_id);
        let damage = slots.cx.damages.of(&assignment.request_id);
        let page = match damage.take_count() {
            0 => Cow::Borrowed(page),
            integrity_errors => Cow::Owned(ScanPage { integrity_errors, ..page.clone() }),
        };
        let posted = slots.insist(|| slots.client.page(worker, id, &page, &damage)).await;
        posted.map_err(|e| e.to_string())
    }
}

impl Slots {
    /// One slot of this number (from 0): works until it is told to stop, and ends what it has in hand.
    pub async fn work(self: Arc<Self>, slot: usize) {
        tokio::select! {
            () = self.heart.is_known() => {}
            () = self.stop.cancelled() => return,
        }
        while !self.stop.is_cancelled() {
            tokio::select! {
                () = self.tuning.turn(slot) => {}
                () = self.stop.cancelled() => return,
            }
            let number = self.polls.fetch_add(1, Ordering::Relaxed);
            let poll_id = format!("{}-{number}", self.heart.incarnation);
            if let Some((assignment, since)) = self.poll(&poll_id).await {
                self.execute(assignment, since).await;
            }
        }
    }

    /// Lets the number of slots follow what is moved, for ever.
    pub async fn tune(&self) {
        let mut windows = tokio::time::interval(WINDOW);
        loop {
            windows.tick().await;
            self.tuning.look(self.cx.limits.moved(), Instant::now());
        }
    }

    /// Asks for work until there is an answer, with the time at which it was asked.
    pub(super) async fn poll(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        let mut failures = 0;
        loop {
            let since = boottime();
            let answer = tokio::select! {
                answer = self.ask(POLL_WAIT, poll_id) => answer,
                () = self.stop.cancelled() => return self.last_word(poll_id).await,
            };
            let error = match answer {
                Ok(answer) => return answer.map(|assignment| (assignment, since)),
                Err(error) => error,
            };
            failures += 1;
            if !error.is_temporary() {
                // It may have forgotten us (a restart): the next heartbeat makes us known.
                self.heart.beat_now();
                if failures == 1 {
                    tracing::warn!("asking for work failed: {error}");
                }
            }
            let wait = error.retry_after().unwrap_or_else(|| AGAIN.delay(failures));
            tokio::select! {
                () = self.client.rest(wait) => {}
                () = self.stop.cancelled() => return self.last_word(poll_id).await,
            }
        }
    }

    async fn ask(&self, wait: Duration, id: &str) -> Result<Option<Assignment>, ClientError> {
        let incarnation = Some(self.heart.incarnation.as_str());
        self.client.poll(&self.cx.worker, wait, Some(id), incarnation).await
    }

    /// The agent stops while a poll is out. The master may have answered it already: the same poll
    /// brings the same lease, to be handed back instead of left to run out.
    async fn last_word(&self, poll_id: &str) -> Option<(Assignment, Duration)> {
        let since = boottime();
        let answer = tokio::time::timeout(LAST_WORD, self.ask(Duration::ZERO, poll_id)).await;
        answer.ok()?.ok()?.map(|assignment| (assignment, since))
    }

    /// Executes an assignment whose poll was sent at `since`, and sends its result.
    async fn execute(&self, assignment: Assignment, since: Duration) {
        let Some(grip) = self.hand.take(&assignment, since) else { return };
        let lease = Duration::from_secs(assignment.lease_seconds);
        let limited = self.cx.limits.begin(&assignment);
        if limited || boottime().saturating_sub(since) > lease / LATE_SHARE {
            self.heart.beat_now();
        }
        if self.stop.is_cancelled() {
            grip.hand_back();
        }
        let kind = assignment.task.kind();
        let (sync, task) = (assignment.request_id.clone(), assignment.task_id);
        let (attempt, id) = (assignment.attempt, assignment.assignment_id);
        tracing::debug!(%sync, %task, kind, attempt, assignment = %id, "begun");
        let _busy = assignment.task.sends_content().then(|| self.tuning.busy());
        let writers = Writers::default();
        let until = grip.until();
        let moved = grip.moved();
        let job =
            Job { cx: &self.cx, assignment: &assignment, writers: &writers, until: &until, moved };
        let done = tokio::select! {
            biased;
            why = grip.stopped() => {
                tracing::info!(%sync, %task, kind, ?why, "stopped");
                match why {
                    Stopped::HandedBack => Some(handed_back()),
                    // The master has given it to somebody else, or to nobody.
                    Stopped::Dropped | Stopped::Expired => None,
                }
            }
            done = self.run(job) => done,
        };
        let Some(mut done) = done else { return };
        let short = note_shortage(&mut done, kind, rlimits::detect_resource_exhaustion);
        let gone = |error: &FileError| error.class == ErrorClass::StorageGone;
        if done.report.failures.iter().any(gone) {
            // The master learns which storage path it is, and gives nothing more that needs it.
            self.heart.beat_now();
        }
        if let Some(message) = done.message.as_ref().filter(|_| !done.report.returned) {
            let cause = format_args!("{kind} failed: {message} (sync {sync})");
            warn_ratelimited!(cause, %sync, %task, kind, "failed: {message}");
        }
        done.report.writers = writers.list();
        done.report.integrity_errors = self.cx.damages.of(&assignment.request_id).take_count();
        self.send_result(&assignment, done, &grip).await;
        if short {
            self.heart.beat_now();
            tokio::select! {
                () = tokio::time::sleep(SHORT_REST) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Executes a task. `None`: the master knows already.
    async fn run(&self, job: Job<'_>) -> Option<Done> {
        let assignment = job.assignment;
        let manifest = if assignment.task.has_manifest() {
            let id = assignment.assignment_id;
            let damage = self.cx.damages.of(&assignment.request_id);
            match self.insist(|| self.client.manifest(&self.cx.worker, id, &damage)).await {
                Ok(bytes) => bytes,
                // Not ours any more.
                Err(e) if e.is_not_found() => return None,
                Err(e) => return Some(Done::failed(format!("cannot get the manifest: {e}"))),
            }
        } else {
            Vec::new()
        };
        if let Err(gone) = job.check_source_root().await {
            return Some(*gone);
        }
        match self.run_with(job, manifest).await {
            // What a walk found is with the master already, and was checked page by page.
            Ok(None) => None,
            Ok(Some(done)) => match job.check_source_root().await {
                Ok(()) => Some(done),
                // What was read is not what is found under the path: it is brought again.
                Err(gone) => {
                    let bytes_sent = done.report.bytes_sent;
                    let report = TaskReport { bytes_sent, ..gone.report };
                    Some(Done { report, ..*gone })
                }
            },
            Err(e) => Some(Done::failed(format!("the manifest is invalid: {e}"))),
        }
    }

    async fn run_with(
        &self,
        job: Job<'_>,
        manifest: Vec<u8>,
    ) -> Result<Option<Done>, crate::wire::manifest::ManifestError> {
        let batch = || Manifest::decode(&manifest);
        if job.assignment.options.dry_run && writes(&job.assignment.task) {
            let kind = job.assignment.task.kind();
            return Ok(Some(Done::failed(format!("a dry run changes nothing: no {kind} is done"))));
        }
        let done = match &job.assignment.task {
            TaskSpec::Scan { dir, cursor } => {
                let listing = Listing::Subtree { dir: dir.clone(), cursor: cursor.clone() };
                return Ok(self.scan(job, listing).await);
            }
            TaskSpec::List { start } => {
                let listing =
                    Listing::Names { list: FileListPart::decode(&manifest)?, start: *start };
                return Ok(self.scan(job, listing).await);
            }
            TaskSpec::Copy { .. } => copy::copy(job, batch()?, manifest.into()).await,
            TaskSpec::Range { offset, length, compare } => {
                range::range(job, batch()?, (*offset, *length), *compare).await
            }
            TaskSpec::Commit { range_length, chain, in_place } => {
                let (range_length, in_place) = (*range_length, *in_place);
                let ending = Ending { range_length, chain: &chain.0, in_place };
                publish::commit(job, batch()?, ending).await
            }
            TaskSpec::Discard => publish::discard(job, batch()?).await,
            TaskSpec::Prune { dir, cursor, apply } => {
                return Ok(self.prune(job, dir.clone(), cursor.clone(), *apply).await);
            }
            TaskSpec::CleanUp => publish::sweep(job).await,
            TaskSpec::Flush => publish::flush(job).await,
        };
        Ok(Some(done))
    }

    async fn scan(&self, job: Job<'_>, listing: Listing) -> Option<Done> {
        let found = job.source().await.and_then(|tree| Ok((tree, job.filter()?)));
        let (source, filter) = match found {
            Ok(found) => found,
            Err(done) => return Some(*done),
        };
        if listing.is_first()
            && let Err(error) = preflight(job, &source).await
        {
            let (message, error) = (error.to_string(), Some(error));
            return self.ended(job, ScanEnd::Failed { message, error });
        }
        let options = &job.assignment.options;
        let (links, recursive, uncut) = (options.links, options.recursive, options.dry_run);
        let there = self.cx.roots.tree(&job.assignment.destination_path);
        let destination = there.and_then(|tree| tree.root_inode());
        let by_data = job.cuts_by_data();
        let manner = Manner { filter, links, destination, recursive, uncut, by_data };
        let post = Post { slots: self, assignment: job.assignment };
        let digest = job.assignment.task_digest;
        self.ended(job, scan(source, listing, manner, job.chunk(), digest, &post).await)
    }

    async fn prune(
        &self,
        job: Job<'_>,
        dir: RelPath,
        cursor: Option<Cursor>,
        apply: bool,
    ) -> Option<Done> {
        let found = job.source().await.and_then(|tree| Ok((tree, job.filter()?)));
        let (source, filter) = match found {
            Ok(found) => found,
            Err(done) => return Some(*done),
        };
        let post = Post { slots: self, assignment: job.assignment };
        let end = prune(job, source, Prune { dir, cursor, apply, filter }, &post).await;
        self.ended(job, end)
    }

    /// What is to be said of a scan (or prune) beside its pages.
    fn ended(&self, job: Job<'_>, end: ScanEnd) -> Option<Done> {
        match end {
            ScanEnd::Reported => None,
            ScanEnd::Failed { message, error } => {
                let seen = |error: FileError| match error.worker_id {
                    Some(_) => error,
                    None => job.seen(error, &self.cx.worker),
                };
                let failures = error.map(seen).into_iter().collect();
                let report = TaskReport { failures, ..TaskReport::default() };
                Some(Done { report, ..Done::failed(message) })
            }
        }
    }

    /// Sends the same request until it is answered, or refused for good. It may be dropped.
    async fn insist<T, F>(&self, request: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut failures = 0;
        loop {
            match request().await {
                Err(error) if error.is_temporary() => {
                    failures += 1;
                    tracing::debug!("the master cannot be asked: {error}");
                    let wait = error.retry_after().unwrap_or_else(|| AGAIN.delay(failures));
                    self.client.rest(wait).await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a result until it is acknowledged. A late one does no harm: it counts, or matches
    /// nothing. Only the master's word that the assignment is void ends it before.
    async fn send_result(&self, assignment: &Assignment, done: Done, grip: &Grip) {
        let result = TaskResult {
            request_id: assignment.request_id.clone(),
            worker_id: self.cx.worker.clone(),
            success: done.success,
            message: done.message,
            assignment_id: Some(assignment.assignment_id),
            attempt: Some(assignment.attempt),
            task_digest: Some(assignment.task_digest),
            report: Some(done.report),
        };
        let dropped = async {
            // Whatever else stopped the work does not stop its result.
            while grip.why() != Some(Stopped::Dropped) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let damage = self.cx.damages.of(&assignment.request_id);
        let answer = tokio::select! {
            answer = self.insist(|| self.client.result(&result, &damage)) => answer,
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
fn note_shortage(
    done: &mut Done,
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
fn writes(task: &TaskSpec) -> bool {
    use TaskSpec::{CleanUp, Commit, Discard, Prune, Range};
    matches!(task, Range { .. } | Commit { .. } | Discard | Prune { apply: true, .. } | CleanUp)
}

fn handed_back() -> Done {
    let report = TaskReport { returned: true, ..TaskReport::default() };
    Done { report, ..Done::failed("the agent is stopping") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::task::Base64Bytes;

    /// The errors that a task ends with, where the host has no descriptor left, and whether the worker rests.
    fn noted(mut done: Done) -> (Vec<Option<String>>, bool) {
        let short =
            note_shortage(&mut done, "copy", || Some(("EMFILE", "no descriptor".to_owned())));
        (done.report.failures.into_iter().map(|failure| failure.errno).collect(), short)
    }

    #[test]
    fn a_shortage_of_the_host_is_the_error_of_a_task_that_failed_as_a_whole() {
        let emfile = || Some("EMFILE".to_owned());
        let blamed = |errno: &str| FileError {
            errno: Some(errno.to_owned()),
            ..entry_error(b"f", "open source", "failed")
        };
        assert_eq!(noted(Done::failed("it failed")), (vec![emfile()], true));
        assert_eq!(noted(Done::well(TaskReport::default())), (vec![], false));
        assert_eq!(noted(handed_back()), (vec![], false));
        let eio = Some("EIO".to_owned());
        assert_eq!(noted(Done::entry_failed(blamed("EIO"))), (vec![eio.clone()], false));
        assert_eq!(noted(Done::entry_failed(blamed("EMFILE"))), (vec![emfile()], true));
        let failed = Done { success: false, ..Done::entry_failed(blamed("EIO")) };
        assert_eq!(noted(failed), (vec![eio], false), "its own error says why");
        let mut without = Done::failed("it failed");
        assert!(!note_shortage(&mut without, "copy", || None));
        assert!(without.report.failures.is_empty());
    }

    #[test]
    fn only_tasks_that_change_the_destination_are_of_no_use_but_to_write() {
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
            assert_eq!(writes(&task), expected, "{task:?}");
        }
    }
}
