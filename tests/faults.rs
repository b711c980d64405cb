//! Each kind of process is killed in the middle of a transfer. Whatever dies: the sync completes by
//! itself, the tree is identical, every file is counted once, no part file is left.
//!
//! "In the middle" is seen at the destination, and the process stands still while it is checked:
//! between the check and the kill nothing can end by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::process::{Process, User, clean_command};
use support::tree::{
    self, assert_same, census, exact_comparison, random_bytes, write_file, write_many_files,
    write_unusual_tree,
};
use support::{await_some, await_true};

const MIB: usize = 1 << 20;
/// The size of a file that is caught while it arrives.
const LARGE_FILE_BYTES: usize = 192 * MIB;
/// Files of a pack that is caught while it arrives; less than a pack can hold.
const PACK_FILES: usize = 1_500;

/// Which process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Destination,
    Master,
}

fn process_of(cluster: &mut Cluster, victim: Victim) -> &mut Process {
    match victim {
        Victim::Master => &mut cluster.master.process,
        Victim::Source => &mut cluster.agents.get_mut("a").unwrap().process,
        Victim::Destination => &mut cluster.agents.get_mut("b").unwrap().process,
    }
}

/// How much of a file that arrives in ranges is on the way: its part file holds some of it, and its
/// name is not there.
fn is_in_mid_range(dst: &Path) -> bool {
    let Some(part) = tree::part_files(dst).into_iter().find(|p| is_part_of_large(p)) else {
        return false;
    };
    (1..LARGE_FILE_BYTES as u64).contains(&tree::written_bytes(&part))
        && !dst.join("large").exists()
}

fn is_part_of_large(part: &Path) -> bool {
    fs::metadata(part).is_ok_and(|m| m.len() == LARGE_FILE_BYTES as u64)
}

/// Some of the files of the one pack are there, and some are not.
fn is_in_mid_pack(dst: &Path) -> bool {
    (1..PACK_FILES).contains(&arrived_files(dst))
}

fn arrived_files(dst: &Path) -> usize {
    let there = |dir: PathBuf| fs::read_dir(dir).map_or(0, Iterator::count);
    let all: usize =
        (0..PACK_FILES.div_ceil(100)).map(|i| there(dst.join(format!("{i:03}")))).sum();
    all.saturating_sub(tree::part_files(dst).len())
}

/// Waits for the middle, stops the victim there, and makes sure that it is the middle still.
fn freeze_when(cluster: &mut Cluster, victim: Victim, dst: &Path, middle: fn(&Path) -> bool) {
    await_true("the transfer is in the middle", || middle(dst));
    process_of(cluster, victim).freeze();
    assert!(middle(dst), "the transfer was over before {victim:?} could be stopped: use more data");
}

/// … and kills it.
fn kill_when(cluster: &mut Cluster, victim: Victim, dst: &Path, middle: fn(&Path) -> bool) {
    freeze_when(cluster, victim, dst, middle);
    process_of(cluster, victim).kill_9();
}

/// What holds after every fault.
#[track_caller]
fn assert_undamaged(cluster: &mut Cluster, id: &str, src: &Path, dst: &Path) -> SyncProgress {
    cluster.lift_bandwidth_limit(id);
    let sync = cluster.await_end(id);
    let there = census(src);
    assert_complete(&sync, there);
    assert_same(src, dst, exact_comparison());
    assert!(tree::part_files(dst).is_empty());
    let again = cluster.run_sync(src, dst);
    assert_nothing_to_do(&again, there);
    for (name, agent) in &mut cluster.agents {
        let log = agent.process.log();
        assert!(!log.contains("panicked"), "agent {name}:\n{log}");
    }
    let log = cluster.master.process.log();
    assert!(!log.contains("panicked"), "master:\n{log}");
    sync
}

/// Slow enough for its middle to be met on any machine.
const SLOW_LIMIT: &str = "64MiB/s";

/// A sync of one large file (and some others), caught in mid-range.
fn submit_large_file(on: StoreKind) -> (Cluster, PathBuf, PathBuf, String) {
    let mut cluster = Cluster::start(on);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(LARGE_FILE_BYTES, 1));
    write_unusual_tree(&src.join("odd"));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 8, "bwlimit": SLOW_LIMIT}));
    (cluster, src, dst, id)
}

/// A sync of small files that fit into one pack, caught in mid-pack.
fn submit_one_pack(on: StoreKind) -> (Cluster, PathBuf, PathBuf, String) {
    let mut cluster = Cluster::start(on);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, PACK_FILES, 40_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 512, "bwlimit": SLOW_LIMIT}));
    (cluster, src, dst, id)
}

