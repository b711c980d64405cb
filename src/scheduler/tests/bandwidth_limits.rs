//! Limits on bytes per second: which shares workers get, and when.

use super::*;
use crate::wire::problem::ProblemCode;
use crate::wire::sync::SyncPatch;
use crate::wire::worker::{BandwidthUsage, HeartbeatReply};

const MIB: u64 = 1 << 20;

fn timetable(entry: &str) -> Settings {
    let mut settings = Settings::default();
    settings.bwlimit.add(entry).unwrap();
    settings
}

/// Source workers `s0` and `s1`, with a batch each of the sync `demo`.
fn sending(settings: Settings, bwlimit: Option<u64>) -> (World, [Assignment; 2]) {
    let mut world = World::new();
    world.state = State::load(settings, [0; 32], &world.records, START).unwrap();
    for (worker, path) in [("s0", "/src"), ("s1", "/src"), ("d", "/dst")] {
        world.heartbeat(worker, "1", &[path], &[]);
    }
    let request = SyncRequest { bwlimit, ..request(Some("demo"), "/src/a", "/dst/b") };
    let event = Event::Submit { request, list: None, idempotency: None };
    assert!(matches!(world.apply(event), Some(Reply::Submitted(_))));
    let scan = poll_kind(&mut world, "s0", "scan");
    assert_eq!(scan.bwlimit, None, "a scan sends nothing");
    world.post_page(
        &scan,
        page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0), copy_item(1, 0)], None),
    );
    let copies = ["s0", "s1"].map(|worker| poll_kind(&mut world, worker, "copy"));
    (world, copies)
}

