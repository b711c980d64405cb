//! Agents that are not as they should be: two under one id, a storage path that hangs. The others go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncState;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::process::Process;
use support::tree::{
    assert_same, census, exact_comparison, make_dir, random_bytes, write_file, write_many_files,
};

const MIB: usize = 1 << 20;

/// What `GET /workers` says of an active worker.
fn worker_view(cluster: &Cluster, id: &str) -> Value {
    let list = cluster.master.get("/workers").json();
    let active = list["active"].as_array().unwrap();
    active.iter().find(|w| w["worker_id"] == id).cloned().unwrap_or_default()
}

#[test]
fn a_second_agent_with_the_same_id_waits_until_the_first_has_ended() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for i in 0..12 {
        write_file(src.join(format!("f{i}")), random_bytes(2 * MIB, i));
    }
    let home = cluster.home().to_owned();
    let config = home.join("a.yml");
    let twin = cluster.ctl(["agent", "--worker-id", "a", "--config"]).arg(&config).command();
    let mut twin = Process::start("the second agent a", twin, &home.join("twin.log"));
    await_true("the second one is refused", || twin.log().contains("another agent runs as worker"));
    let reason = worker_view(&cluster, "a")["reason"].clone();
    assert!(reason.as_str().unwrap_or_default().contains("two agents"), "{reason}");
    let read = twin.file_bytes().0;
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    assert_eq!(sync.retries, 0, "no other worker gets its tasks: {sync:#?}");
    assert!(twin.file_bytes().0 - read < MIB as u64, "the second one reads nothing");
    // The first is gone, and takes no leave.
    cluster.agents.get_mut("a").unwrap().kill_9();
    let again = make_dir(cluster.data_path("dst/again"));
    assert_complete(&cluster.run_sync(&src, &again), census(&src));
    assert_eq!(twin.terminate().code(), Some(0));
}

#[test]
fn an_idle_agent_stops_at_once_without_a_master() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    cluster.add_source_and_destination();
    // Longer than any test waits: none of it is spent.
    for agent in cluster.agents.values() {
        agent.configure(|text| format!("drain_timeout: 1h\n{text}"));
    }
    let connected = "connected to the master";
    let [a, b] = ["a", "b"].map(|name| cluster.agents.remove(name));
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    // One that had a master …
    a.restart();
    await_true(connected, || a.process.log().matches(connected).count() == 2);
    b.kill_9();
    cluster.master.kill_9();
    assert_eq!(a.terminate().code(), Some(0));
    // … and one that never found one.
    b.restart();
    await_true("b is there", || b.process.log().contains("heartbeat failed"));
    assert_eq!(b.terminate().code(), Some(0));
}

/// A file system that never answers, mounted over a directory.
struct HangingFileSystem {
    at: PathBuf,
    /// Holds the other end, and never reads from it.
    server: Child,
}

impl HangingFileSystem {
    fn mount_over(at: PathBuf) -> HangingFileSystem {
        let script = "exec 3<>/dev/fuse; mount -i -t fuse \
                      -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$1\" && exec sleep 600";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&at).stdin(Stdio::null());
        let server = command.spawn().expect("start a file system that hangs");
        let shown = at.display().to_string();
        let hung = HangingFileSystem { at, server };
        await_true("it is mounted", || {
            std::fs::read_to_string("/proc/mounts").unwrap().contains(&format!("hung {shown} fuse"))
        });
        hung
    }
}

impl Drop for HangingFileSystem {
    fn drop(&mut self) {
        // In this order, because a caller that waits for a reply gets an error.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_hanging_storage_path_is_reported_as_unavailable_while_heartbeats_continue() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    let other = make_dir(cluster.data_path("other"));
    cluster.add_agent("a", &[&src, &other]);
    cluster.add_agent("b", &[&dst]);
    write_many_files(&src, 50, 1_000);
    write_many_files(&other, 50, 1_000);
    let hung = HangingFileSystem::mount_over(src.clone());
    await_true("it is shown as unavailable", || {
        let shown = worker_view(&cluster, "a");
        shown["unavailable_paths"] == json!([{"path": src, "reason": "it does not answer"}])
    });
    let shown = cluster.ctl(["workers", "list"]).run().assert_exit_code(0).stdout_text();
    assert!(shown.contains("ACTIVE") && shown.contains("does not answer"), "{shown}");
    // The other path is served; work on this one waits, and says why.
    assert_complete(&cluster.run_sync(&other, &dst), census(&other));
    let id = cluster.submit(&src, &cluster.data_path("dst/b"));
    let waits = cluster.progress(&id);
    assert_eq!(waits.state, SyncState::Queued, "{waits:#?}");
    assert!(
        waits.reason.as_deref().unwrap().contains("is unavailable: it does not answer)"),
        "{waits:#?}"
    );
    drop(hung);
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_eq!(worker_view(&cluster, "a")["unavailable_paths"], Value::Null);
}

/// The master takes an agent for active until its heartbeats are missing for a while, and gives out tasks for it.
#[test]
fn an_agent_that_is_killed_and_started_again_within_the_heartbeat_timeout_fails_no_file() {
    const FILES: usize = 16;
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 1}\n");
    cluster.set_heartbeat_timeout(Duration::from_secs(600));
    let (src, dst) = cluster.add_source_and_destination();
    for i in 0..FILES {
        write_file(src.join(format!("f{i}")), random_bytes(MIB, i as u64));
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1, "bwlimit": "4MiB/s"}));
    await_true("some of it has arrived", || cluster.progress(&id).transferred_bytes > 0);
    cluster.agents.get_mut("b").unwrap().kill_9();
    // Each file is tried more often than a failed task is repeated.
    await_true("every file is tried again and again", || {
        let sync = cluster.progress(&id);
        assert_eq!((sync.state, sync.files_failed), (SyncState::Progress, 0), "{sync:#?}");
        sync.retries >= 3 * FILES as u64
    });
    assert_eq!(worker_view(&cluster, "b")["worker_id"], "b", "it counts as active");
    cluster.agents.get_mut("b").unwrap().restart();
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
}
