//! Whether the path of a storage root still leads to the directory that is held open.
//!
//! A root is a descriptor: after `mount` over its path, `umount -l` or `mv` all calls on it go on to succeed, on a
//! directory that nobody finds under the path. Before the first write of a batch, at its end, before a large file is
//! published and around a flush the two are therefore compared, which takes one `stat` of the path.

use super::error::{Cause, FsError, Result};
use super::root::{RootDir, Tree};
use super::target::{Target, unescape_octal};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};
use rustix::io::Errno;
use std::fmt;

/// How the path of a storage root came to lead elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootUnavailable {
    /// Nothing is found at the path.
    Missing(Errno),
    /// Another directory of the same mount is found there: the root was renamed or removed.
    Replaced,
    /// A file system was mounted at the path, or above it.
    MountedOver,
    /// The file system of the root was unmounted, and what lies below the mount point is found.
    Unmounted,
    /// The root was opened after the work in it was assigned, which is for another root.
    Reopened,
}

impl RootUnavailable {
    /// Whether what the path leads to now is storage that somebody put there on purpose. A directory that merely
    /// stands in the root's place may be the mount point of a file system that is missing.
    pub fn is_new_storage(self) -> bool {
        self == RootUnavailable::MountedOver
    }

    /// What somebody can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            RootUnavailable::MountedOver => {
                "nothing is written there until it is unmounted, or opened as the new storage at the next heartbeat"
            }
            RootUnavailable::Unmounted => {
                "mount it again, or start the program again to use that directory; nothing is written there until then"
            }
            RootUnavailable::Reopened => {
                "it is tried again when the next heartbeat has named that directory"
            }
            RootUnavailable::Missing(_) | RootUnavailable::Replaced => {
                "put it back, or start the program again to use what is there now; nothing is written there until then"
            }
        }
    }
}

impl fmt::Display for RootUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootUnavailable::Missing(errno) => {
                let name = super::errno_name(*errno).unwrap_or("unknown errno");
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
    dev: u64,
    ino: u64,
    /// Of its inode, in seconds and nanoseconds; where the file system keeps it.
    birth_time: Option<(i64, u32)>,
    mount: Option<MountId>,
}

/// The mount that a directory lies on.
#[derive(Debug, Clone, Copy)]
struct MountId {
    id: u64,
    /// Components of its mount point.
    mount_point_depth: usize,
}

impl RootFingerprint {
    pub(super) fn read(fd: impl AsFd) -> std::result::Result<RootFingerprint, Errno> {
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

/// How many components the mount point of a mount has, by the text of `/proc/self/mountinfo`.
fn mount_depth(mountinfo: &[u8], id: u64) -> Option<usize> {
    let id = id.to_string();
    let mut lines = mountinfo.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.split(|b| *b == b' ').next() == Some(id.as_bytes()))?;
    let point = unescape_octal(line.split(|byte| *byte == b' ').nth(4)?);
    Some(point.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count())
}

impl RootDir {
    /// How its path leads elsewhere than to the directory that is held open; `None` where it does not. The answer
    /// is kept for [`RootDir::lost`].
    pub fn check_path(&self) -> Option<RootUnavailable> {
        let found = rustix::fs::stat(self.path().as_bytes());
        let lost = match found {
            Err(errno) => Some(RootUnavailable::Missing(errno)),
            Ok(there) if (there.st_dev, there.st_ino) == (self.identity.dev, self.identity.ino) => {
                None
            }
            Ok(_) => Some(self.classify_replacement()),
        };
        self.set_unavailable(lost);
        lost
    }

    fn classify_replacement(&self) -> RootUnavailable {
        let path = std::ffi::CString::new(self.path().as_bytes()).unwrap_or_default();
        let now = read_statx(CWD, &path, AtFlags::empty()).and_then(|more| mount_id(&more));
        self.compare_mounts(now)
    }

    /// How `now`, which was opened at the same path, came to be there instead; `None`: it is the same directory.
    pub fn compare_with_reopened(&self, now: &RootDir) -> Option<RootUnavailable> {
        (self.id() != now.id()).then(|| self.compare_mounts(now.identity.mount))
    }

    fn compare_mounts(&self, now: Option<MountId>) -> RootUnavailable {
        match (self.identity.mount, now) {
            (Some(then), Some(now)) if then.id == now.id => RootUnavailable::Replaced,
            (Some(then), Some(now)) if now.mount_point_depth < then.mount_point_depth => {
                RootUnavailable::Unmounted
            }
            (Some(_), Some(_)) => RootUnavailable::MountedOver,
            // The kernel does not say: nothing is taken for new storage.
            _ => RootUnavailable::Replaced,
        }
    }

    /// A text that another directory at the same path does not have, nor another file system that is mounted there.
    pub fn id(&self) -> String {
        self.identity.to_string()
    }
}

impl Tree {
    /// Whether its storage root is the one that its work was assigned for, and the path still leads to it.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub fn check_root(&self) -> Result<()> {
        let reopened = self.reopened.then_some(RootUnavailable::Reopened);
        let lost = self.root.check_path().or(reopened);
        lost.map_or(Ok(()), |loss| Err(self.root_unavailable_error(loss)))
    }

    /// The error of what can't be done because of `loss`.
    fn root_unavailable_error(&self, loss: RootUnavailable) -> FsError {
        let path = self.root.path().as_bytes();
        FsError::new(self.side, "use storage path", path, Cause::RootUnavailable(loss))
    }

    /// A text that distinguishes its storage root from every other one at the same path.
    pub fn root_id(&self) -> String {
        self.root.id()
    }
}

impl Target {
    /// The same of the destination.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub fn check_root(&self) -> Result<()> {
        self.tree.check_root()
    }

    /// Before the first write of a request: the same, once for this target and its clones.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub(super) fn check_root_once(&self) -> Result<()> {
        self.state.root_check.get_or_init(|| self.check_root()).clone()
    }

    /// The error of work at the destination whose storage root was not there before or after it.
    ///
    /// # Errors
    /// What `work` returns, or [`Cause::RootUnavailable`].
    pub fn with_root_checked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_root()?;
        let done = work()?;
        self.check_root()?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
