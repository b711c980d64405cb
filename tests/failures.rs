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
use support::ctl::ctl;
use support::process::{Ran, Running, User, clean_command};
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
    let id = again.request_id.as_str();
    assert!(listed(&cluster, id).is_empty());
    let refused = cluster.ctl(["sync", "retry", id, "--failed-only"]).run().exits(6).err();
    assert!(
        refused.contains("no failed entries") && refused.contains("submit it again"),
        "{refused}"
    );
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

/// Runs a command of a hint as an operator does who pastes it into a shell.
fn pasted(command: &str, master: &str) -> Ran {
    let home = tempfile::tempdir().unwrap();
    let mut shell = clean_command(Path::new("bash"), home.path(), User::Same);
    let ctl = Path::new(env!("CARGO_BIN_EXE_ctl")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(ctl).chain(std::env::split_paths(&path));
    shell.env("PATH", std::env::join_paths(paths).unwrap()).args(["-c", command]);
    shell.env("CTL_MASTER_URL", master);
    Running::start(shell, None).finish(support::PATIENCE)
}

/// What stands between two texts in `said`.
#[track_caller]
fn between(said: &str, before: &str, after: &str) -> String {
    let rest = said.split_once(before).unwrap_or_else(|| panic!("no `{before}` in {said}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no `{after}` in {said}")).0.to_owned()
}

#[test]
fn each_command_that_a_failed_sync_names_works_and_none_reads_standard_input_again() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let names = blocked(&src, &dst);
    let list: Vec<u8> = names.iter().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
    let submit = cluster.ctl(["sync", "submit"]).arg(&src).arg(&dst);
    let submit = submit.more(["--files-from", "-", "-0", "--wait"]).input(list);
    let ran = submit.run();
    let said = ran.err();
    assert!(ran.code != Some(0) && !said.contains("--files-from"), "{said}");
    let pasted = |command: &str| pasted(command, &cluster.master.url());
    let files = pasted(&between(&said, "all by name: ", "\n")).exits(0).out();
    assert_eq!(files.lines().count(), names.len() + 1, "{files}");
    let retry = between(&said, "fix the error above, then: ", " (files");
    for name in &names {
        fs::remove_dir_all(dst.join(OsStr::from_bytes(name))).unwrap();
    }
    let said = pasted(&retry).exits(0).out();
    pasted(&between(&(said + "\n"), "follow: ", "\n")).exits(0);
    assert_same(&src, &dst, strict());
}

#[test]
fn the_command_that_a_failed_copy_names_works_whatever_its_paths_are() {
    let home = tempfile::tempdir().unwrap();
    let src = dir(home.path().join(OsStr::from_bytes(b"it's\n\xff src")));
    let dst = dir(home.path().join("the dst"));
    blocked(&src, &dst);
    let ran = ctl(["copy"]).arg(&src).arg(&dst).run();
    let said = ran.err();
    assert!(
        ran.code != Some(0) && said.contains("all by name: run it again with --itemize"),
        "{said}"
    );
    let again = between(&said, "fix the error above, then: ", " (files");
    fs::remove_dir_all(dst.join("d")).unwrap();
    pasted(&again, "").exits(0);
    assert_same(&src, &dst, strict());
}
