//! The requesting end of content streams: a thread owns the socket while it reads files, hashes them and
//! sends what it read, and waits for the answer.

use super::deadline::TransferControl;
use super::frame;
use super::meter::{TrafficCounter, into_socket};
use super::protocol::{
    ContentRequest, FRAME_HEADER_BYTES, MAX_REPLY_BYTES, STREAM, UPGRADE_PROTOCOL,
};
use super::socket_reader::poll_ready;
use crate::util::checksum;
use crate::wire::problem::{Problem, ProblemCode};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, StatusCode};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use std::net::TcpStream;
use std::sync::Arc;
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
    stream: TcpStream,
    /// What counts its bytes.
    counters: Vec<Arc<TrafficCounter>>,
}

impl Drop for ContentClient {
    fn drop(&mut self) {
        if self.counters.iter().any(|counter| counter.resets_on_close()) {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The problem of a refusal.
pub fn parse_problem(document: &[u8]) -> Problem {
    serde_json::from_slice(document)
        .unwrap_or_else(|_| Problem::new(ProblemCode::Unknown, "it gave no reason"))
}

/// One request in flight.
struct Exchange<'a> {
    client: &'a ContentClient,
    /// Grows with what is sent.
    progress: &'a AtomicU64,
    control: &'a TransferControl,
    /// Why nothing more can be sent.
    failure: Option<String>,
}

impl ContentClient {
    /// Upgrades a connection to `peer` (`host:port`) to a stream.
    ///
    /// # Errors
    /// A message: the peer opens no stream.
    pub async fn open(sender: &mut SendRequest<Full<Bytes>>, peer: &str) -> Result<Self, String> {
        let request = Request::get(STREAM)
            .header(HOST, peer)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, UPGRADE_PROTOCOL)
            .body(Full::default())
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(format!(
                "it does not speak {UPGRADE_PROTOCOL} ({status}); agents of one installation must be of one version"
            ));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
        let (stream, counters) = into_socket(upgraded)?;
        Ok(ContentClient { stream, counters })
    }

    /// Sends the request and what `feed` makes, counted in `progress`, and reads the reply; blocks meanwhile. An
    /// early reply, cancellation and the deadline end it. Returns the reply and the result of
    /// `feed`.
    ///
    /// # Errors
    /// A message: the connection failed, or the reply is invalid.
    pub fn exchange<T>(
        &self,
        request: &ContentRequest,
        progress: &AtomicU64,
        control: &TransferControl,
        feed: impl FnOnce(&mut dyn FrameSink) -> Result<T, Disconnected>,
    ) -> Result<(ContentReply, Result<T, Disconnected>), String> {
        let mut exchange = Exchange { client: self, progress, control, failure: None };
        let sent_files = exchange.send(&frame::ask(request)).and_then(|()| feed(&mut exchange));
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
            match rustix::net::recv(&self.client.stream, &mut *room, RecvFlags::empty()) {
                Ok((0, _)) => return Err("the connection ended without an answer".to_owned()),
                Ok((n, _)) => {
                    self.client.counters.iter().for_each(|counter| counter.add_received(n as u64));
                    room = &mut room[n..];
                }
                Err(Errno::AGAIN) => {
                    if !poll_ready(&self.client.stream, PollFlags::IN, POLL_INTERVAL)?
                        && timeout.is_some()
                    {
                        return Err("no answer".to_owned());
                    }
                    self.check_active().map_err(|Disconnected| "the requester disconnected")?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
        Ok(())
    }

    /// Sends what the kernel accepts of `bytes`, at least one.
    fn send_available(&mut self, bytes: &[u8]) -> Result<usize, String> {
        loop {
            match rustix::net::send(&self.client.stream, bytes, SendFlags::NOSIGNAL) {
                Ok(0) => return Err("the connection accepts no data".to_owned()),
                Ok(n) => return Ok(n),
                Err(Errno::AGAIN) => {
                    self.client.counters.iter().for_each(|counter| counter.mark_blocked());
                    poll_ready(&self.client.stream, PollFlags::OUT | PollFlags::IN, POLL_INTERVAL)?;
                    self.check_active().map_err(|Disconnected| "the requester disconnected")?;
                    if poll_ready(&self.client.stream, PollFlags::IN, Duration::ZERO)? {
                        return Ok(0);
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }
}

impl FrameSink for Exchange<'_> {
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Disconnected> {
        while !bytes.is_empty() {
            self.check_active()?;
            match self.send_available(bytes) {
                // It was answered before the end.
                Ok(0) => return Err(Disconnected),
                Ok(n) => {
                    self.client.counters.iter().for_each(|counter| counter.add_sent(n as u64));
                    self.progress.fetch_add(n as u64, Ordering::Relaxed);
                    bytes = &bytes[n..];
                }
                Err(reason) => {
                    self.failure = Some(reason);
                    return Err(Disconnected);
                }
            }
        }
        Ok(())
    }

    fn check_active(&self) -> Result<(), Disconnected> {
        if self.control.is_over() { Err(Disconnected) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;

    /// How an exchange ends with a peer that sends the head of an answer of `length` bytes and nothing else.
    fn reply_of_announced_length(kind: u8, length: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&[&[kind][..], &(length as u32).to_le_bytes()].concat()).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let asking = ContentClient { stream, counters: Vec::new() };
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
