//! The door to the owner of the state: every question and every order goes through it.
//!
//! A [`MasterHandle`] puts an event into a bounded queue and waits for the reply, which the owner gives only
//! when the decision is durable. It never waits without an end: an owner that can't answer in time
//! (its store hangs) becomes a 503 that says whether a repeat is safe.

use super::channel::{ActorChannel, ActorRequest};
use super::leadership::{LeadershipStatus, MasterIdentity, not_leader, store_unavailable};
use super::submit_validation;
use crate::scheduler::{Event, IdempotencyKey, Reply, StoredKeys, SyncPage, SyncQuery};
use crate::store::{AdmissionBlock, Backup, Spool};
use crate::wire::admin::{ConfirmClockReply, ReconcileReply};
use crate::wire::leader::Readiness;
use crate::wire::manifest::FileListPart;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{ReassignReply, SubmitReply, SyncPatch, SyncProgress, SyncRequest};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, HeartbeatReply, WorkerHeartbeat, WorkerList,
    WorkerView,
};
use crate::wire::{AssignmentId, RequestId, WorkerId};
use std::sync::Arc;
use std::time::Duration;
#[cfg(test)]
use tokio::sync::mpsc;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// How long a caller waits for a reply. Longer than any commit takes on a store that works, shorter
/// than the patience of a client.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The typed way to the owner of the state, through all reigns of this master. Cheap to clone.
#[derive(Clone)]
pub struct MasterHandle {
    status: watch::Receiver<LeadershipStatus>,
    identity: Arc<MasterIdentity>,
    pub(super) spool: Spool,
}

impl MasterHandle {
    /// A handle to whatever owner there is at the moment.
    pub(super) fn new(
        seat: watch::Receiver<LeadershipStatus>,
        identity: MasterIdentity,
        spool: Spool,
    ) -> Self {
        MasterHandle { status: seat, identity: Arc::new(identity), spool }
    }

    /// A handle to one owner, which receives `requests` and tells its `health`.
    #[cfg(test)]
    pub(super) fn for_actor(
        requests: mpsc::Sender<ActorRequest>,
        health: watch::Receiver<super::channel::ActorHealth>,
        blobs: super::channel::BlobReader,
        spool: Spool,
    ) -> Self {
        let leader =
            crate::wire::leader::Leader { name: "here".into(), url: None, epoch: 1, since: None };
        let shortage = watch::Sender::new(None).subscribe();
        let backup: super::channel::BackupMaker =
            Arc::new(|| Box::pin(std::future::ready(Ok(None))));
        let seat = LeadershipStatus::Leader(
            leader,
            ActorChannel { requests, health, blobs, backup, admission_block: shortage },
        );
        MasterHandle::new(watch::Sender::new(seat).subscribe(), MasterIdentity::default(), spool)
    }

    /// Resolves when this master leads.
    pub(super) async fn wait_until_leader(&self) {
        let mut seat = self.status.clone();
        // Its end is told elsewhere.
        if seat.wait_for(|seat| matches!(seat, LeadershipStatus::Leader(..))).await.is_err() {
            std::future::pending().await
        }
    }

    /// What this master is, and what it knows of the one that leads.
    pub(super) fn readiness(&self) -> Readiness {
        self.status.borrow().readiness(&self.identity)
    }

