//! Syncs with several destinations.

use super::storage_binding::{addressed, local_disks, reported, selectors, send, submit};
use super::*;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::SyncPatch;

fn to_all() -> SyncRequest {
    addressed("demo", ("", "/src/a"), ("gpu-*", "/scratch/b"))
}

/// Two destinations, of which nothing is copied yet.
fn two_destinations() -> World {
    let mut world = local_disks();
    submit(&mut world, to_all()).unwrap();
    world
}

fn beat_all(world: &mut World) {
    send(world, reported("s", &["/src"], "ext4"));
    for node in ["gpu-1", "gpu-2"] {
        send(world, reported(node, &["/scratch"], "ext4"));
    }
}

/// Does all that can be done, where the source has one batch of `files`, until one destination has everything.
fn copy_to(world: &mut World, node: &str, files: u64) {
    let id = format!("demo@{node}");
    for _ in 0..40 {
        let mut tasks = ["s", "gpu-1", "gpu-2"].into_iter();
        let Some(task) = tasks.find_map(|worker| world.poll(worker, "1")) else { break };
        if task.task.kind() == "scan" {
            world.post_page(&task, page(&task, 0, vec![copy_item(files, 0)], None));
            continue;
        }
        assert_eq!(task.request_id.as_str(), id, "the other one is paused");
        world.post_result(result(&task, true, all_done(&task, node)));
    }
    let of = world.progress(&id);
    assert_eq!((of.state, of.outcome), (SyncState::Completed, Some(SyncOutcome::Full)), "{of:?}");
}

fn pause(world: &mut World, id: &str) {
    world.apply(Event::PauseSync(id.parse().unwrap()));
}

fn resume(world: &mut World, id: &str) {
    world.apply(Event::ResumeSync(id.parse().unwrap()));
}

