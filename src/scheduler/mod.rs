//! The scheduler: a pure state machine. [`State::apply`] takes an event and the time, and returns what must be written
//! and replied. No I/O, no clock, no locks, no randomness but a seed: the same events give the same effects, so a test
//! can replay any history.
//!
//! An event goes one way: validation, the phase machine of its sync, tasks, placement, effects. So the files form a
//! list; a file uses types and calls methods only of files before it (`tests/direction.rs`):
//!
//! 1. Data: `single_entries`, `failure_list`, `record_keys`, `grant`, `token_table`, `agent_table`, `event`, `outbox`, `keys`, `speed`,
//!    `blocked`, `boot_ids`, `phase`, `bandwidth`, `source_history`, `validate`, `relay_table`, `task`,
//!    `shared_manifests`, `large_file`, `task_table`,
//!    `isolation`, `worker_rank`, `storage_types`, `storage_table`, `storage_periods`, `storage_compare`,
//!    `storage_declarations`, `storage_observe`, `storage_records`, `place`, `poll_queue`, `worker_health`,
//!    `worker_registry`, `pause`
//! 2. A sync, and what its options mean: `sync_job`, `sync_table`, `sync_rules`
//! 3. Changes that keep the indexes in step: `core`
//! 4. Questions and records: `capability`, `activity`, `ended_syncs`, `file_records`, `failure_log`, `overlap`,
//!    `deferral`
//! 5. New work and its removal: `work_items`, `clean_up`, `mirror_guards`, `recheck`, `deletion`,
//!    `destinations`, `shared_scan`, `relays`, `storage_binding`
//! 6. Failures: `storage_pause`, `failures`, `lease_end`
//! 7. Phases: `advance`
//! 8. Placement: `bandwidth_limits`, `placement`, `tickets`, `assignment`, `dispatch`
//! 9. What agents send: `duplicate_agents`, `storage_watch`, `registry_limits`, `heartbeat`, `pages`, `large_results`,
//!    `results`
//! 10. Time and operators: `retention`, `tick`, `views`, `group_views`, `storage_views`, `sync_admin`, `worker_admin`,
//!     `tokens`, `authority`, `agents`, `restricted_events`
//! 11. The store: `records`, `reconcile`

mod activity;
mod advance;
mod agent_table;
mod agents;
mod assignment;
mod authority;
mod bandwidth;
mod bandwidth_limits;
mod blocked;
mod boot_ids;
mod capability;
mod clean_up;
mod core;
mod deferral;
mod deletion;
mod destinations;
mod dispatch;
mod duplicate_agents;
mod ended_syncs;
pub mod event;
mod failure_list;
mod failure_log;
mod failures;
mod file_records;
mod grant;
mod group_views;
mod heartbeat;
mod isolation;
mod keys;
mod large_file;
mod large_results;
mod lease_end;
mod mirror_guards;
mod outbox;
mod overlap;
mod pages;
mod pause;
mod phase;
mod place;
mod placement;
mod poll_queue;
mod recheck;
mod reconcile;
mod record_keys;
mod records;
mod registry_limits;
mod relay_table;
mod relays;
mod restricted_events;
mod results;
mod retention;
mod shared_manifests;
mod shared_scan;
mod single_entries;
mod source_history;
mod speed;
mod storage_binding;
mod storage_compare;
mod storage_declarations;
mod storage_observe;
mod storage_pause;
mod storage_periods;
mod storage_records;
mod storage_table;
mod storage_types;
mod storage_views;
mod storage_watch;
mod sync_admin;
mod sync_job;
mod sync_rules;
mod sync_table;
mod task;
mod task_table;
mod tick;
mod tickets;
mod token_table;
mod tokens;
mod validate;
mod views;
mod work_items;
mod worker_admin;
mod worker_health;
mod worker_rank;
mod worker_registry;

#[cfg(test)]
mod tests;

pub use agent_table::{AgentKey, AgentRecord, AgentTable, JoinTokenRecord};
pub use event::{
    Caller, Effect, Event, IdempotencyKey, Join, Now, RecordLogInfo, Reply, RetryScope, StoredKeys,
    SyncPage, SyncQuery,
};
#[cfg(test)]
pub use failure_list::FailurePages;
pub use failure_list::{FailedBatch, FailureLine, decode_failures, failed_file_record};
pub use file_records::MAX_LINE_BYTES;
pub use grant::Grant;
pub use keys::KeyError;
pub use record_keys::{AUTHORITY_KEY, META_KEY as SECRET_RECORD};
pub use records::{LoadError, parse_authority, without_secret};
pub use single_entries::single_entries;
pub use source_history::source_history_record;
pub use token_table::{TokenRecord, TokenRefusal, TokenTable};

