//! Random histories: agents die, masters restart, results come twice, the store loses data, work is
//! handed back, fails in part, turns out to be done or lost, and agents send nonsense.

use super::*;
use crate::wire::entry_report::{EntryAction, FileRecord, FileState};
use crate::wire::options::{Compare, DeleteOptions, SyncOptions, Verify};
use crate::wire::task::{PruneReport, RootState};
use proptest::prelude::*;

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
    HandBack(usize),
    /// What is rare: entries that fail, a file that is there, a part file that is not.
    Odd(usize),
    Nonsense(usize),
    /// The disk is full.
    Full(usize),
    Pause,
    Resume,
    Drain(usize, bool),
    Forget(usize),
    Reassign(usize),
    Reconcile,
    /// Another agent comes up under the same id.
    Second(usize),
    /// A mount hangs.
    Stuck(usize),
    StoreLost,
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
        1 => (0..99usize).prop_map(Step::HandBack),
        2 => (0..99usize).prop_map(Step::Odd),
        1 => (0..99usize).prop_map(Step::Nonsense),
        1 => (0..99usize).prop_map(Step::Full),
        1 => any::<bool>().prop_map(|on| if on { Step::Pause } else { Step::Resume }),
        1 => (0..4usize, any::<bool>()).prop_map(|(index, on)| Step::Drain(index, on)),
        1 => (0..4usize).prop_map(Step::Forget),
        1 => (0..4usize).prop_map(Step::Reassign),
        1 => Just(Step::Reconcile),
        1 => (0..4usize).prop_map(Step::Second),
        1 => (0..4usize).prop_map(Step::Stuck),
        1 => (0..20usize).prop_map(|n| if n == 0 { Step::StoreLost } else { Step::Work(n) }),
    ]
}

/// Options by which other stages are passed through.
fn options() -> impl Strategy<Value = SyncOptions> {
    (any::<[bool; 5]>(), 0..4u8).prop_map(
        |([checksum, readback, delete, record, keeps_all], dry)| {
            let dry_run = dry == 0;
            SyncOptions {
                compare: if checksum { Compare::Checksum } else { Compare::SizeTime },
                verify: if readback && !dry_run { Verify::Readback } else { Verify::Transfer },
                delete: delete.then(DeleteOptions::default),
                preserve: crate::wire::preserve::Preserve::parse_names(if keeps_all {
                    ["all"]
                } else {
                    ["no-hardlinks"]
                })
                .unwrap(),
                record,
                dry_run,
                ..SyncOptions::default()
            }
        },
    )
}

/// What the destination has and the source does not: an entry a page of these.
const EXTRA: u64 = 3;

/// Four agents, of which any may die at any time, before a source of `pages` pages.
struct Play {
    world: World,
    pages: u64,
    incarnations: [u32; 4],
    held: Vec<(usize, Assignment, u64)>,
    sent: Vec<TaskResult>,
    /// Something was, or may have been, written since the last flush.
    dirty: bool,
    /// Names with a recorded outcome.
    recorded: Vec<String>,
    /// What came damaged, by results that counted.
    damaged: u64,
}

const NAMES: [&str; 4] = ["s1", "s2", "d1", "d2"];

impl Play {
    fn begin(pages: u64, options: SyncOptions) -> Play {
        let mut play = Play {
            world: World::new(),
            pages,
            incarnations: [0; 4],
            held: vec![],
            sent: vec![],
            dirty: false,
            recorded: vec![],
            damaged: 0,
        };
        let request = SyncRequest { options, ..request(Some("demo"), "/src/a", "/dst/b") };
        play.world.apply(Event::Submit { request, list: None, idempotency: None });
        play.heartbeat_all();
        play
    }

    fn heartbeat_all(&mut self) {
        for (index, name) in NAMES.iter().enumerate() {
            let path = if index < 2 { "/src" } else { "/dst" };
            let in_hand: Vec<AssignmentId> = self
                .held
                .iter()
                .filter(|(i, _, _)| *i == index)
                .map(|(_, a, _)| a.assignment_id)
                .collect();
            let lacked = self.lacks_storage();
            self.world.heartbeat(name, &self.incarnations[index].to_string(), &[path], &in_hand);
            self.note_restart(lacked);
        }
    }

