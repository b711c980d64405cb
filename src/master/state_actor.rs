//! The actor that owns the state of the scheduler. It applies a batch of events, commits their writes as one atomic
//! batch, and sends the replies after that: no reply is sent before its decision is durable.
//!
//! While the store is unavailable the same batch is committed again and again (its writes are absolute values, so a
//! repeat changes nothing), and callers get a 503 at once. If the store lost data, the actor writes the whole state
//! back. If another master leads, the actor ends. Lines of file records are written to the spool before the commit
//! that counts them; if they cannot be written, the sync reports that and continues. The audit log gets the lines of
//! changes before the commit as well; without space for them the changes are refused before they are applied.

use super::audit::{self, AuditHandle};
use super::channel::{ActorHealth, ActorRequest};
use super::leader_lease::{LeaderLease, current_time};
use super::leadership::store_unavailable;
use super::pending_commit::PendingCommit;
use crate::audit::AuditEntry;
use crate::identity::SealedAuthority;
use crate::scheduler::{
    AgentTable, Caller, Event, Now, Reply, Settings, State, StoredKeys, TokenTable, single_entries,
};
use crate::store::{Batch, Spool, Store, StoreError};
use crate::util::backoff::Backoff;
use crate::util::repeated_warnings::warn_ratelimited;
use crate::util::units;
use crate::wire::task::{Assignment, TaskReport, TaskResult};
use crate::wire::{SyncNo, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// The maximum number of events in a commit.
const MAX_BATCH_EVENTS: usize = 512;
/// A commit is started when its blobs and lines have this size: stores limit the size of a batch.
const SOFT_MAX_BATCH_BYTES: usize = 16 << 20;
/// The maximum time between two ticks of the scheduler.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How often polls of disconnected callers are looked for. An assignment to such a poll in between is returned to the
/// queue, because its reply cannot be sent.
const DISCONNECT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
const COMMIT_RETRY_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(50), max: Duration::from_secs(2) };

/// See the [module](self).
pub(super) struct StateActor<S> {
    pub(super) store: Arc<S>,
    pub(super) state: State,
    pub(super) lease: LeaderLease,
    pub(super) requests: mpsc::Receiver<ActorRequest>,
    pub(super) health: watch::Sender<ActorHealth>,
    pub(super) spool: Spool,
    pub(super) audit: AuditHandle,
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) callers: Callers,
    /// The tokens for the API.
    pub(super) tokens: watch::Sender<Arc<TokenTable>>,
    /// The agents for the API.
    pub(super) agents: watch::Sender<Arc<AgentTable>>,
    /// The authority for TLS of this master.
    pub(super) authority: watch::Sender<Option<Arc<SealedAuthority>>>,
    /// Keys of manifests that the state needs, each with its task.
    pub(super) manifest_reads: Vec<(TaskId, String)>,
    /// Ends the term of leadership.
    pub(super) shutdown: CancellationToken,
}

/// The callers that wait for a reply.
#[derive(Default)]
pub(super) struct Callers {
    waiting: BTreeMap<Caller, WaitingCaller>,
    last: u64,
}

struct WaitingCaller {
    reply: oneshot::Sender<Reply>,
    /// [`ActorRequest::change`], until it is recorded.
    change: Option<Box<AuditEntry>>,
}

impl Callers {
    fn add(&mut self, reply: oneshot::Sender<Reply>, change: Option<Box<AuditEntry>>) -> Caller {
        self.last += 1;
        let caller = Caller(self.last);
        self.waiting.insert(caller, WaitingCaller { reply, change });
        caller
    }

    /// The entries of the changes that get one of `replies`. Refused ones changed nothing and have none.
    fn take_changes(&mut self, replies: &[(Caller, Reply)]) -> Vec<AuditEntry> {
        let change = |(caller, reply): &(Caller, Reply)| {
            let entry = self.waiting.get_mut(caller)?.change.take()?;
            audit::with_outcome(*entry, reply)
        };
        replies.iter().filter_map(change).collect()
    }

    /// Sends replies. Returns the assignments to disconnected callers.
    fn send_replies(&mut self, replies: Vec<(Caller, Reply)>) -> Vec<Assignment> {
        let mut undelivered = Vec::new();
        for (caller, reply) in replies {
            let Some(waiting) = self.waiting.remove(&caller) else { continue };
            if let Err(Reply::Assignment(Some(assignment))) = waiting.reply.send(reply) {
                undelivered.push(*assignment);
            }
        }
        undelivered
    }

