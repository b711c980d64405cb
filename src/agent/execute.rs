//! What all executors share: what they act with, whom they send to, what they report.

use super::damages::Damages;
use super::limits::Limits;
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
const TRIES: u32 = 2;

/// What executors act with.
pub struct Context {
    /// Our own name.
    pub worker: WorkerId,
    /// What we may send.
    pub limits: Arc<Limits>,
    /// What was damaged on the way.
    pub damages: Damages,
    /// Our storage.
    pub roots: Arc<Roots>,
    /// What tickets are checked by.
    pub gate: Arc<TicketVerifier>,
    /// The other agents.
    pub peers: Arc<Peers>,
    /// Large files of the source are read past the page cache, where that can be.
    pub direct_io: bool,
}

/// What became of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    /// Whether the task is done, failed entries or not.
    pub success: bool,
    /// A sentence.
    pub message: Option<String>,
    /// The counts; `wrote` is added later.
    pub report: TaskReport,
}

impl Done {
    /// A task that is done.
    pub fn well(report: TaskReport) -> Self {
        Done { success: true, message: None, report }
    }

    /// A task of which nothing counts.
    pub fn failed(message: impl Into<String>) -> Self {
        Done { message: Some(message.into()), ..Done::default() }
    }

    /// A task of one entry, which failed.
    pub fn entry_failed(error: FileError) -> Self {
        Done::well(TaskReport { failures: vec![error], ..TaskReport::default() })
    }
}

/// The workers that wrote (or may have written) for an assignment. It outlives an executor that is
/// stopped: what they wrote wants a flush all the same.
#[derive(Default)]
pub struct Writers(Mutex<BTreeMap<WorkerId, bool>>);

impl Writers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<WorkerId, bool>> {
        self.0.lock()
    }

    /// `worker` is about to be asked to write.
    pub fn asked(&self, worker: &WorkerId) {
        self.all().entry(worker.clone()).or_insert(false);
    }

    /// It has written, or may have.
    pub fn wrote(&self, worker: &WorkerId) {
        self.all().insert(worker.clone(), true);
    }

    /// It was not reached, or refused: it has not written this time.
    pub fn did_not(&self, worker: &WorkerId) {
        self.all().retain(|w, wrote| *wrote || w != worker);
    }

    /// All that have written, or were asked to and have not answered.
    pub fn list(&self) -> Vec<WorkerId> {
        self.all().keys().cloned().collect()
    }
}

/// One assignment being executed.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// What to act with.
    pub cx: &'a Context,
    /// What was assigned.
    pub assignment: &'a Assignment,
    /// Who wrote.
    pub writers: &'a Writers,
    /// Until when it may be worked on.
    pub until: &'a Deadline,
    /// Counts the content bytes that are moved.
    pub moved: &'a Arc<RateLimiter>,
}

