//! Which storages the sides of a sync are, as workers with like-named paths come and go.

use super::worker_admin::view;
use super::*;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::storage::{ProbeSecret, StorageCheck, StorageCheckReport, StorageDeclaration};
use crate::wire::sync::SubmitReply;
use crate::wire::testing::storage_report;
use crate::wire::worker::HeartbeatReply;
use crate::wire::worker_selector::WorkerSelector;

/// The heartbeat of a worker on a host of its own, with a file system of `fs_type` at each path. Those of a network look
/// alike.
pub(super) fn reported(worker: &str, paths: &[&str], fs_type: &str) -> WorkerHeartbeat {
    let look = if fs_type == "ext4" { worker.bytes().map(u64::from).sum() } else { 7 };
    let mut beat = heartbeat(worker, Some("1"), paths, &[]);
    beat.boot_id = Some(format!("boot of {worker}"));
    beat.root_ids = paths.iter().map(|path| ((*path).to_owned(), "1-2".to_owned())).collect();
    beat.storages = paths.iter().map(|path| storage_report(path, fs_type, look)).collect();
    beat
}

pub(super) fn send(world: &mut World, beat: WorkerHeartbeat) -> HeartbeatReply {
    match world.apply(Event::Heartbeat(beat)) {
        Some(Reply::Heartbeat(reply)) => *reply,
        other => panic!("{other:?}"),
    }
}

pub(super) fn selectors(text: &str) -> Vec<WorkerSelector> {
    if text.is_empty() { Vec::new() } else { WorkerSelector::parse_list(text).unwrap() }
}

/// A request from `workers:path` to `workers:path`.
pub(super) fn addressed(id: &str, from: (&str, &str), to: (&str, &str)) -> SyncRequest {
    SyncRequest {
        source_workers: selectors(from.0),
        destination_workers: selectors(to.0),
        ..request(Some(id), from.1, to.1)
    }
}

pub(super) fn submit(world: &mut World, request: SyncRequest) -> Result<SubmitReply, Problem> {
    match world.apply(Event::Submit { request, list: None, idempotency: None }) {
        Some(Reply::Submitted(reply)) => Ok(reply),
        Some(Reply::Refused(problem)) => Err(*problem),
        other => panic!("{other:?}"),
    }
}

/// A source and two nodes that have a disk of their own at `/scratch`.
pub(super) fn local_disks() -> World {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    send(&mut world, reported("gpu-1", &["/scratch"], "ext4"));
    send(&mut world, reported("gpu-2", &["/scratch"], "ext4"));
    world
}

/// What an agent does that makes probe files and finds all others.
pub(super) fn carry_out(checks: &[StorageCheck]) -> Vec<StorageCheckReport> {
    let done = |check: &StorageCheck| StorageCheckReport {
        path: check.path.clone(),
        made: check.make.as_ref().map(ProbeSecret::name),
        found: check.look_for.clone(),
        missing: Vec::new(),
        sample: None,
        error: None,
    };
    checks.iter().map(done).collect()
}

/// … and finds none.
pub(super) fn find_nothing(checks: &[StorageCheck]) -> Vec<StorageCheckReport> {
    let mut reports = carry_out(checks);
    for report in &mut reports {
        std::mem::swap(&mut report.found, &mut report.missing);
    }
    reports
}

/// Heartbeats of workers that see one storage, until nothing is left to compare.
fn compare(world: &mut World, beats: &[WorkerHeartbeat]) {
    compare_by(world, beats, carry_out);
}

pub(super) fn compare_by(
    world: &mut World,
    beats: &[WorkerHeartbeat],
    carry_out: fn(&[StorageCheck]) -> Vec<StorageCheckReport>,
) {
    // What a worker does first depends on what the others have reported.
    for beat in beats {
        send(world, beat.clone());
    }
    let mut checks = vec![Vec::new(); beats.len()];
    for round in 0.. {
        assert!(round < 20, "the comparison does not end");
        for (beat, checks) in beats.iter().zip(&mut checks) {
            let storage_checks = carry_out(checks);
            *checks =
                send(world, WorkerHeartbeat { storage_checks, ..beat.clone() }).storage_checks;
        }
        if checks.iter().all(Vec::is_empty) {
            return;
        }
    }
}

