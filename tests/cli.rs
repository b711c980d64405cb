//! The command line as scripts and people meet it: exit codes (those of paths in `roots.rs`), what stands on which
//! stream, pipes and signals, `ctl copy`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use support::cluster::{Cluster, StoreKind, free_port};
use support::ctl::{Ctl, ctl};
use support::process::{CommandOutput, User};
use support::tree::{
    ComparisonRules, assert_same, census, chmod, exact_comparison, make_dir, make_symlink,
    part_files, random_bytes, write_file, write_many_files, write_unusual_tree, written_bytes,
};
use support::{MAX_WAIT, await_true};

/// A directory for one test, which other users can look into.
fn home() -> tempfile::TempDir {
    let home = tempfile::Builder::new().prefix("longhaul-cli-").tempdir().unwrap();
    chmod(home.path(), 0o755);
    home
}

fn submit_command(cluster: &Cluster, source: &Path, destination: &Path) -> Ctl {
    cluster.ctl(["sync", "submit"]).arg(source).arg(destination)
}

/// Messages are whole lines, without anything that moves a cursor or colours.
#[track_caller]
fn assert_no_control_characters(ran: &CommandOutput) {
    for bytes in [&ran.stdout, &ran.stderr] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!bytes.contains(&0x1b) && !bytes.contains(&b'\r'), "escapes in {text:?}");
    }
    assert!(ran.stderr.is_empty() || ran.stderr.ends_with(b"\n"), "{:?}", ran.stderr_text());
}

/// A server that gives one answer to every request, whatever it is.
fn serve_response(status: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = String::new();
            let mut head = BufReader::new(stream.try_clone().unwrap());
            while head.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let _ = stream.write_all(reply.as_bytes());
        }
    });
    url
}

#[test]
fn exit_0_accepted_and_completed() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_unusual_tree(&src);
    let ran =
        submit_command(&cluster, &src, &dst).args(["--id", "run42"]).run().assert_exit_code(0);
    for part in ["Submitted", "run42", &src.display().to_string(), "ctl sync wait run42"] {
        assert!(ran.stdout_text().contains(part), "`{part}` in {}", ran.stdout_text());
    }
    let ran = cluster.ctl(["sync", "wait", "run42"]).run().assert_exit_code(0);
    assert!(ran.stdout_text().contains("COMPLETED"), "{}", ran.stdout_text());
    assert_no_control_characters(&ran);
    let ran = submit_command(&cluster, &src, &dst).arg("--wait").run().assert_exit_code(0);
    assert!(ran.stdout_text().contains("0 copied"), "{}", ran.stdout_text());
    for args in
        [&["sync", "list"][..], &["sync", "status", "run42"], &["workers", "list"], &["version"]]
    {
        let ran = cluster.ctl(args).run().assert_exit_code(0);
        assert!(!ran.stdout.is_empty());
        assert!(ran.stderr.is_empty(), "{args:?}: {}", ran.stderr_text());
        assert_no_control_characters(&ran);
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(ctl(["completion", shell]).run().assert_exit_code(0).stdout_text().contains("ctl"));
    }
}

#[test]
fn exit_1_invalid_response() {
    let url = serve_response("200 OK", "<html>not the master</html>");
    let ran = ctl(["sync", "list", "--master-url", &url]).run().assert_exit_code(1);
    assert!(ran.stderr_text().contains("--master-url"), "{}", ran.stderr_text());
    let url = serve_response("500 Internal Server Error", "{}");
    ctl(["sync", "list", "--master-url", &url]).run().assert_exit_code(1);
}

#[test]
fn exit_2_wrong_usage() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for args in [
        &["sync", "submit", "/a"][..],
        &["sync", "submit", "/a", "/b", "--chunk-size-mb", "0"],
        &["sync", "submit", "relative", "/b"],
        &["sync", "submit", "/a", "/a/b"],
        &["sync", "submit", "/a", "/b", "--no-such-option"],
        &["sync", "submit", "/a", "/b", "--timeout", "5s"],
        &["sync", "wait"],
        &["sync", "wiat", "x"],
        &[],
    ] {
        let ran = cluster.ctl(args).run().assert_exit_code(2);
        assert!(ran.stdout.is_empty(), "{args:?}: {}", ran.stdout_text());
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
    let ran = cluster.ctl(["sync", "wiat", "x"]).run();
    assert!(ran.stderr_text().contains("wait"), "what was meant: {}", ran.stderr_text());
    assert_eq!(cluster.master.get("/sync").json(), json!([]), "nothing was submitted");
    for args in [&["--help"][..], &["sync", "submit", "--help"], &["--version"]] {
        assert!(ctl(args).run().assert_exit_code(0).stderr.is_empty());
    }
}

