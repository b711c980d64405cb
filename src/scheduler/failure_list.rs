//! The failures of a sync by name. Every sync lists up to [`MAX_FAILED_ENTRIES`] of them, to be
//! shown and retried.
//!
//! The list may be long and is never in memory as a whole. It is stored in pages, blobs
//! `e/SYNC/PAGE` of JSON lines. Only the open page is in memory; it is written again with each
//! event that adds to it. After a restart the next failure opens another page. Pages are written in
//! the commit of the counters, so list and counters agree whichever master leads. A batch that
//! failed as a whole is one line with the key of its manifest, which is kept with the pages.

use crate::wire::entry_report::{FileRecord, FileState};
use crate::wire::outcome::EntryError;
use crate::wire::{BytePath, SyncNo};
use serde::{Deserialize, Serialize};

/// Maximum number of listed failures of a sync.
pub(super) const MAX_FAILED_ENTRIES: u64 = 1_000_000;

/// Maximum size of all lines of a sync: names may be long.
const MAX_FAILED_BYTES: u64 = 256 << 20;

/// Maximum number of kept manifests; their keys are in the record of the sync.
const MAX_BATCHES: usize = 1_024;

/// Size at which a page is complete. The open page is written as a whole with each event that adds
/// to it.
pub(super) const MAX_PAGE_BYTES: usize = 32 << 10;

/// The stored part of the failure list of a sync.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FailureList {
    pub(super) page_count: u64,
    pub(super) listed_count: u64,
    /// Bytes of all lines.
    pub(super) bytes: u64,
    /// Failures that are counted but not listed by name.
    pub(super) unlisted_count: u64,
    /// Keys of the kept manifests of batches that failed as a whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) batches: Vec<String>,
    /// Filled since this master began to lead.
    #[serde(skip)]
    pub(super) open_page: OpenPage,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct OpenPage {
    pub(super) lines: Vec<u8>,
    /// The error in the last line.
    pub(super) error: Option<EntryError>,
    /// It has lines that are not stored.
    pub(super) is_unsaved: bool,
}

/// A batch that failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedBatch {
    /// The key of its manifest.
    pub manifest: String,
    /// Number of entries.
    pub entries: u64,
}

/// A line; stored without an error it has that of the previous line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailureLine {
    /// The entry.
    pub path: BytePath,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<EntryError>,
    /// The batch, if the line stands for all its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<FailedBatch>,
}

/// Where the failures of a sync are stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailurePages {
    /// Keys of the blobs, in order.
    pub keys: Vec<String>,
    /// Number of listed failures; pages may hold more that were added since.
    pub listed: u64,
}

/// Decodes a page.
///
/// # Errors
/// The page was not written by this program.
pub fn decode_failures(page: &[u8]) -> Result<Vec<FailureLine>, String> {
    let mut error = None;
    let lines = page.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let decode = |line: &[u8]| {
        let line: FailureLine = serde_json::from_slice(line).map_err(|e| e.to_string())?;
        error = line.error.or(error.take());
        Ok(FailureLine { error: error.clone(), ..line })
    };
    lines.map(decode).collect()
}

/// The record of an entry that failed with `error`.
pub(super) fn failure_record(error: &EntryError) -> FileRecord {
    failed_file_record(error.path.clone(), Some(error.without_path()))
}

/// The record of an entry that failed.
pub fn failed_file_record(path: BytePath, error: Option<EntryError>) -> FileRecord {
    FileRecord { path, state: FileState::Failed, action: None, bytes: 0, digest: None, error }
}

pub(super) fn failure_page_key(no: SyncNo, page: u64) -> String {
    format!("e/{no}/{page}")
}

impl FailureList {
    fn has_room(&self, entries: u64, max_entries: u64) -> bool {
        self.listed_count.saturating_add(entries) <= max_entries
    }

    pub(super) fn has_room_for_batch(&self, entries: u64, max_entries: u64) -> bool {
        self.batches.len() < MAX_BATCHES && self.has_room(entries, max_entries)
    }

    /// Adds an entry or a batch. False: there is no space for it.
    pub(super) fn add(
        &mut self,
        failed: FileRecord,
        batch: Option<FailedBatch>,
        max_entries: u64,
    ) -> bool {
        let error = failed.error.filter(|error| Some(error) != self.open_page.error.as_ref());
        let entries = batch.as_ref().map_or(1, |batch| batch.entries);
        let line = FailureLine { path: failed.path, error, batch };
        let Ok(text) = serde_json::to_vec(&line) else { return false };
        let bytes = self.bytes.saturating_add(text.len() as u64 + 1);
        if !self.has_room(entries, max_entries) || bytes > MAX_FAILED_BYTES {
            return false;
        }
        if self.open_page.lines.is_empty() {
            self.page_count += 1;
        }
        self.open_page.lines.extend_from_slice(&text);
        self.open_page.lines.push(b'\n');
        self.open_page.is_unsaved = true;
        if line.error.is_some() {
            self.open_page.error = line.error;
        }
        self.batches.extend(line.batch.map(|batch| batch.manifest));
        (self.listed_count, self.bytes) = (self.listed_count + entries, bytes);
        true
    }

    /// The number of the open page.
    pub(super) fn open_page_no(&self) -> u64 {
        self.page_count.saturating_sub(1)
    }
}
