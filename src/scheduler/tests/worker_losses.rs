//! Tasks that are lost with the workers that hold them.

use super::*;
use crate::wire::manifest::{Entry, EntryKind, FileVersion, Manifest, ManifestDir, Meta};

/// A batch of files of 10 bytes each.
pub(super) fn files(names: &[&str]) -> WorkItem {
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let path = |name: &str| RelPath::new(name).unwrap();
    let entry = |name: &&str| {
        Entry::new(path(name), EntryKind::File { size: 10 }, meta, FileVersion::default())
    };
    let dirs = ["", "d", "e"].map(|dir| ManifestDir { path: path(dir), meta }).to_vec();
    let entries: Vec<Entry> = names.iter().map(entry).collect();
    let files = entries.len() as u64;
    let manifest = Base64Bytes(Manifest { dirs, entries }.encode());
    WorkItem::Copy { manifest, files, dirs: 0, bytes: files * 10 }
}

/// A world in which the scan by `s` found `work`.
fn found(work: Vec<WorkItem>) -> World {
    let (mut world, scan) = scanning();
    assert_eq!(world.post_page(&scan, page(&scan, 0, work, None)), PageAction::Done);
    world
}

/// The agent of a worker is killed and started again, as its `number`th process.
fn restart_worker(world: &mut World, worker: &str, number: usize) {
    world.advance(10);
    world.heartbeat(worker, &number.to_string(), &["/src"], &[]);
}

fn poll(world: &mut World, worker: &str, number: usize) -> Option<Assignment> {
    world.poll(worker, &number.to_string())
}

fn losses(world: &World, a: &Assignment) -> usize {
    world.state.tasks[&a.task_id].history.losses.len()
}

fn name_of(world: &World, a: &Assignment) -> String {
    let key = world.state.tasks[&a.task_id].manifest_key.clone().unwrap();
    let manifest = Manifest::decode(&world.blobs[&key]).unwrap();
    assert_eq!(manifest.entries.len(), 1, "one entry each");
    let dirs: Vec<String> = manifest.dirs.iter().map(|dir| dir.path.to_string()).collect();
    let name = manifest.entries[0].path.to_string();
    assert!(dirs.iter().all(|dir| dir.is_empty() || name.starts_with(dir)), "{name}: {dirs:?}");
    name
}

