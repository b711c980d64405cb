//! Which task goes to which poll: found by what is filed, without a walk over all tasks, polls or workers.

use super::boots::boot_of;
use super::leases::wants_options;
use super::sync::Sync;
use super::task::Task;
use super::worker::Worker;
use super::{Caller, Effect, Now, Reply, State};
use crate::wire::sync::SyncState;
use crate::wire::task::TaskSpec;
use crate::wire::{SyncNo, TaskId, WorkerId};
use std::collections::{BTreeSet, HashSet};

/// A sync that has something to hand out, and to whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) no: SyncNo,
    at_source: bool,
    at_destination: bool,
    /// Flushes for certain workers.
    bound: bool,
}

impl State {
    /// The syncs that have a task to hand out now. Of the active ones so many are worked on at once as
    /// is set; those that wait for a worker, or are paused, keep nobody from his turn.
    pub(super) fn open_syncs(&self, now: Now) -> Vec<Open> {
        let all = self.working.iter().filter_map(|no| self.syncs.get(no));
        let all = all.filter(|s| s.goes_on(now) && !self.waits_for_overlap(s.no));
        let (mut active, ended): (Vec<&Sync>, Vec<&Sync>) = all.partition(|s| s.is_active());
        let most = self.settings.max_active_syncs;
        if active.len() > most {
            // Begun ones first, each kind in the order in which they were submitted.
            active.sort_by_key(|s| s.state == SyncState::Queued);
            let workable = active.into_iter().filter(|s| {
                let request = &s.request;
                self.workers.pool(&request.source_path).next().is_some()
                    && self.workers.pool(&request.destination_path).next().is_some()
                    || !s.queue.bound.is_empty()
            });
            active = workable.take(most).collect();
        }
        let open = active.into_iter().chain(ended).map(|sync| Open {
            no: sync.no,
            at_source: !sync.queue.at_source.is_empty() || self.may_scan(sync),
            at_destination: !sync.queue.at_destination.is_empty(),
            bound: !sync.queue.bound.is_empty(),
        });
        open.filter(|o| o.at_source || o.at_destination || o.bound).collect()
    }

    /// Whether there is a scan to hand out, and room for what it finds.
    fn may_scan(&self, sync: &Sync) -> bool {
        !sync.queue.scans.is_empty() && self.has_room_for_scans(sync)
    }

    fn has_room_for_scans(&self, sync: &Sync) -> bool {
        self.outstanding(sync) < 0.5
    }

    /// Whether a worker takes tasks that read the source of a sync: it holds that, and another worker (or it itself)
    /// can write what is read.
    fn may_read(&self, sync: &Sync, worker: &Worker) -> bool {
        worker.drained.is_none()
            && worker.holds(&sync.request.source_path)
            && self.able(sync, &sync.request.destination_path).next().is_some()
    }

    /// The task of a sync that fits a worker best. Publishing comes first (it frees the window), then
    /// one scan (it finds work for the others), then copying, then further scans; of each the oldest.
    /// What the worker has failed is left to others for a while. One that is drained only flushes.
    pub(super) fn choose(&self, no: SyncNo, worker: &Worker, now: Now) -> Option<TaskId> {
        let sync = self.syncs.get(&no)?;
        let queue = &sync.queue;
        let fits = |id: &&TaskId| {
            let task = self.tasks.get(id).filter(|task| !self.isolated.has(task.id));
            task.is_some_and(|task| self.fits(sync, task, worker, now))
        };
        if worker.holds(&sync.request.destination_path) {
            let place = worker.place_of_writes(&sync.request.destination_path);
            let bound = queue.bound.get(&place).into_iter().flatten().find(fits);
            if worker.drained.is_some() {
                return bound.copied();
            }
            let first = queue.at_destination.iter().find(fits).into_iter().chain(bound).min();
            if first.is_some() {
                return first.copied();
            }
        }
        if !self.may_read(sync, worker) {
            return None;
        }
        let scan = || self.may_scan(sync).then(|| queue.scans.iter().find(fits)).flatten();
        let copy = || queue.at_source.iter().find(fits);
        let first = if queue.scans_out == 0 { scan().or_else(copy) } else { copy().or_else(scan) };
        first.copied()
    }

