use super::super::testing::*;
use super::super::{Cause, Ranges, Verdict, is_ours};
use super::*;
use crate::fs::target::TargetOptions;
use crate::wire::SyncNo;
use crate::wire::content::HashMode;
use crate::wire::options::{Attribute, Chown, Compare, EntryAction, Preserve, WriteRules};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;

/// The sync that made what is there: a directory that the same sync made is not named as repaired.
const EARLIER_SYNC: SyncNo = SyncNo(6);

/// Another user of the host.
const OTHER: u32 = 4711;

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

fn make_node(path: &Path, file_type: FileType, device: u64) {
    rustix::fs::mknodat(rustix::fs::CWD, path, file_type, Mode::RUSR, device).unwrap();
}

/// One entry of each kind, all of root, with a mode that matters; `null` is the device 1:3.
fn source_of_all_kinds(site: &Site) {
    site.write("src/tool", "echo mine");
    site.write("src/large", vec![1; 300 << 10]);
    site.write("src/empty", "");
    site.write("src/one", "two names");
    fs::hard_link(site.at("src/one"), site.at("src/other")).unwrap();
    symlink("tool", site.at("src/link")).unwrap();
    make_node(&site.at("src/fifo"), FileType::Fifo, 0);
    make_node(&site.at("src/null"), FileType::CharacterDevice, 0x103);
    fs::create_dir(site.at("src/dir")).unwrap();
    for (name, mode) in [("tool", 0o4755), ("large", 0o600), ("fifo", 0o620), ("null", 0o660)] {
        set_mode(&site.at("src").join(name), mode);
    }
    for name in ["tool", "large", "empty", "one", "link", "fifo", "null", "dir"] {
        touch(&site.at("src").join(name), 1_000_000_000, 7);
    }
}

/// Puts an object of `OTHER` in the place of `path`, which looks like what is there by all that is
/// compared without reading content.
fn plant(path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_file() {
        fs::remove_file(path).unwrap();
        fs::write(path, vec![b'#'; usize::try_from(meta.len()).unwrap()]).unwrap();
    }
    lchown(path, Some(OTHER), Some(OTHER)).unwrap();
    if !meta.is_symlink() {
        set_mode(path, meta.mode() & 0o7777);
    }
    touch(path, meta.mtime(), meta.mtime_nsec());
}

#[test]
fn an_object_of_a_foreign_owner_is_replaced_whatever_its_kind_and_however_it_is_compared() {
    is_root();
    for compare in [Compare::SizeTime, Compare::Size] {
        let rules = WriteRules { compare, ..WriteRules::default() };
        for name in ["tool", "large", "empty", "one", "link", "fifo", "null", "dir"] {
            let site = Site::new();
            source_of_all_kinds(&site);
            // The owner of the directory says nothing of what this process makes in it.
            fs::create_dir_all(site.at("dst")).unwrap();
            lchown(site.at("dst"), Some(OTHER), Some(OTHER)).unwrap();
            let all = || manifest(&site.source());
            let options = TargetOptions::of_this_process(rules.clone());
            copy(&site.source(), &Target::new(site.tree("dst"), EARLIER_SYNC, options), &all());
            let path = site.at("dst").join(name);
            plant(&path);
            let planted = fs::symlink_metadata(&path).unwrap();
            let batch = batch_of(&site.source(), name);
            let dry = WriteRules { dry_run: true, ..rules.clone() };
            let said = site.target_by(dry).reconcile(&batch).verdicts;
            let done = copy(&site.source(), &site.target_by(rules.clone()), &batch);
            let action = match &done[0] {
                Verdict::Done(action) | Verdict::Needed { action, .. } => *action,
                other => panic!("{name}: {other:?}"),
            };
            let there = fs::symlink_metadata(&path).unwrap();
            assert_eq!((there.uid(), there.gid()), (0, 0), "{name} {compare:?}");
            assert_eq!(mode_at(&path), mode_at(&site.at("src").join(name)), "{name}");
            if name == "dir" {
                // What is in it is judged by itself.
                assert_eq!((action, there.ino()), (EntryAction::Metadata, planted.ino()));
            } else {
                assert_eq!((action, &said), (EntryAction::Update, &done), "{name} {compare:?}");
                assert_ne!(there.ino(), planted.ino(), "{name} {compare:?}");
            }
            if there.is_file() {
                assert!(fs::read(&path).unwrap() == fs::read(site.at("src").join(name)).unwrap());
            }
            let again = copy(&site.source(), &site.target_by(rules.clone()), &batch);
            assert_eq!(again, [Verdict::Done(EntryAction::Skip)], "{name}");
        }
    }
}

