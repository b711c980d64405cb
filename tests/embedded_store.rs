//! The embedded store as one file: after a clean stop, as a backup of a running master, and what the master does when a
//! part of it is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, StoreKind, assert_complete};
use support::tree::{self, assert_same, census, exact_comparison};
use support::{await_some, await_true};

/// The directory and the database file of the master's store.
fn store_files(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let state = cluster.home().join("state");
    (state.clone(), state.join("longhaul.db"))
}

/// Leaves nothing of a store but, where there is one, the file `only`, and the key that opens secrets, of which an
/// operator has a copy.
fn replace_store(state: &Path, only: Option<&Path>) {
    let kept = only.map(|file| fs::read(file).unwrap());
    let secrets_key = fs::read(state.join("secrets.key")).unwrap();
    fs::remove_dir_all(state).unwrap();
    tree::make_dir(state);
    let copy = state.join("secrets.key");
    fs::write(&copy, secrets_key).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    if let Some(bytes) = kept {
        fs::write(state.join("longhaul.db"), bytes).unwrap();
    }
}

/// A cluster with one sync that has ended and one that is under way; its source and destination.
fn cluster_with_running_sync() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(StoreKind::Embedded);
    let (src, root) = cluster.add_source_and_destination();
    let first = tree::make_dir(src.join("first"));
    tree::write_many_files(&first, 20, 1_000);
    assert_complete(&cluster.run_sync(&first, &root.join("first")), census(&first));
    let second = tree::make_dir(src.join("second"));
    let dst = root.join("second");
    cluster.submit_and_await_partial(&second, &dst, (48, "12MiB/s"), json!({}));
    (cluster, second, dst)
}

