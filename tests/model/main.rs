//! Random trees, random edits of both sides, random options: after every sync the destination is what
//! a plain model says. Through real processes, two agents on each side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod choice;
mod edit;
mod expected;
mod tree;

use choice::{Choice, TRASH};
use edit::{Edit, Editor};
use expected::{Expected, expected, is_in};
use longhaul::wire::options::{Action, FileRecord, FileState};
use longhaul::wire::sync::{Outcome, SyncProgress, SyncState};
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, On};
use tree::{Kind, Tree};

/// How long the search goes on where nothing else is asked for.
const ENOUGH: Duration = Duration::from_secs(30);

fn sync(cluster: &Cluster, editor: &Editor, choice: &Choice) -> SyncProgress {
    let more = json!({"chunk_size_mb": 1, "options": choice.options()});
    let id = cluster.submit_with(&editor.src, &editor.dst, more);
    cluster.ended(&id)
}

fn step(cluster: &Cluster, editor: &Editor, choice: &Choice) {
    editor.make_way(choice);
    let (source, before) = (tree::read(&editor.src), tree::read(&editor.dst));
    let wanted = expected(&source, &before, choice);
    let mut tried = None;
    if choice.dry_run {
        let done = sync(cluster, editor, choice);
        assert_ended(&done, &wanted, choice);
        assert_eq!(tree::read(&editor.dst), before, "a dry run changes nothing");
        assert_eq!(done.sent_bytes, 0, "{done:#?}");
        tried = (!wanted.stopped).then(|| counts(&done));
    }
    let real = Choice { dry_run: false, ..choice.clone() };
    let done = sync(cluster, editor, &real);
    assert_ended(&done, &wanted, &real);
    assert_eq!(tree::read(&editor.src), source, "a source is only read");
    let mut after = tree::read(&editor.dst);
    if choice.delete.is_some_and(|delete| delete.trash) {
        after.retain(|path, _| !is_in(path, TRASH));
    }
    let found = differing(&wanted, &after, choice);
    let story = || format!("{choice:#?}\nsource {source:#?}\ndestination {before:#?}\n{done:#?}");
    assert!(found.is_empty(), "{found:#?}\nunder {}", story());
    let (done_ones, skipped) = (done.files_done, done.files_skipped);
    assert_eq!(done_ones + skipped, done.files_total, "each is counted once: {done:#?}");
    if !wanted.sends {
        assert_eq!(done.sent_bytes, 0, "there was nothing to send, {}", story());
    }
    if choice.record {
        assert_records(cluster, &done, &wanted);
    }
    if choice.manifest {
        assert_manifest(cluster, &done, &wanted, &after);
    }
    if let Some(tried) = tried {
        assert_eq!(tried, counts(&done), "a dry run counts what is done then, {}", story());
    }
}

fn differing(wanted: &Expected, after: &Tree, choice: &Choice) -> Vec<String> {
    if choice.delete.is_some_and(|delete| delete.trash) {
        let mut tree = wanted.tree.clone();
        tree.retain(|path, _| !is_in(path, TRASH));
        let groups = wanted.groups.clone();
        return expected::differences(&Expected { tree, groups, ..Expected::default() }, after);
    }
    expected::differences(wanted, after)
}

fn counts(sync: &SyncProgress) -> BTreeMap<Action, u64> {
    let counts = sync.actions.iter().map(|(action, tally)| (*action, tally.count));
    counts.filter(|(_, count)| *count > 0).collect()
}

#[track_caller]
fn assert_ended(sync: &SyncProgress, wanted: &Expected, choice: &Choice) {
    assert_eq!((sync.files_failed, sync.dirs_failed), (0, 0), "{sync:#?}");
    if wanted.stopped && choice.dry_run {
        assert!(sync.reason.as_deref().is_some_and(|r| r.contains("would stop")), "{sync:#?}");
        return;
    }
    let (state, outcome) = match wanted.stopped {
        true => (SyncState::Failed, Outcome::DeleteStopped),
        false => (SyncState::Completed, Outcome::Full),
    };
    assert_eq!((sync.state, sync.outcome), (state, Some(outcome)), "{choice:#?} {sync:#?}");
    let deleted = sync.actions.get(&Action::Delete).map_or(0, |tally| tally.count);
    assert_eq!(deleted, wanted.deleted.len() as u64, "{:?} {sync:#?}", wanted.deleted);
}

