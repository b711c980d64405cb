//! Resource limits of this process.

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

/// Checks whether this process can open another file. Otherwise returns the name of the errno and an error message.
pub fn detect_resource_exhaustion() -> Option<(&'static str, String)> {
    let errno = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).err()?;
    const RAISE_LIMIT: &str = "raise the limit of open files (LimitNOFILE)";
    let (name, hint) = match errno {
        Errno::MFILE => ("EMFILE", RAISE_LIMIT),
        Errno::NFILE => ("ENFILE", RAISE_LIMIT),
        Errno::NOMEM => ("ENOMEM", "give the host more memory"),
        _ => return None,
    };
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    Some((name, format!("this agent cannot open another file: {text} ({name}); {hint}")))
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
