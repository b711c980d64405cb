//! Damage that was found on the way: told in the log where it is found, and counted until the master can be told.

use super::repeats::warn_counted;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was damaged of one sync (or, by default, of none) and was not told to the master yet. Clones count
/// together.
#[derive(Debug, Clone, Default)]
pub struct Damage {
    sync: Arc<str>,
    found: Arc<AtomicU64>,
}

impl Damage {
    /// Nothing yet, of the sync of this name.
    pub fn of(sync: &str) -> Self {
        Damage { sync: sync.into(), found: Arc::default() }
    }

    /// `what` came damaged from or to `peer`. Whoever finds that out sees to it that it is sent again.
    pub fn found(&self, what: &dyn Display, peer: &dyn Display) {
        self.found.fetch_add(1, Ordering::Relaxed);
        let sync = Some(&*self.sync).filter(|name| !name.is_empty());
        let about = sync.map(|name| format!(" (sync {name})")).unwrap_or_default();
        let cause = format_args!("damaged on the way from or to {peer}{about}");
        warn_counted!(cause, sync, %peer, "{what} was damaged on the way; it is sent again");
    }

    /// Whether there is something to tell, or somebody else who may find something.
    pub fn is_wanted(&self) -> bool {
        self.found.load(Ordering::Relaxed) > 0 || Arc::strong_count(&self.found) > 1
    }

    /// How much was found; it is told now, and counts no more here.
    pub fn take(&self) -> u64 {
        self.found.swap(0, Ordering::Relaxed)
    }
}
