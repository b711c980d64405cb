//! A connection that is used for one request.

use super::asking::Asking;
use super::connect::Connection;
use super::nics::Nic;
use super::route::Key;
use super::routes::Routes;
use super::watch::Watch;
use crate::wire::worker::Endpoint;
use std::sync::Arc;
use tokio::time::Instant;

/// A connection in use. Dropped, it is closed at once; [`Leased::mark_for_restart`] keeps it for the next.
pub struct Leased {
    pub(super) connection: Option<Connection>,
    pub(super) key: Key,
    pub(super) flight: u64,
    pub(super) routes: Arc<Routes>,
    /// Whether it was used before: the other side may have closed it unnoticed.
    pub reused: bool,
}

impl Leased {
    pub(super) fn take(&mut self, connection: Connection, reused: bool) {
        let flow = (connection.flow.clone(), connection.flow.sent());
        if let Some(flight) = self.routes.state().flights.get_mut(&self.flight) {
            flight.flow = Some(flow);
        }
        (self.connection, self.reused) = (Some(connection), reused);
    }

    /// The connection; `None` only after [`Leased::mark_for_restart`].
    pub fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Its stream, which was taken for an exchange that is over.
    pub fn give_back(&mut self, stream: Asking) {
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
    pub fn note_answered(&self) {
        self.routes.state().note_answered(&self.key);
    }

    /// The request was answered whole: the connection can be used again.
    pub fn keep(mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !connection.is_open() {
            return;
        }
        let mut state = self.routes.state();
        if let Some(route) = state.routes.get_mut(&self.key).filter(|r| r.aside.is_none()) {
            route.kept.push((Instant::now(), connection));
        }
    }

    /// The route failed under the request: it is probed until it works. Says whether there is another
    /// one to `remote`.
    pub fn broke(self, remote: &[Endpoint], why: &str) -> bool {
        if let Some(connection) = &self.connection {
            connection.flow.reset_on_close();
        }
        self.routes.set_aside(&self.key, why.to_owned());
        self.routes.has_another(&self.key, remote)
    }

    /// The request was given up: its route is probed, unless it only crawls. Says whether there is another one
    /// to `remote`.
    pub fn left(self, remote: &[Endpoint], why: &str) -> bool {
        if let Some(connection) = &self.connection {
            connection.flow.reset_on_close();
        }
        if self.routes.state().routes.get(&self.key).is_none_or(|route| route.aside.is_none()) {
            self.routes.set_aside(&self.key, why.to_owned());
        }
        self.routes.has_another(&self.key, remote)
    }

    /// What tells, while the request is under way, that it is better sent over another route.
    pub fn watch(&self) -> Option<Watch> {
        let flow = self.connection.as_ref()?.flow.clone();
        let (routes, key) = (self.routes.clone(), self.key.clone());
        Some(Watch::new(routes, key, flow, self.flight))
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let mut state = self.routes.state();
        state.look(Instant::now());
        state.flights.remove(&self.flight);
        state.look(Instant::now());
    }
}
