//! Which workers do the work of a sync, and how it ends early: pools, sharing, cancel, delete, drain.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use serde_json::{Value, json};
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tree::{
    self, assert_same, census, exact_comparison, make_dir, random_bytes, write_file,
    write_many_files,
};

const MIB: usize = 1 << 20;

#[test]
fn a_path_without_a_worker_keeps_the_sync_queued_with_a_reason() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = (make_dir(cluster.data_path("data")), make_dir(cluster.data_path("dst")));
    write_file(src.join("x"), "x");
    let database = make_dir(cluster.data_path("database"));
    let id = cluster.submit(&src, &dst);
    let reason = cluster.progress(&id).reason.expect("a reason");
    assert!(reason.contains(&src.display().to_string()), "{reason}");

    // A storage path of which only the letters fit does not hold the source.
    cluster.add_agent("near", &[&database]);
    cluster.add_agent("b", &[&dst]);
    let queued = cluster.progress(&id);
    assert_eq!(queued.state, SyncState::Queued, "{queued:#?}");
    let reason = queued.reason.expect("a reason");
    for part in [src.display().to_string(), database.display().to_string(), "near".to_owned()] {
        assert!(reason.contains(&part), "`{part}` in {reason}");
    }
    let listed = cluster.ctl(["sync", "list"]).run().assert_exit_code(0).stdout_text();
    assert!(listed.contains("QUEUED") && listed.contains("near"), "{listed}");

    cluster.add_agent("a", &[&src]);
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn paths_without_a_worker_are_named_at_submit_and_refused_with_no_queue() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("x"), "x");
    let (typo, good) = (cluster.data_path("srcc"), src.to_str().unwrap());
    let submit = |cluster: &Cluster, paths: [&str; 2], more: &[&str]| {
        cluster.ctl(["sync", "submit"]).args(paths).args(more).run()
    };
    let paths = [typo.to_str().unwrap(), dst.to_str().unwrap()];
    let ran = submit(&cluster, paths, &["--id", "late"]).assert_exit_code(0);
    for part in
        ["warning: no active worker serves the source path", paths[0], &format!("{good} (a)")]
    {
        assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
    }
    let ran = submit(&cluster, paths, &["--id", "json", "-o", "json"]).assert_exit_code(0);
    assert!(
        ran.json()["warnings"][0].as_str().unwrap().contains(paths[0]),
        "{}",
        ran.stdout_text()
    );
    // Refused, and nothing is left of it.
    let err =
        submit(&cluster, paths, &["--id", "now", "--no-queue"]).assert_exit_code(7).stderr_text();
    assert!(
        err.contains(paths[0]) && err.contains("--no-queue") && err.contains("(exit 7)"),
        "{err}"
    );
    cluster.ctl(["sync", "status", "now"]).run().assert_exit_code(3);
    let body = json!({"source_path": paths[0], "destination_path": paths[1], "options": {"no_queue": true}});
    let refused = cluster.master.post("/sync", &body);
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("no_worker")));
    // A waiting command shows the reason.
    let mut waits = cluster.ctl(["sync", "wait", "late", "--progress", "plain"]).start();
    waits
        .await_stderr("the reason is shown", |printed| printed.contains("no active worker serves"));
    drop(waits);
    // Where both are served there is no warning.
    cluster.ctl(["sync", "delete", "late", "json"]).run().assert_exit_code(0);
    let ran = submit(&cluster, [good, paths[1]], &["--no-queue", "--wait"]).assert_exit_code(0);
    assert!(!ran.stderr_text().contains("warning"), "{}", ran.stderr_text());
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn two_destination_workers_both_receive() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    cluster.add_agent("c", &[&dst]);
    write_file(src.join("large"), random_bytes(48 * MIB, 7));
    write_many_files(&src, 400, 50_000);
    let before = written_bytes_of_agents(&cluster, ["b", "c"]);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    let after = written_bytes_of_agents(&cluster, ["b", "c"]);
    let share = [after[0] - before[0], after[1] - before[1]];
    assert!(share.iter().sum::<u64>() >= sync.total_bytes, "{share:?}");
    for one in share {
        assert!(one > sync.total_bytes / 10, "both wrote a good part of it: {share:?}");
    }
}

#[test]
fn two_source_workers_share_the_reads() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    cluster.add_agent("a2", &[&src]);
    write_file(src.join("large"), random_bytes(48 * MIB, 8));
    write_many_files(&src, 400, 50_000);
    let read =
        |cluster: &Cluster| ["a", "a2"].map(|name| cluster.agents[name].process.file_bytes().0);
    let before = read(&cluster);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
    let after = read(&cluster);
    for one in [after[0] - before[0], after[1] - before[1]] {
        assert!(one > sync.total_bytes / 10, "both read a good part: {before:?} {after:?}");
    }
}

