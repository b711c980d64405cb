//! What all executors share: what they act with, whom they send to, what they report.

use super::corruption_count::CorruptionCounts;
use super::limits::SendLimits;
use crate::data::{Deadline, Destination, Local, Peers, Roots, SendError, TicketVerifier};
use crate::fs::{Filter, FsError, Target, Tree};
use crate::util::rate::{Limiters, RateLimiter};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::HashMode;
use crate::wire::sync::FileError;
use crate::wire::task::{Assignment, TaskReport, TaskSpec};
use crate::wire::{BytePath, WorkerId};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A peer whose connection breaks under a request is tried once more in the same assignment: the
/// other side may just have restarted. One that can't be reached is not.
const MAX_TRIES_PER_WORKER: u32 = 2;

/// What executors act with.
pub struct ExecutorContext {
    /// Our own name.
    pub worker_id: WorkerId,
    /// What we may send.
    pub limits: Arc<SendLimits>,
    /// What was damaged on the way.
    pub corruption_counts: CorruptionCounts,
    /// Our storage.
    pub roots: Arc<Roots>,
    /// What tickets are checked by.
    pub ticket_verifier: Arc<TicketVerifier>,
    /// The other agents.
    pub peers: Arc<Peers>,
    /// Large files of the source are read past the page cache, where that can be.
    pub direct_io: bool,
}

/// What became of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskOutcome {
    /// Whether the task is done, failed entries or not.
    pub success: bool,
    /// A sentence.
    pub message: Option<String>,
    /// The counts; `wrote` is added later.
    pub report: TaskReport,
}

impl TaskOutcome {
    /// A task that is done.
    pub fn succeeded(report: TaskReport) -> Self {
        TaskOutcome { success: true, message: None, report }
    }

    /// A task of which nothing counts.
    pub fn failed(message: impl Into<String>) -> Self {
        TaskOutcome { message: Some(message.into()), ..TaskOutcome::default() }
    }

    /// A task of one entry, which failed.
    pub fn entry_failed(error: FileError) -> Self {
        TaskOutcome::succeeded(TaskReport { failures: vec![error], ..TaskReport::default() })
    }
}

/// The workers that wrote (or may have written) for an assignment. It outlives an executor that is
/// stopped: what they wrote wants a flush all the same.
#[derive(Default)]
pub struct Writers(Mutex<BTreeMap<WorkerId, bool>>);

impl Writers {
    fn lock_workers(&self) -> MutexGuard<'_, BTreeMap<WorkerId, bool>> {
        self.0.lock()
    }

    /// `worker` is about to be asked to write.
    pub fn mark_requested(&self, worker: &WorkerId) {
        self.lock_workers().entry(worker.clone()).or_insert(false);
    }

    /// It has written, or may have.
    pub fn mark_wrote(&self, worker: &WorkerId) {
        self.lock_workers().insert(worker.clone(), true);
    }

    /// It was not reached, or refused: it has not written this time.
    pub fn remove_if_unwritten(&self, worker: &WorkerId) {
        self.lock_workers().retain(|w, wrote| *wrote || w != worker);
    }

    /// All that have written, or were asked to and have not answered.
    pub fn worker_ids(&self) -> Vec<WorkerId> {
        self.lock_workers().keys().cloned().collect()
    }
}

/// One assignment being executed.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What to act with.
    pub cx: &'a ExecutorContext,
    /// What was assigned.
    pub assignment: &'a Assignment,
    /// Who wrote.
    pub writers: &'a Writers,
    /// Until when it may be worked on.
    pub deadline: &'a Deadline,
    /// Counts the content bytes that are moved.
    pub byte_counter: &'a Arc<RateLimiter>,
}

