//! What is deleted, and all that keeps it from being.

use super::*;
use crate::wire::entry_report::{EntryAction, Tally};
use crate::wire::options::{DeleteOptions, SyncOptions};
use crate::wire::sync::SyncPhase;
use crate::wire::task::RootState;

#[test]
fn a_mirror_counts_first_and_then_deletes_and_flushes_what_it_deleted() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 1)]));
    let copy = poll_kind(&mut world, "s", "copy");
    let skipped = TaskReport { files_skipped: 2, dirs_done: 1, ..TaskReport::default() };
    world.post_result(result(&copy, true, skipped));
    let count = poll_kind(&mut world, "s", "prune");
    assert_eq!(count.task, TaskSpec::Prune { dir: RelPath::root(), cursor: None, apply: false });
    assert_eq!(world.progress("demo").phase, SyncPhase::Pruning);
    let gone = ScanPage {
        subtrees: vec![RelPath::new("big").unwrap()],
        records: vec![record("old", FileState::Deleted)],
        ..prune_page(&count, 3, 1)
    };
    world.post_page(&count, gone);
    let part = poll_kind(&mut world, "s", "prune");
    world.post_page(&part, prune_page(&part, 1, 1));
    assert!(world.progress("demo").actions.is_empty(), "nothing is deleted yet");
    let apply = poll_kind(&mut world, "s", "prune");
    assert!(matches!(apply.task, TaskSpec::Prune { apply: true, .. }));
    assert!(claims(&world, &apply).rules.delete);
    world.post_page(&apply, prune_page(&apply, 4, 2));
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!(end.actions[&EntryAction::Delete], Tally { count: 2, bytes: 20 });
}

#[test]
fn a_mirror_that_found_nothing_left_to_delete_flushes_nothing() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 1)]));
    let copy = poll_kind(&mut world, "s", "copy");
    let skipped = TaskReport { files_skipped: 2, dirs_done: 1, ..TaskReport::default() };
    world.post_result(result(&copy, true, skipped));
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, prune_page(&count, 3, 1));
    let apply = poll_kind(&mut world, "s", "prune");
    // Another process deleted it meanwhile.
    world.post_page(&apply, prune_page(&apply, 2, 0));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert!(end.actions.is_empty());
}

#[test]
fn each_limit_of_a_mirror_is_exact_and_names_the_option_that_allows_more() {
    let percent = |n| DeleteOptions { max_percent: n, ..DeleteOptions::default() };
    let at_most = |n| DeleteOptions { max: Some(n), max_percent: 100, ..DeleteOptions::default() };
    for (delete, seen, extra, said) in [
        (percent(50), 100, 50, None),
        (percent(50), 100, 51, Some("--max-delete-percent 51")),
        (percent(0), 1_000, 1, Some("--max-delete-percent 1 (")),
        (percent(33), 3, 1, Some("--max-delete-percent 34")),
        (percent(50), u64::MAX, u64::MAX, Some("--max-delete-percent 100")),
        (percent(100), 5, 5, None),
        (at_most(3), 100, 3, None),
        (at_most(3), 100, 4, Some("--max-delete 4")),
        (at_most(0), 9, 0, None),
    ] {
        let (mut world, scan) = scanning_with(mirror(delete));
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
        complete_kind(&mut world, "s", "copy");
        let count = poll_kind(&mut world, "s", "prune");
        world.post_page(&count, prune_page(&count, seen, extra));
        if said.is_none() && extra > 0 {
            complete_kind(&mut world, "d", "flush");
            let apply = poll_kind(&mut world, "s", "prune");
            world.post_page(&apply, prune_page(&apply, seen, extra));
        }
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        let Some(said) = said else {
            assert_eq!(end.state, SyncState::Completed, "{extra} of {seen}");
            continue;
        };
        assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::DeleteStopped)));
        let reason = end.reason.unwrap();
        assert!(reason.contains(said) && reason.contains("nothing was deleted"), "{reason}");
        assert!(end.actions.is_empty() && end.files_done == 1);
    }
}