#[test]
fn the_wanted_owner_and_this_process_are_no_foreign_owners() {
    is_root();
    let no_owner = Preserve::all().without(Attribute::Owner).without(Attribute::Group);
    let times = Preserve::NONE.with(Attribute::Times);
    let given = Chown { uid: Some(OTHER), gid: None };
    // Owner at the source, owner at the destination, what is preserved and given: replaced, and then of.
    for (source, there, preserve, chown, replaced, then) in [
        (OTHER, OTHER, Preserve::all(), Chown::default(), false, OTHER),
        (OTHER, 0, Preserve::all(), Chown::default(), false, OTHER),
        (0, OTHER, Preserve::all(), Chown::default(), true, 0),
        (1, OTHER, Preserve::all(), Chown::default(), true, 1),
        (1, OTHER, Preserve::all(), given, false, OTHER),
        (1, 1, Preserve::all(), given, true, OTHER),
        (1, OTHER, no_owner, Chown::default(), true, 0),
        (OTHER, OTHER, no_owner, Chown::default(), true, 0),
        (1, 0, no_owner, Chown::default(), false, 0),
        (1, OTHER, times, Chown::default(), true, 0),
        (1, 0, times, Chown::default(), false, 0),
    ] {
        let site = Site::new();
        for path in ["src/f", "dst/f"] {
            touch(&site.write(path, "same"), 1_000_000_000, 0);
        }
        lchown(site.at("src/f"), Some(source), None).unwrap();
        lchown(site.at("dst/f"), Some(there), None).unwrap();
        let before = fs::metadata(site.at("dst/f")).unwrap().ino();
        let rules = WriteRules { preserve, chown, ..WriteRules::default() };
        let target = site.target_by(rules);
        copy(&site.source(), &target, &batch_of(&site.source(), "f"));
        let now = fs::metadata(site.at("dst/f")).unwrap();
        let case = format!("{source} {there} {preserve:?} {chown:?}");
        assert_eq!((now.ino() != before, now.uid()), (replaced, then), "{case}");
        let again = copy(&site.source(), &target, &batch_of(&site.source(), "f"));
        assert_eq!(again, [Verdict::Done(EntryAction::Skip)], "{case}");
    }
}

#[test]
fn new_content_gets_neither_owner_nor_mode_of_a_foreign_file_that_it_replaces() {
    is_root();
    let site = Site::new();
    let secret = site.write("src/f", "secret");
    set_mode(&secret, 0o600);
    for (owner, want) in [(OTHER, (0, 0, 0o600)), (0, (0, OTHER, 0o666))] {
        let planted = site.write("dst/f", "x");
        set_mode(&planted, 0o666);
        lchown(&planted, Some(owner), Some(OTHER)).unwrap();
        let preserve = Preserve::NONE.with(Attribute::Times);
        let target = site.target_by(WriteRules { preserve, ..WriteRules::default() });
        copy(&site.source(), &target, &batch_of(&site.source(), "f"));
        let there = fs::metadata(&planted).unwrap();
        assert_eq!((there.uid(), there.gid(), there.mode() & 0o7777), want, "{owner}");
        fs::remove_file(planted).unwrap();
    }
}

#[test]
fn without_root_a_foreign_file_is_replaced_where_that_may_be_and_fails_where_not() {
    is_root();
    let site = Site::new();
    for path in ["src/f", "src/d/f", "dst/f", "dst/d/f"] {
        touch(&site.write(path, "same"), 1_000_000_000, 0);
    }
    site.give_to_nobody();
    for path in ["dst/f", "dst/d/f", "dst/d"] {
        lchown(site.at(path), Some(OTHER), None).unwrap();
    }
    let before = fs::metadata(site.at("dst/f")).unwrap().ino();
    site.run_as_nobody(|| {
        let (source, target) = (site.source(), site.target());
        copy(&source, &target, &batch_of(&source, "f"));
        let batch = batch_of(&source, "d/f");
        let verdict = target.reconcile(&batch).verdicts.remove(0);
        assert!(matches!(verdict, Verdict::Needed { .. }), "{verdict:?}");
        let error = send(&source, &target, &batch.entries[0]).unwrap_err();
        assert_eq!(error.errno_name(), Some("EACCES"), "{error}");
    });
    let there = fs::metadata(site.at("dst/f")).unwrap();
    assert!(there.ino() != before && there.uid() == 65534);
}

