//! Unflushed writes of a destination, and the flush that puts them on stable storage.

use super::beneath::open_dir_below;
use super::errno::SysResult;
use super::error::{FsError, Result};
use super::inode::only_mtime;
use super::mountinfo::list_mounts_below;
use super::root::ParentAndName;
use super::target::Target;
use crate::wire::RelPath;
use crate::wire::errno::is_resource_exhaustion;
use rustix::fd::AsFd as _;
use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

impl Target {
    /// Records a write: to be called before a file with content is created.
    ///
    /// # Errors
    /// The path of the storage root leads elsewhere than to the open root.
    pub(super) fn prepare_write(&self) -> Result<()> {
        self.check_root_once()?;
        self.tree.root.journal.record_write(&self.tree.local_path());
        Ok(())
    }

    /// Whether the content of the object of `stat` may differ although its length and mtime are equal.
    pub(super) fn is_suspect(&self, stat: &Stat) -> bool {
        self.suspect_span.is_some_and(|span| span.contains(stat))
    }

    /// Sets the mtime of the file at `place` to the one in `stat`: that moves its ctime.
    pub(super) fn refresh_ctime(&self, place: &ParentAndName<'_>, stat: &Stat) -> SysResult<()> {
        let times = only_mtime(stat.st_mtime, stat.st_mtime_nsec as i64);
        rustix::fs::utimensat(&place.dir, place.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Runs a flush and records its outcome.
    pub(super) fn record_flush_outcome(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let (journal, path) = (&self.tree.root.journal, self.tree.local_path());
        let begun = journal.begin_flush(&path);
        let done = flush();
        journal.end_flush(&path, begun, done.is_ok());
        done
    }

    /// Puts everything written below this root on stable storage: syncs its file system and those mounted below it.
    ///
    /// # Errors
    /// A deferred write of the kernel failed, or the root can't be opened. [`Cause::RootUnavailable`](super::Cause):
    /// the path of the storage root leads elsewhere, and what was written is not found there.
    pub fn flush(&self) -> Result<()> {
        self.check_root()?;
        self.record_flush_outcome(|| self.sync_file_systems())?;
        self.check_root()
    }

    fn sync_file_systems(&self) -> Result<()> {
        let failed = |errno| self.error("flush", &RelPath::root(), errno);
        let root = RelPath::root();
        let dir = match self.tree.open_listable_dir(b"") {
            // A single file: its parent directory is synced. Nothing exists: nothing was written.
            Err(Errno::NOTDIR | Errno::NOENT) => match self.tree.locate(&root) {
                Ok(place) => return rustix::fs::syncfs(&place.dir).map_err(failed),
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            },
            other => other.map_err(failed)?,
        };
        rustix::fs::syncfs(&dir).map_err(failed)?;
        for path in list_mounts_below(&dir).map_err(failed)? {
            match open_dir_below(dir.as_fd(), &path) {
                Ok(fd) => rustix::fs::syncfs(&fd)
                    .map_err(|e| FsError::new(self.tree.side, "flush", &path, e))?,
                Err(errno) if is_resource_exhaustion(errno) => {
                    return Err(FsError::new(self.tree.side, "flush", &path, errno));
                }
                // Unmounted since, or not accessible: nothing was written there.
                Err(errno) => {
                    tracing::debug!(%errno, "a mount below the destination is not flushed")
                }
            }
        }
        Ok(())
    }
}
