//! The walk over a source: depth first, names sorted by bytes, resumable after any entry.
//!
//! The order is [`RelPath`]'s, so a cursor is the path returned last: resuming means "everything greater", whatever
//! was added or removed since. Memory is bounded: at most [`MAX_NAMES_HELD`] names of each directory on the path
//! (then it is listed again), and at most [`MAX_PARENT_PATH_BYTES`] bytes of the path itself. Descriptors are bounded
//! too: upper levels are closed and opened again.

use super::beneath::{DirHandle, open_dir_below, open_listable_below, split_parent};
use super::dir_list::{ListedName, list_dir};
use super::errno::SysResult;
use super::error::{Cause, Result};
use super::filter::Filter;
use super::fs_type::is_pseudo_fs;
use super::inode::{lstat, meta_of, type_of};
use super::root::{ParentAndName, Tree};
use super::symlinks::{ResolvedDir, ResolvedPath};
use super::temp_names::{TRASH_MARKER, is_internal_name};
use crate::wire::RelPath;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::errno::is_resource_exhaustion;
use crate::wire::manifest::{Entry, EntryKind, ManifestDir};
use crate::wire::options::Links;
use crate::wire::storage::ProbeName;
use crate::wire::task::{Cursor, RootIdentity};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;

/// The most names of one directory in memory (twice as many during the listing).
pub const MAX_NAMES_HELD: usize = 100_000;
/// Levels of which the descriptors stay open.
const MAX_OPEN_LEVELS: usize = 12;
/// The most bytes of the paths of all directories above an entry, together. Each manifest has all of them and is
/// limited to twice this; deeper directories are reported, not entered.
pub const MAX_PARENT_PATH_BYTES: usize = crate::wire::manifest::MAX_MANIFEST_BYTES / 2;
/// The cause under which skipped links are counted.
pub const LINKS_SKIPPED: &str = "symbolic links left out (links: skip)";
/// The cause under which internal unfinished files are counted, which are no part of a source.
pub const UNFINISHED_SKIPPED: &str =
    "unfinished files of a sync into this source left out (`.ctl-….part`)";

/// What of a source is walked, and how.
#[derive(Debug, Clone, Default)]
pub struct WalkOptions {
    /// What is excluded; an excluded directory is not opened.
    pub filter: Arc<Filter>,
    /// How symbolic links are handled.
    pub links: Links,
    /// Device and inode of the destination directory, where known: it may be mounted at the source as well, and would
    /// be copied into itself endlessly.
    pub destination: Option<(u64, u64)>,
}

/// A walk in progress; see [`Tree::walk`]. Its items are entries, and errors in place of unreadable ones (then the
/// walk continues after them).
#[derive(Debug)]
pub struct Walk {
    tree: Tree,
    options: WalkOptions,
    /// What was excluded since the last [`Walk::take_exclusions`].
    exclusions: EntryWarnings,
    /// The directories above the next entry, from the root.
    dirs: Vec<ManifestDir>,
    /// One for each of `dirs`.
    resolved_dirs: Vec<ResolvedDir>,
    /// The bytes of their paths.
    parent_path_bytes: usize,
    /// One for each of the last `levels.len()` of `dirs`.
    levels: Vec<WalkLevel>,
    /// Returned before anything else: the root's entry, errors of resuming.
    pending: VecDeque<Result<Entry>>,
    /// The directory returned last, entered by the next call.
    next_dir: Option<OpenedDir>,
    /// After what was returned last.
    cursor: Option<Cursor>,
    max_names_held: usize,
    /// The file system of the directory entered last, which is no pseudo file system.
    current_device: u64,
}

#[derive(Debug)]
struct WalkLevel {
    /// `None`: closed to save descriptors.
    fd: Option<DirHandle>,
    names: std::vec::IntoIter<ListedName>,
    /// There are more names after this one, not in memory.
    next_after: Option<Box<[u8]>>,
}

#[derive(Debug)]
struct OpenedDir {
    dir: ManifestDir,
    resolved: ResolvedDir,
    /// The errno, where it can't be listed.
    fd: SysResult<OwnedFd>,
}

/// A name, or the target of the link of that name.
struct FoundObject {
    dir: DirHandle,
    name: Vec<u8>,
    stat: Stat,
    real_path: Option<RelPath>,
}

