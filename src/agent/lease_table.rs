//! What an agent has in hand: assignments with the time until which it may work on them.
//!
//! All times are [`boottime`]: no clock that somebody sets plays a part. A lease counts from before
//! the request that got or renewed it was sent, and work stops [`LEASE_MARGIN`] before its end: whoever gets
//! the task next never meets a writer of this lease.

use crate::data::Deadline;
use crate::data::gate::boottime;
use crate::util::rate::RateLimiter;
use crate::util::shutdown::Shutdown;
use crate::wire::AssignmentId;
use crate::wire::task::{Assignment, TaskSpec};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Work stops this long before its lease ends (a quarter of it, for short leases).
pub const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// Why work on an assignment stopped before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The master said that the assignment is not valid any more.
    Revoked,
    /// No heartbeat renewed the lease in time.
    Expired,
    /// The agent stops and cannot wait for it.
    Returned,
}

struct LeaseEntry {
    lease: Duration,
    deadline: Deadline,
    is_scan: bool,
    /// Content bytes that were moved for it: a limit that is none counts them.
    byte_counter: Arc<RateLimiter>,
    stop_signal: Shutdown,
    stop_reason: Option<StopReason>,
}

/// Everything in hand.
#[derive(Default)]
pub struct LeaseTable {
    entries: Mutex<BTreeMap<AssignmentId, LeaseEntry>>,
}

/// One assignment in hand, until it is dropped.
pub struct AssignmentGuard {
    id: AssignmentId,
    stop_signal: Shutdown,
    deadline: Deadline,
    byte_counter: Arc<RateLimiter>,
    table: Arc<LeaseTable>,
}

impl LeaseTable {
    fn lock_entries(&self) -> MutexGuard<'_, BTreeMap<AssignmentId, LeaseEntry>> {
        self.entries.lock()
    }

    /// Takes `assignment`, whose request was sent at `since`. `None` where it is in hand already.
    pub fn insert(
        self: &Arc<Self>,
        assignment: &Assignment,
        since: Duration,
    ) -> Option<AssignmentGuard> {
        let id = assignment.assignment_id;
        let lease = Duration::from_secs(assignment.lease_seconds);
        let stop = Shutdown::new();
        let until = Deadline::new(since + working_time(lease));
        let moved = Arc::<RateLimiter>::default();
        let held = LeaseEntry {
            lease,
            deadline: until.clone(),
            is_scan: matches!(
                assignment.task,
                TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Prune { .. }
            ),
            byte_counter: moved.clone(),
            stop_signal: stop.clone(),
            stop_reason: None,
        };
        let mut all = self.lock_entries();
        if all.contains_key(&id) {
            return None;
        }
        all.insert(id, held);
        Some(AssignmentGuard {
            id,
            stop_signal: stop,
            deadline: until,
            byte_counter: moved,
            table: self.clone(),
        })
    }

    /// All assignments in hand.
    pub fn assignment_ids(&self) -> Vec<AssignmentId> {
        self.lock_entries().keys().copied().collect()
    }

    /// Content bytes that were moved for each assignment in hand, where any were.
    pub fn moved_bytes(&self) -> BTreeMap<AssignmentId, u64> {
        let held = self.lock_entries();
        let moved = held.iter().map(|(id, held)| (*id, held.byte_counter.reserved_bytes()));
        moved.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Whether nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.lock_entries().is_empty()
    }

    /// A heartbeat sent at `sent` that listed `listed` was answered with `dropped`.
    pub fn apply_renewal(&self, listed: &[AssignmentId], sent: Duration, dropped: &[AssignmentId]) {
        for (id, held) in self.lock_entries().iter_mut() {
            if dropped.contains(id) {
                held.stop_work(StopReason::Revoked);
            } else if listed.contains(id) {
                held.deadline.extend(sent + working_time(held.lease));
            }
        }
    }

    /// Stops the work on everything whose lease is about to end at `now`.
    pub fn stop_expired(&self, now: Duration) {
        for held in self.lock_entries().values_mut() {
            if held.deadline.is_over_at(now) {
                held.stop_work(StopReason::Expired);
            }
        }
    }

    /// Stops the work on everything (or on scans, which go on anywhere from their last page).
    pub fn return_assignments(&self, scans_only: bool) {
        for held in self.lock_entries().values_mut().filter(|h| h.is_scan || !scans_only) {
            held.stop_work(StopReason::Returned);
        }
    }

    /// Ends the work on leases that run out, for as long as it is polled.
    pub async fn watch_expiry(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.stop_expired(boottime());
        }
    }
}

/// How long of a lease there is work.
fn working_time(lease: Duration) -> Duration {
    lease - LEASE_MARGIN.min(lease / 4)
}

impl LeaseEntry {
    fn stop_work(&mut self, why: StopReason) {
        // What the master says is worth more than what we guess.
        if self.stop_reason.is_none() || why == StopReason::Revoked {
            self.stop_reason = Some(why);
        }
        self.stop_signal.cancel();
    }
}

impl AssignmentGuard {
    /// Resolves when the work is to stop. Each time that it is polled it looks at the clock: in an agent that
    /// stood still, the work must not go on before somebody notices.
    pub async fn wait_stopped(&self) -> StopReason {
        let mut stopped = std::pin::pin!(self.stop_signal.cancelled());
        std::future::poll_fn(|cx| {
            if self.deadline.is_over() {
                self.table.stop_expired(boottime());
            }
            stopped.as_mut().poll(cx)
        })
        .await;
        self.stop_reason().unwrap_or(StopReason::Expired)
    }

