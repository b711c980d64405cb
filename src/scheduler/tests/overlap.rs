//! Syncs whose paths overlap.

use super::*;
use crate::wire::sync::SubmitReply;

fn world() -> World {
    let mut world = World::new();
    beat(&mut world);
    world
}

fn beat(world: &mut World) {
    world.beat("s", "1", &["/"], &[]);
}

fn submit(world: &mut World, id: &str, paths: (&str, &str), options: SyncOptions) -> SubmitReply {
    let request = SyncRequest { options, ..request(Some(id), paths.0, paths.1) };
    match world.play(Event::Submit { request, list: None, idempotency: None }) {
        Some(Reply::Submitted(submitted)) => submitted,
        other => panic!("{other:?}"),
    }
}

fn plain(world: &mut World, id: &str, paths: (&str, &str)) -> SubmitReply {
    submit(world, id, paths, SyncOptions::default())
}

fn beside() -> SyncOptions {
    SyncOptions { allow_overlap: true, ..SyncOptions::default() }
}

/// The next assignment of `s`, which must be of the sync `id`.
fn take(world: &mut World, id: &str) -> Assignment {
    let task = world.poll("s", "1").unwrap_or_else(|| panic!("{:?}", world.progress(id)));
    assert_eq!(task.request_id.as_str(), id);
    task
}

/// Why `id` has not begun.
fn waits(world: &mut World, id: &str) -> String {
    let progress = world.progress(id);
    assert_eq!(progress.state, SyncState::Queued, "{progress:?}");
    progress.reason.unwrap()
}

fn change(world: &mut World, event: fn(crate::wire::RequestId) -> Event, id: &str) {
    let reply = world.play(event(id.parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Progress(_) | Reply::Deleted { .. })), "{reply:?}");
}

/// Time passes, and `s` is there with what it holds.
fn pass(world: &mut World, ms: u64, in_hand: &[AssignmentId]) {
    for _ in 0..ms / 5_000 {
        world.pass(5_000);
        world.beat("s", "1", &["/"], in_hand);
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
        plain(&mut world, "a", a);
        let scan = take(&mut world, "a");
        let submitted = plain(&mut world, "b", b);
        if expected.is_empty() {
            assert_eq!(submitted.note, None, "{b:?}");
            take(&mut world, "b");
            continue;
        }
        let reason = format!("waits for sync a, which {expected}");
        assert_eq!(submitted.note.as_deref(), Some(reason.as_str()), "{b:?}");
        assert_eq!(world.poll("s", "1"), None, "{b:?}");
        assert_eq!(waits(&mut world, "b"), reason);
        // It waits also under a master that starts anew, and begins when the first one has ended.
        world.restart();
        beat(&mut world);
        assert_eq!(waits(&mut world, "b"), reason);
        world.post(&scan, page(&scan, 0, vec![], None));
        assert_eq!(world.progress("a").state, SyncState::Completed);
        take(&mut world, "b");
    }
}

#[test]
fn syncs_that_conflict_run_in_the_order_in_which_they_were_submitted() {
    let mut world = world();
    world.state.settings.max_active_syncs = 1;
    plain(&mut world, "a", ("/raw", "/staging"));
    plain(&mut world, "b", ("/staging", "/archive"));
    plain(&mut world, "c", ("/archive", "/raw"));
    plain(&mut world, "other", ("/p", "/q"));
    assert_eq!(waits(&mut world, "c"), "waits for sync a, which reads /raw and is QUEUED");
    for id in ["a", "b", "c"] {
        let scan = take(&mut world, id);
        // Those that wait take no turn of others.
        world.state.settings.max_active_syncs = 2;
        if id == "a" {
            let other = take(&mut world, "other");
            world.post(&other, page(&other, 0, vec![], None));
        }
        assert_eq!(world.poll("s", "1"), None);
        world.post(&scan, page(&scan, 0, vec![], None));
    }
    assert_eq!(world.progress("c").state, SyncState::Completed);
}

#[test]
fn a_poll_that_waits_gets_the_next_sync_when_the_first_one_ends() {
    let mut world = world();
    plain(&mut world, "a", ("/a", "/d"));
    plain(&mut world, "b", ("/b", "/d"));
    let scan = take(&mut world, "a");
    let poll = wait(&mut world, "s", 60_000);
    world.post(&scan, page(&scan, 0, vec![], None));
    let answer = world.answers.remove(&poll);
    let Some(Reply::Assignment(Some(next))) = answer else { panic!("{answer:?}") };
    assert_eq!(next.request_id.as_str(), "b");
}

#[test]
fn a_paused_sync_holds_its_paths_and_says_so() {
    let mut world = world();
    plain(&mut world, "a", ("/a", "/d"));
    let scan = take(&mut world, "a");
    plain(&mut world, "b", ("/b", "/d"));
    change(&mut world, Event::Pause, "a");
    assert_eq!(waits(&mut world, "b"), "waits for sync a, which writes to /d and is PAUSED");
    assert_eq!(world.poll("s", "1"), None);
    change(&mut world, Event::Resume, "a");
    world.post(&scan, page(&scan, 0, vec![], None));
    take(&mut world, "b");
}

