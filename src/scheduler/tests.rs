//! The scheduler played against a world of simulated agents, a store that is a map, and a clock that
//! only moves when told.

use super::*;
use crate::wire::manifest::NameList;
use crate::wire::sync::{ErrorClass, FileError, Outcome, SyncProgress, SyncRequest, SyncState};
use crate::wire::task::{
    Assignment, Blob, Cursor, PageAction, ResultOutcome, ScanPage, SyncResult, TaskReport, WorkItem,
};
use crate::wire::worker::{WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, BytePath, RelPath};
use proptest::prelude::*;

struct World {
    state: State,
    records: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    answers: BTreeMap<Caller, Reply>,
    now: Now,
    callers: u64,
    seeds: u8,
}

const START: Now = Now { mono_ms: 1_000, wall_ms: 1_800_000_000_000 };

impl World {
    fn new() -> Self {
        let records = BTreeMap::new();
        let state = State::load(Settings::default(), [0; 32], &records, START).unwrap();
        World {
            state,
            records,
            blobs: BTreeMap::new(),
            answers: BTreeMap::new(),
            now: START,
            callers: 0,
            seeds: 0,
        }
    }

    /// Plays an event; its reply, unless it waits.
    fn play(&mut self, event: Event) -> Option<Reply> {
        self.callers += 1;
        let caller = Caller(self.callers);
        let effects = self.state.apply(event, Some(caller), self.now);
        for effect in effects {
            match effect {
                Effect::Put(key) | Effect::Delete(key) => match self.state.record(&key) {
                    Some(value) => drop(self.records.insert(key, value)),
                    None => drop(self.records.remove(&key)),
                },
                Effect::PutBlob(key, value) => drop(self.blobs.insert(key, value)),
                Effect::DeleteBlob(key) => drop(self.blobs.remove(&key)),
                Effect::Reply(to, reply) => {
                    assert!(self.answers.insert(to, reply).is_none(), "answered twice");
                }
            }
        }
        self.audit();
        self.answers.remove(&caller)
    }

    /// What must hold after every event.
    fn audit(&self) {
        let keys: BTreeSet<String> = self.state.record_keys().into_iter().collect();
        let stored: BTreeSet<String> = self.records.keys().cloned().collect();
        if !stored.is_empty() {
            assert_eq!(keys, stored, "the store holds just the records that there are");
        }
        for (key, value) in &self.records {
            assert_eq!(self.state.record(key).as_ref(), Some(value), "{key} is stored as it is");
        }
        for task in self.state.tasks.values() {
            let sync = &self.state.syncs[&task.sync];
            assert!(sync.tasks.contains(&task.id));
            assert!(task.blob.iter().all(|b| self.blobs.contains_key(b)), "{task:?} has no blob");
            if let Some(lease) = task.lease() {
                assert_eq!(self.state.leases.get(&lease.assignment), Some(&task.id));
            }
        }
        let leased = self.state.tasks.values().filter(|t| t.lease().is_some()).count();
        assert_eq!(leased, self.state.leases.len());
        for sync in self.state.syncs.values() {
            let c = &sync.counters;
            assert!(c.files_done + c.files_skipped + c.files_failed <= c.files_total, "{c:?}");
            assert!(c.dirs_done + c.dirs_failed <= c.dirs_total, "{c:?}");
            assert!(sync.larges.values().all(|l| self.blobs.contains_key(&l.blob)));
        }
    }

    fn restart(&mut self) {
        self.seeds += 1;
        self.state =
            State::load(Settings::default(), [self.seeds; 32], &self.records, self.now).unwrap();
        self.answers.clear();
        self.play(Event::Tick);
    }

    fn pass(&mut self, ms: u64) {
        // In steps, as the owner does: one great leap would mean that the master slept.
        for step in std::iter::repeat_n(5_000, (ms / 5_000) as usize).chain([ms % 5_000]) {
            self.now.mono_ms += step;
            self.now.wall_ms += step as i64;
            self.play(Event::Tick);
        }
    }

    fn submit(&mut self, id: &str, source: &str, destination: &str) {
        let reply = self.play(Event::Submit {
            request: request(Some(id), source, destination),
            list: None,
            idempotency: None,
        });
        assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
    }

