//! The stages of a sync: what follows when it has no task left, what keeps a mirror from deleting, and
//! the end.

use super::sync::{Stop, Sync};
use super::task::TaskState;
use super::{NewTask, Now, State};
use crate::util::units;
use crate::wire::options::{
    Attribute, Chown, Compare, DeleteOptions, EntryAction, Preserve, SyncOptions, Verify,
    WriteRules,
};
use crate::wire::sync::{SyncOutcome, SyncState};
use crate::wire::task::{ScanPage, TaskSpec, WorkItem};
use crate::wire::{RelPath, SyncNo, WorkerId};
use serde::{Deserialize, Serialize};

/// Where an active sync stands. It goes on when it has no task left; a stage that is not wanted is
/// passed over.
///
/// ```text
/// Copy ─▶ Readback ─▶ Count ─▶ Secure ─▶ Prune ─▶ Replace ─▶ Sweep ─▶ Flush ─▶ COMPLETED or FAILED
///   │         │          │        │                            ▲       ▲
///   │         │          └────────┴─────── a guard stops ──────┤       │
///   └─────────┴──────────────── an entry failed ───────────────┴───────┘
/// ```
///
/// A dry run has `Copy` and `Activity` only. From `Secure` and `Flush` it goes back to `Readback` where a host lost what it had
/// not flushed ([`recheck`](super::recheck)). A sync that was cancelled is swept as well, by a task that
/// waits until nobody can be writing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The source is listed and copied.
    #[default]
    Copy,
    /// The source is listed again and compared with what the destination has on its disks.
    Readback,
    /// What the source does not have is counted.
    Count,
    /// What was copied is put on stable storage: a file that was renamed at the source must not go
    /// before its new name is safe.
    Secure,
    /// What the source does not have is deleted.
    Prune,
    /// The source is listed again, for entries in whose place directories stood that were deleted.
    Replace,
    /// What was kept for the names of one file is removed.
    Sweep,
    /// Everything is put on stable storage.
    Flush,
}

impl Stage {
    const ALL: [Stage; 8] = [
        Stage::Copy,
        Stage::Readback,
        Stage::Count,
        Stage::Secure,
        Stage::Prune,
        Stage::Replace,
        Stage::Sweep,
        Stage::Flush,
    ];
}

impl Sync {
    /// How one of its tasks is to be done now. The filter goes only with those that look for entries.
    pub(super) fn options(&self, spec: &TaskSpec) -> SyncOptions {
        let mut options = self.request.options.clone();
        options.allow_overlap = false;
        if self.is_late_sweep(spec) {
            (options.preserve, options.chown) = (Preserve::NONE, Chown::default());
        }
        if self.stage == Stage::Readback {
            options.compare = Compare::Checksum;
        }
        if matches!(spec, TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Prune { .. }) {
            options.filter = self.filter.clone();
        }
        options
    }

    /// Whether a task removes what an ended sync kept. Another sync may use the destination already: metadata of the
    /// root, which a sweep sets otherwise, are that one's.
    fn is_late_sweep(&self, spec: &TaskSpec) -> bool {
        *spec == TaskSpec::CleanUp && !self.is_active()
    }

    /// … and how the destination is to be written by one of them.
    pub(super) fn rules(&self, spec: &TaskSpec) -> WriteRules {
        let readback = self.stage == Stage::Readback;
        let mut rules = WriteRules { readback, ..self.request.options.write_rules() };
        if self.is_late_sweep(spec) {
            (rules.preserve, rules.chown) = (Preserve::NONE, Chown::default());
        }
        if readback || matches!(spec, TaskSpec::Range { compare: true, .. }) {
            // Whatever the operator compares by: the range is to be looked at, not the whole file.
            rules.compare = Compare::Checksum;
        }
        rules
    }

    /// What the operator chose.
    pub(super) fn chosen(&self) -> SyncOptions {
        SyncOptions { filter: self.filter.clone(), ..self.request.options.clone() }
    }

