//! The interface of the API to the state actor.
//!
//! A [`MasterHandle`] puts a request into a bounded queue and waits for the reply, which the actor sends after the
//! decision is durable. Every wait has a deadline: while the store is unavailable, the caller gets a 503 that says
//! whether the request may be repeated.

use super::audit::{AuditHandle, entry_of_change};
use super::channel::{ActorChannel, ActorRequest};
use super::leadership::{LeadershipStatus, MasterIdentity, not_leader, store_unavailable};
use super::requests::{GetManifestKey, PollAssignment, Request, SubmitSync};
use crate::scheduler::{AgentKey, AgentRecord, Event, Grant, Reply};
use crate::store::{AdmissionBlock, Backup, Spool};
use crate::wire::leader::Readiness;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::SubmitReply;
use crate::wire::task::Assignment;
use crate::wire::{AssignmentId, WorkerId};
use std::sync::Arc;
use std::time::Duration;
#[cfg(test)]
use tokio::sync::mpsc;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// How long a caller waits for a reply: longer than a commit takes on a store that works, shorter than the timeout
/// of clients.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends requests to the state actor while this master leads. Cheap to clone; valid over changes of leadership.
#[derive(Clone)]
pub(super) struct MasterHandle {
    status: watch::Receiver<LeadershipStatus>,
    identity: Arc<MasterIdentity>,
    pub(super) spool: Spool,
    rights: Rights,
    pub(super) audit: AuditHandle,
}

/// The rights with which requests are sent.
#[derive(Clone)]
enum Rights {
    All,
    /// Those of an operator that is not an administrator.
    Operator(Arc<Grant>),
    /// Those of an agent with this certificate, or with none.
    Agent(Option<AgentKey>),
}

impl MasterHandle {
    pub(super) fn new(
        status: watch::Receiver<LeadershipStatus>,
        identity: MasterIdentity,
        spool: Spool,
    ) -> Self {
        MasterHandle {
            status,
            identity: Arc::new(identity),
            spool,
            rights: Rights::All,
            audit: AuditHandle::default(),
        }
    }

    /// A handle for requests of an operator with these rights.
    pub(super) fn restricted_to(&self, grant: Arc<Grant>) -> Self {
        MasterHandle { rights: Rights::Operator(grant), ..self.clone() }
    }

    /// A handle for requests of an agent that joined, or (`None`) of one that is not an administrator.
    pub(super) fn of_agent(&self, agent: Option<&AgentRecord>) -> Self {
        let key = |agent: &AgentRecord| AgentKey {
            worker: agent.worker.clone(),
            key: agent.key,
            authority: agent.authority,
        };
        let agent = agent.map(key);
        MasterHandle { rights: Rights::Agent(agent), ..self.clone() }
    }

    /// Records changes and denials in this log.
    pub(super) fn with_audit(self, audit: AuditHandle) -> Self {
        MasterHandle { audit, ..self }
    }

    /// A handle to one actor, without an election.
    #[cfg(test)]
    pub(super) fn for_actor(
        requests: mpsc::Sender<ActorRequest>,
        health: watch::Receiver<super::channel::ActorHealth>,
        blobs: super::channel::BlobReader,
        spool: Spool,
    ) -> Self {
        let leader =
            crate::wire::leader::Leader { name: "here".into(), url: None, epoch: 1, since: None };
        let admission_block = watch::Sender::new(None).subscribe();
        let backup: super::channel::BackupMaker =
            Arc::new(|| Box::pin(std::future::ready(Ok(None))));
        let tokens = watch::Sender::new(Default::default()).subscribe();
        let agents = watch::Sender::new(Default::default()).subscribe();
        let channel =
            ActorChannel { requests, health, blobs, backup, tokens, agents, admission_block };
        let status = LeadershipStatus::Leader(leader, channel);
        MasterHandle::new(watch::Sender::new(status).subscribe(), MasterIdentity::default(), spool)
    }

    /// Resolves when this master leads. Never resolves after the election has ended: its task reports the error.
    pub(super) async fn wait_until_leader(&self) {
        let mut status = self.status.clone();
        if status.wait_for(|status| matches!(status, LeadershipStatus::Leader(..))).await.is_err() {
            std::future::pending().await
        }
    }

