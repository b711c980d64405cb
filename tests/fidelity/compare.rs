//! When a file at the destination counts as equal.

use crate::support::cluster::{Cluster, On};
use crate::support::tools::{assert_equal_in_all, rsync_finds};
use crate::support::tree::{chmod, file, link, many, noise, odd, touch};
use crate::{MIB, assert_full, count, flip};
use longhaul::wire::options::EntryAction;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;

#[test]
fn checksums_send_nothing_of_equal_content_and_repair_what_is_around_it() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    odd(&src.join("odd"));
    many(&src, 300, 3_000);
    file(src.join("large"), noise(9 * MIB + 5, 1));
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    for entry in walkdir::WalkDir::new(&dst).min_depth(1) {
        touch(entry.unwrap().path(), 1_000_000_000, 1);
    }
    chmod(dst.join("large"), 0o600);
    let sync = cluster.sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_full(&sync);
    assert_eq!((sync.sent_bytes, sync.files_done), (0, 0), "{sync:#?}");
    assert!(count(&sync, EntryAction::Metadata) > 301, "{:#?}", sync.actions);
    assert_equal_in_all(&src, &dst);
    let again = cluster.sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_eq!((again.sent_bytes, count(&again, EntryAction::Metadata)), (0, 0), "{again:#?}");
}

#[test]
fn checksums_find_what_size_and_time_hide() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    many(&src, 50, 3_000);
    file(src.join("large"), noise(20 * MIB, 1));
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    flip(&dst.join("000/00007"), 1_500);
    flip(&dst.join("large"), 11 * MIB as u64 + 17);
    let blind = cluster.sync_with(&src, &dst, json!({}));
    assert_eq!((blind.files_done, blind.sent_bytes), (0, 0), "{blind:#?}");
    let sync = cluster.sync_with(&src, &dst, json!({"compare": "checksum"}));
    assert_full(&sync);
    assert_eq!((sync.files_done, count(&sync, EntryAction::Update)), (2, 2), "{sync:#?}");
    assert!(sync.sent_bytes <= MIB as u64 + 3_000, "one range of the large one: {sync:#?}");
    assert_equal_in_all(&src, &dst);
}

#[test]
fn a_file_of_the_same_size_and_second_with_other_nanoseconds_and_content_is_replaced() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let contents = |seed| [("small", noise(3_000, seed)), ("large", noise(5 * MIB + 7, seed))];
    let write = |seed, nanos| {
        for (name, content) in contents(seed) {
            touch(file(src.join(name), content), 1_600_000_000, nanos);
        }
    };
    let more = json!({"chunk_size_mb": 1});
    let sync = |more: &serde_json::Value| {
        let id = cluster.submit_with(&src, &dst, more.clone());
        cluster.ended(&id)
    };
    write(1, 1);
    assert_full(&sync(&more));
    for (seed, nanos) in [(2, 2), (3, 999_999_999)] {
        write(seed, nanos);
        let done = sync(&more);
        assert_full(&done);
        assert_eq!((done.files_done, done.files_skipped), (2, 0), "{done:#?}");
        for (name, content) in contents(seed) {
            assert!(fs::read(dst.join(name)).unwrap() == content, "{name} is the old version");
            assert_eq!(fs::metadata(dst.join(name)).unwrap().mtime_nsec(), i64::from(nanos));
        }
    }
}

#[test]
fn sizes_alone_can_be_compared() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for (name, here, there) in [("same size", "new!", "old!"), ("other size", "new", "older")] {
        touch(file(src.join(name), here), 1_600_000_000, 1);
        touch(file(dst.join(name), there), 1_500_000_000, 1);
    }
    let large = noise(3 * MIB, 1);
    touch(file(src.join("large"), &large), 1_600_000_000, 1);
    touch(file(dst.join("large"), noise(3 * MIB, 2)), 1_500_000_000, 1);
    let sync = cluster.sync_with(&src, &dst, json!({"compare": "size"}));
    assert_full(&sync);
    assert_eq!((sync.files_done, sync.files_skipped, sync.sent_bytes), (1, 2, 3), "{sync:#?}");
    assert_eq!(fs::read(dst.join("same size")).unwrap(), b"old!");
    assert_eq!(fs::read(dst.join("other size")).unwrap(), b"new");
    assert!(fs::read(dst.join("large")).unwrap() != large);
}

