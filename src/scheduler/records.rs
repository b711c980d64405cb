//! Records of the state in the store. Only what cannot be learned again is stored:
//!
//! | key | record |
//! |---|---|
//! | `meta` | the next numbers, the key that signs tickets, the uptime of masters |
//! | `s/SYNC` | a sync with its counters and first errors |
//! | `x/SYNC` | its filter |
//! | `r/SYNC/WORKER` | boot id and root of a worker through which it may have written |
//! | `w/SYNC/WORKER` | … of a worker with writes that are not flushed |
//! | `o/SYNC/WORKER` | … of a worker that reads the source |
//! | `t/SYNC/TASK` | a task with its lease |
//! | `l/SYNC/FILE` | a large file that is not published yet |
//! | `v/SYNC/FILE/RANGE` | the chaining value of a done range, 32 bytes |
//! | `g/SYNC/DIGEST` | a large file with several names of which one is present |
//! | `d/WORKER` | a drain order |
//! | `p/PAIR` | the file system of the source of a pair |
//!
//! Blobs, never parsed here: `m/SYNC/TASK` (manifests), `f/SYNC/PART` (name lists), `e/SYNC/PAGE`
//! (failures). Records are JSON, readable for an operator.

use super::boot_ids::BootIds;
use super::keys::{Keys, derive_name_key};
use super::large_file::LargeFile;
use super::outbox::Outbox;
use super::poll_queue::PollQueue;
use super::record_keys::{META_KEY, drain_key, group_key, parse_group_key};
use super::retention::{RetentionClock, StoredClock};
use super::source_history::SourceHistory;
use super::sync_job::SyncJob;
use super::sync_table::SyncTable;
use super::task::{Task, TaskState};
use super::task_table::TaskTable;
use super::worker_registry::WorkerRegistry;
use super::{Now, Settings, State};
use crate::wire::options::{FilterSpec, PartNameKey};
use crate::wire::path::escape_bytes;
use crate::wire::task::{Base64Bytes, MAX_RANGES, TaskSpec};
use crate::wire::ticket::{Signer, TicketError};
use crate::wire::worker::DrainInfo;
use crate::wire::{Digest, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    /// The version of all records; a newer one is refused.
    version: u32,
    next_sync: u64,
    next_task: u64,
    /// Empty in a backup: the next load generates another.
    signer_key: Base64Bytes,
    /// Kept when the signer's key changes, so that part files are found again.
    name_key: Option<Base64Bytes>,
    clock: Option<StoredClock>,
}

const RECORD_VERSION: u32 = 1;

/// Why stored records could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A record was not written by this program.
    #[error("the store's record `{key}` cannot be read: {reason}")]
    Unreadable {
        /// Its key.
        key: String,
        /// The error.
        reason: String,
    },
    /// Written by a newer program.
    #[error(
        "the store was written by a later version (records {0}, this program reads up to {RECORD_VERSION})"
    )]
    NewerVersion(u32),
    /// The signing key cannot be generated or read.
    #[error("the key that signs tickets: {0}")]
    Signer(#[from] TicketError),
}