    /// The reply to `GET /readyz?verbose`.
    pub(super) fn readiness(&self) -> Readiness {
        self.status.borrow().readiness(&self.identity)
    }

    /// Resolves when the readiness meets a condition.
    #[cfg(test)]
    pub(super) async fn wait_for_readiness(&self, condition: impl Fn(&Readiness) -> bool) {
        let mut status = self.status.clone();
        loop {
            // Marked as seen before the condition is evaluated: any later change wakes this task.
            let mut health = match &*status.borrow_and_update() {
                LeadershipStatus::Leader(_, channel) => channel.health.clone(),
                LeadershipStatus::Follower(_) | LeadershipStatus::NoLeader(_) => {
                    watch::Sender::new(Ok(())).subscribe()
                }
            };
            health.mark_unchanged();
            if condition(&self.readiness()) {
                return;
            }
            tokio::select! {
                Ok(()) = status.changed() => {}
                Ok(()) = health.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Why requests are refused now, if they are.
    pub(super) fn refusal(&self) -> Option<Problem> {
        self.status.borrow().refusal()
    }

    /// The channel to the state actor of this master, even while its store is unavailable.
    ///
    /// # Errors
    /// This master is not the leader: 307 or 503.
    pub(super) fn leader_channel(&self) -> Result<ActorChannel, Problem> {
        match &*self.status.borrow() {
            LeadershipStatus::Leader(_, channel) => Ok(channel.clone()),
            LeadershipStatus::Follower(leader) => Err(not_leader(leader)),
            status @ LeadershipStatus::NoLeader(_) => {
                Err(status.refusal().unwrap_or_else(shutting_down))
            }
        }
    }

    /// The channel to the state actor, if it can make decisions durable.
    pub(super) fn channel(&self) -> Result<ActorChannel, Problem> {
        let channel = self.leader_channel()?;
        channel.health().map_err(|reason| store_unavailable(&reason)).map(|()| channel)
    }

    /// Sends `request` to the state actor and waits for its reply.
    ///
    /// # Errors
    /// The problem with which the actor refuses the request; 503 while no decision can be made durable.
    pub(super) async fn send<R: Request>(&self, request: R) -> Result<R::Reply, Problem> {
        self.send_within(request, REPLY_TIMEOUT).await
    }

    /// Creates a sync, unless the store accepts no new ones.
    ///
    /// # Errors
    /// 409 `sync_exists`; 507 `store_full`; 503, also `store_unsafe` if the store may lose the sync.
    pub(super) async fn submit(&self, request: SubmitSync) -> Result<SubmitReply, Problem> {
        if let Some(block) = self.channel()?.admission_block.borrow().as_ref() {
            return Err(admission_refused(block));
        }
        self.send(request).await
    }

    /// Waits at most `wait` for an assignment. Dropping the future withdraws the poll: the actor detects that the
    /// receiver of the reply is closed.
    ///
    /// # Errors
    /// 404 for a worker that never sent a heartbeat, 503.
    pub(super) async fn poll(
        &self,
        worker: WorkerId,
        incarnation: Option<String>,
        poll_id: Option<String>,
        wait: Duration,
    ) -> Result<Option<Box<Assignment>>, Problem> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let request = PollAssignment { worker, incarnation, poll_id, wait_ms };
        let channel = self.channel()?;
        // A poll ends as soon as this master cannot decide: the agent may get work from another master.
        tokio::select! {
            reply = self.send_within(request, wait.saturating_add(REPLY_TIMEOUT)) => reply,
            reason = channel.wait_for_failure() => Err(store_unavailable(&reason)),
        }
    }

    /// The manifest of an assignment.
    ///
    /// # Errors
    /// 404 if the worker does not hold the assignment, 503.
    pub(super) async fn manifest(
        &self,
        worker: WorkerId,
        assignment: AssignmentId,
    ) -> Result<Vec<u8>, Problem> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let key = self.send(GetManifestKey { worker, assignment }).await?;
        let blobs = self.channel()?.blobs;
        match timeout_at(deadline, blobs(key)).await {
            Ok(Ok(Some(bytes))) => Ok(bytes),
            // The task ended after its key was returned, and its manifest was deleted.
            Ok(Ok(None)) => Err(Problem::new(
                ProblemCode::AssignmentNotHeld,
                "the manifest of this assignment is gone: its task has ended",
            )),
            Ok(Err(reason)) => Err(store_unavailable(&reason)),
            Err(_) => Err(store_unavailable("the manifest could not be read in time")),
        }
    }

    /// A consistent copy of the embedded store. It is also made while no decision can be made durable.
    ///
    /// # Errors
    /// 501 if the state is in Redis; 503 if the copy cannot be made now, or this master is not the leader.
    pub(super) async fn backup(&self) -> Result<Backup, Problem> {
        let make = self.leader_channel()?.backup;
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
            Err(reason) => {
                let detail = format!("the store cannot be copied now: {reason}");
                Err(Problem::new(ProblemCode::BackupFailed, detail)
                    .with_hint("repeat the request after the time in Retry-After"))
            }
        }
    }

