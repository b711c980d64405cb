//! Hosts that are out of descriptors or memory: no entry is to blame for that.

use super::*;

/// So many tries are spared.
const SPARED: u32 = 120;

fn shortage(errno: &str) -> Vec<FileError> {
    vec![FileError { errno: Some(errno.to_owned()), ..error(ErrorClass::Transient) }]
}

/// What a worker says of a task that met with a shortage.
fn short(a: &Assignment, errno: &str) -> TaskResult {
    let mut report = TaskReport { failures: shortage(errno), ..TaskReport::default() };
    let success = matches!(a.task, TaskSpec::Copy { .. } | TaskSpec::Range { .. });
    if let TaskSpec::Copy { files, dirs, bytes } = a.task {
        let manifest = Base64Bytes(vec![1; 10]);
        report.retry = Some(WorkItem::Copy { manifest, files, dirs, bytes });
    }
    result(a, success, report)
}

/// Until the next try, however long it is put off.
fn pass(world: &mut World) {
    for _ in 0..7 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
}

/// As often as that is spared, a task of a worker meets with a shortage.
fn short_of(world: &mut World, worker: &str, kind: &str, errno: &str) {
    for _ in 0..SPARED {
        let task = next(world, worker, kind);
        assert_eq!(world.finish(short(&task, errno)), Some(ResultOutcome::Applied));
        pass(world);
    }
}

#[test]
fn what_fails_for_want_of_descriptors_or_memory_costs_no_try() {
    for errno in ["EMFILE", "ENFILE", "ENOMEM"] {
        let mut world = World::new();
        world.state.settings.max_retries = 0;
        world.beat("s", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
        world.submit("demo", "/src/a", "/dst/b");
        short_of(&mut world, "s", "scan", errno);
        let scan = next(&mut world, "s", "scan");
        world.post(&scan, page(&scan, 0, vec![batch(1, 0), large(1)], None));
        for _ in 0..SPARED {
            for task in [world.poll("s", "1"), world.poll("s", "1")] {
                world.finish(short(&task.expect("each, again"), errno));
            }
            pass(&mut world);
        }
        for kind in ["copy", "range"] {
            let task = world.poll("s", "1").expect(kind);
            world.finish(result(&task, true, all_done(&task, "d")));
        }
        short_of(&mut world, "d", "commit", errno);
        done(&mut world, "d", "commit");
        done(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.files_done, end.files_failed), (SyncState::Completed, 2, 0));
    }
}

#[test]
fn a_shortage_that_never_ends_is_a_failure_in_the_end() {
    let (mut world, scan) = scanning();
    world.state.settings.max_retries = 1;
    world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
    short_of(&mut world, "s", "copy", "EMFILE");
    assert_eq!(world.progress("demo").files_failed, 0);
    assert!(world.progress("demo").reason.is_none_or(|r| !r.contains("fail")));
    for _ in 0..2 {
        let task = next(&mut world, "s", "copy");
        world.finish(short(&task, "EMFILE"));
        pass(&mut world);
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed), (SyncState::Failed, 1));
    assert_eq!(end.errors[0].errno.as_deref(), Some("EMFILE"));
}

#[test]
fn a_lease_that_runs_out_after_many_shortages_is_the_first() {
    let (mut world, scan) = scanning();
    world.finish(short(&scan, "ENFILE"));
    pass(&mut world);
    for _ in 0..30 {
        let task = next(&mut world, "s", "scan");
        world.finish(short(&task, "ENFILE"));
        pass(&mut world);
    }
    next(&mut world, "s", "scan");
    for _ in 0..20 {
        pass(&mut world);
    }
    let again = next(&mut world, "s", "scan");
    assert_eq!(again.attempt, 33);
    assert_eq!(world.progress("demo").state, SyncState::Progress);
}

#[test]
fn a_flush_that_could_not_open_is_asked_for_again_and_one_without_memory_is_not_trusted() {
    for (errno, state) in [("EMFILE", SyncState::Completed), ("ENOMEM", SyncState::Failed)] {
        let (mut world, scan) = scanning();
        world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
        done(&mut world, "s", "copy");
        let flush = next(&mut world, "d", "flush");
        world.finish(short(&flush, errno));
        pass(&mut world);
        if let Some(flush) = world.poll("d", "1") {
            world.finish(result(&flush, true, TaskReport::default()));
        }
        assert_eq!(world.progress("demo").state, state, "{errno}");
    }
}
