//! Consistent copies of a database that is in use.

use super::database::DatabasePath;
use super::database_files::{COPY_SUFFIX, UsageMark, with_suffix};
use crate::store::{Backup, Redaction, StoreError};
use crate::util::checksum;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Copies the database through a separate connection, so that commits continue meanwhile.
pub(super) fn copy_with_own_connection(
    path: &DatabasePath,
    file: &Path,
    redaction: Redaction,
    permit: OwnedSemaphorePermit,
) -> Result<Backup, StoreError> {
    let failed = |e: rusqlite::Error| path.store_error("read", &e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    copy_database(&connection, path, file, redaction, permit)
}

/// Copies the database of `connection` as of one instant, without the secret that `redaction` removes. Needs disk space
/// for two copies.
///
/// # Errors
/// [`Unavailable`](StoreError::Unavailable): no space for the copy; [`Unusable`](StoreError::Unusable): the database is
/// damaged.
pub(super) fn copy_database(
    connection: &Connection,
    path: &DatabasePath,
    file: &Path,
    redaction: Redaction,
    permit: OwnedSemaphorePermit,
) -> Result<Backup, StoreError> {
    let failed = |action: &'static str| move |e: rusqlite::Error| path.store_error(action, &e);
    let first = TemporaryFile::create(file)?;
    connection.execute("VACUUM INTO ?1", [first.sqlite_path()?]).map_err(failed("copy"))?;
    let copied = Connection::open(&first.0).map_err(failed("open the copy of"))?;
    redact(&copied, redaction, path)?;
    // The replaced value remains in free bytes of its page; a second copy has no free bytes.
    let target = TemporaryFile::create(file)?;
    copied.execute("VACUUM INTO ?1", [target.sqlite_path()?]).map_err(failed("copy"))?;
    drop(copied);
    drop(first);
    let copied = Connection::open(&target.0).map_err(failed("open the copy of"))?;
    let verdict: String = copied
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(failed("check the copy of"))?;
    if verdict != "ok" {
        return Err(StoreError::Unusable(format!(
            "{} is damaged and cannot be copied: {verdict}",
            path.display()
        )));
    }
    drop(copied);
    let read = |e: std::io::Error| StoreError::Unavailable(format!("cannot read the copy: {e}"));
    let mut file = File::open(&target.0).map_err(read)?;
    // Removes the name; the file exists until it is closed.
    drop(target);
    let mut hasher = checksum::ChecksumHasher::default();
    let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    file.rewind().map_err(read)?;
    Ok(Backup { file, bytes, checksum: hasher.header_value(), permit })
}

/// Removes the secret from a copy, and marks it as complete without a `-wal`, as after a clean stop.
fn redact(
    copied: &Connection,
    redaction: Redaction,
    path: &DatabasePath,
) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| path.store_error("change the copy of", &e);
    // No journal: it would contain the secret, and the copy is removed after an error.
    let journal = |_: &rusqlite::Row<'_>| Ok(());
    copied.pragma_update_and_check(None, "journal_mode", "OFF", journal).map_err(failed)?;
    UsageMark::stopped().write(copied).map_err(failed)?;
    let select = "SELECT value FROM records WHERE key = ?1";
    let value: Option<Vec<u8>> =
        copied.query_row(select, [redaction.key], |row| row.get(0)).optional().map_err(failed)?;
    let Some(value) = value else { return Ok(()) };
    let clean = (redaction.remove)(&value).ok_or_else(|| {
        StoreError::Unusable(format!(
            "the record `{}` of {} cannot be read, so its secret cannot be removed from the copy; stop the master and \
             copy the file itself",
            redaction.key,
            path.display()
        ))
    })?;
    let update = "UPDATE records SET value = ?2 WHERE key = ?1";
    copied.execute(update, params![redaction.key, clean]).map(drop).map_err(failed)
}

/// A file with a unique name, removed on drop.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// SQLite accepts paths in UTF-8 only.
    fn sqlite_path(&self) -> Result<&str, StoreError> {
        self.0.to_str().ok_or_else(|| {
            StoreError::Unusable(format!("{} is not UTF-8: set another data_dir", self.0.display()))
        })
    }

    /// Creates an empty file, readable by its owner only: in the directory of the database, or, if that was removed, in
    /// the directory for temporary files.
    fn create(file: &Path) -> Result<TemporaryFile, StoreError> {
        let suffix = format!("{COPY_SUFFIX}{}", uuid::Uuid::new_v4().simple());
        let fallback = file.file_name().map(|name| std::env::temp_dir().join(name));
        let mut failed = None;
        for path in std::iter::once(file.to_owned()).chain(fallback) {
            let path = with_suffix(&path, &suffix);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(_) => return Ok(TemporaryFile(path)),
                Err(e) => {
                    failed = Some(format!("cannot create {}: {e}", path.display()));
                    if e.kind() != ErrorKind::NotFound {
                        break;
                    }
                }
            }
        }
        Err(StoreError::Unavailable(failed.unwrap_or_default()))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