impl Tree {
    /// Walks everything below the directory `dir`, after `cursor` where one is given. The root's own entry comes
    /// first if `dir` is the root and there is no cursor; otherwise `dir` itself is not returned. A root that is a
    /// file is returned as one entry with the empty path, unless the filter excludes it.
    ///
    /// Internal unfinished files are skipped and counted ([`UNFINISHED_SKIPPED`]). The marker of a trash is walked
    /// like any file.
    ///
    /// # Errors
    /// `dir` can't be opened, is a symbolic link, or is in a file system like `proc`, where files have no length to
    /// copy by. If one is mounted further down, an error is returned in its place.
    pub fn walk(&self, dir: &RelPath, cursor: Option<&Cursor>) -> Result<Walk> {
        self.walk_with(dir, cursor, WalkOptions::default())
    }

    /// Like [`Tree::walk`], with options. An unreadable directory is returned as its entry and then an error for its
    /// contents.
    ///
    /// With [`Links::Copy`] a link is returned as an entry of its target's type, with [`Entry::content_path`]; so is
    /// everything below a directory that was reached through a link. A link that is dangling, points outside of the
    /// storage root or is part of a cycle is an error in its place.
    ///
    /// # Errors
    /// As [`Tree::walk`].
    pub fn walk_with(
        &self,
        dir: &RelPath,
        cursor: Option<&Cursor>,
        options: WalkOptions,
    ) -> Result<Walk> {
        self.walk_with_limit(dir, cursor, options, MAX_NAMES_HELD)
    }

