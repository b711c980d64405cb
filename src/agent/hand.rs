//! What an agent has in hand: assignments with the time until which it may work on them.
//!
//! All times are [`boottime`]: no clock that somebody sets plays a part. A lease counts from before
//! the request that got or renewed it was sent, and work stops [`MARGIN`] before its end: whoever gets
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
pub const MARGIN: Duration = Duration::from_secs(5);

/// Why work on an assignment stopped before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The master said that the assignment is not valid any more.
    Dropped,
    /// No heartbeat renewed the lease in time.
    Expired,
    /// The agent stops and cannot wait for it.
    HandedBack,
}

struct Held {
    lease: Duration,
    until: Deadline,
    is_scan: bool,
    /// Content bytes that were moved for it: a limit that is none counts them.
    moved: Arc<RateLimiter>,
    stop: Shutdown,
    stopped: Option<Stopped>,
}

/// Everything in hand.
#[derive(Default)]
pub struct Hand {
    held: Mutex<BTreeMap<AssignmentId, Held>>,
}

/// One assignment in hand, until it is dropped.
pub struct Grip {
    id: AssignmentId,
    stop: Shutdown,
    until: Deadline,
    moved: Arc<RateLimiter>,
    hand: Arc<Hand>,
}

impl Hand {
    fn held(&self) -> MutexGuard<'_, BTreeMap<AssignmentId, Held>> {
        self.held.lock()
    }

    /// Takes `assignment`, whose request was sent at `since`. `None` where it is in hand already.
    pub fn take(self: &Arc<Self>, assignment: &Assignment, since: Duration) -> Option<Grip> {
        let id = assignment.assignment_id;
        let lease = Duration::from_secs(assignment.lease_seconds);
        let stop = Shutdown::new();
        let until = Deadline::new(since + working(lease));
        let moved = Arc::<RateLimiter>::default();
        let held = Held {
            lease,
            until: until.clone(),
            is_scan: matches!(
                assignment.task,
                TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Prune { .. }
            ),
            moved: moved.clone(),
            stop: stop.clone(),
            stopped: None,
        };
        let mut all = self.held();
        if all.contains_key(&id) {
            return None;
        }
        all.insert(id, held);
        Some(Grip { id, stop, until, moved, hand: self.clone() })
    }

    /// All assignments in hand.
    pub fn list(&self) -> Vec<AssignmentId> {
        self.held().keys().copied().collect()
    }

    /// Content bytes that were moved for each assignment in hand, where any were.
    pub fn moved(&self) -> BTreeMap<AssignmentId, u64> {
        let held = self.held();
        let moved = held.iter().map(|(id, held)| (*id, held.moved.reserved_bytes()));
        moved.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Whether nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    /// A heartbeat sent at `sent` that listed `listed` was answered with `dropped`.
    pub fn renewed(&self, listed: &[AssignmentId], sent: Duration, dropped: &[AssignmentId]) {
        for (id, held) in self.held().iter_mut() {
            if dropped.contains(id) {
                held.stop(Stopped::Dropped);
            } else if listed.contains(id) {
                held.until.extend(sent + working(held.lease));
            }
        }
    }

    /// Stops the work on everything whose lease is about to end at `now`.
    pub fn expire(&self, now: Duration) {
        for held in self.held().values_mut() {
            if held.until.is_over_at(now) {
                held.stop(Stopped::Expired);
            }
        }
    }

    /// Stops the work on everything (or on scans, which go on anywhere from their last page).
    pub fn hand_back(&self, scans_only: bool) {
        for held in self.held().values_mut().filter(|h| h.is_scan || !scans_only) {
            held.stop(Stopped::HandedBack);
        }
    }

    /// Ends the work on leases that run out, for as long as it is polled.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            self.expire(boottime());
        }
    }
}

/// How long of a lease there is work.
fn working(lease: Duration) -> Duration {
    lease - MARGIN.min(lease / 4)
}

impl Held {
    fn stop(&mut self, why: Stopped) {
        // What the master says is worth more than what we guess.
        if self.stopped.is_none() || why == Stopped::Dropped {
            self.stopped = Some(why);
        }
        self.stop.cancel();
    }
}

impl Grip {
    /// Resolves when the work is to stop. Each time that it is polled it looks at the clock: in an agent that
    /// stood still, the work must not go on before somebody notices.
    pub async fn stopped(&self) -> Stopped {
        let mut stopped = std::pin::pin!(self.stop.cancelled());
        std::future::poll_fn(|cx| {
            if self.until.is_over() {
                self.hand.expire(boottime());
            }
            stopped.as_mut().poll(cx)
        })
        .await;
        self.why().unwrap_or(Stopped::Expired)
    }

