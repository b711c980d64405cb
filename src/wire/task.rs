//! What passes between the master and an agent about one task: the assignment out, scan pages and
//! the result back.

use super::options::{EntryAction, EntryWarnings, FileRecord, SyncOptions, Tally};
use super::sync::FileError;
use super::worker::{Endpoint, WorkerStatus};
use super::{AbsPath, AssignmentId, Digest, RelPath, RequestId, TaskId, WorkerId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;

/// Bytes in JSON: a base64 string.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Base64Bytes(pub Vec<u8>);

impl std::fmt::Debug for Base64Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl Serialize for Base64Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&B64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        /// Decodes where the string lies: a page is long.
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = Base64Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes in base64")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Base64Bytes, E> {
                B64.decode(text).map(Base64Bytes).map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

/// What is to be done. Manifests are fetched apart
/// (`GET /workers/{id}/assignments/{assignment_id}/manifest`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSpec {
    /// List a subtree of the source, depth first, names sorted by bytes, and post pages.
    Scan {
        /// The subtree, below the source root.
        dir: RelPath,
        /// Go on behind this entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
    },
    /// Look up the names of a part of the operator's list (the manifest is a
    /// [`FileListPart`](super::manifest::FileListPart)), and post pages.
    List {
        /// Go on with the name at this index.
        start: u64,
    },
    /// Bring a batch of entries to the destination.
    Copy {
        /// Files, links and special files in the manifest.
        files: u64,
        /// Directories in the manifest.
        dirs: u64,
        /// Content bytes.
        bytes: u64,
    },
    /// Bring a byte range of one large file (the manifest's only entry) into its part file.
    Range {
        /// Where it starts, a multiple of the file's range length.
        offset: u64,
        /// How long it is; less than the file's range length only at the end of the file.
        length: u64,
        /// Only compare it with what the destination has (`compare: checksum`); write nothing.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        compare: bool,
    },
    /// Publish the part file of one large file: check it, set its metadata, rename it.
    Commit {
        /// The length of all ranges but the last, a power of two of at least 1 KiB.
        range_length: u64,
        /// The BLAKE3 chaining value of each range, 32 bytes each, in order; empty where the ranges
        /// were not hashed.
        chain: Base64Bytes,
        /// All ranges were compared and are equal: there is no part file, only metadata to repair.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        in_place: bool,
    },
    /// Remove the part file of one large file that will not be published.
    Discard,
    /// Find what a subtree of the destination has and the source does not, and post pages
    /// ([`ScanPage::pruned`]).
    Prune {
        /// The subtree, below both roots.
        dir: RelPath,
        /// Go on behind this directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
        /// Delete it; otherwise it is only counted.
        apply: bool,
    },
    /// Remove what the sync kept at the destination to find the names of one file.
    CleanUp,
    /// Put everything written below the destination root on stable storage.
    Flush,
}

impl TaskSpec {
    /// The word for it.
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

    /// Whether whoever does it sends content.
    pub fn sends_content(&self) -> bool {
        matches!(self, TaskSpec::Copy { .. } | TaskSpec::Range { compare: false, .. })
    }

    /// The content that it is about, as offset and length in bytes: of a range its place in the file, of a
    /// batch the sum of its entries, from 0. `file_size` is the length of the large file that the task
    /// belongs to, where there is one. A task without content has the length 0.
    pub fn content_extent(&self, file_size: Option<u64>) -> (u64, u64) {
        match *self {
            TaskSpec::Range { offset, length, .. } => (offset, length),
            TaskSpec::Copy { bytes, .. } => (0, bytes),
            TaskSpec::Commit { .. } => (0, file_size.unwrap_or(0)),
            _ => (0, 0),
        }
    }

    /// Whether a manifest goes with it.
    pub fn has_manifest(&self) -> bool {
        use TaskSpec::{CleanUp, Flush, Prune, Scan};
        !matches!(self, Scan { .. } | Prune { .. } | CleanUp | Flush)
    }
}

/// A place in a depth-first walk: behind `after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The entry reported last, below the source root.
    pub after: RelPath,
    /// `after` is a directory whose contents are not to be walked (they are a task of their own).
    #[serde(default)]
    pub skip_contents: bool,
}

/// A member of a worker pool as an assignment lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMember {
    /// Who.
    pub worker_id: WorkerId,
    /// What it said last.
    pub status: WorkerStatus,
    /// The roots that it holds.
    pub storage_paths: Vec<AbsPath>,
    /// Where it serves the data plane.
    pub data_plane_endpoints: Vec<Endpoint>,
}