    fn beat(&mut self, worker: &str, incarnation: &str, paths: &[&str], in_hand: &[AssignmentId]) {
        let beat = heartbeat(worker, Some(incarnation), paths, in_hand);
        assert!(matches!(self.play(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
    }

    fn poll(&mut self, worker: &str, incarnation: &str) -> Option<Assignment> {
        let reply = self.play(Event::Poll {
            worker: worker.parse().unwrap(),
            incarnation: Some(incarnation.to_owned()),
            poll_id: None,
            wait_ms: 0,
        });
        match reply {
            Some(Reply::Assignment(assignment)) => assignment.map(|a| *a),
            other => panic!("{other:?}"),
        }
    }

    fn post(&mut self, a: &Assignment, page: ScanPage) -> PageAction {
        let event = Event::Page { worker: a.worker_id.clone(), assignment: a.assignment_id, page };
        match self.play(event) {
            Some(Reply::Page(reply)) => reply.action,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, result: SyncResult) -> Option<ResultOutcome> {
        match self.play(Event::Result(result)) {
            Some(Reply::Result(reply)) => reply.outcome,
            other => panic!("{other:?}"),
        }
    }

    fn progress(&mut self, id: &str) -> SyncProgress {
        match self.play(Event::Progress(id.parse().unwrap())) {
            Some(Reply::Progress(progress)) => *progress,
            other => panic!("{other:?}"),
        }
    }
}

fn request(id: Option<&str>, source: &str, destination: &str) -> SyncRequest {
    SyncRequest {
        request_id: id.map(|id| id.parse().unwrap()),
        source_path: AbsPath::new(source).unwrap(),
        destination_path: AbsPath::new(destination).unwrap(),
        chunk_size_mb: 1,
        file_list: None,
    }
}

fn heartbeat(
    worker: &str,
    incarnation: Option<&str>,
    paths: &[&str],
    in_hand: &[AssignmentId],
) -> WorkerHeartbeat {
    WorkerHeartbeat {
        worker_id: worker.parse().unwrap(),
        status: WorkerStatus::Ready,
        storage_paths: paths.iter().map(|p| AbsPath::new(p).unwrap()).collect(),
        data_plane_endpoints: vec!["127.0.0.1:1".parse().unwrap()],
        timestamp: None,
        control_plane_address: None,
        incarnation: incarnation.map(str::to_owned),
        boot_id: incarnation.map(|_| "boot".to_owned()),
        free_bytes: BTreeMap::new(),
        in_hand: in_hand.to_vec(),
        slots: Some(4),
        agent_version: None,
    }
}

fn result(a: &Assignment, success: bool, report: TaskReport) -> SyncResult {
    SyncResult {
        request_id: a.request_id.clone(),
        worker_id: a.worker_id.clone(),
        success,
        message: (!success).then(|| "it broke".to_owned()),
        assignment_id: Some(a.assignment_id),
        attempt: Some(a.attempt),
        task_digest: Some(a.task_digest),
        report: Some(report),
    }
}

/// All of a task done, by `writer`.
fn all_done(a: &Assignment, writer: &str) -> TaskReport {
    let wrote = vec![writer.parse().unwrap()];
    match &a.task {
        TaskSpec::Copy { files, dirs, bytes } => TaskReport {
            files_done: *files,
            dirs_done: *dirs,
            bytes_done: *bytes,
            wrote,
            ..TaskReport::default()
        },
        TaskSpec::Range { .. } => {
            TaskReport { digest: Some(Digest([7; 32])), wrote, ..TaskReport::default() }
        }
        TaskSpec::Commit { .. } => TaskReport { wrote, ..TaskReport::default() },
        _ => TaskReport::default(),
    }
}

fn batch(files: u64, dirs: u64) -> WorkItem {
    WorkItem::Copy { manifest: Blob(vec![1; 10]), files, dirs, bytes: files * 10 }
}

fn large(ranges: u64) -> WorkItem {
    let size = (ranges << 20) - 5;
    WorkItem::Large { manifest: Blob(vec![2; 10]), size, range_length: 1 << 20 }
}

fn page(a: &Assignment, number: u64, work: Vec<WorkItem>, next: Option<TaskSpec>) -> ScanPage {
    let task_digest = a.task_digest;
    ScanPage { task_digest, page: number, work, spawn: vec![], errors: vec![], next }
}

fn at(place: &str) -> Option<TaskSpec> {
    let cursor = Cursor { after: RelPath::new(place).unwrap(), skip_contents: false };
    Some(TaskSpec::Scan { dir: RelPath::root(), cursor: Some(cursor) })
}

fn error(class: ErrorClass) -> FileError {
    FileError {
        path: BytePath(b"x".to_vec()),
        operation: "open source".to_owned(),
        errno: Some("EACCES".to_owned()),
        message: "permission denied".to_owned(),
        worker_id: None,
        attempt: 0,
        class,
    }
}

/// A world with a source worker `s`, a destination worker `d` and the sync `demo` whose scan `s` holds.
fn scanning() -> (World, Assignment) {
    let mut world = World::new();
    world.beat("s", "1", &["/src"], &[]);
    world.beat("d", "1", &["/dst"], &[]);
    world.submit("demo", "/src/a", "/dst/b");
    let scan = world.poll("s", "1").expect("the scan");
    assert!(matches!(scan.task, TaskSpec::Scan { .. }));
    (world, scan)
}

#[test]
fn a_sync_goes_from_queued_to_completed() {
    let (mut world, scan) = scanning();
    assert_eq!(world.progress("demo").state, SyncState::Progress);
    let work = vec![batch(3, 1), large(2)];
    assert_eq!(world.post(&scan, page(&scan, 0, work, None)), PageAction::Done);
    for kind in ["copy", "range", "range"] {
        let task = world.poll("s", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        assert_eq!(task.destination_workers.len(), 1);
        world.finish(result(&task, true, all_done(&task, "d")));
    }
    assert_eq!(world.poll("s", "1"), None, "the rest is for the destination");
    for kind in ["commit", "flush"] {
        let task = world.poll("d", "1").expect(kind);
        assert_eq!(task.task.kind(), kind);
        if let TaskSpec::Commit { chain, .. } = &task.task {
            assert_eq!(chain.0, [7; 64]);
        }
        world.finish(result(&task, true, all_done(&task, "d")));
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(Outcome::Full)));
    assert_eq!((end.files_total, end.files_done, end.dirs_done), (4, 4, 1));
    assert_eq!(end.transferred_bytes, end.total_bytes);
    assert!(end.scan_done && world.blobs.is_empty() && world.state.tasks.is_empty());
}

#[test]
fn a_sync_without_a_worker_waits_and_says_which_path_is_near() {
    let mut world = World::new();
    world.beat("s", "1", &["/src"], &[]);
    world.beat("t", "1", &["/dst-old", "/database"], &[]);
    world.submit("demo", "/src/a", "/data/b");
    assert_eq!(world.poll("s", "1"), None);
    let progress = world.progress("demo");
    assert_eq!(progress.state, SyncState::Queued);
    let reason = progress.reason.unwrap();
    assert!(
        reason.contains("destination path /data/b") && reason.contains("/database (t)"),
        "{reason}"
    );
    world.beat("d", "1", &["/data"], &[]);
    assert!(world.poll("s", "1").is_some(), "it starts when a worker turns up");
}

#[test]
fn a_parked_poll_is_answered_when_work_turns_up_or_time_is_out() {
    let mut world = World::new();
    world.beat("s", "1", &["/src"], &[]);
    world.beat("d", "1", &["/dst"], &[]);
    let poll = |wait_ms| Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: None,
        wait_ms,
    };
    assert_eq!(world.play(poll(7_000)), None);
    let first = Caller(world.callers);
    world.pass(7_000);
    assert_eq!(world.answers.remove(&first), Some(Reply::Assignment(None)));
    assert_eq!(world.play(poll(7_000)), None);
    let second = Caller(world.callers);
    world.submit("demo", "/src", "/dst");
    assert!(matches!(world.answers.remove(&second), Some(Reply::Assignment(Some(_)))));
}

#[test]
fn a_repeated_poll_gets_the_same_lease_also_from_a_restarted_master() {
    let (mut world, _) = scanning();
    world.submit("other", "/src/x", "/dst/y");
    let poll = |id: &str| Event::Poll {
        worker: "s".parse().unwrap(),
        incarnation: Some("1".into()),
        poll_id: Some(id.into()),
        wait_ms: 0,
    };
    let first = world.play(poll("p"));
    assert!(matches!(&first, Some(Reply::Assignment(Some(_)))));
    let ids = |reply: Option<Reply>| match reply {
        Some(Reply::Assignment(Some(a))) => (a.assignment_id, a.task_id),
        other => panic!("{other:?}"),
    };
    let first = ids(first);
    assert_eq!(ids(world.play(poll("p"))), first);
    world.restart();
    world.beat("s", "1", &["/src"], &[]);
    assert_eq!(ids(world.play(poll("p"))), first);
}

#[test]
fn a_result_that_does_not_match_exactly_changes_nothing() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    let good = result(&copy, true, all_done(&copy, "d"));
    let mut wrong = vec![good.clone(), good.clone(), good.clone(), good.clone(), good.clone()];
    wrong[0].assignment_id = Some(AssignmentId([3; 16]));
    wrong[1].attempt = Some(2);
    wrong[2].task_digest = Some(Digest([3; 32]));
    wrong[3].worker_id = "d".parse().unwrap();
    wrong[4].request_id = "other".parse().unwrap();
    let before = world.records.clone();
    for bad in wrong {
        assert_eq!(world.finish(bad), Some(ResultOutcome::Stale));
    }
    assert_eq!(world.records, before);
    assert_eq!(world.finish(good.clone()), Some(ResultOutcome::Applied));
    assert_eq!(world.finish(good), Some(ResultOutcome::Stale), "it counts once");
    assert_eq!(world.progress("demo").files_done, 2);
}

#[test]
fn a_page_sent_twice_counts_once() {
    let (mut world, scan) = scanning();
    let first = page(&scan, 0, vec![batch(2, 1)], at("m"));
    assert_eq!(world.post(&scan, first.clone()), PageAction::Continue);
    assert_eq!(world.post(&scan, first), PageAction::Continue);
    assert_eq!(world.post(&scan, page(&scan, 5, vec![batch(2, 1)], None)), PageAction::Stop);
    let progress = world.progress("demo");
    assert_eq!((progress.files_total, progress.dirs_total, progress.scan_done), (2, 1, false));
}

#[test]
fn a_dead_workers_task_goes_to_another_with_a_higher_attempt() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(1, 0)], at("m")));
    world.beat("t", "1", &["/src"], &[]);
    for _ in 0..7 {
        world.pass(5_000);
        world.beat("t", "1", &["/src"], &[]);
        world.beat("d", "1", &["/dst"], &[]);
    }
    let again = world.poll("t", "1").expect("the lease of `s` ran out");
    assert_eq!((again.task_id, again.attempt), (scan.task_id, 2));
    assert_eq!(again.task, at("m").unwrap(), "it goes on behind the cursor");
    assert_ne!(again.assignment_id, scan.assignment_id);
    assert_eq!(world.post(&scan, page(&scan, 1, vec![batch(9, 9)], None)), PageAction::Stop);
}

