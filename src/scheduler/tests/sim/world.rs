//! The simulated world: virtual time, and a network that loses, repeats and delays messages.

use super::agent::{Activity, Agent, POLL_MS, REPEAT_MS, Work};
use super::master::{Master, Requester};
use super::operator::PlannedSync;
use super::oracle::Oracle;
use super::rng::SimRng;
use super::storage_model::{Id, StorageModel, Tree};
use super::storages::{DESTINATION, SOURCE, Storages, claims_of};
use super::store::Store;
use super::*;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// The lines of the trace that a failure shows.
const MAX_TRACE_LINES: usize = 40;
/// Start of the clock.
const START_MS: u64 = 1_000;

/// What happens at a time.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "only a few are under way at a time")]
pub(super) enum SimEvent {
    Request(Requester, Event),
    Answer(Requester, Reply),
    Beat(usize, u64),
    /// An agent carries out what a heartbeat was answered with.
    Check(usize, u64),
    Timer(usize, u64, usize, u64),
    Tick,
    /// A disk changes what it has of an entry of a tree, at an offset.
    Damage {
        disk: usize,
        tree: usize,
        id: Id,
        offset: u64,
    },
    /// The store is available again, and a master is elected.
    StoreUp,
    Term,
    Up(usize),
    /// The master of an epoch reads manifests.
    Read(u64),
}

/// See the module.
pub(super) struct Sim {
    pub(super) chance: SimRng,
    /// For damage and forgery, so that histories without them stay as they are.
    pub(super) fault_chance: SimRng,
    /// Ranges that their disk changes after they were written, of a thousand; and how many it changed.
    pub(super) damage_permille: u64,
    pub(super) damage_count: u32,
    /// An agent reports what it has not done.
    pub(super) has_forgers: bool,
    /// Most syncs have several destinations.
    pub(super) is_cluster: bool,
    /// Agents die, and there is no other fault.
    pub(super) is_exact: bool,
    pub(super) time: u64,
    /// By how much the master's wall clock is off.
    pub(super) skew_ms: i64,
    /// It is right all the same.
    pub(super) steady: bool,
    happenings: BinaryHeap<Reverse<(u64, u64)>>,
    what: HashMap<u64, SimEvent>,
    count: u64,
    pub(super) trees: Vec<Tree>,
    /// What each destination has of each tree before all begins.
    pub(super) sites_at_start: Vec<StorageModel>,
    pub(super) storages: Storages,
    pub(super) agents: Vec<Agent>,
    pub(super) store: Store,
    pub(super) store_down: bool,
    pub(super) lists: BTreeMap<SyncNo, Vec<u8>>,
    /// The leader, and a deposed master that does not know it yet.
    pub(super) master: Option<Master>,
    pub(super) deposed: Option<Master>,
    pub(super) wishes: Vec<PlannedSync>,
    pub(super) judge: Oracle,
    /// Nothing goes wrong any more.
    pub(super) calm: bool,
    pub(super) calm_since: Option<u64>,
    /// Requests and answers lost, of a thousand; and faults of entries.
    pub(super) loss: u64,
    pub(super) faults: u64,
    /// Entries, each of a tree, that kill each agent that copies them.
    pub(super) poison: BTreeSet<(usize, u32)>,
    pub(super) settings: Settings,
    pub(super) step: usize,
    requests: u64,
    pub(super) trace: Option<VecDeque<String>>,
    /// Sums up all that was decided.
    pub(super) digest: u64,
}

impl Sim {
    pub(super) fn now(&self) -> Now {
        let skew_ms = if self.steady { 0 } else { self.skew_ms };
        let wall_ms = START.wall_ms + self.time as i64 + skew_ms;
        Now { mono_ms: self.time, wall_ms }
    }

    pub(super) fn trace(&mut self, line: impl FnOnce(&Sim) -> String) {
        if self.trace.is_none() {
            return;
        }
        let line = format!(
            "{:>6} {:>8}.{:03} {}",
            self.step,
            self.time / 1000,
            self.time % 1000,
            line(self)
        );
        if let Some(trace) = &mut self.trace {
            trace.push_back(line);
            if trace.len() > number("LONGHAUL_SIM_TRACE").map_or(MAX_TRACE_LINES, |n| n as usize) {
                trace.pop_front();
            }
        }
    }

