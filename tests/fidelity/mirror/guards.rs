//! Guards that stop the deletions of a mirror, or the whole mirror.

use super::*;

/// Holds a guard to have stopped the deletion, with a reason, and nothing to have changed.
#[track_caller]
fn assert_stopped(cluster: &Cluster, src: &Path, dst: &Path, delete: Value) -> SyncProgress {
    stopped_with(cluster, src, dst, delete, (SyncOutcome::DeleteStopped, 25))
}

/// … before anything was copied, the root included.
#[track_caller]
fn assert_not_started(cluster: &Cluster, src: &Path, dst: &Path, delete: Value) -> SyncProgress {
    let before = metadata_by_path(dst);
    let sync = stopped_with(cluster, src, dst, delete, (SyncOutcome::CopyStopped, 8));
    assert_eq!(metadata_by_path(dst), before, "nothing is written: {sync:#?}");
    assert!(sync.reason.as_deref().unwrap_or_default().contains("nothing was copied"), "{sync:#?}");
    sync
}

#[track_caller]
fn stopped_with(
    cluster: &Cluster,
    src: &Path,
    dst: &Path,
    delete: Value,
    (outcome, code): (SyncOutcome, i32),
) -> SyncProgress {
    let before = paths_of(dst);
    let sync = cluster.run_sync_with(src, dst, json!({"delete": delete}));
    assert_eq!(paths_of(dst), before, "nothing is deleted: {sync:#?}");
    assert_eq!(sync.outcome, Some(outcome), "{sync:#?}");
    assert!(sync.reason.as_deref().is_some_and(|r| r.len() > 20), "it says why: {sync:#?}");
    let id = sync.request_id.to_string();
    let waited = cluster.ctl(["sync", "wait", &id]).run().assert_exit_code(code);
    assert_eq!(action_count(&sync, EntryAction::Delete), 0, "{:#?}", sync.actions);
    let printed = format!("{}{}", waited.stdout_text(), waited.stderr_text());
    assert!(printed.contains(sync.reason.as_deref().unwrap_or_default()), "{printed}");
    sync
}

#[test]
fn an_emptied_source_stops_the_deletion() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..100);
    let sync = assert_not_started(&cluster, &src, &dst, json!({"max_percent": 100}));
    assert!(sync.reason.unwrap().contains("empty"));
    let allowed = json!({"delete": {"max_percent": 100, "allow_empty_source": true}});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, allowed));
    assert!(paths_of(&dst).is_empty());
}

#[test]
fn deleting_more_than_half_stops_unless_allowed() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..51);
    assert_stopped(&cluster, &src, &dst, json!({}));
    assert_stopped(&cluster, &src, &dst, json!({"max_percent": 50}));
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {"max_percent": 60}})));
    assert_eq!(paths_of(&dst).len(), 49);
    assert_trees_identical(&src, &dst);
}

#[test]
fn less_than_half_is_deleted() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..49);
    let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {}}));
    assert_full_outcome(&sync);
    assert_eq!(action_count(&sync, EntryAction::Delete), 49, "{sync:#?}");
    assert_trees_identical(&src, &dst);
}

#[test]
fn the_deletion_limit_is_checked_before_the_first_deletion() {
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..4);
    assert_stopped(&cluster, &src, &dst, json!({"max": 3}));
    // What is in a folder counts, not the folder alone.
    write_many_files(&dst.join("extra"), 3, 10);
    assert_stopped(&cluster, &src, &dst, json!({"max": 8}));
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {"max": 9}})));
    assert_trees_identical(&src, &dst);
}

#[test]
fn an_unreadable_source_directory_stops_the_deletion() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    write_hundred_files(&src);
    write_file(src.join("folder/inside"), "precious");
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    cluster.add_agent_with("a", &[&src], User::Ordinary, "");
    cluster.add_agent_with("b", &[&dst], User::Ordinary, "");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    remove_numbered_files(&src, 0..1);
    chmod(src.join("folder"), 0o000);
    let before = paths_of(&dst);
    let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {}}));
    chmod(src.join("folder"), 0o755);
    chmod(dst.join("folder"), 0o755);
    assert_eq!(sync.outcome, Some(SyncOutcome::Partial), "{sync:#?}");
    assert_eq!(paths_of(&dst), before, "nothing is deleted: {sync:#?}");
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    assert_eq!(paths_of(&dst).len(), 101);
}

