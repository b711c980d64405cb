//! The store fails in all ways that a store has, in the middle of a sync. Meanwhile the API says why it
//! can't decide; afterwards all goes on by itself, and nothing is lost or counted twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cluster::{Cluster, On, assert_complete, assert_nothing_to_do};
use support::http::{self, Answer};
use support::redis::RedisServer;
use support::tree::{self, assert_same, census, file, many, noise, odd, strict};
use support::{await_some, await_that};

const MIB: usize = 1 << 20;

/// A sync on `cluster` that takes some seconds, caught when some of it is there.
struct Caught {
    cluster: Cluster,
    src: PathBuf,
    dst: PathBuf,
    id: String,
}

impl Caught {
    fn on(redis: RedisServer) -> Caught {
        Self::in_the_middle(Cluster::start_on(Some(redis), ""))
    }

    fn in_the_middle(mut cluster: Cluster) -> Caught {
        let (src, root) = cluster.pair();
        let dst = root.join("it");
        file(src.join("large"), noise(64 * MIB, 1));
        many(&src, 400, 3_000);
        odd(&src.join("odd"));
        let more = json!({"chunk_size_mb": 4, "bwlimit": "12MiB/s"});
        let id = cluster.submit_with(&src, &dst, more);
        cluster.await_progress(&id, "has some ranges", |s| s.transferred_bytes > 8 * MIB as u64);
        Caught { cluster, src, dst, id }
    }

    fn redis(&self) -> &RedisServer {
        self.cluster.redis.as_ref().unwrap()
    }

    fn redis_mut(&mut self) -> &mut RedisServer {
        self.cluster.redis.as_mut().unwrap()
    }

    /// Sends a submit that is not waited for in vain: its answer while the store is away.
    fn refusal(&self) -> Answer {
        await_some("a submit is refused", || {
            let answer = self.submit();
            (answer.status != 202).then_some(answer)
        })
    }

    fn submit(&self) -> Answer {
        let request =
            json!({"source_path": self.src, "destination_path": self.dst.with_file_name("more")});
        self.cluster.master.post("/sync", &request)
    }

    /// Holds the refusal to name the cause and a time.
    #[track_caller]
    fn assert_refused(&self, cause: &str) {
        let answer = self.refusal();
        let problem = answer.json();
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(answer.status, 503, "{problem}");
        assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        assert!(detail.contains(cause), "{detail}");
        assert_eq!(self.cluster.master.get("/healthz").status, 200);
        let told = self.cluster.master.readiness().unwrap();
        assert_eq!(told["status"], "unavailable", "{told}");
    }

