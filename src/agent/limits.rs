//! What this agent may send: its own limit, and its share of the limit of each sync. Shares come with
//! assignments and change with the replies to heartbeats.

use crate::util::rate::{Limiters, RateLimiter};
use crate::wire::RequestId;
use crate::wire::task::Assignment;
use crate::wire::worker::BandwidthUsage;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A sync for which nothing is done is remembered for so long: its next task goes on counting.
const RETENTION: Duration = Duration::from_secs(60);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SendLimits {
    /// What this agent sends, whatever for.
    agent: Arc<RateLimiter>,
    syncs: Mutex<BTreeMap<RequestId, SyncLimit>>,
}

#[derive(Debug)]
struct SyncLimit {
    rate: Arc<RateLimiter>,
    /// The master has set a limit at some time: it wants to know what becomes of it.
    is_reported: bool,
    last_used: Instant,
}

impl SendLimits {
    /// With a limit of the agent's own, in bytes per second.
    pub fn new(agent: Option<u64>) -> Self {
        SendLimits { agent: Arc::new(RateLimiter::new(agent)), syncs: Mutex::default() }
    }

    /// Another limit of the agent's own, in bytes per second.
    pub fn set_agent_limit(&self, limit: Option<u64>) {
        self.agent.set_limit(limit, Instant::now());
    }

    /// All content that this agent ever sent or copied, in bytes.
    pub fn moved_bytes(&self) -> u64 {
        self.agent.reserved_bytes()
    }

    fn lock_syncs(&self) -> MutexGuard<'_, BTreeMap<RequestId, SyncLimit>> {
        self.syncs.lock()
    }

    /// Takes in the share that came with an assignment. True: the sync was not limited before, and the
    /// master should soon hear how it goes.
    pub fn apply_share(&self, assignment: &Assignment) -> bool {
        if !assignment.task.sends_content() {
            return false;
        }
        let now = Instant::now();
        let mut syncs = self.lock_syncs();
        let known = sync_limit(&mut syncs, &assignment.request_id, now);
        let news = known.rate.limit().is_none() && assignment.bwlimit.is_some();
        known.is_reported |= assignment.bwlimit.is_some();
        known.rate.set_limit(assignment.bwlimit, now);
        news
    }

    /// The limits on what is sent for a sync.
    pub fn limiters_for(&self, sync: &RequestId) -> Limiters {
        let rate = sync_limit(&mut self.lock_syncs(), sync, Instant::now()).rate.clone();
        Limiters::new(vec![rate, self.agent.clone()])
    }

    /// What became of the shares, for a heartbeat.
    pub fn usage_by_sync(&self) -> BTreeMap<RequestId, BandwidthUsage> {
        let now = Instant::now();
        let mut syncs = self.lock_syncs();
        syncs.retain(|_, known| {
            if Arc::strong_count(&known.rate) > 1 {
                known.last_used = now;
            }
            now.saturating_duration_since(known.last_used) < RETENTION
        });
        let told = syncs.iter().filter(|(_, known)| known.is_reported);
        told.map(|(id, known)| {
            let held = known.rate.throttled_time(now).as_millis();
            let held_ms = u64::try_from(held).unwrap_or(u64::MAX);
            (
                id.clone(),
                BandwidthUsage { sent_bytes: known.rate.reserved_bytes(), throttled_ms: held_ms },
            )
        })
        .collect()
    }

    /// Takes in what the master replied to a heartbeat.
    pub fn apply_heartbeat_limits(&self, limits: &BTreeMap<RequestId, Option<u64>>) {
        let now = Instant::now();
        let mut syncs = self.lock_syncs();
        for (id, limit) in limits {
            if let Some(known) = syncs.get_mut(id) {
                known.is_reported = limit.is_some();
                known.rate.set_limit(*limit, now);
            }
        }
    }
}

fn sync_limit<'a>(
    syncs: &'a mut BTreeMap<RequestId, SyncLimit>,
    id: &RequestId,
    now: Instant,
) -> &'a mut SyncLimit {
    let new = || SyncLimit { rate: Arc::default(), is_reported: false, last_used: now };
    let known = syncs.entry(id.clone()).or_insert_with(new);
    known.last_used = now;
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::assignment;
    use crate::wire::task::TaskSpec;

    const MIB: u64 = 1 << 20;

    fn assignment_with_share(share: Option<u64>) -> Assignment {
        let task = TaskSpec::Copy { files: 1, dirs: 0, bytes: 1 };
        Assignment { bwlimit: share, ..assignment(task) }
    }

    fn sync_rate(limits: &SendLimits) -> Option<u64> {
        limits.lock_syncs()[&assignment_with_share(None).request_id].rate.limit()
    }

    fn limits_reply(limit: Option<u64>) -> BTreeMap<RequestId, Option<u64>> {
        [(assignment_with_share(None).request_id, limit)].into()
    }

    #[test]
    fn a_share_is_set_by_assignments_and_changed_by_heartbeat_replies() {
        let limits = SendLimits::new(None);
        assert!(!limits.apply_share(&assignment_with_share(None)));
        assert!(limits.usage_by_sync().is_empty(), "nobody asked");
        assert!(limits.apply_share(&assignment_with_share(Some(MIB))));
        assert!(!limits.apply_share(&assignment_with_share(Some(2 * MIB))), "it is known already");
        assert_eq!(sync_rate(&limits), Some(2 * MIB));
        let pace = limits.limiters_for(&assignment_with_share(None).request_id);
        pace.acquire(1000, || Ok::<(), ()>(())).unwrap();
        let usage = limits.usage_by_sync();
        assert_eq!(usage.values().map(|u| u.sent_bytes).collect::<Vec<_>>(), [1000]);
        limits.apply_heartbeat_limits(&BTreeMap::new());
        assert_eq!(sync_rate(&limits), Some(2 * MIB), "what is not named stays");
        limits.apply_heartbeat_limits(&limits_reply(Some(3 * MIB)));
        assert_eq!(
            (sync_rate(&limits), pace.max_chunk_bytes()),
            (Some(3 * MIB), Some(3 * MIB / 32))
        );
        limits.apply_heartbeat_limits(&limits_reply(None));
        assert_eq!((sync_rate(&limits), pace.max_chunk_bytes()), (None, None));
        assert!(limits.usage_by_sync().is_empty());
    }

    #[test]
    fn a_task_that_sends_no_content_changes_no_share() {
        let limits = SendLimits::new(None);
        limits.apply_share(&assignment_with_share(Some(MIB)));
        assert!(!limits.apply_share(&assignment(TaskSpec::Flush)));
        assert_eq!(sync_rate(&limits), Some(MIB));
    }

    #[test]
    fn the_limit_of_the_agent_holds_for_every_sync() {
        let limits = SendLimits::new(Some(MIB));
        let one = limits.limiters_for(&"one".parse().unwrap());
        let two = limits.limiters_for(&"two".parse().unwrap());
        assert_eq!(
            (one.max_chunk_bytes(), two.max_chunk_bytes()),
            (Some(MIB / 32), Some(MIB / 32))
        );
        let since = Instant::now();
        for pace in [one, two] {
            pace.acquire(MIB / 4, || Ok::<(), ()>(())).unwrap();
        }
        assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
    }
}
