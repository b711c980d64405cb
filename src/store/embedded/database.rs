//! The database of the embedded store and its lock file, as used by the thread of the store.

use super::database_files::{self, OpenFiles, USAGE_TABLE, UsageMark};
use crate::store::fence::{CommitDecision, LeaderRecord};
use crate::store::{
    AcquireOutcome, Batch, Candidate, Fence, SCHEMA, StoreError, check_schema, new_session_id,
};
use crate::util::private_files;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The database in the data directory.
pub(super) const FILE_NAME: &str = "longhaul.db";
/// The process that has locked this file leads.
pub(super) const LOCK_NAME: &str = "master.lock";
/// When a follower tries the lock again: the end of the other process cannot be predicted.
const LOCK_RETRY_MS: u64 = 1000;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database, its lock and its connection.
pub(super) struct Database {
    session_id: String,
    pub(super) connection: Connection,
    path: DatabasePath,
    /// Locked while this process leads, and since the start if no other process leads. `None` in memory.
    lock_file: Option<File>,
    /// The files that SQLite has open, since this handle led first.
    open_files: Option<OpenFiles>,
    /// Whether the database records that this handle uses it.
    in_use: bool,
}

/// The path of the database for messages. `None`: in memory.
#[derive(Debug, Clone)]
pub(super) struct DatabasePath(pub(super) Option<PathBuf>);

impl DatabasePath {
    pub(super) fn display(&self) -> String {
        self.0.as_ref().map_or_else(|| "in memory".to_owned(), |file| file.display().to_string())
    }

    /// Classifies an error of SQLite: [`Unavailable`](StoreError::Unavailable) if a repeat may succeed. `action`
    /// completes "cannot …".
    pub(super) fn store_error(&self, action: &str, error: &rusqlite::Error) -> StoreError {
        use ErrorCode::{
            ApiMisuse, CannotOpen, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly,
            SchemaChanged, TypeMismatch,
        };
        let text = format!("cannot {action} {}: {error}", self.display());
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

/// Creates the directory and the empty file, both accessible by their owner only.
fn create_data_dir(file: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path, e: std::io::Error| {
        StoreError::Unusable(format!(
            "cannot create {}: {e}; create it for the user that runs the master, or set another data_dir",
            path.display()
        ))
    };
    if let Some(dir) = file.parent() {
        private_files::create_dir(dir).map_err(|e| failed(dir, e))?;
    }
    private_files::open_file(file).map(drop).map_err(|e| failed(file, e))
}

/// Locks the file at `path`. The inner error is the name of the process that has the lock.
fn try_lock_file(path: &Path) -> Result<Result<File, String>, StoreError> {
    let failed =
        |e: std::io::Error| StoreError::Unusable(format!("cannot lock {}: {e}", path.display()));
    let file = private_files::open_file(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Ok(file)),
        Err(TryLockError::WouldBlock) => {
            let mut name = Vec::new();
            // For the message only. Empty while the other process writes its name.
            let _ = file.take(256).read_to_end(&mut name);
            let name = String::from_utf8_lossy(&name).trim().to_owned();
            let unknown = || format!("the process that has locked {}", path.display());
            Ok(Err(if name.is_empty() { unknown() } else { name }))
        }
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn initialize_database(connection: &mut Connection, path: &DatabasePath) -> Result<(), StoreError> {
    let run = |connection: &mut Connection| -> rusqlite::Result<Option<String>> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "trusted_schema", "OFF")?;
        // Otherwise the `-wal` keeps the size of the largest commit.
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
            // Another process may have created the tables meanwhile.
            if has_meta(&tx)?.0 == 0 {
                tx.execute_batch(
                    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                     CREATE TABLE records (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
                     CREATE TABLE blobs (key TEXT PRIMARY KEY, value BLOB NOT NULL);",
                )?;
                write_meta(&tx, "schema", &SCHEMA.to_string())?;
                UsageMark::stopped().create(&tx)?;
            }
            tx.commit()?;
        }
        if !has_meta(connection)?.1 {
            return Ok(None);
        }
        read_meta(connection, "schema")
    };
    match run(connection).map_err(|e| path.store_error("open", &e))? {
        Some(version) => check_schema(&version, &path.display()),
        None => Err(StoreError::Unusable(format!(
            "{} is a database, but not one of Longhaul; move it away or set another data_dir",
            path.display()
        ))),
    }
}

fn read_meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()
}