impl Job<'_> {
    /// At most this much goes into a batch, in bytes.
    pub fn chunk_bytes(&self) -> u64 {
        u64::from(self.assignment.chunk_size_mb.max(1)) << 20
    }

    /// What limits and counts the content that is sent.
    fn limiters(&self) -> Limiters {
        self.cx.limits.limiters_for(&self.assignment.request_id).with(self.byte_counter.clone())
    }

    /// Whether files are cut by their data ([`BatchBuilder::ranges_by_data`](super::batch::Cutter::by_data)): holes are hashed
    /// only where digests of files are wanted.
    pub fn splits_by_data(&self) -> bool {
        self.assignment.options.write_rules().hash_mode() == HashMode::SkipZeros
    }

    /// Whether the task may change anything at the destination. What may not is no writer's.
    fn may_write(&self) -> bool {
        let counts = matches!(self.assignment.task, TaskSpec::Prune { apply: false, .. });
        !counts && !self.assignment.options.dry_run
    }

    /// `worker` is about to be asked to write.
    fn mark_requested(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.mark_requested(worker);
        }
    }

    /// `worker` has written, or may have.
    pub fn mark_wrote(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.mark_wrote(worker);
        }
    }

    /// The source, where links in its path lead, provided that we hold it.
    ///
    /// # Errors
    /// A failed task.
    pub async fn open_source(&self) -> Result<Tree, Box<TaskOutcome>> {
        let path = &self.assignment.source_path;
        let Some(tree) = self.find_source_tree() else {
            let worker = &self.cx.worker_id;
            let why = format!("worker {worker} has no storage path that holds {path}");
            return Err(Box::new(TaskOutcome::failed(why)));
        };
        let preserve = self.assignment.options.preserve;
        let tree = tree.preserving(preserve).with_direct_io(self.cx.direct_io);
        match tokio::task::spawn_blocking(move || tree.resolve_base_links()).await {
            Ok(Ok(tree)) => Ok(tree),
            Ok(Err(error)) => Err(Box::new(self.fail_with(&error))),
            Err(e) => {
                Err(Box::new(TaskOutcome::failed(format!("reading the source panicked: {e}"))))
            }
        }
    }

    fn find_source_tree(&self) -> Option<Tree> {
        let tree = self.cx.roots.tree(&self.assignment.source_path)?;
        let expected = self.assignment.source_root.as_ref();
        let assigned = expected.is_none_or(|root| *root == tree.root_id());
        Some(tree.for_assigned_root(assigned))
    }

    /// Whether the storage path of the source still leads to the root that is open, where the task reads the
    /// source.
    ///
    /// # Errors
    /// A failed task of which nothing counts.
    pub async fn check_source_root(&self) -> Result<(), Box<TaskOutcome>> {
        let task = &self.assignment.task;
        let reads = match task {
            TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Copy { .. } => true,
            TaskSpec::Range { .. } | TaskSpec::Prune { .. } => true,
            TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::CleanUp | TaskSpec::Flush => {
                false
            }
        };
        let Some(tree) = self.find_source_tree().filter(|_| reads) else { return Ok(()) };
        match tokio::task::spawn_blocking(move || tree.check_root()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(gone)) => Err(Box::new(self.fail_with(&gone))),
            Err(e) => {
                Err(Box::new(TaskOutcome::failed(format!("reading the source panicked: {e}"))))
            }
        }
    }

    /// A failed task, with the error of our own storage that made it fail.
    pub fn fail_with(&self, error: &FsError) -> TaskOutcome {
        let error = self.with_observer(error.to_file_error(), &self.cx.worker_id);
        let message = error.to_string();
        let report = TaskReport { failures: vec![error], ..TaskReport::default() };
        TaskOutcome { report, ..TaskOutcome::failed(message) }
    }

    /// What of the source is left out.
    ///
    /// # Errors
    /// A failed task, with what is wrong with the filter.
    pub fn build_filter(&self) -> Result<Arc<Filter>, Box<TaskOutcome>> {
        let filter = Filter::cached(&self.assignment.options.filter);
        filter.map_err(|e| Box::new(TaskOutcome::failed(e.to_string())))
    }

    /// The destination, provided that we hold it and the ticket lets us.
    ///
    /// # Errors
    /// A failed task.
    pub fn open_target(&self) -> Result<Target, Box<TaskOutcome>> {
        let admitted = self.cx.roots.authorize(&self.cx.ticket_verifier, &self.assignment.ticket);
        admitted.map(|(_, target)| target).map_err(|e| Box::new(TaskOutcome::failed(e.to_string())))
    }

    /// `error` with who saw it and when.
    pub fn with_observer(&self, error: FileError, by: &WorkerId) -> FileError {
        let worker = if is_source_error(&error) { &self.cx.worker_id } else { by };
        FileError { worker_id: Some(worker.clone()), attempt: self.assignment.attempt, ..error }
    }

    /// Whom to send to, the best first; see [`DestinationPicker::pick_next`].
    pub fn destination_picker(&self) -> DestinationPicker<'_> {
        DestinationPicker { job: *self, failed_tries: BTreeMap::new(), last_error: None }
    }
}

/// Goes through the destinations of an assignment.
pub struct DestinationPicker<'a> {
    job: Job<'a>,
    failed_tries: BTreeMap<WorkerId, u32>,
    last_error: Option<String>,
}