fn written_bytes_of_agents<const N: usize>(cluster: &Cluster, names: [&str; N]) -> [u64; N] {
    names.map(|name| cluster.agents[name].process.file_bytes().1)
}

/// Whether no worker has a task.
fn is_idle(cluster: &Cluster) -> bool {
    let workers = cluster.master.get("/workers").json();
    workers["active"].as_array().unwrap().iter().all(|w| w["in_flight"] == 0)
}

#[test]
fn concurrent_syncs_share_the_workers() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_source_and_destination();
    let trees: Vec<_> =
        (0..4).map(|i| (src.join(format!("{i}")), dst.join(format!("{i}")))).collect();
    for (i, (from, _)) in trees.iter().enumerate() {
        write_many_files(from, 300, 4_000);
        write_file(from.join("large"), random_bytes(8 * MIB, i as u64 + 1));
    }
    let ids: Vec<String> = trees
        .iter()
        .map(|(from, to)| cluster.submit_with(from, to, json!({"chunk_size_mb": 1})))
        .collect();
    // Each is begun before any has ended: none waits for another's end.
    let ends: Vec<_> = ids.iter().map(|id| cluster.await_end(id)).collect();
    let first_end = ends.iter().filter_map(|s| s.ended_at).min().unwrap();
    for (sync, (from, to)) in ends.iter().zip(&trees) {
        assert_complete(sync, census(from));
        assert_same(from, to, exact_comparison());
        assert!(sync.started_at.unwrap() <= first_end, "{ends:#?}");
    }
}

#[test]
fn a_cancelled_sync_writes_nothing_afterwards_and_leaves_no_part_file() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "");
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(256 * MIB, 9));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    cluster.await_progress(&id, "is in the middle", |s| s.transferred_bytes > 0);
    let answer = cluster.master.post(&format!("/sync/{id}/cancel"), &json!({}));
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("CANCELLED")));
    let cancelled = cluster.progress(&id);
    assert_eq!(cancelled.outcome, Some(SyncOutcome::Cancelled), "{cancelled:#?}");
    assert!(cancelled.transferred_bytes < cancelled.total_bytes, "{cancelled:#?}");
    await_true("the part file is removed", || tree::part_files(&dst).is_empty());
    await_true("nothing is in hand any more", || is_idle(&cluster));
    assert!(!dst.join("large").exists());
    assert_eq!(cluster.progress(&id).state, SyncState::Cancelled);
    // What is cancelled can be run again.
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_deleted_sync_frees_its_id() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(128 * MIB, 10));
    let again = json!({"chunk_size_mb": 4, "request_id": "again"});
    cluster.submit_with(&src, &dst, again.clone());
    cluster.await_progress("again", "is in the middle", |s| s.transferred_bytes > 0);
    let answer = cluster.master.delete("/sync/again");
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"status": "deleted", "cancelled": true}))
    );
    assert_eq!(cluster.master.get("/sync/again").status, 404);
    assert_eq!(cluster.master.get("/sync").json(), json!([]));
    cluster.submit_with(&src, &dst, again);
    assert_complete(&cluster.await_end("again"), census(&src));
    // The part file of the first is removed when no agent can write to it any more.
    await_true("no part file is left", || tree::part_files(&dst).is_empty());
    await_true("nothing is in hand any more", || is_idle(&cluster));
    assert_same(&src, &dst, exact_comparison());
    // What has ended is deleted as well; files stay.
    assert_eq!(cluster.master.delete("/sync/again").status, 200);
    assert_same(&src, &dst, exact_comparison());
}

/// What `GET /workers` says of a worker.
fn worker_view(cluster: &Cluster, id: &str) -> Value {
    let list = cluster.master.get("/workers").json();
    let all = ["active", "inactive"].map(|key| list[key].as_array().unwrap().clone()).concat();
    all.into_iter().find(|w| w["worker_id"] == id).unwrap_or_default()
}

