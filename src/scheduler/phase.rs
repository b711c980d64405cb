//! The phases of a sync: what follows when it has no tasks, the guards of a mirror, and the end.

use super::sync_job::{MirrorStop, SyncJob};
use super::task::TaskState;
use super::{NewTask, Now, State};
use crate::util::units;
use crate::wire::entry_report::EntryAction;
use crate::wire::options::{Chown, Compare, DeleteOptions, SyncOptions, Verify, WriteRules};
use crate::wire::preserve::{Attribute, Preserve};
use crate::wire::sync::{SyncOutcome, SyncState};
use crate::wire::task::{ScanPage, TaskSpec, WorkItem};
use crate::wire::{RelPath, SyncNo, WorkerId};
use serde::{Deserialize, Serialize};

/// The phase of an active sync. It ends when the sync has no tasks left; a phase that is not needed
/// is skipped.
///
/// ```text
/// Copy ─▶ Readback ─▶ CountExtraneous ─▶ FlushBeforeDelete ─▶ DeleteExtraneous ─▶ CopyBlocked ─▶ CleanUp ─▶ Flush ─▶ end
///   │         │             │                    │                                                  ▲         ▲
///   │         │             └────────────────────┴──────────────── a guard stops ───────────────────┤         │
///   └─────────┴──────────────────────────────────── an entry failed ────────────────────────────────┴─────────┘
/// ```
///
/// A dry run has `Copy` and `CountExtraneous` only. From `FlushBeforeDelete` and `Flush` a sync
/// returns to `Readback` if a host lost writes ([`recheck`](super::recheck)). A cancelled sync is
/// also cleaned up, by a task that waits until no worker can be writing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PhaseState {
    /// The source is listed and copied.
    #[default]
    Copy,
    /// The source is listed again and compared with the destination's disks.
    Readback,
    /// Extraneous entries at the destination are counted.
    CountExtraneous,
    /// Copied data are flushed: a file that was renamed at the source must not be deleted before
    /// its new name is durable.
    FlushBeforeDelete,
    /// Extraneous entries are deleted.
    DeleteExtraneous,
    /// The source is listed again for entries that were blocked by deleted directories.
    CopyBlocked,
    /// Anchors of hard links are removed.
    CleanUp,
    /// All data are flushed.
    Flush,
}

impl PhaseState {
    const ALL: [PhaseState; 8] = [
        PhaseState::Copy,
        PhaseState::Readback,
        PhaseState::CountExtraneous,
        PhaseState::FlushBeforeDelete,
        PhaseState::DeleteExtraneous,
        PhaseState::CopyBlocked,
        PhaseState::CleanUp,
        PhaseState::Flush,
    ];
}

impl SyncJob {
    /// The options of one of its tasks. Only walks get the filter.
    pub(super) fn task_options(&self, spec: &TaskSpec) -> SyncOptions {
        let mut options = self.request.options.clone();
        options.allow_overlap = false;
        if self.is_late_clean_up(spec) {
            (options.preserve, options.chown) = (Preserve::NONE, Chown::default());
        }
        if self.phase == PhaseState::Readback {
            options.compare = Compare::Checksum;
        }
        if matches!(spec, TaskSpec::Scan { .. } | TaskSpec::List { .. } | TaskSpec::Prune { .. }) {
            options.filter = self.filter.clone();
        }
        options
    }

    /// Whether a task cleans up an ended sync. Another sync may use the destination already, so the
    /// metadata of the root are not set.
    fn is_late_clean_up(&self, spec: &TaskSpec) -> bool {
        *spec == TaskSpec::CleanUp && !self.is_active()
    }

    /// The rules by which one of its tasks writes.
    pub(super) fn write_rules(&self, spec: &TaskSpec) -> WriteRules {
        let readback = self.phase == PhaseState::Readback;
        let mut rules = WriteRules { readback, ..self.request.options.write_rules() };
        if self.is_late_clean_up(spec) {
            (rules.preserve, rules.chown) = (Preserve::NONE, Chown::default());
        }
        if readback || matches!(spec, TaskSpec::Range { compare: true, .. }) {
            // The range is compared by content, whatever the operator chose.
            rules.compare = Compare::Checksum;
        }
        rules
    }

    pub(super) fn requested_options(&self) -> SyncOptions {
        SyncOptions { filter: self.filter.clone(), ..self.request.options.clone() }
    }

