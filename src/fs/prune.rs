//! Extraneous entries of the destination, which the source does not have: counted, then deleted or moved to the
//! trash.
//!
//! One call handles an interval of the names in one directory; the caller passes those that the source has. A
//! directory that the source does not have counts with all its content and is removed from its leaves up. Protected
//! entries and their parent directories stay.
//!
//! Memory and time of one call are bounded: it ends after [`MAX_ENTRIES_PER_CALL`] entries and returns where to
//! resume. Every operation uses one name in an open directory that was reached without a link; other mounts are never
//! entered.

mod levels;

use super::beneath::DirHandle;
use super::deletion_budget::DeletionBudget;
use super::dir_list::ListedName;
use super::errno::SysResult;
use super::error::{Cause, Result};
use super::filter::Filter;
use super::inode::{chmod, lstat, mode_of, size_of, type_of};
use super::target::Target;
use super::temp_names::{is_anchor_dir_name, is_internal_name};
use super::trash::Trash;
use crate::wire::entry_report::EntryWarning;
use crate::wire::errno::NAME_COLLISION;
use crate::wire::manifest::ManifestDir;
use crate::wire::options::FilterSpec;
use crate::wire::outcome::EntryError;
use crate::wire::task::PruneReport;
use crate::wire::{RelPath, RequestId};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most entries of one call.
const MAX_ENTRIES_PER_CALL: usize = 4096;
/// The most names of one directory in memory (twice as many during the listing).
const MAX_NAMES_HELD: usize = 4096;
/// Levels of which the descriptors stay open.
const MAX_OPEN_LEVELS: usize = 12;
/// Internal files older than this are leftovers.
const STALE_FILE_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A page of a prune: an interval of the names in one directory; see [`Target::prune`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PruneRequest {
    /// The directory, below both roots.
    #[n(0)]
    pub dir: RelPath,
    /// Names up to and including this one are skipped.
    #[n(1)]
    pub after: Option<ByteVec>,
    /// Names after this one are skipped.
    #[n(2)]
    pub through: Option<ByteVec>,
    /// The names in between that the source has, of any kind, sorted by bytes.
    #[n(3)]
    pub names: Vec<ByteVec>,
    /// What it excludes is protected.
    #[n(4)]
    pub filter: FilterSpec,
    /// Excluded entries are deleted, not protected.
    #[n(5)]
    pub delete_excluded: bool,
    /// Delete; otherwise nothing is changed.
    #[n(6)]
    pub apply: bool,
    /// `dir` and its parent directories, with the metadata to apply after a deletion.
    #[n(7)]
    pub dirs: Vec<ManifestDir>,
    /// Resume where the last call with this page ended.
    #[n(8)]
    pub resume: Option<PruneResume>,
    /// Indices in `names` of entries that are no directories at the source and are copied: a directory of such a name
    /// is deleted like an extraneous one. Sorted.
    #[n(9)]
    pub replacing_dirs: Vec<u32>,
}

/// A position within a page.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PruneResume {
    /// The last entry that was handled.
    #[n(0)]
    pub after: RelPath,
    /// How many directories from the page's one down to it are known to keep something.
    #[n(1)]
    pub kept_dirs: u32,
}

/// The result of one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PruneOutcome {
    /// The counts.
    pub pruned: PruneReport,
    /// What was deleted (or would be), in order, with the length of its content.
    pub removed: Vec<(RelPath, u64)>,
    /// Entries that could not be read or deleted; they are not counted as extraneous.
    pub errors: Vec<EntryError>,
    /// Trashes of earlier mirrors, which are kept.
    pub old_trash: EntryWarning,
    /// There is more: call again with the same page and this in [`PruneRequest::resume`].
    pub resume: Option<PruneResume>,
    /// More is extraneous than may be deleted: the call ended there.
    pub allowance_exhausted: bool,
}

/// The names of a directory that are not visited yet.
type NameIter = std::vec::IntoIter<ListedName>;

/// A directory in progress.
struct PruneLevel {
    path: RelPath,
    /// `None`: closed to save descriptors.
    fd: Option<DirHandle>,
    /// Before this call removed anything in it.
    stat: Stat,
    names: NameIter,
    /// There are more names after this one, not in memory.
    next_after: Option<Box<[u8]>>,
    /// Something in it stays.
    has_kept: bool,
}

struct Pruner<'a> {
    target: &'a Target,
    page: &'a PruneRequest,
    filter: &'a Filter,
    /// How much may be deleted; `None`: nothing.
    budget: Option<DeletionBudget>,
    trash: Option<Trash<'a>>,
    /// The page's directory, then extraneous ones.
    levels: Vec<PruneLevel>,
    result: PruneOutcome,
    /// Something was changed.
    changed: bool,
    now: Duration,
}

