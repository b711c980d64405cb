//! Buffers that are used again and again: allocating and zeroing one per read costs more than the read.

use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is read of a file at once, in bytes: little enough to be in the core's cache still while it is
/// hashed and handed to the socket, and a multiple of what BLAKE3 does at once.
pub const READ_AT_ONCE: usize = 512 << 10;
/// The size of a buffer to send: one such read and the head of its frame, with room for small frames.
pub const BUFFER: usize = READ_AT_ONCE + 4096;
/// The size of a buffer to receive: content is gathered in it, hashed and written at once.
pub const GATHERED: usize = 1 << 20;
/// At most this many buffers are kept while nobody uses them.
const KEPT: usize = 32;

/// A pool; clones are the same pool.
#[derive(Clone)]
pub struct Pool {
    size: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    made: Arc<AtomicUsize>,
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new()
    }
}

impl Pool {
    /// A pool of buffers of [`BUFFER`] bytes, without any; they are made as they are needed.
    pub fn new() -> Self {
        Pool::of(BUFFER)
    }

    /// A pool of buffers of `size` bytes.
    pub fn of(size: usize) -> Self {
        Pool { size, free: Arc::default(), made: Arc::default() }
    }

    /// A buffer with nothing in it.
    pub fn take(&self) -> Buffer {
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| {
            self.made.fetch_add(1, Ordering::Relaxed);
            vec![0; self.size]
        });
        Buffer { bytes, at: 0, pool: self.clone() }
    }

    /// How many buffers were ever made.
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

/// A buffer of the pool, filled from its start; it goes back when it (or what was made of it) is
/// dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    at: usize,
    pool: Pool,
}

impl Buffer {
    /// How much is in it.
    pub fn len(&self) -> usize {
        self.at
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// How much more goes into it.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Puts `bytes` behind what is in it; returns whether there was room (if not, nothing is put).
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room() {
            return false;
        }
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        true
    }

    /// The part that is not filled yet.
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..]
    }

    /// Counts `n` bytes of [`Buffer::spare`] as filled.
    pub fn advance(&mut self, n: usize) {
        self.at = (self.at + n).min(self.bytes.len());
    }

    /// Takes all that is in it out.
    pub fn clear(&mut self) {
        self.at = 0;
    }

    /// What is in it, to be sent; the buffer goes back to the pool when the last of it is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.at]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_piece_of_it_is_dropped() {
        let pool = Pool::new();
        let mut buffer = pool.take();
        assert!(buffer.put(b"abc"));
        buffer.spare()[0] = b'd';
        buffer.advance(1);
        let bytes = buffer.freeze();
        let piece = bytes.slice(1..);
        drop(bytes);
        assert_eq!(pool.free.lock().unwrap().len(), 0);
        assert_eq!(piece.as_ref(), b"bcd");
        drop(piece);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
        let again = pool.take();
        assert!(again.is_empty());
        assert_eq!(pool.free.lock().unwrap().len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_not_put() {
        let mut buffer = Pool::new().take();
        buffer.advance(BUFFER - 1);
        assert!(!buffer.put(b"ab") && buffer.len() == BUFFER - 1);
        assert!(buffer.put(b"a") && buffer.room() == 0);
    }
}
