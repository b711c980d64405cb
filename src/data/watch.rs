//! Beside the routes: probes of those that are aside, and an eye on the requests that are under way.

use super::choice::{self, Candidate};
use super::meter::Flow;
use super::route::{End, Key};
use super::routes::Routes;
use crate::wire::worker::Endpoint;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often a request that is under way is looked at, …
const TICK: Duration = Duration::from_millis(200);
/// … how long nothing may move before its route is probed, …
const QUIET: Duration = Duration::from_millis(500);
/// … and how long after a probe that was answered: a receiver may be busy.
const QUIET_AGAIN: Duration = Duration::from_secs(5);
/// So many probes in a row, one each [`QUIET_AGAIN`], are not answered before a request gives up the only route
/// to a peer: its host is gone then, and at the other end keepalive has closed the connection as well. One is
/// enough where the master reports the peer silent.
const UNANSWERED: u32 = 3;

/// Asks a route again and again until it answers, or nobody wants it any more.
pub(super) async fn probing(routes: Weak<Routes>, key: Key) {
    loop {
        let wait = {
            let Some(routes) = routes.upgrade() else { return };
            let mut state = routes.state();
            let Some(wait) = state.next_probe(&key) else { return };
            wait
        };
        tokio::time::sleep(wait).await;
        let Some(routes) = routes.upgrade() else { return };
        let answer = routes.probe(&key).await;
        let mut state = routes.state();
        match answer {
            Ok(took) => {
                state.note_connected(&key, took);
                state.note_answered(&key);
                if routes.nics.len() > 1 {
                    tracing::info!(?key, "route works");
                }
                return;
            }
            Err(why) => state.probe_failed(&key, why),
        }
    }
}

/// Looks at a request that is under way.
pub struct Watch {
    routes: Arc<Routes>,
    key: Key,
    flow: Arc<Flow>,
    flight: u64,
}

impl Watch {
    /// An eye on request `flight`, which is on its way over the route `key`.
    pub(super) fn new(routes: Arc<Routes>, key: Key, flow: Arc<Flow>, flight: u64) -> Self {
        Watch { routes, key, flow, flight }
    }

    /// Resolves, with why, when the route has ceased to work, or crawls while there is another one to
    /// `remote`. Silence alone is no reason: a receiver may be busy for long.
    /// `is_silent`: whether the master has not heard from the peer for its heartbeat time-out.
    pub async fn given_up(self, remote: &[Endpoint], is_silent: impl Fn() -> bool) -> String {
        let mut moved = self.flow.moved();
        let (mut since, mut patience) = (Instant::now(), QUIET);
        let (mut looked, mut sent) = (Instant::now(), self.flow.sent());
        let (mut unanswered, mut pause) = (0, QUIET);
        loop {
            tokio::time::sleep(TICK).await;
            if self.flow.moved() != moved {
                (moved, since, patience) = (self.flow.moved(), Instant::now(), QUIET);
                (unanswered, pause) = (0, QUIET);
            }
            if !self.routes.has_another(&self.key, remote) {
                // Nothing is won by haste: what is on its way arrives when the route is back. But a peer that
                // is silent to the master as well is gone, or stands still.
                let (pause_now, enough) =
                    if is_silent() { (pause, 1) } else { (QUIET_AGAIN, UNANSWERED) };
                if since.elapsed() >= pause_now {
                    let answer = self.routes.probe(&self.key).await;
                    unanswered = if answer.is_ok() { 0 } else { unanswered + 1 };
                    if let Some(why) = answer.err().filter(|_| unanswered >= enough) {
                        return format!("the peer does not answer: {why}");
                    }
                    (since, pause) = (Instant::now(), QUIET_AGAIN);
                }
                continue;
            }
            if let Some(why) = self.dead(since.elapsed(), patience).await {
                return why;
            } else if since.elapsed() >= patience {
                (since, patience) = (Instant::now(), (patience * 2).min(QUIET_AGAIN));
            }
            if looked.elapsed() >= choice::CRAWL_LOOK {
                let speed = (self.flow.sent() - sent) as f64 / looked.elapsed().as_secs_f64();
                (looked, sent) = (Instant::now(), self.flow.sent());
                if self.crawls(speed, remote) {
                    self.routes.set_aside_as_crawling(&self.key);
                    return "it was much slower than other routes".to_owned();
                }
            }
        }
    }

    /// Why the route of a request that is `silent` for so long does not work, if it does not.
    async fn dead(&self, silent: Duration, patience: Duration) -> Option<String> {
        let way = self.routes.way(&self.key);
        let down = way.from.as_ref().filter(|_| way.bound).and_then(|nic| nic.down());
        if down.is_some() {
            return down;
        }
        if silent >= TICK * 2 {
            let state = self.routes.state();
            let aside = state.routes.get(&self.key).and_then(|route| route.aside.as_ref());
            if let Some(aside) = aside.filter(|aside| matches!(aside.end, End::Probe(_))) {
                return Some(aside.why.clone());
            }
        }
        if silent >= patience { self.routes.probe(&self.key).await.err() } else { None }
    }

    fn crawls(&self, speed: f64, remote: &[Endpoint]) -> bool {
        let mut state = self.routes.state();
        let Some(flight) = state.flights.get(&self.flight) else { return false };
        let (left, size) = (flight.left(), flight.size);
        let now = Instant::now();
        let pairs = self.routes.pairs(remote);
        let others = pairs.iter().filter(|(key, _)| *key != self.key);
        let others: Vec<Candidate> =
            others.map(|(key, kin)| self.routes.candidate(&mut state, key, *kin, now)).collect();
        choice::crawls(left, speed, size, &others)
    }
}
