//! The store of a single master: one SQLite file in its data directory, or nothing but memory.
//!
//! One thread owns the connection; calls are handed to it and run one after the other. A commit is
//! one transaction, on stable storage (`synchronous=FULL`) when its call returns. Whoever holds the lock on
//! `master.lock` leads, so leases do not run out here and no clock matters; the kernel drops the lock with the process.
//!
//! After a clean stop `longhaul.db` alone holds everything. `files` finds out whether a file is missing, `backup`
//! copies a database that is in use.

mod backup;
mod database_files;

use super::fence::{CommitDecision, LeaderRecord};
use super::{
    AcquireOutcome, Backup, Batch, Candidate, Fence, Redaction, SCHEMA, Store, StoreError,
    check_schema, new_session_id,
};
use crate::util::private_files;
use database_files::{OpenFiles, USAGE_TABLE, UsageMark};
use parking_lot::Mutex;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// The database inside the data directory.
const FILE_NAME: &str = "longhaul.db";
/// Whoever has locked this file leads.
const LOCK_NAME: &str = "master.lock";
/// When to ask again for a lock: there is no telling when its process ends.
const LOCK_RETRY_MS: u64 = 1000;

/// Where the data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In this directory, which is made if it does not exist.
    Directory(PathBuf),
    /// Nowhere but in this process: for one-shot use.
    Memory,
}

/// The store of a single master. A commit is on stable storage when its call returns; leadership is
/// a lock on a file, so a lease never runs out here. Dropping it closes the file and frees the lock.
#[derive(Debug)]
pub struct EmbeddedStore {
    session_id: String,
    path: DatabasePath,
    /// `None` once it is closed.
    thread: Mutex<Option<StoreThread>>,
    /// One permit: each copy takes as much room on the disk as the database.
    backup_permits: Arc<Semaphore>,
}

/// The thread, which ends after the last job when no sender is left.
#[derive(Debug)]
struct StoreThread {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// What the thread owns.
struct Database {
    connection: Connection,
    path: DatabasePath,
    /// Locked while we lead, and from the start where nobody leads; never used in memory.
    lock_file: Option<File>,
    /// The files that SQLite has open, from when this handle led first.
    open_files: Option<OpenFiles>,
    /// Whether the database records that it is in use by this handle.
    in_use: bool,
}

/// For messages: which file it is about.
#[derive(Debug, Clone)]
struct DatabasePath(Option<PathBuf>);

impl EmbeddedStore {
    /// Opens the store and creates what is missing. The data is readable by its owner only: it holds the key that
    /// signs tickets. Blocks for the few file operations that this takes.
    ///
    /// # Errors
    /// [`Unusable`](StoreError::Unusable) for what is no store of ours, is damaged, or was written
    /// by a newer binary; [`Unavailable`](StoreError::Unavailable) when the disk fails or is full.
    pub fn open(location: Location) -> Result<Self, StoreError> {
        let place = DatabasePath(match &location {
            Location::Directory(dir) => Some(dir.join(FILE_NAME)),
            Location::Memory => None,
        });
        let mut lock = None;
        if let Location::Directory(dir) = &location {
            create_data_dir(dir)?;
            lock = try_lock_file(&dir.join(LOCK_NAME))?.ok();
        }
        if let (Some(file), true) = (&place.0, lock.is_some()) {
            database_files::inspect_files(file)?;
            backup::remove_stale_copies(file);
        }
        let opened = match &place.0 {
            Some(file) => Connection::open(file),
            None => Connection::open_in_memory(),
        };
        let mut connection = opened.map_err(|e| place.store_error("open", &e))?;
        initialize_database(&mut connection, &place)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let place_of_all = place.clone();
        let mut worker =
            Database { connection, path: place, lock_file: lock, open_files: None, in_use: false };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                queue.into_iter().for_each(|job| job(&mut worker));
                worker.close();
            })
            .map_err(|e| StoreError::Unavailable(format!("no thread for the store: {e}")))?;
        let running = Mutex::new(Some(StoreThread { jobs, thread }));
        let copying = Arc::new(Semaphore::new(1));
        Ok(EmbeddedStore {
            session_id: new_session_id(),
            path: place_of_all,
            thread: running,
            backup_permits: copying,
        })
    }

    /// Runs `work` on the thread.
    async fn run_on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            // Nobody waits any more: the call took effect all the same.
            let _ = reply.send(work(worker));
        });
        let ended = || StoreError::Unavailable("the store is closed".to_owned());
        match &*self.lock_thread() {
            Some(running) => running.jobs.send(job).map_err(|_| ended())?,
            None => return Err(ended()),
        }
        answer.await.map_err(|_| ended())?
    }

    fn lock_thread(&self) -> parking_lot::MutexGuard<'_, Option<StoreThread>> {
        self.thread.lock()
    }
}

