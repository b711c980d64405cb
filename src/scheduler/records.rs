//! The state in the store and back. Only what cannot be learned again is stored:
//!
//! | key | record |
//! |---|---|
//! | `meta` | the next numbers, the key that signs tickets, the time that masters have lived through |
//! | `s/SYNC` | a sync with its counters and first errors |
//! | `x/SYNC` | what of its source is left out |
//! | `r/SYNC/WORKER_ID` | the place (boot, storage root) that a worker could first write to |
//! | `w/SYNC/WORKER_ID` | … that one wrote to that has not flushed yet |
//! | `o/SYNC/WORKER_ID` | … that one first read the source from |
//! | `t/SYNC/TASK` | a task with its lease |
//! | `l/SYNC/LOG_FILE` | a large file that is not published yet |
//! | `v/SYNC/LOG_FILE/RANGE_BYTES` | the chaining value of a done range, 32 bytes |
//! | `g/SYNC/BLOCK_DIGESTS` | a large file with several names of which one has been brought |
//! | `d/WORKER_ID` | that an operator keeps a worker from new work |
//! | `p/PAIR` | the file system on which the source of a pair lay |
//!
//! Blobs, never parsed here: `m/SYNC/TASK` (manifests), `f/SYNC/PART` (name lists), `e/SYNC/DIRECT_ALIGN_BYTES` (failures). Records
//! are JSON: an operator can read them.

use super::age::{Age, Clock};
use super::boots::Boots;
use super::leases::Leases;
use super::pairs::Pairs;
use super::sync::Sync;
use super::task::{Large, Task, TaskState};
use super::waiting::Waiting;
use super::worker::Workers;
use super::{Effect, Now, Settings, State};
use crate::wire::options::{FilterSpec, PartNameKey};
use crate::wire::path::escape_bytes;
use crate::wire::task::{Base64Bytes, MAX_RANGES, TaskSpec};
use crate::wire::ticket::{Signer, TicketError};
use crate::wire::worker::DrainInfo;
use crate::wire::{Digest, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The key of the record of numbers.
pub const META: &str = "meta";

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    /// Of these records; a later one is refused.
    version: u32,
    next_sync: u64,
    next_task: u64,
    /// Empty in a backup: the next load draws another.
    signer: Base64Bytes,
    /// Kept when the signer's key changes, so that unfinished files are found again.
    #[serde(default)]
    name_key: Option<Base64Bytes>,
    #[serde(default)]
    age: Option<Age>,
}

/// The version of the records that this program writes. 2: the workers of a sync have records of their
/// own. 3: so has its filter.
const VERSION: u32 = 3;

/// Why stored records could not be taken in.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A record is not what we write.
    #[error("the store's record `{key}` cannot be read: {why}")]
    Broken {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Written by a later program.
    #[error(
        "the store was written by a later version (records {0}, this program reads up to {VERSION})"
    )]
    Later(u32),
    /// The key for tickets can't be made or read.
    #[error("the key that signs tickets: {0}")]
    Signer(#[from] TicketError),
}

/// The record [`META`] without the key that signs tickets: a load then draws a new one. `None`: it cannot be read.
pub fn without_secret(meta: &[u8]) -> Option<Vec<u8>> {
    let meta: Meta = serde_json::from_slice(meta).ok()?;
    // Each agent is sent this key with its tasks; the signer's key cannot be computed from it.
    let name_key =
        meta.name_key.or_else(|| Some(Base64Bytes(derive_name_key(&meta.signer.0).to_vec())));
    serde_json::to_vec(&Meta { signer: Base64Bytes(Vec::new()), name_key, ..meta }).ok()
}

/// The key of a part of a name list.
pub(super) fn list_key(no: SyncNo, part: u64) -> String {
    format!("f/{no}/{part}")
}

/// The key of the record of a worker that a sync may write through.
pub(super) fn reach_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("r/{no}/{worker}")
}

/// … and of one that wrote.
pub(super) fn writer_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("w/{no}/{worker}")
}

/// … and of one that reads the source.
pub(super) fn source_key(no: SyncNo, worker: &WorkerId) -> String {
    format!("o/{no}/{worker}")
}

/// What a record of a worker of a sync says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlaceOf {
    Reach,
    Writer,
    Source,
}

impl PlaceOf {
    fn in_sync(self, sync: &Sync) -> &Boots {
        match self {
            PlaceOf::Reach => &sync.reach,
            PlaceOf::Writer => &sync.writers,
            PlaceOf::Source => &sync.source_roots,
        }
    }

