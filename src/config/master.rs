//! The master's configuration.

use super::Env;
use super::log::LogConfig;
use super::reader::{Diagnostics, Fields, Item};
use super::{RedisOptions, RedisTopology, RedisUrl};
use crate::util::timetable::Timetable;
use crate::util::units;
use crate::wire::sync::DEFAULT_CHUNK_MIB;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a master is told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// Where the API is served. Port 0: the kernel chooses.
    pub listen: SocketAddr,
    /// Where clients and other masters reach it; `None`: at `listen`, where that names an address.
    pub advertise_url: Option<String>,
    /// The installation that it belongs to: its masters have this name in common. `None`: it makes one up.
    pub installation: Option<String>,
    /// How long this master leads without a word to the store: after this another one takes over.
    pub leadership_lease: Duration,
    /// Where the master keeps files of its own.
    pub data_dir: PathBuf,
    /// Where its state is kept.
    pub store: StoreConfig,
    /// How often agents send heartbeats; what the two below are checked against.
    pub heartbeat_interval: Duration,
    /// A worker not heard of for so long is taken for dead, and its work is given to others.
    pub worker_heartbeat_timeout: Duration,
    /// How long an assignment is valid without a heartbeat that renews it.
    pub lease: Duration,
    /// The longest time that a poll for work is held open.
    pub poll_wait_max: Duration,
    /// How long ended syncs can be asked for.
    pub retention: Duration,
    /// What bounds the master's memory.
    pub limits: Limits,
    /// All agents together send no more than this, by the local time of the master.
    pub bwlimit: Timetable,
    /// What a request gets that does not say.
    pub defaults: SyncDefaults,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// Where the master's state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// In Redis.
    Redis {
        /// Where it is.
        url: RedisUrl,
        /// How it is set up beyond that.
        options: RedisOptions,
        /// What keeps several installations in one Redis apart; part of every key.
        namespace: String,
        /// Whether a Redis that forgets its data at a restart (no AOF) is good enough.
        allow_volatile: bool,
    },
    /// In one file, for one master.
    Embedded {
        /// The directory of the file.
        dir: PathBuf,
    },
}

impl StoreConfig {
    /// Where it is, for people: without passwords.
    pub fn location(&self) -> String {
        match self {
            StoreConfig::Redis { url, options: setup, .. } => match &setup.topology {
                RedisTopology::Single => url.to_string(),
                RedisTopology::Sentinel { master, .. } => format!("sentinel {master}"),
                RedisTopology::Cluster(nodes) => {
                    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
                    format!("cluster {}", nodes.join(","))
                }
            },
            StoreConfig::Embedded { dir } => dir.display().to_string(),
        }
    }
}

/// What bounds the master's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Syncs that are worked on at once; more wait in the queue.
    pub max_active_syncs: usize,
    /// How long a sync waits for room at its destination before it fails; 0: not at all.
    pub no_space_timeout: Duration,
    /// Copy tasks of one sync that may be outstanding before its scan is held back.
    pub window_tasks: usize,
    /// Connections at once: each poll that waits has one, so it is about the slots of all agents, and
    /// one more for each agent. Further ones wait to be accepted.
    pub max_connections: usize,
    /// The longest request body of a `POST /sync`, which carries its `file_list`, in bytes.
    pub max_file_list_bytes: u64,
}

/// What a request gets that does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncDefaults {
    /// The unit of work, in MiB.
    pub chunk_size_mb: u32,
    /// How often a failed task or file is tried again before it is recorded as failed.
    pub max_retries: u32,
    /// After how many times that a task was lost with its worker it runs alone only; lost once more it fails.
    pub max_worker_losses: u32,
}

/// The keys of a master's file, to tell it from an agents file.
pub(super) const MASTER_KEYS: [&str; 17] = [
    "listen",
    "advertise_url",
    "installation",
    "leadership_lease",
    "data_dir",
    "redis",
    "scheduler",
    "heartbeat_interval",
    "worker_heartbeat_timeout",
    "lease",
    "poll_wait_max",
    "retention",
    "limits",
    "bwlimit",
    "defaults",
    "log",
    "network",
];

