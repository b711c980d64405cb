//! Storage that fails: reads, writes and flushes that fail, are short, are slow or hang. Real processes on a file
//! system that injects these faults ([`failing`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod case_folding;
mod clone;
mod faulty_fs;
mod full_or_read_only;
mod fuse_protocol;
mod kill_points;
mod locked_files;
mod reboot;
#[path = "../support/mod.rs"]
mod support;

use faulty_fs::{FaultyFs, FsCall, InjectedFault};
use longhaul::wire::sync::{SyncOutcome, SyncProgress, SyncState};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;
use serde_json::json;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tools::run_or_panic;
use support::tree::{
    assert_same, census, differences, exact_comparison, make_dir, part_files, random_bytes,
    write_file, write_many_files,
};

const MIB: usize = 1 << 20;

/// A failing file system at `name`, which shows `behind/name`.
fn mount_faulty_fs(cluster: &Cluster, name: &str) -> (FaultyFs, PathBuf, PathBuf) {
    let (behind, at) =
        (make_dir(cluster.data_path("behind").join(name)), make_dir(cluster.data_path(name)));
    (FaultyFs::mount(&behind, &at), at, behind)
}

#[test]
fn a_faulty_file_system_without_faults_behaves_like_any_other() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (_src, src, behind) = mount_faulty_fs(&cluster, "src");
    let (_dst, dst, _) = mount_faulty_fs(&cluster, "dst");
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    support::tree::write_unusual_tree(&behind);
    write_file(behind.join("large"), random_bytes(20 * MIB, 1));
    write_many_files(&behind, 200, 3_000);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&behind, &cluster.data_path("behind/dst"), exact_comparison());
    let again = cluster.run_sync(&src, &dst);
    assert_eq!(again.files_done, 0, "{again:#?}");
}

/// Two agents: `a` with a source that fails, `b` with an ordinary destination. The file system, where the source
/// is shown and where it is, and the destination.
fn cluster_with_faulty_source(cluster: &mut Cluster) -> (FaultyFs, PathBuf, PathBuf, PathBuf) {
    let (fs, src, behind) = mount_faulty_fs(cluster, "src");
    let dst = make_dir(cluster.data_path("dst"));
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    (fs, src, behind, dst)
}

/// … the other way round.
fn cluster_with_faulty_destination(cluster: &mut Cluster) -> (FaultyFs, PathBuf, PathBuf, PathBuf) {
    let src = make_dir(cluster.data_path("src"));
    let (fs, dst, behind) = mount_faulty_fs(cluster, "dst");
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    (fs, src, behind, dst)
}

/// Asserts that a sync copied all but the `failed` files and reported each of these with this errno.
#[track_caller]
fn assert_partial(sync: &SyncProgress, failed: &[&str], errno: &str) {
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    assert_eq!(sync.failure_count(), failed.len() as u64, "{sync:#?}");
    let done = sync.files_done + sync.files_skipped + sync.files_failed;
    assert_eq!(done, sync.files_total, "{sync:#?}");
    let mut reported: Vec<String> = sync.errors.iter().map(|e| e.path.to_string()).collect();
    reported.sort();
    assert_eq!(reported, failed, "{sync:#?}");
    for error in &sync.errors {
        assert_eq!(error.errno.as_deref(), Some(errno), "{error:#?}");
        assert!(error.worker_id.is_some() && error.attempt > 0, "{error:#?}");
    }
}

/// Asserts that the destination has all but the files of these names.
#[track_caller]
fn assert_same_except(src: &Path, dst: &Path, failed: &[&str]) {
    let found = differences(src, dst, exact_comparison());
    let mut missing: Vec<String> =
        failed.iter().map(|name| format!("`{name}`: missing at the destination")).collect();
    missing.sort();
    assert_eq!(found, missing);
}

