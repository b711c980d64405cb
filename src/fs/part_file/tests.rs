use super::super::testing::*;
use super::*;
use crate::wire::Digest;
use crate::wire::SyncNo;
use crate::wire::content::HashMode;
use crate::wire::options::WriteRules;
use crate::wire::outcome::ErrorClass;
use crate::wire::preserve::Preserve;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

fn site_with(content: &[u8]) -> (TestSite, Target, Entry) {
    let site = TestSite::new();
    site.write_file("src/d/f", content);
    let (target, entry) = (site.target(), site.source().entry(&rel("d/f")).unwrap());
    (site, target, entry)
}

fn temp_file_names(site: &TestSite) -> Vec<Vec<u8>> {
    sorted_names(&site.path("dst/d"))
        .into_iter()
        .filter(|n| super::super::is_internal_name(n))
        .collect()
}

#[test]
fn ranges_in_any_order_give_the_complete_file() {
    let (site, target, entry) = site_with(b"0123456789");
    let part = target.open_part_file(&entry).unwrap();
    assert!(part.created);
    part.write_at(b"56789", 5).unwrap();
    part.close().unwrap();
    // Another agent.
    let other = Target::new(
        site.tree("dst"),
        target.sync_no,
        super::super::TargetOptions::for_this_process(Default::default()),
    );
    let part = other.open_part_file(&entry).unwrap();
    assert!(!part.created);
    part.write_at(b"01234", 0).unwrap();
    let mut all = [0; 16];
    assert_eq!(part.read_at(&mut all, 0).unwrap(), 10);
    assert!(!site.path("dst/d/f").exists());
    for _ in 0..2 {
        target.publish_part_file(&entry, None).unwrap();
    }
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"0123456789");
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
    let there = site.tree("dst").entry(&rel("d/f")).unwrap();
    assert_eq!(there.meta, entry.meta);
}

#[test]
fn another_version_of_the_source_has_another_part_file() {
    let (site, target, entry) = site_with(b"old");
    target.open_part_file(&entry).unwrap().write_at(b"old", 0).unwrap();
    fs::remove_file(site.path("src/d/f")).unwrap();
    site.write_file("src/d/f", "newer");
    let newer = site.source().entry(&rel("d/f")).unwrap();
    let error = target.publish_part_file(&newer, None).unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::PartDataLost, ErrorClass::Transient));
    target.open_part_file(&newer).unwrap().write_at(b"newer", 0).unwrap();
    assert_eq!(temp_file_names(&site).len(), 2);
    target.publish_part_file(&newer, None).unwrap();
    for _ in 0..2 {
        target.remove_part_file(&entry).unwrap();
    }
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"newer");
}

#[test]
fn a_part_file_of_another_length_is_not_published() {
    let (site, target, entry) = site_with(b"content");
    target.open_part_file(&entry).unwrap();
    let name = target.part_file_name(&entry);
    fs::write(site.path("dst/d").join(os_str(&name)), "content and more").unwrap();
    let error = target.publish_part_file(&entry, None).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: 7, found: 16 });
    assert!(!site.path("dst/d/f").exists());
}

#[test]
fn a_part_file_created_again_without_its_earlier_ranges_is_not_published() {
    let (site, target, entry) = site_with(&[7; 2 << 20]);
    let value = |byte: u8, offset: u64| {
        use blake3::hazmat::HasherExt as _;
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        hasher.update(&vec![byte; 1 << 20]);
        Digest(hasher.finalize_non_root())
    };
    let write = |byte: u8, offset: u64| {
        target.open_part_file(&entry).unwrap().write_at(&vec![byte; 1 << 20], offset).unwrap();
    };
    let values = [value(7, 0), value(7, 1 << 20)];
    let ranges =
        Some(SentRanges { range_bytes: 1 << 20, digests: &values, hashing: HashMode::Full });
    write(7, 0);
    target.remove_part_file(&entry).unwrap();
    write(7, 1 << 20);
    assert_eq!(target.publish_part_file(&entry, ranges).unwrap_err().cause, Cause::PartDataLost);
    assert!(!site.path("dst/d/f").exists());
    write(7, 0);
    target.publish_part_file(&entry, ranges).unwrap();
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), [7; 2 << 20]);

    // A range of zeros is a hole, and nothing is lost.
    fs::remove_file(site.path("dst/d/f")).unwrap();
    write(0, 0);
    write(7, 1 << 20);
    let values = [value(0, 0), value(7, 1 << 20)];
    target
        .publish_part_file(
            &entry,
            Some(SentRanges { range_bytes: 1 << 20, digests: &values, hashing: HashMode::Full }),
        )
        .unwrap();
}

