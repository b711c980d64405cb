//! Placement: which task goes to which poll. Indexes give the answer without a walk over all tasks,
//! polls or workers.

use super::boot_ids::boot_part;
use super::leases::needs_options;
use super::sync_job::SyncJob;
use super::task::Task;
use super::worker_registry::Worker;
use super::{Caller, Effect, Now, Reply, State};
use crate::wire::sync::SyncState;
use crate::wire::task::TaskSpec;
use crate::wire::{SyncNo, TaskId, WorkerId};
use std::collections::{BTreeSet, HashSet};

/// A sync with tasks to assign, and the kinds of workers that can take them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunnableSync {
    pub(super) no: SyncNo,
    has_source_task: bool,
    has_destination_task: bool,
    /// Flushes that only certain workers can do.
    has_pinned: bool,
}

impl State {
    /// The syncs with a task to assign now. At most `max_active_syncs` active ones are served;
    /// paused ones and those without a worker take no slot.
    pub(super) fn runnable_syncs(&self, now: Now) -> Vec<RunnableSync> {
        let all = self.syncs_with_tasks.iter().filter_map(|no| self.syncs.get(no));
        let all = all.filter(|s| s.can_dispatch(now) && !self.is_waiting_for_overlap(s.no));
        let (mut active, ended): (Vec<&SyncJob>, Vec<&SyncJob>) = all.partition(|s| s.is_active());
        let most = self.settings.max_active_syncs;
        if active.len() > most {
            // Started syncs come first, each group in the order of submission.
            active.sort_by_key(|s| s.state == SyncState::Queued);
            let workable = active.into_iter().filter(|s| {
                let request = &s.request;
                self.workers.accepting(&request.source_path).next().is_some()
                    && self.workers.accepting(&request.destination_path).next().is_some()
                    || !s.queue.pinned.is_empty()
            });
            active = workable.take(most).collect();
        }
        let open = active.into_iter().chain(ended).map(|sync| RunnableSync {
            no: sync.no,
            has_source_task: !sync.queue.at_source.is_empty() || self.can_scan(sync),
            has_destination_task: !sync.queue.at_destination.is_empty(),
            has_pinned: !sync.queue.pinned.is_empty(),
        });
        open.filter(|o| o.has_source_task || o.has_destination_task || o.has_pinned).collect()
    }

    /// Whether a scan is ready and the window has space for its results.
    fn can_scan(&self, sync: &SyncJob) -> bool {
        !sync.queue.scans.is_empty() && self.has_window_for_scans(sync)
    }

    fn has_window_for_scans(&self, sync: &SyncJob) -> bool {
        self.window_fill(sync) < 0.5
    }

    /// Whether a worker may take tasks that read the source: it serves the source, and some worker
    /// can write to the destination.
    fn can_read(&self, sync: &SyncJob, worker: &Worker) -> bool {
        worker.drained.is_none()
            && worker.serves(&sync.request.source_path)
            && self.capable_workers(sync, &sync.request.destination_path).next().is_some()
    }