/// How many heartbeats may get lost before somebody is given up.
const MIN_HEARTBEATS: u32 = 3;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl MasterConfig {
    /// What a master does that is told nothing: it serves this host only, with its state in `state_dir`.
    fn defaults(env: &Env) -> Self {
        MasterConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 8888)),
            advertise_url: None,
            installation: None,
            leadership_lease: Duration::from_secs(5),
            data_dir: env.state_dir.clone(),
            store: StoreConfig::Embedded { dir: env.state_dir.clone() },
            heartbeat_interval: Duration::from_secs(5),
            worker_heartbeat_timeout: Duration::from_secs(45),
            lease: Duration::from_secs(30),
            poll_wait_max: Duration::from_secs(30),
            retention: 60 * DAY,
            limits: Limits {
                max_active_syncs: 64,
                no_space_timeout: DAY,
                window_tasks: 256,
                max_connections: 32_768,
                max_file_list_bytes: 64 << 20,
            },
            bwlimit: Timetable::default(),
            defaults: SyncDefaults {
                chunk_size_mb: DEFAULT_CHUNK_MIB,
                max_retries: 5,
                max_worker_losses: 3,
            },
            log: LogConfig::default(),
        }
    }

    /// Reads a master's file. Every problem is noted; the value is only usable if there is no error.
    pub(super) fn read(root: &Item<'_>, env: &Env, findings: &Diagnostics) -> Self {
        let mut config = MasterConfig::defaults(env);
        if let Some(fields) = root.fields() {
            config.read_fields(&fields);
            fields.finish();
        }
        config.apply_env(env, findings);
        config
    }

    /// A master that was given no file.
    pub(super) fn without_file(env: &Env, findings: &Diagnostics) -> Self {
        let mut config = MasterConfig::defaults(env);
        config.apply_env(env, findings);
        config
    }

    fn read_fields(&mut self, fields: &Fields<'_>) {
        set_if_some(&mut self.listen, fields.get("listen").and_then(|i| read_listen(&i)));
        let url = fields.get("advertise_url");
        self.advertise_url = url.and_then(|i| i.parse("a URL", super::agent::check_master_url));
        let name = fields.get("installation");
        self.installation = name.and_then(|i| i.parse("a name", check_namespace));
        set_if_some(&mut self.data_dir, fields.get("data_dir").and_then(|i| read_dir(&i)));
        self.store = StoreConfig::Embedded { dir: self.data_dir.clone() };
        // The predecessor's files name it; there is one way to schedule here.
        if let Some(item) = fields.get("scheduler") {
            item.word(&[("round_robin", ())]);
        }
        fields.warn_outdated("network", "it has no effect; `listen` says where the API is served");
        self.read_times(fields);
        if let Some(item) = fields.get("redis") {
            self.read_redis(&item, fields.get("retention").is_some());
        }
        if let Some(item) = fields.get("retention") {
            set_if_some(&mut self.retention, read_retention(&item));
        }
        if let Some(limits) = fields.get("limits").and_then(|i| i.fields()) {
            let number = |key, allowed| {
                let value: Option<u64> = limits.get(key).and_then(|i| i.number(allowed));
                value.and_then(|n| usize::try_from(n).ok())
            };
            set_if_some(&mut self.limits.max_active_syncs, number("max_active_syncs", 1..=10_000));
            let wait =
                limits.get("no_space_timeout").and_then(|i| i.duration(Duration::ZERO..=30 * DAY));
            set_if_some(&mut self.limits.no_space_timeout, wait);
            set_if_some(&mut self.limits.window_tasks, number("window_tasks", 4..=100_000));
            set_if_some(
                &mut self.limits.max_connections,
                number("max_connections", 16..=1_000_000),
            );
            let size = limits.get("max_file_list_bytes").and_then(|i| i.size(1024..=1 << 30));
            set_if_some(&mut self.limits.max_file_list_bytes, size);
            limits.finish();
        }
        if let Some(item) = fields.get("bwlimit") {
            self.bwlimit = read_timetable(&item);
        }
        if let Some(defaults) = fields.get("defaults").and_then(|i| i.fields()) {
            let number = |key, allowed: RangeInclusive<u64>| {
                let value = defaults.get(key).and_then(|i| i.number(allowed));
                value.and_then(|n| u32::try_from(n).ok())
            };
            set_if_some(&mut self.defaults.chunk_size_mb, number("chunk_size_mb", 1..=1024));
            set_if_some(&mut self.defaults.max_retries, number("max_retries", 0..=100));
            set_if_some(&mut self.defaults.max_worker_losses, number("max_worker_losses", 1..=100));
            defaults.finish();
        }
        self.log.read(fields.get("log"));
    }

    /// The times, and how they must fit together.
    fn read_times(&mut self, fields: &Fields<'_>) {
        let time = |key, allowed| fields.get(key).and_then(|i| i.duration(allowed));
        let from = |ms| Duration::from_millis(ms);
        set_if_some(&mut self.heartbeat_interval, time("heartbeat_interval", from(100)..=HOUR));
        let timeout = time("worker_heartbeat_timeout", from(300)..=DAY);
        set_if_some(&mut self.worker_heartbeat_timeout, timeout);
        set_if_some(&mut self.lease, time("lease", from(300)..=DAY));
        let lease = time("leadership_lease", from(500)..=from(300_000));
        set_if_some(&mut self.leadership_lease, lease);
        set_if_some(&mut self.poll_wait_max, time("poll_wait_max", from(0)..=from(300_000)));

        let least = self.heartbeat_interval * MIN_HEARTBEATS;
        let beat = units::format_duration(self.heartbeat_interval);
        for (key, value) in
            [("worker_heartbeat_timeout", self.worker_heartbeat_timeout), ("lease", self.lease)]
        {
            if value < least {
                // Said where it can be changed: at the key that is there.
                let item = fields.get(key).or_else(|| fields.get("heartbeat_interval"));
                let (value, least) = (units::format_duration(value), units::format_duration(least));
                if let Some(item) = item {
                    item.error_for_sibling(
                        key,
                        &format!(
                            "{value} is shorter than {MIN_HEARTBEATS} heartbeats of {beat}: it must be at least \
                             {least}, or your agents' `heartbeat_interval` be shorter"
                        ),
                    );
                }
            }
        }
    }

    fn read_redis(&mut self, item: &Item<'_>, retention_given: bool) {
        let Some(fields) = item.fields() else { return };
        let url = fields.get("url").map(|i| (i.clone(), i.parse("a Redis URL", str::parse)));
        let host = fields.get("host").map(|i| i.text());
        let port = fields.get("port").map(|i| i.number(1..=65535));
        let db = fields.get("db").map(|i| i.number(0..=u64::from(u32::MAX)));
        let username = fields.get("username").map(|i| i.text());
        let password = fields.get("password").map(|i| i.secret());
        let namespace = fields.get("namespace").and_then(|i| i.parse("a name", check_namespace));
        let allow_volatile = fields.get("allow_volatile").and_then(|i| i.flag()).unwrap_or(false);
        if let Some(days) = fields.get("expiry_days").and_then(|i| i.number(1..=36_500)) {
            let advice = format!("write `retention: {days}d` instead");
            fields.warn_outdated("expiry_days", &advice);
            if !retention_given {
                self.retention = DAY * u32::try_from(days).unwrap_or(u32::MAX);
            }
        }

        let parts = host.is_some() || port.is_some() || db.is_some();
        let parts = parts || username.is_some() || password.is_some();
        let url: Option<RedisUrl> = match url {
            Some((item, url)) => {
                if parts {
                    item.error("give either `url` or `host`, `port`, `db`, not both");
                }
                url
            }
            None => {
                let number = |n: Option<Option<u64>>, default| n.flatten().unwrap_or(default);
                let made = RedisUrl::from_parts(
                    host.flatten().unwrap_or("localhost"),
                    u16::try_from(number(port, 6379)).unwrap_or(6379),
                    u32::try_from(number(db, 0)).unwrap_or(0),
                    username.flatten(),
                    password.flatten(),
                );
                made.map_err(|message| match fields.get("host") {
                    Some(host) => host.error(message),
                    None => fields.item.error(message),
                })
                .ok()
            }
        };
        let tls = fields.get("tls").and_then(|i| i.flag()).unwrap_or(false);
        let url = match url {
            Some(url) if tls => url.with_tls().map_err(|message| fields.item.error(message)).ok(),
            url => url,
        };
        if let Some(url) = url {
            let setup = read_setup(&fields, &url, username.flatten(), password.flatten());
            if url.has_password() {
                fields.item.mark_secret();
            }
            let namespace = namespace.unwrap_or_else(default_namespace);
            self.store = StoreConfig::Redis { url, options: setup, namespace, allow_volatile };
        }
        fields.finish();
    }

    /// What the environment says goes before the file.
    fn apply_env(&mut self, env: &Env, findings: &Diagnostics) {
        match env.redis_url.as_deref().map(str::parse) {
            None => {}
            Some(Ok(new)) => match &mut self.store {
                StoreConfig::Redis { url, .. } => *url = new,
                StoreConfig::Embedded { .. } => {
                    let namespace = default_namespace();
                    let setup = RedisOptions::default();
                    self.store = StoreConfig::Redis {
                        url: new,
                        options: setup,
                        namespace,
                        allow_volatile: false,
                    };
                }
            },
            Some(Err(message)) => findings.env_error("REDIS_URL", message),
        }
        self.log.apply_env("CTL_LOG_LEVEL", env.log_level.as_deref(), findings);
    }
}

