//! Reading past the page cache (`O_DIRECT`), where a file system lets us: whole pages of large files, at
//! offsets and to memory that are multiples of one. What is not whole, and what a file system refuses,
//! is read the ordinary way.

use super::source::read_full;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// What offsets, lengths and memory are a multiple of, in bytes: no disk in use has longer blocks.
pub const PAGE: usize = 4096;
/// Shorter files are read through the page cache: the kernel reads ahead for them, we would wait.
const LARGE: u64 = 16 << 20;

/// The device numbers of file systems that refused. They are not asked again.
static REFUSED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// Whether, and how, one file is read past the page cache.
#[derive(Debug)]
pub(super) struct Direct {
    on: AtomicBool,
    dev: u64,
}

impl Direct {
    /// Sets `fd`, of a file of this `size` on this device, up for it where that is `wanted` and can be.
    pub(super) fn new(fd: &OwnedFd, dev: u64, size: u64, wanted: bool) -> Self {
        let direct = Direct { on: AtomicBool::new(false), dev };
        let known = || REFUSED.lock().contains(&dev);
        if wanted && size >= LARGE && !known() {
            match set(fd, true) {
                Ok(()) => direct.on.store(true, Ordering::Relaxed),
                Err(errno) => direct.refused(errno),
            }
        }
        direct
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Fills `buffer` from `offset` on; gives less only at the end of the file.
    pub(super) fn read(
        &self,
        fd: &OwnedFd,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, Errno> {
        if !self.is_on() {
            return read_full(fd, buffer, offset);
        }
        let done = self.read_pages(fd, buffer, offset)?;
        if done == buffer.len() {
            return Ok(done);
        }
        // The rest is no whole page, or at the end of the file, or refused.
        set(fd, false)?;
        let rest = read_full(fd, &mut buffer[done..], offset + done as u64);
        if self.is_on()
            && let Err(errno) = set(fd, true)
        {
            self.refused(errno);
        }
        Ok(done + rest?)
    }

    /// Reads the whole pages of it; none where it does not begin on one, or is refused.
    fn read_pages(&self, fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let aligned = offset.is_multiple_of(PAGE as u64);
        if !aligned || !buffer.as_ptr().addr().is_multiple_of(PAGE) {
            return Ok(0);
        }
        let (mut done, whole) = (0, buffer.len() / PAGE * PAGE);
        // A read that ends elsewhere has come to the end of the file.
        while done < whole && done.is_multiple_of(PAGE) {
            match rustix::io::pread(fd, &mut buffer[done..whole], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                    self.refused(errno);
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn refused(&self, errno: Errno) {
        self.on.store(false, Ordering::Relaxed);
        let new = REFUSED.lock().insert(self.dev);
        if new {
            let (major, minor) = (rustix::fs::major(self.dev), rustix::fs::minor(self.dev));
            tracing::warn!(
                "direct_io: the file system {major}:{minor} does not support it ({errno}); files are read through the \
                 page cache"
            );
        }
    }
}

fn set(fd: &OwnedFd, on: bool) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    rustix::fs::fcntl_setfl(fd.as_fd(), flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    const SIZE: usize = LARGE as usize + 3 * PAGE + 77;

    /// A large file on a disk, and its content; none of it is cached.
    fn cold() -> (tempfile::TempDir, File, Vec<u8>) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let mut content = vec![0; SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        std::fs::write(&path, &content).unwrap();
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        super::super::cache::forget(&file, 0, SIZE as u64);
        (dir, file, content)
    }

    /// How many of `file`'s pages, one in 64, are in the cache. Each is asked for once, by a descriptor
    /// for which the kernel reads no more than that page.
    fn cached(file: &File, dir: &tempfile::TempDir) -> usize {
        let asking = File::open(dir.path().join("f")).unwrap();
        rustix::fs::fadvise(&asking, 0, None, rustix::fs::Advice::Random).unwrap();
        let pages = (0..file.metadata().unwrap().len()).step_by(64 * PAGE);
        pages.filter(|at| super::super::cache::is_cached(&asking, *at)).count()
    }

    fn direct(file: &File) -> (OwnedFd, Direct) {
        let fd = file.try_clone().unwrap().into();
        let meta = file.metadata().unwrap();
        let direct = Direct::new(&fd, meta.dev(), meta.len(), true);
        (fd, direct)
    }

    /// Memory of which the part from the returned place on begins on a page.
    fn aligned(size: usize) -> (Vec<u8>, usize) {
        let memory = vec![0; size + PAGE];
        let page = memory.as_ptr().align_offset(PAGE);
        (memory, page)
    }

    #[test]
    fn any_place_and_length_is_read_as_it_is() {
        let (_dir, file, content) = cold();
        let (fd, direct) = direct(&file);
        assert!(direct.is_on(), "/var/tmp must be on a disk");
        let (mut memory, page) = aligned(1 << 20);
        for (at, length, shift) in [
            (0, 1 << 20, 0),
            (PAGE, 3 * PAGE + 5, 0),
            (PAGE + 1, 3 * PAGE, 0),
            (PAGE, 3 * PAGE, 1),
            (2 * PAGE, 100, 0),
            (SIZE - 77, 77, 0),
            (SIZE - 77 - PAGE, 3 * PAGE, 0),
            (SIZE - 77, 4 * PAGE, 0),
            (SIZE - 5, 1 << 20, 0),
            (SIZE, PAGE, 0),
            (SIZE + 3 * PAGE, PAGE, 0),
        ] {
            let room = &mut memory[page + shift..][..length];
            let n = direct.read(&fd, room, at as u64).unwrap();
            let expected = content.get(at..SIZE.min(at + length)).unwrap_or_default();
            assert!(room[..n] == *expected, "{n} of {length} at {at}");
        }
        assert!(direct.is_on());
    }

    #[test]
    fn what_is_read_directly_does_not_fill_the_cache_and_what_is_not_does() {
        for wanted in [true, false] {
            let (dir, file, content) = cold();
            let fd: OwnedFd = file.try_clone().unwrap().into();
            let direct = Direct::new(&fd, file.metadata().unwrap().dev(), SIZE as u64, wanted);
            let (mut memory, page) = aligned(1 << 20);
            for at in (0..SIZE).step_by(1 << 20) {
                let n = direct.read(&fd, &mut memory[page..][..1 << 20], at as u64).unwrap();
                assert!(memory[page..][..n] == content[at..at + n]);
            }
            let (found, all) = (cached(&file, &dir), SIZE.div_ceil(64 * PAGE));
            // The end is no whole page.
            assert!(
                if wanted { found <= 1 } else { found > all / 2 },
                "{wanted}: {found} of {all}"
            );
        }
    }

    #[test]
    fn where_it_cannot_be_done_files_are_read_the_ordinary_way() {
        // A file system that refuses, whatever the length.
        let file = File::open("/proc/version").unwrap();
        let fd = file.try_clone().unwrap().into();
        let dev = file.metadata().unwrap().dev();
        let expected = std::fs::read("/proc/version").unwrap();
        for _ in 0..2 {
            let direct = Direct::new(&fd, dev, LARGE, true);
            assert!(!direct.is_on());
            assert!(REFUSED.lock().contains(&dev));
            let (mut memory, page) = aligned(2 * PAGE);
            let n = direct.read(&fd, &mut memory[page..][..2 * PAGE], 0).unwrap();
            assert_eq!(memory[page..][..n], *expected);
        }
    }

    #[test]
    fn small_files_and_those_that_shall_not_be_are_read_through_the_cache() {
        let (_dir, file, _) = cold();
        let fd = file.try_clone().unwrap().into();
        let dev = file.metadata().unwrap().dev();
        assert!(!Direct::new(&fd, dev, LARGE - 1, true).is_on());
        assert!(!Direct::new(&fd, dev, LARGE, false).is_on());
        let mut start = [0; 10];
        file.read_exact_at(&mut start, 1).unwrap();
    }
}
