//! The documents between master and agent for one task: the assignment, scan pages and the result.

use super::entry_report::{EntryAction, EntryWarnings, FileRecord, Tally};
use super::options::SyncOptions;
use super::outcome::EntryError;
use super::ticket::{SignedTicket, Verb, Verbs};
use super::worker::{Endpoint, WorkerStatus};
use super::{AbsPath, AssignmentId, Digest, RelPath, RequestId, TaskId, WorkerId, is_default};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;

/// Bytes in JSON: a base64 string.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Base64Bytes(pub Vec<u8>);

impl std::fmt::Debug for Base64Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Base64Bytes({} bytes)", self.0.len())
    }
}

impl Serialize for Base64Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&B64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        /// Decodes the borrowed string: a page is long.
        struct Base64Visitor;
        impl de::Visitor<'_> for Base64Visitor {
            type Value = Base64Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes in base64")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64Bytes, E> {
                B64.decode(text).map(Base64Bytes).map_err(E::custom)
            }
        }
        d.deserialize_str(Base64Visitor)
    }
}

/// The work of a task. Manifests are fetched separately
/// (`GET /workers/{id}/assignments/{assignment_id}/manifest`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSpec {
    /// Scan a subtree of the source, depth first with names sorted by bytes, and post pages.
    Scan {
        /// The subtree, below the source root.
        dir: RelPath,
        /// Continue after this entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    /// Look up the paths of one part of the file list (the manifest is a
    /// [`FileListPart`](super::manifest::FileListPart)), and post pages.
    List {
        /// The index of the first path to look up.
        start: u64,
    },
    /// Copy a batch of entries to the destination.
    Copy {
        /// Files, links and special files in the manifest.
        files: u64,
        /// Directories in the manifest.
        dirs: u64,
        /// Content bytes.
        bytes: u64,
    },
    /// Copy a byte range of one large file (the only entry of the manifest) into its part file.
    Range {
        /// The start of the range, a multiple of the range length of the file.
        offset: u64,
        /// The length, less than the range length of the file only at its end.
        length: u64,
        /// Only compare it with the destination (`compare: checksum`); write nothing.
        #[serde(default, skip_serializing_if = "is_default")]
        compare: bool,
    },
    /// Publish the part file of one large file: verify it, set its metadata, rename it.
    Commit {
        /// The length of all ranges but the last, a power of two of at least 1 KiB.
        range_length: u64,
        /// The BLAKE3 chaining values of all ranges, 32 bytes each, in order; empty if the ranges
        /// were not hashed.
        chain: Base64Bytes,
        /// All ranges were compared and are equal: no part file exists, and only metadata is repaired.
        #[serde(default, skip_serializing_if = "is_default")]
        in_place: bool,
    },
    /// Remove the part file of one large file that will not be published.
    Discard,
    /// Find extraneous entries in a subtree of the destination, and post pages
    /// ([`ScanPage::pruned`]).
    Prune {
        /// The subtree, below both roots.
        dir: RelPath,
        /// Continue after this directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
        /// Delete them; otherwise they are only counted.
        apply: bool,
    },
    /// Remove the auxiliary files for hard links from the destination.
    CleanUp,
    /// Flush all data written below the destination root to stable storage.
    Flush,
}