    fn in_sync_mut(self, sync: &mut Sync) -> &mut Boots {
        match self {
            PlaceOf::Reach => &mut sync.reach,
            PlaceOf::Writer => &mut sync.writers,
            PlaceOf::Source => &mut sync.source_roots,
        }
    }
}

/// The sync and the worker of such a key.
fn worker_of(key: &str) -> Option<(SyncNo, WorkerId, PlaceOf)> {
    let (kind, rest) = key.split_once('/')?;
    let (no, worker) = rest.split_once('/')?;
    let place = match kind {
        "r" => PlaceOf::Reach,
        "w" => PlaceOf::Writer,
        "o" => PlaceOf::Source,
        _ => return None,
    };
    Some((SyncNo(no.parse().ok()?), worker.parse().ok()?, place))
}

/// The key of the record of a worker that an operator keeps from new work.
pub(super) fn drain_key(worker: &WorkerId) -> String {
    format!("d/{worker}")
}

/// See [`blake3::derive_key`].
const NAME_KEY_CONTEXT: &str = "longhaul 2026 key of the names of unfinished files";

fn derive_name_key(signer_key: &[u8]) -> [u8; 32] {
    blake3::derive_key(NAME_KEY_CONTEXT, signer_key)
}

/// The key of the record of a file with several names of which one has been brought.
pub(super) fn group_key(no: SyncNo, group: &Digest) -> String {
    format!("g/{no}/{group}")
}

fn group_of(key: &str) -> Option<(SyncNo, Digest)> {
    let (no, group) = key.strip_prefix("g/")?.split_once('/')?;
    Some((SyncNo(no.parse().ok()?), group.parse().ok()?))
}

impl State {
    /// The state that `records` describe; an empty map gives a new one. `seed` must be random and
    /// new at each start: assignment ids are drawn from it.
    ///
    /// # Errors
    /// Records that this program didn't write.
    pub fn load(
        settings: Settings,
        seed: [u8; 32],
        records: &BTreeMap<String, Vec<u8>>,
        now: Now,
    ) -> Result<State, LoadError> {
        let meta: Option<Meta> = records.get(META).map(|v| parse(META, v)).transpose()?;
        if let Some(meta) = meta.as_ref().filter(|m| m.version > VERSION) {
            return Err(LoadError::Later(meta.version));
        }
        let restored = meta.as_ref().is_some_and(|meta| meta.signer.0.is_empty());
        let stored_name_key =
            meta.as_ref().and_then(|meta| meta.name_key.as_ref()?.0[..].try_into().ok());
        let (next_sync, next_task, signer_key, age) = match meta {
            Some(meta) if restored => {
                (meta.next_sync, meta.next_task, Signer::generate()?, meta.age)
            }
            Some(meta) => (meta.next_sync, meta.next_task, meta.signer.0, meta.age),
            None => (1, 1, Signer::generate()?, None),
        };
        let name_key = stored_name_key
            .or(settings.name_key.map(|key| key.0))
            .unwrap_or_else(|| derive_name_key(&signer_key));
        let mut state = State {
            name_key: PartNameKey(name_key),
            settings,
            signer: Signer::from_pkcs8(&signer_key)?,
            signer_key,
            seed,
            draws: 0,
            next_sync,
            next_task,
            syncs: BTreeMap::new(),
            by_id: BTreeMap::new(),
            tasks: BTreeMap::new(),
            leases: Leases::default(),
            workers: Workers::default(),
            pairs: Pairs::default(),
            shares: Default::default(),
            outcomes: Default::default(),
            overlaps: Default::default(),
            isolated: Default::default(),
            clock: Clock::begin(age, now),
            working: BTreeSet::new(),
            delayed: BTreeSet::new(),
            waiting: Waiting::default(),
            windows_of: 0,
            served: 0,
            began_ms: now.mono_ms,
            ticked_ms: None,
            touched: BTreeSet::new(),
            failing: BTreeSet::new(),
            wake: false,
            effects: Vec::new(),
        };
        if restored {
            state.effects.push(Effect::Put(META.to_owned()));
        }
        let of_kind =
            |kind: &'static str| records.iter().filter(move |(key, _)| key.starts_with(kind));
        for (key, value) in of_kind("s/") {
            state.take_sync(parse(key, value)?, now);
        }
        for (key, value) in of_kind("x/") {
            state.take_filter(key, parse(key, value)?)?;
        }
        for (key, value) in of_kind("r/").chain(of_kind("w/")).chain(of_kind("o/")) {
            state.take_worker(key, parse(key, value)?)?;
        }
        for (key, value) in of_kind("d/") {
            state.take_drained(key, parse(key, value)?)?;
        }
        for (key, value) in of_kind("l/") {
            state.take_large(key, parse(key, value)?)?;
        }
        for (key, value) in of_kind("v/") {
            state.take_range(key, value)?;
        }
        for (key, value) in of_kind("p/") {
            state.pairs.0.insert(key.clone(), parse(key, value)?);
        }
        for (key, _) in of_kind("g/") {
            state.take_group(key)?;
        }
        for (key, value) in of_kind("t/") {
            state.take_task(parse(key, value)?, now);
        }
        let numbers: Vec<SyncNo> = state.syncs.keys().copied().collect();
        numbers.iter().for_each(|no| state.register_paths(*no));
        state.touched.extend(numbers);
        Ok(state)
    }

