//! Append-only files: the file records of each sync, one line per file. They are too large for a store, and no decision
//! depends on them. The state of the leader determines the offset of each write, so a repeated write changes nothing,
//! and bytes after the committed length are ignored. The files are on the disk of one master: after a fail-over the
//! first write of the new leader fails, and the sync reports that its records are incomplete.

use crate::util::private_files;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory of the files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(Arc<SpoolDir>);

#[derive(Debug)]
struct SpoolDir {
    dir: PathBuf,
    /// Removed on drop.
    temporary: bool,
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        if self.temporary {
            // Fails if nothing was written.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Spool {
    /// Files in `dir`, which is created by the first write.
    pub fn in_dir(dir: PathBuf) -> Self {
        Spool(Arc::new(SpoolDir { dir, temporary: false }))
    }

    /// Files that are removed with the last clone.
    pub fn temporary() -> Self {
        let name = format!("longhaul-{}", uuid::Uuid::new_v4().simple());
        Spool(Arc::new(SpoolDir { dir: std::env::temp_dir().join(name), temporary: true }))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.dir.join(format!("{number}.jsonl"))
    }

    /// Writes `bytes` at `offset` of file `number`. Blocks.
    ///
    /// # Errors
    /// The file cannot be written, or is shorter than `offset`.
    pub(crate) fn write(&self, number: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        private_files::create_dir(&self.0.dir)?;
        let path = self.path(number);
        let mut options = OpenOptions::new();
        let options = options.write(true).custom_flags(private_files::OPEN_NOFOLLOW);
        // A new file, readable by this user only: an existing one may be a link, or be open in another process.
        let file =
            if offset == 0 { private_files::create_file(&path) } else { options.open(&path) };
        let file = file.map_err(|e| with_path(&path, &e))?;
        self.check_length(&file, &path, offset)?;
        file.write_all_at(bytes, offset).map_err(|e| with_path(&path, &e))
    }

    /// Opens file `number`, of which `length` bytes were written.
    ///
    /// # Errors
    /// It does not exist, or is shorter.
    pub(crate) fn open(&self, number: u64, length: u64) -> io::Result<File> {
        let path = self.path(number);
        let file = File::open(&path).map_err(|e| with_path(&path, &e))?;
        self.check_length(&file, &path, length)?;
        Ok(file)
    }

    fn check_length(&self, file: &File, path: &Path, length: u64) -> io::Result<()> {
        let found = file.metadata().map_err(|e| with_path(path, &e))?.len();
        if found < length {
            let detail = format!("it has {found} of {length} bytes");
            return Err(with_path(path, &io::Error::new(io::ErrorKind::UnexpectedEof, detail)));
        }
        Ok(())
    }

    /// Removes file `number`, if it exists.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn remove(&self, number: u64) -> io::Result<()> {
        match fs::remove_file(self.path(number)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(with_path(&self.path(number), &e)),
            _ => Ok(()),
        }
    }

    /// Removes the files that a killed master left behind: all files except those of `needed` numbers.
    ///
    /// # Errors
    /// The directory cannot be read, or a file cannot be removed.
    pub(crate) fn remove_unless(&self, needed: impl Fn(u64) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.0.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| with_path(&self.0.dir, &e))?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".jsonl"));
            if let Some(number) = number.and_then(|n| n.parse().ok())
                && !needed(number)
            {
                self.remove(number)?;
            }
        }
        Ok(())
    }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_repeated_write_is_stored_once_and_a_gap_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::in_dir(home.path().join("a/b"));
        spool.write(7, 0, b"one\n").unwrap();
        spool.write(7, 4, b"lost\n").unwrap();
        for _ in 0..2 {
            spool.write(7, 4, b"two\n").unwrap();
        }
        let mut text = String::new();
        spool.open(7, 8).unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with("one\ntwo\n"), "{text}");
        for (number, at) in [(7, 100), (8, 1)] {
            assert!(spool.write(number, at, b"x").is_err(), "{number}");
            assert!(spool.open(number, at).is_err(), "{number}");
        }
        spool.write(7, 0, b"anew\n").unwrap();
        assert!(spool.open(7, 6).is_err(), "a write at 0 replaces the file");
    }

    #[test]
    fn unneeded_files_are_removed_and_a_temporary_spool_leaves_nothing() {
        let spool = Spool::temporary();
        spool.remove_unless(|_| false).unwrap();
        for number in [1, 2, 3] {
            spool.write(number, 0, b"x").unwrap();
        }
        spool.remove_unless(|number| number == 2).unwrap();
        assert!(spool.open(1, 0).is_err() && spool.open(2, 1).is_ok());
        spool.remove(2).unwrap();
        spool.remove(2).unwrap();
        let dir = spool.0.dir.clone();
        assert!(dir.exists());
        drop(spool);
        assert!(!dir.exists());
    }
}
