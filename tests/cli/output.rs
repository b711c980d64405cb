//! Output for scripts: quiet, JSON, progress and pipes; the environment; the shipped configurations.

use super::*;

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
