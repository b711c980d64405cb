//! The contract of a store, as tests. Each backend runs the whole suite: `contract::suite!(ItsFixture)`.

use super::{AcquireOutcome, Batch, Candidate, Fence, Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Longer than any test.
pub(super) const LONG_LEASE: Duration = Duration::from_secs(60);
/// Short enough to wait for its end.
const SHORT_LEASE: Duration = Duration::from_millis(60);

/// A separate store for one test.
pub(super) trait StoreFixture: Sized {
    type S: Store;
    /// Whether two handles compete for a lease. Otherwise for a lock, which is held until its process ends.
    const HAS_LEASES: bool;

    async fn create() -> Self;
    /// A handle, as another process would have it.
    async fn open_store(&self) -> Self::S;
}

macro_rules! suite {
    ($fixture:ty) => {
        crate::store::contract::suite!(
            $fixture:
            a_new_store_is_empty,
            a_load_returns_exactly_what_was_committed,
            blobs_are_written_and_removed_with_their_records,
            a_deposed_epoch_is_refused,
            a_gap_is_data_loss_and_a_replacing_batch_writes_everything_back,
            a_repeat_changes_nothing_and_succeeds,
            a_late_copy_of_an_older_commit_changes_nothing,
            a_different_batch_under_a_used_fence_is_refused,
            a_lease_is_held_until_it_is_released_or_expires,
            a_renewal_keeps_the_lease_and_a_deposed_one_fails,
            a_follower_reads_the_info_of_the_leader,
            leadership_of_a_rolled_back_store_is_refused,
            the_same_holder_takes_over_at_once,
            data_is_there_after_the_store_is_reopened,
            a_large_batch_is_one_commit,
            replacing_drops_very_many_records
        );

        #[test]
        fn random_commits_have_the_same_effect_as_on_a_map() {
            crate::store::contract::random_commits_have_the_same_effect_as_on_a_map::<$fixture>();
        }
    };
    ($fixture:ty: $($test:ident),+) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::store::contract::$test::<$fixture>().await;
            }
        )+
    };
}
pub(super) use suite;

pub(super) async fn acquire_leadership(store: &impl Store, holder: &str) -> Fence {
    match store.acquire(&holder.into(), LONG_LEASE).await.unwrap() {
        AcquireOutcome::Leader(fence) => fence,
        other => panic!("{other:?}"),
    }
}

pub(super) fn put_batch(key: &str, value: &str) -> Batch {
    Batch { puts: [(key.to_owned(), value.as_bytes().to_vec())].into(), ..Batch::default() }
}

pub(super) async fn a_new_store_is_empty<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    assert_eq!(acquire_leadership(&store, "m1").await.seq, 0);
    assert_eq!(store.load().await.unwrap(), BTreeMap::new());
    assert_eq!(store.blob("none").await.unwrap(), None);
    assert_eq!(store.record("none").await.unwrap(), None);
    assert_eq!(store.blob_keys().await.unwrap(), BTreeSet::new());
}

