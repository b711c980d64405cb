//! The bandwidth of this agent: its own limit, and its share of the limit of each sync. Shares come with assignments
//! and change with the replies to heartbeats.

use crate::util::rate::{Limiters, RateLimiter};
use crate::wire::RequestId;
use crate::wire::task::Assignment;
use crate::wire::worker::BandwidthUsage;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An unused limiter is kept for this long, so that the next task of its sync continues the count.
const RETENTION: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct SendLimits {
    /// For all content that this agent sends.
    agent: Arc<RateLimiter>,
    syncs: Mutex<BTreeMap<RequestId, SyncLimit>>,
}

#[derive(Debug)]
struct SyncLimit {
    limiter: Arc<RateLimiter>,
    /// The master has set a limit, so heartbeats report the usage.
    is_reported: bool,
    last_used: Instant,
}

impl SendLimits {
    /// `agent_limit`: in bytes per second.
    pub(super) fn new(agent_limit: Option<u64>) -> Self {
        SendLimits { agent: Arc::new(RateLimiter::new(agent_limit)), syncs: Mutex::default() }
    }

    pub(super) fn set_agent_limit(&self, limit: Option<u64>) {
        self.agent.set_limit(limit, Instant::now());
    }

    /// All content that this agent has sent or copied since its start.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.agent.reserved_bytes()
    }

    /// Applies the share of an assignment. True: the sync had no limit before, so its usage is to be reported soon.
    pub(super) fn apply_share(&self, assignment: &Assignment) -> bool {
        if !assignment.task.sends_content() {
            return false;
        }
        let now = Instant::now();
        let mut syncs = self.syncs.lock();
        let sync = sync_limit(&mut syncs, &assignment.request_id, now);
        let is_new = sync.limiter.limit().is_none() && assignment.bwlimit.is_some();
        sync.is_reported |= assignment.bwlimit.is_some();
        sync.limiter.set_limit(assignment.bwlimit, now);
        is_new
    }

    pub(super) fn limiters_for(&self, sync: &RequestId) -> Limiters {
        let limiter = sync_limit(&mut self.syncs.lock(), sync, Instant::now()).limiter.clone();
        Limiters::new(vec![limiter, self.agent.clone()])
    }

    /// The usage of the shares, for a heartbeat.
    pub(super) fn usage_by_sync(&self) -> BTreeMap<RequestId, BandwidthUsage> {
        let now = Instant::now();
        let mut syncs = self.syncs.lock();
        syncs.retain(|_, sync| {
            if Arc::strong_count(&sync.limiter) > 1 {
                sync.last_used = now;
            }
            now.saturating_duration_since(sync.last_used) < RETENTION
        });
        let usage = |limiter: &RateLimiter| BandwidthUsage {
            sent_bytes: limiter.reserved_bytes(),
            throttled_ms: limiter.throttled_time(now).as_millis().try_into().unwrap_or(u64::MAX),
        };
        let reported = syncs.iter().filter(|(_, sync)| sync.is_reported);
        reported.map(|(id, sync)| (id.clone(), usage(&sync.limiter))).collect()
    }

    /// Applies the limits in the reply to a heartbeat.
    pub(super) fn apply_heartbeat_limits(&self, limits: &BTreeMap<RequestId, Option<u64>>) {
        let now = Instant::now();
        let mut syncs = self.syncs.lock();
        for (id, limit) in limits {
            if let Some(sync) = syncs.get_mut(id) {
                sync.is_reported = limit.is_some();
                sync.limiter.set_limit(*limit, now);
            }
        }
    }
}

fn sync_limit<'a>(
    syncs: &'a mut BTreeMap<RequestId, SyncLimit>,
    id: &RequestId,
    now: Instant,
) -> &'a mut SyncLimit {
    let new = || SyncLimit { limiter: Arc::default(), is_reported: false, last_used: now };
    let sync = syncs.entry(id.clone()).or_insert_with(new);
    sync.last_used = now;
    sync
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
        limits.syncs.lock()[&assignment_with_share(None).request_id].limiter.limit()
    }

    fn limits_reply(limit: Option<u64>) -> BTreeMap<RequestId, Option<u64>> {
        [(assignment_with_share(None).request_id, limit)].into()
    }

    #[test]
    fn a_share_is_set_by_assignments_and_changed_by_heartbeat_replies() {
        let limits = SendLimits::new(None);
        assert!(!limits.apply_share(&assignment_with_share(None)));
        assert!(limits.usage_by_sync().is_empty(), "no limit is set");
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
