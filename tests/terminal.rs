//! The command line in surroundings that are not as usual: odd arguments, odd terminals, signals that come
//! twice, a port that is taken, a directory that is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use support::MAX_WAIT;
use support::cluster::{Cluster, StoreKind};
use support::ctl::ctl;
use support::process::{CommandOutput, Process, User, clean_command, ctl_binary};
use support::tools::run_or_panic;
use support::tree::{
    assert_same, chmod, exact_comparison, make_dir, random_bytes, write_file, write_many_files,
    write_unusual_tree,
};

/// A directory for one test.
fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("longhaul-cli-").tempdir().unwrap()
}

/// Runs a line of shell in which `$ctl` is the program.
fn run_shell(line: &str, at: &Path) -> CommandOutput {
    let mut command = clean_command(Path::new("sh"), at, User::Same);
    command.args(["-c", line]).current_dir(at).env("ctl", ctl_binary(User::Same, at));
    let ran = command.stdin(Stdio::null()).output().unwrap();
    CommandOutput { code: ran.status.code(), stdout: ran.stdout, stderr: ran.stderr }
}

#[test]
fn empty_arguments_are_refused_and_a_double_dash_allows_names_with_a_dash() {
    let home = home();
    let at = home.path();
    for line in [
        "$ctl copy '' x",
        "$ctl copy x ''",
        "$ctl copy '' ''",
        "$ctl sync submit '' /b --master-url http://127.0.0.1:1",
        "$ctl sync wait '' --master-url http://127.0.0.1:1",
        "$ctl ''",
    ] {
        let ran = run_shell(line, at);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{line}: {}", ran.stderr_text());
        ran.assert_exit_code(2);
    }
    write_many_files(&at.join("-rf"), 3, 100);
    let odd_name = OsStr::from_bytes(b"--\xff");
    run_shell("$ctl copy -- -rf --help", at).assert_exit_code(0);
    assert_same(&at.join("-rf"), &at.join("--help"), exact_comparison());
    let mut copy = ctl(["copy", "--", "-rf"]).arg(odd_name).command();
    assert!(copy.current_dir(at).output().unwrap().status.success());
    assert_same(&at.join("-rf"), &at.join(odd_name), exact_comparison());
    // Without them it is an option that there is not.
    run_shell("$ctl copy -rf x", at).assert_exit_code(2);
}

#[test]
fn output_for_every_terminal_has_whole_words_and_no_panic() {
    let home = home();
    let at = home.path();
    write_file(at.join("src/large"), random_bytes(8 << 20, 1));
    write_file(at.join("src").join(OsStr::from_bytes(b"not \xff utf-8 \x1b[2J")), "x");
    // A pseudo terminal by `script`; COLUMNS does not count, what the terminal says does.
    for (what, set, escapes) in [
        ("dumb", "TERM=dumb LANG=C", false),
        ("narrow", "stty cols 1; TERM=xterm LANG=C.UTF-8", true),
        ("no size", "stty cols 0 rows 0; TERM=xterm LANG=C", true),
        ("no TERM", "unset TERM; LANG=C", false),
    ] {
        let line = format!("script -qefc '{set} $ctl copy src \"{what}\"' /dev/null");
        let ran = run_shell(&line, at);
        let text = ran.stdout_text();
        assert!(!text.contains("panicked"), "{what}: {text:?}");
        assert!(escapes || !text.contains('\x1b'), "{what}: {text:?}");
        assert!(!text.contains("\x1b[2J"), "{what}: a name drives the terminal: {text:?}");
        ran.assert_exit_code(0);
        assert_same(&at.join("src"), &at.join(what), exact_comparison());
    }
}

