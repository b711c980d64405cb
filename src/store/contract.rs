//! What every store promises. Each backend runs the whole of it: `contract::suite!(ItsBench)`.

use super::{Acquired, Batch, Candidate, Fence, Store, StoreError};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Long enough that no test outlives a lease of this length (named for what it is measured in).
pub(super) const SECOND: Duration = Duration::from_secs(60);
/// Short enough to be waited for.
const SHORT: Duration = Duration::from_millis(60);

/// A place where one test has a store of its own.
pub(super) trait Bench: Sized {
    type S: Store;
    /// Whether two handles compete for a lease (or, when not, for a lock that is never let go).
    const SHARED: bool;

    async fn fresh() -> Self;
    /// A handle as a process of its own would have it.
    async fn handle(&self) -> Self::S;
}

macro_rules! suite {
    ($bench:ty) => {
        crate::store::contract::suite!(
            $bench:
            a_new_store_is_empty,
            a_load_returns_exactly_what_was_committed,
            blobs_come_and_go_with_their_records,
            a_deposed_epoch_is_refused,
            a_gap_is_a_loss_and_replacing_writes_everything_back,
            a_repeat_changes_nothing_and_succeeds,
            a_late_copy_of_an_older_commit_changes_nothing,
            a_different_batch_under_a_used_fence_is_refused,
            a_lease_is_held_until_it_is_released_or_runs_out,
            a_renewal_keeps_the_lease_and_a_deposed_one_fails,
            a_follower_learns_what_the_leader_says_of_itself,
            nobody_is_given_the_lead_of_a_store_that_went_back_behind_what_they_saw,
            the_same_holder_takes_over_at_once,
            data_outlives_the_handle,
            a_large_batch_is_one_commit,
            replacing_drops_very_many_records
        );

        #[test]
        fn random_commits_leave_what_a_plain_map_would_hold() {
            crate::store::contract::random_commits_leave_what_a_plain_map_would_hold::<$bench>();
        }
    };
    ($bench:ty: $($test:ident),+) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::store::contract::$test::<$bench>().await;
            }
        )+
    };
}
pub(super) use suite;

pub(super) async fn lead(store: &impl Store, holder: &str) -> Fence {
    match store.acquire(&holder.into(), SECOND).await.unwrap() {
        Acquired::Leader(fence) => fence,
        other => panic!("{other:?}"),
    }
}

pub(super) fn put(key: &str, value: &str) -> Batch {
    Batch { puts: [(key.to_owned(), value.as_bytes().to_vec())].into(), ..Batch::default() }
}

pub(super) async fn a_new_store_is_empty<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    assert_eq!(lead(&store, "m1").await.seq, 0);
    assert_eq!(store.load().await.unwrap(), BTreeMap::new());
    assert_eq!(store.blob("none").await.unwrap(), None);
    assert_eq!(store.blob_keys().await.unwrap(), BTreeSet::new());
}

/// Keys and values that a careless encoding would mix up.
fn odd_pairs() -> BTreeMap<String, Vec<u8>> {
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

pub(super) async fn a_load_returns_exactly_what_was_committed<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
    let pairs = odd_pairs();
    let all = Batch { puts: pairs.clone(), blob_puts: pairs.clone(), ..Batch::default() };
    let fence = store.commit(fence, &all).await.unwrap();
    assert_eq!(fence.seq, 1);
    assert_eq!(store.load().await.unwrap(), pairs);
    for (key, value) in &pairs {
        assert_eq!(store.blob(key).await.unwrap().as_ref(), Some(value), "{key:?}");
    }
    let next = Batch {
        deletes: ["\0".to_owned(), "never".to_owned(), " ".to_owned()].into(),
        ..put(" ", "deleted and put is put")
    };
    assert_eq!(store.commit(fence, &next).await.unwrap(), Fence { seq: 2, ..fence });
    let mut expected = pairs;
    expected.remove("\0");
    expected.extend(next.puts);
    assert_eq!(store.load().await.unwrap(), expected);
}

pub(super) async fn blobs_come_and_go_with_their_records<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
    let both = Batch {
        blob_puts: [("t1".to_owned(), vec![1; 100_000]), ("t2".to_owned(), vec![2])].into(),
        ..put("t1", "task")
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
    // Replacing is about records; a blob stays until it is named.
    store.commit(fence, &Batch { replace: true, ..Batch::default() }).await.unwrap();
    assert_eq!(store.blob_keys().await.unwrap(), ["t2".to_owned()].into());
}

