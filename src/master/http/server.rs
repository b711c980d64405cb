//! Accepts and serves connections.

use super::HttpLimits;
use super::api_state::ApiState;
use super::bearer::FailureCounter;
use super::body_budget::BodyBudget;
use super::principal::ConnectionAddresses;
use super::principal::{LoopbackOwner, TlsClient};
use super::routes::router;
use crate::identity::SharedAuthorities;
use crate::master::handle::MasterHandle;
use crate::util::admission::{Admission, AdmissionLimits, AdmittedConnection, Room};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::problem::{PROBLEM_CONTENT_TYPE, Problem, ProblemCode};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::SockRef;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Closes a connection that is idle, or has sent only a part of a request head, for this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit for a request head, which may also have at most 100 fields.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Closes a connection if the client acknowledges no data for this time.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The first byte of a TLS connection (RFC 8446, section 5.1).
const TLS_HANDSHAKE_RECORD: u8 = 22;
/// How long and how much is read from a client after the last response: if a socket is closed with unread bytes, the
/// kernel discards the response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_LINGER_BYTES: usize = 256 << 20;
/// At most this many connections that were closed for another one still hold their socket.
const MAX_CLOSING: usize = 64;
/// At most this part of all connections may be without a valid request.
const MAX_UNVERIFIED_PART: usize = 4;
/// The usual cause is that no file descriptors are left.
const ACCEPT_RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// A bound address of the API.
pub(in crate::master) struct ApiListener {
    pub(in crate::master) listener: TcpListener,
    /// `None`: plain HTTP.
    pub(in crate::master) tls: Option<Arc<ServerConfig>>,
}

/// TLS of a listener, and the authorities of certificates of clients.
type Tls = (Arc<ServerConfig>, Arc<SharedAuthorities>);

/// Serves the API on `listeners` until `shutdown`. Polls end then, and other requests in progress have
/// [`HttpLimits::drain_timeout`] to end.
pub(in crate::master) async fn serve(
    listeners: Vec<ApiListener>,
    handle: MasterHandle,
    limits: HttpLimits,
    shutdown: CancellationToken,
) {
    let limits = Arc::new(limits);
    let app = ApiState {
        handle,
        budget: BodyBudget::new(limits.max_total_body_bytes),
        limits: Arc::clone(&limits),
        stopping: shutdown.clone(),
        failures: Arc::new(FailureCounter::default()),
    };
    let router = router(app);
    let connections = Arc::new(Admission::new(admission_limits(&limits)));
    let authorities = limits.authority.as_ref().map(|authority| authority.authorities.clone());
    let serving = listeners.into_iter().map(|ApiListener { listener, tls }| {
        let tls = tls.zip(authorities.clone());
        let (router, connections, shutdown) = (router.clone(), &connections, shutdown.clone());
        serve_listener((listener, tls), router, connections, limits.drain_timeout, shutdown)
    });
    futures_util::future::join_all(serving).await;
}

/// A client without valid credentials may have all places that no other one needs: many agents behind one address connect
/// at the same time when a master starts.
fn admission_limits(limits: &HttpLimits) -> AdmissionLimits {
    let part = (limits.max_connections / MAX_UNVERIFIED_PART).max(1);
    let max_unverified = limits.max_unverified_connections.min(part);
    AdmissionLimits {
        max_peers: limits.max_connections.saturating_sub(max_unverified).max(1),
        max_unverified,
        max_unverified_per_address: max_unverified,
        max_closing: MAX_CLOSING,
    }
}

async fn serve_listener(
    (listener, tls): (TcpListener, Option<Tls>),
    router: Router,
    admission: &Arc<Admission>,
    drain_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    while let Some((stream, room)) = next_connection(&listener, admission, &shutdown).await {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let client = stream.peer_addr().map_or(unknown, |client| client.ip());
        let place = admission.admit(client, room);
        let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            tokio::select! {
                () = serve_connection(stream, tls, router, shutdown, Arc::clone(&place)) => (),
                () = place.closed() => tracing::debug!(%client, "closed for another connection"),
            }
        });
        while connections.try_join_next().is_some() {}
        // A connection with a complete request is verified before the next ones need its place.
        tokio::task::yield_now().await;
    }
    drop(listener);
    let remaining = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain_timeout, remaining).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "closing connections that did not end in time"
        );
        connections.shutdown().await;
    }
}

