//! Syncs that do not go on for a while: paused by an operator or by a full destination, or ended and tried
//! again. What was done stays done, and what follows completes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, On, assert_complete};
use support::tools::must;
use support::tree::{assert_same, census, file, many, noise, strict};
use support::{await_that, tree};

const MIB: usize = 1 << 20;

/// A file system of its own, in memory, of a given size; gone when it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, mib: usize) -> Small {
        let at = tree::dir(at);
        let size = format!("size={mib}m");
        must(
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
        Small(at)
    }

    fn grow(&self, mib: usize) {
        let options = format!("remount,size={mib}m");
        must("mount", ["-o".as_ref(), options.as_ref(), self.0.as_os_str()]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: agents that still run have it open.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn is_paused(sync: &SyncProgress) -> bool {
    sync.state == SyncState::Paused
}

/// What was written below a directory, in bytes.
fn written(dir: &Path) -> u64 {
    let files = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    files.filter(|f| f.file_type().is_file()).map(|f| tree::written(f.path())).sum()
}

#[test]
fn what_was_done_before_a_pause_is_not_done_again_after_it() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for i in 0..8 {
        file(src.join(format!("f{i}")), noise(12 * MIB, i));
    }
    many(&src, 100, 1_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2, "bwlimit": "24MiB/s"}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > 10 * MIB as u64);
    let said = cluster.ctl(["sync", "pause", &id]).run().exits(0);
    assert!(said.out().contains("is paused"), "{}", said.out());
    let paused =
        cluster.await_progress(&id, "stands still", |s| is_paused(s) && s.detail.is_empty());
    assert!(paused.reason.unwrap().contains("paused by an operator"));
    // Nothing moves any more, whatever restarts.
    let before = written(&dst);
    cluster.master.restart();
    cluster.agents.get_mut("a").unwrap().restart();
    await_that("both agents are there", || cluster.master.active().len() == 2);
    let still = cluster.await_progress(&id, "is paused", is_paused);
    assert_eq!((written(&dst), still.transferred_bytes), (before, paused.transferred_bytes));
    let status = cluster.ctl(["sync", "status", &id]).run().exits(0);
    assert!(status.out().contains("PAUSED"), "{}", status.out());
    cluster.ctl(["sync", "resume", &id]).run().exits(0);
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().exits(0);
    let sync = cluster.ended(&id);
    assert_complete(&sync, census(&src));
    assert_eq!(sync.sent_bytes, sync.total_bytes, "nothing was sent twice: {sync:#?}");
    assert_same(&src, &dst, strict());
    for verb in ["pause", "resume"] {
        let said = cluster.ctl(["sync", verb, &id]).run();
        assert!(said.code != Some(0) && said.err().contains("has ended"), "{}", said.err());
    }
}

