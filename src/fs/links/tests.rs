use super::super::testing::*;
use super::super::{TargetOptions, Verdict};
use super::*;
use crate::wire::SyncNo;
use crate::wire::options::{EntryAction, Preserve, WriteRules};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

const SKIP: Verdict = Verdict::Done(EntryAction::Skip);
const CREATE: Verdict = Verdict::Done(EntryAction::Create);
const UPDATE: Verdict = Verdict::Done(EntryAction::Update);
const NEEDED: Verdict = Verdict::Needed { action: EntryAction::Create, base: false };

/// `one`, `d/two` and `d/e/three` are one file.
fn linked_site() -> Site {
    let site = Site::new();
    site.write("src/one", "content");
    fs::create_dir_all(site.at("src/d/e")).unwrap();
    for other in ["src/d/two", "src/d/e/three"] {
        fs::hard_link(site.at("src/one"), site.at(other)).unwrap();
    }
    touch(&site.at("src/one"), 1_000_000_000, 7);
    site
}

fn inode(site: &Site, path: &str) -> (u64, u64) {
    let stat = fs::symlink_metadata(site.at(path)).unwrap();
    (stat.ino(), stat.nlink())
}

/// Another agent's view of the same destination.
fn bring(site: &Site, path: &str) -> Verdict {
    copy(&site.source(), &site.target(), &batch_of(&site.source(), path)).remove(0)
}

fn sweep(site: &Site) {
    let root = site.source().chain(&rel("x")).unwrap();
    site.target().sweep(Some(&root[0])).unwrap();
}

#[test]
fn names_of_one_file_stay_names_of_one_file_whoever_brings_them() {
    let site = linked_site();
    symlink("nowhere", site.at("src/link")).unwrap();
    fs::hard_link(site.at("src/link"), site.at("src/d/link")).unwrap();
    let fifo = site.at("src/pipe");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::hard_link(&fifo, site.at("src/d/pipe")).unwrap();
    site.write("src/empty", "");
    fs::hard_link(site.at("src/empty"), site.at("src/d/empty")).unwrap();
    touch(&site.at("src/d"), 500, 5);
    touch(&site.at("src"), 400, 4);
    let paths: Vec<RelPath> =
        manifest(&site.source()).entries.iter().map(|e| e.path.clone()).collect();
    // Each in a batch of its own, from the end.
    for path in paths.iter().rev() {
        bring(&site, std::str::from_utf8(path.as_bytes()).unwrap());
    }
    for (group, nlink) in [
        (&["one", "d/two", "d/e/three"][..], 3),
        (&["link", "d/link"], 2),
        (&["pipe", "d/pipe"], 2),
        (&["empty", "d/empty"], 2),
    ] {
        let all: Vec<_> = group.iter().map(|p| inode(&site, &format!("dst/{p}"))).collect();
        assert!(all.iter().all(|one| *one == (all[0].0, nlink + 1)), "{group:?} {all:?}");
    }
    // They are nothing that a walk would show.
    let shown = manifest(&site.tree("dst")).entries;
    assert!(shown.iter().map(|e| &e.path).eq(&paths));
    sweep(&site);
    assert_eq!(inode(&site, "dst/one").1, 3);
    assert_eq!(snapshot(&site.at("dst")), snapshot(&site.at("src")));
    sweep(&site);
}

#[test]
fn the_second_name_needs_no_content() {
    let site = linked_site();
    assert_eq!(bring(&site, "d/two"), NEEDED);
    let target = site.target();
    assert!(!target.has_anchors());
    assert_eq!(target.reconcile(&batch_of(&site.source(), "one")).verdicts, [CREATE]);
    assert!(target.has_anchors());
    assert_eq!(target.reconcile(&batch_of(&site.source(), "one")).verdicts, [SKIP]);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
    assert!(names_in(&site.at("dst/d")).iter().all(|name| !super::super::is_ours(name)));
}

