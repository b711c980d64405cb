//! Metadata between the kernel's form and the wire's, and how it is set: always on an open
//! descriptor, so that a name swapped meanwhile can't draw an owner or a mode onto another file.

use crate::wire::RelPath;
use crate::wire::manifest::{Entry, Ident, Kind, Meta};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

/// `0o7777` and the rest of what is preserved.
pub(super) fn meta_of(stat: &Stat) -> Meta {
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_sec: stat.st_mtime,
        mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

pub(super) fn ident_of(stat: &Stat) -> Ident {
    Ident {
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

/// The entry for what `name` in `dir` is: `stat` is its lstat, a link's text is read here.
pub(super) fn entry_of(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: RelPath,
    stat: &Stat,
) -> Result<Entry, Errno> {
    let kind = match type_of(stat) {
        FileType::RegularFile => Kind::File { size: size_of(stat) },
        FileType::Directory => Kind::Dir,
        FileType::Symlink => {
            let room = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(4096) + 1);
            Kind::Symlink { target: rustix::fs::readlinkat(dir, name, room)?.into_bytes() }
        }
        _ => Kind::Special { format: stat.st_mode & 0o170_000, rdev: stat.st_rdev },
    };
    Ok(Entry::new(path, kind, meta_of(stat), ident_of(stat)))
}

/// `lstat` of a name in a directory.
pub(super) fn lstat(dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// What of the metadata this process can and shall set.
#[derive(Debug)]
pub(super) struct Policy {
    /// Owners are set (the process is root, or as good as).
    set_owner: bool,
    /// The file system would not take an owner from us (NFS with `root_squash`, an unmapped id in a
    /// user namespace): from then on as if `set_owner` were off.
    refused: AtomicBool,
    pub(super) euid: u32,
    egid: u32,
}

impl Policy {
    pub(super) fn new(set_owner: bool) -> Self {
        Policy {
            set_owner,
            refused: AtomicBool::new(false),
            euid: rustix::process::geteuid().as_raw(),
            egid: rustix::process::getegid().as_raw(),
        }
    }

    fn owners(&self) -> bool {
        self.set_owner && !self.refused.load(Ordering::Relaxed)
    }

    /// The mode that an entry gets. Set-uid and set-gid on a file are only given together with the
    /// owner that they speak of: another owner would hand *his* rights to everybody.
    pub(super) fn mode(&self, meta: &Meta, file_type: FileType) -> u32 {
        let foreign = !self.owners() && (meta.uid, meta.gid) != (self.euid, self.egid);
        if foreign && file_type != FileType::Directory {
            meta.mode & 0o1777
        } else {
            meta.mode & 0o7777
        }
    }

    /// Whether `stat` has the owner and mode of `meta`, as far as they are ours to set.
    pub(super) fn same_access(&self, stat: &Stat, meta: &Meta) -> bool {
        let file_type = type_of(stat);
        let mode =
            file_type == FileType::Symlink || stat.st_mode & 0o7777 == self.mode(meta, file_type);
        mode && (!self.owners() || (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid))
    }

    /// Gives an object that this process just made its metadata: owner, then mode (a change of owner
    /// clears set-uid), then time.
    pub(super) fn dress(
        &self,
        fd: impl AsFd,
        file_type: FileType,
        meta: &Meta,
    ) -> Result<(), Errno> {
        let fd = fd.as_fd();
        self.set_access(fd, file_type, meta, self.owners())?;
        set_mtime(fd, meta)
    }

    /// Brings an existing object to `meta` where it differs; tells whether it did.
    pub(super) fn repair(&self, fd: impl AsFd, meta: &Meta) -> Result<bool, Errno> {
        let fd = fd.as_fd();
        let stat = rustix::fs::fstat(fd)?;
        let access = self.same_access(&stat, meta);
        if !access {
            let own = self.owners() && (stat.st_uid, stat.st_gid) != (meta.uid, meta.gid);
            self.set_access(fd, type_of(&stat), meta, own)?;
        }
        let time = same_mtime(&stat, meta);
        if !time {
            set_mtime(fd, meta)?;
        }
        Ok(!access || !time)
    }

    /// Owner where `own`, then mode. A file system that refuses the owner but takes the mode takes no
    /// owners from us at all: then they are left, as they are without root.
    fn set_access(
        &self,
        fd: BorrowedFd<'_>,
        file_type: FileType,
        meta: &Meta,
        own: bool,
    ) -> Result<(), Errno> {
        let refused = match if own { chown(fd, meta) } else { Ok(()) } {
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP)) => Some(errno),
            other => other.map(|()| None)?,
        };
        let before = refused.is_some() && self.refused.swap(true, Ordering::Relaxed);
        if file_type != FileType::Symlink
            && let Err(errno) = chmod(fd, self.mode(meta, file_type))
        {
            self.refused.store(before, Ordering::Relaxed);
            return Err(refused.unwrap_or(errno));
        }
        if let Some(errno) = refused
            && !before
        {
            tracing::warn!(
                uid = meta.uid,
                gid = meta.gid,
                %errno,
                "the destination's file system takes no owners from this agent; what it writes \
                 there stays under the owner that the file system gives"
            );
        }
        Ok(())
    }
}

pub(super) fn same_mtime(stat: &Stat, meta: &Meta) -> bool {
    let there = meta_of(stat);
    (there.mtime_sec, there.mtime_nsec) == (meta.mtime_sec, meta.mtime_nsec)
}

fn chown(fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), Errno> {
    // The kernel reads this id as "leave it".
    if meta.uid == u32::MAX || meta.gid == u32::MAX {
        return Err(Errno::OVERFLOW);
    }
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// Sets the mode through any descriptor, also one that was opened with `O_PATH`.
pub(super) fn chmod(fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::fchmod(fd, mode) {
        Err(Errno::BADF) => rustix::fs::chmodat(CWD, magic(fd), mode, AtFlags::empty()),
        other => other,
    }
}

fn set_mtime(fd: BorrowedFd<'_>, meta: &Meta) -> Result<(), Errno> {
    // Larger numbers have a meaning of their own to the kernel ("now", "leave it").
    if meta.mtime_nsec > 999_999_999 {
        return Err(Errno::INVAL);
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: meta.mtime_sec, tv_nsec: meta.mtime_nsec.into() },
    };
    match rustix::fs::futimens(fd, &times) {
        Err(Errno::BADF) => {}
        other => return other,
    }
    match rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH) {
        // Kernels before 5.8 don't know the flag here.
        Err(Errno::INVAL) => rustix::fs::utimensat(CWD, magic(fd), &times, AtFlags::empty()),
        other => other,
    }
}

/// The kernel's name for what a descriptor of ours refers to.
fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_uid_goes_only_with_its_owner() {
        let meta = Meta { mode: 0o6755, uid: 12345, gid: 54321, mtime_sec: 0, mtime_nsec: 0 };
        assert_eq!(Policy::new(false).mode(&meta, FileType::RegularFile), 0o755);
        assert_eq!(Policy::new(false).mode(&meta, FileType::Directory), 0o6755);
        assert_eq!(Policy::new(true).mode(&meta, FileType::RegularFile), 0o6755);
        let policy = Policy::new(false);
        let own = Meta { uid: policy.euid, gid: policy.egid, ..meta };
        assert_eq!(policy.mode(&own, FileType::RegularFile), 0o6755);
    }

    #[test]
    fn numbers_with_a_meaning_to_the_kernel_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let meta = Meta { mode: 0o600, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 1_073_741_822 };
        assert_eq!(set_mtime(file.as_fd(), &meta), Err(Errno::INVAL));
        assert_eq!(chown(file.as_fd(), &Meta { uid: u32::MAX, ..meta }), Err(Errno::OVERFLOW));
    }
}
