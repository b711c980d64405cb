//! How the agent identifies its storage paths, and carries out the checks by which the master compares them.

use super::*;
use crate::config::StoragePath;
use crate::fs::{ProbeJournal, ProbeRecord};
use crate::wire::AbsPath;
use crate::wire::storage::{ProbeName, ProbeSecret, StorageCheckReport, StorageDeclaration};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;

async fn with_config(change: impl FnOnce(&Path, AgentConfig) -> AgentConfig) -> FakeMasterRun {
    FakeMasterRun::with_config(&["src", "dst"], FakeMasterScript::default(), change).await
}

fn secret(n: u8) -> ProbeSecret {
    ProbeSecret::new([n; 16])
}

fn probe(n: u8) -> ProbeName {
    secret(n).name()
}

fn check(path: &Path) -> StorageCheck {
    StorageCheck { path: abs(path), make: None, look_for: Vec::new(), sample: false }
}

fn make(path: &Path, n: u8) -> StorageCheck {
    StorageCheck { make: Some(secret(n)), ..check(path) }
}

/// The place of a probe file below `dir`.
fn file(dir: &Path, n: u8) -> PathBuf {
    dir.join(probe(n).as_str())
}

fn ask(master: &FakeMaster, checks: Vec<StorageCheck>) {
    master.update_script(|script| script.storage_checks = checks);
}

/// The report of `path` in a later heartbeat of which `fits` is true.
async fn report_of(
    master: &FakeMaster,
    path: &Path,
    fits: impl Fn(&StorageCheckReport) -> bool,
) -> StorageCheckReport {
    let path = abs(path);
    let found =
        |h: &WorkerHeartbeat| h.storage_checks.iter().find(|r| r.path == path && fits(r)).cloned();
    found(&next_heartbeat(master, "a report", |h| found(h).is_some()).await).unwrap()
}

/// Waits for a heartbeat that arrives when `path` is gone.
async fn wait_gone(master: &FakeMaster, path: &Path) {
    next_heartbeat(master, "the file is removed", |_| !path.exists()).await;
}

fn dirs(play: &FakeMasterRun) -> [PathBuf; 2] {
    ["src", "dst"].map(|name| play.master.dir.path().join(name))
}

#[tokio::test]
async fn each_path_is_identified_from_the_first_heartbeat_on_by_its_name() {
    let play = with_config(|dir, config| {
        let declared = |name: &str, declared| StoragePath {
            name: AbsPath::new(name).unwrap(),
            local_path: abs(&dir.join(&name[1..])),
            declared: Some(declared),
        };
        let storage_paths = vec![
            declared("/src", StorageDeclaration::Local),
            declared("/dst", StorageDeclaration::Storage("lustre-1".parse().unwrap())),
        ];
        let labels = [("rack".to_owned(), "3".to_owned())].into();
        AgentConfig { storage_paths, labels, ..config }
    })
    .await;
    let master = &play.master;
    let first = master.wait_until("a heartbeat", |s| s.heartbeats.first().cloned()).await;
    assert_eq!(first.labels.get("rack").map(String::as_str), Some("3"));
    let names: Vec<_> = first.storage_paths.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["/src", "/dst"]);
    assert!(first.root_ids.keys().chain(first.free_bytes.keys()).all(|name| names.contains(name)));
    for (report, local) in first.storages.iter().zip(dirs(&play)) {
        let meta = fs::metadata(&local).unwrap();
        assert_eq!(report.local_path, Some(abs(&local)));
        assert_eq!((report.fingerprint.inode, report.fingerprint.read_only), (meta.ino(), false));
    }
    let declared: Vec<_> = first.storages.iter().map(|r| r.declared.clone().unwrap()).collect();
    let lustre = StorageDeclaration::Storage("lustre-1".parse().unwrap());
    assert_eq!(declared, [StorageDeclaration::Local, lustre]);

    // Requests speak of the names.
    let entry = crate::agent::testing::tree(&dirs(&play)[0]);
    let entry = entry.entry(&crate::wire::RelPath::new("f").unwrap()).unwrap();
    let manifest = Manifest { dirs: vec![], entries: vec![entry] };
    let mut assignment = master.assignment(9, TaskSpec::Copy { files: 1, dirs: 0, bytes: 7 });
    assignment.source_path = AbsPath::new("/src").unwrap();
    assignment.destination_path = AbsPath::new("/dst").unwrap();
    let mut claims = Claims {
        sync: 7,
        request_id: "demo-1".into(),
        assignment: [9; 16],
        attempt: 3,
        worker: "a".into(),
        destination: b"/dst".to_vec(),
        expires: NOW + 900,
        rules: Default::default(),
        prune: None,
        roots: Default::default(),
        verbs: Verbs::ALL,
        receivers: Default::default(),
        run_as: None,
    };
    claims.allow_receiver(&assignment.worker_id);
    assignment.ticket = master.signer.sign(&claims).into();
    master.update_script(|script| {
        script.manifest = manifest.encode();
        script.queue.push_back(assignment);
    });
    let done = master.wait_until("the result", nth_result(0)).await;
    assert!(done.success, "{done:?}");
    assert_eq!(fs::read(dirs(&play)[1].join("f")).unwrap(), b"content");
    play.shut_down().await;
}

