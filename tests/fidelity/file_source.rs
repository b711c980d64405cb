//! A source that is a file: what is left out applies to it as well; lists of names, also empty ones.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::ctl::{Ctl, ctl};
use crate::support::tree::{make_dir, write_file};
use longhaul::wire::sync::SyncProgress;
use std::path::Path;

fn copy(src: &Path, dst: &Path, args: &[&str]) -> Ctl {
    ctl(["copy"]).arg(src).arg(dst).args(args)
}

#[test]
fn filters_apply_to_a_file_as_source() {
    let home = tempfile::tempdir().unwrap();
    let src = write_file(home.path().join("data.log"), "0123456789");
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
        let ran = copy(&src, &dst, &left_out).run().assert_exit_code(0);
        assert!(
            ran.stdout_text().contains("0 copied, 0 skipped, 0 failed"),
            "{left_out:?}: {}",
            ran.stdout_text()
        );
        let printed = ran.stderr_text();
        let note = printed.lines().find(|line| line.contains("nothing to do: SRC is a file"));
        assert!(note.is_some_and(|note| note.contains(left_out[0])), "{left_out:?}: {printed}");
        assert!(!dst.exists(), "{left_out:?}");
        copy(&src, &dst, &left_out).arg("--error-on-no-transfer").run().assert_exit_code(9);
    }
    for taken in [["--max-size", "10"], ["--exclude", "data.log/"], ["--exclude", "x/data.log"]] {
        copy(&src, &dst, &taken).arg("--error-on-no-transfer").run().assert_exit_code(0);
        assert_eq!(std::fs::read(&dst).unwrap(), b"0123456789", "{taken:?}");
        std::fs::remove_file(&dst).unwrap();
    }
}

#[test]
fn a_list_of_names_in_a_file_is_refused() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let f = write_file(src.join("f"), "f");
    let ran =
        copy(&f, &dst.join("f"), &["--files-from", "-"]).input("x\n").run().assert_exit_code(2);
    assert!(
        ran.stderr_text().contains("is a file") && ran.stderr_text().contains("--files-from"),
        "{}",
        ran.stderr_text()
    );
    // Only the agent sees what SRC is.
    let submit = cluster.ctl(["sync", "submit", "--wait", "--files-from", "-"]);
    let ran = submit.arg(&f).arg(dst.join("f")).input("x\ny\n").run().assert_exit_code(2);
    for part in
        ["it is not a directory, and a list names", "hint: leave the list (`--files-from`) out"]
    {
        assert!(ran.stderr_text().contains(part), "{part} in {}", ran.stderr_text());
    }
    assert!(!dst.join("f").exists());
}

#[test]
fn a_listed_name_below_a_file_is_a_failure_and_not_a_vanished_file() {
    let home = tempfile::tempdir().unwrap();
    let src = make_dir(home.path().join("src"));
    write_file(src.join("f"), "f");
    write_file(src.join("g"), "g");
    let listed = copy(&src, &home.path().join("dst"), &["--files-from", "-"]);
    let ran = listed.input("f/x\ng\n").run().assert_exit_code(23);
    assert!(ran.stdout_text().contains("1 copied, 0 skipped, 1 failed"), "{}", ran.stdout_text());
    assert!(ran.stderr_text().contains("Not a directory [ENOTDIR]"), "{}", ran.stderr_text());
}

#[test]
fn an_empty_list_is_nothing_to_do() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("f"), "f");
    for empty in ["", "\n\r\n"] {
        let listed =
            |args: &[&str]| copy(&src, &dst, args).arg("--files-from").arg("-").input(empty).run();
        let ran = listed(&[]).assert_exit_code(0);
        assert!(ran.stderr_text().contains("nothing to do"), "{}", ran.stderr_text());
        assert_eq!(listed(&["-q"]).assert_exit_code(0).stderr_text(), "");
        listed(&["--error-on-no-transfer"]).assert_exit_code(9);
        let submitted = |args: &[&str]| {
            let submit = cluster.ctl(["sync", "submit", "--files-from", "-"]).args(args);
            submit.arg(&src).arg(&dst).input(empty).run()
        };
        assert!(submitted(&[]).assert_exit_code(0).stderr_text().contains("nothing to do"));
        // A script that takes the id from standard output is to see why there is none.
        let quiet = submitted(&["-q"]).assert_exit_code(0);
        assert!(
            quiet.stdout_text().is_empty() && quiet.stderr_text().contains("nothing to do"),
            "{}",
            quiet.stderr_text()
        );
        assert_eq!(submitted(&["-q", "--wait"]).assert_exit_code(0).stderr_text(), "");
        submitted(&["--wait"]).assert_exit_code(0);
        submitted(&["--wait", "--error-on-no-transfer"]).assert_exit_code(9);
        submitted(&["--error-on-no-transfer"]).assert_exit_code(2);
    }
    let all: Vec<SyncProgress> = serde_json::from_slice(&cluster.master.get("/sync").body).unwrap();
    assert!(all.is_empty() && !dst.join("f").exists(), "nothing was submitted: {all:?}");
}

#[test]
fn a_sync_that_transfers_nothing_exits_with_9_on_request() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("f"), "f");
    let submit = |args: &[&str]| {
        let submit = cluster.ctl(["sync", "submit", "--wait", "--error-on-no-transfer"]).args(args);
        submit.arg(&src).arg(&dst).run()
    };
    submit(&[]).assert_exit_code(0);
    let ran = submit(&[]).assert_exit_code(9);
    assert!(
        ran.stderr_text().contains("nothing was transferred   (exit 9)"),
        "{}",
        ran.stderr_text()
    );
    // What failed counts more than what was not transferred.
    cluster.ctl(["sync", "submit", "--wait"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    for (names, code) in [("f\nnone\n", 23), ("none\n", 7)] {
        let missing = cluster.ctl([
            "sync",
            "submit",
            "--wait",
            "--error-on-no-transfer",
            "--files-from",
            "-",
        ]);
        missing.arg(&src).arg(&dst).input(names).run().assert_exit_code(code);
    }
    // A deletion transfers nothing.
    write_file(dst.join("extra"), "x");
    submit(&["--delete"]).assert_exit_code(9);
    assert!(!dst.join("extra").exists());
}