#[test]
fn a_heartbeat_renews_what_it_lists_and_a_new_incarnation_frees_all() {
    let (mut world, scan) = scanning();
    for _ in 0..20 {
        world.pass(5_000);
        world.beat("s", "1", &["/src"], &[scan.assignment_id]);
        world.beat("d", "1", &["/dst"], &[]);
    }
    assert_eq!(world.poll("s", "1"), None, "it still holds the scan");
    world.beat("s", "2", &["/src"], &[]);
    assert_eq!(world.poll("s", "1"), None, "the old process gets nothing");
    assert_eq!(world.poll("s", "2").expect("at once").attempt, 2);
    let stale = heartbeat("s", Some("2"), &["/src"], &[scan.assignment_id]);
    match world.play(Event::Heartbeat(stale)) {
        Some(Reply::Heartbeat(reply)) => assert_eq!(reply.drop, [scan.assignment_id]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_master_that_slept_takes_nothing_away() {
    let (mut world, scan) = scanning();
    world.play(Event::Tick);
    world.now.mono_ms += 3_600_000;
    world.play(Event::Tick);
    assert_eq!(world.post(&scan, page(&scan, 0, vec![], at("m"))), PageAction::Continue);
}

#[test]
fn a_worker_without_digests_takes_part_and_is_counted_as_unverified() {
    let mut world = World::new();
    world.play(Event::Heartbeat(heartbeat("s", None, &["/src"], &[])));
    world.play(Event::Heartbeat(heartbeat("d", None, &["/dst"], &[])));
    world.submit("demo", "/src", "/dst");
    let poll =
        Event::Poll { worker: "s".parse().unwrap(), incarnation: None, poll_id: None, wait_ms: 0 };
    assert!(matches!(world.play(poll), Some(Reply::Assignment(Some(_)))));
    let bare = SyncResult {
        request_id: "demo".parse().unwrap(),
        worker_id: "s".parse().unwrap(),
        success: true,
        message: Some("chunk complete".into()),
        assignment_id: None,
        attempt: None,
        task_digest: None,
        report: None,
    };
    assert_eq!(world.finish(bare.clone()), None, "the guide's plain ack");
    let end = world.progress("demo");
    assert_eq!((end.state, end.unverified), (SyncState::Completed, 1));
    assert_eq!(world.finish(bare), None, "late, and changes nothing");
}

#[test]
fn failing_entries_are_tried_elsewhere_then_recorded_and_the_rest_is_copied() {
    let (mut world, scan) = scanning();
    world.beat("t", "1", &["/src"], &[]);
    world.post(&scan, page(&scan, 0, vec![batch(3, 1)], None));
    let copy = world.poll("s", "1").unwrap();
    let partly = TaskReport {
        files_done: 2,
        dirs_done: 1,
        bytes_done: 20,
        failures: vec![error(ErrorClass::Permanent)],
        retry: Some(batch(1, 0)),
        wrote: vec!["d".parse().unwrap()],
        ..TaskReport::default()
    };
    world.finish(result(&copy, true, partly));
    assert_eq!(world.progress("demo").files_failed, 0, "`t` may be able to");
    assert_eq!(world.poll("s", "1"), None, "`s` has tried");
    let again = world.poll("t", "1").unwrap();
    let failed = TaskReport {
        failures: vec![error(ErrorClass::Permanent)],
        retry: Some(batch(1, 0)),
        ..TaskReport::default()
    };
    world.finish(result(&again, true, failed));
    let flush = world.poll("d", "1").expect("what was copied is flushed");
    world.finish(result(&flush, true, TaskReport::default()));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(Outcome::Partial)));
    assert_eq!((end.files_total, end.files_done, end.files_failed), (3, 2, 1));
    assert_eq!(end.errors[0].errno.as_deref(), Some("EACCES"));
    assert_eq!(end.errors[0].worker_id, Some("t".parse().unwrap()));
    assert_eq!(end.error_counts["EACCES (open source)"], 1);
}

#[test]
fn a_report_that_does_not_add_up_is_not_believed() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(3, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    let short = TaskReport { files_done: 2, ..TaskReport::default() };
    world.finish(result(&copy, true, short));
    let progress = world.progress("demo");
    assert_eq!((progress.state, progress.files_done), (SyncState::Progress, 0));
}

#[test]
fn a_large_file_that_changes_begins_anew_and_in_the_end_is_given_up() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(3)], None));
    for _ in 0..6 {
        let range = world.poll("s", "1").unwrap();
        assert_eq!(range.task.kind(), "range");
        let report = TaskReport { replace: Some(large(3)), ..TaskReport::default() };
        world.finish(result(&range, true, report));
        let discard = world.poll("d", "1").expect("the old part file is removed");
        assert_eq!(discard.task, TaskSpec::Discard);
        world.finish(result(&discard, true, TaskReport::default()));
    }
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_failed, end.files_total), (SyncState::Failed, 1, 1));
    assert_eq!(end.errors[0].class, ErrorClass::Changed);
    assert!(world.blobs.is_empty());
}

