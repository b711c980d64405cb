//! The API of operators and agents, over HTTP/1.1.
//!
//! A request passes through `server` (connections, time limits), `middleware` (checks for every request), `access` and
//! `principal` (from where it comes, and what it may do), `routes` and `params`, `body` (with `body_budget`) and `request_documents` (reading and validation), and the
//! [`MasterHandle`](super::handle::MasterHandle) to the state actor. Bodies are JSON, whatever the content type says,
//! except multipart. Every error is a problem document. No decision is made here.

mod access;
mod api_state;
mod audit_log;
mod audit_records;
mod bearer;
mod body;
mod body_budget;
mod join_routes;
mod json;
mod middleware;
mod object_reader;
mod params;
mod principal;
mod request_documents;
mod response;
mod route_table;
mod routes;
mod server;
mod sync_options;
#[cfg(test)]
mod tests;
mod token_routes;

pub(super) use join_routes::ApiAuthority;
pub(super) use server::{ApiListener, serve};
pub(super) use token_routes::new_token;

#[cfg(test)]
pub(in crate::master) use request_documents::read_sync_request;

use crate::config::MasterConfig;
use std::time::Duration;
use tokio::sync::watch;

/// Limits for clients that depend on the configuration or on a test; the others are constants of their modules.
#[derive(Debug, Clone)]
pub(super) struct HttpLimits {
    /// All connections. Further ones are among those without a valid request.
    pub(super) max_connections: usize,
    /// Connections without a valid request, of `max_connections`. A further one takes the place of the oldest one of the
    /// address that has the most.
    pub(super) max_unverified_connections: usize,
    /// The memory for all bodies that are read concurrently, which addresses share (else 503).
    pub(super) max_total_body_bytes: usize,
    /// The maximum wait of a poll.
    pub(super) max_poll_wait: Duration,
    /// A secret first component of every path; requests without it get 404. For a private master on a host with other
    /// users, which has no other authentication.
    pub(super) path_secret: Option<String>,
    /// The configured URL of this master for clients: its host is accepted as `Host`.
    pub(super) advertise_url: Option<String>,
    /// The time that requests in progress have to end when the server stops.
    pub(super) drain_timeout: Duration,
    /// The limit for `POST /sync`, which may contain a file list, and the default of `chunk_size_mb` can change at any
    /// time.
    pub(super) config: watch::Receiver<MasterConfig>,
    /// For certificates of agents. `None`: this master serves no TLS.
    pub(super) authority: Option<ApiAuthority>,
}