/// A heartbeat of a worker with this usage.
fn heartbeat_usage(
    world: &mut World,
    a: &Assignment,
    usage: Option<BandwidthUsage>,
) -> HeartbeatReply {
    let beat = heartbeat(a.worker_id.as_str(), Some("1"), &["/src"], &[a.assignment_id]);
    let usage = usage.map(|usage| (a.request_id.clone(), usage)).into_iter().collect();
    match world.apply(Event::Heartbeat(WorkerHeartbeat { usage, ..beat })) {
        Some(Reply::Heartbeat(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

fn granted_share(reply: &HeartbeatReply) -> Option<Option<u64>> {
    reply.bwlimits.get(&"demo".parse().unwrap()).copied()
}

fn change(world: &mut World, id: &str, bwlimit: Option<u64>) -> Reply {
    let change = SyncPatch { bwlimit: Some(bwlimit), ..SyncPatch::default() };
    world.apply(Event::ChangeSync { id: id.parse().unwrap(), change }).unwrap()
}

#[test]
fn a_limit_is_split_with_the_work_and_moves_to_the_workers_that_use_it() {
    let (mut world, [one, two]) = sending(Settings::default(), Some(40 * MIB));
    assert_eq!((one.bwlimit, two.bwlimit), (Some(20 * MIB), Some(20 * MIB)));
    assert_eq!(world.progress("demo").bwlimit, Some(40 * MIB));
    for second in 0..5 {
        world.advance(1000);
        let busy = BandwidthUsage { sent_bytes: second * 30 * MIB, throttled_ms: second * 1000 };
        let reply = heartbeat_usage(&mut world, &one, Some(busy));
        assert_eq!(reply.next_heartbeat_ms, Some(1000));
        world.advance(10);
        heartbeat_usage(
            &mut world,
            &two,
            Some(BandwidthUsage { sent_bytes: second * 5 * MIB, throttled_ms: 0 }),
        );
    }
    let (first, second) =
        (heartbeat_usage(&mut world, &one, None), heartbeat_usage(&mut world, &two, None));
    let (first, second) =
        (granted_share(&first).unwrap().unwrap(), granted_share(&second).unwrap().unwrap());
    assert!(first >= 34 * MIB && second >= 5 * MIB, "{first} {second}");
    assert!(first + second <= 40 * MIB);
}

#[test]
fn a_destination_cannot_be_added_to_a_sync_with_a_single_one() {
    let (mut world, _) = sending(Settings::default(), Some(40 * MIB));
    let add_destinations = vec!["gpu-9".parse().unwrap()];
    let change = SyncPatch { bwlimit: Some(None), add_destinations };
    let reply = world.apply(Event::ChangeSync { id: "demo".parse().unwrap(), change });
    let Some(Reply::Refused(problem)) = reply else { panic!("{reply:?}") };
    assert!(problem.is(ProblemCode::NotSeveralDestinations), "{problem:?}");
    let hint = problem.hint.unwrap();
    assert!(hint.contains("ctl sync submit /src/a WORKERS:/dst/b"), "{hint}");
    assert_eq!(world.progress("demo").bwlimit, Some(40 * MIB), "nothing is changed");
}

#[test]
fn a_limit_is_changed_while_the_sync_runs_and_survives_the_master() {
    let (mut world, [one, _two]) = sending(Settings::default(), None);
    assert_eq!(one.bwlimit, None);
    let reply = heartbeat_usage(&mut world, &one, None);
    assert_eq!((reply.bwlimits.len(), reply.next_heartbeat_ms), (0, Some(1_500)), "it works");
    for _ in 0..2 {
        let Reply::Progress(seen) = change(&mut world, "demo", Some(10 * MIB)) else { panic!() };
        assert_eq!(seen.bwlimit, Some(10 * MIB));
        assert_eq!(granted_share(&heartbeat_usage(&mut world, &one, None)), Some(Some(5 * MIB)));
    }
    world.restart();
    assert_eq!(world.progress("demo").bwlimit, Some(10 * MIB));
    assert_eq!(
        granted_share(&heartbeat_usage(&mut world, &one, Some(BandwidthUsage::default()))),
        Some(Some(10 * MIB)),
        "alone"
    );
    change(&mut world, "demo", None);
    let reply = heartbeat_usage(&mut world, &one, Some(BandwidthUsage::default()));
    assert_eq!(
        (granted_share(&reply), reply.next_heartbeat_ms),
        (Some(None), Some(1_000)),
        "the reply says that there is none"
    );
    // An agent without support for limits gets none.
    assert_eq!(granted_share(&heartbeat_usage(&mut world, &one, None)), None);
}

#[test]
fn changes_that_are_not_possible_are_refused_with_the_reason() {
    let (mut world, _) = sending(Settings::default(), None);
    let refused = |reply| match reply {
        Reply::Refused(problem) => (problem.status, problem.code),
        other => panic!("{other:?}"),
    };
    let code = refused(change(&mut world, "other", None));
    assert_eq!(code, (404, "sync_not_found".to_owned()));
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    let code = refused(change(&mut world, "demo", Some(MIB)));
    assert_eq!(code, (409, "sync_ended".to_owned()));
    assert_eq!(world.progress("demo").bwlimit, None);
}

#[test]
fn the_timetable_bounds_all_syncs_together() {
    // The clock starts on 2027-01-15, a Friday, at 08:00.
    let (mut world, [one, two]) = sending(timetable("Fri 08:00-08:01 30MiB/s"), None);
    assert_eq!((one.bwlimit, two.bwlimit), (Some(15 * MIB), Some(15 * MIB)));
    world.submit("other", "/src/c", "/dst/e");
    let scan = poll_kind(&mut world, "s0", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    // The two others have all of it: this one starts with little.
    let third = loop {
        let task = poll_kind(&mut world, "s1", "copy");
        if task.request_id.as_str() == "other" {
            break task;
        }
    };
    let first = third.bwlimit.unwrap();
    assert!(first > 0 && first < MIB, "{first}");
    for _ in 0..3 {
        world.advance(1000);
        heartbeat_usage(&mut world, &one, None);
        heartbeat_usage(&mut world, &two, None);
        heartbeat_usage(&mut world, &third, None);
    }
    let replies = [&one, &two].map(|a| heartbeat_usage(&mut world, a, None));
    let of = |reply: &HeartbeatReply, id: &str| reply.bwlimits[&id.parse().unwrap()].unwrap();
    let shares = [of(&replies[0], "demo"), of(&replies[1], "demo"), of(&replies[1], "other")];
    assert_eq!(shares, [15 * MIB / 2, 15 * MIB / 2, 15 * MIB]);
    world.advance(60_000);
    let reply = heartbeat_usage(&mut world, &one, Some(BandwidthUsage::default()));
    assert_eq!(granted_share(&reply), Some(None), "the minute is over");
}

#[test]
fn a_worker_that_returns_its_work_returns_its_share() {
    let (mut world, [one, two]) = sending(Settings::default(), Some(40 * MIB));
    world.post_result(result(&one, true, all_done(&one, "d")));
    for _ in 0..5 {
        world.advance(1000);
        heartbeat_usage(&mut world, &two, None);
    }
    assert_eq!(granted_share(&heartbeat_usage(&mut world, &two, None)), Some(Some(40 * MIB)));
    let again = poll_kind(&mut world, "s0", "copy");
    assert_eq!(again.bwlimit, Some(20 * MIB / 16), "the other one has not heard yet");
}

#[test]
fn an_agent_without_limit_support_sends_nothing_for_a_limited_sync() {
    let (mut world, _) = sending(Settings::default(), Some(MIB));
    let old = WorkerHeartbeat { protocol: Some(2), ..heartbeat("old", Some("1"), &["/src"], &[]) };
    assert!(matches!(world.apply(Event::Heartbeat(old)), Some(Reply::Heartbeat(_))));
    assert_eq!(world.poll("old", "1"), None);
    change(&mut world, "demo", None);
    let copy = poll_kind(&mut world, "old", "copy");
    assert_eq!(copy.bwlimit, None);
}

#[test]
fn reloaded_settings_apply_at_once_also_to_waiting_polls() {
    let mut world = World::new();
    world.state.settings.max_active_syncs = 1;
    for (worker, path) in [("s", "/src"), ("d", "/dst")] {
        world.heartbeat(worker, "1", &[path], &[]);
    }
    world.submit("one", "/src/a", "/dst/a");
    world.submit("two", "/src/b", "/dst/b");
    let first = world.poll("s", "1").expect("a scan");
    assert_eq!(first.request_id.as_str(), "one");
    let waiting = world.apply(Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".to_owned()),
        poll_id: None,
        wait_ms: 60_000,
    });
    assert_eq!(waiting, None, "only one sync may be worked on");
    let caller = Caller(world.caller_count);
    let settings = Settings { max_active_syncs: 2, window_tasks: 8, ..Settings::default() };
    world.apply(Event::Configure(Box::new(settings)));
    let Some(Reply::Assignment(Some(second))) = world.replies.remove(&caller) else {
        panic!("the poll still waits")
    };
    assert_eq!(second.request_id.as_str(), "two");
    let state = &world.state;
    assert!(state.syncs.values().all(|sync| state.tasks.window(sync.no) == 8));
}

#[test]
fn a_reloaded_limit_reaches_active_senders_and_can_be_removed() {
    let (mut world, [one, _]) = sending(Settings::default(), None);
    assert_eq!(granted_share(&heartbeat_usage(&mut world, &one, None)), None);
    world.apply(Event::Configure(Box::new(timetable("10MiB/s"))));
    let share = granted_share(&heartbeat_usage(&mut world, &one, None)).flatten();
    assert!(share.is_some_and(|share| share <= 10 * MIB), "{share:?}");
    world.apply(Event::Configure(Box::default()));
    let usage = BandwidthUsage { sent_bytes: 1, throttled_ms: 0 };
    assert_eq!(granted_share(&heartbeat_usage(&mut world, &one, Some(usage))).flatten(), None);
}
