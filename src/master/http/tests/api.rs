//! The routes, with valid and with invalid requests.

use super::*;
use crate::client::{ClientOptions, MasterClient};
use crate::wire::entry_report::{FileRecord, FileState};
use crate::wire::sync::SyncPatch;
use crate::wire::worker::DrainRequest;
use crate::wire::{BytePath, Digest};
use serde_json::json;

const GOOD: &str = r#"{"source_path": "/a", "destination_path": "/b"}"#;

#[tokio::test]
async fn every_response_has_a_request_id_and_is_not_cached() {
    let served = start_server().await;
    for target in ["/healthz", "/sync/gone", "/nothing", "/v1/version"] {
        let got = served.send("GET", target, &["X-Request-Id: my-1"], b"").await;
        assert_eq!(got.header("x-request-id"), Some("my-1"), "{target}");
        assert_eq!(got.header("cache-control"), Some("no-store"), "{target}");
    }
    for bad in ["", "a b", &"x".repeat(129), "\u{e9}"] {
        let got = served.send("GET", "/healthz", &[&format!("X-Request-Id: {bad}")], b"").await;
        assert_eq!(got.header("x-request-id").unwrap().len(), 36, "{bad:?}");
    }
}

#[tokio::test]
async fn every_route_exists_below_v1_too() {
    let mut served = start_server().await;
    for root in ["", "/v1"] {
        assert_eq!(served.get(&format!("{root}/healthz")).await.json(), json!({"status": "ok"}));
        assert_eq!(served.get(&format!("{root}/readyz")).await.status, 200);
        let version = served.get(&format!("{root}/version")).await.json();
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(served.get(&format!("{root}/sync/x")).await.status, 200);
        assert_eq!(served.events.recv().await, Some(Event::GetProgress("x".parse().unwrap())));
        assert_eq!(served.post(&format!("{root}/sync/x/cancel"), "").await.status, 200);
        assert_eq!(served.events.recv().await, Some(Event::CancelSync("x".parse().unwrap())));
        let paused = served.post(&format!("{root}/sync/x/pause"), "").await.json();
        assert_eq!(paused["state"], "PAUSED");
        assert_eq!(served.events.recv().await, Some(Event::PauseSync("x".parse().unwrap())));
        assert_eq!(served.post(&format!("{root}/sync/x/resume"), "").await.status, 200);
        assert_eq!(served.events.recv().await, Some(Event::ResumeSync("x".parse().unwrap())));
    }
}

