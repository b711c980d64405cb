//! Deletion of what the source does not have, and every reason not to delete.

mod guards;

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::process::User;
use crate::support::tools::{
    assert_trees_identical, rsync_differences, rsync_would_delete, run_or_panic,
};
use crate::support::tree::{
    chmod, make_dir, make_symlink, random_bytes, set_mtime, write_file, write_many_files,
};
use crate::{
    MIB, action_count, assert_full_outcome, assert_root, metadata_by_path, note_count, paths_of,
};
use longhaul::wire::entry_report::EntryAction;
use longhaul::wire::sync::{SyncOutcome, SyncProgress};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn write_hundred_files(root: &Path) {
    for i in 0..100 {
        write_file(root.join(format!("f{i:02}")), format!("{i}"));
    }
}

/// A mirror of a hundred files, made with `--delete`.
fn mirrored_tree() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hundred_files(&src);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    (cluster, src, dst)
}

fn remove_numbered_files(src: &Path, numbers: impl IntoIterator<Item = usize>) {
    for i in numbers {
        fs::remove_file(src.join(format!("f{i:02}"))).unwrap();
    }
}

#[test]
fn size_and_age_limits_select_what_is_copied_but_not_what_is_deleted_as_in_rsync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (sources, all) = cluster.add_source_and_destination();
    let src = make_dir(sources.join("src"));
    let fill = |root: &Path, names: &[(&str, usize)]| {
        for (name, size) in names {
            set_mtime(write_file(root.join(name), random_bytes(*size, 1)), 1_600_000_000, 0);
        }
    };
    fill(
        &src,
        &[
            ("big", 9_000),
            ("small", 1),
            ("a.o", 1),
            ("dir/big", 9_000),
            ("new big", 9_000),
            ("new small", 1),
        ],
    );
    // What is old at the destination is left there as it is, or replaced: by size and name it shows.
    let old: &[(&str, usize)] = &[("big", 8_000), ("small", 2), ("a.o", 2), ("dir/big", 8_000)];
    let extra: &[(&str, usize)] =
        &[("x big", 9_000), ("x small", 1), ("x/big", 9_000), ("x/small", 1), ("x.o", 9_000)];
    let sizes: [&[&str]; 6] = [
        &["--max-size=5000"],
        &["--min-size=5000"],
        &["--max-size=5000", "--delete-excluded"],
        &["--min-size=5000", "--delete-excluded"],
        &["--max-size=5000", "--exclude=*.o"],
        &["--max-size=5000", "--exclude=*.o", "--delete-excluded"],
    ];
    for (number, args) in sizes.iter().enumerate() {
        let sides = ["rsync", "ctl"].map(|side| all.join(format!("{side} {number}")));
        for side in &sides {
            fill(side, old);
            fill(side, extra);
        }
        let (from, to) = (format!("{}/", src.display()), sides[0].display().to_string());
        run_or_panic(
            "rsync",
            ["-a", "--delete", &from, &to].into_iter().chain(args.iter().copied()),
        );
        let submit =
            cluster.ctl(["sync", "submit", "--wait", "--delete", "--max-delete-percent=100"]);
        submit.args(*args).arg(&src).arg(&sides[1]).run().assert_exit_code(0);
        let held = |side: &Path| -> Vec<(String, u64)> {
            let size = |path: String| (path.clone(), fs::metadata(side.join(path)).unwrap().len());
            paths_of(side).into_iter().filter(|p| side.join(p).is_file()).map(size).collect()
        };
        assert_eq!(held(&sides[1]), held(&sides[0]), "{args:?}");
    }
    // Ages, which rsync lacks, likewise.
    for args in [["--newer-than", "2030-01-01"], ["--older-than", "2010-01-01"]] {
        let dst = all.join(args[0]);
        fill(&dst, old);
        fill(&dst, extra);
        let submit =
            cluster.ctl(["sync", "submit", "--wait", "--delete", "--max-delete-percent=100"]);
        submit.args(args).arg(&src).arg(&dst).run().assert_exit_code(0);
        assert_eq!(paths_of(&dst), ["a.o", "big", "dir", "dir/big", "small"], "{args:?}");
        assert_eq!(fs::metadata(dst.join("big")).unwrap().len(), 8_000);
    }
}

