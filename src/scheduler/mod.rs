//! The scheduler: a pure state machine. [`State::apply`] takes an event and the time, and returns
//! what must be written and replied. No I/O, no clock, no locks, no randomness but a seed: the same
//! events give the same effects, so a test can replay any history.
//!
//! - [`event`]: events, replies, effects
//! - `sync_job`, `task`, `worker_registry`: the records (with the diagrams of their states)
//! - `sync_admin`, `retry_sync`, `worker_admin`: operations of operators
//! - `leases`, `placement`: which worker holds which task; `ready_queue`, `poll_queue`: the indexes
//! - `pages`, `results`, `large`: reports of agents, each counted once; `validate`: their validation
//! - `phase`: what follows when a sync has no tasks; `recheck`: after a host lost writes
//! - `failures`, `worker_losses`, `worker_health`: retries, lost tasks, quarantine
//! - `pause`, `storage_paths`: full, unavailable or replaced storage
//! - `deleter`, `blocked`: deletions of a mirror
//! - `overlap`: syncs that must not run at the same time
//! - `bandwidth`, `bandwidth_limits`: limits on bytes per second
//! - `failure_list`, `file_records`: failures and outcomes by name
//! - `transfer_progress`, `speed`, `stalled`: progress of syncs
//! - `duplicate_agents`: two agents under one id
//! - `boot_ids`, `source_history`, `retention`: what is remembered of hosts, sources and ended syncs
//! - `records`, `reconcile`: the state in the store, and its repair

mod bandwidth;
mod bandwidth_limits;
mod blocked;
mod boot_ids;
mod deleter;
mod duplicate_agents;
pub mod event;
mod failure_list;
mod failures;
mod file_records;
mod large;
mod leases;
mod overlap;
mod pages;
mod pause;
mod phase;
mod placement;
mod poll_queue;
mod ready_queue;
mod recheck;
mod reconcile;
mod records;
mod results;
mod retention;
mod retry_sync;
mod source_history;
mod speed;
mod stalled;
mod storage_paths;
mod sync_admin;
mod sync_job;
mod task;
mod transfer_progress;
mod validate;
mod worker_admin;
mod worker_health;
mod worker_losses;
mod worker_registry;

#[cfg(test)]
mod tests;

pub use event::{
    Caller, Effect, Event, IdempotencyKey, Now, RecordLogInfo, Reply, StoredKeys, SyncPage,
    SyncQuery,
};
pub use failure_list::{FailedBatch, FailureLine, FailurePages, decode_failures};
pub use file_records::MAX_LINE_BYTES;
pub use records::{LoadError, META_KEY as SECRET_RECORD, without_secret};
pub use source_history::source_history_record;
pub use worker_losses::{SingleEntry, single_entries};

use crate::util::timetable::Timetable;
use crate::wire::options::PartNameKey;
use crate::wire::task::TaskSpec;
use crate::wire::ticket::Signer;
use crate::wire::{BytePath, Digest, RequestId, SyncNo, TaskId, WorkerId};
use jiff::tz::TimeZone;
use poll_queue::PollQueue;
use std::collections::{BTreeMap, BTreeSet};
use sync_job::SyncJob;
use task::{LargeFile, Task, TaskState};
use worker_registry::WorkerRegistry;

/// The settings of the scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A lease ends after this time without a heartbeat that lists it, in milliseconds.
    pub lease_ms: u64,
    /// A worker is inactive after this time without a heartbeat, in milliseconds.
    pub heartbeat_timeout_ms: u64,
    /// Approximate maximum of outstanding batches and large files of a sync (fewer if the workers
    /// have few slots).
    pub window_tasks: usize,
    /// Approximate maximum of bytes of its manifests in the store.
    pub window_bytes: u64,
    /// Maximum number of retries of a batch or file.
    pub max_retries: u32,
    /// A task that was lost with its worker this many times runs alone, and fails when it is lost
    /// once more.
    pub max_worker_losses: u32,
    /// Maximum time that a sync waits for space at its destination, in milliseconds; 0: it does not
    /// wait.
    pub no_space_ms: u64,
    /// Maximum number of failures of a sync that are listed by name.
    pub max_failed_entries: u64,
    /// Ended syncs are kept for this time, in milliseconds.
    pub retention_ms: u64,
    /// Maximum number of syncs that are served at once; others wait.
    pub max_active_syncs: usize,
    /// Limit of all agents together …
    pub bwlimit: Timetable,
    /// … in this time zone.
    pub zone: TimeZone,
    /// The key for names of part files if the store holds none; by default it is derived from the
    /// signer's key.
    pub name_key: Option<PartNameKey>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            lease_ms: 30_000,
            heartbeat_timeout_ms: 45_000,
            window_tasks: 256,
            window_bytes: 32 << 20,
            max_retries: 5,
            max_worker_losses: 3,
            no_space_ms: 24 * 3600 * 1000,
            max_failed_entries: failure_list::MAX_FAILED_ENTRIES,
            retention_ms: 60 * 24 * 3600 * 1000,
            max_active_syncs: 64,
            bwlimit: Timetable::default(),
            zone: TimeZone::UTC,
            name_key: None,
        }
    }
}

