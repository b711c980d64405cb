//! Digests of what the destination has of a file, whole and block by block, so that equal content is not sent.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::error::{Cause, Result};
use super::file_io::{Chunk, READ_BUFFER_BYTES, READ_FLAGS, hash_range, read_chunks, read_full_at};
use super::inode::{lstat, size_of, type_of};
use super::root::ParentAndName;
use super::special_files::MetadataRepair;
use super::target::Target;
use crate::wire::Digest;
use crate::wire::content::{HashMode, ZERO_DIGEST, is_all_zero};
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::Entry;
use minicbor::{Decode, Encode};
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, FileType, Mode, SeekFrom, Stat};
use rustix::io::Errno;
use std::num::NonZeroU64;

/// The shortest block, in bytes.
const MIN_BLOCK_BYTES: u64 = 1024;
/// The most blocks of one request.
const MAX_BLOCKS: u64 = 1 << 20;
/// The most data that is read, in bytes, to find out whether a long block is all zeros.
const MAX_ZERO_SCAN_BYTES: u64 = 64 << 20;

/// What the destination has in place of one block ([`HashMode::hash_block`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct BlockHashes {
    /// In the part file of this version; `None` where nothing is written yet.
    #[n(0)]
    pub part: Option<Digest>,
    /// In the file with the final name; `None` where that file is shorter.
    #[n(1)]
    pub basis: Option<Digest>,
}

/// A regular file at the destination, open for reading.
struct OpenFile {
    fd: OwnedFd,
    stat: Stat,
}

impl Target {
    /// Hashes what the destination has in place of `length` bytes of `entry`'s content from `offset` on, in blocks of
    /// `block` bytes, which are read to `scratch`. The last block of the file may be shorter.
    ///
    /// A file of one block has a block hash like any other; it differs from the digest, which merges two hashes or
    /// more.
    ///
    /// Blocks may be longer than `scratch` in [`HashMode::SkipZeros`]: the hash of such a block is [`ZERO_DIGEST`]
    /// where it is found to be all zeros, and `None` otherwise.
    ///
    /// # Errors
    /// `block` is no power of two (of 1 KiB at least) or too long, `offset` is not the start of a block, the range is
    /// beyond the file, or a read fails. A missing file is no error.
    pub fn hash_blocks(
        &self,
        entry: &Entry,
        (offset, length): (u64, u64),
        block: u64,
        scratch: &mut [u8],
    ) -> Result<Vec<BlockHashes>> {
        let failed = |errno| self.error("compare", &entry.path, errno);
        let end = offset.checked_add(length).filter(|end| *end <= entry.size());
        let hashing = self.rules.hash_mode();
        let long = block > scratch.len() as u64;
        let sound = block.is_power_of_two()
            && block >= MIN_BLOCK_BYTES
            && (!long || hashing == HashMode::SkipZeros && !scratch.is_empty());
        let (Some(end), true) = (end, sound && offset.is_multiple_of(block.max(1))) else {
            return Err(failed(Errno::INVAL));
        };
        let count = length.div_ceil(block);
        if count > MAX_BLOCKS {
            return Err(failed(Errno::INVAL));
        }
        let place = match self.tree.locate(&entry.path) {
            Ok(place) => place,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                return Ok((0..count).map(|_| BlockHashes::default()).collect());
            }
            Err(errno) => return Err(failed(errno)),
        };
        let open = |name: &[u8]| -> Result<Option<OpenFile>> {
            let file = self.open_regular_file(&place.dir, name).map_err(failed)?;
            if let Some(file) = &file {
                self.advise_sequential_read(&file.fd, offset, length).map_err(failed)?;
            }
            Ok(file)
        };
        // A foreign owner can change the file at any time: it is no basis.
        let basis =
            open(place.name)?.filter(|file| self.is_trusted(&place.dir, &file.stat, &entry.meta));
        let part = open(&self.part_file_name(entry))?
            .filter(|file| self.is_own_part(&place.dir, &file.stat));