    /// Until when the work may go on.
    pub fn until(&self) -> Deadline {
        self.until.clone()
    }

    /// What counts the content bytes that are moved for it.
    pub fn moved(&self) -> &Arc<RateLimiter> {
        &self.moved
    }

    /// Stops the work on this one: the agent stops and does not begin it.
    pub fn hand_back(&self) {
        if let Some(held) = self.hand.held().get_mut(&self.id) {
            held.stop(Stopped::HandedBack);
        }
    }

    /// Why the work is to stop, if it is.
    pub fn why(&self) -> Option<Stopped> {
        self.hand.held().get(&self.id).and_then(|held| held.stopped)
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        self.hand.held().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::assignment;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn taken(hand: &Arc<Hand>, n: u8, task: TaskSpec, since: u64) -> Grip {
        let a = Assignment {
            assignment_id: AssignmentId([n; 16]),
            lease_seconds: 30,
            ..assignment(task)
        };
        hand.take(&a, secs(since)).unwrap()
    }

    #[test]
    fn work_stops_before_its_lease_ends_unless_it_is_renewed() {
        let hand = Arc::new(Hand::default());
        let one = taken(&hand, 1, TaskSpec::Flush, 100);
        let two = taken(&hand, 2, TaskSpec::Flush, 100);
        hand.expire(secs(124));
        assert_eq!((one.why(), two.why()), (None, None));
        hand.renewed(&[AssignmentId([2; 16])], secs(110), &[]);
        hand.expire(secs(125));
        assert_eq!((one.why(), two.why()), (Some(Stopped::Expired), None));
        hand.expire(secs(134));
        assert_eq!(two.why(), None);
        hand.expire(secs(135));
        assert_eq!(two.why(), Some(Stopped::Expired));
    }

    #[tokio::test]
    async fn who_stood_still_for_longer_than_the_lease_notices_it_before_the_work_goes_on() {
        let hand = Arc::new(Hand::default());
        let lease = Duration::from_secs(30);
        // Nobody watches.
        let over = hand.take(&assignment(TaskSpec::Flush), boottime().saturating_sub(lease));
        let over = over.unwrap();
        assert!(over.until().is_over());
        assert_eq!(over.stopped().await, Stopped::Expired);
        drop(over);
        let good = hand.take(&assignment(TaskSpec::Flush), boottime()).unwrap();
        assert!(!good.until().is_over());
        let soon = tokio::time::timeout(Duration::from_millis(1), good.stopped());
        assert!(soon.await.is_err());
    }

    #[test]
    fn a_renewal_never_shortens_a_lease_and_a_drop_ends_it() {
        let hand = Arc::new(Hand::default());
        let one = taken(&hand, 1, TaskSpec::Flush, 100);
        let id = AssignmentId([1; 16]);
        assert!(!hand.is_empty());
        hand.renewed(&[id], secs(50), &[]);
        hand.expire(secs(124));
        assert_eq!(one.why(), None);
        hand.renewed(&[id], secs(101), &[id]);
        assert_eq!(one.why(), Some(Stopped::Dropped));
        drop(one);
        assert!(hand.is_empty());
    }

    #[test]
    fn what_was_moved_is_counted_for_each_assignment_as_long_as_it_is_in_hand() {
        let hand = Arc::new(Hand::default());
        let one = taken(&hand, 1, TaskSpec::Flush, 0);
        let two = taken(&hand, 2, TaskSpec::Flush, 0);
        assert!(hand.moved().is_empty());
        one.moved().reserve(7, std::time::Instant::now());
        two.moved().reserve(5, std::time::Instant::now());
        one.moved().reserve(1, std::time::Instant::now());
        let of = |n: u8| AssignmentId([n; 16]);
        assert_eq!(hand.moved(), [(of(1), 8), (of(2), 5)].into());
        drop(one);
        assert_eq!(hand.moved(), [(of(2), 5)].into());
    }

    #[test]
    fn the_same_assignment_is_not_taken_twice() {
        let hand = Arc::new(Hand::default());
        let a = assignment(TaskSpec::Flush);
        let grip = hand.take(&a, secs(0));
        assert!(grip.is_some() && hand.take(&a, secs(0)).is_none());
        drop(grip);
        assert!(hand.take(&a, secs(0)).is_some());
    }

    #[test]
    fn scans_are_handed_back_first() {
        let hand = Arc::new(Hand::default());
        let scan = taken(&hand, 1, TaskSpec::List { start: 0 }, 0);
        let other = taken(&hand, 2, TaskSpec::Flush, 0);
        hand.hand_back(true);
        assert_eq!((scan.why(), other.why()), (Some(Stopped::HandedBack), None));
        hand.hand_back(false);
        assert_eq!(other.why(), Some(Stopped::HandedBack));
    }
}
