//! Paths that can't be used: `ctl copy` and a sync of two agents end with the same code, state and message.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use longhaul::wire::sync::{SyncOutcome, SyncState};
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, On};
use support::ctl::ctl;
use support::process::{Ran, User};
use support::tree::{chmod, dir, file, link};

/// Agents of an ordinary user, `a` with a source and `b` with a destination of that user.
fn site() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    User::Ordinary.give(&dst);
    cluster.agent_with("a", &[&src], User::Ordinary, "");
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    (cluster, src, dst)
}

/// All paths below a directory.
fn names(root: &Path) -> Vec<PathBuf> {
    let all = walkdir::WalkDir::new(root).sort_by_file_name().into_iter();
    all.map(|entry| entry.unwrap().into_path()).collect()
}

fn copy(cluster: &Cluster, source: &Path, destination: &Path) -> Ran {
    ctl(["copy"]).arg(source).arg(destination).user(User::Ordinary, cluster.home()).run()
}

fn sync(cluster: &Cluster, source: &Path, destination: &Path, id: &str) -> Ran {
    cluster.ctl(["sync", "submit", "--wait", "--id", id]).arg(source).arg(destination).run()
}

/// Has a sync tried again, and waits for the new one.
fn retried(cluster: &Cluster, id: &str) {
    let new = cluster.ctl(["sync", "retry", id, "-q"]).run().exits(0).out();
    cluster.ctl(["sync", "wait", new.trim()]).run().exits(0);
}

#[test]
fn copy_and_sync_end_alike_for_the_same_paths() {
    let (cluster, src, dst) = site();
    file(src.join("file"), "x");
    file(src.join("dir/file"), "x");
    chmod(file(src.join("unreadable"), "x"), 0o000);
    chmod(dir(src.join("shut")), 0o700);
    link(src.join("dangling"), "nowhere");
    file(dst.join("file"), "there");
    file(dst.join("full/file"), "there");
    let _socket = std::os::unix::net::UnixListener::bind(dst.join("socket")).unwrap();
    let foreign = dir(dst.join("foreign"));
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
    let before = names(&dst);
    for (at, (source, destination, code, message)) in table.iter().enumerate() {
        let (source, destination) = (src.join(source), dst.join(destination));
        let id = format!("s{at}");
        let ran = sync(&cluster, &source, &destination, &id).exits(*code);
        let line = format!("error: {message}");
        assert!(ran.err().contains(&line), "`{line}` in {}", ran.err());
        assert!(ran.err().contains(&format!("(exit {code})")), "{}", ran.err());
        assert!(ran.out().contains(&format!("{id}  FAILED  ")), "not partial: {}", ran.out());
        let seen = cluster.progress(&id);
        assert_eq!((seen.state, seen.outcome), (SyncState::Failed, None), "{seen:#?}");
        // The true cause, from the first step, and not tried again.
        let [error] = &seen.errors[..] else { panic!("one error: {seen:#?}") };
        assert_eq!((error.attempt, &seen.reason), (1, &Some(error.message.clone())));
        assert!(error.worker_id.is_some(), "{seen:#?}");
        let ran = copy(&cluster, &source, &destination).exits(*code);
        assert!(ran.err().contains(&line), "`{line}` in {}", ran.err());
        assert!(ran.err().contains(&format!("(exit {code})")), "{}", ran.err());
        assert!(ran.out().is_empty() || ran.out().contains("  FAILED  "), "{}", ran.out());
        assert_eq!(names(&dst), before, "nothing is changed at the destination");
    }
    assert!(foreign.exists());
    // What failed as a whole can be tried again when its cause is gone.
    User::Ordinary.give(&foreign);
    let again = table.iter().position(|row| row.1 == "foreign").unwrap();
    retried(&cluster, &format!("s{again}"));
    assert!(foreign.join("file").exists());
}