    /// Whether it needs a worker that supports options.
    pub(super) fn has_nondefault_options(&self) -> bool {
        // No agent needs this option.
        let allow_overlap = self.request.options.allow_overlap;
        let default = SyncOptions { allow_overlap, ..SyncOptions::default() };
        let asked = self.request.options != default || self.filter_key().is_some();
        asked || self.recheck.has_begun()
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.request.options.dry_run
    }

    /// Whether large files are compared before they are sent. This also computes digests of present
    /// files, if requested: each range is read once, by any worker.
    pub(super) fn compares_large_files(&self) -> bool {
        let options = &self.request.options;
        self.phase == PhaseState::Readback
            || options.compare == Compare::Checksum
            || options.manifest
    }

    /// Whether the first range of a large file decides if the others are compared.
    pub(super) fn probes_first_range(&self) -> bool {
        self.phase == PhaseState::Copy
            && self.request.options.manifest
            && self.request.options.compare != Compare::Checksum
    }

    /// Whether found and done entries are counted: later passes only check what was counted.
    pub(super) fn counts_entries(&self) -> bool {
        self.phase == PhaseState::Copy
    }

    /// Whether hard links are preserved, which needs anchors at the destination.
    pub(super) fn keeps_hard_links(&self) -> bool {
        !self.is_dry_run() && self.request.options.preserve.contains(Attribute::Hardlinks)
    }

    fn next_phase(&self) -> Option<PhaseState> {
        if self.recheck.is_pending() {
            return Some(PhaseState::Readback);
        }
        PhaseState::ALL.into_iter().find(|stage| *stage > self.phase && self.needs_phase(*stage))
    }

    fn needs_phase(&self, stage: PhaseState) -> bool {
        let options = &self.request.options;
        let stopped = self.mirror_stop.is_some();
        let mirror = options.delete.is_some() && self.error_counts.is_empty();
        let worked = !self.has_hard_failures && !self.source_root_failed;
        match stage {
            PhaseState::Copy => false,
            PhaseState::Readback => {
                options.verify == Verify::Readback && !options.dry_run && worked && !stopped
            }
            // A count from before the recheck is still valid.
            PhaseState::CountExtraneous => {
                mirror && !self.recheck.has_begun() && (!stopped || options.dry_run)
            }
            PhaseState::FlushBeforeDelete => {
                self.needs_phase(PhaseState::DeleteExtraneous) && !self.unflushed_writers.is_empty()
            }
            PhaseState::DeleteExtraneous => {
                mirror && !stopped && !options.dry_run && self.counters.extraneous.extraneous > 0
            }
            PhaseState::CopyBlocked => self.needs_blocked_copy() && !stopped && !options.dry_run,
            PhaseState::CleanUp => self.needs_clean_up && !options.dry_run,
            PhaseState::Flush => !self.unflushed_writers.is_empty(),
        }
    }

    /// The guard that keeps a mirror from entering `next`, if any.
    fn check_guards(&self, next: Option<PhaseState>) -> Option<MirrorStop> {
        let delete = self.request.options.delete.as_ref().filter(|_| self.mirror_stop.is_none())?;
        match (self.phase, next) {
            (PhaseState::CountExtraneous, _) => {
                self.guard_unverified_copy().or_else(|| self.guard_delete_limit(delete))
            }
            (_, Some(PhaseState::CountExtraneous)) => {
                self.guard_unverified_copy().or_else(|| self.guard_empty_source(delete))
            }
            _ => None,
        }
    }

    /// The deleted entry may be the only copy of something that a task without evidence did not
    /// copy.
    fn guard_unverified_copy(&self) -> Option<MirrorStop> {
        let why = unverified_reason(self.counters.unverified)?;
        let why = format!("{why}: nothing was deleted at the destination");
        // Nothing is known to be missing.
        Some(MirrorStop { reason: why, copy_complete: true })
    }

