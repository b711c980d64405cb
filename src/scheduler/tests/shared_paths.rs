//! In most tests a path is one storage, whichever workers serve it.

use super::*;
use crate::wire::storage::ConfiguredStorage;

impl World {
    /// A storage path without a fingerprint is the same storage on all workers: the configuration of
    /// the master says so.
    pub(super) fn declare_shared(&mut self, heartbeat: &WorkerHeartbeat) {
        let declared = &mut self.state.settings.storages;
        let lost = heartbeat.unavailable_paths.iter().map(|one| &one.path);
        for path in heartbeat.storage_paths.iter().chain(lost) {
            let is_reported = heartbeat.storages.iter().any(|report| report.path == *path);
            if is_reported || declared.iter().any(|one| one.paths.contains(path)) {
                continue;
            }
            declared.push(ConfiguredStorage {
                id: format!("shared-{}", declared.len()).parse().unwrap(),
                paths: vec![path.clone()],
                workers: vec!["*".parse().unwrap()],
            });
        }
    }

    /// The keys of the records, but those of storages.
    pub(super) fn sync_records(&self) -> Vec<&str> {
        let keys = self.records.keys().map(String::as_str);
        keys.filter(|key| !key.starts_with("n/") && !key.starts_with("y/")).collect()
    }
}
