//! What would be done, and what became of each file.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::tree::{
    chmod, make_dir, make_symlink, os_name, random_bytes, set_mtime, write_file, write_many_files,
};
use crate::{MIB, assert_full_outcome, metadata_by_path};
use longhaul::wire::entry_report::EntryAction;
use longhaul::wire::sync::SyncProgress;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What was (or would be) done with each path that is no directory. A directory may be made, or get its
/// time, on the way to what is in it: then nothing is left to be done when its turn comes.
fn actions_by_path(cluster: &Cluster, sync: &SyncProgress, src: &Path) -> BTreeMap<String, Value> {
    let mut actions = records_by_path(cluster, sync.request_id.as_str(), "");
    actions.retain(|path, _| fs::symlink_metadata(src.join(path)).is_ok_and(|m| !m.is_dir()));
    actions.into_iter().map(|(path, record)| (path, record["action"].clone())).collect()
}

/// A destination that differs from its source in every way.
fn trees_with_differences() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_many_files(&src, 40, 500);
    for (path, size) in [("updated", 700), ("updated large", 3 * MIB), ("large same", 4 * MIB)] {
        write_file(src.join(path), random_bytes(size, 1));
    }
    write_file(src.join("mode"), "mode");
    make_symlink(src.join("link"), "here");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    set_mtime(write_file(src.join("updated"), random_bytes(800, 2)), 1_700_000_000, 0);
    set_mtime(write_file(src.join("updated large"), random_bytes(3 * MIB, 2)), 1_700_000_000, 0);
    chmod(src.join("mode"), 0o600);
    write_file(src.join("new"), random_bytes(900, 3));
    write_file(src.join("new large"), random_bytes(5 * MIB, 3));
    write_file(src.join("new folder/new"), "x");
    fs::hard_link(src.join("new"), src.join("new folder/same as new")).unwrap();
    (cluster, src, dst)
}

#[test]
fn a_dry_run_changes_nothing_and_counts_what_a_real_run_does() {
    let (cluster, src, dst) = trees_with_differences();
    let (here, there) = (metadata_by_path(&src), metadata_by_path(&dst));
    for compare in ["size_time", "checksum"] {
        let dry = json!({"dry_run": true, "compare": compare});
        let dry = cluster.run_sync_with(&src, &dst, dry);
        assert_full_outcome(&dry);
        assert_eq!(metadata_by_path(&dst), there, "nothing changed");
        assert_eq!(metadata_by_path(&src), here);
        assert_eq!(dry.sent_bytes, 0, "{dry:#?}");
        let counts = |action| dry.actions.get(&action).map_or(0, |t| t.count);
        assert_eq!(counts(EntryAction::Update), 2, "{:#?}", dry.actions);
        assert_eq!(counts(EntryAction::Create), 5, "4 files, 1 folder: {:#?}", dry.actions);
    }
    let dry = cluster.run_sync_with(&src, &dst, json!({"dry_run": true, "record": true}));
    let real = cluster.run_sync_with(&src, &dst, json!({"record": true}));
    assert_full_outcome(&real);
    assert_eq!(actions_by_path(&cluster, &dry, &src), actions_by_path(&cluster, &real, &src));
    let after = cluster.run_sync_with(&src, &dst, json!({"dry_run": true}));
    assert_eq!(after.actions.keys().collect::<Vec<_>>(), [&EntryAction::Skip], "{after:#?}");
}

#[test]
fn a_dry_run_does_not_create_a_missing_destination() {
    let (cluster, src, dst) = trees_with_differences();
    let dst = dst.join("not/there");
    let sync = cluster.run_sync_with(&src, &dst, json!({"dry_run": true}));
    assert_full_outcome(&sync);
    assert!(!dst.exists() && !dst.parent().unwrap().exists());
    assert!(!sync.actions.contains_key(&EntryAction::Skip), "everything would be new: {sync:#?}");
}