/// The record [`META_KEY`] without the signing key: a load then generates a new one. `None`: it
/// cannot be read.
pub fn without_secret(meta: &[u8]) -> Option<Vec<u8>> {
    let meta: Meta = serde_json::from_slice(meta).ok()?;
    // Agents receive this key with their tasks; the signing key cannot be computed from it.
    let name_key =
        meta.name_key.or_else(|| Some(Base64Bytes(derive_name_key(&meta.signer_key.0).to_vec())));
    serde_json::to_vec(&Meta { signer_key: Base64Bytes(Vec::new()), name_key, ..meta }).ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BootIdKind {
    PossibleWriter,
    UnflushedWriter,
    SourceReader,
}

impl BootIdKind {
    pub(super) fn boot_ids(self, sync: &SyncJob) -> &BootIds {
        match self {
            BootIdKind::PossibleWriter => &sync.possible_writers,
            BootIdKind::UnflushedWriter => &sync.unflushed_writers,
            BootIdKind::SourceReader => &sync.source_roots,
        }
    }

    fn boot_ids_mut(self, sync: &mut SyncJob) -> &mut BootIds {
        match self {
            BootIdKind::PossibleWriter => &mut sync.possible_writers,
            BootIdKind::UnflushedWriter => &mut sync.unflushed_writers,
            BootIdKind::SourceReader => &mut sync.source_roots,
        }
    }
}

fn parse_boot_id_key(key: &str) -> Option<(SyncNo, WorkerId, BootIdKind)> {
    let (kind, rest) = key.split_once('/')?;
    let (no, worker) = rest.split_once('/')?;
    let place = match kind {
        "r" => BootIdKind::PossibleWriter,
        "w" => BootIdKind::UnflushedWriter,
        "o" => BootIdKind::SourceReader,
        _ => return None,
    };
    Some((SyncNo(no.parse().ok()?), worker.parse().ok()?, place))
}

impl State {
    /// The state described by `records`; an empty map gives a new one. `seed` must be random and
    /// different at each start: assignment ids are derived from it.
    ///
    /// # Errors
    /// Records that this program did not write.
    pub fn load(
        settings: Settings,
        seed: [u8; 32],
        records: &BTreeMap<String, Vec<u8>>,
        now: Now,
    ) -> Result<State, LoadError> {
        let meta: Option<Meta> =
            records.get(META_KEY).map(|v| parse_record(META_KEY, v)).transpose()?;
        if let Some(meta) = meta.as_ref().filter(|m| m.version > RECORD_VERSION) {
            return Err(LoadError::NewerVersion(meta.version));
        }
        let name_key = meta.as_ref().and_then(|meta| meta.name_key.as_ref()?.0[..].try_into().ok());
        let name_key = name_key.map(PartNameKey).or(settings.name_key);
        let (next_sync, next_task, signer_key, clock) = match meta {
            Some(meta) => (meta.next_sync, meta.next_task, meta.signer_key.0, meta.clock),
            None => (1, 1, Vec::new(), None),
        };
        let is_restored = signer_key.is_empty();
        let signer_key = if is_restored { Signer::generate()? } else { signer_key };
        let mut state = State {
            settings,
            keys: Keys::new(signer_key, name_key, seed)?,
            syncs: SyncTable::default(),
            tasks: TaskTable::default(),
            workers: WorkerRegistry::default(),
            source_history: SourceHistory::default(),
            bandwidth: Default::default(),
            path_reservations: Default::default(),
            isolation: Default::default(),
            retention_clock: RetentionClock::start(clock, now),
            poll_queue: PollQueue::default(),
            windows_version: 0,
            leases_granted: 0,
            leading_since_ms: now.mono_ms,
            last_tick_ms: None,
            outbox: Outbox::default(),
        };
        state.syncs.set_last_no(next_sync.saturating_sub(1));
        state.tasks.set_last_id(next_task.saturating_sub(1));
        if is_restored && records.contains_key(META_KEY) {
            state.outbox.put(META_KEY.to_owned());
        }
        let of_kind =
            |kind: &'static str| records.iter().filter(move |(key, _)| key.starts_with(kind));
        for (key, value) in of_kind("s/") {
            state.load_sync(parse_record(key, value)?, now);
        }
        for (key, value) in of_kind("x/") {
            state.load_filter(key, parse_record(key, value)?)?;
        }
        for (key, value) in of_kind("r/").chain(of_kind("w/")).chain(of_kind("o/")) {
            state.load_boot_id(key, parse_record(key, value)?)?;
        }
        for (key, value) in of_kind("d/") {
            state.load_drain_order(key, parse_record(key, value)?)?;
        }
        for (key, value) in of_kind("l/") {
            state.load_large_file(key, parse_record(key, value)?)?;
        }
        for (key, value) in of_kind("v/") {
            state.load_range(key, value)?;
        }
        for (key, value) in of_kind("p/") {
            state.source_history.0.insert(key.clone(), parse_record(key, value)?);
        }
        for (key, _) in of_kind("g/") {
            state.load_group(key)?;
        }
        for (key, value) in of_kind("t/") {
            state.load_task(parse_record(key, value)?, now);
        }
        for no in state.syncs.numbers() {
            state.reserve_paths(no);
            state.outbox.mark_dirty(no);
        }
        Ok(state)
    }

    fn load_sync(&mut self, mut sync: SyncJob, now: Now) {
        // A worker with a revoked lease may write for a whole lease.
        if let Some(lingering) = &mut sync.revoked_leases {
            lingering.until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        }
        self.syncs.insert(sync);
    }

    fn load_filter(&mut self, key: &str, filter: FilterSpec) -> Result<(), LoadError> {
        let broken =
            || LoadError::Unreadable { key: key.to_owned(), reason: "a bad key".to_owned() };
        let no = key.split('/').nth(1).and_then(|no| no.parse().ok()).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(SyncNo(no)) {
            sync.filter = filter;
        }
        Ok(())
    }

    fn load_boot_id(&mut self, key: &str, boot: Option<String>) -> Result<(), LoadError> {
        let broken =
            || LoadError::Unreadable { key: key.to_owned(), reason: "a bad key".to_owned() };
        let (no, worker, place) = parse_boot_id_key(key).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(no) {
            place.boot_ids_mut(sync).restore(worker, boot);
        }
        Ok(())
    }

    fn load_drain_order(&mut self, key: &str, drained: DrainInfo) -> Result<(), LoadError> {
        let broken =
            || LoadError::Unreadable { key: key.to_owned(), reason: "a bad key".to_owned() };
        let worker = key.strip_prefix("d/").and_then(|id| id.parse().ok()).ok_or_else(broken)?;
        self.workers.set_drained(&worker, Some(drained));
        Ok(())
    }

    fn load_large_file(&mut self, key: &str, mut large: LargeFile) -> Result<(), LoadError> {
        if large.range_length == 0 || large.range_count() > MAX_RANGES {
            let why = format!("{} bytes in ranges of {}", large.size, large.range_length);
            return Err(LoadError::Unreadable { key: key.to_owned(), reason: why });
        }
        large.range_digests = vec![None; large.range_count() as usize];
        if let Some(sync) = self.syncs.get_mut(large.sync) {
            self.tasks.add_manifest_bytes(large.sync, large.manifest_bytes);
            sync.large_files.insert(large.id, large);
        }
        Ok(())
    }

    fn load_range(&mut self, key: &str, value: &[u8]) -> Result<(), LoadError> {
        let broken =
            |why: &str| LoadError::Unreadable { key: key.to_owned(), reason: why.to_owned() };
        let mut parts = key.split('/').skip(1).map(str::parse::<u64>);
        let mut number = || parts.next().and_then(Result::ok).ok_or_else(|| broken("a bad key"));
        let (sync, file, index) = (SyncNo(number()?), TaskId(number()?), number()?);
        let digest = value.try_into().map(Digest).map_err(|_| broken("not 32 bytes"))?;
        let large = self.syncs.get_mut(sync).and_then(|s| s.large_files.get_mut(&file));
        // A range of a removed file.
        let Some(large) = large else { return Ok(()) };
        let slot =
            large.range_digests.get_mut(index as usize).ok_or_else(|| broken("no such range"))?;
        *slot = Some(digest);
        large.ranges_done += 1;
        Ok(())
    }

    fn load_group(&mut self, key: &str) -> Result<(), LoadError> {
        let broken =
            || LoadError::Unreadable { key: key.to_owned(), reason: "a bad key".to_owned() };
        let (no, group) = parse_group_key(key).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.hardlink_groups.insert(group);
        }
        Ok(())
    }

    fn load_task(&mut self, mut task: Task, now: Now) {
        if self.syncs.get(task.sync).is_none() {
            return;
        }
        task.waiting_since_ms = now.mono_ms;
        match &mut task.state {
            TaskState::Leased(lease) => {
                // The agent continues; it has a whole lease to report.
                lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
                lease.granted_ms = now.mono_ms;
            }
            // Workers may write for a whole lease.
            TaskState::Delayed { until_ms }
                if matches!(task.spec, TaskSpec::Discard | TaskSpec::CleanUp) =>
            {
                *until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            }
            TaskState::Delayed { until_ms } => *until_ms = now.mono_ms,
            TaskState::Ready => {}
        }
        self.insert_task(task);
    }

    /// The present value of a record; `None` if it was removed.
    pub fn record(&self, key: &str) -> Option<Vec<u8>> {
        if key == META_KEY {
            let meta = Meta {
                version: RECORD_VERSION,
                next_sync: self.syncs.last_no() + 1,
                next_task: self.tasks.last_id() + 1,
                signer_key: Base64Bytes(self.keys.signer_key().to_vec()),
                name_key: Some(Base64Bytes(self.keys.name_key().0.to_vec())),
                clock: Some(self.retention_clock.stored().clone()),
            };
            return serde_json::to_vec(&meta).ok();
        }
        if let Some(pair) = self.source_history.0.get(key) {
            return serde_json::to_vec(pair).ok();
        }
        if let Some(worker) = key.strip_prefix("d/") {
            let drained = self.workers.drain_order(&worker.parse().ok()?)?;
            return serde_json::to_vec(drained).ok();
        }
        if let Some((no, group)) = parse_group_key(key) {
            let known =
                self.syncs.get(no).is_some_and(|sync| sync.hardlink_groups.contains(&group));
            return known.then(|| b"true".to_vec());
        }
        if let Some((no, worker, place)) = parse_boot_id_key(key) {
            let places = place.boot_ids(self.syncs.get(no)?);
            return serde_json::to_vec(places.get(&worker)?).ok();
        }
        let mut parts = key.split('/');
        let kind = parts.next()?;
        let mut number = || parts.next()?.parse::<u64>().ok();
        let sync = self.syncs.get(SyncNo(number()?))?;
        match kind {
            "s" => serde_json::to_vec(sync).ok(),
            "x" => sync.filter_key().and_then(|_| serde_json::to_vec(&sync.filter).ok()),
            "t" => serde_json::to_vec(self.tasks.get(TaskId(number()?))?).ok(),
            "l" => serde_json::to_vec(sync.large_files.get(&TaskId(number()?))?).ok(),
            "v" => {
                let large = sync.large_files.get(&TaskId(number()?))?;
                large.range_digests.get(number()? as usize)?.map(|digest| digest.0.to_vec())
            }
            _ => None,
        }
    }

    /// The keys of all records.
    pub fn record_keys(&self) -> Vec<String> {
        let mut keys = vec![META_KEY.to_owned()];
        keys.extend(self.syncs.values().map(SyncJob::record_key));
        keys.extend(self.tasks.values().map(Task::record_key));
        keys.extend(self.source_history.0.keys().cloned());
        keys.extend(self.workers.drained_ids().map(drain_key));
        for sync in self.syncs.values() {
            keys.extend(sync.filter_key());
            keys.extend(sync.worker_record_keys());
            keys.extend(sync.hardlink_groups.iter().map(|group| group_key(sync.no, group)));
        }
        for large in self.syncs.values().flat_map(|s| s.large_files.values()) {
            keys.push(large.record_key());
            let done = large.range_digests.iter().enumerate().filter(|(_, d)| d.is_some());
            keys.extend(done.map(|(index, _)| large.range_record_key(index as u64)));
        }
        keys
    }
}

fn parse_record<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(value).map_err(|e| {
        // The error quotes the record, which may be long and hold anything.
        let why: String = e.to_string().chars().take(300).collect();
        LoadError::Unreadable { key: key.to_owned(), reason: escape_bytes(why.as_bytes()) }
    })
}
