//! Wrong clocks: of agents, of masters, of Redis, of a command. What is decided by time is decided by time that
//! no user sets, or by one clock for all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::SyncProgress;
use serde_json::json;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use support::await_true;
use support::clock::{Clock, DAY};
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::ctl::{Ctl, ctl};
use support::redis::RedisServer;
use support::tree::{
    self, assert_same, census, exact_comparison, part_files, write_file, write_many_files,
};

/// What makes a sync take so long that it can be caught.
const LARGE_FILE_AND_LIMIT: (usize, &str) = (64, "16MiB/s");

#[track_caller]
fn assert_undamaged(cluster: &Cluster, sync: &SyncProgress, src: &Path, dst: &Path) {
    let there = census(src);
    assert_complete(sync, there);
    assert_same(src, dst, exact_comparison());
    assert!(part_files(dst).is_empty());
    assert_nothing_to_do(&cluster.run_sync(src, dst), there);
    cluster.assert_no_panic();
}

/// The date that is `seconds` from now, as logs have it.
fn date_of(seconds: i64) -> String {
    let now = jiff::Timestamp::now().as_second() + seconds;
    jiff::Timestamp::from_second(now).unwrap().to_string()[..10].to_owned()
}

#[test]
fn wrong_and_jumping_clocks_of_masters_and_agents_have_no_effect() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let home = cluster.home().to_owned();
    let clock = |name: &str, days: i64| Clock::at(home.join(format!("{name}.clock")), days * DAY);
    let clocks =
        [("master", -3), ("a", 2), ("b", -2)].map(|(name, days)| (clock(name, days), days));
    cluster.master.restart();
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    for (process, days) in [
        (&cluster.master.process, -3),
        (&cluster.agents["a"].process, 2),
        (&cluster.agents["b"].process, -2),
    ] {
        assert!(process.log().contains(&date_of(days * DAY)), "its clock is not wrong");
    }
    let further = cluster.progress(&id).transferred_bytes + (8 << 20);
    for (clock, days) in &clocks {
        clock.set(-days * DAY);
    }
    cluster.await_progress(&id, "goes on", |s| s.transferred_bytes > further);
    clocks[1].0.set(0);
    assert_undamaged(&cluster, &cluster.await_end(&id), &src, &dst);
    // What is there is of the future to one, and of the past to another.
    for days in [2, -2] {
        clocks.iter().for_each(|(clock, _)| clock.set(days * DAY));
        for i in 0..50 {
            write_file(src.join(format!("again-{i}")), format!("on day {days}, and {i}"));
        }
        assert_undamaged(&cluster, &cluster.run_sync(&src, &dst), &src, &dst);
    }
}

/// How often any of the masters has begun to lead.
fn elections(cluster: &Cluster) -> usize {
    cluster.masters().map(|m| m.process.log().matches("leader ready").count()).sum()
}

#[test]
fn a_jumping_clock_of_redis_changes_the_leader_at_most_once() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::at(dir.path().join("clock"), 0);
    let redis = RedisServer::start_with_environment(&[], &clock.environment_of_this());
    let mut cluster = Cluster::start_with_redis(Some(redis), "");
    cluster.add_master();
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    let mut known = elections(&cluster);
    assert_eq!(known, 1);
    for days in [1, -1] {
        let redis = cluster.redis.as_ref().unwrap();
        clock.set(days * DAY);
        let time = redis.command(&["TIME"]);
        let seconds: i64 = time.lines().nth(2).unwrap().trim().parse().unwrap();
        let off = seconds - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((off - days * DAY).abs() < 60, "{time}");
        let further = cluster.progress(&id).transferred_bytes + (4 << 20);
        cluster.await_progress(&id, "goes on", |s| s.transferred_bytes > further);
        await_true("one of them leads", || {
            cluster
                .masters()
                .any(|m| m.readiness().is_some_and(|reported| reported["status"] == "ready"))
        });
        let now = elections(&cluster);
        assert!(now <= known + 1, "{known} reigns, then {now}");
        known = now;
    }
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
    assert!(part_files(&dst).is_empty());
    cluster.assert_no_panic();
    assert!(elections(&cluster) <= 3, "once for each jump");
}

/// A command that has this clock.
fn with_clock(clock: &Clock, command: Ctl) -> Ctl {
    clock
        .environment_of_this()
        .into_iter()
        .fold(command, |command, (name, value)| command.env(name, value))
}

#[test]
fn copy_works_with_a_clock_of_1975_and_of_2100() {
    let dir = tempfile::tempdir().unwrap();
    let (src, now) = (tree::make_dir(dir.path().join("src")), jiff::Timestamp::now().as_second());
    write_many_files(&src, 300, 1_000);
    write_file(src.join("large"), tree::random_bytes(20 << 20, 1));
    tree::write_unusual_tree(&src.join("odd"));
    for (year, begins) in [("1975", 157_766_400), ("2100", 4_102_444_800)] {
        let clock = Clock::at(dir.path().join(year), begins - now);
        let dst = dir.path().join(format!("dst-{year}"));
        let copy = || {
            let copy = ctl(["copy"]).arg(&src).arg(&dst).args(["--output", "json"]);
            with_clock(&clock, copy).run().assert_exit_code(0)
        };
        assert!(
            copy().stdout_text().contains(&format!("\"{year}-01-01T")),
            "its clock is not wrong"
        );
        assert_same(&src, &dst, exact_comparison());
        // What is replaced is of another time than the clock's.
        write_file(src.join("large"), tree::random_bytes(20 << 20, 2));
        write_file(src.join("small"), year);
        copy();
        write_file(src.join("small"), format!("{year}, again"));
        copy();
        assert_same(&src, &dst, exact_comparison());
        assert!(part_files(&dst).is_empty());
    }
}

#[test]
fn commands_work_with_a_clock_of_1960() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 30, 1_000);
    let clock =
        Clock::at(cluster.home().join("1960"), -315_619_200 - jiff::Timestamp::now().as_second());
    let reported = |args: &[&str]| {
        let url = cluster.master.url();
        with_clock(&clock, ctl(args).args(["--master-url", &url]))
            .run()
            .assert_exit_code(0)
            .stdout_text()
    };
    let (from, to) = (src.to_str().unwrap(), dst.to_str().unwrap());
    reported(&["sync", "submit", from, to, "--id", "of-1960", "--wait"]);
    assert_complete(&cluster.await_end("of-1960"), census(&src));
    assert_same(&src, &dst, exact_comparison());
    for args in
        [&["sync", "list"][..], &["sync", "status", "of-1960"], &["sync", "delete", "of-1960"]]
    {
        assert!(reported(args).contains("of-1960"), "{args:?}");
    }
    assert!(reported(&["workers", "list"]).contains('a'));
}
