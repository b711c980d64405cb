//! How a Redis is set up beyond its URL: where its servers are, and whom TLS trusts.

use super::RedisUrl;
use std::path::PathBuf;

/// See the [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RedisOptions {
    /// The file with the certificates (PEM) of those who may sign the servers'; `None`: those that this
    /// host trusts.
    pub ca_file: Option<PathBuf>,
    /// Where the servers are.
    pub topology: RedisTopology,
}

/// Where the servers of a Redis are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum RedisTopology {
    /// There is one, at the URL.
    #[default]
    Single,
    /// Sentinels know which of them leads.
    Sentinel {
        /// The name under which they watch it.
        master: String,
        /// Where they are.
        nodes: Vec<RedisUrl>,
    },
    /// They are a Redis Cluster; some of its nodes.
    Cluster(Vec<RedisUrl>),
}
