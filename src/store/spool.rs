//! Files that grow: what became of each file of a sync, a line each. They are too large for a store,
//! and nothing is decided by them. A file is written at places that the leader's state names, so a
//! write that is repeated changes nothing; what stands behind the committed length counts for nothing.
//! They lie on the disk of one master: another one that takes over has not got them, finds that out with
//! its first write, and says so.

use crate::util::private_files;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where they are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool(Arc<SpoolDir>);

#[derive(Debug)]
struct SpoolDir {
    dir: PathBuf,
    /// It goes with the last user.
    temporary: bool,
}

impl Drop for SpoolDir {
    fn drop(&mut self) {
        if self.temporary {
            // It may never have been made.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

impl Spool {
    /// Files in `dir`, which is made when it is needed.
    pub fn in_dir(dir: PathBuf) -> Self {
        Spool(Arc::new(SpoolDir { dir, temporary: false }))
    }

    /// Files that disappear with the last clone of this.
    pub fn temporary() -> Self {
        let name = format!("longhaul-{}", uuid::Uuid::new_v4().simple());
        Spool(Arc::new(SpoolDir { dir: std::env::temp_dir().join(name), temporary: true }))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.dir.join(format!("{number}.jsonl"))
    }

    /// Writes `bytes` at the place `at` of file `number`. It blocks.
    ///
    /// # Errors
    /// The file can't be written, or holds less than what was written before.
    pub fn write(&self, number: u64, at: u64, bytes: &[u8]) -> io::Result<()> {
        private_files::create_dir(&self.0.dir)?;
        let path = self.path(number);
        // Names of files are nobody's business but the master's.
        let mut options = OpenOptions::new();
        let options = options.write(true).custom_flags(private_files::OPEN_NOFOLLOW);
        // Made anew: one that is there may be a link, or be open elsewhere.
        let file = if at == 0 { private_files::create_file(&path) } else { options.open(&path) };
        let file = file.map_err(|e| with_path(&path, &e))?;
        self.check_length(&file, &path, at)?;
        file.write_all_at(bytes, at).map_err(|e| with_path(&path, &e))
    }

    /// Opens file `number`, of which `length` bytes were written.
    ///
    /// # Errors
    /// It is not there, or holds less.
    pub fn open(&self, number: u64, length: u64) -> io::Result<File> {
        let path = self.path(number);
        let file = File::open(&path).map_err(|e| with_path(&path, &e))?;
        self.check_length(&file, &path, length)?;
        Ok(file)
    }

    fn check_length(&self, file: &File, path: &Path, length: u64) -> io::Result<()> {
        let found = file.metadata().map_err(|e| with_path(path, &e))?.len();
        if found < length {
            let detail = format!("it holds {found} of {length} bytes");
            return Err(with_path(path, &io::Error::new(io::ErrorKind::UnexpectedEof, detail)));
        }
        Ok(())
    }

    /// Removes file `number`, if it is there.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, number: u64) -> io::Result<()> {
        match fs::remove_file(self.path(number)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(with_path(&self.path(number), &e)),
            _ => Ok(()),
        }
    }

    /// Removes the files whose number is not wanted: a master that died may have left them.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn remove_unless(&self, wanted: impl Fn(u64) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.0.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| with_path(&self.0.dir, &e))?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|n| n.strip_suffix(".jsonl"));
            if let Some(number) = number.and_then(|n| n.parse().ok())
                && !wanted(number)
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
        assert!(spool.open(7, 6).is_err(), "what was there before is gone");
    }

    #[test]
    fn unwanted_files_are_removed_and_a_temporary_spool_leaves_nothing() {
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
