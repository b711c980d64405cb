//! Large files on their way to their names: one shared part file for each version.
//!
//! Its name is made of the path and the version, not of the sync: what an interrupted sync left is used
//! up by the next one. Two syncs that bring the same version at the same time write the same bytes into
//! one file. The one that commits first publishes it; the other one's writers are told that they were
//! overtaken, and when they try again, what they bring is compared with the published file. If one
//! discards it, the other's commit finds that ranges are lost, and they are sent again.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, Result};
use super::file_io::{
    READ_BUFFER_BYTES, next_data_run, read_full_at, split_zero_runs, write_all_at,
};
use super::fs_type::has_delayed_allocation;
use super::hardlinks::is_same_object;
use super::inode::{has_same_mtime, lstat, size_of, type_of};
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
use crate::wire::options::{Attribute, Compare};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::sync::OnceLock;

/// The part file of one version of a large file. Any number of writers, on any number of hosts, may
/// write ranges of it.
#[derive(Debug)]
pub struct PartFile {
    target: Target,
    path: RelPath,
    dir: DirHandle,
    current_name: Vec<u8>,
    /// What it is going to be called.
    final_name: Vec<u8>,
    fd: OwnedFd,
    /// The file itself, as its name must show it: device and inode.
    inode_id: (u64, u64),
    /// What it is going to have.
    desired_meta: Meta,
    /// The file has its name already: nothing is written to it, only compared.
    published: bool,
    /// The file that has the name now, once it was needed.
    basis: OnceLock<OwnedFd>,
    write_behind: WriteBehind,
    /// Whether this call made it.
    pub created: bool,
}

/// Where a run of bytes that need not be sent is at the destination already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReuseSource {
    /// In the part file.
    PartFile,
    /// At the same offset of the file that has the name now.
    Basis,
}

impl Target {
    /// Opens the part file of `entry`'s version, of its full length; made where it is missing, as are
    /// the directories above it. Where that version has been published (by another sync, or another
    /// attempt), what is written is only compared with it.
    ///
    /// # Errors
    /// The directory can't be made or written to, or the file not made that long.
    pub fn open_part_file(&self, entry: &Entry) -> Result<PartFile> {
        self.prepare_write()?;
        self.retry_with_fresh_cache(|| self.try_open_part_file(entry))
            .map_err(|errno| self.error("open part file of", &entry.path, errno))
    }

