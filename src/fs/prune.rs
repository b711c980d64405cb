//! What the destination has and the source does not: counted, then deleted or moved to the trash.
//!
//! One call looks at an interval of the names in one directory, of which the caller tells those that
//! the source has. A directory that the source does not have counts with all that is in it, and is
//! removed from its leaves up. What is protected stays, and so does every directory above it.
//!
//! Memory and the time of one call are bounded: it ends after [`STEPS`] entries and says where to go
//! on. Everything is done on one name in an open directory that was reached without a link; other
//! mounts are never entered.

use super::allowance::Allowance;
use super::error::{Cause, FsError, Result};
use super::filter::Filter;
use super::list::{Listed, is_empty, list_if};
use super::meta::{chmod, lstat, mode_of, size_of, type_of};
use super::names::{is_anchors, is_ours};
use super::root::{Dir, open_unmounted};
use super::spelling::TAKEN;
use super::target::{Step, Target};
use super::trash::{Trash, is_marked};
use crate::wire::manifest::ManifestDir;
use crate::wire::options::EntryWarning;
use crate::wire::sync::FileError;
use crate::wire::task::PruneReport;
use crate::wire::{RelPath, RequestId};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Entries that one call looks at.
const STEPS: usize = 4096;
/// Names of one directory held at a time (twice as many while it is read).
const AT_ONCE: usize = 4096;
/// Levels whose descriptors stay open.
const OPEN_LEVELS: usize = 12;
/// Unfinished files of ours are somebody's leftovers from this age on.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// An interval of the names in one directory, to be pruned; see [`Target::prune`].
#[derive(Debug, Clone)]
pub struct PrunePage {
    /// The directory, below both roots.
    pub dir: RelPath,
    /// Names up to this one, and it, are not looked at.
    pub after: Option<Box<[u8]>>,
    /// Names behind this one are not looked at.
    pub upto: Option<Box<[u8]>>,
    /// The names between that the source has, sorted by bytes; of any kind.
    pub names: Vec<Box<[u8]>>,
    /// The places in `names` of entries that are no directories at the source and are copied: a directory of
    /// such a name is in their way, and is deleted like one that the source does not have. Sorted.
    pub replacing: Vec<u32>,
    /// What of the source is left out is protected.
    pub filter: Arc<Filter>,
    /// It is not protected but deleted.
    pub delete_excluded: bool,
    /// Delete; otherwise nothing is changed.
    pub apply: bool,
    /// Whose trash it is, where there is one ([`WriteRules::trash`](crate::wire::options::WriteRules)).
    pub request_id: RequestId,
    /// `dir` and the directories above it, with what they shall have once something in them was
    /// deleted.
    pub dirs: Vec<ManifestDir>,
    /// Go on where the last call with this page ended.
    pub resume: Option<PrunePlace>,
}

/// A place within a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunePlace {
    /// The entry that was settled last.
    pub after: RelPath,
    /// How many directories below the page's one, on the way to it, are known to keep something.
    pub kept: u32,
}

/// What was found, and done, by one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PruneDone {
    /// The counts.
    pub pruned: PruneReport,
    /// What was deleted (or would be), in that order, with the length of its content.
    pub removed: Vec<(RelPath, u64)>,
    /// What could not be read or deleted; it stays, and is in no count of what is extra.
    pub errors: Vec<FileError>,
    /// Trashes of earlier mirrors, which were left as they are.
    pub old_trash: EntryWarning,
    /// There is more: call again with the same page and this in [`PrunePage::resume`].
    pub next: Option<PrunePlace>,
    /// More is extra than may be deleted: the call ended there.
    pub used_up: bool,
}

/// Names of a directory that are still to be looked at.
type Names = std::vec::IntoIter<Listed>;

/// A directory that is being looked at.
struct Level {
    path: RelPath,
    /// `None`: closed to save descriptors.
    fd: Option<Dir>,
    /// As it was before anything in it was removed (by this call).
    stat: Stat,
    names: Names,
    /// There are names behind this one that were not kept.
    more: Option<Box<[u8]>>,
    /// Something in it stays.
    kept: bool,
}

struct Pruner<'a> {
    target: &'a Target,
    page: &'a PrunePage,
    /// What may be deleted; `None`: nothing is.
    apply: Option<Allowance>,
    trash: Option<Trash<'a>>,
    /// The page's directory, then those that the source does not have.
    levels: Vec<Level>,
    done: PruneDone,
    /// Something was changed.
    changed: bool,
    now: Duration,
}