        let mut value = |file: &Option<OpenFile>, from, to| match file {
            Some(file) if long => Ok(file.is_all_zero(from, to, scratch)?.then_some(ZERO_DIGEST)),
            Some(file) => file.hash_block(from, to, hashing, scratch),
            None => Ok(None),
        };
        (0..count)
            .map(|at| {
                let from = offset + at * block;
                let to = from.saturating_add(block).min(end);
                let written = !long && part.as_ref().is_some_and(|part| part.has_data(from, to));
                Ok(BlockHashes {
                    part: if written { value(&part, from, to).map_err(failed)? } else { None },
                    basis: value(&basis, from, to).map_err(failed)?,
                })
            })
            .collect()
    }

    /// Sets the metadata of the file at `entry`'s path, after its content was compared and is equal. Returns
    /// [`EntryAction::Skip`] where they were right, [`EntryAction::Metadata`] otherwise.
    ///
    /// # Errors
    /// It is missing, no regular file or of another length; its metadata can't be set.
    pub fn repair_metadata_in_place(&self, entry: &Entry) -> Result<EntryAction> {
        let path = &entry.path;
        let failed = |cause| self.error("set metadata of", path, cause);
        let place = self.tree.locate(path).map_err(|e| failed(e.into()))?;
        let stat = self.with_writable_dir(&place.dir, || lstat(&place.dir, place.name));
        let stat = stat.map_err(|e| failed(e.into()))?;
        self.tree.check_spelling(&place.dir, place.name).map_err(|e| failed(e.into()))?;
        if type_of(&stat) != FileType::RegularFile {
            return Err(failed(Cause::NotRegularFile));
        }
        let (expected, found) = (entry.size(), size_of(&stat));
        if found != expected {
            return Err(failed(Cause::WrongSize { expected, found }));
        }
        Ok(match self.repair_metadata(&place, &stat, entry).map_err(failed)? {
            MetadataRepair::InPlace(action) => action,
            MetadataRepair::NeedsReplacement => {
                if !self.rules.dry_run {
                    self.replace_with_copy(entry, &place)?;
                }
                EntryAction::Metadata
            }
            // Another file was compared.
            MetadataRepair::ForeignOwner => return Err(failed(Cause::PartDataLost)),
        })
    }

    /// Replaces a file that must not get other metadata, because of another name of it or of its owner, by a copy.
    fn replace_with_copy(&self, entry: &Entry, place: &ParentAndName<'_>) -> Result<()> {
        let failed = |errno| self.error("read", &entry.path, errno);
        let old = self.open_regular_file(&place.dir, place.name).map_err(failed)?;
        let old = old.ok_or_else(|| failed(Errno::NOENT))?;
        let mut copy = self.create(entry, 0)?;
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut at = 0;
        while at < size_of(&old.stat) {
            let n = read_full_at(&old.fd, &mut buffer, at).map_err(failed)?;
            if n == 0 {
                break;
            }
            copy.write(&buffer[..n])?;
            at += n as u64;
        }
        copy.publish(entry)
    }

    /// Length and digest of the regular file at `place`; `None` where there is none.
    ///
    /// # Errors
    /// It can't be read, or changed during the read (`EBUSY`).
    pub(super) fn hash_file(&self, place: &ParentAndName<'_>) -> SysResult<Option<(u64, Digest)>> {
        let Some(OpenFile { fd, stat }) = self.open_regular_file(&place.dir, place.name)? else {
            return Ok(None);
        };
        let size = size_of(&stat);
        self.advise_sequential_read(&fd, 0, size)?;
        let hasher = hash_range(&fd, 0..size, self.rules.hash_mode())?.ok_or(Errno::BUSY)?;
        if size_of(&rustix::fs::fstat(&fd)?) != size {
            return Err(Errno::BUSY);
        }
        Ok(Some((size, hasher.digest())))
    }

    /// Opens the regular file `name`; `None` where there is none.
    fn open_regular_file(&self, dir: &DirHandle, name: &[u8]) -> SysResult<Option<OpenFile>> {
        let open = || {
            // Devices are not opened.
            if type_of(&lstat(dir, name)?) != FileType::RegularFile {
                return Ok(None);
            }
            rustix::fs::openat(dir, name, READ_FLAGS, Mode::empty()).map(Some)
        };
        let fd = match self.with_writable_dir(dir, open) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) | Ok(None) => return Ok(None),
            Ok(Some(fd)) => fd,
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok((type_of(&stat) == FileType::RegularFile).then_some(OpenFile { fd, stat }))
    }

    /// Advises the kernel of a sequential read. With `readback`, the bytes are then read from the disk and not from
    /// the page cache.
    fn advise_sequential_read(&self, fd: &OwnedFd, offset: u64, length: u64) -> SysResult<()> {
        let _ = rustix::fs::fadvise(fd, offset, NonZeroU64::new(length), Advice::Sequential);
        if self.rules.readback || self.suspect_span.is_some() {
            // Dirty pages would stay in the cache.
            rustix::fs::fdatasync(fd)?;
            rustix::fs::fadvise(fd, offset, NonZeroU64::new(length), Advice::DontNeed)?;
        }
        Ok(())
    }
}

impl OpenFile {
    /// The hash of the bytes between; `None` where the file ends before.
    fn hash_block(
        &self,
        from: u64,
        to: u64,
        hashing: HashMode,
        buffer: &mut [u8],
    ) -> SysResult<Option<Digest>> {
        let wanted = usize::try_from(to - from).map_err(|_| Errno::INVAL)?;
        if size_of(&self.stat) < to {
            return Ok(None);
        }
        match self.has_data(from, to) {
            // Reading a hole costs as much as reading zeros.
            false if hashing == HashMode::SkipZeros => return Ok(Some(ZERO_DIGEST)),
            false => buffer[..wanted].fill(0),
            true if read_full_at(&self.fd, &mut buffer[..wanted], from)? < wanted => {
                return Ok(None);
            }
            true => {}
        }
        Ok(Some(hashing.hash_block(from, &buffer[..wanted])))
    }

    /// Whether the bytes between exist and are all zero, as far as [`MAX_ZERO_SCAN_BYTES`] of data show.
    fn is_all_zero(&self, from: u64, to: u64, buffer: &mut [u8]) -> SysResult<bool> {
        if size_of(&self.stat) < to {
            return Ok(false);
        }
        let mut left = MAX_ZERO_SCAN_BYTES;
        let reached = read_chunks(&self.fd, from..to, buffer, |chunk| match chunk {
            Chunk::Hole(_) => true,
            Chunk::Data(data) => {
                let is_within = data.len() as u64 <= left;
                left = left.saturating_sub(data.len() as u64);
                is_within && is_all_zero(data)
            }
        })?;
        Ok(reached == to)
    }

    /// Whether not all of it is a hole.
    fn has_data(&self, from: u64, to: u64) -> bool {
        match rustix::fs::seek(&self.fd, SeekFrom::Data(from)) {
            Ok(at) => at < to,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => false,
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;
