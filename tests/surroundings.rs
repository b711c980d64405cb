//! What a host gives its processes is taken from them in the middle of a sync: file systems, descriptors,
//! memory. Nothing is written or deleted that should not be, and when it is given back all goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

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

#[test]
fn nothing_is_written_below_a_destination_that_is_unmounted_in_mid_transfer() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (tree::make_dir(cluster.data_path("src")), cluster.data_path("dst"));
    let disk = Removable::mount(cluster.data_path("disk"), dst.clone());
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    disk.unmount();
    // The source continues to send at full speed: the sync must not end before the loss is detected.
    cluster.lift_bandwidth_limit(&id);
    await_paused(&cluster, &id, &dst, "b", "its file system was unmounted");
    disk.assert_nothing_below();
    // Put back, it goes on by itself.
    disk.mount_again();
    assert_undamaged(&cluster, &id, &src, &dst);
    disk.unmount();
}

#[test]
fn a_source_unmounted_during_a_mirror_deletes_nothing() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = (cluster.data_path("src"), tree::make_dir(cluster.data_path("dst")));
    let disk = Removable::mount(cluster.data_path("disk"), src.clone());
    cluster.add_agent("a", &[&src]);
    cluster.add_agent("b", &[&dst]);
    write_many_files(&dst.join("extra"), 20, 100);
    let options = json!({"delete": {"max_percent": 90}});
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, options);
    disk.unmount();
    cluster.lift_bandwidth_limit(&id);
    await_paused(&cluster, &id, &src, "a", "its file system was unmounted");
    assert_eq!(census(&dst.join("extra")).files, 20, "something was deleted");
    disk.mount_again();
    assert_undamaged(&cluster, &id, &src, &dst);
}

/// The storage path of one side is renamed while no request reaches the agent: a sync that is submitted at once
/// must not go to (or come from) what is not found under the path, whichever is asked first.
#[test]
fn a_renamed_storage_path_is_detected_before_a_sync_completes() {
    for side in ["src", "dst"] {
        let mut cluster = Cluster::start(StoreKind::Embedded);
        let (src, dst) =
            (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
        // So rarely that it is not by a heartbeat that it is noticed.
        cluster.set_heartbeat_interval(Duration::from_secs(4));
        cluster.add_agent("a", &[&src]);
        cluster.add_agent("b", &[&dst]);
        write_many_files(&src, 50, 1_000);
        write_file(src.join("large"), random_bytes(3 * MIB, 1));
        let path = cluster.data_path(side);
        fs::rename(&path, cluster.data_path("away")).unwrap();
        tree::make_dir(&path);
        let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 1}));
        let name = if side == "src" { "a" } else { "b" };
        await_paused(&cluster, &id, &path, name, "its path leads to another directory");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::remove_dir(&path).unwrap();
        fs::rename(cluster.data_path("away"), &path).unwrap();
        assert_complete(&cluster.await_end(&id), census(&src));
        assert_same(&src, &dst, exact_comparison());
        cluster.assert_no_panic();
    }
}

/// A file system that is mounted over a storage path is new storage: what a sync wrote below it is brought again.
#[test]
fn files_hidden_by_a_mount_over_the_destination_are_copied_again() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    let over = mount_over(&dst);
    cluster.lift_bandwidth_limit(&id);
    let end = cluster.await_end(&id);
    assert_eq!(end.state, SyncState::Completed, "{end:#?}");
    assert_same(&src, &dst, exact_comparison());
    assert!(part_files(&dst).is_empty());
    let log = process_of_agent(&mut cluster, "b").log();
    assert!(log.contains("another file system was mounted over it"), "{log}");
    drop(over);
    cluster.assert_no_panic();
}

/// What a host mounts over a storage path, and takes away again by itself.
#[test]
fn a_temporary_mount_leaves_its_storage_path_available() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    write_many_files(&src, 5, 1_000);
    cluster.add_agent("a", &[&src, &dst]);
    let over = mount_over(&dst);
    await_log(&mut cluster, "a", "another file system was mounted over it; it is used from now on");
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    drop(over);
    await_log(
        &mut cluster,
        "a",
        "the directory that was used first is back; it is used from now on",
    );
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    cluster.assert_no_panic();
}

