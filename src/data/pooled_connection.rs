//! A connection that is used for one request.

use super::connect::Connection;
use super::content_client::ContentClient;
use super::nics::Nic;
use super::route_monitor::RouteMonitor;
use super::routes::Routes;
use super::routing_state::RouteKey;
use crate::wire::worker::Endpoint;
use std::sync::Arc;
use tokio::time::Instant;

/// A connection in use. Dropped, it is closed at once; `PooledConnection::mark_for_restart` keeps it for the next.
pub struct PooledConnection {
    pub(super) connection: Option<Connection>,
    pub(super) key: RouteKey,
    pub(super) in_flight_id: u64,
    pub(super) routes: Arc<Routes>,
    /// Whether it was used before: the other side may have closed it unnoticed.
    pub reused: bool,
}

impl PooledConnection {
    pub(super) fn attach(&mut self, connection: Connection, reused: bool) {
        let flow = (connection.counter.clone(), connection.counter.sent());
        if let Some(flight) = self.routes.state().in_flight.get_mut(&self.in_flight_id) {
            flight.counter = Some(flow);
        }
        (self.connection, self.reused) = (Some(connection), reused);
    }

    /// The connection; `None` only after `PooledConnection::mark_for_restart`.
    pub fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Its stream, which was taken for an exchange that is over.
    pub fn return_stream(&mut self, stream: ContentClient) {
        if let Some(connection) = &mut self.connection {
            connection.stream = Some(stream);
        }
    }

    /// The other side, as `host:port`.
    pub fn peer(&self) -> &str {
        &self.key.1
    }

    /// Our NIC that it goes out by, where that is known.
    pub fn nic(&self) -> Option<&Arc<Nic>> {
        self.key.0.and_then(|i| self.routes.nics.get(i))
    }

    /// A request over it was answered: its route works.
    pub fn record_success(&self) {
        self.routes.state().record_success(&self.key);
    }

    /// The request was answered whole: the connection can be used again.
    pub fn return_to_pool(mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !connection.is_open() {
            return;
        }
        let mut state = self.routes.state();
        if let Some(route) = state.routes.get_mut(&self.key).filter(|r| r.outage.is_none()) {
            route.idle_connections.push((Instant::now(), connection));
        }
    }

    /// The route failed under the request: it is probed until it works. Says whether there is another
    /// one to `remote`.
    pub fn mark_broken(self, remote: &[Endpoint], why: &str) -> bool {
        if let Some(connection) = &self.connection {
            connection.counter.reset_on_close();
        }
        self.routes.disable_until_probed(&self.key, why.to_owned());
        self.routes.has_alternative(&self.key, remote)
    }

    /// The request was given up: its route is probed, unless it only crawls. Says whether there is another one
    /// to `remote`.
    pub fn mark_abandoned(self, remote: &[Endpoint], why: &str) -> bool {
        if let Some(connection) = &self.connection {
            connection.counter.reset_on_close();
        }
        if self.routes.state().routes.get(&self.key).is_none_or(|route| route.outage.is_none()) {
            self.routes.disable_until_probed(&self.key, why.to_owned());
        }
        self.routes.has_alternative(&self.key, remote)
    }

    /// What tells, while the request is under way, that it is better sent over another route.
    pub fn monitor(&self) -> Option<RouteMonitor> {
        let flow = self.connection.as_ref()?.counter.clone();
        let (routes, key) = (self.routes.clone(), self.key.clone());
        Some(RouteMonitor::new(routes, key, flow, self.in_flight_id))
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let mut state = self.routes.state();
        state.update_goodput(Instant::now());
        state.in_flight.remove(&self.in_flight_id);
        state.update_goodput(Instant::now());
    }
}