/// All work goes well from now on.
fn work_until_end(world: &mut World, source: usize) -> SyncProgress {
    for _ in 0..20 {
        world.advance(5_000);
        while let Some(task) = poll(world, "s", source) {
            world.post_result(result(&task, true, all_done(&task, "d")));
        }
        world.heartbeat("s", &source.to_string(), &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
        while let Some(task) = world.poll("d", "1") {
            assert!(matches!(task.task.kind(), "discard" | "flush"), "{task:?}");
            world.post_result(result(&task, true, all_done(&task, "d")));
        }
    }
    world.progress("demo")
}

#[test]
fn of_a_batch_that_kills_its_agents_only_the_entry_at_fault_fails() {
    for restarted in [false, true] {
        let mut world = found(vec![files(&["d/a", "d/b", "e/c"])]);
        for number in 1..=3 {
            let copy = poll(&mut world, "s", number).expect("the batch");
            assert!(matches!(copy.task, TaskSpec::Copy { files: 3, .. }), "{copy:?}");
            restart_worker(&mut world, "s", number + 1);
            let progress = world.progress("demo");
            let reason = progress.reason.unwrap();
            assert_eq!(progress.state, SyncState::Progress);
            assert!(
                reason.contains("was lost with its worker") && reason.contains("s"),
                "{reason}"
            );
            assert_eq!(reason.contains("after 3 times"), number < 3, "{reason}");
            if restarted {
                world.restart();
                world.heartbeat("s", &(number + 1).to_string(), &["/src"], &[]);
                world.heartbeat("d", "1", &["/dst"], &[]);
            }
        }
        let mut names = vec![];
        let mut number = 4;
        for _ in 0..3 {
            let one = poll(&mut world, "s", number).expect("an entry");
            assert!(matches!(one.task, TaskSpec::Copy { files: 1, dirs: 0, bytes: 10 }), "{one:?}");
            assert_eq!(poll(&mut world, "s", number), None, "it runs alone");
            names.push(name_of(&world, &one));
            if names.last().unwrap() == "d/b" {
                number += 1;
                restart_worker(&mut world, "s", number);
            } else {
                world.post_result(result(&one, true, all_done(&one, "d")));
            }
        }
        assert_eq!(names, ["d/a", "d/b", "e/c"]);
        assert_eq!(poll(&mut world, "s", number), None, "it is not tried again");
        let end = work_until_end(&mut world, number);
        assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
        assert_eq!((end.files_total, end.files_done, end.files_failed), (3, 2, 1));
        assert_eq!(end.transferred_bytes, 20);
        let error = &end.errors[0];
        assert_eq!((error.path.to_string(), error.operation.as_str()), ("d/b".into(), "copy"));
        assert_eq!(error.worker_id, Some("s".parse().unwrap()));
        assert!(
            error.message.contains("4 times") && error.message.contains("s (4 times)"),
            "{error:?}"
        );
        assert!(world.state.tasks.is_empty());
        assert_eq!(world.blobs.keys().collect::<Vec<_>>(), ["e/1/0"], "only its failure stays");
    }
}

/// A suspended master replies to polls of processes that ended meanwhile, before the heartbeats of
/// their successors arrive.
#[test]
fn a_task_assigned_to_an_already_ended_process_is_not_lost_with_it() {
    let mut world = found(vec![files(&["a", "b"])]);
    for number in 1..=10 {
        let copy = poll(&mut world, "s", number).expect("the batch");
        world.advance(9);
        world.heartbeat("s", &(number + 1).to_string(), &["/src"], &[]);
        assert_eq!(losses(&world, &copy), 0);
    }
    let copy = poll(&mut world, "s", 11).expect("the batch");
    world.advance(10);
    world.heartbeat("s", "12", &["/src"], &[]);
    assert_eq!(losses(&world, &copy), 1);
    let end = work_until_end(&mut world, 12);
    assert_eq!((end.state, end.files_done), (SyncState::Completed, 2));
}

#[test]
fn a_large_file_of_which_a_range_kills_its_agents_fails_by_its_name() {
    let mut world = found(vec![large_with_manifest("deep/name"), copy_item(1, 0)]);
    let mut number = 1;
    // The ranges are of one file, and the batch is innocent: what runs beside the one at fault is handed back.
    for lost in 1..=4 {
        let range = loop {
            let task = poll(&mut world, "s", number).expect("a task");
            match task.task {
                TaskSpec::Range { offset: 0, .. } => break task,
                _ => drop(world.post_result(result(&task, true, all_done(&task, "d")))),
            }
        };
        assert_eq!(losses(&world, &range), lost - 1);
        number += 1;
        restart_worker(&mut world, "s", number);
    }
    let end = work_until_end(&mut world, number);
    assert_eq!((end.state, end.files_done, end.files_failed), (SyncState::Failed, 1, 1));
    assert_eq!(end.errors[0].path.to_string(), "deep/name");
}

#[test]
fn a_walk_that_kills_its_agents_fails() {
    let (mut world, scan) = scanning();
    for number in 2..=5 {
        assert_eq!(losses(&world, &scan), number - 2);
        restart_worker(&mut world, "s", number);
        if number < 5 {
            assert_eq!(poll(&mut world, "s", number).unwrap().task_id, scan.task_id);
        }
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, None));
    assert!(end.errors[0].message.contains("s (4 times)"), "{:?}", end.errors);
}

