//! Histories written down: each test is one promise.

use super::*;

#[test]
fn a_sync_goes_from_queued_to_completed() {
    let (mut world, scan) = scanning();
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    let work = vec![copy_item(3, 1), large_item(2)];
    assert_eq!(world.post_page(&scan, page(&scan, 0, work, None)), PageAction::Done);
    for kind in ["copy", "range", "range"] {
        let task = world.poll("s", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        assert_eq!(task.destination_workers.len(), 1);
        world.post_result(result(&task, true, all_done(&task, "d")));
    }
    assert_eq!(world.poll("s", "1"), None, "the rest is for the destination");
    for kind in ["commit", "flush"] {
        let task = world.poll("d", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        if let TaskSpec::Commit { chain, .. } = &task.task {
            assert_eq!(chain.0, [7; 64]);
        }
        world.post_result(result(&task, true, all_done(&task, "d")));
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!((end.files_total, end.files_done, end.dirs_done), (4, 4, 1));
    assert_eq!(end.transferred_bytes, end.total_bytes);
    assert!(end.scan_done && world.blobs.is_empty() && world.state.tasks.is_empty());
}

#[test]
fn a_sync_without_a_worker_waits_and_reports_the_nearest_path() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("t", "1", &["/dst-old", "/database"], &[]);
    world.submit("demo", "/src/a", "/data/b");
    assert_eq!(world.poll("s", "1"), None);
    let progress = world.progress("demo");
    assert_eq!(progress.state, SyncState::Queued);
    let reason = progress.reason.unwrap();
    assert!(
        reason.contains("destination path /data/b") && reason.contains("/database (t)"),
        "{reason}"
    );
    world.heartbeat("d", "1", &["/data"], &[]);
    assert!(world.poll("s", "1").is_some(), "it starts when a worker turns up");
}

#[test]
fn a_waiting_poll_is_answered_when_work_arrives_or_at_its_deadline() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let poll = |wait_ms| Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: None,
        wait_ms,
    };
    assert_eq!(world.apply(poll(7_000)), None);
    let first = Caller(world.caller_count);
    world.advance(7_000);
    assert_eq!(world.replies.remove(&first), Some(Reply::Assignment(None)));
    assert_eq!(world.apply(poll(7_000)), None);
    let second = Caller(world.caller_count);
    world.submit("demo", "/src", "/dst");
    assert!(matches!(world.replies.remove(&second), Some(Reply::Assignment(Some(_)))));
}

#[test]
fn a_repeated_poll_gets_the_same_lease_also_from_a_restarted_master() {
    let (mut world, _) = scanning();
    world.submit("other", "/src/x", "/dst/y");
    let poll = |id: &str| Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: Some(id.into()),
        wait_ms: 0,
    };
    let first = world.apply(poll("p"));
    assert!(matches!(&first, Some(Reply::Assignment(Some(_)))));
    let ids = |reply: Option<Reply>| match reply {
        Some(Reply::Assignment(Some(a))) => (a.assignment_id, a.task_id),
        other => panic!("{other:?}"),
    };
    let first = ids(first);
    assert_eq!(ids(world.apply(poll("p"))), first);
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[]);
    assert_eq!(ids(world.apply(poll("p"))), first);
}

#[test]
fn a_result_that_does_not_match_exactly_changes_nothing() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    let good = result(&copy, true, all_done(&copy, "d"));
    let mut wrong = vec![good.clone(), good.clone(), good.clone(), good.clone(), good.clone()];
    wrong[0].assignment_id = Some(AssignmentId([3; 16]));
    wrong[1].attempt = Some(2);
    wrong[2].task_digest = Some(Digest([3; 32]));
    wrong[3].worker_id = "d".parse().unwrap();
    wrong[4].request_id = "other".parse().unwrap();
    let before = world.records.clone();
    for bad in wrong {
        assert_eq!(world.post_result(bad), Some(ResultOutcome::Stale));
    }
    assert_eq!(world.records, before);
    assert_eq!(world.post_result(good.clone()), Some(ResultOutcome::Applied));
    assert_eq!(world.post_result(good), Some(ResultOutcome::Stale), "it counts once");
    assert_eq!(world.progress("demo").files_done, 2);
}

