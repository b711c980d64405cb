//! Leases: which worker holds which task, until when.

use super::placement::RunnableSync;
use super::sync_job::SyncJob;
use super::task::{Lease, Task, TaskState};
use super::worker_losses::IsolationDecision;
use super::worker_registry::{Worker, unavailable_path};
use super::{Caller, Effect, Now, Reply, State, WaitingPoll};
use crate::util::repeated_warnings::warn_ratelimited;
use crate::wire::options::WriteRules;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::SyncState;
use crate::wire::task::{Assignment, PoolMember, TaskSpec};
use crate::wire::ticket::{Claims, TICKET_LIFETIME_SECONDS};
use crate::wire::worker::{HeartbeatReply, WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, AssignmentId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Maximum number of expired or returned leases of a task: it appears to crash its workers.
const MAX_ATTEMPTS: u32 = 20;

const MAX_WORKERS: usize = 16_384;
/// Maximum number of destination workers in an assignment.
const MAX_POOL_MEMBERS: usize = 64;
/// Maximum number of source workers in an assignment: agents contact the destination's.
const MAX_SOURCE_MEMBERS: usize = 8;
/// Minimum interval between two passes over all leases, workers and syncs.
const FULL_TICK_INTERVAL_MS: u64 = 250;
/// Time without heartbeats after which a worker is removed.
const WORKER_RETENTION_MS: u64 = 24 * 3600 * 1000;

/// All leases, by assignment and by worker.
#[derive(Debug, Default)]
pub(super) struct LeaseIndex {
    by_assignment: HashMap<AssignmentId, TaskId>,
    by_worker: HashMap<WorkerId, BTreeMap<AssignmentId, TaskId>>,
}

impl LeaseIndex {
    pub(super) fn insert(&mut self, lease: &Lease, task: TaskId) {
        self.by_assignment.insert(lease.assignment, task);
        self.by_worker.entry(lease.worker.clone()).or_default().insert(lease.assignment, task);
    }

    pub(super) fn remove(&mut self, lease: &Lease) {
        self.by_assignment.remove(&lease.assignment);
        if let Some(held) = self.by_worker.get_mut(&lease.worker) {
            held.remove(&lease.assignment);
            if held.is_empty() {
                self.by_worker.remove(&lease.worker);
            }
        }
    }

    pub(super) fn get(&self, assignment: &AssignmentId) -> Option<&TaskId> {
        self.by_assignment.get(assignment)
    }

    pub(super) fn held_by(&self, worker: &WorkerId) -> impl Iterator<Item = TaskId> + use<'_> {
        self.by_worker.get(worker).into_iter().flat_map(|held| held.values().copied())
    }

    pub(super) fn worker_count(&self) -> usize {
        self.by_worker.len()
    }

    pub(super) fn leased_tasks(&self) -> impl Iterator<Item = TaskId> {
        self.by_assignment.values().copied()
    }
}

