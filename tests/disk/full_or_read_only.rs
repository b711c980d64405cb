//! Destinations that are read-only or full: `ctl copy` and a sync of two agents end alike.

use super::support::PATIENCE;
use super::support::cluster::{Cluster, On};
use super::support::ctl::ctl;
use super::support::process::Ran;
use super::support::tools::must;
use super::support::tree::{dir, file, noise};
use super::{MIB, OsStr, Path, PathBuf, SyncState};

/// A file system in memory of 1 MiB, which is unmounted when this is dropped.
struct SmallTmpfs(PathBuf);

impl SmallTmpfs {
    fn mount(at: PathBuf) -> SmallTmpfs {
        let words = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"].map(OsStr::new);
        must("mount", words.into_iter().chain([at.as_os_str()]));
        SmallTmpfs(at)
    }

    fn make_read_only(&self) {
        must("mount", [OsStr::new("-o"), OsStr::new("remount,ro"), self.0.as_os_str()]);
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The same by `ctl copy` and by a sync, to `copy` and `sync` below `dst`.
fn run_copy_and_sync(cluster: &Cluster, src: &Path, dst: &Path) -> [Ran; 2] {
    let copy = ctl(["copy"]).arg(src).arg(dst.join("copy")).start();
    let sync = cluster.ctl(["sync", "submit", "--wait"]).arg(src).arg(dst.join("sync")).run();
    [copy.finish(PATIENCE), sync]
}

#[test]
fn copy_and_sync_end_alike_at_a_read_only_or_full_destination() {
    let mut cluster = Cluster::start_with(On::Embedded, "limits: {no_space_timeout: 0s}\n");
    let (src, dst) = (dir(cluster.path("src")), dir(cluster.path("dst")));
    let disk = SmallTmpfs::mount(dst.clone());
    cluster.agent("a", &[&src]);
    cluster.agent("b", &[&dst]);
    file(src.join("large"), noise(2 * MIB, 1));
    for ran in run_copy_and_sync(&cluster, &src, &dst) {
        let ran = ran.exits(7);
        assert!(ran.out().contains("  FAILED  "), "nothing was copied: {}", ran.out());
        assert!(ran.err().contains("No space left on device [ENOSPC]"), "{}", ran.err());
    }
    file(src.join("empty"), "");
    for ran in run_copy_and_sync(&cluster, &src, &dst) {
        let ran = ran.exits(23);
        assert!(ran.out().contains("  FAILED (partial)  "), "{}", ran.out());
        assert!(ran.err().contains("No space left on device [ENOSPC]"), "{}", ran.err());
    }
    disk.make_read_only();
    let new = dst.join("new");
    for ran in run_copy_and_sync(&cluster, &src, &new) {
        let ran = ran.exits(7);
        assert!(ran.out().contains("  FAILED  "), "{}", ran.out());
        let line = format!("error: cannot write to `{}", new.display());
        assert!(ran.err().contains(&line), "`{line}` in {}", ran.err());
        assert!(ran.err().contains("Read-only file system (EROFS)"), "{}", ran.err());
    }
    let id = cluster.submit(&src, &new);
    let seen = cluster.ended(&id);
    assert_eq!((seen.state, seen.outcome), (SyncState::Failed, None), "{seen:#?}");
    let [error] = &seen.errors[..] else { panic!("one error, the true cause: {seen:#?}") };
    let worker = error.worker_id.as_ref().map(|worker| worker.as_str());
    assert_eq!((error.errno.as_deref(), error.attempt, worker), (Some("EROFS"), 1, Some("b")));
    // A dry run writes nothing.
    cluster.ctl(["sync", "submit", "--wait", "-n"]).arg(&src).arg(&new).run().exits(0);
}
