//! `ctl copy`, and `ctl sync verify` without a master.

use super::*;

#[test]
fn copy_needs_no_setup_and_a_second_run_transfers_nothing() {
    let home = home();
    let (src, dst) = (home.path().join("src"), home.path().join("new/dst"));
    write_unusual_tree(&src);
    write_many_files(&src.join("many"), 300, 2_000);
    write_file(src.join("large"), random_bytes(70 << 20, 2));
    let run = || {
        ctl(["copy"])
            .arg(&src)
            .arg(&dst)
            .args(["-o", "json", "--chunk-size-mb", "4"])
            .run()
            .assert_exit_code(0)
    };
    let first = run().json();
    assert_eq!(first["state"], "COMPLETED");
    assert_same(&src, &dst, exact_comparison());
    let there = census(&src);
    assert_eq!(
        (&first["files_done"], &first["transferred_bytes"]),
        (&json!(there.files), &json!(there.bytes))
    );
    let second = run().json();
    assert_eq!((&second["files_done"], &second["transferred_bytes"]), (&json!(0), &json!(0)));
    assert_eq!(second["files_skipped"], json!(there.files));
    assert_same(&src, &dst, exact_comparison());
    // For people: a result line, and progress elsewhere.
    let ran = ctl(["copy"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert!(
        ran.stdout_text().contains("COMPLETED") && ran.stdout_text().contains("0 copied"),
        "{}",
        ran.stdout_text()
    );
    assert_no_control_characters(&ran);
    let ran = ctl(["copy", "-q"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert_eq!(ran.stderr_text(), "");
}

#[test]
fn copy_accepts_relative_paths_files_lists_and_unusual_names() {
    let home = home();
    let src = make_dir(home.path().join("src"));
    write_file(src.join("-rf"), "minus");
    write_file(src.join("b\n"), "newline");
    let at_home = |args: &[&str]| {
        let mut command = ctl(args).command();
        command.current_dir(home.path());
        support::process::RunningCommand::start(command, Some(b"-rf\0")).finish(MAX_WAIT)
    };
    at_home(&["copy", "src", "dst"]).assert_exit_code(0);
    assert_same(&src, &home.path().join("dst"), exact_comparison());
    at_home(&["copy", "src/", "listed/", "--files-from", "-", "-0"]).assert_exit_code(0);
    assert_eq!(fs::read_dir(home.path().join("listed")).unwrap().count(), 1);
    // The advice is to copy the same again, not everything.
    write_file(home.path().join("a list"), b"-rf\0none\0");
    let ran =
        at_home(&["copy", "src", "listed", "--files-from", "a list", "-0"]).assert_exit_code(23);
    assert!(
        ran.stderr_text().contains("/listed --files-from 'a list' -0 "),
        "{}",
        ran.stderr_text()
    );
    at_home(&["copy", "src/-rf", "one"]).assert_exit_code(0);
    assert_same(&src.join("-rf"), &home.path().join("one"), exact_comparison());
    at_home(&["copy", "src", "src/below"]).assert_exit_code(2);
    at_home(&["copy", "src", "src"]).assert_exit_code(2);
    // A name that is no UTF-8, on the command line itself.
    let odd = std::ffi::OsStr::from_bytes(b"\xff src");
    let odd = make_dir(home.path().join(odd));
    write_file(odd.join("x"), "x");
    ctl(["copy"]).arg(&odd).arg(home.path().join("from odd")).run().assert_exit_code(0);
    assert_same(&odd, &home.path().join("from odd"), exact_comparison());
    // SRC may be a link to the tree; links in the tree stay links.
    let to = make_symlink(home.path().join("to src"), "src");
    ctl(["copy"]).arg(to).arg(home.path().join("through a link")).run().assert_exit_code(0);
    assert_same(&src, &home.path().join("through a link"), exact_comparison());
}

#[test]
fn copy_with_an_unreadable_file_exits_with_23_and_copies_the_others() {
    let home = home();
    let (src, dst) = (make_dir(home.path().join("src")), make_dir(home.path().join("dst")));
    write_many_files(&src, 20, 300);
    let secret = write_file(src.join("secret"), "s");
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    chmod(&secret, 0);
    let as_somebody = || ctl(["copy"]).arg(&src).arg(&dst).user(User::Ordinary, home.path());
    let ran = as_somebody().run().assert_exit_code(23);
    for part in ["EACCES", "secret", "(exit 23)"] {
        assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
    }
    assert!(
        ran.stdout_text().contains("FAILED (partial)") && ran.stdout_text().contains("20 copied"),
        "{}",
        ran.stdout_text()
    );
    let document = as_somebody().args(["-o", "json"]).run().assert_exit_code(23).json();
    assert_eq!((&document["state"], &document["outcome"]), (&json!("FAILED"), &json!("partial")));
    chmod(&secret, 0o600);
    as_somebody().run().assert_exit_code(0);
    assert_same(&src, &dst, ComparisonRules { owners: false, extra: false });
}

#[test]
fn an_interrupted_copy_leaves_a_part_file_that_the_next_run_uses() {
    let home = home();
    let (src, dst) = (make_dir(home.path().join("src")), home.path().join("dst"));
    let large = write_file(src.join("large"), random_bytes(160 << 20, 3));
    let mut run = ctl(["copy", "--bwlimit", "64MiB/s"]).arg(&src).arg(&dst).start();
    let arrived = || part_files(&dst).iter().map(|part| written_bytes(part)).sum::<u64>();
    run.await_stderr("it is in the middle", |_| arrived() > 0);
    run.signal(Signal::INT);
    let ran = run.finish(MAX_WAIT).assert_exit_code(130);
    assert!(ran.stderr_text().contains("ctl copy"), "how to go on: {}", ran.stderr_text());
    // What is not complete has no name.
    assert!(!dst.join("large").exists());
    assert!(arrived() < fs::metadata(large).unwrap().len());
    assert_eq!(part_files(&dst).len(), 1);
    ctl(["copy"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert_same(&src, &dst, exact_comparison());
    assert!(part_files(&dst).is_empty());
}

#[test]
fn a_destination_is_verified_against_a_list_without_a_master() {
    let home = home();
    let tree = make_dir(home.path().join("tree"));
    write_file(tree.join("right"), "x");
    write_file(tree.join("two\nlines"), "x");
    let digest = blake3::hash(b"x").to_hex();
    let list = format!("{digest}  right\n\\{digest}  two\\nlines\n");
    let list = write_file(home.path().join("list"), list);
    let verify = || ctl(["sync", "verify", "--manifest"]).arg(&list).arg(&tree);
    let ran = verify().run().assert_exit_code(0);
    assert!(
        ran.stdout.is_empty() && ran.stderr_text().contains("2 files"),
        "{}",
        ran.stderr_text()
    );
    write_file(tree.join("two\nlines"), "y");
    write_file(tree.join("more"), "");
    let ran = verify().run().assert_exit_code(23);
    let mut printed: Vec<String> = ran.stdout_text().lines().map(str::to_owned).collect();
    printed.sort();
    assert_eq!(printed, ["changed     two\\#012lines", "extra       more"]);
    assert!(ran.stderr_text().ends_with("(exit 23)\n"), "{}", ran.stderr_text());
    let ran = verify().args(["-o", "json", "--ignore-extra", "-q"]).run().assert_exit_code(23);
    assert_eq!(ran.json(), json!({"path": "two\nlines", "state": "changed"}));
    assert_eq!(ran.stderr_text(), "");
    let piped = ctl(["sync", "verify", "--manifest", "-"]).arg(&tree).arg("--ignore-extra");
    piped.input(format!("{digest}  right\n{digest}  gone\n")).run().assert_exit_code(23);
    ctl(["sync", "verify", "--manifest"])
        .arg(&list)
        .arg(home.path().join("none"))
        .run()
        .assert_exit_code(3);
    ctl(["sync", "verify", "--manifest"]).arg(&tree).arg(&tree).run().assert_exit_code(1);
    ctl(["sync", "verify", "a", "b", "--manifest"]).arg(&list).run().assert_exit_code(2);
}
