//! Who gets which task, and for how long.

use super::sync::Sync;
use super::task::{Lease, Task, TaskState};
use super::worker::Worker;
use super::{Caller, Effect, Now, Parked, Reply, State};
use crate::wire::problem::Problem;
use crate::wire::sync::SyncState;
use crate::wire::task::{Assignment, TaskSpec};
use crate::wire::ticket::Claims;
use crate::wire::worker::{HeartbeatReply, PROTOCOL, WorkerHeartbeat};
use crate::wire::{AbsPath, AssignmentId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A task whose lease ran out so often is given up: it seems to kill whoever takes it.
const MAX_ATTEMPTS: u32 = 20;

/// So many workers are known at most.
const MAX_WORKERS: usize = 16_384;
/// A worker that was not heard of for so long is forgotten.
const FORGET_MS: u64 = 24 * 3600 * 1000;

/// How well a task fits a poll; the smallest is taken. The fields are compared in order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fit {
    /// Another worker is there that has not failed it yet.
    better_elsewhere: bool,
    /// Publishing comes first (it frees the window), then one scan (it finds work for the others),
    /// then copying, then further scans.
    rank: u8,
    /// The oldest first; also makes the choice certain.
    id: TaskId,
}

/// The leases that there are, by assignment and by worker.
#[derive(Debug, Default)]
pub(super) struct Leases {
    tasks: HashMap<AssignmentId, TaskId>,
    of_worker: HashMap<WorkerId, BTreeMap<AssignmentId, TaskId>>,
}

impl Leases {
    pub(super) fn insert(&mut self, lease: &Lease, task: TaskId) {
        self.tasks.insert(lease.assignment, task);
        self.of_worker.entry(lease.worker.clone()).or_default().insert(lease.assignment, task);
    }

    pub(super) fn remove(&mut self, lease: &Lease) {
        self.tasks.remove(&lease.assignment);
        if let Some(held) = self.of_worker.get_mut(&lease.worker) {
            held.remove(&lease.assignment);
            if held.is_empty() {
                self.of_worker.remove(&lease.worker);
            }
        }
    }

    pub(super) fn get(&self, assignment: &AssignmentId) -> Option<&TaskId> {
        self.tasks.get(assignment)
    }

    /// The tasks that a worker holds.
    pub(super) fn of(&self, worker: &WorkerId) -> impl Iterator<Item = TaskId> + use<'_> {
        self.of_worker.get(worker).into_iter().flat_map(|held| held.values().copied())
    }

    /// The tasks that anybody holds.
    pub(super) fn all(&self) -> impl Iterator<Item = TaskId> {
        self.tasks.values().copied()
    }
}

