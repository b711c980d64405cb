//! The probe files that this agent made and has not removed. The record survives a crash of the agent, so that its next
//! start removes what the last one left: exactly the names that it made, whatever else looks like a probe file.

use crate::util::private_files;
use crate::wire::AbsPath;
use crate::wire::storage::ProbeName;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One probe file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// The directory on this host.
    pub path: AbsPath,
    /// Its inode number: at another start another file system, or none, may be mounted there.
    pub inode: u64,
    /// The name of the file.
    pub name: ProbeName,
}

/// The record of all probe files of this agent.
#[derive(Debug, Default)]
pub struct ProbeJournal {
    /// `None`: nothing outlives this process.
    file: Option<PathBuf>,
    records: Mutex<Vec<ProbeRecord>>,
}

impl ProbeJournal {
    /// Opens the journal that is stored in `file`.
    ///
    /// # Errors
    /// It can't be read or parsed.
    pub fn open(file: &Path) -> io::Result<ProbeJournal> {
        let records = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        Ok(ProbeJournal { file: Some(file.to_owned()), records: Mutex::new(records) })
    }

    /// What is recorded of `path`, the directory on this host.
    pub fn records_of(&self, path: &AbsPath) -> Vec<ProbeRecord> {
        let records = self.records.lock();
        records.iter().filter(|record| record.path == *path).cloned().collect()
    }

    /// Removes and returns the records of all directories but these.
    pub fn drop_other_paths(&self, paths: &[&AbsPath]) -> Vec<ProbeRecord> {
        let mut records = self.records.lock();
        let (kept, dropped): (Vec<_>, Vec<_>) =
            records.drain(..).partition(|record| paths.contains(&&record.path));
        *records = kept;
        if !dropped.is_empty() {
            self.save_or_warn(&records);
        }
        dropped
    }

    /// A probe file is about to be made.
    pub fn add(&self, record: &ProbeRecord) {
        let mut records = self.records.lock();
        if !records.contains(record) {
            records.push(record.clone());
            self.save_or_warn(&records);
        }
    }

    /// A probe file was removed.
    pub fn remove(&self, record: &ProbeRecord) {
        let mut records = self.records.lock();
        let count = records.len();
        records.retain(|other| other != record);
        if records.len() < count {
            self.save_or_warn(&records);
        }
    }

    /// Puts it on stable storage. An empty journal has no file.
    fn save(&self, records: &[ProbeRecord]) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        if records.is_empty() {
            return match fs::remove_file(file) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
        }
        private_files::replace_file(file, &serde_json::to_vec(records)?)
    }

    fn save_or_warn(&self, records: &[ProbeRecord]) {
        if let Err(e) = self.save(records) {
            let file = self.file.as_deref().unwrap_or(Path::new("")).display();
            tracing::warn!(
                "cannot write {file}: {e}; if this agent is killed now, a file `.ctl-….probe.part` may stay in a \
                 storage path; let the agent's user write there, or set another data_dir"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, inode: u64, random: u8) -> ProbeRecord {
        let (path, name) = (AbsPath::new(path).unwrap(), ProbeName::new([random; 16]));
        ProbeRecord { path, inode, name }
    }

    #[test]
    fn records_outlive_the_process_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/probes.json");
        let (a, b, gone) = (record("/a", 1, 1), record("/b", 2, 2), record("/gone", 3, 3));
        let journal = ProbeJournal::open(&file).unwrap();
        for record in [&a, &b, &gone, &a] {
            journal.add(record);
        }
        let journal = ProbeJournal::open(&file).unwrap();
        assert_eq!(journal.records_of(&a.path), vec![a.clone()]);
        assert_eq!(journal.drop_other_paths(&[&a.path, &b.path]), vec![gone.clone()]);
        journal.remove(&a);
        let journal = ProbeJournal::open(&file).unwrap();
        assert_eq!((journal.records_of(&a.path), journal.records_of(&gone.path)), (vec![], vec![]));
        assert_eq!(journal.records_of(&b.path), vec![b.clone()]);
        journal.remove(&b);
        assert!(!file.exists(), "an empty journal has no file");
        std::fs::write(&file, "[{").unwrap();
        assert!(ProbeJournal::open(&file).is_err());
    }
}
