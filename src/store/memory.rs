//! A store in memory for tests of its users. It is stricter than the real ones.

use super::fence::{CommitDecision, LeaderRecord};
use super::{AcquireOutcome, Batch, Candidate, Fence, Store, StoreError, lease_ms, new_session_id};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

type KeyValues = BTreeMap<String, Vec<u8>>;

/// A store in memory. Clones are the same handle; [`another_handle`](Self::another_handle) is a handle of a second
/// master. Leases use the clock of Tokio, which a test may pause.
///
/// It fails and loses commits on demand, and records invalid commits ([`violations`](Self::violations)).
#[derive(Debug, Clone)]
pub(crate) struct MemoryStore {
    session_id: Arc<str>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    records: KeyValues,
    blobs: KeyValues,
    leader: LeaderRecord,
    lease_end: Option<Instant>,
    lease: Duration,
    /// The last candidate of each handle.
    holders: BTreeMap<String, Candidate>,
    /// The highest epoch ever granted. A rollback does not change it, like the clock of a server.
    last_epoch: u64,
    undo_log: VecDeque<Undo>,
    injected_errors: VecDeque<InjectedError>,
    /// The time between the effect of a call and its reply.
    reply_delay: Duration,
    violations: Vec<String>,
    commits: u64,
}

/// The state before one change.
#[derive(Debug)]
struct Undo {
    leader: LeaderRecord,
    lease_end: Option<Instant>,
    records: BTreeMap<String, Option<Vec<u8>>>,
    blobs: BTreeMap<String, Option<Vec<u8>>>,
}

#[derive(Debug)]
struct InjectedError {
    error: StoreError,
    /// The call takes effect, and its reply is lost.
    after_write: bool,
}

const MAX_UNDO_STEPS: usize = 10_000;

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        MemoryStore { session_id: new_session_id().into(), inner: Arc::default() }
    }

    /// A handle of another master to the same data.
    #[must_use]
    pub(crate) fn another_handle(&self) -> Self {
        MemoryStore { session_id: new_session_id().into(), inner: Arc::clone(&self.inner) }
    }

    /// Adds an error: the next call without one fails with it and changes nothing.
    pub(crate) fn fail_next(&self, error: StoreError) {
        self.lock().injected_errors.push_back(InjectedError { error, after_write: false });
    }

    /// Adds an error: the next call without one takes effect and fails with it, because the reply was lost.
    pub(crate) fn lose_next_reply(&self, error: StoreError) {
        self.lock().injected_errors.push_back(InjectedError { error, after_write: true });
    }

    /// Delays the replies to acquire, renew and commit.
    pub(crate) fn delay_replies(&self, delay: Duration) {
        self.lock().reply_delay = delay;
    }

    async fn delay_reply<T>(&self, reply: T) -> T {
        let delay = self.lock().reply_delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        reply
    }

    /// Restores everything, also leadership, as of commit `seq`, like a fail-over of Redis to a replica that was
    /// behind; `0` is the empty store. At most [`MAX_UNDO_STEPS`] changes.
    pub(crate) fn roll_back_to(&self, seq: u64) {
        let mut inner = self.lock();
        while let Some(undo) = inner.undo_log.pop_back_if(|undo| undo.leader.seq >= seq) {
            inner.leader = undo.leader;
            inner.lease_end = undo.lease_end;
            restore_values(&mut inner.records, undo.records);
            restore_values(&mut inner.blobs, undo.blobs);
        }
    }

    /// The invalid commits: empty ones, deletes of keys that do not exist, a put and a delete of the same key.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// The number of commits, without repeats.
    pub(crate) fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Runs a call with the next injected error.
    fn run_call<T>(
        &self,
        call: impl FnOnce(&mut Inner, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut inner = self.lock();
        match inner.injected_errors.pop_front() {
            Some(InjectedError { error, after_write: false }) => Err(error),
            Some(InjectedError { error, after_write: true }) => {
                call(&mut inner, &self.session_id).and(Err(error))
            }
            None => call(&mut inner, &self.session_id),
        }
    }
}

/// Whether a store was rolled back since its fence was `seen`.
fn is_behind(now: Fence, seen: Fence) -> bool {
    (now.epoch, now.seq) < (seen.epoch, seen.seq)
}

