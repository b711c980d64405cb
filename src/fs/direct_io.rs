//! Reads that bypass the page cache (`O_DIRECT`), where the file system supports it: whole pages of large files, at
//! aligned offsets and into aligned memory. Everything else is read through the page cache.

use super::errno::SysResult;
use super::file_io::read_full_at;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// The alignment of offsets, lengths and memory, in bytes: no disk in use has larger blocks.
pub const DIRECT_ALIGN_BYTES: usize = 4096;
/// Shorter files are read through the page cache, where the kernel's read-ahead is faster.
const MIN_DIRECT_FILE_BYTES: u64 = 16 << 20;

/// Device numbers of file systems without support; they are not tried again.
static UNSUPPORTED_DEVICES: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// How one file is read past the page cache.
#[derive(Debug)]
pub(super) struct DirectReader {
    enabled: AtomicBool,
    dev: u64,
}

impl DirectReader {
    /// Enables direct reads of `fd`, a file of this size on this device, if `wanted` and supported.
    pub(super) fn new(fd: &OwnedFd, dev: u64, size: u64, wanted: bool) -> Self {
        let direct = DirectReader { enabled: AtomicBool::new(false), dev };
        let known = || UNSUPPORTED_DEVICES.lock().contains(&dev);
        if wanted && size >= MIN_DIRECT_FILE_BYTES && !known() {
            match set_direct_flag(fd, true) {
                Ok(()) => direct.enabled.store(true, Ordering::Relaxed),
                Err(errno) => direct.disable(errno),
            }
        }
        direct
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Fills `buffer` from `offset` on; returns less than its length only at the end of the file.
    pub(super) fn read(&self, fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> SysResult<usize> {
        if !self.is_enabled() {
            return read_full_at(fd, buffer, offset);
        }
        let done = self.read_aligned(fd, buffer, offset)?;
        if done == buffer.len() {
            return Ok(done);
        }
        // The remainder is no whole page, is at the end of the file, or was refused.
        set_direct_flag(fd, false)?;
        let rest = read_full_at(fd, &mut buffer[done..], offset + done as u64);
        if self.is_enabled()
            && let Err(errno) = set_direct_flag(fd, true)
        {
            self.disable(errno);
        }
        Ok(done + rest?)
    }

    /// Reads the whole pages; none where offset or memory is not aligned, or the read is refused.
    fn read_aligned(&self, fd: &OwnedFd, buffer: &mut [u8], offset: u64) -> SysResult<usize> {
        let aligned = offset.is_multiple_of(DIRECT_ALIGN_BYTES as u64);
        if !aligned || !buffer.as_ptr().addr().is_multiple_of(DIRECT_ALIGN_BYTES) {
            return Ok(0);
        }
        let (mut done, whole) = (0, buffer.len() / DIRECT_ALIGN_BYTES * DIRECT_ALIGN_BYTES);
        // A read that ends elsewhere has reached the end of the file.
        while done < whole && done.is_multiple_of(DIRECT_ALIGN_BYTES) {
            match rustix::io::pread(fd, &mut buffer[done..whole], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)) => {
                    self.disable(errno);
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn disable(&self, errno: Errno) {
        self.enabled.store(false, Ordering::Relaxed);
        let new = UNSUPPORTED_DEVICES.lock().insert(self.dev);
        if new {
            let (major, minor) = (rustix::fs::major(self.dev), rustix::fs::minor(self.dev));
            tracing::warn!(
                "direct_io: the file system {major}:{minor} does not support it ({errno}); files are read through the \
                 page cache"
            );
        }
    }
}

fn set_direct_flag(fd: &OwnedFd, on: bool) -> SysResult<()> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    let flags = if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT };
    rustix::fs::fcntl_setfl(fd.as_fd(), flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    const SIZE: usize = MIN_DIRECT_FILE_BYTES as usize + 3 * DIRECT_ALIGN_BYTES + 77;

    /// A large file on a disk and its content, not cached.
    fn uncached_file() -> (tempfile::TempDir, File, Vec<u8>) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("f");
        let mut content = vec![0; SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        std::fs::write(&path, &content).unwrap();
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        super::super::page_cache::drop_cached(&file, 0, SIZE as u64);
        (dir, file, content)
    }

    /// How many of `file`'s pages, one in 64, are cached. Each is probed once, on a descriptor without read-ahead.
    fn count_cached_pages(file: &File, dir: &tempfile::TempDir) -> usize {
        let asking = File::open(dir.path().join("f")).unwrap();
        rustix::fs::fadvise(&asking, 0, None, rustix::fs::Advice::Random).unwrap();
        let pages = (0..file.metadata().unwrap().len()).step_by(64 * DIRECT_ALIGN_BYTES);
        pages.filter(|at| super::super::page_cache::is_cached(&asking, *at)).count()
    }

    fn direct_reader(file: &File) -> (OwnedFd, DirectReader) {
        let fd = file.try_clone().unwrap().into();
        let meta = file.metadata().unwrap();
        let direct = DirectReader::new(&fd, meta.dev(), meta.len(), true);
        (fd, direct)
    }

    /// Memory of which the part from the returned place on begins on a page.
    fn aligned_buffer(size: usize) -> (Vec<u8>, usize) {
        let memory = vec![0; size + DIRECT_ALIGN_BYTES];
        let page = memory.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        (memory, page)
    }

    #[test]
    fn any_offset_and_length_is_read_correctly() {
        let (_dir, file, content) = uncached_file();
        let (fd, direct) = direct_reader(&file);
        assert!(direct.is_enabled(), "/var/tmp must be on a disk");
        let (mut memory, page) = aligned_buffer(1 << 20);
        for (at, length, shift) in [
            (0, 1 << 20, 0),
            (DIRECT_ALIGN_BYTES, 3 * DIRECT_ALIGN_BYTES + 5, 0),
            (DIRECT_ALIGN_BYTES + 1, 3 * DIRECT_ALIGN_BYTES, 0),
            (DIRECT_ALIGN_BYTES, 3 * DIRECT_ALIGN_BYTES, 1),
            (2 * DIRECT_ALIGN_BYTES, 100, 0),
            (SIZE - 77, 77, 0),
            (SIZE - 77 - DIRECT_ALIGN_BYTES, 3 * DIRECT_ALIGN_BYTES, 0),
            (SIZE - 77, 4 * DIRECT_ALIGN_BYTES, 0),
            (SIZE - 5, 1 << 20, 0),
            (SIZE, DIRECT_ALIGN_BYTES, 0),
            (SIZE + 3 * DIRECT_ALIGN_BYTES, DIRECT_ALIGN_BYTES, 0),
        ] {
            let room = &mut memory[page + shift..][..length];
            let n = direct.read(&fd, room, at as u64).unwrap();
            let expected = content.get(at..SIZE.min(at + length)).unwrap_or_default();
            assert!(room[..n] == *expected, "{n} of {length} at {at}");
        }
        assert!(direct.is_enabled());
    }

    #[test]
    fn direct_reads_do_not_fill_the_page_cache_and_buffered_reads_do() {
        for wanted in [true, false] {
            let (dir, file, content) = uncached_file();
            let fd: OwnedFd = file.try_clone().unwrap().into();
            let direct =
                DirectReader::new(&fd, file.metadata().unwrap().dev(), SIZE as u64, wanted);
            let (mut memory, page) = aligned_buffer(1 << 20);
            for at in (0..SIZE).step_by(1 << 20) {
                let n = direct.read(&fd, &mut memory[page..][..1 << 20], at as u64).unwrap();
                assert!(memory[page..][..n] == content[at..at + n]);
            }
            let (found, all) =
                (count_cached_pages(&file, &dir), SIZE.div_ceil(64 * DIRECT_ALIGN_BYTES));
            // The end is no whole page.
            assert!(
                if wanted { found <= 1 } else { found > all / 2 },
                "{wanted}: {found} of {all}"
            );
        }
    }

    #[test]
    fn a_file_system_without_direct_io_is_read_through_the_page_cache() {
        // A file system that refuses, whatever the length.
        let file = File::open("/proc/version").unwrap();
        let fd = file.try_clone().unwrap().into();
        let dev = file.metadata().unwrap().dev();
        let expected = std::fs::read("/proc/version").unwrap();
        for _ in 0..2 {
            let direct = DirectReader::new(&fd, dev, MIN_DIRECT_FILE_BYTES, true);
            assert!(!direct.is_enabled());
            assert!(UNSUPPORTED_DEVICES.lock().contains(&dev));
            let (mut memory, page) = aligned_buffer(2 * DIRECT_ALIGN_BYTES);
            let n = direct.read(&fd, &mut memory[page..][..2 * DIRECT_ALIGN_BYTES], 0).unwrap();
            assert_eq!(memory[page..][..n], *expected);
        }
    }

    #[test]
    fn small_files_and_disabled_direct_io_use_the_page_cache() {
        let (_dir, file, _) = uncached_file();
        let fd = file.try_clone().unwrap().into();
        let dev = file.metadata().unwrap().dev();
        assert!(!DirectReader::new(&fd, dev, MIN_DIRECT_FILE_BYTES - 1, true).is_enabled());
        assert!(!DirectReader::new(&fd, dev, MIN_DIRECT_FILE_BYTES, false).is_enabled());
        let mut start = [0; 10];
        file.read_exact_at(&mut start, 1).unwrap();
    }
}
