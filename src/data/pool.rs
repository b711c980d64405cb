//! The memory for content: buffers that are used again and again, bounded in bytes for a whole agent.
//!
//! **Nobody waits for a buffer while he holds one.** What an exchange needs is taken in one step, before
//! its thread is started, and goes back when it ends; who waits longest is served first.
//!
//! **Sending and receiving have a half each** ([`Buffers`]). A sender holds its buffers until its peer
//! has received; were there one purse, two agents that send to each other could both spend it on
//! sending, and each would wait for the other to receive. So senders wait for receivers, and receivers
//! for nobody but the disk.
//!
//! Allocating and zeroing a buffer per read costs more than the read, so some are kept. What is read of a
//! file begins on a page, so that it can be read past the page cache.

use super::asks::BLOCK_BYTES;
use super::frame::HEAD;
use crate::fs::DIRECT_ALIGN_BYTES;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is read of a file at once, in bytes: little enough to be in the core's cache still while it is
/// hashed and handed to the socket, and a multiple of what BLAKE3 does at once.
pub const READ_AT_ONCE: usize = 512 << 10;
/// The size of a buffer to send: one such read, with room for small frames.
pub const BUFFER: usize = READ_AT_ONCE + 4096;
/// The size of a buffer for one block that is compared.
pub const SCRATCH: usize = BLOCK_BYTES as usize;
/// The size of a buffer to receive: content is gathered in it, hashed and written at once.
pub const GATHERED: usize = 1 << 20;
/// What is read from a socket at once where nothing is known of what comes, in bytes.
pub const PIECE: usize = 256 << 10;
/// At most this many buffers are kept while nobody uses them.
const KEPT: usize = 32;

/// What the largest exchange of either half needs, in bytes.
const LARGEST: usize = {
    let (sending, receiving) = (cost(BUFFER) + cost(SCRATCH), cost(GATHERED) + cost(PIECE));
    if sending > receiving { sending } else { receiving }
};

/// What a buffer with room for `size` bytes costs: its content can begin on a page, and the head of its
/// frame stands before it.
const fn cost(size: usize) -> usize {
    HEAD + DIRECT_ALIGN_BYTES - 1 + size
}

/// The buffers of an agent; clones are the same.
#[derive(Clone)]
pub struct Buffers {
    /// To read and send, and to copy on this host.
    pub sending: Pool,
    /// To receive.
    pub receiving: Pool,
}

impl Buffers {
    /// Buffers of at most `bytes` in all, half of them for each direction; of a few megabytes at least,
    /// without which nothing could be moved.
    pub fn new(bytes: u64) -> Self {
        let half = usize::try_from(bytes / 2).unwrap_or(usize::MAX);
        Buffers { sending: Pool::new(half), receiving: Pool::new(half) }
    }

    /// The most bytes that there were at once, kept ones included.
    pub fn most(&self) -> usize {
        self.sending.most() + self.receiving.most()
    }
}

/// A pool; clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    limit: usize,
    /// Bytes that may be taken; it serves in the order in which it is asked.
    left: Arc<Semaphore>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// What nobody uses.
    free: Vec<Vec<u8>>,
    /// Of all, in use and free.
    bytes: usize,
    most: usize,
}

impl Pool {
    /// A pool of at most `limit` bytes (or what the largest exchange needs), without any; buffers are made
    /// as they are needed.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(LARGEST, Semaphore::MAX_PERMITS);
        let left = Arc::new(Semaphore::new(limit));
        Pool(Arc::new(Shared { limit, left, memory: Mutex::default() }))
    }

    /// Buffers of these `sizes`, with nothing in them, as soon as all can be had: what a whole exchange
    /// needs is taken at once, and no more is taken before it ends.
    pub async fn take<const N: usize>(&self, sizes: [usize; N]) -> [Buffer; N] {
        let all: usize = sizes.into_iter().map(cost).sum();
        let all = u32::try_from(all.min(self.0.limit)).unwrap_or(u32::MAX);
        // Never closed.
        let mut permit = self.0.left.clone().acquire_many_owned(all).await.ok();
        sizes.map(|size| {
            let permit = permit.as_mut().and_then(|permit| permit.split(cost(size)));
            self.make(size, permit)
        })
    }

    /// What sending needs; with room for a block if it is to be compared.
    pub async fn to_send(&self, compared: bool) -> (Buffer, Option<Buffer>) {
        if compared {
            let [buffer, scratch] = self.take([BUFFER, SCRATCH]).await;
            (buffer, Some(scratch))
        } else {
            let [buffer] = self.take([BUFFER]).await;
            (buffer, None)
        }
    }

    fn make(&self, size: usize, permit: Option<OwnedSemaphorePermit>) -> Buffer {
        let memory = self.memory().get(cost(size), self.0.limit);
        // As far as a page, whatever the pointer is said to be.
        let page = HEAD
            + memory[HEAD..].as_ptr().align_offset(DIRECT_ALIGN_BYTES).min(DIRECT_ALIGN_BYTES - 1);
        Buffer { memory, page, size, at: page - HEAD, pool: self.clone(), _permit: permit }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock()
    }

    /// The most bytes that there were at once.
    pub fn most(&self) -> usize {
        self.memory().most
    }
}

