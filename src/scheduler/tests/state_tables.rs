//! Walks the tables of states in the comments of tasks, pauses and quarantines.

use super::*;
use crate::scheduler::pause::Pause;
use crate::scheduler::task::TaskState;
use crate::scheduler::worker_health::WorkerHealth;

/// The rows of the tables in the comments of a file: a state, an event, the next state.
fn rows(source: &str) -> Vec<[&str; 3]> {
    let comments = source.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
    let columns =
        comments.map(|line| line.trim_start_matches(['/', '!']).split('|').map(str::trim));
    let rows: Vec<_> = columns.filter_map(|c| c.collect::<Vec<_>>().try_into().ok()).collect();
    assert!(rows.len() > 3, "there is a table");
    rows
}

/// The sync `demo` with one batch of one file.
fn copying() -> World {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    world
}

fn post_failure(world: &mut World, a: &Assignment, failures: Vec<EntryError>) {
    let report = TaskReport { failures, ..TaskReport::default() };
    world.post_result(result(a, false, report));
}

#[test]
fn a_task_changes_its_state_as_its_table_shows() {
    let shown = |world: &World, id: TaskId| match world.state.tasks.get(id).map(|t| &t.state) {
        Some(TaskState::Ready) => "Ready",
        Some(TaskState::Leased(_)) => "Leased",
        Some(TaskState::Delayed { .. }) => "Delayed",
        None => "Removed",
    };
    for [from, event, to] in rows(include_str!("../task.rs")) {
        let mut world = copying();
        let id = world.state.tasks.values().next().expect("a batch").id;
        let held = (from != "Ready").then(|| poll_kind(&mut world, "s", "copy"));
        if from == "Delayed" {
            post_failure(&mut world, held.as_ref().unwrap(), vec![]);
        }
        assert_eq!(shown(&world, id), from, "before: {event}");
        match (event, held.as_ref()) {
            ("a worker polls", None) => drop(poll_kind(&mut world, "s", "copy")),
            ("the agent returns it", Some(held)) => {
                let report = TaskReport { returned: true, ..TaskReport::default() };
                world.post_result(result(held, false, report));
            }
            ("the lease expires", Some(_)) => world.advance(40_000),
            ("its agent restarts", Some(_)) => world.heartbeat("s", "2", &["/src"], &[]),
            ("an operator reassigns it", Some(held)) => {
                let (id, worker) = (held.request_id.clone(), held.worker_id.clone());
                world.apply(Event::ReassignTasks { id, worker });
            }
            ("it fails, another worker is able", Some(held)) => {
                world.heartbeat("s2", "1", &["/src"], &[]);
                post_failure(&mut world, held, vec![]);
            }
            ("it fails, no other worker is able", Some(held)) => {
                post_failure(&mut world, held, vec![]);
            }
            ("it fails for good", Some(held)) => {
                post_failure(&mut world, held, vec![error(ErrorClass::Permanent)]);
            }
            ("it is done", Some(held)) => {
                world.post_result(result(held, true, all_done(held, "d")));
            }
            ("the delay ends", Some(_)) => world.advance(5_000),
            other => panic!("no such event: {other:?}"),
        }
        assert_eq!(shown(&world, id), to, "{from}: {event}");
    }
}

#[test]
fn a_sync_is_paused_and_resumed_as_its_table_shows() {
    let id = || "demo".parse().unwrap();
    let shown = |world: &World| match world.state.syncs.find(&id()).unwrap() {
        sync if !sync.is_active() => "Ended",
        sync => match sync.pause {
            None => "Running",
            Some(Pause::Operator) => "Operator",
            Some(Pause::Storage { .. }) => "Storage",
        },
    };
    let fill = |world: &mut World| {
        let held = poll_kind(world, "s", "copy");
        let full = EntryError { errno: Some("ENOSPC".into()), ..error(ErrorClass::Transient) };
        post_failure(world, &held, vec![full]);
    };
    let wait = |world: &mut World, ms: u64| {
        for _ in 0..ms / 5_000 {
            world.advance(5_000);
            world.heartbeat("s", "1", &["/src"], &[]);
            world.heartbeat("d", "1", &["/dst"], &[]);
        }
    };
    for [from, event, to] in rows(include_str!("../pause.rs")) {
        let mut world = copying();
        match from {
            "Operator" => drop(world.apply(Event::PauseSync(id()))),
            "Storage" => fill(&mut world),
            _ => {}
        }
        assert_eq!(shown(&world), from, "before: {event}");
        match event {
            "an operator pauses it" => drop(world.apply(Event::PauseSync(id()))),
            "an operator resumes it" => drop(world.apply(Event::ResumeSync(id()))),
            "its destination is full" => fill(&mut world),
            "a probe writes" => {
                wait(&mut world, 20_000);
                complete_kind(&mut world, "s", "copy");
            }
            "probes fail for too long" => {
                world.state.settings.no_space_ms = 60_000;
                wait(&mut world, 70_000);
            }
            other => panic!("no such event: {other}"),
        }
        assert_eq!(shown(&world), to, "{from}: {event}");
    }
}

#[test]
fn a_worker_enters_and_leaves_quarantine_as_its_table_shows() {
    let (worker, peer): (WorkerId, WorkerId) = ("w".parse().unwrap(), "p".parse().unwrap());
    let record = |health: &mut WorkerHealth, peer_fails: bool| {
        for _ in 0..8 {
            health.record_outcome(&peer, peer_fails, START);
            health.record_outcome(&worker, true, START);
        }
        health.quarantine_if_worse(&worker, std::slice::from_ref(&peer), START);
    };
    let shown = |health: &WorkerHealth| match health.quarantine_reason(&worker) {
        None => "Normal",
        Some(_) => "Quarantine",
    };
    for [from, event, to] in rows(include_str!("../worker_health.rs")) {
        let mut health = WorkerHealth::default();
        if from == "Quarantine" {
            record(&mut health, false);
        }
        assert_eq!(shown(&health), from, "before: {event}");
        match event {
            "it fails as often as its peers" => record(&mut health, true),
            "it fails much more often" => record(&mut health, false),
            "a probe fails" => health.record_outcome(&worker, true, START),
            "a probe succeeds" => health.record_outcome(&worker, false, START),
            "its agent restarts" => health.forget(&worker),
            other => panic!("no such event: {other}"),
        }
        assert_eq!(shown(&health), to, "{from}: {event}");
    }
}
