//! The certificate authority of the installation, and its rotation: when another authority replaces it, certificates of
//! both are accepted until an operator finishes the rotation.

use super::agent_table::{AgentKey, AgentRecord, agent_key};
use super::record_keys::{AUTHORITY_KEY, META_KEY};
use super::views::timestamp;
use super::{Now, Reply, State};
use crate::identity::{ReplacedAuthority, SealedAuthority};
use crate::util::units::pluralize;
use crate::wire::Digest;
use crate::wire::admin::{AuthorityView, PreviousAuthorityView};
use crate::wire::problem::{Problem, ProblemCode};
use std::sync::Arc;

/// The workers that a reply names.
const MAX_NAMED_WORKERS: usize = 100;
/// … and the text of a problem.
const MAX_WORKERS_IN_TEXT: usize = 5;

fn no_authority() -> Problem {
    Problem::new(ProblemCode::NoAuthority, "this installation has no certificate authority yet")
        .with_hint(
            "it is made when a master with TLS starts: listen: ['127.0.0.1:8888', 'ADDRESS:8888']",
        )
}

impl State {
    /// The certificate authority at the last event.
    pub fn authority(&self) -> Option<Arc<SealedAuthority>> {
        self.authority.clone()
    }

    pub(super) fn store_authority(&mut self, authority: SealedAuthority) {
        self.authority = Some(Arc::new(authority));
        self.outbox.write_record(META_KEY.to_owned());
        self.outbox.write_record(AUTHORITY_KEY.to_owned());
    }

    /// Replaces the authority by `next`. A repeat, also by another operator, changes nothing until the rotation is finished.
    pub(super) fn rotate_authority(&mut self, next: SealedAuthority) -> Result<Reply, Problem> {
        let current = self.authority.as_ref().ok_or_else(no_authority)?;
        if !current.is_rotating() {
            if !next.succeeds(current.hash) {
                let detail = "the authority was replaced at this moment";
                return Err(Problem::new(ProblemCode::AuthorityInUse, detail).with_hint(
                    "see its state, and try again if needed: ctl admin rotate ca --status",
                ));
            }
            tracing::info!(from = %current.hash, to = %next.hash, "another certificate authority");
            self.store_authority(next);
        }
        self.show_authority()
    }

    /// Refuses certificates of the former authority from now on.
    ///
    /// # Errors
    /// 409 while agents have such certificates, unless `force`.
    pub(super) fn finish_rotation(&mut self, force: bool, now: Now) -> Result<Reply, Problem> {
        let current = self.authority.clone().ok_or_else(no_authority)?;
        let previous = current.previous.as_ref();
        if let Some(previous) = previous.filter(|previous| previous.finished_at.is_none()) {
            let may_be_used = now.wall_ms < previous.certificates_end_at.as_millisecond();
            let left: Vec<&AgentRecord> = self.agents_left(current.hash).collect();
            if may_be_used && !force && !left.is_empty() {
                return Err(in_use(&left, previous));
            }
            self.store_authority(current.finished(timestamp(now.wall_ms)));
        }
        self.show_authority()
    }

    pub(super) fn show_authority(&self) -> Result<Reply, Problem> {
        let current = self.authority.as_ref().ok_or_else(no_authority)?;
        let left = || self.agents_left(current.hash);
        let previous = current.previous.as_ref().map(|previous| PreviousAuthorityView {
            authority: previous.hash,
            replaced_at: previous.replaced_at,
            certificates_end_at: previous.certificates_end_at,
            finished_at: previous.finished_at,
            agents_left: left().count() as u64,
            workers_left: left().take(MAX_NAMED_WORKERS).map(|one| one.worker.clone()).collect(),
        });
        let agents = self.agents.valid_agents().count() as u64;
        Ok(Reply::Authority(Box::new(AuthorityView { authority: current.hash, agents, previous })))
    }

    /// The agents that have not presented a certificate of the authority with this hash yet.
    fn agents_left(&self, hash: Digest) -> impl Iterator<Item = &AgentRecord> {
        self.agents.valid_agents().filter(move |agent| agent.authority != Some(hash))
    }

    pub(super) fn accepted_authorities(&self) -> Vec<Digest> {
        self.authority.as_ref().map(|authority| authority.accepted()).unwrap_or_default()
    }

    /// Records the authority that issued the certificate of an agent, if it is another one than before.
    pub(super) fn record_issuer(&mut self, presented: &AgentKey) {
        let Some(issuer) = presented.authority else { return };
        let Some(agent) = self.agents.agent(&presented.worker) else { return };
        if agent.authority != Some(issuer) {
            let agent = AgentRecord { authority: Some(issuer), ..agent.clone() };
            self.outbox.write_record(agent_key(&agent.worker));
            Arc::make_mut(&mut self.agents).insert_agent(agent);
        }
    }
}

fn in_use(left: &[&AgentRecord], previous: &ReplacedAuthority) -> Problem {
    let named = left.iter().take(MAX_WORKERS_IN_TEXT).map(|agent| agent.worker.as_str());
    let mut named = named.collect::<Vec<_>>().join(", ");
    if left.len() > MAX_WORKERS_IN_TEXT {
        named.push_str(", …");
    }
    let agents = pluralize(left.len() as u64, "agent has", "agents have");
    let detail = format!(
        "{agents} not connected with a certificate of the new authority yet ({named}), and would have to join again"
    );
    let end = previous.certificates_end_at;
    Problem::new(ProblemCode::AuthorityInUse, detail).with_hint(format!(
        "start these agents, or revoke their workers (ctl workers revoke ID), or wait until {end}, when their certificates \
         have expired; or let them join again: ctl admin rotate ca --finish --force"
    ))
}
