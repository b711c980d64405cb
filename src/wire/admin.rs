//! What `POST /admin/reconcile` and `POST /admin/confirm-clock` answer.

use super::{RequestId, TaskId, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The wall clock of the leader is taken for right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmClockReply {
    /// What it shows.
    pub time: Timestamp,
    /// By how many seconds it was ahead of what was expected; negative: behind.
    pub ahead_seconds: i64,
}

/// A task that was leased by nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequeuedTask {
    /// Of which sync.
    pub request_id: RequestId,
    /// Its number.
    pub task_id: TaskId,
    /// What is to be done.
    pub kind: String,
    /// Who had it.
    pub worker_id: WorkerId,
    /// Why that was nobody.
    pub reason: String,
}

/// What was put right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileReply {
    /// Tasks that went back to the queue.
    pub requeued_tasks: u64,
    /// The first of them.
    pub requeued: Vec<RequeuedTask>,
    /// Records in the store that belonged to nothing.
    pub dropped_records: u64,
    /// Manifests and name lists in the store that belonged to nothing.
    pub dropped_blobs: u64,
    /// Records that were missing in the store and were written again.
    pub restored_records: u64,
    /// Syncs that began anew, because manifests of theirs were missing in the store.
    pub restarted_syncs: Vec<RequestId>,
}
