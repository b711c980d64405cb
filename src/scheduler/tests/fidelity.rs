//! What is compared, linked, read back, noted and recorded.

use super::*;
use crate::wire::entry_report::{EntryAction, EntryWarning, FileState, Tally};
use crate::wire::options::{Compare, DeleteOptions, SyncOptions, Verify};
use crate::wire::sync::SyncPhase;

const KEPT: u64 = 700_000;

#[test]
fn a_large_file_that_is_compared_and_equal_is_repaired_in_place_and_counts_as_skipped() {
    let options = SyncOptions { compare: Compare::Checksum, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    for _ in 0..2 {
        let range = complete_kind(&mut world, "s", "range");
        assert!(matches!(range.task, TaskSpec::Range { compare: true, .. }));
    }
    let commit = poll_kind(&mut world, "d", "commit");
    assert!(matches!(commit.task, TaskSpec::Commit { in_place: true, .. }));
    let metadata = [(EntryAction::Metadata, Tally { count: 1, bytes: 0 })];
    let report = TaskReport { actions: metadata.into(), ..all_done(&commit, "d") };
    world.post_result(result(&commit, true, report));
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped, end.files_done), (SyncState::Completed, 1, 0));
    assert_eq!((end.transferred_bytes, end.bytes_skipped), (0, end.total_bytes));
    assert_eq!(end.actions[&EntryAction::Metadata].count, 1);
}

#[test]
fn a_large_file_that_differs_is_sent_and_that_is_no_change_of_the_source() {
    let options = SyncOptions { compare: Compare::Checksum, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    complete_kind(&mut world, "s", "range");
    let late = poll_kind(&mut world, "s", "range");
    let range = poll_kind(&mut world, "s", "range");
    let differs = TaskReport { differs: true, ..TaskReport::default() };
    world.post_result(result(&range, true, differs));
    let stale = world.post_result(result(&late, true, all_done(&late, "d")));
    assert_eq!(stale, Some(ResultOutcome::Stale), "the result of an ended task is stale");
    for _ in 0..3 {
        let range = poll_kind(&mut world, "s", "range");
        let TaskSpec::Range { length, compare: false, .. } = range.task else { panic!() };
        let sent = length.saturating_sub(KEPT);
        let delta = TaskReport { bytes_sent: sent, bytes_kept: KEPT, ..all_done(&range, "d") };
        world.post_result(result(&range, true, delta));
    }
    assert!(matches!(
        complete_kind(&mut world, "d", "commit").task,
        TaskSpec::Commit { in_place: false, .. }
    ));
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_done), (SyncState::Completed, 1));
    assert_eq!((end.transferred_bytes, end.kept_bytes), (end.total_bytes, 3 * KEPT));
    assert_eq!(end.sent_bytes, end.total_bytes - 3 * KEPT);
}

#[test]
fn what_an_equal_file_became_before_its_metadata_were_repaired_is_sent() {
    let options = SyncOptions { compare: Compare::Checksum, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![large_item(1)], None));
    complete_kind(&mut world, "s", "range");
    let commit = poll_kind(&mut world, "d", "commit");
    let gone = TaskReport { part_lost: true, ..TaskReport::default() };
    world.post_result(result(&commit, true, gone));
    let range = complete_kind(&mut world, "s", "range");
    assert!(matches!(range.task, TaskSpec::Range { compare: false, .. }));
    complete_kind(&mut world, "d", "commit");
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").files_done, 1);
}