#[test]
fn errors_quote_the_arguments() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let submit = |args: &[&str]| {
        cluster.ctl(["sync", "submit"]).args(args).run().assert_exit_code(2).stderr_text()
    };
    for (args, reported) in [
        (&["/a", "/a"][..], "error: DST: must not be the same as SRC"),
        (&["/a", "/b", "--modify-window", "1d"], "--modify-window"),
        (&["/a", "/b", "--verify", "readback", "-n"], "--verify: "),
        (&["/a", "/b", "-a"], "instead of rsync's -a: "),
        (&["/a", "host:/b"], "write the path alone, /b"),
    ] {
        let err = submit(args);
        assert!(err.contains(reported), "{args:?}: {reported} in {err}");
        assert!(!err.contains("/options/") && !err.contains("source_path"), "{args:?}: {err}");
    }
    // An option that a variable sets is not shown as one that was typed.
    let ran = cluster.ctl(["copy", "x"]).env("CTL_PROGRESS", "plain").env("CTL_OUTPUT", "json");
    let err = ran.run().assert_exit_code(2).stderr_text();
    assert!(err.contains("Usage: ctl copy") && !err.contains("--progress"), "{err}");
    cluster
        .ctl(["sync", "list"])
        .env("CTL_PROGRESS", "")
        .env("CTL_OUTPUT", "")
        .run()
        .assert_exit_code(0);
    let err =
        ctl(["sync", "list"]).env("CTL_OUTPUT", "xml").run().assert_exit_code(2).stderr_text();
    assert!(err.contains("CTL_OUTPUT `xml` must be one of table, json"), "{err}");
    ctl(["agent", "--worker-id", "w"]).run().assert_exit_code(2);
    let err = ctl(["copy", "x", "host:/b"]).run().assert_exit_code(2).stderr_text();
    assert!(err.contains("./host:/b"), "{err}");
}

#[test]
fn exit_3_unknown_sync() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for verb in ["status", "wait", "cancel", "delete"] {
        let ran = cluster.ctl(["sync", verb, "nobody"]).run().assert_exit_code(3);
        assert!(ran.stderr_text().contains("nobody"), "{}", ran.stderr_text());
    }
    cluster.ctl(["sync", "delete", "nobody", "--ignore-not-found"]).run().assert_exit_code(0);
    let home = home();
    ctl(["copy"])
        .arg(home.path().join("none"))
        .arg(home.path().join("dst"))
        .run()
        .assert_exit_code(3);
}

#[test]
fn exit_5_no_master() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in [&["sync", "list"][..], &["sync", "submit", "/a", "/b"], &["workers", "list"]] {
        let ran = ctl(args).env("CTL_MASTER_URL", &url).run().assert_exit_code(5);
        assert!(ran.stdout.is_empty() && ran.stderr_text().contains(&url), "{}", ran.stderr_text());
    }
    let url = serve_response(
        "503 Service Unavailable",
        r#"{"title":"x","status":503,"detail":"d","code":"c"}"#,
    );
    ctl(["sync", "list", "--master-url", &url]).run().assert_exit_code(5);
    // One of several that answers is enough.
    let cluster = Cluster::start(StoreKind::Embedded);
    let dead = format!("http://127.0.0.1:{}", free_port());
    let both = format!("{dead},{}", cluster.master.url());
    ctl(["sync", "list", "--master-url", &both]).run().assert_exit_code(0);
    ctl(["sync", "list"]).env("CTL_MASTER_URL", &both).run().assert_exit_code(0);
}

