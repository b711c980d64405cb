//! Which NIC of this host reaches which endpoint of a peer: routes, what is under way on them, their failures,
//! and the connections kept on them.
//!
//! ```text
//! usable ──connect or probe fails, carrier lost──▶ disabled ──probe answered──▶ usable
//!        ──much slower than another route───────▶ disabled ──time────────────▶ usable
//! ```
//!
//! Requests use usable routes only, so none waits for a disabled one; probes run beside the requests
//! until one is answered. All routes are tried only when none is usable.

use super::connect::{ConnectError, Connection, ConnectionKind, ConnectionPath, connect};
use super::meter::GoodputMeter;
use super::nics::Nic;
use super::route_ranking::{self, Candidate, EndLoad, RouteAffinity, affinity, can_connect};
use super::routing_state::{End, Outage, OutageEnd, Route, RouteKey, RoutingState, UNTRIED};
use super::tls::DataTls;
use crate::util::backoff::Backoff;
use crate::wire::WorkerId;
use crate::wire::worker::{Endpoint, NicReport};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A peer that does not accept within this is not there, as long as there are other routes …
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// … or within this where there are none. That is tried again as often as there is time for: a network that was lost for a
/// moment must not cost a task. Together with the three probes of [`route_monitor`](super::route_monitor) it keeps below 25 s.
const LAST_ROUTE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before another try.
const CONNECT_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How long a slow route is disabled.
const SLOW_ROUTE_BACKOFF: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60));
/// Kept connections are used again for this long; the other side closes them a little later.
const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(8);
/// A probe is answered within this (and a few round trips), or the route does not work.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Every route that was tried.
pub struct Routes {
    pub(super) nics: Vec<Arc<Nic>>,
    tls: Option<Arc<DataTls>>,
    state: Mutex<RoutingState>,
}

