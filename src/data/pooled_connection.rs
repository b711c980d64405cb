//! A connection that is used for one request.

use super::connect::{Connection, ConnectionKind};
use super::nics::Nic;
use super::route_monitor::RouteMonitor;
use super::routes::{CONNECT_TIMEOUT, Routes};
use super::routing_state::{Route, RouteKey, RoutingState};
use crate::wire::WorkerId;
use crate::wire::worker::Endpoint;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use tokio::time::Instant;

/// A connection in use. Dropped, it is closed at once; [`PooledConnection::return_to_pool`] keeps it for the next.
pub struct PooledConnection {
    /// `None` only after [`PooledConnection::return_to_pool`].
    pub(super) connection: Option<Connection>,
    pub(super) key: RouteKey,
    pub(super) in_flight_id: u64,
    pub(super) routes: Arc<Routes>,
    /// Whether it was used before: the other side may have closed it unnoticed.
    pub reused: bool,
}

impl PooledConnection {
    pub(super) fn attach(&mut self, connection: Connection, reused: bool) {
        let counter = (connection.counter.clone(), connection.counter.sent());
        if let Some(in_flight) = self.routes.state().in_flight.get_mut(&self.in_flight_id) {
            in_flight.counter = Some(counter);
        }
        (self.connection, self.reused) = (Some(connection), reused);
    }

    /// The other side, as `host:port`.
    pub fn peer(&self) -> &str {
        &self.key.1
    }

    /// The NIC of this host that it goes out by, where that is known.
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

    /// The request failed with its route, or was abandoned where `keeps_outage`: the route is probed until it works,
    /// unless an outage that is kept (it is only slow) was recorded. Returns whether there is another one to `remote`.
    pub fn mark_failed(self, remote: &[Endpoint], reason: &str, keeps_outage: bool) -> bool {
        if let Some(connection) = &self.connection {
            connection.counter.reset_on_close();
        }
        let has_outage = |route: &Route| route.outage.is_some();
        if !keeps_outage || !self.routes.state().routes.get(&self.key).is_some_and(has_outage) {
            self.routes.disable_until_probed(&self.key, reason.to_owned());
        }
        self.routes.has_alternative(&self.key, remote)
    }

    /// Watches the route while the request is in flight.
    pub fn monitor(&self) -> Option<RouteMonitor> {
        Some(RouteMonitor {
            routes: self.routes.clone(),
            key: self.key.clone(),
            counter: self.connection.as_ref()?.counter.clone(),
            in_flight_id: self.in_flight_id,
        })
    }
}

impl Routes {
    /// A connection to any of the endpoints of a worker, kept or new, for a request of `size` bytes. With
    /// `fresh` only a new one.
    ///
    /// # Errors
    /// Every route, with why it failed.
    pub async fn checkout(
        self: &Arc<Self>,
        (worker, remote): (&WorkerId, &[Endpoint]),
        fresh: bool,
        kind: ConnectionKind,
        size: u64,
    ) -> Result<PooledConnection, Vec<(String, String)>> {
        let (mut failed, mut attempted) = (Vec::new(), Vec::new());
        self.state().record_worker(worker, remote);
        // Each turn takes a route out of those that are usable.
        while let Some(mut pooled) = self.reserve(remote, size) {
            if !fresh
                && let Some(connection) = self.take_idle_connection((worker, &pooled.key), kind)
            {
                pooled.attach(connection, true);
                return Ok(pooled);
            }
            let connected = match self.has_alternative(&pooled.key, remote) {
                true => {
                    let timeouts = (CONNECT_TIMEOUT, CONNECT_TIMEOUT);
                    let connected = self.connect((worker, &pooled.key), kind, timeouts, false);
                    connected.await.map_err(|error| error.message)
                }
                false => self.connect_with_retries((worker, &pooled.key), kind, false).await,
            };
            match connected {
                Ok(connection) => {
                    pooled.attach(connection, false);
                    return Ok(pooled);
                }
                Err(reason) => {
                    failed.push((pooled.key.1.clone(), reason.clone()));
                    self.disable_until_probed(&pooled.key, reason);
                    attempted.push(pooled.key.clone());
                }
            }
        }
        let left: Vec<RouteKey> = {
            let mut state = self.state();
            let all = self.rank_pairs(&mut state, remote, size).into_iter().map(|(key, _)| key);
            all.filter(|key| !attempted.contains(key)).collect()
        };
        self.checkout_any((worker, left), kind, size, failed).await
    }

    /// The best usable route, with the request counted on it.
    fn reserve(self: &Arc<Self>, remote: &[Endpoint], size: u64) -> Option<PooledConnection> {
        let mut state = self.state();
        let best = self.rank_pairs(&mut state, remote, size).into_iter().next();
        let (key, _) = best.filter(|(_, outage)| !outage)?;
        Some(self.start(&mut state, key, size))
    }

    /// Counts a request on the route `key`; its connection is attached later.
    fn start(
        self: &Arc<Self>,
        state: &mut RoutingState,
        key: RouteKey,
        size: u64,
    ) -> PooledConnection {
        let in_flight_id = state.start_request(&key, size);
        PooledConnection {
            connection: None,
            key,
            in_flight_id,
            routes: self.clone(),
            reused: false,
        }
    }

    /// The first of `left` that answers a request: no route is known to work.
    async fn checkout_any(
        self: &Arc<Self>,
        (worker, left): (&WorkerId, Vec<RouteKey>),
        kind: ConnectionKind,
        size: u64,
        mut failed: Vec<(String, String)>,
    ) -> Result<PooledConnection, Vec<(String, String)>> {
        let mut attempts: FuturesUnordered<_> =
            left.into_iter()
                .map(|key| async move {
                    (self.connect_with_retries((worker, &key), kind, true).await, key)
                })
                .collect();
        while let Some((connected, key)) = attempts.next().await {
            match connected {
                Ok(connection) => {
                    let mut pooled = self.start(&mut self.state(), key, size);
                    pooled.attach(connection, false);
                    return Ok(pooled);
                }
                Err(reason) => {
                    self.disable_until_probed(&key, reason.clone());
                    failed.push((key.1, reason));
                }
            }
        }
        Err(failed)
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
