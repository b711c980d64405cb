//! Which of our NICs reaches which endpoint of a peer: routes, what is under way on them, their failures,
//! and the connections kept on them.
//!
//! ```text
//! usable ──connect or probe fails, carrier lost──▶ aside ──probe answered──▶ usable
//!        ──crawls────────────────────────────────▶ aside ──time────────────▶ usable
//! ```
//!
//! Work is sent over usable routes only, so nothing waits for those that are aside; a probe beside asks
//! them again and again. Only when none is usable is every one tried.

use super::choice::{self, Candidate, Kin, Load, fits, kin};
use super::connect::{ConnectError, Connection, Kind, Way, connect, probe};
use super::lease::Leased;
use super::meter::Meter;
use super::nics::Nic;
use super::route::{Aside, End, Key, Route, State};
use super::watch::probing;
use crate::util::backoff::Backoff;
use crate::wire::worker::Endpoint;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A peer that does not accept within this is not there, as long as there are other routes …
const CONNECT: Duration = Duration::from_millis(1500);
/// … or within this where there are none. That is tried again as often as there is time for: a network that was lost for a
/// moment must not cost a task. Together with the three probes of [`watch`](super::watch) it keeps below 25 s.
const CONNECT_LAST: Duration = Duration::from_secs(5);
/// The pause before another try.
const CONNECT_AGAIN: Duration = Duration::from_millis(250);
/// How long a route that crawls is left alone.
const CRAWLED: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60));
/// Kept connections are used again for this long; the other side closes them a little later.
const KEEP: Duration = Duration::from_secs(8);
/// A probe is answered within this (and a few round trips), or the route does not work.
const PROBE: Duration = Duration::from_secs(1);

/// Every route that was tried.
pub struct Routes {
    pub(super) nics: Vec<Arc<Nic>>,
    state: Mutex<State>,
}

/// How one of our endpoints does.
#[derive(Debug, Clone, PartialEq)]
pub struct NicState {
    /// Requests that are under way from it.
    pub requests: usize,
    /// Bytes per second, while content goes out.
    pub goodput: Option<f64>,
    /// Why no route from it works, where that is so.
    pub aside: Option<String>,
}

