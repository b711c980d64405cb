//! Placement: which task goes to which worker. Indexes give the answer without a walk over all tasks or workers.

use super::isolation::IsolationDecision;
use super::sync_job::SyncJob;
use super::task::{Task, TaskState};
use super::worker_registry::Worker;
use super::{Now, State};
use crate::wire::sync::SyncState;
use crate::wire::task::TaskSpec;
use crate::wire::{SyncNo, TaskId, WorkerId};

/// A sync with tasks to assign, and the kinds of workers that can take them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunnableSync {
    pub(super) no: SyncNo,
    pub(super) has_source_task: bool,
    pub(super) has_destination_task: bool,
    /// Flushes that only certain workers can do.
    pub(super) has_pinned: bool,
}

impl State {
    /// The syncs with a task to assign now. At most `max_active_syncs` active ones are served;
    /// paused ones and those without a worker take no slot.
    pub(super) fn runnable_syncs(&self, now: Now) -> Vec<RunnableSync> {
        let all = self.tasks.syncs().filter_map(|no| self.syncs.get(no));
        let all = all.filter(|s| s.can_dispatch(now) && !self.is_waiting_for_overlap(s.no));
        let (mut active, ended): (Vec<&SyncJob>, Vec<&SyncJob>) = all.partition(|s| s.is_active());
        let most = self.settings.max_active_syncs;
        if active.len() > most {
            // Started syncs come first, each group in the order of submission.
            active.sort_by_key(|s| s.state == SyncState::Queued);
            let workable = active.into_iter().filter(|s| {
                self.workers.accepting(s.source()).next().is_some()
                    && self.workers.accepting(s.destination()).next().is_some()
                    || !self.tasks.sync_tasks(s.no).ready().pinned.is_empty()
            });
            active = workable.take(most).collect();
        }
        let open = active.into_iter().chain(ended).map(|sync| {
            let ready = self.tasks.sync_tasks(sync.no).ready();
            RunnableSync {
                no: sync.no,
                has_source_task: !ready.at_source.is_empty() || self.can_scan(sync),
                has_destination_task: !ready.at_destination.is_empty(),
                has_pinned: !ready.pinned.is_empty(),
            }
        });
        open.filter(|o| o.has_source_task || o.has_destination_task || o.has_pinned).collect()
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
            && self.capable_workers(sync, sync.destination()).next().is_some()
    }

    /// The best task of a sync for a worker. Commits come first (they free the window), then one
    /// scan (it produces work for others), then copies, then further scans; the oldest of each kind
    /// first. Tasks that the worker failed go to other workers for a while. A drained worker only
    /// flushes.
    pub(super) fn choose_task(&self, no: SyncNo, worker: &Worker, now: Now) -> Option<TaskId> {
        let sync = self.syncs.get(no)?;
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