impl Memory {
    /// `cost` bytes, used before or new. As many are taken by permits, so there is room for them below
    /// `limit` once what is free makes way.
    fn get(&mut self, cost: usize, limit: usize) -> Vec<u8> {
        if let Some(found) = self.free.iter().position(|free| free.len() == cost) {
            return self.free.swap_remove(found);
        }
        while self.bytes + cost > limit
            && let Some(free) = self.free.pop()
        {
            self.bytes -= free.len();
        }
        self.bytes += cost;
        self.most = self.most.max(self.bytes);
        vec![0; cost]
    }

    fn put(&mut self, memory: Vec<u8>) {
        if self.free.len() < KEPT {
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
    page: usize,
    /// How much goes in from there.
    size: usize,
    /// So far it is filled.
    at: usize,
    pool: Pool,
    /// Given back behind the memory.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    fn start(&self) -> usize {
        self.page - HEAD
    }

    fn end(&self) -> usize {
        self.page + self.size
    }

    /// How much is in it.
    pub fn len(&self) -> usize {
        self.at - self.start()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.at == self.start()
    }

    /// How much more goes into it.
    pub fn room(&self) -> usize {
        self.end() - self.at
    }

    /// Puts `bytes` behind what is in it; returns whether there was room (if not, nothing is put).
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.room() {
            return false;
        }
        self.memory[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        true
    }

    /// The part that is not filled yet; in an empty buffer, its page begins behind room for the head of a
    /// frame.
    pub fn spare(&mut self) -> &mut [u8] {
        let end = self.end();
        &mut self.memory[self.at..end]
    }

    /// Counts `n` bytes of [`Buffer::spare`] as filled.
    pub fn advance(&mut self, n: usize) {
        self.at = (self.at + n).min(self.end());
    }

    /// Takes all that is in it out.
    pub fn clear(&mut self) {
        self.at = self.start();
    }

    /// What is in it from its page on, and behind that.
    pub fn page(&self) -> &[u8] {
        &self.memory[self.page..self.end()]
    }

    /// All of it from its page on, as many bytes as were asked for, whatever is in it.
    pub fn pages(&mut self) -> &mut [u8] {
        let (page, end) = (self.page, self.end());
        &mut self.memory[page..end]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start()..self.at]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.memory().put(memory);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Duration;

    /// A pool for tests that do without a bound.
    pub(in crate::data) fn plenty() -> Pool {
        Pool::new(64 << 20)
    }

    /// A buffer of it to send.
    pub(in crate::data) fn one(pool: &Pool) -> Buffer {
        let [buffer] = futures_util::FutureExt::now_or_never(pool.take([BUFFER])).unwrap();
        buffer
    }

    #[test]
    fn a_buffer_is_used_again_and_its_content_begins_on_a_page() {
        let pool = plenty();
        for _ in 0..3 {
            let mut buffer = one(&pool);
            assert!(buffer.is_empty() && buffer.room() == HEAD + BUFFER);
            assert!(buffer.put(b"abc"));
            buffer.spare()[0] = b'd';
            buffer.advance(1);
            assert_eq!(buffer.as_ref(), b"abcd");
            buffer.clear();
            assert!(buffer.is_empty());
            let content = buffer.spare()[HEAD..].as_ptr();
            assert!(content.addr().is_multiple_of(DIRECT_ALIGN_BYTES));
            assert_eq!((buffer.pages().as_ptr(), buffer.pages().len()), (content, BUFFER));
        }
        assert_eq!(pool.most(), cost(BUFFER));
    }

    #[test]
    fn only_so_many_unused_buffers_are_kept() {
        let pool = Pool::new((KEPT + 2) * cost(BUFFER));
        let all: Vec<Buffer> = (0..KEPT + 2).map(|_| one(&pool)).collect();
        assert_eq!(pool.memory().bytes, (KEPT + 2) * cost(BUFFER));
        drop(all);
        let memory = pool.memory();
        assert_eq!((memory.free.len(), memory.bytes), (KEPT, KEPT * cost(BUFFER)));
        drop(memory);
        assert_eq!(pool.most(), (KEPT + 2) * cost(BUFFER));
    }

    #[test]
    fn what_does_not_fit_is_not_put() {
        let mut buffer = one(&plenty());
        buffer.advance(HEAD + BUFFER - 1);
        assert!(!buffer.put(b"ab") && buffer.room() == 1);
        assert!(buffer.put(b"a") && buffer.room() == 0);
    }

    #[test]
    fn the_least_memory_that_can_be_configured_is_enough_for_the_largest_exchange() {
        assert!(LARGEST as u64 <= crate::config::agent::MIN_BUFFER_MEMORY_BYTES / 2);
    }

    #[tokio::test]
    async fn an_exchange_gets_all_its_buffers_at_once_in_its_turn_and_never_more_than_there_are() {
        let pool = Pool::new(0);
        let first = pool.take([GATHERED, PIECE]).await;
        let large = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take([GATHERED, PIECE]).await.len() }
        });
        tokio::task::yield_now().await;
        // A small one that would fit does not overtake the large one for ever.
        let small = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take([1]).await.len() }
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
        assert!(pool.most() <= LARGEST, "{}", pool.most());
    }

    #[tokio::test]
    async fn memory_that_is_kept_makes_way_for_buffers_of_another_size() {
        let pool = Pool::new(0);
        drop(pool.take([GATHERED, PIECE]).await);
        drop(pool.take([BUFFER, SCRATCH]).await);
        drop(pool.take([LARGEST / 2]).await);
        assert!(pool.most() <= LARGEST, "{}", pool.most());
        assert!(pool.memory().bytes <= LARGEST);
    }
}