#[test]
fn a_page_sent_twice_counts_once() {
    let (mut world, scan) = scanning();
    let first = page(&scan, 0, vec![copy_item(2, 1)], scan_at("m"));
    assert_eq!(world.post_page(&scan, first.clone()), PageAction::Continue);
    assert_eq!(world.post_page(&scan, first), PageAction::Continue);
    assert_eq!(
        world.post_page(&scan, page(&scan, 5, vec![copy_item(2, 1)], None)),
        PageAction::Stop
    );
    let progress = world.progress("demo");
    assert_eq!((progress.files_total, progress.dirs_total, progress.scan_done), (2, 1, false));
}

#[test]
fn a_dead_workers_task_goes_to_another_with_a_higher_attempt() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], scan_at("m")));
    world.heartbeat("t", "1", &["/src"], &[]);
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("t", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    let again = world.poll("t", "1").expect("the lease of `s` ran out");
    assert_eq!((again.task_id, again.attempt), (scan.task_id, 2));
    assert_eq!(again.task, scan_at("m").unwrap(), "it goes on behind the cursor");
    assert_ne!(again.assignment_id, scan.assignment_id);
    assert_eq!(
        world.post_page(&scan, page(&scan, 1, vec![copy_item(9, 9)], None)),
        PageAction::Stop
    );
}

#[test]
fn workers_that_a_dead_worker_may_have_written_through_are_flushed() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    world.heartbeat("s", "2", &["/src"], &[]);
    let again = world.poll("s", "2").unwrap();
    assert_eq!(again.task_id, copy.task_id);
    // Everything is there already, so the second try writes nothing.
    let skipped = TaskReport { files_skipped: 1, bytes_skipped: 10, ..TaskReport::default() };
    world.post_result(result(&again, true, skipped));
    assert_eq!(world.poll("d", "1").expect("the flush").task, TaskSpec::Flush);
}

#[test]
fn a_heartbeat_renews_the_leases_it_lists_and_a_new_incarnation_revokes_all() {
    let (mut world, scan) = scanning();
    for _ in 0..20 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.poll("s", "1"), None, "it still holds the scan");
    world.heartbeat("s", "2", &["/src"], &[]);
    assert_eq!(world.poll("s", "1"), None, "the old process gets nothing");
    assert_eq!(world.poll("s", "2").expect("at once").attempt, 2);
    let stale = heartbeat("s", Some("2"), &["/src"], &[scan.assignment_id]);
    match world.apply(Event::Heartbeat(stale)) {
        Some(Reply::Heartbeat(reply)) => {
            assert_eq!(reply.revoked_assignments, [scan.assignment_id])
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_suspended_master_revokes_no_lease() {
    let (mut world, scan) = scanning();
    world.apply(Event::Tick);
    world.now.mono_ms += 3_600_000;
    world.apply(Event::Tick);
    assert_eq!(world.post_page(&scan, page(&scan, 0, vec![], scan_at("m"))), PageAction::Continue);
}

#[test]
fn a_heartbeat_after_a_suspend_renews_from_its_arrival() {
    let (mut world, scan) = scanning();
    world.apply(Event::Tick);
    world.now.mono_ms += 3_600_000;
    // What lay in its queue is taken in before it looks how late it is.
    world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
    world.apply(Event::Tick);
    world.advance(50_000);
    assert_eq!(world.state.tasks.lease_count(), 0, "it was not renewed for longer than a lease");
    assert!(!world.state.workers.get(&scan.worker_id).unwrap().is_active, "it is silent");
}

#[test]
fn a_worker_without_digests_takes_part_and_is_counted_as_unverified() {
    let mut world = World::new();
    world.apply(Event::Heartbeat(heartbeat("s", None, &["/src"], &[])));
    world.apply(Event::Heartbeat(heartbeat("d", None, &["/dst"], &[])));
    world.submit("demo", "/src", "/dst");
    let poll =
        Event::Poll { worker: "s".parse().unwrap(), incarnation: None, poll_id: None, wait_ms: 0 };
    assert!(matches!(world.apply(poll), Some(Reply::Assignment(Some(_)))));
    let bare = TaskResult {
        request_id: "demo".parse().unwrap(),
        worker_id: "s".parse().unwrap(),
        success: true,
        message: Some("chunk complete".into()),
        assignment_id: None,
        attempt: None,
        task_digest: None,
        report: None,
    };
    assert_eq!(world.post_result(bare.clone()), None, "the guide's plain ack");
    let end = world.progress("demo");
    assert_eq!((end.state, end.unverified), (SyncState::Completed, 1));
    assert_eq!(end.outcome, Some(SyncOutcome::Unverified));
    assert_eq!(world.post_result(bare), None, "late, and changes nothing");
}

#[test]
fn failing_entries_are_retried_elsewhere_then_recorded_and_the_others_are_copied() {
    let (mut world, scan) = scanning();
    world.heartbeat("t", "1", &["/src"], &[]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 1)], None));
    let copy = world.poll("s", "1").unwrap();
    let partly = TaskReport {
        files_done: 2,
        dirs_done: 1,
        bytes_done: 20,
        failures: vec![error(ErrorClass::Permanent)],
        retry: Some(copy_item(1, 0)),
        writers: vec!["d".parse().unwrap()],
        ..TaskReport::default()
    };
    world.post_result(result(&copy, true, partly));
    assert_eq!(world.progress("demo").files_failed, 0, "`t` may be able to");
    assert_eq!(world.poll("s", "1"), None, "`s` has tried");
    let again = world.poll("t", "1").unwrap();
    let failed = TaskReport {
        failures: vec![error(ErrorClass::Permanent)],
        retry: Some(copy_item(1, 0)),
        ..TaskReport::default()
    };
    world.post_result(result(&again, true, failed));
    let flush = world.poll("d", "1").expect("what was copied is flushed");
    world.post_result(result(&flush, true, TaskReport::default()));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
    assert_eq!((end.files_total, end.files_done, end.files_failed), (3, 2, 1));
    assert_eq!(end.errors[0].errno.as_deref(), Some("EACCES"));
    assert_eq!(end.errors[0].worker_id, Some("t".parse().unwrap()));
    assert_eq!(end.error_counts["EACCES (open source)"], 1);
}

