//! Which of our addresses reaches which endpoint of a peer: routes, their failures, and the
//! connections kept on them.

use super::stream;
use crate::util::backoff::Backoff;
use crate::wire::worker::Endpoint;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// A peer that does not accept within this is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Kept connections are used again for this long; the other side closes them a little later.
const KEEP: Duration = Duration::from_secs(8);
/// How long a route that failed is left alone.
const ASIDE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// One of our addresses (`None`: the kernel chooses) and one endpoint of a peer, as `host:port`.
type Key = (Option<IpAddr>, String);

#[derive(Default)]
struct Route {
    failures: u32,
    aside_until: Option<Instant>,
    in_use: usize,
    /// When it was taken last, as a count: ties are broken in turn.
    taken: u64,
    kept: Vec<(Instant, Connection)>,
}

/// Every route that was tried.
pub struct Routes {
    /// Our own endpoints; empty where the kernel shall choose.
    local: Vec<Endpoint>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    routes: BTreeMap<Key, Route>,
    count: u64,
}

/// A connection, with the task that drives it.
struct Connection {
    send: SendRequest<Full<Bytes>>,
    /// What it was upgraded to.
    stream: Option<TokioIo<Upgraded>>,
    driver: AbortHandle,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests whose bodies are documents.
    Documents,
    /// Packs and ranges ([`stream`]).
    Content,
}

impl Connection {
    fn kind(&self) -> Kind {
        if self.stream.is_some() { Kind::Content } else { Kind::Documents }
    }

    /// That it is closed shows in a stream only when it is used.
    fn is_open(&self) -> bool {
        self.stream.is_some() || !self.send.is_closed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A connection in use. Dropped, it is closed at once; [`Leased::keep`] keeps it for the next.
pub struct Leased {
    connection: Option<Connection>,
    key: Key,
    routes: Arc<Routes>,
    /// Whether it was used before: the other side may have closed it unnoticed.
    pub reused: bool,
}

impl Routes {
    /// Routes from our own `local` endpoints. With fewer than two the kernel chooses the address.
    pub fn new(local: &[Endpoint]) -> Self {
        let several = local.len() > 1;
        let local = if several { local.to_vec() } else { Vec::new() };
        Routes { local, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes to `remote`, the best first: those not set aside, then the least used, then those
    /// whose rails match (our n-th endpoint to the peer's n-th), then in turn.
    fn ranked(&self, remote: &[Endpoint]) -> Vec<(Key, Option<String>)> {
        let mut all = Vec::new();
        let state = self.state();
        let now = Instant::now();
        for (j, to) in remote.iter().enumerate() {
            let to_ip: Option<IpAddr> = to.address.parse().ok();
            let usable = self.local.iter().enumerate().filter_map(|(i, from)| {
                let ip: IpAddr = from.address.parse().ok()?;
                let fits = to_ip.is_none_or(|t| {
                    t.is_ipv4() == ip.is_ipv4() && t.is_loopback() == ip.is_loopback()
                });
                (fits && !ip.is_unspecified()).then(|| (i != j, Some(ip), from.iface.clone()))
            });
            let mut from: Vec<_> = usable.collect();
            if from.is_empty() {
                from.push((false, None, None));
            }
            for (crossed, ip, iface) in from {
                let key = (ip, to.authority());
                let route = state.routes.get(&key);
                let aside = route.and_then(|r| r.aside_until).filter(|until| *until > now);
                let (in_use, taken) = route.map_or((0, 0), |r| (r.in_use, r.taken));
                all.push(((aside, in_use, crossed, taken), (key, iface)));
            }
        }
        all.sort_by_key(|(rank, _)| *rank);
        all.into_iter().map(|(_, route)| route).collect()
    }

    /// A connection to any of the `remote` endpoints, kept or new. With `fresh` only a new one.
    ///
    /// # Errors
    /// Every route, with why it failed.
    pub async fn lease(
        self: &Arc<Self>,
        remote: &[Endpoint],
        fresh: bool,
        kind: Kind,
    ) -> Result<Leased, Vec<(String, String)>> {
        let mut failed = Vec::new();
        for (key, iface) in self.ranked(remote) {
            if !fresh && let Some(connection) = self.kept(&key, kind) {
                return Ok(self.leased(key, connection, true));
            }
            match connect(&key, iface.as_deref(), kind).await {
                Ok(connection) => return Ok(self.leased(key, connection, false)),
                Err(why) => {
                    tracing::debug!(peer = key.1, "cannot connect: {why}");
                    failed.push((key.1.clone(), why));
                    self.set_aside(&key);
                }
            }
        }
        Err(failed)
    }

    fn kept(&self, key: &Key, kind: Kind) -> Option<Connection> {
        let mut state = self.state();
        let kept = &mut state.routes.get_mut(key)?.kept;
        kept.retain(|(since, connection)| since.elapsed() < KEEP && connection.is_open());
        let at = kept.iter().rposition(|(_, connection)| connection.kind() == kind)?;
        Some(kept.swap_remove(at).1)
    }

    fn leased(self: &Arc<Self>, key: Key, connection: Connection, reused: bool) -> Leased {
        let mut state = self.state();
        state.count += 1;
        let taken = state.count;
        let route = state.routes.entry(key.clone()).or_default();
        route.in_use += 1;
        route.taken = taken;
        if !reused {
            (route.failures, route.aside_until) = (0, None);
        }
        drop(state);
        Leased { connection: Some(connection), key, routes: self.clone(), reused }
    }

    fn set_aside(&self, key: &Key) {
        let mut state = self.state();
        let route = state.routes.entry(key.clone()).or_default();
        route.failures = route.failures.saturating_add(1);
        route.aside_until = Some(Instant::now() + ASIDE.delay(route.failures));
        route.kept.clear();
    }
}

impl Leased {
    /// Where documents are asked for.
    pub fn send(&mut self) -> Option<&mut SendRequest<Full<Bytes>>> {
        self.connection.as_mut().map(|c| &mut c.send)
    }

    /// Where content is sent, on a connection that was leased for it.
    pub fn stream(&mut self) -> Option<&mut TokioIo<Upgraded>> {
        self.connection.as_mut().and_then(|c| c.stream.as_mut())
    }

    /// The other side, as `host:port`.
    pub fn peer(&self) -> &str {
        &self.key.1
    }

    /// The request was answered whole: the connection can be used again.
    pub fn keep(mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !connection.is_open() {
            return;
        }
        let mut state = self.routes.state();
        if let Some(route) = state.routes.get_mut(&self.key) {
            route.kept.push((Instant::now(), connection));
        }
    }

    /// The route failed under the request: it is left alone for a while.
    pub fn broke(self) {
        self.routes.set_aside(&self.key);
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let mut state = self.routes.state();
        if let Some(route) = state.routes.get_mut(&self.key) {
            route.in_use = route.in_use.saturating_sub(1);
        }
    }
}

async fn connect(
    (local, authority): &Key,
    iface: Option<&str>,
    kind: Kind,
) -> Result<Connection, String> {
    let open = async {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host(authority).await.map_err(|e| e.to_string())?.collect();
        let mut last = "the name has no address".to_owned();
        for address in addresses {
            match open(*local, address, iface).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e.to_string(),
            }
        }
        Err(last)
    };
    let stream = tokio::time::timeout(CONNECT, open)
        .await
        .map_err(|_| format!("no answer within {CONNECT:?}"))??;
    let _ = stream.set_nodelay(true);
    let (send, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("a data connection ended: {e}");
        }
    });
    let driver = driver.abort_handle();
    let mut connection = Connection { send, stream: None, driver };
    if kind == Kind::Content {
        let open = async {
            let request = stream::request(authority)?;
            let response = connection.send.send_request(request).await;
            stream::opened(response.map_err(|e| e.to_string())?).await
        };
        let opened = tokio::time::timeout(CONNECT, open).await;
        let opened = opened.map_err(|_| format!("no stream within {CONNECT:?}"))?;
        connection.stream = Some(opened?);
    }
    Ok(connection)
}

/// Connects from `local`, where it is given, through the interface `iface`.
async fn open(
    local: Option<IpAddr>,
    to: SocketAddr,
    iface: Option<&str>,
) -> std::io::Result<tokio::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(iface) = iface.filter(|_| local.is_some() && !to.ip().is_loopback())
        && let Err(e) = socket.bind_device(Some(iface.as_bytes()))
    {
        // Old kernels want a capability for it; the address alone is the next best.
        tracing::debug!(iface, "cannot bind to the interface: {e}");
    }
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(all: &[&str]) -> Vec<Endpoint> {
        all.iter().map(|e| e.parse().unwrap()).collect()
    }