fn restore_values(map: &mut KeyValues, before: BTreeMap<String, Option<Vec<u8>>>) {
    for (key, value) in before {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

/// Applies writes to a map. Returns the previous values.
fn apply_writes(
    map: &mut KeyValues,
    puts: &KeyValues,
    deletes: impl Iterator<Item = String>,
) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut before = BTreeMap::new();
    for key in deletes {
        let old = map.remove(&key);
        before.insert(key, old);
    }
    for (key, value) in puts {
        let old = map.insert(key.clone(), value.clone());
        before.entry(key.clone()).or_insert(old);
    }
    before
}

impl Inner {
    fn acquire(
        &mut self,
        candidate: &Candidate,
        session_id: &str,
        ttl: Duration,
    ) -> AcquireOutcome {
        let now = Instant::now();
        let fence = self.leader.fence();
        if is_behind(fence, candidate.last_seen) {
            return AcquireOutcome::Behind(fence);
        }
        if let Some(end) = self.lease_end
            && end > now
            && self.leader.holder != candidate.name
        {
            let LeaderRecord { holder, holder_info, .. } = self.leader.clone();
            return AcquireOutcome::Held {
                holder,
                holder_info,
                fence,
                retry_after_ms: lease_ms(end - now),
            };
        }
        self.push_undo(BTreeMap::new(), BTreeMap::new());
        self.last_epoch = self.last_epoch.max(self.leader.epoch) + 1;
        self.leader.epoch = self.last_epoch;
        self.leader.last_digest.clear();
        self.leader.session_id = session_id.to_owned();
        self.leader.holder.clone_from(&candidate.name);
        self.leader.holder_info.clone_from(&candidate.info);
        self.holders.insert(session_id.to_owned(), candidate.clone());
        self.lease = ttl;
        self.lease_end = Some(now + ttl);
        AcquireOutcome::Leader(Fence { epoch: self.leader.epoch, seq: self.leader.seq })
    }

    fn commit(
        &mut self,
        fence: Fence,
        batch: &Batch,
        session_id: &str,
    ) -> Result<Fence, StoreError> {
        let digest = batch.digest();
        let seq = match self.leader.check_commit(fence, session_id, &digest, batch.replace)? {
            CommitDecision::Repeated(seq) => {
                self.lease_end = Some(Instant::now() + self.lease);
                return Ok(Fence { seq, ..fence });
            }
            CommitDecision::Write(seq) => seq,
        };
        self.check_for_violations(batch);
        let dropped: Vec<String> = if batch.replace {
            self.records.keys().cloned().collect()
        } else {
            batch.deletes.iter().cloned().collect()
        };
        let records = apply_writes(&mut self.records, &batch.puts, dropped.into_iter());
        let blobs =
            apply_writes(&mut self.blobs, &batch.blob_puts, batch.blob_deletes.iter().cloned());
        self.push_undo(records, blobs);
        // After a rollback the store does not know this term.
        self.leader.epoch = fence.epoch;
        self.leader.session_id = session_id.to_owned();
        if let Some(holder) = self.holders.get(session_id) {
            self.leader.holder.clone_from(&holder.name);
            self.leader.holder_info.clone_from(&holder.info);
        }
        self.leader.seq = seq;
        self.leader.last_digest = digest;
        self.lease_end = Some(Instant::now() + self.lease);
        self.commits += 1;
        Ok(Fence { seq, ..fence })
    }

    /// Adds a step that restores the current leadership and these values.
    fn push_undo(
        &mut self,
        records: BTreeMap<String, Option<Vec<u8>>>,
        blobs: BTreeMap<String, Option<Vec<u8>>>,
    ) {
        let (leader, lease_end) = (self.leader.clone(), self.lease_end);
        self.undo_log.push_back(Undo { leader, lease_end, records, blobs });
        if self.undo_log.len() > MAX_UNDO_STEPS {
            self.undo_log.pop_front();
        }
    }

    fn check_for_violations(&mut self, batch: &Batch) {
        if batch.is_empty() {
            self.violations.push("an empty commit".to_owned());
        }
        for (kind, map, puts, deletes) in [
            ("record", &self.records, &batch.puts, &batch.deletes),
            ("blob", &self.blobs, &batch.blob_puts, &batch.blob_deletes),
        ] {
            for key in deletes {
                if puts.contains_key(key) {
                    self.violations.push(format!("{kind} {key} put and deleted in one batch"));
                } else if !map.contains_key(key) {
                    self.violations.push(format!("{kind} {key} deleted, but it does not exist"));
                }
            }
        }
    }
}

impl Store for MemoryStore {
    async fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> Result<AcquireOutcome, StoreError> {
        self.delay_reply(
            self.run_call(|inner, session_id| Ok(inner.acquire(candidate, session_id, ttl))),
        )
        .await
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        let renewed = self.run_call(|inner, session_id| {
            inner.leader.check_renewal(fence, session_id)?;
            inner.lease = ttl;
            inner.lease_end = Some(Instant::now() + ttl);
            Ok(())
        });
        self.delay_reply(renewed).await
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        self.run_call(|inner, session_id| {
            if inner.leader.epoch == fence.epoch && inner.leader.session_id == session_id {
                inner.lease_end = None;
            }
            Ok(())
        })
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.run_call(|inner, _| Ok(inner.records.clone()))
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        self.delay_reply(self.run_call(|inner, session_id| inner.commit(fence, batch, session_id)))
            .await
    }

    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.run_call(|inner, _| Ok(inner.records.get(key).cloned()))
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.run_call(|inner, _| Ok(inner.blobs.get(key).cloned()))
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.run_call(|inner, _| Ok(inner.blobs.keys().cloned().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{self, LONG_LEASE, StoreFixture, acquire_leadership, put_batch};

    struct MemoryFixture(MemoryStore);

    impl StoreFixture for MemoryFixture {
        type S = MemoryStore;
        const HAS_LEASES: bool = true;

        async fn create() -> Self {
            MemoryFixture(MemoryStore::new())
        }

        async fn open_store(&self) -> MemoryStore {
            self.0.another_handle()
        }
    }

    contract::suite!(MemoryFixture);

    #[tokio::test]
    async fn an_injected_error_before_the_write_changes_nothing_and_one_after_it_is_stored() {
        let store = MemoryStore::new();
        let fence = acquire_leadership(&store, "m1").await;
        let down = StoreError::Unavailable("down".into());
        store.fail_next(down.clone());
        assert_eq!(store.commit(fence, &put_batch("a", "1")).await, Err(down.clone()));
        assert!(store.load().await.unwrap().is_empty());
        store.lose_next_reply(down.clone());
        assert_eq!(store.commit(fence, &put_batch("a", "1")).await, Err(down));
        assert_eq!(store.load().await.unwrap().len(), 1);
        assert_eq!(store.commit(fence, &put_batch("a", "1")).await.unwrap().seq, 1);
        assert_eq!(store.commits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_leadership_calls_are_delayed() {
        let store = MemoryStore::new();
        let start = tokio::time::Instant::now();
        let fence = acquire_leadership(&store, "m1").await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        store.delay_replies(Duration::from_secs(5));
        let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        store.renew(fence, LONG_LEASE).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        store.load().await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_renews_the_lease_and_so_does_its_repeat() {
        let store = MemoryStore::new();
        let fence = acquire_leadership(&store, "m1").await;
        let leads = async || {
            matches!(
                store.another_handle().acquire(&"m2".into(), LONG_LEASE).await,
                Ok(AcquireOutcome::Leader(_))
            )
        };
        for _ in 0..3 {
            tokio::time::advance(LONG_LEASE.mul_f64(0.7)).await;
            assert!(!leads().await);
            store.commit(fence, &put_batch("a", "1")).await.unwrap();
        }
        assert_eq!(store.commits(), 1);
        tokio::time::advance(LONG_LEASE.mul_f64(1.1)).await;
        assert!(leads().await);
    }

    #[tokio::test]
    async fn after_a_rollback_the_leader_writes_the_state_back() {
        let store = MemoryStore::new();
        let mut fence = acquire_leadership(&store, "m1").await;
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
            fence = store.commit(fence, &put_batch(key, value)).await.unwrap();
        }
        store.roll_back_to(2);
        assert_eq!(
            store.load().await.unwrap(),
            put_batch("a", "1").puts.into_iter().chain(put_batch("b", "2").puts).collect()
        );
        let lost = Err(StoreError::DataLost { expected: 4, found: 2 });
        assert_eq!(
            store.renew(fence, LONG_LEASE).await,
            Err(StoreError::DataLost { expected: 4, found: 2 })
        );
        assert_eq!(store.commit(fence, &put_batch("d", "5")).await, lost);
        let whole = Batch { replace: true, ..put_batch("all", "x") };
        let fence = store.commit(fence.after_loss(2), &whole).await.unwrap();
        assert_eq!(fence.seq, 5);
        assert_eq!(store.load().await.unwrap(), whole.puts);
        store.renew(fence, LONG_LEASE).await.unwrap();
    }

    #[tokio::test]
    async fn a_rollback_to_before_the_election_is_data_loss_unless_another_master_took_over() {
        let store = MemoryStore::new();
        let fence = acquire_leadership(&store, "m1").await;
        let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
        store.roll_back_to(0);
        assert_eq!(
            store.commit(fence, &put_batch("b", "2")).await,
            Err(StoreError::DataLost { expected: 1, found: 0 })
        );
        let back = Batch { replace: true, ..put_batch("a", "1") };
        let fence = store.commit(fence.after_loss(0), &back).await.unwrap();
        store.roll_back_to(0);
        // Another master acquires leadership first: its epoch is new, although the store lost that of m1.
        let other = store.another_handle();
        let new = acquire_leadership(&other, "m2").await;
        assert!(new.epoch > fence.epoch);
        assert!(matches!(
            store.commit(fence, &back).await,
            Err(StoreError::Deposed { leader, .. }) if leader == "m2"
        ));
    }

    #[tokio::test]
    async fn invalid_commits_are_recorded_as_violations() {
        let store = MemoryStore::new();
        let mut fence = acquire_leadership(&store, "m1").await;
        for batch in [
            Batch::default(),
            Batch { deletes: ["never".to_owned()].into(), ..Batch::default() },
            Batch { deletes: ["a".to_owned()].into(), ..put_batch("a", "1") },
        ] {
            fence = store.commit(fence, &batch).await.unwrap();
        }
        assert_eq!(store.violations().len(), 3, "{:?}", store.violations());
    }
}
