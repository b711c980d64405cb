//! A consistent copy of a database that is in use.

use super::database_files::{UsageMark, with_suffix};
use super::{DatabasePath, StoreError};
use crate::store::{Backup, Redaction};
use crate::util::checksum;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Copies that are under way are named after the database, this and 32 hexadecimal digits.
const COPY_SUFFIX: &str = ".copying-";

/// Opens a connection of its own on the database, so that commits go on meanwhile, and copies by it.
pub(super) fn copy_with_own_connection(
    place: &DatabasePath,
    file: &Path,
    redaction: Redaction,
    permit: OwnedSemaphorePermit,
) -> Result<Backup, StoreError> {
    let failed = |e: rusqlite::Error| place.store_error("read", &e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(failed)?;
    copy_database(&connection, place, file, redaction, permit)
}

/// Copies the database of `connection` as of one instant, without what `redaction` removes. Needs room for two copies.
///
/// # Errors
/// [`Unavailable`](StoreError::Unavailable): no room for the copy; [`Unusable`](StoreError::Unusable): the database is
/// damaged.
pub(super) fn copy_database(
    connection: &Connection,
    place: &DatabasePath,
    file: &Path,
    redaction: Redaction,
    permit: OwnedSemaphorePermit,
) -> Result<Backup, StoreError> {
    let failed = |what: &'static str| move |e: rusqlite::Error| place.store_error(what, &e);
    let whole = TemporaryFile::create(file)?;
    connection.execute("VACUUM INTO ?1", [whole.sqlite_path()?]).map_err(failed("copy"))?;
    let copied = Connection::open(&whole.0).map_err(failed("open the copy of"))?;
    redact(&copied, redaction, place)?;
    // What an update replaces stays in free bytes of its page; a second copy has none.
    let target = TemporaryFile::create(file)?;
    copied.execute("VACUUM INTO ?1", [target.sqlite_path()?]).map_err(failed("copy"))?;
    drop(copied);
    drop(whole);
    let copied = Connection::open(&target.0).map_err(failed("open the copy of"))?;
    let verdict: String = copied
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(failed("check the copy of"))?;
    if verdict != "ok" {
        return Err(StoreError::Unusable(format!(
            "{} is damaged and cannot be copied: {verdict}",
            place.display()
        )));
    }
    drop(copied);
    let read = |e: std::io::Error| StoreError::Unavailable(format!("cannot read the copy: {e}"));
    let mut file = File::open(&target.0).map_err(read)?;
    // The file lives as long as it is read.
    drop(target);
    let mut check = checksum::ChecksumHasher::default();
    let (mut piece, mut bytes) = (vec![0; 256 << 10], 0);
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        check.update(&piece[..read]);
        bytes += read as u64;
    }
    file.rewind().map_err(read)?;
    Ok(Backup { file, bytes, checksum: check.header_value(), permit })
}

/// Removes the secret from `copied`, and marks it as complete by itself, like a database after a clean stop.
fn redact(
    copied: &Connection,
    redaction: Redaction,
    place: &DatabasePath,
) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| place.store_error("change the copy of", &e);
    // No journal: the copy is thrown away when this fails, and a journal would contain the secret.
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
            place.display()
        ))
    })?;
    let update = "UPDATE records SET value = ?2 WHERE key = ?1";
    copied.execute(update, params![redaction.key, clean]).map(drop).map_err(failed)
}

/// Removes copies that a master that was killed left behind.
pub(super) fn remove_stale_copies(file: &Path) {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else { return };
    let prefix = [name.as_encoded_bytes(), COPY_SUFFIX.as_bytes()].concat();
    // No file of somebody else is named so by chance.
    let is_ours = |name: &[u8]| {
        let digits = name.strip_prefix(prefix.as_slice());
        digits.is_some_and(|d| d.len() == 32 && d.iter().all(u8::is_ascii_hexdigit))
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if is_ours(entry.file_name().as_encoded_bytes())
            && let Err(e) = std::fs::remove_file(entry.path())
        {
            tracing::warn!("cannot remove {}: {e}", entry.path().display());
        }
    }
}

/// A file with a name of its own, removed on drop.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// The path, as SQLite takes it.
    fn sqlite_path(&self) -> Result<&str, StoreError> {
        self.0.to_str().ok_or_else(|| {
            StoreError::Unusable(format!("{} is not UTF-8: set another data_dir", self.0.display()))
        })
    }

    /// An empty file, readable by its owner only: beside the database, or, where that directory is gone, where
    /// temporary files are.
    fn create(file: &Path) -> Result<TemporaryFile, StoreError> {
        let suffix = format!("{COPY_SUFFIX}{}", uuid::Uuid::new_v4().simple());
        let elsewhere = file.file_name().map(|name| std::env::temp_dir().join(name));
        let mut failed = None;
        for path in std::iter::once(file.to_owned()).chain(elsewhere) {
            let path = with_suffix(&path, &suffix);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(_) => return Ok(TemporaryFile(path)),
                Err(e) => {
                    let gone = e.kind() == ErrorKind::NotFound;
                    failed = Some(format!("cannot create {}: {e}", path.display()));
                    if !gone {
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
