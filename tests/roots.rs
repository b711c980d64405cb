//! Paths that can't be used: `ctl copy` and a sync of two agents end with the same code, state and message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, StoreKind};
use support::ctl::ctl;
use support::process::{CommandOutput, User};
use support::tree::{chmod, make_dir, make_symlink, write_file};

/// Agents of an ordinary user, `a` with a source and `b` with a destination of that user.
fn start_site() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    User::Ordinary.chown(&dst);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    (cluster, src, dst)
}

/// All paths below a directory.
fn paths_below(root: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
    all.map(|entry| entry.unwrap().into_path()).collect()
}

fn run_copy(cluster: &Cluster, source: &Path, destination: &Path) -> CommandOutput {
    ctl(["copy"]).arg(source).arg(destination).user(User::Ordinary, cluster.home()).run()
}

fn run_sync(cluster: &Cluster, source: &Path, destination: &Path, id: &str) -> CommandOutput {
    cluster.ctl(["sync", "submit", "--wait", "--id", id]).arg(source).arg(destination).run()
}

/// Has a sync tried again, and waits for the new one.
fn assert_retried(cluster: &Cluster, id: &str) {
    let new = cluster.ctl(["sync", "retry", id, "-q"]).run().assert_exit_code(0).stdout_text();
    cluster.ctl(["sync", "wait", new.trim()]).run().assert_exit_code(0);
}

#[test]
fn copy_and_sync_have_the_same_outcome_for_the_same_paths() {
    let (cluster, src, dst) = start_site();
    write_file(src.join("file"), "x");
    write_file(src.join("dir/file"), "x");
    chmod(write_file(src.join("unreadable"), "x"), 0o000);
    chmod(make_dir(src.join("shut")), 0o700);
    make_symlink(src.join("dangling"), "nowhere");
    write_file(dst.join("file"), "there");
    write_file(dst.join("full/file"), "there");
    let _socket = std::os::unix::net::UnixListener::bind(dst.join("socket")).unwrap();
    let foreign = make_dir(dst.join("foreign"));
    let shown = |path: &Path| path.display().to_string();
    let missing = |name: &str| format!("SRC {} does not exist", shown(&src.join(name)));
    let unreadable = |name: &str| {
        format!("cannot read `{}`: Permission denied (EACCES)", shown(&src.join(name)))
    };
    let refused =
        |name: &str, why: &str| format!("cannot write to `{}`: {why}", shown(&dst.join(name)));
    let denied = "Permission denied (EACCES)";
    let table = [
        ("none", "new", 3, missing("none")),
        ("file/none", "new", 3, missing("file/none")),
        ("dangling", "new", 3, missing("dangling")),
        ("shut", "new", 4, unreadable("shut")),
        ("unreadable", "new", 4, unreadable("unreadable")),
        (
            "file",
            "full",
            2,
            format!("SRC is a file, but DST {} is a directory", shown(&dst.join("full"))),
        ),
        (
            "dir",
            "file",
            2,
            format!("SRC is a directory, but DST {} is not", shown(&dst.join("file"))),
        ),
        (
            "file",
            "socket",
            2,
            format!(
                "SRC is a file, but DST {} is a device, FIFO or socket",
                shown(&dst.join("socket"))
            ),
        ),
        ("dir", "file/new", 2, refused("file/new", "Not a directory (ENOTDIR)")),
        ("dir", "foreign", 4, refused("foreign", denied)),
        ("dir", "foreign/new", 4, refused("foreign/new", denied)),
        ("file", "foreign/new", 4, refused("foreign/new", denied)),
    ];
    let before = paths_below(&dst);
    for (at, (source, destination, code, message)) in table.iter().enumerate() {
        let (source, destination) = (src.join(source), dst.join(destination));
        let id = format!("s{at}");
        let ran = run_sync(&cluster, &source, &destination, &id).assert_exit_code(*code);
        let line = format!("error: {message}");
        assert!(ran.stderr_text().contains(&line), "`{line}` in {}", ran.stderr_text());
        assert!(ran.stderr_text().contains(&format!("(exit {code})")), "{}", ran.stderr_text());
        assert!(
            ran.stdout_text().contains(&format!("{id}  FAILED  ")),
            "not partial: {}",
            ran.stdout_text()
        );
        let seen = cluster.progress(&id);
        assert_eq!((seen.state, seen.outcome), (SyncState::Failed, None), "{seen:#?}");
        // The true cause, from the first step, and not tried again.
        let [error] = &seen.errors[..] else { panic!("one error: {seen:#?}") };
        assert_eq!((error.attempt, &seen.reason), (1, &Some(error.message.clone())));
        assert!(error.worker_id.is_some(), "{seen:#?}");
        let ran = run_copy(&cluster, &source, &destination).assert_exit_code(*code);
        assert!(ran.stderr_text().contains(&line), "`{line}` in {}", ran.stderr_text());
        assert!(ran.stderr_text().contains(&format!("(exit {code})")), "{}", ran.stderr_text());
        assert!(
            ran.stdout_text().is_empty() || ran.stdout_text().contains("  FAILED  "),
            "{}",
            ran.stdout_text()
        );
        assert_eq!(paths_below(&dst), before, "nothing is changed at the destination");
    }
    assert!(foreign.exists());
    // What failed as a whole can be tried again when its cause is gone.
    User::Ordinary.chown(&foreign);
    let again = table.iter().position(|row| row.1 == "foreign").unwrap();
    assert_retried(&cluster, &format!("s{again}"));
    assert!(foreign.join("file").exists());
}

