//! Which views are one storage. A view is a storage path of a worker; the views of a storage are workers that see one
//! file tree, and a task may use any of them.
//!
//! The views of a storage are known to be one by comparison ([`storage_compare`](super::storage_compare)), whatever is
//! declared of them. A declaration gives a storage its id; views that it contradicts are not used
//! ([`storage_declarations`](super::storage_declarations)).
//!
//! Results are transitive, because "the same tree" is: if N is merged into O, all that differs from N differs from O.
//! A result holds as long as both storages exist. A view of which it is not known any more that it is the same leaves
//! its storage and takes no result along; what is left in the storage is what was compared.

use super::storage_types::{Comparison, Storage, StorageNo, View, looks_alike};
use super::worker_rank::rank;
use crate::wire::storage::StorageEvidence;
use crate::wire::{AbsPath, StorageId, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Two storages were found to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    /// The newer one, which is gone.
    pub(super) from: StorageNo,
    /// The older one, which has the views of both.
    pub(super) into: StorageNo,
}

/// What is known of two storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// They are two file trees.
    Different,
    /// They were not compared yet.
    Unknown,
    /// Their paths are different, and one holds the other: they are never compared.
    Nested,
    /// They cannot be compared now, because one of them has no active worker; their fingerprints agree.
    LooksAlike,
}

/// The views of a worker.
#[derive(Debug, Default)]
pub(super) struct WorkerViews {
    /// Since its last heartbeat it was not silent. A silent worker is compared with nothing.
    pub(super) is_active: bool,
    pub(super) incarnation: Option<String>,
    pub(super) views: BTreeMap<AbsPath, View>,
}

/// The storages and views of one storage path.
#[derive(Debug, Default)]
pub(super) struct SamePath {
    pub(super) storages: BTreeSet<StorageNo>,
    /// Those without an [exclusive root](View::exclusive_root), or with one under a kernel that may have ended, or with a
    /// self-reported view: any other may be the same.
    pub(super) shareable: BTreeSet<StorageNo>,
    /// Workers by boot id and root id.
    pub(super) roots: HashMap<(String, String), BTreeSet<WorkerId>>,
    /// How often a view with an exclusive root was placed: the clock of [`View::periods`].
    pub(super) placements: u64,
    /// The number of linked views with a declaration.
    pub(super) declarations: usize,
    /// There were such views when declarations were last judged.
    pub(super) was_declared: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct StorageTable {
    pub(super) workers: BTreeMap<WorkerId, WorkerViews>,
    pub(super) storages: BTreeMap<StorageNo, Storage>,
    pub(super) by_path: HashMap<AbsPath, SamePath>,
    pub(super) by_id: BTreeMap<StorageId, BTreeSet<StorageNo>>,
    /// Under way, by the newer storage: each is compared with one older storage at a time.
    pub(super) comparisons: BTreeMap<StorageNo, Comparison>,
    pub(super) last_no: u64,
    pub(super) version: u64,
    /// Keys of records to write.
    pub(super) unsaved: BTreeSet<String>,
    /// Storages that may be one with others from which they were different before.
    pub(super) unsettled: BTreeSet<StorageNo>,
}

impl StorageTable {
    pub(super) fn view(&self, worker: &WorkerId, root: &AbsPath) -> Option<&View> {
        self.workers.get(worker)?.views.get(root)
    }

    /// The caller must not change indexed fields of a linked view.
    pub(super) fn view_mut(&mut self, worker: &WorkerId, root: &AbsPath) -> Option<&mut View> {
        self.workers.get_mut(worker)?.views.get_mut(root)
    }

    /// The storage of a storage path of a worker. `None`: not known, or its declaration is contradicted.
    pub(super) fn storage_of(&self, worker: &WorkerId, root: &AbsPath) -> Option<StorageNo> {
        self.view(worker, root).filter(|view| view.is_member())?.storage
    }

    /// Why a storage path of a worker is not used.
    pub(super) fn contradiction(&self, worker: &WorkerId, root: &AbsPath) -> Option<&str> {
        self.view(worker, root)?.contradiction.as_deref()
    }

