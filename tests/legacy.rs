//! An agent in the shape of the original project's (`tests/legacy/agent.py`: pydantic models with fields
//! are required, and httpx) takes part in a sync, and what it did not verify is never reported as full.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::cluster::{Cluster, StoreKind};
use support::process::{RunningCommand, User, clean_command};
use support::tree::{make_dir, random_bytes, write_file, write_many_files};
use support::{MAX_WAIT, await_true};

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
fn start_legacy_agent(cluster: &Cluster, storage: &[&Path], watch: &str) -> RunningCommand {
    let mut command = clean_command(&python(), cluster.home(), User::Same);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/legacy/agent.py"));
    command.args(["--master", &cluster.master.url(), "--worker-id", "legacy", "--watch", watch]);
    for path in storage {
        command.arg("--storage").arg(path);
    }
    RunningCommand::start(command, None)
}

/// The assignments that the agent received, once it has ended well.
fn assignments_of(agent: RunningCommand) -> Vec<Value> {
    let output = agent.finish(MAX_WAIT * 2).assert_exit_code(0).json();
    output["assignments"].as_array().unwrap().clone()
}

/// Checks that a sync has ended as unverified, in the API and for scripts.
#[track_caller]
fn assert_unverified(cluster: &Cluster, id: &str) {
    let sync = cluster.progress(id);
    let end = (sync.state, sync.outcome);
    assert_eq!(end, (SyncState::Completed, Some(SyncOutcome::Unverified)), "{sync:#?}");
    assert!(sync.unverified > 0, "{sync:#?}");
    cluster.ctl(["sync", "wait", id]).run().assert_exit_code(23);
}

#[test]
fn a_legacy_agent_runs_a_whole_sync_and_its_outcome_is_not_full() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_many_files(&src, 20, 100);
    let id = cluster.submit(&src, &dst);
    let got = assignments_of(start_legacy_agent(&cluster, &[&src, &dst], &id));
    assert_eq!(got[0]["task"]["kind"], "scan");
    for assignment in &got {
        let pools = [&assignment["source_worker_pool"], &assignment["destination_worker_pool"]];
        assert_eq!(pools, [&json!(["legacy"]), &json!(["legacy"])], "{assignment:#}");
    }
    assert_unverified(&cluster, &id);
}

#[test]
fn a_legacy_agent_works_beside_a_current_one_and_the_outcome_is_not_full() {
    let mut cluster = Cluster::start_with_shared(StoreKind::Embedded, &["src"]);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    // Slow enough that it does not have all of the work before the other one has any.
    cluster.add_agent_with("a", &[&src], User::Same, "bwlimit: 4MiB/s\nslots: 1");
    cluster.add_agent("b", &[&dst]);
    let size = 300_000;
    for n in 0..100 {
        write_file(src.join(format!("file-{n:03}")), random_bytes(size, n));
    }
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    cluster.await_progress(&id, "has listed its source", |s| s.scan_done);
    // Nothing is handed out until the other agent asks for work.
    let order = |verb: &str| cluster.master.post(&format!("/sync/{id}/{verb}"), &json!({})).status;
    assert_eq!(order("pause"), 200);
    let agent = start_legacy_agent(&cluster, &[&src], &id);
    await_true("the agent is known", || {
        cluster.master.active_workers().iter().any(|w| w == "legacy")
    });
    assert_eq!(order("resume"), 200);
    let got = assignments_of(agent);
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