/// Waits for the end of both syncs of [`syncs_in_each_state`].
#[track_caller]
fn assert_continues(cluster: &Cluster, src: &Path, dst: &Path) {
    let list = cluster.master.get("/sync").json();
    let ids: Vec<&str> =
        list.as_array().unwrap().iter().map(|s| s["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{list}");
    for id in ids {
        assert_eq!(cluster.await_end(id).state.as_str(), "COMPLETED");
    }
    assert_same(src, dst, exact_comparison());
    cluster.assert_no_panic();
}

#[test]
fn after_a_clean_stop_the_database_file_and_the_key_of_its_secrets_are_the_store() {
    let (mut cluster, src, dst) = cluster_with_running_sync();
    assert_eq!(cluster.master.terminate().code(), Some(0));
    let (state, file) = store_files(&cluster);
    for suffix in ["-wal", "-shm"] {
        assert!(!state.join(format!("longhaul.db{suffix}")).exists(), "{suffix} is left");
    }
    replace_store(&state, Some(&file));
    cluster.master.restart();
    assert_continues(&cluster, &src, &dst);
    let log = cluster.master.process.log();
    assert!(!log.contains("is missing"), "{log}");
}

/// The key that signs tickets, sealed, as the database stores it.
fn read_signing_key(database: &std::path::Path) -> String {
    let connection = rusqlite::Connection::open(database).unwrap();
    let select = "SELECT value FROM records WHERE key = 'meta'";
    let meta: Vec<u8> = connection.query_row(select, [], |row| row.get(0)).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
    meta["ticket_keys"][0]["sealed"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_of_a_running_master_is_private_never_overwrites_and_is_restored_by_copying() {
    let (mut cluster, src, dst) = cluster_with_running_sync();
    let (state, _) = store_files(&cluster);
    let backups = tempfile::tempdir().unwrap();
    let file = backups.path().join("monday.db");
    let printed =
        cluster.ctl(["admin", "backup"]).arg(&file).run().assert_exit_code(0).stdout_text();
    assert!(printed.contains("monday.db"), "{printed}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&file).unwrap();
    let refused =
        cluster.ctl(["admin", "backup"]).arg(&file).run().assert_exit_code(1).stderr_text();
    assert!(refused.contains("not overwritten"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let asked = cluster.ctl(["admin", "backup", "-o", "json"]).arg(backups.path().join("json"));
    assert!(asked.run().assert_exit_code(0).json()["bytes"].as_u64().unwrap() > 4096);
    assert_eq!(fs::read_dir(backups.path()).unwrap().count(), 2, "nothing else is left there");
    let left: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("backup")), "{left:?}");

    cluster.master.kill_9();
    let key = read_signing_key(&state.join("longhaul.db"));
    let backup = String::from_utf8_lossy(&before);
    assert!(key.len() > 40 && !backup.contains(&key), "the key that signs tickets is in it");
    replace_store(&state, Some(&file));
    cluster.master.restart();
    assert_continues(&cluster, &src, &dst);
    cluster.master.kill_9();
    let new = read_signing_key(&state.join("longhaul.db"));
    assert!(new.len() > 40 && new != key, "a restored store draws a key and keeps it");
    let log = cluster.master.process.log();
    assert!(!log.contains("is missing"), "{log}");
}

#[test]
fn a_failed_backup_leaves_no_file() {
    let cluster = Cluster::start(StoreKind::Embedded);
    let dir = tempfile::tempdir().unwrap();
    let nowhere =
        cluster.ctl(["admin", "backup"]).arg(dir.path().join("no/such")).run().assert_exit_code(1);
    assert!(nowhere.stderr_text().contains("no/such"), "{}", nowhere.stderr_text());
    let file = dir.path().join("f");
    let away = support::ctl::ctl(["admin", "backup", "--master-url", "http://127.0.0.1:1"]);
    away.arg(&file).run().assert_exit_code(5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_master_on_redis_names_the_command_that_copies_its_state() {
    let cluster = Cluster::start(StoreKind::Redis);
    let dir = tempfile::tempdir().unwrap();
    let refused = cluster
        .ctl(["admin", "backup"])
        .arg(dir.path().join("f"))
        .run()
        .assert_exit_code(1)
        .stderr_text();
    for part in ["Redis at", "redis-cli BGSAVE", "docs/operations.md"] {
        assert!(refused.contains(part), "`{part}` in {refused}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_database_copied_without_its_log_is_reported_at_startup() {
    let (mut cluster, ..) = cluster_with_running_sync();
    let (state, file) = store_files(&cluster);
    cluster.master.kill_9();
    replace_store(&state, Some(&file));
    cluster.master.restart();
    let log = cluster.master.process.log();
    let line = log.lines().find(|line| line.contains("is missing"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for part in ["ERROR", "longhaul.db-wal is missing", "ctl admin backup"] {
        assert!(line.contains(part), "`{part}` in {line}");
    }
    // The next start, after a clean stop, has nothing to say.
    cluster.master.terminate();
    cluster.master.restart();
    let log = cluster.master.process.log();
    assert_eq!(log.matches("longhaul.db-wal is missing").count(), 1, "{log}");
}

#[test]
fn a_database_deleted_under_a_running_master_is_reported_and_can_be_backed_up() {
    let (mut cluster, src, dst) = cluster_with_running_sync();
    let (state, file) = store_files(&cluster);
    let saved = tempfile::tempdir().unwrap();
    // By itself, and with all that lies beside it.
    for all in [false, true] {
        if all {
            replace_store(&state, None)
        } else {
            fs::remove_file(&file).unwrap()
        }
        let reported = await_some("it is noticed", || {
            cluster.master.readiness().filter(|reported| reported["status"] == "unavailable")
        });
        let why = reported["reason"].as_str().unwrap();
        for part in ["longhaul.db", "deleted", "ctl admin backup"] {
            assert!(why.contains(part), "`{part}` in {why}");
        }
        assert_eq!(reported["store"]["ok"], false, "{reported}");
        let refused = cluster.master.get("/readyz");
        assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true));
        await_true("the log names it", || {
            let log = cluster.master.process.log();
            log.lines().any(|line| line.contains("ERROR") && line.contains("was deleted"))
        });
        let request = json!({"source_path": src, "destination_path": dst.with_extension("more")});
        assert_eq!(cluster.master.post("/sync", &request).status, 503);
        let backup = saved.path().join(format!("{all}.db"));
        cluster.ctl(["admin", "backup"]).arg(&backup).run().assert_exit_code(0);
        assert_eq!(cluster.master.terminate().code(), Some(0));
        replace_store(&state, Some(&backup));
        cluster.master.restart();
    }
    assert_continues(&cluster, &src, &dst);
}
