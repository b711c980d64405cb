//! The store fails in all ways that a store has, in the middle of a sync. Meanwhile the API says why it
//! can't decide; afterwards all goes on by itself, and nothing is lost or counted twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::http::{self, Response};
use support::redis::RedisServer;
use support::relay::Relay;
use support::tree::{self, assert_same, census, exact_comparison};
use support::{await_some, await_true};

const MIB: usize = 1 << 20;

/// A sync on `cluster` that takes some seconds, caught when some of it is there.
struct PartialSync {
    cluster: Cluster,
    src: PathBuf,
    dst: PathBuf,
    id: String,
}

impl PartialSync {
    fn start_on_redis(redis: RedisServer) -> PartialSync {
        Self::start_partial(Cluster::start_with_redis(Some(redis), ""))
    }

    fn start_partial(mut cluster: Cluster) -> PartialSync {
        let (src, root) = cluster.add_source_and_destination();
        let dst = root.join("it");
        let id = cluster.submit_and_await_partial(&src, &dst, (64, "12MiB/s"), json!({}));
        PartialSync { cluster, src, dst, id }
    }

    fn redis(&self) -> &RedisServer {
        self.cluster.redis.as_ref().unwrap()
    }

    fn redis_mut(&mut self) -> &mut RedisServer {
        self.cluster.redis.as_mut().unwrap()
    }

    /// Submits until the master refuses, as it does while the store is unavailable; the reply.
    fn await_refusal(&self) -> Response {
        await_some("a submit is refused", || {
            let answer = self.submit_another();
            (answer.status != 202).then_some(answer)
        })
    }

    fn submit_another(&self) -> Response {
        let request =
            json!({"source_path": self.src, "destination_path": self.dst.with_file_name("more")});
        self.cluster.master.post("/sync", &request)
    }

    /// Checks that the refusal names the cause and a time.
    #[track_caller]
    fn assert_refused(&self, cause: &str) {
        let answer = self.await_refusal();
        let problem = answer.json();
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(answer.status, 503, "{problem}");
        assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        assert!(detail.contains(cause), "{detail}");
        assert_eq!(self.cluster.master.get("/healthz").status, 200);
        let reported = self.cluster.master.readiness().unwrap();
        assert_eq!(reported["status"], "unavailable", "{reported}");
    }

    /// Submits another one, which the store will forget; what it is called.
    fn submit_to_be_lost(&self) -> String {
        let answer = self.submit_another();
        assert_eq!(answer.status, 202, "{}", answer.text());
        let id = answer.json()["request_id"].as_str().unwrap().to_owned();
        let before = self.cluster.progress(&self.id).transferred_bytes;
        let further = before + 8 * MIB as u64;
        self.cluster.await_progress(&self.id, "goes on", |s| s.transferred_bytes > further);
        id
    }

    /// After a master started from less than was acknowledged: the sync `lost` is not known any more, and
    /// another one may be submitted in its place, which gets what had been its number.
    #[track_caller]
    fn assert_restarted(self, lost: &str) {
        let asked = self.cluster.master.get(&format!("/sync/{lost}"));
        assert_eq!(asked.status, 404, "{}", asked.text());
        let answer = self.submit_another();
        assert_eq!(answer.status, 202, "{}", answer.text());
        self.cluster.lift_bandwidth_limit(&self.id);
        let sync = self.cluster.await_end(answer.json()["request_id"].as_str().unwrap());
        assert_complete(&sync, census(&self.src));
        assert_same(&self.src, &self.dst.with_file_name("more"), exact_comparison());
        self.assert_undamaged();
    }

    /// Waits for the end and checks that the fault had no effect.
    #[track_caller]
    fn assert_undamaged(self) {
        self.cluster.lift_bandwidth_limit(&self.id);
        let sync = self.cluster.await_end(&self.id);
        let there = census(&self.src);
        assert_complete(&sync, there);
        // What was submitted while the store was away may have been accepted, and said so.
        await_true("all others have ended", || {
            let list = self.cluster.master.get("/sync").json();
            list.as_array().unwrap().iter().all(|s| s["state"] == "COMPLETED")
        });
        assert_same(&self.src, &self.dst, exact_comparison());
        assert!(tree::part_files(&self.dst).is_empty());
        let again = self.cluster.submit_with(&self.src, &self.dst, json!({}));
        assert_nothing_to_do(&self.cluster.await_end(&again), there);
        self.cluster.assert_assigned_once();
        self.cluster.assert_no_panic();
    }
}

