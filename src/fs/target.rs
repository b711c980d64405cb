//! The destination root of a sync, and the steps of every write to it.

use super::beneath::{DirHandle, open_dir_below, split_parent};
use super::deletion_budget::DeletionBudget;
use super::dirty_journal::SuspectSpan;
use super::errno::{SysResult, ignore_missing};
use super::error::{Cause, CauseResult, FsError, Result};
use super::fs_type::is_remote_fs;
use super::inode::{chmod, lstat};
use super::metadata::{CreateDefaults, DesiredMetadata, MetadataPolicy, ObjectOrigin};
use super::root::{ParentAndName, Tree};
use super::run_as::ActingUser;
use super::temp_names;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::manifest::{Entry, ManifestDir, Meta};
use crate::wire::options::WriteRules;
use crate::wire::outcome::EntryError;
use crate::wire::preserve::Attribute;
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
    /// Numeric owners are set. Otherwise every object belongs to the agent's user (and, where permitted, to the
    /// requested group), and set-uid and set-gid are omitted where that is another owner.
    pub set_owner: bool,
    /// The options of the sync.
    pub rules: WriteRules,
    /// How much a prune may delete; `None`: nothing.
    pub deletion_budget: Option<DeletionBudget>,
}

impl TargetOptions {
    /// Owners are set if this process is root.
    pub fn for_this_process(rules: WriteRules) -> Self {
        let set_owner = rustix::process::geteuid().is_root();
        TargetOptions { set_owner, rules, deletion_budget: None }
    }
}

/// The destination root of a sync. Clones share their state; calls may run concurrently.
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) tree: Tree,
    pub(super) sync_no: SyncNo,
    pub(super) rules: Arc<WriteRules>,
    pub(super) deletion_budget: Option<DeletionBudget>,
    pub(super) policy: Arc<MetadataPolicy>,
    /// When files that length and mtime can't identify changed.
    pub(super) suspect_span: Option<SuspectSpan>,
    pub(super) state: Arc<TargetState>,
}

/// Owner and mode that a file system reports for a file that this process has created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CreatedOwner {
    pub(super) uid: u32,
    pub(super) mode: u32,
}

#[derive(Debug, Default)]
pub(super) struct TargetState {
    /// A directory's mode was widened to write into it: its metadata must be set again.
    has_widened_dirs: AtomicBool,
    /// The original modes of those directories, by device and inode.
    original_modes: Mutex<HashMap<(u64, u64), u32>>,
    /// A server stores the data: its errors show only at close or sync.
    is_remote: OnceLock<bool>,
    /// New files are created with a temporary name: see [`Target::disable_unnamed_files`].
    pub(super) use_temp_names: AtomicBool,
    /// Of the directory of the last new file. Files come in walk order, so one is enough.
    pub(super) create_defaults: Mutex<Option<(DirHandle, CreateDefaults)>>,
    pub(super) anchor_dir: Mutex<Option<DirHandle>>,
    pub(super) created_owners: Mutex<HashMap<u64, CreatedOwner>>,
    /// Whether the path led to the open root before the first write.
    pub(super) root_check: OnceLock<Result<()>>,
}

impl Target {
    /// The destination `tree` of the sync with this number. Nothing is opened yet.
    pub fn new(tree: Tree, sync: SyncNo, options: TargetOptions) -> Target {
        Target {
            suspect_span: tree.root.journal.suspect_span(&tree.local_path()),
            policy: Arc::new(MetadataPolicy::new(
                options.set_owner && tree.identity.user().is_none(),
                &options.rules,
                &tree.identity,
            )),
            tree: tree.as_destination(),
            sync_no: sync,
            rules: Arc::new(options.rules),
            deletion_budget: options.deletion_budget,
            state: Arc::default(),
        }
    }

    /// As what it is written.
    pub fn identity(&self) -> &ActingUser {
        self.tree.identity()
    }

    /// The options of the sync.
    pub fn rules(&self) -> &WriteRules {
        &self.rules
    }

    /// Returns the metadata warnings since the last call, by cause.
    pub fn take_metadata_warnings(&self) -> EntryWarnings {
        self.policy.warnings.take_counts()
    }

