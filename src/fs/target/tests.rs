use super::super::testing::*;
use super::super::{OfferDecision, RootDir};
use super::*;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, EntryKind, FileVersion, Manifest, Meta};
use crate::wire::outcome::ErrorClass;
use rustix::fs::{CWD, FileType, RenameFlags};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

const SKIP: Decision = Ok(OfferDecision::Done(EntryAction::Skip));
const NEEDED: Decision =
    Ok(OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true });

fn set_mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Every kind of entry, awkward names, modes and times.
fn fill_source(site: &TestSite) {
    let src = site.path("src");
    let long = "l".repeat(255);
    for (path, content) in [
        ("plain", &b"content"[..]),
        ("empty", b""),
        ("new\nline", b"x"),
        (&long, b"long"),
        ("a/b/deep", b"deep"),
        ("a/.ctl-notes", b"not ours"),
    ] {
        site.write_file(src.join(path), content);
    }
    fs::write(src.join(os_str(b"bytes\xff\xfe")), "y").unwrap();
    symlink("../../outside", src.join("dangling")).unwrap();
    symlink(".", src.join("a/loop")).unwrap();
    rustix::fs::mknodat(CWD, src.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    fs::create_dir(src.join("hollow")).unwrap();
    set_mode(&src.join("plain"), 0o4751);
    set_mode(&src.join("empty"), 0);
    set_mode(&src.join("a"), 0o2750);
    set_mode(&src.join("hollow"), 0o1777);
    for (i, path) in ["plain", "empty", "dangling", "pipe", "hollow", "a/b/deep"].iter().enumerate()
    {
        set_file_mtime(&src.join(path), -86_400 * 365 * (i as i64 + 1), 123_456_789);
    }
    set_file_mtime(&src.join("a/b"), 1_000_000_000, 1);
    set_file_mtime(&src.join("a"), -1, 999_999_999);
    set_file_mtime(&src, 0, 0);
}

#[test]
fn a_copy_equals_its_source_and_a_second_copy_does_nothing() {
    let site = TestSite::new();
    fill_source(&site);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(site.path("src/dangling"), Some(1), Some(2)).unwrap();
        std::os::unix::fs::chown(site.path("src/plain"), Some(4_000_000_000), Some(3)).unwrap();
        set_mode(&site.path("src/plain"), 0o6751);
        let mode = Mode::RUSR;
        rustix::fs::mknodat(CWD, site.path("src/null"), FileType::CharacterDevice, mode, 0x103)
            .unwrap();
    }
    set_file_mtime(&site.path("src"), 0, 0);
    let batch = full_manifest(&site.source());
    copy_batch(&site.source(), &site.target(), &batch);
    assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
    let before = snapshot(&site.path("dst"));
    let decisions = copy_batch(&site.source(), &site.target(), &batch);
    assert!(decisions.iter().all(|v| *v == SKIP), "{decisions:?}");
    assert_eq!(snapshot(&site.path("dst")), before);
    site.target().flush().unwrap();
}

#[test]
fn without_root_the_copy_equals_its_source_but_for_owners_and_set_uid() {
    let site = TestSite::new();
    fill_source(&site);
    set_mode(&site.path("src/empty"), 0o400);
    site.run_with_all_owned_by_nobody(|| {
        // Directories that forbid writing to their own owner.
        set_mode(&site.path("src/a/b"), 0o555);
        set_mode(&site.path("src/a"), 0o500);
        let batch = full_manifest(&site.source());
        copy_batch(&site.source(), &site.target(), &batch);
        assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
        // A change inside those directories.
        let file = site.path("src/a/b/deep");
        set_mode(&file, 0o644);
        fs::write(&file, "changed").unwrap();
        copy_batch(&site.source(), &site.target(), &full_manifest(&site.source()));
        assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
        // A set-uid file of another user becomes one of this user, without the bit.
        let mut foreign = single_entry_batch(&site.source(), "plain");
        foreign.entries[0].meta = Meta { uid: 0, gid: 0, mode: 0o6755, ..foreign.entries[0].meta };
        foreign.entries[0].meta.mtime_sec += 1;
        assert_eq!(site.target().reconcile(&foreign).decisions, [NEEDED]);
        let mut new = site.target().create(&foreign.entries[0], 1).unwrap();
        new.write(b"content").unwrap();
        new.publish(&foreign.entries[0]).unwrap();
        let there = fs::metadata(site.path("dst/plain")).unwrap();
        assert_eq!(there.mode() & 0o7777, 0o755);
        assert_eq!(site.target().reconcile(&foreign).decisions, [SKIP]);
        for dir in ["src/a", "dst/a", "src/a/b", "dst/a/b"] {
            set_mode(&site.path(dir), 0o700);
        }
    });
}

