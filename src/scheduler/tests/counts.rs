//! How failures are counted. That each error stands for one failure is checked after every event of
//! every test ([`World::check_invariants`]).

use super::*;
use crate::wire::options::Verify;

/// A mirror of one file that reads back what it copied, at its first page.
fn walked(errors: Vec<EntryError>, unlisted: u64) -> World {
    let options = SyncOptions { verify: Verify::Readback, ..mirror(DeleteOptions::default()) };
    let (mut world, scan) = scanning_with(options);
    let first = first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]);
    world.post_page(&scan, ScanPage { errors, unlisted_dirs: unlisted, ..first });
    complete_kind(&mut world, "s", "copy");
    world
}

fn steps(end: &SyncProgress) -> Vec<(FailedStep, u64)> {
    end.failed_steps.iter().map(|(step, count)| (*step, *count)).collect()
}

/// All that is left goes well.
fn complete_rest(world: &mut World) -> SyncProgress {
    for _ in 0..9 {
        let task = world.poll("s", "1").or_else(|| world.poll("d", "1"));
        let Some(task) = task else { break };
        if let TaskSpec::Scan { .. } = task.task {
            world.post_page(&task, page(&task, 0, vec![], None));
        } else if let TaskSpec::Prune { .. } = task.task {
            world.post_page(&task, prune_page(&task, 4, 1));
        } else {
            world.post_result(result(&task, true, all_done(&task, "d")));
        }
    }
    world.progress("demo")
}

#[test]
fn errors_of_a_walk_are_failed_files_or_listings() {
    let errors = || (0..3).map(|_| error(ErrorClass::Permanent)).collect::<Vec<_>>();
    for (unlisted, files, listings) in [(0, 3, 0), (1, 2, 1), (3, 0, 3)] {
        let end = complete_rest(&mut walked(errors(), unlisted));
        assert_eq!((end.files_total, end.files_failed), (1 + files, files));
        assert_eq!(end.failed_steps.get(&FailedStep::List).copied().unwrap_or(0), listings);
        assert_eq!((end.failure_count(), end.outcome), (3, Some(SyncOutcome::Partial)));
    }
    let (mut world, scan) = scanning();
    let bad = ScanPage { unlisted_dirs: 1, ..page(&scan, 0, vec![], None) };
    let (worker, assignment) = (scan.worker_id.clone(), scan.assignment_id);
    let reply = world.apply(Event::Page { worker, assignment, page: bad });
    assert!(matches!(reply, Some(Reply::Refused(p)) if p.status == 422));
}

#[test]
fn failures_after_the_copy_are_counted_by_step() {
    use FailedStep::{Delete, Flush, ReadBack};
    // While it is read back: the walk, and an entry.
    let mut world = walked(vec![], 0);
    let scan = poll_kind(&mut world, "s", "scan");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&scan, ScanPage { errors, ..page(&scan, 0, vec![copy_item(2, 1)], None) });
    let copy = poll_kind(&mut world, "s", "copy");
    let failures = vec![error(ErrorClass::Permanent); 2];
    let report = TaskReport { files_skipped: 1, failures, ..TaskReport::default() };
    world.post_result(result(&copy, true, report));
    let end = complete_rest(&mut world);
    assert_eq!((end.files_total, end.files_failed, end.dirs_failed), (1, 0, 0));
    assert_eq!((steps(&end), end.outcome), (vec![(ReadBack, 3)], Some(SyncOutcome::Partial)));
    // While it is counted, and while it is deleted.
    for deleting in [false, true] {
        let mut world = walked(vec![], 0);
        let scan = poll_kind(&mut world, "s", "scan");
        world.post_page(&scan, page(&scan, 0, vec![], None));
        let mut prune = poll_kind(&mut world, "s", "prune");
        if deleting {
            world.post_page(&prune, prune_page(&prune, 4, 1));
            complete_kind(&mut world, "d", "flush");
            prune = poll_kind(&mut world, "s", "prune");
        }
        let errors = vec![error(ErrorClass::Permanent); 2];
        world.post_page(&prune, ScanPage { errors, ..prune_page(&prune, 4, 1) });
        let end = complete_rest(&mut world);
        assert_eq!((steps(&end), end.files_failed), (vec![(Delete, 2)], 0), "{deleting}");
    }
    // At the flush.
    let mut world = walked(vec![], 0);
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![], None));
    let prune = poll_kind(&mut world, "s", "prune");
    world.post_page(&prune, prune_page(&prune, 4, 0));
    let flush = poll_kind(&mut world, "d", "flush");
    let failures = vec![error(ErrorClass::Transient)];
    world.post_result(result(&flush, false, TaskReport { failures, ..TaskReport::default() }));
    let end = complete_rest(&mut world);
    assert_eq!((steps(&end), end.files_failed), (vec![(Flush, 1)], 0));
}

#[test]
fn a_list_of_names_in_a_file_fails_the_sync_as_a_whole() {
    let of_root = |class| EntryError { path: BytePath::default(), class, ..error(class) };
    for (error, outcome) in
        [(Some(of_root(ErrorClass::Permanent)), None), (None, Some(SyncOutcome::Partial))]
    {
        let mut world = World::new();
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
        let list = vec![FileListPart { paths: vec![RelPath::new("a").unwrap()] }];
        let request = request(Some("demo"), "/src", "/dst");
        world.apply(Event::Submit { request, list: Some(list), idempotency: None });
        for _ in 0..60 {
            let Some(task) = world.poll("s", "1") else {
                world.advance(31_000);
                world.heartbeat("s", "1", &["/src"], &[]);
                world.heartbeat("d", "1", &["/dst"], &[]);
                continue;
            };
            let failures = error.iter().cloned().collect();
            world.post_result(result(
                &task,
                false,
                TaskReport { failures, ..TaskReport::default() },
            ));
        }
        let end = world.progress("demo");
        assert_eq!((end.state, end.outcome), (SyncState::Failed, outcome));
        assert_eq!(steps(&end), [(FailedStep::List, 1)]);
    }
}
