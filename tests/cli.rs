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
use support::cluster::{Cluster, On, free_port};
use support::ctl::{Ctl, ctl};
use support::process::{Ran, User};
use support::tree::{
    Compare, assert_same, census, chmod, dir, file, link, many, noise, odd, part_files, strict,
    written,
};
use support::{PATIENCE, await_that};

/// A directory for one test, which other users can look into.
fn home() -> tempfile::TempDir {
    let home = tempfile::Builder::new().prefix("longhaul-cli-").tempdir().unwrap();
    chmod(home.path(), 0o755);
    home
}

fn submit(cluster: &Cluster, source: &Path, destination: &Path) -> Ctl {
    cluster.ctl(["sync", "submit"]).arg(source).arg(destination)
}

/// Messages are whole lines, without anything that moves a cursor or colours.
#[track_caller]
fn assert_plain(ran: &Ran) {
    for bytes in [&ran.stdout, &ran.stderr] {
        let text = String::from_utf8_lossy(bytes);
        assert!(!bytes.contains(&0x1b) && !bytes.contains(&b'\r'), "escapes in {text:?}");
    }
    assert!(ran.stderr.is_empty() || ran.stderr.ends_with(b"\n"), "{:?}", ran.err());
}

/// A server that gives one answer to every request, whatever it is.
fn answers(status: &str, body: &str) -> String {
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
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    odd(&src);
    let ran = submit(&cluster, &src, &dst).more(["--id", "run42"]).run().exits(0);
    for part in ["Submitted", "run42", &src.display().to_string(), "ctl sync wait run42"] {
        assert!(ran.out().contains(part), "`{part}` in {}", ran.out());
    }
    let ran = cluster.ctl(["sync", "wait", "run42"]).run().exits(0);
    assert!(ran.out().contains("COMPLETED"), "{}", ran.out());
    assert_plain(&ran);
    let ran = submit(&cluster, &src, &dst).arg("--wait").run().exits(0);
    assert!(ran.out().contains("0 copied"), "{}", ran.out());
    for args in
        [&["sync", "list"][..], &["sync", "status", "run42"], &["workers", "list"], &["version"]]
    {
        let ran = cluster.ctl(args).run().exits(0);
        assert!(!ran.stdout.is_empty());
        assert!(ran.stderr.is_empty(), "{args:?}: {}", ran.err());
        assert_plain(&ran);
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(ctl(["completion", shell]).run().exits(0).out().contains("ctl"));
    }
}

#[test]
fn exit_1_an_answer_that_is_none() {
    let url = answers("200 OK", "<html>not the master</html>");
    let ran = ctl(["sync", "list", "--master-url", &url]).run().exits(1);
    assert!(ran.err().contains("--master-url"), "{}", ran.err());
    let url = answers("500 Internal Server Error", "{}");
    ctl(["sync", "list", "--master-url", &url]).run().exits(1);
}

#[test]
fn exit_2_wrong_usage() {
    let cluster = Cluster::start(On::Embedded);
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
        let ran = cluster.ctl(args).run().exits(2);
        assert!(ran.stdout.is_empty(), "{args:?}: {}", ran.out());
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
    let ran = cluster.ctl(["sync", "wiat", "x"]).run();
    assert!(ran.err().contains("wait"), "what was meant: {}", ran.err());
    assert_eq!(cluster.master.get("/sync").json(), json!([]), "nothing was submitted");
    for args in [&["--help"][..], &["sync", "submit", "--help"], &["--version"]] {
        assert!(ctl(args).run().exits(0).stderr.is_empty());
    }
}

