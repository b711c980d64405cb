//! Everything that an entry is.

use crate::support::cluster::{Cluster, StoreKind};
use crate::support::process::User;
use crate::support::tools::{
    Difference, assert_trees_identical, compare_trees, make_torture, rsync_differences,
    run_or_panic,
};
use crate::support::tree::{
    chmod, make_dir, make_symlink, part_files, random_bytes, set_mtime, write_file,
    write_many_files,
};
use crate::support::{await_true, tree};
use crate::{MIB, action_count, assert_full_outcome, assert_root, note_count};
use longhaul::wire::entry_report::EntryAction;
use longhaul::wire::sync::{FileError, SyncOutcome, SyncState};
use rustix::fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[track_caller]
fn assert_identical(src: &Path, dst: &Path) {
    assert_eq!(rsync_differences(src, dst), "");
    assert_trees_identical(src, dst);
}

/// The value of an extended attribute.
fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 8192];
    let length = lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// An ACL that gives user 1001 what `perm` says, as the kernel keeps it.
fn acl_with_user(perm: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    let entries =
        [(1u16, 6u16, NOBODY), (2, perm, 1001), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY)];
    for (tag, perm, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";

#[test]
fn the_torture_tree_arrives_as_it_is_through_four_agents() {
    assert_root("devices, owners, capabilities");
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_two_agents_per_side();
    make_torture(&src, User::Same, cluster.home());
    let first = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&first);
    assert!(first.warnings.is_empty(), "everything could be held: {:#?}", first.warnings);
    assert_identical(&src, &dst);
    assert!(part_files(&dst).is_empty());
    let again = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&again);
    assert_eq!((again.files_done, again.sent_bytes), (0, 0), "{again:#?}");
    assert_eq!(
        action_count(&again, EntryAction::Metadata),
        0,
        "nothing was wrong: {:#?}",
        again.actions
    );
    assert_identical(&src, &dst);
}

#[test]
fn an_unprivileged_user_copies_the_own_tree_except_unreadable_files() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    User::Ordinary.chown(&src);
    User::Ordinary.chown(&dst);
    make_torture(&src, User::Ordinary, cluster.home());
    for (name, path) in [("a", &src), ("a2", &src), ("b", &dst), ("b2", &dst)] {
        cluster.add_agent_with(name, &[path], User::Ordinary, "");
    }
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_eq!(sync.outcome, Some(SyncOutcome::Partial), "{sync:#?}");
    for error in &sync.errors {
        let path = String::from_utf8_lossy(&error.path.0);
        assert!(path.starts_with("modes/"), "{error:#?}");
        assert_eq!(error.errno.as_deref(), Some("EACCES"), "{error:#?}");
    }
    assert_root("unreadable entries");
    for difference in compare_trees(&src, &dst) {
        assert_eq!(difference.what, "missing", "{difference:?}");
        assert!(difference.path.starts_with("b'modes/"), "{difference:?}");
    }
}

#[test]
fn unprivileged_agents_copy_what_they_can_of_a_root_owned_tree_and_report_each_cause() {
    assert_root("a tree of root's");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    make_torture(&src, User::Same, cluster.home());
    chmod(&src, 0o755);
    User::Ordinary.chown(&dst);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    let reported = |e: &FileError| {
        e.errno.as_deref() == Some("EACCES") || e.message.contains("no device can be made")
    };
    assert!(sync.errors.iter().all(reported), "{:#?}", sync.errors);
    let accounted = sync.files_done + sync.files_skipped + sync.files_failed;
    assert_eq!(accounted, sync.files_total, "{sync:#?}");

    let found = compare_trees(&src, &dst);
    let of = |what: &str| found.iter().filter(|d| d.what == what).count() as u64;
    for what in ["extra", "type", "length", "content", "target", "linked", "holes", "acl"] {
        let wrong: Vec<_> = found.iter().filter(|d| d.what == what).collect();
        assert!(wrong.is_empty(), "nothing forbids to keep that: {wrong:#?}");
    }
    // Each kind of difference is said, and how often: names of one file once. What only root may see
    // of the source (`trusted.*`) are invisible.
    let own = |what: &str| {
        let of_it = found.iter().filter(|d| d.what == what && !d.path.starts_with("b'hard links/"));
        of_it.count() as u64
    };
    assert!(
        own("owner") > 1_000 && note_count(&sync, &["owner"]) >= own("owner"),
        "{:#?}",
        sync.warnings
    );
    for words in [&["attribute"][..], &["set-uid"]] {
        assert!(note_count(&sync, words) > 0, "{words:?}: {:#?}", sync.warnings);
    }
    let trusted = |d: &&Difference| d.how.contains("trusted.");
    let seen = of("xattr") - found.iter().filter(trusted).count() as u64;
    assert!(seen <= note_count(&sync, &["attribute"]), "{found:#?} {:#?}", sync.warnings);
    for note in sync.warnings.values() {
        assert!(note.count > 0 && !note.paths.is_empty() && note.paths.len() <= 10, "{note:#?}");
    }
    // Set-uid for an owner that is not the owner would be a hole.
    let setuid = fs::metadata(dst.join("modes/4755")).unwrap().mode();
    assert_eq!(setuid & 0o6000, 0, "{setuid:o}");
}

