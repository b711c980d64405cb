//! Which deletions tickets allow, how many, and through which agent.

use super::*;
use crate::wire::ticket::{DeleteGrant, PrunePermit};

/// The permission of an assignment that deletes, and the agents that it lists.
fn deletion(world: &World, a: &Assignment) -> (DeleteGrant, Vec<String>) {
    let Some(PrunePermit::Delete(deletion)) = claims(world, a).prune else { panic!("{a:?}") };
    let listed = a.destination_workers.iter().map(|m| m.worker_id.to_string()).collect();
    (deletion, listed)
}

/// A mirror that has counted `extra` of `seen` entries and flushed; `s` has been given what deletes.
/// `d` and `d2` hold the destination.
fn deleting(delete: DeleteOptions, seen: u64, extra: u64) -> (World, Assignment) {
    let (mut world, scan) = scanning_with(mirror(delete));
    world.heartbeat("d2", "2", &["/dst"], &[]);
    assert_eq!(claims(&world, &scan).prune, None);
    world.post_page(&scan, first_page(&scan, "fs-1", false, vec![copy_item(1, 1)]));
    let copy = complete_kind(&mut world, "s", "copy");
    assert_eq!(claims(&world, &copy).prune, None);
    let count = poll_kind(&mut world, "s", "prune");
    assert_eq!(claims(&world, &count).prune, Some(PrunePermit::Count));
    assert_eq!(count.destination_workers.len(), 2);
    world.post_page(&count, prune_page(&count, seen, extra));
    complete_kind(&mut world, "d", "flush");
    let apply = poll_kind(&mut world, "s", "prune");
    (world, apply)
}

#[test]
fn the_allowance_is_the_smaller_of_both_limits() {
    let limits = |max, max_percent| DeleteOptions { max, max_percent, ..DeleteOptions::default() };
    for (delete, seen, allowance) in [
        (limits(None, 50), 100, 50),
        (limits(None, 50), 101, 50),
        (limits(None, 100), 10, 10),
        (limits(Some(3), 50), 100, 3),
        (limits(Some(80), 50), 100, 50),
        (limits(Some(u64::MAX), 100), u64::MAX, u64::MAX),
    ] {
        let (world, apply) = deleting(delete, seen, 1);
        assert_eq!(deletion(&world, &apply).0.max_entries, allowance, "of {seen}");
    }
}

#[test]
fn tasks_that_delete_at_once_share_one_grant_and_one_agent_and_so_does_a_retry() {
    let delete = DeleteOptions { max: Some(5), max_percent: 100, ..DeleteOptions::default() };
    let (mut world, apply) = deleting(delete, 100, 4);
    let (first, listed) = deletion(&world, &apply);
    assert_eq!((first.max_entries, listed.len()), (5, 1));
    let process = if listed[0] == "d" { "1" } else { "2" };
    assert_eq!(first.incarnation, process);
    let spawn = vec![RelPath::new("d").unwrap(), RelPath::new("e").unwrap()];
    let next_dir = Some(apply.task.clone());
    world.post_page(
        &apply,
        ScanPage { subtrees: spawn, next: next_dir, ..prune_page(&apply, 50, 2) },
    );
    let part = poll_kind(&mut world, "s", "prune");
    assert_eq!(
        deletion(&world, &part),
        (first.clone(), listed.clone()),
        "reported is not spent twice"
    );
    // Another master has it too.
    world.restart();
    for (worker, incarnation, path) in [("s", "1", "/src"), ("d", "1", "/dst"), ("d2", "2", "/dst")]
    {
        world.heartbeat(worker, incarnation, &[path], &[apply.assignment_id, part.assignment_id]);
    }
    let other = poll_kind(&mut world, "s", "prune");
    assert_eq!(deletion(&world, &other), (first.clone(), listed));
    // After it is returned, it restarts under the same grant.
    let report = TaskReport { returned: true, ..TaskReport::default() };
    world.post_result(result(&other, true, report));
    let again = poll_kind(&mut world, "s", "prune");
    assert_eq!((again.task_id, deletion(&world, &again).0), (other.task_id, first));
}

