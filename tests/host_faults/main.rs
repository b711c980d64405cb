//! A host withdraws resources of its processes during a sync: mounts, file descriptors, memory. Nothing is written or
//! deleted that must not be, and the sync continues when the resource is available again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

mod mounts;
mod resource_limits;

use longhaul::wire::sync::{SyncProgress, SyncState};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::cluster::{Cluster, StoreKind, assert_complete, assert_nothing_to_do};
use support::process::{CommandOutput, Process, RunningCommand, User, clean_command, ctl_binary};
use support::relay::Relay;
use support::tools::run_or_panic;
use support::tree::{
    self, assert_same, census, exact_comparison, part_files, random_bytes, write_file,
    write_many_files,
};
use support::{MAX_WAIT, await_some, await_true};

const MIB: usize = 1 << 20;

/// A file system that is mounted at a place, and can be taken away from there and put back. Below it lies
/// a directory that no test uses.
struct Removable {
    /// Where it always is …
    backing: PathBuf,
    /// … and where it comes and goes.
    mount_point: PathBuf,
}

impl Removable {
    fn mount(kept: PathBuf, place: PathBuf) -> Removable {
        write_file(place.join("below"), "not on the mount");
        let removable = Removable { backing: tree::make_dir(kept), mount_point: place };
        let kept = removable.backing.as_os_str();
        run_or_panic("mount", ["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), kept]);
        removable.mount_again();
        removable
    }

    fn mount_again(&self) {
        run_or_panic(
            "mount",
            ["--bind".as_ref(), self.backing.as_os_str(), self.mount_point.as_os_str()],
        );
    }

    /// Lazily: processes that have it open keep it.
    fn unmount(&self) {
        run_or_panic("umount", ["-l".as_ref(), self.mount_point.as_os_str()]);
        self.assert_nothing_below();
    }

    #[track_caller]
    fn assert_nothing_below(&self) {
        let names: Vec<_> =
            fs::read_dir(&self.mount_point).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["below"], "something went to what is not the mount");
        assert_eq!(fs::read(self.mount_point.join("below")).unwrap(), b"not on the mount");
    }
}

impl Drop for Removable {
    fn drop(&mut self) {
        for at in [&self.mount_point, &self.backing] {
            let _ = Command::new("umount").arg("-l").arg(at).output();
        }
    }
}

/// Waits until the master lists a worker with an error.
fn await_error(cluster: &Cluster, name: &str) {
    await_true(&format!("{name} says that something is wrong"), || {
        let workers = cluster.master.get("/workers").json();
        let active = workers["active"].as_array().unwrap();
        active.iter().any(|w| w["worker_id"] == name && w["status"] == "ERROR")
    });
}

fn await_reason(cluster: &Cluster, id: &str, reason: &str) {
    let reported = |s: &SyncProgress| s.reason.as_deref().is_some_and(|r| r.contains(reason));
    cluster.await_progress(id, "reports why it waits", reported);
}

/// Waits until a sync is paused, for a reason that names the path, its worker and what was found.
#[track_caller]
fn await_paused(cluster: &Cluster, id: &str, path: &Path, worker: &str, found: &str) {
    let parts = [path.to_str().unwrap().to_owned(), format!("worker {worker}"), found.to_owned()];
    let named = |s: &SyncProgress| {
        let reason = s.reason.as_deref().unwrap_or_default();
        s.state == SyncState::Paused && parts.iter().all(|part| reason.contains(part.as_str()))
    };
    let seen = cluster.await_progress(id, "is paused", |s| named(s) || s.state.is_final());
    assert!(named(&seen), "{seen:#?}");
}

/// Mounts an empty file system over a directory, until the guard is dropped.
fn mount_over(at: &Path) -> UnmountOnDrop {
    run_or_panic("mount", ["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), at.as_os_str()]);
    UnmountOnDrop(at.to_owned())
}

fn await_log(cluster: &mut Cluster, name: &str, line: &str) {
    await_true(line, || process_of_agent(cluster, name).log().contains(line));
}

fn process_of_agent<'a>(cluster: &'a mut Cluster, name: &str) -> &'a mut Process {
    &mut cluster.agents.get_mut(name).unwrap().process
}

/// What makes a sync take so long that it can be caught.
const LARGE_FILE_AND_LIMIT: (usize, &str) = (64, "16MiB/s");

#[track_caller]
fn assert_undamaged(cluster: &Cluster, id: &str, src: &Path, dst: &Path) {
    let there = census(src);
    assert_complete(&cluster.await_end(id), there);
    assert_same(src, dst, exact_comparison());
    assert!(part_files(dst).is_empty());
    assert_nothing_to_do(&cluster.run_sync(src, dst), there);
    cluster.assert_no_panic();
}

/// Something that is mounted, until this is dropped.
struct UnmountOnDrop(PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
