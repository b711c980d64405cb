//! Workers as their heartbeats describe them. Of this only what operators ordered is stored: a restarted
//! master learns the rest again within a heartbeat.

use super::Now;
use super::boots::ROOT_MARK;
use crate::wire::task::PoolMember;
use crate::wire::worker::{
    DrainInfo, UnavailablePath, WorkerHeartbeat, WorkerState, WorkerStatus, WorkerView,
};
use crate::wire::{AbsPath, WorkerId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A worker.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    /// What it said last.
    pub(super) said: WorkerHeartbeat,
    /// When, on the scheduler's clock.
    pub(super) heard_ms: u64,
    /// When, for people.
    pub(super) heard_wall_ms: i64,
    /// Whether it was active at the last look.
    pub(super) active: bool,
    /// The incarnation that it had before this one.
    pub(super) before: Option<String>,
    /// Incarnations that want to run beside this one, under its id, and when each said so last, on the
    /// scheduler's clock. Each would take the other's work away, so they are refused while this one lives.
    pub(super) refused: BTreeMap<String, u64>,
    /// An operator keeps it from new work.
    pub(super) drained: Option<DrainInfo>,
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    known: BTreeMap<WorkerId, Worker>,
    /// By a storage path, each list sorted: an order of chance that stays the same.
    at_path: HashMap<Vec<u8>, Vec<(u64, WorkerId)>>,
    /// By the boot of their kernel.
    of_boot: HashMap<String, BTreeSet<WorkerId>>,
    /// Who is kept from new work by an operator; also those that have not been heard of yet.
    drained: BTreeMap<WorkerId, DrainInfo>,
    /// Workers that are known and were not heard of for longer than the time-out.
    silent: BTreeSet<WorkerId>,
    /// Counts what changes who may be given work.
    version: u64,
}

/// The place of a worker among others: of chance, and always the same.
fn place(id: &WorkerId, salt: u32) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_str().as_bytes()).update(&salt.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// How long the longest of `paths` is that holds `path`.
fn deepest(paths: &[AbsPath], path: &AbsPath) -> Option<usize> {
    paths.iter().filter(|p| p.contains(path)).map(|p| p.as_bytes().len()).max()
}

/// The storage path of a worker that holds `path` and that it does not serve now, with the reason. A path below
/// one that is served may lie in another one that is not.
pub(super) fn unavailable<'a>(
    said: &'a WorkerHeartbeat,
    path: &AbsPath,
) -> Option<&'a UnavailablePath> {
    let length = |one: &&UnavailablePath| one.path.as_bytes().len();
    let deepest_lost =
        said.unavailable_paths.iter().filter(|one| one.path.contains(path)).max_by_key(length)?;
    (deepest(&said.storage_paths, path) < Some(length(&deepest_lost))).then_some(deepest_lost)
}

impl Worker {
    /// Whether one of its storage paths holds `path`.
    pub(super) fn holds(&self, path: &AbsPath) -> bool {
        self.said.storage_paths.iter().any(|s| s.contains(path))
            && (self.said.unavailable_paths.is_empty() || unavailable(&self.said, path).is_none())
    }

    /// Where what it writes below `path` is until it is flushed: the kernel that has it in its cache, and the
    /// storage root that the worker has open ([`Boots`](super::boots::Boots)).
    pub(super) fn place_of_writes(&self, path: &AbsPath) -> Option<String> {
        let boot = self.said.boot_id.as_ref()?;
        match self.root_id(path) {
            Some(root) => Some(format!("{boot}{ROOT_MARK}{root}")),
            None => Some(boot.clone()),
        }
    }

    /// The id of the storage root that it has open for `path`.
    pub(super) fn root_id(&self, path: &AbsPath) -> Option<&String> {
        let paths = self.said.storage_paths.iter().filter(|p| p.contains(path));
        let storage = paths.max_by_key(|p| p.as_bytes().len())?;
        self.said.root_ids.get(&storage.to_string())
    }

    /// Whether it knows what stands in the options of an assignment and a ticket. Who does not would do
    /// without: write in a dry run, keep what is to be left out.
    pub(super) fn knows_options(&self) -> bool {
        self.said.protocol.is_some_and(|protocol| protocol >= 2)
    }

    /// Whether it keeps to limits on what it sends.
    pub(super) fn knows_limits(&self) -> bool {
        self.said.protocol.is_some_and(|protocol| protocol >= 3)
    }