    /// The storages of exactly this storage path that can be used, oldest first.
    pub(super) fn named(&self, root: &AbsPath) -> impl Iterator<Item = StorageNo> + '_ {
        let all = self.by_path.get(root).into_iter().flat_map(|same| same.storages.iter());
        let is_usable = |no: &StorageNo| !self.members(*no).is_empty();
        all.copied().filter(is_usable)
    }

    /// The workers that see a storage and may be used there, by rank.
    pub(super) fn members(&self, no: StorageNo) -> &[(u64, WorkerId)] {
        self.storages.get(&no).map_or(&[], |storage| &storage.members)
    }

    /// What is known of two storages of one path.
    pub(super) fn relation(&self, a: StorageNo, b: StorageNo) -> Relation {
        if self.are_different(a, b) {
            return Relation::Different;
        }
        let first = |no| self.views_of(no).find_map(|(_, view)| view.fingerprint());
        let (Some(of_a), Some(of_b)) = (first(a), first(b)) else {
            // A view without a fingerprint is alone, unless the configuration says otherwise.
            return Relation::Different;
        };
        let can_compare = self.comparable_view(a).is_some() && self.comparable_view(b).is_some();
        match !can_compare && looks_alike(of_a, of_b) {
            true => Relation::LooksAlike,
            false => Relation::Unknown,
        }
    }

    /// Whether two storages of one path are known to be different: by comparison, or because each is on a file system
    /// that only one kernel has, and both kernels run.
    pub(super) fn are_different(&self, a: StorageNo, b: StorageNo) -> bool {
        let (Some(of_a), Some(of_b)) = (self.storages.get(&a), self.storages.get(&b)) else {
            return true;
        };
        if self.were_different(a, b) {
            return true;
        }
        let root = |storage: &Storage| {
            let view = self.view(storage.exclusive.first()?, &storage.path)?;
            view.exclusive_root().map(|(boot, root)| (boot.to_owned(), root.to_owned()))
        };
        // What is declared as one storage is compared before it is said to be two.
        !of_a.shares_claim(of_b)
            && match (root(of_a), root(of_b)) {
                (Some(one), Some(other)) if one.0 == other.0 => one.1 != other.1,
                (Some(_), Some(_)) => !self.may_be_restarted(of_a, of_b),
                _ => false,
            }
    }

    /// Whether a comparison has shown that two storages are different. It stands in both.
    pub(super) fn were_different(&self, a: StorageNo, b: StorageNo) -> bool {
        let has =
            |one, other| self.storages.get(&one).is_some_and(|s| s.different.contains(&other));
        has(a, b) && has(b, a)
    }

    /// The id of a storage: a declared one, or one that was generated.
    pub(super) fn id(&self, no: StorageNo) -> Option<&StorageId> {
        self.storages.get(&no).map(Storage::id)
    }

    /// The path of a storage.
    pub(super) fn path(&self, no: StorageNo) -> Option<&AbsPath> {
        self.storages.get(&no).map(|storage| &storage.path)
    }

    /// The storage with this id. A declared id may be used for several paths, each with a storage of its own: the oldest.
    pub(super) fn find(&self, id: &StorageId) -> Option<StorageNo> {
        self.by_id.get(id)?.first().copied()
    }

