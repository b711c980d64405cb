//! The lease of the leader, as counted by the leader itself.

use crate::scheduler::Now;
use crate::store::Fence;
use std::time::Duration;

/// The leader renews its lease this many times per lease while it commits nothing.
const RENEWALS_PER_LEASE: u32 = 4;

/// The current time, from clocks that Tokio cannot pause in tests.
pub(super) fn current_time() -> Now {
    // `CLOCK_BOOTTIME` includes suspend, which the clock of `Instant` does not: a lease expires while the host sleeps.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let mono_ms = boot.tv_sec.unsigned_abs() * 1000 + boot.tv_nsec.unsigned_abs() / 1_000_000;
    Now { mono_ms, wall_ms: jiff::Timestamp::now().as_millisecond() }
}

/// A term of leadership.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaderLease {
    pub(super) fence: Fence,
    /// How long leadership lasts without a commit or renewal.
    pub(super) duration: Duration,
    /// When the request was sent with which the store last extended the lease, as [`Now::mono_ms`]. No other master
    /// can lead before `duration` has passed since then, however late the reply came.
    pub(super) requested_at_ms: u64,
}

impl LeaderLease {
    /// How long no other master can lead.
    pub(super) fn remaining(&self) -> Duration {
        let lease = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let end = self.requested_at_ms.saturating_add(lease);
        Duration::from_millis(end.saturating_sub(current_time().mono_ms))
    }

    /// The time between two renewals.
    pub(super) fn renew_interval(&self) -> Duration {
        self.duration / RENEWALS_PER_LEASE
    }
}