/// A poll that waits for work.
#[derive(Debug, Clone)]
struct WaitingPoll {
    worker: WorkerId,
    incarnation: Option<String>,
    poll_id: Option<String>,
    until_ms: u64,
}

/// The whole state of the master.
pub struct State {
    settings: Settings,
    signer: Signer,
    /// The key of `signer` as it is stored.
    signer_key: Vec<u8>,
    name_key: PartNameKey,
    /// Random bytes are derived from this and `draw_count`.
    seed: [u8; 32],
    draw_count: u64,
    next_sync: u64,
    next_task: u64,
    syncs: BTreeMap<SyncNo, SyncJob>,
    by_id: BTreeMap<RequestId, SyncNo>,
    tasks: BTreeMap<TaskId, Task>,
    lease_index: leases::LeaseIndex,
    workers: WorkerRegistry,
    source_history: source_history::SourceHistory,
    bandwidth: bandwidth::BandwidthAllocator,
    worker_health: worker_health::WorkerHealth,
    path_reservations: overlap::PathReservations,
    isolation: worker_losses::Isolation,
    retention_clock: retention::RetentionClock,
    syncs_with_tasks: BTreeSet<SyncNo>,
    /// Delayed tasks by the end of the delay.
    delayed: BTreeSet<(u64, TaskId)>,
    poll_queue: PollQueue,
    /// The [version](WorkerRegistry::version) of the workers for which the windows were computed.
    windows_version: u64,
    /// Number of leases so far; recorded in [`SyncJob::last_served`].
    leases_granted: u64,
    /// Since when this master receives heartbeats.
    leading_since_ms: u64,
    last_tick_ms: Option<u64>,
    /// Syncs that may have reached their next phase.
    dirty_syncs: BTreeSet<SyncNo>,
    /// Syncs whose failure list changed, or that have ended.
    dirty_failure_lists: BTreeSet<SyncNo>,
    /// A waiting poll may get a task.
    needs_dispatch: bool,
    effects: Vec<Effect>,
}

