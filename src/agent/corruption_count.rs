//! Corruption that this agent has detected and not yet reported, by sync. The next page or result of the sync reports
//! it, and each of those counts once. It may belong to another task than the one that detected it, because a page
//! that arrived corrupt cannot report that.

use crate::util::corruption::CorruptionCounter;
use crate::wire::RequestId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct CorruptionCounts(Mutex<BTreeMap<RequestId, CorruptionCounter>>);

impl CorruptionCounts {
    pub(super) fn counter_for(&self, sync: &RequestId) -> CorruptionCounter {
        let mut counters = self.0.lock();
        // Removes the counters of syncs that have ended.
        counters.retain(|_, counter| counter.is_report_needed());
        let new = || CorruptionCounter::for_sync(sync.as_str());
        counters.entry(sync.clone()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corruption_found_by_one_task_is_reported_once_by_any_task_of_the_sync() {
        let damages = CorruptionCounts::default();
        let (one, two): (RequestId, RequestId) = ("one".parse().unwrap(), "two".parse().unwrap());
        damages.counter_for(&one).record(&"a page", &"b");
        damages.counter_for(&two);
        assert_eq!(
            (damages.counter_for(&two).take_count(), damages.counter_for(&one).take_count()),
            (0, 1)
        );
        assert_eq!(damages.counter_for(&one).take_count(), 0);
        damages.counter_for(&two);
        assert_eq!(damages.0.lock().len(), 1, "what has ended is forgotten");
    }
}