impl Job<'_> {
    /// At most this much goes into a batch, in bytes.
    pub fn chunk(&self) -> u64 {
        u64::from(self.assignment.chunk_size_mb.max(1)) << 20
    }

    /// What limits and counts the content that is sent.
    fn pace(&self) -> Limiters {
        self.cx.limits.pace(&self.assignment.request_id).with(self.moved.clone())
    }

    /// Whether files are cut by their data ([`Cutter::by_data`](super::batch::Cutter::by_data)): holes are hashed
    /// only where digests of files are wanted.
    pub fn cuts_by_data(&self) -> bool {
        self.assignment.options.write_rules().hash_mode() == HashMode::SkipZeros
    }

    /// Whether the task may change anything at the destination. What may not is no writer's.
    fn may_write(&self) -> bool {
        let counts = matches!(self.assignment.task, TaskSpec::Prune { apply: false, .. });
        !counts && !self.assignment.options.dry_run
    }

    /// `worker` is about to be asked to write.
    fn asked(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.asked(worker);
        }
    }

    /// `worker` has written, or may have.
    pub fn wrote(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.wrote(worker);
        }
    }

    /// The source, where links in its path lead, provided that we hold it.
    ///
    /// # Errors
    /// A failed task.
    pub async fn source(&self) -> Result<Tree, Box<Done>> {
        let path = &self.assignment.source_path;
        let Some(tree) = self.source_tree() else {
            let worker = &self.cx.worker;
            let why = format!("worker {worker} has no storage path that holds {path}");
            return Err(Box::new(Done::failed(why)));
        };
        let preserve = self.assignment.options.preserve;
        let tree = tree.preserving(preserve).with_direct_io(self.cx.direct_io);
        match tokio::task::spawn_blocking(move || tree.resolve_base_links()).await {
            Ok(Ok(tree)) => Ok(tree),
            Ok(Err(error)) => Err(Box::new(self.failed_by(&error))),
            Err(e) => Err(Box::new(Done::failed(format!("reading the source panicked: {e}")))),
        }
    }

    fn source_tree(&self) -> Option<Tree> {
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
    pub async fn check_source_root(&self) -> Result<(), Box<Done>> {
        let task = &self.assignment.task;
        let reads = match task {
            TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Copy { .. } => true,
            TaskSpec::Range { .. } | TaskSpec::Prune { .. } => true,
            TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::CleanUp | TaskSpec::Flush => {
                false
            }
        };
        let Some(tree) = self.source_tree().filter(|_| reads) else { return Ok(()) };
        match tokio::task::spawn_blocking(move || tree.check_root()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(gone)) => Err(Box::new(self.failed_by(&gone))),
            Err(e) => Err(Box::new(Done::failed(format!("reading the source panicked: {e}")))),
        }
    }

    /// A failed task, with the error of our own storage that made it fail.
    pub fn failed_by(&self, error: &FsError) -> Done {
        let error = self.seen(error.to_file_error(), &self.cx.worker);
        let message = error.to_string();
        let report = TaskReport { failures: vec![error], ..TaskReport::default() };
        Done { report, ..Done::failed(message) }
    }

    /// What of the source is left out.
    ///
    /// # Errors
    /// A failed task, with what is wrong with the filter.
    pub fn filter(&self) -> Result<Arc<Filter>, Box<Done>> {
        let filter = Filter::cached(&self.assignment.options.filter);
        filter.map_err(|e| Box::new(Done::failed(e.to_string())))
    }

    /// The destination, provided that we hold it and the ticket lets us.
    ///
    /// # Errors
    /// A failed task.
    pub fn target(&self) -> Result<Target, Box<Done>> {
        let admitted = self.cx.roots.authorize(&self.cx.gate, &self.assignment.ticket);
        admitted.map(|(_, target)| target).map_err(|e| Box::new(Done::failed(e.to_string())))
    }

    /// `error` with who saw it and when.
    pub fn seen(&self, error: FileError, by: &WorkerId) -> FileError {
        let worker = if is_of_source(&error) { &self.cx.worker } else { by };
        FileError { worker_id: Some(worker.clone()), attempt: self.assignment.attempt, ..error }
    }

    /// Whom to send to, the best first; see [`Choice::pick`].
    pub fn destinations(&self) -> Choice<'_> {
        Choice { job: *self, tried: BTreeMap::new(), last: None }
    }
}

/// Goes through the destinations of an assignment.
pub struct Choice<'a> {
    job: Job<'a>,
    tried: BTreeMap<WorkerId, u32>,
    last: Option<String>,
}

