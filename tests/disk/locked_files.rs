//! Files in use by other processes: locks of all kinds, leases, swap files.

use crate::support::await_true;
use crate::support::cluster::{Cluster, StoreKind, assert_complete};
use crate::support::process::Process;
use crate::support::tools::run_or_panic;
use crate::support::tree::{
    assert_same, census, differences, exact_comparison, make_dir, part_files, random_bytes,
    write_file, write_many_files,
};
use crate::{LoopDisk, MIB, assert_partial, assert_same_except};
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

fn open_read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn locked_files_are_copied_and_replaced_like_any_other() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 100);
    let names = ["flocked", "locked", "large flocked", "large locked"];
    for (seed, name) in names.iter().enumerate() {
        let length = if name.starts_with("large") { 5 * MIB } else { 5_000 };
        write_file(src.join(name), random_bytes(length, seed as u64));
        write_file(dst.join(name), "what is to be replaced");
    }
    let mut held = Vec::new();
    for at in [&src, &dst] {
        for name in names {
            let file = open_read_write(&at.join(name));
            if name.ends_with("flocked") {
                flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
            } else {
                fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
            }
            held.push(file);
        }
    }
    let sync = cluster.run_sync_with(&src, &dst, serde_json::json!({}));
    assert_complete(&sync, census(&src));
    assert_eq!(sync.retries, 0, "{sync:#?}");
    assert_same(&src, &dst, exact_comparison());
    drop(held);
}

/// Takes a lease on a file and prints that; releases it when another process opens the file, or never.
const LEASE_HOLDER_SCRIPT: &str = "
import fcntl, os, signal, sys
path, polite = sys.argv[1], sys.argv[2] == 'polite'
at = os.open(path, os.O_RDWR)
def asked(*_):
    print('asked', flush=True)
    if polite:
        fcntl.fcntl(at, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, asked)
fcntl.fcntl(at, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('has it', flush=True)
while True:
    signal.pause()
";

/// Starts a process that has a lease on a file.
fn start_lease_holder(path: &Path, how: &str, log: &Path) -> Process {
    let mut command = Command::new("python3");
    command.args(["-c", LEASE_HOLDER_SCRIPT]).arg(path).arg(how);
    let process = Process::start(how, command, log);
    await_true("it has the lease", || process.log().contains("has it"));
    process
}

#[test]
fn a_leased_file_is_retried_and_reported_when_the_lease_is_not_released() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 2}\n");
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 100);
    let (polite, stubborn) =
        (write_file(src.join("polite"), "one"), write_file(src.join("stubborn"), "two"));
    let home = cluster.home().to_owned();
    let gives = start_lease_holder(&polite, "polite", &home.join("polite.log"));
    let mut keeps = start_lease_holder(&stubborn, "stubborn", &home.join("stubborn.log"));
    let sync = cluster.run_sync(&src, &dst);
    assert!(gives.log().contains("asked") && keeps.log().contains("asked"));
    assert_partial(&sync, &["stubborn"], "EAGAIN");
    assert_same_except(&src, &dst, &["stubborn"]);
    keeps.kill_9();
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}

/// A file to which the kernel swaps; no longer when it is dropped.
struct SwapFile(PathBuf);

impl SwapFile {
    fn enable(path: PathBuf) -> SwapFile {
        write_file(&path, vec![0; MIB]);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        run_or_panic("mkswap", ["-q".as_ref(), path.as_os_str()]);
        let on = Command::new("swapon").arg(&path).output().unwrap();
        let why = String::from_utf8_lossy(&on.stderr);
        assert!(
            on.status.success(),
            "this test needs root and a kernel that swaps to files: {why}"
        );
        SwapFile(path)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

/// A file system on a disk of its own, at `name`.
fn mount_disk(cluster: &Cluster, name: &str) -> (LoopDisk, PathBuf) {
    let (image, at) =
        (cluster.home().join(format!("{name}.image")), make_dir(cluster.data_path(name)));
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    run_or_panic("mkfs.ext4", ["-q".as_ref(), image.as_os_str()]);
    (LoopDisk::mount(&image, at.clone()), make_dir(at.join("it")))
}

#[test]
fn an_active_swap_file_is_copied_and_reported_at_the_destination() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let ((source, src), (destination, dst)) =
        (mount_disk(&cluster, "src"), mount_disk(&cluster, "dst"));
    let used = SwapFile::enable(src.join("swap"));
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_many_files(&src, 20, 100);
    let sync = cluster.run_sync(&src, &dst);
    assert_complete(&sync, census(&src));
    // The kernel may have swapped something meanwhile.
    let found = differences(&src, &dst, exact_comparison());
    assert!(found.iter().all(|f| f.contains("`swap`") && f.contains("content")), "{found:#?}");
    assert_eq!(&std::fs::read(dst.join("swap")).unwrap()[4086..4096], b"SWAPSPACE2");
    drop(used);
    let used = SwapFile::enable(dst.join("swap"));
    write_file(src.join("swap"), random_bytes(2 * MIB, 1));
    write_file(src.join("more"), "more");
    let sync = cluster.run_sync(&src, &dst);
    assert_partial(&sync, &["swap"], "EPERM");
    let found = differences(&src, &dst, exact_comparison());
    assert!(found.iter().all(|f| f.contains("`swap`")), "{found:#?}");
    assert!(part_files(&dst).is_empty());
    drop(used);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    // The agents hold what is mounted.
    cluster.agents.clear();
    drop((source, destination));
}