#[test]
fn a_path_that_is_another_storage_on_each_worker_is_refused_without_workers() {
    let mut world = local_disks();
    let problem =
        submit(&mut world, addressed("demo", ("", "/src/a"), ("", "/scratch/b"))).unwrap_err();
    assert!(problem.is(ProblemCode::AmbiguousStorage), "{problem:?}");
    assert!(
        problem.detail.contains("(gpu-1)") && problem.detail.contains("(gpu-2)"),
        "{problem:?}"
    );
    let hint = problem.hint.unwrap();
    assert!(hint.contains("gpu-1:/scratch/b") && hint.contains("'gpu-*:/scratch/b'"), "{hint}");
    let problem =
        submit(&mut world, addressed("demo", ("", "/scratch/b"), ("", "/src/a"))).unwrap_err();
    assert!(problem.is(ProblemCode::AmbiguousStorage), "{problem:?}");
    let several = addressed("demo", ("gpu-*", "/scratch/b"), ("", "/src/a"));
    let problem = submit(&mut world, several).unwrap_err();
    assert!(problem.is(ProblemCode::SeveralSources), "{problem:?}");
    assert!(world.state.syncs.is_empty());
}

#[test]
fn a_named_worker_gets_a_sync_alone() {
    let mut world = local_disks();
    submit(&mut world, addressed("demo", ("", "/src/a"), ("gpu-2", "/scratch/b"))).unwrap();
    let scan = world.poll("s", "1").unwrap();
    let pool: Vec<&str> = scan.destination_worker_pool.iter().map(|id| id.as_str()).collect();
    assert_eq!(pool, ["gpu-2"]);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    complete_kind(&mut world, "s", "copy");
    assert_eq!(world.poll("gpu-1", "1"), None);
}

#[test]
fn a_worker_that_turns_up_with_another_disk_gets_nothing_of_a_running_sync() {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    send(&mut world, reported("gpu-1", &["/scratch"], "ext4"));
    submit(&mut world, addressed("demo", ("", "/src/a"), ("", "/scratch/b"))).unwrap();
    submit(&mut world, addressed("later", ("", "/src/a"), ("", "/scratch/c"))).unwrap();
    let scan = world.poll("s", "1").unwrap();
    assert_eq!(scan.request_id.as_str(), "demo");
    send(&mut world, reported("gpu-2", &["/scratch"], "ext4"));
    send(&mut world, reported("s2", &["/src"], "ext4"));
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    assert_eq!(world.poll("s2", "1"), None, "it has another source");
    for _ in 0..2 {
        let copy = complete_kind_by(&mut world, "s", "copy", "gpu-1");
        let pool: Vec<&str> = copy.destination_worker_pool.iter().map(|id| id.as_str()).collect();
        assert_eq!((pool, copy.source_worker_pool.len()), (vec!["gpu-1"], 1));
    }
    // What has not started waits, and says why.
    let reason = world.progress("later").reason.unwrap();
    assert!(reason.contains("different storages at the source path /src/a"), "{reason}");
    assert_eq!(world.progress("later").state, SyncState::Queued);
    world.apply(Event::CancelSync("later".parse().unwrap()));
}

/// The next task of a kind, which `writer` then wrote.
fn complete_kind_by(world: &mut World, worker: &str, kind: &str, writer: &str) -> Assignment {
    let task = poll_kind(world, worker, kind);
    world.post_result(result(&task, true, all_done(&task, writer)));
    task
}

