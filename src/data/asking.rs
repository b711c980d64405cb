//! The asking end of content streams: a thread owns the socket while it reads files, hashes them and
//! sends what it read, and waits for the answer.

use super::frame::{self, HEAD};
use super::meter::{Counted, Flow};
use super::protocol::{MAX_REPLY, STREAM};
use super::stream::{Ask, PROTOCOL, ready};
use super::until::Until;
use crate::util::checksum;
use crate::util::shutdown::Shutdown;
use crate::wire::problem::Problem;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::SockRef;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a thread that waits for its peer looks whether anybody still wants it to.
const LOOK: Duration = Duration::from_millis(250);

/// The connection is gone (or the work was cancelled): there is nobody to send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Where frames go.
pub trait Outlet {
    /// Sends all of `bytes`; blocks until they are taken.
    ///
    /// # Errors
    /// [`Gone`].
    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone>;

    /// Whether it is worth going on.
    ///
    /// # Errors
    /// [`Gone`].
    fn go_on(&self) -> Result<(), Gone>;
}

/// How an ask was answered.
#[derive(Debug)]
pub enum Answered {
    /// The reply's document.
    Reply(Vec<u8>),
    /// A reply that is not what was sent.
    Damaged,
    /// It was refused; the stream is of no use any more.
    Refused(Problem),
}

/// A stream to ask on. It does not block by itself: who waits looks whether to go on.
pub struct Asking {
    stream: TcpStream,
    /// What counts its bytes.
    flows: Vec<Arc<Flow>>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.flows.iter().any(|flow| flow.is_reset_on_close()) {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// The request for a stream to `peer` (`host:port`).
///
/// # Errors
/// A `peer` that is no host.
pub fn request(peer: &str) -> Result<Request<Full<Bytes>>, String> {
    Request::get(STREAM)
        .header(HOST, peer)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Full::default())
        .map_err(|e| e.to_string())
}

/// The stream that `response` opens.
///
/// # Errors
/// A sentence: it opens none.
pub async fn opened(response: Response<Incoming>) -> Result<Asking, String> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!(
            "it does not speak {PROTOCOL} ({status}); agents of one installation must be of one version"
        ));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| e.to_string())?;
    let parts =
        upgraded.downcast::<TokioIo<Counted>>().map_err(|_| "it does not accept streams")?;
    if !parts.read_buf.is_empty() {
        return Err("it sent data before the first request".to_owned());
    }
    let (stream, flows) = parts.io.into_inner().into_parts().map_err(|e| e.to_string())?;
    Ok(Asking { stream, flows })
}

/// One ask on its way.
struct Exchange<'a> {
    on: &'a Asking,
    /// Grows with what is sent.
    moved: &'a AtomicU64,
    /// Nobody waits for the answer any more.
    abandoned: &'a Shutdown,
    /// Nothing is sent after this.
    until: &'a Until,
    /// Why nothing more can be sent.
    failed: Option<String>,
}

impl Asking {
    /// Asks, sends what `feed` makes, counted in `moved`, and reads the answer; blocks meanwhile. An
    /// answer that comes early, `abandoned`, and the end of `until`, end it. Gives the answer and what
    /// `feed` said.
    ///
    /// # Errors
    /// A sentence: the connection failed, or the answer is none.
    pub fn exchange<T>(
        &self,
        ask: &Ask,
        moved: &AtomicU64,
        (abandoned, until): (&Shutdown, &Until),
        feed: impl FnOnce(&mut dyn Outlet) -> Result<T, Gone>,
    ) -> Result<(Answered, Result<T, Gone>), String> {
        let mut exchange = Exchange { on: self, moved, abandoned, until, failed: None };
        let fed = exchange.send(&frame::ask(ask)).and_then(|()| feed(&mut exchange));
        let Some(why) = exchange.failed.take() else {
            return Ok((exchange.answer(None)?, fed));
        };
        // A refusal says more than a broken pipe.
        match exchange.answer(Some(LOOK)) {
            Ok(refused @ Answered::Refused(_)) => Ok((refused, fed)),
            _ => Err(why),
        }
    }
}

