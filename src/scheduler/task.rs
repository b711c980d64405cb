//! Tasks and large files: what the master remembers of work that is not done yet.

use super::worker_losses::WorkerLoss;
use crate::wire::sync::FileError;
use crate::wire::task::TaskSpec;
use crate::wire::{AssignmentId, BytePath, Digest, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// So many tries that met a shortage do not count; they are half a minute apart.
const MAX_RESOURCE_RETRIES: u32 = 120;

/// A task that was lost with a worker, or taken away from it, is left to others for so long, in milliseconds.
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
    /// Its number.
    pub(super) id: TaskId,
    /// Its sync.
    pub(super) sync: SyncNo,
    /// What to do.
    pub(super) spec: TaskSpec,
    /// Where its manifest is kept.
    pub(super) manifest_key: Option<String>,
    /// The manifest's size in the store; counted against the window.
    pub(super) manifest_bytes: u64,
    /// What a result must carry to be believed.
    pub(super) digest: Digest,
    /// How often it was leased.
    pub(super) attempt: u32,
    /// How often it failed.
    pub(super) failures: u32,
    /// How often it failed because a host was short of descriptors or memory: that costs no try.
    #[serde(default)]
    pub(super) resource_retries: u32,
    /// The workers that failed it: others come first.
    pub(super) failed_on: BTreeSet<WorkerId>,
    /// The processes with which it was lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) losses: Vec<WorkerLoss>,
    /// The name of its only entry, once that is known because it was lost too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<BytePath>,
    /// Its manifest could not be split: its entries stay one task.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_unsplittable: bool,
    /// For a range or commit: the file that it is part of.
    pub(super) large_file: Option<TaskId>,
    /// For a flush: the worker whose writes it is about.
    pub(super) pinned_to: Option<WorkerId>,
    /// Why it failed last.
    pub(super) last_error: Option<String>,
    /// For a flush: since when nobody can do it; on the scheduler's clock, as the next.
    #[serde(skip)]
    pub(super) waiting_since_ms: u64,
    /// Until then it is left to workers that have not failed it. Not for ever: they may be there and
    /// never ask.
    #[serde(skip)]
    pub(super) deprioritised_until_ms: u64,
    /// Where it stands.
    pub(super) state: TaskState,
}

/// See the drawing at [`Task`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TaskState {
    /// May be handed out.
    Ready,
    /// Waits before it is tried again. A restarted master waits no longer.
    Delayed {
        /// On the scheduler's clock.
        #[serde(skip)]
        until_ms: u64,
    },
    /// A worker has it.
    Leased(Lease),
}

/// Who has a task, and until when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Random: names this lease and no other.
    pub(super) assignment: AssignmentId,
    /// Who.
    pub(super) worker: WorkerId,
    /// Which process of it.
    pub(super) incarnation: Option<String>,
    /// The poll that got it; a repeat of the poll gets it again.
    pub(super) poll_id: Option<String>,
    /// On the scheduler's clock. Not kept: a restarted master grants a whole lease anew.
    #[serde(skip)]
    pub(super) deadline_ms: u64,
    /// When it was given, on the scheduler's clock; for a restarted master, when that began.
    #[serde(skip)]
    pub(super) granted_ms: u64,
    /// The number of the next scan page.
    pub(super) next_page: u64,
    /// Content bytes that it has moved until now, as its agent reported.
    #[serde(skip)]
    pub(super) moved_bytes: u64,
}

impl Task {
    /// The lease, where there is one.
    pub(super) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            TaskState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether errors of a try say that a host was short of descriptors or memory, so that the try does
    /// not count: for an hour or so, after which it does.
    pub(super) fn hit_resource_shortage(&self, errors: &[FileError]) -> bool {
        // A flush may lose what it was told with its memory; what could not be opened was not asked.
        let asked =
            |e: &FileError| self.spec == TaskSpec::Flush && e.errno.as_deref() == Some("ENOMEM");
        self.resource_retries < MAX_RESOURCE_RETRIES
            && errors.iter().any(|e| e.is_resource_exhaustion() && !asked(e))
    }

    /// Whether workers that hold the source do it (else: those that hold the destination).
    pub(super) fn runs_at_source(&self) -> bool {
        !matches!(self.spec, TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::Flush)
    }

