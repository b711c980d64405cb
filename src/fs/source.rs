//! Reading a source file, and knowing that it stayed one version while it was read.

use super::direct_io::DirectReader;
use super::errno::SysResult;
use super::error::{Cause, FsError, Result, Side};
use super::file_io::next_data_run;
use super::inode::{ident_of, meta_of, size_of, stored_bytes_of, type_of};
use super::page_cache::DropBehindReader;
use super::reflink::{can_reflink, reflink_or_copy};
use super::root::{Tree, is_same_version};
use super::xattr;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::options::Attribute;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Files from this length on are announced to the kernel as read in order.
const MIN_READ_AHEAD_BYTES: u64 = 1 << 20;

/// A regular source file, open for reading.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    side: Side,
    opened_stat: Stat,
    /// It may have holes that are to be kept.
    sparse: bool,
    direct: DirectReader,
    entry: Entry,
}

impl Tree {
    /// Opens the regular file at `entry`'s path. It may be another version by now: what it is stands
    /// in [`SourceFile::entry`]. Never follows a link, never blocks on a FIFO.
    ///
    /// # Errors
    /// It is not there, out of reach, or no regular file (any more).
    pub fn open_source(&self, entry: &Entry) -> Result<SourceFile> {
        let path = entry.path.as_bytes();
        let failed = |cause: Cause| FsError::new(self.side, "open", path, cause);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || {
            let place = match &entry.content_path {
                Some(real) => self.locate_below_root(real)?,
                None => self.locate(&entry.path)?,
            };
            let fd = rustix::fs::openat(&place.dir, place.name, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, opened) = match open() {
            // A directory of the cache may have been replaced since.
            Err(Errno::NOENT | Errno::STALE) => {
                self.clear_dir_cache();
                open()
            }
            other => other,
        }
        .map_err(|errno| {
            failed(match errno {
                // A link, a socket: it was a regular file when it was listed.
                Errno::LOOP | Errno::NXIO => Cause::NotRegularFile,
                errno => errno.into(),
            })
        })?;
        if type_of(&opened) != FileType::RegularFile {
            return Err(failed(Cause::NotRegularFile));
        }
        if size_of(&opened) >= MIN_READ_AHEAD_BYTES {
            // Only advice: without it the file is read all the same.
            let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);
        }
        let entry = if self.is_unchanged_since_scan(entry, &opened) {
            Entry { digest: None, ..entry.clone() }
        } else {
            let real = entry.content_path.clone();
            let now = self.entry_of(fd.as_fd(), b"", entry.path.clone(), &opened);
            Entry { content_path: real, ..now.map_err(failed)? }
        };
        let sparse =
            self.preserve.contains(Attribute::Sparse) && stored_bytes_of(&opened).is_some();
        let direct = DirectReader::new(&fd, opened.st_dev, size_of(&opened), self.direct_io);
        Ok(SourceFile { fd, side: self.side, opened_stat: opened, sparse, direct, entry })
    }

    /// Whether a file with this `stat` is all that `entry` says: then its attributes, whose changes
    /// change the time of its last change as well, need not be read again.
    fn is_unchanged_since_scan(&self, entry: &Entry, stat: &Stat) -> bool {
        let mut ident = ident_of(stat);
        if self.is_root_device(ident.dev) {
            ident.dev = 0;
        }
        let linked = stat.st_nlink > 1 && self.preserve.contains(Attribute::Hardlinks);
        let was = (&entry.kind, entry.meta, entry.version, entry.is_hardlinked);
        was == (&EntryKind::File { size: size_of(stat) }, meta_of(stat), ident, linked)
            && (entry.xattrs.is_empty() || xattr::is_any_preserved(self.preserve))
    }
}

/// Runs of data that are counted of one file; what lies behind them is taken for data.
const MAX_MEASURED_RUNS: usize = 4096;

impl Tree {
    /// Replaces what a file with holes takes on its disk ([`Entry::stored`]), which compression lessens as well, by
    /// the length of its data, where it is longer than `least` bytes.
    pub fn measure_stored_bytes(&self, entry: &mut Entry, least: u64) {
        if entry.stored_bytes.is_some() && entry.size() > least {
            // What can't be opened now fails when it is read.
            entry.stored_bytes = self.open_source(entry).and_then(|file| file.data_bytes()).ok();
        }
    }
}

