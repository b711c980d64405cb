//! What the kernel lets this process use.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors that this process may have open to the most that it may ask for:
/// the default of 1,024 is meant for programs that use `select`, and a master has a connection for
/// each slot of each agent. Tells the number in force; `None`: no limit.
pub fn raise_open_files() -> Option<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_open_files();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((now.current, raised), (now.maximum, now.maximum));
    }
}