    /// Whether it writes to the destination.
    pub(super) fn writes_destination(&self) -> bool {
        use TaskSpec::{CleanUp, Commit, Copy, Discard, Flush, List, Prune, Range, Scan};
        match self.spec {
            // One that only compares makes the directories above its file all the same, or a link.
            Copy { .. } | Range { .. } | Commit { .. } | CleanUp => true,
            Prune { apply, .. } => apply,
            Scan { .. } | List { .. } | Discard | Flush => false,
        }
    }

    /// Whether it walks a tree and posts pages of what it finds.
    pub(super) fn is_scan(&self) -> bool {
        use TaskSpec::{List, Prune, Scan};
        matches!(self.spec, Scan { .. } | List { .. } | Prune { .. })
    }

    /// Whether it leaves something behind at the destination for the names of one file.
    pub(super) fn may_leave_link_anchors(&self) -> bool {
        matches!(self.spec, TaskSpec::Copy { .. } | TaskSpec::Commit { .. })
    }

    /// The key of its record.
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
    /// Its number, out of the same count as tasks.
    pub(super) id: TaskId,
    /// Its sync.
    pub(super) sync: SyncNo,
    /// Its name; empty where an earlier version found it.
    #[serde(default)]
    pub(super) path: BytePath,
    /// The file's length.
    pub(super) size: u64,
    /// The length of all ranges but the last.
    pub(super) range_length: u64,
    /// Where its manifest is kept.
    pub(super) manifest_key: String,
    /// The manifest's size in the store.
    pub(super) manifest_bytes: u64,
    /// The manifest's digest; part of the digests of its tasks.
    pub(super) manifest_digest: Digest,
    /// Ranges below this have a task or are done.
    pub(super) next_range: u64,
    /// How often the source changed and it began anew.
    pub(super) restarts: u32,
    /// What is done with its ranges.
    #[serde(default)]
    pub(super) state: LargeFileState,
    /// The same for all names of one file; none where it has one name.
    #[serde(default)]
    pub(super) hardlink_group: Option<Digest>,
    /// Bytes of done ranges, already in the sync's counters …
    pub(super) sent_bytes: u64,
    /// … and how many of them the destination had.
    #[serde(default)]
    pub(super) kept_bytes: u64,
    /// Whether a range was done without a chaining value: then the file has no digest.
    pub(super) has_unhashed_range: bool,
    /// The chaining value of each done range. Each is a record of its own.
    #[serde(skip)]
    pub(super) range_digests: Vec<Option<Digest>>,
    /// How many of them are done.
    #[serde(skip)]
    pub(super) ranges_done: u64,
}

/// See the drawing at [`Large`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LargeFileState {
    /// They are brought over.
    #[default]
    Sending,
    /// They are compared with what the destination has.
    Comparing,
    /// Nothing yet: another name of the file is being brought.
    Waiting,
    /// Nothing any more: the destination has the file, and it is counted. It stays until everybody who is out
    /// with a range of it has told whether it found the same, or wrote before the file was there.
    AlreadyPresent,
}

impl LargeFile {
    /// How many ranges it has.
    pub(super) fn range_count(&self) -> u64 {
        self.size.div_ceil(self.range_length)
    }

    /// Offset and length of a range.
    pub(super) fn range(&self, index: u64) -> (u64, u64) {
        let offset = index * self.range_length;
        (offset, self.range_length.min(self.size - offset))
    }

    /// The key of its record.
    pub(super) fn record_key(&self) -> String {
        format!("l/{}/{}", self.sync, self.id)
    }

    /// The key of the record of a done range.
    pub(super) fn range_record_key(&self, index: u64) -> String {
        format!("v/{}/{}/{index}", self.sync, self.id)
    }
}

/// The digest of a task: of all that makes it this task and no other.
pub(super) fn task_digest(sync: SyncNo, id: TaskId, spec: &TaskSpec, manifest: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 task digest");
    hasher.update(&sync.0.to_le_bytes());
    hasher.update(&id.0.to_le_bytes());
    hasher.update(&serde_json::to_vec(spec).unwrap_or_default());
    hasher.update(blake3::hash(manifest).as_bytes());
    hasher.finalize().into()
}
