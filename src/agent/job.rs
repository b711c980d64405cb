//! What the executors of all tasks share: their resources, the choice of a destination, and the outcome of a task.

use super::batch::BatchBuilder;
use super::corruption_count::CorruptionCounts;
use super::lease_table::LeaseTable;
use super::limits::SendLimits;
use crate::data::{
    ActiveRequests, CurrentTicket, Deadline, Destination, Endpoints, Local, Peers, Refusal, Roots,
    SendError, TicketVerifier, TransferControl,
};
use crate::fs::{ActingUser, Cause, Filter, FsError, Side, Target, Tree, spawn_blocking};
use crate::util::rate::RateLimiter;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::content::HashMode;
use crate::wire::manifest::Entry;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::task::{Assignment, Relay, TaskReport, TaskSpec};
use crate::wire::{Digest, WorkerId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// After a connection breaks during a request, its peer is tried once more in the same assignment, because it may
/// have restarted. An unreachable peer is not.
const MAX_TRIES_PER_WORKER: u32 = 2;

/// The operation of an error that is about the user of a sync.
pub(super) const RUN_AS_OPERATION: &str = "act as the user of the sync";

/// What slots, executors and heartbeats share.
pub(super) struct AgentContext {
    pub(super) worker_id: WorkerId,
    pub(super) lease_table: Arc<LeaseTable>,
    pub(super) limits: SendLimits,
    pub(super) corruption_counts: CorruptionCounts,
    pub(super) roots: Arc<Roots>,
    pub(super) ticket_verifier: Arc<TicketVerifier>,
    pub(super) peers: Arc<Peers>,
    pub(super) endpoints: Arc<Endpoints>,
    /// Of other agents.
    pub(super) requests: Arc<ActiveRequests>,
    /// Large source files bypass the page cache where the file system supports it.
    pub(super) direct_io: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TaskOutcome {
    /// The task is done, even if single entries failed.
    pub(super) success: bool,
    pub(super) message: Option<String>,
    /// Its `writers` are set when the result is sent.
    pub(super) report: TaskReport,
}

/// The error is the outcome of a task that failed as a whole.
pub(super) type JobResult<T> = Result<T, Box<TaskOutcome>>;

impl TaskOutcome {
    pub(super) fn succeeded(report: TaskReport) -> Self {
        TaskOutcome { success: true, message: None, report }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        TaskOutcome { message: Some(message.into()), ..TaskOutcome::default() }
    }

    pub(super) fn failed_with(error: EntryError) -> Self {
        let message = error.to_string();
        TaskOutcome { report: failure_report(error), ..TaskOutcome::failed(message) }
    }
}

pub(super) fn failure_report(error: EntryError) -> TaskReport {
    TaskReport { failures: vec![error], ..TaskReport::default() }
}

/// Runs `work` as `identity` on a thread for blocking calls. A panic fails the task; `what` describes the work in its message.
pub(super) async fn run_blocking<T: Send + 'static>(
    identity: &ActingUser,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JobResult<T> {
    let done = spawn_blocking(identity, work).await;
    done.map_err(|e| TaskOutcome::failed(format!("{what} panicked: {e}")).into())
}

/// The workers that wrote, or may have written, for an assignment, with whether they certainly have. It outlives an
/// executor that is stopped: what was written has to be flushed in any case.
#[derive(Default)]
pub(super) struct Writers(Mutex<BTreeMap<WorkerId, bool>>);

impl Writers {
    pub(super) fn mark_requested(&self, worker: &WorkerId) {
        self.0.lock().entry(worker.clone()).or_insert(false);
    }

    pub(super) fn mark_wrote(&self, worker: &WorkerId) {
        self.0.lock().insert(worker.clone(), true);
    }

    /// The last request did not reach `worker` or was refused.
    pub(super) fn remove_if_unwritten(&self, worker: &WorkerId) {
        self.0.lock().retain(|w, wrote| *wrote || w != worker);
    }

    pub(super) fn worker_ids(&self) -> Vec<WorkerId> {
        self.0.lock().keys().cloned().collect()
    }
}

/// One assignment that is being executed.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) cx: &'a AgentContext,
    pub(super) assignment: &'a Assignment,
    pub(super) writers: &'a Writers,
    pub(super) deadline: &'a Deadline,
    pub(super) ticket: &'a CurrentTicket,
    /// Counts the content bytes that are transferred.
    pub(super) byte_counter: &'a Arc<RateLimiter>,
}

impl Job<'_> {
    /// The content of a batch is at most this long.
    pub(super) fn chunk_bytes(&self) -> u64 {
        u64::from(self.assignment.chunk_size_mb.max(1)) << 20
    }

    fn transfer_control(&self) -> TransferControl {
        let limiters = self.cx.limits.limiters_for(&self.assignment.request_id);
        TransferControl {
            limiters: limiters.with(self.byte_counter.clone()),
            deadline: self.deadline.clone(),
            corruption: self.cx.corruption_counts.counter_for(&self.assignment.request_id),
            // A clone is not read, so a relay could not verify it.
            can_clone: !self.assignment.options.no_clone && self.assignment.relay.is_none(),
            hashes_for_relays: self.assignment.report_held || self.assignment.relay.is_some(),
            ..TransferControl::default()
        }
    }

    pub(super) fn batch_builder(&self) -> BatchBuilder {
        let options = &self.assignment.options;
        let mut builder = BatchBuilder::new(self.chunk_bytes());
        builder.without_ranges = options.dry_run;
        // Holes are hashed only where digests of files are requested.
        builder.ranges_by_data = options.write_rules().hash_mode() == HashMode::SkipZeros;
        builder
    }

    /// Whether the task may change the destination. Other tasks have no writers.
    fn may_write(&self) -> bool {
        let only_counts = matches!(self.assignment.task, TaskSpec::Prune { apply: false, .. });
        !only_counts && !self.assignment.options.dry_run
    }

    fn mark_requested(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.mark_requested(worker);
        }
    }

    pub(super) fn mark_wrote(&self, worker: &WorkerId) {
        if self.may_write() {
            self.writers.mark_wrote(worker);
        }
    }

    /// Where content is read: the source with the links in its path resolved, or the copy of a relay.
    pub(super) async fn open_source(&self) -> JobResult<Tree> {
        let tree = self.find_source_tree().ok_or_else(|| {
            let Assignment { source_path, relay, .. } = self.assignment;
            let path = relay.as_ref().map_or(source_path, |relay| &relay.path);
            let worker = &self.cx.worker_id;
            TaskOutcome::failed(format!("worker {worker} has no storage path that holds {path}"))
        })?;
        let tree = tree.preserving(self.assignment.options.preserve).acting_as(self.identity()?);
        if self.assignment.relay.is_some() {
            // Links in the path of a destination are not followed, and what it got just now is in the page cache.
            let claims = self.cx.ticket_verifier.verify(&self.ticket.text());
            let claims = claims.map_err(|refused| TaskOutcome::failed(refused.to_string()))?;
            return Ok(tree.with_part_names(claims.rules.part_name_key));
        }
        let tree = tree.with_direct_io(self.cx.direct_io);
        let what = "reading the source";
        let tree = run_blocking(&self.identity()?, what, move || tree.resolve_base_links()).await?;
        Ok(tree.map_err(|error| self.fail_with(&error))?)
    }

    /// As what the task is done: what the master signed, if the configuration of this agent allows it.
    pub(super) fn identity(&self) -> JobResult<ActingUser> {
        let verifier = &self.cx.ticket_verifier;
        let claims = verifier.verify(&self.ticket.text());
        let identity = claims.and_then(|claims| verifier.identity_for(&claims));
        let fail = |refused: Refusal| match refused {
            // Another attempt has the same end.
            Refusal::RunAs(reason) => {
                let error = EntryError::new(b"", None, RUN_AS_OPERATION, reason);
                let error = EntryError { class: ErrorClass::Permanent, ..error };
                TaskOutcome::failed_with(self.with_observer(error, &self.cx.worker_id))
            }
            // The first reply of a master may come after its first assignment.
            Refusal::NoKey => TaskOutcome {
                report: TaskReport { returned: true, ..TaskReport::default() },
                ..TaskOutcome::failed(refused.to_string())
            },
            refused => TaskOutcome::failed(refused.to_string()),
        };
        Ok(identity.map_err(fail)?)
    }

    fn find_source_tree(&self) -> Option<Tree> {
        let Assignment { source_path, source_root, relay, .. } = self.assignment;
        let (path, expected) = match relay {
            Some(relay) => (&relay.path, &relay.root),
            None => (source_path, source_root),
        };
        let tree = self.cx.roots.tree(path)?;
        let assigned = expected.as_ref().is_none_or(|root| *root == tree.root_id());
        let tree = tree.for_assigned_root(assigned);
        Some(if relay.is_some() { tree.for_relay() } else { tree })
    }

    /// Whether this host may write to the destination itself: it is one of the workers of the destination. A storage
    /// path that holds the destination is not enough: under the same path it may be another storage. So is that of a
    /// relay, unless the assignment names this worker for another path.
    pub(super) fn may_write_locally(&self) -> bool {
        let Assignment { relay, destination_path, destination_workers, .. } = self.assignment;
        let is_named =
            destination_workers.iter().any(|member| member.worker_id == self.cx.worker_id);
        is_named && relay.as_ref().is_none_or(|relay| relay.path != *destination_path)
    }

    /// Fails for a range of a relay without the digest of the source.
    pub(super) fn require_range_digest(&self, entry: &Entry) -> Result<(), FsError> {
        match &self.assignment.relay {
            Some(Relay { digest: None, .. }) => Err(relay_error(entry, Cause::NoDigest)),
            _ => Ok(()),
        }
    }

    /// Fails for a range that was read at a relay and does not have the digest of the source.
    pub(super) fn verify_relayed_range(
        &self,
        entry: &Entry,
        found: Option<Digest>,
    ) -> Result<(), FsError> {
        match &self.assignment.relay {
            Some(relay) if relay.digest != found => Err(relay_error(entry, Cause::Damaged)),
            _ => Ok(()),
        }
    }

    /// Fails where the task reads the source and its storage path leads to another directory than the open one.
    pub(super) async fn check_source_root(&self) -> JobResult<()> {
        use TaskSpec::{CleanUp, Commit, Discard, Flush};
        let reads = !matches!(self.assignment.task, Commit { .. } | Discard | CleanUp | Flush);
        let Some(tree) = self.find_source_tree().filter(|_| reads) else { return Ok(()) };
        let agent = ActingUser::default();
        let checked = run_blocking(&agent, "reading the source", move || tree.check_root()).await?;
        Ok(checked.map_err(|error| self.fail_with(&error))?)
    }

    /// The task failed because of `error` at a storage path of this worker.
    pub(super) fn fail_with(&self, error: &FsError) -> TaskOutcome {
        TaskOutcome::failed_with(self.with_observer(error.to_entry_error(), &self.cx.worker_id))
    }

    pub(super) fn build_filter(&self) -> JobResult<Arc<Filter>> {
        let filter = Filter::cached(&self.assignment.options.filter);
        Ok(filter.map_err(|e| TaskOutcome::failed(e.to_string()))?)
    }

    /// The destination, where a storage path of this worker holds it and the ticket permits writing.
    pub(super) fn open_target(&self) -> JobResult<Target> {
        let admitted = self.cx.roots.authorize(&self.cx.ticket_verifier, &self.ticket.text());
        let (_, target) = admitted.map_err(|e| TaskOutcome::failed(e.to_string()))?;
        Ok(target)
    }

    /// Adds the attempt and the worker at which `error` occurred: this one for what is read, else `destination`.
    pub(super) fn with_observer(&self, error: EntryError, destination: &WorkerId) -> EntryError {
        let worker = if error.is_reader_error() { &self.cx.worker_id } else { destination };
        EntryError { worker_id: Some(worker.clone()), attempt: self.assignment.attempt, ..error }
    }

    pub(super) fn destination_picker(&self) -> DestinationPicker<'_> {
        DestinationPicker {
            job: *self,
            failed_tries: BTreeMap::new(),
            last_error: None,
            unreachable: BTreeSet::new(),
            has_failed_otherwise: false,
        }
    }
}

