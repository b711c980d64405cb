use super::super::target::Target;
use super::*;
use crate::fs::testing::{TestSite, full_manifest};
use crate::fs::{FsError, PartFile};
use crate::wire::outcome::ErrorClass;
use rustix::io::Errno;
use std::fs as std_fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn open(site: &TestSite, path: &str) -> Arc<RootDir> {
    RootDir::open(&site.tree(path).path()).unwrap()
}

/// Runs a command of the system that needs to be root.
fn run_tool(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status().unwrap();
    assert!(status.success(), "{program} {args:?} {} needs root and mounts", path.display());
}

/// Unmounts what is mounted at a path, whatever the test comes to.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn tmpfs(at: &Path) -> Mounted<'_> {
        run_tool("mount", &["-t", "tmpfs", "none"], at);
        Mounted(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn each_reason_of_an_unavailable_root_is_named_and_the_root_recovers() {
    let site = TestSite::new();
    let (src, away) = (site.path("src"), site.path("away"));
    let root = open(&site, "src");
    let id = root.id();
    assert_eq!(root.check_path(), None);

    std_fs::rename(&src, &away).unwrap();
    assert_eq!(root.check_path(), Some(RootUnavailable::Missing(Errno::NOENT)));
    std_fs::create_dir(&src).unwrap();
    assert_eq!(root.check_path(), Some(RootUnavailable::Replaced));
    assert_ne!(open(&site, "src").id(), id);
    std_fs::remove_dir(&src).unwrap();
    std_fs::rename(&away, &src).unwrap();
    assert_eq!((root.check_path(), root.unavailable()), (None, None));
    assert_eq!(open(&site, "src").id(), id);

    let over = Mounted::tmpfs(&src);
    assert_eq!(root.check_path(), Some(RootUnavailable::MountedOver));
    let on_mount = open(&site, "src");
    assert_ne!(on_mount.id(), id);
    assert_eq!(on_mount.check_path(), None);
    {
        // A new mount, like a nightly snapshot, is new storage as well.
        let _renewed = Mounted::tmpfs(&src);
        assert_eq!(on_mount.check_path(), Some(RootUnavailable::MountedOver));
    }
    assert_eq!(on_mount.check_path(), None);
    drop(over);
    assert_eq!(on_mount.check_path(), Some(RootUnavailable::Unmounted));
    assert_eq!(root.check_path(), None);
}

#[test]
fn only_a_mounted_file_system_counts_as_new_storage() {
    use RootUnavailable::{Missing, MountedOver, Replaced, Unmounted};
    let new = [Missing(Errno::NOENT), MountedOver, Replaced, Unmounted]
        .map(RootUnavailable::is_new_storage);
    assert_eq!(new, [false, true, false, false]);
}

/// Runs every write operation of a destination with a root path that leads elsewhere; returns their names and errors.
fn run_write_operations(site: &TestSite) -> Vec<(&'static str, Option<FsError>)> {
    site.write_file("src/small", "small");
    site.write_file("src/large", vec![7; 300_000]);
    let root = open(site, "dst");
    let target = || {
        let tree = Tree::new(root.clone(), crate::wire::RelPath::root());
        let options = crate::fs::TargetOptions::for_this_process(Default::default());
        Target::new(tree, crate::wire::SyncNo(7), options)
    };
    let entries = full_manifest(&site.source()).entries;
    let entry = |name: &str| {
        entries.iter().find(|entry| entry.path.as_bytes() == name.as_bytes()).unwrap().clone()
    };
    let (small, large) = (entry("small"), entry("large"));
    // A range was written, and a file begun, while all was well.
    let before = target();
    let part = before.open_part_file(&large).unwrap();
    part.write_at(&[7; 300_000], 0).unwrap();
    let begun = before.open_part_file(&large).unwrap();
    std_fs::rename(site.path("dst"), site.path("away")).unwrap();
    std_fs::create_dir(site.path("dst")).unwrap();
    vec![
        ("the first file of a batch", target().create(&small, 1).err()),
        ("a part file", target().open_part_file(&large).err()),
        ("the end of a range", PartFile::close(begun).err()),
        ("publishing a large file", before.publish_part_file(&large, None).err()),
        ("a flush", before.flush().err()),
        ("work at the root", before.with_root_checked(|| Ok(())).err()),
    ]
}

#[test]
fn every_write_operation_fails_when_the_root_path_leads_elsewhere() {
    let site = TestSite::new();
    std_fs::create_dir(site.path("dst")).unwrap();
    for (what, error) in run_write_operations(&site) {
        let error = error.unwrap_or_else(|| panic!("{what} went to a root that is gone"));
        assert_eq!(error.cause, Cause::RootUnavailable(RootUnavailable::Replaced), "{what}");
        let report = error.to_entry_error();
        assert_eq!((report.class, report.path.0.len()), (ErrorClass::StorageGone, 0), "{what}");
        assert_eq!(report.action(), "use storage path destination");
        let path = site.path("dst").display().to_string();
        assert!(report.message.contains(&path), "{what}: {}", report.message);
    }
    assert_eq!(std_fs::read_dir(site.path("dst")).unwrap().count(), 0);
    // The large file has no name in the old root either.
    assert!(!site.path("away/large").exists());
}

#[test]
fn operations_fail_in_a_root_opened_after_the_work_was_assigned() {
    let site = TestSite::new();
    std_fs::create_dir(site.path("dst")).unwrap();
    let tree = Tree::new(open(&site, "dst"), crate::wire::RelPath::root());
    assert_eq!(tree.clone().for_assigned_root(true).check_root(), Ok(()));
    let error = tree.for_assigned_root(false).check_root().unwrap_err();
    assert_eq!(error.cause, Cause::RootUnavailable(RootUnavailable::Reopened));
    assert!(error.to_string().contains("next heartbeat"), "{error}");
}
