//! Hard links: names of one source file stay names of one file, although many agents copy them independently. The
//! agents meet at the destination: the first complete name of a file gets a second one, its *anchor*, in a directory
//! of the sync at the destination root; every later name is linked to the anchor. `linkat` creates a name or fails
//! with `EEXIST`, so one of two concurrent writers is the first. In the end [`Target::clean_up_anchors`] removes the
//! directory.
//!
//! ```text
//! .ctl-<sync>.links.part/5e/5e0c…   a link to the file that all names with the hard-link key 5e0c… become
//! .ctl-<sync>.links.part/07/i-…     "this inode, which has other names, belongs to that hard-link key"
//! ```

use super::beneath::{DirHandle, open_dir_below, open_listable_below};
use super::dir_list::{ListedName, list_dir};
use super::errno::{SysResult, ignore_missing};
use super::error::{Cause, CauseResult, Result};
use super::inode::{has_same_kind, is_same_object, lstat, mtime_delta_ns, proc_path};
use super::metadata::ObjectOrigin;
use super::metadata_warnings::MetadataWarning;
use super::root::ParentAndName;
use super::target::Target;
use super::temp_names;
use crate::wire::RelPath;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, ManifestDir};
use crate::wire::preserve::Attribute;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, Stat};
use rustix::io::Errno;
use std::sync::Arc;

/// Attempts to create a name that others create and remove concurrently.
const MAX_LINK_ATTEMPTS: usize = 8;
/// Allowed difference between the mtimes of anchor and entry, in nanoseconds: the coarsest clock of a file system.
const MAX_CLOCK_STEP_NS: u128 = 2_000_000_000;

impl Target {
    /// Whether this request created or found anchors, which are then cleaned up.
    pub fn has_anchors(&self) -> bool {
        self.cached_anchor_dir().is_some()
    }

    /// Removes the anchors of this sync and restores the metadata of the root directory. Missing anchors are no
    /// error.
    ///
    /// # Errors
    /// An anchor can't be removed, or the metadata not be set.
    pub fn clean_up_anchors(&self, root: Option<&ManifestDir>) -> Result<()> {
        if self.rules.dry_run {
            return Ok(());
        }
        let failed = |op, cause: Cause| self.error(op, &RelPath::root(), cause);
        let dir = match self.tree.cached_dir(b"") {
            // A single file, or nothing.
            Err(Errno::NOTDIR | Errno::NOENT) => return Ok(()),
            other => other.map_err(|e| failed("open", e.into()))?,
        };
        self.remove_anchor_dir(&dir, &self.anchor_dir_name())
            .map_err(|e| failed("remove hard-link anchors below", e.into()))?;
        self.cache_anchor_dir(None);
        let Some(root) = root else { return Ok(()) };
        let applied = self.apply_metadata_to_dir(&dir, &root.into(), ObjectOrigin::Existing);
        applied.map_err(|cause| failed("set metadata of", cause))
    }

    /// Whether `entry` has other names that must stay names of one file. The root of a sync has none that the sync
    /// could see.
    pub(super) fn is_hardlinked(&self, entry: &Entry) -> bool {
        entry.is_hardlinked
            && !entry.is_dir()
            && !entry.path.is_root()
            && self.rules.preserve.contains(Attribute::Hardlinks)
    }