    fn try_open_part_file(&self, entry: &Entry) -> SysResult<PartFile> {
        let place = self.locate_or_create_parents(&entry.path)?;
        self.tree.check_spelling_if_exists(&place)?;
        let name = self.part_file_name(entry);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(PART_MODE);
        for _ in 0..4 {
            let open = || rustix::fs::openat(&place.dir, &name, flags, mode);
            let (fd, created) = match self.with_writable_dir(&place.dir, open) {
                Ok(fd) => (fd, false),
                Err(Errno::NOENT) => {
                    if let Some(fd) = self.open_published(&place, entry) {
                        let stat = rustix::fs::fstat(&fd)?;
                        return Ok(self.build_part_file(entry, place, name, fd, &stat, false, true));
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
                // Also one that got its final mode and then not its name, as its agent was killed: its
                // mode may forbid even its owner to write.
                Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR | Errno::ACCESS) => {
                    self.remove_non_directory(&place.dir, &name)?;
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&fd)?;
            // Another user may have put it there, and may have it open.
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
            return Ok(self.build_part_file(entry, place, name, fd, &stat, created, false));
        }
        Err(Errno::EXIST)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one struct")]
    fn build_part_file(
        &self,
        entry: &Entry,
        place: ParentAndName<'_>,
        name: Vec<u8>,
        fd: OwnedFd,
        stat: &Stat,
        created: bool,
        published: bool,
    ) -> PartFile {
        PartFile {
            target: self.clone(),
            path: entry.path.clone(),
            final_name: place.name.to_vec(),
            dir: place.dir,
            current_name: if published { place.name.to_vec() } else { name },
            inode_id: (stat.st_dev, stat.st_ino),
            desired_meta: entry.meta,
            fd,
            published,
            basis: OnceLock::new(),
            write_behind: WriteBehind::default(),
            created,
        }
    }

    /// The file itself, where it is `entry`'s version already and has (or could be given) the metadata of
    /// `entry`: a late writer is not to leave another part file. A file whose metadata may not be changed in
    /// its place is to be replaced, and that takes a part file.
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
        matches!(done, MetadataRepair::Unchanged | MetadataRepair::Repaired).then_some(fd)
    }

    /// Whether size and time tell one version of a file from another.
    fn can_identify_versions(&self) -> bool {
        self.rules.preserve.contains(Attribute::Times) && self.rules.compare != Compare::Checksum
    }

    /// Publishes the part file of `entry`'s version: length checked, metadata set, renamed. With
    /// `ranges` it is made sure that none of them got lost. Doing it twice is no error.
    ///
    /// # Errors
    /// The part file is not there (and the file not published), does not hold the ranges any more,
    /// has another length, or one of the steps fails.
    pub fn publish_part_file(&self, entry: &Entry, ranges: Option<SentRanges<'_>>) -> Result<()> {
        let path = &entry.path;
        let failed = |cause| self.error("publish", path, cause);
        let os = |errno: Errno| failed(errno.into());
        let place = self.locate_or_create_parents(path).map_err(os)?;
        let name = self.part_file_name(entry);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = self.with_writable_dir(&place.dir, || {
            rustix::fs::openat(&place.dir, &name, flags, Mode::empty())
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
        // The name may have been given to another file between.
        if !lstat(&place.dir, place.name).is_ok_and(|there| is_same_object(&there, &stat)) {
            return Err(failed(Cause::Superseded));
        }
        // What the disk has by now.
        drop_cached(&fd, 0, entry.size());
        self.register_anchor(&place.dir, place.name, &fd, entry).map_err(failed)
    }

    /// Whether it is a part file that got all its metadata before its agent was killed: another user who
    /// could open it can open the published file as well.
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

    /// That there is no part file is fine where the file is published: as its size and time tell or,
    /// where they can't, its content. It has the metadata of `entry` then, or is given them.
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
            MetadataRepair::Unchanged | MetadataRepair::Repaired => Ok(()),
            MetadataRepair::NeedsReplacement | MetadataRepair::ForeignOwner => {
                Err(Cause::PartDataLost)
            }
        }
    }

    /// Removes the part file of `entry`'s version; that there is none is no error. The directory keeps
    /// its metadata.
    ///
    /// # Errors
    /// It is there and can't be removed.
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
    /// Writes all of `content` at `offset`. Long runs of zeros become holes, where they shall.
    ///
    /// # Errors
    /// `pwrite` failed; the file does not have its name any more: it was published (and whoever still
    /// writes is late) or removed; it is published with other content.
    pub fn write_at(&self, content: &[u8], offset: u64) -> Result<()> {
        self.while_linked(|| {
            if self.published {
                return self.verify_equal(content, offset);
            }
            for (run, zeros) in split_zero_runs(content, self.target.rules.punch_zeros) {
                let at = offset + run.start as u64;
                // Punched, not skipped: an earlier try at this range may have left other bytes.
                if !(zeros && self.punch_hole(at, run.len() as u64).is_ok()) {
                    write_all_at(&self.fd, &content[run], at)?;
                }
            }
            self.write_behind.record_write(&self.fd, offset, content.len() as u64);
            Ok(())
        })
    }

    /// Has the file system find the blocks for `len` bytes at `offset`, all of which are going to be
    /// written: in one place, where ranges that come at the same time would get them in turn. If there are
    /// not enough, that is known before the content comes. Until they are written they count as a hole.
    ///
    /// # Errors
    /// There are not enough; the file does not have its name any more.
    pub fn reserve_blocks(&self, offset: u64, len: u64) -> Result<()> {
        if self.published || self.target.rules.punch_zeros || !has_delayed_allocation(&self.fd) {
            return Ok(());
        }
        self.while_linked(|| {
            match rustix::fs::fallocate(&self.fd, FallocateFlags::KEEP_SIZE, offset, len) {
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => Err(errno.into()),
                // It can be written all the same.
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
        // No holes here, or none to be made: then whatever is not zero must become so.
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

    /// Takes `len` bytes at `offset` from where they are at the destination. The caller reads them back
    /// to know what they are.
    ///
    /// # Errors
    /// Like [`PartFile::write_at`]; the file that has the name is not there, not to be read, or shorter.
    pub fn reuse_range(&self, offset: u64, len: u64, from: ReuseSource) -> Result<()> {
        self.while_linked(|| match from {
            // It was removed since its blocks were compared, and no digest will tell.
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
            if !self.target.is_trusted_fd(&self.dir, &base, &self.desired_meta)? {
                return Err(Errno::NOENT);
            }
            // Of two that open it at once, one is kept.
            let _ = self.basis.set(base);
        }
        self.basis.get().ok_or(Errno::NOENT)
    }

    /// Runs `step`, if the file still has its name.
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

    /// Fills `buffer` from `offset` on; gives less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        read_full_at(&self.fd, buffer, offset).map_err(|e| self.target.error("read", &self.path, e))
    }

    /// To be called when a range is written, before it is reported: gives the errors that some file
    /// systems keep until a file is closed.
    ///
    /// # Errors
    /// What was written did not reach the server, or the storage path leads elsewhere by now.
    pub fn close(self) -> Result<()> {
        self.target.check_root()?;
        self.write_behind.start_writeback(&self.fd);
        let settled = if self.published { Ok(()) } else { self.target.sync_if_remote(&self.fd) };
        settled.map_err(|e| self.target.error("write", &self.path, e))
    }
}

/// Opens the regular file `name` to read it; nothing is followed, nothing waited for.
pub(super) fn open_regular_file(dir: &DirHandle, name: &[u8]) -> SysResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if type_of(&rustix::fs::fstat(&fd)?) != FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    Ok(fd)
}

/// Copies from `start` to `end`, by sharing the blocks where the file system can.
fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> CauseResult<()> {
    let mut at = start;
    while at < end {
        let (mut off_in, mut off_out) = (at, at);
        let left = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), left) {
            Ok(n) if n > 0 => at += n as u64,
            Err(Errno::INTR) => {}
            Err(errno @ (Errno::IO | Errno::NOSPC | Errno::DQUOT)) => return Err(errno.into()),
            // It can't be done so, or not by this kernel.
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
