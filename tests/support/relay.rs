//! A link between a process and a server that can be cut: bytes then stay where they are, connections stay
//! open, and new ones are accepted and get no answer, as behind a router that drops everything.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Relays TCP connections to a unix socket.
pub(crate) struct Relay {
    address: SocketAddr,
    gate: Arc<Gate>,
    stopped: Arc<AtomicBool>,
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
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (gate, stopped) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let (to, passing, ended) = (to.to_owned(), Arc::clone(&gate), Arc::clone(&stopped));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (to, gate) = (to.clone(), Arc::clone(&passing));
                if let Ok(stream) = stream {
                    std::thread::spawn(move || drop(connect(&stream, &to, &gate)));
                }
            }
        });
        Relay { address, gate, stopped }
    }

    /// The URL of the Redis behind it.
    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub(crate) fn cut(&self) {
        self.gate.set(true);
    }

    pub(crate) fn mend(&self) {
        self.gate.set(false);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.gate.set(false);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn connect(client: &TcpStream, to: &PathBuf, gate: &Arc<Gate>) -> io::Result<()> {
    gate.pass();
    let server = UnixStream::connect(to)?;
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let passing = Arc::clone(gate);
    std::thread::spawn(move || {
        drop(pass(&from_client, &to_server, &passing));
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let ended = pass(&server, client, gate);
    let _ = client.shutdown(Shutdown::Both);
    ended
}

fn pass(mut from: impl Read, mut to: impl Write, gate: &Gate) -> io::Result<()> {
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
