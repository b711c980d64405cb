//! Between async connections and blocking threads: bodies going out, bodies coming in, both through
//! small channels, so that neither side runs ahead of the other.

use super::frame::Pieces;
use crate::util::shutdown::Shutdown;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How many pieces (of at most a buffer) wait between a thread and a connection.
pub const DEPTH: usize = 3;
/// A transfer that moves less than [`STALL_BYTES`] in this much waiting is given up.
pub const STALL: Duration = Duration::from_secs(90);
/// See [`STALL`].
pub const STALL_BYTES: u64 = 4096;

/// The body of a request that we send.
pub enum Outgoing {
    /// Known whole.
    Whole(Option<Bytes>),
    /// Made by a thread while it is sent; an `Err` breaks the connection, so that the receiver can't
    /// take the rest for the end.
    Stream {
        /// Where the thread puts it.
        from: mpsc::Receiver<Result<Bytes, Withdrawn>>,
        /// Counts what the connection took (and what the thread did beside).
        moved: Arc<AtomicU64>,
    },
}

/// A body that its maker gave up.
#[derive(Debug, thiserror::Error)]
#[error("the transfer was given up")]
pub struct Withdrawn;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        match self.get_mut() {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Outgoing::Stream { from, moved } => from.poll_recv(cx).map(|piece| {
                piece.map(|piece| {
                    piece.map(|bytes| {
                        moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        Frame::data(bytes)
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Outgoing::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Outgoing::Stream { .. } => SizeHint::default(),
        }
    }
}

/// Resolves when `moved` stands still for `patience`.
pub async fn stalled(moved: Arc<AtomicU64>, patience: Duration) {
    let mut last = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(patience).await;
        let now = moved.load(Ordering::Relaxed);
        if now < last + STALL_BYTES {
            return;
        }
        last = now;
    }
}

/// What the receiving thread lets [`pump`] know.
#[derive(Default)]
struct Signs {
    /// It waits for a piece.
    hungry: AtomicBool,
    /// Bytes of content that frames of a few bytes stood for.
    worked: AtomicU64,
}

/// The receiving thread's end of [`pump`].
pub struct Arriving {
    from: mpsc::Receiver<Result<Bytes, String>>,
    signs: Arc<Signs>,
    abandoned: Shutdown,
}

/// The connection's end.
pub struct Inlet {
    to: mpsc::Sender<Result<Bytes, String>>,
    signs: Arc<Signs>,
}

/// A channel for [`pump`]; `abandoned` tells the thread that nobody waits for what it does.
pub fn arriving(abandoned: Shutdown) -> (Inlet, Arriving) {
    let (to, from) = mpsc::channel(DEPTH);
    let signs = Arc::new(Signs::default());
    (Inlet { to, signs: signs.clone() }, Arriving { from, signs, abandoned })
}

impl Pieces for Arriving {
    fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.signs.hungry.store(true, Ordering::Release);
        let piece = self.from.blocking_recv().transpose();
        self.signs.hungry.store(false, Ordering::Release);
        piece
    }

    fn worked(&mut self, bytes: u64) {
        self.signs.worked.fetch_add(bytes, Ordering::Relaxed);
    }

    fn abandoned(&self) -> bool {
        self.abandoned.is_cancelled()
    }
}

impl Inlet {
    /// Whether the peer's silence is no stall: the thread has not come to the end of what the peer
    /// sent, or what it sent last stood for much.
    fn excuses(&self) -> bool {
        let worked = self.signs.worked.swap(0, Ordering::Relaxed);
        worked >= STALL_BYTES || !self.signs.hungry.load(Ordering::Acquire)
    }
}

/// Hands the pieces of `body` to a thread, as fast as it takes them, until the body ends, the
/// connection fails or stalls for `patience` (the thread is told), or the thread is done.
pub async fn pump(mut body: Incoming, inlet: Inlet, patience: Duration) -> Incoming {
    let (mut waited, mut came) = (Duration::ZERO, 0);
    loop {
        let since = Instant::now();
        // Only waiting for the peer counts, not waiting for our own disk.
        let left = patience.saturating_sub(waited);
        let piece = tokio::select! {
            frame = tokio::time::timeout(left, body.frame()) => match frame {
                Err(_) if inlet.excuses() => {
                    (waited, came) = (Duration::ZERO, 0);
                    continue;
                }
                Err(_) => Err(format!("less than {STALL_BYTES} bytes came in {patience:?}")),
                Ok(None) => return body,
                Ok(Some(Err(e))) => Err(e.to_string()),
                Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
            },
            () = inlet.to.closed() => return body,
        };
        waited += since.elapsed();
        if let Ok(bytes) = &piece {
            came += bytes.len() as u64;
            if came >= STALL_BYTES {
                (waited, came) = (Duration::ZERO, 0);
            }
        }
        let last = piece.is_err();
        if inlet.to.send(piece).await.is_err() || last {
            return body;
        }
    }
}

/// Reads and drops what is left of a refused body, so that the refusal can be read before the
/// connection ends: at most `limit` bytes and `patience`.
pub async fn drain(mut body: Incoming, limit: u64, patience: Duration) {
    let mut left = limit;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            let n = frame.data_ref().map_or(0, |d| d.len() as u64);
            if n > left {
                return;
            }
            left -= n;
        }
    };
    let _ = tokio::time::timeout(patience, all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_excused_while_there_is_work_and_no_longer() {
        let (inlet, mut arriving) = arriving(Shutdown::new());
        // Nobody has begun to read.
        assert!(inlet.excuses());
        inlet.to.try_send(Ok(Bytes::from_static(b"x"))).unwrap();
        assert!(arriving.next().is_ok());
        // It works on what came.
        assert!(inlet.excuses());
        let reading = std::thread::spawn(move || {
            arriving.worked(STALL_BYTES - 1);
            let ended = arriving.next();
            (arriving, ended)
        });
        while !inlet.signs.hungry.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // It waits, and what came did not stand for much.
        assert!(!inlet.excuses());
        inlet.signs.worked.fetch_add(STALL_BYTES, Ordering::Relaxed);
        assert!(inlet.excuses());
        assert!(!inlet.excuses(), "once is enough");
        drop(inlet);
        assert_eq!(reading.join().unwrap().1, Ok(None));
    }
}
