//! Heartbeats and the table of storages: which storage a new or changed view belongs to.
//!
//! In this order:
//! 1. It is the same directory under the same kernel as before, or as that of another view: that storage.
//! 2. Its last storage, if the fingerprint looks alike and no other view there can be compared: after a restart of the
//!    host. It must have been there by more than its own report. If other views are there, it is *unproved*. The first of
//!    them that comes back unchanged evicts it, also the first view with the same directory as one of them. The first view
//!    that is found to be the same as the unproved one confirms it, and the others are out.
//! 3. Its last storage, if it was alone there: the storage is what the path leads to now.
//! 4. A declared storage of which no fingerprint is known.
//! 5. A storage of its own, which is then compared with the others of its path.

use super::storage_compare::new_probe;
use super::storage_table::{Merge, StorageTable};
use super::storage_types::{StorageNo, View, is_same_directory, looks_alike};
use crate::wire::storage::{ConfiguredStorage, StorageDeclaration, StorageEvidence, StorageReport};
use crate::wire::worker::{WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// What a heartbeat says of an available path.
struct Facts<'a> {
    report: Option<&'a StorageReport>,
    boot_id: Option<&'a String>,
    root_id: Option<&'a String>,
    declared: Option<StorageDeclaration>,
    /// An agent of the predecessor never reports.
    can_report: bool,
}

impl Facts<'_> {
    fn describe(&self, view: &View) -> bool {
        view.report.as_ref() == self.report
            && view.boot_id.as_ref() == self.boot_id
            && view.root_id.as_ref() == self.root_id
            && view.declared == self.declared
    }
}

/// What a heartbeat changed.
#[derive(Default)]
struct Changes {
    merges: Vec<Merge>,
    /// Storages of which comparisons may be due.
    touched: BTreeSet<StorageNo>,
    paths: BTreeSet<AbsPath>,
}

/// The declaration of a path of a worker in the configuration of the master.
fn configured_declaration(
    configured: &[ConfiguredStorage],
    heartbeat: &WorkerHeartbeat,
    path: &AbsPath,
) -> Option<StorageDeclaration> {
    let names = |one: &&ConfiguredStorage| {
        let selects = |w: &crate::wire::worker_selector::WorkerSelector| {
            w.selects(&heartbeat.worker_id, &heartbeat.labels)
        };
        one.paths.contains(path) && one.workers.iter().any(selects)
    };
    let found = configured.iter().find(names);
    found.map(|found| StorageDeclaration::Storage(found.id.clone()))
}

impl StorageTable {
    /// Applies a heartbeat. Returns the storages that were found to be one. The reply carries
    /// [`checks_for`](Self::checks_for) the worker. `draw` gives random bytes.
    pub(super) fn observe(
        &mut self,
        heartbeat: &WorkerHeartbeat,
        configured: &[ConfiguredStorage],
        draw: &mut impl FnMut() -> [u8; 16],
    ) -> Vec<Merge> {
        let id = &heartbeat.worker_id;
        let mut changes = Changes::default();
        let has_restarted = self.begin_heartbeat(heartbeat, &mut changes);
        let unavailable: BTreeSet<&AbsPath> =
            heartbeat.unavailable_paths.iter().map(|one| &one.path).collect();
        let named: BTreeSet<&AbsPath> =
            heartbeat.storage_paths.iter().chain(unavailable.iter().copied()).collect();
        let reports: BTreeMap<&AbsPath, &StorageReport> =
            heartbeat.storages.iter().map(|report| (&report.path, report)).collect();
        let views = self.workers.get(id).into_iter().flat_map(|known| known.views.keys());
        let dropped: Vec<AbsPath> = views.filter(|path| !named.contains(path)).cloned().collect();
        for path in dropped {
            self.remove_view(id, &path, &mut changes);
        }
        // Before any comparison goes on: paths of which the heartbeat says something else.
        let mut unchanged = BTreeSet::new();
        for path in named {
            if unavailable.contains(path) {
                self.mark_unavailable(id, path, &mut changes);
                continue;
            }
            let report = reports.get(path).copied();
            let declared = report.and_then(|report| report.declared.clone());
            let facts = Facts {
                report,
                boot_id: heartbeat.boot_id.as_ref(),
                root_id: heartbeat.root_ids.get(&path.to_string()),
                declared: declared.or_else(|| configured_declaration(configured, heartbeat, path)),
                can_report: heartbeat.protocol.is_some(),
            };
            if self.update_view(id, path, &facts, &mut changes, draw) && !has_restarted {
                unchanged.insert(path);
            }
        }
        if heartbeat.status != WorkerStatus::Stopped {
            for report in heartbeat.storage_checks.iter().filter(|r| unchanged.contains(&r.path)) {
                let merges = self.apply_check(id, report, &mut changes.touched);
                if !merges.is_empty() {
                    changes.paths.insert(report.path.clone());
                }
                changes.merges.extend(merges);
            }
        }
        let merges = self.settle(changes);
        self.record_requests(id, draw);
        merges
    }

