//! State, outcome and reason of a sync that has ended.

use super::mirror_guards::unverified_reason;
use super::sync_job::SyncJob;
use crate::wire::entry_report::EntryAction;
use crate::wire::options::Verify;
use crate::wire::sync::{SyncOutcome, SyncState};

/// The final state of a sync. `COMPLETED` only if every found entry is accounted for and none
/// failed.
pub(super) fn final_state(sync: &SyncJob) -> (SyncState, Option<SyncOutcome>, Option<String>) {
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
