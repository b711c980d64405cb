//! Heartbeats, and the view of workers that operators get.

use super::join::RevokedWorker;
use super::path::quote;
use super::storage::{StorageCheck, StorageCheckReport, StorageReport};
use super::text_enum::text_enum;
use super::ticket::SignedTicket;
use super::worker_selector::Labels;
use super::{AbsPath, AssignmentId, Digest, RequestId, StorageId, SyncNo, WorkerId, is_default};
use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The data-plane port of an endpoint without one.
pub const DEFAULT_DATA_PORT: u16 = 8889;

/// The version of the documents between master and agents ([`WorkerHeartbeat::protocol`]) and of the data plane. A
/// change that the other side cannot read raises it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Separates boot id and root id in [`boot_and_root`]; neither contains it.
pub const ROOT_SEPARATOR: char = '#';

/// The open root with this id ([`WorkerHeartbeat::root_ids`]) under this boot of the kernel: each kernel numbers its
/// file systems anew, and may give the number of one to another.
pub fn boot_and_root(boot_id: &str, root_id: &str) -> String {
    format!("{boot_id}{ROOT_SEPARATOR}{root_id}")
}

text_enum! {
    /// The status that an agent reports.
    #[derive(Hash)]
    pub enum WorkerStatus {
        /// Ready for work (the same as `Idle`).
        Ready = "READY",
        /// No assignment.
        Idle = "IDLE",
        /// At least one assignment.
        Transferring = "TRANSFERRING",
        /// It cannot work: it gets no assignments.
        Error = "ERROR",
        /// It finishes its assignments and accepts no more.
        Draining = "DRAINING",
        /// The process ends: this is its last heartbeat.
        Stopped = "STOPPED",
    }
}

impl WorkerStatus {
    /// Whether it may get assignments.
    pub fn can_accept_work(self) -> bool {
        matches!(self, WorkerStatus::Ready | WorkerStatus::Idle | WorkerStatus::Transferring)
    }
}

text_enum! {
    /// The state of a worker that operators see: its status together with drain requests and missing heartbeats.
    #[derive(Hash)]
    pub enum WorkerState {
        /// A heartbeat arrived within the heartbeat timeout.
        Active = "ACTIVE",
        /// It accepts no new work, and still has assignments or executes requests of other agents.
        Draining = "DRAINING",
        /// It accepts no new work, and has neither assignments nor requests of other agents.
        Drained = "DRAINED",
        /// Its process ended regularly.
        Stopped = "STOPPED",
        /// No heartbeat within the heartbeat timeout.
        Inactive = "INACTIVE",
    }
}

/// An address on which an agent serves the data plane. On the wire `{iface, address, port?}` or a
/// bare string `address` or `address:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// The interface, e.g. `ib0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iface: Option<String>,
    /// A literal IP address, or a host name.
    pub address: String,
    /// The default is [`DEFAULT_DATA_PORT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Whether a host has the form of an IPv4 address (its last part is a number) but is invalid, e.g. `300.1.1.1`. No host
/// name ends in a number (WHATWG URL, "ends in a number").
pub fn is_malformed_ipv4(host: &str) -> bool {
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let is_number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    is_number && host.parse::<std::net::Ipv4Addr>().is_err()
}

