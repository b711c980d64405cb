//! Everything that an entry is.

use crate::support::cluster::{Cluster, On};
use crate::support::process::User;
use crate::support::tools::{
    Difference, assert_equal_in_all, compare_trees, make_torture, must, rsync_finds,
};
use crate::support::tree::{chmod, dir, file, link, many, noise, part_files, touch};
use crate::support::{await_that, tree};
use crate::{MIB, as_root, assert_full, count, noted};
use longhaul::wire::options::EntryAction;
use longhaul::wire::sync::{FileError, SyncOutcome, SyncState};
use rustix::fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[track_caller]
fn assert_same_in_all(src: &Path, dst: &Path) {
    assert_eq!(rsync_finds(src, dst), "");
    assert_equal_in_all(src, dst);
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
fn acl(perm: u16) -> Vec<u8> {
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
    as_root("devices, owners, capabilities");
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = cluster.four();
    make_torture(&src, User::Same, cluster.home());
    let first = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&first);
    assert!(first.warnings.is_empty(), "everything could be held: {:#?}", first.warnings);
    assert_same_in_all(&src, &dst);
    assert!(part_files(&dst).is_empty());
    let again = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&again);
    assert_eq!((again.files_done, again.sent_bytes), (0, 0), "{again:#?}");
    assert_eq!(count(&again, EntryAction::Metadata), 0, "nothing was wrong: {:#?}", again.actions);
    assert_same_in_all(&src, &dst);
}

#[test]
fn an_ordinary_user_brings_their_own_tree_but_for_what_they_cannot_read() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    User::Ordinary.give(&src);
    User::Ordinary.give(&dst);
    make_torture(&src, User::Ordinary, cluster.home());
    for (name, path) in [("a", &src), ("a2", &src), ("b", &dst), ("b2", &dst)] {
        cluster.agent_with(name, &[path], User::Ordinary, "");
    }
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_eq!(sync.outcome, Some(SyncOutcome::Partial), "{sync:#?}");
    for error in &sync.errors {
        let path = String::from_utf8_lossy(&error.path.0);
        assert!(path.starts_with("modes/"), "{error:#?}");
        assert_eq!(error.errno.as_deref(), Some("EACCES"), "{error:#?}");
    }
    as_root("what nobody may look at");
    for difference in compare_trees(&src, &dst) {
        assert_eq!(difference.what, "missing", "{difference:?}");
        assert!(difference.path.starts_with("b'modes/"), "{difference:?}");
    }
}

#[test]
fn agents_that_are_nobody_copy_what_they_can_of_roots_tree_and_name_each_cause() {
    as_root("a tree of root's");
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    make_torture(&src, User::Same, cluster.home());
    chmod(&src, 0o755);
    User::Ordinary.give(&dst);
    cluster.agent_with("a", &[&src], User::Ordinary, "");
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    let told = |e: &FileError| {
        e.errno.as_deref() == Some("EACCES") || e.message.contains("no device can be made")
    };
    assert!(sync.errors.iter().all(told), "{:#?}", sync.errors);
    let accounted = sync.files_done + sync.files_skipped + sync.files_failed;
    assert_eq!(accounted, sync.files_total, "{sync:#?}");

    let found = compare_trees(&src, &dst);
    let of = |what: &str| found.iter().filter(|d| d.what == what).count() as u64;
    for what in ["extra", "type", "length", "content", "target", "linked", "holes", "acl"] {
        let wrong: Vec<_> = found.iter().filter(|d| d.what == what).collect();
        assert!(wrong.is_empty(), "nothing forbids to keep that: {wrong:#?}");
    }
    // Each kind of difference is said, and how often: names of one file once. What only root may see
    // of the source (`trusted.*`) nobody can miss.
    let own = |what: &str| {
        let of_it = found.iter().filter(|d| d.what == what && !d.path.starts_with("b'hard links/"));
        of_it.count() as u64
    };
    assert!(
        own("owner") > 1_000 && noted(&sync, &["owner"]) >= own("owner"),
        "{:#?}",
        sync.warnings
    );
    for words in [&["attribute"][..], &["set-uid"]] {
        assert!(noted(&sync, words) > 0, "{words:?}: {:#?}", sync.warnings);
    }
    let trusted = |d: &&Difference| d.how.contains("trusted.");
    let seen = of("xattr") - found.iter().filter(trusted).count() as u64;
    assert!(seen <= noted(&sync, &["attribute"]), "{found:#?} {:#?}", sync.warnings);
    for note in sync.warnings.values() {
        assert!(note.count > 0 && !note.paths.is_empty() && note.paths.len() <= 10, "{note:#?}");
    }
    // Set-uid for an owner that is not the owner would be a hole.
    let setuid = fs::metadata(dst.join("modes/4755")).unwrap().mode();
    assert_eq!(setuid & 0o6000, 0, "{setuid:o}");
}