pub(super) async fn a_deposed_epoch_is_refused<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let old = lead(&store, "m1").await;
    let old = store.commit(old, &put("a", "old")).await.unwrap();
    let new = lead(&store, "m1").await;
    assert!(new.epoch > old.epoch && new.seq == old.seq, "{old:?} {new:?}");
    let deposed = StoreError::Deposed { by: "m1".to_owned(), epoch: new.epoch };
    for replace in [false, true] {
        let batch = Batch { replace, ..put("a", "late") };
        assert_eq!(store.commit(old, &batch).await, Err(deposed.clone()));
    }
    store.release(old).await.unwrap();
    assert_eq!(store.load().await.unwrap(), put("a", "old").puts);
    let new = store.commit(new, &put("a", "new")).await.unwrap();
    assert_eq!(store.commit(old, &put("a", "late")).await, Err(deposed));
    assert_eq!(store.load().await.unwrap(), put("a", "new").puts);
    store.renew(new, SECOND).await.unwrap();
}

pub(super) async fn a_gap_is_a_loss_and_replacing_writes_everything_back<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
    let fence = store.commit(fence, &put("a", "1")).await.unwrap();
    // A leader that knows of more than the store holds: the store went back.
    let ahead = Fence { seq: 7, ..fence };
    let lost = StoreError::Lost { expected: 7, found: 1 };
    assert_eq!(store.commit(ahead, &put("b", "2")).await, Err(lost.clone()));
    assert_eq!(store.renew(ahead, SECOND).await, Err(lost));
    assert_eq!(store.load().await.unwrap(), put("a", "1").puts);
    let whole = Batch { replace: true, ..put("b", "2") };
    let fence = store.commit(ahead.after_loss(1), &whole).await.unwrap();
    assert_eq!(fence.seq, 8);
    assert_eq!(store.load().await.unwrap(), whole.puts);
    assert_eq!(store.commit(fence, &put("c", "3")).await.unwrap().seq, 9);
    // A reign that the store knows nothing of yet was rolled back as a whole.
    let later = Fence { epoch: fence.epoch + 1_000_000, seq: 9 };
    let lost = StoreError::Lost { expected: 9, found: 9 };
    assert_eq!(store.commit(later, &put("d", "4")).await, Err(lost));
    let back = store.commit(later, &whole).await.unwrap();
    assert_eq!(back, Fence { seq: 10, ..later });
    assert!(matches!(store.commit(fence, &whole).await, Err(StoreError::Deposed { .. })));
    let next = lead(&store, "m1").await;
    assert!(next.epoch > later.epoch && next.seq == 10, "{next:?}");
}

pub(super) async fn a_repeat_changes_nothing_and_succeeds<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let first = lead(&store, "m1").await;
    for replace in [false, true] {
        let before = if replace { Fence { seq: 1, ..first } } else { first };
        let batch = Batch { replace, ..put("a", "1") };
        let after = store.commit(before, &batch).await.unwrap();
        for _ in 0..3 {
            assert_eq!(store.commit(before, &batch).await.unwrap(), after);
        }
        assert_eq!(store.load().await.unwrap(), batch.puts);
    }
    // A new reign does not take the last commit of the old one for its own.
    let new = lead(&store, "m1").await;
    assert_eq!(new.seq, 2);
    let lost = StoreError::Lost { expected: 1, found: 2 };
    let repeat = Batch { replace: true, ..put("a", "1") };
    assert_eq!(store.commit(Fence { seq: 1, ..new }, &repeat).await, Err(lost));
}

pub(super) async fn a_late_copy_of_an_older_commit_changes_nothing<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let first = lead(&store, "m1").await;
    let second = store.commit(first, &put("a", "1")).await.unwrap();
    let third = store.commit(second, &put("a", "2")).await.unwrap();
    for replace in [false, true] {
        let late = Batch { replace, ..put("a", "1") };
        assert_eq!(
            store.commit(first, &late).await,
            Err(StoreError::Lost { expected: 0, found: 2 })
        );
    }
    assert_eq!(store.load().await.unwrap(), put("a", "2").puts);
    store.commit(third, &put("a", "3")).await.unwrap();
}