/// Keys and values that a wrong encoding would confuse.
fn unusual_records() -> BTreeMap<String, Vec<u8>> {
    let every_byte: Vec<u8> = (0..=255).cycle().take(3000).collect();
    [
        ("", b"".to_vec()),
        ("\0", b"\0".to_vec()),
        ("a\nb\r\n$3\r\n", b"\r\n*1\r\n".to_vec()),
        ("é\u{202e}🚚", "ü".into()),
        ("{x}:*?[a-z]", vec![0xff, 0xfe]),
        ("'; DROP TABLE records; --", every_byte),
        (" ", b"nil".to_vec()),
        ("9007199254740993", b"9007199254740993".to_vec()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

pub(super) async fn a_load_returns_exactly_what_was_committed<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let pairs = unusual_records();
    let all = Batch { puts: pairs.clone(), blob_puts: pairs.clone(), ..Batch::default() };
    let fence = store.commit(fence, &all).await.unwrap();
    assert_eq!(fence.seq, 1);
    assert_eq!(store.load().await.unwrap(), pairs);
    for (key, value) in &pairs {
        assert_eq!(store.blob(key).await.unwrap().as_ref(), Some(value), "{key:?}");
        assert_eq!(store.record(key).await.unwrap().as_ref(), Some(value), "{key:?}");
    }
    let next = Batch {
        deletes: ["\0".to_owned(), "never".to_owned(), " ".to_owned()].into(),
        ..put_batch(" ", "deleted and put is put")
    };
    assert_eq!(store.commit(fence, &next).await.unwrap(), Fence { seq: 2, ..fence });
    let mut expected = pairs;
    expected.remove("\0");
    expected.extend(next.puts);
    assert_eq!(store.load().await.unwrap(), expected);
}

pub(super) async fn blobs_are_written_and_removed_with_their_records<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let both = Batch {
        blob_puts: [("t1".to_owned(), vec![1; 100_000]), ("t2".to_owned(), vec![2])].into(),
        ..put_batch("t1", "task")
    };
    let fence = store.commit(fence, &both).await.unwrap();
    assert_eq!(store.load().await.unwrap().len(), 1, "a blob is no record");
    assert_eq!(store.blob("t1").await.unwrap(), Some(vec![1; 100_000]));
    let gone = Batch {
        deletes: ["t1".to_owned()].into(),
        blob_deletes: ["t1".to_owned(), "t9".to_owned()].into(),
        ..Batch::default()
    };
    let fence = store.commit(fence, &gone).await.unwrap();
    assert_eq!(store.load().await.unwrap(), BTreeMap::new());
    assert_eq!(store.blob("t1").await.unwrap(), None);
    assert_eq!(store.blob_keys().await.unwrap(), ["t2".to_owned()].into());
    // A replacement has no effect on blobs.
    store.commit(fence, &Batch { replace: true, ..Batch::default() }).await.unwrap();
    assert_eq!(store.blob_keys().await.unwrap(), ["t2".to_owned()].into());
}

pub(super) async fn a_deposed_epoch_is_refused<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let old = acquire_leadership(&store, "m1").await;
    let old = store.commit(old, &put_batch("a", "old")).await.unwrap();
    let new = acquire_leadership(&store, "m1").await;
    assert!(new.epoch > old.epoch && new.seq == old.seq, "{old:?} {new:?}");
    let deposed = StoreError::Deposed { leader: "m1".to_owned(), epoch: new.epoch };
    for replace in [false, true] {
        let batch = Batch { replace, ..put_batch("a", "late") };
        assert_eq!(store.commit(old, &batch).await, Err(deposed.clone()));
    }
    store.release(old).await.unwrap();
    assert_eq!(store.load().await.unwrap(), put_batch("a", "old").puts);
    let new = store.commit(new, &put_batch("a", "new")).await.unwrap();
    assert_eq!(store.commit(old, &put_batch("a", "late")).await, Err(deposed));
    assert_eq!(store.load().await.unwrap(), put_batch("a", "new").puts);
    store.renew(new, LONG_LEASE).await.unwrap();
}

pub(super) async fn a_gap_is_data_loss_and_a_replacing_batch_writes_everything_back<
    B: StoreFixture,
>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    // The leader knows a later commit than the store: the store was rolled back.
    let ahead = Fence { seq: 7, ..fence };
    let lost = StoreError::DataLost { expected: 7, found: 1 };
    assert_eq!(store.commit(ahead, &put_batch("b", "2")).await, Err(lost.clone()));
    assert_eq!(store.renew(ahead, LONG_LEASE).await, Err(lost));
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    let whole = Batch { replace: true, ..put_batch("b", "2") };
    let fence = store.commit(ahead.after_loss(1), &whole).await.unwrap();
    assert_eq!(fence.seq, 8);
    assert_eq!(store.load().await.unwrap(), whole.puts);
    assert_eq!(store.commit(fence, &put_batch("c", "3")).await.unwrap().seq, 9);
    // A term that the store does not know was rolled back as a whole.
    let later = Fence { epoch: fence.epoch + 1_000_000, seq: 9 };
    let lost = StoreError::DataLost { expected: 9, found: 9 };
    assert_eq!(store.commit(later, &put_batch("d", "4")).await, Err(lost));
    let back = store.commit(later, &whole).await.unwrap();
    assert_eq!(back, Fence { seq: 10, ..later });
    assert!(matches!(store.commit(fence, &whole).await, Err(StoreError::Deposed { .. })));
    let next = acquire_leadership(&store, "m1").await;
    assert!(next.epoch > later.epoch && next.seq == 10, "{next:?}");
}

pub(super) async fn a_repeat_changes_nothing_and_succeeds<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let first = acquire_leadership(&store, "m1").await;
    for replace in [false, true] {
        let before = if replace { Fence { seq: 1, ..first } } else { first };
        let batch = Batch { replace, ..put_batch("a", "1") };
        let after = store.commit(before, &batch).await.unwrap();
        for _ in 0..3 {
            assert_eq!(store.commit(before, &batch).await.unwrap(), after);
        }
        assert_eq!(store.load().await.unwrap(), batch.puts);
    }
    // The last commit of the old term is not a repeat in the new one.
    let new = acquire_leadership(&store, "m1").await;
    assert_eq!(new.seq, 2);
    let lost = StoreError::DataLost { expected: 1, found: 2 };
    let repeat = Batch { replace: true, ..put_batch("a", "1") };
    assert_eq!(store.commit(Fence { seq: 1, ..new }, &repeat).await, Err(lost));
}