/// The mount comes and goes between two heartbeats that reach the master.
#[test]
fn writes_to_a_mount_that_was_not_reported_to_the_master_do_not_count() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let config = cluster.home().join("master.yml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("heartbeat_timeout: 3s", "heartbeat_timeout: 1h")).unwrap();
    cluster.master.restart();
    let link = Relay::to_address(cluster.master.address());
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    write_file(src.join("first"), "x");
    cluster.add_agent("a", &[&src]);
    cluster.add_agent_at("b", &[&dst], User::Same, "", (&link.url(), 0));
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    write_many_files(&src, 5, 1_000);
    link.refuse_connections();
    let over = mount_over(&dst);
    await_log(&mut cluster, "b", "another file system was mounted over it; it is used from now on");
    let id = cluster.submit(&src, &dst);
    await_paused(&cluster, &id, &dst, "b", "opened there after the task was assigned");
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 0);
    drop(over);
    await_log(
        &mut cluster,
        "b",
        "the directory that was used first is back; it is used from now on",
    );
    link.restore();
    assert_undamaged(&cluster, &id, &src, &dst);
}

/// The agent was started before the disk was mounted.
#[test]
fn a_storage_path_that_appears_late_is_used_and_the_others_are_available_before() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst, late) = (
        tree::make_dir(cluster.data_path("src")),
        tree::make_dir(cluster.data_path("dst")),
        cluster.data_path("late"),
    );
    write_many_files(&src, 20, 1_000);
    cluster.add_agent("a", &[&src, &dst, &late]);
    let shown = cluster.ctl(["workers", "show", "a"]).run().assert_exit_code(0).stdout_text();
    let line = shown.lines().find(|line| line.starts_with("Unavailable:"));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains(late.to_str().unwrap()) && line.contains("ENOENT"), "{shown}");
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    let id = cluster.submit(&src, &late.join("copy"));
    let named = format!("{} is unavailable", late.display());
    let reported = |s: &SyncProgress| s.reason.as_deref().is_some_and(|r| r.contains(&named));
    assert_eq!(cluster.await_progress(&id, "waits", reported).state, SyncState::Queued);
    tree::make_dir(&late);
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &late.join("copy"), exact_comparison());
    let log = process_of_agent(&mut cluster, "a").log();
    let times = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((times(&named), times("is available again")), (1, 1), "{log}");
}

/// With nothing at all the agent runs, and says so loudly. What checks a configuration still fails.
#[test]
fn an_agent_without_storage_or_address_runs_with_warnings_and_checks_fail() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let late = cluster.data_path("late");
    cluster.add_agent("a", &[&late]);
    await_error(&cluster, "a");
    let log = process_of_agent(&mut cluster, "a").log();
    assert!(log.contains("NONE of the storage paths is available"), "{log}");
    let file = cluster.home().join("a.yml");
    let file = file.to_str().unwrap();
    let check = ["agent", "--config", file, "--worker-id", "a", "--check"];
    let checked = cluster.ctl(check).run().assert_exit_code(78).stdout_text();
    assert!(checked.contains("does not exist on this host"), "{checked}");
    let check = ["config", "check", file, "--worker-id", "a"];
    cluster.ctl(check).run().assert_exit_code(0);
    cluster.ctl(check.iter().chain(&["--strict"])).run().assert_exit_code(1);
    tree::make_dir(&late);
    await_true("it takes up what has come", || {
        let workers = cluster.master.get("/workers").json();
        workers["active"][0]["status"] == "IDLE"
    });
    cluster
        .ctl(["agent", "--config", file, "--worker-id", "a", "--check"])
        .run()
        .assert_exit_code(0);
}

/// `ulimit -f`: the kernel would end the process with SIGXFSZ.
#[test]
fn a_file_above_the_file_size_limit_fails_by_name_and_the_others_are_copied() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 20, 1_000);
    write_file(src.join("large"), random_bytes(3 * MIB, 1));
    write_file(src.join("middle"), random_bytes(MIB + 100, 2));
    let limit = |process: &Process| {
        run_or_panic("prlimit", ["--pid", &process.pid().to_string(), &format!("--fsize={MIB}:")]);
    };
    limit(process_of_agent(&mut cluster, "b"));
    let end = cluster.run_sync(&src, &dst);
    assert_eq!((end.files_failed, end.files_done), (2, 20), "{end:#?}");
    for error in &end.errors {
        assert_eq!(error.errno.as_deref(), Some("EFBIG"), "{error:?}");
        assert!(error.to_string().contains("`ulimit -f`"), "{error:?}");
    }
    assert!(process_of_agent(&mut cluster, "b").try_exit_status().is_none());
    // `ctl copy` as well.
    let copied = cluster.data_path("copied");
    let shell = format!(
        "ulimit -f {}; exec {} copy {} {}",
        MIB / 1024,
        env!("CARGO_BIN_EXE_ctl"),
        src.display(),
        copied.display()
    );
    let mut bash = clean_command(Path::new("bash"), cluster.home(), User::Same);
    let ran = bash.args(["-c", &shell]).output().unwrap();
    let reported = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(23), "{reported}");
    assert!(reported.contains("EFBIG"), "{reported}");
    assert_eq!(census(&copied).files, 20);
}

