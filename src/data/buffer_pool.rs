//! The memory for content: buffers that are used again and again, bounded in bytes for a whole agent.
//!
//! **An exchange that holds a buffer never waits for another one.** It acquires all that it needs in one step, before
//! its thread starts, and releases it when it ends; waiting exchanges are served in order.
//!
//! **Sending and receiving have a half each** ([`BufferPools`]). A sender holds its buffers until its peer
//! has received; with one pool, two agents that send to each other could both use all of it for
//! sending, and each would wait for the other to receive. So senders wait for receivers, and receivers only
//! for the disk.
//!
//! Allocating and zeroing a buffer per read costs more than the read, so some are kept. What is read of a
//! file begins on a page, so that it can be read past the page cache.

use super::protocol::FRAME_HEADER_BYTES;
use crate::fs::DIRECT_ALIGN_BYTES;
use crate::wire::content::BLOCK_BYTES;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is read of a file at once, in bytes: little enough to be in the core's cache still while it is
/// hashed and written to the socket, and a multiple of what BLAKE3 does at once.
pub const READ_BYTES: usize = 512 << 10;
/// The size of a buffer to send: one such read, with room for small frames.
pub const SEND_BUFFER_BYTES: usize = READ_BYTES + 4096;
/// The size of a buffer for one block that is compared.
pub const BLOCK_BUFFER_BYTES: usize = BLOCK_BYTES as usize;
/// The size of a buffer to receive: content is gathered in it, hashed and written at once.
pub const GATHER_BUFFER_BYTES: usize = 1 << 20;
/// What is read from a socket at once where nothing is known of what comes, in bytes.
pub const RECEIVE_BUFFER_BYTES: usize = 256 << 10;
/// At most this many unused buffers are kept.
const MAX_FREE_BUFFERS: usize = 32;

/// What the largest exchange of either half needs, in bytes.
const MAX_EXCHANGE_BYTES: usize = {
    let (sending, receiving) = (
        allocation_bytes(SEND_BUFFER_BYTES) + allocation_bytes(BLOCK_BUFFER_BYTES),
        allocation_bytes(GATHER_BUFFER_BYTES) + allocation_bytes(RECEIVE_BUFFER_BYTES),
    );
    if sending > receiving { sending } else { receiving }
};

/// What a buffer with room for `size` bytes costs: its content can begin on a page, and the head of its
/// frame stands before it.
const fn allocation_bytes(size: usize) -> usize {
    FRAME_HEADER_BYTES + DIRECT_ALIGN_BYTES - 1 + size
}

/// The buffers of an agent; clones are the same.
#[derive(Clone)]
pub struct BufferPools {
    /// To read and send, and to copy on this host.
    pub sending: BufferPool,
    /// To receive.
    pub receiving: BufferPool,
}

impl BufferPools {
    /// Buffers of at most `bytes` in all, half of them for each direction; of a few megabytes at least,
    /// without which nothing could be moved.
    pub fn new(bytes: u64) -> Self {
        let half = usize::try_from(bytes / 2).unwrap_or(usize::MAX);
        BufferPools { sending: BufferPool::new(half), receiving: BufferPool::new(half) }
    }

    /// The most bytes that there were at once, kept ones included.
    pub fn peak_bytes(&self) -> usize {
        self.sending.peak_bytes() + self.receiving.peak_bytes()
    }
}

/// A pool; clones are the same pool.
#[derive(Clone)]
pub struct BufferPool(Arc<PoolInner>);

struct PoolInner {
    limit: usize,
    /// Bytes that may be acquired; it serves requests in their order.
    available: Arc<Semaphore>,
    memory: Mutex<FreeBuffers>,
}

#[derive(Default)]
struct FreeBuffers {
    /// Unused buffers.
    free: Vec<Vec<u8>>,
    /// Of all, in use and free.
    bytes: usize,
    peak_bytes: usize,
}