/// A file with an attribute (`chattr`) that keeps also root from replacing it; without it again at the end.
struct AttributeGuard(PathBuf, char);

impl AttributeGuard {
    fn with(attribute: char, path: PathBuf) -> AttributeGuard {
        run_or_panic("chattr", [format!("+{attribute}").as_ref(), path.as_os_str()]);
        AttributeGuard(path, attribute)
    }
}

impl Drop for AttributeGuard {
    fn drop(&mut self) {
        let mut chattr = std::process::Command::new("chattr");
        let _ = chattr.arg(format!("-{}", self.1)).arg(&self.0).status();
    }
}

#[test]
fn a_file_that_cannot_be_copied_stops_the_deletion() {
    assert_root("immutable files");
    let (cluster, src, dst) = mirrored_tree();
    remove_numbered_files(&src, 0..1);
    for name in ["f01", "f02"] {
        write_file(src.join(name), "another version");
    }
    let kept =
        [AttributeGuard::with('i', dst.join("f01")), AttributeGuard::with('a', dst.join("f02"))];
    let before = paths_of(&dst);
    let sync = cluster.run_sync_with(&src, &dst, json!({"delete": {}}));
    assert_eq!((sync.outcome, sync.files_failed), (Some(SyncOutcome::Partial), 2), "{sync:#?}");
    let mut named: Vec<&[u8]> = sync.errors.iter().map(|e| &e.path.0[..]).collect();
    named.sort_unstable();
    assert_eq!(named, [b"f01", b"f02"], "{:#?}", sync.errors);
    assert!(sync.errors.iter().all(|e| e.errno.as_deref() == Some("EPERM")), "{:#?}", sync.errors);
    assert_eq!(paths_of(&dst), before, "nothing is deleted, and no part file is left: {sync:#?}");
    assert_eq!(fs::read(dst.join("f01")).unwrap(), b"1");
    drop(kept);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    assert_eq!(paths_of(&dst).len(), 99);
    // At the source it is no obstacle, and does not come along.
    let kept =
        [AttributeGuard::with('i', src.join("f03")), AttributeGuard::with('a', src.join("f04"))];
    fs::remove_file(dst.join("f03")).unwrap();
    fs::remove_file(dst.join("f04")).unwrap();
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    drop(kept);
    assert_trees_identical(&src, &dst);
    fs::remove_file(dst.join("f03")).unwrap();
}

/// A mount that is gone again at the end.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path) -> Option<Mount> {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755", "none"]).arg(at);
        mount.output().is_ok_and(|ran| ran.status.success()).then(|| Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_unmounted_source_stops_the_deletion() {
    assert_root("mounts");
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (all, dst) = cluster.add_source_and_destination();
    let src = make_dir(all.join("mounted"));
    let mount = Mount::tmpfs(&src).expect("this test needs a tmpfs to be mounted");
    write_hundred_files(&src);
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, json!({"delete": {}})));
    drop(mount);
    assert_not_started(&cluster, &src, &dst, json!({"max_percent": 100}));
    // Something lies where the mount should be: it is another file system, not an empty one.
    write_file(src.join("f00"), "is it mounted?");
    assert_not_started(&cluster, &src, &dst, json!({"max_percent": 100}));
    // Also after the master was started again.
    cluster.master.restart();
    assert_not_started(&cluster, &src, &dst, json!({"max_percent": 100}));
    // That an empty source is allowed does not allow another one.
    assert_not_started(
        &cluster,
        &src,
        &dst,
        json!({"max_percent": 100, "allow_empty_source": true}),
    );
    let allowed = json!({"delete": {"max_percent": 100, "allow_new_source_fs": true}});
    assert_full_outcome(&cluster.run_sync_with(&src, &dst, allowed));
    assert_eq!(paths_of(&dst), ["f00"]);
}
