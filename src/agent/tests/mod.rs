//! Executors with real sockets and trees and no master.

mod fake_master;
mod fidelity;
mod late_replies;
mod mirror;
mod preflight;
mod relay;
mod unknown_peers;

use super::job::{AgentContext, Job, TaskOutcome, Writers};
use super::testing::{abs, assignment, itself, tree};
use super::{copy, publish, range};
use crate::data::{BufferPools, DataServer, Deadline, Peers, Roots, TicketVerifier};
use crate::fs::is_internal_name;
use crate::util::shutdown::Shutdown;
use crate::wire::content::merge_ranges;
use crate::wire::manifest::{EntryKind, Manifest};
use crate::wire::options::SyncOptions;
use crate::wire::outcome::ErrorClass;
use crate::wire::preserve::Preserve;
use crate::wire::task::{Assignment, Base64Bytes, PoolMember, TaskReport, TaskSpec, WorkItem};
use crate::wire::ticket::{Claims, DeleteGrant, PrunePermit, Signer, Verbs};
use crate::wire::worker::{Endpoint, WorkerStatus};
use crate::wire::{Digest, RelPath};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// The master's clock.
const NOW: i64 = 1_000_000;
const MIB: usize = 1 << 20;

/// A source, a destination, and agents that serve the destination.
struct AgentFleet {
    dir: TempDir,
    signer: Signer,
    members: Vec<PoolMember>,
    options: SyncOptions,
    /// What its tickets let be deleted.
    allowance: u64,
    /// The name of the destination.
    destination: &'static str,
    serving: Vec<(Shutdown, JoinHandle<()>)>,
}

impl AgentFleet {
    async fn new(receivers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let mut fleet = AgentFleet {
            dir,
            signer,
            members: Vec::new(),
            options: SyncOptions::default(),
            allowance: u64::MAX,
            destination: "dst",
            serving: Vec::new(),
        };
        fleet.add_destination("dst", receivers).await;
        fleet
    }

    /// Adds a destination, which is used from now on, with agents that serve it.
    async fn add_destination(&mut self, destination: &'static str, receivers: usize) {
        self.destination = destination;
        self.members.clear();
        fs::create_dir(self.dst()).unwrap();
        for n in 0..receivers {
            let any = Endpoint { iface: None, address: "127.0.0.1".into(), port: Some(0) };
            let server = DataServer::bind(&[any]).await.unwrap();
            let endpoints = server.endpoints.available();
            self.add_member(&format!("r{n}"), endpoints);
            let stop = Shutdown::new();
            let task = tokio::spawn(server.serve(
                self.gate(),
                self.roots(&[destination]),
                BufferPools::new(64 << 20).receiving,
                stop.clone(),
            ));
            self.serving.push((stop, task));
        }
    }

    fn add_member(&mut self, name: &str, data_plane_endpoints: Vec<Endpoint>) {
        self.members.push(PoolMember {
            worker_id: name.parse().unwrap(),
            status: WorkerStatus::Idle,
            storage_paths: vec![abs(&self.dst())],
            data_plane_endpoints,
        });
    }

    fn gate(&self) -> Arc<TicketVerifier> {
        let gate = TicketVerifier::new();
        gate.update(&[self.signer.public_key()], NOW).unwrap();
        Arc::new(gate)
    }

    fn roots(&self, names: &[&str]) -> Arc<Roots> {
        let paths: Vec<_> = names.iter().map(|n| abs(&self.dir.path().join(n))).collect();
        Arc::new(Roots::open(&paths).unwrap())
    }

