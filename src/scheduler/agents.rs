//! Agents with certificates: join tokens, joins, revocation, and the events of such agents. Each event is checked here
//! before it is handled; what is not listed is refused.

use super::agent_table::{
    AgentKey, AgentRecord, AgentTable, JoinTokenRecord, agent_key, join_hint, join_token_key,
};
use super::event::Join;
use super::record_keys::META_KEY;
use super::views::timestamp;
use super::worker_admin::unknown_worker;
use super::{Caller, Event, Now, Reply, State};
use crate::wire::join::{JoinTokenView, RevokeWorkerReply};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::TokenId;
use crate::wire::worker::WorkerHeartbeat;
use crate::wire::{AbsPath, TaskId, WorkerId};
use std::sync::Arc;

/// More join tokens are refused: twice as many as workers.
const MAX_JOIN_TOKENS: usize = 32_768;
/// Used, revoked and expired join tokens are listed for this time, in milliseconds.
const ENDED_TOKEN_RETENTION_MS: i64 = 30 * 24 * 3600 * 1000;

/// Whether a token ended so long ago that it is not listed any more.
fn is_outdated(view: &JoinTokenView, now: Now) -> bool {
    now.wall_ms.saturating_sub(view.expires_at.as_millisecond()) > ENDED_TOKEN_RETENTION_MS
}

fn unknown_token(id: &TokenId) -> Problem {
    Problem::new(ProblemCode::TokenNotFound, format!("there is no join token `{id}`"))
        .with_hint("list the tokens with: ctl token list")
}

/// Removes the storage paths that lie outside of `granted` from a heartbeat, and returns them.
fn cut_storage_paths(heartbeat: &mut WorkerHeartbeat, granted: &[AbsPath]) -> Vec<AbsPath> {
    let is_granted = |path: &AbsPath| granted.iter().any(|one| one.contains(path));
    let is_granted_text = |text: &String| AbsPath::new(text).is_ok_and(|path| is_granted(&path));
    let mut refused: Vec<AbsPath> =
        heartbeat.storage_paths.extract_if(.., |path| !is_granted(path)).collect();
    let lost = heartbeat.unavailable_paths.extract_if(.., |lost| !is_granted(&lost.path));
    refused.extend(lost.map(|lost| lost.path));
    heartbeat.storages.retain(|report| is_granted(&report.path));
    heartbeat.free_bytes.retain(|path, _| is_granted_text(path));
    heartbeat.root_ids.retain(|path, _| is_granted_text(path));
    refused.sort_unstable();
    refused.dedup();
    refused
}

impl State {
    /// The join tokens and agents at the last event.
    pub fn agents(&self) -> Arc<AgentTable> {
        Arc::clone(&self.agents)
    }

    pub(super) fn create_join_token(
        &mut self,
        record: JoinTokenRecord,
        now: Now,
    ) -> Result<Reply, Problem> {
        let agents = Arc::make_mut(&mut self.agents);
        for id in agents.remove_tokens_if(|view| is_outdated(view, now)) {
            self.outbox.write_record(join_token_key(&id));
        }
        if agents.token_count() >= MAX_JOIN_TOKENS {
            let detail = format!("there are {MAX_JOIN_TOKENS} join tokens, which is the limit");
            return Err(Problem::new(ProblemCode::TooManyTokens, detail)
                .with_hint("those that ended are removed a month later (ctl token list)"));
        }
        let view = record.view.clone();
        // Of a new store this is the first commit: the version of its records goes with it.
        self.outbox.write_record(META_KEY.to_owned());
        self.outbox.write_record(join_token_key(&view.id));
        agents.insert_token(record);
        Ok(Reply::JoinToken(Box::new(view)))
    }

    /// Revokes a join token; one that is revoked already keeps its time. An agent that has joined with it stays.
    pub(super) fn revoke_join_token(&mut self, id: &TokenId, now: Now) -> Result<Reply, Problem> {
        let known = self.agents.token(id).ok_or_else(|| unknown_token(id))?;
        let mut record = known.clone();
        if record.view.revoked_at.is_none() {
            record.view.revoked_at = Some(timestamp(now.wall_ms));
            Arc::make_mut(&mut self.agents).insert_token(record.clone());
            self.outbox.write_record(join_token_key(id));
        }
        Ok(Reply::JoinToken(Box::new(record.view)))
    }

    /// Uses a join token: from now on the certificates of this key, and no others, are those of the worker. The same agent
    /// may repeat it, because the reply may be lost.
    ///
    /// # Errors
    /// 401 for a token that is unknown, revoked or expired; 403 for one of another worker, or that another agent used.
    pub(super) fn use_join_token(&mut self, join: Join, now: Now) -> Result<Reply, Problem> {
        let Join { token: id, secret_digest, agent: AgentKey { worker, key, .. } } = join;
        let refused =
            |code, detail: String| Err(Problem::new(code, detail).with_hint(join_hint(&worker)));
        // The comparison of `Hash` takes the same time for all values.
        let has_secret = |record: &&JoinTokenRecord| {
            let stored = blake3::Hash::from_bytes(record.secret_digest.0);
            stored == blake3::Hash::from_bytes(secret_digest.0)
        };
        let Some(known) = self.agents.token(&id).filter(has_secret) else {
            let detail = "the join token is not one of this master".to_owned();
            return refused(ProblemCode::BadCredentials, detail);
        };
        let view = &known.view;
        if view.revoked_at.is_some() {
            return refused(ProblemCode::Revoked, format!("the join token {id} is revoked"));
        }
        if view.expires_at.as_millisecond() <= now.wall_ms {
            let detail = format!("the join token {id} has expired, at {}", view.expires_at);
            return refused(ProblemCode::Expired, detail);
        }
        if view.worker_id != worker {
            let of = &view.worker_id;
            let detail = format!("the join token {id} is for worker `{of}`, not for `{worker}`");
            return refused(ProblemCode::WorkerMismatch, detail);
        }
        if let Some(used_by) = known.used_by {
            let agent = self.agents.agent(&worker);
            let agent = agent.filter(|agent| agent.key == key && agent.revoked_at.is_none());
            return match agent.filter(|_| used_by == key) {
                Some(agent) => Ok(Reply::Joined(Box::new(agent.clone()))),
                None => {
                    let detail = format!("the join token {id} was used before, by another agent");
                    refused(ProblemCode::JoinTokenUsed, detail)
                }
            };
        }
        let mut record = known.clone();
        let joined_at = timestamp(now.wall_ms);
        record.used_by = Some(key);
        record.view.used_at = Some(joined_at);
        let storage_paths = record.view.storage_paths.clone();
        let agent = AgentRecord {
            worker,
            key,
            storage_paths,
            token: id,
            joined_at,
            revoked_at: None,
            authority: None,
        };
        tracing::info!(worker = %agent.worker, token = %agent.token, "an agent has joined");
        self.outbox.write_record(join_token_key(&agent.token));
        self.outbox.write_record(agent_key(&agent.worker));
        let agents = Arc::make_mut(&mut self.agents);
        agents.insert_token(record);
        agents.insert_agent(agent.clone());
        Ok(Reply::Joined(Box::new(agent)))
    }

