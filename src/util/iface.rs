//! Network interfaces of the kernel.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// An attribute (`speed`, `operstate`, `ifindex` …) of an interface, from `/sys/class/net/IFACE/ATTRIBUTE`. `None` if the
/// interface does not exist, or the attribute is not readable.
pub fn read_attribute(iface: &str, attribute: &str) -> Option<String> {
    let path = Path::new("/sys/class/net").join(iface).join(attribute);
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The interface index of the kernel.
pub fn interface_index(iface: &str) -> Option<u32> {
    read_attribute(iface, "ifindex")?.parse().ok()
}

/// Whether an address is valid only together with an interface (`fe80::/10`).
pub fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// A link-local address without a scope id gets that of `iface`; other addresses are returned unchanged.
///
/// # Errors
/// A link-local address without an interface, or with one that does not exist on this host.
pub fn with_scope_id(address: SocketAddr, iface: Option<&str>) -> io::Result<SocketAddr> {
    let SocketAddr::V6(mut v6) = address else { return Ok(address) };
    if !is_link_local(address.ip()) || v6.scope_id() != 0 {
        return Ok(address);
    }
    let Some(iface) = iface else {
        return Err(io::Error::other(format!(
            "{} is a link-local address: set the `iface` of this agent's endpoint in the network of the peer",
            v6.ip()
        )));
    };
    let number = interface_index(iface)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {iface}")))?;
    v6.set_scope_id(number);
    Ok(v6.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_gets_the_scope_id_of_its_interface() {
        let number = interface_index("lo").unwrap();
        let scope = |at: &str, iface| match with_scope_id(at.parse().unwrap(), iface) {
            Ok(SocketAddr::V6(at)) => Ok(at.scope_id()),
            Ok(SocketAddr::V4(_)) => Ok(0),
            Err(e) => Err(e.to_string()),
        };
        for (at, iface, expected) in [
            ("[fe80::1]:9", Some("lo"), number),
            ("[febf::1]:9", Some("lo"), number),
            ("[fe80::1%7]:9", Some("lo"), 7),
            ("[fe80::1%7]:9", None, 7),
            ("[fec0::1]:9", Some("lo"), 0),
            ("[::1]:9", Some("lo"), 0),
            ("[fd00::1]:9", None, 0),
            ("169.254.1.1:9", None, 0),
        ] {
            assert_eq!(scope(at, iface), Ok(expected), "{at} {iface:?}");
        }
        assert!(scope("[fe80::1]:9", None).unwrap_err().contains("`iface`"));
        assert!(scope("[fe80::1]:9", Some("nosuch0")).unwrap_err().contains("nosuch0"));
    }
}
