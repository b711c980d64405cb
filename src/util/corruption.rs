//! Damage that was found on the way: told in the log where it is found, and counted until the master can be told.

use super::repeated_warnings::warn_ratelimited;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was damaged of one sync (or, by default, of none) and was not told to the master yet. Clones count
/// together.
#[derive(Debug, Clone, Default)]
pub struct CorruptionCounter {
    sync: Arc<str>,
    count: Arc<AtomicU64>,
}

impl CorruptionCounter {
    /// Nothing yet, of the sync of this name.
    pub fn for_sync(sync: &str) -> Self {
        CorruptionCounter { sync: sync.into(), count: Arc::default() }
    }

    /// `what` came damaged from or to `peer`. Whoever finds that out sees to it that it is sent again.
    pub fn record(&self, what: &dyn Display, peer: &dyn Display) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let sync = Some(&*self.sync).filter(|name| !name.is_empty());
        let about = sync.map(|name| format!(" (sync {name})")).unwrap_or_default();
        let cause = format_args!("damaged on the way from or to {peer}{about}");
        warn_ratelimited!(cause, sync, %peer, "{what} was damaged on the way; it is sent again");
    }

    /// Whether there is something to tell, or somebody else who may find something.
    pub fn is_report_needed(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 || Arc::strong_count(&self.count) > 1
    }

    /// How much was found; it is told now, and counts no more here.
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::Relaxed)
    }
}