    /// Whether a sync has started and no worker names one of its storages any more.
    fn lacks_storage(&self) -> bool {
        let mut begun =
            self.world.state.syncs.values().filter(|sync| sync.state == SyncState::Progress);
        begun.any(|sync| sync.source_storage.is_none() || sync.destination_storage.is_none())
    }

    /// A sync restarts as soon as a storage is named again that all workers had ceased to name.
    fn note_restart(&mut self, lacked: bool) {
        if lacked && !self.lacks_storage() {
            self.write_unreported(|_| true);
            self.recorded.clear();
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
            0 => vec![copy_item(n + 1, n % 2), copy_item(1, 1)],
            1 => vec![large_item(1 + n % 40), copy_item(2, 0), linked(n), linked(n + 3), linked(n)],
            _ => vec![],
        }
    }

    fn work(&mut self, at: usize) {
        if self.held.is_empty() {
            return;
        }
        let (index, assignment, number) = self.held.remove(at % self.held.len());
        let walk = match &assignment.task {
            TaskSpec::Scan { cursor, .. } => Some((cursor, None)),
            TaskSpec::Prune { cursor, apply, .. } => Some((cursor, Some(*apply))),
            _ => None,
        };
        if let Some((cursor, prune)) = walk {
            let from = cursor.as_ref().map_or(0, |c| {
                String::from_utf8(c.after.as_bytes().to_vec()).unwrap().parse::<u64>().unwrap()
            });
            let here = from + number;
            let pages = if prune.is_some() { EXTRA } else { self.pages };
            let next = (here + 1 < pages).then(|| at_page(here + 1, prune));
            let work = if prune.is_some() { vec![] } else { Self::content(here) };
            let root = RootState { file_system: "fs".into(), empty: false };
            let page = ScanPage {
                root: (here == 0).then_some(root),
                pruned: prune.map(|_| PruneReport { checked: 10, extraneous: 1, bytes: 10 }),
                ..page(&assignment, number, work, next)
            };
            let reply = self.world.post_page(&assignment, page);
            self.dirty |= prune == Some(true) && reply != PageAction::Stop;
            if reply == PageAction::Continue {
                self.held.push((index, assignment, number + 1));
            }
            return;
        }
        let mut report = all_done(&assignment, NAMES[2 + at % 2]);
        let dry = assignment.options.dry_run;
        if let TaskSpec::Copy { .. } = &assignment.task {
            report.needs_clean_up = assignment.task_id.0 % 2 == 0;
            report.records = vec![FileRecord {
                path: BytePath(assignment.task_id.to_string().into_bytes()),
                state: FileState::Done,
                action: None,
                bytes: 0,
                digest: None,
                error: None,
            }];
        }
        if dry {
            report.writers.clear();
        }
        report.integrity_errors = at as u64 % 3;
        let done = result(&assignment, true, report);
        self.sent.push(done.clone());
        if self.world.post_result(done) == Some(ResultOutcome::Applied) {
            self.damaged += at as u64 % 3;
            self.dirty = (self.dirty || writes(&assignment)) && assignment.task.kind() != "flush";
            if assignment.task.kind() == "copy" && assignment.options.record {
                self.recorded.push(assignment.task_id.to_string());
            }
        }
    }

    /// Holders of these tasks write and will never report.
    fn write_unreported(&mut self, is_affected: impl Fn(usize) -> bool) {
        let tasks = &self.world.state.tasks;
        self.dirty |= self.held.iter().any(|(i, a, _)| {
            is_affected(*i) && writes(a) && tasks.by_assignment(a.assignment_id).is_some()
        });
    }

    fn hand_back(&mut self, at: usize) {
        let (_, assignment, _) = self.held.remove(at % self.held.len());
        let report = TaskReport { returned: true, ..TaskReport::default() };
        let back = result(&assignment, false, report);
        self.sent.push(back.clone());
        self.world.post_result(back);
    }

    fn full(&mut self, at: usize) {
        let errno = if at.is_multiple_of(3) { "EMFILE" } else { "ENOSPC" };
        let at = at % self.held.len();
        let assignment = self.held[at].1.clone();
        let fault = vec![EntryError { errno: Some(errno.into()), ..error(ErrorClass::Transient) }];
        let report = TaskReport { failures: fault, ..TaskReport::default() };
        let (success, report) = match assignment.task {
            TaskSpec::Copy { files: 1, dirs: 0, bytes } => {
                let manifest = Base64Bytes(vec![1; 10]);
                let retry = WorkItem::Copy { manifest, files: 1, dirs: 0, bytes };
                (true, TaskReport { retry: Some(retry), ..report })
            }
            TaskSpec::Range { compare: false, .. } => (true, report),
            TaskSpec::Commit { .. } => (false, report),
            _ => return,
        };
        self.held.remove(at);
        let full = result(&assignment, success, report);
        self.sent.push(full.clone());
        self.world.post_result(full);
    }

