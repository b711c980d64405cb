//! The audit log of real masters: what it has after a change, a denial, a crash, on a full disk, and what `ctl audit`
//! says of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use support::await_true;
use support::cluster::{Cluster, StoreKind};
use support::http::{Response, try_request};
use support::process::CommandOutput;
use support::tools::run_or_panic;
use support::tree::make_dir;

fn state_dir(cluster: &Cluster) -> PathBuf {
    cluster.home().join("state")
}

/// `ctl audit ARGS…` for the log in a directory.
fn audit(dir: &Path, args: &[&str]) -> CommandOutput {
    support::ctl::ctl(["audit"]).args(args).arg("--data-dir").arg(dir).run()
}

/// The lines of the log that `ctl audit list` selects.
fn listed(dir: &Path, args: &[&str]) -> Vec<Value> {
    let text = audit(dir, &[&["list", "-o", "json"], args].concat()).assert_exit_code(0);
    text.stdout_text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn actions(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["action"].as_str().unwrap()).collect()
}

/// What `ctl audit verify` prints of an intact log.
#[track_caller]
fn assert_intact(dir: &Path) -> Value {
    audit(dir, &["verify", "-o", "json"]).assert_exit_code(0).json()
}

/// A submit of a sync that waits for workers.
fn submit(address: &str, id: &str, headers: &[(&str, &str)]) -> Option<Response> {
    let body = json!({"request_id": id, "source_path": "/a", "destination_path": "/b"});
    try_request(address, "POST", "/sync", headers, Some(body.to_string().as_bytes()))
}

