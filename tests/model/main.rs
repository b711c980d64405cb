//! Random trees, random edits of both sides, random options: after every sync the destination is what
//! a plain model says. Through real processes, two agents on each side.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod edit;
mod expected;
mod sync_options;
mod tree;

use edit::{Edit, Editor};
use expected::{Expected, expected_after_sync, is_in};
use longhaul::wire::entry_report::{EntryAction, FileRecord, FileState};
use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::cluster::{Cluster, StoreKind};
use sync_options::{SyncChoice, TRASH};
use tree::{Kind, Node, Tree};

/// How long the search goes on where nothing else is asked for.
const DEFAULT_SEARCH_TIME: Duration = Duration::from_secs(30);
/// Tries to make a case that fails smaller.
const MAX_SHRINKS: u32 = 200;
/// A search ends with so many seeds that fail: more tell nothing new.
const MAX_FAILED: usize = 10;

fn run_sync(cluster: &Cluster, editor: &Editor, choice: &SyncChoice) -> SyncProgress {
    let more = json!({"chunk_size_mb": 1, "options": choice.options()});
    let id = cluster.submit_with(&editor.src, &editor.dst, more);
    cluster.await_end(&id)
}

fn check_sync(cluster: &Cluster, editor: &Editor, choice: &SyncChoice) {
    editor.remove_unspecified_cases(choice);
    // So that what would be done can be compared with what is done.
    let choice = &SyncChoice { record: choice.record || choice.dry_run, ..choice.clone() };
    let (source, before) = (tree::read_tree(&editor.src), tree::read_tree(&editor.dst));
    let wanted = expected_after_sync(&source, &before, choice);
    let story = |done: &SyncProgress| {
        let (source, before) = (tree::describe(&source), tree::describe(&before));
        format!(
            "\nunder {}\nof source\n{source}and destination\n{before}{done:#?}",
            choice.options()
        )
    };
    let mut tried = None;
    if choice.dry_run {
        let done = run_sync(cluster, editor, &SyncChoice { manifest: false, ..choice.clone() });
        let wrong = outcome_differences(&done, &wanted, true);
        assert!(wrong.is_empty(), "{wrong:#?} {}", story(&done));
        assert_eq!(tree::read_tree(&editor.dst), before, "a dry run changes nothing");
        assert_eq!(done.sent_bytes, 0, "{}", story(&done));
        tried = Some(actions_by_file(cluster, &done, &wanted));
    }
    let done = run_sync(cluster, editor, &SyncChoice { dry_run: false, ..choice.clone() });
    let mut wrong = outcome_differences(&done, &wanted, false);
    assert_eq!(tree::read_tree(&editor.src), source, "a source is only read");
    let mut after = tree::read_tree(&editor.dst);
    if choice.delete.is_some_and(|delete| delete.trash) {
        after.retain(|path, _| !is_in(path, TRASH));
    }
    wrong.extend(tree_differences(&wanted, &after, choice));
    if !wanted.sends && done.sent_bytes > 0 {
        wrong.push("there was nothing to send".to_owned());
    }
    if let Some(tried) = tried {
        let did = actions_by_file(cluster, &done, &wanted);
        wrong.extend(dry_run_differences(&source, &before, &tried, &did, choice.manifest));
    }
    assert!(wrong.is_empty(), "{wrong:#?} {}", story(&done));
    if choice.record {
        assert_records(cluster, &done, &wanted);
    }
    if choice.manifest {
        assert_manifest(cluster, &done, &wanted, &after);
    }
}

type Actions = BTreeMap<Vec<u8>, Option<EntryAction>>;