    pub(super) fn start(seed: u64, traced: bool) -> Sim {
        let mut sim = Sim::without_agents(seed, traced);
        sim.spread_poison(seed);
        sim.schedule_operators();
        sim.begin();
        sim
    }

    /// A world without agents, in which nothing happens yet.
    pub(super) fn without_agents(seed: u64, traced: bool) -> Sim {
        let mut chance = SimRng::new(seed);
        let trees: Vec<Tree> =
            (0..chance.within(1, 3)).map(|_| Tree::generate(&mut chance)).collect();
        let sites_at_start = trees.iter().map(|_| StorageModel::generate(&mut chance)).collect();
        let settings = Settings {
            window_tasks: chance.within(4, 24) as usize,
            max_active_syncs: chance.within(1, 6) as usize,
            no_space_ms: chance.below(3) * 60_000,
            ..Settings::default()
        };
        let loss = [0, 10, 50, 200][chance.below(4) as usize];
        let faults = [0, 5, 50, 200][chance.below(4) as usize];
        Sim {
            time: START_MS,
            skew_ms: 0,
            steady: false,
            happenings: BinaryHeap::new(),
            what: HashMap::new(),
            count: 0,
            trees,
            sites_at_start,
            storages: Storages::default(),
            agents: vec![],
            store: Store::default(),
            store_down: false,
            lists: BTreeMap::new(),
            master: None,
            deposed: None,
            wishes: vec![],
            judge: Oracle::default(),
            calm: false,
            calm_since: None,
            loss,
            faults,
            poison: BTreeSet::new(),
            settings,
            step: 0,
            requests: 0,
            trace: traced.then(VecDeque::new),
            digest: 0,
            chance,
            fault_chance: SimRng::new(!seed),
            damage_permille: 0,
            damage_count: 0,
            has_forgers: false,
            // None of them is pinned.
            is_cluster: seed % 5 == 1,
            is_exact: false,
        }
    }

    /// The first master is elected.
    pub(super) fn begin(&mut self) {
        self.elect_master();
        self.schedule(100, SimEvent::Tick);
    }

    /// In one of four seeds an entry of each tree kills the agents that copy it.
    fn spread_poison(&mut self, seed: u64) {
        if !seed.is_multiple_of(4) {
            return;
        }
        for (number, tree) in self.trees.iter().enumerate() {
            let small = |id: &u32| tree.entries[*id as usize].size <= 10;
            let mut ids = (0..tree.entries.len() as u32).filter(small);
            self.poison.extend(ids.next_back().map(|id| (number, id)));
        }
    }

    fn schedule_operators(&mut self) {
        // In a few seeds there are many destinations.
        let most = match (self.chance.below(200), self.is_cluster) {
            (0, _) => 66,
            (1..8, _) => 16,
            (_, true) => 8,
            _ => 6,
        };
        let agents = self.chance.within(2, most) as usize;
        let hosts = if most > 6 { agents as u64 } else { self.chance.within(1, agents as u64) };
        self.storages = Storages::generate(&mut self.chance, hosts);
        for number in 0..agents {
            let paths: &[&str] = match (number, self.chance.below(3)) {
                (0, 0) | (2.., 0) => &[SOURCE, DESTINATION],
                (0, _) => &[SOURCE],
                (2.., 1) if most == 6 => &[SOURCE],
                _ => &[DESTINATION],
            };
            let host = match most {
                6 => self.chance.below(hosts) as usize,
                _ => number,
            };
            let slots = self.chance.within(1, 3);
            self.agents.push(Agent::new(number, host, paths, slots));
        }
        let shared = |at: u64| [1, 1, 1, 0, 2][at as usize];
        let sources = shared(self.chance.below(5));
        let destinations = if most > 6 { 0 } else { shared(self.chance.below(5)) };
        self.mount_all(if most > 6 { 1 } else { sources }, destinations);
        self.spread_lies();
        self.spread_damage();
        (0..agents).for_each(|number| self.wake(number));
    }

    /// Schedules an event in `after` milliseconds.
    pub(super) fn schedule(&mut self, after: u64, what: SimEvent) {
        self.count += 1;
        self.happenings.push(Reverse((self.time + after, self.count)));
        self.what.insert(self.count, what);
    }

