//! What would be done, and what became of each file.

use crate::support::cluster::{Cluster, On};
use crate::support::tree::{chmod, dir, file, link, many, name, noise, touch};
use crate::{MIB, assert_full, state_of};
use longhaul::wire::options::EntryAction;
use longhaul::wire::sync::SyncProgress;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What was (or would be) done with each path that is no directory. A directory may be made, or get its
/// time, on the way to what is in it: then nothing is left to be done when its turn comes.
fn actions(cluster: &Cluster, sync: &SyncProgress, src: &Path) -> BTreeMap<String, Value> {
    let mut actions = records(cluster, sync.request_id.as_str(), "");
    actions.retain(|path, _| fs::symlink_metadata(src.join(path)).is_ok_and(|m| !m.is_dir()));
    actions.into_iter().map(|(path, record)| (path, record["action"].clone())).collect()
}

/// A destination that differs from its source in every way.
fn differing() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    many(&src, 40, 500);
    for (path, size) in [("updated", 700), ("updated large", 3 * MIB), ("large same", 4 * MIB)] {
        file(src.join(path), noise(size, 1));
    }
    file(src.join("mode"), "mode");
    link(src.join("link"), "here");
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    touch(file(src.join("updated"), noise(800, 2)), 1_700_000_000, 0);
    touch(file(src.join("updated large"), noise(3 * MIB, 2)), 1_700_000_000, 0);
    chmod(src.join("mode"), 0o600);
    file(src.join("new"), noise(900, 3));
    file(src.join("new large"), noise(5 * MIB, 3));
    file(src.join("new folder/new"), "x");
    fs::hard_link(src.join("new"), src.join("new folder/same as new")).unwrap();
    (cluster, src, dst)
}

#[test]
fn a_dry_run_changes_nothing_and_counts_what_the_real_one_does() {
    let (cluster, src, dst) = differing();
    let (here, there) = (state_of(&src), state_of(&dst));
    for compare in ["size_time", "checksum"] {
        let dry = json!({"dry_run": true, "compare": compare});
        let dry = cluster.sync_with(&src, &dst, dry);
        assert_full(&dry);
        assert_eq!(state_of(&dst), there, "nothing changed");
        assert_eq!(state_of(&src), here);
        assert_eq!(dry.sent_bytes, 0, "{dry:#?}");
        let counts = |action| dry.actions.get(&action).map_or(0, |t| t.count);
        assert_eq!(counts(EntryAction::Update), 2, "{:#?}", dry.actions);
        assert_eq!(counts(EntryAction::Create), 5, "4 files, 1 folder: {:#?}", dry.actions);
    }
    let dry = cluster.sync_with(&src, &dst, json!({"dry_run": true, "record": true}));
    let real = cluster.sync_with(&src, &dst, json!({"record": true}));
    assert_full(&real);
    assert_eq!(actions(&cluster, &dry, &src), actions(&cluster, &real, &src));
    let after = cluster.sync_with(&src, &dst, json!({"dry_run": true}));
    assert_eq!(after.actions.keys().collect::<Vec<_>>(), [&EntryAction::Skip], "{after:#?}");
}

#[test]
fn a_dry_run_makes_no_destination_that_is_not_there() {
    let (cluster, src, dst) = differing();
    let dst = dst.join("not/there");
    let sync = cluster.sync_with(&src, &dst, json!({"dry_run": true}));
    assert_full(&sync);
    assert!(!dst.exists() && !dst.parent().unwrap().exists());
    assert!(!sync.actions.contains_key(&EntryAction::Skip), "everything would be new: {sync:#?}");
}

#[test]
fn a_dry_run_can_name_every_path() {
    let (cluster, src, dst) = differing();
    file(dst.join("extra"), "x");
    let there = state_of(&dst);
    let ran = cluster
        .ctl(["sync", "submit", "--wait", "-n", "-i", "--delete"])
        .arg(&src)
        .arg(&dst)
        .run()
        .exits(0);
    assert_eq!(state_of(&dst), there);
    let out = ran.out();
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
    let ran = cluster.ctl(["copy", "-n", "-i"]).arg(&src).arg(&dst).run().exits(0);
    assert!(ran.out().contains("new folder/new"), "{}", ran.out());
    assert_eq!(state_of(&dst), there);
}

