//! Entries blocked by a directory that is not empty. A mirror deletes such a directory, but only
//! after its guards have passed. So the entries are deferred, and the source is walked again after
//! the deletion.
//!
//! ```text
//! Copy ──EISDIR──▶ deferred ─▶ CountExtraneous ─▶ (guards) ─▶ DeleteExtraneous ─▶ CopyBlocked ─▶ done or failed
//!                     └── nothing is deleted (an error, a guard, a filter) ─▶ failed with EISDIR
//! ```

use crate::wire::outcome::EntryError;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct BlockedEntries {
    pub(super) files: u64,
    /// The first errors.
    pub(super) errors: Vec<EntryError>,
    /// Entries without a kept error that the read-back pass found in the same state.
    pub(super) readback_count: u64,
}

impl BlockedEntries {
    pub(super) fn is_empty(&self) -> bool {
        self.files == 0
    }

    /// How many of `errors` are about entries without a kept error.
    pub(super) fn count_unrecorded(&self, errors: &[EntryError]) -> u64 {
        let noted = |error: &&EntryError| self.errors.iter().any(|known| known.path == error.path);
        errors.iter().filter(|error| !noted(error)).count() as u64
    }

    /// Whether entries that failed with `errors` in the read-back pass can be entries that were
    /// deferred in the copy. Beyond the kept errors only their number decides.
    pub(super) fn may_include(&self, errors: &[EntryError]) -> bool {
        let without_error = self.files.saturating_sub(self.errors.len() as u64);
        self.readback_count.saturating_add(self.count_unrecorded(errors)) <= without_error
    }
}
