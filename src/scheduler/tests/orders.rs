//! What operators want of workers: drain, undrain, forget, reassign.

use super::*;
use crate::wire::worker::{DrainReply, DrainRequest, WorkerState, WorkerView};

fn drain(world: &mut World, worker: &str, on: bool) -> Reply {
    let order = DrainRequest { by: Some("ann".into()), reason: Some("new disks".into()) };
    let event = Event::Drain { worker: worker.parse().unwrap(), order: on.then_some(order) };
    world.play(event).unwrap()
}

fn drained(world: &mut World, worker: &str) -> DrainReply {
    match drain(world, worker, true) {
        Reply::Ordered(order) => *order,
        other => panic!("{other:?}"),
    }
}

fn forget(world: &mut World, worker: &str) -> Reply {
    world.play(Event::Forget(worker.parse().unwrap())).unwrap()
}

fn reassign(world: &mut World, worker: &str) -> Reply {
    let event = Event::Reassign { id: "demo".parse().unwrap(), worker: worker.parse().unwrap() };
    world.play(event).unwrap()
}

fn code(reply: Reply) -> String {
    match reply {
        Reply::Refused(problem) => format!("{} {}", problem.status, problem.code),
        other => panic!("{other:?}"),
    }
}

fn view(world: &mut World, worker: &str) -> WorkerView {
    let Some(Reply::Workers(list)) = world.play(Event::Workers) else { panic!() };
    let mut all = list.active.into_iter().chain(list.inactive);
    all.find(|view| view.worker_id.as_str() == worker).unwrap()
}

fn named(members: &[crate::wire::task::PoolMember]) -> Vec<&str> {
    members.iter().map(|member| member.worker_id.as_str()).collect()
}

/// The sync `demo` of two batches, with two workers on each side.
fn four() -> World {
    let (mut world, scan) = scanning();
    world.beat("s2", "1", &["/src"], &[]);
    world.beat("d2", "1", &["/dst"], &[]);
    world.post(&scan, page(&scan, 0, vec![batch(1, 0), batch(1, 0)], None));
    world
}

