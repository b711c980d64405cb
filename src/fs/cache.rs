//! The page cache and large files: a copy of terabytes shall not push out what others use, nor leave
//! its writes to pile up for one long flush at the end.
//!
//! All of it is advice to the kernel: file systems that know none of it are copied all the same.

use rustix::fd::AsFd;
use rustix::fs::Advice;
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

/// Advice is given for so many bytes at a time.
const WINDOW: u64 = 8 << 20;

/// A range being read once, in order: what was not in the cache before does not stay there.
#[derive(Debug)]
pub struct ReadBehind<'a, F: AsFd> {
    file: &'a F,
    /// From here on nothing is let go yet …
    from: u64,
    /// … up to here it is one window …
    upto: u64,
    end: u64,
    /// … which others had read before.
    kept: bool,
}

impl<'a, F: AsFd> ReadBehind<'a, F> {
    /// Bytes `from` to `end` of `file` are going to be read.
    pub fn new(file: &'a F, from: u64, end: u64) -> Self {
        ReadBehind { file, from, upto: from, end, kept: true }
    }

    /// To be called before bytes at `at` are read.
    pub fn at(&mut self, at: u64) {
        if at >= self.upto {
            self.let_go();
            (self.from, self.upto) = (at, at.saturating_add(WINDOW).min(self.end));
            self.kept = is_cached(self.file, at);
        }
    }

    fn let_go(&self) {
        if !self.kept {
            forget(self.file, self.from, self.upto);
        }
    }
}

impl<F: AsFd> Drop for ReadBehind<'_, F> {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A range being written: the disk gets it while it comes.
#[derive(Debug, Default)]
pub(super) struct WriteBehind(Mutex<(u64, u64)>);

impl WriteBehind {
    /// `length` bytes at `at` of `file` were written.
    pub(super) fn wrote<F: AsFd>(&self, file: &F, at: u64, length: u64) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let window = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forget(file, window.0, window.1);
    }
}

/// Whether the byte at `at` can be had without waiting for a disk.
fn is_cached<F: AsFd>(file: &F, at: u64) -> bool {
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
    fn cold(windows: u64) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let mut file = File::create(&path).unwrap();
        for _ in 0..windows {
            file.write_all(&vec![7; WINDOW as usize]).unwrap();
        }
        file.sync_all().unwrap();
        let file = File::open(path).unwrap();
        forget(&file, 0, windows * WINDOW);
        (dir, file)
    }

    fn read(file: &File, from: u64, end: u64) {
        let mut behind = ReadBehind::new(file, from, end);
        let mut room = vec![0; 1 << 20];
        for at in (from..end).step_by(room.len()) {
            behind.at(at);
            file.read_exact_at(&mut room, at).unwrap();
        }
    }

    #[test]
    fn what_was_not_cached_before_it_was_read_is_not_cached_after() {
        let (_dir, file) = cold(3);
        // Somebody else uses the middle.
        let mut room = vec![0; WINDOW as usize];
        file.read_exact_at(&mut room, WINDOW).unwrap();
        assert!(is_cached(&file, WINDOW) && !is_cached(&file, 0), "the disk must have a cache");
        read(&file, 0, 3 * WINDOW);
        assert!(!is_cached(&file, 0) && !is_cached(&file, WINDOW - 1));
        assert!(is_cached(&file, WINDOW) && is_cached(&file, 2 * WINDOW - 1));
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
