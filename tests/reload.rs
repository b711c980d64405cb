//! SIGHUP: master and agent read their configuration again, apply what can be applied, name what needs a restart, and
//! keep the old values where the new file is bad. Nothing that is under way is disturbed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::process::Process;
use support::tree::{self, assert_same, census, exact_comparison};
use support::{MAX_WAIT, await_true};

/// At this speed the large file takes much longer than a test waits.
const SLOW_LIMIT: &str = "64KiB/s";

/// Replaces a part of a configuration, which is there.
fn replace_in_file(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "`{from}` in {text}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// SIGHUP, and waits until a further line of the log has all these words.
#[track_caller]
fn send_sighup(process: &mut Process, words: &[&str]) {
    let before = process.log().lines().count();
    process.signal(Signal::HUP);
    await_true(&format!("a line with {words:?}"), || {
        if let Some(status) = process.try_exit_status() {
            panic!("it ended with {status}:\n{}", process.log());
        }
        let log = process.log();
        log.lines().skip(before).any(|line| words.iter().all(|word| line.contains(word)))
    });
}

/// Waits until content of a sync is on its way.
#[track_caller]
fn await_sending(cluster: &Cluster, id: &str) {
    cluster.await_progress(id, "is sent", |sync| sync.detail.values().any(|d| d.contains("copy")));
}

fn config_file_of(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.home().join(format!("{name}.yml"))
}

/// Waits for the end of a sync, and holds it to have lost nothing and tried nothing twice.
#[track_caller]
fn assert_unaffected(cluster: &Cluster, id: &str, src: &Path, dst: &Path) {
    let sync = cluster.await_end(id);
    assert_complete(&sync, census(src));
    assert_eq!(sync.retries, 0, "{sync:#?}");
    assert_same(src, dst, exact_comparison());
    cluster.assert_no_panic();
}

#[test]
fn a_master_reloads_limits_during_a_sync_and_keeps_the_old_ones_on_an_invalid_file() {
    let limit = format!(
        "bwlimit: {SLOW_LIMIT}\nlimits: {{max_active_syncs: 1, max_file_list_bytes: 4KiB}}\n"
    );
    let mut cluster = Cluster::start_with(StoreKind::Embedded, &limit);
    let file = config_file_of(&cluster, "master");
    let (src, dst) = cluster.add_source_and_destination();
    let large = tree::make_dir(src.join("large"));
    tree::write_file(large.join("f"), tree::random_bytes(24 << 20, 1));
    let id = cluster.submit(&large, &dst.join("large"));
    await_sending(&cluster, &id);

    // A file that is bad changes nothing, and says where.
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace(SLOW_LIMIT, "none") + "retention: soon\n").unwrap();
    let line = good.lines().count() + 1;
    let place = format!("master.yml:{line}:12");
    send_sighup(&mut cluster.master.process, &["ERROR", &place, "soon"]);
    let names = json!({"file_list": vec!["x".repeat(100); 60]});
    let mut listed = json!({"source_path": large, "destination_path": dst.join("listed")});
    listed.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
    assert_eq!(cluster.master.post("/sync", &listed).status, 413);

    // A second one waits while only one may run.
    let small = tree::make_dir(src.join("small"));
    tree::write_file(small.join("f"), b"some");
    let second = cluster.submit(&small, &dst.join("small"));
    let fixed =
        good.replace("max_active_syncs: 1, max_file_list_bytes: 4KiB", "max_active_syncs: 2");
    fs::write(&file, fixed.replace("lease: 5s", "lease: 6s")).unwrap();
    let applied = ["limits.max_active_syncs", "limits.max_file_list_bytes"];
    let first = cluster.progress(&id);
    assert_eq!(cluster.progress(&second).state.as_str(), "QUEUED");
    send_sighup(&mut cluster.master.process, &[&["INFO"][..], &applied].concat());
    assert_complete(&cluster.await_end(&second), census(&small));
    assert!(!cluster.progress(&id).state.is_final(), "{first:#?}");
    assert_ne!(cluster.master.post("/sync", &listed).status, 413);
    send_sighup(&mut cluster.master.process, &["WARN", "restart", "lease"]);

    replace_in_file(&file, SLOW_LIMIT, "none");
    send_sighup(&mut cluster.master.process, &["INFO", "bwlimit"]);
    assert_unaffected(&cluster, &id, &large, &dst.join("large"));
}

