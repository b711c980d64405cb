//! Large files on their way to their names: one shared part file for each version.
//!
//! Its name is made of path and version, not of the sync: what an interrupted sync left is reused by the next one.
//! Two syncs of the same version write the same bytes into one file. The first commit publishes it; writers of the
//! other sync fail as superseded, and their retry compares its content with the published file. If one sync removes
//! the part file, the commit of the other one finds missing ranges, and they are sent again.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, Result};
use super::file_io::{
    READ_BUFFER_BYTES, READ_FLAGS, next_data_run, read_full_at, split_zero_runs, write_all_at,
};
use super::fs_type::has_delayed_allocation;
use super::inode::{has_same_mtime, is_same_object, lstat, size_of, type_of};
use super::metadata::ObjectOrigin;
use super::ownership::PART_MODE;
use super::page_cache::{WriteBehind, drop_cached};
use super::part_verify::SentRanges;
use super::root::ParentAndName;
use super::special_files::MetadataRepair;
use super::target::Target;
use super::xattr::XattrObject;
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, Meta};
use crate::wire::options::Compare;
use crate::wire::preserve::Attribute;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::sync::OnceLock;

/// The part file of one version of a large file. Any number of writers on any number of hosts may write ranges of it.
#[derive(Debug)]
pub struct PartFile {
    target: Target,
    path: RelPath,
    dir: DirHandle,
    current_name: Vec<u8>,
    /// What it is going to be called.
    final_name: Vec<u8>,
    fd: OwnedFd,
    /// Device and inode that its name must show.
    inode_id: (u64, u64),
    /// The metadata of the published file.
    desired_meta: Meta,
    /// It is published already: writes only compare.
    published: bool,
    /// The file with the final name, opened on first use.
    basis: OnceLock<OwnedFd>,
    write_behind: WriteBehind,
    /// Whether this call created it.
    pub created: bool,
}

/// Where the destination already has a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReuseSource {
    /// In the part file.
    PartFile,
    /// At the same offset of the file with the final name.
    Basis,
}

impl Target {
    /// Opens the part file of `entry`'s version at its full length; it and its parent directories are created if
    /// missing. If that version is already published, by another sync or attempt, writes are only compared with it.
    ///
    /// # Errors
    /// The directory can't be created or written to, or the file not be extended.
    pub fn open_part_file(&self, entry: &Entry) -> Result<PartFile> {
        self.prepare_write()?;
        self.retry_with_fresh_cache(|| self.try_open_part_file(entry))
            .map_err(|errno| self.error("open part file of", &entry.path, errno))
    }

    fn try_open_part_file(&self, entry: &Entry) -> SysResult<PartFile> {
        let place = self.locate_or_create_parents(&entry.path)?;
        self.tree.check_spelling_if_exists(&place)?;
        let name = self.part_file_name(entry);
        let part_file = |current_name: &[u8], fd, stat: &Stat, created, published| PartFile {
            target: self.clone(),
            path: entry.path.clone(),
            dir: place.dir.clone(),
            current_name: current_name.to_vec(),
            final_name: place.name.to_vec(),
            fd,
            inode_id: (stat.st_dev, stat.st_ino),
            desired_meta: entry.meta,
            published,
            basis: OnceLock::new(),
            write_behind: WriteBehind::default(),
            created,
        };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(PART_MODE);
        for _ in 0..4 {
            let open = || rustix::fs::openat(&place.dir, &name, flags, mode);
            let (fd, created) = match self.with_writable_dir(&place.dir, open) {
                Ok(fd) => (fd, false),
                Err(Errno::NOENT) => {
                    if let Some(fd) = self.open_published(&place, entry) {
                        let stat = rustix::fs::fstat(&fd)?;
                        return Ok(part_file(place.name, fd, &stat, false, true));
                    }
                    let make = || {
                        let flags = flags | OFlags::CREATE | OFlags::EXCL;
                        rustix::fs::openat(&place.dir, &name, flags, mode)
                    };
                    match self.with_writable_dir(&place.dir, make) {
                        Ok(fd) => (fd, true),
                        Err(Errno::EXIST) => continue,
                        Err(errno) => return Err(errno),
                    }
                }
                // Also one with its final mode but not its name, because its agent was killed: the mode may forbid
                // writes.
                Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::ACCESS) => {
                    self.remove_non_directory(&place.dir, &name)?;
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&fd)?;
            // Another user may have created it, and may have it open.
            if !created && !self.is_own_part(&place.dir, &stat) {
                tracing::warn!(
                    path = %entry.path, uid = stat.st_uid, mode = format!("{:o}", stat.st_mode & 0o7777),
                    "a part file that this agent did not make is removed"
                );
                self.remove_non_directory(&place.dir, &name)?;
                continue;
            }
            if size_of(&stat) != entry.size() {
                rustix::fs::ftruncate(&fd, entry.size())?;
            }
            return Ok(part_file(&name, fd, &stat, created, false));
        }
        Err(Errno::EXIST)
    }

