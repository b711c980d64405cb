//! The walk over a source: depth first, names sorted by bytes, resumable behind any entry.
//!
//! Order is [`RelPath`]'s, so a cursor is just the path returned last: going on means "everything
//! greater", whatever was added or removed meanwhile. Memory is bounded: of each directory on the way
//! down at most [`NAMES`] names are held (then it is read again for the next ones), and of the way
//! itself at most [`MAX_CHAIN`] bytes. So are descriptors: upper levels are closed and opened again.

use super::error::{Cause, FsError, Result, is_shortage};
use super::filter::Filter;
use super::follow::{Located, Way, place_of};
use super::list::{Listed, list_all};
use super::made_up::is_made_up;
use super::meta::{lstat, meta_of, type_of};
use super::names::{TRASH_MARK, is_ours};
use super::root::{Dir, Tree, open_below, open_list_below, split};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, EntryKind, ManifestDir};
use crate::wire::options::{EntryWarnings, Links};
use crate::wire::task::{Cursor, RootIdentity};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;

/// Names of one directory held at a time (twice as many while it is read).
const NAMES: usize = 100_000;
/// Levels whose descriptors stay open.
const OPEN_LEVELS: usize = 12;
/// The paths of all directories above an entry, together, in bytes. All of them stand in each
/// manifest, which is limited to twice this; deeper directories are reported, not entered.
const MAX_CHAIN: usize = crate::wire::manifest::MAX_MANIFEST_BYTES / 2;
/// The cause under which links that are left out are counted.
pub const LINKS_LEFT_OUT: &str = "symbolic links left out (links: skip)";
/// The cause under which unfinished files of ours are counted, which are no part of a source.
pub const UNFINISHED_LEFT_OUT: &str =
    "unfinished files of a sync into this source left out (`.ctl-….part`)";

/// What of a source is walked, and how.
#[derive(Debug, Clone, Default)]
pub struct WalkOptions {
    /// What is left out; a directory that is left out is not opened.
    pub filter: Arc<Filter>,
    /// What is done with symbolic links.
    pub links: Links,
    /// Device and inode of the directory that is copied to, where that is known here: it may be mounted
    /// at the source as well, and would be copied into itself for ever.
    pub destination: Option<(u64, u64)>,
}

/// A walk in progress; see [`TreeBuilder::collect_pointers`]. Its items are entries, and errors in place of those that
/// can't be read (then the walk goes on behind them).
#[derive(Debug)]
pub struct Walk {
    tree: Tree,
    options: WalkOptions,
    /// What was left out since it was asked for.
    notes: EntryWarnings,
    /// The directories above what is returned next, from the root.
    dirs: Vec<ManifestDir>,
    /// One for each of `dirs`.
    ways: Vec<Way>,
    /// The bytes of their paths.
    chain: usize,
    /// One for each of the last `levels.len()` of `dirs`.
    levels: Vec<Level>,
    /// To be returned before anything else: the root's entry, what failed while resuming.
    ready: VecDeque<Result<Entry>>,
    /// The directory returned last: it is entered by the next call.
    enter: Option<Entered>,
    /// Behind what was returned last.
    cursor: Option<Cursor>,
    names: usize,
    /// The file system of the directory entered last: its files have lengths.
    dev: u64,
}

#[derive(Debug)]
struct Level {
    /// `None`: closed to save descriptors.
    fd: Option<Dir>,
    names: std::vec::IntoIter<Listed>,
    /// There are names behind this one that were not kept.
    more: Option<Box<[u8]>>,
}

#[derive(Debug)]
struct Entered {
    dir: ManifestDir,
    way: Way,
    /// Why it can't be listed, where it can't.
    fd: std::result::Result<OwnedFd, Errno>,
}

/// A name that was looked at, or what the link of that name leads to.
struct Spot {
    dir: Dir,
    name: Vec<u8>,
    stat: Stat,
    real: Option<RelPath>,
}

