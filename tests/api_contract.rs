//! The master's contract with users and programs written from the guide alone: its requests verbatim
//! against a running master, and an agent written by hand from its documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, Master, StoreKind, assert_complete};
use support::guide::{DELETE, HEARTBEAT, LIST, POLL, PROGRESS, RESULT, SUBMIT, shell_words};
use support::http::{self, Response};
use support::tree::{
    ComparisonRules, assert_same, census, exact_comparison, make_dir, write_file, write_many_files,
};
use support::{await_some, await_true};

/// Sends what curl would send; only the port is that of this master.
fn run_curl(master: &Master, command: &str) -> Response {
    let mut words = shell_words(command).into_iter().skip(1);
    let (mut method, mut url, mut head, mut body) = ("GET".to_owned(), None, String::new(), None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-X" => method = words.next().unwrap(),
            "-H" => head.push_str(&format!("{}\r\n", words.next().unwrap())),
            "-d" => body = words.next(),
            _ => url = Some(word),
        }
    }
    let path = url.unwrap().strip_prefix("http://127.0.0.1:8888").unwrap().to_owned();
    if let Some(body) = &body {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let address = master.address();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
         {head}Connection: close\r\n\r\n{}",
        body.unwrap_or_default()
    );
    http::send_raw(&address, request.as_bytes()).expect("the master answers")
}

