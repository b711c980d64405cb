//! Allocation of bandwidth limits. [`split_fairly`] is the rule; [`BandwidthAllocator`] records the
//! share of each worker and its usage. Nothing is stored: a restarted master learns it with the
//! next heartbeats.
//!
//! ```text
//! limit of the installation ─split─▶ syncs, each within its own limit ─split─▶ workers
//! ```
//!
//! A worker gets its share in the reply to its heartbeat. A smaller share applies at once; a larger
//! one is limited to what others have returned by then. So the sum of all shares never exceeds the
//! limit, except for the small initial share of a late worker.

use crate::wire::worker::BandwidthUsage;
use crate::wire::{SyncNo, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum age of the computed targets.
const TARGET_REFRESH_MS: u64 = 100;

/// Minimum interval for a usage sample.
pub(super) const MIN_SAMPLE_MS: u64 = 400;

/// A worker without a task keeps its share for this time: the next task may be under way.
const SHARE_RETENTION_MS: u64 = 3_000;

/// The initial share of a late worker is its fair share divided by this.
pub(super) const INITIAL_SHARE_DIVISOR: u64 = 16;

/// A demand below the share is raised by its part 1/32 …
const HEADROOM_DIVISOR: u64 = 32;

/// … and by 1/128 of an equal share.
const MIN_DEMAND_DIVISOR: u64 = 128;

/// A demand on a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    /// Expected use; `u64::MAX`: unbounded.
    pub(super) desired: u64,
    /// Upper bound.
    pub(super) cap: u64,
}

/// Max-min fair split of `total` (D. Bertsekas, R. Gallager, Data Networks, 1992, section 6.5.2):
/// small demands are met, the others get equal parts of the remainder. What exceeds all demands is
/// split in the same way, so that a growing demand need not wait.
pub(super) fn split_fairly(total: u64, claims: &[Demand]) -> Vec<u64> {
    let wanted: Vec<u64> = claims.iter().map(|claim| claim.desired.min(claim.cap)).collect();
    let mut shares = fill_equally(total, &wanted);
    let left = total - shares.iter().sum::<u64>();
    let more: Vec<u64> = claims.iter().zip(&shares).map(|(c, share)| c.cap - share).collect();
    for (share, more) in shares.iter_mut().zip(fill_equally(left, &more)) {
        *share += more;
    }
    shares
}

/// Raises all values equally up to these sizes, until `total` is used.
fn fill_equally(total: u64, sizes: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| sizes[*i]);
    let mut left = total;
    let mut filled = vec![0; sizes.len()];
    for (done, i) in order.into_iter().enumerate() {
        let level = left / (sizes.len() - done) as u64;
        filled[i] = sizes[i].min(level);
        left -= filled[i];
    }
    filled
}

#[derive(Debug, Default)]
pub(super) struct BandwidthAllocator {
    /// The limit of the whole installation.
    total_limit: Option<u64>,
    pools: BTreeMap<SyncNo, SyncPool>,
    /// `None`: they must be computed again.
    targets_computed_ms: Option<u64>,
}

/// The workers that send for a sync.
#[derive(Debug, Default)]
struct SyncPool {
    /// The sync's own limit.
    own_limit: Option<u64>,
    /// The limit of all its workers together.
    limit: u64,
    members: BTreeMap<WorkerId, WorkerShare>,
}

#[derive(Debug)]
struct WorkerShare {
    /// The share that it was sent last.
    granted: u64,
    /// The share that it should have.
    target: u64,
    /// The last usage and its time.
    last_usage: Option<(BandwidthUsage, u64)>,
    /// Its estimated demand; `u64::MAX`: limited by its share, or unknown.
    demand: u64,
    registered_ms: u64,
    last_busy_ms: u64,
}

impl SyncPool {
    pub(super) fn granted(&self) -> u64 {
        self.members.values().fold(0, |sum, member| sum.saturating_add(member.granted))
    }

    fn demands(&self) -> Vec<Demand> {
        let floor = self.limit / MIN_DEMAND_DIVISOR / (self.members.len() as u64).max(1);
        let wants = |uses: u64| uses.saturating_add(uses / HEADROOM_DIVISOR).saturating_add(floor);
        let members = self.members.values();
        members.map(|member| Demand { desired: wants(member.demand), cap: u64::MAX }).collect()
    }

    /// The demand of all its workers together.
    fn demand(&self) -> Demand {
        let demands = self.demands().into_iter().map(|member| member.desired);
        let cap = self.own_limit.unwrap_or(u64::MAX);
        Demand { desired: demands.fold(0, u64::saturating_add), cap }
    }
}

impl BandwidthAllocator {
    pub(super) fn set_total_limit(&mut self, limit: Option<u64>) {
        if self.total_limit != limit {
            (self.total_limit, self.targets_computed_ms) = (limit, None);
        }
    }

    /// Sets the limit of a sync. True: it is limited, by its own limit or by the total.
    pub(super) fn set_own_limit(&mut self, no: SyncNo, own: Option<u64>) -> bool {
        if own.is_none() && self.total_limit.is_none() {
            self.pools.remove(&no);
            return false;
        }
        if let Some(pool) = self.pools.get_mut(&no).filter(|pool| pool.own_limit != own) {
            pool.own_limit = own;
            self.targets_computed_ms = None;
        }
        true
    }

