use super::super::testing::*;
use super::*;
use crate::wire::Digest;
use crate::wire::SyncNo;
use crate::wire::content::HashMode;
use crate::wire::options::{Preserve, WriteRules};
use crate::wire::sync::ErrorClass;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

fn site_with(content: &[u8]) -> (Site, Target, Entry) {
    let site = Site::new();
    site.write("src/d/f", content);
    let (target, entry) = (site.target(), site.source().entry(&rel("d/f")).unwrap());
    (site, target, entry)
}

fn temps(site: &Site) -> Vec<Vec<u8>> {
    names_in(&site.at("dst/d")).into_iter().filter(|n| super::super::is_ours(n)).collect()
}

#[test]
fn ranges_in_any_order_make_up_the_file() {
    let (site, target, entry) = site_with(b"0123456789");
    let part = target.part(&entry).unwrap();
    assert!(part.created);
    part.write_at(b"56789", 5).unwrap();
    part.finish().unwrap();
    // Another agent.
    let other = Target::new(
        site.tree("dst"),
        target.sync,
        super::super::TargetOptions::of_this_process(Default::default()),
    );
    let part = other.part(&entry).unwrap();
    assert!(!part.created);
    part.write_at(b"01234", 0).unwrap();
    let mut all = [0; 16];
    assert_eq!(part.read_at(&mut all, 0).unwrap(), 10);
    assert!(!site.at("dst/d/f").exists());
    for _ in 0..2 {
        target.publish_part(&entry, None).unwrap();
    }
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"0123456789");
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
    let there = site.tree("dst").entry(&rel("d/f")).unwrap();
    assert_eq!(there.meta, entry.meta);
}

#[test]
fn another_version_of_the_source_has_another_part_file() {
    let (site, target, entry) = site_with(b"old");
    target.part(&entry).unwrap().write_at(b"old", 0).unwrap();
    fs::remove_file(site.at("src/d/f")).unwrap();
    site.write("src/d/f", "newer");
    let newer = site.source().entry(&rel("d/f")).unwrap();
    let error = target.publish_part(&newer, None).unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Lost, ErrorClass::Transient));
    target.part(&newer).unwrap().write_at(b"newer", 0).unwrap();
    assert_eq!(temps(&site).len(), 2);
    target.publish_part(&newer, None).unwrap();
    for _ in 0..2 {
        target.discard_part(&entry).unwrap();
    }
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"newer");
}

#[test]
fn a_part_file_of_another_length_is_not_published() {
    let (site, target, entry) = site_with(b"content");
    target.part(&entry).unwrap();
    let name = target.part_name(&entry);
    fs::write(site.at("dst/d").join(os(&name)), "content and more").unwrap();
    let error = target.publish_part(&entry, None).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: 7, found: 16 });
    assert!(!site.at("dst/d/f").exists());
}

#[test]
fn a_part_file_made_again_without_its_earlier_ranges_is_not_published() {
    let (site, target, entry) = site_with(&[7; 2 << 20]);
    let value = |byte: u8, offset: u64| {
        use blake3::hazmat::HasherExt as _;
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        hasher.update(&vec![byte; 1 << 20]);
        Digest(hasher.finalize_non_root())
    };
    let write = |byte: u8, offset: u64| {
        target.part(&entry).unwrap().write_at(&vec![byte; 1 << 20], offset).unwrap();
    };
    let values = [value(7, 0), value(7, 1 << 20)];
    let ranges = Some(Ranges { length: 1 << 20, values: &values, hashing: HashMode::Full });
    write(7, 0);
    target.discard_part(&entry).unwrap();
    write(7, 1 << 20);
    assert_eq!(target.publish_part(&entry, ranges).unwrap_err().cause, Cause::Lost);
    assert!(!site.at("dst/d/f").exists());
    write(7, 0);
    target.publish_part(&entry, ranges).unwrap();
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), [7; 2 << 20]);

    // A range of zeros is a hole, and nothing is lost.
    fs::remove_file(site.at("dst/d/f")).unwrap();
    write(0, 0);
    write(7, 1 << 20);
    let values = [value(0, 0), value(7, 1 << 20)];
    target
        .publish_part(
            &entry,
            Some(Ranges { length: 1 << 20, values: &values, hashing: HashMode::Full }),
        )
        .unwrap();
}