#[test]
fn what_cannot_be_held_fails_its_entry_only_where_that_is_asked_for() {
    as_root("files of root's");
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    User::Ordinary.give(&dst);
    file(src.join("of root"), "x");
    User::Ordinary.give(&file(src.join("own"), "y"));
    User::Ordinary.give(&src);
    cluster.agent_with("a", &[&src], User::Ordinary, "");
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    let strict = cluster.sync_with(&src, &dst, json!({"strict_metadata": true}));
    assert_eq!((strict.files_failed, strict.files_done), (1, 1), "{strict:#?}");
    assert_eq!(strict.errors[0].path.0, b"of root", "{strict:#?}");
    let lax = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&lax);
    assert_eq!(noted(&lax, &["owner"]), 1, "{:#?}", lax.warnings);
    let narrowed = json!({"preserve": ["no-owner", "no-group"], "strict_metadata": true});
    let narrowed = cluster.sync_with(&src, &dst, narrowed);
    assert_full(&narrowed);
    assert!(narrowed.warnings.is_empty(), "{:#?}", narrowed.warnings);
}

#[test]
fn metadata_that_changed_are_repaired_in_place() {
    as_root("owners");
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for name in ["attribute", "acl", "owner", "mode", "extra attribute", "extra acl", "setuid"] {
        file(src.join(name), noise(10_000, 1));
        touch(src.join(name), 1_600_000_000, 1);
    }
    set_xattr(&src.join("attribute"), "user.a", b"right");
    set_xattr(&src.join("acl"), ACL, &acl(6));
    chmod(src.join("setuid"), 0o4755);
    dir(src.join("folder"));
    set_xattr(&src.join("folder"), DEFAULT_ACL, &acl(4));
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    assert_same_in_all(&src, &dst);
    let inode = |name: &str| fs::metadata(dst.join(name)).unwrap().ino();
    let before: Vec<u64> = ["attribute", "acl", "owner", "setuid"].map(inode).to_vec();

    set_xattr(&dst.join("attribute"), "user.a", b"wrong");
    set_xattr(&dst.join("extra attribute"), "user.b", b"too much");
    set_xattr(&dst.join("acl"), ACL, &acl(0));
    set_xattr(&dst.join("extra acl"), ACL, &acl(7));
    lremovexattr(dst.join("folder"), DEFAULT_ACL).unwrap();
    std::os::unix::fs::lchown(dst.join("owner"), None, Some(4321)).unwrap();
    chmod(dst.join("mode"), 0o777);
    chmod(dst.join("setuid"), 0o755);
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&sync);
    assert_same_in_all(&src, &dst);
    assert_eq!(sync.sent_bytes, 0, "{sync:#?}");
    assert_eq!(count(&sync, EntryAction::Metadata), 8, "{:#?}", sync.actions);
    assert_eq!(before, ["attribute", "acl", "owner", "setuid"].map(inode));
}

#[test]
fn nothing_is_inherited_from_a_default_acl_at_the_destination() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    set_xattr(&dst, DEFAULT_ACL, &acl(7));
    file(src.join("plain"), "x");
    file(src.join("folder/in it"), noise(3 * MIB, 1));
    link(src.join("link"), "plain");
    must("mkfifo", [src.join("fifo")]);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    assert_same_in_all(&src, &dst);
    assert_eq!(xattr(&dst.join("plain"), ACL), None);
}

