//! Checks of the two roots of a sync before its first entry: a wrong root would otherwise be an error of every entry,
//! or of a part file below it. Nothing is changed.

use super::beneath::split_parent;
use super::dir_list::list_dir;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, FsError, Result};
use super::fs_type::fs_type;
use super::inode::{lstat, type_of};
use super::root::Tree;
use super::root_mismatch::RootKind;
use super::symlinks::ResolvedPath;
use super::target::Target;
use super::temp_names::is_internal_name;
use crate::wire::RelPath;
use crate::wire::options::Links;
use crate::wire::task::RootState;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Access, AtFlags, Dir, FileType};
use rustix::io::Errno;

/// The most names of an unwritable destination root that are probed for a writable directory.
const MAX_NAMES_PROBED: usize = 1_000;

impl Tree {
    /// The file system of this tree's root, and whether the root is empty.
    ///
    /// # Errors
    /// It can't be opened or read.
    pub fn root_state(&self) -> Result<RootState> {
        let failed = |errno| self.error("read", b"", errno);
        let (fd, empty) = match self.open_listable_dir(b"") {
            Ok(fd) => {
                let listing = list_dir(&fd, None, 1, |name| !is_internal_name(name));
                listing.error.map_or(Ok(()), |errno| Err(failed(errno)))?;
                (fd, listing.names.is_empty())
            }
            // A sync of one file.
            Err(Errno::NOTDIR) => {
                let above = self.base.parent().unwrap_or_default();
                let fd = self.open_below_storage(above.as_bytes());
                (fd.map_err(failed)?, false)
            }
            Err(errno) => return Err(failed(errno)),
        };
        let fs_type = fs_type(&fd).map_err(failed)?;
        // Local file systems derive it from their UUID or device, so it survives a restart; network file systems
        // often leave it at 0, and then their type distinguishes them from an empty mount point.
        let id = rustix::fs::fstatvfs(&fd).map_err(failed)?.f_fsid;
        Ok(RootState { file_system: format!("{fs_type:x}:{id:x}"), empty })
    }

    /// The tree with the symbolic links of its base path resolved, as rsync does for `link/`. Links that point
    /// outside of the storage root are not followed.
    ///
    /// # Errors
    /// A link is dangling, points outside of the storage root, or is part of a cycle.
    pub fn resolve_base_links(self) -> Result<Tree> {
        // Most paths have no link. Other errors show when the tree is used.
        if !matches!(
            self.open_below_storage(self.base.as_bytes()),
            Err(Errno::LOOP | Errno::NOTDIR)
        ) {
            return Ok(self);
        }
        let storage =
            Tree::new(self.root.clone(), RelPath::root()).acting_as(self.identity.clone());
        match storage.resolve_path(&self.base, Links::Copy) {
            Ok(ResolvedPath { real_path: Some(real), .. }) => {
                Ok(Tree::new(self.root.clone(), real)
                    .preserving(self.preserve)
                    .with_direct_io(self.direct_io)
                    .acting_as(self.identity.clone())
                    .for_assigned_root(!self.reopened))
            }
            Ok(_) => Ok(self),
            Err(error) => Err(self.root_error(match error.cause {
                Cause::LinkOutsideRoot | Cause::LinkCycle => Errno::LOOP.into(),
                Cause::DanglingLink => Errno::NOENT.into(),
                cause => cause,
            })),
        }
    }

    /// The kind of this source's root, provided that it can be read.
    ///
    /// # Errors
    /// It is missing, or this process may not read it.
    pub fn check_readable(&self) -> Result<RootKind> {
        let root = RelPath::root();
        let look = || {
            let place = self.locate(&root)?;
            let kind = RootKind::from_file_type(type_of(&lstat(&place.dir, place.name)?));
            let needed = match kind {
                RootKind::Directory => Access::READ_OK | Access::EXEC_OK,
                RootKind::File => Access::READ_OK,
                RootKind::Other => Access::EXISTS,
            };
            check_access(&place.dir, place.name, needed)?;
            Ok::<_, Errno>(kind)
        };
        look().map_err(|errno| self.root_error(errno.into()))
    }

