//! The master over HTTP/1.1: the API of operators and agents.
//!
//! A request goes through [`server`] (connections, time limits), `guard` (what holds for all), `routes`
//! (what is asked), `body` and `documents` (what is sent), and then through the
//! [`Handle`](super::Handle) to the owner of the state. Bodies are JSON in every content type but
//! multipart; every error is a problem document. Nothing here decides anything.

mod answer;
mod body;
mod document;
mod documents;
mod guard;
mod json;
mod options;
mod orders;
mod params;
mod routes;
mod server;
#[cfg(test)]
mod tests;

pub use server::serve;

use crate::wire::sync::DEFAULT_CHUNK_MIB;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::time::Duration;

/// What a client may take of the master. The defaults fit a master with some hundred agents.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
    /// A head that is not whole after this ends its connection; so does an idle one.
    pub head_time: Duration,
    /// The longest head, in bytes; at most 100 header fields are in it.
    pub head_bytes: usize,
    /// A body of which no byte comes for this long is given up (408) …
    pub body_pause: Duration,
    /// … and one that is not whole after this.
    pub body_time: Duration,
    /// The longest `POST /sync`, in bytes: it may hold a file list. It may be changed at any time.
    pub submit_bytes: Arc<AtomicUsize>,
    /// The longest scan page, in bytes: it holds manifests.
    pub page_bytes: usize,
    /// The longest result, in bytes: it may hold a manifest to try again, and what became of each file.
    pub result_bytes: usize,
    /// The longest heartbeat, in bytes: it lists all that is in hand.
    pub heartbeat_bytes: usize,
    /// The longest other body, in bytes.
    pub body_bytes: usize,
    /// The bytes of all bodies that are being read at once; beyond it they are refused (503).
    pub all_bodies_bytes: usize,
    /// How long a poll waits that does not say how long (the predecessor's time).
    pub poll_wait: Duration,
    /// The longest time that a poll may ask for.
    pub max_wait: Duration,
    /// The `chunk_size_mb` of a request that has none. It may be changed at any time.
    pub default_chunk_mb: Arc<AtomicU32>,
    /// A secret first component of every path: only who knows it gets anything but 404. For a master
    /// on a host where other users may connect, which has no other way to know who asks.
    pub secret: Option<String>,
    /// The URL at which clients reach this master, where it is configured: its host is accepted as `RemotePath`.
    pub advertise_url: Option<String>,
    /// How long requests in progress may take when the server stops.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            connections: 32_768,
            head_time: Duration::from_secs(10),
            head_bytes: 64 << 10,
            body_pause: Duration::from_secs(30),
            body_time: Duration::from_secs(300),
            submit_bytes: Arc::new((64 << 20).into()),
            page_bytes: 32 << 20,
            result_bytes: 32 << 20,
            heartbeat_bytes: 4 << 20,
            body_bytes: 1 << 20,
            all_bodies_bytes: 256 << 20,
            poll_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(60),
            default_chunk_mb: Arc::new(DEFAULT_CHUNK_MIB.into()),
            secret: None,
            advertise_url: None,
            drain: Duration::from_secs(10),
        }
    }
}
