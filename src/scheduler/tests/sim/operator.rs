//! Operations of operators, and faults.

use super::agent_work::names;
use super::master::Requester;
use super::storage_model::Id;
use super::storages::{DESTINATION, SOURCE};
use super::world::{Sim, SimEvent};
use super::*;
use crate::scheduler::pause::Pause;
use crate::wire::options::{Compare, Verify};
use crate::wire::preserve::Preserve;
use crate::wire::problem::ProblemCode;
use crate::wire::sync::SyncPatch;
use crate::wire::worker_selector::WorkerSelector;

/// How long operators wait for a sync while its storages are not known.
const MAX_WAIT_MS: u64 = 15 * 60 * 1000;

/// A sync that an operator submits.
#[derive(Debug, Clone)]
pub(super) struct PlannedSync {
    pub(super) tree: usize,
    pub(super) options: SyncOptions,
    pub(super) source_workers: Vec<WorkerSelector>,
    pub(super) destination_workers: Vec<WorkerSelector>,
    /// The pages of a list.
    pub(super) list: Option<Vec<usize>>,
    pub(super) request: u64,
    /// A master acknowledged it.
    pub(super) acknowledged: bool,
    /// An operator cancelled or deleted it.
    pub(super) unwanted: bool,
    /// It is the retry of another one, or of one of its destinations.
    pub(super) of: Option<crate::wire::RequestId>,
    /// Of the destinations that lack something.
    pub(super) of_incomplete: bool,
}

impl PlannedSync {
    /// All entries that it is about, each as often as it is found.
    pub(super) fn entries(&self, sim: &Sim) -> Vec<Id> {
        let tree = &sim.trees[self.tree];
        match &self.list {
            Some(list) => tree.of_pages(list.iter().copied()),
            None => tree.of_pages(0..tree.pages.len()),
        }
    }
}

pub(super) fn name(number: u32) -> crate::wire::RequestId {
    format!("s{number}").parse().unwrap()
}

impl Sim {
    /// The number of a sync, or of the sync of which it is one destination.
    pub(super) fn number(&self, id: &crate::wire::RequestId) -> u32 {
        let whole = id.as_str().split('@').next().unwrap_or_default();
        whole[1..].parse().unwrap()
    }

    pub(super) fn tree_of(&self, source: &AbsPath) -> usize {
        let path = source.as_bytes();
        usize::from(path[path.len() - 1] - b'0')
    }

    /// An operator submits a sync.
    pub(super) fn plan_sync(&mut self) {
        self.plan_sync_to(|sim| {
            let source = sim.random_selectors(SOURCE, &[600, 900, 950]);
            let chances = if sim.is_cluster { [30, 100, 300] } else { [300, 500, 650] };
            [source, sim.random_selectors(DESTINATION, &chances)]
        });
    }

    fn plan_sync_to(&mut self, workers: impl FnOnce(&mut Sim) -> [Vec<WorkerSelector>; 2]) {
        let tree = self.chance.below(self.trees.len() as u64) as usize;
        let list = self.chance.permille(200).then(|| {
            let pages = self.trees[tree].pages.len() as u64;
            (0..self.chance.within(1, pages)).map(|_| self.chance.below(pages) as usize).collect()
        });
        // Half of the syncs that are no mirrors run beside others of their tree.
        let beside = self.wishes.len() % 2 == 1;
        let compares = if self.is_cluster { 100 } else { 300 };
        let mut on = |parts| self.chance.permille(parts);
        let dry_run = on(150);
        let links = if on(500) { ["all"] } else { ["no-hardlinks"] };
        let mut options = SyncOptions {
            compare: if on(compares) { Compare::Checksum } else { Compare::SizeTime },
            verify: if on(250) && !dry_run { Verify::Readback } else { Verify::Transfer },
            delete: (on(300) && list.is_none())
                .then(|| DeleteOptions { max_percent: 100, ..DeleteOptions::default() }),
            preserve: Preserve::parse_names(links).unwrap(),
            record: on(250),
            dry_run,
            ..SyncOptions::default()
        };
        options.allow_overlap = beside && options.delete.is_none();
        let [source_workers, destination_workers] = workers(self);
        let wish = PlannedSync {
            tree,
            options,
            source_workers,
            destination_workers,
            of_incomplete: false,
            list,
            request: 0,
            acknowledged: false,
            unwanted: false,
            of: None,
        };
        self.wishes.push(wish);
        self.submit(self.wishes.len() as u32 - 1);
    }

