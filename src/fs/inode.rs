//! Conversion of inode metadata between `stat` and the wire, and how it is set: always on an open descriptor, so that
//! a swapped name can't apply an owner or a mode to another file.

use super::errno::SysResult;
use crate::wire::manifest::{EntryKind, FileVersion, Meta};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

/// `0o7777` of the mode, owner, group and mtime.
pub(super) fn meta_of(stat: &Stat) -> Meta {
    Meta {
        mode: mode_of(stat),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_sec: stat.st_mtime,
        mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

pub(super) fn ident_of(stat: &Stat) -> FileVersion {
    FileVersion {
        dev: stat.st_dev,
        ino: stat.st_ino,
        ctime_sec: stat.st_ctime,
        ctime_nsec: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
    }
}

pub(super) fn type_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The permission bits with set-uid, set-gid and sticky.
pub(super) fn mode_of(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

/// Bytes that a file with holes takes on its disk; `None` for objects without holes.
pub(super) fn stored_bytes_of(stat: &Stat) -> Option<u64> {
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    (type_of(stat) == FileType::RegularFile && stored < size_of(stat)).then_some(stored)
}

/// `lstat` of a name in a directory.
pub(super) fn lstat(dir: impl AsFd, name: &[u8]) -> SysResult<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Whether both are of one object.
pub(super) fn is_same_object(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Whether the object `name` in `dir` with this lstat has the length of a file, the text of a link or the device number
/// of `kind`. The content of files is not compared; directories are never the same.
pub(super) fn has_same_kind(dir: impl AsFd, name: &[u8], stat: &Stat, kind: &EntryKind) -> bool {
    let file_type = type_of(stat);
    match kind {
        EntryKind::File { size } => file_type == FileType::RegularFile && size_of(stat) == *size,
        EntryKind::Symlink { target } => {
            file_type == FileType::Symlink
                && rustix::fs::readlinkat(dir, name, Vec::new())
                    .is_ok_and(|there| there.as_bytes() == target)
        }
        EntryKind::Special { format, rdev } => {
            stat.st_mode & 0o170_000 == *format && (!is_device(file_type) || stat.st_rdev == *rdev)
        }
        EntryKind::Dir => false,
    }
}

pub(super) fn is_device(file_type: FileType) -> bool {
    matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice)
}

pub(super) fn has_same_mtime(stat: &Stat, meta: &Meta) -> bool {
    let there = meta_of(stat);
    (there.mtime_sec, there.mtime_nsec) == (meta.mtime_sec, meta.mtime_nsec)
}

/// The difference of the mtimes of `stat` and `meta`, in nanoseconds.
pub(super) fn mtime_delta_ns(stat: &Stat, meta: &Meta) -> u128 {
    let nanos = |sec: i64, nsec: u32| i128::from(sec) * 1_000_000_000 + i128::from(nsec);
    let there = meta_of(stat);
    let there = nanos(there.mtime_sec, there.mtime_nsec);
    there.abs_diff(nanos(meta.mtime_sec, meta.mtime_nsec))
}

/// An owner and a group to set; `None` leaves it unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct OwnerChange {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

pub(super) fn chown(fd: BorrowedFd<'_>, owner: OwnerChange) -> SysResult<()> {
    let (uid, gid) = (owner.uid.map(Uid::from_raw), owner.gid.map(Gid::from_raw));
    rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// Sets the mode on any descriptor, also one with `O_PATH`.
pub(super) fn chmod(fd: BorrowedFd<'_>, mode: u32) -> SysResult<()> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::fchmod(fd, mode) {
        Err(Errno::BADF) => rustix::fs::chmodat(CWD, proc_path(fd, b""), mode, AtFlags::empty()),
        other => other,
    }
}

/// The times of a call that leaves the access time unchanged.
pub(super) fn only_mtime(tv_sec: i64, tv_nsec: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec },
    }
}

pub(super) fn set_mtime(fd: BorrowedFd<'_>, meta: &Meta) -> SysResult<()> {
    // Greater numbers are special to the kernel (`UTIME_NOW`, `UTIME_OMIT`).
    if meta.mtime_nsec > 999_999_999 {
        return Err(Errno::INVAL);
    }
    let times = only_mtime(meta.mtime_sec, meta.mtime_nsec.into());
    match rustix::fs::futimens(fd, &times) {
        Err(Errno::BADF) => {}
        other => return other,
    }
    match rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH) {
        // Kernels before 5.8 reject the flag here.
        Err(Errno::INVAL) => {
            rustix::fs::utimensat(CWD, proc_path(fd, b""), &times, AtFlags::empty())
        }
        other => other,
    }
}

/// The kernel's path of an open descriptor.
pub(super) fn kernel_path(fd: BorrowedFd<'_>) -> SysResult<Vec<u8>> {
    Ok(rustix::fs::readlink(proc_path(fd, b""), Vec::new())?.into_bytes())
}

/// The path under `/proc` of an open descriptor, or of a name in it.
pub(super) fn proc_path(fd: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_nanosecond_values_are_rejected() {
        let file = tempfile::tempfile().unwrap();
        let meta = Meta { mode: 0o600, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 1_073_741_822 };
        assert_eq!(set_mtime(file.as_fd(), &meta), Err(Errno::INVAL));
    }
}
