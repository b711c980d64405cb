//! Opens directories below a directory without leaving it: no component of a path is followed if it is a symbolic link.

use super::errno::SysResult;
use super::error::{Cause, CauseResult};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// An open directory.
pub(super) type DirHandle = Arc<OwnedFd>;

/// The directory part (empty at the top) and the name of a path that is not empty.
pub(super) fn split_parent(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The most bytes of a path in one call (`PATH_MAX` is 4096 with its NUL).
const MAX_SEGMENT_BYTES: usize = 3800;

const LISTABLE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

const PATH_ONLY_FLAGS: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the directory `path` below `from`, for reading if that is permitted, otherwise with `O_PATH`. No component may be
/// a link. `path` is that of a [`RelPath`](crate::wire::RelPath), so it has no `..`, and confinement of each component is
/// confinement of the whole.
pub(super) fn open_dir_below(from: BorrowedFd<'_>, path: &[u8]) -> SysResult<OwnedFd> {
    match open_listable_below(from, path) {
        Err(Errno::ACCESS) => open_long_path(from, path, PATH_ONLY_FLAGS),
        other => other,
    }
}

/// The same, or `EACCES` where its names can't be listed.
pub(super) fn open_listable_below(from: BorrowedFd<'_>, path: &[u8]) -> SysResult<OwnedFd> {
    open_long_path(from, path, LISTABLE_FLAGS)
}

/// Opens a directory without entering another mount (also one of the same file system).
pub(super) fn open_within_mount(dir: &DirHandle, name: &[u8]) -> CauseResult<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), rules) {
        Err(Errno::XDEV) => Err(Cause::MountPoint),
        // An old kernel, a container's filter, a rename somewhere. The caller compares the devices.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::INTR) => {
            Ok(open_dir_below(dir.as_fd(), name)?)
        }
        other => Ok(other?),
    }
}

fn open_long_path(from: BorrowedFd<'_>, mut path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    let mut held: Option<OwnedFd> = None;
    while path.len() > MAX_SEGMENT_BYTES {
        let at =
            path[..MAX_SEGMENT_BYTES].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let base = held.as_ref().map_or(from, |fd| fd.as_fd());
        held = Some(open_segment(base, &path[..at], PATH_ONLY_FLAGS)?);
        path = &path[at + 1..];
    }
    let base = held.as_ref().map_or(from, |fd| fd.as_fd());
    open_segment(base, if path.is_empty() { b"." } else { path }, flags)
}

fn open_segment(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // `NO_SYMLINKS` applies to the last component too, and fails with ELOOP where `NOFOLLOW` fails with ENOTDIR.
    let plain = flags.difference(OFlags::NOFOLLOW);
    for _ in 0..16 {
        match rustix::fs::openat2(from, path, plain, Mode::empty(), rules) {
            // A rename elsewhere made the lookup ambiguous: retry.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // An old kernel, or a container's filter without this call.
            Err(Errno::NOSYS | Errno::PERM) => return open_by_component(from, path, flags),
            other => return other,
        }
    }
    open_by_component(from, path, flags)
}

/// One component at a time, none of them followed: just as confined, with more calls.
fn open_by_component(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> SysResult<OwnedFd> {
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let base = held.as_ref().map_or(from, |fd| fd.as_fd());
        match rest.iter().position(|b| *b == b'/') {
            Some(at) => {
                held = Some(rustix::fs::openat(base, &rest[..at], PATH_ONLY_FLAGS, Mode::empty())?);
                rest = &rest[at + 1..];
            }
            None => return rustix::fs::openat(base, rest, flags, Mode::empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn opening_by_component_is_as_confined_as_openat2() {
        let site = TestSite::new();
        site.write_file("src/a/b/f", "");
        std::os::unix::fs::symlink("a", site.path("src/link")).unwrap();
        let root = site.root.fd();
        let ino = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        for flags in [LISTABLE_FLAGS, PATH_ONLY_FLAGS] {
            for path in [&b"src/a/b"[..], b"src", b"."] {
                let (one, other) = (
                    open_segment(root, path, flags).unwrap(),
                    open_by_component(root, path, flags).unwrap(),
                );
                assert_eq!(ino(one), ino(other));
            }
            for path in [&b"src/link"[..], b"src/link/b", b"src/a/b/f", b"src/none"] {
                assert!(open_segment(root, path, flags).is_err());
                assert!(open_by_component(root, path, flags).is_err());
            }
        }
    }
}
