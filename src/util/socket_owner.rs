//! The user that owns the other end of a TCP connection within this host, as the kernel reports it.

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// `SOCK_DIAG_BY_FAMILY` and `NLMSG_ERROR` of `linux/sock_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const IPPROTO_TCP: u8 = 6;
/// The state of a connection that neither end has closed. Only then does the uid mean something: the kernel reports
/// uid 0 for the socket of a process that has ended.
const TCP_ESTABLISHED: u8 = 1;
/// The length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// The length of `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;

/// The uid of the socket of this host that has the address `own` and is connected to `peer`, by `sock_diag`. `None`: there
/// is none, it is not connected at both ends, its process has ended, or the kernel has no such interface. Takes
/// microseconds.
pub fn ask_socket_owner(own: SocketAddr, peer: SocketAddr) -> Option<u32> {
    // The kernel reports "no such socket" and "no such module" by the same error.
    ask_sock_diag(canonical(own), canonical(peer)).ok().flatten()
}

/// As [`ask_socket_owner`], from `/proc/net/tcp`. Blocks for milliseconds if there are many connections.
///
/// # Errors
/// The table cannot be read.
pub fn search_socket_owner(own: SocketAddr, peer: SocketAddr) -> io::Result<Option<u32>> {
    read_proc_table(canonical(own), canonical(peer))
}

