//! Against masters played over plain TCP: each reply is written by hand, so that no server library
//! hides what is really sent.

use super::exchange::{FAILOVER_TIMEOUT, MAX_REDIRECTS};
use super::*;
use crate::wire::problem::ProblemCode;
use crate::wire::sync::{SyncRequest, SyncState};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a played master does with one request.
enum ScriptedReply {
    Reply(u16, &'static str, String),
    /// The status, a line of the head, the body.
    WithChecksum(u16, String, String),
    Redirect(String),
    CloseConnection,
}

/// A master that answers the n-th request (over all connections) with `script(n, request)`.
struct FakeMaster {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeMaster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeMaster {
    async fn start(
        script: impl Fn(usize, &str) -> ScriptedReply + Send + Sync + 'static,
    ) -> FakeMaster {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let script = Arc::new(script);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&log), Arc::clone(&script)));
            }
        });
        FakeMaster { url, received: seen, task }
    }

    fn requests(&self) -> Vec<String> {
        self.received.lock().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: Arc<Mutex<Vec<String>>>,
    script: Arc<impl Fn(usize, &str) -> ScriptedReply>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let n = {
            let mut log = log.lock();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = match script(n, &request) {
            ScriptedReply::CloseConnection => return,
            ScriptedReply::Redirect(to) => {
                format!(
                    "HTTP/1.1 307 Temporary Redirect\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
                )
            }
            ScriptedReply::Reply(status, extra, body) => http_reply(status, extra, &body),
            ScriptedReply::WithChecksum(status, extra, body) => http_reply(status, &extra, &body),
        };
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn http_reply(status: u16, extra: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\n{extra}content-length: {}\r\n\r\n{body}", body.len())
}

/// Head and body as text; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut raw = Vec::new();
    loop {
        if stream.read_buf(&mut raw).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&raw).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_ascii_lowercase()
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ").map(|v| v.parse::<usize>().unwrap()))
            .unwrap_or(0);
        if body.len() >= length {
            return Some(text);
        }
    }
}

fn client(urls: &[&str]) -> MasterClient {
    let urls = urls.iter().map(|u| (*u).to_owned()).collect();
    MasterClient::new(
        urls,
        ClientOptions { request_timeout: Duration::from_secs(10), ..ClientOptions::default() },
    )
    .unwrap()
}