#[test]
fn exit_6_id_in_use() {
    let cluster = Cluster::start(StoreKind::Redis);
    let args = ["sync", "submit", "/a", "/b", "--id", "taken"];
    cluster.ctl(args).run().assert_exit_code(0);
    let ran = cluster.ctl(args).run().assert_exit_code(6);
    for part in ["taken", "QUEUED", "ctl sync delete taken"] {
        assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
    }
}

#[test]
fn exit_20_cancelled_or_deleted_while_waiting() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for verb in ["cancel", "delete"] {
        let id = format!("to-{verb}");
        let mut waiting =
            cluster.ctl(["sync", "submit", "/a", "/b", "--wait", "--id", &id]).start();
        waiting.await_stderr("it waits", |printed| printed.contains("state=QUEUED"));
        cluster.ctl(["sync", verb, &id]).run().assert_exit_code(0);
        waiting.finish(MAX_WAIT).assert_exit_code(20);
    }
    cluster.ctl(["sync", "wait", "to-cancel"]).run().assert_exit_code(20);
}

#[test]
fn exit_23_some_files_failed() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("there"), "x");
    let ran = submit_command(&cluster, &src, &dst)
        .args(["--wait", "--files-from", "-"])
        .input("there\nmissing\n")
        .run()
        .assert_exit_code(23);
    assert!(ran.stdout_text().contains("FAILED (partial)"), "{}", ran.stdout_text());
    assert!(
        ran.stderr_text().contains("missing") && ran.stderr_text().contains("(exit 23)"),
        "{}",
        ran.stderr_text()
    );
    let list = write_file(cluster.data_path("names"), "there\n");
    submit_command(&cluster, &src, &dst)
        .args(["--wait", "--files-from"])
        .arg(list)
        .run()
        .assert_exit_code(0);
}

#[test]
fn exit_78_invalid_configuration() {
    let home = home();
    let bad =
        write_file(home.path().join("bad.yml"), "listen: 127.0.0.1:0\nlisten_on: x\nlease: soon\n");
    for args in [
        &["master", "--config"][..],
        &["agent", "--worker-id", "a", "--config"],
        &["config", "check"],
    ] {
        let ran = ctl(args).arg(&bad).run().assert_exit_code(78);
        let printed = ran.stdout_text() + &ran.stderr_text();
        assert!(printed.contains("bad.yml") || printed.contains(":2"), "{args:?}: {printed}");
    }
    let ran = ctl(["config", "check"]).arg(&bad).run().assert_exit_code(78);
    let printed = ran.stdout_text() + &ran.stderr_text();
    for part in ["listen_on", "lease", "soon", "2:", "3:"] {
        assert!(printed.contains(part), "`{part}` in {printed}");
    }
    ctl(["config", "check"]).arg(home.path().join("none.yml")).run().assert_exit_code(78);
}

#[test]
fn exit_78_invalid_address_and_exit_1_unreachable_address_with_check() {
    let home = home();
    let worker = |master: &str, network: &str| {
        let storage = home.path().display();
        format!(
            "master_url: {master}\nworkers:\n  - worker_id: a\n    storage_paths: [{storage}]\n    network: {network}\n"
        )
    };
    let here = "{data_plane_endpoints: [127.0.0.1]}";
    let files = [
        "listen: 300.1.1.1:8888\n".to_owned(),
        "advertise_url: http://300.1.1.1:8888\n".to_owned(),
        "redis: {host: 300.1.1.1}\n".to_owned(),
        "redis: {url: \"redis://300.1.1.1:6379/0\"}\n".to_owned(),
        "redis: {cluster: [\"300.1.1.1:6379\"]}\n".to_owned(),
        "redis: {sentinel: {master: m, nodes: [\"300.1.1.1:26379\"]}}\n".to_owned(),
        worker("http://300.1.1.1:8888", here),
        worker("http://127.0.0.1:8888", "{data_plane_endpoints: [300.1.1.1]}"),
        worker("http://127.0.0.1:8888", "{data_plane_endpoints: [{address: 300.1.1.1, port: 9}]}"),
    ];
    for text in files {
        let path = write_file(home.path().join("bad.yml"), &text);
        let printed = ctl(["config", "check"]).arg(&path).run().assert_exit_code(78).stdout_text();
        assert!(printed.contains("error: ") && printed.contains("300.1.1.1"), "{text}{printed}");
    }
    let nobody = format!("http://127.0.0.1:{}", support::cluster::free_port());
    let path = write_file(home.path().join("good.yml"), worker(&nobody, here));
    let check =
        |more: &[&str]| ctl(["config", "check", "--worker-id", "a"]).args(more).arg(&path).run();
    let printed = check(&[]).assert_exit_code(0).stdout_text();
    assert!(printed.contains("warning: ") && printed.contains(&nobody), "{printed}");
    check(&["--strict"]).assert_exit_code(1);
}

