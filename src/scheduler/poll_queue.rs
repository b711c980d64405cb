//! Polls that wait for work, indexed by the storages that their workers see: a new task examines
//! only polls that may take it.

use super::WaitingPoll;
use super::event::Caller;
use super::storage_types::StorageNo;
use crate::wire::WorkerId;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

#[derive(Debug, Default)]
pub(super) struct PollQueue {
    polls: BTreeMap<Caller, WaitingPoll>,
    /// Each with the time of its empty reply.
    deadlines: BTreeSet<(u64, Caller)>,
    by_worker: HashMap<WorkerId, WorkerPolls>,
    by_storage: HashMap<StorageNo, BTreeSet<Caller>>,
}

#[derive(Debug)]
struct WorkerPolls {
    /// The storages under which they are indexed.
    storages: Vec<StorageNo>,
    callers: BTreeSet<Caller>,
}

impl PollQueue {
    pub(super) fn insert(&mut self, caller: Caller, poll: WaitingPoll, storages: Vec<StorageNo>) {
        self.update_storages(&poll.worker, &storages);
        for storage in &storages {
            self.by_storage.entry(*storage).or_default().insert(caller);
        }
        let of = self.by_worker.entry(poll.worker.clone());
        let of = of.or_insert_with(|| WorkerPolls { storages, callers: BTreeSet::new() });
        of.callers.insert(caller);
        self.deadlines.insert((poll.until_ms, caller));
        self.polls.insert(caller, poll);
    }

    pub(super) fn remove(&mut self, caller: Caller) -> Option<WaitingPoll> {
        let poll = self.polls.remove(&caller)?;
        self.deadlines.remove(&(poll.until_ms, caller));
        if let Some(of) = self.by_worker.get_mut(&poll.worker) {
            of.callers.remove(&caller);
            remove_from_index(&mut self.by_storage, &of.storages, caller);
            if of.callers.is_empty() {
                self.by_worker.remove(&poll.worker);
            }
        }
        Some(poll)
    }

    /// Updates the storages that a worker sees.
    pub(super) fn update_storages(&mut self, worker: &WorkerId, storages: &[StorageNo]) {
        let Some(of) = self.by_worker.get_mut(worker).filter(|of| of.storages != storages) else {
            return;
        };
        for caller in &of.callers {
            remove_from_index(&mut self.by_storage, &of.storages, *caller);
            for storage in storages {
                self.by_storage.entry(*storage).or_default().insert(*caller);
            }
        }
        of.storages = storages.to_vec();
    }

    /// Two storages were found to be one.
    pub(super) fn merge_storages(&mut self, from: StorageNo, into: StorageNo) {
        let Some(callers) = self.by_storage.remove(&from) else { return };
        for caller in &callers {
            let worker = self.polls.get(caller).map(|poll| &poll.worker);
            if let Some(of) = worker.and_then(|worker| self.by_worker.get_mut(worker)) {
                of.storages.retain(|storage| *storage != from && *storage != into);
                of.storages.push(into);
                of.storages.sort_unstable();
            }
        }
        self.by_storage.entry(into).or_default().extend(callers);
    }

    pub(super) fn get(&self, caller: Caller) -> Option<&WaitingPoll> {
        self.polls.get(&caller)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.polls.is_empty()
    }

    /// In the order of arrival.
    pub(super) fn callers_of(&self, worker: &WorkerId) -> impl Iterator<Item = Caller> + use<'_> {
        self.by_worker.get(worker).into_iter().flat_map(|of| of.callers.iter().copied())
    }

    /// Polls of workers that see a storage.
    pub(super) fn polls_at(
        &self,
        storage: Option<StorageNo>,
    ) -> impl Iterator<Item = (Caller, &WaitingPoll)> {
        let callers =
            storage.and_then(|storage| self.by_storage.get(&storage)).into_iter().flatten();
        callers.filter_map(|caller| Some((*caller, self.polls.get(caller)?)))
    }

    /// The first poll after `after` of a worker that sees a storage.
    pub(super) fn next_poll_at(
        &self,
        storage: Option<StorageNo>,
        after: Option<Caller>,
    ) -> Option<Caller> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_storage.get(&storage?)?.range((from, Bound::Unbounded)).next().copied()
    }

    /// Removes the polls with a deadline of at most `now_ms`; returns them in the order of arrival.
    pub(super) fn take_expired(&mut self, now_ms: u64) -> Vec<Caller> {
        let last = (now_ms, Caller(u64::MAX));
        let mut ended: Vec<Caller> =
            self.deadlines.range(..=last).map(|(_, caller)| *caller).collect();
        ended.sort_unstable();
        ended.iter().for_each(|caller| drop(self.remove(*caller)));
        ended
    }

    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }
}

pub(super) fn remove_from_index(
    at_storage: &mut HashMap<StorageNo, BTreeSet<Caller>>,
    storages: &[StorageNo],
    caller: Caller,
) {
    for storage in storages {
        if let Some(set) = at_storage.get_mut(storage) {
            set.remove(&caller);
            if set.is_empty() {
                at_storage.remove(storage);
            }
        }
    }
}
