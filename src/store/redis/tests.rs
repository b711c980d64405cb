//! The contract on a real server, and what only a server does: drop connections, restart, forget.

use super::*;
use crate::store::contract::{self, Bench, SECOND, lead, put};
use server::RedisServer;

#[path = "../../../tests/support/redis.rs"]
mod server;

/// One server; every test its own namespace.
struct Inline(RedisServer);

impl Bench for Inline {
    type S = RedisStore;
    const SHARED: bool = true;

    async fn fresh() -> Self {
        Inline(RedisServer::start())
    }

    async fn handle(&self) -> RedisStore {
        connect(&self.0).await
    }
}

contract::suite!(Inline);

/// The same with every batch staged, in the path that huge ones take.
mod staged {
    use super::*;

    struct Staged(RedisServer);

    impl Bench for Staged {
        type S = RedisStore;
        const SHARED: bool = true;

        async fn fresh() -> Self {
            Staged(RedisServer::start())
        }

        async fn handle(&self) -> RedisStore {
            let mut store = connect(&self.0).await;
            store.limits = Limits { keys: 0, bytes: 0 };
            store
        }
    }

    contract::suite!(Staged);

    #[tokio::test]
    async fn nothing_staged_is_left_behind_and_a_part_that_was_lost_fails_the_commit() {
        let bench = Staged::fresh().await;
        let store = bench.handle().await;
        let fence = lead(&store, "m1").await;
        let batch = Batch { deletes: ["z".to_owned()].into(), ..put("a", "1") };
        let fence = store.commit(fence, &batch).await.unwrap();
        assert_eq!(bench.0.command(&["KEYS", "*stage*"]), "*0\r\n");
        // The commit alone, as if its parts had been lost on a fail-over.
        let call = store.commit_call(fence, &put("b", "2"), true);
        let refused = store.ask(&call, fence.seq).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert_eq!(store.load().await.unwrap(), put("a", "1").puts);
        // What an attempt that broke off has left does not get into the next one.
        store.stage(&put("stale", "x")).await.unwrap();
        store.commit(fence, &put("b", "2")).await.unwrap();
        assert_eq!(store.load().await.unwrap().into_keys().collect::<String>(), "ab");
        store.stage(&put("stale", "x")).await.unwrap();
        let ttl = bench.0.command(&["PTTL", &store.stages[0]]);
        assert!(ttl.starts_with(":5") || ttl.starts_with(":600000"), "{ttl}");
    }
}

const NAMESPACE: &str = "test";

async fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&server.url(), NAMESPACE, false).await.unwrap()
}