/// What is kept of each file agrees with what became of it.
fn assert_records(cluster: &Cluster, sync: &SyncProgress, wanted: &Expected) {
    let text = cluster.master.get(&format!("/sync/{}/files", sync.request_id)).text();
    let lines = text.lines().map(|line| serde_json::from_str::<FileRecord>(line).unwrap());
    let mut deleted = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for record in lines {
        assert!(seen.insert((record.path.0.clone(), record.state == FileState::Deleted)), "{text}");
        match record.state {
            FileState::Deleted => drop(deleted.insert(record.path.0)),
            FileState::Failed => panic!("nothing failed: {record:#?}"),
            FileState::Done | FileState::Skipped => {}
        }
    }
    assert_eq!(deleted, wanted.deleted, "{text}");
    for path in &wanted.files {
        let listed = seen.contains(&(path.clone(), false));
        assert!(listed, "{} has no record: {text}", String::from_utf8_lossy(path));
    }
}

/// Every file of the source that is at the destination is listed, with what is there now.
fn assert_manifest(cluster: &Cluster, sync: &SyncProgress, wanted: &Expected, after: &Tree) {
    let body = cluster.master.get(&format!("/sync/{}/manifest", sync.request_id)).body;
    let mut listed: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let (line, escaped) = line.strip_prefix(b"\\").map_or((line, false), |rest| (rest, true));
        let digest = String::from_utf8(line[..64].to_vec()).unwrap();
        let mut path = line[66..].to_vec();
        if escaped {
            // The only odd name here that is escaped.
            let at = path.windows(2).position(|two| two == b"\\n").unwrap();
            path.splice(at..at + 2, [b'\n']);
        }
        assert!(listed.insert(path, digest).is_none(), "listed twice");
    }
    for path in &wanted.files {
        let Some(Kind::File { digest, .. }) = after.get(path).map(|node| &node.kind) else {
            continue;
        };
        if std::str::from_utf8(path).is_err() {
            continue; // b3sum has no way to write it
        }
        let shown = String::from_utf8_lossy(path);
        let text = String::from_utf8_lossy(&body);
        assert_eq!(listed.get(path), Some(digest), "`{shown}` in\n{text}");
    }
}

fn run(cluster: &Cluster, case: u32, edits: &[Edit]) {
    let src = cluster.path(&format!("src/{case}"));
    let dst = cluster.path(&format!("dst/{case}"));
    let mut editor = Editor::new(src, dst);
    for edit in edits {
        match edit {
            Edit::Sync(choice) => step(cluster, &editor, choice),
            other => editor.apply(other),
        }
    }
    fs::remove_dir_all(&editor.src).unwrap();
    fs::remove_dir_all(&editor.dst).unwrap();
}

#[test]
fn whatever_is_edited_and_asked_for_the_destination_is_what_the_model_says() {
    let mut cluster = Cluster::start(On::Embedded);
    cluster.four();
    // More on demand: PROPTEST_CASES=500 cargo test --test model
    let asked: Option<u32> = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let config = Config {
        cases: asked.unwrap_or(200),
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "proptest-regressions/model.txt",
        ))),
        ..Config::default()
    };
    let (numbers, begin) = (AtomicU32::new(0), Instant::now());
    let failed = std::cell::Cell::new(false);
    TestRunner::new(config)
        .run(&edit::edits(), |edits| {
            // What is found is made small, however long that takes; else it ends in time.
            if asked.is_none() && !failed.get() && begin.elapsed() > ENOUGH {
                return Ok(());
            }
            let number = numbers.fetch_add(1, Ordering::Relaxed);
            failed.set(true);
            run(&cluster, number, &edits);
            failed.set(false);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e}"));
}
