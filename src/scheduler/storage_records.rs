//! The records of the table of storages. Results of comparisons are found again; which views are one storage is kept, so
//! that a view that has not changed is not compared again.
//!
//! | key | record |
//! |---|---|
//! | `n/last` | the last number that was given |
//! | `n/NUMBER` | a storage |
//! | `y/WORKER/DIGEST` | a view, by a digest of its path |
//!
//! Records of storages are loaded before those of views.

use super::storage_table::{LAST_KEY, StorageTable, path_digest, storage_key, view_key};
use super::storage_types::{Storage, StorageNo, View};
use crate::wire::{AbsPath, StorageId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Numbers count storages: no installation comes near. A record with a larger one is damaged.
const MAX_NO: u64 = 1 << 53;

#[derive(Debug, Serialize, Deserialize)]
struct StorageRecord {
    path: AbsPath,
    generated_id: StorageId,
    declared_id: Option<StorageId>,
    /// Storages that are another tree although they declare the same id: their views are not used, so this must be known
    /// before they are compared again. Valid only if it stands in both records.
    different: BTreeSet<StorageNo>,
}

impl StorageTable {
    /// Returns the keys of changed records, and marks them as written.
    pub(super) fn take_unsaved(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unsaved).into_iter().collect()
    }

    /// The keys of all records.
    pub(super) fn record_keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.storages.keys().map(|no| storage_key(*no)).collect();
        if self.last_no > 0 {
            keys.push(LAST_KEY.to_owned());
        }
        for (worker, known) in &self.workers {
            keys.extend(known.views.keys().map(|path| view_key(worker, path)));
        }
        keys
    }

    /// The present value of a record; `None` if it was removed.
    pub(super) fn record(&self, key: &str) -> Option<Vec<u8>> {
        if key == LAST_KEY {
            return serde_json::to_vec(&self.last_no).ok();
        }
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "n" => {
                let storage = self.storages.get(&StorageNo(rest.parse().ok()?))?;
                let record = StorageRecord {
                    path: storage.path.clone(),
                    generated_id: storage.generated_id.clone(),
                    declared_id: storage.declared_id.clone(),
                    different: self.different_to_store(storage),
                };
                serde_json::to_vec(&record).ok()
            }
            "y" => {
                let (worker, digest) = rest.split_once('/')?;
                let known = self.workers.get(&worker.parse::<WorkerId>().ok()?)?;
                let view = known.views.values().find(|view| path_digest(&view.path) == digest)?;
                serde_json::to_vec(view).ok()
            }
            _ => None,
        }
    }

    fn different_to_store(&self, storage: &Storage) -> BTreeSet<StorageNo> {
        let shares = |other: &StorageNo| {
            self.storages.get(other).is_some_and(|other| storage.shares_claim(other))
        };
        storage.different.iter().copied().filter(shares).collect()
    }

    /// Adds a stored record. Its worker counts as silent until its next heartbeat.
    ///
    /// # Errors
    /// A record that this program did not write.
    pub(super) fn load(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        let parse_error = |e: serde_json::Error| e.to_string();
        let check = |no: u64| match no <= MAX_NO {
            true => Ok(StorageNo(no)),
            false => Err(format!("the number {no} of a storage is larger than {MAX_NO}")),
        };
        if key == LAST_KEY {
            let last = check(serde_json::from_slice(value).map_err(parse_error)?)?;
            self.last_no = self.last_no.max(last.0);
            return Ok(());
        }
        let bad_key = || "a bad key".to_owned();
        let (kind, rest) = key.split_once('/').ok_or_else(bad_key)?;
        match kind {
            "n" => {
                let no = check(rest.parse().map_err(|_| bad_key())?)?;
                if self.storages.contains_key(&no) {
                    return Err("a second storage of this number".to_owned());
                }
                let record: StorageRecord = serde_json::from_slice(value).map_err(parse_error)?;
                self.last_no = self.last_no.max(no.0);
                let mut storage = Storage::new(record.path, record.generated_id);
                storage.declared_id = record.declared_id;
                storage.different = record.different;
                self.insert_storage(no, storage);
            }
            "y" => {
                let (worker, digest) = rest.split_once('/').ok_or_else(bad_key)?;
                let worker: WorkerId = worker.parse().map_err(|_| bad_key())?;
                let mut view: View = serde_json::from_slice(value).map_err(parse_error)?;
                let path = view.path.clone();
                if path_digest(&path) != digest {
                    return Err(format!("the record is of another path, {path}"));
                }
                let is_linked = std::mem::replace(&mut view.is_linked, false);
                let storage = view.storage.and_then(|no| self.storages.get(&no));
                let no = view.storage.filter(|_| storage.is_some_and(|s| s.path == path));
                let known = self.workers.entry(worker.clone()).or_default();
                if known.views.insert(path.clone(), view).is_some() {
                    return Err("a second view of this path".to_owned());
                }
                if let Some(no) = no.filter(|_| is_linked) {
                    let unsaved = std::mem::take(&mut self.unsaved);
                    self.link(&worker, &path, no);
                    self.unsaved = unsaved;
                }
            }
            _ => return Err(bad_key()),
        }
        Ok(())
    }
}
