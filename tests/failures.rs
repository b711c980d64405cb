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
use support::cluster::{Cluster, StoreKind};
use support::ctl::ctl;
use support::process::{CommandOutput, RunningCommand, User, clean_command};
use support::tree::{
    assert_same, chmod, exact_comparison, make_dir, random_bytes, write_file, write_many_files,
};

const MIB: usize = 1 << 20;

/// Files that can't replace the directories in their place; their names.
fn make_blocked_files(src: &Path, dst: &Path) -> BTreeSet<Vec<u8>> {
    let plain = (0..148).map(|n| format!("d/blocked {n}").into_bytes());
    let names: BTreeSet<Vec<u8>> =
        plain.chain([b"d/new\nline".to_vec(), b"d/\xff\\'$x".to_vec()]).collect();
    for name in &names {
        write_file(src.join(OsStr::from_bytes(name)), random_bytes(100, 1));
        write_file(dst.join(OsStr::from_bytes(name)).join("in the way"), random_bytes(10, 2));
    }
    names
}

fn listed_failures(cluster: &Cluster, id: &str) -> BTreeSet<Vec<u8>> {
    let out =
        cluster.ctl(["sync", "files", id, "--state", "failed", "-0"]).run().assert_exit_code(0);
    let names = out.stdout.split(|b| *b == 0).filter(|name| !name.is_empty());
    names.map(<[u8]>::to_vec).collect()
}

/// 150 files fail, the master that led is killed, and another process leads: all are listed and retried.
fn assert_failures_survive(mut cluster: Cluster, next: impl FnOnce(&mut Cluster)) {
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 50, 1_000);
    write_file(src.join("d/large"), random_bytes(3 * MIB, 1));
    write_file(dst.join("d/large/in the way"), random_bytes(10, 2));
    let mut names = make_blocked_files(&src, &dst);
    names.insert(b"d/large".to_vec());
    let id = cluster.submit_with(&src, &dst, serde_json::json!({"chunk_size_mb": 1}));
    let sync = cluster.await_end(&id);
    assert_eq!((sync.files_failed, sync.errors.len()), (names.len() as u64, 100), "{sync:#?}");
    let id = sync.request_id.as_str();
    next(&mut cluster);
    assert_eq!(listed_failures(&cluster, id), names);
    let table = cluster
        .ctl(["sync", "files", id, "--state", "failed"])
        .run()
        .assert_exit_code(0)
        .stdout_text();
    assert_eq!(table.lines().count(), names.len() + 1, "{table}");
    assert!(table.contains("failed") && table.contains("d/new\\#012line"), "{table}");
    let json = cluster
        .ctl(["sync", "files", id, "--state", "failed", "-o", "json"])
        .run()
        .assert_exit_code(0);
    let lines = json.stdout_text().lines().count();
    assert!(
        lines == names.len() && json.stdout_text().contains("irectory"),
        "{}",
        json.stdout_text()
    );
    let refused = cluster.ctl(["sync", "files", id]).run().assert_exit_code(1).stderr_text();
    assert!(refused.contains("--state failed"), "{refused}");

    for name in &names {
        fs::remove_dir_all(dst.join(OsStr::from_bytes(name))).unwrap();
    }
    let retry = ["sync", "retry", id, "--failed-only", "--quiet"];
    let again = cluster.ctl(retry).run().assert_exit_code(0).stdout_text().trim().to_owned();
    let again = cluster.await_end(&again);
    assert_eq!((again.files_total, again.files_done), (names.len() as u64, names.len() as u64));
    assert_same(&src, &dst, exact_comparison());
    let id = again.request_id.as_str();
    assert!(listed_failures(&cluster, id).is_empty());
    let refused =
        cluster.ctl(["sync", "retry", id, "--failed-only"]).run().assert_exit_code(6).stderr_text();
    assert!(
        refused.contains("no failed entries") && refused.contains("submit it again"),
        "{refused}"
    );
    cluster.assert_no_panic();
}

#[test]
fn failures_without_records_survive_a_restart_with_an_embedded_store() {
    assert_failures_survive(Cluster::start(StoreKind::Embedded), |cluster| {
        cluster.master.kill_9();
        cluster.master.restart();
    });
}