#[test]
fn a_drained_worker_gets_nothing_new_and_what_it_has_counts() {
    let mut world = four();
    let first = next(&mut world, "s", "copy");
    assert_eq!(named(&first.destination_workers), ["d", "d2"]);
    assert_eq!(drained(&mut world, "s").in_flight, 1);
    drained(&mut world, "d2");
    assert_eq!(world.poll("s", "1"), None);
    let second = next(&mut world, "s2", "copy");
    assert_eq!(named(&second.destination_workers), ["d"], "a drained one receives nothing");
    assert_eq!(named(&second.source_workers), ["s2"]);
    let late = result(&first, true, all_done(&first, "d2"));
    assert_eq!(world.finish(late), Some(ResultOutcome::Applied));
    world.finish(result(&second, true, all_done(&second, "d")));
    // Who wrote flushes, drained or not; only that.
    done(&mut world, "d", "flush");
    done(&mut world, "d2", "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}

/// A heartbeat of a process of `d` that executes so many requests of others.
fn receives(world: &mut World, incarnation: &str, receiving: u32, status: WorkerStatus) {
    let beat = heartbeat("d", Some(incarnation), &["/dst"], &[]);
    let event = Event::Heartbeat(WorkerHeartbeat { incoming_requests: receiving, status, ..beat });
    assert!(matches!(world.play(event), Some(Reply::Heartbeat(_))));
}

#[test]
fn a_receiver_is_drained_once_nobody_writes_through_it() {
    let mut world = four();
    let first = next(&mut world, "s", "copy");
    assert_eq!(view(&mut world, "d").state, WorkerState::Active);
    world.pass(1_000);
    let order = drained(&mut world, "d");
    // The task of `s` lists it.
    assert_eq!((order.state, order.in_flight, order.receiving), (WorkerState::Draining, 0, 0));
    world.pass(1_000);
    let second = next(&mut world, "s2", "copy");
    receives(&mut world, "1", 4, WorkerStatus::Idle);
    assert_eq!(view(&mut world, "d").receiving, 4);
    world.finish(result(&first, true, all_done(&first, "d")));
    assert_eq!(drained(&mut world, "d").state, WorkerState::Draining, "it still receives");
    receives(&mut world, "1", 0, WorkerStatus::Idle);
    let order = drained(&mut world, "d");
    assert_eq!((order.state, order.receiving), (WorkerState::Drained, 0));
    // What `s2` got since does not list it.
    world.finish(result(&second, true, all_done(&second, "d2")));
    assert_eq!(view(&mut world, "d").state, WorkerState::Drained);
}

#[test]
fn an_agent_that_ends_is_draining_while_it_receives_and_stopped_once_it_says_so() {
    let mut world = four();
    receives(&mut world, "1", 1, WorkerStatus::Draining);
    assert_eq!(view(&mut world, "d").state, WorkerState::Draining);
    assert_eq!(code(forget(&mut world, "d")), "409 worker_alive");
    receives(&mut world, "1", 0, WorkerStatus::Stopped);
    let seen = view(&mut world, "d");
    assert_eq!((seen.state, seen.active), (WorkerState::Stopped, false));
    assert_eq!(seen.reason.as_deref(), Some("its agent was stopped"));
    // Its last poll, which comes late.
    world.poll("d", "1");
    assert_eq!(view(&mut world, "d").state, WorkerState::Stopped);
    // The next process is welcome at once, and one that is not to come is forgotten at once.
    world.beat("d", "2", &["/dst"], &[]);
    assert_eq!(view(&mut world, "d").state, WorkerState::Active);
    receives(&mut world, "2", 0, WorkerStatus::Stopped);
    assert!(matches!(forget(&mut world, "d"), Reply::Forgotten(_)));
}

#[test]
fn what_was_ordered_outlives_the_master_and_the_agent() {
    let mut world = four();
    drained(&mut world, "s");
    let since = drained(&mut world, "s").drained.unwrap().since;
    world.restart();
    world.beat("s", "2", &["/src"], &[]);
    world.beat("d", "1", &["/dst"], &[]);
    assert_eq!(world.poll("s", "2"), None);
    let seen = view(&mut world, "s");
    assert_eq!((seen.status, seen.drained.unwrap().since), (WorkerStatus::Draining, since));
    assert_eq!(seen.reason.as_deref(), Some("drained by ann: new disks"));
    assert!(matches!(drain(&mut world, "s", false), Reply::Ordered(o) if o.drained.is_none()));
    assert!(world.poll("s", "2").is_some());
    assert!(view(&mut world, "s").drained.is_none());
}

#[test]
fn a_sync_whose_only_worker_is_drained_says_so() {
    for (worker, role) in [("s", "source"), ("d", "destination")] {
        let (mut world, scan) = scanning();
        world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
        drained(&mut world, worker);
        assert_eq!(world.poll("s", "1"), None);
        let reason = world.progress("demo").reason.unwrap();
        assert!(reason.contains(role) && reason.contains("drained by ann: new disks"), "{reason}");
        // A poll that waits gets its work as soon as the worker is back.
        wait(&mut world, "s", 1_000);
        drain(&mut world, worker, false);
        let answers: Vec<&Reply> = world.answers.values().collect();
        assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
    }
}

#[test]
fn only_a_worker_that_is_known_is_drained_and_one_that_is_away_can_be_undrained() {
    let mut world = four();
    assert_eq!(code(drain(&mut world, "typo", true)), "404 worker_not_found");
    assert_eq!(code(drain(&mut world, "typo", false)), "404 worker_not_found");
    drained(&mut world, "s");
    world.restart();
    assert!(matches!(drain(&mut world, "s", false), Reply::Ordered(_)));
    assert!(!world.records.contains_key("d/s"));
}

#[test]
fn a_silent_worker_is_forgotten_and_what_it_had_is_free_at_once() {
    let mut world = four();
    let held = next(&mut world, "s", "copy");
    drained(&mut world, "s");
    assert_eq!(code(forget(&mut world, "s")), "409 worker_alive");
    // It falls silent before its lease runs out.
    world.state.settings.heartbeat_timeout_ms = 10_000;
    for _ in 0..3 {
        world.pass(5_000);
        world.beat("s2", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
    let before = world.progress("demo").detail;
    assert!(before.contains_key("s"), "{before:?}");
    assert!(matches!(forget(&mut world, "s"), Reply::Forgotten(f) if f.requeued == 1));
    assert_eq!(code(forget(&mut world, "s")), "404 worker_not_found");
    assert!(!world.records.contains_key("d/s"));
    for _ in 0..2 {
        done(&mut world, "s2", "copy");
    }
    let late = result(&held, true, all_done(&held, "d"));
    assert_eq!(world.finish(late), Some(ResultOutcome::Stale));
    // It may come back as if it had never been there.
    world.beat("s", "2", &["/src"], &[]);
    assert!(view(&mut world, "s").active);
}

#[test]
fn reassigned_tasks_go_to_others_and_late_results_are_stale() {
    let mut world = four();
    let (first, second) = (next(&mut world, "s", "copy"), next(&mut world, "s", "copy"));
    assert!(matches!(reassign(&mut world, "s"), Reply::Reassigned(r) if r.tasks == 2));
    assert_eq!(world.poll("s", "1"), None, "they are for others");
    done(&mut world, "s2", "copy");
    for late in [&first, &second] {
        let late = result(late, true, all_done(late, "d"));
        assert_eq!(world.finish(late), Some(ResultOutcome::Stale));
    }
    let beat = heartbeat("s", Some("1"), &["/src"], &[first.assignment_id, second.assignment_id]);
    let Some(Reply::Heartbeat(reply)) = world.play(Event::Heartbeat(beat)) else { panic!() };
    assert_eq!(reply.revoked_assignments, [first.assignment_id, second.assignment_id]);
    // Not for ever: the others may never ask.
    for _ in 0..60 {
        world.pass(5_000);
        for (worker, path) in [("s", "/src"), ("s2", "/src"), ("d", "/dst"), ("d2", "/dst")] {
            world.beat(worker, "1", &[path], &[]);
        }
    }
    done(&mut world, "s", "copy");
    // Nobody knows through whom it wrote: all within its reach flush.
    done(&mut world, "d", "flush");
    done(&mut world, "d2", "flush");
    assert_completed(&mut world, 2, 2);
}

#[test]
fn nothing_is_taken_from_who_has_nothing_or_from_a_sync_that_has_ended() {
    let mut world = four();
    assert!(matches!(reassign(&mut world, "s2"), Reply::Reassigned(r) if r.tasks == 0));
    assert_eq!(code(reassign(&mut world, "typo")), "404 worker_not_found");
    world.play(Event::Cancel("demo".parse().unwrap()));
    assert_eq!(code(reassign(&mut world, "s")), "409 sync_ended");
    let event = Event::Reassign { id: "no".parse().unwrap(), worker: "s".parse().unwrap() };
    assert_eq!(code(world.play(event).unwrap()), "404 sync_not_found");
}

#[test]
fn a_flush_stays_with_who_wrote() {
    let mut world = four();
    done(&mut world, "s", "copy");
    done(&mut world, "s", "copy");
    let flush = next(&mut world, "d", "flush");
    assert!(matches!(reassign(&mut world, "d"), Reply::Reassigned(r) if r.tasks == 0));
    assert_eq!(
        world.finish(result(&flush, true, TaskReport::default())),
        Some(ResultOutcome::Applied)
    );
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}

fn requests(world: &mut World, worker: &str) -> Vec<String> {
    match world.play(Event::WorkerRequests(worker.parse().unwrap())).unwrap() {
        Reply::RequestIds(ids) => ids.iter().map(|id| id.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_is_shown_with_the_syncs_that_it_works_on() {
    let mut world = four();
    assert_eq!(requests(&mut world, "s"), [""; 0]);
    next(&mut world, "s", "copy");
    world.submit("other", "/src/c", "/dst/c");
    next(&mut world, "s", "scan");
    assert_eq!(requests(&mut world, "s"), ["demo", "other"]);
    assert_eq!(requests(&mut world, "s2"), [""; 0]);
    for worker in ["s", "s2", "d"] {
        let shown = world.play(Event::Worker(worker.parse().unwrap()));
        let Some(Reply::Worker(shown)) = shown else { panic!("{shown:?}") };
        assert_eq!(*shown, view(&mut world, worker), "as in the list");
        assert_eq!((shown.in_flight, shown.syncs), if worker == "s" { (2, 2) } else { (0, 0) });
    }
    // A deleted sync has no name any more; its id may be another one's by now.
    world.play(Event::Delete("demo".parse().unwrap()));
    assert_eq!(requests(&mut world, "s"), ["other"]);
    for event in [Event::Worker, Event::WorkerRequests] {
        let reply = world.play(event("nobody".parse().unwrap())).unwrap();
        assert_eq!(code(reply), "404 worker_not_found");
    }
}

#[test]
fn each_assignment_names_its_extent_and_the_ids_of_its_pools() {
    let (mut world, scan) = scanning();
    world.beat("d2", "1", &["/dst"], &[]);
    let extent = |a: &Assignment| (a.chunk_offset, a.chunk_size);
    assert_eq!(extent(&scan), (0, 0));
    world.post(&scan, page(&scan, 0, vec![batch(3, 1), large(2)], None));
    let copy = done(&mut world, "s", "copy");
    let TaskSpec::Copy { bytes, .. } = copy.task else { panic!() };
    assert!(bytes > 0);
    assert_eq!(extent(&copy), (0, bytes));
    assert_eq!(copy.source_worker_pool, ["s".parse().unwrap()]);
    assert_eq!(copy.destination_worker_pool, ["d", "d2"].map(|w| w.parse().unwrap()));
    let (first, second) = (done(&mut world, "s", "range"), done(&mut world, "s", "range"));
    let (a, b) = (extent(&first), extent(&second));
    assert_eq!((a.0, b.0), (0, a.1), "the second begins where the first ends");
    assert!(a.1 > 0 && b.1 > 0);
    assert_eq!(extent(&done(&mut world, "d", "commit")), (0, a.1 + b.1));
    assert_eq!(extent(&next(&mut world, "d", "flush")), (0, 0));
}

#[test]
fn what_is_left_to_do_for_a_deleted_sync_names_none() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(2)], None));
    done(&mut world, "s", "range");
    world.play(Event::Delete("demo".parse().unwrap()));
    for _ in 0..40 {
        world.pass(1_000);
        world.beat("d", "1", &["/dst"], &[]);
    }
    next(&mut world, "d", "discard");
    assert_eq!(view(&mut world, "d").in_flight, 1);
    assert_eq!(requests(&mut world, "d"), [""; 0], "its id may be another one's by now");
}
