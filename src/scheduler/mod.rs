//! The scheduler: a pure state machine. [`TargetState::apply_change`] takes what the world says and the time, and
//! returns what is to be written and answered. No I/O, no clock, no lock, no randomness but a seed:
//! the same events give the same effects, so a test can play any history.
//!
//! - [`handle_event`]: events, replies, effects
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

mod age;
mod blocked;
mod boots;
mod checks;
mod choice;
mod deleter;
pub mod event;
mod failed;
mod hold;
mod large;
mod leases;
mod limits;
mod listing;
mod losses;
mod moving;
mod orders;
mod outcomes;
mod overlap;
mod pages;
mod pairs;
mod phases;
mod queue;
mod recheck;
mod reconcile;
mod records;
mod requests;
mod results;
mod retry;
mod seconds;
mod shares;
mod speed;
mod stage;
mod stalled;
mod storage;
mod sync;
mod task;
mod waiting;
mod worker;

#[cfg(test)]
mod tests;

pub use event::{
    Caller, Effect, Event, IdempotencyKey, Listing, Now, Reply, Select, Selected, Stored,
};
pub use failed::{FailedBatch, FailedLine, FailedPages, failures_of};
pub use listing::MOST_LINE;
pub use losses::{SingleEntry, single_entries};
pub use pairs::pair_record;
pub use records::{LoadError, META as SECRET_RECORD, without_secret};

