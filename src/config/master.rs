//! The master's configuration.

use super::RedisUrl;
use super::log::LogConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that a master is told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterConfig {
    /// Where the API is served. Port 0: the kernel chooses.
    pub listen: SocketAddr,
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

/// What bounds the master's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Syncs that are worked on at once; more wait in the queue.
    pub max_active_syncs: usize,
    /// Copy tasks of one sync that may be outstanding before its scan is held back.
    pub window_tasks: usize,
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
}
