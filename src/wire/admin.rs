//! Replies to `POST /admin/reconcile`, `POST /admin/confirm-clock` and `POST /admin/rotate-ticket-key`.

use super::{RequestId, TaskId, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The reply to `POST /admin/confirm-clock`: the wall clock of the leader is accepted as correct.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmClockReply {
    /// The time that is accepted.
    pub time: Timestamp,
    /// Difference to the expected time, in seconds; negative: the clock was behind.
    pub ahead_seconds: i64,
}

/// The reply to `POST /admin/rotate-ticket-key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateTicketKeyReply {
    /// The id of the new key.
    pub key_id: String,
    /// The time after which it signs, in seconds: until then agents get its public key with their heartbeats.
    pub signs_in_seconds: u64,
    /// The id of the key that signs now.
    pub previous_key_id: String,
    /// The time for which tickets of that key are accepted, in seconds.
    pub previous_valid_seconds: u64,
}

/// A task with a lease that no worker holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequeuedTask {
    /// The sync of the task.
    pub request_id: RequestId,
    /// The number of the task.
    pub task_id: TaskId,
    /// The kind of task, e.g. `copy`.
    pub kind: String,
    /// The worker in the lease.
    pub worker_id: WorkerId,
    /// The reason why the lease is invalid.
    pub reason: String,
}

/// The reply to `POST /admin/reconcile`: the repairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileReply {
    /// Tasks that went back to the queue.
    pub requeued_tasks: u64,
    /// The first of these tasks.
    pub requeued: Vec<RequeuedTask>,
    /// Records in the store without an owner in the state.
    pub dropped_records: u64,
    /// Manifests and file lists in the store without an owner in the state.
    pub dropped_blobs: u64,
    /// Records that were missing in the store and were rewritten.
    pub restored_records: u64,
    /// Syncs that restarted, because the store lacked some of their manifests.
    pub restarted_syncs: Vec<RequestId>,
}
