//! The result of a system call.

use rustix::io::Errno;

/// The result of one or more system calls.
pub(super) type SysResult<T> = std::result::Result<T, Errno>;

/// A concurrent removal is no error.
pub(super) fn ignore_missing(done: SysResult<()>) -> SysResult<()> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