pub(super) async fn a_late_copy_of_an_older_commit_changes_nothing<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let first = acquire_leadership(&store, "m1").await;
    let second = store.commit(first, &put_batch("a", "1")).await.unwrap();
    let third = store.commit(second, &put_batch("a", "2")).await.unwrap();
    for replace in [false, true] {
        let late = Batch { replace, ..put_batch("a", "1") };
        assert_eq!(
            store.commit(first, &late).await,
            Err(StoreError::DataLost { expected: 0, found: 2 })
        );
    }
    assert_eq!(store.load().await.unwrap(), put_batch("a", "2").puts);
    store.commit(third, &put_batch("a", "3")).await.unwrap();
}

pub(super) async fn a_different_batch_under_a_used_fence_is_refused<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    store.commit(fence, &put_batch("a", "1")).await.unwrap();
    let lost = StoreError::DataLost { expected: 0, found: 1 };
    assert_eq!(store.commit(fence, &put_batch("b", "2")).await, Err(lost));
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    let whole = Batch { replace: true, ..put_batch("b", "2") };
    let fence = store.commit(fence.after_loss(1), &whole).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (2, whole.puts));
}

/// Repeats the request after the time in each reply.
async fn wait_to_lead(store: &impl Store, holder: &str) -> Fence {
    loop {
        match store.acquire(&holder.into(), LONG_LEASE).await.unwrap() {
            AcquireOutcome::Leader(fence) => return fence,
            AcquireOutcome::Held { retry_after_ms, .. } => {
                tokio::time::sleep(Duration::from_millis(retry_after_ms)).await;
            }
            behind @ AcquireOutcome::Behind(_) => panic!("{behind:?}"),
        }
    }
}

pub(super) async fn a_lease_is_held_until_it_is_released_or_expires<B: StoreFixture>() {
    let fixture = B::create().await;
    let (one, two) = (fixture.open_store().await, fixture.open_store().await);
    let first = acquire_leadership(&one, "m1").await;
    match two.acquire(&"m2".into(), LONG_LEASE).await.unwrap() {
        AcquireOutcome::Held { holder, retry_after_ms, .. } => {
            assert!(
                holder == "m1" && (1..=60_000).contains(&retry_after_ms),
                "{holder} {retry_after_ms}"
            );
        }
        leader => panic!("{leader:?}"),
    }
    let first = one.commit(first, &put_batch("a", "1")).await.unwrap();
    one.release(first).await.unwrap();
    let second = acquire_leadership(&two, "m2").await;
    assert!(second.epoch > first.epoch && second.seq == 1, "{second:?}");
    if !B::HAS_LEASES {
        return;
    }
    assert!(matches!(
        one.commit(first, &put_batch("a", "late")).await,
        Err(StoreError::Deposed { leader, .. }) if leader == "m2"
    ));
    two.renew(second, SHORT_LEASE).await.unwrap();
    let third = wait_to_lead(&one, "m1").await;
    assert!(third.epoch > second.epoch);
    assert!(matches!(
        two.commit(second, &put_batch("a", "late")).await,
        Err(StoreError::Deposed { leader, epoch }) if leader == "m1" && epoch == third.epoch
    ));
    assert_eq!(one.load().await.unwrap(), put_batch("a", "1").puts);
}

