//! Storage roots and the trees below them: how a path becomes a descriptor without ever leaving.

use super::error::{Cause, FsError, Result, Side};
use super::made_up::is_made_up;
use super::meta::{entry_of, ident_of, lstat, meta_of};
use super::presence::{Identity, RootLoss};
use super::spelling::Spellings;
use super::unflushed::Ledger;
use crate::wire::manifest::{Entry, EntryKind, ManifestDir};
use crate::wire::options::Preserve;
use crate::wire::{AbsPath, RelPath, SyncNo};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A storage root: a directory that an agent's configuration names, held open. Whatever is done below
/// it starts from this descriptor.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: AbsPath,
    ledger: Arc<Ledger>,
    pub(super) identity: Identity,
    /// How its path was last seen to lead elsewhere.
    lost: Mutex<Option<RootLoss>>,
    /// Directories that were made lately: the sync, device and inode of each, at most
    /// [`MAX_MADE_DIRS`].
    made: Mutex<HashSet<(SyncNo, u64, u64)>>,
}

/// About 3 MiB. When there are more, all are forgotten: a directory that another batch made is then taken for
/// one that was there with other metadata.
const MAX_MADE_DIRS: usize = 100_000;

/// The source or destination root of a sync: a directory (or one file) at or below a [`Root`].
/// Clones share one cache of directory descriptors.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(super) root: Arc<Root>,
    pub(super) base: RelPath,
    pub(super) side: Side,
    /// What its entries carry beside their content and [`Meta`](crate::wire::manifest::Meta).
    pub(super) keep: Preserve,
    /// Large files are read past the page cache, where that can be.
    pub(super) direct: bool,
    /// Its storage root is not the one that the work in it was assigned for; see [`TreeBuilder::of_assigned_root`].
    pub(super) reopened: bool,
    cache: Arc<DirCache>,
    /// Which of its directories tell names apart.
    spellings: Arc<Spellings>,
    /// The device number of its root, once it was needed; see [`TreeBuilder::entry_of`].
    home: Arc<OnceLock<u64>>,
}

/// A directory, held open.
pub(super) type Dir = Arc<OwnedFd>;

/// Where an entry is: a name in an open directory.
pub(super) struct Place<'a> {
    pub(super) dir: Dir,
    pub(super) name: &'a [u8],
}

impl Root {
    /// Opens a storage root. Links *in this path* are followed: whoever configures the agent may say
    /// where its storage is. Nothing below is ever followed.
    ///
    /// # Errors
    /// It does not exist, is no directory, or is out of reach. The error's path is absolute.
    pub fn open(path: &AbsPath) -> Result<Arc<Root>> {
        Self::open_noting(path, Arc::default())
    }

