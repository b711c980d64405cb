//! A link between a process and a server that can be cut: bytes then stay where they are, connections stay
//! open, and new ones are accepted and get no answer, as behind a router that drops everything. It can
//! also be cut in one direction, so that requests arrive and replies do not, and inject [faults](Fault).

use super::faults::{Fault, FaultInjector};
use parking_lot::{Condvar, Mutex};
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often an idle direction checks whether the other one was reset.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Relays TCP connections to a server.
pub(crate) struct Relay {
    address: SocketAddr,
    link: Arc<RelayState>,
}

/// Where a server listens.
#[derive(Clone)]
enum ServerAddress {
    Unix(PathBuf),
    Tcp(String),
}

struct RelayState {
    to: Mutex<ServerAddress>,
    /// What goes to the server, and what comes from it.
    to_server: Valve,
    from_server: Valve,
    faults: FaultInjector,
    /// What closes `back` when it has gone to the server.
    closing_text: Mutex<Option<String>>,
    stopped: AtomicBool,
    /// Connections are closed, and new ones at once.
    refuses_connections: AtomicBool,
}

impl RelayState {
    /// To be called with each piece on its way to the server.
    fn check_closing_text(&self, piece: &[u8]) {
        let mut last = self.closing_text.lock();
        let is_in = |text: &String| piece.windows(text.len()).any(|w| w == text.as_bytes());
        if last.as_ref().is_some_and(is_in) {
            self.from_server.set_closed(true);
            *last = None;
        }
    }
}

#[derive(Default)]
struct Valve {
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Valve {
    fn wait_open(&self) {
        let mut shut = self.is_closed.lock();
        while *shut {
            self.opened.wait(&mut shut);
        }
    }

    fn set_closed(&self, shut: bool) {
        *self.is_closed.lock() = shut;
        self.opened.notify_all();
    }
}

impl Relay {
    /// A link to the socket `to`.
    pub(crate) fn to_socket(to: &Path) -> Relay {
        Self::start(ServerAddress::Unix(to.to_owned()), Fault::None)
    }

    /// A link to a host and port.
    pub(crate) fn to_address(to: String) -> Relay {
        Self::start(ServerAddress::Tcp(to), Fault::None)
    }

    /// A link to a port of this host that injects `fault`.
    pub(crate) fn to_port(port: u16, harm: Fault) -> Relay {
        Self::start(ServerAddress::Tcp(format!("127.0.0.1:{port}")), harm)
    }

    fn start(to: ServerAddress, harm: Fault) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (there, back) = (Valve::default(), Valve::default());
        let (to, harm, stopped) =
            (Mutex::new(to), FaultInjector::new(harm), AtomicBool::new(false));
        let refuses = AtomicBool::new(false);
        let link = RelayState {
            to,
            to_server: there,
            from_server: back,
            faults: harm,
            closing_text: Mutex::default(),
            stopped,
            refuses_connections: refuses,
        };
        let link = Arc::new(link);
        let relayed = Arc::clone(&link);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if relayed.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let link = Arc::clone(&relayed);
                if let Ok(stream) = stream {
                    std::thread::spawn(move || drop(connect(stream, &link)));
                }
            }
        });
        Relay { address, link }
    }

    /// The URL of the Redis behind it.
    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// The URL of the master behind it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The number of faults injected so far.
    pub(crate) fn fault_count(&self) -> u64 {
        self.link.faults.count()
    }

    /// New connections go to another socket, as when an address moves to another host.
    pub(crate) fn redirect_to(&self, to: &Path) {
        *self.link.to.lock() = ServerAddress::Unix(to.to_owned());
    }

    pub(crate) fn cut(&self) {
        self.link.to_server.set_closed(true);
        self.link.from_server.set_closed(true);
    }

    /// Closes every connection, new ones at once, until it is mended.
    pub(crate) fn refuse_connections(&self) {
        self.link.refuses_connections.store(true, Ordering::Relaxed);
    }

    /// Requests arrive, and replies do not.
    pub(crate) fn drop_replies(&self) {
        self.link.from_server.set_closed(true);
    }

    /// Requests arrive. From the first piece with this text on, replies do not.
    pub(crate) fn drop_replies_after(&self, text: &str) {
        *self.link.closing_text.lock() = Some(text.to_owned());
    }

    /// Whether replies are lost now.
    pub(crate) fn is_dropping_replies(&self) -> bool {
        *self.link.from_server.is_closed.lock()
    }

    pub(crate) fn restore(&self) {
        self.link.refuses_connections.store(false, Ordering::Relaxed);
        *self.link.closing_text.lock() = None;
        self.link.to_server.set_closed(false);
        self.link.from_server.set_closed(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.stopped.store(true, Ordering::Relaxed);
        self.restore();
        // Unblocks the thread that accepts connections.
        let _ = TcpStream::connect(self.address);
    }
}

/// One side of a connection that is relayed.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).read(buffer),
            Stream::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => (&mut &*stream).write_all(bytes),
            Stream::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    /// Its end will be a reset.
    fn set_reset_on_close(&self) {
        if let Stream::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    fn close(&self) {
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

fn connect(client: TcpStream, link: &Arc<RelayState>) -> io::Result<()> {
    if link.refuses_connections.load(Ordering::Relaxed) {
        return Ok(());
    }
    link.to_server.wait_open();
    let to = link.to.lock().clone();
    let server = match to {
        ServerAddress::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        ServerAddress::Tcp(address) => Stream::Tcp(TcpStream::connect(address)?),
    };
    let ends = Connection {
        client: Stream::Tcp(client),
        server,
        passed: AtomicU64::new(0),
        is_reset: AtomicBool::new(false),
    };
    for side in [&ends.client, &ends.server] {
        if let Stream::Tcp(stream) = side {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(POLL_INTERVAL))?;
        }
    }
    let ends = Arc::new(ends);
    let (there, passing) = (Arc::clone(&ends), Arc::clone(link));
    std::thread::spawn(move || drop(there.relay_direction(true, &passing)));
    ends.relay_direction(false, link)
}

/// A connection that is relayed.
struct Connection {
    client: Stream,
    server: Stream,
    /// Bytes that went through it, in both directions.
    passed: AtomicU64,
    is_reset: AtomicBool,
}

impl Connection {
    /// Forwards bytes to the server (`up`) or from it until one side closes.
    fn relay_direction(&self, up: bool, link: &RelayState) -> io::Result<()> {
        let (from, to, gate) = match up {
            true => (&self.client, &self.server, &link.to_server),
            false => (&self.server, &self.client, &link.from_server),
        };
        let refuses = || link.refuses_connections.load(Ordering::Relaxed);
        let ended = self.copy_stream((from, to), (gate, refuses), |piece| {
            if up {
                link.check_closing_text(piece);
            }
            let before = self.passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            link.faults.inject(piece, up, before)
        });
        if !self.is_reset.load(Ordering::Relaxed) {
            to.close();
        }
        ended
    }

    fn copy_stream(
        &self,
        (from, to): (&Stream, &Stream),
        (gate, refuses): (&Valve, impl Fn() -> bool),
        harm: impl Fn(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        // A reset connection is closed when both directions have released it. Nothing is sent to it before.
        while !self.is_reset.load(Ordering::Relaxed) {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if refuses() {
                        return Ok(());
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            gate.wait_open();
            if refuses() {
                return Ok(());
            }
            if harm(&mut buffer[..n]) {
                to.write_all(&buffer[..n])?;
            } else {
                from.set_reset_on_close();
                to.set_reset_on_close();
                self.is_reset.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