    /// Builds the message of a guard: what was done so far and how to allow more.
    pub(super) fn mirror_stop_for(&self, why: &str, allow: &str) -> MirrorStop {
        let deleted =
            self.counters.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count);
        let (copied, done) = match self.phase {
            PhaseState::Copy if self.possible_writers.is_empty() => (false, "nothing was copied"),
            PhaseState::Copy => (false, "not everything was copied"),
            // This pass copies what a host lost.
            PhaseState::Readback if self.recheck.has_begun() => {
                (false, "not everything was copied")
            }
            PhaseState::Readback => (true, "everything was copied, not all of it was read back"),
            PhaseState::CopyBlocked if !self.blocked.is_empty() => {
                (false, "not everything was copied")
            }
            _ => (true, "everything was copied"),
        };
        if self.is_dry_run() {
            return MirrorStop { reason: format!("{why}; {allow}"), copy_complete: copied };
        }
        let deleted = match deleted {
            0 => "nothing was deleted".to_owned(),
            n => format!("{} deleted", units::pluralize(n, "entry was", "entries were")),
        };
        MirrorStop { reason: format!("{why}: {done}, {deleted}; {allow}"), copy_complete: copied }
    }

    /// Guard against an empty source without a reported root state; see
    /// [`SyncJob::guard_source_root`].
    fn guard_empty_source(&self, delete: &DeleteOptions) -> Option<MirrorStop> {
        // The root counts as a directory.
        let nothing = self.counters.files_total == 0 && self.counters.dirs_total <= 1;
        let empty = self.source_root.as_ref().is_none_or(|root| root.empty);
        (nothing && empty && !delete.allow_empty_source).then(|| {
            // At most the root itself was written.
            let why = format!(
                "the source {} is empty: there was nothing to copy, nothing was deleted; {EMPTY_SOURCE_HINT}",
                self.request.source_path
            );
            MirrorStop { reason: why, copy_complete: false }
        })
    }

    fn guard_delete_limit(&self, delete: &DeleteOptions) -> Option<MirrorStop> {
        let (seen, extra) = (self.counters.extraneous.checked, self.counters.extraneous.extraneous);
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
            return Some(self.mirror_stop_for(&why, &allow));
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
            self.mirror_stop_for(&why, &allow)
        })
    }

    /// Maximum number of deletions under the limits, given the counted entries.
    pub(super) fn max_deletions(&self) -> u64 {
        let Some(delete) = &self.request.options.delete else { return 0 };
        let part =
            u128::from(self.counters.extraneous.checked) * u128::from(delete.max_percent) / 100;
        u64::try_from(part).unwrap_or(u64::MAX).min(delete.max.unwrap_or(u64::MAX))
    }

    pub(super) fn deleted_entries(&self) -> u64 {
        self.counters.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count)
    }

    /// Guard against a source that lost so many entries since the count that the limits would have
    /// refused it. `used_up`: an agent reached its allowance.
    pub(super) fn guard_excess_deletions(&self, used_up: bool) -> Option<MirrorStop> {
        let over = used_up || self.deleted_entries() > self.max_deletions();
        (self.phase == PhaseState::DeleteExtraneous && over).then(|| {
            let why = format!(
                "more entries at the destination are extra than the limits let be deleted, where {} of {} \
                 had been counted: the source {} has lost entries since",
                self.counters.extraneous.extraneous, self.counters.extraneous.checked, self.request.source_path
            );
            self.mirror_stop_for(&why, "check that all of it is mounted")
        })
    }

    /// Guard against a source on another file system than `known` (at the last run or an earlier
    /// page), and against an empty source, which is more often an unmounted one than an emptied
    /// one.
    fn guard_source_root(&self, page: &ScanPage, known: Option<&str>) -> Option<MirrorStop> {
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
        let empty = empty && (self.phase > PhaseState::Copy || lists_only_root(page));
        let (what, allow) = match (other, empty) {
            (None, false) => return None,
            (None, true) => ("is empty".to_owned(), EMPTY_SOURCE_HINT),
            (Some(other), false) => (other, NEW_FILE_SYSTEM_HINT),
            (Some(other), true) => (format!("is empty and {other}"), EMPTY_AND_NEW_HINT),
        };
        Some(
            self.mirror_stop_for(&format!("the source {} {what}", self.request.source_path), allow),
        )
    }
}

const EMPTY_SOURCE_HINT: &str = "check that it is mounted; if it is meant to be empty, allow it with \
                           delete.allow_empty_source (--allow-empty-source)";
const NEW_FILE_SYSTEM_HINT: &str = "check what is mounted there; if it is right, allow it with \
                            delete.allow_new_source_fs (--allow-new-source-fs)";
const EMPTY_AND_NEW_HINT: &str = "check that it is mounted; if both are right, allow it with \
                          delete.allow_empty_source and delete.allow_new_source_fs \
                          (--allow-empty-source --allow-new-source-fs)";

/// Whether a first page is also the last one, with only the root's own entry.
fn lists_only_root(page: &ScanPage) -> bool {
    let small = |item: &WorkItem| matches!(item, WorkItem::Copy { files: 0, dirs: 0..=1, .. });
    page.next.is_none()
        && page.subtrees.is_empty()
        && page.errors.is_empty()
        && page.work.len() <= 1
        && page.work.iter().all(small)
}

