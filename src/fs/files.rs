//! Small files on their way to their names: each has a temporary file beside its own.

use super::dress::Origin;
use super::error::{Cause, FsError, Result};
use super::meta::{lstat, type_of};
use super::names;
use super::root::Dir;
use super::target::Target;
use crate::wire::RelPath;
use crate::wire::manifest::Entry;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// Temporary names tried for one attempt, before the last of them is taken from whoever left it.
const SLOTS: u32 = 8;
/// Earlier attempts whose leftovers are looked for.
const EARLIER: u32 = 8;
/// From this age on, a temporary file's name is checked to be still its own before it is published.
const CONTESTED: Duration = Duration::from_secs(5);
/// Zeros from this length on become a hole, where they shall.
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

    /// The file that is about to be replaced, where the new one takes something from it.
    pub(super) fn replaced(&self, dir: &Dir, name: &[u8]) -> Option<Stat> {
        if !self.policy.inherits() {
            return None;
        }
        lstat(dir, name).ok().filter(|stat| type_of(stat) == FileType::RegularFile)
    }

    pub(super) fn check_size(&self, entry: &Entry, found: u64) -> Result<()> {
        let expected = entry.size();
        if found == expected {
            return Ok(());
        }
        Err(self.error("publish", &entry.path, Cause::WrongSize { expected, found }))
    }
}

impl NewFile {
    /// Appends to the content. Long runs of zeros become holes, where they shall.
    ///
    /// # Errors
    /// `pwrite` failed; the file can't be published any more.
    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        self.hole_at_end = self.target.rules.punch_zeros && is_hole(content);
        if !self.hole_at_end {
            write_full(&self.fd, content, self.written).map_err(|e| self.failed("write", e))?;
        }
        self.written += content.len() as u64;
        Ok(())
    }

    /// Appends a hole of this length.
    pub fn skip(&mut self, len: u64) {
        self.hole_at_end |= len > 0;
        self.written += len;
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
        let (_, last) = super::root::split(self.path.as_bytes());
        let base = if self.path.is_root() { self.target.tree.base.name() } else { Some(last) };
        let name = base.unwrap_or(b".");
        let origin = Origin::New(self.target.replaced(&self.dir, name));
        let dressed = self.target.policy.dress(&self.fd, &entry.into(), origin);
        dressed.map_err(|cause| self.failed("set metadata of", cause))?;
        if self.born.elapsed() > CONTESTED && !self.is_at(&self.temp) {
            return Err(self.failed("publish", Cause::Overtaken));
        }
        match self.target.rename(&self.dir, &self.temp, name) {
            // A server may have done it and its answer got lost: then the name is ours already.
            Err(Cause::Os(Errno::NOENT)) if !self.is_at(name) => {
                return Err(self.failed("publish", Cause::Overtaken));
            }
            Ok(()) | Err(Cause::Os(Errno::NOENT)) => self.done = true,
            Err(cause) => return Err(self.failed("publish", cause)),
        }
        for passed in &self.passed {
            let _ = rustix::fs::unlinkat(&self.dir, passed, AtFlags::empty());
        }
        let joined = self.target.join(&self.dir, name, &self.fd, entry);
        joined.map_err(|cause| self.failed("link", cause))
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

pub(super) fn is_hole(content: &[u8]) -> bool {
    content.len() >= HOLE && content.iter().all(|b| *b == 0)
}

pub(super) fn write_full(
    fd: &OwnedFd,
    mut content: &[u8],
    mut offset: u64,
) -> std::result::Result<(), Errno> {
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
