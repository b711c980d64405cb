//! Syncs of a token with `run_as`: agents of root act as its user. These tests need root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use support::await_true;
use support::cluster::{Cluster, StoreKind};
use support::process::is_root;
use support::tree::{chmod, make_dir, make_symlink, random_bytes, write_file};

const UID: u32 = 1000;

fn needs_root() {
    assert!(is_root(), "this test needs root, to act as other users: run it as root");
}

/// A token for all paths that acts as uid 1000, in a file.
fn token(cluster: &Cluster) -> PathBuf {
    let made = cluster.ctl([
        "token",
        "create",
        "--role",
        "operator",
        "--scope",
        "/",
        "/",
        "--run-as",
        "1000:1000",
    ]);
    let secret = made.run().assert_exit_code(0).stdout_text();
    let file = write_file(cluster.home().join("user.token"), secret);
    chmod(&file, 0o600);
    file
}

/// Submits with the token, waits, and returns exit code and the text of `ctl sync status`.
fn run(cluster: &Cluster, id: &str, token: &Path, from: &Path, to: &Path) -> (Option<i32>, String) {
    let submit = cluster
        .ctl(["sync", "submit", "--id", id, "--wait", from.to_str().unwrap(), to.to_str().unwrap()])
        .env("CTL_TOKEN_FILE", token);
    let ran = submit.run();
    let status = cluster.ctl(["sync", "status", id]).run();
    (ran.code, format!("{}\n{}", status.stdout_text(), ran.stderr_text()))
}

fn owners_of(root: &Path) -> Vec<(PathBuf, u32)> {
    let all = walkdir::WalkDir::new(root).min_depth(1).into_iter().map(Result::unwrap);
    // A part file may get its name meanwhile.
    let owner = |path: &Path| Some((path.to_owned(), path.symlink_metadata().ok()?.uid()));
    all.filter_map(|entry| owner(entry.path())).collect()
}

#[test]
fn a_sync_reads_and_writes_as_its_user_at_both_ends() {
    needs_root();
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("dir/small"), "small");
    write_file(src.join("large"), random_bytes(9 << 20, 1));
    make_symlink(src.join("link"), "dir/small");
    fs::hard_link(src.join("dir/small"), src.join("dir/other")).unwrap();
    write_file(src.join("secret"), "of root");
    chmod(src.join("secret"), 0o600);
    let mut mknod = std::process::Command::new("mknod");
    assert!(mknod.arg(src.join("null")).args(["c", "1", "3"]).status().unwrap().success());
    lchown(&dst, Some(UID), Some(UID)).unwrap();
    let token = token(&cluster);
    let (code, text) = run(&cluster, "one", &token, &src, &dst);
    assert_ne!(code, Some(0), "{text}");
    let sync = cluster.progress("one");
    assert_eq!(sync.run_as, Some("1000:1000".parse().unwrap()));
    assert!(text.contains("Run as") && text.contains("1000:1000"), "{text}");
    let secret = sync.errors.iter().find(|error| error.path.0 == b"secret").unwrap();
    assert_eq!(secret.errno.as_deref(), Some("EACCES"), "{sync:#?}");
    assert!(sync.errors.iter().any(|error| error.path.0 == b"null"), "{sync:#?}");
    assert_eq!(sync.files_failed, 2, "{sync:#?}");
    assert!(!dst.join("null").exists() && !dst.join("secret").exists());
    let owners = owners_of(&dst);
    assert_eq!(owners.len(), 5, "{owners:?}");
    assert!(owners.iter().all(|(_, uid)| *uid == UID), "{owners:?}");
    let same = |name: &str| fs::read(src.join(name)).unwrap() == fs::read(dst.join(name)).unwrap();
    assert!(same("large") && same("dir/small") && same("dir/other"));

    // An unfinished file.
    let large = make_dir(src.join("more"));
    write_file(large.join("large"), random_bytes(20 << 20, 2));
    let to = make_dir(dst.join("more"));
    lchown(&to, Some(UID), Some(UID)).unwrap();
    let submit = cluster
        .ctl([
            "sync",
            "submit",
            "--id",
            "part",
            "--bwlimit",
            "1MiB",
            large.to_str().unwrap(),
            to.to_str().unwrap(),
        ])
        .env("CTL_TOKEN_FILE", &token);
    submit.run().assert_exit_code(0);
    await_true("a part of it is there", || !owners_of(&to).is_empty());
    assert!(!to.join("large").exists());
    assert!(owners_of(&to).iter().all(|(_, uid)| *uid == UID), "{:?}", owners_of(&to));
    cluster.ctl(["sync", "cancel", "part"]).run().assert_exit_code(0);

    // A destination of root only.
    let private = make_dir(dst.join("private"));
    chmod(&private, 0o700);
    let (code, text) = run(&cluster, "two", &token, &src, &private);
    assert_ne!(code, Some(0), "{text}");
    assert!(text.contains("EACCES") && text.contains("private"), "{text}");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 0);
    cluster.assert_no_panic();
}