    /// Waits for the end, and holds it to be as if nothing had been.
    #[track_caller]
    fn assert_unharmed(self) {
        let sync = self.cluster.ended(&self.id);
        let there = census(&self.src);
        assert_complete(&sync, there);
        // What was submitted while the store was away may have been accepted, and said so.
        await_that("all others have ended", || {
            let list = self.cluster.master.get("/sync").json();
            list.as_array().unwrap().iter().all(|s| s["state"] == "COMPLETED")
        });
        assert_same(&self.src, &self.dst, strict());
        let again = self.cluster.submit_with(&self.src, &self.dst, json!({}));
        assert_nothing_to_do(&self.cluster.ended(&again), there);
        let logs = self.cluster.agents.values().map(|a| a.process.log());
        for log in logs.chain([self.cluster.master.process.log()]) {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

#[test]
fn redis_that_is_killed_and_comes_back_with_its_data_is_waited_for() {
    let mut caught = Caught::on(RedisServer::start());
    caught.redis_mut().kill();
    caught.assert_refused("r.sock");
    caught.redis_mut().restart();
    caught.assert_unharmed();
}

#[test]
fn redis_that_comes_back_without_its_data_is_filled_by_the_living_master() {
    let mut caught = Caught::on(RedisServer::start_with(&["--appendonly", "no"]));
    caught.redis_mut().kill();
    caught.assert_refused("r.sock");
    caught.redis_mut().restart();
    caught.assert_unharmed();
}

#[test]
fn redis_that_goes_back_to_an_older_state_is_brought_up_to_date() {
    let mut caught = Caught::on(RedisServer::start());
    let old = caught.redis().remember();
    let more = caught.submit().json()["request_id"].as_str().unwrap().to_owned();
    caught.cluster.await_progress(&caught.id, "goes on", |s| s.transferred_bytes > 24 * MIB as u64);
    caught.redis_mut().roll_back(&old);
    // It was acknowledged, and Redis had lost it.
    let sync = caught.cluster.ended(&more);
    assert_complete(&sync, census(&caught.src));
    caught.assert_unharmed();
}

#[test]
fn redis_that_is_flushed_is_filled_again() {
    let caught = Caught::on(RedisServer::start());
    for command in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FLUSHALL"]] {
        assert_eq!(caught.redis().command(command), "+OK\r\n");
    }
    caught.assert_unharmed();
}

#[test]
fn redis_that_sleeps_is_waited_for_and_work_goes_on() {
    let caught = Caught::on(RedisServer::start_with(&["--enable-debug-command", "yes"]));
    assert_eq!(caught.redis().command(&["DEBUG", "SLEEP", "12"]), "+OK\r\n");
    caught.assert_unharmed();
}

#[test]
fn connections_that_redis_kills_are_made_again() {
    let caught = Caught::on(RedisServer::start());
    let ended = || caught.cluster.progress(&caught.id).state.is_final();
    await_that("the sync ends, whatever is killed", || {
        caught.redis().command(&["CLIENT", "KILL", "TYPE", "normal"]);
        ended()
    });
    caught.assert_unharmed();
}

#[test]
fn redis_that_became_a_replica_is_waited_for_until_it_leads_again() {
    let caught = Caught::on(RedisServer::start());
    assert_eq!(caught.redis().command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    caught.assert_refused("r.sock");
    assert_eq!(caught.redis().command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    caught.assert_unharmed();
}

#[test]
fn redis_whose_memory_is_used_up_takes_no_new_sync_and_lets_the_old_one_end() {
    let caught = Caught::on(RedisServer::start());
    assert_eq!(caught.redis().command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK\r\n");
    await_that("the master finds it", || {
        let told = caught.cluster.master.readiness().unwrap();
        told["store"]["problem"].as_str().is_some_and(|p| p.contains("maxmemory"))
    });
    let answer = caught.submit();
    let problem = answer.json();
    assert_eq!((answer.status, problem["code"].as_str()), (507, Some("store_full")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("maxmemory"), "{problem}");
    // What was accepted is done.
    assert_complete(&caught.cluster.ended(&caught.id), census(&caught.src));
    assert_eq!(caught.submit().status, 507);
    assert_eq!(caught.redis().command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK\r\n");
    await_that("a sync is accepted again", || caught.submit().status == 202);
}

/// A small file system of its own, gone when this is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Small {
        let options = format!("size={size},mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).status();
        assert!(done.unwrap().success(), "mount {}", at.display());
        Small(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_embedded_store_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    let mut cluster = Cluster::start(On::Embedded);
    cluster.master.terminate();
    let state = cluster.home().join("state");
    let small = Small::mount(&state, "3m");
    cluster.master.restart();
    let caught = Caught::in_the_middle(cluster);
    let filler = state.join("filler");
    // As much as there is room for, by and by: the store may give some back meanwhile.
    let fill = || drop(fs::write(&filler, vec![1; 3 * MIB]));
    let answer = await_some("a submit is refused", || {
        fill();
        let answer = caught.submit();
        (answer.status != 202).then_some(answer)
    });
    let problem = answer.json();
    assert_eq!(answer.status, 503, "{problem}");
    // Killed on the full disk: what was committed is there.
    fs::remove_file(&filler).unwrap();
    let address = caught.cluster.master.address();
    await_that("the master is ready again", || {
        http::try_request(&address, "GET", "/readyz", &[], None).is_some_and(|a| a.status == 200)
    });
    let mut caught = caught;
    fs::write(&filler, vec![1; 3 * MIB]).unwrap_err();
    caught.cluster.master.kill_9();
    fs::remove_file(&filler).unwrap();
    caught.cluster.master.restart();
    let sync = caught.cluster.ended(&caught.id);
    assert_complete(&sync, census(&caught.src));
    let log = caught.cluster.master.process.log();
    assert!(log.contains("full"), "{log}");
    assert!(!log.contains("malformed") && !log.contains("panicked"), "{log}");
    tree::chmod(&state, 0o700);
    drop(caught);
    drop(small);
}
