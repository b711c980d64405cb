//! The configuration of a master.

use super::Env;
use super::document::Node;
use super::log::LogConfig;
use super::master_url::check_master_url;
use super::reader::{Diagnostics, Fields, Item};
use super::storages::read_storages;
use super::store::{StoreConfig, check_name};
use crate::identity::OperatorCertificate;
use crate::util::ip_network::IpNetwork;
use crate::util::timetable::Timetable;
use crate::util::units;
use crate::wire::path::quote;
use crate::wire::storage::ConfiguredStorage;
use crate::wire::sync::DEFAULT_CHUNK_MIB;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// All settings of a master, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// The addresses of the API, at least one. Port 0: the kernel chooses. Loopback addresses serve plain HTTP, others
    /// TLS.
    pub listen: Vec<SocketAddr>,
    /// The certificate of the API for TLS; `None`: one of the own authority.
    pub tls: Option<OperatorCertificate>,
    /// Serves plain HTTP on all addresses, without any check of clients.
    pub insecure: bool,
    /// The authority of `data_dir` replaces that of the store. Only from the command line.
    pub replace_authority: bool,
    /// The URL for clients and other masters; `None`: that of `listen`, if it is a specific address.
    pub advertise_url: Option<String>,
    /// Further names of this master that clients may send as `Host`, in lower case.
    pub allowed_hosts: Vec<String>,
    /// The networks of the data plane: endpoints of agents have addresses of these. None: of any.
    pub allowed_networks: Vec<IpNetwork>,
    /// The users of this host, besides root and the user of the master, the agents of which may connect over loopback.
    pub local_agent_uids: Vec<u32>,
    /// The name of the installation, equal for all its masters. `None`: a generated name.
    pub installation: Option<String>,
    /// The time that this master remains the leader without a renewal in the store: after it another one takes over.
    pub leadership_lease: Duration,
    /// The directory for files of the master.
    pub data_dir: PathBuf,
    /// The file of the key that seals secrets in the store; `None`: a file of systemd's credentials or of `data_dir`.
    pub secrets_file: Option<PathBuf>,
    /// The directory of systemd's credentials of this service.
    pub credentials_dir: Option<PathBuf>,
    /// The store of the state.
    pub store: StoreConfig,
    /// The heartbeat interval of agents; the minimum of the two settings below depends on it.
    pub heartbeat_interval: Duration,
    /// A worker without a heartbeat for this time is inactive, and its tasks are requeued.
    pub worker_heartbeat_timeout: Duration,
    /// The time that an assignment is valid without a heartbeat that renews it.
    pub lease: Duration,
    /// The time that a certificate of an agent is valid; the agent renews it after two thirds of it.
    pub agent_certificate_lifetime: Duration,
    /// The maximum time of a long poll.
    pub poll_wait_max: Duration,
    /// The time that ended syncs are kept.
    pub retention: Duration,
    /// Limits of the memory of the master.
    pub limits: Limits,
    /// The limit of all agents together, by local time of the master.
    pub bwlimit: Timetable,
    /// Storages that are declared here, for agents that cannot report what identifies theirs.
    pub storages: Vec<ConfiguredStorage>,
    /// See [`AuditConfig`].
    pub audit: AuditConfig,
    /// Defaults for requests.
    pub defaults: SyncDefaults,
    /// See [`LogConfig`].
    pub log: LogConfig,
}

/// Limits of the memory of the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of active syncs; more wait in the queue.
    pub max_active_syncs: usize,
    /// The maximum number of syncs that wait; further ones are refused.
    pub max_queued_syncs: usize,
    /// The maximum number of workers, and of 2 KiB each of their heartbeats together. Beyond it workers that are silent or
    /// were heard once make room, unless they joined or have tasks; if there is none, new ones are refused.
    pub max_workers: usize,
    /// The time that a sync waits for space at its destination before it fails; 0: it fails immediately.
    pub no_space_timeout: Duration,
    /// The maximum number of outstanding copy tasks of one sync; its scan pauses at this number.
    pub window_tasks: usize,
    /// The maximum number of connections. Each waiting poll has one, so the slots of all agents and one more for each
    /// agent are needed.
    pub max_connections: usize,
    /// The maximum number of connections that have sent no valid request yet, at most a quarter of `max_connections`. The
    /// oldest one of the address with the most is closed for a new one.
    pub max_unverified_connections: usize,
    /// The memory for all request bodies that are read at the same time, in bytes; at least `max_file_list_bytes`. When it
    /// is used up, the address with the most gives some up for one with less.
    pub max_total_body_bytes: u64,
    /// The maximum body of a `POST /sync`, which contains its `file_list`, in bytes.
    pub max_file_list_bytes: u64,
}

