//! What master and agents log for operators: commands with their client addresses, each cause once, and
//! lines that a program can read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use jiff::Timestamp;
use serde_json::{Value, json};
use std::path::Path;
use support::await_true;
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::process::{Process, User, clean_command, ctl_binary};
use support::tree::{census, random_bytes, write_file, write_many_files};

/// The lines of a log at a level that hold `part`.
fn lines_with<'a>(log: &'a str, level: &str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(level) && line.contains(part)).collect()
}

#[test]
fn each_operator_command_is_logged_with_its_subject_and_client_address() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_file(src.join("f"), random_bytes(32 << 20, 1));
    let id = cluster.submit_with(&src, &dst, json!({"bwlimit": "1MiB/s"}));
    for order in [
        &["sync", "pause", &id][..],
        &["sync", "resume", &id],
        &["sync", "set", &id, "--bwlimit", "2M"],
        &["sync", "cancel", &id],
        &["workers", "drain", "a"],
        &["workers", "undrain", "a"],
    ] {
        cluster.ctl(order).run().assert_exit_code(0);
    }
    cluster.await_end(&id);
    cluster.ctl(["sync", "delete", &id]).run().assert_exit_code(0);
    // One that is refused changes nothing.
    cluster.ctl(["sync", "pause", &id]).run().assert_exit_code(3);
    let log = cluster.master.process.log();
    for (done, about) in [
        ("sync submitted", format!("sync=\"{id}\"")),
        ("sync paused", format!("sync=\"{id}\"")),
        ("sync resumed", format!("sync=\"{id}\"")),
        ("sync changed", format!("sync=\"{id}\"")),
        ("sync cancelled", format!("sync=\"{id}\"")),
        ("sync deleted", format!("sync=\"{id}\"")),
        ("worker drained", "worker=\"a\"".to_owned()),
        ("worker undrained", "worker=\"a\"".to_owned()),
    ] {
        let of_it = lines_with(&log, " INFO ", done);
        assert_eq!(of_it.len(), 1, "{done}: {log}");
        assert!(of_it[0].contains(&about) && of_it[0].contains("client=127.0.0.1"), "{of_it:?}");
    }
}

#[test]
fn an_agent_logs_the_master_that_it_reached() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    cluster.add_source_and_destination();
    let log = cluster.agents["a"].process.log();
    let reached = lines_with(&log, " INFO ", "connected to the master");
    let url = cluster.master.url();
    assert!(reached.len() == 1 && reached[0].contains(&url), "{url}: {log}");
}

#[test]
fn an_unreachable_peer_is_logged_once_and_then_counted() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    write_many_files(&src, 4_000, 10_000);
    let id = cluster.submit_with(&src, &dst, json!({"bwlimit": "4MiB/s"}));
    cluster.await_progress(&id, "bytes move", |s| s.transferred_bytes > 0);
    cluster.agents.get_mut("b").unwrap().kill_9();
    let part = "worker b cannot be reached";
    let log = || cluster.agents["a"].process.log();
    await_true("many tasks have failed", || log().lines().filter(|l| l.contains(part)).count() > 6);
    let log = log();
    let warnings = lines_with(&log, " WARN ", part);
    assert!((1..=4).contains(&warnings.len()), "{warnings:#?}");
    // The next start finds all as it was.
    cluster.agents.get_mut("b").unwrap().restart();
    cluster.lift_bandwidth_limit(&id);
    assert_complete(&cluster.await_end(&id), census(&src));
    // What was counted is logged before the end.
    let a = cluster.agents.get_mut("a").unwrap();
    a.terminate();
    let log = a.process.log();
    assert!(!lines_with(&log, " WARN ", "repeated: ").is_empty(), "{log}");
}

#[test]
fn json_log_lines_have_a_time_a_level_and_a_message() {
    let home = tempfile::tempdir().unwrap();
    let mut command =
        clean_command(&ctl_binary(User::Same, home.path()), Path::new(home.path()), User::Same);
    command.args(["master", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"]);
    command.arg(home.path().join("state"));
    let mut master = Process::start("the master", command, &home.path().join("log"));
    await_true("it leads", || master.log().contains("leader ready"));
    assert_eq!(master.terminate().code(), Some(0));
    let log = master.log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["time"].as_str().unwrap().parse::<Timestamp>().is_ok(), "{line}");
        assert!(["INFO", "WARN"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(line["target"].as_str().unwrap().starts_with("longhaul"), "{line}");
        messages.push(line["msg"].as_str().unwrap().to_owned());
    }
    assert!(messages.iter().any(|msg| msg == "leader ready"), "{messages:?}");
}