impl State {
    pub(super) fn handle_heartbeat(&mut self, mut said: WorkerHeartbeat, now: Now) -> Reply {
        let id = said.worker_id.clone();
        if self.workers.count() >= MAX_WORKERS && self.workers.get(&id).is_none() {
            let detail = format!("there are {MAX_WORKERS} workers already, which is the limit");
            let problem = Problem::new(ProblemCode::TooManyWorkers, detail)
                .with_hint("workers without heartbeats are removed after a day");
            return Reply::Refused(Box::new(problem));
        }
        if let Some(problem) = self.refuse_duplicate(&said, now) {
            return Reply::Refused(Box::new(problem));
        }
        let restarted = self.workers.get(&id).is_some_and(|known| {
            known.last_heartbeat.incarnation.is_some()
                && known.last_heartbeat.incarnation != said.incarnation
        });
        // A path that is unavailable is not served.
        let lost: BTreeSet<&AbsPath> = said.unavailable_paths.iter().map(|one| &one.path).collect();
        said.storage_paths.retain(|path| !lost.contains(path));
        self.retract_losses(&id, said.incarnation.as_ref(), restarted, now);
        let valid = self.renew_leases(&said, now);
        if restarted {
            self.worker_health.forget(&id);
        }
        let (before, refused) = self.resolve_incarnations(&id, restarted, &said, now);
        let mut reply = HeartbeatReply {
            status: "ok".to_owned(),
            ticket_key: None,
            time: None,
            revoked_assignments: Vec::new(),
            unresponsive_workers: Vec::new(),
            bwlimits: BTreeMap::new(),
            next_heartbeat_ms: None,
        };
        if said.incarnation.is_some() {
            reply.ticket_key = Some(self.signer.public_key());
            reply.time = Some(now.wall_ms.div_euclid(1000));
            reply.unresponsive_workers = self.silent_destinations(&id);
        }
        let in_hand =
            said.incarnation.as_ref().map(|_| said.assignments.clone()).unwrap_or_default();
        let news = self.workers.get(&id).is_none_or(|known| {
            !known.is_active
                || known.last_heartbeat.status.can_accept_work() != said.status.can_accept_work()
                || known.last_heartbeat.storage_paths != said.storage_paths
                || known.last_heartbeat.unavailable_paths != said.unavailable_paths
                || known.last_heartbeat.root_ids != said.root_ids
                || known.last_heartbeat.incarnation != said.incarnation
        });
        self.needs_dispatch |= news;
        let usage = std::mem::take(&mut said.usage);
        let moved = std::mem::take(&mut said.moved_bytes);
        let active = said.status != WorkerStatus::Stopped;
        let worker = Worker {
            last_heartbeat: said,
            last_seen_ms: now.mono_ms,
            last_seen_wall_ms: now.wall_ms,
            is_active: active,
            previous_incarnation: before,
            refused_incarnations: refused,
            drained: None,
        };
        self.poll_queue.update_paths(&id, &worker.last_heartbeat.storage_paths);
        self.workers.insert(worker);
        if news {
            self.handle_storage_change(&id, now);
        }
        // After the storage check: a sync that restarts or stops revokes its leases.
        let goes_on = |a: &AssignmentId| valid.contains(a) && self.lease_index.get(a).is_some();
        reply.revoked_assignments = in_hand.into_iter().filter(|a| !goes_on(a)).collect();
        let moved = moved.into_iter().filter(|(a, _)| goes_on(a)).collect();
        self.record_moved_bytes(&moved, now);
        self.update_limits(&id, usage, &mut reply, now);
        Reply::Heartbeat(reply)
    }

    /// Silent workers that serve the destination of a task that `worker` holds.
    fn silent_destinations(&self, worker: &WorkerId) -> Vec<WorkerId> {
        if self.workers.silent().next().is_none() {
            return Vec::new();
        }
        let held = self
            .lease_index
            .held_by(worker)
            .filter_map(|id| self.syncs.get(&self.tasks.get(&id)?.sync));
        let destinations: BTreeSet<&AbsPath> = held.map(|s| &s.request.destination_path).collect();
        let silent = self.workers.silent().filter(|w| destinations.iter().any(|to| w.serves(to)));
        silent.map(|w| w.last_heartbeat.worker_id.clone()).take(MAX_POOL_MEMBERS).collect()
    }

