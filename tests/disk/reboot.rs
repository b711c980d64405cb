//! Hosts that are restarted before they flushed: what was written there may have its length and its time and not its
//! content.

use super::MIB;
use super::support::cluster::{Cluster, StoreKind, assert_complete};
use super::support::tree::{
    assert_same, census, exact_comparison, random_bytes, set_mtime, write_file, write_many_files,
};
use super::support::{await_true, tree};
use longhaul::wire::sync::SyncState;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const FIRST_BOOT: &str = "11111111-2222-3333-4444-555555555555";
const OTHER_BOOT: &str = "66666666-7777-8888-9999-000000000000";

/// Restarts the destination's agent, and waits until the master has heard of it.
fn restart_under_boot(cluster: &mut Cluster, boot: &str) {
    let heard = |cluster: &Cluster| {
        cluster.master.process.log().matches("the agent was restarted worker=b").count()
    };
    let before = heard(cluster);
    cluster.agents.get_mut("b").unwrap().restart_with_boot_id(boot);
    await_true("the restarted one is there", || heard(cluster) > before);
}

/// Two agents, each on a host of its own.
fn start_two_hosts(cluster: &mut Cluster) -> (PathBuf, PathBuf) {
    let pair = cluster.add_source_and_destination();
    restart_under_boot(cluster, FIRST_BOOT);
    pair
}

/// A sync that stands still with a part of its files at the destination: its id, source and destination.
fn start_and_pause_sync(cluster: &mut Cluster) -> (String, PathBuf, PathBuf) {
    let (src, dst) = start_two_hosts(cluster);
    for i in 0..12 {
        write_file(src.join(format!("f{i:02}")), random_bytes(2 * MIB, i));
    }
    write_file(src.join("large"), random_bytes(9 * MIB, 99));
    write_many_files(&src, 100, 2_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4, "bwlimit": "12MiB/s"}));
    cluster.await_progress(&id, "has brought files", |s| s.files_done > 3);
    cluster.ctl(["sync", "pause", &id]).run().assert_exit_code(0);
    cluster.await_progress(&id, "stands still", |s| {
        s.state == SyncState::Paused && s.detail.is_empty()
    });
    (id, src, dst)
}

/// Damages every file that has arrived as a crash of the kernel may: length and time stay.
fn zero_arrived_files(src: &Path, dst: &Path) -> usize {
    let arrived = walkdir::WalkDir::new(dst).into_iter().map(|e| e.unwrap().into_path());
    let arrived: Vec<PathBuf> = arrived
        .filter(|path| path.is_file() && src.join(path.strip_prefix(dst).unwrap()).exists())
        .collect();
    for path in &arrived {
        let before = fs::metadata(path).unwrap();
        fs::write(path, vec![0; before.len() as usize]).unwrap();
        set_mtime(path, before.mtime(), before.mtime_nsec() as u64 as _);
        assert_eq!(fs::metadata(path).unwrap().len(), before.len());
    }
    arrived.len()
}

/// Restarts the destination's agent under another boot, with what had arrived damaged.
fn crash_destination(cluster: &mut Cluster, src: &Path, dst: &Path) -> usize {
    cluster.agents.get_mut("b").unwrap().kill_9();
    let damaged = zero_arrived_files(src, dst);
    assert!(damaged > 3, "{damaged}");
    restart_under_boot(cluster, OTHER_BOOT);
    damaged
}

#[test]
fn files_lost_by_a_reboot_are_copied_again_by_the_running_sync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (id, src, dst) = start_and_pause_sync(&mut cluster);
    let damaged = crash_destination(&mut cluster, &src, &dst);
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    cluster.ctl(["sync", "resume", &id]).run().assert_exit_code(0);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert!(sync.repaired_files >= damaged as u64, "{damaged} were damaged: {sync:#?}");
    assert_same(&src, &dst, exact_comparison());
    assert!(tree::part_files(&dst).is_empty());
}

#[test]
fn files_lost_by_a_reboot_are_copied_again_by_the_next_sync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (id, src, dst) = start_and_pause_sync(&mut cluster);
    cluster.ctl(["sync", "cancel", &id]).run().assert_exit_code(0);
    crash_destination(&mut cluster, &src, &dst);
    // The next sync is independent of the first one, and does not compare contents.
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn flushed_files_are_trusted_after_a_reboot_and_after_an_agent_restart() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = start_two_hosts(&mut cluster);
    write_many_files(&src, 50, 2_000);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    for boot in [FIRST_BOOT, OTHER_BOOT] {
        restart_under_boot(&mut cluster, boot);
        let read = cluster.agents["a"].process.file_bytes().0;
        let sync = cluster.run_sync(&src, &dst);
        assert_complete(&sync, census(&src));
        assert_eq!(sync.files_skipped, 50, "{sync:#?}");
        let read = cluster.agents["a"].process.file_bytes().0 - read;
        assert!(read < 60_000, "no content is read: {read} bytes");
    }
    let notes = fs::read_dir(cluster.home().join("state-of-agents")).unwrap().count();
    assert_eq!(notes, 0, "all is flushed");
}