#[test]
fn the_requests_of_the_guide_work_verbatim() {
    for on in [StoreKind::Redis, StoreKind::Embedded] {
        let cluster = Cluster::start(on);
        let master = &cluster.master;

        // The first one as it stands has a comma too many.
        let refused = run_curl(master, SUBMIT);
        assert_eq!(refused.status, 400);
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        for part in ["trailing comma", "line 5", "column 28"] {
            assert!(detail.contains(part), "`{part}` in {detail}");
        }
        assert_eq!(run_curl(master, PROGRESS).status, 404);
        assert_eq!(run_curl(master, LIST).json(), json!([]));

        let mended = SUBMIT.replace("64,", "64");
        let accepted = run_curl(master, &mended);
        assert_eq!((accepted.status, accepted.header("location")), (202, Some("sync/demo-1")));
        let body = accepted.json();
        assert_eq!((&body["status"], &body["request_id"]), (&json!("queued"), &json!("demo-1")));

        // The same id again.
        let twice = run_curl(master, &mended);
        assert_eq!((twice.status, &twice.json()["existing"]), (409, &json!("QUEUED")));
        assert!(twice.json()["detail"].is_string());

        let progress = run_curl(master, PROGRESS);
        assert_eq!(progress.status, 200);
        let document = progress.json();
        assert_eq!(document["state"], "QUEUED");
        assert!(document["reason"].as_str().unwrap().contains("/data/source"), "{document:#}");
        for field in ["request_id", "transferred_bytes", "total_bytes", "started_at", "updated_at"]
        {
            assert!(document.get(field).is_some(), "{field} in {document:#}");
        }
        assert!(document["detail"].is_object());
        assert_eq!(run_curl(master, LIST).json(), json!([document]), "a bare array of the same");

        let beat = run_curl(master, HEARTBEAT);
        assert_eq!((beat.status, beat.text().as_str()), (200, r#"{"status":"ok"}"#));
        let listed = master.get("/workers").json();
        assert_eq!(listed["active"][0]["worker_id"], "worker-a");
        assert_eq!(listed["active"][0]["data_plane_endpoints"][0]["iface"], "ib0");
        // No worker holds the destination yet.
        let nothing = run_curl(master, POLL);
        assert_eq!((nothing.status, nothing.text().as_str()), (200, "null"));

        let other = HEARTBEAT.replace("worker-a", "worker-b").replace("/data/source", "/data/dest");
        assert_eq!(run_curl(master, &other).status, 200);
        let assignment = run_curl(master, POLL).json();
        assert_eq!(assignment["request_id"], "demo-1");
        let pool = |side: &str| -> Vec<Value> {
            let members = assignment[side].as_array().unwrap().iter();
            members.map(|m| m["worker_id"].clone()).collect()
        };
        assert_eq!(pool("source_workers"), [json!("worker-a")]);
        assert_eq!(pool("destination_workers"), [json!("worker-b")]);
        let endpoint = &assignment["destination_workers"][0]["data_plane_endpoints"][0];
        assert_eq!(endpoint["address"], "192.168.100.10");
        assert_eq!(run_curl(master, PROGRESS).json()["state"], "PROGRESS");

        let result = run_curl(master, RESULT);
        assert_eq!((result.status, result.text().as_str()), (200, r#"{"status":"ack"}"#));
        let document = run_curl(master, PROGRESS).json();
        assert_eq!((&document["state"], &document["unverified"]), (&json!("COMPLETED"), &json!(1)));
        assert_eq!(document["outcome"], "unverified");
        // Late or twice: acknowledged, and nothing changes.
        assert_eq!(run_curl(master, RESULT).status, 200);
        assert_eq!(run_curl(master, PROGRESS).json(), document);

        let deleted = run_curl(master, DELETE);
        assert_eq!((deleted.status, deleted.text().as_str()), (200, r#"{"status":"deleted"}"#));
        assert_eq!(run_curl(master, PROGRESS).status, 404);
        assert_eq!(run_curl(master, DELETE).status, 404);
        assert_eq!(run_curl(master, RESULT).status, 200);
    }
}

#[test]
fn the_state_of_the_guide_survives_a_restart_of_the_master() {
    for on in [StoreKind::Redis, StoreKind::Embedded] {
        let mut cluster = Cluster::start(on);
        assert_eq!(run_curl(&cluster.master, &SUBMIT.replace("64,", "64")).status, 202);
        let before = run_curl(&cluster.master, PROGRESS).json();
        cluster.master.restart();
        assert_eq!(
            run_curl(&cluster.master, PROGRESS).json()["submitted_at"],
            before["submitted_at"]
        );
        assert_eq!(cluster.master.terminate().code(), Some(0));
        cluster.master.restart();
        assert_eq!(run_curl(&cluster.master, LIST).json().as_array().unwrap().len(), 1);
        assert_eq!(run_curl(&cluster.master, DELETE).status, 200);
        cluster.master.restart();
        assert_eq!(run_curl(&cluster.master, PROGRESS).status, 404, "deleted is deleted");
    }
}

#[test]
fn all_invalid_fields_are_reported_together_and_nothing_is_accepted() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let bad = json!({
        "request_id": "a/b",
        "source_path": "relative",
        "destination_path": "/a/../b",
        "chunk_size_mb": 2000,
        "file_list": ["ok", "../escape"],
    });
    let answer = cluster.master.post("/sync", &bad);
    assert_eq!(answer.status, 422, "{}", answer.text());
    let problem = answer.json();
    assert!(problem["detail"].is_string());
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["pointer"].as_str().unwrap())
        .collect();
    for pointer in ["/request_id", "/source_path", "/destination_path", "/chunk_size_mb"] {
        assert!(pointers.contains(&pointer), "{pointer} in {problem:#}");
    }
    let unknown = json!({"source_path": "/a", "destination_path": "/b", "chunk_size": 1});
    let answer = cluster.master.post("/sync", &unknown);
    assert!((400..=422).contains(&answer.status));
    assert!(answer.text().contains("chunk_size"), "{}", answer.text());
    assert_eq!(cluster.master.get("/sync").json(), json!([]));

    for (path, status) in
        [("/healthz", 200), ("/readyz", 200), ("/version", 200), ("/nowhere", 404)]
    {
        assert_eq!(cluster.master.get(path).status, status, "{path}");
    }
    assert_eq!(cluster.master.delete("/sync").status, 405);
}

#[test]
fn two_submits_with_one_idempotency_key_are_one_sync() {
    let cluster = Cluster::start(StoreKind::Redis);
    let address = cluster.master.address();
    let send = |key: &str, body: &Value| {
        let body = body.to_string();
        let headers = [("Idempotency-Key", key)];
        http::try_request(&address, "POST", "/sync", &headers, Some(body.as_bytes())).unwrap()
    };
    let body = json!({"source_path": "/a", "destination_path": "/b"});
    let first = send("key-1", &body);
    let second = send("key-1", &body);
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(first.json()["request_id"], second.json()["request_id"]);
    let other = send("key-1", &json!({"source_path": "/a", "destination_path": "/c"}));
    assert_eq!(other.status, 409);
    assert_ne!(send("key-2", &body).json()["request_id"], first.json()["request_id"]);
    assert_eq!(cluster.master.get("/sync").json().as_array().unwrap().len(), 2);
}

/// An agent written from the guide alone: it sends heartbeats, polls, treats an assignment as "copy
/// the source to the destination", and reports without any of our own fields.
struct ManualAgent<'a> {
    master: &'a Master,
    name: &'a str,
    storage: Vec<PathBuf>,
}

impl ManualAgent<'_> {
    fn send_heartbeat(&self, status: &str) {
        let document = json!({
            "worker_id": self.name,
            "status": status,
            "storage_paths": self.storage,
            "data_plane_endpoints": ["127.0.0.1"],
        });
        let answer = self.master.post("/workers/heartbeat", &document);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"ok"}"#));
    }

    fn poll_for_work(&self) -> Option<Value> {
        let path = format!("/workers/{}/assignment", self.name);
        let answer = http::try_request(&self.master.address(), "POST", &path, &[], None).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        Some(answer.json()).filter(|assignment| !assignment.is_null())
    }

    fn send_result(&self, request: &Value, success: bool) {
        let document = json!({
            "request_id": request,
            "worker_id": self.name,
            "success": success,
            "message": if success { "chunk complete" } else { "no idea how" },
        });
        let answer = self.master.post("/workers/result", &document);
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"status":"ack"}"#));
    }
}

