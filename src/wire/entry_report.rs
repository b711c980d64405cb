//! Actions, warnings and outcomes of entries, as results and progress report them.

use super::outcome::{EntryError, serialize_without_path};
use super::text_enum::text_enum;
use super::{BytePath, Digest};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

text_enum! {
    /// The action on an entry; in a dry run the action that would be taken.
    #[derive(PartialOrd, Ord, Hash, Encode, Decode)]
    pub enum EntryAction {
        /// The destination lacked the entry.
        #[n(0)]
        Create = "create",
        /// The destination had other content, or another file type.
        #[n(1)]
        Update = "update",
        /// Only the metadata differed.
        #[n(2)]
        Metadata = "metadata",
        /// The entry was equal, or is excluded from changes by an option.
        #[n(3)]
        Skip = "skip",
        /// The source lacked the entry.
        #[n(4)]
        Delete = "delete",
    }
}

/// A number of entries and of bytes of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Entries of any file type.
    pub count: u64,
    /// Content of the regular files among them, in bytes.
    pub bytes: u64,
}

impl Tally {
    /// Adds an entry with `bytes` of content.
    pub fn add(&mut self, bytes: u64) {
        self.merge(Tally { count: 1, bytes });
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: Tally) {
        self.count = self.count.saturating_add(other.count);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Entries that were not copied exactly, or were left out, but did not fail.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EntryWarning {
    /// The number of entries.
    pub count: u64,
    /// The first of them, at most [`EntryWarning::MAX_PATHS`].
    pub paths: Vec<BytePath>,
}

impl EntryWarning {
    /// The maximum number of paths in a warning.
    pub const MAX_PATHS: usize = 10;

    /// Adds an entry.
    pub fn add(&mut self, path: &[u8]) {
        self.merge(EntryWarning { count: 1, paths: vec![BytePath(path.to_vec())] });
    }

    /// Adds the entries of another warning of the same cause.
    pub fn merge(&mut self, other: EntryWarning) {
        self.count = self.count.saturating_add(other.count);
        let free = EntryWarning::MAX_PATHS.saturating_sub(self.paths.len());
        self.paths.extend(other.paths.into_iter().take(free));
    }
}

/// Warnings by cause, e.g. `owner not set (EPERM): the agent is not root`.
pub type EntryWarnings = BTreeMap<String, EntryWarning>;

/// The outcome of one file, for a sync with [`record`](super::options::SyncOptions::record) or
/// [`manifest`](super::options::SyncOptions::manifest).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Below the root of the sync.
    pub path: BytePath,
    /// The final state.
    pub state: FileState,
    /// The action, or in a dry run the action that would be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<EntryAction>,
    /// The length of the content.
    #[serde(default)]
    pub bytes: u64,
    /// The digest of the content of a regular file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The error of a failed file, without the path.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_without_path"
    )]
    pub error: Option<EntryError>,
}

text_enum! {
    /// See [`FileRecord`].
    pub enum FileState {
        /// Copied.
        Done = "done",
        /// Equal already, or excluded from changes by an option.
        Skipped = "skipped",
        /// Failed after all retries.
        Failed = "failed",
        /// Deleted (or moved to the trash).
        Deleted = "deleted",
    }
}
