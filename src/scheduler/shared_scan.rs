//! One scan for several destinations. The scan tasks belong to the group, and what they find is added to each destination
//! that follows them. Batches and ranges of several destinations are units ([`relay_table`](super::relay_table)).
//!
//! ```text
//! it copies to more than one destination  | they follow the scans of the group
//! the scans of the group end              | each destination continues with its tasks
//! a destination lags, or is unreachable   | it gets the rest of the scans as tasks of its own
//! a destination restarts                  | it scans on its own
//! the last follower leaves                | the scans of the group are removed
//! ```
//!
//! The scans wait while the windows of half of the followers are full. One that is slower gets work up to
//! [`MAX_LAG`] windows; then it leaves, so that it holds up nobody and the memory is bounded.

use super::pause::Pause;
use super::sync_job::{ScanOwner, SyncJob};
use super::task::Task;
use super::work_items::FoundLargeFile;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::task::{TaskSpec, WorkItem};
use crate::wire::{SyncNo, TaskId};

/// The least content of a unit, if the request does not ask for less.
const MIN_SHARED_CHUNK_MIB: u32 = 8;

/// A unit has at most this part of the content that was found before it.
const UNITS_OF_FOUND_CONTENT: u64 = 256;

/// A destination with so many full windows of tasks leaves the scans of its group.
const MAX_LAG: f64 = 4.0;

impl State {
    /// The syncs that get what a scan of this sync finds: of a group its followers.
    pub(super) fn scan_receivers(&self, no: SyncNo) -> Vec<SyncNo> {
        match self.syncs.get(no) {
            Some(sync) if sync.is_group() => {
                self.syncs.followers_of(no).map(|one| one.no).collect()
            }
            Some(_) => vec![no],
            None => Vec::new(),
        }
    }

    /// Whether a worker can write what a sync copies; of a group to one of the destinations that follow its scans.
    pub(super) fn has_writer(&self, sync: &SyncJob) -> bool {
        let can_write =
            |one: &SyncJob| self.capable_workers(one, one.destination()).next().is_some();
        if !sync.is_group() {
            return can_write(sync);
        }
        let mut followers = self.syncs.followers_of(sync.no);
        followers.any(|one| !self.is_waiting_for_overlap(one.no) && can_write(one))
    }

