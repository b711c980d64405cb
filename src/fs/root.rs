//! Storage roots and the trees below them: how a path becomes a descriptor within its root.

use super::beneath::{DirHandle, open_dir_below, open_listable_below, split_parent};
use super::case_folding::CaseFoldingCache;
use super::dirty_journal::DirtyJournal;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, FsError, Result, Side};
use super::fs_type::is_pseudo_fs;
use super::inode::{ident_of, lstat, meta_of, size_of, stored_bytes_of, type_of};
use super::root_identity::{RootFingerprint, RootUnavailable};
use super::run_as::{ActingUser, warn_wrong_identity};
use super::xattr::{self, XattrObject};
use crate::wire::manifest::{Entry, EntryKind, FileVersion, ManifestDir};
use crate::wire::options::PartNameKey;
use crate::wire::preserve::{Attribute, Preserve};
use crate::wire::{AbsPath, RelPath, SyncNo};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A storage root: an open directory that an agent's configuration names. Every operation below it starts from this
/// descriptor.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
    /// What requests call it.
    name: AbsPath,
    /// Where it is on this host.
    path: AbsPath,
    pub(super) journal: Arc<DirtyJournal>,
    pub(super) identity: RootFingerprint,
    /// Why its path led elsewhere when it was checked last.
    pub(super) unavailable: Mutex<Option<RootUnavailable>>,
    /// Directories that were created lately: sync, device and inode of each, at most [`MAX_CREATED_DIRS`].
    created_dirs: Mutex<HashSet<(SyncNo, u64, u64)>>,
}

/// About 3 MiB. Beyond it, all are dropped: a directory that another batch created then counts as one that existed
/// with other metadata.
const MAX_CREATED_DIRS: usize = 100_000;

/// The source or destination root of a sync: a directory (or one file) at or below a [`RootDir`]. Clones share one
/// cache of directory descriptors.
#[derive(Debug, Clone)]
pub struct Tree {
    pub(super) root: Arc<RootDir>,
    pub(super) base: RelPath,
    pub(super) side: Side,
    /// What its entries have besides content and [`Meta`](crate::wire::manifest::Meta).
    pub(super) preserve: Preserve,
    /// For the names of the part files that a relay reads.
    pub(super) part_name_key: PartNameKey,
    /// Large files are read past the page cache, where supported.
    pub(super) direct_io: bool,
    /// As what it is read and written; see [`run_as`](super::run_as).
    pub(super) identity: ActingUser,
    /// Its storage root is not the one for which the work was assigned; see [`Tree::for_assigned_root`].
    pub(super) reopened: bool,
    pub(super) dir_cache: Arc<DirCache>,
    /// Which of its directories are case-insensitive.
    pub(super) case_folding: Arc<CaseFoldingCache>,
    /// The device number of its root, once it was needed; see [`Tree::version_of`].
    root_device: Arc<OnceLock<u64>>,
}

/// The place of an entry: a name in an open directory.
pub(super) struct ParentAndName<'a> {
    pub(super) dir: DirHandle,
    pub(super) name: &'a [u8],
}

impl RootDir {
    /// Opens a storage root. Links *in this path* are followed, as configured by the operator. Nothing below is ever
    /// followed.
    ///
    /// # Errors
    /// It does not exist, is no directory, or is not accessible. The error's path is absolute.
    pub fn open(path: &AbsPath) -> Result<Arc<RootDir>> {
        Self::open_with_journal(path, Arc::default())
    }

    /// The same; unflushed writes below it are recorded in `ledger`.
    ///
    /// # Errors
    /// Like [`RootDir::open`].
    pub fn open_with_journal(path: &AbsPath, ledger: Arc<DirtyJournal>) -> Result<Arc<RootDir>> {
        Self::open_named(path, path, ledger)
    }

