//! What the scheduler notices by itself: syncs in which nothing moves, workers that fail.

use super::*;

/// The sync `demo` of `files` batches, with the workers `s`, `s2` and `d`.
fn copying(files: u64) -> World {
    let (mut world, scan) = scanning();
    world.beat("s2", "1", &["/src"], &[]);
    let work = (0..files).map(|_| batch(1, 0)).collect();
    world.post(&scan, page(&scan, 0, work, None));
    world
}

/// Time passes; all are there, and `s` has `held` in hand.
fn pass(world: &mut World, ms: u64, held: &[AssignmentId]) {
    for _ in 0..ms / 5_000 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], held);
        world.beat("s2", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
}

const MINUTE: u64 = 60_000;

#[test]
fn a_sync_in_which_nothing_moves_says_which_task_is_oldest_and_who_has_it() {
    let mut world = copying(2);
    let since = world.now.wall_ms;
    let held = next(&mut world, "s", "copy");
    pass(&mut world, 5 * MINUTE, &[held.assignment_id]);
    assert_eq!(world.progress("demo").stalled, None);
    pass(&mut world, MINUTE, &[held.assignment_id]);
    let stalled = world.progress("demo").stalled.expect("stalled");
    assert_eq!((stalled.task.as_str(), stalled.task_seconds), ("copy", 360));
    assert_eq!(stalled.worker_id, Some("s".parse().unwrap()));
    assert_eq!(stalled.since.as_millisecond(), since);
    // Any result is news.
    done(&mut world, "s2", "copy");
    assert_eq!(world.progress("demo").stalled, None);
    pass(&mut world, 6 * MINUTE, &[held.assignment_id]);
    assert!(world.progress("demo").stalled.is_some());
    world.finish(result(&held, true, all_done(&held, "d")));
    done(&mut world, "d", "flush");
    assert_eq!(world.progress("demo").stalled, None);
}

#[test]
fn what_nobody_takes_is_stalled_too() {
    let mut world = copying(1);
    pass(&mut world, 6 * MINUTE, &[]);
    let stalled = world.progress("demo").stalled.expect("stalled");
    assert_eq!((stalled.task.as_str(), stalled.worker_id), ("copy", None));
}

#[test]
fn a_sync_that_is_paused_or_waits_for_a_worker_is_not_stalled() {
    let mut world = copying(2);
    world.play(Event::Pause("demo".parse().unwrap()));
    pass(&mut world, 10 * MINUTE, &[]);
    assert_eq!(world.progress("demo").stalled, None);
    world.play(Event::Resume("demo".parse().unwrap()));
    world.pass(10 * MINUTE);
    assert_eq!(world.progress("demo").stalled, None, "nobody is there");
    pass(&mut world, 4 * MINUTE, &[]);
    assert_eq!(world.progress("demo").stalled, None, "they have just come back");
}

#[test]
fn bytes_that_are_sent_under_a_limit_are_progress() {
    let mut world = copying(1);
    let change = Event::Change {
        id: "demo".parse().unwrap(),
        change: crate::wire::sync::SyncPatch { bwlimit: Some(1 << 20) },
    };
    world.play(change);
    let held = next(&mut world, "s", "copy");
    for n in 1..=10u64 {
        pass(&mut world, MINUTE, &[held.assignment_id]);
        let beat = heartbeat("s", Some("1"), &["/src"], &[held.assignment_id]);
        let usage = crate::wire::worker::BandwidthUsage { sent_bytes: n << 20, throttled_ms: 0 };
        let usage = BTreeMap::from([("demo".parse().unwrap(), usage)]);
        world.play(Event::Heartbeat(WorkerHeartbeat { usage, ..beat }));
        assert_eq!(world.progress("demo").stalled, None);
    }
}

/// `s` fails and `s2` does not, until `s` gets nothing more.
fn failing() -> World {
    let mut world = copying(60);
    for _ in 0..12 {
        done(&mut world, "s2", "copy");
        match world.poll("s", "1") {
            Some(task) => drop(world.finish(result(&task, false, TaskReport::default()))),
            None => return world,
        }
    }
    panic!("it is not set aside");
}

fn reason(world: &mut World, worker: &str) -> Option<String> {
    let Some(Reply::Workers(list)) = world.play(Event::Workers) else { panic!() };
    let mut all = list.active.into_iter();
    all.find(|view| view.worker_id.as_str() == worker).unwrap().reason
}

#[test]
fn a_worker_that_fails_where_others_do_not_is_set_aside_and_probed() {
    let mut world = failing();
    let why = reason(&mut world, "s").expect("a reason");
    assert!(why.contains("8 of its last 8 tasks failed"), "{why}");
    assert_eq!(reason(&mut world, "s2"), None);
    pass(&mut world, 30_000, &[]);
    let probe = next(&mut world, "s", "copy");
    assert_eq!(world.poll("s", "1"), None, "one is enough to see");
    world.finish(result(&probe, false, TaskReport::default()));
    pass(&mut world, 55_000, &[]);
    assert_eq!(world.poll("s", "1"), None, "it waits for longer");
    pass(&mut world, 5_000, &[]);
    done(&mut world, "s", "copy");
    assert_eq!(reason(&mut world, "s"), None);
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
            let task = next(world, worker, "copy");
            world.finish(result(&task, false, TaskReport::default()));
        };
        (0..peer_did).for_each(|_| drop(done(&mut world, "s2", "copy")));
        (0..peer_failed).for_each(|_| fail(&mut world, "s2"));
        (0..did).for_each(|_| drop(done(&mut world, "s", "copy")));
        let aside = (1..=12).find(|_| {
            fail(&mut world, "s");
            reason(&mut world, "s").is_some()
        });
        assert_eq!(aside, with, "of {peer_did} and {peer_failed}, {did}");
    }
}

#[test]
fn who_is_set_aside_gets_what_all_others_have_failed() {
    let mut world = failing();
    let task = next(&mut world, "s2", "copy");
    world.finish(result(&task, false, TaskReport::default()));
    assert_eq!(next(&mut world, "s", "copy").task_id, task.task_id);
    assert_eq!(world.poll("s", "1"), None);
}

#[test]
fn a_poll_that_waits_gets_the_probe() {
    let mut world = failing();
    wait(&mut world, "s", 60_000);
    pass(&mut world, 35_000, &[]);
    let answers: Vec<&Reply> = world.answers.values().collect();
    assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
}

#[test]
fn who_is_set_aside_does_what_nobody_else_can_and_is_trusted_when_it_began_anew() {
    let mut world = failing();
    world.beat("s", "2", &["/src"], &[]);
    assert!(world.poll("s", "2").is_some());
    let mut world = failing();
    for _ in 0..12 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
    for _ in 0..3 {
        assert!(world.poll("s", "1").is_some(), "s2 is silent");
    }
}

#[test]
fn a_worker_without_peers_or_among_others_that_fail_as_well_is_not_set_aside() {
    let mut world = copying(60);
    for _ in 0..20 {
        let task = next(&mut world, "s", "copy");
        world.finish(result(&task, false, TaskReport::default()));
    }
    assert_eq!(reason(&mut world, "s"), None);
    let mut world = copying(60);
    for _ in 0..20 {
        for worker in ["s", "s2"] {
            let task = next(&mut world, worker, "copy");
            world.finish(result(&task, false, TaskReport::default()));
        }
    }
    assert_eq!((reason(&mut world, "s"), reason(&mut world, "s2")), (None, None));
}