#[test]
fn unsupported_metadata_fails_its_entry_only_with_strict_metadata() {
    assert_root("files of root's");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    User::Ordinary.chown(&dst);
    write_file(src.join("of root"), "x");
    User::Ordinary.chown(&write_file(src.join("own"), "y"));
    User::Ordinary.chown(&src);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    let strict = cluster.run_sync_with(&src, &dst, json!({"strict_metadata": true}));
    assert_eq!((strict.files_failed, strict.files_done), (1, 1), "{strict:#?}");
    assert_eq!(strict.errors[0].path.0, b"of root", "{strict:#?}");
    let lax = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&lax);
    assert_eq!(note_count(&lax, &["owner"]), 1, "{:#?}", lax.warnings);
    let narrowed = json!({"preserve": ["no-owner", "no-group"], "strict_metadata": true});
    let narrowed = cluster.run_sync_with(&src, &dst, narrowed);
    assert_full_outcome(&narrowed);
    assert!(narrowed.warnings.is_empty(), "{:#?}", narrowed.warnings);
}

#[test]
fn changed_metadata_is_repaired_in_place() {
    assert_root("owners");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for name in ["attribute", "acl", "owner", "mode", "extra attribute", "extra acl", "setuid"] {
        write_file(src.join(name), random_bytes(10_000, 1));
        set_mtime(src.join(name), 1_600_000_000, 1);
    }
    set_xattr(&src.join("attribute"), "user.a", b"right");
    set_xattr(&src.join("acl"), ACL, &acl_with_user(6));
    chmod(src.join("setuid"), 0o4755);
    make_dir(src.join("folder"));
    set_xattr(&src.join("folder"), DEFAULT_ACL, &acl_with_user(4));
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_identical(&src, &dst);
    let inode = |name: &str| fs::metadata(dst.join(name)).unwrap().ino();
    let before: Vec<u64> = ["attribute", "acl", "owner", "setuid"].map(inode).to_vec();

    set_xattr(&dst.join("attribute"), "user.a", b"wrong");
    set_xattr(&dst.join("extra attribute"), "user.b", b"too much");
    set_xattr(&dst.join("acl"), ACL, &acl_with_user(0));
    set_xattr(&dst.join("extra acl"), ACL, &acl_with_user(7));
    lremovexattr(dst.join("folder"), DEFAULT_ACL).unwrap();
    std::os::unix::fs::lchown(dst.join("owner"), None, Some(4321)).unwrap();
    chmod(dst.join("mode"), 0o777);
    chmod(dst.join("setuid"), 0o755);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert_identical(&src, &dst);
    assert_eq!(sync.sent_bytes, 0, "{sync:#?}");
    assert_eq!(action_count(&sync, EntryAction::Metadata), 8, "{:#?}", sync.actions);
    assert_eq!(before, ["attribute", "acl", "owner", "setuid"].map(inode));
}