    /// Whether a task is for a worker that holds the path where it is done.
    fn fits(&self, sync: &Sync, task: &Task, worker: &Worker, now: Now) -> bool {
        let me = &worker.said.worker_id;
        let others = self.others(sync, worker);
        let spared = now.mono_ms < task.spared_until_ms
            && task.was_bad_for(me)
            && others(task.at_source()).any(|o| !task.was_bad_for(o));
        let able = (worker.knows_options() || !wants_options(sync, &task.spec))
            && (worker.knows_limits() || !(sync.wants_limits() && task.spec.sends_content()));
        let aside = self.outcomes.is_aside(me, now)
            && task.bound.is_none()
            && others(task.at_source())
                .any(|o| !self.outcomes.is_aside(o, now) && !task.tried.contains(o));
        let deletes = matches!(task.spec, TaskSpec::Prune { apply: true, .. });
        let early = deletes && self.waits_for_deletions(sync, me);
        able && !early
            && !spared
            && !aside
            && (task.bound.is_none() || self.may_flush(sync, task, worker))
    }

    /// Whether a worker can do a task that is ready, whatever else there is to do.
    pub(super) fn can_do(&self, task: &Task, worker: &Worker, now: Now) -> bool {
        let Some(sync) = self.syncs.get(&task.sync) else { return false };
        let there = if task.bound.is_none() && task.at_source() {
            self.may_read(sync, worker) && (!task.is_scan() || self.has_room_for_scans(sync))
        } else {
            let takes = task.bound.is_some() || worker.drained.is_none();
            takes && worker.holds(&sync.request.destination_path)
        };
        there && self.fits(sync, task, worker, now)
    }

    /// Gives work to the polls that wait for it: first flushes to those who alone can do them, then in
    /// the order in which the polls came. Only polls that may take something are looked at.
    pub(super) fn serve_parked(&mut self, now: Now) {
        if self.waiting.is_empty() {
            return;
        }
        let mut open = self.open_syncs(now);
        for caller in self.flushers(&open) {
            if self.serve(caller, &open, now) {
                open = self.open_syncs(now);
            }
        }
        // What one poll of a worker does not get, the next one does not get either.
        let mut in_vain: HashSet<(WorkerId, Option<String>)> = HashSet::new();
        let mut after = None;
        while let Some(caller) = self.next_waiting(&open, after) {
            after = Some(caller);
            let Some(poll) = self.waiting.get(caller) else { continue };
            let who = (poll.worker.clone(), poll.incarnation.clone());
            if in_vain.contains(&who) {
                continue;
            }
            if self.serve(caller, &open, now) {
                open = self.open_syncs(now);
            } else {
                in_vain.insert(who);
            }
        }
    }

    /// Gives work to a poll that waits. False: there is none for it.
    fn serve(&mut self, caller: Caller, open: &[Open], now: Now) -> bool {
        let Some(poll) = self.waiting.get(caller).cloned() else { return false };
        let Some(assignment) = self.place(&poll, open, now) else { return false };
        self.waiting.remove(caller);
        let reply = Reply::Assignment(Some(Box::new(assignment)));
        self.effects.push(Effect::Reply(caller, reply));
        true
    }

    /// The waiting polls of workers that may do a flush that not everybody can.
    fn flushers(&self, open: &[Open]) -> Vec<Caller> {
        let syncs = open.iter().filter(|o| o.bound).filter_map(|o| self.syncs.get(&o.no));
        let mut workers: BTreeSet<&WorkerId> = BTreeSet::new();
        for (place, tasks) in syncs.flat_map(|s| &s.queue.bound) {
            match place {
                Some(place) => {
                    let under = self.workers.of_boot(boot_of(place));
                    workers.extend(under.map(|w| &w.said.worker_id));
                }
                None => {
                    workers.extend(tasks.iter().filter_map(|id| self.tasks.get(id)?.bound.as_ref()))
                }
            }
        }
        let mut callers: Vec<Caller> =
            workers.into_iter().flat_map(|worker| self.waiting.of(worker)).collect();
        callers.sort_unstable();
        callers
    }

    /// The poll that came next behind `after`, of those that may find something in the syncs `open`.
    fn next_waiting(&self, open: &[Open], after: Option<Caller>) -> Option<Caller> {
        let next = |o: &Open| {
            let request = &self.syncs.get(&o.no)?.request;
            let at =
                |wanted: bool, path| wanted.then(|| self.waiting.next_at(path, after)).flatten();
            let at_source = at(o.at_source, &request.source_path);
            let at_destination = at(o.at_destination, &request.destination_path);
            at_source.into_iter().chain(at_destination).min()
        };
        open.iter().filter_map(next).min()
    }
}
