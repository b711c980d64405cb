//! What failed in a sync that records nothing: listed by name and retried by itself, whatever became of the master that
//! led then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use support::await_some;
use support::cluster::{Cluster, On};
use support::process::User;
use support::tree::{assert_same, chmod, dir, file, many, noise, strict};

const MIB: usize = 1 << 20;

/// Files that can't replace the directories in their place; their names.
fn blocked(src: &Path, dst: &Path) -> BTreeSet<Vec<u8>> {
    let plain = (0..148).map(|n| format!("d/blocked {n}").into_bytes());
    let names: BTreeSet<Vec<u8>> =
        plain.chain([b"d/new\nline".to_vec(), b"d/\xff\\'$x".to_vec()]).collect();
    for name in &names {
        file(src.join(OsStr::from_bytes(name)), noise(100, 1));
        file(dst.join(OsStr::from_bytes(name)).join("in the way"), noise(10, 2));
    }
    names
}

fn listed(cluster: &Cluster, id: &str) -> BTreeSet<Vec<u8>> {
    let out = cluster.ctl(["sync", "files", id, "--state", "failed", "-0"]).run().exits(0);
    let names = out.stdout.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(<[u8]>::to_vec).collect()
}

/// 150 files fail, the master that led is killed, and another process leads: all are listed and retried.
fn outlives_the_master(mut cluster: Cluster, next: impl FnOnce(&mut Cluster)) {
    let (src, dst) = cluster.pair();
    many(&src, 50, 1_000);
    file(src.join("d/large"), noise(3 * MIB, 1));
    file(dst.join("d/large/in the way"), noise(10, 2));
    let mut names = blocked(&src, &dst);
    names.insert(b"d/large".to_vec());
    let id = cluster.submit_with(&src, &dst, serde_json::json!({"chunk_size_mb": 1}));
    let sync = cluster.ended(&id);
    assert_eq!((sync.files_failed, sync.errors.len()), (names.len() as u64, 100), "{sync:#?}");
    let id = sync.request_id.as_str();
    next(&mut cluster);
    assert_eq!(listed(&cluster, id), names);
    let table = cluster.ctl(["sync", "files", id, "--state", "failed"]).run().exits(0).out();
    assert_eq!(table.lines().count(), names.len() + 1, "{table}");
    assert!(table.contains("failed") && table.contains("d/new\\#012line"), "{table}");
    let json = cluster.ctl(["sync", "files", id, "--state", "failed", "-o", "json"]).run().exits(0);
    let lines = json.out().lines().count();
    assert!(lines == names.len() && json.out().contains("irectory"), "{}", json.out());
    let refused = cluster.ctl(["sync", "files", id]).run().exits(1).err();
    assert!(refused.contains("--state failed"), "{refused}");

    for name in &names {
        fs::remove_dir_all(dst.join(OsStr::from_bytes(name))).unwrap();
    }
    let retry = ["sync", "retry", id, "--failed-only", "--quiet"];
    let again = cluster.ctl(retry).run().exits(0).out().trim().to_owned();
    let again = cluster.ended(&again);
    assert_eq!((again.files_total, again.files_done), (names.len() as u64, names.len() as u64));
    assert_same(&src, &dst, strict());
    assert!(listed(&cluster, again.request_id.as_str()).is_empty());
    cluster.assert_no_panic();
}

#[test]
fn what_failed_without_records_outlives_a_master_with_an_embedded_store() {
    outlives_the_master(Cluster::start(On::Embedded), |cluster| {
        cluster.master.kill_9();
        cluster.master.restart();
    });
}

#[test]
fn what_failed_without_records_is_taken_over_by_another_master() {
    let mut cluster = Cluster::start(On::Redis);
    cluster.another_master();
    outlives_the_master(cluster, |cluster| {
        cluster.master.kill_9();
        let leads = |told: serde_json::Value| (told["status"] == "ready").then_some(());
        await_some("the other master leads", || cluster.others[0].readiness().and_then(leads));
    });
}

/// It failed with all that is in it, of which nothing was listed.
#[test]
fn a_directory_that_could_not_be_listed_is_retried_with_its_contents() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    file(src.join("d/e/f"), noise(100, 1));
    User::Ordinary.give_all(&src);
    User::Ordinary.give_all(&dst);
    cluster.agent_with("a", &[&src], User::Ordinary, "");
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    chmod(src.join("d"), 0);
    let sync = cluster.sync(&src, &dst);
    assert_eq!(sync.state.as_str(), "FAILED", "{sync:#?}");
    chmod(src.join("d"), 0o755);
    let retry = ["sync", "retry", sync.request_id.as_str(), "--failed-only", "--quiet"];
    let again = cluster.ctl(retry).run().exits(0).out().trim().to_owned();
    cluster.ended(&again);
    assert_same(&src, &dst, strict());
}