use crate::identity::{SealedAuthority, Sealer};
use crate::util::timetable::Timetable;
use crate::wire::options::PartNameKey;
use crate::wire::problem::Problem;
use crate::wire::storage::ConfiguredStorage;
use crate::wire::{SyncNo, WorkerId};
use jiff::tz::TimeZone;
use keys::Keys;
use outbox::Outbox;
use pause::Pause;
use poll_queue::PollQueue;
use relay_table::RelayTable;
use shared_manifests::SharedManifests;
use std::sync::Arc;
use sync_table::SyncTable;
use task_table::TaskTable;
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
    /// Maximum number of syncs that wait; further ones are refused.
    pub max_queued_syncs: usize,
    /// Maximum number of workers; beyond it those that nothing depends on are removed for new ones.
    pub max_workers: usize,
    /// Limit of all agents together …
    pub bwlimit: Timetable,
    /// … in this time zone.
    pub zone: TimeZone,
    /// The key for names of part files if the store holds none; by default it is derived from the
    /// signer's key.
    pub name_key: Option<PartNameKey>,
    /// Seals the keys in the store.
    pub sealer: Sealer,
    /// The storages that the configuration declares.
    pub storages: Vec<ConfiguredStorage>,
}

#[cfg(test)]
impl Default for Settings {
    fn default() -> Self {
        Settings::new(Sealer::for_tests())
    }
}

