//! The trash of a mirror: deleted entries move to `<trash>/<request id>/<path>` below the destination root. Existing
//! entries stay: if a place is occupied, `<trash>/<request id>~1/<path>` is tried, and so on, so that names keep
//! their length.
//!
//! A trash is recognised by a file in it, [`TRASH_MARKER`]. The marker is part of the tree, so that every later
//! mirror finds it, on any host and with any options. Without the file the directory is like any other.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::error::Cause;
use super::inode::{lstat, meta_of, set_mtime, type_of};
use super::metadata::{DesiredMetadata, ObjectOrigin};
use super::target::Target;
use super::temp_names::TRASH_MARKER;
use super::xattr::{self, XattrObject};
use crate::wire::errno::NAME_COLLISION;
use crate::wire::preserve::Preserve;
use crate::wire::{RelPath, RequestId};
use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;

/// The most directories that are tried for an occupied place.
const MAX_SUFFIX_ATTEMPTS: u32 = 1000;
/// The text in [`TRASH_MARKER`], for people.
const MARKER_TEXT: &[u8] = b"Mirrors (ctl ... --delete --trash) moved here what they would have deleted, by the id of \
the sync.\nNo mirror deletes from this directory while this file is in it. Remove the directory when its content \
is not needed.\n";
/// The cause under which the sync reports trashes that were left as they are.
pub const EARLIER_TRASH_KEPT: &str =
    "trash of an earlier mirror left as it is (remove it by hand when it is not needed)";

pub(super) struct Trash<'a> {
    target: &'a Target,
    /// With the entries of all syncs.
    pub(super) path: &'a RelPath,
    request: &'a RequestId,
    /// It exists, with its marker.
    is_ready: bool,
}

impl<'a> Trash<'a> {
    /// The trash of this request, if the rules have one.
    pub(super) fn for_request(target: &'a Target, request: &'a RequestId) -> Option<Self> {
        let path = target.rules.trash.as_ref().filter(|path| !path.is_root())?;
        Some(Trash { target, path, request, is_ready: false })
    }

    /// Verifies that the trash exists or can be created.
    ///
    /// # Errors
    /// An object other than a directory is in its place, or in that of a parent.
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

    /// Moves the non-directory `name` in `dir` to the place of `path` in the trash.
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

    /// Applies the metadata of `name` in `dir`, with the lstat `stat` from before it was emptied, to the directory for
    /// `path` in the trash.
    pub(super) fn create_dir_like(
        &mut self,
        dir: &DirHandle,
        name: &[u8],
        path: &RelPath,
        stat: &Stat,
    ) -> SysResult<()> {
        self.ensure_created()?;
        let there = self.with_free_dir(path, |to| Ok(Arc::clone(to)))?;
        let object = XattrObject::Named(dir.as_fd(), name);
        let applied = xattr::read(object, true, Preserve::all()).and_then(|xattrs| {
            let desired = DesiredMetadata { path, meta: meta_of(stat), xattrs: Some(&xattrs) };
            self.target.policy.apply(&there, &desired, ObjectOrigin::Created(None))
        });
        if let Err(cause) = applied {
            // Its metadata is best effort: no reason to keep the directory.
            tracing::debug!(%path, ?cause, "a directory in the trash lacks its metadata");
        }
        Ok(())
    }

    /// Runs `step` with the directory for the content of `path`, created if missing: the first one with a free place.
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
            let done = self.target.ensure_dir(base.join(path).as_bytes());
            match done.and_then(|to| step(&to)) {
                // The path exists, or an object other than a directory obstructs it.
                Err(Errno::EXIST | Errno::NOTDIR | Errno::LOOP | NAME_COLLISION) => {}
                other => return other,
            }
        }
        Err(Errno::EXIST)
    }

    /// Creates the trash with its marker, before anything is moved there; its parent directory keeps its mtime.
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
        let trash = self.target.ensure_dir(self.path.as_bytes())?;
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
        // The text is for people: the marker works without it.
        Ok(fd) => drop(rustix::io::write(&fd, MARKER_TEXT)),
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Whether `path`, below the open directory `dir`, is a directory that a mirror uses or used as its trash.
pub(super) fn is_trash_dir(dir: impl AsFd, path: &[u8]) -> SysResult<bool> {
    let mark =
        if path.is_empty() { TRASH_MARKER.to_vec() } else { [path, b"/", TRASH_MARKER].concat() };
    match lstat(dir, &mark) {
        Ok(stat) => Ok(type_of(&stat) == FileType::RegularFile),
        // A path over `PATH_MAX` is not one of an operator.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Renames without replacing anything.
fn rename_noreplace(from: &DirHandle, name: &[u8], to: &DirHandle, new: &[u8]) -> SysResult<()> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // Not supported: no other process moves anything there.
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
