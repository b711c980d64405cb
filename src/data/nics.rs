//! The endpoints of this host: their settings, their byte counts, and sockets with these settings.

use super::meter::{CountedStream, TrafficCounter};
use crate::config::{NicConfig as Configured, NicSettings};
use crate::util::iface;
use crate::util::rate::RateLimiter;
use crate::wire::worker::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// A peer that disappeared without closing its connection is detected after about three of these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// An endpoint of this host.
#[derive(Debug)]
pub struct Nic {
    /// With the port that it has.
    pub endpoint: Endpoint,
    /// What is set for it.
    pub tuning: NicSettings,
    /// Content goes out no faster than this.
    pub rate: Arc<RateLimiter>,
    /// All that went through it.
    pub counter: Arc<TrafficCounter>,
    open_connections: AtomicU32,
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub struct OpenConnectionGuard(Arc<Nic>);

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Nic {
    /// A NIC as it is `configured`, nothing moved yet.
    pub fn new(configured: Configured) -> Arc<Self> {
        let Configured { endpoint, settings: tuning } = configured;
        let rate = Arc::new(RateLimiter::new(tuning.bwlimit));
        Arc::new(Nic {
            endpoint,
            tuning,
            rate,
            counter: Arc::default(),
            open_connections: AtomicU32::new(0),
        })
    }

    /// Counts a connection as open until what is returned is dropped.
    pub fn count_open_connection(self: &Arc<Self>) -> OpenConnectionGuard {
        self.open_connections.fetch_add(1, Ordering::Relaxed);
        OpenConnectionGuard(self.clone())
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> u32 {
        self.open_connections.load(Ordering::Relaxed)
    }

    /// `at`, with the scope that a link-local address takes from the interface.
    ///
    /// # Errors
    /// A link-local address, and no such interface, or none given.
    pub fn scoped(&self, at: SocketAddr) -> std::io::Result<SocketAddr> {
        iface::with_scope_id(at, self.endpoint.iface.as_deref())
    }

    /// The address, where it is a literal one that a socket can be bound to.
    pub fn ip(&self) -> Option<IpAddr> {
        self.endpoint.address.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified())
    }

    /// Sets what is to be set before a socket is connected, or listens.
    pub fn set_socket_options(&self, socket: SockRef<'_>) {
        let NicSettings { congestion, send_buffer, receive_buffer, .. } = &self.tuning;
        let log_failure = |what: &str, done: std::io::Result<()>| {
            if let Err(e) = done {
                tracing::warn!(endpoint = self.endpoint.authority(), "cannot set {what}: {e}");
            }
        };
        if let Some(name) = congestion {
            log_failure(&format!("congestion {name}"), socket.set_tcp_congestion(name.as_bytes()));
        }
        if let Some(size) = send_buffer {
            log_failure("send_buffer", socket.set_send_buffer_size(*size));
        }
        if let Some(size) = receive_buffer {
            log_failure("receive_buffer", socket.set_recv_buffer_size(*size));
        }
    }

    /// Counts the bytes of `stream`, an accepted connection, and sets its keepalive.
    pub fn wrap_accepted(&self, stream: TcpStream) -> CountedStream {
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_INTERVAL)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(2);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        CountedStream::new(stream, vec![self.counter.clone()])
    }

    /// The speed that the kernel reports for its interface, in bytes per second.
    pub fn link_bytes_per_second(&self) -> Option<f64> {
        bytes_per_second(&self.interface_attribute("speed")?)
    }

    /// Why its interface can't be used, where the kernel reports so.
    pub fn link_failure(&self) -> Option<String> {
        let state = self.interface_attribute("operstate")?;
        let iface = self.endpoint.iface.as_deref().unwrap_or_default();
        matches!(state.as_str(), "down" | "lowerlayerdown" | "notpresent")
            .then(|| format!("interface {iface} is {state}"))
    }

    /// The number that the kernel gave its interface.
    pub fn interface_index(&self) -> Option<u32> {
        iface::interface_index(self.endpoint.iface.as_deref()?)
    }

    fn interface_attribute(&self, what: &str) -> Option<String> {
        iface::read_attribute(self.endpoint.iface.as_deref()?, what)
    }
}

/// Parses a speed in megabits per second; interfaces without one report -1 or nothing.
fn bytes_per_second(megabits: &str) -> Option<f64> {
    megabits.parse::<f64>().ok().filter(|n| *n > 0.0).map(|n| n * 1e6 / 8.0)
}

/// Whether `ip` is an address of this host.
pub fn is_local_address(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_of_an_interface_is_read_as_bytes_per_second_where_it_has_one() {
        assert_eq!(bytes_per_second("10000"), Some(1.25e9));
        for none in ["-1", "0", "", "unknown"] {
            assert_eq!(bytes_per_second(none), None, "{none:?}");
        }
    }

    #[test]
    fn an_interface_without_a_speed_has_no_link_speed() {
        for iface in [None, Some("lo"), Some("not-there")] {
            let address = "127.0.0.1".to_owned();
            let endpoint = Endpoint { iface: iface.map(str::to_owned), address, port: Some(1) };
            let nic = Nic::new(endpoint.into());
            assert_eq!(
                (nic.link_bytes_per_second(), nic.link_failure()),
                (None, None),
                "{iface:?}"
            );
            let open = (nic.count_open_connection(), nic.count_open_connection());
            assert_eq!(nic.open_connections(), 2);
            drop(open);
            assert_eq!(nic.open_connections(), 0);
        }
    }
}