    /// True: another process reports than before, so nothing of its probe files is known.
    fn begin_heartbeat(&mut self, heartbeat: &WorkerHeartbeat, changes: &mut Changes) -> bool {
        let id = &heartbeat.worker_id;
        let is_active = heartbeat.status != WorkerStatus::Stopped;
        if !self.workers.contains_key(id) {
            self.workers.insert(id.clone(), Default::default());
        }
        let Some(known) = self.workers.get_mut(id) else { return true };
        let was_active = std::mem::replace(&mut known.is_active, is_active);
        let has_restarted = known.incarnation != heartbeat.incarnation;
        if has_restarted {
            known.incarnation.clone_from(&heartbeat.incarnation);
        }
        if !has_restarted && was_active == is_active {
            return false;
        }
        let paths: Vec<AbsPath> = known.views.keys().cloned().collect();
        for path in &paths {
            changes.touched.extend(self.cancel_comparisons_of(id, path));
            if let Some(view) = self.view_mut(id, path) {
                // Reported again below, if it is there.
                view.is_available = false;
                if has_restarted {
                    view.probe = Default::default();
                }
            }
        }
        self.version += 1;
        has_restarted
    }

    /// A path that cannot be used now keeps its view, which takes part in no comparison.
    fn mark_unavailable(&mut self, worker: &WorkerId, path: &AbsPath, changes: &mut Changes) {
        let Some(view) = self.view_mut(worker, path) else { return };
        if std::mem::replace(&mut view.is_available, false) {
            changes.touched.extend(self.cancel_comparisons_of(worker, path));
            self.version += 1;
        }
    }

    /// True: it is the same view as before, of the same directory.
    fn update_view(
        &mut self,
        worker: &WorkerId,
        path: &AbsPath,
        facts: &Facts<'_>,
        changes: &mut Changes,
        draw: &mut impl FnMut() -> [u8; 16],
    ) -> bool {
        let known = self.view(worker, path);
        if let Some(view) = known
            && facts.report.is_none()
            && facts.can_report
            && view.report.is_some()
        {
            let is_new = !view.is_unreported;
            self.mark_unavailable(worker, path, changes);
            if let Some(view) = self.view_mut(worker, path).filter(|_| is_new) {
                view.is_unreported = true;
                self.update_membership(worker, path);
            }
            return false;
        }
        let is_same = known.is_some_and(|view| view.is_linked && facts.describe(view));
        let was_available = known.is_some_and(|view| view.is_available && !view.is_unreported);
        if !is_same {
            self.place_view(worker, path, facts, changes, draw);
        }
        let lacks_probe = |view: &View| view.report.is_some() && view.probe.name.is_none();
        if let Some(view) = self.view_mut(worker, path) {
            (view.is_available, view.is_unreported) = (true, false);
            if lacks_probe(view) {
                view.probe = new_probe(draw);
            }
        }
        if is_same {
            self.extend_period(worker, path);
        }
        if is_same && was_available {
            return true;
        }
        self.update_membership(worker, path);
        self.version += 1;
        let no = self.view(worker, path).and_then(|view| view.storage);
        if let Some(no) = no {
            if is_same {
                self.evict_unproved(no, worker, changes, draw);
            }
            changes.touched.insert(no);
        }
        let merges = self.unite_with_same_root(worker, path, &mut changes.touched);
        changes.merges.extend(merges);
        changes.paths.insert(path.clone());
        is_same
    }

    /// A view that never changed is back: the one that came back before it with a new kernel is compared with it.
    fn evict_unproved(
        &mut self,
        no: StorageNo,
        back: &WorkerId,
        changes: &mut Changes,
        draw: &mut impl FnMut() -> [u8; 16],
    ) {
        let Some(storage) = self.storages.get(&no) else { return };
        let Some(unproved) = storage.unproved.clone().filter(|unproved| unproved != back) else {
            return;
        };
        let path = storage.path.clone();
        let has_report = self.view(back, &path).is_some_and(|view| view.report.is_some());
        if !has_report {
            return;
        }
        changes.touched.extend(self.cancel_comparisons_of(&unproved, &path));
        self.unlink(&unproved, &path);
        let own = self.add_storage(&path, draw);
        if let Some(view) = self.view_mut(&unproved, &path) {
            // Before, it may have been another disk.
            view.periods.drain(..view.periods.len().saturating_sub(1));
            (view.evidence, view.is_self_reported) = (StorageEvidence::Single, false);
        }
        self.link(&unproved, &path, own);
        changes.touched.insert(own);
    }

