//! Watches a request in flight: it fails where its route fails or is much slower than another one.

use super::meter::TrafficCounter;
use super::route_ranking::{self, Candidate};
use super::routes::Routes;
use super::routing_state::{OutageEnd, RouteKey};
use crate::wire::worker::Endpoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a request that is under way is looked at, …
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// … how long nothing may move before its route is probed, …
const QUIET_BEFORE_PROBE: Duration = Duration::from_millis(500);
/// … and how long after a probe that was answered: a receiver may be busy.
const QUIET_AFTER_PROBE: Duration = Duration::from_secs(5);
/// So many probes in a row, one each [`QUIET_AFTER_PROBE`], are not answered before a request fails on the only route
/// to a peer: its host is gone then, and at the other end keepalive has closed the connection as well. One is
/// enough where the master reports the peer silent.
const MAX_UNANSWERED_PROBES: u32 = 3;

/// Looks at a request that is under way.
pub struct RouteMonitor {
    pub(super) routes: Arc<Routes>,
    pub(super) key: RouteKey,
    pub(super) counter: Arc<TrafficCounter>,
    pub(super) in_flight_id: u64,
}

impl RouteMonitor {
    /// Resolves, with the reason, when the route no longer works, or is slow while there is another one to
    /// `remote`. A pause alone is no reason: a receiver may be busy for long.
    /// `is_silent`: whether the master has not heard from the peer for its heartbeat time-out.
    pub async fn wait_for_failure(
        self,
        remote: &[Endpoint],
        is_silent: impl Fn() -> bool,
    ) -> String {
        let mut progress = self.counter.total();
        let (mut since, mut timeout) = (Instant::now(), QUIET_BEFORE_PROBE);
        let (mut looked, mut sent) = (Instant::now(), self.counter.sent());
        let (mut unanswered, mut pause) = (0, QUIET_BEFORE_PROBE);
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if self.counter.total() != progress {
                (progress, since, timeout) =
                    (self.counter.total(), Instant::now(), QUIET_BEFORE_PROBE);
                (unanswered, pause) = (0, QUIET_BEFORE_PROBE);
            }
            if !self.routes.has_alternative(&self.key, remote) {
                // Nothing is won by haste: what is on its way arrives when the route is back. But a peer that
                // is silent to the master as well is gone, or stands still.
                let (pause_now, enough) = if is_silent() {
                    (pause, 1)
                } else {
                    (QUIET_AFTER_PROBE, MAX_UNANSWERED_PROBES)
                };
                if since.elapsed() >= pause_now {
                    let answer = self.routes.probe(&self.key).await;
                    unanswered = if answer.is_ok() { 0 } else { unanswered + 1 };
                    if let Some(reason) = answer.err().filter(|_| unanswered >= enough) {
                        return format!("the peer does not answer: {reason}");
                    }
                    (since, pause) = (Instant::now(), QUIET_AFTER_PROBE);
                }
                continue;
            }
            if let Some(reason) = self.route_failure(since.elapsed(), timeout).await {
                return reason;
            } else if since.elapsed() >= timeout {
                (since, timeout) = (Instant::now(), (timeout * 2).min(QUIET_AFTER_PROBE));
            }
            if looked.elapsed() >= route_ranking::SLOW_CHECK_INTERVAL {
                let speed = (self.counter.sent() - sent) as f64 / looked.elapsed().as_secs_f64();
                (looked, sent) = (Instant::now(), self.counter.sent());
                if self.is_slow(speed, remote) {
                    self.routes.disable_slow(&self.key);
                    return "it was much slower than other routes".to_owned();
                }
            }
        }
    }

    /// Why the route of a request that is `silent` for so long does not work, if it does not.
    async fn route_failure(&self, silent: Duration, timeout: Duration) -> Option<String> {
        let link_failure = self.routes.link_failure(&self.key);
        if link_failure.is_some() {
            return link_failure;
        }
        if silent >= CHECK_INTERVAL * 2 {
            let state = self.routes.state();
            let outage = state.routes.get(&self.key).and_then(|route| route.outage.as_ref());
            if let Some(outage) =
                outage.filter(|outage| matches!(outage.until, OutageEnd::Probe(_)))
            {
                return Some(outage.reason.clone());
            }
        }
        if silent >= timeout { self.routes.probe(&self.key).await.err() } else { None }
    }

    fn is_slow(&self, speed: f64, remote: &[Endpoint]) -> bool {
        let mut state = self.routes.state();
        let Some(in_flight) = state.in_flight.get(&self.in_flight_id) else { return false };
        let (left, size) = (in_flight.left_bytes(), in_flight.size);
        let now = Instant::now();
        let pairs = self.routes.endpoint_pairs(remote);
        let others = pairs.iter().filter(|(key, _)| *key != self.key);
        let others: Vec<Candidate> = others
            .map(|(key, affinity)| self.routes.candidate(&mut state, key, *affinity, now))
            .collect();
        route_ranking::is_slow(left, speed, size, &others)
    }
}
