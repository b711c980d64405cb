//! Workers as their heartbeats describe them. Only drain orders are stored: a restarted master
//! learns the rest within a heartbeat interval.

use super::event::Now;
use super::place::Place;
use super::storage_table::StorageTable;
use super::storage_types::StorageNo;
use super::worker_health::WorkerHealth;
use super::worker_rank::rank;
use crate::wire::task::PoolMember;
use crate::wire::worker::{
    DrainInfo, PROTOCOL_VERSION, UnavailablePath, WorkerHeartbeat, WorkerState, WorkerStatus,
    boot_and_root,
};
use crate::wire::worker_selector::WorkerSelector;
use crate::wire::{AbsPath, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Maximum number of storage paths, workers and selectors that a reason names of each.
const MAX_NAMED: usize = 5;
/// Maximum number of items of a list in a text.
pub(super) const MAX_LISTED: usize = 6;

/// Lists the first of `items`, and the number of the others.
pub(super) fn list_some(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(MAX_LISTED);
    let listed = items.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) last_heartbeat: WorkerHeartbeat,
    /// On the scheduler's clock.
    pub(super) last_seen_ms: u64,
    /// In milliseconds since 1970.
    pub(super) last_seen_wall_ms: i64,
    /// When the first heartbeat of its process arrived, on the scheduler's clock.
    pub(super) process_since_ms: u64,
    /// As of the last tick.
    pub(super) is_active: bool,
    pub(super) previous_incarnation: Option<String>,
    /// Duplicate incarnations under this id and the time of their last heartbeat on the scheduler's
    /// clock. They are refused while this process is alive.
    pub(super) refused_incarnations: BTreeMap<String, u64>,
    pub(super) drained: Option<DrainInfo>,
    /// The length of the heartbeat as JSON, in bytes.
    pub(super) kept_bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct WorkerRegistry {
    by_id: BTreeMap<WorkerId, Worker>,
    pub(super) storages: StorageTable,
    /// By boot id.
    by_boot: HashMap<String, BTreeSet<WorkerId>>,
    /// Drain orders, also for workers without a heartbeat yet.
    drained: BTreeMap<WorkerId, DrainInfo>,
    /// Workers without a heartbeat for longer than the time-out.
    silent: BTreeSet<WorkerId>,
    /// Of all workers.
    kept_bytes: usize,
    /// When a search for workers that may go last had no result, on the scheduler's clock.
    failed_search_ms: Option<u64>,
    pub(super) health: WorkerHealth,
    /// Changes when the set of workers that accept work changes.
    version: u64,
    /// Changes when other workers are known, or when one has other labels.
    selection_version: u64,
}

/// The longest of `paths` that holds `path`.
fn longest_prefix<'a>(paths: &'a [AbsPath], path: &AbsPath) -> Option<&'a AbsPath> {
    paths.iter().filter(|p| p.contains(path)).max_by_key(|p| p.as_bytes().len())
}

/// The unavailable storage path of a worker that holds `path`. A path below an available one may
/// lie in another, unavailable one.
pub(super) fn unavailable_path<'a>(
    heartbeat: &'a WorkerHeartbeat,
    path: &AbsPath,
) -> Option<&'a UnavailablePath> {
    let length = |one: &&UnavailablePath| one.path.as_bytes().len();
    let deepest_lost = heartbeat
        .unavailable_paths
        .iter()
        .filter(|one| one.path.contains(path))
        .max_by_key(length)?;
    let deepest = longest_prefix(&heartbeat.storage_paths, path).map(|p| p.as_bytes().len());
    (deepest < Some(length(&deepest_lost))).then_some(deepest_lost)
}

impl Worker {
    /// The storage path through which it uses `path`, if that is available.
    pub(super) fn available_root(&self, path: &AbsPath) -> Option<&AbsPath> {
        let heartbeat = &self.last_heartbeat;
        let root = longest_prefix(&heartbeat.storage_paths, path)?;
        let is_available =
            heartbeat.unavailable_paths.is_empty() || unavailable_path(heartbeat, path).is_none();
        is_available.then_some(root)
    }

    /// The storage path that holds `path`, available or not.
    pub(super) fn root(&self, path: &AbsPath) -> Option<&AbsPath> {
        let heartbeat = &self.last_heartbeat;
        let lost = unavailable_path(heartbeat, path).map(|lost| &lost.path);
        lost.or_else(|| longest_prefix(&heartbeat.storage_paths, path))
    }