use crate::util::timetable::Timetable;
use crate::wire::options::PartNameKey;
use crate::wire::task::TaskSpec;
use crate::wire::ticket::Signer;
use crate::wire::{BytePath, Digest, RequestId, SyncNo, TaskId, WorkerId};
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, BTreeSet};
use sync::Sync;
use task::{Large, Task, TaskState};
use waiting::Waiting;
use worker::Workers;

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
            max_failed_entries: failed::MAX_FAILED_ENTRIES,
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
struct Parked {
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
    draws: u64,
    next_sync: u64,
    next_task: u64,
    syncs: BTreeMap<SyncNo, Sync>,
    by_id: BTreeMap<RequestId, SyncNo>,
    tasks: BTreeMap<TaskId, Task>,
    leases: leases::Leases,
    workers: Workers,
    pairs: pairs::Pairs,
    shares: shares::Shares,
    outcomes: outcomes::Outcomes,
    overlaps: overlap::Overlaps,
    isolated: losses::Isolated,
    clock: age::Clock,
    /// The syncs that have tasks.
    working: BTreeSet<SyncNo>,
    /// The tasks that wait before they are tried again, by when.
    delayed: BTreeSet<(u64, TaskId)>,
    waiting: Waiting,
    /// Of which [version](Workers::version) the windows of syncs are.
    windows_of: u64,
    /// Leases given so far; stamps [`Sync::server`].
    served: u64,
    /// When this master began to be told of workers.
    began_ms: u64,
    /// When time passed last.
    ticked_ms: Option<u64>,
    /// Syncs that may have reached their next phase.
    touched: BTreeSet<SyncNo>,
    /// Syncs whose list of failures was added to, or that have ended.
    failing: BTreeSet<SyncNo>,
    /// Something may be there for a parked poll.
    wake: bool,
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
            Event::Progress(id) => {
                self.note_watched(&id, now);
                Some(self.progress(&id))
            }
            Event::List(select) => Some(self.list(&select)),
            Event::Listing(id) => Some(match self.listing(&id) {
                Some(listing) => Reply::Listing(Box::new(listing)),
                None => requests::unknown(&id),
            }),
            Event::ListingLost { sync, why } => {
                self.listing_lost(sync, why, now);
                Some(Reply::Nothing)
            }
            Event::Change { id, change } => Some(self.change(&id, change, now)),
            Event::Retry { id, new, only, idempotency } => {
                Some(self.retry(&id, new, only, idempotency, now))
            }
            Event::Pause(id) => Some(self.pause(&id, now)),
            Event::Resume(id) => Some(self.resume(&id, now)),
            Event::Reassign { id, worker } => Some(self.reassign(&id, &worker, now)),
            Event::Cancel(id) => Some(self.cancel(&id, now)),
            Event::Delete(id) => Some(self.delete(&id, now)),
            Event::Heartbeat(heartbeat) => Some(self.heartbeat(heartbeat, now)),
            Event::Workers => Some(self.worker_list(now)),
            Event::Worker(worker) => Some(self.show_worker(&worker, now)),
            Event::WorkerRequests(worker) => Some(self.list_worker_requests(&worker)),
            Event::Drain { worker, order } => Some(self.drain(&worker, order, now)),
            Event::Forget(worker) => Some(self.forget(&worker, now)),
            Event::Poll { worker, incarnation, poll_id, wait_ms } => {
                let until_ms = now.mono_ms.saturating_add(wait_ms);
                let poll = Parked { worker, incarnation, poll_id, until_ms };
                self.poll(poll, caller, now)
            }
            Event::Withdraw(gone) => {
                self.waiting.remove(gone);
                Some(Reply::Nothing)
            }
            Event::Manifest { worker, assignment } => Some(self.manifest(&worker, assignment)),
            Event::Page { worker, assignment, page } => {
                Some(self.page(&worker, assignment, page, now))
            }
            Event::Result(result) => Some(self.result(result, now)),
            Event::Entries { task, entries } => {
                self.entries_read(task, entries, now);
                Some(Reply::Nothing)
            }
            Event::ConfirmClock => Some(self.confirm_clock(now)),
            Event::Reconcile(stored) => Some(self.reconcile(&stored, now)),
            Event::StoreLost => {
                self.start_anew(now);
                Some(Reply::Nothing)
            }
            Event::Configure(settings) => {
                self.settings = *settings;
                for no in self.working.clone() {
                    self.renew_window(no);
                }
                // More may be worked on at once.
                self.wake = true;
                self.tick(now);
                Some(Reply::Nothing)
            }
            Event::Tick => {
                self.tick(now);
                Some(Reply::Nothing)
            }
        };
        if let (Some(caller), Some(reply)) = (caller, reply) {
            self.effects.push(Effect::Reply(caller, reply));
        }
        self.renew_windows();
        self.settle(now);
        self.store_failed();
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
    pub fn knows(&self, number: u64) -> bool {
        self.syncs.contains_key(&SyncNo(number))
    }

    /// When [`ProgressEvent::Tick`] should come next at the latest, in milliseconds from `now`: the nearest
    /// time at which something runs out.
    pub fn next_deadline_ms(&self, now: Now) -> Option<u64> {
        let delayed = self.delayed.first().map(|(at, _)| *at);
        let ends = self.waiting.next_end_ms().into_iter().chain(delayed);
        let nearest = ends.chain(self.next_probe_ms(now)).min();
        nearest.map(|at| at.saturating_sub(now.mono_ms))
    }

    /// Changes the state of a task: all that is filed by it follows.
    fn set_state(&mut self, id: TaskId, state: TaskState) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        if let TaskState::Delayed { until_ms } = &state {
            self.delayed.insert((*until_ms, id));
        }
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.queue.leave(task);
        task.state = state;
        let boot = task.bound.as_ref().and_then(|bound| sync.writers.get(bound)?.as_ref());
        sync.queue.enter(task, boot);
    }

    /// Files a task that is new, or was stored.
    fn take_in(&mut self, mut task: Task) {
        let Some(sync) = self.syncs.get_mut(&task.sync) else { return };
        sync.tasks.insert(task.id);
        sync.scans += usize::from(task.is_scan());
        // A damaged record may hold any length.
        sync.blob_bytes = sync.blob_bytes.saturating_add(task.blob_bytes);
        let no = task.sync;
        if self.working.insert(no) {
            self.renew_window(no);
        }
        let (id, until) = (task.id, TaskState::Delayed { until_ms: u64::MAX });
        let state = std::mem::replace(&mut task.state, until);
        self.tasks.insert(id, task);
        self.set_state(id, state);
        self.file_losses(id);
    }

    /// Bytes that nobody can guess and that are never drawn twice.
    fn draw(&mut self) -> [u8; 32] {
        self.draws += 1;
        *blake3::keyed_hash(&self.seed, &self.draws.to_le_bytes()).as_bytes()
    }

    fn put(&mut self, key: String) {
        self.effects.push(Effect::Put(key));
    }

    fn take_number(&mut self) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        self.put(records::META.to_owned());
        id
    }

    /// Adds a task and stores its manifest, where it brings one of its own.
    fn add_task(&mut self, new: NewTask, manifest: Option<Vec<u8>>) -> TaskId {
        let id = self.take_number();
        let digest = match (&manifest, &new.manifest_digest) {
            (Some(bytes), _) => task::task_digest(new.sync, id, &new.spec, bytes),
            (None, Some(of)) => task::task_digest(new.sync, id, &new.spec, &of.0),
            (None, None) => task::task_digest(new.sync, id, &new.spec, &[]),
        };
        let mut blob = new.blob;
        let mut blob_bytes = new.blob_bytes;
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
            blob,
            blob_bytes,
            digest,
            attempt: 0,
            failures: new.failures,
            short: new.short,
            tried: new.tried,
            losses: new.losses,
            entry: new.entry,
            unsplit: false,
            large: new.large,
            bound: new.bound,
            last_error: new.last_error,
            since_ms: self.ticked_ms.unwrap_or(0),
            spared_until_ms: 0,
            state: new.state,
        };
        self.put(task.key());
        self.take_in(task);
        self.wake = true;
        id
    }

    /// Removes a task, its lease and its own manifest. A large file's manifest stays.
    fn drop_task(&mut self, id: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&id)?;
        self.isolated.remove(id);
        if let TaskState::Delayed { until_ms } = &task.state {
            self.delayed.remove(&(*until_ms, id));
        }
        self.effects.push(Effect::Delete(task.key()));
        if let Some(lease) = task.lease() {
            self.leases.remove(lease);
        }
        // A large file's manifest goes with the file, a name list with the sync.
        let shared = task.large.is_some() || matches!(task.spec, TaskSpec::List { .. });
        if let (Some(blob), false) = (&task.blob, shared) {
            self.effects.push(Effect::DeleteBlob(blob.clone()));
        }
        if let Some(sync) = self.syncs.get_mut(&task.sync) {
            sync.queue.leave(&task);
            sync.tasks.remove(&id);
            sync.scans -= usize::from(task.is_scan());
            sync.blob_bytes = sync.blob_bytes.saturating_sub(task.blob_bytes);
            if sync.tasks.is_empty() {
                self.working.remove(&task.sync);
            }
        }
        self.touched.insert(task.sync);
        // A scan may have been waiting for the room that this gives.
        self.wake = true;
        Some(task)
    }

    /// Notes that a sync's record changed.
    fn changed(&mut self, no: SyncNo, now: Now) {
        if let Some(sync) = self.syncs.get_mut(&no) {
            // What is tidied up behind one that has ended changes nothing of it.
            sync.updated_ms = sync.ended_ms.unwrap_or(now.wall_ms);
            self.effects.push(Effect::Put(sync.key()));
            self.effects.extend(sync.unwritten().map(Effect::Put));
            self.touched.insert(no);
        }
    }
}