impl TaskSpec {
    /// The `kind` on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            TaskSpec::Scan { .. } => "scan",
            TaskSpec::List { .. } => "list",
            TaskSpec::Copy { .. } => "copy",
            TaskSpec::Range { .. } => "range",
            TaskSpec::Commit { .. } => "commit",
            TaskSpec::Discard => "discard",
            TaskSpec::Prune { .. } => "prune",
            TaskSpec::CleanUp => "clean_up",
            TaskSpec::Flush => "flush",
        }
    }

    /// The requests to other agents that the task needs.
    pub fn verbs(&self) -> Verbs {
        const NONE: Verbs = Verbs::of(&[]);
        const COPY: Verbs = Verbs::of(&[Verb::Offer, Verb::Pack]);
        const RANGE: Verbs = Verbs::of(&[Verb::Offer, Verb::Range, Verb::BlockDigests]);
        const COMPARE: Verbs = Verbs::of(&[Verb::Offer, Verb::BlockDigests]);
        match self {
            TaskSpec::Scan { .. } | TaskSpec::List { .. } => Verbs::of(&[Verb::RootCheck]),
            TaskSpec::Copy { .. } => COPY,
            TaskSpec::Range { compare: false, .. } => RANGE,
            TaskSpec::Range { compare: true, .. } => COMPARE,
            TaskSpec::Prune { .. } => Verbs::of(&[Verb::Prune]),
            TaskSpec::CleanUp => Verbs::of(&[Verb::CleanUp]),
            // They are executed where the destination is.
            TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::Flush => NONE,
        }
    }

    /// Whether the worker of the task sends content.
    pub fn sends_content(&self) -> bool {
        matches!(self, TaskSpec::Copy { .. } | TaskSpec::Range { compare: false, .. })
    }

    /// Offset and length of the content of the task, in bytes: for a range its position in the file, for a
    /// batch 0 and the sum of its entries. `file_size` is the length of the large file of the task. A task without
    /// content has the length 0.
    pub fn content_extent(&self, file_size: Option<u64>) -> (u64, u64) {
        match *self {
            TaskSpec::Range { offset, length, .. } => (offset, length),
            TaskSpec::Copy { bytes, .. } => (0, bytes),
            TaskSpec::Commit { .. } => (0, file_size.unwrap_or(0)),
            _ => (0, 0),
        }
    }

    /// Whether the task has a manifest.
    pub fn has_manifest(&self) -> bool {
        use TaskSpec::{CleanUp, Flush, Prune, Scan};
        !matches!(self, Scan { .. } | Prune { .. } | CleanUp | Flush)
    }
}

/// A position in a depth-first scan: after the entry `after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The last reported entry, below the source root.
    pub after: RelPath,
    /// `after` is a directory with contents that are not scanned (another task scans them).
    #[serde(default)]
    pub skip_contents: bool,
}

/// A worker in the source or destination pool of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMember {
    /// The id of the worker.
    pub worker_id: WorkerId,
    /// The last reported status.
    pub status: WorkerStatus,
    /// The directories that it can read and write.
    pub storage_paths: Vec<AbsPath>,
    /// The addresses of its data plane.
    pub data_plane_endpoints: Vec<Endpoint>,
}

/// `POST /workers/{id}/assignment`: a task leased to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The id of the lease; the result must carry it.
    pub assignment_id: AssignmentId,
    /// The id of the sync.
    pub request_id: RequestId,
    /// The worker that holds the lease.
    pub worker_id: WorkerId,
    /// The number of the task.
    pub task_id: TaskId,
    /// The result must carry it to count as verified.
    pub task_digest: Digest,
    /// From 1; increases with every lease of the task.
    pub attempt: u32,
    /// The lease expires after this time unless a heartbeat renews it.
    pub lease_seconds: u64,
    /// The root of the source.
    pub source_path: AbsPath,
    /// The root of the destination.
    pub destination_path: AbsPath,
    /// The maximum content of a batch or range, in MiB.
    pub chunk_size_mb: u32,
    /// The offset of [`TaskSpec::content_extent`], in bytes. Agents of the predecessor require this and the next field;
    /// current ones use `task`.
    pub chunk_offset: u64,
    /// The length of [`TaskSpec::content_extent`], in bytes.
    pub chunk_size: u64,
    /// See [`TaskSpec`].
    pub task: TaskSpec,
    /// The options of the sync.
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// Active workers that serve the source.
    pub source_workers: Vec<PoolMember>,
    /// Active workers that serve the destination.
    pub destination_workers: Vec<PoolMember>,
    /// The ids of `source_workers`. Agents of the predecessor require this and the next field.
    pub source_worker_pool: Vec<WorkerId>,
    /// The ids of `destination_workers`.
    pub destination_worker_pool: Vec<WorkerId>,
    /// The permission to act on the destination.
    pub ticket: SignedTicket,
    /// The storage root from which this worker reads the source
    /// ([`boot_and_root`](crate::wire::worker::boot_and_root)), if the worker reported one. Those of the destination are
    /// in the ticket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_root: Option<String>,
    /// For [`TaskSpec::Copy`] and [`TaskSpec::Range`]: the content is read from a copy, not from the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
    /// The destination is going to be a relay: the report has the digests that relays need ([`TaskReport::held`] for
    /// a batch, [`TaskReport::digest`] for a range).
    #[serde(default, skip_serializing_if = "is_default")]
    pub report_held: bool,
    /// The share of this worker in the limit of the sync, for all its tasks, in bytes per second; none:
    /// unlimited. Heartbeat replies change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
}

