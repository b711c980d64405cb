//! Who leads, among several masters: what followers tell, and `GET /readyz?verbose`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The master that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Its name: its host and where it listens.
    pub name: String,
    /// Where clients reach it; absent where it does not know that (see `advertise_url`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The number of its reign: higher than that of every one before.
    pub epoch: u64,
    /// Since when it leads, by its own clock; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// What a master is among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterRole {
    /// It decides.
    Leader,
    /// It sends requests on to the one that leads, and takes its place when it is gone.
    Follower,
}

/// Whether a request that is sent to a master now gets where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadinessStatus {
    /// It leads and can decide.
    Ready,
    /// It follows, and knows where the leader is.
    Following,
    /// Requests are refused with 503 for now.
    Unavailable,
}

/// The store as one master sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Where it is, without passwords.
    pub location: String,
    /// Whether decisions can be stored.
    pub ok: bool,
    /// What is wrong with it; where it is `ok`, it takes in no new syncs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /readyz?verbose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether requests are answered; the HTTP status is 200 or 503 accordingly.
    pub status: ReadinessStatus,
    /// Why they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What this master is.
    pub role: MasterRole,
    /// The name of this master.
    pub name: String,
    /// The one that leads as far as this one knows; itself, where it leads.
    pub leader: Option<Leader>,
    /// The store.
    pub store: StoreStatus,
    /// The version of this master.
    pub version: String,
}