#[test]
fn a_large_file_that_is_there_already_is_skipped() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(40)], None));
    let range = world.poll("s", "1").unwrap();
    world.finish(result(&range, true, TaskReport { unchanged: true, ..TaskReport::default() }));
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_skipped, end.files_done), (SyncState::Completed, 1, 0));
    assert_eq!((end.transferred_bytes, end.bytes_skipped), (0, end.total_bytes));
}

#[test]
fn a_source_that_is_not_there_fails_the_sync_without_an_outcome() {
    let (mut world, scan) = scanning();
    let report =
        TaskReport { failures: vec![error(ErrorClass::Vanished)], ..TaskReport::default() };
    world.finish(result(&scan, false, report));
    let end = world.progress("demo");
    assert_eq!((end.state, end.outcome, end.files_failed), (SyncState::Failed, None, 1));
}

#[test]
fn a_cancelled_sync_drops_its_work_and_its_part_files() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![large(3), batch(1, 0)], at("m")));
    let range = world.poll("s", "1").unwrap();
    let reply = world.play(Event::Cancel("demo".parse().unwrap()));
    assert!(matches!(reply, Some(Reply::Progress(p)) if p.state == SyncState::Cancelled));
    let late = result(&range, true, all_done(&range, "d"));
    assert_eq!(world.finish(late), Some(ResultOutcome::Stale));
    assert_eq!(world.poll("s", "1"), None);
    assert_eq!(world.poll("d", "1"), None, "somebody may still be writing");
    for _ in 0..7 {
        world.pass(5_000);
        world.beat("d", "1", &["/dst"], &[]);
    }
    let discard = world.poll("d", "1").unwrap();
    assert_eq!(discard.task, TaskSpec::Discard);
    world.finish(result(&discard, true, TaskReport::default()));
    assert!(world.state.tasks.is_empty() && world.blobs.is_empty());
    assert_eq!(world.progress("demo").state, SyncState::Cancelled);
}