#[test]
fn errors_name_what_was_typed() {
    let cluster = Cluster::start(On::Embedded);
    let submit = |args: &[&str]| cluster.ctl(["sync", "submit"]).more(args).run().exits(2).err();
    for (args, told) in [
        (&["/a", "/a"][..], "error: DST: must not be the same as SRC"),
        (&["/a", "/b", "--modify-window", "1d"], "--modify-window"),
        (&["/a", "/b", "--verify", "readback", "-n"], "--verify: "),
        (&["/a", "/b", "-a"], "instead of rsync's -a: "),
        (&["/a", "host:/b"], "write the path alone, /b"),
    ] {
        let err = submit(args);
        assert!(err.contains(told), "{args:?}: {told} in {err}");
        assert!(!err.contains("/options/") && !err.contains("source_path"), "{args:?}: {err}");
    }
    // An option that a variable sets is not shown as one that was typed.
    let ran = cluster.ctl(["copy", "x"]).env("CTL_PROGRESS", "plain").env("CTL_OUTPUT", "json");
    let err = ran.run().exits(2).err();
    assert!(err.contains("Usage: ctl copy") && !err.contains("--progress"), "{err}");
    cluster.ctl(["sync", "list"]).env("CTL_PROGRESS", "").env("CTL_OUTPUT", "").run().exits(0);
    let err = ctl(["sync", "list"]).env("CTL_OUTPUT", "xml").run().exits(2).err();
    assert!(err.contains("CTL_OUTPUT `xml` must be one of table, json"), "{err}");
    ctl(["agent", "--worker-id", "w"]).run().exits(2);
    let err = ctl(["copy", "x", "host:/b"]).run().exits(2).err();
    assert!(err.contains("./host:/b"), "{err}");
}

#[test]
fn exit_3_what_does_not_exist() {
    let cluster = Cluster::start(On::Embedded);
    for verb in ["status", "wait", "cancel", "delete"] {
        let ran = cluster.ctl(["sync", verb, "nobody"]).run().exits(3);
        assert!(ran.err().contains("nobody"), "{}", ran.err());
    }
    cluster.ctl(["sync", "delete", "nobody", "--ignore-not-found"]).run().exits(0);
    let home = home();
    ctl(["copy"]).arg(home.path().join("none")).arg(home.path().join("dst")).run().exits(3);
}

#[test]
fn exit_5_no_master() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for args in [&["sync", "list"][..], &["sync", "submit", "/a", "/b"], &["workers", "list"]] {
        let ran = ctl(args).env("CTL_MASTER_URL", &url).run().exits(5);
        assert!(ran.stdout.is_empty() && ran.err().contains(&url), "{}", ran.err());
    }
    let url =
        answers("503 Service Unavailable", r#"{"title":"x","status":503,"detail":"d","code":"c"}"#);
    ctl(["sync", "list", "--master-url", &url]).run().exits(5);
    // One of several that answers is enough.
    let cluster = Cluster::start(On::Embedded);
    let dead = format!("http://127.0.0.1:{}", free_port());
    let both = format!("{dead},{}", cluster.master.url());
    ctl(["sync", "list", "--master-url", &both]).run().exits(0);
    ctl(["sync", "list"]).env("CTL_MASTER_URL", &both).run().exits(0);
}

#[test]
fn exit_6_an_id_that_is_taken() {
    let cluster = Cluster::start(On::Redis);
    let args = ["sync", "submit", "/a", "/b", "--id", "taken"];
    cluster.ctl(args).run().exits(0);
    let ran = cluster.ctl(args).run().exits(6);
    for part in ["taken", "QUEUED", "ctl sync delete taken"] {
        assert!(ran.err().contains(part), "`{part}` in {}", ran.err());
    }
}

#[test]
fn exit_20_cancelled_or_deleted_while_waiting() {
    let cluster = Cluster::start(On::Embedded);
    for verb in ["cancel", "delete"] {
        let id = format!("to-{verb}");
        let mut waiting =
            cluster.ctl(["sync", "submit", "/a", "/b", "--wait", "--id", &id]).start();
        waiting.await_that("it waits", |said| said.contains("state=QUEUED"));
        cluster.ctl(["sync", verb, &id]).run().exits(0);
        waiting.finish(PATIENCE).exits(20);
    }
    cluster.ctl(["sync", "wait", "to-cancel"]).run().exits(20);
}