    /// The same, and what is written below it and not flushed is noted in `ledger`.
    ///
    /// # Errors
    /// Like [`Root::open_file`].
    pub fn open_noting(path: &AbsPath, ledger: Arc<Ledger>) -> Result<Arc<Root>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || {
            let fd = rustix::fs::open(path.as_bytes(), flags, Mode::empty())?;
            let identity = Identity::of(&fd)?;
            Ok::<_, Errno>(Root {
                fd,
                path: path.clone(),
                ledger,
                identity,
                lost: Mutex::default(),
                made: Mutex::default(),
            })
        };
        let opened = open();
        let failed = |e| FsError::new(Side::Source, "open storage root", path.as_bytes(), e);
        opened.map(Arc::new).map_err(failed)
    }

    /// As configured.
    pub fn path(&self) -> &AbsPath {
        &self.path
    }

    /// Bytes that this process may still write there.
    ///
    /// # Errors
    /// `fstatvfs` failed.
    pub fn free_bytes(&self) -> Result<u64> {
        let space = rustix::fs::fstatvfs(&self.fd)
            .map_err(|e| FsError::new(Side::Destination, "measure", self.path.as_bytes(), e))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// What [`Root::look`] found last.
    pub fn lost(&self) -> Option<RootLoss> {
        *self.lost.lock()
    }

    pub(super) fn set_lost(&self, lost: Option<RootLoss>) {
        *self.lost.lock() = lost;
    }

    /// Notes a directory that a sync has just made: it has not got its metadata yet.
    pub(super) fn note_made(&self, sync: SyncNo, dir: &OwnedFd) {
        let Ok(stat) = rustix::fs::fstat(dir) else { return };
        let mut made = self.made.lock();
        if made.len() >= MAX_MADE_DIRS {
            made.clear();
        }
        made.insert((sync, stat.st_dev, stat.st_ino));
    }

    /// Whether a sync made the directory of this `stat` lately, in this process.
    pub(super) fn has_made(&self, sync: SyncNo, stat: &Stat) -> bool {
        let made = self.made.lock();
        made.contains(&(sync, stat.st_dev, stat.st_ino))
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Tree {
    /// The tree at `base` below a storage root. Nothing is opened yet, nothing needs to exist.
    pub fn new(root: Arc<Root>, base: RelPath) -> Tree {
        Tree {
            root,
            base,
            side: Side::Source,
            keep: Preserve::NONE,
            direct: false,
            reopened: false,
            cache: Arc::default(),
            spellings: Arc::default(),
            home: Arc::default(),
        }
    }

    /// The same tree, whose entries carry what is kept: attributes, access control lists, whether they
    /// have other names; and whose files tell of their holes.
    #[must_use]
    pub fn keeping(self, keep: Preserve) -> Tree {
        Tree { keep, ..self }
    }

    /// The same tree, whose large files are read past the page cache (`O_DIRECT`) if `direct`, where
    /// that can be.
    #[must_use]
    pub fn direct(self, direct: bool) -> Tree {
        Tree { direct, ..self }
    }

    /// The same tree for work that was assigned for its storage root if `assigned`. Else the root was opened since:
    /// the master would count the work for the root before it, so [`TreeBuilder::check_root`] fails.
    #[must_use]
    pub fn of_assigned_root(self, assigned: bool) -> Tree {
        Tree { reopened: !assigned, ..self }
    }

    /// The same tree, with errors that speak of the destination.
    pub(super) fn as_destination(&self) -> Tree {
        Tree { side: Side::Destination, ..self.clone() }
    }

    /// The tree at another place below the same storage root.
    pub(super) fn at_base(&self, base: RelPath) -> Tree {
        // Both are parts of one source.
        let _ = self.home();
        Tree { base, cache: Arc::default(), ..self.clone() }
    }

    /// Its absolute path, for people.
    pub fn path(&self) -> AbsPath {
        self.root.path.join(&self.base)
    }

    /// What stands at `path` now: lstat, and the text of a link.
    ///
    /// # Errors
    /// It is not there or out of reach, or a file without a length to copy by ([`Cause::MadeUp`]).
    pub fn entry(&self, path: &RelPath) -> Result<Entry> {
        let look = || {
            let place = self.place(path)?;
            let stat = lstat(&place.dir, place.name)?;
            let dir = place.dir.as_fd();
            let entry = self.entry_of(dir, place.name, path.clone(), &stat)?;
            Ok::<_, Cause>((
                matches!(entry.kind, EntryKind::File { .. }) && is_made_up(&place.dir)?,
                entry,
            ))
        };
        match look() {
            Ok((false, entry)) => Ok(entry),
            Ok((true, _)) => Err(self.made_up("copy", path.as_bytes())),
            Err(cause) => Err(self.error("read metadata of", path.as_bytes(), cause)),
        }
    }

    /// The entry for what `name` in `dir` is (or `dir` itself, where the name is empty); `stat` is its
    /// lstat. Its device is 0 where that is the one of this tree's root: network file systems have
    /// another number on each host, and another one after each mount.
    pub(super) fn entry_of(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: RelPath,
        stat: &Stat,
    ) -> std::result::Result<Entry, Cause> {
        let mut entry = entry_of(dir, name, path, stat, self.keep)?;
        if self.is_home(entry.version.dev) {
            entry.version.dev = 0;
        }
        Ok(entry)
    }

    /// Whether this is the device number of this tree's root.
    pub(super) fn is_home(&self, dev: u64) -> bool {
        self.home().is_ok_and(|home| home == dev)
    }

    /// The device number of this tree's root.
    fn home(&self) -> std::result::Result<u64, Errno> {
        if let Some(home) = self.home.get() {
            return Ok(*home);
        }
        let root = RelPath::root();
        let stat = match self.dir(b"") {
            // A sync of a single file.
            Err(Errno::NOTDIR) => self.place(&root).and_then(|at| lstat(&at.dir, at.name))?,
            other => rustix::fs::fstat(other?)?,
        };
        Ok(*self.home.get_or_init(|| stat.st_dev))
    }

    pub(super) fn made_up(&self, op: &'static str, path: &[u8]) -> FsError {
        FsError::new(self.side, op, path, Cause::MadeUp)
    }

    /// The directories above `path` with their metadata, the root first; none for the root itself.
    ///
    /// # Errors
    /// One of them is not there, is no directory, or is out of reach.
    pub fn chain(&self, path: &RelPath) -> Result<Vec<ManifestDir>> {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        let mut chain = Vec::new();
        for end in std::iter::once(0).chain(ends).filter(|_| !path.is_root()) {
            let above = &bytes[..end];
            let stat = self.dir(above).and_then(rustix::fs::fstat);
            let stat = stat.map_err(|e| self.error("read metadata of", above, e))?;
            let path = RelPath::new(above).unwrap_or_default();
            chain.push(ManifestDir { path, meta: meta_of(&stat) });
        }
        Ok(chain)
    }

    pub(super) fn error(&self, op: &'static str, path: &[u8], cause: impl Into<Cause>) -> FsError {
        FsError::new(self.side, op, path, cause)
    }

    /// The directory `path` below this tree's root, from the cache where it was used just now.
    pub(super) fn dir(&self, path: &[u8]) -> std::result::Result<Dir, Errno> {
        if let Some(dir) = self.cache.get(path) {
            return Ok(dir);
        }
        let opened = self.open_dir(path);
        if self.side == Side::Destination
            && !path.is_empty()
            && matches!(opened, Ok(_) | Err(Errno::NOTDIR | Errno::LOOP))
        {
            self.check_way(path)?;
        }
        let dir = Arc::new(opened?);
        self.cache.put(path, &dir);
        Ok(dir)
    }

    /// That each name on the way to the directory `path` is spelled as it is there: else
    /// [`TAKEN`](super::spelling::TAKEN). Directories of the cache are known to be.
    pub(super) fn check_way(&self, path: &[u8]) -> std::result::Result<(), Errno> {
        let mut todo = Vec::new();
        let mut rest = path;
        let mut above = loop {
            if rest.is_empty() {
                break self.dir(b"")?;
            }
            if let Some(dir) = self.cache.get(rest) {
                break dir;
            }
            todo.push(rest);
            rest = split(rest).0;
        };
        while let Some(next) = todo.pop() {
            self.spellings.check(&above, split(next).1)?;
            if !todo.is_empty() {
                above = Arc::new(self.open_dir(next)?);
                self.cache.put(next, &above);
            }
        }
        Ok(())
    }

    /// Of a name that finds something in `dir`: [`TAKEN`](super::spelling::TAKEN) where this is a
    /// destination and that is spelled otherwise.
    pub(super) fn check_name(&self, dir: &Dir, name: &[u8]) -> std::result::Result<(), Errno> {
        match self.side {
            Side::Source => Ok(()),
            Side::Destination => self.spellings.check(dir, name),
        }
    }

    /// The same of a name that may find nothing.
    pub(super) fn check_place(&self, place: &Place<'_>) -> std::result::Result<(), Errno> {
        if self.spellings.are_apart(&place.dir) || lstat(&place.dir, place.name).is_err() {
            return Ok(());
        }
        self.check_name(&place.dir, place.name)
    }

    /// Whether `dir` takes some names that differ for one; `witness` is one that is there.
    pub(super) fn folds(&self, dir: &Dir, witness: &[u8]) -> std::result::Result<bool, Errno> {
        self.spellings.folds(dir, witness)
    }

    pub(super) fn cached(&self, path: &[u8]) -> Option<Dir> {
        self.cache.get(path)
    }

    /// The same, opened afresh and not remembered.
    pub(super) fn open_dir(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        open_below(self.root.fd(), &self.below_root(path))
    }

    /// The same, and it must be readable.
    pub(super) fn open_list(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        open_list_below(self.root.fd(), &self.below_root(path))
    }

    /// `path` as seen from the storage root.
    fn below_root(&self, path: &[u8]) -> Vec<u8> {
        let mut full = self.base.as_bytes().to_vec();
        if !full.is_empty() && !path.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(path);
        full
    }

    /// Remembers a directory that the caller has just opened or made.
    pub(super) fn remember(&self, path: &[u8], dir: &Dir) {
        self.cache.put(path, dir);
    }

    /// Forgets all directories: one of them turned out to be gone.
    pub(super) fn forget(&self) {
        self.cache.clear();
    }

    /// Where `path` is. For the root of the tree that is the directory above it and its name there
    /// (`.` where the tree's root is the storage root), which serves a sync of a single file.
    pub(super) fn place<'a>(&'a self, path: &'a RelPath) -> std::result::Result<Place<'a>, Errno> {
        if !path.is_root() {
            let (above, name) = split(path.as_bytes());
            return Ok(Place { dir: self.dir(above)?, name });
        }
        let (above, name) = match self.base.is_root() {
            true => (&b""[..], &b"."[..]),
            false => split(self.base.as_bytes()),
        };
        Ok(Place { dir: Arc::new(open_below(self.root.fd(), above)?), name })
    }
}

impl Tree {
    /// Where `path`, which is below the storage root, is.
    pub(super) fn place_below_root<'a>(
        &self,
        path: &'a RelPath,
    ) -> std::result::Result<Place<'a>, Errno> {
        let (above, name) = split(path.as_bytes());
        Ok(Place { dir: Arc::new(open_below(self.root.fd(), above)?), name })
    }
}