#[test]
fn a_mirror_without_trash_keeps_an_earlier_trash_and_reports_it() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, [7]);
    let long = "n".repeat(255);
    write_file(dst.join(&long), "once");
    let with_trash = json!({"delete": {"trash": "old/bin"}});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, with_trash));
    let kept = |dst: &Path| paths_of(&dst.join("old"));
    let before = kept(&dst);
    assert_eq!(before.len(), 5, "{before:?}");
    remove_numbered_files(&src, [8]);
    for more in [1, 0] {
        let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {}}));
        assert_full_outcome(&sync);
        assert_eq!(action_count(&sync, EntryAction::Delete), more, "{sync:#?}");
        assert_eq!(kept(&dst), before);
        assert_eq!(note_count(&sync, &["trash of an earlier mirror"]), 1, "{:#?}", sync.warnings);
        let id = sync.request_id.to_string();
        let printed = cluster.ctl(["sync", "wait", &id]).run().assert_exit_code(0);
        assert!(
            printed.stderr_text().contains("trash of an earlier mirror left as it is"),
            "{}",
            printed.stderr_text()
        );
        assert!(printed.stderr_text().contains("old/bin"), "{}", printed.stderr_text());
    }
    // What is deleted twice by syncs of one id has room in the trash twice.
    for number in 0..2 {
        write_file(dst.join(&long), number.to_string());
        let options = json!({"delete": {"trash": "old/bin"}});
        let id =
            cluster.submit_with(&src, &dst, json!({"request_id": "nightly", "options": options}));
        assert_full_outcome(&cluster.await_end(&id));
        cluster.ctl(["sync", "delete", "nightly"]).run().assert_exit_code(0);
    }
    for (base, content) in [("nightly", "0"), ("nightly~1", "1")] {
        assert_eq!(
            fs::read_to_string(dst.join("old/bin").join(base).join(&long)).unwrap(),
            content
        );
    }
}

#[test]
fn a_mirror_waits_for_a_sync_that_writes_to_the_same_destination() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    let (one, two) = (make_dir(src.join("one")), make_dir(src.join("two")));
    write_many_files(&two, 50, 100);
    let to = dst.join("shared");
    let first = cluster.submit_and_await_partial(&one, &to, (64, "8MiB/s"), json!({}));
    let more = json!({"options": {"delete": {"max_percent": 100}}});
    let second = cluster.submit_with(&two, &to, more);
    let waiting = cluster.progress(&second);
    assert_eq!(waiting.state.as_str(), "QUEUED", "{waiting:#?}");
    let reason = format!("waits for sync {first}, which writes to {}", to.display());
    assert_eq!(waiting.reason, Some(reason));
    cluster.lift_bandwidth_limit(&first);
    let (first, second) = (cluster.await_end(&first), cluster.await_end(&second));
    assert_full_outcome(&first);
    assert_full_outcome(&second);
    assert!(second.started_at >= first.ended_at, "{first:#?} {second:#?}");
    assert_trees_identical(&two, &to);
}

#[test]
fn the_plain_case_deletes_what_rsync_would() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_many_files(&src, 500, 100);
    write_file(src.join("stays/x"), "x");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    fs::remove_dir_all(src.join("001")).unwrap();
    remove_some_files(&src);
    write_many_files(&dst.join("extra/deeper"), 20, 100);
    make_dir(dst.join("stays/empty"));
    let outside = make_dir(cluster.data_path("outside"));
    write_file(outside.join("precious"), "precious");
    make_symlink(dst.join("stays/out"), &outside);
    make_symlink(dst.join("extra/out"), &outside);
    fs::hard_link(dst.join("000/00001"), dst.join("extra/one more name")).unwrap();
    let wanted = rsync_would_delete(&src, &dst);
    assert!(wanted.len() > 120, "{}", wanted.len());

    let id = cluster.submit_with(&src, &dst, json!({"options": {"delete": {}, "record": true}}));
    let sync = cluster.await_end(&id);
    assert_full_outcome(&sync);
    assert_trees_identical(&src, &dst);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"precious", "never through a link");
    let text = cluster.master.get(&format!("/sync/{id}/files?state=deleted")).text();
    let record = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let mut deleted: Vec<String> =
        text.lines().map(|line| record(line)["path"].as_str().unwrap().to_owned()).collect();
    deleted.sort();
    assert_eq!(deleted, wanted);
    assert_eq!(
        action_count(&sync, EntryAction::Delete),
        wanted.len() as u64,
        "{:#?}",
        sync.actions
    );
}