impl Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        let port = self.port.unwrap_or(DEFAULT_DATA_PORT);
        if self.address.contains(':') {
            format!("[{}]:{port}", self.address)
        } else {
            format!("{}:{port}", self.address)
        }
    }

    /// An endpoint with checked parts.
    ///
    /// # Errors
    /// An address that is neither an IP address nor a host name, or an invalid interface name.
    pub fn new(iface: Option<String>, address: &str, port: Option<u16>) -> Result<Self, String> {
        Self::from_parts(iface, address, port.map(u64::from))
    }

    fn from_parts(iface: Option<String>, address: &str, port: Option<u64>) -> Result<Self, String> {
        let is_host = address.parse::<std::net::IpAddr>().is_ok()
            || (!address.is_empty()
                && !is_malformed_ipv4(address)
                && address.len() <= 253
                && !address.starts_with(['-', '.'])
                && address.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'));
        if !is_host {
            return Err(format!("{} is not an IP address", quote(address)));
        }
        let port = match port {
            None => None,
            Some(p @ 1..=65535) => Some(p as u16),
            Some(p) => return Err(format!("port {p} is not in 1..=65535")),
        };
        if let Some(name) = &iface
            && (name.is_empty()
                || name.len() > 15
                || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'))
        {
            return Err(format!("{} is not an interface name", quote(name)));
        }
        Ok(Endpoint { iface, address: address.to_owned(), port })
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;
    /// `address`, `address:port`, `[v6]:port`.
    fn from_str(s: &str) -> Result<Self, String> {
        if s.contains('%') {
            return Err(format!("{} contains an interface, which belongs into `iface`", quote(s)));
        }
        if let Ok(sock) = s.parse::<std::net::SocketAddr>() {
            return Self::from_parts(None, &sock.ip().to_string(), Some(sock.port().into()));
        }
        match s.split_once(':') {
            Some((host, port)) if !port.contains(':') => {
                let port = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
                Self::from_parts(None, host, Some(port))
            }
            _ => Self::from_parts(None, s, None),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct EndpointVisitor;
        impl<'de> Visitor<'de> for EndpointVisitor {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an endpoint: \"address\" or {\"iface\", \"address\", \"port\"}")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Endpoint, E> {
                v.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Endpoint, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Parts {
                    #[serde(alias = "interface")]
                    iface: Option<String>,
                    address: String,
                    port: Option<u64>,
                }
                let parts = Parts::deserialize(MapAccessDeserializer::new(map))?;
                Endpoint::from_parts(parts.iface, &parts.address, parts.port)
                    .map_err(de::Error::custom)
            }
        }
        d.deserialize_any(EndpointVisitor)
    }
}

/// `POST /workers/heartbeat`. Agents of the predecessor send only the first six fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerHeartbeat {
    /// The sender.
    pub worker_id: WorkerId,
    /// The current status.
    pub status: WorkerStatus,
    /// The directories that it can read and write.
    #[serde(default)]
    pub storage_paths: Vec<AbsPath>,
    /// The addresses of its data plane.
    #[serde(default)]
    pub data_plane_endpoints: Vec<Endpoint>,
    /// Sent by agents of the predecessor; displayed, not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<serde_json::Value>,
    /// The address of the host for people; displayed, not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_address: Option<String>,
    /// Random per process start: a new one releases the assignments of the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The boot id of the kernel: agents with the same one share a page cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Free bytes per storage path; a path that cannot be read is missing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub free_bytes: BTreeMap<String, u64>,
    /// All assignments of the agent; their leases are renewed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignments: Vec<AssignmentId>,
    /// Content bytes moved so far, for each of `assignments` that moves content.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved_bytes: BTreeMap<AssignmentId, u64>,
    /// The number of requests of other agents that it executes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub incoming_requests: u32,
    /// The maximum number of concurrent tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The version of the agent program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// [`PROTOCOL_VERSION`]. An agent without one (of the predecessor) gets no task of a sync with options or with a
    /// limit: it would ignore these, and write in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// The usage of each sync with a bandwidth limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub usage: BTreeMap<RequestId, BandwidthUsage>,
    /// Statistics of the data-plane endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicReport>,
    /// Storage paths that are not served: missing, replaced by another directory, or on a mount that hangs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_paths: Vec<UnavailablePath>,
    /// Data-plane endpoints that it does not listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_endpoints: Vec<UnavailableEndpoint>,
    /// For each storage path an id of the directory that is open there. It changes if the path leads to another
    /// directory, as long as the kernel runs; see [`boot_and_root`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub root_ids: BTreeMap<String, String>,
    /// What identifies each of `storage_paths`. A path without an entry is taken for a storage of this worker alone,
    /// unless the master's configuration names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storages: Vec<StorageReport>,
    /// What came of the checks that the last reply asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage_checks: Vec<StorageCheckReport>,
    /// By which operators may select it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Tickets of some of `assignments`, for which it needs new ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tickets: Vec<SignedTicket>,
    /// The [`EndedSyncs::cursor`] of the last reply that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_seen: Option<EndedCursor>,
}

/// How far an agent has read the list of ended syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedCursor {
    /// Random for each term of a master, which has a list of its own.
    pub term: u32,
    /// The number of entries before the next one.
    pub position: u64,
}

