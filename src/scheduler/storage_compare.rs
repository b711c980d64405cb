//! Comparisons of storages that have one path: which are due, what agents do for them, and what comes of it.
//!
//! Each storage is compared with the oldest storage of its path of which it is not known yet whether it is the same. So
//! n newcomers that see one file tree need n comparisons: each is merged into the oldest storage, and takes part in later
//! comparisons as a part of it.
//!
//! A comparison goes through one view of each storage. The worker of the new storage looks for the probe file of the
//! old one, then the other way round: a file in a snapshot or a copy of the tree is found in one direction only. Where
//! one side cannot write, the other direction is enough, but the result then holds for that view alone: only its own
//! agent could report it. Where neither can, samples are compared. No look is requested before the file was reported to
//! exist, so that a missing file means another tree.

use super::storage_table::{Merge, StorageTable};
use super::storage_types::{Comparison, Probe, StorageNo, View, is_same_directory};
use crate::wire::storage::{
    ProbeName, ProbeSecret, StorageCheck, StorageCheckReport, StorageEvidence,
};
use crate::wire::{AbsPath, WorkerId};
use std::collections::BTreeSet;

/// The maximum number of probe files that an agent looks for at once at one path.
pub(super) const MAX_LOOKS: usize = 256;

/// The next step of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The worker of the new storage looks for the probe file of the old one.
    LookForOld,
    /// … and the other way round.
    LookForNew,
    Sample,
    AllFound,
}

/// What came of a comparison.
enum Verdict {
    Same(StorageEvidence),
    Different,
}

fn next_step(comparison: &Comparison, old: &View, new: &View) -> Step {
    let (old_makes, new_makes) = (old.can_make_probe(), new.can_make_probe());
    if !old_makes && !new_makes {
        Step::Sample
    } else if old_makes && !comparison.has_found_old {
        Step::LookForOld
    } else if new_makes && !comparison.has_found_new {
        Step::LookForNew
    } else {
        Step::AllFound
    }
}

impl StorageTable {
    fn compared_views(&self, new: StorageNo) -> Option<(&Comparison, &View, &View)> {
        let comparison = self.comparisons.get(&new)?;
        let path = self.path(new)?;
        let old = self.view(&comparison.old_worker, path)?;
        Some((comparison, old, self.view(&comparison.new_worker, path)?))
    }

    /// Begins the comparisons of a storage that are due: with an older one, and of newer ones with it.
    pub(super) fn compare(&mut self, no: StorageNo) {
        self.start_comparison(no);
        if self.comparable_view(no).is_none() {
            return;
        }
        let newer = self.candidates(no).into_iter().filter(|other| *other > no);
        let idle: Vec<_> = newer.filter(|new| !self.comparisons.contains_key(new)).collect();
        idle.into_iter().for_each(|new| self.start_comparison(new));
    }

    /// The storages that may be the same as this one, oldest first.
    fn candidates(&self, no: StorageNo) -> Vec<StorageNo> {
        let Some(storage) = self.storages.get(&no) else { return Vec::new() };
        let Some(same) = self.by_path.get(&storage.path) else { return Vec::new() };
        let is_shareable = same.shareable.contains(&no);
        if !is_shareable && storage.claims.is_empty() {
            return same.shareable.iter().copied().collect();
        }
        let is_candidate = |other: &StorageNo| {
            is_shareable
                || same.shareable.contains(other)
                || self.storages.get(other).is_some_and(|other| storage.shares_claim(other))
        };
        same.storages.iter().copied().filter(is_candidate).collect()
    }

    fn start_comparison(&mut self, new: StorageNo) {
        if self.comparisons.contains_key(&new) {
            return;
        }
        let (Some(path), Some(new_worker)) = (self.path(new), self.comparable_view(new)) else {
            return;
        };
        let (path, new_worker) = (path.clone(), new_worker.clone());
        let older = self.candidates(new).into_iter().take_while(|old| *old < new);
        let mut unknown = older.filter(|old| !self.are_different(*old, new));
        let partner = unknown.find_map(|old| Some((old, self.comparable_view(old)?.clone())));
        let Some((old, old_worker)) = partner else { return };
        for worker in [&old_worker, &new_worker] {
            if let Some(view) = self.view_mut(worker, &path) {
                view.comparisons.insert(new);
            }
        }
        let comparison = Comparison {
            old,
            old_worker,
            new_worker,
            has_found_old: false,
            has_found_new: false,
            samples: [None, None],
        };
        self.comparisons.insert(new, comparison);
    }

