//! Where a mirror moves what it would delete: `<trash>/<request id>/<path>` below the destination root.

use super::dress::{Origin, Outfit};
use super::meta::{entry_of, lstat, meta_of, set_mtime};
use super::root::Dir;
use super::target::{Step, Target};
use crate::wire::options::Preserve;
use crate::wire::{RelPath, RequestId};
use rustix::fd::AsFd;
use rustix::fs::{RenameFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;

/// Names that are tried for something whose name is taken in the trash.
const TRIES: u32 = 100;

/// The trash of one sync.
pub(super) struct Trash<'a> {
    target: &'a Target,
    path: &'a RelPath,
    /// What this sync deletes.
    base: RelPath,
    /// It is there.
    ready: bool,
}

impl<'a> Trash<'a> {
    /// The trash of this request, where the rules say that there is one.
    pub(super) fn of(target: &'a Target, request: &RequestId) -> Option<Self> {
        let path = target.rules.trash.as_ref().filter(|path| !path.is_root())?;
        let base = path.child(request.as_str().as_bytes()).ok()?;
        Some(Trash { target, path, base, ready: false })
    }

    /// All of it, also what other syncs moved there.
    pub(super) fn path(&self) -> &RelPath {
        self.path
    }

    /// Moves `name` in `dir`, which is no directory, to where `path` belongs in the trash.
    pub(super) fn take(&mut self, dir: &Dir, name: &[u8], path: &RelPath) -> Step<()> {
        let above = self.dir(&path.parent().unwrap_or_default())?;
        for n in 0..TRIES {
            let mut to = name.to_vec();
            if n > 0 {
                to.extend_from_slice(format!("~{n}").as_bytes());
            }
            match self.target.writable(dir, || rename_beside(dir, name, &above, &to)) {
                // Something of this path was moved there before.
                Err(Errno::EXIST) => {}
                other => return other,
            }
        }
        Err(Errno::EXIST)
    }

    /// Gives the directory for `path` in the trash what `name` in `dir` has, whose lstat was `stat` before
    /// it was emptied.
    pub(super) fn take_dir(
        &mut self,
        dir: &Dir,
        name: &[u8],
        path: &RelPath,
        stat: &Stat,
    ) -> Step<()> {
        let there = self.dir(path)?;
        let dressed =
            entry_of(dir.as_fd(), name, path.clone(), stat, Preserve::all()).and_then(|entry| {
                self.target.policy.dress(&there, &Outfit::from(&entry), Origin::New(None))
            });
        if let Err(cause) = dressed {
            // What is kept of it is a kindness: not worth to keep the directory for.
            tracing::debug!(%path, ?cause, "a directory in the trash lacks its metadata");
        }
        Ok(())
    }

    /// The directory for what was in `path`, made where it is missing.
    fn dir(&mut self, path: &RelPath) -> Step<Dir> {
        if !self.ready {
            self.make()?;
        }
        Ok(self.target.dir(self.base.join(path).as_bytes(), false)?.0)
    }

    /// Makes the trash itself; the directory above it keeps its time.
    fn make(&mut self) -> Step<()> {
        let tree = &self.target.tree;
        let mut above = self.path.clone();
        let found = loop {
            match tree.dir(above.as_bytes()) {
                Ok(dir) => break dir,
                Err(Errno::NOENT) => above = above.parent().ok_or(Errno::NOENT)?,
                Err(errno) => return Err(errno),
            }
        };
        if above != *self.path {
            let found = Arc::clone(&found);
            let before = rustix::fs::fstat(&found)?;
            self.target.dir(self.path.as_bytes(), false)?;
            set_mtime(found.as_fd(), &meta_of(&before))?;
        }
        self.ready = true;
        Ok(())
    }
}

/// Renames without taking the place of anything.
fn rename_beside(from: &Dir, name: &[u8], to: &Dir, new: &[u8]) -> Step<()> {
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