    /// The operators of a sync name one worker of each side: nothing is in its way.
    pub(super) fn plan_clear_sync(&mut self) {
        self.plan_sync_to(|sim| {
            let mut one = |path| sim.random_selectors(path, &[0, 1000, 1000]);
            [one(SOURCE), one(DESTINATION)]
        });
    }

    /// Sends the submit, or the retry, of a sync: for the first time or once more.
    pub(super) fn submit(&mut self, number: u32) {
        let request = self.request();
        let wish = &mut self.wishes[number as usize];
        wish.request = request;
        let mut body = [0; 32];
        body[..4].copy_from_slice(&number.to_le_bytes());
        let idempotency = Some(IdempotencyKey { key: format!("k{number}"), body: Digest(body) });
        let event = match &wish.of {
            Some(of) => Event::RetrySync {
                id: of.clone(),
                new: Some(name(number)),
                only: match wish.of_incomplete {
                    true => RetryScope::IncompleteDestinations,
                    false => RetryScope::All,
                },
                idempotency,
            },
            None => {
                let id = name(number).as_str().to_owned();
                let (source, to) = (format!("/src/t{}", wish.tree), format!("/dst/t{}", wish.tree));
                let options = wish.options.clone();
                let request = SyncRequest {
                    options,
                    source_workers: wish.source_workers.clone(),
                    destination_workers: wish.destination_workers.clone(),
                    ..super::request(Some(&id), &source, &to)
                };
                let list = wish.list.as_ref().map(|pages| {
                    let half = pages.len().div_ceil(2);
                    pages.chunks(half).map(names).collect()
                });
                Event::Submit { request, list, idempotency }
            }
        };
        self.send(Requester::Operator(request), event);
    }

    /// An operator is answered.
    pub(super) fn handle_operator_reply(&mut self, request: u64, reply: Reply) {
        let Some(wish) = self.wishes.iter_mut().find(|wish| wish.request == request) else {
            return;
        };
        match reply {
            // What ended well, or is not over, is not tried again.
            Reply::Refused(_) if wish.of.is_some() => wish.unwanted = true,
            // At present its workers see several storages, or none is known.
            Reply::Refused(problem) => {
                use ProblemCode::{AmbiguousStorage, NoMatchingWorker, SeveralSources};
                let codes = [AmbiguousStorage, NoMatchingWorker, SeveralSources];
                let is_due = codes.into_iter().any(|code| problem.is(code));
                assert!(is_due, "I17: a submit was refused: {}", problem.detail);
                wish.unwanted = true;
            }
            _ => {}
        }
    }

    /// I18: the next master knows what was acknowledged, unless the store lost it.
    pub(super) fn acknowledged_are_known(&self, state: &State) {
        for (number, wish) in self.wishes.iter().enumerate() {
            let known = wish.unwanted || state.syncs.find(&name(number as u32)).is_some();
            assert!(known || !wish.acknowledged, "I18: s{number} was acknowledged and is gone");
        }
    }

    /// Workers of a path: none in `chances[0]` of a thousand cases, one up to `chances[1]`, a list up to `chances[2]`,
    /// else a pattern or a label.
    fn random_selectors(&mut self, path: &str, chances: &[u64; 3]) -> Vec<WorkerSelector> {
        let serves = |agent: &&super::agent::Agent| {
            agent.mounts.iter().any(|mount| mount.path.as_bytes() == path.as_bytes())
        };
        let names = self.agents.iter().filter(serves).map(|agent| agent.name.to_string());
        let names: Vec<String> = names.collect();
        let count = match self.chance.below(1000) {
            n if n < chances[0] => 0,
            n if n < chances[1] => 1,
            n if n < chances[2] => 2,
            _ => {
                let patterns = ["w*", "@rack=0", "@rack=*"];
                return vec![self.chance.pick(&patterns).unwrap().parse().unwrap()];
            }
        };
        (0..count).filter_map(|_| self.chance.pick(&names)?.parse().ok()).collect()
    }

    /// A sync of the master, or one of the destinations of it.
    fn pick_id(&mut self, number: u32) -> crate::wire::RequestId {
        let whole = name(number);
        let Some(master) = self.master.as_ref().filter(|_| self.chance.permille(500)) else {
            return whole;
        };
        let state = &master.state;
        let parts = state.syncs.find(&whole).into_iter();
        let parts: Vec<_> = parts
            .flat_map(|sync| state.destinations_of(sync.no))
            .map(|one| one.id.clone())
            .collect();
        self.chance.pick(&parts).cloned().unwrap_or(whole)
    }

