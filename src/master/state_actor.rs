//! The one owner of the state: it gathers a batch of events, applies them, commits their writes as
//! one atomic batch, and only then gives their replies. Nobody is ever told of a decision that is
//! not durable, and throughput comes from the batch.
//!
//! While the store is down the same batch is tried again (its writes are absolute values, so a repeat
//! is harmless) and callers get a 503 at once ([`MasterHandle`](super::Handle)). A store that lost data gets
//! the whole state written back; a master that was deposed stops to decide. Lines of lists of files go to their
//! spool before the commit that counts them; where they can't be written the sync says so and goes on.

use super::channel::{ActorHealth, ActorRequest};
use super::leadership::store_unavailable;
use crate::scheduler::{
    Caller, Effect, Event, Now, Reply, Settings, State, StoredKeys, single_entries,
};
use crate::store::{Batch, Fence, Spool, Store, StoreError};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::units;
use crate::wire::task::{Assignment, TaskReport, TaskResult};
use crate::wire::{SyncNo, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// At most so many events go into one commit.
const MAX_BATCH_EVENTS: usize = 512;
/// … and about so many bytes of manifests and lists: a store takes no batch of any size.
const SOFT_MAX_BATCH_BYTES: usize = 16 << 20;
/// Time is told to the state at least so often.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whose caller went away. A task that goes to such a poll before comes back at
/// once: its answer finds nobody.
const DISCONNECT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// So often is leadership renewed within its lease, while there is no commit.
const RENEWALS_PER_LEASE: u32 = 4;
/// Between two tries of a commit.
const COMMIT_RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(50), max: Duration::from_secs(2) };

/// The time, from clocks that a test can't move: the state itself is tested without them.
fn current_time() -> Now {
    // Includes suspend, unlike the clock behind `Instant`: a lease runs out while the host sleeps.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let mono_ms = boot.tv_sec.unsigned_abs() * 1000 + boot.tv_nsec.unsigned_abs() / 1_000_000;
    Now { mono_ms, wall_ms: jiff::Timestamp::now().as_millisecond() }
}

/// The time at which a state is loaded.
pub(super) fn loading_time() -> Now {
    current_time()
}

/// A reign, as the master knows it that has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaderLease {
    pub(super) fence: Fence,
    /// How long leadership lasts without a commit or renewal.
    pub(super) duration: Duration,
    /// When it was asked for what was last granted, by [`Now::mono_ms`]: nobody else leads before the lease
    /// has passed since then. A clock that goes on while the host sleeps or this process is stopped.
    pub(super) requested_at_ms: u64,
}

impl LeaderLease {
    /// How long this master leads for sure.
    fn remaining(&self) -> Duration {
        let lease = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let end = self.requested_at_ms.saturating_add(lease);
        Duration::from_millis(end.saturating_sub(current_time().mono_ms))
    }

    /// The time between two renewals.
    pub(super) fn renew_interval(&self) -> Duration {
        self.duration / RENEWALS_PER_LEASE
    }
}

/// See the [module](self).
pub(super) struct StateActor<S> {
    store: Arc<S>,
    state: State,
    lease: LeaderLease,
    requests: mpsc::Receiver<ActorRequest>,
    health: watch::Sender<ActorHealth>,
    spool: Spool,
    settings: watch::Receiver<Settings>,
    waiting_callers: BTreeMap<Caller, oneshot::Sender<Reply>>,
    last_caller: u64,
    /// Manifests that are to be read, each with its task.
    manifest_reads: Vec<(TaskId, String)>,
}

/// What a batch of events wants written and answered.
#[derive(Default)]
struct PendingCommit {
    dirty_keys: BTreeSet<String>,
    blob_puts: BTreeMap<String, Vec<u8>>,
    blob_deletes: BTreeSet<String>,
    replies: Vec<(Caller, Reply)>,
    /// Manifests to be read once this is written.
    manifest_reads: Vec<(TaskId, String)>,
    /// Lines of lists, in their order, each with its place.
    record_lines: Vec<(SyncNo, u64, Vec<u8>)>,
    /// Lists that are gone.
    dropped_records: Vec<SyncNo>,
    /// The bytes of blobs and lines.
    bytes: usize,
}

