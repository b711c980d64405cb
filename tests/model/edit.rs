//! Random edits of a source and of a destination.

use crate::support::tree::{
    SAMPLE_PATHS, chmod, make_dir, make_symlink, random_bytes, sample_path, set_mtime,
};
use crate::sync_options::{self, Compare, SyncChoice, UpdateRule};
use proptest::prelude::*;
use rustix::fs::{XattrFlags, lremovexattr, lsetxattr};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One step. Places are numbers: they pick a path of a small set, so that edits meet.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    /// A file of noise, with zeros and a hole in it where `holes` says so.
    Write {
        side: Side,
        at: usize,
        length: usize,
        seed: u64,
        holes: bool,
    },
    /// Some bytes in the middle of a file.
    Overwrite {
        at: usize,
        seed: u64,
    },
    /// To a part of its length.
    Truncate {
        at: usize,
        share: u8,
    },
    MakeDir {
        side: Side,
        at: usize,
    },
    Symlink {
        side: Side,
        at: usize,
        to: usize,
    },
    Fifo {
        at: usize,
    },
    /// Another name for a file.
    HardLink {
        side: Side,
        from: usize,
        to: usize,
    },
    Remove {
        side: Side,
        at: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Chmod {
        side: Side,
        at: usize,
        mode: u32,
    },
    Chown {
        side: Side,
        at: usize,
        uid: u32,
        gid: u32,
    },
    /// A time of its own; `late`: after all others.
    Touch {
        side: Side,
        at: usize,
        late: bool,
    },
    /// An extended attribute, or none any more.
    Xattr {
        side: Side,
        at: usize,
        value: Option<u8>,
    },
    Sync(SyncChoice),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// A sequence that begins with some content, ends with a sync, and has others between.
pub(crate) fn any_edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = || 0..SAMPLE_PATHS;
    // Mostly the source.
    let side = || prop_oneof![3 => Just(Side::Source), 1 => Just(Side::Destination)];
    // Empty, small, some packs, several ranges.
    let length =
        || prop_oneof![Just(0), 1..300usize, 60_000..70_000usize, 1_000_000..3_500_000usize];
    let write = move || {
        (side(), at(), length(), any::<u64>(), prop::bool::weighted(0.2)).prop_map(
            |(side, at, length, seed, holes)| Edit::Write { side, at, length, seed, holes },
        )
    };
    let modes = vec![0o600, 0o644, 0o640, 0o755, 0o700, 0o4711, 0o2755, 0o1777];
    let mode = prop::sample::select(modes);
    let id = || prop::sample::select(vec![0u32, 1000, 12_345]);
    let edit = prop_oneof![
        8 => write(),
        2 => (at(), any::<u64>()).prop_map(|(at, seed)| Edit::Overwrite { at, seed }),
        1 => (at(), any::<u8>()).prop_map(|(at, share)| Edit::Truncate { at, share }),
        2 => (side(), at()).prop_map(|(side, at)| Edit::MakeDir { side, at }),
        2 => (side(), at(), at()).prop_map(|(side, at, to)| Edit::Symlink { side, at, to }),
        1 => at().prop_map(|at| Edit::Fifo { at }),
        4 => (side(), at(), at()).prop_map(|(side, from, to)| Edit::HardLink { side, from, to }),
        2 => (side(), at()).prop_map(|(side, at)| Edit::Remove { side, at }),
        2 => (at(), at()).prop_map(|(from, to)| Edit::Rename { from, to }),
        2 => (side(), at(), mode).prop_map(|(side, at, mode)| Edit::Chmod { side, at, mode }),
        1 => (side(), at(), id(), id())
            .prop_map(|(side, at, uid, gid)| Edit::Chown { side, at, uid, gid }),
        2 => (side(), at(), any::<bool>()).prop_map(|(side, at, late)| Edit::Touch { side, at, late }),
        2 => (side(), at(), prop::option::weighted(0.7, any::<u8>()))
            .prop_map(|(side, at, value)| Edit::Xattr { side, at, value }),
        6 => sync_options::any_choice().prop_map(Edit::Sync),
    ];
    (
        prop::collection::vec(write(), 1..6),
        prop::collection::vec(edit, 6..30),
        sync_options::any_choice(),
    )
        .prop_map(|(mut first, then, last)| {
            first.extend(then);
            first.push(Edit::Sync(last));
            first
        })
}

/// Edits both sides as users do. Each write gets a time of its own: two files of one length and one
/// time are equal to any tool that goes by these.
pub(crate) struct Editor {
    pub(crate) src: PathBuf,
    pub(crate) dst: PathBuf,
    clock: i64,
    /// Whether the file system keeps `user.*` attributes.
    xattrs: bool,
}

impl Editor {
    pub(crate) fn new(src: PathBuf, dst: PathBuf) -> Editor {
        make_dir(&src);
        make_dir(&dst);
        let xattrs = lsetxattr(&src, "user.try", b"", XattrFlags::empty()).is_ok();
        let _ = lremovexattr(&src, "user.try");
        Editor { src, dst, clock: 0, xattrs }
    }

    fn root(&self, side: Side) -> PathBuf {
        match side {
            Side::Source => self.src.clone(),
            Side::Destination => self.dst.clone(),
        }
    }

    fn set_unique_mtime(&mut self, path: &Path, late: bool) {
        self.clock += 1;
        let from = if late { 4_000_000_000 } else { 1_600_000_000 };
        set_mtime(path, from + self.clock, u32::try_from(self.clock).unwrap());
    }

