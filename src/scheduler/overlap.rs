//! Syncs with overlapping paths run one after the other, in the order of submission.
//!
//! Paths are compared by whole components. Two syncs conflict if the destination of one equals,
//! contains or lies in the source or destination of the other, unless the two are known to be
//! different storages; two syncs that read the same source do not conflict. The later one stays
//! `QUEUED`. It waits only for earlier ones, so a cycle cannot occur.
//!
//! A sync *reserves its paths* while it is active, also while it is queued or paused: it continues
//! later, and another sync would see half of its work. An ended sync reserves its destination until
//! its revoked leases have ended: until then a worker that was not informed may still write. A dry
//! run writes nothing and blocks no other sync, but it waits like any other.

use super::place::{Place, may_overlap};
use super::storage_types::StorageNo;
use super::sync_job::SyncJob;
use super::{Now, State};
use crate::wire::sync::{SyncRequest, SyncState};
use crate::wire::{SyncNo, TaskId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct PathReservations {
    /// The syncs that reserve their paths.
    holders: BTreeSet<SyncNo>,
    /// Each waiting sync and the first one that it waits for.
    waiting_for: BTreeMap<SyncNo, SyncNo>,
}

/// What keeps a sync from running beside an earlier one.
#[derive(Debug)]
pub(super) struct Conflict<'a> {
    /// What the earlier one does …
    verb: &'static str,
    /// … with this place,
    held: Place<'a>,
    /// which this place of the later one overlaps.
    wanted: Place<'a>,
}

impl SyncJob {
    /// Whether it reserves its paths.
    fn holds_paths(&self, now: Now) -> bool {
        let revoked = self.revoked_leases.as_ref();
        self.is_active() || revoked.is_some_and(|leases| leases.until_ms > now.mono_ms)
    }

    /// Whether it requests the same as `other`, apart from the id.
    fn is_same_request(&self, other: &SyncJob) -> bool {
        let (ours, theirs) = (&self.request, &other.request);
        let sides = |request: &SyncRequest| {
            let (from, to) = (request.source_path.clone(), request.destination_path.clone());
            (from, request.source_workers.clone(), to, request.destination_workers.clone())
        };
        sides(ours) == sides(theirs)
            && (&ours.options, ours.chunk_size_mb) == (&theirs.options, theirs.chunk_size_mb)
            && self.filter == other.filter
            && self.name_list_digest == other.name_list_digest
    }
}