    /// Whether it asks for anything that was not always there.
    pub(super) fn has_options(&self) -> bool {
        // No agent needs that one.
        let allow_overlap = self.request.options.allow_overlap;
        let default = SyncOptions { allow_overlap, ..SyncOptions::default() };
        let asked = self.request.options != default || self.filter_key().is_some();
        asked || self.recheck.begun()
    }

    /// Whether nothing is to be changed.
    pub(super) fn dry_run(&self) -> bool {
        self.request.options.dry_run
    }

    /// Whether large files are compared before they are sent. That is also how a file that is there
    /// gets its digest, where one is wanted: each range is read once, by whoever has time.
    pub(super) fn compares(&self) -> bool {
        let options = &self.request.options;
        self.stage == Stage::Readback || options.compare == Compare::Checksum || options.manifest
    }

    /// Whether one range of a large file tells first whether it is worth comparing the others.
    pub(super) fn asks_first(&self) -> bool {
        self.stage == Stage::Copy
            && self.request.options.manifest
            && self.request.options.compare != Compare::Checksum
    }

    /// Whether what is found and done now is what the sync is about: the second pass over the source
    /// only checks what was counted before.
    pub(super) fn counts(&self) -> bool {
        self.stage == Stage::Copy
    }

    /// Whether names of one file are to stay so: then the destination keeps something to find them.
    pub(super) fn keeps_links(&self) -> bool {
        !self.dry_run() && self.request.options.preserve.contains(Attribute::Hardlinks)
    }

    /// The stage that follows, if any.
    fn follows(&self) -> Option<Stage> {
        if self.recheck.wanted() {
            return Some(Stage::Readback);
        }
        Stage::ALL.into_iter().find(|stage| *stage > self.stage && self.wants(*stage))
    }

    fn wants(&self, stage: Stage) -> bool {
        let options = &self.request.options;
        let stopped = self.stopped.is_some();
        let mirror = options.delete.is_some() && self.error_counts.is_empty();
        let worked = !self.hard_failures && !self.root_failed;
        match stage {
            Stage::Copy => false,
            Stage::Readback => {
                options.verify == Verify::Readback && !options.dry_run && worked && !stopped
            }
            // What was counted before all was compared again still holds.
            Stage::Count => mirror && !self.recheck.begun() && (!stopped || options.dry_run),
            Stage::Secure => self.wants(Stage::Prune) && !self.writers.is_empty(),
            Stage::Prune => {
                mirror && !stopped && !options.dry_run && self.counters.pruned.extraneous > 0
            }
            Stage::Replace => self.wants_replacing() && !stopped && !options.dry_run,
            Stage::Sweep => self.to_sweep && !options.dry_run,
            Stage::Flush => !self.writers.is_empty(),
        }
    }

    /// The guard that keeps a mirror from going on to `next`.
    fn guard(&self, next: Option<Stage>) -> Option<Stop> {
        let delete = self.request.options.delete.as_ref().filter(|_| self.stopped.is_none())?;
        match (self.stage, next) {
            (Stage::Count, _) => self.unverified_copy().or_else(|| self.over_limit(delete)),
            (_, Some(Stage::Count)) => {
                self.unverified_copy().or_else(|| self.found_nothing(delete))
            }
            _ => None,
        }
    }

    /// What is deleted may be the only copy of what a task without evidence did not copy.
    fn unverified_copy(&self) -> Option<Stop> {
        let why = why_unverified(self.counters.unverified)?;
        let why = format!("{why}: nothing was deleted at the destination");
        // Nothing is known to be missing.
        Some(Stop { why, copied: true })
    }