/// `POST /workers/{id}/assignment`: a task leased to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The lease's random name; the result must carry it.
    pub assignment_id: AssignmentId,
    /// The sync.
    pub request_id: RequestId,
    /// To whom.
    pub worker_id: WorkerId,
    /// The task's number.
    pub task_id: TaskId,
    /// What the result must carry to count as verified.
    pub task_digest: Digest,
    /// From 1; grows with every lease of the task.
    pub attempt: u32,
    /// The lease runs out after this unless a heartbeat lists the assignment.
    pub lease_seconds: u64,
    /// The root of the source.
    pub source_path: AbsPath,
    /// The root of the destination.
    pub destination_path: AbsPath,
    /// Batches and ranges hold at most this much, in MiB.
    pub chunk_size_mb: u32,
    /// Where the content of the task begins in its file, in bytes ([`TaskSpec::content_extent`]). Agents of the
    /// predecessor require this and the next field; ours read `task`.
    pub chunk_offset: u64,
    /// How much content the task is about, in bytes.
    pub chunk_size: u64,
    /// What to do.
    pub task: TaskSpec,
    /// How.
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// Active workers that hold the source.
    pub source_workers: Vec<PoolMember>,
    /// Active workers that hold the destination.
    pub destination_workers: Vec<PoolMember>,
    /// The ids of `source_workers`. Agents of the predecessor require this and the next field.
    pub source_worker_pool: Vec<WorkerId>,
    /// The ids of `destination_workers`.
    pub destination_worker_pool: Vec<WorkerId>,
    /// The permission to act on the destination.
    pub ticket: String,
    /// The id of the storage root that the source is read from by this worker
    /// ([`WorkerHeartbeat::root_ids`](crate::wire::worker::WorkerHeartbeat::root_ids)), where the worker named it. Those
    /// of the destination are in the ticket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_root: Option<String>,
    /// What this worker may send for the sync with all its tasks together, in bytes per second; none: as
    /// much as it can. Heartbeat replies change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
}

/// A piece of work that a scan (or a changed file) brings up.
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
        /// The file's length.
        size: u64,
        /// The length of all ranges but the last, a power of two of at least 1 KiB.
        range_length: u64,
        /// The same for all names of one file; none for a file with one name. The master has one
        /// of them copied, the others are linked to it afterwards.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hardlink_group: Option<Digest>,
    },
}

/// At most this many ranges make up one file; longer files have longer ranges. It bounds what the
/// master remembers of a file (32 bytes a range).
pub const MAX_RANGES: u64 = 65_536;

/// The range length for a file of `size` bytes: the largest power of two within `chunk` bytes, or
/// more where that would give over [`MAX_RANGES`] ranges. At least 1 MiB.
pub fn range_length(size: u64, chunk: u64) -> u64 {
    let within = 1u64 << (63 - chunk.max(1 << 20).leading_zeros());
    let needed = size.div_ceil(MAX_RANGES).max(1).next_power_of_two();
    within.max(needed)
}

/// `POST /workers/{id}/assignments/{assignment_id}/page`: what a scan found since its last page.
/// The page's work is stored and the cursor moved together or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanPage {
    /// From the assignment.
    pub task_digest: Digest,
    /// 0, 1, 2 … within the assignment: a page sent twice counts once.
    pub page: u64,
    /// Batches and large files.
    #[serde(default)]
    pub work: Vec<WorkItem>,
    /// Subtrees to be walked by tasks of their own. The cursor is behind them.
    #[serde(default)]
    pub subtrees: Vec<RelPath>,
    /// Entries that could not be read, and directories that could not be entered or listed.
    #[serde(default)]
    pub errors: Vec<FileError>,
    /// How many of `errors` are of directories that could not be entered or listed. While the source is
    /// copied each of the others counts as a failed file.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unlisted_dirs: u64,
    /// Of the first page of the whole source: what the source root is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<RootState>,
    /// Required on page 0 of each assignment: the source root that the walk has open. A walk without it
    /// counts as unverified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_identity: Option<RootIdentity>,
    /// For a prune: what was found since the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned: Option<PruneReport>,
    /// For a prune: more is extra than the ticket lets be deleted. Nothing more is deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allowance_used_up: bool,
    /// Entries that were left out, by cause.
    #[serde(default, skip_serializing_if = "EntryWarnings::is_empty")]
    pub warnings: EntryWarnings,
    /// What became of each file of `errors` and `pruned`, where that is recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<FileRecord>,
    /// What the agent found damaged on the way since it told so last, whatever task it was about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub integrity_errors: u64,
    /// The task as it is to go on behind this page; `None`: there is no more.
    pub next: Option<TaskSpec>,
}

