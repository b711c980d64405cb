//! Ports for the servers of a test.

use super::tree;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// An unused port outside of the range from which the kernel takes ports for connections:
/// it stays free while a master is down.
pub(crate) fn free_port() -> u16 {
    let mut seed = std::process::id() as u64;
    seed ^= std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64);
    for attempt in 0..500 {
        let drawn = tree::random_bytes(8, seed.wrapping_add(attempt));
        let port = 10_000 + u16::from_le_bytes([drawn[0], drawn[1]]) % 20_000;
        // The name is this process's until it ends, so that no other test uses the port before this one does.
        let name = UnixAddr::from_abstract_name(format!("longhaul-test-port-{port}"));
        let reserved = name.and_then(|name| UnixListener::bind_addr(&name));
        if let Ok(reserved) = reserved
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
        {
            std::mem::forget(reserved);
            return port;
        }
    }
    panic!("no free port");
}