#[test]
fn failures_without_records_are_taken_over_by_another_master() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    cluster.add_master();
    assert_failures_survive(cluster, |cluster| {
        cluster.master.kill_9();
        let leads = |reported: serde_json::Value| (reported["status"] == "ready").then_some(());
        await_some("the other master leads", || {
            cluster.other_masters[0].readiness().and_then(leads)
        });
    });
}

/// It failed with all that is in it, of which nothing was listed.
#[test]
fn a_directory_that_could_not_be_listed_is_retried_with_its_contents() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_file(src.join("d/e/f"), random_bytes(100, 1));
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown_recursive(&dst);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    chmod(src.join("d"), 0);
    let sync = cluster.run_sync(&src, &dst);
    assert_eq!(sync.state.as_str(), "FAILED", "{sync:#?}");
    chmod(src.join("d"), 0o755);
    let retry = ["sync", "retry", sync.request_id.as_str(), "--failed-only", "--quiet"];
    let again = cluster.ctl(retry).run().assert_exit_code(0).stdout_text().trim().to_owned();
    cluster.await_end(&again);
    assert_same(&src, &dst, exact_comparison());
}

/// Runs a command of a hint as if it was pasted into a shell.
fn run_pasted(command: &str, master: &str) -> CommandOutput {
    let home = tempfile::tempdir().unwrap();
    let mut shell = clean_command(Path::new("bash"), home.path(), User::Same);
    let ctl = Path::new(env!("CARGO_BIN_EXE_ctl")).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(ctl).chain(std::env::split_paths(&path));
    shell.env("PATH", std::env::join_paths(paths).unwrap()).args(["-c", command]);
    shell.env("CTL_MASTER_URL", master);
    RunningCommand::start(shell, None).finish(support::MAX_WAIT)
}

/// What stands between two texts in `said`.
#[track_caller]
fn text_between(printed: &str, before: &str, after: &str) -> String {
    let rest = printed.split_once(before).unwrap_or_else(|| panic!("no `{before}` in {printed}")).1;
    rest.split_once(after).unwrap_or_else(|| panic!("no `{after}` in {printed}")).0.to_owned()
}

#[test]
fn each_suggested_command_of_a_failed_sync_works_without_standard_input() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let names = make_blocked_files(&src, &dst);
    let list: Vec<u8> = names.iter().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
    let submit = cluster.ctl(["sync", "submit"]).arg(&src).arg(&dst);
    let submit = submit.args(["--files-from", "-", "-0", "--wait"]).input(list);
    let ran = submit.run();
    let printed = ran.stderr_text();
    assert!(ran.code != Some(0) && !printed.contains("--files-from"), "{printed}");
    let pasted = |command: &str| run_pasted(command, &cluster.master.url());
    let files =
        pasted(&text_between(&printed, "all by name: ", "\n")).assert_exit_code(0).stdout_text();
    assert_eq!(files.lines().count(), names.len() + 1, "{files}");
    let retry = text_between(&printed, "fix the error above, then: ", " (files");
    for name in &names {
        fs::remove_dir_all(dst.join(OsStr::from_bytes(name))).unwrap();
    }
    let printed = pasted(&retry).assert_exit_code(0).stdout_text();
    pasted(&text_between(&(printed + "\n"), "follow: ", "\n")).assert_exit_code(0);
    assert_same(&src, &dst, exact_comparison());
}

#[test]
fn the_suggested_command_of_a_failed_copy_works_for_any_path() {
    let home = tempfile::tempdir().unwrap();
    let src = make_dir(home.path().join(OsStr::from_bytes(b"it's\n\xff src")));
    let dst = make_dir(home.path().join("the dst"));
    make_blocked_files(&src, &dst);
    let ran = ctl(["copy"]).arg(&src).arg(&dst).run();
    let printed = ran.stderr_text();
    assert!(
        ran.code != Some(0) && printed.contains("all by name: run it again with --itemize"),
        "{printed}"
    );
    let again = text_between(&printed, "fix the error above, then: ", " (files");
    fs::remove_dir_all(dst.join("d")).unwrap();
    run_pasted(&again, "").assert_exit_code(0);
    assert_same(&src, &dst, exact_comparison());
}
