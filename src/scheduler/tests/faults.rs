//! What goes wrong around the scheduler: results that come before heartbeats, reboots, agents that send
//! nonsense, workers that do not come.

use super::*;

fn refused(reply: Option<Reply>) -> u16 {
    match reply {
        Some(Reply::Refused(problem)) => problem.status,
        other => panic!("{other:?}"),
    }
}

fn post_anything(world: &mut World, a: &Assignment, page: ScanPage) -> Option<Reply> {
    let (worker, assignment) = (a.worker_id.clone(), a.assignment_id);
    world.apply(Event::Page { worker, assignment, page })
}

#[test]
fn a_writer_unknown_to_a_restarted_master_is_flushed() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    world.restart();
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert_eq!(world.poll("d", "1").expect("the flush").task, TaskSpec::Flush);
}

#[test]
fn a_reboot_between_a_write_and_its_result_is_noticed() {
    let (mut world, scan) = scanning();
    let mut source = heartbeat("s", Some("1"), &["/src"], &[scan.assignment_id]);
    source.boot_id = Some("of another host".into());
    world.apply(Event::Heartbeat(source));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    let mut rebooted = heartbeat("d", Some("2"), &["/dst"], &[]);
    rebooted.boot_id = Some("a later boot".into());
    world.apply(Event::Heartbeat(rebooted));
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    world.advance(1_000);
    // What the host lost is not known: all content is compared, and what differs is copied again.
    let scan = world.poll("s", "1").expect("the scan, again");
    assert!(matches!(scan.task, TaskSpec::Scan { .. }));
    assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
    world.restart();
    let mut source = heartbeat("s", Some("1"), &["/src"], &[scan.assignment_id]);
    source.boot_id = Some("of another host".into());
    world.apply(Event::Heartbeat(source));
    let mut rebooted = heartbeat("d", Some("2"), &["/dst"], &[]);
    rebooted.boot_id = Some("a later boot".into());
    world.apply(Event::Heartbeat(rebooted));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").expect("the copy, again");
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    let flush = world.poll("d", "2").expect("the flush under the later boot");
    assert_eq!(flush.task, TaskSpec::Flush);
    world.post_result(result(&flush, true, TaskReport::default()));
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Completed, "{end:?}");
    assert_eq!((end.files_total, end.files_done, end.repaired_files), (1, 1, 1), "{end:?}");
}

#[test]
fn writes_of_a_rebooted_worker_under_its_present_boot_are_flushed_though_all_is_equal() {
    let (mut world, scan) = scanning();
    let mut source = heartbeat("s", Some("1"), &["/src"], &[scan.assignment_id]);
    source.boot_id = Some("of another host".into());
    world.apply(Event::Heartbeat(source));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    let before = world.poll("s", "1").unwrap();
    world.post_result(result(&before, true, all_done(&before, "d")));
    let mut rebooted = heartbeat("d", Some("2"), &["/dst"], &[]);
    rebooted.boot_id = Some("a later boot".into());
    world.apply(Event::Heartbeat(rebooted));
    let after = world.poll("s", "1").unwrap();
    world.post_result(result(&after, true, all_done(&after, "d")));
    world.advance(1_000);
    let scan = world.poll("s", "1").expect("the scan, again");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let compared = world.poll("s", "1").expect("the copy, again");
    let equal = TaskReport { files_skipped: 2, ..TaskReport::default() };
    world.post_result(result(&compared, true, equal));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    assert_eq!(world.poll("d", "2").expect("the flush under the later boot").task, TaskSpec::Flush);
}