#[test]
fn a_list_fits_its_terminal_and_is_complete_in_a_pipe() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let paths = ["/lustre/project/scratch/run42", "/archive/2026/project/run42"].map(Path::new);
    let ids = [cluster.submit(paths[0], paths[1]), cluster.submit(paths[1], paths[0])];
    let run = |set: &str| {
        let list = format!("{set} $ctl sync list --master-url {}", cluster.master.url());
        run_shell(&format!("script -qefc '{list}' /dev/null"), cluster.home())
            .assert_exit_code(0)
            .stdout_text()
    };
    for (set, width) in [
        ("stty cols 40;", 40),
        ("stty cols 80;", 80),
        ("stty cols 120;", 120),
        ("stty cols 200; COLUMNS=60", 60),
    ] {
        let text = run(set);
        let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).collect();
        assert!(lines.iter().all(|line| line.chars().count() <= width), "{set}\n{text}");
        let rows = lines.iter().filter(|line| !line.starts_with(' ') && line.contains("QUEUED"));
        assert_eq!(rows.count(), 2, "{set}\n{text}");
        // Below each row its reason, in as many lines as it takes, but no more than three.
        let below = lines.iter().map(|line| line.starts_with("    ")).collect::<Vec<_>>();
        let reasons: Vec<_> = below.chunk_by(|a, b| a == b).filter(|lines| lines[0]).collect();
        assert!(reasons.len() == 2 && reasons.iter().all(|r| r.len() <= 3), "{set}\n{text}");
        for id in &ids {
            let named = |line: &&&str| {
                line.split(' ').next().is_some_and(|w| w.len() >= 8 && id.starts_with(w))
            };
            let row = lines.iter().find(named).unwrap();
            assert!(!row.contains(id.as_str()), "{set}: {row}");
            let short = row.split(' ').next().unwrap();
            assert!(id.starts_with(short), "{short} of {id}");
            let shown =
                cluster.ctl(["sync", "status", short]).run().assert_exit_code(0).stdout_text();
            assert!(shown.contains(id.as_str()), "{shown}");
        }
    }
    let pipe =
        cluster.ctl(["sync", "list"]).env("COLUMNS", "40").run().assert_exit_code(0).stdout_text();
    for id in &ids {
        assert!(pipe.lines().any(|line| line.starts_with(id.as_str())), "{pipe}");
    }
}