/// A relay: the worker sends on what its own storage got as a destination of the sync.
///
/// Names and metadata are those of the manifest, as in a copy from the source; only content is read from the copy.
/// Content without the digest that it had at the source is not sent as good: its entry fails at
/// [`Side::Relay`](super::outcome::Side::Relay), as [`Damaged`](super::outcome::ErrorClass::Damaged) where the copy is
/// missing or another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// The root of the copy, as the worker names it.
    pub path: AbsPath,
    /// The storage root of the copy, like [`Assignment::source_root`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// For a range: the [`TaskReport::digest`] of the task that read it at the source. The digests of a batch are in
    /// its manifest ([`TaskReport::held`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// Work that a scan (or a changed file) produces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkItem {
    /// A batch of entries.
    Copy {
        /// An encoded [`Manifest`](super::manifest::Manifest).
        manifest: Base64Bytes,
        /// Files, links and special files in it.
        files: u64,
        /// Directories in it.
        dirs: u64,
        /// Content bytes in it.
        bytes: u64,
    },
    /// One file of more than one range.
    Large {
        /// An encoded [`Manifest`](super::manifest::Manifest) of one entry.
        manifest: Base64Bytes,
        /// The length of the file.
        size: u64,
        /// The length of all ranges but the last, a power of two of at least 1 KiB.
        range_length: u64,
        /// Equal for all names of one file; none for a file with one name. One name is copied, the others are
        /// linked to it afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hardlink_group: Option<Digest>,
    },
}

/// The maximum number of ranges of one file; longer files have longer ranges. It limits the memory of the
/// master for a file (32 bytes per range).
pub const MAX_RANGES: u64 = 65_536;

/// The range length for a file of `size` bytes: the largest power of two up to `chunk` bytes, or
/// more if that would exceed [`MAX_RANGES`] ranges. At least 1 MiB.
pub fn range_length(size: u64, chunk: u64) -> u64 {
    let within = 1u64 << (63 - chunk.max(1 << 20).leading_zeros());
    let needed = size.div_ceil(MAX_RANGES).max(1).next_power_of_two();
    within.max(needed)
}

/// `POST /workers/{id}/assignments/{assignment_id}/page`: the results of a scan since its last page.
/// The work of the page and the new cursor are stored in one commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPage {
    /// From the assignment.
    pub task_digest: Digest,
    /// 0, 1, 2 … within the assignment: a page that is sent twice counts once.
    pub page: u64,
    /// Batches and large files.
    #[serde(default)]
    pub work: Vec<WorkItem>,
    /// Subtrees that become separate scan tasks. The cursor is after them.
    #[serde(default)]
    pub subtrees: Vec<RelPath>,
    /// Entries that could not be read, and directories that could not be entered or listed.
    #[serde(default)]
    pub errors: Vec<EntryError>,
    /// The number of `errors` for directories that could not be entered or listed. In a scan of the source each
    /// other error counts as a failed file.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unlisted_dirs: u64,
    /// Only on the first page of the first scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootState>,
    /// Required on page 0 of each assignment. A scan without it counts as unverified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_identity: Option<RootIdentity>,
    /// For a prune: the results since the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PruneReport>,
    /// For a prune: the number of extraneous entries exceeds the limit in the ticket. The deletion stopped.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowance_used_up: bool,
    /// Excluded entries, by cause.
    #[serde(default, skip_serializing_if = "is_default")]
    pub warnings: EntryWarnings,
    /// The outcome of each file of `errors` and `pruned`, if outcomes are recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<FileRecord>,
    /// The number of corrupted transfers that the agent found since its last report, for all its tasks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub integrity_errors: u64,
    /// The remaining task after this page; `None`: the scan is complete.
    pub next: Option<TaskSpec>,
}

