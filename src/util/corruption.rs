//! Corruption in transit: logged when it is detected, and counted until it is reported to the master.

use super::repeated_warnings::warn_ratelimited;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The unreported corruptions of one sync (or, by default, outside of a sync). Clones share the counter.
#[derive(Debug, Clone, Default)]
pub struct CorruptionCounter {
    sync: Arc<str>,
    count: Arc<AtomicU64>,
}

impl CorruptionCounter {
    /// A counter for the sync with this id, at 0.
    pub fn for_sync(sync: &str) -> Self {
        CorruptionCounter { sync: sync.into(), count: Arc::default() }
    }

    /// Counts and logs that `what` was corrupted between this host and `peer`. The caller ensures that it is sent again.
    pub fn record(&self, what: &dyn Display, peer: &dyn Display) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let sync = Some(&*self.sync).filter(|name| !name.is_empty());
        let about = sync.map(|name| format!(" (sync {name})")).unwrap_or_default();
        let cause = format_args!("corrupted in transit from or to {peer}{about}");
        warn_ratelimited!(cause, sync, %peer, "{what} was corrupted in transit; it is sent again");
    }

    /// Whether the count is not 0, or a clone may still add to it.
    pub fn is_report_needed(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 || Arc::strong_count(&self.count) > 1
    }

    /// Returns the count for a report and resets it.
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::Relaxed)
    }
}
