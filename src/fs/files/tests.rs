use super::super::names;
use super::super::testing::*;
use super::*;
use crate::wire::SyncNo;
use crate::wire::options::{Attribute, Preserve, WriteRules};
use crate::wire::sync::ErrorClass;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

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
    let mut late = target.create(&entry, 2).unwrap();
    late.write(b"CONTENT").unwrap();
    let mut next = target.create(&entry, 3).unwrap();
    next.write(b"content").unwrap();
    let error = late.publish(&entry).unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Overtaken, ErrorClass::Transient));
    assert_eq!(temps(&site).len(), 1, "the other's file is left alone");
    next.publish(&entry).unwrap();
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"content");
}

/// Waits until what is published from now on has a later time than `file` was born.
fn let_the_clock_tick(site: &Site, file: &NewFile) {
    while !file.is_older_than(&rustix::fs::stat(site.write("tick", "")).unwrap()) {
        std::thread::yield_now();
    }
}

#[test]
fn a_writer_without_a_name_does_not_replace_what_a_later_one_published() {
    let (site, target, entry) = site_with(b"content");
    let mut late = target.create(&entry, 1).unwrap();
    late.write(b"CONTENT").unwrap();
    let_the_clock_tick(&site, &late);
    let mut next = target.create(&entry, 2).unwrap();
    next.write(b"content").unwrap();
    next.publish(&entry).unwrap();
    assert_eq!(late.publish(&entry).unwrap_err().cause, Cause::Overtaken);
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"content");
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
}

#[test]
fn two_writers_of_one_attempt_do_not_mix() {
    let (site, target, entry) = site_with(b"one");
    for attempt in [1, 2] {
        let _ = fs::remove_file(site.at("dst/d/f"));
        let mut a = target.create(&entry, attempt).unwrap();
        let_the_clock_tick(&site, &a);
        let mut b = target.create(&entry, attempt).unwrap();
        a.write(b"one").unwrap();
        b.write(b"two").unwrap();
        b.publish(&entry).unwrap();
        assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"two");
        assert_eq!(a.publish(&entry).unwrap_err().cause, Cause::Overtaken);
        assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
    }
}

#[test]
fn a_file_without_a_name_leaves_nothing_behind_and_replaces_what_was_there_before() {
    let (site, target, entry) = site_with(b"content");
    std::mem::forget(target.create(&entry, 1).unwrap());
    assert_eq!(names_in(&site.at("dst/d")), [] as [&[u8]; 0]);
    for content in ["old", "older"] {
        site.write("dst/d/f", content);
        // A target of its own: it does not know yet that there is something to replace.
        let mut file = site.target().create(&entry, 1).unwrap();
        let before = names_in(&site.at("dst/d"));
        file.write(b"content").unwrap();
        file.publish(&entry).unwrap();
        assert_eq!(
            (before, names_in(&site.at("dst/d"))),
            (vec![b"f".to_vec()], vec![b"f".to_vec()])
        );
        assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), b"content");
    }
}

#[test]
fn content_that_cannot_be_linked_gets_a_temporary_name() {
    let content = [7; 60 << 10];
    let (site, target, entry) = site_with(&content);
    let mut file = target.create(&entry, 1).unwrap();
    file.write(&content).unwrap();
    let named = file.begin_again().unwrap();
    drop(file);
    assert_eq!(temps(&site).len(), 1);
    named.publish(&entry).unwrap();
    assert_eq!(fs::read(site.at("dst/d/f")).unwrap(), content);
    assert_eq!(names_in(&site.at("dst/d")), [b"f"]);
}

