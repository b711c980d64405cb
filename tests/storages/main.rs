//! Workers that name one path and see different storages, or one storage under several paths, with several mount
//! namespaces on this machine. These tests need root, and bindfs (`scripts/test.sh` installs it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod addressing;
mod groups;
mod identity;
mod relays;

use longhaul::wire::storage::{StorageList, StorageView};
use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::host::Host;
use support::process::CommandOutput;
use support::tools::{rsync_differences, rsync_differences_on};
use support::tree::{
    assert_same, census, exact_comparison, make_dir, part_files, write_file, write_many_files,
};
use support::{await_some, await_true};

/// The files of the tree with which it was found that two storages of one name were mixed.
const FILES: usize = 720;

/// A master, and the source `src` with [`FILES`] files at worker `a`.
fn start_with_source() -> (Cluster, std::path::PathBuf) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let src = make_dir(cluster.data_path("src"));
    write_many_files(&src, FILES, 3_000);
    cluster.add_agent("a", &[&src]);
    (cluster, src)
}

/// Starts an agent on a host of its own, which has an empty file system at `path`.
fn add_local_disk(cluster: &mut Cluster, name: &str, path: &Path, more: &str) -> Arc<Host> {
    let host = Host::start(cluster.home(), name);
    host.mount_tmpfs(&make_dir(path));
    cluster.add_agent_on(&host, name, &json!([path]), more);
    host
}

/// The storages at a path, as `ctl storage list` has them.
fn storages_at(cluster: &Cluster, path: &Path) -> Vec<StorageView> {
    let list = cluster.ctl(["storage", "list", "-o", "json"]).run().assert_exit_code(0);
    let list: StorageList = serde_json::from_slice(&list.stdout).unwrap();
    let path = path.to_str().unwrap();
    list.storages.into_iter().filter(|storage| storage.path.to_string() == path).collect()
}

fn workers_of(storage: &StorageView) -> Vec<&str> {
    storage.workers.iter().map(|worker| worker.worker_id.as_str()).collect()
}

/// Waits until the storages at a path are known, and are those of these workers. Returns them in this order.
#[track_caller]
fn await_storages(cluster: &Cluster, path: &Path, wanted: &[&[&str]]) -> Vec<StorageView> {
    let what = format!("{} is {wanted:?}", path.display());
    await_some(&what, || {
        let all = storages_at(cluster, path);
        let is_known = all.iter().all(|storage| storage.not_compared_with.is_empty());
        let of = |workers: &&[&str]| all.iter().find(|one| workers_of(one) == **workers).cloned();
        let found: Option<Vec<StorageView>> = wanted.iter().map(of).collect();
        found.filter(|found| is_known && found.len() == all.len())
    })
}

/// Runs `ctl sync submit --wait` with addresses.
fn copy(cluster: &Cluster, from: &str, to: &str) -> CommandOutput {
    cluster.ctl(["sync", "submit", "--wait", from, to]).run()
}

/// `WORKERS:PATH`
fn address(workers: &str, path: &Path) -> String {
    format!("{workers}:{}", path.display())
}

/// Checks with rsync, and by a comparison of its own, that a tree was copied whole.
#[track_caller]
fn assert_copied(source: &Path, destination: &Path) {
    assert_same(source, destination, exact_comparison());
    assert_none(&rsync_differences(source, destination));
}

/// … of two trees as a host has them.
#[track_caller]
fn assert_copied_on(host: &Host, source: &Path, destination: &Path) {
    assert_same(&host.path(source), &host.path(destination), exact_comparison());
    assert_none(&rsync_differences_on(host, source, destination));
}

#[track_caller]
fn assert_none(differences: &str) {
    let first: Vec<&str> = differences.lines().take(20).collect();
    assert!(first.is_empty(), "{first:#?}");
}

/// Checks that nothing was written.
#[track_caller]
fn assert_empty(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.is_empty(), "{}: {names:?}", dir.display());
}

/// Checks that a command refused a path with several storages, and named each with its workers.
#[track_caller]
fn assert_ambiguous(ran: CommandOutput, storages: &[StorageView]) {
    let message = ran.assert_exit_code(6).stderr_text();
    assert_names_all(&message, storages);
}

#[track_caller]
fn assert_names_all(message: &str, storages: &[StorageView]) {
    assert!(message.contains("workers see different storages"), "{message}");
    for storage in storages {
        let named = format!("{} ({})", storage.storage_id, workers_of(storage).join(", "));
        assert!(message.contains(&named), "{named} in {message}");
    }
}

fn has_reason(sync: &SyncProgress, part: &str) -> bool {
    sync.reason.as_deref().is_some_and(|reason| reason.contains(part))
}