impl State {
    /// The conflict that keeps `later` from running beside `earlier`.
    pub(super) fn find_conflict<'a>(
        &self,
        earlier: &'a SyncJob,
        later: &'a SyncJob,
    ) -> Option<Conflict<'a>> {
        if earlier.is_dry_run() {
            return None;
        }
        let mirror = |sync: &SyncJob| sync.request.options.delete.is_some();
        if later.request.options.allow_overlap && !mirror(earlier) && !mirror(later) {
            return None;
        }
        let storages = &self.workers.storages;
        let conflict = |verb, held: Place<'a>, wanted: Place<'a>| {
            may_overlap(storages, held, wanted).then_some(Conflict { verb, held, wanted })
        };
        let read = earlier.is_active() && !later.is_dry_run();
        conflict("writes to", earlier.destination(), later.source())
            .or_else(|| conflict("writes to", earlier.destination(), later.destination()))
            .or_else(|| read.then(|| conflict("reads", earlier.source(), later.destination()))?)
    }

    pub(super) fn is_waiting_for_overlap(&self, no: SyncNo) -> bool {
        self.path_reservations.waiting_for.contains_key(&no)
    }

    /// Whether another sync writes where an ended one wrote. What is left to be removed there are part files, and the
    /// other one may be continuing them.
    pub(super) fn is_destination_in_use(&self, ended: &SyncJob) -> bool {
        let holders = self.path_reservations.holders.iter().filter_map(|no| self.syncs.get(*no));
        let mut writers = holders.filter(|sync| {
            sync.no != ended.no && sync.state == SyncState::Progress && !sync.is_dry_run()
        });
        let storages = &self.workers.storages;
        writers.any(|sync| may_overlap(storages, sync.destination(), ended.destination()))
    }

    pub(super) fn overlap_reason(&self, sync: &SyncJob) -> Option<String> {
        let earlier = self.syncs.get(*self.path_reservations.waiting_for.get(&sync.no)?)?;
        let Conflict { verb, held, wanted } = self.find_conflict(earlier, sync)?;
        let (id, path) = (&earlier.id, held.path);
        let state = earlier.displayed_state();
        let more = match state {
            SyncState::Progress => String::new(),
            _ if earlier.is_active() => format!(" and is {}", state.as_str()),
            _ => format!(
                " until its workers have stopped, at most {} s (it is {})",
                self.settings.lease_ms.div_ceil(1000),
                state.as_str()
            ),
        };
        let storages = held.storage.zip(wanted.storage).filter(|(held, wanted)| held != wanted);
        let why = storages.map_or_else(String::new, |(held, wanted)| {
            format!(
                ": {} and {} may be one storage, which is known when a worker of each is active",
                self.workers.describe_storage(held),
                self.workers.describe_storage(wanted)
            )
        });
        Some(format!("waits for sync {id}, which {verb} {path}{more}{why}"))
    }

    /// A note for the submit: the same sync is active, or this one waits.
    pub(super) fn describe_overlap(&self, no: SyncNo) -> Option<String> {
        let sync = self.syncs.get(no)?;
        let earlier =
            self.path_reservations.holders.range(..no).filter_map(|no| self.syncs.get(*no));
        let same = earlier.filter(|other| other.is_active()).find(|o| o.is_same_request(sync));
        match same {
            Some(same) => Some(format!(
                "same as sync {}, which is {}",
                same.id,
                same.displayed_state().as_str()
            )),
            None => self.overlap_reason(sync),
        }
    }

    /// Reserves the paths of a submitted or loaded sync; earlier ones are reserved already.
    pub(super) fn reserve_paths(&mut self, no: SyncNo, now: Now) {
        if self.syncs.get(no).is_some_and(|sync| sync.holds_paths(now)) {
            self.path_reservations.holders.insert(no);
            self.update_blocker(no);
        }
    }

    /// Finds the first sync that a queued sync has to wait for.
    pub(super) fn update_blocker(&mut self, no: SyncNo) {
        self.path_reservations.waiting_for.remove(&no);
        let Some(sync) = self.syncs.get(no).filter(|s| s.state == SyncState::Queued) else {
            return;
        };
        let mut earlier =
            self.path_reservations.holders.range(..no).filter_map(|no| self.syncs.get(*no));
        if let Some(found) = earlier.find(|earlier| self.find_conflict(earlier, sync).is_some()) {
            self.path_reservations.waiting_for.insert(no, found.no);
        }
    }

    /// Finds again what waiting syncs wait for, after what is known of storages has changed: they may be different.
    pub(super) fn update_blockers(&mut self) {
        let syncs = |no: SyncNo, on: SyncNo| self.syncs.get(on).zip(self.syncs.get(no));
        let waits = |no: SyncNo, on: SyncNo| {
            syncs(no, on).is_some_and(|(on, no)| self.find_conflict(on, no).is_some())
        };
        let all = self.path_reservations.waiting_for.iter();
        let over: Vec<SyncNo> =
            all.filter(|(no, on)| !waits(**no, **on)).map(|(no, _)| *no).collect();
        for no in over {
            self.update_blocker(no);
            self.outbox.request_dispatch();
        }
    }

    /// … and what the queued syncs that use some storages wait for: these may be those of other syncs. Of a group its
    /// destinations wait.
    pub(super) fn update_blockers_at(&mut self, storages: &BTreeSet<StorageNo>) {
        let uses = |sync: &&SyncJob| {
            let mut sides = [sync.source_storage, sync.destination_storage].into_iter().flatten();
            sync.state == SyncState::Queued
                && !sync.is_group()
                && sides.any(|no| storages.contains(&no))
        };
        let all: Vec<SyncNo> = self.syncs.values().filter(uses).map(|sync| sync.no).collect();
        all.into_iter().for_each(|no| self.update_blocker(no));
    }

    /// Releases the paths of a sync that has ended: others may start.
    pub(super) fn release_paths(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return self.remove_reservation(no) };
        if sync.is_active() {
            return;
        }
        let holds_paths = sync.holds_paths(now);
        if !holds_paths && sync.revoked_leases.take().is_some() {
            self.mark_changed(no, now);
        }
        self.path_reservations.waiting_for.remove(&no);
        match holds_paths {
            // Its reads do not count any more, and the reason names the new state.
            true => self.update_waiting_syncs(no),
            false => self.remove_reservation(no),
        }
    }

    fn remove_reservation(&mut self, no: SyncNo) {
        self.path_reservations.waiting_for.remove(&no);
        if self.path_reservations.holders.remove(&no) {
            self.update_waiting_syncs(no);
            // What ended syncs left there can be removed now.
            self.outbox.request_dispatch();
        }
    }

    fn update_waiting_syncs(&mut self, no: SyncNo) {
        let waits = self.path_reservations.waiting_for.iter();
        let waiting: Vec<SyncNo> = waits.filter(|(_, on)| **on == no).map(|(no, _)| *no).collect();
        for later in waiting {
            self.update_blocker(later);
            self.outbox.request_dispatch();
        }
    }

    /// Records that a lease was revoked without a report: the worker may write until the lease
    /// ends.
    pub(super) fn record_revoked_lease(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(id).filter(|task| task.writes_destination()) else {
            return;
        };
        let Some(until_ms) = task.lease().map(|lease| lease.deadline_ms) else { return };
        // Clean-up of an ended sync conflicts with nothing.
        let holds = self.path_reservations.holders.contains(&task.sync);
        let Some(sync) = self.syncs.get_mut(task.sync).filter(|_| holds) else { return };
        if until_ms > now.mono_ms && !sync.is_dry_run() {
            let lingering = sync.revoked_leases.get_or_insert_default();
            lingering.until_ms = lingering.until_ms.max(until_ms);
        }
    }

    /// Releases the paths of ended syncs after the end of their revoked leases.
    pub(super) fn release_ended_syncs(&mut self, now: Now) {
        let holders = self.path_reservations.holders.iter().filter_map(|no| self.syncs.get(*no));
        let over: Vec<SyncNo> = holders.filter(|s| !s.holds_paths(now)).map(|s| s.no).collect();
        for no in over {
            self.release_paths(no, now);
            self.outbox.mark_dirty(no);
        }
    }
}
