//! New files on their way to their names. The smallest are written without a name (`O_TMPFILE`) and get theirs by a
//! link, which costs less than a temporary name and a rename. A temporary file beside the final name is used where
//! the name exists, where an earlier attempt may still be running, and where the file system has no unnamed files.

use super::beneath::DirHandle;
use super::errno::SysResult;
use super::error::{Cause, CauseResult, FsError, Result};
use super::file_io::{read_full_at, split_zero_runs, write_all_at};
use super::inode::{chmod, is_same_object, lstat, meta_of, mode_of, proc_path, set_mtime, type_of};
use super::metadata::ObjectOrigin;
use super::ownership::PART_MODE;
use super::source::SourceFile;
use super::target::Target;
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, Meta};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Temporary names tried for one attempt; the last of them is removed if it exists.
const MAX_TEMP_SLOTS: u32 = 8;
/// Earlier attempts of which temporary files are removed.
const MAX_EARLIER_ATTEMPTS: u32 = 8;
/// From this age on, a temporary file's name is checked before publishing.
const TEMP_NAME_RECHECK_AGE: Duration = Duration::from_secs(5);
/// The longest file that is written without a name, in bytes: longer ones gain nothing, and take so long that a later
/// attempt must find them.
const MAX_UNNAMED_FILE_BYTES: u64 = 64 << 10;

/// A small file being written, unnamed or with a temporary name; removed when it is dropped unpublished.
#[derive(Debug)]
pub struct NewFile {
    target: Target,
    path: RelPath,
    dir: DirHandle,
    fd: OwnedFd,
    /// `None`: it has no name yet, or its final one.
    temp_name: Option<Vec<u8>>,
    attempt: u32,
    /// The permission bits with which it was created.
    create_mode: u32,
    /// Temporary names of other writers of the same attempt, removed after this one is published.
    occupied_temp_names: Vec<Vec<u8>>,
    written_bytes: u64,
    /// The end is a hole that is not written yet.
    ends_with_hole: bool,
    created_at: Instant,
}

impl Target {
    /// Creates a new file for `entry`'s content in its directory, which is created if missing. Temporary files of
    /// earlier attempts are removed.
    ///
    /// # Errors
    /// The directory can't be created or written to.
    pub fn create(&self, entry: &Entry, attempt: u32) -> Result<NewFile> {
        let path = &entry.path;
        self.prepare_write()?;
        let nameless = entry.size() <= MAX_UNNAMED_FILE_BYTES
            && attempt <= 1
            && !self.state.use_temp_names.load(Ordering::Relaxed);
        self.retry_with_fresh_cache(|| {
            if nameless && let Some(file) = self.create_unnamed(entry, attempt)? {
                return Ok(file);
            }
            self.create_with_temp_name(path, attempt)
        })
        .map_err(|errno| self.error("create", path, errno))
    }

