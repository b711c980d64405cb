//! Whether the two roots of a sync can be used, looked at before its first entry: what is wrong with a root would
//! otherwise be the error of each entry, or of a part file below it. Nothing is changed.

use super::error::{Cause, FsError, Result, Side};
use super::follow::Located;
use super::meta::{lstat, type_of};
use super::root::{Tree, open_below, split};
use super::target::{Step, Target};
use crate::wire::options::Links;
use crate::wire::{AbsPath, RelPath};
use minicbor::{Decode, Encode};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Access, AtFlags, Dir, FileType};
use rustix::io::Errno;

/// So many names of a destination root that can't be written itself are looked at for a directory that can.
const MAX_NAMES: usize = 1_000;

/// What a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RootKind {
    /// A directory.
    #[n(0)]
    Directory,
    /// A regular file.
    #[n(1)]
    File,
    /// Anything else.
    #[n(2)]
    Other,
}

/// How SRC and DST do not fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// They are one directory or file.
    Same,
    /// DST lies below SRC.
    DestinationInside,
    /// SRC lies below DST.
    SourceInside,
    /// SRC is a directory, DST is none.
    NoDirectory,
    /// SRC is none, DST is a directory.
    Directory,
    /// SRC is a file, and what DST is would be replaced by it.
    Special,
}

impl RootKind {
    fn of(found: FileType) -> RootKind {
        match found {
            FileType::Directory => RootKind::Directory,
            FileType::RegularFile => RootKind::File,
            _ => RootKind::Other,
        }
    }

    /// Of what was found at a path.
    pub fn of_metadata(found: &std::fs::Metadata) -> RootKind {
        match found {
            _ if found.is_dir() => RootKind::Directory,
            _ if found.is_file() => RootKind::File,
            _ => RootKind::Other,
        }
    }

    /// How a source of this kind does not fit a destination that is there.
    pub fn misfit(self, destination: RootKind) -> Option<Misfit> {
        match (self, destination) {
            (RootKind::Directory, RootKind::Directory) => None,
            (RootKind::Directory, _) => Some(Misfit::NoDirectory),
            (_, RootKind::Directory) => Some(Misfit::Directory),
            (RootKind::File, RootKind::Other) => Some(Misfit::Special),
            _ => None,
        }
    }
}

impl Misfit {
    /// How two paths without links do not fit. A copy into itself has no end, and one over what contains it
    /// overwrites its source.
    pub fn of_paths(source: &AbsPath, destination: &AbsPath) -> Option<Misfit> {
        if source == destination {
            Some(Misfit::Same)
        } else if source.contains(destination) {
            Some(Misfit::DestinationInside)
        } else if destination.contains(source) {
            Some(Misfit::SourceInside)
        } else {
            None
        }
    }

    /// The error of a sync to `destination`, an absolute path.
    pub fn error(self, destination: &[u8]) -> FsError {
        FsError::new(Side::Destination, "use", destination, Cause::Misfit(self))
    }

    /// What is wrong, of the destination that is shown as `dst`.
    pub(super) fn describe(self, dst: &str) -> String {
        match self {
            Misfit::Same => format!("SRC and DST are the same ({dst})"),
            Misfit::DestinationInside => {
                format!("DST {dst} is inside SRC: the copy would include itself")
            }
            Misfit::SourceInside => {
                format!("DST {dst} contains SRC: the copy would overwrite its source")
            }
            Misfit::NoDirectory => format!("SRC is a directory, but DST {dst} is not"),
            Misfit::Directory => format!("SRC is a file, but DST {dst} is a directory"),
            Misfit::Special => format!(
                "SRC is a file, but DST {dst} is a device, FIFO or socket, which the copy would replace"
            ),
        }
    }

    /// What to do about it.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Misfit::Same | Misfit::DestinationInside | Misfit::SourceInside => {
                "choose a DST outside SRC"
            }
            Misfit::NoDirectory => "name a DST that is a directory or does not exist",
            Misfit::Directory => "DST is the file's new path: add the file's name to it",
            Misfit::Special => "DST is the file's new path; to have it replaced, remove it first",
        }
    }
}

impl Tree {
    /// The tree where links in the path of this one lead, as `link/` leads to a directory for rsync. One that leads
    /// out of the storage root is not followed.
    ///
    /// # Errors
    /// A link leads to nothing, out of the storage root, or in a circle.
    pub fn resolved(self) -> Result<Tree> {
        // Most paths hold no link. What is wrong otherwise shows when the tree is used.
        if !matches!(
            open_below(self.root.fd(), self.base.as_bytes()),
            Err(Errno::LOOP | Errno::NOTDIR)
        ) {
            return Ok(self);
        }
        let storage = Tree::new(self.root.clone(), RelPath::root());
        match storage.locate(&self.base, Links::Copy) {
            Ok(Located { real: Some(real), .. }) => Ok(Tree::new(self.root.clone(), real)
                .keeping(self.keep)
                .direct(self.direct)
                .of_assigned_root(!self.reopened)),
            Ok(_) => Ok(self),
            Err(error) => Err(self.root_error(match error.cause {
                Cause::Outside | Cause::Cycle => Errno::LOOP.into(),
                Cause::Dangling => Errno::NOENT.into(),
                cause => cause,
            })),
        }
    }