impl SourceFile {
    /// The length of all runs of data.
    fn data_bytes(&self) -> Result<u64> {
        let size = size_of(&self.opened_stat);
        let (mut at, mut sum) = (0, 0);
        for _ in 0..MAX_MEASURED_RUNS {
            let Some((start, end)) = self.next_data_run(at, size)? else { return Ok(sum) };
            sum += end - start;
            at = end;
        }
        Ok(sum + (size - at))
    }

    /// What the file was when it was opened.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether it is the version that `entry` tells of.
    pub fn is_version(&self, entry: &Entry) -> bool {
        self.entry.part_generation() == entry.part_generation()
    }

    /// Fills `buffer` from `offset` on; gives less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.direct.read(&self.fd, buffer, offset).map_err(|e| self.error("read", e.into()))
    }

    /// Whether it is read past the page cache, as far as offset and memory begin on a [`PAGE`] and whole
    /// pages are asked for.
    ///
    /// [`PAGE`]: super::PAGE
    pub fn is_direct(&self) -> bool {
        self.direct.is_enabled()
    }

    /// The length of its content without holes, as far as the file system reports them.
    pub fn stored_bytes(&self) -> u64 {
        stored_bytes_of(&self.opened_stat).unwrap_or(size_of(&self.opened_stat))
    }

    /// Makes the new file `to` a clone of it; see [`clone`].
    pub(super) fn reflink_to(
        &self,
        to: &OwnedFd,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> SysResult<bool> {
        let dense =
            stored_bytes_of(&self.opened_stat).is_none().then(|| size_of(&self.opened_stat));
        reflink_or_copy((&self.fd, self.opened_stat.st_dev), to, dense, go_on)
    }

    /// Whether it can be cloned to the device `dev`, as far as is known. Holes that are not to be kept can't.
    pub(super) fn can_reflink_to(&self, dev: u64) -> bool {
        (self.sparse || stored_bytes_of(&self.opened_stat).is_none())
            && can_reflink(self.opened_stat.st_dev, dev)
    }

    /// Whether all of it is data, or to be taken for data.
    pub fn is_dense(&self) -> bool {
        !self.sparse
    }

    /// Keeps bytes `from` to `end`, which are going to be read once and in order, out of the page cache
    /// where they were not in it.
    pub fn drop_behind(&self, from: u64, end: u64) -> DropBehindReader<'_> {
        DropBehindReader::new(&self.fd, from, end)
    }

    /// [Reads](SourceFile::read_at) a part of what `behind` is about.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_dropping_cache(
        &self,
        behind: &mut DropBehindReader<'_>,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        behind.read(buffer, offset).map_err(|e| self.error("read", e.into()))
    }

    /// The next run of data that begins at or behind `from`, up to `end` at most: its start and its end.
    /// What is before it is a hole; `None` means that all the rest is one. Of a file without holes, or
    /// whose holes are not kept, it is the whole rest.
    ///
    /// # Errors
    /// `lseek` failed.
    pub fn next_data_run(&self, from: u64, end: u64) -> Result<Option<(u64, u64)>> {
        if !self.sparse {
            return Ok((from < end).then_some((from, end)));
        }
        next_data_run(&self.fd, from, end).map_err(|e| self.error("read", e.into()))
    }

    /// Whether the file is still what it was when it was opened: to be asked after the last byte was
    /// read, before anybody relies on the bytes.
    ///
    /// # Errors
    /// [`Cause::Changed`], or `fstat` failed.
    pub fn verify_unchanged(&self) -> Result<()> {
        let now = rustix::fs::fstat(&self.fd).map_err(|e| self.error("read", e.into()))?;
        if is_same_version(&self.opened_stat, &now) {
            Ok(())
        } else {
            Err(self.error("read", Cause::Changed))
        }
    }

    fn error(&self, op: &'static str, cause: Cause) -> FsError {
        FsError::new(self.side, op, self.entry.path.as_bytes(), cause)
    }
}

#[cfg(test)]
mod tests;
