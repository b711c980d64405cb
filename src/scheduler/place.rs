//! Where a sync reads or writes: a path of a storage.

use super::storage_table::{Relation, StorageTable};
use super::storage_types::StorageNo;
use crate::wire::AbsPath;

/// A path of a storage. As long as the storage is not known, no worker serves the place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) storage: Option<StorageNo>,
    /// As requests name it.
    pub(super) path: &'a AbsPath,
}

pub(super) fn paths_overlap(a: &AbsPath, b: &AbsPath) -> bool {
    a.contains(b) || b.contains(a)
}

/// What is known of two storages with paths of which one is, or holds, the other.
pub(super) fn relation(storages: &StorageTable, a: StorageNo, b: StorageNo) -> Relation {
    match storages.path(a) == storages.path(b) {
        true => storages.relation(a, b),
        false => Relation::Nested,
    }
}

/// Whether two places may be the same directory, or one may lie in the other.
pub(super) fn may_overlap(storages: &StorageTable, a: Place<'_>, b: Place<'_>) -> bool {
    let is_different =
        |a: StorageNo, b: StorageNo| a != b && relation(storages, a, b) == Relation::Different;
    let differ = || a.storage.zip(b.storage).is_some_and(|(a, b)| is_different(a, b));
    paths_overlap(a.path, b.path) && !differ()
}
