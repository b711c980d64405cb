//! Files blocked by a directory that is not empty.

use super::*;
use crate::wire::entry_report::{EntryAction, Tally};

/// A directory that is not empty is in the place of a file.
fn blocked_report() -> TaskReport {
    let failure = EntryError {
        side: Some(Side::Destination),
        operation: "replace".into(),
        errno: Some("EISDIR".into()),
        ..error(ErrorClass::Permanent)
    };
    TaskReport { files_skipped: 1, failures: vec![failure], ..TaskReport::default() }
}

#[test]
fn an_entry_blocked_by_a_directory_is_copied_after_its_deletion() {
    let replaced = TaskReport {
        files_done: 1,
        files_skipped: 1,
        actions: [
            (EntryAction::Update, Tally { count: 1, bytes: 10 }),
            (EntryAction::Skip, Tally { count: 1, bytes: 10 }),
        ]
        .into(),
        ..TaskReport::default()
    };
    // What the second walk finds, how many are done, skipped and failed then.
    for (second, counts) in [
        (replaced, (1, 1, 0)),
        (TaskReport { files_skipped: 2, ..TaskReport::default() }, (0, 2, 0)),
        (blocked_report(), (0, 1, 1)),
    ] {
        let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 0)]));
        let copy = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&copy, true, blocked_report()));
        assert_eq!(world.progress("demo").files_failed, 0, "it is not given up");
        // A restart does not forget it.
        world.restart();
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
        let count = poll_kind(&mut world, "s", "prune");
        world.post_page(&count, prune_page(&count, 9, 3));
        let apply = poll_kind(&mut world, "s", "prune");
        world.post_page(&apply, prune_page(&apply, 9, 3));
        let scan = poll_kind(&mut world, "s", "scan");
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 0)]));
        let copy = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&copy, true, second));
        while let Some(flush) = world.poll("d", "1") {
            world.post_result(result(&flush, true, TaskReport::default()));
        }
        let end = world.progress("demo");
        assert_eq!((end.files_done, end.files_skipped, end.files_failed), counts, "{end:#?}");
        assert_eq!(end.files_total, 2);
        let full = counts.2 == 0;
        assert_eq!(
            end.outcome,
            Some(if full { SyncOutcome::Full } else { SyncOutcome::Partial }),
            "{end:#?}"
        );
    }
}

#[test]
fn an_entry_blocked_by_a_directory_fails_where_nothing_is_deleted() {
    let at_most = |max| DeleteOptions { max, ..DeleteOptions::default() };
    let failed = || vec![error(ErrorClass::Permanent)];
    for (max, extra, errors) in
        [(Some(2), 3, vec![]), (None, 0, vec![]), (None, 3, failed()), (Some(2), 3, failed())]
    {
        let (mut world, scan) = scanning_with(mirror(at_most(max)));
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 0)]));
        let copy = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&copy, true, blocked_report()));
        let count = poll_kind(&mut world, "s", "prune");
        world.post_page(&count, ScanPage { errors, ..prune_page(&count, 9, extra) });
        assert_eq!(world.poll("s", "1"), None, "nothing is walked again in vain");
        while let Some(flush) = world.poll("d", "1") {
            world.post_result(result(&flush, true, TaskReport::default()));
        }
        let end = world.progress("demo");
        assert_eq!((end.files_skipped, end.files_failed), (1, 1), "{end:#?}");
        assert_eq!(end.outcome, Some(SyncOutcome::Partial));
        assert!(end.errors.iter().any(|e| e.errno.as_deref() == Some("EISDIR")), "{end:#?}");
    }
}

#[test]
fn a_copied_file_replaced_by_a_directory_before_the_read_back_fails() {
    let occupied = |path: String| {
        let failure = blocked_report().failures.remove(0);
        EntryError { path: BytePath(path.into_bytes()), ..failure }
    };
    // How many entries are set aside at the copy, the names found so at the read-back, and whether one was copied.
    for (set_aside, again, was_copied) in [
        (0, vec![0], true),
        (2, vec![0, 1], false),
        (2, vec![0, 2], true),
        (2, vec![2], true),
        (150, (0..150).collect::<Vec<u64>>(), false),
        (150, (0..151).collect(), true),
    ] {
        let options = SyncOptions {
            verify: crate::wire::options::Verify::Readback,
            ..mirror(DeleteOptions::default())
        };
        let (mut world, scan) = scanning_with(options);
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(200, 0)]));
        let report = |failed: Vec<u64>, done: bool| {
            let rest = 200 - failed.len() as u64;
            let (files_done, files_skipped) = if done { (rest, 0) } else { (0, rest) };
            let failures = failed.into_iter().map(|n| occupied(format!("f{n}"))).collect();
            TaskReport { files_done, files_skipped, failures, ..TaskReport::default() }
        };
        let copy = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&copy, true, report((0..set_aside).collect(), true)));
        let scan = poll_kind(&mut world, "s", "scan");
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(200, 0)]));
        let copy = poll_kind(&mut world, "s", "copy");
        let case = format!("{set_aside} set aside, {} at the read-back", again.len());
        let found = again.len() as u64;
        world.post_result(result(&copy, true, report(again, false)));
        let now = world.progress("demo");
        let failed = now.failed_steps.get(&FailedStep::ReadBack).copied().unwrap_or(0);
        assert_eq!(failed, if was_copied { found } else { 0 }, "{case}: {now:?}");
        assert_eq!(now.state == SyncState::Failed, was_copied, "{case}: {now:?}");
    }
}