#[test]
fn an_agent_reloads_its_limit_while_sending_and_keeps_its_tasks() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) =
        (tree::make_dir(cluster.data_path("src")), tree::make_dir(cluster.data_path("dst")));
    let limit = format!("bwlimit: {SLOW_LIMIT}\n");
    cluster.add_agent_with("a", &[&src], support::process::User::Same, &limit);
    cluster.add_agent("b", &[&dst]);
    tree::write_file(src.join("f"), tree::random_bytes(24 << 20, 1));
    let id = cluster.submit(&src, &dst.join("it"));
    await_sending(&cluster, &id);

    let file = config_file_of(&cluster, "a");
    let good = fs::read_to_string(&file).unwrap();
    let agent = &mut cluster.agents.get_mut("a").unwrap().process;
    fs::write(&file, good.replace(SLOW_LIMIT, "fast")).unwrap();
    let line = 1 + good.lines().position(|line| line.contains(SLOW_LIMIT)).unwrap();
    send_sighup(agent, &["ERROR", &format!("a.yml:{line}:10"), "fast"]);
    fs::write(&file, good.replace(SLOW_LIMIT, "none") + "slots: 3\n").unwrap();
    send_sighup(agent, &["WARN", "restart", "slots"]);
    send_sighup(agent, &["WARN", "restart", "slots"]);
    assert!(agent.log().lines().any(|line| line.contains("INFO") && line.contains("bwlimit")));
    assert_unaffected(&cluster, &id, &src, &dst.join("it"));
    assert_eq!(cluster.agents.get_mut("a").unwrap().terminate().code(), Some(0));
}

#[test]
fn the_limit_of_a_network_interface_is_reloaded_while_sending() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    let file = config_file_of(&cluster, "a");
    replace_in_file(&file, "port: 0}", &format!("port: 0, bwlimit: {SLOW_LIMIT}}}"));
    cluster.agents.get_mut("a").unwrap().restart();
    tree::write_file(src.join("f"), tree::random_bytes(24 << 20, 1));
    let id = cluster.submit(&src, &dst.join("it"));
    await_sending(&cluster, &id);
    replace_in_file(&file, SLOW_LIMIT, "none");
    let agent = &mut cluster.agents.get_mut("a").unwrap().process;
    send_sighup(agent, &["INFO", "network.data_plane_endpoints"]);
    assert_unaffected(&cluster, &id, &src, &dst.join("it"));
}

#[test]
fn a_reload_changes_the_log_level_and_reopens_a_moved_log_file() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let file = config_file_of(&cluster, "master");
    let logs = tree::make_dir(cluster.home().join("logs"));
    let log = logs.join("master.log");
    let debug = "{level: \"info,longhaul=debug,longhaul::master::http=info\"}";
    let quoted = json!(log);
    replace_in_file(&file, debug, &format!("{{level: info, file: {quoted}}}"));
    cluster.master.process.signal(Signal::HUP);
    let printed = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    await_true("it logs to the file", || printed(&log).contains("log.file"));
    assert!(!printed(&log).contains("DEBUG"));
    replace_in_file(&file, "level: info", "level: debug");
    let old = logs.join("master.log.1");
    fs::rename(&log, &old).unwrap();
    cluster.master.process.signal(Signal::HUP);
    await_true("it logs to a new file", || printed(&log).contains("log.level"));
    await_true("requests are logged", || {
        cluster.master.get("/healthz");
        printed(&log).lines().any(|line| line.contains("DEBUG") && line.contains("/healthz"))
    });
    assert!(!printed(&old).contains("DEBUG"));
    // A file that cannot be opened changes nothing, and is not said to have changed.
    let before = printed(&log).len();
    replace_in_file(&file, &quoted.to_string(), "/no/such/directory/log");
    cluster.master.process.signal(Signal::HUP);
    await_true("it says why", || printed(&log).contains("/no/such/directory/log"));
    let since = printed(&log)[before..].to_owned();
    assert!(since.contains("changed: nothing") && !since.contains("log.file"), "{since}");
    assert_eq!(cluster.master.terminate().code(), Some(0));
    assert!(printed(&log).contains("stopping"), "{}", printed(&log));
}

#[test]
fn waiting_commands_and_a_copy_are_ended_by_sighup() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, dst) = cluster.add_source_and_destination();
    tree::write_file(src.join("f"), tree::random_bytes(8 << 20, 1));
    let more: Value = json!({"bwlimit": SLOW_LIMIT});
    let id = cluster.submit_with(&src, &dst.join("it"), more);
    let mut waiting = cluster.ctl(["sync", "wait", &id, "--progress", "plain"]).start();
    waiting.await_stderr("it waits", |printed| printed.contains(&id));
    waiting.signal(Signal::HUP);
    assert_eq!(waiting.finish(MAX_WAIT).code, None, "the signal ended it");
    assert!(!cluster.progress(&id).state.is_final(), "the sync goes on");
    let to = cluster.data_path("copied");
    let copy = ["copy", "--bwlimit", SLOW_LIMIT, "--progress", "plain"];
    let mut copying = support::ctl::ctl(copy).arg(&src).arg(&to).start();
    copying.await_stderr("it copies", |_| to.exists());
    copying.signal(Signal::HUP);
    assert_eq!(copying.finish(MAX_WAIT).code, None, "the signal ended it");
    cluster.lift_bandwidth_limit(&id);
    assert_complete(&cluster.await_end(&id), census(&src));
}
