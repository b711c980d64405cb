//! Tasks for a destination of which no worker can be reached: its agents may be restarting.

use super::*;

/// The sync `demo` with a batch to copy from `s` to `d`. A failed task is repeated `max_retries` times.
fn copying(max_retries: u32) -> World {
    let (mut world, scan) = scanning();
    world.state.settings.max_retries = max_retries;
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    world
}

/// The next attempt of the copy, and the time that passed until then. `each_second` runs once a second.
fn next_copy(world: &mut World, mut each_second: impl FnMut(&mut World)) -> Option<Assignment> {
    for _ in 0..60 {
        if let Some(task) = world.poll("s", "1") {
            assert_eq!(task.task.kind(), "copy");
            return Some(task);
        }
        world.advance(1_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        each_second(world);
    }
    None
}

fn post_unreachable(world: &mut World, task: &Assignment, workers: &[&str]) {
    let unreachable = workers.iter().map(|worker| worker.parse().unwrap()).collect();
    world.post_result(result(task, false, TaskReport { unreachable, ..TaskReport::default() }));
}

#[test]
fn attempts_are_not_charged_until_the_heartbeat_timeout_and_the_task_then_waits() {
    let mut world = copying(0);
    let began = world.now.mono_ms;
    let mut attempts = 0;
    while let Some(copy) = next_copy(&mut world, |_| {}) {
        let pool: Vec<&str> = copy.destination_worker_pool.iter().map(|id| id.as_str()).collect();
        assert_eq!(pool, ["d"]);
        post_unreachable(&mut world, &copy, &["d"]);
        attempts += 1;
        assert!(attempts < 20, "each delay is longer than the one before");
        assert_eq!(world.progress("demo").files_failed, 0, "attempt {attempts}");
    }
    assert!(attempts >= 5, "{attempts}");
    assert!(world.now.mono_ms - began > world.state.settings.heartbeat_timeout_ms);
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Progress, "{waits:?}");
    assert!(waits.reason.unwrap().contains("no active worker serves the destination path"));
    world.heartbeat("d", "2", &["/dst"], &[]);
    complete_kind(&mut world, "s", "copy");
    complete_kind_of_restarted(&mut world, "flush");
    assert_eq!(world.progress("demo").state, SyncState::Completed);
}

/// A task of worker `d`, of which another process runs now.
fn complete_kind_of_restarted(world: &mut World, kind: &str) {
    let task = world.poll("d", "2").unwrap();
    assert_eq!(task.task.kind(), kind);
    world.post_result(result(&task, true, all_done(&task, "d")));
}

#[test]
fn a_worker_that_is_back_gets_the_tasks_that_waited_for_it_at_once() {
    let mut world = copying(0);
    for _ in 0..4 {
        let copy = next_copy(&mut world, |_| {}).unwrap();
        post_unreachable(&mut world, &copy, &["d"]);
    }
    assert_eq!(world.poll("s", "1"), None, "it is delayed");
    world.heartbeat("d", "2", &["/dst"], &[]);
    // A request that was under way when the agent started is not charged either.
    let copy = poll_kind(&mut world, "s", "copy");
    post_unreachable(&mut world, &copy, &["d"]);
    let copy = next_copy(&mut world, |_| {}).unwrap();
    world.post_result(result(&copy, true, all_done(&copy, "d")));
    complete_kind_of_restarted(&mut world, "flush");
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_done, end.files_failed), (SyncState::Completed, 1, 0));
}

/// Something else is wrong than a restart: no route, or no such port.
#[test]
fn a_worker_that_sends_heartbeats_and_cannot_be_reached_fails_the_task() {
    let mut world = copying(1);
    let mut attempts = 0;
    loop {
        let alive = |world: &mut World| world.heartbeat("d", "1", &["/dst"], &[]);
        let Some(copy) = next_copy(&mut world, alive) else { break };
        // Also between attempts that follow one another at once.
        world.advance(10);
        alive(&mut world);
        world.advance(10);
        post_unreachable(&mut world, &copy, &["d"]);
        attempts += 1;
        if world.progress("demo").files_failed > 0 {
            break;
        }
    }
    // Of these the first is not charged, and two more than the limit of single entries are allowed.
    assert_eq!((attempts, world.progress("demo").files_failed), (4, 1));
    let failed = &world.progress("demo").errors[0];
    assert_eq!(failed.message, "it broke");
}

#[test]
fn one_of_several_workers_that_may_be_restarting_is_enough_to_wait() {
    let mut world = copying(0);
    world.heartbeat("d2", "1", &["/dst"], &[]);
    // Of the two, `d2` sends heartbeats and cannot be reached.
    let alive = |world: &mut World| world.heartbeat("d2", "1", &["/dst"], &[]);
    let mut tried = Vec::new();
    while world.progress("demo").files_failed == 0 {
        let copy = next_copy(&mut world, alive).unwrap();
        let pool: Vec<String> =
            copy.destination_worker_pool.iter().map(ToString::to_string).collect();
        let workers: Vec<&str> = pool.iter().map(String::as_str).collect();
        world.advance(10);
        alive(&mut world);
        world.advance(10);
        post_unreachable(&mut world, &copy, &workers);
        tried.push(pool.len());
    }
    // It fails once only the worker is left that is not restarting.
    let with_both = tried.iter().take_while(|workers| **workers == 2).count();
    assert!(with_both >= 5, "{tried:?}");
    assert_eq!(tried[with_both..], [1], "{tried:?}");
}

/// What is not charged to tasks still shows which worker has no route to the destination.
#[test]
fn a_worker_that_alone_cannot_reach_the_destination_is_put_into_quarantine() {
    let (mut world, scan) = scanning();
    world.heartbeat("s2", "1", &["/src"], &[]);
    world.post_page(&scan, page(&scan, 0, (0..30).map(|_| copy_item(1, 0)).collect(), None));
    for _ in 0..10 {
        complete_kind(&mut world, "s2", "copy");
        let copy = poll_kind(&mut world, "s", "copy");
        post_unreachable(&mut world, &copy, &["d"]);
        if world.state.workers.health.quarantine_reason(&"s".parse().unwrap()).is_some() {
            assert_eq!(world.progress("demo").files_failed, 0);
            return;
        }
    }
    panic!("every task fails on it");
}