#[test]
fn nothing_is_inherited_from_a_default_acl_at_the_destination() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    set_xattr(&dst, DEFAULT_ACL, &acl_with_user(7));
    write_file(src.join("plain"), "x");
    write_file(src.join("folder/in it"), random_bytes(3 * MIB, 1));
    make_symlink(src.join("link"), "plain");
    run_or_panic("mkfifo", [src.join("fifo")]);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_identical(&src, &dst);
    assert_eq!(xattr(&dst.join("plain"), ACL), None);
}

#[test]
fn the_set_of_preserved_attributes_can_be_reduced() {
    assert_root("owners");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    write_file(src.join("file"), random_bytes(3 * MIB, 1));
    chmod(src.join("file"), 0o6711);
    set_xattr(&src.join("file"), "user.a", b"a");
    set_xattr(&src.join("file"), ACL, &acl_with_user(6));
    std::os::unix::fs::lchown(src.join("file"), Some(1000), Some(1001)).unwrap();
    set_mtime(src.join("file"), 1_000_000_000, 7);
    fs::hard_link(src.join("file"), src.join("same")).unwrap();
    run_or_panic("mkfifo", [src.join("fifo")]);
    let meta = |dst: &Path| fs::metadata(dst.join("file")).unwrap();

    let dst = all.join("none");
    let sync = cluster.run_sync_with(&src, &dst, json!({"preserve": ["none"]}));
    assert_full_outcome(&sync);
    let got = meta(&dst);
    assert_eq!((got.uid(), got.gid(), got.nlink()), (0, 0, 1));
    assert_eq!(got.mode() & 0o7000, 0);
    assert!(got.mtime() > 1_700_000_000, "{}", got.mtime());
    assert_eq!((xattr(&dst.join("file"), "user.a"), xattr(&dst.join("file"), ACL)), (None, None));
    assert!(fs::read(dst.join("file")).unwrap() == fs::read(src.join("file")).unwrap());
    assert!(!dst.join("fifo").exists() && sync.files_skipped == 1, "{sync:#?}");

    let dst = all.join("some");
    let some = json!({"preserve": ["times", "hardlinks", "xattrs"]});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, some));
    let got = meta(&dst);
    assert_eq!((got.uid(), got.nlink(), got.mtime(), got.mtime_nsec()), (0, 2, 1_000_000_000, 7));
    assert_eq!(xattr(&dst.join("file"), "user.a").as_deref(), Some(&b"a"[..]));
    assert_eq!(xattr(&dst.join("file"), ACL), None);

    let dst = all.join("given");
    let given = json!({"chown": {"uid": 77, "gid": 88}});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, given.clone()));
    assert_eq!((meta(&dst).uid(), meta(&dst).gid()), (77, 88));
    assert_eq!(meta(&dst).mode() & 0o7777, fs::metadata(src.join("file")).unwrap().mode() & 0o7777);
    let root = fs::metadata(&dst).unwrap();
    assert_eq!((root.uid(), root.gid()), (77, 88), "directories too");
    let again = cluster.run_sync_with(&src, &dst, given);
    assert_eq!(
        (again.files_done, action_count(&again, EntryAction::Metadata)),
        (0, 0),
        "{again:#?}"
    );
}

#[test]
fn symbolic_links_can_be_followed_or_skipped() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    let tree = make_dir(src.join("tree"));
    write_file(tree.join("file"), "content");
    write_file(src.join("beside/in it"), random_bytes(3 * MIB, 2));
    make_symlink(tree.join("to a file"), "file");
    make_symlink(tree.join("to a folder"), "../beside");
    let dst = all.join("skip");
    let sync = cluster.run_sync_with(&tree, &dst, json!({"links": "skip"}));
    assert_full_outcome(&sync);
    assert_eq!(crate::paths_of(&dst), ["file"]);
    assert_eq!(note_count(&sync, &["link"]), 2, "{:#?}", sync.warnings);

    let dst = all.join("copy");
    assert_full_outcome(&cluster.run_sync_with(&tree, &dst, json!({"links": "copy"})));
    assert_eq!(crate::paths_of(&dst), ["file", "to a file", "to a folder", "to a folder/in it"]);
    assert!(fs::symlink_metadata(dst.join("to a file")).unwrap().is_file());
    assert_eq!(fs::read(dst.join("to a file")).unwrap(), b"content");
    let inside = fs::read(dst.join("to a folder/in it")).unwrap();
    assert!(inside == fs::read(src.join("beside/in it")).unwrap());

    // What leads out of what the agent holds, or nowhere, or round, is named; the rest arrives.
    make_symlink(tree.join("out"), "/etc/hostname");
    make_symlink(tree.join("round"), ".");
    make_symlink(tree.join("nowhere"), "no such thing");
    let dst = all.join("copy again");
    let sync = cluster.run_sync_with(&tree, &dst, json!({"links": "copy"}));
    assert!(sync.state.is_final(), "{sync:#?}");
    assert_eq!(fs::read(dst.join("file")).unwrap(), b"content");
    assert!(!dst.join("out").exists(), "nothing from outside of the storage path");
    let reported = format!("{:?} {:?}", sync.warnings, sync.errors);
    for name in ["out", "round", "nowhere"] {
        assert!(reported.contains(name), "{name} is named: {sync:#?}");
    }
}