    /// How long until all that is under way has arrived, as far as it can.
    pub(super) fn in_flight_ms(&self) -> u64 {
        let messages = self.happenings.iter().filter(|Reverse((_, number))| {
            let what = self.what.get(number);
            matches!(what, Some(SimEvent::Request(..) | SimEvent::Answer(..)))
        });
        let last = messages.map(|Reverse((at, _))| *at).max();
        last.map_or(0, |at| at.saturating_sub(self.time))
    }

    /// Advances the time and runs what is due.
    pub(super) fn advance(&mut self, ms: u64) {
        let end = self.time + ms;
        while let Some(Reverse((at, number))) = self.happenings.peek().copied() {
            if at > end {
                break;
            }
            self.happenings.pop();
            self.time = self.time.max(at);
            if let Some(what) = self.what.remove(&number) {
                self.run_event(what);
            }
        }
        self.time = end;
    }

    fn run_event(&mut self, what: SimEvent) {
        match what {
            SimEvent::Request(requester, event) => self.deliver(requester, event),
            SimEvent::Answer(requester, reply) => self.deliver_reply(requester, reply),
            SimEvent::Beat(agent, incarnation) => self.send_heartbeat(agent, incarnation),
            SimEvent::Timer(agent, incarnation, slot, timer) => {
                self.timer(agent, incarnation, slot, timer);
            }
            SimEvent::Check(agent, incarnation) => self.carry_out_checks(agent, incarnation),
            SimEvent::Tick => self.tick(),
            SimEvent::Damage { disk, tree, id, offset } => {
                self.damage_entry(disk, tree, id, offset)
            }
            SimEvent::Read(epoch) => self.answer_entry_reads(epoch),
            SimEvent::StoreUp => self.restore_store(),
            SimEvent::Term => {
                if self.store_down {
                    self.schedule(1_000, SimEvent::Term);
                } else if self.master.is_none() {
                    self.elect_master();
                }
            }
            SimEvent::Up(agent) => {
                self.agents[agent].down = false;
                self.wake(agent);
            }
        }
    }

    /// Starts the process of an agent.
    pub(super) fn wake(&mut self, agent: usize) {
        self.agents[agent].restart();
        let incarnation = self.agents[agent].incarnation;
        self.trace(|sim| sim.agents[agent].describe());
        self.schedule(1, SimEvent::Beat(agent, incarnation));
        for slot in 0..self.agents[agent].slots.len() {
            self.timer_in(agent, slot, 500);
        }
    }

    pub(super) fn request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// How long a message is under way; none if it is lost.
    fn delay(&mut self) -> Option<u64> {
        if self.calm {
            return Some(self.chance.within(1, 5));
        }
        if self.chance.permille(self.loss) {
            return None;
        }
        match self.chance.below(100) {
            0 => Some(self.chance.within(1_000, 60_000)),
            1..10 => Some(self.chance.within(100, 2_000)),
            _ => Some(self.chance.within(1, 60)),
        }
    }

    /// Whether nothing gets through between an agent and the master.
    fn is_cut(&self, requester: &Requester) -> bool {
        matches!(requester, Requester::Agent(agent, ..) if self.agents[*agent].cut_until > self.time)
    }

    pub(super) fn send(&mut self, requester: Requester, event: Event) {
        let copies = 1 + u64::from(!self.calm && self.chance.permille(self.loss));
        for _ in 0..copies {
            if let Some(ms) = self.delay().filter(|_| !self.is_cut(&requester)) {
                self.schedule(ms, SimEvent::Request(requester.clone(), event.clone()));
            }
        }
    }

    pub(super) fn reply(&mut self, requester: Requester, reply: Reply) {
        let copies = 1 + u64::from(!self.calm && self.chance.permille(self.loss));
        for _ in 0..copies {
            if let Some(ms) = self.delay().filter(|_| !self.is_cut(&requester)) {
                self.schedule(ms, SimEvent::Answer(requester.clone(), reply.clone()));
            }
        }
    }

    fn send_heartbeat(&mut self, agent: usize, incarnation: u64) {
        let a = &self.agents[agent];
        if a.down || a.incarnation != incarnation {
            return;
        }
        if a.frozen_until > self.time {
            // It may be thawed before.
            let after = (a.frozen_until - self.time).min(5_000);
            return self.schedule(after, SimEvent::Beat(agent, incarnation));
        }
        // What its paths lead to now is used from here on.
        self.agents[agent].mounts.iter_mut().for_each(|mount| mount.open = mount.now);
        self.send_one_heartbeat(agent);
        let ms = self.chance.within(3_000, 6_000);
        self.schedule(ms, SimEvent::Beat(agent, incarnation));
    }