impl StoreThread {
    /// Waits until the thread has closed the file and freed the lock.
    fn join(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}

impl Drop for EmbeddedStore {
    /// Blocks until the lock is free and the file closed.
    fn drop(&mut self) {
        let running = self.lock_thread().take();
        if let Some(running) = running {
            running.join();
        }
    }
}

impl DatabasePath {
    fn display(&self) -> String {
        self.0.as_ref().map_or_else(|| "in memory".to_owned(), |file| file.display().to_string())
    }

    /// `what` failed in SQLite: does trying again help?
    fn store_error(&self, what: &str, error: &rusqlite::Error) -> StoreError {
        use ErrorCode::{
            ApiMisuse, CannotOpen, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly,
            SchemaChanged, TypeMismatch,
        };
        let text = format!("cannot {what} {}: {error}", self.display());
        match error.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => StoreError::Unusable(format!(
                "{text}; the file is damaged: restore it from a backup, or move it away to start with an empty store"
            )),
            Some(CannotOpen | PermissionDenied | ReadOnly) => StoreError::Unusable(format!(
                "{text}; check that its directory belongs to the user that runs the master"
            )),
            Some(ApiMisuse | SchemaChanged | TypeMismatch) => StoreError::Unusable(text),
            _ => StoreError::Unavailable(text),
        }
    }
}

/// Makes the directory and the empty file, both for their owner only.
fn create_data_dir(dir: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, e: std::io::Error| {
        StoreError::Unusable(format!(
            "cannot create {}: {e}; create it for the user that runs the master, or set another data_dir",
            path.display()
        ))
    };
    private_files::create_dir(dir).map_err(|e| failed(dir, e))?;
    let file = dir.join(FILE_NAME);
    private_files::open_file(&file).map(drop).map_err(|e| failed(&file, e))
}

/// Locks the file at `path`; where another process has it, the inner error is that one's name.
fn try_lock_file(path: &Path) -> Result<Result<File, String>, StoreError> {
    let failed =
        |e: std::io::Error| StoreError::Unusable(format!("cannot lock {}: {e}", path.display()));
    let file = private_files::open_file(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Ok(file)),
        Err(TryLockError::WouldBlock) => {
            let mut name = Vec::new();
            // Only for the message; the name may just be being written.
            let _ = file.take(256).read_to_end(&mut name);
            let name = String::from_utf8_lossy(&name).trim().to_owned();
            let unknown = || format!("the process that has locked {}", path.display());
            Ok(Err(if name.is_empty() { unknown() } else { name }))
        }
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn initialize_database(
    connection: &mut Connection,
    place: &DatabasePath,
) -> Result<(), StoreError> {
    let run = |connection: &mut Connection| -> rusqlite::Result<Option<String>> {
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "trusted_schema", "OFF")?;
        // A large commit must not leave a large log behind.
        connection.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))?;
        let has_meta = |c: &Connection| {
            c.query_row(
                "SELECT count(*), coalesce(sum(name IN ('meta', ?1)), 0) FROM sqlite_master",
                [USAGE_TABLE],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? == 2)),
            )
        };
        if has_meta(connection)?.0 == 0 {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been quicker.
            if has_meta(&tx)?.0 == 0 {
                tx.execute_batch(
                    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                     CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
                     CREATE TABLE blobs (key TEXT PRIMARY KEY, value BLOB NOT NULL);",
                )?;
                set_meta(&tx, "schema", &SCHEMA.to_string())?;
                UsageMark::stopped().create(&tx)?;
            }
            tx.commit()?;
        }
        if !has_meta(connection)?.1 {
            return Ok(None);
        }
        connection
            .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0))
            .optional()
    };
    match run(connection).map_err(|e| place.store_error("open", &e))? {
        Some(version) => check_schema(&version, &place.display()),
        None => Err(StoreError::Unusable(format!(
            "{} is a database, but not one of Longhaul; move it away or set another data_dir",
            place.display()
        ))),
    }
}