impl Target {
    /// Finds extraneous entries in `page` and deletes them where page and target permit, within the budget;
    /// directories with deletions get their metadata again. `filter` is the compiled one of `page`, `request_id` names
    /// the sync in the trash, where there is one ([`WriteRules::trash`](crate::wire::options::WriteRules)).
    ///
    /// Kept: excluded entries (unless they are to be deleted), the trash, also one of an earlier mirror, mount
    /// points, internal files (old ones are removed, uncounted), and all parent directories of these. A missing
    /// directory is no error.
    ///
    /// # Errors
    /// The directory can't be read; the trash is no directory. All other errors are in [`PruneOutcome::errors`].
    pub fn prune(
        &self,
        page: &PruneRequest,
        filter: &Filter,
        request_id: &RequestId,
    ) -> Result<PruneOutcome> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.prune_at(page, filter, request_id, now, MAX_ENTRIES_PER_CALL)
    }

    pub(super) fn prune_at(
        &self,
        page: &PruneRequest,
        filter: &Filter,
        request_id: &RequestId,
        now: Duration,
        steps: usize,
    ) -> Result<PruneOutcome> {
        self.tree.dir_cache.clear();
        let allowed = page.apply && self.rules.delete && !self.rules.dry_run;
        let mut pruner = Pruner {
            target: self,
            page,
            filter,
            budget: self.deletion_budget.clone().filter(|_| allowed),
            trash: Trash::for_request(self, request_id),
            levels: Vec::new(),
            result: PruneOutcome::default(),
            changed: false,
            now,
        };
        pruner.trash.as_ref().map_or(Ok(()), Trash::verify)?;
        // The source may have a directory of that name.
        let is_trash = pruner.trash.as_ref().is_some_and(|trash| trash.path.contains(&page.dir));
        match if is_trash { Ok(()) } else { pruner.open_page() } {
            Ok(()) => pruner.visit_entries(steps),
            // Spelled differently, it is another directory, which has another page. There is no metadata to apply
            // either.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | NAME_COLLISION) => {
                return Ok(pruner.result);
            }
            Err(errno) => return Err(self.error("list", &page.dir, errno)),
        }
        let Pruner { result: mut done, changed, budget, .. } = pruner;
        if changed || budget.is_some() && self.has_widened_dirs() {
            done.errors.extend(self.apply_dir_metadata(&page.dirs));
        }
        Ok(done)
    }
}

