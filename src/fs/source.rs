//! Reading a source file, and verifying that it stayed one version during the read.

use super::direct_io::DirectReader;
use super::errno::SysResult;
use super::error::{Cause, FsError, Result, Side};
use super::file_io::{READ_FLAGS, hash_range, next_data_run};
use super::inode::{meta_of, size_of, stored_bytes_of, type_of};
use super::page_cache::DropBehindReader;
use super::reflink::{can_reflink, reflink_or_copy};
use super::root::{Tree, is_same_version};
use super::xattr;
use crate::wire::content::{ContentHasher, HashMode};
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::preserve::Attribute;
use crate::wire::{Digest, RelPath};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, FileType, Mode, Stat};
use rustix::io::Errno;
use std::ops::Range;

/// The shortest file for which the kernel is advised of a sequential read, in bytes.
const MIN_READ_AHEAD_BYTES: u64 = 1 << 20;

/// A regular source file, open for reading.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    side: Side,
    opened_stat: Stat,
    /// It may have holes that are preserved.
    sparse: bool,
    direct: DirectReader,
    entry: Entry,
    check: ContentCheck,
}

/// How what was read is known to be the content of the entry.
#[derive(Debug, Clone, Copy)]
enum ContentCheck {
    /// At the source: the file is of one version from its opening to the last read.
    Version,
    /// At a relay: it has this digest. `None`: the caller compares what it reads, a range, with the digest of that.
    Digest(Option<Digest>),
}

impl Tree {
    /// Opens the regular file at `entry`'s path. At a source it may be another version by now: see
    /// [`SourceFile::entry`]. At a [relay](Tree::for_relay) it has the size of `entry`, which must have a digest. Never
    /// follows a link, never blocks on a FIFO.
    ///
    /// # Errors
    /// It is missing, not accessible, or no regular file (any more). At a relay also: it has another size, or `entry`
    /// has no digest.
    pub fn open_source(&self, entry: &Entry) -> Result<SourceFile> {
        if self.side == Side::Relay {
            let no_digest = || self.error("verify", entry.path.as_bytes(), Cause::NoDigest);
            let digest = entry.digest.ok_or_else(no_digest)?;
            return self.open_copy(entry, Some(digest));
        }
        let failed = |cause: Cause| self.error("open", entry.path.as_bytes(), cause);
        let (fd, opened) = self.open_regular(&entry.path, || {
            let place = match &entry.content_path {
                Some(real) => self.locate_below_root(real)?,
                None => self.locate(&entry.path)?,
            };
            rustix::fs::openat(&place.dir, place.name, READ_FLAGS, Mode::empty())
        })?;
        let entry = if self.is_unchanged_since_scan(entry, &opened) {
            Entry { digest: None, ..entry.clone() }
        } else {
            let real = entry.content_path.clone();
            let now = self.entry_of(fd.as_fd(), b"", entry.path.clone(), &opened);
            Entry { content_path: real, ..now.map_err(failed)? }
        };
        Ok(self.source_file((fd, opened), entry, ContentCheck::Version))
    }

    /// [`Tree::open_source`] for a range, which the caller compares with its digest. At a relay it may be in a part file.
    ///
    /// # Errors
    /// Like [`Tree::open_source`].
    pub fn open_for_range(&self, entry: &Entry) -> Result<SourceFile> {
        if self.side == Side::Relay { self.open_copy(entry, None) } else { self.open_source(entry) }
    }

    /// The copy of `entry` at a relay, which has the content of `digest`. Without a digest it may be the part file.
    fn open_copy(&self, entry: &Entry, digest: Option<Digest>) -> Result<SourceFile> {
        let (fd, opened) = self
            .open_regular(&entry.path, || self.open_published_or_part(entry, digest.is_none()))?;
        let (expected, found) = (entry.size(), size_of(&opened));
        if expected != found {
            let cause = Cause::WrongSize { expected, found };
            return Err(self.error("open", entry.path.as_bytes(), cause));
        }
        // Names and metadata are those of the source: the file system of the relay may have lost some of them.
        let entry = Entry { digest: None, content_path: None, ..entry.clone() };
        Ok(self.source_file((fd, opened), entry, ContentCheck::Digest(digest)))
    }

    fn source_file(
        &self,
        (fd, opened_stat): (OwnedFd, Stat),
        entry: Entry,
        check: ContentCheck,
    ) -> SourceFile {
        let sparse =
            self.preserve.contains(Attribute::Sparse) && stored_bytes_of(&opened_stat).is_some();
        let size = size_of(&opened_stat);
        let direct = DirectReader::new(&fd, opened_stat.st_dev, size, self.direct_io);
        SourceFile { fd, side: self.side, opened_stat, sparse, direct, entry, check }
    }

    /// Opens the file of `path` with `open`, once more where a cached directory was replaced, and checks that it is a
    /// regular one.
    fn open_regular(
        &self,
        path: &RelPath,
        open: impl Fn() -> SysResult<OwnedFd>,
    ) -> Result<(OwnedFd, Stat)> {
        let failed = |cause: Cause| self.error("open", path.as_bytes(), cause);
        let open = || {
            let fd = open()?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, opened) = match open() {
            // A cached directory may have been replaced.
            Err(Errno::NOENT | Errno::STALE) => {
                self.dir_cache.clear();
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
            // Only advice: without it the file is read as well.
            let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);
        }
        Ok((fd, opened))
    }

    /// Whether a file with this `stat` is exactly as in `entry`: then its attributes, which move the ctime when they change,
    /// need not be read again.
    fn is_unchanged_since_scan(&self, entry: &Entry, stat: &Stat) -> bool {
        let linked = stat.st_nlink > 1 && self.preserve.contains(Attribute::Hardlinks);
        let was = (&entry.kind, entry.meta, entry.version, entry.is_hardlinked);
        was == (
            &EntryKind::File { size: size_of(stat) },
            meta_of(stat),
            self.version_of(stat),
            linked,
        ) && (entry.xattrs.is_empty() || xattr::is_any_preserved(self.preserve))
    }
}