#[test]
fn a_name_in_a_directory_that_is_missing_needs_no_content() {
    let site = linked_site();
    assert_eq!(bring(&site, "one"), NEEDED);
    let mut batch = batch_of(&site.source(), "d/e/three");
    batch.dirs.clear();
    assert_eq!(site.target().reconcile(&batch).verdicts, [CREATE]);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/e/three").0, 3));
}

#[test]
fn a_file_that_can_have_no_further_name_is_copied_and_the_shortfall_is_counted() {
    let site = Site::new();
    // The kernel lets nobody link to a program of another user that runs with that user's rights.
    let rule = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap();
    assert_eq!(rule.trim(), "1", "this test needs `sysctl fs.protected_hardlinks=1`");
    site.write("src/one", "content");
    fs::hard_link(site.at("src/one"), site.at("src/two")).unwrap();
    touch(&site.at("src/one"), 1_000_000_000, 7);
    site.give_to_nobody();
    bring(&site, "one");
    for entry in walkdir::WalkDir::new(site.at("dst")) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
    }
    std::os::unix::fs::chown(site.at("dst/one"), Some(0), Some(0)).unwrap();
    site.run_as_nobody(|| {
        let target = site.target();
        let batch = batch_of(&site.source(), "two");
        assert_eq!(copy(&site.source(), &target, &batch), [NEEDED]);
        assert_eq!(inode(&site, "dst/two").1, 1);
        let cause = Shortfall::HardLink(Errno::PERM).to_string();
        assert_eq!(target.notes()[&cause].count, 1);
    });
}

#[test]
fn a_repeated_sync_finds_the_names_linked_and_links_those_that_are_not() {
    let site = linked_site();
    for path in ["one", "d/two", "d/e/three"] {
        bring(&site, path);
    }
    sweep(&site);
    let first = inode(&site, "dst/one").0;
    // One of them has become a file of its own, of the same content and time.
    fs::remove_file(site.at("dst/d/two")).unwrap();
    site.write("dst/d/two", "content");
    touch(&site.at("dst/d/two"), 1_000_000_000, 7);
    assert_eq!(bring(&site, "one"), SKIP);
    assert_eq!(bring(&site, "d/two"), UPDATE);
    assert_eq!(bring(&site, "d/e/three"), SKIP);
    sweep(&site);
    for path in ["one", "d/two", "d/e/three"] {
        assert_eq!(inode(&site, &format!("dst/{path}")), (first, 3));
    }
}

#[test]
fn of_two_that_bring_a_name_at_once_the_second_joins_the_first() {
    let site = linked_site();
    let (source, target) = (site.source(), site.target());
    let entry = |path: &str| source.entry(&rel(path)).unwrap();
    let (a, b) = (entry("one"), entry("d/two"));
    let mut files = [target.create(&a, 1).unwrap(), target.create(&b, 1).unwrap()];
    for file in &mut files {
        file.write(b"content").unwrap();
    }
    let [first, second] = files;
    first.publish(&a).unwrap();
    second.publish(&b).unwrap();
    assert_eq!(inode(&site, "dst/one"), inode(&site, "dst/d/two"));
    assert_eq!(names_in(&site.at("dst/d")), [b"two"]);
    // Published again (the answer got lost): it is that file already, and nothing is left over.
    send(&source, &target, &b).unwrap();
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
    assert_eq!(names_in(&site.at("dst/d")), [b"two"]);
    // A large one.
    let c = entry("d/e/three");
    target.part(&c).unwrap().write_at(b"content", 0).unwrap();
    for _ in 0..2 {
        target.publish_part(&c, None).unwrap();
    }
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/e/three").0, 4));
    assert_eq!(names_in(&site.at("dst/d/e")), [b"three"]);
}

#[test]
fn many_at_once_end_with_one_file() {
    let site = Site::new();
    site.write("src/f0", "content");
    for i in 1..16 {
        fs::hard_link(site.at("src/f0"), site.at(&format!("src/f{i}"))).unwrap();
    }
    let batches: Vec<_> = (0..16).map(|i| batch_of(&site.source(), &format!("f{i}"))).collect();
    std::thread::scope(|scope| {
        for batch in &batches {
            scope.spawn(|| copy(&site.source(), &site.target(), batch));
        }
    });
    sweep(&site);
    let first = inode(&site, "dst/f0");
    assert_eq!(first.1, 16);
    assert!((0..16).all(|i| inode(&site, &format!("dst/f{i}")) == first));
    assert_eq!(names_in(&site.at("dst")).len(), 16);
}

