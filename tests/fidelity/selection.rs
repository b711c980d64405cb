//! What of a source is copied: filters and lists.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::process::User;
use crate::support::tree::{
    chmod, make_dir, random_bytes, set_mtime, write_file, write_many_files,
};
use crate::{MIB, assert_full_outcome, paths_of};
use serde_json::json;
use std::path::Path;

fn write_project(src: &Path) {
    for path in [
        "src/main.c",
        "src/main.o",
        "src/keep.o",
        "build/out/main",
        "docs/build/page",
        "notes.txt",
        "a.log",
        "logs/b.log",
        "logs/important.log",
    ] {
        write_file(src.join(path), path);
    }
}

#[test]
fn patterns_follow_gitignore_and_the_last_match_decides() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    write_project(&src);
    let cases: [(&[&str], &[&str]); 5] = [
        // Anchored, and a folder only.
        (
            &["--exclude", "/build/", "--exclude", "*.o", "--exclude", "*.log"],
            &["docs", "docs/build", "docs/build/page", "logs", "notes.txt", "src", "src/main.c"],
        ),
        (
            &[
                "--exclude",
                "*.o",
                "--include",
                "keep.o",
                "--exclude",
                "build",
                "--exclude",
                "*.log",
            ],
            &["docs", "logs", "notes.txt", "src", "src/keep.o", "src/main.c"],
        ),
        // The other way round: what takes in comes too early.
        (
            &[
                "--include",
                "keep.o",
                "--exclude",
                "*.o",
                "--exclude",
                "build",
                "--exclude",
                "*.log",
            ],
            &["docs", "logs", "notes.txt", "src", "src/main.c"],
        ),
        // A folder that is left out is not entered: nothing in it can be taken in.
        (
            &[
                "--exclude",
                "logs",
                "--include",
                "important.log",
                "--exclude",
                "/*/*",
                "--exclude",
                "/?.*",
            ],
            &["build", "docs", "notes.txt", "src"],
        ),
        (&["--exclude", "*", "--include", "/src", "--include", "**/*.c"], &["src", "src/main.c"]),
    ];
    for (number, (args, wanted)) in cases.into_iter().enumerate() {
        let dst = all.join(number.to_string());
        let submit = cluster.ctl(["sync", "submit", "--wait"]).args(args);
        submit.arg(&src).arg(&dst).run().assert_exit_code(0);
        assert_eq!(paths_of(&dst), wanted, "{args:?}");
    }
    let list = cluster.home().join("patterns");
    write_file(&list, "# comments count as such\n\n*.o\n!keep.o\nbuild/\n*.log\n");
    let dst = all.join("from a file");
    let submit = cluster.ctl(["sync", "submit", "--wait", "--exclude-from"]).arg(&list);
    submit.arg(&src).arg(&dst).run().assert_exit_code(0);
    let wanted = ["docs", "logs", "notes.txt", "src", "src/keep.o", "src/main.c"];
    assert_eq!(paths_of(&dst), wanted);
}

#[test]
fn an_absolute_path_as_a_pattern_is_refused_with_the_relative_one() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("tmp/x"), "x");
    let absolute = src.join("tmp/").display().to_string();
    let wanted = "write `/tmp/`";
    let submit = cluster.ctl(["sync", "submit", "--exclude", &absolute]).arg(&src).arg(&dst).run();
    assert!(submit.assert_exit_code(2).stderr_text().contains(wanted));
    let copy = cluster.ctl(["copy", "--exclude", &absolute]).arg(&src).arg(&dst).run();
    assert!(copy.assert_exit_code(2).stderr_text().contains(wanted));
    let request = json!({
        "source_path": src, "destination_path": dst, "options": {"filter": {"rules": ["*.o", absolute]}},
    });
    let named = write_file(cluster.home().join("request.json"), request.to_string());
    let submit = cluster.ctl(["sync", "submit", "--file"]).arg(&named).run().assert_exit_code(2);
    assert!(
        submit.stderr_text().contains(wanted) && submit.stderr_text().contains("rules/1"),
        "{}",
        submit.stderr_text()
    );
    assert!(paths_of(&dst).is_empty());
}

