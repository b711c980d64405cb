//! Placement: which task goes to which worker. Indexes give the answer without a walk over all tasks or workers.

use super::isolation::IsolationDecision;
use super::relay_table::UnitNo;
use super::sync_job::SyncJob;
use super::task::{Task, TaskState};
use super::worker_registry::Worker;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::task::TaskSpec;
use crate::wire::{SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;

/// A sync with tasks to assign, and the kinds of workers that can take them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunnableSync {
    pub(super) no: SyncNo,
    pub(super) has_source_task: bool,
    pub(super) has_destination_task: bool,
    /// Flushes that only certain workers can do.
    pub(super) has_pinned: bool,
}

/// A task for a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub(super) task: TaskId,
    /// The destination of which the worker sends the copy; `None`: it reads the source.
    pub(super) holder: Option<SyncNo>,
}

impl Choice {
    pub(super) fn from_source(task: TaskId) -> Self {
        Choice { task, holder: None }
    }
}

impl State {
    /// The syncs with a task to assign now. At most `max_active_syncs` active ones are served;
    /// paused ones and those without a worker take no slot.
    pub(super) fn runnable_syncs(&self, now: Now) -> Vec<RunnableSync> {
        let all: BTreeSet<SyncNo> = self.tasks.syncs().chain(self.relays.groups()).collect();
        let all = all.into_iter().filter_map(|no| self.syncs.get(no));
        let all = all.filter(|s| s.can_dispatch(now) && !self.is_waiting_for_overlap(s.no));
        let (mut active, ended): (Vec<&SyncJob>, Vec<&SyncJob>) = all.partition(|s| s.is_active());
        let most = self.settings.max_active_syncs;
        // The destinations of a sync are served together.
        let wholes: BTreeSet<SyncNo> = active.iter().map(|s| s.group().unwrap_or(s.no)).collect();
        if wholes.len() > most {
            // Started syncs come first, each group in the order of submission.
            active.sort_by_key(|s| self.unpaused_state(s) == SyncState::Queued);
            let workable = active.into_iter().filter(|s| {
                self.workers.accepting(s.source()).next().is_some() && self.has_acceptor(s, now)
                    || !self.tasks.sync_tasks(s.no).ready().pinned.is_empty()
            });
            let mut served: BTreeSet<SyncNo> = BTreeSet::new();
            let has_slot = |sync: &&SyncJob| {
                let whole = sync.group().unwrap_or(sync.no);
                let is_served = served.contains(&whole) || served.len() < most;
                if is_served {
                    served.insert(whole);
                }
                is_served
            };
            active = workable.filter(has_slot).collect();
        }
        let ended = ended.into_iter().filter(|sync| !self.is_destination_in_use(sync));
        let open = active.into_iter().chain(ended).map(|sync| {
            let ready = self.tasks.sync_tasks(sync.no).ready();
            RunnableSync {
                no: sync.no,
                has_source_task: !ready.at_source.is_empty()
                    || self.can_scan(sync)
                    || self.relays.can_source_send(sync.no),
                has_destination_task: !ready.at_destination.is_empty(),
                has_pinned: !ready.pinned.is_empty(),
            }
        });
        let has_task = |o: &RunnableSync| {
            o.has_source_task
                || o.has_destination_task
                || o.has_pinned
                || self.relays.possible_holders(o.no).next().is_some()
        };
        open.filter(has_task).collect()
    }

    /// Whether a worker accepts work at a destination of a sync; of a group, at one that does not wait: the sync that it
    /// waits for may be waiting for the slot.
    fn has_acceptor(&self, sync: &SyncJob, now: Now) -> bool {
        let accepts = |one: &SyncJob| self.workers.accepting(one.destination()).next().is_some();
        let can_continue = |one: &&SyncJob| {
            one.is_active() && one.can_dispatch(now) && !self.is_waiting_for_overlap(one.no)
        };
        match sync.is_group() {
            true => self.destinations_of(sync.no).filter(can_continue).any(accepts),
            false => accepts(sync),
        }
    }

    /// Updates which destinations can receive what others hold, and removes what cannot be sent: no worker of the
    /// destination accepts work.
    pub(super) fn update_relays(&mut self, now: Now) {
        if std::mem::replace(&mut self.relays_are_current, true) {
            return;
        }
        for group in self.relays.groups().collect::<Vec<_>>() {
            for no in self.syncs.destinations_of(group).collect::<Vec<_>>() {
                let Some(one) = self.syncs.get(no) else { continue };
                let is_open = one.is_active()
                    && one.can_dispatch(now)
                    && !self.is_waiting_for_overlap(no)
                    && self.has_writer(one);
                self.relays.set_open(group, no, is_open);
            }
            for holder in self.relays.possible_holders(group).collect::<Vec<_>>() {
                let sync = self.syncs.get(holder);
                if !sync.is_some_and(|sync| self.can_send_on(sync)) {
                    self.relays.remove_holder_everywhere(group, holder);
                }
            }
        }
    }