#[test]
fn unreadable_files_are_retried_and_named_and_the_others_are_copied() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 2}\n");
    let (fs, src, behind, dst) = cluster_with_faulty_source(&mut cluster);
    write_many_files(&behind, 150, 2_000);
    write_file(behind.join("bad small"), random_bytes(5_000, 1));
    write_file(behind.join("bad large"), random_bytes(5 * MIB, 2));
    write_file(behind.join("good large"), random_bytes(5 * MIB, 3));
    // The third read of the large one, so that some ranges of it arrive.
    let small = fs.inject(FsCall::Read, "bad small", InjectedFault::Error(Errno::IO));
    fs.inject_limited(FsCall::Read, "bad large", InjectedFault::Error(Errno::IO), 2, u64::MAX);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_partial(&sync, &["bad large", "bad small"], "EIO");
    assert!(
        sync.errors.iter().all(|e| e.attempt == 3 && e.to_string().contains("kernel log")),
        "{sync:#?}"
    );
    assert!(fs.hits(small) >= 3, "it was tried again");
    assert_same_except(&behind, &dst, &["bad large", "bad small"]);
    // The disk was replaced.
    fs.clear_faults();
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_complete(&sync, census(&behind));
    assert_eq!(sync.files_done, 2, "{sync:#?}");
    assert_same(&behind, &dst, exact_comparison());
}

#[test]
fn transient_read_errors_fail_no_file() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_source(&mut cluster);
    write_many_files(&behind, 100, 2_000);
    write_file(behind.join("large"), random_bytes(5 * MIB, 3));
    fs.inject_limited(FsCall::Read, "large", InjectedFault::Error(Errno::TIMEDOUT), 1, 2);
    fs.inject_limited(FsCall::Read, "00007", InjectedFault::Error(Errno::IO), 0, 2);
    fs.inject_limited(FsCall::Open, "00008", InjectedFault::Error(Errno::IO), 0, 2);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_complete(&sync, census(&behind));
    assert!(sync.retries > 0, "{sync:#?}");
    assert_same(&behind, &dst, exact_comparison());
}

#[test]
fn a_full_destination_or_an_exceeded_quota_pauses_the_sync_until_space_is_free() {
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
        write_many_files(&src, 100, 2_000);
        write_file(src.join("large"), random_bytes(5 * MIB, 3));
        fs.inject_limited(FsCall::Write, "", InjectedFault::Error(errno), 40, u64::MAX);
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        let paused = cluster.await_progress(&id, "is paused", |s| s.state == SyncState::Paused);
        let reason = paused.reason.unwrap_or_default();
        assert!(
            reason.contains(if errno == Errno::DQUOT { "EDQUOT" } else { "ENOSPC" }),
            "{reason}"
        );
        fs.clear_faults();
        cluster.ctl(["sync", "resume", &id]).run().assert_exit_code(0);
        assert_complete(&cluster.await_end(&id), census(&src));
        assert_same(&src, &behind, exact_comparison());
    }
}

#[test]
fn exhausted_inodes_pause_the_sync() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
    write_many_files(&src, 300, 100);
    // Out of inodes.
    fs.inject_limited(FsCall::Create, "", InjectedFault::Error(Errno::NOSPC), 60, u64::MAX);
    let id = cluster.submit(&src, &dst);
    cluster.await_progress(&id, "is paused", |s| s.state == SyncState::Paused);
    fs.clear_faults();
    cluster.ctl(["sync", "resume", &id]).run().assert_exit_code(0);
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &behind, exact_comparison());
}

#[test]
fn write_errors_fail_the_sync_by_name_and_publish_nothing_incomplete() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 1}\n");
    let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
    write_file(src.join("d/first"), random_bytes(100_000, 1));
    write_file(src.join("d/large"), random_bytes(5 * MIB, 2));
    fs.inject_limited(FsCall::Write, "", InjectedFault::Error(Errno::IO), 3, u64::MAX);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    // The writes that succeeded may be those of the small file, or of neither as a whole.
    let outcome = (sync.files_done > 0).then_some(SyncOutcome::Partial);
    assert_eq!((sync.state, sync.outcome), (SyncState::Failed, outcome), "{sync:#?}");
    let cause = sync.error_counts.keys().next().cloned().unwrap_or_default();
    assert!(cause.contains("EIO"), "{sync:#?}");
    let short = |found: &String| found.contains("content") || found.contains("length");
    let found = differences(&src, &behind, exact_comparison());
    assert!(!found.iter().any(short), "nothing half done has a name: {found:#?}");
    fs.clear_faults();
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &behind, exact_comparison());
}

#[test]
fn a_file_system_that_becomes_read_only_is_reported_without_retry() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
    write_many_files(&src, 40, 100);
    for call in [FsCall::Create, FsCall::Write, FsCall::Rename] {
        fs.inject_limited(call, "", InjectedFault::Error(Errno::ROFS), 20, u64::MAX);
    }
    let sync = cluster.run_sync(&src, &dst);
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    assert!(sync.errors.iter().all(|e| e.errno.as_deref() == Some("EROFS")), "{sync:#?}");
    assert!(sync.errors.iter().all(|e| e.attempt == 1), "trying again is no use: {sync:#?}");
    fs.clear_faults();
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &behind, exact_comparison());
}