#[tokio::test]
async fn workers_are_drained_with_a_reason_or_without_one_and_forgotten() {
    let mut served = start_server().await;
    let drain = |by: Option<&str>, reason: Option<&str>| Event::DrainWorker {
        worker: "w".parse().unwrap(),
        order: Some(DrainRequest { by: by.map(str::to_owned), reason: reason.map(str::to_owned) }),
    };
    let body = r#"{"by": "ann", "reason": "new disks"}"#;
    let got = served.post("/workers/w/drain", body).await.json();
    assert_eq!(got["drained"]["reason"], "new disks");
    assert_eq!(served.events.recv().await, Some(drain(Some("ann"), Some("new disks"))));
    assert_eq!(served.post("/v1/workers/w/drain", "").await.status, 200);
    assert_eq!(served.events.recv().await, Some(drain(None, None)));
    let got = served.post("/workers/w/undrain", "").await.json();
    let expected = json!({"worker_id": "w", "drained": null, "state": "DRAINED", "in_flight": 0, "incoming_requests": 0});
    assert_eq!(got, expected);
    let undrain = Event::DrainWorker { worker: "w".parse().unwrap(), order: None };
    assert_eq!(served.events.recv().await, Some(undrain));
    let got = served.send("DELETE", "/workers/w", &[], b"").await.json();
    assert_eq!(got, json!({"status": "forgotten", "worker_id": "w", "requeued": 1}));
    assert_eq!(served.events.recv().await, Some(Event::ForgetWorker("w".parse().unwrap())));
    assert_eq!(
        served.send("DELETE", "/workers/up", &[], b"").await.problem_code(),
        "worker_active"
    );
    let got = served.post("/sync/x/reassign", r#"{"worker_id": "w"}"#).await.json();
    assert_eq!(got, json!({"request_id": "x", "worker_id": "w", "tasks": 2}));
    for bad in ["{}", r#"{"worker_id": "/"}"#, r#"{"worker_id": "w", "to": "x"}"#] {
        assert_eq!(served.post("/sync/x/reassign", bad).await.status, 422, "{bad}");
    }
    let got = served.post("/admin/reconcile", "").await.json();
    assert_eq!((&got["requeued_tasks"], &got["dropped_blobs"]), (&json!(0), &json!(0)));
    let got = served.post("/admin/confirm-clock", "").await.json();
    assert_eq!(got, json!({"time": "1970-01-01T00:00:00Z", "ahead_seconds": -7}));
    let got = served.post("/admin/rotate-ticket-key", "").await.json();
    assert_eq!((&got["key_id"], &got["signs_in_seconds"]), (&json!("b"), &json!(45)));
    assert_eq!(served.post("/workers/gone/drain", "").await.status, 404);
    for (bad, status) in [("[]", 422), ("{", 400), (r#"{"cause": 1}"#, 422), (r#"{"by": 1}"#, 422)]
    {
        assert_eq!(served.post("/workers/w/drain", bad).await.status, status, "{bad}");
    }
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_problems() {
    let mut served = start_server().await;
    for target in ["/", "/syncs", "/sync/a/b", "/v1", "/v1/nothing", "/v2/sync", "/workers/a/b/c"] {
        let got = served.get(target).await;
        assert_eq!((got.status, got.problem_code().as_str()), (404, "route_not_found"), "{target}");
    }
    for (method, target, allow) in [
        ("PUT", "/sync", "POST,GET,HEAD"),
        ("PUT", "/sync/x", "GET,HEAD,PATCH,DELETE"),
        ("GET", "/workers/result", "POST"),
        ("GET", "/v1/workers/a/assignment", "POST"),
        ("POST", "/version", "GET,HEAD"),
    ] {
        let got = served.send(method, target, &[], b"").await;
        assert_eq!(
            (got.status, got.problem_code().as_str()),
            (405, "method_not_allowed"),
            "{method} {target}"
        );
        let sorted = |s: &str| {
            let mut all: Vec<String> = s.split(',').map(str::to_owned).collect();
            all.sort();
            all
        };
        assert_eq!(sorted(got.header("allow").unwrap()), sorted(allow), "{method} {target}");
    }
    assert!(served.has_no_event());
}

#[tokio::test]
async fn an_invalid_id_is_not_found_and_does_not_reach_the_actor() {
    let mut served = start_server().await;
    for id in
        ["%7Bx%7D", "a%0Ab", "a%2Fb", "..", "%2e%2e", "%ff", "a%00", "-x", &"x".repeat(5_000), "*"]
    {
        for (method, target) in [
            ("GET", format!("/sync/{id}")),
            ("DELETE", format!("/sync/{id}")),
            ("POST", format!("/sync/{id}/cancel")),
            ("POST", format!("/workers/{id}/assignment")),
            ("GET", format!("/workers/a/assignments/{id}/manifest")),
            ("POST", format!("/workers/{id}/assignments/{}/page", "0".repeat(32))),
        ] {
            let got = served.send(method, &target, &[], b"").await;
            assert_eq!(
                (got.status, got.problem_code().as_str()),
                (404, "not_found"),
                "{method} {target}"
            );
        }
    }
    assert!(served.has_no_event());
    assert_eq!(served.get("/sync/gone").await.problem_code(), "sync_not_found");
}

#[tokio::test]
async fn a_rate_limit_is_accepted_as_number_or_text_and_refused_otherwise() {
    let mut served = start_server().await;
    for (value, limit) in [
        ("104857600", Some(100 << 20)),
        ("\"100MiB/s\"", Some(100 << 20)),
        ("null", None),
        ("0", None),
        ("\"none\"", None),
    ] {
        let body = format!("{{\"bwlimit\": {value}}}");
        let got = served.send("PATCH", "/sync/x", &[], body.as_bytes()).await;
        assert_eq!((got.status, got.json()["bwlimit"].as_u64()), (200, limit), "{value}");
        let change = SyncPatch { bwlimit: Some(limit), ..SyncPatch::default() };
        let id = "x".parse().unwrap();
        assert_eq!(served.events.recv().await, Some(Event::ChangeSync { id, change }));
    }
    for bad in
        ["{\"bwlimit\": 5}", "{\"bwlimit\": \"fast\"}", "{\"bwlimit\": -1}", "{\"bwlimit\": []}"]
    {
        let got = served.send("PATCH", "/sync/x", &[], bad.as_bytes()).await;
        assert_eq!(
            (got.status, got.json()["errors"][0]["pointer"].as_str()),
            (422, Some("/bwlimit"))
        );
    }
    for bad in ["{}", r#"{"add_destinations": []}"#, r#"{"bwlimit": 0, "priority": 1}"#] {
        assert_eq!(served.send("PATCH", "/sync/x", &[], bad.as_bytes()).await.status, 422, "{bad}");
    }
    assert!(served.has_no_event());
    let got = served.send("PATCH", "/sync/gone", &[], b"{\"bwlimit\": null}").await;
    assert_eq!((got.status, got.problem_code().as_str()), (404, "sync_not_found"));
}

#[tokio::test]
async fn a_list_is_a_bare_array_that_can_be_filtered() {
    let served = start_server().await;
    let ids = |got: TestResponse| -> Vec<String> {
        assert_eq!(got.status, 200, "{got:?}");
        let all = got.json();
        all.as_array().unwrap().iter().map(|s| s["request_id"].as_str().unwrap().into()).collect()
    };
    assert_eq!(ids(served.get("/sync").await), ["c", "b", "a"]);
    assert_eq!(ids(served.get("/sync?state=queued").await), ["c", "a"]);
    assert_eq!(ids(served.get("/sync?state=FAILED,COMPLETED").await), ["b"]);
    assert_eq!(ids(served.get("/sync?state=QUEUED&limit=1").await), ["c"]);
    assert_eq!(ids(served.get("/sync?limit=1000000000000000000000").await), ["c", "b", "a"]);
    for bad in [
        "page_token=x",
        "page_token=",
        "id_prefix=",
        "id_prefix=a%2Fb",
        "state=x",
        "limit=0",
        "limit=-1",
        "limit=x",
        "stat=QUEUED",
        "limit=1&limit=2",
        "state=%ff",
    ] {
        let got = served.get(&format!("/sync?{bad}")).await;
        assert_eq!((got.status, got.problem_code().as_str()), (400, "invalid_parameter"), "{bad}");
    }
}

#[tokio::test]
async fn a_list_is_paged_by_token_and_by_link() {
    let served = start_server().await;
    for (first, pages) in [
        ("/sync?limit=2", vec!["cb", "a"]),
        ("/sync?limit=1", vec!["c", "b", "a"]),
        ("/sync?state=queued,%20queued&limit=1", vec!["c", "a"]),
        ("/sync", vec!["cba"]),
        ("/sync?limit=3", vec!["cba"]),
        // The test actor ignores the prefix.
        ("/sync?id_prefix=a:b&limit=2", vec!["cb", "a"]),
    ] {
        let mut target = first.to_owned();
        for (index, page) in pages.iter().enumerate() {
            let got = served.get(&target).await;
            let found: String = got
                .json()
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s["request_id"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!((got.status, &found[..]), (200, *page), "{target}");
            let token = got.header("x-next-token").map(str::to_owned);
            assert_eq!(token.is_some(), index + 1 < pages.len(), "{target}");
            let Some(token) = token else { break };
            let link = got.header("link").unwrap();
            let query = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            assert!(query.contains(&format!("page_token={token}")), "{link}");
            assert_eq!(query.contains("id_prefix=a:b"), first.contains("id_prefix"), "{link}");
            target = format!("/sync{query}");
        }
    }
}

#[tokio::test]
async fn workers_are_filtered_by_status() {
    let served = start_server().await;
    let counts = |got: TestResponse| {
        let list = got.json();
        (list["active"].as_array().unwrap().len(), list["inactive"].as_array().unwrap().len())
    };
    assert_eq!(counts(served.get("/workers").await), (1, 1));
    assert_eq!(counts(served.get("/workers?status=active").await), (1, 0));
    assert_eq!(counts(served.get("/workers?status=inactive").await), (0, 1));
    assert_eq!(served.get("/workers?status=dead").await.status, 400);
}

#[tokio::test]
async fn a_submit_accepts_a_file_list_and_an_idempotency_key() {
    let mut served = start_server().await;
    let body =
        json!({"source_path": "/a", "destination_path": "/b", "file_list": ["x", "/a/y", "x"]});
    let body = body.to_string();
    let got = served.send("POST", "/sync", &["Idempotency-Key: k-1"], body.as_bytes()).await;
    assert_eq!((got.status, got.header("location")), (202, Some("sync/made")));
    let Some(Event::Submit { request, list: Some(parts), idempotency: Some(key) }) =
        served.events.recv().await
    else {
        panic!("a submit with a list");
    };
    assert_eq!((request.file_list, parts.len(), parts[0].paths.len()), (None, 1, 2));
    assert_eq!((key.key.as_str(), key.body), ("k-1", blake3::hash(body.as_bytes()).into()));

    for key in ["", "a b", &"k".repeat(129)] {
        let got = served
            .send("POST", "/sync", &[&format!("Idempotency-Key: {key}")], GOOD.as_bytes())
            .await;
        assert_eq!((got.status, got.problem_code().as_str()), (400, "invalid_parameter"), "{key}");
    }
    let twice = ["Idempotency-Key: a", "Idempotency-Key: b"];
    assert_eq!(served.send("POST", "/sync", &twice, GOOD.as_bytes()).await.status, 400);
    assert!(served.has_no_event());

    let taken = r#"{"request_id": "taken", "source_path": "/a", "destination_path": "/b"}"#;
    let got = served.post("/sync", taken).await;
    assert_eq!((got.status, got.problem_code().as_str()), (409, "sync_exists"));
}

#[tokio::test]
async fn all_invalid_fields_are_in_one_response() {
    let mut served = start_server().await;
    let got = served
        .post(
            "/sync",
            r#"{"source_path": "a", "destination_path": 5, "chunk_size": 1, "chunk_size_mb": 0}"#,
        )
        .await;
    assert_eq!((got.status, got.problem_code().as_str()), (422, "invalid_fields"));
    assert_eq!(got.json()["errors"].as_array().unwrap().len(), 4);
    assert!(got.json()["detail"].is_string());
    assert_eq!(
        served.post("/workers/heartbeat", "{}").await.json()["errors"].as_array().unwrap().len(),
        2
    );
    assert_eq!(
        served.post("/workers/result", "{}").await.json()["errors"].as_array().unwrap().len(),
        3
    );
    assert!(served.has_no_event());
}

#[tokio::test]
async fn an_agent_gets_its_manifest_and_posts_pages() {
    let mut served = start_server().await;
    let id = "0".repeat(32);
    let got = served.get(&format!("/workers/a/assignments/{id}/manifest")).await;
    assert_eq!((got.status, got.body.as_slice()), (200, &b"\xff manifest"[..]));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    let got = served.get(&format!("/workers/b/assignments/{id}/manifest")).await;
    assert_eq!((got.status, got.problem_code().as_str()), (404, "assignment_not_held"));

    let page = json!({"task_digest": "0".repeat(64), "page": 0, "subtrees": ["d"], "next": null});
    let target = format!("/workers/a/assignments/{id}/page");
    let got = served.post(&target, page.to_string()).await;
    assert_eq!((got.status, got.json()), (200, json!({"action": "continue", "max_subtrees": 2})));
    let pages = std::iter::from_fn(|| served.events.try_recv().ok());
    assert_eq!(pages.filter(|e| matches!(e, Event::Page { .. })).count(), 1);
    assert_eq!(
        served.post(&target, r#"{"page": -1}"#).await.json()["errors"][0]["pointer"],
        "/page"
    );
    assert_eq!(served.post(&target, "{").await.problem_code(), "invalid_json");
}

#[tokio::test]
async fn the_wait_of_a_poll_is_a_parameter_and_bounded() {
    let mut served = start_server().await;
    for (query, wait) in [
        ("wait=20s&poll_id=p&incarnation=i", 20_000),
        ("wait=10h&poll_id=p&incarnation=i", 60_000),
        ("wait=0s&poll_id=p&incarnation=i", 0),
    ] {
        let got = served.post(&format!("/workers/a/assignment?{query}"), "").await;
        assert_eq!((got.status, got.body.as_slice()), (200, &b"null"[..]), "{query}");
        let worker = "a".parse().unwrap();
        let (incarnation, poll_id) = (Some("i".into()), Some("p".into()));
        let poll = Event::Poll { worker, incarnation, poll_id, wait_ms: wait };
        assert_eq!(served.events.recv().await, Some(poll), "{query}");
    }
    for bad in ["wait=soon", "wait=-1", "wait=", "waits=1", "poll_id=a%20b", "incarnation="] {
        assert_eq!(
            served.post(&format!("/workers/a/assignment?{bad}"), "").await.status,
            400,
            "{bad}"
        );
    }
    assert!(served.has_no_event());
}

#[tokio::test]
async fn a_poll_is_withdrawn_when_its_client_disconnects() {
    let mut served = start_server().await;
    for head in [
        "Content-Length: 0\r\n\r\n",
        "Content-Length: 2\r\n\r\n{}",
        "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ] {
        let request = format!(
            "POST /workers/a/assignment?wait=60s&poll_id=open HTTP/1.1\r\nHost: {}\r\n{head}",
            served.addr
        );
        let stream = served.connect_and_send(&request).await;
        let mut poll = with_deadline(served.unanswered.recv()).await.unwrap();
        assert!(!poll.reply.is_closed());
        drop(stream);
        with_deadline(poll.reply.closed()).await;
    }
}

#[tokio::test]
async fn while_the_store_is_unavailable_the_response_is_503_with_retry_after() {
    let mut served = start_server().await;
    served.health.send(Err("the Redis at redis:6379 does not respond".into())).unwrap();
    let heartbeat = r#"{"worker_id": "w", "status": "READY"}"#;
    for got in [
        served.post("/sync", GOOD).await,
        served.get("/sync").await,
        served.get("/readyz").await,
        served.post("/workers/heartbeat", heartbeat).await,
    ] {
        assert_eq!((got.status, got.problem_code().as_str()), (503, "store_unavailable"));
        assert!(got.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        assert!(got.json()["detail"].as_str().unwrap().contains("redis:6379"));
    }
    assert_eq!(served.get("/healthz").await.status, 200);
    assert!(served.has_no_event());
    served.health.send(Ok(())).unwrap();
    assert_eq!(served.post("/sync", GOOD).await.status, 202);
}

#[tokio::test]
async fn a_shutdown_ends_polls_at_once_and_waits_for_other_requests() {
    let mut served = start_server().await;
    let poll = format!(
        "POST /workers/a/assignment?wait=60s&poll_id=open HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
        served.addr
    );
    let mut polling = served.connect_and_send(&poll).await;
    let idle = served.connect_and_send("").await;
    // Kept: if the actor drops the request, the response is a 503.
    let _held = with_deadline(served.unanswered.recv()).await.unwrap();
    served.shutdown.cancel();
    let mut response = Vec::new();
    with_deadline(polling.read_to_end(&mut response)).await.unwrap();
    assert_eq!(TestResponse::parse(&response).body, b"null");
    drop((polling, idle));
    with_deadline(served.server).await.unwrap();
    assert!(TcpStream::connect(served.addr).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let served = start_server().await;
    let one = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    let last =
        format!("GET /version HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", served.addr);
    let raw = with_deadline(served.send_raw(format!("{one}{one}{last}").as_bytes())).await;
    let text = String::from_utf8(raw).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
}

#[tokio::test]
async fn web_pages_of_other_sites_are_refused() {
    let mut served = start_server().await;
    for (headers, status) in [("Origin: http://evil.example", 403), ("Origin: null", 403)] {
        let got = served
            .send("POST", "/sync", &[headers, "Content-Type: text/plain"], GOOD.as_bytes())
            .await;
        assert_eq!((got.status, got.problem_code().as_str()), (status, "foreign_origin"));
    }
    let raw = served
        .send_raw(b"GET /sync HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(TestResponse::parse(&raw).problem_code(), "foreign_host");
    assert!(served.has_no_event());
}

fn file_record(path: &str, state: FileState) -> FileRecord {
    let (path, digest) = (BytePath(path.as_bytes().to_vec()), Some(Digest([7; 32])));
    FileRecord { path, state, action: None, bytes: 1, digest, error: None }
}

#[tokio::test]
async fn file_records_are_sent_as_lines_and_filtered_by_state() {
    let served = start_server().await;
    let all = [file_record("a", FileState::Done), file_record("b", FileState::Failed)];
    let lines = all.map(|record| serde_json::to_string(&record).unwrap() + "\n");
    let text = lines.concat();
    served.spool.write(1, 0, text.as_bytes()).unwrap();
    let root = format!("/sync/list-{}", text.len());
    let got = served.get(&format!("{root}/files")).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("application/x-ndjson")));
    assert_eq!(got.dechunk(), text);
    let got = served.get(&format!("/v1{root}/files?state=failed,%20deleted")).await;
    assert_eq!(got.dechunk(), lines[1]);
    let got = served.get(&format!("{root}/manifest")).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("text/plain")));
    assert_eq!(got.dechunk(), format!("{}  a\n", Digest([7; 32])));
    for query in ["state=lost", "state=", "state=done,", "state=done&state=failed", "sate=done"] {
        let got = served.get(&format!("{root}/files?{query}")).await;
        assert_eq!(
            (got.status, got.problem_code().as_str()),
            (400, "invalid_parameter"),
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_missing_list_is_a_problem_with_a_hint() {
    let served = start_server().await;
    for (id, files, manifest) in [
        ("gone", (404, "sync_not_found"), (404, "sync_not_found")),
        ("plain", (409, "not_recorded"), (409, "not_recorded")),
        ("running", (200, ""), (409, "not_ended")),
        ("list-9", (409, "records_lost"), (409, "records_lost")),
        ("%2F", (404, "not_found"), (404, "not_found")),
    ] {
        for (route, (status, code)) in [("files", files), ("manifest", manifest)] {
            let got = served.get(&format!("/sync/{id}/{route}")).await;
            assert_eq!(got.status, status, "{id} {route}");
            if status != 200 {
                assert_eq!(got.problem_code(), code, "{id} {route}");
            }
            assert!(status != 409 || got.json()["hint"].is_string());
        }
    }
}

#[tokio::test]
async fn a_truncated_list_ends_the_connection_with_an_error() {
    let served = start_server().await;
    let good = serde_json::to_string(&file_record("a", FileState::Done)).unwrap() + "\n";
    let text = format!("{}broken\n", good.repeat(3_000));
    served.spool.write(1, 0, text.as_bytes()).unwrap();
    let urls = vec![format!("http://{}", served.addr)];
    let client = MasterClient::new(urls, ClientOptions::default()).unwrap();
    let id = format!("list-{}", text.len()).parse().unwrap();
    let mut chunks = client.download_files(&id, &[FileState::Done]).await.unwrap();
    let end = loop {
        match chunks.next_chunk().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(end.unwrap_err().to_string().contains("broke off"));
    let id = format!("list-{}", good.len() * 3_000).parse().unwrap();
    let mut chunks = client.download_manifest(&id, false).await.unwrap();
    let mut read = 0;
    while let Some(chunk) = chunks.next_chunk().await.unwrap() {
        read += chunk.len();
    }
    assert_eq!(read, 3_000 * (64 + 4));
    let none = client.download_files(&"plain".parse().unwrap(), &[]).await.unwrap_err();
    assert_eq!((none.status(), none.code()), (Some(409), Some("not_recorded")));
}

#[tokio::test]
async fn every_invalid_option_of_a_submit_is_listed_with_its_pointer() {
    let mut served = start_server().await;
    let body = json!({
        "source_path": "/a", "destination_path": "/b", "file_list": ["x"],
        "options": {"delete": {"max_percent": 20}, "filter": {"rules": ["a[z-a]"]}, "verify": "none",
            "manifest": true}
    });
    let got = served.post("/sync", body.to_string()).await;
    assert_eq!((got.status, got.problem_code().as_str()), (422, "invalid_fields"));
    let errors = got.json()["errors"].as_array().unwrap().clone();
    let pointers: Vec<&str> = errors.iter().map(|e| e["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["/options/manifest", "/options/delete", "/options/filter/rules/0"]);
    assert!(served.has_no_event());
    let body = json!({
        "source_path": "/a", "destination_path": "/b", "options": {"delete": {"max_percent": 20}}
    });
    assert_eq!(served.post("/sync", body.to_string()).await.status, 202);
    let Some(Event::Submit { request, .. }) = served.events.recv().await else { panic!() };
    assert_eq!(request.options.delete.unwrap().max_percent, 20);
}

#[tokio::test]
async fn an_idempotency_key_is_bound_to_the_sync_that_is_retried() {
    let mut served = start_server().await;
    let mut bodies = Vec::new();
    for (id, body) in [("x", ""), ("y", ""), ("x", "{}"), ("x", "")] {
        let target = format!("/sync/{id}/retry");
        let got = served.send("POST", &target, &["Idempotency-Key: k-1"], body.as_bytes()).await;
        assert_eq!(got.status, 202);
        let Some(Event::RetrySync { idempotency: Some(key), .. }) = served.events.recv().await
        else {
            panic!("a retry with a key");
        };
        assert_eq!(key.key, "k-1");
        bodies.push(key.body);
    }
    assert_eq!(bodies[0], bodies[3], "the same request");
    assert!(bodies[0] != bodies[1] && bodies[0] != bodies[2] && bodies[1] != bodies[2]);
}

#[tokio::test]
async fn a_request_in_progress_gets_its_response_during_shutdown() {
    let mut served = start_server().await;
    let raw = format!("GET /sync/held HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    let mut stream = served.connect_and_send(&raw).await;
    let held = with_deadline(served.unanswered.recv()).await.unwrap();
    served.shutdown.cancel();
    // New connections are refused; requests in progress are completed.
    with_deadline(async { while TcpStream::connect(served.addr).await.is_ok() {} }).await;
    assert!(!served.server.is_finished());
    held.reply.send(Reply::Progress(Box::new(progress("held", SyncState::Progress)))).unwrap();
    let mut response = Vec::new();
    with_deadline(stream.read_to_end(&mut response)).await.unwrap();
    assert_eq!(TestResponse::parse(&response).json()["request_id"], "held");
    with_deadline(served.server).await.unwrap();
}

#[tokio::test]
async fn a_request_without_a_reply_does_not_block_the_shutdown() {
    let limits = HttpLimits { drain_timeout: Duration::from_millis(50), ..HttpLimits::default() };
    let mut served = start_server_with(limits).await;
    let raw = format!("GET /sync/held HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    let mut stream = served.connect_and_send(&raw).await;
    let _held = with_deadline(served.unanswered.recv()).await.unwrap();
    served.shutdown.cancel();
    with_deadline(served.server).await.unwrap();
    let mut response = Vec::new();
    let _ = with_deadline(stream.read_to_end(&mut response)).await;
    assert!(response.is_empty(), "{response:?}");
}
