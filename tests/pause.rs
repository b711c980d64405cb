//! Syncs that do not go on for a while: paused by an operator or by a full destination, or ended and tried
//! again. What was done stays done, and what follows completes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tools::run_or_panic;
use support::tree::{
    assert_same, census, exact_comparison, random_bytes, write_file, write_many_files,
};
use support::{await_true, tree};

const MIB: usize = 1 << 20;

/// A file system of its own, in memory, of a given size; gone when it is dropped.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: PathBuf, mib: usize) -> SmallFileSystem {
        let at = tree::make_dir(at);
        let size = format!("size={mib}m");
        run_or_panic(
            "mount",
            [
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                size.as_ref(),
                "tmpfs".as_ref(),
                at.as_os_str(),
            ],
        );
        SmallFileSystem(at)
    }

    fn grow(&self, mib: usize) {
        let options = format!("remount,size={mib}m");
        run_or_panic("mount", ["-o".as_ref(), options.as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: agents that still run have it open.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn is_paused(sync: &SyncProgress) -> bool {
    sync.state == SyncState::Paused
}

/// What was written below a directory, in bytes.
fn written_bytes_of_files(dir: &Path) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    files.filter(|f| f.file_type().is_file()).map(|f| tree::written_bytes(f.path())).sum()
}

#[test]
fn completed_work_is_not_repeated_after_a_pause() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for i in 0..8 {
        write_file(src.join(format!("f{i}")), random_bytes(12 * MIB, i));
    }
    write_many_files(&src, 100, 1_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2, "bwlimit": "24MiB/s"}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > 10 * MIB as u64);
    let printed = cluster.ctl(["sync", "pause", &id]).run().assert_exit_code(0);
    assert!(printed.stdout_text().contains("is paused"), "{}", printed.stdout_text());
    let paused =
        cluster.await_progress(&id, "stands still", |s| is_paused(s) && s.detail.is_empty());
    assert!(paused.reason.unwrap().contains("paused by an operator"));
    // Nothing moves any more, whatever restarts.
    let before = written_bytes_of_files(&dst);
    cluster.master.restart();
    cluster.agents.get_mut("a").unwrap().restart();
    await_true("both agents are there", || cluster.master.active_workers().len() == 2);
    let still = cluster.await_progress(&id, "is paused", is_paused);
    assert_eq!(
        (written_bytes_of_files(&dst), still.transferred_bytes),
        (before, paused.transferred_bytes)
    );
    let status = cluster.ctl(["sync", "status", &id]).run().assert_exit_code(0);
    assert!(status.stdout_text().contains("PAUSED"), "{}", status.stdout_text());
    cluster.ctl(["sync", "resume", &id]).run().assert_exit_code(0);
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_eq!(sync.sent_bytes, sync.total_bytes, "nothing was sent twice: {sync:#?}");
    assert_same(&src, &dst, exact_comparison());
    for verb in ["pause", "resume"] {
        let printed = cluster.ctl(["sync", verb, &id]).run();
        assert!(
            printed.code != Some(0) && printed.stderr_text().contains("has ended"),
            "{}",
            printed.stderr_text()
        );
    }
}

#[test]
fn a_full_destination_pauses_a_sync_until_space_is_free() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let src = tree::make_dir(cluster.data_path("src"));
    let small = SmallFileSystem::mount(cluster.data_path("dst"), 16);
    let dst = small.0.clone();
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_file(src.join("large"), random_bytes(20 * MIB, 1));
    for i in 0..6 {
        write_file(src.join(format!("f{i}")), random_bytes(2 * MIB, i));
    }
    write_many_files(&src, 300, 2_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    let paused = cluster.await_progress(&id, "is paused", is_paused);
    let reason = paused.reason.unwrap();
    assert!(reason.contains("No space left") && reason.contains("when there is room"), "{reason}");
    // It does not fail, however often it tries; other destinations are not concerned.
    let other = tree::make_dir(cluster.data_path("other"));
    cluster.add_agent("c", &[&other]);
    assert_complete(&cluster.run_sync(&src, &other), census(&src));
    let still = cluster.progress(&id);
    assert_eq!((still.state, still.files_failed), (SyncState::Paused, 0));
    small.grow(64);
    cluster.ctl(["sync", "resume", &id]).run().assert_exit_code(0);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    assert!(tree::part_files(&dst).is_empty());
}

