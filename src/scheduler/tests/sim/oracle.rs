//! What must hold, checked after every event: the invariants by their numbers in the design.

use super::agent_work::{EXTRAS, Target};
use super::checks::{
    conflicts_by_path, disk_of, entries_add_up, same_as_stored, storages_are_true,
    tasks_are_in_one_place,
};
use super::operator::name;
use super::relay_oracle::{RelayGrant, RelayLog};
use super::storage_model::{Id, WriteMark};
use super::store::Store;
use super::world::Sim;
use super::*;

use crate::scheduler::pause::Pause;
use crate::wire::options::Verify;
use crate::wire::outcome::Side;
use std::collections::{HashMap, HashSet};

/// A lease that was given.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    task: TaskId,
    attempt: u32,
    digest: Digest,
    worker: crate::wire::WorkerId,
    /// Which sync it is of: numbers and names may come again after the store lost something.
    pub(super) life: u32,
    /// The commit with which it was stored.
    seq: Option<u64>,
    /// The store lost it, and no agent reports it.
    pub(super) void: bool,
    /// The disks of its source and its destination: those of the workers that the scheduler then had for them.
    disks: [Option<usize>; 2],
    pub(super) sync: SyncNo,
    /// When it was given.
    pub(super) at: u64,
    /// The sync with several destinations that its sync is a part of.
    pub(super) group: Option<SyncNo>,
    /// Of a relay: the copy that it sends on.
    pub(super) relay: Option<RelayGrant>,
}

/// A sync as it was first seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SyncRun {
    pub(super) life: u32,
    name: crate::wire::RequestId,
    ended: Option<SyncState>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) grants: HashMap<AssignmentId, Grant>,
    current: HashMap<TaskId, AssignmentId>,
    fresh: Vec<AssignmentId>,
    pub(super) lives: BTreeMap<SyncNo, SyncRun>,
    count: u32,
    /// Each sync as submitted, and whether its start is stored.
    submitted: HashMap<u32, (SyncJob, bool)>,
    /// Syncs that have started since the last commit. A start that is never stored has no effect outside of the master.
    fresh_starts: Vec<u32>,
    /// When each was cancelled.
    stopped: HashMap<u32, u64>,
    /// Number of commits that the store lost without notice to the master.
    behind: Option<u64>,
    /// It ever did.
    pub(super) forgetful: bool,
    /// The disk of the destination of each sync.
    bound: HashMap<u32, usize>,
    /// Entries, each of a sync, that were copied through a worker that is wrongly believed to see the destination.
    pub(super) spoiled: HashSet<(u32, Id)>,
    /// What is known of relays and of damage.
    pub(super) relays: RelayLog,
    /// The version of the table of storages that was checked.
    checked: u64,
    /// Results that were sent.
    pub(super) sent: Vec<TaskResult>,
    pub(super) events: u64,
    /// The whole state is checked after so many events; 0: after each.
    pub(super) check_interval: u64,
}

/// What is known before an event.
pub(super) struct Before {
    /// For a result: whether it may count.
    may_count: Option<bool>,
    task: Option<TaskId>,
}

impl Oracle {
    pub(super) fn before(&mut self, state: &State, event: &Event) -> Before {
        let Event::Result(result) = event else { return Before { may_count: None, task: None } };
        self.relays.note_result(result);
        if self.sent.len() < 200 {
            self.sent.push(result.clone());
        }
        let id = result.assignment_id.expect("agents of this version say which");
        let grant = self.grants.get(&id);
        let fits = grant.is_some_and(|g| {
            let leased = state.tasks.get(g.task).and_then(|task| task.lease());
            self.current.get(&g.task) == Some(&id)
                && leased.is_some_and(|lease| lease.assignment == id)
                && (result.attempt, result.task_digest) == (Some(g.attempt), Some(g.digest))
                && result.worker_id == g.worker
        });
        Before { may_count: Some(fits), task: grant.map(|g| g.task) }
    }

