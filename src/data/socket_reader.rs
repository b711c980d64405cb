//! The receiving end of a content stream: a thread reads the socket into a buffer of the pool.

use super::buffer_pool::{Buffer, RECEIVE_BUFFER_BYTES};
use super::content_socket::ContentSocket;
use super::frame::ChunkSource;
use super::protocol::MIN_PROGRESS_BYTES;
use super::server_context::ConnectionContext;
use crate::util::shutdown::Shutdown;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::event::PollFlags;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a thread that waits for bytes checks for cancellation.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// What is read from a socket at once behind content that was read to its place: mostly the head of the
/// next frame. Otherwise it is a [`RECEIVE_BUFFER_BYTES`].
const HEADER_READ_BYTES: usize = 4 << 10;

/// A socket being read by a thread.
pub struct SocketReader {
    socket: ContentSocket,
    /// What pieces are read to; empty while one is in use.
    free_buffer: Arc<Mutex<Option<Buffer>>>,
    cancelled: Shutdown,
    /// A peer that sends less than [`MIN_PROGRESS_BYTES`] in this much waiting time fails.
    stall_timeout: Duration,
    waiting_time: Duration,
    recent_bytes: u64,
    /// What is read at once next.
    next_read_bytes: usize,
}

impl SocketReader {
    pub(super) fn new(
        socket: ContentSocket,
        piece: Buffer,
        (context, cancelled): (&ConnectionContext, Shutdown),
    ) -> Self {
        SocketReader {
            socket,
            free_buffer: Arc::new(Mutex::new(Some(piece))),
            cancelled,
            stall_timeout: context.stall_timeout,
            waiting_time: Duration::ZERO,
            recent_bytes: 0,
            next_read_bytes: RECEIVE_BUFFER_BYTES,
        }
    }

    /// The socket, once reading ended.
    pub(super) fn into_socket(self) -> ContentSocket {
        self.socket
    }

    /// Waits for bytes, for a while.
    fn wait_readable(&mut self) -> Result<(), String> {
        if self.cancelled.is_cancelled() {
            return Err("the requester disconnected".to_owned());
        }
        if self.waiting_time >= self.stall_timeout {
            let stall_timeout = self.stall_timeout;
            return Err(format!("less than {MIN_PROGRESS_BYTES} bytes came in {stall_timeout:?}"));
        }
        let since = Instant::now();
        self.socket.wait_for(PollFlags::IN, POLL_INTERVAL.min(self.stall_timeout))?;
        self.waiting_time += since.elapsed();
        Ok(())
    }

    /// Reads what there is to `room`, at least a byte; 0 at the end.
    fn receive_some(&mut self, room: &mut [u8], is_clear: bool) -> Result<usize, String> {
        loop {
            let received = match is_clear {
                true => self.socket.receive_clear(room),
                false => self.socket.receive(room),
            };
            match received {
                Ok(n) => {
                    self.count_progress(n);
                    return Ok(n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait_readable()?,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn count_progress(&mut self, n: usize) {
        self.recent_bytes += n as u64;
        if self.recent_bytes >= MIN_PROGRESS_BYTES {
            (self.waiting_time, self.recent_bytes) = (Duration::ZERO, 0);
        }
    }
}

/// What one read of the socket returned; its buffer goes back to the reader when the last reference is dropped.
struct PooledChunk {
    buffer: Option<Buffer>,
    length: usize,
    free_buffer: Arc<Mutex<Option<Buffer>>>,
}

impl AsRef<[u8]> for PooledChunk {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.content()[..self.length])
    }
}

impl Drop for PooledChunk {
    fn drop(&mut self) {
        *self.free_buffer.lock() = self.buffer.take();
    }
}

impl ChunkSource for SocketReader {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        let buffer = self.free_buffer.lock().take().ok_or("the piece before it is still in use")?;
        let mut piece =
            PooledChunk { buffer: Some(buffer), length: 0, free_buffer: self.free_buffer.clone() };
        let most = std::mem::replace(&mut self.next_read_bytes, RECEIVE_BUFFER_BYTES);
        if let Some(buffer) = &mut piece.buffer {
            piece.length = self.receive_some(&mut buffer.content_mut()[..most], false)?;
        }
        Ok((piece.length > 0).then(|| Bytes::from_owner(piece)))
    }

    fn fill(&mut self, mut out: &mut [u8], is_clear: bool) -> Option<Result<(), String>> {
        self.next_read_bytes = HEADER_READ_BYTES;
        while !out.is_empty() {
            match self.receive_some(out, is_clear) {
                Ok(0) => return Some(Err("it ended within content".to_owned())),
                Ok(n) => out = &mut out[n..],
                Err(reason) => return Some(Err(reason)),
            }
        }
        Some(Ok(()))
    }

    fn record_progress(&mut self, bytes: u64) {
        self.count_progress(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    fn is_abandoned(&self) -> bool {
        let error = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.cancelled.is_cancelled() || self.socket.wait_for(error, Duration::ZERO).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stall_timeout_restarts_whenever_enough_bytes_arrived() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stall_timeout = Duration::from_millis(1);
        let mut reader = SocketReader {
            socket: ContentSocket::plain(stream),
            free_buffer: Arc::default(),
            cancelled: Shutdown::new(),
            stall_timeout,
            waiting_time: Duration::ZERO,
            recent_bytes: 0,
            next_read_bytes: RECEIVE_BUFFER_BYTES,
        };
        for _ in 0..2 {
            reader.waiting_time = stall_timeout;
            reader.record_progress(MIN_PROGRESS_BYTES - 1);
            assert_eq!(reader.wait_readable(), Err("less than 4096 bytes came in 1ms".to_owned()));
            reader.record_progress(1);
            assert_eq!(reader.wait_readable(), Ok(()));
        }
    }
}