    /// Identifies where writes below `path` are until a flush: the kernel with the page cache, and
    /// the open storage root ([`BootIds`](super::boot_ids::BootIds)).
    pub(super) fn boot_and_root(&self, path: &AbsPath) -> Option<String> {
        let boot = self.last_heartbeat.boot_id.as_ref()?;
        let storage = longest_prefix(&self.last_heartbeat.storage_paths, path);
        match storage.and_then(|path| self.last_heartbeat.root_ids.get(&path.to_string())) {
            Some(root) => Some(boot_and_root(boot, root)),
            None => Some(boot.clone()),
        }
    }

    /// Whether one of `selectors` selects it, or there are none.
    fn is_selected(&self, selectors: &[WorkerSelector]) -> bool {
        let WorkerHeartbeat { worker_id, labels, .. } = &self.last_heartbeat;
        selectors.is_empty() || selectors.iter().any(|one| one.selects(worker_id, labels))
    }

    /// Whether it reads the options and limits of an assignment and a ticket. Agents of the predecessor ignore them:
    /// they would write in a dry run, and copy excluded entries.
    pub(super) fn supports_options(&self) -> bool {
        self.last_heartbeat.protocol == Some(PROTOCOL_VERSION)
    }

    /// Whether the process that was known at `since_ms`, or one before it, has sent something after that.
    pub(super) fn was_heard_since(&self, since_ms: u64) -> bool {
        self.last_seen_ms > since_ms && self.process_since_ms <= since_ms
    }

    /// Whether its process has sent one heartbeat only, and nothing after it.
    pub(super) fn was_heard_once(&self) -> bool {
        self.last_seen_ms == self.process_since_ms
    }

    pub(super) fn accepts_work(&self) -> bool {
        self.is_ready() && self.drained.is_none()
    }

    /// Whether it could get work. A drained one still flushes.
    pub(super) fn is_ready(&self) -> bool {
        self.is_active && self.last_heartbeat.status.can_accept_work()
    }

    /// Whether its process ended regularly.
    fn has_stopped(&self) -> bool {
        self.last_heartbeat.status == WorkerStatus::Stopped
    }

    /// Whether it is inactive, or draining without tasks.
    pub(super) fn has_left(&self) -> bool {
        let heartbeat = &self.last_heartbeat;
        let idle = heartbeat.assignments.is_empty() && heartbeat.incoming_requests == 0;
        !self.is_active || (heartbeat.status == WorkerStatus::Draining && idle)
    }

    /// Its displayed state, with `in_flight` tasks; `written`: others may write through it.
    pub(super) fn state(&self, in_flight: u64, written: bool) -> WorkerState {
        let is_draining =
            self.drained.is_some() || self.last_heartbeat.status == WorkerStatus::Draining;
        match self.is_active {
            _ if self.has_stopped() => WorkerState::Stopped,
            false => WorkerState::Inactive,
            true if !is_draining => WorkerState::Active,
            true if in_flight > 0 || written => WorkerState::Draining,
            true => WorkerState::Drained,
        }
    }

    /// Its state, or why its storage path does not serve `path`.
    fn availability(&self, path: &AbsPath) -> String {
        if let Some(UnavailablePath { path, reason }) = unavailable_path(&self.last_heartbeat, path)
        {
            return format!("{path} is unavailable: {reason}");
        }
        match &self.drained {
            Some(drained) => drained.describe(),
            None => self.last_heartbeat.status.as_str().to_owned(),
        }
    }

    pub(super) fn pool_member(&self) -> PoolMember {
        PoolMember {
            worker_id: self.last_heartbeat.worker_id.clone(),
            status: self.last_heartbeat.status,
            storage_paths: self.last_heartbeat.storage_paths.clone(),
            data_plane_endpoints: self.last_heartbeat.data_plane_endpoints.clone(),
        }
    }

    /// Why it gets no work, if anything but its failures is the reason.
    pub(super) fn idle_reason(&self, silent_ms: u64) -> Option<String> {
        let heartbeat = &self.last_heartbeat;
        if self.has_stopped() {
            Some("its agent was stopped".to_owned())
        } else if !self.is_active {
            Some(format!("no heartbeat for {} s", silent_ms / 1000))
        } else if let Some(drained) = &self.drained {
            Some(drained.describe())
        } else if !heartbeat.unavailable_paths.is_empty()
            || !heartbeat.unavailable_endpoints.is_empty()
        {
            let paths = heartbeat.unavailable_paths.iter();
            let paths = paths.map(|one| format!("{} is unavailable: {}", one.path, one.reason));
            let endpoints = heartbeat.unavailable_endpoints.iter();
            let endpoints =
                endpoints.map(|one| format!("{} is unavailable: {}", one.endpoint, one.reason));
            Some(paths.chain(endpoints).collect::<Vec<_>>().join("; "))
        } else if !heartbeat.status.can_accept_work() {
            Some(format!("its status is {}", heartbeat.status.as_str()))
        } else if !self.refused_incarnations.is_empty() {
            Some("two agents run under this id, and one is refused: stop one of them".to_owned())
        } else if heartbeat.storage_paths.is_empty() {
            Some("it has no storage paths".to_owned())
        } else {
            None
        }
    }
}