#[test]
fn a_sync_waits_for_a_redis_that_restarts_with_its_data() {
    let mut caught = PartialSync::start_on_redis(RedisServer::start());
    caught.redis_mut().kill();
    caught.assert_refused("r.sock");
    caught.redis_mut().restart();
    caught.assert_undamaged();
}

#[test]
fn the_running_master_restores_a_redis_that_restarts_without_its_data() {
    let mut caught = PartialSync::start_on_redis(volatile_redis());
    caught.redis().command(&["SHUTDOWN", "NOSAVE"]);
    caught.assert_refused("r.sock");
    caught.redis_mut().restart();
    caught.assert_undamaged();
}

/// A Redis that keeps nothing on its disk.
fn volatile_redis() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "no"])
}

#[test]
fn a_sync_lost_by_master_and_redis_is_submitted_again_and_sends_only_what_is_missing() {
    let mut caught = PartialSync::start_on_redis(volatile_redis());
    caught.cluster.master.kill_9();
    caught.redis().command(&["SHUTDOWN", "NOSAVE"]);
    caught.redis_mut().restart();
    caught.cluster.master.restart();
    assert_eq!(caught.cluster.master.get("/sync").json(), json!([]));
    // The assignments of the agents are revoked.
    let same = json!({"chunk_size_mb": 4});
    caught.id = caught.cluster.submit_with(&caught.src, &caught.dst, same);
    let sync = caught.cluster.await_end(&caught.id);
    assert!(sync.sent_bytes < sync.total_bytes, "what had arrived was sent again: {sync:#?}");
    caught.assert_undamaged();
}

#[test]
fn the_running_master_updates_a_redis_with_an_older_state() {
    let mut caught = PartialSync::start_on_redis(RedisServer::start());
    let old = caught.redis().save_aof();
    let more = caught.submit_another().json()["request_id"].as_str().unwrap().to_owned();
    caught.cluster.await_progress(&caught.id, "goes on", |s| s.transferred_bytes > 24 * MIB as u64);
    caught.redis_mut().restore_aof(&old);
    // It was acknowledged, and Redis had lost it.
    let sync = caught.cluster.await_end(&more);
    assert_complete(&sync, census(&caught.src));
    caught.assert_undamaged();
}

#[test]
fn a_master_that_starts_on_an_older_state_repeats_lost_work() {
    let mut caught = PartialSync::start_on_redis(RedisServer::start());
    let old = caught.redis().save_aof();
    let lost = caught.submit_to_be_lost();
    caught.cluster.master.kill_9();
    caught.redis_mut().restore_aof(&old);
    caught.cluster.master.restart();
    caught.assert_restarted(&lost);
}

/// Kills Redis and restarts it with a log that is truncated in the middle of what was written after
/// it was `so_long`.
fn truncate_aof(redis: &mut RedisServer, so_long: u64) {
    redis.kill();
    let log = fs::OpenOptions::new().write(true).open(redis.last_aof_file()).unwrap();
    let now = log.metadata().unwrap().len();
    assert!(now > so_long + 1_000, "too little was written to be cut: {so_long} to {now}");
    log.set_len(so_long + (now - so_long) / 3).unwrap();
    redis.restart();
}

#[test]
fn the_running_master_updates_a_redis_with_a_truncated_log() {
    let mut caught = PartialSync::start_on_redis(RedisServer::start());
    let so_long = fs::metadata(caught.redis().last_aof_file()).unwrap().len();
    let more = caught.submit_to_be_lost();
    truncate_aof(caught.redis_mut(), so_long);
    let sync = caught.cluster.await_end(&more);
    assert_complete(&sync, census(&caught.src));
    caught.assert_undamaged();
}

/// A master that reaches its Redis by a link.
fn cluster_over_relay() -> (Cluster, Relay) {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let redis = cluster.redis.as_ref().unwrap();
    let link = Relay::to_socket(&redis.socket());
    let config = cluster.home().join("master.yml");
    let direct = fs::read_to_string(&config).unwrap();
    fs::write(&config, direct.replace(&redis.url(), &link.redis_url())).unwrap();
    cluster.master.restart();
    (cluster, link)
}

/// A Redis with a replica, both behind an address that can move from the one to the other.
struct Replicated {
    caught: PartialSync,
    address: Relay,
    /// Between the two.
    line: Relay,
    replica: RedisServer,
}

impl Replicated {
    fn start() -> Replicated {
        let (cluster, address) = cluster_over_relay();
        let line = Relay::to_socket(&cluster.redis.as_ref().unwrap().socket());
        let port = line.port().to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        await_true("the replica follows", || {
            replica.command(&["INFO", "replication"]).contains("master_link_status:up")
        });
        Replicated { caught: PartialSync::start_partial(cluster), address, line, replica }
    }

