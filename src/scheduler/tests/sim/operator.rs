//! Operations of operators, and faults.

use super::agent_work::names;
use super::master::Requester;
use super::storage_model::Id;
use super::world::{Sim, SimEvent};
use super::*;
use crate::scheduler::pause::Pause;
use crate::wire::options::{Compare, Verify};
use crate::wire::preserve::Preserve;

/// A sync that an operator submits.
#[derive(Debug, Clone)]
pub(super) struct PlannedSync {
    pub(super) tree: usize,
    pub(super) options: SyncOptions,
    /// The pages of a list.
    pub(super) list: Option<Vec<usize>>,
    pub(super) request: u64,
    /// A master acknowledged it.
    pub(super) acknowledged: bool,
    /// An operator cancelled or deleted it.
    pub(super) unwanted: bool,
    /// It is the retry of another one.
    pub(super) of: Option<u32>,
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
    pub(super) fn number(&self, id: &crate::wire::RequestId) -> u32 {
        id.as_str()[1..].parse().unwrap()
    }

    pub(super) fn tree_of(&self, source: &AbsPath) -> usize {
        let path = source.as_bytes();
        usize::from(path[path.len() - 1] - b'0')
    }

    /// An operator submits a sync.
    pub(super) fn plan_sync(&mut self) {
        let tree = self.chance.below(self.trees.len() as u64) as usize;
        let list = self.chance.permille(200).then(|| {
            let pages = self.trees[tree].pages.len() as u64;
            (0..self.chance.within(1, pages)).map(|_| self.chance.below(pages) as usize).collect()
        });
        // Half of the syncs that are no mirrors run beside others of their tree.
        let beside = self.wishes.len() % 2 == 1;
        let mut on = |parts| self.chance.permille(parts);
        let dry_run = on(150);
        let links = if on(500) { ["all"] } else { ["no-hardlinks"] };
        let mut options = SyncOptions {
            compare: if on(300) { Compare::Checksum } else { Compare::SizeTime },
            verify: if on(250) && !dry_run { Verify::Readback } else { Verify::Transfer },
            delete: (on(300) && list.is_none())
                .then(|| DeleteOptions { max_percent: 100, ..DeleteOptions::default() }),
            preserve: Preserve::parse_names(links).unwrap(),
            record: on(250),
            dry_run,
            ..SyncOptions::default()
        };
        options.allow_overlap = beside && options.delete.is_none();
        let wish = PlannedSync {
            tree,
            options,
            list,
            request: 0,
            acknowledged: false,
            unwanted: false,
            of: None,
        };
        self.wishes.push(wish);
        self.submit(self.wishes.len() as u32 - 1);
    }

    /// Sends the submit, or the retry, of a sync: for the first time or once more.
    pub(super) fn submit(&mut self, number: u32) {
        let request = self.request();
        let wish = &mut self.wishes[number as usize];
        wish.request = request;
        let mut body = [0; 32];
        body[..4].copy_from_slice(&number.to_le_bytes());
        let idempotency = Some(IdempotencyKey { key: format!("k{number}"), body: Digest(body) });
        let event = match wish.of {
            Some(of) => Event::RetrySync {
                id: name(of),
                new: Some(name(number)),
                only: RetryScope::All,
                idempotency,
            },
            None => {
                let id = name(number).as_str().to_owned();
                let (source, to) = (format!("/src/t{}", wish.tree), format!("/dst/t{}", wish.tree));
                let options = wish.options.clone();
                let request = SyncRequest { options, ..super::request(Some(&id), &source, &to) };
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
            Reply::Refused(problem) => panic!("I17: a submit was refused: {}", problem.detail),
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
        let id = name(number);
        let event = match self.chance.below(100) {
            0..25 => return self.submit(number),
            25..45 => Event::PauseSync(id),
            45..65 => Event::ResumeSync(id),
            65..72 => Event::CancelSync(id),
            72..77 => Event::DeleteSync(id),
            77..85 => return self.retry_failed(number),
            85..90 => Event::GetFileRecords(id),
            90..95 => Event::ListSyncs(SyncQuery::default()),
            _ => Event::ListWorkers,
        };
        if matches!(event, Event::CancelSync(_) | Event::DeleteSync(_)) {
            self.wishes[number as usize].unwanted = true;
        }
        let request = self.request();
        self.send(Requester::Operator(request), event);
    }

    fn retry_failed(&mut self, number: u32) {
        if self.wishes.len() >= 10 {
            return;
        }
        let old = &self.wishes[number as usize];
        let new =
            PlannedSync { of: Some(number), acknowledged: false, unwanted: false, ..old.clone() };
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
            80..90 => self.agents[agent].draining = false,
            _ => {
                let host = self.agents[agent].host;
                self.boots[host] += 1;
                for site in &mut self.sites {
                    site.lose_unflushed(host, &mut self.chance);
                }
                for other in 0..self.agents.len() {
                    if self.agents[other].host == host {
                        self.kill(other, ms / 3);
                    }
                }
            }
        }
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
        self.restore_store();
        for agent in &mut self.agents {
            agent.frozen_until = agent.frozen_until.min(self.time);
            agent.cut_until = 0;
            agent.draining = false;
        }
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
        let mut missing: Vec<u32> = vec![];
        for number in 0..self.wishes.len() as u32 {
            match state.syncs.find(&name(number)) {
                Some(sync) if sync.pause == Some(Pause::Operator) && sync.is_active() => {
                    events.push(Event::ResumeSync(name(number)));
                }
                None if !self.wishes[number as usize].unwanted => missing.push(number),
                _ => {}
            }
        }
        missing.into_iter().for_each(|number| self.submit(number));
        for event in events {
            let request = self.request();
            self.send(Requester::Operator(request), event);
        }
    }
}
