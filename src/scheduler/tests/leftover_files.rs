//! Nothing stays behind at a destination: part files, and what was kept for the names of one file.

use super::*;

/// Until no worker can be writing any more, with a source worker of that incarnation.
fn expire_lease(world: &mut World, incarnation: &str) {
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("s", incarnation, &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
}

#[test]
fn a_restarted_part_file_is_removed_where_the_file_is_found_present() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "s", "range");
    // One of both ranges is gone from the part file, the other may be there still.
    let commit = poll_kind(&mut world, "d", "commit");
    let failures = vec![error(ErrorClass::Transient)];
    let lost = TaskReport { part_lost: true, failures, ..TaskReport::default() };
    world.post_result(result(&commit, true, lost));
    let range = poll_kind(&mut world, "s", "range");
    assert_eq!((range.attempt, world.progress("demo").transferred_bytes), (1, 0));
    world.post_result(result(
        &range,
        true,
        TaskReport { unchanged: true, ..TaskReport::default() },
    ));
    complete_kind(&mut world, "d", "discard");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped), (SyncState::Completed, 1));
    assert!(world.blobs.is_empty());
}

fn unchanged_report() -> TaskReport {
    TaskReport { unchanged: true, ..TaskReport::default() }
}

/// Two ranges of a file are out, and the second finds the whole file at the destination. The first.
fn present_while_another_range_is_leased() -> (World, Assignment) {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    let (first, second) =
        (poll_kind(&mut world, "s", "range"), poll_kind(&mut world, "s", "range"));
    world.post_result(result(&second, true, unchanged_report()));
    let so_far = world.progress("demo");
    assert_eq!((so_far.state, so_far.files_skipped), (SyncState::Progress, 1));
    assert_eq!(world.poll("s", "1"), None, "the third range is not assigned any more");
    (world, first)
}

/// Ends as it should: the file was there, and is counted once.
fn assert_was_present(world: &mut World) {
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped, end.transferred_bytes), (SyncState::Completed, 1, 0));
    assert!(world.blobs.is_empty() && world.state.tasks.is_empty());
}

#[test]
fn writes_of_one_range_are_removed_where_another_finds_the_file_present() {
    let (mut world, first) = present_while_another_range_is_leased();
    let wrote = vec!["d".parse().unwrap()];
    let report =
        TaskReport { digest: Some(Digest([7; 32])), writers: wrote, ..TaskReport::default() };
    world.post_result(result(&first, true, report));
    complete_kind(&mut world, "d", "discard");
    complete_kind(&mut world, "d", "flush");
    assert_was_present(&mut world);
    // It may also fail, or be taken from an agent that hands it back after it wrote.
    let (mut world, first) = present_while_another_range_is_leased();
    world.post_result(result(&first, false, TaskReport::default()));
    complete_kind(&mut world, "d", "discard");
    assert_was_present(&mut world);
    let (mut world, first) = present_while_another_range_is_leased();
    let wrote = vec!["d".parse().unwrap()];
    let back = TaskReport { returned: true, writers: wrote, ..TaskReport::default() };
    world.post_result(result(&first, false, back));
    let again = poll_kind(&mut world, "s", "range");
    world.post_result(result(&again, true, unchanged_report()));
    complete_kind(&mut world, "d", "discard");
    complete_kind(&mut world, "d", "flush");
    assert_was_present(&mut world);
}

#[test]
fn writes_of_a_failed_range_are_removed_where_another_finds_the_file_present() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    let (first, second) =
        (poll_kind(&mut world, "s", "range"), poll_kind(&mut world, "s", "range"));
    world.post_result(result(&first, false, TaskReport::default()));
    world.post_result(result(&second, true, unchanged_report()));
    complete_kind(&mut world, "d", "discard");
    assert_was_present(&mut world);
}

#[test]
fn a_file_that_all_ranges_find_present_needs_no_discard() {
    let (mut world, first) = present_while_another_range_is_leased();
    world.post_result(result(&first, true, unchanged_report()));
    assert_was_present(&mut world);
}

#[test]
fn a_part_file_is_removed_late_where_a_mirror_stops_while_it_is_written() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let root = |name: &str| Some(RootState { file_system: name.into(), empty: false });
    let first = page(&scan, 0, vec![large_item(3)], scan_at("m"));
    world.post_page(&scan, ScanPage { root: root("fs-1"), ..first });
    poll_kind(&mut world, "s", "range");
    let action =
        world.post_page(&scan, ScanPage { root: root("fs-2"), ..page(&scan, 1, vec![], None) });
    assert_eq!(action, PageAction::Stop);
    assert_eq!(world.poll("d", "1"), None, "the range is still written");
    expire_lease(&mut world, "1");
    complete_kind(&mut world, "d", "discard");
    let end = world.progress("demo");
    assert_eq!(end.outcome, Some(SyncOutcome::CopyStopped));
    assert!(end.reason.unwrap().contains("not everything was copied, nothing was deleted"));
}

