//! What arrives is what was there, and nothing is deleted that should stay: whole syncs through real
//! processes, judged by rsync, by compare-trees.py and by what is counted. The same at full size is
//! `scripts/acceptance-fidelity.sh`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod changing_source;
mod compare;
mod delta;
mod dry_run;
mod file_source;
mod itemized;
mod metadata;
mod mirror;
mod safety_checks;
mod selection;
mod verify;

use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MIB: usize = 1 << 20;

/// Fails where the test can't run, and says what it needs.
fn assert_root(what: &str) {
    assert!(support::process::is_root(), "this test needs root, for {what}: run it as root");
}

/// Holds a sync to have ended well.
#[track_caller]
fn assert_full_outcome(sync: &SyncProgress) {
    let end = (sync.state, sync.outcome);
    assert_eq!(end, (SyncState::Completed, Some(SyncOutcome::Full)), "{sync:#?}");
}

/// How many entries an action is counted for.
fn action_count(sync: &SyncProgress, action: longhaul::wire::entry_report::EntryAction) -> u64 {
    sync.actions.get(&action).map_or(0, |tally| tally.count)
}

/// The number of warnings with one of these words in their cause.
fn note_count(sync: &SyncProgress, words: &[&str]) -> u64 {
    let about = |cause: &str| words.iter().any(|word| cause.contains(word));
    sync.warnings.iter().filter(|(cause, _)| about(cause)).map(|(_, note)| note.count).sum()
}

/// What each path of a tree is, so that any change to it shows: inode, mode, length, both times.
fn metadata_by_path(root: &Path) -> BTreeMap<Vec<u8>, [i64; 6]> {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    entries
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            let path = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime() ^ meta.ctime_nsec()];
            let inode = i64::try_from(meta.ino()).unwrap();
            let length = i64::try_from(meta.len()).unwrap();
            (path, [inode, i64::from(meta.mode()), length, times[0], times[1], times[2]])
        })
        .collect()
}

/// The paths of a tree, the root left out, in order.
fn paths_of(root: &Path) -> Vec<String> {
    let paths =
        metadata_by_path(root).into_keys().map(|path| String::from_utf8_lossy(&path).into_owned());
    paths.filter(|path| !path.is_empty()).collect()
}

/// Changes one bit of a file and keeps its times.
fn flip_bit(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let meta = std::fs::metadata(path).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    drop(file);
    let ns = u32::try_from(meta.mtime_nsec()).unwrap();
    support::tree::set_mtime(path, meta.mtime(), ns);
}