#[test]
fn exit_78_volatile_redis() {
    let home = home();
    for (settings, named) in [
        (&["--appendonly", "no"][..], "appendonly"),
        (&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "maxmemory-policy"),
    ] {
        let redis = support::redis::RedisServer::start_with(settings);
        let state = home.path().join("state");
        let config = format!(
            "listen: 127.0.0.1:{}\ndata_dir: {}\nredis: {{url: {}}}\n",
            free_port(),
            state.display(),
            redis.url()
        );
        let config = write_file(home.path().join("master.yml"), config);
        let ran = ctl(["master", "--config"]).arg(&config).run().assert_exit_code(78);
        assert!(ran.stderr_text().contains(named), "`{named}` in {}", ran.stderr_text());
    }
}

#[test]
fn exit_124_timeout_while_the_sync_continues() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let args = ["sync", "submit", "/a", "/b", "--wait", "--timeout", "200ms", "--id", "slow"];
    let ran = cluster.ctl(args).run().assert_exit_code(124);
    assert!(ran.stderr_text().contains("ctl sync wait slow"), "{}", ran.stderr_text());
    let args = ["sync", "wait", "slow", "--timeout", "0", "--timeout-exit-code", "9"];
    cluster.ctl(args).run().assert_exit_code(9);
    assert_eq!(cluster.progress("slow").state.as_str(), "QUEUED");
}

#[test]
fn exit_130_and_143_a_signal_ends_the_command_and_not_the_sync() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let id = format!("s{code}");
        let mut waiting =
            cluster.ctl(["sync", "submit", "/a", "/b", "--wait", "--id", &id]).start();
        waiting.await_stderr("it waits", |printed| printed.contains("state=QUEUED"));
        waiting.signal(signal);
        let ran = waiting.finish(MAX_WAIT).assert_exit_code(code);
        for part in [&format!("ctl sync wait {id}"), &format!("ctl sync cancel {id}")] {
            assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
        }
        assert_eq!(cluster.progress(&id).state.as_str(), "QUEUED");
    }
    let args = ["sync", "wait", "s130", "--cancel-on-interrupt"];
    let mut waiting = cluster.ctl(args).start();
    waiting.await_stderr("it waits", |printed| printed.contains("state=QUEUED"));
    waiting.signal(Signal::INT);
    assert_ne!(waiting.finish(MAX_WAIT).code, Some(0));
    assert_eq!(cluster.progress("s130").state.as_str(), "CANCELLED");
}

#[test]
fn a_submit_reports_the_sync_that_it_waits_for() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let submit = |words: &[&str]| cluster.ctl(["sync", "submit"]).args(words).run();
    assert!(
        !submit(&["/a", "/d", "--id", "one"]).assert_exit_code(0).stdout_text().contains("note:")
    );
    for (words, note) in [
        (&["/a", "/d", "--id", "two"][..], Some("same as sync one, which is QUEUED")),
        (
            &["/b", "/d/x", "--id", "three"],
            Some("waits for sync one, which writes to /d and is QUEUED"),
        ),
        (&["/b", "/d/x", "--allow-overlap", "--id", "four"], None),
        (&["/a", "/e", "--id", "five"], None),
    ] {
        let out = submit(words).assert_exit_code(0).stdout_text();
        assert_eq!(out.contains("note:"), note.is_some(), "{out}");
        assert!(note.is_none_or(|note| out.contains(&format!("note: {note}\n"))), "{out}");
    }
    let shown = cluster.ctl(["sync", "status", "three"]).run().assert_exit_code(0).stdout_text();
    assert!(shown.contains("waits for sync one, which writes to /d and is QUEUED"), "{shown}");
    let again = cluster.progress("four");
    assert!(again.options.allow_overlap && !again.reason.unwrap().contains("waits for sync"));
    submit(&["/b", "/d/x", "--allow-overlap", "--delete"]).assert_exit_code(2);
    let mirror = serde_json::json!({"source_path": "/b", "destination_path": "/d", "options":
        {"allow_overlap": true, "delete": {}}});
    let refused = cluster.master.post("/sync", &mirror);
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("/options/allow_overlap"), "{}", refused.text());
}