/// A URL at which nothing listens.
async fn unused_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn reply_empty_worker_list(_: usize, _: &str) -> ScriptedReply {
    ScriptedReply::Reply(200, "", r#"{ "active":[], "inactive":[]}"#.to_owned())
}

fn sync_id(text: &str) -> RequestId {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_body_is_kept_unchanged() {
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let reply = client(&[&master.url]).list_workers().await.unwrap();
    assert!(reply.active.is_empty());
    assert_eq!(&reply.body[..], br#"{ "active":[], "inactive":[]}"#);
}

/// The document of a sync.
fn sync_document(id: &str) -> String {
    let mut fields = vec![
        format!(r#""request_id":"{id}","state":"FAILED","phase":"DONE","detail":{{}}"#),
        r#""source_path":"/a","destination_path":"/b""#.to_owned(),
    ];
    for stamp in ["submitted_at", "updated_at"] {
        fields.push(format!(r#""{stamp}":"2026-01-01T00:00:00Z""#));
    }
    for number in [
        "transferred_bytes",
        "total_bytes",
        "files_total",
        "files_done",
        "files_skipped",
        "files_failed",
        "dirs_total",
        "dirs_done",
        "dirs_failed",
        "bytes_skipped",
        "sent_bytes",
        "kept_bytes",
        "cloned_bytes",
        "unverified",
        "retries",
        "verified_files",
        "repaired_files",
    ] {
        fields.push(format!(r#""{number}":0"#));
    }
    fields.push(
        r#""started_at":null,"ended_at":null,"scan_done":true,"errors":[],"error_counts":{}"#
            .to_owned(),
    );
    format!("{{{}}}", fields.join(","))
}

fn ids(list: &[SyncProgress]) -> Vec<&str> {
    list.iter().map(|sync| sync.request_id.as_str()).collect()
}

#[tokio::test]
async fn pages_are_joined_into_one_list() {
    let [c, b, a] = ["c", "b", "a"].map(sync_document);
    let whole = format!("[{c},{b},{a}]");
    let master = FakeMaster::start(move |_, request| {
        if request.contains("page_token=7 ") {
            ScriptedReply::Reply(200, "", format!("[ {a} ]\n"))
        } else {
            ScriptedReply::Reply(200, "x-next-token: 7\r\n", format!("[{c},{b}]"))
        }
    })
    .await;
    let client = client(&[&master.url]);
    let listed = client.list_syncs(&[], None).await.unwrap();
    assert_eq!((ids(&listed), &listed.body[..]), (vec!["c", "b", "a"], whole.as_bytes()));
    let some = client.list_syncs(&[SyncState::Failed, SyncState::Queued], Some(3)).await.unwrap();
    assert_eq!(ids(&some), ["c", "b", "a"]);
    assert!(
        master.requests()[3].starts_with("GET /sync?state=FAILED,QUEUED&limit=1&page_token=7 ")
    );
    assert_eq!(
        ids(&client.list_syncs(&[], Some(2)).await.unwrap()),
        ["c", "b"],
        "no more is asked for"
    );
    assert_eq!(master.requests().len(), 5);
}

#[tokio::test]
async fn a_master_without_page_tokens_is_asked_for_the_whole_list() {
    let many = vec![sync_document("x"); 500].join(",");
    let master = FakeMaster::start(move |_, request| {
        let first = request.starts_with("GET /sync?limit=500 ");
        let more = if first { String::new() } else { format!(",{}", sync_document("y")) };
        ScriptedReply::Reply(200, "", format!("[{many}{more}]"))
    })
    .await;
    assert_eq!(client(&[&master.url]).list_syncs(&[], None).await.unwrap().len(), 501);
    let none = FakeMaster::start(|_, _| ScriptedReply::Reply(200, "", "[]".to_owned())).await;
    let listed = client(&[&none.url]).list_syncs(&[], None).await.unwrap();
    assert_eq!((listed.len(), &listed.body[..]), (0, &b"[]"[..]));
}

#[tokio::test]
async fn a_problem_document_becomes_a_typed_error() {
    let master = FakeMaster::start(|_, _| {
        let mut problem = Problem::new(ProblemCode::SyncExists, "there is a sync run42");
        problem.existing = Some("PROGRESS".to_owned());
        ScriptedReply::Reply(
            409,
            "retry-after: 7\r\ncontent-type: application/problem+json\r\n",
            serde_json::to_string(&problem).unwrap(),
        )
    })
    .await;
    let request = SyncRequest {
        request_id: Some(sync_id("run42")),
        source_path: crate::wire::AbsPath::new("/a").unwrap(),
        destination_path: crate::wire::AbsPath::new("/b").unwrap(),
        chunk_size_mb: 64,
        file_list: None,
        options: Default::default(),
        bwlimit: None,
    };
    let e = client(&[&master.url]).submit(&request, Some("key-1")).await.unwrap_err();
    assert_eq!((e.status(), e.code()), (Some(409), Some("sync_exists")));
    assert_eq!(e.retry_after(), Some(Duration::from_secs(7)));
    assert!(!e.is_retryable() && !e.is_not_found());
    assert!(master.requests()[0].contains("idempotency-key: key-1\r\n"));
    assert!(master.requests()[0].contains(r#""request_id":"run42""#));
}

#[tokio::test]
async fn an_invalid_reply_names_the_url_and_is_sanitized() {
    let master =
        FakeMaster::start(|_, _| ScriptedReply::Reply(200, "", "<html>\x1b[31m".to_owned())).await;
    let e = client(&[&master.url]).list_workers().await.unwrap_err();
    let text = e.to_string();
    assert!(matches!(e, ClientError::InvalidReply { status: Some(200), .. }), "{text}");
    assert!(text.contains(&master.url) && text.contains("<html>") && !text.contains('\x1b'));
}

#[tokio::test]
async fn the_second_master_is_asked_when_the_first_is_unavailable_and_first_from_then_on() {
    let dead = unused_url().await;
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let client = client(&[&dead, &master.url]);
    client.list_workers().await.unwrap();
    assert_eq!(client.master_order()[0], master.url);
    client.list_workers().await.unwrap();
    assert_eq!(master.requests().len(), 2);
}

#[tokio::test]
async fn a_back_off_ends_when_another_request_is_answered() {
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let client = client(&[&master.url]);
    let asked = async {
        // Polled after the one that rests.
        tokio::task::yield_now().await;
        client.list_workers().await.unwrap();
    };
    tokio::join!(client.back_off(Duration::from_secs(3600)), asked);
    let since = std::time::Instant::now();
    client.list_workers().await.unwrap();
    client.back_off(Duration::from_millis(50)).await;
    assert!(since.elapsed() >= Duration::from_millis(50), "the same master says nothing new");
}

#[tokio::test]
async fn when_no_master_answers_every_url_is_named_with_its_cause() {
    let (a, b) = (unused_url().await, unused_url().await);
    let e = client(&[&format!("{a},{b}")]).list_workers().await.unwrap_err();
    let text = e.to_string();
    assert!(e.is_retryable() && e.status().is_none());
    assert!(text.contains(&a) && text.contains(&b) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_redirect_of_a_follower_is_followed_and_the_leader_is_asked_first_from_then_on() {
    let leader = FakeMaster::start(|_, request| {
        assert!(request.starts_with("POST /workers/w/assignment?wait=2s&poll_id=a%20b HTTP/1.1"));
        ScriptedReply::Reply(200, "", "null".to_owned())
    })
    .await;
    let to = format!("{}/workers/w/assignment?wait=2s&poll_id=a%20b", leader.url);
    let follower = FakeMaster::start(move |_, _| ScriptedReply::Redirect(to.clone())).await;
    let client = client(&[&follower.url]);
    let worker: WorkerId = "w".parse().unwrap();
    for _ in 0..2 {
        let got = client
            .poll_assignment(&worker, Duration::from_secs(2), Some("a b"), None)
            .await
            .unwrap();
        assert!(got.is_none());
    }
    assert_eq!((follower.requests().len(), leader.requests().len()), (1, 2));
}

#[tokio::test]
async fn a_redirect_loop_is_an_error() {
    let master = FakeMaster::start(|_, _| ScriptedReply::Redirect("/workers".to_owned())).await;
    let e = client(&[&master.url]).list_workers().await.unwrap_err();
    assert!(matches!(e, ClientError::Unreachable { .. }));
    assert_eq!(master.requests().len(), 1 + MAX_REDIRECTS as usize);
}

#[tokio::test]
async fn after_a_503_the_next_master_is_asked_and_the_503_is_returned_when_all_reply_so() {
    let busy = |_: usize, _: &str| {
        let problem = Problem::new(ProblemCode::StoreUnavailable, "the store is unavailable");
        ScriptedReply::Reply(503, "retry-after: 2\r\n", serde_json::to_string(&problem).unwrap())
    };
    let (a, b) = (FakeMaster::start(busy).await, FakeMaster::start(reply_empty_worker_list).await);
    client(&[&a.url, &b.url]).list_workers().await.unwrap();
    let e = client(&[&a.url]).list_workers().await.unwrap_err();
    assert_eq!((e.status(), e.code()), (Some(503), Some("store_unavailable")));
    assert!(e.is_retryable());
}

#[tokio::test]
async fn a_broken_connection_is_retried_once() {
    let master = FakeMaster::start(|n, request| match n {
        0 => ScriptedReply::CloseConnection,
        _ => reply_empty_worker_list(n, request),
    })
    .await;
    client(&[&master.url]).list_workers().await.unwrap();
    assert_eq!(master.requests().len(), 2);
}

#[tokio::test]
async fn a_deletion_whose_reply_was_lost_succeeds() {
    let gone = || {
        let problem = Problem::new(ProblemCode::SyncNotFound, "no sync x");
        ScriptedReply::Reply(404, "", serde_json::to_string(&problem).unwrap())
    };
    let master =
        FakeMaster::start(move |n, _| if n == 0 { ScriptedReply::CloseConnection } else { gone() })
            .await;
    let client = client(&[&master.url]);
    assert_eq!(client.delete_sync(&sync_id("x")).await.unwrap()["status"], "deleted");
    assert!(client.delete_sync(&sync_id("x")).await.unwrap_err().is_not_found());
}

#[test]
fn invalid_urls_are_refused() {
    let of = |url: &str| MasterClient::new(vec![url.to_owned()], ClientOptions::default());
    for bad in
        ["", " , ", "https://m:1", "http://u:pw@m", "ftp://m", "http://", "http://m/?a", "m n"]
    {
        let e = of(bad).unwrap_err();
        assert!(matches!(e, ClientError::InvalidUrl { .. }), "{bad}");
        assert!(!e.to_string().contains("pw"), "{e}");
    }
    let two = of("10.0.0.1:8888/, http://m:1/x/,http://10.0.0.1:8888").unwrap();
    assert_eq!(two.urls(), ["http://10.0.0.1:8888", "http://m:1/x"]);
    for (given, url, shown) in [
        ("localhost", "http://localhost:8888", "http://localhost:8888"),
        ("m/x", "http://m:8888/x", "http://m:8888/x"),
        ("[::1]", "http://[::1]:8888", "http://[::1]:8888"),
        ("[::1]:9", "http://[::1]:9", "http://[::1]:9"),
        ("m:80", "http://m", "http://m:80"),
        ("http://m/x", "http://m/x", "http://m:80/x"),
    ] {
        let client = of(given).unwrap();
        assert_eq!(client.urls(), [url], "{given}");
        let tried = vec![(client.urls()[0].clone(), "refused".to_owned())];
        let text = ClientError::Unreachable { attempts: tried }.to_string();
        assert!(text.contains(&format!("{shown}: refused")), "{given}: {text}");
    }
}

/// A listener whose connections are accepted by the system only, as those of a process that stands still.
async fn stopped_master() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn reply_no_assignment(_: usize, _: &str) -> ScriptedReply {
    ScriptedReply::Reply(200, "", "null".into())
}

#[tokio::test]
async fn a_poll_at_a_stopped_master_moves_to_the_new_leader() {
    let (_silent, old) = stopped_master().await;
    let new = FakeMaster::start(reply_no_assignment).await;
    let client =
        MasterClient::new(vec![old.clone(), new.url.clone()], ClientOptions::default()).unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let poll = |wait| client.poll_assignment(&worker, Duration::from_secs(wait), None, None);
    let open = poll(600);
    tokio::pin!(open);
    // It waits at the old one, which never answers.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut open).await.is_err());
    assert!(new.requests().is_empty());
    // Another request finds the new one: as a heartbeat does, which is not answered in time.
    client.last_answered.send_replace(Some(new.url.clone()));
    let answer = tokio::time::timeout(Duration::from_secs(30), open).await;
    assert!(matches!(answer, Ok(Ok(None))), "{answer:?}");
    assert_eq!(new.requests().len(), 1);
    // A request that waits at the leader stays there when a follower's answer names the same one.
    assert!(matches!(poll(1).await, Ok(None)));
}

#[tokio::test(start_paused = true)]
async fn a_short_request_skips_a_stopped_master() {
    let (_silent, old) = stopped_master().await;
    let new = FakeMaster::start(|_, _| ScriptedReply::Reply(404, "", "{}".into())).await;
    let client = MasterClient::new(vec![old, new.url.clone()], ClientOptions::default()).unwrap();
    let begun = tokio::time::Instant::now();
    let refused = client.get_sync(&"demo".parse().unwrap()).await.unwrap_err();
    assert_eq!(refused.status(), Some(404));
    assert!(begun.elapsed() <= FAILOVER_TIMEOUT * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_follower_that_redirects_to_a_dead_leader_is_asked_until_another_one_leads() {
    let dead = {
        let (listener, url) = stopped_master().await;
        drop(listener);
        url
    };
    let named = dead.clone();
    let follower = FakeMaster::start(move |n, _| match n {
        0..3 => ScriptedReply::Redirect(format!("{named}/sync/demo")),
        _ => ScriptedReply::Reply(404, "", "{}".into()),
    })
    .await;
    let urls = vec![dead, follower.url.clone()];
    let ask = |takeover| {
        let options = ClientOptions { takeover_timeout: takeover, ..ClientOptions::default() };
        let client = MasterClient::new(urls.clone(), options).unwrap();
        async move { client.get_sync(&"demo".parse().unwrap()).await.unwrap_err() }
    };
    let at_once = ask(Duration::ZERO).await;
    assert!(at_once.to_string().contains("which does not answer"), "{at_once}");
    assert_eq!(ask(Duration::from_secs(60)).await.status(), Some(404));
}

/// The line of a head that carries the check of a body.
fn checksum_header(body: &str) -> String {
    format!("longhaul-checksum: {}\r\n", crate::util::checksum::header_value(body.as_bytes()))
}

#[tokio::test]
async fn requests_carry_a_checksum_and_are_resent_when_they_arrive_corrupted() {
    let master = FakeMaster::start(|n, request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(checksum_header(body).trim()), "{head}");
        if n < 2 {
            let problem = Problem::new(ProblemCode::ChecksumMismatch, "it was corrupted");
            return ScriptedReply::Reply(400, "", serde_json::to_string(&problem).unwrap());
        }
        ScriptedReply::Reply(200, "", r#"{"status":"ack"}"#.to_owned())
    })
    .await;
    let result = crate::wire::task::TaskResult {
        request_id: sync_id("run42"),
        worker_id: "a".parse().unwrap(),
        success: true,
        message: None,
        assignment_id: None,
        attempt: None,
        task_digest: None,
        report: None,
    };
    let damage = CorruptionCounter::for_sync("run42");
    client(&[&master.url]).send_result(&result, &damage).await.unwrap();
    let seen = master.requests();
    assert_eq!((seen.len(), damage.take_count()), (3, 2));
    assert!(seen.iter().all(|request| request == &seen[0]), "the same each time");
}

#[tokio::test]
async fn a_reply_that_does_not_match_its_checksum_is_requested_again() {
    const GOOD: &str = r#"{"active":[],"inactive":[]}"#;
    let master = FakeMaster::start(|n, _| {
        let body = if n == 0 { GOOD.replace("act", "bct") } else { GOOD.to_owned() };
        ScriptedReply::WithChecksum(200, checksum_header(GOOD), body)
    })
    .await;
    let reply = client(&[&master.url]).list_workers().await.unwrap();
    assert_eq!((&reply.body[..], master.requests().len()), (GOOD.as_bytes(), 2));
}

#[tokio::test]
async fn a_deletion_whose_reply_was_corrupted_succeeds() {
    let gone = serde_json::to_string(&Problem::new(ProblemCode::SyncNotFound, "no")).unwrap();
    let master = FakeMaster::start(move |n, _| match n {
        0 => ScriptedReply::WithChecksum(200, checksum_header("{}"), "[}".to_owned()),
        _ => ScriptedReply::WithChecksum(404, checksum_header(&gone), gone.clone()),
    })
    .await;
    client(&[&master.url]).delete_sync(&sync_id("run42")).await.unwrap();
}

#[tokio::test]
async fn corruption_of_every_reply_ends_in_a_retryable_error() {
    let master = FakeMaster::start(|_, _| {
        ScriptedReply::WithChecksum(200, checksum_header("[]"), "{}".to_owned())
    })
    .await;
    let error = client(&[&master.url]).get_version().await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("corrupted in transit"), "{error}");
    assert_eq!(master.requests().len(), 4);
}

fn client_with_resend_timeout(url: &str, resend: Duration) -> MasterClient {
    let options = ClientOptions { resend_timeout: resend, ..ClientOptions::default() };
    MasterClient::new(vec![url.to_owned()], options).unwrap()
}

/// Long enough that no test ends for it, and a time that is over at once.
const LONG_TIMEOUT: Duration = Duration::from_secs(600);
const SHORT_TIMEOUT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_command_is_resent_until_a_reply_arrives() {
    let master = FakeMaster::start(|n, _| match n {
        // Two attempts a round.
        0..6 => ScriptedReply::CloseConnection,
        _ => ScriptedReply::Reply(200, "", sync_document("x")),
    })
    .await;
    let client = client_with_resend_timeout(&master.url, LONG_TIMEOUT);
    assert_eq!(client.cancel_sync(&sync_id("x")).await.unwrap().request_id, sync_id("x"));
    let seen = master.requests();
    assert_eq!(seen.len(), 7);
    assert!(seen.iter().all(|request| request == &seen[0]), "the same each time");
}

#[tokio::test]
async fn a_command_without_any_reply_is_unconfirmed() {
    let master = FakeMaster::start(|_, _| ScriptedReply::CloseConnection).await;
    let client = client_with_resend_timeout(&master.url, SHORT_TIMEOUT);
    let e = client.cancel_sync(&sync_id("x")).await.unwrap_err();
    assert!(e.is_unconfirmed() && e.is_unreachable() && e.is_retryable(), "{e:?}");
    assert!(e.to_string().contains("may have been carried out"), "{e}");
    // Nothing is changed by a question.
    let e = client.get_sync(&sync_id("x")).await.unwrap_err();
    assert!(!e.is_unconfirmed() && e.is_unreachable(), "{e:?}");
    // Without a connection nothing was sent, and nothing is sent again.
    let e = client_with_resend_timeout(&unused_url().await, LONG_TIMEOUT)
        .cancel_sync(&sync_id("x"))
        .await
        .unwrap_err();
    assert!(!e.is_unconfirmed() && e.is_unreachable(), "{e:?}");
}

#[tokio::test]
async fn a_command_is_unconfirmed_unless_a_reply_decides_it() {
    for (lost, status, code, unconfirmed) in [
        (0, 503, "store_unavailable", false),
        (0, 503, "commit_timeout", true),
        (0, 502, "x", true),
        (0, 504, "x", true),
        (0, 500, "internal", false),
        (0, 409, "sync_ended", false),
        (2, 503, "store_unavailable", true),
        (2, 409, "sync_ended", false),
        (2, 422, "invalid_fields", false),
    ] {
        let master = FakeMaster::start(move |n, _| match n < lost {
            true => ScriptedReply::CloseConnection,
            false => {
                let problem = Problem {
                    status,
                    code: code.to_owned(),
                    ..Problem::new(ProblemCode::Internal, "no")
                };
                ScriptedReply::Reply(status, "", serde_json::to_string(&problem).unwrap())
            }
        })
        .await;
        // A reply that is no decision does not end the time to send it again.
        let resend =
            if lost > 0 && status < 500 { LONG_TIMEOUT } else { Duration::from_millis(700) };
        let e = client_with_resend_timeout(&master.url, resend)
            .cancel_sync(&sync_id("x"))
            .await
            .unwrap_err();
        let what = (e.is_unconfirmed(), e.status(), e.code());
        assert_eq!(what, (unconfirmed, Some(status), Some(code)), "{lost} {status} {code}");
    }
}

#[tokio::test]
async fn a_404_to_a_resent_removal_confirms_the_first_attempt() {
    let gone = |lost| {
        let text = serde_json::to_string(&Problem::new(ProblemCode::WorkerNotFound, "no")).unwrap();
        FakeMaster::start(move |n, _| match n < lost {
            true => ScriptedReply::CloseConnection,
            false => ScriptedReply::Reply(404, "", text.clone()),
        })
    };
    let worker: WorkerId = "w".parse().unwrap();
    for (lost, done) in [(0, false), (1, true), (3, true)] {
        let master = gone(lost).await;
        let forgotten =
            client_with_resend_timeout(&master.url, LONG_TIMEOUT).forget_worker(&worker).await;
        assert_eq!(forgotten.is_ok_and(|f| f.status == "forgotten"), done, "{lost}");
        let master = gone(lost).await;
        let undrained =
            client_with_resend_timeout(&master.url, LONG_TIMEOUT).set_drained(&worker, None).await;
        assert_eq!(undrained.is_ok_and(|o| o.drained.is_none()), done, "{lost}");
        let master = gone(lost).await;
        let order = crate::wire::worker::DrainRequest::default();
        let drained = client_with_resend_timeout(&master.url, LONG_TIMEOUT)
            .set_drained(&worker, Some(&order))
            .await;
        assert!(drained.unwrap_err().is_not_found(), "a drained one would be known");
    }
}

#[tokio::test]
async fn an_advertised_address_that_does_not_answer_is_named_with_the_follower() {
    let dead = unused_url().await;
    let to = format!("{dead}/below/workers");
    let follower = FakeMaster::start(move |_, _| ScriptedReply::Redirect(to.clone())).await;
    let text = client(&[&follower.url]).list_workers().await.unwrap_err().to_string();
    let named = format!("{}: sent the request on to {dead}/below, ", follower.url);
    assert!(text.contains(&named) && text.contains("advertise_url"), "{text}");
    assert!(text.contains("refused"), "{text}");
    // One that answers and breaks off is no better.
    let broken = FakeMaster::start(|_, _| ScriptedReply::CloseConnection).await;
    let to = format!("{}/workers", broken.url);
    let follower = FakeMaster::start(move |_, _| ScriptedReply::Redirect(to.clone())).await;
    let text = client(&[&follower.url]).list_workers().await.unwrap_err().to_string();
    let named = format!("{}: sent the request on to {}, ", follower.url, broken.url);
    assert!(text.contains(&named), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_poll_outlasts_its_wait_and_a_request_that_timed_out_is_not_sent_twice() {
    let (_silent, url) = stopped_master().await;
    let client = client(&[&url]);
    let begun = tokio::time::Instant::now();
    client.list_workers().await.unwrap_err();
    let once = begun.elapsed().as_secs();
    assert!((10..15).contains(&once), "{once} s of one time-out of 10 s");
    let (worker, begun) = ("w".parse().unwrap(), tokio::time::Instant::now());
    client.poll_assignment(&worker, Duration::from_secs(50), None, None).await.unwrap_err();
    let waited = begun.elapsed().as_secs();
    assert!((55..90).contains(&waited), "{waited} s, the answer of a master takes up to 50 s");
}

#[tokio::test]
async fn a_readiness_reply_does_not_change_the_leader() {
    let follower = FakeMaster::start(|_, _| ScriptedReply::Reply(503, "", "{}".into())).await;
    let dead = unused_url().await;
    let client = client(&[&dead, &follower.url]);
    assert_eq!(client.fetch_each_readiness().await.len(), 2);
    let ready =
        FakeMaster::start(|_, _| ScriptedReply::Reply(200, "", r#"{"status":"ready"}"#.into()))
            .await;
    assert_eq!(client.master_order(), [dead.clone(), follower.url.clone()]);
    let other = self::client(&[&dead, &ready.url]);
    other.check_readiness().await.unwrap();
    assert_eq!(other.master_order(), [dead, ready.url.clone()]);
}

#[tokio::test]
async fn a_poll_moves_to_a_leader_outside_the_configured_urls() {
    let (_silent, old) = stopped_master().await;
    let new = FakeMaster::start(reply_no_assignment).await;
    let client = MasterClient::new(vec![old], ClientOptions::default()).unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let found = async {
        // Polled after the one that waits.
        tokio::task::yield_now().await;
        client.last_answered.send_replace(Some(new.url.clone()));
    };
    let poll = client.poll_assignment(&worker, Duration::from_secs(600), None, None);
    let both = async { tokio::join!(poll, found).0 };
    let answer = tokio::time::timeout(Duration::from_secs(30), both).await;
    assert!(matches!(answer, Ok(Ok(None))), "{answer:?}");
    assert_eq!(new.requests().len(), 1);
}
