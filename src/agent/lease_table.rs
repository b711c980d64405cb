//! The leases of this agent: assignments with the time until which it may work on them.
//!
//! All times are [`boottime`], which no change of the clock affects. A lease counts from before the request that
//! got or renewed it was sent, and work stops [`LEASE_MARGIN`] before its end. The next worker of the task therefore
//! never runs at the same time as a writer of this lease.

use crate::data::ticket_verifier::boottime;
use crate::data::{CurrentTicket, Deadline, TicketVerifier};
use crate::util::rate::RateLimiter;
use crate::wire::AssignmentId;
use crate::wire::task::{Assignment, TaskSpec};
use crate::wire::ticket::{SignedTicket, lifetime_seconds};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Work stops this long before its lease ends, or a quarter of the lease where that is shorter.
pub(super) const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// The tickets of a heartbeat have together at most this length. Half of their life is left for the others.
const MAX_RENEWAL_BYTES: usize = 64 << 10;
/// A timer until the next expiry would be late after a suspension: tokio's clock stands still then, `boottime` does not.
const EXPIRY_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Why work on an assignment stopped before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopReason {
    /// By the master.
    Revoked,
    /// No heartbeat renewed the lease in time.
    Expired,
    /// The agent stops before the work can end.
    Returned,
}

struct Lease {
    length: Duration,
    deadline: Deadline,
    is_scan: bool,
    /// A limiter without a limit: it only counts.
    byte_counter: Arc<RateLimiter>,
    ticket: CurrentTicket,
    stop_reason: watch::Sender<Option<StopReason>>,
}

#[derive(Default)]
pub(super) struct LeaseTable {
    leases: Mutex<BTreeMap<AssignmentId, Arc<Lease>>>,
}

/// Removes the lease of its assignment from the table when it is dropped.
pub(super) struct AssignmentGuard {
    id: AssignmentId,
    lease: Arc<Lease>,
    table: Arc<LeaseTable>,
}

impl LeaseTable {
    /// Adds `assignment`, which was requested at `since`; `None` where it is in the table already.
    pub(super) fn insert(
        self: &Arc<Self>,
        assignment: &Assignment,
        since: Duration,
    ) -> Option<AssignmentGuard> {
        use TaskSpec::{List, Prune, Scan};
        let id = assignment.assignment_id;
        let length = Duration::from_secs(assignment.lease_seconds);
        let mut leases = self.leases.lock();
        let Entry::Vacant(vacant) = leases.entry(id) else { return None };
        let lease = vacant.insert(Arc::new(Lease {
            length,
            deadline: Deadline::new(since + working_time(length)),
            is_scan: matches!(assignment.task, Scan { .. } | List { .. } | Prune { .. }),
            byte_counter: Arc::default(),
            ticket: (&*assignment.ticket).into(),
            stop_reason: watch::Sender::default(),
        }));
        Some(AssignmentGuard { id, lease: lease.clone(), table: self.clone() })
    }

    pub(super) fn assignment_ids(&self) -> Vec<AssignmentId> {
        self.leases.lock().keys().copied().collect()
    }

    /// The content bytes transferred for each assignment that has transferred any.
    pub(super) fn moved_bytes(&self) -> BTreeMap<AssignmentId, u64> {
        let leases = self.leases.lock();
        let moved = leases.iter().map(|(id, lease)| (*id, lease.byte_counter.reserved_bytes()));
        moved.filter(|(_, bytes)| *bytes > 0).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leases.lock().is_empty()
    }

    /// Applies the reply to a heartbeat that was sent at `sent` and contained `listed`.
    pub(super) fn apply_renewal(
        &self,
        listed: &[AssignmentId],
        sent: Duration,
        revoked: &[AssignmentId],
    ) {
        for (id, lease) in self.leases.lock().iter() {
            if revoked.contains(id) {
                lease.stop_work(StopReason::Revoked);
            } else if listed.contains(id) {
                lease.deadline.extend(sent + working_time(lease.length));
            }
        }
    }

    /// The tickets that need to be [renewed](TicketVerifier::needs_renewal), of a few KiB each, as many as a heartbeat
    /// may have.
    pub(super) fn tickets_to_renew(&self, verifier: &TicketVerifier) -> Vec<SignedTicket> {
        let mut room = MAX_RENEWAL_BYTES;
        let mut tickets = Vec::new();
        for lease in self.leases.lock().values() {
            let ticket = lease.ticket.text();
            if ticket.len() <= room
                && verifier.needs_renewal(&ticket, lifetime_seconds(lease.length))
            {
                room -= ticket.len();
                tickets.push(ticket.to_string().into());
            }
        }
        tickets
    }