/// `ctl copy` with a destination that is renamed reports that and fails, because a user waits for it.
#[test]
fn a_local_copy_whose_destination_is_renamed_fails_by_name() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let (src, dst) = (tree::make_dir(home.join("src")), tree::make_dir(home.join("dst")));
    write_file(src.join("large"), random_bytes(16 * MIB, 1));
    let mut command = clean_command(&ctl_binary(User::Same, &home), &home, User::Same);
    command.args(["copy", "--bwlimit", "4MiB/s", "--chunk-size-mb", "1"]).arg(&src).arg(&dst);
    let mut process = Process::start("copy", command, &home.join("copy.log"));
    await_true("it is in the middle", || !part_files(&dst).is_empty());
    fs::rename(&dst, home.join("away")).unwrap();
    let code = await_some("it ends", || process.try_exit_status()).code();
    let log = process.log();
    assert_eq!(code, Some(7), "nothing was copied: {log}");
    assert!(
        log.contains(dst.to_str().unwrap()) && log.contains("nothing is found at its path"),
        "{log}"
    );
    assert!(!dst.exists());
}

#[test]
fn a_destination_that_is_mounted_at_the_source_is_not_copied_into_itself() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    write_many_files(&src.join("some"), 20, 100);
    cluster.add_agent("a", &[&src, &dst]);
    // In the middle of it, and in place of all of it.
    for (at, failed) in [(src.join("deep/er"), "deep/er"), (src.clone(), "")] {
        tree::make_dir(&at);
        run_or_panic("mount", ["--bind".as_ref(), dst.as_os_str(), at.as_os_str()]);
        let mounted = UnmountOnDrop(at);
        if failed.is_empty() {
            // Only a process that opens it now sees what is mounted there.
            cluster.agents.get_mut("a").unwrap().restart();
        }
        let end = cluster.run_sync(&src, &dst);
        drop(mounted);
        assert_eq!((end.files_failed, end.failure_count()), (0, 1), "a mount is no file: {end:?}");
        let error = &end.errors[0];
        assert!(error.message.contains("it is the destination itself"), "{error:?}");
        assert_eq!(error.path.0, failed.as_bytes());
        assert_eq!(census(&dst.join("some")), census(&src.join("some")));
        assert!(!dst.join("deep/er").exists());
    }
    // Without it, all is there but for the place.
    cluster.agents.get_mut("a").unwrap().restart();
    assert_complete(&cluster.run_sync(&src, &dst), census(&src));
    assert_same(&src, &dst, exact_comparison());
    cluster.assert_no_panic();
}

#[test]
fn mounts_in_a_source_are_walked_once_even_in_a_cycle() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src.join("some"), 20, 100);
    for name in ["up", "some/snapshot", "disk", "up-and-up"] {
        tree::make_dir(src.join(name));
    }
    let bind = |from: &Path, to: &str, how: &str| {
        let to = src.join(to);
        run_or_panic("mount", [how.as_ref(), from.as_os_str(), to.as_os_str()]);
        UnmountOnDrop(to)
    };
    let _disk = Removable::mount(cluster.data_path("disk-of-source"), src.join("disk"));
    write_many_files(&src.join("disk/more"), 20, 100);
    let mounted = [
        // The source in itself, twice, the second time with what is mounted in it.
        bind(&src, "up", "--bind"),
        bind(&src, "up-and-up", "--rbind"),
        bind(&src.join("some"), "some/snapshot", "--bind"),
    ];
    run_or_panic("mount", ["-o".as_ref(), "remount,bind,ro".as_ref(), mounted[2].0.as_os_str()]);
    assert!(src.join("up-and-up/disk/more").exists(), "what is mounted is seen there");
    assert_undamaged(&cluster, &cluster.submit(&src, &dst), &src, &dst);
    drop(mounted);
}