/// The size of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditConfig {
    /// A file that would be larger gets a number, and a new one is begun. In bytes.
    pub max_file_size: u64,
    /// The maximum number of full files; the oldest ones are removed.
    pub max_files: u32,
}

/// Defaults for requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncDefaults {
    /// The default chunk size, in MiB.
    pub chunk_size_mb: u32,
    /// The maximum number of retries of a task or file before it fails.
    pub max_retries: u32,
    /// A task that was lost with its worker this many times runs alone; after one more loss it fails.
    pub max_worker_losses: u32,
}

/// The keys that only a master's file has, for the detection of the file kind.
pub(super) const MASTER_KEYS: [&str; 21] = [
    "listen",
    "tls",
    "insecure",
    "advertise_url",
    "allowed_hosts",
    "allowed_networks",
    "local_agent_uids",
    "installation",
    "secrets_file",
    "leadership_lease",
    "redis",
    "scheduler",
    "worker_heartbeat_timeout",
    "lease",
    "agent_certificate_lifetime",
    "poll_wait_max",
    "retention",
    "limits",
    "audit",
    "defaults",
    "storages",
];

/// A timeout must last for this number of heartbeats.
const MIN_HEARTBEATS: u32 = 3;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl MasterConfig {
    /// Serves this host only, with the state in `state_dir`.
    fn defaults(env: &Env) -> Self {
        MasterConfig {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8888))],
            tls: None,
            insecure: false,
            replace_authority: false,
            advertise_url: None,
            allowed_hosts: Vec::new(),
            allowed_networks: Vec::new(),
            local_agent_uids: Vec::new(),
            installation: None,
            leadership_lease: Duration::from_secs(5),
            data_dir: env.state_dir.clone(),
            secrets_file: None,
            credentials_dir: env.credentials_dir.clone(),
            store: StoreConfig::Embedded { dir: env.state_dir.clone() },
            heartbeat_interval: Duration::from_secs(5),
            worker_heartbeat_timeout: Duration::from_secs(45),
            lease: Duration::from_secs(30),
            agent_certificate_lifetime: DAY,
            poll_wait_max: Duration::from_secs(30),
            retention: 60 * DAY,
            limits: Limits {
                max_active_syncs: 64,
                max_queued_syncs: 10_000,
                max_workers: 16_384,
                no_space_timeout: DAY,
                window_tasks: 256,
                max_connections: 32_768,
                max_unverified_connections: 2_048,
                max_total_body_bytes: 256 << 20,
                max_file_list_bytes: 64 << 20,
            },
            bwlimit: Timetable::default(),
            storages: Vec::new(),
            audit: AuditConfig { max_file_size: 64 << 20, max_files: 10 },
            defaults: SyncDefaults {
                chunk_size_mb: DEFAULT_CHUNK_MIB,
                max_retries: 5,
                max_worker_losses: 3,
            },
            log: LogConfig::default(),
        }
    }

    /// Reads the file of a master (`None`: no file). All problems are recorded; the value is valid only without errors.
    pub(super) fn read(root: Option<&Node>, env: &Env, diagnostics: &Diagnostics) -> Self {
        let mut config = MasterConfig::defaults(env);
        if let Some(fields) = root.and_then(|root| Item::root(root, diagnostics).fields()) {
            config.read_fields(&fields);
            fields.finish();
        }
        match env.redis_url.as_deref().map(str::parse) {
            None => {}
            Some(Ok(url)) => config.store.override_url(url),
            Some(Err(message)) => diagnostics.env_error("REDIS_URL", message),
        }
        config.log.apply_env("CTL_LOG_LEVEL", env.log_level.as_deref(), diagnostics);
        config
    }

    fn read_fields(&mut self, fields: &Fields<'_>) {
        fields.set("listen", &mut self.listen, read_listen);
        fields.read_map("tls", |tls| self.tls = read_tls(tls));
        fields.set("insecure", &mut self.insecure, |i| i.flag());
        let url = |i: &Item<'_>| i.parse("a URL", check_master_url).map(Some);
        fields.set("advertise_url", &mut self.advertise_url, url);
        fields.set("allowed_hosts", &mut self.allowed_hosts, |i| {
            let names = i.items()?;
            names
                .iter()
                .map(|name| name.parse("a host name without a port", check_host_name))
                .collect()
        });
        fields.set("allowed_networks", &mut self.allowed_networks, |i| {
            let network =
                |item: &Item<'_>| item.parse("a network such as `10.0.0.0/8`", str::parse);
            i.items()?.iter().map(network).collect()
        });
        fields.set("local_agent_uids", &mut self.local_agent_uids, |i| {
            i.items()?.iter().map(|uid| uid.number(1..=u64::from(u32::MAX) - 1)).collect()
        });
        let name = |i: &Item<'_>| i.parse("a name", check_name).map(Some);
        fields.set("installation", &mut self.installation, name);
        fields.set("data_dir", &mut self.data_dir, Item::absolute_path);
        let file = |i: &Item<'_>| i.absolute_path().map(Some);
        fields.set("secrets_file", &mut self.secrets_file, file);
        self.store = StoreConfig::Embedded { dir: self.data_dir.clone() };
        // Files of the predecessor contain this key; the only scheduler is the round robin one.
        if let Some(item) = fields.get("scheduler") {
            item.word(&[("round_robin", ())]);
        }
        fields.warn_outdated("network", "it has no effect; `listen` is the address of the API");
        self.read_times(fields);
        fields.read_map("redis", |redis| {
            if let Some(days) = redis.get("expiry_days").and_then(|i| i.number(1..=36_500)) {
                let advice = format!("write `retention: {days}d` instead");
                redis.warn_outdated("expiry_days", &advice);
                self.retention = DAY * days;
            }
            if let Some(store) = StoreConfig::read_redis(redis) {
                self.store = store;
            }
        });
        fields.set("retention", &mut self.retention, read_retention);
        fields.read_map("limits", |limits| self.limits.read(limits));
        fields.set("bwlimit", &mut self.bwlimit, |i| Some(read_timetable(i)));
        fields.set("storages", &mut self.storages, |i| Some(read_storages(i)));
        fields.read_map("audit", |audit| self.audit.read(audit));
        fields.read_map("defaults", |defaults| self.defaults.read(defaults));
        fields.read_map("log", |log| self.log.read(log));
    }

    fn read_times(&mut self, fields: &Fields<'_>) {
        let set = |key, target: &mut Duration, min_ms, max| {
            fields.set(key, target, |i| i.duration(Duration::from_millis(min_ms)..=max));
        };
        let max_wait = Duration::from_secs(300);
        set("heartbeat_interval", &mut self.heartbeat_interval, 100, HOUR);
        set("worker_heartbeat_timeout", &mut self.worker_heartbeat_timeout, 300, DAY);
        set("lease", &mut self.lease, 300, DAY);
        set("leadership_lease", &mut self.leadership_lease, 500, max_wait);
        let lifetime = &mut self.agent_certificate_lifetime;
        set("agent_certificate_lifetime", lifetime, 10_000, 365 * DAY);
        set("poll_wait_max", &mut self.poll_wait_max, 0, max_wait);

        let min = self.heartbeat_interval * MIN_HEARTBEATS;
        for (key, value) in
            [("worker_heartbeat_timeout", self.worker_heartbeat_timeout), ("lease", self.lease)]
        {
            // Reported at the key that is present.
            let item = fields.get(key).or_else(|| fields.get("heartbeat_interval"));
            if let Some(item) = item.filter(|_| value < min) {
                let [value, min, interval] =
                    [value, min, self.heartbeat_interval].map(units::format_duration);
                item.error_for_sibling(
                    key,
                    &format!(
                        "{value} is shorter than {MIN_HEARTBEATS} heartbeats of {interval}: it must be at least \
                         {min}, or your agents' `heartbeat_interval` be shorter"
                    ),
                );
            }
        }
    }
}

