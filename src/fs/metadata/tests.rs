use super::super::testing::*;
use super::super::{OfferDecision, Target};
use super::*;
use crate::wire::entry_report::{EntryAction, EntryWarning};
use crate::wire::manifest::EntryKind;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown as give, symlink};
use std::path::Path;

const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";
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

fn policy(set_owner: bool) -> MetadataPolicy {
    MetadataPolicy::new(set_owner, &WriteRules::default(), &ActingUser::default())
}

/// Copies everything; gives the notes.
fn copy_and_take_warnings(site: &TestSite, target: &Target) -> Vec<(String, EntryWarning)> {
    copy_batch(&site.source(), target, &full_manifest(&site.source()));
    target.take_metadata_warnings().into_iter().collect()
}

#[test]
fn set_uid_is_kept_only_with_its_owner() {
    let meta = Meta { mode: 0o6755, uid: 12345, gid: 54321, mtime_sec: 0, mtime_nsec: 0 };
    let of = |root, uid, gid, kind| policy(root).allowed_mode(uid, gid, kind, &meta);
    let (file, dir) = (FileType::RegularFile, FileType::Directory);
    assert_eq!(of(true, 12345, 54321, file), (0o6755, false));
    assert_eq!(of(true, 12345, 0, file), (0o755, true));
    assert_eq!(of(true, 0, 54321, file), (0o755, true));
    assert_eq!(of(true, 0, 0, dir), (0o6755, false));
    // A group that is not ours: the kernel would drop it.
    assert_eq!(of(false, 12345, 54321, dir), (0o4755, true));
}

#[test]
fn the_uid_that_means_unchanged_to_the_kernel_is_rejected() {
    let site = TestSite::new();
    let file = fs::File::open(site.write_file("f", "")).unwrap();
    let path = rel("f");
    let meta = Meta { mode: 0o600, uid: u32::MAX, gid: 0, mtime_sec: 0, mtime_nsec: 0 };
    let desired = DesiredMetadata { path: &path, meta, xattrs: Some(&[]) };
    let done = policy(true).apply(&file, &desired, ObjectOrigin::Created(None));
    assert_eq!(done, Err(Cause::Os(Errno::OVERFLOW)));
}

#[test]
fn xattrs_acls_and_capabilities_are_copied_and_repaired() {
    let site = TestSite::new();
    let (f, d, l) =
        (site.write_file("src/d/f", "content"), site.path("src/d"), site.path("src/d/l"));
    let p = site.path("src/d/p");
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
    set_xattr(&p, ACL_ACCESS, &acl_bytes(6, (1234, 6), 0, 6, 0));
    set_xattr(&d, ACL_DEFAULT, &acl_bytes(7, (1234, 5), 5, 5, 0));
    set_xattr(&f, ACL_ACCESS, &acl_bytes(6, (1234, 7), 0, 7, 4));
    set_xattr(&d, ACL_ACCESS, &acl_bytes(7, (1234, 7), 5, 7, 5));
    give(&f, Some(1), Some(2)).unwrap();
    set_mode(&f, 0o6774);
    set_xattr(&f, CAPABILITY, &capability());
    for path in [&p, &l, &f, &d, &site.path("src")] {
        set_file_mtime(path, 1_000_000_000, 123_456_789);
    }
    let all = || full_manifest(&site.tree("dst").preserving(Preserve::all()));
    let shown = |batch: &crate::wire::manifest::Manifest| {
        batch.entries.iter().map(|e| (e.path.clone(), e.meta, e.xattrs.clone())).collect::<Vec<_>>()
    };
    let wanted = full_manifest(&site.source());
    assert_eq!(copy_and_take_warnings(&site, &site.target()), []);
    assert_eq!(shown(&all()), shown(&wanted));
    assert_eq!(get_xattr(&site.path("dst/d/f"), CAPABILITY), Some(capability()));

    // Nothing is touched the second time.
    let ctime = |path: &str| fs::symlink_metadata(site.path(path)).unwrap().ctime_nsec();
    let before = ["dst/d/f", "dst/d", "dst/d/l", "dst/d/p"].map(ctime);
    let decisions = copy_batch(&site.source(), &site.target(), &wanted);
    assert!(
        decisions.iter().all(|v| *v == Ok(OfferDecision::Done(EntryAction::Skip))),
        "{decisions:?}"
    );
    assert_eq!(["dst/d/f", "dst/d", "dst/d/l", "dst/d/p"].map(ctime), before);

    // Every change is repaired in place.
    let inode = fs::metadata(site.path("dst/d/f")).unwrap().ino();
    give(site.path("dst/d/f"), None, Some(9)).unwrap();
    set_xattr(&site.path("dst/d/f"), "user.surplus", b"x");
    set_xattr(&site.path("dst/d/f"), ACL_ACCESS, &acl_bytes(6, (99, 7), 0, 7, 4));
    set_xattr(&site.path("dst/d/l"), "trusted.of_link", b"else");
    rustix::fs::removexattr(site.path("dst/d"), ACL_DEFAULT).unwrap();
    rustix::fs::removexattr(site.path("dst/d"), "user.of_dir").unwrap();
    set_mode(&site.path("dst/d"), 0o700);
    copy_batch(&site.source(), &site.target(), &wanted);
    assert_eq!(shown(&all()), shown(&wanted));
    assert_eq!(fs::metadata(site.path("dst/d/f")).unwrap().ino(), inode);
}

