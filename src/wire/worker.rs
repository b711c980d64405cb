//! What an agent says of itself, and what operators see of it.

use super::{AbsPath, AssignmentId, RequestId, WorkerId};
use jiff::Timestamp;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The data-plane port of an endpoint that names none.
pub const DEFAULT_DATA_PORT: u16 = 8889;

/// What our agents understand ([`WorkerHeartbeat::protocol`]), and our masters
/// ([`HeartbeatReply::protocol`]). 2: an assignment's options, by which a dry run is one, and the stages
/// behind the copy. 3: limits on bytes per second, and how an agent's NICs do
/// ([`WorkerHeartbeat::nics`]). 4: storage paths that are not
/// there ([`WorkerHeartbeat::unavailable_paths`]). 5: how far what is in hand is
/// ([`WorkerHeartbeat::moved_bytes`]), what others write through an agent ([`WorkerHeartbeat::incoming_requests`]),
/// and [`WorkerStatus::Stopped`].
pub const PROTOCOL_VERSION: u32 = 5;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WorkerStatus {
    /// Ready for work (the same as `Idle`).
    Ready,
    /// Nothing in hand.
    Idle,
    /// Something in hand.
    Transferring,
    /// Something is wrong with it: it gets no work.
    Error,
    /// It finishes what it has and takes no more.
    Draining,
    /// It has ended: this is its last heartbeat. Only sent to a master that understands it.
    Stopped,
}

impl WorkerStatus {
    /// Whether it may be given work.
    pub fn can_accept_work(self) -> bool {
        matches!(self, WorkerStatus::Ready | WorkerStatus::Idle | WorkerStatus::Transferring)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerStatus::Ready => "READY",
            WorkerStatus::Idle => "IDLE",
            WorkerStatus::Transferring => "TRANSFERRING",
            WorkerStatus::Error => "ERROR",
            WorkerStatus::Draining => "DRAINING",
            WorkerStatus::Stopped => "STOPPED",
        }
    }
}

/// What operators are shown of a worker in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WorkerState {
    /// Its heartbeats are recent.
    Active,
    /// It takes no new work, and still has some, or others still write through it.
    Draining,
    /// It takes no new work and has none, and nobody writes through it.
    Drained,
    /// Its process has ended as it should.
    Stopped,
    /// It was not heard of for the heartbeat time-out.
    Inactive,
}

impl WorkerState {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Active => "ACTIVE",
            WorkerState::Draining => "DRAINING",
            WorkerState::Drained => "DRAINED",
            WorkerState::Stopped => "STOPPED",
            WorkerState::Inactive => "INACTIVE",
        }
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
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
    /// [`DEFAULT_DATA_PORT`] where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Whether a host reads as an IPv4 address (its last part is a number) and is none, e.g. `300.1.1.1`. No host name
/// ends so (WHATWG URL, "ends in a number").
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

    /// Puts one together from its parts.
    ///
    /// # Errors
    /// An address that is neither an IP address nor a host name, or an interface name that is none.
    pub fn new(iface: Option<String>, address: &str, port: Option<u16>) -> Result<Self, String> {
        Self::from_parts(iface, address, port.map(u64::from))
    }

    /// Checks the parts.
    fn from_parts(iface: Option<String>, address: &str, port: Option<u64>) -> Result<Self, String> {
        let host_ok = address.parse::<std::net::IpAddr>().is_ok()
            || (!address.is_empty()
                && !is_malformed_ipv4(address)
                && address.len() <= 253
                && !address.starts_with(['-', '.'])
                && address.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.'));
        if !host_ok {
            return Err(format!(
                "`{}` is not an IP address",
                super::path::escape_bytes(address.as_bytes())
            ));
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
            return Err(format!(
                "`{}` is not an interface name",
                super::path::escape_bytes(name.as_bytes())
            ));
        }
        Ok(Endpoint { iface, address: address.to_owned(), port })
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;
    /// `address`, `address:port`, `[v6]:port`.
    fn from_str(s: &str) -> Result<Self, String> {
        if s.contains('%') {
            let shown = super::path::escape_bytes(s.as_bytes());
            return Err(format!("`{shown}` names an interface, which goes into `iface`"));
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
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Endpoint;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an endpoint: \"address\" or {\"iface\", \"address\", \"port\"}")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Endpoint, E> {
                v.parse().map_err(E::custom)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Endpoint, A::Error> {
                let (mut iface, mut address, mut port) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "iface" | "interface" => iface = map.next_value::<Option<String>>()?,
                        "address" => address = Some(map.next_value::<String>()?),
                        "port" => port = map.next_value::<Option<u64>>()?,
                        other => {
                            return Err(de::Error::unknown_field(
                                other,
                                &["iface", "address", "port"],
                            ));
                        }
                    }
                }
                let address = address.ok_or_else(|| de::Error::missing_field("address"))?;
                Endpoint::from_parts(iface, &address, port).map_err(de::Error::custom)
            }
        }
        d.deserialize_any(V)
    }
}

