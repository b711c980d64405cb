//! Operations on workers: show, drain, undrain, reassign, forget.

use super::agent_table::agent_key;
use super::record_keys::drain_key;
use super::task::{DEPRIORITISED_MS, Lease, Task};
use super::views::timestamp;
use super::worker_registry::Worker;
use super::{Now, Reply, State};
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::ReassignReply;
use crate::wire::task::TaskSpec;
use crate::wire::worker::{
    DrainInfo, DrainReply, DrainRequest, ForgetWorkerReply, UnavailablePath, WorkerList,
    WorkerState, WorkerStatus, WorkerView,
};
use crate::wire::{AbsPath, RequestId, StorageId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) fn unknown_worker(worker: &WorkerId) -> Problem {
    Problem::new(ProblemCode::WorkerNotFound, format!("no worker `{worker}` is known"))
        .with_hint("list the workers with: ctl workers list")
}

impl State {
    pub(super) fn list_workers(&self, now: Now) -> Reply {
        let views = self.workers.all().map(|worker| self.worker_view(worker, now));
        let (active, inactive) = views.partition(|view| view.active);
        Reply::Workers(WorkerList { active, inactive, revoked: self.agents.revoked_workers() })
    }

    pub(super) fn show_worker(&self, id: &WorkerId, now: Now) -> Result<Reply, Problem> {
        let worker = self.workers.get(id).ok_or_else(|| unknown_worker(id))?;
        Ok(Reply::Worker(Box::new(self.worker_view(worker, now))))
    }

    /// The syncs of which a worker holds tasks, without deleted ones.
    pub(super) fn list_worker_requests(&self, id: &WorkerId) -> Result<Reply, Problem> {
        self.workers.get(id).ok_or_else(|| unknown_worker(id))?;
        let syncs = self.syncs_of_worker(id).into_iter().filter_map(|no| self.syncs.get(no));
        Ok(Reply::RequestIds(syncs.filter(|s| !s.is_deleted).map(|s| s.id.clone()).collect()))
    }

    fn storage_ids_of(&self, worker: &Worker) -> BTreeMap<String, StorageId> {
        let storages = &self.workers.storages;
        let id_of = |path: &AbsPath| {
            let no = storages.storage_of(&worker.last_heartbeat.worker_id, path)?;
            Some((path.to_string(), storages.id(no)?.clone()))
        };
        worker.last_heartbeat.storage_paths.iter().filter_map(id_of).collect()
    }

    /// The storage paths that are not used because their declarations are contradicted.
    fn contradicted_paths(&self, worker: &Worker) -> Vec<UnavailablePath> {
        let storages = &self.workers.storages;
        let of_path = |path: &AbsPath| {
            let reason = storages.contradiction(&worker.last_heartbeat.worker_id, path)?.to_owned();
            Some(UnavailablePath { path: path.clone(), reason })
        };
        worker.last_heartbeat.storage_paths.iter().filter_map(of_path).collect()
    }

    fn syncs_of_worker(&self, id: &WorkerId) -> BTreeSet<SyncNo> {
        self.tasks.held_by(id).map(|task| task.sync).collect()
    }

    fn worker_view(&self, worker: &Worker, now: Now) -> WorkerView {
        let heartbeat = &worker.last_heartbeat;
        let id = &heartbeat.worker_id;
        let in_flight = self.tasks.held_by(id).count() as u64;
        let contradicted = self.contradicted_paths(worker);
        let reason = worker.idle_reason(now.mono_ms.saturating_sub(worker.last_seen_ms));
        let reason = reason.or_else(|| {
            let paths =
                contradicted.iter().map(|one| format!("{} is not used: {}", one.path, one.reason));
            (!contradicted.is_empty()).then(|| paths.collect::<Vec<_>>().join("; "))
        });
        let unavailable = heartbeat.unavailable_paths.iter().map(|one| &one.path);
        // As an agent reports that finds none of its storage paths.
        let has_no_path =
            !contradicted.is_empty() && contradicted.len() == heartbeat.storage_paths.len();
        let status = if worker.drained.is_some() {
            WorkerStatus::Draining
        } else if has_no_path && heartbeat.status.can_accept_work() {
            WorkerStatus::Error
        } else {
            heartbeat.status
        };
        WorkerView {
            worker_id: id.clone(),
            status,
            state: worker.state(in_flight, self.may_receive_writes(worker, now)),
            active: worker.is_active,
            last_heartbeat: timestamp(worker.last_seen_wall_ms),
            storage_paths: heartbeat.storage_paths.iter().chain(unavailable).cloned().collect(),
            data_plane_endpoints: heartbeat.data_plane_endpoints.clone(),
            control_plane_address: heartbeat.control_plane_address.clone(),
            labels: heartbeat.labels.clone(),
            storage_ids: self.storage_ids_of(worker),
            free_bytes: heartbeat.free_bytes.clone(),
            in_flight,
            incoming_requests: if worker.is_active { heartbeat.incoming_requests } else { 0 },
            syncs: self.syncs_of_worker(id).len() as u64,
            slots: heartbeat.slots,
            agent_version: heartbeat.agent_version.clone(),
            reason: reason.or_else(|| self.workers.health.quarantine_reason(id)),
            nics: heartbeat.nics.clone(),
            unavailable_paths: [heartbeat.unavailable_paths.clone(), contradicted].concat(),
            unavailable_endpoints: heartbeat.unavailable_endpoints.clone(),
            drained: worker.drained.clone(),
        }
    }

