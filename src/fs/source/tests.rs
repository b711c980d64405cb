use super::super::testing::*;
use super::*;
use crate::wire::manifest::FileVersion;
use crate::wire::options::Preserve;
use crate::wire::sync::ErrorClass;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};

#[test]
fn a_file_is_read_at_any_offset_up_to_its_end() {
    let site = Site::new();
    site.write("src/f", "0123456789");
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
    let site = Site::new();
    let path = site.write("src/f", "content");
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
    let other = tree.clone().keeping(Preserve::NONE).open_source(&now).unwrap();
    assert_eq!(other.entry().xattrs, []);
}

#[test]
fn a_change_while_it_is_read_is_noticed_even_with_the_old_size_and_time() {
    let site = Site::new();
    let path = site.write("src/f", "old");
    touch(&path, 1000, 5);
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let file = tree.open_source(&entry).unwrap();
    file.unchanged_since_open().unwrap();
    // The kernel's clock for ctime ticks every few milliseconds.
    loop {
        fs::write(&path, "new").unwrap();
        touch(&path, 1000, 5);
        if tree.entry(&rel("f")).unwrap().version != entry.version {
            break;
        }
    }
    let error = file.unchanged_since_open().unwrap_err();
    assert_eq!((error.cause, error.class()), (Cause::Changed, ErrorClass::Changed));
    assert!(file.is_version(&entry));
    assert!(!tree.open_source(&entry).unwrap().is_version(&entry));
}

#[test]
fn a_file_that_grows_or_is_replaced_is_noticed() {
    let site = Site::new();
    let path = site.write("src/f", "x");
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let file = tree.open_source(&entry).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"y").unwrap();
    assert_eq!(file.unchanged_since_open().unwrap_err().cause, Cause::Changed);
    fs::rename(site.write("src/g", "x"), &path).unwrap();
    assert!(!tree.open_source(&entry).unwrap().is_version(&entry));
}

#[test]
fn what_is_no_regular_file_any_more_is_neither_followed_nor_waited_for() {
    let site = Site::new();
    let path = site.write("src/f", "x");
    let tree = site.source();
    let entry = tree.entry(&rel("f")).unwrap();
    let cause = || tree.open_source(&entry).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert_eq!(cause().class(), ErrorClass::Vanished);
    symlink("../canary/file", &path).unwrap();
    assert_eq!((cause().cause, cause().class()), (Cause::NotRegular, ErrorClass::Changed));
    fs::remove_file(&path).unwrap();
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
    assert_eq!(cause().cause, Cause::NotRegular);
    fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(cause().cause, Cause::NotRegular);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(cause().cause, Cause::NotRegular);
}

#[test]
fn a_directory_replaced_since_it_was_used_is_looked_up_again() {
    let site = Site::new();
    site.write("src/d/f", "old");
    let tree = site.source();
    let entry = tree.entry(&rel("d/f")).unwrap();
    fs::remove_dir_all(site.at("src/d")).unwrap();
    site.write("src/d/f", "new");
    assert_eq!(content_of(&tree.open_source(&entry).unwrap()), b"new");
}

#[test]
fn what_was_reached_through_a_link_is_read_where_it_is() {
    let site = Site::new();
    let path = site.write("other/place/f", "content");
    set_xattr(&path, "user.x", b"x");
    let mut entry = site.tree("other").keeping(Preserve::all()).entry(&rel("place/f")).unwrap();
    (entry.path, entry.content_path) = (rel("link/f"), Some(rel("other/place/f")));
    let file = site.source().open_source(&entry).unwrap();
    assert!(file.is_version(&entry));
    assert_eq!((content_of(&file), file.entry()), (b"content".to_vec(), &entry));
    // Nothing is followed on the way to it.
    symlink("other", site.at("way")).unwrap();
    entry.content_path = Some(rel("way/place/f"));
    assert!(site.source().open_source(&entry).is_err());
}

#[test]
fn another_host_may_know_the_file_system_by_another_number() {
    let site = Site::new();
    site.write("src/d/f", "content");
    let source = site.source();
    assert!(manifest(&source).entries.iter().all(|entry| entry.version.dev == 0));
    let entry = source.entry(&rel("d/f")).unwrap();
    let there = Entry { version: FileVersion { dev: 77, ..entry.version }, ..entry.clone() };
    assert!(source.open_source(&there).unwrap().is_version(&there));
    // Two file systems of one source may hold the same file twice, as two files.
    assert_ne!(entry.hardlink_key(), there.hardlink_key());
    assert_eq!(source.storage().entry(&rel("src/d/f")).unwrap().version, entry.version);
    assert_eq!(site.tree("src/d/f").entry(&rel("")).unwrap().version, entry.version);
}

#[test]
fn the_data_of_a_file_with_holes_is_measured_by_its_map() {
    let site = Site::new();
    let file = fs::File::create(site.at("src/f")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(&[7; 1 << 16], 1 << 30).unwrap();
    let tree = site.tree("src").keeping(Preserve::all());
    let look = || tree.entry(&rel("f")).unwrap();
    assert!(look().stored_bytes.is_some());
    // Compressed, it would be less.
    let mut entry = Entry { stored_bytes: Some(1), ..look() };
    tree.measure(&mut entry, 1 << 40);
    assert_eq!(entry.stored_bytes, Some(1), "it is not long enough to matter");
    tree.measure(&mut entry, 1 << 20);
    let stored = entry.stored_bytes.unwrap();
    assert!((1 << 16..1 << 20).contains(&stored), "{stored}");
    assert_eq!(
        site.tree("src")
            .keeping(Preserve::parse_names(["mode"]).unwrap())
            .entry(&rel("f"))
            .unwrap()
            .stored_bytes,
        None
    );
    let mut gone = look();
    fs::remove_file(site.at("src/f")).unwrap();
    tree.measure(&mut gone, 1 << 20);
    assert_eq!(gone.stored_bytes, None);
}