#[test]
fn events_other_than_a_worker_death_do_not_count() {
    type Taken = fn(&mut World, &Assignment);
    fn silent(world: &mut World, ms: u64) {
        for _ in 0..ms / 5_000 {
            world.advance(5_000);
            world.heartbeat("d", "1", &["/dst"], &[]);
        }
    }
    let ways: [(&str, Taken); 8] = [
        ("handed back", |world, a| {
            let report = TaskReport { returned: true, ..TaskReport::default() };
            world.post_result(result(a, false, report));
        }),
        ("drained, and ended at its time-out", |world, a| {
            let status = WorkerStatus::Draining;
            let beat = heartbeat("s", Some("1"), &["/src"], &[a.assignment_id]);
            world.apply(Event::Heartbeat(WorkerHeartbeat { status, ..beat }));
            let next = format!("after {}", world.caller_count);
            world.heartbeat("s", &next, &["/src"], &[]);
            world.heartbeat("s", "1", &["/src"], &[]);
        }),
        ("the master was started again", |world, a| {
            world.restart();
            world.heartbeat("d", "1", &["/dst"], &[]);
            world.heartbeat("s", "1", &["/src"], &[a.assignment_id]);
            let report = TaskReport { returned: true, ..TaskReport::default() };
            world.post_result(result(a, false, report));
        }),
        ("taken away by an operator", |world, _| {
            let worker = "s".parse().unwrap();
            world.apply(Event::ReassignTasks { id: "demo".parse().unwrap(), worker });
        }),
        ("the worker never had it", |world, _| {
            for _ in 0..8 {
                world.advance(5_000);
                world.heartbeat("s", "1", &["/src"], &[]);
                world.heartbeat("d", "1", &["/dst"], &[]);
            }
        }),
        ("a path that hangs", |world, _| {
            let unavailable_paths = vec![unavailable_path("/src")];
            let beat = heartbeat("s", Some("1"), &["/src"], &[]);
            world.apply(Event::Heartbeat(WorkerHeartbeat { unavailable_paths, ..beat }));
            world.heartbeat("s", "1", &["/src"], &[]);
        }),
        ("stopped for longer than its lease", |world, _| {
            silent(world, 40_000);
            world.heartbeat("s", "1", &["/src"], &[]);
        }),
        ("a second agent under its id", |world, _| {
            let second = format!("second {}", world.caller_count);
            world.heartbeat("s", &second, &["/src"], &[]);
            world.heartbeat("s", "1", &["/src"], &[]);
        }),
    ];
    for (what, take) in ways {
        let mut world = found(vec![files(&["a", "b"])]);
        for round in 0..6 {
            let copy = poll(&mut world, "s", 1)
                .unwrap_or_else(|| panic!("{what}, round {round}: {:?}", world.progress("demo")));
            assert_eq!(losses(&world, &copy), 0, "{what}, round {round}");
            take(&mut world, &copy);
            assert_eq!(losses(&world, &copy), 0, "{what}, round {round}");
        }
        let copy = poll(&mut world, "s", 1).unwrap();
        assert!(matches!(copy.task, TaskSpec::Copy { files: 2, .. }), "{what}");
        world.post_result(result(&copy, true, all_done(&copy, "d")));
        assert_eq!(work_until_end(&mut world, 1).state, SyncState::Completed, "{what}");
    }
}

