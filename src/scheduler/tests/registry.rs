//! A full registry of workers.

use super::agents::{join, join_token};
use super::*;
use crate::wire::problem::ProblemCode;

fn report(world: &mut World, worker: &str, paths: &[&str]) -> Result<(), Problem> {
    match world.apply(Event::Heartbeat(heartbeat(worker, Some("1"), paths, &[]))) {
        Some(Reply::Heartbeat(_)) => Ok(()),
        Some(Reply::Refused(problem)) => Err(*problem),
        other => panic!("{other:?}"),
    }
}

fn is_known(world: &World, worker: &str) -> bool {
    world.state.workers.get(&worker.parse().unwrap()).is_some()
}

fn join_w(world: &mut World) {
    let record = join_token("0123456789ab", world.now.wall_ms);
    world.apply(Event::CreateJoinToken(Box::new(record)));
    assert_eq!(join(world, "0123456789ab", "secret", "w", "k"), "ok");
}

fn report_w(world: &mut World) -> bool {
    let event = Box::new(Event::Heartbeat(heartbeat("w", Some("1"), &["/data"], &[])));
    let key = blake3::hash(b"k").into();
    let agent = Some(AgentKey { worker: "w".parse().unwrap(), key, authority: None });
    matches!(world.apply(Event::OfAgent { agent, event }), Some(Reply::Heartbeat(_)))
}

#[test]
fn a_flood_of_workers_replaces_its_own_and_keeps_no_agent_out() {
    let mut world = World::new();
    world.state.settings.max_workers = 128;
    world.submit("demo", "/src/a", "/dst/a");
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert!(world.poll("s", "1").is_some(), "a task");
    let wait = Event::Poll {
        worker: "d".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: None,
        wait_ms: 3_600_000,
    };
    assert_eq!(world.apply(wait).map(drop), None, "it waits");
    join_w(&mut world);
    assert!(report_w(&mut world));
    report(&mut world, "idle", &["/idle"]).unwrap();
    world.advance(100);
    report(&mut world, "idle", &["/idle"]).unwrap();
    for n in 0..1_000 {
        report(&mut world, &format!("fake-{n}"), &["/"]).unwrap();
        assert!(world.state.workers.count() <= 128);
    }
    report(&mut world, "new", &["/new"]).unwrap();
    for worker in ["s", "d", "w", "idle", "new", "fake-999"] {
        assert!(is_known(&world, worker), "{worker}");
    }
    assert!(!is_known(&world, "fake-0"));
}

#[test]
fn silent_workers_make_room_first_and_those_that_report_again_make_none() {
    let mut world = World::new();
    world.state.settings.max_workers = 4;
    report(&mut world, "silent", &["/a"]).unwrap();
    world.advance(1_000);
    report(&mut world, "silent", &["/a"]).unwrap();
    world.advance(40_000);
    for worker in ["a", "b", "once"] {
        report(&mut world, worker, &["/a"]).unwrap();
    }
    world.advance(10_000);
    report(&mut world, "a", &["/a"]).unwrap();
    report(&mut world, "b", &["/a"]).unwrap();
    report(&mut world, "c", &["/a"]).unwrap();
    assert!(!is_known(&world, "silent") && is_known(&world, "once"));
    world.advance(1_000);
    report(&mut world, "c", &["/a"]).unwrap();
    report(&mut world, "d", &["/a"]).unwrap();
    assert!(!is_known(&world, "once"));
    world.advance(1_000);
    report(&mut world, "d", &["/a"]).unwrap();
    let refused = report(&mut world, "e", &["/a"]).unwrap_err();
    assert!(refused.is(ProblemCode::TooManyWorkers) && refused.status == 429, "{refused:?}");
    assert!(refused.detail.contains("limits.max_workers"), "{}", refused.detail);
    // A worker that an administrator let join is not one of a flood.
    join_w(&mut world);
    assert!(report_w(&mut world));
    assert_eq!(world.state.workers.count(), 4);
    assert!(!is_known(&world, "a"), "the one that was silent for longest");
    // When one is silent again, the next new one takes its place.
    world.advance(46_000);
    report(&mut world, "e", &["/a"]).unwrap();
}

#[test]
fn long_heartbeats_make_room_for_others_and_only_agents_with_tasks_exceed_the_limit() {
    let mut world = World::new();
    world.state.settings.max_workers = 16;
    let limit = 1 << 20;
    let long = |n: usize| {
        let path =
            |part: usize| format!("/{n}/{part}{}", format!("/{}", "x".repeat(239)).repeat(12));
        (0..100).map(path).collect::<Vec<_>>()
    };
    let report_long = |world: &mut World, worker: &str, n: usize| {
        let paths = long(n);
        report(world, worker, &paths.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for n in 0..20 {
        report_long(&mut world, &format!("long-{n}"), n).unwrap();
        assert!(world.state.workers.kept_bytes() <= limit, "{n}");
    }
    assert!((3..6).contains(&world.state.workers.count()));
    // One that grows beside three that report again and again.
    for (n, worker) in ["again-0", "again-1", "again-2"].into_iter().enumerate() {
        for _ in 0..2 {
            world.advance(100);
            report_long(&mut world, worker, n).unwrap();
        }
    }
    for _ in 0..2 {
        world.advance(100);
        report(&mut world, "grows", &["/grows"]).unwrap();
    }
    assert_eq!(world.state.workers.count(), 4);
    let refused = report_long(&mut world, "grows", 30).unwrap_err();
    assert!(refused.is(ProblemCode::TooManyWorkers), "{refused:?}");
    // What is said of unknown paths is not kept at all.
    let mut beat = heartbeat("grows", Some("1"), &["/grows"], &[]);
    beat.free_bytes = (0..10_000).map(|n| (format!("/{n}"), n)).collect();
    beat.free_bytes.insert("/grows".into(), 5);
    assert!(matches!(world.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
    let kept = &world.state.workers.get(&"grows".parse().unwrap()).unwrap().last_heartbeat;
    assert_eq!(kept.free_bytes, [("/grows".to_owned(), 5)].into());
    // An agent with a task is never refused.
    world.submit("demo", "/grows", "/grows2");
    world.heartbeat("grows", "1", &["/grows", "/grows2"], &[]);
    let task = world.poll("grows", "1").expect("a task");
    let paths = long(40);
    let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    paths.extend(["/grows", "/grows2"]);
    world.heartbeat("grows", "1", &paths, &[task.assignment_id]);
    assert!(is_known(&world, "grows"));
}