#[test]
fn a_dry_run_can_name_every_path() {
    let (cluster, src, dst) = trees_with_differences();
    write_file(dst.join("extra"), "x");
    let there = metadata_by_path(&dst);
    let ran = cluster
        .ctl(["sync", "submit", "--wait", "-n", "-i", "--delete"])
        .arg(&src)
        .arg(&dst)
        .run()
        .assert_exit_code(0);
    assert_eq!(metadata_by_path(&dst), there);
    let out = ran.stdout_text();
    let line = |path: &str| {
        let ends = |line: &&str| line.trim_end().ends_with(path);
        out.lines().find(ends).unwrap_or_else(|| panic!("{path} in {out}"))
    };
    for (path, action) in [
        ("updated", "update"),
        ("updated large", "update"),
        ("mode", "metadata"),
        ("new large", "create"),
        ("new folder/new", "create"),
        ("extra", "delete"),
    ] {
        assert!(line(path).contains(action), "{}", line(path));
    }
    assert!(!out.contains("large same") && !out.contains("00007"), "no news: {out}");
    // `ctl copy` has the same.
    let ran = cluster.ctl(["copy", "-n", "-i"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert!(ran.stdout_text().contains("new folder/new"), "{}", ran.stdout_text());
    assert_eq!(metadata_by_path(&dst), there);
}

/// The records of a sync, by path.
fn records_by_path(cluster: &Cluster, id: &str, query: &str) -> BTreeMap<String, Value> {
    let text = cluster.master.get(&format!("/sync/{id}/files{query}")).text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = lines.len();
    let all: BTreeMap<String, Value> =
        lines.into_iter().map(|r| (r["path"].as_str().unwrap().to_owned(), r)).collect();
    assert_eq!(all.len(), count, "each path once: {text}");
    all
}

#[test]
fn the_outcome_of_each_file_is_recorded_on_request() {
    let (mut cluster, src, dst) = trees_with_differences();
    write_file(dst.join("extra"), "x");
    // Fails: a directory that holds something is in the way.
    write_file(src.join("in the way"), "x");
    let blocked = make_dir(dst.join("in the way"));
    write_file(blocked.join("precious"), "x");
    let sync = cluster.run_sync_with(&src, &dst, json!({"record": true}));
    let id = sync.request_id.to_string();
    let paths = |state: &str| -> BTreeSet<String> {
        records_by_path(&cluster, &id, &format!("?state={state}")).into_keys().collect()
    };
    assert_eq!(paths("failed").into_iter().collect::<Vec<_>>(), ["in the way"]);
    let done = paths("done");
    for path in ["updated", "updated large", "new", "new large", "new folder/new"] {
        assert!(done.contains(path), "{path} in {done:?}");
    }
    let skipped = paths("skipped");
    assert!(skipped.contains("large same") && skipped.contains("000/00007"), "{skipped:?}");
    assert!(paths("deleted").is_empty());
    let files = records_by_path(&cluster, &id, "");
    let failed = &files["in the way"];
    let error = &failed["error"];
    assert_eq!((&error["side"], &error["errno"]), (&json!("destination"), &json!("EISDIR")));
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{failed:#}");
    assert_eq!(error["path"], serde_json::Value::Null, "the record names the path");
    assert_eq!(files["updated large"]["bytes"], 3 * MIB, "{:#}", files["updated large"]);
    assert_eq!(files["updated large"]["action"], "update");
    let ran = cluster.ctl(["sync", "files", &id, "--state", "failed"]).run().assert_exit_code(0);
    assert!(
        ran.stdout_text().contains("in the way") && !ran.stdout_text().contains("updated"),
        "{}",
        ran.stdout_text()
    );
    // It survives a restart, and ends with the sync.
    cluster.master.restart();
    assert_eq!(records_by_path(&cluster, &id, ""), files);
    assert!(spooled_bytes(&cluster) > 0);
    cluster.ctl(["sync", "delete", &id]).run().assert_exit_code(0);
    let answer = cluster.master.get(&format!("/sync/{id}/files"));
    assert_eq!(answer.status, 404, "{}", answer.text());
    crate::support::await_true("nothing is left of it", || spooled_bytes(&cluster) == 0);
}

/// How many bytes of records the master keeps.
fn spooled_bytes(cluster: &Cluster) -> u64 {
    let entries = walkdir::WalkDir::new(cluster.home().join("state")).into_iter();
    let records = entries.filter_map(Result::ok).map(walkdir::DirEntry::into_path);
    let records = records.filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    // The audit log stays.
    let records = records.filter(|path| path.file_name().is_some_and(|name| name != "audit.jsonl"));
    records.map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum()
}

#[test]
fn without_record_nothing_is_stored_and_the_reply_explains_it() {
    let (cluster, src, dst) = trees_with_differences();
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    let answer = cluster.master.get(&format!("/sync/{}/files", sync.request_id));
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    let id = sync.request_id.to_string();
    let ran = cluster.ctl(["sync", "files", &id]).run();
    assert_ne!(ran.code, Some(0));
    assert!(ran.stderr_text().contains("--record"), "it says what to do: {}", ran.stderr_text());
}

#[test]
fn unusual_names_are_recorded_without_ambiguity() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for odd in [&b"new\nline"[..], b"not utf-8 \xff", b"not utf-8 \xfe"] {
        write_file(src.join(os_name(odd)), "x");
    }
    let sync = cluster.run_sync_with(&src, &dst, json!({"record": true}));
    assert_full_outcome(&sync);
    let text = cluster.master.get(&format!("/sync/{}/files", sync.request_id)).text();
    let records: Vec<longhaul::wire::entry_report::FileRecord> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: BTreeSet<Vec<u8>> = records.into_iter().map(|r| r.path.0).collect();
    for odd in [&b"new\nline"[..], b"not utf-8 \xff", b"not utf-8 \xfe"] {
        assert!(names.contains(odd), "{odd:?} in {names:?}");
    }
}