impl Routes {
    /// Routes from the `nics` of this host; with `tls` nothing goes over them without. With fewer than two NICs the kernel
    /// chooses the address.
    pub fn new(nics: &[Arc<Nic>], tls: Option<Arc<DataTls>>) -> Self {
        let local_meters = nics.iter().map(|nic| GoodputMeter::new(nic.counter.clone())).collect();
        let state = RoutingState { local_meters, ..RoutingState::default() };
        Routes { nics: nics.to_vec(), tls, state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, RoutingState> {
        self.state.lock()
    }

    /// A path over a route to `worker`.
    pub(super) fn path_of(&self, (nic, to): &RouteKey, worker: &WorkerId) -> ConnectionPath {
        let from = nic.and_then(|i| self.nics.get(i)).cloned();
        let tls = self.tls.clone().map(|tls| (tls, worker.clone()));
        ConnectionPath { from, is_bound: self.nics.len() > 1, to: to.clone(), tls }
    }

    /// Why the NIC of a route can't be used, where the kernel reports so.
    pub(super) fn link_failure(&self, (nic, _): &RouteKey) -> Option<String> {
        // With a single NIC the routing table decides.
        nic.and_then(|i| self.nics.get(i)).filter(|_| self.nics.len() > 1)?.link_failure()
    }

    /// Every pair of ends that may be one, with how well they belong together.
    pub(super) fn endpoint_pairs(&self, remote: &[Endpoint]) -> Vec<(RouteKey, RouteAffinity)> {
        let theirs: Vec<Option<IpAddr>> = remote.iter().map(|e| e.address.parse().ok()).collect();
        let ours: Vec<Option<IpAddr>> = self.nics.iter().map(|nic| nic.ip()).collect();
        let mut pairs = Vec::new();
        for (j, to) in remote.iter().enumerate() {
            let from: Vec<usize> = match self.nics.len() {
                0 | 1 => (0..self.nics.len()).collect(),
                n => (0..n).filter(|i| can_connect(ours[*i], theirs[j])).collect(),
            };
            let key = |nic: Option<usize>| (nic, to.authority());
            match from.as_slice() {
                [] => pairs.push((key(None), RouteAffinity::Rail)),
                [only] => pairs.push((key(Some(*only)), RouteAffinity::Rail)),
                several => pairs.extend(
                    several.iter().map(|i| (key(Some(*i)), affinity(&ours, &theirs, *i, j))),
                ),
            }
        }
        pairs
    }

    /// How many requests can go to `remote` at a time without sharing an end.
    pub fn count_rails(&self, remote: &[Endpoint]) -> usize {
        let mut state = self.state();
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        for (key, affinity) in self.endpoint_pairs(remote) {
            if state.is_known(&key, affinity) && state.is_usable(&key, Instant::now()) {
                ours.insert(key.0);
                theirs.insert(key.1);
            }
        }
        ours.len().min(theirs.len()).max(1)
    }

    /// Requests that are under way.
    pub fn count_in_flight(&self) -> usize {
        self.state().in_flight.len()
    }

    /// The statistics of each endpoint of this host, without receive rates.
    pub fn nic_reports(&self) -> Vec<NicReport> {
        let (now, mut state) = (Instant::now(), self.state());
        state.update_goodput(now);
        let all = self.nics.iter().enumerate().map(|(i, nic)| {
            let routes = state.routes.iter().filter(|(key, _)| key.0 == Some(i));
            // `None` where one of them is usable.
            let outage_of = |(key, route): (&RouteKey, &Route)| {
                route.outage.as_ref().map(|outage| outage.describe_to_viewers(&key.1))
            };
            let outage =
                routes.map(outage_of).collect::<Option<Vec<_>>>().and_then(|mut all| all.pop());
            let load = state.load(End::Local(i), now);
            NicReport {
                endpoint: nic.endpoint.authority(),
                iface: nic.endpoint.iface.clone(),
                sent: nic.counter.sent(),
                received: nic.counter.received(),
                connections: nic.open_connections(),
                requests: load.requests as u32,
                goodput: load.bytes_per_second.map(|bytes| bytes as u64),
                receive_rate: None,
                disabled_reason: nic.link_failure().or(outage),
            }
        });
        all.collect()
    }

    /// The routes to `remote`, the best for a request of `size` bytes first, with whether each is disabled.
    /// Pairs of different networks are probed before they are used.
    pub(super) fn rank_pairs(
        self: &Arc<Self>,
        state: &mut RoutingState,
        remote: &[Endpoint],
        size: u64,
    ) -> Vec<(RouteKey, bool)> {
        let now = Instant::now();
        state.update_goodput(now);
        let pairs = self.endpoint_pairs(remote);
        let candidates: Vec<Candidate> = pairs
            .iter()
            .map(|(key, affinity)| self.candidate(state, key, *affinity, now))
            .collect();
        let ranked = route_ranking::rank_routes(&candidates, size);
        ranked.into_iter().map(|i| (pairs[i].0.clone(), candidates[i].is_disabled)).collect()
    }

    pub(super) fn candidate(
        self: &Arc<Self>,
        state: &mut RoutingState,
        key: &RouteKey,
        affinity: RouteAffinity,
        now: Instant,
    ) -> Candidate {
        if !state.routes.contains_key(key) {
            let mut route = Route::default();
            if affinity == RouteAffinity::OtherNetwork {
                let reason = UNTRIED.to_owned();
                route.outage =
                    Some(Outage { reason, last_wanted: now, until: OutageEnd::Probe(false) });
            }
            state.routes.insert(key.clone(), route);
        }
        let usable = state.is_usable(key, now);
        if let Some(outage) = state.routes.get_mut(key).and_then(|route| route.outage.as_mut()) {
            outage.last_wanted = now;
            if outage.until == OutageEnd::Probe(false) {
                outage.until = OutageEnd::Probe(true);
                tokio::spawn(probe_until_answered(Arc::downgrade(self), key.clone()));
            }
        }
        let limited = |i| self.apply_limits(i, state.load(End::Local(i), now));
        Candidate {
            is_disabled: !usable,
            local: key.0.map(limited).unwrap_or_default(),
            remote: state.load(End::Remote(&key.1), now),
            affinity,
            last_used: state.routes.get(key).map_or(0, |route| route.last_used),
        }
    }

    /// Applies the limit and weight of a NIC; the link speed counts as long as nothing was measured.
    fn apply_limits(&self, nic: usize, load: EndLoad) -> EndLoad {
        let nic = &self.nics[nic];
        let speed = load.bytes_per_second.or_else(|| nic.link_bytes_per_second());
        let limit = nic.rate.limit().map(|limit| limit as f64);
        let speed = match (speed, limit) {
            (Some(speed), Some(limit)) => Some(speed.min(limit)),
            (speed, limit) => speed.or(limit),
        };
        EndLoad {
            bytes_per_second: speed.map(|speed| speed * f64::from(nic.tuning.weight)),
            ..load
        }
    }

    /// Connects over what may be the last route, again and again while the network does not reach the peer.
    pub(super) async fn connect_with_retries(
        &self,
        (worker, key): (&WorkerId, &RouteKey),
        kind: ConnectionKind,
        asking: bool,
    ) -> Result<Connection, String> {
        // The first packet of a connection that was lost is sent again late, so a try of its own is begun sooner.
        retry_transient(LAST_ROUTE_CONNECT_TIMEOUT, |left| {
            self.connect((worker, key), kind, (CONNECT_TIMEOUT.min(left), left), asking)
        })
        .await
    }

    /// Connects to `worker` within the first time, and has an answer within the second one; with `asking` that of a request.
    pub(super) async fn connect(
        &self,
        (worker, key): (&WorkerId, &RouteKey),
        kind: ConnectionKind,
        (accepted, timeout): (Duration, Duration),
        asking: bool,
    ) -> Result<Connection, ConnectError> {
        let theirs = self.state().counter_for(&key.1);
        let (since, path) = (Instant::now(), self.path_of(key, worker));
        let connecting = async {
            let mut connection = connect(&path, &theirs, kind, (accepted, timeout)).await?;
            let elapsed = since.elapsed();
            // A stream is the answer to a request already.
            let is_stream = kind == ConnectionKind::Content;
            if asking && !is_stream {
                connection.probe(&key.1).await?;
            }
            Ok((connection, elapsed, asking || is_stream))
        };
        let connected = match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::timed_out("answer", timeout)),
        };
        let (connection, elapsed, reply) = connected.inspect_err(|error: &ConnectError| {
            tracing::debug!(peer = key.1, "cannot connect: {}", error.message);
        })?;
        let mut state = self.state();
        state.record_connect(key, elapsed);
        if reply {
            state.record_success(key);
        }
        Ok(connection)
    }