impl Target {
    /// Finds what the destination has in `page` and the source does not, and deletes it where the page
    /// and this target allow, as much as they allow; directories that it deleted from get their metadata again.
    ///
    /// Left alone: what the filter leaves out (unless it is to be deleted), the trash, also one of an earlier
    /// mirror, what is mounted, our own unfinished files (but old ones are removed, uncounted), every
    /// directory above any of these. That the directory itself is not there is fine.
    ///
    /// # Errors
    /// The directory can't be read; the trash is no directory. Whatever else fails is in [`PruneDone::error_count`].
    pub fn prune(&self, page: &PrunePage) -> Result<PruneDone> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.prune_at(page, now, STEPS)
    }

    fn prune_at(&self, page: &PrunePage, now: Duration, steps: usize) -> Result<PruneDone> {
        self.tree.forget();
        let allowed = page.apply && self.rules.delete && !self.rules.dry_run;
        let apply = self.deletion.clone().filter(|_| allowed);
        let applies = apply.is_some();
        let mut pruner = Pruner {
            target: self,
            page,
            apply,
            trash: Trash::of(self, &page.request_id),
            levels: Vec::new(),
            done: PruneDone::default(),
            changed: false,
            now,
        };
        pruner.trash.as_ref().map_or(Ok(()), Trash::check)?;
        // The source may have a directory of that name.
        let is_trash = pruner.trash.as_ref().is_some_and(|trash| trash.path().contains(&page.dir));
        match if is_trash { Ok(()) } else { pruner.start() } {
            Ok(()) => pruner.run(steps),
            // Spelled otherwise it is another directory, and none of this page's business. There is
            // nothing to give metadata to either.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | TAKEN) => return Ok(pruner.done),
            Err(errno) => return Err(self.error("list", &page.dir, errno)),
        }
        let Pruner { mut done, changed, .. } = pruner;
        if changed || applies && self.has_widened() {
            done.errors.extend(self.stamp(&page.dirs));
        }
        Ok(done)
    }
}