#[test]
fn an_excluded_directory_is_not_entered() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_file(src.join("closed/inside"), "x");
    write_file(src.join("open"), "x");
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    chmod(src.join("closed"), 0o000);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    let sync = cluster.run_sync_with(&src, &dst, json!({"filter": {"rules": ["closed"]}}));
    chmod(src.join("closed"), 0o755);
    assert_full_outcome(&sync);
    assert_eq!(paths_of(&dst), ["open"]);
    assert_eq!(sync.files_total, 1, "{sync:#?}");
}

#[test]
fn files_are_selected_by_size_and_age() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    for (name, size) in [("empty", 0), ("small", 999), ("middle", 1_000), ("large", 3 * MIB)] {
        set_mtime(
            write_file(src.join("by size").join(name), random_bytes(size, 1)),
            1_600_000_000,
            0,
        );
    }
    for (name, time) in [("old", 1_000_000_000), ("new", 1_600_000_000)] {
        set_mtime(write_file(src.join("by age").join(name), "x"), time, 0);
    }
    let cases: [(&[&str], &str, &[&str]); 6] = [
        (&["--min-size", "1000"], "by size", &["large", "middle"]),
        (&["--max-size", "999"], "by size", &["empty", "small"]),
        (&["--min-size", "1", "--max-size", "2MiB"], "by size", &["middle", "small"]),
        (&["--newer-than", "2010-01-01"], "by age", &["new"]),
        (&["--older-than", "2010-01-01"], "by age", &["old"]),
        (&["--newer-than", "2001-01-01T00:00:00Z"], "by age", &["new", "old"]),
    ];
    for (number, (args, from, wanted)) in cases.into_iter().enumerate() {
        let dst = all.join(number.to_string());
        let submit = cluster.ctl(["sync", "submit", "--wait"]).args(args);
        submit.arg(src.join(from)).arg(&dst).run().assert_exit_code(0);
        assert_eq!(paths_of(&dst), wanted, "{args:?}");
    }
}

#[test]
fn a_listed_directory_is_copied_with_its_contents_when_recursive() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    write_many_files(&src.join("whole"), 150, 100);
    write_file(src.join("whole/large"), random_bytes(3 * MIB, 1));
    write_file(src.join("beside"), "x");
    write_file(src.join("deep/er/file"), "x");
    write_file(src.join("deep/er/also"), "x");
    write_file(src.join("deep/not this"), "x");
    let names = b"whole\0deep/er\0whole/000/00003\0deep/er/file\0";
    let dst = all.join("recursive");
    let submit = cluster.ctl(["sync", "submit", "--wait", "-o", "json", "--files-from", "-", "-0"]);
    let submit = submit.arg("--recursive").arg(&src).arg(&dst).input(&names[..]);
    let sync = submit.run().assert_exit_code(0).json();
    let mut wanted = paths_of(&src);
    wanted.retain(|path| path != "beside" && path != "deep/not this");
    assert_eq!(paths_of(&dst), wanted);
    assert_eq!(sync["files_done"], 153, "what is named twice counts once: {sync:#}");

    let dst = all.join("filtered");
    let more = json!({
        "file_list": ["whole", "beside"],
        "options": {"recursive": true, "filter": {"rules": ["*00003", "/beside"]}},
    });
    let id = cluster.submit_with(&src, &dst, more);
    assert_full_outcome(&cluster.await_end(&id));
    assert!(dst.join("whole/000/00002").exists() && !dst.join("whole/000/00003").exists());
}

#[test]
fn temporary_files_of_longhaul_in_a_source_are_excluded_and_reported_once() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let part = format!(".ctl-{:016x}-{:016x}-{:016x}.part", 0, 2, 3);
    write_many_files(&src, 5, 10);
    write_file(src.join("000").join(&part), "half of it");
    let submit = cluster.ctl(["sync", "submit", "--wait", "--verify", "readback"]);
    let printed = submit.arg(&src).arg(&dst).run().assert_exit_code(0).stderr_text();
    let reported = printed.lines().filter(|line| line.contains("unfinished")).collect::<Vec<_>>();
    assert_eq!(reported.len(), 1, "{printed}");
    assert!(reported[0].contains("1 entry") && reported[0].contains(&part), "{printed}");
    assert!(!paths_of(&dst).iter().any(|path| path.ends_with(&part)));
}
