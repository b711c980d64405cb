//! Heartbeats: they renew leases, and report storage paths, bandwidth and progress.

use super::capability::MAX_POOL_MEMBERS;
use super::keys::MAX_TICKET_USE_MS;
use super::place::Place;
use super::registry_limits::{kept_bytes, remove_unknown_paths};
use super::sync_job::SyncJob;
use super::task::Task;
use super::worker_registry::{Worker, unavailable_path};
use super::{Now, Reply, State};
use crate::wire::problem::Problem;
use crate::wire::worker::{HeartbeatReply, WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, AssignmentId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeSet, HashSet};

impl State {
    pub(super) fn handle_heartbeat(
        &mut self,
        mut heartbeat: WorkerHeartbeat,
        now: Now,
    ) -> Result<Reply, Problem> {
        let id = heartbeat.worker_id.clone();
        self.agents.check_not_revoked(&id)?;
        self.refuse_duplicate(&heartbeat, now)?;
        let restarted = self.workers.get(&id).is_some_and(|known| {
            known.last_heartbeat.incarnation.is_some()
                && known.last_heartbeat.incarnation != heartbeat.incarnation
        });
        let usage = std::mem::take(&mut heartbeat.usage);
        let moved = std::mem::take(&mut heartbeat.moved_bytes);
        let tickets = std::mem::take(&mut heartbeat.tickets);
        // A path that is unavailable is not served.
        let lost: BTreeSet<&AbsPath> =
            heartbeat.unavailable_paths.iter().map(|one| &one.path).collect();
        heartbeat.storage_paths.retain(|path| !lost.contains(path));
        remove_unknown_paths(&mut heartbeat);
        let kept_bytes = kept_bytes(&heartbeat);
        self.make_room_for_worker(&id, kept_bytes, now)?;
        self.retract_losses(&id, heartbeat.incarnation.as_ref(), restarted, now);
        let valid = self.renew_leases(&heartbeat, now);
        if restarted {
            self.workers.health.forget(&id);
        }
        let (before, refused) = self.resolve_incarnations(&id, restarted, &heartbeat, now);
        let mut reply = HeartbeatReply { status: "ok".to_owned(), ..HeartbeatReply::default() };
        if heartbeat.incarnation.is_some() {
            reply.ticket_keys = self.keys.public_keys();
            reply.time = Some(self.ticket_clock.seconds(now));
            reply.ended_syncs = self.ended_syncs.since(heartbeat.ended_seen);
            reply.unresponsive_workers = self.silent_destinations(&id);
            let since_ms = now.wall_ms.saturating_sub(MAX_TICKET_USE_MS as i64);
            reply.revoked_workers = self.agents.revoked_since(since_ms);
        }
        let process = heartbeat.incarnation.as_ref();
        let in_hand = process.map_or_else(Vec::new, |_| heartbeat.assignments.clone());
        let has_changed = self.workers.get(&id).is_none_or(|known| {
            !known.is_active
                || known.last_heartbeat.status.can_accept_work()
                    != heartbeat.status.can_accept_work()
                || known.last_heartbeat.storage_paths != heartbeat.storage_paths
                || known.last_heartbeat.unavailable_paths != heartbeat.unavailable_paths
                || known.last_heartbeat.root_ids != heartbeat.root_ids
                || known.last_heartbeat.incarnation != heartbeat.incarnation
        });
        self.outbox.request_dispatch_if(has_changed);
        let is_reporter = heartbeat.incarnation.is_some();
        let same_process = self
            .workers
            .get(&id)
            .filter(|known| known.last_heartbeat.incarnation == heartbeat.incarnation);
        let is_back = same_process.is_none_or(|known| !known.is_active);
        let worker = Worker {
            process_since_ms: same_process.map_or(now.mono_ms, |known| known.process_since_ms),
            is_active: heartbeat.status != WorkerStatus::Stopped,
            last_heartbeat: heartbeat,
            last_seen_ms: now.mono_ms,
            last_seen_wall_ms: now.wall_ms,
            previous_incarnation: before,
            refused_incarnations: refused,
            drained: None,
            kept_bytes,
        };
        let version = self.workers.storages.version();
        self.workers.insert(worker);
        self.observe_storages(&id, now);
        let has_changed = has_changed || self.workers.storages.version() != version;
        self.outbox.request_dispatch_if(has_changed);
        if has_changed {
            self.handle_storage_change(&id, now);
        }
        if is_back {
            self.end_waits_for_destination(&id);
        }
        // After the storage check: a sync that restarts or stops revokes its leases.
        let is_held =
            |a: &AssignmentId| valid.contains(a) && self.tasks.by_assignment(*a).is_some();
        reply.tickets = self.renew_tickets(&id, &tickets, &valid, now);
        reply.revoked_assignments = in_hand.into_iter().filter(|a| !is_held(a)).collect();
        let moved = moved.into_iter().filter(|(a, _)| is_held(a)).collect();
        self.record_moved_bytes(&moved, now);
        self.update_limits(&id, usage, &mut reply, now);
        if is_reporter {
            self.request_storage_checks(&id, &mut reply);
        }
        Ok(Reply::Heartbeat(Box::new(reply)))
    }