impl Pruner<'_> {
    fn open_page(&mut self) -> SysResult<()> {
        let target = self.target;
        let top = Arc::new(target.tree.open_dir(self.page.dir.as_bytes())?);
        target.tree.check_path_spelling(self.page.dir.as_bytes())?;
        let stat = rustix::fs::fstat(&top)?;
        let fd = self.open_readable(&top)?;
        if self.is_inside_earlier_trash(&fd)? {
            return Ok(());
        }
        let place = self.page.resume.clone();
        let skip = self.page.dir.components().count();
        let way: Vec<Box<[u8]>> = place
            .iter()
            .flat_map(|place| place.after.components().skip(skip))
            .map(Into::into)
            .collect();
        let after = way.first().map(|name| &**name).or(self
            .page
            .after
            .as_ref()
            .map(|name| name.as_slice()));
        self.push_level(self.page.dir.clone(), fd, stat, after)?;
        // The unfinished directories, each after the name that leads down.
        for (depth, pair) in way.windows(2).enumerate() {
            let (path, fd, stat) = match self.open_subdir(&pair[0]) {
                Ok(opened) => opened,
                Err(cause) => {
                    if cause != Cause::Os(Errno::NOENT) {
                        let path = self.levels.last().and_then(|l| l.path.child(&pair[0]).ok());
                        self.report_error(path.unwrap_or_default().as_bytes(), "enter", cause);
                    }
                    break;
                }
            };
            self.push_level(path, fd, stat, Some(&pair[1]))?;
            if let (Some(place), Some(level)) = (&place, self.levels.last_mut()) {
                level.has_kept |= (depth as u64) < u64::from(place.kept_dirs);
            }
        }
        Ok(())
    }

    fn visit_entries(&mut self, steps: usize) {
        let mut looked = 0;
        while !self.result.allowance_exhausted
            && let Some(level) = self.levels.last_mut()
        {
            let settled = match level.names.next() {
                Some((name, listed_type)) => {
                    looked += 1;
                    self.visit_entry(&name, listed_type)
                }
                None if level.next_after.is_some() => {
                    self.list_more();
                    None
                }
                None => self.leave_dir(),
            };
            if let Some(settled) = settled
                && looked >= steps
                && !self.result.allowance_exhausted
            {
                return self.stop_after(settled);
            }
        }
        while let Some(level) = self.levels.pop() {
            self.restore_mode(&level);
        }
    }

    /// The call ends here and is resumed by the caller.
    fn stop_after(&mut self, after: RelPath) {
        let kept =
            self.levels.iter().skip(1).rposition(|level| level.has_kept).map_or(0, |at| at + 1);
        self.result.resume =
            Some(PruneResume { after, kept_dirs: u32::try_from(kept).unwrap_or(u32::MAX) });
    }

    /// Handles `name` in the current directory, or enters it; returns its path if it is handled.
    fn visit_entry(&mut self, name: &[u8], listed_type: FileType) -> Option<RelPath> {
        let level = self.levels.last()?;
        let Ok(path) = level.path.child(name) else {
            let full = [level.path.as_bytes(), b"/", name].concat();
            self.report_error(&full, "delete", Errno::NAMETOOLONG);
            return None;
        };
        // An entry of the source stays whatever its type: most names need no lstat.
        let in_the_way = matches!(listed_type, FileType::Directory | FileType::Unknown)
            && self.is_non_directory_at_source(name);
        if self.exists_at_source(name)
            && !in_the_way
            && !self.page.delete_excluded
            && !is_internal_name(name)
        {
            self.result.pruned.checked += u64::from(!self.is_trash(&path));
            self.mark_kept();
            return Some(path);
        }
        let stat = match self.current_dir().and_then(|dir| lstat(&dir, name)) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Some(path),
            Err(errno) => {
                self.report_error(path.as_bytes(), "compare", errno);
                return Some(path);
            }
        };
        if is_internal_name(name) {
            self.visit_internal(name, &stat);
            return Some(path);
        }
        if self.is_trash(&path) {
            self.mark_kept();
            return Some(path);
        }
        self.result.pruned.checked += 1;
        let is_dir = type_of(&stat) == FileType::Directory;
        if !self.is_extraneous(name, &path, is_dir) {
            self.mark_kept();
            return Some(path);
        }
        if is_dir {
            // In a dry run nothing has replaced an empty directory yet, as it has in a sync with deletion.
            if self.target.rules.dry_run
                && self.is_non_directory_at_source(name)
                && self.is_subdir_empty(name)
            {
                self.mark_kept();
                return Some(path);
            }
            return match self.enter_dir(name) {
                Ok(true) => None,
                Ok(false) => {
                    self.result.pruned.checked -= 1;
                    self.result.old_trash.add(path.as_bytes());
                    self.mark_kept();
                    Some(path)
                }
                Err(Cause::Os(Errno::NOENT)) => Some(path),
                Err(cause) => {
                    self.report_error(path.as_bytes(), "enter", cause);
                    Some(path)
                }
            };
        }
        let regular = type_of(&stat) == FileType::RegularFile;
        self.remove_file(name, &path, if regular { size_of(&stat) } else { 0 });
        Some(path)
    }

    fn is_extraneous(&self, name: &[u8], path: &RelPath, is_dir: bool) -> bool {
        if self.filter.excludes(path, is_dir) {
            return self.page.delete_excluded;
        }
        !self.exists_at_source(name) || is_dir && self.is_non_directory_at_source(name)
    }

    /// Whether the source has a non-directory of this name, which is copied.
    fn is_non_directory_at_source(&self, name: &[u8]) -> bool {
        let at = self.page.names.binary_search_by(|n| n.as_slice().cmp(name));
        let at = at.ok().filter(|_| self.levels.len() == 1).and_then(|at| u32::try_from(at).ok());
        at.is_some_and(|at| self.page.replacing_dirs.binary_search(&at).is_ok())
    }

    /// Whether the source has this name in the current directory. In an extraneous directory it has none.
    fn exists_at_source(&self, name: &[u8]) -> bool {
        self.levels.len() == 1
            && self.page.names.binary_search_by(|n| n.as_slice().cmp(name)).is_ok()
    }

    fn is_trash(&self, path: &RelPath) -> bool {
        self.trash.as_ref().is_some_and(|trash| trash.path == path)
    }

    /// Removes an internal file that is unused for long; others are in use.
    fn visit_internal(&mut self, name: &[u8], stat: &Stat) {
        let age =
            self.now.saturating_sub(Duration::from_secs(stat.st_ctime.try_into().unwrap_or(0)));
        // The ctime can't be set, so a file with its final mtime still counts as recent.
        let anchors = is_anchor_dir_name(name) && name != self.target.anchor_dir_name();
        if age < STALE_FILE_AGE || type_of(stat) == FileType::Directory && !anchors {
            self.mark_kept();
        } else if self.budget.is_some() {
            self.changed = true;
            let removed = self.current_dir().and_then(|dir| match anchors {
                true => self.target.remove_anchor_dir(&dir, name),
                false => self.target.remove_non_directory(&dir, name),
            });
            if let Err(errno) = removed {
                tracing::debug!(%errno, "an old unfinished file stays");
                self.mark_kept();
            }
        }
    }

    /// Something in the current directory stays, so the directory stays.
    fn mark_kept(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.has_kept = true;
        }
    }

    fn report_error(&mut self, path: &[u8], op: &'static str, cause: impl Into<Cause>) {
        let error = self.target.tree.error(op, path, cause);
        self.result.errors.push(error.to_entry_error());
        self.mark_kept();
    }

    /// Deletes a non-directory, or moves it to the trash.
    fn remove_file(&mut self, name: &[u8], path: &RelPath, bytes: u64) {
        if self.budget.is_some() {
            if !self.reserve_deletion() {
                return;
            }
            let done = self.current_dir().and_then(|dir| match &mut self.trash {
                Some(trash) => trash.move_in(&dir, name, path),
                None => self.target.unlink(&dir, name, AtFlags::empty()),
            });
            if !self.check_removed(path, done) {
                return;
            }
        }
        self.count_removed(path.clone(), bytes);
    }

    /// Leaves the current directory and removes it if nothing in it stays. Returns its path, except for the page's
    /// directory.
    fn leave_dir(&mut self) -> Option<RelPath> {
        let level = self.levels.pop()?;
        if self.levels.is_empty() {
            return None;
        }
        if level.has_kept {
            self.mark_kept();
            self.restore_mode(&level);
            return Some(level.path);
        }
        if self.budget.is_some() {
            if !self.reserve_deletion() {
                self.restore_mode(&level);
                return Some(level.path);
            }
            let done = self.remove_dir(&level);
            if !self.check_removed(&level.path, done) {
                return Some(level.path);
            }
        }
        self.count_removed(level.path.clone(), 0);
        Some(level.path)
    }

    /// Restores the mode of a kept directory, which may have been widened.
    fn restore_mode(&self, level: &PruneLevel) {
        if self.budget.is_some() && self.target.has_widened_dirs() {
            let mode = mode_of(&level.stat);
            let dir = self.target.tree.open_dir(level.path.as_bytes());
            if let Err(errno) = dir.and_then(|dir| chmod(dir.as_fd(), mode)) {
                tracing::debug!(path = %level.path, %errno, "a directory keeps a wider mode");
            }
        }
    }

    fn remove_dir(&mut self, level: &PruneLevel) -> SysResult<()> {
        let dir = self.current_dir()?;
        let name = level.path.file_name().unwrap_or_default();
        if let Some(trash) = &mut self.trash {
            trash.create_dir_like(&dir, name, &level.path, &level.stat)?;
        }
        self.target.unlink(&dir, name, AtFlags::REMOVEDIR)
    }

    /// Reserves one deletion. False: the budget is exhausted, and the entry stays.
    fn reserve_deletion(&mut self) -> bool {
        let may = self.budget.as_ref().is_some_and(DeletionBudget::try_reserve);
        if may {
            self.changed = true;
        } else {
            self.result.allowance_exhausted = true;
            self.mark_kept();
        }
        may
    }

    /// Whether a removal succeeded; if not, it is reported and the entry stays.
    fn check_removed(&mut self, path: &RelPath, done: SysResult<()>) -> bool {
        if let (Err(_), Some(allowance)) = (&done, &self.budget) {
            allowance.release();
        }
        let cause: Cause = match done {
            Ok(()) => return true,
            // Removed concurrently.
            Err(Errno::NOENT) => return false,
            Err(Errno::BUSY) => Cause::MountPoint,
            Err(errno) => errno.into(),
        };
        let op = if self.trash.is_some() { "move to the trash" } else { "delete" };
        self.report_error(path.as_bytes(), op, cause);
        false
    }

    fn count_removed(&mut self, path: RelPath, bytes: u64) {
        self.result.pruned.extraneous += 1;
        self.result.pruned.bytes += bytes;
        self.result.removed.push((path, bytes));
    }
}

#[cfg(test)]
mod tests;