#[test]
fn workers_of_one_shared_storage_are_a_pool_once_they_were_compared() {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    let nodes = ["n1", "n2", "n3"].map(|node| reported(node, &["/lustre"], "lustre"));
    for node in &nodes {
        send(&mut world, node.clone());
    }
    let reply = submit(&mut world, addressed("demo", ("", "/src/a"), ("", "/lustre/b"))).unwrap();
    assert!(reply.warnings[0].contains("not known yet"), "{reply:?}");
    assert_eq!(world.poll("s", "1"), None, "it does not start on a guess");
    compare(&mut world, &nodes);
    let scan = world.poll("s", "1").expect("the scan");
    assert_eq!(scan.destination_worker_pool.len(), 3);
    // A restarted master needs no comparison.
    world.restart();
    send(&mut world, reported("s", &["/src"], "ext4"));
    for node in &nodes {
        assert!(send(&mut world, node.clone()).storage_checks.is_empty());
    }
    let storage = world.progress("demo").destination_storage.unwrap();
    let Some(Reply::Storage(shown)) = world.apply(Event::GetStorage(storage)) else { panic!() };
    assert_eq!((shown.workers.len(), shown.path.to_string().as_str()), (3, "/lustre"));
}

#[test]
fn a_storage_is_not_copied_onto_itself() {
    let mut world = local_disks();
    let onto = |to: &str, path: &str| addressed("demo", ("gpu-1", "/scratch/a"), (to, path));
    for (to, path) in [("gpu-1", "/scratch/a"), ("gpu-*", "/scratch/a"), ("gpu-1", "/scratch/a/b")]
    {
        let problem = submit(&mut world, onto(to, path)).unwrap_err();
        assert!(problem.is(ProblemCode::SameStorage), "{to}:{path}: {problem:?}");
    }
    submit(&mut world, onto("gpu-2", "/scratch/a")).unwrap();
    world.apply(Event::DeleteSync("demo".parse().unwrap()));
    submit(&mut world, onto("gpu-1", "/scratch/b")).unwrap();
}

/// An agent writes through itself if the assignment names it.
#[test]
fn an_assignment_names_the_worker_itself_exactly_where_it_sees_the_destination() {
    let mut world = local_disks();
    let from = ("gpu-1", "/scratch/a");
    submit(&mut world, addressed("other", from, ("gpu-2", "/scratch/a"))).unwrap();
    submit(&mut world, addressed("same", from, ("gpu-1", "/scratch/b"))).unwrap();
    for _ in 0..2 {
        let scan = world.poll("gpu-1", "1").unwrap();
        let own = scan.request_id.as_str().starts_with("same");
        let pool: Vec<&str> = scan.destination_worker_pool.iter().map(|id| id.as_str()).collect();
        assert_eq!(pool, [if own { "gpu-1" } else { "gpu-2" }], "{}", scan.request_id);
    }
    // Also where an assignment names only some of the workers.
    let nodes: Vec<_> =
        (0..70).map(|n| reported(&format!("n{n}"), &["/lustre"], "lustre")).collect();
    compare(&mut world, &nodes);
    for n in (0..70).step_by(7) {
        let (id, node) = (format!("s{n}"), format!("n{n}"));
        let request = addressed(&id, ("", "/lustre/a"), ("", &format!("/lustre/b{n}")));
        submit(&mut world, request).unwrap();
        let scan = world.poll(&node, "1").unwrap();
        assert_eq!(scan.destination_worker_pool.len(), 64);
        assert!(scan.destination_worker_pool.iter().any(|id| id.as_str() == node), "{node}");
    }
}

#[test]
fn a_worker_of_which_every_declaration_is_wrong_is_in_error() {
    let mut world = World::new();
    let beats = ["w1", "w2"].map(|name| {
        let mut beat = reported(name, &["/p"], "ext4");
        beat.storages[0].declared = Some(StorageDeclaration::Storage("x".parse().unwrap()));
        beat
    });
    compare_by(&mut world, &beats, find_nothing);
    let shown = view(&mut world, "w1");
    let why = "declared as storage `x`, but worker w2 sees another file tree at /p";
    assert_eq!(shown.status, WorkerStatus::Error);
    assert!(shown.reason.unwrap().starts_with(&format!("/p is not used: {why}")));
    assert_eq!(shown.unavailable_paths.len(), 1);
    assert!(shown.unavailable_paths[0].reason.starts_with(why));
    // With another path it works.
    let mut more = reported("w1", &["/p", "/q"], "ext4");
    more.storages[0].declared.clone_from(&beats[0].storages[0].declared);
    send(&mut world, more);
    let shown = view(&mut world, "w1");
    assert_eq!((shown.status, shown.unavailable_paths.len()), (WorkerStatus::Ready, 1));
}

