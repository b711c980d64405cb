//! Manifests that several destinations of one sync need. A manifest of a single owner is not listed here.

use crate::wire::SyncNo;
use std::collections::{BTreeSet, HashMap};

#[derive(Debug, Default)]
pub(super) struct SharedManifests {
    /// The syncs that need a manifest, by its key.
    owners: HashMap<String, BTreeSet<SyncNo>>,
}

impl SharedManifests {
    /// A sync needs a manifest that others need as well.
    pub(super) fn add_owner(&mut self, key: &str, no: SyncNo) {
        self.owners.entry(key.to_owned()).or_default().insert(no);
    }

    /// A sync does not need a manifest any more. True: no other one does.
    pub(super) fn release(&mut self, key: &str, no: SyncNo) -> bool {
        let Some(owners) = self.owners.get_mut(key) else { return true };
        owners.remove(&no);
        let is_free = owners.is_empty();
        if is_free {
            self.owners.remove(key);
        }
        is_free
    }
}

/// The key of a manifest that the destinations of a sync share.
pub(super) fn shared_manifest_key(group: SyncNo, id: u64) -> String {
    format!("m/{group}/{id}")
}

/// Whether a manifest was stored for another sync than `no`, as those are that destinations share.
pub(super) fn is_shared_manifest(key: &str, no: SyncNo) -> bool {
    let owner = key.strip_prefix("m/").and_then(|rest| rest.split_once('/'));
    owner.is_some_and(|(owner, _)| owner.parse() != Ok(no.0))
}