#[test]
fn a_late_writer_neither_changes_the_published_file_nor_leaves_a_part_file() {
    let (site, target, entry) = site_with(b"content");
    let late = target.open_part_file(&entry).unwrap();
    late.write_at(b"content", 0).unwrap();
    target.publish_part_file(&entry, None).unwrap();
    let published = fs::metadata(site.path("dst/d/f")).unwrap().modified().unwrap();
    assert_eq!(late.write_at(b"content", 0).unwrap_err().cause, Cause::Superseded);
    // Its next try finds the file published, and only compares.
    let next = target.open_part_file(&entry).unwrap();
    next.write_at(b"tent", 3).unwrap();
    next.reuse_range(0, 7, ReuseSource::Basis).unwrap();
    assert_eq!(next.write_at(b"TENT", 3).unwrap_err().cause, Cause::Superseded);
    assert_eq!(next.write_hole(0, 7).unwrap_err().cause, Cause::Superseded);
    let mut all = [0; 8];
    assert_eq!(next.read_at(&mut all, 0).unwrap(), 7);
    next.close().unwrap();
    target.publish_part_file(&entry, None).unwrap();
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"content");
    assert_eq!(fs::metadata(site.path("dst/d/f")).unwrap().modified().unwrap(), published);
}

/// Equal content under a name that shares its file with another one, which this sync must not change: the
/// file is sent again, and the new one has all metadata.
#[test]
fn equal_content_whose_metadata_cannot_be_repaired_in_place_is_replaced_with_all_metadata() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 4] = [
        ("attribute", |path| set_xattr(path, "user.model", b"")),
        ("list", |path| set_xattr(path, "system.posix_acl_access", &acl_bytes(6, (7, 4), 4, 4, 0))),
        ("mode", |path| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(path, fs::Permissions::from_mode(0o751)).unwrap();
        }),
        ("owner", |path| {
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(path, None, Some(77)).unwrap();
            }
        }),
    ];
    for (what, change) in changes {
        let (site, target, _) = site_with(b"content");
        let (from, path) = (site.path("src/d/f"), site.write_file("dst/d/f", "content"));
        let time = fs::metadata(&from).unwrap();
        set_file_mtime(&path, time.mtime(), time.mtime_nsec());
        fs::hard_link(&path, site.path("dst/other")).unwrap();
        change(&from);
        let entry = site.source().entry(&rel("d/f")).unwrap();
        for _ in 0..2 {
            let part = target.open_part_file(&entry).unwrap();
            part.write_at(b"content", 0).unwrap();
            target.publish_part_file(&entry, None).unwrap();
            let there = site.tree("dst").preserving(Preserve::all()).entry(&rel("d/f")).unwrap();
            assert_eq!((there.meta, there.xattrs), (entry.meta, entry.xattrs.clone()), "{what}");
        }
        assert_eq!(sorted_names(&site.path("dst/d")), [b"f"], "{what}");
        let other = site.tree("dst").preserving(Preserve::all()).entry(&rel("other")).unwrap();
        assert_eq!(other.xattrs, [], "{what}");
    }
}