#[test]
fn a_sync_survives_a_restart_of_the_destination_agent_in_mid_range() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    kill_when(&mut cluster, Victim::Destination, &dst, is_in_mid_range);
    cluster.agents.get_mut("b").unwrap().restart();
    let sync = assert_undamaged(&mut cluster, &id, &src, &dst);
    assert!(sync.retries > 0, "{sync:#?}");
}

#[test]
fn a_sync_survives_a_restart_of_the_destination_agent_in_mid_pack() {
    let (mut cluster, src, dst, id) = submit_one_pack(StoreKind::Redis);
    kill_when(&mut cluster, Victim::Destination, &dst, is_in_mid_pack);
    cluster.agents.get_mut("b").unwrap().restart();
    let sync = assert_undamaged(&mut cluster, &id, &src, &dst);
    assert!(sync.files_skipped > 0, "what had arrived is not sent again: {sync:#?}");
}

#[test]
fn a_sync_survives_the_loss_of_one_of_two_destination_agents() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    cluster.add_agent("b2", &[&dst]);
    write_file(src.join("large"), random_bytes(LARGE_FILE_BYTES, 2));
    write_many_files(&src, 300, 20_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 8, "bwlimit": SLOW_LIMIT}));
    kill_when(&mut cluster, Victim::Destination, &dst, is_in_mid_range);
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn a_sync_survives_a_restart_of_the_source_agent_in_mid_range() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Redis);
    kill_when(&mut cluster, Victim::Source, &dst, is_in_mid_range);
    cluster.agents.get_mut("a").unwrap().restart();
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn another_source_agent_takes_over_in_mid_pack() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, PACK_FILES, 40_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 512, "bwlimit": SLOW_LIMIT}));
    kill_when(&mut cluster, Victim::Source, &dst, is_in_mid_pack);
    // It does not come back: its lease runs out.
    cluster.add_agent("a2", &[&src]);
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

fn check_killed_master(on: StoreKind) {
    let (mut cluster, src, dst, id) = submit_large_file(on);
    write_many_files(&cluster.data_path("other/src"), 400, 5_000);
    let other = (
        tree::make_dir(cluster.data_path("other/src")),
        tree::make_dir(cluster.data_path("other/dst")),
    );
    let data = cluster.data_path("other");
    cluster.add_agent("other", &[&data]);
    kill_when(&mut cluster, Victim::Master, &dst, is_in_mid_range);
    cluster.master.restart();
    // It has the sync, and accepts new ones.
    assert!(!cluster.progress(&id).state.is_final());
    let second = cluster.submit(&other.0, &other.1);
    assert_undamaged(&mut cluster, &id, &src, &dst);
    assert_complete(&cluster.await_end(&second), census(&other.0));
    assert_same(&other.0, &other.1, exact_comparison());
    for name in ["a", "b"] {
        assert!(
            cluster.agents.get_mut(name).unwrap().process.try_exit_status().is_none(),
            "{name} lives"
        );
    }
}

#[test]
fn a_sync_survives_a_killed_master_on_the_embedded_store() {
    check_killed_master(StoreKind::Embedded);
}

#[test]
fn a_sync_survives_a_killed_master_on_redis() {
    check_killed_master(StoreKind::Redis);
}

fn check_repeatedly_killed_master(on: StoreKind) {
    let mut cluster = Cluster::start(on);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 3_000, 2_000);
    write_file(src.join("large"), random_bytes(64 * MIB, 3));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let total = census(&src).bytes;
    for share in 1..=4 {
        let far_enough = |s: &SyncProgress| {
            s.state.is_final() || s.transferred_bytes + s.bytes_skipped >= total * share / 6
        };
        cluster.await_progress(&id, "goes on", far_enough);
        cluster.master.kill_9();
        cluster.master.restart();
    }
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn a_sync_survives_a_repeatedly_killed_master_on_the_embedded_store() {
    check_repeatedly_killed_master(StoreKind::Embedded);
}

#[test]
fn a_sync_survives_a_repeatedly_killed_master_on_redis() {
    check_repeatedly_killed_master(StoreKind::Redis);
}

