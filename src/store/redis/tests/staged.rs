//! The contract with every batch staged, and the limits above which a batch is staged.

use super::*;

struct StagedFixture(RedisServer);

impl StoreFixture for StagedFixture {
    type S = RedisStore;
    const HAS_LEASES: bool = true;

    async fn create() -> Self {
        StagedFixture(RedisServer::start())
    }

    async fn open_store(&self) -> RedisStore {
        let mut store = connect(&self.0).await;
        store.limits = BatchLimits { keys: 0, bytes: 0 };
        store
    }
}

contract::suite!(StagedFixture);

#[tokio::test]
async fn staging_leaves_nothing_behind_and_a_lost_part_fails_the_commit() {
    let fixture = StagedFixture::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let batch = Batch { deletes: ["z".to_owned()].into(), ..put_batch("a", "1") };
    let fence = store.commit(fence, &batch).await.unwrap();
    assert_eq!(fixture.0.command(&["KEYS", "*stage*"]), "*0\r\n");
    // A commit without its parts, as if they had been lost on a fail-over.
    let call = store.commit_invocation(fence, &put_batch("b", "2"), true);
    let refused = store.run_script(&call, fence.seq).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    // The rest of an interrupted attempt is not part of the next commit.
    store.stage_batch(&put_batch("stale", "x")).await.unwrap();
    store.commit(fence, &put_batch("b", "2")).await.unwrap();
    assert_eq!(store.load().await.unwrap().into_keys().collect::<String>(), "ab");
    store.stage_batch(&put_batch("stale", "x")).await.unwrap();
    let ttl = fixture.0.command(&["PTTL", &store.stage_keys[0]]);
    assert!(ttl.starts_with(":5") || ttl.starts_with(":600000"), "{ttl}");
}

/// How often a script ran on the server.
fn count_scripts_run(server: &RedisServer) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]);
    let calls = stats.split("cmdstat_evalsha:calls=").nth(1).expect("a script ran");
    calls.split(',').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn only_a_batch_over_a_limit_is_staged() {
    let server = RedisServer::start();
    let mut store = connect(&server).await;
    store.limits = BatchLimits { keys: 2, bytes: 10 };
    let mut fence = acquire_leadership(&store, "m1").await;
    let puts = |count: usize, bytes: usize| Batch {
        puts: (0..count).map(|at| (at.to_string(), vec![b'v'; bytes - 1])).collect(),
        ..Batch::default()
    };
    // The server knows all scripts from here on: a commit that is not staged is one call.
    fence = store.commit(fence, &puts(3, 2)).await.unwrap();
    for (batch, is_staged) in [
        (puts(1, 10), false),
        (puts(2, 5), false),
        (puts(2, 4), false),
        (puts(3, 3), true),
        (puts(3, 2), true),
        (puts(1, 11), true),
        (puts(2, 6), true),
    ] {
        let before = count_scripts_run(&server);
        fence = store.commit(fence, &batch).await.unwrap();
        let calls = count_scripts_run(&server) - before;
        let context = format!("{} keys, {} bytes: {calls} calls", batch.len(), batch.byte_len());
        assert_eq!(calls > 1, is_staged, "{context}");
        for (key, value) in &batch.puts {
            assert_eq!(store.load().await.unwrap().get(key), Some(value), "{context}");
        }
    }
}
