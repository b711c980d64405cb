//! Syncs whose paths overlap run one after the other, in the order in which they were submitted.
//!
//! A storage is identified by path only, so paths are compared by whole components, whatever worker holds them.
//! Two syncs conflict where the destination of one equals, contains or lies in the source or destination of the
//! other; two that read the same source do not. The later one stays `QUEUED`. It waits only for earlier ones, so
//! a cycle cannot arise.
//!
//! A sync *holds its paths* while it is active, also while it is queued or paused: it continues where it stopped, and a
//! later sync would see half of its work. A sync that has ended holds its destination until the leases are over that
//! were revoked: until then a worker that was not informed may still write. A dry run writes nothing and blocks
//! no other sync, but it waits like any other.

use super::sync::Sync;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::{AbsPath, SyncNo, TaskId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overlaps {
    /// The syncs that hold their paths.
    holders: BTreeSet<SyncNo>,
    /// Each sync that waits, and the first one for which it waits.
    waits: BTreeMap<SyncNo, SyncNo>,
}

/// Leases of a sync were revoked, and the workers may not know yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Lingering {
    /// The end of the last of these leases, on the scheduler's clock. Not stored: a restarted master waits for the
    /// length of a lease.
    #[serde(skip)]
    pub(super) until_ms: u64,
}

fn overlap(a: &AbsPath, b: &AbsPath) -> bool {
    a.contains(b) || b.contains(a)
}

/// Why `later` must not run beside `earlier`: what `earlier` does with which of its paths.
pub(super) fn conflict<'a>(earlier: &'a Sync, later: &Sync) -> Option<(&'static str, &'a AbsPath)> {
    if earlier.dry_run() {
        return None;
    }
    let mirror = |sync: &Sync| sync.request.options.delete.is_some();
    if later.request.options.allow_overlap && !mirror(earlier) && !mirror(later) {
        return None;
    }
    let (held, wanted) = (&earlier.request, &later.request);
    let written = &held.destination_path;
    if overlap(written, &wanted.source_path) || overlap(written, &wanted.destination_path) {
        return Some(("writes to", written));
    }
    let read = earlier.is_active() && !later.dry_run();
    (read && overlap(&held.source_path, &wanted.destination_path))
        .then_some(("reads", &held.source_path))
}

impl Sync {
    /// Whether it asks for the same as `other`, which may have another id.
    fn is_same_request(&self, other: &Sync) -> bool {
        let (ours, theirs) = (&self.request, &other.request);
        (&ours.source_path, &ours.destination_path, &ours.options, ours.chunk_size_mb)
            == (
                &theirs.source_path,
                &theirs.destination_path,
                &theirs.options,
                theirs.chunk_size_mb,
            )
            && self.filter == other.filter
            && self.list_digest == other.list_digest
    }

    /// The state that operators see.
    pub(super) fn shown_state(&self) -> SyncState {
        if self.is_paused() { SyncState::Paused } else { self.state }
    }
}

impl State {
    /// Whether a sync waits for another one.
    pub(super) fn waits_for_overlap(&self, no: SyncNo) -> bool {
        self.overlaps.waits.contains_key(&no)
    }

    /// Why a sync waits for another one.
    pub(super) fn overlap_reason(&self, sync: &Sync) -> Option<String> {
        let earlier = self.syncs.get(self.overlaps.waits.get(&sync.no)?)?;
        let (verb, path) = conflict(earlier, sync)?;
        let id = &earlier.id;
        let state = earlier.shown_state();
        let more = match state {
            SyncState::Progress => String::new(),
            _ if earlier.is_active() => format!(" and is {}", state.as_str()),
            _ => format!(
                " until its workers have stopped, at most {} s (it is {})",
                self.settings.lease_ms.div_ceil(1000),
                state.as_str()
            ),
        };
        Some(format!("waits for sync {id}, which {verb} {path}{more}"))
    }