/// What a new task needs; the rest follows.
struct NewTask {
    sync: SyncNo,
    spec: TaskSpec,
    /// A manifest that is stored already …
    blob: Option<String>,
    /// … its bytes, where they go with the task, and its digest.
    blob_bytes: u64,
    manifest_digest: Option<Digest>,
    /// The file that it is part of.
    large: Option<TaskId>,
    bound: Option<WorkerId>,
    failures: u32,
    short: u32,
    tried: BTreeSet<WorkerId>,
    losses: Vec<losses::Loss>,
    entry: Option<BytePath>,
    last_error: Option<String>,
    state: TaskState,
}

impl NewTask {
    fn ready(sync: SyncNo, spec: TaskSpec) -> Self {
        NewTask {
            sync,
            spec,
            blob: None,
            blob_bytes: 0,
            manifest_digest: None,
            large: None,
            bound: None,
            failures: 0,
            short: 0,
            tried: BTreeSet::new(),
            losses: Vec::new(),
            entry: None,
            last_error: None,
            state: TaskState::Ready,
        }
    }

    fn of_large(large: &Large, spec: TaskSpec) -> Self {
        NewTask {
            blob: Some(large.blob.clone()),
            manifest_digest: Some(large.manifest_digest),
            large: Some(large.id),
            ..NewTask::ready(large.sync, spec)
        }
    }
}
