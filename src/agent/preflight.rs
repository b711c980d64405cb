//! The first step of a scan: checks that both roots of the sync can be used.

use super::job::{Job, RUN_AS_OPERATION};
use crate::data::RootCheckRequest;
use crate::fs::{FsError, RootKind, RootMismatch, Tree, spawn_blocking};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use std::time::Duration;

/// A destination worker without a reply after this is skipped: its state is unknown, and each entry has its own outcome.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Fails where this worker can't read the source or no destination worker can write the destination.
pub(super) async fn check_roots(job: Job<'_>, source: &Tree) -> Result<(), EntryError> {
    let observed = |error: FsError| job.with_observer(error.to_entry_error(), &job.cx.worker_id);
    let (given, destination) = (&job.assignment.source_path, &job.assignment.destination_path);
    let resolved = source.path();
    // The master has compared the given paths.
    if resolved != *given
        && job.may_write_locally()
        && let Some(mismatch) = RootMismatch::between_paths(&resolved, destination)
    {
        return Err(observed(FsError::root_mismatch(mismatch, destination.as_bytes())));
    }
    let tree = source.clone();
    let checked = spawn_blocking(source.identity(), move || tree.check_readable()).await;
    // The scan panics again, and reports it.
    let Ok(checked) = checked else { return Ok(()) };
    let kind = checked.map_err(observed)?;
    tokio::time::timeout(CHECK_TIMEOUT, check_destination(job, kind)).await.unwrap_or(Ok(()))
}

/// Asks the destination workers in turn until one can write the destination or does not reply.
async fn check_destination(job: Job<'_>, source: RootKind) -> Result<(), EntryError> {
    let mut first_error = Ok(());
    let mut picker = job.destination_picker();
    while let Some(to) = picker.pick_next() {
        picker.exclude(to.worker());
        match to.request(RootCheckRequest { source_kind: source }).await {
            Ok(Err(error)) if is_permanent(&error) => {
                first_error = first_error.and(Err(job.with_observer(error, to.worker())));
            }
            Err(error) if error.is_run_as_refusal() => {
                let error = EntryError {
                    class: ErrorClass::Permanent,
                    ..EntryError::new(b"", Side::Destination, RUN_AS_OPERATION, error.to_string())
                };
                first_error = first_error.and(Err(job.with_observer(error, to.worker())));
            }
            Ok(_) | Err(_) => return Ok(()),
        }
    }
    first_error
}

fn is_permanent(error: &EntryError) -> bool {
    matches!(error.class, ErrorClass::Permanent | ErrorClass::InvalidRequest)
}