    /// The guard `why`, with what was done until now and what allows it.
    pub(super) fn stop(&self, why: &str, allow: &str) -> Stop {
        let deleted =
            self.counters.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count);
        let (copied, done) = match self.stage {
            Stage::Copy if self.reach.is_empty() => (false, "nothing was copied"),
            Stage::Copy => (false, "not everything was copied"),
            // A host lost what it had not flushed, and this pass brings it again.
            Stage::Readback if self.recheck.begun() => (false, "not everything was copied"),
            Stage::Readback => (true, "everything was copied, not all of it was read back"),
            Stage::Replace if !self.blocked.is_empty() => (false, "not everything was copied"),
            _ => (true, "everything was copied"),
        };
        if self.dry_run() {
            return Stop { why: format!("{why}; {allow}"), copied };
        }
        let deleted = match deleted {
            0 => "nothing was deleted".to_owned(),
            n => format!("{} deleted", units::pluralize(n, "entry was", "entries were")),
        };
        Stop { why: format!("{why}: {done}, {deleted}; {allow}"), copied }
    }

    /// The guard against a source of which no worker has said what its root is, and in which nothing was
    /// found: see [`Sync::wrong_root`].
    fn found_nothing(&self, delete: &DeleteOptions) -> Option<Stop> {
        // The root is a directory that is found.
        let nothing = self.counters.files_total == 0 && self.counters.dirs_total <= 1;
        let empty = self.source_root.as_ref().is_none_or(|root| root.empty);
        (nothing && empty && !delete.allow_empty_source).then(|| {
            // What was written, if anything, is the root itself.
            let why = format!(
                "the source {} is empty: there was nothing to copy, nothing was deleted; {ALLOW_EMPTY}",
                self.request.source_path
            );
            Stop { why, copied: false }
        })
    }

    fn over_limit(&self, delete: &DeleteOptions) -> Option<Stop> {
        let (seen, extra) = (self.counters.pruned.checked, self.counters.pruned.extraneous);
        if let Some(max) = delete.max.filter(|max| extra > *max) {
            let why = format!(
                "{} not in the source, and at most {max} may be deleted",
                units::pluralize(
                    extra,
                    "entry at the destination is",
                    "entries at the destination are"
                )
            );
            let allow = format!("to allow them use --max-delete {extra} (delete.max)");
            return Some(self.stop(&why, &allow));
        }
        let percent = u128::from(delete.max_percent);
        let over = u128::from(extra) * 100 > percent * u128::from(seen);
        over.then(|| {
            let needed = (u128::from(extra) * 100).div_ceil(u128::from(seen).max(1)).min(100);
            let why = format!(
                "{} of the {} at the destination {} not in the source, and at most {percent} % may be deleted",
                units::format_count(extra),
                units::pluralize(seen, "entry", "entries"),
                if extra == 1 { "is" } else { "are" }
            );
            let allow = format!(
                "to allow them use --max-delete-percent {needed} (delete.max_percent)"
            );
            self.stop(&why, &allow)
        })
    }

    /// How many entries the limits let be deleted, of those that were counted.
    pub(super) fn most_deleted(&self) -> u64 {
        let Some(delete) = &self.request.options.delete else { return 0 };
        let part = u128::from(self.counters.pruned.checked) * u128::from(delete.max_percent) / 100;
        u64::try_from(part).unwrap_or(u64::MAX).min(delete.max.unwrap_or(u64::MAX))
    }

    /// How many were deleted so far, as reported.
    pub(super) fn deleted(&self) -> u64 {
        self.counters.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count)
    }

    /// The guard against a source that has lost so much since the extra entries were counted that the
    /// limits would not have let it pass. `budget_exhausted`: an agent met the end of its allowance.
    pub(super) fn deleted_too_much(&self, used_up: bool) -> Option<Stop> {
        let over = used_up || self.deleted() > self.most_deleted();
        (self.stage == Stage::Prune && over).then(|| {
            let why = format!(
                "more entries at the destination are extra than the limits let be deleted, where {} of {} \
                 had been counted: the source {} has lost entries since",
                self.counters.pruned.extraneous, self.counters.pruned.checked, self.request.source_path
            );
            self.stop(&why, "check that all of it is mounted")
        })
    }

    /// The guard against a source root that is not what it was on the file system `known` at the last
    /// run (or at an earlier page of this one), or that is empty. An empty source is more often one that is
    /// not mounted than one that was emptied.
    fn wrong_root(&self, page: &ScanPage, known: Option<&str>) -> Option<Stop> {
        let (root, delete) = (page.root.as_ref()?, self.request.options.delete.as_ref()?);
        let other = known
            .filter(|known| *known != root.file_system && !delete.allow_new_source_fs)
            .map(|known| {
                format!(
                    "lies on another file system than before (now {}, before {known})",
                    root.file_system
                )
            });
        let empty = root.empty && !delete.allow_empty_source;
        let empty = empty && (self.stage > Stage::Copy || holds_only_the_root(page));
        let (what, allow) = match (other, empty) {
            (None, false) => return None,
            (None, true) => ("is empty".to_owned(), ALLOW_EMPTY),
            (Some(other), false) => (other, ALLOW_NEW_FS),
            (Some(other), true) => (format!("is empty and {other}"), ALLOW_BOTH),
        };
        Some(self.stop(&format!("the source {} {what}", self.request.source_path), allow))
    }
}