/// Syncs that have ended: agents refuse their tickets, but not those of a clean-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedSyncs {
    /// For the next heartbeat.
    pub cursor: EndedCursor,
    /// Their numbers.
    pub syncs: Vec<SyncNo>,
}

/// A storage path of a worker that is currently not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnavailablePath {
    /// The configured path.
    pub path: AbsPath,
    /// A text for operators.
    pub reason: String,
}

/// A data-plane endpoint on which a worker currently does not listen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnavailableEndpoint {
    /// `host:port`.
    pub endpoint: String,
    /// A text for operators.
    pub reason: String,
}

/// How an agent used its share of the limit of a sync. Both counters start at 0 when the agent first works for the sync, or
/// works for it again after it dropped the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthUsage {
    /// Bytes sent.
    pub sent_bytes: u64,
    /// The time that it waited because of its share, in milliseconds.
    pub throttled_ms: u64,
}

/// Statistics of one data-plane endpoint of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicReport {
    /// `host:port`, as in the endpoints.
    pub endpoint: String,
    /// The configured interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface: Option<String>,
    /// Bytes sent over its data connections since the agent started, including protocol overhead.
    #[serde(default)]
    pub sent: u64,
    /// Bytes received.
    #[serde(default)]
    pub received: u64,
    /// Open data connections.
    #[serde(default)]
    pub connections: u32,
    /// Active requests of this agent.
    #[serde(default)]
    pub requests: u32,
    /// The send rate while there is content to send, in bytes per second, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<u64>,
    /// The receive rate since the previous heartbeat, in bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_rate: Option<u64>,
    /// The reason why the endpoint is not used for sending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
}

/// The reply to a heartbeat. To an agent without an incarnation only `status` is sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Always `ok`.
    pub status: String,
    /// The Ed25519 public keys for the verification of tickets, base64: more than one while a key is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ticket_keys: Vec<String>,
    /// The clock of the master, seconds since 1970: the expiry of a ticket is compared with it, not with the clock of the
    /// agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// Assignments of the heartbeat that are no longer valid: the agent stops them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked_assignments: Vec<AssignmentId>,
    /// New tickets for assignments of the heartbeat, instead of its [`tickets`](WorkerHeartbeat::tickets).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tickets: BTreeMap<AssignmentId, SignedTicket>,
    /// Syncs that have ended since the last reply that the agent has read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_syncs: Option<EndedSyncs>,
    /// Workers that serve the destination of one of the assignments and sent no heartbeat within the timeout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unresponsive_workers: Vec<WorkerId>,
    /// The new share of the worker in the limit of a sync, in bytes per second; `null`: unlimited. Other syncs keep their
    /// share.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bwlimits: BTreeMap<RequestId, Option<u64>>,
    /// The time until the next heartbeat, in milliseconds, if that is sooner than the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_heartbeat_ms: Option<u64>,
    /// What the agent does so that its storages can be compared with those of other workers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage_checks: Vec<StorageCheck>,
    /// Storage paths of the heartbeat that are not used, because the join token of the agent did not grant them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_paths: Vec<AbsPath>,
    /// All workers that were revoked lately: the agent refuses their tickets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked_workers: Vec<WorkerId>,
    /// To an agent with a certificate: BLAKE3 of the certificates of the authorities that are accepted, the one that issues
    /// certificates first. If the agent has others, it renews its certificate now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Digest>,
}