#[test]
fn a_silent_worker_counts_as_lost_and_others_are_preferred() {
    let mut world = found(vec![files(&["a", "b"])]);
    let copy = poll(&mut world, "s", 1).unwrap();
    world.heartbeat("t", "1", &["/src"], &[]);
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("t", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(losses(&world, &copy), 1);
    restart_worker(&mut world, "s", 2);
    assert_eq!(losses(&world, &copy), 1, "it counts once");
    assert_eq!(poll(&mut world, "s", 2), None, "`t` comes first");
    let again = poll(&mut world, "t", 1).unwrap();
    assert_eq!(again.task_id, copy.task_id);
    world.post_result(result(&again, true, all_done(&again, "d")));
    assert_eq!(work_until_end(&mut world, 2).state, SyncState::Completed);
}

#[test]
fn a_busy_worker_is_reserved_for_an_isolated_task_and_gets_nothing_beside_it() {
    let mut world = found(vec![files(&["x"])]);
    for number in 1..=3 {
        poll(&mut world, "s", number).unwrap();
        restart_worker(&mut world, "s", number + 1);
    }
    // Another sync has work enough, and the worker is never idle by itself.
    world.submit("other", "/src/c", "/dst/d");
    let isolated = poll(&mut world, "s", 4).expect("it is idle");
    assert_eq!(isolated.request_id.as_str(), "demo");
    let report = TaskReport { returned: true, ..TaskReport::default() };
    world.heartbeat("t", "1", &["/src"], &[]);
    let scan = poll(&mut world, "t", 1).expect("others go on");
    world.post_result(result(&isolated, false, report));
    let work = (0..4).map(|_| copy_item(1, 0)).collect();
    assert_eq!(world.post_page(&scan, page(&scan, 0, work, scan_at("m"))), PageAction::Continue);
    assert_eq!(poll(&mut world, "t", 1), None, "it is kept free");
    let beside = poll(&mut world, "s", 4).expect("others work on meanwhile");
    assert_eq!(beside.request_id.as_str(), "other");
    assert_eq!(world.post_page(&scan, page(&scan, 1, vec![], None)), PageAction::Done);
    let alone = poll(&mut world, "t", 1).expect("now it is idle");
    assert_eq!(alone.request_id.as_str(), "demo");
    assert_eq!(poll(&mut world, "t", 1), None, "nothing beside it");
    world.post_result(result(&alone, true, all_done(&alone, "d")));
    let next = poll(&mut world, "t", 1).expect("and then as ever");
    assert_eq!(next.request_id.as_str(), "other");
}

/// A walk holds its worker for as long as what it has found is not copied.
#[test]
fn a_worker_that_does_not_become_idle_is_not_reserved_again_at_once() {
    let mut world = found(vec![files(&["x"])]);
    for number in 1..=3 {
        poll(&mut world, "s", number).unwrap();
        restart_worker(&mut world, "s", number + 1);
    }
    let isolated = poll(&mut world, "s", 4).expect("it is idle");
    world.submit("other", "/src/c", "/dst/d");
    world.heartbeat("t", "1", &["/src"], &[]);
    let scan = poll(&mut world, "t", 1).expect("others go on");
    let report = TaskReport { returned: true, ..TaskReport::default() };
    world.post_result(result(&isolated, false, report));
    let work = (0..4).map(|_| copy_item(1, 0)).collect();
    world.post_page(&scan, page(&scan, 0, work, scan_at("m")));
    world.apply(Event::DrainWorker {
        worker: "s".parse().unwrap(),
        order: Some(Default::default()),
    });
    let minute = |world: &mut World| {
        for _ in 0..12 {
            world.advance(5_000);
            world.heartbeat("t", "1", &["/src"], &[scan.assignment_id]);
            world.heartbeat("d", "1", &["/dst"], &[]);
        }
    };
    for _ in 0..5 {
        assert_eq!(poll(&mut world, "t", 1), None, "it is kept free");
        minute(&mut world);
    }
    minute(&mut world);
    for _ in 0..4 {
        let beside = poll(&mut world, "t", 1).expect("the walk goes on when this is copied");
        assert_eq!(beside.request_id.as_str(), "other");
        world.post_result(result(&beside, true, all_done(&beside, "d")));
    }
    world.post_page(&scan, page(&scan, 1, vec![], None));
    let alone = poll(&mut world, "t", 1).expect("now it is idle");
    assert_eq!(alone.request_id.as_str(), "demo");
}

#[test]
fn a_manifest_that_cannot_be_split_stays_one_task() {
    let mut world = found(vec![files(&["a", "b"])]);
    world.state.settings.max_worker_losses = 1;
    let copy = poll(&mut world, "s", 1).unwrap();
    let key = world.state.tasks[&copy.task_id].manifest_key.clone().unwrap();
    // One entry less than the task has.
    let WorkItem::Copy { manifest, .. } = files(&["a"]) else { panic!() };
    world.blobs.insert(key, manifest.0);
    restart_worker(&mut world, "s", 2);
    let again = poll(&mut world, "s", 2).expect("all of it");
    assert!(matches!(again.task, TaskSpec::Copy { files: 2, .. }));
    restart_worker(&mut world, "s", 3);
    let end = work_until_end(&mut world, 3);
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 2));
}