/// How to go on where an empty source is no mistake …
const ALLOW_EMPTY: &str = "check that it is mounted; if it is meant to be empty, allow it with \
                           delete.allow_empty_source (--allow-empty-source)";
/// … where another file system is none …
const ALLOW_NEW_FS: &str = "check what is mounted there; if it is right, allow it with \
                            delete.allow_new_source_fs (--allow-new-source-fs)";
/// … and where both are none.
const ALLOW_BOTH: &str = "check that it is mounted; if both are right, allow it with \
                          delete.allow_empty_source and delete.allow_new_source_fs \
                          (--allow-empty-source --allow-new-source-fs)";

/// Whether a first page of the whole source is also the last one, with nothing but the root's own entry.
fn holds_only_the_root(page: &ScanPage) -> bool {
    let small = |item: &WorkItem| matches!(item, WorkItem::Copy { files: 0, dirs: 0..=1, .. });
    page.next.is_none()
        && page.subtrees.is_empty()
        && page.errors.is_empty()
        && page.work.len() <= 1
        && page.work.iter().all(small)
}

impl State {
    /// Moves a sync on that has no task left.
    pub(super) fn advance(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let (active, forgotten) = (sync.is_active(), sync.forgotten);
        let idle = sync.tasks.is_empty() && sync.larges.is_empty();
        if !active {
            self.release_paths(no, now);
        }
        if !idle {
            return;
        }
        if !active {
            if forgotten {
                if !self.is_lingering(no) {
                    self.remove_sync(no, now);
                }
            } else {
                self.forget_workers(no);
            }
            return;
        }
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if let Some(stop) = sync.guard(sync.follows()) {
            tracing::warn!(sync = %sync.id, why = stop.why, "a mirror does not delete");
            sync.stopped = Some(stop);
        }
        let next = sync.follows();
        self.settle_blocked(no, next, now);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        match sync.follows() {
            Some(next) => self.enter(no, next),
            // Another look: there may be something to compare now.
            None if self.recheck_replaced(no) => return self.advance(no, now),
            None => self.finish(no, now),
        }
        self.changed(no, now);
        self.touched.remove(&no);
    }