#[test]
fn holes_stay_holes_and_zeros_become_holes_only_where_asked() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, all) = cluster.add_source_and_destination();
    // 2 MiB of zeros between data, 1 byte over a block; and a file that is nothing but a hole.
    let mut zeros = random_bytes(MIB + 1, 1);
    zeros.extend(vec![0; 2 * MIB]);
    zeros.extend(random_bytes(5_000, 2));
    write_file(src.join("zeros"), &zeros);
    let small = write_file(src.join("small zeros"), [vec![1; 10], vec![0; 900_000]].concat());
    fs::File::create(src.join("hole")).unwrap().set_len(40 * MIB as u64).unwrap();
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let (full, small_full) = (blocks(&src.join("zeros")), blocks(&small));

    let dst = all.join("kept");
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert_identical(&src, &dst);
    assert!(blocks(&dst.join("zeros")) >= full, "zeros stay zeros");
    assert_eq!(blocks(&dst.join("hole")), 0);
    assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");

    let dst = all.join("punched");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"punch_zeros": true})));
    assert!(blocks(&dst.join("zeros")) < full - MIB as u64, "{}", blocks(&dst.join("zeros")));
    assert!(blocks(&dst.join("small zeros")) < small_full, "{}", blocks(&dst.join("small zeros")));
    assert_eq!(rsync_differences(&src, &dst), "");

    let dst = all.join("filled");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"preserve": ["no-sparse"]})));
    assert!(blocks(&dst.join("hole")) >= 40 * MIB as u64, "{}", blocks(&dst.join("hole")));
    assert_eq!(rsync_differences(&src, &dst), "");
}

/// A file system of its own on a directory, until this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(kind: &str, at: std::path::PathBuf) -> Mounted {
        let mounted = Mounted(make_dir(at));
        run_or_panic(
            "mount",
            ["-t".as_ref(), kind.as_ref(), "none".as_ref(), mounted.0.as_os_str()],
        );
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Data at some places of a file of this length, and holes between them.
fn write_sparse(path: &Path, length: u64, at: &[u64]) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(path).unwrap();
    file.set_len(length).unwrap();
    for (i, at) in at.iter().enumerate() {
        file.write_all_at(&random_bytes(100_000, i as u64), *at).unwrap();
    }
}

#[test]
fn file_systems_without_holes_read_and_write_them_as_zeros() {
    assert_root("mounts");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    // One says of a file that all of it is data, and has no such thing as a hole to make.
    let _from = Mounted::new("ramfs", src.join("without"));
    let _to = Mounted::new("ramfs", dst.join("into"));
    let length = 24 * MIB as u64;
    for below in ["with", "without"] {
        let file = make_dir(src.join(below)).join("holes");
        write_sparse(&file, length, &[MIB as u64, length / 2 + 5, length - 100_000]);
        write_sparse(&src.join(below).join("nothing"), 3 * MIB as u64, &[]);
    }
    for from in ["with", "without"] {
        for to in ["into", "beside"] {
            let (src, dst) = (src.join(from), dst.join(to).join(from));
            for _ in 0..2 {
                let sync = cluster.run_sync_with(&src, &dst, json!({}));
                assert_full_outcome(&sync);
                assert_eq!(rsync_differences(&src, &dst), "", "{from} {to}");
            }
        }
    }
}

