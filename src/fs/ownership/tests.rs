use super::super::testing::*;
use super::super::{Cause, OfferDecision, SentRanges, is_internal_name};
use super::*;
use crate::fs::target::TargetOptions;
use crate::wire::SyncNo;
use crate::wire::content::HashMode;
use crate::wire::entry_report::EntryAction;
use crate::wire::options::{Chown, Compare, WriteRules};
use crate::wire::preserve::{Attribute, Preserve};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;

/// The sync that made what is there: a directory that the same sync made is not named as repaired.
const EARLIER_SYNC: SyncNo = SyncNo(6);

/// Another user of the host.
const OTHER_UID: u32 = 4711;

fn is_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test gives files to other users: run it as root"
    );
}

fn mode_at(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn create_node(path: &Path, file_type: FileType, device: u64) {
    rustix::fs::mknodat(rustix::fs::CWD, path, file_type, Mode::RUSR, device).unwrap();
}

/// One entry of each kind, all of root, with a mode that matters; `null` is the device 1:3.
fn source_of_all_kinds(site: &TestSite) {
    site.write_file("src/tool", "echo mine");
    site.write_file("src/large", vec![1; 300 << 10]);
    site.write_file("src/empty", "");
    site.write_file("src/one", "two names");
    fs::hard_link(site.path("src/one"), site.path("src/other")).unwrap();
    symlink("tool", site.path("src/link")).unwrap();
    create_node(&site.path("src/fifo"), FileType::Fifo, 0);
    create_node(&site.path("src/null"), FileType::CharacterDevice, 0x103);
    fs::create_dir(site.path("src/dir")).unwrap();
    for (name, mode) in [("tool", 0o4755), ("large", 0o600), ("fifo", 0o620), ("null", 0o660)] {
        set_mode(&site.path("src").join(name), mode);
    }
    for name in ["tool", "large", "empty", "one", "link", "fifo", "null", "dir"] {
        set_file_mtime(&site.path("src").join(name), 1_000_000_000, 7);
    }
}

/// Puts an object of `OTHER_UID` in the place of `path`, which looks like what is there by all that is
/// compared without reading content.
fn plant_foreign_file(path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_file() {
        fs::remove_file(path).unwrap();
        fs::write(path, vec![b'#'; usize::try_from(meta.len()).unwrap()]).unwrap();
    }
    lchown(path, Some(OTHER_UID), Some(OTHER_UID)).unwrap();
    if !meta.is_symlink() {
        set_mode(path, meta.mode() & 0o7777);
    }
    set_file_mtime(path, meta.mtime(), meta.mtime_nsec());
}

#[test]
fn an_object_of_a_foreign_owner_is_replaced_for_every_kind_and_comparison() {
    is_root();
    for compare in [Compare::SizeTime, Compare::Size] {
        let rules = WriteRules { compare, ..WriteRules::default() };
        for name in ["tool", "large", "empty", "one", "link", "fifo", "null", "dir"] {
            let site = TestSite::new();
            source_of_all_kinds(&site);
            // The owner of the directory does not show the owner of files that this process creates in it.
            fs::create_dir_all(site.path("dst")).unwrap();
            lchown(site.path("dst"), Some(OTHER_UID), Some(OTHER_UID)).unwrap();
            let all = || full_manifest(&site.source());
            let options = TargetOptions::for_this_process(rules.clone());
            copy_batch(
                &site.source(),
                &Target::new(site.tree("dst"), EARLIER_SYNC, options),
                &all(),
            );
            let path = site.path("dst").join(name);
            plant_foreign_file(&path);
            let planted = fs::symlink_metadata(&path).unwrap();
            let batch = single_entry_batch(&site.source(), name);
            let dry = WriteRules { dry_run: true, ..rules.clone() };
            let dry_verdicts = site.target_with_rules(dry).reconcile(&batch).decisions;
            let done = copy_batch(&site.source(), &site.target_with_rules(rules.clone()), &batch);
            let action = match &done[0] {
                Ok(OfferDecision::Done(action))
                | Ok(OfferDecision::NeedsContent { action, .. }) => *action,
                other => panic!("{name}: {other:?}"),
            };
            let there = fs::symlink_metadata(&path).unwrap();
            assert_eq!((there.uid(), there.gid()), (0, 0), "{name} {compare:?}");
            assert_eq!(mode_at(&path), mode_at(&site.path("src").join(name)), "{name}");
            if name == "dir" {
                // What is in it is judged by itself.
                assert_eq!((action, there.ino()), (EntryAction::Metadata, planted.ino()));
            } else {
                assert_eq!(
                    (action, &dry_verdicts),
                    (EntryAction::Update, &done),
                    "{name} {compare:?}"
                );
                assert_ne!(there.ino(), planted.ino(), "{name} {compare:?}");
            }
            if there.is_file() {
                assert!(fs::read(&path).unwrap() == fs::read(site.path("src").join(name)).unwrap());
            }
            let again = copy_batch(&site.source(), &site.target_with_rules(rules.clone()), &batch);
            assert_eq!(again, [Ok(OfferDecision::Done(EntryAction::Skip))], "{name}");
        }
    }
}

#[test]
fn objects_of_the_desired_owner_and_of_this_process_are_trusted() {
    is_root();
    let no_owner = Preserve::all().without(Attribute::Owner).without(Attribute::Group);
    let times = Preserve::NONE.with(Attribute::Times);
    let given = Chown { uid: Some(OTHER_UID), gid: None };
    // Owner at the source, owner at the destination, what is preserved and given: replaced, and then of.
    for (source, there, preserve, chown, replaced, then) in [
        (OTHER_UID, OTHER_UID, Preserve::all(), Chown::default(), false, OTHER_UID),
        (OTHER_UID, 0, Preserve::all(), Chown::default(), false, OTHER_UID),
        (0, OTHER_UID, Preserve::all(), Chown::default(), true, 0),
        (1, OTHER_UID, Preserve::all(), Chown::default(), true, 1),
        (1, OTHER_UID, Preserve::all(), given, false, OTHER_UID),
        (1, 1, Preserve::all(), given, true, OTHER_UID),
        (1, OTHER_UID, no_owner, Chown::default(), true, 0),
        (OTHER_UID, OTHER_UID, no_owner, Chown::default(), true, 0),
        (1, 0, no_owner, Chown::default(), false, 0),
        (1, OTHER_UID, times, Chown::default(), true, 0),
        (1, 0, times, Chown::default(), false, 0),
    ] {
        let site = TestSite::new();
        for path in ["src/f", "dst/f"] {
            set_file_mtime(&site.write_file(path, "same"), 1_000_000_000, 0);
        }
        lchown(site.path("src/f"), Some(source), None).unwrap();
        lchown(site.path("dst/f"), Some(there), None).unwrap();
        let before = fs::metadata(site.path("dst/f")).unwrap().ino();
        let rules = WriteRules { preserve, chown, ..WriteRules::default() };
        let target = site.target_with_rules(rules);
        copy_batch(&site.source(), &target, &single_entry_batch(&site.source(), "f"));
        let now = fs::metadata(site.path("dst/f")).unwrap();
        let case = format!("{source} {there} {preserve:?} {chown:?}");
        assert_eq!((now.ino() != before, now.uid()), (replaced, then), "{case}");
        let again = copy_batch(&site.source(), &target, &single_entry_batch(&site.source(), "f"));
        assert_eq!(again, [Ok(OfferDecision::Done(EntryAction::Skip))], "{case}");
    }
}

#[test]
fn new_content_inherits_neither_owner_nor_mode_of_a_replaced_foreign_file() {
    is_root();
    let site = TestSite::new();
    let secret = site.write_file("src/f", "secret");
    set_mode(&secret, 0o600);
    for (owner, want) in [(OTHER_UID, (0, 0, 0o600)), (0, (0, OTHER_UID, 0o666))] {
        let planted = site.write_file("dst/f", "x");
        set_mode(&planted, 0o666);
        lchown(&planted, Some(owner), Some(OTHER_UID)).unwrap();
        let preserve = Preserve::NONE.with(Attribute::Times);
        let target = site.target_with_rules(WriteRules { preserve, ..WriteRules::default() });
        copy_batch(&site.source(), &target, &single_entry_batch(&site.source(), "f"));
        let there = fs::metadata(&planted).unwrap();
        assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), want, "{owner}");
        fs::remove_file(planted).unwrap();
    }
}

