//! The page cache and large files: a copy of terabytes shall not push out what others use, nor leave
//! its writes to pile up for one long flush at the end.
//!
//! All of it is advice to the kernel: file systems that know none of it are copied all the same.

use super::source::read_full;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Advice;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use std::num::NonZeroU64;

/// Advice is given for so many bytes at a time.
const WINDOW: u64 = 8 << 20;

/// `RWF_DONTCACHE` (since Linux 6.14): what the read had to bring into the page cache leaves it again.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A range being read once, in order: what was not in the cache before does not stay there.
///
/// New kernels see to that themselves, where the file system does ([`DONT_CACHE`]). Otherwise it is
/// asked once, of one page, before the first read: asking begins to read the page, which costs a seek,
/// and later the kernel will have read ahead to wherever we ask. A fast disk may answer that question
/// itself: then the range stays.
#[derive(Debug)]
pub struct ReadBehind<'a> {
    file: &'a OwnedFd,
    /// From here on nothing has been let go yet.
    from: u64,
    end: u64,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The kernel.
    Kernel,
    /// Us.
    Us,
    /// Nobody: others had read it before.
    Nobody,
}

impl<'a> ReadBehind<'a> {
    /// Bytes `from` to `end` of `file` are going to be read.
    pub(super) fn new(file: &'a OwnedFd, from: u64, end: u64) -> Self {
        ReadBehind { file, from, end, by: By::Kernel }
    }

    /// Fills `buffer` from `at` on; gives less only at the end of the file.
    pub(super) fn read(&mut self, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        if self.by == By::Kernel {
            match read_uncached(self.file, buffer, at) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => self.ask(),
                other => return other,
            }
        }
        if at >= self.from.saturating_add(WINDOW) {
            self.let_go(at);
        }
        read_full(self.file, buffer, at)
    }

    fn ask(&mut self) {
        // Not at the beginning: who reads the range before this one has the kernel read ahead to there.
        let inside = self.from + WINDOW.min(self.end.saturating_sub(self.from)) / 2;
        self.by = if is_cached(self.file, inside) { By::Nobody } else { By::Us };
    }

    fn let_go(&mut self, upto: u64) {
        if self.by == By::Us {
            forget(self.file, self.from, upto);
        }
        self.from = upto;
    }
}

impl Drop for ReadBehind<'_> {
    fn drop(&mut self) {
        self.let_go(self.end);
    }
}

fn read_uncached(file: &OwnedFd, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        let mut room = [IoSliceMut::new(&mut buffer[done..])];
        match rustix::io::preadv2(file, &mut room, at + done as u64, DONT_CACHE) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// A range being written: the disk gets it while it comes.
#[derive(Debug, Default)]
pub(super) struct WriteBehind(Mutex<(u64, u64)>);

impl WriteBehind {
    /// `length` bytes at `at` of `file` were written.
    pub(super) fn wrote<F: AsFd>(&self, file: &F, at: u64, length: u64) {
        let mut window = self.0.lock();
        if at != window.1 {
            forget(file, window.0, window.1);
            *window = (at, at);
        }
        window.1 += length;
        if window.1 - window.0 >= WINDOW {
            forget(file, window.0, window.1);
            window.0 = window.1;
        }
    }

    /// Nothing more comes: the rest is begun to be written.
    pub(super) fn end<F: AsFd>(&self, file: &F) {
        let window = *self.0.lock();
        forget(file, window.0, window.1);
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
pub(super) fn forget<F: AsFd>(file: &F, from: u64, end: u64) {
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
    fn cold(windows: u64) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let mut file = File::create(&path).unwrap();
        for _ in 0..windows {
            file.write_all(&vec![7; WINDOW as usize]).unwrap();
        }
        file.sync_all().unwrap();
        let file = OwnedFd::from(File::open(path).unwrap());
        forget(&file, 0, windows * WINDOW);
        (dir, file)
    }

    /// Reads it all; how many of its pages, one in 64, are in the cache afterwards, and how many it has.
    fn cached_after_read(file: &OwnedFd, windows: u64, by: By) -> (u64, u64) {
        let end = windows * WINDOW;
        let mut behind = ReadBehind::new(file, 0, end);
        if by != By::Kernel {
            behind.ask();
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
    fn what_was_not_cached_before_it_was_read_is_not_cached_after() {
        for by in [By::Kernel, By::Us] {
            // A fast disk may have brought the page by which we ask before the answer.
            let mut left = (0..5).map(|_| {
                let (_dir, file) = cold(3);
                let (cached, all) = cached_after_read(&file, 3, by);
                cached * 2 < all
            });
            assert!(left.any(|gone| gone), "{by:?}");
        }
    }

    #[test]
    fn what_others_had_read_before_stays_cached() {
        for by in [By::Kernel, By::Us] {
            let (_dir, file) = cold(3);
            let mut room = vec![0; 3 * WINDOW as usize];
            assert_eq!(read_full(&file, &mut room, 0).unwrap(), room.len());
            assert!(is_cached(&file, WINDOW), "the disk must have a cache");
            let (cached, all) = cached_after_read(&file, 3, by);
            assert!(cached * 2 > all, "{by:?}: {cached} of {all}");
        }
    }

    #[test]
    fn what_is_written_stays_what_it_is_and_leaves_the_cache_once_the_disk_has_it() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        let behind = WriteBehind::default();
        let piece = vec![7; 1 << 20];
        for at in (0..3 * WINDOW).step_by(piece.len()) {
            file.write_all_at(&piece, at).unwrap();
            behind.wrote(&file, at, piece.len() as u64);
        }
        behind.end(&file);
        file.sync_all().unwrap();
        forget(&file, 0, 3 * WINDOW);
        assert!((0..3).all(|n| !is_cached(&file, n * WINDOW)));
        let mut back = vec![0; 3 * WINDOW as usize];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back.iter().all(|b| *b == 7));
    }
}