    /// Whether a worker of a destination can send what was copied there.
    fn can_send_on(&self, holder: &SyncJob) -> bool {
        let mut workers = self.workers.accepting(holder.destination());
        workers
            .any(|worker| worker.last_heartbeat.incarnation.is_some() && worker.supports_options())
    }

    /// Whether a scan is ready and the window has space for its results.
    fn can_scan(&self, sync: &SyncJob) -> bool {
        let has_scan = !self.tasks.sync_tasks(sync.no).ready().scans.is_empty();
        has_scan && self.has_window_for_scans(sync)
    }

    /// Whether a worker may take tasks that read the source: it serves the source, and some worker
    /// can write to the destination.
    fn can_read(&self, sync: &SyncJob, worker: &Worker) -> bool {
        worker.drained.is_none()
            && self.workers.serves(worker, sync.source())
            && self.has_writer(sync)
    }

    /// The best task of a sync for a worker. Commits come first (they free the window), then one
    /// scan (it produces work for others), then copies, then further scans; the oldest of each kind
    /// first. Tasks that the worker failed go to other workers for a while. A drained worker only
    /// flushes.
    pub(super) fn choose_task(&self, no: SyncNo, worker: &Worker, now: Now) -> Option<Choice> {
        let sync = self.syncs.get(no)?;
        if sync.is_group() {
            return self.choose_group_task(sync, worker, now);
        }
        self.choose_own_task(sync, worker, now).map(Choice::from_source)
    }

    /// A shared scan of a group, or a unit of its destinations: one that the worker can send on before one that it reads
    /// at the source, because that frees the windows.
    fn choose_group_task(&self, group: &SyncJob, worker: &Worker, now: Now) -> Option<Choice> {
        if worker.drained.is_some() {
            return None;
        }
        let queue = self.tasks.sync_tasks(group.no).ready();
        let reads = self.workers.serves(worker, group.source());
        let fits = |id: &&TaskId| {
            let task = self.tasks.get(**id).filter(|task| !self.isolation.contains(task.id));
            task.is_some_and(|task| self.is_eligible(group, task, worker, now))
        };
        let scan = || {
            let may_scan = reads && self.can_scan(group) && self.has_writer(group);
            may_scan.then(|| queue.scans.iter().find(fits)).flatten().copied()
        };
        let scan = || scan().map(Choice::from_source);
        let unit = || self.choose_unit(group.no, reads, worker, now);
        if queue.leased_scans == 0 { scan().or_else(unit) } else { unit().or_else(scan) }
    }

    fn choose_unit(&self, group: SyncNo, reads: bool, worker: &Worker, now: Now) -> Option<Choice> {
        let can_relay = worker.last_heartbeat.incarnation.is_some() && worker.supports_options();
        let serves = |holder: &SyncNo| {
            let sync = self.syncs.get(*holder);
            can_relay && sync.is_some_and(|sync| self.workers.serves(worker, sync.destination()))
        };
        let holders = self.relays.possible_holders(group).filter(serves).map(Some);
        let mut senders = holders.chain(reads.then_some(None));
        senders.find_map(|sender| {
            let mut units = self.relays.sendable(group, sender);
            let task = units.find_map(|unit| self.choose_receiver(unit, worker, now))?;
            Some(Choice { task, holder: sender })
        })
    }

