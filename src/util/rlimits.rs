//! What the kernel lets this process use.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors that this process may have open to the most that it may ask for:
/// the default of 1,024 is meant for programs that use `select`, and a master has a connection for
/// each slot of each agent. Tells the number in force; `None`: no limit.
pub fn raise_open_files_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let most = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, most) {
        Ok(()) => limit.maximum,
        // What there is goes on to count.
        Err(_) => limit.current,
    }
}

/// Why this process can open nothing more, if so: the name of the error, and a sentence.
pub fn detect_resource_exhaustion() -> Option<(&'static str, String)> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    let errno = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).err()?;
    let name = match errno {
        Errno::MFILE => "EMFILE",
        Errno::NFILE => "ENFILE",
        Errno::NOMEM => "ENOMEM",
        _ => return None,
    };
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let hint = match errno {
        Errno::NOMEM => "give the host more memory",
        _ => "raise the limit of open files (LimitNOFILE)",
    };
    Some((name, format!("this agent can open nothing more: {text} ({name}); {hint}")))
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
