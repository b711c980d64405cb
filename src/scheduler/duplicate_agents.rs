//! Two agents under one id: both would do the same tasks, and each heartbeat would revoke the
//! leases of the other. The second one is refused while the first is alive.
//!
//! An agent that was killed and restarted is another incarnation too, and must not wait. So a new
//! incarnation is accepted at first. If the previous one reports again, which a killed one never
//! does, the previous one continues and the new one is refused.

use super::{Now, State};
use crate::wire::WorkerId;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::worker::WorkerHeartbeat;
use std::collections::BTreeMap;

const MAX_REFUSED_INCARNATIONS: usize = 16;

pub(super) fn worker_id_taken(heartbeat: &WorkerHeartbeat) -> Problem {
    let detail = format!(
        "another agent runs as worker `{}` and is alive: this one gets no work until that one is stopped",
        heartbeat.worker_id
    );
    let problem = Problem::new(ProblemCode::WorkerIdTaken, detail);
    problem.with_hint("give one of the two another worker_id, or stop it")
}

impl State {
    /// Refuses a heartbeat of a duplicate agent.
    pub(super) fn refuse_duplicate(
        &mut self,
        heartbeat: &WorkerHeartbeat,
        now: Now,
    ) -> Result<(), Problem> {
        let timeout = self.settings.heartbeat_timeout_ms;
        let Some(known) = self.workers.get_mut(&heartbeat.worker_id) else { return Ok(()) };
        known.refused_incarnations.retain(|_, at| now.mono_ms.saturating_sub(*at) < timeout);
        let current = known.last_heartbeat.incarnation.as_ref();
        if current.is_none() || heartbeat.incarnation.as_ref() == current || known.has_left() {
            return Ok(());
        }
        let Some(incoming) = heartbeat.incarnation.as_ref() else {
            // It cannot be the live process, which reports an incarnation.
            if known.refused_incarnations.len() < MAX_REFUSED_INCARNATIONS {
                known.refused_incarnations.insert(String::new(), now.mono_ms);
            }
            return Err(worker_id_taken(heartbeat));
        };
        // The previous process may still finish its tasks beside its successor.
        let leaves = known.previous_incarnation.as_ref() == Some(incoming)
            && !heartbeat.status.can_accept_work();
        let room = known.refused_incarnations.len() < MAX_REFUSED_INCARNATIONS;
        let waits = known.refused_incarnations.contains_key(incoming);
        if !waits && (!leaves || !room) {
            return Ok(());
        }
        known.refused_incarnations.insert(incoming.clone(), now.mono_ms);
        Err(worker_id_taken(heartbeat))
    }

    /// The previous incarnation and the refused ones, after an accepted heartbeat.
    pub(super) fn resolve_incarnations(
        &self,
        id: &WorkerId,
        restarted: bool,
        heartbeat: &WorkerHeartbeat,
        now: Now,
    ) -> (Option<String>, BTreeMap<String, u64>) {
        let Some(known) = self.workers.get(id) else { return (None, BTreeMap::new()) };
        let mut refused = known.refused_incarnations.clone();
        if !restarted {
            return (known.previous_incarnation.clone(), refused);
        }
        let (current, incoming) =
            (known.last_heartbeat.incarnation.clone(), heartbeat.incarnation.as_ref());
        if let Some(incoming) = incoming {
            refused.remove(incoming);
        }
        let back = known.previous_incarnation.is_some()
            && known.previous_incarnation.as_ref() == incoming
            && !known.has_left();
        match current {
            Some(second) if back => {
                tracing::warn!(
                    worker = %id,
                    "two agents run under this id: the one that came last is refused; stop one of them"
                );
                if refused.len() < MAX_REFUSED_INCARNATIONS {
                    refused.insert(second, now.mono_ms);
                }
                (None, refused)
            }
            current => {
                tracing::info!(worker = %id, "the agent was restarted");
                (current, refused)
            }
        }
    }
}
