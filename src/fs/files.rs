//! Content on its way to its name: a temporary file per small file, a shared part file per large one.

use super::error::{Cause, FsError, Result};
use super::lost::{Ranges, holds};
use super::meta::{lstat, meta_of, same_mtime, size_of, type_of};
use super::names;
use super::root::Dir;
use super::source::read_full;
use super::target::Target;
use crate::wire::RelPath;
use crate::wire::manifest::Entry;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// Temporary names tried for one attempt, before the last of them is taken from whoever left it.
const SLOTS: u32 = 8;
/// Earlier attempts whose leftovers are looked for.
const EARLIER: u32 = 8;
/// From this age on, a temporary file's name is checked to be still its own before it is published.
const CONTESTED: Duration = Duration::from_secs(5);
/// Zeros from this length on become a hole.
const HOLE: usize = 64 << 10;

/// A small file being written under a temporary name beside its own; removed when it is dropped
/// unpublished.
#[derive(Debug)]
pub struct NewFile {
    target: Target,
    path: RelPath,
    dir: Dir,
    fd: OwnedFd,
    temp: Vec<u8>,
    /// Names of other writers of the same attempt, to be removed once this one is published.
    passed: Vec<Vec<u8>>,
    written: u64,
    /// The end was not written but left to be a hole.
    hole_at_end: bool,
    born: Instant,
    done: bool,
}

/// The part file of one version of a large file. Any number of writers, on any number of hosts, may
/// write ranges of it.
#[derive(Debug)]
pub struct PartFile {
    target: Target,
    path: RelPath,
    dir: Dir,
    name: Vec<u8>,
    fd: OwnedFd,
    /// The file itself, as its name must show it: device and inode.
    own: (u64, u64),
    /// Whether this call made it.
    pub created: bool,
}

impl Target {
    /// Opens a new temporary file for `entry`'s content, in the directory where it belongs (made where
    /// it is missing). What earlier attempts at it left is removed.
    ///
    /// # Errors
    /// The directory can't be made or written to.
    pub fn create(&self, entry: &Entry, attempt: u32) -> Result<NewFile> {
        let path = &entry.path;
        self.retry_if_gone(|| self.try_create(path, attempt))
            .map_err(|errno| self.error("create", path, errno))
    }