#[test]
fn a_deleted_sync_is_forgotten_and_its_name_can_be_used_again() {
    let (mut world, _) = scanning();
    assert_eq!(world.play(Event::Delete("demo".parse().unwrap())), Some(Reply::Deleted));
    let gone = world.play(Event::Progress("demo".parse().unwrap()));
    assert!(matches!(gone, Some(Reply::Refused(p)) if p.status == 404));
    assert!(world.state.syncs.is_empty());
    world.submit("demo", "/src", "/dst");
    let twice = world.play(Event::Submit {
        request: request(Some("demo"), "/src", "/dst"),
        list: None,
        idempotency: None,
    });
    let Some(Reply::Refused(problem)) = twice else { panic!("{twice:?}") };
    assert_eq!((problem.status, problem.existing.as_deref()), (409, Some("QUEUED")));
}

#[test]
fn a_submit_repeated_with_its_key_is_one_sync() {
    let mut world = World::new();
    let submit = |body: u8| Event::Submit {
        request: request(None, "/src", "/dst"),
        list: None,
        idempotency: Some(IdempotencyKey { key: "k".into(), body: Digest([body; 32]) }),
    };
    let first = world.play(submit(1));
    assert!(matches!(&first, Some(Reply::Submitted(_))));
    assert_eq!(world.play(submit(1)), first);
    assert!(matches!(world.play(submit(2)), Some(Reply::Refused(p)) if p.status == 409));
    assert_eq!(world.state.syncs.len(), 1);
}