#[test]
fn a_late_writer_neither_touches_what_is_published_nor_leaves_a_part_file() {
    let (site, target, entry) = site_with(b"content");
    let late = target.part(&entry).unwrap();
    late.write_at(b"content", 0).unwrap();
    target.publish_part(&entry, None).unwrap();
    let published = fs::metadata(site.at("dst/d/f")).unwrap().modified().unwrap();
    assert_eq!(late.write_at(b"content", 0).unwrap_err().cause, Cause::Overtaken);
    // Its next try finds the file published, and only compares.
    let next = target.part(&entry).unwrap();
    next.write_at(b"tent", 3).unwrap();
    next.keep(0, 7, Keep::Base).unwrap();
    assert_eq!(next.write_at(b"TENT", 3).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(next.hole_at(0, 7).unwrap_err().cause, Cause::Overtaken);
    let mut all = [0; 8];
    assert_eq!(next.read_at(&mut all, 0).unwrap(), 7);
    next.finish().unwrap();
    target.publish_part(&entry, None).unwrap();
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"content");
    assert_eq!(fs::metadata(site.at("dst/d/f")).unwrap().modified().unwrap(), published);
}

/// Equal content under a name that shares its file with another one, which this sync must not change: the
/// file is sent again, and the new one has all metadata.
#[test]
fn equal_content_whose_metadata_cannot_be_repaired_in_place_is_replaced_with_all_metadata() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 4] = [
        ("attribute", |path| set_xattr(path, "user.model", b"")),
        ("list", |path| set_xattr(path, "system.posix_acl_access", &acl(6, (7, 4), 4, 4, 0))),
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
        let (from, path) = (site.at("src/d/f"), site.write("dst/d/f", "content"));
        let time = fs::metadata(&from).unwrap();
        touch(&path, time.mtime(), time.mtime_nsec());
        fs::hard_link(&path, site.at("dst/other")).unwrap();
        change(&from);
        let entry = site.source().entry(&rel("d/f")).unwrap();
        for _ in 0..2 {
            let part = target.part(&entry).unwrap();
            part.write_at(b"content", 0).unwrap();
            target.publish_part(&entry, None).unwrap();
            let there = site.tree("dst").keeping(Preserve::all()).entry(&rel("d/f")).unwrap();
            assert_eq!((there.meta, there.xattrs), (entry.meta, entry.xattrs.clone()), "{what}");
        }
        assert_eq!(names_in(&site.at("dst/d")), [b"f"], "{what}");
        let other = site.tree("dst").keeping(Preserve::all()).entry(&rel("other")).unwrap();
        assert_eq!(other.xattrs, [], "{what}");
    }
}

/// Two files of the source that are one at the destination: the second one is not taken for published
/// because the first one is.
#[test]
fn two_files_of_the_source_that_are_one_at_the_destination_are_parted_by_their_part_files() {
    let (site, target, _) = site_with(b"content");
    site.write("src/d/g", "content");
    let (f, g) = (site.at("src/d/f"), site.at("src/d/g"));
    let path = site.write("dst/d/f", "content");
    for path in [&f, &g, &path] {
        touch(path, 1_000_000_000, 7);
    }
    fs::hard_link(&path, site.at("dst/d/g")).unwrap();
    for (path, name) in [(&f, "src/f"), (&g, "src/g")] {
        fs::hard_link(path, site.at(name)).unwrap();
    }
    for name in ["d/f", "d/g"] {
        let entry = site.source().entry(&rel(name)).unwrap();
        assert!(entry.is_hardlinked);
        target.part(&entry).unwrap().write_at(b"content", 0).unwrap();
        target.publish_part(&entry, None).unwrap();
    }
    let ino = |name| fs::metadata(site.at(name)).unwrap().ino();
    assert_ne!(ino("dst/d/f"), ino("dst/d/g"));
}