    /// Finds the storage of a new or changed view.
    fn place_view(
        &mut self,
        worker: &WorkerId,
        path: &AbsPath,
        facts: &Facts<'_>,
        changes: &mut Changes,
        draw: &mut impl FnMut() -> [u8; 16],
    ) {
        changes.touched.extend(self.cancel_comparisons_of(worker, path));
        changes.paths.insert(path.clone());
        let before = self.view(worker, path).cloned();
        let before = before.unwrap_or_else(|| View::new(path.clone()));
        self.unlink(worker, path);
        let view = View {
            report: facts.report.cloned(),
            boot_id: facts.boot_id.cloned(),
            root_id: facts.root_id.cloned(),
            declared: facts.declared.clone(),
            ..View::new(path.clone())
        };
        if let Some(known) = self.workers.get_mut(worker) {
            known.views.insert(path.clone(), view);
        }
        let last = before.storage.filter(|no| self.storages.contains_key(no));
        let (no, evidence) = match facts.report {
            Some(report) => {
                self.choose_by_report(worker, &before, last, report, facts, (&mut *changes, draw))
            }
            None => self.choose_unreported(path, &before, last, facts),
        };
        let no = no.unwrap_or_else(|| self.add_storage(path, draw));
        if let Some(view) = self.view_mut(worker, path) {
            view.evidence = evidence;
        }
        self.link(worker, path, no);
        self.begin_period(worker, path, &before, &mut changes.touched);
        changes.touched.insert(no);
        if let Some(last) = last.filter(|last| *last != no) {
            let is_left = self.storages.get(&last).is_some_and(|s| s.linked.is_empty());
            // What used the storage by this path goes on where the path leads now: nothing is left
            // of the storage that it could be mixed with.
            changes.merges.extend(is_left.then_some(Merge { from: last, into: no }));
            self.remove_if_empty(last);
        }
    }

    /// The storage of a view with a fingerprint, and how that is known. `None`: one of its own.
    fn choose_by_report(
        &mut self,
        worker: &WorkerId,
        before: &View,
        last: Option<StorageNo>,
        report: &StorageReport,
        facts: &Facts<'_>,
        (changes, draw): (&mut Changes, &mut impl FnMut() -> [u8; 16]),
    ) -> (Option<StorageNo>, StorageEvidence) {
        let (path, now) = (&report.path, &report.fingerprint);
        let then = before.fingerprint();
        let has_same_root =
            before.boot_id.as_ref() == facts.boot_id && before.root_id.as_ref() == facts.root_id;
        let is_same_key = has_same_root
            && then.is_some_and(|then| match facts.boot_id.and(facts.root_id) {
                Some(_) => is_same_directory(then, now),
                None => then == now,
            });
        if before.is_linked && is_same_key && last.is_some() {
            if let Some(view) = self.view_mut(worker, path) {
                (view.is_unproved, view.is_self_reported) =
                    (before.is_unproved, before.is_self_reported);
            }
            return (last, before.evidence);
        }
        if let Some(peer) = self.storage_with_same_root(worker, path) {
            let unproved = self.storages.get(&peer).and_then(|storage| storage.unproved.as_ref());
            let root = self.view(worker, path).and_then(View::root);
            let is_unproved = unproved.and_then(|other| self.view(other, path)?.root()) == root;
            match is_unproved {
                true => self.confirm_unproved(peer),
                false => self.evict_unproved(peer, worker, changes, draw),
            }
            return (Some(peer), StorageEvidence::Proved);
        }
        let declared = match &facts.declared {
            Some(StorageDeclaration::Storage(id)) => Some(id),
            _ => None,
        };
        if let Some(no) = last {
            let others = self.views_of(no).filter(|(_, view)| view.report.is_some());
            let others: Vec<WorkerId> = others.map(|(other, _)| other.clone()).collect();
            let is_alone = !before.is_self_reported
                && !others.iter().any(|other| self.is_present(other, path));
            if is_alone && then.is_some_and(|then| looks_alike(then, now)) {
                let earlier = self.storages.get(&no).and_then(|storage| storage.unproved.clone());
                let has_others = others.iter().any(|other| Some(other) != earlier.as_ref());
                if let Some(earlier) = earlier {
                    self.unlink(&earlier, path);
                }
                self.set_unproved(worker, path, has_others);
                self.forget_results(no, path, changes);
                return (Some(no), StorageEvidence::Single);
            }
            let is_empty = self.storages.get(&no).is_some_and(|storage| storage.linked.is_empty());
            if is_empty {
                self.forget_results(no, path, changes);
                return (Some(no), StorageEvidence::Single);
            }
        }
        let unreported = declared.and_then(|id| {
            let same = self.by_path.get(path)?;
            let claims = |no: &StorageNo| {
                self.storages.get(no).is_some_and(|storage| storage.claims.contains_key(id))
                    && self.views_of(*no).all(|(_, view)| view.report.is_none())
            };
            same.storages.iter().copied().find(claims)
        });
        match unreported {
            Some(no) => (Some(no), StorageEvidence::Declared),
            None => (None, StorageEvidence::Single),
        }
    }