#[test]
fn a_host_that_reboots_repeatedly_fails_the_sync() {
    let (mut world, mut scan) = scanning();
    for boot in 0..4 {
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        let copy = world.poll("s", "1").unwrap();
        world.post_result(result(&copy, true, all_done(&copy, "d")));
        let mut rebooted = heartbeat("d", Some(&format!("{boot}")), &["/dst"], &[]);
        rebooted.boot_id = Some(format!("boot {boot}"));
        world.apply(Event::Heartbeat(rebooted));
        world.heartbeat("s", "1", &["/src"], &[]);
        let mut elsewhere = heartbeat("s", Some("1"), &["/src"], &[]);
        elsewhere.boot_id = Some("of another host".into());
        world.apply(Event::Heartbeat(elsewhere));
        world.advance(1_000);
        match world.poll("s", "1") {
            Some(again) => scan = again,
            None => assert_eq!(boot, 3, "it is compared again three times"),
        }
    }
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Failed, "{end:?}");
    assert!(end.errors[0].message.contains("rebooted"), "{:?}", end.errors);
}

#[test]
fn tasks_that_failed_together_come_back_one_after_the_other() {
    let again = |world: &World| {
        let delayed = world.state.tasks.values().filter_map(|task| match task.state {
            task::TaskState::Delayed { until_ms } => Some(until_ms),
            _ => None,
        });
        delayed.collect::<Vec<_>>()
    };
    let failed_twice = || {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, (0..20).map(|_| copy_item(1, 0)).collect(), None));
        for _ in 0..2 {
            let copies: Vec<Assignment> = std::iter::from_fn(|| world.poll("s", "1")).collect();
            assert_eq!(copies.len(), 20);
            world.advance(1);
            for copy in copies {
                world.post_result(result(&copy, false, TaskReport::default()));
            }
            if again(&world).iter().all(|at| *at <= world.now.mono_ms) {
                // The first time they come back at once.
                world.advance(1);
            }
        }
        let until = again(&world);
        (until, world.now.mono_ms)
    };
    let (until, now) = failed_twice();
    assert_eq!(until.len(), 20);
    let different: std::collections::BTreeSet<u64> = until.iter().copied().collect();
    assert!(different.len() > 15, "{until:?}");
    assert!(until.iter().all(|at| (750..=1_000).contains(&(at - now))), "{until:?} after {now}");
    assert_eq!(failed_twice().0, until, "the same history, the same times");
}

#[test]
fn possible_writers_of_lost_work_are_flushed_though_silent_by_then() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    for _ in 0..11 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[copy.assignment_id]);
    }
    assert_eq!(world.poll("x", "1"), None);
    world.heartbeat("s", "2", &["/src"], &[]);
    assert!(
        world.state.syncs.values().all(|s| s.unflushed_writers.iter().count() == 1),
        "`d` may hold what `s` wrote"
    );
}

#[test]
fn tasks_leased_when_the_store_was_lost_are_flushed() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    world.poll("s", "1").unwrap();
    world.blobs.clear();
    world.apply(Event::StoreLost);
    let scan = world.poll("s", "1").unwrap();
    world.post_page(&scan, page(&scan, 0, vec![], None));
    assert_eq!(world.poll("d", "1").expect("the flush").task, TaskSpec::Flush);
}

#[test]
fn impossible_pages_are_refused_and_change_nothing() {
    let (mut world, scan) = scanning();
    let copy = |files, dirs| WorkItem::Copy {
        manifest: Base64Bytes(vec![1]),
        files,
        dirs,
        bytes: u64::MAX,
    };
    let large = |size| WorkItem::Large {
        manifest: Base64Bytes(vec![2]),
        size,
        range_length: u64::MAX,
        hardlink_group: None,
    };
    let before = world.records.clone();
    let many = ScanPage {
        subtrees: vec![RelPath::new("x").unwrap(); 2_000],
        ..page(&scan, 0, vec![], scan_at("m"))
    };
    for bad in [
        page(&scan, 0, vec![copy(u64::MAX, 1)], scan_at("m")),
        page(&scan, 0, vec![copy(1, u64::MAX)], scan_at("m")),
        page(&scan, 0, vec![large(u64::MAX)], scan_at("m")),
        page(&scan, 0, vec![], Some(TaskSpec::Flush)),
        page(&scan, 0, vec![], Some(TaskSpec::List { start: 1 })),
        many,
    ] {
        assert_eq!(refused(post_anything(&mut world, &scan, bad)), 422);
    }
    assert_eq!(world.post_page(&scan, page(&scan, u64::MAX, vec![], None)), PageAction::Stop);
    assert_eq!(world.records, before);
    let work = vec![copy(1, 1), copy(1, 1), large(i64::MAX as u64), large(0)];
    assert_eq!(world.post_page(&scan, page(&scan, 0, work, None)), PageAction::Done);
    assert_eq!(world.progress("demo").total_bytes, u64::MAX, "for people, and no reason to stop");
}

