//! A store in memory that is stricter than the real ones, for tests of what stands above it.

use super::fence::{Reign, Verdict};
use super::{Acquired, Batch, Candidate, Fence, Store, StoreError, millis, new_owner};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

type Map = BTreeMap<String, Vec<u8>>;

/// A store in memory. Clones are the same handle; [`another_handle`](Self::another_handle) is what
/// a second master would have. Leases follow tokio's clock, so a test may pause it.
///
/// It can fail on demand, forget what was committed, and it notes what no careful leader does
/// ([`complaints`](Self::complaints)).
#[derive(Debug, Clone)]
pub struct MemoryStore {
    owner: Arc<str>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    records: Map,
    blobs: Map,
    reign: Reign,
    lease_end: Option<Instant>,
    lease: Duration,
    /// Under which name each handle acquired last.
    holders: BTreeMap<String, Candidate>,
    /// Highest epoch ever given. Outlives a roll-back, as the clock of a server does.
    last_epoch: u64,
    undo: VecDeque<Undo>,
    faults: VecDeque<Fault>,
    /// How long after it took effect a call is answered.
    reply_delay: Duration,
    complaints: Vec<String>,
    commits: u64,
}

/// What brings back the state before one change.
#[derive(Debug)]
struct Undo {
    reign: Reign,
    lease_end: Option<Instant>,
    records: BTreeMap<String, Option<Vec<u8>>>,
    blobs: BTreeMap<String, Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Fault {
    error: StoreError,
    /// The call takes effect, only its answer is lost.
    after: bool,
}

/// How many changes can be rolled back.
const KEPT: usize = 10_000;

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        MemoryStore { owner: new_owner().into(), inner: Arc::default() }
    }

    /// The same data as another master sees it.
    #[must_use]
    pub fn another_handle(&self) -> Self {
        MemoryStore { owner: new_owner().into(), inner: Arc::clone(&self.inner) }
    }

    /// The next call that is not yet marked to fail fails with `error` and changes nothing.
    pub fn fail_next(&self, error: StoreError) {
        self.lock().faults.push_back(Fault { error, after: false });
    }

    /// The next call that is not yet marked to fail takes effect, but answers with `error`: the reply was lost.
    pub fn lose_next_reply(&self, error: StoreError) {
        self.lock().faults.push_back(Fault { error, after: true });
    }

    /// From now on calls that concern the lead (acquire, renew, commit) are answered so long after they took
    /// effect.
    pub fn answer_after(&self, delay: Duration) {
        self.lock().reply_delay = delay;
    }

    /// Gives `answer`, after the delay that is set.
    async fn delayed<T>(&self, answer: T) -> T {
        let delay = self.lock().reply_delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        answer
    }

    /// Goes back to how everything (leadership as well) was right after commit `seq`, as Redis does
    /// on a fail-over to a late replica; `0` is the empty store. Reaches back 10,000 changes.
    pub fn roll_back_to(&self, seq: u64) {
        let mut inner = self.lock();
        while let Some(undo) = inner.undo.pop_back_if(|undo| undo.reign.seq >= seq) {
            inner.reign = undo.reign;
            inner.lease_end = undo.lease_end;
            put_back(&mut inner.records, undo.records);
            put_back(&mut inner.blobs, undo.blobs);
        }
    }

    /// What was done that no careful leader does: deleting what does not exist, putting and
    /// deleting the same key, an empty commit.
    pub fn complaints(&self) -> Vec<String> {
        self.lock().complaints.clone()
    }

    /// How many commits were written (repeats not counted).
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Runs one call, with the fault that is due.
    fn call<T>(
        &self,
        work: impl FnOnce(&mut Inner, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut inner = self.lock();
        match inner.faults.pop_front() {
            Some(Fault { error, after: false }) => Err(error),
            Some(Fault { error, after: true }) => work(&mut inner, &self.owner).and(Err(error)),
            None => work(&mut inner, &self.owner),
        }
    }
}

