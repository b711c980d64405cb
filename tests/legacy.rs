//! An agent in the shape of the original project's (`tests/legacy/agent.py`: pydantic models whose fields
//! are required, and httpx) takes part in a sync, and what it did not verify is never reported as full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cluster::{Cluster, On};
use support::process::{Running, User, clean_command};
use support::tree::{dir, file, many, noise};
use support::{PATIENCE, await_that};

/// An interpreter that has pydantic and httpx: the `python3` of the path may be one without the packages of
/// the system.
fn python() -> PathBuf {
    let has = |python: &Path| {
        let tried = Command::new(python).args(["-c", "import pydantic, httpx"]).output();
        tried.is_ok_and(|ran| ran.status.success())
    };
    let candidates = ["python3", "/usr/bin/python3"].map(PathBuf::from);
    candidates.into_iter().find(|python| has(python)).expect(
        "neither python3 nor /usr/bin/python3 has pydantic and httpx: scripts/test.sh installs them \
         (Debian: python3-pydantic, python3-httpx)",
    )
}

/// Starts the agent; it ends when the sync has.
fn start(cluster: &Cluster, storage: &[&Path], watch: &str) -> Running {
    let mut command = clean_command(&python(), cluster.home(), User::Same);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/legacy/agent.py"));
    command.args(["--master", &cluster.master.url(), "--worker-id", "legacy", "--watch", watch]);
    for path in storage {
        command.arg("--storage").arg(path);
    }
    Running::start(command, None)
}

/// The assignments that the agent received, once it has ended well.
fn assignments(agent: Running) -> Vec<Value> {
    let told = agent.finish(PATIENCE * 2).exits(0).json();
    told["assignments"].as_array().unwrap().clone()
}

/// Checks that a sync has ended as one whose success nobody verified, in the API and for scripts.
#[track_caller]
fn assert_unverified(cluster: &Cluster, id: &str) {
    let sync = cluster.progress(id);
    let end = (sync.state, sync.outcome);
    assert_eq!(end, (SyncState::Completed, Some(SyncOutcome::Unverified)), "{sync:#?}");
    assert!(sync.unverified > 0, "{sync:#?}");
    cluster.ctl(["sync", "wait", id]).run().exits(23);
}

#[test]
fn an_agent_of_the_original_project_takes_a_whole_sync_and_it_is_not_full() {
    let cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    many(&src, 20, 100);
    let id = cluster.submit(&src, &dst);
    let got = assignments(start(&cluster, &[&src, &dst], &id));
    assert_eq!(got[0]["task"]["kind"], "scan");
    for assignment in &got {
        let pools = [&assignment["source_worker_pool"], &assignment["destination_worker_pool"]];
        assert_eq!(pools, [&json!(["legacy"]), &json!(["legacy"])], "{assignment:#}");
    }
    assert_unverified(&cluster, &id);
}

#[test]
fn an_agent_of_the_original_project_works_beside_ours_and_the_sync_is_not_full() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    // Slow enough that it does not have all of the work before the other one has any.
    cluster.agent_with("a", &[&src], User::Same, "bwlimit: 4MiB/s\nslots: 1");
    cluster.agent("b", &[&dst]);
    let size = 300_000;
    for n in 0..100 {
        file(src.join(format!("file-{n:03}")), noise(size, n));
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    cluster.await_progress(&id, "has listed its source", |s| s.scan_done);
    // Nothing is handed out until the other agent asks for work.
    let order = |verb: &str| cluster.master.post(&format!("/sync/{id}/{verb}"), &json!({})).status;
    assert_eq!(order("pause"), 200);
    let agent = start(&cluster, &[&src], &id);
    await_that("the agent is known", || cluster.master.active().iter().any(|w| w == "legacy"));
    assert_eq!(order("resume"), 200);
    let got = assignments(agent);
    let batches: Vec<&Value> = got.iter().filter(|a| a["task"]["kind"] == "copy").collect();
    assert!(!batches.is_empty(), "{got:#?}");
    for batch in batches {
        assert_eq!(batch["chunk_offset"], 0);
        let bytes = batch["chunk_size"].as_u64().unwrap();
        assert!(bytes > 0 && bytes % size as u64 == 0, "{batch:#}");
        assert_eq!(batch["source_worker_pool"], json!(["a", "legacy"]));
        assert_eq!(batch["destination_worker_pool"], json!(["b"]));
    }
    assert_unverified(&cluster, &id);
}