#[test]
fn terabytes_of_holes_are_copied_without_reading_or_allocating_them() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let length: u64 = 4 << 40;
    // One has less data than a batch holds, the other more: it is sent in ranges.
    let places = |n: u64| (0..n).map(|i| i * (length - 100_000) / (n - 1)).collect::<Vec<u64>>();
    let files = [("few", places(3)), ("more", places(16))];
    for (name, places) in &files {
        write_sparse(&src.join(name), length, places);
    }
    let chunks = |options| json!({"chunk_size_mb": 1, "options": options});
    let first = [("transfer", 2, 0), ("transfer", 0, 2), ("none", 0, 2)];
    for (verify, done, skipped) in first {
        let sync =
            cluster.await_end(&cluster.submit_with(&src, &dst, chunks(json!({"verify": verify}))));
        assert_full_outcome(&sync);
        assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");
        assert_eq!((sync.files_done, sync.files_skipped), (done, skipped), "{sync:#?}");
        assert_eq!(sync.total_bytes, 2 * length);
    }
    for (options, count) in
        [(json!({"compare": "checksum"}), 0), (json!({"verify": "readback"}), 2)]
    {
        let sync = cluster.await_end(&cluster.submit_with(&src, &dst, chunks(options)));
        assert_full_outcome(&sync);
        assert_eq!((sync.files_skipped, sync.verified_files), (2, count), "{sync:#?}");
        assert_eq!((sync.files_done, sync.sent_bytes), (0, 0), "{sync:#?}");
    }
    use std::os::unix::fs::FileExt as _;
    for (name, places) in &files {
        let there = fs::metadata(dst.join(name)).unwrap();
        assert_eq!(there.len(), length);
        assert!(there.blocks() * 512 < 5 * MIB as u64, "{}", there.blocks());
        for at in places {
            let mut read = [vec![0; 100_000], vec![0; 100_000]];
            for (root, read) in [&src, &dst].into_iter().zip(&mut read) {
                fs::File::open(root.join(name)).unwrap().read_exact_at(read, *at).unwrap();
            }
            assert!(read[0] == read[1], "at {at}");
        }
    }
    // Other content in a hole is found and sent, and nothing else.
    let changed = fs::File::options().write(true).open(src.join("more")).unwrap();
    changed.write_all_at(b"x", length / 2 + 7).unwrap();
    let sync = cluster.await_end(&cluster.submit_with(&src, &dst, chunks(json!({}))));
    assert_full_outcome(&sync);
    assert!((1..MIB as u64).contains(&sync.sent_bytes), "{sync:#?}");
    let mut read = [0];
    fs::File::open(dst.join("more")).unwrap().read_exact_at(&mut read, length / 2 + 7).unwrap();
    assert_eq!(read, *b"x");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn thousands_of_hard_links_of_one_file_are_kept() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    // Links are counted in 16 bits in places.
    let names = 20_000;
    let first = write_file(src.join("first"), random_bytes(10_000, 1));
    for i in 0..names {
        let below = if i % 1000 == 0 {
            make_dir(src.join(format!("{}", i / 1000)))
        } else {
            src.join(format!("{}", i / 1000))
        };
        fs::hard_link(&first, below.join(format!("{i}"))).unwrap();
    }
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert!(sync.sent_bytes < 20 * 10_000, "names are made, not content sent: {sync:#?}");
    let there = fs::metadata(dst.join("first")).unwrap();
    assert_eq!(there.nlink(), names + 1);
    assert_eq!(rsync_differences(&src, &dst), "");
    assert!(part_files(&dst).is_empty());
}

/// Files with several names, large and small, in many folders.
fn write_hard_links(src: &Path) {
    for i in 0..200 {
        let first =
            write_file(src.join(format!("a/{}/{i}", i % 5)), random_bytes(2_000 + i, i as u64));
        let other = make_dir(src.join(format!("z/{}", i % 7))).join(format!("also {i}"));
        fs::hard_link(first, other).unwrap();
    }
    let large = write_file(src.join("m/large"), random_bytes(24 * MIB, 7));
    fs::hard_link(&large, src.join("a/0/large too")).unwrap();
    fs::hard_link(&large, src.join("z/large three")).unwrap();
}

