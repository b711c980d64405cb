//! The contract on a directory, and damaged, deleted and copied files.

use super::database::LOCK_NAME;
use super::database_files::UsageMark;
use super::*;
use crate::store::contract::{self, LONG_LEASE, StoreFixture, acquire_leadership, put_batch};
use rusqlite::Connection;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt;

struct DiskFixture(tempfile::TempDir);

impl StoreFixture for DiskFixture {
    type S = EmbeddedStore;
    const HAS_LEASES: bool = false;

    async fn create() -> Self {
        DiskFixture(tempfile::tempdir().unwrap())
    }

    async fn open_store(&self) -> EmbeddedStore {
        EmbeddedStore::open(&self.0.path().join("data")).unwrap()
    }
}

contract::suite!(DiskFixture);

fn open(dir: &tempfile::TempDir) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open(dir.path())
}

fn sqlite(dir: &tempfile::TempDir) -> Connection {
    Connection::open(dir.path().join(FILE_NAME)).unwrap()
}

#[tokio::test]
async fn a_store_in_memory_is_private_to_its_handle() {
    let one = EmbeddedStore::open_in_memory().unwrap();
    let two = EmbeddedStore::open_in_memory().unwrap();
    let fence = acquire_leadership(&one, "m1").await;
    one.commit(fence, &put_batch("a", "1")).await.unwrap();
    assert_eq!(acquire_leadership(&two, "m2").await.seq, 0);
    assert_eq!(one.load().await.unwrap().len(), 1);
    assert_eq!(two.load().await.unwrap().len(), 0);
}

#[test]
fn every_sqlite_error_is_either_retried_or_fatal() {
    let path = DatabasePath(None);
    let unusable = [
        rusqlite::ffi::SQLITE_CORRUPT,
        rusqlite::ffi::SQLITE_NOTADB,
        rusqlite::ffi::SQLITE_CANTOPEN,
        rusqlite::ffi::SQLITE_PERM,
        rusqlite::ffi::SQLITE_READONLY,
        rusqlite::ffi::SQLITE_MISUSE,
        rusqlite::ffi::SQLITE_SCHEMA,
        rusqlite::ffi::SQLITE_MISMATCH,
    ];
    let unavailable = [
        rusqlite::ffi::SQLITE_BUSY,
        rusqlite::ffi::SQLITE_LOCKED,
        rusqlite::ffi::SQLITE_FULL,
        rusqlite::ffi::SQLITE_IOERR,
        rusqlite::ffi::SQLITE_NOMEM,
        rusqlite::ffi::SQLITE_INTERRUPT,
    ];
    for code in unusable.into_iter().chain(unavailable) {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        let ends = matches!(path.store_error("read", &error), StoreError::Unusable(_));
        assert_eq!(ends, unusable.contains(&code), "SQLite code {code}");
    }
    let text = |code| {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        path.store_error("read", &error).to_string()
    };
    assert!(text(rusqlite::ffi::SQLITE_NOTADB).contains("restore it from a backup"));
    assert!(text(rusqlite::ffi::SQLITE_READONLY).contains("belongs to the user"));
}

#[tokio::test]
async fn a_failed_commit_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    sqlite(&dir)
        .execute_batch(
            "CREATE TRIGGER fault BEFORE INSERT ON blobs WHEN NEW.key = 'poison'
             BEGIN SELECT RAISE(ABORT, 'injected'); END",
        )
        .unwrap();
    let blobs = ["first", "poison"].map(|key| (key.to_owned(), vec![1]));
    let batch =
        Batch { deletes: ["a".to_owned()].into(), blob_puts: blobs.into(), ..put_batch("b", "2") };
    let refused = store.commit(fence, &batch).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Unavailable(e) if e.contains("injected")), "{refused}");
    assert_eq!(store.load().await.unwrap(), put_batch("a", "1").puts);
    assert_eq!(store.blob_keys().await.unwrap(), BTreeSet::new());
    // The same commit succeeds without the fault.
    sqlite(&dir).execute_batch("DROP TRIGGER fault").unwrap();
    assert_eq!(store.commit(fence, &batch).await.unwrap().seq, 2);
    assert_eq!(store.load().await.unwrap(), put_batch("b", "2").puts);
    assert_eq!(store.blob_keys().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_locked_database_is_unavailable_and_a_free_one_works_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    store
        .run_on_thread(|database| {
            database.connection.busy_timeout(Duration::ZERO).unwrap();
            Ok(())
        })
        .await
        .unwrap();
    let other = sqlite(&dir);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = store.commit(fence, &put_batch("a", "1")).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(fence, &put_batch("a", "1")).await.unwrap();
}

