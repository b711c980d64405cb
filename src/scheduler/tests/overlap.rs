//! Syncs with overlapping paths.

use super::storage_binding::{addressed, carry_out, compare_by, find_nothing, reported, send};
use super::*;
use crate::wire::sync::SubmitReply;

fn world() -> World {
    let mut world = World::new();
    send_heartbeat(&mut world);
    world
}

fn send_heartbeat(world: &mut World) {
    world.heartbeat("s", "1", &["/"], &[]);
}

fn submit(world: &mut World, id: &str, paths: (&str, &str), options: SyncOptions) -> SubmitReply {
    let request = SyncRequest { options, ..request(Some(id), paths.0, paths.1) };
    match world.apply(Event::Submit { request, list: None, idempotency: None }) {
        Some(Reply::Submitted(submitted)) => submitted,
        other => panic!("{other:?}"),
    }
}

fn submit_plain(world: &mut World, id: &str, paths: (&str, &str)) -> SubmitReply {
    submit(world, id, paths, SyncOptions::default())
}

fn overlap_allowed() -> SyncOptions {
    SyncOptions { allow_overlap: true, ..SyncOptions::default() }
}

/// The next assignment of `s`, which must be of the sync `id`.
fn poll_sync(world: &mut World, id: &str) -> Assignment {
    let task = world.poll("s", "1").unwrap_or_else(|| panic!("{:?}", world.progress(id)));
    assert_eq!(task.request_id.as_str(), id);
    task
}

/// Why `id` has not started.
fn overlap_reason(world: &mut World, id: &str) -> String {
    let progress = world.progress(id);
    assert_eq!(progress.state, SyncState::Queued, "{progress:?}");
    progress.reason.unwrap()
}

fn change(world: &mut World, event: fn(crate::wire::RequestId) -> Event, id: &str) {
    let reply = world.apply(event(id.parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Progress(_) | Reply::Deleted { .. })), "{reply:?}");
}

/// Time passes, and `s` is there with what it holds.
fn advance(world: &mut World, ms: u64, in_hand: &[AssignmentId]) {
    for _ in 0..ms / 5_000 {
        world.advance(5_000);
        world.heartbeat("s", "1", &["/"], in_hand);
    }
}

#[test]
fn a_sync_waits_for_each_way_in_which_paths_conflict_and_for_no_other() {
    let a = ("/s/a", "/d/x");
    for (b, expected) in [
        (("/s/b", "/d/x"), "writes to /d/x"),
        (("/s/b", "/d/x/below"), "writes to /d/x"),
        (("/s/b", "/d"), "writes to /d/x"),
        (("/d/x", "/e"), "writes to /d/x"),
        (("/d/x/below", "/e"), "writes to /d/x"),
        (("/d", "/e"), "writes to /d/x"),
        (("/s/b", "/s/a"), "reads /s/a"),
        (("/s/b", "/s/a/below"), "reads /s/a"),
        (("/e", "/s"), "reads /s/a"),
        (("/s/a", "/d/y"), ""),
        (("/s/a/below", "/d/y"), ""),
        (("/s/b", "/d/xx"), ""),
        (("/d/xx", "/e"), ""),
        (("/s/b", "/s/aa"), ""),
    ] {
        let mut world = world();
        submit_plain(&mut world, "a", a);
        let scan = poll_sync(&mut world, "a");
        let submitted = submit_plain(&mut world, "b", b);
        if expected.is_empty() {
            assert_eq!(submitted.note, None, "{b:?}");
            poll_sync(&mut world, "b");
            continue;
        }
        let reason = format!("waits for sync a, which {expected}");
        assert_eq!(submitted.note.as_deref(), Some(reason.as_str()), "{b:?}");
        assert_eq!(world.poll("s", "1"), None, "{b:?}");
        assert_eq!(overlap_reason(&mut world, "b"), reason);
        // It also waits after a restart of the master, and starts when the first one has ended.
        world.restart();
        send_heartbeat(&mut world);
        assert_eq!(overlap_reason(&mut world, "b"), reason);
        world.post_page(&scan, page(&scan, 0, vec![], None));
        assert_eq!(world.progress("a").state, SyncState::Completed);
        poll_sync(&mut world, "b");
    }
}