#[test]
fn impossible_reports_are_rejected() {
    let (mut world, scan) = scanning();
    let work = vec![copy_item(3, 2), copy_item(1, 0), copy_item(1, 0), large_item(2)];
    world.post_page(&scan, page(&scan, 0, work, None));
    let copy = world.poll("s", "1").unwrap();
    // Five of five, but of the wrong kinds.
    let mixed = TaskReport { files_done: 5, ..TaskReport::default() };
    world.post_result(result(&copy, true, mixed));
    let many = || TaskReport { files_done: 1, bytes_done: u64::MAX, ..TaskReport::default() };
    let copy = world.poll("s", "1").unwrap();
    world.post_result(result(&copy, true, many()));
    let copy = world.poll("s", "1").unwrap();
    world.post_result(result(&copy, true, many()));
    let range = world.poll("s", "1").unwrap();
    let huge =
        WorkItem::Copy { manifest: Base64Bytes(vec![]), files: u64::MAX, dirs: u64::MAX, bytes: 0 };
    let report = TaskReport { replacement: Some(huge), ..TaskReport::default() };
    world.post_result(result(&range, true, report));
    let range = world.poll("s", "1").unwrap();
    world.post_result(result(&range, true, all_done(&range, "d")));
    let progress = world.progress("demo");
    assert_eq!((progress.files_total, progress.files_done), (6, 2));
}

#[test]
fn entries_that_fail_without_a_retry_batch_are_counted_by_kind() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 1)], None));
    let copy = world.poll("s", "1").unwrap();
    let failures = vec![error(ErrorClass::Transient), error(ErrorClass::Transient)];
    // Of another kind than what failed, and too large to add up.
    let retry =
        WorkItem::Copy { manifest: Base64Bytes(vec![]), files: u64::MAX, dirs: 3, bytes: 0 };
    let report =
        TaskReport { files_done: 1, failures, retry: Some(retry), ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    let end = world.progress("demo");
    assert_eq!(
        (end.files_failed, end.dirs_failed, end.outcome),
        (1, 1, Some(SyncOutcome::Partial))
    );
    assert!(end.reason.unwrap().contains("EACCES"));
}

#[test]
fn a_bare_success_does_not_end_a_scan() {
    let (mut world, scan) = scanning();
    world.post_result(result(&scan, true, TaskReport::default()));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    world.advance(5_000);
    assert_eq!(world.poll("s", "1").expect("again").task_id, scan.task_id);
}

#[test]
fn a_flush_without_a_capable_worker_fails_though_its_kernel_runs() {
    // `s` runs under the same kernel, but does not hold the destination; `d` does not any more.
    for after in [None, Some("/elsewhere")] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        let copy = world.poll("s", "1").unwrap();
        world.post_result(result(&copy, true, all_done(&copy, "d")));
        for round in 0..140 {
            world.advance(5_000);
            world.heartbeat("s", "1", &["/src"], &[]);
            if let Some(path) = after {
                world.heartbeat("d", "1", &[path], &[]);
            }
            let state = world.progress("demo").state;
            assert!(round > 110 || state == SyncState::Progress, "patience");
        }
        assert_eq!(world.progress("demo").state, SyncState::Failed);
    }
}

