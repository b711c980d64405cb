//! Whatever is done to a source between syncs, the destination holds it afterwards: random edits and
//! syncs, through real processes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncState;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use support::cluster::{Cluster, On};
use support::tree::{Compare, PLACES, assert_same, chmod, dir, link, noise, place, strict, touch};

/// One edit of the source. Places are numbers: they pick a path of a small set, so that edits meet.
#[derive(Debug, Clone)]
enum Edit {
    Write {
        at: usize,
        length: usize,
        seed: u64,
    },
    Truncate {
        at: usize,
        share: u8,
    },
    Append {
        at: usize,
        seed: u64,
    },
    MakeDir {
        at: usize,
    },
    Link {
        at: usize,
        to: usize,
    },
    Remove {
        at: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Chmod {
        at: usize,
        mode: u32,
    },
    Touch {
        at: usize,
    },
    /// Somebody damages the destination.
    Damage {
        at: usize,
    },
    Sync,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = || 0..PLACES;
    // Empty, small, some packs, several ranges.
    let length = prop_oneof![Just(0), 1..300usize, 60_000..70_000usize, 1_000_000..3_500_000usize];
    let edit = prop_oneof![
        6 => (at(), length, any::<u64>()).prop_map(|(at, length, seed)| Edit::Write { at, length, seed }),
        1 => (at(), any::<u8>()).prop_map(|(at, share)| Edit::Truncate { at, share }),
        1 => (at(), any::<u64>()).prop_map(|(at, seed)| Edit::Append { at, seed }),
        2 => at().prop_map(|at| Edit::MakeDir { at }),
        2 => (at(), at()).prop_map(|(at, to)| Edit::Link { at, to }),
        2 => at().prop_map(|at| Edit::Remove { at }),
        2 => (at(), at()).prop_map(|(from, to)| Edit::Rename { from, to }),
        2 => (at(), prop::sample::select(vec![0o600, 0o644, 0o640, 0o755, 0o700]))
            .prop_map(|(at, mode)| Edit::Chmod { at, mode }),
        1 => at().prop_map(|at| Edit::Touch { at }),
        1 => at().prop_map(|at| Edit::Damage { at }),
        3 => Just(Edit::Sync),
    ];
    prop::collection::vec(edit, 8..40)
}

/// Edits a source as people do. Each write gets a time of its own: two files of one length and one
/// time are equal to any tool that goes by these.
struct Editor {
    src: PathBuf,
    dst: PathBuf,
    clock: i64,
}

impl Editor {
    fn stamp(&mut self, path: &Path) {
        self.clock += 1;
        touch(path, 1_600_000_000 + self.clock, u32::try_from(self.clock).unwrap());
    }

    /// Makes room at a path: what is there goes, what stands in the way above goes.
    fn clear(&self, path: &Path) {
        remove(path);
        let mut above = self.src.clone();
        for part in path.strip_prefix(&self.src).unwrap().parent().unwrap() {
            above.push(part);
            if fs::symlink_metadata(&above).is_ok_and(|m| !m.is_dir()) {
                remove(&above);
            }
        }
        dir(path.parent().unwrap());
    }

    /// The path if there is a plain file.
    fn plain(&self, at: usize) -> Option<PathBuf> {
        let path = self.src.join(place(at));
        fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()).then_some(path)
    }

    fn apply(&mut self, edit: &Edit) {
        let src = self.src.clone();
        let path = |at: usize| src.join(place(at));
        match *edit {
            Edit::Write { at, length, seed } => {
                self.clear(&path(at));
                fs::write(path(at), noise(length, seed)).unwrap();
                self.stamp(&path(at));
            }
            Edit::Truncate { at, share } => {
                if let Some(path) = self.plain(at) {
                    let length = fs::metadata(&path).unwrap().len() * u64::from(share) / 256;
                    fs::OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .unwrap()
                        .set_len(length)
                        .unwrap();
                    self.stamp(&path);
                }
            }
            Edit::Append { at, seed } => {
                if let Some(path) = self.plain(at) {
                    let mut content = fs::read(&path).unwrap();
                    content.extend(noise(1_000, seed));
                    fs::write(&path, content).unwrap();
                    self.stamp(&path);
                }
            }
            Edit::MakeDir { at } => {
                self.clear(&path(at));
                dir(path(at));
            }
            Edit::Link { at, to } => {
                self.clear(&path(at));
                link(path(at), place(to));
            }
            Edit::Remove { at } => remove(&path(at)),
            Edit::Rename { from, to } => {
                let (from, to) = (path(from), path(to));
                let inside = from.starts_with(&to) || to.starts_with(&from);
                if fs::symlink_metadata(&from).is_ok() && !inside {
                    self.clear(&to);
                    // What was cleared may have held it.
                    let _ = fs::rename(&from, &to);
                }
            }
            Edit::Chmod { at, mode } => {
                let meta = fs::symlink_metadata(path(at));
                if meta.as_ref().is_ok_and(|m| !m.is_symlink()) {
                    let reach = if meta.unwrap().is_dir() { 0o700 } else { 0 };
                    chmod(path(at), mode | reach);
                }
            }
            Edit::Touch { at } => {
                if fs::symlink_metadata(path(at)).is_ok() {
                    self.stamp(&path(at));
                }
            }
            Edit::Damage { at } => {
                let there = self.dst.join(place(at));
                if fs::symlink_metadata(&there).is_ok_and(|m| m.is_file()) {
                    fs::write(&there, "damaged").unwrap();
                    self.stamp(&there);
                } else {
                    remove(&there);
                }
            }
            Edit::Sync => unreachable!("done by the caller"),
        }
    }

    /// A directory that holds something is never replaced by a file: people must empty it first.
    fn make_way(&self) {
        for entry in walkdir::WalkDir::new(&self.src).min_depth(1) {
            let entry = entry.unwrap();
            let there = self.dst.join(entry.path().strip_prefix(&self.src).unwrap());
            if !entry.file_type().is_dir() && fs::symlink_metadata(&there).is_ok_and(|m| m.is_dir())
            {
                fs::remove_dir_all(&there).unwrap();
                dir(&there);
            }
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn run(cluster: &Cluster, case: u32, edits: &[Edit]) {
    let src = dir(cluster.path(&format!("src/{case}")));
    let dst = cluster.path(&format!("dst/{case}"));
    let mut editor = Editor { src: src.clone(), dst: dst.clone(), clock: 0 };
    let sync = |editor: &Editor| {
        editor.make_way();
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        let sync = cluster.ended(&id);
        assert_eq!(sync.state, SyncState::Completed, "{sync:#?}");
        assert_eq!(sync.files_done + sync.files_skipped, sync.files_total, "{sync:#?}");
        assert_same(&src, &dst, Compare { extra: true, ..strict() });
    };
    for edit in edits {
        match edit {
            Edit::Sync => sync(&editor),
            other => editor.apply(other),
        }
    }
    sync(&editor);
    // Kept apart from each other, and the disk empty.
    fs::remove_dir_all(src).unwrap();
    fs::remove_dir_all(dst).unwrap();
}

#[test]
fn random_edits_and_syncs_end_with_the_destination_holding_the_source() {
    let mut cluster = Cluster::start(On::Embedded);
    cluster.pair();
    let dst = cluster.path("dst");
    cluster.agent("b2", &[&dst]);
    // More on demand: PROPTEST_CASES=500 cargo test --test property
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let cases = asked.unwrap_or(24);
    let config =
        Config { cases, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let numbers = AtomicU32::new(0);
    TestRunner::new(config)
        .run(&edits(), |edits| {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            run(&cluster, number, &edits);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