#[test]
fn an_empty_source_deletes_nothing_unless_that_is_allowed() {
    for (allowed, root, outcome) in [
        (false, Some(true), SyncOutcome::CopyStopped),
        (false, None, SyncOutcome::CopyStopped),
        (false, Some(false), SyncOutcome::Full),
        (true, Some(true), SyncOutcome::Full),
    ] {
        // What allows another file system allows no empty source.
        let delete = DeleteOptions {
            allow_empty_source: allowed,
            allow_new_source_fs: true,
            ..DeleteOptions::default()
        };
        let (mut world, scan) = scanning_with(mirror(delete));
        let stops = !allowed && root == Some(true);
        let root = root.map(|empty| RootState { file_system: "fs-1".into(), empty });
        let first = ScanPage { root, ..page(&scan, 0, vec![copy_item(0, 1)], None) };
        let action = world.post_page(&scan, first);
        assert_eq!(action == PageAction::Stop, stops, "before the root itself is written");
        if !stops {
            complete_kind(&mut world, "s", "copy");
        }
        if outcome == SyncOutcome::Full {
            let count = poll_kind(&mut world, "s", "prune");
            world.post_page(&count, prune_page(&count, 10, 1));
            complete_kind(&mut world, "d", "flush");
            let apply = poll_kind(&mut world, "s", "prune");
            world.post_page(&apply, prune_page(&apply, 10, 1));
        }
        if !stops {
            complete_kind(&mut world, "d", "flush");
        }
        let end = world.progress("demo");
        assert_eq!(end.outcome, Some(outcome));
        let says = end.reason.is_some_and(|r| r.contains("--allow-empty-source"));
        assert_eq!(says, outcome == SyncOutcome::CopyStopped);
    }
}

#[test]
fn a_source_that_is_filled_while_it_is_listed_is_not_empty() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let action = world.post_page(&scan, first_page(&scan, "fs-1", true, vec![copy_item(1, 1)]));
    assert_eq!(action, PageAction::Done);
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let first =
        ScanPage { next: scan_at("a"), ..first_page(&scan, "fs-1", true, vec![copy_item(0, 1)]) };
    assert_eq!(world.post_page(&scan, first), PageAction::Continue);
}

