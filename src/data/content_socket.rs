//! The socket of a content stream, which a thread drives: it does not block, and in TLS the thread encrypts and decrypts.
//!
//! Where both sides allow it, content goes between the records of TLS as it is (*clear*). The sender writes it when all
//! records before it have left. The receiver passes on to TLS not a byte more than the records: their headers have their
//! lengths.

use super::data_stream::DataStream;
use super::meter::{CountedStream, TrafficCounter};
use super::protocol::{CLEAR_CONTENT, CONTENT_HEADER};
use hyper::HeaderMap;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::Connection;
use std::io::{self, ErrorKind, IoSlice, Read as _, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsStream;

/// In TLS, so many bytes are read from the socket at once.
const RECEIVED_BYTES: usize = 32 << 10;
/// The header of a TLS record (RFC 8446, section 5.1): its type, a version, and the length of what follows.
const RECORD_HEADER_BYTES: usize = 5;
/// In TLS, so many bytes are encrypted ahead of what the kernel accepts.
const MAX_UNSENT_BYTES: usize = 256 << 10;

/// A socket that does not block.
pub trait RawSocket {
    /// Reads what there is, at least a byte; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock`, or another error of the kernel.
    fn receive(&self, room: &mut [u8]) -> io::Result<usize>;

    /// Sends what the kernel accepts, at least a byte.
    ///
    /// # Errors
    /// `WouldBlock`, or another error of the kernel.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

impl RawSocket for std::net::TcpStream {
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self, room, RecvFlags::empty())?.0)
    }

    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [bytes] = slices {
            return Ok(rustix::net::send(self, bytes, SendFlags::NOSIGNAL)?);
        }
        let mut nothing = SendAncillaryBuffer::default();
        Ok(rustix::net::sendmsg(self, slices, &mut nothing, SendFlags::NOSIGNAL)?)
    }
}

impl RawSocket for tokio::net::TcpStream {
    fn receive(&self, room: &mut [u8]) -> io::Result<usize> {
        self.try_read(room)
    }

    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }
}

/// See the [module](self). Between two requests the runtime waits for its socket, and meanwhile a thread. Bytes are counted
/// as they go over the network.
pub struct ContentSocket<S = std::net::TcpStream> {
    stream: S,
    counters: Vec<Arc<TrafficCounter>>,
    tls: Option<Box<TlsSession>>,
}

/// The state of TLS.
struct TlsSession {
    connection: Connection,
    /// Memory for what was received and is not decrypted yet; none before the first read.
    received: Vec<u8>,
    /// Where that lies.
    unread: std::ops::Range<usize>,
    /// Clear content may stand between records.
    is_clear: bool,
    /// With clear content: so much of the current record was not passed on to TLS yet.
    record_left: usize,
}

/// Whether a request or a response allows clear content.
pub(super) fn is_clear(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_HEADER).is_some_and(|value| value == CLEAR_CONTENT)
}

impl ContentSocket {
    /// The socket of an upgraded connection, and the counters of its bytes from now on. In TLS it may have clear content.
    ///
    /// # Errors
    /// A message: the peer did not wait for the response, or there are no more descriptors.
    pub fn of_upgraded(upgraded: Upgraded, is_clear: bool) -> Result<Self, String> {
        let parts =
            upgraded.downcast::<TokioIo<DataStream>>().map_err(|_| "it does not accept streams")?;
        if !parts.read_buf.is_empty() {
            return Err("it sent data before the first request".to_owned());
        }
        let (counted, connection): (CountedStream, Option<Connection>) = match parts.io.into_inner()
        {
            DataStream::Plain(counted) => (counted, None),
            DataStream::Tls(tls) => match *tls {
                TlsStream::Client(tls) => {
                    let (counted, connection) = tls.into_inner();
                    (counted, Some(connection.into()))
                }
                TlsStream::Server(tls) => {
                    let (counted, connection) = tls.into_inner();
                    (counted, Some(connection.into()))
                }
            },
        };
        let (stream, counters) = counted.to_socket().map_err(|e| e.to_string())?;
        let tls = connection.map(|mut connection| {
            connection.set_buffer_limit(Some(MAX_UNSENT_BYTES));
            Box::new(TlsSession::new(connection, is_clear))
        });
        Ok(ContentSocket { stream, counters, tls })
    }

    /// A socket without TLS.
    #[cfg(test)]
    pub(super) fn plain(stream: std::net::TcpStream) -> Self {
        ContentSocket { stream, counters: Vec::new(), tls: None }
    }

    /// The same for the runtime.
    ///
    /// # Errors
    /// The runtime cannot wait for it.
    pub fn into_async(self) -> io::Result<ContentSocket<tokio::net::TcpStream>> {
        let stream = tokio::net::TcpStream::from_std(self.stream)?;
        Ok(ContentSocket { stream, counters: self.counters, tls: self.tls })
    }

