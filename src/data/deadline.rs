//! The end of the time that work has, which can be extended while it runs.

use super::ticket_verifier::boottime;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
