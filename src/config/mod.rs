//! Configuration files → checked values. All problems of a file are reported together, each
//! with its line and column; all other code gets checked values only.
//!
//! ```text
//! bytes ─source─▶ text ─document─▶ tree with positions ─reader─▶ MasterConfig | AgentConfig
//!                                                         └────▶ all problems (report)
//! ```

pub mod agent;
pub mod env;
pub mod log;
pub mod master;
pub mod nic;
pub mod redis_url;
pub mod reload;
pub mod report;
pub mod run_as;
pub mod storage_path;
pub mod store;

mod document;
mod host;
mod master_url;
mod reader;
mod source;
mod storages;
#[cfg(test)]
mod tests;

pub use agent::AgentConfig;
pub use env::Env;
pub use log::{LogConfig, LogFormat};
pub use master::{AuditConfig, MasterConfig};
pub use nic::{NicConfig, NicSettings};
pub use redis_url::RedisUrl;
pub use reload::{Reload, ReloadReport};
pub use report::{CheckReport, ConfigErrors, ConfigProblem, FileKind, Pos, Severity};
pub use run_as::RunAsRules;
pub use storage_path::StoragePath;
pub use store::{RedisOptions, RedisTopology, StoreConfig};

use document::{Entry, Node, NodeKind};
use reader::Diagnostics;
use std::path::Path;

/// A usable configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The checked values.
    pub config: T,
    /// Warnings for the log.
    pub warnings: Vec<ConfigProblem>,
}

/// Loads the file of a master; without one (`None`), all settings have their defaults. `env` overrides the
/// file.
///
/// # Errors
/// All problems of the file and the environment.
pub fn load_master(path: Option<&Path>, env: &Env) -> Result<Loaded<MasterConfig>, ConfigErrors> {
    let Some(path) = path else {
        let diagnostics = Diagnostics::new("built-in defaults".into());
        let config = MasterConfig::read(None, env, &diagnostics);
        return diagnostics.finish(Some(config));
    };
    let diagnostics = Diagnostics::new(path.display().to_string());
    let root = open_kind(path, FileKind::Master, &diagnostics);
    let config = root.map(|root| MasterConfig::read(Some(&root), env, &diagnostics));
    diagnostics.finish(config)
}

/// Loads one worker of an agents file: the one with the id `worker_id`, or the only one. The whole file must be
/// valid, not only the part of this worker. `env` overrides the file.
///
/// # Errors
/// All problems of the file and the environment.
pub fn load_agent(
    path: &Path,
    worker_id: Option<&str>,
    env: &Env,
) -> Result<Loaded<AgentConfig>, ConfigErrors> {
    let diagnostics = Diagnostics::new(path.display().to_string());
    let root = open_kind(path, FileKind::Agents, &diagnostics);
    let workers = root.map(|root| agent::read_agents(&root, env, &diagnostics));
    let worker = workers.and_then(|workers| agent::select_worker(workers, worker_id, &diagnostics));
    diagnostics.finish(worker.map(|worker| worker.config))
}

/// Checks a file of either kind. `host` is the severity of missing directories, interfaces and addresses of the worker
/// on this host; `None`: they are not checked.
pub fn check_file(
    path: &Path,
    worker_id: Option<&str>,
    env: &Env,
    host: Option<Severity>,
) -> CheckReport {
    let file = path.display().to_string();
    let diagnostics = Diagnostics::new(file.clone());
    let root = source::open(path, &diagnostics);
    let kind = root.as_ref().map(detect_file_kind);
    let mut worker_ids = Vec::new();
    match root.zip(kind) {
        None => {}
        Some((root, FileKind::Master)) => drop(MasterConfig::read(Some(&root), env, &diagnostics)),
        Some((root, FileKind::Agents)) => {
            let agents = agent::read_agents(&root, env, &diagnostics);
            worker_ids = agents.iter().map(|w| w.config.worker_id.to_string()).collect();
            if let Some(severity) = host
                && let Some(worker) = agent::select_worker(agents, worker_id, &diagnostics)
            {
                host::check_worker_on_host(&worker, severity, &diagnostics);
                if severity == Severity::Warning {
                    host::check_master_connections(&worker, &diagnostics);
                }
            }
        }
    }
    CheckReport { file, kind, problems: diagnostics.into_problems(), worker_ids }
}

fn root_entries(root: &Node) -> &[Entry] {
    match &root.kind {
        NodeKind::Map(entries) => entries,
        _ => &[],
    }
}

/// The kind with more of its own keys in this file; a master's file without a difference.
fn detect_file_kind(root: &Node) -> FileKind {
    let entries = root_entries(root);
    let count = |keys: &[&str]| entries.iter().filter(|e| keys.contains(&e.key.as_str())).count();
    match count(&agent::AGENT_KEYS) > count(&master::MASTER_KEYS) {
        true => FileKind::Agents,
        false => FileKind::Master,
    }
}

/// Opens a file that should be of the given kind. For another kind it reports one error, instead of one for each key.
fn open_kind(path: &Path, expected: FileKind, diagnostics: &Diagnostics) -> Option<Node> {
    let root = source::open(path, diagnostics)?;
    if detect_file_kind(&root) == expected || root_entries(&root).is_empty() {
        return Some(root);
    }
    diagnostics.error(
        root.at,
        match expected {
            FileKind::Master => {
                "this is an agents file — `ctl master` needs a master's, see example_master.yml"
            }
            FileKind::Agents => {
                "this is a master's file — `ctl agent` needs an agents file, see example_agent.yml"
            }
        },
    );
    None
}
