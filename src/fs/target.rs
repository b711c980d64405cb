//! The destination root of a sync, and the steps that every write to it is made of.

use super::beneath::{DirHandle, open_dir_below, split_parent};
use super::deletion_budget::DeletionBudget;
use super::dirty_journal::SuspectSpan;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, FsError, Result};
use super::fs_type::is_remote_fs;
use super::inode::{chmod, lstat};
use super::metadata::{CreateDefaultsCache, DesiredMetadata, MetadataPolicy, ObjectOrigin};
use super::root::{ParentAndName, Tree};
use super::temp_names;
use crate::wire::manifest::{Entry, ManifestDir, Meta};
use crate::wire::options::{Attribute, EntryWarnings, WriteRules};
use crate::wire::sync::FileError;
use crate::wire::{RelPath, SyncNo};
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, RenameFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// How a destination is written.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// Numeric owners are set. Without it everything belongs to the agent's user (and, where that may
    /// be, to the group that is asked for), and set-uid and set-gid are left out where that is another
    /// owner.
    pub set_owner: bool,
    /// What the operator asked for.
    pub rules: WriteRules,
    /// How much a prune may delete; `None`: nothing.
    pub deletion_budget: Option<DeletionBudget>,
}

impl TargetOptions {
    /// Owners are set where this process is root.
    pub fn for_this_process(rules: WriteRules) -> Self {
        let set_owner = rustix::process::geteuid().is_root();
        TargetOptions { set_owner, rules, deletion_budget: None }
    }
}

/// The destination root of a sync. Clones share their state; calls may run at the same time.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) tree: Tree,
    pub(super) sync_no: SyncNo,
    pub(super) rules: Arc<WriteRules>,
    pub(super) deletion_budget: Option<DeletionBudget>,
    pub(super) policy: Arc<MetadataPolicy>,
    /// When what can't be told by length and time changed.
    pub(super) suspect_span: Option<SuspectSpan>,
    pub(super) state: Arc<TargetState>,
}

/// Owner and mode that a file system shows for a file that this process has created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CreatedOwner {
    pub(super) uid: u32,
    pub(super) mode: u32,
}

#[derive(Debug, Default)]
pub(super) struct TargetState {
    /// A directory's mode was widened to write into it: its metadata need to be set again.
    has_widened_dirs: AtomicBool,
    /// The modes of those directories before, by device and inode.
    original_modes: Mutex<HashMap<(u64, u64), u32>>,
    /// A server keeps what is written: its errors show only when a file is closed or synced.
    is_remote: OnceLock<bool>,
    /// New files are made under a temporary name: see [`Target::name_first`].
    use_temp_names: AtomicBool,
    pub(super) create_defaults: CreateDefaultsCache,
    pub(super) anchor_dir: Mutex<Option<DirHandle>>,
    pub(super) created_owners: Mutex<HashMap<u64, CreatedOwner>>,
    /// Whether the storage path led to the open root before the first write.
    pub(super) root_check: OnceLock<Result<()>>,
}

impl Target {
    /// The destination `tree` of the sync with this number. Nothing is opened yet.
    pub fn new(tree: Tree, sync: SyncNo, options: TargetOptions) -> Target {
        Target {
            suspect_span: tree.root.journal().suspect_span(&tree.path()),
            tree: tree.as_destination(),
            sync_no: sync,
            policy: Arc::new(MetadataPolicy::new(options.set_owner, &options.rules)),
            rules: Arc::new(options.rules),
            deletion_budget: options.deletion_budget,
            state: Arc::default(),
        }
    }

    /// The tree that it writes to.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What the operator asked for.
    pub fn rules(&self) -> &WriteRules {
        &self.rules
    }

    /// What the destination could not hold of the metadata since the last call, by cause.
    pub fn take_metadata_warnings(&self) -> EntryWarnings {
        self.policy.warnings.take_counts()
    }

