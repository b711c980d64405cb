//! A token goes to the master it was stored for, and nowhere else.

use super::*;
use std::collections::BTreeMap;

fn client_with(urls: &[&str], credentials: Credentials) -> Result<MasterClient> {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    MasterClient::new(urls, ClientOptions { credentials, ..ClientOptions::default() })
}

fn sent_token(request: &str) -> Option<String> {
    let mut lines = request.lines();
    lines.find_map(|line| line.strip_prefix("authorization: Bearer ").map(str::to_owned))
}

#[tokio::test]
async fn a_redirect_takes_the_token_only_to_a_master_that_was_given() {
    let leader = FakeMaster::start(reply_empty_worker_list).await;
    let to = leader.url.clone();
    let follower =
        FakeMaster::start(move |_, _| ScriptedReply::Redirect(format!("{to}/workers"))).await;
    let tokens = BTreeMap::from([
        (follower.url.clone(), "lh1_follower".to_owned()),
        (leader.url.clone(), "lh1_leader".to_owned()),
    ]);
    let only_follower = client_with(&[&follower.url], Credentials::ByUrl(tokens.clone())).unwrap();
    for _ in 0..2 {
        // The second request goes to the leader that was found.
        only_follower.list_workers().await.unwrap();
    }
    let to_leader: Vec<_> = leader.requests().iter().map(|request| sent_token(request)).collect();
    assert_eq!(to_leader, [None, None]);
    assert_eq!(sent_token(&follower.requests()[0]).as_deref(), Some("lh1_follower"));

    let both = client_with(&[&follower.url, &leader.url], Credentials::ByUrl(tokens)).unwrap();
    both.list_workers().await.unwrap();
    assert_eq!(sent_token(leader.requests().last().unwrap()).as_deref(), Some("lh1_leader"));
    let one = client_with(&[&leader.url], Credentials::Token("lh1_one".to_owned())).unwrap();
    one.list_workers().await.unwrap();
    assert_eq!(sent_token(leader.requests().last().unwrap()).as_deref(), Some("lh1_one"));
    assert!(!format!("{one:?}").contains("lh1_one"), "no secret in debug output");
}

#[test]
fn a_token_is_not_sent_in_clear_to_another_host() {
    let token = || Credentials::Token("lh1_x".to_owned());
    for url in ["http://127.0.0.1:8888", "http://[::1]:8888/path", "localhost"] {
        assert!(client_with(&[url], token()).is_ok(), "{url}");
    }
    for url in ["http://10.0.0.1:8888", "head-a", "http://localhost.example"] {
        let error = client_with(&[url], token()).unwrap_err().to_string();
        assert!(error.contains("plain HTTP") && !error.contains("lh1_x"), "{error}");
        assert!(client_with(&[url], Credentials::Empty).is_ok(), "{url}");
        let others =
            Credentials::ByUrl(BTreeMap::from([("http://127.0.0.1:8888".into(), "x".into())]));
        assert!(client_with(&[url], others).is_ok(), "{url}");
    }
}
