//! Where a mirror moves what it would delete: `<trash>/<request id>/<path>` below the destination root. What is
//! there already stays: where a place is taken, `<trash>/<request id>~1/<path>` is tried, and so on, so that
//! names keep their length.
//!
//! A trash is recognised by a file in it, [`TRASH_MARKER`]. The mark is part of the tree, so that every later mirror
//! finds it, on whichever host and with whatever options it runs. Without the file the directory is one like
//! any other.

use super::beneath::DirHandle;
use super::entry::entry_of;
use super::errno::{NAME_COLLISION, SysResult};
use super::error::Cause;
use super::inode::{lstat, meta_of, set_mtime, type_of};
use super::metadata::{DesiredMetadata, ObjectOrigin};
use super::target::Target;
use super::temp_names::TRASH_MARKER;
use crate::wire::options::Preserve;
use crate::wire::{RelPath, RequestId};
use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;

/// Directories that are tried for something whose place is taken.
const MAX_SUFFIX_ATTEMPTS: u32 = 1000;
/// What stands in [`TRASH_MARKER`], for people.
const MARKER_TEXT: &[u8] = b"Mirrors (ctl ... --delete --trash) moved here what they would have deleted, by the id of \
the sync.\nNo mirror deletes from this directory while this file is in it. Remove the directory when its content \
is not needed.\n";
/// The cause under which the sync reports trashes that were left as they are.
pub const EARLIER_TRASH_KEPT: &str =
    "trash of an earlier mirror left as it is (remove it by hand when it is not needed)";

/// The trash of one sync.
pub(super) struct Trash<'a> {
    target: &'a Target,
    path: &'a RelPath,
    request: &'a RequestId,
    /// It is there, with its mark.
    is_ready: bool,
}

impl<'a> Trash<'a> {
    /// The trash of this request, where the rules say that there is one.
    pub(super) fn for_request(target: &'a Target, request: &'a RequestId) -> Option<Self> {
        let path = target.rules.trash.as_ref().filter(|path| !path.is_root())?;
        Some(Trash { target, path, request, is_ready: false })
    }

    /// All of it, also what other syncs moved there.
    pub(super) fn path(&self) -> &RelPath {
        self.path
    }

    /// Looks whether the trash can be made, or is one.
    ///
    /// # Errors
    /// Something else than a directory is in its place, or in that of a directory above it.
    pub(super) fn verify(&self) -> super::Result<()> {
        let tree = &self.target.tree;
        let mut path = RelPath::root();
        for name in self.path.components() {
            let found = tree.open_dir(path.as_bytes()).and_then(|dir| lstat(&dir, name));
            path = path.join(&RelPath::new(name).unwrap_or_default());
            let cause = match found.map(|stat| type_of(&stat)) {
                Ok(FileType::Directory) => continue,
                Err(Errno::NOENT) => return Ok(()),
                Ok(other) => Cause::TrashNotDirectory(other),
                Err(errno) => errno.into(),
            };
            return Err(self.target.error("use the trash", &path, cause));
        }
        Ok(())
    }

    /// Moves `name` in `dir`, which is no directory, to where `path` belongs in the trash.
    pub(super) fn move_in(
        &mut self,
        dir: &DirHandle,
        name: &[u8],
        path: &RelPath,
    ) -> SysResult<()> {
        self.ensure_created()?;
        self.with_free_dir(&path.parent().unwrap_or_default(), |to| {
            self.target.with_writable_dir(dir, || rename_noreplace(dir, name, to, name))
        })
    }

    /// Gives the directory for `path` in the trash what `name` in `dir` has, whose lstat was `stat` before
    /// it was emptied.
    pub(super) fn create_dir_like(
        &mut self,
        dir: &DirHandle,
        name: &[u8],
        path: &RelPath,
        stat: &Stat,
    ) -> SysResult<()> {
        self.ensure_created()?;
        let there = self.with_free_dir(path, |to| Ok(Arc::clone(to)))?;
        let dressed =
            entry_of(dir.as_fd(), name, path.clone(), stat, Preserve::all()).and_then(|entry| {
                self.target.policy.apply(
                    &there,
                    &DesiredMetadata::from(&entry),
                    ObjectOrigin::Created(None),
                )
            });
        if let Err(cause) = dressed {
            // What is kept of it is a kindness: not worth to keep the directory for.
            tracing::debug!(%path, ?cause, "a directory in the trash lacks its metadata");
        }
        Ok(())
    }

    /// Does `step` with the directory for what was in `path`, made where it is missing: the first one that has
    /// room for it.
    fn with_free_dir<T>(
        &self,
        path: &RelPath,
        step: impl Fn(&DirHandle) -> SysResult<T>,
    ) -> SysResult<T> {
        for n in 0..MAX_SUFFIX_ATTEMPTS {
            let dir = match n {
                0 => self.request.as_str().to_owned(),
                n => format!("{}~{n}", self.request),
            };
            let base = self.path.child(dir.as_bytes()).map_err(|_| Errno::NAMETOOLONG)?;
            let done = self.target.ensure_dir(base.join(path).as_bytes(), false);
            match done.and_then(|(to, _)| step(&to)) {
                // Something of this path is there, or no directory is where one belongs.
                Err(Errno::EXIST | Errno::NOTDIR | Errno::LOOP | NAME_COLLISION) => {}
                other => return other,
            }
        }
        Err(Errno::EXIST)
    }

    /// Makes the trash itself, with its mark, before anything is moved there; the directory above it keeps its
    /// time.
    fn ensure_created(&mut self) -> SysResult<()> {
        if self.is_ready {
            return Ok(());
        }
        let tree = &self.target.tree;
        let mut above = self.path.clone();
        let found = loop {
            match tree.cached_dir(above.as_bytes()) {
                Ok(dir) => break dir,
                Err(Errno::NOENT) => above = above.parent().ok_or(Errno::NOENT)?,
                Err(errno) => return Err(errno),
            }
        };
        let before = (above != *self.path).then(|| rustix::fs::fstat(&found)).transpose()?;
        let trash = self.target.ensure_dir(self.path.as_bytes(), false)?.0;
        self.target.with_writable_dir(&trash, || create_marker(&trash))?;
        if let Some(before) = before {
            set_mtime(found.as_fd(), &meta_of(&before))?;
        }
        self.is_ready = true;
        Ok(())
    }
}

/// Marks a directory as a trash.
fn create_marker(trash: &DirHandle) -> SysResult<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(trash, TRASH_MARKER, flags, Mode::from_raw_mode(0o644)) {
        // The text is for people: without it the file marks as well.
        Ok(fd) => drop(rustix::io::write(&fd, MARKER_TEXT)),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Whether `path`, below the open directory `dir`, is a directory that some mirror uses, or used, as its trash.
pub(super) fn is_trash_dir(dir: impl AsFd, path: &[u8]) -> SysResult<bool> {
    let mark =
        if path.is_empty() { TRASH_MARKER.to_vec() } else { [path, b"/", TRASH_MARKER].concat() };
    match lstat(dir, &mark) {
        Ok(stat) => Ok(type_of(&stat) == FileType::RegularFile),
        // A path over `PATH_MAX` is none that an operator named.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Renames without taking the place of anything.
fn rename_noreplace(from: &DirHandle, name: &[u8], to: &DirHandle, new: &[u8]) -> SysResult<()> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // A file system or kernel that can't: nobody else moves anything there.
        Err(Errno::INVAL | Errno::NOSYS) => match lstat(to, new) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from, name, to, new),
            Err(errno) => Err(errno),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests;
