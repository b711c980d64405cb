//! The documents about storages.

use super::State;
use super::place::relation;
use super::storage_table::Relation;
use super::storage_types::{StorageNo, View};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::storage::{StorageList, StorageView, StorageWorker};
use crate::wire::{StorageId, WorkerId};

/// Maximum number of storages that a document names as not compared.
const MAX_NOT_COMPARED: usize = 16;

impl State {
    /// All storages, by path, then by id.
    pub(super) fn list_storages(&self) -> StorageList {
        let numbers = self.workers.storages.numbers();
        let mut storages: Vec<StorageView> =
            numbers.filter_map(|no| self.storage_view(no)).collect();
        storages.sort_by(|a, b| (&a.path, &a.storage_id).cmp(&(&b.path, &b.storage_id)));
        StorageList { storages }
    }

    /// # Errors
    /// There is no such storage.
    pub(super) fn show_storage(&self, id: &StorageId) -> Result<StorageView, Problem> {
        let found = self.workers.storages.find(id).and_then(|no| self.storage_view(no));
        found.ok_or_else(|| {
            Problem::new(ProblemCode::StorageNotFound, format!("there is no storage `{id}`"))
                .with_hint("list the storages with: ctl storage list")
        })
    }

    fn storage_view(&self, no: StorageNo) -> Option<StorageView> {
        let storages = &self.workers.storages;
        let path = storages.path(no)?;
        let mut workers: Vec<StorageWorker> =
            storages.views_of(no).map(|(id, view)| self.storage_worker(id, view)).collect();
        workers.sort_by(|a, b| a.worker_id.cmp(&b.worker_id));
        let fingerprints = storages.views_of(no).filter_map(|(_, view)| view.fingerprint());
        let known = storages.members(no).iter().filter_map(|(_, id)| self.workers.get(id));
        let free = known.filter(|worker| worker.is_active).filter_map(|worker| {
            let free = worker.last_heartbeat.free_bytes.get(&path.to_string())?;
            Some((worker.last_seen_ms, *free))
        });
        let others = storages.named(path).filter(|other| *other != no);
        let unknown = others.filter(|other| relation(storages, no, *other) != Relation::Different);
        let not_compared = unknown.take(MAX_NOT_COMPARED);
        Some(StorageView {
            storage_id: storages.id(no)?.clone(),
            path: path.clone(),
            fs_type: fingerprints.map(|found| found.fs_type.clone()).next(),
            free_bytes: free.max().map(|(_, free)| free),
            workers,
            not_compared_with: not_compared
                .filter_map(|other| storages.id(other).cloned())
                .collect(),
        })
    }

    fn storage_worker(&self, id: &WorkerId, view: &View) -> StorageWorker {
        StorageWorker {
            worker_id: id.clone(),
            active: self.workers.get(id).is_some_and(|worker| worker.is_active),
            evidence: view.evidence,
            local_path: view.report.as_ref().and_then(|report| report.local_path.clone()),
            mount_source: view.fingerprint().map(|found| found.mount_source.clone()),
            error: view.contradiction.clone(),
        }
    }
}
