//! The configuration of agents: one file for all workers, and each agent uses the part of its worker.

use super::Env;
use super::document::Node;
use super::log::LogConfig;
use super::master_url::check_master_url;
use super::nic::{self, NicConfig};
use super::reader::{Diagnostics, Fields, Item, did_you_mean};
use super::report::Pos;
use super::run_as::RunAsRules;
use super::storage_path::{StoragePath, read_labels, read_storage_paths};
use crate::util::iface::is_link_local;
use crate::util::units;
use crate::wire::WorkerId;
use crate::wire::path::quote;
use crate::wire::worker::{DEFAULT_DATA_PORT, Endpoint};
use crate::wire::worker_selector::Labels;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// All settings of an agent, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The URLs of the masters, in the order of attempts; at least one, without a trailing slash.
    pub master_urls: Vec<String>,
    /// The certificate of the master's authority, in PEM, for `https` URLs.
    pub ca_file: Option<PathBuf>,
    /// The join token with which the agent gets its first certificate. It is not needed after that.
    pub join_token_file: Option<PathBuf>,
    /// The directories that it may read and write; at least one, without duplicates.
    pub storage_paths: Vec<StoragePath>,
    /// By which operators may select the worker.
    pub labels: Labels,
    /// The address of the host for people; displayed, not used.
    pub control_plane_address: Option<String>,
    /// The addresses of the data plane; at least one.
    pub data_plane_endpoints: Vec<NicConfig>,
    /// The time between two heartbeats.
    pub heartbeat_interval: Duration,
    /// The time for active tasks to finish after a shutdown request.
    pub drain_timeout: Duration,
    /// The maximum number of concurrent tasks.
    pub slots: usize,
    /// The limit of all sends of the agent, in bytes per second.
    pub bwlimit: Option<u64>,
    /// The maximum size of all content buffers, in bytes: one half for sending, one half for receiving.
    pub buffer_memory: u64,
    /// Large source files are read with O_DIRECT, if the file system supports it.
    pub direct_io: bool,
    /// Content of large files is encrypted between agents with certificates. Otherwise only their digests are, if both
    /// agents allow it.
    pub encrypt_content: bool,
    /// As what it acts for syncs.
    pub run_as: RunAsRules,
    /// Whether the kernel confines it to its storage paths.
    pub sandbox: SandboxMode,
    /// The directory of the dirty journal; `None`: no journal.
    pub data_dir: Option<PathBuf>,
    /// See [`LogConfig`].
    pub log: LogConfig,
}

/// Whether the kernel confines the agent to its storage paths and its own files (`fs::sandbox`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxMode {
    /// It does not.
    #[default]
    Off,
    /// Where it can.
    Auto,
    /// It does, or the agent does not start.
    Required,
}

/// The default of `buffer_memory`, in bytes: enough for more than a hundred concurrent exchanges.
pub const DEFAULT_BUFFER_MEMORY_BYTES: u64 = 128 << 20;
/// The minimum of `buffer_memory`, in bytes: an exchange in each direction needs up to 1.3 MB of its half.
pub const MIN_BUFFER_MEMORY_BYTES: u64 = 4 << 20;
/// The maximum of `buffer_memory`.
const MAX_BUFFER_MEMORY_BYTES: u64 = 1 << 40;

/// The default of `slots`: four per core, at least 8, at most 24 (each may use a few
/// megabytes). The number of active slots depends on the measured throughput.
pub fn default_slots() -> usize {
    (4 * core_count()).clamp(8, 24)
}

