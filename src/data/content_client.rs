//! The requesting end of content streams: a thread owns the socket while it reads files, hashes them and
//! sends what it read, and waits for the answer.

use super::content_socket::{ContentSocket, is_clear};
use super::deadline::TransferControl;
use super::frame;
use super::protocol::{
    CLEAR_CONTENT, CONTENT_HEADER, ContentRequest, FRAME_HEADER_BYTES, MAX_REPLY_BYTES, STREAM,
    UPGRADE_PROTOCOL,
};
use super::tls::{TLS_REQUIRED, describe_error_chain};
use crate::util::checksum;
use crate::wire::problem::{Problem, ProblemCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, Response, StatusCode};
use rustix::event::PollFlags;
use socket2::SockRef;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a thread that waits for its peer checks for cancellation.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The connection failed, was answered early, or the work was cancelled: sending ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnected;

/// Where frames go.
pub trait FrameSink {
    /// Sends all of `bytes`; blocks until the kernel has accepted them.
    ///
    /// # Errors
    /// [`Disconnected`].
    fn send(&mut self, bytes: &[u8]) -> Result<(), Disconnected>;

    /// Whether content may be sent without encryption.
    fn allows_clear(&self) -> bool {
        false
    }

    /// The same as [`send`](Self::send) for content that is not encrypted, if that is allowed.
    ///
    /// # Errors
    /// [`Disconnected`].
    fn send_clear(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.send(bytes)
    }

    /// Whether it is worth going on.
    ///
    /// # Errors
    /// [`Disconnected`].
    fn check_active(&self) -> Result<(), Disconnected>;
}

/// The answer to a request.
#[derive(Debug)]
pub enum ContentReply {
    /// The reply's document.
    Reply(Vec<u8>),
    /// A reply that is not what was sent.
    Damaged,
    /// It was refused; the stream is of no use any more.
    Refused(Problem),
}

/// The requesting end of a stream. Its socket does not block: between two polls cancellation is checked.
pub struct ContentClient {
    socket: ContentSocket,
}

impl Drop for ContentClient {
    fn drop(&mut self) {
        if self.socket.counters().iter().any(|counter| counter.resets_on_close()) {
            let _ = SockRef::from(self.socket.stream()).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The problem of a refusal.
pub fn parse_problem(document: &[u8]) -> Problem {
    serde_json::from_slice(document)
        .unwrap_or_else(|_| Problem::new(ProblemCode::Unknown, "it gave no reason"))
}

/// Why a connection is refused, if the response has a reason that another connection of this agent has as well: that
/// it is not in TLS.
pub async fn read_refusal(response: Response<Incoming>) -> Option<String> {
    let body = Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await.ok()?;
    let problem = parse_problem(&body.to_bytes());
    problem.is(ProblemCode::TlsRequired).then(|| TLS_REQUIRED.to_owned())
}

/// One request in flight.
struct Exchange<'a> {
    socket: &'a mut ContentSocket,
    /// Grows with what is sent.
    progress: &'a AtomicU64,
    control: &'a TransferControl,
    /// Why nothing more can be sent.
    failure: Option<String>,
}

impl ContentClient {
    /// Upgrades a connection to `peer` (`host:port`) to a stream, where both sides allow it one with clear content.
    ///
    /// # Errors
    /// A message: the peer opens no stream.
    pub async fn open(
        sender: &mut SendRequest<Full<Bytes>>,
        peer: &str,
        allows_clear: bool,
    ) -> Result<Self, String> {
        let mut request = Request::get(STREAM)
            .header(HOST, peer)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, UPGRADE_PROTOCOL);
        if allows_clear {
            request = request.header(CONTENT_HEADER, CLEAR_CONTENT);
        }
        let request = request.body(Full::default()).map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(describe_error_chain)?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(read_refusal(response).await.unwrap_or_else(|| {
                format!(
                    "it does not speak {UPGRADE_PROTOCOL} ({status}); agents of one installation must be of one version"
                )
            }));
        }
        let is_clear = allows_clear && is_clear(response.headers());
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
        Ok(ContentClient { socket: ContentSocket::of_upgraded(upgraded, is_clear)? })
    }

    /// Sends the request and what `feed` makes, counted in `progress`, and reads the reply; blocks meanwhile. An
    /// early reply, cancellation and the deadline end it. Returns the reply and the result of
    /// `feed`.
    ///
    /// # Errors
    /// A message: the connection failed, or the reply is invalid.
    pub fn exchange<T>(
        &mut self,
        request: &ContentRequest,
        progress: &AtomicU64,
        control: &TransferControl,
        feed: impl FnOnce(&mut dyn FrameSink) -> Result<T, Disconnected>,
    ) -> Result<(ContentReply, Result<T, Disconnected>), String> {
        let mut exchange = Exchange { socket: &mut self.socket, progress, control, failure: None };
        let sent_files = exchange
            .send(&frame::ask(request))
            .and_then(|()| feed(&mut exchange))
            .and_then(|sent_files| exchange.flush().map(|()| sent_files));
        let Some(reason) = exchange.failure.take() else {
            return Ok((exchange.read_reply(None)?, sent_files));
        };
        // A refusal has a better reason than a broken pipe.
        match exchange.read_reply(Some(POLL_INTERVAL)) {
            Ok(refused @ ContentReply::Refused(_)) => Ok((refused, sent_files)),
            _ => Err(reason),
        }
    }
}