    pub(super) fn after(
        &mut self,
        before: Before,
        effects: &[Effect],
        state: &State,
        sim: &mut Sim,
        old: bool,
    ) {
        if old {
            return;
        }
        self.events += 1;
        let is_due = self.events.is_multiple_of(self.check_interval.max(1));
        let is_known = |a: &Assignment| {
            state.tasks.get(a.task_id).is_none_or(|task| self.lives.contains_key(&task.sync))
        };
        let mut given = effects.iter().filter_map(|effect| match effect {
            Effect::Reply(_, Reply::Assignment(Some(a))) => Some(a),
            _ => None,
        });
        if is_due || !given.all(|a| is_known(a)) {
            self.check_known(state, sim);
        }
        if let Some(may_count) = before.may_count {
            self.result(may_count, before.task, effects);
            self.damage_was_reported(effects, state);
        }
        for effect in effects {
            if let Effect::Reply(_, Reply::Assignment(Some(a))) = effect {
                self.granted(a, state, sim);
            }
        }
        if !is_due {
            return;
        }
        for sync in state.syncs.values() {
            entries_add_up(sync, state);
        }
        tasks_are_in_one_place(state);
        let version = state.workers.storages.version();
        if std::mem::replace(&mut self.checked, version) != version {
            storages_are_true(state, sim);
        }
        if !sim.storages.has_moves && sim.storages.is_honest {
            self.conflicts_wait(state);
        }
        self.follow_states(state, sim);
    }

    /// I4, I5, I16: a result counts only if it names what is current, and else changes nothing.
    fn result(&mut self, may_count: bool, task: Option<TaskId>, effects: &[Effect]) {
        let outcome = effects.iter().find_map(|effect| match effect {
            Effect::Reply(_, Reply::Result(reply)) => reply.outcome,
            _ => None,
        });
        let counted = outcome == Some(ResultOutcome::Applied);
        assert!(may_count || !counted, "I4: a result that is not current was counted");
        assert!(counted || effects.len() <= 1, "I4: a result that did not count changed something");
        if let (true, Some(task)) = (counted, task) {
            self.current.remove(&task);
        }
    }

    /// I15: nothing is handed out of a sync that an operator paused.
    fn granted(&mut self, a: &Assignment, state: &State, sim: &Sim) {
        let id = a.assignment_id;
        let Some(task) = state.tasks.get(a.task_id) else { return };
        let sync = &state.syncs[&task.sync];
        let disks = [sync.source(), sync.destination()].map(|place| disk_of(state, place, sim));
        if let Some(grant) = self.grants.get_mut(&id) {
            // A lease that is given again is for the roots of now.
            grant.disks = disks;
            let current = self.current.get(&a.task_id);
            return assert!(current == Some(&id), "I3: a lease was given again that has ended");
        }
        let paused = state.syncs[&task.sync].pause == Some(Pause::Operator);
        let active = state.syncs[&task.sync].is_active();
        assert!(!(paused && active), "I15: a task of a paused sync was handed out");
        let life = self.lives[&task.sync].life;
        let relay = self.relay_grant(a, sync, state, sim);
        if let Some(disk) = disks[1] {
            self.bound.insert(life, disk);
        }
        let grant = Grant {
            disks,
            sync: sync.no,
            at: sim.time,
            group: sync.group(),
            relay,
            task: a.task_id,
            attempt: a.attempt,
            digest: a.task_digest,
            worker: a.worker_id.clone(),
            life,
            seq: None,
            void: false,
        };
        self.grants.insert(id, grant);
        self.current.insert(a.task_id, id);
        self.fresh.push(id);
    }

