//! Content streams: connections that began as HTTP/1.1 and carry nothing but frames after an
//! `Upgrade: longhaul-frames-1` (RFC 9110, section 7.8).
//!
//! ```text
//! stream = { ASK pack|range ( REPLY | REFUSAL ) }
//! ```
//!
//! This is the receiving end. A thread owns the socket while it takes a pack or a range: it reads into pooled buffers,
//! hashes and writes without handing anything to another thread, and allocates nothing per piece. A
//! connection serves one ask after another; after a refusal it ends.

use super::buffer_pool::{Buffer, GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES};
use super::frame::{self, ChunkSource, FRAME_HEADER_BYTES, FrameReader};
use super::handlers::{self, RequestFailure};
use super::meter::{CountedStream, TrafficCounter};
use super::protocol::{MAX_TICKET_BYTES, STREAM};
use super::server::ConnectionContext;
use super::stall::MIN_PROGRESS_BYTES;
use crate::util::checksum;
use crate::util::shutdown::Shutdown;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use minicbor::{Decode, Encode};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a connection is upgraded to.
pub const UPGRADE_PROTOCOL: &str = "longhaul-frames-1";
/// A stream on which nothing is asked for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// An ask, once begun, must be complete within this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a thread that waits for bytes looks whether anybody still wants it to.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// What is read from a socket at once behind content that was read to its place: mostly the head of the
/// next frame. Otherwise it is a [`RECEIVE_BUFFER_BYTES`].
const HEADER_READ_BYTES: usize = 4 << 10;
/// How much of a refused ask is read, so that the refusal arrives, and for how long.
const DRAIN_LIMITS: (u64, Duration) = (8 << 20, Duration::from_secs(5));
/// The longest ask: a ticket and a verb.
const MAX_REQUEST_BYTES: usize = MAX_TICKET_BYTES + 64;

/// What a stream is asked to take next.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ContentRequest {
    /// [`PACK`](super::protocol::PACK) or [`RANGE`](super::protocol::RANGE).
    #[n(0)]
    pub verb: String,
    /// The ticket that allows it.
    #[n(1)]
    pub ticket: String,
}

/// If `request` asks for a stream: what becomes of the connection, and the response.
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

/// The socket of an upgraded connection, and what counts its bytes. `None` where the connection failed, or its peer did not wait
/// for the response.
pub(super) async fn upgraded_socket(
    on: OnUpgrade,
) -> Option<(TcpStream, Vec<Arc<TrafficCounter>>)> {
    let parts = on.await.ok()?.downcast::<TokioIo<CountedStream>>().ok()?;
    if !parts.read_buf.is_empty() {
        return None;
    }
    let (stream, flows) = parts.io.into_inner().into_parts().ok()?;
    Some((TcpStream::from_std(stream).ok()?, flows))
}