#[test]
fn hard_links_follow_changes_of_the_source() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hard_links(&src);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_identical(&src, &dst);
    // One name becomes a file of its own, one gets another name, one group loses a name.
    fs::remove_file(src.join("z/0/also 0")).unwrap();
    write_file(src.join("z/0/also 0"), "on its own");
    fs::hard_link(src.join("a/1/1"), src.join("new name")).unwrap();
    fs::remove_file(src.join("a/2/2")).unwrap();
    fs::remove_file(dst.join("a/2/2")).unwrap();
    fs::remove_file(src.join("z/large three")).unwrap();
    fs::hard_link(src.join("a/3/3"), src.join("z/large three")).unwrap();
    // A group at the destination is separated, and two files that are none are joined.
    let parted = dst.join("a/4/4");
    let (content, meta) = (fs::read(&parted).unwrap(), fs::metadata(&parted).unwrap());
    fs::remove_file(&parted).unwrap();
    write_file(&parted, content);
    set_mtime(&parted, meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_full_outcome(&sync);
    assert_identical(&src, &dst);
    assert!(sync.sent_bytes < 20_000, "names are made, not content sent: {sync:#?}");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn hard_links_that_exist_only_at_the_destination_are_separated() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    for name in ["one", "two"] {
        set_mtime(write_file(src.join(name), "equal"), 1_600_000_000, 5);
    }
    set_mtime(write_file(dst.join("one"), "equal"), 1_600_000_000, 5);
    fs::hard_link(dst.join("one"), dst.join("two")).unwrap();
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    // rsync leaves such names as they are; a later change of one must not reach the other.
    set_mtime(write_file(src.join("one"), "EQUAL!"), 1_600_000_001, 5);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_eq!(rsync_differences(&src, &dst), "");
    assert_eq!(fs::read(dst.join("two")).unwrap(), b"equal");
}

#[test]
fn hard_links_are_kept_when_an_agent_is_killed() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_hard_links(&src);
    write_file(src.join("larger"), random_bytes(96 * MIB, 9));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    await_true("some has arrived", || dst.join("a").exists() || !part_files(&dst).is_empty());
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    assert_full_outcome(&cluster.await_end(&id));
    assert_identical(&src, &dst);
    assert!(part_files(&dst).is_empty());
}

#[test]
fn directory_times_are_correct_after_many_agents_wrote_into_them() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_two_agents_per_side();
    write_many_files(&src, 600, 4_000);
    for i in 0..6 {
        write_file(src.join(format!("{i:03}/large")), random_bytes(3 * MIB, i));
        write_file(src.join(format!("{i:03}/below/deeper/x")), "x");
        for (place, time) in [("below/deeper", 1), ("below", 2), ("", 3)] {
            set_mtime(src.join(format!("{i:03}")).join(place), 1_500_000_000 + time, 77);
        }
    }
    set_mtime(&src, 1_400_000_000, 999_999_999);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    assert_identical(&src, &dst);
    let extra: Vec<_> =
        (0..6).map(|i| write_file(dst.join(format!("{i:03}/extra")), "x")).collect();
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    assert!(extra.iter().all(|path| !path.exists()));
    assert_identical(&src, &dst);
}

#[test]
fn a_tree_of_root_only_modes_can_be_copied_again_by_its_owner() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_file(src.join("closed/deeper/file"), "one");
    write_file(src.join("closed/other"), random_bytes(3 * MIB, 1));
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    for closed in ["closed/deeper", "closed"] {
        chmod(src.join(closed), 0o555);
    }
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    set_mtime(write_file(src.join("closed/deeper/file"), "two!"), 1_700_000_000, 1);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({})));
    // Deleting in them is no harder than writing.
    chmod(src.join("closed"), 0o755);
    fs::remove_file(src.join("closed/other")).unwrap();
    chmod(src.join("closed"), 0o555);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    let strict = tree::ComparisonRules { owners: false, extra: false };
    tree::assert_same(&src, &dst, strict);
    for tree in [&src, &dst] {
        for closed in ["closed", "closed/deeper"] {
            chmod(tree.join(closed), 0o755);
        }
    }
}