#[test]
fn a_drained_worker_finishes_its_tasks_and_the_others_continue() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_two_agents_per_side();
    for i in 0..24 {
        write_file(src.join(format!("f{i}")), random_bytes(2 * MIB, i));
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1, "bwlimit": "8MiB/s"}));
    cluster.await_progress(&id, "has begun at a", |s| {
        s.transferred_bytes > 0 && s.detail.contains_key("a")
    });
    let args = ["workers", "drain", "a", "b", "--reason", "new disks"];
    let printed = cluster.ctl(args).run().assert_exit_code(0).stdout_text();
    assert!(
        printed.contains("Worker a is drain") && printed.contains("Worker b is drain"),
        "{printed}"
    );
    // Also after a restart of the master.
    cluster.master.restart();
    await_true("all agents are there", || cluster.master.active_workers().len() == 4);
    let a = worker_view(&cluster, "a");
    assert_eq!((&a["status"], &a["drained"]["reason"]), (&json!("DRAINING"), &json!("new disks")));
    let shown = cluster.ctl(["workers", "list"]).run().assert_exit_code(0).stdout_text();
    assert!(shown.contains("DRAIN") && shown.contains("new disks"), "{shown}");
    await_true("they have nothing in hand", || {
        ["a", "b"].iter().all(|w| worker_view(&cluster, w)["in_flight"] == 0)
    });
    let still = cluster.progress(&id);
    assert_eq!(still.state, SyncState::Progress, "the rest is left to others: {still:#?}");
    let before = cluster.agents["a"].process.file_bytes().0;
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert_eq!(sync.retries, 0, "nothing was taken away: {sync:#?}");
    assert_same(&src, &dst, exact_comparison());
    assert!(cluster.agents["a"].process.file_bytes().0 - before < MIB as u64, "a reads no more");

    // Without another worker at the destination a sync waits, and names the worker.
    cluster.ctl(["workers", "drain", "b2"]).run().assert_exit_code(0);
    let again = cluster.submit(&src, &cluster.data_path("dst/again"));
    let reason = cluster.progress(&again).reason.unwrap();
    assert!(reason.contains("b (drained by") && reason.contains("new disks"), "{reason}");
    cluster.ctl(["workers", "undrain", "b"]).run().assert_exit_code(0);
    assert_complete(&cluster.await_end(&again), census(&src));
    cluster.ctl(["workers", "drain", "typo"]).run().assert_exit_code(3);
}

/// One file that takes some seconds, as one task, some of which has arrived.
fn start_receiving_sync(cluster: &mut Cluster) -> (String, std::path::PathBuf, std::path::PathBuf) {
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(24 * MIB, 3));
    let id = cluster.submit_with(&src, &dst, json!({"bwlimit": "6MiB/s"}));
    cluster.await_progress(&id, "bytes move", |s| s.transferred_bytes > 0);
    (id, src, dst)
}

#[test]
fn a_receiver_is_drained_when_no_agent_writes_through_it() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (id, src, dst) = start_receiving_sync(&mut cluster);
    await_true("it is shown what b receives", || {
        worker_view(&cluster, "b")["incoming_requests"] == 1
    });
    assert_eq!(worker_view(&cluster, "b")["in_flight"], 0);
    // An undrain stands while a command waits for the drain.
    let waiting = cluster.ctl(["workers", "drain", "b", "--wait"]).start();
    await_true("b is drained", || !worker_view(&cluster, "b")["drained"].is_null());
    cluster.ctl(["workers", "undrain", "b"]).run().assert_exit_code(0);
    let printed = waiting.finish(support::MAX_WAIT).assert_exit_code(0).stdout_text();
    assert!(printed.contains("Worker b is undrained"), "{printed}");
    assert!(worker_view(&cluster, "b")["drained"].is_null());
    let printed = cluster.ctl(["workers", "drain", "b"]).run().assert_exit_code(0).stdout_text();
    assert!(printed.contains("Worker b is draining"), "{printed}");
    let printed =
        cluster.ctl(["workers", "drain", "b", "--wait"]).run().assert_exit_code(0).stdout_text();
    assert!(printed.contains("no other agent writes through it"), "{printed}");
    let b = worker_view(&cluster, "b");
    assert_eq!((&b["state"], &b["incoming_requests"]), (&json!("DRAINED"), &json!(0)), "{b}");
    let seen = cluster.progress(&id);
    assert_eq!((seen.files_done, seen.retries), (1, 0), "the file is there: {seen:#?}");
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_receiver_that_stops_finishes_the_writes_through_it() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (id, src, dst) = start_receiving_sync(&mut cluster);
    let b = cluster.agents.get_mut("b").unwrap();
    assert_eq!(b.terminate().code(), Some(0), "a clean stop");
    let seen = cluster.await_progress(&id, "the file is there", |s| s.files_done == 1);
    assert_eq!(seen.retries, 0, "no task failed: {seen:#?}");
    let gone = worker_view(&cluster, "b");
    assert_eq!((&gone["state"], &gone["active"]), (&json!("STOPPED"), &json!(false)), "{gone}");
    cluster.ctl(["workers", "forget", "b"]).run().assert_exit_code(0);
    cluster.agents.get_mut("b").unwrap().restart();
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn a_worker_can_be_removed_only_when_it_is_silent() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (_, _) = cluster.add_source_and_destination();
    let printed = cluster.ctl(["workers", "forget", "a"]).run();
    assert!(
        printed.code != Some(0) && printed.stderr_text().contains("is alive"),
        "{}",
        printed.stderr_text()
    );
    cluster.agents.get_mut("a").unwrap().kill_9();
    await_true("a is silent", || !cluster.master.active_workers().contains(&"a".to_owned()));
    cluster.ctl(["workers", "forget", "a"]).run().assert_exit_code(0);
    assert_eq!(worker_view(&cluster, "a"), Value::Null);
    cluster.ctl(["workers", "forget", "a"]).run().assert_exit_code(3);
    cluster.agents.get_mut("a").unwrap().restart();
    await_true("a is back", || cluster.master.active_workers().len() == 2);
}