#[test]
fn exit_23_some_files_failed() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("there"), "x");
    let ran = submit(&cluster, &src, &dst)
        .more(["--wait", "--files-from", "-"])
        .input("there\nmissing\n")
        .run()
        .exits(23);
    assert!(ran.out().contains("FAILED (partial)"), "{}", ran.out());
    assert!(ran.err().contains("missing") && ran.err().contains("(exit 23)"), "{}", ran.err());
    let list = file(cluster.path("names"), "there\n");
    submit(&cluster, &src, &dst).more(["--wait", "--files-from"]).arg(list).run().exits(0);
}

#[test]
fn exit_78_a_configuration_that_cannot_be_used() {
    let home = home();
    let bad = file(home.path().join("bad.yml"), "listen: 127.0.0.1:0\nlisten_on: x\nlease: soon\n");
    for args in [
        &["master", "--config"][..],
        &["agent", "--worker-id", "a", "--config"],
        &["config", "check"],
    ] {
        let ran = ctl(args).arg(&bad).run().exits(78);
        let said = ran.out() + &ran.err();
        assert!(said.contains("bad.yml") || said.contains(":2"), "{args:?}: {said}");
    }
    let ran = ctl(["config", "check"]).arg(&bad).run().exits(78);
    let said = ran.out() + &ran.err();
    for part in ["listen_on", "lease", "soon", "2:", "3:"] {
        assert!(said.contains(part), "`{part}` in {said}");
    }
    ctl(["config", "check"]).arg(home.path().join("none.yml")).run().exits(78);
}

#[test]
fn exit_78_an_address_that_is_none_and_1_for_what_is_not_reachable_where_that_is_asked_for() {
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
        let path = file(home.path().join("bad.yml"), &text);
        let said = ctl(["config", "check"]).arg(&path).run().exits(78).out();
        assert!(said.contains("error: ") && said.contains("300.1.1.1"), "{text}{said}");
    }
    let nobody = format!("http://127.0.0.1:{}", support::cluster::free_port());
    let path = file(home.path().join("good.yml"), worker(&nobody, here));
    let check =
        |more: &[&str]| ctl(["config", "check", "--worker-id", "a"]).more(more).arg(&path).run();
    let said = check(&[]).exits(0).out();
    assert!(said.contains("warning: ") && said.contains(&nobody), "{said}");
    check(&["--strict"]).exits(1);
}

#[test]
fn exit_78_a_redis_that_would_forget() {
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
        let config = file(home.path().join("master.yml"), config);
        let ran = ctl(["master", "--config"]).arg(&config).run().exits(78);
        assert!(ran.err().contains(named), "`{named}` in {}", ran.err());
    }
}

#[test]
fn exit_124_the_time_is_up_and_the_sync_goes_on() {
    let cluster = Cluster::start(On::Embedded);
    let args = ["sync", "submit", "/a", "/b", "--wait", "--timeout", "200ms", "--id", "slow"];
    let ran = cluster.ctl(args).run().exits(124);
    assert!(ran.err().contains("ctl sync wait slow"), "{}", ran.err());
    let args = ["sync", "wait", "slow", "--timeout", "0", "--timeout-exit-code", "9"];
    cluster.ctl(args).run().exits(9);
    assert_eq!(cluster.progress("slow").state.as_str(), "QUEUED");
}