#[test]
fn syncs_share_a_worker_in_turn() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, (0..8).map(|_| batch(1, 0)).collect(), None));
    world.submit("late", "/src/c", "/dst/d");
    let second = world.poll("s", "1").unwrap();
    assert_eq!(second.request_id.as_str(), "late", "it has not been served yet");
    world.post(&second, page(&second, 0, (0..8).map(|_| batch(1, 0)).collect(), None));
    let order: Vec<String> =
        (0..6).map(|_| world.poll("s", "1").unwrap().request_id.to_string()).collect();
    assert_eq!(order, ["demo", "late", "demo", "late", "demo", "late"]);
}

#[test]
fn a_full_window_holds_the_scan_until_half_of_it_is_done() {
    let (mut world, mut scan) = scanning();
    let mut number = 0;
    loop {
        let next = page(&scan, number, (0..10).map(|_| batch(1, 0)).collect(), at("m"));
        number += 1;
        match world.post(&scan, next) {
            PageAction::Continue => assert!(number < 100, "never full"),
            PageAction::Hold => break,
            other => panic!("{other:?}"),
        }
    }
    let mut done = 0;
    loop {
        let task = world.poll("s", "1").unwrap();
        if task.task.kind() == "scan" {
            scan = task;
            break;
        }
        world.finish(result(&task, true, all_done(&task, "d")));
        done += 1;
    }
    assert!(done >= number * 5 - 1, "{done} of {}", number * 10);
    assert_eq!(scan.attempt, 1, "to wait is no new attempt");
    assert_eq!(world.post(&scan, page(&scan, 0, vec![], None)), PageAction::Done);
}

