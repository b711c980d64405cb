//! When a file at the destination counts as equal.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::tools::{assert_trees_identical, rsync_differences};
use crate::support::tree::{
    chmod, make_symlink, random_bytes, set_mtime, write_file, write_many_files, write_unusual_tree,
};
use crate::{MIB, action_count, assert_full_outcome, flip_bit};
use longhaul::wire::entry_report::EntryAction;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;

#[test]
fn checksums_send_no_equal_content_and_repair_metadata() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_unusual_tree(&src.join("odd"));
    write_many_files(&src, 300, 3_000);
    write_file(src.join("large"), random_bytes(9 * MIB + 5, 1));
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    for entry in walkdir::WalkDir::new(&dst).min_depth(1) {
        set_mtime(entry.unwrap().path(), 1_000_000_000, 1);
    }
    chmod(dst.join("large"), 0o600);
    let sync = cluster.run_sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_full_outcome(&sync);
    assert_eq!((sync.sent_bytes, sync.files_done), (0, 0), "{sync:#?}");
    assert!(action_count(&sync, EntryAction::Metadata) > 301, "{:#?}", sync.actions);
    assert_trees_identical(&src, &dst);
    let again = cluster.run_sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_eq!(
        (again.sent_bytes, action_count(&again, EntryAction::Metadata)),
        (0, 0),
        "{again:#?}"
    );
}

#[test]
fn checksums_find_changes_that_size_and_mtime_hide() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 50, 3_000);
    write_file(src.join("large"), random_bytes(20 * MIB, 1));
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    flip_bit(&dst.join("000/00007"), 1_500);
    flip_bit(&dst.join("large"), 11 * MIB as u64 + 17);
    let blind = cluster.run_sync_with(&src, &dst, json!({}));
    assert_eq!((blind.files_done, blind.sent_bytes), (0, 0), "{blind:#?}");
    let sync = cluster.run_sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_full_outcome(&sync);
    assert_eq!((sync.files_done, action_count(&sync, EntryAction::Update)), (2, 2), "{sync:#?}");
    assert!(sync.sent_bytes <= MIB as u64 + 3_000, "one range of the large one: {sync:#?}");
    assert_trees_identical(&src, &dst);
}

#[test]
fn a_file_of_the_same_size_and_second_with_other_nanoseconds_and_content_is_replaced() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let contents =
        |seed| [("small", random_bytes(3_000, seed)), ("large", random_bytes(5 * MIB + 7, seed))];
    let write = |seed, nanos| {
        for (name, content) in contents(seed) {
            set_mtime(write_file(src.join(name), content), 1_600_000_000, nanos);
        }
    };
    let more = json!({"chunk_size_mb": 1});
    let sync = |more: &serde_json::Value| {
        let id = cluster.submit_with(&src, &dst, more.clone());
        cluster.await_end(&id)
    };
    write(1, 1);
    assert_full_outcome(&sync(&more));
    for (seed, nanos) in [(2, 2), (3, 999_999_999)] {
        write(seed, nanos);
        let done = sync(&more);
        assert_full_outcome(&done);
        assert_eq!((done.files_done, done.files_skipped), (2, 0), "{done:#?}");
        for (name, content) in contents(seed) {
            assert!(fs::read(dst.join(name)).unwrap() == content, "{name} is the old version");
            assert_eq!(fs::metadata(dst.join(name)).unwrap().mtime_nsec(), i64::from(nanos));
        }
    }
}

#[test]
fn files_can_be_compared_by_size_only() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for (name, here, there) in [("same size", "new!", "old!"), ("other size", "new", "older")] {
        set_mtime(write_file(src.join(name), here), 1_600_000_000, 1);
        set_mtime(write_file(dst.join(name), there), 1_500_000_000, 1);
    }
    let large = random_bytes(3 * MIB, 1);
    set_mtime(write_file(src.join("large"), &large), 1_600_000_000, 1);
    set_mtime(write_file(dst.join("large"), random_bytes(3 * MIB, 2)), 1_500_000_000, 1);
    let sync = cluster.run_sync_with(&src, &dst, json!({"compare": "size"}));
    assert_full_outcome(&sync);
    assert_eq!((sync.files_done, sync.files_skipped, sync.sent_bytes), (1, 2, 3), "{sync:#?}");
    assert_eq!(fs::read(dst.join("same size")).unwrap(), b"old!");
    assert_eq!(fs::read(dst.join("other size")).unwrap(), b"new");
    assert!(fs::read(dst.join("large")).unwrap() != large);
}