#[test]
fn permission_errors_are_reported_without_retry() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_source(&mut cluster);
    write_many_files(&behind, 40, 100);
    fs.inject(FsCall::Open, "00007", InjectedFault::Error(Errno::ACCESS));
    fs.inject(FsCall::Open, "00008", InjectedFault::Error(Errno::PERM));
    let sync = cluster.run_sync(&src, &dst);
    assert_eq!(sync.files_failed, 2, "{sync:#?}");
    assert!(sync.errors.iter().all(|e| e.attempt == 1), "trying again is no use: {sync:#?}");
    assert_same_except(&behind, &dst, &["000/00007", "000/00008"]);
}

/// A disk with a file system, kept in a file; gone when it is dropped.
struct LoopDisk(PathBuf);

impl LoopDisk {
    fn mount(image: &Path, at: PathBuf) -> LoopDisk {
        run_or_panic(
            "mount",
            [OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), at.as_os_str()],
        );
        LoopDisk(at)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_failed_flush_fails_the_sync_and_the_next_sync_copies_what_was_lost() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (make_dir(cluster.data_path("src")), make_dir(cluster.data_path("dst")));
    let (fs, image, _) = mount_faulty_fs(&cluster, "image");
    let image = image.join("disk");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run_or_panic("mkfs.ext4", [OsStr::new("-q"), image.as_os_str()]);
    let disk = LoopDisk::mount(&image, dst.clone());
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    for i in 0..4 {
        write_file(src.join(format!("f{i}")), random_bytes(5 * MIB, i));
    }
    // Everything is in the page cache when the disk refuses some of it.
    let lost = fs.inject_limited(FsCall::Write, "disk", InjectedFault::Error(Errno::IO), 0, 2);
    let sync = cluster.run_sync_with(&src, &dst.join("copy"), json!({}));
    assert_eq!(fs.hits(lost), 2, "the disk was written: {sync:#?}");
    assert_eq!((sync.state, sync.files_failed), (SyncState::Failed, 0), "{sync:#?}");
    let flush = &sync.errors[0];
    assert_eq!(
        (flush.action().as_str(), flush.errno.as_deref()),
        ("flush destination", Some("EIO"))
    );
    // Names, lengths and mtimes are right, so they do not show the loss.
    assert_complete(&cluster.run_sync_with(&src, &dst.join("copy"), json!({})), census(&src));
    assert_eq!(cluster.agents.get_mut("b").unwrap().terminate().code(), Some(0));
    // What the disk has, and not the page cache.
    drop(disk);
    let disk = LoopDisk::mount(&image, dst.clone());
    assert_same(&src, &dst.join("copy"), exact_comparison());
    drop(disk);
}

#[test]
fn short_reads_and_writes_copy_the_same_content() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (source, src, behind_src) = mount_faulty_fs(&cluster, "src");
    let (destination, dst, behind_dst) = mount_faulty_fs(&cluster, "dst");
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_many_files(&behind_src, 60, 3_000);
    write_file(behind_src.join("large"), random_bytes(5 * MIB, 1));
    let reads = source.inject(FsCall::Read, "", InjectedFault::HalfLength);
    let writes = destination.inject(FsCall::Write, "", InjectedFault::HalfLength);
    let sync = cluster.run_sync_with(&src, &dst, json!({"verify": "readback"}));
    assert_complete(&sync, census(&behind_src));
    assert!(source.hits(reads) > 60 && destination.hits(writes) > 60);
    assert_eq!((sync.retries, sync.repaired_files), (0, 0), "{sync:#?}");
    assert_same(&behind_src, &behind_dst, exact_comparison());
}

#[test]
fn calls_slower_than_a_lease_lose_no_task() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
    write_many_files(&src, 10, 3_000);
    write_file(src.join("large"), random_bytes(5 * MIB, 1));
    // A lease is 5 s, a heartbeat time-out 3 s.
    let slow =
        fs.inject_limited(FsCall::Write, "", InjectedFault::Delay(Duration::from_secs(7)), 3, 2);
    let sync = cluster.run_sync_with(&src, &dst, json!({}));
    assert_complete(&sync, census(&src));
    assert_eq!((fs.hits(slow), sync.retries), (2, 0), "{sync:#?}");
    assert_same(&src, &behind, exact_comparison());
}

