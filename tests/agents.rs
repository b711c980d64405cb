//! Agents that are not as they should be: two under one id, a storage path that hangs. The others go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncState;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use support::await_that;
use support::cluster::{Cluster, On, assert_complete};
use support::process::Process;
use support::tree::{assert_same, census, dir, file, many, noise, strict};

const MIB: usize = 1 << 20;

/// What `GET /workers` says of an active worker.
fn view(cluster: &Cluster, id: &str) -> Value {
    let list = cluster.master.get("/workers").json();
    let active = list["active"].as_array().unwrap();
    active.iter().find(|w| w["worker_id"] == id).cloned().unwrap_or_default()
}

#[test]
fn the_second_of_two_agents_under_one_id_waits_until_the_first_is_gone() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for i in 0..12 {
        file(src.join(format!("f{i}")), noise(2 * MIB, i));
    }
    let home = cluster.home().to_owned();
    let config = home.join("a.yml");
    let twin = cluster.ctl(["agent", "--worker-id", "a", "--config"]).arg(&config).command();
    let mut twin = Process::start("the second agent a", twin, &home.join("twin.log"));
    await_that("the second one is refused", || twin.log().contains("another agent runs as worker"));
    let reason = view(&cluster, "a")["reason"].clone();
    assert!(reason.as_str().unwrap_or_default().contains("two agents"), "{reason}");
    let read = twin.file_bytes().0;
    let sync = cluster.sync(&src, &dst);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, strict());
    assert_eq!(sync.retries, 0, "nobody takes anything away: {sync:#?}");
    assert!(twin.file_bytes().0 - read < MIB as u64, "the second one reads nothing");
    // The first is gone, and takes no leave.
    cluster.agents.get_mut("a").unwrap().kill_9();
    let again = dir(cluster.path("dst/again"));
    assert_complete(&cluster.sync(&src, &again), census(&src));
    assert_eq!(twin.terminate().code(), Some(0));
}

#[test]
fn an_agent_that_has_nothing_to_do_ends_at_once_without_a_master() {
    let mut cluster = Cluster::start(On::Embedded);
    cluster.pair();
    // Longer than any test waits: none of it is spent.
    for agent in cluster.agents.values() {
        agent.configure(|text| format!("drain_timeout: 1h\n{text}"));
    }
    let connected = "connected to the master";
    let [a, b] = ["a", "b"].map(|name| cluster.agents.remove(name));
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    // One that had a master …
    a.restart();
    await_that(connected, || a.process.log().matches(connected).count() == 2);
    b.kill_9();
    cluster.master.kill_9();
    assert_eq!(a.terminate().code(), Some(0));
    // … and one that never found one.
    b.restart();
    await_that("b is there", || b.process.log().contains("heartbeat failed"));
    assert_eq!(b.terminate().code(), Some(0));
}

/// A file system that never answers, mounted over a directory.
struct Hung {
    at: PathBuf,
    /// Holds the other end, and never reads from it.
    server: Child,
}

impl Hung {
    fn over(at: PathBuf) -> Hung {
        let script = "exec 3<>/dev/fuse; mount -i -t fuse \
                      -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$1\" && exec sleep 600";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(&at).stdin(Stdio::null());
        let server = command.spawn().expect("start a file system that hangs");
        let shown = at.display().to_string();
        let hung = Hung { at, server };
        await_that("it is mounted", || {
            std::fs::read_to_string("/proc/mounts").unwrap().contains(&format!("hung {shown} fuse"))
        });
        hung
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Not the other way round: who waits for an answer is told that there is none.
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[test]
fn a_storage_path_that_hangs_is_told_and_left_out_while_the_heart_goes_on() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    let other = dir(cluster.path("other"));
    cluster.agent("a", &[&src, &other]);
    cluster.agent("b", &[&dst]);
    many(&src, 50, 1_000);
    many(&other, 50, 1_000);
    let hung = Hung::over(src.clone());
    await_that("it is shown as unavailable", || {
        let shown = view(&cluster, "a");
        shown["unavailable_paths"] == json!([{"path": src, "reason": "it does not answer"}])
    });
    let shown = cluster.ctl(["workers", "list"]).run().exits(0).out();
    assert!(shown.contains("ACTIVE") && shown.contains("does not answer"), "{shown}");
    // The other path is served; work on this one waits, and says why.
    assert_complete(&cluster.sync(&other, &dst), census(&other));
    let id = cluster.submit(&src, &cluster.path("dst/b"));
    let waits = cluster.progress(&id);
    assert_eq!(waits.state, SyncState::Queued, "{waits:#?}");
    assert!(
        waits.reason.as_deref().unwrap().contains("is unavailable: it does not answer)"),
        "{waits:#?}"
    );
    drop(hung);
    assert_complete(&cluster.ended(&id), census(&src));
    assert_eq!(view(&cluster, "a")["unavailable_paths"], Value::Null);
}
