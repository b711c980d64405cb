//! A file system that fails on demand: it shows a directory, and what is done through it fails, comes short, takes
//! long or hangs as rules say. It may take names for one that differ in the case of ASCII letters. Served to the
//! kernel by this process.

use crate::wire::{self, Ask, Reply, errno};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps, Uid,
};
use rustix::io::{Errno, FdFlags};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// So many requests are served at a time.
const THREADS: usize = 16;

/// What is done through the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Read,
    Write,
    Fsync,
    /// Making anything.
    Make,
    Rename,
    /// The answer to a rename that is done.
    Renamed,
    /// Setting the time of a file: the last that is done to one before it gets its name.
    Stamp,
    /// Asking for what is free.
    Measure,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    Fails(Errno),
    /// Half of what was asked for (at least a byte) is read or written.
    Short,
    Takes(Duration),
    /// No answer until the rule is taken back.
    Hangs,
}

/// A rule; the first that fits decides.
#[derive(Debug, Clone)]
struct Rule {
    id: u64,
    call: Call,
    /// A part of the last name by which the file was reached.
    name: &'static str,
    fate: Fate,
    /// So many fitting calls are let pass first …
    skip: u64,
    /// … and so many meet their fate.
    times: u64,
    /// How many met it so far.
    met: u64,
}

/// The rules, and those who wait for one to be taken back.
#[derive(Debug, Default)]
struct Rules {
    all: Mutex<Vec<Rule>>,
    changed: Condvar,
    ids: AtomicU64,
}

impl Rules {
    /// What becomes of a call: whether it comes short, or its error.
    fn judge(&self, call: Call, name: &OsStr) -> Result<bool, Errno> {
        let name = name.to_string_lossy();
        let mut all = self.all.lock();
        let fits = |r: &&mut Rule| r.call == call && name.contains(r.name) && r.times > 0;
        let Some(rule) = all.iter_mut().find(fits) else { return Ok(false) };
        if rule.skip > 0 {
            rule.skip -= 1;
            return Ok(false);
        }
        rule.times -= 1;
        rule.met += 1;
        let (id, fate) = (rule.id, rule.fate);
        match fate {
            Fate::Fails(errno) => Err(errno),
            Fate::Short => Ok(true),
            Fate::Takes(time) => {
                drop(all);
                std::thread::sleep(time);
                Ok(false)
            }
            Fate::Hangs => {
                let waits = |all: &mut Vec<Rule>| all.iter().any(|r| r.id == id);
                self.changed.wait_while(&mut all, waits);
                Ok(false)
            }
        }
    }
}

/// Something that the kernel knows by a number.
#[derive(Debug)]
struct Node {
    /// Opened with `O_PATH`: what it stands for cannot be replaced meanwhile.
    file: File,
    /// The last name by which it was reached.
    name: OsString,
}

impl Node {
    /// A path to it, whatever its names are.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

/// What serves the kernel.
struct Served {
    rules: Arc<Rules>,
    /// The number of the directory that is shown: its own is 1.
    root: u64,
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    open: Mutex<HashMap<u64, Arc<File>>>,
    handles: AtomicU64,
    /// Held while names change, where letter case tells no two apart.
    folds: Option<Mutex<()>>,
}

/// A mounted one; its rules can be changed at any time. Gone when it is dropped.
pub(crate) struct Failing {
    rules: Arc<Rules>,
    at: PathBuf,
}

impl Failing {
    /// Shows `shown` at `at`. The kernel keeps nothing: each call comes here as it is made.
    pub(crate) fn mount(shown: &Path, at: &Path) -> Failing {
        Self::mount_as(shown, at, None)
    }

    /// The same, and a name finds what is there in another letter case, as on vfat; its first spelling stays.
    pub(crate) fn mount_folding(shown: &Path, at: &Path) -> Failing {
        Self::mount_as(shown, at, Some(Mutex::default()))
    }

    fn mount_as(shown: &Path, at: &Path, folds: Option<Mutex<()>>) -> Failing {
        let rules = Arc::new(Rules::default());
        let file = reach(shown).expect("what is shown");
        let root = file.metadata().expect("what is shown").ino();
        let node = Arc::new(Node { file, name: OsString::new() });
        let served = Arc::new(Served {
            rules: rules.clone(),
            root,
            nodes: Mutex::new(HashMap::from([(1, node)])),
            open: Mutex::default(),
            handles: AtomicU64::new(1),
            folds,
        });
        let kernel = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let kernel = kernel.expect("open /dev/fuse");
        rustix::io::fcntl_setfd(&kernel, FdFlags::empty()).expect("let mount have it");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
            kernel.as_raw_fd()
        );
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", &options, "failing"]).arg(at);
        assert!(mount.status().expect("run mount").success(), "mount a file system");
        rustix::io::fcntl_setfd(&kernel, FdFlags::CLOEXEC).expect("keep it from others");
        let kernel = Arc::new(kernel);
        for _ in 0..THREADS {
            let (served, kernel) = (served.clone(), kernel.clone());
            std::thread::spawn(move || served.serve(&kernel));
        }
        Failing { rules, at: at.to_owned() }
    }