impl State {
    /// Applies an event; returns writes and replies. The writes must be durable before any reply is
    /// sent.
    pub fn apply(&mut self, event: Event, caller: Option<Caller>, now: Now) -> Vec<Effect> {
        let reply = match event {
            Event::Submit { request, list, idempotency } => {
                Some(self.submit(request, list, idempotency, now))
            }
            Event::GetProgress(id) => {
                self.mark_watched(&id, now);
                Some(self.progress_reply(&id))
            }
            Event::ListSyncs(select) => Some(self.list_syncs(&select)),
            Event::GetFileRecords(id) => Some(match self.record_log_info(&id) {
                Some(listing) => Reply::FileRecords(Box::new(listing)),
                None => sync_admin::unknown_sync(&id),
            }),
            Event::FileRecordsLost { sync, reason: why } => {
                self.fail_record_log(sync, why, now);
                Some(Reply::Done)
            }
            Event::ChangeSync { id, change } => Some(self.change_sync(&id, change, now)),
            Event::RetrySync { id, new, only, idempotency } => {
                Some(self.retry_sync(&id, new, only, idempotency, now))
            }
            Event::PauseSync(id) => Some(self.pause_sync(&id, now)),
            Event::ResumeSync(id) => Some(self.resume_sync(&id, now)),
            Event::ReassignTasks { id, worker } => Some(self.reassign_tasks(&id, &worker, now)),
            Event::CancelSync(id) => Some(self.cancel_sync(&id, now)),
            Event::DeleteSync(id) => Some(self.delete_sync(&id, now)),
            Event::Heartbeat(heartbeat) => Some(self.handle_heartbeat(heartbeat, now)),
            Event::ListWorkers => Some(self.list_workers(now)),
            Event::GetWorker(worker) => Some(self.show_worker(&worker, now)),
            Event::ListWorkerRequests(worker) => Some(self.list_worker_requests(&worker)),
            Event::DrainWorker { worker, order } => Some(self.drain_worker(&worker, order, now)),
            Event::ForgetWorker(worker) => Some(self.forget_worker(&worker, now)),
            Event::Poll { worker, incarnation, poll_id, wait_ms } => {
                let until_ms = now.mono_ms.saturating_add(wait_ms);
                let poll = WaitingPoll { worker, incarnation, poll_id, until_ms };
                self.handle_poll(poll, caller, now)
            }
            Event::CancelPoll(gone) => {
                self.poll_queue.remove(gone);
                Some(Reply::Done)
            }
            Event::GetManifest { worker, assignment } => {
                Some(self.get_manifest(&worker, assignment))
            }
            Event::Page { worker, assignment, page } => {
                Some(self.handle_page(&worker, assignment, page, now))
            }
            Event::Result(result) => Some(self.handle_result(result, now)),
            Event::ManifestEntries { task, entries } => {
                self.split_isolated_task(task, entries, now);
                Some(Reply::Done)
            }
            Event::ConfirmClock => Some(self.confirm_clock(now)),
            Event::Reconcile(stored) => Some(self.reconcile(&stored, now)),
            Event::StoreLost => {
                self.restart_all_syncs(now);
                Some(Reply::Done)
            }
            Event::Configure(settings) => {
                self.settings = *settings;
                for no in self.syncs_with_tasks.clone() {
                    self.update_window(no);
                }
                // More syncs may be active.
                self.needs_dispatch = true;
                self.tick(now);
                Some(Reply::Done)
            }
            Event::Tick => {
                self.tick(now);
                Some(Reply::Done)
            }
        };
        if let (Some(caller), Some(reply)) = (caller, reply) {
            self.effects.push(Effect::Reply(caller, reply));
        }
        self.update_windows();
        self.advance_and_dispatch(now);
        self.store_failure_pages();
        std::mem::take(&mut self.effects)
    }

    /// The public key that verifies tickets.
    pub fn ticket_key(&self) -> String {
        self.signer.public_key()
    }

    /// The key for the names of part files.
    pub fn name_key(&self) -> PartNameKey {
        self.name_key
    }

    /// Whether a sync has this number.
    pub fn has_sync(&self, number: u64) -> bool {
        self.syncs.contains_key(&SyncNo(number))
    }

    /// Time until [`Event::Tick`] is needed at the latest, in milliseconds.
    pub fn next_deadline_ms(&self, now: Now) -> Option<u64> {
        let delayed = self.delayed.first().map(|(at, _)| *at);
        let ends = self.poll_queue.next_deadline_ms().into_iter().chain(delayed);
        let nearest = ends.chain(self.next_probe_ms(now)).min();
        nearest.map(|at| at.saturating_sub(now.mono_ms))
    }

    /// Changes the state of a task and all indexes of it.
    fn set_task_state(&mut self, id: TaskId, state: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        if let TaskState::Delayed { until_ms } = &state {
            self.delayed.insert((*until_ms, id));
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.queue.remove(task);
        task.state = state;
        let boot =
            task.pinned_to.as_ref().and_then(|bound| sync.unflushed_writers.get(bound)?.as_ref());
        sync.queue.insert(task, boot);
    }

    /// Indexes a new or loaded task.
    fn insert_task(&mut self, mut task: Task) {
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.tasks.insert(task.id);
        sync.scan_count += usize::from(task.is_scan());
        // A damaged record may hold any length.
        sync.manifest_bytes = sync.manifest_bytes.saturating_add(task.manifest_bytes);
        let no = task.sync;
        if self.syncs_with_tasks.insert(no) {
            self.update_window(no);
        }
        let (id, until) = (task.id, TaskState::Delayed { until_ms: u64::MAX });
        let state = std::mem::replace(&mut task.state, until);
        self.tasks.insert(id, task);
        self.set_task_state(id, state);
        self.isolate_if_lost(id);
    }

    /// Random bytes that are never repeated.
    fn draw_random(&mut self) -> [u8; 32] {
        self.draw_count += 1;
        *blake3::keyed_hash(&self.seed, &self.draw_count.to_le_bytes()).as_bytes()
    }

    fn put_record(&mut self, key: String) {
        self.effects.push(Effect::PutRecord(key));
    }

    fn allocate_task_id(&mut self) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        self.put_record(records::META_KEY.to_owned());
        id
    }