impl PendingCommit {
    fn add_effects(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::PutRecord(key) | Effect::DeleteRecord(key) => {
                    _ = self.dirty_keys.insert(key);
                }
                Effect::PutBlob(key, value) => {
                    self.blob_deletes.remove(&key);
                    self.bytes += value.len();
                    let replaced = self.blob_puts.insert(key, value);
                    self.bytes -= replaced.map_or(0, |value| value.len());
                }
                Effect::DeleteBlob(key) => {
                    self.blob_puts.remove(&key);
                    self.blob_deletes.insert(key);
                }
                Effect::AppendFileRecords { sync, at, bytes } => {
                    self.bytes += bytes.len();
                    match self.record_lines.last_mut() {
                        Some((last, from, lines))
                            if *last == sync && *from + lines.len() as u64 == at =>
                        {
                            lines.extend_from_slice(&bytes);
                        }
                        _ => self.record_lines.push((sync, at, bytes)),
                    }
                }
                Effect::DeleteFileRecords(sync) => {
                    self.record_lines.retain(|(of, ..)| *of != sync);
                    self.dropped_records.push(sync);
                }
                Effect::ReadEntries { task, key } => self.manifest_reads.push((task, key)),
                Effect::Reply(caller, reply) => self.replies.push((caller, reply)),
            }
        }
    }

    /// The writes, with the values that the records have now.
    fn to_batch(&self, state: &State) -> Batch {
        let mut batch = Batch {
            blob_puts: self.blob_puts.clone(),
            blob_deletes: self.blob_deletes.clone(),
            ..Batch::default()
        };
        for key in &self.dirty_keys {
            match state.record(key) {
                Some(value) => drop(batch.puts.insert(key.clone(), value)),
                None => drop(batch.deletes.insert(key.clone())),
            }
        }
        batch
    }
}

impl<S: Store> StateActor<S> {
    pub(super) fn new(
        store: Arc<S>,
        state: State,
        tenure: LeaderLease,
        requests: mpsc::Receiver<ActorRequest>,
        health: watch::Sender<ActorHealth>,
        spool: Spool,
        settings: watch::Receiver<Settings>,
    ) -> Self {
        let waiting = BTreeMap::new();
        let (last_caller, reads) = (0, Vec::new());
        StateActor {
            store,
            state,
            lease: tenure,
            requests,
            health,
            spool,
            settings,
            waiting_callers: waiting,
            last_caller,
            manifest_reads: reads,
        }
    }