impl State {
    /// Advances a sync without tasks to its next phase.
    pub(super) fn advance_phase(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let (active, forgotten) = (sync.is_active(), sync.is_deleted);
        let idle = sync.tasks.is_empty() && sync.large_files.is_empty();
        if !active {
            self.release_paths(no, now);
        }
        if !idle {
            return;
        }
        if !active {
            if forgotten {
                if !self.has_revoked_leases(no) {
                    self.remove_sync(no, now);
                }
            } else {
                self.clear_worker_records(no);
            }
            return;
        }
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if let Some(stop) = sync.check_guards(sync.next_phase()) {
            tracing::warn!(sync = %sync.id, why = stop.reason, "a mirror does not delete");
            sync.mirror_stop = Some(stop);
        }
        let next = sync.next_phase();
        self.resolve_blocked(no, next, now);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        match sync.next_phase() {
            Some(next) => self.enter_phase(no, next),
            // Check again: there may be something to compare now.
            None if self.recheck_after_replacement(no) => return self.advance_phase(no, now),
            None => self.finish_sync(no, now),
        }
        self.mark_changed(no, now);
        self.dirty_syncs.remove(&no);
    }

    fn enter_phase(&mut self, no: SyncNo, stage: PhaseState) {
        self.clear_hardlink_groups(no);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        sync.phase = stage;
        let prune = |apply| TaskSpec::Prune { dir: RelPath::root(), cursor: None, apply };
        match stage {
            PhaseState::Copy => {}
            PhaseState::Readback => {
                if sync.recheck.is_pending() {
                    sync.recheck.begin();
                    // They describe the previous pass.
                    (sync.counters.verified_files, sync.counters.repaired_files) = (0, 0);
                }
                sync.blocked.reset_readback();
                sync.record_log.readback_from = Some(sync.record_log.length);
                self.add_scans(no);
            }
            PhaseState::CopyBlocked => self.add_scans(no),
            PhaseState::CountExtraneous => {
                _ = self.add_task(NewTask::ready(no, prune(false)), None);
            }
            PhaseState::DeleteExtraneous => {
                _ = self.add_task(NewTask::ready(no, prune(true)), None);
            }
            PhaseState::CleanUp => {
                sync.needs_clean_up = false;
                self.add_task(NewTask::ready(no, TaskSpec::CleanUp), None);
            }
            PhaseState::FlushBeforeDelete | PhaseState::Flush => {
                let writers: Vec<WorkerId> =
                    sync.unflushed_writers.iter().map(|(worker, _)| worker.clone()).collect();
                for worker in writers {
                    let bound = Some(worker);
                    self.add_task(
                        NewTask { pinned_to: bound, ..NewTask::ready(no, TaskSpec::Flush) },
                        None,
                    );
                }
            }
        }
    }

    /// Cleans up after a cancel, when no worker can write any more.
    pub(super) fn schedule_clean_up(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if std::mem::take(&mut sync.needs_clean_up) {
            let until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            let state = TaskState::Delayed { until_ms };
            self.add_task(NewTask { state, ..NewTask::ready(no, TaskSpec::CleanUp) }, None);
        }
    }

    /// Records the source root of a page. Returns the guard that stops the sync, if any.
    pub(super) fn check_source_root(&mut self, no: SyncNo, page: &ScanPage) -> Option<MirrorStop> {
        let root = page.root.as_ref()?;
        let sync = self.syncs.get_mut(&no)?;
        let before = sync.source_root.as_ref().map(|root| root.file_system.as_str());
        let known = before.or_else(|| self.source_history.last_file_system(&sync.request));
        let stop = sync.guard_source_root(page, known);
        sync.source_root.get_or_insert_with(|| root.clone());
        if sync.is_dry_run() && stop.is_some() {
            // A dry run changes nothing and continues, to report all that it would do. The first
            // guard is kept.
            sync.mirror_stop = sync.mirror_stop.take().or(stop);
            return None;
        }
        stop
    }

    /// Stops a mirror before it does damage. What was written is still cleaned up and flushed.
    pub(super) fn stop_mirror(&mut self, no: SyncNo, stop: MirrorStop, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        tracing::warn!(sync = %sync.id, why = stop.reason, "a mirror stops");
        sync.mirror_stop = Some(stop);
        if sync.phase == PhaseState::DeleteExtraneous {
            sync.mark_all_unflushed();
        }
        self.abandon_tasks(no, now);
        self.mark_changed(no, now);
    }

