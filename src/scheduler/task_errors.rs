//! Classes of errors that tasks report.

use crate::wire::sync::{ErrorClass, FileError};

/// Whether an error may be the fault of the worker that reports it. A full disk and a changed
/// source are not.
pub(super) fn is_worker_fault(error: &FileError) -> bool {
    // `StorageGone` is neither.
    !is_no_space(error) && matches!(error.class, ErrorClass::Transient | ErrorClass::Permanent)
}

/// The errnos of a full file system or an exhausted quota.
const NO_SPACE_ERRNOS: [&str; 2] = ["ENOSPC", "EDQUOT"];

pub(super) fn is_storage_gone(error: &FileError) -> bool {
    error.class == ErrorClass::StorageGone
}

pub(super) fn is_no_space(error: &FileError) -> bool {
    error.errno.as_deref().is_some_and(|errno| NO_SPACE_ERRNOS.contains(&errno))
}
