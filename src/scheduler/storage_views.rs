//! The documents about storages.

use super::State;
use crate::wire::StorageId;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::storage::{StorageList, StorageView};

impl State {
    /// All storages, by path, then by id.
    pub(super) fn list_storages(&self) -> StorageList {
        StorageList { storages: Vec::new() }
    }

    /// # Errors
    /// There is no such storage.
    pub(super) fn show_storage(&self, id: &StorageId) -> Result<StorageView, Problem> {
        let found = self.list_storages().storages.into_iter().find(|one| one.storage_id == *id);
        found.ok_or_else(|| {
            Problem::new(ProblemCode::StorageNotFound, format!("there is no storage `{id}`"))
                .with_hint("list the storages with: ctl storage list")
        })
    }
}
