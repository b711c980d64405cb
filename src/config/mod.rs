//! Configuration files → checked values. Everything wrong with a file is reported at once, each
//! problem with its line and column; only a checked value travels further.

pub mod agent;
pub mod env;
pub mod log;
pub mod master;
pub mod redis_url;
pub mod report;

pub use agent::AgentConfig;
pub use env::Env;
pub use log::{LogConfig, LogFormat};
pub use master::{MasterConfig, StoreConfig};
pub use redis_url::RedisUrl;
pub use report::{ConfigErrors, FileKind, Pos, Problem, Report, Severity};

/// A usable configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The checked values.
    pub config: T,
    /// What should be logged at the start.
    pub warnings: Vec<Problem>,
}