impl Pruner<'_> {
    fn start(&mut self) -> Step<()> {
        let target = self.target;
        let top = Arc::new(target.tree.open_dir(self.page.dir.as_bytes())?);
        target.tree.check_way(self.page.dir.as_bytes())?;
        let stat = rustix::fs::fstat(&top)?;
        let fd = self.readable(&top)?;
        if self.lies_in_old_trash(&fd)? {
            return Ok(());
        }
        let place = self.page.resume.clone();
        let skip = self.page.dir.components().count();
        let way: Vec<Box<[u8]>> = place
            .iter()
            .flat_map(|place| place.after.components().skip(skip))
            .map(Into::into)
            .collect();
        let after = way.first().or(self.page.after.as_ref()).cloned();
        self.push(self.page.dir.clone(), fd, stat, after.as_deref())?;
        // The directories that were not finished, each behind the name that leads on.
        for (depth, pair) in way.windows(2).enumerate() {
            let (path, fd, stat) = match self.open_inside(&pair[0]) {
                Ok(opened) => opened,
                Err(cause) => {
                    if cause != Cause::Os(Errno::NOENT) {
                        let path = self.levels.last().and_then(|l| l.path.child(&pair[0]).ok());
                        self.fail(&path.unwrap_or_default(), "enter", cause);
                    }
                    break;
                }
            };
            self.push(path, fd, stat, Some(&pair[1]))?;
            if let (Some(place), Some(level)) = (&place, self.levels.last_mut()) {
                level.kept |= (depth as u64) < u64::from(place.kept);
            }
        }
        Ok(())
    }

    fn run(&mut self, steps: usize) {
        let mut looked = 0;
        while !self.done.used_up
            && let Some(level) = self.levels.last_mut()
        {
            let (name, told) = match level.names.next() {
                Some(listed) => listed,
                None if level.more.is_some() => {
                    self.list_on();
                    continue;
                }
                None => {
                    if let Some(settled) = self.leave()
                        && looked >= steps
                        && !self.done.used_up
                    {
                        return self.stop_behind(settled);
                    }
                    continue;
                }
            };
            looked += 1;
            if let Some(settled) = self.visit(&name, told)
                && looked >= steps
                && !self.done.used_up
            {
                return self.stop_behind(settled);
            }
        }
        while let Some(level) = self.levels.pop() {
            self.narrow(&level);
        }
    }

    /// The call ends here; the caller will come again.
    fn stop_behind(&mut self, after: RelPath) {
        let kept = self.levels.iter().skip(1).rposition(|level| level.kept).map_or(0, |at| at + 1);
        self.done.next = Some(PrunePlace { after, kept: u32::try_from(kept).unwrap_or(u32::MAX) });
    }

    /// Settles `name` in the current directory, or enters it; gives its path where it is settled.
    fn visit(&mut self, name: &[u8], told: FileType) -> Option<RelPath> {
        let level = self.levels.last()?;
        let Ok(path) = level.path.child(name) else {
            let full = [level.path.as_bytes(), b"/", name].concat();
            self.fail_at(&full, "delete", Errno::NAMETOOLONG.into());
            return None;
        };
        // What the source has stays whatever it is: most names, which need no look.
        let in_the_way =
            matches!(told, FileType::Directory | FileType::Unknown) && self.is_replacing(name);
        if self.has_at_source(name) && !in_the_way && !self.page.delete_excluded && !is_ours(name) {
            self.done.pruned.checked += u64::from(!self.is_trash(&path));
            self.keep();
            return Some(path);
        }
        let stat = match self.current().and_then(|dir| lstat(&dir, name)) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Some(path),
            Err(errno) => {
                self.fail(&path, "compare", errno);
                return Some(path);
            }
        };
        if is_ours(name) {
            self.visit_ours(name, &stat);
            return Some(path);
        }
        if self.is_trash(&path) {
            self.keep();
            return Some(path);
        }
        self.done.pruned.checked += 1;
        let is_dir = type_of(&stat) == FileType::Directory;
        if !self.is_extra(name, &path, is_dir) {
            self.keep();
            return Some(path);
        }
        if is_dir {
            // In a dry run nothing has taken the place of an empty directory yet, as it has when a sync deletes.
            if self.target.rules.dry_run && self.is_replacing(name) && self.is_empty(name) {
                self.keep();
                return Some(path);
            }
            return match self.enter(name) {
                Ok(true) => None,
                Ok(false) => {
                    self.done.pruned.checked -= 1;
                    self.done.old_trash.add(path.as_bytes());
                    self.keep();
                    Some(path)
                }
                Err(Cause::Os(Errno::NOENT)) => Some(path),
                Err(cause) => {
                    self.fail(&path, "enter", cause);
                    Some(path)
                }
            };
        }
        let regular = type_of(&stat) == FileType::RegularFile;
        self.remove(name, &path, if regular { size_of(&stat) } else { 0 });
        Some(path)
    }

    fn is_extra(&self, name: &[u8], path: &RelPath, is_dir: bool) -> bool {
        if self.page.filter.leaves_out(path, is_dir) {
            return self.page.delete_excluded;
        }
        !self.has_at_source(name) || is_dir && self.is_replacing(name)
    }

    /// Whether the source has something else than a directory of this name, which is copied.
    fn is_replacing(&self, name: &[u8]) -> bool {
        let at = self.page.names.binary_search_by(|n| (**n).cmp(name));
        let at = at.ok().filter(|_| self.levels.len() == 1).and_then(|at| u32::try_from(at).ok());
        at.is_some_and(|at| self.page.replacing.binary_search(&at).is_ok())
    }

    /// Whether the source has this name in the current directory. Of a directory that it does not have,
    /// it has nothing.
    fn has_at_source(&self, name: &[u8]) -> bool {
        self.levels.len() == 1 && self.page.names.binary_search_by(|n| (**n).cmp(name)).is_ok()
    }

    fn is_trash(&self, path: &RelPath) -> bool {
        self.trash.as_ref().is_some_and(|trash| trash.path() == path)
    }

    /// What is ours and nobody has touched for long is removed; the rest is in use.
    fn visit_ours(&mut self, name: &[u8], stat: &Stat) {
        let age =
            self.now.saturating_sub(Duration::from_secs(stat.st_ctime.try_into().unwrap_or(0)));
        // The change time can't be set, so a file that already has its final time looks young.
        let anchors = is_anchors(name) && name != self.target.anchors_name();
        if age < STALE || type_of(stat) == FileType::Directory && !anchors {
            self.keep();
        } else if self.apply.is_some() {
            self.changed = true;
            let removed = self.current().and_then(|dir| match anchors {
                true => self.target.remove_anchors(&dir, name),
                false => self.target.clear_away(&dir, name),
            });
            if let Err(errno) = removed {
                tracing::debug!(%errno, "an old unfinished file stays");
                self.keep();
            }
        }
    }

    /// Something in the current directory stays, so it does.
    fn keep(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.kept = true;
        }
    }

    fn fail(&mut self, path: &RelPath, op: &'static str, cause: impl Into<Cause>) {
        self.fail_at(path.as_bytes(), op, cause.into());
    }

    fn fail_at(&mut self, path: &[u8], op: &'static str, cause: Cause) {
        let error = FsError::new(self.target.tree.side, op, path, cause);
        self.done.errors.push(error.to_file_error());
        self.keep();
    }

    /// Deletes what is no directory, or moves it to the trash.
    fn remove(&mut self, name: &[u8], path: &RelPath, bytes: u64) {
        if self.apply.is_some() {
            if !self.may_delete() {
                return;
            }
            let done = self.current().and_then(|dir| match &mut self.trash {
                Some(trash) => trash.take(&dir, name, path),
                None => {
                    let unlink = || rustix::fs::unlinkat(&dir, name, AtFlags::empty());
                    self.target.writable(&dir, unlink)
                }
            });
            if !self.is_gone(path, done) {
                return;
            }
        }
        self.count(path.clone(), bytes);
    }

    /// Ends with the current directory: goes up, and removes it where nothing in it stays. Gives its
    /// path, but not the page's own.
    fn leave(&mut self) -> Option<RelPath> {
        let level = self.levels.pop()?;
        if self.levels.is_empty() {
            return None;
        }
        if level.kept {
            self.keep();
            self.narrow(&level);
            return Some(level.path);
        }
        if self.apply.is_some() {
            if !self.may_delete() {
                self.narrow(&level);
                return Some(level.path);
            }
            let done = self.remove_dir(&level);
            if !self.is_gone(&level.path, done) {
                return Some(level.path);
            }
        }
        self.count(level.path.clone(), 0);
        Some(level.path)
    }

    /// Gives a directory that stays its mode again, which may have been widened.
    fn narrow(&self, level: &Level) {
        if self.apply.is_some() && self.target.has_widened() {
            let mode = mode_of(&level.stat);
            let dir = self.target.tree.open_dir(level.path.as_bytes());
            if let Err(errno) = dir.and_then(|dir| chmod(dir.as_fd(), mode)) {
                tracing::debug!(path = %level.path, %errno, "a directory keeps a wider mode");
            }
        }
    }

    fn remove_dir(&mut self, level: &Level) -> Step<()> {
        let dir = self.current()?;
        let name = level.path.file_name().unwrap_or_default();
        if let Some(trash) = &mut self.trash {
            trash.take_dir(&dir, name, &level.path, &level.stat)?;
        }
        let remove = || rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR);
        self.target.writable(&dir, remove)
    }

    /// Takes one entry out of what may be deleted. False: nothing is left of that, and the entry stays.
    fn may_delete(&mut self) -> bool {
        let may = self.apply.as_ref().is_some_and(Allowance::take_one);
        if may {
            self.changed = true;
        } else {
            self.done.used_up = true;
            self.keep();
        }
        may
    }

    /// Whether a removal succeeded; if not, it is reported and what is there stays.
    fn is_gone(&mut self, path: &RelPath, done: Step<()>) -> bool {
        if let (Err(_), Some(allowance)) = (&done, &self.apply) {
            allowance.return_one();
        }
        let cause: Cause = match done {
            Ok(()) => return true,
            // Somebody else was faster.
            Err(Errno::NOENT) => return false,
            Err(Errno::BUSY) => Cause::Mounted,
            Err(errno) => errno.into(),
        };
        self.fail(path, if self.trash.is_some() { "move to the trash" } else { "delete" }, cause);
        false
    }

    fn count(&mut self, path: RelPath, bytes: u64) {
        self.done.pruned.extraneous += 1;
        self.done.pruned.bytes += bytes;
        self.done.removed.push((path, bytes));
    }
}