impl BufferPool {
    /// A pool of at most `limit` bytes (or what the largest exchange needs), without any; buffers are made
    /// as they are needed.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(MAX_EXCHANGE_BYTES, Semaphore::MAX_PERMITS);
        let left = Arc::new(Semaphore::new(limit));
        BufferPool(Arc::new(PoolInner { limit, available: left, memory: Mutex::default() }))
    }

    /// Buffers of these `sizes`, with nothing in them, as soon as all can be had: what a whole exchange
    /// needs is taken at once, and no more is taken before it ends.
    pub async fn acquire<const N: usize>(&self, sizes: [usize; N]) -> [Buffer; N] {
        let all: usize = sizes.into_iter().map(allocation_bytes).sum();
        let all = u32::try_from(all.min(self.0.limit)).unwrap_or(u32::MAX);
        // Never closed.
        let mut permit = self.0.available.clone().acquire_many_owned(all).await.ok();
        sizes.map(|size| {
            let permit = permit.as_mut().and_then(|permit| permit.split(allocation_bytes(size)));
            self.build_buffer(size, permit)
        })
    }

    /// A buffer for one block, where it `is_needed`.
    pub async fn acquire_block(&self, is_needed: bool) -> Option<Buffer> {
        match is_needed {
            true => self.acquire([BLOCK_BUFFER_BYTES]).await.into_iter().next(),
            false => None,
        }
    }

    /// What sending needs; with room for a block if it is to be compared.
    pub async fn acquire_for_send(&self, compared: bool) -> (Buffer, Option<Buffer>) {
        if compared {
            let [buffer, scratch] = self.acquire([SEND_BUFFER_BYTES, BLOCK_BUFFER_BYTES]).await;
            (buffer, Some(scratch))
        } else {
            let [buffer] = self.acquire([SEND_BUFFER_BYTES]).await;
            (buffer, None)
        }
    }

    fn build_buffer(&self, size: usize, permit: Option<OwnedSemaphorePermit>) -> Buffer {
        let memory = self.0.memory.lock().allocate(allocation_bytes(size), self.0.limit);
        // At most a page: `align_offset` may return any number.
        let content_start = FRAME_HEADER_BYTES
            + memory[FRAME_HEADER_BYTES..]
                .as_ptr()
                .align_offset(DIRECT_ALIGN_BYTES)
                .min(DIRECT_ALIGN_BYTES - 1);
        Buffer {
            memory,
            content_start,
            content_capacity: size,
            filled_end: content_start - FRAME_HEADER_BYTES,
            pool: self.clone(),
            _permit: permit,
        }
    }

    /// The most bytes that there were at once.
    pub fn peak_bytes(&self) -> usize {
        self.0.memory.lock().peak_bytes
    }
}

impl FreeBuffers {
    /// `cost` bytes, used before or new. As many are taken by permits, so there is room for them below
    /// `limit` once what is free makes way.
    fn allocate(&mut self, cost: usize, limit: usize) -> Vec<u8> {
        if let Some(found) = self.free.iter().position(|free| free.len() == cost) {
            return self.free.swap_remove(found);
        }
        while self.bytes + cost > limit
            && let Some(free) = self.free.pop()
        {
            self.bytes -= free.len();
        }
        self.bytes += cost;
        self.peak_bytes = self.peak_bytes.max(self.bytes);
        vec![0; cost]
    }

    fn release(&mut self, memory: Vec<u8>) {
        if self.free.len() < MAX_FREE_BUFFERS {
            self.free.push(memory);
        } else {
            self.bytes -= memory.len();
        }
    }
}

