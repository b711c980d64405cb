//! Limits on bytes per second, over several agents and while a sync runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tree::{assert_same, census, exact_comparison, random_bytes, write_file};

const MIB: f64 = (1u32 << 20) as f64;

/// What the destination agent `b` has written until now.
fn written_bytes_of_agents(cluster: &Cluster) -> u64 {
    cluster.agents["b"].process.file_bytes().1
}

/// What it writes in MiB per second, for so long from now on.
fn measure_rate(cluster: &Cluster, time: Duration) -> f64 {
    let (since, before) = (Instant::now(), written_bytes_of_agents(cluster));
    // The measurement itself, not a wait for something to happen.
    std::thread::sleep(time);
    (written_bytes_of_agents(cluster) - before) as f64 / MIB / since.elapsed().as_secs_f64()
}

/// Waits until `b` writes as fast as a limit of so many MiB per second lets it. What is on its way when
/// a limit changes, and what a process catches up with that got no processor for a while, may lie above
/// it for a moment: what counts is the rate that stays.
fn await_rate(cluster: &Cluster, limit: f64) {
    await_true("the rate is that of the limit", || {
        let rate = measure_rate(cluster, Duration::from_secs(3));
        eprintln!("{rate} MiB/s at {limit}");
        (0.7 * limit..=1.1 * limit).contains(&rate)
    });
}

#[test]
fn three_agents_together_respect_a_limit_that_changes_while_they_send() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    cluster.add_agent("a2", &[&src]);
    cluster.add_agent("a3", &[&src]);
    for n in 0..3 {
        write_file(src.join(format!("f{n}")), random_bytes(64 << 20, n + 1).repeat(2));
    }
    let id = "limited";
    let submit = ["sync", "submit", src.to_str().unwrap(), dst.to_str().unwrap(), "--id", id];
    let more = ["--bwlimit", "32MiB/s", "--chunk-size-mb", "4"];
    cluster.ctl(submit).args(more).run().assert_exit_code(0);
    await_true("something arrives", || written_bytes_of_agents(&cluster) > 16 << 20);
    await_rate(&cluster, 32.0);

    let set = cluster
        .ctl(["sync", "set", id, "--bwlimit", "8MiB/s"])
        .run()
        .assert_exit_code(0)
        .stdout_text();
    assert!(set.contains("8.0 MiB/s"), "{set}");
    let status = cluster.ctl(["sync", "status", id]).run().assert_exit_code(0).stdout_text();
    assert!(status.contains("Limit:       8.0 MiB/s"), "{status}");
    await_rate(&cluster, 8.0);

    cluster.ctl(["sync", "set", id, "--bwlimit", "none"]).run().assert_exit_code(0);
    let sync = cluster.await_end(id);
    assert_complete(&sync, census(&src));
    assert_eq!(sync.bwlimit, None);
    assert_same(&src, &dst, exact_comparison());
    let late = cluster.ctl(["sync", "set", id, "--bwlimit", "1G"]).run();
    assert!(late.stderr_text().contains("has ended"), "{}", late.stderr_text());
}

#[test]
fn an_agent_respects_its_own_limit_and_the_installation_its_timetable() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "bwlimit: Mon-Sun 16MiB/s\n");
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("f"), random_bytes(48 << 20, 1));
    let since = Instant::now();
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    let rate = 48.0 / since.elapsed().as_secs_f64();
    assert!(rate <= 1.1 * 16.0, "{rate} MiB/s with a timetable of 16");

    // One agent that holds both: what it copies by itself is limited as well.
    let both = support::tree::make_dir(cluster.data_path("both"));
    let (from, to) = (support::tree::make_dir(both.join("from")), both.join("to"));
    write_file(from.join("f"), random_bytes(16 << 20, 2));
    cluster.add_agent_with("c", &[&both], support::process::User::Same, "bwlimit: 8MiB/s");
    let since = Instant::now();
    assert_complete(&cluster.run_sync(&from, &to), census(&from));
    let rate = 16.0 / since.elapsed().as_secs_f64();
    assert!(rate <= 1.1 * 8.0, "{rate} MiB/s with an agent of 8");
}

#[test]
fn bytes_of_a_running_task_are_progress_with_a_rate_and_an_eta() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    // One task.
    write_file(src.join("f"), random_bytes(48 << 20, 1));
    let id = cluster.submit_with(&src, &dst, serde_json::json!({"bwlimit": "2MiB/s"}));
    let seen = cluster.await_progress(&id, "bytes move", |s| {
        s.transferred_bytes > 0 && s.rate.is_some() && s.eta_seconds.is_some()
    });
    assert_eq!((seen.files_done, seen.state.as_str()), (0, "PROGRESS"), "{seen:#?}");
    assert!(seen.transferred_bytes < seen.total_bytes, "{seen:#?}");
    let more =
        cluster.await_progress(&id, "more move", |s| s.transferred_bytes > seen.transferred_bytes);
    assert_eq!(more.files_done, 0, "{more:#?}");
    let list = cluster.ctl(["sync", "list"]).run().assert_exit_code(0).stdout_text();
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(row.iter().any(|cell| cell.ends_with("/s")), "{list}");
    cluster.lift_bandwidth_limit(&id);
    assert_complete(&cluster.await_end(&id), census(&src));
}

#[test]
fn a_limited_copy_shows_its_progress() {
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (support::tree::make_dir(home.path().join("src")), home.path().join("dst"));
    write_file(src.join("f"), random_bytes(8 << 20, 1));
    let copy = ["copy", "--progress", "plain", "--bwlimit", "2MiB/s"];
    let printed =
        support::ctl::ctl(copy).arg(&src).arg(&dst).run().assert_exit_code(0).stderr_text();
    let shares: Vec<f64> = printed
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("pct=")?.parse().ok())
        .collect();
    assert!(shares.iter().any(|share| (1.0..99.0).contains(share)), "{printed}");
}
