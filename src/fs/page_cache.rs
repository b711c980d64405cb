//! The page cache and large files: a copy of terabytes must not evict the data of other processes, nor let its writes
//! accumulate for one long flush at the end.
//!
//! All of it is advice to the kernel: file systems without it are copied as well.

use super::errno::SysResult;
use super::file_io::{fill, read_full_at};
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Advice;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use std::num::NonZeroU64;

/// Bytes between two advices to the kernel.
const ADVICE_WINDOW_BYTES: u64 = 8 << 20;

/// `RWF_DONTCACHE` (since Linux 6.14): pages that the read brought into the page cache are dropped again.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A range that is read once, in order: data that was not cached before is not cached afterwards.
///
/// New kernels do that themselves, where the file system supports it ([`DONT_CACHE`]). Otherwise one page is probed
/// before the first read: the probe starts to read the page, which costs a seek, and later probes would find the
/// kernel's read-ahead. A fast disk may complete the probe itself: then the range stays cached.
#[derive(Debug)]
pub struct DropBehindReader<'a> {
    file: &'a OwnedFd,
    /// From here on nothing is evicted yet.
    evict_from: u64,
    end: u64,
    eviction: Eviction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Eviction {
    /// By the kernel.
    Kernel,
    /// By advice to the kernel.
    Advice,
    /// Not at all: others had read it before.
    Keep,
}

impl<'a> DropBehindReader<'a> {
    /// Bytes `from` to `end` of `file` are going to be read.
    pub(super) fn new(file: &'a OwnedFd, from: u64, end: u64) -> Self {
        DropBehindReader { file, evict_from: from, end, eviction: Eviction::Kernel }
    }

    /// Fills `buffer` from `at` on; returns less than its length only at the end of the file.
    pub(super) fn read(&mut self, buffer: &mut [u8], at: u64) -> SysResult<usize> {
        if self.eviction == Eviction::Kernel {
            let uncached = fill(buffer, |rest, done| {
                let rest = &mut [IoSliceMut::new(rest)];
                rustix::io::preadv2(self.file, rest, at + done, DONT_CACHE)
            });
            match uncached {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.probe_cache(),
                other => return other,
            }
        }
        if at >= self.evict_from.saturating_add(ADVICE_WINDOW_BYTES) {
            self.evict_until(at);
        }
        read_full_at(self.file, buffer, at)
    }

    fn probe_cache(&mut self) {
        // Not at the beginning: a reader of the range before makes the kernel read ahead to there.
        let inside =
            self.evict_from + ADVICE_WINDOW_BYTES.min(self.end.saturating_sub(self.evict_from)) / 2;
        self.eviction =
            if is_cached(self.file, inside) { Eviction::Keep } else { Eviction::Advice };
    }

    fn evict_until(&mut self, upto: u64) {
        if self.eviction == Eviction::Advice {
            drop_cached(self.file, self.evict_from, upto);
        }
        self.evict_from = upto;
    }
}

impl Drop for DropBehindReader<'_> {
    fn drop(&mut self) {
        self.evict_until(self.end);
    }
}

/// A range being written: its pages go to the disk as they come.
#[derive(Debug, Default)]
pub(super) struct WriteBehind(Mutex<(u64, u64)>);

impl WriteBehind {
    /// `length` bytes at `at` of `file` were written.
    pub(super) fn record_write<F: AsFd>(&self, file: &F, at: u64, length: u64) {
        let mut window = self.0.lock();
        if at != window.1 {
            drop_cached(file, window.0, window.1);
            *window = (at, at);
        }
        window.1 += length;
        if window.1 - window.0 >= ADVICE_WINDOW_BYTES {
            drop_cached(file, window.0, window.1);
            window.0 = window.1;
        }
    }

    /// No more writes follow: writeback of the rest starts.
    pub(super) fn start_writeback<F: AsFd>(&self, file: &F) {
        let window = *self.0.lock();
        drop_cached(file, window.0, window.1);
    }
}