    /// Registers a worker with a task of a limited sync, one of `peers` that may get some. A new
    /// one gets an initial share.
    pub(super) fn register(
        &mut self,
        no: SyncNo,
        own: Option<u64>,
        worker: &WorkerId,
        peers: u64,
        now_ms: u64,
    ) {
        if let Some(member) = self.pools.get_mut(&no).and_then(|p| p.members.get_mut(worker)) {
            member.last_busy_ms = now_ms;
            return;
        }
        self.update_targets(now_ms);
        let pools = self.pools.len() as u64;
        let equal = self.total_limit.map_or(u64::MAX, |whole| whole / (pools + 1));
        let limit = self.pools.get(&no).map_or(own.unwrap_or(u64::MAX).min(equal), |p| p.limit);
        let fair = limit / peers.max(1);
        let new_pool = SyncPool { own_limit: own, limit, ..SyncPool::default() };
        let spare = self.spare(self.pools.get(&no).unwrap_or(&new_pool));
        let initial = spare.max(fair / INITIAL_SHARE_DIVISOR).min(fair).max(1);
        let member = WorkerShare {
            granted: initial,
            target: initial,
            last_usage: None,
            demand: u64::MAX,
            registered_ms: now_ms,
            last_busy_ms: now_ms,
        };
        self.pools.entry(no).or_insert(new_pool).members.insert(worker.clone(), member);
        self.targets_computed_ms = None;
    }

    /// True: bytes were sent since the last report.
    pub(super) fn report_usage(
        &mut self,
        no: SyncNo,
        worker: &WorkerId,
        usage: BandwidthUsage,
        now_ms: u64,
    ) -> bool {
        let Some(member) = self.pools.get_mut(&no).and_then(|p| p.members.get_mut(worker)) else {
            return false;
        };
        let Some((before, at_ms)) = member.last_usage else {
            member.last_usage = Some((usage, now_ms));
            return usage.sent_bytes > 0;
        };
        let passed = now_ms.saturating_sub(at_ms);
        if passed < MIN_SAMPLE_MS {
            return false;
        }
        // The counter decreased: the worker had dropped the sync and counts from zero.
        let moved = usage.sent_bytes.checked_sub(before.sent_bytes).unwrap_or(usage.sent_bytes);
        let held =
            usage.throttled_ms.checked_sub(before.throttled_ms).unwrap_or(usage.throttled_ms);
        member.last_usage = Some((usage, now_ms));
        member.demand = match held.saturating_mul(2) >= passed {
            true => u64::MAX,
            false => moved.saturating_mul(1000) / passed,
        };
        moved > 0
    }

    /// Computes and records the share that a worker is sent now; `None` if it is not registered.
    pub(super) fn grant(&mut self, no: SyncNo, worker: &WorkerId, now_ms: u64) -> Option<u64> {
        self.update_targets(now_ms);
        let spare = self.spare(self.pools.get(&no)?);
        let member = self.pools.get_mut(&no)?.members.get_mut(worker)?;
        // Workers that start together with it are still to come.
        let spare =
            if now_ms.saturating_sub(member.registered_ms) < MIN_SAMPLE_MS { 0 } else { spare };
        member.granted = member.target.min(member.granted.saturating_add(spare)).max(1);
        Some(member.granted)
    }

    pub(super) fn granted_to(&self, no: SyncNo, worker: &WorkerId) -> Option<u64> {
        Some(self.pools.get(&no)?.members.get(worker)?.granted)
    }

    pub(super) fn syncs_of(&self, worker: &WorkerId) -> Vec<SyncNo> {
        let with = self.pools.iter().filter(|(_, pool)| pool.members.contains_key(worker));
        with.map(|(no, _)| *no).collect()
    }

    pub(super) fn share_count(&self) -> usize {
        self.pools.values().map(|pool| pool.members.len()).sum()
    }

    /// Frees the shares of workers that were idle for a while; `busy` ones have tasks now.
    pub(super) fn expire_idle_shares(&mut self, busy: &BTreeSet<(SyncNo, WorkerId)>, now_ms: u64) {
        let before = self.share_count();
        for (no, pool) in &mut self.pools {
            pool.members.retain(|worker, member| {
                if busy.contains(&(*no, worker.clone())) {
                    member.last_busy_ms = now_ms;
                }
                now_ms.saturating_sub(member.last_busy_ms) <= SHARE_RETENTION_MS
            });
        }
        self.pools.retain(|_, pool| !pool.members.is_empty());
        if self.share_count() < before {
            self.targets_computed_ms = None;
        }
    }

    /// What the limits of a sync and of the installation leave for further shares.
    fn spare(&self, pool: &SyncPool) -> u64 {
        let spare = pool.limit.saturating_sub(pool.granted());
        let granted = || self.pools.values().fold(0, |sum: u64, p| sum.saturating_add(p.granted()));
        self.total_limit.map_or(spare, |total| spare.min(total.saturating_sub(granted())))
    }

    /// Computes the targets, if they may have changed.
    fn update_targets(&mut self, now_ms: u64) {
        if self.targets_computed_ms.is_some_and(|at| now_ms.saturating_sub(at) < TARGET_REFRESH_MS)
        {
            return;
        }
        self.targets_computed_ms = Some(now_ms);
        let syncs: Vec<Demand> = self.pools.values().map(SyncPool::demand).collect();
        let limits = match self.total_limit {
            Some(whole) => split_fairly(whole, &syncs),
            None => syncs.iter().map(|claim| claim.cap).collect(),
        };
        for (pool, limit) in self.pools.values_mut().zip(limits) {
            pool.limit = limit;
            let targets = split_fairly(limit, &pool.demands());
            for (member, target) in pool.members.values_mut().zip(targets) {
                member.target = target;
            }
        }
    }
}

#[cfg(test)]
mod tests;
