//! Workers as their heartbeats describe them. Nothing of this is stored: a restarted master learns
//! it again within a heartbeat.

use crate::wire::task::PoolMember;
use crate::wire::worker::{WorkerHeartbeat, WorkerView};
use crate::wire::{AbsPath, WorkerId};
use jiff::Timestamp;
use std::collections::BTreeMap;

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
    /// When, on the scheduler's clock, an incarnation came back that another had replaced: two
    /// agents run under this id, and each takes the other's work away.
    pub(super) rival_ms: Option<u64>,
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    pub(super) known: BTreeMap<WorkerId, Worker>,
}

impl Worker {
    /// Whether one of its storage paths holds `path`.
    pub(super) fn holds(&self, path: &AbsPath) -> bool {
        self.said.storage_paths.iter().any(|s| s.holds(path))
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
        self.active && self.said.status.takes_work()
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
    pub(super) fn view(&self, in_flight: u64, syncs: u64, silent_ms: u64) -> WorkerView {
        let said = &self.said;
        let reason = if !self.active {
            Some(format!("no heartbeat for {} s", silent_ms / 1000))
        } else if !said.status.takes_work() {
            Some(format!("its status is {}", said.status.as_str()))
        } else if self.rival_ms.is_some() {
            Some("two agents run under this id: stop one of them".to_owned())
        } else if said.storage_paths.is_empty() {
            Some("it has no storage paths".to_owned())
        } else {
            None
        };
        WorkerView {
            worker_id: said.worker_id.clone(),
            status: said.status,
            active: self.active,
            last_heartbeat: Timestamp::from_millisecond(self.heard_wall_ms).unwrap_or_default(),
            storage_paths: said.storage_paths.clone(),
            data_plane_endpoints: said.data_plane_endpoints.clone(),
            control_plane_address: said.control_plane_address.clone(),
            free_bytes: said.free_bytes.clone(),
            in_flight,
            syncs,
            slots: said.slots,
            agent_version: said.agent_version.clone(),
            reason,
            nics: said.nics.clone(),
        }
    }
}

impl Workers {
    /// Active workers that hold `path`, in order of their ids.
    pub(super) fn pool<'a>(&'a self, path: &'a AbsPath) -> impl Iterator<Item = &'a Worker> {
        self.known.values().filter(move |w| w.takes_work() && w.holds(path))
    }

    /// Active workers that hold `path` and can still be talked to: a draining one still receives.
    pub(super) fn reachable<'a>(&'a self, path: &'a AbsPath) -> impl Iterator<Item = &'a Worker> {
        self.known.values().filter(move |w| w.active && w.holds(path))
    }

    /// Why nobody can serve `path`, with the storage paths that come nearest.
    pub(super) fn why_none(&self, path: &AbsPath, role: &str) -> String {
        let idle: Vec<String> = self
            .known
            .values()
            .filter(|w| w.active && w.holds(path))
            .map(|w| format!("{} ({})", w.said.worker_id, w.said.status.as_str()))
            .collect();
        if !idle.is_empty() {
            return format!(
                "no worker that holds the {role} path {path} takes work: {}",
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
            format!("no active worker holds the {role} path {path}: no worker has reported yet")
        } else {
            format!(
                "no active worker holds the {role} path {path}; nearest storage paths: {}",
                listed.join(", ")
            )
        }
    }
}
