//! Files with several names stay one file, although many agents bring the names over and none knows
//! what the others do. The destination itself is their meeting place: the first name of a file that is
//! complete there gets a second one, its *anchor*, in a directory of the sync at the destination root;
//! whoever brings another name of that file finds the anchor and links to it. `linkat` makes a name or
//! says `EEXIST`, so that of two that come at once one is the first. In the end [`Target::clean_up`]
//! removes the directory.
//!
//! ```text
//! .ctl-<sync>.links.part/5e/5e0c…   a link to the file that all names of family 5e0c… become
//! .ctl-<sync>.links.part/07/i-…     "this inode, found with other names, is taken for that family"
//! ```

use super::dress::Origin;
use super::error::{Cause, Result};
use super::meta::{lag, lstat, proc_path, size_of, type_of};
use super::names;
use super::notes::Shortfall;
use super::root::{Dir, Place, open_below, open_list_below};
use super::target::{Step, Target};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, EntryKind, ManifestDir};
use crate::wire::options::Attribute;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RawDir, Stat};
use rustix::io::Errno;
use std::sync::Arc;

/// The anchors of a sync, as far as this request knows them.
#[derive(Debug, Default)]
pub(super) struct Anchors(Mutex<Option<Dir>>);

/// What an anchor did for an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linked {
    /// There is none: the entry has to be brought over like any other.
    No,
    /// What stands there is that file already.
    Already,
    /// The name is one of that file now.
    Now,
}

/// Times that a name is tried that others make and remove meanwhile.
const TRIES: usize = 8;
/// By how much the time of an anchor may differ from the entry's, in nanoseconds: the coarsest clock of
/// a file system.
const CLOCK: u128 = 2_000_000_000;

impl Target {
    /// Whether this request made anchors, or found some: they are to be swept in the end.
    pub fn has_anchors(&self) -> bool {
        self.anchors().is_some()
    }

    /// Removes the anchors of this sync, and gives the root directory, which they stood in, its
    /// metadata again. That there are none is no error.
    ///
    /// # Errors
    /// One can't be removed, or the metadata not be set.
    pub fn sweep(&self, root: Option<&ManifestDir>) -> Result<()> {
        if self.rules.dry_run {
            return Ok(());
        }
        let failed = |op, cause: Cause| self.error(op, &RelPath::root(), cause);
        let dir = match self.tree.dir(b"") {
            // A single file, or nothing at all.
            Err(Errno::NOTDIR | Errno::NOENT) => return Ok(()),
            other => other.map_err(|e| failed("open", e.into()))?,
        };
        self.remove_anchors(&dir, &self.anchors_name())
            .map_err(|e| failed("remove hard-link anchors below", e.into()))?;
        self.keep_anchors(None);
        match root {
            Some(root) => self.stamp_one(&dir, &root.into(), Origin::There).map(drop),
            None => Ok(()),
        }
        .map_err(|cause| failed("set metadata of", cause))
    }

    /// Whether `entry` is one of several names that are to stay names of one file. A root has no
    /// others that this sync could see.
    pub(super) fn is_member(&self, entry: &Entry) -> bool {
        entry.is_hardlinked
            && !entry.is_dir()
            && !entry.path.is_root()
            && self.rules.preserve.contains(Attribute::Hardlinks)
    }

    /// Makes `place` a name of the file that another name of `entry` has become, where there is one.
    /// `there` is the lstat of what stands at `place`. To be asked before anything is compared.
    ///
    /// # Errors
    /// A call failed, or a directory that is not empty has the name.
    pub(super) fn link_up(
        &self,
        place: &Place<'_>,
        entry: &Entry,
        there: Option<&Stat>,
    ) -> std::result::Result<Linked, Cause> {
        if !self.is_member(entry) {
            return Ok(Linked::No);
        }
        let Some(anchor) = self.anchor(entry)? else { return Ok(Linked::No) };
        if there.is_some_and(|there| is_one(there, &anchor.stat)) {
            return Ok(Linked::Already);
        }
        if self.rules.dry_run {
            return Ok(Linked::Now);
        }
        match self.link_over(&place.dir, place.name, entry, &anchor) {
            Ok(()) => Ok(Linked::Now),
            // It will be told when the entry has been brought over.
            Err(Cause::Os(errno)) if is_no_link(errno) => Ok(Linked::No),
            Err(cause) => Err(cause),
        }
    }

    /// To be told of an object that has an entry's content, metadata and name: if it is one of several
    /// names, it becomes the anchor of the others, or a name of what their anchor is.
    ///
    /// # Errors
    /// A call failed, or the names can't stay one file and shall.
    pub(super) fn join(
        &self,
        dir: &Dir,
        name: &[u8],
        fd: &OwnedFd,
        entry: &Entry,
    ) -> std::result::Result<(), Cause> {
        if !self.is_member(entry) {
            return Ok(());
        }
        match self.try_join(dir, name, fd, entry) {
            Err(Cause::Os(errno)) if is_no_link(errno) => {
                self.policy.book.add(&entry.path, Shortfall::HardLink(errno))
            }
            other => other,
        }
    }

