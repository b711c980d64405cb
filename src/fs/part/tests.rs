use super::super::testing::*;
use super::*;
use crate::wire::Digest;
use crate::wire::sync::ErrorClass;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

fn site_with(content: &[u8]) -> (Site, Target, Entry) {
    let site = Site::new();
    site.write("src/d/f", content);
    let (target, entry) = (site.target(), site.source().entry(&rel("d/f")).unwrap());
    (site, target, entry)
}

fn temps(site: &Site) -> Vec<Vec<u8>> {
    names_in(&site.at("dst/d")).into_iter().filter(|n| names::is_ours(n)).collect()
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
    let name = names::part(target.sync, &entry.path, entry.generation());
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
    let ranges = Some(Ranges { length: 1 << 20, values: &values });
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
    target.publish_part(&entry, Some(Ranges { length: 1 << 20, values: &values })).unwrap();
}

#[test]
fn a_late_writer_neither_touches_what_is_published_nor_leaves_a_part_file() {
    let (site, target, entry) = site_with(b"content");
    let late = target.part(&entry).unwrap();
    late.write_at(b"content", 0).unwrap();
    target.publish_part(&entry, None).unwrap();
    let published = fs::metadata(site.at("dst/d/f")).unwrap().modified().unwrap();
    assert_eq!(late.write_at(b"content", 0).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(target.part(&entry).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
    assert_eq!(fs::metadata(site.at("dst/d/f")).unwrap().modified().unwrap(), published);
}

#[test]
fn a_part_file_is_discarded_without_a_trace_in_its_directory() {
    let (site, target, entry) = site_with(b"content");
    target.part(&entry).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 77);
    let dir = fs::File::open(site.at("dst/d")).unwrap();
    dir.set_modified(time).unwrap();
    target.discard_part(&entry).unwrap();
    assert!(names_in(&site.at("dst/d")).is_empty());
    assert_eq!(dir.metadata().unwrap().modified().unwrap(), time);
}