#[test]
fn a_unique_id_prefix_names_a_sync() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for id in [
        "01a22a08-9479-7b34-adae-dd6a21c3b9a0",
        "01a22a08-9479-7b34-adae-dd6a21c3b9b0",
        "01a22a08-9479-7b34-adae-dd6a21c3b9",
    ] {
        cluster.ctl(["sync", "submit", "/a", "/b", "--id", id]).run().assert_exit_code(0);
    }
    let sync = |args: &[&str]| cluster.ctl(["sync"]).args(args).run();
    // An id is itself, whatever begins so; too short a beginning names nothing.
    assert!(
        sync(&["cancel", "01a22a08-9479-7b34-adae-dd6a21c3b9"])
            .assert_exit_code(0)
            .stdout_text()
            .starts_with("Sync 01a22a08-9479-7b34-adae-dd6a21c3b9 is")
    );
    let said =
        sync(&["delete", "01a22a08-9479-7b34-adae-dd6a21c3b9"]).assert_exit_code(0).stdout_text();
    assert!(said.starts_with("Sync 01a22a08-9479-7b34-adae-dd6a21c3b9 is deleted"), "{said}");
    sync(&["status", "01a22a0"]).assert_exit_code(3);
    // Two begin so now: nothing is done to either.
    for verb in ["status", "wait", "pause", "cancel", "delete", "files", "manifest", "retry"] {
        let err =
            sync(&[verb, "01a22a08-9479-7b34-adae-dd6a21c3b9"]).assert_exit_code(2).stderr_text();
        for part in [
            "01a22a08-9479-7b34-adae-dd6a21c3b9a0",
            "01a22a08-9479-7b34-adae-dd6a21c3b9b0",
            "more characters",
        ] {
            assert!(err.contains(part), "{verb}: {part} in {err}");
        }
    }
    sync(&["delete", "01a22a08-9479-7b34-adae-dd6a21c3b9", "--ignore-not-found"])
        .assert_exit_code(0);
    for id in ["01a22a08-9479-7b34-adae-dd6a21c3b9a0", "01a22a08-9479-7b34-adae-dd6a21c3b9b0"] {
        assert_eq!(cluster.progress(id).state.as_str(), "QUEUED");
    }
    for (args, code) in [
        (&["status", "01a22a08-9479-7b34-adae-dd6a21c3b9a"][..], 0),
        (&["pause", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 0),
        (&["resume", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 0),
        (&["set", "01a22a08-9479-7b34-adae-dd6a21c3b9a", "--bwlimit", "1G"], 0),
        (&["wait", "01a22a08-9479-7b34-adae-dd6a21c3b9a", "--timeout", "0"], 124),
        (&["files", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 1),
        (&["manifest", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 1),
        (&["verify", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 1),
        (&["cancel", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 0),
        (&["retry", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 0),
        (&["delete", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 0),
        (&["delete", "01a22a08-9479-7b34-adae-dd6a21c3b9a"], 3),
    ] {
        let ran = sync(args).assert_exit_code(code);
        let said = ran.stdout_text() + &ran.stderr_text();
        let named = code == 0 || code == 124;
        assert!(
            !named || said.contains("01a22a08-9479-7b34-adae-dd6a21c3b9a0"),
            "{args:?}: {said}"
        );
    }
    assert_eq!(cluster.progress("01a22a08-9479-7b34-adae-dd6a21c3b9b0").state.as_str(), "QUEUED");
    let said =
        sync(&["delete", "01a22a08-9479-7b34-adae-dd6a21c3b9b0"]).assert_exit_code(0).stdout_text();
    // A given id is printed in full.
    cluster.ctl(["sync", "submit", "/a", "/b", "--id", "nightly-10"]).run().assert_exit_code(0);
    sync(&["delete", "nightly-1"]).assert_exit_code(3);
    assert!(said.contains("had not ended: it is cancelled and deleted"), "{said}");
}

#[test]
fn closed_streams_are_not_an_error() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let (at, url) = (cluster.home(), cluster.master.url());
    write_file(at.join("from/file"), "x");
    for line in [
        "$ctl sync list --master-url URL >&-",
        "$ctl sync list --master-url URL <&-",
        "$ctl sync list --master-url URL 2>&-",
        "$ctl sync list --master-url URL <&- >&- 2>&-",
        "$ctl copy from to <&- >&- 2>&-",
    ] {
        let ran = run_shell(&line.replace("URL", &url), at).assert_exit_code(0);
        assert!(!ran.stderr_text().contains("panicked"), "{line}: {}", ran.stderr_text());
    }
    // What would have been a stream was not written into a file that is copied.
    assert_same(&at.join("from"), &at.join("to"), exact_comparison());
}

#[test]
fn a_second_interrupt_ends_the_waiting_at_once() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let args = ["sync", "submit", "/a", "/b", "--wait", "--id", "slow", "--cancel-on-interrupt"];
    let mut waiting = cluster.ctl(args).start();
    waiting.await_stderr("it waits", |said| said.contains("state=QUEUED"));
    // So that the cancel has no answer.
    cluster.master.process.freeze();
    waiting.signal(Signal::INT);
    waiting.await_stderr("it says what it does", |said| said.contains("cancelling"));
    let asked = Instant::now();
    waiting.signal(Signal::INT);
    waiting.finish(MAX_WAIT).assert_exit_code(130);
    // Else it goes on for as long as the master does not answer.
    assert!(asked.elapsed() < MAX_WAIT / 3, "{:?}", asked.elapsed());
    cluster.master.process.thaw();
}

#[test]
fn a_copy_that_is_interrupted_twice_ends_and_can_be_run_again() {
    let home = home();
    let (src, dst) = (make_dir(home.path().join("src")), home.path().join("dst"));
    write_file(src.join("large"), random_bytes(200 << 20, 3));
    let copy = ctl(["copy", "--bwlimit", "64MiB/s"]).arg(&src).arg(&dst);
    let mut run = copy.start();
    run.await_stderr("it is in the middle", |_| !support::tree::part_files(&dst).is_empty());
    run.signal(Signal::INT);
    run.signal(Signal::INT);
    run.finish(MAX_WAIT).assert_exit_code(130);
    assert!(!dst.join("large").exists(), "what is not complete has no name");
    ctl(["copy"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert_same(&src, &dst, exact_comparison());
    assert!(support::tree::part_files(&dst).is_empty());
}

#[test]
fn a_removed_working_directory_and_few_descriptors_work_or_are_reported() {
    let home = home();
    let at = home.path();
    write_many_files(&at.join("src"), 300, 1_000);
    write_unusual_tree(&at.join("src/odd"));
    write_file(at.join("src/large"), random_bytes(20 << 20, 1));
    let (src, gone) = (at.join("src"), at.join("gone"));
    let line = format!("mkdir gone; cd gone; rmdir ../gone; $ctl copy {0} {0}.gone", src.display());
    run_shell(&line, at).assert_exit_code(0);
    assert!(!gone.exists());
    assert_same(&src, &at.join("src.gone"), exact_comparison());
    // A relative path leads nowhere from there, and it says so.
    let said = run_shell("mkdir gone; cd gone; rmdir ../gone; $ctl copy src dst", at);
    assert!(
        !said.stderr.is_empty() && !said.stderr_text().contains("panicked"),
        "{}",
        said.stderr_text()
    );
    assert_ne!(said.code, Some(0));
    // So few are too few for a copy, and are enough for a question.
    let few = |files: usize, rest: &str| {
        run_shell(&format!("prlimit --nofile={files}:{files} {rest}"), at)
    };
    let ran = few(16, "$ctl copy src few").assert_exit_code(78);
    assert!(
        ran.stderr_text().contains("16 open files") && ran.stderr_text().contains("ulimit"),
        "{}",
        ran.stderr_text()
    );
    few(64, "$ctl copy src few").assert_exit_code(0);
    assert_same(&src, &at.join("few"), exact_comparison());
    let cluster = Cluster::start(StoreKind::Embedded);
    few(16, &format!("$ctl sync list --master-url {}", cluster.master.url())).assert_exit_code(0);
}

/// Starts a master that can't be started; what it said, once it has ended.
fn assert_refused(at: &Path, config: &str) -> CommandOutput {
    let config = write_file(at.join("master.yml"), config);
    ctl(["master", "--config"]).arg(config).run()
}

#[test]
fn a_master_that_cannot_listen_or_store_state_exits_with_the_reason() {
    let home = home();
    let at = home.path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let state = make_dir(at.join("state"));
    let config =
        |listen: &str, state: &Path| format!("listen: {listen}\ndata_dir: {}\n", state.display());
    let ran = assert_refused(at, &config(&address, &state));
    assert!(
        ran.stderr_text().contains(&address) && ran.stderr_text().contains("in use"),
        "{}",
        ran.stderr_text()
    );
    assert_ne!(ran.code, Some(0));
    for (what, options) in [("read-only", "ro"), ("full", "size=4k")] {
        let small = TmpfsMount::tmpfs(make_dir(at.join(what)), options);
        if what == "full" {
            let _ = fs::write(small.0.join("filler"), [1; 4096]);
        }
        let ran = assert_refused(at, &config("127.0.0.1:0", &small.0));
        let said = ran.stderr_text();
        assert!(said.contains(small.0.to_str().unwrap()), "{what}: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        assert_ne!(ran.code, Some(0), "{what}");
    }
    let no_directory = write_file(at.join("file"), "");
    let said = assert_refused(at, &config("127.0.0.1:0", &no_directory)).stderr_text();
    assert!(said.contains(no_directory.to_str().unwrap()), "{said}");
}

#[test]
fn an_agent_whose_port_is_in_use_exits_with_the_reason() {
    let home = home();
    let at = home.path();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    chmod(make_dir(at.join("data")), 0o755);
    let config = format!(
        "master_url: http://127.0.0.1:1\nworkers:\n  - worker_id: a\n    storage_paths: [{}]\n    network:\n      \
         data_plane_endpoints: [{{address: 127.0.0.1, port: {port}}}]\n",
        at.join("data").display()
    );
    let config = write_file(at.join("agent.yml"), config);
    let ran = ctl(["agent", "--worker-id", "a", "--config"]).arg(config).run();
    assert!(ran.stderr_text().contains(&format!("127.0.0.1:{port}")), "{}", ran.stderr_text());
    assert!(ran.stderr_text().contains("in use"), "{}", ran.stderr_text());
    assert_ne!(ran.code, Some(0));
}

#[test]
fn a_second_stop_signal_stops_an_agent_at_once() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(48 << 20, 1));
    let id = cluster.submit_with(
        &src,
        &dst,
        serde_json::json!({"chunk_size_mb": 16, "bwlimit": "200KiB/s"}),
    );
    cluster.await_progress(&id, "has begun", |s| s.scan_done);
    let agent: &mut Process = &mut cluster.agents.get_mut("a").unwrap().process;
    support::await_true("it has something in hand", || agent.log().contains("kind=\"range\""));
    agent.signal(Signal::TERM);
    support::await_true("it drains", || agent.log().contains("draining"));
    assert!(agent.try_exit_status().is_none(), "it lets what it has go on for a while");
    let reported = Instant::now();
    assert_eq!(agent.terminate().code(), Some(143));
    // Else it goes on for as long as its range takes, which is over a minute.
    assert!(reported.elapsed() < MAX_WAIT / 3, "{:?}", reported.elapsed());
    // As if it had been killed.
    cluster.agents.get_mut("a").unwrap().restart();
    cluster.ctl(["sync", "set", &id, "--bwlimit", "none"]).run().assert_exit_code(0);
    support::cluster::assert_complete(&cluster.await_end(&id), support::tree::census(&src));
    assert_same(&src, &dst, exact_comparison());
}

/// A file system in memory, gone when it is dropped.
struct TmpfsMount(PathBuf);

impl TmpfsMount {
    fn tmpfs(at: PathBuf, options: &str) -> TmpfsMount {
        let words = ["-t", "tmpfs", "-o", options, "none"].map(OsStr::new);
        run_or_panic("mount", words.into_iter().chain([at.as_os_str()]));
        TmpfsMount(at)
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
