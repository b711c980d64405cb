//! Listening on the endpoints of this host. With several, one that names its interface is bound to it, so that
//! replies leave by it too, whatever the routing table has for the peer.

use super::nics::Nic;
use crate::config::NicConfig as Configured;
use crate::util::iface::is_link_local;
use crate::wire::worker::DEFAULT_DATA_PORT;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::Result;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often the index of the interface is checked: a recreated interface needs a new socket.
const INTERFACE_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The listening sockets of one endpoint.
pub struct Listener {
    /// The NIC of the endpoint.
    pub nic: Arc<Nic>,
    address: SocketAddr,
    socket: TcpListener,
    /// For peers on this host, where the main one hears its interface only.
    loopback: Option<TcpListener>,
    /// The number of the interface that it is bound to.
    interface_index: Option<u32>,
}

impl Listener {
    /// Listens as `nic` is configured, bound to its interface if it is one of `several`; with the port that the
    /// kernel chose where it was to choose.
    ///
    /// # Errors
    /// The error of the kernel or the resolver.
    pub async fn bind(mut nic: Configured, several: bool) -> Result<Self> {
        let port = nic.endpoint.port.unwrap_or(DEFAULT_DATA_PORT);
        let name = (nic.endpoint.address.clone(), port);
        let mut addresses = tokio::net::lookup_host(name).await?;
        let none = || std::io::Error::other("the name has no address");
        let address = addresses.next().ok_or_else(none)?;
        let bound = several && nic.endpoint.iface.is_some() && !address.ip().is_loopback();
        let trial = Nic::new(nic.clone());
        let address = trial.scoped(address)?;
        let (socket, number) = listen_preferring_interface(&trial, address, bound)?;
        let address = socket.local_addr()?;
        nic.endpoint.port = Some(address.port());
        // A name is resolved once, here: peers get addresses only.
        nic.endpoint.address = address.ip().to_string();
        let lo = number.filter(|_| is_reached_by_loopback(address.ip()));
        let loopback = lo.map(|_| listen_on(&trial, address, Some("lo"))).transpose();
        let loopback = loopback.unwrap_or_else(|e| {
            tracing::warn!(%address, "agents on this host cannot reach this endpoint: {e}");
            None
        });
        Ok(Listener { nic: Nic::new(nic), address, socket, loopback, interface_index: number })
    }

    /// The next connection.
    ///
    /// # Errors
    /// The error of the kernel.
    pub async fn accept(&mut self) -> Result<(TcpStream, SocketAddr)> {
        loop {
            let loopback = async {
                match &self.loopback {
                    Some(loopback) => loopback.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                accepted = self.socket.accept() => return accepted,
                accepted = loopback => return accepted,
                () = tokio::time::sleep(INTERFACE_CHECK_INTERVAL), if self.interface_index.is_some() => {}
            }
            self.rebind_if_replaced();
        }
    }

    /// Listens on a new socket where the interface was recreated under the same name.
    fn rebind_if_replaced(&mut self) {
        let Some(number) = self
            .nic
            .interface_index()
            .filter(|n| self.interface_index.is_some_and(|bound| *n != bound))
        else {
            return;
        };
        if let SocketAddr::V6(address) = &mut self.address
            && address.scope_id() != 0
        {
            address.set_scope_id(number);
        }
        match listen_on(&self.nic, self.address, self.nic.endpoint.iface.as_deref()) {
            Ok(socket) => (self.socket, self.interface_index) = (socket, Some(number)),
            Err(e) => tracing::debug!(address = %self.address, "cannot listen again: {e}"),
        }
    }
}

/// Whether peers on this host connect to `ip`, an address of one of its interfaces, by `lo`: to a link-local one
/// they connect by its interface.
fn is_reached_by_loopback(ip: IpAddr) -> bool {
    !is_link_local(ip)
}

/// Listens, bound to the interface where that is possible; returns the index of that interface.
fn listen_preferring_interface(
    nic: &Nic,
    address: SocketAddr,
    bound: bool,
) -> Result<(TcpListener, Option<u32>)> {
    let iface = nic.endpoint.iface.as_deref().filter(|_| bound);
    if let Some((iface, number)) = iface.zip(nic.interface_index()) {
        match listen_on(nic, address, Some(iface)) {
            Ok(listener) => return Ok((listener, Some(number))),
            // Old kernels need a capability for it; the address alone is the next best.
            Err(e) => tracing::debug!(iface, "cannot listen on the interface only: {e}"),
        }
    }
    listen_on(nic, address, None).map(|listener| (listener, None))
}

fn listen_on(nic: &Nic, address: SocketAddr, iface: Option<&str>) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted sockets are as the one that listens.
    nic.set_socket_options(SockRef::from(&socket));
    if let Some(iface) = iface {
        socket.bind_device(Some(iface.as_bytes()))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_on_this_host_need_lo_unless_the_address_is_link_local() {
        for (ip, by_lo) in
            [("10.0.0.1", true), ("169.254.0.1", true), ("fd00::1", true), ("fe80::1", false)]
        {
            assert_eq!(is_reached_by_loopback(ip.parse().unwrap()), by_lo, "{ip}");
        }
    }
}
