//! The directories that a prune is in: opening, listing, and closing them to save descriptors.

use super::super::beneath::{DirHandle, open_within_mount};
use super::super::dir_list::{is_dir_empty, list_dir};
use super::super::errno::SysResult;
use super::super::error::{Cause, CauseResult};
use super::super::trash::is_trash_dir;
use super::{MAX_NAMES_HELD, MAX_OPEN_LEVELS, NameIter, PruneLevel, Pruner};
use crate::wire::RelPath;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;

impl Pruner<'_> {
    /// The current directory, opened again if it was closed.
    pub(super) fn current_dir(&mut self) -> SysResult<DirHandle> {
        let tree = &self.target.tree;
        let level = self.levels.last_mut().ok_or(Errno::NOENT)?;
        if let Some(fd) = &level.fd {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(tree.open_dir(level.path.as_bytes())?);
        if rustix::fs::fstat(&fd)?.st_dev != level.stat.st_dev {
            return Err(Errno::XDEV);
        }
        level.fd = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// Opens a directory for listing; the mode of our own directory is widened, if changes are permitted.
    pub(super) fn open_readable(&self, dir: &DirHandle) -> SysResult<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(dir, ".", flags, Mode::empty());
        if self.budget.is_some() { self.target.with_writable_dir(dir, open) } else { open() }
    }

    /// Whether the subdirectory `name` is empty; `false` if it can't be read.
    pub(super) fn is_subdir_empty(&mut self, name: &[u8]) -> bool {
        self.open_subdir(name).is_ok_and(|(_, fd, _)| is_dir_empty(&fd) == Ok(true))
    }

    /// Makes the subdirectory `name` the current one, unless it is a trash.
    pub(super) fn enter_dir(&mut self, name: &[u8]) -> CauseResult<bool> {
        let (path, fd, stat) = self.open_subdir(name)?;
        if is_trash_dir(&fd, b"")? {
            return Ok(false);
        }
        self.push_level(path, fd, stat, None)?;
        Ok(true)
    }

    /// Whether the page's directory, or a parent of it, is a trash: the source may have a directory of that name.
    pub(super) fn is_inside_earlier_trash(&mut self, dir: &OwnedFd) -> SysResult<bool> {
        let path = &self.page.dir;
        if is_trash_dir(dir, b"")? {
            if self.page.after.is_none() && self.page.resume.is_none() {
                self.result.old_trash.add(path.as_bytes());
            }
            return Ok(true);
        }
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut above = ends.chain((!path.is_root()).then_some(0)).map(|end| &bytes[..end]);
        let root = self.target.tree.open_dir(b"")?;
        above.try_fold(false, |found, path| Ok(found || is_trash_dir(&root, path)?))
    }

    /// Opens the subdirectory `name`, unless something is mounted there.
    pub(super) fn open_subdir(&mut self, name: &[u8]) -> CauseResult<(RelPath, OwnedFd, Stat)> {
        let dir = self.current_dir()?;
        let level = self.levels.last().ok_or(Errno::NOENT)?;
        let path = level.path.child(name).map_err(|_| Errno::NAMETOOLONG)?;
        let held = Arc::new(open_within_mount(&dir, name)?);
        let stat = rustix::fs::fstat(&held)?;
        if stat.st_dev != level.stat.st_dev {
            return Err(Cause::MountPoint);
        }
        Ok((path, self.open_readable(&held)?, stat))
    }

    /// Makes it the current directory, after `after`.
    pub(super) fn push_level(
        &mut self,
        path: RelPath,
        fd: OwnedFd,
        stat: Stat,
        after: Option<&[u8]>,
    ) -> SysResult<()> {
        let top = self.levels.is_empty();
        let (names, more) = self.list_names(&fd, after, top)?;
        // Also where the trash is still to be made.
        let kept = self.trash.as_ref().is_some_and(|trash| path.contains(trash.path));
        self.levels.push(PruneLevel {
            path,
            fd: Some(Arc::new(fd)),
            stat,
            names,
            next_after: more,
            has_kept: kept,
        });
        if let Some(at) = self.levels.len().checked_sub(MAX_OPEN_LEVELS + 1) {
            self.levels[at].fd = None;
        }
        Ok(())
    }

    /// The next names of the current directory.
    pub(super) fn list_more(&mut self) {
        let top = self.levels.len() == 1;
        let Some(after) = self.levels.last_mut().and_then(|level| level.next_after.take()) else {
            return;
        };
        let listed = self.current_dir().and_then(|dir| {
            // Opened again: the position in a directory belongs to the descriptor, and this one is used up.
            let fd = self.open_readable(&dir)?;
            self.list_names(&fd, Some(&after), top)
        });
        let Some(level) = self.levels.last_mut() else { return };
        match listed {
            Ok((names, more)) => (level.names, level.next_after) = (names, more),
            Err(errno) => {
                let path = level.path.clone();
                self.report_error(path.as_bytes(), "list", errno);
            }
        }
    }

    pub(super) fn list_names(
        &self,
        fd: &OwnedFd,
        after: Option<&[u8]>,
        top: bool,
    ) -> SysResult<(NameIter, Option<Box<[u8]>>)> {
        let upto = self.page.through.as_ref().map(|name| name.as_slice()).filter(|_| top);
        let listing =
            list_dir(fd, after, MAX_NAMES_HELD, |name| upto.is_none_or(|upto| name <= upto));
        listing.error.map_or(Ok(()), Err)?;
        Ok((listing.names.into_iter(), listing.next_after))
    }
}
