use super::super::testing::*;
use super::*;
use crate::wire::options::{Attribute, Preserve, WriteRules};
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
fn a_file_has_its_old_content_until_the_new_is_complete() {
    let (site, target, entry) = site_with(b"new content");
    let path = site.write("dst/d/f", "old");
    let mut file = target.create(&entry, 1).unwrap();
    file.write(b"new ").unwrap();
    file.write(b"content").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(temps(&site).len(), 1);
    file.publish(&entry).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new content");
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
}

#[test]
fn what_is_not_published_is_removed() {
    let (site, target, entry) = site_with(b"content");
    let mut file = target.create(&entry, 1).unwrap();
    file.write(b"cont").unwrap();
    let error = file.publish(&entry).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: 7, found: 4 });
    assert_eq!(error.class(), ErrorClass::Transient);
    drop(target.create(&entry, 1).unwrap());
    assert_eq!(names_in(&site.at("dst/d")), [] as [&[u8]; 0]);
}

#[test]
fn leftovers_of_a_crash_do_not_disturb_and_are_removed() {
    let (site, target, entry) = site_with(b"content");
    for attempt in [1, 1, 2] {
        // A process that was killed never drops it.
        std::mem::forget(target.create(&entry, attempt).unwrap());
    }
    assert_eq!(temps(&site).len(), 1, "attempt 2 removes what attempt 1 left");
    for attempt in [2, 3] {
        let mut file = target.create(&entry, attempt).unwrap();
        file.write(b"content").unwrap();
        file.publish(&entry).unwrap();
        assert_eq!(temps(&site), [] as [&[u8]; 0]);
    }
}

#[test]
fn a_writer_that_was_overtaken_cannot_publish() {
    let (site, target, entry) = site_with(b"content");
    let mut late = target.create(&entry, 1).unwrap();
    late.write(b"CONTENT").unwrap();
    let mut next = target.create(&entry, 2).unwrap();
    next.write(b"content").unwrap();
    let error = late.publish(&entry).unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Overtaken, ErrorClass::Transient));
    assert_eq!(temps(&site).len(), 1, "the other's file is left alone");
    next.publish(&entry).unwrap();
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"content");
}

#[test]
fn two_writers_of_one_attempt_do_not_mix() {
    let (site, target, entry) = site_with(b"one");
    let (mut a, mut b) = (target.create(&entry, 1).unwrap(), target.create(&entry, 1).unwrap());
    a.write(b"one").unwrap();
    b.write(b"two").unwrap();
    b.publish(&entry).unwrap();
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"two");
    assert_eq!(a.publish(&entry).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
}

#[test]
fn links_planted_under_our_own_names_lead_nowhere() {
    let (site, target, entry) = site_with(b"content");
    fs::create_dir_all(site.at("dst/d")).unwrap();
    let plant = |name: Vec<u8>| symlink(site.at("canary/file"), site.at("dst/d").join(os(&name)));
    plant(names::temp(target.sync, &entry.path, 1, 0)).unwrap();
    send(&site.source(), &target, &entry).unwrap();
    assert!(fs::symlink_metadata(site.at("dst/d/f")).unwrap().is_file());
    fs::remove_file(site.at("dst/d/f")).unwrap();
    let part = names::part(&entry.path, entry.generation());
    plant(part.clone()).unwrap();
    target.part(&entry).unwrap().write_at(b"CONTENT", 0).unwrap();
    site.assert_canary();
    target.discard_part(&entry).unwrap();
    fs::hard_link(site.at("canary/file"), site.at("dst/d").join(os(&part))).unwrap();
    target.part(&entry).unwrap().write_at(b"CONTENT", 0).unwrap();
    site.assert_canary();
}

#[test]
fn a_link_in_place_of_the_file_is_replaced_not_followed() {
    let (site, target, entry) = site_with(b"content");
    fs::create_dir_all(site.at("dst/d")).unwrap();
    symlink(site.at("canary/file"), site.at("dst/d/f")).unwrap();
    send(&site.source(), &target, &entry).unwrap();
    assert!(fs::symlink_metadata(site.at("dst/d/f")).unwrap().is_file());
    site.assert_canary();
}

#[test]
fn zeros_become_holes_only_where_they_shall() {
    let size = 4 << 20;
    let mut content = vec![0; size];
    content[size / 2] = 1;
    let (site, plain, entry) = site_with(&content);
    let punching = site.target_by(WriteRules { punch_zeros: true, ..WriteRules::default() });
    let path = site.at("dst/d/f");
    for (target, sparse) in [(&plain, false), (&punching, true)] {
        let mut file = target.create(&entry, 1).unwrap();
        content.chunks(1 << 20).for_each(|piece| file.write(piece).unwrap());
        file.publish(&entry).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(on_disk <= 1 << 20, sparse, "{on_disk} bytes on disk");
    }
    fs::remove_file(&path).unwrap();
    let part = punching.part(&entry).unwrap();
    part.write_at(&vec![7; size], 0).unwrap();
    part.write_at(&content, 0).unwrap();
    let zeros = vec![0; 1 << 20];
    part.write_at(&zeros, 0).unwrap();
    punching.publish_part(&entry, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn holes_of_the_source_are_holes_at_the_destination() {
    let size = 64 << 20;
    let (site, target, _) = site_with(b"");
    let file = fs::File::options().write(true).open(site.at("src/d/f")).unwrap();
    file.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 32 << 20).unwrap();
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let source = site.source().open_source(&entry).unwrap();
    let (start, end) = source.next_data(0, size).unwrap().unwrap();
    assert!(start <= 32 << 20 && end >= (32 << 20) + 8192 && end - start < 1 << 20);
    let mut new = target.create(&entry, 1).unwrap();
    let mut data = vec![0; usize::try_from(end - start).unwrap()];
    source.read_at(&mut data, start).unwrap();
    new.skip(start);
    new.write(&data).unwrap();
    new.skip(size - end);
    new.publish(&entry).unwrap();
    let there = fs::metadata(site.at("dst/d/f")).unwrap();
    assert_eq!((there.len(), there.blocks()), (size, file.metadata().unwrap().blocks()));
    assert!(fs::read(site.at("dst/d/f")).unwrap() == fs::read(site.at("src/d/f")).unwrap());
    assert_eq!(source.next_data(end, size).unwrap(), None);
    let plain = site.source().keeping(Preserve::all().without(Attribute::Sparse));
    let plain = plain.open_source(&entry).unwrap();
    assert_eq!(plain.next_data(5, size).unwrap(), Some((5, size)));
}

#[test]
fn directories_removed_meanwhile_are_made_again() {
    let (site, target, entry) = site_with(b"content");
    for _ in 0..2 {
        send(&site.source(), &target, &entry).unwrap();
        fs::remove_dir_all(site.at("dst")).unwrap();
    }
    target.part(&entry).unwrap();
    fs::remove_dir_all(site.at("dst")).unwrap();
    assert!(target.part(&entry).unwrap().created);
    fs::remove_dir_all(site.at("dst")).unwrap();
    target.discard_part(&entry).unwrap();
}
