//! Of a large file that is there in part, or as an older version, only what differs is sent.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::tools::{assert_trees_identical, rsync_differences};
use crate::support::tree::{self, part_files, random_bytes, set_mtime, write_file};
use crate::support::{MAX_WAIT, await_true};
use crate::{MIB, assert_full_outcome};
use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file of 24 MiB and some, that has arrived.
fn copied_large_file() -> (Cluster, PathBuf, PathBuf, u64) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    let size = 24 * MIB + 777;
    set_mtime(write_file(src.join("large"), random_bytes(size, 1)), 1_600_000_000, 1);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    (cluster, src, dst, size as u64)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    set_mtime(path, 1_700_000_000, 2);
}

/// How much part files hold.
fn part_file_bytes(dst: &Path) -> u64 {
    let parts = part_files(dst).into_iter();
    parts.map(|part| tree::written_bytes(&part)).sum()
}

#[track_caller]
fn assert_sent(sync: &SyncProgress, at_most: usize, size: u64) {
    assert_full_outcome(sync);
    assert!(sync.sent_bytes <= at_most as u64, "sent {} of {size}: {sync:#?}", sync.sent_bytes);
    assert_eq!(sync.kept_bytes + sync.sent_bytes, size, "sent or kept: {sync:#?}");
    assert_eq!(sync.transferred_bytes, size, "kept bytes are brought over too: {sync:#?}");
}

#[test]
fn only_blocks_changed_in_place_are_sent() {
    let (cluster, src, dst, size) = copied_large_file();
    overwrite(&src.join("large"), 5 * MIB as u64, &random_bytes(MIB, 2));
    overwrite(&src.join("large"), 13 * MIB as u64 + 100, b"a few bytes");
    overwrite(&src.join("large"), size - 1, b"!");
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_sent(&sync, MIB + 2 * (MIB / 4), size);
    assert!(sync.sent_bytes >= MIB as u64, "{sync:#?}");
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_grown_or_truncated_file_is_sent_partially() {
    let (cluster, src, dst, size) = copied_large_file();
    let large = src.join("large");
    let grown = random_bytes(size as usize + 3 * MIB, 1);
    set_mtime(write_file(&large, &grown), 1_700_000_000, 1);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_sent(&sync, 3 * MIB + MIB / 4, grown.len() as u64);
    assert_trees_identical(&src, &dst);
    let shrunk = &grown[..7 * MIB + 9];
    set_mtime(write_file(&large, shrunk), 1_700_000_001, 1);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_sent(&sync, MIB / 4, shrunk.len() as u64);
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_file_can_be_sent_whole() {
    let (cluster, src, dst, size) = copied_large_file();
    overwrite(&src.join("large"), 5, b"changed");
    let sync = cluster.run_sync_with(&src, &dst, json!({"whole_file": true}));
    assert_full_outcome(&sync);
    assert_eq!((sync.sent_bytes, sync.kept_bytes), (size, 0), "{sync:#?}");
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_changed_file_has_the_holes_and_zeros_of_the_source() {
    let (cluster, src, dst, _) = copied_large_file();
    // Data where a hole is to be, and a hole where data are to be.
    let large = src.join("large");
    fs::remove_file(&large).unwrap();
    let sparse = fs::File::create(&large).unwrap();
    sparse.set_len(24 * MIB as u64).unwrap();
    sparse.write_all_at(&random_bytes(MIB, 1), 0).unwrap();
    sparse.write_all_at(&random_bytes(MIB, 3), 20 * MIB as u64 + 1).unwrap();
    set_mtime(&large, 1_700_000_000, 3);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert!(sync.sent_bytes < 3 * MIB as u64, "{sync:#?}");
    assert_trees_identical(&src, &dst);
    assert!(fs::metadata(dst.join("large")).unwrap().blocks() * 512 < 3 * MIB as u64);
}

#[test]
fn content_in_the_part_file_of_a_killed_run_is_not_sent_again() {
    const LARGE: usize = 192 * MIB;
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(LARGE, 1));
    // Two ranges, so that neither is done when they are killed: nothing was counted of them.
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 128}));
    await_true("a third is there", || part_file_bytes(&dst) >= LARGE as u64 / 3);
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    let held = part_file_bytes(&dst);
    assert!(!dst.join("large").exists(), "it was over before it could be killed: use more data");
    let before = cluster.progress(&id).transferred_bytes;
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    let sync = cluster.await_end(&id);
    assert_full_outcome(&sync);
    assert!(
        sync.kept_bytes + before + 4 * MIB as u64 >= held,
        "of {held} bytes that were there {} were kept, {before} were done: {sync:#?}",
        sync.kept_bytes
    );
    assert_eq!(rsync_differences(&src, &dst), "");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn the_next_copy_uses_the_part_file_of_a_killed_one() {
    const LARGE: usize = 192 * MIB;
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(LARGE, 1));
    let copy = || {
        let copy = cluster.ctl(["copy", "-o", "json", "--chunk-size-mb", "64"]);
        copy.arg(&src).arg(&dst)
    };
    let mut first = copy().start();
    first.await_stderr("half is there", |_| part_file_bytes(&dst) >= LARGE as u64 / 2);
    first.signal(rustix::process::Signal::KILL);
    assert_eq!(first.finish(MAX_WAIT).code, None);
    assert!(!dst.join("large").exists(), "it was over before it could be killed: use more data");
    let second = copy().run().assert_exit_code(0).json();
    let sent = second["sent_bytes"].as_u64().unwrap();
    assert!(sent < LARGE as u64 * 6 / 10, "sent {sent} of {LARGE}: {second:#}");
    tree::assert_same(&src, &dst, tree::exact_comparison());
    assert!(part_files(&dst).is_empty());
}

#[test]
fn a_sync_uses_the_part_file_of_another_sync_of_the_same_file() {
    const LARGE: usize = 96 * MIB;
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(LARGE, 1));
    let more = json!({"chunk_size_mb": 4, "options": {"allow_overlap": true}});
    let submit = || cluster.submit_with(&src, &dst, more.clone());
    let first = submit();
    cluster.await_progress(&first, "has some", |s| s.transferred_bytes >= LARGE as u64 / 3);
    let second = submit();
    // Both end well, whichever of them publishes the file.
    let (first, second) = (cluster.await_end(&first), cluster.await_end(&second));
    assert_full_outcome(&first);
    assert_full_outcome(&second);
    assert_eq!(rsync_differences(&src, &dst), "");
    assert!(part_files(&dst).is_empty(), "{first:#?} {second:#?}");
}

#[test]
fn a_cancelled_sync_removes_nothing_of_another_sync_of_the_same_file() {
    const LARGE: usize = 96 * MIB;
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(LARGE, 1));
    let more = json!({"chunk_size_mb": 4, "options": {"allow_overlap": true}});
    let submit = || cluster.submit_with(&src, &dst, more.clone());
    let first = submit();
    cluster.await_progress(&first, "has some", |s| s.transferred_bytes >= LARGE as u64 / 4);
    let second = submit();
    cluster.await_progress(&second, "has begun", |s| s.transferred_bytes > 0 || s.state.is_final());
    cluster.ctl(["sync", "cancel", &first]).run();
    assert_full_outcome(&cluster.await_end(&second));
    assert_eq!(rsync_differences(&src, &dst), "");
    await_true("no part file is left", || part_files(&dst).is_empty());
}
