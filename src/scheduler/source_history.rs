//! What is remembered of a source and a destination beyond the sync: on which file system the source
//! lay when they were last made equal. By this a mirror knows a source that is not mounted.

use crate::wire::AbsPath;
use crate::wire::sync::SyncRequest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// So many pairs are remembered; the oldest go.
pub(super) const MAX_REMEMBERED_SOURCES: usize = 10_000;

/// A pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RememberedSource {
    /// See [`RootState`](crate::wire::task::RootState).
    pub(super) file_system: String,
    /// When the last sync of it completed, in milliseconds since 1970.
    pub(super) completed_ms: i64,
}

/// All pairs, by the keys of their records.
#[derive(Debug, Default)]
pub(super) struct SourceHistory(pub(super) BTreeMap<String, RememberedSource>);

/// The key of a pair's record.
fn request_key(request: &SyncRequest) -> String {
    path_pair_key(&request.source_path, &request.destination_path)
}

/// The record of a pair as it stands in a store, key and value: for a master whose store does not outlive
/// it.
///
/// # Errors
/// It can't be encoded.
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
    /// The file system on which the source of a request lay.
    pub(super) fn last_file_system(&self, request: &SyncRequest) -> Option<&str> {
        self.0.get(&request_key(request)).map(|pair| pair.file_system.as_str())
    }

    /// Remembers a pair; the keys of the records that changed: its own, and one that it drove out.
    pub(super) fn remember(
        &mut self,
        request: &SyncRequest,
        file_system: String,
        at_ms: i64,
    ) -> (Option<String>, Option<String>) {
        let key = request_key(request);
        self.0.insert(key.clone(), RememberedSource { file_system, completed_ms: at_ms });
        let oldest =
            || self.0.iter().min_by_key(|(_, pair)| pair.completed_ms).map(|(k, _)| k.clone());
        let dropped = if self.0.len() > MAX_REMEMBERED_SOURCES { oldest() } else { None };
        if let Some(key) = &dropped {
            self.0.remove(key);
        }
        (Some(key), dropped)
    }
}
