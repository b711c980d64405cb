//! Hosts that are out of descriptors or memory: no entry is to blame for that.

use super::*;

/// Attempts that are not charged.
const FREE_RETRIES: u32 = 120;

fn shortage(errno: &str) -> Vec<EntryError> {
    vec![EntryError { errno: Some(errno.to_owned()), ..error(ErrorClass::Transient) }]
}

/// The result of a task that hit a shortage.
fn shortage_result(a: &Assignment, errno: &str) -> TaskResult {
    let mut report = TaskReport { failures: shortage(errno), ..TaskReport::default() };
    let success = matches!(a.task, TaskSpec::Copy { .. } | TaskSpec::Range { .. });
    if let TaskSpec::Copy { files, dirs, bytes } = a.task {
        let manifest = Base64Bytes(vec![1; 10]);
        report.retry = Some(WorkItem::Copy { manifest, files, dirs, bytes });
    }
    result(a, success, report)
}

/// Until the next try, however long it is put off.
fn advance(world: &mut World) {
    for _ in 0..7 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
}

/// As many attempts as are free hit a shortage.
fn fail_with_shortage(world: &mut World, worker: &str, kind: &str, errno: &str) {
    for _ in 0..FREE_RETRIES {
        let task = poll_kind(world, worker, kind);
        assert_eq!(world.post_result(shortage_result(&task, errno)), Some(ResultOutcome::Applied));
        advance(world);
    }
}

#[test]
fn a_shortage_of_descriptors_or_memory_costs_no_retry() {
    for errno in ["EMFILE", "ENFILE", "ENOMEM"] {
        let mut world = World::new();
        world.state.settings.max_retries = 0;
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
        world.submit("demo", "/src/a", "/dst/b");
        fail_with_shortage(&mut world, "s", "scan", errno);
        let scan = poll_kind(&mut world, "s", "scan");
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), large_item(1)], None));
        for _ in 0..FREE_RETRIES {
            for task in [world.poll("s", "1"), world.poll("s", "1")] {
                world.post_result(shortage_result(&task.expect("each, again"), errno));
            }
            advance(&mut world);
        }
        for kind in ["copy", "range"] {
            let task = world.poll("s", "1").expect(kind);
            world.post_result(result(&task, true, all_done(&task, "d")));
        }
        fail_with_shortage(&mut world, "d", "commit", errno);
        complete_kind(&mut world, "d", "commit");
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done, end.files_failed), (SyncState::Completed, 2, 0));
    }
}

#[test]
fn a_shortage_that_never_ends_is_a_failure_in_the_end() {
    let (mut world, scan) = scanning();
    world.state.settings.max_retries = 1;
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    fail_with_shortage(&mut world, "s", "copy", "EMFILE");
    assert_eq!(world.progress("demo").files_failed, 0);
    assert!(world.progress("demo").reason.is_none_or(|r| !r.contains("fail")));
    for _ in 0..2 {
        let task = poll_kind(&mut world, "s", "copy");
        world.post_result(shortage_result(&task, "EMFILE"));
        advance(&mut world);
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 1));
    assert_eq!(end.errors[0].errno.as_deref(), Some("EMFILE"));
}

#[test]
fn a_lease_that_expires_after_many_shortages_is_the_first() {
    let (mut world, scan) = scanning();
    world.post_result(shortage_result(&scan, "ENFILE"));
    advance(&mut world);
    for _ in 0..30 {
        let task = poll_kind(&mut world, "s", "scan");
        world.post_result(shortage_result(&task, "ENFILE"));
        advance(&mut world);
    }
    poll_kind(&mut world, "s", "scan");
    for _ in 0..20 {
        advance(&mut world);
    }
    let again = poll_kind(&mut world, "s", "scan");
    assert_eq!(again.attempt, 33);
    assert_eq!(world.progress("demo").state, SyncState::Progress);
}

#[test]
fn a_flush_that_could_not_open_is_repeated_and_one_without_memory_fails() {
    for (errno, state) in [("EMFILE", SyncState::Completed), ("ENOMEM", SyncState::Failed)] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        complete_kind(&mut world, "s", "copy");
        let flush = poll_kind(&mut world, "d", "flush");
        world.post_result(shortage_result(&flush, errno));
        advance(&mut world);
        if let Some(flush) = world.poll("d", "1") {
            world.post_result(result(&flush, true, TaskReport::default()));
        }
        assert_eq!(world.progress("demo").state, state, "{errno}");
    }
}
