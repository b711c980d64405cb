//! Whether what agents send can be. Sums over all that a sync can ever have must not overflow, and a
//! report must account for each entry of its task once.

use crate::wire::task::{ScanPage, TaskReport, TaskSpec, WorkItem};

/// More than that in one page is nothing that was asked for.
const MOST_SPAWN: usize = 1024;

/// How many files and directories of a batch failed, by what a report says of the others; `None` where
/// it does not account for every entry once.
pub(super) fn failed_of(files: u64, dirs: u64, report: &TaskReport) -> Option<(u64, u64)> {
    let done = report.files_done.checked_add(report.files_skipped)?;
    let failed = (files.checked_sub(done)?, dirs.checked_sub(report.dirs_done)?);
    (failed.0.checked_add(failed.1) == Some(report.failures.len() as u64)).then_some(failed)
}

/// Whether the numbers of a piece of work can be. Agents send them: sums over all that a sync can
/// ever have must not overflow.
pub(super) fn item_fits(item: &WorkItem) -> Result<(), String> {
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

/// Whether a page can be one of the scan `spec`.
pub(super) fn plausible(page: &ScanPage, spec: &TaskSpec) -> Result<(), String> {
    page.work.iter().try_for_each(item_fits)?;
    if page.spawn.len() > MOST_SPAWN {
        return Err(format!("it gives {} subtrees away", page.spawn.len()));
    }
    match (spec, &page.next) {
        (_, None) => Ok(()),
        (TaskSpec::Scan { dir, .. }, Some(TaskSpec::Scan { dir: next, .. })) if dir == next => {
            Ok(())
        }
        (TaskSpec::List { start }, Some(TaskSpec::List { start: next })) if start < next => Ok(()),
        (_, Some(next)) => Err(format!("a {} does not go on as {next:?}", spec.kind())),
    }
}