#[test]
fn a_clean_up_that_a_cancel_interrupts_is_done_again() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    world.post_result(result(
        &copy,
        true,
        TaskReport { needs_clean_up: true, ..all_done(&copy, "d") },
    ));
    let clean_up = poll_kind(&mut world, "s", "clean_up");
    assert!(claims(&world, &clean_up).rules.preserve.is_all(), "the root gets its metadata back");
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    // Its progress is never reported.
    assert_eq!(
        world.post_result(result(&clean_up, false, TaskReport::default())),
        Some(ResultOutcome::Stale)
    );
    expire_lease(&mut world, "1");
    let late = complete_kind(&mut world, "s", "clean_up");
    // The next sync may use the root already.
    let none = crate::wire::preserve::Preserve::NONE;
    assert_eq!((claims(&world, &late).rules.preserve, late.options.preserve), (none, none));
    assert!(world.state.tasks.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn link_anchors_of_a_dead_agent_are_removed_after_a_cancel() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    poll_kind(&mut world, "s", "copy");
    // After a restart no worker has the batch, and nothing reports its anchors.
    world.heartbeat("s", "2", &["/src"], &[]);
    assert_eq!(world.state.tasks.lease_count(), 0);
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    expire_lease(&mut world, "2");
    let clean_up = world.poll("s", "2").expect("the clean-up");
    assert_eq!(clean_up.task, TaskSpec::CleanUp);
    world.post_result(result(&clean_up, true, TaskReport::default()));
    complete_kind(&mut world, "d", "discard");
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn temporary_files_of_a_batch_whose_agent_died_are_removed_after_a_cancel() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0), copy_item(3, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let manifest = |world: &mut World, worker: &str, of: &Assignment| {
        let (worker, assignment) = (worker.parse().unwrap(), of.assignment_id);
        match world.apply(Event::GetManifest { worker, assignment }) {
            Some(Reply::ManifestKey(key)) => key,
            other => panic!("{other:?}"),
        }
    };
    let key = manifest(&mut world, "s", &copy);
    // After a restart no worker has the batch. The other one was never leased.
    world.heartbeat("s", "2", &["/src"], &[]);
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    let ended = world.progress("demo");
    assert!(world.poll("d", "1").is_none(), "its last worker may still be writing");
    expire_lease(&mut world, "2");
    let discard = poll_kind(&mut world, "d", "discard");
    assert_eq!(manifest(&mut world, "d", &discard), key);
    world.post_result(result(&discard, true, TaskReport::default()));
    let clean_up = world.poll("s", "2").expect("the clean-up");
    world.post_result(result(&clean_up, true, TaskReport::default()));
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo"), ended, "what has ended stays as it ended");
}

#[test]
fn leftovers_of_a_deleted_sync_are_removed_once_and_then_its_record() {
    for again in [false, true] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
        let range = world.poll("s", "1").expect("a range");
        world.post_result(result(&range, true, all_done(&range, "d")));
        world.apply(Event::DeleteSync("demo".parse().unwrap()));
        if again {
            world.submit("demo", "/src/a", "/dst/b");
        }
        for _ in 0..40 {
            world.advance(1_000);
            world.heartbeat("d", "1", &["/dst"], &[]);
        }
        let discard = world.poll("d", "1").expect("the part file is removed");
        assert_eq!(discard.task, TaskSpec::Discard);
        let outcome = world.post_result(result(&discard, true, TaskReport::default()));
        assert_eq!(outcome, Some(ResultOutcome::Applied));
        assert_eq!(world.state.syncs.len(), usize::from(again));
    }
}

#[test]
fn a_part_file_of_an_ended_sync_is_kept_while_another_sync_may_continue_it() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    complete_kind(&mut world, "s", "range");
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    expire_lease(&mut world, "1");
    // It has the same part file, and ranges of it may be equal.
    world.submit("again", "/src/a", "/dst/b");
    let scan = poll_kind(&mut world, "s", "scan");
    assert!(world.poll("d", "1").is_none(), "the part file belongs to the other sync now");
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "d", "commit");
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("again").state, SyncState::Completed);
    complete_kind(&mut world, "d", "discard");
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
}