impl Tree {
    /// Walks everything below the directory `dir`, behind `cursor` where one is given. The root's own
    /// entry comes first where `dir` is the root and there is no cursor; `dir` itself is not returned
    /// otherwise. A root that is a file gives that one entry, with the empty path, unless the filter leaves
    /// it out.
    ///
    /// Names that are our own unfinished files are left out, and counted ([`UNFINISHED_LEFT_OUT`]). The mark of a trash
    /// is walked like any file.
    ///
    /// # Errors
    /// `dir` can't be opened, is a symbolic link, or lies in a file system like `proc`, whose files
    /// have no length to copy by. Where one is mounted further down, there is an error in its place.
    pub fn walk(&self, dir: &RelPath, cursor: Option<&Cursor>) -> Result<Walk> {
        self.walk_with(dir, cursor, WalkOptions::default())
    }

    /// The same with a choice of what is walked. A directory that can't be read gives its entry and then
    /// an error for its contents.
    ///
    /// With [`Links::Copy`] a link gives an entry of the type of what it leads to, with [`Entry::content_path`];
    /// so has everything below a directory that was reached through a link. A link that leads nowhere,
    /// out of the storage root or round in a circle is an error in its place.
    ///
    /// # Errors
    /// As [`TreeBuilder::collect_pointers`].
    pub fn walk_with(
        &self,
        dir: &RelPath,
        cursor: Option<&Cursor>,
        options: WalkOptions,
    ) -> Result<Walk> {
        self.walk_holding(dir, cursor, options, NAMES)
    }