    /// Removes the disconnected callers, except those that get one of `replies`.
    fn remove_disconnected(&mut self, replies: &[(Caller, Reply)]) -> Vec<Caller> {
        let replied: BTreeSet<Caller> = replies.iter().map(|(caller, _)| *caller).collect();
        let is_gone = |caller: &Caller, waiting: &mut WaitingCaller| {
            waiting.reply.is_closed() && !replied.contains(caller)
        };
        self.waiting.extract_if(.., is_gone).map(|(caller, _)| caller).collect()
    }
}

impl<S: Store> StateActor<S> {
    /// Runs until `shutdown`, then ends the term of leadership.
    ///
    /// # Errors
    /// Another master leads, or the store cannot be used any more.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(MAX_BATCH_EVENTS);
        let mut next_tick = Instant::now();
        let mut next_renewal = next_tick + self.lease.renew_interval();
        let mut next_disconnect_check = next_tick;
        // A commit that was interrupted by the shutdown may not be stored: no further event is applied.
        while !self.shutdown.is_cancelled() {
            let mut new_settings = None;
            // Cancel-safe: `recv_many` removes nothing before it returns, and the others have no state.
            tokio::select! {
                _ = self.shutdown.cancelled() => break,
                received = self.requests.recv_many(&mut batch, MAX_BATCH_EVENTS) => {
                    if received == 0 {
                        break;
                    }
                }
                Ok(()) = self.settings.changed() => {
                    new_settings = Some(Box::new(self.settings.borrow_and_update().clone()));
                }
                _ = sleep_until(next_tick) => {}
                _ = sleep_until(next_renewal) => {
                    self.renew_lease().await?;
                    next_renewal = Instant::now() + self.lease.renew_interval();
                }
            }
            self.refuse_unrecordable_changes(&mut batch).await;
            let time = current_time();
            let mut pending = PendingCommit::default();
            if let Some(settings) = new_settings {
                pending.add_effects(self.state.apply(Event::Configure(settings), None, time));
            }
            for request in batch.drain(..) {
                self.apply_request(request, &mut pending, time).await?;
                if pending.bytes >= SOFT_MAX_BATCH_BYTES {
                    self.commit_and_reply(std::mem::take(&mut pending)).await?;
                    if self.shutdown.is_cancelled() {
                        break;
                    }
                }
            }
            let now = Instant::now();
            if now >= next_disconnect_check {
                for caller in self.callers.remove_disconnected(&pending.replies) {
                    pending.add_effects(self.state.apply(Event::CancelPoll(caller), None, time));
                }
                next_disconnect_check = now + DISCONNECT_CHECK_INTERVAL;
            }
            if now >= next_tick {
                pending.add_effects(self.state.apply(Event::Tick, None, time));
                next_tick = now + TICK_INTERVAL;
            }
            if self.commit_and_reply(pending).await? {
                next_renewal = Instant::now() + self.lease.renew_interval();
            }
            self.read_requested_manifests().await?;
            // Deadlines make the tick earlier and never later, so that ticks also happen under load.
            if let Some(remaining_ms) = self.state.next_deadline_ms(current_time()) {
                next_tick = next_tick.min(Instant::now() + Duration::from_millis(remaining_ms));
            }
        }
        self.store.release(self.lease.fence).await
    }

    /// Applies the event of a request. [`Event::Reconcile`] gets the keys that the store holds after all earlier
    /// decisions are written.
    async fn apply_request(
        &mut self,
        mut request: ActorRequest,
        pending: &mut PendingCommit,
        time: Now,
    ) -> Result<(), StoreError> {
        if let Event::Reconcile(stored) = &mut request.event {
            self.commit_and_reply(std::mem::take(pending)).await?;
            match self.read_stored_keys().await {
                Ok(keys) => *stored = keys,
                Err(StoreError::Unavailable(reason)) => {
                    let refusal = Reply::Refused(Box::new(store_unavailable(&reason)));
                    // Fails if the caller has disconnected.
                    let _ = request.reply.send(refusal);
                    return Ok(());
                }
                Err(fatal) => return Err(fatal),
            }
        }
        let caller = self.callers.add(request.reply, request.change);
        pending.add_effects(self.state.apply(request.event, Some(caller), time));
        Ok(())
    }

    async fn read_stored_keys(&self) -> Result<StoredKeys, StoreError> {
        let records = self.store.load().await?.into_keys().collect();
        Ok(StoredKeys { records, blobs: self.store.blob_keys().await? })
    }

    /// Commits and sends the replies. Assignments to disconnected callers are returned to the queue, which is another
    /// commit. Returns whether something was written.
    async fn commit_and_reply(&mut self, mut pending: PendingCommit) -> Result<bool, StoreError> {
        let mut wrote = false;
        loop {
            self.write_record_lines(&mut pending).await;
            let changes = self.callers.take_changes(&pending.replies);
            if !self.record_changes(&changes).await {
                return Ok(wrote);
            }
            let writes = pending.to_batch(&self.state);
            if !writes.is_empty() {
                wrote = true;
                let committed = self.commit(writes, &mut pending).await;
                if !matches!(committed, Ok(true)) {
                    // After an error the lines say more than is known; the log has it.
                    let _ =
                        self.audit.append(changes.iter().map(audit::unconfirmed).collect()).await;
                    return committed.map(|_| wrote);
                }
            } else if !pending.replies.is_empty()
                && self.lease.remaining().is_zero()
                && !self.confirm_leadership(&mut pending).await?
            {
                return Ok(wrote);
            }
            self.publish_credentials();
            self.manifest_reads.append(&mut pending.manifest_reads);
            self.remove_record_files(std::mem::take(&mut pending.dropped_records)).await;
            let undelivered = self.callers.send_replies(std::mem::take(&mut pending.replies));
            if undelivered.is_empty() {
                return Ok(wrote);
            }
            pending = PendingCommit::default();
            for assignment in undelivered {
                let returned = Event::Result(returned_result(&assignment));
                pending.add_effects(self.state.apply(returned, None, current_time()));
            }
        }
    }

    /// Publishes tokens, agents and the authority after the commit that changed them and before its reply: what is revoked is refused
    /// from the next request on.
    fn publish_credentials(&self) {
        publish(&self.tokens, self.state.tokens());
        publish(&self.agents, self.state.agents());
        self.authority.send_if_modified(|published| {
            let current = self.state.authority();
            let is_changed =
                published.as_ref().map(Arc::as_ptr) != current.as_ref().map(Arc::as_ptr);
            *published = current;
            is_changed
        });
    }

    /// Refuses changes that the audit log has no space for, before they are applied.
    async fn refuse_unrecordable_changes(&mut self, batch: &mut Vec<ActorRequest>) {
        // The outcome adds an id and a status.
        const OUTCOME_BYTES: u64 = 512;
        let sizes = batch.iter().filter_map(|request| request.change.as_deref());
        let bytes = sizes.map(|entry| entry.max_line_bytes() + OUTCOME_BYTES).sum::<u64>();
        if bytes == 0 {
            return;
        }
        let audit = self.audit.clone();
        let Err(reason) = self.renewing_while(audit.reserve(bytes)).await else { return };
        for request in batch.extract_if(.., |request| request.change.is_some()) {
            let refusal = Reply::Refused(Box::new(audit::audit_unavailable(&reason)));
            // Fails if the caller has disconnected.
            let _ = request.reply.send(refusal);
        }
    }

    /// Writes the lines of changes to the audit log, however long it takes: they are applied already. `false`:
    /// shutdown came first.
    async fn record_changes(&mut self, changes: &[AuditEntry]) -> bool {
        if changes.is_empty() {
            return true;
        }
        let audit = self.audit.clone();
        let mut failures = 0;
        while let Err(reason) = self.renewing_while(audit.append(changes.to_vec())).await {
            self.set_health(Err(format!("the audit log cannot be written: {reason}")));
            tokio::select! {
                () = sleep(COMMIT_RETRY_BACKOFF.delay(failures)) => failures += 1,
                () = self.shutdown.cancelled() => return false,
            }
        }
        if failures > 0 {
            self.set_health(Ok(()));
        }
        true
    }

    /// Reads the manifests that the state needs. While the store is unavailable they remain requested, until the next
    /// tick.
    async fn read_requested_manifests(&mut self) -> Result<(), StoreError> {
        while let Some((task, key)) = self.manifest_reads.last().cloned() {
            let store = Arc::clone(&self.store);
            let manifest = match self.renewing_while(store.blob(&key)).await {
                Ok(manifest) => manifest,
                Err(StoreError::Unavailable(reason)) => {
                    let text = "a manifest cannot be read now";
                    warn_ratelimited!(format_args!("{text}: {reason}"), %task, reason, "{text}");
                    return Ok(());
                }
                Err(fatal) => return Err(fatal),
            };
            self.manifest_reads.pop();
            let entries = manifest.map_or_else(Vec::new, |bytes| single_entries(&bytes));
            let event = Event::ManifestEntries { task, entries };
            let mut pending = PendingCommit::default();
            pending.add_effects(self.state.apply(event, None, current_time()));
            self.commit_and_reply(pending).await?;
            if self.shutdown.is_cancelled() {
                break;
            }
        }
        Ok(())
    }

    /// Writes the lines of file records. After an error the sync continues without them: the copy matters more.
    async fn write_record_lines(&mut self, pending: &mut PendingCommit) {
        let record_lines = std::mem::take(&mut pending.record_lines);
        if record_lines.is_empty() {
            return;
        }
        let spool = self.spool.clone();
        let write = move || {
            let mut errors = BTreeMap::new();
            for lines in record_lines {
                if !errors.contains_key(&lines.sync)
                    && let Err(e) = spool.write(lines.sync.0, lines.offset, &lines.bytes)
                {
                    errors.insert(lines.sync, e.to_string());
                }
            }
            errors
        };
        let errors = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| {
            tracing::error!(error = %e, "writing file records failed");
            BTreeMap::new()
        });
        for (sync, reason) in errors {
            tracing::error!(%sync, reason, "the outcome of each file can't be recorded any more");
            let event = Event::FileRecordsLost { sync, reason };
            pending.add_effects(self.state.apply(event, None, current_time()));
        }
    }

    /// Removes the file records of removed syncs.
    async fn remove_record_files(&self, dropped: Vec<SyncNo>) {
        if dropped.is_empty() {
            return;
        }
        let spool = self.spool.clone();
        let remove = move || {
            for sync in dropped {
                if let Err(e) = spool.remove(sync.0) {
                    tracing::warn!(%sync, error = %e, "file records could not be removed");
                }
            }
        };
        if let Err(e) = tokio::task::spawn_blocking(remove).await {
            tracing::error!(error = %e, "removing file records failed");
        }
    }

    /// Makes a batch durable, however long it takes. `false`: shutdown came first.
    async fn commit(
        &mut self,
        mut batch: Batch,
        pending: &mut PendingCommit,
    ) -> Result<bool, StoreError> {
        loop {
            let (fence, writes) = (self.lease.fence, &batch);
            let commit = |store: Arc<S>| async move {
                let requested_at_ms = current_time().mono_ms;
                Ok((store.commit(fence, writes).await?, requested_at_ms))
            };
            match self.retry_until_available(commit).await {
                Ok(Some((fence, requested_at_ms))) => {
                    self.lease.fence = fence;
                    self.extend_lease(requested_at_ms);
                    return Ok(true);
                }
                Ok(None) => return Ok(false),
                Err(StoreError::DataLost { expected, found }) => {
                    tracing::error!(
                        expected,
                        found,
                        "the store lost data: everything is written back, active syncs are restarted"
                    );
                    let Some(snapshot) = self.full_snapshot(pending).await? else {
                        return Ok(false);
                    };
                    batch = snapshot;
                    self.lease.fence = self.lease.fence.after_loss(found);
                }
                Err(fatal) => return Err(fatal),
            }
        }
    }

    /// The whole state as one batch, after the store lost data. Manifests were in the store only, so the tasks that
    /// need them restart. `None`: shutdown came first.
    async fn full_snapshot(
        &mut self,
        pending: &mut PendingCommit,
    ) -> Result<Option<Batch>, StoreError> {
        pending.add_effects(self.state.apply(Event::StoreLost, None, current_time()));
        let blob_keys = |store: Arc<S>| async move { store.blob_keys().await };
        let Some(stored) = self.retry_until_available(blob_keys).await? else {
            return Ok(None);
        };
        let keys = self.state.record_keys().into_iter();
        let puts =
            keys.filter_map(|key| self.state.record(&key).map(|value| (key, value))).collect();
        // File lists of active syncs and failures of ended ones are kept, if the store still has them.
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

    /// Confirms that this master still leads, however long it takes. After its lease expired (the process was stopped,
    /// or the store was unavailable) another master may lead, and the state of this one may be outdated. `false`:
    /// shutdown came first.
    async fn confirm_leadership(
        &mut self,
        pending: &mut PendingCommit,
    ) -> Result<bool, StoreError> {
        let lease = self.lease;
        let renew = |store: Arc<S>| async move { lease.renew(store.as_ref()).await };
        match self.retry_until_available(renew).await {
            Ok(Some(requested_at_ms)) => {
                self.extend_lease(requested_at_ms);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(StoreError::DataLost { .. }) => {
                // A commit gets the same error and writes everything back.
                pending.dirty_keys.extend(self.state.record_keys());
                let writes = pending.to_batch(&self.state);
                self.commit(writes, pending).await
            }
            Err(fatal) => Err(fatal),
        }
    }

    /// Renews the lease once, while there is nothing to commit.
    async fn renew_lease(&mut self) -> Result<(), StoreError> {
        let (store, lease) = (Arc::clone(&self.store), self.lease);
        match self.renewing_while(lease.renew(store.as_ref())).await {
            Ok(requested_at_ms) => {
                self.extend_lease(requested_at_ms);
                Ok(())
            }
            Err(StoreError::Unavailable(reason)) => {
                if self.set_health(Err(reason.clone())) {
                    tracing::error!(reason, "the store is not available");
                }
                Ok(())
            }
            Err(StoreError::DataLost { .. }) => {
                // A commit gets the same error and writes everything back; the replies go to waiting polls.
                let mut pending = PendingCommit::default();
                pending.dirty_keys.extend(self.state.record_keys());
                self.commit_and_reply(pending).await.map(drop)
            }
            Err(fatal) => Err(fatal),
        }
    }

    /// The store granted a request that extends the lease.
    fn extend_lease(&mut self, requested_at_ms: u64) {
        self.lease.requested_at_ms = requested_at_ms;
        self.set_health(Ok(()));
    }

    /// Repeats a call until the store is available. Callers learn that it is not from the health. `None`: shutdown came
    /// first.
    async fn retry_until_available<T, F>(
        &mut self,
        call: impl Fn(Arc<S>) -> F,
    ) -> Result<Option<T>, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut failures = 0;
        loop {
            match self.renewing_while(call(Arc::clone(&self.store))).await {
                Err(StoreError::Unavailable(reason)) => {
                    if failures == 0 {
                        tracing::error!(reason, "the store is not available; trying again");
                    }
                    self.set_health(Err(reason));
                }
                reply => {
                    if failures > 0 {
                        tracing::info!("the store is available again");
                    }
                    return reply.map(Some);
                }
            }
            tokio::select! {
                () = sleep(COMMIT_RETRY_BACKOFF.delay(failures)) => failures += 1,
                () = self.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    /// Returns whether the health changed.
    fn set_health(&self, health: ActorHealth) -> bool {
        self.health.send_if_modified(|current| {
            let changed = *current != health;
            *current = health;
            changed
        })
    }

    /// [`LeaderLease::renewing_while`]. If the lease expires, callers learn from the health that nothing can be decided.
    async fn renewing_while<T>(&mut self, call: impl Future<Output = T>) -> T {
        let StateActor { store, lease, health, .. } = self;
        let duration = units::format_duration(lease.duration);
        let on_expiry = || {
            // A reason that is known already is more precise.
            if health.borrow().is_ok() {
                _ = health
                    .send_replace(Err(format!("the store has given no answer for {duration}")));
            }
        };
        lease.renewing_while(store.as_ref(), call, on_expiry).await
    }
}

/// The result of an agent that returns an assignment without having started it.
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

fn publish<T>(published: &watch::Sender<Arc<T>>, current: Arc<T>) {
    published.send_if_modified(|published| {
        let is_changed = !Arc::ptr_eq(published, &current);
        *published = current;
        is_changed
    });
}

#[cfg(test)]
mod tests;