fn unusable<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unusable(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[tokio::test]
async fn namespaces_do_not_see_each_other() {
    let server = RedisServer::start();
    let one = RedisStore::connect(&server.url(), "one", false).await.unwrap();
    let two = RedisStore::connect(&server.url(), "two", false).await.unwrap();
    let fence = lead(&one, "m1").await;
    lead(&two, "m2").await;
    one.commit(fence, &put("a", "1")).await.unwrap();
    assert!(two.load().await.unwrap().is_empty());
    let keys = server.command(&["KEYS", "{longhaul:one}:*"]);
    assert!(keys.starts_with("*2\r\n"), "{keys}");
}

#[tokio::test]
async fn a_killed_connection_and_flushed_scripts_go_unnoticed() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let mut fence = lead(&store, "m1").await;
    for round in 0..20 {
        let (command, sign) = match round % 2 {
            0 => (&["CLIENT", "KILL", "TYPE", "normal"][..], ":1\r\n"),
            _ => (&["SCRIPT", "FLUSH"][..], "+OK\r\n"),
        };
        assert_eq!(server.command(command), sign);
        fence = store.commit(fence, &put("a", &round.to_string())).await.unwrap();
    }
    assert_eq!((fence.seq, store.load().await.unwrap()), (20, put("a", "19").puts));
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_and_one_that_is_back_has_everything() {
    let mut server = RedisServer::start_with(&["--appendfsync", "always"]);
    let store = connect(&server).await;
    let fence = lead(&store, "m1").await;
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    server.kill();
    for _ in 0..2 {
        let refused = store.commit(fence, &put("b", "2")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    let none = RedisStore::connect(&server.url(), NAMESPACE, false).await;
    assert!(matches!(none, Err(StoreError::Unavailable(_))), "{none:?}");
    server.restart();
    let fence = store.commit(fence, &put("b", "2")).await.unwrap();
    assert_eq!(fence.seq, 2);
    server.restart();
    assert_eq!(store.load().await.unwrap().into_keys().collect::<String>(), "ab");
    store.renew(fence, SECOND).await.unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_came_too_late_is_written_once() {
    let server = RedisServer::start();
    let patience = Patience { answer: Duration::from_millis(100), ..Patience::default() };
    let store =
        RedisStore::connect_with(&server.url(), &RedisSetup::default(), NAMESPACE, false, patience)
            .await
            .unwrap();
    let fence = lead(&store, "m1").await;
    server.signal("STOP");
    let late = store.commit(fence, &put("a", "1")).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    server.signal("CONT");
    // The server still finds the first one in its socket and runs it before or after the repeat.
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    assert_eq!(fence.seq, 1);
    let fence = store.commit(fence, &put("a", "2")).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (2, put("a", "2").puts));
}

#[tokio::test]
async fn a_cut_log_loses_whole_commits_and_the_leader_writes_them_back() {
    let mut server = RedisServer::start_with(&["--appendfsync", "always"]);
    let store = connect(&server).await;
    let fence = lead(&store, "m1").await;
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    let second = Batch { blob_puts: put("b", "blob").puts, ..put("b", "2") };
    let fence = store.commit(fence, &second).await.unwrap();
    server.kill();
    let log = std::fs::OpenOptions::new().write(true).open(server.aof()).unwrap();
    log.set_len(log.metadata().unwrap().len() - 5).unwrap();
    server.restart();
    assert_eq!(store.load().await.unwrap(), put("a", "1").puts);
    assert!(store.blob_keys().await.unwrap().is_empty());
    let lost = StoreError::Lost { expected: 2, found: 1 };
    assert_eq!(store.renew(fence, SECOND).await, Err(lost.clone()));
    assert_eq!(store.commit(fence, &put("c", "3")).await, Err(lost));
    let mut whole = Batch { replace: true, ..second };
    whole.puts.extend(put("a", "1").puts);
    let fence = store.commit(fence.after_loss(1), &whole).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (3, whole.puts));
    assert_eq!(store.blob("b").await.unwrap(), Some(b"blob".to_vec()));
}

#[tokio::test]
async fn an_emptied_server_is_filled_by_the_living_leader_and_its_lease_holds_again() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = lead(&store, "m1").await;
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    assert_eq!(server.command(&["FLUSHALL"]), "+OK\r\n");
    let lost = StoreError::Lost { expected: 1, found: 0 };
    assert_eq!(store.renew(fence, SECOND).await, Err(lost));
    let whole = Batch { replace: true, ..put("a", "1") };
    let fence = store.commit(fence.after_loss(0), &whole).await.unwrap();
    let other = connect(&server).await;
    let held = other.acquire(&"m2".into(), SECOND).await.unwrap();
    assert!(matches!(&held, Acquired::Held { by, .. } if by == "m1"), "{held:?}");
    store.commit(fence, &put("b", "2")).await.unwrap();
    assert_eq!(other.load().await.unwrap().len(), 2);
}

#[tokio::test]
async fn whoever_acquires_after_the_server_was_emptied_deposes_the_old_leader() {
    let server = RedisServer::start();
    let (old, new) = (connect(&server).await, connect(&server).await);
    let before = lead(&old, "m1").await;
    let before = old.commit(before, &put("a", "1")).await.unwrap();
    server.command(&["FLUSHALL"]);
    let after = lead(&new, "m2").await;
    // Within one millisecond the clock gives the same epoch; the owner tells the two apart.
    assert!(after.epoch >= before.epoch && after.seq == 0, "{before:?} {after:?}");
    let whole = Batch { replace: true, ..put("a", "1") };
    for refused in [old.commit(before, &whole).await.map(drop), old.renew(before, SECOND).await] {
        assert!(
            matches!(&refused, Err(StoreError::Deposed { by, .. }) if by == "m2"),
            "{refused:?}"
        );
    }
    assert!(new.load().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_clock_that_was_set_back_delays_a_takeover_by_one_lease_at_most() {
    let server = RedisServer::start();
    let (one, two) = (connect(&server).await, connect(&server).await);
    one.acquire(&"m1".into(), Duration::from_millis(80)).await.unwrap();
    let far = "9000000000000";
    server.command(&["HSET", &one.keys[0], "until", far]);
    match two.acquire(&"m2".into(), SECOND).await.unwrap() {
        Acquired::Held { for_ms, .. } => assert!(for_ms <= 80, "{for_ms}"),
        leader => panic!("{leader:?}"),
    }
    assert!(!server.command(&["HGET", &one.keys[0], "until"]).contains(far));
}

#[tokio::test]
async fn a_key_of_another_kind_is_found_before_anything_is_written() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = lead(&store, "m1").await;
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    server.command(&["SET", &store.keys[2], "a string"]);
    let batch = Batch {
        deletes: ["a".to_owned()].into(),
        blob_puts: put("x", "blob").puts,
        ..put("b", "2")
    };
    let refused = unusable(store.commit(fence, &batch).await);
    assert!(refused.contains(":blobs") && refused.contains("string"), "{refused}");
    assert_eq!(store.load().await.unwrap(), put("a", "1").puts);
    server.command(&["DEL", &store.keys[2]]);
    assert_eq!(store.commit(fence, &batch).await.unwrap().seq, 2);
    assert_eq!(store.load().await.unwrap(), put("b", "2").puts);
}

#[tokio::test]
async fn work_is_recorded_although_the_memory_is_full() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let fence = lead(&store, "m1").await;
    server.command(&["CONFIG", "SET", "maxmemory", "1000"]);
    assert!(server.command(&["SET", "x", "y"]).starts_with("-OOM"));
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    store.stage(&put("b", "2")).await.unwrap();
    store.renew(fence, SECOND).await.unwrap();
    store.release(fence).await.unwrap();
    lead(&store, "m1").await;
}

#[tokio::test]
async fn a_server_that_may_drop_state_is_refused() {
    let server = RedisServer::start();
    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let refused = unusable(RedisStore::connect(&server.url(), NAMESPACE, true).await);
    assert!(refused.contains("allkeys-lru") && refused.contains("noeviction"), "{refused}");
    server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    connect(&server).await;
    server.command(&["CONFIG", "SET", "appendonly", "no"]);
    let refused = unusable(RedisStore::connect(&server.url(), NAMESPACE, false).await);
    assert!(refused.contains("allow_volatile"), "{refused}");
    RedisStore::connect(&server.url(), NAMESPACE, true).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_at_the_start_and_when_leading() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    lead(&store, "m1").await;
    server.command(&["HSET", &store.keys[0], "schema", "2"]);
    for refused in [
        unusable(store.acquire(&"m1".into(), SECOND).await),
        unusable(RedisStore::connect(&server.url(), NAMESPACE, false).await),
    ] {
        assert!(refused.contains("version 2") && refused.contains("upgrade"), "{refused}");
    }
}

#[tokio::test]
async fn permissions_decide_and_passwords_stay_secret() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]);
    let url = |user: &str, password: &str| format!("{}?user={user}&pass={password}", server.url());
    let wrong = unusable(RedisStore::connect(&url("default", "hunter3"), NAMESPACE, false).await);
    let none = unusable(RedisStore::connect(&server.url(), NAMESPACE, false).await);
    for refused in [&wrong, &none] {
        assert!(!refused.contains("hunter") && refused.contains("r.sock"), "{refused}");
    }
    let admin = RedisStore::connect(&url("default", "hunter2"), NAMESPACE, false).await.unwrap();
    // A user that may neither ask for settings nor for the version still works.
    let acl = ["ACL", "SETUSER", "small", "on", ">pw", "~{longhaul:*", "+@all", "-config", "-info"];
    let () = admin.link.run(redis::cmd(acl[0]).arg(&acl[1..])).await.unwrap();
    let small = RedisStore::connect(&url("small", "pw"), NAMESPACE, false).await.unwrap();
    let fence = lead(&small, "m1").await;
    small.commit(fence, &put("a", "1")).await.unwrap();
    let () =
        admin.link.run(redis::cmd("ACL").arg(&["SETUSER", "small", "-evalsha"])).await.unwrap();
    let refused = unusable(small.renew(fence, SECOND).await);
    assert!(refused.contains("evalsha"), "{refused}");
}

#[tokio::test]
async fn a_url_or_namespace_that_cannot_work_is_refused() {
    for url in ["", "localhost", "http://localhost"] {
        let refused = unusable(RedisStore::connect(url, NAMESPACE, false).await);
        assert!(refused.contains("redis://") && !refused.contains("secret"), "{refused}");
    }
    for namespace in ["", "a b", "{x}", "a\n", &"x".repeat(65)] {
        let refused = unusable(RedisStore::connect("redis://127.0.0.1", namespace, false).await);
        assert!(refused.contains("namespace"), "{refused}");
    }
}
