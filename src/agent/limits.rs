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
const REMEMBERED: Duration = Duration::from_secs(60);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Limits {
    /// What this agent sends, whatever for.
    agent: Arc<RateLimiter>,
    syncs: Mutex<BTreeMap<RequestId, Known>>,
}

#[derive(Debug)]
struct Known {
    rate: Arc<RateLimiter>,
    /// The master has set a limit at some time: it wants to know what becomes of it.
    told: bool,
    used: Instant,
}

impl Limits {
    /// With a limit of the agent's own, in bytes per second.
    pub fn new(agent: Option<u64>) -> Self {
        Limits { agent: Arc::new(RateLimiter::new(agent)), syncs: Mutex::default() }
    }

    /// Another limit of the agent's own, in bytes per second.
    pub fn set_agent(&self, limit: Option<u64>) {
        self.agent.set_limit(limit, Instant::now());
    }

    /// All content that this agent ever sent or copied, in bytes.
    pub fn moved(&self) -> u64 {
        self.agent.reserved_bytes()
    }

    fn syncs(&self) -> MutexGuard<'_, BTreeMap<RequestId, Known>> {
        self.syncs.lock()
    }

    /// Takes in the share that came with an assignment. True: the sync was not limited before, and the
    /// master should soon hear how it goes.
    pub fn begin(&self, assignment: &Assignment) -> bool {
        if !assignment.task.sends_content() {
            return false;
        }
        let now = Instant::now();
        let mut syncs = self.syncs();
        let known = known(&mut syncs, &assignment.request_id, now);
        let news = known.rate.limit().is_none() && assignment.bwlimit.is_some();
        known.told |= assignment.bwlimit.is_some();
        known.rate.set_limit(assignment.bwlimit, now);
        news
    }

    /// The limits on what is sent for a sync.
    pub fn pace(&self, sync: &RequestId) -> Limiters {
        let rate = known(&mut self.syncs(), sync, Instant::now()).rate.clone();
        Limiters::new(vec![rate, self.agent.clone()])
    }

    /// What became of the shares, for a heartbeat.
    pub fn usage(&self) -> BTreeMap<RequestId, BandwidthUsage> {
        let now = Instant::now();
        let mut syncs = self.syncs();
        syncs.retain(|_, known| {
            if Arc::strong_count(&known.rate) > 1 {
                known.used = now;
            }
            now.saturating_duration_since(known.used) < REMEMBERED
        });
        let told = syncs.iter().filter(|(_, known)| known.told);
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
    pub fn heard(&self, limits: &BTreeMap<RequestId, Option<u64>>) {
        let now = Instant::now();
        let mut syncs = self.syncs();
        for (id, limit) in limits {
            if let Some(known) = syncs.get_mut(id) {
                known.told = limit.is_some();
                known.rate.set_limit(*limit, now);
            }
        }
    }
}

fn known<'a>(
    syncs: &'a mut BTreeMap<RequestId, Known>,
    id: &RequestId,
    now: Instant,
) -> &'a mut Known {
    let new = || Known { rate: Arc::default(), told: false, used: now };
    let known = syncs.entry(id.clone()).or_insert_with(new);
    known.used = now;
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::assignment;
    use crate::wire::task::TaskSpec;

    const MIB: u64 = 1 << 20;

    fn given(share: Option<u64>) -> Assignment {
        let task = TaskSpec::Copy { files: 1, dirs: 0, bytes: 1 };
        Assignment { bwlimit: share, ..assignment(task) }
    }

    fn limit(limits: &Limits) -> Option<u64> {
        limits.syncs()[&given(None).request_id].rate.limit()
    }

    fn said(limit: Option<u64>) -> BTreeMap<RequestId, Option<u64>> {
        [(given(None).request_id, limit)].into()
    }

    #[test]
    fn a_share_comes_with_the_work_and_changes_with_the_beats() {
        let limits = Limits::new(None);
        assert!(!limits.begin(&given(None)));
        assert!(limits.usage().is_empty(), "nobody asked");
        assert!(limits.begin(&given(Some(MIB))));
        assert!(!limits.begin(&given(Some(2 * MIB))), "it is known already");
        assert_eq!(limit(&limits), Some(2 * MIB));
        let pace = limits.pace(&given(None).request_id);
        pace.acquire(1000, || Ok::<(), ()>(())).unwrap();
        let usage = limits.usage();
        assert_eq!(usage.values().map(|u| u.sent_bytes).collect::<Vec<_>>(), [1000]);
        limits.heard(&BTreeMap::new());
        assert_eq!(limit(&limits), Some(2 * MIB), "what is not named stays");
        limits.heard(&said(Some(3 * MIB)));
        assert_eq!((limit(&limits), pace.max_chunk_bytes()), (Some(3 * MIB), Some(3 * MIB / 32)));
        limits.heard(&said(None));
        assert_eq!((limit(&limits), pace.max_chunk_bytes()), (None, None));
        assert!(limits.usage().is_empty());
    }

    #[test]
    fn a_task_that_sends_nothing_changes_no_share() {
        let limits = Limits::new(None);
        limits.begin(&given(Some(MIB)));
        assert!(!limits.begin(&assignment(TaskSpec::Flush)));
        assert_eq!(limit(&limits), Some(MIB));
    }

    #[test]
    fn the_limit_of_the_agent_holds_for_every_sync() {
        let limits = Limits::new(Some(MIB));
        let one = limits.pace(&"one".parse().unwrap());
        let two = limits.pace(&"two".parse().unwrap());
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
