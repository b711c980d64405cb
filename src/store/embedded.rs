//! The store of a single master: a SQLite database in its data directory, or in memory.
//!
//! One thread owns the connection and runs one call after the other. A commit is one transaction, on stable storage
//! (`synchronous=FULL`) when its call returns. The process that has locked `master.lock` leads; the kernel frees the
//! lock when the process ends, so leases do not expire here and no clock matters.
//!
//! After a clean stop `longhaul.db` alone is complete. `database_files` detects missing files, `backup` copies a
//! database that is in use.

mod backup;
mod database;
mod database_files;

use super::{AcquireOutcome, Backup, Batch, Candidate, Fence, Redaction, Store, StoreError};
use database::{Database, DatabasePath, FILE_NAME};
use parking_lot::Mutex;
use rusqlite::OptionalExtension;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// See the [module](self). Dropping it closes the database and frees the lock.
#[derive(Debug)]
pub struct EmbeddedStore {
    path: DatabasePath,
    /// `None` after it was closed.
    thread: Mutex<Option<StoreThread>>,
    /// One permit: a copy needs as much disk space as the database.
    backup_permits: Arc<Semaphore>,
}

/// The thread ends after the last job, when the sender is dropped.
#[derive(Debug)]
struct StoreThread {
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

impl EmbeddedStore {
    /// Opens the store in `dir` and creates what is missing, also the directory. Only the user of this process can read the data, which contains the
    /// key that signs tickets. Blocks for a few file operations.
    ///
    /// # Errors
    /// [`Unusable`](StoreError::Unusable) for a file that is no store, is damaged, or has another schema;
    /// [`Unavailable`](StoreError::Unavailable) if the disk fails or is full.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::start(DatabasePath(Some(dir.join(FILE_NAME))))
    }

    /// Opens a store in memory, for one-shot use.
    ///
    /// # Errors
    /// See [`EmbeddedStore::open`].
    pub fn open_in_memory() -> Result<Self, StoreError> {
        Self::start(DatabasePath(None))
    }

    fn start(path: DatabasePath) -> Result<Self, StoreError> {
        let mut database = Database::open(path.clone())?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                queue.into_iter().for_each(|job| job(&mut database));
                database.close();
            })
            .map_err(|e| StoreError::Unavailable(format!("no thread for the store: {e}")))?;
        Ok(EmbeddedStore {
            path,
            thread: Mutex::new(Some(StoreThread { jobs, thread })),
            backup_permits: Arc::new(Semaphore::new(1)),
        })
    }

    /// Runs `job` on the thread of the store. It also runs if the returned future is dropped.
    async fn run_on_thread<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply_to, reply) = oneshot::channel();
        let job: Job = Box::new(move |database| {
            let _ = reply_to.send(job(database));
        });
        let closed = || StoreError::Unavailable("the store is closed".to_owned());
        match &*self.thread.lock() {
            Some(thread) => thread.jobs.send(job).map_err(|_| closed())?,
            None => return Err(closed()),
        }
        reply.await.map_err(|_| closed())?
    }
}

impl StoreThread {
    /// Waits until the thread has closed the database and freed the lock.
    fn join(self) {
        drop(self.jobs);
        let _ = self.thread.join();
    }
}

impl Drop for EmbeddedStore {
    /// Blocks until the database is closed.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get_mut().take() {
            thread.join();
        }
    }
}

impl Store for EmbeddedStore {
    async fn acquire(
        &self,
        candidate: &Candidate,
        _ttl: Duration,
    ) -> Result<AcquireOutcome, StoreError> {
        let candidate = candidate.clone();
        self.run_on_thread(move |database| database.acquire(&candidate)).await
    }

    async fn renew(&self, fence: Fence, _ttl: Duration) -> Result<(), StoreError> {
        self.run_on_thread(move |database| database.check_renewal(fence)).await
    }

    async fn release(&self, fence: Fence) -> Result<(), StoreError> {
        self.run_on_thread(move |database| database.release(fence)).await
    }

    async fn load(&self) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.run_on_thread(|database| {
            database.query(|connection| {
                let mut statement = connection.prepare_cached("SELECT key, value FROM records")?;
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
            })
        })
        .await
    }

    async fn commit(&self, fence: Fence, batch: &Batch) -> Result<Fence, StoreError> {
        let batch = batch.clone();
        self.run_on_thread(move |database| database.commit(fence, &batch)).await
    }

    async fn record(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let key = key.to_owned();
        self.run_on_thread(move |database| {
            database.query(|connection| {
                connection
                    .prepare_cached("SELECT value FROM records WHERE key = ?1")?
                    .query_row([key], |row| row.get(0))
                    .optional()
            })
        })
        .await
    }

    async fn blob(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let key = key.to_owned();
        self.run_on_thread(move |database| {
            database.query(|connection| {
                connection
                    .prepare_cached("SELECT value FROM blobs WHERE key = ?1")?
                    .query_row([key], |row| row.get(0))
                    .optional()
            })
        })
        .await
    }

    async fn blob_keys(&self) -> Result<BTreeSet<String>, StoreError> {
        self.run_on_thread(|database| {
            database.query(|connection| {
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
        let path = self.path.clone();
        if self.run_on_thread(|database| Ok(database.check_files().is_ok())).await? {
            let copy = tokio::task::spawn_blocking(move || {
                backup::copy_with_own_connection(&path, &file, redaction, permit)
            });
            let panicked = |e| StoreError::Unavailable(format!("the copy was not finished: {e}"));
            return copy.await.map_err(panicked)?.map(Some);
        }
        // The files were moved or deleted: only this connection has them open.
        self.run_on_thread(move |database| {
            backup::copy_database(&database.connection, &path, &file, redaction, permit)
        })
        .await
        .map(Some)
    }

    async fn close(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(|| thread.join()).await;
        }
    }
}

#[cfg(test)]
mod tests;