/// Something that is mounted, until this is dropped.
struct UnmountOnDrop(PathBuf);

impl Drop for UnmountOnDrop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Sets how many descriptors a process may have open; `None`: as many as it was given.
fn limit_descriptors(process: &Process, most: Option<usize>) {
    let hard = most.is_none().then(|| {
        let limits = fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(4).unwrap().to_owned()
    });
    let soft = most.map_or_else(|| hard.unwrap(), |most| most.to_string());
    run_or_panic("prlimit", ["--pid", &process.pid().to_string(), &format!("--nofile={soft}:")]);
}

#[test]
fn processes_out_of_descriptors_wait_and_continue() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    for name in ["a", "b"] {
        limit_descriptors(process_of_agent(&mut cluster, name), Some(1));
    }
    for name in ["a", "b"] {
        await_error(&cluster, name);
    }
    for name in ["a", "b"] {
        limit_descriptors(process_of_agent(&mut cluster, name), None);
    }
    let master = &cluster.master;
    limit_descriptors(&master.process, Some(1));
    await_true("the master finds it", || {
        let _ = TcpStream::connect(master.address()).unwrap();
        master.process.log().contains("a connection can't be accepted")
    });
    limit_descriptors(&master.process, None);
    assert_undamaged(&cluster, &id, &src, &dst);
}

/// With no try to spare, and for longer than all of them would take.
#[test]
fn no_file_fails_because_an_agent_is_out_of_descriptors() {
    for name in ["a", "b"] {
        let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 1}");
        let (src, dst) = cluster.add_source_and_destination();
        let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
        limit_descriptors(process_of_agent(&mut cluster, name), Some(1));
        await_error(&cluster, name);
        await_reason(&cluster, &id, &format!("{name} (ERROR)"));
        limit_descriptors(process_of_agent(&mut cluster, name), None);
        assert_undamaged(&cluster, &id, &src, &dst);
        let log = process_of_agent(&mut cluster, name).log();
        assert!(log.contains("it accepts no work until it can"), "{log}");
    }
}

/// A listing that begins while nothing can be opened is put off, not given up.
#[test]
fn a_source_is_listed_completely_while_its_agent_is_out_of_descriptors() {
    let mut cluster = Cluster::start_with(StoreKind::Embedded, "defaults: {max_retries: 1}");
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 2_000, 10);
    limit_descriptors(process_of_agent(&mut cluster, "a"), Some(1));
    let id = cluster.submit(&src, &dst);
    await_error(&cluster, "a");
    await_reason(&cluster, &id, "a (ERROR)");
    limit_descriptors(process_of_agent(&mut cluster, "a"), None);
    assert_undamaged(&cluster, &id, &src, &dst);
}

/// A number that the kernel has of a process.
fn status_field(process: &Process, what: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(what)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// … of its memory, in bytes.
fn memory_bytes(process: &Process, what: &str) -> usize {
    status_field(process, what) << 10
}

fn open_descriptors(process: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

/// So many connections to a port, each with an incomplete request. The caller does not wait for replies.
fn open_connections(port: u16, many: usize) -> Vec<Socket> {
    let to = SocketAddr::from(([127, 0, 0, 1], port)).into();
    let connect = |_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to);
        let _ = socket.send(b"POST /");
        socket
    };
    (0..many).map(connect).collect()
}