/// How it moves through directories.
impl Pruner<'_> {
    /// The current directory, opened again where it was closed.
    fn current(&mut self) -> Step<Dir> {
        let tree = &self.target.tree;
        let level = self.levels.last_mut().ok_or(Errno::NOENT)?;
        if let Some(fd) = &level.fd {
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(tree.open_dir(level.path.as_bytes())?);
        if rustix::fs::fstat(&fd)?.st_dev != level.stat.st_dev {
            return Err(Errno::XDEV);
        }
        level.fd = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// Opens a directory for listing; one of our own that forbids it is widened, where anything may be
    /// changed.
    fn readable(&self, dir: &Dir) -> Step<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(dir, ".", flags, Mode::empty());
        if self.apply.is_some() { self.target.writable(dir, open) } else { open() }
    }

    /// Whether nothing is in the directory `name` of the current one; not where it can't be read.
    fn is_empty(&mut self, name: &[u8]) -> bool {
        self.open_inside(name).is_ok_and(|(_, fd, _)| is_empty(&fd) == Ok(true))
    }

    /// Makes the directory `name` in the current one the current one, unless it is a trash.
    fn enter(&mut self, name: &[u8]) -> std::result::Result<bool, Cause> {
        let (path, fd, stat) = self.open_inside(name)?;
        if is_marked(&fd, b"")? {
            return Ok(false);
        }
        self.push(path, fd, stat, None)?;
        Ok(true)
    }

    /// Whether the page's directory, which is open, or one above it is a trash: the source may have a directory
    /// of that name.
    fn lies_in_old_trash(&mut self, dir: &OwnedFd) -> Step<bool> {
        let path = &self.page.dir;
        if is_marked(dir, b"")? {
            if self.page.after.is_none() && self.page.resume.is_none() {
                self.done.old_trash.add(path.as_bytes());
            }
            return Ok(true);
        }
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut above = ends.chain((!path.is_root()).then_some(0)).map(|end| &bytes[..end]);
        let root = self.target.tree.open_dir(b"")?;
        above.try_fold(false, |found, path| Ok(found || is_marked(&root, path)?))
    }

    /// Opens the directory `name` in the current one, unless something is mounted there.
    fn open_inside(&mut self, name: &[u8]) -> std::result::Result<(RelPath, OwnedFd, Stat), Cause> {
        let dir = self.current()?;
        let level = self.levels.last().ok_or(Errno::NOENT)?;
        let path = level.path.child(name).map_err(|_| Errno::NAMETOOLONG)?;
        let held = Arc::new(open_unmounted(&dir, name)?);
        let stat = rustix::fs::fstat(&held)?;
        if stat.st_dev != level.stat.st_dev {
            return Err(Cause::Mounted);
        }
        Ok((path, self.readable(&held)?, stat))
    }

    /// Makes it the current directory, behind `after`.
    fn push(&mut self, path: RelPath, fd: OwnedFd, stat: Stat, after: Option<&[u8]>) -> Step<()> {
        let top = self.levels.is_empty();
        let (names, more) = self.list(&fd, after, top)?;
        // Also where the trash is still to be made.
        let kept = self.trash.as_ref().is_some_and(|trash| path.contains(trash.path()));
        self.levels.push(Level { path, fd: Some(Arc::new(fd)), stat, names, more, kept });
        if let Some(at) = self.levels.len().checked_sub(OPEN_LEVELS + 1) {
            self.levels[at].fd = None;
        }
        Ok(())
    }

    /// The next names of the current directory.
    fn list_on(&mut self) {
        let top = self.levels.len() == 1;
        let Some(after) = self.levels.last_mut().and_then(|level| level.more.take()) else {
            return;
        };
        let listed = self.current().and_then(|dir| {
            // Opened afresh: the place in a directory is the descriptor's, and this one's is used up.
            let fd = self.readable(&dir)?;
            self.list(&fd, Some(&after), top)
        });
        let Some(level) = self.levels.last_mut() else { return };
        match listed {
            Ok((names, more)) => (level.names, level.more) = (names, more),
            Err(errno) => {
                let path = level.path.clone();
                self.fail(&path, "list", errno);
            }
        }
    }

    fn list(
        &self,
        fd: &OwnedFd,
        after: Option<&[u8]>,
        top: bool,
    ) -> Step<(Names, Option<Box<[u8]>>)> {
        let upto = self.page.upto.as_deref().filter(|_| top);
        let listing = list_if(fd, AT_ONCE, |name| {
            after.is_none_or(|a| name > a) && upto.is_none_or(|u| name <= u)
        });
        listing.failed.map_or(Ok(()), Err)?;
        let more = listing.more.then(|| listing.names.last().map(|(name, _)| name.clone()));
        Ok((listing.names.into_iter(), more.flatten()))
    }
}

#[cfg(test)]
mod tests;
