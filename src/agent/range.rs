//! Copying a range of a large file into its part file.

use super::batch::single;
use super::execute::{Done, Job};
use crate::data::protocol::range_fits;
use crate::data::{Destination, Found, RangeMode, RangeSent, SendError};
use crate::fs::Tree;
use crate::wire::manifest::{Entry, Kind, Manifest};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{TaskReport, WorkItem};

/// Brings `length` bytes at `offset` of the only file of `manifest` to one of the destination workers.
pub async fn range(job: Job<'_>, manifest: Manifest, (offset, length): (u64, u64)) -> Done {
    let source = match job.source() {
        Ok(source) => source,
        Err(done) => return *done,
    };
    let [entry] = manifest.entries.as_slice() else {
        return Done::failed(format!("a range of {} files cannot be", manifest.entries.len()));
    };
    if let Err(why) = range_fits(offset, length, entry.size()) {
        return Done::failed(why);
    }
    let mut choice = job.destinations();
    while let Some(to) = choice.pick() {
        match bring(job, &to, &source, &manifest, entry, (offset, length)).await {
            Ok(done) => return done,
            Err(error) => choice.failed(to.worker(), &error),
        }
    }
    choice.exhausted()
}

async fn bring(
    job: Job<'_>,
    to: &Destination,
    source: &Tree,
    manifest: &Manifest,
    entry: &Entry,
    range: (u64, u64),
) -> Result<Done, SendError> {
    // It also makes the directories above the file.
    let offered = to.offer(manifest).await?;
    job.writers.wrote(to.worker());
    match offered.answers.into_iter().next() {
        Some(Ok(Found::Needed { .. })) => {}
        Some(Err(error)) => return Ok(Done::entry_failed(job.seen(error, to.worker()))),
        _ => return Ok(Done::well(TaskReport { unchanged: true, ..TaskReport::default() })),
    }
    Ok(match to.range(source, manifest, entry, range, RangeMode::Whole).await? {
        RangeSent::Written { value, .. } => {
            Done::well(TaskReport { bytes_done: range.1, digest: value, ..TaskReport::default() })
        }
        RangeSent::Failed(error) => Done::entry_failed(job.seen(error, to.worker())),
        RangeSent::Changed => match now(source, entry, manifest, job.chunk()).await {
            Ok(item) => Done::well(TaskReport { replace: Some(item), ..TaskReport::default() }),
            Err(error) => Done::entry_failed(job.seen(error, &job.cx.worker)),
        },
    })
}

/// The file as what it is now, as work that takes the place of the whole file.
async fn now(
    source: &Tree,
    entry: &Entry,
    manifest: &Manifest,
    chunk: u64,
) -> Result<WorkItem, FileError> {
    let (source, path, dirs) = (source.clone(), entry.path.clone(), manifest.dirs.clone());
    let other = |message: &str| FileError {
        class: ErrorClass::Changed,
        ..super::execute::entry_error(entry.path.as_bytes(), "read source", message)
    };
    let looked = tokio::task::spawn_blocking(move || source.entry(&path)).await;
    let entry = match looked {
        Ok(looked) => looked.map_err(|e| e.to_file_error())?,
        Err(_) => {
            return Err(other("looking at the source failed inside; the agent's log says more"));
        }
    };
    if entry.kind == Kind::Dir {
        return Err(other("it is a directory now; sync again to copy what is in it"));
    }
    single(entry, &dirs, chunk).ok_or_else(|| other("it cannot be described"))
}