    pub(super) fn take_idle_connection(
        &self,
        (worker, key): (&WorkerId, &RouteKey),
        kind: ConnectionKind,
    ) -> Option<Connection> {
        let mut state = self.state();
        let kept = &mut state.routes.get_mut(key)?.idle_connections;
        kept.retain(|(since, connection)| {
            since.elapsed() < IDLE_CONNECTION_LIFETIME && connection.is_open()
        });
        // An endpoint may have moved to another worker.
        let is_fit = |connection: &Connection| {
            connection.kind() == kind && connection.worker.as_ref().is_none_or(|at| at == worker)
        };
        let at = kept.iter().rposition(|(_, connection)| is_fit(connection))?;
        Some(kept.swap_remove(at).1)
    }

    /// A route does not work: it is probed until it does.
    pub(super) fn disable_until_probed(self: &Arc<Self>, key: &RouteKey, reason: String) {
        let mut state = self.state();
        let outage = state.routes.get(key).and_then(|route| route.outage.as_ref());
        if outage.is_none_or(|outage| outage.until != OutageEnd::Probe(true)) {
            tokio::spawn(probe_until_answered(Arc::downgrade(self), key.clone()));
        }
        self.log_disabled(key, &reason);
        state.record_outage(key, reason, OutageEnd::Probe(true));
    }

    /// A route is much slower than others: it is left alone for a while.
    pub(super) fn disable_slow(&self, key: &RouteKey) {
        let mut state = self.state();
        let failures = state.routes.get(key).map_or(0, |route| route.failures) + 1;
        let reason = "much slower than the others".to_owned();
        self.log_disabled(key, &reason);
        state.record_outage(
            key,
            reason,
            OutageEnd::At(Instant::now() + SLOW_ROUTE_BACKOFF.delay(failures)),
        );
    }

    fn log_disabled(&self, (nic, to): &RouteKey, reason: &str) {
        if let Some(nic) = nic.and_then(|i| self.nics.get(i)).filter(|_| self.nics.len() > 1) {
            tracing::info!(from = nic.endpoint.authority(), to, "route not used for now: {reason}");
        }
    }

