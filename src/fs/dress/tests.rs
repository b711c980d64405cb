use super::super::testing::*;
use super::super::{Target, Verdict};
use super::*;
use crate::wire::manifest::EntryKind;
use crate::wire::options::{EntryAction, EntryWarning};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown as give, symlink};
use std::path::Path;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// `cap_net_bind_service=ep`.
fn capability() -> Vec<u8> {
    [0x0200_0001u32, 0x400, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode_at(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn policy(set_owner: bool) -> Policy {
    Policy::new(set_owner, &WriteRules::default())
}

/// Copies everything; gives the notes.
fn mirror(site: &Site, target: &Target) -> Vec<(String, EntryWarning)> {
    copy(&site.source(), target, &manifest(&site.source()));
    target.notes().into_iter().collect()
}

#[test]
fn set_uid_goes_only_with_its_owner() {
    let meta = Meta { mode: 0o6755, uid: 12345, gid: 54321, mtime_sec: 0, mtime_nsec: 0 };
    let of = |root, uid, gid, kind| policy(root).mode(uid, gid, kind, &meta);
    let (file, dir) = (FileType::RegularFile, FileType::Directory);
    assert_eq!(of(true, 12345, 54321, file), (0o6755, false));
    assert_eq!(of(true, 12345, 0, file), (0o755, true));
    assert_eq!(of(true, 0, 54321, file), (0o755, true));
    assert_eq!(of(true, 0, 0, dir), (0o6755, false));
    // A group that is not ours: the kernel would drop it.
    assert_eq!(of(false, 12345, 54321, dir), (0o4755, true));
}

#[test]
fn a_number_with_a_meaning_to_the_kernel_is_no_owner() {
    let site = Site::new();
    let file = fs::File::open(site.write("f", "")).unwrap();
    let path = rel("f");
    let meta = Meta { mode: 0o600, uid: u32::MAX, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let outfit = Outfit { path: &path, meta, xattrs: Some(&[]) };
    let done = policy(true).dress(&file, &outfit, Origin::New(None));
    assert_eq!(done, Err(Cause::Os(Errno::OVERFLOW)));
}

#[test]
fn attributes_lists_and_capabilities_arrive_and_are_repaired() {
    let site = Site::new();
    let (f, d, l) = (site.write("src/d/f", "content"), site.at("src/d"), site.at("src/d/l"));
    let p = site.at("src/d/p");
    symlink("f", &l).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &p,
        FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    set_xattr(&f, "user.note", &[7; 3500]);
    set_xattr(&d, "user.of_dir", b"dir");
    set_xattr(&l, "trusted.of_link", b"link");
    set_xattr(&p, ACCESS, &acl(6, (1234, 6), 0, 6, 0));
    set_xattr(&d, DEFAULT, &acl(7, (1234, 5), 5, 5, 0));
    set_xattr(&f, ACCESS, &acl(6, (1234, 7), 0, 7, 4));
    set_xattr(&d, ACCESS, &acl(7, (1234, 7), 5, 7, 5));
    give(&f, Some(1), Some(2)).unwrap();
    set_mode(&f, 0o6774);
    set_xattr(&f, CAPABILITY, &capability());
    for path in [&p, &l, &f, &d, &site.at("src")] {
        touch(path, 1_000_000_000, 123_456_789);
    }
    let all = || manifest(&site.tree("dst").keeping(Preserve::all()));
    let shown = |batch: &crate::wire::manifest::Manifest| {
        batch.entries.iter().map(|e| (e.path.clone(), e.meta, e.xattrs.clone())).collect::<Vec<_>>()
    };
    let wanted = manifest(&site.source());
    assert_eq!(mirror(&site, &site.target()), []);
    assert_eq!(shown(&all()), shown(&wanted));
    assert_eq!(get_xattr(&site.at("dst/d/f"), CAPABILITY), Some(capability()));

    // Nothing is touched the second time.
    let ctime = |path: &str| fs::symlink_metadata(site.at(path)).unwrap().ctime_nsec();
    let before = ["dst/d/f", "dst/d", "dst/d/l", "dst/d/p"].map(ctime);
    let verdicts = copy(&site.source(), &site.target(), &wanted);
    assert!(verdicts.iter().all(|v| *v == Verdict::Done(EntryAction::Skip)), "{verdicts:?}");
    assert_eq!(["dst/d/f", "dst/d", "dst/d/l", "dst/d/p"].map(ctime), before);

    // Whatever somebody changed is repaired, in place.
    let inode = fs::metadata(site.at("dst/d/f")).unwrap().ino();
    give(site.at("dst/d/f"), None, Some(9)).unwrap();
    set_xattr(&site.at("dst/d/f"), "user.surplus", b"x");
    set_xattr(&site.at("dst/d/f"), ACCESS, &acl(6, (99, 7), 0, 7, 4));
    set_xattr(&site.at("dst/d/l"), "trusted.of_link", b"else");
    rustix::fs::removexattr(site.at("dst/d"), DEFAULT).unwrap();
    rustix::fs::removexattr(site.at("dst/d"), "user.of_dir").unwrap();
    set_mode(&site.at("dst/d"), 0o700);
    copy(&site.source(), &site.target(), &wanted);
    assert_eq!(shown(&all()), shown(&wanted));
    assert_eq!(fs::metadata(site.at("dst/d/f")).unwrap().ino(), inode);
}

#[test]
fn lists_that_new_objects_inherit_are_removed() {
    let site = Site::new();
    site.write("src/d/f", "content");
    symlink("x", site.at("src/d/l")).unwrap();
    set_mode(&site.at("src/d/f"), 0o644);
    set_mode(&site.at("src/d"), 0o755);
    fs::create_dir(site.at("dst")).unwrap();
    set_xattr(&site.at("dst"), DEFAULT, &acl(7, (1234, 7), 7, 7, 0));
    copy(&site.source(), &site.target(), &batch_of(&site.source(), "d"));
    copy(&site.source(), &site.target(), &batch_of(&site.source(), "d/f"));
    for path in ["dst/d", "dst/d/f"] {
        let path = site.at(path);
        assert_eq!((get_xattr(&path, ACCESS), get_xattr(&path, DEFAULT)), (None, None));
    }
    assert_eq!((mode_at(&site.at("dst/d")), mode_at(&site.at("dst/d/f"))), (0o755, 0o644));
    // Not where lists are none of the sync's business.
    fs::remove_dir_all(site.at("dst/d")).unwrap();
    let preserve = Preserve::all().without(Attribute::Acls);
    let target = site.target_by(WriteRules { preserve, ..WriteRules::default() });
    copy(&site.source().keeping(preserve), &target, &batch_of(&site.source(), "d/f"));
    assert!(get_xattr(&site.at("dst/d/f"), ACCESS).is_some());
}

#[test]
fn a_stamp_of_a_directory_leaves_its_list_alone() {
    let site = Site::new();
    site.write("src/d/f", "content");
    set_xattr(&site.at("src/d"), ACCESS, &acl(7, (1234, 7), 5, 7, 5));
    let want = get_xattr(&site.at("src/d"), ACCESS);
    copy(&site.source(), &site.target(), &batch_of(&site.source(), "d"));
    copy(&site.source(), &site.target(), &batch_of(&site.source(), "d/f"));
    assert_eq!(get_xattr(&site.at("dst/d"), ACCESS), want);
    set_mode(&site.at("dst/d"), 0o700);
    assert_eq!(site.target().stamp(&batch_of(&site.source(), "d/f").dirs), []);
    assert_eq!(get_xattr(&site.at("dst/d"), ACCESS), want);
}

#[test]
fn what_is_not_preserved_stays_as_it_is_or_as_new_files_are() {
    let site = Site::new();
    let f = site.write("src/d/f", "content");
    site.write("src/d/g", "content");
    site.write("src/d/empty", "");
    give(&f, Some(5), Some(6)).unwrap();
    set_mode(&f, 0o4750);
    set_mode(&site.at("src/d"), 0o700);
    set_xattr(&f, "user.x", b"x");
    touch(&f, 1000, 0);
    let old = site.write("dst/d/f", "old");
    give(&old, None, Some(8)).unwrap();
    set_mode(&old, 0o4604);
    set_mode(&site.at("dst/d"), 0o711);
    let rules = WriteRules { preserve: Preserve::NONE, ..WriteRules::default() };
    let target = site.target_by(rules);
    assert_eq!(mirror(&site, &target), []);
    let there = fs::metadata(&old).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (0, 8, 0o604));
    assert_ne!(there.mtime(), 1000);
    assert_eq!(get_xattr(&old, "user.x"), None);
    assert_eq!(mode_at(&site.at("dst/d")), 0o711);
    // As another program would make them.
    let (file, dir) = (site.write("canary-file", ""), site.at("canary-dir"));
    fs::create_dir(&dir).unwrap();
    for new in ["dst/d/g", "dst/d/empty"] {
        let there = fs::metadata(site.at(new)).unwrap();
        assert_eq!((there.uid(), there.mode()), (0, fs::metadata(&file).unwrap().mode()));
    }
    fs::remove_dir_all(site.at("dst")).unwrap();
    set_mode(&site.at("src/d"), 0o777);
    mirror(&site, &target);
    assert_eq!(mode_at(&site.at("dst/d")), mode_at(&dir));
}

#[test]
fn the_mode_of_what_is_new_follows_the_source_under_the_umask_where_modes_are_not_preserved() {
    let umask = policy(true).umask();
    for (mode, large) in
        [(0o755, false), (0o600, false), (0o4777, false), (0o444, false), (0o750, true)]
    {
        for times in [false, true] {
            let site = Site::new();
            let content = if large { vec![1; 300 << 10] } else { b"#!/bin/sh".to_vec() };
            set_mode(&site.write("src/d/f", content), mode);
            let fifo = site.at("src/d/fifo");
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, rustix::fs::Mode::RUSR, 0)
                .unwrap();
            for path in ["src/d/fifo", "src/d", "src"] {
                set_mode(&site.at(path), mode);
            }
            let preserve = Preserve::NONE.with(Attribute::Specials);
            let preserve = if times { preserve.with(Attribute::Times) } else { preserve };
            let target = site.target_by(WriteRules { preserve, ..WriteRules::default() });
            mirror(&site, &target);
            for path in ["d/f", "d/fifo", "d", ""] {
                let there = mode_at(&site.at("dst").join(path));
                assert_eq!(there, mode & 0o777 & !umask, "{path} of {mode:o}");
            }
            // What is there keeps its own.
            set_mode(&site.at("dst/d"), 0o711);
            set_mode(&site.at("dst/d/f"), 0o640);
            site.write("src/d/f", "longer than it was");
            mirror(&site, &target);
            assert_eq!((mode_at(&site.at("dst/d")), mode_at(&site.at("dst/d/f"))), (0o711, 0o640));
        }
    }
}

#[test]
fn without_root_a_new_directory_that_is_read_only_at_the_source_is_filled_and_read_only_then() {
    let site = Site::new();
    for path in ["src/d/e/f", "src/d/g"] {
        site.write(path, "x");
    }
    for (path, mode) in [("src/d/e", 0o555), ("src/d", 0o550)] {
        set_mode(&site.at(path), mode);
    }
    let preserve = Preserve::NONE.with(Attribute::Times);
    let rules = WriteRules { preserve, ..WriteRules::default() };
    site.as_nobody(|| {
        mirror(&site, &site.target_by(rules.clone()));
        for (path, mode) in [("dst/d/e", 0o555), ("dst/d", 0o550)] {
            assert_eq!(mode_at(&site.at(path)), mode, "{path}");
        }
        set_mode(&site.at("src/d"), 0o750);
        site.write("src/d/new", "x");
        set_mode(&site.at("src/d"), 0o550);
        mirror(&site, &site.target_by(rules.clone()));
        assert_eq!(mode_at(&site.at("dst/d")), 0o550);
        for path in ["src/d/e", "src/d", "dst/d/e", "dst/d"] {
            set_mode(&site.at(path), 0o755);
        }
    });
}

#[test]
fn the_operator_can_give_everything_another_owner() {
    let site = Site::new();
    let f = site.write("src/d/f", "content");
    give(&f, Some(5), Some(6)).unwrap();
    set_mode(&f, 0o4755);
    let rules = WriteRules {
        chown: Chown { uid: Some(70), gid: None },
        preserve: Preserve::all().without(Attribute::Owner),
        ..WriteRules::default()
    };
    let target = site.target_by(rules);
    for _ in 0..2 {
        assert_eq!(mirror(&site, &target), []);
        let there = fs::metadata(site.at("dst/d/f")).unwrap();
        assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (70, 6, 0o4755));
        assert_eq!(fs::metadata(site.at("dst/d")).unwrap().uid(), 70);
        give(site.at("dst/d/f"), Some(1), Some(1)).unwrap();
    }
}

#[test]
fn without_root_every_shortfall_is_counted_by_cause_and_only_a_device_fails() {
    let site = Site::new();
    for name in ["a", "b", "c"] {
        site.write(format!("src/{name}"), "content");
        set_mode(&site.at(&format!("src/{name}")), 0o4755);
    }
    set_xattr(&site.at("src/a"), "security.capability", &capability());
    set_xattr(&site.at("src/b"), "user.kept", b"yes");
    set_mode(&site.at("src/b"), 0o444);
    let device = EntryKind::Special { format: 0o020_000, rdev: 0x103 };
    let mut wanted = manifest(&site.source());
    for entry in &mut wanted.entries {
        (entry.meta.uid, entry.meta.gid) = (12345, 12345);
    }
    let mut node = wanted.entries[1].clone();
    (node.path, node.kind, node.xattrs) = (rel("node"), device, Vec::new());
    site.as_nobody(|| {
        let target = site.target();
        for pass in 0..2 {
            let verdicts = target.reconcile(&wanted).verdicts;
            for (entry, verdict) in wanted.entries.iter().zip(&verdicts) {
                if matches!(verdict, Verdict::Needed { .. }) {
                    let mut new = target.create(entry, 1).unwrap();
                    new.write(b"content").unwrap();
                    new.publish(entry).unwrap();
                }
                assert!(!matches!(verdict, Verdict::Failed(_)), "{verdict:?}");
                assert_eq!(matches!(verdict, Verdict::Needed { .. }), pass == 0 && !entry.is_dir());
            }
            // What is not there is a failed entry, also in a dry run.
            let dry = WriteRules { dry_run: true, ..WriteRules::default() };
            let alone =
                crate::wire::manifest::Manifest { dirs: Vec::new(), entries: vec![node.clone()] };
            for target in [&target, &site.target_by(dry)] {
                let Verdict::Failed(error) = &target.reconcile(&alone).verdicts[0] else {
                    panic!()
                };
                assert_eq!(error.errno.as_deref(), Some("EPERM"));
                assert!(error.to_string().contains("--preserve no-devices"), "{error}");
            }
            let preserve = Preserve::all().without(Attribute::Devices);
            let without = site.target_by(WriteRules { preserve, ..WriteRules::default() });
            assert_eq!(without.reconcile(&alone).verdicts, [Verdict::Done(EntryAction::Skip)]);
            let notes = target.notes();
            let count = |short: Shortfall| notes.get(&short.to_string()).map_or(0, |n| n.count);
            assert_eq!(count(Shortfall::Owner(Errno::PERM)), 4, "{notes:?}");
            assert_eq!(count(Shortfall::SetId), 2, "{notes:?}");
            assert_eq!(count(Shortfall::Xattr("security.", Errno::PERM)), 1, "{notes:?}");
            assert_eq!(notes.len(), 3, "{notes:?}");
        }
        // Its own mode forbids to write to it; that is no reason to leave it wrong.
        assert_eq!(get_xattr(&site.at("dst/b"), "user.kept"), Some(b"yes".to_vec()));
        set_xattr_of_read_only(&site.at("dst/b"));
        assert_eq!(target.reconcile(&wanted).verdicts[2], Verdict::Done(EntryAction::Metadata));
        assert_eq!(get_xattr(&site.at("dst/b"), "user.kept"), Some(b"yes".to_vec()));
        assert_eq!(mode_at(&site.at("dst/b")), 0o444);

        let strict = WriteRules { strict_metadata: true, ..WriteRules::default() };
        let strict = site.target_by(strict);
        let Verdict::Failed(error) = &strict.reconcile(&wanted).verdicts[2] else { panic!() };
        assert!(error.message.contains("owner or group not set (EPERM)"), "{}", error.message);
        assert!(error.to_string().contains("--strict-metadata"), "{error}");
        assert_eq!(error.class, crate::wire::sync::ErrorClass::Permanent);
        assert!(strict.notes().is_empty());
    });
}

fn set_xattr_of_read_only(path: &Path) {
    set_mode(path, 0o644);
    set_xattr(path, "user.kept", b"no");
    set_mode(path, 0o444);
}

#[test]
fn without_root_files_are_given_to_groups_that_we_are_in() {
    let site = Site::new();
    site.write("src/f", "content");
    let mut wanted = batch_of(&site.source(), "f");
    site.as_nobody(|| {
        let groups = rustix::process::getgroups().unwrap();
        let Some(other) = groups.iter().map(|g| g.as_raw()).find(|g| *g != 65534) else { return };
        let entry = &mut wanted.entries[0];
        (entry.meta.uid, entry.meta.gid, entry.meta.mode) = (65534, other, 0o2755);
        let target = site.target();
        target.reconcile(&wanted);
        let entry = &wanted.entries[0];
        let mut new = target.create(entry, 1).unwrap();
        new.write(b"content").unwrap();
        new.publish(entry).unwrap();
        let there = fs::metadata(site.at("dst/f")).unwrap();
        assert_eq!((there.gid(), there.mode() & 0o7777), (other, 0o2755));
        assert!(target.notes().is_empty());
    });
}

#[test]
fn a_time_that_the_file_system_changed_is_noticed() {
    let site = Site::new();
    let file = fs::File::open(site.write("f", "")).unwrap();
    let path = rel("f");
    let policy = policy(true);
    let outfit = |mtime_sec, mtime_nsec| {
        let meta = Meta { mode: 0o600, uid: 0, gid: 0, mtime_sec, mtime_nsec };
        Outfit { path: &path, meta, xattrs: Some(&[]) }
    };
    let check = |set: i64, nsec: i64, outfit: &Outfit<'_>| {
        touch(&site.at("f"), set, nsec);
        policy.check_time(file.as_fd(), outfit).unwrap();
        let notes = policy.book.take();
        notes.into_keys().next().map(|text| text.split(" by ").next().unwrap().to_owned())
    };
    let clamped = check(0, 0, &outfit(-5_000_000_000, 0)).unwrap();
    assert!(clamped.contains("outside"), "{clamped}");
    assert_eq!(check(-5, 3, &outfit(-5, 3)), None);
    assert_eq!(policy.clock.load(Ordering::Relaxed), FINE);
    // Not looked at any more.
    assert_eq!(check(1000, 0, &outfit(1000, 77)), None);
    policy.clock.store(UNKNOWN, Ordering::Relaxed);
    for _ in 0..2 {
        let rounded = check(1000, 0, &outfit(1001, 77));
        assert_eq!(rounded.as_deref(), Some("modification time rounded"));
    }
    // What is not to be exact is not repaired over and over.
    let rules = WriteRules { mtime_tolerance_ns: 2_000_000_000, ..WriteRules::default() };
    let lenient = Policy::new(true, &rules);
    touch(&site.at("f"), 1000, 0);
    let stat = rustix::fs::fstat(&file).unwrap();
    assert!(lenient.same_time(&stat, &outfit(1001, 77).meta));
    assert!(!lenient.same_time(&stat, &outfit(1002, 1).meta));
}