#[tokio::test]
async fn the_files_are_private_and_the_lock_file_names_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("deep/data");
    let one = EmbeddedStore::open(&data).unwrap();
    acquire_leadership(&one, "master-1").await;
    for (path, mode) in [("", 0o700), (FILE_NAME, 0o600), (LOCK_NAME, 0o600)] {
        let found = std::fs::metadata(data.join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{path}");
    }
    let log = std::fs::metadata(data.join(format!("{FILE_NAME}-wal"))).unwrap();
    assert_eq!(log.permissions().mode() & 0o777, 0o600);
    let two = EmbeddedStore::open(&data).unwrap();
    let held = two.acquire(&"master-2".into(), LONG_LEASE).await.unwrap();
    assert!(matches!(held, AcquireOutcome::Held { holder, .. } if holder == "master-1"));
    drop(one);
    acquire_leadership(&two, "master-2").await;
}

#[tokio::test]
async fn another_schema_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir).unwrap());
    sqlite(&dir).execute("UPDATE meta SET value = '2' WHERE name = 'schema'", []).unwrap();
    let Err(StoreError::Unusable(error)) = open(&dir) else { panic!("opened") };
    assert!(error.contains("version 2") && error.contains(FILE_NAME), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE_NAME);
    std::fs::write(&file, "this is a diary, not a database; ".repeat(200)).unwrap();
    let refused = open(&dir).unwrap_err();
    assert!(matches!(&refused, StoreError::Unusable(e) if e.contains("damaged")), "{refused}");
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("this is a diary"));
    std::fs::remove_file(&file).unwrap();
    sqlite(&dir).execute_batch("CREATE TABLE diary (day)").unwrap();
    let refused = open(&dir).unwrap_err();
    assert!(matches!(&refused, StoreError::Unusable(e) if e.contains("not one of")), "{refused}");
    let not_a_directory = EmbeddedStore::open(&file).unwrap_err();
    assert!(matches!(&not_a_directory, StoreError::Unusable(e) if e.contains("data_dir")));
}

/// The names of the files of a store, without its lock.
fn file_names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != LOCK_NAME);
    names.sort();
    names
}

/// The records of a store that consists of a database file alone.
async fn records_in_file(file: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(file, dir.path().join(FILE_NAME)).unwrap();
    let store = open(&dir).unwrap();
    store.load().await.unwrap()
}

#[tokio::test]
async fn after_a_clean_stop_the_database_file_alone_is_complete() {
    for released in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let store = open(&dir).unwrap();
        let fence = acquire_leadership(&store, "m1").await;
        let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
        if released {
            store.release(fence).await.unwrap();
            // Also while this handle keeps the database open as a follower.
            assert_eq!(records_in_file(&file).await, put_batch("a", "1").puts);
        }
        store.close().await;
        assert_eq!(file_names(dir.path()), [FILE_NAME]);
        assert_eq!(records_in_file(&file).await, put_batch("a", "1").puts);
        let closed = store.load().await.unwrap_err();
        assert!(matches!(&closed, StoreError::Unavailable(e) if e.contains("closed")), "{closed}");
        assert_eq!(acquire_leadership(&open(&dir).unwrap(), "m2").await.seq, 1);
    }
}