impl State {
    pub(super) fn heartbeat(&mut self, mut said: WorkerHeartbeat, now: Now) -> Reply {
        let id = said.worker_id.clone();
        if self.workers.known.len() >= MAX_WORKERS && !self.workers.known.contains_key(&id) {
            let detail = format!("{MAX_WORKERS} workers are known, and no more are taken");
            let problem = Problem::new(429, "Too Many Requests", "too_many_workers", detail)
                .hinted("workers that fall silent are forgotten after a day");
            return Reply::Refused(Box::new(problem));
        }
        let restarted = self.workers.known.get(&id).is_some_and(|known| {
            known.said.incarnation.is_some() && known.said.incarnation != said.incarnation
        });
        let mut lost: Vec<TaskId> = Vec::new();
        let mut valid: HashSet<AssignmentId> = HashSet::new();
        let listed: HashSet<AssignmentId> = said.in_hand.iter().copied().collect();
        let held: Vec<TaskId> = self.leases.of(&id).collect();
        for task in held {
            let Some(lease) = self.tasks.get_mut(&task).and_then(lease_mut) else { continue };
            if said.incarnation.is_some() && lease.incarnation != said.incarnation {
                lost.push(task);
            } else if said.incarnation.is_none() || listed.contains(&lease.assignment) {
                lease.deadline_ms = now.mono_ms + self.settings.lease_ms;
                valid.insert(lease.assignment);
            }
        }
        for task in lost {
            self.lost(task, now);
        }
        let (before, rival_ms) = self.incarnations(&id, restarted, &said, now);
        let mut reply = HeartbeatReply {
            status: "ok".to_owned(),
            ticket_key: None,
            time: None,
            drop: Vec::new(),
            limits: BTreeMap::new(),
            next_beat_ms: None,
            protocol: None,
        };
        if said.incarnation.is_some() {
            reply.ticket_key = Some(self.signer.public_key());
            reply.protocol = Some(PROTOCOL);
            reply.time = Some(now.wall_ms.div_euclid(1000));
            reply.drop = said.in_hand.iter().filter(|a| !valid.contains(a)).copied().collect();
        }
        let news = self.workers.known.get(&id).is_none_or(|known| {
            !known.active
                || known.said.status.takes_work() != said.status.takes_work()
                || known.said.storage_paths != said.storage_paths
                || known.said.incarnation != said.incarnation
        });
        self.wake |= news;
        let usage = std::mem::take(&mut said.usage);
        let worker = Worker {
            said,
            heard_ms: now.mono_ms,
            heard_wall_ms: now.wall_ms,
            active: true,
            before,
            rival_ms,
        };
        self.workers.known.insert(id.clone(), worker);
        self.tell_limits(&id, usage, &mut reply, now);
        Reply::Heartbeat(reply)
    }

    /// [`Worker::before`] and [`Worker::rival_ms`] after a heartbeat. An agent that was restarted never
    /// comes back as what it was, so one that does runs beside another.
    fn incarnations(
        &self,
        id: &WorkerId,
        restarted: bool,
        said: &WorkerHeartbeat,
        now: Now,
    ) -> (Option<String>, Option<u64>) {
        let Some(known) = self.workers.known.get(id) else { return (None, None) };
        let recent =
            |ms: &u64| now.mono_ms.saturating_sub(*ms) < self.settings.heartbeat_timeout_ms;
        let rival_ms = known.rival_ms.filter(recent);
        if !restarted {
            return (known.before.clone(), rival_ms);
        }
        let back = known.before.is_some() && known.before == said.incarnation;
        match (back, rival_ms) {
            (false, _) => tracing::info!(worker = %id, "the agent was restarted"),
            (true, None) => tracing::warn!(
                worker = %id,
                "two agents run under this id and take each other's work away: stop one of them"
            ),
            (true, Some(_)) => {}
        }
        (known.said.incarnation.clone(), if back { Some(now.mono_ms) } else { rival_ms })
    }

    /// Answers a poll at once, or parks it and returns `None`.
    pub(super) fn poll(&mut self, poll: Parked, caller: Option<Caller>, now: Now) -> Option<Reply> {
        if let Some(worker) = self.workers.known.get_mut(&poll.worker) {
            worker.heard_ms = now.mono_ms;
            worker.heard_wall_ms = now.wall_ms;
            if !worker.active {
                worker.active = true;
                self.wake = true;
            }
        }
        if let Some(again) = self.same_poll(&poll, now) {
            return Some(Reply::Assignment(Some(Box::new(again))));
        }
        let open = self.open_syncs();
        if let Some(assignment) = self.place(&poll, &open, now) {
            return Some(Reply::Assignment(Some(Box::new(assignment))));
        }
        match caller {
            Some(caller) if poll.until_ms > now.mono_ms => {
                self.parked.insert(caller, poll);
                None
            }
            _ => Some(Reply::Assignment(None)),
        }
    }

    /// The lease that this very poll got before (its reply was lost).
    fn same_poll(&self, poll: &Parked, now: Now) -> Option<Assignment> {
        let wanted = poll.poll_id.as_ref()?;
        let mut held = self.leases.of(&poll.worker).filter_map(|id| self.tasks.get(&id));
        let task = held.find(|task| {
            task.lease().is_some_and(|lease| {
                lease.incarnation == poll.incarnation && lease.poll_id.as_ref() == Some(wanted)
            })
        })?;
        self.assignment(task, now)
    }