    /// Creates a file that no other process can reach, with its final mode; `None` where the file system has no
    /// unnamed files.
    fn create_unnamed(&self, entry: &Entry, attempt: u32) -> SysResult<Option<NewFile>> {
        let place = self.locate_or_create_parents(&entry.path)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let asked = self.policy.initial_file_mode(entry);
        let mode = Mode::from_raw_mode(asked);
        match self
            .with_writable_dir(&place.dir, || rustix::fs::openat(&place.dir, ".", flags, mode))
        {
            Ok(fd) => {
                let mut file = self.new_file(&entry.path, attempt, place.dir, fd);
                file.create_mode = asked;
                Ok(Some(file))
            }
            // Kernels without the flag see an attempt to write to a directory.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                self.disable_unnamed_files();
                Ok(None)
            }
            // ext4 returns this for a removed directory.
            Err(Errno::PERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn create_with_temp_name(&self, path: &RelPath, attempt: u32) -> SysResult<NewFile> {
        let place = self.locate_or_create_parents(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut occupied = Vec::new();
        for slot in 0..MAX_TEMP_SLOTS {
            let temp = self.temp_file_name(path, attempt, slot);
            if slot == MAX_TEMP_SLOTS - 1 {
                let _ = rustix::fs::unlinkat(&place.dir, &temp, AtFlags::empty());
            }
            let mode = Mode::from_raw_mode(PART_MODE);
            match self.with_writable_dir(&place.dir, || {
                rustix::fs::openat(&place.dir, &temp, flags, mode)
            }) {
                // Left by a crash, or of a writer that hangs: it keeps its name for now.
                Err(Errno::EXIST) => occupied.push(temp),
                Err(errno) => return Err(errno),
                Ok(fd) => {
                    self.remove_earlier_attempts(&place.dir, path, attempt);
                    let mut file = self.new_file(path, attempt, place.dir, fd);
                    (file.temp_name, file.occupied_temp_names) = (Some(temp), occupied);
                    return Ok(file);
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Removes the temporary files of killed agents for `entry`. The directory keeps its metadata.
    ///
    /// # Errors
    /// A temporary file can't be removed.
    pub fn remove_temp_files(&self, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        let gone = self.tree.locate(path).and_then(|place| {
            // Entries without content have the attempt number 0.
            for attempt in 0..=MAX_EARLIER_ATTEMPTS {
                for slot in 0..MAX_TEMP_SLOTS {
                    match self.unlink_keeping_dir_metadata(
                        &place.dir,
                        &self.temp_file_name(path, attempt, slot),
                    ) {
                        Err(Errno::NOENT) => break,
                        other => other?,
                    }
                }
            }
            Ok(())
        });
        match gone {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(self.error("remove temporary file of", path, errno)),
        }
    }

    /// Removes an internal name; the directory keeps its metadata, which may have changed since the manifest was
    /// made.
    pub(super) fn unlink_keeping_dir_metadata(
        &self,
        dir: &DirHandle,
        name: &[u8],
    ) -> SysResult<()> {
        let before = rustix::fs::fstat(dir)?;
        self.unlink(dir, name, AtFlags::empty())?;
        if mode_of(&rustix::fs::fstat(dir)?) != mode_of(&before) {
            chmod(dir.as_fd(), mode_of(&before))?;
        }
        set_mtime(dir.as_fd(), &meta_of(&before))
    }

    fn new_file(&self, path: &RelPath, attempt: u32, dir: DirHandle, fd: OwnedFd) -> NewFile {
        NewFile {
            target: self.clone(),
            path: path.clone(),
            dir,
            fd,
            temp_name: None,
            attempt,
            create_mode: PART_MODE,
            occupied_temp_names: Vec::new(),
            written_bytes: 0,
            ends_with_hole: false,
            created_at: Instant::now(),
        }
    }

    /// Removes the temporary files of earlier attempts; a running one can't publish any more.
    fn remove_earlier_attempts(&self, dir: &DirHandle, path: &RelPath, attempt: u32) {
        for earlier in attempt.saturating_sub(MAX_EARLIER_ATTEMPTS).max(1)..attempt {
            for slot in 0..MAX_TEMP_SLOTS {
                let name = self.temp_file_name(path, earlier, slot);
                if rustix::fs::unlinkat(dir, &name, AtFlags::empty()).is_err() {
                    break;
                }
            }
        }
    }

    /// The file to be replaced, where the new one inherits from it; `None` for one of a foreign owner: its group
    /// and mode would give others access to the content.
    pub(super) fn stat_replaced_file(
        &self,
        dir: &DirHandle,
        name: &[u8],
        meta: &Meta,
    ) -> Option<Stat> {
        if !self.policy.inherits_from_replaced() {
            return None;
        }
        let there = lstat(dir, name).ok()?;
        let taken = type_of(&there) == FileType::RegularFile && self.is_trusted(dir, &there, meta);
        taken.then_some(there)
    }

    pub(super) fn verify_size(&self, entry: &Entry, found: u64) -> Result<()> {
        let expected = entry.size();
        if found == expected {
            return Ok(());
        }
        Err(self.error("publish", &entry.path, Cause::WrongSize { expected, found }))
    }
}

impl Target {
    /// Whether a file in `dir` may become a reflink of `source`, as far as is known.
    fn can_reflink_into(&self, dir: &DirHandle, source: &SourceFile) -> bool {
        !self.rules.punch_zeros
            && rustix::fs::fstat(dir).is_ok_and(|stat| source.can_reflink_to(stat.st_dev))
    }

    /// Like [`Target::can_reflink_into`] for the file of `entry`, if its directory exists.
    pub fn can_reflink(&self, entry: &Entry, source: &SourceFile) -> bool {
        self.tree.locate(&entry.path).is_ok_and(|place| self.can_reflink_into(&place.dir, source))
    }
}

impl NewFile {
    /// Appends to the content. Long runs of zeros become holes, if enabled.
    ///
    /// # Errors
    /// `pwrite` failed; the file can't be published any more.
    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        for (run, zeros) in split_zero_runs(content, self.target.rules.punch_zeros) {
            let length = run.len() as u64;
            self.ends_with_hole = zeros;
            if !zeros {
                let written = write_all_at(&self.fd, &content[run], self.written_bytes);
                written.map_err(|e| self.error("write", e))?;
            }
            self.written_bytes += length;
        }
        Ok(())
    }

    /// Appends a hole of this length.
    pub fn append_hole(&mut self, len: u64) {
        self.ends_with_hole |= len > 0;
        self.written_bytes += len;
    }

    /// Takes the whole content of `source` by sharing its blocks, or by a copy on the server, where `should_continue` is
    /// called before each piece with its length. `false` where that is impossible, or the file is so short that
    /// writing is cheaper: then the file is still empty. The caller checks afterwards whether the source
    /// [changed](SourceFile::verify_unchanged).
    ///
    /// # Errors
    /// The file can be neither cloned nor written.
    pub fn reflink_from(
        &mut self,
        source: &SourceFile,
        should_continue: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        let size = source.entry().size();
        if size <= MAX_UNNAMED_FILE_BYTES
            || self.written_bytes > 0
            || !self.target.can_reflink_into(&self.dir, source)
        {
            return Ok(false);
        }
        let cloned =
            source.reflink_to(&self.fd, should_continue).map_err(|e| self.error("clone to", e))?;
        if cloned {
            self.written_bytes = size;
        }
        Ok(cloned)
    }

    /// Publishes the content with its metadata under its name. `entry` may be another version than at creation, of
    /// the same path.
    ///
    /// # Errors
    /// The written length differs from `entry`'s, another writer has the temporary name, a directory that is not
    /// empty has the name, or a system call failed. Nothing is left behind.
    pub fn publish(mut self, entry: &Entry) -> Result<()> {
        self.target.verify_size(entry, self.written_bytes)?;
        if self.ends_with_hole {
            rustix::fs::ftruncate(&self.fd, self.written_bytes)
                .map_err(|e| self.error("write", e))?;
        }
        // Before the mtime is set: a write in progress could change it again.
        self.target.sync_if_remote(&self.fd).map_err(|e| self.error("write", e))?;
        let own = if self.path.is_root() { &self.target.tree.base } else { &self.path };
        let name = own.file_name().unwrap_or(b".").to_vec();
        let name = name.as_slice();
        let applied = self.apply_metadata(entry, name);
        applied.map_err(|cause| self.error("set metadata of", cause))?;
        if self.temp_name.is_none() {
            match self.link_to_name(name) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let checked = self.target.tree.check_spelling(&self.dir, name);
                    checked.map_err(|errno| self.error("publish", errno))?;
                    self.link_to_temp_name(name)?;
                }
                // No such links here, or the directory was removed.
                Err(Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                    self.target.disable_unnamed_files();
                    return self.copy_to_named_file()?.publish(entry);
                }
                Err(errno) => return Err(self.error("publish", errno)),
            }
        }
        if let Some(temp) = self.temp_name.take() {
            self.rename_to_final(temp, name)?;
        }
        for occupied in &self.occupied_temp_names {
            let _ = rustix::fs::unlinkat(&self.dir, occupied, AtFlags::empty());
        }
        let registered = self.target.register_anchor(&self.dir, name, &self.fd, entry);
        registered.map_err(|cause| self.error("link", cause))
    }

    fn apply_metadata(&self, entry: &Entry, name: &[u8]) -> CauseResult<()> {
        let Target { policy, state, .. } = &self.target;
        if policy.inherits_from_replaced() {
            let origin =
                ObjectOrigin::Created(self.target.stat_replaced_file(&self.dir, name, &entry.meta));
            return policy.apply(&self.fd, &entry.into(), origin).map(drop);
        }
        let last = state
            .create_defaults
            .lock()
            .as_ref()
            .filter(|(dir, _)| Arc::ptr_eq(dir, &self.dir))
            .map(|(_, defaults)| *defaults);
        let defaults = match last {
            Some(defaults) => defaults,
            None => {
                let defaults =
                    policy.probe_create_defaults(&self.dir, &self.fd, self.create_mode)?;
                *state.create_defaults.lock() = Some((self.dir.clone(), defaults));
                defaults
            }
        };
        policy.apply_to_new(&self.fd, &entry.into(), &defaults, self.create_mode)
    }

    /// Links an unnamed file to `name`, unless that exists.
    fn link_to_name(&self, name: &[u8]) -> SysResult<()> {
        let (fd, dir) = (&self.fd, &self.dir);
        self.target.with_writable_dir(dir, || {
            match rustix::fs::linkat(fd, "", dir, name, AtFlags::EMPTY_PATH) {
                // Older kernels require a privilege for it.
                Err(Errno::NOENT) => {
                    let own = proc_path(fd.as_fd(), b"");
                    rustix::fs::linkat(CWD, own, dir, name, AtFlags::SYMLINK_FOLLOW)
                }
                other => other,
            }
        })
    }

    /// The final name exists: continues as if the file had been created with a temporary name, which later attempts
    /// find and remove. An earlier attempt may have published already: an object that got the final name since this
    /// file was created is not replaced.
    fn link_to_temp_name(&mut self, name: &[u8]) -> Result<()> {
        self.target.disable_unnamed_files();
        for slot in 0..MAX_TEMP_SLOTS {
            let temp = self.target.temp_file_name(&self.path, self.attempt, slot);
            match self.link_to_name(&temp) {
                Ok(()) => {
                    self.temp_name = Some(temp);
                    return match lstat(&self.dir, name) {
                        Ok(there) if self.is_older_than(&there) => {
                            Err(self.error("publish", Cause::Superseded))
                        }
                        _ => Ok(()),
                    };
                }
                Err(Errno::EXIST) => self.occupied_temp_names.push(temp),
                Err(errno) => return Err(self.error("publish", errno)),
            }
        }
        Err(self.error("publish", Errno::EXIST))
    }

    /// Copies the content to a file with a temporary name.
    fn copy_to_named_file(&self) -> Result<NewFile> {
        let target = &self.target;
        let named = target
            .retry_with_fresh_cache(|| target.create_with_temp_name(&self.path, self.attempt));
        let mut named = named.map_err(|e| self.error("create", e))?;
        let mut piece = vec![0; usize::try_from(MAX_UNNAMED_FILE_BYTES).unwrap_or(0)];
        while named.written_bytes < self.written_bytes {
            match read_full_at(&self.fd, &mut piece, named.written_bytes) {
                Ok(0) => return Err(self.error("read", Errno::IO)),
                Ok(n) => named.write(&piece[..n])?,
                Err(errno) => return Err(self.error("read", errno)),
            }
        }
        Ok(named)
    }

    fn rename_to_final(&mut self, temp: Vec<u8>, name: &[u8]) -> Result<()> {
        let renamed =
            if self.created_at.elapsed() > TEMP_NAME_RECHECK_AGE && !self.is_linked_at(&temp) {
                Err(Cause::Superseded)
            } else {
                match self.target.rename_into_place(&self.dir, &temp, name) {
                    // A server may have executed the rename although its reply was lost.
                    Err(Cause::Os(Errno::NOENT)) if self.is_linked_at(name) => Ok(()),
                    Err(Cause::Os(Errno::NOENT)) => Err(Cause::Superseded),
                    other => other,
                }
            };
        if renamed.is_err() {
            // To be removed.
            self.temp_name = Some(temp);
        }
        renamed.map_err(|cause| self.error("publish", cause))
    }

    /// Whether this file was created before the ctime of `there`.
    fn is_older_than(&self, there: &Stat) -> bool {
        let (sec, nsec) = (u64::try_from(there.st_ctime), u32::try_from(there.st_ctime_nsec));
        let (Ok(sec), Ok(nsec)) = (sec, nsec) else { return false };
        let (changed_at, now) = (UNIX_EPOCH + Duration::new(sec, nsec), SystemTime::now());
        let born = now.checked_sub(self.created_at.elapsed());
        // A time in the future means that the clock was set back, and shows no order.
        born.is_some_and(|born| changed_at > born) && changed_at <= now
    }

    /// Whether `name` is this file.
    fn is_linked_at(&self, name: &[u8]) -> bool {
        match (rustix::fs::fstat(&self.fd), lstat(&self.dir, name)) {
            (Ok(own), Ok(there)) => is_same_object(&own, &there),
            _ => false,
        }
    }

    fn error(&self, op: &'static str, cause: impl Into<Cause>) -> FsError {
        self.target.error(op, &self.path, cause)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp_name
            && self.is_linked_at(temp)
        {
            let _ = rustix::fs::unlinkat(&self.dir, temp, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests;