    pub(super) fn send_one_heartbeat(&mut self, agent: usize) {
        let request = self.request();
        let says = self.agents[agent].heartbeat(&self.storages);
        let time = self.time;
        let a = &mut self.agents[agent];
        a.beat += 1;
        a.beats.insert(request, (time, says.assignments.clone()));
        if a.beats.len() > 20 {
            a.beats.pop_first();
        }
        let incarnation = a.incarnation;
        self.send(Requester::Agent(agent, incarnation, request), Event::Heartbeat(says));
    }

    /// The timer of a slot; the one before does not count any more.
    pub(super) fn timer_in(&mut self, agent: usize, slot: usize, ms: u64) {
        let a = &mut self.agents[agent];
        a.slots[slot].timer += 1;
        let (incarnation, timer) = (a.incarnation, a.slots[slot].timer);
        self.schedule(ms, SimEvent::Timer(agent, incarnation, slot, timer));
    }

    fn timer(&mut self, agent: usize, incarnation: u64, slot: usize, timer: u64) {
        let a = &self.agents[agent];
        if a.down || a.incarnation != incarnation || a.slots[slot].timer != timer {
            return;
        }
        if a.frozen_until > self.time {
            let after = a.frozen_until - self.time;
            return self.schedule(after, SimEvent::Timer(agent, incarnation, slot, timer));
        }
        self.run_slot(agent, slot);
    }

    fn deliver_reply(&mut self, requester: Requester, reply: Reply) {
        match requester {
            Requester::Operator(request) => self.handle_operator_reply(request, reply),
            Requester::Agent(agent, incarnation, request) => {
                let a = &self.agents[agent];
                if a.down || a.incarnation != incarnation {
                    return;
                }
                if a.frozen_until > self.time {
                    let after = a.frozen_until - self.time;
                    return self.schedule(after, SimEvent::Answer(requester, reply));
                }
                self.handle_reply(agent, request, reply);
            }
        }
    }

    fn handle_reply(&mut self, agent: usize, request: u64, reply: Reply) {
        if let Reply::Heartbeat(reply) = &reply {
            let lease_ms = self.settings.lease_ms;
            self.agents[agent].handle_heartbeat_reply(request, reply, lease_ms);
            return self.receive_checks(agent, request, &reply.storage_checks);
        }
        let slots = &mut self.agents[agent].slots;
        let asked =
            |s: &super::agent::Slot| s.request.as_ref().is_some_and(|(id, _)| *id == request);
        let Some(slot) = slots.iter().position(asked) else { return };
        slots[slot].request = None;
        self.handle_slot_reply(agent, slot, reply);
    }

    /// Sends a request, and repeats it until there is a reply.
    pub(super) fn send_request(
        &mut self,
        agent: usize,
        slot: usize,
        doing: Activity,
        event: Event,
    ) {
        let request = self.request();
        let incarnation = self.agents[agent].incarnation;
        let s = &mut self.agents[agent].slots[slot];
        s.doing = doing;
        s.request = Some((request, event.clone()));
        s.since = self.time;
        self.send(Requester::Agent(agent, incarnation, request), event);
        self.timer_in(agent, slot, if doing == Activity::Poll { POLL_MS } else { 0 } + REPEAT_MS);
    }

    pub(super) fn start_work(&mut self, agent: usize, slot: usize, a: Box<Assignment>) {
        let held = self.agents[agent].in_hand().contains(&a.assignment_id);
        let s = &mut self.agents[agent].slots[slot];
        if held {
            s.doing = Activity::Rest;
            return self.timer_in(agent, slot, 100);
        }
        let deadline = s.since + self.settings.lease_ms;
        let work = Work {
            manifest: vec![],
            deadline,
            number: 0,
            walk: VecDeque::new(),
            spawn: 0,
            report: TaskReport::default(),
            held: vec![],
            through: None,
            claims: claims_of(&a.ticket),
            gone: None,
            unreachable: None,
            a,
        };
        s.work = Some(work);
        s.doing = Activity::Begun;
        self.prepare(agent, slot);
    }
}