fn change(world: &mut World, change: SyncPatch) -> Result<SyncProgress, Problem> {
    match world.apply(Event::ChangeSync { id: "demo".parse().unwrap(), change }) {
        Some(Reply::Progress(progress)) => Ok(*progress),
        Some(Reply::Refused(problem)) => Err(*problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_destination_gets_everything_and_the_whole_is_their_sum() {
    let mut world = two_destinations();
    let queued = world.progress("demo");
    assert_eq!((queued.state, queued.destinations.len()), (SyncState::Queued, 2));
    pause(&mut world, "demo@gpu-2");
    copy_to(&mut world, "gpu-1", 3);
    let half = world.progress("demo");
    assert_eq!((half.state, half.files_done, half.files_total), (SyncState::Progress, 3, 6));
    let reason = half.reason.unwrap();
    assert!(reason.starts_with("demo@gpu-2: ") && reason.contains("paused"), "{reason}");
    let order: Vec<&str> = half.destinations.iter().map(|one| one.request_id.as_str()).collect();
    assert_eq!(order, ["demo@gpu-2", "demo@gpu-1"], "the slowest first");
    resume(&mut world, "demo@gpu-2");
    copy_to(&mut world, "gpu-2", 3);
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!((end.files_done, end.transferred_bytes, end.total_bytes), (6, 60, 60));
    assert!(end.ended_at.is_some() && end.destinations.iter().all(|one| one.files_done == 3));
    let Some(Reply::Syncs(list)) = world.apply(Event::ListSyncs(SyncQuery::default())) else {
        panic!()
    };
    assert_eq!(list.syncs.len(), 1, "destinations are listed in the document of the whole");
    assert!(world.blobs.is_empty());
}

#[test]
fn a_destination_that_fails_leaves_the_whole_partial_and_is_retried_alone() {
    let mut world = two_destinations();
    pause(&mut world, "demo@gpu-2");
    copy_to(&mut world, "gpu-1", 1);
    world.apply(Event::CancelSync("demo@gpu-2".parse().unwrap()));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
    let reason = end.reason.unwrap();
    assert!(reason.contains("1 of 2 destinations") && reason.contains("demo@gpu-2"), "{reason}");
    let again = world.apply(Event::RetrySync {
        id: "demo".parse().unwrap(),
        new: Some("again".parse().unwrap()),
        only: RetryScope::IncompleteDestinations,
        idempotency: None,
    });
    assert!(matches!(again, Some(Reply::Submitted(_))), "{again:?}");
    let retried = world.progress("again");
    assert_eq!(retried.destination_workers, selectors("gpu-2"));
    assert!(retried.destinations.is_empty(), "a single one");
}

#[test]
fn operators_control_all_destinations_at_once() {
    let mut world = two_destinations();
    pause(&mut world, "demo");
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    assert_eq!(world.poll("s", "1"), None);
    resume(&mut world, "demo");
    let limit = |bwlimit| SyncPatch { bwlimit: Some(bwlimit), add_destinations: Vec::new() };
    change(&mut world, limit(Some(1_000))).unwrap();
    assert_eq!(world.progress("demo").bwlimit, Some(1_000));
    for one in ["demo@gpu-1", "demo@gpu-2"] {
        assert_eq!(world.progress(one).bwlimit, Some(500), "a share");
    }
    world.apply(Event::CancelSync("demo@gpu-1".parse().unwrap()));
    assert_eq!(world.progress("demo@gpu-2").bwlimit, Some(1_000));
    let part = world.apply(Event::DeleteSync("demo@gpu-2".parse().unwrap()));
    assert!(matches!(part, Some(Reply::Refused(p)) if p.is(ProblemCode::PartOfSync)));
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    for id in ["demo", "demo@gpu-1", "demo@gpu-2"] {
        assert_eq!(world.progress(id).state, SyncState::Cancelled, "{id}");
    }
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    world.advance(60_000);
    assert!(world.state.syncs.is_empty());
    assert_eq!(world.sync_records(), ["meta"]);
}

#[test]
fn a_destination_is_added_to_a_running_sync() {
    let mut world = two_destinations();
    let add = |workers: &str| SyncPatch { bwlimit: None, add_destinations: selectors(workers) };
    let known = change(&mut world, add("gpu-2")).unwrap_err();
    assert!(known.is(ProblemCode::SameStorage), "{known:?}");
    let unknown = change(&mut world, add("gpu-9")).unwrap_err();
    assert!(unknown.is(ProblemCode::NoMatchingWorker), "{unknown:?}");
    send(&mut world, reported("gpu-9", &["/scratch"], "ext4"));
    assert_eq!(world.progress("demo").destinations.len(), 2, "only on demand");
    assert_eq!(change(&mut world, add("gpu-9")).unwrap().destinations.len(), 3);
    world.restart();
    assert_eq!(world.progress("demo").destinations.len(), 3);
}

#[test]
fn a_sync_to_a_pattern_waits_for_its_first_destination() {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    send(&mut world, reported("gpu-0", &["/other"], "ext4"));
    submit(&mut world, to_all()).unwrap();
    let waits = world.progress("demo");
    assert_eq!((waits.state, waits.destinations.len()), (SyncState::Queued, 0));
    assert!(waits.reason.unwrap().contains("/scratch/b"));
    beat_all(&mut world);
    let nodes = world.progress("demo").destinations;
    assert_eq!(nodes.len(), 1, "those that are known when it starts");
}

#[test]
fn destinations_are_dropped_with_the_whole_after_the_retention() {
    let mut world = two_destinations();
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    world.skip_days(61);
    world.advance(60_000);
    assert!(world.state.syncs.is_empty(), "{:?}", world.state.syncs.numbers());
}

#[test]
fn destinations_that_wait_for_room_resume_with_what_the_rest_of_the_scan_finds() {
    let mut world = two_destinations();
    let scan = poll_kind(&mut world, "s", "scan");
    let rest = Some(scan.task.clone());
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], rest));
    // Both are full, and what each tries again is gone at the source: nothing of its own is left.
    for _ in 0..2 {
        let first = poll_kind(&mut world, "s", "copy");
        let full = EntryError { errno: Some("ENOSPC".to_owned()), ..error(ErrorClass::Transient) };
        let retry = Some(copy_item(1, 0));
        let report = TaskReport { failures: vec![full], retry, ..TaskReport::default() };
        world.post_result(result(&first, true, report));
    }
    world.advance(world.state.settings.lease_ms + 15_000);
    beat_all(&mut world);
    for _ in 0..2 {
        let again = poll_kind(&mut world, "s", "copy");
        let failures = vec![error(ErrorClass::Vanished)];
        world.post_result(result(&again, true, TaskReport { failures, ..TaskReport::default() }));
    }
    let paused = world.progress("demo@gpu-1");
    assert_eq!(paused.state, SyncState::Paused, "{paused:?}");
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    world.advance(15_000);
    beat_all(&mut world);
    for _ in 0..2 {
        let copy = poll_kind(&mut world, "s", "copy");
        let node = copy.request_id.as_str().trim_start_matches("demo@").to_owned();
        world.post_result(result(&copy, true, all_done(&copy, &node)));
        assert_ne!(world.progress(copy.request_id.as_str()).state, SyncState::Paused);
    }
}