#[test]
fn exit_130_and_143_a_signal_ends_the_waiting_and_not_the_sync() {
    let cluster = Cluster::start(On::Embedded);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let id = format!("s{code}");
        let mut waiting =
            cluster.ctl(["sync", "submit", "/a", "/b", "--wait", "--id", &id]).start();
        waiting.await_that("it waits", |said| said.contains("state=QUEUED"));
        waiting.signal(signal);
        let ran = waiting.finish(PATIENCE).exits(code);
        for part in [&format!("ctl sync wait {id}"), &format!("ctl sync cancel {id}")] {
            assert!(ran.err().contains(part), "`{part}` in {}", ran.err());
        }
        assert_eq!(cluster.progress(&id).state.as_str(), "QUEUED");
    }
    let args = ["sync", "wait", "s130", "--cancel-on-interrupt"];
    let mut waiting = cluster.ctl(args).start();
    waiting.await_that("it waits", |said| said.contains("state=QUEUED"));
    waiting.signal(Signal::INT);
    assert_ne!(waiting.finish(PATIENCE).code, Some(0));
    assert_eq!(cluster.progress("s130").state.as_str(), "CANCELLED");
}

#[test]
fn a_sync_that_has_to_wait_for_another_one_says_so_when_it_is_submitted() {
    let cluster = Cluster::start(On::Embedded);
    let submit = |words: &[&str]| cluster.ctl(["sync", "submit"]).more(words).run();
    assert!(!submit(&["/a", "/d", "--id", "one"]).exits(0).out().contains("note:"));
    for (words, note) in [
        (&["/a", "/d", "--id", "two"][..], Some("same as sync one, which is QUEUED")),
        (
            &["/b", "/d/x", "--id", "three"],
            Some("waits for sync one, which writes to /d and is QUEUED"),
        ),
        (&["/b", "/d/x", "--allow-overlap", "--id", "four"], None),
        (&["/a", "/e", "--id", "five"], None),
    ] {
        let out = submit(words).exits(0).out();
        assert_eq!(out.contains("note:"), note.is_some(), "{out}");
        assert!(note.is_none_or(|note| out.contains(&format!("note: {note}\n"))), "{out}");
    }
    let shown = cluster.ctl(["sync", "status", "three"]).run().exits(0).out();
    assert!(shown.contains("waits for sync one, which writes to /d and is QUEUED"), "{shown}");
    let again = cluster.progress("four");
    assert!(again.options.allow_overlap && !again.reason.unwrap().contains("waits for sync"));
    submit(&["/b", "/d/x", "--allow-overlap", "--delete"]).exits(2);
    let mirror = serde_json::json!({"source_path": "/b", "destination_path": "/d", "options":
        {"allow_overlap": true, "delete": {}}});
    let refused = cluster.master.post("/sync", &mirror);
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(refused.text().contains("/options/allow_overlap"), "{}", refused.text());
}

#[test]
fn quiet_prints_the_id_and_nothing_else() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("x"), "x");
    let ran = submit(&cluster, &src, &dst).more(["-q", "--id", "mine"]).run().exits(0);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("mine\n", ""));
    let ran = submit(&cluster, &src, &dst).arg("-q").run().exits(0);
    let made = ran.out();
    assert_eq!(cluster.ended(made.trim_end()).state.as_str(), "COMPLETED");
    let ran = submit(&cluster, &src, &dst).more(["-q", "--wait", "--id", "third"]).run().exits(0);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("third\n", ""));
    let ran = cluster.ctl(["sync", "list", "-q"]).run().exits(0);
    assert_eq!(ran.out(), format!("third\n{made}mine\n"), "newest first");
}