/// Files with which something else was done than the dry run said, where that is not open.
fn dry_run_differences(
    source: &Tree,
    before: &Tree,
    tried: &Actions,
    did: &Actions,
    digests_wanted: bool,
) -> Vec<String> {
    // Of the ranges of a large file one repairs its metadata and the others find them right; which
    // of them is reported first is open.
    let large = |path: &Vec<u8>| source.get(path).and_then(Node::size) > Some(1 << 20);
    let left = |action: Option<EntryAction>| {
        matches!(action, Some(EntryAction::Skip | EntryAction::Metadata))
    };
    // Where digests are wanted, what is there is read: only then is it seen that just its time is another. A dry run
    // reads nothing.
    let foreseen = |action: Option<EntryAction>| {
        left(action) || digests_wanted && matches!(action, Some(EntryAction::Update))
    };
    // A file that has another name as well is parted from it, unless that name was replaced first.
    let shared = |path: &Vec<u8>| before.get(path).is_some_and(|node| node.link_count > 1);
    let is_parted = |path: &Vec<u8>, printed: Option<EntryAction>| {
        shared(path) && matches!(printed, Some(EntryAction::Update))
    };
    let other = did.iter().filter(|(path, action)| {
        let printed = tried.get(*path).copied().flatten();
        let is_open = large(path) && foreseen(printed) || is_parted(path, printed);
        printed != **action && !(is_open && left(**action))
    });
    other
        .map(|(path, action)| {
            let shown = String::from_utf8_lossy(path);
            format!("`{shown}`: {action:?}, and in the dry run {:?}", tried.get(path))
        })
        .collect()
}

fn tree_differences(wanted: &Expected, after: &Tree, choice: &SyncChoice) -> Vec<String> {
    if choice.delete.is_some_and(|delete| delete.trash) {
        let mut tree = wanted.tree.clone();
        tree.retain(|path, _| !is_in(path, TRASH));
        let groups = wanted.hardlink_groups.clone();
        return expected::differences(
            &Expected { tree, hardlink_groups: groups, ..Expected::default() },
            after,
        );
    }
    expected::differences(wanted, after)
}

/// What was (or would be) done with each regular file of the source, by the bytes of its path: a name
/// need not be UTF-8.
fn actions_by_file(cluster: &Cluster, sync: &SyncProgress, wanted: &Expected) -> Actions {
    let mut actions: BTreeMap<_, _> =
        records(cluster, sync).into_iter().map(|record| (record.path.0, record.action)).collect();
    // Whether names are to be joined to one file is known only when the first of them is in place.
    actions
        .retain(|path, _| wanted.files.contains(path) && !wanted.maybe_hardlinked.contains(path));
    actions
}

fn records(cluster: &Cluster, sync: &SyncProgress) -> Vec<FileRecord> {
    let text = cluster.master.get(&format!("/sync/{}/files", sync.request_id)).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// In what a sync ended otherwise than it should.
fn outcome_differences(sync: &SyncProgress, wanted: &Expected, dry_run: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut hold = |what: &str, right: bool| {
        if !right {
            wrong.push(format!("not as it should be: {what}"));
        }
    };
    hold("no failures", sync.failure_count() == 0);
    hold("each counted once", sync.files_done + sync.files_skipped == sync.files_total);
    if wanted.is_deletion_stopped && dry_run {
        let printed = sync.reason.as_deref().is_some_and(|r| r.contains("a real run would "));
        hold("said that it would stop", printed);
        return wrong;
    }
    let end = match wanted.is_deletion_stopped {
        true => (SyncState::Failed, SyncOutcome::DeleteStopped),
        false => (SyncState::Completed, SyncOutcome::Full),
    };
    hold("its end", (sync.state, sync.outcome) == (end.0, Some(end.1)));
    let deleted = sync.actions.get(&EntryAction::Delete).map_or(0, |tally| tally.count);
    if deleted != wanted.deleted.len() as u64 {
        let paths = wanted.deleted.iter().map(|path| String::from_utf8_lossy(path));
        wrong.push(format!("{deleted} deleted instead of {:?}", paths.collect::<Vec<_>>()));
    }
    wrong
}

/// What is kept of each file agrees with what became of it.
fn assert_records(cluster: &Cluster, sync: &SyncProgress, wanted: &Expected) {
    let (mut deleted, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for record in records(cluster, sync) {
        let name = (record.path.0.clone(), record.state == FileState::Deleted);
        if !seen.insert(name) {
            let mut all = records(cluster, sync);
            all.retain(|other| other.path == record.path);
            panic!("it is recorded twice: {all:#?} in {sync:#?}");
        }
        match record.state {
            FileState::Deleted => drop(deleted.insert(record.path.0)),
            FileState::Failed => panic!("nothing failed: {record:#?}"),
            FileState::Done | FileState::Skipped => {}
        }
    }
    assert_eq!(deleted, wanted.deleted, "{sync:#?}");
    for path in &wanted.files {
        let listed = seen.contains(&(path.clone(), false));
        assert!(listed, "{} has no record: {seen:?}", String::from_utf8_lossy(path));
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
            // The only odd name here that b3sum can read; bytes that are not UTF-8 are `\xHH`.
            match path.windows(2).position(|two| two == b"\\n") {
                Some(at) => drop(path.splice(at..at + 2, [b'\n'])),
                None => assert!(path.windows(2).any(|two| two == b"\\x"), "{path:?}"),
            }
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

fn run_case(cluster: &Cluster, case: u32, edits: &[Edit]) {
    let src = cluster.data_path(&format!("src/{case}"));
    let dst = cluster.data_path(&format!("dst/{case}"));
    let mut editor = Editor::new(src, dst);
    for edit in edits {
        match edit {
            Edit::Sync(choice) => check_sync(cluster, &editor, choice),
            other => editor.apply(other),
        }
    }
    fs::remove_dir_all(&editor.src).unwrap();
    fs::remove_dir_all(&editor.dst).unwrap();
}

/// What is searched: cases that are numbered by their seeds, so that each can be made again alone.
struct Search {
    /// The seed of the first case.
    seed: u64,
    /// From one case to the next; more than 1 where several processes share the seeds.
    step: u64,
    /// At most so many cases.
    cases: Option<u64>,
    time: Duration,
}

impl Search {
    /// As `scripts/model.sh` asks for it; in the suite, other seeds at each run.
    fn from_environment() -> Search {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(format!("LONGHAUL_MODEL_{name}")).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("LONGHAUL_MODEL_{name} is no number")))
        };
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        let cases = number("CASES");
        Search {
            seed: number("SEED").unwrap_or_else(clock),
            step: number("STEP").unwrap_or(1),
            time: match (number("SECONDS"), cases) {
                (Some(seconds), _) => Duration::from_secs(seconds),
                (None, Some(_)) => Duration::MAX,
                (None, None) => DEFAULT_SEARCH_TIME,
            },
            cases,
        }
    }
}

/// Runs the case of a seed; where it fails, reports the smallest case that fails alike.
fn search_seed(cluster: &Cluster, numbers: &AtomicU32, seed: u64) -> Result<(), String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        max_shrink_iters: MAX_SHRINKS,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
        .run(&edit::any_edits(), |edits| {
            run_case(cluster, numbers.fetch_add(1, Ordering::Relaxed), &edits);
            Ok(())
        })
        .map_err(|error| error.to_string())
}