#[test]
fn a_worker_that_never_polls_does_not_delay_retries() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    world.heartbeat("idle", "1", &["/src"], &[]);
    let copy = world.poll("s", "1").unwrap();
    world.post_result(result(&copy, false, TaskReport::default()));
    assert_eq!(world.poll("s", "1"), None, "the other comes first");
    for _ in 0..7 {
        world.advance(5_000);
        for (worker, path) in [("s", "/src"), ("idle", "/src"), ("d", "/dst")] {
            world.heartbeat(worker, "1", &[path], &[]);
        }
    }
    assert_eq!(world.poll("s", "1").expect("not for ever").task_id, copy.task_id);
}

#[test]
fn syncs_that_wait_for_a_worker_do_not_block_others() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    for n in 0..Settings::default().max_active_syncs {
        world.submit(&format!("waits-{n}"), "/nowhere", &format!("/dst/{n}"));
    }
    world.submit("demo", "/src", "/dst/demo");
    assert_eq!(world.poll("s", "1").expect("its turn").request_id.as_str(), "demo");
}

#[test]
fn the_number_of_active_syncs_is_bounded_by_the_setting() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let most = Settings::default().max_active_syncs;
    for n in 0..=most {
        world.submit(&format!("sync-{n}"), "/src", &format!("/dst/{n}"));
    }
    let scans: Vec<Assignment> = std::iter::from_fn(|| world.poll("s", "1")).collect();
    assert_eq!(scans.len(), most);
    world.post_page(&scans[0], page(&scans[0], 0, vec![], None));
    assert_eq!(world.poll("s", "1").unwrap().request_id.to_string(), format!("sync-{most}"));
}

#[test]
fn a_part_file_is_removed_only_after_all_leases_ended() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    let one = world.poll("s", "1").unwrap();
    let two = world.poll("s", "1").unwrap();
    let report =
        TaskReport { failures: vec![error(ErrorClass::Vanished)], ..TaskReport::default() };
    world.post_result(result(&one, true, report));
    assert_eq!(
        world.post_result(result(&two, true, all_done(&two, "d"))),
        Some(ResultOutcome::Stale)
    );
    assert_eq!(world.poll("d", "1"), None, "`s` may be at the second range still");
    world.restart();
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert_eq!(world.poll("d", "1"), None, "nor does a restart make it sure");
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.poll("d", "1").expect("now").task, TaskSpec::Discard);
}

#[test]
fn a_part_file_is_removed_where_the_file_is_found_present() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    let range = world.poll("s", "1").unwrap();
    world.post_result(result(&range, true, all_done(&range, "d")));
    let range = world.poll("s", "1").unwrap();
    world.post_result(result(
        &range,
        true,
        TaskReport { unchanged: true, ..TaskReport::default() },
    ));
    for kind in ["discard", "flush"] {
        let task = world.poll("d", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        world.post_result(result(&task, true, TaskReport::default()));
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped), (SyncState::Completed, 1));
    assert_eq!((end.transferred_bytes, end.bytes_skipped), (0, end.total_bytes));
}

