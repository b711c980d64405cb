//! How many entries a prune may still delete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of entries that may be deleted. Clones, and budgets of one counter, share that counter across requests.
#[derive(Debug, Clone)]
pub struct DeletionBudget {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl DeletionBudget {
    /// At most `most` entries; `used` counts the deleted ones.
    pub fn new(used: Arc<AtomicU64>, most: u64) -> Self {
        DeletionBudget { used, limit: most }
    }

    /// Reserves one entry before its deletion. False: the budget is exhausted.
    pub(super) fn try_reserve(&self) -> bool {
        let next = |used: u64| (used < self.limit).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Releases a reservation after a failed deletion.
    pub(super) fn release(&self) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_of_one_counter_share_it_whatever_limit_each_has() {
        let used = Arc::default();
        let (small, large) =
            (DeletionBudget::new(Arc::clone(&used), 2), DeletionBudget::new(used, 3));
        assert!(small.try_reserve() && large.try_reserve());
        assert!(!small.try_reserve() && large.try_reserve() && !large.try_reserve());
        large.release();
        assert!(!small.try_reserve() && large.try_reserve() && !large.try_reserve());
    }
}
