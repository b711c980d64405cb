//! A file system that fails on demand: it shows a directory, and what is done through it fails, comes short, takes
//! long or hangs as rules say. It may take names for one that differ in the case of ASCII letters. Served to the
//! kernel by this process.

use crate::fuse_protocol::{self, FuseReply, FuseRequest, to_errno};
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
const MAX_CONCURRENT_REQUESTS: usize = 16;

/// What is done through the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FsCall {
    Open,
    Read,
    Write,
    Fsync,
    /// Making anything.
    Create,
    Rename,
    /// The answer to a rename that is done.
    RenameReply,
    /// Setting the time of a file: the last that is done to one before it gets its name.
    SetMtime,
    /// Asking for what is free.
    StatFs,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum InjectedFault {
    Error(Errno),
    /// Half of what was asked for (at least a byte) is read or written.
    HalfLength,
    Delay(Duration),
    /// No answer until the rule is taken back.
    Hang,
}

/// A rule; the first that fits decides.
#[derive(Debug, Clone)]
struct FaultRule {
    id: u64,
    call: FsCall,
    /// A part of the last name by which the file was reached.
    name_part: &'static str,
    fault: InjectedFault,
    /// So many fitting calls are let pass first …
    skip: u64,
    /// … and so many meet their fate.
    times: u64,
    /// How many met it so far.
    hits: u64,
}

/// The rules, and a condition for calls that wait until their rule is removed.
#[derive(Debug, Default)]
struct FaultRules {
    all: Mutex<Vec<FaultRule>>,
    changed: Condvar,
    next_id: AtomicU64,
}