#[test]
fn a_worker_added_before_a_repeated_poll_is_flushed_when_the_agent_dies() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let poll = || Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: Some("p".into()),
        wait_ms: 0,
    };
    let members = |reply: Option<Reply>| match reply {
        Some(Reply::Assignment(Some(a))) => {
            a.destination_workers.iter().map(|m| m.worker_id.to_string()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(members(world.apply(poll())), ["d"]);
    // The answer is lost. The repeat names a worker more, through which the agent may write.
    world.heartbeat("e", "1", &["/dst"], &[]);
    assert_eq!(members(world.apply(poll())), ["d", "e"]);
    world.heartbeat("s", "2", &["/src"], &[]);
    let again = world.poll("s", "2").unwrap();
    let skipped = TaskReport { files_skipped: 1, bytes_skipped: 10, ..TaskReport::default() };
    world.post_result(result(&again, true, skipped));
    let flushes = world.state.tasks.values().filter(|task| task.spec == TaskSpec::Flush);
    let of: Vec<String> = flushes.filter_map(|t| Some(t.pinned_to.as_ref()?.to_string())).collect();
    assert_eq!(of, ["d", "e"]);
}

#[test]
fn a_batch_with_a_transient_and_a_permanent_error_is_retried() {
    let transient = EntryError { errno: Some("EIO".into()), ..error(ErrorClass::Transient) };
    let partly = |done, failures: Vec<EntryError>| TaskReport {
        files_done: done,
        bytes_done: done * 10,
        retry: Some(copy_item(failures.len() as u64, 0)),
        failures,
        writers: vec!["d".parse().unwrap()],
        ..TaskReport::default()
    };
    for failures in [
        vec![transient.clone(), error(ErrorClass::Permanent)],
        vec![error(ErrorClass::Permanent), transient],
    ] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 0)], None));
        let copy = world.poll("s", "1").unwrap();
        world.post_result(result(&copy, true, partly(1, failures)));
        assert_eq!(world.progress("demo").files_failed, 0);
        world.advance(5_000);
        // No other worker could do better with the lasting one; both are tried again for the sake of the other.
        let again = world.poll("s", "1").expect("it is tried again");
        assert!(matches!(again.task, TaskSpec::Copy { files: 2, .. }));
        world.post_result(result(&again, true, partly(1, vec![error(ErrorClass::Permanent)])));
        let flush = world.poll("d", "1").expect("the rest is given up");
        world.post_result(result(&flush, true, TaskReport::default()));
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done, end.files_failed), (SyncState::Failed, 2, 1));
        assert_eq!(end.error_counts.keys().collect::<Vec<_>>(), ["EACCES (open source)"]);
    }
}

#[test]
fn a_lease_lasts_from_when_its_renewal_arrived_and_no_longer() {
    let (mut world, scan) = scanning();
    let lease_ms = world.state.settings.lease_ms;
    let deadline = |world: &World| world.state.tasks[&scan.task_id].lease().map(|l| l.deadline_ms);
    for _ in 0..3 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
        assert_eq!(deadline(&world), Some(world.now.mono_ms + lease_ms));
        // A heartbeat that does not list it, a poll, and time passing renew nothing.
        let before = deadline(&world);
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        assert_eq!(world.poll("s", "1"), None);
        assert_eq!(deadline(&world), before);
    }
    let left = deadline(&world).unwrap() - world.now.mono_ms;
    world.advance(left - 1_000);
    assert!(deadline(&world).is_some());
    world.advance(1_000);
    assert_eq!(deadline(&world), None);
}

#[test]
fn a_page_at_each_limit_is_accepted_and_one_beyond_it_is_refused() {
    use crate::scheduler::validate::validate_page;
    let (_, scan) = scanning();
    let copy =
        |files, dirs| WorkItem::Copy { manifest: Base64Bytes(vec![1]), files, dirs, bytes: 0 };
    let most = u64::from(u32::MAX);
    let with = |change: &dyn Fn(&mut ScanPage)| {
        let mut page = page(&scan, 0, vec![], None);
        change(&mut page);
        validate_page(&page, &scan.task).is_ok()
    };
    for beyond in [0, 1] {
        let fits = beyond == 0;
        let n = 1_024 + beyond;
        assert_eq!(with(&|page| page.subtrees = vec![RelPath::new("x").unwrap(); n]), fits);
        let root = RootState { file_system: "f".repeat(n), empty: false };
        assert_eq!(with(&|page| page.root = Some(root.clone())), fits);
        assert_eq!(with(&|page| page.work = vec![copy(most + beyond as u64, most)]), fits);
        assert_eq!(with(&|page| page.work = vec![copy(most, most + beyond as u64)]), fits);
    }
}
