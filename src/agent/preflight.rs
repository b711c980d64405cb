//! The first step of a scan: whether both roots of the sync can be used.

use super::job::Job;
use crate::fs::{FsError, RootKind, RootMismatch, Tree};
use crate::wire::sync::{ErrorClass, FileError};
use std::time::Duration;

/// A worker that has not answered after this is not waited for: nothing is known of it, and each entry has its own
/// outcome.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at both roots.
///
/// # Errors
/// This worker can't read the source, or no worker that holds the destination can write it.
pub(super) async fn check_roots(job: Job<'_>, source: &Tree) -> Result<(), FileError> {
    let seen = |error: FsError| job.with_observer(error.to_file_error(), &job.cx.worker_id);
    let (given, destination) = (&job.assignment.source_path, &job.assignment.destination_path);
    let real = source.path();
    // The master has compared the paths as they were given.
    if let Some(misfit) = RootMismatch::between_paths(&real, destination).filter(|_| real != *given)
    {
        return Err(seen(FsError::root_mismatch(misfit, destination.as_bytes())));
    }
    let tree = source.clone();
    let looked = tokio::task::spawn_blocking(move || tree.check_readable()).await;
    // A look that panicked is followed by a scan that does.
    let Ok(looked) = looked else { return Ok(()) };
    let kind = looked.map_err(seen)?;
    tokio::time::timeout(CHECK_TIMEOUT, check_destination(job, kind)).await.unwrap_or(Ok(()))
}

/// Asks the workers of the destination, until one can write it or one gives no answer.
async fn check_destination(job: Job<'_>, source: RootKind) -> Result<(), FileError> {
    let mut refusal: Option<FileError> = None;
    let mut choice = job.destination_picker();
    while let Some(to) = choice.pick_next() {
        choice.exclude(to.worker());
        match to.check_root(source).await {
            Ok(Err(error)) if is_permanent(&error) => {
                refusal.get_or_insert_with(|| job.with_observer(error, to.worker()));
            }
            Ok(_) | Err(_) => return Ok(()),
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Whether nothing that is tried later can succeed.
fn is_permanent(error: &FileError) -> bool {
    matches!(error.class, ErrorClass::Permanent | ErrorClass::InvalidRequest)
}
