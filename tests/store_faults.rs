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
use support::relay::Relay;
use support::tree::{self, assert_same, census, strict};
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
        let id = cluster.in_the_middle(&src, &dst, (64, "12MiB/s"), json!({}));
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

    /// Submits another one, which the store will forget; what it is called.
    fn submit_lost(&self) -> String {
        let answer = self.submit();
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
    fn assert_begun_again(self, lost: &str) {
        let asked = self.cluster.master.get(&format!("/sync/{lost}"));
        assert_eq!(asked.status, 404, "{}", asked.text());
        let answer = self.submit();
        assert_eq!(answer.status, 202, "{}", answer.text());
        self.cluster.hurry(&self.id);
        let sync = self.cluster.ended(answer.json()["request_id"].as_str().unwrap());
        assert_complete(&sync, census(&self.src));
        assert_same(&self.src, &self.dst.with_file_name("more"), strict());
        self.assert_unharmed();
    }

    /// Waits for the end, and holds it to be as if nothing had been.
    #[track_caller]
    fn assert_unharmed(self) {
        self.cluster.hurry(&self.id);
        let sync = self.cluster.ended(&self.id);
        let there = census(&self.src);
        assert_complete(&sync, there);
        // What was submitted while the store was away may have been accepted, and said so.
        await_that("all others have ended", || {
            let list = self.cluster.master.get("/sync").json();
            list.as_array().unwrap().iter().all(|s| s["state"] == "COMPLETED")
        });
        assert_same(&self.src, &self.dst, strict());
        assert!(tree::part_files(&self.dst).is_empty());
        let again = self.cluster.submit_with(&self.src, &self.dst, json!({}));
        assert_nothing_to_do(&self.cluster.ended(&again), there);
        self.cluster.assert_handed_out_once();
        self.cluster.assert_no_panic();
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
    let mut caught = Caught::on(forgetful());
    caught.redis().command(&["SHUTDOWN", "NOSAVE"]);
    caught.assert_refused("r.sock");
    caught.redis_mut().restart();
    caught.assert_unharmed();
}

/// A Redis that keeps nothing on its disk.
fn forgetful() -> RedisServer {
    RedisServer::start_with(&["--appendonly", "no"])
}

#[test]
fn what_no_master_and_no_redis_remembers_is_submitted_again_and_only_the_rest_is_sent() {
    let mut caught = Caught::on(forgetful());
    caught.cluster.master.kill_9();
    caught.redis().command(&["SHUTDOWN", "NOSAVE"]);
    caught.redis_mut().restart();
    caught.cluster.master.restart();
    assert_eq!(caught.cluster.master.get("/sync").json(), json!([]));
    // The agents learn that what they have in hand is nobody's any more.
    let same = json!({"chunk_size_mb": 4});
    caught.id = caught.cluster.submit_with(&caught.src, &caught.dst, same);
    let sync = caught.cluster.ended(&caught.id);
    assert!(sync.sent_bytes < sync.total_bytes, "what had arrived was sent again: {sync:#?}");
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
fn a_master_that_starts_on_an_older_state_does_again_what_was_lost() {
    let mut caught = Caught::on(RedisServer::start());
    let old = caught.redis().remember();
    let lost = caught.submit_lost();
    caught.cluster.master.kill_9();
    caught.redis_mut().roll_back(&old);
    caught.cluster.master.restart();
    caught.assert_begun_again(&lost);
}

/// Kills Redis, and has it start from a log whose end was cut off in the middle of what was written after
/// it was `so_long`.
fn cut_the_log(redis: &mut RedisServer, so_long: u64) {
    redis.kill();
    let log = fs::OpenOptions::new().write(true).open(redis.aof()).unwrap();
    let now = log.metadata().unwrap().len();
    assert!(now > so_long + 1_000, "too little was written to be cut: {so_long} to {now}");
    log.set_len(so_long + (now - so_long) / 3).unwrap();
    redis.restart();
}

#[test]
fn redis_whose_log_was_cut_off_is_brought_up_to_date_by_the_living_master() {
    let mut caught = Caught::on(RedisServer::start());
    let so_long = fs::metadata(caught.redis().aof()).unwrap().len();
    let more = caught.submit_lost();
    cut_the_log(caught.redis_mut(), so_long);
    let sync = caught.cluster.ended(&more);
    assert_complete(&sync, census(&caught.src));
    caught.assert_unharmed();
}

/// A master that reaches its Redis by a link.
fn relayed() -> (Cluster, Relay) {
    let mut cluster = Cluster::start(On::Redis);
    let redis = cluster.redis.as_ref().unwrap();
    let link = Relay::to(&redis.socket());
    let config = cluster.home().join("master.yml");
    let direct = fs::read_to_string(&config).unwrap();
    fs::write(&config, direct.replace(&redis.url(), &link.redis_url())).unwrap();
    cluster.master.restart();
    (cluster, link)
}

/// A Redis with a replica, both behind an address that can move from the one to the other.
struct Replicated {
    caught: Caught,
    address: Relay,
    /// Between the two.
    line: Relay,
    replica: RedisServer,
}

impl Replicated {
    fn start() -> Replicated {
        let (cluster, address) = relayed();
        let line = Relay::to(&cluster.redis.as_ref().unwrap().socket());
        let port = line.port().to_string();
        let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
        await_that("the replica follows", || {
            replica.command(&["INFO", "replication"]).contains("master_link_status:up")
        });
        Replicated { caught: Caught::in_the_middle(cluster), address, line, replica }
    }

    /// The replica, which knows nothing of what was written since the line was cut, takes over.
    fn fail_over(&mut self) {
        self.caught.redis_mut().kill();
        assert_eq!(self.replica.command(&["REPLICAOF", "NO", "ONE"]), "+OK\r\n");
        self.address.move_to(&self.replica.socket());
    }
}

#[test]
fn a_replica_that_lagged_and_leads_is_brought_up_to_date_by_the_living_master() {
    let mut pair = Replicated::start();
    pair.line.cut();
    let more = pair.caught.submit_lost();
    pair.fail_over();
    let sync = pair.caught.cluster.ended(&more);
    assert_complete(&sync, census(&pair.caught.src));
    pair.caught.assert_unharmed();
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
    let mut caught = Caught::in_the_middle(cluster);
    // Dropped before the cluster: its directory cannot be removed while something is mounted below.
    let _small = small;
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
    fs::write(&filler, vec![1; 3 * MIB]).unwrap_err();
    caught.cluster.master.kill_9();
    fs::remove_file(&filler).unwrap();
    caught.cluster.master.restart();
    let sync = caught.cluster.ended(&caught.id);
    assert_complete(&sync, census(&caught.src));
    let log = caught.cluster.master.process.log();
    assert!(log.contains("full"), "{log}");
    assert!(!log.contains("malformed") && !log.contains("panicked"), "{log}");
}

/// All records that Redis has.
fn records(cluster: &Cluster) -> String {
    cluster.redis.as_ref().unwrap().command(&["HVALS", "{longhaul:default}:records"])
}

#[test]
fn a_submit_whose_master_was_killed_between_its_commit_and_its_answer_is_one_sync() {
    let (mut cluster, link) = relayed();
    let (src, dst) = cluster.pair();
    tree::many(&src, 50, 3_000);
    // Redis asks for a script that it has not seen before: then the first commit is none.
    assert_complete(&cluster.sync(&src, &dst.join("before")), census(&src));
    let dst = dst.join("it");
    let address = cluster.master.address();
    let body = json!({"source_path": src, "destination_path": dst}).to_string();
    let submit = move || {
        let key = [("Idempotency-Key", "asked-twice")];
        http::try_request(&address, "POST", "/sync", &key, Some(body.as_bytes()))
    };
    link.lose_answers_from("asked-twice");
    let first = std::thread::spawn(submit.clone());
    await_that("Redis has the sync", || records(&cluster).contains("asked-twice"));
    cluster.master.kill_9();
    assert!(first.join().unwrap().is_none(), "it was not answered");
    link.mend();
    cluster.master.restart();
    let again = submit().expect("the master answers");
    assert_eq!(again.status, 202, "{}", again.text());
    let sync = cluster.ended(again.json()["request_id"].as_str().unwrap());
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, strict());
    assert_eq!(cluster.master.get("/sync").json().as_array().unwrap().len(), 2);
    cluster.assert_handed_out_once();
    cluster.assert_no_panic();
}

/// The assignments of which Redis knows.
fn given(cluster: &Cluster) -> Vec<String> {
    let records = records(cluster);
    let ids = records.split("\"assignment\":\"").skip(1);
    ids.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn a_lease_whose_master_was_killed_between_its_commit_and_its_answer_is_given_to_who_asks_again() {
    let (mut cluster, link) = relayed();
    let (src, root) = cluster.pair();
    let dst = root.join("it");
    tree::file(src.join("large"), tree::noise(20 * MIB, 1));
    tree::many(&src, 400, 3_000);
    assert_complete(&cluster.sync(&src, &root.join("before")), census(&src));
    let body = json!({
        "request_id": "it", "source_path": src, "destination_path": dst,
        "chunk_size_mb": 4, "bwlimit": "8MiB/s",
    });
    let address = cluster.master.address();
    let mut unheard = Vec::new();
    for round in 0..3 {
        // As every lease that is new.
        link.lose_answers_from("\"page\":0}}");
        if round == 0 {
            // Not to be answered either: agents that wait are given work by the same commit.
            let (address, body) = (address.clone(), body.to_string());
            std::thread::spawn(move || {
                http::try_request(&address, "POST", "/sync", &[], Some(body.as_bytes()))
            });
        }
        let begun = |cluster: &Cluster, id: &String| cluster.begun().contains(id);
        let lease = await_some("Redis has a lease of which no agent has heard", || {
            link.is_losing().then(|| given(&cluster))?.into_iter().find(|id| !begun(&cluster, id))
        });
        cluster.master.kill_9();
        assert!(!begun(&cluster, &lease), "it was not answered");
        unheard.push(lease);
        link.mend();
        cluster.master.restart();
    }
    let sync = cluster.ended("it");
    assert_complete(&sync, census(&src));
    assert_eq!(
        sync.retries, 0,
        "what a new master gives before it knows who is there costs no try"
    );
    assert_same(&src, &dst, strict());
    let begun = cluster.begun();
    for lease in &unheard {
        let times = begun.iter().filter(|id| *id == lease).count();
        assert_eq!(times, 1, "{lease}: {begun:?}");
    }
    cluster.assert_handed_out_once();
    cluster.assert_no_panic();
}
