//! The accept loop, and the life of a connection.

use super::HttpLimits;
use super::body::Budget;
use super::guard::Ends;
use super::routes::{App, router};
use crate::master::handle::Handle;
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a client that does not take its answer is waited for.
const UNSENT_TIME: Duration = Duration::from_secs(30);
/// How long, and how much, is still read of a client that is being closed, so that it gets its answer:
/// closing a socket with bytes unread would throw the answer away.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 20;
/// Waits after failures to accept (no file descriptors left, mostly).
const ACCEPT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// Serves the API on `listener` until `shutdown`; then lets requests in progress end, polls at once
/// and others within `limits.drain`.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    limits: HttpLimits,
    shutdown: CancellationToken,
) {
    let limits = Arc::new(limits);
    let app = App {
        handle,
        budget: Budget::new(limits.all_bodies_bytes),
        limits: Arc::clone(&limits),
        stopping: shutdown.clone(),
    };
    let router = router(app);
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    while let Some((stream, place)) = next(&listener, &places, &shutdown).await {
        let talk = connection(stream, router.clone(), Arc::clone(&limits), shutdown.clone());
        connections.spawn(async move {
            talk.await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, rest).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "closing connections that did not end in time"
        );
        connections.shutdown().await;
    }
}

/// The next connection, once there is a place for it. `None`: the server stops.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let wanted = async {
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        Some((accept(listener).await, place))
    };
    tokio::select! {
        () = shutdown.cancelled() => None,
        got = wanted => got,
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The client went away before it was its turn.
            Err(e) if is_of_the_client(&e) => {}
            Err(error) => {
                let what = "a connection can't be accepted; the master tries again";
                warn_ratelimited!(format_args!("{what}: {error}"), %error, "{what}");
                failures += 1;
                tokio::time::sleep(ACCEPT.delay(failures)).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    router: Router,
    limits: Arc<HttpLimits>,
    shutdown: CancellationToken,
) {
    let ends = Ends { local: stream.local_addr().ok(), client: stream.peer_addr().ok() };
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "socket options can't be set");
    }
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ends);
        Box::pin(router.clone().oneshot(request))
    });
    let mut conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_bytes)
        // A client that closes its side is gone: what was done for it stops.
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut told = false;
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| conn.poll_without_shutdown(cx)) => break ended,
            () = shutdown.cancelled(), if !told => {
                told = true;
                std::pin::Pin::new(&mut conn).graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    linger(conn.into_parts().io.into_inner()).await;
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNSENT_TIME))?;
    socket.set_keepalive(true)
}

/// Ends our side, and waits a little for the client to end its own.
async fn linger(mut stream: TcpStream) {
    let rest = async {
        stream.shutdown().await?;
        let mut waste = vec![0; 16 << 10];
        let mut read = 0;
        while read < LINGER_BYTES {
            match stream.read(&mut waste).await? {
                0 => break,
                n => read += n,
            }
        }
        Ok::<(), io::Error>(())
    };
    // Whatever goes wrong here, the connection is over.
    let _ = tokio::time::timeout(LINGER_TIME, rest).await;
}