#[test]
fn rounded_times_count_as_equal_within_the_tolerance() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 500);
    write_file(src.join("large"), random_bytes(3 * MIB, 1));
    for entry in walkdir::WalkDir::new(&src).min_depth(1) {
        set_mtime(entry.unwrap().path(), 1_600_000_001, 600_000_000);
    }
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    for entry in walkdir::WalkDir::new(&dst).min_depth(1) {
        set_mtime(entry.unwrap().path(), 1_600_000_000, 0);
    }
    let within = json!({"mtime_tolerance_ns": 2_000_000_000u64});
    let sync = cluster.run_sync_with(&src, &dst, within);
    assert_full_outcome(&sync);
    assert_eq!((sync.files_done, sync.sent_bytes), (0, 0), "{sync:#?}");
    let beyond = json!({"mtime_tolerance_ns": 1_000_000_000u64});
    let sync = cluster.run_sync_with(&src, &dst, beyond);
    assert_eq!(sync.files_done, 21, "{sync:#?}");
    assert_eq!(rsync_differences(&src, &dst), "");
}

#[test]
fn newer_destination_files_can_be_kept() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let large = random_bytes(3 * MIB, 5);
    for (name, here, there) in [("newer there", 100, 200), ("newer here", 200, 100)] {
        set_mtime(write_file(src.join(name), "source"), here, 0);
        set_mtime(write_file(dst.join(name), "destination"), there, 0);
        set_mtime(write_file(src.join(format!("large, {name}")), &large), here, 0);
        set_mtime(write_file(dst.join(format!("large, {name}")), "destination"), there, 0);
    }
    set_mtime(write_file(src.join("equal time"), "source"), 300, 5);
    set_mtime(write_file(dst.join("equal time"), "destination"), 300, 5);
    write_file(src.join("new"), "source");
    let sync = cluster.run_sync_with(&src, &dst, json!({"update": true}));
    assert_full_outcome(&sync);
    assert_eq!((sync.files_done, sync.files_skipped), (4, 2), "{sync:#?}");
    for (name, wanted) in [
        ("newer there", &b"destination"[..]),
        ("large, newer there", b"destination"),
        ("newer here", b"source"),
        ("large, newer here", &large),
        ("equal time", b"source"),
        ("new", b"source"),
    ] {
        assert!(fs::read(dst.join(name)).unwrap() == wanted, "{name}");
    }
    assert_eq!(fs::metadata(dst.join("newer there")).unwrap().mtime(), 200);
}

#[test]
fn existing_files_can_be_kept_and_missing_ones_skipped() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    let large = random_bytes(3 * MIB, 5);
    for name in ["there", "new", "folder/there", "folder/new", "new folder/new"] {
        set_mtime(write_file(src.join(name), "source"), 1_600_000_000, 0);
    }
    set_mtime(write_file(src.join("large there"), &large), 1_600_000_000, 0);
    set_mtime(write_file(src.join("large new"), &large), 1_600_000_000, 0);
    make_symlink(src.join("link there"), "source");
    make_symlink(src.join("link new"), "source");
    let start = |dst: &std::path::Path| {
        for name in ["there", "folder/there", "large there"] {
            set_mtime(write_file(dst.join(name), "destination"), 1_500_000_000, 0);
        }
        make_symlink(dst.join("link there"), "destination");
    };
    let is = |path: std::path::PathBuf, wanted: &[u8]| assert!(fs::read(path).unwrap() == wanted);

    let dst = all.join("ignore existing");
    start(&dst);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"ignore_existing": true})));
    for name in ["there", "folder/there", "large there"] {
        is(dst.join(name), b"destination");
    }
    for name in ["new", "folder/new", "new folder/new"] {
        is(dst.join(name), b"source");
    }
    is(dst.join("large new"), &large);
    assert_eq!(fs::read_link(dst.join("link there")).unwrap().to_str(), Some("destination"));
    assert_eq!(fs::read_link(dst.join("link new")).unwrap().to_str(), Some("source"));

    let dst = all.join("existing");
    start(&dst);
    let sync = cluster.run_sync_with(&src, &dst, json!({"existing": true}));
    assert_full_outcome(&sync);
    let there = ["folder", "folder/there", "large there", "link there", "there"];
    assert_eq!(crate::paths_of(&dst), there, "nothing was created: {sync:#?}");
    is(dst.join("there"), b"source");
    is(dst.join("folder/there"), b"source");
    is(dst.join("large there"), &large);
    assert_eq!(fs::read_link(dst.join("link there")).unwrap().to_str(), Some("source"));
}

#[test]
fn a_directory_that_is_not_created_fails_none_of_its_contents() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    // More than one batch of chunks of a mebibyte: the directory's own entry is in the first one only.
    write_file(src.join("a/dir/b"), random_bytes(2_100_000, 1));
    for (name, length) in [("a", 1_020_000), ("b", 231), ("f", 300_000)] {
        write_file(src.join("dir").join(name), random_bytes(length, 2));
    }
    for options in [json!({"existing": true, "compare": "size"}), json!({"existing": true})] {
        let more = json!({"chunk_size_mb": 1, "options": options});
        let id = cluster.submit_with(&src, &dst, more);
        let sync = cluster.await_end(&id);
        assert_full_outcome(&sync);
        assert_eq!((sync.files_skipped, sync.files_failed, sync.retries), (4, 0, 0), "{sync:#?}");
        assert!(crate::paths_of(&dst).is_empty(), "{options}");
    }
}