impl WorkerRegistry {
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.by_id.get(id)
    }

    /// Keeps the outcomes of known workers only. True: a probe is due.
    pub(super) fn tick_health(&mut self, now: Now) -> bool {
        self.health.prune_and_check_probes(|id| self.by_id.contains_key(id), now)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Worker> {
        self.by_id.values()
    }

    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// The length of all heartbeats as JSON, in bytes.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    pub(super) fn note_failed_search(&mut self, now: Now) {
        self.failed_search_ms = Some(now.mono_ms);
    }

    /// Whether a search for workers that may go had no result within the last `interval_ms`.
    pub(super) fn has_search_failed_since(&self, now: Now, interval_ms: u64) -> bool {
        self.failed_search_ms.is_some_and(|at| now.mono_ms.saturating_sub(at) < interval_ms)
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn selection_version(&self) -> u64 {
        self.selection_version
    }

    pub(super) fn drain_order(&self, id: &WorkerId) -> Option<&DrainInfo> {
        self.drained.get(id)
    }

    pub(super) fn drained_ids(&self) -> impl Iterator<Item = &WorkerId> {
        self.drained.keys()
    }

    pub(super) fn set_drained(&mut self, id: &WorkerId, drained: Option<DrainInfo>) {
        match &drained {
            Some(drained) => drop(self.drained.insert(id.clone(), drained.clone())),
            None => drop(self.drained.remove(id)),
        }
        if let Some(worker) = self.by_id.get_mut(id) {
            worker.drained = drained;
            self.version += 1;
        }
    }

    /// Adds a worker or replaces its heartbeat.
    pub(super) fn insert(&mut self, mut worker: Worker) {
        let id = worker.last_heartbeat.worker_id.clone();
        match worker.is_active {
            true => self.silent.remove(&id),
            false => self.silent.insert(id.clone()),
        };
        worker.drained = self.drained.get(&id).cloned();
        let same = self.by_id.get(&id).is_some_and(|known| {
            let (old, new) = (&known.last_heartbeat, &worker.last_heartbeat);
            old.storage_paths == new.storage_paths && old.boot_id == new.boot_id
        });
        let is_selected_alike = self.by_id.get(&id).is_some_and(|known| {
            known.last_heartbeat.labels == worker.last_heartbeat.labels
                && known.is_active == worker.is_active
        });
        self.selection_version += u64::from(!is_selected_alike);
        let able = |w: &Worker| {
            (w.accepts_work(), w.is_active, w.last_heartbeat.slots, w.last_heartbeat.protocol)
        };
        let as_able = self.by_id.get(&id).is_some_and(|known| able(known) == able(&worker));
        self.version += u64::from(!(same && as_able));
        if same {
            self.kept_bytes += worker.kept_bytes;
            let known = self.by_id.insert(id, worker);
            self.kept_bytes -= known.map_or(0, |known| known.kept_bytes);
            return;
        }
        self.remove_from_index(&id);
        self.kept_bytes += worker.kept_bytes;
        if let Some(boot) = &worker.last_heartbeat.boot_id {
            self.by_boot.entry(boot.clone()).or_default().insert(id.clone());
        }
        self.by_id.insert(id, worker);
    }

    /// The caller must not change indexed fields.
    pub(super) fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.by_id.get_mut(id)
    }

    /// Removes a worker, but not its drain order.
    pub(super) fn remove(&mut self, id: &WorkerId) {
        self.silent.remove(id);
        self.version += 1;
        self.selection_version += 1;
        self.storages.forget(id);
        self.remove_from_index(id);
    }

    pub(super) fn remove_from_index(&mut self, id: &WorkerId) {
        let Some(worker) = self.by_id.remove(id) else { return };
        self.kept_bytes -= worker.kept_bytes;
        let boot = worker.last_heartbeat.boot_id.as_ref();
        if let Some((boot, of)) = boot.and_then(|boot| Some((boot, self.by_boot.get_mut(boot)?))) {
            of.remove(id);
            if of.is_empty() {
                self.by_boot.remove(boot);
            }
        }
    }

    /// True: it had been silent.
    pub(super) fn mark_seen(&mut self, id: &WorkerId, now: Now) -> bool {
        let Some(worker) = self.by_id.get_mut(id).filter(|worker| !worker.has_stopped()) else {
            return false;
        };
        worker.last_seen_ms = now.mono_ms;
        worker.last_seen_wall_ms = now.wall_ms;
        self.storages.set_active(id, true);
        let back = !std::mem::replace(&mut worker.is_active, true);
        self.silent.remove(id);
        self.version += u64::from(back);
        self.selection_version += u64::from(back);
        back
    }

    /// Marks workers without a heartbeat for `timeout_ms` as inactive and removes those without one
    /// for `forget_ms`; `slept_ms` is the time that the master was suspended.
    pub(super) fn mark_silent(&mut self, now: Now, slept_ms: u64, timeout_ms: u64, forget_ms: u64) {
        let silent = |w: &Worker| now.mono_ms.saturating_sub(w.last_seen_ms);
        let gone = self.by_id.iter().filter(|(_, w)| silent(w) >= forget_ms);
        let gone: Vec<WorkerId> = gone.map(|(id, _)| id.clone()).collect();
        self.version += gone.len() as u64;
        gone.iter().for_each(|id| self.remove(id));
        for (id, worker) in &mut self.by_id {
            worker.last_seen_ms = worker.last_seen_ms.saturating_add(slept_ms).min(now.mono_ms);
            let silent = silent(worker);
            if worker.is_active && silent > timeout_ms {
                tracing::warn!(worker = %id, "no heartbeat for {} s", silent / 1000);
                worker.is_active = false;
                self.storages.set_active(id, false);
                self.silent.insert(id.clone());
                self.version += 1;
                self.selection_version += 1;
            }
        }
    }

    pub(super) fn silent(&self) -> impl Iterator<Item = &Worker> {
        self.silent.iter().filter_map(|id| self.by_id.get(id))
    }

    /// The storages that a worker sees, available or not.
    pub(super) fn storages_of(&self, id: &WorkerId) -> Vec<StorageNo> {
        let Some(worker) = self.by_id.get(id) else { return Vec::new() };
        let heartbeat = &worker.last_heartbeat;
        let lost = heartbeat.unavailable_paths.iter().map(|lost| &lost.path);
        let roots = heartbeat.storage_paths.iter().chain(lost);
        let mut found: Vec<_> =
            roots.filter_map(|root| self.storages.storage_of(id, root)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether a worker sees the storage of a place and can use it there.
    pub(super) fn serves(&self, worker: &Worker, place: Place<'_>) -> bool {
        let Some(storage) = place.storage else { return false };
        let root = worker.available_root(place.path);
        let id = &worker.last_heartbeat.worker_id;
        root.is_some_and(|root| self.storages.storage_of(id, root) == Some(storage))
    }

    /// Whether the storage path of a worker at a place leads to its storage, available or not.
    pub(super) fn sees(&self, worker: &Worker, place: Place<'_>) -> bool {
        let Some(storage) = place.storage else { return false };
        let id = &worker.last_heartbeat.worker_id;
        let root = worker.root(place.path);
        root.is_some_and(|root| self.storages.storage_of(id, root) == Some(storage))
    }

    /// Workers that see a place, available or not.
    pub(super) fn seeing<'a>(
        &'a self,
        place: Place<'a>,
    ) -> impl Iterator<Item = &'a Worker> + use<'a> {
        let list = place.storage.map_or(&[][..], |storage| self.storages.members(storage));
        let known = list.iter().filter_map(|(_, id)| self.by_id.get(id));
        known.filter(move |worker| self.sees(worker, place))
    }

    /// Workers that serve a place, ordered by rank, starting at `from`.
    fn serving<'a>(
        &'a self,
        place: Place<'a>,
        from: u64,
    ) -> impl Iterator<Item = &'a Worker> + use<'a> {
        let list = place.storage.map_or(&[][..], |storage| self.storages.members(storage));
        let root = place.storage.and_then(|storage| self.storages.path(storage));
        let (before, behind) = list.split_at(list.partition_point(|(at, _)| *at < from));
        let known = behind.iter().chain(before).filter_map(|(_, id)| self.by_id.get(id));
        // A worker uses the innermost of its storage paths, which may be of another storage.
        known.filter(move |w| root.is_some() && w.available_root(place.path) == root)
    }

    /// Workers that serve a place and accept work.
    pub(super) fn accepting<'a>(
        &'a self,
        place: Place<'a>,
    ) -> impl Iterator<Item = &'a Worker> + use<'a> {
        self.serving(place, 0).filter(|w| w.accepts_work())
    }

    /// Active workers that serve a place and can be contacted (a stopping one still receives, a
    /// drained one does not), starting with those assigned to the worker `of` at this attempt. Each
    /// worker starts elsewhere, always at the same place: so a few are enough for each, and all are
    /// used.
    pub(super) fn reachable<'a>(
        &'a self,
        place: Place<'a>,
        of: &WorkerId,
        attempt: u32,
    ) -> impl Iterator<Item = &'a Worker> + use<'a> {
        self.serving(place, rank(of, attempt)).filter(|w| w.is_active && w.drained.is_none())
    }

    pub(super) fn with_boot(&self, boot: &str) -> impl Iterator<Item = &Worker> {
        let ids = self.by_boot.get(boot).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id))
    }

    /// The id of a storage and its workers.
    pub(super) fn describe_storage(&self, no: StorageNo) -> String {
        let id = self.storages.id(no).map_or_else(|| no.0.to_string(), ToString::to_string);
        let mut workers: Vec<&WorkerId> =
            self.storages.members(no).iter().map(|(_, id)| id).collect();
        workers.sort_unstable();
        let state = |id: &WorkerId| match self.get(id).is_some_and(|w| w.is_active) {
            true => id.to_string(),
            false => format!("{id}, inactive"),
        };
        format!("{id} ({})", list_some(workers.into_iter().map(state)))
    }

    /// Why no worker that `selectors` select serves a place, with the nearest storage paths.
    pub(super) fn explain_unserved(
        &self,
        place: Place<'_>,
        role: &str,
        selectors: &[WorkerSelector],
    ) -> String {
        let path = place.path;
        let address = describe_address(selectors, path);
        let is_meant = |w: &Worker| match place.storage {
            Some(_) => self.sees(w, place),
            None => w.is_selected(selectors),
        };
        let active = || self.by_id.values().filter(|w| w.is_active && w.root(path).is_some());
        let idle: Vec<String> = active()
            .filter(|w| is_meant(w))
            .map(|w| {
                let id = &w.last_heartbeat.worker_id;
                let contradiction = w.root(path).and_then(|at| self.storages.contradiction(id, at));
                let why = contradiction.map_or_else(|| w.availability(path), str::to_owned);
                format!("{id} ({why})")
            })
            .collect();
        if !idle.is_empty() {
            return format!(
                "no worker that serves the {role} path {address} takes work: {}",
                idle.join(", ")
            );
        }
        let mut near: Vec<(usize, bool, String, String)> = Vec::new();
        for worker in self.by_id.values().filter(|w| selectors.is_empty() || is_meant(w)) {
            for storage in &worker.last_heartbeat.storage_paths {
                let shared = storage.shared_components(path);
                let note = if worker.is_active { "" } else { ", inactive" };
                let label = format!("{}{note}", worker.last_heartbeat.worker_id);
                near.push((shared, worker.is_active, storage.to_string(), label));
            }
        }
        near.sort_by(|a, b| (b.0, b.1, &a.2, &a.3).cmp(&(a.0, a.1, &b.2, &b.3)));
        let listed: Vec<String> = near
            .iter()
            .take(MAX_NAMED)
            .map(|(_, _, path, label)| format!("{path} ({label})"))
            .collect();
        let mut why = format!("no active worker serves the {role} path {address}");
        match (listed.is_empty(), selectors.is_empty()) {
            (true, true) => why.push_str(": no worker has reported yet"),
            (true, false) => why.push_str(": no selected worker has a storage path"),
            (false, _) => why += &format!("; nearest storage paths: {}", listed.join(", ")),
        }
        let others: Vec<&str> =
            active().take(MAX_NAMED).map(|w| w.last_heartbeat.worker_id.as_str()).collect();
        if !selectors.is_empty() && !others.is_empty() {
            why += &format!("; workers with this path that are not meant: {}", others.join(", "));
        }
        why
    }
}

/// The address `[WORKERS:]/path`, with the first of many selectors.
fn describe_address(selectors: &[WorkerSelector], path: &AbsPath) -> String {
    let mut named: Vec<String> =
        selectors.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if selectors.len() > MAX_NAMED {
        named.push(format!("+{}", selectors.len() - MAX_NAMED));
    }
    if named.is_empty() { path.to_string() } else { format!("{}:{path}", named.join(",")) }
}