    /// Adds a task and stores its manifest, if it has one of its own.
    fn add_task(&mut self, new: NewTask, manifest: Option<Vec<u8>>) -> TaskId {
        let id = self.allocate_task_id();
        let digest = match (&manifest, &new.manifest_digest) {
            (Some(bytes), _) => task::task_digest(new.sync, id, &new.spec, bytes),
            (None, Some(of)) => task::task_digest(new.sync, id, &new.spec, &of.0),
            (None, None) => task::task_digest(new.sync, id, &new.spec, &[]),
        };
        let mut blob = new.manifest_key;
        let mut blob_bytes = new.manifest_bytes;
        if let Some(bytes) = manifest {
            let key = format!("m/{}/{id}", new.sync);
            blob_bytes = bytes.len() as u64;
            self.effects.push(Effect::PutBlob(key.clone(), bytes));
            blob = Some(key);
        }
        let task = Task {
            id,
            sync: new.sync,
            spec: new.spec,
            manifest_key: blob,
            manifest_bytes: blob_bytes,
            digest,
            attempt: 0,
            failures: new.failures,
            resource_retries: new.resource_retries,
            failed_on: new.failed_on,
            losses: new.losses,
            entry: new.entry,
            is_unsplittable: false,
            large_file: new.large_file,
            pinned_to: new.pinned_to,
            last_error: new.last_error,
            waiting_since_ms: self.last_tick_ms.unwrap_or(0),
            deprioritised_until_ms: 0,
            state: new.state,
        };
        self.put_record(task.record_key());
        self.insert_task(task);
        self.needs_dispatch = true;
        id
    }

    /// Removes a task, its lease and its own manifest. The manifest of a large file is kept.
    fn remove_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.isolation.remove(id);
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        self.effects.push(Effect::DeleteRecord(task.record_key()));
        if let Some(lease) = task.lease() {
            self.lease_index.remove(lease);
        }
        // The manifest of a large file is removed with the file, a name list with the sync.
        let shared = task.large_file.is_some() || matches!(task.spec, TaskSpec::List { .. });
        if let (Some(blob), false) = (&task.manifest_key, shared) {
            self.effects.push(Effect::DeleteBlob(blob.clone()));
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.queue.remove(&task);
            sync.tasks.remove(&id);
            sync.scan_count -= usize::from(task.is_scan());
            sync.manifest_bytes = sync.manifest_bytes.saturating_sub(task.manifest_bytes);
            if sync.tasks.is_empty() {
                self.syncs_with_tasks.remove(&task.sync);
            }
        }
        self.dirty_syncs.insert(task.sync);
        // A scan may wait for the space in the window.
        self.needs_dispatch = true;
        Some(task)
    }

    fn mark_changed(&mut self, no: SyncNo, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            // Clean-up does not change the time of an ended sync.
            sync.updated_ms = sync.ended_ms.unwrap_or(now.wall_ms);
            self.effects.push(Effect::PutRecord(sync.record_key()));
            self.effects.extend(sync.take_unsaved_keys().map(Effect::PutRecord));
            self.dirty_syncs.insert(no);
        }
    }
}

/// The fields of a new task that differ from the defaults.
struct NewTask {
    sync: SyncNo,
    spec: TaskSpec,
    /// A manifest that is already stored …
    manifest_key: Option<String>,
    /// … its size, if it counts for this task, and its digest.
    manifest_bytes: u64,
    manifest_digest: Option<Digest>,
    large_file: Option<TaskId>,
    pinned_to: Option<WorkerId>,
    failures: u32,
    resource_retries: u32,
    failed_on: BTreeSet<WorkerId>,
    losses: Vec<worker_losses::WorkerLoss>,
    entry: Option<BytePath>,
    last_error: Option<String>,
    state: TaskState,
}

impl NewTask {
    fn ready(sync: SyncNo, spec: TaskSpec) -> Self {
        NewTask {
            sync,
            spec,
            manifest_key: None,
            manifest_bytes: 0,
            manifest_digest: None,
            large_file: None,
            pinned_to: None,
            failures: 0,
            resource_retries: 0,
            failed_on: BTreeSet::new(),
            losses: Vec::new(),
            entry: None,
            last_error: None,
            state: TaskState::Ready,
        }
    }

    fn for_large_file(large: &LargeFile, spec: TaskSpec) -> Self {
        NewTask {
            manifest_key: Some(large.manifest_key.clone()),
            manifest_digest: Some(large.manifest_digest),
            large_file: Some(large.id),
            ..NewTask::ready(large.sync, spec)
        }
    }
}