    /// All storages, oldest first.
    pub(super) fn numbers(&self) -> impl Iterator<Item = StorageNo> + '_ {
        self.storages.keys().copied()
    }

    /// The views of a storage by rank, also those that are not used.
    pub(super) fn views_of(&self, no: StorageNo) -> impl Iterator<Item = (&WorkerId, &View)> {
        let storage = self.storages.get(&no);
        storage.into_iter().flat_map(move |storage| {
            let linked = storage.linked.iter().map(|(_, worker)| worker);
            linked.filter_map(|worker| Some((worker, self.view(worker, &storage.path)?)))
        })
    }

    /// Changes when members, relations or contradictions change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether a view can take part in comparisons.
    pub(super) fn is_present(&self, worker: &WorkerId, root: &AbsPath) -> bool {
        self.workers.get(worker).filter(|known| known.is_active).is_some_and(|known| {
            let view = known.views.get(root);
            view.is_some_and(|v| v.is_linked && v.is_available && v.report.is_some())
        })
    }

    /// The view of a storage that is compared: the first that can make a probe file, else the first. Self-reported views
    /// are compared only where the storage has no others.
    pub(super) fn comparable_view(&self, no: StorageNo) -> Option<&WorkerId> {
        let storage = self.storages.get(&no)?;
        let has_others = self.views_of(no).any(|(_, view)| !view.is_self_reported);
        let present = self.views_of(no).filter(|(worker, view)| {
            !(has_others && view.is_self_reported) && self.is_present(worker, &storage.path)
        });
        let mut first = None;
        for (worker, view) in present {
            if view.can_make_probe() {
                return Some(worker);
            }
            first = first.or(Some(worker));
        }
        first
    }

    pub(super) fn mark_storage_unsaved(&mut self, no: StorageNo) {
        self.unsaved.insert(storage_key(no));
    }

    /// Records have the results of comparisons with storages that claim the same id.
    fn mark_results_unsaved(&mut self, no: StorageNo) {
        let Some(storage) = self.storages.get(&no) else { return };
        let has_claims =
            |no: &&StorageNo| self.storages.get(no).is_some_and(|s| !s.claims.is_empty());
        let others = storage.different.iter().filter(has_claims).chain([&no]);
        self.unsaved.extend(others.map(|no| storage_key(*no)));
    }

    pub(super) fn mark_view_unsaved(&mut self, worker: &WorkerId, root: &AbsPath) {
        self.unsaved.insert(view_key(worker, root));
    }

    /// Makes a storage without views.
    pub(super) fn add_storage(
        &mut self,
        path: &AbsPath,
        draw: &mut impl FnMut() -> [u8; 16],
    ) -> StorageNo {
        self.last_no += 1;
        let no = StorageNo(self.last_no);
        let [a, b, c, d, ..] = draw();
        let mut random = u32::from_be_bytes([a, b, c, d]);
        let id = loop {
            // Always a valid id: letters and digits.
            let id = StorageId::try_from(format!("s-{random:08x}"));
            match id.ok().filter(|id| !self.by_id.contains_key(id)) {
                Some(id) => break id,
                None => random = random.wrapping_add(1),
            }
        };
        self.insert_storage(no, Storage::new(path.clone(), id));
        self.mark_storage_unsaved(no);
        self.unsaved.insert(LAST_KEY.to_owned());
        no
    }

    pub(super) fn insert_storage(&mut self, no: StorageNo, storage: Storage) {
        self.by_id.entry(storage.id().clone()).or_default().insert(no);
        let same = self.by_path.entry(storage.path.clone()).or_default();
        same.storages.insert(no);
        same.shareable.insert(no);
        self.storages.insert(no, storage);
    }

    fn remove_id(&mut self, id: &StorageId, no: StorageNo) {
        if let Some(numbers) = self.by_id.get_mut(id) {
            numbers.remove(&no);
            if numbers.is_empty() {
                self.by_id.remove(id);
            }
        }
    }

    /// Gives a storage its declared id, or takes it away.
    pub(super) fn set_declared_id(&mut self, no: StorageNo, declared: Option<&StorageId>) {
        let Some(storage) = self.storages.get_mut(&no) else { return };
        if storage.declared_id.as_ref() == declared {
            return;
        }
        let before = storage.id().clone();
        storage.declared_id = declared.cloned();
        let now = storage.id().clone();
        self.remove_id(&before, no);
        self.by_id.entry(now).or_default().insert(no);
        self.mark_storage_unsaved(no);
        self.version += 1;
    }

    /// Removes a storage without views.
    pub(super) fn remove_if_empty(&mut self, no: StorageNo) {
        let Some(storage) = self.storages.get(&no).filter(|s| s.linked.is_empty()) else { return };
        let (path, id) = (storage.path.clone(), storage.id().clone());
        self.clear_results(no);
        self.remove_id(&id, no);
        self.storages.remove(&no);
        if let Some(same) = self.by_path.get_mut(&path) {
            same.storages.remove(&no);
            same.shareable.remove(&no);
            if same.storages.is_empty() && same.roots.is_empty() {
                self.by_path.remove(&path);
            }
        }
        self.mark_storage_unsaved(no);
        self.version += 1;
    }

    /// Forgets the results of the comparisons of a storage.
    pub(super) fn clear_results(&mut self, no: StorageNo) {
        self.mark_results_unsaved(no);
        let Some(storage) = self.storages.get_mut(&no) else { return };
        let different = std::mem::take(&mut storage.different);
        for other in &different {
            if let Some(other) = self.storages.get_mut(other) {
                other.different.remove(&no);
            }
        }
        self.version += u64::from(!different.is_empty());
    }

    /// Records that two storages are different.
    pub(super) fn set_different(&mut self, a: StorageNo, b: StorageNo) {
        let shares = self.storages.get(&a).zip(self.storages.get(&b));
        let Some(shares) = shares.map(|(a, b)| a.shares_claim(b)) else { return };
        for (one, other) in [(a, b), (b, a)] {
            if let Some(storage) = self.storages.get_mut(&one) {
                storage.different.insert(other);
            }
            // See `different_to_store`.
            if shares {
                self.mark_storage_unsaved(one);
            }
        }
        self.version += 1;
    }

    /// Adds a view to a storage.
    pub(super) fn link(&mut self, worker: &WorkerId, root: &AbsPath, no: StorageNo) {
        let Some(view) = self.workers.get_mut(worker).and_then(|w| w.views.get_mut(root)) else {
            return;
        };
        let Some(storage) = self.storages.get_mut(&no) else { return };
        let same = self.by_path.entry(root.clone()).or_default();
        let last = view.periods.last().map_or(0, |period| period.last);
        same.placements = same.placements.max(last);
        (view.storage, view.is_linked) = (Some(no), true);
        storage.linked.insert((rank(worker, 0), worker.clone()));
        if view.is_unproved {
            storage.unproved = Some(worker.clone());
        }
        let claims_before = storage.claims.len();
        if let Some(id) = view.declared_id() {
            storage.claims.entry(id.clone()).or_default().insert(worker.clone());
        } else if view.declared.is_some() {
            storage.locals.insert(worker.clone());
        }
        same.declarations += usize::from(view.declared.is_some());
        if view.contradiction.is_some() {
            storage.contradicted.insert(worker.clone());
        }
        if view.exclusive_root().is_some() {
            storage.exclusive.insert(worker.clone());
        }
        if let Some((boot, root)) = view.root() {
            let key = (boot.to_owned(), root.to_owned());
            same.roots.entry(key).or_default().insert(worker.clone());
        }
        if storage.claims.len() != claims_before {
            self.mark_results_unsaved(no);
        }
        self.update_shareable(no);
        self.update_membership(worker, root);
        self.mark_view_unsaved(worker, root);
        self.version += 1;
    }

    /// Takes a view out of its storage, which may then be without views. The view remembers it.
    pub(super) fn unlink(&mut self, worker: &WorkerId, root: &AbsPath) {
        let Some(view) = self.workers.get_mut(worker).and_then(|w| w.views.get_mut(root)) else {
            return;
        };
        let Some(no) = view.storage.filter(|_| view.is_linked) else { return };
        let Some(storage) = self.storages.get_mut(&no) else { return };
        storage.linked.remove(&(rank(worker, 0), worker.clone()));
        let claims_before = storage.claims.len();
        if let Some(id) = view.declared_id()
            && let Some(claim) = storage.claims.get_mut(id)
        {
            claim.remove(worker);
            if claim.is_empty() {
                storage.claims.remove(id);
            }
        }
        storage.locals.remove(worker);
        storage.exclusive.remove(worker);
        storage.contradicted.remove(worker);
        storage.unproved.take_if(|unproved| unproved == worker);
        if let Some(same) = self.by_path.get_mut(root) {
            same.declarations -= usize::from(view.declared.is_some());
            if let Some((boot, id)) = view.root() {
                let key = (boot.to_owned(), id.to_owned());
                if let Some(workers) = same.roots.get_mut(&key) {
                    workers.remove(worker);
                    if workers.is_empty() {
                        same.roots.remove(&key);
                    }
                }
            }
        }
        (view.is_linked, view.is_unproved, view.contradiction) = (false, false, None);
        if storage.claims.len() != claims_before {
            self.mark_results_unsaved(no);
        }
        self.update_shareable(no);
        self.update_membership(worker, root);
        self.mark_view_unsaved(worker, root);
        self.version += 1;
    }

    /// Keeps the list of members in step with a view.
    pub(super) fn update_membership(&mut self, worker: &WorkerId, root: &AbsPath) {
        let Some(view) = self.view(worker, root) else { return };
        let (is_member, no) = (view.is_member(), view.storage);
        let Some(storage) = no.and_then(|no| self.storages.get_mut(&no)) else { return };
        let member = (rank(worker, 0), worker.clone());
        match (storage.members.binary_search(&member), is_member) {
            (Err(at), true) => storage.members.insert(at, member),
            (Ok(at), false) => drop(storage.members.remove(at)),
            _ => return,
        }
        self.version += 1;
    }

    pub(super) fn set_contradiction(
        &mut self,
        worker: &WorkerId,
        root: &AbsPath,
        reason: Option<String>,
    ) {
        let Some(view) = self.view_mut(worker, root) else { return };
        if view.contradiction == reason {
            return;
        }
        let (no, is_contradicted) = (view.storage, reason.is_some());
        view.contradiction = reason;
        if let Some(storage) = no.and_then(|no| self.storages.get_mut(&no)) {
            match is_contradicted {
                true => storage.contradicted.insert(worker.clone()),
                false => storage.contradicted.remove(worker),
            };
        }
        self.update_membership(worker, root);
        self.mark_view_unsaved(worker, root);
        self.version += 1;
    }

    /// Takes all views out of a storage that were there before the one that came back unproved: that one, and what was
    /// found to be the same, is now the storage.
    pub(super) fn confirm_unproved(&mut self, no: StorageNo) {
        let Some(storage) = self.storages.get_mut(&no) else { return };
        let (Some(worker), path) = (storage.unproved.take(), storage.path.clone()) else { return };
        let before = self.views_of(no).filter(|(other, v)| **other != worker && v.report.is_some());
        let before: Vec<WorkerId> = before.map(|(other, _)| other.clone()).collect();
        before.iter().for_each(|other| self.unlink(other, &path));
        if let Some(view) = self.view_mut(&worker, &path) {
            view.is_unproved = false;
        }
        self.mark_view_unsaved(&worker, &path);
    }

    /// Unites two storages: all views move to the older one.
    pub(super) fn merge(
        &mut self,
        a: StorageNo,
        b: StorageNo,
        evidence: StorageEvidence,
    ) -> Option<Merge> {
        let (into, from) = (a.min(b), a.max(b));
        self.unsettled.insert(into);
        self.confirm_unproved(into);
        self.confirm_unproved(from);
        let path = self.storages.get(&from)?.path.clone();
        let different = self.storages.get(&from)?.different.clone();
        let moved: Vec<WorkerId> = self.views_of(from).map(|(worker, _)| worker.clone()).collect();
        let compared = self.comparable_view(into).cloned();
        for worker in &moved {
            self.unlink(worker, &path);
            self.link(worker, &path, into);
        }
        for worker in moved.iter().chain(&compared) {
            let view = self.view_mut(worker, &path);
            if let Some(view) = view.filter(|view| view.evidence == StorageEvidence::Single) {
                view.evidence = evidence;
                self.mark_view_unsaved(worker, &path);
            }
        }
        self.remove_if_empty(from);
        for other in different.into_iter().filter(|other| *other != into) {
            self.set_different(into, other);
        }
        Some(Merge { from, into })
    }
}

/// The key of the record of the last number that was given to a storage.
pub(super) const LAST_KEY: &str = "n/last";

pub(super) fn storage_key(no: StorageNo) -> String {
    format!("n/{}", no.0)
}

pub(super) fn view_key(worker: &WorkerId, root: &AbsPath) -> String {
    format!("y/{worker}/{}", path_digest(root))
}

/// What stands for a path in the key of a record: a path may be longer than a key.
pub(super) fn path_digest(path: &AbsPath) -> String {
    blake3::hash(path.as_bytes()).to_hex()[..32].to_owned()
}