impl Choice<'_> {
    /// The next to try: this host itself where it holds the destination, else the least busy of the
    /// pool. `None` when all failed. It counts as a writer until it [failed](Choice::failed).
    pub fn pick(&mut self) -> Option<Destination> {
        let Job { cx, assignment, .. } = self.job;
        if cx.roots.tree(&assignment.destination_path).is_some()
            && !self.tried.contains_key(&cx.worker)
        {
            match cx.roots.authorize(&cx.gate, &assignment.ticket) {
                Ok((claims, target)) => {
                    self.job.asked(&cx.worker);
                    let local = Local::new(target, claims, cx.peers.pool().clone());
                    let local = local.with_limiters(self.job.pace());
                    let local = local
                        .with_deadline(self.job.until)
                        .with_cloning(!assignment.options.no_clone);
                    return Some(Destination::Local { worker: cx.worker.clone(), local });
                }
                Err(refused) => {
                    self.tried.insert(cx.worker.clone(), TRIES);
                    self.last = Some(refused.to_string());
                }
            }
        }
        let mut out: BTreeSet<WorkerId> =
            self.tried.iter().filter(|(_, n)| **n >= TRIES).map(|(w, _)| w.clone()).collect();
        out.insert(cx.worker.clone());
        let member = cx.peers.choose(&assignment.destination_workers, &out)?;
        self.job.asked(&member.worker_id);
        let rules = assignment.options.write_rules();
        let peer = cx.peers.peer(member, &assignment.ticket, &rules);
        let peer = peer.with_limiters(self.job.pace()).with_deadline(self.job.until);
        Some(Destination::Remote(peer.with_damage_counter(cx.damages.of(&assignment.request_id))))
    }

    /// Says that `worker` failed with `error`.
    pub fn failed(&mut self, worker: &WorkerId, error: &SendError) {
        let (sync, task) = (&self.job.assignment.request_id, self.job.assignment.task_id);
        warn_ratelimited!(format_args!("{error} (sync {sync})"), %sync, %task, "{error}");
        let tries = self.tried.entry(worker.clone()).or_default();
        match error {
            // One that the master has not heard from either is not tried again.
            SendError::ConnectionFailed { .. } if !self.job.cx.peers.is_silent(worker) => {
                *tries += 1
            }
            _ => *tries += TRIES,
        }
        match error {
            SendError::Unreachable { .. } | SendError::Refused { .. } => {
                self.job.writers.did_not(worker);
            }
            _ => self.job.wrote(worker),
        }
        self.last = Some(error.to_string());
    }

    /// `worker` is not asked to write this time, nor picked again.
    pub fn pass_over(&mut self, worker: &WorkerId) {
        self.tried.insert(worker.clone(), TRIES);
        self.job.writers.did_not(worker);
    }

    /// The task when there is nobody left to try.
    pub fn exhausted(&mut self) -> Done {
        let assignment = self.job.assignment;
        let path = &assignment.destination_path;
        let Some(why) = self.last.take() else {
            let why = format!("no worker that holds the destination {path} is active");
            let mut done = Done::failed(why);
            // A master that has just begun to lead names nobody before it has heard of somebody. Whoever
            // has not begun loses nothing by handing it back.
            done.report.returned = assignment.destination_workers.is_empty();
            return done;
        };
        Done::failed(why)
    }
}

/// Whether `error` was made while the source was read: whoever writes, it is we who read.
pub fn is_of_source(error: &FileError) -> bool {
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
    fn a_worker_that_was_asked_counts_as_a_writer_unless_it_was_not_reached() {
        let [a, b] = ["a", "b"].map(|name| name.parse::<WorkerId>().unwrap());
        let writers = Writers::default();
        writers.asked(&a);
        assert_eq!(
            writers.list(),
            std::slice::from_ref(&a),
            "an executor that is stopped now leaves it here"
        );
        writers.did_not(&a);
        assert_eq!(writers.list(), []);
        writers.asked(&a);
        writers.wrote(&a);
        writers.asked(&b);
        writers.did_not(&b);
        assert_eq!(writers.list(), std::slice::from_ref(&a));
        // Asked once more and not reached, it has written all the same.
        writers.asked(&a);
        writers.did_not(&a);
        assert_eq!(writers.list(), [a]);
    }
}
