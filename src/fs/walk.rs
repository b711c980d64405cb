//! The walk over a source: depth first, names sorted by bytes, resumable behind any entry.
//!
//! Order is [`RelPath`]'s, so a cursor is just the path returned last: going on means "everything
//! greater", whatever was added or removed meanwhile. Memory is bounded: of each directory on the way
//! down at most [`NAMES`] names are held (then it is read again for the next ones), and of the way
//! itself at most [`MAX_CHAIN`] bytes. So are descriptors: upper levels are closed and opened again.

use super::error::{Cause, Result};
use super::made_up::is_made_up;
use super::meta::{entry_of, lstat, meta_of, type_of};
use super::names::is_ours;
use super::root::{Tree, open_list_below};
use crate::wire::RelPath;
use crate::wire::manifest::{DirRef, Entry, Kind};
use crate::wire::task::Cursor;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;
use std::collections::VecDeque;

/// Names of one directory held at a time (twice as many while it is read).
const NAMES: usize = 100_000;
/// Levels whose descriptors stay open.
const OPEN_LEVELS: usize = 12;
/// The paths of all directories above an entry, together, in bytes. All of them stand in each
/// manifest, which is limited to twice this; deeper directories are reported, not entered.
const MAX_CHAIN: usize = crate::wire::manifest::MAX_BYTES / 2;
/// Read at a time from a directory.
const LIST_BUFFER: usize = 64 << 10;

/// A walk in progress; see [`Tree::walk`]. Its items are entries, and errors in place of those that
/// can't be read (then the walk goes on behind them).
#[derive(Debug)]
pub struct Walk {
    tree: Tree,
    /// The directories above what is returned next, from the root.
    dirs: Vec<DirRef>,
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
    fd: Option<OwnedFd>,
    names: std::vec::IntoIter<Box<[u8]>>,
    /// There are names behind this one that were not kept.
    more: Option<Box<[u8]>>,
}

#[derive(Debug)]
struct Entered {
    dir: DirRef,
    fd: OwnedFd,
}

struct Listing {
    names: Vec<Box<[u8]>>,
    more: bool,
    failed: Option<Errno>,
}

impl Tree {
    /// Walks everything below the directory `dir`, behind `cursor` where one is given. The root's own
    /// entry comes first where `dir` is the root and there is no cursor; `dir` itself is not returned
    /// otherwise. A root that is a file gives that one entry, with the empty path.
    ///
    /// Names that are our own unfinished files are left out.
    ///
    /// # Errors
    /// `dir` can't be opened, is a symbolic link, or lies in a file system like `proc`, whose files
    /// have no length to copy by. Where one is mounted further down, there is an error in its place.
    pub fn walk(&self, dir: &RelPath, cursor: Option<&Cursor>) -> Result<Walk> {
        self.walk_holding(dir, cursor, NAMES)
    }

    fn walk_holding(&self, dir: &RelPath, cursor: Option<&Cursor>, names: usize) -> Result<Walk> {
        let mut walk = Walk {
            tree: self.clone(),
            dirs: self.chain(dir)?,
            chain: 0,
            levels: Vec::new(),
            ready: VecDeque::new(),
            enter: None,
            cursor: cursor.cloned(),
            names,
            dev: 0,
        };
        walk.chain = walk.dirs.iter().map(|d| d.path.as_bytes().len()).sum();
        if dir.is_root() {
            let root = self.entry(dir)?;
            if matches!(root.kind, Kind::Symlink { .. }) {
                return Err(self.error("walk", b"", Errno::LOOP));
            }
            let is_dir = root.is_dir();
            walk.ready.extend(cursor.is_none().then_some(Ok(root)));
            if !is_dir {
                return Ok(walk);
            }
        }
        let fd = self.open_list(dir.as_bytes());
        let fd = fd.map_err(|e| self.error("open", dir.as_bytes(), e))?;
        let stat = rustix::fs::fstat(&fd);
        let stat = stat.map_err(|e| self.error("read metadata of", dir.as_bytes(), e))?;
        if is_made_up(&fd).map_err(|e| self.error("read metadata of", dir.as_bytes(), e))? {
            return Err(self.made_up("enter", dir.as_bytes()));
        }
        walk.dev = stat.st_dev;
        let start = Entered { dir: DirRef { path: dir.clone(), meta: meta_of(&stat) }, fd };
        match cursor {
            Some(cursor) => walk.resume(start, cursor),
            None => walk.enter = Some(start),
        }
        Ok(walk)
    }
}