    /// Whether the peer has sent anything that is to be read, or ended the connection.
    ///
    /// # Errors
    /// A message: `poll` failed.
    pub fn has_input(&mut self) -> Result<bool, String> {
        let is_readable = self.wait_for(PollFlags::IN, Duration::ZERO)?;
        let Some(tls) = &mut self.tls else { return Ok(is_readable) };
        // Records need not carry content: a peer may change its keys.
        loop {
            match tls.connection.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() => {
                    return Ok(true);
                }
                Ok(_) => {}
                Err(_) => return Ok(true),
            }
            match tls.decrypt_some(&self.stream, &self.counters) {
                Ok(Progress::Decrypted) => {}
                Ok(Progress::Ended) => return Ok(true),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Ok(true),
            }
        }
    }

    /// Whether any of `flags` hold of the socket within `timeout`.
    ///
    /// # Errors
    /// A message: `poll` failed.
    pub fn wait_for(&self, flags: PollFlags, timeout: Duration) -> Result<bool, String> {
        let mut fds = [PollFd::new(&self.stream, flags)];
        let timeout =
            Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(fds[0].revents().intersects(flags)),
            Err(errno) => Err(errno.to_string()),
        }
    }
}

impl ContentSocket<tokio::net::TcpStream> {
    /// The same for a thread.
    ///
    /// # Errors
    /// The runtime does not give it back.
    pub fn into_blocking(self) -> io::Result<ContentSocket> {
        // It stays as it is, not blocking: a thread can wait for it as well.
        let stream = self.stream.into_std()?;
        Ok(ContentSocket { stream, counters: self.counters, tls: self.tls })
    }
}

impl<S: RawSocket> ContentSocket<S> {
    /// What its bytes are counted by.
    pub fn counters(&self) -> &[Arc<TrafficCounter>] {
        &self.counters
    }

    /// The socket itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether it is in TLS and may have clear content.
    pub fn is_clear(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_clear)
    }

    /// Reads clear content to `room`, at least a byte; 0 at the end. The frame before it has its length.
    ///
    /// # Errors
    /// `WouldBlock` where there is nothing yet; `InvalidData` where no clear content can be; an error of the kernel.
    pub fn receive_clear(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_clear && tls.record_left == 0) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "content without encryption"));
        };
        if tls.unread.is_empty() {
            return receive_some(&self.stream, &self.counters, room);
        }
        let n = room.len().min(tls.unread.len());
        let from = tls.unread.start;
        room[..n].copy_from_slice(&tls.received[from..from + n]);
        tls.unread.start += n;
        Ok(n)
    }

    /// Sends some of `bytes`, at least one, as clear content.
    ///
    /// # Errors
    /// `WouldBlock` where the kernel accepts nothing now; an error of the kernel.
    pub fn send_clear(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let sent = self.stream.send(&[IoSlice::new(bytes)])?;
        self.counters.iter().for_each(|counter| counter.add_sent(sent as u64));
        Ok(sent)
    }

    /// Reads what there is to `room`, at least a byte; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` where there is nothing yet; `UnexpectedEof` where TLS ended without its last record, so that bytes may
    /// be missing; an error of the kernel; bytes that the peer did not encrypt.
    pub fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return receive_some(&self.stream, &self.counters, room);
        };
        loop {
            match tls.connection.reader().read(room) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            tls.decrypt_some(&self.stream, &self.counters)?;
        }
    }

    /// Accepts some of `bytes`, at least one. In TLS they may have to be [flushed](Self::flush).
    ///
    /// # Errors
    /// `WouldBlock` where the kernel accepts nothing now; an error of the kernel.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            let sent = self.stream.send(&[IoSlice::new(bytes)])?;
            self.counters.iter().for_each(|counter| counter.add_sent(sent as u64));
            return Ok(sent);
        }
        self.flush()?;
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let accepted = tls.connection.writer().write(bytes)?;
        match self.flush() {
            // It goes out before the next bytes are accepted.
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(accepted),
            flushed => flushed.map(|()| accepted),
        }
    }

    /// Hands what was accepted to the kernel.
    ///
    /// # Errors
    /// `WouldBlock` where something is left; an error of the kernel.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        let mut writer = SocketWriter { stream: &self.stream, counters: &self.counters };
        while tls.connection.wants_write() {
            match tls.connection.write_tls(&mut writer) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// What was done with received bytes.
enum Progress {
    Decrypted,
    /// There are no more.
    Ended,
}

impl TlsSession {
    fn new(connection: Connection, is_clear: bool) -> Self {
        TlsSession { connection, received: Vec::new(), unread: 0..0, is_clear, record_left: 0 }
    }

    /// How much of what was received belongs to the current record, or, without clear content, to any.
    fn record_bytes(&mut self) -> usize {
        let unread = &self.received[self.unread.clone()];
        if !self.is_clear {
            return unread.len();
        }
        if self.record_left == 0 && unread.len() >= RECORD_HEADER_BYTES {
            let length = usize::from(u16::from_be_bytes([unread[3], unread[4]]));
            self.record_left = RECORD_HEADER_BYTES + length;
        }
        unread.len().min(self.record_left)
    }

    /// Decrypts some of what was received, after it has read more where no part of a record is left.
    fn decrypt_some(
        &mut self,
        stream: &impl RawSocket,
        counters: &[Arc<TrafficCounter>],
    ) -> io::Result<Progress> {
        let mut available = self.record_bytes();
        while available == 0 {
            self.received.resize(RECEIVED_BYTES, 0);
            let kept = self.unread.len();
            self.received.copy_within(self.unread.clone(), 0);
            self.unread = 0..kept;
            let received = receive_some(stream, counters, &mut self.received[kept..])?;
            if received == 0 {
                break;
            }
            self.unread.end += received;
            available = self.record_bytes();
        }
        // At the end this reads nothing, by which the session learns of it.
        let from = self.unread.start;
        let mut records = &self.received[from..from + available];
        let read = self.connection.read_tls(&mut records)?;
        self.unread.start += read;
        self.record_left = self.record_left.saturating_sub(read);
        self.connection
            .process_new_packets()
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        Ok(if read == 0 { Progress::Ended } else { Progress::Decrypted })
    }
}

fn receive_some(
    stream: &impl RawSocket,
    counters: &[Arc<TrafficCounter>],
    room: &mut [u8],
) -> io::Result<usize> {
    let received = stream.receive(room)?;
    counters.iter().for_each(|counter| counter.add_received(received as u64));
    Ok(received)
}

/// Sends records.
struct SocketWriter<'a, S> {
    stream: &'a S,
    counters: &'a [Arc<TrafficCounter>],
}