    /// Until when the work may go on.
    pub fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    /// What counts the content bytes that are moved for it.
    pub fn byte_counter(&self) -> &Arc<RateLimiter> {
        &self.byte_counter
    }

    /// Stops the work on this one: the agent stops and does not begin it.
    pub fn return_unstarted(&self) {
        if let Some(held) = self.table.lock_entries().get_mut(&self.id) {
            held.stop_work(StopReason::Returned);
        }
    }

    /// Why the work is to stop, if it is.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.table.lock_entries().get(&self.id).and_then(|held| held.stop_reason)
    }
}

impl Drop for AssignmentGuard {
    fn drop(&mut self) {
        self.table.lock_entries().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::assignment;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn insert_assignment(
        hand: &Arc<LeaseTable>,
        n: u8,
        task: TaskSpec,
        since: u64,
    ) -> AssignmentGuard {
        let a = Assignment {
            assignment_id: AssignmentId([n; 16]),
            lease_seconds: 30,
            ..assignment(task)
        };
        hand.insert(&a, secs(since)).unwrap()
    }

    #[test]
    fn work_stops_before_its_lease_ends_unless_it_is_renewed() {
        let hand = Arc::new(LeaseTable::default());
        let one = insert_assignment(&hand, 1, TaskSpec::Flush, 100);
        let two = insert_assignment(&hand, 2, TaskSpec::Flush, 100);
        hand.stop_expired(secs(124));
        assert_eq!((one.stop_reason(), two.stop_reason()), (None, None));
        hand.apply_renewal(&[AssignmentId([2; 16])], secs(110), &[]);
        hand.stop_expired(secs(125));
        assert_eq!((one.stop_reason(), two.stop_reason()), (Some(StopReason::Expired), None));
        hand.stop_expired(secs(134));
        assert_eq!(two.stop_reason(), None);
        hand.stop_expired(secs(135));
        assert_eq!(two.stop_reason(), Some(StopReason::Expired));
    }

    #[tokio::test]
    async fn a_lease_that_expired_while_the_process_was_suspended_stops_the_work_at_the_next_poll()
    {
        let hand = Arc::new(LeaseTable::default());
        let lease = Duration::from_secs(30);
        // Nobody watches.
        let over = hand.insert(&assignment(TaskSpec::Flush), boottime().saturating_sub(lease));
        let over = over.unwrap();
        assert!(over.deadline().is_over());
        assert_eq!(over.wait_stopped().await, StopReason::Expired);
        drop(over);
        let good = hand.insert(&assignment(TaskSpec::Flush), boottime()).unwrap();
        assert!(!good.deadline().is_over());
        let soon = tokio::time::timeout(Duration::from_millis(1), good.wait_stopped());
        assert!(soon.await.is_err());
    }

    #[test]
    fn a_renewal_never_shortens_a_lease_and_a_drop_ends_it() {
        let hand = Arc::new(LeaseTable::default());
        let one = insert_assignment(&hand, 1, TaskSpec::Flush, 100);
        let id = AssignmentId([1; 16]);
        assert!(!hand.is_empty());
        hand.apply_renewal(&[id], secs(50), &[]);
        hand.stop_expired(secs(124));
        assert_eq!(one.stop_reason(), None);
        hand.apply_renewal(&[id], secs(101), &[id]);
        assert_eq!(one.stop_reason(), Some(StopReason::Revoked));
        drop(one);
        assert!(hand.is_empty());
    }

    #[test]
    fn moved_bytes_are_counted_for_each_assignment_until_its_guard_is_dropped() {
        let hand = Arc::new(LeaseTable::default());
        let one = insert_assignment(&hand, 1, TaskSpec::Flush, 0);
        let two = insert_assignment(&hand, 2, TaskSpec::Flush, 0);
        assert!(hand.moved_bytes().is_empty());
        one.byte_counter().reserve(7, std::time::Instant::now());
        two.byte_counter().reserve(5, std::time::Instant::now());
        one.byte_counter().reserve(1, std::time::Instant::now());
        let of = |n: u8| AssignmentId([n; 16]);
        assert_eq!(hand.moved_bytes(), [(of(1), 8), (of(2), 5)].into());
        drop(one);
        assert_eq!(hand.moved_bytes(), [(of(2), 5)].into());
    }

    #[test]
    fn an_assignment_is_inserted_once() {
        let hand = Arc::new(LeaseTable::default());
        let a = assignment(TaskSpec::Flush);
        let grip = hand.insert(&a, secs(0));
        assert!(grip.is_some() && hand.insert(&a, secs(0)).is_none());
        drop(grip);
        assert!(hand.insert(&a, secs(0)).is_some());
    }

    #[test]
    fn scans_are_returned_first() {
        let hand = Arc::new(LeaseTable::default());
        let scan = insert_assignment(&hand, 1, TaskSpec::List { start: 0 }, 0);
        let other = insert_assignment(&hand, 2, TaskSpec::Flush, 0);
        hand.return_assignments(true);
        assert_eq!((scan.stop_reason(), other.stop_reason()), (Some(StopReason::Returned), None));
        hand.return_assignments(false);
        assert_eq!(other.stop_reason(), Some(StopReason::Returned));
    }
}
