//! The end of the time that work has, which can be extended while it runs; and all that ends or slows a transfer.

use super::ticket_verifier::boottime;
use crate::util::corruption::CorruptionCounter;
use crate::util::rate::Limiters;
use crate::util::shutdown::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::DropGuard;

/// A moment ([`boottime`]) at which work ends, unless it is put off. Clones are the same one. Threads that
/// read, send or write check it themselves, between two steps: the task that would stop them may have been suspended
/// just as long as they did.
#[derive(Debug, Clone)]
pub struct Deadline(Arc<AtomicU64>);

impl Default for Deadline {
    /// Never.
    fn default() -> Self {
        Deadline(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl Deadline {
    /// Work that ends at `end`.
    pub fn new(end: Duration) -> Self {
        Deadline(Arc::new(AtomicU64::new(millis(end))))
    }

    /// Extends it to `end`, if that is later.
    pub fn extend(&self, end: Duration) {
        self.0.fetch_max(millis(end), Ordering::Relaxed);
    }

    /// Whether it is over, as of `now`.
    pub fn is_over_at(&self, now: Duration) -> bool {
        millis(now) >= self.0.load(Ordering::Relaxed)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.is_over_at(boottime())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What ends, slows and counts transfers, to a peer or on this host. The default is no limit, and no cloning.
#[derive(Debug, Clone, Default)]
pub struct TransferControl {
    /// Limits on bytes per second.
    pub limiters: Limiters,
    /// No content is sent or written after this.
    pub deadline: Deadline,
    /// Cancelled when the requester disconnected. Each attempt has its own token.
    pub cancelled: Shutdown,
    /// Counts what is corrupted on the way to or from a peer.
    pub corruption: CorruptionCounter,
    /// Content that source and destination on this host can share is cloned.
    pub can_clone: bool,
    /// Content is hashed also where no end verifies it and no digest is recorded: a relay verifies what it sends, or
    /// relays will need the digests ([`WrittenFile::relay_digest`](super::outcome::WrittenFile::relay_digest)).
    pub hashes_for_relays: bool,
}

impl TransferControl {
    /// The same with a token that is cancelled when the guard is dropped.
    pub(super) fn start_attempt(&self) -> (Self, DropGuard) {
        let control = TransferControl { cancelled: Shutdown::new(), ..self.clone() };
        let guard = control.cancelled.clone().drop_guard();
        (control, guard)
    }

    /// Whether the transfer is to end now.
    pub(super) fn is_over(&self) -> bool {
        self.cancelled.is_cancelled() || self.deadline.is_over()
    }
}