    /// A request that is refused at once, because the store is known to be unavailable, has changed nothing. One
    /// that times out may still take effect.
    async fn send_within<R: Request>(
        &self,
        request: R,
        timeout: Duration,
    ) -> Result<R::Reply, Problem> {
        let channel = self.channel()?;
        let deadline = Instant::now() + timeout;
        let (reply_to, reply) = oneshot::channel();
        let event = request.into_event();
        let change = entry_of_change(&event);
        let event = match &self.rights {
            Rights::All => event,
            Rights::Operator(grant) => {
                Event::Restricted { grant: Arc::clone(grant), event: Box::new(event) }
            }
            Rights::Agent(agent) => Event::OfAgent { agent: agent.clone(), event: Box::new(event) },
        };
        let request = ActorRequest { event, reply: reply_to, change };
        match timeout_at(deadline, channel.requests.send(request)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(shutting_down()),
            Err(_) => return Err(queue_full()),
        }
        match timeout_at(deadline, reply).await {
            Ok(Ok(Reply::Refused(problem))) => Err(*problem),
            Ok(Ok(reply)) => R::parse_reply(reply).map_err(|other| unexpected_reply(*other)),
            Ok(Err(_)) => Err(shutting_down()),
            Err(_) => Err(deadline_exceeded(channel.health().err())),
        }
    }
}

fn admission_refused(block: &AdmissionBlock) -> Problem {
    let detail = format!("new syncs are not accepted: {}", block.reason());
    match block {
        AdmissionBlock::Full(_) => Problem::new(ProblemCode::StoreFull, detail).with_hint(
            "queued syncs continue and free space when they end; or give the store more memory",
        ),
        AdmissionBlock::Unsafe(_) => Problem::new(ProblemCode::StoreUnsafe, detail).with_hint(
            "accepted syncs continue; repeat the request after the setting was changed back",
        ),
    }
}

fn shutting_down() -> Problem {
    Problem::new(ProblemCode::ShuttingDown, "the master is stopping, or is no longer the leader")
        .with_hint("repeat the request, or send it to another master")
}

fn queue_full() -> Problem {
    Problem::new(ProblemCode::Overloaded, "too many requests are queued; this one changed nothing")
        .with_hint("repeat the request after the time in Retry-After")
}

fn deadline_exceeded(reason: Option<String>) -> Problem {
    let reason = reason.unwrap_or_else(|| "the store is slow".to_owned());
    Problem::new(
        ProblemCode::CommitTimeout,
        format!(
            "the decision was not durable after {} s; it may still take effect: {reason}",
            REPLY_TIMEOUT.as_secs()
        ),
    )
    .with_hint("repeat the request with the same id or Idempotency-Key: it is not done twice")
}

/// A defect of the actor: it sent the reply of another request.
fn unexpected_reply(reply: Reply) -> Problem {
    tracing::error!(?reply, "the reply does not fit the request");
    Problem::new(ProblemCode::Internal, "internal error of the master; see its log")
}

#[cfg(test)]
mod tests;