    /// Leases the best task of the syncs `open` that there is for a worker. Syncs are served in turn.
    fn place(&mut self, poll: &Parked, open: &[SyncNo], now: Now) -> Option<Assignment> {
        let worker = self.workers.known.get(&poll.worker)?;
        if !worker.takes_work() || worker.said.incarnation != poll.incarnation {
            return None;
        }
        let mut turn: Vec<(u64, SyncNo)> =
            open.iter().filter_map(|no| Some((self.syncs.get(no)?.served, *no))).collect();
        turn.sort_unstable();
        let id = turn.into_iter().find_map(|(_, no)| self.choose(no, worker, now))?;
        self.lease(id, poll, now)
    }

    /// The syncs that have a task to hand out now. Of the active ones so many are worked on at once as
    /// is set; those that wait for a worker keep nobody from his turn.
    fn open_syncs(&self) -> Vec<SyncNo> {
        let all = self.syncs.values().filter(|s| !s.tasks.is_empty());
        let (mut active, ended): (Vec<&Sync>, Vec<&Sync>) = all.partition(|s| s.is_active());
        let most = self.settings.max_active_syncs;
        if active.len() > most {
            // Begun ones first, each kind in the order in which they were submitted.
            active.sort_by_key(|s| s.state == SyncState::Queued);
            let workable = active.into_iter().filter(|s| {
                let request = &s.request;
                self.workers.pool(&request.source_path).next().is_some()
                    && self.workers.pool(&request.destination_path).next().is_some()
            });
            active = workable.take(most).collect();
        }
        let open = active.into_iter().chain(ended).filter(|sync| {
            let room = sync.scans > 0 && self.outstanding(sync) < 0.5;
            let mut tasks = sync.tasks.iter().filter_map(|id| self.tasks.get(id));
            tasks.any(|t| t.state == TaskState::Ready && (room || !t.is_scan()))
        });
        open.map(|sync| sync.no).collect()
    }

    /// The task of a sync that fits a worker best.
    fn choose(&self, no: SyncNo, worker: &Worker, now: Now) -> Option<TaskId> {
        let sync = self.syncs.get(&no)?;
        let at_source = worker.holds(&sync.request.source_path)
            && self.able(sync, &sync.request.destination_path).next().is_some();
        let at_destination = worker.holds(&sync.request.destination_path);
        if !at_source && !at_destination {
            return None;
        }
        let tasks = || sync.tasks.iter().filter_map(|id| self.tasks.get(id));
        let scan_is_out = tasks().any(|t| t.is_scan() && t.lease().is_some());
        let others = self.others(sync, worker);
        let room = self.outstanding(sync) < 0.5;
        tasks()
            .filter(|t| t.state == TaskState::Ready)
            .filter(|t| room || !t.is_scan())
            .filter(|t| if t.at_source() { at_source } else { at_destination })
            .filter(|t| t.bound.is_none() || self.may_flush(sync, t, worker))
            .filter(|t| worker.knows_options() || !wants_options(sync, &t.spec))
            .filter(|t| worker.knows_limits() || !(sync.wants_limits() && t.spec.sends()))
            .map(|t| Fit {
                better_elsewhere: now.mono_ms < t.spared_until_ms
                    && t.tried.contains(&worker.said.worker_id)
                    && others(t.at_source()).iter().any(|o| !t.tried.contains(o)),
                rank: match (t.at_source(), t.is_scan()) {
                    (false, _) => 0,
                    (true, true) if !scan_is_out => 1,
                    (true, false) => 2,
                    (true, true) => 3,
                },
                id: t.id,
            })
            .filter(|fit| !fit.better_elsewhere)
            .min()
            .map(|fit| fit.id)
    }

