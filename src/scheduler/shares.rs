//! How limits on bytes per second are shared out. [`split_parent`] is the rule; [`Shares`] knows who may send
//! how much, and what he made of it. Nothing of it is stored: a restarted master learns it with the next
//! heartbeats.
//!
//! ```text
//! the installation's limit ─split─▶ syncs, each within its own limit ─split─▶ workers
//! ```
//!
//! A worker hears of its share when it speaks to us. So one that gets less gets it at once, and one that
//! gets more gets what others have given back by then: together they never have more than the limit, but
//! for the little that one who comes late begins with.

use crate::wire::worker::BandwidthUsage;
use crate::wire::{SyncNo, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// Targets are found anew at most so often.
const FRESH_MS: u64 = 100;
/// Usage is judged over at least so long.
const SAMPLE_MS: u64 = 400;
/// A worker without a task of a sync keeps its share for so long: the next task may be on its way.
const LINGER_MS: u64 = 3_000;
/// Who begins while others have all begins with this part of what will be his.
const FOOT: u64 = 16;
/// Who needs less than his share keeps this part more than he needs, …
const HEADROOM: u64 = 32;
/// … and this part of an equal share.
const FLOOR: u64 = 128;

/// What somebody asks of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// What he would use; `u64::MAX`: whatever he gets.
    pub(super) wants: u64,
    /// What he may have.
    pub(super) most: u64,
}

/// Splits `total` so that who wants little gets what he wants, and the others get equal parts of the rest
/// (max-min fairness; D. Bertsekas, R. Gallager, Data Networks, 1992, section 6.5.2). What nobody wants is
/// handed out too, in the same way: who wants more in the next moment need not wait.
pub(super) fn split(total: u64, claims: &[Claim]) -> Vec<u64> {
    let wanted: Vec<u64> = claims.iter().map(|claim| claim.wants.min(claim.most)).collect();
    let mut shares = fill(total, &wanted);
    let left = total - shares.iter().sum::<u64>();
    let more: Vec<u64> = claims.iter().zip(&shares).map(|(c, share)| c.most - share).collect();
    for (share, more) in shares.iter_mut().zip(fill(left, &more)) {
        *share += more;
    }
    shares
}

/// Fills vessels of these sizes to the same level, as far as `total` goes.
fn fill(total: u64, sizes: &[u64]) -> Vec<u64> {
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

/// Who may send how much.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// The limit of the whole installation.
    whole: Option<u64>,
    pools: BTreeMap<SyncNo, Pool>,
    /// When the targets were found; `None`: something changed since.
    found_ms: Option<u64>,
}

/// The workers that send for a sync.
#[derive(Debug, Default)]
struct Pool {
    /// The sync's own limit.
    own: Option<u64>,
    /// What they may have together.
    limit: u64,
    members: BTreeMap<WorkerId, Member>,
}

#[derive(Debug)]
struct Member {
    /// The share that it heard of.
    told: u64,
    /// The share that it is to have.
    target: u64,
    /// What it said last of its usage, and when.
    said: Option<(BandwidthUsage, u64)>,
    /// What it wants by that; `u64::MAX`: its share holds it back, or nothing is known yet.
    uses: u64,
    /// When it got its first share.
    since_ms: u64,
    /// When it last had a task.
    seen_ms: u64,
}

impl Pool {
    fn told(&self) -> u64 {
        self.members.values().fold(0, |sum, member| sum.saturating_add(member.told))
    }

    fn claims(&self) -> Vec<Claim> {
        let floor = self.limit / FLOOR / (self.members.len() as u64).max(1);
        let wants = |uses: u64| uses.saturating_add(uses / HEADROOM).saturating_add(floor);
        let members = self.members.values();
        members.map(|member| Claim { wants: wants(member.uses), most: u64::MAX }).collect()
    }
}

impl Shares {
    /// The limit of the whole installation is this from now on.
    pub(super) fn set_whole(&mut self, limit: Option<u64>) {
        if self.whole != limit {
            (self.whole, self.found_ms) = (limit, None);
        }
    }

    /// A sync's own limit is this from now on. True: it is limited, by that or with all others.
    pub(super) fn set_own(&mut self, no: SyncNo, own: Option<u64>) -> bool {
        if own.is_none() && self.whole.is_none() {
            self.pools.remove(&no);
            return false;
        }
        if let Some(pool) = self.pools.get_mut(&no).filter(|pool| pool.own != own) {
            pool.own = own;
            self.found_ms = None;
        }
        true
    }