    /// Makes the acquaintance of new syncs.
    fn check_known(&mut self, state: &State, sim: &mut Sim) {
        for sync in state.syncs.values() {
            match self.lives.get(&sync.no) {
                Some(known) if known.name == sync.id => {}
                Some(known) => {
                    panic!("I16: number {} of {} went to {}", sync.no, known.name, sync.id)
                }
                None => {
                    self.count += 1;
                    let life = SyncRun { life: self.count, name: sync.id.clone(), ended: None };
                    self.submitted.insert(self.count, (sync.clone(), false));
                    sim.trace(|_| format!("       sync {} is number {}", sync.id, sync.no));
                    self.lives.insert(sync.no, life);
                }
            }
        }
    }

    /// I24: what has ended stays as it ended. I12: COMPLETED means that all of it is there.
    fn follow_states(&mut self, state: &State, sim: &mut Sim) {
        for sync in state.syncs.values() {
            let Some(known) = self.lives.get_mut(&sync.no) else { continue };
            if let Some(ended) = known.ended {
                assert!(
                    ended == sync.state,
                    "I24: {} went from {ended:?} to {:?}",
                    sync.id,
                    sync.state
                );
                continue;
            }
            if sync.state == SyncState::Progress {
                self.fresh_starts.push(known.life);
            }
            self.relays.follow_phase(known.life, sync.phase, sim.time);
            if !sync.is_active() {
                known.ended = Some(sync.state);
                let life = known.life;
                sim.trace(|_| {
                    format!("       sync {} ends: {:?} {:?}", sync.id, sync.state, sync.reason)
                });
                if sync.state == SyncState::Completed {
                    self.completed(sync, life, state, sim);
                } else if sync.state == SyncState::Cancelled {
                    self.stopped.insert(life, sim.time);
                }
            }
        }
    }

    /// Whether something that was lost, or is not on the disk yet, is to be blamed on a sync.
    pub(super) fn explains_failure(&self, marks: &BTreeSet<WriteMark>, life: u32) -> bool {
        let void = |mark: &WriteMark| self.grants.get(&mark.by).is_none_or(|grant| grant.void);
        marks.iter().any(|mark| mark.sync == life && !void(mark))
    }

    fn completed(&self, sync: &SyncJob, life: u32, state: &State, sim: &Sim) {
        if sync.is_group() {
            let mut all = state.destinations_of(sync.no).peekable();
            assert!(all.peek().is_some(), "I28: {} completed without a destination", sync.id);
            let lacking = all.find(|one| one.state != SyncState::Completed);
            let lacking = lacking.map(|one| &one.id);
            return assert_eq!(lacking, None, "I28: {} completed before one of its parts", sync.id);
        }
        let number = sim.number(&sync.id);
        let wish = &sim.wishes[number as usize];
        let entries = wish.entries(sim);
        let (files, dirs, bytes) = sim.trees[wish.tree].sum(&entries);
        let c = &sync.counters;
        let sums = (c.files_total, c.dirs_total, c.bytes_total);
        assert_eq!(
            sums,
            (files, dirs, bytes),
            "I2: {} counted something else than there is",
            sync.id
        );
        assert_eq!(c.bytes_done + c.bytes_skipped, bytes, "I2: bytes of {} are missing", sync.id);
        assert_eq!(c.files_done + c.files_skipped, files, "I12: files of {} are missing", sync.id);
        assert_eq!(c.dirs_done, dirs, "I12: directories of {} are missing", sync.id);
        if wish.options.dry_run {
            return;
        }
        if wish.options.verify == Verify::Readback {
            assert_eq!(c.verified_files + c.repaired_files, files, "I12: not all was read back");
        }
        let Some(disk) = self.bound.get(&life) else { return };
        let site = &sim.storages.disks[*disk].sites[wish.tree];
        entries.iter().for_each(|id| self.entry_is_there(sync, life, (*disk, site), *id));
        let deletes = wish.options.delete.is_some() && !self.spoiled.contains(&(life, EXTRAS));
        for extra in site.extras.iter().filter(|_| deletes) {
            let others_fault = !extra.lost.is_empty() && !self.explains_failure(&extra.lost, life);
            let gone =
                extra.deleted.as_ref().is_some_and(|marks| !self.explains_failure(marks, life));
            assert!(
                gone || others_fault,
                "I12: {} completed and did not delete: {extra:?}",
                sync.id
            );
        }
    }