impl<S: RawSocket> Write for SocketWriter<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = self.stream.send(slices)?;
        self.counters.iter().for_each(|counter| counter.add_sent(sent as u64));
        Ok(sent)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PeerConfigs;
    use crate::identity::testing::TestAuthority;
    use rustls::{ClientConnection, ServerConnection};
    use std::net::{TcpListener, TcpStream};

    fn socket(mut stream: TcpStream, mut connection: Connection) -> ContentSocket {
        connection.complete_io(&mut stream).unwrap();
        stream.set_nonblocking(true).unwrap();
        let tls = TlsSession::new(connection, true);
        ContentSocket { tls: Some(Box::new(tls)), ..ContentSocket::plain(stream) }
    }

    /// Both ends of a connection.
    fn pair() -> [ContentSocket; 2] {
        let site = TestAuthority::new();
        let [a, b] = ["a", "b"].map(|worker| PeerConfigs::new(&site.agent(worker)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let server = ServerConnection::new(b.server).unwrap();
        let server = std::thread::spawn(move || socket(far, server.into()));
        let client = ClientConnection::new(a.client, "b".try_into().unwrap()).unwrap();
        [socket(near, client.into()), server.join().unwrap()]
    }

    fn wait_for_bytes(socket: &ContentSocket) {
        assert!(socket.wait_for(PollFlags::IN, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_change_of_keys_is_no_input_and_what_follows_it_is() {
        let [mut client, mut server] = pair();
        assert!(!client.has_input().unwrap());
        let mut room = [0; 8];
        assert_eq!(client.receive(&mut room).unwrap_err().kind(), ErrorKind::WouldBlock);
        server.tls.as_mut().unwrap().connection.refresh_traffic_keys().unwrap();
        server.flush().unwrap();
        wait_for_bytes(&client);
        assert!(!client.has_input().unwrap());
        assert_eq!(server.send(b"with the new key").unwrap(), 16);
        wait_for_bytes(&client);
        assert!(client.has_input().unwrap());
        assert_eq!(client.receive(&mut room).unwrap(), 8);
        // The other half was decrypted with it, and the socket has nothing more.
        assert!(client.has_input().unwrap());
        assert_eq!((client.receive(&mut room).unwrap(), &room), (8, b" new key"));
        assert_eq!(client.send(b"answer").unwrap(), 6);
        wait_for_bytes(&server);
        assert_eq!((server.receive(&mut room).unwrap(), &room[..6]), (6, &b"answer"[..]));
    }

    #[test]
    fn an_end_without_the_last_record_of_tls_is_an_error() {
        for is_announced in [true, false] {
            let [mut client, mut server] = pair();
            server.send(b"x").unwrap();
            if is_announced {
                server.tls.as_mut().unwrap().connection.send_close_notify();
                server.flush().unwrap();
            }
            drop(server);
            let mut room = [0; 8];
            wait_for_bytes(&client);
            assert_eq!(client.receive(&mut room).unwrap(), 1);
            wait_for_bytes(&client);
            let end = client.receive(&mut room).map_err(|e| e.kind());
            let cut = Err(ErrorKind::UnexpectedEof);
            assert_eq!(end, if is_announced { Ok(0) } else { cut });
        }
    }

    #[test]
    fn bytes_that_were_changed_on_the_way_are_an_error() {
        let [mut client, server] = pair();
        // A record of the right form which nobody encrypted.
        let mut record = vec![23, 3, 3, 0, 32];
        record.extend([7; 32]);
        (&server.stream).write_all(&record).unwrap();
        wait_for_bytes(&client);
        let error = client.receive(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("decrypt"), "{error}");
    }
}