#[tokio::test]
async fn a_probe_is_made_reported_and_removed_when_it_is_no_longer_named() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let (master, [_, dst]) = (&play.master, dirs(&play));
    ask(master, vec![make(&dst, 1)]);
    let report = report_of(master, &dst, |r| r.made.is_some()).await;
    assert_eq!((report.made, report.error), (Some(probe(1)), None));
    let made = fs::metadata(file(&dst, 1)).unwrap();
    assert_eq!((made.mode() & 0o777, made.len()), (0o600, 32));

    // Another name takes its place.
    ask(master, vec![make(&dst, 2)]);
    report_of(master, &dst, |r| r.made == Some(probe(2))).await;
    assert!(!file(&dst, 1).exists() && file(&dst, 2).exists());

    // A probe that somebody removed is made again.
    fs::remove_file(file(&dst, 2)).unwrap();
    next_heartbeat(master, "it is there again", |_| file(&dst, 2).exists()).await;

    ask(master, vec![]);
    wait_gone(master, &file(&dst, 2)).await;
    next_heartbeat(master, "no report", |h| h.storage_checks.is_empty()).await;
    play.shut_down().await;
}

#[tokio::test]
async fn probes_of_others_are_found_missing_or_something_else() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let (master, [src, dst]) = (&play.master, dirs(&play));
    fs::write(file(&dst, 1), secret(1).as_str()).unwrap();
    let look = |names: Vec<ProbeName>| StorageCheck { look_for: names, ..check(&dst) };
    // The other path is asked for nothing, and a path that this agent does not have is ignored.
    ask(master, vec![look(vec![probe(1), probe(2)]), make(&src.join("below"), 3)]);
    let report = report_of(master, &dst, |r| !r.found.is_empty()).await;
    assert_eq!((&report.found, &report.missing), (&vec![probe(1)], &vec![probe(2)]));
    assert_eq!((report.error, report.made, report.sample), (None, None, None));
    assert!(file(&dst, 1).exists(), "it belongs to another agent");
    let last = next_heartbeat(master, "reports", |h| !h.storage_checks.is_empty()).await;
    assert_eq!(last.storage_checks.len(), 1);

    fs::write(file(&dst, 2), "other").unwrap();
    let report = report_of(master, &dst, |r| r.error.is_some()).await;
    assert_eq!((report.found, report.missing), (vec![probe(1)], vec![]));
    let error = report.error.unwrap();
    assert!(error.contains(probe(2).as_str()) && error.contains("something else"), "{error}");

    // This agent makes a probe only where nothing has its name.
    ask(master, vec![make(&dst, 1)]);
    let is_refused = |r: &StorageCheckReport| {
        r.error.as_ref().is_some_and(|error| error.contains("did not make it"))
    };
    assert_eq!(report_of(master, &dst, is_refused).await.made, None);
    ask(master, vec![]);
    next_heartbeat(master, "no report", |h| h.storage_checks.is_empty()).await;
    play.shut_down().await;
    assert!(file(&dst, 1).exists());
}

#[tokio::test]
async fn a_sample_is_reported_where_there_are_entries() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let (master, [src, dst]) = (&play.master, dirs(&play));
    let sample = |path: &Path| StorageCheck { sample: true, ..check(path) };
    ask(master, vec![sample(&src), sample(&dst)]);
    let report = report_of(master, &src, |r| r.sample.is_some()).await;
    assert_eq!(report.sample.unwrap().len(), 64);
    let empty = report_of(master, &dst, |_| true).await;
    assert_eq!((empty.sample, empty.error), (None, None));
    play.shut_down().await;
}

