//! The file system of the source of each pair of source and destination at its last complete sync.
//! With it a mirror detects a source that is not mounted.

use crate::wire::AbsPath;
use crate::wire::sync::SyncRequest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum number of remembered pairs; the oldest are removed.
pub(super) const MAX_REMEMBERED_SOURCES: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RememberedSource {
    /// See [`RootState`](crate::wire::task::RootState).
    pub(super) file_system: String,
    /// End of the last complete sync, in milliseconds since 1970.
    pub(super) completed_ms: i64,
}

/// By the keys of their records.
#[derive(Debug, Default)]
pub(super) struct SourceHistory(pub(super) BTreeMap<String, RememberedSource>);

/// Selected workers see other storages than others at the same paths.
fn request_key(request: &SyncRequest) -> String {
    let key = path_pair_key(&request.source_path, &request.destination_path);
    if request.source_workers.is_empty() && request.destination_workers.is_empty() {
        return key;
    }
    let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 workers of a source");
    for side in [&request.source_workers, &request.destination_workers] {
        hasher.update(&(side.len() as u64).to_le_bytes());
        for selector in side {
            hasher.update(selector.to_string().as_bytes()).update(b",");
        }
    }
    hasher.update(key.as_bytes());
    format!("p/{}", &hasher.finalize().to_hex()[..32])
}

/// The record of a pair, key and value: for a master with a temporary store.
///
/// # Errors
/// The record cannot be encoded.
pub fn source_history_record(
    source: &AbsPath,
    destination: &AbsPath,
    file_system: &str,
) -> serde_json::Result<(String, Vec<u8>)> {
    let pair = RememberedSource { file_system: file_system.to_owned(), completed_ms: 0 };
    Ok((path_pair_key(source, destination), serde_json::to_vec(&pair)?))
}

fn path_pair_key(source: &AbsPath, destination: &AbsPath) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 source and destination");
    for path in [source, destination] {
        hasher.update(&(path.as_bytes().len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
    }
    format!("p/{}", &hasher.finalize().to_hex()[..32])
}

impl SourceHistory {
    pub(super) fn last_file_system(&self, request: &SyncRequest) -> Option<&str> {
        self.0.get(&request_key(request)).map(|pair| pair.file_system.as_str())
    }

    /// Remembers a pair. Returns the keys of the changed records: its own, and one that was
    /// removed.
    pub(super) fn remember(
        &mut self,
        request: &SyncRequest,
        file_system: String,
        at_ms: i64,
    ) -> Vec<String> {
        let mut changed = vec![request_key(request)];
        self.0.insert(changed[0].clone(), RememberedSource { file_system, completed_ms: at_ms });
        if self.0.len() > MAX_REMEMBERED_SOURCES {
            let oldest = self.0.iter().min_by_key(|(_, pair)| pair.completed_ms);
            changed.extend(oldest.map(|(key, _)| key.clone()));
            self.0.remove(&changed[1]);
        }
        changed
    }
}
