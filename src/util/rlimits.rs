//! Resource limits of this process.

use crate::wire::errno::{errno_name, errno_text, is_resource_exhaustion};
use crate::wire::hint::errno_hint;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open file descriptors to the hard limit: the default of 1,024 is meant for programs that
/// use `select`, and a master has a connection for each slot of each agent. Returns the limit in force; `None`: no limit.
pub fn raise_open_files_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        // The old limit remains in force.
        Err(_) => limit.current,
    }
}

/// Checks whether this process can open another file. Otherwise returns the errno and an error message.
pub fn detect_resource_exhaustion() -> Option<(Errno, String)> {
    let errno = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).err()?;
    let name = errno_name(errno).filter(|_| is_resource_exhaustion(errno))?;
    let text = errno_text(errno);
    let hint = errno_hint(errno, rustix::process::geteuid()).unwrap_or_default();
    Some((errno, format!("this agent cannot open another file: {text} ({name}); {hint}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let raised = raise_open_files_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, raised), (now.maximum, now.maximum));
    }
}