    /// The published file, where it is `entry`'s version and has (or can get) its metadata: a late writer must not
    /// leave another part file. `None` for a file that has to be replaced to change its metadata: that needs a part
    /// file.
    fn open_published(&self, place: &ParentAndName<'_>, entry: &Entry) -> Option<OwnedFd> {
        if !self.can_identify_versions() {
            return None;
        }
        let fd = open_regular_file(&place.dir, place.name).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        if !is_version_of_entry(&stat, entry) || self.is_suspect(&stat) {
            return None;
        }
        let done = self.repair_metadata(place, &stat, entry).ok()?;
        matches!(done, MetadataRepair::InPlace(_)).then_some(fd)
    }

    /// Whether size and mtime identify a version.
    fn can_identify_versions(&self) -> bool {
        self.rules.preserve.contains(Attribute::Times) && self.rules.compare != Compare::Checksum
    }

    /// Publishes the part file of `entry`'s version: checks its length, sets its metadata, renames it. With `ranges`
    /// it is verified that none of them is missing. Repeating it is no error.
    ///
    /// # Errors
    /// The part file is missing (and the file not published), lacks ranges, has another length, or one of the steps
    /// fails.
    pub fn publish_part_file(&self, entry: &Entry, ranges: Option<SentRanges<'_>>) -> Result<()> {
        let path = &entry.path;
        let failed = |cause| self.error("publish", path, cause);
        let os = |errno: Errno| failed(errno.into());
        let place = self.locate_or_create_parents(path).map_err(os)?;
        let name = self.part_file_name(entry);
        let opened = self.with_writable_dir(&place.dir, || {
            rustix::fs::openat(&place.dir, &name, READ_FLAGS, Mode::empty())
        });
        let fd = match opened {
            Err(Errno::NOENT) => {
                return self.verify_published(&place, entry, ranges).map_err(failed);
            }
            other => other.map_err(os)?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(os)?;
        if !self.is_own_part(&place.dir, &stat)
            && !self.is_finished_part_file(&place, &fd, &stat, entry)
        {
            return Err(failed(Cause::PartDataLost));
        }
        self.verify_size(entry, size_of(&stat))?;
        if let Some(ranges) = ranges
            && !ranges.are_in(&fd, entry.size(), false).map_err(os)?
        {
            return Err(failed(Cause::PartDataLost));
        }
        let origin =
            ObjectOrigin::Created(self.stat_replaced_file(&place.dir, place.name, &entry.meta));
        self.policy.apply(&fd, &entry.into(), origin).map_err(failed)?;
        self.check_root()?;
        self.rename_into_place(&place.dir, &name, place.name).map_err(failed)?;
        // Another file may have got the name in between.
        if !lstat(&place.dir, place.name).is_ok_and(|there| is_same_object(&there, &stat)) {
            return Err(failed(Cause::Superseded));
        }
        // What is on the disk by now.
        drop_cached(&fd, 0, entry.size());
        self.register_anchor(&place.dir, place.name, &fd, entry).map_err(failed)
    }

    /// Whether it is a part file that got all its metadata before its agent was killed: a user that can open it can
    /// open the published file as well.
    fn is_finished_part_file(
        &self,
        place: &ParentAndName<'_>,
        fd: &OwnedFd,
        stat: &Stat,
        entry: &Entry,
    ) -> bool {
        type_of(stat) == FileType::RegularFile
            && stat.st_nlink == 1
            && self.is_trusted(&place.dir, stat, &entry.meta)
            && self.policy.preserves(Attribute::Mode)
            && self.policy.needs_repair(XattrObject::Open(fd.as_fd()), stat, &entry.into())
                == Ok(false)
    }

    /// A missing part file is no error if the file is published, by its size and mtime or, where they can't identify
    /// it, its content. Its metadata is repaired if needed.
    fn verify_published(
        &self,
        place: &ParentAndName<'_>,
        entry: &Entry,
        ranges: Option<SentRanges<'_>>,
    ) -> CauseResult<()> {
        let stat = match lstat(&place.dir, place.name) {
            Ok(stat) if type_of(&stat) == FileType::RegularFile => stat,
            _ => return Err(Cause::PartDataLost),
        };
        self.tree.check_spelling(&place.dir, place.name)?;
        if !self.is_trusted(&place.dir, &stat, &entry.meta) {
            return Err(Cause::PartDataLost);
        }
        if !(self.can_identify_versions() && is_version_of_entry(&stat, entry)) {
            let fd = open_regular_file(&place.dir, place.name).map_err(|_| Cause::PartDataLost)?;
            let whole = match ranges {
                Some(ranges) if size_of(&stat) == entry.size() => {
                    ranges.are_in(&fd, entry.size(), true)?
                }
                _ => false,
            };
            if !whole {
                return Err(Cause::PartDataLost);
            }
        }
        match self.repair_metadata(place, &stat, entry)? {
            MetadataRepair::InPlace(_) => Ok(()),
            MetadataRepair::NeedsReplacement | MetadataRepair::ForeignOwner => {
                Err(Cause::PartDataLost)
            }
        }
    }

    /// Removes the part file of `entry`'s version, if there is one. The directory keeps its metadata.
    ///
    /// # Errors
    /// It exists and can't be removed.
    pub fn remove_part_file(&self, entry: &Entry) -> Result<()> {
        let name = self.part_file_name(entry);
        let place = self.tree.locate(&entry.path);
        let gone = place.and_then(|place| self.unlink_keeping_dir_metadata(&place.dir, &name));
        match gone {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(self.error("remove part file of", &entry.path, errno)),
        }
    }
}

impl PartFile {
    /// Writes all of `content` at `offset`. Long runs of zeros become holes, if enabled.
    ///
    /// # Errors
    /// `pwrite` failed; the file lost its name, because it was published or removed; it is published with other
    /// content.
    pub fn write_at(&self, content: &[u8], offset: u64) -> Result<()> {
        self.while_linked(|| {
            if self.published {
                return self.verify_equal(content, offset);
            }
            for (run, zeros) in split_zero_runs(content, self.target.rules.punch_zeros) {
                let at = offset + run.start as u64;
                // Punched, not skipped: an earlier attempt may have written other bytes.
                if !(zeros && self.punch_hole(at, run.len() as u64).is_ok()) {
                    write_all_at(&self.fd, &content[run], at)?;
                }
            }
            self.write_behind.record_write(&self.fd, offset, content.len() as u64);
            Ok(())
        })
    }