/// The certificates, and the nodes of sentinels or of a cluster.
fn read_setup(
    fields: &Fields<'_>,
    url: &RedisUrl,
    username: Option<&str>,
    password: Option<&str>,
) -> RedisOptions {
    let mut setup = RedisOptions::default();
    if let Some(item) = fields.get("ca_file") {
        setup.ca_file = read_dir(&item);
        if !url.is_tls() {
            item.error("is for TLS only — set `tls: true`, or a `rediss://` URL");
        }
    }
    let sentinel = fields.get("sentinel");
    let cluster = fields.get("cluster");
    if let Some(item) = &cluster {
        if sentinel.is_some() {
            item.error("give either `sentinel` or `cluster`");
        }
        if fields.get("url").is_some() {
            item.error(
                "is not for use with `url` — give `username`, `password` and `tls` beside it",
            );
        }
        setup.topology =
            RedisTopology::Cluster(read_nodes(item, 6379, url.is_tls(), username, password));
    }
    if let Some(below) = sentinel.and_then(|item| item.fields()) {
        let master = below.require("master", ": the name under which the sentinels watch it");
        let nodes = below.require("nodes", ": where the sentinels are, e.g. `[host-a:26379]`");
        let username = below.get("username").and_then(|i| i.text());
        let password = below.get("password").and_then(|i| i.secret());
        if let (Some(master), Some(nodes)) = (master.and_then(|i| i.text()), nodes) {
            let nodes = read_nodes(&nodes, 26_379, url.is_tls(), username, password);
            setup.topology = RedisTopology::Sentinel { master: master.to_owned(), nodes };
        }
        below.finish();
    }
    setup
}