    /// I14: after a cancel no agent writes for longer than a lease. A dry run writes nothing.
    pub(super) fn writes(&self, a: &Assignment, disk: usize, sim: &Sim) {
        let (time, lease_ms) = (sim.time, sim.settings.lease_ms);
        assert!(!a.options.dry_run, "I12: a dry run wrote");
        let Some(grant) = self.grants.get(&a.assignment_id) else { return };
        if !sim.storages.has_moves && sim.storages.is_honest {
            self.writes_alone(grant, a, disk);
        }
        if let Some(at) = self.stopped.get(&grant.life) {
            assert!(
                time <= at + lease_ms,
                "I14: written long after {} was cancelled",
                a.request_id
            );
        }
    }

    /// I25: no sync writes after a later one that conflicts with it has started.
    fn writes_alone(&self, grant: &Grant, a: &Assignment, disk: usize) {
        let Some((sync, _)) = self.submitted.get(&grant.life) else { return };
        if grant.void || self.forgetful {
            return;
        }
        let begun =
            self.submitted.iter().filter(|(_, (other, begun))| *begun && other.no > sync.no);
        let there = begun.filter(|(life, _)| self.bound.get(life) == Some(&disk));
        for (_, (later, _)) in there {
            assert!(
                !conflicts_by_path(sync, later),
                "I25: {} writes when {} has begun",
                a.request_id,
                later.id
            );
        }
    }

    /// I27: an assignment uses the disk that the scheduler had for its sync when it was given. True: it does. An agent
    /// that is wrongly believed uses its own.
    pub(super) fn uses(&self, a: &Assignment, side: Side, disk: usize, is_honest: bool) -> bool {
        let Some(grant) = self.grants.get(&a.assignment_id) else { return true };
        let bound = grant.disks[usize::from(side == Side::Destination)];
        let is_bound = bound.map_or(is_honest, |bound| bound == disk);
        assert!(
            is_bound || !is_honest,
            "I27: a {} of {} uses disk {disk} at the {side:?}, and not disk {bound:?}",
            a.task.kind(),
            a.request_id
        );
        is_bound
    }

    /// These entries are copied, or compared, where the destination is used.
    pub(super) fn spoil(&mut self, target: Target, ids: &[Id]) {
        if !target.is_bound {
            self.spoiled.extend(ids.iter().map(|id| (target.mark.sync, *id)));
        }
    }

    /// I25: of two syncs that conflict only one has started and not ended.
    fn conflicts_wait(&self, state: &State) {
        let begun = || state.syncs.values().filter(|sync| sync.state == SyncState::Progress);
        let disk = |sync: &SyncJob| self.bound.get(&self.lives.get(&sync.no)?.life);
        for later in begun() {
            for earlier in begun().filter(|earlier| earlier.no < later.no) {
                let is_one = disk(earlier).is_some() && disk(earlier) == disk(later);
                assert!(
                    !is_one || !conflicts_by_path(earlier, later),
                    "I25: {} and {} run at once",
                    earlier.id,
                    later.id
                );
            }
        }
    }

    /// What was decided is stored.
    pub(super) fn stored(&mut self, state: &State, store: &Store) {
        for life in std::mem::take(&mut self.fresh_starts) {
            if let Some((_, has_started)) = self.submitted.get_mut(&life) {
                *has_started = true;
            }
        }
        for id in std::mem::take(&mut self.fresh) {
            if let Some(grant) = self.grants.get_mut(&id) {
                grant.seq = Some(store.seq);
            }
        }
        self.relays.damage_is_stored();
        if self.events.is_multiple_of(64 * self.check_interval.max(1)) {
            same_as_stored(state, store);
        }
    }