#[test]
fn what_is_preserved_can_be_narrowed() {
    as_root("owners");
    let mut cluster = Cluster::start(On::Embedded);
    let (src, all) = cluster.pair();
    file(src.join("file"), noise(3 * MIB, 1));
    chmod(src.join("file"), 0o6711);
    set_xattr(&src.join("file"), "user.a", b"a");
    set_xattr(&src.join("file"), ACL, &acl(6));
    std::os::unix::fs::lchown(src.join("file"), Some(1000), Some(1001)).unwrap();
    touch(src.join("file"), 1_000_000_000, 7);
    fs::hard_link(src.join("file"), src.join("same")).unwrap();
    must("mkfifo", [src.join("fifo")]);
    let meta = |dst: &Path| fs::metadata(dst.join("file")).unwrap();

    let dst = all.join("none");
    let sync = cluster.sync_with(&src, &dst, json!({"preserve": ["none"]}));
    assert_full(&sync);
    let got = meta(&dst);
    assert_eq!((got.uid(), got.gid(), got.nlink()), (0, 0, 1));
    assert_eq!(got.mode() & 0o7000, 0);
    assert!(got.mtime() > 1_700_000_000, "{}", got.mtime());
    assert_eq!((xattr(&dst.join("file"), "user.a"), xattr(&dst.join("file"), ACL)), (None, None));
    assert!(fs::read(dst.join("file")).unwrap() == fs::read(src.join("file")).unwrap());
    assert!(!dst.join("fifo").exists() && sync.files_skipped == 1, "{sync:#?}");

    let dst = all.join("some");
    let some = json!({"preserve": ["times", "hardlinks", "xattrs"]});
    assert_full(&cluster.sync_with(&src, &dst, some));
    let got = meta(&dst);
    assert_eq!((got.uid(), got.nlink(), got.mtime(), got.mtime_nsec()), (0, 2, 1_000_000_000, 7));
    assert_eq!(xattr(&dst.join("file"), "user.a").as_deref(), Some(&b"a"[..]));
    assert_eq!(xattr(&dst.join("file"), ACL), None);

    let dst = all.join("given");
    let given = json!({"chown": {"uid": 77, "gid": 88}});
    assert_full(&cluster.sync_with(&src, &dst, given.clone()));
    assert_eq!((meta(&dst).uid(), meta(&dst).gid()), (77, 88));
    assert_eq!(meta(&dst).mode() & 0o7777, fs::metadata(src.join("file")).unwrap().mode() & 0o7777);
    let root = fs::metadata(&dst).unwrap();
    assert_eq!((root.uid(), root.gid()), (77, 88), "directories too");
    let again = cluster.sync_with(&src, &dst, given);
    assert_eq!((again.files_done, count(&again, EntryAction::Metadata)), (0, 0), "{again:#?}");
}

#[test]
fn symbolic_links_can_be_followed_or_left_out() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, all) = cluster.pair();
    let tree = dir(src.join("tree"));
    file(tree.join("file"), "content");
    file(src.join("beside/in it"), noise(3 * MIB, 2));
    link(tree.join("to a file"), "file");
    link(tree.join("to a folder"), "../beside");
    let dst = all.join("skip");
    let sync = cluster.sync_with(&tree, &dst, json!({"links": "skip"}));
    assert_full(&sync);
    assert_eq!(crate::paths_of(&dst), ["file"]);
    assert_eq!(noted(&sync, &["link"]), 2, "{:#?}", sync.warnings);

    let dst = all.join("copy");
    assert_full(&cluster.sync_with(&tree, &dst, json!({"links": "copy"})));
    assert_eq!(crate::paths_of(&dst), ["file", "to a file", "to a folder", "to a folder/in it"]);
    assert!(fs::symlink_metadata(dst.join("to a file")).unwrap().is_file());
    assert_eq!(fs::read(dst.join("to a file")).unwrap(), b"content");
    let inside = fs::read(dst.join("to a folder/in it")).unwrap();
    assert!(inside == fs::read(src.join("beside/in it")).unwrap());

    // What leads out of what the agent holds, or nowhere, or round, is named; the rest arrives.
    link(tree.join("out"), "/etc/hostname");
    link(tree.join("round"), ".");
    link(tree.join("nowhere"), "no such thing");
    let dst = all.join("copy again");
    let sync = cluster.sync_with(&tree, &dst, json!({"links": "copy"}));
    assert!(sync.state.is_final(), "{sync:#?}");
    assert_eq!(fs::read(dst.join("file")).unwrap(), b"content");
    assert!(!dst.join("out").exists(), "nothing from outside of the storage path");
    let told = format!("{:?} {:?}", sync.warnings, sync.errors);
    for name in ["out", "round", "nowhere"] {
        assert!(told.contains(name), "{name} is named: {sync:#?}");
    }
}