/// The directory part (empty at the top) and the name of a path that is not empty.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Paths are handed to the kernel in pieces of at most this length (`PATH_MAX` is 4096 with its NUL).
const SEGMENT: usize = 3800;

const READ: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const REACH: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the directory `path` below `from`, for reading where that is allowed, else with `O_PATH`.
/// No component may be a link. `path` is a [`RelPath`]'s, so it has no `..`: confinement of each piece
/// is confinement of the whole.
pub(super) fn open_below(from: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    match open_list_below(from, path) {
        Err(Errno::ACCESS) => open_pieces(from, path, REACH),
        other => other,
    }
}

/// The same, or `EACCES` where its names can't be listed.
pub(super) fn open_list_below(
    from: BorrowedFd<'_>,
    path: &[u8],
) -> std::result::Result<OwnedFd, Errno> {
    open_pieces(from, path, READ)
}

/// Opens a directory without entering another mount (also one of the same file system).
pub(super) fn open_unmounted(dir: &Dir, name: &[u8]) -> std::result::Result<OwnedFd, Cause> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), rules) {
        Err(Errno::XDEV) => Err(Cause::Mounted),
        // An old kernel, a container's filter, a rename somewhere. The caller compares the devices.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::INTR) => {
            Ok(open_below(dir.as_fd(), name)?)
        }
        other => Ok(other?),
    }
}