#[test]
fn where_the_file_system_shows_another_number_for_us_what_we_made_is_ours() {
    for named in [false, true] {
        let site = Site::new();
        for path in ["src/f", "dst/f"] {
            touch(&site.write(path, vec![1; 300 << 10]), 1_000_000_000, 0);
        }
        let target = || {
            // As if a server took us for somebody else.
            let mut target = site.target();
            let mut policy = super::super::dress::Policy::new(false, &target.rules);
            policy.euid = OTHER;
            target.policy = std::sync::Arc::new(policy);
            target
        };
        let entry = site.source().entry(&rel("f")).unwrap();
        let batch = batch_of(&site.source(), "f");
        assert_eq!(target().reconcile(&batch).verdicts, [Verdict::Done(EntryAction::Skip)]);
        if named {
            fs::remove_file(site.at("dst/f")).unwrap();
        }
        touch(&site.at("dst"), 77, 7);
        let newborn =
            target().newborn(&std::sync::Arc::new(site.tree("dst").open_dir(b"").unwrap()));
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(newborn, Ok(Newborn { uid: own, mode: PART_MODE }));
        assert_eq!(fs::metadata(site.at("dst")).unwrap().mtime(), 77);
        fs::remove_file(site.at("dst/f")).ok();
        assert!(target().part(&entry).unwrap().created);
        assert!(!target().part(&entry).unwrap().created);
    }
}

fn parts(site: &Site) -> Vec<Vec<u8>> {
    names_in(&site.at("dst")).into_iter().filter(|name| is_ours(name)).collect()
}

/// A source file `f`, and the path of its part file.
fn to_part() -> (Site, Target, crate::wire::manifest::Entry, std::path::PathBuf) {
    let site = Site::new();
    fs::create_dir(site.at("dst")).unwrap();
    set_mode(&site.write("src/f", vec![1; 300 << 10]), 0o600);
    let (target, entry) = (site.target(), site.source().entry(&rel("f")).unwrap());
    let part = site.at("dst").join(os(&target.part_name(&entry)));
    (site, target, entry, part)
}

#[test]
fn a_part_file_that_is_not_ours_is_removed_and_made_anew() {
    is_root();
    type Plant = fn(&Site, &Path);
    let cases: [(&str, Plant); 6] = [
        ("another owner", |_, part| {
            fs::write(part, vec![2; 300 << 10]).unwrap();
            set_mode(part, 0o600);
            lchown(part, Some(OTHER), None).unwrap();
        }),
        ("a mode that lets others in", |_, part| {
            fs::write(part, vec![2; 300 << 10]).unwrap();
            set_mode(part, 0o666);
        }),
        ("another name", |site, part| {
            set_mode(&site.write("named", vec![2; 300 << 10]), 0o600);
            fs::hard_link(site.at("named"), part).unwrap();
        }),
        ("a link", |site, part| symlink(site.at("canary/file"), part).unwrap()),
        ("a FIFO", |_, part| make_node(part, FileType::Fifo, 0)),
        ("a directory", |_, part| fs::create_dir(part).unwrap()),
    ];
    for (case, plant) in cases {
        let (site, target, entry, part) = to_part();
        plant(&site, &part);
        // Also so that its number is not given to the next file.
        let held = fs::symlink_metadata(&part).unwrap().is_file();
        let held = held.then(|| fs::File::options().read(true).write(true).open(&part).unwrap());
        let batch = batch_of(&site.source(), "f");
        let verdict = target.reconcile(&batch).verdicts.remove(0);
        assert_eq!(verdict, Verdict::Needed { action: EntryAction::Create, base: false }, "{case}");
        let blocks = target.blocks(&entry, (0, 300 << 10), 1 << 17, &mut vec![0; 1 << 17]);
        assert!(blocks.unwrap().iter().all(|block| block.part.is_none()), "{case}");
        let error = target.publish_part(&entry, None).unwrap_err();
        assert!(!site.at("dst/f").exists(), "{case}: {error}");
        let file = target.part(&entry).unwrap();
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
        target.publish_part(&entry, None).unwrap();
        assert!(fs::read(site.at("dst/f")).unwrap() == vec![1; 300 << 10], "{case}");
        site.assert_canary();
    }
}