impl Exchange<'_> {
    /// The reply, which must arrive within `timeout` if there is one.
    fn read_reply(&mut self, timeout: Option<Duration>) -> Result<ContentReply, String> {
        let mut head = [0; FRAME_HEADER_BYTES];
        self.read_exact(&mut head, timeout)?;
        let (kind, length) = frame::parse_header(head);
        if !matches!(kind, frame::REPLY | frame::REFUSAL) || length > MAX_REPLY_BYTES {
            return Err(format!("an answer of kind {kind:#04x} and {length} bytes"));
        }
        // Grows as bytes come, whatever is announced.
        let mut document = Vec::new();
        while document.len() < length {
            let (at, more) = (document.len(), (length - document.len()).min(64 << 10));
            document.resize(at + more, 0);
            self.read_exact(&mut document[at..], timeout)?;
        }
        if kind == frame::REPLY {
            return Ok(match checksum::verify_and_strip(&document) {
                Some(reply) => ContentReply::Reply(reply.to_vec()),
                None => ContentReply::Damaged,
            });
        }
        Ok(ContentReply::Refused(parse_problem(&document)))
    }

    /// Fills `room`.
    fn read_exact(&mut self, mut room: &mut [u8], timeout: Option<Duration>) -> Result<(), String> {
        while !room.is_empty() {
            match self.socket.receive(room) {
                Ok(0) => return Err("the connection ended without an answer".to_owned()),
                Ok(n) => room = &mut room[n..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !self.socket.wait_for(PollFlags::IN, POLL_INTERVAL)? && timeout.is_some() {
                        return Err("no answer".to_owned());
                    }
                    self.check_active().map_err(|Disconnected| "the requester disconnected")?;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }

    /// Repeats `send` until the kernel accepts what it sends. `None`: the peer has sent something meanwhile.
    fn send_when_possible<T>(
        &mut self,
        send: impl Fn(&mut ContentSocket) -> std::io::Result<T>,
    ) -> Result<Option<T>, String> {
        loop {
            match send(self.socket) {
                Ok(sent) => return Ok(Some(sent)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.socket.counters().iter().for_each(|counter| counter.mark_blocked());
                    self.socket.wait_for(PollFlags::OUT | PollFlags::IN, POLL_INTERVAL)?;
                    self.check_active().map_err(|Disconnected| "the requester disconnected")?;
                    if self.socket.has_input()? {
                        return Ok(None);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// The result of sending; without one it was answered before the end, or failed.
    fn sent<T>(&mut self, sent: Result<Option<T>, String>) -> Result<T, Disconnected> {
        match sent {
            Ok(sent) => sent.ok_or(Disconnected),
            Err(reason) => {
                self.failure = Some(reason);
                Err(Disconnected)
            }
        }
    }

    fn send_all(
        &mut self,
        mut bytes: &[u8],
        send: fn(&mut ContentSocket, &[u8]) -> std::io::Result<usize>,
    ) -> Result<(), Disconnected> {
        while !bytes.is_empty() {
            self.check_active()?;
            let sent = match self.send_when_possible(|socket| send(socket, bytes)) {
                Ok(Some(0)) => Err("the connection accepts no data".to_owned()),
                sent => sent,
            };
            let sent = self.sent(sent)?;
            self.progress.fetch_add(sent as u64, Ordering::Relaxed);
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Hands all that was sent to the kernel.
    fn flush(&mut self) -> Result<(), Disconnected> {
        let flushed = self.send_when_possible(ContentSocket::flush);
        self.sent(flushed)
    }
}

impl FrameSink for Exchange<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.send_all(bytes, ContentSocket::send)
    }

    fn allows_clear(&self) -> bool {
        self.socket.is_clear()
    }

    fn send_clear(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.send_all(bytes, ContentSocket::send_clear)
    }

    fn check_active(&self) -> Result<(), Disconnected> {
        if self.control.is_over() { Err(Disconnected) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    /// How an exchange ends with a peer that sends the head of an answer of `length` bytes and nothing else.
    fn reply_of_announced_length(kind: u8, length: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&[&[kind][..], &(length as u32).to_le_bytes()].concat()).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let mut asking = ContentClient { socket: ContentSocket::plain(stream) };
        let request = ContentRequest { verb: String::new(), ticket: String::new() };
        let control = TransferControl::default();
        asking.exchange(&request, &AtomicU64::new(0), &control, |_| Ok(())).unwrap_err()
    }

    #[test]
    fn a_reply_over_the_length_limit_is_refused_by_its_header() {
        for kind in [frame::REPLY, frame::REFUSAL] {
            let longest = reply_of_announced_length(kind, MAX_REPLY_BYTES);
            assert_eq!(longest, "the connection ended without an answer");
            let longer = reply_of_announced_length(kind, MAX_REPLY_BYTES + 1);
            assert_eq!(
                longer,
                format!("an answer of kind {kind:#04x} and {} bytes", MAX_REPLY_BYTES + 1)
            );
        }
    }
}