#[test]
fn quiet_prints_the_id_and_nothing_else() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("x"), "x");
    let ran =
        submit_command(&cluster, &src, &dst).args(["-q", "--id", "mine"]).run().assert_exit_code(0);
    assert_eq!((ran.stdout_text().as_str(), ran.stderr_text().as_str()), ("mine\n", ""));
    let ran = submit_command(&cluster, &src, &dst).arg("-q").run().assert_exit_code(0);
    let made = ran.stdout_text();
    assert_eq!(cluster.await_end(made.trim_end()).state.as_str(), "COMPLETED");
    let ran = submit_command(&cluster, &src, &dst)
        .args(["-q", "--wait", "--id", "third"])
        .run()
        .assert_exit_code(0);
    assert_eq!((ran.stdout_text().as_str(), ran.stderr_text().as_str()), ("third\n", ""));
    let ran = cluster.ctl(["sync", "list", "-q"]).run().assert_exit_code(0);
    assert_eq!(ran.stdout_text(), format!("third\n{made}mine\n"), "newest first");
}

#[test]
fn json_output_is_the_response_body_of_the_api() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_source_and_destination();
    write_unusual_tree(&src);
    let ran = submit_command(&cluster, &src, &dst)
        .args(["--wait", "-o", "json", "--id", "j"])
        .run()
        .assert_exit_code(0);
    let body = cluster.master.get("/sync/j");
    assert_eq!(ran.stdout_text().trim_end(), body.text());
    assert_eq!(ran.json()["state"], "COMPLETED");
    for (args, path) in [(&["sync", "list"][..], "/sync"), (&["sync", "status", "j"], "/sync/j")] {
        let ran = cluster.ctl(args).args(["-o", "json"]).run().assert_exit_code(0);
        assert_eq!(ran.stdout_text().trim_end(), cluster.master.get(path).text(), "{args:?}");
    }
    let workers = cluster.ctl(["workers", "list", "-o", "json"]).run().assert_exit_code(0).json();
    assert_eq!(workers["active"].as_array().unwrap().len(), 2);
    // Programs also get the failure, in the last line on standard error.
    let ran = cluster.ctl(["sync", "status", "none", "-o", "json"]).run().assert_exit_code(3);
    let last = ran.stderr_text();
    assert!(last.contains("none"), "{last}");
    let url = format!("http://127.0.0.1:{}", free_port());
    let ran = ctl(["sync", "list", "-o", "json", "--master-url", &url]).run().assert_exit_code(5);
    let err = ran.stderr_text();
    let last: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    assert_eq!((&last["message_type"], &last["code"]), (&json!("exit_error"), &json!(5)));
}

