//! Many destinations of one sync: how often the source sends, and what becomes of the others when some die.

use super::agent::Agent;
use super::operator::{PlannedSync, name};
use super::storage_model::{StorageModel, Tree};
use super::storages::{DESTINATION, SOURCE, Storages};
use super::world::Sim;
use super::*;

/// The maximum duration of a sync, in virtual milliseconds.
const MAX_SYNC_MS: u64 = 3600 * 1000;

/// A cluster: workers of one source, and destinations with a disk each. Nothing goes wrong by itself.
fn start_cluster(seed: u64, sources: usize, destinations: usize, tree: Tree) -> Sim {
    let mut sim = Sim::without_agents(seed, false);
    (sim.trees, sim.sites_at_start) = (vec![tree], vec![StorageModel::default()]);
    (sim.loss, sim.faults, sim.calm, sim.is_exact) = (0, 0, true, true);
    sim.settings = Settings::default();
    let hosts = sources + destinations;
    sim.storages = Storages::generate(&mut sim.chance, hosts as u64);
    sim.storages.has_moves = false;
    let sites = sim.sites_at_start.clone();
    sim.storages.add(SOURCE, None, &sites);
    (sources..hosts).for_each(|host| sim.storages.add(DESTINATION, Some(host), &sites));
    for number in 0..hosts {
        let path = if number < sources { SOURCE } else { DESTINATION };
        let slots = if destinations > 100 { 1 } else { sim.chance.within(1, 3) };
        sim.agents.push(Agent::new(number, number, &[path], slots));
    }
    sim.mount_agents();
    sim.begin();
    (0..hosts).for_each(|agent| sim.wake(agent));
    sim
}

/// Submits a sync to all destinations, once all of them are known.
fn submit_to_all(sim: &mut Sim) {
    let is_known = |sim: &Sim| {
        let state = &sim.master.as_ref().unwrap().state;
        let active = sim.agents.iter().filter(|agent| {
            let place = &agent.mounts[0].path;
            state.workers.get(&agent.name).is_some_and(|worker| worker.is_active)
                && state.workers.storages.storage_of(&agent.name, place).is_some()
        });
        active.count() == sim.agents.len()
    };
    run_until(sim, is_known);
    sim.wishes.push(PlannedSync {
        tree: 0,
        options: SyncOptions::default(),
        source_workers: vec![],
        destination_workers: vec!["w*".parse().unwrap()],
        list: None,
        request: 0,
        acknowledged: false,
        unwanted: false,
        of: None,
        of_incomplete: false,
    });
    sim.submit(0);
}

fn run_until(sim: &mut Sim, is_done: impl Fn(&Sim) -> bool) {
    let end = sim.time + MAX_SYNC_MS;
    while !is_done(sim) {
        assert!(sim.time < end, "I8: {:?}", sim.unfinished());
        sim.advance(20);
    }
}

/// The states of the sync and of its destinations.
fn states(sim: &Sim) -> (Option<SyncState>, Vec<(usize, SyncState)>) {
    let state = &sim.master.as_ref().unwrap().state;
    let Some(whole) = state.syncs.find(&name(0)) else { return (None, vec![]) };
    let number = |one: &SyncJob| {
        let worker = one.id.as_str().rsplit('w').next().unwrap();
        worker.parse().unwrap()
    };
    let all = state.destinations_of(whole.no).map(|one| (number(one), one.state));
    (Some(whole.state), all.collect())
}

/// The number of small files and ranges with content, each once.
fn content_units(sim: &Sim) -> u64 {
    let tree = &sim.trees[0];
    let ids = (0..tree.entries.len() as u32).filter(|id| {
        // Further names of a file are linked to the first one.
        let names = tree.names_of(*id);
        names.first().is_none_or(|first| first == id)
    });
    let files = ids.filter(|id| !tree.entries[*id as usize].dir);
    files.map(|id| tree.range_offsets(id).count() as u64).sum()
}