    /// Like [`Tree::check_root`], for the destination.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub fn check_root(&self) -> Result<()> {
        self.tree.check_root()
    }

    /// Like [`Target::check_root`], once for this target and its clones, before the first write of a request.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub(super) fn check_root_once(&self) -> Result<()> {
        self.state.root_check.get_or_init(|| self.check_root()).clone()
    }

    /// Runs `work` and checks the storage root before and after it.
    ///
    /// # Errors
    /// What `work` returns, or [`Cause::RootUnavailable`].
    pub fn with_root_checked<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.check_root()?;
        let done = work()?;
        self.check_root()?;
        Ok(done)
    }

    /// Applies the metadata of directories (again), after the last write into them. Returns the failures. A directory
    /// that the rules skip at the destination (missing, or another object) has no metadata to set and does not fail.
    pub fn apply_dir_metadata(&self, dirs: &[ManifestDir]) -> Vec<EntryError> {
        let stamps = dirs.iter().map(|d| (&d.path, DesiredMetadata::from(d))).collect();
        self.apply_all_dir_metadata(&stamps, |_| ObjectOrigin::Existing)
            .values()
            .map(FsError::to_entry_error)
            .collect()
    }

    /// Children before their parents: a parent's final mode may deny access. `origin` is that of the directory of a
    /// path.
    pub(super) fn apply_all_dir_metadata<'a>(
        &self,
        stamps: &BTreeMap<&'a RelPath, DesiredMetadata<'_>>,
        origin: impl Fn(&RelPath) -> ObjectOrigin,
    ) -> HashMap<&'a RelPath, FsError> {
        let mut failed = HashMap::new();
        for (path, desired) in stamps.iter().rev().filter(|_| !self.rules.dry_run) {
            let dir = match self.tree.cached_dir(path.as_bytes()) {
                Err(Errno::ACCESS) => self.ensure_dir(path.as_bytes()),
                other => other,
            };
            if dir.as_ref().is_err_and(|errno| self.is_dir_skipped(path, *errno)) {
                continue;
            }
            let done = dir
                .map_err(Cause::Os)
                .and_then(|dir| self.apply_metadata_to_dir(&dir, desired, origin(path)));
            if let Err(cause) = done {
                failed.insert(*path, self.error("set metadata of", path, cause));
            }
        }
        failed
    }

    /// Whether the rules skip the directory `path`, given the errno of opening it: it is missing and nothing new is
    /// requested, or an existing object (there or above it) is left unchanged. The root is named by the operator:
    /// another object in its place is an error.
    pub(super) fn is_dir_skipped(&self, path: &RelPath, errno: Errno) -> bool {
        match errno {
            Errno::NOENT => self.rules.existing,
            Errno::NOTDIR | Errno::LOOP => self.rules.ignore_existing && !path.is_root(),
            _ => false,
        }
    }

    /// Applies the metadata of an open directory.
    pub(super) fn apply_metadata_to_dir(
        &self,
        dir: &DirHandle,
        desired: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
    ) -> CauseResult<()> {
        self.policy.apply(dir, desired, origin)?;
        if !self.policy.preserves(Attribute::Mode) {
            self.restore_dir_mode(dir)?;
        }
        Ok(())
    }

    /// Restores the mode of a directory that was widened to write into it.
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

/// The steps of writing. Each returns the bare errno; the callers add operation and path.
impl Target {
    pub(super) fn error(
        &self,
        op: &'static str,
        path: &RelPath,
        cause: impl Into<Cause>,
    ) -> FsError {
        FsError::new(self.tree.side, op, path.as_bytes(), cause)
    }

    /// See [`temp_names::part_file_name`].
    pub(super) fn part_file_name(&self, entry: &Entry) -> Vec<u8> {
        temp_names::part_file_name(&self.rules.part_name_key, &entry.path, entry.part_generation())
    }

    /// See [`temp_names::temp_file_name`].
    pub(super) fn temp_file_name(&self, path: &RelPath, attempt: u32, slot: u32) -> Vec<u8> {
        temp_names::temp_file_name(&self.rules.part_name_key, self.sync_no, path, attempt, slot)
    }

    /// See [`temp_names::anchor_dir_name`].
    pub(super) fn anchor_dir_name(&self) -> Vec<u8> {
        temp_names::anchor_dir_name(&self.rules.part_name_key, self.sync_no)
    }

    /// From here on, new files get a temporary name first: there are objects to replace, or the file system has no
    /// unnamed files.
    pub(super) fn disable_unnamed_files(&self) {
        self.state.use_temp_names.store(true, Ordering::Relaxed);
    }

    /// Whether a directory's mode was ever widened (perhaps by another batch: each applies its own metadata).
    pub(super) fn has_widened_dirs(&self) -> bool {
        self.state.has_widened_dirs.load(Ordering::Relaxed)
    }

