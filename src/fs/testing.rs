//! Shared helpers of the tests: trees in temporary directories, a copy made of the module's own parts, and
//! independent checks of the result.

use super::{
    DeletionBudget, Filter, OfferDecision, PruneOutcome, PruneRequest, RootDir, SourceFile, Target,
    TargetOptions, Tree,
};
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::options::{FilterSpec, WriteRules};
use crate::wire::outcome::EntryError;
use crate::wire::preserve::Preserve;
use crate::wire::{AbsPath, RelPath, SyncNo};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A storage root with `src`, `dst` and `canary` (which nothing may touch).
pub(super) struct TestSite {
    pub(super) dir: tempfile::TempDir,
    pub(super) root: Arc<RootDir>,
}

impl TestSite {
    pub(super) fn new() -> TestSite {
        let dir = tempfile::tempdir().unwrap();
        for name in ["src", "canary"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("canary/file"), "alive").unwrap();
        let root =
            RootDir::open(&AbsPath::new(dir.path().as_os_str().as_bytes()).unwrap()).unwrap();
        TestSite { dir, root }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn tree(&self, base: &str) -> Tree {
        Tree::new(self.root.clone(), rel(base))
    }

    pub(super) fn source(&self) -> Tree {
        self.tree("src").preserving(Preserve::all())
    }

    pub(super) fn target(&self) -> Target {
        self.target_with_rules(WriteRules::default())
    }

    pub(super) fn target_with_rules(&self, rules: WriteRules) -> Target {
        let deletion = Some(DeletionBudget::new(Default::default(), u64::MAX));
        let options =
            TargetOptions { deletion_budget: deletion, ..TargetOptions::for_this_process(rules) };
        Target::new(self.tree("dst"), SyncNo(7), options)
    }

    pub(super) fn write_file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(super) fn assert_canary_unchanged(&self) {
        let canary = self.path("canary");
        let names: Vec<_> =
            fs::read_dir(&canary).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(fs::read(canary.join("file")).unwrap(), b"alive");
    }

    /// Runs `test` as a user other than root that owns everything here.
    pub(super) fn run_with_all_owned_by_nobody(&self, test: impl FnOnce() + Send) {
        if !rustix::process::geteuid().is_root() {
            return test();
        }
        self.chown_all_to_nobody();
        self.run_as_nobody(test);
    }

    pub(super) fn chown_all_to_nobody(&self) {
        for entry in walkdir::WalkDir::new(self.dir.path()) {
            std::os::unix::fs::lchown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
        }
    }

    /// Runs `test` as a user other than root, in a process of root.
    pub(super) fn run_as_nobody(&self, test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let (user, group) =
                    (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(65534));
                // Of this thread only.
                rustix::thread::set_thread_res_gid(group, group, group).unwrap();
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                test();
            });
            thread.join().unwrap();
        });
    }
}

pub(super) fn rel(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::new(path).unwrap()
}

pub(super) fn os_str(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// The whole directory `dir`, of which the source has `names`.
pub(super) fn prune_page(dir: &str, names: &[&str]) -> PruneRequest {
    PruneRequest {
        dir: rel(dir),
        after: None,
        through: None,
        names: names.iter().map(|name| name.as_bytes().to_vec().into()).collect(),
        replacing_dirs: Vec::new(),
        filter: FilterSpec::default(),
        delete_excluded: false,
        apply: true,
        dirs: Vec::new(),
        resume: None,
    }
}

impl Target {
    /// Prunes `page` for the sync `req`.
    pub(super) fn prune_page(&self, page: &PruneRequest) -> super::Result<PruneOutcome> {
        self.prune(page, &Filter::new(&page.filter).unwrap(), &"req".parse().unwrap())
    }

    /// The same at the time `now`, with at most so many steps.
    pub(super) fn prune_page_at(
        &self,
        page: &PruneRequest,
        now: Duration,
        steps: usize,
    ) -> super::Result<PruneOutcome> {
        let (filter, request_id) = (Filter::new(&page.filter).unwrap(), "req".parse().unwrap());
        self.prune_at(page, &filter, &request_id, now, steps)
    }
}

/// Everything below a tree as one batch.
pub(super) fn full_manifest(tree: &Tree) -> Manifest {
    let mut dirs: BTreeMap<RelPath, ManifestDir> = BTreeMap::new();
    let mut entries = Vec::new();
    let mut walk = tree.walk(&RelPath::root(), None).unwrap();
    while let Some(entry) = walk.next() {
        entries.push(entry.unwrap());
        for dir in walk.dirs().iter().rev() {
            if dirs.insert(dir.path.clone(), dir.clone()).is_some() {
                break;
            }
        }
    }
    Manifest { dirs: dirs.into_values().collect(), entries }
}

/// One entry with the directories above it.
pub(super) fn single_entry_batch(tree: &Tree, path: &str) -> Manifest {
    let path = rel(path);
    Manifest { dirs: tree.parent_dirs(&path).unwrap(), entries: vec![tree.entry(&path).unwrap()] }
}

pub(super) fn read_content(file: &SourceFile) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(file.entry().size()).unwrap() + 1];
    let n = file.read_at(&mut content, 0).unwrap();
    content.truncate(n);
    file.verify_unchanged().unwrap();
    content
}