    /// Removes what is at a path, and what is not a directory above it.
    fn clear_path(&self, root: &Path, path: &Path) {
        remove(path);
        let mut above = root.to_owned();
        for part in path.strip_prefix(root).unwrap().parent().unwrap() {
            above.push(part);
            if fs::symlink_metadata(&above).is_ok_and(|m| !m.is_dir()) {
                remove(&above);
            }
        }
        make_dir(path.parent().unwrap());
    }

    pub(crate) fn apply(&mut self, edit: &Edit) {
        let path = |side: Side, at: usize| self.root(side).join(sample_path(at));
        match *edit {
            Edit::Write { side, at, length, seed, holes } => {
                let path = path(side, at);
                self.clear_path(&self.root(side), &path);
                let mut content = random_bytes(length, seed);
                if holes {
                    content[length / 4..length / 2].fill(0);
                }
                fs::write(&path, content).unwrap();
                if holes {
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.set_len(length as u64 + 300_000).unwrap();
                }
                // Newer or older than what it is compared with.
                self.set_unique_mtime(&path, side == Side::Destination && seed % 2 == 0);
            }
            Edit::Overwrite { at, seed } => {
                if let Some(path) = self.regular_file(at) {
                    let length = fs::metadata(&path).unwrap().len();
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.write_all_at(&random_bytes(50, seed), seed % (length + 1)).unwrap();
                    self.set_unique_mtime(&path, false);
                }
            }
            Edit::Truncate { at, share } => {
                if let Some(path) = self.regular_file(at) {
                    let length = fs::metadata(&path).unwrap().len() * u64::from(share) / 256;
                    fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
                    self.set_unique_mtime(&path, false);
                }
            }
            Edit::MakeDir { side, at } => {
                let path = path(side, at);
                self.clear_path(&self.root(side), &path);
                make_dir(path);
            }
            Edit::Symlink { side, at, to } => {
                let path = path(side, at);
                self.clear_path(&self.root(side), &path);
                make_symlink(&path, sample_path(to));
                self.set_unique_mtime(&path, false);
            }
            Edit::Fifo { at } => {
                let path = path(Side::Source, at);
                self.clear_path(&self.src, &path);
                let cwd = rustix::fs::CWD;
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(cwd, &path, kind, 0o644.into(), 0).unwrap();
                self.set_unique_mtime(&path, false);
            }
            Edit::HardLink { side, from, to } => {
                let (from, to) = (path(side, from), path(side, to));
                let is_file = fs::symlink_metadata(&from).is_ok_and(|m| !m.is_dir());
                if is_file && !from.starts_with(&to) && !to.starts_with(&from) {
                    self.clear_path(&self.root(side), &to);
                    // What was cleared may have held it.
                    let _ = fs::hard_link(&from, &to);
                }
            }
            Edit::Remove { side, at } => remove(&path(side, at)),
            Edit::Rename { from, to } => {
                let (from, to) = (path(Side::Source, from), path(Side::Source, to));
                let inside = from.starts_with(&to) || to.starts_with(&from);
                if fs::symlink_metadata(&from).is_ok() && !inside {
                    self.clear_path(&self.src, &to);
                    let _ = fs::rename(&from, &to);
                }
            }
            Edit::Chmod { side, at, mode } => {
                let path = path(side, at);
                if let Ok(meta) = fs::symlink_metadata(&path)
                    && !meta.is_symlink()
                {
                    chmod(path, mode | if meta.is_dir() { 0o700 } else { 0 });
                }
            }
            Edit::Chown { side, at, uid, gid } => {
                let path = path(side, at);
                if crate::support::process::is_root() && fs::symlink_metadata(&path).is_ok() {
                    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
                }
            }
            Edit::Touch { side, at, late } => {
                let path = path(side, at);
                if fs::symlink_metadata(&path).is_ok() {
                    self.set_unique_mtime(&path, late);
                }
            }
            Edit::Xattr { side, at, value } => {
                let path = path(side, at);
                let holds = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() || m.is_dir());
                match value {
                    Some(value) if holds && self.xattrs => {
                        let value = vec![value; usize::from(value)];
                        lsetxattr(path, "user.model", &value, XattrFlags::empty()).unwrap();
                    }
                    _ => drop(lremovexattr(path, "user.model")),
                }
            }
            Edit::Sync(_) => unreachable!("done by the caller"),
        }
    }

    /// The path if there is a plain file at the source.
    fn regular_file(&self, at: usize) -> Option<PathBuf> {
        let path = self.src.join(sample_path(at));
        fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()).then_some(path)
    }

    /// Takes from the destination what a sync has no plain rule for: a directory where the source has
    /// none (it is never replaced while it holds something), and, where existing files are treated
    /// apart, what is of another type, or no regular file but older or newer.
    pub(crate) fn remove_unspecified_cases(&self, choice: &SyncChoice) {
        for entry in walkdir::WalkDir::new(&self.src).min_depth(1) {
            let entry = entry.unwrap();
            let there = self.dst.join(entry.path().strip_prefix(&self.src).unwrap());
            let (here, Ok(old)) = (entry.metadata().unwrap(), fs::symlink_metadata(&there)) else {
                continue;
            };
            let same_type = here.mode() & 0o170_000 == old.mode() & 0o170_000;
            let directory_in_the_way = old.is_dir() && !here.is_dir();
            let apart = choice.update_rule != UpdateRule::All && !same_type;
            let odd = choice.update_rule == UpdateRule::Update && !old.is_file() && !old.is_dir();
            // By size alone files with other names could keep several contents.
            let names = choice.compare == Compare::Size && old.is_file() && old.nlink() > 1;
            if directory_in_the_way || apart || odd || names {
                remove(&there);
            }
        }
    }
}

pub(crate) fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
