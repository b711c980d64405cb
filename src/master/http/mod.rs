//! The master over HTTP/1.1: the API of operators and agents.
//!
//! A request goes through [`server`] (connections, time limits), `guard` (what holds for all), `routes`
//! (what is asked), `body` and `documents` (what is sent), and then through the
//! [`MasterHandle`](super::MasterHandle) to the owner of the state. Bodies are JSON in every content type but
//! multipart; every error is a problem document. Nothing here decides anything.

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

pub use server::serve;

#[cfg(test)]
pub(in crate::master) use request_documents::read_sync_request;

use crate::wire::sync::DEFAULT_CHUNK_MIB;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::Duration;

/// What a client may take of the master. The defaults fit a master with some hundred agents.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Connections at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// A head that is not whole after this ends its connection; so does an idle one.
    pub header_timeout: Duration,
    /// The longest head, in bytes; at most 100 header fields are in it.
    pub max_header_bytes: usize,
    /// A body of which no byte comes for this long is given up (408) …
    pub body_idle_timeout: Duration,
    /// … and one that is not whole after this.
    pub body_timeout: Duration,
    /// The longest `POST /sync`, in bytes: it may hold a file list. It may be changed at any time.
    pub max_submit_bytes: Arc<AtomicUsize>,
    /// The longest scan page, in bytes: it holds manifests.
    pub max_page_bytes: usize,
    /// The longest result, in bytes: it may hold a manifest to try again, and what became of each file.
    pub max_result_bytes: usize,
    /// The longest heartbeat, in bytes: it lists all that is in hand.
    pub max_heartbeat_bytes: usize,
    /// The longest other body, in bytes.
    pub max_body_bytes: usize,
    /// The bytes of all bodies that are being read at once; beyond it they are refused (503).
    pub max_total_body_bytes: usize,
    /// How long a poll waits that does not say how long (the predecessor's time).
    pub default_poll_wait: Duration,
    /// The longest time that a poll may ask for.
    pub max_poll_wait: Duration,
    /// The `chunk_size_mb` of a request that has none. It may be changed at any time.
    pub default_chunk_mb: Arc<AtomicU32>,
    /// A secret first component of every path: only who knows it gets anything but 404. For a master
    /// on a host where other users may connect, which has no other way to know who asks.
    pub path_secret: Option<String>,
    /// The URL at which clients reach this master, where it is configured: its host is accepted as `Host`.
    pub advertise_url: Option<String>,
    /// How long requests in progress may take when the server stops.
    pub drain_timeout: Duration,
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