/// `[host:port, …]`.
fn read_nodes(
    item: &Item<'_>,
    port: u16,
    tls: bool,
    username: Option<&str>,
    password: Option<&str>,
) -> Vec<RedisUrl> {
    let items = item.items().unwrap_or_default();
    if items.is_empty() {
        item.error("must name at least one node");
    }
    let read = |item: Item<'_>| {
        item.parse("a host and port such as `host-a:6379`", |text| {
            let (host, port) = match text.rsplit_once(':') {
                Some((host, given)) => (
                    host,
                    given
                        .parse()
                        .map_err(|_| format!("{} is not a port", super::reader::quoted(given)))?,
                ),
                None => (text, port),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let url = RedisUrl::from_parts(host, port, 0, username, password)?;
            if tls { url.with_tls() } else { Ok(url) }
        })
    };
    items.into_iter().filter_map(read).collect()
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn set_if_some<T>(slot: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *slot = value;
    }
}

fn read_listen(item: &Item<'_>) -> Option<SocketAddr> {
    item.parse("an address and port such as `127.0.0.1:8888`", |text| {
        let text = text.strip_prefix("localhost:").map_or(text.to_owned(), |p| format!("127.0.0.1:{p}"));
        text.parse().map_err(|_| {
            let shown = super::reader::quoted(&text);
            format!("{shown} is not an address with a port — write for example `0.0.0.0:8888` or `[::]:8888`")
        })
    })
}

pub(super) fn read_dir(item: &Item<'_>) -> Option<PathBuf> {
    let dir = PathBuf::from(item.text()?);
    if !dir.is_absolute() {
        item.error("must be an absolute path (start with `/`)");
        return None;
    }
    Some(dir)
}

/// A limit, entries such as `08:00-18:00 100MiB/s` separated by commas, or a list of them.
fn read_timetable(item: &Item<'_>) -> Timetable {
    let items = if item.is_list() { item.items().unwrap_or_default() } else { vec![item.clone()] };
    let mut table = Timetable::default();
    for item in items {
        let wanted = "a limit such as `100MiB/s`, or times with theirs: `08:00-18:00 100MiB/s`";
        for entry in item.parse(wanted, |text| Ok(text.split(','))).into_iter().flatten() {
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

/// A namespace becomes part of every key, inside the braces that Redis Cluster hashes.
fn check_namespace(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 64 characters out of A-Z a-z 0-9 . _ -".into())
    }
}