#[test]
fn holes_stay_holes_and_zeros_become_holes_only_where_asked() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, all) = cluster.pair();
    // 2 MiB of zeros between data, 1 byte over a block; and a file that is nothing but a hole.
    let mut zeros = noise(MIB + 1, 1);
    zeros.extend(vec![0; 2 * MIB]);
    zeros.extend(noise(5_000, 2));
    file(src.join("zeros"), &zeros);
    let small = file(src.join("small zeros"), [vec![1; 10], vec![0; 900_000]].concat());
    fs::File::create(src.join("hole")).unwrap().set_len(40 * MIB as u64).unwrap();
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let (full, small_full) = (blocks(&src.join("zeros")), blocks(&small));

    let dst = all.join("kept");
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&sync);
    assert_same_in_all(&src, &dst);
    assert!(blocks(&dst.join("zeros")) >= full, "zeros stay zeros");
    assert_eq!(blocks(&dst.join("hole")), 0);
    assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");

    let dst = all.join("punched");
    assert_full(&cluster.sync_with(&src, &dst, json!({"punch_zeros": true})));
    assert!(blocks(&dst.join("zeros")) < full - MIB as u64, "{}", blocks(&dst.join("zeros")));
    assert!(blocks(&dst.join("small zeros")) < small_full, "{}", blocks(&dst.join("small zeros")));
    assert_eq!(rsync_finds(&src, &dst), "");

    let dst = all.join("filled");
    assert_full(&cluster.sync_with(&src, &dst, json!({"preserve": ["no-sparse"]})));
    assert!(blocks(&dst.join("hole")) >= 40 * MIB as u64, "{}", blocks(&dst.join("hole")));
    assert_eq!(rsync_finds(&src, &dst), "");
}

/// A file system of its own on a directory, until this is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(kind: &str, at: std::path::PathBuf) -> Mounted {
        let mounted = Mounted(dir(at));
        must("mount", ["-t".as_ref(), kind.as_ref(), "none".as_ref(), mounted.0.as_os_str()]);
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Data at some places of a file of this length, and holes between them.
fn sparse(path: &Path, length: u64, at: &[u64]) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::create(path).unwrap();
    file.set_len(length).unwrap();
    for (i, at) in at.iter().enumerate() {
        file.write_all_at(&noise(100_000, i as u64), *at).unwrap();
    }
}

#[test]
fn file_systems_that_know_no_holes_give_and_take_them_as_zeros() {
    as_root("mounts");
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    // One says of a file that all of it is data, and has no such thing as a hole to make.
    let _from = Mounted::new("ramfs", src.join("without"));
    let _to = Mounted::new("ramfs", dst.join("into"));
    let length = 24 * MIB as u64;
    for below in ["with", "without"] {
        let file = dir(src.join(below)).join("holes");
        sparse(&file, length, &[MIB as u64, length / 2 + 5, length - 100_000]);
        sparse(&src.join(below).join("nothing"), 3 * MIB as u64, &[]);
    }
    for from in ["with", "without"] {
        for to in ["into", "beside"] {
            let (src, dst) = (src.join(from), dst.join(to).join(from));
            for _ in 0..2 {
                let sync = cluster.sync_with(&src, &dst, json!({}));
                assert_full(&sync);
                assert_eq!(rsync_finds(&src, &dst), "", "{from} {to}");
            }
        }
    }
}

