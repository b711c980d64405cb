//! Which objects are trusted at a destination to which other users of the host may write.
//!
//! A user with write access to a directory can create a file at any name in it, of any length and mtime, keep it
//! open, and read or write it whatever owner and mode it gets later. So content found under a name gets neither owner
//! nor mode and does not count as equal, unless the object belongs to this process or to its desired owner.
//!
//! Directories differ: their entries are checked one by one, and an open descriptor of a directory grants nothing
//! beyond its mode. A foreign directory is repaired in place.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::fs_type::keeps_owners;
use super::inode::{meta_of, mode_of, set_mtime, type_of};
use super::target::{CreatedOwner, Target};
use crate::wire::RelPath;
use crate::wire::manifest::Meta;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The mode of a part file until its metadata is set: no other user can open it.
pub(super) const PART_MODE: u32 = 0o600;

impl Target {
    /// Whether the object of `stat` in `dir` belongs to this process, to the desired owner of an entry with `meta`,
    /// or to the owner that the file system gives to objects of this process.
    pub(super) fn is_trusted(&self, dir: &DirHandle, stat: &Stat, meta: &Meta) -> bool {
        self.policy.desired_owner(meta).uid == Some(stat.st_uid)
            || self.is_created_by_process(dir, stat)
    }

    /// Whether the object of `stat` in `dir` has the owner of objects that this process creates there.
    pub(super) fn is_created_by_process(&self, dir: &DirHandle, stat: &Stat) -> bool {
        stat.st_uid == self.policy.euid
            || self.probe_created_owner(dir).is_ok_and(|owner| owner.uid == stat.st_uid)
    }

    /// Whether the object of `stat` in `dir` is an unfinished file of this process or of another one of the same user
    /// that no other user could open: a regular file without another name and with the mode of its creation.
    pub(super) fn is_own_part(&self, dir: &DirHandle, stat: &Stat) -> bool {
        if type_of(stat) != FileType::RegularFile || stat.st_nlink != 1 {
            return false;
        }
        let found = CreatedOwner { uid: stat.st_uid, mode: mode_of(stat) };
        found == self.expected_owner()
            || self.probe_created_owner(dir).is_ok_and(|owner| owner == found)
    }

    fn expected_owner(&self) -> CreatedOwner {
        CreatedOwner { uid: self.policy.euid, mode: PART_MODE }
    }

    /// The owner and mode that the file system of `dir` reports for a new file of this process, by device. Probed
    /// only for objects of another owner: network file systems and those without owners map all owners.
    fn probe_created_owner(&self, dir: &DirHandle) -> SysResult<CreatedOwner> {
        let stat = rustix::fs::fstat(dir)?;
        if self.rules.dry_run {
            // A dry run creates nothing. Without owners, a directory has the same one.
            return Ok(match keeps_owners(dir) {
                true => self.expected_owner(),
                false => CreatedOwner { uid: stat.st_uid, mode: PART_MODE },
            });
        }
        let known = || self.state.created_owners.lock();
        if let Some(owner) = known().get(&stat.st_dev) {
            return Ok(*owner);
        }
        let made = rustix::fs::fstat(self.create_probe_file(dir, &stat)?)?;
        let owner = CreatedOwner { uid: made.st_uid, mode: mode_of(&made) };
        known().insert(stat.st_dev, owner);
        Ok(owner)
    }

    /// Creates a file without a name, or removes its name again.
    fn create_probe_file(&self, dir: &DirHandle, before: &Stat) -> SysResult<OwnedFd> {
        let mode = Mode::from_raw_mode(PART_MODE);
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        match self.with_writable_dir(dir, || rustix::fs::openat(dir, ".", flags, mode)) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {}
            other => return other,
        }
        let name = self.temp_file_name(&RelPath::root(), u32::MAX, std::process::id());
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rustix::fs::openat(dir, &name, flags, mode);
        let made = self.create_replacing(dir, &name, make)?;
        rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        // This batch may not set the metadata of the directory.
        set_mtime(dir.as_fd(), &meta_of(before))?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests;