    /// Nothing is handed out of a sync that is paused.
    fn pause(&mut self) {
        let reply = self.world.apply(Event::PauseSync("demo".parse().unwrap()));
        if matches!(reply, Some(Reply::Progress(p)) if p.state == SyncState::Paused) {
            assert!((0..4).all(|index| !self.poll(index)), "paused, and handed out");
        }
    }

    /// A drained worker gets only flushes.
    fn drain(&mut self, index: usize, on: bool) {
        let order = on.then(Default::default);
        let reply =
            self.world.apply(Event::DrainWorker { worker: NAMES[index].parse().unwrap(), order });
        if on && matches!(reply, Some(Reply::DrainUpdated(_))) && self.poll(index) {
            let (_, assignment, _) = self.held.last().unwrap();
            assert_eq!(assignment.task.kind(), "flush", "drained, and handed out");
        }
    }

    fn odd_request(&mut self, at: usize) {
        let at = at % self.held.len();
        let assignment = self.held[at].1.clone();
        let fault = |class| vec![error(class)];
        let report = match &assignment.task {
            TaskSpec::Copy { files, dirs, bytes } if *files > 0 => TaskReport {
                files_done: files - 1,
                dirs_done: *dirs,
                bytes_done: (files - 1) * 10,
                failures: fault(ErrorClass::Transient),
                retry: Some(WorkItem::Copy {
                    manifest: Base64Bytes(vec![1; 10]),
                    files: 1,
                    dirs: 0,
                    bytes: bytes - (files - 1) * 10,
                }),
                ..TaskReport::default()
            },
            TaskSpec::Range { compare: true, .. } if !at.is_multiple_of(3) => {
                TaskReport { differs: true, ..TaskReport::default() }
            }
            TaskSpec::Range { .. } => TaskReport { unchanged: true, ..TaskReport::default() },
            TaskSpec::Commit { .. } => TaskReport {
                part_lost: true,
                failures: fault(ErrorClass::Transient),
                ..TaskReport::default()
            },
            _ => return,
        };
        self.held.remove(at);
        let odd = result(&assignment, true, report);
        self.sent.push(odd.clone());
        self.world.post_result(odd);
    }

    /// Numbers that cannot be: refused, or as if the task had failed.
    fn invalid_request(&mut self, at: usize) {
        let at = at % self.held.len();
        let (_, assignment, number) = self.held[at].clone();
        let huge = || WorkItem::Copy {
            manifest: Base64Bytes(vec![]),
            files: u64::MAX,
            dirs: u64::MAX,
            bytes: u64::MAX,
        };
        let worker = assignment.worker_id.clone();
        if matches!(assignment.task.kind(), "scan" | "prune") {
            let page = page(&assignment, number, vec![huge()], None);
            let event = Event::Page { worker, assignment: assignment.assignment_id, page };
            let before = self.world.records.clone();
            self.world.apply(event);
            assert_eq!(self.world.records, before);
            return;
        }
        if !matches!(assignment.task, TaskSpec::Copy { .. } | TaskSpec::Range { .. }) {
            return;
        }
        self.held.remove(at);
        let report = TaskReport {
            files_done: u64::MAX,
            files_skipped: 2,
            dirs_done: u64::MAX,
            replacement: Some(huge()),
            retry: Some(huge()),
            ..TaskReport::default()
        };
        self.world.post_result(result(&assignment, true, report));
    }

