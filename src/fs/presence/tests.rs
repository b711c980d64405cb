use super::*;
use crate::fs::PartFile;
use crate::fs::testing::{Site, manifest};
use crate::wire::sync::ErrorClass;
use std::fs as std_fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

fn open(site: &Site, path: &str) -> Arc<Root> {
    Root::open(&site.tree(path).path()).unwrap()
}

/// Runs a command of the system that needs to be root.
fn must(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status().unwrap();
    assert!(status.success(), "{program} {args:?} {} needs root and mounts", path.display());
}

/// Unmounts what is mounted at a path, whatever the test comes to.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn tmpfs(at: &Path) -> Mounted<'_> {
        must("mount", &["-t", "tmpfs", "none"], at);
        Mounted(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn each_way_to_lose_a_root_is_named_and_being_back_ends_it() {
    let site = Site::new();
    let (src, away) = (site.at("src"), site.at("away"));
    let root = open(&site, "src");
    let id = root.id();
    assert_eq!(root.look(), None);

    std_fs::rename(&src, &away).unwrap();
    assert_eq!(root.look(), Some(RootLoss::Missing(Errno::NOENT)));
    std_fs::create_dir(&src).unwrap();
    assert_eq!(root.look(), Some(RootLoss::Replaced));
    assert_ne!(open(&site, "src").id(), id);
    std_fs::remove_dir(&src).unwrap();
    std_fs::rename(&away, &src).unwrap();
    assert_eq!((root.look(), root.lost()), (None, None));
    assert_eq!(open(&site, "src").id(), id);

    let over = Mounted::tmpfs(&src);
    assert_eq!(root.look(), Some(RootLoss::Mounted));
    let on_mount = open(&site, "src");
    assert_ne!(on_mount.id(), id);
    assert_eq!(on_mount.look(), None);
    {
        // One that is mounted anew, as a snapshot is each night, is new storage as well.
        let _renewed = Mounted::tmpfs(&src);
        assert_eq!(on_mount.look(), Some(RootLoss::Mounted));
    }
    assert_eq!(on_mount.look(), None);
    drop(over);
    assert_eq!(on_mount.look(), Some(RootLoss::Unmounted));
    assert_eq!(root.look(), None);
}

#[test]
fn only_what_was_mounted_on_purpose_is_new_storage() {
    use RootLoss::{Missing, Mounted, Replaced, Unmounted};
    let new = [Missing(Errno::NOENT), Mounted, Replaced, Unmounted].map(RootLoss::is_new_storage);
    assert_eq!(new, [false, true, false, false]);
}

#[test]
fn the_depth_of_a_mount_point_is_read_from_mountinfo() {
    let table = b"20 1 8:1 / / rw - ext4 a rw\n31 20 0:5 / /mnt/a\\040b rw - tmpfs none rw\n";
    let depth = |id| mount_depth(table, id);
    assert_eq!((depth(20), depth(31), depth(3)), (Some(0), Some(2), None));
}

/// What writes to a destination whose storage path leads elsewhere, each by its name, with the error it gives.
fn writes(site: &Site) -> Vec<(&'static str, Option<FsError>)> {
    site.write("src/small", "small");
    site.write("src/large", vec![7; 300_000]);
    let root = open(site, "dst");
    let target = || {
        let tree = Tree::new(root.clone(), crate::wire::RelPath::root());
        let options = crate::fs::TargetOptions::of_this_process(Default::default());
        Target::new(tree, crate::wire::SyncNo(7), options)
    };
    let entries = manifest(&site.source()).entries;
    let entry = |name: &str| {
        entries.iter().find(|entry| entry.path.as_bytes() == name.as_bytes()).unwrap().clone()
    };
    let (small, large) = (entry("small"), entry("large"));
    // A range was written, and a file begun, while all was well.
    let before = target();
    let part = before.part(&large).unwrap();
    part.write_at(&[7; 300_000], 0).unwrap();
    let begun = before.part(&large).unwrap();
    std_fs::rename(site.at("dst"), site.at("away")).unwrap();
    std_fs::create_dir(site.at("dst")).unwrap();
    vec![
        ("the first file of a batch", target().create(&small, 1).err()),
        ("a part file", target().part(&large).err()),
        ("the end of a range", PartFile::finish(begun).err()),
        ("publishing a large file", before.publish_part(&large, None).err()),
        ("a flush", before.flush().err()),
        ("work at the root", before.at_root(|| Ok(())).err()),
    ]
}

#[test]
fn nothing_that_writes_passes_where_the_path_leads_elsewhere() {
    let site = Site::new();
    std_fs::create_dir(site.at("dst")).unwrap();
    for (what, error) in writes(&site) {
        let error = error.unwrap_or_else(|| panic!("{what} went to a root that is gone"));
        assert_eq!(error.cause, Cause::RootGone(RootLoss::Replaced), "{what}");
        let report = error.to_file_error();
        assert_eq!((report.class, report.path.0.len()), (ErrorClass::StorageGone, 0), "{what}");
        assert_eq!(report.operation, "use storage path destination");
        let path = site.at("dst").display().to_string();
        assert!(report.message.contains(&path), "{what}: {}", report.message);
    }
    assert_eq!(std_fs::read_dir(site.at("dst")).unwrap().count(), 0);
    // The large file has no name in the old root either.
    assert!(!site.at("away/large").exists());
}

#[test]
fn nothing_is_done_in_a_root_that_was_opened_after_the_work_was_assigned() {
    let site = Site::new();
    std_fs::create_dir(site.at("dst")).unwrap();
    let tree = Tree::new(open(&site, "dst"), crate::wire::RelPath::root());
    assert_eq!(tree.clone().of_assigned_root(true).check_root(), Ok(()));
    let error = tree.of_assigned_root(false).check_root().unwrap_err();
    assert_eq!(error.cause, Cause::RootGone(RootLoss::Reopened));
    assert!(error.to_string().contains("next heartbeat"), "{error}");
}