    /// Renews the leases that a heartbeat lists. Revokes those of another process of the worker and
    /// those that need an unavailable storage path. Returns the valid ones.
    fn renew_leases(&mut self, said: &WorkerHeartbeat, now: Now) -> HashSet<AssignmentId> {
        let (mut lost, mut died): (Vec<TaskId>, Vec<TaskId>) = (Vec::new(), Vec::new());
        let mut valid: HashSet<AssignmentId> = HashSet::new();
        let listed: HashSet<AssignmentId> = said.assignments.iter().copied().collect();
        let held: Vec<TaskId> = self.lease_index.held_by(&said.worker_id).collect();
        let hangs = self.tasks_on_unavailable_paths(&held, said);
        for task in held {
            let Some(lease) = self.tasks.get_mut(&task).and_then(lease_mut) else { continue };
            let other = said.incarnation.is_some() && lease.incarnation != said.incarnation;
            if other {
                died.push(task);
            } else if hangs.contains(&task) {
                lost.push(task);
            } else if said.incarnation.is_none() || listed.contains(&lease.assignment) {
                lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
                valid.insert(lease.assignment);
            }
        }
        for task in died {
            // If the previous process reports again, the one between was a duplicate and is alive.
            let back = self.workers.get(&said.worker_id).is_some_and(|known| {
                known.previous_incarnation.is_some()
                    && known.previous_incarnation == said.incarnation
            });
            match self.counts_as_loss(&said.worker_id, task, now) && !back {
                true => self.handle_worker_loss(task, now),
                false => self.requeue_lost(task, now),
            }
        }
        for task in lost {
            self.requeue_lost(task, now);
        }
        valid
    }

    fn tasks_on_unavailable_paths(
        &self,
        held: &[TaskId],
        said: &WorkerHeartbeat,
    ) -> BTreeSet<TaskId> {
        if said.unavailable_paths.is_empty() {
            return BTreeSet::new();
        }
        let hangs = |task: &Task| {
            let Some(sync) = self.syncs.get(&task.sync) else { return false };
            let request = &sync.request;
            let source =
                task.runs_at_source() && unavailable_path(said, &request.source_path).is_some();
            source || unavailable_path(said, &request.destination_path).is_some()
        };
        let tasks = held.iter().filter_map(|id| self.tasks.get(id));
        tasks.filter(|task| hangs(task)).map(|task| task.id).collect()
    }

    /// Replies to a poll at once, or queues it and returns `None`.
    pub(super) fn handle_poll(
        &mut self,
        poll: WaitingPoll,
        caller: Option<Caller>,
        now: Now,
    ) -> Option<Reply> {
        // A poll of a duplicate agent is no sign that the registered one is alive.
        let known = self.workers.get(&poll.worker);
        if known.is_some_and(|known| known.last_heartbeat.incarnation == poll.incarnation) {
            self.retract_losses(&poll.worker, poll.incarnation.as_ref(), false, now);
            self.needs_dispatch |= self.workers.mark_seen(&poll.worker, now);
        }
        if let Some(id) = self.find_repeated_poll(&poll) {
            // Workers may have been added since.
            self.record_possible_writers(id, now);
            let again = self.tasks.get(&id).and_then(|task| self.build_assignment(task, now));
            return Some(Reply::Assignment(again.map(Box::new)));
        }
        let open = self.runnable_syncs(now);
        if let Some(assignment) = self.assign_task(&poll, &open, now) {
            return Some(Reply::Assignment(Some(Box::new(assignment))));
        }
        match caller {
            Some(caller) if poll.until_ms > now.mono_ms => {
                let held = self
                    .workers
                    .get(&poll.worker)
                    .map(|w| w.last_heartbeat.storage_paths.as_slice());
                self.poll_queue.insert(caller, poll, held.unwrap_or_default());
                None
            }
            _ => Some(Reply::Assignment(None)),
        }
    }

    /// The task that this poll got before, if its reply was lost.
    fn find_repeated_poll(&self, poll: &WaitingPoll) -> Option<TaskId> {
        let wanted = poll.poll_id.as_ref()?;
        let mut held = self.lease_index.held_by(&poll.worker).filter_map(|id| self.tasks.get(&id));
        let task = held.find(|task| {
            task.lease().is_some_and(|lease| {
                lease.incarnation == poll.incarnation && lease.poll_id.as_ref() == Some(wanted)
            })
        });
        task.map(|task| task.id)
    }