impl Limits {
    fn read(&mut self, fields: &Fields<'_>) {
        fields.set("max_active_syncs", &mut self.max_active_syncs, |i| i.number(1..=10_000));
        fields.set("max_queued_syncs", &mut self.max_queued_syncs, |i| i.number(1..=1_000_000));
        fields.set("max_workers", &mut self.max_workers, |i| i.number(1..=1_000_000));
        let wait = |i: &Item<'_>| i.duration(Duration::ZERO..=30 * DAY);
        fields.set("no_space_timeout", &mut self.no_space_timeout, wait);
        fields.set("window_tasks", &mut self.window_tasks, |i| i.number(4..=100_000));
        fields.set("max_connections", &mut self.max_connections, |i| i.number(16..=1_000_000));
        let unverified = &mut self.max_unverified_connections;
        fields.set("max_unverified_connections", unverified, |i| i.number(16..=1_000_000));
        let bodies = &mut self.max_total_body_bytes;
        fields.set("max_total_body_bytes", bodies, |i| i.size(1 << 20..=1 << 40));
        fields
            .set("max_file_list_bytes", &mut self.max_file_list_bytes, |i| i.size(1024..=1 << 30));
    }
}

impl AuditConfig {
    fn read(&mut self, fields: &Fields<'_>) {
        fields.set("max_file_size", &mut self.max_file_size, |i| i.size(64 << 10..=1 << 40));
        fields.set("max_files", &mut self.max_files, |i| i.number(1..=100_000));
    }
}