    /// The same of the destination.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub fn check_root(&self) -> Result<()> {
        self.tree.check_root()
    }

    /// Before the first write of a request: the same, once for this target and its clones.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub(super) fn check_root_once(&self) -> Result<()> {
        self.state.root_check.get_or_init(|| self.check_root()).clone()
    }

    /// The error of work at the destination whose storage root was not there before or after it.
    ///
    /// # Errors
    /// What `work` returns, or [`Cause::RootUnavailable`].
    pub fn with_root_checked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_root()?;
        let done = work()?;
        self.check_root()?;
        Ok(done)
    }

    /// Gives directories their metadata (again): to be called after the last write into them. Those
    /// that failed are reported. A directory that the rules leave as it is at the destination (missing, or
    /// something else) has no metadata to set, and that is no failure.
    pub fn apply_dir_metadata(&self, dirs: &[ManifestDir]) -> Vec<FileError> {
        let stamps = dirs.iter().map(|d| (&d.path, DesiredMetadata::from(d))).collect();
        self.apply_all_dir_metadata(&stamps, |_| ObjectOrigin::Existing)
            .values()
            .map(FsError::to_file_error)
            .collect()
    }

    /// Children before their parents: a parent's final mode may lock us out. `origin` is where the
    /// directory of a path comes from.
    pub(super) fn apply_all_dir_metadata<'a>(
        &self,
        stamps: &BTreeMap<&'a RelPath, DesiredMetadata<'_>>,
        origin: impl Fn(&RelPath) -> ObjectOrigin,
    ) -> HashMap<&'a RelPath, FsError> {
        let mut failed = HashMap::new();
        for (path, outfit) in stamps.iter().rev().filter(|_| !self.rules.dry_run) {
            let dir = match self.tree.cached_dir(path.as_bytes()) {
                Err(Errno::ACCESS) => self.ensure_dir(path.as_bytes(), false).map(|(dir, _)| dir),
                other => other,
            };
            if dir.as_ref().is_err_and(|errno| self.is_dir_skipped(path, *errno)) {
                continue;
            }
            let done = dir
                .map_err(Cause::Os)
                .and_then(|dir| self.apply_metadata_to_dir(&dir, outfit, origin(path)));
            if let Err(cause) = done {
                failed.insert(*path, self.error("set metadata of", path, cause));
            }
        }
        failed
    }

    /// Whether the rules leave the directory `path` unmade, given why it cannot be opened: it is missing and
    /// nothing new is wanted, or what stands there (or above it) is left alone. The root is what the
    /// operator named: something else in its place is an error.
    pub(super) fn is_dir_skipped(&self, path: &RelPath, errno: Errno) -> bool {
        match errno {
            Errno::NOENT => self.rules.existing,
            Errno::NOTDIR | Errno::LOOP => self.rules.ignore_existing && !path.is_root(),
            _ => false,
        }
    }

    /// Gives an open directory its metadata; returns whether they were others.
    pub(super) fn apply_metadata_to_dir(
        &self,
        dir: &DirHandle,
        outfit: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
    ) -> CauseResult<bool> {
        let changed = self.policy.apply(dir, outfit, origin)?;
        if !self.policy.preserves(Attribute::Mode) {
            self.restore_dir_mode(dir)?;
        }
        Ok(changed)
    }

    /// Gives a directory whose mode was widened to write into it the mode that it had.
    fn restore_dir_mode(&self, dir: &DirHandle) -> SysResult<()> {
        let widened = || self.state.original_modes.lock();
        if widened().is_empty() {
            return Ok(());
        }
        let stat = rustix::fs::fstat(dir)?;
        match widened().remove(&(stat.st_dev, stat.st_ino)) {
            Some(mode) => chmod(dir.as_fd(), mode),
            None => Ok(()),
        }
    }
}

/// The steps that writing is made of. Each tells the bare errno; callers know verb and path.
impl Target {
    pub(super) fn error(
        &self,
        op: &'static str,
        path: &RelPath,
        cause: impl Into<Cause>,
    ) -> FsError {
        FsError::new(self.tree.side, op, path.as_bytes(), cause)
    }

    /// See [`names::part`].
    pub(super) fn part_file_name(&self, entry: &Entry) -> Vec<u8> {
        temp_names::part_file_name(&self.rules.part_name_key, &entry.path, entry.part_generation())
    }

    /// See [`names::temp`].
    pub(super) fn temp_file_name(&self, path: &RelPath, attempt: u32, slot: u32) -> Vec<u8> {
        temp_names::temp_file_name(&self.rules.part_name_key, self.sync_no, path, attempt, slot)
    }

    /// See [`names::anchors`].
    pub(super) fn anchor_dir_name(&self) -> Vec<u8> {
        temp_names::anchor_dir_name(&self.rules.part_name_key, self.sync_no)
    }

    /// Whether new files may be made without a name.
    pub(super) fn can_use_unnamed_files(&self) -> bool {
        !self.state.use_temp_names.load(Ordering::Relaxed)
    }

    /// From here on, new files get a temporary name first: there are things to be replaced, or the file
    /// system can't do otherwise.
    pub(super) fn disable_unnamed_files(&self) {
        self.state.use_temp_names.store(true, Ordering::Relaxed);
    }

    /// Whether some directory's mode was ever widened (perhaps by another batch: each stamps its own).
    pub(super) fn has_widened_dirs(&self) -> bool {
        self.state.has_widened_dirs.load(Ordering::Relaxed)
    }

