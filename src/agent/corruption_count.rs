//! What this agent found damaged on the way and has not told the master yet, by sync: the next page or result of the
//! sync tells it, and each of those counts once. It may be about another task than the one that found it: the page
//! that came damaged is not the one that can say so.

use crate::util::corruption::CorruptionCounter;
use crate::wire::RequestId;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct CorruptionCounts(Mutex<BTreeMap<RequestId, CorruptionCounter>>);

impl CorruptionCounts {
    /// Where damage to what belongs to `sync` is counted.
    pub fn counter_for(&self, sync: &RequestId) -> CorruptionCounter {
        let mut all = self.0.lock();
        // Most syncs have none, and nobody looks for it any more when they have ended.
        all.retain(|_, damage| damage.is_report_needed());
        all.entry(sync.clone())
            .or_insert_with(|| CorruptionCounter::for_sync(sync.as_str()))
            .clone()
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