#[test]
fn storage_paths_that_hold_each_other_are_several_storages() {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    send(&mut world, reported("w1", &["/data"], "nfs4"));
    send(&mut world, reported("w2", &["/data/deep"], "nfs4"));
    let to = |workers| addressed("demo", ("", "/src/a"), (workers, "/data/deep/b"));
    let problem = submit(&mut world, to("")).unwrap_err();
    assert!(problem.is(ProblemCode::AmbiguousStorage), "{problem:?}");
    let within = addressed("demo", ("w1", "/data"), ("w2", "/data/deep/b"));
    let problem = submit(&mut world, within).unwrap_err();
    assert!(problem.is(ProblemCode::SameStorage), "{problem:?}");
    assert!(problem.detail.contains("are not compared"), "{problem:?}");
    submit(&mut world, to("w2")).unwrap();
    assert_eq!(world.poll("s", "1").unwrap().destination_worker_pool[0].as_str(), "w2");
}

#[test]
fn a_selector_without_a_worker_is_refused_with_the_workers_that_are_known() {
    let mut world = local_disks();
    for workers in ["gpu-7", "cpu-*", "@rack=3", "gpu-1,gpu-7"] {
        let wrong = addressed("demo", ("", "/src/a"), (workers, "/scratch/b"));
        let problem = submit(&mut world, wrong).unwrap_err();
        assert!(problem.is(ProblemCode::NoMatchingWorker), "{problem:?}");
        assert!(problem.detail.contains("gpu-1, gpu-2, s"), "{problem:?}");
    }
    let mut labelled = reported("gpu-2", &["/scratch"], "ext4");
    labelled.labels = [("rack".to_owned(), "3".to_owned())].into();
    send(&mut world, labelled);
    submit(&mut world, addressed("demo", ("", "/src/a"), ("@rack=3", "/scratch/b"))).unwrap();
    let of = world.progress("demo").destinations;
    assert_eq!((of.len(), of[0].workers[0].as_str()), (1, "gpu-2"));
}

#[test]
fn ten_thousand_selectors_are_resolved() {
    let mut world = local_disks();
    let many: Vec<WorkerSelector> =
        (0..10_000).map(|n| if n % 2 == 0 { "gpu-1" } else { "gpu-*" }.parse().unwrap()).collect();
    let request = SyncRequest {
        destination_workers: many,
        ..addressed("demo", ("", "/src/a"), ("", "/scratch/b"))
    };
    submit(&mut world, request).unwrap();
    assert_eq!(world.progress("demo").destinations.len(), 2);
}

#[test]
fn syncs_to_one_path_of_different_storages_run_at_once() {
    let mut world = local_disks();
    submit(&mut world, addressed("one", ("", "/src/a"), ("gpu-1", "/scratch/b"))).unwrap();
    submit(&mut world, addressed("two", ("", "/src/a"), ("gpu-2", "/scratch/b"))).unwrap();
    submit(&mut world, addressed("again", ("", "/src/a"), ("gpu-1", "/scratch/b"))).unwrap();
    let started: BTreeSet<String> =
        (0..2).map(|_| world.poll("s", "1").unwrap().request_id.to_string()).collect();
    assert_eq!(started, ["one".to_owned(), "two".to_owned()].into());
    assert_eq!(world.poll("s", "1"), None);
    let reason = world.progress("again").reason.unwrap();
    assert!(reason.contains("waits for sync one"), "{reason}");
}

