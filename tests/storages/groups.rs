//! One source, many destinations, each with a disk of its own under one path.

use super::*;
use longhaul::wire::sync::{DestinationProgress, SyncOutcome};
use std::path::PathBuf;

/// The large file of the source, in MiB.
pub(super) const LARGE_MIB: usize = 32;

/// Workers `g1`, `g2`, … with a disk each at `dst`, and a source.
pub(super) struct Nodes {
    pub(super) cluster: Cluster,
    pub(super) src: PathBuf,
    pub(super) dst: PathBuf,
    pub(super) hosts: Vec<Arc<Host>>,
}

impl Nodes {
    pub(super) fn start(count: usize) -> Nodes {
        let (cluster, src) = start_with_source();
        let dst = make_dir(cluster.data_path("dst"));
        let mut nodes = Nodes { cluster, src, dst, hosts: Vec::new() };
        (0..count).for_each(|_| nodes.add());
        nodes.await_storages();
        nodes
    }

    fn add(&mut self) {
        let name = format!("g{}", self.hosts.len() + 1);
        let host = add_local_disk(&mut self.cluster, &name, &self.dst, "");
        self.hosts.push(host);
    }

    fn await_storages(&self) {
        let names: Vec<String> = (1..=self.hosts.len()).map(|at| format!("g{at}")).collect();
        let each: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let each: Vec<&[&str]> = each.iter().map(|one| one.as_slice()).collect();
        await_storages(&self.cluster, &self.dst, &each);
    }

    #[track_caller]
    pub(super) fn assert_copied(&self, at: usize) {
        assert_copied_on(&self.hosts[at - 1], &self.src, &self.dst);
    }

    /// What is at the destination of a node, for the test.
    pub(super) fn tree(&self, at: usize) -> PathBuf {
        self.hosts[at - 1].path(&self.dst)
    }

    /// Begins a copy to all nodes, which takes some seconds.
    fn submit_to_all(&self) -> String {
        let more = json!({
            "destination_workers": ["g*"], "chunk_size_mb": 1, "bwlimit": 12 << 20,
        });
        self.cluster.submit_with(&self.src, &self.dst, more)
    }
}

/// The destination of a worker in the document of a sync.
pub(super) fn of_worker<'a>(sync: &'a SyncProgress, worker: &str) -> &'a DestinationProgress {
    let is_of = |one: &&DestinationProgress| one.workers.iter().any(|id| id.as_str() == worker);
    sync.destinations.iter().find(is_of).unwrap_or_else(|| panic!("{worker}: {sync:#?}"))
}

pub(super) fn is_complete(one: &DestinationProgress) -> bool {
    one.state == SyncState::Completed && one.outcome == Some(SyncOutcome::Full)
}

#[test]
fn a_destination_that_dies_is_named_and_completed_by_a_retry_that_sends_only_what_it_lacks() {
    let mut nodes = Nodes::start(3);
    write_file(nodes.src.join("large"), support::tree::random_bytes(LARGE_MIB << 20, 7));
    let whole = census(&nodes.src);
    let id = nodes.submit_to_all();
    nodes.cluster.await_progress(&id, "is half way at g1", |s| {
        !s.destinations.is_empty() && of_worker(s, "g1").transferred_bytes > whole.bytes / 2
    });
    await_true("g1 has most of the files", || {
        // Files come and go there.
        let entries = walkdir::WalkDir::new(nodes.tree(1)).into_iter().filter_map(Result::ok);
        entries.filter(|entry| entry.file_type().is_file()).count() > FILES / 2
    });
    nodes.cluster.agents.get_mut("g1").unwrap().kill_9();
    nodes.cluster.lift_bandwidth_limit(&id);
    let seen = nodes.cluster.await_progress(&id, "is complete at the others", |s| {
        ["g2", "g3"].iter().all(|name| is_complete(of_worker(s, name)))
    });
    for at in [2, 3] {
        nodes.assert_copied(at);
    }
    // The one that lacks something is the first.
    assert_eq!(seen.destinations[0].workers[0].as_str(), "g1", "{seen:#?}");
    assert!(!seen.state.is_final(), "{seen:#?}");
    let shown = nodes.cluster.ctl(["sync", "status", &id]).run().assert_exit_code(0).stdout_text();
    let position = |name: &str| shown.lines().position(|line| line.contains(&format!("{name} ")));
    assert!(position("g1").unwrap() < position("g2").unwrap(), "{shown}");
    // It is given up by hand, and the sync is not complete.
    let part = seen.destinations[0].request_id.to_string();
    nodes.cluster.ctl(["sync", "cancel", &part]).run().assert_exit_code(0);
    let end = nodes.cluster.await_end(&id);
    assert_eq!((end.state, end.outcome), (SyncState::Failed, Some(SyncOutcome::Partial)));
    assert!(has_reason(&end, &format!("1 of 3 destinations are not complete: {part}")), "{end:#?}");

    // What of the large file was there is continued by the retry, or removed before with the cancelled sync.
    let parts = part_files(&nodes.tree(1)).iter().map(|part| census(part).bytes).sum::<u64>();
    let present = census(&nodes.tree(1)).bytes - parts;
    assert!(present > 0, "g1 holds complete files");
    nodes.cluster.agents.get_mut("g1").unwrap().restart();
    await_true("g1 is back", || {
        nodes.cluster.master.active_workers().iter().any(|worker| worker == "g1")
    });
    let retry = ["sync", "retry", &id, "--failed-only", "-q"];
    let again = nodes.cluster.ctl(retry).run().assert_exit_code(0).stdout_text();
    let end = nodes.cluster.await_end(again.trim());
    assert_complete(&end, whole);
    let workers: Vec<String> = end.destination_workers.iter().map(ToString::to_string).collect();
    assert_eq!(workers, ["g1"], "the others lack nothing");
    nodes.assert_copied(1);
    assert!(end.sent_bytes <= whole.bytes - present, "{} and {present}", end.sent_bytes);
    nodes.cluster.assert_no_panic();
}

