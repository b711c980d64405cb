//! What the connections of a data server share.

use super::active_requests::ActiveRequests;
use super::buffer_pool::BufferPool;
use super::roots::Roots;
use super::ticket_verifier::TicketVerifier;
use crate::util::repeated_warnings::warn_ratelimited;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What all connections share.
pub(super) struct ConnectionContext {
    /// Verifies the tickets of requests.
    pub(super) verifier: Arc<TicketVerifier>,
    /// The storage that requests can name.
    pub(super) roots: Arc<Roots>,
    pub(super) requests: Arc<ActiveRequests>,
    /// What content is received into.
    pub(super) pool: BufferPool,
    /// A body without progress for this long ends its request.
    pub(super) stall_timeout: Duration,
}

impl ConnectionContext {
    /// One line a minute, whatever the cause: peers can make any number of mistakes.
    pub(super) fn log_failure(&self, peer: SocketAddr, what: &str) {
        warn_ratelimited!("a data connection ended", %peer, "data connection ended: {what}");
    }
}