#[test]
fn the_wait_reason_names_the_entry_where_it_has_a_name() {
    for (path, said) in [("x", "again: x: permission denied"), ("", "again: permission denied")] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(0, 1)], None));
        let copy = world.poll("s", "1").unwrap();
        let path = BytePath(path.as_bytes().to_vec());
        let failed = TaskReport {
            failures: vec![EntryError { path, ..error(ErrorClass::Transient) }],
            retry: Some(copy_item(0, 1)),
            ..TaskReport::default()
        };
        world.post_result(result(&copy, true, failed));
        let reason = world.progress("demo").reason.expect("it waits");
        assert!(reason.ends_with(said), "{reason}");
    }
}

#[test]
fn a_report_that_does_not_add_up_is_rejected() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    let short = TaskReport { files_done: 2, ..TaskReport::default() };
    world.post_result(result(&copy, true, short));
    let progress = world.progress("demo");
    assert_eq!((progress.state, progress.files_done), (SyncState::Progress, 0));
}

#[test]
fn a_large_file_that_changes_restarts_and_fails_in_the_end() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    for _ in 0..6 {
        let range = world.poll("s", "1").unwrap();
        assert_eq!(range.task.kind(), "range");
        let report = TaskReport {
            replacement: Some(large_with_manifest("d/changing")),
            ..TaskReport::default()
        };
        world.post_result(result(&range, true, report));
        let discard = world.poll("d", "1").expect("the old part file is removed");
        assert_eq!(discard.task, TaskSpec::Discard);
        world.post_result(result(&discard, true, TaskReport::default()));
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed, end.files_total), (SyncState::Failed, 1, 1));
    assert_eq!((end.errors[0].class, end.errors[0].attempt), (ErrorClass::Changed, 6));
    assert_eq!(end.errors[0].path.0, b"d/changing");
    assert_eq!(world.blobs.keys().collect::<Vec<_>>(), ["e/1/0"], "only its failure stays");
}

#[test]
fn a_large_file_that_is_there_already_is_skipped() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(40)], None));
    let range = world.poll("s", "1").unwrap();
    world.post_result(result(
        &range,
        true,
        TaskReport { unchanged: true, ..TaskReport::default() },
    ));
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped, end.files_done), (SyncState::Completed, 1, 0));
    assert_eq!((end.transferred_bytes, end.bytes_skipped), (0, end.total_bytes));
}

#[test]
fn a_source_that_is_not_there_fails_the_sync_without_an_outcome() {
    let (mut world, scan) = scanning();
    let report =
        TaskReport { failures: vec![error(ErrorClass::Vanished)], ..TaskReport::default() };
    world.post_result(result(&scan, false, report));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, None));
    assert_eq!((end.files_failed, end.failed_steps), (0, [(FailedStep::List, 1)].into()));
}

