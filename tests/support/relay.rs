//! A link between a process and a server that can be cut: bytes then stay where they are, connections stay
//! open, and new ones are accepted and get no answer, as behind a router that drops everything. It can
//! also be cut in one direction, so that requests arrive and answers do not, and do [harm](Harm) to what passes.

use super::harm::{Doer, Harm};
use parking_lot::{Condvar, Mutex};
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a direction in which nothing comes looks whether the other one was reset.
const LOOK: Duration = Duration::from_millis(50);

/// Relays TCP connections to a server.
pub(crate) struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
}

/// Where a server listens.
#[derive(Clone)]
enum Server {
    Unix(PathBuf),
    Tcp(String),
}

struct Link {
    to: Mutex<Server>,
    /// What goes to the server, and what comes from it.
    there: Gate,
    back: Gate,
    harm: Doer,
    /// What closes `back` when it has gone to the server.
    last: Mutex<Option<String>>,
    stopped: AtomicBool,
    /// Connections are closed, and new ones at once.
    refuses: AtomicBool,
}

impl Link {
    /// To be called with each piece on its way to the server.
    fn look_for_the_last(&self, piece: &[u8]) {
        let mut last = self.last.lock();
        let is_in = |text: &String| piece.windows(text.len()).any(|w| w == text.as_bytes());
        if last.as_ref().is_some_and(is_in) {
            self.back.set(true);
            *last = None;
        }
    }
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut shut = self.shut.lock();
        while *shut {
            self.opened.wait(&mut shut);
        }
    }

    fn set(&self, shut: bool) {
        *self.shut.lock() = shut;
        self.opened.notify_all();
    }
}

impl Relay {
    /// A link to the socket `to`.
    pub(crate) fn to(to: &Path) -> Relay {
        Self::open(Server::Unix(to.to_owned()), Harm::None)
    }

    /// A link to a host and port.
    pub(crate) fn to_address(to: String) -> Relay {
        Self::open(Server::Tcp(to), Harm::None)
    }

    /// A link to a port of this host, which does `harm`.
    pub(crate) fn to_port(port: u16, harm: Harm) -> Relay {
        Self::open(Server::Tcp(format!("127.0.0.1:{port}")), harm)
    }

    fn open(to: Server, harm: Harm) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (there, back) = (Gate::default(), Gate::default());
        let (to, harm, stopped) = (Mutex::new(to), Doer::new(harm), AtomicBool::new(false));
        let refuses = AtomicBool::new(false);
        let link = Link { to, there, back, harm, last: Mutex::default(), stopped, refuses };
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

    /// How often it has done harm so far.
    pub(crate) fn harmed(&self) -> u64 {
        self.link.harm.done()
    }

    /// New connections go to another socket, as when an address moves to another host.
    pub(crate) fn move_to(&self, to: &Path) {
        *self.link.to.lock() = Server::Unix(to.to_owned());
    }

    pub(crate) fn cut(&self) {
        self.link.there.set(true);
        self.link.back.set(true);
    }

    /// Closes every connection, new ones at once, until it is mended.
    pub(crate) fn refuse(&self) {
        self.link.refuses.store(true, Ordering::Relaxed);
    }

    /// What is asked arrives, and the answers do not.
    pub(crate) fn lose_answers(&self) {
        self.link.back.set(true);
    }

    /// What is asked arrives, up to the first piece with this text and further; no answer does from that on.
    pub(crate) fn lose_answers_from(&self, text: &str) {
        *self.link.last.lock() = Some(text.to_owned());
    }

    /// Whether answers get lost now.
    pub(crate) fn is_losing(&self) -> bool {
        *self.link.back.shut.lock()
    }

    pub(crate) fn mend(&self) {
        self.link.refuses.store(false, Ordering::Relaxed);
        *self.link.last.lock() = None;
        self.link.there.set(false);
        self.link.back.set(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.stopped.store(true, Ordering::Relaxed);
        self.mend();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// One side of a connection that is relayed.
enum Side {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Side {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Side::Unix(stream) => (&mut &*stream).read(buffer),
            Side::Tcp(stream) => (&mut &*stream).read(buffer),
        }
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Side::Unix(stream) => (&mut &*stream).write_all(bytes),
            Side::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    /// Its end will be a reset.
    fn reset(&self) {
        if let Side::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    fn close(&self) {
        let _ = match self {
            Side::Unix(stream) => stream.shutdown(Shutdown::Both),
            Side::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

fn connect(client: TcpStream, link: &Arc<Link>) -> io::Result<()> {
    if link.refuses.load(Ordering::Relaxed) {
        return Ok(());
    }
    link.there.pass();
    let to = link.to.lock().clone();
    let server = match to {
        Server::Unix(path) => Side::Unix(UnixStream::connect(path)?),
        Server::Tcp(address) => Side::Tcp(TcpStream::connect(address)?),
    };
    let ends = Connection {
        client: Side::Tcp(client),
        server,
        passed: AtomicU64::new(0),
        is_reset: AtomicBool::new(false),
    };
    for side in [&ends.client, &ends.server] {
        if let Side::Tcp(stream) = side {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK))?;
        }
    }
    let ends = Arc::new(ends);
    let (there, passing) = (Arc::clone(&ends), Arc::clone(link));
    std::thread::spawn(move || drop(there.pass(true, &passing)));
    ends.pass(false, link)
}

/// A connection that is relayed.
struct Connection {
    client: Side,
    server: Side,
    /// Bytes that went through it, in both directions.
    passed: AtomicU64,
    is_reset: AtomicBool,
}

impl Connection {
    /// Hands on what comes, to the server (`up`) or from it, until one of them ends it.
    fn pass(&self, up: bool, link: &Link) -> io::Result<()> {
        let (from, to, gate) = match up {
            true => (&self.client, &self.server, &link.there),
            false => (&self.server, &self.client, &link.back),
        };
        let refuses = || link.refuses.load(Ordering::Relaxed);
        let ended = self.hand_on((from, to), (gate, refuses), |piece| {
            if up {
                link.look_for_the_last(piece);
            }
            let before = self.passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            link.harm.harm(piece, up, before)
        });
        if !self.is_reset.load(Ordering::Relaxed) {
            to.close();
        }
        ended
    }

    fn hand_on(
        &self,
        (from, to): (&Side, &Side),
        (gate, refuses): (&Gate, impl Fn() -> bool),
        harm: impl Fn(&mut [u8]) -> bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        // Who is reset is closed when both directions have let go of it, and is told nothing before.
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
            gate.pass();
            if refuses() {
                return Ok(());
            }
            if harm(&mut buffer[..n]) {
                to.write_all(&buffer[..n])?;
            } else {
                from.reset();
                to.reset();
                self.is_reset.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