    /// I18: what is reported to a caller is in the store.
    pub(super) fn check_reply(&mut self, reply: &Reply, state: &State, store: &Store) {
        match reply {
            Reply::Submitted(submitted) => {
                let Some(no) = state.syncs.find(&submitted.request_id).map(|sync| sync.no) else {
                    return;
                };
                let known = store.records.contains_key(&format!("s/{no}"));
                assert!(
                    known || self.behind.is_some(),
                    "I18: {} was accepted and is not stored",
                    submitted.request_id
                );
            }
            Reply::Assignment(Some(a)) => {
                let stored = self.grants.get(&a.assignment_id).is_some_and(|g| g.seq.is_some());
                assert!(stored, "I18: a lease was given that is not stored");
            }
            _ => {}
        }
    }

    /// The store went back to commit `seq`.
    pub(super) fn store_rolled_back(&mut self, seq: u64) {
        self.forgetful = true;
        self.behind = Some(self.behind.map_or(seq, |before| before.min(seq)));
    }

    /// The living master wrote everything back.
    pub(super) fn restarted(&mut self) {
        self.behind = None;
        self.current.clear();
    }

    /// A new master loads the store. Returns whether the store had lost something.
    pub(super) fn check_loaded(&mut self, state: &State, store: &Store) -> bool {
        let behind = self.behind.take();
        if let Some(seq) = behind {
            let lost = |grant: &&mut Grant| grant.seq.is_none_or(|at| at > seq);
            self.grants.values_mut().filter(lost).for_each(|grant| grant.void = true);
        }
        let same = |no: &SyncNo, life: &mut SyncRun| {
            let sync = state.syncs.get(*no).filter(|sync| sync.id == life.name);
            life.ended = sync.filter(|sync| !sync.is_active()).map(|sync| sync.state);
            if life.ended.is_none() {
                self.stopped.remove(&life.life);
            }
            sync.is_some()
        };
        self.lives.retain(same);
        self.fresh.clear();
        self.fresh_starts.clear();
        self.relays.damage_is_lost(behind.is_some());
        self.current.clear();
        let leases = state.tasks.values().filter_map(|task| Some((task.id, task.lease()?)));
        self.current.extend(leases.map(|(id, lease)| (id, lease.assignment)));
        for id in self.current.values() {
            let known = self.grants.get_mut(id).expect("I18: a lease without a decision");
            known.seq.get_or_insert(store.seq);
            known.void = false;
        }
        behind.is_some()
    }

    /// The life of the sync that an assignment belongs to.
    pub(super) fn life(&self, a: &Assignment) -> u32 {
        self.grants.get(&a.assignment_id).map_or(0, |grant| grant.life)
    }
}

impl Sim {
    /// Something was written under an assignment.
    pub(super) fn written(&self, a: &Assignment, disk: usize) {
        self.judge.writes(a, disk, self);
    }

    /// An old result comes once more, or one with something of it changed.
    pub(super) fn check_old_result(&mut self) {
        let slots = self.agents.iter().flat_map(|agent| &agent.slots);
        let work = slots.filter_map(|slot| slot.work.as_ref());
        let live: Vec<TaskResult> = work.map(|work| super::agent::result_of(work, true)).collect();
        let known = if self.chance.permille(500) { &live } else { &self.judge.sent };
        let from_hand = std::ptr::eq(known, &live);
        let Some(mut result) = self.chance.pick(known).cloned() else { return };
        // What is in hand is not done yet: such a result is never as it should be.
        match self.chance.below(3) {
            _ if !from_hand => {}
            0 => result.attempt = result.attempt.map(|n| n + 1),
            1 => result.attempt = result.attempt.map(|n| n.wrapping_sub(1)),
            _ => result.task_digest = Some(Digest([9; 32])),
        }
        let request = self.request();
        self.send(super::master::Requester::Operator(request), Event::Result(result));
    }

