//! A destination that takes names for one which differ only in letter case.

use super::MIB;
use super::faulty_fs::FaultyFs;
use super::support::cluster::{Cluster, StoreKind, assert_complete};
use super::support::tree::{
    assert_same, census, exact_comparison, make_dir, part_files, random_bytes, set_mtime,
    write_file,
};
use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Names that are one there.
const COLLIDING_NAMES: [(&str, &str); 5] = [
    ("Foo", "foo"),
    ("BIG", "big"),
    ("Dir/a", "dir/b"),
    ("Link", "link"),
    ("Thing", "thing/below"),
];

/// A source with such names, and a destination that two agents write to: where it is shown, and where it is.
fn start_case_insensitive_cluster(cluster: &mut Cluster) -> (FaultyFs, PathBuf, PathBuf, PathBuf) {
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    let behind = make_dir(cluster.data_path("behind"));
    let fs = FaultyFs::mount_case_insensitive(&behind, &dst);
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    cluster.add_agent("c", &[&dst]);
    for (i, name) in ["Foo", "foo", "Dir/a", "dir/b", "Thing", "thing/below"].iter().enumerate() {
        write_file(src.join(name), random_bytes(3_000 + 700 * i, i as u64));
    }
    // Equal length and mtime: only the content differs.
    for (i, name) in ["BIG", "big"].iter().enumerate() {
        write_file(src.join(name), random_bytes(9 * MIB, 50 + i as u64));
        set_mtime(src.join(name), 1_600_000_000, 0);
    }
    for (name, text) in [("Link", "one"), ("link", "other")] {
        std::os::unix::fs::symlink(text, src.join(name)).unwrap();
    }
    for i in 0..40 {
        write_file(src.join(format!("plain/{i}.dat")), random_bytes(2_000, 100 + i));
    }
    (fs, src, dst, behind)
}

/// Whether it is there, spelled like this, and is what the source has.
fn is_copied(src: &Path, behind: &Path, path: &str) -> bool {
    let mut at = behind.to_owned();
    for name in Path::new(path) {
        let listed = fs::read_dir(&at).unwrap().map(|e| e.unwrap().file_name());
        if !listed.into_iter().any(|there| there == name) {
            return false;
        }
        at.push(name);
    }
    let (one, other) = (src.join(path), at);
    match fs::read_link(&one) {
        Ok(text) => assert_eq!(fs::read_link(other).unwrap(), text, "{path}"),
        Err(_) => assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{path}"),
    }
    true
}

/// Holds a sync to have brought one of each pair, named the other, and left nothing else undone. The names that
/// it brought.
#[track_caller]
fn assert_one_of_each_pair(
    sync: &SyncProgress,
    src: &Path,
    behind: &Path,
) -> BTreeSet<&'static str> {
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    let reported: BTreeSet<String> = sync.errors.iter().map(|e| e.path.to_string()).collect();
    let (mut brought, mut named) = (BTreeSet::new(), BTreeSet::new());
    for (one, other) in COLLIDING_NAMES {
        let there = (is_copied(src, behind, one), is_copied(src, behind, other));
        assert!(there.0 != there.1, "just one of {one} and {other}: {there:?} {sync:#?}");
        let (kept, lost) = if there.0 { (one, other) } else { (other, one) };
        brought.insert(kept);
        named.insert(lost.to_owned());
        // A directory that can't be had is named as well.
        named.extend(lost.split_once('/').map(|(above, _)| above.to_owned()));
    }
    assert_eq!(reported, named, "{sync:#?}");
    for error in &sync.errors {
        assert_eq!(error.errno.as_deref(), Some("ENOTUNIQ"), "{error:#?}");
        assert!(error.to_string().contains("nothing was overwritten"), "{error:#?}");
        assert_eq!(error.attempt, 1, "trying again is no use: {error:#?}");
    }
    for i in 0..40 {
        assert!(is_copied(src, behind, &format!("plain/{i}.dat")));
    }
    assert!(part_files(behind).is_empty());
    brought
}

#[test]
fn of_colliding_names_the_second_is_reported_and_nothing_is_overwritten() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (_fs, src, dst, behind) = start_case_insensitive_cluster(&mut cluster);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    let brought = assert_one_of_each_pair(&sync, &src, &behind);
    // Also with what is left over to be deleted, and with all contents compared.
    for more in [json!({"delete": {}}), json!({"compare": "checksum"})] {
        let sync = cluster.run_sync_with(&src, &dst, more);
        assert_eq!(assert_one_of_each_pair(&sync, &src, &behind), brought);
        assert_eq!(sync.files_done, 0, "{sync:#?}");
    }
    // The owner of the source renames one of each pair.
    for (one, other) in COLLIDING_NAMES {
        let lost = if brought.contains(one) { other } else { one };
        let top = lost.split('/').next().unwrap();
        fs::rename(src.join(top), src.join(format!("{top} (2)"))).unwrap();
    }
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_complete(&sync, census(&src));
    assert_same(&src, &behind, exact_comparison());
    // What is spelled as it was is replaced as anywhere.
    write_file(src.join("plain/1.dat"), random_bytes(5_000, 200));
    write_file(src.join("plain/large"), random_bytes(3 * MIB, 201));
    assert_complete(&cluster.run_sync_with(&src, &dst, json!({})), census(&src));
    write_file(src.join("plain/large"), random_bytes(4 * MIB, 202));
    assert_complete(&cluster.run_sync_with(&src, &dst, json!({})), census(&src));
    assert_same(&src, &behind, exact_comparison());
}