    /// Whether it may be given work.
    pub(super) fn takes_work(&self) -> bool {
        self.can_work() && self.drained.is_none()
    }

    /// Whether it could be given work. One that is drained still flushes what was written.
    pub(super) fn can_work(&self) -> bool {
        self.active && self.said.status.can_accept_work()
    }

    /// Whether its process has ended as it should.
    pub(super) fn has_stopped(&self) -> bool {
        self.said.status == WorkerStatus::Stopped
    }

    /// Whether it is gone, or goes and has ended all that it had.
    pub(super) fn is_gone(&self) -> bool {
        let said = &self.said;
        let idle = said.assignments.is_empty() && said.incoming_requests == 0;
        !self.active || (said.status == WorkerStatus::Draining && idle)
    }

    /// Whether an operator, or its own end, keeps it from new work.
    fn drains(&self) -> bool {
        self.drained.is_some() || self.said.status == WorkerStatus::Draining
    }

    /// How it stands, where it has `in_flight` tasks and others may (`written`) write through it.
    pub(super) fn state(&self, in_flight: u64, written: bool) -> WorkerState {
        match self.active {
            _ if self.has_stopped() => WorkerState::Stopped,
            false => WorkerState::Inactive,
            true if !self.drains() => WorkerState::Active,
            true if in_flight > 0 || written => WorkerState::Draining,
            true => WorkerState::Drained,
        }
    }

    /// What stands in its way, or its state, for people who want it to work at `path`.
    fn standing(&self, path: &AbsPath) -> String {
        if let Some(UnavailablePath { path, reason }) = unavailable(&self.said, path) {
            return format!("{path} is unavailable: {reason}");
        }
        match &self.drained {
            Some(drained) => drained.describe(),
            None => self.said.status.as_str().to_owned(),
        }
    }

    /// How assignments list it.
    pub(super) fn member(&self) -> PoolMember {
        PoolMember {
            worker_id: self.said.worker_id.clone(),
            status: self.said.status,
            storage_paths: self.said.storage_paths.clone(),
            data_plane_endpoints: self.said.data_plane_endpoints.clone(),
        }
    }

    /// How operators see it.
    pub(super) fn view(
        &self,
        (in_flight, written): (u64, bool),
        syncs: u64,
        silent_ms: u64,
    ) -> WorkerView {
        let said = &self.said;
        let reason = if self.has_stopped() {
            Some("its agent was stopped".to_owned())
        } else if !self.active {
            Some(format!("no heartbeat for {} s", silent_ms / 1000))
        } else if let Some(drained) = &self.drained {
            Some(drained.describe())
        } else if !said.unavailable_paths.is_empty() || !said.unavailable_endpoints.is_empty() {
            let paths = said.unavailable_paths.iter();
            let paths = paths.map(|one| format!("{} is unavailable: {}", one.path, one.reason));
            let endpoints = said.unavailable_endpoints.iter();
            let endpoints =
                endpoints.map(|one| format!("{} is unavailable: {}", one.endpoint, one.reason));
            Some(paths.chain(endpoints).collect::<Vec<_>>().join("; "))
        } else if !said.status.can_accept_work() {
            Some(format!("its status is {}", said.status.as_str()))
        } else if !self.refused.is_empty() {
            Some("two agents run under this id, and one is refused: stop one of them".to_owned())
        } else if said.storage_paths.is_empty() {
            Some("it has no storage paths".to_owned())
        } else {
            None
        };
        WorkerView {
            worker_id: said.worker_id.clone(),
            status: if self.drained.is_some() { WorkerStatus::Draining } else { said.status },
            state: self.state(in_flight, written),
            active: self.active,
            last_heartbeat: Timestamp::from_millisecond(self.heard_wall_ms).unwrap_or_default(),
            storage_paths: {
                let lost = said.unavailable_paths.iter().map(|one| &one.path);
                said.storage_paths.iter().chain(lost).cloned().collect()
            },
            data_plane_endpoints: said.data_plane_endpoints.clone(),
            control_plane_address: said.control_plane_address.clone(),
            free_bytes: said.free_bytes.clone(),
            in_flight,
            receiving: if self.active { said.incoming_requests } else { 0 },
            syncs,
            slots: said.slots,
            agent_version: said.agent_version.clone(),
            reason,
            nics: said.nics.clone(),
            unavailable_paths: said.unavailable_paths.clone(),
            unavailable_endpoints: said.unavailable_endpoints.clone(),
            drained: self.drained.clone(),
        }
    }
}

