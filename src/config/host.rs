//! Checks the settings of a worker on this host. `ctl config check --worker-id` reports warnings, because a file is
//! usually checked on other hosts as well; `ctl agent --check` reports errors.

use super::agent::Worker;
use super::reader::Diagnostics;
use super::report::{Pos, Severity};
use crate::util::iface::with_scope_id;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;
use url::Url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Warns of each master of a worker that does not accept a connection from this host.
pub(super) fn check_master_connections(worker: &Worker, diagnostics: &Diagnostics) {
    let id = &worker.config.worker_id;
    for url in &worker.config.master_urls {
        let Err(cause) = try_connect(url) else { continue };
        let message = format!(
            "master_url: {url} cannot be reached: {cause} (checked on this host for worker {id})"
        );
        diagnostics.record(None, Severity::Warning, message);
    }
}

fn try_connect(url: &str) -> Result<(), String> {
    let url = Url::parse(url).map_err(|e| e.to_string())?;
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default());
    let host = host.trim_matches(['[', ']']);
    let addresses =
        (host, port.unwrap_or_default()).to_socket_addrs().map_err(|e| e.to_string())?;
    let mut cause = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(e) => cause = e.to_string(),
        }
    }
    Err(cause)
}

pub(super) fn check_worker_on_host(worker: &Worker, severity: Severity, diagnostics: &Diagnostics) {
    let id = &worker.config.worker_id;
    let prefix = match worker.label.as_str() {
        "" => String::new(),
        label => format!("{label}."),
    };
    let report = |severity: Severity, at: Pos, key: &str, what: String| {
        let message = format!("{prefix}{key}: {what} (checked on this host for worker {id})");
        diagnostics.record(Some(at), severity, message);
    };
    for (path, at) in worker.config.storage_paths.iter().zip(&worker.path_positions) {
        let path = &path.local_path;
        let target = Path::new(OsStr::from_bytes(path.as_bytes()));
        let what = match std::fs::symlink_metadata(target) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(meta) if meta.is_symlink() && target.is_dir() => {
                let what = format!("{path} is a symbolic link — name its target");
                report(Severity::Warning, *at, "storage_paths", what);
                continue;
            }
            Ok(_) => format!("{path} is not a directory"),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                format!("{path} does not exist on this host")
            }
            Err(e) => format!("{path} cannot be accessed: {e}"),
        };
        report(severity, *at, "storage_paths", what);
    }
    // Positions exist for configured endpoints only; the default one needs no check.
    for (nic, at) in worker.config.data_plane_endpoints.iter().zip(&worker.endpoint_positions) {
        let (key, endpoint) = ("network.data_plane_endpoints", &nic.endpoint);
        super::nic::check_congestion(nic, *at, &format!("{prefix}{key}"), diagnostics);
        if let Some(iface) = &endpoint.iface
            && !Path::new("/sys/class/net").join(iface).exists()
        {
            report(severity, *at, key, format!("this host has no interface {iface}"));
        }
        if let Ok(ip) = endpoint.address.parse::<IpAddr>()
            && let Ok(socket) = with_scope_id(SocketAddr::new(ip, 0), endpoint.iface.as_deref())
            && let Err(e) = UdpSocket::bind(socket)
            && e.kind() == ErrorKind::AddrNotAvailable
        {
            report(severity, *at, key, format!("{ip} is not an address of this host"));
        }
    }
}