/// A mirror at the point where each guard stops it, and its message.
#[test]
fn every_guard_reports_what_was_copied_and_deleted() {
    let copied = |delete: DeleteOptions| {
        let (mut world, scan) = scanning_with(mirror(delete));
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
        complete_kind(&mut world, "s", "copy");
        world
    };
    let counted = |delete: DeleteOptions, extra| {
        let mut world = copied(delete);
        let count = poll_kind(&mut world, "s", "prune");
        world.post_page(&count, prune_page(&count, 10, extra));
        complete_kind(&mut world, "d", "flush");
        world
    };
    let root =
        |file_system: &str, empty| Some(RootState { file_system: file_system.to_owned(), empty });
    let all = DeleteOptions { max_percent: 100, ..DeleteOptions::default() };
    let two = DeleteOptions { max: Some(2), ..all.clone() };

    let (mut world, scan) = scanning_with(mirror(all.clone()));
    world.post_page(&scan, first_page(&scan, "fs-1", true, vec![copy_item(0, 1)]));
    let empty = world.progress("demo");

    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    run(&mut world, "a", SyncOptions::default(), "fs-1");
    let moved = run(&mut world, "b", mirror(all.clone()), "fs-2");

    let mut world = copied(all.clone());
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, ScanPage { root: root("fs-2", false), ..prune_page(&count, 10, 1) });
    complete_kind(&mut world, "d", "flush");
    let moved_later = world.progress("demo");

    let over = counted(two.clone(), 3).progress("demo");

    let mut world = counted(two.clone(), 2);
    let apply = poll_kind(&mut world, "s", "prune");
    world.post_page(
        &apply,
        ScanPage { next: Some(apply.task.clone()), ..prune_page(&apply, 10, 3) },
    );
    complete_kind(&mut world, "d", "flush");
    let more = world.progress("demo");

    // The worker checks before it deletes the first entry.
    let mut world = counted(two.clone(), 2);
    let apply = poll_kind(&mut world, "s", "prune");
    let emptied = ScanPage { root: root("fs-1", true), ..prune_page(&apply, 0, 0) };
    assert_eq!(world.post_page(&apply, emptied), PageAction::Stop);
    complete_kind(&mut world, "d", "flush");
    let emptied = world.progress("demo");

    // … and before it continues, when another worker has deleted some.
    let mut world = counted(two, 2);
    let apply = poll_kind(&mut world, "s", "prune");
    let some = ScanPage { subtrees: vec![RelPath::new("d").unwrap()], ..prune_page(&apply, 10, 1) };
    world.post_page(&apply, some);
    let part = poll_kind(&mut world, "s", "prune");
    world.post_page(&part, ScanPage { root: root("fs-2", true), ..prune_page(&part, 0, 0) });
    complete_kind(&mut world, "d", "flush");
    let half = world.progress("demo");

    for (end, outcome, says) in [
        (empty, SyncOutcome::CopyStopped, ["is empty", "nothing was copied, nothing was deleted"]),
        (
            moved,
            SyncOutcome::CopyStopped,
            ["(now fs-2, before fs-1)", "nothing was copied, nothing was"],
        ),
        (
            moved_later,
            SyncOutcome::DeleteStopped,
            ["fs-2", "everything was copied, nothing was deleted"],
        ),
        (
            over,
            SyncOutcome::DeleteStopped,
            ["at most 2", "everything was copied, nothing was deleted"],
        ),
        (
            more,
            SyncOutcome::DeleteStopped,
            ["than the limits", "everything was copied, 3 entries were"],
        ),
        (
            emptied,
            SyncOutcome::DeleteStopped,
            ["is empty", "everything was copied, nothing was deleted"],
        ),
        (
            half,
            SyncOutcome::DeleteStopped,
            ["is empty and", "everything was copied, 1 entry was deleted"],
        ),
    ] {
        assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(outcome)), "{says:?}");
        let reason = end.reason.unwrap();
        assert!(says.iter().all(|part| reason.contains(part)), "{says:?} in {reason}");
        assert_eq!(end.failed_steps.len(), 0, "a guard is no failure");
    }
}

#[test]
fn a_guard_during_a_recheck_does_not_report_a_complete_copy() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    complete_kind(&mut world, "s", "copy");
    let sync = world.state.syncs.values_mut().next().unwrap();
    sync.phase = phase::PhaseState::Readback;
    sync.recheck.begin(phase::PhaseState::Flush);
    let page = ScanPage {
        root: Some(RootState { file_system: "fs-2".into(), empty: false }),
        ..page(&scan, 0, vec![], None)
    };
    let stop = world.state.check_source_root(SyncNo(1), &page).unwrap();
    assert!(!stop.copy_complete && stop.reason.contains("not everything was copied"), "{stop:?}");
}

/// Runs a sync `id` that copies one file from a source on a file system.
fn run(world: &mut World, id: &str, options: SyncOptions, file_system: &str) -> SyncProgress {
    submit_with(world, id, options);
    let scan = poll_kind(world, "s", "scan");
    let action =
        world.post_page(&scan, first_page(&scan, file_system, false, vec![copy_item(1, 1)]));
    if action == PageAction::Done {
        complete_kind(world, "s", "copy");
        for _ in 0..9 {
            if let Some(prune) = world.poll("s", "1") {
                world.post_page(&prune, prune_page(&prune, 4, 1));
            } else if let Some(flush) = world.poll("d", "1") {
                world.post_result(result(&flush, true, all_done(&flush, "d")));
            }
        }
    }
    world.progress(id)
}

