//! What a dry run reports is what the sync does.

use super::*;
use crate::wire::entry_report::{EntryAction, Tally};
use crate::wire::options::{DeleteOptions, SyncOptions};
use crate::wire::task::RootState;

fn dry_run_options(delete: DeleteOptions) -> SyncOptions {
    SyncOptions { dry_run: true, record: true, ..mirror(delete) }
}

#[test]
fn a_dry_run_writes_nothing_and_counts_what_would_be_done() {
    let options = SyncOptions { dry_run: true, ..mirror(DeleteOptions::default()) };
    let (mut world, scan) = scanning_with(options);
    assert!(claims(&world, &scan).rules.dry_run);
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(2, 1), large_item(3)]));
    let copy = poll_kind(&mut world, "s", "copy");
    let would = TaskReport {
        actions: [
            (EntryAction::Create, Tally { count: 2, bytes: 20 }),
            (EntryAction::Skip, Tally { count: 1, bytes: 0 }),
        ]
        .into(),
        needs_clean_up: true,
        ..all_done(&copy, "d")
    };
    world.post_result(result(&copy, true, would));
    let whole = complete_kind(&mut world, "s", "copy");
    assert!(matches!(whole.task, TaskSpec::Copy { files: 1, .. }), "it is not cut apart");
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, prune_page(&count, 10, 9));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!(end.actions[&EntryAction::Create], Tally { count: 2, bytes: 20 });
    assert_eq!(end.actions[&EntryAction::Delete], Tally { count: 9, bytes: 90 });
    assert!(end.reason.unwrap().contains("would refuse to delete (exit 25): 9 of the 10"));
    assert_eq!(
        world.poll("s", "1").or_else(|| world.poll("d", "1")),
        None,
        "no clean-up, no flush"
    );
}

#[test]
fn a_dry_run_names_the_guard_that_stops_the_sync_first() {
    let (mut world, scan) = scanning_with(dry_run_options(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", true, vec![copy_item(0, 1)]));
    complete_kind(&mut world, "s", "copy");
    let count = poll_kind(&mut world, "s", "prune");
    let root = Some(RootState { file_system: "fs-1".into(), empty: true });
    world.post_page(&count, ScanPage { root, ..prune_page(&count, 10, 9) });
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    let reason = end.reason.unwrap();
    assert!(
        reason.contains("stop before it copies (exit 8): the source /src/a is empty"),
        "{reason}"
    );
}

#[test]
fn a_dry_run_counts_what_takes_the_place_of_a_full_directory_as_created() {
    let (mut world, scan) = scanning_with(dry_run_options(DeleteOptions::default()));
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 0)]));
    let copy = poll_kind(&mut world, "s", "copy");
    let failure = EntryError {
        path: BytePath(b"k".to_vec()),
        side: Some(Side::Destination),
        operation: "replace".into(),
        errno: Some("EISDIR".into()),
        ..error(ErrorClass::Permanent)
    };
    let before = world.state.syncs[&SyncNo(1)].record_log.length;
    let report = TaskReport { failures: vec![failure], ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    assert!(world.state.syncs[&SyncNo(1)].record_log.length > before, "it is recorded");
    let count = poll_kind(&mut world, "s", "prune");
    world.post_page(&count, prune_page(&count, 9, 2));
    let end = world.progress("demo");
    assert_eq!((end.outcome, end.files_done), (Some(SyncOutcome::Full), 1), "{end:#?}");
    assert_eq!(end.actions[&EntryAction::Create].count, 1, "{end:#?}");
}