    /// Device and inode of its root, if that is a directory.
    pub fn root_inode(&self) -> Option<(u64, u64)> {
        let fd = self.open_listable_dir(b"").ok()?;
        rustix::fs::fstat(&fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// The identity of its root, of whatever kind; `None` if there is none.
    pub fn walk_start(&self) -> Option<RootIdentity> {
        if let Some((device, inode)) = self.root_inode() {
            return Some(RootIdentity { device, inode });
        }
        let (entry, _) = self.find_entry(&RelPath::root(), Links::Keep).ok()?;
        Some(RootIdentity { device: entry.version.dev, inode: entry.version.ino })
    }

    fn walk_with_limit(
        &self,
        dir: &RelPath,
        cursor: Option<&Cursor>,
        options: WalkOptions,
        names: usize,
    ) -> Result<Walk> {
        let ResolvedPath { dirs, resolved_dirs: ways, real_path: real } =
            self.resolve_path(dir, options.links)?;
        let mut walk = Walk {
            tree: self.clone(),
            options,
            exclusions: EntryWarnings::new(),
            parent_path_bytes: dirs.iter().map(|d| d.path.as_bytes().len()).sum(),
            dirs,
            resolved_dirs: ways,
            levels: Vec::new(),
            pending: VecDeque::new(),
            next_dir: None,
            cursor: cursor.cloned(),
            max_names_held: names,
            current_device: 0,
        };
        if dir.is_root() {
            let root = self.entry(dir)?;
            if matches!(root.kind, EntryKind::Symlink { .. }) {
                return Err(self.error("walk", b"", Errno::LOOP));
            }
            if !root.is_dir() {
                let name = split_parent(self.base.as_bytes()).1;
                match walk.options.filter.option_that_excludes_source(&root, name) {
                    Some(what) => {
                        let cause =
                            format!("nothing to do: SRC is a file, and {what} leaves it out");
                        walk.exclusions.entry(cause).or_default().add(b"");
                    }
                    None => walk.pending.extend(cursor.is_none().then_some(Ok(root))),
                }
                return Ok(walk);
            }
            walk.pending.extend(cursor.is_none().then_some(Ok(root)));
        }
        let failed = |op| move |errno: Errno| self.error(op, dir.as_bytes(), errno);
        let fd = self.open_resolved(dir.as_bytes(), real.as_ref(), true).map_err(failed("open"))?;
        let stat = rustix::fs::fstat(&fd).map_err(failed("read metadata of"))?;
        if is_pseudo_fs(&fd).map_err(failed("read metadata of"))? {
            return Err(self.error("enter", dir.as_bytes(), Cause::PseudoFileSystem));
        }
        walk.current_device = stat.st_dev;
        if walk.options.destination == Some((stat.st_dev, stat.st_ino)) {
            return Err(self.error("enter", dir.as_bytes(), Cause::IsDestination));
        }
        let way = ResolvedDir { inode_id: (stat.st_dev, stat.st_ino), real_path: real };
        let dir = ManifestDir { path: dir.clone(), meta: meta_of(&stat) };
        let start = OpenedDir { dir, resolved: way, fd: Ok(fd) };
        match cursor {
            Some(cursor) => walk.resume_after(start, cursor),
            None => walk.next_dir = Some(start),
        }
        Ok(walk)
    }
}

impl Walk {
    /// The directories above the entry returned last, the root first.
    pub fn dirs(&self) -> &[ManifestDir] {
        &self.dirs
    }

    /// Does not enter the directory just returned: its contents belong to another task.
    pub fn skip_contents(&mut self) {
        if self.next_dir.take().is_some()
            && let Some(cursor) = &mut self.cursor
        {
            cursor.skip_contents = true;
        }
    }

    /// Where to resume after what was returned last (also after an error: it is not returned again); `None` before
    /// the first item.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// Returns what was excluded since the last call, and before [`Walk::cursor`].
    pub fn take_exclusions(&mut self) -> EntryWarnings {
        std::mem::take(&mut self.exclusions)
    }

    /// Enters the directories that lead to the cursor, each after the name that leads down.
    fn resume_after(&mut self, start: OpenedDir, cursor: &Cursor) {
        let (dir, after) = (&start.dir.path, &cursor.after);
        if cursor.skip_contents && after.contains(dir) {
            return;
        }
        if !dir.contains(after) {
            // After all of it, or before.
            if after < dir {
                self.next_dir = Some(start);
            }
            return;
        }
        let skip = dir.components().count();
        let mut way = after.components().skip(skip).peekable();
        let mut next = Some(start);
        while let Some(here) = next.take() {
            let Some(name) = way.next() else {
                self.next_dir = Some(here);
                return;
            };
            let unreadable = here.fd.is_err();
            if let Err(error) = self.enter_dir(here, Some(name)) {
                self.pending.push_back(Err(error));
            }
            if unreadable {
                return;
            }
            let last = way.peek().is_none();
            if last && cursor.skip_contents {
                return;
            }
            // Its own entry was returned before the cursor was taken. If it was removed, or is no directory any more,
            // nothing inside is left to resume.
            match self.inspect_name(name) {
                Ok(found) => next = found.and_then(|(_, enter)| enter),
                Err(error) => self.pending.push_back(Err(error)),
            }
        }
    }

    /// Makes `here` the current directory and lists it, after `after`. After an error in the middle of the listing,
    /// the names before it are still walked.
    fn enter_dir(&mut self, here: OpenedDir, after: Option<&[u8]>) -> Result<()> {
        let path = here.dir.path.clone();
        let fd = here.fd.map_err(|e| self.tree.error("open", path.as_bytes(), e))?;
        let listing = list_dir(&fd, after, self.max_names_held, |_| true);
        self.parent_path_bytes += path.as_bytes().len();
        self.dirs.push(here.dir);
        self.resolved_dirs.push(here.resolved);
        let (fd, names) = (Some(Arc::new(fd)), listing.names.into_iter());
        self.levels.push(WalkLevel { fd, names, next_after: listing.next_after });
        if let Some(at) = self.levels.len().checked_sub(MAX_OPEN_LEVELS + 1) {
            self.levels[at].fd = None;
        }
        let failed = |errno| Err(self.tree.error("list", path.as_bytes(), errno));
        listing.error.map_or(Ok(()), failed)
    }

    fn leave_dir(&mut self) {
        self.levels.pop();
        self.resolved_dirs.pop();
        if let Some(dir) = self.dirs.pop() {
            self.parent_path_bytes -= dir.path.as_bytes().len();
        }
    }

    /// The entry of `name` in the current directory, and the open directory if it is one; `None` if it is removed or
    /// excluded.
    fn inspect_name(&mut self, name: &[u8]) -> Result<Option<(Entry, Option<OpenedDir>)>> {
        let above = self.dirs.last().map(|d| d.path.clone()).unwrap_or_default();
        let path = above.child(name).map_err(|_| {
            let full = [above.as_bytes(), b"/", name].concat();
            self.tree.error("read metadata of", &full, Errno::NAMETOOLONG)
        })?;
        if is_internal_name(name) && name != TRASH_MARKER {
            // Probe files come and go without any sync, so they are not reported as left behind.
            if !ProbeName::is_valid(name) && !self.options.filter.excludes(&path, false) {
                self.exclusions
                    .entry(UNFINISHED_SKIPPED.to_owned())
                    .or_default()
                    .add(path.as_bytes());
            }
            return Ok(None);
        }
        let Some(dir) = self.current_dir(&above)? else { return Ok(None) };
        let Some(spot) = self.find_object(dir, name, &path)? else { return Ok(None) };
        if type_of(&spot.stat) == FileType::Directory {
            return Ok(self.open_found_dir(spot, path)?.map(|(entry, enter)| (entry, Some(enter))));
        }
        let tree = &self.tree;
        let dir = spot.dir.as_fd();
        let entry = match tree.entry_of(dir, &spot.name, path.clone(), &spot.stat) {
            Err(Cause::Os(Errno::NOENT)) => return Ok(None),
            other => other.map_err(|e| tree.error("read metadata of", path.as_bytes(), e))?,
        };
        let entry = Entry { content_path: spot.real_path, ..entry };
        // Limits select files, and without its marker a copy of a trash would be no trash.
        let wanted = name == TRASH_MARKER || !self.options.filter.exceeds_limits(&entry);
        Ok(wanted.then_some((entry, None)))
    }

    /// The current directory, opened again if it was closed.
    fn current_dir(&mut self, path: &RelPath) -> Result<Option<DirHandle>> {
        let real = self.resolved_dirs.last().and_then(|way| way.real_path.as_ref());
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.fd.is_none() {
            let fd = self.tree.open_resolved(path.as_bytes(), real, false).map_err(|errno| {
                // Its other names can't be read either: one report is enough.
                (level.names, level.next_after) = (Vec::new().into_iter(), None);
                self.tree.error("open", path.as_bytes(), errno)
            })?;
            level.fd = Some(Arc::new(fd));
        }
        Ok(level.fd.clone())
    }

    /// The object of this name or, for a link to be followed, its target; `None` if it is removed or excluded.
    fn find_object(
        &mut self,
        dir: DirHandle,
        name: &[u8],
        path: &RelPath,
    ) -> Result<Option<FoundObject>> {
        let (tree, filter) = (&self.tree, &self.options.filter);
        let failed = |op, cause: Cause| tree.error(op, path.as_bytes(), cause);
        let stat = match lstat(&dir, name) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| failed("read metadata of", e.into()))?,
        };
        let is_dir = |stat: &Stat| type_of(stat) == FileType::Directory;
        if filter.excludes(path, is_dir(&stat)) {
            return Ok(None);
        }
        let real = self.resolved_dirs.last().and_then(|way| way.real_path.as_ref());
        if type_of(&stat) != FileType::Symlink || self.options.links == Links::Keep {
            let real = real.and_then(|real| real.child(name).ok());
            return Ok(Some(FoundObject { dir, name: name.to_vec(), stat, real_path: real }));
        }
        if self.options.links == Links::Skip {
            self.exclusions.entry(LINKS_SKIPPED.to_owned()).or_default().add(path.as_bytes());
            return Ok(None);
        }
        let real = tree.resolve_link(dir.as_fd(), name).map_err(|cause| failed("follow", cause))?;
        let storage = tree.storage_tree();
        let unreachable = |errno| failed("follow", cause_after_resolve(errno));
        let ParentAndName { dir, name } = storage.locate(&real).map_err(unreachable)?;
        let (name, stat) = (name.to_vec(), lstat(&dir, name).map_err(unreachable)?);
        if is_dir(&stat) && filter.excludes(path, true) {
            return Ok(None);
        }
        if !is_dir(&stat) && is_pseudo_fs(&dir).map_err(|e| failed("follow", e.into()))? {
            return Err(failed("copy", Cause::PseudoFileSystem));
        }
        Ok(Some(FoundObject { dir, name, stat, real_path: Some(real) }))
    }