fn relay_error(entry: &Entry, cause: Cause) -> FsError {
    FsError::new(Side::Relay, "verify", entry.path.as_bytes(), cause)
}

/// Iterates over the destinations of an assignment.
pub(super) struct DestinationPicker<'a> {
    job: Job<'a>,
    failed_tries: BTreeMap<WorkerId, u32>,
    last_error: Option<String>,
    /// Workers that could not be reached, or had just started …
    unreachable: BTreeSet<WorkerId>,
    /// … and whether anything else went wrong.
    has_failed_otherwise: bool,
}

impl DestinationPicker<'_> {
    /// The next destination to try: this host where it is one of the destination, else the least busy worker of the
    /// pool; `None` when all have failed. It counts as a writer until [`record_failure`](Self::record_failure).
    pub(super) fn pick_next(&mut self) -> Option<Destination> {
        let Job { cx, assignment, .. } = self.job;
        if self.job.may_write_locally()
            && cx.roots.tree(&assignment.destination_path).is_some()
            && !self.failed_tries.contains_key(&cx.worker_id)
        {
            match cx.roots.authorize(&cx.ticket_verifier, &self.job.ticket.text()) {
                Ok((claims, target)) => {
                    self.job.mark_requested(&cx.worker_id);
                    let local = Local::new(target, claims, cx.peers.pool.clone())
                        .with_control(self.job.transfer_control());
                    return Some(Destination::Local { worker: cx.worker_id.clone(), local });
                }
                Err(refused) => {
                    self.failed_tries.insert(cx.worker_id.clone(), MAX_TRIES_PER_WORKER);
                    self.has_failed_otherwise = true;
                    self.last_error = Some(refused.to_string());
                }
            }
        }
        let failed = self.failed_tries.iter().filter(|(_, n)| **n >= MAX_TRIES_PER_WORKER);
        let mut excluded: BTreeSet<_> = failed.map(|(worker, _)| worker.clone()).collect();
        excluded.insert(cx.worker_id.clone());
        let member = cx.peers.choose(&assignment.destination_workers, &excluded)?;
        self.job.mark_requested(&member.worker_id);
        let rules = assignment.options.write_rules();
        let peer = cx.peers.peer(member, self.job.ticket.clone(), &rules);
        Some(Destination::Remote(peer.with_control(self.job.transfer_control())))
    }

    /// Logs what happened; the result of the task says no more than a submitter may know.
    pub(super) fn record_failure(&mut self, worker: &WorkerId, error: &SendError) {
        let (sync, task) = (&self.job.assignment.request_id, self.job.assignment.task_id);
        warn_ratelimited!(format_args!("{error} (sync {sync})"), %sync, %task, "{error}");
        let silent = self.job.cx.peers.is_silent(worker);
        *self.failed_tries.entry(worker.clone()).or_default() += match error {
            SendError::ConnectionFailed { .. } if !silent => 1,
            _ => MAX_TRIES_PER_WORKER,
        };
        match error {
            SendError::Unreachable { .. } | SendError::Refused { .. } => {
                self.job.writers.remove_if_unwritten(worker);
            }
            _ => self.job.mark_wrote(worker),
        }
        match error.is_worker_down() {
            true => drop(self.unreachable.insert(worker.clone())),
            false => self.has_failed_otherwise = true,
        }
        let pool = &self.job.assignment.destination_workers;
        let member = pool.iter().find(|member| member.worker_id == *worker);
        let endpoints = member.map_or(&[][..], |member| &member.data_plane_endpoints);
        let sender = &self.job.cx.worker_id;
        self.last_error = Some(error.describe_to_submitter(sender, endpoints));
    }

    /// `worker` does not write and is not picked again.
    pub(super) fn exclude(&mut self, worker: &WorkerId) {
        self.failed_tries.insert(worker.clone(), MAX_TRIES_PER_WORKER);
        self.job.writers.remove_if_unwritten(worker);
    }

    /// The outcome of the task when no destination is left.
    pub(super) fn fail_exhausted(&mut self) -> TaskOutcome {
        if let Some(error) = self.last_error.take() {
            let mut outcome = TaskOutcome::failed(error);
            if !self.has_failed_otherwise {
                outcome.report.unreachable =
                    std::mem::take(&mut self.unreachable).into_iter().collect();
            }
            return outcome;
        }
        let Assignment { destination_path, destination_workers, .. } = self.job.assignment;
        let why = format!("no worker that holds the destination {destination_path} is active");
        let mut outcome = TaskOutcome::failed(why);
        // A new leader assigns tasks before the first heartbeats of the destination workers arrive. Nothing was
        // transferred, so returning the task costs nothing.
        outcome.report.returned = destination_workers.is_empty();
        outcome
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