/// An IPv4 address in IPv6 form as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn ask_sock_diag(own: SocketAddr, peer: SocketAddr) -> rustix::io::Result<Option<u32>> {
    let protocol = Some(netlink::SOCK_DIAG);
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    let request = diag_request(own, peer);
    sendto(&socket, &request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut reply = [0; 4096];
    // The kernel has queued its reply when the call above returns.
    let (length, _) = recv(&socket, &mut reply[..], RecvFlags::DONTWAIT)?;
    Ok(parse_diag_reply(&reply[..length], own, peer))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`, for exactly one socket.
fn diag_request(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let length = (HEADER_BYTES + REQUEST_BYTES) as u32;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    bytes.extend([u8::try_from(family.as_raw()).unwrap_or_default(), IPPROTO_TCP, 0, 0]);
    // All states: the state is compared in the reply.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(socket_id(own, peer));
    // Any interface, any cookie.
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([0xff; 8]);
    bytes
}

/// The beginning of `struct inet_diag_sockid`: ports and addresses.
fn socket_id(own: SocketAddr, peer: SocketAddr) -> [u8; 36] {
    let mut id = [0; 36];
    id[..2].copy_from_slice(&own.port().to_be_bytes());
    id[2..4].copy_from_slice(&peer.port().to_be_bytes());
    for (at, ip) in [(4, own.ip()), (20, peer.ip())] {
        match ip {
            IpAddr::V4(ip) => id[at..at + 4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => id[at..at + 16].copy_from_slice(&ip.octets()),
        }
    }
    id
}

/// Reads `struct inet_diag_msg`. The kernel may return a listener at the port of a connection that has ended, so the
/// ports and the state are compared.
fn parse_diag_reply(reply: &[u8], own: SocketAddr, peer: SocketAddr) -> Option<u32> {
    let kind = reply.get(4..6)?.try_into().ok().map(u16::from_ne_bytes)?;
    let message = reply.get(HEADER_BYTES..)?;
    let number = |at: usize| message.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let (state, ports) = (*message.get(1)?, message.get(4..8)?);
    let is_connection = kind == SOCK_DIAG_BY_FAMILY
        && state == TCP_ESTABLISHED
        && *ports == socket_id(own, peer)[..4];
    let (uid, inode) = (number(64)?, number(68)?);
    (is_connection && inode != 0).then_some(uid)
}

/// Looks for the socket in `/proc/net/tcp` and `/proc/net/tcp6`.
fn read_proc_table(own: SocketAddr, peer: SocketAddr) -> io::Result<Option<u32>> {
    let mut forms = vec![("/proc/net/tcp6", proc_address(own, true), proc_address(peer, true))];
    if own.is_ipv4() {
        let plain = ("/proc/net/tcp", proc_address(own, false), proc_address(peer, false));
        forms.insert(0, plain);
    }
    let mut error = None;
    for (file, own, peer) in forms {
        match fs::read_to_string(file) {
            Ok(table) => {
                let uid = table.lines().find_map(|line| parse_proc_row(line, &own, &peer));
                if uid.is_some() {
                    return Ok(uid);
                }
            }
            // Without IPv6 there is no such file.
            Err(e) if e.kind() == io::ErrorKind::NotFound && file.ends_with('6') => {}
            Err(e) => error = Some(e),
        }
    }
    error.map_or(Ok(None), Err)
}

/// An address as the tables show it: words of 32 bits in the byte order of this host.
fn proc_address(address: SocketAddr, is_ipv6: bool) -> String {
    let octets = match address.ip() {
        IpAddr::V4(ip) if is_ipv6 => ip.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| {
        let word = <[u8; 4]>::try_from(word).unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

/// The uid in a row: `sl local remote state queues timer retransmits uid timeout inode`.
fn parse_proc_row(row: &str, own: &str, peer: &str) -> Option<u32> {
    let mut words = row.split_ascii_whitespace().skip(1);
    if words.next()? != own || words.next()? != peer {
        return None;
    }
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let uid = words.nth(3)?.parse().ok()?;
    let inode: u64 = words.nth(1)?.parse().ok()?;
    (state == TCP_ESTABLISHED && inode != 0).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Uid, geteuid};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    /// What both interfaces of the kernel report of the client of a connection.
    fn owners(own: SocketAddr, peer: SocketAddr) -> [Option<u32>; 2] {
        let diag = ask_sock_diag(own, peer).unwrap_or_else(|e| {
            assert_eq!(e, rustix::io::Errno::NOENT);
            None
        });
        let proc = read_proc_table(own, peer).unwrap();
        assert_eq!(ask_socket_owner(own, peer), diag);
        assert_eq!(search_socket_owner(own, peer).unwrap(), proc);
        [diag, proc]
    }

    #[test]
    fn the_owner_of_a_connection_is_reported_while_both_ends_are_open() {
        let me = geteuid().as_raw();
        for (listen, connect) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            // A listener of both families reports the client as IPv4 in IPv6.
            ("[::]:0", "127.0.0.1"),
        ] {
            let Ok(listener) = TcpListener::bind(listen) else {
                assert!(listen.starts_with('['), "{listen}");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((connect, port)).unwrap();
            let (server, own) = listener.accept().unwrap();
            let peer = server.local_addr().unwrap();
            assert_eq!(owners(canonical(own), canonical(peer)), [Some(me); 2], "{listen}");
            // Another port has no such connection; the listener is none.
            let other = SocketAddr::new(own.ip(), own.port() ^ 1);
            assert_eq!(owners(canonical(other), canonical(peer)), [None; 2]);
            assert_eq!(owners(canonical(peer), canonical(other)), [None; 2]);
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(owners(canonical(own), canonical(peer)), [None; 2], "half closed");
            drop(client);
            assert_eq!(owners(canonical(own), canonical(peer)), [None; 2], "closed");
        }
    }

    #[test]
    fn the_socket_of_a_process_of_another_user_has_its_uid_and_none_after_its_end() {
        if !geteuid().is_root() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // The uid of a socket is that of the thread that makes it.
        let connect = move || {
            rustix::thread::set_thread_uid(Uid::from_raw(65_534)).unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            io::Write::write_all(&mut client, b"GET").unwrap();
            client
        };
        let client = thread::spawn(connect).join().unwrap();
        let (server, own) = listener.accept().unwrap();
        let peer = server.local_addr().unwrap();
        assert_eq!(owners(own, peer), [Some(65_534); 2]);
        // The kernel shows uid 0 for it from now on, which must not be taken for root.
        drop(client);
        assert_eq!(owners(own, peer), [None; 2]);
    }
}