#[test]
fn syncs_that_conflict_run_in_the_order_in_which_they_were_submitted() {
    let mut world = world();
    world.state.settings.max_active_syncs = 1;
    submit_plain(&mut world, "a", ("/raw", "/staging"));
    submit_plain(&mut world, "b", ("/staging", "/archive"));
    submit_plain(&mut world, "c", ("/archive", "/raw"));
    submit_plain(&mut world, "other", ("/p", "/q"));
    assert_eq!(overlap_reason(&mut world, "c"), "waits for sync a, which reads /raw and is QUEUED");
    for id in ["a", "b", "c"] {
        let scan = poll_sync(&mut world, id);
        // Those that wait take no turn of others.
        world.state.settings.max_active_syncs = 2;
        if id == "a" {
            let other = poll_sync(&mut world, "other");
            world.post_page(&other, page(&other, 0, vec![], None));
        }
        assert_eq!(world.poll("s", "1"), None);
        world.post_page(&scan, page(&scan, 0, vec![], None));
    }
    assert_eq!(world.progress("c").state, SyncState::Completed);
}

#[test]
fn a_waiting_poll_gets_the_next_sync_when_the_first_ends() {
    let mut world = world();
    submit_plain(&mut world, "a", ("/a", "/d"));
    submit_plain(&mut world, "b", ("/b", "/d"));
    let scan = poll_sync(&mut world, "a");
    let poll = start_poll(&mut world, "s", 60_000);
    world.post_page(&scan, page(&scan, 0, vec![], None));
    let answer = world.replies.remove(&poll);
    let Some(Reply::Assignment(Some(next))) = answer else { panic!("{answer:?}") };
    assert_eq!(next.request_id.as_str(), "b");
}

#[test]
fn a_paused_sync_keeps_its_paths_and_reports_it() {
    let mut world = world();
    submit_plain(&mut world, "a", ("/a", "/d"));
    let scan = poll_sync(&mut world, "a");
    submit_plain(&mut world, "b", ("/b", "/d"));
    change(&mut world, Event::PauseSync, "a");
    assert_eq!(
        overlap_reason(&mut world, "b"),
        "waits for sync a, which writes to /d and is PAUSED"
    );
    assert_eq!(world.poll("s", "1"), None);
    change(&mut world, Event::ResumeSync, "a");
    world.post_page(&scan, page(&scan, 0, vec![], None));
    poll_sync(&mut world, "b");
}

#[test]
fn a_cancelled_sync_keeps_its_destination_until_its_leases_end() {
    for (event, restart) in [
        (Event::CancelSync as fn(_) -> _, false),
        (Event::CancelSync, true),
        (Event::DeleteSync, false),
        (Event::DeleteSync, true),
    ] {
        let mut world = world();
        submit_plain(&mut world, "a", ("/a", "/d"));
        let scan = poll_sync(&mut world, "a");
        world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
        let copy = poll_sync(&mut world, "a");
        submit_plain(&mut world, "b", ("/b", "/d"));
        submit_plain(&mut world, "c", ("/b", "/a"));
        advance(&mut world, 10_000, &[copy.assignment_id]);
        change(&mut world, event, "a");
        // The worker was not informed: its lease has 30 s from the last heartbeat. What was only read is free.
        let scan = poll_sync(&mut world, "c");
        world.post_page(&scan, page(&scan, 0, vec![], None));
        let reason = overlap_reason(&mut world, "b");
        assert!(reason.starts_with("waits for sync a, which writes to /d until"), "{reason}");
        world.advance(25_000);
        if restart {
            world.restart();
            world.advance(25_000);
        }
        send_heartbeat(&mut world);
        assert_eq!(world.poll("s", "1"), None, "a worker may still write for `a`");
        world.advance(6_000);
        send_heartbeat(&mut world);
        let tasks = [world.poll("s", "1"), world.poll("s", "1")];
        let of = |id: &str| tasks.iter().flatten().any(|task| task.request_id.as_str() == id);
        assert!(of("b"), "{tasks:?}");
    }
}

#[test]
fn a_revoked_task_blocks_others_also_when_its_sync_ends_first() {
    let mut world = world();
    world.heartbeat("t", "1", &["/"], &[]);
    submit_plain(&mut world, "a", ("/a", "/d"));
    let scan = poll_sync(&mut world, "a");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    poll_sync(&mut world, "a");
    submit_plain(&mut world, "b", ("/b", "/d"));
    let worker = "s".parse().unwrap();
    world.apply(Event::ReassignTasks { id: "a".parse().unwrap(), worker });
    for kind in ["copy", "flush"] {
        let task = world.poll("t", "1").unwrap();
        assert_eq!(task.task.kind(), kind);
        world.post_result(result(&task, true, all_done(&task, "t")));
    }
    for _ in 0..3 {
        if let Some(flush) = world.poll("s", "1") {
            world.post_result(result(&flush, true, all_done(&flush, "s")));
        }
    }
    assert_eq!(world.progress("a").state, SyncState::Completed);
    assert_eq!(world.poll("t", "1"), None, "`s` may still write");
    advance(&mut world, 35_000, &[]);
    poll_sync(&mut world, "b");
}

