use super::super::temp_names;
use super::super::testing::*;
use super::*;
use crate::wire::SyncNo;
use crate::wire::options::WriteRules;
use crate::wire::outcome::ErrorClass;
use crate::wire::preserve::{Attribute, Preserve};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

fn site_with(content: &[u8]) -> (TestSite, Target, Entry) {
    let site = TestSite::new();
    site.write_file("src/d/f", content);
    let (target, entry) = (site.target(), site.source().entry(&rel("d/f")).unwrap());
    (site, target, entry)
}

fn temp_file_names(site: &TestSite) -> Vec<Vec<u8>> {
    sorted_names(&site.path("dst/d"))
        .into_iter()
        .filter(|n| temp_names::is_internal_name(n))
        .collect()
}

#[test]
fn a_file_has_its_old_content_until_the_new_is_complete() {
    let (site, target, entry) = site_with(b"new content");
    let path = site.write_file("dst/d/f", "old");
    let mut file = target.create(&entry, 1).unwrap();
    file.write(b"new ").unwrap();
    file.write(b"content").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    file.publish(&entry).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new content");
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
}

#[test]
fn an_unpublished_file_is_removed() {
    let (site, target, entry) = site_with(b"content");
    let mut file = target.create(&entry, 1).unwrap();
    file.write(b"cont").unwrap();
    let error = file.publish(&entry).unwrap_err();
    assert_eq!(error.cause, Cause::WrongSize { expected: 7, found: 4 });
    assert_eq!(error.class(), ErrorClass::Transient);
    drop(target.create(&entry, 1).unwrap());
    assert_eq!(sorted_names(&site.path("dst/d")), [] as [&[u8]; 0]);
}

#[test]
fn temp_files_left_by_a_crash_are_removed_and_do_not_block() {
    let (site, target, entry) = site_with(b"content");
    for attempt in [1, 1, 2] {
        // A process that was killed never drops it.
        std::mem::forget(target.create(&entry, attempt).unwrap());
    }
    assert_eq!(temp_file_names(&site).len(), 1, "attempt 2 removes what attempt 1 left");
    for attempt in [2, 3] {
        let mut file = target.create(&entry, attempt).unwrap();
        file.write(b"content").unwrap();
        file.publish(&entry).unwrap();
        assert_eq!(temp_file_names(&site), [] as [&[u8]; 0]);
    }
}

#[test]
fn a_superseded_writer_cannot_publish() {
    let (site, target, entry) = site_with(b"content");
    let mut late = target.create(&entry, 2).unwrap();
    late.write(b"CONTENT").unwrap();
    let mut next = target.create(&entry, 3).unwrap();
    next.write(b"content").unwrap();
    let error = late.publish(&entry).unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Superseded, ErrorClass::Transient));
    assert_eq!(temp_file_names(&site).len(), 1, "the other's file is left alone");
    next.publish(&entry).unwrap();
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"content");
}

/// Waits until newly published files have a later ctime than the creation of `file`.
fn wait_for_ctime_tick(site: &TestSite, file: &NewFile) {
    while !file.is_older_than(&rustix::fs::stat(site.write_file("tick", "")).unwrap()) {
        std::thread::yield_now();
    }
}

#[test]
fn an_unnamed_file_does_not_replace_what_a_later_writer_published() {
    let (site, target, entry) = site_with(b"content");
    let mut late = target.create(&entry, 1).unwrap();
    late.write(b"CONTENT").unwrap();
    wait_for_ctime_tick(&site, &late);
    let mut next = target.create(&entry, 2).unwrap();
    next.write(b"content").unwrap();
    next.publish(&entry).unwrap();
    assert_eq!(late.publish(&entry).unwrap_err().cause, Cause::Superseded);
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"content");
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
}

#[test]
fn two_writers_of_one_attempt_do_not_mix() {
    let (site, target, entry) = site_with(b"one");
    for attempt in [1, 2] {
        let _ = fs::remove_file(site.path("dst/d/f"));
        let mut a = target.create(&entry, attempt).unwrap();
        wait_for_ctime_tick(&site, &a);
        let mut b = target.create(&entry, attempt).unwrap();
        a.write(b"one").unwrap();
        b.write(b"two").unwrap();
        b.publish(&entry).unwrap();
        assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"two");
        assert_eq!(a.publish(&entry).unwrap_err().cause, Cause::Superseded);
        assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
    }
}