#[test]
fn one_name_of_a_large_file_is_sent_and_the_others_follow_as_links() {
    let (mut world, scan) = scanning();
    let work = vec![
        large_in_group(2, 1),
        large_in_group(2, 1),
        large_in_group(2, 1),
        large_in_group(1, 2),
    ];
    world.post_page(&scan, page(&scan, 0, work, scan_at("m")));
    for _ in 0..3 {
        complete_kind(&mut world, "s", "range");
    }
    assert_eq!(world.poll("s", "1"), None, "the other names wait, the scan is out");
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    complete_kind(&mut world, "d", "commit");
    for _ in 0..2 {
        let link = complete_kind(&mut world, "s", "copy");
        assert!(matches!(link.task, TaskSpec::Copy { files: 1, dirs: 0, .. }));
    }
    // A name that is found later.
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[scan.assignment_id]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.post_page(&scan, page(&scan, 1, vec![large_in_group(2, 1)], None));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "commit");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_total, end.files_done), (SyncState::Completed, 5, 5));
    assert!(world.blobs.is_empty() && !world.records.keys().any(|key| key.starts_with("g/")));
}

#[test]
fn when_one_name_of_a_large_file_cannot_be_copied_the_next_one_is_tried() {
    let (mut world, scan) = scanning();
    world.post_page(
        &scan,
        page(
            &scan,
            0,
            vec![large_in_group(1, 1), large_in_group(1, 1), large_in_group(1, 1)],
            None,
        ),
    );
    let range = poll_kind(&mut world, "s", "range");
    let gone = TaskReport { failures: vec![error(ErrorClass::Vanished)], ..TaskReport::default() };
    world.post_result(result(&range, true, gone));
    let second = poll_kind(&mut world, "s", "range");
    assert_ne!(second.task_id, range.task_id);
    // It is small now: names that wait for it do not wait for ever.
    let small = TaskReport { replacement: Some(copy_item(1, 0)), ..TaskReport::default() };
    world.post_result(result(&second, true, small));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "s", "range");
    for _ in 0..3 {
        let task = world.poll("d", "1").expect("discards and a commit");
        world.post_result(result(&task, true, all_done(&task, "d")));
    }
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.files_total, end.files_done, end.files_failed), (3, 2, 1));
    assert_eq!(end.outcome, Some(SyncOutcome::VanishedOnly));
}

#[test]
fn vanished_or_changed_files_have_an_outcome_of_their_own() {
    for (classes, outcome) in [
        (vec![ErrorClass::Vanished, ErrorClass::Changed], SyncOutcome::VanishedOnly),
        (vec![ErrorClass::Vanished, ErrorClass::Permanent], SyncOutcome::Partial),
    ] {
        let (mut world, scan) = scanning();
        let errors = classes.into_iter().map(error).collect();
        world.post_page(&scan, ScanPage { errors, ..page(&scan, 0, vec![copy_item(1, 0)], None) });
        complete_kind(&mut world, "s", "copy");
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(outcome)));
    }
}

#[test]
fn the_read_back_pass_changes_no_counter_of_the_copy() {
    let options = SyncOptions { verify: Verify::Readback, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    assert!(!claims(&world, &scan).rules.readback);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 1), large_item(2)], None));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "d", "commit");
    let first = world.progress("demo");
    assert_eq!(first.phase, SyncPhase::Verifying);
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let scan = poll_kind(&mut world, "s", "scan");
    assert_eq!(scan.options.compare, Compare::Checksum);
    let rules = claims(&world, &scan).rules;
    assert!(rules.readback && rules.compare == Compare::Checksum);
    world.post_page(
        &scan,
        page(&scan, 0, vec![copy_item(3, 1), large_item(2), large_item(1)], None),
    );
    let copy = poll_kind(&mut world, "s", "copy");
    let repaired = TaskReport {
        files_done: 1,
        files_skipped: 2,
        dirs_done: 1,
        bytes_done: 10,
        bytes_sent: 4,
        actions: [(EntryAction::Update, Tally { count: 1, bytes: 10 })].into(),
        ..TaskReport::default()
    };
    world.post_result(result(&copy, true, repaired));
    for _ in 0..2 {
        complete_kind(&mut world, "s", "range");
    }
    let broken = poll_kind(&mut world, "s", "range");
    world.post_result(result(&broken, true, TaskReport { differs: true, ..TaskReport::default() }));
    complete_kind(&mut world, "s", "range");
    complete_kind(&mut world, "d", "commit");
    complete_kind(&mut world, "d", "commit");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!((end.verified_files, end.repaired_files), (3, 2));
    assert_eq!(
        (end.files_total, end.files_done, end.dirs_done, end.transferred_bytes, end.total_bytes),
        (first.files_total, 4, 1, first.transferred_bytes, first.total_bytes)
    );
    assert!(end.actions.is_empty() && end.sent_bytes == 4);
}