#[test]
fn copy_and_sync_follow_links_in_the_source_path() {
    let (cluster, src, dst) = start_site();
    write_file(src.join("real/file"), "content");
    make_symlink(src.join("link"), "real");
    make_symlink(src.join("file-link"), "real/file");
    for (source, name) in [("link", "dir"), ("file-link", "file"), ("link/file", "below")] {
        let (ours, theirs) = (dst.join(format!("{name}-sync")), dst.join(format!("{name}-copy")));
        run_sync(&cluster, &src.join(source), &ours, name).assert_exit_code(0);
        run_copy(&cluster, &src.join(source), &theirs).assert_exit_code(0);
        assert!(!ours.is_symlink() && !theirs.is_symlink(), "{name}");
        for root in [&ours, &theirs] {
            let content = if root.is_dir() { root.join("file") } else { root.clone() };
            assert_eq!(fs::read(content).unwrap(), b"content", "{name}");
        }
    }
    // An agent follows none that leads out of its storage path.
    make_symlink(src.join("outside"), cluster.data_path("dst"));
    let ran =
        run_sync(&cluster, &src.join("outside"), &dst.join("new"), "outside").assert_exit_code(2);
    assert!(ran.stderr_text().contains("name the real path"), "{}", ran.stderr_text());
}

#[test]
fn a_source_link_to_the_destination_is_refused_like_the_destination_itself() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = make_dir(cluster.data_path("data"));
    cluster.add_agent("a", &[&data]);
    make_dir(data.join("dst/below"));
    make_symlink(data.join("to-dst"), "dst");
    make_symlink(data.join("to-data"), ".");
    for (source, destination, message) in [
        ("to-dst", "dst", "SRC and DST are the same"),
        ("to-dst", "dst/new", "is inside SRC"),
        ("to-data", "dst", "is inside SRC"),
        ("to-data/dst/below", "dst", "contains SRC"),
    ] {
        let (source, destination) = (data.join(source), data.join(destination));
        let id =
            format!("{}", message.len() + source.as_os_str().len() + destination.as_os_str().len());
        let ran = run_sync(&cluster, &source, &destination, &id).assert_exit_code(2);
        assert!(ran.stderr_text().contains(message), "{message} in {}", ran.stderr_text());
    }
}

#[test]
fn some_failed_files_exit_with_23_and_all_failed_files_with_7() {
    let (cluster, src, dst) = start_site();
    for name in ["one", "two"] {
        chmod(write_file(src.join(name), "x"), 0o000);
    }
    for (round, (code, how)) in
        [(7, "  FAILED  "), (23, "  FAILED (partial)  ")].into_iter().enumerate()
    {
        let (ours, theirs) = (dst.join(format!("sync{round}")), dst.join(format!("copy{round}")));
        for ran in [
            run_sync(&cluster, &src, &ours, &format!("r{round}")).assert_exit_code(code),
            run_copy(&cluster, &src, &theirs).assert_exit_code(code),
        ] {
            assert!(ran.stdout_text().contains(how), "{how} in {}", ran.stdout_text());
            for part in ["Permission denied [EACCES]", "open source", &format!("(exit {code})")] {
                assert!(ran.stderr_text().contains(part), "{part} in {}", ran.stderr_text());
            }
        }
        let outcome = (code == 23).then_some(SyncOutcome::Partial);
        assert_eq!(cluster.progress(&format!("r{round}")).outcome, outcome);
        write_file(src.join("three"), "x");
    }
    // What is there already is as good as copied.
    fs::remove_file(src.join("three")).unwrap();
    for name in ["one", "two"] {
        chmod(src.join(name), 0o644);
    }
    assert_retried(&cluster, "r0");
    assert!(dst.join("sync0/one").exists() && dst.join("sync0/two").exists());
}

#[test]
fn a_destination_that_one_worker_can_write_is_used() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_file(src.join("file"), "x");
    cluster.add_agent("a", &[&src]);
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    run_sync(&cluster, &src, &dst.join("new"), "alone").assert_exit_code(4);
    cluster.add_agent("c", &[&dst]);
    // `b` may be given it all the same: then the entries fail, each on its own.
    let _ = run_sync(&cluster, &src, &dst.join("new"), "both");
    let seen = cluster.progress("both");
    assert_eq!((seen.files_total, seen.dirs_total), (1, 1), "it was begun: {seen:#?}");
    cluster.ctl(["workers", "drain", "b", "--wait"]).run().assert_exit_code(0);
    run_sync(&cluster, &src, &dst.join("new"), "again").assert_exit_code(0);
    assert!(dst.join("new/file").exists());
}