    /// A worker has a task of a limited sync, as one of so many that may get some. It gets a first share,
    /// unless it has one.
    pub(super) fn join(
        &mut self,
        no: SyncNo,
        own: Option<u64>,
        worker: &WorkerId,
        peers: u64,
        now_ms: u64,
    ) {
        if let Some(member) = self.pools.get_mut(&no).and_then(|p| p.members.get_mut(worker)) {
            member.seen_ms = now_ms;
            return;
        }
        self.find(now_ms);
        let pools = self.pools.len() as u64;
        let equal = self.whole.map_or(u64::MAX, |whole| whole / (pools + 1));
        let limit = self.pools.get(&no).map_or(own.unwrap_or(u64::MAX).min(equal), |p| p.limit);
        let fair = limit / peers.max(1);
        let pool = self.pools.entry(no).or_insert(Pool { own, limit, ..Pool::default() });
        let spare = limit.saturating_sub(pool.told());
        let spare = self.whole.map_or(spare, |whole| spare.min(whole.saturating_sub(self.told())));
        let told = spare.max(fair / FOOT).min(fair).max(1);
        let (since_ms, seen_ms) = (now_ms, now_ms);
        let member = Member { told, target: told, said: None, uses: u64::MAX, since_ms, seen_ms };
        if let Some(pool) = self.pools.get_mut(&no) {
            pool.members.insert(worker.clone(), member);
        }
        self.found_ms = None;
    }

    /// A worker said what it sent.
    pub(super) fn report(
        &mut self,
        no: SyncNo,
        worker: &WorkerId,
        usage: BandwidthUsage,
        now_ms: u64,
    ) -> bool {
        let Some(member) = self.pools.get_mut(&no).and_then(|p| p.members.get_mut(worker)) else {
            return false;
        };
        let Some((before, at_ms)) = member.said else {
            member.said = Some((usage, now_ms));
            return usage.sent_bytes > 0;
        };
        let passed = now_ms.saturating_sub(at_ms);
        if passed < SAMPLE_MS {
            return false;
        }
        // Less than before: it had forgotten the sync, and counts anew.
        let moved = usage.sent_bytes.checked_sub(before.sent_bytes).unwrap_or(usage.sent_bytes);
        let held =
            usage.throttled_ms.checked_sub(before.throttled_ms).unwrap_or(usage.throttled_ms);
        member.said = Some((usage, now_ms));
        member.uses = match held.saturating_mul(2) >= passed {
            true => u64::MAX,
            false => moved.saturating_mul(1000) / passed,
        };
        moved > 0
    }

    /// What a worker may send from now on, when it is told now; `None` where it has no share.
    pub(super) fn tell(&mut self, no: SyncNo, worker: &WorkerId, now_ms: u64) -> Option<u64> {
        self.find(now_ms);
        let pool = self.pools.get(&no)?;
        let spare = pool.limit.saturating_sub(pool.told());
        let spare = self.whole.map_or(spare, |whole| spare.min(whole.saturating_sub(self.told())));
        let member = self.pools.get_mut(&no)?.members.get_mut(worker)?;
        // Those who begin together with it are still to come.
        let spare = if now_ms.saturating_sub(member.since_ms) < SAMPLE_MS { 0 } else { spare };
        member.told = member.target.min(member.told.saturating_add(spare)).max(1);
        Some(member.told)
    }

    /// What a worker was told last.
    pub(super) fn told_to(&self, no: SyncNo, worker: &WorkerId) -> Option<u64> {
        Some(self.pools.get(&no)?.members.get(worker)?.told)
    }

    /// The syncs for which a worker has a share.
    pub(super) fn of(&self, worker: &WorkerId) -> Vec<SyncNo> {
        let with = self.pools.iter().filter(|(_, pool)| pool.members.contains_key(worker));
        with.map(|(no, _)| *no).collect()
    }

    /// How many shares there are.
    pub(super) fn count(&self) -> usize {
        self.pools.values().map(|pool| pool.members.len()).sum()
    }

    /// These have tasks now; who had none for a while gives his share back.
    pub(super) fn keep(&mut self, busy: &BTreeSet<(SyncNo, WorkerId)>, now_ms: u64) {
        let before = self.count();
        for (no, pool) in &mut self.pools {
            pool.members.retain(|worker, member| {
                if busy.contains(&(*no, worker.clone())) {
                    member.seen_ms = now_ms;
                }
                now_ms.saturating_sub(member.seen_ms) <= LINGER_MS
            });
        }
        self.pools.retain(|_, pool| !pool.members.is_empty());
        if self.count() < before {
            self.found_ms = None;
        }
    }

    /// All that anybody was told.
    fn told(&self) -> u64 {
        self.pools.values().fold(0, |sum, pool| sum.saturating_add(pool.told()))
    }

    /// Finds the targets, where they may have changed.
    fn find(&mut self, now_ms: u64) {
        if self.found_ms.is_some_and(|at| now_ms.saturating_sub(at) < FRESH_MS) {
            return;
        }
        self.found_ms = Some(now_ms);
        let syncs: Vec<Claim> = self.pools.values().map(claim_of).collect();
        let limits = match self.whole {
            Some(whole) => split(whole, &syncs),
            None => syncs.iter().map(|claim| claim.most).collect(),
        };
        for (pool, limit) in self.pools.values_mut().zip(limits) {
            pool.limit = limit;
            let targets = split(limit, &pool.claims());
            for (member, target) in pool.members.values_mut().zip(targets) {
                member.target = target;
            }
        }
    }
}

/// What a sync asks of the limit of all.
fn claim_of(pool: &Pool) -> Claim {
    let wants = pool.claims().iter().fold(0, |sum: u64, claim| sum.saturating_add(claim.wants));
    Claim { wants, most: pool.own.unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests;
