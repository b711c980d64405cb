//! Each request of the guide, word for word.

use super::*;
use crate::wire::worker::WorkerStatus;

#[path = "../../../../tests/support/guide.rs"]
mod requests;
use requests::{DELETE, HEARTBEAT, LIST, POLL, PROGRESS, RESULT, SUBMIT, shell_words};

/// The bytes that curl sends for a command line (and `Connection: close`).
fn curl_body(command: &str) -> Vec<u8> {
    let mut words = shell_words(command).into_iter().skip(1);
    let (mut method, mut url, mut headers, mut body) =
        ("GET".to_owned(), String::new(), String::new(), None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-X" => method = words.next().unwrap(),
            "-H" => headers.push_str(&format!("{}\r\n", words.next().unwrap())),
            "-d" => body = words.next(),
            _ => url = word,
        }
    }
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    if let Some(body) = &body {
        if !headers.contains("Content-Type") {
            headers.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
        }
        headers.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n{headers}Connection: close\r\n\r\n{}",
        body.unwrap_or_default()
    )
    .into_bytes()
}

async fn curl(served: &TestServer, command: &str) -> TestResponse {
    TestResponse::parse(&with_deadline(served.send_raw(&curl_body(command))).await)
}

#[tokio::test]
async fn the_first_documented_request_is_refused_for_its_trailing_comma() {
    let mut served = start_server().await;
    let got = curl(&served, SUBMIT).await;
    assert_eq!((got.status, got.problem_code().as_str()), (400, "invalid_json"));
    assert_eq!(
        got.json()["detail"],
        "the body is not valid JSON: line 5, column 28: a trailing comma is not allowed in JSON; remove it"
    );
    assert!(served.has_no_event());

    for content_type in ["Content-Type: application/json", "X-Other: 1"] {
        let mended =
            SUBMIT.replace("64,", "64").replace("Content-Type: application/json", content_type);
        let got = curl(&served, &mended).await;
        assert_eq!((got.status, got.header("location")), (202, Some("sync/demo-1")));
        assert_eq!(
            (&got.json()["status"], &got.json()["request_id"]),
            (&"queued".into(), &"demo-1".into())
        );
        let Some(Event::Submit { request, list: None, idempotency: None }) =
            served.events.recv().await
        else {
            panic!("a submit without a list");
        };
        assert_eq!(request.chunk_size_mb, 64);
        assert_eq!(request.source_path.to_string(), "/data/source");
    }
}

#[tokio::test]
async fn the_other_documented_requests_succeed_unchanged() {
    let mut served = start_server().await;
    let got = curl(&served, PROGRESS).await;
    assert_eq!((got.status, &got.json()["state"]), (200, &"PROGRESS".into()));
    assert_eq!(served.events.recv().await, Some(Event::GetProgress("demo-1".parse().unwrap())));

    let got = curl(&served, LIST).await;
    assert_eq!((got.status, got.json().as_array().unwrap().len()), (200, 3));
    assert_eq!(served.events.recv().await, Some(Event::ListSyncs(SyncQuery::default())));

    let got = curl(&served, DELETE).await;
    assert_eq!((got.status, got.body.as_slice()), (200, &br#"{"status":"deleted"}"#[..]));
    assert_eq!(served.events.recv().await, Some(Event::DeleteSync("demo-1".parse().unwrap())));

    let got = curl(&served, HEARTBEAT).await;
    assert_eq!((got.status, got.body.as_slice()), (200, &br#"{"status":"ok"}"#[..]));
    let Some(Event::Heartbeat(beat)) = served.events.recv().await else { panic!("a heartbeat") };
    assert_eq!((beat.storage_paths.len(), beat.status), (2, WorkerStatus::Ready));
    assert_eq!(beat.data_plane_endpoints[0].iface.as_deref(), Some("ib0"));

    let got = curl(&served, POLL).await;
    assert_eq!((got.status, got.body.as_slice()), (200, &b"null"[..]));
    let Some(Event::Poll { worker, wait_ms, poll_id: None, incarnation: None }) =
        served.events.recv().await
    else {
        panic!("a poll");
    };
    assert_eq!((worker.as_str(), wait_ms), ("worker-a", 1_000));

    let got = curl(&served, RESULT).await;
    assert_eq!((got.status, got.body.as_slice()), (200, &br#"{"status":"ack"}"#[..]));
    let Some(Event::Result(result)) = served.events.recv().await else { panic!("a result") };
    assert!(result.success && result.assignment_id.is_none());
}
