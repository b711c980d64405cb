//! Progress of leased tasks, rates of syncs, and the silent worker that a sync waits for.

use super::*;
use crate::wire::worker::HeartbeatReply;

const MIB: u64 = 1 << 20;

/// The sync `demo` of a large file of `ranges` ranges, and its first assignments at `s`.
fn sending(ranges: u64, taken: usize) -> (World, Vec<Assignment>) {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![large_item(ranges)], None));
    let taken = (0..taken).map(|_| poll_kind(&mut world, "s", "range")).collect();
    (world, taken)
}

/// A heartbeat of `s` with the bytes moved for each of its assignments.
fn heartbeat_moved(world: &mut World, all: &[(&Assignment, u64)]) -> HeartbeatReply {
    let ids: Vec<AssignmentId> = all.iter().map(|(a, _)| a.assignment_id).collect();
    let beat = heartbeat("s", Some("1"), &["/src"], &ids);
    let moved_bytes = all.iter().map(|(a, bytes)| (a.assignment_id, *bytes)).collect();
    match world.apply(Event::Heartbeat(WorkerHeartbeat { moved_bytes, ..beat })) {
        Some(Reply::Heartbeat(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

fn bytes(world: &mut World) -> (u64, u64) {
    let sync = world.progress("demo");
    (sync.transferred_bytes, sync.total_bytes)
}

#[test]
fn bytes_under_way_are_progress_and_a_result_counts_them_once() {
    let (mut world, taken) = sending(3, 2);
    let [one, two] = [&taken[0], &taken[1]];
    assert_eq!(bytes(&mut world), (0, 3 * MIB - 5));
    heartbeat_moved(&mut world, &[(one, 1000), (two, 50)]);
    assert_eq!(bytes(&mut world).0, 1050);
    heartbeat_moved(&mut world, &[(one, 2000), (two, 50)]);
    assert_eq!(bytes(&mut world).0, 2050);
    // What is sent again within an attempt counts once.
    heartbeat_moved(&mut world, &[(one, 5 * MIB), (two, 50)]);
    assert_eq!(bytes(&mut world).0, MIB + 50);
    world.post_result(result(one, true, all_done(one, "d")));
    assert_eq!(bytes(&mut world).0, MIB + 50);
    // Late news of an assignment that ended.
    heartbeat_moved(&mut world, &[(one, MIB), (two, 70)]);
    assert_eq!(bytes(&mut world).0, MIB + 70);
}

#[test]
fn bytes_of_a_failed_or_lost_attempt_are_subtracted() {
    let (mut world, taken) = sending(3, 2);
    let [one, two] = [&taken[0], &taken[1]];
    heartbeat_moved(&mut world, &[(one, 1000), (two, 50)]);
    world.post_result(result(one, false, TaskReport::default()));
    assert_eq!(bytes(&mut world).0, 50);
    world.heartbeat("s", "2", &["/src"], &[]);
    assert_eq!(bytes(&mut world).0, 0);
}

#[test]
fn bytes_in_flight_never_exceed_the_total() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(2, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    heartbeat_moved(&mut world, &[(&copy, u64::MAX)]);
    assert_eq!(bytes(&mut world), (20, 20));
}

#[test]
fn a_sync_has_a_rate_from_its_first_byte_and_an_estimate_while_it_progresses() {
    let (mut world, taken) = sending(100, 1);
    for _ in 0..5 {
        world.advance(1_000);
        heartbeat_moved(&mut world, &[(&taken[0], 0)]);
    }
    let sync = world.progress("demo");
    assert_eq!((sync.rate, sync.eta_seconds), (None, None));
    for second in 1..=5 {
        heartbeat_moved(&mut world, &[(&taken[0], second * 100_000)]);
        world.advance(1_000);
    }
    let sync = world.progress("demo");
    let rate = sync.rate.expect("a rate");
    assert!((90_000..=100_000).contains(&rate), "{rate}");
    let left = sync.total_bytes - sync.transferred_bytes;
    assert_eq!(sync.eta_seconds, Some((left as f64 / 100_000.0).ceil() as u64));
    // Paused, it has none.
    world.apply(Event::PauseSync("demo".parse().unwrap()));
    let sync = world.progress("demo");
    assert_eq!((sync.rate, sync.eta_seconds), (None, None));
}

#[test]
fn skipped_bytes_take_no_time_in_the_estimate() {
    let (mut world, scan) = scanning();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(40, 0)], None));
    let [one, two] = [0; 2].map(|_| poll_kind(&mut world, "s", "copy"));
    let (skipped, copied) = match one.task {
        TaskSpec::Copy { files: 1, .. } => (two, one),
        _ => (one, two),
    };
    let report = TaskReport {
        files_skipped: 40,
        bytes_skipped: 400,
        writers: vec!["d".parse().unwrap()],
        ..TaskReport::default()
    };
    world.post_result(result(&skipped, true, report));
    for second in 0..=5 {
        heartbeat_moved(&mut world, &[(&copied, second)]);
        world.advance(1_000);
    }
    let sync = world.progress("demo");
    assert_eq!((sync.transferred_bytes, sync.bytes_skipped, sync.total_bytes), (5, 400, 410));
    assert_eq!(sync.eta_seconds, Some(5), "{sync:#?}");
}

#[test]
fn a_sync_without_progress_has_no_estimate_and_names_the_silent_worker() {
    let (mut world, taken) = sending(100, 1);
    for second in 1..=3 {
        heartbeat_moved(&mut world, &[(&taken[0], second * 100_000)]);
        world.advance(1_000);
    }
    assert!(world.progress("demo").eta_seconds.is_some());
    world.heartbeat("d2", "1", &["/dst"], &[]);
    // `d`, the receiver, is silent from now on.
    for _ in 0..60 {
        world.advance(1_000);
        world.heartbeat("d2", "1", &["/dst"], &[]);
        heartbeat_moved(&mut world, &[(&taken[0], 300_000)]);
    }
    let sync = world.progress("demo");
    assert_eq!(sync.eta_seconds, None);
    let reason = sync.reason.expect("a reason");
    assert!(reason.contains("worker d has sent no heartbeat for 1m"), "{reason}");
    heartbeat_moved(&mut world, &[(&taken[0], 400_000)]);
    assert_eq!(world.progress("demo").reason, None);
}

#[test]
fn workers_of_a_watched_sync_report_each_second() {
    let (mut world, taken) = sending(3, 1);
    assert_eq!(heartbeat_moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_500));
    world.progress("demo");
    world.advance(4_900);
    assert_eq!(heartbeat_moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_000));
    world.advance(100);
    assert_eq!(heartbeat_moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_500));
}