/// The initial number of active slots: one per core and one more for a scan or a task that waits
/// for a reply; at least 3, at most 8.
pub fn initial_slots() -> usize {
    (core_count() + 1).clamp(3, 8)
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The keys that only an agents file has, for the detection of the file kind.
pub(super) const AGENT_KEYS: [&str; 14] = [
    "join_token_file",
    "master_url",
    "workers",
    "worker_id",
    "storage_paths",
    "labels",
    "drain_timeout",
    "slots",
    "buffer_memory",
    "direct_io",
    "encrypt_content",
    "run_as",
    "root_syncs",
    "sandbox",
];

/// With a longer interval a master with default settings revokes leases (30 s, three heartbeats).
const MAX_SAFE_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// One worker with its positions in the file.
pub(super) struct Worker {
    pub(super) config: AgentConfig,
    /// The positions of the storage paths, for the checks on the host.
    pub(super) path_positions: Vec<Pos>,
    /// The positions of the endpoints; empty for the default endpoint.
    pub(super) endpoint_positions: Vec<Pos>,
    /// The path of the entry, e.g. `workers[0]`.
    pub(super) label: String,
}

/// Settings of a worker with defaults at the top of the file.
#[derive(Clone)]
struct SharedSettings {
    heartbeat_interval: Duration,
    drain_timeout: Duration,
    slots: usize,
    bwlimit: Option<u64>,
    buffer_memory: u64,
    direct_io: bool,
    encrypt_content: bool,
    run_as: RunAsRules,
    sandbox: SandboxMode,
    data_dir: PathBuf,
    join_token_file: Option<PathBuf>,
    labels: Labels,
    log: LogConfig,
}

impl SharedSettings {
    fn read(&mut self, fields: &Fields<'_>) {
        let duration =
            |min_ms, max_seconds| Duration::from_millis(min_ms)..=Duration::from_secs(max_seconds);
        fields.set("heartbeat_interval", &mut self.heartbeat_interval, |item| {
            let interval = item.duration(duration(100, 3600))?;
            if interval > MAX_SAFE_HEARTBEAT_INTERVAL {
                item.warn(
                    "longer than 10s: leases of a master with default settings end after 30s, and three \
                     heartbeats must fit — raise `lease` and `heartbeat_interval` in the master's file too",
                );
            }
            Some(interval)
        });
        fields.set("drain_timeout", &mut self.drain_timeout, |i| i.duration(duration(0, 86_400)));
        fields.set("slots", &mut self.slots, |i| i.number(1..=256));
        fields.set("bwlimit", &mut self.bwlimit, |i| i.limit());
        fields.set("buffer_memory", &mut self.buffer_memory, |item| {
            let bytes = item.size(0..=MAX_BUFFER_MEMORY_BYTES)?;
            if bytes < MIN_BUFFER_MEMORY_BYTES {
                let [bytes, min] = [bytes, MIN_BUFFER_MEMORY_BYTES].map(units::format_bytes);
                item.error(format!(
                    "{bytes} is too little: what is sent and what is received at a time must fit into half of it \
                     each — give at least {min}"
                ));
            }
            Some(bytes)
        });
        fields.set("direct_io", &mut self.direct_io, |i| i.flag());
        fields.set("encrypt_content", &mut self.encrypt_content, |i| i.flag());
        self.run_as.read(fields);
        let modes = [
            ("off", SandboxMode::Off),
            ("auto", SandboxMode::Auto),
            ("required", SandboxMode::Required),
        ];
        fields.set("sandbox", &mut self.sandbox, |i| i.word(&modes));
        fields.set("data_dir", &mut self.data_dir, Item::absolute_path);
        let file = |item: &Item<'_>| item.absolute_path().map(Some);
        fields.set("join_token_file", &mut self.join_token_file, file);
        read_labels(fields, &mut self.labels);
        fields.read_map("log", |log| self.log.read(log));
    }
}

/// Reads all workers of a file, in its order, without those with an invalid id. All problems are recorded.
pub(super) fn read_agents(root: &Node, env: &Env, diagnostics: &Diagnostics) -> Vec<Worker> {
    let Some(fields) = Item::root(root, diagnostics).fields() else { return Vec::new() };
    let from_file = fields.get("master_url").map(|i| read_master_urls(&i));
    let from_env = env.master_url.as_deref().map(|text| env_master_urls(text, diagnostics));
    let ca_file = fields.get("ca_file").and_then(|item| item.absolute_path());
    if from_file.is_none() && from_env.is_none() {
        fields.report_missing(
                "master_url",
                ": where is the master? e.g. `master_url: http://127.0.0.1:8888` (or set CTL_MASTER_URL)",
            );
    }
    let mut reader = WorkerReader {
        master_urls: from_env.or(from_file).unwrap_or_default(),
        ca_file,
        shared: SharedSettings {
            heartbeat_interval: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(60),
            slots: default_slots(),
            bwlimit: None,
            buffer_memory: DEFAULT_BUFFER_MEMORY_BYTES,
            direct_io: false,
            encrypt_content: true,
            run_as: RunAsRules::default(),
            sandbox: SandboxMode::default(),
            data_dir: env.state_dir.clone(),
            join_token_file: None,
            labels: Labels::new(),
            log: LogConfig::default(),
        },
        ids: BTreeMap::new(),
        endpoints: BTreeMap::new(),
    };
    reader.shared.read(&fields);
    let mut workers = match (fields.get("worker_id"), fields.get("workers")) {
        (Some(id), None) => {
            reader.read_worker(read_worker_id(&id), id.at, &fields).into_iter().collect()
        }
        (None, Some(workers)) => reader.read_workers(&workers),
        (Some(id), Some(_)) => {
            id.error(
                "give either one worker at the top of the file or a list in `workers`, not both",
            );
            Vec::new()
        }
        (None, None) => {
            fields.report_missing("workers", ": a list of `- worker_id: …` entries");
            Vec::new()
        }
    };
    fields.finish();
    for worker in &mut workers {
        let log = &mut worker.config.log;
        match env.agent_log_level.as_deref() {
            Some(level) => log.apply_env("AGENT_LOG_LEVEL", Some(level), diagnostics),
            None => log.apply_env("CTL_LOG_LEVEL", env.log_level.as_deref(), diagnostics),
        }
    }
    workers
}

/// The worker with this `id`, or the only one; `None` after an error.
pub(super) fn select_worker(
    mut workers: Vec<Worker>,
    id: Option<&str>,
    diagnostics: &Diagnostics,
) -> Option<Worker> {
    let ids: Vec<&str> = workers.iter().map(|w| w.config.worker_id.as_str()).collect();
    let index = match id {
        Some(id) => ids.iter().position(|known| *known == id),
        None => (ids.len() == 1).then_some(0),
    };
    if let Some(index) = index {
        return Some(workers.swap_remove(index));
    }
    let list = match ids.is_empty() {
        true => "it names no worker".to_owned(),
        false => format!("worker ids in this file: {}", ids.join(" ")),
    };
    let message = match id {
        Some(id) => format!("no worker {}{}", quote(id), did_you_mean(id, &ids)),
        None => "name the worker with `--worker-id ID`".to_owned(),
    };
    diagnostics.error(None, format!("{message}   {list}"));
    None
}

struct WorkerReader {
    master_urls: Vec<String>,
    ca_file: Option<PathBuf>,
    shared: SharedSettings,
    /// The first position of each id.
    ids: BTreeMap<WorkerId, Pos>,
    /// The worker of each endpoint.
    endpoints: BTreeMap<(String, u16), WorkerId>,
}

impl WorkerReader {
    /// `workers`: a list of entries with `worker_id`, or a map of id → entry.
    fn read_workers(&mut self, workers: &Item<'_>) -> Vec<Worker> {
        let mut found = Vec::new();
        let count = if workers.is_map() {
            let Some(map) = workers.fields() else { return found };
            let entries = map.entries();
            for (name, at, item) in &entries {
                let error = |e| format!("worker id {} {e}", quote(name));
                let invalid = |e| workers.diagnostics.error(*at, error(e));
                let id: Option<WorkerId> = name.parse().map_err(invalid).ok();
                let Some(fields) = item.fields() else { continue };
                if let Some(inner) = fields.get("worker_id")
                    && read_worker_id(&inner).is_some_and(|inner| Some(inner) != id)
                {
                    inner.error(format!("differs from the name of the entry, {}", quote(name)));
                }
                found.extend(self.read_worker(id, *at, &fields));
                fields.finish();
            }
            entries.len()
        } else {
            let Some(items) = workers.items() else { return found };
            for item in &items {
                let Some(fields) = item.fields() else { continue };
                let id = fields.require("worker_id", "");
                let at = id.as_ref().map_or(item.at, |id| id.at);
                let id = id.and_then(|id| read_worker_id(&id));
                found.extend(self.read_worker(id, at, &fields));
                fields.finish();
            }
            items.len()
        };
        if count == 0 {
            workers.error("must name at least one worker");
        }
        found
    }

    /// Reads the entry of the worker with the id at `at`; `None` for an invalid or duplicate id.
    fn read_worker(
        &mut self,
        id: Option<WorkerId>,
        at: Pos,
        fields: &Fields<'_>,
    ) -> Option<Worker> {
        let mut shared = self.shared.clone();
        shared.read(fields);
        let paths = fields
            .require("storage_paths", ": the directories that this worker may read and write");
        let allow_root = fields.get("allow_root_path").and_then(|i| i.flag()).unwrap_or(false);
        let paths = paths.map(|i| read_storage_paths(&i, allow_root)).unwrap_or_default();
        let (mut control_plane_address, mut nics) = (None, Vec::new());
        fields.read_map("network", |network| {
            control_plane_address = network.get("control_plane_address").and_then(|i| {
                i.parse("an address", |text| text.parse::<Endpoint>().map(|_| text.to_owned()))
            });
            network.warn_outdated("control_plane_iface", "it has no effect; remove it");
            nics = network.get("data_plane_endpoints").map(read_nics).unwrap_or_default();
        });

        let id = id?;
        if let Some(first) = self.ids.get(&id) {
            let message = format!("worker id `{id}` is given twice — first on line {}", first.line);
            fields.item.diagnostics.error(at, message);
            return None;
        }
        self.ids.insert(id.clone(), at);
        self.check_endpoints(&id, &nics);
        let (mut endpoints, endpoint_items): (Vec<_>, Vec<_>) = nics.into_iter().unzip();
        if endpoints.is_empty() {
            let control = control_plane_address.as_deref();
            endpoints.push(default_endpoint(control, fields, at).into());
        }
        let (storage_paths, path_positions) = paths.into_iter().unzip();
        let config = AgentConfig {
            worker_id: id,
            master_urls: self.master_urls.clone(),
            ca_file: self.ca_file.clone(),
            join_token_file: shared.join_token_file,
            storage_paths,
            labels: shared.labels,
            control_plane_address,
            data_plane_endpoints: endpoints,
            heartbeat_interval: shared.heartbeat_interval,
            drain_timeout: shared.drain_timeout,
            slots: shared.slots,
            bwlimit: shared.bwlimit,
            buffer_memory: shared.buffer_memory,
            direct_io: shared.direct_io,
            encrypt_content: shared.encrypt_content,
            run_as: shared.run_as,
            sandbox: shared.sandbox,
            data_dir: Some(shared.data_dir),
            log: shared.log,
        };
        let endpoint_positions = endpoint_items.iter().map(|item| item.at).collect();
        let label = fields.item.path.clone();
        Some(Worker { config, path_positions, endpoint_positions, label })
    }

    fn check_endpoints(&mut self, id: &WorkerId, endpoints: &[(NicConfig, Item<'_>)]) {
        for (NicConfig { endpoint, .. }, item) in endpoints {
            let port = endpoint.port.unwrap_or(DEFAULT_DATA_PORT);
            if port == 0 {
                continue;
            }
            match self.endpoints.get(&(endpoint.address.clone(), port)) {
                Some(other) if other == id => {
                    item.error(format!("{} is given twice", endpoint.authority()));
                }
                Some(other) => item.error(format!(
                    "{} is also used by {other} — give each its own address or port",
                    endpoint.authority()
                )),
                None => {
                    self.endpoints.insert((endpoint.address.clone(), port), id.clone());
                }
            }
        }
    }
}

fn read_worker_id(item: &Item<'_>) -> Option<WorkerId> {
    item.parse("a worker's name", |text| text.parse().map_err(|e| format!("{} {e}", quote(text))))
}

/// The default endpoint of an agent: the address of the host in the file, otherwise the loopback address.
fn default_endpoint(control: Option<&str>, fields: &Fields<'_>, at: Pos) -> Endpoint {
    // A link-local address needs an interface.
    let is_usable = |e: &Endpoint| !e.address.parse().is_ok_and(is_link_local);
    let given = control.and_then(|text| text.parse::<Endpoint>().ok()).filter(is_usable);
    let address = given.map(|e| e.address).unwrap_or_else(|| {
        let label = fields.item.path.as_str();
        let label = if label.is_empty() { String::new() } else { format!("{label}: ") };
        fields.item.diagnostics.warn(
            at,
            format!(
                "{label}no `network.data_plane_endpoints`: it serves on 127.0.0.1:{DEFAULT_DATA_PORT}, which \
                 only agents on the same host reach"
            ),
        );
        "127.0.0.1".to_owned()
    });
    Endpoint { iface: None, address, port: None }
}

fn read_nics(list: Item<'_>) -> Vec<(NicConfig, Item<'_>)> {
    let items = list.items().unwrap_or_default();
    if list.is_list() && items.is_empty() {
        list.error("must name at least one address — or remove the key");
    }
    items.into_iter().filter_map(|i| Some((nic::read_nic(&i)?, i))).collect()
}

fn read_master_urls(item: &Item<'_>) -> Vec<String> {
    let items = item.items_or_self();
    if items.is_empty() {
        item.error("must name at least one URL");
    }
    let mut urls: Vec<String> = Vec::new();
    for item in items {
        match item.parse("a URL such as `http://127.0.0.1:8888`", check_master_url) {
            Some(url) if urls.contains(&url) => item.warn(format!("{url} is given twice")),
            Some(url) => urls.push(url),
            None => {}
        }
    }
    urls
}

fn env_master_urls(text: &str, diagnostics: &Diagnostics) -> Vec<String> {
    let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
    let urls = parts.filter_map(|part| {
        check_master_url(part).map_err(|e| diagnostics.env_error("CTL_MASTER_URL", e)).ok()
    });
    urls.collect()
}
