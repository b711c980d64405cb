//! What must hold, checked after every event: the invariants by their numbers in the design.

use super::operator::name;
use super::storage_model::WriteMark;
use super::store::Store;
use super::world::Sim;
use super::*;
use crate::scheduler::large_file::LargeFileState;
use crate::scheduler::pause::Pause;
use crate::scheduler::phase::PhaseState;
use crate::wire::options::Verify;
use std::collections::HashMap;

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
}

/// A sync as it was first seen.
#[derive(Debug, Clone, PartialEq)]
struct SyncRun {
    life: u32,
    name: crate::wire::RequestId,
    ended: Option<SyncState>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) grants: HashMap<AssignmentId, Grant>,
    current: HashMap<TaskId, AssignmentId>,
    fresh: Vec<AssignmentId>,
    lives: BTreeMap<SyncNo, SyncRun>,
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
    /// Results that were sent.
    pub(super) sent: Vec<TaskResult>,
    pub(super) events: u64,
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
        self.check_known(state, sim);
        if let Some(may_count) = before.may_count {
            self.result(may_count, before.task, effects);
        }
        for effect in effects {
            if let Effect::Reply(_, Reply::Assignment(Some(a))) = effect {
                self.granted(a, state);
            }
        }
        for sync in state.syncs.values() {
            entries_add_up(sync, state);
        }
        tasks_are_in_one_place(state);
        conflicts_wait(state);
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
    fn granted(&mut self, a: &Assignment, state: &State) {
        let id = a.assignment_id;
        let Some(task) = state.tasks.get(a.task_id) else { return };
        if self.grants.contains_key(&id) {
            let current = self.current.get(&a.task_id);
            return assert!(current == Some(&id), "I3: a lease was given again that has ended");
        }
        let paused = state.syncs[&task.sync].pause == Some(Pause::Operator);
        let active = state.syncs[&task.sync].is_active();
        assert!(!(paused && active), "I15: a task of a paused sync was handed out");
        let life = self.lives[&task.sync].life;
        let grant = Grant {
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
            if !sync.is_active() {
                known.ended = Some(sync.state);
                let life = known.life;
                sim.trace(|_| {
                    format!("       sync {} ends: {:?} {:?}", sync.id, sync.state, sync.reason)
                });
                if sync.state == SyncState::Completed {
                    self.completed(sync, life, sim);
                } else if sync.state == SyncState::Cancelled {
                    self.stopped.insert(life, sim.time);
                }
            }
        }
    }

    /// Whether something that was lost, or is not on the disk yet, is to be blamed on a sync.
    fn explains_failure(&self, marks: &BTreeSet<WriteMark>, life: u32) -> bool {
        let void = |mark: &WriteMark| self.grants.get(&mark.by).is_none_or(|grant| grant.void);
        marks.iter().any(|mark| mark.sync == life && !void(mark))
    }

    fn completed(&self, sync: &SyncJob, life: u32, sim: &Sim) {
        let number = sim.number(&sync.id);
        let wish = &sim.wishes[number as usize];
        let (site, entries) = (&sim.sites[wish.tree], wish.entries(sim));
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
        let none = BTreeSet::new();
        for id in entries {
            let lost = site.lost.get(&id).unwrap_or(&none);
            let there = site.there.get(&id);
            let others_fault = !lost.is_empty() && !self.explains_failure(lost, life);
            assert!(
                there.is_some() || others_fault,
                "I12: {} completed without entry {id}",
                sync.id
            );
            let unflushed = there.is_some_and(|marks| self.explains_failure(marks, life));
            assert!(
                !unflushed,
                "I12: {} completed, entry {id} is not on the disk: {there:?}",
                sync.id
            );
        }
        for extra in site.extras.iter().filter(|_| wish.options.delete.is_some()) {
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
    pub(super) fn writes(&self, a: &Assignment, time: u64, lease_ms: u64) {
        assert!(!a.options.dry_run, "I12: a dry run wrote");
        let Some(grant) = self.grants.get(&a.assignment_id) else { return };
        self.writes_alone(grant, a);
        if let Some(at) = self.stopped.get(&grant.life) {
            assert!(
                time <= at + lease_ms,
                "I14: written long after {} was cancelled",
                a.request_id
            );
        }
    }

    /// I25: no sync writes after a later one that conflicts with it has started.
    fn writes_alone(&self, grant: &Grant, a: &Assignment) {
        let Some((sync, _)) = self.submitted.get(&grant.life) else { return };
        if grant.void || self.forgetful {
            return;
        }
        let begun = self.submitted.values().filter(|(other, begun)| *begun && other.no > sync.no);
        for (later, _) in begun {
            assert!(
                !conflicts_by_path(sync, later),
                "I25: {} writes when {} has begun",
                a.request_id,
                later.id
            );
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
        if self.events.is_multiple_of(64) {
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

/// I1: every entry is waiting, leased, done or failed; I2: and counted once.
fn entries_add_up(sync: &SyncJob, state: &State) {
    let c = &sync.counters;
    assert!(c.bytes_done + c.bytes_skipped <= c.bytes_total, "I2: too many bytes: {c:?}");
    if !sync.is_active() || sync.mirror_stop.is_some() || sync.source_root_failed {
        return;
    }
    let (mut files, mut dirs) = (c.files_done + c.files_skipped + c.files_failed, 0);
    dirs += c.dirs_done + c.dirs_failed;
    if sync.phase == PhaseState::Copy {
        // One that was found there is counted.
        files += sync
            .large_files
            .values()
            .filter(|large| large.state != LargeFileState::AlreadyPresent)
            .count() as u64;
        for task in state.tasks.of_sync(sync.no) {
            if let TaskSpec::Copy { files: f, dirs: d, .. } = task.spec {
                files += f;
                dirs += d;
            }
        }
    }
    let sums = (c.files_total, c.dirs_total);
    assert_eq!((files, dirs), sums, "I1: entries of {} are nowhere or twice: {c:?}", sync.id);
}

/// I26: a worker that has an isolated task has no other, and only one of them runs.
fn runs_alone(state: &State) {
    for task in state.tasks.leased().filter(|task| state.isolation.contains(task.id)) {
        let Some(lease) = task.lease() else { continue };
        // One that was taken for dead may have become one of the worker's others.
        let alone = state.tasks.held_by(&lease.worker).count() == 1;
        assert!(alone, "I26: {} runs beside others on {}", task.id, lease.worker);
    }
}

/// Whether two syncs conflict, by the rules of the documentation: each path of the simulation leads to
/// one storage.
fn conflicts_by_path(earlier: &SyncJob, later: &SyncJob) -> bool {
    let overlap = |a: &AbsPath, b: &AbsPath| a.contains(b) || b.contains(a);
    let mirrors = [earlier, later].iter().any(|sync| sync.request.options.delete.is_some());
    if earlier.is_dry_run() || later.request.options.allow_overlap && !mirrors {
        return false;
    }
    let (held, wanted) = (&earlier.request, &later.request);
    let reads = earlier.is_active() && !later.is_dry_run();
    overlap(&held.destination_path, &wanted.source_path)
        || overlap(&held.destination_path, &wanted.destination_path)
        || reads && overlap(&held.source_path, &wanted.destination_path)
}

/// I25: of two syncs that conflict only one has started and not ended.
fn conflicts_wait(state: &State) {
    let begun = || state.syncs.values().filter(|sync| sync.state == SyncState::Progress);
    for later in begun() {
        for earlier in begun().filter(|earlier| earlier.no < later.no) {
            let conflict = state.find_conflict(earlier, later);
            assert_eq!(conflict, None, "I25: {} and {} run at once", earlier.id, later.id);
        }
    }
}

/// I3: a task is in one place; I7: and there are not too many.
fn tasks_are_in_one_place(state: &State) {
    let (mut ready, mut leased, mut queued) = (0, 0, 0);
    for task in state.tasks.values() {
        match &task.state {
            crate::scheduler::task::TaskState::Ready => ready += 1,
            crate::scheduler::task::TaskState::Leased(lease) => {
                leased += 1;
                let filed = state.tasks.by_assignment(lease.assignment).map(|task| task.id);
                assert_eq!(filed, Some(task.id), "I3: a lease that is not filed");
            }
            crate::scheduler::task::TaskState::Delayed { .. } => {}
        }
    }
    runs_alone(state);
    for sync in state.syncs.values() {
        let queue = state.tasks.sync_tasks(sync.no).ready();
        queued += queue.scans.len() + queue.at_source.len() + queue.at_destination.len();
        queued += queue.pinned.values().map(BTreeSet::len).sum::<usize>();
        // What is isolated is not counted: a batch of it is one task for each of its entries.
        let copies = state.tasks.of_sync(sync.no).filter(|t| !state.isolation.contains(t.id));
        let copies = copies.filter(|task| task.spec.kind() == "copy").count();
        let most = state.settings.window_tasks + 3 * 18;
        assert!(copies + sync.large_files.len() <= most, "I7: {} has too much out", sync.id);
    }
    assert_eq!(queued, ready, "I3: what is ready is queued, once");
    assert_eq!(state.tasks.lease_count(), leased, "I3: what is leased is filed, once");
}

/// The store holds the state of the master.
pub(super) fn same_as_stored(state: &State, store: &Store) {
    let keys: BTreeSet<String> = state.record_keys().into_iter().collect();
    let stored: BTreeSet<String> = store.records.keys().cloned().collect();
    assert!(
        stored.is_empty() || keys == stored,
        "I18: the store holds other records than there are"
    );
    for (key, value) in &store.records {
        assert_eq!(state.record(key).as_ref(), Some(value), "I18: {key} is not stored as it is");
    }
    for task in state.tasks.values().filter(|task| task.spec.kind() != "list") {
        let there = task.manifest_key.iter().all(|key| store.blobs.contains_key(key));
        assert!(there, "I18: {} {} has no manifest", task.spec.kind(), task.id);
    }
}

impl Sim {
    /// Something was written under an assignment.
    pub(super) fn written(&self, a: &Assignment) {
        self.judge.writes(a, self.time, self.settings.lease_ms);
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
        for sync in state.syncs.values() {
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
        for site in self.sites.iter().filter(|_| !self.judge.forgetful) {
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
            return Some(format!(
                "{} of {}: {:?}, {:?}",
                task.spec.kind(),
                sync.id,
                task,
                sync.pause
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