/// The next connection, when there is room for it. `None`: the server stops.
async fn next_connection(
    listener: &TcpListener,
    admission: &Arc<Admission>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, Room)> {
    let connection = async {
        let room = admission.wait_for_room().await;
        (accept_connection(listener).await, room)
    };
    tokio::select! {
        () = shutdown.cancelled() => None,
        connection = connection => Some(connection),
    }
}

async fn accept_connection(listener: &TcpListener) -> TcpStream {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The client has disconnected already.
            Err(e) if is_client_error(&e) => {}
            Err(error) => {
                let text = "a connection can't be accepted; the master tries again";
                warn_ratelimited!(format_args!("{text}: {error}"), %error, "{text}");
                failures += 1;
                tokio::time::sleep(ACCEPT_RETRY_BACKOFF.delay(failures)).await;
            }
        }
    }
}

fn is_client_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<Tls>,
    router: Router,
    shutdown: CancellationToken,
    place: Arc<AdmittedConnection>,
) {
    let addresses =
        ConnectionAddresses { local: stream.local_addr().ok(), client: stream.peer_addr().ok() };
    if let Err(error) = set_socket_options(&stream) {
        tracing::debug!(%error, "socket options can't be set");
    }
    let Some((tls, authorities)) = tls else {
        return serve_requests(stream, addresses, None, router, shutdown, place).await;
    };
    let handshake = tokio::time::timeout(HEADER_TIMEOUT, accept_tls(stream, tls));
    match handshake.await {
        Ok(Ok(stream)) => {
            let presented = stream.get_ref().1.peer_certificates();
            let client = TlsClient::new(presented, Some(&authorities.current()));
            serve_requests(stream, addresses, Some(client), router, shutdown, place).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, client = ?addresses.client, "no TLS connection"),
        Err(_) => tracing::debug!(client = ?addresses.client, "the TLS handshake took too long"),
    }
}

/// The TLS handshake. A client that sends plain HTTP gets a reply that names the URL scheme.
async fn accept_tls(
    mut stream: TcpStream,
    tls: Arc<ServerConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE_RECORD {
        let problem = Problem::new(
            ProblemCode::TlsRequired,
            "this address serves TLS only, and the request is plain HTTP",
        )
        .with_hint(
            "use https:// in the URL of the master, and name its ca.pem by ca_file or CTL_CA_FILE",
        );
        let body = serde_json::to_string(&problem)?;
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {PROBLEM_CONTENT_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            problem.status,
            problem.title,
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        close_gracefully(stream).await;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client sent plain HTTP"));
    }
    TlsAcceptor::from(tls).accept(stream).await
}

async fn serve_requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    addresses: ConnectionAddresses,
    tls: Option<TlsClient>,
    router: Router,
    shutdown: CancellationToken,
    place: Arc<AdmittedConnection>,
) {
    let owner = LoopbackOwner::default();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(addresses);
        request.extensions_mut().insert(owner.clone());
        request.extensions_mut().insert(Arc::clone(&place));
        if let Some(tls) = &tls {
            request.extensions_mut().insert(tls.clone());
        }
        Box::pin(router.clone().oneshot(request))
    });
    let mut conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        // The requests of a client that closes its side are cancelled.
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut is_stopping = false;
    let result = loop {
        tokio::select! {
            result = poll_fn(|cx| conn.poll_without_shutdown(cx)) => break result,
            () = shutdown.cancelled(), if !is_stopping => {
                is_stopping = true;
                std::pin::Pin::new(&mut conn).graceful_shutdown();
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
    close_gracefully(conn.into_parts().io.into_inner()).await;
}

fn set_socket_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_keepalive(true)
}

/// Closes the sending side, and waits for the client to close its side.
async fn close_gracefully<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let drain = async {
        stream.shutdown().await?;
        let mut discarded = vec![0; 16 << 10];
        let mut read = 0;
        while read < MAX_LINGER_BYTES {
            match stream.read(&mut discarded).await? {
                0 => break,
                n => read += n,
            }
        }
        Ok::<(), io::Error>(())
    };
    // The connection is closed in any case.
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drain).await;
}
