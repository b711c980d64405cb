//! Syncs that are paused, by an operator or by a full destination.

use super::*;

fn pause(world: &mut World) -> Reply {
    world.apply(Event::PauseSync("demo".parse().unwrap())).unwrap()
}

fn resume(world: &mut World) -> Reply {
    world.apply(Event::ResumeSync("demo".parse().unwrap())).unwrap()
}

/// A world with a sync of `files` batches of one file each to copy.
fn copying(files: u64) -> World {
    let (mut world, scan) = scanning();
    let work = (0..files).map(|_| copy_item(1, 0)).collect();
    world.post_page(&scan, page(&scan, 0, work, None));
    world
}

/// Time passes, and both workers are there.
fn advance(world: &mut World, ms: u64) {
    for _ in 0..ms / 5_000 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
}

/// The result of a batch of one file for which there is no space.
fn no_space_result(a: &Assignment, errno: &str) -> TaskResult {
    let failure = EntryError {
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
fn a_paused_sync_assigns_nothing_and_leased_tasks_count() {
    let mut world = copying(2);
    let first = poll_kind(&mut world, "s", "copy");
    assert!(matches!(pause(&mut world), Reply::Progress(p) if p.state == SyncState::Paused));
    assert_eq!(world.poll("s", "1"), None);
    let late = result(&first, true, all_done(&first, "d"));
    assert_eq!(world.post_result(late), Some(ResultOutcome::Applied));
    // Also after a restart of the master.
    world.restart();
    advance(&mut world, 60_000);
    assert_eq!(world.poll("s", "1"), None);
    let paused = world.progress("demo");
    assert_eq!((paused.state, paused.files_done), (SyncState::Paused, 1));
    assert!(paused.reason.unwrap().contains("ctl sync resume"));
    assert!(matches!(resume(&mut world), Reply::Progress(p) if p.state == SyncState::Progress));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    assert_completed(&mut world, 2, 0);
}

#[test]
fn pausing_twice_is_idempotent_and_a_waiting_poll_gets_work_after_the_resume() {
    let mut world = copying(1);
    pause(&mut world);
    let before = world.records.clone();
    pause(&mut world);
    assert_eq!(world.records, before);
    start_poll(&mut world, "s", 1_000);
    resume(&mut world);
    let answers: Vec<&Reply> = world.replies.values().collect();
    assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
}

#[test]
fn a_sync_that_has_ended_cannot_be_paused_and_a_paused_one_can_be_cancelled() {
    let mut world = copying(1);
    pause(&mut world);
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
    for reply in [pause(&mut world), resume(&mut world)] {
        let Reply::Refused(problem) = reply else { panic!("{reply:?}") };
        assert_eq!((problem.status, problem.code.as_str()), (409, "sync_ended"));
    }
    let reply = world.apply(Event::PauseSync("other".parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Refused(p)) if p.status == 404));
}

#[test]
fn a_paused_sync_takes_no_slot_of_others() {
    let mut world = copying(1);
    world.state.settings.max_active_syncs = 1;
    world.submit("other", "/src/c", "/dst/d");
    pause(&mut world);
    let other = world.poll("s", "1").unwrap();
    assert_eq!(other.request_id.as_str(), "other");
}

#[test]
fn a_full_destination_pauses_the_sync_and_free_space_resumes_it() {
    for errno in ["ENOSPC", "EDQUOT"] {
        let mut world = copying(3);
        let first = poll_kind(&mut world, "s", "copy");
        world.post_result(no_space_result(&first, errno));
        let paused = world.progress("demo");
        assert_eq!(paused.state, SyncState::Paused, "{errno}");
        assert!(paused.reason.unwrap().contains("no room for `x`"));
        assert_eq!(world.poll("s", "1"), None);
        // One task at a time probes for space, however long that takes.
        for _ in 0..50 {
            advance(&mut world, 15_000);
            let probe = poll_kind(&mut world, "s", "copy");
            assert_eq!(world.poll("s", "1"), None, "one is enough to see");
            world.post_result(no_space_result(&probe, errno));
        }
        advance(&mut world, 15_000);
        complete_kind(&mut world, "s", "copy");
        assert_eq!(world.progress("demo").state, SyncState::Progress);
        complete_kind(&mut world, "s", "copy");
        advance(&mut world, 5_000);
        complete_kind(&mut world, "s", "copy");
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done), (SyncState::Completed, 3), "{errno}: {end:?}");
    }
}

