//! Polls that wait for work, found by what their workers hold: when a task turns up, only polls that may
//! take it are looked at, however many wait.

use super::{Caller, WaitingPoll};
use crate::wire::{AbsPath, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PollQueue {
    polls: BTreeMap<Caller, WaitingPoll>,
    /// When each gets an answer without work.
    deadlines: BTreeSet<(u64, Caller)>,
    by_worker: HashMap<WorkerId, WorkerPolls>,
    /// By a storage path of the worker.
    by_path: HashMap<Vec<u8>, BTreeSet<Caller>>,
}

/// The polls of one worker.
#[derive(Debug)]
struct WorkerPolls {
    /// Under which they are filed.
    paths: Vec<AbsPath>,
    callers: BTreeSet<Caller>,
}

impl PollQueue {
    /// Adds a poll of a worker that holds `paths`.
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

    /// Takes a poll out.
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

    /// A worker holds `paths` from now on.
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

    /// A poll.
    pub(super) fn get(&self, caller: Caller) -> Option<&WaitingPoll> {
        self.polls.get(&caller)
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.polls.is_empty()
    }

    /// The callers that worker has, in the order in which they came.
    pub(super) fn callers_of(&self, worker: &WorkerId) -> impl Iterator<Item = Caller> + use<'_> {
        self.by_worker.get(worker).into_iter().flat_map(|of| of.callers.iter().copied())
    }

    /// The polls of workers that hold `path`; one that holds it in two ways may come twice.
    pub(super) fn polls_at<'a>(
        &'a self,
        path: &'a AbsPath,
    ) -> impl Iterator<Item = (Caller, &'a WaitingPoll)> {
        let sets = path.ancestors_from_root().filter_map(|p| self.by_path.get(p));
        let callers = sets.flat_map(|set| set.iter());
        callers.filter_map(|caller| Some((*caller, self.polls.get(caller)?)))
    }

    /// The poll of a worker that holds `path` that came first behind `after`.
    pub(super) fn next_poll_at(&self, path: &AbsPath, after: Option<Caller>) -> Option<Caller> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sets = path.ancestors_from_root().filter_map(|p| self.by_path.get(p));
        sets.filter_map(|set| set.range((from, Bound::Unbounded)).next().copied()).min()
    }

    /// Takes out the polls that wait no longer than until `now_ms`, in the order in which they came.
    pub(super) fn take_expired(&mut self, now_ms: u64) -> Vec<Caller> {
        let last = (now_ms, Caller(u64::MAX));
        let mut ended: Vec<Caller> =
            self.deadlines.range(..=last).map(|(_, caller)| *caller).collect();
        ended.sort_unstable();
        ended.iter().for_each(|caller| drop(self.remove(*caller)));
        ended
    }

    /// When the next one ends.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|(at, _)| *at)
    }
}

fn remove_from_index(
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