    fn run_step(&mut self, step: Step) {
        match step {
            Step::HandBack(at) if !self.held.is_empty() => self.hand_back(at),
            Step::Odd(at) if !self.held.is_empty() => self.odd_request(at),
            Step::Nonsense(at) if !self.held.is_empty() => self.invalid_request(at),
            Step::Full(at) if !self.held.is_empty() => self.full(at),
            Step::Pause => self.pause(),
            Step::Drain(index, on) => self.drain(index, on),
            Step::Forget(index) => {
                self.write_unreported(|i| i == index);
                self.world.apply(Event::ForgetWorker(NAMES[index].parse().unwrap()));
            }
            Step::Reassign(index) => {
                self.write_unreported(|i| i == index);
                let worker = NAMES[index].parse().unwrap();
                self.world.apply(Event::ReassignTasks { id: "demo".parse().unwrap(), worker });
            }
            Step::Second(index) => {
                self.write_unreported(|i| i == index);
                let second = format!("second {}", self.world.caller_count);
                self.world.heartbeat(NAMES[index], &second, &["/src"], &[]);
            }
            Step::Stuck(index) => {
                self.write_unreported(|i| i == index);
                let path = if index < 2 { "/src" } else { "/dst" };
                let incarnation = self.incarnations[index].to_string();
                let beat = heartbeat(NAMES[index], Some(&incarnation), &[path], &[]);
                let unavailable_paths = vec![unavailable_path(path)];
                let lacked = self.lacks_storage();
                self.world.apply(Event::Heartbeat(WorkerHeartbeat { unavailable_paths, ..beat }));
                self.note_restart(lacked);
            }
            Step::Reconcile => {
                self.write_unreported(|_| true);
                let records = self.world.records.keys().cloned().collect();
                let blobs = self.world.blobs.keys().cloned().collect();
                let reply = self.world.apply(Event::Reconcile(StoredKeys { records, blobs }));
                let Some(Reply::Reconciled(done)) = reply else { panic!("{reply:?}") };
                let stray = done.dropped_records + done.dropped_blobs + done.restored_records;
                assert_eq!((stray, done.restarted_syncs.len()), (0, 0), "{done:?}");
            }
            Step::Resume => drop(self.world.apply(Event::ResumeSync("demo".parse().unwrap()))),
            Step::StoreLost => {
                self.write_unreported(|_| true);
                self.world.blobs.clear();
                // An ended sync does not restart.
                if self.world.state.syncs.values().any(|sync| sync.is_active()) {
                    self.recorded.clear();
                }
                self.world.apply(Event::StoreLost);
            }
            Step::Poll(index) => drop(self.poll(index)),
            Step::Work(at) => self.work(at),
            Step::Fail(at) if !self.held.is_empty() => {
                let (_, assignment, _) = self.held.remove(at % self.held.len());
                self.world.post_result(result(&assignment, false, TaskReport::default()));
            }
            Step::Replay(at) if !self.sent.is_empty() => {
                let before = self.world.records.clone();
                let old = self.sent[at % self.sent.len()].clone();
                assert_eq!(self.world.post_result(old), Some(ResultOutcome::Stale));
                assert_eq!(self.world.records, before, "an old result changed something");
            }
            Step::Crash(index) => {
                self.write_unreported(|i| i == index);
                self.held.retain(|(i, _, _)| *i != index);
                self.incarnations[index] += 1;
                self.heartbeat_all();
            }
            Step::Pass(ms) => self.world.advance(ms),
            Step::Restart => {
                // Written, and never decided.
                self.world.lists.values_mut().for_each(|list| list.extend(b"{\"path"));
                self.world.check_records(1);
                self.world.restart();
            }
            _ => {}
        }
    }

    /// No more faults from now on: the sync must end.
    fn run_to_end(&mut self) -> SyncProgress {
        if self.world.progress("demo").state == SyncState::Paused {
            self.run_step(Step::Resume);
        }
        self.work_until(20_000, |play| play.world.progress("demo").state.is_final());
        self.world.progress("demo")
    }

    /// All agents do what they are given, for `rounds` rounds at most; a round ends when no agent holds a task.
    fn work_until(&mut self, rounds: usize, is_end: impl Fn(&mut Play) -> bool) {
        (0..4).for_each(|index| self.drain(index, false));
        self.heartbeat_all();
        for _ in 0..rounds {
            if is_end(self) {
                return;
            }
            for index in 0..4 {
                self.poll(index);
            }
            if self.held.is_empty() {
                // Time passes only here, so no heartbeat is due in between.
                self.world.advance(5_000);
                self.heartbeat_all();
            }
            while !self.held.is_empty() {
                self.work(0);
            }
        }
        panic!("no end: {:?}", self.world.progress("demo"));
    }
}

