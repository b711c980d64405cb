//! Storage paths that lead elsewhere than to what their workers opened.

use super::*;

/// A heartbeat of `worker`, which has the root `id` open at its only storage path; `None`: it is not served.
fn send_heartbeat(world: &mut World, worker: &str, id: Option<&str>, in_hand: &[AssignmentId]) {
    let path = if worker.starts_with('s') { "/src" } else { "/dst" };
    let mut beat = heartbeat(worker, Some("1"), &[path], in_hand);
    match id {
        Some(id) => drop(beat.root_ids.insert(path.to_owned(), id.to_owned())),
        None => beat.unavailable_paths = vec![unavailable_path(path)],
    }
    assert!(matches!(world.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
}

/// A world with workers that reported their roots, and with `batches` of one file each to copy.
fn copying(options: SyncOptions, batches: usize) -> World {
    let mut world = World::new();
    send_heartbeat(&mut world, "s", Some("s1"), &[]);
    send_heartbeat(&mut world, "d", Some("d1"), &[]);
    submit_with(&mut world, "demo", options);
    let scan = poll_kind(&mut world, "s", "scan");
    let work = (0..batches).map(|_| copy_item(1, 0)).collect();
    world.post_page(&scan, page(&scan, 0, work, None));
    world
}

fn default_copying(batches: usize) -> World {
    copying(SyncOptions::default(), batches)
}

/// The error for an unavailable storage path on one side of `worker`.
fn storage_gone(worker: &str, side: &str) -> EntryError {
    EntryError {
        side: Some(if side == "source" { Side::Source } else { Side::Destination }),
        operation: "use storage path".to_owned(),
        errno: None,
        message: format!(
            "cannot use storage path `/{side}`: another file system was mounted over it"
        ),
        worker_id: Some(worker.parse().unwrap()),
        ..error(ErrorClass::StorageGone)
    }
}

/// The ticket of `task` allows worker `d` to act on the root `root` (boot and id) only.
#[track_caller]
fn assert_roots(world: &World, task: &Assignment, root: &str) {
    let (claims, worker) = (claims(world, task), "d".parse().unwrap());
    assert!(claims.allows_root(&worker, root), "{root}");
    let number = root.split_once('#').unwrap().1;
    for other in ["another root", number, &format!("another boot#{number}")] {
        assert!(!claims.allows_root(&worker, other), "{other}");
    }
}

/// A heartbeat of `worker` after its host was rebooted: the root at its storage path has the id `id`.
fn reboot(world: &mut World, worker: &str, path: &str, id: &str) {
    let mut beat = heartbeat(worker, Some("2"), &[path], &[]);
    beat.boot_id = Some("a later boot".to_owned());
    beat.root_ids.insert(path.to_owned(), id.to_owned());
    assert!(matches!(world.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
}

fn post_failure(world: &mut World, task: &Assignment, error: EntryError) {
    let report = TaskReport { failures: vec![error], ..TaskReport::default() };
    world.post_result(result(task, false, report));
}

#[test]
fn a_sync_whose_storage_is_unavailable_pauses_with_the_reason_and_resumes_when_it_is_served() {
    for (worker, side) in [("s", "source"), ("d", "destination")] {
        let mut world = default_copying(2);
        let copy = poll_kind(&mut world, "s", "copy");
        post_failure(&mut world, &copy, storage_gone(worker, side));
        let paused = world.progress("demo");
        assert_eq!((paused.state, paused.files_failed), (SyncState::Paused, 0), "{side}");
        let reason = paused.reason.unwrap();
        for part in [format!("/{side}"), format!("worker {worker}"), "mounted over".to_owned()] {
            assert!(reason.contains(&part), "{part} in {reason}");
        }
        assert_eq!(world.poll("s", "1"), None, "{side}");
        // The reason names it, also after a restart of the master.
        send_heartbeat(&mut world, worker, None, &[]);
        world.restart();
        send_heartbeat(&mut world, "s", (worker != "s").then_some("s1"), &[]);
        send_heartbeat(&mut world, "d", (worker != "d").then_some("d1"), &[]);
        world.advance(60_000);
        assert_eq!(world.progress("demo").state, SyncState::Paused, "{side}");
        assert_eq!(world.poll("s", "1"), None, "{side}");
        send_heartbeat(&mut world, "s", Some("s1"), &[]);
        send_heartbeat(&mut world, "d", Some("d1"), &[]);
        assert_eq!(world.progress("demo").state, SyncState::Progress, "{side}");
        complete_kind(&mut world, "s", "copy");
        complete_kind(&mut world, "s", "copy");
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done), (SyncState::Completed, 2), "{side}: {end:?}");
    }
}

#[test]
fn the_reason_of_a_sync_that_waits_follows_its_cause() {
    let lost = |world: &mut World, reason: &str| {
        let mut beat = heartbeat("d", Some("1"), &["/dst"], &[]);
        beat.unavailable_paths =
            vec![UnavailablePath { reason: reason.to_owned(), ..unavailable_path("/dst") }];
        assert!(matches!(world.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
    };
    let reason = |world: &mut World| {
        let paused = world.progress("demo");
        assert_eq!(paused.state, SyncState::Paused);
        paused.reason.unwrap()
    };
    // First a full file system, then none; or none in two ways, one after the other.
    let full = EntryError {
        errno: Some("ENOSPC".into()),
        message: "no room for `x`".into(),
        ..error(ErrorClass::Transient)
    };
    for first in [full, storage_gone("d", "destination")] {
        let mut world = default_copying(2);
        let copy = poll_kind(&mut world, "s", "copy");
        post_failure(&mut world, &copy, first.clone());
        assert!(reason(&mut world).contains(&first.message));
        for cause in ["it was unmounted", "nothing is found at its path"] {
            lost(&mut world, cause);
            let now = reason(&mut world);
            assert!(now.contains(cause) && now.contains("when it is there again"), "{now}");
            assert!(!now.contains(&first.message), "{now}");
        }
        // An operator's reason stays, until the operator resumes it.
        let id = "demo".parse().unwrap();
        world.apply(Event::PauseSync(id));
        lost(&mut world, "it was unmounted");
        assert!(reason(&mut world).contains("paused by an operator"));
    }
}

#[test]
fn a_heartbeat_before_the_failure_pauses_too_unless_another_worker_serves_the_path() {
    for other in [false, true] {
        let mut world = default_copying(1);
        if other {
            send_heartbeat(&mut world, "d2", Some("d1"), &[]);
        }
        let copy = poll_kind(&mut world, "s", "copy");
        send_heartbeat(&mut world, "d", None, &[]);
        let now = world.progress("demo");
        assert_eq!(now.state == SyncState::Paused, !other, "{now:?}");
        if !other {
            let reason = now.reason.unwrap();
            assert!(reason.contains("storage path /dst of worker d is unavailable"), "{reason}");
        }
        // A later report has no effect and does not end the sync.
        post_failure(&mut world, &copy, storage_gone("d", "destination"));
        send_heartbeat(&mut world, "d", Some("d1"), &[]);
        assert_eq!(world.progress("demo").state, SyncState::Progress);
    }
}

#[test]
fn a_sync_continues_on_another_worker_that_serves_the_lost_path() {
    let mut world = default_copying(1);
    send_heartbeat(&mut world, "d2", Some("d1"), &[]);
    let copy = poll_kind(&mut world, "s", "copy");
    post_failure(&mut world, &copy, storage_gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    send_heartbeat(&mut world, "d", None, &[]);
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.advance(2_000);
    let copy = poll_kind(&mut world, "s", "copy");
    let names: Vec<&str> = copy.destination_workers.iter().map(|m| m.worker_id.as_str()).collect();
    assert_eq!(names, ["d2"]);
}

#[test]
fn a_late_report_of_a_path_that_another_worker_serves_does_not_pause_the_sync() {
    for silent in [false, true] {
        let mut world = default_copying(3);
        send_heartbeat(&mut world, "d2", Some("d1"), &[]);
        let copies: Vec<Assignment> = (0..3).map(|_| poll_kind(&mut world, "s", "copy")).collect();
        let in_hand: Vec<AssignmentId> = copies.iter().map(|a| a.assignment_id).collect();
        if silent {
            for _ in 0..12 {
                world.advance(5_000);
                send_heartbeat(&mut world, "s", Some("s1"), &in_hand);
                send_heartbeat(&mut world, "d2", Some("d1"), &[]);
            }
        } else {
            send_heartbeat(&mut world, "d", None, &[]);
        }
        for copy in &copies {
            post_failure(&mut world, copy, storage_gone("d", "destination"));
            assert_eq!(world.progress("demo").state, SyncState::Progress, "silent: {silent}");
        }
        world.advance(2_000);
        for _ in &copies {
            let copy = poll_kind(&mut world, "s", "copy");
            let to: Vec<&str> =
                copy.destination_workers.iter().map(|m| m.worker_id.as_str()).collect();
            assert_eq!(to, ["d2"]);
            world.post_result(result(&copy, true, all_done(&copy, "d2")));
        }
    }
}

#[test]
fn a_sync_that_waits_for_a_silent_worker_continues_on_another_one() {
    let mut world = default_copying(1);
    send_heartbeat(&mut world, "d2", Some("d1"), &[]);
    let copy = poll_kind(&mut world, "s", "copy");
    post_failure(&mut world, &copy, storage_gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    for _ in 0..12 {
        world.advance(5_000);
        send_heartbeat(&mut world, "s", Some("s1"), &[]);
        send_heartbeat(&mut world, "d2", Some("d1"), &[]);
    }
    assert_eq!(world.progress("demo").state, SyncState::Progress);
}

#[test]
fn a_flush_of_an_unavailable_root_does_not_count_and_is_repeated_when_it_is_back() {
    let mut world = default_copying(1);
    complete_kind(&mut world, "s", "copy");
    let flush = poll_kind(&mut world, "d", "flush");
    assert_roots(&world, &flush, "boot#d1");
    post_failure(&mut world, &flush, storage_gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    send_heartbeat(&mut world, "d", None, &[]);
    // Long after the time-out for an absent writer.
    for _ in 0..40 {
        world.advance(60_000);
        send_heartbeat(&mut world, "s", Some("s1"), &[]);
        send_heartbeat(&mut world, "d", None, &[]);
    }
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Paused);
    assert!(waits.reason.unwrap().contains("worker d"));
    send_heartbeat(&mut world, "d", Some("d1"), &[]);
    complete_kind(&mut world, "d", "flush");
    assert_completed(&mut world, 1, 1);
}

#[test]
fn a_flush_that_waits_for_an_unavailable_path_pauses_the_sync_before_any_attempt() {
    let mut world = default_copying(1);
    complete_kind(&mut world, "s", "copy");
    send_heartbeat(&mut world, "d2", Some("d1"), &[]);
    send_heartbeat(&mut world, "d", None, &[]);
    world.advance(1_000);
    let waits = world.progress("demo");
    // Another worker under the same kernel that has the same root open flushes as well.
    assert_eq!(waits.state, SyncState::Progress, "{waits:?}");
    complete_kind(&mut world, "d2", "flush");
    assert_completed(&mut world, 1, 0);

    let mut world = default_copying(1);
    complete_kind(&mut world, "s", "copy");
    send_heartbeat(&mut world, "d2", Some("another root"), &[]);
    send_heartbeat(&mut world, "d", None, &[]);
    world.advance(1_000);
    assert_eq!(world.poll("d2", "1"), None, "it would flush another root");
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Paused, "{waits:?}");
    assert!(waits.reason.unwrap().contains("storage path /dst of worker d"));
}

/// Writes to a root that was replaced, before or after its flush, are copied again.
#[test]
fn writes_to_a_replaced_root_are_compared_again_and_never_count_as_done() {
    for flushed in [false, true] {
        let mut world = default_copying(1);
        send_heartbeat(&mut world, "d2", Some("e1"), &[]);
        let copy = poll_kind(&mut world, "s", "copy");
        let mut report = all_done(&copy, "d");
        report.writers.push("d2".parse().unwrap());
        world.post_result(result(&copy, true, report));
        if flushed {
            complete_kind(&mut world, "d", "flush");
        }
        send_heartbeat(&mut world, "d", Some("d2"), &[]);
        world.advance(1_000);
        assert_eq!(world.poll("d", "1"), None, "there is nothing of this root to flush");
        complete_kind(&mut world, "d2", "flush");
        world.advance(1_000);
        assert_eq!(world.progress("demo").state, SyncState::Progress, "flushed: {flushed}");
        let scan = poll_kind(&mut world, "s", "scan");
        assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        complete_kind(&mut world, "s", "copy");
        let flush = complete_kind(&mut world, "d", "flush");
        assert_roots(&world, &flush, "boot#d2");
        let end = world.progress("demo");
        assert_eq!((end.state, end.repaired_files), (SyncState::Completed, 1), "{end:?}");
    }
}

#[test]
fn a_destination_that_is_replaced_again_and_again_fails_the_sync_by_name() {
    let mut world = default_copying(1);
    for time in 0..4 {
        complete_kind(&mut world, "s", "copy");
        send_heartbeat(&mut world, "d", Some(&format!("root {time}")), &[]);
        world.advance(1_000);
        if time < 3 {
            let scan = poll_kind(&mut world, "s", "scan");
            world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
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
    complete_kind(&mut world, "s", "copy");
    // A restarted master remembers what was read.
    world.restart();
    send_heartbeat(&mut world, "d", Some("d1"), &[]);
    send_heartbeat(&mut world, "s", Some("s1"), &[]);
    assert_eq!(world.progress("demo").files_done, 1);
    let old = poll_kind(&mut world, "s", "copy");
    let path = "/src";
    let mut other = heartbeat("s", Some("1"), &[path], &[old.assignment_id]);
    other.root_ids.insert(path.to_owned(), "s2".to_owned());
    let Some(Reply::Heartbeat(reply)) = world.apply(Event::Heartbeat(other)) else { panic!() };
    assert_eq!(
        reply.revoked_assignments,
        [old.assignment_id],
        "what reads the root before is taken back at once"
    );
    assert_eq!(world.progress("demo").files_done, 0);
    world.advance(25_000);
    assert_eq!(world.poll("s", "1"), None, "others may still publish what they read before");
    send_heartbeat(&mut world, "d", Some("d1"), &[]);
    world.advance(5_000);
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 0)], None));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_total), (SyncState::Completed, 3), "{end:?}");
    assert!(!world.records.keys().any(|key| key.starts_with("o/")), "it is forgotten");
}

#[test]
fn a_mirror_whose_source_is_replaced_while_it_deletes_deletes_nothing_more() {
    let delete = DeleteOptions { max_percent: 100, ..DeleteOptions::default() };
    let mut world = copying(mirror(delete), 1);
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    let pruned = Some(crate::wire::task::PruneReport { checked: 10, extraneous: 5, bytes: 5 });
    world.post_page(&count, ScanPage { pruned, ..page(&count, 0, vec![], None) });
    complete_kind(&mut world, "d", "flush");
    poll_kind(&mut world, "s", "prune");
    send_heartbeat(&mut world, "s", Some("s2"), &[]);
    world.advance(1_000);
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Failed, "{end:?}");
    assert!(end.reason.unwrap().contains("leads to another directory"));
}

