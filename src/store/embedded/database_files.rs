//! Detects missing and foreign files of the database, and removes unfinished copies.
//!
//! SQLite keeps the newest commits in `longhaul.db-wal` until a checkpoint moves them into `longhaul.db`. The
//! database file therefore contains a [`UsageMark`]: whether a master has it open, and a random id of the last clean
//! stop. So a database file alone shows whether it is complete:
//!
//! | in use | `-wal` | |
//! |---|---|---|
//! | no | absent or empty | complete: a clean stop, or a backup |
//! | yes | present | its master was killed; SQLite recovers the newest commits from the `-wal` |
//! | yes | absent | the `-wal` was not copied, or was removed: the newest commits are missing |
//! | no | begins with the id of the file | its master was killed during a stop or start: SQLite recovers the commits |
//! | no | has other content | the `-wal` belongs to another database; SQLite would apply it to this one |
//!
//! A stop first moves every commit into the database file, which leaves the `-wal` empty, then commits the mark `no`
//! with a new id, and moves that too. A start commits the mark `yes` with the id of the last stop, and moves it. So
//! wherever the database file reads `no` and its own `-wal` is not empty, the first transaction of the `-wal` is a mark
//! with the id of the file. It is applied, because it can repair a page of the mark that is half written, and because
//! commits follow it where a reader blocks the checkpoint of a start. Later generations of the `-wal` of the same
//! database do not begin with a mark, so that a copy of the file from before them does not match.

use crate::store::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The table of the [`UsageMark`], with one row. It has a page of its own, and all values have the same length, so a
/// new value overwrites all bytes of the old one.
pub(super) const USAGE_TABLE: &str = "usage";

/// An unfinished copy has the name of the database, this suffix, and 32 hexadecimal digits.
pub(super) const COPY_SUFFIX: &str = ".copying-";

/// Whether a master has the database open, and the id of the last clean stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UsageMark {
    in_use: bool,
    id: String,
}

impl UsageMark {
    /// Not in use, with a new id.
    pub(super) fn stopped() -> UsageMark {
        UsageMark { in_use: false, id: uuid::Uuid::new_v4().simple().to_string() }
    }

    /// In use, with the same id.
    pub(super) fn into_in_use(self) -> UsageMark {
        UsageMark { in_use: true, ..self }
    }

    /// The stored form, always 36 bytes.
    fn encode(&self) -> String {
        format!("{:<3} {}", if self.in_use { "yes" } else { "no" }, self.id)
    }

    /// Creates the table.
    pub(super) fn create(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch(&format!(
            "CREATE TABLE {USAGE_TABLE} (one INTEGER PRIMARY KEY, in_use TEXT NOT NULL)"
        ))?;
        let insert = format!("INSERT INTO {USAGE_TABLE} VALUES (1, ?1)");
        connection.execute(&insert, [self.encode()]).map(drop)
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let update = format!("UPDATE {USAGE_TABLE} SET in_use = ?1");
        connection.execute(&update, [self.encode()]).map(drop)
    }

    pub(super) fn read(connection: &Connection) -> rusqlite::Result<UsageMark> {
        let select = format!("SELECT in_use FROM {USAGE_TABLE}");
        let value: String = connection.query_row(&select, [], |row| row.get(0))?;
        let (in_use, id) = value.split_once(' ').unwrap_or((&value, ""));
        Ok(UsageMark { in_use: in_use == "yes", id: id.trim().to_owned() })
    }
}

/// The path of the write-ahead log of a database file.
pub(super) fn wal_path(file: &Path) -> PathBuf {
    with_suffix(file, "-wal")
}

pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

/// The result of [`inspect_files`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InspectionResult {
    /// Nothing is missing.
    Complete,
    /// The newest commits are missing.
    WalMissing,
    /// The `-wal` belonged to another database and was renamed.
    WalForeign,
}

/// Inspects the files before SQLite opens them, logs errors, and renames a `-wal` that belongs to another database.
/// The caller holds the lock, so no other master has the database open.
///
/// # Errors
/// The foreign `-wal` cannot be renamed.
pub(super) fn inspect_files(file: &Path) -> Result<InspectionResult, StoreError> {
    let wal = wal_path(file);
    let wal_bytes = std::fs::metadata(&wal).ok().map(|meta| meta.len());
    let Some((usage, page)) = read_usage(file) else { return Ok(InspectionResult::Complete) };
    match (usage.in_use, wal_bytes) {
        (true, None) => {
            tracing::error!(
                "{} was in use when it was copied or when its master ended, and {} is missing: syncs and results of \
                 the time before that may be missing. If you have that file, stop this master and put both in place; \
                 copy a running store with `ctl admin backup FILE`. If only another program (sqlite3) opened the \
                 database since, nothing is missing",
                file.display(),
                wal.display()
            );
            Ok(InspectionResult::WalMissing)
        }
        (false, Some(1..)) if !begins_with_mark(&wal, page, &usage.id) => {
            let renamed = with_suffix(&wal, &format!(".foreign-{}", uuid::Uuid::new_v4().simple()));
            std::fs::rename(&wal, &renamed).map_err(|e| {
                StoreError::Unusable(format!(
                    "{} belongs to another database than {} and cannot be renamed: {e}; move it away and start again",
                    wal.display(),
                    file.display()
                ))
            })?;
            tracing::warn!(
                "{} is complete by itself, so {} belongs to another database: it is not used and is now {}; remove it \
                 if it is not needed",
                file.display(),
                wal.display(),
                renamed.display()
            );
            Ok(InspectionResult::WalForeign)
        }
        _ => Ok(InspectionResult::Complete),
    }
}