#[test]
fn syncs_of_root_and_of_a_user_on_one_agent_do_not_mix() {
    needs_root();
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = cluster.data_path("");
    let src = make_dir(data.join("src"));
    for n in 0..3_000 {
        write_file(src.join(format!("d{}/f{n}", n % 40)), format!("{n:0500}"));
    }
    let [of_root, of_user] = ["root", "user"].map(|name| make_dir(data.join(name)));
    lchown(&of_user, Some(UID), Some(UID)).unwrap();
    cluster.add_agent("a", &[&data]);
    let token = token(&cluster);
    // Both have started before one ends.
    let limited = |id: &str, to: &Path, token: Option<&Path>| {
        let mut submit = cluster.ctl([
            "sync",
            "submit",
            "--id",
            id,
            "--bwlimit",
            "64KiB",
            src.to_str().unwrap(),
            to.to_str().unwrap(),
        ]);
        if let Some(token) = token {
            submit = submit.env("CTL_TOKEN_FILE", token);
        }
        submit.run().assert_exit_code(0);
    };
    limited("root", &of_root, None);
    limited("user", &of_user, Some(&token));
    let states = || ["root", "user"].map(|id| cluster.progress(id).state.as_str().to_owned());
    await_true("both have started", || states().iter().all(|state| state == "PROGRESS"));
    for id in ["root", "user"] {
        cluster.ctl(["sync", "set", id, "--bwlimit", "none"]).run().assert_exit_code(0);
    }
    for id in ["root", "user"] {
        let end = cluster.await_end(id);
        assert_eq!(end.files_failed, 0, "{end:#?}");
    }
    for (dir, uid) in [(&of_root, 0), (&of_user, UID)] {
        let owners = owners_of(dir);
        assert_eq!(owners.len(), 3_040);
        let others: Vec<_> = owners.iter().filter(|(_, owner)| *owner != uid).collect();
        assert!(others.is_empty(), "{others:?}");
    }
    cluster.assert_no_panic();
}

#[test]
fn the_file_of_an_agent_has_the_last_word() {
    needs_root();
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let data = cluster.data_path("");
    let (src, dst) = (make_dir(data.join("src")), make_dir(data.join("dst")));
    write_file(src.join("f"), "x");
    lchown(&dst, Some(UID), Some(UID)).unwrap();
    let rules = "root_syncs: false\nrun_as: {min_uid: 1001}\n";
    cluster.add_agent_with("a", &[&data], support::process::User::Same, rules);
    let token = token(&cluster);
    let (code, text) = run(&cluster, "user", &token, &src, &dst);
    assert_ne!(code, Some(0));
    assert!(text.contains("uid 1000 is below 1001"), "{text}");
    let root = cluster.run_sync(&src, &dst);
    assert!(root.reason.unwrap().contains("root_syncs: false"));
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 0);
    // At the destination alone as well: nothing is sent, and no attempt is repeated.
    let far = make_dir(cluster.home().join("far"));
    let from = make_dir(cluster.home().join("from"));
    write_file(from.join("f"), "x");
    cluster.add_agent_with("far", &[&far], support::process::User::Same, rules);
    cluster.add_agent("from", &[&from]);
    let (code, text) = run(&cluster, "far", &token, &from, &far);
    assert_ne!(code, Some(0));
    assert!(text.contains("run_as_refused") && text.contains("uid 1000 is below 1001"), "{text}");
    let root = cluster.run_sync(&from, &far);
    assert!(root.reason.as_ref().unwrap().contains("root_syncs: false"), "{root:#?}");
    for sync in [cluster.progress("far"), root] {
        assert_eq!((sync.retries, sync.errors.len()), (0, 1), "{sync:#?}");
    }
    assert_eq!(fs::read_dir(&far).unwrap().count(), 0);
}