impl DestinationPicker<'_> {
    /// The next to try: this host itself where it holds the destination, else the least busy of the
    /// pool. `None` when all failed. It counts as a writer until it [failed](Choice::failed).
    pub fn pick_next(&mut self) -> Option<Destination> {
        let Job { cx, assignment, .. } = self.job;
        if cx.roots.tree(&assignment.destination_path).is_some()
            && !self.failed_tries.contains_key(&cx.worker_id)
        {
            match cx.roots.authorize(&cx.ticket_verifier, &assignment.ticket) {
                Ok((claims, target)) => {
                    self.job.mark_requested(&cx.worker_id);
                    let local = Local::new(target, claims, cx.peers.pool().clone());
                    let local = local.with_limiters(self.job.limiters());
                    let local = local
                        .with_deadline(self.job.deadline)
                        .with_cloning(!assignment.options.no_clone);
                    return Some(Destination::Local { worker: cx.worker_id.clone(), local });
                }
                Err(refused) => {
                    self.failed_tries.insert(cx.worker_id.clone(), MAX_TRIES_PER_WORKER);
                    self.last_error = Some(refused.to_string());
                }
            }
        }
        let mut out: BTreeSet<WorkerId> = self
            .failed_tries
            .iter()
            .filter(|(_, n)| **n >= MAX_TRIES_PER_WORKER)
            .map(|(w, _)| w.clone())
            .collect();
        out.insert(cx.worker_id.clone());
        let member = cx.peers.choose(&assignment.destination_workers, &out)?;
        self.job.mark_requested(&member.worker_id);
        let rules = assignment.options.write_rules();
        let peer = cx.peers.peer(member, &assignment.ticket, &rules);
        let peer = peer.with_limiters(self.job.limiters()).with_deadline(self.job.deadline);
        Some(Destination::Remote(
            peer.with_damage_counter(cx.corruption_counts.counter_for(&assignment.request_id)),
        ))
    }

    /// Says that `worker` failed with `error`.
    pub fn record_failure(&mut self, worker: &WorkerId, error: &SendError) {
        let (sync, task) = (&self.job.assignment.request_id, self.job.assignment.task_id);
        warn_ratelimited!(format_args!("{error} (sync {sync})"), %sync, %task, "{error}");
        let tries = self.failed_tries.entry(worker.clone()).or_default();
        match error {
            // One that the master has not heard from either is not tried again.
            SendError::ConnectionFailed { .. } if !self.job.cx.peers.is_silent(worker) => {
                *tries += 1
            }
            _ => *tries += MAX_TRIES_PER_WORKER,
        }
        match error {
            SendError::Unreachable { .. } | SendError::Refused { .. } => {
                self.job.writers.remove_if_unwritten(worker);
            }
            _ => self.job.mark_wrote(worker),
        }
        self.last_error = Some(error.to_string());
    }

    /// `worker` is not asked to write this time, nor picked again.
    pub fn exclude(&mut self, worker: &WorkerId) {
        self.failed_tries.insert(worker.clone(), MAX_TRIES_PER_WORKER);
        self.job.writers.remove_if_unwritten(worker);
    }

    /// The task when there is nobody left to try.
    pub fn fail_exhausted(&mut self) -> TaskOutcome {
        let assignment = self.job.assignment;
        let path = &assignment.destination_path;
        let Some(why) = self.last_error.take() else {
            let why = format!("no worker that holds the destination {path} is active");
            let mut done = TaskOutcome::failed(why);
            // A master that has just begun to lead names nobody before it has heard of somebody. Whoever
            // has not begun loses nothing by handing it back.
            done.report.returned = assignment.destination_workers.is_empty();
            return done;
        };
        TaskOutcome::failed(why)
    }
}

/// Whether `error` was made while the source was read: whoever writes, it is we who read.
pub fn is_source_error(error: &FileError) -> bool {
    error.operation.ends_with("source")
}

/// An error of an entry that no system call reported.
pub fn entry_error(path: &[u8], operation: &str, message: impl Into<String>) -> FileError {
    FileError {
        path: BytePath(path.to_vec()),
        operation: operation.to_owned(),
        errno: None,
        message: message.into(),
        hint: None,
        worker_id: None,
        attempt: 0,
        class: crate::wire::sync::ErrorClass::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_with_a_write_request_counts_as_a_writer_unless_it_was_unreachable() {
        let [a, b] = ["a", "b"].map(|name| name.parse::<WorkerId>().unwrap());
        let writers = Writers::default();
        writers.mark_requested(&a);
        assert_eq!(
            writers.worker_ids(),
            std::slice::from_ref(&a),
            "an executor that is stopped now leaves it here"
        );
        writers.remove_if_unwritten(&a);
        assert_eq!(writers.worker_ids(), []);
        writers.mark_requested(&a);
        writers.mark_wrote(&a);
        writers.mark_requested(&b);
        writers.remove_if_unwritten(&b);
        assert_eq!(writers.worker_ids(), std::slice::from_ref(&a));
        // Asked once more and not reached, it has written all the same.
        writers.mark_requested(&a);
        writers.remove_if_unwritten(&a);
        assert_eq!(writers.worker_ids(), [a]);
    }
}
