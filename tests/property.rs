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
use support::cluster::{Cluster, StoreKind};
use support::tree::{
    ComparisonRules, SAMPLE_PATHS, assert_same, chmod, exact_comparison, make_dir, make_symlink,
    random_bytes, sample_path, set_mtime,
};

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
    /// Damage at the destination.
    Damage {
        at: usize,
    },
    Sync,
}

fn any_edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = || 0..SAMPLE_PATHS;
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
    fn set_unique_mtime(&mut self, path: &Path) {
        self.clock += 1;
        set_mtime(path, 1_600_000_000 + self.clock, u32::try_from(self.clock).unwrap());
    }

    /// Removes what is at a path, and what is not a directory above it.
    fn clear_path(&self, path: &Path) {
        remove(path);
        let mut above = self.src.clone();
        for part in path.strip_prefix(&self.src).unwrap().parent().unwrap() {
            above.push(part);
            if fs::symlink_metadata(&above).is_ok_and(|m| !m.is_dir()) {
                remove(&above);
            }
        }
        make_dir(path.parent().unwrap());
    }

    /// The path if there is a plain file.
    fn regular_file(&self, at: usize) -> Option<PathBuf> {
        let path = self.src.join(sample_path(at));
        fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()).then_some(path)
    }

    fn apply(&mut self, edit: &Edit) {
        let src = self.src.clone();
        let path = |at: usize| src.join(sample_path(at));
        match *edit {
            Edit::Write { at, length, seed } => {
                self.clear_path(&path(at));
                fs::write(path(at), random_bytes(length, seed)).unwrap();
                self.set_unique_mtime(&path(at));
            }
            Edit::Truncate { at, share } => {
                if let Some(path) = self.regular_file(at) {
                    let length = fs::metadata(&path).unwrap().len() * u64::from(share) / 256;
                    fs::OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .unwrap()
                        .set_len(length)
                        .unwrap();
                    self.set_unique_mtime(&path);
                }
            }
            Edit::Append { at, seed } => {
                if let Some(path) = self.regular_file(at) {
                    let mut content = fs::read(&path).unwrap();
                    content.extend(random_bytes(1_000, seed));
                    fs::write(&path, content).unwrap();
                    self.set_unique_mtime(&path);
                }
            }
            Edit::MakeDir { at } => {
                self.clear_path(&path(at));
                make_dir(path(at));
            }
            Edit::Link { at, to } => {
                self.clear_path(&path(at));
                make_symlink(path(at), sample_path(to));
            }
            Edit::Remove { at } => remove(&path(at)),
            Edit::Rename { from, to } => {
                let (from, to) = (path(from), path(to));
                let inside = from.starts_with(&to) || to.starts_with(&from);
                if fs::symlink_metadata(&from).is_ok() && !inside {
                    self.clear_path(&to);
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
                    self.set_unique_mtime(&path(at));
                }
            }
            Edit::Damage { at } => {
                let there = self.dst.join(sample_path(at));
                if fs::symlink_metadata(&there).is_ok_and(|m| m.is_file()) {
                    fs::write(&there, "damaged").unwrap();
                    self.set_unique_mtime(&there);
                } else {
                    remove(&there);
                }
            }
            Edit::Sync => unreachable!("done by the caller"),
        }
    }

    /// A directory that holds something is never replaced by a file: people must empty it first.
    fn remove_blocking_directories(&self) {
        for entry in walkdir::WalkDir::new(&self.src).min_depth(1) {
            let entry = entry.unwrap();
            let there = self.dst.join(entry.path().strip_prefix(&self.src).unwrap());
            if !entry.file_type().is_dir() && fs::symlink_metadata(&there).is_ok_and(|m| m.is_dir())
            {
                fs::remove_dir_all(&there).unwrap();
                make_dir(&there);
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

fn run_case(cluster: &Cluster, case: u32, edits: &[Edit]) {
    let src = make_dir(cluster.data_path(&format!("src/{case}")));
    let dst = cluster.data_path(&format!("dst/{case}"));
    let mut editor = Editor { src: src.clone(), dst: dst.clone(), clock: 0 };
    let sync = |editor: &Editor| {
        editor.remove_blocking_directories();
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        let sync = cluster.await_end(&id);
        assert_eq!(sync.state, SyncState::Completed, "{sync:#?}");
        assert_eq!(sync.files_done + sync.files_skipped, sync.files_total, "{sync:#?}");
        assert_same(&src, &dst, ComparisonRules { extra: true, ..exact_comparison() });
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
fn after_random_edits_and_syncs_the_destination_equals_the_source() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    cluster.add_source_and_destination();
    let dst = cluster.data_path("dst");
    cluster.add_agent("b2", &[&dst]);
    // More on demand: PROPTEST_CASES=500 cargo test --test property
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let cases = asked.unwrap_or(24);
    let config =
        Config { cases, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let numbers = AtomicU32::new(0);
    TestRunner::new(config)
        .run(&any_edits(), |edits| {
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            run_case(&cluster, number, &edits);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