/// As `ctl copy` has it.
#[test]
fn with_no_wait_time_unavailable_storage_fails_the_sync_by_name() {
    let mut world = default_copying(2);
    world.state.settings.no_space_ms = 0;
    let copy = poll_kind(&mut world, "s", "copy");
    post_failure(&mut world, &copy, storage_gone("d", "destination"));
    assert_ne!(world.progress("demo").state, SyncState::Paused);
    send_heartbeat(&mut world, "d", None, &[]);
    world.advance(1_000);
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
    let copy = poll_kind(&mut world, "s", "copy");
    assert_eq!(copy.source_root.as_deref(), Some("boot#s1"));
    assert_roots(&world, &copy, "boot#d1");
    send_heartbeat(&mut world, "d", Some("d2"), &[]);
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    let copy = complete_kind(&mut world, "s", "copy");
    assert_roots(&world, &copy, "boot#d2");
    // The root of before is back: nothing else shows that one of the two files is not there.
    send_heartbeat(&mut world, "d", Some("d1"), &[]);
    world.advance(1_000);
    assert_eq!(
        world.poll("d", "1"),
        None,
        "a flush of one root does not make safe what went to two"
    );
    let scan = poll_kind(&mut world, "s", "scan");
    assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    for _ in 0..2 {
        let copy = complete_kind(&mut world, "s", "copy");
        assert_roots(&world, &copy, "boot#d1");
    }
    let flush = complete_kind(&mut world, "d", "flush");
    assert_roots(&world, &flush, "boot#d1");
    let end = world.progress("demo");
    assert_eq!((end.state, end.repaired_files), (SyncState::Completed, 2), "{end:?}");
}