    /// Whether others write through a worker, or hold a task that lists it because they got it
    /// before the drain.
    fn may_receive_writes(&self, worker: &Worker, now: Now) -> bool {
        if worker.last_heartbeat.incoming_requests > 0 {
            return true;
        }
        let Some(drained) = &worker.drained else { return false };
        let drained_for_ms = now.wall_ms.saturating_sub(drained.since.as_millisecond());
        let drained_for_ms = u64::try_from(drained_for_ms).unwrap_or(0);
        let lists = |task: &Task| {
            let before =
                |lease: &Lease| now.mono_ms.saturating_sub(lease.granted_ms) >= drained_for_ms;
            let destination = || Some(self.syncs.get(task.sync)?.destination());
            task.writes_destination()
                && task.lease().is_some_and(before)
                && destination().is_some_and(|place| self.workers.serves(worker, place))
        };
        self.tasks.leased().any(lists)
    }

    /// Drains a worker or ends the drain. A drained worker may be unknown to this master.
    pub(super) fn drain_worker(
        &mut self,
        worker: &WorkerId,
        order: Option<DrainRequest>,
        now: Now,
    ) -> Result<Reply, Problem> {
        let known = self.workers.drain_order(worker).cloned();
        if known.is_none() && self.workers.get(worker).is_none() {
            return Err(unknown_worker(worker));
        }
        let wanted = order.map(|DrainRequest { by, reason }| {
            let since = known.as_ref().map_or(timestamp(now.wall_ms), |known| known.since);
            DrainInfo { by, reason, since }
        });
        if wanted != known {
            match &wanted {
                Some(drained) => tracing::info!(%worker, "{}", drained.describe()),
                None => tracing::info!(%worker, "undrained"),
            }
            self.workers.set_drained(worker, wanted.clone());
            self.outbox.write_record(drain_key(worker));
            self.outbox.request_dispatch();
        }
        let view = self.workers.get(worker).map(|known| self.worker_view(known, now));
        let (state, in_flight, incoming_requests) = match view {
            Some(view) => (view.state, view.in_flight, view.incoming_requests),
            None => (WorkerState::Inactive, self.tasks.held_by(worker).count() as u64, 0),
        };
        let worker_id = worker.clone();
        let order = DrainReply { worker_id, drained: wanted, state, in_flight, incoming_requests };
        Ok(Reply::DrainUpdated(Box::new(order)))
    }

    /// Revokes the tasks of a sync that a worker holds. Late results are ignored, and other workers
    /// are preferred for a while. A flush is not revoked: no other worker can flush what this one
    /// wrote.
    pub(super) fn reassign_tasks(
        &mut self,
        id: &RequestId,
        worker: &WorkerId,
        now: Now,
    ) -> Result<Reply, Problem> {
        let no = self.syncs.require_active(id, "nothing is to be done")?.no;
        let all: BTreeSet<SyncNo> = self.syncs.destinations_of(no).chain([no]).collect();
        let held: Vec<TaskId> = self
            .tasks
            .held_by(worker)
            .filter(|task| all.contains(&task.sync) && task.spec != TaskSpec::Flush)
            .map(|task| task.id)
            .collect();
        if held.is_empty() && self.workers.get(worker).is_none() {
            return Err(unknown_worker(worker));
        }
        if !held.is_empty() {
            tracing::info!(sync = %id, %worker, tasks = held.len(), "tasks are revoked");
        }
        let tasks = held.len() as u64;
        for id in held {
            if let Some(task) = self.tasks.get_mut(id) {
                task.history.failed_on.insert(worker.clone());
                task.deprioritised_until_ms = now.mono_ms.saturating_add(DEPRIORITISED_MS);
            }
            self.requeue_lost(id, now);
        }
        let (request_id, worker_id) = (id.clone(), worker.clone());
        Ok(Reply::Reassigned(ReassignReply { request_id, worker_id, tasks }))
    }

    /// Removes an inactive worker and its drain order; its tasks are free at once.
    pub(super) fn forget_worker(&mut self, worker: &WorkerId, now: Now) -> Result<Reply, Problem> {
        let known = self.workers.get(worker);
        if known.is_some_and(|known| known.is_active) {
            let detail = format!("worker `{worker}` is alive: it sends heartbeats");
            let problem = Problem::new(ProblemCode::WorkerActive, detail);
            return Err(problem.with_hint(format!(
                "stop its agent first, or keep it from new work with: ctl workers drain {worker}"
            )));
        }
        let held: Vec<TaskId> = self.tasks.held_by(worker).map(|task| task.id).collect();
        let drained = self.workers.drain_order(worker).is_some();
        let is_revoked = self.agents.check_not_revoked(worker).is_err();
        if known.is_none() && held.is_empty() && !drained && !is_revoked {
            return Err(unknown_worker(worker));
        }
        if is_revoked {
            // Its certificate is then unknown, and is refused as well.
            Arc::make_mut(&mut self.agents).remove_agent(worker);
            self.outbox.write_record(agent_key(worker));
        }
        tracing::info!(%worker, tasks = held.len(), "is forgotten");
        let requeued = held.len() as u64;
        for task in held {
            self.requeue_lost(task, now);
        }
        if drained {
            self.workers.set_drained(worker, None);
            self.outbox.write_record(drain_key(worker));
        }
        self.workers.remove(worker);
        let (status, worker_id) = ("forgotten".to_owned(), worker.clone());
        Ok(Reply::Forgotten(ForgetWorkerReply { status, worker_id, requeued }))
    }
}