#[test]
fn changes_and_denials_are_listed_and_a_tampered_log_is_found() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let dir = state_dir(&cluster);
    cluster.add_agent("a", &[&make_dir(cluster.data_path("src"))]);
    let address = cluster.master.address();
    assert_eq!(submit(&address, "first", &[]).unwrap().status, 202);
    cluster.ctl(["sync", "pause", "first"]).run().assert_exit_code(0);
    cluster.ctl(["sync", "cancel", "first"]).run().assert_exit_code(0);
    cluster.ctl(["workers", "drain", "a"]).run().assert_exit_code(0);
    cluster.ctl(["sync", "retry", "first"]).run().assert_exit_code(0);
    // Reading is not recorded, except for a backup; a change that is refused is.
    cluster.ctl(["sync", "list"]).run().assert_exit_code(0);
    cluster.ctl(["sync", "cancel", "unknown"]).run().assert_exit_code(3);
    cluster.ctl(["admin", "backup"]).arg(cluster.home().join("copy")).run().assert_exit_code(0);
    let foreign = [
        ("Origin", "http://evil.example"),
        // A control character above ASCII.
        ("X-Forwarded-For", "192.0.2.1\u{9b}31m"),
    ];
    for _ in 0..5 {
        assert_eq!(submit(&address, "denied", &foreign).unwrap().status, 403);
    }
    let denial = |line: &Value| line["code"] == "foreign_origin";
    await_true("the denial is written", || listed(&dir, &[]).iter().any(denial));

    let lines = listed(&dir, &[]);
    let is_change = |line: &&Value| line["status"].as_u64() < Some(300);
    let changes: Vec<&Value> = lines.iter().filter(is_change).collect();
    let of = |line: &Value| line["action"].as_str().unwrap_or_default().to_owned();
    let expected = [
        "audit.started",
        "sync.submit",
        "sync.pause",
        "sync.cancel",
        "worker.drain",
        "sync.retry",
        "admin.backup",
    ];
    assert_eq!(changes.iter().map(|line| of(line)).collect::<Vec<_>>(), expected);
    assert!(lines[0]["installation"].is_string(), "{}", lines[0]);
    let submitted = changes[1];
    for (key, value) in [
        ("address", "127.0.0.1"),
        ("method", "POST"),
        ("route", "/sync"),
        ("sync", "first"),
        ("source", "/a"),
        ("destination", "/b"),
    ] {
        assert_eq!(submitted[key], value, "{submitted}");
    }
    assert_eq!(submitted["status"], 202);
    let own = format!("uid:{}", rustix::process::geteuid().as_raw());
    assert_eq!(submitted["principal"], *own, "{submitted}");
    assert!(submitted["request"].is_string(), "{submitted}");
    assert_eq!(
        (&changes[4]["worker"], &changes[4]["route"]),
        (&json!("a"), &json!("/workers/{id}/drain"))
    );
    assert!(changes[5]["new_sync"].is_string() && changes[5]["sync"] == "first", "{}", changes[5]);
    let refused: Vec<&Value> =
        lines.iter().filter(|line| line["code"] == "sync_not_found").collect();
    assert_eq!((refused.len(), &refused[0]["sync"]), (1, &json!("unknown")));
    let denied: Vec<&Value> = lines.iter().filter(|line| denial(line)).collect();
    assert_eq!((denied.len(), &denied[0]["action"]), (1, &json!("sync.submit")), "{denied:?}");

    assert_eq!(denied[0]["forwarded_for"], "192.0.2.1\\#302\\#23331m");
    let text = fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");

    assert_eq!(listed(&dir, &["--sync", "first"]).len(), 4);
    assert!(listed(&dir, &["--principal", &own]).len() >= 6);
    assert_eq!(listed(&dir, &["--principal", "nobody-else"]), Vec::<Value>::new());
    assert_eq!(listed(&dir, &["--until", "2020-01-01"]), Vec::<Value>::new());
    assert_eq!(listed(&dir, &["--since", "1h"]).len(), lines.len());
    let table = audit(&dir, &["list"]).assert_exit_code(0).stdout_text();
    assert!(
        table.lines().count() == lines.len() + 1 && table.contains("403 foreign_origin"),
        "{table}"
    );
    assert!(table.contains("/a → /b") && !table.contains('\u{1b}'), "{table}");

    // The count of the repeats is written at the latest when the master stops.
    assert_eq!(cluster.master.terminate().code(), Some(0));
    let counted: u64 = listed(&dir, &[])
        .iter()
        .filter(|line| denial(line))
        .map(|line| line["repeats"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(counted, 5);
    let head = assert_intact(&dir)["head"].as_str().unwrap().to_owned();
    assert!(cluster.master.process.log().contains(&head), "the log has the end of the chain");
    let text = fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    fs::write(dir.join("audit.jsonl"), text.replacen("\"/b\"", "\"/c\"", 1)).unwrap();
    let found = audit(&dir, &["verify"]).assert_exit_code(1).stderr_text();
    let seq = submitted["seq"].as_u64().unwrap();
    let place = format!("audit.jsonl line {}", seq + 1);
    let meaning = format!("record {seq} was changed");
    assert!(found.contains(&place) && found.contains(&meaning), "{found}");
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    fs::write(dir.join("audit.jsonl"), lines[..lines.len() - 1].concat()).unwrap();
    let text_of_lines = audit(&dir, &["verify"]).assert_exit_code(0).stdout_text();
    let expected = format!("The chain of {} lines in 1 file is complete", lines.len() - 1);
    assert!(text_of_lines.starts_with(&expected), "{text_of_lines}");
    let found = audit(&dir, &["verify", "--head", &head]).assert_exit_code(1).stderr_text();
    assert!(found.contains("were removed"), "{found}");
    audit(&cluster.data_path(""), &["verify"]).assert_exit_code(3);
    audit(&cluster.data_path(""), &["list"]).assert_exit_code(3);
    let config = cluster.home().join("master.yml");
    fs::write(dir.join("audit.jsonl"), &text).unwrap();
    support::ctl::ctl(["audit", "verify", "--config"]).arg(config).run().assert_exit_code(0);
}

#[test]
fn tokens_are_the_object_of_changes_and_the_principal_of_denials() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let dir = state_dir(&cluster);
    let create = json!({"role": "viewer", "scopes": [{"from": "/", "to": "/"}]});
    let created = cluster.master.post("/admin/tokens", &create);
    assert_eq!(created.status, 201, "{}", created.text());
    let created = created.json();
    let (id, secret) =
        (created["token"]["id"].as_str().unwrap(), created["secret"].as_str().unwrap());
    let address = cluster.master.address();
    let bearer = format!("Bearer {secret}");
    let with_token = [("Authorization", bearer.as_str())];
    assert_eq!(submit(&address, "denied", &with_token).unwrap().status, 403);
    cluster.ctl(["token", "revoke", id]).run().assert_exit_code(0);
    assert_eq!(submit(&address, "denied", &with_token).unwrap().status, 401);
    assert_eq!(cluster.master.terminate().code(), Some(0));
    let lines = listed(&dir, &[]);
    let own = json!(format!("uid:{}", rustix::process::geteuid().as_raw()));
    let by_token = json!(format!("token:{id}"));
    let of = |action: &str, status: u64| {
        let is_it = |line: &&Value| line["action"] == action && line["status"] == status;
        lines.iter().find(is_it).unwrap_or_else(|| panic!("{action} {status}: {lines:?}"))
    };
    let created = of("token.create", 201);
    assert_eq!((&created["principal"], &created["token"]), (&own, &json!(id)), "{created}");
    assert_eq!(created["detail"], "role viewer");
    let revoked = of("token.revoke", 200);
    assert_eq!((&revoked["principal"], &revoked["token"]), (&own, &json!(id)), "{revoked}");
    let denied = of("sync.submit", 403);
    assert_eq!((&denied["principal"], &denied["code"]), (&by_token, &json!("role_missing")));
    // The bearer of a token that is not valid is not known.
    let unknown = of("sync.submit", 401);
    assert_eq!((&unknown["principal"], &unknown["code"]), (&Value::Null, &json!("revoked")));
    assert_eq!(
        listed(&dir, &["--principal", by_token.as_str().unwrap()]),
        std::slice::from_ref(denied)
    );
    let text = fs::read_to_string(dir.join("audit.jsonl")).unwrap();
    assert!(!text.contains(secret), "the secret is in the log");
    assert_intact(&dir);
}

