//! What a failure is counted as. That each error stands for one failure is held after every event of
//! every test ([`TestBed::audit`]).

use super::*;
use crate::wire::options::Verify;

/// A mirror of one file that reads back what it copied, at its first page.
fn begun(errors: Vec<FileError>, unlisted: u64) -> World {
    let options = SyncOptions { verify: Verify::Readback, ..mirror(DeleteOptions::default()) };
    let (mut world, scan) = scanning_with(options);
    let first = rooted(&scan, "fs-1", false, vec![batch(1, 1)]);
    world.post(&scan, ScanPage { errors, unlisted_dirs: unlisted, ..first });
    done(&mut world, "s", "copy");
    world
}

fn steps(end: &SyncProgress) -> Vec<(FailedStep, u64)> {
    end.failed_steps.iter().map(|(step, count)| (*step, *count)).collect()
}

/// All that is left goes well.
fn rest(world: &mut World) -> SyncProgress {
    for _ in 0..9 {
        let task = world.poll("s", "1").or_else(|| world.poll("d", "1"));
        let Some(task) = task else { break };
        if let TaskSpec::Scan { .. } = task.task {
            world.post(&task, page(&task, 0, vec![], None));
        } else if let TaskSpec::Prune { .. } = task.task {
            world.post(&task, pruned(&task, 4, 1));
        } else {
            world.finish(result(&task, true, all_done(&task, "d")));
        }
    }
    world.progress("demo")
}

#[test]
fn errors_of_a_walk_are_failed_files_or_listings() {
    let errors = || (0..3).map(|_| error(ErrorClass::Permanent)).collect::<Vec<_>>();
    for (unlisted, files, listings) in [(0, 3, 0), (1, 2, 1), (3, 0, 3)] {
        let end = rest(&mut begun(errors(), unlisted));
        assert_eq!((end.files_total, end.files_failed), (1 + files, files));
        assert_eq!(end.failed_steps.get(&FailedStep::List).copied().unwrap_or(0), listings);
        assert_eq!((end.failure_count(), end.outcome), (3, Some(SyncOutcome::Partial)));
    }
    let (mut world, scan) = scanning();
    let bad = ScanPage { unlisted_dirs: 1, ..page(&scan, 0, vec![], None) };
    let (worker, assignment) = (scan.worker_id.clone(), scan.assignment_id);
    let reply = world.play(Event::Page { worker, assignment, page: bad });
    assert!(matches!(reply, Some(Reply::Refused(p)) if p.status == 422));
}

#[test]
fn what_fails_after_the_copy_is_counted_under_the_name_of_its_step() {
    use FailedStep::{Delete, Flush, ReadBack};
    // While it is read back: the walk, and an entry.
    let mut world = begun(vec![], 0);
    let scan = next(&mut world, "s", "scan");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post(&scan, ScanPage { errors, ..page(&scan, 0, vec![batch(2, 1)], None) });
    let copy = next(&mut world, "s", "copy");
    let failures = vec![error(ErrorClass::Permanent); 2];
    let report = TaskReport { files_skipped: 1, failures, ..TaskReport::default() };
    world.finish(result(&copy, true, report));
    let end = rest(&mut world);
    assert_eq!((end.files_total, end.files_failed, end.dirs_failed), (1, 0, 0));
    assert_eq!((steps(&end), end.outcome), (vec![(ReadBack, 3)], Some(SyncOutcome::Partial)));
    // While it is counted, and while it is deleted.
    for deleting in [false, true] {
        let mut world = begun(vec![], 0);
        let scan = next(&mut world, "s", "scan");
        world.post(&scan, page(&scan, 0, vec![], None));
        let mut prune = next(&mut world, "s", "prune");
        if deleting {
            world.post(&prune, pruned(&prune, 4, 1));
            done(&mut world, "d", "flush");
            prune = next(&mut world, "s", "prune");
        }
        let errors = vec![error(ErrorClass::Permanent); 2];
        world.post(&prune, ScanPage { errors, ..pruned(&prune, 4, 1) });
        let end = rest(&mut world);
        assert_eq!((steps(&end), end.files_failed), (vec![(Delete, 2)], 0), "{deleting}");
    }
    // At the flush.
    let mut world = begun(vec![], 0);
    let scan = next(&mut world, "s", "scan");
    world.post(&scan, page(&scan, 0, vec![], None));
    let prune = next(&mut world, "s", "prune");
    world.post(&prune, pruned(&prune, 4, 0));
    let flush = next(&mut world, "d", "flush");
    let failures = vec![error(ErrorClass::Transient)];
    world.finish(result(&flush, false, TaskReport { failures, ..TaskReport::default() }));
    let end = rest(&mut world);
    assert_eq!((steps(&end), end.files_failed), (vec![(Flush, 1)], 0));
}

#[test]
fn a_list_of_names_in_a_file_fails_the_sync_as_a_whole() {
    let of_root = |class| FileError { path: BytePath::default(), class, ..error(class) };
    for (error, outcome) in
        [(Some(of_root(ErrorClass::Permanent)), None), (None, Some(SyncOutcome::Partial))]
    {
        let mut world = World::new();
        world.beat("s", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
        let list = vec![FileListPart { paths: vec![RelPath::new("a").unwrap()] }];
        let request = request(Some("demo"), "/src", "/dst");
        world.play(Event::Submit { request, list: Some(list), idempotency: None });
        for _ in 0..60 {
            let Some(task) = world.poll("s", "1") else {
                world.pass(31_000);
                world.beat("s", "1", &["/src"], &[]);
                world.beat("d", "1", &["/dst"], &[]);
                continue;
            };
            let failures = error.iter().cloned().collect();
            world.finish(result(&task, false, TaskReport { failures, ..TaskReport::default() }));
        }
        let end = world.progress("demo");
        assert_eq!((end.state, end.outcome), (SyncState::Failed, outcome));
        assert_eq!(steps(&end), [(FailedStep::List, 1)]);
    }
}