    /// Resolves when what this master tells of itself is as wanted.
    #[cfg(test)]
    pub(super) async fn wait_for_readiness(&self, wanted: impl Fn(&Readiness) -> bool) {
        let mut seat = self.status.clone();
        loop {
            // Marked as seen before it is looked at: what changes from then on wakes.
            let mut health = match &*seat.borrow_and_update() {
                LeadershipStatus::Leader(_, desk) => desk.health.clone(),
                LeadershipStatus::Follower(_) | LeadershipStatus::NoLeader(_) => {
                    watch::Sender::new(Ok(())).subscribe()
                }
            };
            health.mark_unchanged();
            if wanted(&self.readiness()) {
                return;
            }
            tokio::select! {
                Ok(()) = seat.changed() => {}
                Ok(()) = health.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Why requests are refused here now, if they are.
    pub(super) fn refusal(&self) -> Option<Problem> {
        self.status.borrow().refusal()
    }

    /// What a master that does not lead answers to whatever needs a decision.
    pub(super) fn refusal_unless_leader(&self) -> Option<Problem> {
        match &*self.status.borrow() {
            LeadershipStatus::Leader(..) => None,
            LeadershipStatus::Follower(leader) => Some(not_leader(leader)),
            nobody @ LeadershipStatus::NoLeader(_) => nobody.refusal(),
        }
    }

    /// The way to the owner.
    pub(super) fn channel(&self) -> Result<ActorChannel, Problem> {
        match &*self.status.borrow() {
            LeadershipStatus::Leader(_, desk) => {
                desk.health().map_err(|why| store_unavailable(&why)).map(|()| desk.clone())
            }
            LeadershipStatus::Follower(leader) => Err(not_leader(leader)),
            nobody @ LeadershipStatus::NoLeader(_) => {
                Err(nobody.refusal().unwrap_or_else(shutting_down))
            }
        }
    }

    /// Queues a sync.
    ///
    /// # Errors
    /// 422 for paths, a chunk size or a file list that can't be; 409 `sync_exists` where the id is
    /// taken; 507 `store_full` where the store has no room; 503 where nothing can be decided now, or
    /// (`store_unsafe`) may be lost.
    pub async fn submit(
        &self,
        mut request: SyncRequest,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<SubmitReply, Problem> {
        let list = submit_validation::validate_submit(&mut request)?;
        self.submit_validated(request, list, idempotency).await
    }

    /// Queues a sync whose paths and list have been checked ([`submit_validation`]).
    pub(super) async fn submit_validated(
        &self,
        request: SyncRequest,
        list: Option<Vec<FileListPart>>,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<SubmitReply, Problem> {
        if let Some(shortage) = self.channel()?.admission_block.borrow().as_ref() {
            return Err(over_capacity(shortage));
        }
        match self.request(Event::Submit { request, list, idempotency }).await? {
            Reply::Submitted(submitted) => Ok(submitted),
            other => Err(unexpected_reply(other)),
        }
    }

    /// How does a sync stand?
    ///
    /// # Errors
    /// 404, 503.
    pub async fn progress(&self, id: RequestId) -> Result<SyncProgress, Problem> {
        match self.request(Event::GetProgress(id)).await? {
            Reply::Progress(progress) => Ok(*progress),
            other => Err(unexpected_reply(other)),
        }
    }

    /// How do they stand?
    ///
    /// # Errors
    /// 503.
    pub async fn list(&self, select: SyncQuery) -> Result<SyncPage, Problem> {
        match self.request(Event::ListSyncs(select)).await? {
            Reply::Syncs(selected) => Ok(selected),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Changes a sync that runs.
    ///
    /// # Errors
    /// 404, 409 where it has ended, 503.
    pub async fn change(&self, id: RequestId, change: SyncPatch) -> Result<SyncProgress, Problem> {
        match self.request(Event::ChangeSync { id, change }).await? {
            Reply::Progress(progress) => Ok(*progress),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Hands out nothing more of a sync (`on`), or lets it go on.
    ///
    /// # Errors
    /// 404, 409 where it has ended, 503.
    pub async fn pause(&self, id: RequestId, on: bool) -> Result<SyncProgress, Problem> {
        let event = if on { Event::PauseSync(id) } else { Event::ResumeSync(id) };
        match self.request(event).await? {
            Reply::Progress(progress) => Ok(*progress),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Takes the tasks of a sync away from a worker and leaves them to others.
    ///
    /// # Errors
    /// 404, 409 where it has ended, 503.
    pub async fn reassign(
        &self,
        id: RequestId,
        worker: WorkerId,
    ) -> Result<ReassignReply, Problem> {
        match self.request(Event::ReassignTasks { id, worker }).await? {
            Reply::Reassigned(reassigned) => Ok(reassigned),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Stops a sync and keeps its record.
    ///
    /// # Errors
    /// 404, 409 where it has ended, 503.
    pub async fn cancel(&self, id: RequestId) -> Result<SyncProgress, Problem> {
        match self.request(Event::CancelSync(id)).await? {
            Reply::Progress(progress) => Ok(*progress),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Stops a sync and forgets it. True: it had not ended, and was cancelled.
    ///
    /// # Errors
    /// 404, 503.
    pub async fn delete(&self, id: RequestId) -> Result<bool, Problem> {
        match self.request(Event::DeleteSync(id)).await? {
            Reply::Deleted { cancelled } => Ok(cancelled),
            other => Err(unexpected_reply(other)),
        }
    }

    /// A worker is alive.
    ///
    /// # Errors
    /// 503.
    pub async fn heartbeat(&self, heartbeat: WorkerHeartbeat) -> Result<HeartbeatReply, Problem> {
        match self.request(Event::Heartbeat(heartbeat)).await? {
            Reply::Heartbeat(reply) => Ok(reply),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Which workers are there?
    ///
    /// # Errors
    /// 503.
    pub async fn workers(&self) -> Result<WorkerList, Problem> {
        match self.request(Event::ListWorkers).await? {
            Reply::Workers(list) => Ok(list),
            other => Err(unexpected_reply(other)),
        }
    }

    /// The view of one worker.
    ///
    /// # Errors
    /// 404, 503.
    pub async fn worker(&self, id: WorkerId) -> Result<WorkerView, Problem> {
        match self.request(Event::GetWorker(id)).await? {
            Reply::Worker(view) => Ok(*view),
            other => Err(unexpected_reply(other)),
        }
    }

    /// The ids of the syncs of which a worker holds tasks.
    ///
    /// # Errors
    /// 404, 503.
    pub async fn worker_requests(&self, id: WorkerId) -> Result<Vec<RequestId>, Problem> {
        match self.request(Event::ListWorkerRequests(id)).await? {
            Reply::RequestIds(ids) => Ok(ids),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Keeps a worker from new work, or (`None`) lets it work again.
    ///
    /// # Errors
    /// 404, 503.
    pub async fn drain(
        &self,
        worker: WorkerId,
        order: Option<DrainRequest>,
    ) -> Result<DrainReply, Problem> {
        match self.request(Event::DrainWorker { worker, order }).await? {
            Reply::DrainUpdated(order) => Ok(*order),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Forgets a worker that has fallen silent.
    ///
    /// # Errors
    /// 404, 409 where it is alive, 503.
    pub async fn forget(&self, worker: WorkerId) -> Result<ForgetWorkerReply, Problem> {
        match self.request(Event::ForgetWorker(worker)).await? {
            Reply::Forgotten(forgotten) => Ok(forgotten),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Asks for work, for at most `wait`. Dropping the future withdraws the poll: the owner sees that
    /// nobody waits for the reply any more.
    ///
    /// # Errors
    /// 404 for a worker that never sent a heartbeat, 503.
    pub async fn poll(
        &self,
        worker: WorkerId,
        incarnation: Option<String>,
        poll_id: Option<String>,
        wait: Duration,
    ) -> Result<Option<Assignment>, Problem> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let event = Event::Poll { worker, incarnation, poll_id, wait_ms };
        let desk = self.channel()?;
        // Who waits for work is not kept waiting by a master that can't give any: another one may.
        let answer = tokio::select! {
            answer = self.request_within(event, wait.saturating_add(REPLY_TIMEOUT)) => answer?,
            why = desk.wait_for_failure() => return Err(store_unavailable(&why)),
        };
        match answer {
            Reply::Assignment(assignment) => Ok(assignment.map(|a| *a)),
            other => Err(unexpected_reply(other)),
        }
    }

    /// The manifest of an assignment.
    ///
    /// # Errors
    /// 404 where the worker does not hold it, 503.
    pub async fn manifest(
        &self,
        worker: WorkerId,
        assignment: AssignmentId,
    ) -> Result<Vec<u8>, Problem> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let key = match self.request(Event::GetManifest { worker, assignment }).await? {
            Reply::ManifestKey(key) => key,
            other => return Err(unexpected_reply(other)),
        };
        let blobs = self.channel()?.blobs;
        match timeout_at(deadline, blobs(key)).await {
            Ok(Ok(Some(bytes))) => Ok(bytes),
            // The task ended between the two steps, and its manifest went with it.
            Ok(Ok(None)) => Err(Problem::new(
                ProblemCode::AssignmentNotHeld,
                "the manifest of this assignment is gone: its task has ended",
            )),
            Ok(Err(why)) => Err(store_unavailable(&why)),
            Err(_) => Err(store_unavailable("no manifest came in time")),
        }
    }

    /// A scan found something.
    ///
    /// # Errors
    /// 422 for a page that can't be, 503.
    pub async fn page(
        &self,
        worker: WorkerId,
        assignment: AssignmentId,
        page: ScanPage,
    ) -> Result<PageReply, Problem> {
        match self.request(Event::Page { worker, assignment, page }).await? {
            Reply::Page(reply) => Ok(reply),
            other => Err(unexpected_reply(other)),
        }
    }

    /// A task ended.
    ///
    /// # Errors
    /// 422 for a result that can't be, 503.
    pub async fn result(&self, result: TaskResult) -> Result<ResultReply, Problem> {
        match self.request(Event::Result(result)).await? {
            Reply::Result(reply) => Ok(reply),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Puts right what does not fit together.
    ///
    /// # Errors
    /// 503.
    pub async fn reconcile(&self) -> Result<ReconcileReply, Problem> {
        match self.request(Event::Reconcile(StoredKeys::default())).await? {
            Reply::Reconciled(done) => Ok(*done),
            other => Err(unexpected_reply(other)),
        }
    }

    /// Takes the wall clock of this master for right: ended syncs are dropped again.
    ///
    /// # Errors
    /// 503.
    pub async fn confirm_clock(&self) -> Result<ConfirmClockReply, Problem> {
        match self.request(Event::ConfirmClock).await? {
            Reply::ClockConfirmed(done) => Ok(done),
            other => Err(unexpected_reply(other)),
        }
    }

    /// A copy of the embedded store as of one instant, also while nothing can be decided.
    ///
    /// # Errors
    /// 501 where the state is in Redis; 503 where the copy cannot be made now, or this master does not lead.
    pub(super) async fn backup(&self) -> Result<Backup, Problem> {
        let make = match &*self.status.borrow() {
            LeadershipStatus::Leader(_, desk) => Arc::clone(&desk.backup),
            LeadershipStatus::Follower(leader) => return Err(not_leader(leader)),
            nobody @ LeadershipStatus::NoLeader(_) => {
                return Err(nobody.refusal().unwrap_or_else(shutting_down));
            }
        };
        match make().await {
            Ok(Some(backup)) => Ok(backup),
            Ok(None) => {
                let detail = format!(
                    "this master keeps its state in Redis at {}, which has its own backups",
                    self.identity.store_location
                );
                Err(Problem::new(ProblemCode::BackupUnsupported, detail).with_hint(
                    "on the host of Redis: `redis-cli BGSAVE`, then copy dump.rdb; or copy its appendonlydir as \
                     described in docs/operations.md",
                ))
            }
            Err(why) => {
                let detail = format!("the store cannot be copied now: {why}");
                Err(Problem::new(ProblemCode::BackupFailed, detail)
                    .with_hint("repeat the request after the time in Retry-After"))
            }
        }
    }

    /// Whether decisions can be made here now; otherwise why not, in a sentence.
    ///
    /// # Errors
    /// The sentence.
    pub fn check_ready(&self) -> Result<(), String> {
        self.channel().map(drop).map_err(|problem| problem.detail)
    }

    /// Sends `event` and waits for its reply.
    pub(super) async fn request(&self, event: Event) -> Result<Reply, Problem> {
        self.request_within(event, REPLY_TIMEOUT).await
    }

    /// Sends `event` and waits for its reply. What is refused at once, because the store is known to be
    /// down, has changed nothing; what ran out of time may still take effect.
    async fn request_within(&self, event: Event, time: Duration) -> Result<Reply, Problem> {
        let desk = self.channel()?;
        let deadline = Instant::now() + time;
        let (reply, answer) = oneshot::channel();
        match timeout_at(deadline, desk.requests.send(ActorRequest { event, reply })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(shutting_down()),
            Err(_) => return Err(queue_full()),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(Reply::Refused(problem))) => Err(*problem),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(shutting_down()),
            Err(_) => Err(deadline_exceeded(desk.health().err())),
        }
    }
}

fn over_capacity(shortage: &AdmissionBlock) -> Problem {
    let detail = format!("new syncs are not accepted: {}", shortage.reason());
    match shortage {
        AdmissionBlock::Full(_) => Problem::new(ProblemCode::StoreFull, detail).with_hint(
            "queued syncs continue and free space when they end; or give the store more memory",
        ),
        AdmissionBlock::Unsafe(_) => Problem::new(ProblemCode::StoreUnsafe, detail).with_hint(
            "accepted syncs continue; repeat the request after the setting was changed back",
        ),
    }
}

fn shutting_down() -> Problem {
    Problem::new(ProblemCode::ShuttingDown, "the master is stopping, or does not lead any more")
        .with_hint("repeat the request, or send it to another master")
}

fn queue_full() -> Problem {
    Problem::new(
        ProblemCode::Overloaded,
        "too many requests wait for the master; this one changed nothing",
    )
    .with_hint("repeat the request after the time in Retry-After")
}

fn deadline_exceeded(why: Option<String>) -> Problem {
    let why = why.unwrap_or_else(|| "the store is slow".to_owned());
    Problem::new(
        ProblemCode::CommitTimeout,
        format!(
            "the decision was not durable after {} s; it may still take effect: {why}",
            REPLY_TIMEOUT.as_secs()
        ),
    )
    .with_hint("repeat the request with the same id or Idempotency-Key: it is not done twice")
}

/// A reply of another kind than the question: a defect of the owner, never of the caller.
pub(super) fn unexpected_reply(reply: Reply) -> Problem {
    tracing::error!(?reply, "the reply does not fit the request");
    Problem::new(ProblemCode::Internal, "internal error of the master; see its log")
}

#[cfg(test)]
mod tests;
