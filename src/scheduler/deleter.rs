//! Deletion goes through one agent of the destination, which counts the deleted entries. Several
//! agents would each delete up to the limits of the sync.

use super::worker_registry::Worker;
use crate::wire::WorkerId;
use crate::wire::ticket::DeleteGrant;
use serde::{Deserialize, Serialize};

/// The agent through which the tasks of a sync delete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Deleter {
    pub(super) worker: WorkerId,
    /// The grant that its tickets carry.
    pub(super) deletion: DeleteGrant,
    /// A task failed since it was chosen: another agent is tried next.
    pub(super) has_failed: bool,
}

impl Deleter {
    /// Whether `worker` is still the chosen process and can be reached.
    pub(super) fn is_same_process(&self, worker: &Worker) -> bool {
        worker.is_active
            && worker.drained.is_none()
            && worker.last_heartbeat.incarnation.as_ref() == Some(&self.deletion.incarnation)
    }
}