    fn take_sync(&mut self, mut sync: Sync, now: Now) {
        // A worker whose lease was revoked may write for the length of a lease.
        if let Some(lingering) = &mut sync.lingering {
            lingering.until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
        }
        // What earlier versions kept inside the sync's record goes to records of its own with the first commit.
        sync.part_filter();
        let mut old = sync.unwritten().peekable();
        if old.peek().is_some() {
            self.effects.extend([META.to_owned(), sync.key()].map(Effect::Put));
            self.effects.extend(old.map(Effect::Put));
        }
        if !sync.forgotten {
            self.by_id.insert(sync.id.clone(), sync.no);
        }
        self.syncs.insert(sync.no, sync);
    }

    fn take_filter(&mut self, key: &str, filter: FilterSpec) -> Result<(), LoadError> {
        let broken = || LoadError::Broken { key: key.to_owned(), why: "a bad key".to_owned() };
        let no = key.split('/').nth(1).and_then(|no| no.parse().ok()).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(&SyncNo(no)) {
            sync.filter = filter;
        }
        Ok(())
    }

    fn take_worker(&mut self, key: &str, boot: Option<String>) -> Result<(), LoadError> {
        let broken = || LoadError::Broken { key: key.to_owned(), why: "a bad key".to_owned() };
        let (no, worker, place) = worker_of(key).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(&no) {
            place.in_sync_mut(sync).restore(worker, boot);
        }
        Ok(())
    }

    fn take_drained(&mut self, key: &str, drained: DrainInfo) -> Result<(), LoadError> {
        let broken = || LoadError::Broken { key: key.to_owned(), why: "a bad key".to_owned() };
        let worker = key.strip_prefix("d/").and_then(|id| id.parse().ok()).ok_or_else(broken)?;
        self.workers.drain(&worker, Some(drained));
        Ok(())
    }

    fn take_large(&mut self, key: &str, mut large: Large) -> Result<(), LoadError> {
        if large.range_length == 0 || large.ranges() > MAX_RANGES {
            let why = format!("{} bytes in ranges of {}", large.size, large.range_length);
            return Err(LoadError::Broken { key: key.to_owned(), why });
        }
        large.done = vec![None; large.ranges() as usize];
        if let Some(sync) = self.syncs.get_mut(&large.sync) {
            sync.blob_bytes = sync.blob_bytes.saturating_add(large.blob_bytes);
            sync.larges.insert(large.id, large);
        }
        Ok(())
    }

    fn take_range(&mut self, key: &str, value: &[u8]) -> Result<(), LoadError> {
        let broken = |why: &str| LoadError::Broken { key: key.to_owned(), why: why.to_owned() };
        let mut parts = key.split('/').skip(1).map(str::parse::<u64>);
        let mut number = || parts.next().and_then(Result::ok).ok_or_else(|| broken("a bad key"));
        let (sync, file, index) = (SyncNo(number()?), TaskId(number()?), number()?);
        let digest = value.try_into().map(Digest).map_err(|_| broken("not 32 bytes"))?;
        let large = self.syncs.get_mut(&sync).and_then(|s| s.larges.get_mut(&file));
        // A range of a file that is gone belongs to nobody.
        let Some(large) = large else { return Ok(()) };
        let slot = large.done.get_mut(index as usize).ok_or_else(|| broken("no such range"))?;
        *slot = Some(digest);
        large.done_count += 1;
        Ok(())
    }

