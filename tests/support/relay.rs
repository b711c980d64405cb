//! A link between a process and a server that can be cut: bytes then stay where they are, connections stay
//! open, and new ones are accepted and get no answer, as behind a router that drops everything. It can
//! also be cut in one direction, so that requests arrive and answers do not.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

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
    stopped: AtomicBool,
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut shut = self.shut.lock().expect("no panic there");
        while *shut {
            shut = self.opened.wait(shut).expect("no panic there");
        }
    }

    fn set(&self, shut: bool) {
        *self.shut.lock().expect("no panic there") = shut;
        self.opened.notify_all();
    }
}

impl Relay {
    /// A link to the socket `to`.
    pub(crate) fn to(to: &Path) -> Relay {
        Self::open(Server::Unix(to.to_owned()))
    }

    /// A link to a host and port.
    pub(crate) fn to_address(to: String) -> Relay {
        Self::open(Server::Tcp(to))
    }

    fn open(to: Server) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (there, back) = (Gate::default(), Gate::default());
        let link = Link { to: Mutex::new(to), there, back, stopped: AtomicBool::new(false) };
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

    /// New connections go to another socket, as when an address moves to another host.
    pub(crate) fn move_to(&self, to: &Path) {
        *self.link.to.lock().expect("no panic there") = Server::Unix(to.to_owned());
    }

    pub(crate) fn cut(&self) {
        self.link.there.set(true);
        self.link.back.set(true);
    }

    /// What is asked arrives, and the answers do not.
    pub(crate) fn lose_answers(&self) {
        self.link.back.set(true);
    }

    pub(crate) fn mend(&self) {
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

    fn close(&self) {
        let _ = match self {
            Side::Unix(stream) => stream.shutdown(Shutdown::Both),
            Side::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

fn connect(client: TcpStream, link: &Arc<Link>) -> io::Result<()> {
    link.there.pass();
    let to = link.to.lock().expect("no panic there").clone();
    let server = match to {
        Server::Unix(path) => Side::Unix(UnixStream::connect(path)?),
        Server::Tcp(address) => Side::Tcp(TcpStream::connect(address)?),
    };
    let ends = Arc::new((Side::Tcp(client), server));
    let (there, passing) = (Arc::clone(&ends), Arc::clone(link));
    std::thread::spawn(move || {
        drop(pass(&there.0, &there.1, &passing.there));
        there.1.close();
    });
    let ended = pass(&ends.1, &ends.0, &link.back);
    ends.0.close();
    ended
}

fn pass(from: &Side, to: &Side, gate: &Gate) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        gate.pass();
        to.write_all(&buffer[..n])?;
    }
}