#[test]
fn json_is_the_body_of_the_api() {
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = cluster.pair();
    odd(&src);
    let ran =
        submit(&cluster, &src, &dst).more(["--wait", "-o", "json", "--id", "j"]).run().exits(0);
    let body = cluster.master.get("/sync/j");
    assert_eq!(ran.out().trim_end(), body.text());
    assert_eq!(ran.json()["state"], "COMPLETED");
    for (args, path) in [(&["sync", "list"][..], "/sync"), (&["sync", "status", "j"], "/sync/j")] {
        let ran = cluster.ctl(args).more(["-o", "json"]).run().exits(0);
        assert_eq!(ran.out().trim_end(), cluster.master.get(path).text(), "{args:?}");
    }
    let workers = cluster.ctl(["workers", "list", "-o", "json"]).run().exits(0).json();
    assert_eq!(workers["active"].as_array().unwrap().len(), 2);
    // A failure is told to programs as well, in the last line on standard error.
    let ran = cluster.ctl(["sync", "status", "none", "-o", "json"]).run().exits(3);
    let last = ran.err();
    assert!(last.contains("none"), "{last}");
    let url = format!("http://127.0.0.1:{}", free_port());
    let ran = ctl(["sync", "list", "-o", "json", "--master-url", &url]).run().exits(5);
    let err = ran.err();
    let last: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
    assert_eq!((&last["message_type"], &last["code"]), (&json!("exit_error"), &json!(5)));
}

#[test]
fn piped_progress_is_whole_lines_on_standard_error() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    file(src.join("large"), noise(32 << 20, 1));
    file(src.join("name\x1b[2J"), "x");
    let ran = submit(&cluster, &src, &dst)
        .more(["--wait", "--id", "p", "--chunk-size-mb", "1"])
        .env("TERM", "xterm-256color")
        .run()
        .exits(0);
    assert_plain(&ran);
    let lines: Vec<String> =
        ran.err().lines().filter(|l| l.contains("sync=p ")).map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{}", ran.err());
    for line in &lines {
        for key in ["state=", "bytes=", "files=", "failed="] {
            assert!(line.contains(key), "{key} in {line}");
        }
        let ended = line.contains("state=COMPLETED");
        assert!(ended || !line.contains("pct=100"), "100 % before the end: {line}");
    }
    assert!(lines.last().unwrap().contains("state=COMPLETED"), "{lines:#?}");
    let ran = submit(&cluster, &src, &dst).more(["--wait", "--progress", "none"]).run().exits(0);
    assert!(!ran.err().contains("state="), "{}", ran.err());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let cluster = Cluster::start(On::Embedded);
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
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{args:?}");
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
    let mut cluster = Cluster::start(On::Redis);
    let (src, dst) = cluster.pair();
    many(&src, 30, 100);
    for i in 0..5 {
        file(src.join(format!("x y\n{i}.h5")), noise(100, i));
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
        let ran = ctl(["config", "check"]).arg(&file).run().exits(0);
        assert!(!ran.out().contains("error"), "{}: {}", file.display(), ran.out());
        let ran = ctl(["config", "check", "-o", "json"]).arg(&file).run().exits(0);
        assert_eq!((&ran.json()["usable"], &ran.json()["errors"]), (&json!(true), &json!(0)));
    }
}

#[test]
fn log_levels_come_from_the_environment() {
    let home = home();
    let (port, state) = (free_port(), dir(home.path().join("state")));
    let config = format!("listen: 127.0.0.1:{port}\ndata_dir: {}\n", state.display());
    let config = file(home.path().join("m.yml"), config);
    let start = |level: &str| {
        let run = ctl(["master", "--config"]).arg(&config).env("CTL_LOG_LEVEL", level).start();
        let url = format!("127.0.0.1:{port}");
        await_that("it serves", || {
            support::http::try_request(&url, "GET", "/healthz", &[], None).is_some()
        });
        run.signal(Signal::TERM);
        run.finish(PATIENCE).exits(0).err()
    };
    assert_eq!(start("error"), "");
    assert!(start("info").contains("INFO"));
    assert!(start("debug").contains("DEBUG"));
    let ran = ctl(["master", "--config"]).arg(&config).env("CTL_LOG_LEVEL", "loud").run().exits(78);
    assert!(ran.err().contains("CTL_LOG_LEVEL"), "{}", ran.err());
    // Where Redis is comes from the environment as well.
    let url = format!("redis://127.0.0.1:{}/x", free_port());
    let ran = ctl(["master", "--config"]).arg(&config).env("REDIS_URL", url).run().exits(78);
    assert!(ran.err().contains("REDIS_URL"), "{}", ran.err());
}

