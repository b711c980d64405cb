//! Faults that a relayed connection injects into its bytes.

use std::sync::atomic::{AtomicU64, Ordering};

/// Shorter pieces are requests and replies, not content.
const MIN_CONTENT_BYTES: usize = 4 << 10;

/// What is done.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    None,
    /// One bit of the content on its way to the server is flipped in so many bytes of it.
    FlipContent(u64),
    /// One bit is flipped in one of so many pieces of HTTP bodies, on either way; heads stay as they are.
    FlipBodies(u64),
    /// A connection is reset when so many bytes have passed.
    Reset(u64),
    /// On the way to the server this text is replaced by that one, which is as long. (And no check of a body is.)
    Rename(String, String),
}

/// Injects faults and counts them.
pub(crate) struct FaultInjector {
    fault: Fault,
    /// Bytes, or pieces, that a fault could affect.
    seen: AtomicU64,
    count: AtomicU64,
}

impl FaultInjector {
    pub(crate) fn new(harm: Fault) -> FaultInjector {
        FaultInjector { fault: harm, seen: AtomicU64::new(0), count: AtomicU64::new(0) }
    }

    /// The number of injected faults.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts so many more; whether a multiple of `every` was passed.
    fn is_due(&self, more: u64, every: u64) -> bool {
        let before = self.seen.fetch_add(more, Ordering::Relaxed);
        before / every != (before + more) / every
    }

    fn count_one(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Injects a fault into a piece on its way (`up`: to the server); `passed` bytes came before it on its connection. False:
    /// that is to be reset.
    pub(crate) fn inject(&self, piece: &mut [u8], up: bool, passed: u64) -> bool {
        match &self.fault {
            Fault::None => {}
            Fault::FlipContent(every) => {
                let length = piece.len();
                if up && length >= MIN_CONTENT_BYTES && self.is_due(length as u64, *every) {
                    piece[length / 2] ^= 1 << (length % 8);
                    self.count_one();
                }
            }
            Fault::FlipBodies(every) => {
                let body = body_of(piece);
                let length = body.len();
                if length > 0 && self.is_due(1, *every) {
                    body[length / 2] ^= 1 << (length % 8);
                    self.count_one();
                }
            }
            Fault::Reset(after) => {
                if passed >= *after {
                    self.count_one();
                    return false;
                }
            }
            Fault::Rename(from, to) if up => {
                replace_text(piece, from, to);
                replace_text(piece, "longhaul-checksum", "longhaul-checkXum");
            }
            Fault::Rename(..) => {}
        }
        true
    }
}

/// What of a piece of an HTTP/1.1 connection belongs to a body.
fn body_of(piece: &mut [u8]) -> &mut [u8] {
    let begins = |word: &&str| piece.starts_with(word.as_bytes());
    if !["HTTP/1.", "GET ", "POST ", "PATCH ", "DELETE "].iter().any(begins) {
        return piece;
    }
    let end = piece.windows(4).position(|w| w == b"\r\n\r\n").map_or(piece.len(), |at| at + 4);
    &mut piece[end..]
}

fn replace_text(piece: &mut [u8], from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    for at in 0..piece.len().saturating_sub(from.len() - 1) {
        if piece[at..].starts_with(from.as_bytes()) {
            piece[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    }
}
