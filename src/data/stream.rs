//! Content streams: connections that began as HTTP/1.1 and carry nothing but frames after an
//! `Upgrade: longhaul-frames-3` (RFC 9110, section 7.8).
//!
//! ```text
//! stream = { ASK pack|range ( REPLY | REFUSAL ) }
//! ```
//!
//! This is the receiving end. A thread owns the socket while it takes a pack or a range: it reads into pooled buffers,
//! hashes and writes without handing anything to another thread, and allocates nothing per piece. A
//! connection serves one ask after another; after a refusal it ends.

use super::body::STALL_BYTES;
use super::frame::{self, FrameReader, HEAD, Pieces};
use super::meter::{Counted, Flow};
use super::pool::{Buffer, GATHERED, PIECE};
use super::protocol::{MAX_TICKET, STREAM};
use super::server::Shared;
use super::verbs::{self, Failure};
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
pub const PROTOCOL: &str = "longhaul-frames-3";
/// A stream on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(15);
/// An ask, once begun, must be complete within this.
const ASKED: Duration = Duration::from_secs(15);
/// How often a thread that waits for bytes looks whether anybody still wants it to.
const LOOK: Duration = Duration::from_millis(250);
/// What is read from a socket at once behind content that was read to its place: mostly the head of the
/// next frame. Otherwise it is a [`PIECE`].
const HEAD_PIECE: usize = 4 << 10;
/// How much of a refused ask is read, so that the refusal arrives, and for how long.
const DRAIN: (u64, Duration) = (8 << 20, Duration::from_secs(5));
/// The longest ask: a ticket and a verb.
const MAX_ASK: usize = MAX_TICKET + 64;

/// What a stream is asked to take next.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ask {
    /// [`PACK`](super::protocol::PACK) or [`RANGE`](super::protocol::RANGE).
    #[n(0)]
    pub verb: String,
    /// The ticket that allows it.
    #[n(1)]
    pub ticket: String,
}

/// If `request` asks for a stream: what becomes of the connection, and the response.
pub(super) fn upgrade(
    request: &mut Request<Incoming>,
) -> Option<(OnUpgrade, Response<Full<Bytes>>)> {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| value == PROTOCOL);
    if request.uri().path() != STREAM || !wanted {
        return None;
    }
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    Some((hyper::upgrade::on(request), response))
}

/// The socket of an upgraded connection, and what counts its bytes. `None` where the connection failed, or its peer did not wait
/// for the response.
pub(super) async fn of_upgrade(on: OnUpgrade) -> Option<(TcpStream, Vec<Arc<Flow>>)> {
    let parts = on.await.ok()?.downcast::<TokioIo<Counted>>().ok()?;
    if !parts.read_buf.is_empty() {
        return None;
    }
    let (stream, flows) = parts.io.into_inner().into_parts().ok()?;
    Some((TcpStream::from_std(stream).ok()?, flows))
}

/// Serves what is asked on `stream`, one after the other, until its peer ends it, breaks the rules,
/// says nothing for a while, or `stop`.
pub(super) async fn serve(
    mut stream: TcpStream,
    flows: Vec<Arc<Flow>>,
    peer: SocketAddr,
    (shared, stop): (&Shared, &Shutdown),
) {
    loop {
        let asked = tokio::select! {
            asked = next_ask(&mut stream) => asked,
            () = stop.cancelled() => return,
        };
        let answered = match asked {
            Ok(Some(ask)) => match take((stream, &flows), &ask, shared).await {
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
                let problem = failure.problem();
                if problem.status < 500 {
                    shared.log(peer, &problem.detail);
                }
                (frame::refusal(&serde_json::to_vec(&problem).unwrap_or_default()), true)
            }
        };
        if stream.write_all(&frame).await.is_err() {
            return;
        }
        if refused {
            drain(&mut stream).await;
            return;
        }
    }
}

/// The next ask; `None` where there is none any more.
async fn next_ask(stream: &mut TcpStream) -> Result<Option<Ask>, Failure> {
    match tokio::time::timeout(IDLE, stream.readable()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Ok(None),
    }
    let whole = async {
        let mut head = [0; HEAD];
        // Between two asks the peer may go away.
        if stream.read(&mut head[..1]).await.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let bad = |e: &dyn std::fmt::Display| Failure::Bad(e.to_string());
        stream.read_exact(&mut head[1..]).await.map_err(|e| bad(&e))?;
        let (kind, length) = frame::split_head(head);
        if kind != frame::ASK || length > MAX_ASK {
            let why = format!(
                "a request was expected, not a frame of kind {kind:#04x} and {length} bytes"
            );
            return Err(Failure::Bad(why));
        }
        let mut document = vec![0; length];
        stream.read_exact(&mut document).await.map_err(|e| bad(&e))?;
        let damaged = || Failure::Damaged(format!("the ask: {}", checksum::CHECKSUM_MISMATCH));
        let document = checksum::verify_and_strip(&document).ok_or_else(damaged)?;
        minicbor::decode(document).map(Some).map_err(|e| bad(&e))
    };
    let asked = tokio::time::timeout(ASKED, whole).await;
    let late = || Failure::Bad(format!("a request was not complete within {ASKED:?}"));
    asked.unwrap_or_else(|_| Err(late()))
}