    /// Ends a comparison without a result. Returns its storages.
    fn cancel_comparison(&mut self, new: StorageNo) -> Option<[StorageNo; 2]> {
        let comparison = self.comparisons.remove(&new)?;
        let path = self.path(new)?.clone();
        for worker in [&comparison.old_worker, &comparison.new_worker] {
            if let Some(view) = self.view_mut(worker, &path) {
                view.comparisons.remove(&new);
            }
        }
        Some([comparison.old, new])
    }

    /// Ends the comparisons in which a view takes part, without a result. Returns the storages that are to be compared
    /// again.
    pub(super) fn cancel_comparisons_of(
        &mut self,
        worker: &WorkerId,
        root: &AbsPath,
    ) -> BTreeSet<StorageNo> {
        let under_way = self.view(worker, root).map(|view| view.comparisons.clone());
        let under_way = under_way.into_iter().flatten();
        under_way.filter_map(|new| self.cancel_comparison(new)).flatten().collect()
    }

    /// The workers that are compared, of the old and the new storage, each with whether the result is known from its own
    /// agent alone: it cannot make a probe file, and the other one can.
    fn speakers(&self, new: StorageNo) -> Option<[(WorkerId, bool); 2]> {
        let (comparison, old_view, new_view) = self.compared_views(new)?;
        let (old_makes, new_makes) = (old_view.can_make_probe(), new_view.can_make_probe());
        Some([
            (comparison.old_worker.clone(), new_makes && !old_makes),
            (comparison.new_worker.clone(), old_makes && !new_makes),
        ])
    }

    /// Applies the result that two storages are the same. Where only the agent of a view could report it, that view joins
    /// the other storage, and what else is in its own stays there: a false report must not join what others see.
    fn join(
        &mut self,
        old: StorageNo,
        new: StorageNo,
        speakers: Option<[(WorkerId, bool); 2]>,
        evidence: StorageEvidence,
        touched: &mut BTreeSet<StorageNo>,
    ) -> Option<Merge> {
        let [of_old, of_new] = speakers?;
        let path = self.path(new)?.clone();
        let mut alone = None;
        for ((worker, is_self_reported), no, other) in [(of_old, old, new), (of_new, new, old)] {
            let has_others = self.views_of(no).any(|(other, _)| *other != worker);
            let view = self.view_mut(&worker, &path)?;
            let stands_for_others = !is_self_reported && !view.is_self_reported;
            view.is_self_reported = is_self_reported;
            self.mark_view_unsaved(&worker, &path);
            if has_others && !stands_for_others {
                alone = Some((worker, other));
            }
        }
        [old, new].into_iter().for_each(|no| self.update_shareable(no));
        let Some((worker, into)) = alone else { return self.unite(old, new, evidence, touched) };
        touched.extend(self.cancel_comparisons_of(&worker, &path));
        self.unlink(&worker, &path);
        if let Some(view) = self.view_mut(&worker, &path) {
            view.evidence = evidence;
        }
        self.link(&worker, &path, into);
        touched.extend([old, new]);
        None
    }

    /// Merges two storages. Adds those to `touched` that are to be compared again.
    pub(super) fn unite(
        &mut self,
        a: StorageNo,
        b: StorageNo,
        evidence: StorageEvidence,
        touched: &mut BTreeSet<StorageNo>,
    ) -> Option<Merge> {
        let from = a.max(b);
        let path = self.path(from)?.clone();
        let views: Vec<WorkerId> = self.views_of(from).map(|(worker, _)| worker.clone()).collect();
        for worker in &views {
            touched.extend(self.cancel_comparisons_of(worker, &path));
        }
        touched.insert(a.min(b));
        let merge = self.merge(a, b, evidence);
        self.cancel_weaker_comparisons(a.min(b), touched);
        merge
    }

    /// Cancels the comparisons of a storage through a view that cannot make a probe file, if another view of it can: what
    /// only the worker of the first one reports as found is no proof for the others.
    fn cancel_weaker_comparisons(&mut self, no: StorageNo, touched: &mut BTreeSet<StorageNo>) {
        let Some(path) = self.path(no).cloned() else { return };
        let makes = |worker: &WorkerId| self.view(worker, &path).is_some_and(View::can_make_probe);
        if !self.comparable_view(no).is_some_and(makes) {
            return;
        }
        let weaker = self.views_of(no).filter(|(_, view)| !view.can_make_probe());
        let weaker: Vec<WorkerId> = weaker.map(|(worker, _)| worker.clone()).collect();
        for worker in weaker {
            touched.extend(self.cancel_comparisons_of(&worker, &path));
        }
    }

