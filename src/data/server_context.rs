//! What the handlers of a connection of a data server need.

use super::active_requests::ActiveRequests;
use super::buffer_pool::BufferPool;
use super::roots::Roots;
use super::ticket_verifier::{Refusal, TicketVerifier};
use crate::fs::Target;
use crate::util::admission::AdmittedConnection;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::WorkerId;
use crate::wire::ticket::Claims;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What all connections share, and the place of one of them.
#[derive(Clone)]
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
    /// The worker of the agent at the other end, by its certificate. `None`: without TLS.
    pub(super) sender: Option<WorkerId>,
    /// The content of large files may be sent without encryption.
    pub(super) allows_clear: bool,
    /// The place of this connection among all.
    pub(super) connection: Arc<AdmittedConnection>,
}

impl ConnectionContext {
    /// What a ticket allows and where; in TLS only that of the sender is valid. With a valid one the connection counts as
    /// one of a peer.
    ///
    /// # Errors
    /// The ticket is refused.
    pub(super) fn authorize(&self, ticket: &str) -> Result<(Claims, Target), Refusal> {
        let authorized = self.roots.authorize(&self.verifier, ticket)?;
        if let Some(sender) = &self.sender
            && authorized.0.worker != sender.as_str()
        {
            return Err(Refusal::OtherSender(authorized.0.worker, sender.clone()));
        }
        self.connection.mark_verified();
        Ok(authorized)
    }

    /// One line a minute, whatever the cause: peers can make any number of mistakes.
    pub(super) fn log_failure(&self, peer: SocketAddr, what: &str) {
        warn_ratelimited!("a data connection ended", %peer, "data connection ended: {what}");
    }
}
