//! What counts as done without evidence, and what follows from it.

use super::*;

/// A world in which the only source worker, `s`, is a guide agent: it sends no incarnation.
fn with_guide_worker(id: &str) -> (World, Assignment) {
    let mut world = World::new();
    let beat = WorkerHeartbeat { protocol: None, ..heartbeat("s", None, &["/src"], &[]) };
    world.apply(Event::Heartbeat(beat));
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.submit(id, "/src/a", "/dst/b");
    let poll =
        Event::Poll { worker: "s".parse().unwrap(), incarnation: None, poll_id: None, wait_ms: 0 };
    match world.apply(poll) {
        Some(Reply::Assignment(Some(scan))) => (world, *scan),
        other => panic!("{other:?}"),
    }
}

/// What a worker that implements only the guide posts.
fn bare(a: &Assignment) -> TaskResult {
    let report = TaskReport::default();
    TaskResult {
        assignment_id: None,
        attempt: None,
        task_digest: None,
        report: None,
        ..result(a, true, report)
    }
}

fn without_start(a: &Assignment, work: Vec<WorkItem>) -> ScanPage {
    ScanPage { root_identity: None, ..page(a, 0, work, None) }
}

#[test]
fn a_sync_to_which_a_task_without_evidence_contributed_is_never_full() {
    type Play = fn() -> World;
    let table: [(&str, Play, u64); 7] = [
        (
            "an empty tree that a real agent walked",
            || {
                let (mut world, scan) = scanning();
                world.post_page(&scan, page(&scan, 0, vec![copy_item(0, 1)], None));
                complete_kind(&mut world, "s", "copy");
                complete_kind(&mut world, "d", "flush");
                world
            },
            0,
        ),
        (
            "one empty last page without the source root",
            || {
                let (mut world, scan) = scanning();
                world.post_page(&scan, without_start(&scan, vec![]));
                world
            },
            1,
        ),
        (
            "a bare success for a whole scan",
            || {
                let (mut world, scan) = with_guide_worker("demo");
                world.post_result(bare(&scan));
                world
            },
            1,
        ),
        (
            "an invented page of a worker without an incarnation",
            || {
                let (mut world, scan) = with_guide_worker("demo");
                world.post_page(&scan, page(&scan, 0, vec![], None));
                world
            },
            1,
        ),
        (
            "a copy reported with its digest and no report",
            || {
                let (mut world, scan) = scanning();
                world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 1)], None));
                let copy = poll_kind(&mut world, "s", "copy");
                world.post_result(TaskResult {
                    report: None,
                    ..result(&copy, true, TaskReport::default())
                });
                world
            },
            1,
        ),
        (
            "a copy with a report and no digest",
            || {
                let (mut world, scan) = scanning();
                world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 1)], None));
                let copy = poll_kind(&mut world, "s", "copy");
                let report = all_done(&copy, "d");
                world.post_result(TaskResult { task_digest: None, ..result(&copy, true, report) });
                complete_kind(&mut world, "d", "flush");
                world
            },
            1,
        ),
        (
            "a walk that continues on another worker, there without the source root",
            || {
                let (mut world, scan) = scanning();
                world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 1)], scan_at("m")));
                world.advance(31_000);
                world.heartbeat("t", "1", &["/src"], &[]);
                world.heartbeat("d", "1", &["/dst"], &[]);
                let rest = poll_kind(&mut world, "t", "scan");
                world.post_page(&rest, without_start(&rest, vec![]));
                complete_kind(&mut world, "t", "copy");
                complete_kind(&mut world, "d", "flush");
                world
            },
            1,
        ),
    ];
    for (case, play, unverified) in table {
        let end = play().progress("demo");
        let outcome = if unverified == 0 { SyncOutcome::Full } else { SyncOutcome::Unverified };
        assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(outcome)), "{case}");
        assert_eq!(end.unverified, unverified, "{case}");
        let named = end.reason.is_some_and(|reason| reason.contains("without evidence"));
        assert_eq!(named, unverified > 0, "{case}");
    }
}

#[test]
fn a_mirror_deletes_nothing_where_a_task_has_no_evidence() {
    for counted in [false, true] {
        let (mut world, scan) = scanning_with(mirror(DeleteOptions::default()));
        let first = first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]);
        let first = if counted { first } else { ScanPage { root_identity: None, ..first } };
        world.post_page(&scan, first);
        complete_kind(&mut world, "s", "copy");
        if counted {
            let count = poll_kind(&mut world, "s", "prune");
            world.post_page(&count, ScanPage { root_identity: None, ..prune_page(&count, 10, 1) });
        }
        complete_kind(&mut world, "d", "flush");
        let end = world.progress("demo");
        assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Unverified)));
        assert!(end.reason.unwrap().contains("nothing was deleted"));
        assert!(end.actions.is_empty(), "counted: {counted}");
    }
}

#[test]
fn an_id_claimed_without_an_incarnation_is_refused_while_a_process_is_alive_under_it() {
    let (mut world, scan) = scanning();
    let claim = || Event::Heartbeat(heartbeat("s", None, &["/src"], &[]));
    let code = |reply| match reply {
        Some(Reply::Refused(problem)) => problem.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(world.apply(claim())), "worker_id_taken");
    let Some(Reply::Workers(list)) = world.apply(Event::ListWorkers) else { panic!("a list") };
    let reason = list.active.iter().find(|w| w.worker_id.as_str() == "s").unwrap();
    assert!(reason.reason.as_ref().unwrap().contains("two agents"), "{reason:?}");
    // A result that names no assignment is not about what the process holds.
    world.post_result(bare(&scan));
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    assert_eq!(world.progress("demo").unverified, 0);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 1)], None));
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").outcome, Some(SyncOutcome::Full));
    // Nothing keeps the id from a program of the guide once the process is gone.
    world.advance(60_000);
    assert!(matches!(world.apply(claim()), Some(Reply::Heartbeat(_))));
}

/// Its next heartbeat may come from a process that was started since: it is no sign that the one that held the task
/// lives.
#[test]
fn a_loss_with_a_worker_without_incarnation_stays_counted_when_it_reports_again() {
    let (mut world, scan) = with_guide_worker("demo");
    let losses = |world: &World| world.state.tasks[&scan.task_id].history.losses.len();
    world.advance(40_000);
    assert_eq!(losses(&world), 1);
    world.apply(Event::Heartbeat(heartbeat("s", None, &["/src"], &[])));
    assert_eq!(losses(&world), 1);
}