/// After a reboot another disk may have the number of the root that was written to. Only the heartbeats of the new boot
/// say what is there.
#[test]
fn an_assignment_is_for_the_boot_of_the_last_heartbeat_though_the_sync_used_an_earlier_one() {
    let mut world = default_copying(3);
    complete_kind(&mut world, "s", "copy");
    for (worker, path, id) in [("d", "/dst", "d1"), ("s", "/src", "s1")] {
        reboot(&mut world, worker, path, id);
    }
    let copy = world.poll("s", "2").unwrap();
    assert_eq!(copy.source_root.as_deref(), Some("a later boot#s1"));
    assert_roots(&world, &copy, "a later boot#d1");
    // The path leads elsewhere under this boot: the record of the sync names the earlier one.
    reboot(&mut world, "d", "/dst", "d2");
    let copy = world.poll("s", "2").unwrap();
    assert_roots(&world, &copy, "a later boot#d2");
}

#[test]
fn a_dry_run_looks_at_the_root_of_the_last_heartbeat_only() {
    let options = SyncOptions { dry_run: true, ..SyncOptions::default() };
    let mut world = copying(options, 1);
    let copy = poll_kind(&mut world, "s", "copy");
    assert_roots(&world, &copy, "boot#d1");
}

#[test]
fn a_late_report_of_a_root_of_an_earlier_boot_does_not_pause_the_sync() {
    let mut world = default_copying(1);
    let copy = poll_kind(&mut world, "s", "copy");
    reboot(&mut world, "d", "/dst", "d1");
    post_failure(&mut world, &copy, storage_gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.advance(2_000);
    let copy = poll_kind(&mut world, "s", "copy");
    assert_roots(&world, &copy, "a later boot#d1");
}

#[test]
fn a_late_report_of_a_root_that_another_one_has_replaced_does_not_pause_the_sync() {
    let mut world = default_copying(1);
    let copy = poll_kind(&mut world, "s", "copy");
    send_heartbeat(&mut world, "d", Some("d2"), &[]);
    post_failure(&mut world, &copy, storage_gone("d", "destination"));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.advance(2_000);
    poll_kind(&mut world, "s", "copy");
}

#[test]
fn a_storage_that_is_not_known_is_not_found() {
    let mut world = World::new();
    let reply = world.apply(Event::GetStorage("s-1".parse().unwrap()));
    let Some(Reply::Refused(problem)) = reply else { panic!("{reply:?}") };
    assert_eq!((problem.status, problem.code.as_str()), (404, "storage_not_found"));
    assert!(problem.hint.unwrap().contains("ctl storage list"));
}