    fn set_unproved(&mut self, worker: &WorkerId, path: &AbsPath, is_unproved: bool) {
        if let Some(view) = self.view_mut(worker, path) {
            view.is_unproved = is_unproved;
        }
    }

    /// Comparisons with a storage are repeated, after its only view came back as another directory.
    fn forget_results(&mut self, no: StorageNo, path: &AbsPath, changes: &mut Changes) {
        self.clear_results(no);
        let all = self.by_path.get(path).into_iter().flat_map(|same| same.storages.iter());
        self.unsettled.extend(all.clone());
        changes.touched.extend(all.filter(|other| **other > no));
    }

    /// The storage of a view without a fingerprint: the one that is declared.
    fn choose_unreported(
        &self,
        path: &AbsPath,
        before: &View,
        last: Option<StorageNo>,
        facts: &Facts<'_>,
    ) -> (Option<StorageNo>, StorageEvidence) {
        let Some(StorageDeclaration::Storage(id)) = &facts.declared else {
            let is_own = |no: &StorageNo| {
                before.report.is_none()
                    && self.storages.get(no).is_some_and(|storage| storage.linked.is_empty())
            };
            return (last.filter(is_own), StorageEvidence::Single);
        };
        let same = self.by_path.get(path).into_iter().flat_map(|same| same.storages.iter());
        let mut claimants = same
            .filter_map(|no| self.storages.get_key_value(no))
            .filter(|(_, storage)| storage.claims.contains_key(id));
        let first = claimants.clone().next();
        let keeper = claimants.find(|(_, storage)| storage.declared_id.as_ref() == Some(id));
        (keeper.or(first).map(|(no, _)| *no), StorageEvidence::Declared)
    }

    fn remove_view(&mut self, worker: &WorkerId, path: &AbsPath, changes: &mut Changes) {
        changes.touched.extend(self.cancel_comparisons_of(worker, path));
        changes.paths.insert(path.clone());
        let last = self.view(worker, path).and_then(|view| view.storage);
        self.unlink(worker, path);
        self.mark_view_unsaved(worker, path);
        if let Some(known) = self.workers.get_mut(worker) {
            known.views.remove(path);
        }
        if let Some(last) = last {
            self.remove_if_empty(last);
        }
        self.version += 1;
    }

    /// Begins the comparisons that are due, and judges declarations.
    fn settle(&mut self, changes: Changes) -> Vec<Merge> {
        let mut paths = changes.paths;
        for no in changes.touched {
            paths.extend(self.path(no).cloned());
            self.compare(no);
        }
        for path in &paths {
            self.judge_declarations(path);
        }
        changes.merges
    }

    /// A silent worker is compared with nothing, and another view of its storages takes its place. One that is not silent
    /// any more is compared again from its next heartbeat: it may have something else at its paths.
    pub(super) fn set_active(&mut self, worker: &WorkerId, is_active: bool) {
        let Some(known) = self.workers.get_mut(worker).filter(|known| known.is_active) else {
            return;
        };
        if is_active {
            return;
        }
        known.is_active = false;
        let paths: Vec<AbsPath> = known.views.keys().cloned().collect();
        let mut changes = Changes::default();
        for path in &paths {
            changes.touched.extend(self.cancel_comparisons_of(worker, path));
        }
        self.version += 1;
        self.settle(changes);
    }

    /// Removes the views of a worker.
    pub(super) fn forget(&mut self, worker: &WorkerId) {
        let views = self.workers.get(worker).into_iter().flat_map(|known| known.views.keys());
        let paths: Vec<AbsPath> = views.cloned().collect();
        let mut changes = Changes::default();
        for path in &paths {
            self.remove_view(worker, path, &mut changes);
        }
        self.workers.remove(worker);
        self.settle(changes);
    }
}