#[test]
fn a_worker_that_is_forgotten_and_returns_continues_its_sync_from_the_start() {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    send(&mut world, reported("d", &["/dst"], "ext4"));
    world.submit("demo", "/src/a", "/dst/b");
    let scan = world.poll("s", "1").unwrap();
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0)], None));
    for _ in 0..12 {
        world.advance(5_000);
        send(&mut world, reported("s", &["/src"], "ext4"));
    }
    let reply = world.apply(Event::ForgetWorker("d".parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Forgotten(_))), "{reply:?}");
    let waits = world.progress("demo");
    assert_eq!(waits.state, SyncState::Progress, "{waits:?}");
    assert_eq!(waits.destination_storage, None);
    send(&mut world, reported("d", &["/dst"], "ext4"));
    for _ in 0..12 {
        world.advance(5_000);
        send(&mut world, reported("s", &["/src"], "ext4"));
        send(&mut world, reported("d", &["/dst"], "ext4"));
    }
    assert_eq!(world.progress("demo").files_total, 0, "all is listed again");
    assert_eq!(poll_kind(&mut world, "s", "scan").attempt, 1);
}

/// The addresses that a submit warns about.
fn unserved(world: &mut World, id: &str, from: (&str, &str), to: (&str, &str)) -> Vec<String> {
    submit(world, addressed(id, from, to)).unwrap().warnings
}

#[test]
fn the_reason_of_a_sync_that_no_selected_worker_serves_names_the_selection() {
    let mut world = local_disks();
    send(&mut world, reported("w91", &["/other"], "ext4"));
    // Others serve the path. The sync may not use them.
    let warnings = unserved(&mut world, "demo", ("", "/src/a"), ("w9*", "/scratch/b"));
    assert_eq!(
        warnings,
        [
            "no active worker serves the destination path w9*:/scratch/b; nearest storage paths: /other (w91); \
          workers with this path that are not meant: gpu-1, gpu-2"
        ]
    );
    assert_eq!(world.progress("demo").reason.as_ref(), Some(&warnings[0]));
    let warnings = unserved(&mut world, "from", ("w91,gpu-1", "/src/a"), ("gpu-2", "/scratch/c"));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the source path w91,gpu-1:/src/a; nearest"), "{warnings:?}");
    // One of them is silent later.
    submit(&mut world, addressed("one", ("", "/src/a"), ("gpu-2", "/scratch/d"))).unwrap();
    let timeout = world.state.settings.heartbeat_timeout_ms;
    for _ in 0..=timeout / 10_000 {
        world.advance(10_000);
        send(&mut world, reported("s", &["/src"], "ext4"));
        send(&mut world, reported("gpu-1", &["/scratch"], "ext4"));
    }
    let reason = world.progress("one").reason.unwrap();
    assert!(
        reason.contains("path gpu-2:/scratch/d; nearest storage paths: /scratch (gpu-2, inactive)"),
        "{reason}"
    );
    // A worker that is selected and takes no work is named, others are not.
    world.apply(Event::CancelSync("one".parse().unwrap()));
    let beat = reported("w92", &["/scratch"], "ext4");
    send(&mut world, WorkerHeartbeat { status: WorkerStatus::Error, ..beat });
    let reason = world.progress("demo").reason.unwrap();
    assert_eq!(
        reason,
        "no worker that serves the destination path w92:/scratch/b takes work: w92 (ERROR)"
    );
}

#[test]
fn many_selectors_are_cut_in_a_reason() {
    let mut world = local_disks();
    let many: Vec<String> = (0..9).map(|n| format!("x{n}")).collect();
    for worker in &many {
        send(&mut world, reported(worker, &["/other"], "ext4"));
    }
    let warnings = unserved(&mut world, "demo", ("", "/src/a"), (&many.join(","), "/scratch/b"));
    assert!(warnings[0].contains(" x0,x1,x2,x3,x4,+4:/scratch/b; "), "{warnings:?}");
}

#[test]
fn several_destinations_that_are_served_need_not_wait() {
    let mut world = local_disks();
    let mut request = addressed("demo", ("", "/src/a"), ("gpu-*", "/scratch/b"));
    request.options.no_queue = true;
    submit(&mut world, request.clone()).unwrap();
    // One of them takes no work.
    let beat = reported("gpu-2", &["/scratch"], "ext4");
    send(&mut world, WorkerHeartbeat { status: WorkerStatus::Error, ..beat });
    request.request_id = Some("more".parse().unwrap());
    let refused = submit(&mut world, request).unwrap_err();
    assert!(refused.is(ProblemCode::NoWorker), "{refused:?}");
    assert!(
        refused.detail.contains("destination path gpu-*:/scratch/b takes work: gpu-2 (ERROR)"),
        "{refused:?}"
    );
}

