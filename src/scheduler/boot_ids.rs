//! Workers of a sync, each with the place of its writes when it was first named: the boot of its kernel, and the id of
//! the storage root that it had open. There may be thousands, so each is a record of its own in the store, and only
//! those that changed are written.

use crate::wire::WorkerId;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};

/// Between the boot and the id of the root; neither has it.
pub(super) const ROOT_SEPARATOR: char = '#';

/// In the place of a root's id: the worker has had several roots open since the sync first named it. None is known to
/// have all that was written.
const MULTIPLE_ROOTS: &str = "several";

/// The boot of a place.
pub(super) fn boot_part(place: &str) -> &str {
    place.split_once(ROOT_SEPARATOR).map_or(place, |(boot, _)| boot)
}

/// The id of the root of a place, where the worker named it.
pub(super) fn root_part(place: &str) -> Option<&str> {
    place.split_once(ROOT_SEPARATOR).map(|(_, root)| root)
}

/// The id of the root of a place, where it is the only one that was written to under a kernel of this boot.
pub(super) fn unambiguous_root<'a>(place: &'a str, boot: &str) -> Option<&'a str> {
    root_part(place).filter(|root| boot_part(place) == boot && *root != MULTIPLE_ROOTS)
}

/// Whether two places are roots that one kernel has numbered, and not the same one. Another kernel numbers its file
/// systems anew.
pub(super) fn is_different_root(then: &str, now: &str) -> bool {
    let roots = root_part(then).zip(root_part(now));
    boot_part(then) == boot_part(now) && roots.is_some_and(|(then, now)| then != now)
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct BootIds {
    by_worker: BTreeMap<WorkerId, Option<String>>,
    /// Not written yet.
    unsaved: BTreeSet<WorkerId>,
}

/// As they stood inside the sync's record, in version 1 of the records: none of them has one of its own.
impl<'de> Deserialize<'de> for BootIds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let of = BTreeMap::<WorkerId, Option<String>>::deserialize(d)?;
        let changed = of.keys().cloned().collect();
        Ok(BootIds { by_worker: of, unsaved: changed })
    }
}

impl BootIds {
    /// The boot of a worker; `None` where it is not in here.
    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Option<String>> {
        self.by_worker.get(worker)
    }

    /// Adds a worker. False: it was there, with the boot that it keeps.
    pub(super) fn add(&mut self, worker: &WorkerId, boot: Option<&String>) -> bool {
        if self.by_worker.contains_key(worker) {
            return false;
        }
        self.by_worker.insert(worker.clone(), boot.cloned());
        self.unsaved.insert(worker.clone());
        true
    }

    /// Where a worker is in here with another root than that of `place`: from now on with none that can be the one
    /// that is open. True: that changed something.
    pub(super) fn record_root_change(&mut self, worker: &WorkerId, place: &str) -> bool {
        let Some(Some(then)) = self.by_worker.get_mut(worker) else { return false };
        let several = format!("{}{ROOT_SEPARATOR}{MULTIPLE_ROOTS}", boot_part(then));
        if *then == several || !is_different_root(then, place) {
            return false;
        }
        *then = several;
        self.unsaved.insert(worker.clone());
        true
    }

    /// Takes a worker out.
    pub(super) fn remove(&mut self, worker: &WorkerId) {
        if self.by_worker.remove(worker).is_some() {
            self.unsaved.insert(worker.clone());
        }
    }

    /// Takes all of them out.
    pub(super) fn clear(&mut self) {
        self.unsaved.extend(std::mem::take(&mut self.by_worker).into_keys());
    }

    /// Takes in what was stored.
    pub(super) fn restore(&mut self, worker: WorkerId, boot: Option<String>) {
        self.by_worker.insert(worker, boot);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Option<String>)> {
        self.by_worker.iter()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_worker.is_empty()
    }

    /// Those whose records are to be written; from then on they count as written.
    pub(super) fn take_unsaved(&mut self) -> BTreeSet<WorkerId> {
        std::mem::take(&mut self.unsaved)
    }
}