fn set_meta(tx: &Transaction<'_>, name: &str, value: &str) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute([name, value])
        .map(drop)
}

fn read_leader_record(connection: &Connection) -> rusqlite::Result<LeaderRecord> {
    let mut statement = connection.prepare_cached("SELECT name, value FROM meta")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut meta = rows.collect::<rusqlite::Result<BTreeMap<String, String>>>()?;
    let number = |meta: &BTreeMap<String, String>, name: &str| -> u64 {
        meta.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    Ok(LeaderRecord {
        epoch: number(&meta, "epoch"),
        seq: number(&meta, "seq"),
        session_id: meta.remove("owner").unwrap_or_default(),
        holder: meta.remove("holder").unwrap_or_default(),
        holder_info: meta.remove("about").unwrap_or_default(),
        last_digest: meta.remove("last").unwrap_or_default(),
    })
}

fn write_leader_record(tx: &Transaction<'_>, reign: &LeaderRecord) -> rusqlite::Result<()> {
    set_meta(tx, "epoch", &reign.epoch.to_string())?;
    set_meta(tx, "seq", &reign.seq.to_string())?;
    set_meta(tx, "owner", &reign.session_id)?;
    set_meta(tx, "holder", &reign.holder)?;
    set_meta(tx, "about", &reign.holder_info)?;
    set_meta(tx, "last", &reign.last_digest)
}

fn write_batch(tx: &Transaction<'_>, batch: &Batch) -> rusqlite::Result<()> {
    if batch.replace {
        tx.execute("DELETE FROM records", [])?;
    }
    for (table, deletes, puts) in
        [("records", &batch.deletes, &batch.puts), ("blobs", &batch.blob_deletes, &batch.blob_puts)]
    {
        let mut delete = tx.prepare_cached(&format!("DELETE FROM {table} WHERE key = ?1"))?;
        for key in deletes {
            delete.execute([key])?;
        }
        let mut put = tx.prepare_cached(&format!(
            "INSERT INTO {table} (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        ))?;
        for (key, value) in puts {
            put.execute(params![key, value])?;
        }
    }
    Ok(())
}

impl Database {
    fn acquire(
        &mut self,
        candidate: &Candidate,
        owner: &str,
    ) -> Result<AcquireOutcome, StoreError> {
        // It is never behind what anybody saw: a file does not go back by itself.
        if let Some(by) = self.acquire_lock(&candidate.name)? {
            let reign = self.leader_record()?;
            let at = reign.fence();
            // Who has just taken the lock may not have written of itself yet.
            let about = if reign.holder == by { reign.holder_info } else { String::new() };
            return Ok(AcquireOutcome::Held {
                holder: by,
                holder_info: about,
                fence: at,
                retry_after_ms: LOCK_RETRY_MS,
            });
        }
        let place = self.path.clone();
        let mut run = || -> rusqlite::Result<LeaderRecord> {
            let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let before = read_leader_record(&tx)?;
            let reign = LeaderRecord {
                epoch: before.epoch.saturating_add(1),
                session_id: owner.to_owned(),
                holder: candidate.name.clone(),
                holder_info: candidate.info.clone(),
                seq: before.seq,
                last_digest: String::new(),
            };
            write_leader_record(&tx, &reign)?;
            tx.commit()?;
            Ok(reign)
        };
        let reign = run().map_err(|e| place.store_error("write to", &e))?;
        Ok(AcquireOutcome::Leader(Fence { epoch: reign.epoch, seq: reign.seq }))
    }

    /// Locks the lock file, or says who has.
    fn acquire_lock(&mut self, holder: &str) -> Result<Option<String>, StoreError> {
        let Some(path) = self.path.0.as_ref().map(|file| file.with_file_name(LOCK_NAME)) else {
            return Ok(None);
        };
        if self.lock_file.is_none() {
            match try_lock_file(&path)? {
                Ok(lock) => self.lock_file = Some(lock),
                Err(by) => return Ok(Some(by)),
            }
        }
        if !self.in_use {
            self.start_use()?;
        }
        if let Some(lock) = &mut self.lock_file {
            // The name is for people and for messages; the lock is what counts.
            let _ = lock.set_len(0).and_then(|()| lock.rewind());
            let _ = writeln!(lock, "{holder}");
        }
        Ok(None)
    }

    /// Records in the database file that it is in use, and moves into it what the log holds.
    fn start_use(&mut self) -> Result<(), StoreError> {
        // Where a reader blocks the checkpoint, the `-wal` begins with this mark, and so belongs to the file.
        let marked = UsageMark::read(&self.connection)
            .and_then(|usage| self.write_usage(&usage.into_in_use()))
            .and_then(|()| self.checkpoint());
        marked.map_err(|e| self.path.store_error("write to", &e))?;
        self.open_files = self.path.0.as_deref().map(OpenFiles::stat);
        self.in_use = true;
        Ok(())
    }

    /// Moves everything into the database file, which needs nothing beside it from then on, and frees the lock.
    fn stop_use(&mut self) {
        if self.lock_file.is_some() {
            let why = match self.mark_stopped() {
                Ok(true) => None,
                Ok(false) => Some("another program reads it".to_owned()),
                Err(e) => Some(e.to_string()),
            };
            if let Some(why) = why {
                tracing::warn!(
                    "{} is not complete without the -wal file beside it ({why}): a copy of it needs both",
                    self.path.display()
                );
            }
        }
        self.in_use = false;
        self.lock_file = None;
    }

    /// Empties the `-wal` and then records that the database is not in use: a file that is marked so holds every
    /// commit at each instant. False: a reader blocks a checkpoint, so that the `-wal` is still needed.
    fn mark_stopped(&mut self) -> rusqlite::Result<bool> {
        if !self.checkpoint()? {
            return Ok(false);
        }
        self.write_usage(&UsageMark::stopped())?;
        self.checkpoint()
    }

    /// Commits `usage` to the `-wal`.
    fn write_usage(&mut self, usage: &UsageMark) -> rusqlite::Result<()> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        usage.write(&tx)?;
        tx.commit()
    }

    /// Moves the `-wal` into the database file. False: a reader blocks it, so that not all of it is moved.
    fn checkpoint(&self) -> rusqlite::Result<bool> {
        let blocked: bool =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(!blocked)
    }

    fn close(mut self) {
        self.stop_use();
        if let (Some(file), Some(opened)) = (&self.path.0, self.open_files)
            && opened.check(file).is_err()
        {
            // SQLite would remove the `-wal` that is at the path now, which is not the one that it has open.
            std::mem::forget(self.connection);
            return;
        }
        if let Err((_, e)) = self.connection.close() {
            tracing::warn!("{} was not closed cleanly: {e}", self.path.display());
        }
    }

    /// Checks that what is written has a name, as long as this handle leads.
    fn check_files(&self) -> Result<(), StoreError> {
        match (&self.path.0, self.open_files) {
            (Some(file), Some(opened)) => opened.check(file),
            _ => Ok(()),
        }
    }

    fn commit(&mut self, fence: Fence, batch: &Batch, owner: &str) -> Result<Fence, StoreError> {
        self.check_files()?;
        let digest = batch.digest();
        let place = self.path.clone();
        let failed = |e: rusqlite::Error| place.store_error("write to", &e);
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let mut reign = read_leader_record(&tx).map_err(failed)?;
        let seq = match reign.check_commit(fence, owner, &digest, batch.replace)? {
            CommitDecision::Repeated(seq) => return Ok(Fence { seq, ..fence }),
            CommitDecision::Write(seq) => seq,
        };
        reign.epoch = fence.epoch;
        owner.clone_into(&mut reign.session_id);
        reign.seq = seq;
        reign.last_digest = digest;
        write_batch(&tx, batch)
            .and_then(|()| write_leader_record(&tx, &reign))
            .and_then(|()| tx.commit())
            .map_err(failed)?;
        Ok(Fence { seq, ..fence })
    }

    fn leader_record(&self) -> Result<LeaderRecord, StoreError> {
        read_leader_record(&self.connection).map_err(|e| self.path.store_error("read", &e))
    }

    fn query<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.connection).map_err(|e| self.path.store_error("read", &e))
    }
}

