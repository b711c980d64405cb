//! What is known of routes: their failures, what is under way on them, how fast their ends are.

use super::connect::Connection;
use super::meter::{GoodputMeter, TrafficCounter};
use super::route_ranking::{EndLoad, RouteAffinity};
use crate::util::backoff::Backoff;
use crate::wire::WorkerId;
use crate::wire::worker::Endpoint;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How soon a route that worked before is probed again.
const PROBE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(3));
/// … and one that never did.
const UNTRIED_PROBE_BACKOFF: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// A route that no request used for this long is not probed.
const UNUSED_PROBE_LIMIT: Duration = Duration::from_secs(60);
/// Requests of at least this many bytes show how fast a route is.
const MIN_MEASURED_BYTES: u64 = 1 << 20;

/// Why a route is not used that no probe was sent over yet.
pub(super) const UNTRIED: &str = "not tried yet";

/// One NIC of this host, by its place (`None`: the kernel chooses), and one endpoint of a peer, as `host:port`.
pub(super) type RouteKey = (Option<usize>, String);

#[derive(Default)]
pub(super) struct Route {
    /// In a row.
    pub(super) failures: u32,
    pub(super) outage: Option<Outage>,
    /// Whether it ever worked, and how long a connect took.
    pub(super) best_connect_time: Option<Duration>,
    /// When it was taken last, as a count: ties are broken in turn.
    pub(super) last_used: u64,
    pub(super) idle_connections: Vec<(Instant, Connection)>,
}

/// Why a route is not used.
pub(super) struct Outage {
    pub(super) reason: String,
    pub(super) last_wanted: Instant,
    pub(super) until: OutageEnd,
}

impl Outage {
    /// The text for heartbeats, which viewers of workers can read: not what happened at the peer, which would tell
    /// open ports from closed ones. The log has that.
    pub(super) fn describe_to_viewers(&self, peer: &str) -> String {
        match self.until {
            OutageEnd::Probe(_) if self.reason != UNTRIED => {
                format!("cannot exchange data with {peer}; see the log of this agent")
            }
            _ => self.reason.clone(),
        }
    }
}

/// What ends it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum OutageEnd {
    /// A probe that is answered; whether one runs.
    Probe(bool),
    /// Time.
    At(Instant),
}

/// A request that is under way.
pub(super) struct InFlight {
    pub(super) key: RouteKey,
    pub(super) size: u64,
    /// The connection's, and what it had sent before.
    pub(super) counter: Option<(Arc<TrafficCounter>, u64)>,
}

impl InFlight {
    pub(super) fn left_bytes(&self) -> u64 {
        let sent = self
            .counter
            .as_ref()
            .map_or(0, |(counter, before)| counter.sent().wrapping_sub(*before));
        self.size.saturating_sub(sent)
    }

    fn uses_end(&self, end: End<'_>) -> bool {
        match end {
            End::Local(nic) => self.key.0 == Some(nic),
            End::Remote(to) => self.key.1 == to,
        }
    }
}

/// An end of routes.
#[derive(Clone, Copy)]
pub(super) enum End<'a> {
    /// The NIC of this host at this place.
    Local(usize),
    /// An endpoint of a peer, as `host:port`.
    Remote(&'a str),
}

/// All routes, and their ends.
#[derive(Default)]
pub(super) struct RoutingState {
    pub(super) routes: BTreeMap<RouteKey, Route>,
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    pub(super) local_meters: Vec<GoodputMeter>,
    pub(super) remote_meters: BTreeMap<String, GoodputMeter>,
    /// The workers that the endpoints belong to by the last assignments, for probes.
    pub(super) workers: BTreeMap<String, WorkerId>,
    pub(super) sequence: u64,
}

impl RoutingState {
    /// Measures goodput up to now.
    pub(super) fn update_goodput(&mut self, now: Instant) {
        let local = self.local_meters.iter_mut().enumerate().map(|(i, m)| (End::Local(i), m));
        let remote = self.remote_meters.iter_mut().map(|(to, m)| (End::Remote(to), m));
        for (end, meter) in local.chain(remote) {
            // Up to its reply: what the kernel took is not gone yet.
            let is_busy = |in_flight: &InFlight| {
                in_flight.size >= MIN_MEASURED_BYTES && in_flight.uses_end(end)
            };
            meter.sample_now(self.in_flight.values().any(is_busy), now);
        }
    }

    /// The load of an end (of this host or of a peer).
    pub(super) fn load(&self, end: End<'_>, now: Instant) -> EndLoad {
        let mut load = EndLoad::default();
        for in_flight in self.in_flight.values().filter(|in_flight| in_flight.uses_end(end)) {
            load.requests += 1;
            load.left_bytes += in_flight.left_bytes();
        }
        let meter = match end {
            End::Local(i) => self.local_meters.get(i),
            End::Remote(to) => self.remote_meters.get(to),
        };
        load.bytes_per_second = meter.and_then(|meter| meter.goodput(now));
        load
    }