#[test]
fn an_unnamed_file_leaves_nothing_behind_and_replaces_an_existing_file() {
    let (site, target, entry) = site_with(b"content");
    std::mem::forget(target.create(&entry, 1).unwrap());
    assert_eq!(sorted_names(&site.path("dst/d")), [] as [&[u8]; 0]);
    for content in ["old", "older"] {
        site.write_file("dst/d/f", content);
        // A target of its own: it does not know yet that there is something to replace.
        let mut file = site.target().create(&entry, 1).unwrap();
        let before = sorted_names(&site.path("dst/d"));
        file.write(b"content").unwrap();
        file.publish(&entry).unwrap();
        assert_eq!(
            (before, sorted_names(&site.path("dst/d"))),
            (vec![b"f".to_vec()], vec![b"f".to_vec()])
        );
        assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), b"content");
    }
}

#[test]
fn an_unnamed_file_that_cannot_be_linked_is_copied_to_a_temporary_name() {
    let content = [7; 60 << 10];
    let (site, target, entry) = site_with(&content);
    let mut file = target.create(&entry, 1).unwrap();
    file.write(&content).unwrap();
    let named = file.copy_to_named_file().unwrap();
    drop(file);
    assert_eq!(temp_file_names(&site).len(), 1);
    named.publish(&entry).unwrap();
    assert_eq!(fs::read(site.path("dst/d/f")).unwrap(), content);
    assert_eq!(sorted_names(&site.path("dst/d")), [b"f"]);
}