#[test]
fn terabytes_of_holes_cost_nothing_and_take_no_room() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let length: u64 = 4 << 40;
    // One has less data than a batch holds, the other more: it is sent in ranges.
    let places = |n: u64| (0..n).map(|i| i * (length - 100_000) / (n - 1)).collect::<Vec<u64>>();
    let files = [("few", places(3)), ("more", places(16))];
    for (name, places) in &files {
        sparse(&src.join(name), length, places);
    }
    let chunks = |options| json!({"chunk_size_mb": 1, "options": options});
    let first = [("transfer", 2, 0), ("transfer", 0, 2), ("none", 0, 2)];
    for (verify, done, skipped) in first {
        let sync =
            cluster.ended(&cluster.submit_with(&src, &dst, chunks(json!({"verify": verify}))));
        assert_full(&sync);
        assert!(sync.sent_bytes < 5 * MIB as u64, "holes are not sent: {sync:#?}");
        assert_eq!((sync.files_done, sync.files_skipped), (done, skipped), "{sync:#?}");
        assert_eq!(sync.total_bytes, 2 * length);
    }
    for (options, count) in
        [(json!({"compare": "checksum"}), 0), (json!({"verify": "readback"}), 2)]
    {
        let sync = cluster.ended(&cluster.submit_with(&src, &dst, chunks(options)));
        assert_full(&sync);
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
    let sync = cluster.ended(&cluster.submit_with(&src, &dst, chunks(json!({}))));
    assert_full(&sync);
    assert!((1..MIB as u64).contains(&sync.sent_bytes), "{sync:#?}");
    let mut read = [0];
    fs::File::open(dst.join("more")).unwrap().read_exact_at(&mut read, length / 2 + 7).unwrap();
    assert_eq!(read, *b"x");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn very_many_names_of_one_file_are_one_file() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    // Links are counted in 16 bits in places.
    let names = 20_000;
    let first = file(src.join("first"), noise(10_000, 1));
    for i in 0..names {
        let below = if i % 1000 == 0 {
            dir(src.join(format!("{}", i / 1000)))
        } else {
            src.join(format!("{}", i / 1000))
        };
        fs::hard_link(&first, below.join(format!("{i}"))).unwrap();
    }
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&sync);
    assert!(sync.sent_bytes < 20 * 10_000, "names are made, not content sent: {sync:#?}");
    let there = fs::metadata(dst.join("first")).unwrap();
    assert_eq!(there.nlink(), names + 1);
    assert_eq!(rsync_finds(&src, &dst), "");
    assert!(part_files(&dst).is_empty());
}

/// Files with several names, large and small, in many folders.
fn linked(src: &Path) {
    for i in 0..200 {
        let first = file(src.join(format!("a/{}/{i}", i % 5)), noise(2_000 + i, i as u64));
        let other = dir(src.join(format!("z/{}", i % 7))).join(format!("also {i}"));
        fs::hard_link(first, other).unwrap();
    }
    let large = file(src.join("m/large"), noise(24 * MIB, 7));
    fs::hard_link(&large, src.join("a/0/large too")).unwrap();
    fs::hard_link(&large, src.join("z/large three")).unwrap();
}

#[test]
fn names_of_one_file_follow_the_source() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    linked(&src);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    assert_same_in_all(&src, &dst);
    // One name becomes a file of its own, one gets another name, one group loses a name.
    fs::remove_file(src.join("z/0/also 0")).unwrap();
    file(src.join("z/0/also 0"), "on its own");
    fs::hard_link(src.join("a/1/1"), src.join("new name")).unwrap();
    fs::remove_file(src.join("a/2/2")).unwrap();
    fs::remove_file(dst.join("a/2/2")).unwrap();
    fs::remove_file(src.join("z/large three")).unwrap();
    fs::hard_link(src.join("a/3/3"), src.join("z/large three")).unwrap();
    // And somebody parts a group at the destination, or joins two that are none.
    let parted = dst.join("a/4/4");
    let (content, meta) = (fs::read(&parted).unwrap(), fs::metadata(&parted).unwrap());
    fs::remove_file(&parted).unwrap();
    file(&parted, content);
    touch(&parted, meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap());
    let sync = cluster.sync_with(&src, &dst, json!({}));
    assert_full(&sync);
    assert_same_in_all(&src, &dst);
    assert!(sync.sent_bytes < 20_000, "names are made, not content sent: {sync:#?}");
    assert!(part_files(&dst).is_empty());
}

