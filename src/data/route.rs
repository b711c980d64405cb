//! What is known of routes: their failures, what is under way on them, how fast their ends are.

use super::choice::{Kin, Load};
use super::connect::Connection;
use super::meter::{Flow, Meter};
use crate::util::backoff::Backoff;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How soon a route that worked before is probed again.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(3));
/// … and one that never did.
const SELDOM: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// A route that nobody wanted for this long is not probed.
const WANTED: Duration = Duration::from_secs(60);
/// Requests of at least this many bytes show how fast a route is.
const CONTENT: u64 = 1 << 20;

/// One of our NICs, by its place (`None`: the kernel chooses), and one endpoint of a peer, as `host:port`.
pub(super) type Key = (Option<usize>, String);

#[derive(Default)]
pub(super) struct Route {
    /// In a row.
    pub(super) failures: u32,
    pub(super) aside: Option<Aside>,
    /// Whether it ever worked, and how long a connect took.
    pub(super) worked: Option<Duration>,
    /// When it was taken last, as a count: ties are broken in turn.
    pub(super) taken: u64,
    pub(super) kept: Vec<(Instant, Connection)>,
}

/// Why a route is not used.
pub(super) struct Aside {
    pub(super) why: String,
    pub(super) wanted: Instant,
    pub(super) end: End,
}

/// What ends it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum End {
    /// A probe that is answered; whether one runs.
    Probe(bool),
    /// Time.
    At(Instant),
}

/// A request that is under way.
pub(super) struct Flight {
    pub(super) key: Key,
    pub(super) size: u64,
    /// The connection's, and what it had sent before.
    pub(super) flow: Option<(Arc<Flow>, u64)>,
}

impl Flight {
    pub(super) fn left(&self) -> u64 {
        let sent = self.flow.as_ref().map_or(0, |(flow, before)| flow.sent().wrapping_sub(*before));
        self.size.saturating_sub(sent)
    }
}

/// All routes, and their ends.
pub(super) struct State {
    pub(super) routes: BTreeMap<Key, Route>,
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) ours: Vec<Meter>,
    pub(super) theirs: BTreeMap<String, Meter>,
    pub(super) count: u64,
}

impl State {
    /// Measures goodput up to now.
    pub(super) fn look(&mut self, now: Instant) {
        let busy = |nic: Option<usize>, to: Option<&str>, flights: &BTreeMap<u64, Flight>| {
            // Up to its reply: what the kernel took is not gone yet.
            flights.values().any(|flight| flight.size >= CONTENT && flight.is_at(nic, to))
        };
        for (i, meter) in self.ours.iter_mut().enumerate() {
            meter.look(busy(Some(i), None, &self.flights), now);
        }
        for (to, meter) in &mut self.theirs {
            meter.look(busy(None, Some(to), &self.flights), now);
        }
    }

    /// What an end (one of ours, or a peer's) has to do.
    pub(super) fn load(&self, nic: Option<usize>, to: Option<&str>, now: Instant) -> Load {
        let mut load = Load::default();
        for flight in self.flights.values().filter(|flight| flight.is_at(nic, to)) {
            load.requests += 1;
            load.left += flight.left();
        }
        let meter = match (nic, to) {
            (Some(i), _) => self.ours.get(i),
            (None, to) => to.and_then(|to| self.theirs.get(to)),
        };
        load.speed = meter.and_then(|meter| meter.goodput(now));
        load
    }

    pub(super) fn flow_of(&mut self, to: &str) -> Arc<Flow> {
        let meter = self.theirs.entry(to.to_owned()).or_insert_with(|| Meter::new(Arc::default()));
        meter.flow().clone()
    }

    pub(super) fn begin(&mut self, key: &Key, size: u64) -> u64 {
        self.count += 1;
        self.routes.entry(key.clone()).or_default().taken = self.count;
        self.flights.insert(self.count, Flight { key: key.clone(), size, flow: None });
        self.look(Instant::now());
        self.count
    }

    /// Whether a route was tried, or likely works without.
    pub(super) fn is_known(&self, key: &Key, kin: Kin) -> bool {
        kin != Kin::Crossed || self.routes.contains_key(key)
    }

    /// Whether a route may be used; one that was to be left alone for a time may be when it is over.
    pub(super) fn is_usable(&mut self, key: &Key, now: Instant) -> bool {
        let Some(route) = self.routes.get_mut(key) else { return true };
        if route.aside.as_ref().is_some_and(|aside| matches!(aside.end, End::At(end) if end <= now))
        {
            route.aside = None;
        }
        route.aside.is_none()
    }

    /// A connection over a route was accepted after `took`. That clears nothing: the kernel of a process that
    /// stands still accepts as well.
    pub(super) fn note_connected(&mut self, key: &Key, took: Duration) {
        let route = self.routes.entry(key.clone()).or_default();
        route.worked = Some(route.worked.map_or(took, |best| best.min(took)));
    }

    /// A request over a route was answered: it works.
    pub(super) fn note_answered(&mut self, key: &Key) {
        let route = self.routes.entry(key.clone()).or_default();
        // Who crawls can be connected to.
        if route.aside.as_ref().is_some_and(|aside| matches!(aside.end, End::At(_))) {
            return;
        }
        route.failures = 0;
        if route.aside.take().is_some() {
            self.forget(key);
        }
    }

    /// What was measured while a route failed says nothing of what its ends can do.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(meter) = key.0.and_then(|i| self.ours.get_mut(i)) {
            meter.forget();
        }
        if let Some(meter) = self.theirs.get_mut(&key.1) {
            meter.forget();
        }
    }

    pub(super) fn set_aside(&mut self, key: &Key, why: String, end: End) {
        let route = self.routes.entry(key.clone()).or_default();
        route.failures = route.failures.saturating_add(1);
        route.aside = Some(Aside { why, wanted: Instant::now(), end });
        route.kept.clear();
    }

    /// How long to wait before a route is probed; `None` when that is at an end.
    pub(super) fn next_probe(&mut self, key: &Key) -> Option<Duration> {
        let route = self.routes.get_mut(key)?;
        let aside = route.aside.as_mut().filter(|aside| aside.end == End::Probe(true))?;
        if aside.wanted.elapsed() > WANTED {
            // The next who wants it begins anew.
            aside.end = End::Probe(false);
            return None;
        }
        let again = if route.worked.is_some() { AGAIN } else { SELDOM };
        Some(again.delay(route.failures))
    }

    pub(super) fn probe_failed(&mut self, key: &Key, why: String) {
        let Some(route) = self.routes.get_mut(key) else { return };
        route.failures = route.failures.saturating_add(1);
        if let Some(aside) = &mut route.aside {
            aside.why = why;
        }
    }
}

impl Flight {
    pub(super) fn is_at(&self, nic: Option<usize>, to: Option<&str>) -> bool {
        match (nic, to) {
            (Some(_), _) => self.key.0 == nic,
            (None, to) => to == Some(self.key.1.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_request_is_its_size_less_what_its_connection_sent() {
        let flow: Arc<Flow> = Arc::default();
        let key: Key = (Some(0), "10.0.0.2:1".into());
        let unsent = Flight { key: key.clone(), size: 10, flow: None };
        assert_eq!(unsent.left(), 10);
        let begun = Flight { key: key.clone(), size: 10, flow: Some((flow.clone(), flow.sent())) };
        assert_eq!(begun.left(), 10);
        // Its connection sent 20 bytes since: more than this request has.
        let over = Flight { key, size: 10, flow: Some((flow, u64::MAX - 19)) };
        assert_eq!(over.left(), 0);
    }
}
