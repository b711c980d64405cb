//! Documents, lists and URLs; the replies of masters are scripted.

mod credentials;
mod failover;
mod fake_master;
mod resend;

use super::*;
use crate::wire::problem::ProblemCode;
use crate::wire::sync::{SyncRequest, SyncState};
use fake_master::*;
use parking_lot::Mutex;
use std::sync::Arc;

#[tokio::test]
async fn the_body_is_kept_unchanged() {
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let reply = client(&[&master.url]).list_workers().await.unwrap();
    assert!(reply.active.is_empty());
    assert_eq!(&reply.body[..], br#"{ "active":[], "inactive":[]}"#);
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
        "no more is requested"
    );
    assert_eq!(master.requests().len(), 5);
}

#[tokio::test]
async fn an_empty_list_is_an_empty_array() {
    let master = FakeMaster::start(|_, _| ScriptedReply::Reply(200, "", " [] ".to_owned())).await;
    let listed = client(&[&master.url]).list_syncs(&[], None).await.unwrap();
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
        source_workers: Vec::new(),
        destination_workers: Vec::new(),
        chunk_size_mb: 64,
        file_list: None,
        options: Default::default(),
        bwlimit: None,
        run_as: None,
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

#[test]
fn invalid_urls_are_refused() {
    let of = |url: &str| MasterClient::new(vec![url.to_owned()], ClientOptions::default());
    for bad in [
        "",
        " , ",
        "https://m:1",
        "ftps://m",
        "http://u:pw@m",
        "ftp://m",
        "http://",
        "http://m/?a",
        "m n",
    ] {
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
        let (url, error) = (client.urls()[0].clone(), "refused".to_owned());
        let attempts = vec![FailedAttempt { url, error }];
        let text = ClientError::Unreachable { attempts }.to_string();
        assert!(text.contains(&format!("{shown}: refused")), "{given}: {text}");
    }
}