    /// The place of `path`; missing parent directories are created.
    pub(super) fn locate_or_create_parents<'a>(
        &'a self,
        path: &'a RelPath,
    ) -> SysResult<ParentAndName<'a>> {
        match self.tree.locate(path) {
            Err(Errno::NOENT | Errno::ACCESS) => {
                if path.is_root() {
                    self.create_base(split_parent(self.tree.base.as_bytes()).0, None)?;
                } else {
                    self.ensure_dir(split_parent(path.as_bytes()).0)?;
                }
                self.tree.locate(path)
            }
            other => other,
        }
    }

    /// The directory `path`, created with its parents if missing.
    pub(super) fn ensure_dir(&self, path: &[u8]) -> SysResult<DirHandle> {
        Ok(self.ensure_dir_with_meta(path, false, None)?.0)
    }

    /// Like [`Target::ensure_dir`], with whether the directory is new; it is created for `meta`. With `replace`, an
    /// obstructing non-directory is removed (never the root itself).
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
        // Usually only the last one is missing.
        if !path.is_empty()
            && let (above, name) = split_parent(path)
            && let Ok(dir) = self.tree.cached_dir(above)
        {
            let here = self.enter_dir_checked(&dir, name, replace, meta)?;
            self.tree.dir_cache.insert(path, &here.0);
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
            here = match self.tree.dir_cache.get(&path[..end]) {
                Some(dir) => (dir, false),
                None => {
                    let meta = meta.filter(|_| end == path.len());
                    self.enter_dir_checked(&here.0, &path[from..end], replace, meta)?
                }
            };
            self.tree.dir_cache.insert(&path[..end], &here.0);
        }
        Ok(here)
    }

    /// Creates the directories between the storage root and the root of the sync, and that root, like `mkdir -p`;
    /// obstructing objects stay. The last one is created for a directory with `meta`.
    fn create_base(&self, base: &[u8], meta: Option<&Meta>) -> SysResult<(DirHandle, bool)> {
        let last = meta.filter(|_| !self.policy.preserves(Attribute::Mode));
        let last = last.map_or(0o755, |meta| self.policy.initial_dir_mode(Some(meta)));
        let mut here = (Arc::new(self.tree.open_below_storage(b"")?), false);
        let names = || base.split(|b| *b == b'/').filter(|name| !name.is_empty());
        let mut left = names().count();
        for name in names() {
            left -= 1;
            let mode = Mode::from_raw_mode(if left == 0 { last } else { 0o755 });
            here = self.open_or_create_dir(&here.0, name, false, mode)?;
        }
        if base == self.tree.base.as_bytes() {
            self.tree.dir_cache.insert(b"", &here.0);
        }
        Ok(here)
    }

    /// A directory of the source: its spelling must be the stored one.
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
                    // A directory that another batch created there stays.
                    match self.unlink(above, name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }

    pub(super) fn unlink(&self, dir: &DirHandle, name: &[u8], flags: AtFlags) -> SysResult<()> {
        self.with_writable_dir(dir, || rustix::fs::unlinkat(dir, name, flags))
    }

    /// Removes a non-directory; a missing name is no error.
    pub(super) fn remove_non_directory(&self, dir: &DirHandle, name: &[u8]) -> SysResult<()> {
        match self.unlink(dir, name, AtFlags::empty()) {
            // It was replaced by a directory: the caller retries.
            Err(Errno::ISDIR) => {
                ignore_missing(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
            }
            other => ignore_missing(other),
        }
    }

    /// Runs `make`, which creates `name` in `dir`; an existing non-directory of that name is removed.
    pub(super) fn create_replacing<T>(
        &self,
        dir: &DirHandle,
        name: &[u8],
        make: impl Fn() -> SysResult<T>,
    ) -> SysResult<T> {
        match self.with_writable_dir(dir, &make) {
            Err(Errno::EXIST) => {
                self.remove_non_directory(dir, name)?;
                self.with_writable_dir(dir, make)
            }
            other => other,
        }
    }

    /// Renames a finished object to its name. An empty directory in its place is removed, a non-empty one is not; an
    /// object with another spelling is not replaced.
    pub(super) fn rename_into_place(
        &self,
        dir: &DirHandle,
        temp: &[u8],
        name: &[u8],
    ) -> CauseResult<()> {
        if !self.tree.case_folding.is_case_insensitive(dir, temp)? {
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
                // Created concurrently, perhaps with another spelling.
                Err(Errno::EXIST) => {}
                // Not supported here.
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

    /// Removes an obstructing empty directory.
    pub(super) fn remove_empty_dir(&self, dir: &DirHandle, name: &[u8]) -> CauseResult<()> {
        match self.unlink(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            // `INVAL`: it is the storage root itself.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::INVAL) => Err(Cause::DirectoryNotEmpty),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Runs `step`, which needs to write to or search `dir`. If the mode of our own directory forbids it, the mode is
    /// widened until its metadata is applied again. Another batch may do that in between, so it is retried. A dry run
    /// widens nothing.
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

    /// Runs `step` again if a cached directory was removed.
    pub(super) fn retry_with_fresh_cache<T>(
        &self,
        step: impl Fn() -> SysResult<T>,
    ) -> SysResult<T> {
        match step() {
            Err(Errno::NOENT | Errno::STALE) => {
                self.tree.dir_cache.clear();
                step()
            }
            other => other,
        }
    }

    /// Network file systems report failed writes (a full disk, a quota) at close, with a result that is not available here:
    /// there the file is synced.
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
