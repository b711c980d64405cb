//! The data-plane endpoints of an agent, and what is set for each network interface behind one.

use super::reader::{Diagnostics, Item, quoted};
use super::report::Pos;
use crate::util::iface::is_link_local;
use crate::wire::worker::Endpoint;
use std::net::IpAddr;

/// What the kernel offers, separated by spaces.
const AVAILABLE_CONGESTION_CONTROLS: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// An endpoint with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Where it serves. Port `Some(0)`: the kernel chooses.
    pub endpoint: Endpoint,
    /// How its connections are.
    pub settings: NicSettings,
}

/// What may be set for an endpoint; all but the weight is left to the kernel where it is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSettings {
    /// At most this much content is sent through it, in bytes per second.
    pub bwlimit: Option<u64>,
    /// How much it is preferred: one of 10 counts as ten times as fast as one of 1 that is as fast.
    pub weight: u32,
    /// TCP's congestion control, e.g. `bbr`.
    pub congestion: Option<String>,
    /// The size of a socket's send buffer, in bytes.
    pub send_buffer: Option<usize>,
    /// The size of a socket's receive buffer, in bytes.
    pub receive_buffer: Option<usize>,
}

impl Default for NicSettings {
    fn default() -> Self {
        NicSettings {
            bwlimit: None,
            weight: 1,
            congestion: None,
            send_buffer: None,
            receive_buffer: None,
        }
    }
}

impl From<Endpoint> for NicConfig {
    fn from(endpoint: Endpoint) -> Self {
        NicConfig { endpoint, settings: NicSettings::default() }
    }
}

/// `address`, `address:port`, or a map of `address`, `iface` (or `interface`), `port` and settings.
pub(super) fn read_nic(item: &Item<'_>) -> Option<NicConfig> {
    let nic = if item.is_map() {
        read_map(item)?
    } else {
        item.parse("an address, or `{address, iface, port}`", parse_endpoint)?.into()
    };
    let Endpoint { address, iface, .. } = &nic.endpoint;
    if iface.is_none() && address.parse().is_ok_and(is_link_local) {
        item.error(format!(
            "{address} is a link-local address, which means nothing without its interface — write \
             `{{address: {address}, iface: NAME}}`"
        ));
        return None;
    }
    if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        item.error(format!(
            "other agents cannot connect to {address} — give the address of a network interface"
        ));
        return None;
    }
    Some(nic)
}

fn read_map(item: &Item<'_>) -> Option<NicConfig> {
    let fields = item.fields()?;
    let address = fields.require("address", "").and_then(|i| i.parse("an address", parse_endpoint));
    let (iface, interface) = (fields.get("iface"), fields.get("interface"));
    if let (Some(_), Some(twice)) = (&iface, &interface) {
        twice.error("the same as `iface`, which is given too");
    }
    let iface = iface.or(interface).and_then(|i| {
        i.parse("an interface such as `ib0`", |text| {
            Endpoint::new(Some(text.to_owned()), "127.0.0.1", None).map(|_| text.to_owned())
        })
    });
    let port_item = fields.get("port");
    let port = port_item.as_ref().and_then(|i| i.number(0..=65_535));
    let buffer = |key| {
        let size = fields.get(key).and_then(|i| i.size(4096..=1 << 30));
        size.and_then(|size| usize::try_from(size).ok())
    };
    let tuning = NicSettings {
        bwlimit: fields.get("bwlimit").and_then(|i| i.limit()).flatten(),
        weight: fields
            .get("weight")
            .and_then(|i| i.number(1..=1000))
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(1),
        congestion: fields.get("congestion").and_then(|i| read_congestion(&i)),
        send_buffer: buffer("send_buffer"),
        receive_buffer: buffer("receive_buffer"),
    };
    fields.finish();
    let mut endpoint = address?;
    if let (Some(_), Some(item)) = (endpoint.port, &port_item) {
        item.error("`address` names a port too — give one of the two");
    }
    endpoint.iface = iface;
    endpoint.port = port.and_then(|p| u16::try_from(p).ok()).or(endpoint.port);
    Some(NicConfig { endpoint, settings: tuning })
}

/// The name of a congestion control. Whether the kernel has it, only the host can say.
fn read_congestion(item: &Item<'_>) -> Option<String> {
    item.parse("a congestion control such as `bbr`", |text| {
        let name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if name && (1..16).contains(&text.len()) {
            return Ok(text.to_owned());
        }
        Err(format!("{} is not a congestion control such as `bbr`", quoted(text)))
    })
}

/// As on the wire, and also port 0: the kernel chooses, the heartbeat says which.
fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    if let Some((address, scope)) = text.trim_matches(['[', ']']).split_once('%') {
        let scope = scope.split(']').next().unwrap_or_default();
        return Err(format!(
            "{} names an interface — write it apart: `{{address: {address}, iface: {scope}}}`",
            quoted(text)
        ));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        let address = socket.ip().to_string();
        return Ok(Endpoint { iface: None, address, port: Some(socket.port()) });
    }
    let mut endpoint: Endpoint = text.parse()?;
    if let Ok(ip) = endpoint.address.parse::<IpAddr>() {
        // One spelling, so that two of the same address are seen.
        endpoint.address = ip.to_string();
    }
    Ok(endpoint)
}

/// Warns of a congestion control that this host's kernel has not loaded.
pub(super) fn check_congestion(nic: &NicConfig, at: Pos, place: &str, findings: &Diagnostics) {
    let Some(wanted) = &nic.settings.congestion else { return };
    let Ok(available) = std::fs::read_to_string(AVAILABLE_CONGESTION_CONTROLS) else { return };
    if !available.split_whitespace().any(|name| name == wanted) {
        let available = available.trim();
        findings.warn(
            at,
            format!(
                "{place}: this kernel has no congestion control {wanted}, only {available}: load it \
                 (modprobe tcp_{wanted})"
            ),
        );
    }
}