    fn finish_sync(&mut self, no: SyncNo, now: Now) {
        let lived = self.retention_clock.uptime_ms(now);
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        (sync.ended_ms, sync.ended_uptime_ms) = (Some(now.wall_ms), Some(lived));
        (sync.state, sync.outcome, sync.reason) = final_state(sync);
        tracing::info!(sync = %sync.id, state = sync.state.as_str(), "sync ended");
        if sync.outcome == Some(SyncOutcome::Full) && !sync.is_dry_run() {
            let (request, root) = (sync.request.clone(), sync.source_root.clone());
            let (changed, dropped) = match root {
                Some(root) => self.source_history.remember(&request, root.file_system, now.wall_ms),
                None => (None, None),
            };
            [changed, dropped].into_iter().flatten().for_each(|key| self.put_record(key));
        }
        if self.syncs.get(&no).is_some_and(|s| s.outcome == Some(SyncOutcome::Full)) {
            self.delete_name_list(no);
        }
        self.clear_hardlink_groups(no);
        self.clear_worker_records(no);
        self.release_paths(no, now);
    }
}

/// The final state of a sync. `COMPLETED` only if every found entry is accounted for and none
/// failed.
fn final_state(sync: &SyncJob) -> (SyncState, Option<SyncOutcome>, Option<String>) {
    let counters = &sync.counters;
    let files = counters.files_done + counters.files_skipped + counters.files_failed;
    let dirs = counters.dirs_done + counters.dirs_failed;
    let failed: u64 = sync.error_counts.values().fold(0, |sum, n| sum.saturating_add(*n));
    if failed > 0 {
        let outcome = match (sync.source_root_failed, sync.has_hard_failures) {
            (true, _) => None,
            (false, true) if copied_nothing(sync) => None,
            (false, false) if counters.unverified == 0 => Some(SyncOutcome::VanishedOnly),
            (false, false) => Some(SyncOutcome::Unverified),
            (false, true) => Some(SyncOutcome::Partial),
        };
        return (SyncState::Failed, outcome, Some(failure_reason(sync, failed)));
    }
    let unverified = unverified_reason(counters.unverified);
    if let (Some(stop), false) = (&sync.mirror_stop, sync.is_dry_run()) {
        let outcome = match (stop.copy_complete, &unverified) {
            (false, _) => SyncOutcome::CopyStopped,
            // It is not known that everything was copied.
            (true, Some(_)) => SyncOutcome::Unverified,
            (true, None) => SyncOutcome::DeleteStopped,
        };
        return (SyncState::Failed, Some(outcome), Some(stop.reason.clone()));
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
    if let Some(stop) = &sync.mirror_stop {
        let would = if stop.copy_complete {
            "refuse to delete (exit 25)"
        } else {
            "stop before it copies (exit 8)"
        };
        let reason = format!("a real run would {would}: {}", stop.reason);
        return (SyncState::Completed, Some(outcome), Some(reason));
    }
    let lost = sync.record_log.error.as_ref();
    let lost =
        lost.map(|why| format!("the outcome of each file is not completely recorded: {why}"));
    (SyncState::Completed, Some(outcome), unverified.or(lost))
}

/// Whether every file (or without files, every directory) failed.
fn copied_nothing(sync: &SyncJob) -> bool {
    let counters = &sync.counters;
    let (files, dirs) = (counters.files_failed, counters.dirs_failed);
    let none = counters.files_done + counters.files_skipped == 0;
    none && (files > 0 || counters.dirs_done == 0 && dirs > 0)
}

fn unverified_reason(tasks: u64) -> Option<String> {
    (tasks > 0).then(|| {
        format!(
            "{} reported done without evidence (by a worker that sends no digest, report or source root); check the \
             destination with `ctl sync verify`, or stop that worker and submit the sync again",
            units::pluralize(tasks, "task was", "tasks were")
        )
    })
}

fn failure_reason(sync: &SyncJob, failed: u64) -> String {
    let of_root =
        sync.errors.iter().find(|error| sync.source_root_failed && error.path.0.is_empty());
    if let Some(error) = of_root {
        return error.message.clone();
    }
    let cause = sync.error_counts.iter().max_by_key(|(_, n)| **n).map(|(c, _)| c.as_str());
    let mut reason = format!("{failed} failed, most of them: {}", cause.unwrap_or("unknown"));
    let options = &sync.request.options;
    if options.verify == Verify::Readback && sync.record_log.readback_from.is_none() {
        reason.push_str("; nothing was read back, because of these errors");
    }
    let deletes = options.delete.is_some() && !options.dry_run;
    if deletes && !sync.counters.actions.contains_key(&EntryAction::Delete) {
        reason.push_str("; nothing was deleted, because of these errors");
    }
    reason
}
