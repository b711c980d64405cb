//! Syncs that are paused, by an operator or by a full destination.

use super::*;

fn pause(world: &mut World) -> Reply {
    world.play(Event::Pause("demo".parse().unwrap())).unwrap()
}

fn resume(world: &mut World) -> Reply {
    world.play(Event::Resume("demo".parse().unwrap())).unwrap()
}

/// A world whose sync has `files` batches of one file each to copy.
fn copying(files: u64) -> World {
    let (mut world, scan) = scanning();
    let work = (0..files).map(|_| batch(1, 0)).collect();
    world.post(&scan, page(&scan, 0, work, None));
    world
}

/// Time passes, and both workers are there.
fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms / 5_000 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
}

/// What a worker says of a batch of one file for which there is no room.
fn full(a: &Assignment, errno: &str) -> TaskResult {
    let failure = FileError {
        errno: Some(errno.to_owned()),
        message: "no room for `x`".to_owned(),
        ..error(ErrorClass::Transient)
    };
    let retry = WorkItem::Copy { manifest: Base64Bytes(vec![1; 10]), files: 1, dirs: 0, bytes: 10 };
    let report =
        TaskReport { failures: vec![failure], retry: Some(retry), ..TaskReport::default() };
    result(a, true, report)
}

#[test]
fn a_paused_sync_hands_out_nothing_and_what_is_in_hand_counts() {
    let mut world = copying(2);
    let first = next(&mut world, "s", "copy");
    assert!(matches!(pause(&mut world), Reply::Progress(p) if p.state == SyncState::Paused));
    assert_eq!(world.poll("s", "1"), None);
    let late = result(&first, true, all_done(&first, "d"));
    assert_eq!(world.finish(late), Some(ResultOutcome::Applied));
    // Also for a master that starts anew.
    world.restart();
    pass(&mut world, 60_000);
    assert_eq!(world.poll("s", "1"), None);
    let paused = world.progress("demo");
    assert_eq!((paused.state, paused.files_done), (SyncState::Paused, 1));
    assert!(paused.reason.unwrap().contains("ctl sync resume"));
    assert!(matches!(resume(&mut world), Reply::Progress(p) if p.state == SyncState::Progress));
    done(&mut world, "s", "copy");
    done(&mut world, "d", "flush");
    assert_completed(&mut world, 2, 0);
}

#[test]
fn pausing_twice_is_once_and_a_poll_that_waits_gets_work_when_it_is_resumed() {
    let mut world = copying(1);
    pause(&mut world);
    let before = world.records.clone();
    pause(&mut world);
    assert_eq!(world.records, before);
    wait(&mut world, "s", 1_000);
    resume(&mut world);
    let answers: Vec<&Reply> = world.answers.values().collect();
    assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
}

#[test]
fn a_sync_that_has_ended_cannot_be_paused_and_a_paused_one_can_be_cancelled() {
    let mut world = copying(1);
    pause(&mut world);
    world.play(Event::Cancel("demo".parse().unwrap()));
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
    for reply in [pause(&mut world), resume(&mut world)] {
        let Reply::Refused(problem) = reply else { panic!("{reply:?}") };
        assert_eq!((problem.status, problem.code.as_str()), (409, "sync_ended"));
    }
    let reply = world.play(Event::Pause("other".parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Refused(p)) if p.status == 404));
}

#[test]
fn a_paused_sync_takes_no_turn_of_others() {
    let mut world = copying(1);
    world.state.settings.max_active_syncs = 1;
    world.submit("other", "/src/c", "/dst/d");
    pause(&mut world);
    let other = world.poll("s", "1").unwrap();
    assert_eq!(other.request_id.as_str(), "other");
}

#[test]
fn a_full_destination_pauses_the_sync_and_room_lets_it_go_on() {
    for errno in ["ENOSPC", "EDQUOT"] {
        let mut world = copying(3);
        let first = next(&mut world, "s", "copy");
        world.finish(full(&first, errno));
        let paused = world.progress("demo");
        assert_eq!(paused.state, SyncState::Paused, "{errno}");
        assert!(paused.reason.unwrap().contains("no room for `x`"));
        assert_eq!(world.poll("s", "1"), None);
        // One task at a time finds out whether there is room, however long that takes.
        for _ in 0..50 {
            pass(&mut world, 15_000);
            let probe = next(&mut world, "s", "copy");
            assert_eq!(world.poll("s", "1"), None, "one is enough to see");
            world.finish(full(&probe, errno));
        }
        pass(&mut world, 15_000);
        done(&mut world, "s", "copy");
        assert_eq!(world.progress("demo").state, SyncState::Progress);
        done(&mut world, "s", "copy");
        pass(&mut world, 5_000);
        done(&mut world, "s", "copy");
        done(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done), (SyncState::Completed, 3), "{errno}: {end:?}");
    }
}