/// `POST /workers/heartbeat`. An agent of the guide sends the first four; ours sends all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerHeartbeat {
    /// Who.
    pub worker_id: WorkerId,
    /// What it is doing.
    pub status: WorkerStatus,
    /// The roots of what it can read and write.
    #[serde(default)]
    pub storage_paths: Vec<AbsPath>,
    /// Where it serves the data plane.
    #[serde(default)]
    pub data_plane_endpoints: Vec<Endpoint>,
    /// The predecessor's agents send these two; they are shown and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<serde_json::Value>,
    /// Where the agent can be reached by people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_address: Option<String>,
    /// Random per process start: a new one frees what the old one held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The boot id of its kernel: agents with the same one share a page cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Free bytes per storage path that could be asked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub free_bytes: BTreeMap<String, u64>,
    /// Every assignment it works on; their leases are renewed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignments: Vec<AssignmentId>,
    /// Content bytes that it has moved of those of `assignments` that move any. Only sent to a master that
    /// understands it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub moved_bytes: BTreeMap<AssignmentId, u64>,
    /// Requests of other agents that it is executing. Only sent to a master that understands it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub incoming_requests: u32,
    /// How many tasks it executes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// What it understands, see [`PROTOCOL_VERSION`]. Who does not say so gets no sync with options: it would
    /// pass over them, and write in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// What it sent for each sync of which it was told a limit, and only for these: a master that knows
    /// no limits would refuse the document.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub usage: BTreeMap<RequestId, BandwidthUsage>,
    /// How its endpoints do. Only sent to a master that understands it: others refuse what they do not
    /// know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicReport>,
    /// Those of its storage paths that are not served: not there, not what was opened, or a mount that hangs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_paths: Vec<UnavailablePath>,
    /// Those of its data-plane endpoints that it does not listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_endpoints: Vec<UnavailableEndpoint>,
    /// For each storage path a text that distinguishes the directory that is open there from every other one that the path
    /// leads to at another time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub root_ids: BTreeMap<String, String>,
}

/// A storage path of a worker that is not served now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnavailablePath {
    /// As configured.
    pub path: AbsPath,
    /// Why, for people.
    pub reason: String,
}

/// A data-plane endpoint of a worker that is not listened on now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnavailableEndpoint {
    /// `host:port`.
    pub endpoint: String,
    /// Why, for people.
    pub reason: String,
}

/// What an agent made of its share of a sync's limit. Both grow as long as the agent remembers the sync,
/// and begin anew when it has forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthUsage {
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// For how long its share kept it waiting, in milliseconds.
    pub throttled_ms: u64,
}

/// How one data-plane endpoint of an agent does, as it sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicReport {
    /// `host:port`, as in the endpoints.
    pub endpoint: String,
    /// Its interface, where one is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface: Option<String>,
    /// Bytes sent through it since the agent started, with all that goes over a data connection.
    #[serde(default)]
    pub sent: u64,
    /// Bytes received.
    #[serde(default)]
    pub received: u64,
    /// Data connections that are open.
    #[serde(default)]
    pub connections: u32,
    /// Requests of its own that are under way through it.
    #[serde(default)]
    pub requests: u32,
    /// What it sends while it has content to send, in bytes per second; where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<u64>,
    /// What came through it since the heartbeat before, in bytes per second. Only sent to a master that understands it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_rate: Option<u64>,
    /// Why nothing is sent through it, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
}