#[test]
fn a_directory_of_another_user_is_a_permission_error() {
    if !rustix::process::geteuid().is_root() {
        return; // There is no other user to own it.
    }
    let (site, other) = (TestSite::new(), TestSite::new());
    site.write_file("src/f", "x");
    site.write_file("src/g", "");
    set_mode(other.dir.path(), 0o755);
    let batch = full_manifest(&site.source());
    site.run_with_all_owned_by_nobody(|| {
        let tree = other.tree("canary");
        let target =
            Target::new(tree, SyncNo(1), TargetOptions::for_this_process(Default::default()));
        let error = target.create(&batch.entries[1], 1).unwrap_err();
        assert_eq!((error.errno_name(), error.class()), (Some("EACCES"), ErrorClass::Permanent));
        let decisions = target.reconcile(&batch).decisions;
        assert!(matches!(&decisions[0], Err(e) if e.errno.as_deref() == Some("EPERM")));
        assert_eq!(
            decisions[1],
            Ok(OfferDecision::NeedsContent { action: EntryAction::Create, has_basis: false })
        );
        assert!(matches!(&decisions[2], Err(e) if e.action() == "create destination"));
    });
    other.assert_canary_unchanged();
}

#[test]
fn a_deep_tree_is_copied() {
    let site = TestSite::new();
    let end = create_deep_path(&site.path("src"), 150);
    let batch = full_manifest(&site.source());
    copy_batch(&site.source(), &site.target(), &batch);
    let there = site.tree("dst");
    assert_eq!(read_content(&there.open_source(&there.entry(&end).unwrap()).unwrap()), b"deep");
    let decisions = site.target().reconcile(&batch).decisions;
    assert!(decisions.iter().all(|v| *v == SKIP));
    for entry in &batch.entries {
        assert_eq!(there.entry(&entry.path).unwrap().meta, entry.meta, "{}", entry.path);
    }
}

#[test]
fn directory_times_are_right_after_writes_in_several_batches() {
    let site = TestSite::new();
    for path in ["src/d/one", "src/d/two", "src/d/sub/three"] {
        site.write_file(path, "x");
    }
    set_file_mtime(&site.path("src/d/sub"), 5000, 1);
    set_file_mtime(&site.path("src/d"), -5000, 7);
    set_file_mtime(&site.path("src"), 1, 1);
    let (source, target) = (site.source(), site.target());
    for path in ["d", "d/one", "d/sub/three", "d/two", "", "d/sub"] {
        copy_batch(&source, &target, &single_entry_batch(&source, path));
    }
    assert_eq!(snapshot(&site.path("dst")), snapshot(&site.path("src")));
}

#[test]
fn a_single_file_is_copied_to_a_name_whose_directories_are_missing() {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    let source = site.tree("src/f");
    let target = Target::new(
        site.tree("x/y/g"),
        SyncNo(1),
        TargetOptions::for_this_process(Default::default()),
    );
    let batch = full_manifest(&source);
    assert_eq!(batch.dirs, []);
    copy_batch(&source, &target, &batch);
    assert_eq!(fs::read(site.path("x/y/g")).unwrap(), b"content");
    assert_eq!(target.reconcile(&batch).decisions, [SKIP]);
    fs::remove_file(site.path("x/y/g")).unwrap();
    target.open_part_file(&batch.entries[0]).unwrap().write_at(b"CONTENT", 0).unwrap();
    target.publish_part_file(&batch.entries[0], None).unwrap();
    assert_eq!(fs::read(site.path("x/y/g")).unwrap(), b"CONTENT");
    assert_eq!(sorted_names(&site.path("x/y")), [b"g"]);
    target.flush().unwrap();
    // The storage root itself can't become a file.
    let top =
        Target::new(site.tree(""), SyncNo(1), TargetOptions::for_this_process(Default::default()));
    let Err(error) = &top.reconcile(&batch).decisions[0] else { panic!() };
    assert_eq!(error.errno.as_deref(), Some("EISDIR"));
}