/// The state of a source root. A mirror uses it to detect a missing mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootState {
    /// An id of its file system, equal as long as it is the same one, also after a restart of the host.
    pub file_system: String,
    /// The directory is empty.
    pub empty: bool,
}

/// The identity of an open source root, reported by the host that scans it. The master cannot verify the
/// numbers; a page without them comes from a program that did not open the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Counts of a prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneReport {
    /// Entries at the destination.
    pub checked: u64,
    /// Entries that the source lacks: deleted, or to be deleted.
    pub extraneous: u64,
    /// Content bytes of these.
    pub bytes: u64,
}

/// The reply to a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageReply {
    /// See [`PageAction`].
    pub action: PageAction,
    /// The maximum number of subtrees in the next page, for idle workers.
    #[serde(default)]
    pub max_subtrees: u32,
}

/// How the agent proceeds with the scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageAction {
    /// Continue the scan.
    Continue,
    /// Enough tasks are outstanding: stop here; the rest of the task is assigned later.
    /// No result is sent.
    Pause,
    /// The last page was accepted: the task is done. No result is sent.
    Done,
    /// The assignment is not valid: stop; the page was ignored.
    Stop,
}

/// `POST /workers/result`. Agents of the predecessor send only the first four fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResult {
    /// The id of the sync.
    pub request_id: RequestId,
    /// The worker of the task.
    pub worker_id: WorkerId,
    /// Whether the task is done (single entries may have failed: see the report).
    pub success: bool,
    /// A text for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The default is the only assignment of the worker for that sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_id: Option<AssignmentId>,
    /// From the assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// From the assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_digest: Option<Digest>,
    /// See [`TaskReport`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<TaskReport>,
}

/// The work that was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskReport {
    /// The task is not (completely) done and this attempt does not count: the agent drains.
    #[serde(skip_serializing_if = "is_default")]
    pub returned: bool,
    /// Copied files, links and special files.
    pub files_done: u64,
    /// Files that were equal already.
    pub files_skipped: u64,
    /// Directories that exist with their metadata at the destination.
    pub dirs_done: u64,
    /// Content bytes sent and verified.
    pub bytes_done: u64,
    /// Content bytes of skipped files.
    pub bytes_skipped: u64,
    /// The workers that wrote to the destination, in this attempt and in failed ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<WorkerId>,
    /// The workers of the destination, where the task failed because none of them could be reached. They may be
    /// restarting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<WorkerId>,
    /// One error for each failed entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<EntryError>,
    /// A batch of exactly these entries, for a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<WorkItem>,
    /// For a batch with [`Assignment::report_held`]: a batch of exactly the entries that did not fail, for relays. Its
    /// files have the digests of the content that was read at the source. A file without one was not read in this task, or
    /// changed since the scan; a relay reports it as failed where a destination lacks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<WorkItem>,
    /// For a range: its BLAKE3 chaining value; for a commit: the digest of the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// For a range: the source file has changed. This replaces all work for the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<WorkItem>,
    /// For a commit: the part file lacks ranges that were written. All ranges are sent again.
    #[serde(skip_serializing_if = "is_default")]
    pub part_lost: bool,
    /// Content bytes sent over the network, including failed transfers.
    #[serde(skip_serializing_if = "is_default")]
    pub bytes_sent: u64,
    /// Content bytes that the destination had already; `bytes_done` includes them.
    #[serde(skip_serializing_if = "is_default")]
    pub bytes_kept: u64,
    /// Content bytes that source and destination share (reflinks); `bytes_done` includes them.
    #[serde(skip_serializing_if = "is_default")]
    pub bytes_cloned: u64,
    /// Entries by action (in a dry run by the action that would be taken), without failed ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<EntryAction, Tally>,
    /// Metadata that the destination could not store, by cause.
    #[serde(skip_serializing_if = "is_default")]
    pub warnings: EntryWarnings,
    /// The outcome of each entry, if outcomes or digests are recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<FileRecord>,
    /// The destination has auxiliary files for hard links: the sync ends with a clean-up.
    #[serde(skip_serializing_if = "is_default")]
    pub needs_clean_up: bool,
    /// For a range that is only compared: it differs, so the file must be sent.
    #[serde(skip_serializing_if = "is_default")]
    pub differs: bool,
    /// For a range: the destination has this file, so no range needs to be sent. It counts as skipped, or
    /// as done if this task copied all of it (`files_done` is 1).
    #[serde(skip_serializing_if = "is_default")]
    pub unchanged: bool,
    /// The number of corrupted transfers that the agent found since its last report, for all its tasks.
    #[serde(skip_serializing_if = "is_default")]
    pub integrity_errors: u64,
}