fn remove_some_files(src: &Path) {
    for i in [0, 7, 99] {
        fs::remove_file(src.join(format!("000/{i:05}"))).unwrap();
    }
}

#[test]
fn many_extra_names_are_deleted_among_names_that_stay() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    make_dir(src.join("wide"));
    make_dir(dst.join("wide"));
    // More than any page holds; the extra ones before, between and behind the others.
    for i in 0..6_000 {
        if i % 2 == 0 {
            fs::write(src.join(format!("wide/{i:05}")), "").unwrap();
        }
        fs::write(dst.join(format!("wide/{i:05}")), "").unwrap();
    }
    for name in ["!first", "~last"] {
        write_file(dst.join("wide").join(name), "");
    }
    assert_full_outcome(&cluster.run_sync_with(
        &src,
        &dst,
        json!({"delete": {"max_percent": 100}}),
    ));
    assert_trees_identical(&src, &dst);
}

#[test]
fn deleted_entries_can_be_moved_to_a_trash() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 3..5);
    write_file(dst.join("folder/deeper/extra"), "extra");
    let options = json!({"delete": {"trash": "old things"}});
    let sync = cluster.run_sync_with(&src, &dst, options.clone());
    assert_full_outcome(&sync);
    let trash = dst.join("old things").join(sync.request_id.to_string());
    let moved = ["f03", "f04", "folder", "folder/deeper", "folder/deeper/extra"];
    assert_eq!(paths_of(&trash), moved);
    assert_eq!(fs::read(trash.join("folder/deeper/extra")).unwrap(), b"extra");
    assert!(!dst.join("folder").exists() && !dst.join("f03").exists());
    // The trash itself is no extra folder, in this run and in the next.
    let again = cluster.run_sync_with(&src, &dst, options);
    assert_full_outcome(&again);
    assert_eq!(action_count(&again, EntryAction::Delete), 0, "{again:#?}");
    assert_eq!(paths_of(&trash), moved);
}

#[test]
fn excluded_entries_are_protected_unless_delete_excluded_is_set() {
    let (cluster, src, dst) = mirrored_tree();
    for tree in [&src, &dst] {
        write_file(tree.join("cache/in it.tmp"), "x");
        write_file(tree.join("kept.log"), "here and there");
    }
    write_file(dst.join("cache/there only"), "x");
    write_file(dst.join("there only.log"), "x");
    write_file(dst.join("extra"), "x");
    let filter = json!({"rules": ["*.log", "/cache/"]});
    let sync = cluster.run_sync_with(&src, &dst, json!({"filter": filter, "delete": {}}));
    assert_full_outcome(&sync);
    assert!(!dst.join("extra").exists());
    let protected =
        ["cache/in it.tmp", "cache/there only", "there only.log", "kept.log"].map(|p| dst.join(p));
    assert!(protected.iter().all(|path| path.exists()), "{sync:#?}");
    let options = json!({"filter": filter, "delete": {"delete_excluded": true}});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, options));
    assert!(protected.iter().all(|path| !path.exists()), "{:?}", paths_of(&dst));
    assert_eq!(paths_of(&dst).len(), 100);
}

#[test]
fn a_dry_run_of_a_mirror_lists_deletions_and_deletes_nothing() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..10);
    write_file(dst.join("folder/extra"), "x");
    set_mtime(write_file(src.join("f50"), "changed"), 1_700_000_000, 0);
    let before = metadata_by_path(&dst);
    let options = json!({"delete": {}, "dry_run": true, "record": true});
    let sync = cluster.run_sync_with(&src, &dst, options);
    assert_full_outcome(&sync);
    assert_eq!(metadata_by_path(&dst), before, "nothing changed");
    assert_eq!(action_count(&sync, EntryAction::Delete), 12, "{:#?}", sync.actions);
    assert_eq!(action_count(&sync, EntryAction::Update), 1, "{:#?}", sync.actions);
    // What a limit would stop is said before.
    let options = json!({"delete": {"max": 11}, "dry_run": true});
    let sync = cluster.run_sync_with(&src, &dst, options);
    assert!(
        sync.reason.as_deref().is_some_and(|r| r.contains("would refuse to delete")),
        "{sync:#?}"
    );
    assert_eq!(metadata_by_path(&dst), before, "nothing changed");
}

#[test]
fn without_delete_nothing_is_deleted() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..10);
    write_file(dst.join("extra/file"), "x");
    let before = paths_of(&dst);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_eq!(paths_of(&dst), before);
}

