//! The scheduler in a world of simulated agents, a store that is a map, and a clock that the test moves.

mod agents;
mod bandwidth_limits;
mod basic_cases;
mod blocked;
mod counts;
mod damaged_records;
mod deleter;
mod destinations;
mod direction;
mod dry_run;
mod duplicate_agents;
mod failure_list;
mod faults;
mod fidelity;
mod formats;
mod guide_agents;
mod histories;
mod leftover_files;
mod listings;
mod mirror;
mod overlap;
mod pause;
mod placement;
mod reconcile;
mod registry;
mod relays;
mod resource_shortage;
mod retention;
mod retry_sync;
mod shared_paths;
mod sim;
mod stalls_and_quarantine;
mod state_tables;
mod storage_binding;
mod storage_histories;
mod storage_paths;
mod storage_reports;
mod storage_table;
mod storage_world;
mod tickets;
mod tokens;
mod transfer_progress;
mod unreachable_destinations;
mod unverified;
mod worker_admin;
mod worker_losses;

use super::single_entries::SingleEntry;
use super::sync_job::SyncJob;
use super::task::Task;
use super::*;
use crate::wire::entry_report::{FileRecord, FileState};
use crate::wire::manifest::FileListPart;
use crate::wire::options::{DeleteOptions, SyncOptions};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::sync::{FailedStep, SyncOutcome, SyncProgress, SyncRequest, SyncState};
use crate::wire::task::{
    Assignment, Base64Bytes, Cursor, PageAction, PruneReport, ResultOutcome, RootIdentity,
    RootState, ScanPage, TaskReport, TaskResult, TaskSpec, WorkItem,
};
use crate::wire::ticket::{Claims, Verifier};
use crate::wire::worker::{PROTOCOL_VERSION, UnavailablePath, WorkerHeartbeat, WorkerStatus};
use crate::wire::{AbsPath, AssignmentId, BytePath, Digest, RelPath, TaskId};
use std::collections::{BTreeMap, BTreeSet};

