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
use super::content_socket::{ContentSocket, is_clear};
use super::frame::{self, FrameReader};
use super::handlers::{self, DRAIN_BYTES, DRAIN_TIMEOUT, RequestFailure};
use super::protocol::{
    CLEAR_CONTENT, CONTENT_HEADER, ContentRequest, FRAME_HEADER_BYTES, STREAM, UPGRADE_PROTOCOL,
};
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
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// A stream without a request for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A request must be complete within this time of its first byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest request: a ticket and a verb.
const MAX_REQUEST_BYTES: usize = MAX_TICKET_BYTES + 64;

/// A stream between two requests.
type AsyncSocket = ContentSocket<TcpStream>;

/// A connection that becomes a stream when its response was sent.
pub(super) struct StreamUpgrade {
    on: OnUpgrade,
    /// It has clear content.
    is_clear: bool,
}

/// If `request` upgrades to a stream: the stream, and the response. It has clear content where both sides allow it.
pub(super) fn accept_upgrade(
    request: &mut Request<Incoming>,
    allows_clear: bool,
) -> Option<(StreamUpgrade, Response<Full<Bytes>>)> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == UPGRADE_PROTOCOL);
    if request.uri().path() != STREAM || !wanted {
        return None;
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(UPGRADE_PROTOCOL));
    let is_clear = allows_clear && is_clear(request.headers());
    if is_clear {
        let clear = HeaderValue::from_static(CLEAR_CONTENT);
        response.headers_mut().insert(CONTENT_HEADER, clear);
    }
    Some((StreamUpgrade { on: hyper::upgrade::on(request), is_clear }, response))
}

/// Serves the requests on an upgraded connection, one after the other, until its peer ends it, violates the protocol,
/// is idle for a while, or `stop` is cancelled.
pub(super) async fn serve_stream(
    StreamUpgrade { on, is_clear }: StreamUpgrade,
    peer: SocketAddr,
    (context, stop): (&ConnectionContext, &Shutdown),
) {
    let Ok(upgraded) = on.await else { return };
    let Ok(socket) = ContentSocket::of_upgraded(upgraded, is_clear) else { return };
    let Ok(mut stream) = socket.into_async() else { return };
    loop {
        let request = tokio::select! {
            request = read_request(&mut stream) => request,
            () = stop.cancelled() => return,
        };
        let reply = match request {
            Ok(Some(request)) => {
                let received = receive_content(stream, &request, context).await;
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
        if write_all(&mut stream, &frame).await.is_err() {
            return;
        }
        if refused {
            drain_socket(&mut stream).await;
            return;
        }
    }
}

/// Reads what there is to `room`, at least a byte; 0 at the end.
async fn read_some(stream: &mut AsyncSocket, room: &mut [u8]) -> io::Result<usize> {
    loop {
        // In TLS more may have come with what was read before, of which the kernel says nothing.
        match stream.receive(room) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => stream.stream().readable().await?,
            done => return done,
        }
    }
}

async fn read_exact(stream: &mut AsyncSocket, mut room: &mut [u8]) -> io::Result<()> {
    while !room.is_empty() {
        match read_some(stream, room).await? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => room = &mut room[n..],
        }
    }
    Ok(())
}

async fn write_all(stream: &mut AsyncSocket, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let sent = match bytes.is_empty() {
            true => stream.flush().map(|()| 0),
            false => stream.send(bytes),
        };
        match sent {
            Ok(_) if bytes.is_empty() => return Ok(()),
            Ok(sent) => bytes = &bytes[sent..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => stream.stream().writable().await?,
            Err(e) => return Err(e),
        }
    }
}

/// The next request; `None` after the last one.
async fn read_request(stream: &mut AsyncSocket) -> Result<Option<ContentRequest>, RequestFailure> {
    let mut head = [0; FRAME_HEADER_BYTES];
    // Between two requests the peer may disconnect.
    let first = tokio::time::timeout(IDLE_TIMEOUT, read_some(stream, &mut head[..1])).await;
    if first.ok().and_then(Result::ok).unwrap_or(0) == 0 {
        return Ok(None);
    }
    let whole = async {
        read_exact(stream, &mut head[1..]).await.map_err(RequestFailure::invalid)?;
        let (kind, length) = frame::parse_header(head);
        if kind != frame::REQUEST || length > MAX_REQUEST_BYTES {
            let reason = format!(
                "a request was expected, not a frame of kind {kind:#04x} and {length} bytes"
            );
            return Err(RequestFailure::invalid(reason));
        }
        let mut document = vec![0; length];
        read_exact(stream, &mut document).await.map_err(RequestFailure::invalid)?;
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
    stream: AsyncSocket,
    request: &ContentRequest,
    context: &ConnectionContext,
) -> Option<(AsyncSocket, Result<Vec<u8>, RequestFailure>)> {
    let (identity, receiver) = match handlers::content_handler(request, context) {
        Ok(work) => work,
        Err(refused) => return Some((stream, Err(refused))),
    };
    let _under_way = context.requests.start().await;
    let [gathered, piece] = context.pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await;
    let cancelled = Shutdown::new();
    let _guard = cancelled.clone().drop_guard();
    let reader = SocketReader::new(stream.into_blocking().ok()?, piece, (context, cancelled));
    let work = spawn_blocking(&identity, move || {
        let mut frames = FrameReader::new(reader);
        let outcome = receiver(&mut frames, gathered);
        (frames.into_source().into_socket(), outcome)
    });
    match work.await {
        Ok((back, outcome)) => {
            let back = back.into_async().ok()?;
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
async fn drain_socket(stream: &mut AsyncSocket) {
    let all = async {
        let mut room = vec![0; 64 << 10];
        let mut left = DRAIN_BYTES;
        while let Ok(n @ 1..) = read_some(stream, &mut room).await {
            left = left.saturating_sub(n as u64);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
}