    /// Merges the storage of a view with those of views that have the same directory open under the same kernel.
    pub(super) fn unite_with_same_root(
        &mut self,
        worker: &WorkerId,
        root: &AbsPath,
        touched: &mut BTreeSet<StorageNo>,
    ) -> Vec<Merge> {
        let mut merges = Vec::new();
        if self.view(worker, root).is_none_or(|view| view.is_self_reported) {
            return merges;
        }
        while let Some(peer) = self.storage_with_same_root(worker, root) {
            let own = self.view(worker, root).and_then(|view| view.storage);
            let proved = StorageEvidence::Proved;
            match own.and_then(|own| self.unite(own, peer, proved, touched)) {
                Some(merge) => merges.push(merge),
                None => break,
            }
        }
        merges
    }

    /// Whether no later directory can have the fingerprint of a view: its inode was made at this very time. Then the view
    /// need not be active.
    fn is_unique(&self, worker: &WorkerId, root: &AbsPath) -> bool {
        let view = self.view(worker, root).filter(|view| view.is_linked);
        view.and_then(View::fingerprint).is_some_and(|found| found.birth_time.is_some())
    }

    /// The storage of another view with the same directory open under the same kernel, unless it is the storage of this
    /// view.
    pub(super) fn storage_with_same_root(
        &self,
        worker: &WorkerId,
        root: &AbsPath,
    ) -> Option<StorageNo> {
        let view = self.view(worker, root)?;
        let own = view.storage.filter(|_| view.is_linked);
        let (boot, id) = view.root()?;
        let peers = self.by_path.get(root)?.roots.get(&(boot.to_owned(), id.to_owned()))?;
        let others = peers.iter().filter(|peer| *peer != worker);
        others.filter(|peer| self.is_present(peer, root) || self.is_unique(peer, root)).find_map(
            |peer| {
                let peer = self.view(peer, root)?;
                // A kernel uses the number of a device again after an unmount.
                let is_same = !peer.is_self_reported
                    && is_same_directory(view.fingerprint()?, peer.fingerprint()?);
                peer.storage.filter(|no| is_same && Some(*no) != own)
            },
        )
    }

    /// Applies what an agent reports of the checks at one path. The report must be of the process and the directory
    /// that the view describes.
    pub(super) fn apply_check(
        &mut self,
        worker: &WorkerId,
        report: &StorageCheckReport,
        touched: &mut BTreeSet<StorageNo>,
    ) -> Vec<Merge> {
        let root = &report.path;
        let Some(view) = self.view_mut(worker, root) else { return Vec::new() };
        let probe = &mut view.probe;
        if probe.is_requested {
            if report.made.is_some() && report.made == probe.name {
                probe.is_made = true;
            } else if report.made.is_none() && report.error.is_some() {
                // The other side makes one. If this was an error of looking, that is enough too.
                (probe.has_failed, probe.is_made) = (true, false);
            }
        }
        let under_way = view.comparisons.clone();
        let found = report.found.iter().collect();
        let missing = report.missing.iter().collect();
        let mut merges = Vec::new();
        for new in under_way {
            let Some(verdict) = self.advance(new, worker, report, &found, &missing) else {
                continue;
            };
            let Some(old) = self.comparisons.get(&new).map(|comparison| comparison.old) else {
                continue;
            };
            let speakers = self.speakers(new);
            touched.extend(self.cancel_comparison(new).into_iter().flatten());
            match verdict {
                Verdict::Same(evidence) => {
                    merges.extend(self.join(old, new, speakers, evidence, touched));
                }
                Verdict::Different => self.set_different(old, new),
            }
        }
        merges
    }