#[tokio::test]
async fn a_missing_wal_is_reported_and_a_foreign_wal_is_not_applied() {
    use database_files::{InspectionResult, inspect_files, wal_path};
    let (origin, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (origin.path().join(FILE_NAME), copy.path().join(FILE_NAME));
    let copy_database = |wal: bool| {
        for old in file_names(copy.path()) {
            std::fs::remove_file(copy.path().join(old)).unwrap();
        }
        std::fs::copy(&from, &to).unwrap();
        if wal {
            std::fs::copy(wal_path(&from), wal_path(&to)).unwrap();
        }
        inspect_files(&to).unwrap()
    };
    let store = open(&origin).unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    // The files as after a kill.
    assert_eq!(copy_database(true), InspectionResult::Complete);
    assert_eq!(open(&copy).unwrap().load().await.unwrap(), put_batch("a", "1").puts);
    assert_eq!(copy_database(false), InspectionResult::WalMissing);
    // It starts without the missing commits, and is complete from then on.
    let incomplete = open(&copy).unwrap();
    assert_eq!(incomplete.load().await.unwrap(), BTreeMap::new());
    incomplete.close().await;
    assert_eq!(inspect_files(&to).unwrap(), InspectionResult::Complete);
    let foreign = std::fs::read(wal_path(&from)).unwrap();
    assert!(!foreign.is_empty());
    store.release(store.commit(fence, &put_batch("b", "2")).await.unwrap()).await.unwrap();
    store.close().await;
    assert_eq!(copy_database(false), InspectionResult::Complete);
    // A log beside a database that was stopped cleanly, or restored.
    std::fs::write(wal_path(&to), &foreign).unwrap();
    let restored = open(&copy).unwrap();
    assert_eq!(restored.load().await.unwrap().into_keys().collect::<String>(), "ab");
    restored.close().await;
    let names = file_names(copy.path());
    assert!(names.len() == 2 && names[1].starts_with("longhaul.db-wal.foreign-"), "{names:?}");
    assert_eq!(std::fs::read(copy.path().join(&names[1])).unwrap(), foreign);
}

/// Copies the files of the store in `dir`, as after a power failure at this instant.
fn copy_files(dir: &tempfile::TempDir) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in [FILE_NAME, "longhaul.db-wal"] {
        std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    copy
}

/// Opens a copy: it must hold all of `expected`, and no `-wal` may be renamed.
async fn assert_copy_holds(
    copy: &tempfile::TempDir,
    expected: &BTreeMap<String, Vec<u8>>,
    point: &str,
) {
    let store = open(copy).unwrap();
    assert_eq!(store.load().await.unwrap(), *expected, "{point}");
    acquire_leadership(&store, "next").await;
    store.close().await;
    assert_eq!(file_names(copy.path()), [FILE_NAME], "{point}");
    assert_eq!(records_in_file(&copy.path().join(FILE_NAME)).await, *expected, "{point}");
}

#[tokio::test]
async fn a_kill_at_any_point_of_a_stop_or_start_loses_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    store.commit(fence, &put_batch("a", "1")).await.unwrap();
    let expected = put_batch("a", "1").puts;
    let passive = |database: &mut Database| {
        // Moves everything and leaves the `-wal` unchanged, as in the instant before it is emptied.
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        database.connection.query_row(sql, [], |_| Ok(())).unwrap();
    };
    type Step = Box<dyn FnOnce(&mut Database) + Send>;
    let steps: [(&str, Step); 8] = [
        ("killed", Box::new(|_| ())),
        ("the commits are moved", Box::new(passive)),
        ("the log is empty", Box::new(|w| assert!(w.checkpoint().unwrap()))),
        ("`no` is committed", Box::new(|w| w.write_usage(&UsageMark::stopped()).unwrap())),
        ("`no` is moved", Box::new(passive)),
        ("stopped", Box::new(|w| assert!(w.checkpoint().unwrap()))),
        (
            "`yes` is committed",
            Box::new(|w| {
                let usage = UsageMark::read(&w.connection).unwrap();
                w.write_usage(&usage.into_in_use()).unwrap();
            }),
        ),
        ("`yes` is moved", Box::new(passive)),
    ];
    for (point, step) in steps {
        let stepped = store.run_on_thread(|database| {
            step(database);
            Ok(())
        });
        stepped.await.unwrap();
        assert_copy_holds(&copy_files(&dir), &expected, point).await;
    }
}

#[tokio::test]
async fn a_blocked_checkpoint_at_a_stop_or_start_loses_no_commit() {
    let dir = tempfile::tempdir().unwrap();
    let no_wait = |database: &mut Database| {
        database.connection.busy_timeout(Duration::ZERO).unwrap();
        Ok(())
    };
    let reader = || {
        let reader = sqlite(&dir);
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM records", [], |_| Ok(())).unwrap();
        reader
    };
    let store = open(&dir).unwrap();
    store.run_on_thread(no_wait).await.unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    let blocking = reader();
    let fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    store.release(fence).await.unwrap();
    // The mark `no` is not written before all commits are in the file: after a kill during the next checkpoint the
    // file would read `no` without them.
    let usage = store.run_on_thread(|w| w.query(UsageMark::read)).await.unwrap();
    assert_eq!(usage.clone().into_in_use(), usage, "still in use");
    assert_copy_holds(&copy_files(&dir), &put_batch("a", "1").puts, "a stop that is blocked").await;
    blocking.execute_batch("ROLLBACK").unwrap();
    let fence = acquire_leadership(&store, "m1").await;
    store.release(fence).await.unwrap();
    assert_eq!(records_in_file(&dir.path().join(FILE_NAME)).await, put_batch("a", "1").puts);
    // The file reads `no` while the start is blocked.
    let blocking = reader();
    let fence = acquire_leadership(&store, "m1").await;
    store.commit(fence, &put_batch("b", "2")).await.unwrap();
    let mut both = put_batch("a", "1").puts;
    both.extend(put_batch("b", "2").puts);
    assert_copy_holds(&copy_files(&dir), &both, "a start that is blocked").await;
    drop(blocking);
}

