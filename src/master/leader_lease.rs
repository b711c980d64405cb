//! The lease of the leader, as counted by the leader itself.

use crate::scheduler::Now;
use crate::store::{Fence, Store, StoreError};
use std::time::Duration;
use tokio::time::sleep;

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

    /// Renews the lease in the store. Returns the new [`LeaderLease::requested_at_ms`].
    pub(super) async fn renew(self, store: &impl Store) -> Result<u64, StoreError> {
        let requested_at_ms = current_time().mono_ms;
        store.renew(self.fence, self.duration).await.map(|()| requested_at_ms)
    }

    /// Awaits a call and renews the lease meanwhile, so that a slow call does not lose leadership. If the lease expires
    /// all the same, `on_expiry` is called, once.
    pub(super) async fn renewing_while<T>(
        &mut self,
        store: &impl Store,
        call: impl Future<Output = T>,
        on_expiry: impl Fn(),
    ) -> T {
        tokio::pin!(call);
        let mut expired = false;
        loop {
            let lease = *self;
            let renewal = async {
                sleep(lease.renew_interval()).await;
                lease.renew(store).await
            };
            tokio::select! {
                biased;
                reply = &mut call => return reply,
                // Any error shows in the reply to the call.
                renewed = renewal => self.requested_at_ms = renewed.unwrap_or(self.requested_at_ms),
                () = sleep(lease.remaining()), if !expired => {
                    expired = true;
                    on_expiry();
                }
            }
        }
    }
}