    /// What must hold after a long enough time without faults.
    pub(super) fn check_end(&self) {
        let Some(master) = &self.master else { return };
        let state = &master.state;
        same_as_stored(state, &self.store);
        for sync in state.syncs.values().filter(|sync| !sync.is_group()) {
            let c = &sync.counters;
            let (files, dirs) =
                (c.files_done + c.files_skipped + c.files_failed, c.dirs_done + c.dirs_failed);
            let failed: u64 = sync.error_counts.values().sum();
            let steps: u64 = c.failed_steps.values().sum();
            assert_eq!(failed, c.files_failed + c.dirs_failed + steps, "I13: {} failures", sync.id);
            if sync.state == SyncState::Failed {
                assert!(
                    failed > 0 || sync.mirror_stop.is_some(),
                    "I13: {} failed for no reason",
                    sync.id
                );
                assert!(
                    sync.mirror_stop.is_some() || (files, dirs) == (c.files_total, c.dirs_total),
                    "I13: {} does not add up: {c:?}",
                    sync.id
                );
            }
        }
        // Those of batches that failed as a whole are kept for their names.
        let kept: BTreeSet<String> =
            state.syncs.values().flat_map(SyncJob::failure_blob_keys).collect();
        let of_work = |key: &&String| key.starts_with("m/") || key.starts_with("e/");
        let left = self.store.blobs.keys().filter(of_work).filter(|key| !kept.contains(*key));
        let left: Vec<&String> = left.collect();
        assert!(left.is_empty(), "I7: manifests or failures stay behind: {left:?}");
        let is_exact = !self.judge.forgetful && !self.storages.has_moves && self.storages.is_honest;
        let sites = self.storages.disks.iter().flat_map(|disk| &disk.sites);
        for site in sites.filter(|_| is_exact) {
            assert!(site.parts.is_empty(), "I14: part files stay behind: {:?}", site.parts.keys());
            assert!(site.kept.is_empty(), "I14: names of files stay behind: {:?}", site.kept);
        }
    }

    /// What is not over yet.
    pub(super) fn unfinished(&self) -> Option<String> {
        let Some(master) = &self.master else { return Some("no master leads".to_owned()) };
        let state = &master.state;
        if let Some(task) = state.tasks.values().next() {
            let sync = &state.syncs[&task.sync];
            let active = state.syncs.values().filter(|sync| sync.is_active());
            let describe = |sync: &SyncJob| {
                let waits = state.is_waiting_for_overlap(sync.no);
                let sides = (sync.source_storage, sync.destination_storage);
                let from =
                    state.workers.accepting(sync.source()).map(|w| &w.last_heartbeat.worker_id);
                let to = state
                    .workers
                    .accepting(sync.destination())
                    .map(|w| &w.last_heartbeat.worker_id);
                let (from, to) = (from.collect::<Vec<_>>(), to.collect::<Vec<_>>());
                let owner = sync.scan_owner;
                format!(
                    "{} {:?} {sides:?} waits for another: {waits} {from:?} {to:?} {owner:?} {:?}",
                    sync.id, sync.state, sync.pause
                )
            };
            let active: Vec<_> = active.map(describe).collect();
            return Some(format!(
                "{} of {}: {:?}, {:?}, {:?}, {:?}, {:?}, of {active:?}",
                task.spec.kind(),
                sync.id,
                task,
                sync.state,
                sync.pause,
                state.overlap_reason(sync),
                state.explain_unserved_places(sync)
            ));
        }
        let active = state.syncs.values().find(|sync| sync.is_active());
        if let Some(sync) = active {
            return Some(format!("{} is {:?} without a task", sync.id, sync.phase));
        }
        let unknown = |n: &usize| state.syncs.find(&name(*n as u32)).is_none();
        let wanted = (0..self.wishes.len()).filter(|n| !self.wishes[*n].unwanted).find(unknown);
        wanted.map(|n| format!("s{n} was never taken in"))
    }
}
