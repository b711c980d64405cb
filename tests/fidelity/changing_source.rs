//! A source that changes while it is copied. The destination agent stands still while the source is
//! changed: listed it is by then, sent it can't be.

use crate::support::MAX_WAIT;
use crate::support::cluster::{Cluster, StoreKind};
use crate::support::tree::{
    make_dir, part_files, random_bytes, set_mtime, write_file, write_many_files,
};
use crate::{MIB, assert_full_outcome};
use longhaul::wire::outcome::ErrorClass;
use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// A sync of which everything is listed and nothing has arrived; the destination stands still.
fn listed_with_frozen_destination(src_of: impl Fn(&Path)) -> (Cluster, PathBuf, PathBuf, String) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    src_of(&src);
    cluster.agents.get_mut("b").unwrap().process.freeze();
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    cluster.await_progress(&id, "has listed everything", |s| s.scan_done);
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 0, "nothing has arrived");
    (cluster, src, dst, id)
}

fn resume_and_await_end(cluster: &Cluster, id: &str) -> SyncProgress {
    cluster.agents["b"].process.thaw();
    cluster.await_end(id)
}

#[test]
fn vanished_files_are_named_and_have_their_own_exit_code() {
    let (cluster, src, dst, id) = listed_with_frozen_destination(|src| {
        write_many_files(src, 30, 2_000);
        write_file(src.join("large"), random_bytes(4 * MIB, 1));
    });
    for gone in ["000/00003", "000/00017", "large"] {
        fs::remove_file(src.join(gone)).unwrap();
    }
    let sync = resume_and_await_end(&cluster, &id);
    assert_eq!(sync.outcome, Some(SyncOutcome::VanishedOnly), "{sync:#?}");
    assert_eq!((sync.files_done, sync.files_failed), (28, 3), "{sync:#?}");
    assert!(sync.errors.iter().all(|e| e.class == ErrorClass::Vanished), "{:#?}", sync.errors);
    assert_eq!(cluster.ctl(["sync", "wait", &id]).run().code, Some(24));
    assert!(!dst.join("large").exists() && part_files(&dst).is_empty());
    assert_eq!(crate::paths_of(&dst).len(), 29, "28 files and their folder");
}

#[test]
fn replaced_and_grown_files_arrive_in_their_current_version_or_are_reported_as_changed() {
    let (cluster, src, dst, id) = listed_with_frozen_destination(|src| {
        write_many_files(src, 30, 2_000);
        write_file(src.join("large"), random_bytes(4 * MIB, 1));
    });
    let changed: [(&str, Vec<u8>); 3] = [
        ("000/00003", random_bytes(2_000, 99)),
        ("000/00017", random_bytes(5_000, 98)),
        ("large", random_bytes(5 * MIB, 97)),
    ];
    for (name, content) in &changed {
        let next = write_file(src.join("next"), content);
        set_mtime(&next, 1_700_000_000, 1);
        fs::rename(next, src.join(name)).unwrap();
    }
    let sync = resume_and_await_end(&cluster, &id);
    let failed: Vec<String> =
        sync.errors.iter().map(|e| String::from_utf8_lossy(&e.path.0).into_owned()).collect();
    for (name, content) in &changed {
        let there = fs::read(dst.join(name));
        if failed.iter().any(|path| path == name) {
            assert!(there.is_err(), "{name} was given up, and yet there is something");
        } else {
            assert!(there.unwrap() == *content, "{name} is neither version");
        }
    }
    assert_eq!(sync.files_done, 31 - failed.len() as u64, "{sync:#?}");
    if !failed.is_empty() {
        assert!(sync.errors.iter().all(|e| e.class == ErrorClass::Changed), "{:#?}", sync.errors);
        assert_eq!(sync.outcome, Some(SyncOutcome::VanishedOnly), "{sync:#?}");
        assert_eq!(cluster.ctl(["sync", "wait", &id]).run().code, Some(24));
    }
    assert!(part_files(&dst).is_empty());
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    for (name, content) in &changed {
        assert!(fs::read(dst.join(name)).unwrap() == *content, "{name}");
    }
}

