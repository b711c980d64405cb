//! Workers of a sync, each with the place of its writes when it was first named: the boot of its kernel, and the id of
//! the storage root that it had open. There may be thousands, so each is a record of its own in the store, and only
//! those that changed are written.

use crate::wire::WorkerId;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};

/// Between the boot and the id of the root; neither has it.
pub(super) const ROOT_MARK: char = '#';

/// In the place of a root's id: the worker has had several roots open since the sync first named it. None is known to
/// have all that was written.
const SEVERAL_ROOTS: &str = "several";

/// The boot of a place.
pub(super) fn boot_of(place: &str) -> &str {
    place.split_once(ROOT_MARK).map_or(place, |(boot, _)| boot)
}

/// The id of the root of a place, where the worker named it.
pub(super) fn root_of(place: &str) -> Option<&str> {
    place.split_once(ROOT_MARK).map(|(_, root)| root)
}

/// The id of the root of a place, where it is the only one that was written to under a kernel of this boot.
pub(super) fn only_root_of<'a>(place: &'a str, boot: &str) -> Option<&'a str> {
    root_of(place).filter(|root| boot_of(place) == boot && *root != SEVERAL_ROOTS)
}

/// Whether two places are roots that one kernel has numbered, and not the same one. Another kernel numbers its file
/// systems anew.
pub(super) fn is_other_root(then: &str, now: &str) -> bool {
    let roots = root_of(then).zip(root_of(now));
    boot_of(then) == boot_of(now) && roots.is_some_and(|(then, now)| then != now)
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Boots {
    of: BTreeMap<WorkerId, Option<String>>,
    /// Not written yet.
    changed: BTreeSet<WorkerId>,
}

/// As they stood inside the sync's record, in version 1 of the records: none of them has one of its own.
impl<'de> Deserialize<'de> for Boots {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let of = BTreeMap::<WorkerId, Option<String>>::deserialize(d)?;
        let changed = of.keys().cloned().collect();
        Ok(Boots { of, changed })
    }
}

impl Boots {
    /// The boot of a worker; `None` where it is not in here.
    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Option<String>> {
        self.of.get(worker)
    }

    /// Adds a worker. False: it was there, with the boot that it keeps.
    pub(super) fn add(&mut self, worker: &WorkerId, boot: Option<&String>) -> bool {
        if self.of.contains_key(worker) {
            return false;
        }
        self.of.insert(worker.clone(), boot.cloned());
        self.changed.insert(worker.clone());
        true
    }

    /// Where a worker is in here with another root than that of `place`: from now on with none that can be the one
    /// that is open. True: that changed something.
    pub(super) fn note_root(&mut self, worker: &WorkerId, place: &str) -> bool {
        let Some(Some(then)) = self.of.get_mut(worker) else { return false };
        let several = format!("{}{ROOT_MARK}{SEVERAL_ROOTS}", boot_of(then));
        if *then == several || !is_other_root(then, place) {
            return false;
        }
        *then = several;
        self.changed.insert(worker.clone());
        true
    }

    /// Takes a worker out.
    pub(super) fn remove(&mut self, worker: &WorkerId) {
        if self.of.remove(worker).is_some() {
            self.changed.insert(worker.clone());
        }
    }

    /// Takes all of them out.
    pub(super) fn clear(&mut self) {
        self.changed.extend(std::mem::take(&mut self.of).into_keys());
    }

    /// Takes in what was stored.
    pub(super) fn restore(&mut self, worker: WorkerId, boot: Option<String>) {
        self.of.insert(worker, boot);
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Option<String>)> {
        self.of.iter()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Those whose records are to be written; from then on they count as written.
    pub(super) fn take_changed(&mut self) -> BTreeSet<WorkerId> {
        std::mem::take(&mut self.changed)
    }
}
