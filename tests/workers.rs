//! Who does the work of a sync, and how it ends early: pools, sharing, cancel, delete, drain.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{Outcome, SyncState};
use serde_json::json;
use support::await_that;
use support::cluster::{Cluster, On, assert_complete};
use support::tree::{self, assert_same, census, dir, file, many, noise, strict};

const MIB: usize = 1 << 20;

#[test]
fn a_path_without_a_worker_keeps_the_sync_queued_with_the_reason_until_one_turns_up() {
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = (dir(cluster.path("data")), dir(cluster.path("dst")));
    file(src.join("x"), "x");
    let database = dir(cluster.path("database"));
    let id = cluster.submit(&src, &dst);
    let reason = cluster.progress(&id).reason.expect("a reason");
    assert!(reason.contains(&src.display().to_string()), "{reason}");

    // A storage path of which only the letters fit does not hold the source.
    cluster.agent("near", &[&database]);
    cluster.agent("b", &[&dst]);
    let queued = cluster.progress(&id);
    assert_eq!(queued.state, SyncState::Queued, "{queued:#?}");
    let reason = queued.reason.expect("a reason");
    for part in [src.display().to_string(), database.display().to_string(), "near".to_owned()] {
        assert!(reason.contains(&part), "`{part}` in {reason}");
    }
    let listed = cluster.ctl(["sync", "list"]).run().exits(0).out();
    assert!(listed.contains("QUEUED") && listed.contains("near"), "{listed}");

    cluster.agent("a", &[&src]);
    assert_complete(&cluster.ended(&id), census(&src));
    assert_same(&src, &dst, strict());
}

#[test]
fn two_workers_at_the_destination_both_receive() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    cluster.agent("c", &[&dst]);
    file(src.join("large"), noise(48 * MIB, 7));
    many(&src, 400, 50_000);
    let before = written(&cluster, ["b", "c"]);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    let sync = cluster.ended(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, strict());
    let after = written(&cluster, ["b", "c"]);
    let share = [after[0] - before[0], after[1] - before[1]];
    assert!(share.iter().sum::<u64>() >= sync.total_bytes, "{share:?}");
    for one in share {
        assert!(one > sync.total_bytes / 10, "both wrote a good part of it: {share:?}");
    }
}

#[test]
fn two_workers_at_the_source_share_the_reading() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    cluster.agent("a2", &[&src]);
    file(src.join("large"), noise(48 * MIB, 8));
    many(&src, 400, 50_000);
    let read =
        |cluster: &Cluster| ["a", "a2"].map(|name| cluster.agents[name].process.file_bytes().0);
    let before = read(&cluster);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    let sync = cluster.ended(&id);
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, strict());
    let after = read(&cluster);
    for one in [after[0] - before[0], after[1] - before[1]] {
        assert!(one > sync.total_bytes / 10, "both read a good part: {before:?} {after:?}");
    }
}

fn written<const N: usize>(cluster: &Cluster, names: [&str; N]) -> [u64; N] {
    names.map(|name| cluster.agents[name].process.file_bytes().1)
}

/// Whether no worker has a task.
fn idle(cluster: &Cluster) -> bool {
    let workers = cluster.master.get("/workers").json();
    workers["active"].as_array().unwrap().iter().all(|w| w["in_flight"] == 0)
}

#[test]
fn several_syncs_at_once_share_the_workers() {
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = cluster.pair();
    let trees: Vec<_> =
        (0..4).map(|i| (src.join(format!("{i}")), dst.join(format!("{i}")))).collect();
    for (i, (from, _)) in trees.iter().enumerate() {
        many(from, 300, 4_000);
        file(from.join("large"), noise(8 * MIB, i as u64 + 1));
    }
    let ids: Vec<String> = trees
        .iter()
        .map(|(from, to)| cluster.submit_with(from, to, json!({"chunk_size_mb": 1})))
        .collect();
    // Each is begun before any has ended: none waits for another's end.
    let ends: Vec<_> = ids.iter().map(|id| cluster.ended(id)).collect();
    let first_end = ends.iter().filter_map(|s| s.ended_at).min().unwrap();
    for (sync, (from, to)) in ends.iter().zip(&trees) {
        assert_complete(sync, census(from));
        assert_same(from, to, strict());
        assert!(sync.started_at.unwrap() <= first_end, "{ends:#?}");
    }
}

#[test]
fn a_cancelled_sync_stops_writes_nothing_more_and_leaves_no_part_file() {
    let mut cluster = Cluster::start_with(On::Embedded, "");
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(256 * MIB, 9));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    cluster.await_progress(&id, "is in the middle", |s| s.transferred_bytes > 0);
    let answer = cluster.master.post(&format!("/sync/{id}/cancel"), &json!({}));
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("CANCELLED")));
    let cancelled = cluster.progress(&id);
    assert_eq!(cancelled.outcome, Some(Outcome::Cancelled), "{cancelled:#?}");
    assert!(cancelled.transferred_bytes < cancelled.total_bytes, "{cancelled:#?}");
    await_that("the part file is removed", || tree::part_files(&dst).is_empty());
    await_that("nothing is in hand any more", || idle(&cluster));
    assert!(!dst.join("large").exists());
    assert_eq!(cluster.progress(&id).state, SyncState::Cancelled);
    // What is cancelled can be run again.
    assert_complete(&cluster.sync(&src, &dst), census(&src));
    assert_same(&src, &dst, strict());
}

#[test]
fn a_deleted_sync_is_forgotten_and_its_id_is_free_again() {
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(128 * MIB, 10));
    let again = json!({"chunk_size_mb": 4, "request_id": "again"});
    cluster.submit_with(&src, &dst, again.clone());
    cluster.await_progress("again", "is in the middle", |s| s.transferred_bytes > 0);
    let answer = cluster.master.delete("/sync/again");
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"deleted"}"#));
    assert_eq!(cluster.master.get("/sync/again").status, 404);
    assert_eq!(cluster.master.get("/sync").json(), json!([]));
    cluster.submit_with(&src, &dst, again);
    assert_complete(&cluster.ended("again"), census(&src));
    // The part file of the first is removed when nobody can be writing to it any more.
    await_that("no part file is left", || tree::part_files(&dst).is_empty());
    await_that("nothing is in hand any more", || idle(&cluster));
    assert_same(&src, &dst, strict());
    // What has ended is deleted as well; files stay.
    assert_eq!(cluster.master.delete("/sync/again").status, 200);
    assert_same(&src, &dst, strict());
}

#[test]
fn an_agent_told_to_stop_finishes_and_the_others_go_on() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    cluster.agent("a2", &[&src]);
    file(src.join("large"), noise(96 * MIB, 11));
    many(&src, 200, 20_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 2}));
    cluster.await_progress(&id, "has begun", |s| s.transferred_bytes > 0);
    let status = cluster.agents.get_mut("a").unwrap().terminate();
    assert_eq!(status.code(), Some(0), "a clean stop");
    assert_complete(&cluster.ended(&id), census(&src));
    assert_same(&src, &dst, strict());
}