#[test]
fn piped_progress_is_whole_lines_on_standard_error() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("large"), random_bytes(32 << 20, 1));
    write_file(src.join("name\x1b[2J"), "x");
    let ran = submit_command(&cluster, &src, &dst)
        .args(["--wait", "--id", "p", "--chunk-size-mb", "1"])
        .env("TERM", "xterm-256color")
        .run()
        .assert_exit_code(0);
    assert_no_control_characters(&ran);
    let lines: Vec<String> =
        ran.stderr_text().lines().filter(|l| l.contains("sync=p ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{}", ran.stderr_text());
    for line in &lines {
        for key in ["state=", "bytes=", "files=", "failed="] {
            assert!(line.contains(key), "{key} in {line}");
        }
        let ended = line.contains("state=COMPLETED");
        assert!(ended || !line.contains("pct=100"), "100 % before the end: {line}");
    }
    assert!(lines.last().unwrap().contains("state=COMPLETED"), "{lines:#?}");
    let ran = submit_command(&cluster, &src, &dst)
        .args(["--wait", "--progress", "none"])
        .run()
        .assert_exit_code(0);
    assert!(!ran.stderr_text().contains("state="), "{}", ran.stderr_text());
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let cluster = Cluster::start(StoreKind::Embedded);
    for i in 0..20 {
        cluster.submit(Path::new(&format!("/a/{i}")), Path::new("/b"));
    }
    for args in [
        &["sync", "list"][..],
        &["sync", "list", "-o", "json"],
        &["--help"],
        &["completion", "bash"],
    ] {
        // The reading end is closed before anything is written: nothing depends on timing.
        let mut command = cluster.ctl(args).command();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut printed = String::new();
        child.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), printed.as_str()), (Some(0), ""), "{args:?}");
    }
    // As it is typed.
    let program = env!("CARGO_BIN_EXE_ctl");
    let line = format!("'{program}' sync list | head -1; echo ${{PIPESTATUS[0]}}");
    let out = std::process::Command::new("bash")
        .args(["-c", &line])
        .env("CTL_MASTER_URL", cluster.master.url())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.starts_with("ID") && text.ends_with("\n0\n"), "{text}");
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_pipeline_of_find_and_jq_works() {
    let mut cluster = Cluster::start(StoreKind::Redis);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 30, 100);
    for i in 0..5 {
        write_file(src.join(format!("x y\n{i}.h5")), random_bytes(100, i));
    }
    let program = env!("CARGO_BIN_EXE_ctl");
    let line = format!(
        "find '{src}' -name '*.h5' -print0 | '{program}' sync submit '{src}' '{dst}' \
         --files-from - -0 --wait -o json 2>/dev/null",
        src = src.display(),
        dst = dst.display()
    );
    let out = std::process::Command::new("bash")
        .args(["-c", &line])
        .env("CTL_MASTER_URL", cluster.master.url())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let sync: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&sync["state"], &sync["files_done"]), (&json!("COMPLETED"), &json!(5)));
    assert_eq!(fs::read_dir(&dst).unwrap().count(), 5);
}

#[test]
fn every_shipped_configuration_passes_its_own_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        vec![root.join("example_master.yml"), root.join("example_agent.yml")];
    let shipped = fs::read_dir(root.join("configs")).unwrap();
    files.extend(
        shipped.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "yml")),
    );
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let ran = ctl(["config", "check"]).arg(&file).run().assert_exit_code(0);
        assert!(!ran.stdout_text().contains("error"), "{}: {}", file.display(), ran.stdout_text());
        let ran = ctl(["config", "check", "-o", "json"]).arg(&file).run().assert_exit_code(0);
        assert_eq!((&ran.json()["usable"], &ran.json()["errors"]), (&json!(true), &json!(0)));
    }
}

#[test]
fn log_levels_come_from_the_environment() {
    let home = home();
    let (port, state) = (free_port(), make_dir(home.path().join("state")));
    let config = format!("listen: 127.0.0.1:{port}\ndata_dir: {}\n", state.display());
    let config = write_file(home.path().join("m.yml"), config);
    let start = |level: &str| {
        let run = ctl(["master", "--config"]).arg(&config).env("CTL_LOG_LEVEL", level).start();
        let url = format!("127.0.0.1:{port}");
        await_true("it serves", || {
            support::http::try_request(&url, "GET", "/healthz", &[], None).is_some()
        });
        run.signal(Signal::TERM);
        run.finish(MAX_WAIT).assert_exit_code(0).stderr_text()
    };
    assert_eq!(start("error"), "");
    assert!(start("info").contains("INFO"));
    assert!(start("debug").contains("DEBUG"));
    let ran = ctl(["master", "--config"])
        .arg(&config)
        .env("CTL_LOG_LEVEL", "loud")
        .run()
        .assert_exit_code(78);
    assert!(ran.stderr_text().contains("CTL_LOG_LEVEL"), "{}", ran.stderr_text());
    // Where Redis is comes from the environment as well.
    let url = format!("redis://127.0.0.1:{}/x", free_port());
    let ran =
        ctl(["master", "--config"]).arg(&config).env("REDIS_URL", url).run().assert_exit_code(78);
    assert!(ran.stderr_text().contains("REDIS_URL"), "{}", ran.stderr_text());
}

