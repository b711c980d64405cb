//! Connections to peers: opened from a NIC, and tried with a probe.

use super::content_client::{ContentClient, read_refusal};
use super::data_stream::DataStream;
use super::meter::{CountedStream, TrafficCounter};
use super::nics::{Nic, OpenConnectionGuard, is_local_address};
use super::protocol::PROBE;
use super::tls::{DataTls, describe_error_chain};
use crate::util::iface;
use crate::wire::WorkerId;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;

/// With several NICs, so many bytes that are not sent yet wait in the kernel.
const MAX_UNSENT_BYTES: u32 = 512 << 10;

/// Why no connection was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectError {
    /// For people.
    pub message: String,
    /// The network did not reach the peer, which may be over in a moment. Not so where the host answered: no process
    /// listens there, or another one does.
    pub is_transient: bool,
}

impl From<String> for ConnectError {
    fn from(reason: String) -> Self {
        ConnectError { message: reason, is_transient: false }
    }
}

impl From<std::io::Error> for ConnectError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{
            AddrNotAvailable, HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut,
        };
        let may_pass = matches!(
            error.kind(),
            AddrNotAvailable | HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut
        );
        ConnectError { message: error.to_string(), is_transient: may_pass }
    }
}

impl ConnectError {
    /// Nothing came back within `timeout`.
    pub fn timed_out(what: &str, timeout: Duration) -> Self {
        ConnectError { message: format!("no {what} within {timeout:?}"), is_transient: true }
    }
}

/// Where a connection begins and ends.
#[derive(Clone)]
pub struct ConnectionPath {
    /// The NIC of this host. Without one the kernel chooses, and nothing is set or counted.
    pub from: Option<Arc<Nic>>,
    /// Whether the socket is bound to the NIC: with a single NIC the routing table decides.
    pub is_bound: bool,
    /// The peer, as `host:port`.
    pub to: String,
    /// TLS, and the worker that the peer has to prove to be.
    pub tls: Option<(Arc<DataTls>, WorkerId)>,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// Requests with documents as bodies.
    Documents,
    /// Packs and ranges ([`content_server`](super::content_server)).
    Content,
}

/// A connection, with the task that drives it.
pub struct Connection {
    /// Accepts requests.
    pub sender: SendRequest<Full<Bytes>>,
    /// What it was upgraded to, where it is for content.
    pub stream: Option<ContentClient>,
    /// What went over it.
    pub counter: Arc<TrafficCounter>,
    /// The worker at the other end, by its certificate. `None`: without TLS.
    pub(super) worker: Option<WorkerId>,
    driver: AbortHandle,
    _open: Option<OpenConnectionGuard>,
}

impl Connection {
    /// What it is for.
    pub fn kind(&self) -> ConnectionKind {
        if self.stream.is_some() { ConnectionKind::Content } else { ConnectionKind::Documents }
    }

    /// Whether the peer has not closed it, as far as is known: of a stream only the next exchange shows it.
    pub fn is_open(&self) -> bool {
        self.stream.is_some() || !self.sender.is_closed()
    }

    /// Checks over it whether an agent answers.
    pub(super) async fn probe(&mut self, peer: &str) -> Result<(), String> {
        let request = Request::get(PROBE)
            .header(HOST, peer)
            .body(Full::default())
            .map_err(|e| e.to_string())?;
        self.sender.ready().await.map_err(describe_error_chain)?;
        let reply = self.sender.send_request(request).await.map_err(describe_error_chain)?;
        let status = reply.status();
        if status != StatusCode::OK {
            let otherwise = || format!("a probe was answered with {status}");
            return Err(read_refusal(reply).await.unwrap_or_else(otherwise));
        }
        // The connection is used again only after the whole answer.
        reply.into_body().collect().await.map(drop).map_err(|e| e.to_string())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects within the first time, and makes the handshake of TLS and opens a stream within the second one each; what goes
/// over the connection is also counted in `theirs`.
///
/// # Errors
/// It was refused, or nothing came back in time.
pub async fn connect(
    path: &ConnectionPath,
    theirs: &Arc<TrafficCounter>,
    kind: ConnectionKind,
    (accepted, timeout): (Duration, Duration),
) -> Result<Connection, ConnectError> {
    let open = async {
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host(&path.to).await.map_err(|e| e.to_string())?.collect();
        let mut last = ConnectError::from("the name has no address".to_owned());
        for address in addresses {
            match open_socket(path, address).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e.into(),
            }
        }
        Err(last)
    };
    let stream = tokio::time::timeout(accepted, open)
        .await
        .map_err(|_| ConnectError::timed_out("answer", accepted))??;
    let _ = stream.set_nodelay(true);
    let counter = Arc::new(TrafficCounter::default());
    let mut counters = vec![counter.clone(), theirs.clone()];
    counters.extend(path.from.as_ref().map(|nic| nic.counter.clone()));
    let stream = CountedStream::new(stream, counters);
    let (stream, worker) = match &path.tls {
        None => (DataStream::Plain(stream), None),
        Some((tls, worker)) => {
            let connected = tokio::time::timeout(timeout, tls.connect(stream, worker)).await;
            let connected = connected.map_err(|_| ConnectError::timed_out("handshake", timeout))?;
            (connected?, Some(worker.clone()))
        }
    };
    let (send, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(e) = connection.with_upgrades().await {
            tracing::debug!("a data connection ended: {e}");
        }
    });
    let _open = path.from.as_ref().map(Nic::count_open_connection);
    let driver = driver.abort_handle();
    let mut connection = Connection { sender: send, stream: None, counter, worker, driver, _open };
    if kind == ConnectionKind::Content {
        let allows_clear = path.tls.as_ref().is_some_and(|(tls, _)| tls.allows_clear());
        let open = ContentClient::open(&mut connection.sender, &path.to, allows_clear);
        let opened = tokio::time::timeout(timeout, open).await;
        connection.stream = Some(opened.map_err(|_| ConnectError::timed_out("stream", timeout))??);
    }
    Ok(connection)
}

async fn open_socket(path: &ConnectionPath, to: SocketAddr) -> std::io::Result<TcpStream> {
    // The interface of the peer's endpoint does not matter here: the scope is that of this host.
    let to = match &path.from {
        Some(nic) => nic.scoped(to),
        None => iface::with_scope_id(to, None),
    }?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(nic) = &path.from {
        nic.set_socket_options(SockRef::from(&socket));
        if let Some(local) = nic.ip().filter(|_| path.is_bound) {
            // What stays on this host goes through its loopback, whatever the address.
            if let Some(iface) =
                nic.endpoint.iface.as_deref().filter(|_| !is_local_address(to.ip()))
                && let Err(e) = socket.bind_device(Some(iface.as_bytes()))
            {
                // Old kernels need a capability for it; the address alone is the next best.
                tracing::debug!(iface, "cannot bind to the interface: {e}");
            }
            // What waits in the kernel is on no way yet, and would hide how fast the way is.
            let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
            socket.bind(&nic.scoped(SocketAddr::new(local, 0))?.into())?;
        }
    }
    socket.set_nonblocking(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}
