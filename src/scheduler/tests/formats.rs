//! The recorded samples of the records of a store (`tests/formats/records`).

use super::*;
use crate::wire::options::FilterSpec;
use crate::wire::samples::Samples;
use crate::wire::testing::storage_report;
use crate::wire::token::Role;
use crate::wire::worker::DrainRequest;
use serde_json::Value;

/// A world with records of every kind in its store: syncs that are queued, active, paused and ended, their tasks with
/// and without a lease, large files and their ranges.
fn world_with_every_record() -> World {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    complete_sync(&mut world);
    fail_sync(&mut world);
    queue_sync(&mut world);
    submit_with(&mut world, "paused", SyncOptions::default());
    world.apply(Event::PauseSync("paused".parse().unwrap()));
    start_sync(&mut world);
    // A storage that is known by its fingerprint, and a sync with a destination of a list.
    let mut reporting = heartbeat("n", Some("1"), &["/nfs"], &[]);
    reporting.storages = vec![storage_report("/nfs", "nfs4", 7)];
    world.apply(Event::Heartbeat(reporting));
    let workers = vec!["n*".parse().unwrap()];
    let several = SyncRequest {
        destination_workers: workers,
        ..request(Some("several"), "/src/g", "/nfs/g")
    };
    world.apply(Event::Submit { request: several, list: None, idempotency: None });
    let order = DrainRequest { by: Some("alice".to_owned()), reason: Some("disk".to_owned()) };
    world.apply(Event::DrainWorker { worker: "d".parse().unwrap(), order: Some(order) });
    world.apply(Event::CreateToken(Box::new(tokens::token_record("0123456789ab", Role::Operator))));
    let join_token = agents::join_token("0123456789ab", world.now.wall_ms);
    world.apply(Event::CreateJoinToken(Box::new(join_token)));
    assert_eq!(agents::join(&mut world, "0123456789ab", "secret", "w", "key"), "ok");
    let authority = serde_json::json!({
        "hash": "ab".repeat(32),
        "certificate": "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n",
        "sealed_key": "AAEC",
        "previous": {
            "hash": "cd".repeat(32),
            "certificate": "-----BEGIN CERTIFICATE-----\nAAED\n-----END CERTIFICATE-----\n",
            "successor": "-----BEGIN CERTIFICATE-----\nAAEE\n-----END CERTIFICATE-----\n",
            "replaced_at": "2026-01-01T00:00:00Z",
            "certificates_end_at": "2026-01-02T00:00:00Z",
            "finished_at": "2026-01-01T12:00:00Z",
        },
    });
    let authority = serde_json::from_value(authority).unwrap();
    world.apply(Event::StoreAuthority(Box::new(authority)));
    world
}

/// The next task of the source's worker or of the destination's.
fn poll_any(world: &mut World) -> Option<Assignment> {
    ["s", "d"].into_iter().find_map(|worker| world.poll(worker, "1"))
}

/// A mirror with records of its files that completes.
fn complete_sync(world: &mut World) {
    let options = SyncOptions { record: true, ..mirror(DeleteOptions::default()) };
    submit_with(world, "complete", options);
    let scan = world.poll("s", "1").unwrap();
    world.post_page(&scan, first_page(&scan, "ext4 8:1", false, vec![copy_item(1, 0)]));
    while let Some(task) = poll_any(world) {
        if let TaskSpec::Prune { .. } = task.task {
            world.post_page(&task, prune_page(&task, 1, 0));
        } else {
            world.post_result(result(&task, true, all_done(&task, "d")));
        }
    }
    assert_eq!(world.progress("complete").state, SyncState::Completed);
}

/// A sync that fails: an entry by its name, and a batch as a whole.
fn fail_sync(world: &mut World) {
    submit_with(world, "failed", SyncOptions::default());
    let scan = world.poll("s", "1").unwrap();
    let items = vec![copy_item(1, 0), copy_item(2, 0)];
    world.post_page(
        &scan,
        ScanPage { errors: vec![error(ErrorClass::Permanent)], ..page(&scan, 0, items, None) },
    );
    while let Some(task) = poll_any(world) {
        let report = match task.task {
            TaskSpec::Copy { files: 1, .. } => {
                TaskReport { failures: vec![error(ErrorClass::Permanent)], ..TaskReport::default() }
            }
            _ => TaskReport::default(),
        };
        let success = !matches!(task.task, TaskSpec::Copy { files: 2, .. });
        world.post_result(result(&task, success, report));
        world.advance(60_000);
        world.heartbeat("s", "1", &["/src"], &[]);
        world.heartbeat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.progress("failed").state, SyncState::Failed);
}