#[test]
fn a_sync_survives_when_all_processes_are_killed_at_once() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Redis);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    for victim in [Victim::Destination, Victim::Source, Victim::Master] {
        process_of(&mut cluster, victim).kill_9();
    }
    let redis = cluster.redis.as_mut().unwrap();
    redis.kill();
    redis.restart();
    cluster.master.restart();
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn agents_can_be_restarted_gracefully_in_mid_transfer() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    for name in ["a", "b"] {
        let agent = cluster.agents.get_mut(name).unwrap();
        assert_eq!(agent.terminate().code(), Some(0), "{name} stops cleanly");
        agent.restart();
    }
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn a_suspended_redis_delays_and_damages_nothing() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Redis);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    cluster.redis.as_ref().unwrap().signal("STOP");
    // The master says so instead of hanging.
    await_true("the master is not ready", || cluster.master.get("/readyz").status == 503);
    let answer = cluster.master.get("/sync");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    cluster.redis.as_ref().unwrap().signal("CONT");
    await_true("the master is ready again", || cluster.master.get("/readyz").status == 200);
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn a_restarted_redis_keeps_every_acknowledged_sync() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Redis);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    let redis = cluster.redis.as_mut().unwrap();
    redis.kill();
    redis.restart();
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn the_master_restores_a_redis_that_lost_its_data() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Redis);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    let redis = cluster.redis.as_ref().unwrap();
    assert!(redis.command(&["FLUSHALL"]).starts_with("+OK"));
    assert_undamaged(&mut cluster, &id, &src, &dst);
    // What the store holds now is enough for a master that starts.
    cluster.master.restart();
    assert_complete(&cluster.progress(&id), census(&src));
}

#[test]
fn an_agent_suspended_for_longer_than_its_lease_does_no_damage() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    process_of(&mut cluster, Victim::Source).freeze();
    // Another one ends its work.
    cluster.add_agent("a2", &[&src]);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    // How short its id can be depends on the others.
    let whole = |sync: SyncProgress| SyncProgress { short_id: None, ..sync };
    let before = whole(await_some("the master answers", || cluster.master.progress(&id)));
    process_of(&mut cluster, Victim::Source).thaw();
    await_true("it is active again", || cluster.master.active_workers().contains(&"a".to_owned()));
    assert_undamaged(&mut cluster, &id, &src, &dst);
    assert_eq!(whole(cluster.progress(&id)), before, "a late result changes nothing");
}

/// Which files there are below a directory, and when anything about them was changed last.
fn file_stamps(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    let stamp = |m: fs::Metadata| (m.ino(), m.ctime(), m.ctime_nsec());
    entries.map(|e| (e.path().to_owned(), stamp(e.metadata().unwrap()))).collect()
}

#[test]
fn a_destination_agent_suspended_for_longer_than_its_lease_writes_nothing_afterwards() {
    let (mut cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    freeze_when(&mut cluster, Victim::Destination, &dst, is_in_mid_range);
    // What its peer was sending to it is sent again, to another worker.
    cluster.add_agent("b2", &[&dst]);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    let before = file_stamps(&dst);
    process_of(&mut cluster, Victim::Destination).thaw();
    await_true("it is active again", || cluster.master.active_workers().contains(&"b".to_owned()));
    // It has the rest of what was sent to it in its sockets, and finds that it is late.
    assert_undamaged(&mut cluster, &id, &src, &dst);
    assert_eq!(file_stamps(&dst), before, "it wrote all the same");
}

#[test]
fn a_task_moves_from_a_suspended_destination_host_to_a_working_one() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 50, 1_000);
    process_of(&mut cluster, Victim::Destination).freeze();
    let id = cluster.submit(&src, &dst);
    // The copy is given to the source's agent while the frozen one is the only destination.
    await_true("the copy is begun, or the host is missed first", || {
        let begun = cluster.agents["a"].process.log().contains("kind=\"copy\"");
        begun || !cluster.master.active_workers().contains(&"b".to_owned())
    });
    cluster.add_agent("b2", &[&dst]);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    process_of(&mut cluster, Victim::Destination).thaw();
    assert_undamaged(&mut cluster, &id, &src, &dst);
}

