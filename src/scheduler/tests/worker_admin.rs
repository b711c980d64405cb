//! Operations on workers: drain, undrain, forget, reassign.

use super::*;
use crate::wire::worker::{DrainReply, DrainRequest, WorkerState, WorkerView};

fn drain(world: &mut World, worker: &str, on: bool) -> Reply {
    let order = DrainRequest { by: Some("ann".into()), reason: Some("new disks".into()) };
    let event = Event::DrainWorker { worker: worker.parse().unwrap(), order: on.then_some(order) };
    world.apply(event).unwrap()
}

fn drained(world: &mut World, worker: &str) -> DrainReply {
    match drain(world, worker, true) {
        Reply::DrainUpdated(order) => *order,
        other => panic!("{other:?}"),
    }
}

fn forget(world: &mut World, worker: &str) -> Reply {
    world.apply(Event::ForgetWorker(worker.parse().unwrap())).unwrap()
}

fn reassign(world: &mut World, worker: &str) -> Reply {
    let event =
        Event::ReassignTasks { id: "demo".parse().unwrap(), worker: worker.parse().unwrap() };
    world.apply(event).unwrap()
}

fn code(reply: Reply) -> String {
    match reply {
        Reply::Refused(problem) => format!("{} {}", problem.status, problem.code),
        other => panic!("{other:?}"),
    }
}

pub(super) fn view(world: &mut World, worker: &str) -> WorkerView {
    let Some(Reply::Workers(list)) = world.apply(Event::ListWorkers) else { panic!() };
    let mut all = list.active.into_iter().chain(list.inactive);
    all.find(|view| view.worker_id.as_str() == worker).unwrap()
}

fn member_ids(members: &[crate::wire::task::PoolMember]) -> Vec<&str> {
    members.iter().map(|member| member.worker_id.as_str()).collect()
}