#[test]
fn copy_needs_no_setup_and_a_second_run_transfers_nothing() {
    let home = home();
    let (src, dst) = (home.path().join("src"), home.path().join("new/dst"));
    write_unusual_tree(&src);
    write_many_files(&src.join("many"), 300, 2_000);
    write_file(src.join("large"), random_bytes(70 << 20, 2));
    let run = || {
        ctl(["copy"])
            .arg(&src)
            .arg(&dst)
            .args(["-o", "json", "--chunk-size-mb", "4"])
            .run()
            .assert_exit_code(0)
    };
    let first = run().json();
    assert_eq!(first["state"], "COMPLETED");
    assert_same(&src, &dst, exact_comparison());
    let there = census(&src);
    assert_eq!(
        (&first["files_done"], &first["transferred_bytes"]),
        (&json!(there.files), &json!(there.bytes))
    );
    let second = run().json();
    assert_eq!((&second["files_done"], &second["transferred_bytes"]), (&json!(0), &json!(0)));
    assert_eq!(second["files_skipped"], json!(there.files));
    assert_same(&src, &dst, exact_comparison());
    // For people: a result line, and progress elsewhere.
    let ran = ctl(["copy"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert!(
        ran.stdout_text().contains("COMPLETED") && ran.stdout_text().contains("0 copied"),
        "{}",
        ran.stdout_text()
    );
    assert_no_control_characters(&ran);
    let ran = ctl(["copy", "-q"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert_eq!(ran.stderr_text(), "");
}

#[test]
fn copy_accepts_relative_paths_files_lists_and_unusual_names() {
    let home = home();
    let src = make_dir(home.path().join("src"));
    write_file(src.join("-rf"), "minus");
    write_file(src.join("b\n"), "newline");
    let at_home = |args: &[&str]| {
        let mut command = ctl(args).command();
        command.current_dir(home.path());
        support::process::RunningCommand::start(command, Some(b"-rf\0")).finish(MAX_WAIT)
    };
    at_home(&["copy", "src", "dst"]).assert_exit_code(0);
    assert_same(&src, &home.path().join("dst"), exact_comparison());
    at_home(&["copy", "src/", "listed/", "--files-from", "-", "-0"]).assert_exit_code(0);
    assert_eq!(fs::read_dir(home.path().join("listed")).unwrap().count(), 1);
    // The advice is to copy the same again, not everything.
    write_file(home.path().join("a list"), b"-rf\0none\0");
    let ran =
        at_home(&["copy", "src", "listed", "--files-from", "a list", "-0"]).assert_exit_code(23);
    assert!(
        ran.stderr_text().contains("/listed --files-from 'a list' -0 "),
        "{}",
        ran.stderr_text()
    );
    at_home(&["copy", "src/-rf", "one"]).assert_exit_code(0);
    assert_same(&src.join("-rf"), &home.path().join("one"), exact_comparison());
    at_home(&["copy", "src", "src/below"]).assert_exit_code(2);
    at_home(&["copy", "src", "src"]).assert_exit_code(2);
    // A name that is no UTF-8, on the command line itself.
    let odd = std::ffi::OsStr::from_bytes(b"\xff src");
    let odd = make_dir(home.path().join(odd));
    write_file(odd.join("x"), "x");
    ctl(["copy"]).arg(&odd).arg(home.path().join("from odd")).run().assert_exit_code(0);
    assert_same(&odd, &home.path().join("from odd"), exact_comparison());
    // SRC may be a link to the tree; links in the tree stay links.
    let to = make_symlink(home.path().join("to src"), "src");
    ctl(["copy"]).arg(to).arg(home.path().join("through a link")).run().assert_exit_code(0);
    assert_same(&src, &home.path().join("through a link"), exact_comparison());
}

#[test]
fn copy_with_an_unreadable_file_exits_with_23_and_copies_the_others() {
    let home = home();
    let (src, dst) = (make_dir(home.path().join("src")), make_dir(home.path().join("dst")));
    write_many_files(&src, 20, 300);
    let secret = write_file(src.join("secret"), "s");
    User::Ordinary.chown_recursive(&src);
    User::Ordinary.chown(&dst);
    chmod(&secret, 0);
    let as_somebody = || ctl(["copy"]).arg(&src).arg(&dst).user(User::Ordinary, home.path());
    let ran = as_somebody().run().assert_exit_code(23);
    for part in ["EACCES", "secret", "(exit 23)"] {
        assert!(ran.stderr_text().contains(part), "`{part}` in {}", ran.stderr_text());
    }
    assert!(
        ran.stdout_text().contains("FAILED (partial)") && ran.stdout_text().contains("20 copied"),
        "{}",
        ran.stdout_text()
    );
    let document = as_somebody().args(["-o", "json"]).run().assert_exit_code(23).json();
    assert_eq!((&document["state"], &document["outcome"]), (&json!("FAILED"), &json!("partial")));
    chmod(&secret, 0o600);
    as_somebody().run().assert_exit_code(0);
    assert_same(&src, &dst, ComparisonRules { owners: false, extra: false });
}

#[test]
fn an_interrupted_copy_leaves_a_part_file_that_the_next_run_uses() {
    let home = home();
    let (src, dst) = (make_dir(home.path().join("src")), home.path().join("dst"));
    let large = write_file(src.join("large"), random_bytes(160 << 20, 3));
    let mut run = ctl(["copy", "--bwlimit", "64MiB/s"]).arg(&src).arg(&dst).start();
    let arrived = || part_files(&dst).iter().map(|part| written_bytes(part)).sum::<u64>();
    run.await_stderr("it is in the middle", |_| arrived() > 0);
    run.signal(Signal::INT);
    let ran = run.finish(MAX_WAIT).assert_exit_code(130);
    assert!(ran.stderr_text().contains("ctl copy"), "how to go on: {}", ran.stderr_text());
    // What is not complete has no name.
    assert!(!dst.join("large").exists());
    assert!(arrived() < fs::metadata(large).unwrap().len());
    assert_eq!(part_files(&dst).len(), 1);
    ctl(["copy"]).arg(&src).arg(&dst).run().assert_exit_code(0);
    assert_same(&src, &dst, exact_comparison());
    assert!(part_files(&dst).is_empty());
}

#[test]
fn a_destination_is_verified_against_a_list_without_a_master() {
    let home = home();
    let tree = make_dir(home.path().join("tree"));
    write_file(tree.join("right"), "x");
    write_file(tree.join("two\nlines"), "x");
    let digest = blake3::hash(b"x").to_hex();
    let list = format!("{digest}  right\n\\{digest}  two\\nlines\n");
    let list = write_file(home.path().join("list"), list);
    let verify = || ctl(["sync", "verify", "--manifest"]).arg(&list).arg(&tree);
    let ran = verify().run().assert_exit_code(0);
    assert!(
        ran.stdout.is_empty() && ran.stderr_text().contains("2 files"),
        "{}",
        ran.stderr_text()
    );
    write_file(tree.join("two\nlines"), "y");
    write_file(tree.join("more"), "");
    let ran = verify().run().assert_exit_code(23);
    let mut printed: Vec<String> = ran.stdout_text().lines().map(str::to_owned).collect();
    printed.sort();
    assert_eq!(printed, ["changed     two\\#012lines", "extra       more"]);
    assert!(ran.stderr_text().ends_with("(exit 23)\n"), "{}", ran.stderr_text());
    let ran = verify().args(["-o", "json", "--ignore-extra", "-q"]).run().assert_exit_code(23);
    assert_eq!(ran.json(), json!({"path": "two\nlines", "state": "changed"}));
    assert_eq!(ran.stderr_text(), "");
    let piped = ctl(["sync", "verify", "--manifest", "-"]).arg(&tree).arg("--ignore-extra");
    piped.input(format!("{digest}  right\n{digest}  gone\n")).run().assert_exit_code(23);
    ctl(["sync", "verify", "--manifest"])
        .arg(&list)
        .arg(home.path().join("none"))
        .run()
        .assert_exit_code(3);
    ctl(["sync", "verify", "--manifest"]).arg(&tree).arg(&tree).run().assert_exit_code(1);
    ctl(["sync", "verify", "a", "b", "--manifest"]).arg(&list).run().assert_exit_code(2);
}