#[test]
fn a_part_file_is_discarded_without_a_trace_in_its_directory() {
    let (site, target, entry) = site_with(b"content");
    target.part(&entry).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 77);
    let dir = fs::File::open(site.at("dst/d")).unwrap();
    dir.set_modified(time).unwrap();
    target.discard_part(&entry).unwrap();
    assert!(names_in(&site.at("dst/d")).is_empty());
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
fn what_another_sync_left_is_used_up_and_two_syncs_do_not_hurt_each_other() {
    const HALF: u64 = 1 << 20;
    let (zero, one) = (vec![3; 1 << 20], vec![4; 1 << 20]);
    let (site, a, entry) = site_with(&[zero.clone(), one.clone()].concat());
    let options = || super::super::TargetOptions::of_this_process(WriteRules::default());
    let b = Target::new(site.tree("dst"), SyncNo(8), options());
    a.part(&entry).unwrap().write_at(&zero, 0).unwrap();
    let left = b.part(&entry).unwrap();
    assert!(!left.created);
    let mut there = [0; 5];
    left.read_at(&mut there, 0).unwrap();
    assert_eq!(there, zero[..5]);
    left.write_at(&one, HALF).unwrap();
    b.publish_part(&entry, None).unwrap();
    // The first one goes on, and ends like the second.
    a.part(&entry).unwrap().write_at(&one, HALF).unwrap();
    a.publish_part(&entry, None).unwrap();
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);

    // One gives up: the other one's ranges are lost, and it is told so.
    fs::remove_file(site.at("dst/d/f")).unwrap();
    let writing = b.part(&entry).unwrap();
    writing.write_at(&zero, 0).unwrap();
    a.discard_part(&entry).unwrap();
    assert_eq!(writing.write_at(&one, HALF).unwrap_err().cause, Cause::Overtaken);
    b.part(&entry).unwrap().write_at(&one, HALF).unwrap();
    let values = [value_of(&zero, 0), value_of(&one, HALF)];
    let ranges = Some(Ranges { length: HALF, values: &values, hashing: HashMode::Full });
    assert_eq!(b.publish_part(&entry, ranges).unwrap_err().cause, Cause::Lost);
    b.part(&entry).unwrap().write_at(&zero, 0).unwrap();
    b.publish_part(&entry, ranges).unwrap();
}

#[test]
fn where_time_does_not_tell_versions_content_does() {
    let (site, _, entry) = site_with(b"content");
    let rules = WriteRules { compare: Compare::Checksum, ..WriteRules::default() };
    let target = site.target_by(rules);
    let path = site.write("dst/d/f", "CONTENT");
    touch(&path, entry.meta.mtime_sec, entry.meta.mtime_nsec.into());
    let values = [value_of(b"content", 0)];
    let ranges = Some(Ranges { length: 16, values: &values, hashing: HashMode::Full });
    assert_eq!(target.publish_part(&entry, ranges).unwrap_err().cause, Cause::Lost);
    let part = target.part(&entry).unwrap();
    assert!(part.created);
    part.write_at(b"content", 0).unwrap();
    for _ in 0..2 {
        target.publish_part(&entry, ranges).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

#[test]
fn what_the_old_file_has_is_taken_from_it_with_its_holes() {
    let size = 16 << 20;
    let (site, target, _) = site_with(b"");
    fs::File::options().write(true).open(site.at("src/d/f")).unwrap().set_len(size).unwrap();
    touch(&site.at("src/d/f"), 1_000_000_000, 0);
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let old = site.write("dst/d/f", "");
    let old = fs::File::options().write(true).open(old).unwrap();
    old.set_len(size).unwrap();
    old.write_all_at(&[5; 70_000], 1 << 20).unwrap();
    old.write_all_at(&[6; 70_000], 8 << 20).unwrap();
    let part = target.part(&entry).unwrap();
    // Leftovers of an earlier try.
    part.write_at(&[9; 4096], 3 << 20).unwrap();
    part.keep(0, size / 2, Keep::Base).unwrap();
    part.write_at(b"new", size / 2).unwrap();
    part.keep(size / 2 + 3, size / 2 - 3, Keep::Base).unwrap();
    part.keep(size / 2, 3, Keep::Part).unwrap();
    part.hole_at(size - 100, 100).unwrap();
    let error = part.keep(size - 1, 2, Keep::Base).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: size + 1, found: size });
    assert_eq!(error.class(), ErrorClass::Transient);
    let mut want = fs::read(site.at("dst/d/f")).unwrap();
    target.publish_part(&entry, None).unwrap();
    want[8 << 20..][..3].copy_from_slice(b"new");
    assert!(fs::read(site.at("dst/d/f")).unwrap() == want);
    let blocks = fs::metadata(site.at("dst/d/f")).unwrap().blocks();
    assert!(blocks <= old.metadata().unwrap().blocks() + 16, "{blocks}");
}