/// A sync of a list with a filter, for which there is no worker.
fn queue_sync(world: &mut World) {
    let filter =
        FilterSpec { rules: vec!["*.tmp".to_owned()], min_size: Some(1), ..FilterSpec::default() };
    let options = SyncOptions { filter, ..SyncOptions::default() };
    let request = SyncRequest {
        options,
        bwlimit: Some(1024),
        ..request(Some("queued"), "/nowhere", "/dst/c")
    };
    let list = Some(vec![FileListPart { paths: vec![RelPath::new("a").unwrap()] }]);
    let idempotency = Some(IdempotencyKey { key: "k-1".to_owned(), body: Digest([5; 32]) });
    let reply = world.apply(Event::Submit { request, list, idempotency });
    assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
}

/// A mirror in the middle of its work.
fn start_sync(world: &mut World) {
    let options = SyncOptions { record: true, ..mirror(DeleteOptions::default()) };
    let request = SyncRequest { options, ..request(Some("active"), "/src/e", "/dst/e") };
    world.apply(Event::Submit { request, list: None, idempotency: None });
    let scan = world.poll("s", "1").unwrap();
    let work = vec![
        large_in_group(2, 1),
        large_in_group(2, 1),
        large_item(3),
        copy_item(1, 0),
        copy_item(2, 0),
        copy_item(3, 1),
    ];
    let errors = vec![error(ErrorClass::Permanent)];
    let next = scan_at("m");
    world.post_page(&scan, ScanPage { errors, next, ..first_page(&scan, "ext4 8:1", false, work) });
    world.heartbeat("s2", "1", &["/src"], &[]);
    for _ in 0..24 {
        let next = ["s", "s2", "d"].into_iter().find_map(|worker| world.poll(worker, "1"));
        let Some(task) = next else { break };
        let (success, report) = match task.task {
            TaskSpec::Copy { files: 1, .. } => (false, TaskReport::default()),
            // This one stays with its worker.
            TaskSpec::Copy { files: 2, .. } => continue,
            TaskSpec::Range { offset, .. } if offset > 1 << 20 => continue,
            _ => (true, all_done(&task, "d")),
        };
        world.post_result(result(&task, success, report));
    }
    assert_eq!(world.progress("active").state, SyncState::Progress);
}

/// The file of a record: the key with `+` for `/`.
fn sample_file(key: &str) -> String {
    let kind = if key.starts_with("v/") { "bin" } else { "json" };
    format!("{}.{kind}", key.replace('/', "+"))
}

#[test]
fn every_record_is_loaded_and_written_as_recorded() {
    let mut samples = Samples::open("records");
    if samples.is_update() {
        let world = world_with_every_record();
        samples.remove_all();
        for (key, value) in &world.records {
            let pretty = serde_json::from_slice::<Value>(value)
                .map(|value| serde_json::to_string_pretty(&value).unwrap() + "\n");
            samples.read(
                &sample_file(key),
                Some(pretty.map_or(value.clone(), String::into_bytes).as_slice()),
            );
        }
    }
    let mut records = BTreeMap::new();
    for file in samples.file_names() {
        let key = file.split_once('.').unwrap().0.replace('+', "/");
        records.insert(key, samples.read(&file, None));
    }
    let kinds: BTreeSet<&str> = records.keys().map(|key| key.split('/').next().unwrap()).collect();
    let all = [
        "a", "c", "d", "g", "j", "k", "l", "meta", "n", "o", "p", "r", "s", "t", "v", "w", "x", "y",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), all, "a kind of record has no sample");
    let state = State::load(Settings::default(), [9; 32], &records, START).unwrap();
    assert_eq!(
        state.record_keys().into_iter().collect::<BTreeSet<_>>(),
        records.keys().cloned().collect()
    );
    for (key, stored) in &records {
        let written = state.record(key).unwrap();
        let document = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        let same = match document(stored) {
            None => written == *stored,
            stored => document(&written) == stored,
        };
        assert!(same, "the format of {key} changed:\n{}", String::from_utf8_lossy(&written));
    }
    samples.finish();
}

#[test]
fn every_line_of_a_failure_page_is_read_and_written_as_recorded() {
    let world = world_with_every_record();
    let page = world.blobs.iter().find(|(key, _)| key.starts_with("e/")).unwrap().1;
    let mut samples = Samples::open("failures");
    let sample = samples.read("page.jsonl", Some(page));
    assert_eq!(decode_failures(&sample).unwrap(), decode_failures(page).unwrap());
    assert_eq!(
        String::from_utf8_lossy(&sample),
        String::from_utf8_lossy(page),
        "the format changed"
    );
    assert!(decode_failures(&sample).unwrap().iter().any(|line| line.batch.is_some()));
    samples.finish();
}
