//! What is stored of the [file records](super::file_records) of a sync.

use super::failure_list::FailurePages;
use crate::wire::{AbsPath, RequestId, SyncNo};
use serde::{Deserialize, Serialize};

/// The stored part of the record log of a sync.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RecordLog {
    /// Committed bytes; later bytes in the file are void.
    pub(super) length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub(super) readback_from: Option<u64>,
    /// Why it is incomplete.
    pub(super) error: Option<String>,
}

/// What is needed to read the record log of a sync.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordLogInfo {
    /// The sync.
    pub sync: SyncNo,
    /// Its id.
    pub id: RequestId,
    /// Committed bytes.
    pub length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub readback_from: Option<u64>,
    /// Why it is incomplete.
    pub error: Option<String>,
    /// Whether the sync records files.
    pub is_recorded: bool,
    /// Whether each line has the digest of the file.
    pub has_digests: bool,
    /// Whether the sync has ended.
    pub has_ended: bool,
    /// The root of its paths.
    pub destination: AbsPath,
    /// The failures, which every sync lists.
    pub failures: FailurePages,
}