#[test]
fn entries_that_changed_their_type_are_mirrored() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src.join("kept"), 20, 10);
    write_file(src.join("file to folder"), "x");
    make_symlink(src.join("link to folder"), "kept");
    run_or_panic("mkfifo", [src.join("fifo to file")]);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    for name in ["file to folder", "link to folder", "fifo to file"] {
        fs::remove_file(src.join(name)).unwrap();
    }
    write_file(src.join("file to folder/x"), random_bytes(3 * MIB, 1));
    write_file(src.join("link to folder/y"), "y");
    write_file(src.join("fifo to file"), "z");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    assert_eq!(rsync_differences(&src, &dst), "");
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_mirror_continues_after_an_agent_is_killed_during_the_deletion() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hundred_files(&src);
    write_many_files(&dst.join("extra"), 4_000, 10);
    let more = json!({"options": {"delete": {"max_percent": 100}}});
    let id = cluster.submit_with(&src, &dst, more);
    let left =
        || walkdir::WalkDir::new(dst.join("extra")).into_iter().filter_map(Result::ok).count();
    crate::support::await_true("something is deleted", || left() < 4_041);
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    cluster.master.restart();
    for name in ["a", "b"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    assert_full_outcome(&cluster.await_end(&id));
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_mirror_replaces_a_non_empty_directory_and_a_plain_sync_fails_on_it() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (storage, all) = cluster.add_source_and_destination();
    let src = storage.join("tree");
    // What comes in the place of directories: a file, a link, a FIFO, a file of several ranges, an empty one.
    let names = ["file", "link", "fifo", "large", "empty"];
    let prepare = |dst: &Path| {
        let _ = fs::remove_dir_all(&src);
        make_dir(&src);
        write_many_files(&src.join("others"), 40, 10);
        for name in names {
            write_file(src.join(name).join("a"), "1");
            write_file(src.join(name).join("deeper/b"), "2");
        }
        assert_full_outcome(&cluster.run_sync_with(&src, dst, json!({"delete": {}})));
        names.iter().for_each(|name| fs::remove_dir_all(src.join(name)).unwrap());
        write_file(src.join("file"), "now a file");
        make_symlink(src.join("link"), "file");
        run_or_panic("mkfifo", [src.join("fifo")]);
        write_file(src.join("large"), random_bytes(3 * MIB, 7));
        write_file(src.join("empty"), "");
    };
    let dst = make_dir(all.join("plain"));
    prepare(&dst);
    let before = paths_of(&dst);
    for options in [json!({}), json!({"delete": {"max": 3}})] {
        let sync = cluster.run_sync_with(&src, &dst, options.clone());
        assert_eq!((sync.outcome, sync.files_failed), (Some(SyncOutcome::Partial), 5), "{sync:#?}");
        assert!(sync.errors.iter().all(|e| e.errno.as_deref() == Some("EISDIR")), "{sync:#?}");
        assert!(sync.errors[0].to_string().contains("`--delete`"), "{:?}", sync.errors[0]);
        assert_eq!(paths_of(&dst), before, "{options}");
    }
    let dry = cluster.run_sync_with(&src, &dst, json!({"delete": {}, "dry_run": true}));
    assert_eq!((dry.files_failed, action_count(&dry, EntryAction::Create)), (0, 5), "{dry:#?}");
    assert_eq!(action_count(&dry, EntryAction::Delete), 20, "{:#?}", dry.actions);
    assert_eq!(paths_of(&dst), before);
    let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {"max": 20}}));
    assert_full_outcome(&sync);
    assert_eq!((sync.files_done, action_count(&sync, EntryAction::Delete)), (5, 20), "{sync:#?}");
    assert_eq!(
        action_count(&sync, EntryAction::Create),
        5,
        "as the dry run said: {:#?}",
        sync.actions
    );
    assert_trees_identical(&src, &dst);
    assert_eq!(cluster.run_sync_with(&src, &dst, json!({"delete": {}})).files_done, 0);

    let dst = make_dir(all.join("trashed"));
    prepare(&dst);
    let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {"trash": ".trash"}}));
    assert_full_outcome(&sync);
    let kept = dst.join(".trash").join(sync.request_id.to_string());
    for name in names {
        assert_eq!(fs::read(kept.join(name).join("deeper/b")).unwrap(), b"2", "{name}");
        assert!(!fs::symlink_metadata(dst.join(name)).unwrap().is_dir(), "{name}");
    }
}