    /// From now on every call of that kind, on what has `name` in its name, meets this fate.
    pub(crate) fn always(&self, call: Call, name: &'static str, fate: Fate) -> u64 {
        self.sometimes(call, name, fate, 0, u64::MAX)
    }

    /// … after `skip` of them, `times` times.
    pub(crate) fn sometimes(
        &self,
        call: Call,
        name: &'static str,
        fate: Fate,
        skip: u64,
        times: u64,
    ) -> u64 {
        let id = self.rules.ids.fetch_add(1, Ordering::Relaxed);
        self.rules.all.lock().push(Rule { id, call, name, fate, skip, times, met: 0 });
        id
    }

    /// How many calls met the fate of a rule.
    pub(crate) fn met(&self, rule: u64) -> u64 {
        self.rules.all.lock().iter().find(|r| r.id == rule).map_or(0, |r| r.met)
    }

    /// Takes all rules back.
    pub(crate) fn heal(&self) {
        self.rules.all.lock().clear();
        self.rules.changed.notify_all();
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.heal();
        // Lazily: who has it open still gets answers until this process ends.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// Opens something for nothing but to hold it.
fn reach(path: &Path) -> io::Result<File> {
    let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

type Answer = Result<Vec<u8>, Errno>;

impl Served {
    /// Answers the kernel until the file system is gone.
    fn serve(&self, mut kernel: &File) {
        let mut buffer = vec![0; wire::MAX_WRITE as usize + 8192];
        loop {
            let n = match kernel.read(&mut buffer) {
                Ok(n) => n,
                Err(e) => match errno(e) {
                    // A request was taken back before it was read.
                    Errno::NOENT | Errno::INTR | Errno::AGAIN => continue,
                    _ => return,
                },
            };
            let mut ask = Ask::read(&buffer[..n]);
            if [wire::FORGET, wire::BATCH_FORGET, wire::INTERRUPT].contains(&ask.call) {
                continue;
            }
            let done = self.done(&mut ask);
            // Who asked may be gone.
            let _ = kernel.write(&ask.answer(done));
        }
    }

    fn done(&self, ask: &mut Ask<'_>) -> Answer {
        let node = ask.node;
        match ask.call {
            wire::INIT => wire::init(ask),
            wire::LOOKUP => self.find(node, &ask.text()),
            wire::GETATTR => {
                let meta = self.node(node)?.file.metadata().map_err(errno)?;
                Ok(Reply::attributes(self.number(&meta), &meta))
            }
            wire::SETATTR => self.set(ask),
            wire::READLINK => {
                let text = rustix::fs::readlinkat(&self.node(node)?.file, "", Vec::new())?;
                Ok(text.into_bytes())
            }
            wire::SYMLINK | wire::MKNOD | wire::MKDIR | wire::LINK => self.make(ask),
            wire::CREATE => self.create(ask),
            wire::UNLINK => done(fs::remove_file(self.below(node, &ask.text())?)),
            wire::RMDIR => done(fs::remove_dir(self.below(node, &ask.text())?)),
            wire::RENAME => {
                let (to, from, name) = (ask.u64(), ask.text(), ask.text());
                self.rename((node, &from), (to, &name), RenameFlags::empty())
            }
            wire::RENAME2 => {
                let (to, flags, _) = (ask.u64(), ask.u32(), ask.u32());
                let (from, name) = (ask.text(), ask.text());
                self.rename((node, &from), (to, &name), RenameFlags::from_bits_retain(flags))
            }
            wire::OPEN => self.open(node, OFlags::from_bits_retain(ask.u32())),
            wire::READ => self.read(ask),
            wire::WRITE => self.write(ask),
            wire::FSYNC | wire::FSYNCDIR => self.judge(Call::Fsync, node).map(|_| Vec::new()),
            wire::RELEASE => {
                self.open.lock().remove(&ask.u64());
                Ok(Vec::new())
            }
            wire::OPENDIR => Ok(Reply::opened(0, 0)),
            wire::READDIR => self.names(ask),
            wire::LSEEK => self.seek(ask),
            wire::STATFS => self.measure(),
            wire::FLUSH | wire::RELEASEDIR | wire::DESTROY => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&self, node: u64) -> Result<Arc<Node>, Errno> {
        self.nodes.lock().get(&node).cloned().ok_or(Errno::NOENT)
    }

    fn file(&self, handle: u64) -> Result<Arc<File>, Errno> {
        self.open.lock().get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Where a name in a directory is.
    fn below(&self, node: u64, name: &OsStr) -> Result<PathBuf, Errno> {
        let dir = self.node(node)?.path();
        if self.folds.is_some() {
            for entry in fs::read_dir(&dir).map_err(errno)? {
                let there = entry.map_err(errno)?.file_name();
                if there.eq_ignore_ascii_case(name) {
                    return Ok(dir.join(there));
                }
            }
        }
        Ok(dir.join(name))
    }

    /// As long as it lives, nobody else makes or renames what could be one.
    fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        self.folds.as_ref().map(|folds| folds.lock())
    }

    fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> Answer {
        self.rules.judge(Call::Rename, to.1)?;
        let alone = self.alone();
        let paths = (self.below(from.0, from.1)?, self.below(to.0, to.1)?);
        rustix::fs::renameat_with(CWD, paths.0, CWD, paths.1, flags)?;
        drop(alone);
        self.rules.judge(Call::Renamed, to.1)?;
        self.find(to.0, to.1).map(|_| Vec::new())
    }

    fn judge(&self, call: Call, node: u64) -> Result<bool, Errno> {
        self.rules.judge(call, &self.node(node)?.name)
    }

    /// By what number the kernel knows it.
    fn number(&self, meta: &fs::Metadata) -> u64 {
        if meta.ino() == self.root { 1 } else { meta.ino() }
    }

    /// What a name leads to; from then on the kernel knows it by its number.
    fn find(&self, node: u64, name: &OsStr) -> Answer {
        let file = reach(&self.below(node, name)?).map_err(errno)?;
        let meta = file.metadata().map_err(errno)?;
        let number = self.number(&meta);
        if number != 1 {
            self.nodes.lock().insert(number, Arc::new(Node { file, name: name.to_owned() }));
        }
        Ok(Reply::entry(number, &meta))
    }

    fn make(&self, ask: &mut Ask<'_>) -> Answer {
        let (mut mode, mut rdev) = (0, 0);
        match ask.call {
            wire::MKNOD => (mode, rdev, _, _) = (ask.u32(), ask.u32(), ask.u32(), ask.u32()),
            wire::MKDIR => (mode, _) = (ask.u32(), ask.u32()),
            _ => {}
        }
        let old = if ask.call == wire::LINK { Some(ask.u64()) } else { None };
        let name = ask.text();
        self.rules.judge(Call::Make, &name)?;
        let _alone = self.alone();
        let path = self.below(ask.node, &name)?;
        match (ask.call, old) {
            (wire::MKDIR, _) => fs::DirBuilder::new().mode(mode).create(&path).map_err(errno)?,
            (wire::SYMLINK, _) => {
                std::os::unix::fs::symlink(ask.text(), &path).map_err(errno)?;
            }
            (_, Some(old)) => {
                let old = self.node(old)?.path();
                rustix::fs::linkat(CWD, &old, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            }
            _ => {
                let kind = FileType::from_raw_mode(mode);
                rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), rdev.into())?;
            }
        }
        self.find(ask.node, &name)
    }

    fn create(&self, ask: &mut Ask<'_>) -> Answer {
        let (flags, mode, _, _) = (ask.u32(), ask.u32(), ask.u32(), ask.u32());
        let name = ask.text();
        self.rules.judge(Call::Make, &name)?;
        let _alone = self.alone();
        let flags = OFlags::from_bits_retain(flags);
        let mut how = OpenOptions::new();
        how.read(true).write(true).mode(mode & 0o7777).truncate(flags.contains(OFlags::TRUNC));
        how.create(true).create_new(flags.contains(OFlags::EXCL));
        let file = how.open(self.below(ask.node, &name)?).map_err(errno)?;
        let mut reply = self.find(ask.node, &name)?;
        reply.extend(self.opened(file));
        Ok(reply)
    }

    fn open(&self, node: u64, flags: OFlags) -> Answer {
        self.judge(Call::Open, node)?;
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let mut how = OpenOptions::new();
        how.read(true).write(writes);
        Ok(self.opened(how.open(self.node(node)?.path()).map_err(errno)?))
    }

    fn opened(&self, file: File) -> Vec<u8> {
        let handle = self.handles.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(handle, Arc::new(file));
        Reply::opened(handle, wire::DIRECT_IO)
    }

    fn set(&self, ask: &mut Ask<'_>) -> Answer {
        let (valid, _) = (ask.u32(), ask.u32());
        let (_handle, size, _owner) = (ask.u64(), ask.u64(), ask.u64());
        let (atime, mtime, _ctime) = (ask.u64() as i64, ask.u64() as i64, ask.u64());
        let (atime_nsec, mtime_nsec, _) = (ask.u32(), ask.u32(), ask.u32());
        let (mode, _, uid, gid) = (ask.u32(), ask.u32(), ask.u32(), ask.u32());
        let has = |bit: u32| valid & 1 << bit != 0;
        let node = self.node(ask.node)?;
        if has(5) {
            self.rules.judge(Call::Stamp, &node.name)?;
        }
        if has(3) {
            let file = OpenOptions::new().write(true).open(node.path());
            file.and_then(|file| file.set_len(size)).map_err(errno)?;
        }
        if has(1) || has(2) {
            let (uid, gid) =
                (has(1).then(|| Uid::from_raw(uid)), has(2).then(|| Gid::from_raw(gid)));
            rustix::fs::chownat(&node.file, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(0) {
            let mode = fs::Permissions::from_mode(mode & 0o7777);
            fs::set_permissions(node.path(), mode).map_err(errno)?;
        }
        if has(4) || has(5) {
            let time = |bit, now, tv_sec, nsec: u32| match (has(bit), has(now)) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                (_, true) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                _ => Timespec { tv_sec, tv_nsec: nsec.into() },
            };
            let times = Timestamps {
                last_access: time(4, 7, atime, atime_nsec),
                last_modification: time(5, 8, mtime, mtime_nsec),
            };
            rustix::fs::utimensat(&node.file, "", &times, AtFlags::EMPTY_PATH)?;
        }
        let meta = node.file.metadata().map_err(errno)?;
        Ok(Reply::attributes(self.number(&meta), &meta))
    }

    fn read(&self, ask: &mut Ask<'_>) -> Answer {
        let (handle, at, size) = (ask.u64(), ask.u64(), ask.u32());
        let short = self.judge(Call::Read, ask.node)?;
        let size = if short { (size / 2).max(1) } else { size };
        let (file, mut bytes, mut n) = (self.file(handle)?, vec![0; size as usize], 0);
        while n < bytes.len() {
            match file.read_at(&mut bytes[n..], at + n as u64).map_err(errno)? {
                0 => break,
                some => n += some,
            }
        }
        bytes.truncate(n);
        Ok(bytes)
    }

    fn write(&self, ask: &mut Ask<'_>) -> Answer {
        let (handle, at, size) = (ask.u64(), ask.u64(), ask.u32() as usize);
        let (_flags, _owner, _open, _) = (ask.u32(), ask.u64(), ask.u32(), ask.u32());
        let short = self.judge(Call::Write, ask.node)?;
        let data = &ask.rest()[..if short { size.div_ceil(2) } else { size }];
        self.file(handle)?.write_all_at(data, at).map_err(errno)?;
        let mut out = Reply::default();
        out.u32(data.len() as u32).u32(0);
        Ok(out.0)
    }

    fn names(&self, ask: &mut Ask<'_>) -> Answer {
        let (_handle, from, most) = (ask.u64(), ask.u64(), ask.u32() as usize);
        let path = self.node(ask.node)?.path();
        let listed = fs::read_dir(&path).map_err(errno)?.map(|entry| Ok(entry?.file_name()));
        let mut names = listed.collect::<io::Result<Vec<_>>>().map_err(errno)?;
        names.sort();
        let mut out = Reply::default();
        for (i, name) in names.iter().enumerate().skip(from as usize) {
            let Ok(meta) = fs::symlink_metadata(path.join(name)) else { continue };
            if !out.name(self.number(&meta), i as u64 + 1, name, most) {
                break;
            }
        }
        Ok(out.0)
    }

    fn seek(&self, ask: &mut Ask<'_>) -> Answer {
        const SEEK_DATA: u32 = 3;
        let (handle, at, whence) = (ask.u64(), ask.u64(), ask.u32());
        let to = if whence == SEEK_DATA { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
        let mut out = Reply::default();
        out.u64(rustix::fs::seek(&*self.file(handle)?, to)?);
        Ok(out.0)
    }

    fn measure(&self) -> Answer {
        self.judge(Call::Measure, 1)?;
        let s = rustix::fs::statvfs(self.node(1)?.path())?;
        let mut out = Reply::default();
        out.u64(s.f_blocks).u64(s.f_bfree).u64(s.f_bavail).u64(s.f_files).u64(s.f_ffree);
        out.u32(s.f_bsize as u32).u32(255).u32(s.f_frsize as u32);
        out.0.resize(80, 0);
        Ok(out.0)
    }
}

fn done(what: io::Result<()>) -> Answer {
    what.map(|()| Vec::new()).map_err(errno)
}