#[test]
fn an_operator_who_made_room_need_not_wait_and_a_new_master_tries_at_once() {
    for restart in [false, true] {
        let mut world = copying(1);
        let first = next(&mut world, "s", "copy");
        world.finish(full(&first, "ENOSPC"));
        match restart {
            true => {
                world.restart();
                assert_eq!(world.progress("demo").state, SyncState::Paused);
                pass(&mut world, 5_000);
            }
            false => {
                resume(&mut world);
                pass(&mut world, 5_000);
            }
        }
        done(&mut world, "s", "copy");
        assert_eq!(world.progress("demo").files_done, 1);
    }
}

#[test]
fn a_destination_that_stays_full_fails_the_sync_in_the_end_and_all_is_counted() {
    let mut world = copying(4);
    world.state.settings.no_space_ms = 600_000;
    for _ in 0..2 {
        let task = next(&mut world, "s", "copy");
        world.finish(full(&task, "ENOSPC"));
        pass(&mut world, 15_000);
    }
    // Somebody has one in hand while the time runs out.
    let held = next(&mut world, "s", "copy");
    for _ in 0..125 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], &[held.assignment_id]);
        world.beat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.progress("demo").files_failed, 3);
    world.finish(full(&held, "ENOSPC"));
    for _ in 0..20 {
        if world.progress("demo").state.is_final() {
            break;
        }
        pass(&mut world, 60_000);
        if let Some(task) = world.poll("s", "1") {
            world.finish(full(&task, "ENOSPC"));
        }
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_total, end.files_failed), (SyncState::Failed, 4, 4));
    assert!(end.errors[0].message.contains("waited 10 minutes"), "{:?}", end.errors);
}

#[test]
fn without_patience_a_full_destination_is_a_failure_like_others() {
    let mut world = copying(1);
    world.state.settings.no_space_ms = 0;
    for _ in 0..6 {
        let task = next(&mut world, "s", "copy");
        world.finish(full(&task, "ENOSPC"));
        assert_ne!(world.progress("demo").state, SyncState::Paused);
        pass(&mut world, 30_000);
    }
    assert_eq!(world.progress("demo").files_failed, 1);
}

/// What an entry that fails with each errno at the destination leads to: the sync waits for room, the entry is tried
/// again on the only worker that there is, or it is given up at once.
#[test]
fn each_errno_pauses_is_tried_again_or_is_given_up() {
    #[derive(Debug, PartialEq)]
    enum Then {
        Waits,
        Again,
        GivenUp,
    }
    let no_room = ["ENOSPC", "EDQUOT"];
    let permanent = ["EACCES", "EPERM", "EROFS", "EFBIG", "EISDIR", "ENAMETOOLONG", "EOPNOTSUPP"];
    let transient = ["EIO", "ENOENT", "ESTALE", "EBUSY", "ETIMEDOUT", "EMFILE", "ENOMEM"];
    let cases = no_room.map(|errno| (errno, ErrorClass::Transient, Then::Waits)).into_iter();
    let cases = cases.chain(permanent.map(|errno| (errno, ErrorClass::Permanent, Then::GivenUp)));
    let cases = cases.chain(transient.map(|errno| (errno, ErrorClass::Transient, Then::Again)));
    for (errno, class, expected) in cases {
        let mut world = copying(1);
        let task = next(&mut world, "s", "copy");
        let mut result = full(&task, errno);
        for failure in &mut result.report.as_mut().unwrap().failures {
            failure.class = class;
        }
        world.finish(result);
        let now = world.progress("demo");
        let then = match (now.state, now.files_failed) {
            (SyncState::Paused, 0) => Then::Waits,
            (_, 0) => Then::Again,
            _ => Then::GivenUp,
        };
        assert_eq!(then, expected, "{errno}");
    }
}

#[test]
fn probes_that_fail_do_not_prolong_the_patience() {
    let mut world = copying(1);
    world.state.settings.no_space_ms = 600_000;
    let first = next(&mut world, "s", "copy");
    world.finish(full(&first, "ENOSPC"));
    let (mut waited, mut probes) = (0, 0);
    while world.progress("demo").state == SyncState::Paused {
        assert!(waited <= 615_000, "after {probes} probes");
        pass(&mut world, 15_000);
        waited += 15_000;
        if let Some(probe) = world.poll("s", "1") {
            probes += 1;
            world.finish(full(&probe, "ENOSPC"));
        }
    }
    assert!(waited > 600_000 && probes > 10, "{waited} ms, {probes} probes");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 1));
    assert!(end.errors[0].message.contains("waited 10 minutes"), "{:?}", end.errors);
}
