//! What does not fit together is put right.

use super::*;
use crate::wire::admin::ReconcileReply;

fn reconcile(world: &mut World) -> ReconcileReply {
    let records = world.records.keys().cloned().collect();
    let stored = StoredKeys { records, blobs: world.blobs.keys().cloned().collect() };
    match world.apply(Event::Reconcile(stored)) {
        Some(Reply::Reconciled(done)) => *done,
        other => panic!("{other:?}"),
    }
}

/// The sync `demo` of two batches and a large file.
fn copying() -> World {
    let (mut world, scan) = scanning();
    world.post_page(
        &scan,
        page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0), large_item(3)], None),
    );
    world
}

#[test]
fn a_consistent_state_is_left_unchanged() {
    let mut world = copying();
    let held = poll_kind(&mut world, "s", "copy");
    let before = (world.records.clone(), world.blobs.clone());
    assert_eq!(reconcile(&mut world), ReconcileReply::default());
    assert_eq!((world.records.clone(), world.blobs.clone()), before);
    let late = result(&held, true, all_done(&held, "d"));
    assert_eq!(world.post_result(late), Some(ResultOutcome::Applied));
}

#[test]
fn orphaned_keys_are_dropped_and_missing_records_are_written_again() {
    let mut world = copying();
    // Put there behind the back of the master, which a look at everything would notice.
    let stray = |kind: &str| format!("{kind}/99/7");
    let mut records: BTreeSet<String> = world.records.keys().cloned().collect();
    let gone = records.iter().find(|key| key.starts_with("t/")).cloned().unwrap();
    records.remove(&gone);
    records.extend([stray("t"), stray("l")]);
    let mut blobs: BTreeSet<String> = world.blobs.keys().cloned().collect();
    blobs.insert(stray("m"));
    let event = Event::Reconcile(StoredKeys { records, blobs });
    let effects = world.state.apply(event, Some(Caller(999)), world.now);
    let mut wanted = vec![
        Effect::WriteRecord(stray("l")),
        Effect::WriteRecord(stray("t")),
        Effect::WriteRecord(gone),
        Effect::DeleteBlob(stray("m")),
    ];
    let last = effects.last().cloned().unwrap();
    let Effect::Reply(_, Reply::Reconciled(done)) = &last else { panic!("{last:?}") };
    assert_eq!((done.dropped_records, done.dropped_blobs, done.restored_records), (2, 1, 1));
    wanted.push(last);
    assert_eq!(effects, wanted);
}

#[test]
fn failures_and_a_transferred_name_list_are_left_unchanged() {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    let list = Some(vec![FileListPart { paths: vec![RelPath::new("x").unwrap()] }]);
    let request = request(Some("demo"), "/src/a", "/dst/b");
    world.apply(Event::Submit { request, list, idempotency: None });
    let list = poll_kind(&mut world, "s", "list");
    let errors = vec![error(ErrorClass::Permanent)];
    world.post_page(&list, ScanPage { errors, ..page(&list, 0, vec![], None) });
    assert_eq!(world.progress("demo").state, SyncState::Failed);
    let id = "demo".parse().unwrap();
    world.apply(Event::RetrySync { id, new: None, only: RetryScope::All, idempotency: None });
    assert_eq!(world.blobs.keys().collect::<Vec<_>>(), ["e/1/0", "f/1/0"]);
    assert_eq!(reconcile(&mut world), ReconcileReply::default());
    assert_eq!(world.blobs.keys().collect::<Vec<_>>(), ["e/1/0", "f/1/0"]);
}

#[test]
fn a_sync_whose_manifests_are_missing_restarts() {
    let mut world = copying();
    let lost = world.blobs.keys().next().cloned().unwrap();
    let records = world.records.keys().cloned().collect();
    let blobs = world.blobs.keys().filter(|key| **key != lost).cloned().collect();
    let reply = world.apply(Event::Reconcile(StoredKeys { records, blobs }));
    let Some(Reply::Reconciled(done)) = reply else { panic!("{reply:?}") };
    assert_eq!(done.restarted_syncs, ["demo".parse().unwrap()]);
    assert!(world.blobs.is_empty());
    assert_eq!(world.progress("demo").files_total, 0);
    poll_kind(&mut world, "s", "scan");
}

#[test]
fn leases_of_unknown_workers_are_freed_after_a_heartbeat_timeout() {
    let mut world = copying();
    let held = poll_kind(&mut world, "s", "copy");
    world.restart();
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.heartbeat("s2", "1", &["/src"], &[]);
    assert_eq!(reconcile(&mut world), ReconcileReply::default(), "its heartbeat may be under way");
    world.state.settings.heartbeat_timeout_ms = 10_000;
    for _ in 0..3 {
        world.heartbeat("d", "1", &["/dst"], &[]);
        world.heartbeat("s2", "1", &["/src"], &[]);
        world.advance(5_000);
    }
    let done = reconcile(&mut world);
    assert_eq!(done.requeued_tasks, 1);
    assert_eq!(
        (&done.requeued[0].task_id, done.requeued[0].kind.as_str()),
        (&held.task_id, "copy")
    );
    assert_eq!(poll_kind(&mut world, "s2", "copy").task_id, held.task_id);
}