    /// Takes a comparison further by a report of one of its two workers.
    fn advance(
        &mut self,
        new: StorageNo,
        worker: &WorkerId,
        report: &StorageCheckReport,
        found: &BTreeSet<&ProbeName>,
        missing: &BTreeSet<&ProbeName>,
    ) -> Option<Verdict> {
        let (comparison, old_view, new_view) = self.compared_views(new)?;
        let is_new = comparison.new_worker == *worker;
        let step = next_step(comparison, old_view, new_view);
        let (other, own) = if is_new { (old_view, new_view) } else { (new_view, old_view) };
        let name = other.probe.name.as_ref().filter(|_| other.probe.is_made);
        let is_found = name.is_some_and(|name| found.contains(name));
        let is_missing = !is_found && name.is_some_and(|name| missing.contains(name));
        let is_sampled = own.probe.is_sampled && report.error.is_none();
        let comparison = self.comparisons.get_mut(&new)?;
        match step {
            Step::LookForOld if is_new && is_found => comparison.has_found_old = true,
            Step::LookForNew if !is_new && is_found => comparison.has_found_new = true,
            Step::LookForOld if is_new && is_missing => return Some(Verdict::Different),
            Step::LookForNew if !is_new && is_missing => return Some(Verdict::Different),
            Step::Sample if is_sampled => {
                comparison.samples[usize::from(is_new)] = Some(report.sample.clone());
                return match &comparison.samples {
                    [Some(Some(a)), Some(Some(b))] if a == b => {
                        Some(Verdict::Same(StorageEvidence::Likely))
                    }
                    // Nothing can be said of two empty directories: separate.
                    [Some(_), Some(_)] => Some(Verdict::Different),
                    _ => None,
                };
            }
            _ => {}
        }
        let (comparison, old_view, new_view) = self.compared_views(new)?;
        (next_step(comparison, old_view, new_view) == Step::AllFound)
            .then_some(Verdict::Same(StorageEvidence::Proved))
    }

    /// What the agent of a view does now.
    fn check_of(&self, worker: &WorkerId, view: &View) -> StorageCheck {
        let mut check = StorageCheck {
            path: view.path.clone(),
            make: None,
            look_for: Vec::new(),
            sample: false,
        };
        for new in &view.comparisons {
            let Some((comparison, old_view, new_view)) = self.compared_views(*new) else {
                continue;
            };
            let is_new = comparison.new_worker == *worker;
            let (makes, other) = match next_step(comparison, old_view, new_view) {
                Step::LookForOld => (!is_new, old_view),
                Step::LookForNew => (is_new, new_view),
                Step::Sample => {
                    check.sample = true;
                    continue;
                }
                Step::AllFound => continue,
            };
            if makes {
                check.make.clone_from(&view.probe.secret);
            } else if other.probe.is_made && check.look_for.len() < MAX_LOOKS {
                check.look_for.extend(other.probe.name.clone());
            }
        }
        check
    }

    /// For the reply to a heartbeat, after [`observe`](Self::observe): what the agent does until the next one.
    pub(super) fn checks_for(&self, worker: &WorkerId) -> Vec<StorageCheck> {
        let known = self.workers.get(worker).filter(|known| known.is_active);
        let views = known.into_iter().flat_map(|known| known.views.values());
        let compared = views.filter(|view| !view.comparisons.is_empty());
        let checks = compared.map(|view| self.check_of(worker, view));
        let is_due = |check: &StorageCheck| {
            check.make.is_some() || !check.look_for.is_empty() || check.sample
        };
        checks.filter(is_due).collect()
    }

    /// Records what the reply to this heartbeat will request. A probe file that it does not name is removed by the
    /// agent; the next one has another name.
    pub(super) fn record_requests(
        &mut self,
        worker: &WorkerId,
        draw: &mut impl FnMut() -> [u8; 16],
    ) {
        let Some(known) = self.workers.get(worker) else { return };
        let is_used = |view: &&View| {
            !view.comparisons.is_empty() || view.probe.is_requested || view.probe.is_sampled
        };
        let checks = known.views.values().filter(is_used).map(|view| self.check_of(worker, view));
        for check in checks.collect::<Vec<_>>() {
            let Some(view) = self.view_mut(worker, &check.path) else { continue };
            view.probe.is_sampled = check.sample;
            if check.make.is_some() {
                view.probe.is_requested = true;
            } else if view.probe.is_requested {
                let has_failed = view.probe.has_failed;
                view.probe = Probe { has_failed, ..new_probe(draw) };
                view.probe.is_sampled = check.sample;
            }
        }
    }
}

/// A probe file that does not exist yet.
pub(super) fn new_probe(draw: &mut impl FnMut() -> [u8; 16]) -> Probe {
    let secret = ProbeSecret::new(draw());
    Probe { name: Some(secret.name()), secret: Some(secret), ..Probe::default() }
}
