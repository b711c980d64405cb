//! The scheduler: a pure state machine. [`TargetState::apply_change`] takes what the world says and the time, and
//! returns what is to be written and answered. No I/O, no clock, no lock, no randomness but a seed:
//! the same events give the same effects, so a test can play any history.
//!
//! - [`event`]: events, replies, effects
//! - `sync`, `task`, `worker`: what is remembered (their states are drawn there); `boots`: workers of a sync
//! - `requests`: what operators ask
//! - `orders`: what they want of workers; `outcomes`: workers that fail; `seconds`: two
//!   agents under one id; `stalled`: syncs in which nothing moves
//! - `leases`: who has which task, for how long; `choice`: who gets it, found in `queue` and `waiting`
//! - `deleter`: through which agent a mirror deletes, and how much
//! - `pages`, `results`: what agents report, counted once; `checks`: whether it can be
//! - `large`: files of more than one range
//! - `overlap`: syncs that must not run at the same time
//! - `losses`: tasks that are lost with their workers
//! - `age`: when ended syncs are dropped
//! - `limits`: limits on bytes per second; `shares`: how they are shared out
//! - `failed`: the names of what failed; `listing`: what became of each file, where that is asked for
//! - `stage`: what follows when a sync has no task left; `recheck`: after a host lost what it had not flushed;
//!   `phases`: trying again, giving up
//! - `storage`: storage paths that workers do not serve, or that lead elsewhere than before
//! - `pairs`: what is remembered beyond a sync
//! - `reconcile`: what does not fit together is put right
//! - `records`: the state in the store and back

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

/// What can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A lease runs out after so many milliseconds without a heartbeat that lists it.
    pub lease_ms: u64,
    /// A worker is inactive after so many milliseconds without a heartbeat.
    pub heartbeat_timeout_ms: u64,
    /// A sync has at most about so many batches and large files outstanding (fewer where the workers
    /// have few slots).
    pub window_tasks: usize,
    /// … and manifests of at most about so many bytes in the store.
    pub window_bytes: u64,
    /// A failing batch or file is tried so many times more.
    pub max_retries: u32,
    /// A task that was lost with its worker so many times runs alone only, and fails when it is lost once more.
    pub max_worker_losses: u32,
    /// A sync waits so many milliseconds for room at its destination before it fails; 0: not at all.
    pub no_space_ms: u64,
    /// The failures of a sync that are listed by name are at most so many.
    pub max_failed_entries: u64,
    /// Ended syncs are kept for so many milliseconds.
    pub retention_ms: u64,
    /// At most so many syncs are worked on at once; more wait in the queue.
    pub max_active_syncs: usize,
    /// All agents together send no more than this …
    pub bwlimit: Timetable,
    /// … by the clocks of this zone.
    pub zone: TimeZone,
    /// The key of the names of unfinished files where the store holds none; without one it is derived from the
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

/// Everything that the master knows.
pub struct State {
    settings: Settings,
    signer: Signer,
    /// The signer's key as it is stored.
    signer_key: Vec<u8>,
    name_key: PartNameKey,
    /// Assignment ids are drawn from this and `draws`.
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
    /// The syncs that have tasks.
    syncs_with_tasks: BTreeSet<SyncNo>,
    /// The tasks that wait before they are tried again, by when.
    delayed: BTreeSet<(u64, TaskId)>,
    poll_queue: PollQueue,
    /// Of which [version](Workers::version) the windows of syncs are.
    windows_version: u64,
    /// Leases given so far; stamps [`SyncJob::server`].
    leases_granted: u64,
    /// When this master began to be told of workers.
    leading_since_ms: u64,
    /// When time passed last.
    last_tick_ms: Option<u64>,
    /// Syncs that may have reached their next phase.
    dirty_syncs: BTreeSet<SyncNo>,
    /// Syncs whose list of failures was added to, or that have ended.
    dirty_failure_lists: BTreeSet<SyncNo>,
    /// Something may be there for a parked poll.
    needs_dispatch: bool,
    effects: Vec<Effect>,
}

impl State {
    /// Takes in an event; returns what is to be written and answered. Writes must be durable before
    /// any of the replies is given.
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
                // More may be worked on at once.
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

    /// The public half of the ticket key.
    pub fn ticket_key(&self) -> String {
        self.signer.public_key()
    }

    /// The key of the names of unfinished files.
    pub fn name_key(&self) -> PartNameKey {
        self.name_key
    }

    /// Whether there is a sync of this number.
    pub fn has_sync(&self, number: u64) -> bool {
        self.syncs.contains_key(&SyncNo(number))
    }

    /// When [`Event::Tick`] should come next at the latest, in milliseconds from `now`: the nearest
    /// time at which something runs out.
    pub fn next_deadline_ms(&self, now: Now) -> Option<u64> {
        let delayed = self.delayed.first().map(|(at, _)| *at);
        let ends = self.poll_queue.next_deadline_ms().into_iter().chain(delayed);
        let nearest = ends.chain(self.next_probe_ms(now)).min();
        nearest.map(|at| at.saturating_sub(now.mono_ms))
    }

    /// Changes the state of a task: all that is filed by it follows.
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

    /// Files a task that is new, or was stored.
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

    /// Bytes that nobody can guess and that are never drawn twice.
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

    /// Adds a task and stores its manifest, where it brings one of its own.
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

    /// Removes a task, its lease and its own manifest. A large file's manifest stays.
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
        // A large file's manifest goes with the file, a name list with the sync.
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
        // A scan may have been waiting for the room that this gives.
        self.needs_dispatch = true;
        Some(task)
    }

    /// Notes that a sync's record changed.
    fn mark_changed(&mut self, no: SyncNo, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            // What is tidied up behind one that has ended changes nothing of it.
            sync.updated_ms = sync.ended_ms.unwrap_or(now.wall_ms);
            self.effects.push(Effect::PutRecord(sync.record_key()));
            self.effects.extend(sync.take_unsaved_keys().map(Effect::PutRecord));
            self.dirty_syncs.insert(no);
        }
    }
}

/// What a new task needs; the rest follows.
struct NewTask {
    sync: SyncNo,
    spec: TaskSpec,
    /// A manifest that is stored already …
    manifest_key: Option<String>,
    /// … its bytes, where they go with the task, and its digest.
    manifest_bytes: u64,
    manifest_digest: Option<Digest>,
    /// The file that it is part of.
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