    fn try_create(&self, path: &RelPath, attempt: u32) -> std::result::Result<NewFile, Errno> {
        let place = self.place(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut passed = Vec::new();
        for slot in 0..SLOTS {
            let temp = names::temp(self.sync, path, attempt, slot);
            if slot == SLOTS - 1 {
                let _ = rustix::fs::unlinkat(&place.dir, &temp, AtFlags::empty());
            }
            let mode = Mode::RUSR | Mode::WUSR;
            match self.writable(&place.dir, || rustix::fs::openat(&place.dir, &temp, flags, mode)) {
                // A crash's leftover, or a writer who hangs: it keeps its name for now.
                Err(Errno::EXIST) => passed.push(temp),
                Err(errno) => return Err(errno),
                Ok(fd) => {
                    self.remove_earlier(&place.dir, path, attempt);
                    return Ok(NewFile {
                        target: self.clone(),
                        path: path.clone(),
                        dir: place.dir,
                        fd,
                        temp,
                        passed,
                        written: 0,
                        hole_at_end: false,
                        born: Instant::now(),
                        done: false,
                    });
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Removes what attempts before `attempt` left; one that still writes can't publish any more.
    fn remove_earlier(&self, dir: &Dir, path: &RelPath, attempt: u32) {
        for earlier in attempt.saturating_sub(EARLIER).max(1)..attempt {
            for slot in 0..SLOTS {
                let name = names::temp(self.sync, path, earlier, slot);
                if rustix::fs::unlinkat(dir, &name, AtFlags::empty()).is_err() {
                    break;
                }
            }
        }
    }

    /// Opens the part file of `entry`'s version, of its full length; made where it is missing, as are
    /// the directories above it.
    ///
    /// # Errors
    /// The directory can't be made or written to, or the file not made that long; the file is
    /// published already.
    pub fn part(&self, entry: &Entry) -> Result<PartFile> {
        let opened = self
            .retry_if_gone(|| self.try_part(entry))
            .map_err(|errno| self.error("open part file of", &entry.path, errno))?;
        opened.ok_or_else(|| self.error("open part file of", &entry.path, Cause::Overtaken))
    }

    /// `None`: there is none, and the file is published. Who comes so late is not to leave another.
    fn try_part(&self, entry: &Entry) -> std::result::Result<Option<PartFile>, Errno> {
        let place = self.place(&entry.path)?;
        let name = names::part(self.sync, &entry.path, entry.generation());
        let open = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        for _ in 0..4 {
            let (fd, created) = match rustix::fs::openat(&place.dir, &name, open, mode) {
                Ok(fd) => (fd, false),
                Err(Errno::NOENT) => {
                    if lstat(&place.dir, place.name).is_ok_and(|there| is_version(&there, entry)) {
                        return Ok(None);
                    }
                    let flags = open | OFlags::CREATE | OFlags::EXCL;
                    let made = self.writable(&place.dir, || {
                        rustix::fs::openat(&place.dir, &name, flags, mode)
                    });
                    match made {
                        Ok(fd) => (fd, true),
                        Err(Errno::EXIST) => continue,
                        Err(errno) => return Err(errno),
                    }
                }
                Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => {
                    self.clear_away(&place.dir, &name)?;
                    continue;
                }
                Err(errno) => return Err(errno),
            };
            let stat = rustix::fs::fstat(&fd)?;
            // A second name means that somebody planted a link to a file of his choice.
            if type_of(&stat) != FileType::RegularFile || stat.st_nlink != 1 {
                self.clear_away(&place.dir, &name)?;
                continue;
            }
            if size_of(&stat) != entry.size() {
                rustix::fs::ftruncate(&fd, entry.size())?;
            }
            return Ok(Some(PartFile {
                target: self.clone(),
                path: entry.path.clone(),
                own: (stat.st_dev, stat.st_ino),
                dir: place.dir,
                name,
                fd,
                created,
            }));
        }
        Err(Errno::EXIST)
    }

    /// Publishes the part file of `entry`'s version: length checked, metadata set, renamed. With
    /// `ranges` it is made sure that none of them got lost. Doing it twice is no error.
    ///
    /// # Errors
    /// The part file is not there (and the file not published), does not hold the ranges any more,
    /// has another length, or one of the steps fails.
    pub fn publish_part(&self, entry: &Entry, ranges: Option<Ranges<'_>>) -> Result<()> {
        let path = &entry.path;
        let failed = |errno| self.error("publish", path, errno);
        let place = self.place(path).map_err(failed)?;
        let name = names::part(self.sync, path, entry.generation());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = self
            .writable(&place.dir, || rustix::fs::openat(&place.dir, &name, flags, Mode::empty()));
        let fd = match opened {
            Err(Errno::NOENT) => {
                return match lstat(&place.dir, place.name) {
                    Ok(there) if is_version(&there, entry) => Ok(()),
                    _ => Err(self.error("publish", path, Cause::Lost)),
                };
            }
            other => other.map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        if type_of(&stat) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(self.error("publish", path, Cause::NotRegular));
        }
        self.check_size(entry, size_of(&stat))?;
        if let Some(ranges) = ranges
            && !holds(&fd, entry.size(), ranges).map_err(failed)?
        {
            return Err(self.error("publish", path, Cause::Lost));
        }
        self.policy.dress(&fd, FileType::RegularFile, &entry.meta).map_err(failed)?;
        self.rename(&place.dir, &name, place.name)
            .map_err(|cause| self.error("publish", path, cause))
    }

    /// Removes the part file of `entry`'s version; that there is none is no error. The directory keeps
    /// its metadata: others may have been there since the manifest was made.
    ///
    /// # Errors
    /// It is there and can't be removed.
    pub fn discard_part(&self, entry: &Entry) -> Result<()> {
        let name = names::part(self.sync, &entry.path, entry.generation());
        let gone = self.tree.place(&entry.path).and_then(|place| {
            let before = rustix::fs::fstat(&place.dir)?;
            let remove = || rustix::fs::unlinkat(&place.dir, &name, AtFlags::empty());
            self.writable(&place.dir, remove)?;
            self.policy.repair(&place.dir, &meta_of(&before)).map(drop)
        });
        match gone {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(self.error("remove part file of", &entry.path, errno)),
        }
    }

    fn check_size(&self, entry: &Entry, found: u64) -> Result<()> {
        let expected = entry.size();
        if found == expected {
            return Ok(());
        }
        Err(self.error("publish", &entry.path, Cause::WrongSize { expected, found }))
    }
}

impl NewFile {
    /// Appends to the content. Long runs of zeros become holes.
    ///
    /// # Errors
    /// `pwrite` failed; the file can't be published any more.
    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        self.hole_at_end = is_hole(content);
        if !self.hole_at_end {
            write_full(&self.fd, content, self.written).map_err(|e| self.failed("write", e))?;
        }
        self.written += content.len() as u64;
        Ok(())
    }

    /// Gives the content its metadata and its name. `entry` may be another version than the one the
    /// file was created for, of the same path.
    ///
    /// # Errors
    /// What was written is not of `entry`'s length, another writer took the temporary name over, a
    /// directory that is not empty has the name, or a system call failed. Nothing is left behind.
    pub fn publish(mut self, entry: &Entry) -> Result<()> {
        self.target.check_size(entry, self.written)?;
        if self.hole_at_end {
            rustix::fs::ftruncate(&self.fd, self.written).map_err(|e| self.failed("write", e))?;
        }
        // Before the time is set: a write that is still under way could change it again.
        self.target.settle_writes(&self.fd).map_err(|e| self.failed("write", e))?;
        let dressed = self.target.policy.dress(&self.fd, FileType::RegularFile, &entry.meta);
        dressed.map_err(|e| self.failed("set metadata of", e))?;
        if self.born.elapsed() > CONTESTED && !self.is_at(&self.temp) {
            return Err(self.failed("publish", Cause::Overtaken));
        }
        let (_, name) = super::root::split(self.path.as_bytes());
        let name = if self.path.is_root() { self.target.tree.base.name() } else { Some(name) };
        match self.target.rename(&self.dir, &self.temp, name.unwrap_or(b".")) {
            // A server may have done it and its answer got lost: then the name is ours already.
            Err(Cause::Os(Errno::NOENT)) if !self.is_at(name.unwrap_or(b".")) => {
                return Err(self.failed("publish", Cause::Overtaken));
            }
            Ok(()) | Err(Cause::Os(Errno::NOENT)) => self.done = true,
            Err(cause) => return Err(self.failed("publish", cause)),
        }
        for name in &self.passed {
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
        Ok(())
    }

    /// Whether `name` is this file.
    fn is_at(&self, name: &[u8]) -> bool {
        match (rustix::fs::fstat(&self.fd), lstat(&self.dir, name)) {
            (Ok(own), Ok(there)) => (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    fn failed(&self, op: &'static str, cause: impl Into<Cause>) -> FsError {
        self.target.error(op, &self.path, cause)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.done && self.is_at(&self.temp) {
            let _ = rustix::fs::unlinkat(&self.dir, &self.temp, AtFlags::empty());
        }
    }
}

impl PartFile {
    /// Writes all of `content` at `offset`. Long runs of zeros become holes.
    ///
    /// # Errors
    /// `pwrite` failed; the file does not have its name any more: it was published (and whoever still
    /// writes is late) or removed.
    pub fn write_at(&self, content: &[u8], offset: u64) -> Result<()> {
        if !lstat(&self.dir, &self.name).is_ok_and(|there| (there.st_dev, there.st_ino) == self.own)
        {
            return Err(self.target.error("write", &self.path, Cause::Overtaken));
        }
        let write = || {
            if is_hole(content) {
                // Punched, not skipped: an earlier try at this range may have left other bytes.
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let punched = rustix::fs::fallocate(&self.fd, flags, offset, content.len() as u64);
                if punched.is_ok() {
                    return Ok(());
                }
            }
            write_full(&self.fd, content, offset)
        };
        write().map_err(|e| self.target.error("write", &self.path, e))
    }

    /// Fills `buffer` from `offset` on; gives less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        read_full(&self.fd, buffer, offset).map_err(|e| self.target.error("read", &self.path, e))
    }

    /// To be called when a range is written, before it is reported: gives the errors that some file
    /// systems keep until a file is closed.
    ///
    /// # Errors
    /// What was written did not reach the server.
    pub fn finish(self) -> Result<()> {
        let settled = self.target.settle_writes(&self.fd);
        settled.map_err(|e| self.target.error("write", &self.path, e))
    }
}

/// Whether this is `entry`'s version of its file.
fn is_version(stat: &Stat, entry: &Entry) -> bool {
    type_of(stat) == FileType::RegularFile
        && size_of(stat) == entry.size()
        && same_mtime(stat, &entry.meta)
}

fn is_hole(content: &[u8]) -> bool {
    content.len() >= HOLE && content.iter().all(|b| *b == 0)
}

fn write_full(fd: &OwnedFd, mut content: &[u8], mut offset: u64) -> std::result::Result<(), Errno> {
    while !content.is_empty() {
        match rustix::io::pwrite(fd.as_fd(), content, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                content = &content[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
