//! Hostile requests: none may hang or crash the server, exhaust its memory, or cause a 5xx.

use super::*;
use proptest::prelude::*;

fn request_head(served: &TestServer, target: &str, rest: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{rest}\r\n", served.addr)
}

#[tokio::test]
async fn a_body_over_its_limit_is_refused_before_it_is_read() {
    let mut served = start_server().await;
    for (target, over) in [
        ("/sync", (64 << 20) + 1),
        ("/workers/heartbeat", (4 << 20) + 1),
        ("/workers/result", (32 << 20) + 1),
        ("/workers/a/assignment", (1 << 20) + 1),
        ("/workers/a/assignments/00000000000000000000000000000000/page", (32 << 20) + 1),
        // hyper refuses larger lengths itself.
        ("/sync", u64::MAX >> 1),
    ] {
        let mut stream = served
            .connect_and_send(&request_head(
                &served,
                target,
                &format!("Content-Length: {over}\r\n"),
            ))
            .await;
        let mut response = Vec::new();
        with_deadline(stream.read_to_end(&mut response)).await.unwrap();
        let got = TestResponse::parse(&response);
        assert_eq!((got.status, got.problem_code().as_str()), (413, "body_too_large"), "{target}");
    }
    assert!(served.has_no_event());
}

#[tokio::test]
async fn a_client_that_reads_only_after_sending_everything_gets_its_413() {
    let served = start_server().await;
    let body = vec![b' '; 33 << 20];
    let got = with_deadline(served.post("/workers/result", body)).await;
    assert_eq!((got.status, got.problem_code().as_str()), (413, "body_too_large"));
}

#[tokio::test]
async fn an_endless_body_is_cut_at_the_limit() {
    let served = start_server().await;
    let mut stream = served
        .connect_and_send(&request_head(
            &served,
            "/workers/heartbeat",
            "Transfer-Encoding: chunked\r\n",
        ))
        .await;
    let (mut from, mut to) = stream.split();
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    let endless = async { while to.write_all(&chunk).await.is_ok() {} };
    let response = async {
        let mut response = vec![0; 4096];
        let n = from.read(&mut response).await.unwrap();
        response.truncate(n);
        TestResponse::parse(&response)
    };
    let (got, ()) = with_deadline(async { tokio::join!(response, endless) }).await;
    assert_eq!(got.status, 413);
    assert_eq!(got.header("connection"), Some("close"));
}

#[tokio::test]
async fn encoded_and_multipart_bodies_are_refused() {
    let served = start_server().await;
    for header in [
        "Content-Encoding: gzip",
        "Content-Encoding: identity, br",
        "Content-Type: multipart/form-data; boundary=x",
    ] {
        let got = served.send("POST", "/sync", &[header], b"{}").await;
        assert_eq!(
            (got.status, got.problem_code().as_str()),
            (415, "unsupported_media_type"),
            "{header}"
        );
    }
    // The second of two headers counts too.
    for second in ["identity", "gzip"] {
        let headers = ["Content-Encoding: identity", &format!("Content-Encoding: {second}")];
        let got = served.send("POST", "/sync", &headers, b"{}").await;
        assert_eq!(got.status, if second == "gzip" { 415 } else { 422 }, "{second}");
    }
    let got = served.send("POST", "/sync", &["Content-Encoding: identity"], b"{}").await;
    assert_eq!(got.status, 422);
}