    /// The replica, which has nothing that was written since the line was cut, takes over.
    fn fail_over(&mut self) {
        self.caught.redis_mut().kill();
        assert_eq!(self.replica.command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
        self.address.redirect_to(&self.replica.socket());
    }
}

#[test]
fn the_running_master_updates_a_lagging_replica_after_a_failover() {
    let mut pair = Replicated::start();
    pair.line.cut();
    let more = pair.caught.submit_to_be_lost();
    pair.fail_over();
    let sync = pair.caught.cluster.await_end(&more);
    assert_complete(&sync, census(&pair.caught.src));
    pair.caught.assert_undamaged();
}

#[test]
fn the_running_master_restores_a_flushed_redis() {
    let caught = PartialSync::start_on_redis(RedisServer::start());
    for command in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"], &["FLUSHALL"]] {
        assert_eq!(caught.redis().command(command), "+OK\r\n");
    }
    caught.assert_undamaged();
}

#[test]
fn a_sync_continues_after_a_suspended_redis() {
    let caught =
        PartialSync::start_on_redis(RedisServer::start_with(&["--enable-debug-command", "yes"]));
    assert_eq!(caught.redis().command(&["DEBUG", "SLEEP", "12"]), "+OK\r\n");
    caught.assert_undamaged();
}

#[test]
fn connections_closed_by_redis_are_reopened() {
    let caught = PartialSync::start_on_redis(RedisServer::start());
    let ended = || caught.cluster.progress(&caught.id).state.is_final();
    await_true("the sync ends, whatever is killed", || {
        caught.redis().command(&["CLIENT", "KILL", "TYPE", "normal"]);
        ended()
    });
    caught.assert_undamaged();
}