impl Workers {
    /// A worker.
    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.known.get(id)
    }

    /// All, in order of their ids.
    pub(super) fn all(&self) -> impl Iterator<Item = &Worker> {
        self.known.values()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Another value says that others may be given work than before.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Why an operator keeps a worker from new work.
    pub(super) fn drained(&self, id: &WorkerId) -> Option<&DrainInfo> {
        self.drained.get(id)
    }

    /// All that are.
    pub(super) fn all_drained(&self) -> impl Iterator<Item = &WorkerId> {
        self.drained.keys()
    }

    /// Keeps a worker from new work, or no longer.
    pub(super) fn drain(&mut self, id: &WorkerId, drained: Option<DrainInfo>) {
        match &drained {
            Some(drained) => drop(self.drained.insert(id.clone(), drained.clone())),
            None => drop(self.drained.remove(id)),
        }
        if let Some(worker) = self.known.get_mut(id) {
            worker.drained = drained;
            self.version += 1;
        }
    }

    /// Takes over what a worker said.
    pub(super) fn insert(&mut self, mut worker: Worker) {
        let id = worker.said.worker_id.clone();
        match worker.active {
            true => self.silent.remove(&id),
            false => self.silent.insert(id.clone()),
        };
        worker.drained = self.drained.get(&id).cloned();
        let same = self.known.get(&id).is_some_and(|known| {
            let (old, new) = (&known.said, &worker.said);
            old.storage_paths == new.storage_paths && old.boot_id == new.boot_id
        });
        let able = |w: &Worker| (w.takes_work(), w.active, w.said.slots, w.said.protocol);
        let as_able = self.known.get(&id).is_some_and(|known| able(known) == able(&worker));
        self.version += u64::from(!(same && as_able));
        if same {
            self.known.insert(id, worker);
            return;
        }
        self.unfile(&id);
        let filed = (place(&id, 0), id.clone());
        for path in &worker.said.storage_paths {
            let list = self.at_path.entry(path.as_bytes().to_vec()).or_default();
            if let Err(at) = list.binary_search(&filed) {
                list.insert(at, filed.clone());
            }
        }
        if let Some(boot) = &worker.said.boot_id {
            self.of_boot.entry(boot.clone()).or_default().insert(id.clone());
        }
        self.known.insert(id, worker);
    }

    /// A worker, to be changed in nothing by which it is filed.
    pub(super) fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.known.get_mut(id)
    }

    /// Forgets a worker, but not what an operator ordered.
    pub(super) fn remove(&mut self, id: &WorkerId) {
        self.silent.remove(id);
        self.unfile(id);
    }

    /// Takes a worker out of all that it is filed by.
    fn unfile(&mut self, id: &WorkerId) {
        let Some(worker) = self.known.remove(id) else { return };
        let filed = (place(id, 0), id.clone());
        for path in &worker.said.storage_paths {
            let Some(list) = self.at_path.get_mut(path.as_bytes()) else { continue };
            if let Ok(at) = list.binary_search(&filed) {
                list.remove(at);
            }
            if list.is_empty() {
                self.at_path.remove(path.as_bytes());
            }
        }
        let boot = worker.said.boot_id.as_ref();
        if let Some((boot, of)) = boot.and_then(|boot| Some((boot, self.of_boot.get_mut(boot)?))) {
            of.remove(id);
            if of.is_empty() {
                self.of_boot.remove(boot);
            }
        }
    }

    /// A worker was heard of. True: it had been silent.
    pub(super) fn heard(&mut self, id: &WorkerId, now: Now) -> bool {
        let Some(worker) = self.known.get_mut(id).filter(|worker| !worker.has_stopped()) else {
            return false;
        };
        worker.heard_ms = now.mono_ms;
        worker.heard_wall_ms = now.wall_ms;
        let back = !std::mem::replace(&mut worker.active, true);
        self.silent.remove(id);
        self.version += u64::from(back);
        back
    }

    /// Time passed, of which we slept `slept_ms`: who was not heard of for `timeout_ms` is inactive,
    /// for `forget_ms` forgotten.
    pub(super) fn fall_silent(&mut self, now: Now, slept_ms: u64, timeout_ms: u64, forget_ms: u64) {
        let silent = |w: &Worker| now.mono_ms.saturating_sub(w.heard_ms);
        let gone = self.known.iter().filter(|(_, w)| silent(w) >= forget_ms);
        let gone: Vec<WorkerId> = gone.map(|(id, _)| id.clone()).collect();
        self.version += gone.len() as u64;
        gone.iter().for_each(|id| self.remove(id));
        for (id, worker) in &mut self.known {
            worker.heard_ms = worker.heard_ms.saturating_add(slept_ms).min(now.mono_ms);
            let silent = silent(worker);
            if worker.active && silent > timeout_ms {
                tracing::warn!(worker = %id, "no heartbeat for {} s", silent / 1000);
                worker.active = false;
                self.silent.insert(id.clone());
                self.version += 1;
            }
        }
    }

    /// Those that are known and were not heard of for longer than the time-out.
    pub(super) fn silent(&self) -> impl Iterator<Item = &Worker> {
        self.silent.iter().filter_map(|id| self.known.get(id))
    }

    /// Workers that hold `path`, in an order of chance that stays the same, round from a place in it.
    fn holders<'a>(&'a self, path: &'a AbsPath, from: u64) -> impl Iterator<Item = &'a Worker> {
        let lists = move || path.ancestors_from_root().filter_map(|p| self.at_path.get(p));
        lists().enumerate().flat_map(move |(nth, list)| {
            let (before, behind) = list.split_at(list.partition_point(|(at, _)| *at < from));
            // Mostly there is one list; a worker that is in several comes with the first.
            let listed = move |filed| lists().take(nth).any(|l| l.binary_search(filed).is_ok());
            let new = behind.iter().chain(before).filter(move |filed| !listed(filed));
            let known = new.filter_map(|(_, id)| self.known.get(id));
            known.filter(|w| w.said.unavailable_paths.is_empty() || w.holds(path))
        })
    }

    /// Active workers that hold `path`.
    pub(super) fn pool<'a>(&'a self, path: &'a AbsPath) -> impl Iterator<Item = &'a Worker> {
        self.holders(path, 0).filter(|w| w.takes_work())
    }

    /// Active workers that hold `path` and can still be talked to (one that stops still receives,
    /// unlike one that an operator drains),
    /// beginning with those that fall to the worker `of` at this attempt. Each worker has its own ones,
    /// and the same each time: so a few of them are enough for it, and all are used by all.
    pub(super) fn near<'a>(
        &'a self,
        path: &'a AbsPath,
        of: &WorkerId,
        attempt: u32,
    ) -> impl Iterator<Item = &'a Worker> {
        self.holders(path, place(of, attempt)).filter(|w| w.active && w.drained.is_none())
    }

    /// Workers under a kernel of this boot.
    pub(super) fn of_boot(&self, boot: &str) -> impl Iterator<Item = &Worker> {
        let ids = self.of_boot.get(boot).into_iter().flatten();
        ids.filter_map(|id| self.known.get(id))
    }

    /// Why nobody can serve `path`, with the storage paths that come nearest.
    pub(super) fn why_none(&self, path: &AbsPath, role: &str) -> String {
        let idle: Vec<String> = self
            .known
            .values()
            .filter(|w| w.active && (w.holds(path) || unavailable(&w.said, path).is_some()))
            .map(|w| format!("{} ({})", w.said.worker_id, w.standing(path)))
            .collect();
        if !idle.is_empty() {
            return format!(
                "no worker that serves the {role} path {path} takes work: {}",
                idle.join(", ")
            );
        }
        let mut near: Vec<(usize, bool, String, String)> = Vec::new();
        for worker in self.known.values() {
            for storage in &worker.said.storage_paths {
                let shared = storage.shared_components(path);
                let note = if worker.active { "" } else { ", inactive" };
                let who = format!("{}{note}", worker.said.worker_id);
                near.push((shared, worker.active, storage.to_string(), who));
            }
        }
        near.sort_by(|a, b| (b.0, b.1, &a.2, &a.3).cmp(&(a.0, a.1, &b.2, &b.3)));
        let listed: Vec<String> =
            near.iter().take(5).map(|(_, _, path, who)| format!("{path} ({who})")).collect();
        if listed.is_empty() {
            format!("no active worker serves the {role} path {path}: no worker has reported yet")
        } else {
            format!(
                "no active worker serves the {role} path {path}; nearest storage paths: {}",
                listed.join(", ")
            )
        }
    }
}