#[test]
fn every_acknowledged_change_is_in_the_log_after_kill_9() {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let dir = state_dir(&cluster);
    let address = cluster.master.address();
    let is_killed = AtomicBool::new(false);
    let submit_until_killed = |client: u32| {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            let id = format!("sync-{client}-{n}");
            match submit(&address, &id, &[]) {
                Some(reply) => {
                    assert_eq!(reply.status, 202, "{}", reply.text());
                    acknowledged.push(id);
                }
                // It may have been killed before the reply.
                None if is_killed.load(Ordering::SeqCst) => break,
                None => {}
            }
        }
        acknowledged
    };
    for round in 0..3 {
        is_killed.store(false, Ordering::SeqCst);
        let lines =
            || fs::read_to_string(dir.join("audit.jsonl")).unwrap_or_default().lines().count();
        let before = lines();
        let acknowledged: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..4).map(|n| scope.spawn(move || submit_until_killed(round * 4 + n))).collect();
            await_true("changes are made", || lines() > before + 60);
            is_killed.store(true, Ordering::SeqCst);
            cluster.master.kill_9();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        assert!(acknowledged.len() > 40, "{}", acknowledged.len());
        assert_intact(&dir);
        let recorded: BTreeSet<String> = listed(&dir, &[])
            .iter()
            .filter_map(|line| Some(line["sync"].as_str()?.to_owned()))
            .collect();
        let missing: Vec<_> = acknowledged.iter().filter(|id| !recorded.contains(*id)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        cluster.master.restart();
        // … and every change that the store has, also those without a reply.
        let all = cluster.master.get("/sync?limit=10000").json();
        for sync in all.as_array().unwrap() {
            assert!(recorded.contains(sync["request_id"].as_str().unwrap()), "{sync}");
        }
        assert_intact(&dir);
    }
}

