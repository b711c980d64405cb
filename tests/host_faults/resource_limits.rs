//! Processes at their limits: file size, file descriptors, connections, memory; without a network or /proc.

use super::*;

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
    // So many of one address without a valid request stay open, and so many may still be closing; so many requests
    // are executed at a time, each with a thread.
    const CONNECTIONS: usize = 64;
    const CLOSING: usize = 64;
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
        most.1 >= open + CONNECTIONS / 2 && cluster.progress(&id).transferred_bytes > further
    });
    assert!(most.0 <= threads + THREADS, "{threads} threads before, then {}", most.0);
    assert!(
        most.1 <= open + CONNECTIONS + CLOSING + 32,
        "{open} descriptors before, then {}",
        most.1
    );
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
