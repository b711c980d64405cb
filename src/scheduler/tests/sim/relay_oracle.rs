//! What must hold of relays, and of the content of destinations.

use super::agent::Work;
use super::agent_work::Target;
use super::checks::disk_of;
use super::oracle::Oracle;
use super::storage_model::{Id, StorageModel, ids};
use super::world::Sim;
use super::*;
use crate::scheduler::phase::PhaseState;
use crate::wire::outcome::Side;
use std::collections::HashMap;

/// Of the lease of a relay: what it sends on.
#[derive(Debug, Clone)]
pub(super) struct RelayGrant {
    /// The life of the sync of the destination that has the copy, and its disk.
    holder: u32,
    disk: Option<usize>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RelayLog {
    /// How often the source sent a range (offset 0: also a small file) to the destinations of a sync.
    pub(super) sent: BTreeMap<(SyncNo, Id, u64), u32>,
    /// How often another destination sent one.
    pub(super) relay_count: u64,
    /// The destinations of which a result said that they have one, and when it was applied.
    held: BTreeMap<(SyncNo, Id, u64), BTreeMap<SyncNo, u64>>,
    /// When relays found their copies damaged.
    pub(super) found: HashMap<(AssignmentId, Id), u64>,
    /// Damage in the result that is applied: the lease of the relay, and the entries.
    reported: Option<(AssignmentId, Vec<Id>)>,
    /// Damage that a master counted: the life of the sync of the damaged copy, the entry, and when it was found. What
    /// was not committed yet is `fresh`.
    must_repair: BTreeMap<(u32, Id), u64>,
    fresh: Vec<(u32, Id, u64)>,
    /// The last phase of each sync, and when its last read-back pass began.
    phases: HashMap<u32, (PhaseState, Option<u64>)>,
}

impl RelayLog {
    /// A result comes in.
    pub(super) fn note_result(&mut self, result: &TaskResult) {
        let failures = result.report.iter().flat_map(|report| &report.failures);
        let is_damage =
            |e: &&EntryError| e.side == Some(Side::Relay) && e.class == ErrorClass::Damaged;
        let ids = failures.filter(is_damage).map(|e| e.path.to_string().parse().unwrap());
        let ids: Vec<Id> = ids.collect();
        self.reported = result.assignment_id.filter(|_| !ids.is_empty()).map(|id| (id, ids));
    }

    pub(super) fn damage_is_stored(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.must_repair.extend(fresh.into_iter().map(|(life, id, at)| ((life, id), at)));
    }

    /// A new master does not know of damage that was not committed, or that the store lost.
    pub(super) fn damage_is_lost(&mut self, store_is_behind: bool) {
        self.fresh.clear();
        if store_is_behind {
            self.must_repair.clear();
            self.phases.clear();
        }
    }

    pub(super) fn follow_phase(&mut self, life: u32, phase: PhaseState, now: u64) {
        let (last, began) = self.phases.entry(life).or_insert((phase, None));
        match std::mem::replace(last, phase) != phase {
            true if phase == PhaseState::Readback => *began = Some(now),
            // It restarted.
            true if phase == PhaseState::Copy => *began = None,
            _ => {}
        }
    }
}

impl Oracle {
    pub(super) fn relay_grant(
        &self,
        a: &Assignment,
        sync: &SyncJob,
        state: &State,
        sim: &Sim,
    ) -> Option<RelayGrant> {
        self.is_sent_once(a, state);
        let relay = a.relay.as_ref()?;
        let group = sync.group().expect("I29: a sync with one destination has no relay");
        let worker = state.workers.get(&a.worker_id)?;
        let mut others = state.destinations_of(group).filter(|one| one.no != sync.no);
        let holder = others.find(|one| {
            one.request.destination_path == relay.path
                && state.workers.serves(worker, one.destination())
        });
        let holder = holder.expect("I29: a relay is a worker of another destination");
        let disk = disk_of(state, holder.destination(), sim);
        Some(RelayGrant { holder: self.lives[&holder.no].life, disk })
    }

    /// I30: the source sends what several destinations get to one of them at a time, and only if none can send it on.
    fn is_sent_once(&self, a: &Assignment, state: &State) {
        let Some(unit) = state.tasks.get(a.task_id).and_then(|task| task.unit) else { return };
        assert!(
            a.report_held || a.relay.is_some(),
            "I30: what {} gets, and others need, is not reported",
            a.request_id
        );
        let all = state.relays.tasks_of(unit).into_iter();
        let leases = all.filter_map(|id| state.tasks.get(id)?.lease());
        let reads = leases.filter(|lease| lease.relay.is_none()).count();
        assert!(reads <= 1, "I30: {} and another destination get it from the source", a.request_id);
        let group = state.syncs.find(&a.request_id).and_then(SyncJob::group).expect("I30: a group");
        let is_held = state.destinations_of(group).any(|one| state.relays.is_holder(unit, one.no));
        assert!(a.relay.is_some() || !is_held, "I30: {} gets it from the source", a.request_id);
    }