    /// Refuses the certificate of a worker from now on, and requeues its tasks. A repeat changes nothing.
    pub(super) fn revoke_worker(&mut self, worker: &WorkerId, now: Now) -> Result<Reply, Problem> {
        let Some(agent) = self.agents.agent(worker) else {
            if self.workers.get(worker).is_none() {
                return Err(unknown_worker(worker));
            }
            let detail = format!(
                "worker `{worker}` has no certificate: its agent connects over loopback or to an insecure address"
            );
            return Err(Problem::new(ProblemCode::NotJoined, detail).with_hint(format!(
                "stop its agent, or keep it from new work with: ctl workers drain {worker}"
            )));
        };
        let revoked_at = agent.revoked_at.unwrap_or_else(|| timestamp(now.wall_ms));
        if agent.revoked_at.is_none() {
            let revoked = AgentRecord { revoked_at: Some(revoked_at), ..agent.clone() };
            Arc::make_mut(&mut self.agents).insert_agent(revoked);
            self.outbox.write_record(agent_key(worker));
        }
        let polls: Vec<Caller> = self.poll_queue.callers_of(worker).collect();
        for caller in polls {
            self.poll_queue.remove(caller);
            self.outbox.reply(caller, Reply::Assignment(None));
        }
        let held: Vec<TaskId> = self.tasks.held_by(worker).map(|task| task.id).collect();
        let requeued = held.len() as u64;
        tracing::info!(%worker, tasks = requeued, "is revoked");
        for task in held {
            self.requeue_lost(task, now);
        }
        self.workers.remove(worker);
        self.outbox.request_dispatch();
        let worker_id = worker.clone();
        Ok(Reply::WorkerRevoked(RevokeWorkerReply { worker_id, revoked_at, requeued }))
    }

    /// Checks an event of an agent. Returns the storage paths of a heartbeat that were removed, because its join token did
    /// not grant them. Without a certificate it may not use the name of a worker that has one.
    ///
    /// # Errors
    /// 403 for a certificate that is unknown, revoked, or of another worker than the event.
    pub(super) fn check_agent_event(
        &self,
        presented: Option<&AgentKey>,
        event: &mut Event,
    ) -> Result<Vec<AbsPath>, Problem> {
        let agent = presented.map(|presented| self.agents.verify(presented)).transpose()?;
        let worker = match event {
            Event::Heartbeat(heartbeat) => &heartbeat.worker_id,
            Event::Result(result) => &result.worker_id,
            Event::Poll { worker, .. }
            | Event::GetManifest { worker, .. }
            | Event::Page { worker, .. } => worker,
            _ => {
                let detail = "an agent may use the routes of agents only";
                return Err(Problem::new(ProblemCode::RoleMissing, detail));
            }
        };
        let Some(agent) = agent else {
            return match self.agents.agent(worker) {
                None => Ok(Vec::new()),
                Some(_) => {
                    let detail = format!(
                        "worker `{worker}` has joined with a certificate, and this agent presents none"
                    );
                    Err(Problem::new(ProblemCode::WorkerMismatch, detail)
                        .with_hint("give this agent another worker_id"))
                }
            };
        };
        if *worker != agent.worker {
            let own = &agent.worker;
            let detail =
                format!("the certificate is of worker `{own}`, the request is of `{worker}`");
            return Err(Problem::new(ProblemCode::WorkerMismatch, detail).with_hint(
                "each agent joins with a token of its own: give this one its own data_dir or worker_id",
            ));
        }
        match event {
            Event::Heartbeat(heartbeat) => Ok(cut_storage_paths(heartbeat, &agent.storage_paths)),
            _ => Ok(Vec::new()),
        }
    }

    /// Adds to the reply to a heartbeat what concerns certificates, and records by which authority that of the agent was
    /// issued.
    pub(super) fn complete_heartbeat_reply(
        &mut self,
        agent: Option<&AgentKey>,
        reply: Option<Reply>,
        refused_paths: Vec<AbsPath>,
    ) -> Option<Reply> {
        match reply {
            Some(Reply::Heartbeat(mut reply)) => {
                reply.refused_paths = refused_paths;
                if let Some(agent) = agent {
                    reply.authorities = self.accepted_authorities();
                    self.record_issuer(agent);
                }
                Some(Reply::Heartbeat(reply))
            }
            other => other,
        }
    }
}