#[test]
fn an_obstructing_object_is_replaced_unless_it_is_a_non_empty_directory() {
    let site = TestSite::new();
    for path in ["src/file", "src/full", "src/dir/x", "src/a/b/x"] {
        site.write_file(path, "new");
    }
    symlink("t", site.path("src/link")).unwrap();
    fs::create_dir_all(site.path("dst/file")).unwrap();
    fs::create_dir_all(site.path("dst/link")).unwrap();
    site.write_file("dst/full/kept", "kept");
    site.write_file("dst/dir", "a file");
    symlink("../canary", site.path("dst/a")).unwrap();
    let (source, target) = (site.source(), site.target());
    for path in ["file", "dir/x", "dir", "a/b/x", "link"] {
        copy_batch(&source, &target, &single_entry_batch(&source, path));
    }
    let batch = single_entry_batch(&source, "full");
    let Err(error) = &target.reconcile(&batch).decisions[0] else { panic!() };
    assert_eq!((error.errno.as_deref(), error.class), (Some("EISDIR"), ErrorClass::Permanent));
    assert_eq!(error.action(), "replace destination");
    let error = send_file(&source, &target, &batch.entries[0]).unwrap_err();
    assert_eq!(error.cause, Cause::DirectoryNotEmpty);
    assert_eq!(sorted_names(&site.path("dst/full")), [b"kept"]);
    assert_eq!(fs::read(site.path("dst/file")).unwrap(), b"new");
    assert_eq!(fs::read(site.path("dst/dir/x")).unwrap(), b"new");
    assert_eq!(fs::read(site.path("dst/a/b/x")).unwrap(), b"new");
    assert!(fs::symlink_metadata(site.path("dst/a")).unwrap().is_dir());
    site.assert_canary_unchanged();
}

#[test]
fn a_symlink_above_or_at_the_root_is_rejected() {
    let site = TestSite::new();
    site.write_file("src/f", "x");
    symlink("canary", site.path("link")).unwrap();
    for base in ["link", "link/below"] {
        let target = Target::new(
            site.tree(base),
            SyncNo(1),
            TargetOptions::for_this_process(Default::default()),
        );
        for verdict in target.reconcile(&full_manifest(&site.source())).decisions {
            let Err(error) = verdict else { panic!("{base}: {verdict:?}") };
            assert_eq!(error.errno.as_deref(), Some("ELOOP"));
            assert_eq!(error.class, ErrorClass::Permanent);
        }
        let entry = site.source().entry(&rel("f")).unwrap();
        assert!(target.create(&entry, 1).is_err() && target.open_part_file(&entry).is_err());
        assert!(target.flush().is_err());
        assert!(
            !target.apply_dir_metadata(&site.source().parent_dirs(&rel("f")).unwrap()).is_empty()
        );
    }
    site.assert_canary_unchanged();
}