pub(super) async fn a_different_batch_under_a_used_fence_is_refused<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
    store.commit(fence, &put("a", "1")).await.unwrap();
    let lost = StoreError::Lost { expected: 0, found: 1 };
    assert_eq!(store.commit(fence, &put("b", "2")).await, Err(lost));
    assert_eq!(store.load().await.unwrap(), put("a", "1").puts);
    let whole = Batch { replace: true, ..put("b", "2") };
    let fence = store.commit(fence.after_loss(1), &whole).await.unwrap();
    assert_eq!((fence.seq, store.load().await.unwrap()), (2, whole.puts));
}

/// Asks again after the time that each answer names.
async fn wait_to_lead(store: &impl Store, holder: &str) -> Fence {
    loop {
        match store.acquire(&holder.into(), SECOND).await.unwrap() {
            Acquired::Leader(fence) => return fence,
            Acquired::Held { for_ms, .. } => {
                tokio::time::sleep(Duration::from_millis(for_ms)).await;
            }
            behind @ Acquired::Behind(_) => panic!("{behind:?}"),
        }
    }
}

pub(super) async fn a_lease_is_held_until_it_is_released_or_runs_out<B: Bench>() {
    let bench = B::fresh().await;
    let (one, two) = (bench.handle().await, bench.handle().await);
    let first = lead(&one, "m1").await;
    match two.acquire(&"m2".into(), SECOND).await.unwrap() {
        Acquired::Held { by, for_ms, .. } => {
            assert!(by == "m1" && (1..=60_000).contains(&for_ms), "{by} {for_ms}");
        }
        leader => panic!("{leader:?}"),
    }
    let first = one.commit(first, &put("a", "1")).await.unwrap();
    one.release(first).await.unwrap();
    let second = lead(&two, "m2").await;
    assert!(second.epoch > first.epoch && second.seq == 1, "{second:?}");
    if !B::SHARED {
        return;
    }
    assert!(matches!(
        one.commit(first, &put("a", "late")).await,
        Err(StoreError::Deposed { by, .. }) if by == "m2"
    ));
    two.renew(second, SHORT).await.unwrap();
    let third = wait_to_lead(&one, "m1").await;
    assert!(third.epoch > second.epoch);
    assert!(matches!(
        two.commit(second, &put("a", "late")).await,
        Err(StoreError::Deposed { by, epoch }) if by == "m1" && epoch == third.epoch
    ));
    assert_eq!(one.load().await.unwrap(), put("a", "1").puts);
}

