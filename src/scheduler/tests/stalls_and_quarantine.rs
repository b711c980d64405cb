//! What the scheduler notices by itself: syncs in which nothing moves, workers that fail.

use super::*;

/// The sync `demo` of `files` batches, with the workers `s`, `s2` and `d`.
fn copying(files: u64) -> World {
    let (mut world, scan) = scanning();
    world.heartbeat("s2", "1", &["/src"], &[]);
    let work = (0..files).map(|_| copy_item(1, 0)).collect();
    world.post_page(&scan, page(&scan, 0, work, None));
    world
}

/// Time passes; all are there, and `s` has `held` in hand.
fn advance(world: &mut World, ms: u64, held: &[AssignmentId]) {
    for _ in 0..ms / 5_000 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], held);
        world.heartbeat("s2", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
}

const MINUTE: u64 = 60_000;

#[test]
fn a_stalled_sync_reports_its_oldest_task_and_the_worker_of_it() {
    let mut world = copying(2);
    let since = world.now.wall_ms;
    let held = poll_kind(&mut world, "s", "copy");
    advance(&mut world, 5 * MINUTE, &[held.assignment_id]);
    assert_eq!(world.progress("demo").stalled, None);
    advance(&mut world, MINUTE, &[held.assignment_id]);
    let stalled = world.progress("demo").stalled.expect("stalled");
    assert_eq!((stalled.task.as_str(), stalled.task_seconds), ("copy", 360));
    assert_eq!(stalled.worker_id, Some("s".parse().unwrap()));
    assert_eq!(stalled.since.as_millisecond(), since);
    // Any result is news.
    complete_kind(&mut world, "s2", "copy");
    assert_eq!(world.progress("demo").stalled, None);
    advance(&mut world, 6 * MINUTE, &[held.assignment_id]);
    assert!(world.progress("demo").stalled.is_some());
    world.post_result(result(&held, true, all_done(&held, "d")));
    complete_kind(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").stalled, None);
}

#[test]
fn a_task_without_a_worker_counts_as_stalled() {
    let mut world = copying(1);
    advance(&mut world, 6 * MINUTE, &[]);
    let stalled = world.progress("demo").stalled.expect("stalled");
    assert_eq!((stalled.task.as_str(), stalled.worker_id), ("copy", None));
}

#[test]
fn a_sync_that_is_paused_or_waits_for_a_worker_is_not_stalled() {
    let mut world = copying(2);
    world.apply(Event::PauseSync("demo".parse().unwrap()));
    advance(&mut world, 10 * MINUTE, &[]);
    assert_eq!(world.progress("demo").stalled, None);
    world.apply(Event::ResumeSync("demo".parse().unwrap()));
    world.advance(10 * MINUTE);
    assert_eq!(world.progress("demo").stalled, None, "no worker is active");
    advance(&mut world, 4 * MINUTE, &[]);
    assert_eq!(world.progress("demo").stalled, None, "they have just come back");
}

#[test]
fn bytes_that_are_sent_under_a_limit_are_progress() {
    let mut world = copying(1);
    let change = Event::ChangeSync {
        id: "demo".parse().unwrap(),
        change: crate::wire::sync::SyncPatch { bwlimit: Some(Some(1 << 20)), ..Default::default() },
    };
    world.apply(change);
    let held = poll_kind(&mut world, "s", "copy");
    for n in 1..=10u64 {
        advance(&mut world, MINUTE, &[held.assignment_id]);
        let beat = heartbeat("s", Some("1"), &["/src"], &[held.assignment_id]);
        let usage = crate::wire::worker::BandwidthUsage { sent_bytes: n << 20, throttled_ms: 0 };
        let usage = BTreeMap::from([("demo".parse().unwrap(), usage)]);
        world.apply(Event::Heartbeat(WorkerHeartbeat { usage, ..beat }));
        assert_eq!(world.progress("demo").stalled, None);
    }
}

/// `s` fails and `s2` does not, until `s` gets nothing more.
fn failing() -> World {
    let mut world = copying(60);
    for _ in 0..12 {
        complete_kind(&mut world, "s2", "copy");
        match world.poll("s", "1") {
            Some(task) => drop(world.post_result(result(&task, false, TaskReport::default()))),
            None => return world,
        }
    }
    panic!("it is not set aside");
}

fn quarantine_reason(world: &mut World, worker: &str) -> Option<String> {
    let Some(Reply::Workers(list)) = world.apply(Event::ListWorkers) else { panic!() };
    let mut all = list.active.into_iter();
    all.find(|view| view.worker_id.as_str() == worker).unwrap().reason
}

#[test]
fn a_worker_that_fails_where_others_do_not_is_quarantined_and_probed() {
    let mut world = failing();
    let why = quarantine_reason(&mut world, "s").expect("a reason");
    assert!(why.contains("8 of its last 8 tasks failed"), "{why}");
    assert_eq!(quarantine_reason(&mut world, "s2"), None);
    advance(&mut world, 30_000, &[]);
    let probe = poll_kind(&mut world, "s", "copy");
    assert_eq!(world.poll("s", "1"), None, "one is enough to see");
    world.post_result(result(&probe, false, TaskReport::default()));
    advance(&mut world, 55_000, &[]);
    assert_eq!(world.poll("s", "1"), None, "it waits for longer");
    advance(&mut world, 5_000, &[]);
    complete_kind(&mut world, "s", "copy");
    assert_eq!(quarantine_reason(&mut world, "s"), None);
    assert!(world.poll("s", "1").is_some() && world.poll("s", "1").is_some());
}

#[test]
fn a_worker_is_judged_by_eight_outcomes_or_more_of_its_own_and_of_its_peers() {
    // What its peer did and failed, what it did itself, and with which failure it is set aside.
    for (peer_did, peer_failed, did, with) in [
        (10, 0, 0, Some(8)),
        (10, 0, 4, Some(4)),
        (10, 0, 5, Some(5)),
        (8, 0, 0, Some(8)),
        (7, 0, 0, None),
        (6, 2, 0, Some(8)),
        (5, 3, 0, None),
    ] {
        let mut world = copying(60);
        let fail = |world: &mut World, worker| {
            let task = poll_kind(world, worker, "copy");
            world.post_result(result(&task, false, TaskReport::default()));
        };
        (0..peer_did).for_each(|_| drop(complete_kind(&mut world, "s2", "copy")));
        (0..peer_failed).for_each(|_| fail(&mut world, "s2"));
        (0..did).for_each(|_| drop(complete_kind(&mut world, "s", "copy")));
        let aside = (1..=12).find(|_| {
            fail(&mut world, "s");
            quarantine_reason(&mut world, "s").is_some()
        });
        assert_eq!(aside, with, "of {peer_did} and {peer_failed}, {did}");
    }
}

#[test]
fn a_quarantined_worker_gets_tasks_that_all_others_have_failed() {
    let mut world = failing();
    let task = poll_kind(&mut world, "s2", "copy");
    world.post_result(result(&task, false, TaskReport::default()));
    assert_eq!(poll_kind(&mut world, "s", "copy").task_id, task.task_id);
    assert_eq!(world.poll("s", "1"), None);
}

#[test]
fn a_waiting_poll_gets_the_probe() {
    let mut world = failing();
    start_poll(&mut world, "s", 60_000);
    advance(&mut world, 35_000, &[]);
    let answers: Vec<&Reply> = world.replies.values().collect();
    assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
}

#[test]
fn a_quarantined_worker_does_what_no_other_can_and_a_restart_ends_the_quarantine() {
    let mut world = failing();
    world.heartbeat("s", "2", &["/src"], &[]);
    assert!(world.poll("s", "2").is_some());
    let mut world = failing();
    for _ in 0..12 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    for _ in 0..3 {
        assert!(world.poll("s", "1").is_some(), "s2 is silent");
    }
}

#[test]
fn a_worker_without_peers_or_among_failing_peers_is_not_quarantined() {
    let mut world = copying(60);
    for _ in 0..20 {
        let task = poll_kind(&mut world, "s", "copy");
        world.post_result(result(&task, false, TaskReport::default()));
    }
    assert_eq!(quarantine_reason(&mut world, "s"), None);
    let mut world = copying(60);
    for _ in 0..20 {
        for worker in ["s", "s2"] {
            let task = poll_kind(&mut world, worker, "copy");
            world.post_result(result(&task, false, TaskReport::default()));
        }
    }
    assert_eq!(
        (quarantine_reason(&mut world, "s"), quarantine_reason(&mut world, "s2")),
        (None, None)
    );
}
