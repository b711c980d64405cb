//! Probe files at a storage root: one worker makes a file with a random name, and another worker that finds it sees the
//! same storage.

use super::beneath::open_listable_below;
use super::errno::SysResult;
use super::error::{FsError, Result, Side};
use super::inode::{meta_of, set_mtime, type_of};
use super::ownership::PART_MODE;
use super::root::RootDir;
use crate::wire::storage::{ProbeName, ProbeSecret};
use rustix::fd::AsFd as _;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// What is found under the name of a probe file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeState {
    /// The probe file.
    Found,
    /// Nothing.
    Missing,
    /// Something else: another type, or another content.
    Other,
}

impl RootDir {
    /// The inode number of the directory.
    pub fn inode(&self) -> u64 {
        self.identity.ino
    }

    /// Makes the probe file with the content `secret`. When it returns, the file is on the file server, if there is one.
    ///
    /// # Errors
    /// A system call failed; `EEXIST`: something has the name.
    pub fn make_probe(&self, secret: &ProbeSecret) -> Result<()> {
        let name = secret.name();
        let make = || {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(PART_MODE);
            let file = rustix::fs::openat(self.fd(), name.as_str(), flags, mode)?;
            let written = write_all(&file, secret.as_str().as_bytes());
            // Network file systems report a full disk or an exceeded quota here.
            let written = written.and_then(|()| rustix::fs::fsync(&file));
            if written.is_err() {
                let _ = rustix::fs::unlinkat(self.fd(), name.as_str(), AtFlags::empty());
            }
            written
        };
        self.preserving_mtime(make).map_err(|errno| self.probe_error("make a probe file in", errno))
    }

    /// Removes the probe file `name`, if it is there.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove_probe(&self, name: &ProbeName) -> Result<()> {
        let remove = || match rustix::fs::unlinkat(self.fd(), name.as_str(), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        };
        self.preserving_mtime(remove)
            .map_err(|errno| self.probe_error("remove a probe file from", errno))
    }

    /// Looks for the probe file `name`. It is opened, because file systems may answer questions about a name from a
    /// cache.
    ///
    /// # Errors
    /// A system call failed, so nothing is known.
    pub fn look_for_probe(&self, name: &ProbeName) -> Result<ProbeState> {
        // A FIFO must not block.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let look = || {
            let file = match rustix::fs::openat(self.fd(), name.as_str(), flags, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Ok(ProbeState::Missing),
                Err(Errno::LOOP | Errno::NXIO) => return Ok(ProbeState::Other),
                Err(errno) => return Err(errno),
            };
            if type_of(&rustix::fs::fstat(&file)?) != FileType::RegularFile {
                return Ok(ProbeState::Other);
            }
            // One byte more than expected, so that a longer file is another one.
            let mut content = [0; ProbeSecret::LENGTH + 1];
            let length = read_up_to(&file, &mut content)?;
            let secret = String::from_utf8(content[..length].to_vec()).ok();
            let secret = secret.and_then(|text| ProbeSecret::try_from(text).ok());
            Ok(match secret.is_some_and(|secret| secret.name() == *name) {
                true => ProbeState::Found,
                false => ProbeState::Other,
            })
        };
        look().map_err(|errno| self.probe_error("look for a probe file in", errno))
    }

    fn probe_error(&self, operation: &'static str, errno: Errno) -> FsError {
        FsError::new(Side::Destination, operation, &self.label(), errno)
    }

    /// Runs `change`, which adds or removes a name, and sets the mtime of the directory as it was: a sync copies it.
    fn preserving_mtime(&self, change: impl FnOnce() -> SysResult<()>) -> SysResult<()> {
        let before = rustix::fs::fstat(self.fd());
        change()?;
        if let Ok(before) = before
            // A descriptor with `O_PATH` can't set it on kernels before 5.8.
            && let Ok(dir) = open_listable_below(self.fd(), b"")
        {
            // Only the owner may; where this process is not, a probe leaves the mtime of its time.
            let _ = set_mtime(dir.as_fd(), &meta_of(&before));
        }
        Ok(())
    }
}

fn write_all(file: &impl rustix::fd::AsFd, mut bytes: &[u8]) -> SysResult<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; returns the number of bytes.
pub(super) fn read_up_to(file: &impl rustix::fd::AsFd, buffer: &mut [u8]) -> SysResult<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn a_probe_is_found_until_it_is_removed_and_the_mtime_of_the_root_stays() {
        let site = TestSite::new();
        set_file_mtime(site.dir.path(), 77, 7);
        let secret = ProbeSecret::new([1; 16]);
        let name = secret.name();
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Missing));
        site.root.make_probe(&secret).unwrap();
        let meta = fs::metadata(site.path(name.as_str())).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_to_string(site.path(name.as_str())).unwrap(), secret.as_str());
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Found));
        assert_eq!(site.root.look_for_probe(&ProbeName::new([2; 16])), Ok(ProbeState::Missing));
        let again = site.root.make_probe(&secret).unwrap_err();
        assert_eq!(again.errno(), Some(Errno::EXIST), "{again}");
        site.root.remove_probe(&name).unwrap();
        site.root.remove_probe(&name).unwrap();
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Missing));
        let meta = fs::metadata(site.dir.path()).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (77, 7));
    }

    #[test]
    fn only_a_regular_file_with_the_right_content_is_a_probe() {
        let site = TestSite::new();
        let secret = ProbeSecret::new([1; 16]);
        let name = secret.name();
        let (text, path) = (secret.as_str(), site.path(name.as_str()));
        let other = ProbeSecret::new([2; 16]);
        for content in ["", "x", &text[1..], &format!("{text}x"), name.as_str(), other.as_str()] {
            fs::write(&path, content).unwrap();
            assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Other), "{content}");
        }
        fs::remove_file(&path).unwrap();
        site.write_file("canary/probe", text);
        symlink("canary/probe", &path).unwrap();
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Other), "a link");
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Other), "a FIFO");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(site.root.look_for_probe(&name), Ok(ProbeState::Other), "a directory");
    }
}
