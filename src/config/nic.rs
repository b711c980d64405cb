//! The data-plane endpoints of an agent with their settings.

use super::reader::{Diagnostics, Item};
use super::report::Pos;
use crate::util::iface::is_link_local;
use crate::wire::path::quote;
use crate::wire::worker::Endpoint;
use std::net::IpAddr;

/// The congestion controls of the kernel, separated by spaces.
const AVAILABLE_CONGESTION_CONTROLS: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";

/// An endpoint with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// The address. Port `Some(0)`: the kernel chooses.
    pub endpoint: Endpoint,
    /// The settings of its connections.
    pub settings: NicSettings,
}

/// The settings of an endpoint; the default of all but the weight is that of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSettings {
    /// The limit of sends, in bytes per second.
    pub bwlimit: Option<u64>,
    /// The preference: an endpoint with weight 10 counts as ten times as fast as one with weight 1.
    pub weight: u32,
    /// The congestion control of TCP, e.g. `bbr`.
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
    if let (Some(_), Some(duplicate)) = (&iface, &interface) {
        duplicate.error("the same as `iface`, which is given too");
    }
    let iface = iface.or(interface).and_then(|i| {
        i.parse("an interface such as `ib0`", |text| {
            Endpoint::new(Some(text.to_owned()), "127.0.0.1", None).map(|_| text.to_owned())
        })
    });
    let port_item = fields.get("port");
    let port = port_item.as_ref().and_then(|i| i.number(0..=65_535));
    let mut settings = NicSettings::default();
    fields.set("bwlimit", &mut settings.bwlimit, |i| i.limit());
    fields.set("weight", &mut settings.weight, |i| i.number(1..=1000));
    fields.set("congestion", &mut settings.congestion, |i| read_congestion(i).map(Some));
    let buffer = |i: &Item<'_>| i.size(4096..=1 << 30).map(Some);
    fields.set("send_buffer", &mut settings.send_buffer, buffer);
    fields.set("receive_buffer", &mut settings.receive_buffer, buffer);
    fields.finish();
    let mut endpoint = address?;
    if let (Some(_), Some(item)) = (endpoint.port, &port_item) {
        item.error("`address` names a port too — give one of the two");
    }
    endpoint.iface = iface;
    endpoint.port = port.or(endpoint.port);
    Some(NicConfig { endpoint, settings })
}

/// The name of a congestion control. [`check_congestion`] checks whether the kernel provides it.
fn read_congestion(item: &Item<'_>) -> Option<String> {
    item.parse("a congestion control such as `bbr`", |text| {
        let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if is_name && (1..16).contains(&text.len()) {
            return Ok(text.to_owned());
        }
        Err(format!("{} is not a congestion control such as `bbr`", quote(text)))
    })
}

/// An endpoint as in heartbeats, but also with port 0: the kernel chooses the port.
fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    if let Some((address, scope)) = text.trim_matches(['[', ']']).split_once('%') {
        let scope = scope.split(']').next().unwrap_or_default();
        return Err(format!(
            "{} names an interface — write it apart: `{{address: {address}, iface: {scope}}}`",
            quote(text)
        ));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        let address = socket.ip().to_string();
        return Ok(Endpoint { iface: None, address, port: Some(socket.port()) });
    }
    let mut endpoint: Endpoint = text.parse()?;
    if let Ok(ip) = endpoint.address.parse::<IpAddr>() {
        // The normal form, so that duplicates are detected.
        endpoint.address = ip.to_string();
    }
    Ok(endpoint)
}

/// Warns of a congestion control that the kernel of this host has not loaded.
pub(super) fn check_congestion(nic: &NicConfig, at: Pos, path: &str, diagnostics: &Diagnostics) {
    let Some(requested) = &nic.settings.congestion else { return };
    let Ok(available) = std::fs::read_to_string(AVAILABLE_CONGESTION_CONTROLS) else { return };
    if !available.split_whitespace().any(|name| name == requested) {
        let available = available.trim();
        diagnostics.warn(
            at,
            format!(
                "{path}: this kernel has no congestion control {requested}, only {available}: load it \
                 (modprobe tcp_{requested})"
            ),
        );
    }
}