impl SyncDefaults {
    fn read(&mut self, fields: &Fields<'_>) {
        fields.set("chunk_size_mb", &mut self.chunk_size_mb, |i| i.number(1..=1024));
        fields.set("max_retries", &mut self.max_retries, |i| i.number(0..=100));
        fields.set("max_worker_losses", &mut self.max_worker_losses, |i| i.number(1..=100));
    }
}

/// The name in lower case.
fn check_host_name(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match (1..=253).contains(&text.len()) && text.bytes().all(is_plain) {
        true => Ok(text.to_ascii_lowercase()),
        false => {
            Err("must be a host name such as `head.example`, without a scheme and a port".into())
        }
    }
}

/// One address or a list of them.
fn read_listen(item: &Item<'_>) -> Option<Vec<SocketAddr>> {
    let items = item.items_or_self();
    if items.is_empty() {
        item.error("must name at least one address");
    }
    let mut addresses = Vec::new();
    for item in items {
        match read_address(&item)? {
            address if address.port() != 0 && addresses.contains(&address) => {
                item.error(format!("{address} is given twice"));
            }
            address => addresses.push(address),
        }
    }
    (!addresses.is_empty()).then_some(addresses)
}

fn read_tls(fields: &Fields<'_>) -> Option<OperatorCertificate> {
    let file = |key, hint| fields.require(key, hint)?.absolute_path();
    let cert_file = file("cert_file", ": the certificate of the API, in PEM");
    let key_file = file("key_file", ": the private key of the certificate, in PEM");
    let ca_file =
        file("ca_file", ": the certificate of its authority, in PEM, which clients trust");
    Some(OperatorCertificate { cert_file: cert_file?, key_file: key_file?, ca_file: ca_file? })
}

fn read_address(item: &Item<'_>) -> Option<SocketAddr> {
    item.parse("an address and port such as `127.0.0.1:8888`", |text| {
        let text = text.strip_prefix("localhost:").map_or(text.to_owned(), |p| format!("127.0.0.1:{p}"));
        text.parse().map_err(|_| {
            let text = quote(&text);
            format!("{text} is not an address with a port — write for example `0.0.0.0:8888` or `[::]:8888`")
        })
    })
}

/// A limit, entries such as `08:00-18:00 100MiB/s` separated by commas, or a list of them.
fn read_timetable(item: &Item<'_>) -> Timetable {
    let expected = "a limit such as `100MiB/s`, or times with theirs: `08:00-18:00 100MiB/s`";
    let mut table = Timetable::default();
    for item in item.items_or_self() {
        for entry in item.parse(expected, |text| Ok(text.split(','))).into_iter().flatten() {
            if let Err(message) = table.add(entry) {
                item.error(message);
            }
        }
    }
    table
}

/// `60d`, or `{finished_syncs: 60d}`.
fn read_retention(item: &Item<'_>) -> Option<Duration> {
    let allowed = Duration::ZERO..=100 * 365 * DAY;
    if !item.is_map() {
        return item.duration(allowed);
    }
    let fields = item.fields()?;
    let time = fields.get("finished_syncs").and_then(|i| i.duration(allowed));
    fields.finish();
    time
}
