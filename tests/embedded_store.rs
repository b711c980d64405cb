//! The embedded store as one file: after a clean stop, as a backup of a running master, and what the master does when a
//! part of it is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use support::cluster::{Cluster, On, assert_complete};
use support::tree::{self, assert_same, census, strict};
use support::{await_some, await_that};

/// The directory and the database file of the master's store.
fn store(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let state = cluster.home().join("state");
    (state.clone(), state.join("longhaul.db"))
}

/// Leaves nothing of a store but, where there is one, the file `only`.
fn replace(state: &Path, only: Option<&Path>) {
    let kept = only.map(|file| fs::read(file).unwrap());
    fs::remove_dir_all(state).unwrap();
    tree::dir(state);
    if let Some(bytes) = kept {
        fs::write(state.join("longhaul.db"), bytes).unwrap();
    }
}

/// A cluster with one sync that has ended and one that is under way; its source and destination.
fn busy() -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(On::Embedded);
    let (src, root) = cluster.pair();
    let first = tree::dir(src.join("first"));
    tree::many(&first, 20, 1_000);
    assert_complete(&cluster.sync(&first, &root.join("first")), census(&first));
    let second = tree::dir(src.join("second"));
    let dst = root.join("second");
    cluster.in_the_middle(&second, &dst, (48, "12MiB/s"), json!({}));
    (cluster, second, dst)
}

/// Waits for the end of both syncs of [`busy`].
#[track_caller]
fn assert_goes_on(cluster: &Cluster, src: &Path, dst: &Path) {
    let list = cluster.master.get("/sync").json();
    let ids: Vec<&str> =
        list.as_array().unwrap().iter().map(|s| s["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{list}");
    for id in ids {
        assert_eq!(cluster.ended(id).state.as_str(), "COMPLETED");
    }
    assert_same(src, dst, strict());
    cluster.assert_no_panic();
}

#[test]
fn after_a_clean_stop_the_database_file_alone_is_the_store() {
    let (mut cluster, src, dst) = busy();
    assert_eq!(cluster.master.terminate().code(), Some(0));
    let (state, file) = store(&cluster);
    for suffix in ["-wal", "-shm"] {
        assert!(!state.join(format!("longhaul.db{suffix}")).exists(), "{suffix} is left");
    }
    replace(&state, Some(&file));
    cluster.master.restart();
    assert_goes_on(&cluster, &src, &dst);
    let log = cluster.master.process.log();
    assert!(!log.contains("is missing"), "{log}");
}

/// The key that signs tickets, as the database stores it.
fn signer(database: &std::path::Path) -> String {
    let connection = rusqlite::Connection::open(database).unwrap();
    let select = "SELECT value FROM records WHERE key = 'meta'";
    let meta: Vec<u8> = connection.query_row(select, [], |row| row.get(0)).unwrap();
    let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
    meta["signer"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_of_a_running_master_is_private_never_overwrites_and_is_restored_by_a_copy() {
    let (mut cluster, src, dst) = busy();
    let (state, _) = store(&cluster);
    let backups = tempfile::tempdir().unwrap();
    let file = backups.path().join("monday.db");
    let said = cluster.ctl(["admin", "backup"]).arg(&file).run().exits(0).out();
    assert!(said.contains("monday.db"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&file).unwrap();
    let refused = cluster.ctl(["admin", "backup"]).arg(&file).run().exits(1).err();
    assert!(refused.contains("not overwritten"), "{refused}");
    assert_eq!(fs::read(&file).unwrap(), before);
    let asked = cluster.ctl(["admin", "backup", "-o", "json"]).arg(backups.path().join("json"));
    assert!(asked.run().exits(0).json()["bytes"].as_u64().unwrap() > 4096);
    assert_eq!(fs::read_dir(backups.path()).unwrap().count(), 2, "nothing else is left there");
    let left: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("backup")), "{left:?}");

    cluster.master.kill_9();
    let key = signer(&state.join("longhaul.db"));
    let backup = String::from_utf8_lossy(&before);
    assert!(key.len() > 40 && !backup.contains(&key), "the key that signs tickets is in it");
    replace(&state, Some(&file));
    cluster.master.restart();
    assert_goes_on(&cluster, &src, &dst);
    cluster.master.kill_9();
    let new = signer(&state.join("longhaul.db"));
    assert!(new.len() > 40 && new != key, "a restored store draws a key and keeps it");
    let log = cluster.master.process.log();
    assert!(!log.contains("is missing"), "{log}");
}

#[test]
fn a_backup_that_cannot_be_written_or_is_not_answered_leaves_no_file() {
    let cluster = Cluster::start(On::Embedded);
    let dir = tempfile::tempdir().unwrap();
    let nowhere = cluster.ctl(["admin", "backup"]).arg(dir.path().join("no/such")).run().exits(1);
    assert!(nowhere.err().contains("no/such"), "{}", nowhere.err());
    let file = dir.path().join("f");
    let away = support::ctl::ctl(["admin", "backup", "--master-url", "http://127.0.0.1:1"]);
    away.arg(&file).run().exits(5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_master_on_redis_names_what_copies_its_state() {
    let cluster = Cluster::start(On::Redis);
    let dir = tempfile::tempdir().unwrap();
    let refused = cluster.ctl(["admin", "backup"]).arg(dir.path().join("f")).run().exits(1).err();
    for part in ["Redis at", "redis-cli BGSAVE", "docs/operations.md"] {
        assert!(refused.contains(part), "`{part}` in {refused}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_database_that_was_copied_without_its_log_is_named_at_the_start() {
    let (mut cluster, ..) = busy();
    let (state, file) = store(&cluster);
    cluster.master.kill_9();
    replace(&state, Some(&file));
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
fn a_database_that_is_deleted_under_a_running_master_is_named_and_can_still_be_saved() {
    let (mut cluster, src, dst) = busy();
    let (state, file) = store(&cluster);
    let saved = tempfile::tempdir().unwrap();
    // By itself, and with all that lies beside it.
    for all in [false, true] {
        if all {
            replace(&state, None)
        } else {
            fs::remove_file(&file).unwrap()
        }
        let told = await_some("it is noticed", || {
            cluster.master.readiness().filter(|told| told["status"] == "unavailable")
        });
        let why = told["reason"].as_str().unwrap();
        for part in ["longhaul.db", "deleted", "ctl admin backup"] {
            assert!(why.contains(part), "`{part}` in {why}");
        }
        assert_eq!(told["store"]["ok"], false, "{told}");
        let refused = cluster.master.get("/readyz");
        assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true));
        await_that("the log names it", || {
            let log = cluster.master.process.log();
            log.lines().any(|line| line.contains("ERROR") && line.contains("was deleted"))
        });
        let request = json!({"source_path": src, "destination_path": dst.with_extension("more")});
        assert_eq!(cluster.master.post("/sync", &request).status, 503);
        let backup = saved.path().join(format!("{all}.db"));
        cluster.ctl(["admin", "backup"]).arg(&backup).run().exits(0);
        assert_eq!(cluster.master.terminate().code(), Some(0));
        replace(&state, Some(&backup));
        cluster.master.restart();
    }
    assert_goes_on(&cluster, &src, &dst);
}
