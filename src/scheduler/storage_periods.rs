//! Whether two local disks are known to be two.
//!
//! A file system such as ext4 has one kernel at a time, so views of it under two kernels that run at the same time are two
//! storages. But a host that reboots has another kernel and the same disk. So it counts when each view was reported: the
//! times of two kernels that ran at once overlap. The clock counts placements of views, so it stands still while nothing
//! changes, and reports need not be stored.

use super::storage_table::StorageTable;
use super::storage_types::{Period, Storage, StorageNo, View, is_same_directory};
use crate::wire::{AbsPath, WorkerId};
use std::collections::BTreeSet;

/// Maximum number of [periods](View::periods) of a view: a silent worker of a disk that looks alike may miss so many
/// restarts of a host.
const MAX_PERIODS: usize = 8;

impl StorageTable {
    /// Whether one of two storages, each on a file system that only one kernel has, may be the other one after a restart
    /// of the host: they look alike, and their kernels were not seen at the same time.
    pub(super) fn may_be_restarted(&self, a: &Storage, b: &Storage) -> bool {
        let first = |storage| self.exclusive_views(storage).find_map(View::fingerprint);
        let looks_alike = first(a).zip(first(b)).is_some_and(|(a, b)| is_same_directory(a, b));
        // Also the first report of a kernel that was left may have been late.
        let running = |storage| self.exclusive_views(storage).filter(|view| !view.is_kernel_left);
        looks_alike && !running(a).any(|a| running(b).any(|b| a.was_seen_beside(b)))
    }

    fn exclusive_views<'a>(&'a self, storage: &'a Storage) -> impl Iterator<Item = &'a View> {
        storage.exclusive.iter().filter_map(|worker| self.view(worker, &storage.path))
    }

    /// Begins a [period](View::periods) of a placed view. `before` is what it was until then.
    pub(super) fn begin_period(
        &mut self,
        worker: &WorkerId,
        root: &AbsPath,
        before: &View,
        touched: &mut BTreeSet<StorageNo>,
    ) {
        let Some(view) = self.view(worker, root) else { return };
        let (storage, boot) = (view.storage, view.boot_id.clone());
        if view.exclusive_root().is_none() {
            return;
        }
        if before.boot_id != boot {
            self.mark_kernel_left(root, before.boot_id.as_deref(), boot.as_deref(), touched);
        }
        let Some(same) = self.by_path.get_mut(root) else { return };
        same.placements += 1;
        let now = same.placements;
        let is_left = before.is_kernel_left && before.boot_id == boot;
        let stays = before.is_linked && before.storage == storage;
        let mut periods = if stays { before.periods.clone() } else { Vec::new() };
        match periods.last_mut().filter(|_| before.boot_id == boot) {
            Some(period) if !is_left => period.last = now,
            Some(_) => {}
            None => periods.push(Period { first: now, last: now }),
        }
        let surplus = periods.len().saturating_sub(MAX_PERIODS);
        periods.drain(..surplus);
        if let Some(view) = self.view_mut(worker, root) {
            (view.periods, view.is_kernel_left) = (periods, is_left);
        }
        storage.into_iter().for_each(|no| self.update_shareable(no));
    }

    /// A worker reports a path under the kernel `now` instead of `then`. Storages of kernels that may have ended are
    /// compared like any other.
    fn mark_kernel_left(
        &mut self,
        root: &AbsPath,
        then: Option<&str>,
        now: Option<&str>,
        touched: &mut BTreeSet<StorageNo>,
    ) {
        let all = self.by_path.get(root).into_iter().flat_map(|same| same.storages.iter());
        let all = all.filter_map(|no| self.storages.get(no)).flat_map(|one| one.exclusive.iter());
        for worker in all.cloned().collect::<Vec<_>>() {
            let Some(view) = self.view_mut(&worker, root) else { continue };
            let boot = view.boot_id.as_deref();
            let is_left = boot == then || boot != now && view.is_kernel_left;
            if std::mem::replace(&mut view.is_kernel_left, is_left) == is_left {
                continue;
            }
            let storage = view.storage;
            self.mark_view_unsaved(&worker, root);
            touched.extend(storage);
            storage.into_iter().for_each(|no| self.update_shareable(no));
        }
    }

    /// Keeps the list of storages of which any other may be the same in step with the views of one.
    pub(super) fn update_shareable(&mut self, no: StorageNo) {
        let Some(storage) = self.storages.get(&no) else { return };
        let is_shareable = storage.exclusive.is_empty()
            || self.exclusive_views(storage).any(|v| v.is_kernel_left || v.is_self_reported);
        let Some(same) = self.by_path.get_mut(&storage.path) else { return };
        match is_shareable {
            true => same.shareable.insert(no),
            false => same.shareable.remove(&no),
        };
    }

    /// Extends the last [period](View::periods) of a view that is reported unchanged.
    pub(super) fn extend_period(&mut self, worker: &WorkerId, root: &AbsPath) {
        let now = self.by_path.get(root).map_or(0, |same| same.placements);
        let Some(view) = self.view_mut(worker, root).filter(|view| !view.is_kernel_left) else {
            return;
        };
        let Some(period) = view.periods.last_mut().filter(|period| period.last < now) else {
            return;
        };
        period.last = now;
        self.mark_view_unsaved(worker, root);
        self.version += 1;
    }
}
