//! Guards: what keeps a mirror from deleting, and what stops it while it deletes.

use super::State;
use super::phase::PhaseState;
use super::sync_job::{MirrorStop, SyncJob};
use crate::util::units;
use crate::wire::SyncNo;
use crate::wire::entry_report::EntryAction;
use crate::wire::options::DeleteOptions;
use crate::wire::task::{ScanPage, WorkItem};

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

pub(super) fn unverified_reason(tasks: u64) -> Option<String> {
    (tasks > 0).then(|| {
        format!(
            "{} reported done without evidence (by a worker that sends no digest, report or source root); check the \
             destination with `ctl sync verify`, or stop that worker and submit the sync again",
            units::pluralize(tasks, "task was", "tasks were")
        )
    })
}

impl SyncJob {
    /// The guard that keeps a mirror from entering `next`, if any.
    pub(super) fn check_guards(&self, next: Option<PhaseState>) -> Option<MirrorStop> {
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
        let deleted = match self.deleted_entries() {
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

impl State {
    /// Records the source root of a page. Returns the guard that stops the sync, if any.
    pub(super) fn check_source_root(&mut self, no: SyncNo, page: &ScanPage) -> Option<MirrorStop> {
        let root = page.root.as_ref()?;
        let sync = self.syncs.get_mut(no)?;
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
}
