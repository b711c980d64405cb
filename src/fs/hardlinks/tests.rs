use super::super::testing::*;
use super::super::{OfferDecision, TargetOptions};
use super::*;
use crate::wire::SyncNo;
use crate::wire::entry_report::EntryAction;
use crate::wire::options::WriteRules;
use crate::wire::preserve::Preserve;
use rustix::fs::FileType;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

const SKIP: Decision = Ok(OfferDecision::Done(EntryAction::Skip));
const CREATE: Decision = Ok(OfferDecision::Done(EntryAction::Create));
const UPDATE: Decision = Ok(OfferDecision::Done(EntryAction::Update));
const NEEDED: Decision =
    Ok(OfferDecision::NeedsContent { action: EntryAction::Create, has_basis: false });

/// `one`, `d/two` and `d/e/three` are one file.
fn site_with_hardlinks() -> TestSite {
    let site = TestSite::new();
    site.write_file("src/one", "content");
    fs::create_dir_all(site.path("src/d/e")).unwrap();
    for other in ["src/d/two", "src/d/e/three"] {
        fs::hard_link(site.path("src/one"), site.path(other)).unwrap();
    }
    set_file_mtime(&site.path("src/one"), 1_000_000_000, 7);
    site
}

fn inode(site: &TestSite, path: &str) -> (u64, u64) {
    let stat = fs::symlink_metadata(site.path(path)).unwrap();
    (stat.ino(), stat.nlink())
}

/// Another agent's view of the same destination.
fn copy_one(site: &TestSite, path: &str) -> Decision {
    copy_batch(&site.source(), &site.target(), &single_entry_batch(&site.source(), path)).remove(0)
}

fn clean_up(site: &TestSite) {
    let root = site.source().parent_dirs(&rel("x")).unwrap();
    site.target().clean_up_anchors(Some(&root[0])).unwrap();
}

#[test]
fn hardlinked_names_stay_one_file_whichever_agent_copies_them() {
    let site = site_with_hardlinks();
    symlink("nowhere", site.path("src/link")).unwrap();
    fs::hard_link(site.path("src/link"), site.path("src/d/link")).unwrap();
    let fifo = site.path("src/pipe");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::hard_link(&fifo, site.path("src/d/pipe")).unwrap();
    site.write_file("src/empty", "");
    fs::hard_link(site.path("src/empty"), site.path("src/d/empty")).unwrap();
    set_file_mtime(&site.path("src/d"), 500, 5);
    set_file_mtime(&site.path("src"), 400, 4);
    let paths: Vec<RelPath> =
        full_manifest(&site.source()).entries.iter().map(|e| e.path.clone()).collect();
    // Each in a batch of its own, from the end.
    for path in paths.iter().rev() {
        copy_one(&site, std::str::from_utf8(path.as_bytes()).unwrap()).unwrap();
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
    let shown = full_manifest(&site.tree("dst")).entries;
    assert!(shown.iter().map(|e| &e.path).eq(&paths));
    clean_up(&site);
    assert_eq!(inode(&site, "dst/one").1, 3);
    assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
    clean_up(&site);
}

#[test]
fn the_second_name_needs_no_content() {
    let site = site_with_hardlinks();
    assert_eq!(copy_one(&site, "d/two"), NEEDED);
    let target = site.target();
    assert!(!target.has_anchors());
    assert_eq!(target.reconcile(&single_entry_batch(&site.source(), "one")).decisions, [CREATE]);
    assert!(target.has_anchors());
    assert_eq!(target.reconcile(&single_entry_batch(&site.source(), "one")).decisions, [SKIP]);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
    assert!(
        sorted_names(&site.path("dst/d")).iter().all(|name| !super::super::is_internal_name(name))
    );
}

#[test]
fn a_hardlinked_name_in_a_missing_directory_needs_no_content() {
    let site = site_with_hardlinks();
    assert_eq!(copy_one(&site, "one"), NEEDED);
    let mut batch = single_entry_batch(&site.source(), "d/e/three");
    batch.dirs.clear();
    assert_eq!(site.target().reconcile(&batch).decisions, [CREATE]);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/e/three").0, 3));
}

#[test]
fn a_file_at_its_link_limit_is_copied_and_a_warning_is_counted() {
    let site = TestSite::new();
    // The kernel permits no link to another user's set-uid program.
    let rule = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap();
    assert_eq!(rule.trim(), "1", "this test needs `sysctl fs.protected_hardlinks=1`");
    site.write_file("src/one", "content");
    fs::hard_link(site.path("src/one"), site.path("src/two")).unwrap();
    set_file_mtime(&site.path("src/one"), 1_000_000_000, 7);
    site.chown_all_to_nobody();
    copy_one(&site, "one").unwrap();
    for entry in walkdir::WalkDir::new(site.path("dst")) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
    }
    std::os::unix::fs::chown(site.path("dst/one"), Some(0), Some(0)).unwrap();
    site.run_as_nobody(|| {
        let target = site.target();
        let batch = single_entry_batch(&site.source(), "two");
        assert_eq!(copy_batch(&site.source(), &target, &batch), [NEEDED]);
        assert_eq!(inode(&site, "dst/two").1, 1);
        let cause = MetadataWarning::HardLink(Errno::PERM).to_string();
        assert_eq!(target.take_metadata_warnings()[&cause].count, 1);
    });
}

