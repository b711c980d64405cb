use super::super::testing::*;
use super::*;
use crate::wire::manifest::FileVersion;
use crate::wire::outcome::ErrorClass;
use crate::wire::preserve::Preserve;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};

#[test]
fn a_file_is_read_at_any_offset_up_to_its_end() {
    let site = TestSite::new();
    site.write_file("src/f", "0123456789");
    let tree = site.source();
    let file = tree.open_source(&tree.entry(&rel("f")).unwrap()).unwrap();
    let mut buffer = [0; 4];
    assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 4);
    assert_eq!(&buffer, b"3456");
    assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 2);
    assert_eq!(file.read_at(&mut buffer, 10).unwrap(), 0);
}

#[test]
fn attributes_that_changed_since_the_scan_are_read_again() {
    let site = TestSite::new();
    let path = site.write_file("src/f", "content");
    set_xattr(&path, "user.kept", b"old");
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let opened = |entry| tree.open_source(entry).unwrap().entry().clone();
    assert_eq!(opened(&entry), entry);
    // Where nothing else shows it, the kernel's clock must have ticked.
    while tree.entry(&rel("f")).unwrap().version == entry.version {
        set_xattr(&path, "user.kept", b"new");
    }
    let now = opened(&entry);
    assert_eq!(now.xattrs[0].value, b"new");
    assert_eq!((now.meta, now.size()), (entry.meta, entry.size()));
    let other = tree.clone().preserving(Preserve::NONE).open_source(&now).unwrap();
    assert_eq!(other.entry().xattrs, []);
}

#[test]
fn a_change_during_the_read_is_detected_even_with_the_old_size_and_mtime() {
    let site = TestSite::new();
    let path = site.write_file("src/f", "old");
    set_file_mtime(&path, 1000, 5);
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let file = tree.open_source(&entry).unwrap();
    file.verify_unchanged().unwrap();
    // The kernel's clock for ctime ticks every few milliseconds.
    loop {
        fs::write(&path, "new").unwrap();
        set_file_mtime(&path, 1000, 5);
        if tree.entry(&rel("f")).unwrap().version != entry.version {
            break;
        }
    }
    let error = file.verify_unchanged().unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Changed, ErrorClass::Changed));
    assert!(file.is_version(&entry));
    assert!(!tree.open_source(&entry).unwrap().is_version(&entry));
}

#[test]
fn a_file_that_grows_or_is_replaced_is_detected() {
    let site = TestSite::new();
    let path = site.write_file("src/f", "x");
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let file = tree.open_source(&entry).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    assert_eq!(file.verify_unchanged().unwrap_err().cause, Cause::Changed);
    fs::rename(site.write_file("src/g", "x"), &path).unwrap();
    assert!(!tree.open_source(&entry).unwrap().is_version(&entry));
}

#[test]
fn an_object_that_is_no_longer_a_regular_file_is_neither_followed_nor_waited_for() {
    let site = TestSite::new();
    let path = site.write_file("src/f", "x");
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let cause = || tree.open_source(&entry).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert_eq!(cause().class(), ErrorClass::Vanished);
    symlink("../canary/file", &path).unwrap();
    assert_eq!((cause().cause, cause().class()), (Cause::NotRegularFile, ErrorClass::Changed));
    fs::remove_file(&path).unwrap();
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
    assert_eq!(cause().cause, Cause::NotRegularFile);
    fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(cause().cause, Cause::NotRegularFile);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(cause().cause, Cause::NotRegularFile);
}

#[test]
fn a_directory_replaced_since_it_was_used_is_looked_up_again() {
    let site = TestSite::new();
    site.write_file("src/d/f", "old");
    let tree = site.source();
    let entry = tree.entry(&rel("d/f")).unwrap();
    fs::remove_dir_all(site.path("src/d")).unwrap();
    site.write_file("src/d/f", "new");
    assert_eq!(read_content(&tree.open_source(&entry).unwrap()), b"new");
}

#[test]
fn a_file_reached_through_a_link_is_read_at_its_real_path() {
    let site = TestSite::new();
    let path = site.write_file("other/place/f", "content");
    set_xattr(&path, "user.x", b"x");
    let mut entry = site.tree("other").preserving(Preserve::all()).entry(&rel("place/f")).unwrap();
    (entry.path, entry.content_path) = (rel("link/f"), Some(rel("other/place/f")));
    let file = site.source().open_source(&entry).unwrap();
    assert!(file.is_version(&entry));
    assert_eq!((read_content(&file), file.entry()), (b"content".to_vec(), &entry));
    // Nothing is followed on the way to it.
    symlink("other", site.path("way")).unwrap();
    entry.content_path = Some(rel("way/place/f"));
    assert!(site.source().open_source(&entry).is_err());
}

#[test]
fn a_different_device_number_on_another_host_is_accepted() {
    let site = TestSite::new();
    site.write_file("src/d/f", "content");
    let source = site.source();
    assert!(full_manifest(&source).entries.iter().all(|entry| entry.version.dev == 0));
    let entry = source.entry(&rel("d/f")).unwrap();
    let there = Entry { version: FileVersion { dev: 77, ..entry.version }, ..entry.clone() };
    assert!(source.open_source(&there).unwrap().is_version(&there));
    // Two file systems of one source may hold the same file twice, as two files.
    assert_ne!(entry.hardlink_key(), there.hardlink_key());
    assert_eq!(source.storage_tree().entry(&rel("src/d/f")).unwrap().version, entry.version);
    assert_eq!(site.tree("src/d/f").entry(&rel("")).unwrap().version, entry.version);
}

#[test]
fn stored_bytes_of_a_sparse_file_are_measured_by_its_data_runs() {
    let site = TestSite::new();
    let file = fs::File::create(site.path("src/f")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[7; 1 << 16], 1 << 30).unwrap();
    let tree = site.tree("src").preserving(Preserve::all());
    let look = || tree.entry(&rel("f")).unwrap();
    assert!(look().stored_bytes.is_some());
    // Compressed, it would be less.
    let mut entry = Entry { stored_bytes: Some(1), ..look() };
    tree.measure_stored_bytes(&mut entry, 1 << 40);
    assert_eq!(entry.stored_bytes, Some(1), "it is not long enough to matter");
    tree.measure_stored_bytes(&mut entry, 1 << 20);
    let stored = entry.stored_bytes.unwrap();
    assert!((1 << 16..1 << 20).contains(&stored), "{stored}");
    assert_eq!(
        site.tree("src")
            .preserving(Preserve::parse_names(["mode"]).unwrap())
            .entry(&rel("f"))
            .unwrap()
            .stored_bytes,
        None
    );
    let mut gone = look();
    fs::remove_file(site.path("src/f")).unwrap();
    tree.measure_stored_bytes(&mut gone, 1 << 20);
    assert_eq!(gone.stored_bytes, None);
}