    /// The `chunk_size_mb` of a scan of a group. A destination sends on what it has completely, so the last unit takes as
    /// many turns as there are destinations in a row: units are small at first, and larger the more there is to copy.
    pub(super) fn shared_chunk_mib(&self, group: &SyncJob) -> u32 {
        let found = self.syncs.followers_of(group.no).map(|one| one.counters.bytes_total).max();
        let wanted = (found.unwrap_or(0) / UNITS_OF_FOUND_CONTENT) >> 20;
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).max(MIN_SHARED_CHUNK_MIB);
        wanted.min(group.request.chunk_size_mb)
    }

    /// Adds what a scan found to the syncs that follow it.
    pub(super) fn add_found_item(&mut self, scanned: SyncNo, receivers: &[SyncNo], item: WorkItem) {
        if self.syncs.get(scanned).is_some_and(SyncJob::is_group) {
            return self.add_shared_item(scanned, receivers, item);
        }
        self.add_work_item(scanned, item, None);
    }

    fn add_shared_item(&mut self, group: SyncNo, receivers: &[SyncNo], item: WorkItem) {
        match item {
            WorkItem::Copy { manifest, files, dirs, bytes } => {
                let manifest = self.store_shared_manifest(group, manifest.0);
                let unit = self.relays.add_batch(group);
                for no in receivers {
                    self.count_found(*no, files, dirs, bytes);
                    let spec = TaskSpec::Copy { files, dirs, bytes };
                    let added = self.add_task_sharing(Task::new(*no, spec), &manifest);
                    self.join_unit(added, unit);
                }
            }
            WorkItem::Large { manifest, size, range_length, hardlink_group } => {
                let manifest = self.store_shared_manifest(group, manifest.0);
                let shared = self.relays.add_file(group);
                let found = FoundLargeFile { size, range_length, hardlink_group, restarts: 0 };
                for no in receivers {
                    self.count_found(*no, 1, 0, size);
                    self.add_large_file_sharing(*no, &manifest, found, shared);
                }
                self.relays.remove_unused_file(shared);
            }
        }
    }

    /// How full the windows are that scans of a sync fill: its own, or those of half of the followers of a group.
    /// Followers that can't work at present do not count, unless all wait for their storage: such a one resumes with a
    /// task, which a scan finds for it.
    pub(super) fn scan_window_fill(&self, sync: &SyncJob) -> f64 {
        if !sync.is_group() {
            return self.window_fill(sync);
        }
        let works = |one: &&SyncJob| {
            let is_served = self.workers.accepting(one.destination()).next().is_some();
            is_served && !self.is_waiting_for_overlap(one.no)
        };
        let fills = |is_able: fn(&SyncJob) -> bool| -> Vec<f64> {
            let able = self.syncs.followers_of(sync.no).filter(|one| is_able(one));
            able.filter(works).map(|one| self.window_fill(one)).collect()
        };
        let mut fills = match fills(|one| one.pause.is_none()) {
            none if none.is_empty() => fills(|one| one.pause != Some(Pause::Operator)),
            some => some,
        };
        fills.sort_unstable_by(f64::total_cmp);
        // Without any there is nothing to scan for.
        fills.get(fills.len().saturating_sub(1) / 2).copied().unwrap_or(f64::INFINITY)
    }

    pub(super) fn has_window_for_scans(&self, sync: &SyncJob) -> bool {
        self.scan_window_fill(sync) < 0.5
    }

    /// Detaches the followers that lag.
    pub(super) fn detach_laggards(&mut self, group: SyncNo, now: Now) {
        if !self.syncs.get(group).is_some_and(SyncJob::is_group) {
            return;
        }
        for no in self.scan_receivers(group) {
            let lags = self.syncs.get(no).is_some_and(|one| self.window_fill(one) >= MAX_LAG);
            if lags {
                self.detach_follower(group, no, now);
            }
        }
    }

    /// A follower gets the rest of the scans of its group as tasks of its own.
    fn detach_follower(&mut self, group: SyncNo, no: SyncNo, now: Now) {
        let left = self.tasks.of_sync(group).filter(|task| task.is_scan());
        let left: Vec<(TaskSpec, Option<String>)> =
            left.map(|task| (task.spec.clone(), task.manifest_key.clone())).collect();
        for (spec, manifest_key) in left {
            self.add_task(Task { manifest_key, ..Task::new(no, spec) });
        }
        if let Some(one) = self.syncs.get_mut(no) {
            tracing::info!(sync = %one.id, "it lags behind other destinations, and scans the rest on its own");
            one.scan_owner = ScanOwner::GroupBefore;
        }
        self.outbox.mark_dirty(group);
        self.mark_changed(no, now);
    }

    /// Ends the scans of a group that nobody follows any more, or the following of scans that have ended.
    pub(super) fn update_group_scans(&mut self, group: SyncNo, now: Now) {
        let followers = self.scan_receivers(group);
        let scans: Vec<TaskId> = self.tasks.ids_of_sync(group);
        if followers.is_empty() {
            scans.into_iter().for_each(|id| drop(self.remove_task(id)));
        } else if scans.is_empty() {
            for no in followers {
                if let Some(one) = self.syncs.get_mut(no) {
                    one.scan_owner = ScanOwner::GroupBefore;
                }
                self.mark_changed(no, now);
            }
        }
    }

    /// The followers have started with the first scan of their group, except those that wait for another sync.
    pub(super) fn start_followers(&mut self, group: SyncNo, now: Now) {
        if !self.syncs.get(group).is_some_and(SyncJob::is_group) {
            return;
        }
        for no in self.scan_receivers(group) {
            let waits = self.is_waiting_for_overlap(no);
            let queued = self.syncs.get_mut(no).filter(|one| one.state == SyncState::Queued);
            if let Some(one) = queued.filter(|_| !waits) {
                one.state = SyncState::Progress;
                one.started_ms.get_or_insert(now.wall_ms);
                self.mark_changed(no, now);
            }
        }
    }
}