#[test]
fn a_cancelled_sync_drops_its_work_and_its_part_files() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(3), copy_item(1, 0)], scan_at("m")));
    let range = world.poll("s", "1").unwrap();
    let reply = world.apply(Event::CancelSync("demo".parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Progress(p)) if p.state == SyncState::Cancelled));
    let late = result(&range, true, all_done(&range, "d"));
    assert_eq!(world.post_result(late), Some(ResultOutcome::Stale));
    assert_eq!(world.poll("s", "1"), None);
    assert_eq!(world.poll("d", "1"), None, "somebody may still be writing");
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    let discard = world.poll("d", "1").unwrap();
    assert_eq!(discard.task, TaskSpec::Discard);
    world.post_result(result(&discard, true, TaskReport::default()));
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn a_deleted_sync_is_removed_and_its_name_can_be_used_again() {
    let (mut world, _) = scanning();
    assert_eq!(
        world.apply(Event::DeleteSync("demo".parse().unwrap())),
        Some(Reply::Deleted { cancelled: true })
    );
    let gone = world.apply(Event::GetProgress("demo".parse().unwrap()));
    assert!(matches!(gone, Some(Reply::Refused(p)) if p.status == 404));
    assert!(world.state.syncs.is_empty());
    world.submit("demo", "/src", "/dst");
    let twice = world.apply(Event::Submit {
        request: request(Some("demo"), "/src", "/dst"),
        list: None,
        idempotency: None,
    });
    let Some(Reply::Refused(problem)) = twice else { panic!("{twice:?}") };
    assert_eq!((problem.status, problem.existing.as_deref()), (409, Some("QUEUED")));
}

#[test]
fn a_submit_repeated_with_its_key_is_one_sync() {
    let mut world = World::new();
    let submit = |body: u8| Event::Submit {
        request: request(None, "/src", "/dst"),
        list: None,
        idempotency: Some(IdempotencyKey { key: "k".into(), body: Digest([body; 32]) }),
    };
    let first = world.apply(submit(1));
    assert!(matches!(&first, Some(Reply::Submitted(_))));
    assert_eq!(world.apply(submit(1)), first);
    assert!(matches!(world.apply(submit(2)), Some(Reply::Refused(p)) if p.status == 409));
    assert_eq!(world.state.syncs.len(), 1);
}

#[test]
fn syncs_take_turns_on_a_worker() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, (0..8).map(|_| copy_item(1, 0)).collect(), None));
    world.submit("late", "/src/c", "/dst/d");
    let second = world.poll("s", "1").unwrap();
    assert_eq!(second.request_id.as_str(), "late", "it has not been served yet");
    world.post_page(&second, page(&second, 0, (0..8).map(|_| copy_item(1, 0)).collect(), None));
    let order: Vec<String> =
        (0..6).map(|_| world.poll("s", "1").unwrap().request_id.to_string()).collect();
    assert_eq!(order, ["demo", "late", "demo", "late", "demo", "late"]);
}

#[test]
fn a_full_window_holds_the_scan_until_half_of_it_is_done() {
    let (mut world, mut scan) = scanning();
    let mut number = 0;
    loop {
        let next = page(&scan, number, (0..10).map(|_| copy_item(1, 0)).collect(), scan_at("m"));
        number += 1;
        match world.post_page(&scan, next) {
            PageAction::Continue => assert!(number < 100, "never full"),
            PageAction::Pause => break,
            other => panic!("{other:?}"),
        }
    }
    let mut done = 0;
    loop {
        let task = world.poll("s", "1").unwrap();
        if task.task.kind() == "scan" {
            scan = task;
            break;
        }
        world.post_result(result(&task, true, all_done(&task, "d")));
        done += 1;
    }
    assert!(done >= number * 5 - 1, "{done} of {}", number * 10);
    assert_eq!(scan.attempt, 1, "to wait is no new attempt");
    assert_eq!(world.post_page(&scan, page(&scan, 0, vec![], None)), PageAction::Done);
}

#[test]
fn a_sync_with_a_name_list_has_one_task_per_part() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src", "/dst"], &[]);
    let part = |n: &str| FileListPart { paths: vec![RelPath::new(n).unwrap()] };
    world.apply(Event::Submit {
        request: request(Some("demo"), "/src", "/dst"),
        list: Some(vec![part("a"), part("b")]),
        idempotency: None,
    });
    for _ in 0..2 {
        let list = world.poll("s", "1").unwrap();
        assert_eq!(list.task, TaskSpec::List { start: 0 });
        let event =
            Event::GetManifest { worker: "s".parse().unwrap(), assignment: list.assignment_id };
        assert!(
            matches!(world.apply(event), Some(Reply::ManifestKey(key)) if world.blobs.contains_key(&key))
        );
        world.post_page(&list, page(&list, 0, vec![], None));
    }
    assert_eq!(world.progress("demo").state, SyncState::Completed);
    assert!(world.blobs.is_empty());
}