#[test]
fn copy_brings_a_tree_over_with_nothing_set_up_and_then_nothing() {
    let home = home();
    let (src, dst) = (home.path().join("src"), home.path().join("new/dst"));
    odd(&src);
    many(&src.join("many"), 300, 2_000);
    file(src.join("large"), noise(70 << 20, 2));
    let run = || {
        ctl(["copy"])
            .arg(&src)
            .arg(&dst)
            .more(["-o", "json", "--chunk-size-mb", "4"])
            .run()
            .exits(0)
    };
    let first = run().json();
    assert_eq!(first["state"], "COMPLETED");
    assert_same(&src, &dst, strict());
    let there = census(&src);
    assert_eq!(
        (&first["files_done"], &first["transferred_bytes"]),
        (&json!(there.files), &json!(there.bytes))
    );
    let second = run().json();
    assert_eq!((&second["files_done"], &second["transferred_bytes"]), (&json!(0), &json!(0)));
    assert_eq!(second["files_skipped"], json!(there.files));
    assert_same(&src, &dst, strict());
    // For people: a result line, and progress elsewhere.
    let ran = ctl(["copy"]).arg(&src).arg(&dst).run().exits(0);
    assert!(ran.out().contains("COMPLETED") && ran.out().contains("0 copied"), "{}", ran.out());
    assert_plain(&ran);
    let ran = ctl(["copy", "-q"]).arg(&src).arg(&dst).run().exits(0);
    assert_eq!(ran.err(), "");
}

#[test]
fn copy_takes_relative_paths_files_lists_and_odd_names() {
    let home = home();
    let src = dir(home.path().join("src"));
    file(src.join("-rf"), "minus");
    file(src.join("b\n"), "newline");
    let at_home = |args: &[&str]| {
        let mut command = ctl(args).command();
        command.current_dir(home.path());
        support::process::Running::start(command, Some(b"-rf\0")).finish(PATIENCE)
    };
    at_home(&["copy", "src", "dst"]).exits(0);
    assert_same(&src, &home.path().join("dst"), strict());
    at_home(&["copy", "src/", "listed/", "--files-from", "-", "-0"]).exits(0);
    assert_eq!(fs::read_dir(home.path().join("listed")).unwrap().count(), 1);
    // The advice is to copy the same again, not everything.
    file(home.path().join("a list"), b"-rf\0none\0");
    let ran = at_home(&["copy", "src", "listed", "--files-from", "a list", "-0"]).exits(23);
    assert!(ran.err().contains("/listed --files-from 'a list' -0 "), "{}", ran.err());
    at_home(&["copy", "src/-rf", "one"]).exits(0);
    assert_same(&src.join("-rf"), &home.path().join("one"), strict());
    at_home(&["copy", "src", "src/below"]).exits(2);
    at_home(&["copy", "src", "src"]).exits(2);
    // A name that is no UTF-8, on the command line itself.
    let odd = std::ffi::OsStr::from_bytes(b"\xff src");
    let odd = dir(home.path().join(odd));
    file(odd.join("x"), "x");
    ctl(["copy"]).arg(&odd).arg(home.path().join("from odd")).run().exits(0);
    assert_same(&odd, &home.path().join("from odd"), strict());
    // SRC may be a link to the tree; links in the tree stay links.
    let to = link(home.path().join("to src"), "src");
    ctl(["copy"]).arg(to).arg(home.path().join("through a link")).run().exits(0);
    assert_same(&src, &home.path().join("through a link"), strict());
}