/// Two files of the source that are one at the destination: the second one is not taken for published
/// because the first one is.
#[test]
fn two_source_files_hardlinked_at_the_destination_are_separated_by_their_part_files() {
    let (site, target, _) = site_with(b"content");
    site.write_file("src/d/g", "content");
    let (f, g) = (site.path("src/d/f"), site.path("src/d/g"));
    let path = site.write_file("dst/d/f", "content");
    for path in [&f, &g, &path] {
        set_file_mtime(path, 1_000_000_000, 7);
    }
    fs::hard_link(&path, site.path("dst/d/g")).unwrap();
    for (path, name) in [(&f, "src/f"), (&g, "src/g")] {
        fs::hard_link(path, site.path(name)).unwrap();
    }
    for name in ["d/f", "d/g"] {
        let entry = site.source().entry(&rel(name)).unwrap();
        assert!(entry.is_hardlinked);
        target.open_part_file(&entry).unwrap().write_at(b"content", 0).unwrap();
        target.publish_part_file(&entry, None).unwrap();
    }
    let ino = |name| fs::metadata(site.path(name)).unwrap().ino();
    assert_ne!(ino("dst/d/f"), ino("dst/d/g"));
}

#[test]
fn removing_a_part_file_keeps_the_metadata_of_its_directory() {
    let (site, target, entry) = site_with(b"content");
    target.open_part_file(&entry).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 77);
    let dir = fs::File::open(site.path("dst/d")).unwrap();
    dir.set_modified(time).unwrap();
    target.remove_part_file(&entry).unwrap();
    assert!(sorted_names(&site.path("dst/d")).is_empty());
    assert_eq!(dir.metadata().unwrap().modified().unwrap(), time);
}

/// The chaining value of `content` at `offset`.
fn value_of(content: &[u8], offset: u64) -> Digest {
    use blake3::hazmat::HasherExt as _;
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(content);
    Digest(hasher.finalize_non_root())
}

#[test]
fn a_part_file_of_another_sync_is_reused_and_concurrent_syncs_do_not_conflict() {
    const HALF: u64 = 1 << 20;
    let (zero, one) = (vec![3; 1 << 20], vec![4; 1 << 20]);
    let (site, a, entry) = site_with(&[zero.clone(), one.clone()].concat());
    let options = || super::super::TargetOptions::for_this_process(WriteRules::default());
    let b = Target::new(site.tree("dst"), SyncNo(8), options());
    a.open_part_file(&entry).unwrap().write_at(&zero, 0).unwrap();
    let left = b.open_part_file(&entry).unwrap();
    assert!(!left.created);
    let mut there = [0; 5];
    left.read_at(&mut there, 0).unwrap();
    assert_eq!(there, zero[..5]);
    left.write_at(&one, HALF).unwrap();
    b.publish_part_file(&entry, None).unwrap();
    // The first one goes on, and ends like the second.
    a.open_part_file(&entry).unwrap().write_at(&one, HALF).unwrap();
    a.publish_part_file(&entry, None).unwrap();
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);

    // One removes it: the other one's commit reports the missing ranges.
    fs::remove_file(site.path("dst/d/f")).unwrap();
    let writing = b.open_part_file(&entry).unwrap();
    writing.write_at(&zero, 0).unwrap();
    a.remove_part_file(&entry).unwrap();
    assert_eq!(writing.write_at(&one, HALF).unwrap_err().cause, Cause::Superseded);
    b.open_part_file(&entry).unwrap().write_at(&one, HALF).unwrap();
    let values = [value_of(&zero, 0), value_of(&one, HALF)];
    let ranges = Some(SentRanges { range_bytes: HALF, digests: &values, hashing: HashMode::Full });
    assert_eq!(b.publish_part_file(&entry, ranges).unwrap_err().cause, Cause::PartDataLost);
    b.open_part_file(&entry).unwrap().write_at(&zero, 0).unwrap();
    b.publish_part_file(&entry, ranges).unwrap();
}