#[test]
fn a_listed_sync_has_a_task_a_part() {
    let mut world = World::new();
    world.beat("s", "1", &["/src", "/dst"], &[]);
    let part = |n: &str| NameList { names: vec![RelPath::new(n).unwrap()] };
    world.play(Event::Submit {
        request: request(Some("demo"), "/src", "/dst"),
        list: Some(vec![part("a"), part("b")]),
        idempotency: None,
    });
    for _ in 0..2 {
        let list = world.poll("s", "1").unwrap();
        assert_eq!(list.task, TaskSpec::List { start: 0 });
        let event =
            Event::Manifest { worker: "s".parse().unwrap(), assignment: list.assignment_id };
        assert!(
            matches!(world.play(event), Some(Reply::Blob(key)) if world.blobs.contains_key(&key))
        );
        world.post(&list, page(&list, 0, vec![], None));
    }
    assert_eq!(world.progress("demo").state, SyncState::Completed);
    assert!(world.blobs.is_empty());
}

#[test]
fn ended_syncs_are_dropped_after_their_time() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![], None));
    assert_eq!(world.progress("demo").state, SyncState::Completed);
    world.now.wall_ms += 59 * 24 * 3_600_000;
    world.play(Event::Tick);
    assert_eq!(world.state.syncs.len(), 1);
    world.now.wall_ms += 2 * 24 * 3_600_000;
    world.play(Event::Tick);
    assert!(world.state.syncs.is_empty() && world.records.len() == 1);
}

#[test]
fn a_flush_is_done_by_the_writer_or_under_its_kernel_and_not_after_a_reboot() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(1, 0)], None));
    let copy = world.poll("s", "1").unwrap();
    world.finish(result(&copy, true, all_done(&copy, "d")));
    let mut elsewhere = heartbeat("e", Some("1"), &["/dst"], &[]);
    elsewhere.boot_id = Some("another boot".into());
    world.play(Event::Heartbeat(elsewhere));
    assert_eq!(world.poll("e", "1"), None, "its cache is another");
    let mut rebooted = heartbeat("d", Some("2"), &["/dst"], &[]);
    rebooted.boot_id = Some("a later boot".into());
    world.play(Event::Heartbeat(rebooted));
    assert!(world.poll("d", "2").is_none());
    world.beat("s", "1", &["/src"], &[]); // same boot, but does not hold the destination
    world.pass(1);
    let still = world.progress("demo");
    assert_eq!(still.state, SyncState::Progress, "{still:?}");
    world.beat("f", "1", &["/dst"], &[]);
    assert_eq!(world.poll("f", "1").expect("the kernel of the writer").task, TaskSpec::Flush);
}

#[test]
fn a_lost_store_makes_active_syncs_begin_anew() {
    let (mut world, scan) = scanning();
    world.post(&scan, page(&scan, 0, vec![batch(2, 0), large(2)], None));
    let copy = world.poll("s", "1").unwrap();
    world.blobs.clear();
    world.play(Event::StoreLost);
    assert_eq!(world.finish(result(&copy, true, all_done(&copy, "d"))), Some(ResultOutcome::Stale));
    let progress = world.progress("demo");
    assert_eq!((progress.files_total, progress.state), (0, SyncState::Progress));
    assert_eq!(world.poll("s", "1").unwrap().task.kind(), "scan");
}

/// What a random history is made of.
#[derive(Debug, Clone)]
enum Step {
    Poll(usize),
    Work(usize),
    Fail(usize),
    Replay(usize),
    Crash(usize),
    Pass(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4usize).prop_map(Step::Poll),
        6 => (0..99usize).prop_map(Step::Work),
        1 => (0..99usize).prop_map(Step::Fail),
        2 => (0..99usize).prop_map(Step::Replay),
        1 => (0..4usize).prop_map(Step::Crash),
        1 => (1..40_000u64).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

/// Four agents, of which any may die at any time, before a source of `pages` pages.
struct Play {
    world: World,
    pages: u64,
    incarnations: [u32; 4],
    held: Vec<(usize, Assignment, u64)>,
    sent: Vec<SyncResult>,
}

const NAMES: [&str; 4] = ["s1", "s2", "d1", "d2"];

impl Play {
    fn beat_all(&mut self) {
        for (index, name) in NAMES.iter().enumerate() {
            let path = if index < 2 { "/src" } else { "/dst" };
            let in_hand: Vec<AssignmentId> = self
                .held
                .iter()
                .filter(|(i, _, _)| *i == index)
                .map(|(_, a, _)| a.assignment_id)
                .collect();
            self.world.beat(name, &self.incarnations[index].to_string(), &[path], &in_hand);
        }
    }

    fn poll(&mut self, index: usize) -> bool {
        let incarnation = self.incarnations[index].to_string();
        match self.world.poll(NAMES[index], &incarnation) {
            Some(assignment) => {
                self.held.push((index, assignment, 0));
                true
            }
            None => false,
        }
    }