#[test]
fn a_hanging_write_blocks_no_other_sync_and_its_path_is_shown_as_unavailable() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_destination(&mut cluster);
    let other = make_dir(cluster.data_path("other"));
    cluster.add_agent("c", &[&other]);
    write_many_files(&src, 50, 3_000);
    let hung = fs.inject(FsCall::Write, "", InjectedFault::Hang);
    let measure = fs.inject(FsCall::StatFs, "", InjectedFault::Hang);
    let id = cluster.submit(&src, &dst);
    support::await_true("a write hangs", || fs.hits(hung) > 0);
    support::await_true("its storage path is shown as unavailable", || {
        let list = cluster.master.get("/workers").json();
        let workers = list["active"].as_array().cloned().unwrap_or_default();
        workers
            .iter()
            .any(|w| w["worker_id"] == "b" && w["unavailable_paths"][0]["path"] == json!(dst))
    });
    assert!(fs.hits(measure) > 0);
    assert_complete(&cluster.run_sync(&src, &other), census(&src));
    assert!(!cluster.progress(&id).state.is_final());
    fs.clear_faults();
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &behind, exact_comparison());
    assert!(part_files(&behind).is_empty());
}

#[test]
fn a_hundred_failures_are_kept_in_full_and_all_are_counted() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (fs, src, behind, dst) = cluster_with_faulty_source(&mut cluster);
    write_many_files(&behind, 250, 100);
    fs.inject(FsCall::Open, "000", InjectedFault::Error(Errno::ACCESS));
    fs.inject(FsCall::Open, "001", InjectedFault::Error(Errno::PERM));
    let sync = cluster.run_sync(&src, &dst);
    assert_eq!(
        (sync.state, sync.outcome),
        (SyncState::Failed, Some(SyncOutcome::Partial)),
        "{sync:#?}"
    );
    let failed = sync.files_failed;
    // The names of the first two hundred files hold one of the two.
    assert!((200..=250).contains(&failed), "{sync:#?}");
    assert_eq!(sync.files_done + failed, 250, "{sync:#?}");
    assert_eq!(sync.errors.len(), 100);
    assert_eq!(sync.error_counts.values().sum::<u64>(), failed, "{:#?}", sync.error_counts);
    for error in &sync.errors {
        assert!(
            error.errno.is_some() && error.worker_id.is_some() && error.attempt == 1,
            "{error:#?}"
        );
    }
}

/// A file that is immutable or append-only until it is dropped.
struct UnchangeableFile(std::fs::File);

impl UnchangeableFile {
    fn make(path: &Path, how: IFlags) -> UnchangeableFile {
        let file = std::fs::File::open(path).unwrap();
        let needs =
            "this test needs root and a temporary folder on a file system with immutable files";
        let flags = ioctl_getflags(&file).expect(needs);
        ioctl_setflags(&file, flags | how).expect(needs);
        UnchangeableFile(file)
    }
}

impl Drop for UnchangeableFile {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).expect("its flags");
        let _ = ioctl_setflags(&self.0, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
    }
}

#[test]
fn immutable_and_append_only_files_are_copied_and_reported_at_the_destination() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 100);
    let (fixed, log) =
        (write_file(src.join("fixed"), "content"), write_file(src.join("log"), "a line\n"));
    let kept = [
        UnchangeableFile::make(&fixed, IFlags::IMMUTABLE),
        UnchangeableFile::make(&log, IFlags::APPEND),
    ];
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    drop(kept);
    write_file(&fixed, "other content");
    write_file(&log, "a line\nanother one\n");
    let kept = [
        UnchangeableFile::make(&dst.join("fixed"), IFlags::IMMUTABLE),
        UnchangeableFile::make(&dst.join("log"), IFlags::APPEND),
    ];
    let sync = cluster.run_sync(&src, &dst);
    assert_partial(&sync, &["fixed", "log"], "EPERM");
    assert!(sync.errors.iter().all(|e| e.attempt == 1), "trying again is no use: {sync:#?}");
    assert_eq!(std::fs::read(dst.join("fixed")).unwrap(), b"content");
    drop(kept);
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
}
