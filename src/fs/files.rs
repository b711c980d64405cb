//! Small files on their way to their names. The smallest are written without any name and get theirs
//! by a link, which costs the kernel less than a temporary name and a rename; where something has the
//! name already, where an earlier attempt may still be at work, and on file systems that can't do it,
//! there is a temporary file beside the final name.

use super::dress::Origin;
use super::error::{Cause, FsError, Result};
use super::meta::{chmod, lstat, meta_of, mode_of, proc_path, set_mtime, type_of};
use super::root::Dir;
use super::source::{SourceFile, read_full};
use super::target::{Step, Target};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, Meta};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Temporary names tried for one attempt, before the last of them is taken from whoever left it.
const SLOTS: u32 = 8;
/// Earlier attempts (and, of a batch that is given up, first ones) whose leftovers are looked for.
const EARLIER: u32 = 8;
/// From this age on, a temporary file's name is checked to be still its own before it is published.
const CONTESTED: Duration = Duration::from_secs(5);
/// Files up to this length, in bytes, are written without a name: longer ones gain nothing by it, and
/// are under way for so long that a later attempt shall find them.
const NAMELESS: u64 = 64 << 10;
/// Zeros from this length on become a hole, where they shall.
const HOLE: usize = 64 << 10;

/// A small file being written, without a name or under a temporary one beside its own; gone when it is
/// dropped unpublished.
#[derive(Debug)]
pub struct NewFile {
    target: Target,
    path: RelPath,
    dir: Dir,
    fd: OwnedFd,
    /// `None`: it has no name yet.
    temp: Option<Vec<u8>>,
    attempt: u32,
    /// The permission bits that were asked for when it was made.
    asked: u32,
    /// Names of other writers of the same attempt, to be removed once this one is published.
    passed: Vec<Vec<u8>>,
    written: u64,
    /// The end was not written but left to be a hole.
    hole_at_end: bool,
    born: Instant,
    done: bool,
}

impl Target {
    /// Opens a new file for `entry`'s content, in the directory where it belongs (made where it is
    /// missing). What earlier attempts at it left is removed.
    ///
    /// # Errors
    /// The directory can't be made or written to.
    pub fn create(&self, entry: &Entry, attempt: u32) -> Result<NewFile> {
        let path = &entry.path;
        self.writes()?;
        let nameless = entry.size() <= NAMELESS && attempt <= 1 && self.links_nameless();
        self.retry_if_gone(|| {
            if nameless && let Some(file) = self.create_nameless(entry, attempt)? {
                return Ok(file);
            }
            self.create_named(path, attempt)
        })
        .map_err(|errno| self.error("create", path, errno))
    }