#[test]
fn a_part_file_swapped_while_it_is_written_is_never_taken_up() {
    is_root();
    let (site, target, entry, part) = to_part();
    let writing = target.part(&entry).unwrap();
    writing.write_at(&[1; 1000], 0).unwrap();
    // The directory lets everybody write.
    fs::remove_file(&part).unwrap();
    fs::write(&part, "").unwrap();
    fs::File::options().write(true).open(&part).unwrap().set_len(300 << 10).unwrap();
    set_mode(&part, 0o600);
    lchown(&part, Some(OTHER), None).unwrap();
    // Held, so that its number is not given to the next file.
    let swapped = fs::File::open(&part).unwrap();
    assert_eq!(writing.write_at(&[1], 1000).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(target.publish_part(&entry, None).unwrap_err().cause, Cause::Lost);
    let next = site.target().part(&entry).unwrap();
    let there = fs::metadata(&part).unwrap();
    assert!(next.created && there.ino() != swapped.metadata().unwrap().ino() && there.uid() == 0);
    assert_eq!(parts(&site).len(), 1);
    // What it had is gone with it: where no digest shows it, nothing is kept of it.
    target.discard_part(&entry).unwrap();
    let unhashed = site.target_by(WriteRules { requires_digest: false, ..WriteRules::default() });
    let kept = unhashed.part(&entry).unwrap().keep(0, 1000, super::super::Keep::Part);
    assert_eq!(kept.unwrap_err().cause, Cause::Lost);
}

#[test]
fn a_foreign_file_of_the_final_name_does_not_pass_for_published() {
    is_root();
    let (site, target, entry, _) = to_part();
    let planted = site.write("dst/f", vec![2; 300 << 10]);
    lchown(&planted, Some(OTHER), None).unwrap();
    touch(&planted, entry.meta.mtime_sec, entry.meta.mtime_nsec.into());
    let lost = |target: &Target| target.publish_part(&entry, None).unwrap_err().cause;
    assert_eq!(lost(&target), Cause::Lost);
    let by_content = WriteRules { compare: Compare::Checksum, ..WriteRules::default() };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&vec![2; 300 << 10]);
    let values = [crate::wire::Digest(blake3::hazmat::HasherExt::finalize_non_root(&hasher))];
    let ranges = Some(Ranges { length: 1 << 20, values: &values, hashing: HashMode::Full });
    let error = site.target_by(by_content).publish_part(&entry, ranges).unwrap_err();
    assert_eq!(error.cause, Cause::Lost);
    assert!(target.part(&entry).unwrap().created);
    // Nor is anything taken from it.
    let blocks = target.blocks(&entry, (0, 300 << 10), 1 << 17, &mut vec![0; 1 << 17]).unwrap();
    assert!(blocks.iter().all(|block| block.base.is_none()), "{blocks:?}");
    let kept = target.part(&entry).unwrap().keep(0, 1000, super::super::Keep::Base);
    assert_eq!(kept.unwrap_err().errno_name(), Some("ENOENT"));
    assert_eq!(target.repair_in_place(&entry).unwrap_err().cause, Cause::Lost);
    lchown(&planted, Some(0), None).unwrap();
    target.discard_part(&entry).unwrap();
    target.publish_part(&entry, None).unwrap();
}

#[test]
fn a_part_file_whose_agent_was_killed_before_the_rename_is_published() {
    is_root();
    let (site, target, entry, part) = to_part();
    lchown(site.at("src/f"), Some(OTHER), Some(OTHER)).unwrap();
    set_mode(&site.at("src/f"), 0o640);
    let given = site.source().entry(&rel("f")).unwrap();
    assert_ne!(target.part_name(&given), target.part_name(&entry), "another version");
    let part = part.with_file_name(os(&target.part_name(&given)));
    target.part(&given).unwrap().write_at(&vec![1; 300 << 10], 0).unwrap();
    // All that `publish_part` does before it renames.
    set_mode(&part, 0o640);
    lchown(&part, Some(OTHER), Some(OTHER)).unwrap();
    touch(&part, given.meta.mtime_sec, given.meta.mtime_nsec.into());
    let inode = fs::metadata(&part).unwrap().ino();
    target.publish_part(&given, None).unwrap();
    assert_eq!(fs::metadata(site.at("dst/f")).unwrap().ino(), inode);
}

#[test]
fn a_node_that_was_swapped_before_it_got_its_metadata_is_not_given_any() {
    is_root();
    let site = Site::new();
    fs::create_dir(site.at("dst")).unwrap();
    make_node(&site.at("dst/n"), FileType::Fifo, 0);
    lchown(site.at("dst/n"), Some(OTHER), None).unwrap();
    let dir = std::sync::Arc::new(site.tree("dst").open_dir(b"").unwrap());
    let stat = super::super::meta::lstat(&dir, b"n").unwrap();
    assert!(!site.target().is_made_by_us(&dir, &stat));
    fs::File::create(site.at("dst/f")).unwrap().write_all(b"x").unwrap();
    let stat = super::super::meta::lstat(&dir, b"f").unwrap();
    assert!(site.target().is_made_by_us(&dir, &stat));
}