impl FaultRules {
    /// What becomes of a call: whether it comes short, or its error.
    fn apply_rules(&self, call: FsCall, name: &OsStr) -> Result<bool, Errno> {
        let name = name.to_string_lossy();
        let mut all = self.all.lock();
        let fits = |r: &&mut FaultRule| r.call == call && name.contains(r.name_part) && r.times > 0;
        let Some(rule) = all.iter_mut().find(fits) else { return Ok(false) };
        if rule.skip > 0 {
            rule.skip -= 1;
            return Ok(false);
        }
        rule.times -= 1;
        rule.hits += 1;
        let (id, fate) = (rule.id, rule.fault);
        match fate {
            InjectedFault::Error(errno) => Err(errno),
            InjectedFault::HalfLength => Ok(true),
            InjectedFault::Delay(time) => {
                drop(all);
                std::thread::sleep(time);
                Ok(false)
            }
            InjectedFault::Hang => {
                let waits = |all: &mut Vec<FaultRule>| all.iter().any(|r| r.id == id);
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
struct FuseServer {
    rules: Arc<FaultRules>,
    /// The number of the directory that is shown: its own is 1.
    root: u64,
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    open_files: Mutex<HashMap<u64, Arc<File>>>,
    next_handle: AtomicU64,
    /// Locked while names change, in a case-insensitive file system.
    name_lock: Option<Mutex<()>>,
}

/// A mounted one; its rules can be changed at any time. Gone when it is dropped.
pub(crate) struct FaultyFs {
    rules: Arc<FaultRules>,
    mount_point: PathBuf,
}

impl FaultyFs {
    /// Shows `shown` at `at`. The kernel keeps nothing: each call comes here as it is made.
    pub(crate) fn mount(shown: &Path, at: &Path) -> FaultyFs {
        Self::mount_with(shown, at, None)
    }

    /// The same, and a name finds what is there in another letter case, as on vfat; its first spelling stays.
    pub(crate) fn mount_case_insensitive(shown: &Path, at: &Path) -> FaultyFs {
        Self::mount_with(shown, at, Some(Mutex::default()))
    }

    fn mount_with(shown: &Path, at: &Path, folds: Option<Mutex<()>>) -> FaultyFs {
        let rules = Arc::new(FaultRules::default());
        let file = open_path_only(shown).expect("what is shown");
        let root = file.metadata().expect("what is shown").ino();
        let node = Arc::new(Node { file, name: OsString::new() });
        let served = Arc::new(FuseServer {
            rules: rules.clone(),
            root,
            nodes: Mutex::new(HashMap::from([(1, node)])),
            open_files: Mutex::default(),
            next_handle: AtomicU64::new(1),
            name_lock: folds,
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
        for _ in 0..MAX_CONCURRENT_REQUESTS {
            let (served, kernel) = (served.clone(), kernel.clone());
            std::thread::spawn(move || served.serve_requests(&kernel));
        }
        FaultyFs { rules, mount_point: at.to_owned() }
    }

    /// From now on every call of that kind, on what has `name` in its name, meets this fate.
    pub(crate) fn inject(&self, call: FsCall, name: &'static str, fate: InjectedFault) -> u64 {
        self.inject_limited(call, name, fate, 0, u64::MAX)
    }

    /// … after `skip` of them, `times` times.
    pub(crate) fn inject_limited(
        &self,
        call: FsCall,
        name: &'static str,
        fate: InjectedFault,
        skip: u64,
        times: u64,
    ) -> u64 {
        let id = self.rules.next_id.fetch_add(1, Ordering::Relaxed);
        self.rules.all.lock().push(FaultRule {
            id,
            call,
            name_part: name,
            fault: fate,
            skip,
            times,
            hits: 0,
        });
        id
    }

    /// How many calls met the fate of a rule.
    pub(crate) fn hits(&self, rule: u64) -> u64 {
        self.rules.all.lock().iter().find(|r| r.id == rule).map_or(0, |r| r.hits)
    }

    /// Takes all rules back.
    pub(crate) fn clear_faults(&self) {
        self.rules.all.lock().clear();
        self.rules.changed.notify_all();
    }
}

impl Drop for FaultyFs {
    fn drop(&mut self) {
        self.clear_faults();
        // Lazily: open files still work until this process ends.
        let _ = Command::new("umount").arg("-l").arg(&self.mount_point).status();
    }
}

/// Opens something for nothing but to hold it.
fn open_path_only(path: &Path) -> io::Result<File> {
    let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

type FuseResult = Result<Vec<u8>, Errno>;

impl FuseServer {
    /// Answers the kernel until the file system is gone.
    fn serve_requests(&self, mut kernel: &File) {
        let mut buffer = vec![0; fuse_protocol::MAX_WRITE_BYTES as usize + 8192];
        loop {
            let n = match kernel.read(&mut buffer) {
                Ok(n) => n,
                Err(e) => match to_errno(e) {
                    // A request was taken back before it was read.
                    Errno::NOENT | Errno::INTR | Errno::AGAIN => continue,
                    _ => return,
                },
            };
            let mut ask = FuseRequest::parse(&buffer[..n]);
            if [fuse_protocol::FORGET, fuse_protocol::BATCH_FORGET, fuse_protocol::INTERRUPT]
                .contains(&ask.call)
            {
                continue;
            }
            let done = self.handle_request(&mut ask);
            // The caller may have exited.
            let _ = kernel.write(&ask.encode_reply(done));
        }
    }

    fn handle_request(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let node = ask.node;
        match ask.call {
            fuse_protocol::INIT => fuse_protocol::handle_init(ask),
            fuse_protocol::LOOKUP => self.lookup(node, &ask.take_text()),
            fuse_protocol::GETATTR => {
                let meta = self.node(node)?.file.metadata().map_err(to_errno)?;
                Ok(FuseReply::attributes(self.node_id(&meta), &meta))
            }
            fuse_protocol::SETATTR => self.set_attributes(ask),
            fuse_protocol::READLINK => {
                let text = rustix::fs::readlinkat(&self.node(node)?.file, "", Vec::new())?;
                Ok(text.into_bytes())
            }
            fuse_protocol::SYMLINK
            | fuse_protocol::MKNOD
            | fuse_protocol::MKDIR
            | fuse_protocol::LINK => self.create_object(ask),
            fuse_protocol::CREATE => self.create_file(ask),
            fuse_protocol::UNLINK => {
                to_empty_reply(fs::remove_file(self.resolve_name(node, &ask.take_text())?))
            }
            fuse_protocol::RMDIR => {
                to_empty_reply(fs::remove_dir(self.resolve_name(node, &ask.take_text())?))
            }
            fuse_protocol::RENAME => {
                let (to, from, name) = (ask.take_u64(), ask.take_text(), ask.take_text());
                self.rename((node, &from), (to, &name), RenameFlags::empty())
            }
            fuse_protocol::RENAME2 => {
                let (to, flags, _) = (ask.take_u64(), ask.take_u32(), ask.take_u32());
                let (from, name) = (ask.take_text(), ask.take_text());
                self.rename((node, &from), (to, &name), RenameFlags::from_bits_retain(flags))
            }
            fuse_protocol::OPEN => self.open_file(node, OFlags::from_bits_retain(ask.take_u32())),
            fuse_protocol::READ => self.read(ask),
            fuse_protocol::WRITE => self.write(ask),
            fuse_protocol::FSYNC | fuse_protocol::FSYNCDIR => {
                self.apply_rules_to_node(FsCall::Fsync, node).map(|_| Vec::new())
            }
            fuse_protocol::RELEASE => {
                self.open_files.lock().remove(&ask.take_u64());
                Ok(Vec::new())
            }
            fuse_protocol::OPENDIR => Ok(FuseReply::opened(0, 0)),
            fuse_protocol::READDIR => self.read_dir(ask),
            fuse_protocol::LSEEK => self.seek(ask),
            fuse_protocol::STATFS => self.statfs(),
            fuse_protocol::FLUSH | fuse_protocol::RELEASEDIR | fuse_protocol::DESTROY => {
                Ok(Vec::new())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn node(&self, node: u64) -> Result<Arc<Node>, Errno> {
        self.nodes.lock().get(&node).cloned().ok_or(Errno::NOENT)
    }

    fn file(&self, handle: u64) -> Result<Arc<File>, Errno> {
        self.open_files.lock().get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Where a name in a directory is.
    fn resolve_name(&self, node: u64, name: &OsStr) -> Result<PathBuf, Errno> {
        let dir = self.node(node)?.path();
        if self.name_lock.is_some() {
            for entry in fs::read_dir(&dir).map_err(to_errno)? {
                let there = entry.map_err(to_errno)?.file_name();
                if there.eq_ignore_ascii_case(name) {
                    return Ok(dir.join(there));
                }
            }
        }
        Ok(dir.join(name))
    }

    /// While it lives, no other request creates or renames a colliding name.
    fn lock_names(&self) -> Option<MutexGuard<'_, ()>> {
        self.name_lock.as_ref().map(|folds| folds.lock())
    }

    fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: RenameFlags) -> FuseResult {
        self.rules.apply_rules(FsCall::Rename, to.1)?;
        let alone = self.lock_names();
        let paths = (self.resolve_name(from.0, from.1)?, self.resolve_name(to.0, to.1)?);
        rustix::fs::renameat_with(CWD, paths.0, CWD, paths.1, flags)?;
        drop(alone);
        self.rules.apply_rules(FsCall::RenameReply, to.1)?;
        self.lookup(to.0, to.1).map(|_| Vec::new())
    }

    fn apply_rules_to_node(&self, call: FsCall, node: u64) -> Result<bool, Errno> {
        self.rules.apply_rules(call, &self.node(node)?.name)
    }

    /// By what number the kernel knows it.
    fn node_id(&self, meta: &fs::Metadata) -> u64 {
        if meta.ino() == self.root { 1 } else { meta.ino() }
    }

    /// What a name leads to; from then on the kernel knows it by its number.
    fn lookup(&self, node: u64, name: &OsStr) -> FuseResult {
        let file = open_path_only(&self.resolve_name(node, name)?).map_err(to_errno)?;
        let meta = file.metadata().map_err(to_errno)?;
        let number = self.node_id(&meta);
        if number != 1 {
            self.nodes.lock().insert(number, Arc::new(Node { file, name: name.to_owned() }));
        }
        Ok(FuseReply::entry(number, &meta))
    }

    fn create_object(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (mut mode, mut rdev) = (0, 0);
        match ask.call {
            fuse_protocol::MKNOD => {
                (mode, rdev, _, _) =
                    (ask.take_u32(), ask.take_u32(), ask.take_u32(), ask.take_u32())
            }
            fuse_protocol::MKDIR => (mode, _) = (ask.take_u32(), ask.take_u32()),
            _ => {}
        }
        let old = if ask.call == fuse_protocol::LINK { Some(ask.take_u64()) } else { None };
        let name = ask.take_text();
        self.rules.apply_rules(FsCall::Create, &name)?;
        let _alone = self.lock_names();
        let path = self.resolve_name(ask.node, &name)?;
        match (ask.call, old) {
            (fuse_protocol::MKDIR, _) => {
                fs::DirBuilder::new().mode(mode).create(&path).map_err(to_errno)?
            }
            (fuse_protocol::SYMLINK, _) => {
                std::os::unix::fs::symlink(ask.take_text(), &path).map_err(to_errno)?;
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
        self.lookup(ask.node, &name)
    }

    fn create_file(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (flags, mode, _, _) = (ask.take_u32(), ask.take_u32(), ask.take_u32(), ask.take_u32());
        let name = ask.take_text();
        self.rules.apply_rules(FsCall::Create, &name)?;
        let _alone = self.lock_names();
        let flags = OFlags::from_bits_retain(flags);
        let mut how = OpenOptions::new();
        how.read(true).write(true).mode(mode & 0o7777).truncate(flags.contains(OFlags::TRUNC));
        how.create(true).create_new(flags.contains(OFlags::EXCL));
        let file = how.open(self.resolve_name(ask.node, &name)?).map_err(to_errno)?;
        let mut reply = self.lookup(ask.node, &name)?;
        reply.extend(self.reply_opened(file));
        Ok(reply)
    }

    fn open_file(&self, node: u64, flags: OFlags) -> FuseResult {
        self.apply_rules_to_node(FsCall::Open, node)?;
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let mut how = OpenOptions::new();
        how.read(true).write(writes);
        Ok(self.reply_opened(how.open(self.node(node)?.path()).map_err(to_errno)?))
    }

    fn reply_opened(&self, file: File) -> Vec<u8> {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open_files.lock().insert(handle, Arc::new(file));
        FuseReply::opened(handle, fuse_protocol::DIRECT_IO)
    }

    fn set_attributes(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (valid, _) = (ask.take_u32(), ask.take_u32());
        let (_handle, size, _owner) = (ask.take_u64(), ask.take_u64(), ask.take_u64());
        let (atime, mtime, _ctime) = (ask.take_u64() as i64, ask.take_u64() as i64, ask.take_u64());
        let (atime_nsec, mtime_nsec, _) = (ask.take_u32(), ask.take_u32(), ask.take_u32());
        let (mode, _, uid, gid) = (ask.take_u32(), ask.take_u32(), ask.take_u32(), ask.take_u32());
        let has = |bit: u32| valid & 1 << bit != 0;
        let node = self.node(ask.node)?;
        if has(5) {
            self.rules.apply_rules(FsCall::SetMtime, &node.name)?;
        }
        if has(3) {
            let file = OpenOptions::new().write(true).open(node.path());
            file.and_then(|file| file.set_len(size)).map_err(to_errno)?;
        }
        if has(1) || has(2) {
            let (uid, gid) =
                (has(1).then(|| Uid::from_raw(uid)), has(2).then(|| Gid::from_raw(gid)));
            rustix::fs::chownat(&node.file, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(0) {
            let mode = fs::Permissions::from_mode(mode & 0o7777);
            fs::set_permissions(node.path(), mode).map_err(to_errno)?;
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
        let meta = node.file.metadata().map_err(to_errno)?;
        Ok(FuseReply::attributes(self.node_id(&meta), &meta))
    }

    fn read(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (handle, at, size) = (ask.take_u64(), ask.take_u64(), ask.take_u32());
        let short = self.apply_rules_to_node(FsCall::Read, ask.node)?;
        let size = if short { (size / 2).max(1) } else { size };
        let (file, mut bytes, mut n) = (self.file(handle)?, vec![0; size as usize], 0);
        while n < bytes.len() {
            match file.read_at(&mut bytes[n..], at + n as u64).map_err(to_errno)? {
                0 => break,
                some => n += some,
            }
        }
        bytes.truncate(n);
        Ok(bytes)
    }

    fn write(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (handle, at, size) = (ask.take_u64(), ask.take_u64(), ask.take_u32() as usize);
        let (_flags, _owner, _open, _) =
            (ask.take_u32(), ask.take_u64(), ask.take_u32(), ask.take_u32());
        let short = self.apply_rules_to_node(FsCall::Write, ask.node)?;
        let data = &ask.remaining()[..if short { size.div_ceil(2) } else { size }];
        self.file(handle)?.write_all_at(data, at).map_err(to_errno)?;
        let mut out = FuseReply::default();
        out.put_u32(data.len() as u32).put_u32(0);
        Ok(out.0)
    }

    fn read_dir(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        let (_handle, from, most) = (ask.take_u64(), ask.take_u64(), ask.take_u32() as usize);
        let path = self.node(ask.node)?.path();
        let listed = fs::read_dir(&path).map_err(to_errno)?.map(|entry| Ok(entry?.file_name()));
        let mut names = listed.collect::<io::Result<Vec<_>>>().map_err(to_errno)?;
        names.sort();
        let mut out = FuseReply::default();
        for (i, name) in names.iter().enumerate().skip(from as usize) {
            let Ok(meta) = fs::symlink_metadata(path.join(name)) else { continue };
            if !out.put_dir_entry(self.node_id(&meta), i as u64 + 1, name, most) {
                break;
            }
        }
        Ok(out.0)
    }

    fn seek(&self, ask: &mut FuseRequest<'_>) -> FuseResult {
        const SEEK_DATA: u32 = 3;
        let (handle, at, whence) = (ask.take_u64(), ask.take_u64(), ask.take_u32());
        let to = if whence == SEEK_DATA { SeekFrom::Data(at) } else { SeekFrom::Hole(at) };
        let mut out = FuseReply::default();
        out.put_u64(rustix::fs::seek(&*self.file(handle)?, to)?);
        Ok(out.0)
    }

    fn statfs(&self) -> FuseResult {
        self.apply_rules_to_node(FsCall::StatFs, 1)?;
        let s = rustix::fs::statvfs(self.node(1)?.path())?;
        let mut out = FuseReply::default();
        out.put_u64(s.f_blocks)
            .put_u64(s.f_bfree)
            .put_u64(s.f_bavail)
            .put_u64(s.f_files)
            .put_u64(s.f_ffree);
        out.put_u32(s.f_bsize as u32).put_u32(255).put_u32(s.f_frsize as u32);
        out.0.resize(80, 0);
        Ok(out.0)
    }
}

fn to_empty_reply(what: io::Result<()>) -> FuseResult {
    what.map(|()| Vec::new()).map_err(to_errno)
}