#[test]
fn renaming_a_name_to_another_name_of_the_same_file_leaves_nothing_behind() {
    let site = linked_site();
    bring(&site, "one");
    bring(&site, "d/two");
    let target = site.target();
    let entry = site.source().entry(&rel("d/two")).unwrap();
    let place = target.place(&entry.path).unwrap();
    let anchor = target.anchor(&entry).unwrap().unwrap();
    target.link_over(&place.dir, place.name, &entry, &anchor).unwrap();
    assert_eq!(names_in(&site.at("dst/d")), [b"two"]);
}

#[test]
fn an_anchor_that_somebody_wrote_to_is_no_anchor_any_more() {
    let site = linked_site();
    bring(&site, "one");
    fs::write(site.at("dst/one"), "written to").unwrap();
    assert_eq!(bring(&site, "d/two"), NEEDED);
    assert_eq!(bring(&site, "d/e/three"), CREATE);
    assert_eq!(bring(&site, "one"), UPDATE);
    assert_eq!(fs::read(site.at("dst/d/e/three")).unwrap(), b"content");
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 4));
}

#[test]
fn two_files_that_are_one_at_the_destination_are_parted() {
    let site = Site::new();
    for (a, b) in [("a1", "a2"), ("b1", "b2")] {
        site.write(format!("src/{a}"), "content");
        fs::hard_link(site.at(&format!("src/{a}")), site.at(&format!("src/{b}"))).unwrap();
        touch(&site.at(&format!("src/{a}")), 1000, 0);
    }
    fs::set_permissions(site.at("src/b1"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    site.write("dst/a1", "content");
    for other in ["a2", "b1", "b2"] {
        fs::hard_link(site.at("dst/a1"), site.at(&format!("dst/{other}"))).unwrap();
    }
    touch(&site.at("dst/a1"), 1000, 0);
    for path in ["a1", "b1", "a2", "b2"] {
        bring(&site, path);
    }
    sweep(&site);
    let [a1, a2, b1, b2] = ["a1", "a2", "b1", "b2"].map(|p| inode(&site, &format!("dst/{p}")));
    assert_eq!((a1, b1, a1.1, b1.1), (a2, b2, 2, 2));
    assert_ne!(a1.0, b1.0);
    for path in ["a1", "b2"] {
        let mode = |at: &str| fs::metadata(site.at(&format!("{at}/{path}"))).unwrap().mode();
        assert_eq!(mode("dst"), mode("src"));
    }
}

#[test]
fn metadata_of_linked_files_are_repaired_without_content() {
    let site = linked_site();
    for path in ["one", "d/two", "d/e/three"] {
        bring(&site, path);
    }
    sweep(&site);
    let before = inode(&site, "dst/one");
    std::os::unix::fs::chown(site.at("dst/one"), None, Some(77)).unwrap();
    assert_eq!(bring(&site, "d/two"), Verdict::Done(EntryAction::Metadata));
    for path in ["one", "d/e/three"] {
        assert_eq!(bring(&site, path), SKIP);
    }
    assert_eq!(fs::metadata(site.at("dst/one")).unwrap().gid(), 0);
    sweep(&site);
    assert_eq!(inode(&site, "dst/one"), before);
}

#[test]
fn anchors_of_somebody_else_are_not_used() {
    let site = linked_site();
    bring(&site, "one");
    let dir = site.at("dst").join(os(&site.target().anchors_name()));
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    let target = site.target();
    let batch = batch_of(&site.source(), "d/two");
    copy(&site.source(), &target, &batch);
    assert_ne!(inode(&site, "dst/d/two").0, inode(&site, "dst/one").0);
    let cause = Shortfall::HardLink(Errno::PERM).to_string();
    assert_eq!(target.notes()[&cause].count, 1);
    // A link in their place leads nowhere, and is removed like anything of ours.
    sweep(&site);
    symlink(site.at("canary"), &dir).unwrap();
    copy(&site.source(), &site.target(), &batch);
    site.assert_canary();
    sweep(&site);
    assert!(fs::symlink_metadata(&dir).is_err());
    site.assert_canary();
}

#[test]
fn without_links_being_kept_or_in_a_dry_run_there_are_no_anchors() {
    let site = linked_site();
    let batch = batch_of(&site.source(), "one");
    assert!(batch.entries[0].is_hardlinked);
    let single = Target::new(
        site.tree("dst/single"),
        SyncNo(7),
        TargetOptions::of_this_process(WriteRules::default()),
    );
    let alone = manifest(&site.tree("src/one").keeping(Preserve::all()));
    copy(&site.tree("src/one"), &single, &alone);
    single.sweep(None).unwrap();
    assert_eq!(names_in(&site.at("dst")), [b"single"]);
    let preserve = Preserve::all().without(Attribute::Hardlinks);
    let plain = site.target_by(WriteRules { preserve, ..WriteRules::default() });
    copy(&site.source(), &plain, &batch);
    assert!(!plain.has_anchors());
    let dry = site.target_by(WriteRules { dry_run: true, ..WriteRules::default() });
    assert_eq!(dry.reconcile(&batch).verdicts, [SKIP]);
    assert_eq!(names_in(&site.at("dst")), [&b"one"[..], b"single"]);
    assert!(!site.source().keeping(preserve).entry(&rel("one")).unwrap().is_hardlinked);
}

#[test]
fn a_deep_file_is_linked_to_a_name_at_the_top() {
    let site = Site::new();
    let end = dig(&site.at("src"), 150);
    let source = site.source();
    let deep = source.place(&end).unwrap();
    rustix::fs::linkat(&deep.dir, "end", CWD, site.at("src/top"), AtFlags::empty()).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(site.at("src/top"), "user.x", b"deep", flags).unwrap();
    let batch = manifest(&site.source());
    let last = batch.entries.iter().find(|e| e.path == end).unwrap();
    assert_eq!((last.is_hardlinked, last.xattrs.len()), (true, 1));
    copy(&site.source(), &site.target(), &batch);
    sweep(&site);
    assert_eq!(inode(&site, "dst/top").1, 2);
    assert_eq!(get_xattr(&site.at("dst/top"), "user.x"), Some(b"deep".to_vec()));
    let there = site.tree("dst").keeping(Preserve::all()).entry(&end).unwrap();
    assert_eq!((there.meta, &there.xattrs), (last.meta, &last.xattrs));
}

#[test]
fn the_second_pass_reads_linked_files_as_well_and_links_to_nothing_that_is_wrong() {
    let site = linked_site();
    for path in ["one", "d/two", "d/e/three"] {
        bring(&site, path);
    }
    let again = WriteRules {
        compare: crate::wire::options::Compare::Checksum,
        readback: true,
        ..WriteRules::default()
    };
    let pass = |path: &str| {
        let target = site.target_by(again.clone());
        let mut batch = batch_of(&site.source(), path);
        let first = target.reconcile(&batch).verdicts.remove(0);
        if first != Verdict::Check {
            return first;
        }
        batch.entries[0].digest = Some(blake3::hash(b"content").into());
        copy(&site.source(), &target, &batch).remove(0)
    };
    // As after a write that went wrong: nothing but the content tells.
    fs::write(site.at("dst/one"), "kontent").unwrap();
    touch(&site.at("dst/one"), 1_000_000_000, 7);
    assert_eq!(pass("d/two"), Verdict::Needed { action: EntryAction::Update, base: true });
    assert_eq!([pass("one"), pass("d/e/three")], [UPDATE, UPDATE]);
    for path in ["one", "d/two", "d/e/three"] {
        assert_eq!(fs::read(site.at("dst").join(path)).unwrap(), b"content", "{path}");
    }
    assert_eq!([pass("one"), pass("d/two")], [SKIP, SKIP]);
    sweep(&site);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
}