    /// What an operator should know of a sync that was just submitted: that the same one is active, or that it waits.
    pub(super) fn submit_note(&self, no: SyncNo) -> Option<String> {
        let sync = self.syncs.get(&no)?;
        let earlier = self.overlaps.holders.range(..no).filter_map(|no| self.syncs.get(no));
        let same = earlier.filter(|other| other.is_active()).find(|o| o.is_same_request(sync));
        match same {
            Some(same) => {
                Some(format!("same as sync {}, which is {}", same.id, same.shown_state().as_str()))
            }
            None => self.overlap_reason(sync),
        }
    }

    /// Registers a sync that was submitted or loaded; earlier ones are registered already.
    pub(super) fn register_paths(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get(&no) else { return };
        if !self.holds_paths(sync, None) {
            return;
        }
        self.overlaps.holders.insert(no);
        self.find_obstacle(no);
    }

    /// Whether a sync keeps others from its paths; without a time: whether it ever did and was not released.
    fn holds_paths(&self, sync: &Sync, now: Option<Now>) -> bool {
        let over = |lingering: &Lingering| now.is_some_and(|now| lingering.until_ms <= now.mono_ms);
        sync.is_active() || sync.lingering.as_ref().is_some_and(|lingering| !over(lingering))
    }

    /// Finds the first sync for which a sync has to wait. One that has begun waits for none.
    fn find_obstacle(&mut self, no: SyncNo) {
        self.overlaps.waits.remove(&no);
        let Some(sync) = self.syncs.get(&no).filter(|s| s.state == SyncState::Queued) else {
            return;
        };
        let mut earlier = self.overlaps.holders.range(..no).filter_map(|no| self.syncs.get(no));
        if let Some(found) = earlier.find(|earlier| conflict(earlier, sync).is_some()) {
            self.overlaps.waits.insert(no, found.no);
        }
    }

    /// Releases the paths of a sync that holds them no longer: others may begin.
    pub(super) fn release_paths(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return self.forget_paths(no) };
        if sync.is_active() {
            return;
        }
        if sync.lingering.as_ref().is_some_and(|lingering| lingering.until_ms <= now.mono_ms) {
            sync.lingering = None;
            self.changed(no, now);
        }
        self.overlaps.waits.remove(&no);
        match self.syncs.get(&no).is_some_and(|sync| self.holds_paths(sync, Some(now))) {
            // Its reads count no longer, and the reason names the new state.
            true => self.find_other_obstacles(no),
            false => self.forget_paths(no),
        }
    }

    fn forget_paths(&mut self, no: SyncNo) {
        self.overlaps.waits.remove(&no);
        if self.overlaps.holders.remove(&no) {
            self.find_other_obstacles(no);
        }
    }

    fn find_other_obstacles(&mut self, no: SyncNo) {
        let waits = self.overlaps.waits.iter();
        let waiting: Vec<SyncNo> = waits.filter(|(_, on)| **on == no).map(|(no, _)| *no).collect();
        for later in waiting {
            self.find_obstacle(later);
            self.wake = true;
        }
    }

    /// Whether a sync that has ended still holds its destination.
    pub(super) fn is_lingering(&self, no: SyncNo) -> bool {
        self.syncs.get(&no).is_some_and(|sync| !sync.is_active() && sync.lingering.is_some())
    }

    /// Notes that a task is taken from its worker without a report: the worker may write until its lease ends.
    pub(super) fn note_revoked(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|task| task.writes()) else { return };
        let Some(until_ms) = task.lease().map(|lease| lease.deadline_ms) else { return };
        // What an ended sync cleans up is its own.
        let holds = self.overlaps.holders.contains(&task.sync);
        let Some(sync) = self.syncs.get_mut(&task.sync).filter(|_| holds) else { return };
        if until_ms > now.mono_ms && !sync.dry_run() {
            let lingering = sync.lingering.get_or_insert_default();
            lingering.until_ms = lingering.until_ms.max(until_ms);
        }
    }

    /// Releases the paths of ended syncs whose revoked leases are over.
    pub(super) fn release_ended(&mut self, now: Now) {
        let holders = self.overlaps.holders.iter().filter_map(|no| self.syncs.get(no));
        let over: Vec<SyncNo> =
            holders.filter(|s| !self.holds_paths(s, Some(now))).map(|s| s.no).collect();
        for no in over {
            self.release_paths(no, now);
            self.touched.insert(no);
        }
    }
}