/// The sync `demo` of two batches, with two workers on each side.
fn four_workers() -> World {
    let (mut world, scan) = scanning();
    world.heartbeat("s2", "1", &["/src"], &[]);
    world.heartbeat("d2", "1", &["/dst"], &[]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    world
}

#[test]
fn a_drained_worker_gets_nothing_new_and_what_it_has_counts() {
    let mut world = four_workers();
    let first = poll_kind(&mut world, "s", "copy");
    assert_eq!(member_ids(&first.destination_workers), ["d", "d2"]);
    assert_eq!(drained(&mut world, "s").in_flight, 1);
    drained(&mut world, "d2");
    assert_eq!(world.poll("s", "1"), None);
    let second = poll_kind(&mut world, "s2", "copy");
    assert_eq!(member_ids(&second.destination_workers), ["d"], "a drained one receives nothing");
    assert_eq!(member_ids(&second.source_workers), ["s2"]);
    let late = result(&first, true, all_done(&first, "d2"));
    assert_eq!(world.post_result(late), Some(ResultOutcome::Applied));
    world.post_result(result(&second, true, all_done(&second, "d")));
    // A writer flushes, drained or not; it gets nothing else.
    complete_kind(&mut world, "d", "flush");
    complete_kind(&mut world, "d2", "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}

/// A heartbeat of a process of `d` that executes this number of requests of others.
fn receives(world: &mut World, incarnation: &str, receiving: u32, status: WorkerStatus) {
    let beat = heartbeat("d", Some(incarnation), &["/dst"], &[]);
    let event = Event::Heartbeat(WorkerHeartbeat { incoming_requests: receiving, status, ..beat });
    assert!(matches!(world.apply(event), Some(Reply::Heartbeat(_))));
}

#[test]
fn a_receiver_is_drained_once_no_worker_writes_through_it() {
    let mut world = four_workers();
    let first = poll_kind(&mut world, "s", "copy");
    assert_eq!(view(&mut world, "d").state, WorkerState::Active);
    world.advance(1_000);
    let order = drained(&mut world, "d");
    // The task of `s` lists it.
    assert_eq!(
        (order.state, order.in_flight, order.incoming_requests),
        (WorkerState::Draining, 0, 0)
    );
    world.advance(1_000);
    let second = poll_kind(&mut world, "s2", "copy");
    receives(&mut world, "1", 4, WorkerStatus::Idle);
    assert_eq!(view(&mut world, "d").incoming_requests, 4);
    world.post_result(result(&first, true, all_done(&first, "d")));
    assert_eq!(drained(&mut world, "d").state, WorkerState::Draining, "it still receives");
    receives(&mut world, "1", 0, WorkerStatus::Idle);
    let order = drained(&mut world, "d");
    assert_eq!((order.state, order.incoming_requests), (WorkerState::Drained, 0));
    // What `s2` got since does not list it.
    world.post_result(result(&second, true, all_done(&second, "d2")));
    assert_eq!(view(&mut world, "d").state, WorkerState::Drained);
}

#[test]
fn an_ending_agent_is_draining_while_it_receives_and_stopped_once_it_reports_that() {
    let mut world = four_workers();
    receives(&mut world, "1", 1, WorkerStatus::Draining);
    assert_eq!(view(&mut world, "d").state, WorkerState::Draining);
    assert_eq!(code(forget(&mut world, "d")), "409 worker_active");
    receives(&mut world, "1", 0, WorkerStatus::Stopped);
    let seen = view(&mut world, "d");
    assert_eq!((seen.state, seen.active), (WorkerState::Stopped, false));
    assert_eq!(seen.reason.as_deref(), Some("its agent was stopped"));
    // Its last poll, which comes late.
    world.poll("d", "1");
    assert_eq!(view(&mut world, "d").state, WorkerState::Stopped);
    // The next process is welcome at once, and one that is not to come is forgotten at once.
    world.heartbeat("d", "2", &["/dst"], &[]);
    assert_eq!(view(&mut world, "d").state, WorkerState::Active);
    receives(&mut world, "2", 0, WorkerStatus::Stopped);
    assert!(matches!(forget(&mut world, "d"), Reply::Forgotten(_)));
}

#[test]
fn a_drain_order_outlives_the_master_and_the_agent() {
    let mut world = four_workers();
    drained(&mut world, "s");
    let since = drained(&mut world, "s").drained.unwrap().since;
    world.restart();
    world.heartbeat("s", "2", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    assert_eq!(world.poll("s", "2"), None);
    let seen = view(&mut world, "s");
    assert_eq!((seen.status, seen.drained.unwrap().since), (WorkerStatus::Draining, since));
    assert_eq!(seen.reason.as_deref(), Some("drained by ann: new disks"));
    assert!(matches!(drain(&mut world, "s", false), Reply::DrainUpdated(o) if o.drained.is_none()));
    assert!(world.poll("s", "2").is_some());
    assert!(view(&mut world, "s").drained.is_none());
}

#[test]
fn a_sync_whose_only_worker_is_drained_reports_it() {
    for (worker, role) in [("s", "source"), ("d", "destination")] {
        let (mut world, scan) = scanning();
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        drained(&mut world, worker);
        assert_eq!(world.poll("s", "1"), None);
        let reason = world.progress("demo").reason.unwrap();
        assert!(reason.contains(role) && reason.contains("drained by ann: new disks"), "{reason}");
        // A poll that waits gets its work as soon as the worker is back.
        start_poll(&mut world, "s", 1_000);
        drain(&mut world, worker, false);
        let answers: Vec<&Reply> = world.replies.values().collect();
        assert!(matches!(answers[..], [Reply::Assignment(Some(_))]), "{answers:?}");
    }
}

#[test]
fn only_a_known_worker_can_be_drained_and_an_absent_one_undrained() {
    let mut world = four_workers();
    assert_eq!(code(drain(&mut world, "typo", true)), "404 worker_not_found");
    assert_eq!(code(drain(&mut world, "typo", false)), "404 worker_not_found");
    drained(&mut world, "s");
    world.restart();
    assert!(matches!(drain(&mut world, "s", false), Reply::DrainUpdated(_)));
    assert!(!world.records.contains_key("d/s"));
}

#[test]
fn a_silent_worker_is_forgotten_and_its_tasks_are_free_at_once() {
    let mut world = four_workers();
    let held = poll_kind(&mut world, "s", "copy");
    drained(&mut world, "s");
    assert_eq!(code(forget(&mut world, "s")), "409 worker_active");
    // It falls silent before its lease runs out.
    world.state.settings.heartbeat_timeout_ms = 10_000;
    for _ in 0..3 {
        world.advance(5_000);
        world.heartbeat("s2", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    let before = world.progress("demo").detail;
    assert!(before.contains_key("s"), "{before:?}");
    assert!(matches!(forget(&mut world, "s"), Reply::Forgotten(f) if f.requeued == 1));
    assert_eq!(code(forget(&mut world, "s")), "404 worker_not_found");
    assert!(!world.records.contains_key("d/s"));
    for _ in 0..2 {
        complete_kind(&mut world, "s2", "copy");
    }
    let late = result(&held, true, all_done(&held, "d"));
    assert_eq!(world.post_result(late), Some(ResultOutcome::Stale));
    // It may come back as if it had never been there.
    world.heartbeat("s", "2", &["/src"], &[]);
    assert!(view(&mut world, "s").active);
}

#[test]
fn reassigned_tasks_go_to_others_and_late_results_are_stale() {
    let mut world = four_workers();
    let (first, second) = (poll_kind(&mut world, "s", "copy"), poll_kind(&mut world, "s", "copy"));
    assert!(matches!(reassign(&mut world, "s"), Reply::Reassigned(r) if r.tasks == 2));
    assert_eq!(world.poll("s", "1"), None, "they are for others");
    complete_kind(&mut world, "s2", "copy");
    for late in [&first, &second] {
        let late = result(late, true, all_done(late, "d"));
        assert_eq!(world.post_result(late), Some(ResultOutcome::Stale));
    }
    let beat = heartbeat("s", Some("1"), &["/src"], &[first.assignment_id, second.assignment_id]);
    let Some(Reply::Heartbeat(reply)) = world.apply(Event::Heartbeat(beat)) else { panic!() };
    assert_eq!(reply.revoked_assignments, [first.assignment_id, second.assignment_id]);
    // Not for ever: the others may never poll.
    for _ in 0..60 {
        world.advance(5_000);
        for (worker, path) in [("s", "/src"), ("s2", "/src"), ("d", "/dst"), ("d2", "/dst")] {
            world.heartbeat(worker, "1", &[path], &[]);
        }
    }
    complete_kind(&mut world, "s", "copy");
    // It is not known through which workers it wrote: all reachable ones flush.
    complete_kind(&mut world, "d", "flush");
    complete_kind(&mut world, "d2", "flush");
    assert_completed(&mut world, 2, 2);
}

#[test]
fn nothing_is_reassigned_from_an_idle_worker_or_an_ended_sync() {
    let mut world = four_workers();
    assert!(matches!(reassign(&mut world, "s2"), Reply::Reassigned(r) if r.tasks == 0));
    assert_eq!(code(reassign(&mut world, "typo")), "404 worker_not_found");
    world.apply(Event::CancelSync("demo".parse().unwrap()));
    assert_eq!(code(reassign(&mut world, "s")), "409 sync_ended");
    let event = Event::ReassignTasks { id: "no".parse().unwrap(), worker: "s".parse().unwrap() };
    assert_eq!(code(world.apply(event).unwrap()), "404 sync_not_found");
}

#[test]
fn a_flush_stays_with_the_writer() {
    let mut world = four_workers();
    complete_kind(&mut world, "s", "copy");
    complete_kind(&mut world, "s", "copy");
    let flush = poll_kind(&mut world, "d", "flush");
    assert!(matches!(reassign(&mut world, "d"), Reply::Reassigned(r) if r.tasks == 0));
    assert_eq!(
        world.post_result(result(&flush, true, TaskReport::default())),
        Some(ResultOutcome::Applied)
    );
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}

fn requests(world: &mut World, worker: &str) -> Vec<String> {
    match world.apply(Event::ListWorkerRequests(worker.parse().unwrap())).unwrap() {
        Reply::RequestIds(ids) => ids.iter().map(|id| id.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_is_shown_with_the_syncs_that_it_works_on() {
    let mut world = four_workers();
    assert_eq!(requests(&mut world, "s"), [""; 0]);
    poll_kind(&mut world, "s", "copy");
    world.submit("other", "/src/c", "/dst/c");
    poll_kind(&mut world, "s", "scan");
    assert_eq!(requests(&mut world, "s"), ["demo", "other"]);
    assert_eq!(requests(&mut world, "s2"), [""; 0]);
    for worker in ["s", "s2", "d"] {
        let shown = world.apply(Event::GetWorker(worker.parse().unwrap()));
        let Some(Reply::Worker(shown)) = shown else { panic!("{shown:?}") };
        assert_eq!(*shown, view(&mut world, worker), "as in the list");
        assert_eq!((shown.in_flight, shown.syncs), if worker == "s" { (2, 2) } else { (0, 0) });
    }
    // A deleted sync has no name any more; its id may be another one's by now.
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    assert_eq!(requests(&mut world, "s"), ["other"]);
    for event in [Event::GetWorker, Event::ListWorkerRequests] {
        let reply = world.apply(event("nobody".parse().unwrap())).unwrap();
        assert_eq!(code(reply), "404 worker_not_found");
    }
}

#[test]
fn each_assignment_names_its_extent_and_the_ids_of_its_pools() {
    let (mut world, scan) = scanning();
    world.heartbeat("d2", "1", &["/dst"], &[]);
    let extent = |a: &Assignment| (a.chunk_offset, a.chunk_size);
    assert_eq!(extent(&scan), (0, 0));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(3, 1), large_item(2)], None));
    let copy = complete_kind(&mut world, "s", "copy");
    let TaskSpec::Copy { bytes, .. } = copy.task else { panic!() };
    assert!(bytes > 0);
    assert_eq!(extent(&copy), (0, bytes));
    assert_eq!(copy.source_worker_pool, ["s".parse().unwrap()]);
    assert_eq!(copy.destination_worker_pool, ["d", "d2"].map(|w| w.parse().unwrap()));
    let (first, second) =
        (complete_kind(&mut world, "s", "range"), complete_kind(&mut world, "s", "range"));
    let (a, b) = (extent(&first), extent(&second));
    assert_eq!((a.0, b.0), (0, a.1), "the second begins where the first ends");
    assert!(a.1 > 0 && b.1 > 0);
    assert_eq!(extent(&complete_kind(&mut world, "d", "commit")), (0, a.1 + b.1));
    assert_eq!(extent(&poll_kind(&mut world, "d", "flush")), (0, 0));
}

#[test]
fn clean_up_of_a_deleted_sync_names_no_sync() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(2)], None));
    complete_kind(&mut world, "s", "range");
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    for _ in 0..40 {
        world.advance(1_000);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    poll_kind(&mut world, "d", "discard");
    assert_eq!(view(&mut world, "d").in_flight, 1);
    assert_eq!(requests(&mut world, "d"), [""; 0], "its id may be another one's by now");
}
