//! Content streams: connections that began as HTTP/1.1 and carry nothing but frames after an
//! `Upgrade: longhaul-frames-1` (RFC 9110, section 7.8).
//!
//! ```text
//! stream = { ASK pack|range ( REPLY | REFUSAL ) }
//! ```
//!
//! This is the receiving end. A thread owns the socket while it takes a pack or a range: it reads into pooled buffers,
//! hashes and writes without handing anything to another thread, and allocates nothing per piece. A
//! connection serves one request after another; after a refusal it ends.

use super::buffer_pool::{GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES};
use super::frame::{self, FrameReader};
use super::handlers::{self, DRAIN_BYTES, DRAIN_TIMEOUT, RequestFailure};
use super::meter::{TrafficCounter, into_socket};
use super::protocol::{ContentRequest, FRAME_HEADER_BYTES, STREAM, UPGRADE_PROTOCOL};
use super::server_context::ConnectionContext;
use super::socket_reader::SocketReader;
use crate::fs::spawn_blocking;
use crate::util::checksum;
use crate::util::shutdown::Shutdown;
use crate::wire::ticket::MAX_TICKET_BYTES;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A stream without a request for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A request must be complete within this time of its first byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest request: a ticket and a verb.
const MAX_REQUEST_BYTES: usize = MAX_TICKET_BYTES + 64;

/// If `request` upgrades to a stream: the task that serves the connection, and the response.
pub(super) fn accept_upgrade(
    request: &mut Request<Incoming>,
) -> Option<(OnUpgrade, Response<Full<Bytes>>)> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == UPGRADE_PROTOCOL);
    if request.uri().path() != STREAM || !wanted {
        return None;
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
    Some((hyper::upgrade::on(request), response))
}

/// Serves the requests on an upgraded connection, one after the other, until its peer ends it, violates the protocol,
/// is idle for a while, or `stop` is cancelled.
pub(super) async fn serve_stream(
    on: OnUpgrade,
    peer: SocketAddr,
    (context, stop): (&ConnectionContext, &Shutdown),
) {
    let Ok(upgraded) = on.await else { return };
    let Ok((socket, counters)) = into_socket(upgraded) else { return };
    let Ok(mut stream) = TcpStream::from_std(socket) else { return };
    loop {
        let request = tokio::select! {
            request = read_request(&mut stream) => request,
            () = stop.cancelled() => return,
        };
        let reply = match request {
            Ok(Some(request)) => {
                let received = receive_content((stream, &counters), &request, context).await;
                let Some((back, reply)) = received else { return };
                stream = back;
                reply
            }
            Ok(None) => return,
            Err(reason) => Err(reason),
        };
        let (frame, refused) = match reply {
            Ok(document) => (frame::reply(&document), false),
            Err(failure) => {
                failure.log(peer, "a stream");
                let problem = failure.into_problem();
                (frame::refusal(&serde_json::to_vec(&problem).unwrap_or_default()), true)
            }
        };
        if stream.write_all(&frame).await.is_err() {
            return;
        }
        if refused {
            drain_socket(&mut stream).await;
            return;
        }
    }
}

/// The next request; `None` after the last one.
async fn read_request(stream: &mut TcpStream) -> Result<Option<ContentRequest>, RequestFailure> {
    let Ok(Ok(())) = tokio::time::timeout(IDLE_TIMEOUT, stream.readable()).await else {
        return Ok(None);
    };
    let whole = async {
        let mut head = [0; FRAME_HEADER_BYTES];
        // Between two requests the peer may disconnect.
        if stream.read(&mut head[..1]).await.unwrap_or(0) == 0 {
            return Ok(None);
        }
        stream.read_exact(&mut head[1..]).await.map_err(RequestFailure::invalid)?;
        let (kind, length) = frame::parse_header(head);
        if kind != frame::REQUEST || length > MAX_REQUEST_BYTES {
            let reason = format!(
                "a request was expected, not a frame of kind {kind:#04x} and {length} bytes"
            );
            return Err(RequestFailure::invalid(reason));
        }
        let mut document = vec![0; length];
        stream.read_exact(&mut document).await.map_err(RequestFailure::invalid)?;
        let document = checksum::verify_and_strip(&document)
            .ok_or_else(|| RequestFailure::damaged("the ask"))?;
        minicbor::decode(document).map(Some).map_err(RequestFailure::invalid)
    };
    let request = tokio::time::timeout(REQUEST_TIMEOUT, whole).await;
    request.unwrap_or_else(|_| {
        let reason = format!("a request was not complete within {REQUEST_TIMEOUT:?}");
        Err(RequestFailure::invalid(reason))
    })
}

/// Receives the content of a request in a thread of its own, which owns the socket meanwhile. `None`: the socket is
/// lost.
async fn receive_content(
    (stream, counters): (TcpStream, &[Arc<TrafficCounter>]),
    request: &ContentRequest,
    context: &ConnectionContext,
) -> Option<(TcpStream, Result<Vec<u8>, RequestFailure>)> {
    let (identity, receiver) = match handlers::content_handler(request, context) {
        Ok(work) => work,
        Err(refused) => return Some((stream, Err(refused))),
    };
    let _under_way = context.requests.start().await;
    let [gathered, piece] = context.pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await;
    let cancelled = Shutdown::new();
    let _guard = cancelled.clone().drop_guard();
    // It stays as it is, not blocking: a thread can wait for it as well.
    let reader = SocketReader::new(stream.into_std().ok()?, counters, piece, (context, cancelled));
    let work = spawn_blocking(&identity, move || {
        let mut frames = FrameReader::new(reader);
        let outcome = receiver(&mut frames, gathered);
        (frames.into_source().into_stream(), outcome)
    });
    match work.await {
        Ok((back, outcome)) => {
            let back = TcpStream::from_std(back).ok()?;
            Some((back, outcome.map_err(RequestFailure::from)))
        }
        Err(e) => {
            tracing::error!("receiving content panicked: {e}");
            None
        }
    }
}

/// Reads and drops some of what a refused peer still sends: a socket that is closed with bytes unread
/// takes the refusal back.
async fn drain_socket(stream: &mut TcpStream) {
    let all = async {
        let mut room = vec![0; 64 << 10];
        let mut left = DRAIN_BYTES;
        while let Ok(n @ 1..) = stream.read(&mut room).await {
            left = left.saturating_sub(n as u64);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
}
