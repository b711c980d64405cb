//! Declarations of storage paths against what comparisons have shown. A view is not used while
//! its declaration is contradicted: until its directory or its declaration changes, or what contradicts it.

use super::storage_table::StorageTable;
use super::storage_types::{Storage, StorageNo};
use crate::wire::storage::StorageEvidence;
use crate::wire::{AbsPath, StorageId, WorkerId};
use std::collections::BTreeMap;

/// The reason for each view that is contradicted, of the storages of one path.
type Reasons = BTreeMap<StorageNo, BTreeMap<WorkerId, String>>;

/// The index of the only largest number of votes, if it is at least 2.
fn majority(votes: &[usize]) -> Option<usize> {
    let most = votes.iter().copied().max().filter(|most| *most >= 2)?;
    let mut best = (0..votes.len()).filter(|at| votes[*at] == most);
    best.next().filter(|_| best.next().is_none())
}

impl StorageTable {
    /// Gives the storages of a path their declared ids, and finds the declarations that are contradicted.
    pub(super) fn judge_declarations(&mut self, path: &AbsPath) {
        let Some(same) = self.by_path.get_mut(path) else { return };
        let is_declared = same.declarations > 0;
        if !is_declared && !same.was_declared {
            return;
        }
        same.was_declared = is_declared;
        let numbers: Vec<StorageNo> = same.storages.iter().copied().collect();
        let mut reasons = Reasons::new();
        let mut claimants: BTreeMap<StorageId, Vec<StorageNo>> = BTreeMap::new();
        for no in &numbers {
            let Some(storage) = self.storages.get(no) else { continue };
            let of_storage = reasons.entry(*no).or_default();
            self.judge_locals(storage, of_storage);
            if let Some(id) = self.judge_ids_of_one(storage, of_storage) {
                claimants.entry(id).or_default().push(*no);
            }
        }
        let mut kept: BTreeMap<StorageNo, StorageId> = BTreeMap::new();
        for (id, claimants) in claimants {
            if let Some(keeper) = self.judge_claimants(&id, &claimants, &mut reasons) {
                kept.insert(keeper, id);
            }
        }
        for no in &numbers {
            self.set_declared_id(*no, kept.get(no));
            let before = self.storages.get(no).map(|storage| storage.contradicted.clone());
            let mut now = reasons.remove(no).unwrap_or_default();
            for worker in before.into_iter().flatten().filter(|w| !now.contains_key(w)) {
                self.set_contradiction(&worker, path, None);
            }
            while let Some((worker, reason)) = now.pop_first() {
                self.set_contradiction(&worker, path, Some(reason));
            }
        }
        for (keeper, id) in kept {
            self.move_unreported(path, &id, keeper, &numbers);
        }
    }

    /// A view without a fingerprint is where its declaration says: in the storage that keeps the id.
    fn move_unreported(
        &mut self,
        path: &AbsPath,
        id: &StorageId,
        keeper: StorageNo,
        numbers: &[StorageNo],
    ) {
        for no in numbers.iter().filter(|no| **no != keeper) {
            let claim = self.storages.get(no).and_then(|storage| storage.claims.get(id));
            let workers = claim.into_iter().flatten();
            let has_none = |w: &&WorkerId| self.view(w, path).is_some_and(|v| v.report.is_none());
            let moved: Vec<WorkerId> = workers.filter(has_none).cloned().collect();
            for worker in &moved {
                self.unlink(worker, path);
                self.link(worker, path, keeper);
                if let Some(view) = self.view_mut(worker, path) {
                    view.evidence = StorageEvidence::Declared;
                }
            }
            if !moved.is_empty() {
                self.remove_if_empty(*no);
            }
        }
    }

    /// `local: true` is contradicted by a worker on another host in the same storage. Agents on one host share their
    /// disks.
    fn judge_locals(&self, storage: &Storage, reasons: &mut BTreeMap<WorkerId, String>) {
        if storage.linked.len() < 2 {
            return;
        }
        for worker in &storage.locals {
            let boot = |w: &WorkerId| self.view(w, &storage.path).and_then(|v| v.boot_id.as_ref());
            let own = boot(worker);
            let others = storage.linked.iter().map(|(_, other)| other).filter(|w| *w != worker);
            let mut elsewhere = others.filter(|other| own.is_none() || boot(other) != own);
            if let Some(other) = elsewhere.next() {
                let reason = format!(
                    "declared as `local`, but worker {other} on another host sees the same file tree at {}: {}",
                    storage.path,
                    self.advice(worker, &storage.path, "local")
                );
                reasons.insert(worker.clone(), reason);
            }
        }
    }