#[test]
fn inherited_acls_of_new_objects_are_removed() {
    let site = TestSite::new();
    site.write_file("src/d/f", "content");
    symlink("x", site.path("src/d/l")).unwrap();
    set_mode(&site.path("src/d/f"), 0o644);
    set_mode(&site.path("src/d"), 0o755);
    fs::create_dir(site.path("dst")).unwrap();
    set_xattr(&site.path("dst"), ACL_DEFAULT, &acl_bytes(7, (1234, 7), 7, 7, 0));
    copy_batch(&site.source(), &site.target(), &single_entry_batch(&site.source(), "d"));
    copy_batch(&site.source(), &site.target(), &single_entry_batch(&site.source(), "d/f"));
    for path in ["dst/d", "dst/d/f"] {
        let path = site.path(path);
        assert_eq!((get_xattr(&path, ACL_ACCESS), get_xattr(&path, ACL_DEFAULT)), (None, None));
    }
    assert_eq!((mode_at(&site.path("dst/d")), mode_at(&site.path("dst/d/f"))), (0o755, 0o644));
    // Not where lists are none of the sync's business.
    fs::remove_dir_all(site.path("dst/d")).unwrap();
    let preserve = Preserve::all().without(Attribute::Acls);
    let target = site.target_with_rules(WriteRules { preserve, ..WriteRules::default() });
    copy_batch(
        &site.source().preserving(preserve),
        &target,
        &single_entry_batch(&site.source(), "d/f"),
    );
    assert!(get_xattr(&site.path("dst/d/f"), ACL_ACCESS).is_some());
}

#[test]
fn applying_dir_metadata_leaves_its_acl_unchanged() {
    let site = TestSite::new();
    site.write_file("src/d/f", "content");
    set_xattr(&site.path("src/d"), ACL_ACCESS, &acl_bytes(7, (1234, 7), 5, 7, 5));
    let want = get_xattr(&site.path("src/d"), ACL_ACCESS);
    copy_batch(&site.source(), &site.target(), &single_entry_batch(&site.source(), "d"));
    copy_batch(&site.source(), &site.target(), &single_entry_batch(&site.source(), "d/f"));
    assert_eq!(get_xattr(&site.path("dst/d"), ACL_ACCESS), want);
    set_mode(&site.path("dst/d"), 0o700);
    assert_eq!(
        site.target().apply_dir_metadata(&single_entry_batch(&site.source(), "d/f").dirs),
        []
    );
    assert_eq!(get_xattr(&site.path("dst/d"), ACL_ACCESS), want);
}