/// The outcome of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultOutcome {
    /// It was applied.
    Applied,
    /// It matched no assignment and was ignored.
    Stale,
}

/// The reply to a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultReply {
    /// Always `ack`.
    pub status: String,
    /// Only for a result with an assignment id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<ResultOutcome>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_lengths_are_powers_of_two_and_bound_the_number_of_ranges() {
        let mib = 1 << 20;
        assert_eq!(range_length(3 << 30, 64 * mib), 64 * mib);
        assert_eq!(range_length(3 << 30, 48 * mib), 32 * mib);
        assert_eq!(range_length(3 << 30, mib), mib);
        for size in [1u64 << 40, 100 << 40, u64::MAX >> 2] {
            let len = range_length(size, mib);
            assert!(len.is_power_of_two() && size.div_ceil(len) <= MAX_RANGES, "{size}");
        }
    }

    #[test]
    fn each_task_kind_has_its_content_extent() {
        let root = RelPath::root;
        let commit =
            TaskSpec::Commit { range_length: 8, chain: Base64Bytes::default(), in_place: false };
        for (task, file_size, extent) in [
            (TaskSpec::Range { offset: 64, length: 8, compare: false }, Some(72), (64, 8)),
            (TaskSpec::Range { offset: 64, length: 8, compare: true }, Some(72), (64, 8)),
            (TaskSpec::Copy { files: 2, dirs: 1, bytes: 30 }, None, (0, 30)),
            (commit.clone(), Some(72), (0, 72)),
            (commit, None, (0, 0)),
            (TaskSpec::Scan { dir: root(), cursor: None }, None, (0, 0)),
            (TaskSpec::List { start: 5 }, None, (0, 0)),
            (TaskSpec::Prune { dir: root(), cursor: None, apply: true }, None, (0, 0)),
            (TaskSpec::Discard, Some(72), (0, 0)),
            (TaskSpec::CleanUp, None, (0, 0)),
            (TaskSpec::Flush, None, (0, 0)),
        ] {
            assert_eq!(task.content_extent(file_size), extent, "{task:?}");
        }
    }

    #[test]
    fn a_result_with_only_the_documented_fields_is_accepted() {
        let text = r#"{"request_id": "demo-1", "worker_id": "worker-a", "success": true, "message": "chunk complete"}"#;
        let result: TaskResult = serde_json::from_str(text).unwrap();
        assert!(result.success && result.assignment_id.is_none() && result.report.is_none());
    }
}