/// Serves what is asked on `stream`, one after the other, until its peer ends it, breaks the rules,
/// says nothing for a while, or `stop`.
pub(super) async fn serve_stream(
    mut stream: TcpStream,
    flows: Vec<Arc<TrafficCounter>>,
    peer: SocketAddr,
    (shared, stop): (&ConnectionContext, &Shutdown),
) {
    loop {
        let asked = tokio::select! {
            asked = read_request(&mut stream) => asked,
            () = stop.cancelled() => return,
        };
        let answered = match asked {
            Ok(Some(ask)) => match receive_content((stream, &flows), &ask, shared).await {
                Some((back, answered)) => {
                    stream = back;
                    answered
                }
                None => return,
            },
            Ok(None) => return,
            Err(why) => Err(why),
        };
        let (frame, refused) = match answered {
            Ok(document) => (frame::reply(&document), false),
            Err(failure) => {
                let problem = failure.into_problem();
                if problem.status < 500 {
                    shared.log_failure(peer, &problem.detail);
                }
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

/// The next ask; `None` where there is none any more.
async fn read_request(stream: &mut TcpStream) -> Result<Option<ContentRequest>, RequestFailure> {
    match tokio::time::timeout(IDLE_TIMEOUT, stream.readable()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Ok(None),
    }
    let whole = async {
        let mut head = [0; FRAME_HEADER_BYTES];
        // Between two asks the peer may go away.
        if stream.read(&mut head[..1]).await.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let bad = |e: &dyn std::fmt::Display| RequestFailure::BadRequest(e.to_string());
        stream.read_exact(&mut head[1..]).await.map_err(|e| bad(&e))?;
        let (kind, length) = frame::parse_header(head);
        if kind != frame::REQUEST || length > MAX_REQUEST_BYTES {
            let why = format!(
                "a request was expected, not a frame of kind {kind:#04x} and {length} bytes"
            );
            return Err(RequestFailure::BadRequest(why));
        }
        let mut document = vec![0; length];
        stream.read_exact(&mut document).await.map_err(|e| bad(&e))?;
        let damaged =
            || RequestFailure::Damaged(format!("the ask: {}", checksum::CHECKSUM_MISMATCH));
        let document = checksum::verify_and_strip(&document).ok_or_else(damaged)?;
        minicbor::decode(document).map(Some).map_err(|e| bad(&e))
    };
    let asked = tokio::time::timeout(REQUEST_TIMEOUT, whole).await;
    let late = || {
        RequestFailure::BadRequest(format!("a request was not complete within {REQUEST_TIMEOUT:?}"))
    };
    asked.unwrap_or_else(|_| Err(late()))
}

/// Takes what is asked in a thread of its own, which has the socket meanwhile. `None`: the socket is
/// lost.
async fn receive_content(
    (stream, flows): (TcpStream, &[Arc<TrafficCounter>]),
    ask: &ContentRequest,
    shared: &ConnectionContext,
) -> Option<(TcpStream, Result<Vec<u8>, RequestFailure>)> {
    let taking = match handlers::content_handler(ask, &shared.server) {
        Ok(taking) => taking,
        Err(refused) => return Some((stream, Err(refused))),
    };
    let _under_way = shared.requests.start().await;
    let [gathered, piece] = shared.pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await;
    let abandoned = Shutdown::new();
    let _guard = abandoned.clone().drop_guard();
    // It stays as it is, not blocking: a thread can wait for it as well.
    let wire = SocketReader::new(stream.into_std().ok()?, flows, piece, (shared, abandoned));
    let work = tokio::task::spawn_blocking(move || {
        let mut frames = FrameReader::new(wire);
        let taken = taking(&mut frames, gathered);
        (frames.into_source().stream, taken)
    });
    match work.await {
        Ok((back, taken)) => {
            let back = TcpStream::from_std(back).ok()?;
            Some((back, taken.map_err(RequestFailure::from)))
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
    let (limit, patience) = DRAIN_LIMITS;
    let all = async {
        let mut room = vec![0; 64 << 10];
        let mut left = limit;
        while let Ok(n @ 1..) = stream.read(&mut room).await {
            left = left.saturating_sub(n as u64);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(patience, all).await;
}

/// Whether any of `flags` hold of `stream` within `patience`.
///
/// # Errors
/// A sentence: `poll` failed.
pub(super) fn poll_ready(
    stream: &std::net::TcpStream,
    flags: PollFlags,
    patience: Duration,
) -> Result<bool, String> {
    let mut fds = [PollFd::new(stream, flags)];
    let patience =
        Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
    match poll(&mut fds, Some(&patience)) {
        Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents().intersects(flags)),
        Err(errno) => Err(errno.to_string()),
    }
}

/// A socket being read by a thread.
pub struct SocketReader {
    stream: std::net::TcpStream,
    /// What counts its bytes.
    counters: Vec<Arc<TrafficCounter>>,
    /// What pieces are read to; empty while one is in use.
    free_buffer: Arc<Mutex<Option<Buffer>>>,
    cancelled: Shutdown,
    /// A peer that sends less than [`MIN_PROGRESS_BYTES`] in so much waiting is given up.
    stall_timeout: Duration,
    waiting_time: Duration,
    recent_bytes: u64,
    /// What is read at once next.
    next_read_bytes: usize,
}

impl SocketReader {
    fn new(
        stream: std::net::TcpStream,
        flows: &[Arc<TrafficCounter>],
        piece: Buffer,
        (shared, abandoned): (&ConnectionContext, Shutdown),
    ) -> Self {
        let (flows, patience) = (flows.to_vec(), shared.stall_timeout);
        SocketReader {
            stream,
            counters: flows,
            free_buffer: Arc::new(Mutex::new(Some(piece))),
            cancelled: abandoned,
            stall_timeout: patience,
            waiting_time: Duration::ZERO,
            recent_bytes: 0,
            next_read_bytes: RECEIVE_BUFFER_BYTES,
        }
    }

    /// Waits for bytes, for a while.
    fn wait_readable(&mut self) -> Result<(), String> {
        if self.cancelled.is_cancelled() {
            return Err("the requester is gone".to_owned());
        }
        if self.waiting_time >= self.stall_timeout {
            let patience = self.stall_timeout;
            return Err(format!("less than {MIN_PROGRESS_BYTES} bytes came in {patience:?}"));
        }
        let since = Instant::now();
        poll_ready(&self.stream, PollFlags::IN, POLL_INTERVAL.min(self.stall_timeout))?;
        self.waiting_time += since.elapsed();
        Ok(())
    }

    /// Reads what there is to `room`, at least a byte; 0 at the end.
    fn receive_some(&mut self, room: &mut [u8]) -> Result<usize, String> {
        loop {
            match rustix::net::recv(&self.stream, &mut *room, RecvFlags::empty()) {
                Ok((n, _)) => {
                    self.count_progress(n);
                    self.counters.iter().for_each(|flow| flow.add_received(n as u64));
                    return Ok(n);
                }
                Err(Errno::AGAIN) => self.wait_readable()?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }

    fn count_progress(&mut self, n: usize) {
        self.recent_bytes += n as u64;
        if self.recent_bytes >= MIN_PROGRESS_BYTES {
            (self.waiting_time, self.recent_bytes) = (Duration::ZERO, 0);
        }
    }
}

/// What was read of a socket at once; its buffer goes home when nobody uses it any more.
struct PooledChunk {
    buffer: Option<Buffer>,
    length: usize,
    free_buffer: Arc<Mutex<Option<Buffer>>>,
}

fn lock_buffer(home: &Mutex<Option<Buffer>>) -> MutexGuard<'_, Option<Buffer>> {
    home.lock()
}

impl AsRef<[u8]> for PooledChunk {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.content()[..self.length])
    }
}

impl Drop for PooledChunk {
    fn drop(&mut self) {
        *lock_buffer(&self.free_buffer) = self.buffer.take();
    }
}

impl ChunkSource for SocketReader {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        let buffer =
            lock_buffer(&self.free_buffer).take().ok_or("the piece before it is still in use")?;
        let mut piece =
            PooledChunk { buffer: Some(buffer), length: 0, free_buffer: self.free_buffer.clone() };
        let most = std::mem::replace(&mut self.next_read_bytes, RECEIVE_BUFFER_BYTES);
        if let Some(buffer) = &mut piece.buffer {
            piece.length = self.receive_some(&mut buffer.content_mut()[..most])?;
        }
        Ok((piece.length > 0).then(|| Bytes::from_owner(piece)))
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Option<Result<(), String>> {
        self.next_read_bytes = HEADER_READ_BYTES;
        while !out.is_empty() {
            match self.receive_some(out) {
                Ok(0) => return Some(Err("it ended within content".to_owned())),
                Ok(n) => out = &mut out[n..],
                Err(why) => return Some(Err(why)),
            }
        }
        Some(Ok(()))
    }

    fn record_progress(&mut self, bytes: u64) {
        self.count_progress(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn is_abandoned(&self) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.cancelled.is_cancelled()
            || poll_ready(&self.stream, gone, Duration::ZERO).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stall_timeout_restarts_whenever_enough_bytes_arrived() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let patience = Duration::from_millis(1);
        let mut wire = SocketReader {
            stream,
            counters: Vec::new(),
            free_buffer: Arc::default(),
            cancelled: Shutdown::new(),
            stall_timeout: patience,
            waiting_time: Duration::ZERO,
            recent_bytes: 0,
            next_read_bytes: RECEIVE_BUFFER_BYTES,
        };
        for _ in 0..2 {
            wire.waiting_time = patience;
            wire.record_progress(MIN_PROGRESS_BYTES - 1);
            assert_eq!(wire.wait_readable(), Err("less than 4096 bytes came in 1ms".to_owned()));
            wire.record_progress(1);
            assert_eq!(wire.wait_readable(), Ok(()));
        }
    }
}