#[test]
fn a_manual_resume_needs_no_wait_and_a_new_master_probes_at_once() {
    for restart in [false, true] {
        let mut world = copying(1);
        let first = poll_kind(&mut world, "s", "copy");
        world.post_result(no_space_result(&first, "ENOSPC"));
        match restart {
            true => {
                world.restart();
                assert_eq!(world.progress("demo").state, SyncState::Paused);
                advance(&mut world, 5_000);
            }
            false => {
                resume(&mut world);
                advance(&mut world, 5_000);
            }
        }
        complete_kind(&mut world, "s", "copy");
        assert_eq!(world.progress("demo").files_done, 1);
    }
}

#[test]
fn a_destination_that_stays_full_fails_the_sync_and_every_entry_is_counted() {
    let mut world = copying(4);
    world.state.settings.no_space_ms = 600_000;
    for _ in 0..2 {
        let task = poll_kind(&mut world, "s", "copy");
        world.post_result(no_space_result(&task, "ENOSPC"));
        advance(&mut world, 15_000);
    }
    // A task is leased while the time runs out.
    let held = poll_kind(&mut world, "s", "copy");
    for _ in 0..125 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[held.assignment_id]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.progress("demo").files_failed, 3);
    world.post_result(no_space_result(&held, "ENOSPC"));
    for _ in 0..20 {
        if world.progress("demo").state.is_final() {
            break;
        }
        advance(&mut world, 60_000);
        if let Some(task) = world.poll("s", "1") {
            world.post_result(no_space_result(&task, "ENOSPC"));
        }
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_total, end.files_failed), (SyncState::Failed, 4, 4));
    assert!(end.errors[0].message.contains("waited 10 minutes"), "{:?}", end.errors);
}

#[test]
fn with_no_wait_time_a_full_destination_is_an_ordinary_failure() {
    let mut world = copying(1);
    world.state.settings.no_space_ms = 0;
    for _ in 0..6 {
        let task = poll_kind(&mut world, "s", "copy");
        world.post_result(no_space_result(&task, "ENOSPC"));
        assert_ne!(world.progress("demo").state, SyncState::Paused);
        advance(&mut world, 30_000);
    }
    assert_eq!(world.progress("demo").files_failed, 1);
}

/// The consequence of each errno at the destination: the sync pauses, the entry is retried on the
/// only worker, or it fails at once.
#[test]
fn each_errno_pauses_is_retried_or_fails() {
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
        let task = poll_kind(&mut world, "s", "copy");
        let mut result = no_space_result(&task, errno);
        for failure in &mut result.report.as_mut().unwrap().failures {
            failure.class = class;
        }
        world.post_result(result);
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
fn failed_probes_do_not_extend_the_wait_time() {
    let mut world = copying(1);
    world.state.settings.no_space_ms = 600_000;
    let first = poll_kind(&mut world, "s", "copy");
    world.post_result(no_space_result(&first, "ENOSPC"));
    let (mut waited, mut probes) = (0, 0);
    while world.progress("demo").state == SyncState::Paused {
        assert!(waited <= 615_000, "after {probes} probes");
        advance(&mut world, 15_000);
        waited += 15_000;
        if let Some(probe) = world.poll("s", "1") {
            probes += 1;
            world.post_result(no_space_result(&probe, "ENOSPC"));
        }
    }
    assert!(waited > 600_000 && probes > 10, "{waited} ms, {probes} probes");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 1));
    assert!(end.errors[0].message.contains("waited 10 minutes"), "{:?}", end.errors);
}

#[test]
fn no_more_syncs_wait_than_the_setting_allows() {
    let mut world = World::new();
    world.state.settings.max_queued_syncs = 2;
    let submit = |world: &mut World, id: &str| {
        let request = request(Some(id), "/src/a", &format!("/dst/{id}"));
        match world.apply(Event::Submit { request, list: None, idempotency: None }) {
            Some(Reply::Submitted(_)) => Ok(()),
            Some(Reply::Refused(problem)) => Err(problem),
            other => panic!("{other:?}"),
        }
    };
    submit(&mut world, "one").unwrap();
    submit(&mut world, "two").unwrap();
    let refused = submit(&mut world, "three").unwrap_err();
    assert_eq!((refused.status, refused.code.as_str()), (507, "queue_full"));
    assert!(refused.detail.contains("limits.max_queued_syncs"), "{}", refused.detail);
    // What exists is named as such, and a sync that ends or begins makes room.
    assert_eq!(submit(&mut world, "one").unwrap_err().status, 409);
    world.apply(Event::CancelSync("one".parse().unwrap()));
    submit(&mut world, "three").unwrap();
    assert_eq!(submit(&mut world, "four").unwrap_err().status, 507);
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert!(world.poll("s", "1").is_some());
    submit(&mut world, "four").unwrap();
}