    /// A directory's entry, and the open directory; `None` if it is removed.
    fn open_found_dir(
        &mut self,
        spot: FoundObject,
        path: RelPath,
    ) -> Result<Option<(Entry, OpenedDir)>> {
        let tree = &self.tree;
        let at = |op: &'static str, cause: Cause| tree.error(op, path.as_bytes(), cause);
        if self.parent_path_bytes + path.as_bytes().len() > MAX_PARENT_PATH_BYTES {
            return Err(at("enter", Errno::NAMETOOLONG.into()));
        }
        let mut fd = open_listable_below(spot.dir.as_fd(), &spot.name);
        if matches!(fd, Err(Errno::MFILE | Errno::NFILE)) {
            self.levels.iter_mut().for_each(|level| level.fd = None);
            fd = open_listable_below(spot.dir.as_fd(), &spot.name);
        }
        // What can't be listed can still have its metadata read.
        let closed = match fd {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ACCESS) => Some(open_dir_below(spot.dir.as_fd(), &spot.name)),
            _ => None,
        };
        let seen = match (&closed, &fd) {
            (Some(Ok(fd)), _) | (None, Ok(fd)) => fd,
            (Some(Err(errno)), _) | (None, Err(errno)) => {
                return Err(at("open", Cause::Os(*errno)));
            }
        };
        // Metadata by descriptor, so that metadata and contents are of one directory.
        let stat = rustix::fs::fstat(seen).map_err(|e| at("read metadata of", e.into()))?;
        let entry = tree.entry_of(seen.as_fd(), b"", path.clone(), &stat);
        let entry = entry.map_err(|e| at("read metadata of", e))?;
        if stat.st_dev != self.current_device {
            // Another file system is mounted here.
            if is_pseudo_fs(seen).map_err(|e| at("read metadata of", e.into()))? {
                return Err(at("enter", Cause::PseudoFileSystem));
            }
            self.current_device = stat.st_dev;
        }
        let id = (stat.st_dev, stat.st_ino);
        if self.options.links == Links::Copy
            && self.resolved_dirs.iter().any(|way| way.inode_id == id)
        {
            return Err(at("enter", Cause::LinkCycle));
        }
        if self.options.destination == Some(id) {
            return Err(at("enter", Cause::IsDestination));
        }
        let way = ResolvedDir { inode_id: id, real_path: spot.real_path.clone() };
        let dir = ManifestDir { path, meta: entry.meta };
        Ok(Some((
            Entry { content_path: spot.real_path, ..entry },
            OpenedDir { dir, resolved: way, fd },
        )))
    }

    /// The next name of the current directory; `None` at its end.
    fn next_name(&mut self) -> Result<Option<Box<[u8]>>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if let Some((name, _)) = level.names.next() {
            return Ok(Some(name));
        }
        let Some(after) = level.next_after.take() else { return Ok(None) };
        // Opened again: the position in a directory belongs to the descriptor, and this one is used up.
        let path = self.dirs.last().map(|d| d.path.as_bytes()).unwrap_or_default();
        let real = self.resolved_dirs.last().and_then(|way| way.real_path.as_ref());
        let fd = self.tree.open_resolved(path, real, true);
        let fd = fd.map_err(|e| self.tree.error("open", path, e))?;
        let listing = list_dir(&fd, Some(&after), self.max_names_held, |_| true);
        (level.names, level.next_after) = (listing.names.into_iter(), listing.next_after);
        level.fd = Some(Arc::new(fd));
        match listing.error {
            Some(errno) => Err(self.tree.error("list", path, errno)),
            None => Ok(level.names.next().map(|(name, _)| name)),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.next_item();
        match &item {
            Some(Ok(entry)) => {
                self.cursor = Some(Cursor { after: entry.path.clone(), skip_contents: false });
            }
            Some(Err(error)) => {
                // A directory that was entered (its listing stopped) continues at its position; one that could not be
                // entered would fail again.
                let entered = self.dirs.iter().any(|d| d.path.as_bytes() == error.path.0);
                if let (false, Ok(after)) = (entered, RelPath::new(&error.path.0)) {
                    self.cursor = Some(Cursor { after, skip_contents: true });
                }
            }
            None => {}
        }
        item
    }
}

impl Walk {
    fn next_item(&mut self) -> Option<Result<Entry>> {
        if let Some(ready) = self.pending.pop_front() {
            return Some(ready);
        }
        if let Some(here) = self.next_dir.take()
            && let Err(error) = self.enter_dir(here, None)
        {
            return Some(Err(error));
        }
        while !self.levels.is_empty() {
            let name = match self.next_name() {
                Err(error) => return Some(Err(error)),
                Ok(None) => {
                    self.leave_dir();
                    continue;
                }
                Ok(Some(name)) => name,
            };
            match self.inspect_name(&name) {
                // Removed since the directory was listed.
                Ok(None) => {}
                Ok(Some((entry, enter))) => {
                    self.next_dir = enter;
                    return Some(Ok(entry));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

/// The cause why the target of a link, resolved a moment ago, is not accessible.
fn cause_after_resolve(errno: Errno) -> Cause {
    if is_resource_exhaustion(errno) { errno.into() } else { Cause::Changed }
}

#[cfg(test)]
mod tests;
