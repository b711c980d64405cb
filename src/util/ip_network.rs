//! Networks of IP addresses, e.g. `10.0.0.0/8`.

use std::net::IpAddr;
use std::str::FromStr;

/// The addresses that begin with the bits of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    /// The number of bits.
    prefix: u32,
}

impl IpNetwork {
    /// Whether an address, also one of IPv4 that is mapped into IPv6, belongs to the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for IpNetwork {
    type Err = String;

    /// Parses `ADDRESS/BITS`, or an address alone.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let prefix = bits.map_or(Ok(all), |bits| bits.parse().map_err(|_| invalid()))?;
        (prefix <= all).then_some(IpNetwork { address, prefix }).ok_or_else(invalid)
    }
}

fn invalid() -> String {
    "must be a network such as `10.0.0.0/8` or `fd00::/8`, or an IP address".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        let contains = |network: &str, address: &str| {
            let network: IpNetwork = network.parse().unwrap();
            network.contains(address.parse().unwrap())
        };
        for (network, address) in [
            ("10.0.0.0/8", "10.255.0.1"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("10.9.9.9/8", "10.1.2.3"),
            ("0.0.0.0/0", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("fd00::/8", "fdff::1"),
            ("::/0", "2001:db8::1"),
        ] {
            assert!(contains(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.0/8", "11.0.0.1"),
            ("192.0.2.1/32", "192.0.2.2"),
            ("0.0.0.0/0", "fd00::1"),
            ("::/0", "10.0.0.1"),
            ("fd00::/8", "fe80::1"),
        ] {
            assert!(!contains(network, address), "{network} {address}");
        }
        for wrong in ["", "/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "::/129", "host/8"] {
            assert!(wrong.parse::<IpNetwork>().is_err(), "{wrong}");
        }
    }
}