#[test]
fn a_repeated_sync_skips_linked_names_and_links_the_others() {
    let site = site_with_hardlinks();
    for path in ["one", "d/two", "d/e/three"] {
        copy_one(&site, path).unwrap();
    }
    clean_up(&site);
    let first = inode(&site, "dst/one").0;
    // One of them has become a file of its own, of the same content and time.
    fs::remove_file(site.path("dst/d/two")).unwrap();
    site.write_file("dst/d/two", "content");
    set_file_mtime(&site.path("dst/d/two"), 1_000_000_000, 7);
    assert_eq!(copy_one(&site, "one"), SKIP);
    assert_eq!(copy_one(&site, "d/two"), UPDATE);
    assert_eq!(copy_one(&site, "d/e/three"), SKIP);
    clean_up(&site);
    for path in ["one", "d/two", "d/e/three"] {
        assert_eq!(inode(&site, &format!("dst/{path}")), (first, 3));
    }
}

#[test]
fn of_two_concurrent_writers_of_hardlinked_names_the_second_links_to_the_first() {
    let site = site_with_hardlinks();
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
    assert_eq!(sorted_names(&site.path("dst/d")), [b"two"]);
    // Published again (the answer got lost): it is that file already, and nothing is left over.
    send_file(&source, &target, &b).unwrap();
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
    assert_eq!(sorted_names(&site.path("dst/d")), [b"two"]);
    // A large one.
    let c = entry("d/e/three");
    target.open_part_file(&c).unwrap().write_at(b"content", 0).unwrap();
    for _ in 0..2 {
        target.publish_part_file(&c, None).unwrap();
    }
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/e/three").0, 4));
    assert_eq!(sorted_names(&site.path("dst/d/e")), [b"three"]);
}

#[test]
fn many_concurrent_writers_of_hardlinked_names_end_with_one_file() {
    let site = TestSite::new();
    site.write_file("src/f0", "content");
    for i in 1..16 {
        fs::hard_link(site.path("src/f0"), site.path(&format!("src/f{i}"))).unwrap();
    }
    let batches: Vec<_> =
        (0..16).map(|i| single_entry_batch(&site.source(), &format!("f{i}"))).collect();
    std::thread::scope(|scope| {
        for batch in &batches {
            scope.spawn(|| copy_batch(&site.source(), &site.target(), batch));
        }
    });
    clean_up(&site);
    let first = inode(&site, "dst/f0");
    assert_eq!(first.1, 16);
    assert!((0..16).all(|i| inode(&site, &format!("dst/f{i}")) == first));
    assert_eq!(sorted_names(&site.path("dst")).len(), 16);
}