    /// Device and inode of its root, where that is a directory.
    pub fn id(&self) -> Option<(u64, u64)> {
        let fd = self.open_real(b"", None, true).ok()?;
        rustix::fs::fstat(&fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// The identity of its root, of whatever kind that is; `None` where there is none.
    pub fn start(&self) -> Option<RootIdentity> {
        if let Some((device, inode)) = self.id() {
            return Some(RootIdentity { device, inode });
        }
        let (entry, _) = self.find(&RelPath::root(), Links::Keep).ok()?;
        Some(RootIdentity { device: entry.version.dev, inode: entry.version.ino })
    }

    fn walk_holding(
        &self,
        dir: &RelPath,
        cursor: Option<&Cursor>,
        options: WalkOptions,
        names: usize,
    ) -> Result<Walk> {
        let Located { dirs, ways, real } = self.locate(dir, options.links)?;
        let mut walk = Walk {
            tree: self.clone(),
            options,
            notes: EntryWarnings::new(),
            chain: dirs.iter().map(|d| d.path.as_bytes().len()).sum(),
            dirs,
            ways,
            levels: Vec::new(),
            ready: VecDeque::new(),
            enter: None,
            cursor: cursor.cloned(),
            names,
            dev: 0,
        };
        if dir.is_root() {
            let root = self.entry(dir)?;
            if matches!(root.kind, EntryKind::Symlink { .. }) {
                return Err(self.error("walk", b"", Errno::LOOP));
            }
            if !root.is_dir() {
                let name = split(self.base.as_bytes()).1;
                match walk.options.filter.what_leaves_out_source(&root, name) {
                    Some(what) => {
                        let cause =
                            format!("nothing to do: SRC is a file, and {what} leaves it out");
                        walk.notes.entry(cause).or_default().add(b"");
                    }
                    None => walk.ready.extend(cursor.is_none().then_some(Ok(root))),
                }
                return Ok(walk);
            }
            walk.ready.extend(cursor.is_none().then_some(Ok(root)));
        }
        let fd = self.open_real(dir.as_bytes(), real.as_ref(), true);
        let fd = fd.map_err(|e| self.error("open", dir.as_bytes(), e))?;
        let stat = rustix::fs::fstat(&fd);
        let stat = stat.map_err(|e| self.error("read metadata of", dir.as_bytes(), e))?;
        if is_made_up(&fd).map_err(|e| self.error("read metadata of", dir.as_bytes(), e))? {
            return Err(self.made_up("enter", dir.as_bytes()));
        }
        walk.dev = stat.st_dev;
        if walk.options.destination == Some((stat.st_dev, stat.st_ino)) {
            return Err(FsError::new(self.side, "enter", dir.as_bytes(), Cause::Destination));
        }
        let way = Way { id: (stat.st_dev, stat.st_ino), real };
        let dir = ManifestDir { path: dir.clone(), meta: meta_of(&stat) };
        let start = Entered { dir, way, fd: Ok(fd) };
        match cursor {
            Some(cursor) => walk.resume(start, cursor),
            None => walk.enter = Some(start),
        }
        Ok(walk)
    }
}

impl Walk {
    /// The directories above the entry returned last, the root first.
    pub fn dirs(&self) -> &[ManifestDir] {
        &self.dirs
    }

    /// The directory just returned is not entered: its contents are somebody else's.
    pub fn skip_contents(&mut self) {
        if self.enter.take().is_some()
            && let Some(cursor) = &mut self.cursor
        {
            cursor.skip_contents = true;
        }
    }

    /// Where to go on behind what was returned last (also behind an error: it is not returned again);
    /// `None` before anything was.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// What was left out since this was asked last, and before [`Walk::cursor`].
    pub fn notes(&mut self) -> EntryWarnings {
        std::mem::take(&mut self.notes)
    }

    /// Enters the directories that lead to the cursor, each behind the name that leads on.
    fn resume(&mut self, start: Entered, cursor: &Cursor) {
        let (dir, after) = (&start.dir.path, &cursor.after);
        if cursor.skip_contents && after.contains(dir) {
            return;
        }
        if !dir.contains(after) {
            // Behind all of it, or before.
            if after < dir {
                self.enter = Some(start);
            }
            return;
        }
        let skip = dir.components().count();
        let mut way = after.components().skip(skip).peekable();
        let mut next = Some(start);
        while let Some(here) = next.take() {
            let Some(name) = way.next() else {
                self.enter = Some(here);
                return;
            };
            let unreadable = here.fd.is_err();
            if let Err(error) = self.descend(here, Some(name)) {
                self.ready.push_back(Err(error));
            }
            if unreadable {
                return;
            }
            let last = way.peek().is_none();
            if last && cursor.skip_contents {
                return;
            }
            // Its own entry was returned before the cursor was taken. If it is gone, or no directory
            // any more, there is nothing to go on with inside.
            match self.look(name) {
                Ok(found) => next = found.and_then(|(_, enter)| enter),
                Err(error) => self.ready.push_back(Err(error)),
            }
        }
    }

    /// Makes `here` the current directory and lists it, behind `after`. After an error in the middle
    /// of the list, the names before are walked all the same.
    fn descend(&mut self, here: Entered, after: Option<&[u8]>) -> Result<()> {
        let path = here.dir.path.clone();
        let fd = here.fd.map_err(|e| self.tree.error("open", path.as_bytes(), e))?;
        let listing = list_all(&fd, after, self.names);
        self.chain += path.as_bytes().len();
        self.dirs.push(here.dir);
        self.ways.push(here.way);
        let more = listing.more.then(|| listing.names.last().map(|(name, _)| name.clone()));
        let (fd, names) = (Some(Arc::new(fd)), listing.names.into_iter());
        self.levels.push(Level { fd, names, more: more.flatten() });
        if let Some(at) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[at].fd = None;
        }
        match listing.failed {
            Some(errno) => Err(self.tree.error("list", path.as_bytes(), errno)),
            None => Ok(()),
        }
    }

    fn ascend(&mut self) {
        self.levels.pop();
        self.ways.pop();
        if let Some(dir) = self.dirs.pop() {
            self.chain -= dir.path.as_bytes().len();
        }
    }

    /// What `name` in the current directory is, and the open directory where it is one; `None` where it
    /// is gone or left out.
    fn look(&mut self, name: &[u8]) -> Result<Option<(Entry, Option<Entered>)>> {
        let above = self.dirs.last().map(|d| d.path.clone()).unwrap_or_default();
        let path = above.child(name).map_err(|_| {
            let full = [above.as_bytes(), b"/", name].concat();
            self.tree.error("read metadata of", &full, Errno::NAMETOOLONG)
        })?;
        if is_ours(name) && name != TRASH_MARK {
            if !self.options.filter.leaves_out(&path, false) {
                self.notes.entry(UNFINISHED_LEFT_OUT.to_owned()).or_default().add(path.as_bytes());
            }
            return Ok(None);
        }
        let Some(dir) = self.current(&above)? else { return Ok(None) };
        let Some(spot) = self.spot(dir, name, &path)? else { return Ok(None) };
        if type_of(&spot.stat) == FileType::Directory {
            return Ok(self.look_inside(spot, path)?.map(|(entry, enter)| (entry, Some(enter))));
        }
        let tree = &self.tree;
        let dir = spot.dir.as_fd();
        let entry = match tree.entry_of(dir, &spot.name, path.clone(), &spot.stat) {
            Err(Cause::Os(Errno::NOENT)) => return Ok(None),
            other => other.map_err(|e| tree.error("read metadata of", path.as_bytes(), e))?,
        };
        let entry = Entry { content_path: spot.real, ..entry };
        // Limits choose files, and without its mark a copy of a trash would be no trash.
        let wanted = name == TRASH_MARK || !self.options.filter.is_beyond(&entry);
        Ok(wanted.then_some((entry, None)))
    }

    /// The current directory, opened again where it was closed.
    fn current(&mut self, path: &RelPath) -> Result<Option<Dir>> {
        let real = self.ways.last().and_then(|way| way.real.as_ref());
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if level.fd.is_none() {
            let fd = self.tree.open_real(path.as_bytes(), real, false).map_err(|errno| {
                // None of its other names can be looked at either: one report is enough.
                (level.names, level.more) = (Vec::new().into_iter(), None);
                self.tree.error("open", path.as_bytes(), errno)
            })?;
            level.fd = Some(Arc::new(fd));
        }
        Ok(level.fd.clone())
    }

    /// What has this name or, where it is a link to be followed, what that leads to; `None` where it is
    /// gone or left out.
    fn spot(&mut self, dir: Dir, name: &[u8], path: &RelPath) -> Result<Option<Spot>> {
        let (tree, filter) = (&self.tree, &self.options.filter);
        let failed = |op, cause| FsError::new(tree.side, op, path.as_bytes(), cause);
        let stat = match lstat(&dir, name) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| failed("read metadata of", e.into()))?,
        };
        let is_dir = |stat: &Stat| type_of(stat) == FileType::Directory;
        if filter.leaves_out(path, is_dir(&stat)) {
            return Ok(None);
        }
        let real = self.ways.last().and_then(|way| way.real.as_ref());
        if type_of(&stat) != FileType::Symlink || self.options.links == Links::Keep {
            let real = real.and_then(|real| real.child(name).ok());
            return Ok(Some(Spot { dir, name: name.to_vec(), stat, real }));
        }
        if self.options.links == Links::Skip {
            self.notes.entry(LINKS_LEFT_OUT.to_owned()).or_default().add(path.as_bytes());
            return Ok(None);
        }
        let real = tree.follow(dir.as_fd(), name).map_err(|cause| failed("follow", cause))?;
        let (dir, name) =
            place_of(&tree.storage(), &real).map_err(|e| failed("follow", meanwhile(e)))?;
        let stat = lstat(&dir, &name).map_err(|e| failed("follow", meanwhile(e)))?;
        if is_dir(&stat) && filter.leaves_out(path, true) {
            return Ok(None);
        }
        if !is_dir(&stat) && is_made_up(&dir).map_err(|e| failed("follow", e.into()))? {
            return Err(tree.made_up("copy", path.as_bytes()));
        }
        Ok(Some(Spot { dir, name, stat, real: Some(real) }))
    }

    /// A directory's entry, and the directory, opened; `None` where it is gone.
    fn look_inside(&mut self, spot: Spot, path: RelPath) -> Result<Option<(Entry, Entered)>> {
        let tree = &self.tree;
        let at = |op: &'static str, cause: Cause| tree.error(op, path.as_bytes(), cause);
        if self.chain + path.as_bytes().len() > MAX_CHAIN {
            return Err(at("enter", Errno::NAMETOOLONG.into()));
        }
        let mut fd = open_list_below(spot.dir.as_fd(), &spot.name);
        if matches!(fd, Err(Errno::MFILE | Errno::NFILE)) {
            self.levels.iter_mut().for_each(|level| level.fd = None);
            fd = open_list_below(spot.dir.as_fd(), &spot.name);
        }
        // What can't be listed can be looked at all the same.
        let closed = match fd {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ACCESS) => Some(open_below(spot.dir.as_fd(), &spot.name)),
            _ => None,
        };
        let seen = match (&closed, &fd) {
            (Some(Ok(fd)), _) | (None, Ok(fd)) => fd,
            (Some(Err(errno)), _) | (None, Err(errno)) => {
                return Err(at("open", Cause::Os(*errno)));
            }
        };
        // Metadata by the descriptor, so that they and the contents are of one directory.
        let stat = rustix::fs::fstat(seen).map_err(|e| at("read metadata of", e.into()))?;
        let entry = tree.entry_of(seen.as_fd(), b"", path.clone(), &stat);
        let entry = entry.map_err(|e| at("read metadata of", e))?;
        if stat.st_dev != self.dev {
            // Something else is mounted here.
            if is_made_up(seen).map_err(|e| at("read metadata of", e.into()))? {
                return Err(tree.made_up("enter", path.as_bytes()));
            }
            self.dev = stat.st_dev;
        }
        let id = (stat.st_dev, stat.st_ino);
        if self.options.links == Links::Copy && self.ways.iter().any(|way| way.id == id) {
            return Err(FsError::new(tree.side, "enter", path.as_bytes(), Cause::Cycle));
        }
        if self.options.destination == Some(id) {
            return Err(FsError::new(tree.side, "enter", path.as_bytes(), Cause::Destination));
        }
        let way = Way { id, real: spot.real.clone() };
        let dir = ManifestDir { path, meta: entry.meta };
        Ok(Some((Entry { content_path: spot.real, ..entry }, Entered { dir, way, fd })))
    }

    /// The next name of the current directory; `None` at its end.
    fn next_name(&mut self) -> Result<Option<Box<[u8]>>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if let Some((name, _)) = level.names.next() {
            return Ok(Some(name));
        }
        let Some(after) = level.more.take() else { return Ok(None) };
        // Opened afresh: the place in a directory is the descriptor's, and this one's is used up.
        let path = self.dirs.last().map(|d| d.path.as_bytes()).unwrap_or_default();
        let real = self.ways.last().and_then(|way| way.real.as_ref());
        let fd = self.tree.open_real(path, real, true);
        let fd = fd.map_err(|e| self.tree.error("open", path, e))?;
        let listing = list_all(&fd, Some(&after), self.names);
        let more = listing.more.then(|| listing.names.last().map(|(name, _)| name.clone()));
        level.more = more.flatten();
        level.names = listing.names.into_iter();
        level.fd = Some(Arc::new(fd));
        match listing.failed {
            Some(errno) => Err(self.tree.error("list", path, errno)),
            None => Ok(level.names.next().map(|(name, _)| name)),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.advance();
        match &item {
            Some(Ok(entry)) => {
                self.cursor = Some(Cursor { after: entry.path.clone(), skip_contents: false });
            }
            Some(Err(error)) => {
                // A directory that was entered (its list broke off) goes on where it was; what could
                // not be entered would fail again.
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
    fn advance(&mut self) -> Option<Result<Entry>> {
        if let Some(ready) = self.ready.pop_front() {
            return Some(ready);
        }
        if let Some(here) = self.enter.take()
            && let Err(error) = self.descend(here, None)
        {
            return Some(Err(error));
        }
        while !self.levels.is_empty() {
            let name = match self.next_name() {
                Err(error) => return Some(Err(error)),
                Ok(None) => {
                    self.ascend();
                    continue;
                }
                Ok(Some(name)) => name,
            };
            match self.look(&name) {
                // Removed since the directory was listed: it was never part of this tree.
                Ok(None) => {}
                Ok(Some((entry, enter))) => {
                    self.enter = enter;
                    return Some(Ok(entry));
                }
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }
}

/// Why what a link led to a moment ago can't be looked at.
fn meanwhile(errno: Errno) -> Cause {
    if is_shortage(errno) { errno.into() } else { Cause::Changed }
}

#[cfg(test)]
mod tests;