#[test]
fn ended_syncs_are_dropped_after_the_retention() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![], None));
    assert_eq!(world.progress("demo").state, SyncState::Completed);
    world.skip_days(59);
    world.advance(1_000);
    assert_eq!(world.state.syncs.len(), 1);
    world.skip_days(2);
    world.advance(1_000);
    assert!(world.state.syncs.is_empty());
    assert_eq!(world.sync_records(), ["meta"]);
}

#[test]
fn a_flush_is_done_by_the_writer_or_under_its_kernel_and_not_after_a_reboot() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    let mut elsewhere = heartbeat("e", Some("1"), &["/dst"], &[]);
    elsewhere.boot_id = Some("another boot".into());
    world.apply(Event::Heartbeat(elsewhere));
    assert_eq!(world.poll("e", "1"), None, "its cache is another");
    let mut rebooted = heartbeat("d", Some("2"), &["/dst"], &[]);
    rebooted.boot_id = Some("a later boot".into());
    world.apply(Event::Heartbeat(rebooted));
    assert!(world.poll("d", "2").is_none());
    world.heartbeat("s", "1", &["/src"], &[]); // same boot, but does not hold the destination
    world.advance(1);
    let still = world.progress("demo");
    assert_eq!(still.state, SyncState::Progress, "{still:?}");
    world.heartbeat("f", "1", &["/dst"], &[]);
    assert_eq!(world.poll("f", "1").expect("the kernel of the writer").task, TaskSpec::Flush);
}

#[test]
fn a_lost_store_restarts_active_syncs() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0), large_item(2)], None));
    let copy = world.poll("s", "1").unwrap();
    world.blobs.clear();
    world.apply(Event::StoreLost);
    assert_eq!(
        world.post_result(result(&copy, true, all_done(&copy, "d"))),
        Some(ResultOutcome::Stale)
    );
    let progress = world.progress("demo");
    assert_eq!((progress.files_total, progress.state), (0, SyncState::Progress));
    assert_eq!(world.poll("s", "1").unwrap().task.kind(), "scan");
}

#[test]
fn a_lost_part_file_is_sent_again_and_fails_in_the_end() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    let send = |world: &mut World| {
        for _ in 0..2 {
            let range = world.poll("s", "1").expect("a range");
            world.post_result(result(&range, true, all_done(&range, "d")));
        }
        let sent = world.progress("demo");
        assert_eq!(sent.transferred_bytes, sent.total_bytes, "counted once");
        world.poll("d", "1").expect("the commit")
    };
    let lost = |commit: &Assignment| {
        let failures = vec![error(ErrorClass::Transient)];
        result(commit, true, TaskReport { part_lost: true, failures, ..TaskReport::default() })
    };
    let commit = send(&mut world);
    world.post_result(lost(&commit));
    let progress = world.progress("demo");
    assert_eq!((progress.transferred_bytes, progress.files_done), (0, 0));
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    for _ in 0..5 {
        let commit = send(&mut world);
        world.post_result(lost(&commit));
    }
    for kind in ["discard", "flush"] {
        let task = world.poll("d", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        world.post_result(result(&task, true, all_done(&task, "d")));
    }
    let end = world.progress("demo");
    assert_eq!((end.outcome, end.files_failed), (None, 1), "nothing was copied");
    assert_eq!((end.transferred_bytes, end.errors.len()), (0, 1));
}

#[test]
fn a_failed_flush_is_never_retried() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    let flush = world.poll("d", "1").unwrap();
    // The kernel reports an error only once: a second flush would succeed.
    let eio = EntryError { errno: Some("EIO".into()), ..error(ErrorClass::Transient) };
    let report = TaskReport { failures: vec![eio], ..TaskReport::default() };
    world.post_result(result(&flush, false, report));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
}

#[test]
fn scans_that_wait_do_not_fill_the_window_that_they_wait_for() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src", "/dst"], &[]);
    let part = |n: usize| FileListPart { paths: vec![RelPath::new(n.to_string()).unwrap()] };
    world.apply(Event::Submit {
        request: request(Some("demo"), "/src", "/dst"),
        list: Some((0..300).map(part).collect()),
        idempotency: None,
    });
    for _ in 0..300 {
        let list = world.poll("s", "1").expect("a part of the list");
        world.post_page(&list, page(&list, 0, vec![], None));
    }
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}