    /// What page `n` of the source holds: the same at each look.
    fn content(n: u64) -> Vec<WorkItem> {
        match n % 3 {
            0 => vec![batch(n + 1, n % 2), batch(1, 1)],
            1 => vec![large(1 + n % 40), batch(2, 0)],
            _ => vec![],
        }
    }

    fn work(&mut self, at: usize) {
        if self.held.is_empty() {
            return;
        }
        let (index, assignment, number) = self.held.remove(at % self.held.len());
        if let TaskSpec::Scan { cursor, .. } = &assignment.task {
            let from = cursor.as_ref().map_or(0, |c| {
                String::from_utf8(c.after.as_bytes().to_vec()).unwrap().parse::<u64>().unwrap()
            });
            let here = from + number;
            let next = if here + 1 < self.pages { at_page(here + 1) } else { None };
            let reply =
                self.world.post(&assignment, page(&assignment, number, Self::content(here), next));
            if reply == PageAction::Continue {
                self.held.push((index, assignment, number + 1));
            }
            return;
        }
        let done = result(&assignment, true, all_done(&assignment, NAMES[2 + at % 2]));
        self.sent.push(done.clone());
        self.world.finish(done);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Poll(index) => drop(self.poll(index)),
            Step::Work(at) => self.work(at),
            Step::Fail(at) if !self.held.is_empty() => {
                let (_, assignment, _) = self.held.remove(at % self.held.len());
                self.world.finish(result(&assignment, false, TaskReport::default()));
            }
            Step::Replay(at) if !self.sent.is_empty() => {
                let before = self.world.records.clone();
                let old = self.sent[at % self.sent.len()].clone();
                assert_eq!(self.world.finish(old), Some(ResultOutcome::Stale));
                assert_eq!(self.world.records, before, "an old result changed something");
            }
            Step::Crash(index) => {
                self.held.retain(|(i, _, _)| *i != index);
                self.incarnations[index] += 1;
                self.beat_all();
            }
            Step::Pass(ms) => self.world.pass(ms),
            Step::Restart => self.world.restart(),
            _ => {}
        }
    }

    /// Everybody behaves from now on: the sync must end.
    fn play_on(&mut self) -> SyncProgress {
        for _ in 0..20_000 {
            let progress = self.world.progress("demo");
            if progress.state.is_final() {
                return progress;
            }
            self.beat_all();
            let got = (0..4).filter(|i| self.poll(*i)).count();
            if !self.held.is_empty() {
                self.work(0);
            } else if got == 0 {
                self.world.pass(5_000);
            }
        }
        panic!("no end: {:?}", self.world.progress("demo"));
    }
}

fn at_page(n: u64) -> Option<TaskSpec> {
    at(&n.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn whatever_dies_every_entry_is_counted_once(
        pages in 1u64..12,
        steps in prop::collection::vec(step(), 0..250),
    ) {
        let mut play = Play {
            world: World::new(), pages, incarnations: [0; 4], held: vec![], sent: vec![],
        };
        play.world.submit("demo", "/src/a", "/dst/b");
        play.beat_all();
        for step in steps {
            play.step(step);
        }
        let end = play.play_on();
        let (mut files, mut dirs, mut bytes) = (0, 0, 0);
        for item in (0..pages).flat_map(Play::content) {
            match item {
                WorkItem::Copy { files: f, dirs: d, bytes: b, .. } => {
                    files += f;
                    dirs += d;
                    bytes += b;
                }
                WorkItem::Large { size, .. } => {
                    files += 1;
                    bytes += size;
                }
            }
        }
        prop_assert_eq!((end.files_total, end.dirs_total, end.total_bytes), (files, dirs, bytes));
        prop_assert_eq!(end.files_done + end.files_skipped + end.files_failed, files);
        prop_assert_eq!(end.dirs_done + end.dirs_failed, dirs);
        if end.state == SyncState::Completed {
            prop_assert_eq!(end.transferred_bytes, bytes);
            prop_assert_eq!(end.files_done, files);
        } else {
            // Only a task that failed or lost its lease too often may end it otherwise.
            prop_assert!(end.error_counts.values().sum::<u64>() > 0, "{:?}", end);
        }
        prop_assert!(play.world.state.tasks.is_empty());
        prop_assert!(play.world.blobs.is_empty());
    }
}
