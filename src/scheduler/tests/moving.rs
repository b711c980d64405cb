//! How far tasks under way are, how fast a sync goes, and whom it waits for.

use super::*;
use crate::wire::worker::HeartbeatReply;

const MIB: u64 = 1 << 20;

/// The sync `demo` of a large file of `ranges` ranges, and its first assignments at `s`.
fn sending(ranges: u64, taken: usize) -> (World, Vec<Assignment>) {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(ranges)], None));
    let taken = (0..taken).map(|_| next(&mut world, "s", "range")).collect();
    (world, taken)
}

/// A heartbeat of `s` that has moved so many bytes for each of its assignments.
fn moved(world: &mut World, all: &[(&Assignment, u64)]) -> HeartbeatReply {
    let ids: Vec<AssignmentId> = all.iter().map(|(a, _)| a.assignment_id).collect();
    let beat = heartbeat("s", Some("1"), &["/src"], &ids);
    let moved_bytes = all.iter().map(|(a, bytes)| (a.assignment_id, *bytes)).collect();
    match world.play(Event::Heartbeat(WorkerHeartbeat { moved_bytes, ..beat })) {
        Some(Reply::Heartbeat(reply)) => reply,
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
    moved(&mut world, &[(one, 1000), (two, 50)]);
    assert_eq!(bytes(&mut world).0, 1050);
    moved(&mut world, &[(one, 2000), (two, 50)]);
    assert_eq!(bytes(&mut world).0, 2050);
    // What is sent again within an attempt counts once.
    moved(&mut world, &[(one, 5 * MIB), (two, 50)]);
    assert_eq!(bytes(&mut world).0, MIB + 50);
    world.finish(result(one, true, all_done(one, "d")));
    assert_eq!(bytes(&mut world).0, MIB + 50);
    // Late news of an assignment that ended.
    moved(&mut world, &[(one, MIB), (two, 70)]);
    assert_eq!(bytes(&mut world).0, MIB + 70);
}

#[test]
fn what_a_failed_or_lost_attempt_had_moved_is_taken_back() {
    let (mut world, taken) = sending(3, 2);
    let [one, two] = [&taken[0], &taken[1]];
    moved(&mut world, &[(one, 1000), (two, 50)]);
    world.finish(result(one, false, TaskReport::default()));
    assert_eq!(bytes(&mut world).0, 50);
    world.beat("s", "2", &["/src"], &[]);
    assert_eq!(bytes(&mut world).0, 0);
}

#[test]
fn all_bytes_together_are_never_more_than_there_are() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0)], None));
    let copy = next(&mut world, "s", "copy");
    moved(&mut world, &[(&copy, u64::MAX)]);
    assert_eq!(bytes(&mut world), (20, 20));
}

#[test]
fn a_sync_has_a_rate_from_its_first_byte_on_and_a_forecast_while_it_moves() {
    let (mut world, taken) = sending(100, 1);
    for _ in 0..5 {
        world.pass(1_000);
        moved(&mut world, &[(&taken[0], 0)]);
    }
    let sync = world.progress("demo");
    assert_eq!((sync.rate, sync.eta_seconds), (None, None));
    for second in 1..=5 {
        moved(&mut world, &[(&taken[0], second * 100_000)]);
        world.pass(1_000);
    }
    let sync = world.progress("demo");
    let rate = sync.rate.expect("a rate");
    assert!((90_000..=100_000).contains(&rate), "{rate}");
    let left = sync.total_bytes - sync.transferred_bytes;
    assert_eq!(sync.eta_seconds, Some((left as f64 / 100_000.0).ceil() as u64));
    // Paused, it has none.
    world.play(Event::Pause("demo".parse().unwrap()));
    let sync = world.progress("demo");
    assert_eq!((sync.rate, sync.eta_seconds), (None, None));
}

#[test]
fn what_is_skipped_takes_no_time_any_more() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(1, 0), batch(40, 0)], None));
    let [one, two] = [0; 2].map(|_| next(&mut world, "s", "copy"));
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
    world.finish(result(&skipped, true, report));
    for second in 0..=5 {
        moved(&mut world, &[(&copied, second)]);
        world.pass(1_000);
    }
    let sync = world.progress("demo");
    assert_eq!((sync.transferred_bytes, sync.bytes_skipped, sync.total_bytes), (5, 400, 410));
    assert_eq!(sync.eta_seconds, Some(5), "{sync:#?}");
}

#[test]
fn a_sync_that_stands_still_has_no_forecast_and_names_the_silent_worker() {
    let (mut world, taken) = sending(100, 1);
    for second in 1..=3 {
        moved(&mut world, &[(&taken[0], second * 100_000)]);
        world.pass(1_000);
    }
    assert!(world.progress("demo").eta_seconds.is_some());
    world.beat("d2", "1", &["/dst"], &[]);
    // `d`, to which it is sent, is heard of no more.
    for _ in 0..60 {
        world.pass(1_000);
        world.beat("d2", "1", &["/dst"], &[]);
        moved(&mut world, &[(&taken[0], 300_000)]);
    }
    let sync = world.progress("demo");
    assert_eq!(sync.eta_seconds, None);
    let reason = sync.reason.expect("a reason");
    assert!(reason.contains("worker d has sent no heartbeat for 1m"), "{reason}");
    moved(&mut world, &[(&taken[0], 400_000)]);
    assert_eq!(world.progress("demo").reason, None);
}

#[test]
fn who_works_for_a_sync_that_is_watched_reports_each_second() {
    let (mut world, taken) = sending(3, 1);
    assert_eq!(moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_500));
    world.progress("demo");
    world.pass(4_900);
    assert_eq!(moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_000));
    world.pass(100);
    assert_eq!(moved(&mut world, &[(&taken[0], 0)]).next_heartbeat_ms, Some(1_500));
}