    /// Reserves blocks for `len` bytes at `offset` that are going to be written: contiguous, where concurrent ranges
    /// would interleave. Missing space is detected before the content comes. Until they are written, reserved blocks
    /// count as a hole.
    ///
    /// # Errors
    /// There is not enough space; the file lost its name.
    pub fn reserve_blocks(&self, offset: u64, len: u64) -> Result<()> {
        if self.published || self.target.rules.punch_zeros || !has_delayed_allocation(&self.fd) {
            return Ok(());
        }
        self.while_linked(|| {
            match rustix::fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len) {
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(errno.into()),
                // Writing is possible all the same.
                Ok(()) | Err(_) => Ok(()),
            }
        })
    }

    /// Makes `len` bytes at `offset` a hole.
    ///
    /// # Errors
    /// Like [`PartFile::write_at`].
    pub fn write_hole(&self, offset: u64, len: u64) -> Result<()> {
        self.while_linked(|| self.zero_range(offset, len))
    }

    fn zero_range(&self, offset: u64, len: u64) -> CauseResult<()> {
        let end = offset + len;
        if len == 0 || !self.published && self.punch_hole(offset, len).is_ok() {
            return Ok(());
        }
        // No hole can be made: existing data becomes zeros.
        let zeros = vec![0; READ_BUFFER_BYTES];
        let mut at = offset;
        while let Some((start, stop)) = next_data_run(&self.fd, at, end)? {
            at = start;
            while at < stop {
                let n = usize::try_from(stop - at)
                    .map_or(READ_BUFFER_BYTES, |n| n.min(READ_BUFFER_BYTES));
                match self.published {
                    true => self.verify_equal(&zeros[..n], at)?,
                    false => write_all_at(&self.fd, &zeros[..n], at)?,
                }
                at += n as u64;
            }
        }
        Ok(())
    }

    /// Reuses `len` bytes at `offset` that the destination has. The caller reads them back to verify them.
    ///
    /// # Errors
    /// Like [`PartFile::write_at`]; the file with the final name is missing, unreadable or shorter.
    pub fn reuse_range(&self, offset: u64, len: u64, from: ReuseSource) -> Result<()> {
        self.while_linked(|| match from {
            // It was removed since its blocks were compared, and no digest will show that.
            ReuseSource::PartFile if self.created && !self.target.rules.requires_digest => {
                Err(Cause::PartDataLost)
            }
            ReuseSource::PartFile => Ok(()),
            ReuseSource::Basis if self.published => Ok(()),
            ReuseSource::Basis => self.copy_from_basis(offset, len),
        })
    }