#[test]
fn without_root_a_directory_that_forbids_everything_is_filled_and_stamped_again_and_again() {
    let site = Site::new();
    site.write("src/d/e/f", "");
    for (path, mode) in [("src/d/e", 0o555), ("src/d", 0)] {
        set_xattr(&site.at(path), "user.x", path.as_bytes());
        set_mode(&site.at(path), mode);
    }
    let mut wanted = manifest(&site.source());
    for meta in wanted.entries.iter_mut().map(|e| &mut e.meta) {
        (meta.uid, meta.gid) = (65534, 65534);
    }
    for meta in wanted.dirs.iter_mut().map(|d| &mut d.meta) {
        (meta.uid, meta.gid) = (65534, 65534);
    }
    site.as_nobody(|| {
        for _ in 0..2 {
            // Another process each time.
            let target = site.target();
            let verdicts = target.reconcile(&wanted).verdicts;
            assert!(!verdicts.iter().any(|v| matches!(v, Verdict::Failed(_))), "{verdicts:?}");
            assert_eq!(target.stamp(&wanted.dirs), []);
            assert!(target.notes().is_empty());
        }
    });
    let there = manifest(&site.tree("dst").keeping(Preserve::all()));
    for (entry, wanted) in there.entries.iter().zip(&wanted.entries) {
        assert_eq!((entry.meta, &entry.xattrs), (wanted.meta, &wanted.xattrs), "{}", entry.path);
    }
    assert_eq!(there.entries.len(), wanted.entries.len());
}
