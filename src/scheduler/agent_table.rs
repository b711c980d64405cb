//! The join tokens of agents, and the agents that joined with one. The API gets a snapshot of them after each commit that
//! changed one.
//!
//! | key | record |
//! |---|---|
//! | `j/TOKEN` | a join token with the digest of its secret |
//! | `a/WORKER` | the agent of a worker: the key of its certificate, and its storage paths |

use crate::wire::join::{JoinTokenView, RevokedWorker};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::token::TokenId;
use crate::wire::{AbsPath, Digest, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A join token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// What it allows.
    pub view: JoinTokenView,
    /// BLAKE3 of the secret, which has 256 random bits.
    pub secret_digest: Digest,
    /// BLAKE3 of the public key of the agent that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Digest>,
}

/// An agent that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its worker.
    pub worker: WorkerId,
    /// BLAKE3 of the public key of its certificates.
    pub key: Digest,
    /// Its storage paths lie at or below one of these.
    pub storage_paths: Vec<AbsPath>,
    /// The token with which it joined.
    pub token: TokenId,
    /// When it joined.
    pub joined_at: Timestamp,
    /// Since when its certificates are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// BLAKE3 of the certificate of the authority that issued the one it presented last. `None`: it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<Digest>,
}

/// What the certificate of an agent states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    /// Its worker.
    pub worker: WorkerId,
    /// BLAKE3 of its public key.
    pub key: Digest,
    /// BLAKE3 of the certificate of the authority that issued it. `None`: it is not known.
    pub authority: Option<Digest>,
}

/// All join tokens and agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentTable {
    tokens: BTreeMap<TokenId, JoinTokenRecord>,
    agents: BTreeMap<WorkerId, AgentRecord>,
    /// Those of `agents` that are revoked: each heartbeat asks for them.
    revoked: BTreeMap<WorkerId, Timestamp>,
}

/// The command that creates a join token for a worker.
pub(super) fn join_hint(worker: &WorkerId) -> String {
    format!(
        "create a token and give it to the agent (--join-token-file): ctl token create --join --worker {worker} --path DIR"
    )
}

impl AgentTable {
    /// The agent with this certificate.
    ///
    /// # Errors
    /// 403 `certificate_unknown`, `worker_revoked`.
    pub fn verify(&self, presented: &AgentKey) -> Result<&AgentRecord, Problem> {
        let worker = &presented.worker;
        let found = self.agents.get(worker).filter(|agent| agent.key == presented.key);
        let agent = found.ok_or_else(|| {
            let detail = format!(
                "the certificate of worker `{worker}` is not the one of its last join to this installation"
            );
            Problem::new(ProblemCode::CertificateUnknown, detail).with_hint(join_hint(worker))
        })?;
        self.check_not_revoked(worker).map(|()| agent)
    }

    /// # Errors
    /// 403 `worker_revoked`.
    pub(super) fn check_not_revoked(&self, worker: &WorkerId) -> Result<(), Problem> {
        match self.revoked.get(worker) {
            None => Ok(()),
            Some(since) => {
                let detail = format!("worker `{worker}` was revoked at {since}");
                Err(Problem::new(ProblemCode::WorkerRevoked, detail).with_hint(join_hint(worker)))
            }
        }
    }

    pub(super) fn agent(&self, worker: &WorkerId) -> Option<&AgentRecord> {
        self.agents.get(worker)
    }

    /// The agents that are not revoked.
    pub(super) fn valid_agents(&self) -> impl Iterator<Item = &AgentRecord> {
        self.agents.values().filter(|agent| agent.revoked_at.is_none())
    }

    /// The workers with certificates that are refused.
    pub(super) fn revoked_workers(&self) -> Vec<RevokedWorker> {
        let revoked = self.revoked.iter();
        revoked
            .map(|(worker, at)| RevokedWorker { worker_id: worker.clone(), revoked_at: *at })
            .collect()
    }

    /// The workers that were revoked at `since_ms` (since 1970) or later.
    pub(super) fn revoked_since(&self, since_ms: i64) -> Vec<WorkerId> {
        let late = self.revoked.iter().filter(|(_, at)| at.as_millisecond() >= since_ms);
        late.map(|(worker, _)| worker.clone()).collect()
    }

    pub(super) fn insert_agent(&mut self, agent: AgentRecord) {
        match agent.revoked_at {
            Some(at) => self.revoked.insert(agent.worker.clone(), at),
            None => self.revoked.remove(&agent.worker),
        };
        self.agents.insert(agent.worker.clone(), agent);
    }

    pub(super) fn remove_agent(&mut self, worker: &WorkerId) {
        self.agents.remove(worker);
        self.revoked.remove(worker);
    }

    pub(super) fn token(&self, id: &TokenId) -> Option<&JoinTokenRecord> {
        self.tokens.get(id)
    }

    pub(super) fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// In the order of their creation.
    pub(super) fn token_views(&self) -> Vec<JoinTokenView> {
        let mut views: Vec<_> = self.tokens.values().map(|record| record.view.clone()).collect();
        views.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        views
    }

    pub(super) fn insert_token(&mut self, record: JoinTokenRecord) {
        self.tokens.insert(record.view.id.clone(), record);
    }

    /// Removes the tokens for which `is_outdated` holds, and returns their ids.
    pub(super) fn remove_tokens_if(
        &mut self,
        is_outdated: impl Fn(&JoinTokenView) -> bool,
    ) -> Vec<TokenId> {
        let outdated = self.tokens.extract_if(.., |_, record| is_outdated(&record.view));
        outdated.map(|(id, _)| id).collect()
    }

    pub(super) fn record_keys(&self) -> impl Iterator<Item = String> {
        self.tokens.keys().map(join_token_key).chain(self.agents.keys().map(agent_key))
    }
}

pub(super) fn join_token_key(id: &TokenId) -> String {
    format!("j/{id}")
}

pub(super) fn agent_key(worker: &WorkerId) -> String {
    format!("a/{worker}")
}