#[test]
fn a_source_on_another_file_system_than_before_halts_a_mirror_before_anything_is_copied() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let strict = || mirror(DeleteOptions::default());
    let free = mirror(DeleteOptions { allow_new_source_fs: true, ..DeleteOptions::default() });
    let other = mirror(DeleteOptions { allow_empty_source: true, ..DeleteOptions::default() });
    assert_eq!(run(&mut world, "a", SyncOptions::default(), "fs-1").state, SyncState::Completed);
    world.restart();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let halted = run(&mut world, "b", strict(), "fs-2");
    assert_eq!((halted.state, halted.outcome), (SyncState::Failed, Some(SyncOutcome::CopyStopped)));
    assert_eq!((halted.files_total, halted.files_done), (0, 0));
    let reason = halted.reason.unwrap();
    assert!(reason.contains("fs-1") && reason.contains("--allow-new-source-fs"), "{reason}");
    assert_eq!(run(&mut world, "g", other, "fs-2").outcome, Some(SyncOutcome::CopyStopped));
    let dry = SyncOptions { dry_run: true, ..strict() };
    let dry = run(&mut world, "c", dry, "fs-2");
    assert_eq!(dry.state, SyncState::Completed);
    assert!(dry.reason.unwrap().contains("fs-1"), "a dry run reports it, and changes no record");
    assert_eq!(run(&mut world, "d", free, "fs-2").state, SyncState::Completed);
    assert_eq!(run(&mut world, "e", strict(), "fs-2").state, SyncState::Completed);
    assert_eq!(run(&mut world, "f", strict(), "fs-1").outcome, Some(SyncOutcome::CopyStopped));
}

#[test]
fn a_source_that_goes_away_before_the_deletion_stops_it() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    let root = RootState { file_system: "fs-2".into(), empty: true };
    let action = world.post_page(&count, ScanPage { root: Some(root), ..prune_page(&count, 2, 1) });
    assert_eq!(action, PageAction::Stop);
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.outcome, end.files_done), (Some(SyncOutcome::DeleteStopped), 1));
}

#[test]
fn the_source_history_is_bounded_and_the_oldest_go() {
    let mut pairs = source_history::SourceHistory::default();
    let pair = |n: usize| request(None, &format!("/src/{n}"), "/dst");
    for n in 0..=source_history::MAX_REMEMBERED_SOURCES {
        pairs.remember(&pair(n), "fs".into(), n as i64);
    }
    assert_eq!(pairs.0.len(), source_history::MAX_REMEMBERED_SOURCES);
    assert_eq!(
        (pairs.last_file_system(&pair(0)), pairs.last_file_system(&pair(1))),
        (None, Some("fs"))
    );
}

#[test]
fn after_any_failure_nothing_is_deleted_and_the_reason_reports_it() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    let errors = vec![error(ErrorClass::Vanished)];
    world.post_page(
        &scan,
        ScanPage { errors, ..first_page(&scan, "fs-1", false, vec![copy_item(1, 0)]) },
    );
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::VanishedOnly)));
    assert!(end.reason.unwrap().contains("nothing was deleted"));

    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 0)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&count, ScanPage { errors, ..prune_page(&count, 9, 1) });
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.outcome, end.files_total), (Some(SyncOutcome::Partial), 1));
    assert!(end.reason.unwrap().contains("nothing was deleted"));
}

#[test]
fn a_deletion_goes_on_behind_its_last_page_on_another_worker_and_a_page_counts_once() {
    let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 0)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    let cursor = Cursor { after: RelPath::new("m").unwrap(), skip_contents: false };
    let behind =
        |apply| TaskSpec::Prune { dir: RelPath::root(), cursor: Some(cursor.clone()), apply };
    let first = ScanPage { next: Some(behind(false)), ..prune_page(&count, 50, 1) };
    assert_eq!(world.post_page(&count, first.clone()), PageAction::Continue);
    assert_eq!(world.post_page(&count, first), PageAction::Continue);
    world.restart();
    world.heartbeat("t", "1", &["/src"], &[]);
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("t", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    let again = poll_kind(&mut world, "t", "prune");
    assert_eq!((again.task_id, &again.task, again.attempt), (count.task_id, &behind(false), 2));
    world.post_page(&again, prune_page(&again, 50, 1));
    complete_kind(&mut world, "d", "flush");
    let apply = poll_kind(&mut world, "t", "prune");
    let bad = ScanPage { next: Some(behind(false)), ..prune_page(&apply, 1, 1) };
    let event = |page| Event::Page {
        worker: apply.worker_id.clone(),
        assignment: apply.assignment_id,
        page,
    };
    for bad in [
        bad,
        prune_page(&apply, 1, 2),
        page(&apply, 0, vec![copy_item(1, 0)], None),
        page(&apply, 0, vec![], scan_at("m")),
    ] {
        let reply = world.apply(event(bad));
        assert!(matches!(reply, Some(Reply::Refused(p)) if p.status == 422));
    }
    let bare = result(&apply, true, TaskReport::default());
    assert_eq!(world.post_result(bare), Some(ResultOutcome::Applied), "as one that failed");
    world.advance(5_000);
    let apply = poll_kind(&mut world, "t", "prune");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&apply, ScanPage { errors, ..prune_page(&apply, 100, 1) });
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!(
        (end.outcome, end.actions[&EntryAction::Delete].count),
        (Some(SyncOutcome::Partial), 1)
    );
    assert!(!end.reason.unwrap().contains("nothing was deleted"));
}

