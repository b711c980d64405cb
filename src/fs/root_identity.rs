//! The identity of a storage root, and the reasons for which a root is unavailable.

use super::errno::SysResult;
use super::mountinfo::mount_depth;
use crate::wire::errno::errno_name;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, Stat, Statx, StatxFlags};
use rustix::io::Errno;
use std::fmt;

/// Why the path of a storage root leads elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootUnavailable {
    /// The path does not exist.
    Missing(Errno),
    /// Another directory of the same mount is found there: the root was renamed or removed.
    Replaced,
    /// A file system was mounted at the path, or above it.
    MountedOver,
    /// The file system of the root was unmounted, and the directory below the mount point is found.
    Unmounted,
    /// The root was opened after its work was assigned, for another root.
    Reopened,
}

impl RootUnavailable {
    /// Whether the path leads to storage that was mounted on purpose. A directory in the root's place may only be the
    /// mount point of a missing file system.
    pub fn is_new_storage(self) -> bool {
        self == RootUnavailable::MountedOver
    }
}

impl fmt::Display for RootUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootUnavailable::Missing(errno) => {
                let name = errno_name(*errno).unwrap_or("unknown errno");
                write!(f, "nothing is found at its path any more ({name})")
            }
            RootUnavailable::Replaced => f.write_str("its path leads to another directory"),
            RootUnavailable::MountedOver => f.write_str("another file system was mounted over it"),
            RootUnavailable::Unmounted => {
                f.write_str("its file system was unmounted, and the directory below it is not used")
            }
            RootUnavailable::Reopened => {
                f.write_str("another directory was opened there after the task was assigned")
            }
        }
    }
}

/// What distinguishes one root from another, read when it is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct RootFingerprint {
    pub(super) dev: u64,
    pub(super) ino: u64,
    /// Of its inode, in seconds and nanoseconds; where the file system has it.
    pub(super) birth_time: Option<(i64, u32)>,
    pub(super) mount: Option<MountId>,
}

/// The mount of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MountId {
    pub(super) id: u64,
    /// Components of its mount point.
    mount_point_depth: usize,
}

impl RootFingerprint {
    /// Whether `stat` is of the directory with this identity.
    pub(super) fn is_of(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino) == (self.dev, self.ino)
    }

    /// Why another directory than this one is found at `path`.
    pub(super) fn compare_with_path(&self, path: &[u8]) -> RootUnavailable {
        let path = std::ffi::CString::new(path).unwrap_or_default();
        self.compare_mounts(read_statx(CWD, &path, AtFlags::empty()).as_ref().and_then(mount_id))
    }

    /// Why a directory of the mount `now` is found in place of this one.
    pub(super) fn compare_mounts(&self, now: Option<MountId>) -> RootUnavailable {
        match (self.mount, now) {
            (Some(then), Some(now)) if then.id == now.id => RootUnavailable::Replaced,
            (Some(then), Some(now)) if now.mount_point_depth < then.mount_point_depth => {
                RootUnavailable::Unmounted
            }
            (Some(_), Some(_)) => RootUnavailable::MountedOver,
            // The kernel reports no mount: the directory does not count as new storage.
            _ => RootUnavailable::Replaced,
        }
    }

    pub(super) fn read(fd: impl AsFd) -> SysResult<RootFingerprint> {
        let stat = rustix::fs::fstat(&fd)?;
        let more = read_statx(&fd, c"", AtFlags::EMPTY_PATH);
        let born = more.as_ref().filter(|more| has_statx_field(more, StatxFlags::BTIME));
        Ok(RootFingerprint {
            dev: stat.st_dev,
            ino: stat.st_ino,
            birth_time: born.map(|more| (more.stx_btime.tv_sec, more.stx_btime.tv_nsec)),
            mount: more.as_ref().and_then(mount_id),
        })
    }
}

impl fmt::Display for RootFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.dev, self.ino)?;
        self.birth_time.map_or(Ok(()), |(sec, nsec)| write!(f, "-{sec:x}.{nsec:x}"))
    }
}

/// More of a file than `stat` has; `None` where the kernel does not have it.
fn read_statx(dir: impl AsFd, path: &std::ffi::CStr, flags: AtFlags) -> Option<Statx> {
    let wanted = StatxFlags::BTIME | StatxFlags::MNT_ID;
    rustix::fs::statx(dir, path, flags, wanted).ok()
}

fn has_statx_field(more: &Statx, what: StatxFlags) -> bool {
    more.stx_mask & what.bits() != 0
}

fn mount_id(more: &Statx) -> Option<MountId> {
    if !has_statx_field(more, StatxFlags::MNT_ID) {
        return None;
    }
    let id = more.stx_mnt_id;
    Some(MountId {
        id,
        mount_point_depth: mount_depth(&std::fs::read("/proc/self/mountinfo").ok()?, id)?,
    })
}