/// The most runs of data that are counted in one file; the rest counts as data.
const MAX_MEASURED_RUNS: usize = 4096;

impl Tree {
    /// Replaces the allocated bytes of a sparse file ([`Entry::stored_bytes`]), which compression reduces as well, by
    /// the length of its data, where it is longer than `least` bytes.
    pub fn measure_stored_bytes(&self, entry: &mut Entry, least: u64) {
        if entry.stored_bytes.is_some() && entry.size() > least {
            // A file that can't be opened now fails when it is read.
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

    /// The file as it was when it was opened.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether it is the version of `entry`.
    pub fn is_version(&self, entry: &Entry) -> bool {
        self.entry.part_generation() == entry.part_generation()
    }

    /// Fills `buffer` from `offset` on; returns less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.direct.read(&self.fd, buffer, offset).map_err(|e| self.error("read", e.into()))
    }

    /// Its length when it was opened, in bytes.
    pub fn size(&self) -> u64 {
        size_of(&self.opened_stat)
    }

    /// The state of a hasher after `range` of the file. Holes are not read.
    ///
    /// # Errors
    /// It can't be read, or ends before ([`Cause::Changed`]).
    pub fn hash_range(&self, range: Range<u64>) -> Result<ContentHasher> {
        let hashed = hash_range(&self.fd, range, HashMode::Full);
        hashed
            .map_err(|e| self.error("read", e.into()))?
            .ok_or_else(|| self.error("read", Cause::Changed))
    }

    /// Whether direct reads are enabled, for offsets and memory aligned to [`DIRECT_ALIGN_BYTES`] and whole pages.
    ///
    /// [`DIRECT_ALIGN_BYTES`]: super::DIRECT_ALIGN_BYTES
    pub fn is_direct(&self) -> bool {
        self.direct.is_enabled()
    }

    /// The length of its content without holes, as far as the file system reports them.
    pub fn stored_bytes(&self) -> u64 {
        stored_bytes_of(&self.opened_stat).unwrap_or(size_of(&self.opened_stat))
    }

    /// Makes the new file `to` a reflink of it; see [`reflink_or_copy`].
    pub(super) fn reflink_to(
        &self,
        to: &OwnedFd,
        should_continue: &mut dyn FnMut(u64) -> bool,
    ) -> SysResult<bool> {
        let dense =
            stored_bytes_of(&self.opened_stat).is_none().then(|| size_of(&self.opened_stat));
        reflink_or_copy((&self.fd, self.opened_stat.st_dev), to, dense, should_continue)
    }

    /// Whether it may share blocks with the device `dev`, as far as is known; not with holes that are not preserved.
    pub(super) fn can_reflink_to(&self, dev: u64) -> bool {
        (self.sparse || stored_bytes_of(&self.opened_stat).is_none())
            && can_reflink(self.opened_stat.st_dev, dev)
    }

    /// Whether all of it is data, or counts as data.
    pub fn is_dense(&self) -> bool {
        !self.sparse
    }

    /// Reads bytes `from` to `end` once and in order, without adding them to the page cache.
    pub fn drop_behind(&self, from: u64, end: u64) -> DropBehindReader<'_> {
        DropBehindReader::new(&self.fd, from, end)
    }

    /// [Reads](SourceFile::read_at) a part of the range of `behind`.
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

    /// The next run of data at or after `from`, up to `end`: its start and its end. Before it is a hole; `None`: the
    /// rest is one. In a file without holes, or with holes that are not preserved, it is the whole rest.
    ///
    /// # Errors
    /// `lseek` failed.
    pub fn next_data_run(&self, from: u64, end: u64) -> Result<Option<(u64, u64)>> {
        if !self.sparse {
            return Ok((from < end).then_some((from, end)));
        }
        next_data_run(&self.fd, from, end).map_err(|e| self.error("read", e.into()))
    }

    /// Verifies that a source file is unchanged since it was opened: to be called after the last byte was read, before
    /// the bytes are used. At a relay, where other ranges are written meanwhile, digests are compared instead.
    ///
    /// # Errors
    /// [`Cause::Changed`], or `fstat` failed.
    pub fn verify_unchanged(&self) -> Result<()> {
        if matches!(self.check, ContentCheck::Digest(_)) {
            return Ok(());
        }
        let now = rustix::fs::fstat(&self.fd).map_err(|e| self.error("read", e.into()))?;
        if is_same_version(&self.opened_stat, &now) {
            Ok(())
        } else {
            Err(self.error("read", Cause::Changed))
        }
    }

    /// Verifies the digest of all that was read of a file at a relay, before the receiver may use it.
    ///
    /// # Errors
    /// [`Cause::Damaged`].
    pub fn verify_digest(&self, digest: Option<Digest>) -> Result<()> {
        match self.check {
            ContentCheck::Digest(Some(expected)) if digest != Some(expected) => {
                Err(self.error("verify", Cause::Damaged))
            }
            ContentCheck::Digest(_) | ContentCheck::Version => Ok(()),
        }
    }

    /// The error of a file that ended before its length, or is another version than expected.
    pub fn changed_error(&self) -> FsError {
        self.error(
            "read",
            match self.check {
                ContentCheck::Version => Cause::Changed,
                ContentCheck::Digest(_) => Cause::Damaged,
            },
        )
    }

    fn error(&self, op: &'static str, cause: Cause) -> FsError {
        FsError::new(self.side, op, self.entry.path.as_bytes(), cause)
    }
}

#[cfg(test)]
mod tests;
