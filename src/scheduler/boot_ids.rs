//! The workers of a sync, each with the boot id of its kernel and the id of its open storage root
//! at the time when the sync first used it. There may be thousands, so each has a record of its
//! own, and only changed ones are written.

use crate::wire::WorkerId;
use crate::wire::worker::{ROOT_SEPARATOR, boot_and_root};
use std::collections::{BTreeMap, BTreeSet};

/// Takes the place of a root id after the worker had several roots open: no single root has all
/// that was written.
const MULTIPLE_ROOTS: &str = "several";

pub(super) fn boot_part(place: &str) -> &str {
    place.split_once(ROOT_SEPARATOR).map_or(place, |(boot, _)| boot)
}

fn root_part(place: &str) -> Option<&str> {
    place.split_once(ROOT_SEPARATOR).map(|(_, root)| root)
}

/// Whether `place` names the only root that was used under this boot.
pub(super) fn is_only_root_under(place: &str, boot: &str) -> bool {
    root_part(place).is_some_and(|root| boot_part(place) == boot && root != MULTIPLE_ROOTS)
}

/// Whether `place` names a root, and not only a kernel.
pub(super) fn names_root(place: &str) -> bool {
    root_part(place).is_some()
}

/// Whether one kernel numbered both roots, with different numbers. Another kernel numbers its file
/// systems differently.
pub(super) fn is_different_root(then: &str, now: &str) -> bool {
    let roots = root_part(then).zip(root_part(now));
    boot_part(then) == boot_part(now) && roots.is_some_and(|(then, now)| then != now)
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct BootIds {
    by_worker: BTreeMap<WorkerId, Option<String>>,
    /// Not yet written to the store.
    unsaved: BTreeSet<WorkerId>,
}

impl BootIds {
    /// `None`: the worker is not listed. `Some(None)`: it reported no boot id.
    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Option<String>> {
        self.by_worker.get(worker)
    }

    /// Adds a worker. False: it was listed already; its first boot id is kept.
    pub(super) fn add(&mut self, worker: &WorkerId, boot: Option<&String>) -> bool {
        if self.by_worker.contains_key(worker) {
            return false;
        }
        self.by_worker.insert(worker.clone(), boot.cloned());
        self.unsaved.insert(worker.clone());
        true
    }

    /// Marks a worker as having used several roots, if it was listed with another root than the one
    /// in `place`. True: the entry changed.
    pub(super) fn record_root_change(&mut self, worker: &WorkerId, place: &str) -> bool {
        let Some(Some(then)) = self.by_worker.get_mut(worker) else { return false };
        let several = boot_and_root(boot_part(then), MULTIPLE_ROOTS);
        if *then == several || !is_different_root(then, place) {
            return false;
        }
        *then = several;
        self.unsaved.insert(worker.clone());
        true
    }

    pub(super) fn remove(&mut self, worker: &WorkerId) {
        if self.by_worker.remove(worker).is_some() {
            self.unsaved.insert(worker.clone());
        }
    }

    pub(super) fn clear(&mut self) {
        self.unsaved.extend(std::mem::take(&mut self.by_worker).into_keys());
    }

    /// Adds a stored entry.
    pub(super) fn restore(&mut self, worker: WorkerId, boot: Option<String>) {
        self.by_worker.insert(worker, boot);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Option<String>)> {
        self.by_worker.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_worker.is_empty()
    }

    /// Returns the workers with records to write, and marks them as written.
    pub(super) fn take_unsaved(&mut self) -> BTreeSet<WorkerId> {
        std::mem::take(&mut self.unsaved)
    }
}