#[tokio::test]
async fn a_commit_to_deleted_files_is_refused() {
    use database_files::wal_path;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE_NAME);
    let store = open(&dir).unwrap();
    let mut fence = acquire_leadership(&store, "m1").await;
    fence = store.commit(fence, &put_batch("a", "1")).await.unwrap();
    let moved = dir.path().join("moved");
    for path in [file.clone(), wal_path(&file)] {
        for replaced in [false, true] {
            std::fs::rename(&path, &moved).unwrap();
            if replaced {
                std::fs::copy(&moved, &path).unwrap();
            }
            for refused in [
                store.commit(fence, &put_batch("b", "2")).await.map(drop),
                store.renew(fence, LONG_LEASE).await,
            ] {
                let Err(StoreError::Unavailable(reason)) = refused else { panic!("{refused:?}") };
                assert!(reason.contains(path.to_str().unwrap()), "{reason}");
                assert!(
                    reason.contains("deleted") && reason.contains("ctl admin backup"),
                    "{reason}"
                );
            }
            // A backup contains all acknowledged commits.
            let backup = store.backup(NO_SECRET).await.unwrap().unwrap();
            assert_eq!(restore_backup(backup).await, store.load().await.unwrap());
            std::fs::rename(&moved, &path).unwrap();
            fence = store.commit(fence, &put_batch("c", "3")).await.unwrap();
        }
    }
    // A file of another database at the same path is not changed.
    std::fs::rename(wal_path(&file), &moved).unwrap();
    std::fs::write(wal_path(&file), "of another database").unwrap();
    store.close().await;
    assert_eq!(std::fs::read_to_string(wal_path(&file)).unwrap(), "of another database");
}

/// Removes nothing.
const NO_SECRET: Redaction = Redaction { key: "none", remove: |_| None };

#[tokio::test]
async fn a_backup_contains_no_byte_of_a_secret_and_only_one_runs_at_a_time() {
    const SECRET: &[u8] = b"the-key-that-signs";
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    let mut fence = acquire_leadership(&store, "m1").await;
    // Enough records for several pages, so that values move between them.
    for round in 0..200 {
        let mut batch = put_batch(&format!("m{round}"), &"x".repeat(100));
        batch.puts.insert("meta".to_owned(), [SECRET, b" and numbers"].concat());
        fence = store.commit(fence, &batch).await.unwrap();
    }
    let redaction =
        Redaction { key: "meta", remove: |value| value.strip_prefix(SECRET).map(<[u8]>::to_vec) };
    let mut backup = store.backup(redaction).await.unwrap().unwrap();
    let refused = store.backup(redaction).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Unavailable(e) if e.contains("another backup")),
        "{refused}"
    );
    let mut bytes = Vec::new();
    backup.file.read_to_end(&mut bytes).unwrap();
    backup.file.rewind().unwrap();
    assert!(!bytes.windows(SECRET.len()).any(|found| found == SECRET));
    let mut expected = store.load().await.unwrap();
    expected.insert("meta".to_owned(), b" and numbers".to_vec());
    assert_eq!(restore_backup(backup).await, expected);
    assert!(store.backup(redaction).await.is_ok(), "the first one is dropped");
    let unreadable = Redaction { remove: |_| None, ..redaction };
    let refused = store.backup(unreadable).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Unusable(e) if e.contains("`meta`")), "{refused}");
    store.close().await;
    assert_eq!(file_names(dir.path()), [FILE_NAME]);
}

/// The records of a store that is restored from a backup.
async fn restore_backup(mut backup: Backup) -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.db");
    let mut bytes = Vec::new();
    backup.file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, backup.bytes);
    assert_eq!(crate::util::checksum::header_value(&bytes), backup.checksum);
    std::fs::write(&file, &bytes).unwrap();
    assert_eq!(
        database_files::inspect_files(&file).unwrap(),
        database_files::InspectionResult::Complete
    );
    records_in_file(&file).await
}