#[test]
fn a_full_destination_pauses_a_sync_until_there_is_room() {
    let mut cluster = Cluster::start(On::Embedded);
    let src = tree::dir(cluster.path("src"));
    let small = Small::mount(cluster.path("dst"), 16);
    let dst = small.0.clone();
    cluster.agent("a", &[&src]);
    cluster.agent("b", &[&dst]);
    file(src.join("large"), noise(20 * MIB, 1));
    for i in 0..6 {
        file(src.join(format!("f{i}")), noise(2 * MIB, i));
    }
    many(&src, 300, 2_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    let paused = cluster.await_progress(&id, "is paused", is_paused);
    let reason = paused.reason.unwrap();
    assert!(reason.contains("No space left") && reason.contains("when there is room"), "{reason}");
    // It does not fail, however often it tries; other destinations are not concerned.
    let other = tree::dir(cluster.path("other"));
    cluster.agent("c", &[&other]);
    assert_complete(&cluster.sync(&src, &other), census(&src));
    let still = cluster.progress(&id);
    assert_eq!((still.state, still.files_failed), (SyncState::Paused, 0));
    small.grow(64);
    cluster.ctl(["sync", "resume", &id]).run().exits(0);
    let sync = cluster.ended(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, strict());
    assert!(tree::part_files(&dst).is_empty());
}

#[test]
fn a_destination_that_stays_full_fails_the_sync_when_its_time_is_over() {
    let mut cluster = Cluster::start_with(On::Embedded, "limits: {no_space_timeout: 2s}\n");
    let src = tree::dir(cluster.path("src"));
    let small = Small::mount(cluster.path("dst"), 4);
    cluster.agent("a", &[&src]);
    cluster.agent("b", &[&small.0]);
    for i in 0..6 {
        file(src.join(format!("f{i}")), noise(2 * MIB, i));
    }
    let sync = cluster.sync_with(&src, &small.0, json!({}));
    assert_eq!(sync.state, SyncState::Failed, "{sync:#?}");
    assert_eq!(sync.files_done + sync.files_failed, 6, "{sync:#?}");
    assert!(sync.error_counts.keys().any(|cause| cause.contains("ENOSPC")), "{sync:#?}");
    assert!(tree::part_files(&small.0).is_empty());
    assert!(fs::read_dir(&small.0).unwrap().count() as u64 == sync.files_done);
}

#[test]
fn what_failed_is_tried_again_by_itself_and_a_cancelled_sync_from_the_start() {
    let mut cluster = Cluster::start(On::Embedded);
    let src = tree::dir(cluster.path("src"));
    let dst = tree::dir(cluster.path("dst"));
    cluster.agent("a", &[&src]);
    cluster.agent("b", &[&dst]);
    many(&src, 50, 1_000);
    // No file can replace a directory that holds something.
    for name in ["x", "y"] {
        file(src.join(name), noise(100, 1));
        file(dst.join(name).join("in the way"), noise(10, 2));
    }
    let sync = cluster.sync(&src, &dst);
    assert_eq!((sync.state, sync.files_failed), (SyncState::Failed, 2), "{sync:#?}");
    for name in ["x", "y"] {
        fs::remove_dir_all(dst.join(name)).unwrap();
    }
    let retry = ["sync", "retry", sync.request_id.as_str(), "--failed-only", "--quiet"];
    let id = cluster.ctl(retry).run().exits(0).out().trim().to_owned();
    let again = cluster.ended(&id);
    assert_eq!((again.state, again.files_total, again.files_done), (SyncState::Completed, 2, 2));
    assert_same(&src, &dst, strict());

    file(src.join("large"), noise(24 * MIB, 3));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2, "bwlimit": "8MiB/s"}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > MIB as u64);
    let early = cluster.ctl(["sync", "retry", &id]).run();
    assert!(early.code != Some(0) && early.err().contains("has not ended"), "{}", early.err());
    cluster.ctl(["sync", "cancel", &id]).run().exits(0);
    let said = cluster.ctl(["sync", "retry", &id, "-o", "json"]).run().exits(0).json();
    let id = said["request_id"].as_str().unwrap().to_owned();
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().exits(0);
    let end = cluster.ended(&id);
    assert_complete(&end, census(&src));
    assert_same(&src, &dst, strict());
    let done = cluster.ctl(["sync", "retry", &id]).run();
    assert!(done.code != Some(0) && done.err().contains("nothing to try again"), "{}", done.err());
}

#[test]
fn a_cancel_stops_the_bytes_within_two_seconds_and_leaves_no_part_file() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for i in 0..6 {
        file(src.join(format!("f{i}")), noise(48 * MIB, i));
    }
    // Heartbeats as far apart as they are by default: a cancel must not wait for them.
    for name in ["master", "a", "b"] {
        let path = cluster.home().join(name).with_extension("yml");
        let config = fs::read_to_string(&path).unwrap();
        let config = config.replace("heartbeat_interval: 300ms", "heartbeat_interval: 5s");
        let config = config.replace("heartbeat_timeout: 3s", "heartbeat_timeout: 15s");
        let mut config = config.replace("lease: 5s", "lease: 15s");
        if name == "a" {
            // Of the agent's own: who sends under a limit of the master's is heard of often anyway.
            config = config.replace("workers:", "bwlimit: 16MiB/s\nworkers:");
        }
        fs::write(&path, config).unwrap();
    }
    cluster.master.restart();
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 64}));
    cluster.await_progress(&id, "has begun", |_| written(&dst) > 8 << 20);
    cluster.ctl(["sync", "cancel", &id]).run().exits(0);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let then = written(&dst);
    std::thread::sleep(std::time::Duration::from_secs(1));
    let now = written(&dst);
    assert!(now <= then, "{} KiB came in the third second", (now - then) >> 10);
    await_that("the part files are gone", || tree::part_files(&dst).is_empty());
    assert_eq!(cluster.progress(&id).state, SyncState::Cancelled);
}