    /// Makes `place` a name of the anchor of `entry`: [`EntryAction::Skip`] where it is one, `action` where it becomes one
    /// (in a dry run: would); `None` where there is no anchor, and the entry is copied like any other. `there` is the
    /// lstat of the object at `place`. Called before anything is compared.
    ///
    /// # Errors
    /// A call failed, or a directory that is not empty has the name.
    pub(super) fn link_to_anchor(
        &self,
        place: &ParentAndName<'_>,
        entry: &Entry,
        there: Option<&Stat>,
        action: EntryAction,
    ) -> CauseResult<Option<EntryAction>> {
        if !self.is_hardlinked(entry) {
            return Ok(None);
        }
        let Some(anchor) = self.find_anchor(entry)? else { return Ok(None) };
        if there.is_some_and(|there| is_same_object(there, &anchor.stat)) {
            return Ok(Some(EntryAction::Skip));
        }
        if self.rules.dry_run {
            return Ok(Some(action));
        }
        match self.replace_with_link(&place.dir, place.name, entry, &anchor) {
            Ok(()) => Ok(Some(action)),
            // A warning is recorded when the entry has been copied.
            Err(Cause::Os(errno)) if is_link_unsupported(errno) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Registers an object with an entry's content, metadata and name: if it has several names, it becomes their
    /// anchor or is replaced by a link to it.
    ///
    /// # Errors
    /// A call failed, or the names can't stay one file and strict metadata is required.
    pub(super) fn register_anchor(
        &self,
        dir: &DirHandle,
        name: &[u8],
        fd: &OwnedFd,
        entry: &Entry,
    ) -> CauseResult<()> {
        if !self.is_hardlinked(entry) {
            return Ok(());
        }
        match self.try_register_anchor(dir, name, fd, entry) {
            Err(Cause::Os(errno)) if is_link_unsupported(errno) => {
                Ok(self.policy.warnings.record(&entry.path, MetadataWarning::HardLink(errno))?)
            }
            other => other,
        }
    }

    fn try_register_anchor(
        &self,
        dir: &DirHandle,
        name: &[u8],
        fd: &OwnedFd,
        entry: &Entry,
    ) -> CauseResult<()> {
        let (above, anchor_name) = self.anchor_path(entry);
        for _ in 0..MAX_LINK_ATTEMPTS {
            let made = self.with_anchor_dir(&above, |anchors| {
                let to = format!("{above}/{anchor_name}");
                // By descriptor: the name could be another object by now.
                let from = proc_path(fd.as_fd(), b"");
                rustix::fs::linkat(CWD, from, anchors, to, AtFlags::SYMLINK_FOLLOW)
            });
            match made {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
            let own = rustix::fs::fstat(fd)?;
            match self.find_anchor(entry)? {
                Some(anchor) if is_same_object(&own, &anchor.stat) => return Ok(()),
                Some(anchor) => return self.replace_with_link(dir, name, entry, &anchor),
                // It was modified or cleaned up: it is no anchor.
                None => self.with_anchor_dir(&above, |anchors| {
                    let stale = format!("{above}/{anchor_name}");
                    ignore_missing(rustix::fs::unlinkat(anchors, stale, AtFlags::empty()))
                })?,
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Claims an object with several names for `entry`'s file; `false` where it is claimed for another source file:
    /// two source files that are one here must be separated.
    ///
    /// # Errors
    /// A call failed.
    pub(super) fn claim_inode(&self, stat: &Stat, entry: &Entry) -> SysResult<bool> {
        if stat.st_nlink < 2 {
            return Ok(true);
        }
        let above = format!("{:02x}", stat.st_ino & 0xff);
        let name = format!("{above}/i-{:x}-{:x}", stat.st_dev, stat.st_ino);
        let own = temp_names::anchor_path(entry.hardlink_key()).1;
        let claimed = self.with_anchor_dir(&above, |anchors| {
            match rustix::fs::symlinkat(own.as_str(), anchors, name.as_str()) {
                Err(Errno::EXIST) => {
                    let theirs = rustix::fs::readlinkat(anchors, name.as_str(), Vec::new())?;
                    Ok(theirs.as_bytes() == own.as_bytes())
                }
                other => other.map(|()| true),
            }
        });
        match claimed {
            // Without anchors, the warning is recorded by `register_anchor`.
            Err(errno) if is_link_unsupported(errno) => Ok(true),
            other => other,
        }
    }

    /// Replaces `name` by a link to `anchor`, through a temporary name.
    fn replace_with_link(
        &self,
        dir: &DirHandle,
        name: &[u8],
        entry: &Entry,
        anchor: &Anchor,
    ) -> CauseResult<()> {
        let temp = self.temp_file_name(&entry.path, 0, 0);
        let link =
            || rustix::fs::linkat(&anchor.dir, anchor.name.as_str(), dir, &temp, AtFlags::empty());
        self.create_replacing(dir, &temp, link)?;
        let renamed = match self.rename_into_place(dir, &temp, name) {
            // Another attempt renamed the temporary name, with the same result.
            Err(Cause::Os(Errno::NOENT)) => match lstat(dir, name) {
                Ok(there) if is_same_object(&there, &anchor.stat) => Ok(()),
                _ => Err(Cause::Superseded),
            },
            other => other,
        };
        // Renaming one name of a file to another of its names does nothing, and both remain.
        let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        renamed
    }

    /// The path of the anchor of `entry`'s file. The readback pass has its own: the first pass brought what is read
    /// again, and wrong content must not be linked to.
    fn anchor_path(&self, entry: &Entry) -> (String, String) {
        let (above, name) = temp_names::anchor_path(entry.hardlink_key());
        if self.rules.readback { (above, format!("{name}-again")) } else { (above, name) }
    }

    /// The anchor of `entry`'s file; `None` where there is none, or it is another file.
    fn find_anchor(&self, entry: &Entry) -> SysResult<Option<Anchor>> {
        let dir = match self.cached_anchor_dir() {
            Some(dir) => dir,
            None => match self.open_anchor_dir() {
                Ok(dir) => dir,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) if is_link_unsupported(errno) => return Ok(None),
                Err(errno) => return Err(errno),
            },
        };
        let (above, name) = self.anchor_path(entry);
        let name = format!("{above}/{name}");
        match lstat(&dir, name.as_bytes()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
            Ok(stat) => {
                let right = self.matches_entry(&dir, name.as_bytes(), &stat, entry);
                Ok(right.then_some(Anchor { dir, name, stat }))
            }
        }
    }

    /// Whether the object `name` with this lstat can be a copy of `entry`.
    fn matches_entry(&self, dir: &DirHandle, name: &[u8], stat: &Stat, entry: &Entry) -> bool {
        let timed = self.rules.preserve.contains(Attribute::Times)
            && (0..=0x7fff_ffff).contains(&entry.meta.mtime_sec);
        let tolerance = MAX_CLOCK_STEP_NS.max(self.rules.mtime_tolerance_ns.into());
        (!timed || mtime_delta_ns(stat, &entry.meta) <= tolerance)
            && has_same_kind(dir, name, stat, &entry.kind)
    }

    /// Runs `step` in the directory of anchors, with a subdirectory `above`; both are created if missing.
    fn with_anchor_dir<T>(
        &self,
        above: &str,
        step: impl Fn(&DirHandle) -> SysResult<T>,
    ) -> SysResult<T> {
        for _ in 0..MAX_LINK_ATTEMPTS {
            let dir = match self.cached_anchor_dir() {
                Some(dir) => dir,
                None => self.create_anchor_dir()?,
            };
            match step(&dir) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
            match rustix::fs::mkdirat(&dir, above, Mode::RWXU) {
                // The subdirectory exists: the object of `step` is missing.
                Err(Errno::EXIST) => return step(&dir),
                // Cleaned up concurrently.
                Err(Errno::NOENT) => self.cache_anchor_dir(None),
                other => other?,
            }
        }
        Err(Errno::BUSY)
    }

    fn create_anchor_dir(&self) -> SysResult<DirHandle> {
        let root = self.ensure_dir(b"")?;
        let name = self.anchor_dir_name();
        match self.with_writable_dir(&root, || rustix::fs::mkdirat(&root, &name, Mode::RWXU)) {
            Ok(()) | Err(Errno::EXIST) => self.open_anchor_dir(),
            Err(errno) => Err(errno),
        }
    }

    /// Opens the directory of anchors; `EPERM` where another user owns it and controls its content.
    fn open_anchor_dir(&self) -> SysResult<DirHandle> {
        let root = self.tree.cached_dir(b"")?;
        let name = self.anchor_dir_name();
        let dir = match self.with_writable_dir(&root, || open_dir_below(root.as_fd(), &name)) {
            // Planted.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(Errno::PERM),
            other => Arc::new(other?),
        };
        let stat = rustix::fs::fstat(&dir)?;
        // A server may map our uid to another one.
        if stat.st_uid != self.policy.euid && !self.is_remote(&dir) {
            return Err(Errno::PERM);
        }
        self.cache_anchor_dir(Some(dir.clone()));
        Ok(dir)
    }

    fn cached_anchor_dir(&self) -> Option<DirHandle> {
        self.state.anchor_dir.lock().clone()
    }

    fn cache_anchor_dir(&self, dir: Option<DirHandle>) {
        *self.state.anchor_dir.lock() = dir;
    }

    /// Removes a directory of anchors with its content. No link is followed.
    ///
    /// # Errors
    /// It is none, or a call failed.
    pub(super) fn remove_anchor_dir(&self, above: &DirHandle, name: &[u8]) -> SysResult<()> {
        let dir = match open_listable_below(above.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return self.remove_non_directory(above, name),
            other => other?,
        };
        for (part, _) in read_names(&dir)? {
            match open_listable_below(dir.as_fd(), &part) {
                Ok(fd) => {
                    // A listing can miss names while others are removed.
                    loop {
                        let all = read_names(&fd)?;
                        if all.is_empty() {
                            break;
                        }
                        for (one, _) in all {
                            ignore_missing(rustix::fs::unlinkat(&fd, &*one, AtFlags::empty()))?;
                        }
                    }
                    ignore_missing(rustix::fs::unlinkat(&dir, &*part, AtFlags::REMOVEDIR))?;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    ignore_missing(rustix::fs::unlinkat(&dir, &*part, AtFlags::empty()))?;
                }
                Err(errno) => return Err(errno),
            }
        }
        ignore_missing(self.unlink(above, name, AtFlags::REMOVEDIR))
    }
}

/// A name of a file in the directory of anchors.
struct Anchor {
    dir: DirHandle,
    name: String,
    stat: Stat,
}

/// Whether no link is possible, so that the file is copied like any other.
fn is_link_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::XDEV
            | Errno::MLINK
            | Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::ROFS
            // There is no `/proc`, or the file was replaced.
            | Errno::NOENT
    )
}

/// The most names that are read at once.
const MAX_NAMES_PER_READ: usize = 10_000;

fn read_names(dir: &OwnedFd) -> SysResult<Vec<ListedName>> {
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let listing = list_dir(dir, None, MAX_NAMES_PER_READ, |_| true);
    listing.error.map_or(Ok(listing.names), Err)
}

#[cfg(test)]
mod tests;