    fn pick_sync(&mut self) -> Option<u32> {
        let count = self.wishes.len() as u64;
        (count > 0).then(|| self.chance.below(count) as u32)
    }

    /// An operator does something.
    fn random_operation(&mut self) {
        if self.wishes.len() < 6 && self.chance.permille(300) {
            return self.plan_sync();
        }
        let Some(number) = self.pick_sync() else { return };
        let id = self.pick_id(number);
        let is_whole = id == name(number);
        let event = match self.chance.below(100) {
            0..25 => return self.submit(number),
            25..45 => Event::PauseSync(id),
            45..65 => Event::ResumeSync(id),
            65..72 => Event::CancelSync(id),
            72..76 => Event::DeleteSync(id),
            76..78 => {
                let add_destinations = self.random_selectors(DESTINATION, &[0, 800, 1000]);
                let change = SyncPatch { add_destinations, bwlimit: None };
                Event::ChangeSync { id: name(number), change }
            }
            78..85 => return self.retry_failed(number, id),
            85..90 => Event::GetFileRecords(id),
            90..95 => Event::ListSyncs(SyncQuery::default()),
            _ => Event::ListWorkers,
        };
        if is_whole && matches!(event, Event::CancelSync(_) | Event::DeleteSync(_)) {
            self.wishes[number as usize].unwanted = true;
        }
        let request = self.request();
        self.send(Requester::Operator(request), event);
    }

    fn retry_failed(&mut self, number: u32, of: crate::wire::RequestId) {
        if self.wishes.len() >= 10 {
            return;
        }
        let old = &self.wishes[number as usize];
        let of_incomplete = self.chance.permille(500);
        let new = PlannedSync {
            of: Some(of),
            of_incomplete,
            acknowledged: false,
            unwanted: false,
            ..old.clone()
        };
        self.wishes.push(new);
        self.submit(self.wishes.len() as u32 - 1);
    }

    /// Something happens to an agent.
    fn hurt_agent(&mut self) {
        let agent = self.chance.below(self.agents.len() as u64) as usize;
        let ms = self.chance.within(100, 90_000);
        let until = self.time + ms;
        let what = self.chance.below(100);
        self.trace(|sim| format!("{} is hurt ({what}) for {ms} ms", sim.agents[agent].name));
        match what {
            0..25 => self.kill(agent, ms / 3),
            25..50 => self.agents[agent].frozen_until = until,
            50..70 => self.agents[agent].cut_until = until,
            70..80 => self.agents[agent].draining = true,
            80..85 => self.agents[agent].draining = false,
            85..90 => self.move_path(agent),
            _ => {
                let host = self.agents[agent].host;
                self.reboot(host, ms / 3);
            }
        }
    }

    /// An agent dies, and does not return.
    pub(super) fn kill_for_good(&mut self, agent: usize) {
        self.trace(|sim| format!("{} dies", sim.agents[agent].name));
        self.agents[agent].down = true;
        self.agents[agent].restart();
    }

    pub(super) fn kill(&mut self, agent: usize, ms: u64) {
        if !std::mem::replace(&mut self.agents[agent].down, true) {
            self.agents[agent].restart();
            self.schedule(ms, SimEvent::Up(agent));
        }
    }

    /// Something happens to the master or the store.
    fn disturb_store(&mut self) {
        match self.chance.below(100) {
            0..20 => self.crash("by chance"),
            20..40 if self.deposed.is_none() && !self.store_down => {
                let Some(mut old) = self.master.take() else { return };
                self.trace(|_| "another master takes over".to_owned());
                old.until = self.time + self.chance.within(0, 4_000);
                old.stuck = None;
                self.deposed = Some(old);
                self.elect_master();
            }
            40..60 => {
                let ms = self.chance.within(1_000, 100_000);
                let until = self.time + ms;
                self.trace(|_| format!("the master sleeps for {ms} ms"));
                self.master.iter_mut().for_each(|master| master.asleep_until = until);
            }
            60..75 => {
                self.store_down = true;
                let ms = self.chance.within(10, 20_000);
                self.trace(|_| format!("the store is away for {ms} ms"));
                self.schedule(ms, SimEvent::StoreUp);
            }
            75..90 => {
                let count = self.chance.within(1, 40);
                if self.chance.permille(500) {
                    self.crash("and the store goes back");
                }
                self.store.roll_back(count);
                self.roll_back_store();
            }
            90..94 => {
                if self.chance.permille(500) {
                    self.crash("and the store is empty");
                }
                self.store.lose();
                self.roll_back_store();
            }
            _ => self.skew_ms = self.chance.within(0, 2 * 86_400_000) as i64 - 86_400_000,
        }
    }