/// Workers `n1` and `n2` see one storage, and each wrote a file of a sync to it. Neither has flushed.
fn written_by_two() -> World {
    let mut world = World::new();
    send(&mut world, reported("s", &["/src"], "ext4"));
    let nodes = ["n1", "n2"].map(|node| reported(node, &["/lustre"], "lustre"));
    compare(&mut world, &nodes);
    submit(&mut world, addressed("demo", ("", "/src/a"), ("", "/lustre/b"))).unwrap();
    let scan = poll_kind(&mut world, "s", "scan");
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    for writer in ["n1", "n2"] {
        complete_kind_by(&mut world, "s", "copy", writer);
    }
    world
}

/// `n1` has another storage at its path now.
fn moved(boot: &str, incarnation: &str) -> WorkerHeartbeat {
    let beat = reported("n1", &["/lustre"], "ext4");
    WorkerHeartbeat {
        boot_id: Some(boot.to_owned()),
        incarnation: Some(incarnation.to_owned()),
        root_ids: [("/lustre".to_owned(), "7-2".to_owned())].into(),
        ..beat
    }
}

/// The source is walked again, `n2` alone has to flush, and the sync ends.
#[track_caller]
fn recheck_through_n2(world: &mut World) {
    world.advance(1_000);
    let scan = poll_kind(world, "s", "scan");
    assert_eq!(scan.options.compare, crate::wire::options::Compare::Checksum);
    world.post_page(&scan, page(&scan, 0, vec![copy_item(1, 0), copy_item(1, 0)], None));
    for _ in 0..2 {
        let copy = complete_kind_by(world, "s", "copy", "n2");
        let pool: Vec<&str> = copy.destination_worker_pool.iter().map(|id| id.as_str()).collect();
        assert_eq!(pool, ["n2"]);
    }
    world.advance(1_000);
    while let Some(flush) = world.poll("n2", "1") {
        assert_eq!(flush.task, TaskSpec::Flush);
        world.post_result(result(&flush, true, TaskReport::default()));
    }
    world.advance(1_000);
    let end = world.progress("demo");
    assert_eq!((end.state, end.repaired_files), (SyncState::Completed, 2), "{end:?}");
}

#[test]
fn a_writer_with_another_storage_at_its_path_after_a_reboot_has_nothing_to_flush() {
    let mut world = written_by_two();
    send(&mut world, moved("a later boot", "2"));
    world.advance(1_000);
    complete_kind(&mut world, "n2", "flush");
    recheck_through_n2(&mut world);
}

#[test]
fn a_writer_with_another_storage_at_its_path_after_its_flush_has_nothing_to_flush() {
    let mut world = written_by_two();
    let flush = poll_kind(&mut world, "n1", "flush");
    world.post_result(result(&flush, true, TaskReport::default()));
    send(&mut world, moved("boot of n1", "1"));
    let flush = poll_kind(&mut world, "n2", "flush");
    world.post_result(result(&flush, true, TaskReport::default()));
    recheck_through_n2(&mut world);
}

/// Nothing may be done there, also no flush. The sync does not wait for that without end.
#[test]
fn a_writer_that_is_not_used_any_more_is_not_waited_for_without_end() {
    let mut world = written_by_two();
    let mut wrong = reported("n1", &["/lustre"], "lustre");
    wrong.storages[0].declared = Some(StorageDeclaration::Local);
    send(&mut world, wrong.clone());
    assert!(view(&mut world, "n1").reason.unwrap().contains("declared as `local`"));
    assert_eq!(world.poll("n1", "1"), None);
    complete_kind(&mut world, "n2", "flush");
    for _ in 0..70 {
        world.advance(10_000);
        send(&mut world, wrong.clone());
        send(&mut world, reported("n2", &["/lustre"], "lustre"));
    }
    let end = world.progress("demo");
    assert_eq!(end.state, SyncState::Failed, "{end:?}");
    assert!(end.errors[0].message.contains("did not return to flush it"), "{:?}", end.errors);
}