fn installation() -> Cluster {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    cluster.add_two_agents_per_side();
    cluster
}

#[test]
fn a_large_file_may_be_reported_by_any_of_its_ranges_whatever_bytes_its_name_has() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [(&b"f\xff"[..], 3 << 20), (b"g\xff", 1000)] {
        let file = fs::File::create(dir.path().join(std::ffi::OsStr::from_bytes(name))).unwrap();
        file.set_len(size).unwrap();
    }
    let tree = tree::read_tree(dir.path());
    let all = |action| -> Actions {
        [&b"f\xff"[..], b"g\xff"].map(|name| (name.to_vec(), Some(action))).into()
    };
    let (tried, did) = (all(EntryAction::Metadata), all(EntryAction::Skip));
    let wrong = dry_run_differences(&tree, &tree, &tried, &did, false);
    assert_eq!(wrong.len(), 1, "only the small file has one report: {wrong:?}");
}

#[test]
fn after_any_edits_and_options_the_destination_matches_the_model() {
    let Search { seed: first, step, cases, time } = Search::from_environment();
    let (mut cluster, numbers, begin) = (installation(), AtomicU32::new(0), Instant::now());
    let mut failed = Vec::new();
    let mut seed = first;
    let mut done = 0;
    // What is found is made small, however long that takes; else it ends in time.
    while cases.is_none_or(|cases| done < cases) && (done == 0 || begin.elapsed() < time) {
        if let Err(why) = search_seed(&cluster, &numbers, seed) {
            eprintln!("seed {seed}: {why}\nagain: scripts/model.sh --seed {seed} --cases 1");
            failed.push(seed);
            if failed.len() == MAX_FAILED {
                break;
            }
            // The next case shall not suffer from what this one left.
            cluster = installation();
        }
        (seed, done) = (seed.wrapping_add(step), done + 1);
    }
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    println!(
        "{done} cases from seed {first} by steps of {step} in {minutes:.1} minutes, {} failed",
        failed.len()
    );
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
}