    /// The store does not hold any more what it held.
    fn roll_back_store(&mut self) {
        let seq = self.store.seq;
        self.trace(|_| format!("the store goes back to commit {seq}"));
        self.judge.store_rolled_back(seq);
    }

    /// A step of chance.
    pub(super) fn random_fault_event(&mut self) {
        match self.chance.below(100) {
            0..12 => self.random_operation(),
            12..17 => self.hurt_agent(),
            17..19 => self.disturb_store(),
            19..21 => self.check_old_result(),
            _ => {}
        }
        let ms = match self.chance.below(100) {
            0..70 => self.chance.below(300),
            70..96 => self.chance.below(2_500),
            _ => self.chance.below(30_000),
        };
        self.advance(ms);
    }

    /// No more faults from now on.
    pub(super) fn calm_down(&mut self) {
        self.trace(|_| "everybody behaves from now on".to_owned());
        self.calm = true;
        self.calm_since = Some(self.time);
        self.restore_store();
        for agent in &mut self.agents {
            agent.frozen_until = agent.frozen_until.min(self.time);
            agent.cut_until = 0;
            agent.draining = false;
        }
        self.calm_storages();
        self.master.iter_mut().for_each(|master| master.asleep_until = 0);
        // Messages to a suspended master arrive late: a deleted sync may be submitted again, and a
        // heartbeat of an ended process blocks its successor until that is noticed.
        self.advance(self.in_flight_ms() + self.settings.heartbeat_timeout_ms + 10_000);
        if self.master.is_none() {
            self.elect_master();
        }
        if self.wishes.is_empty() {
            self.plan_sync();
        }
    }

    /// The operators still want their syncs.
    pub(super) fn heal(&mut self) {
        let Some(master) = &self.master else { return };
        let state = &master.state;
        let mut events: Vec<Event> = vec![];
        let is_paused = |sync: &&SyncJob| sync.pause == Some(Pause::Operator) && sync.is_active();
        events.extend(
            state.syncs.values().filter(is_paused).map(|s| Event::ResumeSync(s.id.clone())),
        );
        let is_missing = |number: &u32| {
            !self.wishes[*number as usize].unwanted && state.syncs.find(&name(*number)).is_none()
        };
        let missing: Vec<u32> = (0..self.wishes.len() as u32).filter(is_missing).collect();
        let stuck = self.calm_since.is_some_and(|since| self.time > since + MAX_WAIT_MS);
        if stuck {
            // Its workers see several storages, or none of them sees what they saw: it says so.
            let waits = |sync: &&SyncJob| {
                let lacks_destination = match sync.is_group() {
                    true => state.destinations_of(sync.no).next().is_none(),
                    false => sync.destination_storage.is_none(),
                };
                let is_unknown = sync.source_storage.is_none() || lacks_destination;
                let has_reason = !state.explain_unserved_places(sync).is_empty();
                sync.is_active() && is_unknown && has_reason && self.may_wait_for_ever(sync)
            };
            let waiting = state.syncs.values().filter(waits);
            events.extend(waiting.map(|sync| Event::CancelSync(sync.id.clone())));
        }
        missing.into_iter().for_each(|number| self.submit(number));
        for event in events {
            let request = self.request();
            self.send(Requester::Operator(request), event);
        }
    }

    /// Whether the storages of a sync may stay unknown: the disks at its paths are several.
    fn may_wait_for_ever(&self, sync: &SyncJob) -> bool {
        let several = |path: &str, workers: &[WorkerSelector]| {
            let selected = self.agents.iter().filter(|agent| {
                let labels = agent.heartbeat(&self.storages).labels;
                workers.is_empty() || workers.iter().any(|one| one.selects(&agent.name, &labels))
            });
            let mounts = selected.flat_map(|agent| &agent.mounts);
            let there = mounts.filter(|mount| mount.path.as_bytes() == path.as_bytes());
            let disks: BTreeSet<usize> = there.filter_map(|mount| Some(mount.now?.disk)).collect();
            disks.len() != 1
        };
        several(SOURCE, &sync.request.source_workers)
            || several(DESTINATION, &sync.request.destination_workers)
    }
}
