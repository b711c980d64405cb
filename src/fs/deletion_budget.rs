//! How many entries a prune may still delete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Permission to delete a number of entries. Clones, and permissions made of one count, draw from the same
/// count, whichever request deletes.
#[derive(Debug, Clone)]
pub struct DeletionBudget {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl DeletionBudget {
    /// At most `most` entries, of which `used` counts those that are deleted.
    pub fn new(used: Arc<AtomicU64>, most: u64) -> Self {
        DeletionBudget { used, limit: most }
    }

    /// Takes one entry out of it, before that is deleted. False: nothing is left.
    pub(super) fn try_reserve(&self) -> bool {
        let next = |used: u64| (used < self.limit).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Returns one that was not deleted after all.
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
