//! The files of the database: whether all of them are there.
//!
//! SQLite keeps the newest commits in `longhaul.db-wal` until a checkpoint moves them into `longhaul.db`. The
//! database file therefore records in itself ([`IN_USE`]) whether a master has it open: that value is
//! checkpointed when a master begins and when it stops. So a database file alone shows whether it is complete:
//!
//! | in use | `-wal` | |
//! |---|---|---|
//! | no | absent or empty | complete: a clean stop, or a backup |
//! | yes | present | its master was killed; SQLite recovers the newest commits from the `-wal` |
//! | yes | absent | the `-wal` was not copied, or was removed: the newest commits are missing |
//! | no | has content | the `-wal` belongs to another database; SQLite would apply it to this one |
//!
//! The last row also appears when a master is killed in the middle of a clean stop or of its start. Nothing is lost
//! then either: the database file holds everything that the `-wal` holds, except the value itself.

use super::StoreError;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The row of `meta` that is `yes` while a master has the database open, else `no`.
pub(super) const IN_USE: &str = "in_use";

/// The write-ahead log of a database file.
pub(super) fn wal_of(file: &Path) -> PathBuf {
    beside(file, "-wal")
}

/// The name of `file` with `suffix` behind it.
pub(super) fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

/// What [`inspect`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is missing.
    Complete,
    /// The newest commits are missing.
    WalMissing,
    /// The `-wal` belonged to another database and has another name now.
    WalForeign,
}

/// Looks at the files before SQLite does, logs what is wrong, and renames a `-wal` that belongs to another database.
/// The caller holds the lock, so no other master has the database open.
///
/// # Errors
/// The foreign `-wal` cannot be renamed.
pub(super) fn inspect(file: &Path) -> Result<Found, StoreError> {
    let wal = wal_of(file);
    let wal_bytes = std::fs::metadata(&wal).ok().map(|meta| meta.len());
    match (in_use(file), wal_bytes) {
        (Some(true), None) => {
            tracing::error!(
                "{} was in use when it was copied or when its master ended, and {} is missing: syncs and results of \
                 the time before that may be missing. If you have that file, stop this master and put both in place; \
                 copy a running store with `ctl admin backup FILE`. If only another program (sqlite3) opened the \
                 database since, nothing is missing",
                file.display(),
                wal.display()
            );
            Ok(Found::WalMissing)
        }
        (Some(false), Some(1..)) => {
            let aside = beside(&wal, &format!(".foreign-{}", uuid::Uuid::new_v4().simple()));
            std::fs::rename(&wal, &aside).map_err(|e| {
                StoreError::Unusable(format!(
                    "{} belongs to another database than {} and cannot be renamed: {e}; move it away and start again",
                    wal.display(),
                    file.display()
                ))
            })?;
            tracing::warn!(
                "{} is complete by itself, so {} belongs to another database: it is not used and is now {}; remove it \
                 if nobody misses it",
                file.display(),
                wal.display(),
                aside.display()
            );
            Ok(Found::WalForeign)
        }
        _ => Ok(Found::Complete),
    }
}

/// What the database file by itself, without its `-wal`, records. `None`: nothing, or it cannot be read; opening it
/// then shows what is wrong.
fn in_use(file: &Path) -> Option<bool> {
    // `immutable` keeps SQLite from applying the log.
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags).ok()?;
    let value: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [IN_USE], |row| row.get(0))
        .optional()
        .ok()?;
    value.map(|value| value == "yes")
}

/// Which files SQLite has open: each as device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    database: Option<(u64, u64)>,
    wal: Option<(u64, u64)>,
}

impl Opened {
    /// The files that are at their paths now.
    pub(super) fn at(file: &Path) -> Opened {
        let inode = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino()))
        };
        Opened { database: inode(file), wal: inode(&wal_of(file)) }
    }

    /// Checks that the same files are still at their paths. What is committed to a file without a name is lost when
    /// this process ends.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable): a file was deleted, moved or replaced. Works again once it is back.
    pub(super) fn check(self, file: &Path) -> Result<(), StoreError> {
        let now = Opened::at(file);
        if now == self {
            return Ok(());
        }
        let path = if now.database == self.database { wal_of(file) } else { file.to_owned() };
        Err(StoreError::Unavailable(format!(
            "{} was deleted, moved or replaced while this master runs; move it back, or save what the master has: \
             `ctl admin backup FILE`, stop the master, copy FILE to {}, start the master",
            path.display(),
            file.display()
        )))
    }
}