/// One worker in the view of operators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The last reported status, or `DRAINING` with `drained`.
    pub status: WorkerStatus,
    /// See [`WorkerState`].
    pub state: WorkerState,
    /// Whether a heartbeat arrived within the heartbeat timeout.
    pub active: bool,
    /// The arrival of the last heartbeat.
    pub last_heartbeat: Timestamp,
    /// The directories that it can read and write.
    pub storage_paths: Vec<AbsPath>,
    /// The addresses of its data plane.
    pub data_plane_endpoints: Vec<Endpoint>,
    /// The address of the host for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_address: Option<String>,
    /// By which operators may select it.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The storage of each storage path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_ids: BTreeMap<String, StorageId>,
    /// Free bytes per storage path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub free_bytes: BTreeMap<String, u64>,
    /// The number of its leased tasks.
    pub in_flight: u64,
    /// The number of requests of other agents that it executes.
    #[serde(default)]
    pub incoming_requests: u32,
    /// The number of syncs that it works for.
    pub syncs: u64,
    /// The maximum number of concurrent tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The version of the agent program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The reason why it gets no work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Statistics of the data-plane endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicReport>,
    /// Storage paths that are not served: it gets no work there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_paths: Vec<UnavailablePath>,
    /// Data-plane endpoints that it does not listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_endpoints: Vec<UnavailableEndpoint>,
    /// Present while the worker is drained by an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<DrainInfo>,
}

/// `POST /workers/{id}/drain`; the body is optional.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The name of the operator, as free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The purpose, as free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The drain of a worker by an operator: it gets no new work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainInfo {
    /// The name of the operator, as free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The purpose, as free text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The time of the drain request.
    pub since: Timestamp,
}

impl DrainInfo {
    /// A text for operators, e.g. `drained by ann: new disks`.
    pub fn describe(&self) -> String {
        let by = self.by.as_deref().unwrap_or("an operator");
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("drained by {by}{reason}")
    }
}

/// The reply to `POST /workers/{id}/drain` and `…/undrain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// Present while the worker is drained.
    pub drained: Option<DrainInfo>,
    /// The current state.
    pub state: WorkerState,
    /// The number of its remaining tasks.
    pub in_flight: u64,
    /// The number of requests of other agents that it executes.
    pub incoming_requests: u32,
}

/// The reply to `DELETE /workers/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetWorkerReply {
    /// Always `forgotten`.
    pub status: String,
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The number of its tasks that returned to the queue.
    pub requeued: u64,
}

/// `GET /workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerList {
    /// Workers with a heartbeat within the heartbeat timeout.
    pub active: Vec<WorkerView>,
    /// Workers without one.
    pub inactive: Vec<WorkerView>,
    /// Workers with a certificate that is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<RevokedWorker>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_text_or_object() {
        let of = |s: &str| serde_json::from_str::<Endpoint>(s);
        let ib = of(r#"{"iface": "ib0", "address": "192.168.100.10"}"#).unwrap();
        assert_eq!(
            (ib.iface.as_deref(), ib.authority().as_str()),
            (Some("ib0"), "192.168.100.10:8889")
        );
        assert_eq!(of(r#""10.0.0.1:9000""#).unwrap().port, Some(9000));
        assert_eq!(of(r#""[fe80::1]:9000""#).unwrap().authority(), "[fe80::1]:9000");
        assert_eq!(of(r#""fe80::1""#).unwrap().authority(), "[fe80::1]:8889");
        for bad in [
            r#""""#,
            r#""10.0.0.1\r\nX""#,
            r#"{"address":"a","port":0}"#,
            r#"{"address":"a","port":65536}"#,
            r#"{"address":"a","nic":"x"}"#,
            r#"{"iface":"ib0"}"#,
            r#""a:b:c""#,
            r#"{"address":"a","iface":"../x"}"#,
            r#""fe80::1%ib0""#,
            // A scope id is valid on one host only: without it the address would be another one.
            r#""[fe80::1%2]:9000""#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
