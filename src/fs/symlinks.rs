//! Symbolic links of a source that are followed.
//!
//! The kernel resolves the link, without opening its target; then the target is looked up again by its real path,
//! confined to the storage root like everything else. Only if both are the same object, it is read. So a link that
//! points (or is swapped to point) outside results in an error, never in content.

use super::errno::SysResult;
use super::error::{Cause, CauseResult, Result};
use super::inode::{is_same_object, kernel_path, lstat, meta_of, type_of};
use super::root::Tree;
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, ManifestDir};
use crate::wire::options::Links;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// The identity and real path of a directory above an entry, in addition to its [`ManifestDir`].
#[derive(Debug, Clone, Default)]
pub(super) struct ResolvedDir {
    /// Device and inode, where links are followed (otherwise zeros).
    pub(super) inode_id: (u64, u64),
    /// Its real path below the storage root, where it was reached through a link.
    pub(super) real_path: Option<RelPath>,
}

/// The directories above a path, the root first, and the real path.
#[derive(Debug, Default)]
pub(super) struct ResolvedPath {
    pub(super) dirs: Vec<ManifestDir>,
    pub(super) resolved_dirs: Vec<ResolvedDir>,
    pub(super) real_path: Option<RelPath>,
}

impl Tree {
    /// The tree of the whole storage root: [`Entry::content_path`] is a path in it.
    pub fn storage_tree(&self) -> Tree {
        self.with_base(RelPath::root())
    }

    /// The entry at `path`, and its parent directories, the root first. With [`Links::Copy`] links are followed, in
    /// the path as well as at its end.
    ///
    /// # Errors
    /// It is missing or not accessible; a link is dangling or points outside.
    pub fn find_entry(&self, path: &RelPath, links: Links) -> Result<(Entry, Vec<ManifestDir>)> {
        let ResolvedPath { dirs, real_path: real, .. } = self.resolve_path(path, links)?;
        let Some(real) = real else { return Ok((self.entry(path)?, dirs)) };
        let entry = self.storage_tree().entry(&real);
        let entry =
            entry.map_err(|error| self.error(error.operation, path.as_bytes(), error.cause))?;
        Ok((Entry { path: path.clone(), content_path: Some(real), ..entry }, dirs))
    }

    /// Resolves `path`; with [`Links::Copy`] through links.
    pub(super) fn resolve_path(&self, path: &RelPath, links: Links) -> Result<ResolvedPath> {
        if links != Links::Copy {
            let dirs = self.parent_dirs(path)?;
            return Ok(ResolvedPath {
                resolved_dirs: vec![ResolvedDir::default(); dirs.len()],
                dirs,
                real_path: None,
            });
        }
        let mut located = ResolvedPath::default();
        let mut above = RelPath::root();
        for name in path.components() {
            let failed = |errno| self.error("read metadata of", above.as_bytes(), errno);
            let dir = match &located.real_path {
                None => self.cached_dir(above.as_bytes()),
                Some(real) => self.open_below_storage(real.as_bytes()).map(Arc::new),
            }
            .map_err(failed)?;
            let stat = rustix::fs::fstat(&dir).map_err(failed)?;
            located.dirs.push(ManifestDir { path: above.clone(), meta: meta_of(&stat) });
            let (inode_id, real_path) = ((stat.st_dev, stat.st_ino), located.real_path.clone());
            located.resolved_dirs.push(ResolvedDir { inode_id, real_path });
            above = above.child(name).map_err(|_| failed(Errno::INVAL))?;
            let at = |cause: Cause| self.error("follow", above.as_bytes(), cause);
            let stat = lstat(&dir, name).map_err(|errno| at(errno.into()))?;
            located.real_path = match type_of(&stat) {
                FileType::Symlink => Some(self.resolve_link(dir.as_fd(), name).map_err(at)?),
                _ => located.real_path.and_then(|real| real.child(name).ok()),
            };
        }
        Ok(located)
    }

    /// The target of the link `name` in `dir`, below the storage root.
    pub(super) fn resolve_link(&self, dir: BorrowedFd<'_>, name: &[u8]) -> CauseResult<RelPath> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => Cause::DanglingLink,
                Errno::LOOP => Cause::LinkCycle,
                errno => errno.into(),
            })?;
        let (there, root) = (kernel_path(fd.as_fd())?, kernel_path(self.root.fd())?);
        let real = match there.strip_prefix(root.as_slice()) {
            _ if root == b"/" => there.get(1..),
            Some([]) => Some(&[][..]),
            Some([b'/', rest @ ..]) => Some(rest),
            _ => None,
        };
        let real = real.and_then(|real| RelPath::new(real).ok()).ok_or(Cause::LinkOutsideRoot)?;
        let storage = self.storage_tree();
        let looked_up = storage.locate(&real).and_then(|place| lstat(&place.dir, place.name));
        let stat = rustix::fs::fstat(&fd)?;
        match looked_up {
            Ok(looked_up) if is_same_object(&looked_up, &stat) => Ok(real),
            // Removed or renamed between the two lookups.
            _ => Err(Cause::Changed),
        }
    }

    /// Opens the directory at `real` below the storage root or, without it, at `path` below this tree; it must be
    /// readable if `list`.
    pub(super) fn open_resolved(
        &self,
        path: &[u8],
        real: Option<&RelPath>,
        list: bool,
    ) -> SysResult<OwnedFd> {
        let path = match real {
            Some(real) => real.as_bytes().to_vec(),
            None => self.path_below_root(path),
        };
        if list { self.open_listable_below_storage(&path) } else { self.open_below_storage(&path) }
    }
}

#[cfg(test)]
mod tests;