    /// The task of the destination that gets a unit next: the one to which the fewest copies are on their way, then the
    /// one that was served least recently.
    fn choose_receiver(&self, unit: UnitNo, worker: &Worker, now: Now) -> Option<TaskId> {
        let key = |(no, id, in_flight): (SyncNo, TaskId, usize)| {
            Some((in_flight, self.syncs.get(no)?.last_served, id))
        };
        let fits = |id: &TaskId| {
            let task = self.tasks.get(*id).filter(|task| !self.isolation.contains(task.id));
            let sync = task.and_then(|task| self.syncs.get(task.sync));
            task.zip(sync).is_some_and(|(task, sync)| self.is_eligible(sync, task, worker, now))
        };
        let first = self.relays.receivers(unit).filter_map(key).min()?;
        if fits(&first.2) {
            return Some(first.2);
        }
        let mut all: Vec<_> = self.relays.receivers(unit).filter_map(key).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, _, id)| id).find(fits)
    }

    fn choose_own_task(&self, sync: &SyncJob, worker: &Worker, now: Now) -> Option<TaskId> {
        let no = sync.no;
        let queue = self.tasks.sync_tasks(no).ready();
        let fits = |id: &&TaskId| {
            let task = self.tasks.get(**id).filter(|task| !self.isolation.contains(task.id));
            task.is_some_and(|task| self.is_eligible(sync, task, worker, now))
        };
        if self.workers.serves(worker, sync.destination()) {
            let place = worker.boot_and_root(&sync.request.destination_path);
            let bound = queue.pinned.get(&place).into_iter().flatten().find(fits);
            if worker.drained.is_some() {
                return bound.copied();
            }
            let first = queue.at_destination.iter().find(fits).into_iter().chain(bound).min();
            if first.is_some() {
                return first.copied();
            }
        }
        if !self.can_read(sync, worker) {
            return None;
        }
        let scan = || self.can_scan(sync).then(|| queue.scans.iter().find(fits)).flatten();
        let copy = || queue.at_source.iter().find(fits);
        let first =
            if queue.leased_scans == 0 { scan().or_else(copy) } else { copy().or_else(scan) };
        first.copied()
    }

    /// Whether a worker that serves the path of a task may get the task now.
    fn is_eligible(&self, sync: &SyncJob, task: &Task, worker: &Worker, now: Now) -> bool {
        let me = &worker.last_heartbeat.worker_id;
        let others = || {
            let able = self.capable_workers(sync, sync.place(task.runs_at_source()));
            able.map(|w| &w.last_heartbeat.worker_id).filter(|id| *id != me)
        };
        let spared = now.mono_ms < task.deprioritised_until_ms
            && task.failed_or_lost_on(me)
            && others().any(|o| !task.failed_or_lost_on(o));
        let is_limited = sync.is_limited() && task.spec.sends_content();
        let needs_options = match task.spec {
            TaskSpec::Flush => false,
            TaskSpec::CleanUp => true,
            _ => sync.has_nondefault_options(),
        };
        let able = worker.supports_options() || !(needs_options || is_limited);
        let aside = self.workers.health.is_quarantined(me, now)
            && task.pinned_to.is_none()
            && others().any(|o| {
                !self.workers.health.is_quarantined(o, now) && !task.history.failed_on.contains(o)
            });
        let deletes = matches!(task.spec, TaskSpec::Prune { apply: true, .. });
        let early = deletes && self.must_wait_for_deletions(sync, me);
        able && !early
            && !spared
            && !aside
            && (task.pinned_to.is_none() || self.can_flush(sync, task, worker))
    }

    /// Whether a worker can run a ready task, regardless of other tasks.
    fn can_run_task(&self, task: &Task, worker: &Worker, now: Now) -> bool {
        let Some(sync) = self.syncs.get(task.sync) else { return false };
        let there = if task.pinned_to.is_none() && task.runs_at_source() {
            self.can_read(sync, worker) && (!task.is_scan() || self.has_window_for_scans(sync))
        } else {
            let takes = task.pinned_to.is_some() || worker.drained.is_none();
            takes && self.workers.serves(worker, sync.destination())
        };
        there && self.is_eligible(sync, task, worker, now)
    }

    /// Whether a polling worker gets an isolated task, or is reserved for one.
    pub(super) fn decide_isolation(
        &mut self,
        worker: &WorkerId,
        open: &[RunnableSync],
        now: Now,
    ) -> IsolationDecision {
        if self.isolation.is_empty() {
            return IsolationDecision::Ordinary;
        }
        if self.tasks.held_by(worker).any(|held| self.isolation.contains(held.id)) {
            return IsolationDecision::Wait;
        }
        let (tasks, workers) = (&self.tasks, &self.workers);
        if self.isolation.running().is_some_and(|id| tasks.is_leased(id)) {
            return IsolationDecision::Ordinary;
        }
        let is_idle = tasks.held_by(worker).next().is_none();
        let found = self.find_isolated_task(worker, open, now);
        let is_valid = |worker: &WorkerId, task: TaskId| {
            tasks.get(task).is_some_and(|task| task.state == TaskState::Ready)
                && workers.get(worker).is_some_and(Worker::is_ready)
        };
        self.isolation.decide(worker, found, is_idle, is_valid, now.mono_ms)
    }

    /// The first isolated task that a worker can do now.
    fn find_isolated_task(
        &self,
        worker: &WorkerId,
        open: &[RunnableSync],
        now: Now,
    ) -> Option<TaskId> {
        let worker = self.workers.get(worker)?;
        let tasks = self.isolation.tasks().filter_map(|id| self.tasks.get(id));
        let mut ready = tasks.filter(|task| {
            task.state == TaskState::Ready
                && !task.needs_split()
                && open.iter().any(|open| open.no == task.sync)
        });
        ready.find(|task| self.can_run_task(task, worker, now)).map(|task| task.id)
    }
}