#[test]
fn a_destination_that_is_added_while_a_sync_runs_gets_all_of_it() {
    let mut nodes = Nodes::start(2);
    write_file(nodes.src.join("large"), support::tree::random_bytes(LARGE_MIB << 20, 7));
    let id = nodes.submit_to_all();
    let begun = |s: &SyncProgress| s.transferred_bytes > 4 << 20;
    nodes.cluster.await_progress(&id, "has begun", begun);
    nodes.add();
    nodes.await_storages();
    let add =
        |workers: &str| nodes.cluster.ctl(["sync", "set", &id, "--add-destination", workers]).run();
    add("g3").assert_exit_code(0);
    let twice = add("g3").assert_exit_code(6).stderr_text();
    assert!(twice.contains(&format!("is a destination of sync `{id}` already")), "{twice}");
    let unknown = add("g9").assert_exit_code(2).stderr_text();
    assert!(unknown.contains("registered are: a, g1, g2, g3"), "{unknown}");
    nodes.cluster.lift_bandwidth_limit(&id);
    let end = nodes.cluster.await_end(&id);
    assert_eq!((end.state, end.outcome), (SyncState::Completed, Some(SyncOutcome::Full)));
    assert_eq!(end.files_total, 3 * census(&nodes.src).files, "a sum over all: {end:#?}");
    for at in 1..=3 {
        nodes.assert_copied(at);
    }
    nodes.cluster.assert_no_panic();
}

#[test]
fn each_destination_of_a_mirror_loses_what_it_has_too_much_of_and_is_guarded_alone() {
    let nodes = Nodes::start(3);
    for (at, extra) in [(1, 3), (2, 60), (3, 1_000)] {
        write_many_files(&nodes.tree(at).join("extra"), extra, 10);
    }
    // A limit that only the last one exceeds.
    let mirror = nodes.cluster.ctl(["sync", "submit", "--wait", "--delete", "--max-delete", "100"]);
    let to = address("g*", &nodes.dst);
    let ran = mirror.arg(&nodes.src).arg(&to).run();
    assert_ne!(ran.code, Some(0), "{}", ran.stdout_text());
    for at in [1, 2] {
        nodes.assert_copied(at);
    }
    assert_eq!(census(&nodes.tree(3).join("extra")).files, 1_000, "{}", ran.stderr_text());
    let said = ran.stdout_text() + &ran.stderr_text();
    assert!(said.contains("1 of 3 destinations are not complete") && said.contains("g3"), "{said}");
    // Without limits that one loses it as well.
    let mirror = nodes.cluster.ctl(["sync", "submit", "--wait", "--delete"]);
    let mirror = mirror.args(["--max-delete-percent", "100"]);
    mirror.arg(&nodes.src).arg(&to).run().assert_exit_code(0);
    nodes.assert_copied(3);
    nodes.cluster.assert_no_panic();
}