#[test]
fn metadata_that_is_not_preserved_stays_or_gets_the_defaults_of_new_files() {
    let site = TestSite::new();
    let f = site.write_file("src/d/f", "content");
    site.write_file("src/d/g", "content");
    site.write_file("src/d/empty", "");
    give(&f, Some(5), Some(6)).unwrap();
    set_mode(&f, 0o4750);
    set_mode(&site.path("src/d"), 0o700);
    set_xattr(&f, "user.x", b"x");
    set_file_mtime(&f, 1000, 0);
    let old = site.write_file("dst/d/f", "old");
    give(&old, None, Some(8)).unwrap();
    set_mode(&old, 0o4604);
    set_mode(&site.path("dst/d"), 0o711);
    let rules = WriteRules { preserve: Preserve::NONE, ..WriteRules::default() };
    let target = site.target_with_rules(rules);
    assert_eq!(copy_and_take_warnings(&site, &target), []);
    let there = fs::metadata(&old).unwrap();
    assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (0, 8, 0o604));
    assert_ne!(there.mtime(), 1000);
    assert_eq!(get_xattr(&old, "user.x"), None);
    assert_eq!(mode_at(&site.path("dst/d")), 0o711);
    // As another program would make them.
    let (file, dir) = (site.write_file("canary-file", ""), site.path("canary-dir"));
    fs::create_dir(&dir).unwrap();
    for new in ["dst/d/g", "dst/d/empty"] {
        let there = fs::metadata(site.path(new)).unwrap();
        assert_eq!((there.uid(), there.mode()), (0, fs::metadata(&file).unwrap().mode()));
    }
    fs::remove_dir_all(site.path("dst")).unwrap();
    set_mode(&site.path("src/d"), 0o777);
    copy_and_take_warnings(&site, &target);
    assert_eq!(mode_at(&site.path("dst/d")), mode_at(&dir));
}

#[test]
fn new_objects_get_the_source_mode_under_the_umask_when_modes_are_not_preserved() {
    let umask = policy(true).process_umask();
    for (mode, large) in
        [(0o755, false), (0o600, false), (0o4777, false), (0o444, false), (0o750, true)]
    {
        for times in [false, true] {
            let site = TestSite::new();
            let content = if large { vec![1; 300 << 10] } else { b"#!/bin/sh".to_vec() };
            set_mode(&site.write_file("src/d/f", content), mode);
            let fifo = site.path("src/d/fifo");
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, rustix::fs::Mode::RUSR, 0)
                .unwrap();
            for path in ["src/d/fifo", "src/d", "src"] {
                set_mode(&site.path(path), mode);
            }
            let preserve = Preserve::NONE.with(Attribute::Specials);
            let preserve = if times { preserve.with(Attribute::Times) } else { preserve };
            let target = site.target_with_rules(WriteRules { preserve, ..WriteRules::default() });
            copy_and_take_warnings(&site, &target);
            for path in ["d/f", "d/fifo", "d", ""] {
                let there = mode_at(&site.path("dst").join(path));
                assert_eq!(there, mode & 0o777 & !umask, "{path} of {mode:o}");
            }
            // What is there keeps its own.
            set_mode(&site.path("dst/d"), 0o711);
            set_mode(&site.path("dst/d/f"), 0o640);
            site.write_file("src/d/f", "longer than it was");
            copy_and_take_warnings(&site, &target);
            assert_eq!(
                (mode_at(&site.path("dst/d")), mode_at(&site.path("dst/d/f"))),
                (0o711, 0o640)
            );
        }
    }
}

#[test]
fn without_root_a_read_only_directory_is_filled_and_then_made_read_only() {
    let site = TestSite::new();
    for path in ["src/d/e/f", "src/d/g"] {
        site.write_file(path, "x");
    }
    for (path, mode) in [("src/d/e", 0o555), ("src/d", 0o550)] {
        set_mode(&site.path(path), mode);
    }
    let preserve = Preserve::NONE.with(Attribute::Times);
    let rules = WriteRules { preserve, ..WriteRules::default() };
    site.run_with_all_owned_by_nobody(|| {
        copy_and_take_warnings(&site, &site.target_with_rules(rules.clone()));
        for (path, mode) in [("dst/d/e", 0o555), ("dst/d", 0o550)] {
            assert_eq!(mode_at(&site.path(path)), mode, "{path}");
        }
        set_mode(&site.path("src/d"), 0o750);
        site.write_file("src/d/new", "x");
        set_mode(&site.path("src/d"), 0o550);
        copy_and_take_warnings(&site, &site.target_with_rules(rules.clone()));
        assert_eq!(mode_at(&site.path("dst/d")), 0o550);
        for path in ["src/d/e", "src/d", "dst/d/e", "dst/d"] {
            set_mode(&site.path(path), 0o755);
        }
    });
}

#[test]
fn chown_gives_every_object_the_configured_owner() {
    let site = TestSite::new();
    let f = site.write_file("src/d/f", "content");
    give(&f, Some(5), Some(6)).unwrap();
    set_mode(&f, 0o4755);
    let rules = WriteRules {
        chown: Chown { uid: Some(70), gid: None },
        preserve: Preserve::all().without(Attribute::Owner),
        ..WriteRules::default()
    };
    let target = site.target_with_rules(rules);
    for _ in 0..2 {
        assert_eq!(copy_and_take_warnings(&site, &target), []);
        let there = fs::metadata(site.path("dst/d/f")).unwrap();
        assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), (70, 6, 0o4755));
        assert_eq!(fs::metadata(site.path("dst/d")).unwrap().uid(), 70);
        give(site.path("dst/d/f"), Some(1), Some(1)).unwrap();
    }
}

