//! The page cache and large files: a copy of terabytes shall not push out what others use, nor leave
//! its writes to pile up for one long flush at the end.
//!
//! All of it is advice to the kernel: file systems that know none of it are copied all the same.

use super::errno::SysResult;
use super::file_io::{fill, read_full_at};
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Advice;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use std::num::NonZeroU64;

/// Advice is given for so many bytes at a time.
const ADVICE_WINDOW_BYTES: u64 = 8 << 20;

/// `RWF_DONTCACHE` (since Linux 6.14): what the read had to bring into the page cache leaves it again.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A range being read once, in order: what was not in the cache before does not stay there.
///
/// New kernels see to that themselves, where the file system does ([`DONT_CACHE`]). Otherwise it is
/// asked once, of one page, before the first read: asking begins to read the page, which costs a seek,
/// and later the kernel will have read ahead to wherever we ask. A fast disk may answer that question
/// itself: then the range stays.
#[derive(Debug)]
pub struct DropBehindReader<'a> {
    file: &'a OwnedFd,
    /// From here on nothing has been let go yet.
    evict_from: u64,
    end: u64,
    eviction: Eviction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Eviction {
    /// The kernel.
    Kernel,
    /// Us.
    Advice,
    /// Nobody: others had read it before.
    Keep,
}

impl<'a> DropBehindReader<'a> {
    /// Bytes `from` to `end` of `file` are going to be read.
    pub(super) fn new(file: &'a OwnedFd, from: u64, end: u64) -> Self {
        DropBehindReader { file, evict_from: from, end, eviction: Eviction::Kernel }
    }

    /// Fills `buffer` from `at` on; gives less only at the end of the file.
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
        // Not at the beginning: who reads the range before this one has the kernel read ahead to there.
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

/// A range being written: the disk gets it while it comes.
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

    /// Nothing more comes: the rest is begun to be written.
    pub(super) fn start_writeback<F: AsFd>(&self, file: &F) {
        let window = *self.0.lock();
        drop_cached(file, window.0, window.1);
    }
}

/// Whether the byte at `at` can be had without waiting for a disk. If not, asking has begun to read it:
/// a second question may be answered otherwise.
pub(super) fn is_cached<F: AsFd>(file: &F, at: u64) -> bool {
    let mut byte = [0];
    let mut room = [IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut room, at, ReadWriteFlags::NOWAIT);
    !matches!(read, Err(Errno::AGAIN))
}

/// Lets bytes `from` to `end` go that the disk has; what it does not have is begun to be written
/// (Linux does that with this advice, `mm/fadvise.c`).
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
            // A fast disk may have brought the page by which we ask before the answer.
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