    /// Silent workers that serve the destination of a task that `worker` holds.
    fn silent_destinations(&self, worker: &WorkerId) -> Vec<WorkerId> {
        if self.workers.silent().next().is_none() {
            return Vec::new();
        }
        let held: BTreeSet<SyncNo> = self.tasks.held_by(worker).map(|task| task.sync).collect();
        let held: Vec<&SyncJob> = held.into_iter().filter_map(|no| self.syncs.get(no)).collect();
        let silent = self.workers.silent();
        let silent =
            silent.filter(|w| held.iter().any(|s| self.workers.serves(w, s.destination())));
        silent.map(|w| w.last_heartbeat.worker_id.clone()).take(MAX_POOL_MEMBERS).collect()
    }

    /// Renews the leases that a heartbeat lists. Revokes those of another process of the worker and
    /// those that need an unavailable storage path. Returns the valid ones.
    fn renew_leases(&mut self, heartbeat: &WorkerHeartbeat, now: Now) -> HashSet<AssignmentId> {
        let (mut lost, mut died): (Vec<TaskId>, Vec<TaskId>) = (Vec::new(), Vec::new());
        let mut valid: HashSet<AssignmentId> = HashSet::new();
        let listed: HashSet<AssignmentId> = heartbeat.assignments.iter().copied().collect();
        let held: Vec<TaskId> =
            self.tasks.held_by(&heartbeat.worker_id).map(|task| task.id).collect();
        let needs_lost_path = self.tasks_on_unavailable_paths(heartbeat);
        for task in held {
            let Some(lease) = self.tasks.lease_mut(task) else { continue };
            let other =
                heartbeat.incarnation.is_some() && lease.incarnation != heartbeat.incarnation;
            if other {
                died.push(task);
            } else if needs_lost_path.contains(&task) {
                lost.push(task);
            } else if heartbeat.incarnation.is_none() || listed.contains(&lease.assignment) {
                lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
                valid.insert(lease.assignment);
            }
        }
        for task in died {
            // If the previous process reports again, the one between was a duplicate and is alive.
            let back = self.workers.get(&heartbeat.worker_id).is_some_and(|known| {
                known.previous_incarnation.is_some()
                    && known.previous_incarnation == heartbeat.incarnation
            });
            match self.counts_as_loss(&heartbeat.worker_id, task, now) && !back {
                true => self.handle_worker_loss(task, now),
                false => self.requeue_lost(task, now),
            }
        }
        for task in lost {
            self.requeue_lost(task, now);
        }
        valid
    }

    fn tasks_on_unavailable_paths(&self, heartbeat: &WorkerHeartbeat) -> BTreeSet<TaskId> {
        if heartbeat.unavailable_paths.is_empty() {
            return BTreeSet::new();
        }
        let needs_lost_path = |task: &Task| {
            let Some(sync) = self.syncs.get(task.sync) else { return false };
            let worker = self.workers.get(&heartbeat.worker_id);
            let is_lost = |place: Place<'_>| {
                unavailable_path(heartbeat, place.path).is_some()
                    && worker.is_some_and(|worker| self.workers.sees(worker, place))
            };
            task.runs_at_source() && is_lost(self.read_place(sync, task))
                || is_lost(sync.destination())
        };
        let held = self.tasks.held_by(&heartbeat.worker_id);
        held.filter(|task| needs_lost_path(task)).map(|task| task.id).collect()
    }
}