fn write_meta(tx: &Transaction<'_>, name: &str, value: &str) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
        .execute([name, value])
        .map(drop)
}

fn json_error(error: serde_json::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

fn read_leader_record(connection: &Connection) -> rusqlite::Result<LeaderRecord> {
    let record = read_meta(connection, "leader")?;
    let parse = |text: String| serde_json::from_str(&text).map_err(json_error);
    record.map_or_else(|| Ok(LeaderRecord::default()), parse)
}

fn write_leader_record(tx: &Transaction<'_>, leader: &LeaderRecord) -> rusqlite::Result<()> {
    write_meta(tx, "leader", &serde_json::to_string(leader).map_err(json_error)?)
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
    /// Opens the database at `path`, and creates what is missing. Blocks.
    pub(super) fn open(path: DatabasePath) -> Result<Database, StoreError> {
        let mut lock_file = None;
        if let Some(file) = &path.0 {
            create_data_dir(file)?;
            lock_file = try_lock_file(&file.with_file_name(LOCK_NAME))?.ok();
            if lock_file.is_some() {
                database_files::inspect_files(file)?;
                database_files::remove_stale_copies(file);
            }
        }
        let connection = match &path.0 {
            Some(file) => Connection::open(file),
            None => Connection::open_in_memory(),
        };
        let mut connection = connection.map_err(|e| path.store_error("open", &e))?;
        initialize_database(&mut connection, &path)?;
        let session_id = new_session_id();
        Ok(Database { session_id, connection, path, lock_file, open_files: None, in_use: false })
    }

    /// The database is never behind [`Candidate::last_seen`]: a file is not rolled back while it is in use.
    pub(super) fn acquire(&mut self, candidate: &Candidate) -> Result<AcquireOutcome, StoreError> {
        if let Some(holder) = self.acquire_lock(&candidate.name)? {
            let leader = self.leader_record()?;
            let fence = leader.fence();
            // A process that has just got the lock may not have written its record yet.
            let holder_info = Some(leader.holder_info).filter(|_| leader.holder == holder);
            return Ok(AcquireOutcome::Held {
                holder,
                holder_info: holder_info.unwrap_or_default(),
                fence,
                retry_after_ms: LOCK_RETRY_MS,
            });
        }
        let path = self.path.clone();
        let mut start_term = || -> rusqlite::Result<Fence> {
            let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let before = read_leader_record(&tx)?;
            let leader = LeaderRecord {
                epoch: before.epoch.saturating_add(1),
                session_id: self.session_id.clone(),
                holder: candidate.name.clone(),
                holder_info: candidate.info.clone(),
                seq: before.seq,
                last_digest: String::new(),
            };
            write_leader_record(&tx, &leader)?;
            tx.commit()?;
            Ok(leader.fence())
        };
        start_term().map(AcquireOutcome::Leader).map_err(|e| path.store_error("write to", &e))
    }

    /// Locks the lock file. Returns the name of the process that has the lock, if another one has.
    fn acquire_lock(&mut self, holder: &str) -> Result<Option<String>, StoreError> {
        let Some(path) = self.path.0.as_ref().map(|file| file.with_file_name(LOCK_NAME)) else {
            return Ok(None);
        };
        if self.lock_file.is_none() {
            match try_lock_file(&path)? {
                Ok(lock) => self.lock_file = Some(lock),
                Err(holder) => return Ok(Some(holder)),
            }
        }
        if !self.in_use {
            self.start_use()?;
        }
        if let Some(lock) = &mut self.lock_file {
            // The name is for messages only.
            let _ = lock.set_len(0).and_then(|()| lock.rewind());
            let _ = writeln!(lock, "{holder}");
        }
        Ok(None)
    }

    /// Records in the database file that it is in use, and moves the `-wal` into it.
    fn start_use(&mut self) -> Result<(), StoreError> {
        // If a reader blocks the checkpoint, the `-wal` begins with this mark, which shows that it belongs to the file.
        let marked = UsageMark::read(&self.connection)
            .and_then(|usage| self.write_usage(&usage.into_in_use()))
            .and_then(|()| self.checkpoint());
        marked.map_err(|e| self.path.store_error("write to", &e))?;
        self.open_files = self.path.0.as_deref().map(OpenFiles::stat);
        self.in_use = true;
        Ok(())
    }

    /// Moves the `-wal` into the database file, which is complete by itself from then on, and frees the lock.
    fn stop_use(&mut self) {
        if self.lock_file.is_some() {
            let blocked_by = match self.mark_stopped() {
                Ok(true) => None,
                Ok(false) => Some("another program reads it".to_owned()),
                Err(e) => Some(e.to_string()),
            };
            if let Some(reason) = blocked_by {
                tracing::warn!(
                    "{} is not complete without the -wal file beside it ({reason}): a copy of it needs both",
                    self.path.display()
                );
            }
        }
        self.in_use = false;
        self.lock_file = None;
    }

    /// Empties the `-wal` and then records that the database is not in use: a file with that mark contains every commit
    /// at any instant. `false`: a reader blocks a checkpoint, so the `-wal` is still needed.
    fn mark_stopped(&mut self) -> rusqlite::Result<bool> {
        if !self.checkpoint()? {
            return Ok(false);
        }
        self.write_usage(&UsageMark::stopped())?;
        self.checkpoint()
    }

    /// Commits `usage` to the `-wal`.
    pub(super) fn write_usage(&mut self, usage: &UsageMark) -> rusqlite::Result<()> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        usage.write(&tx)?;
        tx.commit()
    }

    /// Moves the `-wal` into the database file. `false`: a reader blocks it, and a part remains.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<bool> {
        let blocked: bool =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        Ok(!blocked)
    }

    pub(super) fn close(mut self) {
        self.stop_use();
        if let (Some(file), Some(opened)) = (&self.path.0, self.open_files)
            && opened.check(file).is_err()
        {
            // SQLite would remove the `-wal` at the path, which is not the one that it has open.
            std::mem::forget(self.connection);
            return;
        }
        if let Err((_, e)) = self.connection.close() {
            tracing::warn!("{} was not closed cleanly: {e}", self.path.display());
        }
    }

    /// Checks that the files of the leader are still at their paths.
    pub(super) fn check_files(&self) -> Result<(), StoreError> {
        match (&self.path.0, self.open_files) {
            (Some(file), Some(opened)) => opened.check(file),
            _ => Ok(()),
        }
    }

    pub(super) fn check_renewal(&self, fence: Fence) -> Result<(), StoreError> {
        self.check_files()?;
        self.leader_record()?.check_renewal(fence, &self.session_id)
    }

    pub(super) fn release(&mut self, fence: Fence) -> Result<(), StoreError> {
        let leader = self.leader_record()?;
        if leader.epoch == fence.epoch && leader.session_id == self.session_id {
            self.stop_use();
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        self.check_files()?;
        let digest = batch.digest();
        let path = self.path.clone();
        let failed = |e: rusqlite::Error| path.store_error("write to", &e);
        let tx = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let mut leader = read_leader_record(&tx).map_err(failed)?;
        let seq = match leader.check_commit(fence, &self.session_id, &digest, batch.replace)? {
            CommitDecision::Repeated(seq) => return Ok(Fence { seq, ..fence }),
            CommitDecision::Write(seq) => seq,
        };
        leader.epoch = fence.epoch;
        self.session_id.clone_into(&mut leader.session_id);
        leader.seq = seq;
        leader.last_digest = digest;
        write_batch(&tx, batch)
            .and_then(|()| write_leader_record(&tx, &leader))
            .and_then(|()| tx.commit())
            .map_err(failed)?;
        Ok(Fence { seq, ..fence })
    }

    fn leader_record(&self) -> Result<LeaderRecord, StoreError> {
        read_leader_record(&self.connection).map_err(|e| self.path.store_error("read", &e))
    }

    pub(super) fn query<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        query(&self.connection).map_err(|e| self.path.store_error("read", &e))
    }
}