#[test]
fn a_file_overwritten_in_place_arrives_as_one_version_or_not_at_all() {
    // Its time kept or not; one agent with both paths, or two.
    for (keeps_time, local) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
        if local {
            cluster.add_agent("a", &[&src, &dst]);
        } else {
            cluster.add_agent("a", &[&src]);
            cluster.add_agent("b", &[&dst]);
        }
        let versions = [random_bytes(32 * MIB, 1), random_bytes(32 * MIB, 2)];
        let path = write_file(src.join("large"), &versions[0]);
        let more = json!({"chunk_size_mb": 1, "bwlimit": "4MiB/s"});
        let id = cluster.submit_with(&src, &dst, more);
        cluster.await_progress(&id, "has some ranges", |s| s.transferred_bytes > 4 << 20);
        let source = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let before = source.metadata().unwrap().modified().unwrap();
        source.write_all_at(&versions[1], 0).unwrap();
        source.set_modified(if keeps_time { before } else { before + MAX_WAIT }).unwrap();
        cluster.lift_bandwidth_limit(&id);
        let sync = cluster.await_end(&id);
        let what = format!("keeps its time {keeps_time}, local {local}: {sync:#?}");
        match fs::read(dst.join("large")) {
            Ok(there) => {
                assert_eq!(sync.outcome, Some(SyncOutcome::Full), "{what}");
                assert!(versions.contains(&there), "some of each version: {what}");
            }
            Err(_) => {
                let classes: Vec<_> = sync.errors.iter().map(|e| e.class).collect();
                assert_eq!(classes, [ErrorClass::Changed], "{what}");
            }
        }
        assert!(part_files(&dst).is_empty(), "{what}");
    }
}

#[test]
fn a_destination_file_is_kept_when_its_source_vanishes_before_the_update() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    set_mtime(write_file(src.join("file"), "old"), 1_600_000_000, 0);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    set_mtime(write_file(src.join("file"), "new"), 1_700_000_000, 0);
    cluster.agents.get_mut("b").unwrap().process.freeze();
    let waiting = cluster.ctl(["sync", "submit", "--wait", "--id", "vanishing", "--delete"]);
    let waiting = waiting.arg(&src).arg(&dst).start();
    crate::support::await_true("it is listed", || {
        let answer = cluster.master.get("/sync/vanishing");
        answer.status == 200 && answer.json()["scan_done"] == true
    });
    fs::remove_file(src.join("file")).unwrap();
    cluster.agents["b"].process.thaw();
    waiting.finish(MAX_WAIT).assert_exit_code(24);
    assert_eq!(fs::read(dst.join("file")).unwrap(), b"old", "nothing is deleted after an error");
}

#[test]
fn files_that_grow_without_end_fail_by_name_and_the_sync_ends() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 30, 2_000);
    let growing = [
        write_file(src.join("large"), random_bytes(6 * MIB, 1)),
        write_file(src.join("log"), "begun\n"),
    ];
    let stop = AtomicBool::new(false);
    let sync = std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            let open = |path| fs::OpenOptions::new().append(true).open(path).unwrap();
            let mut files = growing.each_ref().map(open);
            while !stop.load(Ordering::Relaxed) {
                files.iter_mut().for_each(|file| file.write_all(b"one line more\n").unwrap());
                std::thread::sleep(std::time::Duration::from_micros(500));
            }
        });
        let submitted = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        let ended = std::panic::catch_unwind(|| cluster.await_end(&submitted));
        stop.store(true, Ordering::Relaxed);
        appending.join().unwrap();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert_eq!(sync.state, SyncState::Failed, "{sync:#?}");
    assert_eq!(sync.files_done + sync.files_failed, 32, "{sync:#?}");
    let named: Vec<&[u8]> = sync.errors.iter().map(|e| &e.path.0[..]).collect();
    assert!(named.contains(&&b"large"[..]), "{sync:#?}");
    assert!(sync.errors.iter().all(|e| e.class == ErrorClass::Changed), "{:#?}", sync.errors);
    // A file that arrived all the same is one version of it.
    for path in &growing {
        let name = path.file_name().unwrap();
        let there = fs::read(dst.join(name)).unwrap_or_default();
        assert!(fs::read(path).unwrap().starts_with(&there), "{name:?} is no version of it");
        let given_up = named.contains(&name.as_encoded_bytes());
        assert_eq!(there.is_empty(), given_up, "{name:?}");
    }
    assert!(part_files(&dst).is_empty());
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
}
