//! Destinations that are read-only or full: `ctl copy` and a sync of two agents end alike.

use super::support::MAX_WAIT;
use super::support::cluster::{Cluster, StoreKind};
use super::support::ctl::ctl;
use super::support::process::CommandOutput;
use super::support::tools::run_or_panic;
use super::support::tree::{make_dir, random_bytes, write_file};
use super::{MIB, OsStr, Path, PathBuf, SyncState};

/// A file system in memory of 1 MiB, which is unmounted when this is dropped.
struct SmallTmpfs(PathBuf);

impl SmallTmpfs {
    fn mount(at: PathBuf) -> SmallTmpfs {
        let words = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"].map(OsStr::new);
        run_or_panic("mount", words.into_iter().chain([at.as_os_str()]));
        SmallTmpfs(at)
    }

    fn make_read_only(&self) {
        run_or_panic("mount", [OsStr::new("-o"), OsStr::new("remount,ro"), self.0.as_os_str()]);
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The same by `ctl copy` and by a sync, to `copy` and `sync` below `dst`.
fn run_copy_and_sync(cluster: &Cluster, src: &Path, dst: &Path) -> [CommandOutput; 2] {
    let copy = ctl(["copy"]).arg(src).arg(dst.join("copy")).start();
    let sync = cluster.ctl(["sync", "submit", "--wait"]).arg(src).arg(dst.join("sync")).run();
    [copy.finish(MAX_WAIT), sync]
}

#[test]
fn copy_and_sync_end_alike_at_a_read_only_or_full_destination() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "limits: {no_space_timeout: 0s}\n");
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    let disk = SmallTmpfs::mount(dst.clone());
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_file(src.join("large"), random_bytes(2 * MIB, 1));
    for ran in run_copy_and_sync(&cluster, &src, &dst) {
        let ran = ran.assert_exit_code(7);
        assert!(
            ran.stdout_text().contains("  FAILED  "),
            "nothing was copied: {}",
            ran.stdout_text()
        );
        assert!(
            ran.stderr_text().contains("No space left on device [ENOSPC]"),
            "{}",
            ran.stderr_text()
        );
    }
    write_file(src.join("empty"), "");
    for ran in run_copy_and_sync(&cluster, &src, &dst) {
        let ran = ran.assert_exit_code(23);
        assert!(ran.stdout_text().contains("  FAILED (partial)  "), "{}", ran.stdout_text());
        assert!(
            ran.stderr_text().contains("No space left on device [ENOSPC]"),
            "{}",
            ran.stderr_text()
        );
    }
    disk.make_read_only();
    let new = dst.join("new");
    for ran in run_copy_and_sync(&cluster, &src, &new) {
        let ran = ran.assert_exit_code(7);
        assert!(ran.stdout_text().contains("  FAILED  "), "{}", ran.stdout_text());
        let line = format!("error: cannot write to `{}", new.display());
        assert!(ran.stderr_text().contains(&line), "`{line}` in {}", ran.stderr_text());
        assert!(
            ran.stderr_text().contains("Read-only file system (EROFS)"),
            "{}",
            ran.stderr_text()
        );
    }
    let id = cluster.submit(&src, &new);
    let seen = cluster.await_end(&id);
    assert_eq!((seen.state, seen.outcome), (SyncState::Failed, None), "{seen:#?}");
    let [error] = &seen.errors[..] else { panic!("one error, the true cause: {seen:#?}") };
    let worker = error.worker_id.as_ref().map(|worker| worker.as_str());
    assert_eq!((error.errno.as_deref(), error.attempt, worker), (Some("EROFS"), 1, Some("b")));
    // A dry run writes nothing.
    cluster.ctl(["sync", "submit", "--wait", "-n"]).arg(&src).arg(&new).run().assert_exit_code(0);
}
