//! Failures are listed by name, whether or not file records were requested.

use super::*;

/// The sync `demo` with a batch of `files`, which `s` holds.
fn copying(files: u64) -> (World, Assignment) {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(files, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    (world, copy)
}

fn failures(class: ErrorClass, names: std::ops::Range<u64>) -> Vec<EntryError> {
    let path = |n: u64| BytePath(format!("dir/file {n}").into_bytes());
    names.map(|n| EntryError { path: path(n), ..error(class) }).collect()
}

/// The names of the stored failures of the first sync.
fn names(world: &World) -> Vec<String> {
    let pages = world.state.syncs.values().next().unwrap().failure_pages();
    let entries = pages.keys.iter().flat_map(|key| decode_failures(&world.blobs[key]).unwrap());
    entries.map(|line| line.path.to_string()).collect()
}

fn expected(names: std::ops::Range<u64>) -> Vec<String> {
    names.map(|n| format!("dir/file {n}")).collect()
}

#[test]
fn failures_are_listed_with_reasons_across_restarts_until_the_sync_is_deleted() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1500, 0), copy_item(700, 0)], None));
    for range in [0..1500, 1500..2200] {
        let copy = poll_kind(&mut world, "s", "copy");
        let failures = failures(ErrorClass::Permanent, range);
        let report = TaskReport { failures, ..TaskReport::default() };
        world.post_result(result(&copy, true, report));
        world.restart();
        for (worker, path) in [("s", "/src"), ("d", "/dst")] {
            world.heartbeat(worker, "1", &[path], &[]);
        }
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.errors.len(), end.failure_count()), (SyncState::Failed, 100, 2200));
    assert_eq!(names(&world), expected(0..2200));
    let keys: Vec<_> = world.blobs.keys().filter(|key| key.starts_with("e/")).cloned().collect();
    assert!(keys.len() > 2, "they are in pages: {keys:?}");
    assert!(
        world.blobs.values().all(|page| page.len() < 64 << 10),
        "no page is rewritten for ever"
    );
    assert!(world.records["s/1"].len() < 64 << 10, "nor is the list in the record of the sync");
    let reasons = keys.iter().flat_map(|key| decode_failures(&world.blobs[key]).unwrap());
    for FailureLine { path, error, .. } in reasons {
        let entry = failed_file_record(path, error);
        let error = entry.error.unwrap();
        assert_eq!((entry.state, error.action()), (FileState::Failed, "open source".to_owned()));
        assert_eq!(error.message, "permission denied");
    }
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    assert!(world.blobs.is_empty());
}

#[test]
fn an_ended_sync_keeps_its_failures_as_long_as_it_is_kept_and_no_page_in_memory() {
    let (mut world, copy) = copying(3);
    let report =
        TaskReport { failures: failures(ErrorClass::Permanent, 0..3), ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    assert_eq!(names(&world), expected(0..3));
    let stored = world.state.syncs.values().next().unwrap().failure_list.clone();
    let restored: super::super::failure_list::FailureList =
        serde_json::from_value(serde_json::to_value(&stored).unwrap()).unwrap();
    assert_eq!(restored, stored, "what is not stored is empty");
    world.skip_days(61);
    world.apply(Event::Tick);
    assert!(world.state.syncs.is_empty() && world.blobs.is_empty());
}

#[test]
fn an_entry_done_by_a_later_attempt_is_not_listed() {
    let (mut world, copy) = copying(3);
    let report = TaskReport {
        files_done: 1,
        failures: failures(ErrorClass::Transient, 0..2),
        retry: Some(copy_item(2, 0)),
        ..TaskReport::default()
    };
    world.post_result(result(&copy, true, report));
    assert_eq!(names(&world), expected(0..0));
    world.advance(5_000);
    world.heartbeat("s", "1", &["/src"], &[]);
    let again = poll_kind(&mut world, "s", "copy");
    let report = TaskReport {
        files_done: 1,
        failures: failures(ErrorClass::Permanent, 1..2),
        ..TaskReport::default()
    };
    world.post_result(result(&again, true, report));
    assert_eq!(names(&world), expected(1..2));
}

#[test]
fn a_full_failure_list_is_cut_and_the_others_are_counted() {
    let (mut world, copy) = copying(9);
    world.state.settings.max_failed_entries = 5;
    let report =
        TaskReport { failures: failures(ErrorClass::Permanent, 0..9), ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    let end = world.progress("demo");
    assert_eq!((end.failure_count(), end.failures_unlisted), (9, 4));
    assert_eq!(names(&world), expected(0..5));
}

#[test]
fn a_restarted_sync_clears_its_failures() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0), copy_item(1, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let report =
        TaskReport { failures: failures(ErrorClass::Permanent, 0..2), ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    assert_eq!(names(&world), expected(0..2));
    world.apply(Event::StoreLost);
    assert_eq!(world.progress("demo").failure_count(), 0);
    assert!(world.blobs.keys().all(|key| !key.starts_with("e/")), "{:?}", world.blobs.keys());
}

/// Its workers never reported which of its entries failed.
#[test]
fn the_manifest_of_a_batch_that_failed_as_a_whole_is_kept_for_its_names() {
    for room in [true, false] {
        let preserve = crate::wire::preserve::Preserve::NONE;
        let (mut world, scan) = scanning_with(SyncOptions { preserve, ..SyncOptions::default() });
        world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 0)], None));
        let copy = poll_kind(&mut world, "s", "copy");
        world.state.settings.max_retries = 0;
        world.state.settings.max_failed_entries = if room { 3 } else { 2 };
        world.post_result(result(&copy, false, TaskReport::default()));
        let end = world.progress("demo");
        // Without space for its names one line stands for the batch.
        let unlisted = if room { 0 } else { 2 };
        assert_eq!((end.failure_count(), end.failures_unlisted), (3, unlisted));
        let manifests = world.blobs.keys().filter(|key| key.starts_with("m/")).count();
        assert_eq!(manifests, usize::from(room));
        world.restart();
        world.apply(Event::DeleteSync("demo".parse().unwrap()));
        assert!(world.blobs.is_empty());
    }
}

#[test]
fn a_large_file_of_which_a_range_failed_without_an_error_of_its_own_is_listed_by_name() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_with_manifest("d/large")], None));
    world.state.settings.max_retries = 0;
    let range = poll_kind(&mut world, "s", "range");
    world.post_result(result(&range, false, TaskReport::default()));
    assert_eq!(names(&world), ["d/large"]);
}