    fn copy_from_basis(&self, offset: u64, len: u64) -> CauseResult<()> {
        let base = self.basis()?;
        let (end, found) = (offset + len, size_of(&rustix::fs::fstat(base)?));
        if found < end {
            return Err(Cause::WrongSize { expected: end, found });
        }
        let mut at = offset;
        while at < end {
            let (start, stop) = next_data_run(base, at, end)?.unwrap_or((end, end));
            self.zero_range(at, start - at)?;
            copy_range(base, &self.fd, start, stop)?;
            at = stop;
        }
        Ok(())
    }

    fn basis(&self) -> SysResult<&OwnedFd> {
        if self.basis.get().is_none() {
            let base = open_regular_file(&self.dir, &self.final_name)?;
            let stat = rustix::fs::fstat(&base)?;
            if !self.target.is_trusted(&self.dir, &stat, &self.desired_meta) {
                return Err(Errno::NOENT);
            }
            // Of two concurrent openers, one is kept.
            let _ = self.basis.set(base);
        }
        self.basis.get().ok_or(Errno::NOENT)
    }

    /// Runs `step` if the file still has its name.
    fn while_linked(&self, step: impl FnOnce() -> CauseResult<()>) -> Result<()> {
        let here = lstat(&self.dir, &self.current_name)
            .is_ok_and(|there| (there.st_dev, there.st_ino) == self.inode_id);
        let done = if here { step() } else { Err(Cause::Superseded) };
        done.map_err(|cause| self.target.error("write", &self.path, cause))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> SysResult<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.fd, flags, offset, len)
    }

    fn verify_equal(&self, content: &[u8], offset: u64) -> CauseResult<()> {
        let mut there = vec![0; content.len()];
        let n = read_full_at(&self.fd, &mut there, offset)?;
        if there[..n] == *content { Ok(()) } else { Err(Cause::Superseded) }
    }

    /// Fills `buffer` from `offset` on; returns less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        read_full_at(&self.fd, buffer, offset).map_err(|e| self.target.error("read", &self.path, e))
    }

    /// To be called after a range is written, before it is reported: returns the errors that some file systems report
    /// only at close.
    ///
    /// # Errors
    /// The content did not reach the server, or the path of the storage root leads elsewhere by now.
    pub fn close(self) -> Result<()> {
        self.target.check_root()?;
        self.write_behind.start_writeback(&self.fd);
        let settled = if self.published { Ok(()) } else { self.target.sync_if_remote(&self.fd) };
        settled.map_err(|e| self.target.error("write", &self.path, e))
    }
}

/// Opens the regular file `name` to read it, without following links or blocking.
pub(super) fn open_regular_file(dir: &DirHandle, name: &[u8]) -> SysResult<OwnedFd> {
    let fd = rustix::fs::openat(dir, name, READ_FLAGS, Mode::empty())?;
    if type_of(&rustix::fs::fstat(&fd)?) != FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    Ok(fd)
}

/// Copies from `start` to `end`, sharing the blocks where the file system can.
fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> CauseResult<()> {
    let mut at = start;
    while at < end {
        let (mut off_in, mut off_out) = (at, at);
        let left = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), left) {
            Ok(n) if n > 0 => at += n as u64,
            Err(Errno::INTR) => {}
            Err(errno @ (Errno::IO | Errno::NOSPC | Errno::DQUOT)) => return Err(errno.into()),
            // Not supported here.
            Ok(_) | Err(_) => return copy_range_buffered(from, to, at, end),
        }
    }
    Ok(())
}

fn copy_range_buffered(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> CauseResult<()> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut at = start;
    while at < end {
        let wanted =
            usize::try_from(end - at).map_or(READ_BUFFER_BYTES, |n| n.min(READ_BUFFER_BYTES));
        let n = read_full_at(from, &mut buffer[..wanted], at)?;
        if n == 0 {
            return Err(Cause::WrongSize { expected: end, found: at });
        }
        write_all_at(to, &buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// Whether this is `entry`'s version of its file.
fn is_version_of_entry(stat: &Stat, entry: &Entry) -> bool {
    type_of(stat) == FileType::RegularFile
        && size_of(stat) == entry.size()
        && has_same_mtime(stat, &entry.meta)
}

#[cfg(test)]
mod tests;