    /// I27: a relay reads the disk that the scheduler had for the destination with the copy.
    pub(super) fn relays(&self, a: &Assignment, disk: usize, is_honest: bool) {
        let grant = self.grants.get(&a.assignment_id);
        let Some(relay) = grant.and_then(|grant| grant.relay.as_ref()) else { return };
        assert!(
            relay.disk.is_none_or(|bound| bound == disk) || !is_honest,
            "I27: a relay of {} reads disk {disk}, and not {:?}",
            a.request_id,
            relay.disk
        );
    }

    /// The source is read, and the content sent, for a task. True: it was sent before.
    pub(super) fn sent_from_source(&mut self, a: &Assignment, id: Id, offset: u64) -> bool {
        let group = self.grants.get(&a.assignment_id).and_then(|grant| grant.group);
        let Some(group) = group else { return false };
        let sent = self.relays.sent.entry((group, id, offset)).or_default();
        *sent += 1;
        *sent > 1
    }

    /// The destinations that had reported to have this before an assignment was given.
    pub(super) fn holders_before(&self, a: &Assignment, id: Id, offset: u64) -> Vec<SyncNo> {
        let Some(grant) = self.grants.get(&a.assignment_id) else { return vec![] };
        let held = grant.group.and_then(|group| self.relays.held.get(&(group, id, offset)));
        let before = held.into_iter().flatten().filter(|(_, at)| **at < grant.at);
        before.map(|(no, _)| *no).collect()
    }

    /// A result was applied: its destination has what it was sent, if nothing failed.
    pub(super) fn note_held(&mut self, work: &Work, now: u64) {
        let Some(grant) = self.grants.get(&work.a.assignment_id) else { return };
        let (Some(group), sync) = (grant.group, grant.sync) else { return };
        let offset = match &work.a.task {
            TaskSpec::Copy { .. } => 0,
            TaskSpec::Range { offset, compare: false, .. } => *offset,
            _ => return,
        };
        if work.report.failures.is_empty() {
            for id in ids(&work.manifest) {
                self.relays.held.entry((group, id, offset)).or_default().entry(sync).or_insert(now);
            }
        }
    }

    /// A forging agent does not write what it reports.
    pub(super) fn forge(&mut self, target: Target, id: Id) {
        self.spoiled.insert((target.mark.sync, id));
    }

    /// A name is linked to another one: it has the same content.
    pub(super) fn link(&mut self, target: Target, name: Id, id: Id) {
        if self.spoiled.contains(&(target.mark.sync, name)) {
            self.spoiled.insert((target.mark.sync, id));
        }
    }

    /// A result was applied: the destination with the damaged copy must not complete with it.
    pub(super) fn damage_was_reported(&mut self, effects: &[Effect], state: &State) {
        let Some((id, entries)) = self.relays.reported.take() else { return };
        let is_applied = |effect: &Effect| {
            matches!(effect, Effect::Reply(_, Reply::Result(reply))
                if reply.outcome == Some(ResultOutcome::Applied))
        };
        let relay = self.grants.get(&id).and_then(|grant| grant.relay.as_ref());
        let Some(relay) = relay.filter(|_| effects.iter().any(is_applied)) else { return };
        let mut lives = self.lives.iter();
        let is_active = lives.any(|(no, run)| {
            run.life == relay.holder && state.syncs.get(*no).is_some_and(SyncJob::is_active)
        });
        if is_active {
            let holder = relay.holder;
            let log = &mut self.relays;
            let found = |entry: &Id| Some((holder, *entry, *log.found.get(&(id, *entry))?));
            let damage: Vec<_> = entries.iter().filter_map(found).collect();
            log.fresh.extend(damage);
        }
    }

    /// I12: an entry of a sync that is COMPLETED is there, on the disk, with the content of the source.
    pub(super) fn entry_is_there(
        &self,
        sync: &SyncJob,
        life: u32,
        (disk, site): (usize, &StorageModel),
        id: Id,
    ) {
        if self.spoiled.contains(&(life, id)) {
            return;
        }
        let none = BTreeSet::new();
        let lost = site.lost.get(&id).unwrap_or(&none);
        let others_fault = !lost.is_empty() && !self.explains_failure(lost, life);
        let Some(stored) = site.there.get(&id) else {
            assert!(others_fault, "I12: {} completed without entry {id} on disk {disk}", sync.id);
            return;
        };
        assert!(
            !self.explains_failure(&stored.marks, life),
            "I12: {} completed, entry {id} is not on the disk: {stored:?}",
            sync.id
        );
        let readback = self.relays.phases.get(&life).and_then(|(_, began)| *began);
        let reported = self.relays.must_repair.get(&(life, id)).copied();
        for damage in stored.damage.values() {
            let is_repaired = |at: Option<u64>| at.is_none_or(|at| damage.since_for(life) >= at);
            assert!(
                damage.is_excused && is_repaired(readback) && is_repaired(reported),
                "I12: {} completed with another content of entry {id} on disk {disk}: {damage:?}, read back from \
                 {readback:?} on, reported at {reported:?}",
                sync.id
            );
        }
    }
}