fn open_pieces(
    from: BorrowedFd<'_>,
    mut path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    while path.len() > SEGMENT {
        let at = path[..SEGMENT].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let base = held.as_ref().map_or(from, |fd| fd.as_fd());
        held = Some(open_piece(base, &path[..at], REACH)?);
        path = &path[at + 1..];
    }
    let base = held.as_ref().map_or(from, |fd| fd.as_fd());
    open_piece(base, if path.is_empty() { b"." } else { path }, flags)
}

fn open_piece(
    from: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let rules = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // `NO_SYMLINKS` holds for the last component too, and says ELOOP where `OPEN_NOFOLLOW` would say ENOTDIR.
    let plain = flags.difference(OFlags::NOFOLLOW);
    for _ in 0..16 {
        match rustix::fs::openat2(from, path, plain, Mode::empty(), rules) {
            // The kernel could not tell, because of a rename somewhere: ask again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            // An old kernel, or a container's filter that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return open_stepwise(from, path, flags),
            other => return other,
        }
    }
    open_stepwise(from, path, flags)
}

/// One component at a time, none of them followed: just as confined, with more calls.
fn open_stepwise(
    from: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let mut held: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let base = held.as_ref().map_or(from, |fd| fd.as_fd());
        match rest.iter().position(|b| *b == b'/') {
            Some(at) => {
                held = Some(rustix::fs::openat(base, &rest[..at], REACH, Mode::empty())?);
                rest = &rest[at + 1..];
            }
            None => return rustix::fs::openat(base, rest, flags, Mode::empty()),
        }
    }
}