impl Walk {
    /// The directories above the entry returned last, the root first.
    pub fn dirs(&self) -> &[DirRef] {
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

    /// Enters the directories that lead to the cursor, each behind the name that leads on.
    fn resume(&mut self, start: Entered, cursor: &Cursor) {
        let (dir, after) = (&start.dir.path, &cursor.after);
        if cursor.skip_contents && after.holds(dir) {
            return;
        }
        if !dir.holds(after) {
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
            if let Err(error) = self.descend(here, Some(name)) {
                self.ready.push_back(Err(error));
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
        let listing = list(&here.fd, after, self.names);
        let path = here.dir.path.clone();
        self.chain += path.as_bytes().len();
        self.dirs.push(here.dir);
        let more = listing.more.then(|| listing.names.last().cloned()).flatten();
        self.levels.push(Level { fd: Some(here.fd), names: listing.names.into_iter(), more });
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
        if let Some(dir) = self.dirs.pop() {
            self.chain -= dir.path.as_bytes().len();
        }
    }

    /// What `name` in the current directory is, and the open directory where it is one; `None` where it
    /// is gone.
    fn look(&mut self, name: &[u8]) -> Result<Option<(Entry, Option<Entered>)>> {
        let above = self.dirs.last().map(|d| d.path.clone()).unwrap_or_default();
        let path = above.child(name).map_err(|_| {
            let full = [above.as_bytes(), b"/", name].concat();
            self.tree.error("read metadata of", &full, Errno::NAMETOOLONG)
        })?;
        let tree = &self.tree;
        let at = |op: &'static str, cause: Cause| tree.error(op, path.as_bytes(), cause);
        let Some((level, upper)) = self.levels.split_last_mut() else { return Ok(None) };
        if level.fd.is_none() {
            level.fd = Some(tree.open_dir(above.as_bytes()).map_err(|errno| {
                // None of its other names can be looked at either: one report is enough.
                (level.names, level.more) = (Vec::new().into_iter(), None);
                tree.error("open", above.as_bytes(), errno)
            })?);
        }
        let Some(dir) = &level.fd else { return Ok(None) };
        let stat = match lstat(dir, name) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| at("read metadata of", e.into()))?,
        };
        if type_of(&stat) != FileType::Directory {
            return match entry_of(dir.as_fd(), name, path.clone(), &stat, tree.keep) {
                Err(Cause::Os(Errno::NOENT)) => Ok(None),
                other => Ok(Some((other.map_err(|cause| at("read metadata of", cause))?, None))),
            };
        }
        if self.chain + path.as_bytes().len() > MAX_CHAIN {
            return Err(at("enter", Errno::NAMETOOLONG.into()));
        }
        let mut fd = open_list_below(dir.as_fd(), name);
        if matches!(fd, Err(Errno::MFILE | Errno::NFILE)) {
            upper.iter_mut().for_each(|level| level.fd = None);
            fd = open_list_below(dir.as_fd(), name);
        }
        let fd = match fd {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|e| at("open", e.into()))?,
        };
        // Metadata by the descriptor, so that they and the contents are of one directory.
        let entry = rustix::fs::fstat(&fd)
            .map_err(Cause::Os)
            .and_then(|stat| entry_of(fd.as_fd(), b"", path.clone(), &stat, tree.keep))
            .map_err(|cause| at("read metadata of", cause))?;
        if entry.ident.dev != self.dev {
            // Something else is mounted here.
            if is_made_up(&fd).map_err(|e| at("read metadata of", e.into()))? {
                return Err(tree.made_up("enter", path.as_bytes()));
            }
            self.dev = entry.ident.dev;
        }
        let dir = DirRef { path, meta: entry.meta };
        Ok(Some((entry, Some(Entered { dir, fd }))))
    }

    /// The next name of the current directory; `None` at its end.
    fn next_name(&mut self) -> Result<Option<Box<[u8]>>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        if let Some(name) = level.names.next() {
            return Ok(Some(name));
        }
        let Some(after) = level.more.take() else { return Ok(None) };
        // Opened afresh: the place in a directory is the descriptor's, and this one's is used up.
        let path = self.dirs.last().map(|d| d.path.as_bytes()).unwrap_or_default();
        let fd = self.tree.open_list(path).map_err(|e| self.tree.error("open", path, e))?;
        let listing = list(&fd, Some(&after), self.names);
        level.more = listing.more.then(|| listing.names.last().cloned()).flatten();
        level.names = listing.names.into_iter();
        level.fd = Some(fd);
        match listing.failed {
            Some(errno) => Err(self.tree.error("list", path, errno)),
            None => Ok(level.names.next()),
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

/// The first `keep` names of a directory behind `after`, sorted. The kernel gives them in no order, so
/// all are read and the greater ones dropped.
fn list(fd: &OwnedFd, after: Option<&[u8]>, keep: usize) -> Listing {
    let mut listing = Listing { names: Vec::new(), more: false, failed: None };
    let mut buffer = Vec::with_capacity(LIST_BUFFER);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut bound: Option<Box<[u8]>> = None;
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::INTR) => continue,
            Err(errno) => {
                listing.failed = Some(errno);
                break;
            }
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || after.is_some_and(|a| name <= a) || is_ours(name) {
            continue;
        }
        if bound.as_ref().is_some_and(|b| *name > **b) {
            listing.more = true;
            continue;
        }
        listing.names.push(name.into());
        if listing.names.len() >= 2 * keep {
            cut(&mut listing, keep);
            bound = listing.names.iter().max().cloned();
        }
    }
    if listing.names.len() > keep {
        cut(&mut listing, keep);
    }
    listing.names.sort_unstable();
    // Some file systems give a name twice when the directory changes under the reader.
    listing.names.dedup();
    listing
}

/// Keeps the `keep` smallest names, in any order.
fn cut(listing: &mut Listing, keep: usize) {
    listing.names.select_nth_unstable(keep);
    listing.names.truncate(keep);
    listing.more = true;
}

#[cfg(test)]
mod tests;