#[test]
fn without_faults_the_source_sends_each_unit_once_and_destinations_send_the_rest() {
    for seed in 0..40 {
        let mut chance = super::rng::SimRng::new(seed);
        let (sources, destinations) = (chance.within(1, 3), chance.within(2, 9));
        let tree = Tree::generate(&mut chance);
        let mut sim = start_cluster(seed, sources as usize, destinations as usize, tree);
        submit_to_all(&mut sim);
        run_until(&mut sim, |sim| states(sim).0.is_some_and(SyncState::is_final));
        let (whole, all) = states(&sim);
        assert_eq!((whole, all.len() as u64), (Some(SyncState::Completed), destinations));
        let (units, log) = (content_units(&sim), &sim.judge.relays);
        let sent: Vec<u32> = log.sent.values().copied().collect();
        assert!(sent.iter().all(|count| *count == 1), "seed {seed}: {:?}", log.sent);
        assert_eq!(sent.len() as u64, units, "seed {seed}");
        assert_eq!(log.relay_count, units * (destinations - 1), "seed {seed}");
        sim.check_end();
    }
}

#[test]
fn of_many_destinations_those_that_live_complete_and_the_source_repeats_only_what_died_with_others()
{
    const DESTINATIONS: usize = 512;
    let mut chance = super::rng::SimRng::new(7);
    let tree = Tree::of_sizes(2, 4, &[2]);
    let mut sim = start_cluster(7, 4, DESTINATIONS, tree);
    sim.judge.check_interval = 1_000;
    submit_to_all(&mut sim);
    run_until(&mut sim, |sim| states(sim).1.len() == DESTINATIONS);
    // They die one after the other, while most of the content is sent.
    let all_content = content_units(&sim) * DESTINATIONS as u64;
    let deaths = DESTINATIONS as u64 / 10;
    let mut dead = BTreeSet::new();
    for death in 0..deaths {
        let due = all_content * 8 / 10 * death / deaths;
        run_until(&mut sim, |sim| sim.judge.relays.relay_count >= due);
        let (_, all) = states(&sim);
        let living =
            |(agent, state): &&(usize, SyncState)| !state.is_final() && !dead.contains(agent);
        let living: Vec<usize> = all.iter().filter(living).map(|(agent, _)| *agent).collect();
        let agent = *chance.pick(&living).expect("not all have ended");
        sim.kill_for_good(agent);
        dead.insert(agent);
    }
    let is_living = |(agent, _): &&(usize, SyncState)| !dead.contains(agent);
    run_until(&mut sim, |sim| {
        states(sim).1.iter().filter(is_living).all(|(_, state)| state.is_final())
    });
    let (whole, all) = states(&sim);
    assert_eq!(whole, Some(SyncState::Queued), "the dead ones may return");
    assert_eq!(all.len(), DESTINATIONS);
    for (agent, state) in &all {
        assert_eq!(*state == SyncState::Completed, !dead.contains(agent), "w{agent}: {state:?}");
    }
    // `send_from_source` has checked that each further one had a reason.
    let (units, log) = (content_units(&sim), &sim.judge.relays);
    let sent: u64 = log.sent.values().map(|count| u64::from(*count)).sum();
    let repeated = sent - units;
    println!(
        "{units} units, {repeated} sent again, {} relayed, {} events, {} ms",
        log.relay_count, sim.judge.events, sim.time
    );
    assert!(repeated <= dead.len() as u64 * 8, "{repeated} were sent again");
    // An operator gives up the dead ones.
    for agent in &dead {
        let request = sim.request();
        let id = format!("s0@w{agent}").parse().unwrap();
        sim.send(super::master::Requester::Operator(request), Event::CancelSync(id));
    }
    run_until(&mut sim, |sim| states(sim).0.is_some_and(SyncState::is_final));
    assert_eq!(states(&sim).0, Some(SyncState::Failed));
}