/// The directories used last. Entries come in the order of the walk, so a handful is enough. What is
/// older than [`DirCache::FRESH`] is looked up again: a directory that somebody moved away shall not
/// be written to for long.
#[derive(Debug, Default)]
struct DirCache(Mutex<Vec<Cached>>);

#[derive(Debug)]
struct Cached {
    path: Box<[u8]>,
    dir: Dir,
    at: Instant,
}

impl DirCache {
    const ROOM: usize = 12;
    const FRESH: Duration = Duration::from_secs(1);

    fn get(&self, path: &[u8]) -> Option<Dir> {
        let mut all = self.0.lock();
        let at = all.iter().position(|c| *c.path == *path)?;
        if all[at].at.elapsed() > Self::FRESH {
            all.remove(at);
            return None;
        }
        // Used last stands first.
        all[..=at].rotate_right(1);
        Some(Arc::clone(&all[0].dir))
    }

    fn put(&self, path: &[u8], dir: &Dir) {
        let mut all = self.0.lock();
        all.retain(|c| *c.path != *path);
        all.truncate(Self::ROOM - 1);
        all.insert(0, Cached { path: path.into(), dir: Arc::clone(dir), at: Instant::now() });
    }

    fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Whether two stats are of one version of one object.
pub(super) fn same_version(a: &rustix::fs::Stat, b: &rustix::fs::Stat) -> bool {
    let (x, y) = (meta_of(a), meta_of(b));
    ident_of(a) == ident_of(b)
        && a.st_size == b.st_size
        && (x.mtime_sec, x.mtime_nsec) == (y.mtime_sec, y.mtime_nsec)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn one_component_at_a_time_is_as_confined_as_openat2() {
        let site = Site::new();
        site.write("src/a/b/f", "");
        std::os::unix::fs::symlink("a", site.at("src/link")).unwrap();
        let root = site.root.fd();
        let ino = |fd: OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        for flags in [READ, REACH] {
            for path in [&b"src/a/b"[..], b"src", b"."] {
                let (one, other) = (
                    open_piece(root, path, flags).unwrap(),
                    open_stepwise(root, path, flags).unwrap(),
                );
                assert_eq!(ino(one), ino(other));
            }
            for path in [&b"src/link"[..], b"src/link/b", b"src/a/b/f", b"src/none"] {
                assert!(open_piece(root, path, flags).is_err());
                assert!(open_stepwise(root, path, flags).is_err());
            }
        }
    }

    #[test]
    fn the_cache_stays_small_and_gives_what_was_put_in() {
        let site = Site::new();
        let cache = DirCache::default();
        let dirs: Vec<Dir> =
            (0..40).map(|_| Arc::new(open_below(site.root.fd(), b"src").unwrap())).collect();
        for (i, dir) in dirs.iter().enumerate() {
            cache.put(format!("d{i}").as_bytes(), dir);
            assert!(Arc::ptr_eq(&cache.get(b"d0").unwrap(), &dirs[0]), "used last stays longest");
        }
        assert!(cache.get(b"d20").is_none());
        assert_eq!(cache.0.lock().len(), DirCache::ROOM);
        cache.clear();
        assert!(cache.get(b"d0").is_none());
    }
}