/// The mark in the database file without its `-wal`, and the number of the page with the mark. `None`: there is none,
/// or the file cannot be read; opening it then returns the error.
fn read_usage(file: &Path) -> Option<(UsageMark, u32)> {
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
    let page = connection
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = ?1", [USAGE_TABLE], |row| {
            row.get(0)
        })
        .ok()?;
    Some((UsageMark::read(&connection).ok()?, page))
}

/// Whether the first transaction of `wal` writes a mark with `id` to `page`. `false` if it cannot be read.
fn begins_with_mark(wal: &Path, page: u32, id: &str) -> bool {
    // The format is in https://www.sqlite.org/fileformat2.html#the_write_ahead_log: all numbers are big-endian.
    const MAX_FRAMES: u32 = 64;
    const MAX_PAGE_BYTES: u32 = 64 << 10;
    let search = || -> std::io::Result<bool> {
        let mut file = File::open(wal)?;
        let mut header = [0; 32];
        file.read_exact(&mut header)?;
        let page_bytes = read_be_u32(&header, 8);
        if id.is_empty() || page_bytes > MAX_PAGE_BYTES {
            return Ok(false);
        }
        let mut frame = vec![0; 24 + page_bytes as usize];
        for _ in 0..MAX_FRAMES {
            file.read_exact(&mut frame)?;
            // Frames of an earlier generation follow those of the current one.
            if frame[8..16] != header[16..24] {
                return Ok(false);
            }
            if read_be_u32(&frame, 0) == page {
                return Ok(frame[24..].windows(id.len()).any(|bytes| bytes == id.as_bytes()));
            }
            let ends_transaction = read_be_u32(&frame, 4) != 0;
            if ends_transaction {
                return Ok(false);
            }
        }
        Ok(false)
    };
    search().unwrap_or(false)
}

fn read_be_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Removes the copies that a killed master left behind.
pub(super) fn remove_stale_copies(file: &Path) {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name()) else { return };
    let prefix = [name.as_encoded_bytes(), COPY_SUFFIX.as_bytes()].concat();
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

/// The device and inode of each file that SQLite has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFiles {
    database: Option<(u64, u64)>,
    wal: Option<(u64, u64)>,
}

impl OpenFiles {
    /// The files that are at the paths now.
    pub(super) fn stat(file: &Path) -> OpenFiles {
        let inode = |path: &Path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino()))
        };
        OpenFiles { database: inode(file), wal: inode(&wal_path(file)) }
    }

    /// Checks that the same files are still at their paths. Commits to a file without a name are lost when this process
    /// ends.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable): a file was deleted, moved or replaced; until it is moved back.
    pub(super) fn check(self, file: &Path) -> Result<(), StoreError> {
        let now = OpenFiles::stat(file);
        if now == self {
            return Ok(());
        }
        let path = if now.database == self.database { wal_path(file) } else { file.to_owned() };
        Err(StoreError::Unavailable(format!(
            "{} was deleted, moved or replaced while this master runs; move it back, or save what the master has: \
             `ctl admin backup FILE`, stop the master, copy FILE to {}, start the master",
            path.display(),
            file.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 512;
    const SALT: &[u8; 8] = b"saltsalt";
    const ID: &str = "00112233445566778899aabbccddeeff";

    /// A frame of the log: the number of its page, the size of the database if it ends a transaction (else 0), the
    /// salt, and the page.
    fn frame(page: u32, ends: u32, salt: &[u8; 8], content: &str) -> Vec<u8> {
        let mut frame = [&page.to_be_bytes()[..], &ends.to_be_bytes(), salt, &[0; 8]].concat();
        frame.extend(content.as_bytes());
        frame.resize(24 + PAGE_BYTES, b'.');
        frame
    }

    fn log_begins_with_mark(page_bytes: usize, frames: &[Vec<u8>]) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut header = vec![0; 32];
        header[8..12].copy_from_slice(&u32::try_from(page_bytes).unwrap().to_be_bytes());
        header[16..24].copy_from_slice(SALT);
        std::fs::write(file.path(), [header, frames.concat()].concat()).unwrap();
        begins_with_mark(file.path(), 300, ID)
    }

    #[test]
    fn a_mark_is_searched_in_the_first_transaction_of_a_log() {
        let mark = frame(300, 7, SALT, &format!("no  {ID}"));
        let inner = frame(2, 0, SALT, "");
        let last = frame(2, 7, SALT, "");
        let of_another = frame(300, 7, SALT, "no  ffeeddccbbaa99887766554433221100");
        let of_older = frame(300, 7, b"oldsaltx", &format!("no  {ID}"));
        for (frames, found) in [
            (vec![mark.clone()], true),
            (vec![inner.clone(), inner.clone(), mark.clone()], true),
            (vec![last.clone(), mark.clone()], false),
            (vec![inner.clone(), last, mark.clone()], false),
            (vec![of_another, mark.clone()], false),
            (vec![of_older.clone()], false),
            (vec![inner.clone(), of_older, mark.clone()], false),
            (vec![frame(300 << 8, 0, SALT, ""), mark.clone()], true),
            (vec![frame(44, 7, SALT, ID)], false),
            (vec![inner.clone()], false),
            (vec![], false),
            ([vec![inner.clone(); 63], vec![mark.clone()]].concat(), true),
            ([vec![inner; 64], vec![mark.clone()]].concat(), false),
        ] {
            assert_eq!(log_begins_with_mark(PAGE_BYTES, &frames), found, "{} frames", frames.len());
        }
        // The log ends within the page of the mark.
        assert!(!log_begins_with_mark(PAGE_BYTES, &[mark[..24 + 100].to_vec()]));
        // The page size is over the maximum.
        assert!(!log_begins_with_mark(
            (64 << 10) + 1,
            &[mark[..24].to_vec(), vec![b'.'; 65 << 10]]
        ));
    }
}
