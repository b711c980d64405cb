//! Requests that are sent again after a broken connection or corruption, and commands with an unknown outcome.

use super::*;

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
    let corruption = CorruptionCounter::for_sync("run42");
    client(&[&master.url]).send_result(&result, &corruption).await.unwrap();
    let requests = master.requests();
    assert_eq!((requests.len(), corruption.take_count()), (3, 2));
    assert!(requests.iter().all(|request| request == &requests[0]), "the same each time");
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
    let error = client(&[&master.url]).list_workers().await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("corrupted in transit"), "{error}");
    assert_eq!(master.requests().len(), 4);
}

fn client_with_resend_timeout(url: &str, resend: Duration) -> MasterClient {
    let options = ClientOptions { resend_timeout: resend, ..ClientOptions::default() };
    MasterClient::new(vec![url.to_owned()], options).unwrap()
}

/// Longer than any test, and one that is over at once.
const LONG_TIMEOUT: Duration = Duration::from_secs(600);

const SHORT_TIMEOUT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_command_is_resent_until_a_reply_arrives() {
    let master = FakeMaster::start(|n, _| match n {
        // Two attempts per round.
        0..6 => ScriptedReply::CloseConnection,
        _ => ScriptedReply::Reply(200, "", sync_document("x")),
    })
    .await;
    let client = client_with_resend_timeout(&master.url, LONG_TIMEOUT);
    assert_eq!(client.cancel_sync(&sync_id("x")).await.unwrap().request_id, sync_id("x"));
    let requests = master.requests();
    assert_eq!(requests.len(), 7);
    assert!(requests.iter().all(|request| request == &requests[0]), "the same each time");
}

#[tokio::test]
async fn a_command_without_any_reply_is_unconfirmed() {
    let master = FakeMaster::start(|_, _| ScriptedReply::CloseConnection).await;
    let client = client_with_resend_timeout(&master.url, SHORT_TIMEOUT);
    let e = client.cancel_sync(&sync_id("x")).await.unwrap_err();
    assert!(e.is_unconfirmed() && e.is_unreachable() && e.is_retryable(), "{e:?}");
    assert!(e.to_string().contains("may have been carried out"), "{e}");
    // A GET changes nothing.
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
        // A reply that decides nothing does not end the repeats.
        let resend =
            if lost > 0 && status < 500 { LONG_TIMEOUT } else { Duration::from_millis(700) };
        let e = client_with_resend_timeout(&master.url, resend)
            .cancel_sync(&sync_id("x"))
            .await
            .unwrap_err();
        let outcome = (e.is_unconfirmed(), e.status(), e.code());
        assert_eq!(outcome, (unconfirmed, Some(status), Some(code)), "{lost} {status} {code}");
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
        let request = crate::wire::worker::DrainRequest::default();
        let drained = client_with_resend_timeout(&master.url, LONG_TIMEOUT)
            .set_drained(&worker, Some(&request))
            .await;
        assert!(drained.unwrap_err().is_not_found(), "a drained worker is known");
    }
}