    /// Replaces tickets of assignments that are still held.
    pub(super) fn replace_tickets(&self, tickets: &BTreeMap<AssignmentId, SignedTicket>) {
        let leases = self.leases.lock();
        for (id, ticket) in tickets {
            if let Some(lease) = leases.get(id) {
                lease.ticket.replace(ticket);
            }
        }
    }

    pub(super) fn stop_expired(&self, now: Duration) {
        for lease in self.leases.lock().values().filter(|lease| lease.deadline.is_over_at(now)) {
            lease.stop_work(StopReason::Expired);
        }
    }

    /// Stops the work on all assignments, or only on scans: those resume after their last page anywhere.
    pub(super) fn return_assignments(&self, scans_only: bool) {
        for lease in self.leases.lock().values().filter(|lease| lease.is_scan || !scans_only) {
            lease.stop_work(StopReason::Returned);
        }
    }

    /// Stops the work on leases as they expire. Never returns.
    pub(super) async fn watch_expiry(&self) {
        loop {
            tokio::time::sleep(EXPIRY_CHECK_INTERVAL).await;
            self.stop_expired(boottime());
        }
    }
}

fn working_time(lease: Duration) -> Duration {
    lease - LEASE_MARGIN.min(lease / 4)
}

impl Lease {
    fn stop_work(&self, reason: StopReason) {
        self.stop_reason.send_if_modified(|current| {
            // A revocation by the master overrides the reasons that are found locally.
            let is_news = current.is_none() || reason == StopReason::Revoked;
            if is_news {
                *current = Some(reason);
            }
            is_news
        });
    }
}

impl AssignmentGuard {
    /// Resolves when the work must stop. Every poll compares the deadline with the clock: in a process that was
    /// suspended, work must not continue until the next [`LeaseTable::watch_expiry`].
    pub(super) async fn wait_stopped(&self) -> StopReason {
        let mut reason = self.lease.stop_reason.subscribe();
        let mut stopped = std::pin::pin!(reason.wait_for(Option::is_some));
        let stopped = std::future::poll_fn(|cx| {
            if self.lease.deadline.is_over() {
                self.lease.stop_work(StopReason::Expired);
            }
            stopped.as_mut().poll(cx)
        });
        stopped.await.ok().and_then(|reason| *reason).unwrap_or(StopReason::Expired)
    }

    pub(super) async fn wait_revoked(&self) {
        let is_revoked = |reason: &Option<StopReason>| *reason == Some(StopReason::Revoked);
        // An error means that the sender was dropped, but `self` owns it.
        let _ = self.lease.stop_reason.subscribe().wait_for(is_revoked).await;
    }

    pub(super) fn deadline(&self) -> &Deadline {
        &self.lease.deadline
    }

    pub(super) fn ticket(&self) -> &CurrentTicket {
        &self.lease.ticket
    }

    pub(super) fn byte_counter(&self) -> &Arc<RateLimiter> {
        &self.lease.byte_counter
    }

    pub(super) fn return_unstarted(&self) {
        self.lease.stop_work(StopReason::Returned);
    }
}

impl Drop for AssignmentGuard {
    fn drop(&mut self) {
        self.table.leases.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::assignment;

    impl AssignmentGuard {
        fn stop_reason(&self) -> Option<StopReason> {
            *self.lease.stop_reason.borrow()
        }
    }

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
        // Without `watch_expiry`.
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

    #[tokio::test]
    async fn a_revocation_ends_the_wait_of_a_result_although_the_work_stopped_for_another_reason() {
        let hand = Arc::new(LeaseTable::default());
        let one = insert_assignment(&hand, 1, TaskSpec::Flush, 100);
        hand.return_assignments(false);
        let soon = tokio::time::timeout(Duration::from_millis(1), one.wait_revoked());
        assert!(soon.await.is_err());
        let id = AssignmentId([1; 16]);
        let revoke = async { hand.apply_renewal(&[id], secs(101), &[id]) };
        tokio::join!(one.wait_revoked(), revoke);
        assert_eq!(one.stop_reason(), Some(StopReason::Revoked));
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
