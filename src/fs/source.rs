//! Reading a source file, and knowing that it stayed one version while it was read.

use super::error::{Cause, FsError, Result};
use super::meta::{entry_of, size_of, type_of};
use super::root::{Tree, same_version};
use crate::wire::manifest::Entry;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Files from this length on are announced to the kernel as read in order.
const READ_AHEAD: u64 = 1 << 20;

/// A regular source file, open for reading.
#[derive(Debug)]
pub struct SourceFile {
    fd: OwnedFd,
    tree: Tree,
    opened: Stat,
    entry: Entry,
}

impl Tree {
    /// Opens the regular file at `entry`'s path, or where it really is. It may be another version by now: what it is stands
    /// in [`SourceFile::entry`]. Never follows a link, never blocks on a FIFO.
    ///
    /// # Errors
    /// It is not there, out of reach, or no regular file (any more).
    pub fn open_source(&self, entry: &Entry) -> Result<SourceFile> {
        let path = entry.path.as_bytes();
        let failed = |cause: Cause| FsError::new(self.side, "open", path, cause);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let storage = entry.real.as_ref().map(|real| (self.storage(), real));
        let open = || {
            let place = match &storage {
                None => self.place(&entry.path)?,
                Some((storage, real)) => storage.place(real)?,
            };
            let fd = rustix::fs::openat(&place.dir, place.name, flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&fd)?;
            Ok((fd, stat))
        };
        let (fd, opened) = match open() {
            // A directory of the cache may have been replaced since.
            Err(Errno::NOENT | Errno::STALE) => {
                self.forget();
                open()
            }
            other => other,
        }
        .map_err(|errno| {
            failed(match errno {
                // A link, a socket: it was a regular file when it was listed.
                Errno::LOOP | Errno::NXIO => Cause::NotRegular,
                errno => errno.into(),
            })
        })?;
        if type_of(&opened) != FileType::RegularFile {
            return Err(failed(Cause::NotRegular));
        }
        if size_of(&opened) >= READ_AHEAD {
            // Only advice: without it the file is read all the same.
            let _ = rustix::fs::fadvise(&fd, 0, None, Advice::Sequential);
        }
        let real = entry.real.clone();
        let entry = entry_of(fd.as_fd(), b"", entry.path.clone(), &opened)
            .map_err(|errno| failed(errno.into()))?;
        let entry = Entry { real, ..entry };
        Ok(SourceFile { fd, tree: self.clone(), opened, entry })
    }
}

impl SourceFile {
    /// What the file was when it was opened.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Whether it is the version that `entry` tells of.
    pub fn is_version(&self, entry: &Entry) -> bool {
        self.entry.generation() == entry.generation()
    }

    /// Fills `buffer` from `offset` on; gives less than its length only at the end of the file.
    ///
    /// # Errors
    /// `pread` failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        read_full(&self.fd, buffer, offset).map_err(|e| self.failed("read", e.into()))
    }

    /// Whether the file is still what it was when it was opened: to be asked after the last byte was
    /// read, before anybody relies on the bytes.
    ///
    /// # Errors
    /// [`Cause::Changed`], or `fstat` failed.
    pub fn unchanged_since_open(&self) -> Result<()> {
        let now = rustix::fs::fstat(&self.fd).map_err(|e| self.failed("read", e.into()))?;
        if same_version(&self.opened, &now) {
            Ok(())
        } else {
            Err(self.failed("read", Cause::Changed))
        }
    }

    fn failed(&self, op: &'static str, cause: Cause) -> FsError {
        FsError::new(self.tree.side, op, self.entry.path.as_bytes(), cause)
    }
}

/// `pread` until the buffer is full or the file ends.
pub(super) fn read_full(
    fd: &OwnedFd,
    buffer: &mut [u8],
    offset: u64,
) -> std::result::Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
