//! All syncs, by number and by id.

use super::sync_job::SyncJob;
use crate::wire::ids::MIN_ID_PREFIX_CHARS;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::{RequestId, SyncNo};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

#[derive(Debug, Default)]
pub(super) struct SyncTable {
    by_no: BTreeMap<SyncNo, SyncJob>,
    /// Without deleted ones.
    by_id: BTreeMap<RequestId, SyncNo>,
    /// Each group with the syncs of its destinations.
    by_group: BTreeMap<SyncNo, BTreeSet<SyncNo>>,
    last_no: u64,
}

impl SyncTable {
    pub(super) fn get(&self, no: SyncNo) -> Option<&SyncJob> {
        self.by_no.get(&no)
    }

    pub(super) fn get_mut(&mut self, no: SyncNo) -> Option<&mut SyncJob> {
        self.by_no.get_mut(&no)
    }

    pub(super) fn find(&self, id: &RequestId) -> Option<&SyncJob> {
        self.get(*self.by_id.get(id)?)
    }

    pub(super) fn find_mut(&mut self, id: &RequestId) -> Option<&mut SyncJob> {
        self.by_no.get_mut(self.by_id.get(id)?)
    }

    /// The sync with this id, or why a request for it is refused.
    pub(super) fn require(&self, id: &RequestId) -> Result<&SyncJob, Problem> {
        self.find(id).ok_or_else(|| unknown_sync(id))
    }

    /// As [`SyncTable::require`], for a request that an ended sync refuses with this `consequence`.
    pub(super) fn require_active(
        &mut self,
        id: &RequestId,
        consequence: &str,
    ) -> Result<&mut SyncJob, Problem> {
        let sync = self.find_mut(id).ok_or_else(|| unknown_sync(id))?;
        if sync.is_active() {
            return Ok(sync);
        }
        let state = sync.state.as_str();
        let detail = format!("sync `{id}` has ended, in state {state}: {consequence}");
        Err(Problem::new(ProblemCode::SyncEnded, detail))
    }

    /// Also deleted ones that are still cleaned up.
    pub(super) fn values(&self) -> impl DoubleEndedIterator<Item = &SyncJob> {
        self.by_no.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut SyncJob> {
        self.by_no.values_mut()
    }

    /// In descending order, those before `no` only.
    pub(super) fn newest_before(&self, no: SyncNo) -> impl Iterator<Item = &SyncJob> {
        self.by_no.range(..no).rev().map(|(_, sync)| sync)
    }

    pub(super) fn numbers(&self) -> Vec<SyncNo> {
        self.by_no.keys().copied().collect()
    }

    pub(super) fn last_no(&self) -> u64 {
        self.last_no
    }

    /// Restores the number of the last sync.
    pub(super) fn set_last_no(&mut self, no: u64) {
        self.last_no = no;
    }

    pub(super) fn allocate_no(&mut self) -> SyncNo {
        self.last_no += 1;
        SyncNo(self.last_no)
    }

    pub(super) fn insert(&mut self, sync: SyncJob) {
        if !sync.is_deleted {
            self.by_id.insert(sync.id.clone(), sync.no);
        }
        if let Some(group) = sync.group() {
            self.by_group.entry(group).or_default().insert(sync.no);
        }
        self.by_no.insert(sync.no, sync);
    }

    /// Marks a sync as deleted; its id is free.
    pub(super) fn hide(&mut self, id: &RequestId) {
        let no = self.by_id.remove(id);
        if let Some(sync) = no.and_then(|no| self.by_no.get_mut(&no)) {
            sync.is_deleted = true;
        }
    }

    pub(super) fn remove(&mut self, no: SyncNo) -> Option<SyncJob> {
        let sync = self.by_no.remove(&no)?;
        if self.by_id.get(&sync.id) == Some(&no) {
            self.by_id.remove(&sync.id);
        }
        if let Some((group, of)) =
            sync.group().and_then(|group| Some((group, self.by_group.get_mut(&group)?)))
        {
            of.remove(&no);
            if of.is_empty() {
                self.by_group.remove(&group);
            }
        }
        Some(sync)
    }

    /// The syncs of the destinations of a group, in the order in which they were added.
    pub(super) fn destinations_of(&self, group: SyncNo) -> impl Iterator<Item = SyncNo> {
        self.by_group.get(&group).into_iter().flatten().copied()
    }

    /// The destinations of a group that get what its scans find.
    pub(super) fn followers_of(&self, group: SyncNo) -> impl Iterator<Item = &SyncJob> {
        let all = self.by_group.get(&group).into_iter().flatten();
        all.filter_map(|no| self.get(*no)).filter(|one| one.follows_group())
    }

    /// See [`SyncProgress::short_id`](crate::wire::sync::SyncProgress::short_id).
    pub(super) fn short_id(&self, id: &RequestId) -> String {
        if !id.is_generated() {
            return id.to_string();
        }
        // Ids of destinations begin with that of their group, and are not looked for by a prefix.
        let counts = |(_, no): &(&RequestId, &SyncNo)| {
            self.by_no.get(no).is_some_and(|sync| sync.group().is_none())
        };
        let before = self.by_id.range::<RequestId, _>(..id).rfind(counts);
        let after = self.by_id.range((Bound::Excluded(id), Bound::Unbounded)).find(counts);
        let shared = |(other, _): (&RequestId, &SyncNo)| {
            let pairs = id.as_str().bytes().zip(other.as_str().bytes());
            pairs.take_while(|(a, b)| a == b).count()
        };
        let unique = before.into_iter().chain(after).map(shared).max().map_or(0, |n| n + 1);
        id.as_str().chars().take(unique.max(MIN_ID_PREFIX_CHARS)).collect()
    }
}

pub(super) fn unknown_sync(id: &RequestId) -> Problem {
    Problem::new(ProblemCode::SyncNotFound, format!("there is no sync `{id}`"))
        .with_hint("list the syncs with: ctl sync list")
}

#[cfg(test)]
impl SyncTable {
    pub(super) fn len(&self) -> usize {
        self.by_no.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_no.is_empty()
    }
}

#[cfg(test)]
impl std::ops::Index<&SyncNo> for SyncTable {
    type Output = SyncJob;

    fn index(&self, no: &SyncNo) -> &SyncJob {
        &self.by_no[no]
    }
}