#[test]
fn what_cannot_be_read_back_fails_the_sync_and_what_failed_before_is_not_read_back() {
    let options = SyncOptions { verify: Verify::Readback, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options.clone());
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    complete_kind(&mut world, "s", "copy");
    let scan = poll_kind(&mut world, "s", "scan");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&scan, ScanPage { errors, ..page(&scan, 0, vec![], None) });
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
    assert_eq!((end.files_total, end.files_done, end.files_failed), (1, 1, 0));

    let (mut world, scan) = scanning_with(options);
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&scan, ScanPage { errors, ..page(&scan, 0, vec![copy_item(1, 0)], None) });
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    let reason = world.progress("demo").reason.unwrap();
    assert!(reason.contains("nothing was read back"), "{reason}");
}

#[test]
fn link_anchors_are_removed_however_the_sync_ends() {
    let linked = |copy: &Assignment| TaskReport { needs_clean_up: true, ..all_done(copy, "d") };
    // After success and after a failure.
    for class in [None, Some(ErrorClass::Permanent)] {
        let (mut world, scan) = scanning();
        let errors = class.into_iter().map(error).collect();
        world.post_page(&scan, ScanPage { errors, ..page(&scan, 0, vec![copy_item(2, 0)], None) });
        let copy = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&copy, true, linked(&copy)));
        world.restart();
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
        complete_kind(&mut world, "s", "clean_up");
        complete_kind(&mut world, "d", "flush");
        assert!(world.progress("demo").state.is_final());
    }
    // A failure is recorded.
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    world.post_result(result(&copy, true, linked(&copy)));
    let clean_up = poll_kind(&mut world, "s", "clean_up");
    let failures = vec![error(ErrorClass::Permanent)];
    world.post_result(result(&clean_up, true, TaskReport { failures, ..TaskReport::default() }));
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").outcome, Some(SyncOutcome::Partial));
    // After a cancel, when no worker can write any more; also for a batch that will never be
    // reported.
    for reported in [true, false] {
        let (mut world, scan) = scanning();
        world
            .post_page(&scan, page(&scan, 0, vec![copy_item(2, 0), copy_item(1, 0)], scan_at("m")));
        let copy = poll_kind(&mut world, "s", "copy");
        if reported {
            world.post_result(result(&copy, true, linked(&copy)));
        }
        world.apply(Event::CancelSync("demo".parse().unwrap()));
        assert_eq!(world.poll("s", "1"), None, "somebody may still be writing");
        for _ in 0..7 {
            world.advance(5_000);
            world.heartbeat("s", "1", &["/src"], &[]);
            world.heartbeat("d", "1", &["/dst"], &[]);
        }
        complete_kind(&mut world, "s", "clean_up");
        if !reported {
            complete_kind(&mut world, "d", "discard");
        }
        assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
        assert_eq!(world.progress("demo").state, SyncState::Cancelled);
    }
}

