//! SIGHUP: master and agent read their configuration again, apply what can be applied, name what needs a restart, and
//! keep the old values where the new file is bad. Nothing that is under way is disturbed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, On, assert_complete};
use support::process::Process;
use support::tree::{self, assert_same, census, strict};
use support::{PATIENCE, await_that};

/// At this speed the large file takes much longer than a test waits.
const SLOW: &str = "64KiB/s";

/// Replaces a part of a configuration, which is there.
fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "`{from}` in {text}");
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

/// SIGHUP, and waits until a further line of the log has all these words.
#[track_caller]
fn hang_up(process: &mut Process, words: &[&str]) {
    let before = process.log().lines().count();
    process.signal(Signal::HUP);
    await_that(&format!("a line with {words:?}"), || {
        if let Some(status) = process.ended() {
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

fn file_of(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.home().join(format!("{name}.yml"))
}

/// Waits for the end of a sync, and holds it to have lost nothing and tried nothing twice.
#[track_caller]
fn assert_undisturbed(cluster: &Cluster, id: &str, src: &Path, dst: &Path) {
    let sync = cluster.ended(id);
    assert_complete(&sync, census(src));
    assert_eq!(sync.retries, 0, "{sync:#?}");
    assert_same(src, dst, strict());
    cluster.assert_no_panic();
}

#[test]
fn a_master_applies_limits_while_a_sync_runs_and_keeps_the_old_ones_where_the_file_is_bad() {
    let limit =
        format!("bwlimit: {SLOW}\nlimits: {{max_active_syncs: 1, max_file_list_bytes: 4KiB}}\n");
    let mut cluster = Cluster::start_with(On::Embedded, &limit);
    let file = file_of(&cluster, "master");
    let (src, dst) = cluster.pair();
    let large = tree::dir(src.join("large"));
    tree::file(large.join("f"), tree::noise(24 << 20, 1));
    let id = cluster.submit(&large, &dst.join("large"));
    await_sending(&cluster, &id);

    // A file that is bad changes nothing, and says where.
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace(SLOW, "none") + "retention: soon\n").unwrap();
    let line = good.lines().count() + 1;
    let place = format!("master.yml:{line}:12");
    hang_up(&mut cluster.master.process, &["ERROR", &place, "soon"]);
    let names = json!({"file_list": vec!["x".repeat(100); 60]});
    let mut listed = json!({"source_path": large, "destination_path": dst.join("listed")});
    listed.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
    assert_eq!(cluster.master.post("/sync", &listed).status, 413);

    // A second one waits while only one may run.
    let small = tree::dir(src.join("small"));
    tree::file(small.join("f"), b"some");
    let second = cluster.submit(&small, &dst.join("small"));
    let fixed =
        good.replace("max_active_syncs: 1, max_file_list_bytes: 4KiB", "max_active_syncs: 2");
    fs::write(&file, fixed.replace("lease: 5s", "lease: 6s")).unwrap();
    let applied = ["limits.max_active_syncs", "limits.max_file_list_bytes"];
    let first = cluster.progress(&id);
    assert_eq!(cluster.progress(&second).state.as_str(), "QUEUED");
    hang_up(&mut cluster.master.process, &[&["INFO"][..], &applied].concat());
    assert_complete(&cluster.ended(&second), census(&small));
    assert!(!cluster.progress(&id).state.is_final(), "{first:#?}");
    assert_ne!(cluster.master.post("/sync", &listed).status, 413);
    hang_up(&mut cluster.master.process, &["WARN", "restart", "lease"]);

    change(&file, SLOW, "none");
    hang_up(&mut cluster.master.process, &["INFO", "bwlimit"]);
    assert_undisturbed(&cluster, &id, &large, &dst.join("large"));
}

#[test]
fn an_agent_applies_its_limit_while_it_sends_and_goes_on_with_what_it_has() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = (tree::dir(cluster.path("src")), tree::dir(cluster.path("dst")));
    let limit = format!("bwlimit: {SLOW}\n");
    cluster.agent_with("a", &[&src], support::process::User::Same, &limit);
    cluster.agent("b", &[&dst]);
    tree::file(src.join("f"), tree::noise(24 << 20, 1));
    let id = cluster.submit(&src, &dst.join("it"));
    await_sending(&cluster, &id);

    let file = file_of(&cluster, "a");
    let good = fs::read_to_string(&file).unwrap();
    let agent = &mut cluster.agents.get_mut("a").unwrap().process;
    fs::write(&file, good.replace(SLOW, "fast")).unwrap();
    let line = 1 + good.lines().position(|line| line.contains(SLOW)).unwrap();
    hang_up(agent, &["ERROR", &format!("a.yml:{line}:10"), "fast"]);
    fs::write(&file, good.replace(SLOW, "none") + "slots: 3\n").unwrap();
    hang_up(agent, &["WARN", "restart", "slots"]);
    hang_up(agent, &["WARN", "restart", "slots"]);
    assert!(agent.log().lines().any(|line| line.contains("INFO") && line.contains("bwlimit")));
    assert_undisturbed(&cluster, &id, &src, &dst.join("it"));
    assert_eq!(cluster.agents.get_mut("a").unwrap().terminate().code(), Some(0));
}

#[test]
fn the_limit_of_a_network_interface_is_applied_while_it_sends() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    let file = file_of(&cluster, "a");
    change(&file, "port: 0}", &format!("port: 0, bwlimit: {SLOW}}}"));
    cluster.agents.get_mut("a").unwrap().restart();
    tree::file(src.join("f"), tree::noise(24 << 20, 1));
    let id = cluster.submit(&src, &dst.join("it"));
    await_sending(&cluster, &id);
    change(&file, SLOW, "none");
    let agent = &mut cluster.agents.get_mut("a").unwrap().process;
    hang_up(agent, &["INFO", "network.data_plane_endpoints"]);
    assert_undisturbed(&cluster, &id, &src, &dst.join("it"));
}

#[test]
fn the_log_changes_its_level_and_goes_on_in_a_new_file_when_the_old_one_was_moved_away() {
    let mut cluster = Cluster::start(On::Embedded);
    let file = file_of(&cluster, "master");
    let logs = tree::dir(cluster.home().join("logs"));
    let log = logs.join("master.log");
    let debug = "{level: \"info,longhaul=debug,longhaul::master::http=info\"}";
    let quoted = json!(log);
    change(&file, debug, &format!("{{level: info, file: {quoted}}}"));
    cluster.master.process.signal(Signal::HUP);
    let said = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    await_that("it logs to the file", || said(&log).contains("log.file"));
    assert!(!said(&log).contains("DEBUG"));
    change(&file, "level: info", "level: debug");
    let old = logs.join("master.log.1");
    fs::rename(&log, &old).unwrap();
    cluster.master.process.signal(Signal::HUP);
    await_that("it logs to a new file", || said(&log).contains("log.level"));
    await_that("requests are logged", || {
        cluster.master.get("/healthz");
        said(&log).lines().any(|line| line.contains("DEBUG") && line.contains("/healthz"))
    });
    assert!(!said(&old).contains("DEBUG"));
    // A file that cannot be opened changes nothing, and is not said to have changed.
    let before = said(&log).len();
    change(&file, &quoted.to_string(), "/no/such/directory/log");
    cluster.master.process.signal(Signal::HUP);
    await_that("it says why", || said(&log).contains("/no/such/directory/log"));
    let since = said(&log)[before..].to_owned();
    assert!(since.contains("changed: nothing") && !since.contains("log.file"), "{since}");
    assert_eq!(cluster.master.terminate().code(), Some(0));
    assert!(said(&log).contains("stopping"), "{}", said(&log));
}

#[test]
fn commands_that_wait_and_a_copy_end_by_sighup_as_by_default() {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, dst) = cluster.pair();
    tree::file(src.join("f"), tree::noise(8 << 20, 1));
    let more: Value = json!({"bwlimit": SLOW});
    let id = cluster.submit_with(&src, &dst.join("it"), more);
    let mut waiting = cluster.ctl(["sync", "wait", &id, "--progress", "plain"]).start();
    waiting.await_that("it waits", |said| said.contains(&id));
    waiting.signal(Signal::HUP);
    assert_eq!(waiting.finish(PATIENCE).code, None, "the signal ended it");
    assert!(!cluster.progress(&id).state.is_final(), "the sync goes on");
    let to = cluster.path("copied");
    let copy = ["copy", "--bwlimit", SLOW, "--progress", "plain"];
    let mut copying = support::ctl::ctl(copy).arg(&src).arg(&to).start();
    copying.await_that("it copies", |_| to.exists());
    copying.signal(Signal::HUP);
    assert_eq!(copying.finish(PATIENCE).code, None, "the signal ended it");
    cluster.hurry(&id);
    assert_complete(&cluster.ended(&id), census(&src));
}