#[test]
fn without_root_a_foreign_file_is_replaced_if_permitted_and_fails_otherwise() {
    is_root();
    let site = TestSite::new();
    for path in ["src/f", "src/d/f", "dst/f", "dst/d/f"] {
        set_file_mtime(&site.write_file(path, "same"), 1_000_000_000, 0);
    }
    site.chown_all_to_nobody();
    for path in ["dst/f", "dst/d/f", "dst/d"] {
        lchown(site.path(path), Some(OTHER_UID), None).unwrap();
    }
    let before = fs::metadata(site.path("dst/f")).unwrap().ino();
    site.run_as_nobody(|| {
        let (source, target) = (site.source(), site.target());
        copy_batch(&source, &target, &single_entry_batch(&source, "f"));
        let batch = single_entry_batch(&source, "d/f");
        let verdict = target.reconcile(&batch).decisions.remove(0);
        assert!(matches!(verdict, Ok(OfferDecision::NeedsContent { .. })), "{verdict:?}");
        let error = send_file(&source, &target, &batch.entries[0]).unwrap_err();
        assert_eq!(error.errno_name(), Some("EACCES"), "{error}");
    });
    let there = fs::metadata(site.path("dst/f")).unwrap();
    assert!(there.ino() != before && there.uid() == 65534);
}