    /// Whether a route to `remote` but this one is usable.
    pub(super) fn has_alternative(&self, key: &RouteKey, remote: &[Endpoint]) -> bool {
        let (now, mut state) = (Instant::now(), self.state());
        let pairs = self.endpoint_pairs(remote);
        pairs.iter().any(|(other, affinity)| {
            other != key && state.is_known(other, *affinity) && state.is_usable(other, now)
        })
    }
}

impl Routes {
    pub(super) async fn probe(&self, key: &RouteKey) -> Result<Duration, String> {
        if let Some(reason) = self.link_failure(key) {
            return Err(reason);
        }
        let (theirs, worked, worker) = {
            let mut state = self.state();
            let worked = state.routes.get(key).and_then(|route| route.best_connect_time);
            let worker = state.workers.get(&key.1).cloned();
            (state.counter_for(&key.1), worked.unwrap_or_default(), worker)
        };
        let worker = worker.ok_or("no worker has this endpoint")?;
        let path = self.path_of(key, &worker);
        let (since, timeout) = (Instant::now(), PROBE_TIMEOUT + worked * 4);
        let request = async {
            let connected =
                connect(&path, &theirs, ConnectionKind::Documents, (timeout, timeout)).await;
            connected.map_err(|error| error.message)?.probe(&path.to).await
        };
        match tokio::time::timeout(timeout, request).await {
            Ok(answer) => answer.map(|()| since.elapsed()),
            Err(_) => Err(format!("no answer to a probe within {timeout:?}")),
        }
    }
}

/// Probes a route until a probe is answered, or no request uses the route.
async fn probe_until_answered(routes: Weak<Routes>, key: RouteKey) {
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
            Ok(elapsed) => {
                state.record_connect(&key, elapsed);
                state.record_success(&key);
                if routes.nics.len() > 1 {
                    tracing::info!(?key, "route works");
                }
                return;
            }
            Err(reason) => state.record_probe_failure(&key, reason),
        }
    }
}

