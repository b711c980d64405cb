//! Validation of pages and reports. Sums over a whole sync must not overflow, and a report must
//! account for each entry of its task exactly once.

use crate::wire::entry_report::EntryAction;
use crate::wire::task::{ScanPage, TaskReport, TaskSpec, WorkItem};

const MAX_FILE_SYSTEM_NAME_BYTES: usize = 1024;

const MAX_PAGE_SUBTREES: usize = 1024;

/// Numbers of failed files and directories of a batch, derived from its report; `None` if the
/// report does not account for every entry exactly once.
pub(super) fn count_failed_entries(
    files: u64,
    dirs: u64,
    report: &TaskReport,
) -> Option<(u64, u64)> {
    let done = report.files_done.checked_add(report.files_skipped)?;
    let failed = (files.checked_sub(done)?, dirs.checked_sub(report.dirs_done)?);
    (failed.0.checked_add(failed.1) == Some(report.failures.len() as u64)).then_some(failed)
}

/// At most one action per entry, and a copy deletes nothing.
pub(super) fn are_actions_possible(report: &TaskReport, entries: u64) -> bool {
    let counts = report.actions.values().map(|tally| tally.count);
    let sum = counts.fold(0, u64::saturating_add);
    sum <= entries && !report.actions.contains_key(&EntryAction::Delete)
}

/// Bounds the numbers of a work item, so that sums over a whole sync cannot overflow.
pub(super) fn validate_item(item: &WorkItem) -> Result<(), String> {
    let most = u64::from(u32::MAX);
    match item {
        WorkItem::Copy { files, dirs, .. } if *files > most || *dirs > most => {
            Err(format!("a batch of {files} files and {dirs} directories"))
        }
        WorkItem::Large { size, .. } if *size > i64::MAX as u64 => {
            Err(format!("a file of {size} bytes"))
        }
        _ => Ok(()),
    }
}

/// Whether `page` can be a page of the walk `spec`.
pub(super) fn validate_page(page: &ScanPage, spec: &TaskSpec) -> Result<(), String> {
    page.work.iter().try_for_each(validate_item)?;
    if page.unlisted_dirs > page.errors.len() as u64 {
        return Err(format!(
            "{} of {} errors are of directories",
            page.unlisted_dirs,
            page.errors.len()
        ));
    }
    if page.subtrees.len() > MAX_PAGE_SUBTREES {
        return Err(format!("it splits off {} subtrees", page.subtrees.len()));
    }
    if page.root.as_ref().is_some_and(|root| root.file_system.len() > MAX_FILE_SYSTEM_NAME_BYTES) {
        return Err("the name of its file system is too long".to_owned());
    }
    match (spec, &page.pruned) {
        (TaskSpec::Prune { .. }, _) if !page.work.is_empty() => {
            return Err("a deletion creates no tasks".to_owned());
        }
        (TaskSpec::Prune { .. }, Some(pruned)) if pruned.extraneous > pruned.checked => {
            return Err(format!("{} of {} entries are extra", pruned.extraneous, pruned.checked));
        }
        (TaskSpec::Prune { .. }, _) | (_, None) => {}
        (_, Some(_)) => return Err(format!("a {} deletes nothing", spec.kind())),
    }
    validate_continuation(spec, page.next.as_ref())
}

fn validate_continuation(spec: &TaskSpec, next: Option<&TaskSpec>) -> Result<(), String> {
    use TaskSpec::{List, Prune, Scan};
    let fits = match (spec, next) {
        (_, None) => true,
        (Scan { dir, .. }, Some(Scan { dir: next, .. })) => dir == next,
        (List { start }, Some(List { start: next })) => start < next,
        (Prune { dir, apply, .. }, Some(Prune { dir: next, apply: then, .. })) => {
            (dir, apply) == (next, then)
        }
        (_, Some(_)) => false,
    };
    if fits { Ok(()) } else { Err(format!("a {} does not continue as {next:?}", spec.kind())) }
}
