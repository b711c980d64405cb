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
//! | `n/last` | the last number of a storage |
//! | `n/NUMBER` | a storage |
//! | `y/WORKER/DIGEST` | a storage path of a worker, by a digest of the path |
//! | `k/TOKEN` | a token of an operator |
//! | `c/authority` | the certificate authority of the installation, its key sealed |
//! | `j/TOKEN` | a join token |
//! | `a/WORKER` | the agent of a worker, with the key of its certificate |
//! | `p/PAIR` | the file system of the source of a pair |
//!
//! Blobs, never parsed here: `m/SYNC/TASK` (manifests; destinations share those of their group), `f/SYNC/PART` (name lists), `e/SYNC/PAGE`
//! (failures). Records are JSON, readable for an operator.

use super::ended_syncs::EndedSyncLog;
use super::keys::{KeyError, Keys, SealedKeys, StoredTicketKey};
use super::large_file::LargeFile;
use super::outbox::Outbox;
use super::poll_queue::PollQueue;
use super::record_keys::{AUTHORITY_KEY, META_KEY, drain_key, group_key};
use super::retention::{RetentionClock, StoredClock};
use super::shared_manifests::is_shared_manifest;
use super::source_history::SourceHistory;
use super::sync_job::SyncJob;
use super::sync_table::SyncTable;
use super::task::{Task, TaskState};
use super::task_table::TaskTable;
use super::tickets::TicketClock;
use super::worker_registry::WorkerRegistry;
use super::{Now, Settings, State};
use crate::identity::SealedAuthority;
use crate::wire::path::escape_bytes;
use crate::wire::task::{Base64Bytes, MAX_RANGES, TaskSpec};
use crate::wire::{Digest, SyncNo, TaskId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Meta {
    /// The version of all records; a newer one is refused.
    version: u32,
    next_sync: u64,
    next_task: u64,
    /// The keys that sign tickets, sealed. None in a backup: the next load generates another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ticket_keys: Vec<StoredTicketKey>,
    /// The key for names of part files, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed_name_key: Option<Base64Bytes>,
    /// The key that signed tickets, before keys were sealed. It is read, and written as one of `ticket_keys`.
    #[serde(default, skip_serializing)]
    signer_key: Base64Bytes,
    /// The same of `sealed_name_key`.
    #[serde(default, skip_serializing)]
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
    /// The keys of the master cannot be read.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// The record [`META_KEY`] without the keys that sign tickets: a load then generates a new one. `None`: it
/// cannot be read.
pub fn without_secret(meta: &[u8]) -> Option<Vec<u8>> {
    let meta: Meta = serde_json::from_slice(meta).ok()?;
    serde_json::to_vec(&Meta { ticket_keys: Vec::new(), ..meta }).ok()
}

/// The certificate authority in the record [`AUTHORITY_KEY`].
///
/// # Errors
/// It is not one of this program.
pub fn parse_authority(record: &[u8]) -> Result<SealedAuthority, LoadError> {
    parse_record(AUTHORITY_KEY, record)
}

/// Splits the part of a key after its kind into the number of a sync and what identifies the record in it.
fn parse_sync_key<T: FromStr>(rest: &str) -> Option<(SyncNo, T)> {
    let (no, item) = rest.split_once('/')?;
    Some((SyncNo(no.parse().ok()?), item.parse().ok()?))
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
        let meta = records.get(META_KEY).map(|value| parse_record::<Meta>(META_KEY, value));
        let meta = meta.transpose()?.unwrap_or_default();
        if meta.version > RECORD_VERSION {
            return Err(LoadError::NewerVersion(meta.version));
        }
        let stored = SealedKeys {
            ticket_keys: meta.ticket_keys,
            sealed_name_key: meta.sealed_name_key,
            unsealed_ticket_key: meta.signer_key.0,
            unsealed_name_key: meta.name_key.map(|key| key.0),
        };
        let name_key = settings.name_key;
        let times = (now.mono_ms, settings.heartbeat_timeout_ms);
        let keys = Keys::load(stored.clone(), name_key, &settings.sealer, seed, times)?;
        let mut state = State {
            settings,
            ticket_clock: TicketClock::start(now),
            ended_syncs: EndedSyncLog::new(keys.term()),
            keys,
            syncs: SyncTable::default(),
            tasks: TaskTable::default(),
            workers: WorkerRegistry::default(),
            source_history: SourceHistory::default(),
            bandwidth: Default::default(),
            path_reservations: Default::default(),
            isolation: Default::default(),
            retention_clock: RetentionClock::start(meta.clock, now),
            tokens: Default::default(),
            agents: Default::default(),
            authority: None,
            poll_queue: PollQueue::default(),
            relays: Default::default(),
            relays_are_current: false,
            shared_manifests: Default::default(),
            windows_version: None,
            places_version: None,
            leases_granted: 0,
            leading_since_ms: now.mono_ms,
            last_tick_ms: None,
            outbox: Outbox::default(),
        };
        state.syncs.set_last_no(meta.next_sync.saturating_sub(1));
        state.tasks.set_last_id(meta.next_task.saturating_sub(1));
        if records.contains_key(META_KEY) && state.keys.stored() != stored {
            state.outbox.write_record(META_KEY.to_owned());
        }
        // A sync goes before its other records, a large file before its ranges, the writers before the flushes.
        for kind in ["n/", "y/"] {
            for (key, value) in records.iter().filter(|(key, _)| key.starts_with(kind)) {
                state.workers.storages.load(key, value).map_err(|reason| {
                    LoadError::Unreadable { key: key.clone(), reason: shorten(&reason) }
                })?;
            }
        }
        for kind in [
            "s/", "x/", "r/", "w/", "o/", "d/", "k/", "c/", "j/", "a/", "l/", "v/", "p/", "g/",
            "t/",
        ] {
            for (key, value) in records.iter().filter(|(key, _)| key.starts_with(kind)) {
                state.load_record(key, value, now)?;
            }
        }
        for no in state.syncs.numbers() {
            if state.syncs.get(no).is_some_and(|sync| !sync.is_group()) {
                state.reserve_paths(no, now);
            }
            state.outbox.mark_dirty(no);
        }
        state.load_ended_syncs(now);
        Ok(state)
    }

    fn load_record(&mut self, key: &str, value: &[u8], now: Now) -> Result<(), LoadError> {
        let unreadable = |why: String| LoadError::Unreadable { key: key.to_owned(), reason: why };
        let bad_key = || unreadable("a bad key".to_owned());
        let (kind, rest) = key.split_once('/').ok_or_else(bad_key)?;
        match kind {
            "s" => {
                let mut sync: SyncJob = parse_record(key, value)?;
                // A worker with a revoked lease may write for a whole lease.
                if let Some(lingering) = &mut sync.revoked_leases {
                    lingering.until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
                }
                for key in &sync.failure_list.batches {
                    self.load_manifest_owner(sync.no, key);
                }
                self.syncs.insert(sync);
            }
            "x" => {
                let filter = parse_record(key, value)?;
                let no = rest.parse().map_err(|_| bad_key())?;
                if let Some(sync) = self.syncs.get_mut(SyncNo(no)) {
                    sync.filter = filter;
                }
            }
            "r" | "w" | "o" => {
                let boot = parse_record(key, value)?;
                let (no, worker) = parse_sync_key(rest).ok_or_else(bad_key)?;
                if let Some(ids) = self.syncs.get_mut(no).and_then(|sync| sync.boot_ids_mut(kind)) {
                    ids.restore(worker, boot);
                }
            }
            "d" => {
                let order = parse_record(key, value)?;
                self.workers.set_drained(&rest.parse().map_err(|_| bad_key())?, Some(order));
            }
            "k" => Arc::make_mut(&mut self.tokens).insert(parse_record(key, value)?),
            "c" => self.authority = Some(Arc::new(parse_record(key, value)?)),
            "j" => Arc::make_mut(&mut self.agents).insert_token(parse_record(key, value)?),
            "a" => Arc::make_mut(&mut self.agents).insert_agent(parse_record(key, value)?),
            "l" => {
                let mut large: LargeFile = parse_record(key, value)?;
                if large.range_length == 0 || large.range_count() > MAX_RANGES {
                    let (size, length) = (large.size, large.range_length);
                    return Err(unreadable(format!("{size} bytes in ranges of {length}")));
                }
                large.range_digests = vec![None; large.range_count() as usize];
                self.load_manifest_owner(large.sync, &large.manifest_key);
                if let Some(sync) = self.syncs.get_mut(large.sync) {
                    self.tasks.add_manifest_bytes(large.sync, large.manifest_bytes);
                    sync.large_files.insert(large.id, large);
                }
            }
            "v" => {
                let mut numbers = rest.split('/').map(str::parse);
                let mut number = || numbers.next().and_then(Result::ok).ok_or_else(bad_key);
                let (no, file, index) = (SyncNo(number()?), TaskId(number()?), number()?);
                let digest = value.try_into().map_err(|_| unreadable("not 32 bytes".to_owned()))?;
                let large = self.syncs.get_mut(no).and_then(|s| s.large_files.get_mut(&file));
                // A range of a removed file.
                let Some(large) = large else { return Ok(()) };
                let slot = large.range_digests.get_mut(index as usize);
                *slot.ok_or_else(|| unreadable("no such range".to_owned()))? = Some(Digest(digest));
                large.ranges_done += 1;
            }
            "p" => drop(self.source_history.0.insert(key.to_owned(), parse_record(key, value)?)),
            "g" => {
                let (no, group) = parse_sync_key(rest).ok_or_else(bad_key)?;
                if let Some(sync) = self.syncs.get_mut(no) {
                    sync.hardlink_groups.insert(group);
                }
            }
            "t" => self.load_task(parse_record(key, value)?, now),
            _ => {}
        }
        Ok(())
    }

    fn load_manifest_owner(&mut self, no: SyncNo, key: &str) {
        if is_shared_manifest(key, no) {
            self.shared_manifests.add_owner(key, no);
        }
    }

    fn load_task(&mut self, mut task: Task, now: Now) {
        if self.syncs.get(task.sync).is_none() {
            return;
        }
        if let Some(key) = &task.manifest_key {
            self.load_manifest_owner(task.sync, key);
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
            let keys = self.keys.stored();
            let meta = Meta {
                version: RECORD_VERSION,
                next_sync: self.syncs.last_no() + 1,
                next_task: self.tasks.last_id() + 1,
                ticket_keys: keys.ticket_keys,
                sealed_name_key: keys.sealed_name_key,
                signer_key: Base64Bytes::default(),
                name_key: None,
                clock: Some(self.retention_clock.stored().clone()),
            };
            return serde_json::to_vec(&meta).ok();
        }
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "n" | "y" => return self.workers.storages.record(key),
            "p" => return serde_json::to_vec(self.source_history.0.get(key)?).ok(),
            "k" => return serde_json::to_vec(self.tokens.get(&rest.parse().ok()?)?).ok(),
            "c" => return serde_json::to_vec(self.authority.as_deref()?).ok(),
            "j" => return serde_json::to_vec(self.agents.token(&rest.parse().ok()?)?).ok(),
            "a" => return serde_json::to_vec(self.agents.agent(&rest.parse().ok()?)?).ok(),
            "d" => {
                return serde_json::to_vec(self.workers.drain_order(&rest.parse().ok()?)?).ok();
            }
            _ => {}
        }
        let (no, item) = rest.split_once('/').unwrap_or((rest, ""));
        let sync = self.syncs.get(SyncNo(no.parse().ok()?))?;
        let large_file = |id: &str| sync.large_files.get(&TaskId(id.parse().ok()?));
        match kind {
            "s" => serde_json::to_vec(sync).ok(),
            "x" => sync.filter_key().and_then(|_| serde_json::to_vec(&sync.filter).ok()),
            "t" => serde_json::to_vec(self.tasks.get(TaskId(item.parse().ok()?))?).ok(),
            "l" => serde_json::to_vec(large_file(item)?).ok(),
            "v" => {
                let (id, index) = item.split_once('/')?;
                let digests = &large_file(id)?.range_digests;
                digests.get(index.parse::<usize>().ok()?)?.map(|digest| digest.0.to_vec())
            }
            "g" => {
                let is_known = sync.hardlink_groups.contains(&item.parse().ok()?);
                is_known.then(|| b"true".to_vec())
            }
            _ => serde_json::to_vec(sync.boot_ids(kind)?.get(&item.parse().ok()?)?).ok(),
        }
    }

    /// The keys of all records.
    pub fn record_keys(&self) -> Vec<String> {
        let mut keys = vec![META_KEY.to_owned()];
        keys.extend(self.syncs.values().map(SyncJob::record_key));
        keys.extend(self.tasks.values().map(Task::record_key));
        keys.extend(self.source_history.0.keys().cloned());
        keys.extend(self.workers.drained_ids().map(drain_key));
        keys.extend(self.workers.storages.record_keys());
        keys.extend(self.tokens.record_keys());
        keys.extend(self.agents.record_keys());
        keys.extend(self.authority.is_some().then(|| AUTHORITY_KEY.to_owned()));
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
    serde_json::from_slice(value)
        .map_err(|e| LoadError::Unreadable { key: key.to_owned(), reason: shorten(&e.to_string()) })
}

/// An error may quote the record, which may be long and hold anything.
fn shorten(error: &str) -> String {
    let why: String = error.chars().take(300).collect();
    escape_bytes(why.as_bytes())
}