    /// The best task of a sync for a worker. Commits come first (they free the window), then one
    /// scan (it produces work for others), then copies, then further scans; the oldest of each kind
    /// first. Tasks that the worker failed go to other workers for a while. A drained worker only
    /// flushes.
    pub(super) fn choose_task(&self, no: SyncNo, worker: &Worker, now: Now) -> Option<TaskId> {
        let sync = self.syncs.get(&no)?;
        let queue = &sync.queue;
        let fits = |id: &&TaskId| {
            let task = self.tasks.get(id).filter(|task| !self.isolation.contains(task.id));
            task.is_some_and(|task| self.is_eligible(sync, task, worker, now))
        };
        if worker.serves(&sync.request.destination_path) {
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
        let others = self.other_capable_workers(sync, worker);
        let spared = now.mono_ms < task.deprioritised_until_ms
            && task.failed_or_lost_on(me)
            && others(task.runs_at_source()).any(|o| !task.failed_or_lost_on(o));
        let able = (worker.supports_options() || !needs_options(sync, &task.spec))
            && (worker.supports_options() || !(sync.is_limited() && task.spec.sends_content()));
        let aside = self.worker_health.is_quarantined(me, now)
            && task.pinned_to.is_none()
            && others(task.runs_at_source())
                .any(|o| !self.worker_health.is_quarantined(o, now) && !task.failed_on.contains(o));
        let deletes = matches!(task.spec, TaskSpec::Prune { apply: true, .. });
        let early = deletes && self.must_wait_for_deletions(sync, me);
        able && !early
            && !spared
            && !aside
            && (task.pinned_to.is_none() || self.can_flush(sync, task, worker))
    }

    /// Whether a worker can run a ready task, regardless of other tasks.
    pub(super) fn can_run_task(&self, task: &Task, worker: &Worker, now: Now) -> bool {
        let Some(sync) = self.syncs.get(&task.sync) else { return false };
        let there = if task.pinned_to.is_none() && task.runs_at_source() {
            self.can_read(sync, worker) && (!task.is_scan() || self.has_window_for_scans(sync))
        } else {
            let takes = task.pinned_to.is_some() || worker.drained.is_none();
            takes && worker.serves(&sync.request.destination_path)
        };
        there && self.is_eligible(sync, task, worker, now)
    }

    /// Assigns work to waiting polls: first flushes to the workers that alone can do them, then in
    /// the order of arrival. Only polls that may get something are examined.
    pub(super) fn dispatch_waiting_polls(&mut self, now: Now) {
        if self.poll_queue.is_empty() {
            return;
        }
        let mut open = self.runnable_syncs(now);
        for caller in self.polls_for_pinned_tasks(&open) {
            if self.dispatch_poll(caller, &open, now) {
                open = self.runnable_syncs(now);
            }
        }
        // If one poll of a worker gets nothing, its other polls get nothing either.
        let mut in_vain: HashSet<(WorkerId, Option<String>)> = HashSet::new();
        let mut after = None;
        while let Some(caller) = self.next_candidate_poll(&open, after) {
            after = Some(caller);
            let Some(poll) = self.poll_queue.get(caller) else { continue };
            let who = (poll.worker.clone(), poll.incarnation.clone());
            if in_vain.contains(&who) {
                continue;
            }
            if self.dispatch_poll(caller, &open, now) {
                open = self.runnable_syncs(now);
            } else {
                in_vain.insert(who);
            }
        }
    }

    /// False: there is no task for the poll.
    fn dispatch_poll(&mut self, caller: Caller, open: &[RunnableSync], now: Now) -> bool {
        let Some(poll) = self.poll_queue.get(caller).cloned() else { return false };
        let Some(assignment) = self.assign_task(&poll, open, now) else { return false };
        self.poll_queue.remove(caller);
        let reply = Reply::Assignment(Some(Box::new(assignment)));
        self.effects.push(Effect::Reply(caller, reply));
        true
    }

    /// Waiting polls of workers that may do a pinned flush.
    fn polls_for_pinned_tasks(&self, open: &[RunnableSync]) -> Vec<Caller> {
        let syncs = open.iter().filter(|o| o.has_pinned).filter_map(|o| self.syncs.get(&o.no));
        let mut workers: BTreeSet<&WorkerId> = BTreeSet::new();
        for (place, tasks) in syncs.flat_map(|s| &s.queue.pinned) {
            match place {
                Some(place) => {
                    let under = self.workers.with_boot(boot_part(place));
                    workers.extend(under.map(|w| &w.last_heartbeat.worker_id));
                }
                None => workers
                    .extend(tasks.iter().filter_map(|id| self.tasks.get(id)?.pinned_to.as_ref())),
            }
        }
        let mut callers: Vec<Caller> =
            workers.into_iter().flat_map(|worker| self.poll_queue.callers_of(worker)).collect();
        callers.sort_unstable();
        callers
    }

    /// The first poll after `after` that may find a task in the syncs `open`.
    fn next_candidate_poll(&self, open: &[RunnableSync], after: Option<Caller>) -> Option<Caller> {
        let next = |o: &RunnableSync| {
            let request = &self.syncs.get(&o.no)?.request;
            let at = |wanted: bool, path| {
                wanted.then(|| self.poll_queue.next_poll_at(path, after)).flatten()
            };
            let at_source = at(o.has_source_task, &request.source_path);
            let at_destination = at(o.has_destination_task, &request.destination_path);
            at_source.into_iter().chain(at_destination).min()
        };
        open.iter().filter_map(next).min()
    }
}
