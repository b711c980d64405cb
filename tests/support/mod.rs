//! Support for the integration tests: real processes (`redis-server`, masters, agents, commands), trees
//! and their comparison, and plain HTTP. All processes are killed and all files removed on drop, also
//! when a test fails; a test that fails prints the logs of its processes.
#![allow(dead_code)] // not every test uses all of it

pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod ctl;
pub(crate) mod faults;
pub(crate) mod guide;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod lab;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod tools;
pub(crate) mod tree;

use std::time::{Duration, Instant};

/// How long anything may take that a test waits for. Long, because a loaded machine is no defect.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(90);

/// Asks again and again, with short pauses, until there is an answer.
pub(crate) fn await_some<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {MAX_WAIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `ask` is true.
pub(crate) fn await_true(what: &str, mut ask: impl FnMut() -> bool) {
    await_some(what, || ask().then_some(()));
}