/// What a source root is; by this a mirror knows that nothing is mounted there today.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootState {
    /// The file system that it lies on: the same text as long as it is the same one, also after a
    /// restart of the host.
    pub file_system: String,
    /// There is nothing in it.
    pub empty: bool,
}

/// The identity of an open source root, as the host that walks it reports it. The master cannot check the
/// numbers; a page without them comes from a program that did not open the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// What a prune found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneReport {
    /// Entries at the destination that were looked at.
    pub checked: u64,
    /// … that the source does not have: deleted, or to be deleted.
    pub extraneous: u64,
    /// Content bytes of those.
    pub bytes: u64,
}

/// The reply to a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageReply {
    /// What the agent shall do with the scan.
    pub action: PageAction,
    /// How many subtrees it may give away with its next page, for workers that have nothing to do.
    #[serde(default)]
    pub max_subtrees: u32,
}

/// See [`PageReply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageAction {
    /// Go on.
    Continue,
    /// Enough is outstanding: stop here; the master keeps the rest of the task for later.
    /// No result is sent.
    Pause,
    /// The last page was accepted: the task is done. No result is sent.
    Done,
    /// The assignment is not valid (any more): stop; nothing of the page counted.
    Stop,
}

/// `POST /workers/result`. An agent of the guide sends the first four; ours sends all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResult {
    /// The sync.
    pub request_id: RequestId,
    /// Who did it.
    pub worker_id: WorkerId,
    /// Whether the task is done (entries may have failed all the same: see the report).
    pub success: bool,
    /// A sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Which assignment; without it: the one that the worker holds of that sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_id: Option<AssignmentId>,
    /// From the assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// From the assignment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_digest: Option<Digest>,
    /// What was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<TaskReport>,
}

/// What was done of a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskReport {
    /// The task was not (wholly) done and costs no attempt: the agent drains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
    /// Files, links and special files brought over.
    pub files_done: u64,
    /// … equal already.
    pub files_skipped: u64,
    /// Directories that exist with their metadata.
    pub dirs_done: u64,
    /// Content bytes sent and checked.
    pub bytes_done: u64,
    /// Content bytes of the files skipped.
    pub bytes_skipped: u64,
    /// The workers that wrote to the destination, in this and in failed attempts at it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub writers: Vec<WorkerId>,
    /// Entries that failed, one each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FileError>,
    /// A batch of exactly those entries, to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<WorkItem>,
    /// For a range: its BLAKE3 chaining value; for a commit: the digest of the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// For a range: the source is another version now. This takes the place of the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<WorkItem>,
    /// For a commit: ranges that were written are not in the part file any more. All are to be sent
    /// again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub part_lost: bool,
    /// Content bytes that went over the wire, also of what failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_sent: u64,
    /// Content bytes that the destination had already and kept; they count in `bytes_done` too.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_kept: u64,
    /// Content bytes that source and destination share since; they count in `bytes_done` too.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_cloned: u64,
    /// What was done with the entries (in a dry run: would be); failed ones are not in it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<EntryAction, Tally>,
    /// What the destination could not hold.
    #[serde(skip_serializing_if = "EntryWarnings::is_empty")]
    pub warnings: EntryWarnings,
    /// What became of each entry, where that is recorded (or its digest is wanted).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<FileRecord>,
    /// The destination keeps something for the names of one file: a sweep is wanted in the end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub needs_clean_up: bool,
    /// For a range that is only compared: it differs, so the file is to be sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub differs: bool,
    /// For a range: the destination holds this file: nothing needs to be sent any more. Counted as skipped, or
    /// as done where the task has brought all of it (`files_done` is 1).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
    /// What the agent found damaged on the way since it told so last, whatever task it was about.
    #[serde(skip_serializing_if = "is_zero")]
    pub integrity_errors: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultOutcome {
    /// It counted.
    Applied,
    /// It matched no assignment and changed nothing.
    Stale,
}

/// The reply to a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultReply {
    /// Always `ack`.
    pub status: String,
    /// Said to agents that name an assignment.
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
