//! Files of more than one range.

use super::relay_table::SharedFileNo;
use crate::wire::{BytePath, Digest, SyncNo, TaskId};
use serde::{Deserialize, Serialize};

/// A file of more than one range. Its range tasks are made a few at a time, so that a file of any
/// size costs the same window; done ranges leave 32 bytes each.
///
/// A test walks the table of its states: what it is, what happens, what it is then. A last state is what remains of it:
/// `Linked` is a batch of one entry that becomes a link, `Discarded` a task that removes what a range wrote of a file
/// that is skipped.
///
/// ```text
/// Waiting        | another name is present               | Linked
/// Waiting        | the other name fails for good         | Sending
/// Comparing      | a range differs                       | Sending
/// Comparing      | all ranges are equal                  | Skipped
/// Sending        | all ranges are sent                   | Done
/// Sending        | its part file is lost                 | Sending
/// Sending        | the source changes                    | Replaced
/// Sending        | it fails for good                     | Failed
/// Sending        | its only leased range finds it there  | Skipped
/// Sending        | one of two leased ranges finds it     | AlreadyPresent
/// AlreadyPresent | the other range finds it too          | Skipped
/// AlreadyPresent | the other range wrote                 | Discarded
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LargeFile {
    /// From the sequence of task numbers.
    pub(super) id: TaskId,
    pub(super) sync: SyncNo,
    pub(super) path: BytePath,
    pub(super) size: u64,
    /// The length of all ranges but the last.
    pub(super) range_length: u64,
    pub(super) manifest_key: String,
    /// The manifest's size in the store.
    pub(super) manifest_bytes: u64,
    /// The manifest's digest; part of the digests of its tasks.
    pub(super) manifest_digest: Digest,
    /// Ranges below this have a task or are done.
    pub(super) next_range: u64,
    /// Number of restarts after changes of the source.
    pub(super) restarts: u32,
    pub(super) state: LargeFileState,
    /// The same for all names of a file; `None` if it has one name.
    pub(super) hardlink_group: Option<Digest>,
    /// Bytes of done ranges, already in the counters …
    pub(super) sent_bytes: u64,
    /// … and those of them that the destination had.
    pub(super) kept_bytes: u64,
    /// A range has no chaining value: the file has no digest.
    pub(super) has_unhashed_range: bool,
    /// The chaining value of each done range. Each has a record of its own.
    #[serde(skip)]
    pub(super) range_digests: Vec<Option<Digest>>,
    #[serde(skip)]
    pub(super) ranges_done: u64,
    /// The file that other destinations get as well.
    #[serde(skip)]
    pub(super) shared: Option<SharedFileNo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LargeFileState {
    /// Ranges are sent.
    Sending,
    /// Ranges are compared with the destination.
    Comparing,
    /// No ranges yet: another name of the file is being copied.
    Waiting,
    /// The destination has the file, and it is counted. It stays until each leased range has
    /// reported whether it found the same or wrote before.
    AlreadyPresent,
}

impl LargeFile {
    pub(super) fn range_count(&self) -> u64 {
        self.size.div_ceil(self.range_length)
    }

    /// Offset and length.
    pub(super) fn range(&self, index: u64) -> (u64, u64) {
        let offset = index * self.range_length;
        (offset, self.range_length.min(self.size - offset))
    }

    pub(super) fn record_key(&self) -> String {
        format!("l/{}/{}", self.sync, self.id)
    }

    pub(super) fn range_record_key(&self, index: u64) -> String {
        format!("v/{}/{}/{index}", self.sync, self.id)
    }
}