#[tokio::test]
async fn an_agent_that_stops_removes_its_probes() {
    let play = FakeMasterRun::new(FakeMasterScript::default()).await;
    let (master, [src, dst]) = (play.master.clone(), dirs(&play));
    ask(&master, vec![make(&src, 1), make(&dst, 2)]);
    report_of(&master, &src, |r| r.made.is_some()).await;
    report_of(&master, &dst, |r| r.made.is_some()).await;
    // Replies still name them, also the reply to the last heartbeat.
    play.shut_down().await;
    assert!(!file(&src, 1).exists() && !file(&dst, 2).exists());
    let last = master.lock_script().heartbeats.last().cloned().unwrap();
    assert_eq!((last.status, last.storage_checks), (WorkerStatus::Stopped, vec![]));
}

#[tokio::test]
async fn the_next_start_removes_what_an_agent_left_that_was_killed_and_nothing_else() {
    let play = with_config(|dir, config| {
        let [src, dst] = ["src", "dst"].map(|name| dir.join(name));
        let journal = ProbeJournal::open(&dir.join("state/probes-a.json")).unwrap();
        let record = |path: &Path, inode, n| ProbeRecord { path: abs(path), inode, name: probe(n) };
        let inode = fs::metadata(&src).unwrap().ino();
        journal.add(&record(&src, inode, 1));
        // Another directory was mounted there at that time.
        journal.add(&record(&dst, inode, 2));
        journal.add(&record(&dir.join("elsewhere"), 1, 3));
        for path in [file(&src, 1), file(&src, 4), file(&dst, 2)] {
            fs::write(path, "left").unwrap();
        }
        AgentConfig { data_dir: Some(dir.join("state")), ..config }
    })
    .await;
    let (master, [src, dst]) = (&play.master, dirs(&play));
    wait_gone(master, &file(&src, 1)).await;
    assert!(file(&src, 4).exists() && file(&dst, 2).exists());
    let journal = master.dir.path().join("state/probes-a.json");
    next_heartbeat(master, "it is not recorded any more", |_| {
        let records = ProbeJournal::open(&journal).unwrap();
        records.records_of(&abs(&src)).is_empty() && records.records_of(&abs(&dst)).len() == 1
    })
    .await;
    // Its own probe is recorded while it exists.
    ask(master, vec![make(&src, 5)]);
    report_of(master, &src, |r| r.made.is_some()).await;
    assert_eq!(ProbeJournal::open(&journal).unwrap().records_of(&abs(&src))[0].name, probe(5));
    play.shut_down().await;
    assert!(ProbeJournal::open(&journal).unwrap().records_of(&abs(&src)).is_empty());
}

/// Makes a directory unwritable until it is dropped, also for root.
struct ReadOnly(PathBuf);

impl ReadOnly {
    /// `None`: this host does not allow it.
    fn new(dir: PathBuf) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
            return Some(ReadOnly(dir));
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "ro", "none"]).arg(&dir);
        mount.status().is_ok_and(|status| status.success()).then(|| ReadOnly(dir))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        match rustix::process::geteuid().is_root() {
            true => drop(Command::new("umount").arg("-l").arg(&self.0).status()),
            false => drop(fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755))),
        }
    }
}

#[tokio::test]
async fn a_directory_that_can_not_be_written_is_reported_as_read_only_and_refuses_the_probe() {
    let mut read_only = None;
    let play = with_config(|dir, config| {
        read_only = ReadOnly::new(dir.join("dst"));
        config
    })
    .await;
    let (master, [_, dst]) = (&play.master, dirs(&play));
    if let Some(read_only) = read_only {
        let first = master.wait_until("a heartbeat", |s| s.heartbeats.first().cloned()).await;
        let writable: Vec<bool> =
            first.storages.iter().map(|report| !report.fingerprint.read_only).collect();
        assert_eq!(writable, [true, false]);
        ask(master, vec![make(&dst, 1)]);
        let report = report_of(master, &dst, |r| r.error.is_some()).await;
        let error = report.error.unwrap();
        let dst = abs(&dst).to_string();
        assert!(error.contains("cannot make a probe file in") && error.contains(&dst), "{error}");
        assert_eq!((report.made, report.found), (None, vec![]));
        drop(read_only);
    }
    play.shut_down().await;
}
