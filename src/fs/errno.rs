//! The result of a system call.

use rustix::io::Errno;

/// The result of one or more system calls.
pub(super) type SysResult<T> = std::result::Result<T, Errno>;