/// Whether the byte at `at` can be read without waiting for a disk. If not, the probe starts to read it, so a second
/// one may return another result.
pub(super) fn is_cached<F: AsFd>(file: &F, at: u64) -> bool {
    let mut byte = [0];
    let mut room = [IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut room, at, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

/// Evicts bytes `from` to `end` that are on the disk, and starts writeback of the others (as Linux does with this
/// advice, `mm/fadvise.c`).
pub(super) fn drop_cached<F: AsFd>(file: &F, from: u64, end: u64) {
    if let Some(length) = NonZeroU64::new(end.saturating_sub(from)) {
        let _ = rustix::fs::fadvise(file, from, Some(length), Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    /// A file of this many windows on a disk that caches, none of it cached.
    fn uncached_file(windows: u64) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let mut file = File::create(&path).unwrap();
        for _ in 0..windows {
            file.write_all(&vec![7; ADVICE_WINDOW_BYTES as usize]).unwrap();
        }
        file.sync_all().unwrap();
        let file = OwnedFd::from(File::open(path).unwrap());
        drop_cached(&file, 0, windows * ADVICE_WINDOW_BYTES);
        (dir, file)
    }

    /// Reads it all; how many of its pages, one in 64, are in the cache afterwards, and how many it has.
    fn count_cached_after_read(file: &OwnedFd, windows: u64, by: Eviction) -> (u64, u64) {
        let end = windows * ADVICE_WINDOW_BYTES;
        let mut behind = DropBehindReader::new(file, 0, end);
        if by != Eviction::Kernel {
            behind.probe_cache();
        }
        let mut room = vec![0; 1 << 20];
        for at in (0..end).step_by(room.len()) {
            assert_eq!(behind.read(&mut room, at).unwrap(), room.len());
            assert!(room.iter().all(|b| *b == 7));
        }
        drop(behind);
        let asked = (0..end).step_by(64 * 4096);
        (asked.clone().filter(|at| is_cached(file, *at)).count() as u64, asked.count() as u64)
    }

    #[test]
    fn uncached_data_is_not_cached_after_a_read() {
        for by in [Eviction::Kernel, Eviction::Advice] {
            // A fast disk may have read the probed page before the result.
            let mut left = (0..5).map(|_| {
                let (_dir, file) = uncached_file(3);
                let (cached, all) = count_cached_after_read(&file, 3, by);
                cached * 2 < all
            });
            assert!(left.any(|gone| gone), "{by:?}");
        }
    }

    #[test]
    fn data_cached_by_other_readers_stays_cached() {
        for by in [Eviction::Kernel, Eviction::Advice] {
            let (_dir, file) = uncached_file(3);
            let mut room = vec![0; 3 * ADVICE_WINDOW_BYTES as usize];
            assert_eq!(read_full_at(&file, &mut room, 0).unwrap(), room.len());
            assert!(is_cached(&file, ADVICE_WINDOW_BYTES), "the disk must have a cache");
            let (cached, all) = count_cached_after_read(&file, 3, by);
            assert!(cached * 2 > all, "{by:?}: {cached} of {all}");
        }
    }

    #[test]
    fn written_data_is_intact_and_leaves_the_cache_after_writeback() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        let behind = WriteBehind::default();
        let piece = vec![7; 1 << 20];
        for at in (0..3 * ADVICE_WINDOW_BYTES).step_by(piece.len()) {
            file.write_all_at(&piece, at).unwrap();
            behind.record_write(&file, at, piece.len() as u64);
        }
        behind.start_writeback(&file);
        file.sync_all().unwrap();
        drop_cached(&file, 0, 3 * ADVICE_WINDOW_BYTES);
        assert!((0..3).all(|n| !is_cached(&file, n * ADVICE_WINDOW_BYTES)));
        let mut back = vec![0; 3 * ADVICE_WINDOW_BYTES as usize];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back.iter().all(|b| *b == 7));
    }
}