    /// Runs until `shutdown` or until the store says that it must not.
    ///
    /// # Errors
    /// Another master leads, or the store can't be used any more.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(MAX_BATCH_EVENTS);
        let mut next_tick = tokio::time::Instant::now();
        let mut renew_at = next_tick + self.lease.renew_interval();
        let mut look_at = next_tick;
        // Looked at before anything else: what was decided last may not be stored.
        while !shutdown.is_cancelled() {
            let mut configured = None;
            // Cancel-safe: `recv_many` takes nothing until it returns, the others hold nothing.
            tokio::select! {
                _ = shutdown.cancelled() => break,
                got = self.requests.recv_many(&mut batch, MAX_BATCH_EVENTS) => {
                    if got == 0 {
                        break;
                    }
                }
                Ok(()) = self.settings.changed() => {
                    configured = Some(Box::new(self.settings.borrow_and_update().clone()));
                }
                _ = tokio::time::sleep_until(next_tick) => {}
                _ = tokio::time::sleep_until(renew_at) => {
                    self.renew_lease(&shutdown).await?;
                    renew_at = tokio::time::Instant::now() + self.lease.renew_interval();
                }
            }
            let time = current_time();
            let mut pending = PendingCommit::default();
            if let Some(settings) = configured {
                pending.add_effects(self.state.apply(Event::Configure(settings), None, time));
            }
            for request in batch.drain(..) {
                self.apply_request(request, &mut pending, time, &shutdown).await?;
                if pending.bytes >= SOFT_MAX_BATCH_BYTES {
                    self.commit_and_reply(std::mem::take(&mut pending), &shutdown).await?;
                    if shutdown.is_cancelled() {
                        break;
                    }
                }
            }
            let woke = tokio::time::Instant::now();
            if woke >= look_at {
                self.withdraw_disconnected_polls(&mut pending, time);
                look_at = woke + DISCONNECT_CHECK_INTERVAL;
            }
            if woke >= next_tick {
                pending.add_effects(self.state.apply(Event::Tick, None, time));
                next_tick = woke + TICK_INTERVAL;
            }
            if self.commit_and_reply(pending, &shutdown).await? {
                renew_at = tokio::time::Instant::now() + self.lease.renew_interval();
            }
            self.read_requested_manifests(&shutdown).await?;
            // Sooner where something runs out, never later: a busy master must not forget the time.
            if let Some(nearest) = self.state.next_deadline_ms(current_time()) {
                let due = tokio::time::Instant::now() + Duration::from_millis(nearest);
                next_tick = next_tick.min(due);
            }
        }
        self.store.release(self.lease.fence).await
    }

    /// Applies what a caller says. Whoever wants the store compared with the state is given what it holds, after
    /// all that was decided before is written.
    async fn apply_request(
        &mut self,
        mut request: ActorRequest,
        pending: &mut PendingCommit,
        time: Now,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        if let Event::Reconcile(stored) = &mut request.event {
            self.commit_and_reply(std::mem::take(pending), shutdown).await?;
            match self.read_stored_keys().await {
                Ok(found) => *stored = found,
                Err(StoreError::Unavailable(why)) => {
                    let refused = Reply::Refused(Box::new(store_unavailable(&why)));
                    // Nobody waits for it any more, perhaps.
                    let _ = request.reply.send(refused);
                    return Ok(());
                }
                Err(fatal) => return Err(fatal),
            }
        }
        self.last_caller += 1;
        let caller = Caller(self.last_caller);
        self.waiting_callers.insert(caller, request.reply);
        pending.add_effects(self.state.apply(request.event, Some(caller), time));
        Ok(())
    }

    /// What the store holds now.
    async fn read_stored_keys(&self) -> Result<StoredKeys, StoreError> {
        let records = self.store.load().await?.into_keys().collect();
        Ok(StoredKeys { records, blobs: self.store.blob_keys().await? })
    }

    /// Commits, then answers. Assignments whose caller went away meanwhile are handed back, which is
    /// another commit. True: something was written.
    async fn commit_and_reply(
        &mut self,
        mut pending: PendingCommit,
        shutdown: &CancellationToken,
    ) -> Result<bool, StoreError> {
        let mut wrote = false;
        loop {
            self.write_record_lines(&mut pending).await;
            let writes = pending.to_batch(&self.state);
            if !writes.is_empty() {
                wrote = true;
                if !self.commit(writes, &mut pending, shutdown).await? {
                    return Ok(wrote);
                }
            } else if !pending.replies.is_empty()
                && self.lease.remaining().is_zero()
                && !self.confirm_leadership(&mut pending, shutdown).await?
            {
                return Ok(wrote);
            }
            self.manifest_reads.append(&mut pending.manifest_reads);
            self.remove_record_files(std::mem::take(&mut pending.dropped_records)).await;
            let unwanted = self.send_replies(std::mem::take(&mut pending.replies));
            if unwanted.is_empty() {
                return Ok(wrote);
            }
            pending = PendingCommit::default();
            for assignment in unwanted {
                let back = Event::Result(returned_result(&assignment));
                pending.add_effects(self.state.apply(back, None, current_time()));
            }
        }
    }

    /// Reads the manifests that the state asked for. While the store is away they stay to be read: it is tried again
    /// at the next tick.
    async fn read_requested_manifests(
        &mut self,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        while let Some((task, key)) = self.manifest_reads.last().cloned() {
            let store = Arc::clone(&self.store);
            let manifest = match self.renewing_while(store.blob(&key)).await {
                Ok(manifest) => manifest,
                Err(StoreError::Unavailable(why)) => {
                    let what = "a manifest cannot be read now";
                    warn_ratelimited!(format_args!("{what}: {why}"), %task, why, "{what}");
                    return Ok(());
                }
                Err(fatal) => return Err(fatal),
            };
            self.manifest_reads.pop();
            let entries = manifest.map_or_else(Vec::new, |bytes| single_entries(&bytes));
            let mut pending = PendingCommit::default();
            pending.add_effects(self.state.apply(
                Event::ManifestEntries { task, entries },
                None,
                current_time(),
            ));
            self.commit_and_reply(pending, shutdown).await?;
            if shutdown.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    /// Writes the lines of lists. One that can't be written is given up: copying matters more.
    async fn write_record_lines(&mut self, pending: &mut PendingCommit) {
        let lines = std::mem::take(&mut pending.record_lines);
        if lines.is_empty() {
            return;
        }
        let spool = self.spool.clone();
        let write = move || {
            let mut lost = BTreeMap::new();
            for (sync, at, bytes) in lines {
                if !lost.contains_key(&sync)
                    && let Err(e) = spool.write(sync.0, at, &bytes)
                {
                    lost.insert(sync, e.to_string());
                }
            }
            lost
        };
        let lost = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "writing lists of files failed");
            BTreeMap::new()
        });
        for (sync, why) in lost {
            tracing::error!(%sync, why, "the outcome of each file can't be recorded any more");
            pending.add_effects(self.state.apply(
                Event::FileRecordsLost { sync, reason: why },
                None,
                current_time(),
            ));
        }
    }

    /// Removes the lists of syncs that are gone.
    async fn remove_record_files(&self, dropped: Vec<SyncNo>) {
        if dropped.is_empty() {
            return;
        }
        let spool = self.spool.clone();
        let remove = move || {
            for sync in dropped {
                if let Err(e) = spool.remove(sync.0) {
                    tracing::warn!(%sync, error = %e, "a list of files could not be removed");
                }
            }
        };
        if let Err(e) = tokio::task::spawn_blocking(remove).await {
            tracing::error!(error = %e, "removing lists of files failed");
        }
    }

    /// Gives replies; returns the assignments that nobody waits for any more.
    fn send_replies(&mut self, replies: Vec<(Caller, Reply)>) -> Vec<Assignment> {
        let mut unwanted = Vec::new();
        for (caller, reply) in replies {
            let Some(waiting) = self.waiting_callers.remove(&caller) else { continue };
            if let Err(Reply::Assignment(Some(assignment))) = waiting.send(reply) {
                unwanted.push(*assignment);
            }
        }
        unwanted
    }

    /// Polls whose caller went away wait no longer.
    fn withdraw_disconnected_polls(&mut self, pending: &mut PendingCommit, time: Now) {
        let answered: BTreeSet<Caller> = pending.replies.iter().map(|(c, _)| *c).collect();
        let gone: Vec<Caller> = self
            .waiting_callers
            .iter()
            .filter(|(caller, reply)| reply.is_closed() && !answered.contains(caller))
            .map(|(caller, _)| *caller)
            .collect();
        for caller in gone {
            self.waiting_callers.remove(&caller);
            pending.add_effects(self.state.apply(Event::CancelPoll(caller), None, time));
        }
    }

    /// Makes a batch durable, however long it takes. False: the master was told to stop first.
    async fn commit(
        &mut self,
        mut batch: Batch,
        pending: &mut PendingCommit,
        shutdown: &CancellationToken,
    ) -> Result<bool, StoreError> {
        let mut failures = 0;
        loop {
            let (store, asked_ms) = (Arc::clone(&self.store), current_time().mono_ms);
            match self.renewing_while(store.commit(self.lease.fence, &batch)).await {
                Ok(fence) => {
                    self.lease = LeaderLease { fence, requested_at_ms: asked_ms, ..self.lease };
                    if failures > 0 {
                        tracing::info!("the store is back");
                    }
                    self.set_health(Ok(()));
                    return Ok(true);
                }
                Err(StoreError::Unavailable(why)) => {
                    if failures == 0 {
                        tracing::error!(why, "the store is not available; trying again");
                    }
                    if !self.back_off(why, &mut failures, shutdown).await {
                        return Ok(false);
                    }
                }
                Err(StoreError::DataLost { expected, found }) => {
                    tracing::error!(
                        expected,
                        found,
                        "the store lost data: everything is written back, active syncs are restarted"
                    );
                    let Some(all) = self.full_snapshot(pending, shutdown).await? else {
                        return Ok(false);
                    };
                    batch = all;
                    self.lease.fence = self.lease.fence.after_loss(found);
                }
                Err(fatal @ (StoreError::Deposed { .. } | StoreError::Unusable(_))) => {
                    return Err(fatal);
                }
            }
        }
    }

    /// The whole state as one batch, after the store lost data. Manifests were in the store only, so
    /// what needs them begins anew. `None`: the master was told to stop first.
    async fn full_snapshot(
        &mut self,
        pending: &mut PendingCommit,
        shutdown: &CancellationToken,
    ) -> Result<Option<Batch>, StoreError> {
        let effects = self.state.apply(Event::StoreLost, None, current_time());
        pending.add_effects(effects);
        let mut failures = 0;
        let stored = loop {
            match self.store.blob_keys().await {
                Err(StoreError::Unavailable(why)) => {
                    if !self.back_off(why, &mut failures, shutdown).await {
                        return Ok(None);
                    }
                }
                other => break other?,
            }
        };
        let puts = self
            .state
            .record_keys()
            .into_iter()
            .filter_map(|key| self.state.record(&key).map(|value| (key, value)))
            .collect();
        // File lists of active syncs and failures of ended ones are still needed, where the store still has them.
        let needed = self.state.blob_keys();
        let keep = |key: &String| needed.contains(key) && !pending.blob_deletes.contains(key);
        Ok(Some(Batch {
            replace: true,
            puts,
            blob_puts: pending.blob_puts.clone(),
            blob_deletes: stored.into_iter().filter(|key| !keep(key)).collect(),
            ..Batch::default()
        }))
    }

    /// Lets callers know at once whether anything can be decided.
    /// The store is away: says so, and waits before the next try. False: the master was told to stop.
    async fn back_off(
        &mut self,
        why: String,
        failures: &mut u32,
        shutdown: &CancellationToken,
    ) -> bool {
        self.set_health(Err(why));
        let pause = COMMIT_RETRY_BACKOFF.delay(*failures);
        *failures += 1;
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = shutdown.cancelled() => false,
        }
    }

    /// True: that was not known before.
    fn set_health(&self, now: ActorHealth) -> bool {
        self.health.send_if_modified(|known| {
            let news = *known != now;
            *known = now;
            news
        })
    }

    /// Waits for the answer of the store. A commit that takes long is no reason to lose the lead: it is
    /// renewed meanwhile. When it runs out all the same, callers learn at once that nothing can be decided.
    async fn renewing_while<T>(&mut self, call: impl Future<Output = T>) -> T {
        tokio::pin!(call);
        let store = Arc::clone(&self.store);
        let mut told = false;
        loop {
            let LeaderLease { fence, duration: lease, .. } = self.lease;
            let (pause, left) = (self.lease.renew_interval(), self.lease.remaining());
            let renewal = async {
                tokio::time::sleep(pause).await;
                let asked_ms = current_time().mono_ms;
                store.renew(fence, lease).await.map(|()| asked_ms)
            };
            tokio::select! {
                biased;
                answer = &mut call => return answer,
                renewed = renewal => {
                    // What is wrong shows in the answer to the call.
                    if let Ok(asked_ms) = renewed {
                        self.lease.requested_at_ms = asked_ms;
                    }
                }
                () = tokio::time::sleep(left), if !told => {
                    told = true;
                    // Where a reason is known already, that says more.
                    if self.health.borrow().is_err() {
                        continue;
                    }
                    let lease = units::format_duration(lease);
                    self.set_health(Err(format!("the store has given no answer for {lease}")));
                }
            }
        }
    }

    /// Makes sure that this master still leads, however long it takes: when its lease ran out (it was
    /// stopped, or the store was away), another one may lead, and what it remembers is old. False: it was
    /// told to stop first.
    async fn confirm_leadership(
        &mut self,
        pending: &mut PendingCommit,
        shutdown: &CancellationToken,
    ) -> Result<bool, StoreError> {
        let mut failures = 0;
        loop {
            let (store, asked_ms) = (Arc::clone(&self.store), current_time().mono_ms);
            match self.renewing_while(store.renew(self.lease.fence, self.lease.duration)).await {
                Ok(()) => {
                    self.lease.requested_at_ms = asked_ms;
                    self.set_health(Ok(()));
                    return Ok(true);
                }
                Err(StoreError::Unavailable(why)) => {
                    if !self.back_off(why, &mut failures, shutdown).await {
                        return Ok(false);
                    }
                }
                Err(StoreError::DataLost { .. }) => {
                    // A commit finds the same, and knows what to do.
                    pending.dirty_keys.extend(self.state.record_keys());
                    let writes = pending.to_batch(&self.state);
                    return self.commit(writes, pending, shutdown).await;
                }
                Err(fatal) => return Err(fatal),
            }
        }
    }

    /// Prolongs leadership while there is nothing to commit.
    async fn renew_lease(&mut self, shutdown: &CancellationToken) -> Result<(), StoreError> {
        let (store, asked_ms) = (Arc::clone(&self.store), current_time().mono_ms);
        match self.renewing_while(store.renew(self.lease.fence, self.lease.duration)).await {
            Ok(()) => {
                self.lease.requested_at_ms = asked_ms;
                self.set_health(Ok(()));
                Ok(())
            }
            Err(StoreError::Unavailable(why)) => {
                if self.set_health(Err(why.clone())) {
                    tracing::error!(why, "the store is not available");
                }
                Ok(())
            }
            Err(StoreError::DataLost { .. }) => {
                // A commit finds the same, and knows what to do; polls that wait get its replies.
                let mut pending = PendingCommit::default();
                pending.dirty_keys.extend(self.state.record_keys());
                self.commit_and_reply(pending, shutdown).await.map(drop)
            }
            Err(fatal) => Err(fatal),
        }
    }
}

/// What an agent would say that gives an assignment back untouched.
fn returned_result(assignment: &Assignment) -> TaskResult {
    TaskResult {
        request_id: assignment.request_id.clone(),
        worker_id: assignment.worker_id.clone(),
        success: false,
        message: None,
        assignment_id: Some(assignment.assignment_id),
        attempt: Some(assignment.attempt),
        task_digest: Some(assignment.task_digest),
        report: Some(TaskReport { returned: true, ..TaskReport::default() }),
    }
}

#[cfg(test)]
mod tests;