    /// The same for a directory that requests call `name`, wherever it is on this host.
    ///
    /// # Errors
    /// Like [`RootDir::open`].
    pub fn open_named(
        name: &AbsPath,
        path: &AbsPath,
        ledger: Arc<DirtyJournal>,
    ) -> Result<Arc<RootDir>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || {
            let fd = rustix::fs::open(path.as_bytes(), flags, Mode::empty())?;
            let identity = RootFingerprint::read(&fd)?;
            Ok::<_, Errno>(RootDir {
                fd,
                name: name.clone(),
                path: path.clone(),
                journal: ledger,
                identity,
                unavailable: Mutex::default(),
                created_dirs: Mutex::default(),
            })
        };
        let opened = open();
        let label = describe_place(name, path);
        let failed = |e| FsError::new(Side::Source, "open storage root", &label, e);
        opened.map(Arc::new).map_err(failed)
    }

    /// Where it is on this host, as configured.
    pub fn path(&self) -> &AbsPath {
        &self.path
    }

    /// Its name and its path, for messages.
    pub(super) fn label(&self) -> Vec<u8> {
        describe_place(&self.name, &self.path)
    }

    /// Whether the sandbox of this process hides it: another file system was mounted there since the start. Blocks.
    pub fn is_hidden_by_sandbox(&self) -> bool {
        super::sandbox::hides(&self.path, self.fd.as_fd())
    }

    /// Bytes that this process may still write there.
    ///
    /// # Errors
    /// `fstatvfs` failed.
    pub fn free_bytes(&self) -> Result<u64> {
        let space = rustix::fs::fstatvfs(&self.fd)
            .map_err(|e| FsError::new(Side::Destination, "measure", &self.label(), e))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// The result of the last [`RootDir::check_path`].
    pub fn unavailable(&self) -> Option<RootUnavailable> {
        *self.unavailable.lock()
    }

    /// Records a directory that a sync has just created and that has no metadata yet.
    pub(super) fn record_created_dir(&self, sync: SyncNo, dir: &OwnedFd) {
        let Ok(stat) = rustix::fs::fstat(dir) else { return };
        let mut made = self.created_dirs.lock();
        if made.len() >= MAX_CREATED_DIRS {
            made.clear();
        }
        made.insert((sync, stat.st_dev, stat.st_ino));
    }

    /// Whether a sync created the directory of this `stat` lately, in this process.
    pub(super) fn is_created_by_sync(&self, sync: SyncNo, stat: &Stat) -> bool {
        let made = self.created_dirs.lock();
        made.contains(&(sync, stat.st_dev, stat.st_ino))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Tree {
    /// The tree at `base` below a storage root. Nothing is opened, nothing needs to exist.
    pub fn new(root: Arc<RootDir>, base: RelPath) -> Tree {
        Tree {
            root,
            base,
            side: Side::Source,
            preserve: Preserve::NONE,
            part_name_key: PartNameKey::default(),
            direct_io: false,
            identity: ActingUser::default(),
            reopened: false,
            dir_cache: Arc::default(),
            case_folding: Arc::default(),
            root_device: Arc::default(),
        }
    }

    /// The same tree with entries that have their preserved attributes, access control lists, hard-link state and
    /// holes.
    #[must_use]
    pub fn preserving(self, keep: Preserve) -> Tree {
        Tree { preserve: keep, ..self }
    }

    /// The same tree, with direct reads of large files (`O_DIRECT`) if `direct`, where supported.
    #[must_use]
    pub fn with_direct_io(self, direct: bool) -> Tree {
        Tree { direct_io: direct, ..self }
    }

    /// The same tree as a copy of the source that is sent on to other destinations. The version of a source file means
    /// nothing there: content counts as that of an entry if it has the digest that it had at the source.
    #[must_use]
    pub fn for_relay(self) -> Tree {
        Tree { side: Side::Relay, ..self }
    }

    /// The same tree with part files that are named with `key`.
    #[must_use]
    pub fn with_part_names(self, key: PartNameKey) -> Tree {
        Tree { part_name_key: key, ..self }
    }

    /// Fails on a thread that does not act as what the tree is for.
    fn check_identity(&self) -> SysResult<()> {
        if self.identity.is_current() {
            return Ok(());
        }
        warn_wrong_identity();
        Err(Errno::PERM)
    }

    /// The same tree for work as `identity`.
    #[must_use]
    pub fn acting_as(self, identity: ActingUser) -> Tree {
        Tree { identity, ..self }
    }

    /// As what it is read or written.
    pub fn identity(&self) -> &ActingUser {
        &self.identity
    }

    /// The same tree for work that was assigned for its storage root if `assigned`. Otherwise the root was opened
    /// since, the master would attribute the work to the previous root, and [`Tree::check_root`] fails.
    #[must_use]
    pub fn for_assigned_root(self, assigned: bool) -> Tree {
        Tree { reopened: !assigned, ..self }
    }

    /// The same tree, with errors of the destination.
    pub(super) fn as_destination(&self) -> Tree {
        Tree { side: Side::Destination, ..self.clone() }
    }

    /// The tree at another path below the same storage root.
    pub(super) fn with_base(&self, base: RelPath) -> Tree {
        // Both are parts of one source.
        let _ = self.root_device();
        Tree { base, dir_cache: Arc::default(), ..self.clone() }
    }

    /// Its absolute path, as requests name it.
    pub fn path(&self) -> AbsPath {
        self.root.name.join(&self.base)
    }

    /// Its absolute path on this host.
    pub(super) fn local_path(&self) -> AbsPath {
        self.root.path.join(&self.base)
    }

    /// The path that requests name and the one on this host, for messages.
    pub(super) fn label(&self) -> Vec<u8> {
        describe_place(&self.path(), &self.local_path())
    }

    /// The entry at `path`: lstat, and the text of a link.
    ///
    /// # Errors
    /// It is missing or not accessible, or a file without a length to copy by ([`Cause::PseudoFileSystem`]).
    pub fn entry(&self, path: &RelPath) -> Result<Entry> {
        let look = || {
            let place = self.locate(path)?;
            let stat = lstat(&place.dir, place.name)?;
            let entry = self.entry_of(place.dir.as_fd(), place.name, path.clone(), &stat)?;
            let is_file = matches!(entry.kind, EntryKind::File { .. });
            if is_file && is_pseudo_fs(&place.dir)? {
                Err(Cause::PseudoFileSystem)
            } else {
                Ok(entry)
            }
        };
        look().map_err(|cause| {
            let is_pseudo = cause == Cause::PseudoFileSystem;
            let op = if is_pseudo { "copy" } else { "read metadata of" };
            self.error(op, path.as_bytes(), cause)
        })
    }

    /// The entry of `name` in `dir` (or of `dir` itself, where the name is empty) with the lstat `stat`. The text of a
    /// link and what else is preserved are read here.
    pub(super) fn entry_of(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: RelPath,
        stat: &Stat,
    ) -> CauseResult<Entry> {
        let kind = match type_of(stat) {
            FileType::RegularFile => EntryKind::File { size: size_of(stat) },
            FileType::Directory => EntryKind::Dir,
            FileType::Symlink => {
                let length = usize::try_from(stat.st_size).unwrap_or(0).min(4096);
                let target = rustix::fs::readlinkat(dir, name, Vec::with_capacity(length + 1))?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            _ => EntryKind::Special { format: stat.st_mode & 0o170_000, rdev: stat.st_rdev },
        };
        let keep = self.preserve;
        let mut entry = Entry::new(path, kind, meta_of(stat), self.version_of(stat));
        entry.stored_bytes = stored_bytes_of(stat).filter(|_| keep.contains(Attribute::Sparse));
        entry.is_hardlinked =
            stat.st_nlink > 1 && !entry.is_dir() && keep.contains(Attribute::Hardlinks);
        let object =
            if name.is_empty() { XattrObject::Open(dir) } else { XattrObject::Named(dir, name) };
        entry.xattrs = xattr::read(object, entry.is_dir(), keep)?;
        Ok(entry)
    }

    /// The version of the object of `stat`. Its device is 0 where it is that of this tree's root: network file systems
    /// have another number on each host and after each mount.
    pub(super) fn version_of(&self, stat: &Stat) -> FileVersion {
        let version = ident_of(stat);
        let is_home = self.root_device().is_ok_and(|home| home == version.dev);
        FileVersion { dev: if is_home { 0 } else { version.dev }, ..version }
    }

    /// The device number of this tree's root.
    fn root_device(&self) -> SysResult<u64> {
        if let Some(home) = self.root_device.get() {
            return Ok(*home);
        }
        let root = RelPath::root();
        let stat = match self.cached_dir(b"") {
            // A sync of a single file.
            Err(Errno::NOTDIR) => self.locate(&root).and_then(|at| lstat(&at.dir, at.name))?,
            other => rustix::fs::fstat(other?)?,
        };
        Ok(*self.root_device.get_or_init(|| stat.st_dev))
    }

    /// The parent directories of `path` with their metadata, the root first; none for the root itself.
    ///
    /// # Errors
    /// One of them is missing, no directory, or not accessible.
    pub fn parent_dirs(&self, path: &RelPath) -> Result<Vec<ManifestDir>> {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        let mut chain = Vec::new();
        for end in std::iter::once(0).chain(ends).filter(|_| !path.is_root()) {
            let above = &bytes[..end];
            let stat = self.cached_dir(above).and_then(rustix::fs::fstat);
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
    pub(super) fn cached_dir(&self, path: &[u8]) -> SysResult<DirHandle> {
        self.check_identity()?;
        if let Some(dir) = self.dir_cache.get(path) {
            return Ok(dir);
        }
        let opened = self.open_dir(path);
        if self.side == Side::Destination
            && !path.is_empty()
            && matches!(opened, Ok(_) | Err(Errno::NOTDIR | Errno::LOOP))
        {
            self.check_path_spelling(path)?;
        }
        let dir = Arc::new(opened?);
        self.dir_cache.insert(path, &dir);
        Ok(dir)
    }

    /// Checks that each name in the directory path `path` is spelled as it is stored; otherwise fails with
    /// [`NAME_COLLISION`](crate::wire::errno::NAME_COLLISION). Cached directories are checked already.
    pub(super) fn check_path_spelling(&self, path: &[u8]) -> SysResult<()> {
        let mut todo = Vec::new();
        let mut rest = path;
        let mut above = loop {
            if rest.is_empty() {
                break self.cached_dir(b"")?;
            }
            if let Some(dir) = self.dir_cache.get(rest) {
                break dir;
            }
            todo.push(rest);
            rest = split_parent(rest).0;
        };
        while let Some(next) = todo.pop() {
            self.case_folding.check_spelling(&above, split_parent(next).1)?;
            if !todo.is_empty() {
                above = Arc::new(self.open_dir(next)?);
                self.dir_cache.insert(next, &above);
            }
        }
        Ok(())
    }

    /// For a name that finds an object in `dir`: fails with [`NAME_COLLISION`](crate::wire::errno::NAME_COLLISION) where
    /// this is a destination and the stored spelling differs.
    pub(super) fn check_spelling(&self, dir: &DirHandle, name: &[u8]) -> SysResult<()> {
        match self.side {
            Side::Source | Side::Relay => Ok(()),
            Side::Destination => self.case_folding.check_spelling(dir, name),
        }
    }

    /// Like [`Tree::check_spelling`] for a name that may not exist.
    pub(super) fn check_spelling_if_exists(&self, place: &ParentAndName<'_>) -> SysResult<()> {
        if self.case_folding.is_known_case_sensitive(&place.dir)
            || lstat(&place.dir, place.name).is_err()
        {
            return Ok(());
        }
        self.check_spelling(&place.dir, place.name)
    }

    /// The directory `path`, opened again and not cached.
    pub(super) fn open_dir(&self, path: &[u8]) -> SysResult<OwnedFd> {
        self.open_below_storage(&self.path_below_root(path))
    }

    /// Like [`Tree::open_dir`], and it must be readable.
    pub(super) fn open_listable_dir(&self, path: &[u8]) -> SysResult<OwnedFd> {
        self.open_listable_below_storage(&self.path_below_root(path))
    }

    /// The directory `path` below the storage root. Each access to files begins with this call or the next one.
    pub(super) fn open_below_storage(&self, path: &[u8]) -> SysResult<OwnedFd> {
        self.check_identity()?;
        open_dir_below(self.root.fd(), path)
    }

    /// Like [`Tree::open_below_storage`], and it must be readable.
    pub(super) fn open_listable_below_storage(&self, path: &[u8]) -> SysResult<OwnedFd> {
        self.check_identity()?;
        open_listable_below(self.root.fd(), path)
    }

    /// `path` relative to the storage root.
    pub(super) fn path_below_root(&self, path: &[u8]) -> Vec<u8> {
        let mut full = self.base.as_bytes().to_vec();
        if !full.is_empty() && !path.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(path);
        full
    }

    /// The place of `path`. For the root of the tree that is its parent directory and its name there (`.` where the
    /// tree's root is the storage root), which serves a sync of a single file.
    pub(super) fn locate<'a>(&'a self, path: &'a RelPath) -> SysResult<ParentAndName<'a>> {
        if !path.is_root() {
            let (above, name) = split_parent(path.as_bytes());
            return Ok(ParentAndName { dir: self.cached_dir(above)?, name });
        }
        if self.base.is_root() {
            return Ok(ParentAndName { dir: Arc::new(self.open_dir(b"")?), name: b"." });
        }
        self.locate_below_root(&self.base)
    }

    /// Where `path`, which is below the storage root, is.
    pub(super) fn locate_below_root<'a>(&self, path: &'a RelPath) -> SysResult<ParentAndName<'a>> {
        let (above, name) = split_parent(path.as_bytes());
        Ok(ParentAndName { dir: Arc::new(self.open_below_storage(above)?), name })
    }
}

/// A path that requests name; in parentheses where that is on this host, if it is another path.
fn describe_place(name: &AbsPath, local: &AbsPath) -> Vec<u8> {
    match name == local {
        true => name.as_bytes().to_vec(),
        false => [name.as_bytes(), b" (", local.as_bytes(), b" on the host)"].concat(),
    }
}

/// The directories used last. Entries come in walk order, so a handful is enough. An entry older than
/// [`DirCache::MAX_AGE`] is looked up again: a directory that was moved away must not be written to for long.
#[derive(Debug, Default)]
pub(super) struct DirCache(Mutex<Vec<CachedDir>>);

#[derive(Debug)]
struct CachedDir {
    path: Box<[u8]>,
    dir: DirHandle,
    cached_at: Instant,
}

impl DirCache {
    const MAX_CACHED_DIRS: usize = 12;
    const MAX_AGE: Duration = Duration::from_secs(1);

    pub(super) fn get(&self, path: &[u8]) -> Option<DirHandle> {
        let mut all = self.0.lock();
        let at = all.iter().position(|c| *c.path == *path)?;
        if all[at].cached_at.elapsed() > Self::MAX_AGE {
            all.remove(at);
            return None;
        }
        // The one used last is first.
        all[..=at].rotate_right(1);
        Some(Arc::clone(&all[0].dir))
    }

    /// Adds a directory that the caller has just opened or created.
    pub(super) fn insert(&self, path: &[u8], dir: &DirHandle) {
        let mut all = self.0.lock();
        all.retain(|c| *c.path != *path);
        all.truncate(Self::MAX_CACHED_DIRS - 1);
        all.insert(
            0,
            CachedDir { path: path.into(), dir: Arc::clone(dir), cached_at: Instant::now() },
        );
    }

    /// One of the directories was removed.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Whether two stats are of one version of one object.
pub(super) fn is_same_version(a: &Stat, b: &Stat) -> bool {
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
    fn the_dir_cache_is_bounded_and_returns_inserted_dirs() {
        let site = TestSite::new();
        let cache = DirCache::default();
        let dirs: Vec<DirHandle> =
            (0..40).map(|_| Arc::new(open_dir_below(site.root.fd(), b"src").unwrap())).collect();
        for (i, dir) in dirs.iter().enumerate() {
            cache.insert(format!("d{i}").as_bytes(), dir);
            assert!(Arc::ptr_eq(&cache.get(b"d0").unwrap(), &dirs[0]), "used last stays longest");
        }
        assert!(cache.get(b"d20").is_none());
        assert_eq!(cache.0.lock().len(), DirCache::MAX_CACHED_DIRS);
        cache.clear();
        assert!(cache.get(b"d0").is_none());
    }
}
