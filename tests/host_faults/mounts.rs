//! File systems and paths that are unmounted, mounted or renamed while agents use them.

use super::*;

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