    /// The `endpoints` are those of `worker`.
    pub(super) fn record_worker(&mut self, worker: &WorkerId, endpoints: &[Endpoint]) {
        for to in endpoints.iter().map(Endpoint::authority) {
            if self.workers.get(&to) != Some(worker) {
                self.workers.insert(to, worker.clone());
            }
        }
    }

    pub(super) fn counter_for(&mut self, to: &str) -> Arc<TrafficCounter> {
        let meter = self
            .remote_meters
            .entry(to.to_owned())
            .or_insert_with(|| GoodputMeter::new(Arc::default()));
        meter.counter.clone()
    }

    pub(super) fn start_request(&mut self, key: &RouteKey, size: u64) -> u64 {
        self.sequence += 1;
        self.routes.entry(key.clone()).or_default().last_used = self.sequence;
        self.in_flight.insert(self.sequence, InFlight { key: key.clone(), size, counter: None });
        self.update_goodput(Instant::now());
        self.sequence
    }

    /// Whether a route was tried, or likely works without.
    pub(super) fn is_known(&self, key: &RouteKey, affinity: RouteAffinity) -> bool {
        affinity != RouteAffinity::OtherNetwork || self.routes.contains_key(key)
    }

    /// Whether a route may be used; one that was to be left alone for a time may be when it is over.
    pub(super) fn is_usable(&mut self, key: &RouteKey, now: Instant) -> bool {
        let Some(route) = self.routes.get_mut(key) else { return true };
        route.outage.take_if(|outage| matches!(outage.until, OutageEnd::At(end) if end <= now));
        route.outage.is_none()
    }

    /// A connection over a route was accepted after `elapsed`. That clears nothing: the kernel of a process that
    /// stands still accepts as well.
    pub(super) fn record_connect(&mut self, key: &RouteKey, elapsed: Duration) {
        let route = self.routes.entry(key.clone()).or_default();
        route.best_connect_time =
            Some(route.best_connect_time.map_or(elapsed, |best| best.min(elapsed)));
    }

    /// A request over a route was answered: it works.
    pub(super) fn record_success(&mut self, key: &RouteKey) {
        let route = self.routes.entry(key.clone()).or_default();
        // A slow route answers as well: it stays disabled until its time ends.
        if route.outage.as_ref().is_some_and(|outage| matches!(outage.until, OutageEnd::At(_))) {
            return;
        }
        route.failures = 0;
        if route.outage.take().is_some() {
            self.reset_goodput(key);
        }
    }

    /// Drops goodput that was measured while a route failed: it does not describe the ends.
    pub(super) fn reset_goodput(&mut self, key: &RouteKey) {
        if let Some(meter) = key.0.and_then(|i| self.local_meters.get_mut(i)) {
            meter.reset();
        }
        if let Some(meter) = self.remote_meters.get_mut(&key.1) {
            meter.reset();
        }
    }

    pub(super) fn record_outage(&mut self, key: &RouteKey, reason: String, end: OutageEnd) {
        let route = self.routes.entry(key.clone()).or_default();
        route.failures = route.failures.saturating_add(1);
        route.outage = Some(Outage { reason, last_wanted: Instant::now(), until: end });
        route.idle_connections.clear();
    }

    /// How long to wait before a route is probed; `None` when that is at an end.
    pub(super) fn next_probe(&mut self, key: &RouteKey) -> Option<Duration> {
        let route = self.routes.get_mut(key)?;
        let outage =
            route.outage.as_mut().filter(|outage| outage.until == OutageEnd::Probe(true))?;
        if outage.last_wanted.elapsed() > UNUSED_PROBE_LIMIT {
            // The next request that uses the route restarts the probes.
            outage.until = OutageEnd::Probe(false);
            return None;
        }
        let again =
            if route.best_connect_time.is_some() { PROBE_BACKOFF } else { UNTRIED_PROBE_BACKOFF };
        Some(again.delay(route.failures))
    }

    pub(super) fn record_probe_failure(&mut self, key: &RouteKey, reason: String) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.failures = route.failures.saturating_add(1);
        if let Some(outage) = &mut route.outage {
            outage.reason = reason;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_left_of_a_request_are_its_size_less_what_its_connection_sent() {
        let counter: Arc<TrafficCounter> = Arc::default();
        let key: RouteKey = (Some(0), "10.0.0.2:1".into());
        let unsent = InFlight { key: key.clone(), size: 10, counter: None };
        assert_eq!(unsent.left_bytes(), 10);
        let started = InFlight {
            key: key.clone(),
            size: 10,
            counter: Some((counter.clone(), counter.sent())),
        };
        assert_eq!(started.left_bytes(), 10);
        // Its connection sent 20 bytes since: more than this request has.
        let over = InFlight { key, size: 10, counter: Some((counter, u64::MAX - 19)) };
        assert_eq!(over.left_bytes(), 0);
    }
}