#[test]
fn swapping_directories_for_symlinks_writes_nothing_outside() {
    let site = TestSite::new();
    for path in ["src/d/e/file", "src/d/e/f2", "src/d/g"] {
        site.write_file(path, "evil");
    }
    symlink("t", site.path("src/d/e/link")).unwrap();
    fs::create_dir_all(site.path("dst/d/e")).unwrap();
    fs::create_dir_all(site.path("swap")).unwrap();
    // Relative, so that `RESOLVE_BENEATH` alone would let it pass.
    symlink("../canary", site.path("swap/link")).unwrap();
    let batch = full_manifest(&site.source());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, link) = (site.path("dst/d"), site.path("swap/link"));
                for _ in 0..2 {
                    let _ = rustix::fs::renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE);
                }
                if !site.path("swap/link").is_symlink() {
                    let _ = fs::remove_dir_all(site.path("swap/link"));
                    let _ = symlink("../canary", site.path("swap/link"));
                }
            }
        });
        for _ in 0..300 {
            let target = site.target();
            let decisions = target.reconcile(&batch).decisions;
            for (entry, verdict) in batch.entries.iter().zip(decisions) {
                if matches!(verdict, Ok(OfferDecision::NeedsContent { .. })) {
                    // Failing is fine, escaping is not.
                    let _ = send_file(&site.source(), &target, entry);
                    let _ = target.open_part_file(entry).and_then(|part| part.write_at(b"evil", 0));
                    let _ = target.publish_part_file(entry, None);
                }
            }
            let _ = target.apply_dir_metadata(&batch.dirs);
        }
        done.store(true, Ordering::Relaxed);
    });
    site.assert_canary_unchanged();
}