#[test]
fn a_sync_that_is_stopped_holds_its_destination_until_its_workers_have_stopped_too() {
    for (event, restart) in [
        (Event::Cancel as fn(_) -> _, false),
        (Event::Cancel, true),
        (Event::Delete, false),
        (Event::Delete, true),
    ] {
        let mut world = world();
        plain(&mut world, "a", ("/a", "/d"));
        let scan = take(&mut world, "a");
        world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
        let copy = take(&mut world, "a");
        plain(&mut world, "b", ("/b", "/d"));
        plain(&mut world, "c", ("/b", "/a"));
        pass(&mut world, 10_000, &[copy.assignment_id]);
        change(&mut world, event, "a");
        // The worker was not informed: its lease has 30 s from the last heartbeat. What was only read is free.
        let scan = take(&mut world, "c");
        world.post(&scan, page(&scan, 0, vec![], None));
        let reason = waits(&mut world, "b");
        assert!(reason.starts_with("waits for sync a, which writes to /d until"), "{reason}");
        world.pass(25_000);
        if restart {
            world.restart();
            world.pass(25_000);
        }
        beat(&mut world);
        assert_eq!(world.poll("s", "1"), None, "a worker may still write for `a`");
        world.pass(6_000);
        beat(&mut world);
        let tasks = [world.poll("s", "1"), world.poll("s", "1")];
        let of = |id: &str| tasks.iter().flatten().any(|task| task.request_id.as_str() == id);
        assert!(of("b"), "{tasks:?}");
    }
}

#[test]
fn a_task_that_was_taken_away_keeps_others_out_also_when_its_sync_ends_first() {
    let mut world = world();
    world.beat("t", "1", &["/"], &[]);
    plain(&mut world, "a", ("/a", "/d"));
    let scan = take(&mut world, "a");
    world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
    take(&mut world, "a");
    plain(&mut world, "b", ("/b", "/d"));
    let worker = "s".parse().unwrap();
    world.play(Event::Reassign { id: "a".parse().unwrap(), worker });
    for kind in ["copy", "flush"] {
        let task = world.poll("t", "1").unwrap();
        assert_eq!(task.task.kind(), kind);
        world.finish(result(&task, true, all_done(&task, "t")));
    }
    for _ in 0..3 {
        if let Some(flush) = world.poll("s", "1") {
            world.finish(result(&flush, true, all_done(&flush, "s")));
        }
    }
    assert_eq!(world.progress("a").state, SyncState::Completed);
    assert_eq!(world.poll("t", "1"), None, "`s` may still write");
    pass(&mut world, 35_000, &[]);
    take(&mut world, "b");
}

#[test]
fn two_syncs_run_at_once_where_that_is_allowed_and_neither_is_a_mirror() {
    let deletes = || mirror(DeleteOptions::default());
    for (first, second, at_once) in [
        (SyncOptions::default(), beside(), true),
        (beside(), beside(), true),
        (beside(), SyncOptions::default(), false),
        (deletes(), beside(), false),
        (SyncOptions::default(), SyncOptions { allow_overlap: true, ..deletes() }, false),
        (SyncOptions { dry_run: true, ..deletes() }, SyncOptions::default(), true),
        (deletes(), SyncOptions { dry_run: true, ..deletes() }, false),
        (SyncOptions::default(), SyncOptions { dry_run: true, ..beside() }, true),
    ] {
        let mut world = world();
        submit(&mut world, "a", ("/a", "/d"), first);
        take(&mut world, "a");
        submit(&mut world, "b", ("/b", "/d"), second.clone());
        let next = world.poll("s", "1");
        assert_eq!(next.is_some(), at_once, "{second:?}");
        // Agents need not know of it: a worker without options gets its tasks.
        let told = next.is_some_and(|task| task.options.allow_overlap);
        assert!(!told, "the scheduler alone decides by it");
    }
    let mut world = World::new();
    world.play(Event::Heartbeat(heartbeat("s", None, &["/"], &[])));
    submit(&mut world, "a", ("/a", "/d"), beside());
    let poll =
        Event::Poll { worker: "s".parse().unwrap(), incarnation: None, poll_id: None, wait_ms: 0 };
    assert!(matches!(world.play(poll), Some(Reply::Assignment(Some(_)))));
}

#[test]
fn the_same_request_again_waits_and_the_answer_names_the_first_one() {
    let names = |name: &str| vec![FileListPart { paths: vec![RelPath::new(name).unwrap()] }];
    let mut world = world();
    assert_eq!(plain(&mut world, "a", ("/a", "/d")).note, None);
    take(&mut world, "a");
    let again = plain(&mut world, "again", ("/a", "/d"));
    assert_eq!(again.note.unwrap(), "same as sync a, which is PROGRESS");
    assert_eq!(waits(&mut world, "again"), "waits for sync a, which writes to /d");
    change(&mut world, Event::Pause, "a");
    let other = submit(&mut world, "other", ("/a", "/d"), mirror(DeleteOptions::default()));
    assert!(other.note.unwrap().starts_with("waits for sync a, which writes to /d"));
    let mut notes = Vec::new();
    for (id, name) in [("l1", "x"), ("l2", "y"), ("l3", "x")] {
        let request = request(Some(id), "/l", "/m");
        let list = Some(names(name));
        match world.play(Event::Submit { request, list, idempotency: None }) {
            Some(Reply::Submitted(submitted)) => notes.push(submitted.note.unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(notes[0], "");
    assert_eq!(notes[1], "waits for sync l1, which writes to /m and is QUEUED");
    assert_eq!(notes[2], "same as sync l1, which is QUEUED");
}