#[test]
fn copy_with_an_unreadable_file_is_exit_23_and_brings_the_rest() {
    let home = home();
    let (src, dst) = (dir(home.path().join("src")), dir(home.path().join("dst")));
    many(&src, 20, 300);
    let secret = file(src.join("secret"), "s");
    User::Ordinary.give_all(&src);
    User::Ordinary.give(&dst);
    chmod(&secret, 0);
    let as_somebody = || ctl(["copy"]).arg(&src).arg(&dst).user(User::Ordinary, home.path());
    let ran = as_somebody().run().exits(23);
    for part in ["EACCES", "secret", "(exit 23)"] {
        assert!(ran.err().contains(part), "`{part}` in {}", ran.err());
    }
    assert!(
        ran.out().contains("FAILED (partial)") && ran.out().contains("20 copied"),
        "{}",
        ran.out()
    );
    let document = as_somebody().more(["-o", "json"]).run().exits(23).json();
    assert_eq!((&document["state"], &document["outcome"]), (&json!("FAILED"), &json!("partial")));
    chmod(&secret, 0o600);
    as_somebody().run().exits(0);
    assert_same(&src, &dst, Compare { owners: false, extra: false });
}

#[test]
fn copy_that_is_interrupted_leaves_its_part_file_to_the_next_run_which_uses_it_up() {
    let home = home();
    let (src, dst) = (dir(home.path().join("src")), home.path().join("dst"));
    let large = file(src.join("large"), noise(160 << 20, 3));
    let mut run = ctl(["copy", "--bwlimit", "64MiB/s"]).arg(&src).arg(&dst).start();
    let arrived = || part_files(&dst).iter().map(|part| written(part)).sum::<u64>();
    run.await_that("it is in the middle", |_| arrived() > 0);
    run.signal(Signal::INT);
    let ran = run.finish(PATIENCE).exits(130);
    assert!(ran.err().contains("ctl copy"), "how to go on: {}", ran.err());
    // What is not complete has no name.
    assert!(!dst.join("large").exists());
    assert!(arrived() < fs::metadata(large).unwrap().len());
    assert_eq!(part_files(&dst).len(), 1);
    ctl(["copy"]).arg(&src).arg(&dst).run().exits(0);
    assert_same(&src, &dst, strict());
    assert!(part_files(&dst).is_empty());
}

#[test]
fn a_destination_is_checked_against_a_list_without_a_master() {
    let home = home();
    let tree = dir(home.path().join("tree"));
    file(tree.join("right"), "x");
    file(tree.join("two\nlines"), "x");
    let digest = blake3::hash(b"x").to_hex();
    let list = format!("{digest}  right\n\\{digest}  two\\nlines\n");
    let list = file(home.path().join("list"), list);
    let verify = || ctl(["sync", "verify", "--manifest"]).arg(&list).arg(&tree);
    let ran = verify().run().exits(0);
    assert!(ran.stdout.is_empty() && ran.err().contains("2 files"), "{}", ran.err());
    file(tree.join("two\nlines"), "y");
    file(tree.join("more"), "");
    let ran = verify().run().exits(23);
    let mut said: Vec<String> = ran.out().lines().map(str::to_owned).collect();
    said.sort();
    assert_eq!(said, ["changed     two\\#012lines", "extra       more"]);
    assert!(ran.err().ends_with("(exit 23)\n"), "{}", ran.err());
    let ran = verify().more(["-o", "json", "--ignore-extra", "-q"]).run().exits(23);
    assert_eq!(ran.json(), json!({"path": "two\nlines", "state": "changed"}));
    assert_eq!(ran.err(), "");
    let piped = ctl(["sync", "verify", "--manifest", "-"]).arg(&tree).arg("--ignore-extra");
    piped.input(format!("{digest}  right\n{digest}  gone\n")).run().exits(23);
    ctl(["sync", "verify", "--manifest"]).arg(&list).arg(home.path().join("none")).run().exits(3);
    ctl(["sync", "verify", "--manifest"]).arg(&tree).arg(&tree).run().exits(1);
    ctl(["sync", "verify", "a", "b", "--manifest"]).arg(&list).run().exits(2);
}