    /// Where `path` is; what is missing above it is made.
    pub(super) fn locate_or_create_parents<'a>(
        &'a self,
        path: &'a RelPath,
    ) -> SysResult<ParentAndName<'a>> {
        match self.tree.locate(path) {
            Err(Errno::NOENT | Errno::ACCESS) => {
                if path.is_root() {
                    self.create_base(split_parent(self.tree.base.as_bytes()).0, None)?;
                } else {
                    self.ensure_dir(split_parent(path.as_bytes()).0, false)?;
                }
                self.tree.locate(path)
            }
            other => other,
        }
    }

    /// The directory `path`, made where it is missing with all above it; tells whether it is new. With
    /// `replace`, what is no directory is taken out of its way (never the root itself).
    pub(super) fn ensure_dir(&self, path: &[u8], replace: bool) -> SysResult<(DirHandle, bool)> {
        self.ensure_dir_with_meta(path, replace, None)
    }

    /// The same; where it is made, it is for a directory with `meta`.
    pub(super) fn ensure_dir_with_meta(
        &self,
        path: &[u8],
        replace: bool,
        meta: Option<&Meta>,
    ) -> SysResult<(DirHandle, bool)> {
        match self.tree.cached_dir(path) {
            Ok(dir) => return Ok((dir, false)),
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno),
        }
        // Most often just the last one is missing.
        if !path.is_empty()
            && let (above, name) = split_parent(path)
            && let Ok(dir) = self.tree.cached_dir(above)
        {
            let here = self.enter_dir_checked(&dir, name, replace, meta)?;
            self.tree.cache_dir(path, &here.0);
            return Ok(here);
        }
        let mut here = match self.tree.cached_dir(b"") {
            Ok(dir) => (dir, false),
            Err(Errno::NOENT | Errno::ACCESS) => {
                self.create_base(self.tree.base.as_bytes(), meta.filter(|_| path.is_empty()))?
            }
            Err(errno) => return Err(errno),
        };
        let mut end = 0;
        while end < path.len() {
            let from = if end == 0 { 0 } else { end + 1 };
            let rest = &path[from..];
            end = from + rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            here = match self.tree.find_cached_dir(&path[..end]) {
                Some(dir) => (dir, false),
                None => {
                    let meta = meta.filter(|_| end == path.len());
                    self.enter_dir_checked(&here.0, &path[from..end], replace, meta)?
                }
            };
            self.tree.cache_dir(&path[..end], &here.0);
        }
        Ok(here)
    }

    /// The directories between the storage root and the root of the sync, and that root: made like
    /// `mkdir -p` would, and nothing in their way is touched. The last is made for a directory with `meta`.
    fn create_base(&self, base: &[u8], meta: Option<&Meta>) -> SysResult<(DirHandle, bool)> {
        let last = meta.filter(|_| !self.policy.preserves(Attribute::Mode));
        let last = last.map_or(0o755, |meta| self.policy.initial_dir_mode(Some(meta)));
        let mut here = (Arc::new(open_dir_below(self.tree.root.fd(), b"")?), false);
        let names = || base.split(|b| *b == b'/').filter(|name| !name.is_empty());
        let mut left = names().count();
        for name in names() {
            left -= 1;
            let mode = Mode::from_raw_mode(if left == 0 { last } else { 0o755 });
            here = self.open_or_create_dir(&here.0, name, false, mode)?;
        }
        if base == self.tree.base.as_bytes() {
            self.tree.cache_dir(b"", &here.0);
        }
        Ok(here)
    }

    /// A directory that the source has: it must be spelled so.
    fn enter_dir_checked(
        &self,
        above: &DirHandle,
        name: &[u8],
        replace: bool,
        meta: Option<&Meta>,
    ) -> SysResult<(DirHandle, bool)> {
        let mode = Mode::from_raw_mode(self.policy.initial_dir_mode(meta));
        let (dir, made) = self.open_or_create_dir(above, name, replace, mode)?;
        if !made {
            self.tree.check_spelling(above, name)?;
        }
        Ok((dir, made))
    }

    fn open_or_create_dir(
        &self,
        above: &DirHandle,
        name: &[u8],
        replace: bool,
        mode: Mode,
    ) -> SysResult<(DirHandle, bool)> {
        let mut made = false;
        for _ in 0..8 {
            match self.with_writable_dir(above, || open_dir_below(above.as_fd(), name)) {
                Ok(fd) => {
                    if made {
                        self.tree.root.record_created_dir(self.sync_no, &fd);
                    }
                    return Ok((Arc::new(fd), made));
                }
                Err(Errno::NOENT) => {
                    match self.with_writable_dir(above, || rustix::fs::mkdirat(above, name, mode)) {
                        Ok(()) => made = true,
                        Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(Errno::NOTDIR | Errno::LOOP) if replace => {
                    self.tree.check_spelling(above, name)?;
                    // A directory that another batch has made there meanwhile stays.
                    match self.with_writable_dir(above, || {
                        rustix::fs::unlinkat(above, name, AtFlags::empty())
                    }) {
                        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }

    /// Removes a name that is no directory; that it is gone already is fine.
    pub(super) fn remove_non_directory(&self, dir: &DirHandle, name: &[u8]) -> SysResult<()> {
        match self.with_writable_dir(dir, || rustix::fs::unlinkat(dir, name, AtFlags::empty())) {
            Err(Errno::NOENT) => Ok(()),
            // It has become a directory: the caller looks again.
            Err(Errno::ISDIR) => match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOENT) => Ok(()),
                other => other,
            },
            other => other,
        }
    }

    /// Gives a finished object its name. An empty directory in its place is removed, a full one is not;
    /// nothing that is spelled otherwise is replaced.
    pub(super) fn rename_into_place(
        &self,
        dir: &DirHandle,
        temp: &[u8],
        name: &[u8],
    ) -> CauseResult<()> {
        if !self.tree.is_case_insensitive(dir, temp)? {
            return self.rename_over(dir, temp, name);
        }
        for _ in 0..8 {
            match self.with_writable_dir(dir, || lstat(dir, name)) {
                Ok(_) => {
                    self.tree.check_spelling(dir, name)?;
                    return self.rename_over(dir, temp, name);
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let only_new = RenameFlags::NOREPLACE;
            let rename = || rustix::fs::renameat_with(dir, temp, dir, name, only_new);
            match self.with_writable_dir(dir, rename) {
                // Somebody was quicker, perhaps with another spelling.
                Err(Errno::EXIST) => {}
                // That can't be asked for here.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return self.rename_over(dir, temp, name);
                }
                other => return Ok(other?),
            }
        }
        Err(Errno::BUSY.into())
    }

    fn rename_over(&self, dir: &DirHandle, temp: &[u8], name: &[u8]) -> CauseResult<()> {
        let rename = || rustix::fs::renameat(dir, temp, dir, name);
        match self.with_writable_dir(dir, rename) {
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.remove_empty_dir(dir, name)?;
                Ok(self.with_writable_dir(dir, rename)?)
            }
            other => Ok(other?),
        }
    }

    /// Removes an empty directory that stands where something else belongs.
    pub(super) fn remove_empty_dir(&self, dir: &DirHandle, name: &[u8]) -> CauseResult<()> {
        match self.with_writable_dir(dir, || rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            // `INVAL`: it is the storage root itself.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::INVAL) => Err(Cause::DirectoryNotEmpty),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Runs `step`, which needs to write to or pass through `dir`. Where our own directory's mode
    /// forbids it, the mode is widened, until the directory is stamped again. Another batch may do that
    /// between, so it is tried a few times. A dry run takes it as it is.
    pub(super) fn with_writable_dir<T>(
        &self,
        dir: &DirHandle,
        step: impl Fn() -> SysResult<T>,
    ) -> SysResult<T> {
        for _ in 0..8 {
            match step() {
                Err(Errno::ACCESS) if !self.rules.dry_run => {}
                other => return other,
            }
            let stat = rustix::fs::fstat(dir)?;
            if stat.st_uid != self.policy.euid {
                return Err(Errno::ACCESS);
            }
            if stat.st_mode & 0o700 != 0o700 {
                self.state.has_widened_dirs.store(true, Ordering::Relaxed);
                let mut before = self.state.original_modes.lock();
                before.entry((stat.st_dev, stat.st_ino)).or_insert(stat.st_mode & 0o7777);
                drop(before);
                chmod(dir.as_fd(), stat.st_mode & 0o7777 | 0o700)?;
            }
        }
        step()
    }

    /// Runs `step` again where a directory of the cache turned out to be removed.
    pub(super) fn retry_with_fresh_cache<T>(
        &self,
        step: impl Fn() -> SysResult<T>,
    ) -> SysResult<T> {
        match step() {
            Err(Errno::NOENT | Errno::STALE) => {
                self.tree.clear_dir_cache();
                step()
            }
            other => other,
        }
    }

    /// Network file systems tell of failed writes (a full disk, a quota) when the file is closed, and
    /// closing can't be asked for its outcome here: there they are asked for with a sync.
    pub(super) fn sync_if_remote(&self, fd: &OwnedFd) -> SysResult<()> {
        if self.is_remote(fd) { rustix::fs::fdatasync(fd) } else { Ok(()) }
    }

    /// Whether a server keeps what is written here.
    pub(super) fn is_remote(&self, fd: &OwnedFd) -> bool {
        *self.state.is_remote.get_or_init(|| is_remote_fs(fd))
    }
}

#[cfg(test)]
mod tests;
