//! What the kernel says of network interfaces.

use std::path::Path;

/// One thing (`speed`, `operstate`, `ifindex` …) about an interface, as
/// `/sys/class/net/IFACE/WHAT` says it. `None` where there is no such interface, or nothing said.
pub fn about(iface: &str, what: &str) -> Option<String> {
    let path = Path::new("/sys/class/net").join(iface).join(what);
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}