#[test]
fn files_get_their_metadata_whatever_their_directory_hands_down() {
    let (site, _, _) = site_with(b"");
    for name in ["plain", "listed", "group"] {
        for (file, mode, (uid, gid)) in [
            ("a", 0o640, (0, 0)),
            ("b", 0o666, (0, 0)),
            ("c", 0o4755, (7, 8)),
            ("d", 0o444, (7, 0)),
            ("e", 0o600, (0, 8)),
        ] {
            let path = site.write(format!("src/{name}/{file}"), file);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if file == "d" {
                set_xattr(&path, "user.own", b"1");
            }
        }
        fs::create_dir_all(site.at("dst").join(name)).unwrap();
    }
    set_xattr(&site.at("dst/listed"), "system.posix_acl_default", &acl(7, (9, 7), 0, 7, 0));
    std::os::unix::fs::chown(site.at("dst/group"), None, Some(55)).unwrap();
    fs::set_permissions(site.at("dst/group"), fs::Permissions::from_mode(0o2775)).unwrap();
    for replaced in [false, true] {
        let (source, target) = (site.source(), site.target());
        for name in ["plain", "listed", "group"] {
            for file in ["a", "b", "c", "d", "e"] {
                let path = rel(format!("{name}/{file}"));
                let entry = source.entry(&path).unwrap();
                send(&source, &target, &entry).unwrap();
                let there = site.target().tree().clone().keeping(Preserve::all());
                let there = there.entry(&path).unwrap();
                assert_eq!(
                    (there.meta, there.xattrs),
                    (entry.meta, entry.xattrs),
                    "{path} {replaced}"
                );
            }
        }
    }
}

#[test]
fn what_killed_attempts_left_is_removed_without_a_trace() {
    let (site, target, entry) = site_with(b"content");
    let replaced = site.write("dst/d/f", "old");
    for attempt in [3, 1, 1] {
        let mut file = target.create(&entry, attempt).unwrap();
        file.write(b"cont").unwrap();
        // As if somebody had been killed over it; one without a name is gone by itself.
        if file.temp.is_none() {
            file.take_temporary_name(b"f").unwrap();
        }
        std::mem::forget(file);
    }
    let others =
        names::temp(&target.rules.part_name_key, SyncNo(target.sync.0 + 1), &entry.path, 1, 0);
    site.write(std::path::Path::new("dst/d").join(os(&others)), "of another sync");
    assert_eq!(temps(&site).len(), 4);
    let before = fs::metadata(site.at("dst/d")).unwrap().modified().unwrap();
    for _ in 0..2 {
        target.discard_temps(&entry).unwrap();
        assert_eq!(temps(&site), std::slice::from_ref(&others));
    }
    assert_eq!(fs::metadata(site.at("dst/d")).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read(replaced).unwrap(), b"old");
    fs::remove_dir_all(site.at("dst/d")).unwrap();
    target.discard_temps(&entry).unwrap();
}

#[test]
fn links_planted_under_our_own_names_lead_nowhere() {
    let (site, target, entry) = site_with(b"content");
    fs::create_dir_all(site.at("dst/d")).unwrap();
    let plant = |name: Vec<u8>| symlink(site.at("canary/file"), site.at("dst/d").join(os(&name)));
    plant(target.temp_name(&entry.path, 1, 0)).unwrap();
    send(&site.source(), &target, &entry).unwrap();
    assert!(fs::symlink_metadata(site.at("dst/d/f")).unwrap().is_file());
    fs::remove_file(site.at("dst/d/f")).unwrap();
    let part = target.part_name(&entry);
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
    assert_eq!(
        source.next_data(0, start).unwrap(),
        None,
        "what lies behind the end is not asked for"
    );
    assert_eq!(source.next_data(0, start + 1).unwrap(), Some((start, start + 1)));
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

#[test]
fn runs_of_zeros_are_found_wherever_they_are_long_enough() {
    let mut content = vec![1; HOLE];
    content.extend(vec![0; 2 * HOLE]);
    content.extend(vec![1; 10]);
    let runs: Vec<_> = zero_runs(&content, true).collect();
    let end = 3 * HOLE + 10;
    assert_eq!(runs, [(0..HOLE, false), (HOLE..3 * HOLE, true), (3 * HOLE..end, false)]);
    assert_eq!(zero_runs(&content, false).collect::<Vec<_>>(), [(0..end, false)]);
    assert_eq!(zero_runs(&[0; 100], true).collect::<Vec<_>>(), [(0..100, false)]);
    assert_eq!(zero_runs(&[], true).count(), 0);
}
