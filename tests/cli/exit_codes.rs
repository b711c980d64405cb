//! Exit codes of commands, and the messages and streams of errors.

use super::*;

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
        (&["/a", "file:///b"], "write the path alone, /b"),
        (&["/a", "host:b"], "absolute path after the colon"),
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
    assert!(err.contains("CTL_OUTPUT `xml` must be one of table, wide, json"), "{err}");
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
    let nobody = format!("http://127.0.0.1:{}", support::ports::free_port());
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