#[test]
fn an_agent_that_fails_or_is_gone_is_replaced_and_the_next_is_allowed_what_is_left() {
    let delete = DeleteOptions { max: Some(5), max_percent: 100, ..DeleteOptions::default() };
    for case in ["failed", "silent", "restarted"] {
        let (mut world, apply) = deleting(delete.clone(), 100, 4);
        let (first, listed) = deletion(&world, &apply);
        let next_dir = Some(apply.task.clone());
        world.post_page(&apply, ScanPage { next: next_dir, ..prune_page(&apply, 50, 2) });
        let beat = |world: &mut World, worker: &str| match worker {
            "d" => world.heartbeat("d", "1", &["/dst"], &[]),
            _ => world.heartbeat("d2", "2", &["/dst"], &[]),
        };
        let other = if listed[0] == "d" { "d2" } else { "d" };
        match case {
            "failed" => {
                world.post_result(result(&apply, false, TaskReport::default()));
                world.advance(3_000);
            }
            "silent" => {
                for _ in 0..12 {
                    world.advance(5_000);
                    beat(&mut world, other);
                    world.heartbeat("s", "1", &["/src"], &[]);
                }
            }
            _ => {
                world.heartbeat(&listed[0], "later", &["/dst"], &[]);
                let report = TaskReport { returned: true, ..TaskReport::default() };
                world.post_result(result(&apply, true, report));
            }
        }
        let again = poll_kind(&mut world, "s", "prune");
        let (second, through) = deletion(&world, &again);
        assert_ne!(second.grant_id, first.grant_id, "{case}");
        assert_eq!((second.max_entries, through.len()), (3, 1), "{case}");
        assert_eq!(through[0], other, "{case}");
    }
}

#[test]
fn a_new_grant_waits_until_no_task_deletes_under_the_previous_one() {
    let delete = DeleteOptions { max: Some(5), max_percent: 100, ..DeleteOptions::default() };
    for case in ["failed", "drained"] {
        let (mut world, apply) = deleting(delete.clone(), 100, 4);
        let (first, listed) = deletion(&world, &apply);
        let spawn = vec![RelPath::new("d").unwrap()];
        let next_dir = Some(apply.task.clone());
        world.post_page(
            &apply,
            ScanPage { subtrees: spawn, next: next_dir, ..prune_page(&apply, 50, 0) },
        );
        let part = poll_kind(&mut world, "s", "prune");
        match case {
            "failed" => drop(world.post_result(result(&part, false, TaskReport::default()))),
            _ => {
                let worker = listed[0].parse().unwrap();
                world.apply(Event::DrainWorker { worker, order: Some(Default::default()) });
                let report = TaskReport { returned: true, ..TaskReport::default() };
                world.post_result(result(&part, true, report));
            }
        }
        world.advance(3_000);
        assert_eq!(world.poll("s", "1"), None, "{case}: the first one may delete 5 entries");
        world.post_page(&apply, ScanPage { page: 1, ..prune_page(&apply, 50, 2) });
        let again = poll_kind(&mut world, "s", "prune");
        assert_eq!(again.task_id, part.task_id, "{case}");
        let (second, _) = deletion(&world, &again);
        assert_ne!(second.grant_id, first.grant_id, "{case}");
        assert_eq!(second.max_entries, 3, "{case}");
    }
}

#[test]
fn a_task_that_fails_on_the_only_agent_keeps_its_count() {
    let (mut world, apply) = deleting(DeleteOptions::default(), 100, 4);
    let (first, listed) = deletion(&world, &apply);
    let other = if listed[0] == "d" { "d2" } else { "d" };
    world.apply(Event::DrainWorker {
        worker: other.parse().unwrap(),
        order: Some(Default::default()),
    });
    world.post_result(result(&apply, false, TaskReport::default()));
    world.advance(3_000);
    let again = poll_kind(&mut world, "s", "prune");
    assert_eq!(deletion(&world, &again), (first, listed));
}

#[test]
fn a_page_that_reports_the_end_of_the_allowance_halts_the_mirror() {
    let (mut world, apply) = deleting(DeleteOptions::default(), 4, 2);
    assert_eq!(deletion(&world, &apply).0.max_entries, 2);
    let next_dir = Some(apply.task.clone());
    let page = ScanPage { allowance_used_up: true, next: next_dir, ..prune_page(&apply, 9, 2) };
    assert_eq!(world.post_page(&apply, page), PageAction::Stop);
    assert_eq!(world.poll("s", "1"), None, "no more is deleted");
    for (worker, incarnation) in [("d", "1"), ("d2", "2")] {
        if let Some(flush) = world.poll(worker, incarnation) {
            world.post_result(result(&flush, true, TaskReport::default()));
        }
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::DeleteStopped)));
    assert!(end.reason.unwrap().contains("has lost entries since"));
}