#[test]
fn what_the_source_loses_after_the_count_is_not_deleted_beyond_the_limits() {
    let delete = DeleteOptions { max: Some(3), max_percent: 100, ..DeleteOptions::default() };
    let (mut world, scan) = scanning_with(mirror(delete));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, prune_page(&count, 100, 2));
    complete_kind(&mut world, "d", "flush");
    let apply = poll_kind(&mut world, "s", "prune");
    let spawn = vec![RelPath::new("d").unwrap()];
    world.post_page(&apply, ScanPage { subtrees: spawn, ..prune_page(&apply, 50, 3) });
    let part = poll_kind(&mut world, "s", "prune");
    let next_dir = Some(part.task.clone());
    let page = ScanPage { next: next_dir, ..prune_page(&part, 50, 1) };
    assert_eq!(world.post_page(&part, page), PageAction::Stop);
    assert_eq!(world.poll("s", "1"), None, "no more is deleted");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::DeleteStopped)));
    assert_eq!(end.actions[&EntryAction::Delete].count, 4);
    assert!(end.reason.unwrap().contains("has lost entries since"));
}

#[test]
fn nothing_is_deleted_before_what_was_copied_is_on_stable_storage() {
    let counted = || {
        let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
        world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 1)]));
        complete_kind(&mut world, "s", "copy");
        let count = poll_kind(&mut world, "s", "prune");
        world.post_page(&count, prune_page(&count, 9, 1));
        let flush = poll_kind(&mut world, "d", "flush");
        assert_eq!(world.poll("s", "1"), None, "nothing is deleted yet");
        (world, flush)
    };
    let (mut world, flush) = counted();
    world.post_result(result(&flush, true, all_done(&flush, "d")));
    let apply = poll_kind(&mut world, "s", "prune");
    world.post_page(&apply, prune_page(&apply, 9, 1));
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);

    let (mut world, flush) = counted();
    let lost = TaskReport { failures: vec![error(ErrorClass::Transient)], ..TaskReport::default() };
    world.post_result(result(&flush, true, lost));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
    assert!(end.actions.is_empty(), "{end:?}");
}

#[test]
fn a_mirror_that_finds_more_than_its_percentage_while_it_deletes_halts() {
    let delete = DeleteOptions { max_percent: 10, ..DeleteOptions::default() };
    assert_eq!(delete.max, None);
    let (mut world, scan) = scanning_with(mirror(delete));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, prune_page(&count, 100, 2));
    complete_kind(&mut world, "d", "flush");
    let apply = poll_kind(&mut world, "s", "prune");
    let further = |n: u64| {
        let after = RelPath::new(format!("{n}")).unwrap();
        let cursor = Some(Cursor { after, skip_contents: false });
        Some(TaskSpec::Prune { dir: RelPath::root(), cursor, apply: true })
    };
    let page = |n, extra| ScanPage { page: n, next: further(n), ..prune_page(&apply, 50, extra) };
    assert_eq!(world.post_page(&apply, page(0, 10)), PageAction::Continue, "just the limit");
    assert_eq!(world.post_page(&apply, page(1, 1)), PageAction::Stop);
    assert_eq!(world.poll("s", "1"), None, "no more is deleted");
    complete_kind(&mut world, "d", "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::DeleteStopped)));
    assert_eq!(end.actions[&EntryAction::Delete].count, 11);
}