#[test]
fn objects_are_trusted_when_the_file_system_maps_the_uid_of_this_process() {
    for named in [false, true] {
        let site = TestSite::new();
        for path in ["src/f", "dst/f"] {
            set_file_mtime(&site.write_file(path, vec![1; 300 << 10]), 1_000_000_000, 0);
        }
        let target = || {
            // As on a server that maps this user to another one.
            let mut target = site.target();
            let mut policy = super::super::metadata::MetadataPolicy::new(
                false,
                &target.rules,
                target.identity(),
            );
            policy.euid = OTHER_UID;
            target.policy = std::sync::Arc::new(policy);
            target
        };
        let entry = site.source().entry(&rel("f")).unwrap();
        let batch = single_entry_batch(&site.source(), "f");
        assert_eq!(
            target().reconcile(&batch).decisions,
            [Ok(OfferDecision::Done(EntryAction::Skip))]
        );
        if named {
            fs::remove_file(site.path("dst/f")).unwrap();
        }
        set_file_mtime(&site.path("dst"), 77, 7);
        let owner = target()
            .probe_created_owner(&std::sync::Arc::new(site.tree("dst").open_dir(b"").unwrap()));
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(owner, Ok(CreatedOwner { uid: own, mode: PART_MODE }));
        assert_eq!(fs::metadata(site.path("dst")).unwrap().mtime(), 77);
        fs::remove_file(site.path("dst/f")).ok();
        assert!(target().open_part_file(&entry).unwrap().created);
        assert!(!target().open_part_file(&entry).unwrap().created);
    }
}

fn part_file_names(site: &TestSite) -> Vec<Vec<u8>> {
    sorted_names(&site.path("dst")).into_iter().filter(|name| is_internal_name(name)).collect()
}

/// A source file `f`, and the path of its part file.
fn site_with_part_file() -> (TestSite, Target, crate::wire::manifest::Entry, std::path::PathBuf) {
    let site = TestSite::new();
    fs::create_dir(site.path("dst")).unwrap();
    set_mode(&site.write_file("src/f", vec![1; 300 << 10]), 0o600);
    let (target, entry) = (site.target(), site.source().entry(&rel("f")).unwrap());
    let part = site.path("dst").join(os_str(&target.part_file_name(&entry)));
    (site, target, entry, part)
}