#[test]
fn a_sync_waits_until_a_redis_that_became_a_replica_is_primary_again() {
    let caught = PartialSync::start_on_redis(RedisServer::start());
    assert_eq!(caught.redis().command(&["REPLICAOF", "127.0.0.1", "1"]), "+OK\r\n");
    caught.assert_refused("r.sock");
    assert_eq!(caught.redis().command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
    caught.assert_undamaged();
}

#[test]
fn a_redis_out_of_memory_refuses_new_syncs_and_lets_the_running_one_end() {
    let caught = PartialSync::start_on_redis(RedisServer::start());
    assert_eq!(caught.redis().command(&["CONFIG", "SET", "maxmemory", "1"]), "+OK\r\n");
    await_true("the master finds it", || {
        let reported = caught.cluster.master.readiness().unwrap();
        reported["store"]["problem"].as_str().is_some_and(|p| p.contains("maxmemory"))
    });
    let answer = caught.submit_another();
    let problem = answer.json();
    assert_eq!((answer.status, problem["code"].as_str()), (507, Some("store_full")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("maxmemory"), "{problem}");
    // What was accepted is done.
    assert_complete(&caught.cluster.await_end(&caught.id), census(&caught.src));
    assert_eq!(caught.submit_another().status, 507);
    assert_eq!(caught.redis().command(&["CONFIG", "SET", "maxmemory", "0"]), "+OK\r\n");
    await_true("a sync is accepted again", || caught.submit_another().status == 202);
}

/// A small file system of its own, gone when this is dropped.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn mount(at: &Path, size: &str) -> SmallFileSystem {
        let options = format!("size={size},mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at).status();
        assert!(done.unwrap().success(), "mount {}", at.display());
        SmallFileSystem(at.to_owned())
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_embedded_store_on_a_full_disk_is_reported_and_continues_when_space_is_free() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    cluster.master.terminate();
    let state = cluster.home().join("state");
    let small = SmallFileSystem::mount(&state, "3m");
    cluster.master.restart();
    let mut caught = PartialSync::start_partial(cluster);
    // Dropped before the cluster: its directory cannot be removed while something is mounted below.
    let _small = small;
    let filler = state.join("filler");
    // As much as there is room for, by and by: the store may give some back meanwhile.
    let fill = || drop(fs::write(&filler, vec![1; 3 * MIB]));
    let answer = await_some("a submit is refused", || {
        fill();
        let answer = caught.submit_another();
        (answer.status != 202).then_some(answer)
    });
    let problem = answer.json();
    assert_eq!(answer.status, 503, "{problem}");
    // Killed on the full disk: what was committed is there.
    fs::remove_file(&filler).unwrap();
    let address = caught.cluster.master.address();
    await_true("the master is ready again", || {
        http::try_request(&address, "GET", "/readyz", &[], None).is_some_and(|a| a.status == 200)
    });
    fs::write(&filler, vec![1; 3 * MIB]).unwrap_err();
    caught.cluster.master.kill_9();
    fs::remove_file(&filler).unwrap();
    caught.cluster.master.restart();
    let sync = caught.cluster.await_end(&caught.id);
    assert_complete(&sync, census(&caught.src));
    let log = caught.cluster.master.process.log();
    assert!(log.contains("full"), "{log}");
    assert!(!log.contains("malformed") && !log.contains("panicked"), "{log}");
}

/// All records that Redis has.
fn store_records(cluster: &Cluster) -> String {
    cluster.redis.as_ref().unwrap().command(&["HVALS", "{longhaul:default}:records"])
}

#[test]
fn a_submit_whose_master_was_killed_between_commit_and_reply_is_one_sync() {
    let (mut cluster, link) = cluster_over_relay();
    let (src, dst) = cluster.add_source_and_destination();
    tree::write_many_files(&src, 50, 3_000);
    // Redis asks for a script that it has not seen before: then the first commit is none.
    assert_complete(&cluster.run_sync(&src, &dst.join("before")), census(&src));
    let dst = dst.join("it");
    let address = cluster.master.address();
    let body = json!({"source_path": src, "destination_path": dst}).to_string();
    let submit = move || {
        let key = [("Idempotency-Key", "asked-twice")];
        http::try_request(&address, "POST", "/sync", &key, Some(body.as_bytes()))
    };
    link.drop_replies_after("asked-twice");
    let first = std::thread::spawn(submit.clone());
    await_true("Redis has the sync", || store_records(&cluster).contains("asked-twice"));
    cluster.master.kill_9();
    assert!(first.join().unwrap().is_none(), "it was not answered");
    link.restore();
    cluster.master.restart();
    let again = submit().expect("the master answers");
    assert_eq!(again.status, 202, "{}", again.text());
    let sync = cluster.await_end(again.json()["request_id"].as_str().unwrap());
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    assert_eq!(cluster.master.get("/sync").json().as_array().unwrap().len(), 2);
    cluster.assert_assigned_once();
    cluster.assert_no_panic();
}

/// The assignments in Redis.
fn assignment_records(cluster: &Cluster) -> Vec<String> {
    let records = store_records(cluster);
    let ids = records.split("\"assignment\":\"").skip(1);
    ids.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn a_lease_whose_master_was_killed_between_commit_and_reply_is_granted_to_the_repeated_poll() {
    let (mut cluster, link) = cluster_over_relay();
    let (src, root) = cluster.add_source_and_destination();
    let dst = root.join("it");
    tree::write_file(src.join("large"), tree::random_bytes(20 * MIB, 1));
    tree::write_many_files(&src, 400, 3_000);
    assert_complete(&cluster.run_sync(&src, &root.join("before")), census(&src));
    let body = json!({
        "request_id": "it", "source_path": src, "destination_path": dst,
        "chunk_size_mb": 4, "bwlimit": "8MiB/s",
    });
    let address = cluster.master.address();
    let mut unheard = Vec::new();
    for round in 0..3 {
        // As every lease that is new.
        link.drop_replies_after("\"next_page\":0}}");
        if round == 0 {
            // Not to be answered either: agents that wait are given work by the same commit.
            let (address, body) = (address.clone(), body.to_string());
            std::thread::spawn(move || {
                http::try_request(&address, "POST", "/sync", &[], Some(body.as_bytes()))
            });
        }
        let begun = |cluster: &Cluster, id: &String| cluster.started_assignments().contains(id);
        let lease = await_some("Redis has a lease that no agent has received", || {
            link.is_dropping_replies()
                .then(|| assignment_records(&cluster))?
                .into_iter()
                .find(|id| !begun(&cluster, id))
        });
        cluster.master.kill_9();
        assert!(!begun(&cluster, &lease), "it was not answered");
        unheard.push(lease);
        link.restore();
        cluster.master.restart();
    }
    let sync = cluster.await_end("it");
    assert_complete(&sync, census(&src));
    assert_eq!(
        sync.retries, 0,
        "a task that a new master assigns before the first heartbeats uses up no attempt"
    );
    assert_same(&src, &dst, exact_comparison());
    let begun = cluster.started_assignments();
    for lease in &unheard {
        let times = begun.iter().filter(|id| *id == lease).count();
        assert_eq!(times, 1, "{lease}: {begun:?}");
    }
    cluster.assert_assigned_once();
    cluster.assert_no_panic();
}