#[test]
fn an_agent_with_thousands_of_connections_stays_within_its_bounds_and_continues_sending() {
    // More wait in the kernel; and so many requests are executed at a time, each with a thread.
    const CONNECTIONS: usize = 512;
    const THREADS: usize = 32;
    const FLOOD: usize = 2_000;
    run_or_panic("prlimit", ["--pid", &std::process::id().to_string(), "--nofile=4096:"]);
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    let workers = cluster.master.get("/workers").json();
    let b = workers["active"].as_array().unwrap().iter().find(|w| w["worker_id"] == "b").unwrap();
    let port = b["data_plane_endpoints"][0]["port"].as_u64().unwrap() as u16;
    let process = &cluster.agents["b"].process;
    let (threads, open) = (status_field(process, "Threads:"), open_descriptors(process));
    let flooding = open_connections(port, FLOOD);
    let mut most = (0, 0);
    let further = cluster.progress(&id).transferred_bytes + 8 * MIB as u64;
    await_true("as many as may are connected, and the sync went on", || {
        let now = (status_field(process, "Threads:"), open_descriptors(process));
        most = (most.0.max(now.0), most.1.max(now.1));
        most.1 >= CONNECTIONS && cluster.progress(&id).transferred_bytes > further
    });
    assert!(most.0 <= threads + THREADS, "{threads} threads before, then {}", most.0);
    assert!(most.1 <= open + CONNECTIONS + 32, "{open} descriptors before, then {}", most.1);
    drop(flooding);
    assert_undamaged(&cluster, &id, &src, &dst);
    let process = &cluster.agents["b"].process;
    await_true("what was opened is closed", || open_descriptors(process) <= open + 32);
}

#[test]
fn an_agent_without_free_memory_does_no_damage() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let id = cluster.submit_and_await_partial(&src, &dst, LARGE_FILE_AND_LIMIT, json!({}));
    for name in ["a", "b"] {
        let process = process_of_agent(&mut cluster, name);
        let limit = format!("--as={}:", memory_bytes(process, "VmSize:"));
        run_or_panic("prlimit", ["--pid", &process.pid().to_string(), &limit]);
    }
    let further = cluster.progress(&id).transferred_bytes + 24 * MIB as u64;
    await_true("it ended, or went on all the same", || {
        let all = cluster.agents.values_mut();
        all.into_iter().any(|agent| agent.process.try_exit_status().is_some())
            || cluster.master.progress(&id).is_some_and(|s| s.transferred_bytes > further)
    });
    // Whatever has come of them: aborted is as killed.
    cluster.agents.values_mut().for_each(|agent| agent.restart());
    assert_undamaged(&cluster, &id, &src, &dst);
}

#[test]
fn memory_stays_within_its_bound_for_any_content() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    cluster.add_agent_with("a", &[&src], User::Same, "buffer_memory: 8MiB\nslots: 16");
    cluster.add_agent_with("b", &[&dst], User::Same, "buffer_memory: 8MiB\nslots: 16");
    for i in 0..3 {
        write_file(src.join(format!("large{i}")), random_bytes(32 * MIB, i));
    }
    write_many_files(&src, 1_000, 3_000);
    let id = cluster.submit_with(&src, &dst, json!({"chunk_size_mb": 8}));
    assert_complete(&cluster.await_end(&id), census(&src));
    assert_same(&src, &dst, exact_comparison());
    for (name, agent) in &cluster.agents {
        let most = memory_bytes(&agent.process, "VmHWM:");
        eprintln!("{name}: {most}");
        assert!(most < 96 * MIB, "{name} took {most} bytes");
    }
}

/// Runs `ctl copy` where a shell has prepared namespaces of its own.
fn copy_after(prepare: &str, namespaces: &[&str]) -> (CommandOutput, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let (src, dst) = (tree::make_dir(home.path().join("src")), home.path().join("dst"));
    write_many_files(&src, 20, 3_000);
    let program = ctl_binary(User::Same, home.path());
    let mut command = clean_command(Path::new("unshare"), home.path(), User::Same);
    command.args(namespaces).args(["sh", "-c", &format!("{prepare} exec \"$@\""), "sh"]);
    command.arg(program).arg("copy").arg(&src).arg(&dst);
    let ran = RunningCommand::start(command, None).finish(MAX_WAIT);
    if ran.code == Some(0) {
        assert_same(&src, &dst, exact_comparison());
    }
    (ran, home)
}

#[test]
fn a_copy_without_any_network_names_what_is_missing_and_one_with_loopback_alone_works() {
    let (ran, _home) = copy_after("", &["--net"]);
    let err = ran.assert_exit_code(5).stderr_text();
    assert!(
        err.contains("loopback interface is down") && err.contains("ip link set lo up"),
        "{err}"
    );
    assert!(!err.contains("ctl master"), "{err}");
    copy_after("ip link set lo up &&", &["--net"]).0.assert_exit_code(0);
}

#[test]
fn a_copy_without_proc_works() {
    copy_after("mount -t tmpfs none /proc &&", &["--mount"]).0.assert_exit_code(0);
}