#[test]
fn a_foreign_part_file_is_removed_and_created_again() {
    is_root();
    type Plant = fn(&TestSite, &Path);
    let cases: [(&str, Plant); 6] = [
        ("another owner", |_, part| {
            fs::write(part, vec![2; 300 << 10]).unwrap();
            set_mode(part, 0o600);
            lchown(part, Some(OTHER_UID), None).unwrap();
        }),
        ("a mode that lets others in", |_, part| {
            fs::write(part, vec![2; 300 << 10]).unwrap();
            set_mode(part, 0o666);
        }),
        ("another name", |site, part| {
            set_mode(&site.write_file("named", vec![2; 300 << 10]), 0o600);
            fs::hard_link(site.path("named"), part).unwrap();
        }),
        ("a link", |site, part| symlink(site.path("canary/file"), part).unwrap()),
        ("a FIFO", |_, part| create_node(part, FileType::Fifo, 0)),
        ("a directory", |_, part| fs::create_dir(part).unwrap()),
    ];
    for (case, plant) in cases {
        let (site, target, entry, part) = site_with_part_file();
        plant(&site, &part);
        // Also so that its number is not given to the next file.
        let held = fs::symlink_metadata(&part).unwrap().is_file();
        let held = held.then(|| fs::File::options().read(true).write(true).open(&part).unwrap());
        let batch = single_entry_batch(&site.source(), "f");
        let verdict = target.reconcile(&batch).decisions.remove(0);
        assert_eq!(
            verdict,
            Ok(OfferDecision::NeedsContent { action: EntryAction::Create, has_basis: false }),
            "{case}"
        );
        let blocks = target.hash_blocks(&entry, (0, 300 << 10), 1 << 17, &mut vec![0; 1 << 17]);
        assert!(blocks.unwrap().iter().all(|block| block.part.is_none()), "{case}");
        let error = target.publish_part_file(&entry, None).unwrap_err();
        assert!(!site.path("dst/f").exists(), "{case}: {error}");
        let file = target.open_part_file(&entry).unwrap();
        assert!(file.created, "{case}");
        let there = fs::symlink_metadata(&part).unwrap();
        let same = held.as_ref().is_some_and(|held| held.metadata().unwrap().ino() == there.ino());
        assert!(there.is_file() && !same, "{case}");
        assert_eq!((there.uid(), there.mode() & 0o7777, there.nlink()), (0, 0o600, 1), "{case}");
        file.write_at(&vec![1; 300 << 10], 0).unwrap();
        if let Some(held) = held {
            let mut seen = [0];
            held.read_at(&mut seen, 0).unwrap();
            assert_eq!(seen, [2], "{case}: our content shows in it");
            held.write_at(b"#", 0).unwrap();
        }
        target.publish_part_file(&entry, None).unwrap();
        assert!(fs::read(site.path("dst/f")).unwrap() == vec![1; 300 << 10], "{case}");
        site.assert_canary_unchanged();
    }
}

#[test]
fn a_part_file_swapped_during_writing_is_never_published() {
    is_root();
    let (site, target, entry, part) = site_with_part_file();
    let writing = target.open_part_file(&entry).unwrap();
    writing.write_at(&[1; 1000], 0).unwrap();
    // The directory lets everybody write.
    fs::remove_file(&part).unwrap();
    fs::write(&part, "").unwrap();
    fs::File::options().write(true).open(&part).unwrap().set_len(300 << 10).unwrap();
    set_mode(&part, 0o600);
    lchown(&part, Some(OTHER_UID), None).unwrap();
    // Held, so that its number is not given to the next file.
    let swapped = fs::File::open(&part).unwrap();
    assert_eq!(writing.write_at(&[1], 1000).unwrap_err().cause, Cause::Superseded);
    assert_eq!(target.publish_part_file(&entry, None).unwrap_err().cause, Cause::PartDataLost);
    let next = site.target().open_part_file(&entry).unwrap();
    let there = fs::metadata(&part).unwrap();
    assert!(next.created && there.ino() != swapped.metadata().unwrap().ino() && there.uid() == 0);
    assert_eq!(part_file_names(&site).len(), 1);
    // What it had is gone with it: where no digest shows it, nothing is kept of it.
    target.remove_part_file(&entry).unwrap();
    let unhashed =
        site.target_with_rules(WriteRules { requires_digest: false, ..WriteRules::default() });
    let kept = unhashed.open_part_file(&entry).unwrap().reuse_range(
        0,
        1000,
        super::super::ReuseSource::PartFile,
    );
    assert_eq!(kept.unwrap_err().cause, Cause::PartDataLost);
}