impl Store for EmbeddedStore {
    async fn acquire(
        &self,
        candidate: &Candidate,
        _ttl: Duration,
    ) -> Result<AcquireOutcome, StoreError> {
        let (candidate, owner) = (candidate.clone(), self.session_id.clone());
        self.run_on_thread(move |worker| worker.acquire(&candidate, &owner)).await
    }

    async fn renew(&self, fence: Fence, _ttl: Duration) -> Result<(), StoreError> {
        let owner = self.session_id.clone();
        self.run_on_thread(move |worker| {
            worker.check_files()?;
            worker.leader_record()?.check_renewal(fence, &owner)
        })
        .await
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        let owner = self.session_id.clone();
        self.run_on_thread(move |worker| {
            let reign = worker.leader_record()?;
            if reign.epoch == fence.epoch && reign.session_id == owner {
                worker.stop_use();
            }
            Ok(())
        })
        .await
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.run_on_thread(|worker| {
            worker.query(|connection| {
                let mut statement = connection.prepare_cached("SELECT key, value FROM records")?;
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
        })
        .await
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        let (batch, owner) = (batch.clone(), self.session_id.clone());
        self.run_on_thread(move |worker| worker.commit(fence, &batch, &owner)).await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let key = key.to_owned();
        self.run_on_thread(move |worker| {
            worker.query(|connection| {
                connection
                    .prepare_cached("SELECT value FROM blobs WHERE key = ?1")?
                    .query_row([key], |row| row.get(0))
                    .optional()
            })
        })
        .await
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.run_on_thread(|worker| {
            worker.query(|connection| {
                let mut statement = connection.prepare_cached("SELECT key FROM blobs")?;
                statement.query_map([], |row| row.get(0))?.collect()
            })
        })
        .await
    }

    async fn backup(&self, redaction: Redaction) -> Result<Option<Backup>, StoreError> {
        let Some(file) = self.path.0.clone() else { return Ok(None) };
        let permit = self.backup_permits.clone().try_acquire_owned().map_err(|_| {
            StoreError::Unavailable("another backup is being made or sent".to_owned())
        })?;
        let place = self.path.clone();
        if self.run_on_thread(|worker| Ok(worker.check_files().is_ok())).await? {
            let copying = tokio::task::spawn_blocking(move || {
                backup::copy_with_own_connection(&place, &file, redaction, permit)
            });
            let ended = |e| StoreError::Unavailable(format!("the copy was not finished: {e}"));
            return copying.await.map_err(ended)?.map(Some);
        }
        // Only this connection still has the files.
        self.run_on_thread(move |worker| {
            backup::copy_database(&worker.connection, &place, &file, redaction, permit)
        })
        .await
        .map(Some)
    }

    async fn close(&self) {
        let running = self.lock_thread().take();
        if let Some(running) = running {
            let _ = tokio::task::spawn_blocking(|| running.join()).await;
        }
    }
}

#[cfg(test)]
mod tests;