#[tokio::test]
async fn very_many_and_very_long_headers_are_refused() {
    let served = start_server().await;
    let many: String = (0..10_000).map(|i| format!("X-{i}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "x".repeat(1 << 20));
    for headers in [many, long] {
        let raw = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", served.addr);
        assert_eq!(
            TestResponse::parse(&with_deadline(served.send_raw(raw.as_bytes())).await).status,
            431
        );
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    assert!(matches!(
        TestResponse::parse(&with_deadline(served.send_raw(long.as_bytes())).await).status,
        414 | 431
    ));
    assert_eq!(served.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_connection_that_sends_no_http_is_closed() {
    let served = start_server().await;
    let tls_hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for raw in [
        tls_hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\0\0\0",
        b"GET\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ] {
        let mut stream = TcpStream::connect(served.addr).await.unwrap();
        stream.write_all(raw).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut response = Vec::new();
        let _ = with_deadline(stream.read_to_end(&mut response)).await;
        assert!(response.is_empty() || TestResponse::parse(&response).status == 400, "{raw:?}");
    }
    // Request smuggling: a proxy may interpret two lengths, or a length and chunks, in another way.
    for rest in [
        "Content-Length: 2\r\nContent-Length: 3\r\n",
        "Content-Length: x\r\n",
        "Transfer-Encoding: gzip\r\n",
    ] {
        let raw = request_head(&served, "/sync", rest) + "{}x";
        assert_eq!(
            TestResponse::parse(&with_deadline(served.send_raw(raw.as_bytes())).await).status,
            400,
            "{rest}"
        );
    }
    let raw =
        request_head(&served, "/sync", "Transfer-Encoding: chunked\r\n") + "zz\r\n{}\r\n0\r\n\r\n";
    assert_eq!(
        TestResponse::parse(&with_deadline(served.send_raw(raw.as_bytes())).await).problem_code(),
        "body_read_failed"
    );
}

// The clock is paused: when all tasks wait, it jumps to the next deadline.
#[tokio::test(start_paused = true)]
async fn a_slow_head_or_an_idle_connection_is_closed_in_time() {
    let served = start_server().await;
    for begin in
        ["GET /healthz HTTP/1.1\r\nHo", "", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]
    {
        let start = tokio::time::Instant::now();
        let mut stream = served.connect_and_send(begin).await;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        assert!(start.elapsed() <= Duration::from_secs(13), "{begin:?}: {:?}", start.elapsed());
        assert_eq!(begin.ends_with("\r\n\r\n"), response.starts_with(b"HTTP/1.1 200"), "{begin:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_or_trickles_times_out() {
    let mut served = start_server().await;
    let mut stalled = served
        .connect_and_send(&(request_head(&served, "/sync", "Content-Length: 100\r\n") + "{"))
        .await;
    let mut response = Vec::new();
    let start = tokio::time::Instant::now();
    stalled.read_to_end(&mut response).await.unwrap();
    let got = TestResponse::parse(&response);
    assert_eq!((got.status, got.problem_code().as_str()), (408, "body_timeout"));
    assert!(start.elapsed() < Duration::from_secs(40));

    // A byte now and then: also if much was sent before, which is held meanwhile.
    for (length, at_once) in [(1_000, 0), (63 << 20, 8 << 20)] {
        let head = request_head(&served, "/sync", &format!("Content-Length: {length}\r\n"));
        let mut stream = served.connect_and_send(&head).await;
        let (mut from, mut to) = stream.split();
        to.write_all(&vec![b' '; at_once]).await.unwrap();
        let start = tokio::time::Instant::now();
        let slow_body = async {
            while to.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        let mut response = vec![0; 4096];
        let read = tokio::select! {
            n = from.read(&mut response) => n.unwrap(),
            () = slow_body => panic!("closed without a response"),
        };
        assert_eq!(TestResponse::parse(&response[..read]).status, 408, "{length}");
        assert!(start.elapsed() < Duration::from_secs(40), "{length}: {:?}", start.elapsed());
    }
    assert!(served.has_no_event());
}

#[tokio::test(start_paused = true)]
async fn a_small_document_at_one_kibibyte_a_second_is_read() {
    let served = start_server().await;
    let text = br#"{"source_path": "/a", "destination_path": "/b"}"#;
    let document = [text.as_slice(), &vec![b' '; (50 << 10) - text.len()]].concat();
    let length = format!("Content-Length: {}\r\n", document.len());
    let mut stream = served.connect_and_send(&request_head(&served, "/sync", &length)).await;
    for part in document.chunks(1 << 10) {
        stream.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.unwrap();
    assert_eq!(TestResponse::parse(&response).status, 202);
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(with_deadline(stream.read(&mut [0])).await, Ok(0) | Err(_))
}

fn is_open(stream: &TcpStream) -> bool {
    stream.try_read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn idle_connections_are_closed_for_new_ones_and_those_with_a_valid_request_stay() {
    let limits =
        HttpLimits { max_connections: 32, max_unverified_connections: 8, ..HttpLimits::default() };
    let served = start_server_with(limits).await;
    let valid = format!("GET /workers HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    let mut client = served.connect_and_send(&valid).await;
    let answer = async |client: &mut TcpStream| {
        let mut response = vec![0; 16 << 10];
        let read = with_deadline(client.read(&mut response)).await.unwrap();
        TestResponse::parse(&response[..read]).status
    };
    assert_eq!(answer(&mut client).await, 200);
    let mut flood = Vec::new();
    // Slow heads, idle connections, and requests that need no credentials.
    let probe = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    for begin in ["GET /sync HTTP/1.1\r\nX: ", "", &probe].iter().cycle().take(60) {
        flood.push(served.connect_and_send(begin).await);
    }
    // More than there are connections: those that were opened first end now and not after the time-out.
    let newest = flood.split_off(flood.len() - 8);
    for mut idle in flood {
        while !is_closed(&mut idle).await {}
    }
    assert!(newest.iter().step_by(3).all(is_open), "the newest idle ones");
    client.write_all(valid.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut client).await, 200, "the connection stays");
    assert_eq!(served.get("/workers").await.status, 200, "a new client is served");
    drop(newest);
}

#[tokio::test]
async fn clients_with_valid_requests_beyond_the_limit_are_served_as_well() {
    let limits =
        HttpLimits { max_connections: 4, max_unverified_connections: 16, ..HttpLimits::default() };
    let served = start_server_with(limits).await;
    let valid = format!("GET /workers HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr);
    let mut open = Vec::new();
    for _ in 0..12 {
        let mut client = served.connect_and_send(&valid).await;
        assert!(with_deadline(client.read(&mut [0; 4096])).await.unwrap() > 0);
        open.push(client);
    }
    assert_eq!(served.get("/workers").await.status, 200);
    // Three of them are kept, and one place is for the others.
    assert!(open[..3].iter().all(is_open));
    assert!(is_closed(&mut open[5]).await);
}

#[tokio::test]
async fn all_bodies_together_stay_within_their_budget() {
    let limits = HttpLimits { max_total_body_bytes: 1 << 20, ..HttpLimits::default() };
    let mut served = start_server_with(limits).await;
    let big =
        format!(r#"{{"source_path": "/a", "destination_path": "/b"{}}}"#, " ".repeat(800 << 10));
    let mut halfway = served
        .connect_and_send(
            &(request_head(&served, "/sync", &format!("Content-Length: {}\r\n", big.len()))
                + &big[..700 << 10]),
        )
        .await;
    // The second request may succeed until the first one has its part of the budget.
    let refused = with_deadline(async {
        loop {
            let got = served.post("/sync", &big).await;
            if got.status != 202 {
                break got;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.problem_code().as_str()), (503, "overloaded"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(
        served.post("/sync", r#"{"source_path": "/a", "destination_path": "/b"}"#).await.status,
        202
    );
    halfway.write_all(&big.as_bytes()[700 << 10..]).await.unwrap();
    let mut response = Vec::new();
    with_deadline(halfway.read_to_end(&mut response)).await.unwrap();
    assert_eq!(TestResponse::parse(&response).status, 202);
    assert!(!served.has_no_event());
    assert_eq!(
        with_deadline(served.post("/sync", &big)).await.status,
        202,
        "the budget is free again"
    );
}

/// Broken and almost valid documents.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "request_id",
        "source_path",
        "destination_path",
        "chunk_size_mb",
        "file_list",
        "worker_id",
        "status",
        "storage_paths",
        "data_plane_endpoints",
        "assignments",
        "free_bytes",
        "success",
        "report",
        "retry",
        "kind",
        "copy",
        "manifest",
        "READY",
        "/data",
        "..",
        "task_digest",
        "page",
        "next",
        "work",
        "path_b64",
    ]);
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(Value::Null),
    ];
    let tree = leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..6).prop_map(|members| {
                Value::Object(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        tree.clone().prop_map(|v| v.to_string().into_bytes()),
        (tree, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(v, at, byte)| {
            let mut text = v.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            text
        }),
    ]
}

#[test]
fn no_request_bytes_cause_a_server_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = runtime.block_on(start_server());
    let targets = [
        "/sync",
        "/workers/heartbeat",
        "/workers/result",
        "/workers/a/assignment",
        "/workers/a/assignments/00000000000000000000000000000000/page",
    ];
    proptest!(ProptestConfig::with_cases(400), |(body in bodies(), target in prop::sample::select(targets.to_vec()))| {
        let got = runtime.block_on(with_deadline(served.post(target, body)));
        prop_assert!(got.status < 500, "{got:?}");
        if got.status >= 400 {
            got.problem_code();
        }
    });
    proptest!(ProptestConfig::with_cases(200), |(raw in prop::collection::vec(any::<u8>(), 0..200), path in "[ -~]{0,40}")| {
        for raw in [raw, format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()] {
            let response = runtime.block_on(with_deadline(async {
                let mut stream = TcpStream::connect(served.addr).await.unwrap();
                stream.write_all(&raw).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut response = Vec::new();
                let _ = stream.read_to_end(&mut response).await;
                response
            }));
            prop_assert!(response.is_empty() || TestResponse::parse(&response).status < 500);
        }
    });
}

#[tokio::test]
async fn a_body_with_a_wrong_checksum_changes_nothing_and_is_requested_again() {
    let mut served = start_server().await;
    let body = br#"{"request_id": "demo-1", "worker_id": "a", "success": true}"#;
    let check = format!("longhaul-checksum: {}", crate::util::checksum::header_value(body));
    for bit in [0, 100, body.len() * 8 - 1] {
        let mut damaged = body.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let got = served.send("POST", "/workers/result", &[&check], &damaged).await;
        assert_eq!(
            (got.status, got.problem_code().as_str()),
            (400, "checksum_mismatch"),
            "bit {bit}"
        );
    }
    let other = served.send("POST", "/workers/result", &["longhaul-checksum: \u{fc}"], body).await;
    assert_eq!((other.status, other.problem_code().as_str()), (400, "checksum_mismatch"));
    assert!(served.has_no_event());
    let got = served.send("POST", "/workers/result", &[&check], body).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn every_response_has_a_checksum() {
    let served = start_server().await;
    let manifest = "/workers/a/assignments/00000000000000000000000000000000/manifest";
    for target in ["/workers", "/sync/demo-1", "/sync/gone", "/version", manifest, "/nowhere"] {
        let got = served.get(target).await;
        let check = crate::util::checksum::header_value(&got.body);
        assert_eq!(got.header("longhaul-checksum"), Some(check.as_str()), "{target}");
    }
}
