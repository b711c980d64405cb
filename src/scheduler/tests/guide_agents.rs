//! Agents that support less than this master.

use super::*;
use crate::wire::options::Verify;

/// A heartbeat of an agent that leases and reports as ours do, without support for options.
fn guide_heartbeat(world: &mut World, worker: &str, path: &str) {
    let beat = heartbeat(worker, Some("1"), &[path], &[]);
    let beat = WorkerHeartbeat { protocol: None, ..beat };
    assert!(matches!(world.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
}

#[test]
fn an_agent_without_option_support_gets_no_sync_with_options() {
    let mut world = World::new();
    guide_heartbeat(&mut world, "s", "/src");
    world.heartbeat("d", "1", &["/dst"], &[]);
    submit_with(&mut world, "demo", SyncOptions { dry_run: true, ..SyncOptions::default() });
    assert_eq!(world.poll("s", "1"), None, "it would write");
    let waits = world.progress("demo").reason.unwrap();
    assert!(waits.contains("source path /src/a is new enough"), "{waits}");
    world.submit("plain", "/src/a", "/dst/b");
    let plain = world.poll("s", "1").expect("a sync without options");
    assert_eq!(plain.request_id.to_string(), "plain");
    guide_heartbeat(&mut world, "e", "/dst");
    world.heartbeat("t", "1", &["/src"], &[]);
    let scan = world.poll("t", "1").expect("the dry run");
    assert_eq!(scan.request_id.to_string(), "demo");
    let ids = |members: &[crate::wire::task::PoolMember]| -> Vec<String> {
        members.iter().map(|m| m.worker_id.to_string()).collect()
    };
    assert_eq!(ids(&scan.source_workers), ["t"]);
    assert_eq!(ids(&scan.destination_workers), ["d"], "workers that could write are not tried");
}

#[test]
fn an_agent_without_option_support_gets_no_sync_that_acts_as_a_user() {
    let mut world = World::new();
    guide_heartbeat(&mut world, "s", "/src");
    guide_heartbeat(&mut world, "e", "/dst");
    world.heartbeat("d", "1", &["/dst"], &[]);
    let mut request = request(Some("demo"), "/src/a", "/dst/b");
    request.run_as = Some("1000".parse().unwrap());
    world.apply(Event::Submit { request, list: None, idempotency: None });
    assert_eq!(world.poll("s", "1"), None, "it would read with its own rights");
    world.heartbeat("t", "1", &["/src"], &[]);
    let scan = world.poll("t", "1").expect("an agent that acts as the user");
    let writers: Vec<&str> =
        scan.destination_workers.iter().map(|member| member.worker_id.as_str()).collect();
    assert_eq!(writers, ["d"], "a guide agent would write with its own rights");
}

#[test]
fn a_limited_sync_waits_for_a_newer_source_worker_and_for_no_newer_destination() {
    let limited = |source: &str, destination: &str| {
        let mut world = World::new();
        for (worker, path, protocol) in [("s", "/src", source), ("d", "/dst", destination)] {
            let protocol = (protocol == "new").then_some(PROTOCOL_VERSION);
            let beat = heartbeat(worker, Some("1"), &[path], &[]);
            world.apply(Event::Heartbeat(WorkerHeartbeat { protocol, ..beat }));
        }
        let bwlimit = Some(1 << 20);
        let request = SyncRequest { bwlimit, ..request(Some("demo"), "/src/a", "/dst/b") };
        world.apply(Event::Submit { request, list: None, idempotency: None });
        world.progress("demo").reason.unwrap()
    };
    let waits = limited("old", "new");
    assert!(waits.contains("source path /src/a is new enough"), "{waits}");
    assert_eq!(limited("new", "old"), "waits for a free worker", "a destination sends nothing");
}

#[test]
fn a_bare_success_reads_nothing_back() {
    let options = SyncOptions { verify: Verify::Readback, ..SyncOptions::default() };
    let (mut world, scan) = scanning_with(options);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    complete_kind(&mut world, "s", "copy");
    let bare = |a: &Assignment| TaskResult {
        task_digest: None,
        report: None,
        ..result(a, true, TaskReport::default())
    };
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_result(bare(&scan));
    world.advance(40_000);
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    let copy = poll_kind(&mut world, "s", "copy");
    world.post_result(bare(&copy));
    let end = world.progress("demo");
    assert_eq!((end.state, end.verified_files), (SyncState::Progress, 0));
    assert_eq!((end.repaired_files, end.unverified), (0, 0));
}