    /// Begins a stage.
    fn enter(&mut self, no: SyncNo, stage: Stage) {
        self.forget_groups(no);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        sync.stage = stage;
        let prune = |apply| TaskSpec::Prune { dir: RelPath::root(), cursor: None, apply };
        match stage {
            Stage::Copy => {}
            Stage::Readback => {
                if sync.recheck.wanted() {
                    sync.recheck.begin();
                    // They tell of the last pass.
                    (sync.counters.verified_files, sync.counters.repaired_files) = (0, 0);
                }
                sync.blocked.begin_readback();
                sync.listing.readback_from = Some(sync.listing.length);
                self.add_scans(no);
            }
            Stage::Replace => self.add_scans(no),
            Stage::Count => drop(self.add_task(NewTask::ready(no, prune(false)), None)),
            Stage::Prune => drop(self.add_task(NewTask::ready(no, prune(true)), None)),
            Stage::Sweep => {
                sync.to_sweep = false;
                self.add_task(NewTask::ready(no, TaskSpec::CleanUp), None);
            }
            Stage::Secure | Stage::Flush => {
                let writers: Vec<WorkerId> =
                    sync.writers.iter().map(|(worker, _)| worker.clone()).collect();
                for worker in writers {
                    let bound = Some(worker);
                    self.add_task(NewTask { bound, ..NewTask::ready(no, TaskSpec::Flush) }, None);
                }
            }
        }
    }

    /// A sync that was cancelled leaves nothing behind either: it is swept when nobody can be writing
    /// any more.
    pub(super) fn sweep_later(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if std::mem::take(&mut sync.to_sweep) {
            let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            let state = TaskState::Delayed { until_ms };
            self.add_task(NewTask { state, ..NewTask::ready(no, TaskSpec::CleanUp) }, None);
        }
    }

    /// Notes what a page says of the source root. The guard that stops the sync there, if one does.
    pub(super) fn note_root(&mut self, no: SyncNo, page: &ScanPage) -> Option<Stop> {
        let root = page.root.as_ref()?;
        let sync = self.syncs.get_mut(&no)?;
        let before = sync.source_root.as_ref().map(|root| root.file_system.as_str());
        let known = before.or_else(|| self.pairs.known(&sync.request));
        let stop = sync.wrong_root(page, known);
        sync.source_root.get_or_insert_with(|| root.clone());
        if sync.dry_run() && stop.is_some() {
            // It changes nothing, and goes on to report what it would do. The first guard would stop it.
            sync.stopped = sync.stopped.take().or(stop);
            return None;
        }
        stop
    }

    /// Ends a sync before it does harm. What was written is still swept and flushed.
    pub(super) fn halt(&mut self, no: SyncNo, stop: Stop, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        tracing::warn!(sync = %sync.id, why = stop.why, "a mirror stops");
        sync.stopped = Some(stop);
        if sync.stage == Stage::Prune {
            sync.suspect_all();
        }
        self.abandon(no, now);
        self.changed(no, now);
    }

    fn finish(&mut self, no: SyncNo, now: Now) {
        let lived = self.clock.lived_ms(now);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        (sync.ended_ms, sync.ended_lived_ms) = (Some(now.wall_ms), Some(lived));
        (sync.state, sync.outcome, sync.reason) = end(sync);
        tracing::info!(sync = %sync.id, state = sync.state.as_str(), "sync ended");
        if sync.outcome == Some(SyncOutcome::Full) && !sync.dry_run() {
            let (request, root) = (sync.request.clone(), sync.source_root.clone());
            let (changed, dropped) = match root {
                Some(root) => self.pairs.remember(&request, root.file_system, now.wall_ms),
                None => (None, None),
            };
            [changed, dropped].into_iter().flatten().for_each(|key| self.put(key));
        }
        if self.syncs.get(&no).is_some_and(|s| s.outcome == Some(SyncOutcome::Full)) {
            self.drop_list(no);
        }
        self.forget_groups(no);
        self.forget_workers(no);
        self.release_paths(no, now);
    }
}