#[test]
fn two_syncs_run_at_once_where_that_is_allowed_and_neither_is_a_mirror() {
    let deletes = || mirror(DeleteOptions::default());
    for (first, second, at_once) in [
        (SyncOptions::default(), overlap_allowed(), true),
        (overlap_allowed(), overlap_allowed(), true),
        (overlap_allowed(), SyncOptions::default(), false),
        (deletes(), overlap_allowed(), false),
        (SyncOptions::default(), SyncOptions { allow_overlap: true, ..deletes() }, false),
        (SyncOptions { dry_run: true, ..deletes() }, SyncOptions::default(), true),
        (deletes(), SyncOptions { dry_run: true, ..deletes() }, false),
        (SyncOptions::default(), SyncOptions { dry_run: true, ..overlap_allowed() }, true),
    ] {
        let mut world = world();
        submit(&mut world, "a", ("/a", "/d"), first);
        poll_sync(&mut world, "a");
        submit(&mut world, "b", ("/b", "/d"), second.clone());
        let next = world.poll("s", "1");
        assert_eq!(next.is_some(), at_once, "{second:?}");
        // Agents do not need this option: a worker without options gets its tasks.
        let reads_option = next.is_some_and(|task| task.options.allow_overlap);
        assert!(!reads_option, "only the scheduler uses the option");
    }
    let mut world = World::new();
    world.apply(Event::Heartbeat(heartbeat("s", None, &["/"], &[])));
    submit(&mut world, "a", ("/a", "/d"), overlap_allowed());
    let poll =
        Event::Poll { worker: "s".parse().unwrap(), incarnation: None, poll_id: None, wait_ms: 0 };
    assert!(matches!(world.apply(poll), Some(Reply::Assignment(Some(_)))));
}