    /// A file that nobody else can reach, made with the mode that it shall have; `None` where the file
    /// system has no such files.
    fn create_nameless(&self, entry: &Entry, attempt: u32) -> Step<Option<NewFile>> {
        let place = self.place(&entry.path)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let asked = self.policy.file_birth_mode(entry);
        let mode = Mode::from_raw_mode(asked);
        match self.writable(&place.dir, || rustix::fs::openat(&place.dir, ".", flags, mode)) {
            Ok(fd) => Ok(Some(self.new_file(&entry.path, attempt, place.dir, fd, asked, None))),
            // Kernels that don't know the flag see an attempt to write to a directory.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                self.name_first();
                Ok(None)
            }
            // How ext4 says that the directory was removed.
            Err(Errno::PERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn create_named(&self, path: &RelPath, attempt: u32) -> Step<NewFile> {
        let place = self.place(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut passed = Vec::new();
        for slot in 0..SLOTS {
            let temp = self.temp_name(path, attempt, slot);
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
                    let asked = mode.as_raw_mode();
                    let mut file = self.new_file(path, attempt, place.dir, fd, asked, Some(temp));
                    file.passed = passed;
                    return Ok(file);
                }
            }
        }
        Err(Errno::EXIST)
    }

    /// Removes the temporary files that agents left of `entry` which were killed over it. The directory keeps
    /// its metadata.
    ///
    /// # Errors
    /// One is there and can't be removed.
    pub fn discard_temps(&self, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        let gone = self.tree.place(path).and_then(|place| {
            // What has no content has no attempts: its number is 0.
            for attempt in 0..=EARLIER {
                for slot in 0..SLOTS {
                    match self.remove_left(&place.dir, &self.temp_name(path, attempt, slot)) {
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

    /// Removes what was left under one of our own names; the directory keeps its metadata: others may have
    /// been there since the manifest was made.
    pub(super) fn remove_left(&self, dir: &Dir, name: &[u8]) -> Step<()> {
        let before = rustix::fs::fstat(dir)?;
        self.writable(dir, || rustix::fs::unlinkat(dir, name, AtFlags::empty()))?;
        if mode_of(&rustix::fs::fstat(dir)?) != mode_of(&before) {
            chmod(dir.as_fd(), mode_of(&before))?;
        }
        set_mtime(dir.as_fd(), &meta_of(&before))
    }

    fn new_file(
        &self,
        path: &RelPath,
        attempt: u32,
        dir: Dir,
        fd: OwnedFd,
        asked: u32,
        temp: Option<Vec<u8>>,
    ) -> NewFile {
        NewFile {
            target: self.clone(),
            path: path.clone(),
            dir,
            fd,
            temp,
            attempt,
            asked,
            passed: Vec::new(),
            written: 0,
            hole_at_end: false,
            born: Instant::now(),
            done: false,
        }
    }

    /// Removes what attempts before `attempt` left; one that still writes can't publish any more.
    fn remove_earlier(&self, dir: &Dir, path: &RelPath, attempt: u32) {
        for earlier in attempt.saturating_sub(EARLIER).max(1)..attempt {
            for slot in 0..SLOTS {
                let name = self.temp_name(path, earlier, slot);
                if rustix::fs::unlinkat(dir, &name, AtFlags::empty()).is_err() {
                    break;
                }
            }
        }
    }

    /// The file that is about to be replaced, where the new one takes something from it: nothing is taken
    /// from one of a foreign owner, whose group and mode would let others at the content.
    pub(super) fn replaced(&self, dir: &Dir, name: &[u8], meta: &Meta) -> Option<Stat> {
        if !self.policy.inherits() {
            return None;
        }
        let there = lstat(dir, name).ok()?;
        let taken = type_of(&there) == FileType::RegularFile && self.is_trusted(dir, &there, meta);
        taken.then_some(there)
    }

    pub(super) fn check_size(&self, entry: &Entry, found: u64) -> Result<()> {
        let expected = entry.size();
        if found == expected {
            return Ok(());
        }
        Err(self.error("publish", &entry.path, Cause::WrongSize { expected, found }))
    }
}

impl Target {
    /// Whether a file in `dir` may become a clone of `source`, as far as is known.
    fn may_clone(&self, dir: &Dir, source: &SourceFile) -> bool {
        !self.rules.punch_zeros
            && rustix::fs::fstat(dir).is_ok_and(|stat| source.may_share(stat.st_dev))
    }

    /// The same for the file of `entry`, where its directory is there.
    pub fn may_clone_to(&self, entry: &Entry, source: &SourceFile) -> bool {
        self.tree.place(&entry.path).is_ok_and(|place| self.may_clone(&place.dir, source))
    }
}

impl NewFile {
    /// Appends to the content. Long runs of zeros become holes, where they shall.
    ///
    /// # Errors
    /// `pwrite` failed; the file can't be published any more.
    pub fn write(&mut self, content: &[u8]) -> Result<()> {
        for (run, zeros) in zero_runs(content, self.target.rules.punch_zeros) {
            let length = run.len() as u64;
            self.hole_at_end = zeros;
            if !zeros {
                let written = write_full(&self.fd, &content[run], self.written);
                written.map_err(|e| self.failed("write", e))?;
            }
            self.written += length;
        }
        Ok(())
    }

    /// Appends a hole of this length.
    pub fn skip(&mut self, len: u64) {
        self.hole_at_end |= len > 0;
        self.written += len;
    }

    /// Takes all content of `source` by sharing its blocks, or has a server copy it: before each piece of so many bytes
    /// of that `go_on` is asked. `false` where that cannot be, or the file is so short
    /// that it costs more than writing: then nothing of it is there, and it can be written. Whether the source
    /// [changed](SourceFile::unchanged_since_open) is to be asked afterwards.
    ///
    /// # Errors
    /// Neither is possible any more.
    pub fn clone_of(
        &mut self,
        source: &SourceFile,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool> {
        let size = source.entry().size();
        if size <= NAMELESS || self.written > 0 || !self.target.may_clone(&self.dir, source) {
            return Ok(false);
        }
        let cloned = source.clone_to(&self.fd, go_on).map_err(|e| self.failed("clone to", e))?;
        if cloned {
            self.written = size;
        }
        Ok(cloned)
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
        let own = if self.path.is_root() { &self.target.tree.base } else { &self.path };
        let name = own.file_name().unwrap_or(b".").to_vec();
        let name = name.as_slice();
        let dressed = self.dress(entry, name);
        dressed.map_err(|cause| self.failed("set metadata of", cause))?;
        if self.temp.is_none() {
            match self.link(name) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let spelled = self.target.tree.check_name(&self.dir, name);
                    spelled.map_err(|errno| self.failed("publish", errno))?;
                    self.take_temporary_name(name)?;
                }
                // No such links here, or the directory is gone.
                Err(Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                    self.target.name_first();
                    return self.begin_again()?.publish(entry);
                }
                Err(errno) => return Err(self.failed("publish", errno)),
            }
        }
        if let Some(temp) = self.temp.take() {
            self.rename(temp, name)?;
        }
        self.done = true;
        for passed in &self.passed {
            let _ = rustix::fs::unlinkat(&self.dir, passed, AtFlags::empty());
        }
        let joined = self.target.join(&self.dir, name, &self.fd, entry);
        joined.map_err(|cause| self.failed("link", cause))
    }

    fn dress(&self, entry: &Entry, name: &[u8]) -> std::result::Result<(), Cause> {
        let Target { policy, state, .. } = &self.target;
        if policy.inherits() {
            let origin = Origin::New(self.target.replaced(&self.dir, name, &entry.meta));
            return policy.dress(&self.fd, &entry.into(), origin).map(drop);
        }
        let birth = match state.births.of(&self.dir) {
            Some(birth) => birth,
            None => {
                let birth = policy.birth(&self.dir, &self.fd, self.asked)?;
                state.births.keep(&self.dir, birth);
                birth
            }
        };
        policy.dress_newborn(&self.fd, &entry.into(), &birth, self.asked)
    }

    /// Gives a file without a name this one, unless something has it.
    fn link(&self, name: &[u8]) -> Step<()> {
        let (fd, dir) = (&self.fd, &self.dir);
        self.target.writable(dir, || {
            match rustix::fs::linkat(fd, "", dir, name, AtFlags::EMPTY_PATH) {
                // That takes a privilege, on older kernels.
                Err(Errno::NOENT) => {
                    let own = proc_path(fd.as_fd(), b"");
                    rustix::fs::linkat(CWD, own, dir, name, AtFlags::SYMLINK_FOLLOW)
                }
                other => other,
            }
        })
    }

    /// Something has the final name: from here on as if the file had been made under a temporary one,
    /// which later attempts find and remove. An attempt that began before it had that name may have
    /// published already: what came to the final name since this file was made is not replaced.
    fn take_temporary_name(&mut self, name: &[u8]) -> Result<()> {
        self.target.name_first();
        for slot in 0..SLOTS {
            let temp = self.target.temp_name(&self.path, self.attempt, slot);
            match self.link(&temp) {
                Ok(()) => {
                    self.temp = Some(temp);
                    return match lstat(&self.dir, name) {
                        Ok(there) if self.is_older_than(&there) => {
                            Err(self.failed("publish", Cause::Overtaken))
                        }
                        _ => Ok(()),
                    };
                }
                Err(Errno::EXIST) => self.passed.push(temp),
                Err(errno) => return Err(self.failed("publish", errno)),
            }
        }
        Err(self.failed("publish", Errno::EXIST))
    }

    /// The same content in a file with a temporary name.
    fn begin_again(&self) -> Result<NewFile> {
        let target = &self.target;
        let named = target.retry_if_gone(|| target.create_named(&self.path, self.attempt));
        let mut named = named.map_err(|e| self.failed("create", e))?;
        let mut piece = vec![0; usize::try_from(NAMELESS).unwrap_or(0)];
        while named.written < self.written {
            match read_full(&self.fd, &mut piece, named.written) {
                Ok(0) => return Err(self.failed("read", Errno::IO)),
                Ok(n) => named.write(&piece[..n])?,
                Err(errno) => return Err(self.failed("read", errno)),
            }
        }
        Ok(named)
    }

    fn rename(&mut self, temp: Vec<u8>, name: &[u8]) -> Result<()> {
        let renamed = if self.born.elapsed() > CONTESTED && !self.is_at(&temp) {
            Err(Cause::Overtaken)
        } else {
            match self.target.rename(&self.dir, &temp, name) {
                // A server may have done it and its answer got lost: then the name is ours already.
                Err(Cause::Os(Errno::NOENT)) if self.is_at(name) => Ok(()),
                Err(Cause::Os(Errno::NOENT)) => Err(Cause::Overtaken),
                other => other,
            }
        };
        if renamed.is_err() {
            // To be removed.
            self.temp = Some(temp);
        }
        renamed.map_err(|cause| self.failed("publish", cause))
    }

    /// Whether this file was made before something came to be what it is now.
    fn is_older_than(&self, there: &Stat) -> bool {
        let (sec, nsec) = (u64::try_from(there.st_ctime), u32::try_from(there.st_ctime_nsec));
        let (Ok(sec), Ok(nsec)) = (sec, nsec) else { return false };
        let (came, now) = (UNIX_EPOCH + Duration::new(sec, nsec), SystemTime::now());
        let born = now.checked_sub(self.born.elapsed());
        // What comes from the future tells of a clock that was set back, and nothing of who was first.
        born.is_some_and(|born| came > born) && came <= now
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
        if let Some(temp) = &self.temp
            && !self.done
            && self.is_at(temp)
        {
            let _ = rustix::fs::unlinkat(&self.dir, temp, AtFlags::empty());
        }
    }
}

/// The runs of `content` that are all zeros, of at least [`HOLE`] bytes each, and what is between them;
/// all of it as one run that is not, unless they are to be `found`.
pub(super) fn zero_runs(
    content: &[u8],
    found: bool,
) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
    let is_hole = move |at: usize| {
        found && content.get(at..at + HOLE).is_some_and(|b| b.iter().all(|b| *b == 0))
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        if start == content.len() {
            return None;
        }
        let zeros = is_hole(start);
        while at < content.len() && (at == start || (found && is_hole(at) == zeros)) {
            at = if found { content.len().min(at + HOLE) } else { content.len() };
        }
        Some((start..at, zeros))
    })
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
