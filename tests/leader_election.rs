//! Several masters on one Redis: one leads, the others name it and take over. Whatever happens to the
//! leader, syncs go on, and agents and commands find the next one by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::path::{Path, PathBuf};
use support::await_true;
use support::cluster::{Cluster, Master, StoreKind, assert_complete};
use support::http;
use support::relay::Relay;
use support::tree::{assert_same, census, exact_comparison, part_files, write_many_files};

const MIB: usize = 1 << 20;
/// Three masters; the first leads.
fn three_masters() -> Cluster {
    three_masters_with("")
}

/// … with further lines in their configuration.
fn three_masters_with(more: &str) -> Cluster {
    let mut cluster = Cluster::start_with(StoreKind::Redis, more);
    cluster.add_master();
    cluster.add_master();
    cluster
}

/// A sync that takes some seconds, caught when some of it is there.
fn start_partial_sync(cluster: &mut Cluster) -> (PathBuf, PathBuf, String) {
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, (96, "12MiB/s"), json!({}));
    (src, dst, id)
}

/// Waits for the end of a sync that went through something, and holds it to be as if nothing had been.
#[track_caller]
fn assert_undamaged(cluster: &Cluster, id: &str, src: &Path, dst: &Path) -> SyncProgress {
    cluster.lift_bandwidth_limit(id);
    let sync = cluster.await_end(id);
    assert_complete(&sync, census(src));
    assert_same(src, dst, exact_comparison());
    assert!(part_files(dst).is_empty());
    cluster.assert_no_panic();
    sync
}

/// Waits until one of `others` leads; returns which.
fn index_of_leader(others: &[Master]) -> usize {
    support::await_some("another master leads", || {
        let leads =
            |m: &Master| m.readiness().is_some_and(|reported| reported["status"] == "ready");
        others.iter().position(leads)
    })
}

fn epoch_of(master: &Master) -> u64 {
    let reported = master.readiness().expect("it answers");
    reported["leader"]["epoch"].as_u64().unwrap_or_else(|| panic!("{reported}"))
}

#[test]
fn followers_name_the_leader_and_its_address() {
    let cluster = three_masters();
    let leader = &cluster.master;
    let reported = leader.await_status("ready");
    assert_eq!(
        (&reported["role"], &reported["store"]["ok"]),
        (&json!("leader"), &json!(true)),
        "{reported}"
    );
    for follower in &cluster.other_masters {
        let seen = follower.await_status("following");
        assert_eq!((&seen["role"], &seen["leader"]), (&json!("follower"), &reported["leader"]));
        assert_eq!(seen["leader"]["url"], leader.url(), "{seen}");
        assert_eq!(follower.get("/healthz").status, 200);
        assert_eq!(follower.get("/readyz").status, 200);
        assert_eq!(follower.get("/v1/version").status, 200);
        for (method, target) in
            [("GET", "/sync?limit=5"), ("POST", "/v1/sync"), ("POST", "/workers/heartbeat")]
        {
            let body = (method == "POST").then_some(&b"{}"[..]);
            let answer = http::try_request(&follower.address(), method, target, &[], body).unwrap();
            assert_eq!(answer.status, 307, "{}", answer.text());
            let location = format!("{}{target}", leader.url());
            assert_eq!(answer.header("location"), Some(location.as_str()));
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            let problem = answer.json();
            assert_eq!(
                (&problem["code"], &problem["leader"]),
                (&json!("not_leader"), &reported["leader"])
            );
        }
    }
    // A command with the address of a follower reaches the leader.
    let follower = cluster.other_masters[0].url();
    let listed = support::ctl::ctl(["sync", "list", "-o", "json", "--master-url", &follower]).run();
    assert_eq!(listed.assert_exit_code(0).json(), json!([]));
}

#[test]
fn the_status_of_all_masters_names_the_leader_and_fails_without_one() {
    let mut cluster = three_masters();
    let status = |cluster: &Cluster, format: &str| {
        cluster.ctl(["master", "status", "--request-timeout", "5s", "-o", format]).run()
    };
    let all = status(&cluster, "json").assert_exit_code(0).json();
    let roles: Vec<&str> =
        all.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["leader", "follower", "follower"], "{all}");
    let shown = status(&cluster, "table").assert_exit_code(0).stdout_text();
    assert_eq!(shown.lines().count(), 4, "{shown}");
    assert!(shown.lines().nth(1).unwrap().contains("leader"), "{shown}");
    let asked = cluster.ctl(["master", "status", "-q"]).run().assert_exit_code(0).stdout_text();
    assert_eq!(asked.trim(), cluster.master.url());

    cluster.master.kill_9();
    let next = index_of_leader(&cluster.other_masters);
    let all = status(&cluster, "json").assert_exit_code(0).json();
    assert_eq!(all[0]["reachable"], false, "{all}");
    assert_eq!(all[next + 1]["role"], "leader", "{all}");
    let shown = status(&cluster, "table").assert_exit_code(0).stdout_text();
    assert!(shown.lines().nth(1).unwrap().contains("unreachable"), "{shown}");

    for master in &mut cluster.other_masters {
        master.kill_9();
    }
    let printed = status(&cluster, "table").assert_exit_code(5).stderr_text();
    assert!(printed.contains("none of these masters leads"), "{printed}");
}