#[test]
fn the_same_request_again_waits_and_the_answer_names_the_first_one() {
    let names = |name: &str| vec![FileListPart { paths: vec![RelPath::new(name).unwrap()] }];
    let mut world = world();
    assert_eq!(submit_plain(&mut world, "a", ("/a", "/d")).note, None);
    poll_sync(&mut world, "a");
    let again = submit_plain(&mut world, "again", ("/a", "/d"));
    assert_eq!(again.note.unwrap(), "same as sync a, which is PROGRESS");
    assert_eq!(overlap_reason(&mut world, "again"), "waits for sync a, which writes to /d");
    change(&mut world, Event::PauseSync, "a");
    let other = submit(&mut world, "other", ("/a", "/d"), mirror(DeleteOptions::default()));
    assert!(other.note.unwrap().starts_with("waits for sync a, which writes to /d"));
    let mut notes = Vec::new();
    for (id, name) in [("l1", "x"), ("l2", "y"), ("l3", "x")] {
        let request = request(Some(id), "/l", "/m");
        let list = Some(names(name));
        match world.apply(Event::Submit { request, list, idempotency: None }) {
            Some(Reply::Submitted(submitted)) => notes.push(submitted.note.unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(notes[0], "");
    assert_eq!(notes[1], "waits for sync l1, which writes to /m and is QUEUED");
    assert_eq!(notes[2], "same as sync l1, which is QUEUED");
}

/// A heartbeat of a worker on a host with one local disk at `/scratch`, under its first or second boot.
fn on_host(worker: &str, boot: &str) -> WorkerHeartbeat {
    let mut beat = reported("host", &["/scratch"], "ext4");
    (beat.worker_id, beat.incarnation) = (worker.parse().unwrap(), Some(boot.to_owned()));
    beat.boot_id = Some(format!("boot {boot}"));
    beat
}

/// A sync `one` to `w1` runs when the host is rebooted. Only `w2` of this host has reported since.
fn rebooted_host() -> (World, Assignment) {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    for worker in ["w1", "w2"] {
        send(&mut world, on_host(worker, "1"));
    }
    submit_to(&mut world, "one", "w1");
    let scan = poll_sync(&mut world, "one");
    send(&mut world, on_host("w2", "2"));
    (world, scan)
}

/// Time passes until `w1` counts as inactive. The others report.
fn wait_for_silence(world: &mut World, scan: &Assignment) {
    for _ in 0..12 {
        world.advance(5_000);
        let source = reported("s", &["/src"], "ext4");
        send(world, WorkerHeartbeat { assignments: vec![scan.assignment_id], ..source });
        send(world, on_host("w2", "2"));
    }
}

fn submit_to(world: &mut World, id: &str, workers: &str) {
    let request = addressed(id, ("", "/src/a"), (workers, "/scratch/b"));
    let reply = world.apply(Event::Submit { request, list: None, idempotency: None });
    assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
}

#[test]
fn a_sync_waits_for_one_on_a_disk_that_may_be_the_same_after_a_reboot() {
    let (mut world, scan) = rebooted_host();
    submit_to(&mut world, "two", "w2");
    for active in [true, false] {
        assert_eq!(world.poll("s", "1"), None);
        let reason = overlap_reason(&mut world, "two");
        assert!(
            reason.starts_with("waits for sync one, which writes to /scratch/b: s-"),
            "{reason}"
        );
        assert!(reason.contains("may be one storage") && reason.contains("(w2)"), "{reason}");
        assert_eq!(reason.contains("(w1, inactive)"), !active, "{reason}");
        wait_for_silence(&mut world, &scan);
    }
    // It is the same. What is to be copied is copied by one after the other.
    send(&mut world, on_host("w1", "2"));
    assert_eq!(overlap_reason(&mut world, "two"), "waits for sync one, which writes to /scratch/b");
    world.post_page(&scan, page(&scan, 0, vec![], None));
    poll_sync(&mut world, "two");
}

#[test]
fn a_sync_that_waits_for_a_disk_starts_when_it_is_known_to_be_another_one() {
    let (mut world, _) = rebooted_host();
    submit_to(&mut world, "two", "w2");
    assert_eq!(world.poll("s", "1"), None);
    // The first kernel still runs: `w2` is on another host now.
    let waiting = start_poll(&mut world, "s", 60_000);
    compare_by(&mut world, &[on_host("w1", "1"), on_host("w2", "2")], find_nothing);
    let answer = world.replies.remove(&waiting);
    let Some(Reply::Assignment(Some(scan))) = answer else { panic!("{answer:?}") };
    assert_eq!(scan.request_id.as_str(), "two");
}

#[test]
fn a_disk_of_a_host_that_was_rebooted_is_one_destination() {
    let (mut world, scan) = rebooted_host();
    wait_for_silence(&mut world, &scan);
    submit_to(&mut world, "all", "w*");
    let destinations = world.progress("all").destinations;
    assert_eq!(destinations.len(), 1, "{destinations:?}");
    assert_eq!(destinations[0].workers[0].as_str(), "w2");
    // It is not ambiguous either.
    submit_to(&mut world, "plain", "");
}

#[test]
fn a_queued_sync_waits_when_its_storage_turns_out_to_be_that_of_a_sync_that_runs() {
    let mut world = World::new();
    world.state.settings.max_active_syncs = 1;
    send(&mut world, reported("s", &["/src"], "ext4"));
    let mut nodes = ["n1", "n2"].map(|node| reported(node, &["/scratch"], "nfs4"));
    compare_by(&mut world, &nodes, find_nothing);
    submit_to(&mut world, "one", "n1");
    let scan = poll_sync(&mut world, "one");
    submit_to(&mut world, "two", "n2");
    assert_eq!(world.poll("s", "1"), None, "there is one slot");
    // After a reboot `n2` has something at its path that looks the same as before.
    (nodes[1].boot_id, nodes[1].incarnation) = (Some("another".to_owned()), Some("2".to_owned()));
    send(&mut world, nodes[1].clone());
    world.state.settings.max_active_syncs = 2;
    assert_eq!(world.poll("s", "1"), None);
    let reason = overlap_reason(&mut world, "two");
    assert!(reason.contains("may be one storage"), "{reason}");
    compare_by(&mut world, &nodes, carry_out);
    assert_eq!(overlap_reason(&mut world, "two"), "waits for sync one, which writes to /scratch/b");
    assert_eq!(world.poll("s", "1"), None);
    world.post_page(&scan, page(&scan, 0, vec![], None));
    poll_sync(&mut world, "two");
}