pub(super) async fn a_follower_learns_what_the_leader_says_of_itself<B: Bench>() {
    let bench = B::fresh().await;
    let (one, two) = (bench.handle().await, bench.handle().await);
    let me = Candidate { about: "a {\"b\": 1}\n".to_owned(), ..Candidate::from("m1") };
    let Acquired::Leader(fence) = one.acquire(&me, SECOND).await.unwrap() else { panic!() };
    let fence = one.commit(fence, &put("a", "1")).await.unwrap();
    match two.acquire(&"m2".into(), SECOND).await.unwrap() {
        Acquired::Held { by, about, at, .. } => {
            assert_eq!((by, about, at), (me.name, me.about, fence))
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn nobody_is_given_the_lead_of_a_store_that_went_back_behind_what_they_saw<
    B: Bench,
>() {
    let bench = B::fresh().await;
    let (one, two) = (bench.handle().await, bench.handle().await);
    let fence = lead(&one, "m1").await;
    let fence = one.commit(fence, &put("a", "1")).await.unwrap();
    one.release(fence).await.unwrap();
    if !B::SHARED {
        return;
    }
    for saw in [Fence { seq: fence.seq + 1, ..fence }, Fence { epoch: fence.epoch + 1, seq: 0 }] {
        let candidate = Candidate { saw, ..Candidate::from("m2") };
        let answer = two.acquire(&candidate, SECOND).await.unwrap();
        assert_eq!(answer, Acquired::Behind(fence), "{saw:?}");
    }
    let candidate = Candidate { saw: fence, ..Candidate::from("m2") };
    assert!(matches!(two.acquire(&candidate, SECOND).await.unwrap(), Acquired::Leader(_)));
}

pub(super) async fn a_renewal_keeps_the_lease_and_a_deposed_one_fails<B: Bench>() {
    let bench = B::fresh().await;
    let one = bench.handle().await;
    assert!(matches!(one.acquire(&"m1".into(), SHORT).await.unwrap(), Acquired::Leader(_)));
    let fence = lead(&one, "m1").await;
    one.renew(fence, SECOND).await.unwrap();
    let two = bench.handle().await;
    match two.acquire(&"m2".into(), SECOND).await.unwrap() {
        // More than the short lease ever had.
        Acquired::Held { for_ms, .. } => assert!(!B::SHARED || for_ms > 1000, "{for_ms}"),
        leader => panic!("{leader:?}"),
    }
    let newer = lead(&one, "m1").await;
    let deposed = StoreError::Deposed { by: "m1".to_owned(), epoch: newer.epoch };
    assert_eq!(one.renew(fence, SECOND).await, Err(deposed));
    one.renew(newer, SECOND).await.unwrap();
}

pub(super) async fn the_same_holder_takes_over_at_once<B: Bench>() {
    let bench = B::fresh().await;
    let one = bench.handle().await;
    let old = lead(&one, "m1").await;
    let old = one.commit(old, &put("a", "1")).await.unwrap();
    // The master was killed and started again: nothing was released. A lock goes with its process.
    let old_handle = B::SHARED.then_some(one);
    let again = bench.handle().await;
    let new = lead(&again, "m1").await;
    assert!(new.epoch > old.epoch && new.seq == 1);
    if let Some(one) = old_handle {
        let late = one.commit(old, &put("a", "late")).await;
        assert!(matches!(late, Err(StoreError::Deposed { .. })), "{late:?}");
        // Not even with the epoch of the new one: another handle acquired that.
        let forged = one.commit(new, &put("a", "late")).await;
        assert!(matches!(forged, Err(StoreError::Deposed { .. })), "{forged:?}");
    }
    assert_eq!(again.load().await.unwrap(), put("a", "1").puts);
}

pub(super) async fn data_outlives_the_handle<B: Bench>() {
    let bench = B::fresh().await;
    let one = bench.handle().await;
    let fence = lead(&one, "m1").await;
    let batch = Batch { blob_puts: put("b", "blob").puts, ..put("a", "1") };
    let fence = one.commit(fence, &batch).await.unwrap();
    one.release(fence).await.unwrap();
    drop(one);
    let two = bench.handle().await;
    assert_eq!(lead(&two, "m2").await.seq, 1);
    assert_eq!(two.load().await.unwrap(), batch.puts);
    assert_eq!(two.blob("b").await.unwrap(), Some(b"blob".to_vec()));
}

fn numbered(count: usize, bytes: usize) -> BTreeMap<String, Vec<u8>> {
    (0..count).map(|i| (format!("key/{i:08}"), vec![i as u8; bytes])).collect()
}

pub(super) async fn a_large_batch_is_one_commit<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
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

pub(super) async fn replacing_drops_very_many_records<B: Bench>() {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let fence = lead(&store, "m1").await;
    let many = Batch { puts: numbered(60_000, 10), ..Batch::default() };
    let fence = store.commit(fence, &many).await.unwrap();
    let mut whole = Batch { replace: true, ..put("only", "this") };
    whole.puts.extend(numbered(60_000, 11).into_iter().skip(100));
    store.commit(fence, &whole).await.unwrap();
    assert_eq!(store.load().await.unwrap(), whole.puts);
}

/// What a leader (and the network below it) may do.
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

/// The plain map that a store is compared with.
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

async fn play<B: Bench>(steps: Vec<Step>) {
    let bench = B::fresh().await;
    let store = bench.handle().await;
    let mut fence = lead(&store, "m1").await;
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
            Step::Reacquire => fence = lead(&store, "m1").await,
        }
    }
    assert_eq!(store.load().await.unwrap(), model.records);
    assert_eq!(store.blob_keys().await.unwrap(), model.blobs.keys().cloned().collect());
    for (key, value) in model.blobs {
        assert_eq!(store.blob(&key).await.unwrap(), Some(value), "{key:?}");
    }
}

pub(super) fn random_commits_leave_what_a_plain_map_would_hold<B: Bench>() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..14), |steps| {
            runtime.block_on(play::<B>(steps));
            Ok(())
        })
        .unwrap();
}