fn copy_files(source: &Path, destination: &Path) {
    for entry in walkdir::WalkDir::new(source) {
        let entry = entry.unwrap();
        let to = destination.join(entry.path().strip_prefix(source).unwrap());
        if entry.file_type().is_dir() {
            make_dir(to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_manual_agent_takes_part_and_its_work_counts_as_unverified() {
    let cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = (cluster.data_path("src"), cluster.data_path("dst"));
    write_many_files(&src, 20, 100);
    let agent = ManualAgent {
        master: &cluster.master,
        name: "by-hand",
        storage: vec![cluster.data_path("")],
    };
    for status in ["READY", "IDLE", "TRANSFERRING", "ERROR", "DRAINING", "READY"] {
        agent.send_heartbeat(status);
    }
    assert!(agent.poll_for_work().is_none());
    let id = cluster.submit(&src, &dst);
    let assignment = await_some("it gets the assignment", || agent.poll_for_work());
    assert_eq!(assignment["request_id"], json!(id));
    assert!(agent.poll_for_work().is_none(), "there is one task, and it is taken");
    let path = |field: &str| PathBuf::from(assignment[field].as_str().unwrap());
    copy_files(&path("source_path"), &path("destination_path"));
    // A result for another sync, or from another worker, has no effect.
    agent.send_result(&json!("unknown"), true);
    ManualAgent { name: "stranger", master: agent.master, storage: vec![] }
        .send_result(&json!(id), true);
    assert_eq!(cluster.progress(&id).state, SyncState::Progress);
    agent.send_result(&json!(id), true);
    let sync = cluster.progress(&id);
    assert_eq!((sync.state, sync.unverified), (SyncState::Completed, 1), "{sync:#?}");
    assert_eq!(sync.outcome, Some(SyncOutcome::Unverified), "{sync:#?}");
    assert!(sync.reason.as_deref().is_some_and(|r| r.contains("without evidence")), "{sync:#?}");
    cluster.ctl(["sync", "wait", id.as_str()]).run().assert_exit_code(23);
    let shown =
        cluster.ctl(["sync", "status", id.as_str()]).run().assert_exit_code(0).stdout_text();
    for part in ["COMPLETED (unverified)", "1 task, reported done without evidence"] {
        assert!(shown.contains(part), "`{part}` in {shown}");
    }
}

#[test]
fn a_scan_with_one_empty_page_is_not_a_full_sync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    // A claimed storage path with nothing behind it.
    let (src, dst) = (make_dir(cluster.data_path("src")), cluster.data_path("ghost/dst"));
    write_many_files(&src, 5, 100);
    let beat = |incarnation: Option<&str>| {
        let document = json!({
            "worker_id": "ghost",
            "status": "READY",
            "storage_paths": [src, cluster.data_path("ghost")],
            "data_plane_endpoints": ["127.0.0.1"],
            "protocol": 1,
            "incarnation": incarnation,
        });
        cluster.master.post("/workers/heartbeat", &document).status
    };
    assert_eq!(beat(Some("i1")), 200);
    assert_eq!(beat(None), 409, "the id is taken by a process that names itself");
    let id = cluster.submit(&src, &dst);
    let poll = || {
        let path = "/workers/ghost/assignment?incarnation=i1";
        let answer = http::try_request(&cluster.master.address(), "POST", path, &[], None).unwrap();
        Some(answer.json()).filter(|assignment| !assignment.is_null())
    };
    let scan = await_some("it takes the scan", poll);
    let page = json!({"task_digest": scan["task_digest"], "page": 0, "next": null});
    let assignment = scan["assignment_id"].as_str().unwrap();
    let answer =
        cluster.master.post(&format!("/workers/ghost/assignments/{assignment}/page"), &page);
    assert_eq!(answer.json()["action"], "done", "{}", answer.text());
    let sync = cluster.progress(&id);
    assert_eq!((sync.state, sync.outcome), (SyncState::Completed, Some(SyncOutcome::Unverified)));
    assert_eq!((sync.unverified, sync.files_done), (1, 0), "{sync:#?}");
    let document = cluster.master.get(&format!("/sync/{id}")).json();
    assert_eq!(document["outcome"], "unverified");
    cluster.ctl(["sync", "wait", id.as_str()]).run().assert_exit_code(23);

    // A real agent that finds an empty tree is believed.
    let (src, dst) = (make_dir(cluster.data_path("empty")), make_dir(cluster.data_path("copy")));
    cluster.add_agent("a", &[&src, &dst]);
    let sync = cluster.await_end(&cluster.submit(&src, &dst));
    assert_eq!((sync.outcome, sync.unverified), (Some(SyncOutcome::Full), 0), "{sync:#?}");
}

#[test]
fn a_failure_reported_by_a_manual_agent_is_retried_and_then_listed() {
    let cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 0}\n");
    let (src, dst) = (make_dir(cluster.data_path("src")), cluster.data_path("dst"));
    let agent = ManualAgent {
        master: &cluster.master,
        name: "by-hand",
        storage: vec![cluster.data_path("")],
    };
    agent.send_heartbeat("READY");
    let id = cluster.submit(&src, &dst);
    let sync = await_some("the sync fails", || {
        if let Some(assignment) = agent.poll_for_work() {
            agent.send_result(&assignment["request_id"], false);
        }
        agent.send_heartbeat("READY");
        Some(cluster.progress(&id)).filter(|s| s.state.is_final())
    });
    assert_eq!(sync.state, SyncState::Failed, "{sync:#?}");
    assert!(sync.errors[0].message.contains("no idea how"), "{sync:#?}");
    assert_eq!(sync.errors[0].worker_id.as_ref().map(|w| w.as_str()), Some("by-hand"));
}

#[test]
fn an_agent_that_fails_every_task_does_no_harm_beside_a_working_one() {
    let mut cluster = Cluster::start_with_shared(StoreKind::Embedded, &["src"]);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 300, 2_000);
    let storage = vec![src.clone()];
    ManualAgent { master: &cluster.master, name: "clumsy", storage: storage.clone() }
        .send_heartbeat("READY");
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
    let clumsy = ManualAgent { master: &cluster.master, name: "clumsy", storage };
    let sync = await_some("the sync ends", || {
        if let Some(assignment) = clumsy.poll_for_work() {
            clumsy.send_result(&assignment["request_id"], false);
        }
        Some(cluster.progress(&id)).filter(|s| s.state.is_final())
    });
    assert_complete(&sync, census(&src));
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn the_tasks_of_a_silent_manual_agent_are_reassigned() {
    let mut cluster = Cluster::start_with_shared(StoreKind::Embedded, &["src", "dst"]);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_many_files(&src, 50, 100);
    let silent = ManualAgent {
        master: &cluster.master,
        name: "silent",
        storage: vec![src.clone(), dst.clone()],
    };
    silent.send_heartbeat("READY");
    let id = cluster.submit(&src, &dst);
    let taken = await_some("it takes the task", || silent.poll_for_work());
    assert_eq!(taken["attempt"], 1);
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    let sync = cluster.await_end(&id);
    assert_complete(&sync, census(&src));
    assert!(sync.retries >= 1, "{sync:#?}");
    assert_same(&src, &dst, ComparisonRules { owners: false, ..exact_comparison() });
    // What it says now is stale.
    let late = ManualAgent { master: &cluster.master, name: "silent", storage: vec![] };
    late.send_result(&json!(id), false);
    assert_eq!(cluster.progress(&id), sync);
}

#[test]
fn results_that_do_not_match_their_assignment_exactly_change_nothing() {
    let cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_file(src.join("x"), "x");
    let agent =
        ManualAgent { master: &cluster.master, name: "w", storage: vec![cluster.data_path("")] };
    agent.send_heartbeat("READY");
    let id = cluster.submit(&src, &dst);
    let assignment = await_some("it takes the task", || agent.poll_for_work());
    let right = json!({
        "request_id": id,
        "worker_id": "w",
        "success": true,
        "assignment_id": assignment["assignment_id"],
        "attempt": assignment["attempt"],
        "task_digest": assignment["task_digest"],
    });
    let zeros = |n: usize| json!("0".repeat(n));
    for (field, wrong) in [
        ("assignment_id", zeros(32)),
        ("attempt", json!(7)),
        ("task_digest", zeros(64)),
        ("worker_id", json!("somebody")),
        ("request_id", json!("another")),
    ] {
        let mut result = right.clone();
        result[field] = wrong;
        let answer = cluster.master.post("/workers/result", &result);
        assert_eq!(answer.status, 200, "{field}: {}", answer.text());
        assert_eq!(answer.json(), json!({"status": "ack", "outcome": "stale"}), "{field}");
        assert_eq!(cluster.progress(&id).state, SyncState::Progress, "{field}");
    }
    // A scan ends with its last page: a worker that supports digests does not only report success. Without
    // one it is the word of an agent of the guide.
    let mut right = right;
    right.as_object_mut().unwrap().remove("task_digest");
    let answer = cluster.master.post("/workers/result", &right);
    assert_eq!(answer.json(), json!({"status": "ack", "outcome": "applied"}));
    let answer = cluster.master.post("/workers/result", &right);
    assert_eq!(answer.json(), json!({"status": "ack", "outcome": "stale"}), "it counts once");
    let sync = cluster.progress(&id);
    assert_eq!((sync.state, sync.outcome), (SyncState::Completed, Some(SyncOutcome::Unverified)));
    assert_eq!(sync.unverified, 1);
    await_true("the master lives", || cluster.master.get("/readyz").status == 200);
}

#[test]
fn a_master_behind_a_proxy_accepts_the_host_name_in_its_configuration() {
    let advertised = "advertise_url: http://ctl.example/longhaul\n";
    for (config, status) in [(advertised, 202), ("", 421)] {
        let cluster = Cluster::start_with(StoreKind::Embedded, config);
        let body = r#"{"request_id": "demo-1", "source_path": "/a", "destination_path": "/b"}"#;
        let request = format!(
            "POST /sync HTTP/1.1\r\nHost: ctl.example\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = http::send_raw(&cluster.master.address(), request.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{}", answer.text());
        if status == 202 {
            // Below the path at which the proxy serves it, as every client resolves it (RFC 3986).
            let asked = url::Url::parse("http://ctl.example/longhaul/sync").unwrap();
            let found = asked.join(answer.header("location").unwrap()).unwrap();
            assert_eq!(found.as_str(), "http://ctl.example/longhaul/sync/demo-1");
        }
    }
}