    fn authorities(routes: &Routes, remote: &[Endpoint]) -> Vec<String> {
        routes
            .ranked(remote)
            .into_iter()
            .map(|((ip, to), _)| format!("{}>{to}", ip.map_or("-".into(), |ip| ip.to_string())))
            .collect()
    }

    #[test]
    fn with_one_endpoint_the_kernel_chooses_the_address() {
        let routes = Routes::new(&endpoints(&["10.0.0.1"]));
        let all = authorities(&routes, &endpoints(&["10.0.0.2:1", "10.0.1.2:1"]));
        assert_eq!(all, ["->10.0.0.2:1", "->10.0.1.2:1"]);
    }

    #[test]
    fn rails_match_first_and_families_never_mix() {
        let routes = Routes::new(&endpoints(&["10.0.0.1", "10.0.1.1", "fd00::1"]));
        let all = authorities(&routes, &endpoints(&["10.0.0.2:1", "10.0.1.2:1", "[fd00::2]:1"]));
        assert_eq!(
            all,
            [
                "10.0.0.1>10.0.0.2:1",
                "10.0.1.1>10.0.1.2:1",
                "fd00::1>[fd00::2]:1",
                "10.0.1.1>10.0.0.2:1",
                "10.0.0.1>10.0.1.2:1",
            ]
        );
    }

    #[tokio::test]
    async fn a_route_that_fails_is_tried_last() {
        let routes = Arc::new(Routes::new(&[]));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap().to_string();
        // Bound and not listening: a connect is refused at once.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let bad = closed.local_addr().unwrap().to_string();
        let remote = endpoints(&[&bad, &good]);
        let leased = routes.lease(&remote, false, Kind::Documents).await.unwrap();
        assert_eq!((leased.peer(), leased.reused), (good.as_str(), false));
        drop(leased);
        assert_eq!(authorities(&routes, &remote)[0], format!("->{good}"));
        let failed = routes.lease(&remote[..1], false, Kind::Documents).await.err().unwrap();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].1.contains("refused"), "{failed:?}");
    }
}