#[test]
fn files_get_their_metadata_whatever_they_inherit_from_their_directory() {
    let (site, _, _) = site_with(b"");
    for name in ["plain", "listed", "group"] {
        for (file, mode, (uid, gid)) in [
            ("a", 0o640, (0, 0)),
            ("b", 0o666, (0, 0)),
            ("c", 0o4755, (7, 8)),
            ("d", 0o444, (7, 0)),
            ("e", 0o600, (0, 8)),
        ] {
            let path = site.write_file(format!("src/{name}/{file}"), file);
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if file == "d" {
                set_xattr(&path, "user.own", b"1");
            }
        }
        fs::create_dir_all(site.path("dst").join(name)).unwrap();
    }
    set_xattr(&site.path("dst/listed"), "system.posix_acl_default", &acl_bytes(7, (9, 7), 0, 7, 0));
    std::os::unix::fs::chown(site.path("dst/group"), None, Some(55)).unwrap();
    fs::set_permissions(site.path("dst/group"), fs::Permissions::from_mode(0o2775)).unwrap();
    for replaced in [false, true] {
        let (source, target) = (site.source(), site.target());
        for name in ["plain", "listed", "group"] {
            for file in ["a", "b", "c", "d", "e"] {
                let path = rel(format!("{name}/{file}"));
                let entry = source.entry(&path).unwrap();
                send_file(&source, &target, &entry).unwrap();
                let there = site.target().tree.clone().preserving(Preserve::all());
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
fn temp_files_of_killed_attempts_are_removed_and_the_directory_keeps_its_metadata() {
    let (site, target, entry) = site_with(b"content");
    let replaced = site.write_file("dst/d/f", "old");
    for attempt in [3, 1, 1] {
        let mut file = target.create(&entry, attempt).unwrap();
        file.write(b"cont").unwrap();
        // As left by a killed process; an unnamed file disappears by itself.
        if file.temp_name.is_none() {
            file.link_to_temp_name(b"f").unwrap();
        }
        std::mem::forget(file);
    }
    let others = temp_names::temp_file_name(
        &target.rules.part_name_key,
        SyncNo(target.sync_no.0 + 1),
        &entry.path,
        1,
        0,
    );
    site.write_file(std::path::Path::new("dst/d").join(os_str(&others)), "of another sync");
    assert_eq!(temp_file_names(&site).len(), 4);
    let before = fs::metadata(site.path("dst/d")).unwrap().modified().unwrap();
    for _ in 0..2 {
        target.remove_temp_files(&entry).unwrap();
        assert_eq!(temp_file_names(&site), std::slice::from_ref(&others));
    }
    assert_eq!(fs::metadata(site.path("dst/d")).unwrap().modified().unwrap(), before);
    assert_eq!(fs::read(replaced).unwrap(), b"old");
    fs::remove_dir_all(site.path("dst/d")).unwrap();
    target.remove_temp_files(&entry).unwrap();
}

#[test]
fn symlinks_planted_under_temporary_names_are_not_followed() {
    let (site, target, entry) = site_with(b"content");
    fs::create_dir_all(site.path("dst/d")).unwrap();
    let plant =
        |name: Vec<u8>| symlink(site.path("canary/file"), site.path("dst/d").join(os_str(&name)));
    plant(target.temp_file_name(&entry.path, 1, 0)).unwrap();
    send_file(&site.source(), &target, &entry).unwrap();
    assert!(fs::symlink_metadata(site.path("dst/d/f")).unwrap().is_file());
    fs::remove_file(site.path("dst/d/f")).unwrap();
    let part = target.part_file_name(&entry);
    plant(part.clone()).unwrap();
    target.open_part_file(&entry).unwrap().write_at(b"CONTENT", 0).unwrap();
    site.assert_canary_unchanged();
    target.remove_part_file(&entry).unwrap();
    fs::hard_link(site.path("canary/file"), site.path("dst/d").join(os_str(&part))).unwrap();
    target.open_part_file(&entry).unwrap().write_at(b"CONTENT", 0).unwrap();
    site.assert_canary_unchanged();
}

#[test]
fn a_link_in_place_of_the_file_is_replaced_not_followed() {
    let (site, target, entry) = site_with(b"content");
    fs::create_dir_all(site.path("dst/d")).unwrap();
    symlink(site.path("canary/file"), site.path("dst/d/f")).unwrap();
    send_file(&site.source(), &target, &entry).unwrap();
    assert!(fs::symlink_metadata(site.path("dst/d/f")).unwrap().is_file());
    site.assert_canary_unchanged();
}

#[test]
fn zeros_become_holes_only_when_enabled() {
    let size = 4 << 20;
    let mut content = vec![0; size];
    content[size / 2] = 1;
    let (site, plain, entry) = site_with(&content);
    let punching =
        site.target_with_rules(WriteRules { punch_zeros: true, ..WriteRules::default() });
    let path = site.path("dst/d/f");
    for (target, sparse) in [(&plain, false), (&punching, true)] {
        let mut file = target.create(&entry, 1).unwrap();
        content.chunks(1 << 20).for_each(|piece| file.write(piece).unwrap());
        file.publish(&entry).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
        let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(on_disk <= 1 << 20, sparse, "{on_disk} bytes on disk");
    }
    fs::remove_file(&path).unwrap();
    let part = punching.open_part_file(&entry).unwrap();
    part.write_at(&vec![7; size], 0).unwrap();
    part.write_at(&content, 0).unwrap();
    let zeros = vec![0; 1 << 20];
    part.write_at(&zeros, 0).unwrap();
    punching.publish_part_file(&entry, None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn holes_of_the_source_stay_holes_at_the_destination() {
    let size = 64 << 20;
    let (site, target, _) = site_with(b"");
    let file = fs::File::options().write(true).open(site.path("src/d/f")).unwrap();
    file.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 32 << 20).unwrap();
    let entry = site.source().entry(&rel("d/f")).unwrap();
    let source = site.source().open_source(&entry).unwrap();
    let (start, end) = source.next_data_run(0, size).unwrap().unwrap();
    assert!(start <= 32 << 20 && end >= (32 << 20) + 8192 && end - start < 1 << 20);
    let mut new = target.create(&entry, 1).unwrap();
    let mut data = vec![0; usize::try_from(end - start).unwrap()];
    source.read_at(&mut data, start).unwrap();
    new.append_hole(start);
    new.write(&data).unwrap();
    new.append_hole(size - end);
    new.publish(&entry).unwrap();
    let there = fs::metadata(site.path("dst/d/f")).unwrap();
    assert_eq!((there.len(), there.blocks()), (size, file.metadata().unwrap().blocks()));
    assert!(fs::read(site.path("dst/d/f")).unwrap() == fs::read(site.path("src/d/f")).unwrap());
    assert_eq!(source.next_data_run(end, size).unwrap(), None);
    assert_eq!(
        source.next_data_run(0, start).unwrap(),
        None,
        "what lies behind the end is not asked for"
    );
    assert_eq!(source.next_data_run(0, start + 1).unwrap(), Some((start, start + 1)));
    let plain = site.source().preserving(Preserve::all().without(Attribute::Sparse));
    let plain = plain.open_source(&entry).unwrap();
    assert_eq!(plain.next_data_run(5, size).unwrap(), Some((5, size)));
}

#[test]
fn directories_removed_during_a_copy_are_created_again() {
    let (site, target, entry) = site_with(b"content");
    for _ in 0..2 {
        send_file(&site.source(), &target, &entry).unwrap();
        fs::remove_dir_all(site.path("dst")).unwrap();
    }
    target.open_part_file(&entry).unwrap();
    fs::remove_dir_all(site.path("dst")).unwrap();
    assert!(target.open_part_file(&entry).unwrap().created);
    fs::remove_dir_all(site.path("dst")).unwrap();
    target.remove_part_file(&entry).unwrap();
}
