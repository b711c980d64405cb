//! Two agents under one id, and storage paths that do not answer.

use super::*;
use crate::wire::worker::{HeartbeatReply, WorkerView};

fn send_heartbeat(
    world: &mut World,
    incarnation: &str,
    status: WorkerStatus,
) -> Result<(), String> {
    let beat = heartbeat("s", Some(incarnation), &["/src"], &[]);
    match world.apply(Event::Heartbeat(WorkerHeartbeat { status, ..beat })) {
        Some(Reply::Heartbeat(_)) => Ok(()),
        Some(Reply::Refused(problem)) => Err(format!("{} {}", problem.status, problem.code)),
        other => panic!("{other:?}"),
    }
}

fn ready(world: &mut World, incarnation: &str) -> bool {
    match send_heartbeat(world, incarnation, WorkerStatus::Ready) {
        Ok(()) => true,
        Err(code) => {
            assert_eq!(code, "409 worker_id_taken");
            false
        }
    }
}

fn view(world: &mut World) -> WorkerView {
    let Some(Reply::Workers(list)) = world.apply(Event::ListWorkers) else { panic!("a list") };
    list.active.into_iter().find(|view| view.worker_id.as_str() == "s").expect("it is there")
}

#[test]
fn the_second_of_two_agents_is_refused_and_gets_no_work_while_the_first_lives() {
    let mut world = World::new();
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert!(ready(&mut world, "first") && ready(&mut world, "second"));
    assert!(ready(&mut world, "first"), "the first goes on");
    world.submit("demo", "/src/a", "/dst/b");
    for _ in 0..40 {
        world.advance(5_000);
        world.heartbeat("d", "1", &["/dst"], &[]);
        assert!(ready(&mut world, "first") && !ready(&mut world, "second"));
        assert_eq!(world.poll("s", "second"), None);
        let reason = view(&mut world).reason.expect("a reason");
        assert!(reason.contains("two agents"), "{reason}");
    }
    assert!(world.poll("s", "first").is_some());
    // A third one is refused as well, and restores neither of them.
    assert!(ready(&mut world, "third") && ready(&mut world, "first"));
    assert!(!ready(&mut world, "second") && !ready(&mut world, "third"));
    // The first is gone: nothing that the second does keeps it alive.
    for _ in 0..10 {
        world.advance(5_000);
        world.heartbeat("d", "1", &["/dst"], &[]);
        world.poll("s", "second");
    }
    assert!(ready(&mut world, "second"));
    assert!(world.poll("s", "second").is_some());
    assert_eq!(view(&mut world).reason, None);
}

#[test]
fn a_restarted_agent_is_accepted_at_once() {
    let mut world = World::new();
    for incarnation in ["1", "2", "2", "3", "4"] {
        assert!(ready(&mut world, incarnation));
        assert_eq!(view(&mut world).reason, None);
    }
}

#[test]
fn a_stopping_agent_does_not_displace_its_successor() {
    let mut world = World::new();
    assert!(ready(&mut world, "old") && ready(&mut world, "new"));
    let last = send_heartbeat(&mut world, "old", WorkerStatus::Draining);
    assert_eq!(last, Err("409 worker_id_taken".to_owned()));
    assert!(ready(&mut world, "new"));
    // The other way round: a waiting agent need not wait for the time-out.
    let mut world = World::new();
    assert!(ready(&mut world, "first") && ready(&mut world, "second"));
    assert!(ready(&mut world, "first") && !ready(&mut world, "second"));
    send_heartbeat(&mut world, "first", WorkerStatus::Draining).unwrap();
    assert!(ready(&mut world, "second"));
}