    /// What the root of this source is, provided that it can be read.
    ///
    /// # Errors
    /// It is not there, or this process may not read it.
    pub fn check_readable(&self) -> Result<RootKind> {
        let root = RelPath::root();
        let look = || {
            let place = self.place(&root)?;
            let kind = RootKind::of(type_of(&lstat(&place.dir, place.name)?));
            let needed = match kind {
                RootKind::Directory => Access::READ_OK | Access::EXEC_OK,
                RootKind::File => Access::READ_OK,
                RootKind::Other => Access::EXISTS,
            };
            may(&place.dir, place.name, needed)?;
            Ok::<_, Errno>(kind)
        };
        look().map_err(|errno| self.root_error(errno.into()))
    }

    /// An error of the root of this source.
    fn root_error(&self, cause: Cause) -> FsError {
        let cause = match cause {
            Cause::Os(Errno::NOENT | Errno::NOTDIR) => Cause::NoSource,
            cause => cause,
        };
        self.error("read", self.path().as_bytes(), cause)
    }
}

impl Target {
    /// Whether the root of a `source` of this kind can be written here: what is there fits it, and this process may
    /// write to it or, where it is missing, make it. A dry run needs only that it fits.
    ///
    /// # Errors
    /// It can't be. [`Cause::RootGone`]: that is not known.
    pub fn check_writable(&self, source: RootKind) -> Result<()> {
        self.check_root()?;
        let failed = |cause| {
            let op = if matches!(cause, Cause::Misfit(_)) { "use" } else { "write to" };
            self.tree.error(op, self.tree.path().as_bytes(), cause)
        };
        self.look_at_root(source).map_err(failed)
    }

    fn look_at_root(&self, source: RootKind) -> std::result::Result<(), Cause> {
        let (storage, base) = (self.tree.root.fd(), self.tree.base.as_bytes());
        let fits = |there| source.misfit(there).map_or(Ok(()), |misfit| Err(Cause::Misfit(misfit)));
        match open_below(storage, base) {
            Ok(dir) => {
                fits(RootKind::Directory)?;
                match self.may_write_in(&dir) {
                    // A sync may change nothing in the root itself: then each entry has its own outcome.
                    Err(Errno::ACCESS) if holds_writable_dir(&dir) => Ok(()),
                    other => Ok(other?),
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let root = RelPath::root();
                // Also where something above it is no directory, or a link.
                let place = self.tree.place(&root)?;
                match type_of(&lstat(&place.dir, place.name)?) {
                    // It is replaced, as an entry is.
                    FileType::Symlink if source != RootKind::Directory => {}
                    FileType::Symlink => return Err(Errno::LOOP.into()),
                    found => fits(RootKind::of(found))?,
                }
                Ok(self.may_write_in(&place.dir)?)
            }
            // Nothing new is wanted.
            Err(Errno::NOENT) if self.rules.existing => Ok(()),
            Err(Errno::NOENT | Errno::ACCESS) => {
                let mut above = split(base).0;
                let nearest = loop {
                    match open_below(storage, above) {
                        Err(Errno::NOENT | Errno::ACCESS) if !above.is_empty() => {
                            above = split(above).0;
                        }
                        other => break other?,
                    }
                };
                Ok(self.may_write_in(&nearest)?)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether names can be made in a directory; a dry run makes none.
    fn may_write_in(&self, dir: &OwnedFd) -> Step<()> {
        if self.rules.dry_run {
            return Ok(());
        }
        match may(dir, b".", Access::WRITE_OK | Access::EXEC_OK) {
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

/// Whether this process may do that to `name` in `dir`, as far as the kernel answers.
fn may(dir: impl AsFd, name: &[u8], access: Access) -> Step<()> {
    match rustix::fs::accessat(dir, name, access, AtFlags::EACCESS) {
        // An old kernel, or a container's filter.
        Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Whether one of the first directories in `dir` can be written to.
fn holds_writable_dir(dir: &OwnedFd) -> bool {
    let Ok(names) = Dir::read_from(dir) else { return false };
    let names = names.take(MAX_NAMES).filter_map(std::result::Result::ok);
    let mut dirs = names.filter(|entry| {
        let name = entry.file_name().to_bytes();
        entry.file_type() == FileType::Directory && name != b"." && name != b".."
    });
    let needed = Access::WRITE_OK | Access::EXEC_OK;
    dirs.any(|entry| rustix::fs::accessat(dir, entry.file_name(), needed, AtFlags::EACCESS).is_ok())
}

#[cfg(test)]
mod tests;
