//! Whether what agents send can be. Sums over all that a sync can ever have must not overflow, and a
//! report must account for each entry of its task once.

use crate::wire::options::EntryAction;
use crate::wire::task::{ScanPage, TaskReport, TaskSpec, WorkItem};

/// The name of a file system is no longer than this, in bytes.
const MAX_FILE_SYSTEM_NAME_BYTES: usize = 1024;
/// More than that in one page is nothing that was asked for.
const MAX_PAGE_SUBTREES: usize = 1024;

/// How many files and directories of a batch failed, by what a report says of the others; `None` where
/// it does not account for every entry once.
pub(super) fn count_failed_entries(
    files: u64,
    dirs: u64,
    report: &TaskReport,
) -> Option<(u64, u64)> {
    let done = report.files_done.checked_add(report.files_skipped)?;
    let failed = (files.checked_sub(done)?, dirs.checked_sub(report.dirs_done)?);
    (failed.0.checked_add(failed.1) == Some(report.failures.len() as u64)).then_some(failed)
}

/// Whether what a report says that was done can be: one action for each entry at most, and a copy
/// deletes nothing.
pub(super) fn are_actions_possible(report: &TaskReport, entries: u64) -> bool {
    let counts = report.actions.values().map(|tally| tally.count);
    let sum = counts.fold(0, u64::saturating_add);
    sum <= entries && !report.actions.contains_key(&EntryAction::Delete)
}

/// Whether the numbers of a piece of work can be. Agents send them: sums over all that a sync can
/// ever have must not overflow.
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

/// Whether a page can be one of the walk `spec`.
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

/// Whether the walk `spec` can go on as `next`.
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