#[test]
fn content_identifies_the_version_when_mtime_cannot() {
    let (site, _, entry) = site_with(b"content");
    let rules = WriteRules { compare: Compare::Checksum, ..WriteRules::default() };
    let target = site.target_with_rules(rules);
    let path = site.write_file("dst/d/f", "CONTENT");
    set_file_mtime(&path, entry.meta.mtime_sec, entry.meta.mtime_nsec.into());
    let values = [value_of(b"content", 0)];
    let ranges = Some(SentRanges { range_bytes: 16, digests: &values, hashing: HashMode::Full });
    assert_eq!(target.publish_part_file(&entry, ranges).unwrap_err().cause, Cause::PartDataLost);
    let part = target.open_part_file(&entry).unwrap();
    assert!(part.created);
    part.write_at(b"content", 0).unwrap();
    for _ in 0..2 {
        target.publish_part_file(&entry, ranges).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

#[test]
fn ranges_of_the_basis_are_reused_with_their_holes() {
    let size = 16 << 20;
    let (site, target, _) = site_with(b"");
    fs::File::options().write(true).open(site.path("src/d/f")).unwrap().set_len(size).unwrap();
    set_file_mtime(&site.path("src/d/f"), 1_000_000_000, 0);
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let old = site.write_file("dst/d/f", "");
    let old = fs::File::options().write(true).open(old).unwrap();
    old.set_len(size).unwrap();
    old.write_all_at(&[5; 70_000], 1 << 20).unwrap();
    old.write_all_at(&[6; 70_000], 8 << 20).unwrap();
    let part = target.open_part_file(&entry).unwrap();
    // Leftovers of an earlier try.
    part.write_at(&[9; 4096], 3 << 20).unwrap();
    part.reuse_range(0, size / 2, ReuseSource::Basis).unwrap();
    part.write_at(b"new", size / 2).unwrap();
    part.reuse_range(size / 2 + 3, size / 2 - 3, ReuseSource::Basis).unwrap();
    part.reuse_range(size / 2, 3, ReuseSource::PartFile).unwrap();
    part.write_hole(size - 100, 100).unwrap();
    let error = part.reuse_range(size - 1, 2, ReuseSource::Basis).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: size + 1, found: size });
    assert_eq!(error.class(), ErrorClass::Transient);
    let mut want = fs::read(site.path("dst/d/f")).unwrap();
    target.publish_part_file(&entry, None).unwrap();
    want[8 << 20..][..3].copy_from_slice(b"new");
    assert!(fs::read(site.path("dst/d/f")).unwrap() == want);
    let blocks = fs::metadata(site.path("dst/d/f")).unwrap().blocks();
    assert!(blocks <= old.metadata().unwrap().blocks() + 16, "{blocks}");
}

#[test]
fn a_missing_basis_is_an_error_and_a_symlink_is_not_followed() {
    let (site, target, entry) = site_with(b"content");
    let part = target.open_part_file(&entry).unwrap();
    let keep = || part.reuse_range(0, 5, ReuseSource::Basis).unwrap_err();
    assert_eq!(keep().cause, Cause::Os(Errno::NOENT));
    std::os::unix::fs::symlink(site.path("canary/file"), site.path("dst/d/f")).unwrap();
    assert_eq!(keep().cause, Cause::Os(Errno::LOOP));
    fs::remove_file(site.path("dst/d/f")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, site.path("dst/d/f"), FileType::Fifo, Mode::RUSR, 0)
        .unwrap();
    assert_eq!(keep().cause, Cause::Os(Errno::NOENT));
}