struct World {
    state: State,
    records: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// The files of the lists, as a spool writes them.
    lists: BTreeMap<SyncNo, Vec<u8>>,
    replies: BTreeMap<Caller, Reply>,
    now: Now,
    caller_count: u64,
    seed_count: u8,
    /// The state in which each sync was after the event before.
    states_before: BTreeMap<SyncNo, SyncState>,
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
            lists: BTreeMap::new(),
            replies: BTreeMap::new(),
            now: START,
            caller_count: 0,
            seed_count: 0,
            states_before: BTreeMap::new(),
        }
    }

    /// Plays an event; its reply, unless it waits.
    fn apply(&mut self, event: Event) -> Option<Reply> {
        if let Event::Heartbeat(heartbeat) = &event {
            self.declare_shared(heartbeat);
        }
        self.caller_count += 1;
        let caller = Caller(self.caller_count);
        let effects = self.state.apply(event, Some(caller), self.now);
        let mut reads = vec![];
        for effect in effects {
            match effect {
                Effect::ReadEntries { task, key } => reads.push((task, key)),
                Effect::WriteRecord(key) => match self.state.record(&key) {
                    Some(value) => drop(self.records.insert(key, value)),
                    None => drop(self.records.remove(&key)),
                },
                Effect::PutBlob(key, value) => drop(self.blobs.insert(key, value)),
                Effect::DeleteBlob(key) => drop(self.blobs.remove(&key)),
                Effect::AppendFileRecords { sync, at, bytes } => {
                    let list = self.lists.entry(sync).or_default();
                    assert!(at as usize <= list.len(), "a gap in a list");
                    list.truncate(at as usize);
                    list.extend(bytes);
                }
                Effect::DeleteFileRecords(sync) => drop(self.lists.remove(&sync)),
                Effect::Reply(to, reply) => {
                    assert!(self.replies.insert(to, reply).is_none(), "answered twice");
                }
            }
        }
        self.check_invariants();
        self.check_state_edges();
        for (task, key) in reads {
            let entries = self.entries(task, &key);
            self.apply(Event::ManifestEntries { task, entries });
        }
        self.replies.remove(&caller)
    }

    /// What the owner reads of a manifest; of one that is none as many entries as its task has.
    fn entries(&self, task: TaskId, key: &str) -> Vec<SingleEntry> {
        let Some(blob) = self.blobs.get(key) else { return vec![] };
        let entries = super::single_entries(blob);
        let Some(TaskSpec::Copy { files, dirs, bytes }) =
            self.state.tasks.get(task).map(|t| &t.spec)
        else {
            return entries;
        };
        if !entries.is_empty() {
            return entries;
        }
        let (files, dirs, bytes) = (*files, *dirs, *bytes);
        let each = bytes / files.max(1);
        let remainder = bytes - each * files;
        let single = |n: u64| {
            let (files, dirs) = (u64::from(n < files), u64::from(n >= files));
            let rest = if n == 0 { remainder } else { 0 };
            let bytes = each * files + rest;
            let item = WorkItem::Copy { manifest: Base64Bytes(vec![1; 10]), files, dirs, bytes };
            SingleEntry { path: BytePath(format!("e{n}").into_bytes()), item }
        };
        (0..files + dirs).map(single).collect()
    }

    /// Each sync is where it was, or went along an edge of the picture at [`sync_no::SyncJob`].
    fn check_state_edges(&mut self) {
        use SyncState::{Cancelled, Completed, Failed, Progress, Queued};
        let before = std::mem::take(&mut self.states_before);
        for sync in self.state.syncs.values() {
            let is_edge = match (before.get(&sync.no), sync.state) {
                (Some(before), now) if *before == now => true,
                // A waiting poll may start it at once. A world may start with records.
                (None, now) => matches!(now, Queued | Progress) || self.caller_count == 1,
                // The state of a group is that of its destinations until all of them ended.
                (Some(Queued), now) if sync.is_group() => now.is_final(),
                (Some(Queued), now) => matches!(now, Progress | Cancelled),
                (Some(Progress), now) => matches!(now, Completed | Failed | Cancelled),
                (Some(_), _) => false,
            };
            assert!(is_edge, "{:?} became {:?}", before.get(&sync.no), sync.state);
            assert_eq!(sync.is_active(), !sync.state.is_final(), "{sync:?}");
            assert_eq!(sync.state.is_final(), sync.ended_ms.is_some(), "{sync:?}");
            self.states_before.insert(sync.no, sync.state);
        }
    }

    /// What must hold after every event.
    fn check_invariants(&self) {
        self.check_indexes();
        let keys: BTreeSet<String> = self.state.record_keys().into_iter().collect();
        let stored: BTreeSet<String> = self.records.keys().cloned().collect();
        if !stored.is_empty() {
            assert_eq!(keys, stored, "the store holds just the records that there are");
        }
        self.check_records(1 + self.records.len() / 8);
        for task in self.state.tasks.values() {
            let sync = &self.state.syncs[&task.sync];
            assert!(self.state.tasks.of_sync(sync.no).any(|known| known.id == task.id));
            assert!(
                task.manifest_key.iter().all(|b| self.blobs.contains_key(b)),
                "{task:?} has no blob"
            );
            if let Some(lease) = task.lease() {
                let leased = self.state.tasks.by_assignment(lease.assignment);
                assert_eq!(leased.map(|leased| leased.id), Some(task.id));
            }
        }
        let leased = self.state.tasks.values().filter(|t| t.lease().is_some()).count();
        assert_eq!(leased, self.state.tasks.lease_count());
        let workers = self.state.tasks.values().filter_map(|t| Some((t.lease()?, t.id)));
        for (lease, id) in workers {
            assert!(self.state.tasks.held_by(&lease.worker).any(|held| held.id == id));
        }
        self.check_overlaps();
        for sync in self.state.syncs.values() {
            let mut tasks = self.state.tasks.of_sync(sync.no);
            assert!(!sync.is_group() || tasks.all(Task::is_scan), "a group has scans only");
            let c = &sync.counters;
            assert!(c.files_done + c.files_skipped + c.files_failed <= c.files_total, "{c:?}");
            assert!(c.dirs_done + c.dirs_failed <= c.dirs_total, "{c:?}");
            let steps: u64 = c.failed_steps.values().sum();
            let errors: u64 = sync.error_counts.values().sum();
            assert_eq!(errors, c.files_failed + c.dirs_failed + steps, "each failure counts once");
            let pages = sync.failure_pages();
            let stored =
                pages.keys.iter().map(|key| self.blobs.get(key).expect("a page of failures"));
            let lines = stored.flat_map(|page| decode_failures(page).unwrap());
            let entries: u64 = lines.map(|line| line.batch.map_or(1, |batch| batch.entries)).sum();
            assert!(
                sync.failure_blob_keys().all(|key| self.blobs.contains_key(&key)),
                "all of it is kept"
            );
            assert_eq!(entries, pages.listed, "the stored pages list what is counted as listed");
            assert_eq!(
                pages.listed + sync.failure_list.unlisted_count,
                errors,
                "each failure is listed, or counted"
            );
            assert!(sync.large_files.values().all(|l| self.blobs.contains_key(&l.manifest_key)));
            assert!(
                sync.is_active() || sync.hardlink_groups.is_empty(),
                "an ended sync has no groups"
            );
            let written = self.lists.get(&sync.no).map_or(0, Vec::len) as u64;
            assert!(sync.record_log.length <= written, "lines are counted that were not written");
        }
    }

    /// Each record is stored as it is: one in `every` of them, others after each event. To write all of them after
    /// each event takes most of the time of a long history.
    fn check_records(&self, every: usize) {
        let first = self.caller_count as usize % every;
        for (key, value) in self.records.iter().skip(first).step_by(every) {
            assert_eq!(self.state.record(key).as_ref(), Some(value), "{key} is stored as it is");
        }
    }

    /// Of two syncs that conflict only one has started; a waiting one waits for an earlier one.
    fn check_overlaps(&self) {
        let begun = || self.state.syncs.values().filter(|s| s.state == SyncState::Progress);
        for later in begun() {
            assert!(
                !self.state.is_waiting_for_overlap(later.no),
                "{} has begun and waits",
                later.id
            );
            for earlier in begun().filter(|earlier| earlier.no < later.no) {
                let conflict = self.state.find_conflict(earlier, later);
                assert!(conflict.is_none(), "{} and {}: {conflict:?}", earlier.id, later.id);
            }
        }
    }

    fn restart(&mut self) {
        self.seed_count += 1;
        let storages = self.state.settings.storages.clone();
        let settings = Settings { storages, ..Settings::default() };
        let seed = [self.seed_count; 32];
        self.state = State::load(settings, seed, &self.records, self.now).unwrap();
        self.replies.clear();
        self.apply(Event::Tick);
    }

    fn advance(&mut self, ms: u64) {
        // In steps, as the owner does: one great leap would mean that the master slept.
        for step in std::iter::repeat_n(5_000, (ms / 5_000) as usize).chain([ms % 5_000]) {
            self.now.mono_ms += step;
            self.now.wall_ms += step as i64;
            self.apply(Event::Tick);
        }
    }

    /// Many days pass at once.
    fn skip_days(&mut self, days: u64) {
        self.now.mono_ms += days * 24 * 3_600_000;
        self.now.wall_ms += days as i64 * 24 * 3_600_000;
    }

    fn submit(&mut self, id: &str, source: &str, destination: &str) {
        let reply = self.apply(Event::Submit {
            request: request(Some(id), source, destination),
            list: None,
            idempotency: None,
        });
        assert!(matches!(reply, Some(Reply::Submitted(_))), "{reply:?}");
    }

    fn heartbeat(
        &mut self,
        worker: &str,
        incarnation: &str,
        paths: &[&str],
        in_hand: &[AssignmentId],
    ) {
        let beat = heartbeat(worker, Some(incarnation), paths, in_hand);
        assert!(matches!(self.apply(Event::Heartbeat(beat)), Some(Reply::Heartbeat(_))));
    }

    fn poll(&mut self, worker: &str, incarnation: &str) -> Option<Assignment> {
        let reply = self.apply(Event::Poll {
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

    fn post_page(&mut self, a: &Assignment, page: ScanPage) -> PageAction {
        let event = Event::Page { worker: a.worker_id.clone(), assignment: a.assignment_id, page };
        match self.apply(event) {
            Some(Reply::Page(reply)) => reply.action,
            other => panic!("{other:?}"),
        }
    }

    fn post_result(&mut self, result: TaskResult) -> Option<ResultOutcome> {
        match self.apply(Event::Result(result)) {
            Some(Reply::Result(reply)) => reply.outcome,
            other => panic!("{other:?}"),
        }
    }

    fn progress(&mut self, id: &str) -> SyncProgress {
        match self.apply(Event::GetProgress(id.parse().unwrap())) {
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
        source_workers: Vec::new(),
        destination_workers: Vec::new(),
        chunk_size_mb: 1,
        file_list: None,
        options: Default::default(),
        bwlimit: None,
        run_as: None,
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
        assignments: in_hand.to_vec(),
        moved_bytes: Default::default(),
        incoming_requests: 0,
        slots: Some(4),
        agent_version: None,
        protocol: incarnation.map(|_| PROTOCOL_VERSION),
        usage: BTreeMap::new(),
        nics: Vec::new(),
        unavailable_paths: Vec::new(),
        unavailable_endpoints: Vec::new(),
        root_ids: Default::default(),
        storages: Vec::new(),
        storage_checks: Vec::new(),
        labels: Default::default(),
        tickets: Vec::new(),
        ended_seen: None,
    }
}

/// A storage path that is reported as not served.
fn unavailable_path(path: &str) -> UnavailablePath {
    UnavailablePath { path: AbsPath::new(path).unwrap(), reason: "it does not answer".to_owned() }
}

fn result(a: &Assignment, success: bool, report: TaskReport) -> TaskResult {
    TaskResult {
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
            writers: wrote,
            ..TaskReport::default()
        },
        TaskSpec::Range { .. } => {
            TaskReport { digest: Some(Digest([7; 32])), writers: wrote, ..TaskReport::default() }
        }
        TaskSpec::Commit { .. } => TaskReport { writers: wrote, ..TaskReport::default() },
        _ => TaskReport::default(),
    }
}

fn copy_item(files: u64, dirs: u64) -> WorkItem {
    WorkItem::Copy { manifest: Base64Bytes(vec![1; 10]), files, dirs, bytes: files * 10 }
}

fn large_item(ranges: u64) -> WorkItem {
    let size = (ranges << 20) - 5;
    WorkItem::Large {
        manifest: Base64Bytes(vec![2; 10]),
        size,
        range_length: 1 << 20,
        hardlink_group: None,
    }
}

/// A large file with a real manifest.
fn large_with_manifest(path: &str) -> WorkItem {
    use crate::wire::manifest::{Entry, EntryKind, FileVersion, Manifest, Meta};
    let meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let path = RelPath::new(path).unwrap();
    let entry = Entry::new(path, EntryKind::File { size: 3 << 20 }, meta, FileVersion::default());
    let manifest = Manifest { dirs: vec![], entries: vec![entry] }.encode();
    WorkItem::Large {
        manifest: Base64Bytes(manifest),
        size: 3 << 20,
        range_length: 1 << 20,
        hardlink_group: None,
    }
}

fn page(a: &Assignment, number: u64, work: Vec<WorkItem>, next: Option<TaskSpec>) -> ScanPage {
    let task_digest = a.task_digest;
    ScanPage {
        task_digest,
        page: number,
        work,
        subtrees: vec![],
        errors: vec![],
        unlisted_dirs: 0,
        root: None,
        root_identity: (number == 0).then_some(RootIdentity { device: 1, inode: 2 }),
        pruned: None,
        allowance_used_up: false,
        warnings: Default::default(),
        records: vec![],
        integrity_errors: 0,
        next,
    }
}

fn scan_at(place: &str) -> Option<TaskSpec> {
    let cursor = Cursor { after: RelPath::new(place).unwrap(), skip_contents: false };
    Some(TaskSpec::Scan { dir: RelPath::root(), cursor: Some(cursor) })
}

fn error(class: ErrorClass) -> EntryError {
    EntryError {
        errno: Some("EACCES".to_owned()),
        class,
        ..EntryError::new(b"x", Side::Source, "open", "permission denied")
    }
}

/// A world with a source worker `s`, a destination worker `d` and the sync `demo`; `s` holds
/// its scan.
fn scanning() -> (World, Assignment) {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    world.submit("demo", "/src/a", "/dst/b");
    let scan = world.poll("s", "1").expect("the scan");
    assert!(matches!(scan.task, TaskSpec::Scan { .. }));
    (world, scan)
}

fn submit_with(world: &mut World, id: &str, options: SyncOptions) {
    let request = SyncRequest { options, ..request(Some(id), "/src/a", "/dst/b") };
    let event = Event::Submit { request, list: None, idempotency: None };
    assert!(matches!(world.apply(event), Some(Reply::Submitted(_))));
}

fn scanning_with(options: SyncOptions) -> (World, Assignment) {
    let mut world = World::new();
    world.heartbeat("s", "1", &["/src"], &[]);
    world.heartbeat("d", "1", &["/dst"], &[]);
    submit_with(&mut world, "demo", options);
    let scan = world.poll("s", "1").expect("the scan");
    (world, scan)
}

fn mirror(delete: DeleteOptions) -> SyncOptions {
    SyncOptions { delete: Some(delete), ..SyncOptions::default() }
}

fn poll_kind(world: &mut World, worker: &str, kind: &str) -> Assignment {
    let task = world.poll(worker, "1").unwrap_or_else(|| {
        panic!("no {kind}: {:?}", world.progress("demo"));
    });
    assert_eq!(task.task.kind(), kind);
    task
}

fn complete_kind(world: &mut World, worker: &str, kind: &str) -> Assignment {
    let task = poll_kind(world, worker, kind);
    world.post_result(result(&task, true, all_done(&task, "d")));
    task
}

/// A waiting poll; returns its caller.
fn start_poll(world: &mut World, worker: &str, wait_ms: u64) -> Caller {
    let answer = world.apply(Event::Poll {
        worker: worker.parse().unwrap(),
        incarnation: Some("1".to_owned()),
        poll_id: None,
        wait_ms,
    });
    assert_eq!(answer, None);
    Caller(world.caller_count)
}

/// The sync `demo` has ended as it should.
fn assert_completed(world: &mut World, files: u64, retries: u64) {
    let end = world.progress("demo");
    assert_eq!((end.state, end.files_done, end.retries), (SyncState::Completed, files, retries));
}

fn claims(world: &World, a: &Assignment) -> Claims {
    let verifier = Verifier::new(&world.state.ticket_keys()).unwrap();
    verifier.verify(&a.ticket, world.now.wall_ms / 1000).unwrap()
}

fn first_page(a: &Assignment, file_system: &str, empty: bool, work: Vec<WorkItem>) -> ScanPage {
    let root = RootState { file_system: file_system.into(), empty };
    ScanPage { root: Some(root), ..page(a, 0, work, None) }
}

fn prune_page(a: &Assignment, seen: u64, extra: u64) -> ScanPage {
    let pruned = PruneReport { checked: seen, extraneous: extra, bytes: extra.saturating_mul(10) };
    ScanPage { pruned: Some(pruned), ..page(a, 0, vec![], None) }
}

fn large_in_group(ranges: u64, name: u8) -> WorkItem {
    let WorkItem::Large { manifest, size, range_length, .. } = large_item(ranges) else { panic!() };
    WorkItem::Large { manifest, size, range_length, hardlink_group: Some(Digest([name; 32])) }
}

fn record(path: &str, state: FileState) -> FileRecord {
    let path = BytePath(path.as_bytes().to_vec());
    FileRecord { path, state, action: None, bytes: 1, digest: None, error: None }
}

fn listed(world: &mut World) -> Vec<String> {
    let sync = world.state.syncs.values().next().unwrap();
    let text = world.lists.get(&sync.no).map(|l| &l[..sync.record_log.length as usize]);
    let lines = text.unwrap_or_default().split(|b| *b == b'\n').filter(|l| !l.is_empty());
    lines
        .map(|l| serde_json::from_slice::<FileRecord>(l).unwrap())
        .map(|r| format!("{} {:?}", r.path, r.state))
        .collect()
}