#[test]
fn without_root_every_metadata_warning_is_counted_by_cause_and_only_a_device_fails() {
    let site = TestSite::new();
    for name in ["a", "b", "c"] {
        site.write_file(format!("src/{name}"), "content");
        set_mode(&site.path(&format!("src/{name}")), 0o4755);
    }
    set_xattr(&site.path("src/a"), "security.capability", &capability());
    set_xattr(&site.path("src/b"), "user.kept", b"yes");
    set_mode(&site.path("src/b"), 0o444);
    let device = EntryKind::Special { format: 0o020_000, rdev: 0x103 };
    let mut wanted = full_manifest(&site.source());
    for entry in &mut wanted.entries {
        (entry.meta.uid, entry.meta.gid) = (12345, 12345);
    }
    let mut node = wanted.entries[1].clone();
    (node.path, node.kind, node.xattrs) = (rel("node"), device, Vec::new());
    site.run_with_all_owned_by_nobody(|| {
        let target = site.target();
        for pass in 0..2 {
            let decisions = target.reconcile(&wanted).decisions;
            for (entry, verdict) in wanted.entries.iter().zip(&decisions) {
                if matches!(verdict, Ok(OfferDecision::NeedsContent { .. })) {
                    let mut new = target.create(entry, 1).unwrap();
                    new.write(b"content").unwrap();
                    new.publish(entry).unwrap();
                }
                assert!(verdict.is_ok(), "{verdict:?}");
                assert_eq!(
                    matches!(verdict, Ok(OfferDecision::NeedsContent { .. })),
                    pass == 0 && !entry.is_dir()
                );
            }
            // What is not there is a failed entry, also in a dry run.
            let dry = WriteRules { dry_run: true, ..WriteRules::default() };
            let alone =
                crate::wire::manifest::Manifest { dirs: Vec::new(), entries: vec![node.clone()] };
            for target in [&target, &site.target_with_rules(dry)] {
                let Err(error) = &target.reconcile(&alone).decisions[0] else { panic!() };
                assert_eq!(error.errno.as_deref(), Some("EPERM"));
                assert!(error.to_string().contains("--preserve no-devices"), "{error}");
            }
            let preserve = Preserve::all().without(Attribute::Devices);
            let without = site.target_with_rules(WriteRules { preserve, ..WriteRules::default() });
            assert_eq!(
                without.reconcile(&alone).decisions,
                [Ok(OfferDecision::Done(EntryAction::Skip))]
            );
            let notes = target.take_metadata_warnings();
            let count =
                |short: MetadataWarning| notes.get(&short.to_string()).map_or(0, |n| n.count);
            assert_eq!(count(MetadataWarning::Owner(Errno::PERM)), 4, "{notes:?}");
            assert_eq!(count(MetadataWarning::SetId), 2, "{notes:?}");
            assert_eq!(count(MetadataWarning::Xattr("security.", Errno::PERM)), 1, "{notes:?}");
            assert_eq!(notes.len(), 3, "{notes:?}");
        }
        // Its own mode forbids to write to it; that is no reason to leave it wrong.
        assert_eq!(get_xattr(&site.path("dst/b"), "user.kept"), Some(b"yes".to_vec()));
        set_xattr_of_read_only_file(&site.path("dst/b"));
        assert_eq!(
            target.reconcile(&wanted).decisions[2],
            Ok(OfferDecision::Done(EntryAction::Metadata))
        );
        assert_eq!(get_xattr(&site.path("dst/b"), "user.kept"), Some(b"yes".to_vec()));
        assert_eq!(mode_at(&site.path("dst/b")), 0o444);

        let strict = WriteRules { strict_metadata: true, ..WriteRules::default() };
        let strict = site.target_with_rules(strict);
        let Err(error) = &strict.reconcile(&wanted).decisions[2] else { panic!() };
        assert!(error.message.contains("owner or group not set (EPERM)"), "{}", error.message);
        assert!(error.to_string().contains("--strict-metadata"), "{error}");
        assert_eq!(error.class, crate::wire::outcome::ErrorClass::Permanent);
        assert!(strict.take_metadata_warnings().is_empty());
    });
}

