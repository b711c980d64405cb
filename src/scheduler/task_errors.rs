//! Classes of errors that tasks report.

use crate::wire::outcome::{EntryError, ErrorClass};

/// Whether an error may be the fault of the worker that reports it. A full disk and a changed
/// source are not.
pub(super) fn is_worker_fault(error: &EntryError) -> bool {
    // `StorageGone` is neither.
    !is_no_space(error) && matches!(error.class, ErrorClass::Transient | ErrorClass::Permanent)
}

pub(super) fn is_storage_gone(error: &EntryError) -> bool {
    error.class == ErrorClass::StorageGone
}

pub(super) fn is_no_space(error: &EntryError) -> bool {
    error.is_no_space()
}