#[tokio::test]
async fn a_backup_is_the_state_of_one_instant_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).unwrap();
    let mut fence = acquire_leadership(&store, "m1").await;
    let large =
        Batch { blob_puts: [("m".to_owned(), vec![7; 4 << 20])].into(), ..put_batch("0", "0") };
    fence = store.commit(fence, &large).await.unwrap();
    // A copy of a killed master, and a file of an operator.
    let stale = format!("longhaul.db.copying-{}", uuid::Uuid::new_v4().simple());
    let own = "longhaul.db.copying-of-monday";
    for name in [stale.as_str(), own] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    let store = std::sync::Arc::new(store);
    let backup = tokio::spawn({
        let store = store.clone();
        async move { store.backup(NO_SECRET).await.unwrap().unwrap() }
    });
    // Commits continue meanwhile. Each writes a pair, of which the copy has both or none.
    let mut round = 0;
    while !backup.is_finished() || round == 0 {
        round += 1;
        let mut pair = put_batch("left", &round.to_string());
        pair.puts.extend(put_batch("right", &round.to_string()).puts);
        fence = store.commit(fence, &pair).await.unwrap();
    }
    let found = restore_backup(backup.await.unwrap()).await;
    assert_eq!(found.get("left"), found.get("right"));
    assert_eq!(found.get("0"), Some(&b"0".to_vec()));
    assert_eq!(restore_backup(store.backup(NO_SECRET).await.unwrap().unwrap()).await.len(), 3);
    let none = EmbeddedStore::open_in_memory().unwrap();
    assert!(none.backup(NO_SECRET).await.unwrap().is_none());
    store.close().await;
    drop(open(&dir).unwrap());
    assert_eq!(file_names(dir.path()), [FILE_NAME, own]);
}

/// Counts the pages of a file that the kernel has not written to the disk yet (`cachestat`, Linux 6.5).
struct DirtyPageProbe {
    counter: std::process::Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl DirtyPageProbe {
    fn new(file: &std::path::Path) -> DirtyPageProbe {
        const SCRIPT: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDONLY)
span, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
for line in sys.stdin:
    if libc.syscall(451, fd, span, found, 0):
        sys.exit('cachestat: ' + os.strerror(ctypes.get_errno()))
    print(found[1] + found[2], flush=True)
";
        let piped = std::process::Stdio::piped;
        let mut counter = std::process::Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(file)
            .stdin(piped())
            .stdout(piped())
            .spawn()
            .expect("this test needs python3");
        let answers = std::io::BufReader::new(counter.stdout.take().unwrap());
        DirtyPageProbe { counter, answers }
    }

    fn count(&mut self) -> u64 {
        use std::io::BufRead as _;
        self.counter.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().parse().expect("this test needs Linux 6.5 or later (cachestat)")
    }
}

impl Drop for DirtyPageProbe {
    fn drop(&mut self) {
        let _ = self.counter.kill();
        let _ = self.counter.wait();
    }
}

#[tokio::test]
async fn a_commit_is_on_stable_storage_when_it_returns() {
    // In the build directory: the directory for temporary files may be in memory.
    let program = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let store = open(&dir).unwrap();
    let mut fence = acquire_leadership(&store, "m1").await;
    let level = store.run_on_thread(|database| {
        database.query(|c| c.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0)))
    });
    assert_eq!(level.await.unwrap(), 2, "FULL, on the connection that commits");
    let mut dirty = DirtyPageProbe::new(&database_files::wal_path(&dir.path().join(FILE_NAME)));
    for round in 0..5 {
        fence = store.commit(fence, &put_batch("a", &round.to_string())).await.unwrap();
        assert_eq!(dirty.count(), 0, "commit {round}");
    }
    // With the next lower level, pages of the log stay in memory, which the probe shows.
    let lower = store.run_on_thread(|database| {
        database.query(|c| c.pragma_update(None, "synchronous", "NORMAL"))
    });
    lower.await.unwrap();
    let mut seen = 0;
    for round in 0..100 {
        fence = store.commit(fence, &put_batch("a", &round.to_string())).await.unwrap();
        seen = dirty.count();
        if seen > 0 {
            break;
        }
    }
    assert!(seen > 0, "{} shows no unwritten pages: it needs a disk", dir.path().display());
}