/// Takes what is asked in a thread of its own, which has the socket meanwhile. `None`: the socket is
/// lost.
async fn take(
    (stream, flows): (TcpStream, &[Arc<Flow>]),
    ask: &Ask,
    shared: &Shared,
) -> Option<(TcpStream, Result<Vec<u8>, Failure>)> {
    let taking = match verbs::content_verb(ask, &shared.served) {
        Ok(taking) => taking,
        Err(refused) => return Some((stream, Err(refused))),
    };
    let _under_way = shared.requests.begin().await;
    let [gathered, piece] = shared.pool.take([GATHERED, PIECE]).await;
    let abandoned = Shutdown::new();
    let _guard = abandoned.clone().drop_guard();
    // It stays as it is, not blocking: a thread can wait for it as well.
    let wire = Wire::new(stream.into_std().ok()?, flows, piece, (shared, abandoned));
    let work = tokio::task::spawn_blocking(move || {
        let mut frames = FrameReader::new(wire);
        let taken = taking(&mut frames, gathered);
        (frames.into_pieces().stream, taken)
    });
    match work.await {
        Ok((back, taken)) => {
            let back = TcpStream::from_std(back).ok()?;
            Some((back, taken.map_err(Failure::from)))
        }
        Err(e) => {
            tracing::error!("receiving content panicked: {e}");
            None
        }
    }
}

/// Reads and drops some of what a refused peer still sends: a socket that is closed with bytes unread
/// takes the refusal back.
async fn drain(stream: &mut TcpStream) {
    let (limit, patience) = DRAIN;
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
pub(super) fn ready(
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
pub struct Wire {
    stream: std::net::TcpStream,
    /// What counts its bytes.
    flows: Vec<Arc<Flow>>,
    /// What pieces are read to; empty while one is in use.
    home: Arc<Mutex<Option<Buffer>>>,
    abandoned: Shutdown,
    /// A peer that sends less than [`STALL_BYTES`] in so much waiting is given up.
    patience: Duration,
    waited: Duration,
    came: u64,
    /// What is read at once next.
    piece: usize,
}

impl Wire {
    fn new(
        stream: std::net::TcpStream,
        flows: &[Arc<Flow>],
        piece: Buffer,
        (shared, abandoned): (&Shared, Shutdown),
    ) -> Self {
        let (flows, patience) = (flows.to_vec(), shared.stall);
        Wire {
            stream,
            flows,
            home: Arc::new(Mutex::new(Some(piece))),
            abandoned,
            patience,
            waited: Duration::ZERO,
            came: 0,
            piece: PIECE,
        }
    }

    /// Waits for bytes, for a while.
    fn wait(&mut self) -> Result<(), String> {
        if self.abandoned.is_cancelled() {
            return Err("the requester is gone".to_owned());
        }
        if self.waited >= self.patience {
            let patience = self.patience;
            return Err(format!("less than {STALL_BYTES} bytes came in {patience:?}"));
        }
        let since = Instant::now();
        ready(&self.stream, PollFlags::IN, LOOK.min(self.patience))?;
        self.waited += since.elapsed();
        Ok(())
    }

    /// Reads what there is to `room`, at least a byte; 0 at the end.
    fn receive(&mut self, room: &mut [u8]) -> Result<usize, String> {
        loop {
            match rustix::net::recv(&self.stream, &mut *room, RecvFlags::empty()) {
                Ok((n, _)) => {
                    self.count(n);
                    self.flows.iter().for_each(|flow| flow.came(n as u64));
                    return Ok(n);
                }
                Err(Errno::AGAIN) => self.wait()?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }

    fn count(&mut self, n: usize) {
        self.came += n as u64;
        if self.came >= STALL_BYTES {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
    }
}

/// What was read of a socket at once; its buffer goes home when nobody uses it any more.
struct Piece {
    buffer: Option<Buffer>,
    length: usize,
    home: Arc<Mutex<Option<Buffer>>>,
}

fn home_of(home: &Mutex<Option<Buffer>>) -> MutexGuard<'_, Option<Buffer>> {
    home.lock()
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.page()[..self.length])
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        *home_of(&self.home) = self.buffer.take();
    }
}

impl Pieces for Wire {
    fn next(&mut self) -> Result<Option<Bytes>, String> {
        let buffer = home_of(&self.home).take().ok_or("the piece before it is still in use")?;
        let mut piece = Piece { buffer: Some(buffer), length: 0, home: self.home.clone() };
        let most = std::mem::replace(&mut self.piece, PIECE);
        if let Some(buffer) = &mut piece.buffer {
            piece.length = self.receive(&mut buffer.pages()[..most])?;
        }
        Ok((piece.length > 0).then(|| Bytes::from_owner(piece)))
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Option<Result<(), String>> {
        self.piece = HEAD_PIECE;
        while !out.is_empty() {
            match self.receive(out) {
                Ok(0) => return Some(Err("it ended within content".to_owned())),
                Ok(n) => out = &mut out[n..],
                Err(why) => return Some(Err(why)),
            }
        }
        Some(Ok(()))
    }

    fn worked(&mut self, bytes: u64) {
        self.count(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn abandoned(&self) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.abandoned.is_cancelled() || ready(&self.stream, gone, Duration::ZERO).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_waited_for_anew_each_time_that_enough_came() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let patience = Duration::from_millis(1);
        let mut wire = Wire {
            stream,
            flows: Vec::new(),
            home: Arc::default(),
            abandoned: Shutdown::new(),
            patience,
            waited: Duration::ZERO,
            came: 0,
            piece: PIECE,
        };
        for _ in 0..2 {
            wire.waited = patience;
            wire.worked(STALL_BYTES - 1);
            assert_eq!(wire.wait(), Err("less than 4096 bytes came in 1ms".to_owned()));
            wire.worked(1);
            assert_eq!(wire.wait(), Ok(()));
        }
    }
}
