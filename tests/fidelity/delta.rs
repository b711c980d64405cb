//! Of a large file that is there in part, or as an older version, only what differs is sent.

use crate::support::cluster::{Cluster, On};
use crate::support::tools::{assert_equal_in_all, rsync_finds};
use crate::support::tree::{self, file, noise, part_files, touch};
use crate::support::{PATIENCE, await_that};
use crate::{MIB, assert_full};
use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file of 24 MiB and some, that has arrived.
fn arrived() -> (Cluster, PathBuf, PathBuf, u64) {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    let size = 24 * MIB + 777;
    touch(file(src.join("large"), noise(size, 1)), 1_600_000_000, 1);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    (cluster, src, dst, size as u64)
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
    touch(path, 1_700_000_000, 2);
}

/// How much part files hold.
fn held(dst: &Path) -> u64 {
    let parts = part_files(dst).into_iter();
    parts.map(|part| tree::written(&part)).sum()
}

#[track_caller]
fn assert_sent(sync: &SyncProgress, at_most: usize, size: u64) {
    assert_full(sync);
    assert!(sync.sent_bytes <= at_most as u64, "sent {} of {size}: {sync:#?}", sync.sent_bytes);
    assert_eq!(sync.kept_bytes + sync.sent_bytes, size, "sent or kept: {sync:#?}");
    assert_eq!(sync.transferred_bytes, size, "kept bytes are brought over too: {sync:#?}");
}

#[test]
fn only_the_blocks_that_changed_in_place_are_sent() {
    let (cluster, src, dst, size) = arrived();
    overwrite(&src.join("large"), 5 * MIB as u64, &noise(MIB, 2));
    overwrite(&src.join("large"), 13 * MIB as u64 + 100, b"a few bytes");
    overwrite(&src.join("large"), size - 1, b"!");
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_sent(&sync, MIB + 2 * (MIB / 4), size);
    assert!(sync.sent_bytes >= MIB as u64, "{sync:#?}");
    assert_equal_in_all(&src, &dst);
}

#[test]
fn a_file_that_grew_or_shrank_is_sent_in_part() {
    let (cluster, src, dst, size) = arrived();
    let large = src.join("large");
    let grown = noise(size as usize + 3 * MIB, 1);
    touch(file(&large, &grown), 1_700_000_000, 1);
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_sent(&sync, 3 * MIB + MIB / 4, grown.len() as u64);
    assert_equal_in_all(&src, &dst);
    let shrunk = &grown[..7 * MIB + 9];
    touch(file(&large, shrunk), 1_700_000_001, 1);
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_sent(&sync, MIB / 4, shrunk.len() as u64);
    assert_equal_in_all(&src, &dst);
}

#[test]
fn a_file_can_be_sent_whole() {
    let (cluster, src, dst, size) = arrived();
    overwrite(&src.join("large"), 5, b"changed");
    let sync = cluster.sync_with(&src, &dst, json!({"whole_file": true}));
    assert_full(&sync);
    assert_eq!((sync.sent_bytes, sync.kept_bytes), (size, 0), "{sync:#?}");
    assert_equal_in_all(&src, &dst);
}

#[test]
fn holes_and_zeros_of_a_changed_file_are_what_the_source_has() {
    let (cluster, src, dst, _) = arrived();
    // Data where a hole is to be, and a hole where data are to be.
    let large = src.join("large");
    fs::remove_file(&large).unwrap();
    let sparse = fs::File::create(&large).unwrap();
    sparse.set_len(24 * MIB as u64).unwrap();
    sparse.write_all_at(&noise(MIB, 1), 0).unwrap();
    sparse.write_all_at(&noise(MIB, 3), 20 * MIB as u64 + 1).unwrap();
    touch(&large, 1_700_000_000, 3);
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&sync);
    assert!(sync.sent_bytes < 3 * MIB as u64, "{sync:#?}");
    assert_equal_in_all(&src, &dst);
    assert!(fs::metadata(dst.join("large")).unwrap().blocks() * 512 < 3 * MIB as u64);
}

#[test]
fn what_the_part_file_of_a_killed_run_holds_is_not_sent_again() {
    const LARGE: usize = 192 * MIB;
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(LARGE, 1));
    // Two ranges, so that neither is done when they are killed: nothing was counted of them.
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 128}));
    await_that("a third is there", || held(&dst) >= LARGE as u64 / 3);
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    let held = held(&dst);
    assert!(!dst.join("large").exists(), "it was over before it could be killed: use more data");
    let before = cluster.progress(&id).transferred_bytes;
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    let sync = cluster.ended(&id);
    assert_full(&sync);
    assert!(
        sync.kept_bytes + before + 4 * MIB as u64 >= held,
        "of {held} bytes that were there {} were kept, {before} were done: {sync:#?}",
        sync.kept_bytes
    );
    assert_eq!(rsync_finds(&src, &dst), "");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn a_copy_that_was_killed_is_used_up_by_the_next_one() {
    const LARGE: usize = 192 * MIB;
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(LARGE, 1));
    let copy = || {
        let copy = cluster.ctl(["copy", "-o", "json", "--chunk-size-mb", "64"]);
        copy.arg(&src).arg(&dst)
    };
    let mut first = copy().start();
    first.await_that("half is there", |_| held(&dst) >= LARGE as u64 / 2);
    first.signal(rustix::process::Signal::KILL);
    assert_eq!(first.finish(PATIENCE).code, None);
    assert!(!dst.join("large").exists(), "it was over before it could be killed: use more data");
    let second = copy().run().exits(0).json();
    let sent = second["sent_bytes"].as_u64().unwrap();
    assert!(sent < LARGE as u64 * 6 / 10, "sent {sent} of {LARGE}: {second:#}");
    tree::assert_same(&src, &dst, tree::strict());
    assert!(part_files(&dst).is_empty());
}

#[test]
fn the_part_file_of_another_sync_of_the_same_file_is_used_up() {
    const LARGE: usize = 96 * MIB;
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(LARGE, 1));
    let more = json!({"chunk_size_mb": 4, "options": {"allow_overlap": true}});
    let submit = || cluster.submit_with(&src, &dst, more.clone());
    let first = submit();
    cluster.await_progress(&first, "has some", |s| s.transferred_bytes >= LARGE as u64 / 3);
    let second = submit();
    // Both end well, whichever of them publishes the file.
    let (first, second) = (cluster.ended(&first), cluster.ended(&second));
    assert_full(&first);
    assert_full(&second);
    assert_eq!(rsync_finds(&src, &dst), "");
    assert!(part_files(&dst).is_empty(), "{first:#?} {second:#?}");
}

#[test]
fn a_sync_that_is_cancelled_takes_nothing_from_another_one_of_the_same_file() {
    const LARGE: usize = 96 * MIB;
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(LARGE, 1));
    let more = json!({"chunk_size_mb": 4, "options": {"allow_overlap": true}});
    let submit = || cluster.submit_with(&src, &dst, more.clone());
    let first = submit();
    cluster.await_progress(&first, "has some", |s| s.transferred_bytes >= LARGE as u64 / 4);
    let second = submit();
    cluster.await_progress(&second, "has begun", |s| s.transferred_bytes > 0 || s.state.is_final());
    cluster.ctl(["sync", "cancel", &first]).run();
    assert_full(&cluster.ended(&second));
    assert_eq!(rsync_finds(&src, &dst), "");
    await_that("no part file is left", || part_files(&dst).is_empty());
}
