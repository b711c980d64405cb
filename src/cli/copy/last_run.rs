//! The record of a pair of SRC and DST between runs of `ctl copy`: the file system of SRC when the last copy completed. A
//! mirror compares it with the file system that is mounted at SRC now.
//!
//! One small JSON file for each pair, in `copies` below the [state directory](state_dir), private (directory 0700, files
//! 0600). There are at most [`MAX_RECORDS`]; the oldest are removed. The name is a digest of the host name and both paths,
//! because hosts with different mounts may share a home directory.

use super::name_key::state_dir;
use crate::util::private_files;
use crate::wire::AbsPath;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The most records.
const MAX_RECORDS: usize = 1_000;
/// A record, which has two paths and a few words, is shorter.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// The record of one pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastRun {
    /// The directory of the records.
    #[serde(skip)]
    dir: PathBuf,
    /// These three are for the reader, and detect a collision of digests.
    host: String,
    source: AbsPath,
    destination: AbsPath,
    /// See [`RootState`](crate::wire::task::RootState); empty if unknown.
    file_system: String,
}

impl LastRun {
    /// The record of the pair of these real paths.
    pub(super) fn for_pair(source: &AbsPath, destination: &AbsPath) -> LastRun {
        LastRun::in_state_dir(&state_dir(), source, destination)
    }

    fn in_state_dir(state: &Path, source: &AbsPath, destination: &AbsPath) -> LastRun {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (source, destination) = (source.clone(), destination.clone());
        LastRun { dir: state.join("copies"), host, source, destination, file_system: String::new() }
    }

    /// The path of the file.
    pub(super) fn record_path(&self) -> PathBuf {
        let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 last copy of a pair");
        let LastRun { host, source, destination, .. } = self;
        for part in [host.as_bytes(), source.as_bytes(), destination.as_bytes()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        self.dir.join(format!("{}.json", &hasher.finalize().to_hex()[..32]))
    }

    /// The file system of SRC at the last run; `None` if there is no record.
    ///
    /// # Errors
    /// The record can't be read, is corrupt or belongs to another user.
    pub(super) fn read_file_system(&self) -> Result<Option<String>, String> {
        let text = match private_files::read_file(&self.record_path(), MAX_RECORD_BYTES) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(e.to_string()),
        };
        let known: LastRun = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let file_system = known.file_system.clone();
        if (LastRun { dir: self.dir.clone(), file_system: String::new(), ..known }) != *self {
            return Err("it is the record of another pair".to_owned());
        }
        Ok(Some(file_system))
    }

    /// Records that the copy completed with SRC on this file system.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn write_record(&self, file_system: &str) -> std::io::Result<()> {
        let record = LastRun { file_system: file_system.to_owned(), ..self.clone() };
        let temporary = self.dir.join(format!(".{}", crate::util::unique_id::generate_id()));
        private_files::replace_file_via(
            &self.record_path(),
            &temporary,
            &serde_json::to_vec(&record)?,
        )?;
        self.remove_oldest(MAX_RECORDS)
    }

    /// Removes the oldest records if there are more than `most`.
    fn remove_oldest(&self, most: usize) -> std::io::Result<()> {
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may have removed it.
            if let Ok(meta) = entry.metadata() {
                all.push((meta.modified()?, entry.path()));
            }
        }
        let excess = all.len().saturating_sub(most);
        all.sort_unstable();
        for (_, path) in all.iter().take(excess) {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pair(state: &Path, destination: &str) -> LastRun {
        let abs = |path: &str| AbsPath::new(path).unwrap();
        LastRun::in_state_dir(state, &abs("/src"), &abs(destination))
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn each_pair_has_its_own_record_that_only_its_user_can_read() {
        let state = tempfile::tempdir().unwrap();
        let (one, two) = (pair(state.path(), "/one"), pair(state.path(), "/two"));
        assert_eq!(one.read_file_system(), Ok(None));
        for id in ["1:a", "2:b"] {
            one.write_record(id).unwrap();
            assert_eq!(
                (one.read_file_system(), two.read_file_system()),
                (Ok(Some(id.to_owned())), Ok(None))
            );
        }
        assert_eq!((mode(&one.dir), mode(&one.record_path())), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&one.dir).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_record_of_another_pair_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let (one, two) = (pair(state.path(), "/one"), pair(state.path(), "/two"));
        two.write_record("1:a").unwrap();
        for damage in ["", "{\"host\":", "null"] {
            private_files::replace_file(&one.record_path(), damage.as_bytes()).unwrap();
            assert!(one.read_file_system().is_err(), "{damage}");
        }
        std::fs::copy(two.record_path(), one.record_path()).unwrap();
        assert!(one.read_file_system().unwrap_err().contains("another pair"));
        std::fs::remove_file(one.record_path()).unwrap();
        std::os::unix::fs::symlink(two.record_path(), one.record_path()).unwrap();
        assert!(one.read_file_system().is_err(), "a link is not followed");
    }

    #[test]
    fn the_oldest_records_are_removed_beyond_the_limit() {
        let state = tempfile::tempdir().unwrap();
        let all: Vec<LastRun> = (0..4).map(|n| pair(state.path(), &format!("/{n}"))).collect();
        for (n, run) in all.iter().enumerate() {
            run.write_record("1:a").unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 - n as u64);
            std::fs::File::options()
                .write(true)
                .open(run.record_path())
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        all[0].remove_oldest(2).unwrap();
        let kept: Vec<bool> = all.iter().map(|run| run.record_path().exists()).collect();
        assert_eq!(kept, [true, true, false, false]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let run = pair(file.path(), "/one");
        assert!(run.write_record("1:a").is_err());
        assert_eq!(run.read_file_system(), Ok(None), "nothing was ever kept there");
    }
}
