//! Tasks and large files.

use super::worker_losses::WorkerLoss;
use crate::wire::sync::FileError;
use crate::wire::task::TaskSpec;
use crate::wire::{AssignmentId, BytePath, Digest, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Attempts that failed for lack of resources and are not charged; they are half a minute apart.
const MAX_RESOURCE_RETRIES: u32 = 120;

/// Time for which other workers are preferred after a loss or a revoked lease.
pub(super) const DEPRIORITISED_MS: u64 = 5 * 60 * 1000;

/// A unit of work.
///
/// ```text
///   ┌── lease ran out, agent restarted, handed back, scan on hold ──┐
///   ▼                                                               │
/// Ready ──poll──▶ Leased ───────────────────────────────────────────┤
///   ▲               │ ├──result, last page──▶ (gone: counted once)
///   │               │ └──failed too often───▶ (gone: counted as failed)
///   └── Delayed ◀───┘
///         failed, to be tried again
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) sync: SyncNo,
    pub(super) spec: TaskSpec,
    pub(super) manifest_key: Option<String>,
    /// The manifest's size in the store; counted against the window.
    pub(super) manifest_bytes: u64,
    /// A result must carry it.
    pub(super) digest: Digest,
    /// Number of leases.
    pub(super) attempt: u32,
    /// Number of failed attempts.
    pub(super) failures: u32,
    /// Failed attempts for lack of descriptors or memory, which are not charged.
    #[serde(default)]
    pub(super) resource_retries: u32,
    /// Workers that failed it: others are preferred.
    pub(super) failed_on: BTreeSet<WorkerId>,
    /// Processes with which it was lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) losses: Vec<WorkerLoss>,
    /// The name of its only entry, if it was isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<BytePath>,
    /// Its manifest could not be split: its entries stay one task.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_unsplittable: bool,
    /// For a range or commit: its file.
    pub(super) large_file: Option<TaskId>,
    /// For a flush: the worker that wrote.
    pub(super) pinned_to: Option<WorkerId>,
    pub(super) last_error: Option<String>,
    /// For a flush: since when no worker can do it, on the scheduler's clock.
    #[serde(skip)]
    pub(super) waiting_since_ms: u64,
    /// Until then other workers are preferred, on the scheduler's clock. Not for ever: they may
    /// never poll.
    #[serde(skip)]
    pub(super) deprioritised_until_ms: u64,
    pub(super) state: TaskState,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TaskState {
    /// May be assigned.
    Ready,
    /// Waits before a retry. A restart of the master ends the delay.
    Delayed {
        /// On the scheduler's clock.
        #[serde(skip)]
        until_ms: u64,
    },
    /// Assigned to a worker.
    Leased(Lease),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Random and unique.
    pub(super) assignment: AssignmentId,
    pub(super) worker: WorkerId,
    /// The process of the worker.
    pub(super) incarnation: Option<String>,
    /// A repeat of this poll gets the lease again.
    pub(super) poll_id: Option<String>,
    /// On the scheduler's clock. Not stored: a restarted master grants a whole lease.
    #[serde(skip)]
    pub(super) deadline_ms: u64,
    /// On the scheduler's clock; after a restart of the master, the time of that.
    #[serde(skip)]
    pub(super) granted_ms: u64,
    pub(super) next_page: u64,
    /// Content bytes moved so far, as reported.
    #[serde(skip)]
    pub(super) moved_bytes: u64,
}

impl Task {
    pub(super) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            TaskState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether errors report a lack of descriptors or memory, so that the attempt is not charged
    /// (for about an hour).
    pub(super) fn hit_resource_shortage(&self, errors: &[FileError]) -> bool {
        // A flush may have lost data with the memory; one that could not open its files did not
        // run.
        let asked =
            |e: &FileError| self.spec == TaskSpec::Flush && e.errno.as_deref() == Some("ENOMEM");
        self.resource_retries < MAX_RESOURCE_RETRIES
            && errors.iter().any(|e| e.is_resource_exhaustion() && !asked(e))
    }

    /// Whether workers that serve the source do it (else: the destination).
    pub(super) fn runs_at_source(&self) -> bool {
        !matches!(self.spec, TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::Flush)
    }

    pub(super) fn writes_destination(&self) -> bool {
        use TaskSpec::{CleanUp, Commit, Copy, Discard, Flush, List, Prune, Range, Scan};
        match self.spec {
            // A comparison also creates parent directories or links.
            Copy { .. } | Range { .. } | Commit { .. } | CleanUp => true,
            Prune { apply, .. } => apply,
            Scan { .. } | List { .. } | Discard | Flush => false,
        }
    }

    /// Whether it walks a tree and posts pages.
    pub(super) fn is_scan(&self) -> bool {
        use TaskSpec::{List, Prune, Scan};
        matches!(self.spec, Scan { .. } | List { .. } | Prune { .. })
    }

    pub(super) fn may_leave_link_anchors(&self) -> bool {
        matches!(self.spec, TaskSpec::Copy { .. } | TaskSpec::Commit { .. })
    }

    pub(super) fn record_key(&self) -> String {
        format!("t/{}/{}", self.sync, self.id)
    }
}

/// A file of more than one range. Its range tasks are made a few at a time, so that a file of any
/// size costs the same window; done ranges leave 32 bytes each.
///
/// ```text
/// Waiting ──another name was brought──▶ (a batch of one entry: becomes a link)
///    │ no other name could be
///    ▼
/// Comparing ──a range differs──▶ Sending ──▶ commit: counted as done
///    └──────── all are equal ──────────────▶ commit in place: counted as skipped
///
/// Sending ──the first to look finds the file there, others are out──▶ Found ──all find it──▶ gone
///                                                                       └──one wrote──▶ discarded
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LargeFile {
    /// From the sequence of task numbers.
    pub(super) id: TaskId,
    pub(super) sync: SyncNo,
    #[serde(default)]
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
    #[serde(default)]
    pub(super) state: LargeFileState,
    /// The same for all names of a file; `None` if it has one name.
    #[serde(default)]
    pub(super) hardlink_group: Option<Digest>,
    /// Bytes of done ranges, already in the counters …
    pub(super) sent_bytes: u64,
    /// … and those of them that the destination had.
    #[serde(default)]
    pub(super) kept_bytes: u64,
    /// A range has no chaining value: the file has no digest.
    pub(super) has_unhashed_range: bool,
    /// The chaining value of each done range. Each has a record of its own.
    #[serde(skip)]
    pub(super) range_digests: Vec<Option<Digest>>,
    #[serde(skip)]
    pub(super) ranges_done: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LargeFileState {
    /// Ranges are sent.
    #[default]
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

/// The digest of all that identifies a task.
pub(super) fn task_digest(sync: SyncNo, id: TaskId, spec: &TaskSpec, manifest: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 task digest");
    hasher.update(&sync.0.to_le_bytes());
    hasher.update(&id.0.to_le_bytes());
    hasher.update(&serde_json::to_vec(spec).unwrap_or_default());
    hasher.update(blake3::hash(manifest).as_bytes());
    hasher.finalize().into()
}