impl Routes {
    /// Routes from our own `nics`. With fewer than two the kernel chooses the address.
    pub fn new(nics: &[Arc<Nic>]) -> Self {
        let ours = nics.iter().map(|nic| Meter::new(nic.flow.clone())).collect();
        let state = State {
            routes: BTreeMap::new(),
            flights: BTreeMap::new(),
            ours,
            theirs: BTreeMap::new(),
            count: 0,
        };
        Routes { nics: nics.to_vec(), state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn way(&self, (nic, to): &Key) -> Way {
        let from = nic.and_then(|i| self.nics.get(i)).cloned();
        Way { from, bound: self.nics.len() > 1, to: to.clone() }
    }

    /// Every pair of ends that may be one, with how well they belong together.
    pub(super) fn pairs(&self, remote: &[Endpoint]) -> Vec<(Key, Kin)> {
        let theirs: Vec<Option<IpAddr>> = remote.iter().map(|e| e.address.parse().ok()).collect();
        let ours: Vec<Option<IpAddr>> = self.nics.iter().map(|nic| nic.ip()).collect();
        let mut pairs = Vec::new();
        for (j, to) in remote.iter().enumerate() {
            let from: Vec<usize> = match self.nics.len() {
                0 | 1 => (0..self.nics.len()).collect(),
                n => (0..n).filter(|i| fits(ours[*i], theirs[j])).collect(),
            };
            match from.as_slice() {
                [] => pairs.push(((None, to.authority()), Kin::Rail)),
                [only] => pairs.push(((Some(*only), to.authority()), Kin::Rail)),
                several => pairs.extend(
                    several
                        .iter()
                        .map(|i| ((Some(*i), to.authority()), kin(&ours, &theirs, *i, j))),
                ),
            }
        }
        pairs
    }

    /// How many requests can go to `remote` at a time without sharing an end.
    pub fn rails(&self, remote: &[Endpoint]) -> usize {
        let mut state = self.state();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (key, kin) in self.pairs(remote) {
            if state.is_known(&key, kin) && state.is_usable(&key, Instant::now()) {
                ours.push(key.0);
                theirs.push(key.1);
            }
        }
        ours.sort_unstable();
        ours.dedup();
        theirs.sort_unstable();
        theirs.dedup();
        ours.len().min(theirs.len()).max(1)
    }

    /// Requests that are under way.
    pub fn under_way(&self) -> usize {
        self.state().flights.len()
    }

    /// How each of our endpoints does.
    pub fn nics(&self) -> Vec<(Arc<Nic>, NicState)> {
        let (now, mut state) = (Instant::now(), self.state());
        state.look(now);
        let all = self.nics.iter().enumerate().map(|(i, nic)| {
            let mut routes = state.routes.iter().filter(|(key, _)| key.0 == Some(i)).peekable();
            let tried = routes.peek().is_some();
            let mut last = None;
            let dead = tried
                && routes
                    .all(|(_, r)| r.aside.as_ref().map(|a| last = Some(a.why.clone())).is_some());
            let aside = nic.down().or(last.filter(|_| dead));
            let requests = state.load(Some(i), None, now).requests;
            (nic.clone(), NicState { requests, goodput: state.ours[i].goodput(now), aside })
        });
        all.collect()
    }

    /// The routes to `remote`, the best for a request of `size` bytes first, with whether each is aside.
    /// Pairs of different networks are probed before they are used.
    fn ranked(
        self: &Arc<Self>,
        state: &mut State,
        remote: &[Endpoint],
        size: u64,
    ) -> Vec<(Key, bool)> {
        let now = Instant::now();
        state.look(now);
        let pairs = self.pairs(remote);
        let candidates: Vec<Candidate> =
            pairs.iter().map(|(key, kin)| self.candidate(state, key, *kin, now)).collect();
        let ranked = choice::rank(&candidates, size);
        ranked.into_iter().map(|i| (pairs[i].0.clone(), candidates[i].aside)).collect()
    }

    pub(super) fn candidate(
        self: &Arc<Self>,
        state: &mut State,
        key: &Key,
        kin: Kin,
        now: Instant,
    ) -> Candidate {
        if !state.routes.contains_key(key) {
            let mut route = Route::default();
            if kin == Kin::Crossed {
                let why = "not tried yet".to_owned();
                route.aside = Some(Aside { why, wanted: now, end: End::Probe(false) });
            }
            state.routes.insert(key.clone(), route);
        }
        let usable = state.is_usable(key, now);
        if let Some(aside) = state.routes.get_mut(key).and_then(|route| route.aside.as_mut()) {
            aside.wanted = now;
            if aside.end == End::Probe(false) {
                aside.end = End::Probe(true);
                tokio::spawn(probing(Arc::downgrade(self), key.clone()));
            }
        }
        let ours = match key.0 {
            Some(i) => self.weighted(i, state.load(Some(i), None, now)),
            None => Load::default(),
        };
        let theirs = state.load(None, Some(&key.1), now);
        let taken = state.routes.get(key).map_or(0, |route| route.taken);
        Candidate { aside: !usable, ours, theirs, kin, taken }
    }

    /// What is set for a NIC, and what its interface says of itself as long as nothing was measured.
    fn weighted(&self, nic: usize, load: Load) -> Load {
        let nic = &self.nics[nic];
        let speed = load.speed.or_else(|| nic.nominal());
        let limit = nic.rate.limit().map(|limit| limit as f64);
        let speed = match (speed, limit) {
            (Some(speed), Some(limit)) => Some(speed.min(limit)),
            (speed, limit) => speed.or(limit),
        };
        Load { speed: speed.map(|speed| speed * f64::from(nic.tuning.weight)), ..load }
    }

    /// A connection to any of the `remote` endpoints, kept or new, for a request of `size` bytes. With
    /// `fresh` only a new one.
    ///
    /// # Errors
    /// Every route, with why it failed.
    pub async fn lease(
        self: &Arc<Self>,
        remote: &[Endpoint],
        fresh: bool,
        kind: Kind,
        size: u64,
    ) -> Result<Leased, Vec<(String, String)>> {
        let (mut failed, mut tried) = (Vec::new(), Vec::new());
        // Each turn takes a route out of those that are usable.
        while let Some(mut leased) = self.reserve(remote, size) {
            if !fresh && let Some(connection) = self.kept(&leased.key, kind) {
                leased.take(connection, true);
                return Ok(leased);
            }
            let connected = match self.has_another(&leased.key, remote) {
                true => {
                    let connected = self.connect(&leased.key, kind, (CONNECT, CONNECT), false);
                    connected.await.map_err(|error| error.why)
                }
                false => self.connect_last(&leased.key, kind, false).await,
            };
            match connected {
                Ok(connection) => {
                    leased.take(connection, false);
                    return Ok(leased);
                }
                Err(why) => {
                    failed.push((leased.key.1.clone(), why.clone()));
                    self.set_aside(&leased.key, why);
                    tried.push(leased.key.clone());
                }
            }
        }
        let left: Vec<Key> = {
            let mut state = self.state();
            let all = self.ranked(&mut state, remote, size).into_iter().map(|(key, _)| key);
            all.filter(|key| !tried.contains(key)).collect()
        };
        self.lease_any(left, kind, size, failed).await
    }

    /// The best usable route, with the request counted on it.
    fn reserve(self: &Arc<Self>, remote: &[Endpoint], size: u64) -> Option<Leased> {
        let mut state = self.state();
        let best = self.ranked(&mut state, remote, size).into_iter().next();
        let (key, _) = best.filter(|(_, aside)| !aside)?;
        let flight = state.begin(&key, size);
        drop(state);
        Some(Leased { connection: None, key, flight, routes: self.clone(), reused: false })
    }

    /// The first of `left` that answers a request: no route is known to work.
    async fn lease_any(
        self: &Arc<Self>,
        left: Vec<Key>,
        kind: Kind,
        size: u64,
        mut failed: Vec<(String, String)>,
    ) -> Result<Leased, Vec<(String, String)>> {
        let mut tries: FuturesUnordered<_> = left
            .into_iter()
            .map(|key| async move { (self.connect_last(&key, kind, true).await, key) })
            .collect();
        while let Some((connected, key)) = tries.next().await {
            match connected {
                Ok(connection) => {
                    let flight = self.state().begin(&key, size);
                    let mut leased = Leased {
                        connection: None,
                        key,
                        flight,
                        routes: self.clone(),
                        reused: false,
                    };
                    leased.take(connection, false);
                    return Ok(leased);
                }
                Err(why) => {
                    self.set_aside(&key, why.clone());
                    failed.push((key.1, why));
                }
            }
        }
        Err(failed)
    }

    /// Connects over what may be the last route, again and again while the network does not reach the peer.
    async fn connect_last(
        &self,
        key: &Key,
        kind: Kind,
        asking: bool,
    ) -> Result<Connection, String> {
        // The first packet of a connection that was lost is sent again late, so a try of its own is begun sooner.
        try_for(CONNECT_LAST, |left| self.connect(key, kind, (CONNECT.min(left), left), asking))
            .await
    }

    /// Connects within the first time, and has an answer within the second one; with `asking` that of a request.
    async fn connect(
        &self,
        key: &Key,
        kind: Kind,
        (accepted, patience): (Duration, Duration),
        asking: bool,
    ) -> Result<Connection, ConnectError> {
        let theirs = self.state().flow_of(&key.1);
        let (since, way) = (Instant::now(), self.way(key));
        let connecting = async {
            let mut connection = connect(&way, &theirs, kind, (accepted, patience)).await?;
            let took = since.elapsed();
            // A stream is the answer to a request already.
            let is_stream = kind == Kind::Content;
            if asking && !is_stream {
                connection.probe(&key.1).await?;
            }
            Ok((connection, took, asking || is_stream))
        };
        let connected = match tokio::time::timeout(patience, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::late("answer", patience)),
        };
        let (connection, took, answered) = connected.inspect_err(|error: &ConnectError| {
            tracing::debug!(peer = key.1, "cannot connect: {}", error.why);
        })?;
        let mut state = self.state();
        state.note_connected(key, took);
        if answered {
            state.note_answered(key);
        }
        Ok(connection)
    }

    fn kept(&self, key: &Key, kind: Kind) -> Option<Connection> {
        let mut state = self.state();
        let kept = &mut state.routes.get_mut(key)?.kept;
        kept.retain(|(since, connection)| since.elapsed() < KEEP && connection.is_open());
        let at = kept.iter().rposition(|(_, connection)| connection.kind() == kind)?;
        Some(kept.swap_remove(at).1)
    }

    /// A route does not work: it is probed until it does.
    pub(super) fn set_aside(self: &Arc<Self>, key: &Key, why: String) {
        let mut state = self.state();
        let end = match state.routes.get(key).and_then(|route| route.aside.as_ref()) {
            Some(Aside { end: End::Probe(true), .. }) => End::Probe(true),
            _ => {
                tokio::spawn(probing(Arc::downgrade(self), key.clone()));
                End::Probe(true)
            }
        };
        self.note(key, &why);
        state.set_aside(key, why, end);
    }

    /// A route is much slower than others: it is left alone for a while.
    pub(super) fn set_aside_as_crawling(&self, key: &Key) {
        let mut state = self.state();
        let failures = state.routes.get(key).map_or(0, |route| route.failures) + 1;
        let why = "much slower than the others".to_owned();
        self.note(key, &why);
        state.set_aside(key, why, End::At(Instant::now() + CRAWLED.delay(failures)));
    }

    fn note(&self, (nic, to): &Key, why: &str) {
        if let Some(nic) = nic.and_then(|i| self.nics.get(i)).filter(|_| self.nics.len() > 1) {
            tracing::info!(from = nic.endpoint.authority(), to, "route not used for now: {why}");
        }
    }

    /// Whether a route to `remote` but this one is usable.
    pub(super) fn has_another(&self, key: &Key, remote: &[Endpoint]) -> bool {
        let (now, mut state) = (Instant::now(), self.state());
        let pairs = self.pairs(remote);
        pairs.iter().any(|(other, kin)| {
            other != key && state.is_known(other, *kin) && state.is_usable(other, now)
        })
    }
}

impl Routes {
    pub(super) async fn probe(&self, key: &Key) -> Result<Duration, String> {
        let way = self.way(key);
        if let Some(why) = way.from.as_ref().filter(|_| way.bound).and_then(|nic| nic.down()) {
            return Err(why);
        }
        let (theirs, worked) = {
            let mut state = self.state();
            let worked = state.routes.get(key).and_then(|route| route.worked);
            (state.flow_of(&key.1), worked.unwrap_or_default())
        };
        let since = Instant::now();
        probe(&way, &theirs, PROBE + worked * 4).await.map(|()| since.elapsed())
    }
}

/// Tries for so long, as long as errors may pass. Each try is given the time that is left.
async fn try_for<T, F: Future<Output = Result<T, ConnectError>>>(
    patience: Duration,
    attempt: impl Fn(Duration) -> F,
) -> Result<T, String> {
    let end = Instant::now() + patience;
    loop {
        let error = match attempt(end - Instant::now()).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !error.may_pass || end - Instant::now() <= CONNECT_AGAIN {
            return Err(error.why);
        }
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_network_that_is_lost_for_a_moment_does_not_cost_the_only_route() {
        use std::io::ErrorKind;
        for (kind, passes) in [
            (ErrorKind::NetworkUnreachable, true),
            (ErrorKind::HostUnreachable, true),
            (ErrorKind::NetworkDown, true),
            (ErrorKind::AddrNotAvailable, true),
            (ErrorKind::TimedOut, true),
            // The host is there, and no agent.
            (ErrorKind::ConnectionRefused, false),
            (ErrorKind::ConnectionReset, false),
        ] {
            // It is back after so many seconds, or not in time.
            for back in [4, 60] {
                let began = Instant::now();
                let connect = |_| async move {
                    match began.elapsed() < Duration::from_secs(back) {
                        true => Err(ConnectError::from(std::io::Error::from(kind))),
                        false => Ok(()),
                    }
                };
                let connected = try_for(CONNECT_LAST, connect).await;
                assert_eq!(connected.is_ok(), passes && back == 4, "{kind:?}: {connected:?}");
                let took = began.elapsed();
                assert!(took <= CONNECT_LAST && (passes || took.is_zero()), "{kind:?}: {took:?}");
            }
        }
        // A first packet that is lost costs a part of the time only.
        let began = Instant::now();
        let lost = |left| async move {
            tokio::time::sleep(CONNECT.min(left)).await;
            match began.elapsed() < Duration::from_secs(3) {
                true => Err(ConnectError::late("answer", CONNECT)),
                false => Ok(()),
            }
        };
        assert_eq!(try_for(CONNECT_LAST, lost).await, Ok(()));
    }

    fn endpoints(all: &[&str]) -> Vec<Endpoint> {
        all.iter().map(|e| e.parse().unwrap()).collect()
    }

    fn routes(all: &[&str]) -> Arc<Routes> {
        let nics: Vec<_> = endpoints(all).into_iter().map(|e| Nic::new(e.into())).collect();
        Arc::new(Routes::new(&nics))
    }

    fn authorities(routes: &Arc<Routes>, remote: &[Endpoint]) -> Vec<String> {
        let ranked = routes.ranked(&mut routes.state(), remote, 0);
        let from = |nic: Option<usize>| nic.and_then(|i| routes.nics[i].ip());
        ranked
            .into_iter()
            .map(|((nic, to), _)| {
                format!("{}>{to}", from(nic).map_or("-".into(), |i| i.to_string()))
            })
            .collect()
    }

    #[tokio::test]
    async fn with_one_endpoint_the_kernel_chooses_the_address() {
        let routes = routes(&["10.0.0.1"]);
        let all = authorities(&routes, &endpoints(&["10.0.0.2:1", "10.0.1.2:1"]));
        assert_eq!(all, ["10.0.0.1>10.0.0.2:1", "10.0.0.1>10.0.1.2:1"]);
        assert!(!routes.way(&(Some(0), "10.0.0.2:1".into())).bound);
    }

    #[tokio::test]
    async fn rails_match_first_and_families_never_mix() {
        let routes = routes(&["10.0.0.1", "10.0.1.1", "fd00::1"]);
        // In another order than ours.
        let remote = endpoints(&["10.0.1.2:1", "10.0.0.2:1", "[fd00::2]:1"]);
        let all = authorities(&routes, &remote);
        assert_eq!(all[..3], ["10.0.1.1>10.0.1.2:1", "10.0.0.1>10.0.0.2:1", "fd00::1>[fd00::2]:1"]);
        assert_eq!(all.len(), 5, "{all:?}");
        // Others are not used before a probe has found that they are there.
        let aside = routes.ranked(&mut routes.state(), &remote, 0);
        assert_eq!(aside.iter().filter(|(_, aside)| *aside).count(), 2);
        assert_eq!(routes.rails(&remote), 3);
    }

    #[tokio::test]
    async fn only_interfaces_that_likely_reach_the_peer_count_as_rails() {
        let routes = routes(&["10.0.0.1", "10.0.1.1"]);
        // Both are in the network of our first one: whether the second one reaches them is not known.
        assert_eq!(routes.rails(&endpoints(&["10.0.0.2:1", "10.0.0.3:1"])), 1);
        assert_eq!(routes.rails(&endpoints(&["10.0.0.2:1", "10.0.1.3:1"])), 2);
    }

    #[tokio::test]
    async fn a_route_that_fails_is_tried_last_and_comes_back_when_it_answers() {
        let routes = Arc::new(Routes::new(&[]));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap().to_string();
        // Bound and not listening: a connect is refused at once.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let bad = closed.local_addr().unwrap().to_string();
        let remote = endpoints(&[&bad, &good]);
        let leased = routes.lease(&remote, false, Kind::Documents, 0).await.unwrap();
        assert_eq!((leased.peer(), leased.reused), (good.as_str(), false));
        drop(leased);
        assert_eq!(authorities(&routes, &remote)[0], format!("->{good}"));
        let failed = routes.lease(&remote[..1], false, Kind::Documents, 0).await.err().unwrap();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].1.contains("refused"), "{failed:?}");
        drop(closed);
        // An agent is there now: a probe finds it.
        let server = super::super::DataServer::bind(&remote[..1]).await.unwrap();
        let roots = super::super::Roots::open(&[]).unwrap();
        let served = super::super::Served {
            gate: Arc::new(super::super::TicketGate::new()),
            roots: Arc::new(roots),
        };
        let serving = tokio::spawn(server.serve(
            Arc::new(served),
            super::super::pool::tests::plenty(),
            crate::util::shutdown::Shutdown::new(),
        ));
        while routes.ranked(&mut routes.state(), &remote[..1], 0)[0].1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        serving.abort();
    }
}
