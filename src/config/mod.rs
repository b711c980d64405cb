//! Configuration files → checked values. Everything wrong with a file is reported at once, each
//! problem with its line and column; only a checked value travels further.
//!
//! ```text
//! bytes ─source─▶ text ─document─▶ tree with places ─reader─▶ MasterConfig | AgentConfig
//!                                                      └────▶ every problem found (report)
//! ```

pub mod agent;
pub mod env;
pub mod log;
pub mod master;
pub mod nic;
mod redis_options;
pub mod redis_url;
pub mod reload;
pub mod report;

mod document;
mod host;
mod reader;
mod source;
#[cfg(test)]
mod tests;

pub use agent::AgentConfig;
pub use env::Env;
pub use log::{LogConfig, LogFormat};
pub use master::{MasterConfig, StoreConfig};
pub use nic::{NicConfig, NicSettings};
pub use redis_options::{RedisOptions, RedisTopology};
pub use redis_url::RedisUrl;
pub use reload::{Reload, ReloadReport};
pub use report::{CheckReport, ConfigErrors, ConfigProblem, FileKind, Pos, Severity};

use agent::AgentsFile;
use reader::{Diagnostics, Item};
use source::ConfigSource;
use std::path::Path;

/// A usable configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The checked values.
    pub config: T,
    /// What should be logged at the start.
    pub warnings: Vec<ConfigProblem>,
}

/// Loads a master's file; without one (`None`), every setting has its default. `env` goes before the
/// file.
///
/// # Errors
/// Everything that is wrong with the file or the environment, at once.
pub fn load_master(path: Option<&Path>, env: &Env) -> Result<Loaded<MasterConfig>, ConfigErrors> {
    let Some(path) = path else {
        let findings = Diagnostics::new("built-in defaults".into());
        let config = MasterConfig::without_file(env, &findings);
        return findings.finish(Some(config));
    };
    let findings = Diagnostics::new(path.display().to_string());
    let config = source::open(path, &findings).and_then(|source| {
        check_file_kind(&source, FileKind::Master, &findings)
            .then(|| read_master(&source, path, env, &findings))
    });
    findings.finish(config)
}

/// Loads one worker of an agents file: `worker_id`, or the only one in it. All of the file must be
/// right, not only this worker's part. `env` goes before the file.
///
/// # Errors
/// Everything that is wrong with the file or the environment, at once.
pub fn load_agent(
    path: &Path,
    worker_id: Option<&str>,
    env: &Env,
) -> Result<Loaded<AgentConfig>, ConfigErrors> {
    let findings = Diagnostics::new(path.display().to_string());
    let config = source::open(path, &findings).and_then(|source| {
        if !check_file_kind(&source, FileKind::Agents, &findings) {
            return None;
        }
        let file = AgentsFile::read(&Item::root(&source.root, &findings), env, &findings);
        source.check_privacy(path, &findings);
        Some(file.select_worker(worker_id, &findings)?.config)
    });
    findings.finish(config)
}

/// Checks a file of either kind, for `ctl config check`. With a `worker_id` it also checks whether
/// that worker's directories, interfaces and addresses are there on this host.
pub fn check_file(path: &Path, worker_id: Option<&str>, env: &Env) -> CheckReport {
    run_checks(path, worker_id, env, worker_id.map(|_| Severity::Warning))
}

/// The same for `ctl agent --check`, which runs where the agent is going to: what of its worker's directories,
/// interfaces and addresses is not there is an error.
pub fn check_file_on_host(path: &Path, worker_id: Option<&str>, env: &Env) -> CheckReport {
    run_checks(path, worker_id, env, Some(Severity::Error))
}

/// `host`: how serious it is that something is not there on this host; `None`: that is not looked at.
fn run_checks(
    path: &Path,
    worker_id: Option<&str>,
    env: &Env,
    host: Option<Severity>,
) -> CheckReport {
    let file = path.display().to_string();
    let findings = Diagnostics::new(file.clone());
    let (mut kind, mut worker_ids) = (None, Vec::new());
    if let Some(source) = source::open(path, &findings) {
        let found = detect_file_kind(&source);
        kind = Some(found);
        match found {
            FileKind::Master => drop(read_master(&source, path, env, &findings)),
            FileKind::Agents => {
                let file = AgentsFile::read(&Item::root(&source.root, &findings), env, &findings);
                source.check_privacy(path, &findings);
                worker_ids = file.workers.iter().map(|w| w.config.worker_id.to_string()).collect();
                if let Some(severity) = host
                    && let Some(worker) = file.select_worker(worker_id, &findings)
                {
                    host::check_worker_on_host(&worker, severity, &findings);
                    if severity == Severity::Warning {
                        host::check_master_connections(&worker, &findings);
                    }
                }
            }
        }
    }
    CheckReport { file, kind, problems: findings.into_problems(), worker_ids }
}

fn read_master(
    source: &ConfigSource,
    path: &Path,
    env: &Env,
    findings: &Diagnostics,
) -> MasterConfig {
    let root = Item::root(&source.root, findings);
    let config = MasterConfig::read(&root, env, findings);
    source.check_privacy(path, findings);
    config
}

/// Which kind of file has more of these keys; a master's, when neither.
fn detect_file_kind(source: &ConfigSource) -> FileKind {
    let keys = match &source.root.kind {
        document::Kind::Map(entries) => entries.as_slice(),
        _ => &[],
    };
    let known = |names: &[&str]| keys.iter().filter(|e| names.contains(&e.key.as_str())).count();
    if known(&agent::AGENT_KEYS) > known(&master::MASTER_KEYS) {
        FileKind::Agents
    } else {
        FileKind::Master
    }
}

/// One clear error for the wrong file, instead of one for each key in it.
fn check_file_kind(source: &ConfigSource, wanted: FileKind, findings: &Diagnostics) -> bool {
    let found = detect_file_kind(source);
    let empty = !matches!(&source.root.kind, document::Kind::Map(entries) if !entries.is_empty());
    if found == wanted || empty {
        return true;
    }
    findings.error(
        source.root.at,
        match wanted {
            FileKind::Master => {
                "this is an agents file — `ctl master` needs a master's, see example_master.yml"
            }
            FileKind::Agents => {
                "this is a master's file — `ctl agent` needs an agents file, see example_agent.yml"
            }
        },
    );
    false
}