#[test]
fn renaming_a_name_to_another_name_of_the_same_file_leaves_nothing_behind() {
    let site = site_with_hardlinks();
    copy_one(&site, "one").unwrap();
    copy_one(&site, "d/two").unwrap();
    let target = site.target();
    let entry = site.source().entry(&rel("d/two")).unwrap();
    let place = target.locate_or_create_parents(&entry.path).unwrap();
    let anchor = target.find_anchor(&entry).unwrap().unwrap();
    target.replace_with_link(&place.dir, place.name, &entry, &anchor).unwrap();
    assert_eq!(sorted_names(&site.path("dst/d")), [b"two"]);
}

#[test]
fn an_anchor_that_was_modified_is_not_used() {
    let site = site_with_hardlinks();
    copy_one(&site, "one").unwrap();
    fs::write(site.path("dst/one"), "written to").unwrap();
    assert_eq!(copy_one(&site, "d/two"), NEEDED);
    assert_eq!(copy_one(&site, "d/e/three"), CREATE);
    assert_eq!(copy_one(&site, "one"), UPDATE);
    assert_eq!(fs::read(site.path("dst/d/e/three")).unwrap(), b"content");
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 4));
}

#[test]
fn two_source_files_that_are_hardlinked_at_the_destination_are_separated() {
    let site = TestSite::new();
    for (a, b) in [("a1", "a2"), ("b1", "b2")] {
        site.write_file(format!("src/{a}"), "content");
        fs::hard_link(site.path(&format!("src/{a}")), site.path(&format!("src/{b}"))).unwrap();
        set_file_mtime(&site.path(&format!("src/{a}")), 1000, 0);
    }
    fs::set_permissions(site.path("src/b1"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    site.write_file("dst/a1", "content");
    for other in ["a2", "b1", "b2"] {
        fs::hard_link(site.path("dst/a1"), site.path(&format!("dst/{other}"))).unwrap();
    }
    set_file_mtime(&site.path("dst/a1"), 1000, 0);
    for path in ["a1", "b1", "a2", "b2"] {
        copy_one(&site, path).unwrap();
    }
    clean_up(&site);
    let [a1, a2, b1, b2] = ["a1", "a2", "b1", "b2"].map(|p| inode(&site, &format!("dst/{p}")));
    assert_eq!((a1, b1, a1.1, b1.1), (a2, b2, 2, 2));
    assert_ne!(a1.0, b1.0);
    for path in ["a1", "b2"] {
        let mode = |at: &str| fs::metadata(site.path(&format!("{at}/{path}"))).unwrap().mode();
        assert_eq!(mode("dst"), mode("src"));
    }
}

#[test]
fn metadata_of_hardlinked_files_is_repaired_without_content() {
    let site = site_with_hardlinks();
    for path in ["one", "d/two", "d/e/three"] {
        copy_one(&site, path).unwrap();
    }
    clean_up(&site);
    let before = inode(&site, "dst/one");
    std::os::unix::fs::chown(site.path("dst/one"), None, Some(77)).unwrap();
    assert_eq!(copy_one(&site, "d/two"), Ok(OfferDecision::Done(EntryAction::Metadata)));
    for path in ["one", "d/e/three"] {
        assert_eq!(copy_one(&site, path), SKIP);
    }
    assert_eq!(fs::metadata(site.path("dst/one")).unwrap().gid(), 0);
    clean_up(&site);
    assert_eq!(inode(&site, "dst/one"), before);
}

#[test]
fn anchors_of_another_user_are_not_used() {
    let site = site_with_hardlinks();
    copy_one(&site, "one").unwrap();
    let dir = site.path("dst").join(os_str(&site.target().anchor_dir_name()));
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    let target = site.target();
    let batch = single_entry_batch(&site.source(), "d/two");
    copy_batch(&site.source(), &target, &batch);
    assert_ne!(inode(&site, "dst/d/two").0, inode(&site, "dst/one").0);
    let cause = MetadataWarning::HardLink(Errno::PERM).to_string();
    assert_eq!(target.take_metadata_warnings()[&cause].count, 1);
    // A link in their place leads nowhere, and is removed like anything of ours.
    clean_up(&site);
    symlink(site.path("canary"), &dir).unwrap();
    copy_batch(&site.source(), &site.target(), &batch);
    site.assert_canary_unchanged();
    clean_up(&site);
    assert!(fs::symlink_metadata(&dir).is_err());
    site.assert_canary_unchanged();
}

#[test]
fn without_links_being_kept_or_in_a_dry_run_there_are_no_anchors() {
    let site = site_with_hardlinks();
    let batch = single_entry_batch(&site.source(), "one");
    assert!(batch.entries[0].is_hardlinked);
    let single = Target::new(
        site.tree("dst/single"),
        SyncNo(7),
        TargetOptions::for_this_process(WriteRules::default()),
    );
    let alone = full_manifest(&site.tree("src/one").preserving(Preserve::all()));
    copy_batch(&site.tree("src/one"), &single, &alone);
    single.clean_up_anchors(None).unwrap();
    assert_eq!(sorted_names(&site.path("dst")), [b"single"]);
    let preserve = Preserve::all().without(Attribute::Hardlinks);
    let plain = site.target_with_rules(WriteRules { preserve, ..WriteRules::default() });
    copy_batch(&site.source(), &plain, &batch);
    assert!(!plain.has_anchors());
    let dry = site.target_with_rules(WriteRules { dry_run: true, ..WriteRules::default() });
    assert_eq!(dry.reconcile(&batch).decisions, [SKIP]);
    assert_eq!(sorted_names(&site.path("dst")), [&b"one"[..], b"single"]);
    assert!(!site.source().preserving(preserve).entry(&rel("one")).unwrap().is_hardlinked);
}

#[test]
fn a_deep_file_is_linked_to_a_name_at_the_top() {
    let site = TestSite::new();
    let end = create_deep_path(&site.path("src"), 150);
    let source = site.source();
    let deep = source.locate(&end).unwrap();
    rustix::fs::linkat(&deep.dir, "end", CWD, site.path("src/top"), AtFlags::empty()).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(site.path("src/top"), "user.x", b"deep", flags).unwrap();
    let batch = full_manifest(&site.source());
    let last = batch.entries.iter().find(|e| e.path == end).unwrap();
    assert_eq!((last.is_hardlinked, last.xattrs.len()), (true, 1));
    copy_batch(&site.source(), &site.target(), &batch);
    clean_up(&site);
    assert_eq!(inode(&site, "dst/top").1, 2);
    assert_eq!(get_xattr(&site.path("dst/top"), "user.x"), Some(b"deep".to_vec()));
    let there = site.tree("dst").preserving(Preserve::all()).entry(&end).unwrap();
    assert_eq!((there.meta, &there.xattrs), (last.meta, &last.xattrs));
}

#[test]
fn the_readback_pass_reads_hardlinked_files_and_links_to_no_wrong_content() {
    let site = site_with_hardlinks();
    for path in ["one", "d/two", "d/e/three"] {
        copy_one(&site, path).unwrap();
    }
    let again = WriteRules {
        compare: crate::wire::options::Compare::Checksum,
        readback: true,
        ..WriteRules::default()
    };
    let pass = |path: &str| {
        let target = site.target_with_rules(again.clone());
        let mut batch = single_entry_batch(&site.source(), path);
        let first = target.reconcile(&batch).decisions.remove(0);
        if first != Ok(OfferDecision::NeedsDigest) {
            return first;
        }
        batch.entries[0].digest = Some(blake3::hash(b"content").into());
        copy_batch(&site.source(), &target, &batch).remove(0)
    };
    // As after a faulty write: only the content differs.
    fs::write(site.path("dst/one"), "kontent").unwrap();
    set_file_mtime(&site.path("dst/one"), 1_000_000_000, 7);
    assert_eq!(
        pass("d/two"),
        Ok(OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true })
    );
    assert_eq!([pass("one"), pass("d/e/three")], [UPDATE, UPDATE]);
    for path in ["one", "d/two", "d/e/three"] {
        assert_eq!(fs::read(site.path("dst").join(path)).unwrap(), b"content", "{path}");
    }
    assert_eq!([pass("one"), pass("d/two")], [SKIP, SKIP]);
    clean_up(&site);
    assert_eq!(inode(&site, "dst/one"), (inode(&site, "dst/d/two").0, 3));
}