#[test]
fn copy_and_sync_both_follow_links_in_the_path_of_src() {
    let (cluster, src, dst) = site();
    file(src.join("real/file"), "content");
    link(src.join("link"), "real");
    link(src.join("file-link"), "real/file");
    for (source, name) in [("link", "dir"), ("file-link", "file"), ("link/file", "below")] {
        let (ours, theirs) = (dst.join(format!("{name}-sync")), dst.join(format!("{name}-copy")));
        sync(&cluster, &src.join(source), &ours, name).exits(0);
        copy(&cluster, &src.join(source), &theirs).exits(0);
        assert!(!ours.is_symlink() && !theirs.is_symlink(), "{name}");
        for root in [&ours, &theirs] {
            let content = if root.is_dir() { root.join("file") } else { root.clone() };
            assert_eq!(fs::read(content).unwrap(), b"content", "{name}");
        }
    }
    // An agent follows none that leads out of its storage path.
    link(src.join("outside"), cluster.path("dst"));
    let ran = sync(&cluster, &src.join("outside"), &dst.join("new"), "outside").exits(2);
    assert!(ran.err().contains("name the real path"), "{}", ran.err());
}

#[test]
fn a_link_as_src_that_leads_to_dst_is_refused_as_dst_itself_is() {
    let mut cluster = Cluster::start(On::Embedded);
    let data = dir(cluster.path("data"));
    cluster.agent("a", &[&data]);
    dir(data.join("dst/below"));
    link(data.join("to-dst"), "dst");
    link(data.join("to-data"), ".");
    for (source, destination, message) in [
        ("to-dst", "dst", "SRC and DST are the same"),
        ("to-dst", "dst/new", "is inside SRC"),
        ("to-data", "dst", "is inside SRC"),
        ("to-data/dst/below", "dst", "contains SRC"),
    ] {
        let (source, destination) = (data.join(source), data.join(destination));
        let id =
            format!("{}", message.len() + source.as_os_str().len() + destination.as_os_str().len());
        let ran = sync(&cluster, &source, &destination, &id).exits(2);
        assert!(ran.err().contains(message), "{message} in {}", ran.err());
    }
}

#[test]
fn a_part_of_the_files_is_23_and_none_of_them_7() {
    let (cluster, src, dst) = site();
    for name in ["one", "two"] {
        chmod(file(src.join(name), "x"), 0o000);
    }
    for (round, (code, how)) in
        [(7, "  FAILED  "), (23, "  FAILED (partial)  ")].into_iter().enumerate()
    {
        let (ours, theirs) = (dst.join(format!("sync{round}")), dst.join(format!("copy{round}")));
        for ran in [
            sync(&cluster, &src, &ours, &format!("r{round}")).exits(code),
            copy(&cluster, &src, &theirs).exits(code),
        ] {
            assert!(ran.out().contains(how), "{how} in {}", ran.out());
            for part in ["Permission denied [EACCES]", "open source", &format!("(exit {code})")] {
                assert!(ran.err().contains(part), "{part} in {}", ran.err());
            }
        }
        let outcome = (code == 23).then_some(SyncOutcome::Partial);
        assert_eq!(cluster.progress(&format!("r{round}")).outcome, outcome);
        file(src.join("three"), "x");
    }
    // What is there already is as good as copied.
    fs::remove_file(src.join("three")).unwrap();
    for name in ["one", "two"] {
        chmod(src.join(name), 0o644);
    }
    retried(&cluster, "r0");
    assert!(dst.join("sync0/one").exists() && dst.join("sync0/two").exists());
}

#[test]
fn a_destination_that_one_of_its_workers_can_write_is_used() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    file(src.join("file"), "x");
    cluster.agent("a", &[&src]);
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    sync(&cluster, &src, &dst.join("new"), "alone").exits(4);
    cluster.agent("c", &[&dst]);
    // `b` may be given it all the same: then the entries fail, each on its own.
    let _ = sync(&cluster, &src, &dst.join("new"), "both");
    let seen = cluster.progress("both");
    assert_eq!((seen.files_total, seen.dirs_total), (1, 1), "it was begun: {seen:#?}");
    cluster.ctl(["workers", "drain", "b", "--wait"]).run().exits(0);
    sync(&cluster, &src, &dst.join("new"), "again").exits(0);
    assert!(dst.join("new/file").exists());
}