/// Tries for so long, as long as errors may pass. Each try is given the time that is left.
async fn retry_transient<T, F: Future<Output = Result<T, ConnectError>>>(
    timeout: Duration,
    attempt: impl Fn(Duration) -> F,
) -> Result<T, String> {
    let end = Instant::now() + timeout;
    loop {
        let error = match attempt(end - Instant::now()).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if !error.is_transient || end - Instant::now() <= CONNECT_RETRY_PAUSE {
            return Err(error.message);
        }
        tokio::time::sleep(CONNECT_RETRY_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_short_network_outage_does_not_fail_the_only_route() {
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
                let started = Instant::now();
                let connect = |_| async move {
                    match started.elapsed() < Duration::from_secs(back) {
                        true => Err(ConnectError::from(std::io::Error::from(kind))),
                        false => Ok(()),
                    }
                };
                let connected = retry_transient(LAST_ROUTE_CONNECT_TIMEOUT, connect).await;
                assert_eq!(connected.is_ok(), passes && back == 4, "{kind:?}: {connected:?}");
                let elapsed = started.elapsed();
                assert!(
                    elapsed <= LAST_ROUTE_CONNECT_TIMEOUT && (passes || elapsed.is_zero()),
                    "{kind:?}: {elapsed:?}"
                );
            }
        }
        // A first packet that is lost costs a part of the time only.
        let started = Instant::now();
        let error = |left| async move {
            tokio::time::sleep(CONNECT_TIMEOUT.min(left)).await;
            match started.elapsed() < Duration::from_secs(3) {
                true => Err(ConnectError::timed_out("answer", CONNECT_TIMEOUT)),
                false => Ok(()),
            }
        };
        assert_eq!(retry_transient(LAST_ROUTE_CONNECT_TIMEOUT, error).await, Ok(()));
    }

    fn endpoints(all: &[&str]) -> Vec<Endpoint> {
        all.iter().map(|e| e.parse().unwrap()).collect()
    }

    fn routes(all: &[&str]) -> Arc<Routes> {
        let nics: Vec<_> = endpoints(all).into_iter().map(|e| Nic::new(e.into())).collect();
        Arc::new(Routes::new(&nics, None))
    }

    fn authorities(routes: &Arc<Routes>, remote: &[Endpoint]) -> Vec<String> {
        let ranked = routes.rank_pairs(&mut routes.state(), remote, 0);
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
        assert!(!routes.path_of(&(Some(0), "10.0.0.2:1".into()), &"b".parse().unwrap()).is_bound);
    }

    #[tokio::test]
    async fn rails_are_ranked_first_and_address_families_are_not_mixed() {
        let routes = routes(&["10.0.0.1", "10.0.1.1", "fd00::1"]);
        // In another order than on this host.
        let remote = endpoints(&["10.0.1.2:1", "10.0.0.2:1", "[fd00::2]:1"]);
        let all = authorities(&routes, &remote);
        assert_eq!(all[..3], ["10.0.1.1>10.0.1.2:1", "10.0.0.1>10.0.0.2:1", "fd00::1>[fd00::2]:1"]);
        assert_eq!(all.len(), 5, "{all:?}");
        // Others are not used before a probe has found that they are there.
        let outage = routes.rank_pairs(&mut routes.state(), &remote, 0);
        assert_eq!(outage.iter().filter(|(_, outage)| *outage).count(), 2);
        assert_eq!(routes.count_rails(&remote), 3);
    }

    #[tokio::test]
    async fn only_interfaces_in_a_network_of_the_peer_count_as_rails() {
        let routes = routes(&["10.0.0.1", "10.0.1.1"]);
        // Both are in the network of the first endpoint of this host: whether the second one reaches them is not known.
        assert_eq!(routes.count_rails(&endpoints(&["10.0.0.2:1", "10.0.0.3:1"])), 1);
        assert_eq!(routes.count_rails(&endpoints(&["10.0.0.2:1", "10.0.1.3:1"])), 2);
    }

    #[tokio::test]
    async fn a_failed_route_is_ranked_last_until_a_probe_is_answered() {
        let routes = Arc::new(Routes::new(&[], None));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap().to_string();
        // Bound and not listening: a connect is refused at once.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let bad = closed.local_addr().unwrap().to_string();
        let remote = endpoints(&[&bad, &good]);
        let worker: WorkerId = "b".parse().unwrap();
        let pooled =
            routes.checkout((&worker, &remote), false, ConnectionKind::Documents, 0).await.unwrap();
        assert_eq!((pooled.peer(), pooled.reused), (good.as_str(), false));
        drop(pooled);
        assert_eq!(authorities(&routes, &remote)[0], format!("->{good}"));
        let failed = routes
            .checkout((&worker, &remote[..1]), false, ConnectionKind::Documents, 0)
            .await
            .err()
            .unwrap();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].1.contains("refused"), "{failed:?}");
        drop(closed);
        // An agent is there now: a probe finds it.
        let server = super::super::DataServer::bind(&remote[..1]).await.unwrap();
        let roots = super::super::Roots::open(&[]).unwrap();
        let serving = tokio::spawn(server.serve(
            Arc::new(super::super::TicketVerifier::new()),
            Arc::new(roots),
            super::super::buffer_pool::tests::test_pool(),
            crate::util::shutdown::Shutdown::new(),
        ));
        while routes.rank_pairs(&mut routes.state(), &remote[..1], 0)[0].1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        serving.abort();
    }

    #[tokio::test]
    async fn reports_for_viewers_do_not_say_what_happened_at_an_address() {
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [closed.local_addr(), other.local_addr()].map(|at| at.unwrap().to_string());
        let closing = tokio::spawn(async move { while other.accept().await.is_ok() {} });
        let worker: WorkerId = "b".parse().unwrap();
        for address in addresses {
            let routes = routes(&["127.0.0.1"]);
            let remote = endpoints(&[&address]);
            let failed =
                routes.checkout((&worker, &remote), false, ConnectionKind::Content, 0).await;
            assert!(failed.is_err(), "{address}");
            let reason = routes.nic_reports().remove(0).disabled_reason.unwrap();
            assert_eq!(
                reason,
                format!("cannot exchange data with {address}; see the log of this agent")
            );
        }
        closing.abort();
    }
}
