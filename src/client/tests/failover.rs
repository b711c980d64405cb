//! Several masters: order, redirects, takeover.

use super::super::exchange::{FAILOVER_TIMEOUT, MAX_REDIRECTS};
use super::*;

#[tokio::test]
async fn the_second_master_is_tried_when_the_first_is_unavailable_and_first_from_then_on() {
    let dead = unused_url().await;
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let client = client(&[&dead, &master.url]);
    client.list_workers().await.unwrap();
    assert_eq!(client.master_order()[0], master.url);
    client.list_workers().await.unwrap();
    assert_eq!(master.requests().len(), 2);
}

#[tokio::test]
async fn a_back_off_ends_when_another_request_gets_a_reply() {
    let master = FakeMaster::start(reply_empty_worker_list).await;
    let client = client(&[&master.url]);
    let request = async {
        // Polled after the one that backs off.
        tokio::task::yield_now().await;
        client.list_workers().await.unwrap();
    };
    tokio::join!(client.back_off(Duration::from_secs(3600)), request);
    let since = std::time::Instant::now();
    client.list_workers().await.unwrap();
    client.back_off(Duration::from_millis(50)).await;
    assert!(
        since.elapsed() >= Duration::from_millis(50),
        "a reply of the same master does not end it"
    );
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
async fn a_redirect_of_a_follower_is_followed_and_the_leader_is_tried_first_from_then_on() {
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
async fn after_a_503_the_next_master_is_tried_and_the_503_is_returned_when_all_reply_so() {
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
async fn a_poll_at_a_stopped_master_moves_to_the_new_leader() {
    let (_silent, old) = stopped_master().await;
    let new = FakeMaster::start(reply_no_assignment).await;
    let client =
        MasterClient::new(vec![old.clone(), new.url.clone()], ClientOptions::default()).unwrap();
    let worker: WorkerId = "w".parse().unwrap();
    let poll = |wait| client.poll_assignment(&worker, Duration::from_secs(wait), None, None);
    let open = poll(600);
    tokio::pin!(open);
    // It waits at the old one, which never replies.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut open).await.is_err());
    assert!(new.requests().is_empty());
    // Another request finds the new one, e.g. a heartbeat that timed out at the old one.
    client.last_answered.send_replace(Some(new.url.clone()));
    let reply = tokio::time::timeout(Duration::from_secs(30), open).await;
    assert!(matches!(reply, Ok(Ok(None))), "{reply:?}");
    assert_eq!(new.requests().len(), 1);
    // A request that waits at the leader stays there when a follower's redirect names the same one.
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
async fn requests_to_a_follower_that_redirects_to_a_dead_leader_are_repeated_until_another_one_leads()
 {
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

#[tokio::test]
async fn an_advertised_address_that_does_not_answer_is_named_with_the_follower() {
    let dead = unused_url().await;
    let to = format!("{dead}/below/workers");
    let follower = FakeMaster::start(move |_, _| ScriptedReply::Redirect(to.clone())).await;
    let text = client(&[&follower.url]).list_workers().await.unwrap_err().to_string();
    let named = format!("{}: sent the request on to {dead}/below, ", follower.url);
    assert!(text.contains(&named) && text.contains("advertise_url"), "{text}");
    assert!(text.contains("refused"), "{text}");
    // The same for one that accepts the connection and closes it.
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
    assert!((55..90).contains(&waited), "{waited} s, the reply of a master takes up to 50 s");
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
    other.send_with_failover(other.new_query("/readyz")).await.unwrap();
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
    let reply = tokio::time::timeout(Duration::from_secs(30), both).await;
    assert!(matches!(reply, Ok(Ok(None))), "{reply:?}");
    assert_eq!(new.requests().len(), 1);
}