#[test]
fn times_that_were_rounded_count_as_equal_within_a_tolerance() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    many(&src, 20, 500);
    file(src.join("large"), noise(3 * MIB, 1));
    for entry in walkdir::WalkDir::new(&src).min_depth(1) {
        touch(entry.unwrap().path(), 1_600_000_001, 600_000_000);
    }
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    for entry in walkdir::WalkDir::new(&dst).min_depth(1) {
        touch(entry.unwrap().path(), 1_600_000_000, 0);
    }
    let within = json!({"mtime_tolerance_ns": 2_000_000_000u64});
    let sync = cluster.sync_with(&src, &dst, within);
    assert_full(&sync);
    assert_eq!((sync.files_done, sync.sent_bytes), (0, 0), "{sync:#?}");
    let beyond = json!({"mtime_tolerance_ns": 1_000_000_000u64});
    let sync = cluster.sync_with(&src, &dst, beyond);
    assert_eq!(sync.files_done, 21, "{sync:#?}");
    assert_eq!(rsync_finds(&src, &dst), "");
}

#[test]
fn what_is_newer_at_the_destination_can_be_left_alone() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let large = noise(3 * MIB, 5);
    for (name, here, there) in [("newer there", 100, 200), ("newer here", 200, 100)] {
        touch(file(src.join(name), "source"), here, 0);
        touch(file(dst.join(name), "destination"), there, 0);
        touch(file(src.join(format!("large, {name}")), &large), here, 0);
        touch(file(dst.join(format!("large, {name}")), "destination"), there, 0);
    }
    touch(file(src.join("equal time"), "source"), 300, 5);
    touch(file(dst.join("equal time"), "destination"), 300, 5);
    file(src.join("new"), "source");
    let sync = cluster.sync_with(&src, &dst, json!({"update": true}));
    assert_full(&sync);
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
fn what_exists_can_be_left_alone_and_what_does_not_exist_left_out() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, all) = cluster.pair();
    let large = noise(3 * MIB, 5);
    for name in ["there", "new", "folder/there", "folder/new", "new folder/new"] {
        touch(file(src.join(name), "source"), 1_600_000_000, 0);
    }
    touch(file(src.join("large there"), &large), 1_600_000_000, 0);
    touch(file(src.join("large new"), &large), 1_600_000_000, 0);
    link(src.join("link there"), "source");
    link(src.join("link new"), "source");
    let start = |dst: &std::path::Path| {
        for name in ["there", "folder/there", "large there"] {
            touch(file(dst.join(name), "destination"), 1_500_000_000, 0);
        }
        link(dst.join("link there"), "destination");
    };
    let is = |path: std::path::PathBuf, wanted: &[u8]| assert!(fs::read(path).unwrap() == wanted);

    let dst = all.join("ignore existing");
    start(&dst);
    assert_full(&cluster.sync_with(&src, &dst, json!({"ignore_existing": true})));
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
    let sync = cluster.sync_with(&src, &dst, json!({"existing": true}));
    assert_full(&sync);
    let there = ["folder", "folder/there", "large there", "link there", "there"];
    assert_eq!(crate::paths_of(&dst), there, "nothing was created: {sync:#?}");
    is(dst.join("there"), b"source");
    is(dst.join("folder/there"), b"source");
    is(dst.join("large there"), &large);
    assert_eq!(fs::read_link(dst.join("link there")).unwrap().to_str(), Some("source"));
}

#[test]
fn a_directory_that_is_not_made_fails_none_of_what_is_in_it() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    // More than one batch of chunks of a mebibyte: the directory's own entry is in the first one only.
    file(src.join("a/dir/b"), noise(2_100_000, 1));
    for (name, length) in [("a", 1_020_000), ("b", 231), ("f", 300_000)] {
        file(src.join("dir").join(name), noise(length, 2));
    }
    for options in [json!({"existing": true, "compare": "size"}), json!({"existing": true})] {
        let more = json!({"chunk_size_mb": 1, "options": options});
        let id = cluster.submit_with(&src, &dst, more);
        let sync = cluster.ended(&id);
        assert_full(&sync);
        assert_eq!((sync.files_skipped, sync.files_failed, sync.retries), (4, 0, 0), "{sync:#?}");
        assert!(crate::paths_of(&dst).is_empty(), "{options}");
    }
}
