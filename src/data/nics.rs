//! Our own endpoints at work: what is set for them, what they moved, and sockets as they want them.

use super::meter::{Counted, Flow};
use crate::config::{NicConfig as Configured, NicSettings};
use crate::util::iface;
use crate::util::rate::RateLimiter;
use crate::wire::worker::Endpoint;
use socket2::{SockRef, TcpKeepalive};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// A peer that went away without a word is noticed after about three of these.
const ALIVE: Duration = Duration::from_secs(5);

/// One of our endpoints.
#[derive(Debug)]
pub struct Nic {
    /// With the port that it has.
    pub endpoint: Endpoint,
    /// What is set for it.
    pub tuning: NicSettings,
    /// Content goes out no faster than this.
    pub rate: Arc<RateLimiter>,
    /// All that went through it.
    pub flow: Arc<Flow>,
    open: AtomicUsize,
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
pub struct Open(Arc<Nic>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Nic {
    /// A NIC as it is `configured`, nothing moved yet.
    pub fn new(configured: Configured) -> Arc<Self> {
        let Configured { endpoint, settings: tuning } = configured;
        let rate = Arc::new(RateLimiter::new(tuning.bwlimit));
        Arc::new(Nic { endpoint, tuning, rate, flow: Arc::default(), open: AtomicUsize::new(0) })
    }

    /// Counts a connection as open until what is returned is dropped.
    pub fn opened(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
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
    pub fn tune(&self, socket: SockRef<'_>) {
        let NicSettings { congestion, send_buffer, receive_buffer, .. } = &self.tuning;
        let note = |what: &str, done: std::io::Result<()>| {
            if let Err(e) = done {
                tracing::warn!(endpoint = self.endpoint.authority(), "cannot set {what}: {e}");
            }
        };
        if let Some(name) = congestion {
            note(&format!("congestion {name}"), socket.set_tcp_congestion(name.as_bytes()));
        }
        if let Some(size) = send_buffer {
            note("send_buffer", socket.set_send_buffer_size(*size));
        }
        if let Some(size) = receive_buffer {
            note("receive_buffer", socket.set_recv_buffer_size(*size));
        }
    }

    /// `stream`, which somebody opened to this endpoint, counted.
    pub fn accepted(&self, stream: TcpStream) -> Counted {
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(ALIVE).with_interval(ALIVE).with_retries(2);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Counted::new(stream, vec![self.flow.clone()])
    }

    /// How fast its interface says that it is, in bytes per second.
    pub fn nominal(&self) -> Option<f64> {
        bytes_per_second(&self.about("speed")?)
    }

    /// What the kernel says of its interface that makes it useless, if anything does.
    pub fn down(&self) -> Option<String> {
        let state = self.about("operstate")?;
        let iface = self.endpoint.iface.as_deref().unwrap_or_default();
        matches!(state.as_str(), "down" | "lowerlayerdown" | "notpresent")
            .then(|| format!("interface {iface} is {state}"))
    }

    /// The number that the kernel gave its interface.
    pub fn number(&self) -> Option<u32> {
        iface::interface_index(self.endpoint.iface.as_deref()?)
    }

    fn about(&self, what: &str) -> Option<String> {
        iface::read_attribute(self.endpoint.iface.as_deref()?, what)
    }
}

/// A speed as an interface says it, in megabits per second. Interfaces that have none say -1, or nothing.
fn bytes_per_second(megabits: &str) -> Option<f64> {
    megabits.parse::<f64>().ok().filter(|n| *n > 0.0).map(|n| n * 1e6 / 8.0)
}

/// Whether `ip` is an address of this host.
pub fn is_own(ip: IpAddr) -> bool {
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
    fn an_interface_that_has_no_speed_is_given_none() {
        for iface in [None, Some("lo"), Some("not-there")] {
            let address = "127.0.0.1".to_owned();
            let endpoint = Endpoint { iface: iface.map(str::to_owned), address, port: Some(1) };
            let nic = Nic::new(endpoint.into());
            assert_eq!((nic.nominal(), nic.down()), (None, None), "{iface:?}");
            let open = (nic.opened(), nic.opened());
            assert_eq!(nic.open(), 2);
            drop(open);
            assert_eq!(nic.open(), 0);
        }
    }
}