/// The final state of a sync once its work is done. `COMPLETED` only if every entry that was found is accounted for
/// and none failed.
fn end(sync: &Sync) -> (SyncState, Option<SyncOutcome>, Option<String>) {
    let counters = &sync.counters;
    let files = counters.files_done + counters.files_skipped + counters.files_failed;
    let dirs = counters.dirs_done + counters.dirs_failed;
    let failed: u64 = sync.error_counts.values().fold(0, |sum, n| sum.saturating_add(*n));
    if failed > 0 {
        let outcome = match (sync.root_failed, sync.hard_failures) {
            (true, _) => None,
            (false, true) if brought_nothing(sync) => None,
            (false, false) if counters.unverified == 0 => Some(SyncOutcome::VanishedOnly),
            (false, false) => Some(SyncOutcome::Unverified),
            (false, true) => Some(SyncOutcome::Partial),
        };
        return (SyncState::Failed, outcome, Some(why_failed(sync, failed)));
    }
    let unverified = why_unverified(counters.unverified);
    if let (Some(stop), false) = (&sync.stopped, sync.dry_run()) {
        let outcome = match (stop.copied, &unverified) {
            (false, _) => SyncOutcome::CopyStopped,
            // That everything was copied is not known.
            (true, Some(_)) => SyncOutcome::Unverified,
            (true, None) => SyncOutcome::DeleteStopped,
        };
        return (SyncState::Failed, Some(outcome), Some(stop.why.clone()));
    }
    if files != counters.files_total || dirs != counters.dirs_total {
        let reason = format!(
            "the counters do not add up ({files} of {} files, {dirs} of {} directories): this is a \
             defect; submit the sync again",
            counters.files_total, counters.dirs_total
        );
        return (SyncState::Failed, Some(SyncOutcome::Partial), Some(reason));
    }
    let outcome = if unverified.is_some() { SyncOutcome::Unverified } else { SyncOutcome::Full };
    if let Some(stop) = &sync.stopped {
        let would = if stop.copied {
            "refuse to delete (exit 25)"
        } else {
            "stop before it copies (exit 8)"
        };
        let reason = format!("a real run would {would}: {}", stop.why);
        return (SyncState::Completed, Some(outcome), Some(reason));
    }
    let lost = sync.listing.lost.as_ref();
    let lost =
        lost.map(|why| format!("the outcome of each file is not completely recorded: {why}"));
    (SyncState::Completed, Some(outcome), unverified.or(lost))
}

/// Whether every file failed (where there are none, every directory): what failed is not a part of the whole.
fn brought_nothing(sync: &Sync) -> bool {
    let counters = &sync.counters;
    let (files, dirs) = (counters.files_failed, counters.dirs_failed);
    let none = counters.files_done + counters.files_skipped == 0;
    none && (files > 0 || counters.dirs_done == 0 && dirs > 0)
}

/// The reason for the outcome [`SyncOutcome::Unverified`], where `tasks` were done without evidence.
fn why_unverified(tasks: u64) -> Option<String> {
    (tasks > 0).then(|| {
        format!(
            "{} reported done without evidence (by a worker that sends no digest, report or source root); check the \
             destination with `ctl sync verify`, or stop that worker and submit the sync again",
            units::pluralize(tasks, "task was", "tasks were")
        )
    })
}

fn why_failed(sync: &Sync, failed: u64) -> String {
    let of_root = sync.errors.iter().find(|error| sync.root_failed && error.path.0.is_empty());
    if let Some(error) = of_root {
        return error.message.clone();
    }
    let cause = sync.error_counts.iter().max_by_key(|(_, n)| **n).map(|(c, _)| c.as_str());
    let mut reason = format!("{failed} failed, most of them: {}", cause.unwrap_or("unknown"));
    let options = &sync.request.options;
    if options.verify == Verify::Readback && sync.listing.readback_from.is_none() {
        reason.push_str("; nothing was read back, because of these errors");
    }
    let deletes = options.delete.is_some() && !options.dry_run;
    if deletes && !sync.counters.actions.contains_key(&EntryAction::Delete) {
        reason.push_str("; nothing was deleted, because of these errors");
    }
    reason
}