#[test]
fn a_destination_that_stays_full_fails_the_sync_after_the_time_limit() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "limits: {no_space_timeout: 2s}\n");
    let src = tree::make_dir(cluster.data_path("src"));
    let small = SmallFileSystem::mount(cluster.data_path("dst"), 4);
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&small.0]);
    for i in 0..6 {
        write_file(src.join(format!("f{i}")), random_bytes(2 * MIB, i));
    }
    let sync = cluster.run_sync_with(&src, &small.0, json!({}));
    assert_eq!(sync.state, SyncState::Failed, "{sync:#?}");
    assert_eq!(sync.files_done + sync.files_failed, 6, "{sync:#?}");
    assert!(sync.error_counts.keys().any(|cause| cause.contains("ENOSPC")), "{sync:#?}");
    assert!(tree::part_files(&small.0).is_empty());
    assert!(fs::read_dir(&small.0).unwrap().count() as u64 == sync.files_done);
}

#[test]
fn a_retry_repeats_only_failures_and_restarts_a_cancelled_sync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let src = tree::make_dir(cluster.data_path("src"));
    let dst = tree::make_dir(cluster.data_path("dst"));
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_many_files(&src, 50, 1_000);
    // No file can replace a directory that holds something.
    for name in ["x", "y"] {
        write_file(src.join(name), random_bytes(100, 1));
        write_file(dst.join(name).join("in the way"), random_bytes(10, 2));
    }
    let sync = cluster.run_sync(&src, &dst);
    assert_eq!((sync.state, sync.files_failed), (SyncState::Failed, 2), "{sync:#?}");
    for name in ["x", "y"] {
        fs::remove_dir_all(dst.join(name)).unwrap();
    }
    let retry = ["sync", "retry", sync.request_id.as_str(), "--failed-only", "--quiet"];
    let id = cluster.ctl(retry).run().assert_exit_code(0).stdout_text().trim().to_owned();
    let again = cluster.await_end(&id);
    assert_eq!((again.state, again.files_total, again.files_done), (SyncState::Completed, 2, 2));
    assert_same(&src, &dst, exact_comparison());

    write_file(src.join("large"), random_bytes(24 * MIB, 3));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2, "bwlimit": "8MiB/s"}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > MIB as u64);
    let early = cluster.ctl(["sync", "retry", &id]).run();
    assert!(
        early.code != Some(0) && early.stderr_text().contains("has not ended"),
        "{}",
        early.stderr_text()
    );
    cluster.ctl(["sync", "cancel", &id]).run().assert_exit_code(0);
    let printed =
        cluster.ctl(["sync", "retry", &id, "-o", "json"]).run().assert_exit_code(0).json();
    let id = printed["request_id"].as_str().unwrap().to_owned();
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    let end = cluster.await_end(&id);
    assert_complete(&end, census(&src));
    assert_same(&src, &dst, exact_comparison());
    let done = cluster.ctl(["sync", "retry", &id]).run();
    assert!(
        done.code != Some(0) && done.stderr_text().contains("nothing to try again"),
        "{}",
        done.stderr_text()
    );
}

#[test]
fn a_cancelled_sync_stops_sending_within_two_seconds_and_leaves_no_part_file() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for i in 0..6 {
        write_file(src.join(format!("f{i}")), random_bytes(48 * MIB, i));
    }
    // Heartbeats as far apart as they are by default: a cancel must not wait for them.
    for name in ["master", "a", "b"] {
        let path = cluster.home().join(name).with_extension("yml");
        let config = fs::read_to_string(&path).unwrap();
        let config = config.replace("heartbeat_interval: 300ms", "heartbeat_interval: 5s");
        let config = config.replace("heartbeat_timeout: 3s", "heartbeat_timeout: 15s");
        let mut config = config.replace("lease: 5s", "lease: 15s");
        if name == "a" {
            // A limit of the agent, because one of the master makes heartbeats more frequent.
            config = config.replace("workers:", "bwlimit: 16MiB/s\nworkers:");
        }
        fs::write(&path, config).unwrap();
    }
    cluster.master.restart();
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 64}));
    cluster.await_progress(&id, "has begun", |_| written_bytes_of_files(&dst) > 8 << 20);
    cluster.ctl(["sync", "cancel", &id]).run().assert_exit_code(0);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let then = written_bytes_of_files(&dst);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let now = written_bytes_of_files(&dst);
    assert!(now <= then, "{} KiB came in the third second", (now - then) >> 10);
    await_true("the part files are gone", || tree::part_files(&dst).is_empty());
    assert_eq!(cluster.progress(&id).state, SyncState::Cancelled);
}
