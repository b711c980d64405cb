//! Two agents under one id: both would do the same tasks, and each heartbeat would take away what the other
//! has. The second is refused as long as the first is alive.
//!
//! An agent that was killed and started again is another incarnation as well, and must not wait. So a new
//! incarnation is believed at first, and when the one before comes back all the same, which one that was
//! killed never does, that one goes on and the new one is refused.

use super::{Now, State};
use crate::wire::WorkerId;
use crate::wire::problem::Problem;
use crate::wire::worker::WorkerHeartbeat;
use std::collections::BTreeMap;

/// So many refused incarnations are remembered.
const MOST_REFUSED: usize = 16;

/// The refusal of a heartbeat that comes from a second agent.
fn id_taken(said: &WorkerHeartbeat) -> Problem {
    let detail = format!(
        "another agent runs as worker `{}` and is alive: this one gets no work until that one is stopped",
        said.worker_id
    );
    let problem = Problem::new(409, "Conflict", "worker_id_taken", detail);
    problem.with_hint("give one of the two another worker_id, or stop it")
}

impl State {
    /// Why a heartbeat is not taken: it comes from a second agent.
    pub(super) fn refuse_second(&mut self, said: &WorkerHeartbeat, now: Now) -> Option<Problem> {
        let timeout = self.settings.heartbeat_timeout_ms;
        let known = self.workers.get_mut(&said.worker_id)?;
        known.refused.retain(|_, at| now.mono_ms.saturating_sub(*at) < timeout);
        let current = known.said.incarnation.as_ref()?;
        if said.incarnation.as_ref() == Some(current) || known.is_gone() {
            return None;
        }
        let Some(incoming) = said.incarnation.as_ref() else {
            // It cannot be the process that is alive: that one names itself.
            if known.refused.len() < MOST_REFUSED {
                known.refused.insert(String::new(), now.mono_ms);
            }
            return Some(id_taken(said));
        };
        // The one before may still be ending what it had, beside one that was started for it.
        let leaves = known.before.as_ref() == Some(incoming) && !said.status.can_accept_work();
        let room = known.refused.len() < MOST_REFUSED;
        let waits = known.refused.contains_key(incoming);
        if !waits && (!leaves || !room) {
            return None;
        }
        known.refused.insert(incoming.clone(), now.mono_ms);
        Some(id_taken(said))
    }

    /// The incarnation before and the refused ones, after a heartbeat that is taken.
    pub(super) fn incarnations(
        &self,
        id: &WorkerId,
        restarted: bool,
        said: &WorkerHeartbeat,
        now: Now,
    ) -> (Option<String>, BTreeMap<String, u64>) {
        let Some(known) = self.workers.get(id) else { return (None, BTreeMap::new()) };
        let mut refused = known.refused.clone();
        if !restarted {
            return (known.before.clone(), refused);
        }
        let (current, incoming) = (known.said.incarnation.clone(), said.incarnation.as_ref());
        if let Some(incoming) = incoming {
            refused.remove(incoming);
        }
        let back = known.before.is_some() && known.before.as_ref() == incoming && !known.is_gone();
        match current {
            Some(second) if back => {
                tracing::warn!(
                    worker = %id,
                    "two agents run under this id: the one that came last is refused; stop one of them"
                );
                if refused.len() < MOST_REFUSED {
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