/// The records of a sync, by path.
fn records(cluster: &Cluster, id: &str, query: &str) -> BTreeMap<String, Value> {
    let text = cluster.master.get(&format!("/sync/{id}/files{query}")).text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = lines.len();
    let all: BTreeMap<String, Value> =
        lines.into_iter().map(|r| (r["path"].as_str().unwrap().to_owned(), r)).collect();
    assert_eq!(all.len(), count, "each path once: {text}");
    all
}

#[test]
fn what_became_of_each_file_is_kept_where_that_is_asked_for() {
    let (mut cluster, src, dst) = differing();
    file(dst.join("extra"), "x");
    // Fails: a directory that holds something is in the way.
    file(src.join("in the way"), "x");
    let blocked = dir(dst.join("in the way"));
    file(blocked.join("precious"), "x");
    let sync = cluster.sync_with(&src, &dst, json!({"record": true}));
    let id = sync.request_id.to_string();
    let paths = |state: &str| -> BTreeSet<String> {
        records(&cluster, &id, &format!("?state={state}")).into_keys().collect()
    };
    assert_eq!(paths("failed").into_iter().collect::<Vec<_>>(), ["in the way"]);
    let done = paths("done");
    for path in ["updated", "updated large", "new", "new large", "new folder/new"] {
        assert!(done.contains(path), "{path} in {done:?}");
    }
    let skipped = paths("skipped");
    assert!(skipped.contains("large same") && skipped.contains("000/00007"), "{skipped:?}");
    assert!(paths("deleted").is_empty());
    let files = records(&cluster, &id, "");
    let failed = &files["in the way"];
    assert!(failed["message"].as_str().is_some_and(|m| !m.is_empty()), "{failed:#}");
    assert_eq!(files["updated large"]["bytes"], 3 * MIB, "{:#}", files["updated large"]);
    assert_eq!(files["updated large"]["action"], "update");
    let ran = cluster.ctl(["sync", "files", &id, "--state", "failed"]).run().exits(0);
    assert!(ran.out().contains("in the way") && !ran.out().contains("updated"), "{}", ran.out());
    // It survives a restart, and ends with the sync.
    cluster.master.restart();
    assert_eq!(records(&cluster, &id, ""), files);
    assert!(spooled(&cluster) > 0);
    cluster.ctl(["sync", "delete", &id]).run().exits(0);
    let answer = cluster.master.get(&format!("/sync/{id}/files"));
    assert_eq!(answer.status, 404, "{}", answer.text());
    crate::support::await_that("nothing is left of it", || spooled(&cluster) == 0);
}

/// How many bytes of records the master keeps.
fn spooled(cluster: &Cluster) -> u64 {
    let entries = walkdir::WalkDir::new(cluster.home().join("state")).into_iter();
    let records = entries.filter_map(Result::ok).map(walkdir::DirEntry::into_path);
    let records = records.filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    records.map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum()
}

#[test]
fn without_record_nothing_is_kept_and_that_is_said() {
    let (cluster, src, dst) = differing();
    let sync = cluster.sync_with(&src, &dst, json!({}));
    let answer = cluster.master.get(&format!("/sync/{}/files", sync.request_id));
    assert!((400..500).contains(&answer.status), "{}: {}", answer.status, answer.text());
    let id = sync.request_id.to_string();
    let ran = cluster.ctl(["sync", "files", &id]).run();
    assert_ne!(ran.code, Some(0));
    assert!(ran.err().contains("--record"), "it says what to do: {}", ran.err());
}

#[test]
fn odd_names_are_recorded_so_that_they_can_be_told_apart() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for odd in [&b"new\nline"[..], b"not utf-8 \xff", b"not utf-8 \xfe"] {
        file(src.join(name(odd)), "x");
    }
    let sync = cluster.sync_with(&src, &dst, json!({"record": true}));
    assert_full(&sync);
    let text = cluster.master.get(&format!("/sync/{}/files", sync.request_id)).text();
    let records: Vec<longhaul::wire::options::FileRecord> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: BTreeSet<Vec<u8>> = records.into_iter().map(|r| r.path.0).collect();
    for odd in [&b"new\nline"[..], b"not utf-8 \xff", b"not utf-8 \xfe"] {
        assert!(names.contains(odd), "{odd:?} in {names:?}");
    }
}