impl Settings {
    /// The defaults.
    pub fn new(sealer: Sealer) -> Self {
        Settings {
            sealer,
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
            max_queued_syncs: 10_000,
            max_workers: 16_384,
            bwlimit: Timetable::default(),
            zone: TimeZone::UTC,
            name_key: None,
            storages: Vec::new(),
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
    keys: Keys,
    outbox: Outbox,
    syncs: SyncTable,
    tasks: TaskTable,
    workers: WorkerRegistry,
    source_history: source_history::SourceHistory,
    bandwidth: bandwidth::BandwidthAllocator,
    path_reservations: overlap::PathReservations,
    isolation: isolation::Isolation,
    retention_clock: retention::RetentionClock,
    /// Shared with the snapshot of the API; copied before a change.
    tokens: Arc<TokenTable>,
    /// As `tokens`.
    agents: Arc<AgentTable>,
    /// The certificate authority of the installation.
    authority: Option<Arc<SealedAuthority>>,
    poll_queue: PollQueue,
    relays: RelayTable,
    /// Nothing happened since [`State::update_relays`] that decides which destinations can send and receive.
    relays_are_current: bool,
    shared_manifests: SharedManifests,
    /// The [version](WorkerRegistry::version) of the workers for which the windows were computed;
    /// `None`: the settings changed since.
    windows_version: Option<u64>,
    /// What is known of storages and workers for which the sides of queued syncs were resolved;
    /// `None`: not yet.
    places_version: Option<(u64, u64)>,
    /// Number of leases so far; recorded in [`last_served`](sync_job::SyncJob::last_served).
    leases_granted: u64,
    /// Since when this master receives heartbeats.
    leading_since_ms: u64,
    last_tick_ms: Option<u64>,
    ticket_clock: tickets::TicketClock,
    ended_syncs: ended_syncs::EndedSyncLog,
}

impl State {
    /// Applies an event; returns writes and replies. The writes must be durable before any reply is
    /// sent.
    pub fn apply(&mut self, event: Event, caller: Option<Caller>, now: Now) -> Vec<Effect> {
        // A lease changes nothing for others.
        self.relays_are_current &= event.is_poll();
        let reply = self.handle_event(event, caller, now);
        let reply = reply.unwrap_or_else(|problem| Some(Reply::Refused(Box::new(problem))));
        if let (Some(caller), Some(reply)) = (caller, reply) {
            self.outbox.reply(caller, reply);
        }
        self.update_places(now);
        self.update_windows();
        while let Some(no) = self.outbox.next_dirty() {
            self.advance_phase(no, now);
        }
        if self.outbox.take_dispatch() {
            self.dispatch_waiting_polls(now);
            self.outbox.end_dispatch();
        }
        self.store_failure_pages();
        self.outbox.take_effects()
    }

    /// The reply to an event; `None`: a poll waits.
    fn handle_event(
        &mut self,
        event: Event,
        caller: Option<Caller>,
        now: Now,
    ) -> Result<Option<Reply>, Problem> {
        Ok(Some(match event {
            Event::Submit { request, list, idempotency } => {
                self.submit(request, list, idempotency, now)?
            }
            Event::GetProgress(id) => {
                self.mark_watched(&id, now);
                self.progress_reply(&id)?
            }
            Event::ListSyncs(select) => self.list_syncs(&select),
            Event::GetFileRecords(id) => Reply::FileRecords(Box::new(self.record_log_info(&id)?)),
            Event::FileRecordsLost { sync, reason: why } => {
                self.fail_record_log(sync, why, now);
                Reply::Done
            }
            Event::ChangeSync { id, change } => self.change_sync(&id, change, now)?,
            Event::RetrySync { id, new, only, idempotency } => {
                self.retry_sync(&id, new, only, idempotency, now)?
            }
            Event::PauseSync(id) => self.set_operator_pause(&id, Some(Pause::Operator), now)?,
            Event::ResumeSync(id) => self.set_operator_pause(&id, None, now)?,
            Event::ReassignTasks { id, worker } => self.reassign_tasks(&id, &worker, now)?,
            Event::CancelSync(id) => self.cancel_sync(&id, now)?,
            Event::DeleteSync(id) => self.delete_sync(&id, now)?,
            Event::Heartbeat(heartbeat) => self.handle_heartbeat(heartbeat, now)?,
            Event::ListWorkers => self.list_workers(now),
            Event::GetWorker(worker) => self.show_worker(&worker, now)?,
            Event::ListWorkerRequests(worker) => self.list_worker_requests(&worker)?,
            Event::ListStorages => Reply::Storages(self.list_storages()),
            Event::GetStorage(id) => Reply::Storage(Box::new(self.show_storage(&id)?)),
            Event::DrainWorker { worker, order } => self.drain_worker(&worker, order, now)?,
            Event::ForgetWorker(worker) => self.forget_worker(&worker, now)?,
            Event::Poll { worker, incarnation, poll_id, wait_ms } => {
                let until_ms = now.mono_ms.saturating_add(wait_ms);
                let poll = WaitingPoll { worker, incarnation, poll_id, until_ms };
                return Ok(self.handle_poll(poll, caller, now));
            }
            Event::CancelPoll(gone) => {
                self.poll_queue.remove(gone);
                Reply::Done
            }
            Event::GetManifest { worker, assignment } => self.get_manifest(&worker, assignment)?,
            Event::Page { worker, assignment, page } => {
                Reply::Page(self.handle_page(&worker, assignment, page, now)?)
            }
            Event::Result(result) => self.handle_result(result, now)?,
            Event::ManifestEntries { task, entries } => {
                self.split_isolated_task(task, entries, now);
                Reply::Done
            }
            Event::CreateToken(record) => self.create_token(*record, now)?,
            Event::ListTokens => self.list_tokens(),
            Event::RevokeToken(id) => self.revoke_token(&id, now)?,
            Event::CreateJoinToken(record) => self.create_join_token(*record, now)?,
            Event::RevokeJoinToken(id) => self.revoke_join_token(&id, now)?,
            Event::Join(join) => self.use_join_token(*join, now)?,
            Event::StoreAuthority(authority) => {
                self.store_authority(*authority);
                Reply::Done
            }
            Event::RotateAuthority(next) => self.rotate_authority(*next)?,
            Event::FinishRotation { force } => self.finish_rotation(force, now)?,
            Event::GetAuthority => self.show_authority()?,
            Event::RevokeWorker(worker) => self.revoke_worker(&worker, now)?,
            Event::OfAgent { agent, mut event } => {
                let refused_paths = self.check_agent_event(agent.as_ref(), &mut event)?;
                let reply = self.handle_event(*event, caller, now)?;
                return Ok(self.complete_heartbeat_reply(agent.as_ref(), reply, refused_paths));
            }
            Event::Restricted { grant, mut event } => {
                self.check_grant(&grant, &mut event)?;
                let reply = self.handle_event(*event, caller, now)?;
                return Ok(reply.map(|reply| self.restrict_reply(&grant, reply)));
            }
            Event::ConfirmClock => self.confirm_clock(now),
            Event::RotateTicketKey => self.rotate_ticket_key(now)?,
            Event::Reconcile(stored) => self.reconcile(&stored, now),
            Event::StoreLost => {
                self.syncs.numbers().into_iter().for_each(|no| self.restart_sync(no, now));
                Reply::Done
            }
            Event::Configure(settings) => {
                self.settings = *settings;
                self.windows_version = None;
                // More syncs may be active.
                self.outbox.request_dispatch();
                self.tick(now);
                Reply::Done
            }
            Event::Tick => {
                self.tick(now);
                Reply::Done
            }
        }))
    }

    /// The public keys that verify tickets.
    #[cfg(test)]
    pub fn ticket_keys(&self) -> Vec<String> {
        self.keys.public_keys()
    }

    /// The key for the names of part files.
    pub fn name_key(&self) -> PartNameKey {
        self.keys.name_key()
    }

    /// Whether a sync has this number.
    pub fn has_sync(&self, number: u64) -> bool {
        self.syncs.get(SyncNo(number)).is_some()
    }

    /// Time until [`Event::Tick`] is needed at the latest, in milliseconds.
    pub fn next_deadline_ms(&self, now: Now) -> Option<u64> {
        let ends = self.poll_queue.next_deadline_ms().into_iter().chain(self.tasks.next_due_ms());
        let nearest = ends.chain(self.next_probe_ms(now)).min();
        nearest.map(|at| at.saturating_sub(now.mono_ms))
    }
}
