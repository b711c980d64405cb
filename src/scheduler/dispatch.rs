//! Polls and leases: a poll gets the best task, or waits until there is one.

use super::boot_ids::boot_part;
use super::isolation::IsolationDecision;
use super::placement::{Choice, RunnableSync};
use super::sync_job::SyncJob;
use super::task::{Lease, LeasedRelay, TaskState};
use super::{Caller, Now, Reply, State, WaitingPoll};
use crate::wire::sync::SyncState;
use crate::wire::task::{Assignment, TaskSpec};
use crate::wire::{AssignmentId, SyncNo, TaskId, WorkerId};
use std::collections::{BTreeSet, HashSet};

impl State {
    /// Assigns work to waiting polls: first flushes to the workers that alone can do them, then in
    /// the order of arrival. Only polls that may get something are examined.
    pub(super) fn dispatch_waiting_polls(&mut self, now: Now) {
        if self.poll_queue.is_empty() {
            return;
        }
        self.update_relays(now);
        let mut open = self.runnable_syncs(now);
        for caller in self.polls_for_pinned_tasks(&open) {
            if self.dispatch_poll(caller, &open, now) {
                open = self.runnable_syncs(now);
            }
        }
        // If one poll of a worker gets nothing, its other polls get nothing either.
        let mut without_task: HashSet<(WorkerId, Option<String>)> = HashSet::new();
        let mut after = None;
        while let Some(caller) = self.next_candidate_poll(&open, after) {
            after = Some(caller);
            let Some(poll) = self.poll_queue.get(caller) else { continue };
            let process = (poll.worker.clone(), poll.incarnation.clone());
            if without_task.contains(&process) {
                continue;
            }
            if self.dispatch_poll(caller, &open, now) {
                open = self.runnable_syncs(now);
            } else {
                without_task.insert(process);
            }
        }
    }

    /// False: there is no task for the poll.
    fn dispatch_poll(&mut self, caller: Caller, open: &[RunnableSync], now: Now) -> bool {
        let Some(poll) = self.poll_queue.get(caller).cloned() else { return false };
        let Some(assignment) = self.assign_task(&poll, open, now) else { return false };
        self.poll_queue.remove(caller);
        let reply = Reply::Assignment(Some(Box::new(assignment)));
        self.outbox.reply(caller, reply);
        true
    }

    /// Waiting polls of workers that may do a pinned flush.
    fn polls_for_pinned_tasks(&self, open: &[RunnableSync]) -> Vec<Caller> {
        let syncs = open.iter().filter(|o| o.has_pinned).filter_map(|o| self.syncs.get(o.no));
        let mut workers: BTreeSet<&WorkerId> = BTreeSet::new();
        for (place, tasks) in syncs.flat_map(|s| &self.tasks.sync_tasks(s.no).ready().pinned) {
            match place {
                Some(place) => {
                    let under = self.workers.with_boot(boot_part(place));
                    workers.extend(under.map(|w| &w.last_heartbeat.worker_id));
                }
                None => workers
                    .extend(tasks.iter().filter_map(|id| self.tasks.get(*id)?.pinned_to.as_ref())),
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
            let sync = self.syncs.get(o.no)?;
            let at = |wanted: bool, storage| {
                wanted.then(|| self.poll_queue.next_poll_at(storage, after)).flatten()
            };
            let at_source = at(o.has_source_task, sync.source_storage);
            let at_destination = at(o.has_destination_task, sync.destination_storage);
            let holders = self.relays.possible_holders(o.no);
            let at_holders = holders.filter_map(|holder| {
                self.poll_queue.next_poll_at(self.syncs.get(holder)?.destination_storage, after)
            });
            at_source.into_iter().chain(at_destination).chain(at_holders).min()
        };
        open.iter().filter_map(next).min()
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
            self.outbox.request_dispatch_if(self.workers.mark_seen(&poll.worker, now));
        }
        if let Some(id) = self.find_repeated_poll(&poll) {
            // Workers may have been added since.
            self.record_possible_writers(id, now);
            let again = self.tasks.get(id).and_then(|task| self.build_assignment(task, now));
            return Some(Reply::Assignment(again.map(Box::new)));
        }
        self.update_relays(now);
        let open = self.runnable_syncs(now);
        if let Some(assignment) = self.assign_task(&poll, &open, now) {
            return Some(Reply::Assignment(Some(Box::new(assignment))));
        }
        match caller {
            Some(caller) if poll.until_ms > now.mono_ms => {
                let storages = self.workers.storages_of(&poll.worker);
                self.poll_queue.insert(caller, poll, storages);
                None
            }
            _ => Some(Reply::Assignment(None)),
        }
    }

    /// The task that this poll got before, if its reply was lost.
    fn find_repeated_poll(&self, poll: &WaitingPoll) -> Option<TaskId> {
        poll.poll_id.as_ref()?;
        let is_repeated =
            |lease: &Lease| lease.incarnation == poll.incarnation && lease.poll_id == poll.poll_id;
        let mut held = self.tasks.held_by(&poll.worker);
        held.find(|task| task.lease().is_some_and(is_repeated)).map(|task| task.id)
    }

    /// Leases the best task for a worker. Syncs take turns: the least recently served one first.
    fn assign_task(
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
            IsolationDecision::RunAlone(id) => {
                return self.grant_lease(Choice::from_source(id), poll, now);
            }
            IsolationDecision::Wait => return None,
        }
        let worker = self.workers.get(&poll.worker)?;
        let mut turn: Vec<(u64, SyncNo)> =
            open.iter().filter_map(|o| Some((self.syncs.get(o.no)?.last_served, o.no))).collect();
        turn.sort_unstable();
        let choice = turn.into_iter().find_map(|(_, no)| self.choose_task(no, worker, now))?;
        self.grant_lease(choice, poll, now)
    }

    fn grant_lease(&mut self, choice: Choice, poll: &WaitingPoll, now: Now) -> Option<Assignment> {
        let assignment = AssignmentId(self.keys.draw());
        let id = choice.task;
        let task = self.tasks.get_mut(id)?;
        let digest = task.unit.and_then(|unit| self.relays.range_digest(unit));
        let relay = choice.holder.map(|holder| LeasedRelay { holder, digest });
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
            relay,
        };
        let (key, no, again) = (task.record_key(), task.sync, task.attempt > 1);
        let sends = task.spec.sends_content();
        let deletes = matches!(task.spec, TaskSpec::Prune { apply: true, .. });
        self.set_task_state(id, TaskState::Leased(lease));
        self.isolation.mark_leased(id);
        self.outbox.write_record(key);
        if deletes {
            self.choose_deleter(no, &poll.worker, now);
        }
        self.record_possible_writers(id, now);
        self.record_source_reader(id, &poll.worker, now);
        self.postpone_probe(no, now);
        self.workers.health.postpone_probe(&poll.worker, now);
        if sends {
            self.ensure_share(no, &poll.worker, now);
        }
        self.leases_granted += 1;
        let served = self.leases_granted;
        let group = self.syncs.get(no).and_then(SyncJob::group);
        if let Some(group) = group.and_then(|group| self.syncs.get_mut(group)) {
            group.last_served = served;
        }
        self.start_followers(no, now);
        if let Some(sync) = self.syncs.get_mut(no) {
            sync.last_served = served;
            let first = sync.state == SyncState::Queued && !sync.is_group();
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
        self.build_assignment(self.tasks.get(id)?, now)
    }
}
