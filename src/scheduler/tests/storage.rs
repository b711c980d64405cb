//! Storage paths that lead elsewhere than to what their workers opened.

use super::*;

/// A heartbeat of `worker`, which has the root `id` open at its only storage path; `None`: it is not served.
fn beat(world: &mut World, worker: &str, id: Option<&str>, in_hand: &[AssignmentId]) {
    let path = if worker.starts_with('s') { "/src" } else { "/dst" };
    let mut beat = heartbeat(worker, Some("1"), &[path], in_hand);
    match id {
        Some(id) => drop(beat.root_ids.insert(path.to_owned(), id.to_owned())),
        None => beat.unavailable_paths = vec![unavailable(path)],
    }
    assert!(matches!(world.play(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
}

/// A world whose workers named their roots, with `batches` of one file each to copy.
fn copying(options: SyncOptions, batches: usize) -> World {
    let mut world = World::new();
    beat(&mut world, "s", Some("s1"), &[]);
    beat(&mut world, "d", Some("d1"), &[]);
    submit_with(&mut world, "demo", options);
    let scan = next(&mut world, "s", "scan");
    let work = (0..batches).map(|_| batch(1, 0)).collect();
    world.post(&scan, page(&scan, 0, work, None));
    world
}

fn default_copying(batches: usize) -> World {
    copying(SyncOptions::default(), batches)
}

/// What says that the storage path of the one side of `worker` is gone.
fn gone(worker: &str, side: &str) -> FileError {
    FileError {
        operation: format!("use storage path {side}"),
        errno: None,
        message: format!(
            "cannot use storage path `/{side}`: another file system was mounted over it"
        ),
        worker_id: Some(worker.parse().unwrap()),
        ..error(ErrorClass::StorageGone)
    }
}

/// The ticket of `task` lets worker `d` act on the root `root` and on no other one.
#[track_caller]
fn assert_roots(world: &World, task: &Assignment, root: &str) {
    let (claims, worker) = (claims(world, task), "d".parse().unwrap());
    assert!(claims.allows_root(&worker, root), "{root}");
    assert!(!claims.allows_root(&worker, "another root"));
}

fn failed(world: &mut World, task: &Assignment, error: FileError) {
    let report = TaskReport { failures: vec![error], ..TaskReport::default() };
    world.finish(result(task, false, report));
}

#[test]
fn a_sync_whose_storage_is_gone_waits_with_the_reason_and_goes_on_when_it_is_served_again() {
    for (worker, side) in [("s", "source"), ("d", "destination")] {
        let mut world = default_copying(2);
        let copy = next(&mut world, "s", "copy");
        failed(&mut world, &copy, gone(worker, side));
        let paused = world.progress("demo");
        assert_eq!((paused.state, paused.files_failed), (SyncState::Paused, 0), "{side}");
        let reason = paused.reason.unwrap();
        for part in [format!("/{side}"), format!("worker {worker}"), "mounted over".to_owned()] {
            assert!(reason.contains(&part), "{part} in {reason}");
        }
        assert_eq!(world.poll("s", "1"), None, "{side}");
        // It says so itself, and a master that starts anew has it in its store.
        beat(&mut world, worker, None, &[]);
        world.restart();
        beat(&mut world, "s", (worker != "s").then_some("s1"), &[]);
        beat(&mut world, "d", (worker != "d").then_some("d1"), &[]);
        world.pass(60_000);
        assert_eq!(world.progress("demo").state, SyncState::Paused, "{side}");
        assert_eq!(world.poll("s", "1"), None, "{side}");
        beat(&mut world, "s", Some("s1"), &[]);
        beat(&mut world, "d", Some("d1"), &[]);
        assert_eq!(world.progress("demo").state, SyncState::Progress, "{side}");
        done(&mut world, "s", "copy");
        done(&mut world, "s", "copy");
        done(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done), (SyncState::Completed, 2), "{side}: {end:?}");
    }
}

#[test]
fn the_reason_of_a_sync_that_waits_follows_its_cause() {
    let lost = |world: &mut World, reason: &str| {
        let mut beat = heartbeat("d", Some("1"), &["/dst"], &[]);
        beat.unavailable_paths =
            vec![UnavailablePath { reason: reason.to_owned(), ..unavailable("/dst") }];
        assert!(matches!(world.play(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
    };
    let reason = |world: &mut World| {
        let paused = world.progress("demo");
        assert_eq!(paused.state, SyncState::Paused);
        paused.reason.unwrap()
    };
    // First a full file system, then none; or none in two ways, one after the other.
    let full = FileError {
        errno: Some("ENOSPC".into()),
        message: "no room for `x`".into(),
        ..error(ErrorClass::Transient)
    };
    for first in [full, gone("d", "destination")] {
        let mut world = default_copying(2);
        let copy = next(&mut world, "s", "copy");
        failed(&mut world, &copy, first.clone());
        assert!(reason(&mut world).contains(&first.message));
        for cause in ["it was unmounted", "nothing is found at its path"] {
            lost(&mut world, cause);
            let now = reason(&mut world);
            assert!(now.contains(cause) && now.contains("when it is there again"), "{now}");
            assert!(!now.contains(&first.message), "{now}");
        }
        // An operator's reason stays, until the operator resumes it.
        let id = "demo".parse().unwrap();
        world.play(Event::Pause(id));
        lost(&mut world, "it was unmounted");
        assert!(reason(&mut world).contains("paused by an operator"));
    }
}

#[test]
fn a_heartbeat_that_comes_before_the_failure_pauses_as_well_unless_another_worker_has_the_path() {
    for other in [false, true] {
        let mut world = default_copying(1);
        if other {
            beat(&mut world, "d2", Some("d1"), &[]);
        }
        let copy = next(&mut world, "s", "copy");
        beat(&mut world, "d", None, &[]);
        let now = world.progress("demo");
        assert_eq!(now.state == SyncState::Paused, !other, "{now:?}");
        if !other {
            let reason = now.reason.unwrap();
            assert!(reason.contains("storage path /dst of worker d is unavailable"), "{reason}");
        }
        // What is told afterwards is of no use, and does not end the sync.
        failed(&mut world, &copy, gone("d", "destination"));
        beat(&mut world, "d", Some("d1"), &[]);
        assert_eq!(world.progress("demo").state, SyncState::Progress);
    }
}

#[test]
fn with_a_worker_that_has_the_path_the_sync_goes_on_without_the_one_that_lost_it() {
    let mut world = default_copying(1);
    beat(&mut world, "d2", Some("d1"), &[]);
    let copy = next(&mut world, "s", "copy");
    failed(&mut world, &copy, gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    beat(&mut world, "d", None, &[]);
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.pass(2_000);
    let copy = next(&mut world, "s", "copy");
    let names: Vec<&str> = copy.destination_workers.iter().map(|m| m.worker_id.as_str()).collect();
    assert_eq!(names, ["d2"]);
}

#[test]
fn a_late_report_of_a_path_that_another_worker_serves_does_not_pause_the_sync() {
    for silent in [false, true] {
        let mut world = default_copying(3);
        beat(&mut world, "d2", Some("d1"), &[]);
        let copies: Vec<Assignment> = (0..3).map(|_| next(&mut world, "s", "copy")).collect();
        let in_hand: Vec<AssignmentId> = copies.iter().map(|a| a.assignment_id).collect();
        if silent {
            for _ in 0..12 {
                world.pass(5_000);
                beat(&mut world, "s", Some("s1"), &in_hand);
                beat(&mut world, "d2", Some("d1"), &[]);
            }
        } else {
            beat(&mut world, "d", None, &[]);
        }
        for copy in &copies {
            failed(&mut world, copy, gone("d", "destination"));
            assert_eq!(world.progress("demo").state, SyncState::Progress, "silent: {silent}");
        }
        world.pass(2_000);
        for _ in &copies {
            let copy = next(&mut world, "s", "copy");
            let to: Vec<&str> =
                copy.destination_workers.iter().map(|m| m.worker_id.as_str()).collect();
            assert_eq!(to, ["d2"]);
            world.finish(result(&copy, true, all_done(&copy, "d2")));
        }
    }
}

#[test]
fn a_sync_that_waits_for_a_worker_that_falls_silent_goes_on_through_another_one() {
    let mut world = default_copying(1);
    beat(&mut world, "d2", Some("d1"), &[]);
    let copy = next(&mut world, "s", "copy");
    failed(&mut world, &copy, gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    for _ in 0..12 {
        world.pass(5_000);
        beat(&mut world, "s", Some("s1"), &[]);
        beat(&mut world, "d2", Some("d1"), &[]);
    }
    assert_eq!(world.progress("demo").state, SyncState::Progress);
}

#[test]
fn a_flush_of_a_root_that_is_gone_is_no_flush_and_is_asked_for_again_when_it_is_back() {
    let mut world = default_copying(1);
    done(&mut world, "s", "copy");
    let flush = next(&mut world, "d", "flush");
    assert_roots(&world, &flush, "d1");
    failed(&mut world, &flush, gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    beat(&mut world, "d", None, &[]);
    // Long after anybody would have given up a writer that is away.
    for _ in 0..40 {
        world.pass(60_000);
        beat(&mut world, "s", Some("s1"), &[]);
        beat(&mut world, "d", None, &[]);
    }
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Paused);
    assert!(waits.reason.unwrap().contains("worker d"));
    beat(&mut world, "d", Some("d1"), &[]);
    done(&mut world, "d", "flush");
    assert_completed(&mut world, 1, 1);
}

#[test]
fn a_flush_that_waits_for_a_path_that_is_gone_pauses_the_sync_though_nobody_tried_it() {
    let mut world = default_copying(1);
    done(&mut world, "s", "copy");
    beat(&mut world, "d2", Some("d1"), &[]);
    beat(&mut world, "d", None, &[]);
    world.pass(1_000);
    let waits = world.progress("demo");
    // Another worker under the same kernel that has the same root open flushes as well.
    assert_eq!(waits.state, SyncState::Progress, "{waits:?}");
    done(&mut world, "d2", "flush");
    assert_completed(&mut world, 1, 0);

    let mut world = default_copying(1);
    done(&mut world, "s", "copy");
    beat(&mut world, "d2", Some("another root"), &[]);
    beat(&mut world, "d", None, &[]);
    world.pass(1_000);
    assert_eq!(world.poll("d2", "1"), None, "it would flush another root");
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Paused, "{waits:?}");
    assert!(waits.reason.unwrap().contains("storage path /dst of worker d"));
}

/// What was written to a root that another one replaced, before or after it was flushed, is brought again.
#[test]
fn what_went_to_a_root_that_was_replaced_is_compared_again_and_never_counts_as_done() {
    for flushed in [false, true] {
        let mut world = default_copying(1);
        beat(&mut world, "d2", Some("e1"), &[]);
        let copy = next(&mut world, "s", "copy");
        let mut report = all_done(&copy, "d");
        report.writers.push("d2".parse().unwrap());
        world.finish(result(&copy, true, report));
        if flushed {
            done(&mut world, "d", "flush");
        }
        beat(&mut world, "d", Some("d2"), &[]);
        world.pass(1_000);
        assert_eq!(world.poll("d", "1"), None, "there is nothing of this root to flush");
        done(&mut world, "d2", "flush");
        world.pass(1_000);
        assert_eq!(world.progress("demo").state, SyncState::Progress, "flushed: {flushed}");
        let scan = next(&mut world, "s", "scan");
        assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
        world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
        done(&mut world, "s", "copy");
        let flush = done(&mut world, "d", "flush");
        assert_roots(&world, &flush, "d2");
        let end = world.progress("demo");
        assert_eq!((end.state, end.repaired_files), (SyncState::Completed, 1), "{end:?}");
    }
}

#[test]
fn a_destination_that_is_replaced_again_and_again_fails_the_sync_by_name() {
    let mut world = default_copying(1);
    for time in 0..4 {
        done(&mut world, "s", "copy");
        beat(&mut world, "d", Some(&format!("root {time}")), &[]);
        world.pass(1_000);
        if time < 3 {
            let scan = next(&mut world, "s", "scan");
            world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
        }
    }
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Failed, "{end:?}");
    let error = &end.errors[0].message;
    assert!(error.contains("worker d") && error.contains("leads to another directory"), "{error}");
}

#[test]
fn a_source_that_is_replaced_while_it_is_read_is_read_again_from_the_start() {
    let mut world = default_copying(2);
    done(&mut world, "s", "copy");
    // A restarted master remembers what was read.
    world.restart();
    beat(&mut world, "d", Some("d1"), &[]);
    beat(&mut world, "s", Some("s1"), &[]);
    assert_eq!(world.progress("demo").files_done, 1);
    let old = next(&mut world, "s", "copy");
    let path = "/src";
    let mut other = heartbeat("s", Some("1"), &[path], &[old.assignment_id]);
    other.root_ids.insert(path.to_owned(), "s2".to_owned());
    let Some(Reply::Heartbeat(reply)) = world.play(Event::Heartbeat(other)) else { panic!() };
    assert_eq!(
        reply.revoked_assignments,
        [old.assignment_id],
        "what reads the root before is taken back at once"
    );
    assert_eq!(world.progress("demo").files_done, 0);
    world.pass(25_000);
    assert_eq!(world.poll("s", "1"), None, "others may still publish what they read before");
    beat(&mut world, "d", Some("d1"), &[]);
    world.pass(5_000);
    let scan = next(&mut world, "s", "scan");
    world.post(&scan, page(&scan, 0, vec![batch(3, 0)], None));
    done(&mut world, "s", "copy");
    done(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_total), (SyncState::Completed, 3), "{end:?}");
    assert!(!world.records.keys().any(|key| key.starts_with("o/")), "it is forgotten");
}

#[test]
fn a_mirror_whose_source_is_replaced_while_it_deletes_deletes_nothing_more() {
    let delete = DeleteOptions { max_percent: 100, ..DeleteOptions::default() };
    let mut world = copying(mirror(delete), 1);
    done(&mut world, "s", "copy");
    let count = next(&mut world, "s", "prune");
    let pruned = Some(crate::wire::task::PruneReport { checked: 10, extraneous: 5, bytes: 5 });
    world.post(&count, ScanPage { pruned, ..page(&count, 0, vec![], None) });
    done(&mut world, "d", "flush");
    next(&mut world, "s", "prune");
    beat(&mut world, "s", Some("s2"), &[]);
    world.pass(1_000);
    done(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Failed, "{end:?}");
    assert!(end.reason.unwrap().contains("leads to another directory"));
}

/// As `ctl copy` has it.
#[test]
fn without_patience_storage_that_is_gone_fails_the_sync_by_name() {
    let mut world = default_copying(2);
    world.state.settings.no_space_ms = 0;
    let copy = next(&mut world, "s", "copy");
    failed(&mut world, &copy, gone("d", "destination"));
    assert_ne!(world.progress("demo").state, SyncState::Paused);
    beat(&mut world, "d", None, &[]);
    world.pass(1_000);
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 2), "{end:?}");
    let error = &end.errors[0].message;
    assert!(error.contains("storage path /dst of worker d is unavailable"), "{error}");
}

/// A worker may open another root, and the root of before again, between two of its heartbeats: what it does is done
/// for the root that it is counted for, or not at all.
#[test]
fn an_assignment_is_for_the_roots_that_its_work_is_counted_for() {
    let mut world = default_copying(2);
    let copy = next(&mut world, "s", "copy");
    assert_eq!(copy.source_root.as_deref(), Some("s1"));
    assert_roots(&world, &copy, "d1");
    beat(&mut world, "d", Some("d2"), &[]);
    world.finish(result(&copy, true, all_done(&copy, "d")));
    done(&mut world, "s", "copy");
    // The root of before is back: nothing else shows that one of the two files is not there.
    beat(&mut world, "d", Some("d1"), &[]);
    world.pass(1_000);
    assert_eq!(
        world.poll("d", "1"),
        None,
        "a flush of one root does not make safe what went to two"
    );
    let scan = next(&mut world, "s", "scan");
    assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
    world.post(&scan, page(&scan, 0, vec![batch(1, 0), batch(1, 0)], None));
    for _ in 0..2 {
        let copy = done(&mut world, "s", "copy");
        assert_roots(&world, &copy, "d1");
    }
    let flush = done(&mut world, "d", "flush");
    assert_roots(&world, &flush, "d1");
    let end = world.progress("demo");
    assert_eq!((end.state, end.repaired_files), (SyncState::Completed, 2), "{end:?}");
}

#[test]
fn a_late_report_of_a_root_that_another_one_has_replaced_does_not_pause_the_sync() {
    let mut world = default_copying(1);
    let copy = next(&mut world, "s", "copy");
    beat(&mut world, "d", Some("d2"), &[]);
    failed(&mut world, &copy, gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.pass(2_000);
    next(&mut world, "s", "copy");
}
