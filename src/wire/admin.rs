//! Documents of the routes `/admin/…` that are not about tokens.

use super::{Digest, RequestId, TaskId, WorkerId};
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

/// `POST /admin/rotate-ca/finish`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinishRotationRequest {
    /// Also while agents use certificates of the former authority: they must then join again.
    #[serde(default)]
    pub force: bool,
}

/// The reply to `GET /admin/ca`, `POST /admin/rotate-ca` and `POST /admin/rotate-ca/finish`: the authority that issues the
/// certificates of the installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityView {
    /// BLAKE3 of its certificate.
    pub authority: Digest,
    /// The agents that may connect with a certificate.
    pub agents: u64,
    /// The authority before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousAuthorityView>,
}

/// An authority that another one replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousAuthorityView {
    /// BLAKE3 of its certificate.
    pub authority: Digest,
    /// Since when it issues nothing.
    pub replaced_at: Timestamp,
    /// When the last certificate that it issued expires.
    pub certificates_end_at: Timestamp,
    /// Since when its certificates are refused; absent: they are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The agents that have not connected with a certificate of the other authority yet.
    pub agents_left: u64,
    /// The first of their workers, at most 100.
    pub workers_left: Vec<WorkerId>,
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
