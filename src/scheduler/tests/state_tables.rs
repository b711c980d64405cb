//! Walks the tables of states in the comments of tasks, large files, pauses, quarantines and isolation.

use super::*;
use crate::scheduler::pause::Pause;
use crate::scheduler::task::TaskState;
use crate::scheduler::worker_health::WorkerHealth;
use crate::wire::options::Compare;

/// The rows of the tables in the comments of a file: a state, an event, the next state.
fn rows(source: &str) -> Vec<[&str; 3]> {
    let comments = source.lines().filter_map(|line| line.trim_start().strip_prefix("//"));
    let columns =
        comments.map(|line| line.trim_start_matches(['/', '!']).split('|').map(str::trim));
    let rows: Vec<_> = columns.filter_map(|c| c.collect::<Vec<_>>().try_into().ok()).collect();
    assert!(rows.len() > 3, "there is a table");
    rows
}

/// The sync `demo` after a scan that found `work`.
fn found(options: SyncOptions, work: Vec<WorkItem>) -> World {
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, work, None));
    world
}

/// The sync `demo` with one batch of one file.
fn copying() -> World {
    found(SyncOptions::default(), vec![copy_item(1, 0)])
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

/// What a large file is, or what remains of it.
fn shown_large_file(world: &World, id: TaskId) -> String {
    let sync = world.state.syncs.values().next().unwrap();
    let is_kind = |kind: &str| world.state.tasks.values().any(|task| task.spec.kind() == kind);
    let ended = match (sync.large_files.get(&id), &sync.counters) {
        (Some(large), _) => return format!("{:?}", large.state),
        _ if !sync.large_files.is_empty() => "Replaced",
        _ if is_kind("copy") => "Linked",
        (None, counters) if counters.files_failed > 0 => "Failed",
        (None, counters) if counters.files_done > 0 => "Done",
        (None, counters) if counters.files_skipped == 0 => "Lost",
        _ if is_kind("discard") => "Discarded",
        _ => "Skipped",
    };
    ended.to_owned()
}

#[test]
fn a_large_file_changes_its_state_as_its_table_shows() {
    let unchanged = || TaskReport { unchanged: true, ..TaskReport::default() };
    let permanent =
        || TaskReport { failures: vec![error(ErrorClass::Permanent)], ..TaskReport::default() };
    let complete_ranges = |world: &mut World| {
        complete_kind(world, "s", "range");
        complete_kind(world, "s", "range");
    };
    for [from, event, to] in rows(include_str!("../large_file.rs")) {
        let compare = match from {
            "Comparing" => Compare::Checksum,
            _ => Compare::default(),
        };
        let work = match from {
            "Waiting" => vec![large_in_group(2, 1), large_in_group(2, 1)],
            _ => vec![large_item(2)],
        };
        let mut world = found(SyncOptions { compare, ..SyncOptions::default() }, work);
        let id = *world.state.syncs.values().next().unwrap().large_files.keys().last().unwrap();
        let first = (from == "AlreadyPresent").then(|| poll_kind(&mut world, "s", "range"));
        if first.is_some() {
            let second = poll_kind(&mut world, "s", "range");
            world.post_result(result(&second, true, unchanged()));
        }
        assert_eq!(shown_large_file(&world, id), from, "before: {event}");
        let mut end_range = |report: TaskReport| {
            let range = poll_kind(&mut world, "s", "range");
            world.post_result(result(&range, true, report));
        };
        match (event, first) {
            ("another name is present" | "all ranges are equal" | "all ranges are sent", None) => {
                complete_ranges(&mut world);
                complete_kind(&mut world, "d", "commit");
            }
            ("the other name fails for good" | "it fails for good", None) => end_range(permanent()),
            ("a range differs", None) => {
                end_range(TaskReport { differs: true, ..TaskReport::default() });
            }
            ("its part file is lost", None) => {
                complete_ranges(&mut world);
                let commit = poll_kind(&mut world, "d", "commit");
                let report = TaskReport { part_lost: true, ..permanent() };
                world.post_result(result(&commit, true, report));
            }
            ("the source changes", None) => {
                end_range(TaskReport { replacement: Some(large_item(3)), ..TaskReport::default() })
            }
            ("its only leased range finds it there", None) => end_range(unchanged()),
            ("one of two leased ranges finds it", None) => {
                let _other = poll_kind(&mut world, "s", "range");
                let range = poll_kind(&mut world, "s", "range");
                world.post_result(result(&range, true, unchanged()));
            }
            ("the other range finds it too", Some(first)) => {
                world.post_result(result(&first, true, unchanged()));
            }
            ("the other range wrote", Some(first)) => {
                world.post_result(result(&first, true, all_done(&first, "d")));
            }
            (other, _) => panic!("no such event: {other}"),
        }
        assert_eq!(shown_large_file(&world, id), to, "{from}: {event}");
    }
}

#[test]
fn a_task_is_isolated_as_the_table_shows() {
    let shown = |world: &World, id: TaskId| {
        let sync = world.state.syncs.values().next().unwrap();
        let isolated = world.state.isolation.tasks().count();
        match (world.state.tasks.get(id), world.state.isolation.contains(id)) {
            (Some(_), true) => "Isolated",
            (Some(_), false) => "Ordinary",
            (None, _) if isolated == 2 => "Split",
            (None, _) if sync.counters.files_failed == 1 => "Failed",
            (None, _) if sync.counters.files_done == 1 => "Done",
            (None, _) => "Lost",
        }
    };
    // The `number`th process of the agent gets the task and is killed; the next one reports.
    let lose = |world: &mut World, number: u32| {
        world.poll("s", &number.to_string()).expect("the task");
        world.advance(10);
        world.heartbeat("s", &(number + 1).to_string(), &["/src"], &[]);
    };
    let most = Settings::default().max_worker_losses;
    for [from, event, to] in rows(include_str!("../isolation.rs")) {
        let names: &[&str] = if event.starts_with("a batch") { &["a", "b"] } else { &["a"] };
        let mut world = found(SyncOptions::default(), vec![worker_losses::files(names)]);
        let id = world.state.tasks.values().next().expect("a batch").id;
        let losses = match (from, event) {
            ("Isolated", _) => most,
            (_, "it is lost") => 0,
            _ => most - 1,
        };
        (1..=losses).for_each(|number| lose(&mut world, number));
        assert_eq!(shown(&world, id), from, "before: {event}");
        match event {
            "it is lost"
            | "it is lost for the last time"
            | "a batch is lost for the last time"
            | "it is lost once more" => lose(&mut world, losses + 1),
            "its process turns out to be alive" => {
                world.heartbeat("s", &losses.to_string(), &["/src"], &[]);
            }
            "it is done" => {
                let held = world.poll("s", &(losses + 1).to_string()).expect("the task");
                world.post_result(result(&held, true, all_done(&held, "d")));
            }
            other => panic!("no such event: {other}"),
        }
        assert_eq!(shown(&world, id), to, "{from}: {event}");
    }
}