    /// The id that a storage claims. Its views see one file tree, so views that declare another one are contradicted.
    fn judge_ids_of_one(
        &self,
        storage: &Storage,
        reasons: &mut BTreeMap<WorkerId, String>,
    ) -> Option<StorageId> {
        if storage.claims.len() < 2 {
            return storage.claims.keys().next().cloned();
        }
        let ids: Vec<&StorageId> = storage.claims.keys().collect();
        let votes: Vec<usize> = ids.iter().map(|id| self.votes(storage, id)).collect();
        let best = majority(&votes);
        for (at, id) in ids.iter().enumerate().filter(|(at, _)| Some(*at) != best) {
            let other = ids[best.unwrap_or(usize::from(at == 0))];
            let Some(witness) = storage.claims[other].first() else { continue };
            for worker in &storage.claims[*id] {
                let reason = format!(
                    "declared as storage `{id}`, but worker {witness} sees the same file tree at {} and declares it as storage `{other}`: {}",
                    storage.path,
                    self.advice(worker, &storage.path, "storage")
                );
                reasons.insert(worker.clone(), reason);
            }
        }
        best.map(|best| ids[best].clone())
    }

    /// The storage that keeps an id which several claim, oldest first in `claimants`. The views of those that are known
    /// to be others are contradicted.
    fn judge_claimants(
        &self,
        id: &StorageId,
        claimants: &[StorageNo],
        reasons: &mut Reasons,
    ) -> Option<StorageNo> {
        let differ = |a: &StorageNo, b: &StorageNo| self.were_different(*a, *b);
        let is_contested = |no: &&StorageNo| claimants.iter().any(|other| differ(no, other));
        let contested: Vec<StorageNo> = match claimants {
            [only] => return Some(*only),
            _ => claimants.iter().filter(is_contested).copied().collect(),
        };
        if contested.is_empty() {
            return claimants.first().copied();
        }
        let of = |no: &StorageNo| self.storages.get(no).map_or(0, |s| self.votes(s, id));
        let keeper =
            majority(&contested.iter().map(of).collect::<Vec<_>>()).map(|at| contested[at]);
        for no in contested.iter().filter(|no| Some(**no) != keeper) {
            let other = match keeper {
                // Not compared with the keeper yet: it may be the same.
                Some(keeper) if !differ(no, &keeper) => continue,
                Some(keeper) => Some(keeper),
                None => contested.iter().find(|other| differ(no, other)).copied(),
            };
            let Some(storage) = self.storages.get(no) else { continue };
            let claim = other.and_then(|other| self.storages.get(&other)?.claims.get(id));
            let Some(witness) = claim.and_then(|claim| claim.first()) else { continue };
            for worker in storage.claims.get(id).into_iter().flatten() {
                let reason = format!(
                    "declared as storage `{id}`, but worker {witness} sees another file tree at {}: {}",
                    storage.path,
                    self.advice(worker, &storage.path, "storage")
                );
                reasons.entry(*no).or_default().insert(worker.clone(), reason);
            }
        }
        keeper
    }

    /// The number of workers that declare a storage as `id` and have reported what they see.
    fn votes(&self, storage: &Storage, id: &StorageId) -> usize {
        let workers = storage.claims.get(id).into_iter().flatten();
        let views = workers.filter_map(|worker| self.view(worker, &storage.path));
        views.filter(|view| view.report.is_some()).count()
    }

    /// Where the declaration of a view is corrected.
    fn advice(&self, worker: &WorkerId, path: &AbsPath, key: &str) -> String {
        let report = self.view(worker, path).and_then(|view| view.report.as_ref());
        match report.is_some_and(|report| report.declared.is_some()) {
            true => format!("correct `{key}` in the agents' files"),
            false => "correct `storages` in the master's file".to_owned(),
        }
    }
}