#[test]
fn another_master_takes_over_when_the_leader_is_killed_in_mid_sync() {
    let mut cluster = three_masters();
    let (src, dst, id) = start_partial_sync(&mut cluster);
    let waiting = cluster.ctl(["sync", "wait", &id]).start();
    cluster.master.kill_9();
    let next = index_of_leader(&cluster.other_masters);
    assert_undamaged(&cluster, &id, &src, &dst);
    waiting.finish(support::MAX_WAIT).assert_exit_code(0);
    // The dead one comes back, and follows.
    let dead = &mut cluster.master;
    dead.restart();
    dead.await_status("following");
    assert_eq!(epoch_of(dead), epoch_of(&cluster.other_masters[next]));
}

#[test]
fn a_suspended_leader_becomes_a_follower_when_it_continues() {
    let mut cluster = three_masters();
    let (src, dst, id) = start_partial_sync(&mut cluster);
    let before = epoch_of(&cluster.master);
    cluster.master.process.freeze();
    let next = index_of_leader(&cluster.other_masters);
    // Agents change to the new leader, also those with pending requests at the old one.
    let copied = || cluster.other_masters[next].progress(&id).map_or(0, |s| s.transferred_bytes);
    let before_it = copied();
    await_true("the sync goes on", || copied() > before_it + 4 * MIB as u64);
    cluster.master.process.thaw();
    let reported = cluster.master.await_status("following");
    assert_eq!(reported["leader"]["url"], cluster.other_masters[next].url(), "{reported}");
    assert!(epoch_of(&cluster.master) > before);
    assert_undamaged(&cluster, &id, &src, &dst);
    assert!(cluster.master.process.try_exit_status().is_none(), "it did not exit");
}

#[test]
fn a_leader_without_its_store_refuses_requests_and_follows_when_the_store_is_back() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let relay = Relay::to_socket(&cluster.redis.as_ref().unwrap().socket());
    let file = cluster.home().join("master.yml");
    let direct = std::fs::read_to_string(&file).unwrap();
    let url = cluster.redis.as_ref().unwrap().url();
    cluster.add_master();
    // The first one is started again with a link that can be cut; the other one leads meanwhile, and
    // is sent away again.
    std::fs::write(&file, direct.replace(&url, &relay.redis_url())).unwrap();
    cluster.master.restart();
    cluster.other_masters[0].terminate();
    cluster.master.await_status("ready");
    cluster.other_masters[0].restart();
    cluster.other_masters[0].await_status("following");
    let (src, dst, id) = start_partial_sync(&mut cluster);
    relay.cut();
    cluster.other_masters[0].await_status("ready");
    let reported = cluster.master.await_status("unavailable");
    assert_eq!(reported["store"]["ok"], false, "{reported}");
    let refused = cluster.master.get("/sync");
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true));
    relay.restore();
    cluster.master.await_status("following");
    assert_undamaged(&cluster, &id, &src, &dst);
}

#[test]
fn a_leader_that_stops_gracefully_gives_up_its_lease_at_once() {
    // Far longer than it is waited for a successor.
    let mut cluster = three_masters_with("leadership_lease: 5m\n");
    let (src, dst, id) = start_partial_sync(&mut cluster);
    assert_eq!(cluster.master.terminate().code(), Some(0));
    index_of_leader(&cluster.other_masters);
    assert_undamaged(&cluster, &id, &src, &dst);
}

#[test]
fn the_leader_restores_a_lost_redis_and_no_follower_takes_over_an_empty_store() {
    let mut cluster = three_masters();
    let (src, dst, id) = start_partial_sync(&mut cluster);
    let before = epoch_of(&cluster.master);
    let redis = cluster.redis.as_ref().unwrap();
    assert_eq!(redis.command(&["FLUSHALL"]), "+OK\r\n");
    await_true("the sync is in the store again", || {
        !redis.command(&["HGETALL", "{longhaul:default}:records"]).starts_with("*0")
    });
    assert_undamaged(&cluster, &id, &src, &dst);
    assert_eq!(epoch_of(&cluster.master), before);
    cluster.other_masters.iter().for_each(|other| drop(other.await_status("following")));
}

#[test]
fn every_sync_completes_across_repeated_leader_changes() {
    let mut cluster = three_masters();
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 2_000, 2_000);
    let mut ids = Vec::new();
    for round in 0..4 {
        // Submitted to all of them: it reaches the leader, even if there is none at first.
        let to = dst.join(format!("{round}"));
        let submitted = support::await_some("a sync is accepted", || {
            let ran = cluster.ctl(["sync", "submit", "-q", "--id", &format!("s{round}")]);
            let ran = ran.arg(&src).arg(&to).run();
            (ran.code == Some(0)).then(|| ran.stdout_text().trim().to_owned())
        });
        ids.push((submitted, to));
        let all = std::iter::once(&mut cluster.master).chain(&mut cluster.other_masters);
        for master in all {
            if master.readiness().is_some_and(|reported| reported["role"] == "leader") {
                master.kill_9();
                master.restart();
            }
        }
    }
    for (id, to) in ids {
        assert_complete(&cluster.await_end(&id), census(&src));
        assert_same(&src, &to, exact_comparison());
    }
}