    /// An error of the root of this source.
    fn root_error(&self, cause: Cause) -> FsError {
        let cause = match cause {
            Cause::Os(Errno::NOENT | Errno::NOTDIR) => Cause::SourceMissing,
            cause => cause,
        };
        self.error("read", &self.label(), cause)
    }
}

impl Target {
    /// Whether the root of a `source` of this kind can be written here: the existing object fits, and this process
    /// may write to it or, if it is missing, create it. A dry run only needs that it fits.
    ///
    /// # Errors
    /// It can't be. [`Cause::RootUnavailable`]: unknown.
    pub fn check_writable(&self, source: RootKind) -> Result<()> {
        self.check_root()?;
        let failed = |cause| {
            let op = if matches!(cause, Cause::RootMismatch(_)) { "use" } else { "write to" };
            self.tree.error(op, &self.tree.label(), cause)
        };
        self.verify_root_writable(source).map_err(failed)
    }

    fn verify_root_writable(&self, source: RootKind) -> CauseResult<()> {
        let base = self.tree.base.as_bytes();
        let fits = |there| {
            source
                .mismatch_with(there)
                .map_or(Ok(()), |mismatch| Err(Cause::RootMismatch(mismatch)))
        };
        match self.tree.open_below_storage(base) {
            Ok(dir) => {
                fits(RootKind::Directory)?;
                match self.check_dir_writable(&dir) {
                    // The sync may change nothing in the root itself: then each entry has its own outcome.
                    Err(Errno::ACCESS) if has_writable_dir(&dir) => Ok(()),
                    other => Ok(other?),
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let root = RelPath::root();
                // Also if a parent is no directory, or a link.
                let place = self.tree.locate(&root)?;
                match type_of(&lstat(&place.dir, place.name)?) {
                    // It is replaced like an entry.
                    FileType::Symlink if source != RootKind::Directory => {}
                    FileType::Symlink => return Err(Errno::LOOP.into()),
                    found => fits(RootKind::from_file_type(found))?,
                }
                Ok(self.check_dir_writable(&place.dir)?)
            }
            // Nothing new is requested.
            Err(Errno::NOENT) if self.rules.existing => Ok(()),
            Err(Errno::NOENT | Errno::ACCESS) => {
                let mut above = split_parent(base).0;
                let nearest = loop {
                    match self.tree.open_below_storage(above) {
                        Err(Errno::NOENT | Errno::ACCESS) if !above.is_empty() => {
                            above = split_parent(above).0;
                        }
                        other => break other?,
                    }
                };
                Ok(self.check_dir_writable(&nearest)?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether names can be created in a directory; a dry run creates none.
    fn check_dir_writable(&self, dir: &OwnedFd) -> SysResult<()> {
        if self.rules.dry_run {
            return Ok(());
        }
        match check_access(dir, b".", Access::WRITE_OK | Access::EXEC_OK) {
            Err(Errno::ACCESS) => {
                // The mode of our own directory is widened while it is written to.
                let stat = rustix::fs::fstat(dir)?;
                let ours = stat.st_uid == self.policy.euid && stat.st_mode & 0o700 != 0o700;
                if ours { Ok(()) } else { Err(Errno::ACCESS) }
            }
            other => other,
        }
    }
}

/// Whether this process may access `name` in `dir` in this way, as far as the kernel reports it.
pub(super) fn check_access(dir: impl AsFd, name: &[u8], access: Access) -> SysResult<()> {
    match rustix::fs::accessat(dir, name, access, AtFlags::EACCESS) {
        // An old kernel, or a container's filter.
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Whether one of the first subdirectories of `dir` is writable.
fn has_writable_dir(dir: &OwnedFd) -> bool {
    let Ok(names) = Dir::read_from(dir) else { return false };
    let names = names.take(MAX_NAMES_PROBED).filter_map(std::result::Result::ok);
    let mut dirs = names.filter(|entry| {
        let name = entry.file_name().to_bytes();
        entry.file_type() == FileType::Directory && name != b"." && name != b".."
    });
    let needed = Access::WRITE_OK | Access::EXEC_OK;
    dirs.any(|entry| rustix::fs::accessat(dir, entry.file_name(), needed, AtFlags::EACCESS).is_ok())
}

#[cfg(test)]
mod tests;