/// A buffer, filled from a few bytes before a page on: behind the head of a frame, its content begins
/// there. It goes back to its pool when it is dropped.
pub struct Buffer {
    memory: Vec<u8>,
    /// Where the page begins.
    content_start: usize,
    /// How much goes in from there.
    content_capacity: usize,
    /// So far it is filled.
    filled_end: usize,
    pool: BufferPool,
    /// Given back behind the memory.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    fn start(&self) -> usize {
        self.content_start - FRAME_HEADER_BYTES
    }

    fn end(&self) -> usize {
        self.content_start + self.content_capacity
    }

    /// How much is in it.
    pub fn len(&self) -> usize {
        self.filled_end - self.start()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.filled_end == self.start()
    }

    /// How much more goes into it.
    pub fn remaining_bytes(&self) -> usize {
        self.end() - self.filled_end
    }

    /// Puts `bytes` behind what is in it; returns whether there was room (if not, nothing is put).
    pub fn try_append(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.remaining_bytes() {
            return false;
        }
        self.memory[self.filled_end..self.filled_end + bytes.len()].copy_from_slice(bytes);
        self.filled_end += bytes.len();
        true
    }

    /// The part that is not filled yet; in an empty buffer, its page begins behind room for the head of a
    /// frame.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.memory[self.filled_end..end]
    }

    /// Counts `n` bytes of [`Buffer::spare_mut`] as filled.
    pub fn advance(&mut self, n: usize) {
        self.filled_end = (self.filled_end + n).min(self.end());
    }

    /// Takes the content out.
    pub fn clear(&mut self) {
        self.filled_end = self.start();
    }

    /// What is in it from its page on, and behind that.
    pub fn content(&self) -> &[u8] {
        &self.memory[self.content_start..self.end()]
    }

    /// All of it from its page on, as many bytes as were requested, whatever is in it.
    pub fn content_mut(&mut self) -> &mut [u8] {
        let (content_start, end) = (self.content_start, self.end());
        &mut self.memory[content_start..end]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start()..self.filled_end]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.0.memory.lock().release(memory);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    /// A pool for tests that do without a bound.
    pub(in crate::data) fn test_pool() -> BufferPool {
        BufferPool::new(64 << 20)
    }

    /// A buffer of it to send.
    pub(in crate::data) fn test_buffer(pool: &BufferPool) -> Buffer {
        let [buffer] =
            futures_util::FutureExt::now_or_never(pool.acquire([SEND_BUFFER_BYTES])).unwrap();
        buffer
    }

    #[test]
    fn a_buffer_is_used_again_and_its_content_begins_on_a_page() {
        let pool = test_pool();
        for _ in 0..3 {
            let mut buffer = test_buffer(&pool);
            assert!(
                buffer.is_empty()
                    && buffer.remaining_bytes() == FRAME_HEADER_BYTES + SEND_BUFFER_BYTES
            );
            assert!(buffer.try_append(b"abc"));
            buffer.spare_mut()[0] = b'd';
            buffer.advance(1);
            assert_eq!(buffer.as_ref(), b"abcd");
            buffer.clear();
            assert!(buffer.is_empty());
            let content = buffer.spare_mut()[FRAME_HEADER_BYTES..].as_ptr();
            assert!(content.addr().is_multiple_of(DIRECT_ALIGN_BYTES));
            assert_eq!(
                (buffer.content_mut().as_ptr(), buffer.content_mut().len()),
                (content, SEND_BUFFER_BYTES)
            );
        }
        assert_eq!(pool.peak_bytes(), allocation_bytes(SEND_BUFFER_BYTES));
    }

    #[test]
    fn only_so_many_unused_buffers_are_kept() {
        let pool = BufferPool::new((MAX_FREE_BUFFERS + 2) * allocation_bytes(SEND_BUFFER_BYTES));
        let all: Vec<Buffer> = (0..MAX_FREE_BUFFERS + 2).map(|_| test_buffer(&pool)).collect();
        assert_eq!(
            pool.0.memory.lock().bytes,
            (MAX_FREE_BUFFERS + 2) * allocation_bytes(SEND_BUFFER_BYTES)
        );
        drop(all);
        let memory = pool.0.memory.lock();
        assert_eq!(
            (memory.free.len(), memory.bytes),
            (MAX_FREE_BUFFERS, MAX_FREE_BUFFERS * allocation_bytes(SEND_BUFFER_BYTES))
        );
        drop(memory);
        assert_eq!(pool.peak_bytes(), (MAX_FREE_BUFFERS + 2) * allocation_bytes(SEND_BUFFER_BYTES));
    }

    #[test]
    fn bytes_that_do_not_fit_are_not_appended() {
        let mut buffer = test_buffer(&test_pool());
        buffer.advance(FRAME_HEADER_BYTES + SEND_BUFFER_BYTES - 1);
        assert!(!buffer.try_append(b"ab") && buffer.remaining_bytes() == 1);
        assert!(buffer.try_append(b"a") && buffer.remaining_bytes() == 0);
    }

    #[test]
    fn the_minimum_configurable_memory_is_enough_for_the_largest_exchange() {
        assert!(MAX_EXCHANGE_BYTES as u64 <= crate::config::agent::MIN_BUFFER_MEMORY_BYTES / 2);
    }

    #[tokio::test]
    async fn an_exchange_acquires_all_its_buffers_at_once_in_order_and_within_the_limit() {
        let pool = BufferPool::new(0);
        let first = pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await;
        let large = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await.len() }
        });
        tokio::task::yield_now().await;
        // A small one that would fit does not overtake the large one for ever.
        let small = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire([1]).await.len() }
        });
        let (mut large, mut small) = (large, small);
        let wait = Duration::from_millis(50);
        assert!(tokio::time::timeout(wait, &mut large).await.is_err());
        assert!(tokio::time::timeout(wait, &mut small).await.is_err());
        let [gathered, piece] = first;
        drop(gathered);
        assert!(tokio::time::timeout(wait, &mut large).await.is_err());
        drop(piece);
        assert_eq!((large.await.unwrap(), small.await.unwrap()), (2, 1));
        assert!(pool.peak_bytes() <= MAX_EXCHANGE_BYTES, "{}", pool.peak_bytes());
    }

    #[tokio::test]
    async fn free_buffers_are_released_for_buffers_of_another_size() {
        let pool = BufferPool::new(0);
        drop(pool.acquire([GATHER_BUFFER_BYTES, RECEIVE_BUFFER_BYTES]).await);
        drop(pool.acquire([SEND_BUFFER_BYTES, BLOCK_BUFFER_BYTES]).await);
        drop(pool.acquire([MAX_EXCHANGE_BYTES / 2]).await);
        assert!(pool.peak_bytes() <= MAX_EXCHANGE_BYTES, "{}", pool.peak_bytes());
        assert!(pool.0.memory.lock().bytes <= MAX_EXCHANGE_BYTES);
    }
}
