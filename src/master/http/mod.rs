//! The API of operators and agents, over HTTP/1.1.
//!
//! A request passes through `server` (connections, time limits), `middleware` (checks for every request), `routes` and
//! `params`, `body` and `request_documents` (reading and validation), and the
//! [`MasterHandle`](super::handle::MasterHandle) to the state actor. Bodies are JSON, whatever the content type says,
//! except multipart. Every error is a problem document. No decision is made here.

mod audit_log;
mod body;
mod json;
mod middleware;
mod object_reader;
mod params;
mod request_documents;
mod response;
mod routes;
mod server;
mod sync_options;
#[cfg(test)]
mod tests;

pub(super) use server::serve;

#[cfg(test)]
pub(in crate::master) use request_documents::read_sync_request;

use crate::wire::sync::DEFAULT_CHUNK_MIB;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::Duration;

/// Limits for clients. The defaults suit a master with some hundred agents.
#[derive(Debug, Clone)]
pub(super) struct HttpLimits {
    /// Further connections wait to be accepted.
    pub(super) max_connections: usize,
    /// Closes a connection that is idle, or has sent only a part of a request head, for this time.
    pub(super) header_timeout: Duration,
    /// The limit for a request head, which may also have at most 100 fields.
    pub(super) max_header_bytes: usize,
    /// The maximum time between two parts of a body (else 408).
    pub(super) body_idle_timeout: Duration,
    /// The maximum time for a whole body (else 408).
    pub(super) body_timeout: Duration,
    /// The limit for `POST /sync`, which may contain a file list. Can change at any time.
    pub(super) max_submit_bytes: Arc<AtomicUsize>,
    /// The limit for a scan page, which contains manifests.
    pub(super) max_page_bytes: usize,
    /// The limit for a result, which may contain a manifest to retry and the outcome of each file.
    pub(super) max_result_bytes: usize,
    /// The limit for a heartbeat, which lists all assignments of the worker.
    pub(super) max_heartbeat_bytes: usize,
    /// The limit for other bodies.
    pub(super) max_body_bytes: usize,
    /// The limit for all bodies that are read concurrently (else 503).
    pub(super) max_total_body_bytes: usize,
    /// The wait of a poll without the parameter `wait` (that of the predecessor).
    pub(super) default_poll_wait: Duration,
    /// The maximum wait of a poll.
    pub(super) max_poll_wait: Duration,
    /// The default of `chunk_size_mb`. Can change at any time.
    pub(super) default_chunk_mb: Arc<AtomicU32>,
    /// A secret first component of every path; requests without it get 404. For a private master on a host with other
    /// users, which has no other authentication.
    pub(super) path_secret: Option<String>,
    /// The configured URL of this master for clients: its host is accepted as `Host`.
    pub(super) advertise_url: Option<String>,
    /// The time that requests in progress have to end when the server stops.
    pub(super) drain_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            max_connections: 32_768,
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 64 << 10,
            body_idle_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(300),
            max_submit_bytes: Arc::new((64 << 20).into()),
            max_page_bytes: 32 << 20,
            max_result_bytes: 32 << 20,
            max_heartbeat_bytes: 4 << 20,
            max_body_bytes: 1 << 20,
            max_total_body_bytes: 256 << 20,
            default_poll_wait: Duration::from_secs(1),
            max_poll_wait: Duration::from_secs(60),
            default_chunk_mb: Arc::new(DEFAULT_CHUNK_MIB.into()),
            path_secret: None,
            advertise_url: None,
            drain_timeout: Duration::from_secs(10),
        }
    }
}
