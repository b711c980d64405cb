//! Accepts and serves connections.

use super::HttpLimits;
use super::api_state::ApiState;
use super::bearer::FailureCounter;
use super::body::BodyBudget;
use super::principal::ConnectionAddresses;
use super::principal::{LoopbackOwner, TlsClient};
use super::routes::router;
use crate::master::handle::MasterHandle;
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
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
/// The usual cause is that no file descriptors are left.
const ACCEPT_RETRY_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// A bound address of the API.
pub(in crate::master) struct ApiListener {
    pub(in crate::master) listener: TcpListener,
    /// `None`: plain HTTP.
    pub(in crate::master) tls: Option<Arc<ServerConfig>>,
}

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
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let serving = listeners.into_iter().map(|listener| {
        let (router, permits, shutdown) = (router.clone(), &permits, shutdown.clone());
        serve_listener(listener, router, permits, limits.drain_timeout, shutdown)
    });
    futures_util::future::join_all(serving).await;
}

async fn serve_listener(
    ApiListener { listener, tls }: ApiListener,
    router: Router,
    permits: &Arc<Semaphore>,
    drain_timeout: Duration,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    while let Some((stream, permit)) = next_connection(&listener, permits, &shutdown).await {
        let connection = serve_connection(stream, tls.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            connection.await;
            drop(permit);
        });
        while connections.try_join_next().is_some() {}
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

/// The next connection within the limit. `None`: the server stops.
async fn next_connection(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let connection = async {
        let permit = Arc::clone(permits).acquire_owned().await.ok()?;
        Some((accept_connection(listener).await, permit))
    };
    tokio::select! {
        () = shutdown.cancelled() => None,
        connection = connection => connection,
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
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let addresses =
        ConnectionAddresses { local: stream.local_addr().ok(), client: stream.peer_addr().ok() };
    if let Err(error) = set_socket_options(&stream) {
        tracing::debug!(%error, "socket options can't be set");
    }
    let Some(tls) = tls else {
        return serve_requests(stream, addresses, None, router, shutdown).await;
    };
    let handshake = tokio::time::timeout(HEADER_TIMEOUT, accept_tls(stream, tls));
    match handshake.await {
        Ok(Ok(stream)) => {
            let client = TlsClient::new(stream.get_ref().1.peer_certificates());
            serve_requests(stream, addresses, Some(client), router, shutdown).await;
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
) {
    let owner = LoopbackOwner::default();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(addresses);
        request.extensions_mut().insert(owner.clone());
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
