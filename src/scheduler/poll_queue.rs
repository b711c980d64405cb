//! Polls that wait for work, indexed by the paths that their workers serve: a new task examines
//! only polls that may take it.

use super::WaitingPoll;
use super::event::Caller;
use crate::wire::{AbsPath, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

#[derive(Debug, Default)]
pub(super) struct PollQueue {
    polls: BTreeMap<Caller, WaitingPoll>,
    /// Each with the time of its empty reply.
    deadlines: BTreeSet<(u64, Caller)>,
    by_worker: HashMap<WorkerId, WorkerPolls>,
    /// By storage path of the worker.
    by_path: HashMap<Vec<u8>, BTreeSet<Caller>>,
}

#[derive(Debug)]
struct WorkerPolls {
    /// The storage paths under which they are indexed.
    paths: Vec<AbsPath>,
    callers: BTreeSet<Caller>,
}

impl PollQueue {
    pub(super) fn insert(&mut self, caller: Caller, poll: WaitingPoll, paths: &[AbsPath]) {
        self.update_paths(&poll.worker, paths);
        let of = self.by_worker.entry(poll.worker.clone());
        let of =
            of.or_insert_with(|| WorkerPolls { paths: paths.to_vec(), callers: BTreeSet::new() });
        of.callers.insert(caller);
        for path in paths {
            self.by_path.entry(path.as_bytes().to_vec()).or_default().insert(caller);
        }
        self.deadlines.insert((poll.until_ms, caller));
        self.polls.insert(caller, poll);
    }

    pub(super) fn remove(&mut self, caller: Caller) -> Option<WaitingPoll> {
        let poll = self.polls.remove(&caller)?;
        self.deadlines.remove(&(poll.until_ms, caller));
        if let Some(of) = self.by_worker.get_mut(&poll.worker) {
            of.callers.remove(&caller);
            remove_from_index(&mut self.by_path, &of.paths, caller);
            if of.callers.is_empty() {
                self.by_worker.remove(&poll.worker);
            }
        }
        Some(poll)
    }

    /// Updates the storage paths of a worker.
    pub(super) fn update_paths(&mut self, worker: &WorkerId, paths: &[AbsPath]) {
        let Some(of) = self.by_worker.get_mut(worker).filter(|of| of.paths != paths) else {
            return;
        };
        for caller in &of.callers {
            remove_from_index(&mut self.by_path, &of.paths, *caller);
            for path in paths {
                self.by_path.entry(path.as_bytes().to_vec()).or_default().insert(*caller);
            }
        }
        of.paths = paths.to_vec();
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

    /// Polls of workers that serve `path`; a poll may occur twice.
    pub(super) fn polls_at<'a>(
        &'a self,
        path: &'a AbsPath,
    ) -> impl Iterator<Item = (Caller, &'a WaitingPoll)> {
        let sets = path.ancestors_from_root().filter_map(|p| self.by_path.get(p));
        let callers = sets.flat_map(|set| set.iter());
        callers.filter_map(|caller| Some((*caller, self.polls.get(caller)?)))
    }

    /// The first poll after `after` of a worker that serves `path`.
    pub(super) fn next_poll_at(&self, path: &AbsPath, after: Option<Caller>) -> Option<Caller> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sets = path.ancestors_from_root().filter_map(|p| self.by_path.get(p));
        sets.filter_map(|set| set.range((from, Bound::Unbounded)).next().copied()).min()
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
    at_path: &mut HashMap<Vec<u8>, BTreeSet<Caller>>,
    paths: &[AbsPath],
    caller: Caller,
) {
    for path in paths {
        if let Some(set) = at_path.get_mut(path.as_bytes()) {
            set.remove(&caller);
            if set.is_empty() {
                at_path.remove(path.as_bytes());
            }
        }
    }
}
