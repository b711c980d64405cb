//! Everything that an entry is.

mod hard_links;
mod sparse;

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
use longhaul::wire::outcome::EntryError;
use longhaul::wire::sync::{SyncOutcome, SyncState};
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
    let reported = |e: &EntryError| {
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