#[test]
fn mode_and_owner_are_repaired_without_content_but_not_through_another_hard_link() {
    let site = TestSite::new();
    let path = site.write_file("src/f", "content");
    set_mode(&path, 0o640);
    let (source, target) = (site.source(), site.target());
    let batch = single_entry_batch(&source, "f");
    copy_batch(&source, &target, &batch);
    let there = site.path("dst/f");
    let ino = fs::metadata(&there).unwrap().ino();
    set_mode(&there, 0o666);
    assert_eq!(
        target.reconcile(&batch).decisions,
        [Ok(OfferDecision::Done(EntryAction::Metadata))]
    );
    let meta = fs::metadata(&there).unwrap();
    assert_eq!((meta.ino(), meta.mode() & 0o7777), (ino, 0o640));
    fs::hard_link(&there, site.path("snapshot")).unwrap();
    set_mode(&there, 0o666);
    assert_eq!(target.reconcile(&batch).decisions, [NEEDED]);
    copy_batch(&source, &target, &batch);
    assert_eq!(fs::metadata(site.path("snapshot")).unwrap().mode() & 0o7777, 0o666);
    assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn a_difference_of_a_nanosecond_or_a_byte_requires_content() {
    let site = TestSite::new();
    site.write_file("src/f", "content");
    let (source, target) = (site.source(), site.target());
    set_file_mtime(&site.path("src/f"), 77, 100);
    copy_batch(&source, &target, &single_entry_batch(&source, "f"));
    set_file_mtime(&site.path("src/f"), 77, 101);
    assert_eq!(target.reconcile(&single_entry_batch(&source, "f")).decisions, [NEEDED]);
    fs::write(site.path("src/f"), "contents").unwrap();
    set_file_mtime(&site.path("src/f"), 77, 100);
    assert_eq!(target.reconcile(&single_entry_batch(&source, "f")).decisions, [NEEDED]);
}

#[test]
fn a_failed_directory_fails_everything_below_it_and_nothing_else() {
    let site = TestSite::new();
    for path in ["src/a/b/c", "src/z"] {
        site.write_file(path, "x");
    }
    let mut batch = full_manifest(&site.source());
    // A directory that can't be made: its name is taken by what may not be replaced.
    let bad = RelPath::root().child(&[b'n'; 255]).unwrap().child(b"x").unwrap();
    batch.entries.push(Entry::new(
        bad,
        EntryKind::Special { format: 0o120_000, rdev: 0 },
        batch.entries[0].meta,
        FileVersion::default(),
    ));
    let decisions = site.target().reconcile(&batch).decisions;
    assert_eq!(decisions.len(), batch.entries.len());
    assert!(matches!(decisions.last(), Some(Err(_))), "{decisions:?}");
    let failed = decisions.iter().filter(|v| v.is_err()).count();
    assert_eq!(failed, 1);
}

#[test]
fn invalid_numbers_are_errors_not_panics() {
    let site = TestSite::new();
    let base = site.source().entry(&RelPath::root()).unwrap();
    let odd = Meta {
        mode: u32::MAX,
        uid: u32::MAX,
        gid: u32::MAX,
        mtime_sec: i64::MIN,
        mtime_nsec: u32::MAX,
    };
    let kinds = [
        EntryKind::File { size: 0 },
        EntryKind::File { size: u64::MAX },
        EntryKind::Dir,
        EntryKind::Symlink { target: vec![] },
        EntryKind::Symlink { target: vec![b'x'; 70_000] },
        EntryKind::Symlink { target: b"nul\0".to_vec() },
        EntryKind::Special { format: u32::MAX, rdev: u64::MAX },
    ];
    let entries: Vec<Entry> = kinds
        .into_iter()
        .enumerate()
        .map(|(i, kind)| Entry { path: rel(format!("e{i}")), kind, meta: odd, ..base.clone() })
        .collect();
    let target = site.target();
    let batch =
        Manifest { dirs: vec![ManifestDir { path: RelPath::root(), meta: base.meta }], entries };
    let decisions = target.reconcile(&batch).decisions;
    for (i, verdict) in decisions.iter().enumerate() {
        let fine = if i == 1 {
            matches!(verdict, Ok(OfferDecision::NeedsContent { .. }))
        } else {
            verdict.is_err()
        };
        assert!(fine, "{i}: {verdict:?}");
    }
    assert!(target.open_part_file(&batch.entries[1]).is_err());
    assert!(
        target.create(&batch.entries[1], u32::MAX).unwrap().publish(&batch.entries[1]).is_err()
    );
    assert!(sorted_names(&site.path("dst")).iter().all(|n| !n.ends_with(b".tmp.part")));
}

#[test]
fn free_space_and_a_replaced_root_are_reported() {
    let site = TestSite::new();
    assert!(site.root.free_bytes().unwrap() > 0);
    assert_eq!(site.root.check_path(), None);
    let root = RootDir::open(&site.tree("src").path()).unwrap();
    fs::rename(site.path("src"), site.path("moved")).unwrap();
    fs::create_dir(site.path("src")).unwrap();
    assert_eq!(root.check_path(), Some(crate::fs::RootUnavailable::Replaced));
    let error = RootDir::open(&site.tree("absent").path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot open storage root `/"), "{error}");
    assert!(error.to_string().ends_with("(ENOENT)"), "{error}");
}

#[test]
fn a_dry_run_widens_no_directory() {
    let site = TestSite::new();
    site.write_file("src/d/f", "new content");
    site.write_file("dst/d/f", "old");
    site.run_with_all_owned_by_nobody(|| {
        let (dry, real) = (true, false);
        for (dry_run, mode) in [(dry, 0), (real, 0o755)] {
            fs::set_permissions(site.path("dst/d"), fs::Permissions::from_mode(0o000)).unwrap();
            let target = site.target_with_rules(WriteRules { dry_run, ..WriteRules::default() });
            target.reconcile(&single_entry_batch(&site.source(), "d/f"));
            let found = fs::metadata(site.path("dst/d")).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "dry run: {dry_run}");
        }
    });
}

#[test]
fn concurrent_batches_that_replace_a_file_by_a_directory_create_it_once() {
    let site = TestSite::new();
    for round in 0..300 {
        let name = format!("at-{round}");
        site.write_file(format!("dst/{name}"), "a file");
        let start = std::sync::Barrier::new(4);
        let entered: Vec<_> = std::thread::scope(|scope| {
            let one = || {
                let target = site.target();
                start.wait();
                target.ensure_dir_with_meta(name.as_bytes(), true, None).unwrap()
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let there = fs::metadata(site.path("dst").join(&name)).unwrap().ino();
        for (dir, _) in &entered {
            assert_eq!(rustix::fs::fstat(dir).unwrap().st_ino, there, "round {round}");
        }
        let made = entered.iter().filter(|(_, made)| *made).count();
        assert_eq!(made, 1, "round {round}");
    }
}