#[test]
fn a_foreign_file_with_the_final_name_is_not_treated_as_published() {
    is_root();
    let (site, target, entry, _) = site_with_part_file();
    let planted = site.write_file("dst/f", vec![2; 300 << 10]);
    lchown(&planted, Some(OTHER_UID), None).unwrap();
    set_file_mtime(&planted, entry.meta.mtime_sec, entry.meta.mtime_nsec.into());
    let lost = |target: &Target| target.publish_part_file(&entry, None).unwrap_err().cause;
    assert_eq!(lost(&target), Cause::PartDataLost);
    let by_content = WriteRules { compare: Compare::Checksum, ..WriteRules::default() };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&vec![2; 300 << 10]);
    let values = [crate::wire::Digest(blake3::hazmat::HasherExt::finalize_non_root(&hasher))];
    let ranges =
        Some(SentRanges { range_bytes: 1 << 20, digests: &values, hashing: HashMode::Full });
    let error = site.target_with_rules(by_content).publish_part_file(&entry, ranges).unwrap_err();
    assert_eq!(error.cause, Cause::PartDataLost);
    assert!(target.open_part_file(&entry).unwrap().created);
    // Nor is anything taken from it.
    let blocks =
        target.hash_blocks(&entry, (0, 300 << 10), 1 << 17, &mut vec![0; 1 << 17]).unwrap();
    assert!(blocks.iter().all(|block| block.basis.is_none()), "{blocks:?}");
    let kept = target.open_part_file(&entry).unwrap().reuse_range(
        0,
        1000,
        super::super::ReuseSource::Basis,
    );
    assert_eq!(kept.unwrap_err().errno_name(), Some("ENOENT"));
    assert_eq!(target.repair_metadata_in_place(&entry).unwrap_err().cause, Cause::PartDataLost);
    lchown(&planted, Some(0), None).unwrap();
    target.remove_part_file(&entry).unwrap();
    target.publish_part_file(&entry, None).unwrap();
}

#[test]
fn a_part_file_whose_agent_was_killed_before_the_rename_is_published() {
    is_root();
    let (site, target, entry, part) = site_with_part_file();
    lchown(site.path("src/f"), Some(OTHER_UID), Some(OTHER_UID)).unwrap();
    set_mode(&site.path("src/f"), 0o640);
    let given = site.source().entry(&rel("f")).unwrap();
    assert_ne!(target.part_file_name(&given), target.part_file_name(&entry), "another version");
    let part = part.with_file_name(os_str(&target.part_file_name(&given)));
    target.open_part_file(&given).unwrap().write_at(&vec![1; 300 << 10], 0).unwrap();
    // All that `publish_part_file` does before it renames.
    set_mode(&part, 0o640);
    lchown(&part, Some(OTHER_UID), Some(OTHER_UID)).unwrap();
    set_file_mtime(&part, given.meta.mtime_sec, given.meta.mtime_nsec.into());
    let inode = fs::metadata(&part).unwrap().ino();
    target.publish_part_file(&given, None).unwrap();
    assert_eq!(fs::metadata(site.path("dst/f")).unwrap().ino(), inode);
}

#[test]
fn a_special_file_swapped_before_its_metadata_is_set_gets_none() {
    is_root();
    let site = TestSite::new();
    fs::create_dir(site.path("dst")).unwrap();
    create_node(&site.path("dst/n"), FileType::Fifo, 0);
    lchown(site.path("dst/n"), Some(OTHER_UID), None).unwrap();
    let dir = std::sync::Arc::new(site.tree("dst").open_dir(b"").unwrap());
    let stat = super::super::inode::lstat(&dir, b"n").unwrap();
    assert!(!site.target().is_created_by_process(&dir, &stat));
    fs::File::create(site.path("dst/f")).unwrap().write_all(b"x").unwrap();
    let stat = super::super::inode::lstat(&dir, b"f").unwrap();
    assert!(site.target().is_created_by_process(&dir, &stat));
}