fn put_back(map: &mut Map, before: BTreeMap<String, Option<Vec<u8>>>) {
    for (key, value) in before {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

/// Applies writes to one of the maps and returns what it held before.
fn apply(
    map: &mut Map,
    puts: &Map,
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
    fn acquire(&mut self, candidate: &Candidate, owner: &str, ttl: Duration) -> Acquired {
        let now = Instant::now();
        let at = self.reign.fence();
        if at.is_behind(candidate.saw) {
            return Acquired::Behind(at);
        }
        if let Some(end) = self.lease_end
            && end > now
            && self.reign.holder != candidate.name
        {
            let Reign { holder: by, about, .. } = self.reign.clone();
            return Acquired::Held { by, about, at, for_ms: millis(end - now) };
        }
        self.keep(BTreeMap::new(), BTreeMap::new());
        self.last_epoch = self.last_epoch.max(self.reign.epoch) + 1;
        self.reign.epoch = self.last_epoch;
        self.reign.last.clear();
        self.reign.owner = owner.to_owned();
        self.reign.holder.clone_from(&candidate.name);
        self.reign.about.clone_from(&candidate.about);
        self.holders.insert(owner.to_owned(), candidate.clone());
        self.lease = ttl;
        self.lease_end = Some(now + ttl);
        Acquired::Leader(Fence { epoch: self.reign.epoch, seq: self.reign.seq })
    }

    fn commit(&mut self, fence: Fence, batch: &Batch, owner: &str) -> Result<Fence, StoreError> {
        let digest = batch.digest();
        let seq = match self.reign.judge(fence, owner, &digest, batch.replace)? {
            Verdict::Repeat(seq) => {
                self.lease_end = Some(Instant::now() + self.lease);
                return Ok(Fence { seq, ..fence });
            }
            Verdict::Write(seq) => seq,
        };
        self.complain(batch);
        let dropped: Vec<String> = if batch.replace {
            self.records.keys().cloned().collect()
        } else {
            batch.deletes.iter().cloned().collect()
        };
        let records = apply(&mut self.records, &batch.puts, dropped.into_iter());
        let blobs = apply(&mut self.blobs, &batch.blob_puts, batch.blob_deletes.iter().cloned());
        self.keep(records, blobs);
        // After a roll-back the store no longer knows of this reign.
        self.reign.epoch = fence.epoch;
        self.reign.owner = owner.to_owned();
        if let Some(holder) = self.holders.get(owner) {
            self.reign.holder.clone_from(&holder.name);
            self.reign.about.clone_from(&holder.about);
        }
        self.reign.seq = seq;
        self.reign.last = digest;
        self.lease_end = Some(Instant::now() + self.lease);
        self.commits += 1;
        Ok(Fence { seq, ..fence })
    }

    /// Notes how to go back to the present leadership and to these values.
    fn keep(
        &mut self,
        records: BTreeMap<String, Option<Vec<u8>>>,
        blobs: BTreeMap<String, Option<Vec<u8>>>,
    ) {
        let (reign, lease_end) = (self.reign.clone(), self.lease_end);
        self.undo.push_back(Undo { reign, lease_end, records, blobs });
        if self.undo.len() > KEPT {
            self.undo.pop_front();
        }
    }

    fn complain(&mut self, batch: &Batch) {
        if batch.is_empty() {
            self.complaints.push("an empty commit".to_owned());
        }
        for (what, map, puts, deletes) in [
            ("record", &self.records, &batch.puts, &batch.deletes),
            ("blob", &self.blobs, &batch.blob_puts, &batch.blob_deletes),
        ] {
            for key in deletes {
                if puts.contains_key(key) {
                    self.complaints.push(format!("{what} {key} put and deleted at once"));
                } else if !map.contains_key(key) {
                    self.complaints.push(format!("{what} {key} deleted, which does not exist"));
                }
            }
        }
    }
}

impl Store for MemoryStore {
    async fn acquire(&self, candidate: &Candidate, ttl: Duration) -> Result<Acquired, StoreError> {
        self.delayed(self.call(|inner, owner| Ok(inner.acquire(candidate, owner, ttl)))).await
    }

    async fn renew(&self, fence: Fence, ttl: Duration) -> Result<(), StoreError> {
        let renewed = self.call(|inner, owner| {
            inner.reign.check_renewal(fence, owner)?;
            inner.lease = ttl;
            inner.lease_end = Some(Instant::now() + ttl);
            Ok(())
        });
        self.delayed(renewed).await
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        self.call(|inner, owner| {
            if inner.reign.epoch == fence.epoch && inner.reign.owner == owner {
                inner.lease_end = None;
            }
            Ok(())
        })
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.call(|inner, _| Ok(inner.records.clone()))
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        self.delayed(self.call(|inner, owner| inner.commit(fence, batch, owner))).await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.call(|inner, _| Ok(inner.blobs.get(key).cloned()))
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.call(|inner, _| Ok(inner.blobs.keys().cloned().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{self, Bench, SECOND, lead, put};

    struct Memory(MemoryStore);

    impl Bench for Memory {
        type S = MemoryStore;
        const SHARED: bool = true;

        async fn fresh() -> Self {
            Memory(MemoryStore::new())
        }

        async fn handle(&self) -> MemoryStore {
            self.0.another_handle()
        }
    }

    contract::suite!(Memory);

    #[tokio::test]
    async fn a_fault_before_the_write_changes_nothing_and_one_after_it_everything() {
        let store = MemoryStore::new();
        let fence = lead(&store, "m1").await;
        let down = StoreError::Unavailable("down".into());
        store.fail_next(down.clone());
        assert_eq!(store.commit(fence, &put("a", "1")).await, Err(down.clone()));
        assert!(store.load().await.unwrap().is_empty());
        store.lose_next_reply(down.clone());
        assert_eq!(store.commit(fence, &put("a", "1")).await, Err(down));
        assert_eq!(store.load().await.unwrap().len(), 1);
        assert_eq!(store.commit(fence, &put("a", "1")).await.unwrap().seq, 1);
        assert_eq!(store.commits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_late_comes_after_the_delay_and_others_at_once() {
        let store = MemoryStore::new();
        let begun = tokio::time::Instant::now();
        let fence = lead(&store, "m1").await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        store.answer_after(Duration::from_secs(5));
        let fence = store.commit(fence, &put("a", "1")).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        store.renew(fence, SECOND).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        store.load().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_renews_the_lease_and_so_does_its_repeat() {
        let store = MemoryStore::new();
        let fence = lead(&store, "m1").await;
        let leads = async || {
            matches!(
                store.another_handle().acquire(&"m2".into(), SECOND).await,
                Ok(Acquired::Leader(_))
            )
        };
        for _ in 0..3 {
            tokio::time::advance(SECOND.mul_f64(0.7)).await;
            assert!(!leads().await);
            store.commit(fence, &put("a", "1")).await.unwrap();
        }
        assert_eq!(store.commits(), 1);
        tokio::time::advance(SECOND.mul_f64(1.1)).await;
        assert!(leads().await);
    }

    #[tokio::test]
    async fn a_roll_back_forgets_and_the_leader_writes_back() {
        let store = MemoryStore::new();
        let mut fence = lead(&store, "m1").await;
        for (key, value) in [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")] {
            fence = store.commit(fence, &put(key, value)).await.unwrap();
        }
        store.roll_back_to(2);
        assert_eq!(
            store.load().await.unwrap(),
            put("a", "1").puts.into_iter().chain(put("b", "2").puts).collect()
        );
        let lost = Err(StoreError::Lost { expected: 4, found: 2 });
        assert_eq!(
            store.renew(fence, SECOND).await,
            Err(StoreError::Lost { expected: 4, found: 2 })
        );
        assert_eq!(store.commit(fence, &put("d", "5")).await, lost);
        let whole = Batch { replace: true, ..put("all", "x") };
        let fence = store.commit(fence.after_loss(2), &whole).await.unwrap();
        assert_eq!(fence.seq, 5);
        assert_eq!(store.load().await.unwrap(), whole.puts);
        store.renew(fence, SECOND).await.unwrap();
    }

    #[tokio::test]
    async fn a_roll_back_to_before_the_reign_is_a_loss_unless_another_took_over() {
        let store = MemoryStore::new();
        let fence = lead(&store, "m1").await;
        let fence = store.commit(fence, &put("a", "1")).await.unwrap();
        store.roll_back_to(0);
        assert_eq!(
            store.commit(fence, &put("b", "2")).await,
            Err(StoreError::Lost { expected: 1, found: 0 })
        );
        let back = Batch { replace: true, ..put("a", "1") };
        let fence = store.commit(fence.after_loss(0), &back).await.unwrap();
        store.roll_back_to(0);
        // The other one asks first: its epoch is new, although the store forgot the one of m1.
        let other = store.another_handle();
        let new = lead(&other, "m2").await;
        assert!(new.epoch > fence.epoch);
        assert!(matches!(
            store.commit(fence, &back).await,
            Err(StoreError::Deposed { by, .. }) if by == "m2"
        ));
    }

    #[tokio::test]
    async fn careless_commits_are_noted() {
        let store = MemoryStore::new();
        let mut fence = lead(&store, "m1").await;
        for batch in [
            Batch::default(),
            Batch { deletes: ["never".to_owned()].into(), ..Batch::default() },
            Batch { deletes: ["a".to_owned()].into(), ..put("a", "1") },
        ] {
            fence = store.commit(fence, &batch).await.unwrap();
        }
        assert_eq!(store.complaints().len(), 3, "{:?}", store.complaints());
    }
}