    /// Active workers that hold `path` and know what a sync asks for.
    pub(super) fn able<'a>(
        &'a self,
        sync: &'a Sync,
        path: &'a AbsPath,
    ) -> impl Iterator<Item = &'a Worker> {
        self.workers.pool(path).filter(|w| w.knows_options() || !sync.has_options())
    }

    /// The other workers that could do a sync's tasks at the source (`true`) or destination.
    fn others<'a>(
        &'a self,
        sync: &'a super::sync::Sync,
        worker: &Worker,
    ) -> impl Fn(bool) -> Vec<&'a WorkerId> + use<'a> {
        let me = worker.said.worker_id.clone();
        move |at_source| {
            let path =
                if at_source { &sync.request.source_path } else { &sync.request.destination_path };
            let ids = self.able(sync, path).map(|w| &w.said.worker_id);
            ids.filter(|id| **id != me).collect()
        }
    }

    /// A flush is done by the worker that wrote, or by one under the same kernel: they share a
    /// cache. After a reboot nobody can flush what was only in the cache.
    pub(super) fn may_flush(&self, sync: &super::sync::Sync, task: &Task, worker: &Worker) -> bool {
        let Some(bound) = &task.bound else { return true };
        let boot = sync.writers.get(bound).and_then(Option::as_ref);
        let same_kernel = worker.said.boot_id.as_ref() == boot;
        same_kernel && (worker.said.worker_id == *bound || boot.is_some())
    }

    fn lease(&mut self, id: TaskId, poll: &Parked, now: Now) -> Option<Assignment> {
        let mut drawn = [0; 16];
        drawn.copy_from_slice(&self.draw()[..16]);
        let assignment = AssignmentId(drawn);
        let task = self.tasks.get_mut(&id)?;
        task.attempt += 1;
        let lease = Lease {
            assignment,
            worker: poll.worker.clone(),
            incarnation: poll.incarnation.clone(),
            poll_id: poll.poll_id.clone(),
            deadline_ms: now.mono_ms + self.settings.lease_ms,
            page: 0,
        };
        self.leases.insert(&lease, id);
        task.state = TaskState::Leased(lease);
        let (key, no, again) = (task.key(), task.sync, task.attempt > 1);
        let (writes, sends) = (task.writes(), task.spec.sends());
        self.put(key);
        let farther = writes && self.note_reach(no, &poll.worker);
        if sends {
            self.share_in(no, &poll.worker, now);
        }
        self.served += 1;
        let served = self.served;
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.served = served;
            let first = sync.state == SyncState::Queued;
            if first {
                sync.state = SyncState::Progress;
                sync.started_ms.get_or_insert(now.wall_ms);
            }
            if again && sync.is_active() {
                sync.counters.retries += 1;
            }
            if first || again || farther {
                self.changed(no, now);
            }
        }
        self.assignment(self.tasks.get(&id)?, now)
    }

    /// The document for a leased task.
    fn assignment(&self, task: &Task, now: Now) -> Option<Assignment> {
        let sync = self.syncs.get(&task.sync)?;
        let lease = task.lease()?;
        let request = &sync.request;
        let claims = Claims::new(
            sync.no,
            &sync.id,
            lease.assignment,
            task.attempt,
            &lease.worker,
            &request.destination_path,
            now.wall_ms.div_euclid(1000),
            sync.rules(&task.spec),
        );
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
            task: task.spec.clone(),
            options: sync.options(),
            source_workers: self.able(sync, &request.source_path).map(Worker::member).collect(),
            destination_workers: self
                .workers
                .reachable(&request.destination_path)
                .filter(|w| w.knows_options() || !sync.has_options())
                .map(Worker::member)
                .collect(),
            ticket: self.signer.sign(&claims),
            share: task.spec.sends().then(|| self.shares.told_to(sync.no, &lease.worker)).flatten(),
        })
    }

    pub(super) fn manifest(&self, worker: &WorkerId, assignment: AssignmentId) -> Reply {
        let task = self.held(worker, assignment);
        match task.and_then(|t| t.blob.clone()) {
            Some(key) => Reply::Blob(key),
            None => Reply::Refused(Box::new(Problem::new(
                404,
                "Not Found",
                "assignment_not_held",
                format!("worker {worker} holds no assignment {assignment} with a manifest"),
            ))),
        }
    }

    /// The task that a worker holds under an assignment.
    pub(super) fn held(&self, worker: &WorkerId, assignment: AssignmentId) -> Option<&Task> {
        let task = self.tasks.get(self.leases.get(&assignment)?)?;
        task.lease().filter(|lease| lease.worker == *worker).map(|_| task)
    }

    /// Takes a task back from a worker that will never tell whom it wrote to: each worker that it
    /// could reach flushes in the end.
    fn lost(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get(&id).filter(|t| t.writes()) else {
            return self.requeue(id, now);
        };
        let no = task.sync;
        if let Some(sync) = self.syncs.get_mut(&no) {
            sync.suspect_all();
        }
        self.changed(no, now);
        self.requeue(id, now);
    }

    /// Notes the workers through which a task that is handed out now may write. True: there are more.
    fn note_reach(&mut self, no: SyncNo, worker: &WorkerId) -> bool {
        let Some(sync) = self.syncs.get_mut(&no) else { return false };
        let before = sync.reach.len();
        if sync.dry_run() {
            return false;
        }
        let destination = &sync.request.destination_path;
        let itself = self.workers.known.get(worker).filter(|w| w.holds(destination));
        for writer in self.workers.reachable(destination).chain(itself) {
            let said = &writer.said;
            if said.incarnation.is_some() && !sync.reach.contains_key(&said.worker_id) {
                sync.reach.insert(said.worker_id.clone(), said.boot_id.clone());
            }
        }
        sync.reach.len() > before
    }

    /// Takes a task back: it goes to the queue and will be leased with a higher attempt.
    pub(super) fn requeue(&mut self, id: TaskId, now: Now) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let worker = task.lease().map(|l| l.worker.clone());
        if let Some(lease) = task.lease() {
            self.leases.remove(lease);
        }
        if task.attempt >= MAX_ATTEMPTS {
            let who = worker.map_or_else(String::new, |w| format!(", last on worker {w}"));
            let why = format!("its lease ran out or was given back {MAX_ATTEMPTS} times{who}");
            self.give_up(id, &why, None, now);
            return;
        }
        task.state = TaskState::Ready;
        let (key, no) = (task.key(), task.sync);
        self.put(key);
        self.touched.insert(no);
        self.wake = true;
    }

    /// Time passed: leases and polls run out, delayed tasks come back, workers fall silent, old
    /// syncs are dropped.
    pub(super) fn tick(&mut self, now: Now) {
        let gap = now.mono_ms.saturating_sub(self.ticked_ms.unwrap_or(now.mono_ms));
        self.ticked_ms = Some(now.mono_ms);
        let slept = gap > self.settings.lease_ms / 2;
        let mut ran_out = Vec::new();
        let mut come_back = Vec::new();
        for task in self.tasks.values_mut() {
            match &mut task.state {
                // It was us who slept: the agents had no chance to renew.
                TaskState::Leased(lease) if slept => lease.deadline_ms += gap,
                TaskState::Leased(lease) if lease.deadline_ms <= now.mono_ms => {
                    ran_out.push((task.id, lease.worker.clone()));
                }
                TaskState::Delayed { until_ms } if *until_ms <= now.mono_ms => {
                    come_back.push(task.id);
                }
                _ => {}
            }
        }
        for (id, worker) in ran_out {
            tracing::warn!(task = %id, %worker, "a lease ran out: the task goes back to the queue");
            self.lost(id, now);
        }
        for id in come_back {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.state = TaskState::Ready;
                let key = task.key();
                self.put(key);
                self.wake = true;
            }
        }
        let timeout = self.settings.heartbeat_timeout_ms;
        self.workers.known.retain(|_, w| now.mono_ms.saturating_sub(w.heard_ms) < FORGET_MS);
        for (id, worker) in &mut self.workers.known {
            if slept {
                worker.heard_ms += gap;
            }
            let silent = now.mono_ms.saturating_sub(worker.heard_ms);
            if worker.active && silent > timeout {
                tracing::warn!(worker = %id, "no heartbeat for {} s", silent / 1000);
                worker.active = false;
            }
        }
        self.answer_expired_polls(now);
        self.tend_limits(now);
        self.flushes_in_vain(now);
        self.drop_old(now);
    }

    fn answer_expired_polls(&mut self, now: Now) {
        let expired: Vec<Caller> = self
            .parked
            .iter()
            .filter(|(_, poll)| poll.until_ms <= now.mono_ms)
            .map(|(caller, _)| *caller)
            .collect();
        for caller in expired {
            self.parked.remove(&caller);
            self.effects.push(Effect::Reply(caller, Reply::Assignment(None)));
        }
    }

    /// Gives work to the polls that wait for it, in the order in which they came.
    pub(super) fn serve_parked(&mut self, now: Now) {
        let mut open = self.open_syncs();
        let callers: Vec<Caller> = self.parked.keys().copied().collect();
        // What one poll of a worker does not get, the next one does not get either.
        let mut in_vain: HashSet<(WorkerId, Option<String>)> = HashSet::new();
        for caller in callers {
            if open.is_empty() {
                return;
            }
            let Some(poll) = self.parked.get(&caller) else { continue };
            let who = (poll.worker.clone(), poll.incarnation.clone());
            if in_vain.contains(&who) {
                continue;
            }
            let poll = poll.clone();
            match self.place(&poll, &open, now) {
                Some(assignment) => {
                    self.parked.remove(&caller);
                    let reply = Reply::Assignment(Some(Box::new(assignment)));
                    self.effects.push(Effect::Reply(caller, reply));
                    open = self.open_syncs();
                }
                None => drop(in_vain.insert(who)),
            }
        }
    }

    /// How full the window of a sync is: scanning stops at 1 and goes on below a half. Scans that
    /// wait do not count: only they can empty a window that they fill.
    pub(super) fn outstanding(&self, sync: &super::sync::Sync) -> f64 {
        let slots: u64 = self
            .workers
            .pool(&sync.request.source_path)
            .map(|w| u64::from(w.said.slots.unwrap_or(1)))
            .sum();
        // Enough for each slot to have its next tasks waiting; more would only be more to keep.
        let most = self.settings.window_tasks;
        let window = (4 * usize::try_from(slots).unwrap_or(most)).clamp(64.min(most), most);
        let tasks = sync.tasks.len() - sync.scans + sync.larges.len();
        let by_tasks = tasks as f64 / window as f64;
        let by_bytes = sync.blob_bytes as f64 / self.settings.window_bytes as f64;
        by_tasks.max(by_bytes)
    }

    /// How many polls of workers that hold a sync's source wait for work.
    pub(super) fn idle_polls(&self, sync: &super::sync::Sync) -> usize {
        let source = &sync.request.source_path;
        let waiting = self.parked.values().filter(|poll| {
            self.workers.known.get(&poll.worker).is_some_and(|w| w.takes_work() && w.holds(source))
        });
        waiting.count()
    }
}

/// Whether a task of a sync is for workers only that know options. A flush is the same with any.
fn wants_options(sync: &Sync, spec: &TaskSpec) -> bool {
    match spec {
        TaskSpec::Flush => false,
        TaskSpec::Sweep => true,
        _ => sync.has_options(),
    }
}

fn lease_mut(task: &mut Task) -> Option<&mut Lease> {
    match &mut task.state {
        TaskState::Leased(lease) => Some(lease),
        _ => None,
    }
}