impl Exchange<'_> {
    /// The answer, which must come within `patience` if there is one.
    fn answer(&mut self, patience: Option<Duration>) -> Result<Answered, String> {
        let mut head = [0; HEAD];
        self.receive(&mut head, patience)?;
        let (kind, length) = frame::split_head(head);
        if !matches!(kind, frame::REPLY | frame::REFUSAL) || length > MAX_REPLY {
            return Err(format!("an answer of kind {kind:#04x} and {length} bytes"));
        }
        // Grows as bytes come, whatever is announced.
        let mut document = Vec::new();
        while document.len() < length {
            let (at, more) = (document.len(), (length - document.len()).min(64 << 10));
            document.resize(at + more, 0);
            self.receive(&mut document[at..], patience)?;
        }
        if kind == frame::REPLY {
            return Ok(match checksum::verify_and_strip(&document) {
                Some(reply) => Answered::Reply(reply.to_vec()),
                None => Answered::Damaged,
            });
        }
        let problem = serde_json::from_slice(&document);
        Ok(Answered::Refused(
            problem.unwrap_or_else(|_| Problem::new(500, "", "unknown", "it gave no reason")),
        ))
    }

    /// Fills `room`.
    fn receive(&mut self, mut room: &mut [u8], patience: Option<Duration>) -> Result<(), String> {
        while !room.is_empty() {
            match rustix::net::recv(&self.on.stream, &mut *room, RecvFlags::empty()) {
                Ok((0, _)) => return Err("the connection ended without an answer".to_owned()),
                Ok((n, _)) => {
                    self.on.flows.iter().for_each(|flow| flow.came(n as u64));
                    room = &mut room[n..];
                }
                Err(Errno::AGAIN) => {
                    if !ready(&self.on.stream, PollFlags::IN, LOOK)? && patience.is_some() {
                        return Err("no answer".to_owned());
                    }
                    self.go_on().map_err(|Gone| "the requester is gone")?;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
        Ok(())
    }

    /// Sends what the kernel takes of `bytes`, at least one.
    fn send_some(&mut self, bytes: &[u8]) -> Result<usize, String> {
        loop {
            match rustix::net::send(&self.on.stream, bytes, SendFlags::NOSIGNAL) {
                Ok(0) => return Err("the connection accepts no data".to_owned()),
                Ok(n) => return Ok(n),
                Err(Errno::AGAIN) => {
                    self.on.flows.iter().for_each(|flow| flow.waits());
                    ready(&self.on.stream, PollFlags::OUT | PollFlags::IN, LOOK)?;
                    self.go_on().map_err(|Gone| "the requester is gone")?;
                    if ready(&self.on.stream, PollFlags::IN, Duration::ZERO)? {
                        return Ok(0);
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.to_string()),
            }
        }
    }
}

impl Outlet for Exchange<'_> {
    fn send(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            self.go_on()?;
            match self.send_some(bytes) {
                // It was answered before the end.
                Ok(0) => return Err(Gone),
                Ok(n) => {
                    self.on.flows.iter().for_each(|flow| flow.went(n as u64));
                    self.moved.fetch_add(n as u64, Ordering::Relaxed);
                    bytes = &bytes[n..];
                }
                Err(why) => {
                    self.failed = Some(why);
                    return Err(Gone);
                }
            }
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Gone> {
        let over = self.abandoned.is_cancelled() || self.until.is_over();
        if over { Err(Gone) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;

    /// How an exchange ends with a peer that sends the head of an answer of `length` bytes and nothing else.
    fn announced(kind: u8, length: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&[&[kind][..], &(length as u32).to_le_bytes()].concat()).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let asking = Asking { stream, flows: Vec::new() };
        let ask = Ask { verb: String::new(), ticket: String::new() };
        let ends = (&Shutdown::new(), &Until::default());
        asking.exchange(&ask, &AtomicU64::new(0), ends, |_| Ok(())).unwrap_err()
    }

    #[test]
    fn an_answer_is_read_up_to_the_longest_and_a_longer_one_is_refused_by_its_head() {
        for kind in [frame::REPLY, frame::REFUSAL] {
            let longest = announced(kind, MAX_REPLY);
            assert_eq!(longest, "the connection ended without an answer");
            let longer = announced(kind, MAX_REPLY + 1);
            assert_eq!(
                longer,
                format!("an answer of kind {kind:#04x} and {} bytes", MAX_REPLY + 1)
            );
        }
    }
}