pub(super) async fn a_follower_reads_the_info_of_the_leader<B: StoreFixture>() {
    let fixture = B::create().await;
    let (one, two) = (fixture.open_store().await, fixture.open_store().await);
    let candidate = Candidate { info: "a {\"b\": 1}\n".to_owned(), ..Candidate::from("m1") };
    let AcquireOutcome::Leader(fence) = one.acquire(&candidate, LONG_LEASE).await.unwrap() else {
        panic!()
    };
    let fence = one.commit(fence, &put_batch("a", "1")).await.unwrap();
    match two.acquire(&"m2".into(), LONG_LEASE).await.unwrap() {
        AcquireOutcome::Held { holder, holder_info, fence: found, .. } => {
            assert_eq!((holder, holder_info, found), (candidate.name, candidate.info, fence));
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn leadership_of_a_rolled_back_store_is_refused<B: StoreFixture>() {
    let fixture = B::create().await;
    let (one, two) = (fixture.open_store().await, fixture.open_store().await);
    let fence = acquire_leadership(&one, "m1").await;
    let fence = one.commit(fence, &put_batch("a", "1")).await.unwrap();
    one.release(fence).await.unwrap();
    if !B::HAS_LEASES {
        return;
    }
    for last_seen in
        [Fence { seq: fence.seq + 1, ..fence }, Fence { epoch: fence.epoch + 1, seq: 0 }]
    {
        let candidate = Candidate { last_seen, ..Candidate::from("m2") };
        let outcome = two.acquire(&candidate, LONG_LEASE).await.unwrap();
        assert_eq!(outcome, AcquireOutcome::Behind(fence), "{last_seen:?}");
    }
    let candidate = Candidate { last_seen: fence, ..Candidate::from("m2") };
    assert!(matches!(
        two.acquire(&candidate, LONG_LEASE).await.unwrap(),
        AcquireOutcome::Leader(_)
    ));
}

pub(super) async fn a_renewal_keeps_the_lease_and_a_deposed_one_fails<B: StoreFixture>() {
    let fixture = B::create().await;
    let one = fixture.open_store().await;
    assert!(matches!(
        one.acquire(&"m1".into(), SHORT_LEASE).await.unwrap(),
        AcquireOutcome::Leader(_)
    ));
    let fence = acquire_leadership(&one, "m1").await;
    one.renew(fence, LONG_LEASE).await.unwrap();
    let two = fixture.open_store().await;
    match two.acquire(&"m2".into(), LONG_LEASE).await.unwrap() {
        // Longer than the short lease.
        AcquireOutcome::Held { retry_after_ms, .. } => {
            assert!(!B::HAS_LEASES || retry_after_ms > 1000, "{retry_after_ms}");
        }
        leader => panic!("{leader:?}"),
    }
    let newer = acquire_leadership(&one, "m1").await;
    let deposed = StoreError::Deposed { leader: "m1".to_owned(), epoch: newer.epoch };
    assert_eq!(one.renew(fence, LONG_LEASE).await, Err(deposed));
    one.renew(newer, LONG_LEASE).await.unwrap();
}

pub(super) async fn the_same_holder_takes_over_at_once<B: StoreFixture>() {
    let fixture = B::create().await;
    let one = fixture.open_store().await;
    let old = acquire_leadership(&one, "m1").await;
    let old = one.commit(old, &put_batch("a", "1")).await.unwrap();
    // The master was killed and restarted without a release. A lock is freed with its process.
    let old_handle = B::HAS_LEASES.then_some(one);
    let again = fixture.open_store().await;
    let new = acquire_leadership(&again, "m1").await;
    assert!(new.epoch > old.epoch && new.seq == 1);
    if let Some(one) = old_handle {
        let late = one.commit(old, &put_batch("a", "late")).await;
        assert!(matches!(late, Err(StoreError::Deposed { .. })), "{late:?}");
        // Also with the epoch of the new term, which another handle acquired.
        let forged = one.commit(new, &put_batch("a", "late")).await;
        assert!(matches!(forged, Err(StoreError::Deposed { .. })), "{forged:?}");
    }
    assert_eq!(again.load().await.unwrap(), put_batch("a", "1").puts);
}

pub(super) async fn data_is_there_after_the_store_is_reopened<B: StoreFixture>() {
    let fixture = B::create().await;
    let one = fixture.open_store().await;
    let fence = acquire_leadership(&one, "m1").await;
    let batch = Batch { blob_puts: put_batch("b", "blob").puts, ..put_batch("a", "1") };
    let fence = one.commit(fence, &batch).await.unwrap();
    one.release(fence).await.unwrap();
    drop(one);
    let two = fixture.open_store().await;
    assert_eq!(acquire_leadership(&two, "m2").await.seq, 1);
    assert_eq!(two.load().await.unwrap(), batch.puts);
    assert_eq!(two.blob("b").await.unwrap(), Some(b"blob".to_vec()));
}

fn numbered(count: usize, bytes: usize) -> BTreeMap<String, Vec<u8>> {
    (0..count).map(|i| (format!("key/{i:08}"), vec![i as u8; bytes])).collect()
}

pub(super) async fn a_large_batch_is_one_commit<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let batch = Batch {
        puts: numbered(5000, 200),
        blob_puts: numbered(128, 256 << 10),
        ..Batch::default()
    };
    let next = store.commit(fence, &batch).await.unwrap();
    assert_eq!(next.seq, 1);
    assert_eq!(store.commit(fence, &batch).await.unwrap(), next);
    assert_eq!(store.load().await.unwrap(), batch.puts);
    assert_eq!(store.blob_keys().await.unwrap().len(), 128);
    assert_eq!(store.blob("key/00000127").await.unwrap(), Some(vec![127; 256 << 10]));
    let gone = Batch {
        deletes: batch.puts.keys().cloned().collect(),
        blob_deletes: batch.blob_puts.keys().cloned().collect(),
        ..Batch::default()
    };
    store.commit(next, &gone).await.unwrap();
    assert_eq!(store.load().await.unwrap(), BTreeMap::new());
    assert_eq!(store.blob_keys().await.unwrap(), BTreeSet::new());
}

pub(super) async fn replacing_drops_very_many_records<B: StoreFixture>() {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let fence = acquire_leadership(&store, "m1").await;
    let many = Batch { puts: numbered(60_000, 10), ..Batch::default() };
    let fence = store.commit(fence, &many).await.unwrap();
    let mut whole = Batch { replace: true, ..put_batch("only", "this") };
    whole.puts.extend(numbered(60_000, 11).into_iter().skip(100));
    store.commit(fence, &whole).await.unwrap();
    assert_eq!(store.load().await.unwrap(), whole.puts);
}

/// A step of a leader or of the network.
#[derive(Debug, Clone)]
enum Step {
    Commit(Batch),
    RepeatLast,
    Stale(Batch),
    Reacquire,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || prop::sample::select(vec!["", "a", "b", "c\0", "{d}", "é"]).prop_map(String::from);
    let value = || prop::collection::vec(any::<u8>(), 0..40);
    let puts = || prop::collection::btree_map(key(), value(), 0..4);
    let deletes = || prop::collection::btree_set(key(), 0..3);
    let batch = (prop::bool::weighted(0.1), puts(), deletes(), puts(), deletes()).prop_map(
        |(replace, puts, deletes, blob_puts, blob_deletes)| Batch {
            replace,
            puts,
            deletes,
            blob_puts,
            blob_deletes,
        },
    );
    prop_oneof![
        6 => batch.clone().prop_map(Step::Commit),
        1 => Just(Step::RepeatLast),
        1 => batch.prop_map(Step::Stale),
        1 => Just(Step::Reacquire),
    ]
}

/// The expected content of a store.
#[derive(Default)]
struct Model {
    records: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Model {
    fn apply(&mut self, batch: &Batch) {
        self.records.retain(|key, _| !batch.replace && !batch.deletes.contains(key));
        self.records.extend(batch.puts.clone());
        self.blobs.retain(|key, _| !batch.blob_deletes.contains(key));
        self.blobs.extend(batch.blob_puts.clone());
    }
}

async fn run_steps<B: StoreFixture>(steps: Vec<Step>) {
    let fixture = B::create().await;
    let store = fixture.open_store().await;
    let mut fence = acquire_leadership(&store, "m1").await;
    let mut model = Model::default();
    let mut last: Option<(Fence, Batch)> = None;
    for step in steps {
        match step {
            Step::Commit(batch) => {
                let next = store.commit(fence, &batch).await.unwrap();
                assert_eq!(next, Fence { seq: fence.seq + 1, ..fence });
                model.apply(&batch);
                last = Some((fence, batch));
                fence = next;
            }
            Step::RepeatLast => {
                if let Some((before, batch)) = &last
                    && before.epoch == fence.epoch
                {
                    assert_eq!(store.commit(*before, batch).await.unwrap(), fence);
                }
            }
            Step::Stale(batch) => {
                let stale = Fence { epoch: fence.epoch - 1, ..fence };
                assert!(store.commit(stale, &batch).await.is_err());
                let behind = Fence { seq: fence.seq.wrapping_sub(2), ..fence };
                if fence.seq >= 2 {
                    assert!(store.commit(behind, &batch).await.is_err());
                }
            }
            Step::Reacquire => fence = acquire_leadership(&store, "m1").await,
        }
    }
    assert_eq!(store.load().await.unwrap(), model.records);
    assert_eq!(store.blob_keys().await.unwrap(), model.blobs.keys().cloned().collect());
    for (key, value) in model.blobs {
        assert_eq!(store.blob(&key).await.unwrap(), Some(value), "{key:?}");
    }
}

pub(super) fn random_commits_have_the_same_effect_as_on_a_map<B: StoreFixture>() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..14), |steps| {
            runtime.block_on(run_steps::<B>(steps));
            Ok(())
        })
        .unwrap();
}