    fn take_group(&mut self, key: &str) -> Result<(), LoadError> {
        let broken = || LoadError::Broken { key: key.to_owned(), why: "a bad key".to_owned() };
        let (no, group) = group_of(key).ok_or_else(broken)?;
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.groups.insert(group);
        }
        Ok(())
    }

    fn take_task(&mut self, mut task: Task, now: Now) {
        if !self.syncs.contains_key(&task.sync) {
            return;
        }
        task.since_ms = now.mono_ms;
        match &mut task.state {
            TaskState::Leased(lease) => {
                // The agent goes on with it; it has a whole lease to tell us so.
                lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
                lease.since_ms = now.mono_ms;
                self.leases.insert(lease, task.id);
            }
            // Who may still be writing may do so for a whole lease.
            TaskState::Delayed { until_ms }
                if matches!(task.spec, TaskSpec::Discard | TaskSpec::CleanUp) =>
            {
                *until_ms = now.mono_ms.saturating_add(self.settings.lease_ms);
            }
            TaskState::Delayed { until_ms } => *until_ms = now.mono_ms,
            TaskState::Ready => {}
        }
        self.take_in(task);
    }

    /// The value of a record, as it is now; `None` if it is gone.
    pub fn record(&self, key: &str) -> Option<Vec<u8>> {
        if key == META {
            let meta = Meta {
                version: VERSION,
                next_sync: self.next_sync,
                next_task: self.next_task,
                signer: Base64Bytes(self.signer_key.clone()),
                name_key: Some(Base64Bytes(self.name_key.0.to_vec())),
                age: Some(self.clock.stored().clone()),
            };
            return serde_json::to_vec(&meta).ok();
        }
        if let Some(pair) = self.pairs.0.get(key) {
            return serde_json::to_vec(pair).ok();
        }
        if let Some(worker) = key.strip_prefix("d/") {
            let drained = self.workers.drained(&worker.parse().ok()?)?;
            return serde_json::to_vec(drained).ok();
        }
        if let Some((no, group)) = group_of(key) {
            let known = self.syncs.get(&no).is_some_and(|sync| sync.groups.contains(&group));
            return known.then(|| b"true".to_vec());
        }
        if let Some((no, worker, place)) = worker_of(key) {
            let places = place.in_sync(self.syncs.get(&no)?);
            return serde_json::to_vec(places.get(&worker)?).ok();
        }
        let mut parts = key.split('/');
        let kind = parts.next()?;
        let mut number = || parts.next()?.parse::<u64>().ok();
        let sync = self.syncs.get(&SyncNo(number()?))?;
        match kind {
            "s" => serde_json::to_vec(sync).ok(),
            "x" => sync.filter_key().and_then(|_| serde_json::to_vec(&sync.filter).ok()),
            "t" => serde_json::to_vec(self.tasks.get(&TaskId(number()?))?).ok(),
            "l" => serde_json::to_vec(sync.larges.get(&TaskId(number()?))?).ok(),
            "v" => {
                let large = sync.larges.get(&TaskId(number()?))?;
                large.done.get(number()? as usize)?.map(|digest| digest.0.to_vec())
            }
            _ => None,
        }
    }

    /// The keys of all records.
    pub fn record_keys(&self) -> Vec<String> {
        let mut keys = vec![META.to_owned()];
        keys.extend(self.syncs.values().map(Sync::key));
        keys.extend(self.tasks.values().map(Task::key));
        keys.extend(self.pairs.0.keys().cloned());
        keys.extend(self.workers.all_drained().map(drain_key));
        for sync in self.syncs.values() {
            keys.extend(sync.filter_key());
            keys.extend(sync.worker_keys());
            keys.extend(sync.groups.iter().map(|group| group_key(sync.no, group)));
        }
        for large in self.syncs.values().flat_map(|s| s.larges.values()) {
            keys.push(large.key());
            let done = large.done.iter().enumerate().filter(|(_, d)| d.is_some());
            keys.extend(done.map(|(index, _)| large.value_key(index as u64)));
        }
        keys
    }
}

fn parse<T: for<'de> Deserialize<'de>>(key: &str, value: &[u8]) -> Result<T, LoadError> {
    serde_json::from_slice(value).map_err(|e| {
        // It quotes from the record, which may be long and hold anything.
        let why: String = e.to_string().chars().take(300).collect();
        LoadError::Broken { key: key.to_owned(), why: escape_bytes(why.as_bytes()) }
    })
}