#[test]
fn reassigned_tasks_are_done_by_other_workers_and_counted_once() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "");
    let (src, dst) = cluster.add_source_and_destination();
    for i in 0..16 {
        write_file(src.join(format!("f{i}")), random_bytes(2 * MIB, i));
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1, "bwlimit": "4MiB/s"}));
    cluster.await_progress(&id, "has begun", |s| {
        s.transferred_bytes > 0 && s.detail.contains_key("a")
    });
    cluster.add_agent("a2", &[&src]);
    let printed = cluster
        .ctl(["sync", "reassign", &id, "--worker", "a"])
        .run()
        .assert_exit_code(0)
        .stdout_text();
    assert!(printed.contains("Taken from worker a, for others: "), "{printed}");
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert!(sync.retries > 0, "{sync:#?}");
    assert_same(&src, &dst, exact_comparison());
    await_true("no part file is left", || tree::part_files(&dst).is_empty());
}

#[test]
fn reconciling_a_busy_installation_changes_nothing() {
    for on in [StoreKind::Embedded, StoreKind::Redis] {
        let mut cluster = Cluster::start(on);
        let (src, dst) = cluster.add_source_and_destination();
        write_file(src.join("large"), random_bytes(16 * MIB, 3));
        write_many_files(&src, 100, 1_000);
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1, "bwlimit": "8MiB/s"}));
        cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > 0);
        let answer = cluster.master.post("/admin/reconcile", &json!({}));
        let done = answer.json();
        assert_eq!((answer.status, &done["requeued_tasks"]), (200, &json!(0)), "{done}");
        let printed = cluster.ctl(["admin", "reconcile"]).run().assert_exit_code(0).stdout_text();
        assert!(printed.contains("nothing was changed"), "{printed}");
        cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
        let sync = cluster.await_end(&id);
        assert_complete(&sync, census(&src));
        assert_eq!(sync.retries, 0, "{sync:#?}");
    }
}

#[test]
fn an_agent_that_stops_finishes_its_tasks_and_the_others_continue() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    cluster.add_agent("a2", &[&src]);
    write_file(src.join("large"), random_bytes(96 * MIB, 11));
    write_many_files(&src, 200, 20_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > 0);
    let status = cluster.agents.get_mut("a").unwrap().terminate();
    assert_eq!(status.code(), Some(0), "a clean stop");
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn repeated_agent_restarts_use_up_no_attempts_of_files() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 0}");
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src.join("many"), 3_000, 100);
    let id = cluster.submit_and_await_partial(&src, &dst, (64, "12MiB/s"), json!({}));
    for times in 1..=4 {
        let begun = |cluster: &Cluster| {
            cluster.agents["a"].process.log().matches("agent started").count() == times
        };
        await_true("it has begun", || begun(&cluster));
        let further = cluster.progress(&id).transferred_bytes + 4 * MIB as u64;
        let agent = cluster.agents.get_mut("a").unwrap();
        assert_eq!(agent.terminate().code(), Some(0), "a clean stop");
        agent.restart();
        cluster.await_progress(&id, "goes on", |s| {
            s.transferred_bytes > further || s.state.is_final()
        });
    }
    let end = cluster.await_end(&id);
    assert_complete(&end, census(&src));
    assert_eq!(end.retries, 0, "{end:#?}");
    assert_same(&src, &dst, exact_comparison());
    cluster.assert_no_panic();
}

/// RFC 5737: no host has this address.
#[test]
fn an_endpoint_that_cannot_be_bound_is_shown_as_unavailable() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let src = make_dir(cluster.data_path("src"));
    let agent = cluster.add_agent("a", &[&src]);
    let more = "{address: 127.0.0.1, port: 0}, {address: 192.0.2.1, port: 7000}";
    agent.configure(|text| text.replace("{address: 127.0.0.1, port: 0}", more));
    agent.restart();
    let shown = || cluster.ctl(["workers", "show", "a"]).run().assert_exit_code(0).stdout_text();
    let line = |start: &str| {
        let shown = shown();
        shown.lines().find(|line| line.starts_with(start)).map(str::to_owned)
    };
    await_true("both are shown", || line("192.0.2.1:7000").is_some());
    let unavailable = line("192.0.2.1:7000").unwrap();
    assert!(unavailable.contains("disabled: unavailable, cannot listen on"), "{unavailable}");
    assert!(line("127.0.0.1:").unwrap().contains("usable"));
}