#[test]
fn a_hole_replaces_existing_data() {
    let (site, target, entry) = site_with(&[7; 1 << 20]);
    let part = target.open_part_file(&entry).unwrap();
    part.write_at(&[7; 1 << 20], 0).unwrap();
    part.write_hole(4096, 1 << 19).unwrap();
    part.write_hole(10, 0).unwrap();
    let mut there = vec![1; 1 << 20];
    part.read_at(&mut there, 0).unwrap();
    assert!(there[4096..4096 + (1 << 19)].iter().all(|b| *b == 0));
    assert!(there[..4096].iter().chain(&there[4096 + (1 << 19)..]).all(|b| *b == 7));
    let file = fs::metadata(site.path("dst/d").join(os_str(&temp_file_names(&site)[0]))).unwrap();
    assert!(file.blocks() * 512 <= (1 << 19) + 8192);
}

#[test]
fn a_huge_file_of_holes_is_checked_without_reading_them() {
    let (site, target, _) = site_with(b"");
    let size = 256 << 20;
    let file = fs::File::options().write(true).open(site.path("src/d/f")).unwrap();
    file.set_len(size).unwrap();
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let part = target.open_part_file(&entry).unwrap();
    part.write_at(b"data", 100 << 20).unwrap();
    let length = 64 << 20;
    let mut content = vec![0; usize::try_from(size).unwrap()];
    content[100 << 20..][..4].copy_from_slice(b"data");
    let values: Vec<Digest> = content
        .chunks(64 << 20)
        .enumerate()
        .map(|(i, piece)| value_of(piece, i as u64 * length))
        .collect();
    let ranges =
        |values| Some(SentRanges { range_bytes: length, digests: values, hashing: HashMode::Full });
    let wrong = [&values[..3], &values[..1]].concat();
    assert_eq!(
        target.publish_part_file(&entry, ranges(&wrong)).unwrap_err().cause,
        Cause::PartDataLost
    );
    target.publish_part_file(&entry, ranges(&values)).unwrap();
    assert!(fs::metadata(site.path("dst/d/f")).unwrap().blocks() <= 16);
}

#[test]
fn reserved_blocks_count_as_a_hole_until_they_are_written() {
    let size: u64 = 4 << 20;
    let (site, target, entry) = site_with(&vec![7; size as usize]);
    let part = target.open_part_file(&entry).unwrap();
    let stored = || {
        let path = site.path("dst/d").join(os_str(&temp_file_names(&site)[0]));
        (fs::metadata(&path).unwrap().len(), fs::metadata(path).unwrap().blocks() * 512)
    };
    assert_eq!(stored(), (size, 0));
    part.reserve_blocks(size / 2, size / 2).unwrap();
    if has_delayed_allocation(&part.fd) {
        assert_eq!(stored(), (size, size / 2), "its length is what it was");
    }
    part.write_at(&vec![7; size as usize / 2], 0).unwrap();
    let there = target.hash_blocks(&entry, (0, size), 1 << 20, &mut vec![0; 1 << 20]).unwrap();
    let written: Vec<_> = there.iter().map(|block| block.part.is_some()).collect();
    assert_eq!(written, [true, true, false, false]);
    let half = size / 2;
    let values = [0, half].map(|at| value_of(&vec![7; half as usize], at));
    let ranges = Some(SentRanges { range_bytes: half, digests: &values, hashing: HashMode::Full });
    assert_eq!(target.publish_part_file(&entry, ranges).unwrap_err().cause, Cause::PartDataLost);
    part.write_at(&vec![7; half as usize], half).unwrap();
    target.publish_part_file(&entry, ranges).unwrap();
    assert!(fs::read(site.path("dst/d/f")).unwrap() == vec![7; size as usize]);
    // Nothing is reserved in what has its name, nor where zeros are to become holes.
    part.reserve_blocks(0, size).unwrap_err();
    let punching =
        site.target_with_rules(WriteRules { punch_zeros: true, ..WriteRules::default() });
    fs::remove_file(site.path("dst/d/f")).unwrap();
    punching.open_part_file(&entry).unwrap().reserve_blocks(0, size).unwrap();
    assert_eq!(stored(), (size, 0));
}