#[test]
fn notes_and_actions_count_with_the_result_that_brings_them_and_are_bounded() {
    let (mut world, scan) = scanning();
    let note = |count: u64, paths: usize| {
        let paths = (0..paths).map(|i| BytePath(format!("p{i}").into_bytes())).collect();
        EntryWarning { count, paths }
    };
    let skipped = [("left out: links".to_owned(), note(4, 1))];
    let first =
        ScanPage { warnings: skipped.into(), ..page(&scan, 0, vec![copy_item(2, 0)], None) };
    world.post_page(&scan, first);
    let copy = poll_kind(&mut world, "s", "copy");
    let many = |tag: &str| (0..70).map(|i| (format!("{tag}{i:03}"), note(u64::MAX, 50))).collect();
    let report = TaskReport {
        actions: [(EntryAction::Create, Tally { count: 2, bytes: u64::MAX })].into(),
        warnings: many("a"),
        ..all_done(&copy, "d")
    };
    let failed = TaskReport { files_done: 0, ..report.clone() };
    world.post_result(result(&copy, false, failed));
    assert_eq!(world.progress("demo").warnings.len(), 1, "it failed: its notes are void");
    world.advance(5_000);
    for name in [("s", "/src"), ("d", "/dst")] {
        world.heartbeat(name.0, "1", &[name.1], &[]);
    }
    let copy = poll_kind(&mut world, "s", "copy");
    let done_now = result(&copy, true, report);
    world.post_result(done_now.clone());
    assert_eq!(world.post_result(done_now), Some(ResultOutcome::Stale));
    let progress = world.progress("demo");
    assert_eq!(progress.actions[&EntryAction::Create].count, 2);
    assert_eq!(progress.warnings.len(), 65, "and one line for the others");
    assert_eq!(progress.warnings["other causes"].count, u64::MAX);
    assert!(progress.warnings.values().all(|n| n.paths.len() <= EntryWarning::MAX_PATHS));
}

#[test]
fn a_report_of_more_actions_than_entries_is_rejected() {
    for actions in [
        [
            (EntryAction::Create, Tally { count: 3, bytes: 0 }),
            (EntryAction::Skip, Tally::default()),
        ],
        [
            (EntryAction::Create, Tally { count: u64::MAX, bytes: 0 }),
            (EntryAction::Skip, Tally { count: 9, bytes: 0 }),
        ],
        [
            (EntryAction::Skip, Tally::default()),
            (EntryAction::Delete, Tally { count: 1, bytes: 0 }),
        ],
    ] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
        let copy = poll_kind(&mut world, "s", "copy");
        let report = TaskReport { actions: actions.into(), ..all_done(&copy, "d") };
        world.post_result(result(&copy, true, report));
        assert_eq!(world.progress("demo").files_done, 0);
    }
}

#[test]
fn the_outcome_of_each_file_is_recorded_once_with_the_decision() {
    use FileState::*;
    let options = SyncOptions { record: true, verify: Verify::Readback, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let report = TaskReport {
        records: vec![record("a", Done), record("b", Skipped), record("c", Failed)],
        files_done: 1,
        files_skipped: 1,
        failures: vec![error(ErrorClass::Transient)],
        retry: Some(copy_item(1, 0)),
        ..TaskReport::default()
    };
    let first = result(&copy, true, report);
    world.post_result(first.clone());
    world.post_result(first);
    assert_eq!(listed(&mut world), ["a Done", "b Skipped"], "`c` is tried again");
    // A master that crashed after a write, before its decision was committed.
    world.lists.values_mut().for_each(|list| list.extend(b"{\"path\": \"never"));
    world.restart();
    world.advance(5_000);
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let copy = poll_kind(&mut world, "s", "copy");
    let report = TaskReport { records: vec![record("c", Done)], ..all_done(&copy, "d") };
    world.post_result(result(&copy, true, report));
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let report = TaskReport {
        records: vec![record("a", Skipped), record("b", Done)],
        failures: vec![error(ErrorClass::Vanished)],
        files_done: 1,
        ..TaskReport::default()
    };
    world.post_result(result(&copy, true, report));
    assert_eq!(
        listed(&mut world),
        ["a Done", "b Skipped", "c Done", "b Done", "x Failed"],
        "the second pass reports what it found otherwise"
    );
    let listing = world.state.record_log_info(&"demo".parse().unwrap()).unwrap();
    let from = listing.readback_from.unwrap() as usize;
    let list = &world.lists[&listing.sync];
    assert_eq!(list[from..].iter().filter(|b| **b == b'\n').count(), 2);
}

#[test]
fn what_was_deleted_is_recorded_when_it_is_and_in_a_dry_run_when_it_would_be() {
    for dry_run in [false, true] {
        let options = SyncOptions { dry_run, record: true, ..mirror(DeleteOptions::default()) };
        let (mut world, scan) = scanning_with(options);
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 0)]));
        complete_kind(&mut world, "s", "copy");
        let prune = |world: &mut World| {
            let prune = poll_kind(world, "s", "prune");
            let records = vec![record("old", FileState::Deleted)];
            world.post_page(&prune, ScanPage { records, ..prune_page(&prune, 2, 1) });
        };
        prune(&mut world);
        if !dry_run {
            complete_kind(&mut world, "d", "flush");
            prune(&mut world);
        }
        assert_eq!(listed(&mut world), ["old Deleted"], "{dry_run}");
    }
}

