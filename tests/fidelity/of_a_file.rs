//! A source that is a file: what is left out applies to it as well; lists of names, also empty ones.

use crate::support::cluster::{Cluster, On};
use crate::support::ctl::{Ctl, ctl};
use crate::support::tree::{dir, file};
use longhaul::wire::sync::SyncProgress;
use std::path::Path;

fn copy(src: &Path, dst: &Path, args: &[&str]) -> Ctl {
    ctl(["copy"]).arg(src).arg(dst).more(args)
}

#[test]
fn filters_apply_to_a_source_that_is_a_file() {
    let home = tempfile::tempdir().unwrap();
    let src = file(home.path().join("data.log"), "0123456789");
    let dst = home.path().join("copied");
    for left_out in [
        ["--max-size", "9"],
        ["--min-size", "11"],
        ["--older-than", "2001-01-01"],
        ["--newer-than", "2999-01-01"],
        ["--exclude", "*.log"],
        ["--exclude", "/data.log"],
        ["--exclude", "data.*"],
    ] {
        let ran = copy(&src, &dst, &left_out).run().exits(0);
        assert!(ran.out().contains("0 copied, 0 skipped, 0 failed"), "{left_out:?}: {}", ran.out());
        let said = ran.err();
        let note = said.lines().find(|line| line.contains("nothing to do: SRC is a file"));
        assert!(note.is_some_and(|note| note.contains(left_out[0])), "{left_out:?}: {said}");
        assert!(!dst.exists(), "{left_out:?}");
        copy(&src, &dst, &left_out).arg("--error-on-no-transfer").run().exits(9);
    }
    for taken in [["--max-size", "10"], ["--exclude", "data.log/"], ["--exclude", "x/data.log"]] {
        copy(&src, &dst, &taken).arg("--error-on-no-transfer").run().exits(0);
        assert_eq!(std::fs::read(&dst).unwrap(), b"0123456789", "{taken:?}");
        std::fs::remove_file(&dst).unwrap();
    }
}

#[test]
fn a_list_of_names_in_a_file_is_refused() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let f = file(src.join("f"), "f");
    let ran = copy(&f, &dst.join("f"), &["--files-from", "-"]).input("x\n").run().exits(2);
    assert!(ran.err().contains("is a file") && ran.err().contains("--files-from"), "{}", ran.err());
    // Only the agent sees what SRC is.
    let submit = cluster.ctl(["sync", "submit", "--wait", "--files-from", "-"]);
    let ran = submit.arg(&f).arg(dst.join("f")).input("x\ny\n").run().exits(2);
    for part in
        ["it is not a directory, and a list names", "hint: leave the list (`--files-from`) out"]
    {
        assert!(ran.err().contains(part), "{part} in {}", ran.err());
    }
    assert!(!dst.join("f").exists());
}

#[test]
fn a_listed_name_below_a_file_is_a_failure_and_no_vanished_file() {
    let home = tempfile::tempdir().unwrap();
    let src = dir(home.path().join("src"));
    file(src.join("f"), "f");
    file(src.join("g"), "g");
    let listed = copy(&src, &home.path().join("dst"), &["--files-from", "-"]);
    let ran = listed.input("f/x\ng\n").run().exits(23);
    assert!(ran.out().contains("1 copied, 0 skipped, 1 failed"), "{}", ran.out());
    assert!(ran.err().contains("Not a directory [ENOTDIR]"), "{}", ran.err());
}

#[test]
fn an_empty_list_is_nothing_to_do() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("f"), "f");
    for empty in ["", "\n\r\n"] {
        let listed =
            |args: &[&str]| copy(&src, &dst, args).arg("--files-from").arg("-").input(empty).run();
        let ran = listed(&[]).exits(0);
        assert!(ran.err().contains("nothing to do"), "{}", ran.err());
        assert_eq!(listed(&["-q"]).exits(0).err(), "");
        listed(&["--error-on-no-transfer"]).exits(9);
        let submitted = |args: &[&str]| {
            let submit = cluster.ctl(["sync", "submit", "--files-from", "-"]).more(args);
            submit.arg(&src).arg(&dst).input(empty).run()
        };
        assert!(submitted(&[]).exits(0).err().contains("nothing to do"));
        // A script that takes the id from standard output is to see why there is none.
        let quiet = submitted(&["-q"]).exits(0);
        assert!(quiet.out().is_empty() && quiet.err().contains("nothing to do"), "{}", quiet.err());
        assert_eq!(submitted(&["-q", "--wait"]).exits(0).err(), "");
        submitted(&["--wait"]).exits(0);
        submitted(&["--wait", "--error-on-no-transfer"]).exits(9);
        submitted(&["--error-on-no-transfer"]).exits(2);
    }
    let all: Vec<SyncProgress> = serde_json::from_slice(&cluster.master.get("/sync").body).unwrap();
    assert!(all.is_empty() && !dst.join("f").exists(), "nothing was submitted: {all:?}");
}

#[test]
fn a_sync_that_transfers_nothing_ends_with_9_where_that_is_asked_for() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("f"), "f");
    let submit = |args: &[&str]| {
        let submit = cluster.ctl(["sync", "submit", "--wait", "--error-on-no-transfer"]).more(args);
        submit.arg(&src).arg(&dst).run()
    };
    submit(&[]).exits(0);
    let ran = submit(&[]).exits(9);
    assert!(ran.err().contains("nothing was transferred   (exit 9)"), "{}", ran.err());
    // What failed counts more than what was not transferred.
    cluster.ctl(["sync", "submit", "--wait"]).arg(&src).arg(&dst).run().exits(0);
    for (names, code) in [("f\nnone\n", 23), ("none\n", 7)] {
        let missing = cluster.ctl([
            "sync",
            "submit",
            "--wait",
            "--error-on-no-transfer",
            "--files-from",
            "-",
        ]);
        missing.arg(&src).arg(&dst).input(names).run().exits(code);
    }
    // A deletion transfers nothing.
    file(dst.join("extra"), "x");
    submit(&["--delete"]).exits(9);
    assert!(!dst.join("extra").exists());
}
