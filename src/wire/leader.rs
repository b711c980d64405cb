//! Leadership among several masters: the leader that followers report, and `GET /readyz?verbose`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The leading master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Host and listen address.
    pub name: String,
    /// The URL for clients; absent without an `advertise_url` or a specific listen address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The number of its leadership term: higher than that of every earlier one.
    pub epoch: u64,
    /// Start of its leadership by its own clock; absent where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// The role of a master in its installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterRole {
    /// It makes all decisions.
    Leader,
    /// It forwards requests to the leader, and takes over when the leader fails.
    Follower,
}

/// Whether a master can serve a request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadinessStatus {
    /// It is the leader and can commit decisions.
    Ready,
    /// It is a follower and can forward requests to the leader.
    Following,
    /// Requests are rejected with 503.
    Unavailable,
}

/// The state of the store, observed by one master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The URL or path, without passwords.
    pub location: String,
    /// Whether decisions can be stored.
    pub ok: bool,
    /// The failure; with `ok`: the reason why new syncs are not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /readyz?verbose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The HTTP status is 200, or 503 for `unavailable`.
    pub status: ReadinessStatus,
    /// The reason for `unavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The role of this master.
    pub role: MasterRole,
    /// The name of this master.
    pub name: String,
    /// The leader known to this master; itself, if it leads.
    pub leader: Option<Leader>,
    /// The store.
    pub store: StoreStatus,
    /// The version of this master.
    pub version: String,
    /// What an operator should change although the master works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