/// A file system in memory of 1 MiB, which is unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> SmallDisk {
        let words = ["-t", "tmpfs", "-o", "size=1m,mode=700", "none"].map(OsStr::new);
        run_or_panic("mount", words.into_iter().chain([at.as_os_str()]));
        SmallDisk(at.to_owned())
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn on_a_full_disk_changes_are_refused_until_there_is_space_and_agents_continue() {
    // The state is in Redis: only the audit log is on the disk.
    let mut cluster = Cluster::start(StoreKind::Redis);
    cluster.master.terminate();
    let dir = state_dir(&cluster);
    let disk = SmallDisk::mount(&dir);
    cluster.master.restart();
    cluster.add_agent("a", &[&make_dir(cluster.data_path("src"))]);
    let address = cluster.master.address();
    disk.fill();
    // What is allocated already is used first.
    let mut accepted = 0;
    let refused = support::await_some("a change is refused", || {
        let reply = submit(&address, &format!("sync-{accepted}"), &[]).unwrap();
        accepted += usize::from(reply.status == 202);
        (reply.status != 202).then_some(reply)
    });
    assert_eq!(refused.status, 503);
    let problem = refused.json();
    assert_eq!(problem["code"], "audit_unavailable", "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("audit.jsonl") && detail.contains("No space left"), "{detail}");
    let syncs = || cluster.master.get("/sync?limit=10000").json().as_array().unwrap().len();
    assert_eq!(syncs(), accepted, "what was refused was not made");
    let backup = cluster.ctl(["workers", "drain", "a"]).run().assert_exit_code(5).stderr_text();
    assert!(backup.contains("audit log"), "{backup}");
    // Heartbeats and reading go on.
    let beat = || cluster.master.get("/workers/a").json()["last_heartbeat"].clone();
    let before = beat();
    await_true("a heartbeat arrives", || beat() != before);
    assert_intact(&dir);
    disk.free();
    assert_eq!(submit(&address, "later", &[]).unwrap().status, 202);
    let is_refused = |line: &Value| line["code"] == "audit_unavailable";
    await_true("the refusal is written", || listed(&dir, &[]).iter().any(is_refused));
    assert_eq!(listed(&dir, &["--sync", "later"]).len(), 1);
    assert_intact(&dir);
    assert_eq!(syncs(), accepted + 1);
}

#[test]
fn full_files_are_kept_up_to_a_number_that_a_reload_changes() {
    let cluster =
        Cluster::start_with(StoreKind::Embedded, "audit: {max_file_size: 64KiB, max_files: 3}\n");
    let dir = state_dir(&cluster);
    assert_eq!(
        cluster
            .master
            .post(
                "/sync",
                &json!({"request_id": "demo", "source_path": "/a", "destination_path": "/b"})
            )
            .status,
        202
    );
    let files = || {
        let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().ends_with(".jsonl")).count()
    };
    let change = |n: u32| {
        let path = if n.is_multiple_of(2) { "/sync/demo/pause" } else { "/sync/demo/resume" };
        assert_eq!(cluster.master.post(path, &json!(null)).status, 200);
    };
    for n in 0..1_200 {
        change(n);
    }
    assert_eq!(files(), 4);
    let found = assert_intact(&dir);
    assert!(found["first"].as_u64().unwrap() > 1, "the oldest files are gone: {found}");
    // The start, the submit, the changes, and a line for each new file.
    let newest = |name: String| -> Option<u64> {
        name.strip_prefix("audit.")?.strip_suffix(".jsonl")?.parse().ok()
    };
    let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    let full: u64 = names.filter_map(|name| newest(name.into_string().unwrap())).max().unwrap();
    let head = found["head"].as_str().unwrap().split(':').next().unwrap().to_owned();
    assert_eq!(head, (1_202 + full).to_string());
    let config = cluster.home().join("master.yml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("max_files: 3", "max_files: 1")).unwrap();
    cluster.master.process.signal(Signal::HUP);
    await_true("it is reloaded", || cluster.master.process.log().contains("audit.max_files"));
    for n in 0..300 {
        change(n);
    }
    assert_eq!(files(), 2);
    assert_intact(&dir);
    assert_eq!(actions(&listed(&dir, &[]))[0], "audit.continued");
}
