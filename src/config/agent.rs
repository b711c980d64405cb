//! The agents' configuration: one file for all workers, of which each agent takes its own.

use super::Env;
use super::log::LogConfig;
use super::master::read_dir;
use super::nic::{self, NicConfig};
use super::reader::{Diagnostics, Fields, Item, did_you_mean, quoted};
use super::report::Pos;
use crate::util::iface::is_link_local;
use crate::util::units;
use crate::wire::worker::{DEFAULT_DATA_PORT, Endpoint};
use crate::wire::{AbsPath, WorkerId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Everything that one agent is told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Its name.
    pub worker_id: WorkerId,
    /// The masters, tried in turn; at least one, `http://…` without a trailing slash.
    pub master_urls: Vec<String>,
    /// The roots of what it may read and write; at least one, none twice.
    pub storage_paths: Vec<AbsPath>,
    /// Where people can reach the host; shown, not used.
    pub control_plane_address: Option<String>,
    /// Where it serves the data plane; at least one.
    pub data_plane_endpoints: Vec<NicConfig>,
    /// How often it tells the master that it is alive.
    pub heartbeat_interval: Duration,
    /// How long it may finish what it has in hand when it is told to stop.
    pub drain_timeout: Duration,
    /// At most so many tasks it executes at once.
    pub slots: usize,
    /// It sends no more than this, whatever for, in bytes per second.
    pub bwlimit: Option<u64>,
    /// Its buffers for content are at most so many bytes, half of them to send and half to receive.
    pub buffer_memory: u64,
    /// Large source files are read past the page cache, where that can be.
    pub direct_io: bool,
    /// Where it remembers what was not flushed; `None`: it does not.
    pub data_dir: Option<PathBuf>,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `buffer_memory` where it is not given, in bytes: more than a hundred exchanges at a time need.
pub const DEFAULT_BUFFER_MEMORY_BYTES: u64 = 128 << 20;
/// The least `buffer_memory`, in bytes: an exchange in each direction takes up to 1.3 MB of its half.
pub const MIN_BUFFER_MEMORY_BYTES: u64 = 4 << 20;
/// The most: nobody has so much.
const MAX_BUFFER_MEMORY_BYTES: u64 = 1 << 40;

/// `slots` where it is not given: four for each core, at least 8, at most 24 (each may hold a few
/// megabytes). How many of them are used follows what they bring.
pub fn default_slots() -> usize {
    (4 * core_count()).clamp(8, 24)
}

/// How many slots are used at first: one for each core and one more, that of a scan or of whoever waits
/// for an answer; at least 3, at most 8.
pub fn initial_slots() -> usize {
    (core_count() + 1).clamp(3, 8)
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The keys that only an agents file has, to tell it from a master's file.
pub(super) const AGENT_KEYS: [&str; 13] = [
    "master_url",
    "workers",
    "worker_id",
    "storage_paths",
    "network",
    "heartbeat_interval",
    "drain_timeout",
    "slots",
    "bwlimit",
    "buffer_memory",
    "direct_io",
    "data_dir",
    "log",
];

/// A beat more than this apart, and a master with default settings takes leases away (30 s, three beats).
const MAX_SAFE_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// Storage paths go out with every heartbeat.
const MAX_STORAGE_PATHS: usize = 256;

/// All that an agents file says.
pub(super) struct AgentsFile {
    /// In the order of the file; those without a usable id are left out.
    pub(super) workers: Vec<Worker>,
}

/// One worker, and where it stands in the file.
pub(super) struct Worker {
    pub(super) config: AgentConfig,
    /// The storage paths, in the order of the file, with their places (host checks need them).
    pub(super) path_positions: Vec<Pos>,
    /// The same for the endpoints; none where the endpoint is the default.
    pub(super) endpoint_positions: Vec<Pos>,
    pub(super) label: String,
}

/// What a worker's entry may set and the top of the file sets for all.
#[derive(Clone)]
struct SharedSettings {
    heartbeat_interval: Duration,
    drain_timeout: Duration,
    slots: usize,
    bwlimit: Option<u64>,
    buffer_memory: u64,
    direct_io: bool,
    data_dir: PathBuf,
    log: LogConfig,
}

impl SharedSettings {
    fn read(&mut self, fields: &Fields<'_>) {
        let time = |key, low, high| {
            let allowed = Duration::from_millis(low)..=Duration::from_secs(high);
            fields.get(key).and_then(|i| Some((i.duration(allowed)?, i)))
        };
        if let Some((interval, item)) = time("heartbeat_interval", 100, 3600) {
            if interval > MAX_SAFE_HEARTBEAT_INTERVAL {
                item.warn(
                    "longer than 10s: leases of a master with default settings end after 30s, and three \
                     heartbeats must fit — raise `lease` and `heartbeat_interval` in the master's file too",
                );
            }
            self.heartbeat_interval = interval;
        }
        if let Some((timeout, _)) = time("drain_timeout", 0, 86_400) {
            self.drain_timeout = timeout;
        }
        if let Some(slots) = fields.get("slots").and_then(|i| i.number(1..=256)) {
            self.slots = usize::try_from(slots).unwrap_or(self.slots);
        }
        if let Some(limit) = fields.get("bwlimit").and_then(|i| i.limit()) {
            self.bwlimit = limit;
        }
        if let Some(item) = fields.get("buffer_memory")
            && let Some(bytes) = item.size(0..=MAX_BUFFER_MEMORY_BYTES)
        {
            if bytes < MIN_BUFFER_MEMORY_BYTES {
                let least = units::format_bytes(MIN_BUFFER_MEMORY_BYTES);
                item.error(format!(
                    "{} is too little: what is sent and what is received at a time must fit into half of it \
                     each — give at least {least}",
                    units::format_bytes(bytes)
                ));
            }
            self.buffer_memory = bytes;
        }
        if let Some(direct) = fields.get("direct_io").and_then(|i| i.flag()) {
            self.direct_io = direct;
        }
        if let Some(dir) = fields.get("data_dir").and_then(|i| read_dir(&i)) {
            self.data_dir = dir;
        }
        self.log.read(fields.get("log"));
    }
}

impl AgentsFile {
    /// Reads the whole file, every worker of it. Every problem is noted.
    pub(super) fn read(root: &Item<'_>, env: &Env, findings: &Diagnostics) -> Self {
        let mut file = AgentsFile { workers: Vec::new() };
        let Some(fields) = root.fields() else { return file };
        let from_file = fields.get("master_url").map(|i| read_master_urls(&i));
        let from_env = env.master_url.as_deref().map(|text| env_master_urls(text, findings));
        if from_file.is_none() && from_env.is_none() {
            fields.report_missing(
                "master_url",
                ": where is the master? e.g. `master_url: http://127.0.0.1:8888` (or set CTL_MASTER_URL)",
            );
        }
        let mut reader = WorkerReader {
            master_urls: from_env.or(from_file).unwrap_or_default(),
            shared: SharedSettings {
                heartbeat_interval: Duration::from_secs(5),
                drain_timeout: Duration::from_secs(60),
                slots: default_slots(),
                bwlimit: None,
                buffer_memory: DEFAULT_BUFFER_MEMORY_BYTES,
                direct_io: false,
                data_dir: env.state_dir.clone(),
                log: LogConfig::default(),
            },
            ids: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        };
        reader.shared.read(&fields);
        let several = fields.get("workers");
        match (fields.get("worker_id"), several) {
            (Some(id), Some(_)) => {
                id.error("give either one worker at the top of the file or a list in `workers`, not both");
            }
            (Some(id), None) => {
                file.workers.extend(reader.read_worker(Some((read_worker_id(&id), id.at)), &fields))
            }
            (None, Some(workers)) => file.workers = reader.read_workers(&workers),
            (None, None) => {
                fields.report_missing("workers", ": a list of `- worker_id: …` entries")
            }
        }
        fields.finish();
        for worker in &mut file.workers {
            let log = &mut worker.config.log;
            match env.agent_log_level.as_deref() {
                Some(level) => log.apply_env("AGENT_LOG_LEVEL", Some(level), findings),
                None => log.apply_env("CTL_LOG_LEVEL", env.log_level.as_deref(), findings),
            }
        }
        file
    }

    /// The worker that `id` names, or the only one; `None` with an error noted when there is no such.
    pub(super) fn select_worker(self, id: Option<&str>, findings: &Diagnostics) -> Option<Worker> {
        let ids: Vec<String> =
            self.workers.iter().map(|w| w.config.worker_id.to_string()).collect();
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let listed = match names.is_empty() {
            true => "it names no worker".to_owned(),
            false => format!("worker ids in this file: {}", names.join(" ")),
        };
        match id {
            Some(id) => {
                if !names.contains(&id) {
                    let hint = did_you_mean(id, &names);
                    findings.error(None, format!("no worker {}{hint}   {listed}", quoted(id)));
                }
                self.workers.into_iter().find(|w| w.config.worker_id.as_str() == id)
            }
            None if names.len() == 1 => self.workers.into_iter().next(),
            None => {
                findings.error(
                    None,
                    format!("say which worker this is, with `--worker-id ID`   {listed}"),
                );
                None
            }
        }
    }
}

struct WorkerReader {
    master_urls: Vec<String>,
    shared: SharedSettings,
    /// Where each id was given first.
    ids: BTreeMap<WorkerId, Pos>,
    /// Which worker has an endpoint.
    endpoints: BTreeMap<(String, u16), WorkerId>,
}

impl WorkerReader {
    /// `workers`: a list of entries with `worker_id`, or a map of id → entry.
    fn read_workers(&mut self, workers: &Item<'_>) -> Vec<Worker> {
        let mut found = Vec::new();
        if workers.is_map() {
            let Some(entries) = workers.fields() else { return found };
            for (name, at, item) in entries.entries() {
                let id = name
                    .parse()
                    .map_err(|e| entries.error_at(at, &format!("worker id {} {e}", quoted(name))))
                    .ok();
                if let Some(fields) = item.fields() {
                    if let Some(inner) = fields.get("worker_id")
                        && read_worker_id(&inner).is_some_and(|inner| Some(inner) != id)
                    {
                        inner
                            .error(format!("differs from the name of the entry, {}", quoted(name)));
                    }
                    found.extend(self.read_worker(Some((id, at)), &fields));
                    fields.finish();
                }
            }
        } else if let Some(items) = workers.items() {
            for item in items {
                let Some(fields) = item.fields() else { continue };
                let id = fields.require("worker_id", "").map(|i| (read_worker_id(&i), i.at));
                found.extend(self.read_worker(id, &fields));
                fields.finish();
            }
        } else {
            return found;
        }
        if found.is_empty() && workers.is_empty() {
            workers.error("must name at least one worker");
        }
        found
    }

    /// What an entry says besides the id; `None` when its id is unusable or given before.
    fn read_worker(
        &mut self,
        id: Option<(Option<WorkerId>, Pos)>,
        fields: &Fields<'_>,
    ) -> Option<Worker> {
        let mut shared = self.shared.clone();
        shared.read(fields);
        let paths = fields
            .require("storage_paths", ": the directories that this worker may read and write");
        let allow_root = fields.get("allow_root_path").and_then(|i| i.flag()).unwrap_or(false);
        let paths = paths.map(|i| read_storage_paths(&i, allow_root)).unwrap_or_default();
        let network = fields.get("network").and_then(|i| read_network(&i)).unwrap_or_default();

        let (id, at) = id?;
        let id = id?;
        if let Some(first) = self.ids.get(&id) {
            let message = format!("worker id `{id}` is given twice — first on line {}", first.line);
            fields.error_at(at, &message);
            return None;
        }
        self.ids.insert(id.clone(), at);
        self.check_endpoints(&id, &network.endpoints);
        let (mut endpoints, mut endpoint_places) = (Vec::new(), Vec::new());
        for (endpoint, item) in network.endpoints {
            endpoints.push(endpoint);
            endpoint_places.push(item.at);
        }
        if endpoints.is_empty() {
            let control = network.control_plane_address.as_deref();
            endpoints.push(default_endpoint(control, fields, at).into());
        }
        let (storage_paths, path_places) = paths.into_iter().unzip();
        let config = AgentConfig {
            worker_id: id,
            master_urls: self.master_urls.clone(),
            storage_paths,
            control_plane_address: network.control_plane_address,
            data_plane_endpoints: endpoints,
            heartbeat_interval: shared.heartbeat_interval,
            drain_timeout: shared.drain_timeout,
            slots: shared.slots,
            bwlimit: shared.bwlimit,
            buffer_memory: shared.buffer_memory,
            direct_io: shared.direct_io,
            data_dir: Some(shared.data_dir),
            log: shared.log,
        };
        Some(Worker {
            config,
            path_positions: path_places,
            endpoint_positions: endpoint_places,
            label: fields.item.path.clone(),
        })
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
    item.parse("a worker's name", |text| text.parse().map_err(|e| format!("{} {e}", quoted(text))))
}

/// Without endpoints, an agent serves where the file says that its host is, or on this host only.
fn default_endpoint(control: Option<&str>, fields: &Fields<'_>, at: Pos) -> Endpoint {
    // A link-local one can't be served without its interface.
    let usable = |e: &Endpoint| !e.address.parse().is_ok_and(is_link_local);
    let given = control.and_then(|text| text.parse::<Endpoint>().ok()).filter(usable);
    let address = given.map(|e| e.address).unwrap_or_else(|| {
        let place = fields.item.path.as_str();
        let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
        fields.warn_at(
            at,
            &format!(
                "{place}no `network.data_plane_endpoints`: it serves on 127.0.0.1:{DEFAULT_DATA_PORT}, which \
                 only agents on the same host reach"
            ),
        );
        "127.0.0.1".to_owned()
    });
    Endpoint { iface: None, address, port: None }
}

fn read_storage_paths(item: &Item<'_>, allow_root: bool) -> Vec<(AbsPath, Pos)> {
    let mut paths: Vec<(AbsPath, Pos)> = Vec::new();
    let Some(items) = item.items() else { return paths };
    if items.is_empty() || items.len() > MAX_STORAGE_PATHS {
        item.error(format!("must name at least one and at most {MAX_STORAGE_PATHS} directories"));
        return paths;
    }
    for item in items {
        let read = |text: &str| {
            AbsPath::new(text).map_err(|e| match text {
                "" => format!("{e}"),
                _ => format!("{} {e}", quoted(text)),
            })
        };
        let Some(path) = item.parse("an absolute path", read) else { continue };
        if path.as_bytes() == b"/" && !allow_root {
            item.error(
                "`/` grants access to everything on the host — name the directories that hold the data, or set \
                 `allow_root_path: true`",
            );
            continue;
        }
        if let Some((other, _)) = paths.iter().find(|(p, _)| p.contains(&path) || path.contains(p))
        {
            if *other == path {
                item.warn(format!("{path} is given twice"));
                continue;
            }
            let (inner, outer) =
                if other.contains(&path) { (&path, other) } else { (other, &path) };
            item.warn(format!(
                "{inner} lies inside {outer}, which is given too: one of them is enough"
            ));
        }
        paths.push((path, item.at));
    }
    paths
}

#[derive(Default)]
struct Network<'a> {
    control_plane_address: Option<String>,
    endpoints: Vec<(NicConfig, Item<'a>)>,
}

fn read_network<'a>(item: &Item<'a>) -> Option<Network<'a>> {
    let fields = item.fields()?;
    let control_plane_address = fields.get("control_plane_address").and_then(|i| {
        i.parse("an address", |text| text.parse::<Endpoint>().map(|_| text.to_owned()))
    });
    fields.warn_outdated("control_plane_iface", "it has no effect; remove it");
    let endpoints = match fields.get("data_plane_endpoints") {
        None => Vec::new(),
        Some(list) => {
            let items = list.items().unwrap_or_default();
            if list.is_list() && items.is_empty() {
                list.error("must name at least one address — or remove the key");
            }
            items.into_iter().filter_map(|i| Some((nic::read_nic(&i)?, i))).collect()
        }
    };
    fields.finish();
    Some(Network { control_plane_address, endpoints })
}

fn read_master_urls(item: &Item<'_>) -> Vec<String> {
    let items = if item.is_list() { item.items().unwrap_or_default() } else { vec![item.clone()] };
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

fn env_master_urls(text: &str, findings: &Diagnostics) -> Vec<String> {
    let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
    let urls = parts.filter_map(|part| {
        check_master_url(part).map_err(|e| findings.env_error("CTL_MASTER_URL", e)).ok()
    });
    urls.collect()
}

/// Checks the URL of a master and drops its trailing slashes.
///
/// # Errors
/// Says what is wrong with it and what a right one looks like.
pub fn check_master_url(text: &str) -> Result<String, String> {
    let example = "write for example `http://127.0.0.1:8888`";
    if !text.contains("://") {
        return Err(format!("{} has no `http://` in front — {example}", quoted(text)));
    }
    let url =
        Url::parse(text).map_err(|cause| format!("{} is not a URL ({cause})", quoted(text)))?;
    if url.scheme() != "http" {
        return Err(format!("{} is not an `http://` URL — {example}", quoted(text)));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("must not carry a user name or password — {example}"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{} has a query or fragment — {example}", quoted(text)));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
