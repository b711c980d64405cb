//! The agents' configuration: one file for all workers, of which each agent takes its own.

use super::log::LogConfig;
use crate::wire::worker::Endpoint;
use crate::wire::{AbsPath, WorkerId};
use std::time::Duration;

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
    /// Where it serves the data plane; at least one. Port `Some(0)`: the kernel chooses.
    pub data_plane_endpoints: Vec<Endpoint>,
    /// How often it tells the master that it is alive.
    pub heartbeat_interval: Duration,
    /// How long it may finish what it has in hand when it is told to stop.
    pub drain_timeout: Duration,
    /// How many tasks it executes at once.
    pub slots: usize,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `slots` where it is not given: the number of cores, at least 2 (one for scans, one for the
/// rest), at most 8 (a slot is several threads already).
pub fn default_slots() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}