#[test]
fn a_base_that_is_none_is_an_error_and_no_link_to_one_is_followed() {
    let (site, target, entry) = site_with(b"content");
    let part = target.part(&entry).unwrap();
    let keep = || part.keep(0, 5, Keep::Base).unwrap_err();
    assert_eq!(keep().cause, Cause::Os(Errno::NOENT));
    std::os::unix::fs::symlink(site.at("canary/file"), site.at("dst/d/f")).unwrap();
    assert_eq!(keep().cause, Cause::Os(Errno::LOOP));
    fs::remove_file(site.at("dst/d/f")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, site.at("dst/d/f"), FileType::Fifo, Mode::RUSR, 0)
        .unwrap();
    assert_eq!(keep().cause, Cause::Os(Errno::NOENT));
}

#[test]
fn a_hole_replaces_what_was_there() {
    let (site, target, entry) = site_with(&[7; 1 << 20]);
    let part = target.part(&entry).unwrap();
    part.write_at(&[7; 1 << 20], 0).unwrap();
    part.hole_at(4096, 1 << 19).unwrap();
    part.hole_at(10, 0).unwrap();
    let mut there = vec![1; 1 << 20];
    part.read_at(&mut there, 0).unwrap();
    assert!(there[4096..4096 + (1 << 19)].iter().all(|b| *b == 0));
    assert!(there[..4096].iter().chain(&there[4096 + (1 << 19)..]).all(|b| *b == 7));
    let file = fs::metadata(site.at("dst/d").join(os(&temps(&site)[0]))).unwrap();
    assert!(file.blocks() * 512 <= (1 << 19) + 8192);
}

#[test]
fn a_huge_file_of_holes_is_checked_without_reading_them() {
    let (site, target, _) = site_with(b"");
    let size = 256 << 20;
    let file = fs::File::options().write(true).open(site.at("src/d/f")).unwrap();
    file.set_len(size).unwrap();
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let part = target.part(&entry).unwrap();
    part.write_at(b"data", 100 << 20).unwrap();
    let length = 64 << 20;
    let mut content = vec![0; usize::try_from(size).unwrap()];
    content[100 << 20..][..4].copy_from_slice(b"data");
    let values: Vec<Digest> = content
        .chunks(64 << 20)
        .enumerate()
        .map(|(i, piece)| value_of(piece, i as u64 * length))
        .collect();
    let ranges = |values| Some(Ranges { length, values, hashing: HashMode::Full });
    let wrong = [&values[..3], &values[..1]].concat();
    assert_eq!(target.publish_part(&entry, ranges(&wrong)).unwrap_err().cause, Cause::Lost);
    target.publish_part(&entry, ranges(&values)).unwrap();
    assert!(fs::metadata(site.at("dst/d/f")).unwrap().blocks() <= 16);
}

#[test]
fn blocks_that_were_reserved_count_as_a_hole_until_they_are_written() {
    let size: u64 = 4 << 20;
    let (site, target, entry) = site_with(&vec![7; size as usize]);
    let part = target.part(&entry).unwrap();
    let stored = || {
        let path = site.at("dst/d").join(os(&temps(&site)[0]));
        (fs::metadata(&path).unwrap().len(), fs::metadata(path).unwrap().blocks() * 512)
    };
    assert_eq!(stored(), (size, 0));
    part.reserve(size / 2, size / 2).unwrap();
    if places_late(&part.fd) {
        assert_eq!(stored(), (size, size / 2), "its length is what it was");
    }
    part.write_at(&vec![7; size as usize / 2], 0).unwrap();
    let there = target.blocks(&entry, (0, size), 1 << 20, &mut vec![0; 1 << 20]).unwrap();
    let written: Vec<_> = there.iter().map(|block| block.part.is_some()).collect();
    assert_eq!(written, [true, true, false, false]);
    let half = size / 2;
    let values = [0, half].map(|at| value_of(&vec![7; half as usize], at));
    let ranges = Some(Ranges { length: half, values: &values, hashing: HashMode::Full });
    assert_eq!(target.publish_part(&entry, ranges).unwrap_err().cause, Cause::Lost);
    part.write_at(&vec![7; half as usize], half).unwrap();
    target.publish_part(&entry, ranges).unwrap();
    assert!(fs::read(site.at("dst/d/f")).unwrap() == vec![7; size as usize]);
    // Nothing is reserved in what has its name, nor where zeros are to become holes.
    part.reserve(0, size).unwrap_err();
    let punching = site.target_by(WriteRules { punch_zeros: true, ..WriteRules::default() });
    fs::remove_file(site.at("dst/d/f")).unwrap();
    punching.part(&entry).unwrap().reserve(0, size).unwrap();
    assert_eq!(stored(), (size, 0));
}