/// The reply to a heartbeat. To an agent without an incarnation only `status` is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// Always `ok`.
    pub status: String,
    /// The Ed25519 public key that checks tickets, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket_key: Option<String>,
    /// The master's clock, seconds since 1970: agents judge a ticket's expiry by it, not by their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
    /// What the master understands, see [`PROTOCOL_VERSION`]; older ones say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// Assignments out of `assignments` that are no longer valid: stop working on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked_assignments: Vec<AssignmentId>,
    /// Workers that hold the destination of something in hand and sent no heartbeat for longer than the
    /// time-out: their host is gone, or stands still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unresponsive_workers: Vec<WorkerId>,
    /// What the worker may send for a sync from now on, in bytes per second; `null`: as much as it can.
    /// What is not named stays as it was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bwlimits: BTreeMap<RequestId, Option<u64>>,
    /// The next heartbeat is wanted after so many milliseconds, where that is sooner than the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_heartbeat_ms: Option<u64>,
}

/// One worker as operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Who.
    pub worker_id: WorkerId,
    /// What it said last.
    pub status: WorkerStatus,
    /// The same with what operators ordered, in a word.
    pub state: WorkerState,
    /// Whether its heartbeats are recent.
    pub active: bool,
    /// When it was last heard of.
    pub last_heartbeat: Timestamp,
    /// The roots that it holds.
    pub storage_paths: Vec<AbsPath>,
    /// Where it serves the data plane.
    pub data_plane_endpoints: Vec<Endpoint>,
    /// Where people can reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane_address: Option<String>,
    /// Free bytes per storage path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub free_bytes: BTreeMap<String, u64>,
    /// Tasks leased to it.
    pub in_flight: u64,
    /// Requests of other agents that it is executing: they write through it.
    #[serde(default)]
    pub incoming_requests: u32,
    /// Syncs that it works on.
    pub syncs: u64,
    /// How many tasks it executes at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Why it gets no work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How its endpoints do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicReport>,
    /// Storage paths of it that are not served: it gets no work there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_paths: Vec<UnavailablePath>,
    /// Data-plane endpoints of it that it does not listen on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable_endpoints: Vec<UnavailableEndpoint>,
    /// That an operator keeps it from new work; `status` is then `DRAINING`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<DrainInfo>,
}

/// `POST /workers/{id}/drain`; the body may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// Who wants it, in his own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// That an operator keeps a worker from new work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainInfo {
    /// Who, where he said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

impl DrainInfo {
    /// In words, e.g. `drained by ann: new disks`.
    pub fn describe(&self) -> String {
        let by = self.by.as_deref().unwrap_or("an operator");
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("drained by {by}{reason}")
    }
}

/// The reply to `POST /workers/{id}/drain` and `…/undrain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// Whom it is about.
    pub worker_id: WorkerId,
    /// Whether it is kept from new work now, and by whom.
    pub drained: Option<DrainInfo>,
    /// How it stands now.
    pub state: WorkerState,
    /// Tasks that it still has.
    pub in_flight: u64,
    /// Requests of other agents that it is executing.
    pub incoming_requests: u32,
}

/// The reply to `DELETE /workers/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetWorkerReply {
    /// Always `forgotten`.
    pub status: String,
    /// Whom it is about.
    pub worker_id: WorkerId,
    /// Tasks that it had and that others may take now.
    pub requeued: u64,
}

/// `GET /workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerList {
    /// Heard of recently.
    pub active: Vec<WorkerView>,
    /// Not heard of for the heartbeat time-out.
    pub inactive: Vec<WorkerView>,
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
            // A scope is a number of the host that wrote it: dropped, the address would mean another one.
            r#""[fe80::1%2]:9000""#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