    fn try_join(
        &self,
        dir: &Dir,
        name: &[u8],
        fd: &OwnedFd,
        entry: &Entry,
    ) -> std::result::Result<(), Cause> {
        let (above, anchor_name) = self.anchor_name(entry);
        for _ in 0..TRIES {
            let made = self.in_anchors(&above, |anchors| {
                let to = format!("{above}/{anchor_name}");
                // By the descriptor: the name could lead to something else by now.
                let from = proc_path(fd.as_fd(), b"");
                rustix::fs::linkat(CWD, from, anchors, to, AtFlags::SYMLINK_FOLLOW)
            });
            match made {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
            let own = rustix::fs::fstat(fd)?;
            match self.anchor(entry)? {
                Some(anchor) if is_one(&own, &anchor.stat) => return Ok(()),
                Some(anchor) => return self.link_over(dir, name, entry, &anchor),
                // Somebody has written to it since, or it was swept: then it is nobody's anchor.
                None => self.in_anchors(&above, |anchors| {
                    let stale = format!("{above}/{anchor_name}");
                    match rustix::fs::unlinkat(anchors, stale, AtFlags::empty()) {
                        Err(Errno::NOENT) => Ok(()),
                        other => other,
                    }
                })?,
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Takes an object that was found with other names for `entry`'s file; `false` where it is taken
    /// for another file of the source already: two files there, which are one here, must be parted.
    ///
    /// # Errors
    /// A call failed.
    pub(super) fn claim(&self, stat: &Stat, entry: &Entry) -> Step<bool> {
        if stat.st_nlink < 2 {
            return Ok(true);
        }
        let above = format!("{:02x}", stat.st_ino & 0xff);
        let name = format!("{above}/i-{:x}-{:x}", stat.st_dev, stat.st_ino);
        let own = names::anchor(entry.hardlink_key()).1;
        let claimed = self.in_anchors(&above, |anchors| {
            match rustix::fs::symlinkat(own.as_str(), anchors, name.as_str()) {
                Err(Errno::EXIST) => {
                    let theirs = rustix::fs::readlinkat(anchors, name.as_str(), Vec::new())?;
                    Ok(theirs.as_bytes() == own.as_bytes())
                }
                other => other.map(|()| true),
            }
        });
        match claimed {
            // Where there can be no anchors, it is told when the entry is to join.
            Err(errno) if is_no_link(errno) => Ok(true),
            other => other,
        }
    }

    /// Gives `name` to what `anchor` is, under a temporary name first, as it may be taken.
    fn link_over(
        &self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        anchor: &Anchor,
    ) -> std::result::Result<(), Cause> {
        let temp = self.temp_name(&entry.path, 0, 0);
        let link =
            || rustix::fs::linkat(&anchor.dir, anchor.name.as_str(), dir, &temp, AtFlags::empty());
        match self.writable(dir, link) {
            Err(Errno::EXIST) => {
                self.clear_away(dir, &temp)?;
                self.writable(dir, link)?;
            }
            other => other?,
        }
        let renamed = match self.rename(dir, &temp, name) {
            // Another attempt took the temporary name: what it did with it is what we want.
            Err(Cause::Os(Errno::NOENT)) => match lstat(dir, name) {
                Ok(there) if is_one(&there, &anchor.stat) => Ok(()),
                _ => Err(Cause::Overtaken),
            },
            other => other,
        };
        // Renaming one name of a file to another of its names does nothing, and both stay.
        let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        renamed
    }

    /// Where the anchor of `entry`'s file is. The second pass has its own: what the first one brought is
    /// just what is to be read again, and what was found to be wrong must not be linked to.
    fn anchor_name(&self, entry: &Entry) -> (String, String) {
        let (above, name) = names::anchor(entry.hardlink_key());
        if self.rules.readback { (above, format!("{name}-again")) } else { (above, name) }
    }

    /// The anchor of `entry`'s file; `None` where there is none that is still that file.
    fn anchor(&self, entry: &Entry) -> Step<Option<Anchor>> {
        let dir = match self.anchors() {
            Some(dir) => dir,
            None => match self.open_anchors() {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) if is_no_link(errno) => return Ok(None),
                Err(errno) => return Err(errno),
            },
        };
        let (above, name) = self.anchor_name(entry);
        let name = format!("{above}/{name}");
        match lstat(&dir, name.as_bytes()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
            Ok(stat) => {
                let right = self.is_file_of(&dir, name.as_bytes(), &stat, entry);
                Ok(right.then_some(Anchor { dir, name, stat }))
            }
        }
    }

    /// Whether the object `name`, whose lstat is `stat`, can be what `entry` became.
    fn is_file_of(&self, dir: &Dir, name: &[u8], stat: &Stat, entry: &Entry) -> bool {
        let timed = self.rules.preserve.contains(Attribute::Times)
            && (0..=0x7fff_ffff).contains(&entry.meta.mtime_sec);
        if timed && lag(stat, &entry.meta) > CLOCK.max(self.rules.mtime_tolerance_ns.into()) {
            return false;
        }
        match &entry.kind {
            EntryKind::File { size } => {
                type_of(stat) == FileType::RegularFile && size_of(stat) == *size
            }
            EntryKind::Symlink { target } => rustix::fs::readlinkat(dir, name, Vec::new())
                .is_ok_and(|there| there.as_bytes() == target),
            EntryKind::Special { format, .. } => stat.st_mode & 0o170_000 == *format,
            EntryKind::Dir => false,
        }
    }

    /// Runs `step` in the directory of anchors, which has a directory `above`; both are made where they
    /// are missing.
    fn in_anchors<T>(&self, above: &str, step: impl Fn(&Dir) -> Step<T>) -> Step<T> {
        for _ in 0..TRIES {
            let dir = match self.anchors() {
                Some(dir) => dir,
                None => self.make_anchors()?,
            };
            match step(&dir) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
            match rustix::fs::mkdirat(&dir, above, Mode::RWXU) {
                // It is not what was missing: then the object is gone.
                Err(Errno::EXIST) => return step(&dir),
                // Swept meanwhile.
                Err(Errno::NOENT) => self.keep_anchors(None),
                other => other?,
            }
        }
        Err(Errno::BUSY)
    }

    fn make_anchors(&self) -> Step<Dir> {
        let (root, _) = self.dir(b"", false)?;
        let name = self.anchors_name();
        match self.writable(&root, || rustix::fs::mkdirat(&root, &name, Mode::RWXU)) {
            Ok(()) | Err(Errno::EXIST) => self.open_anchors(),
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory of anchors; `EPERM` where it is somebody else's, who could put into it what
    /// he likes.
    fn open_anchors(&self) -> Step<Dir> {
        let root = self.tree.dir(b"")?;
        let name = self.anchors_name();
        let dir = match self.writable(&root, || open_below(root.as_fd(), &name)) {
            // Planted.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(Errno::PERM),
            other => Arc::new(other?),
        };
        let stat = rustix::fs::fstat(&dir)?;
        // A server may know us by another number.
        if stat.st_uid != self.policy.euid && !self.is_remote(&dir) {
            return Err(Errno::PERM);
        }
        self.keep_anchors(Some(dir.clone()));
        Ok(dir)
    }

    fn anchors(&self) -> Option<Dir> {
        self.state.anchors.0.lock().clone()
    }

    fn keep_anchors(&self, dir: Option<Dir>) {
        *self.state.anchors.0.lock() = dir;
    }

    /// Removes a directory of anchors with all that is in it. No link is followed.
    ///
    /// # Errors
    /// It is none, or a call failed.
    pub(super) fn remove_anchors(&self, above: &Dir, name: &[u8]) -> Step<()> {
        let dir = match open_list_below(above.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return self.clear_away(above, name),
            other => other?,
        };
        for part in some_names(&dir)? {
            match open_list_below(dir.as_fd(), &part) {
                Ok(fd) => {
                    // Names can be passed over while others are removed.
                    loop {
                        let all = some_names(&fd)?;
                        if all.is_empty() {
                            break;
                        }
                        for one in all {
                            gone(rustix::fs::unlinkat(&fd, &one, AtFlags::empty()))?;
                        }
                    }
                    gone(rustix::fs::unlinkat(&dir, &part, AtFlags::REMOVEDIR))?;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    gone(rustix::fs::unlinkat(&dir, &part, AtFlags::empty()))?;
                }
                Err(errno) => return Err(errno),
            }
        }
        let remove = || rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR);
        gone(self.writable(above, remove))
    }
}

/// A name of a file in the directory of anchors.
struct Anchor {
    dir: Dir,
    name: String,
    stat: Stat,
}

/// Whether both are of one object.
pub(super) fn is_one(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// Whether it tells that there can be no link, so that the file is copied like any other.
fn is_no_link(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::XDEV
            | Errno::MLINK
            | Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::ROFS
            // There is no `/proc`, or the file was replaced meanwhile.
            | Errno::NOENT
    )
}

/// That somebody else removed it is fine.
fn gone(done: Step<()>) -> Step<()> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// At most so many names are read at once.
const NAMES: usize = 10_000;

fn some_names(dir: &OwnedFd) -> Step<Vec<Vec<u8>>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while names.len() < NAMES
        && let Some(entry) = entries.next()
    {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