fn writes(a: &Assignment) -> bool {
    let writes = match &a.task {
        TaskSpec::Range { compare, .. } => !compare,
        TaskSpec::Prune { apply, .. } => *apply,
        task => matches!(task.kind(), "copy" | "commit" | "clean_up"),
    };
    writes && !a.options.dry_run
}

fn at_page(n: u64, prune: Option<bool>) -> TaskSpec {
    let after = RelPath::new(n.to_string()).unwrap();
    let (dir, cursor) = (RelPath::root(), Some(Cursor { after, skip_contents: false }));
    match prune {
        Some(apply) => TaskSpec::Prune { dir, cursor, apply },
        None => TaskSpec::Scan { dir, cursor },
    }
}

/// A name of a large file that has others, also on other pages.
fn linked(n: u64) -> WorkItem {
    let group = Some(Digest([(n % 5) as u8; 32]));
    WorkItem::Large {
        manifest: Base64Bytes(vec![3; 10]),
        size: 3 << 20,
        range_length: 1 << 20,
        hardlink_group: group,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_entry_is_counted_once_in_random_histories(
        pages in 1u64..12,
        options in options(),
        steps in prop::collection::vec(step(), 0..250),
    ) {
        let mut play = Play::begin(pages, options.clone());
        for step in steps {
            play.run_step(step);
        }
        play.world.check_records(1);
        let end = play.run_to_end();
        play.world.check_records(1);
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
            prop_assert_eq!(end.transferred_bytes + end.bytes_skipped, bytes);
            prop_assert_eq!(end.files_done + end.files_skipped, files);
            prop_assert!(!play.dirty, "completed, and not all of it flushed");
            let deleted = end.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count);
            prop_assert_eq!(deleted, if options.delete.is_some() { EXTRA } else { 0 });
            let read_back = if options.verify == Verify::Readback { files } else { 0 };
            prop_assert_eq!(end.verified_files + end.repaired_files, read_back);
        } else {
            // Only a task that failed or lost its lease too often may end it otherwise.
            prop_assert!(end.error_counts.values().sum::<u64>() > 0, "{:?}", end);
        }
        let sync = play.world.state.syncs.values().next().unwrap();
        prop_assert!(!options.dry_run || (sync.possible_writers.is_empty() && sync.unflushed_writers.is_empty()));
        let list = play.world.lists.get(&sync.no).map_or(&[][..], Vec::as_slice);
        let lines = list[..sync.record_log.length as usize].split(|b| *b == b'\n');
        let done: Vec<String> = lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<FileRecord>(line).unwrap())
            .filter(|record| record.state == FileState::Done)
            .map(|record| record.path.to_string())
            .collect();
        prop_assert_eq!(done, play.recorded);
        prop_assert_eq!(end.integrity_errors, play.damaged);
        prop_assert!(play.world.state.tasks.is_empty());
        prop_assert!(play.world.blobs.is_empty());
    }

    #[test]
    fn a_cancelled_or_deleted_sync_leaves_nothing_in_random_histories(
        pages in 1u64..12,
        options in options(),
        delete in any::<bool>(),
        before in prop::collection::vec(step(), 0..120),
        after in prop::collection::vec(step(), 0..60),
    ) {
        let mut play = Play::begin(pages, options);
        before.into_iter().for_each(|step| play.run_step(step));
        let id = || "demo".parse().unwrap();
        play.world.apply(if delete { Event::DeleteSync(id()) } else { Event::CancelSync(id()) });
        after.into_iter().for_each(|step| play.run_step(step));
        play.world.check_records(1);
        // One that was deleted is kept until no worker from which a task was taken may write any more.
        let is_over = |state: &State| {
            state.tasks.is_empty() && state.syncs.values().all(|sync| sync.revoked_leases.is_none())
        };
        play.work_until(2_000, |play| is_over(&play.world.state));
        let state = &play.world.state;
        prop_assert!(state.tasks.is_empty() && play.world.blobs.is_empty());
        prop_assert!(state.syncs.values().all(|s| s.large_files.is_empty() && s.state.is_final()));
        let pairs = play.world.records.keys().filter(|key| key.starts_with("p/")).count();
        prop_assert_eq!(play.world.sync_records().len() - pairs, 2 - usize::from(delete));
        prop_assert!(!delete || play.world.lists.is_empty());
    }
}