#[test]
fn a_record_log_that_cannot_be_written_is_reported_and_stops_nothing() {
    let options = SyncOptions { record: true, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    let records = || vec![record("a", FileState::Done)];
    for _ in 0..2 {
        let copy = poll_kind(&mut world, "s", "copy");
        let report = TaskReport { records: records(), ..all_done(&copy, "d") };
        world.post_result(result(&copy, true, report));
        let sync = SyncNo(1);
        world.apply(Event::FileRecordsLost { sync, reason: "the disk is full".into() });
    }
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_done), (SyncState::Completed, 2));
    assert!(end.reason.unwrap().contains("the disk is full"));
    assert_eq!(world.lists[&SyncNo(1)].iter().filter(|b| **b == b'\n').count(), 1);
}

#[test]
fn a_deleted_sync_deletes_its_record_log() {
    let options = SyncOptions { record: true, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let records = vec![record("a", FileState::Done)];
    world.post_result(result(&copy, true, TaskReport { records, ..all_done(&copy, "d") }));
    assert_eq!(world.lists.len(), 1);
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    assert!(world.lists.is_empty() && world.state.syncs.is_empty());
}

#[test]
fn the_digest_of_a_present_large_file_is_computed_range_by_range() {
    let options = SyncOptions { manifest: true, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![large_item(3)], None));
    let first = poll_kind(&mut world, "s", "range");
    assert!(matches!(first.task, TaskSpec::Range { offset: 0, compare: true, .. }));
    assert_eq!(claims(&world, &first).rules.compare, Compare::Checksum, "it is not hashed whole");
    assert_eq!(
        world.poll("s", "1"),
        None,
        "the result of one decides whether the others are assigned"
    );
    world.post_result(result(&first, true, all_done(&first, "d")));
    for _ in 0..2 {
        complete_kind(&mut world, "s", "range");
    }
    let commit = poll_kind(&mut world, "d", "commit");
    let TaskSpec::Commit { in_place: true, chain, .. } = &commit.task else { panic!() };
    assert_eq!(chain.0.len(), 96);
    assert_eq!(claims(&world, &commit).rules.compare, Compare::SizeTime);
    world.post_result(result(&commit, true, all_done(&commit, "d")));
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped), (SyncState::Completed, 1));
}

#[test]
fn a_worker_that_may_have_created_directories_for_a_comparison_flushes() {
    let options = SyncOptions { compare: Compare::Checksum, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![large_item(1)], None));
    poll_kind(&mut world, "s", "range");
    world.advance(40_000);
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let range = poll_kind(&mut world, "s", "range");
    let equal = TaskReport { writers: vec![], ..all_done(&range, "d") };
    world.post_result(result(&range, true, equal));
    let commit = poll_kind(&mut world, "d", "commit");
    world.post_result(result(&commit, true, TaskReport::default()));
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}