    /// Leases the best task for a worker. Syncs take turns: the least recently served one first.
    pub(super) fn assign_task(
        &mut self,
        poll: &WaitingPoll,
        open: &[RunnableSync],
        now: Now,
    ) -> Option<Assignment> {
        let worker = self.workers.get(&poll.worker)?;
        if !worker.is_ready() || worker.last_heartbeat.incarnation != poll.incarnation {
            return None;
        }
        match self.decide_isolation(&poll.worker, open, now) {
            IsolationDecision::Ordinary => {}
            IsolationDecision::RunAlone(id) => return self.grant_lease(id, poll, now),
            IsolationDecision::Wait => return None,
        }
        let worker = self.workers.get(&poll.worker)?;
        let mut turn: Vec<(u64, SyncNo)> =
            open.iter().filter_map(|o| Some((self.syncs.get(&o.no)?.last_served, o.no))).collect();
        turn.sort_unstable();
        let id = turn.into_iter().find_map(|(_, no)| self.choose_task(no, worker, now))?;
        self.grant_lease(id, poll, now)
    }

    /// Active workers that serve `path` and support the options of a sync.
    pub(super) fn capable_workers<'a>(
        &'a self,
        sync: &'a SyncJob,
        path: &'a AbsPath,
    ) -> impl Iterator<Item = &'a Worker> {
        self.workers
            .accepting(path)
            .filter(|w| w.supports_options() || !sync.has_nondefault_options())
    }

    /// The other workers that could do tasks of a sync at the source (`true`) or at the
    /// destination.
    pub(super) fn other_capable_workers<'a>(
        &'a self,
        sync: &'a SyncJob,
        worker: &Worker,
    ) -> impl Fn(bool) -> Box<dyn Iterator<Item = &'a WorkerId> + 'a> + use<'a> {
        let me = worker.last_heartbeat.worker_id.clone();
        move |at_source| {
            let request = &sync.request;
            let path = if at_source { &request.source_path } else { &request.destination_path };
            let ids = self.capable_workers(sync, path).map(|w| &w.last_heartbeat.worker_id);
            let me = me.clone();
            Box::new(ids.filter(move |id| **id != me))
        }
    }

    /// A flush is done by the worker that wrote, or by one under the same kernel with the same open
    /// root, because they share a page cache. After a reboot no worker can flush what was only in
    /// the cache.
    pub(super) fn can_flush(
        &self,
        sync: &super::sync_job::SyncJob,
        task: &Task,
        worker: &Worker,
    ) -> bool {
        let Some(bound) = &task.pinned_to else { return true };
        let wrote = sync.unflushed_writers.get(bound).and_then(Option::as_ref);
        let same_place = worker.boot_and_root(&sync.request.destination_path).as_ref() == wrote;
        same_place && (worker.last_heartbeat.worker_id == *bound || wrote.is_some())
    }

    fn grant_lease(&mut self, id: TaskId, poll: &WaitingPoll, now: Now) -> Option<Assignment> {
        let mut drawn = [0; 16];
        drawn.copy_from_slice(&self.draw_random()[..16]);
        let assignment = AssignmentId(drawn);
        let task = self.tasks.get_mut(&id)?;
        task.attempt += 1;
        let lease = Lease {
            assignment,
            worker: poll.worker.clone(),
            incarnation: poll.incarnation.clone(),
            poll_id: poll.poll_id.clone(),
            deadline_ms: now.mono_ms + self.settings.lease_ms,
            granted_ms: now.mono_ms,
            next_page: 0,
            moved_bytes: 0,
        };
        let (key, no, again) = (task.record_key(), task.sync, task.attempt > 1);
        let sends = task.spec.sends_content();
        let deletes = matches!(task.spec, TaskSpec::Prune { apply: true, .. });
        self.lease_index.insert(&lease, id);
        self.set_task_state(id, TaskState::Leased(lease));
        self.isolation.mark_leased(id);
        self.put_record(key);
        if deletes {
            self.choose_deleter(no, &poll.worker, now);
        }
        self.record_possible_writers(id, now);
        self.record_source_reader(id, &poll.worker, now);
        self.postpone_probe(no, now);
        self.worker_health.postpone_probe(&poll.worker, now);
        if sends {
            self.ensure_share(no, &poll.worker, now);
        }
        self.leases_granted += 1;
        let served = self.leases_granted;
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.last_served = served;
            let first = sync.state == SyncState::Queued;
            if first {
                sync.state = SyncState::Progress;
                sync.started_ms.get_or_insert(now.wall_ms);
            }
            if again && sync.is_active() {
                sync.counters.retries += 1;
            }
            if first || again {
                self.mark_changed(no, now);
            }
        }
        self.build_assignment(self.tasks.get(&id)?, now)
    }

    /// The document for a leased task.
    fn build_assignment(&self, task: &Task, now: Now) -> Option<Assignment> {
        let sync = self.syncs.get(&task.sync)?;
        let lease = task.lease()?;
        let request = &sync.request;
        let sources = self.workers.reachable(&request.source_path, &lease.worker, task.attempt);
        let sources = sources
            .filter(|w| {
                w.accepts_work() && (w.supports_options() || !sync.has_nondefault_options())
            })
            .take(MAX_SOURCE_MEMBERS);
        let mut claims = Claims {
            sync: sync.no.0,
            request_id: sync.id.to_string(),
            assignment: lease.assignment.0,
            attempt: task.attempt,
            worker: lease.worker.to_string(),
            destination: request.destination_path.as_bytes().to_vec(),
            expires: now.wall_ms.div_euclid(1000) + TICKET_LIFETIME_SECONDS,
            rules: WriteRules {
                part_name_key: self.name_key,
                chunk_bytes: u64::from(request.chunk_size_mb) << 20,
                ..sync.write_rules(&task.spec)
            },
            prune: sync.prune_permit(&task.spec),
            roots: BTreeMap::new(),
        };
        let large = task.large_file.and_then(|file| sync.large_files.get(&file));
        let (chunk_offset, chunk_size) = task.spec.content_extent(large.map(|file| file.size));
        let source_workers = pool_members(sources);
        let destination_workers = self.destination_members(sync, task, &lease.worker);
        self.add_expected_roots(&mut claims, sync, task, &destination_workers);
        Some(Assignment {
            assignment_id: lease.assignment,
            request_id: sync.id.clone(),
            worker_id: lease.worker.clone(),
            task_id: task.id,
            task_digest: task.digest,
            attempt: task.attempt,
            lease_seconds: self.settings.lease_ms / 1000,
            source_path: request.source_path.clone(),
            destination_path: request.destination_path.clone(),
            chunk_size_mb: request.chunk_size_mb,
            chunk_offset,
            chunk_size,
            task: task.spec.clone(),
            options: sync.task_options(&task.spec),
            source_worker_pool: worker_ids(&source_workers),
            destination_worker_pool: worker_ids(&destination_workers),
            source_workers,
            destination_workers,
            ticket: self.signer.sign(&claims),
            source_root: self.expected_source_root(sync, &lease.worker).map(str::to_owned),
            bwlimit: task
                .spec
                .sends_content()
                .then(|| self.bandwidth.granted_to(sync.no, &lease.worker))
                .flatten(),
        })
    }

    /// The destination workers of an assignment. Deletions go through one.
    fn destination_members(
        &self,
        sync: &SyncJob,
        task: &Task,
        worker: &WorkerId,
    ) -> Vec<PoolMember> {
        if !matches!(task.spec, TaskSpec::Prune { apply: true, .. }) {
            return pool_members(self.reachable_writers(sync, worker, task.attempt));
        }
        let deleter = sync.deleter.as_ref().and_then(|d| self.workers.get(&d.worker));
        pool_members(deleter.into_iter())
    }

    /// The workers through which a worker may write in an attempt.
    pub(super) fn reachable_writers<'a>(
        &'a self,
        sync: &'a SyncJob,
        worker: &WorkerId,
        attempt: u32,
    ) -> impl Iterator<Item = &'a Worker> {
        let near = self.workers.reachable(&sync.request.destination_path, worker, attempt);
        near.filter(|w| w.supports_options() || !sync.has_nondefault_options())
            .take(MAX_POOL_MEMBERS)
    }

    pub(super) fn get_manifest(&self, worker: &WorkerId, assignment: AssignmentId) -> Reply {
        let task = self.leased_task(worker, assignment);
        match task.and_then(|t| t.manifest_key.clone()) {
            Some(key) => Reply::ManifestKey(key),
            None => Reply::Refused(Box::new(Problem::new(
                ProblemCode::AssignmentNotHeld,
                format!("worker {worker} holds no assignment {assignment} with a manifest"),
            ))),
        }
    }

    pub(super) fn leased_task(&self, worker: &WorkerId, assignment: AssignmentId) -> Option<&Task> {
        let task = self.tasks.get(self.lease_index.get(&assignment)?)?;
        task.lease().filter(|lease| lease.worker == *worker).map(|_| task)
    }

    /// Queues a task again whose worker will not report where it wrote: every worker that it could
    /// reach must flush.
    pub(super) fn requeue_lost(&mut self, id: TaskId, now: Now) {
        self.mark_possible_writes(id, now);
        self.requeue_task(id, now);
    }

    /// A worker with a lease on a writing task may have written through any reachable worker.
    pub(super) fn mark_possible_writes(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|t| t.writes_destination()) else { return };
        let no = task.sync;
        self.record_revoked_lease(id, now);
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.mark_all_unflushed();
        }
        self.mark_changed(no, now);
    }

    /// Queues a task again; its next lease has a higher attempt.
    pub(super) fn requeue_task(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let worker = task.lease().map(|l| l.worker.clone());
        if let Some(lease) = task.lease() {
            self.lease_index.remove(lease);
        }
        if task.attempt.saturating_sub(task.resource_retries) >= MAX_ATTEMPTS {
            let who = worker.map_or_else(String::new, |w| format!(", last on worker {w}"));
            let why = format!("its lease expired or was returned {MAX_ATTEMPTS} times{who}");
            self.fail_task(id, &why, None, now);
            return;
        }
        let (key, no) = (task.record_key(), task.sync);
        self.set_task_state(id, TaskState::Ready);
        self.put_record(key);
        self.dirty_syncs.insert(no);
        self.needs_dispatch = true;
    }

    /// Expires polls and ends delays. With thousands of polls one expires every few milliseconds,
    /// so the pass over all leases, workers and syncs is less frequent.
    pub(super) fn tick(&mut self, now: Now) {
        let due = self.delayed.range(..=(now.mono_ms, TaskId(u64::MAX)));
        let due: Vec<TaskId> = due.map(|(_, id)| *id).collect();
        for id in due {
            self.set_task_state(id, TaskState::Ready);
            let key = self.tasks.get(&id).map(Task::record_key);
            key.into_iter().for_each(|key| self.put_record(key));
            self.needs_dispatch = true;
        }
        let gap = self.last_tick_ms.map(|at| now.mono_ms.saturating_sub(at));
        if gap.is_none_or(|gap| gap >= FULL_TICK_INTERVAL_MS) {
            self.last_tick_ms = Some(now.mono_ms);
            self.tick_all(gap.unwrap_or(0), now);
        }
        self.answer_expired_polls(now);
    }

    /// Expires leases, marks silent workers, drops old syncs; `gap` is the time since the last pass
    /// in milliseconds.
    fn tick_all(&mut self, gap: u64, now: Now) {
        let slept = gap > self.settings.lease_ms / 2;
        let mut ran_out = Vec::new();
        for task in self.tasks.values_mut() {
            match &mut task.state {
                // The master was suspended: the agents could not renew. Renewals since then count
                // from their arrival.
                TaskState::Leased(lease) if slept => {
                    let whole = now.mono_ms.saturating_add(self.settings.lease_ms);
                    lease.deadline_ms = lease.deadline_ms.saturating_add(gap).min(whole);
                }
                TaskState::Leased(lease) if lease.deadline_ms <= now.mono_ms => {
                    ran_out.push((task.id, lease.worker.clone()));
                }
                _ => {}
            }
        }
        for (id, worker) in ran_out {
            let what = "a lease expired: the task is queued again";
            warn_ratelimited!(format_args!("worker {worker}: {what}"), task = %id, %worker, "{what}");
            self.judge_worker(id, &worker, true, now);
            match self.is_holder_silent(id, now) {
                true => self.handle_worker_loss(id, now),
                false => self.requeue_lost(id, now),
            }
        }
        let timeout = self.settings.heartbeat_timeout_ms;
        let slept_ms = if slept { gap } else { 0 };
        self.workers.mark_silent(now, slept_ms, timeout, WORKER_RETENTION_MS);
        self.tick_limits(now);
        self.check_pending_flushes(now);
        self.tick_pauses(now);
        self.tick_speeds(now);
        self.tick_stalls(slept_ms, now);
        self.tick_worker_health(now);
        self.release_ended_syncs(now);
        self.tick_retention(now);
        // A reservation for an isolated task may have ended.
        self.needs_dispatch |= !self.isolation.is_empty();
    }

    fn answer_expired_polls(&mut self, now: Now) {
        for caller in self.poll_queue.take_expired(now.mono_ms) {
            self.effects.push(Effect::Reply(caller, Reply::Assignment(None)));
        }
    }

    /// How full the window of a sync is: a scan is suspended at 1 and continues below 0.5. Waiting
    /// scans do not count: only they can empty a window that they fill.
    pub(super) fn window_fill(&self, sync: &SyncJob) -> f64 {
        let tasks = sync.tasks.len() - sync.scan_count + sync.large_files.len();
        let by_tasks = tasks as f64 / sync.window.max(1) as f64;
        let by_bytes = sync.manifest_bytes as f64 / self.settings.window_bytes as f64;
        by_tasks.max(by_bytes)
    }

    /// Recomputes the windows of syncs with tasks if the set of workers changed.
    pub(super) fn update_windows(&mut self) {
        let version = self.workers.version();
        if std::mem::replace(&mut self.windows_version, version) == version {
            return;
        }
        for no in self.syncs_with_tasks.clone() {
            self.update_window(no);
        }
    }

    /// Maximum number of outstanding tasks of a sync: enough for each slot to have the next ones
    /// ready. More would only use memory.
    pub(super) fn update_window(&mut self, no: SyncNo) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let most = self.settings.window_tasks;
        let mut window = 0;
        for worker in self.workers.accepting(&sync.request.source_path) {
            window += 4 * worker.last_heartbeat.slots.unwrap_or(1) as usize;
            if window >= most {
                break;
            }
        }
        sync.window = window.clamp(64.min(most), most);
    }

    /// Waiting polls of workers that serve the source of a sync.
    pub(super) fn idle_polls<'a>(&'a self, sync: &'a SyncJob) -> impl Iterator<Item = Caller> {
        let polls = self.poll_queue.polls_at(&sync.request.source_path);
        let able = |worker: &WorkerId| self.workers.get(worker).is_some_and(Worker::accepts_work);
        polls.filter(move |(_, poll)| able(&poll.worker)).map(|(caller, _)| caller)
    }
}

/// Workers as an assignment lists them, in the order of their ids.
fn pool_members<'a>(workers: impl Iterator<Item = &'a Worker>) -> Vec<PoolMember> {
    let mut members: Vec<PoolMember> = workers.map(Worker::pool_member).collect();
    members.sort_unstable_by(|a, b| a.worker_id.cmp(&b.worker_id));
    members
}

fn worker_ids(members: &[PoolMember]) -> Vec<WorkerId> {
    members.iter().map(|member| member.worker_id.clone()).collect()
}

/// Whether a task of a sync needs a worker that supports options. A flush does not.
pub(super) fn needs_options(sync: &SyncJob, spec: &TaskSpec) -> bool {
    match spec {
        TaskSpec::Flush => false,
        TaskSpec::CleanUp => true,
        _ => sync.has_nondefault_options(),
    }
}

fn lease_mut(task: &mut Task) -> Option<&mut Lease> {
    match &mut task.state {
        TaskState::Leased(lease) => Some(lease),
        _ => None,
    }
}