#[test]
fn names_that_are_one_file_at_the_destination_only_are_parted() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    for name in ["one", "two"] {
        touch(file(src.join(name), "equal"), 1_600_000_000, 5);
    }
    touch(file(dst.join("one"), "equal"), 1_600_000_000, 5);
    fs::hard_link(dst.join("one"), dst.join("two")).unwrap();
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    // rsync leaves such names as they are; a later change of one must not reach the other.
    touch(file(src.join("one"), "EQUAL!"), 1_600_000_001, 5);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    assert_eq!(rsync_finds(&src, &dst), "");
    assert_eq!(fs::read(dst.join("two")).unwrap(), b"equal");
}

#[test]
fn names_of_one_file_stay_one_when_an_agent_is_killed() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    linked(&src);
    file(src.join("larger"), noise(96 * MIB, 9));
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 4}));
    await_that("some has arrived", || dst.join("a").exists() || !part_files(&dst).is_empty());
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().kill_9();
    }
    for name in ["b", "a2"] {
        cluster.agents.get_mut(name).unwrap().restart();
    }
    assert_full(&cluster.ended(&id));
    assert_same_in_all(&src, &dst);
    assert!(part_files(&dst).is_empty());
}

#[test]
fn directory_times_are_right_though_many_agents_wrote_into_them() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.four();
    many(&src, 600, 4_000);
    for i in 0..6 {
        file(src.join(format!("{i:03}/large")), noise(3 * MIB, i));
        file(src.join(format!("{i:03}/below/deeper/x")), "x");
        for (place, time) in [("below/deeper", 1), ("below", 2), ("", 3)] {
            touch(src.join(format!("{i:03}")).join(place), 1_500_000_000 + time, 77);
        }
    }
    touch(&src, 1_400_000_000, 999_999_999);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    assert_same_in_all(&src, &dst);
    let extra: Vec<_> = (0..6).map(|i| file(dst.join(format!("{i:03}/extra")), "x")).collect();
    assert_full(&cluster.sync_with(&src, &dst, json!({"delete": {}})));
    assert!(extra.iter().all(|path| !path.exists()));
    assert_same_in_all(&src, &dst);
}

#[test]
fn a_tree_of_root_only_modes_can_be_copied_again_by_its_owner() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    file(src.join("closed/deeper/file"), "one");
    file(src.join("closed/other"), noise(3 * MIB, 1));
    User::Ordinary.give_all(&src);
    User::Ordinary.give(&dst);
    for closed in ["closed/deeper", "closed"] {
        chmod(src.join(closed), 0o555);
    }
    cluster.agent_with("a", &[&src], User::Ordinary, "");
    cluster.agent_with("b", &[&dst], User::Ordinary, "");
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    touch(file(src.join("closed/deeper/file"), "two!"), 1_700_000_000, 1);
    assert_full(&cluster.sync_with(&src, &dst, json!({})));
    // Deleting in them is no harder than writing.
    chmod(src.join("closed"), 0o755);
    fs::remove_file(src.join("closed/other")).unwrap();
    chmod(src.join("closed"), 0o555);
    assert_full(&cluster.sync_with(&src, &dst, json!({"delete": {}})));
    let strict = tree::Compare { owners: false, extra: false };
    tree::assert_same(&src, &dst, strict);
    for tree in [&src, &dst] {
        for closed in ["closed", "closed/deeper"] {
            chmod(tree.join(closed), 0o755);
        }
    }
}