fn set_xattr_of_read_only_file(path: &Path) {
    set_mode(path, 0o644);
    set_xattr(path, "user.kept", b"no");
    set_mode(path, 0o444);
}

#[test]
fn without_root_files_get_groups_of_which_the_process_is_a_member() {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    let mut wanted = single_entry_batch(&site.source(), "f");
    site.run_with_all_owned_by_nobody(|| {
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
        let there = fs::metadata(site.path("dst/f")).unwrap();
        assert_eq!((there.gid(), there.mode() & 0o7777), (other, 0o2755));
        assert!(target.take_metadata_warnings().is_empty());
    });
}

#[test]
fn an_mtime_changed_by_the_file_system_is_detected() {
    let site = TestSite::new();
    let file = fs::File::open(site.write_file("f", "")).unwrap();
    let path = rel("f");
    let (one, fresh) = (policy(true), policy(true));
    let desired = |mtime_sec, mtime_nsec| {
        let meta = Meta { mode: 0o600, uid: 0, gid: 0, mtime_sec, mtime_nsec };
        DesiredMetadata { path: &path, meta, xattrs: Some(&[]) }
    };
    let check = |policy: &MetadataPolicy, set, nsec, desired: &DesiredMetadata<'_>| {
        set_file_mtime(&site.path("f"), set, nsec);
        policy.verify_mtime(file.as_fd(), desired).unwrap();
        let notes = policy.warnings.take_counts();
        notes.into_keys().next().map(|text| text.split(" by ").next().unwrap().to_owned())
    };
    let clamped = check(&one, 0, 0, &desired(-5_000_000_000, 0)).unwrap();
    assert!(clamped.contains("outside"), "{clamped}");
    assert_eq!(check(&one, -5, 3, &desired(-5, 3)), None);
    assert_eq!(one.keeps_nanoseconds.get(), Some(&true));
    // Not looked at any more.
    assert_eq!(check(&one, 1000, 0, &desired(1000, 77)), None);
    for _ in 0..2 {
        let rounded = check(&fresh, 1000, 0, &desired(1001, 77));
        assert_eq!(rounded.as_deref(), Some("modification time rounded"));
    }
    // What is not to be exact is not repaired over and over.
    let rules = WriteRules { mtime_tolerance_ns: 2_000_000_000, ..WriteRules::default() };
    let lenient = MetadataPolicy::new(true, &rules, &ActingUser::default());
    set_file_mtime(&site.path("f"), 1000, 0);
    let stat = rustix::fs::fstat(&file).unwrap();
    assert!(lenient.has_same_mtime(&stat, &desired(1001, 77).meta));
    assert!(!lenient.has_same_mtime(&stat, &desired(1002, 1).meta));
}

#[test]
fn without_root_a_directory_without_permissions_is_filled_and_gets_its_metadata_repeatedly() {
    let site = TestSite::new();
    site.write_file("src/d/e/f", "");
    for (path, mode) in [("src/d/e", 0o555), ("src/d", 0)] {
        set_xattr(&site.path(path), "user.x", path.as_bytes());
        set_mode(&site.path(path), mode);
    }
    let mut wanted = full_manifest(&site.source());
    for meta in wanted.entries.iter_mut().map(|e| &mut e.meta) {
        (meta.uid, meta.gid) = (65534, 65534);
    }
    for meta in wanted.dirs.iter_mut().map(|d| &mut d.meta) {
        (meta.uid, meta.gid) = (65534, 65534);
    }
    site.run_with_all_owned_by_nobody(|| {
        for _ in 0..2 {
            // Another process each time.
            let target = site.target();
            let decisions = target.reconcile(&wanted).decisions;
            assert!(!decisions.iter().any(|v| v.is_err()), "{decisions:?}");
            assert_eq!(target.apply_dir_metadata(&wanted.dirs), []);
            assert!(target.take_metadata_warnings().is_empty());
        }
    });
    let there = full_manifest(&site.tree("dst").preserving(Preserve::all()));
    for (entry, wanted) in there.entries.iter().zip(&wanted.entries) {
        assert_eq!((entry.meta, &entry.xattrs), (wanted.meta, &wanted.xattrs), "{}", entry.path);
    }
    assert_eq!(there.entries.len(), wanted.entries.len());
}
