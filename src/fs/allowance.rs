//! How many entries a prune may still delete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Permission to delete a number of entries. Clones, and permissions made of one count, draw from the same
/// count, whichever request deletes.
#[derive(Debug, Clone)]
pub struct Allowance {
    used: Arc<AtomicU64>,
    most: u64,
}

impl Allowance {
    /// At most `most` entries, of which `used` counts those that are deleted.
    pub fn new(used: Arc<AtomicU64>, most: u64) -> Self {
        Allowance { used, most }
    }

    /// Takes one entry out of it, before that is deleted. False: nothing is left.
    pub(super) fn take_one(&self) -> bool {
        let next = |used: u64| (used < self.most).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Returns one that was not deleted after all.
    pub(super) fn return_one(&self) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_permissions_of_one_count_share_it_whatever_each_allows() {
        let used = Arc::default();
        let (small, large) = (Allowance::new(Arc::clone(&used), 2), Allowance::new(used, 3));
        assert!(small.take_one() && large.take_one());
        assert!(!small.take_one() && large.take_one() && !large.take_one());
        large.return_one();
        assert!(!small.take_one() && large.take_one() && !large.take_one());
    }
}