/// `s` with the storage paths `/src`, `/src/deep` and `/other`, of which `stuck` do not answer.
fn heartbeat_unavailable(
    world: &mut World,
    stuck: &[&str],
    in_hand: &[AssignmentId],
) -> HeartbeatReply {
    let beat = heartbeat("s", Some("1"), &["/other", "/src", "/src/deep"], in_hand);
    let unavailable_paths = stuck.iter().map(|path| unavailable_path(path)).collect();
    match world.apply(Event::Heartbeat(WorkerHeartbeat { unavailable_paths, ..beat })) {
        Some(Reply::Heartbeat(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hanging_storage_path_gets_no_work_and_its_tasks_are_moved() {
    let mut world = World::new();
    heartbeat_unavailable(&mut world, &[], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.submit("demo", "/src/a", "/dst/b");
    world.submit("fine", "/other/a", "/dst/c");
    world.submit("deep", "/src/deep/a", "/dst/d");
    let held: Vec<Assignment> = (0..3).map(|_| world.poll("s", "1").unwrap()).collect();
    let ids: Vec<AssignmentId> = held.iter().map(|a| a.assignment_id).collect();
    let reply = heartbeat_unavailable(&mut world, &["/src"], &ids);
    assert_eq!(reply.revoked_assignments, [held[0].assignment_id], "the others are not concerned");
    assert_eq!(world.poll("s", "1"), None);
    let reason = world.progress("demo").reason.unwrap();
    let found = "storage path /src of worker s is unavailable: it does not answer";
    assert!(reason.contains(found), "{reason}");
    assert_eq!(world.progress("demo").state, SyncState::Paused);
    world.submit("later", "/src/a", "/dst/e");
    let reason = world.progress("later").reason.unwrap();
    assert!(reason.contains("s (/src is unavailable: it does not answer)"), "{reason}");
    world.apply(Event::CancelSync("later".parse().unwrap()));
    let seen = view(&mut world);
    assert_eq!(seen.unavailable_paths, [unavailable_path("/src")]);
    assert_eq!(seen.storage_paths.len(), 3);
    world.heartbeat("s2", "1", &["/src"], &[]);
    assert_eq!(world.poll("s2", "1").expect("the scan").task_id, held[0].task_id);
    // What lies deeper is another file system; where that hangs, the one above it does not help.
    let reply = heartbeat_unavailable(&mut world, &["/src/deep"], &ids[1..]);
    assert_eq!(reply.revoked_assignments, [held[2].assignment_id]);
    assert_eq!(world.poll("s", "1"), None);
    heartbeat_unavailable(&mut world, &[], &ids[1..2]);
    assert_eq!(world.poll("s", "1").expect("it answers again").task_id, held[2].task_id);
    assert!(view(&mut world).unavailable_paths.is_empty());
}

#[test]
fn a_heartbeat_reply_names_the_silent_workers_of_the_destinations_in_hand() {
    let (mut world, scan) = scanning();
    world.heartbeat("other", "1", &["/other"], &[]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    let silent = |world: &mut World, worker: &str, path: &str, held: &[AssignmentId]| {
        let beat = heartbeat(worker, Some("1"), &[path], held);
        match world.apply(Event::Heartbeat(beat)) {
            Some(Reply::Heartbeat(reply)) => {
                reply.unresponsive_workers.iter().map(ToString::to_string).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    let held = [copy.assignment_id];
    assert!(silent(&mut world, "s", "/src", &held).is_empty());
    for _ in 0..12 {
        world.advance(5_000);
        silent(&mut world, "s", "/src", &held);
    }
    // `other` is silent as well, and holds nothing that `s` writes to.
    assert_eq!(silent(&mut world, "s", "/src", &held), ["d"]);
    assert!(silent(&mut world, "t", "/src", &[]).is_empty(), "it has nothing in hand");
    assert!(silent(&mut world, "d", "/dst", &[]).is_empty());
    assert!(silent(&mut world, "s", "/src", &held).is_empty(), "it is heard of again");
}

#[test]
fn no_assignment_lists_a_destination_that_hangs() {
    let (mut world, scan) = scanning();
    world.heartbeat("d2", "1", &["/dst"], &[]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let beat = heartbeat("d", Some("1"), &["/dst"], &[]);
    let unavailable_paths = vec![unavailable_path("/dst")];
    world.apply(Event::Heartbeat(WorkerHeartbeat { unavailable_paths, ..beat }));
    let copy = poll_kind(&mut world, "s", "copy");
    let names: Vec<&str> = copy.destination_workers.iter().map(|m| m.worker_id.as_str()).collect();
    assert_eq!(names, ["d2"]);
}