#[test]
fn a_removed_part_file_never_becomes_a_file_with_holes() {
    let (cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    cluster.await_progress(&id, "has some ranges", |s| s.transferred_bytes > 20 * MIB as u64);
    for part in tree::part_files(&dst) {
        let _ = fs::remove_file(part);
    }
    let sync = cluster.await_end(&id);
    if sync.state == longhaul::wire::sync::SyncState::Completed {
        assert_same(&src, &dst, exact_comparison());
    } else {
        assert!(!dst.join("large").exists(), "nothing is published: {sync:#?}");
    }
    assert!(tree::part_files(&dst).is_empty());
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_replaced_storage_path_stops_its_worker_and_is_reported() {
    let (cluster, src, dst, id) = submit_large_file(StoreKind::Embedded);
    await_true("the transfer is in the middle", || is_in_mid_range(&dst));
    let away = cluster.data_path("moved away");
    fs::rename(&dst, &away).unwrap();
    tree::make_dir(&dst);
    // The source goes on sending, as fast as it can.
    cluster.lift_bandwidth_limit(&id);
    let found = ["worker b", "its path leads to another directory", dst.to_str().unwrap()];
    let reported = |s: &SyncProgress| {
        let reason = s.reason.as_deref().unwrap_or_default();
        s.state == SyncState::Paused && found.iter().all(|part| reason.contains(part))
    };
    let seen = cluster.await_progress(&id, "is paused", |s| reported(s) || s.state.is_final());
    assert!(reported(&seen), "{seen:#?}");
    // The task that failed pauses the sync; the worker's next heartbeat shows the reason.
    await_true("the worker is shown as one that cannot use its storage", || {
        cluster
            .ctl(["workers", "show", "b"])
            .run()
            .assert_exit_code(0)
            .stdout_text()
            .contains("Unavailable:")
    });
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 0, "nothing went to what is not the mount");
    // Undone, it goes on by itself.
    fs::remove_dir(&dst).unwrap();
    fs::rename(&away, &dst).unwrap();
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_destination_directory_that_is_moved_is_created_again_and_never_incomplete() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, root) = cluster.add_source_and_destination();
    let dst = root.join("below");
    write_file(src.join("large"), random_bytes(LARGE_FILE_BYTES, 5));
    write_many_files(&src, 100, 1_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 8, "bwlimit": SLOW_LIMIT}));
    cluster.await_progress(&id, "has some ranges", |s| s.transferred_bytes > 20 * MIB as u64);
    fs::rename(&dst, root.join("moved away")).unwrap();
    let sync = cluster.await_end(&id);
    let large = dst.join("large");
    if large.exists() {
        assert!(fs::read(&large).unwrap() == fs::read(src.join("large")).unwrap(), "it is torn");
    }
    assert!(sync.state.is_final());
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_master_stops_on_request_while_waiting_and_while_serving() {
    let cluster = Cluster::start(StoreKind::Redis);
    let config = fs::read_to_string(cluster.home().join("master.yml")).unwrap();
    let config = config.replace(&cluster.master.address(), "127.0.0.1:0");
    let no_redis = config.replace("redis: {url: ", "redis: {port: 1} # ");
    for (what, config, waits) in [
        ("second", config, "another master leads"),
        ("lonely", no_redis, "the store is not available"),
    ] {
        let path = cluster.home().join(what);
        fs::write(&path, config).unwrap();
        let program = support::process::ctl_binary(User::Same, cluster.home());
        let mut command = clean_command(&program, cluster.home(), User::Same);
        command.args(["master", "--config"]).arg(&path);
        let mut master = Process::start(what, command, &path.with_extension("log"));
        await_true(waits, || master.log().contains(waits));
        assert_eq!(master.terminate().code(), Some(0), "{what}: {}", master.log());
    }
}

#[test]
fn a_file_that_crashes_its_agents_fails_with_its_name_and_the_workers() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_worker_losses: 2}");
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(64 << 20, 1));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 32, "bwlimit": "1MiB/s"}));
    // Both ranges are lost twice, then one of them runs alone.
    for (lost, retries, in_hand) in [(0, 0, "2 range"), (1, 2, "2 range"), (2, 3, "1 range")] {
        cluster.await_progress(&id, "the file is in hand", |s| {
            let held = s.detail.get("a").is_some_and(|held| held == in_hand);
            held && (s.retries, s.dirs_done) == (retries, 1)
        });
        let agent = cluster.agents.get_mut("a").unwrap();
        agent.kill_9();
        agent.restart();
        if lost < 2 {
            let sync = cluster.await_progress(&id, "the reason shows", |s| {
                s.reason.as_ref().is_some_and(|reason| reason.contains("lost with its worker"))
            });
            assert!(sync.reason.unwrap().contains("(a"), "the worker is named");
        }
    }
    let sync = cluster.await_end(&id);
    assert_eq!((sync.state.as_str(), sync.files_failed), ("FAILED", 1), "{sync:#?}");
    let error = &sync.errors[0];
    assert_eq!(error.path.to_string(), "large", "{error:?}");
    assert!(error.message.contains("a (3 times)"), "{error:?}");
}