pub(super) fn send_file(source: &Tree, target: &Target, entry: &Entry) -> super::Result<()> {
    let file = source.open_source(entry)?;
    let mut new = target.create(entry, 1)?;
    new.write(&read_content(&file))?;
    new.publish(file.entry())
}

/// The decision about an entry, or its error.
pub(super) type Decision = Result<OfferDecision, EntryError>;

/// Copies a batch as the data plane does; returns the decisions of the comparison.
pub(super) fn copy_batch(source: &Tree, target: &Target, manifest: &Manifest) -> Vec<Decision> {
    let decisions = target.reconcile(manifest).decisions;
    for (entry, verdict) in manifest.entries.iter().zip(&decisions) {
        match verdict {
            Ok(OfferDecision::NeedsContent { .. }) => send_file(source, target, entry).unwrap(),
            Err(_) | Ok(OfferDecision::NeedsDigest) => panic!("{verdict:?}"),
            Ok(OfferDecision::Done(_)) => {}
        }
    }
    assert_eq!(target.apply_dir_metadata(&manifest.dirs), []);
    decisions
}

/// Kind and permissions, size, owner, mtime, rdev; then content or link text.
type ObjectSnapshot = ((u32, u64, u32, u32, i64, i64, u64), Vec<u8>);

/// The content of a directory, and the directory itself, read independently.
pub(super) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, ObjectSnapshot> {
    walkdir::WalkDir::new(dir)
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let facts = (
                meta.mode(),
                size,
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.rdev(),
            );
            let content = if meta.is_symlink() {
                fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec()
            } else if meta.is_file() {
                fs::read(entry.path()).unwrap()
            } else {
                Vec::new()
            };
            (entry.path().strip_prefix(dir).unwrap().to_owned(), (facts, content))
        })
        .collect()
}

/// Sets a modification time, also of a directory.
pub(super) fn set_file_mtime(path: &Path, sec: i64, nsec: i64) {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec },
    };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// The names in a directory, sorted.
pub(super) fn sorted_names(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
    names.sort();
    names
}

/// Creates a chain of directories longer than `PATH_MAX`, with a file at its end; returns the path of the file below
/// `base`.
pub(super) fn create_deep_path(base: &Path, levels: usize) -> RelPath {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = rustix::fs::open(base, flags, Mode::empty()).unwrap();
    let mut path = RelPath::root();
    for i in 0..levels {
        let name = format!("{i:04}{}", "d".repeat(37));
        mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = openat(&at, &name, flags, Mode::empty()).unwrap();
        path = path.child(name.as_bytes()).unwrap();
    }
    let file = openat(&at, "end", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
    path.child(b"end").unwrap()
}

/// An access control list in the kernel's form: owner, `(user, rights)`, group, mask, others.
pub(super) fn acl_bytes(
    owner: u16,
    user: (u32, u16),
    group: u16,
    mask: u16,
    others: u16,
) -> Vec<u8> {
    let none = u32::MAX;
    let all = [
        (0x01, owner, none),
        (0x02, user.1, user.0),
        (0x04, group, none),
        (0x10, mask, none),
        (0x20, others, none),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in all {
        let (tag, rights): (u16, u16) = (tag, rights);
        bytes.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()));
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub(super) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// The attribute of this name, read independently.
pub(super) fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(64 << 10);
    match rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
        Ok(_) => Some(value),
        Err(rustix::io::Errno::NODATA) => None,
        Err(errno) => panic!("{errno}"),
    }
}