    fn src(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    fn dst(&self) -> PathBuf {
        self.dir.path().join(self.destination)
    }

    /// Worker `a`, which holds `names`.
    fn context(&self, names: &[&str]) -> AgentContext {
        AgentContext {
            worker_id: "a".parse().unwrap(),
            lease_table: Arc::default(),
            endpoints: Arc::default(),
            requests: Arc::new(crate::data::ActiveRequests::new(1)),
            roots: self.roots(names),
            ticket_verifier: self.gate(),
            peers: Peers::new(&[], BufferPools::new(64 << 20).sending),
            direct_io: false,
            limits: Default::default(),
            corruption_counts: Default::default(),
        }
    }

    fn assignment(&self, task: TaskSpec) -> Assignment {
        let claims = Claims {
            sync: 7,
            request_id: "demo-1".into(),
            assignment: [1; 16],
            attempt: 1,
            worker: "a".into(),
            destination: self.dst().as_os_str().as_bytes().to_vec(),
            expires: NOW + 900,
            rules: self.options.write_rules(),
            prune: match task {
                TaskSpec::Prune { apply: true, .. } => Some(PrunePermit::Delete(DeleteGrant {
                    grant_id: 1,
                    max_entries: self.allowance,
                    incarnation: String::new(),
                })),
                TaskSpec::Prune { .. } => Some(PrunePermit::Count),
                _ => None,
            },
            roots: Default::default(),
            verbs: Verbs::ALL,
            receivers: Default::default(),
            run_as: None,
        };
        Assignment {
            options: self.options.clone(),
            source_path: abs(&self.src()),
            destination_path: abs(&self.dst()),
            destination_workers: self.members.iter().cloned().chain([itself()]).collect(),
            ticket: self.signer.sign(&claims).into(),
            ..assignment(task)
        }
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.src().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// All of the source, or just one file of it, with its directories.
    fn manifest(&self, only: Option<&str>) -> Manifest {
        let source = tree(&self.src()).preserving(Preserve::all());
        let mut walk = source.walk(&RelPath::root(), None).unwrap();
        let mut manifest = Manifest::default();
        while let Some(entry) = walk.next() {
            let entry = entry.unwrap();
            if only.is_none_or(|name| entry.path.as_bytes() == name.as_bytes()) {
                for dir in walk.dirs() {
                    if !manifest.dirs.contains(dir) {
                        manifest.dirs.push(dir.clone());
                    }
                }
                manifest.entries.push(entry);
            }
        }
        manifest
    }

    /// What of `src` is not in `dst`, or other there.
    fn differences(&self) -> Vec<String> {
        let (from, to) = (tree(&self.src()), tree(&self.dst()));
        let walk = from.walk(&RelPath::root(), None).unwrap();
        let mut wrong = Vec::new();
        for entry in walk {
            let entry = entry.unwrap();
            let name = entry.path.to_string();
            match to.entry(&entry.path) {
                Ok(there) if (&there.kind, there.meta) == (&entry.kind, entry.meta) => {}
                other => wrong.push(format!("{name}: {other:?}")),
            }
            let read = |root: PathBuf| fs::read(root.join(&name));
            if entry.size() > 0 && read(self.src()).unwrap() != read(self.dst()).unwrap_or_default()
            {
                wrong.push(format!("{name}: content"));
            }
        }
        wrong
    }

    async fn shut_down(self) {
        for (stop, task) in self.serving {
            stop.cancel();
            task.await.unwrap();
        }
    }
}

fn copy_task(manifest: &Manifest) -> TaskSpec {
    let dirs = manifest.dir_count();
    let files = manifest.entries.len() as u64 - dirs;
    TaskSpec::Copy { files, dirs, bytes: manifest.content_bytes() }
}

/// Executes a copy of `manifest` with worker `a`; its outcome and its writers.
async fn copy_entries(
    fleet: &AgentFleet,
    cx: &AgentContext,
    manifest: &Manifest,
) -> (TaskOutcome, Vec<String>) {
    execute_copy(cx, &fleet.assignment(copy_task(manifest)), manifest).await
}

async fn execute_copy(
    cx: &AgentContext,
    assignment: &Assignment,
    manifest: &Manifest,
) -> (TaskOutcome, Vec<String>) {
    let writers = Writers::default();
    let job = Job {
        cx,
        assignment,
        writers: &writers,
        deadline: &Deadline::default(),
        ticket: &(&*assignment.ticket).into(),
        byte_counter: &Arc::default(),
    };
    let outcome = copy::copy_batch(job, manifest.clone(), manifest.encode().into()).await;
    (
        outcome.unwrap_or_else(|failed| *failed),
        writers.worker_ids().iter().map(ToString::to_string).collect(),
    )
}

fn report_counts(r: &TaskReport) -> [u64; 6] {
    let failed = r.failures.len() as u64;
    [r.files_done, r.files_skipped, r.dirs_done, failed, r.bytes_done, r.bytes_skipped]
}

/// Three directories (with the root), three files, a link; 12 bytes and one MiB and a half.
fn write_sample_tree(fleet: &AgentFleet) {
    fleet.write("a", b"twelve bytes");
    fleet.write("d/big", &vec![5; 3 * MIB / 2]);
    fleet.write("d/e/empty", b"");
    std::os::unix::fs::symlink("../a", fleet.src().join("d/link")).unwrap();
}

#[tokio::test]
async fn a_batch_is_counted_exactly_and_skipped_the_second_time() {
    let fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    let bytes = 12 + 3 * MIB as u64 / 2;
    let cx = fleet.context(&["src"]);
    let (done, wrote) = copy_entries(&fleet, &cx, &manifest).await;
    assert!(done.success, "{done:?}");
    assert_eq!(report_counts(&done.report), [4, 0, 3, 0, bytes, 0]);
    assert_eq!((wrote, fleet.differences()), (vec!["r0".into()], vec![]));
    let (again, _) = copy_entries(&fleet, &cx, &manifest).await;
    assert_eq!(report_counts(&again.report), [0, 4, 3, 0, 0, bytes]);
    assert_eq!(again.report.retry, None);
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_worker_with_both_paths_copies_alone() {
    let fleet = AgentFleet::new(0).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    let (done, wrote) = copy_entries(&fleet, &fleet.context(&["src", "dst"]), &manifest).await;
    assert_eq!(report_counts(&done.report), [4, 0, 3, 0, 12 + 3 * MIB as u64 / 2, 0]);
    assert_eq!((wrote, fleet.differences()), (vec!["a".into()], vec![]));
}

#[tokio::test]
async fn a_worker_that_is_not_one_of_the_destination_does_not_write_below_its_own_path_of_that_name()
 {
    let fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    // Worker `a` has a storage path of the same name.
    let cx = fleet.context(&["src", "dst"]);
    let assignment = Assignment {
        destination_workers: fleet.members.clone(),
        ..fleet.assignment(copy_task(&manifest))
    };
    let (done, wrote) = execute_copy(&cx, &assignment, &manifest).await;
    assert_eq!((done.success, wrote), (true, vec!["r0".to_owned()]), "{done:?}");
    let alone = Assignment { destination_workers: vec![], ..assignment };
    let (done, wrote) = execute_copy(&cx, &alone, &manifest).await;
    assert!(!done.success && done.report.returned && wrote.is_empty(), "{done:?}");
    fleet.shut_down().await;
}

#[tokio::test]
async fn one_failed_entry_is_reported_and_retried_alone() {
    let fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    fs::remove_file(fleet.src().join("d/big")).unwrap();
    // A directory that is not empty stands where a file belongs.
    fs::create_dir_all(fleet.dst().join("a/full")).unwrap();
    let cx = fleet.context(&["src"]);
    let (done, _) = copy_entries(&fleet, &cx, &manifest).await;
    assert!(done.success);
    assert_eq!(report_counts(&done.report), [2, 0, 3, 2, 0, 0]);
    let seen: Vec<_> = done
        .report
        .failures
        .iter()
        .map(|e| {
            let by = e.worker_id.as_ref().unwrap().to_string();
            (e.path.to_string(), e.class, by, e.attempt)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("a".into(), ErrorClass::Permanent, "r0".into(), 1),
            ("d/big".into(), ErrorClass::Vanished, "a".into(), 1)
        ]
    );
    let Some(WorkItem::Copy { manifest: retry, files, dirs, bytes }) = done.report.retry else {
        panic!("no retry")
    };
    assert_eq!((files, dirs, bytes), (2, 0, 12 + 3 * MIB as u64 / 2));
    fs::remove_dir_all(fleet.dst().join("a")).unwrap();
    fleet.write("d/big", b"back");
    let retry = Manifest::decode(&retry.0).unwrap();
    let (done, _) = copy_entries(&fleet, &cx, &retry).await;
    assert_eq!(report_counts(&done.report), [2, 0, 0, 0, 16, 0]);
    fleet.shut_down().await;
}

#[tokio::test]
async fn an_unavailable_peer_is_skipped_and_the_task_fails_when_all_are_unavailable() {
    let mut fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let unused_address = closed.local_addr().unwrap().to_string().parse().unwrap();
    fleet.add_member("away", vec![unused_address]);
    fleet.members.reverse();
    let manifest = fleet.manifest(None);
    let cx = fleet.context(&["src"]);
    let (done, wrote) = copy_entries(&fleet, &cx, &manifest).await;
    assert!(done.success && done.report.files_done == 4, "{done:?}");
    // No flush by an unavailable worker is needed.
    assert_eq!(wrote, ["r0"]);
    fleet.members.truncate(1);
    let (done, _) = copy_entries(&fleet, &cx, &manifest).await;
    let message = done.message.unwrap();
    assert!(!done.success && message.contains("with worker away at 127.0.0.1:"), "{message}");
    assert!(!done.report.returned, "it was tried");
    assert_eq!(done.report.unreachable, ["away".parse().unwrap()]);
    assert_eq!(report_counts(&done.report), [0; 6]);
    let nobody =
        Assignment { destination_workers: vec![], ..fleet.assignment(copy_task(&manifest)) };
    let (done, _) = execute_copy(&cx, &nobody, &manifest).await;
    assert!(done.message.unwrap().contains("no worker that holds the destination"));
    assert!(!done.success && done.report.returned, "a master without destination workers");
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_path_outside_the_storage_paths_is_refused_with_a_message() {
    let fleet = AgentFleet::new(1).await;
    let manifest = fleet.manifest(None);
    let (done, wrote) = copy_entries(&fleet, &fleet.context(&["dst"]), &manifest).await;
    assert!(!done.success && done.message.unwrap().contains("no storage path that holds"));
    assert_eq!(wrote, Vec::<String>::new());
    fleet.shut_down().await;
}

/// Executes one range of `manifest` with worker `a`.
async fn transfer_ranges(
    fleet: &AgentFleet,
    cx: &AgentContext,
    manifest: &Manifest,
    at: (u64, u64),
) -> (TaskOutcome, Writers) {
    transfer_or_compare_ranges(fleet, cx, manifest, at, false).await
}

async fn transfer_or_compare_ranges(
    fleet: &AgentFleet,
    cx: &AgentContext,
    manifest: &Manifest,
    at: (u64, u64),
    compare: bool,
) -> (TaskOutcome, Writers) {
    let task = TaskSpec::Range { offset: at.0, length: at.1, compare };
    execute_range(cx, &fleet.assignment(task), manifest).await
}

async fn execute_range(
    cx: &AgentContext,
    assignment: &Assignment,
    manifest: &Manifest,
) -> (TaskOutcome, Writers) {
    let TaskSpec::Range { offset, length, compare } = assignment.task else {
        panic!("{:?}", assignment.task)
    };
    let writers = Writers::default();
    let job = Job {
        cx,
        assignment,
        writers: &writers,
        deadline: &Deadline::default(),
        ticket: &(&*assignment.ticket).into(),
        byte_counter: &Arc::default(),
    };
    let outcome = range::transfer_range(job, manifest.clone(), (offset, length), compare).await;
    (outcome.unwrap_or_else(|failed| *failed), writers)
}

/// Executes a commit (or discard, or flush) with a worker that holds the destination.
async fn run_destination_task(
    fleet: &AgentFleet,
    task: TaskSpec,
    manifest: Manifest,
) -> TaskOutcome {
    let cx = fleet.context(&[fleet.destination]);
    let assignment = fleet.assignment(task.clone());
    let writers = Writers::default();
    let job = Job {
        cx: &cx,
        assignment: &assignment,
        writers: &writers,
        deadline: &Deadline::default(),
        ticket: &(&*assignment.ticket).into(),
        byte_counter: &Arc::default(),
    };
    let outcome = match task {
        TaskSpec::Commit { range_length, chain, in_place } => {
            publish::commit_file(job, manifest, range_length, &chain.0, in_place).await
        }
        TaskSpec::Discard => publish::discard_parts(job, manifest).await,
        _ => publish::flush_destination(job).await,
    };
    outcome.unwrap_or_else(|failed| *failed)
}

#[tokio::test]
async fn ranges_by_two_receivers_become_one_file_with_its_ordinary_digest() {
    let mut fleet = AgentFleet::new(2).await;
    fleet.options.manifest = true;
    let content: Vec<u8> = (0..(5 * MIB + 77)).map(|i| (i / 7) as u8).collect();
    fleet.write("deep/down/big", &content);
    let manifest = fleet.manifest(Some("deep/down/big"));
    let cx = fleet.context(&["src"]);
    let (length, size) = (MIB as u64, content.len() as u64);
    let mut values = Vec::new();
    let mut wrote = BTreeSet::new();
    for offset in (0..size).step_by(MIB) {
        let at = (offset, length.min(size - offset));
        let (done, writers) = transfer_ranges(&fleet, &cx, &manifest, at).await;
        assert_eq!((done.success, done.report.bytes_done), (true, at.1));
        values.push(done.report.digest.unwrap());
        wrote.extend(writers.worker_ids().iter().map(ToString::to_string));
    }
    assert_eq!(wrote.into_iter().collect::<Vec<_>>(), ["r0", "r1"]);
    let chain = Base64Bytes(values.iter().flat_map(|v| v.0).collect());
    let commit = TaskSpec::Commit { range_length: length, chain, in_place: false };
    for _ in 0..2 {
        let done = run_destination_task(&fleet, commit.clone(), manifest.clone()).await;
        assert!(done.success && done.report.failures.is_empty(), "{done:?}");
        assert_eq!(done.report.digest, Some(blake3::hash(&content).into()));
    }
    assert_eq!(merge_ranges(&values), Some(blake3::hash(&content).into()));
    // Directories that no batch brought are there, with their metadata.
    let (from, to) = (tree(&fleet.src()), tree(&fleet.dst()));
    for path in ["deep", "deep/down", "deep/down/big"].map(|p| RelPath::new(p).unwrap()) {
        assert_eq!(from.entry(&path).unwrap().meta, to.entry(&path).unwrap().meta, "{path}");
    }
    let (again, _) = transfer_ranges(&fleet, &cx, &manifest, (0, length)).await;
    assert!(again.success && again.report.unchanged);
    assert!(run_destination_task(&fleet, TaskSpec::Flush, Manifest::default()).await.success);
    assert_eq!(fleet.differences(), Vec::<String>::new());
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_file_with_a_missing_range_is_not_published() {
    let fleet = AgentFleet::new(1).await;
    fleet.write("big", &vec![7; 2 * MIB]);
    let manifest = fleet.manifest(Some("big"));
    let length = MIB as u64;
    let cx = fleet.context(&["src"]);
    let (done, _) = transfer_ranges(&fleet, &cx, &manifest, (0, length)).await;
    let first = done.report.digest.unwrap();
    // As if the second range, which holds the same bytes, had come as well.
    let chain = Base64Bytes([first.0, first.0].concat());
    let commit = TaskSpec::Commit { range_length: length, chain, in_place: false };
    let done = run_destination_task(&fleet, commit, manifest.clone()).await;
    assert!(!done.success || !done.report.failures.is_empty(), "{done:?}");
    assert!(!fleet.dst().join("big").exists());
    fleet.shut_down().await;
}

#[tokio::test]
async fn a_source_that_changed_replaces_the_work_item_of_the_file() {
    let fleet = AgentFleet::new(1).await;
    fleet.write("f", &vec![1; 3 * MIB]);
    let manifest = fleet.manifest(Some("f"));
    let cx = fleet.context(&["src"]);
    fleet.write("f", &vec![2; 4 * MIB]);
    let (done, _) = transfer_ranges(&fleet, &cx, &manifest, (0, MIB as u64)).await;
    let Some(WorkItem::Large { size, manifest: now, .. }) = done.report.replacement else {
        panic!("{done:?}")
    };
    let now = Manifest::decode(&now.0).unwrap();
    assert_eq!((size, now.dirs), (4 * MIB as u64, manifest.dirs.clone()));
    assert_eq!(now.entries, fleet.manifest(Some("f")).entries);
    fleet.write("f", b"small");
    let (done, _) = transfer_ranges(&fleet, &cx, &manifest, (0, MIB as u64)).await;
    assert!(matches!(done.report.replacement, Some(WorkItem::Copy { files: 1, bytes: 5, .. })));
    fs::remove_file(fleet.src().join("f")).unwrap();
    let (done, _) = transfer_ranges(&fleet, &cx, &manifest, (0, MIB as u64)).await;
    assert_eq!(done.report.failures[0].class, ErrorClass::Vanished);
    assert_eq!(done.report.replacement, None);
    fs::create_dir(fleet.src().join("f")).unwrap();
    let (done, _) = transfer_ranges(&fleet, &cx, &manifest, (0, MIB as u64)).await;
    assert_eq!(done.report.failures[0].class, ErrorClass::Changed);
    fleet.shut_down().await;
}

#[tokio::test]
async fn temporary_files_of_an_abandoned_batch_are_removed() {
    let fleet = AgentFleet::new(1).await;
    write_sample_tree(&fleet);
    let manifest = fleet.manifest(None);
    let cx = fleet.context(&["dst"]);
    let ticket = fleet.assignment(TaskSpec::Discard).ticket;
    let (_, target) = cx.roots.authorize(&cx.ticket_verifier, &ticket).unwrap();
    for entry in manifest.entries.iter().filter(|e| matches!(e.kind, EntryKind::File { .. })) {
        // As if the agent had been killed at its second try.
        std::mem::forget(target.create(entry, 2).unwrap());
    }
    let left = || {
        let all = walkdir::WalkDir::new(fleet.dst()).into_iter().map(Result::unwrap);
        all.filter(|e| is_internal_name(e.file_name().as_bytes())).count()
    };
    assert_eq!(left(), 3);
    assert!(run_destination_task(&fleet, TaskSpec::Discard, manifest).await.success);
    assert_eq!(left(), 0);
    fleet.shut_down().await;
}

#[tokio::test]
async fn an_abandoned_part_file_is_removed() {
    let fleet = AgentFleet::new(1).await;
    fleet.write("f", &vec![1; 3 * MIB]);
    let manifest = fleet.manifest(Some("f"));
    let cx = fleet.context(&["src"]);
    transfer_ranges(&fleet, &cx, &manifest, (0, MIB as u64)).await;
    let names = || -> Vec<Vec<u8>> {
        let all = fs::read_dir(fleet.dst()).unwrap();
        all.map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect()
    };
    assert!(names().len() == 1 && is_internal_name(&names()[0]), "{:?}", names());
    for _ in 0..2 {
        assert!(run_destination_task(&fleet, TaskSpec::Discard, manifest.clone()).await.success);
        assert!(names().is_empty());
    }
    // Without its part file a commit fails, and says so of its file.
    let chain = Base64Bytes([Digest([0; 32]).0; 3].concat());
    let commit = TaskSpec::Commit { range_length: MIB as u64, chain, in_place: false };
    let done = run_destination_task(&fleet, commit, manifest).await;
    assert_eq!(done.report.failures[0].path.0, b"f");
    fleet.shut_down().await;
}
