//! The request for a sync ([`SyncRequest`]) and its progress ([`SyncProgress`]).

use super::entry_report::{EntryAction, EntryWarnings, Tally};
use super::options::SyncOptions;
use super::outcome::EntryError;
use super::run_as::RunAs;
use super::text_enum::text_enum;
use super::worker_selector::WorkerSelector;
use super::{AbsPath, BytePath, RequestId, StorageId, WorkerId, is_default};
use jiff::Timestamp;
use serde::de::value::StringDeserializer;
use serde::de::{self, IntoDeserializer as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The default of `chunk_size_mb`, in MiB.
pub const DEFAULT_CHUNK_MIB: u32 = 64;
/// The bounds of `chunk_size_mb`, in MiB, both inclusive.
pub const CHUNK_MIB_RANGE: std::ops::RangeInclusive<u32> = 1..=1024;

/// `POST /sync`: copy `source_path` to `destination_path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// The id of the sync; by default the master generates a sortable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// A directory (its contents are copied) or a file.
    pub source_path: AbsPath,
    /// The destination of the contents (or of the file).
    pub destination_path: AbsPath,
    /// The workers that see the source: needed where `source_path` is another storage on different workers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_workers: Vec<WorkerSelector>,
    /// The workers that see the destination. Each storage that one of them sees at `destination_path` gets a copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destination_workers: Vec<WorkerSelector>,
    /// The maximum content of a batch or range, in MiB ([`CHUNK_MIB_RANGE`]).
    #[serde(default = "default_chunk_mib")]
    pub chunk_size_mb: u32,
    /// Copy only these paths: relative to the source, or absolute below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<Vec<BytePath>>,
    /// See [`SyncOptions`].
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// The limit of all agents together for this sync, in bytes per second; none: unlimited.
    /// It can be changed while the sync runs ([`SyncPatch`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
    /// The user as which agents act, from the token of the submit. A client does not set it: `POST /sync` refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<RunAs>,
}

/// `PATCH /sync/{id}`: changes a running sync. At least one member is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SyncPatch {
    /// The new [`SyncRequest::bwlimit`]; `Some(None)` removes it, `None` leaves it unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<Option<u64>>,
    /// The workers that see further destinations of a sync with several of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add_destinations: Vec<WorkerSelector>,
}

/// `POST /sync/{id}/retry`: submits the request of an ended sync again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RetryRequest {
    /// The id of the new sync; by default the master generates one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Copy only the failed entries.
    pub failed_only: bool,
}

fn default_chunk_mib() -> u32 {
    DEFAULT_CHUNK_MIB
}

text_enum! {
    /// The state of a sync. `Completed`, `Failed` and `Cancelled` are final.
    #[derive(Hash)]
    pub enum SyncState {
        /// Accepted; no task was assigned yet (see `reason`).
        Queued = "QUEUED",
        /// Tasks are assigned.
        Progress = "PROGRESS",
        /// No more tasks are assigned; see `reason`, also for tasks that continue.
        Paused = "PAUSED",
        /// All entries are at the destination, verified and flushed.
        Completed = "COMPLETED",
        /// Ended with failures; see `errors`.
        Failed = "FAILED",
        /// Ended by an operator.
        Cancelled = "CANCELLED",
    }
}

impl SyncState {
    /// Whether the state can no longer change.
    pub fn is_final(self) -> bool {
        matches!(self, SyncState::Completed | SyncState::Failed | SyncState::Cancelled)
    }
}

impl std::str::FromStr for SyncState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let word: StringDeserializer<de::value::Error> = s.to_ascii_uppercase().into_deserializer();
        let all = "must be one of QUEUED, PROGRESS, PAUSED, COMPLETED, FAILED, CANCELLED";
        SyncState::deserialize(word).map_err(|_| all.to_owned())
    }
}

text_enum! {
    /// The phase of a sync within its state.
    pub enum SyncPhase {
        /// Not started.
        Waiting = "WAITING",
        /// The source is being scanned, and copied at the same time.
        Scanning = "SCANNING",
        /// The scan is complete; entries are being copied.
        Transferring = "TRANSFERRING",
        /// The copy is complete; the destination is read and compared (`verify: readback`).
        Verifying = "VERIFYING",
        /// The copy is complete; extraneous entries are counted, then deleted.
        Pruning = "PRUNING",
        /// The copy is complete; destination workers flush it to stable storage.
        Flushing = "FLUSHING",
        /// Ended.
        Done = "DONE",
    }
}

/// The outcome of an ended sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncOutcome {
    /// All entries are at the destination.
    Full,
    /// Some entries failed.
    Partial,
    /// The only failures are source files that vanished or changed during every attempt.
    VanishedOnly,
    /// All entries were copied, and a limit stopped the deletion of extraneous entries.
    DeleteStopped,
    /// A check stopped a mirror before the copy was complete, usually before it started.
    CopyStopped,
    /// No failure is known, but some tasks were reported as done without evidence
    /// ([`SyncProgress::unverified`]).
    Unverified,
    /// Ended by an operator.
    Cancelled,
}

/// A step of a sync with failures that do not belong to counted entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedStep {
    /// A directory could not be listed, or a part of a file list not be looked up.
    List,
    /// A copied entry could not be read and compared (`verify: readback`).
    ReadBack,
    /// An extraneous entry could not be listed or deleted.
    Delete,
    /// Auxiliary files for hard links could not be removed.
    CleanUp,
    /// Written data could not be flushed to stable storage.
    Flush,
}

/// `GET /sync/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// The id of the sync.
    pub request_id: RequestId,
    /// The shortest unique prefix of the id, of at least [`MIN_ID_PREFIX_CHARS`] characters; a shorter id is complete.
    ///
    /// [`MIN_ID_PREFIX_CHARS`]: super::ids::MIN_ID_PREFIX_CHARS
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_id: Option<String>,
    /// The current state.
    pub state: SyncState,
    /// See [`SyncRequest::source_path`].
    pub source_path: AbsPath,
    /// See [`SyncRequest::destination_path`].
    pub destination_path: AbsPath,
    /// The user as which agents act for it; `None`: each acts as its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<RunAs>,
    /// See [`SyncRequest::source_workers`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_workers: Vec<WorkerSelector>,
    /// See [`SyncRequest::destination_workers`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destination_workers: Vec<WorkerSelector>,
    /// The storage that is read, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_storage: Option<StorageId>,
    /// The storage that is written, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_storage: Option<StorageId>,
    /// Of a sync with several destinations, each of them, the slowest first. The counters above are sums over all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<DestinationProgress>,
    /// Content bytes that were sent and verified, including those of active tasks, without skipped files. It
    /// decreases when an attempt fails.
    pub transferred_bytes: u64,
    /// Content bytes found so far; final with `scan_done`.
    pub total_bytes: u64,
    /// Content bytes per second, averaged over about ten seconds; absent before the first byte and after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// The remaining time at that rate, in seconds; absent before `scan_done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// The time of acceptance.
    pub submitted_at: Timestamp,
    /// The time of the first assignment.
    pub started_at: Option<Timestamp>,
    /// The time of the last change of this document.
    pub updated_at: Timestamp,
    /// The time of the final state.
    pub ended_at: Option<Timestamp>,
    /// The activity of each worker for this sync, as text.
    pub detail: BTreeMap<String, String>,
    /// The phase within the state.
    pub phase: SyncPhase,
    /// An id of the file system of the source root, equal as long as it is the same file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_file_system: Option<String>,
    /// The outcome of an ended sync; a failed sync without one copied nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SyncOutcome>,
    /// Files, links and special files found so far (directories are counted separately).
    pub files_total: u64,
    /// Copied files.
    pub files_done: u64,
    /// Files that were equal already.
    pub files_skipped: u64,
    /// Failed files.
    pub files_failed: u64,
    /// Directories found so far.
    pub dirs_total: u64,
    /// Directories that exist at the destination with their metadata.
    pub dirs_done: u64,
    /// Failed directories.
    pub dirs_failed: u64,
    /// Failures outside of entries. Together with `files_failed` and `dirs_failed` the sum of `error_counts`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_steps: BTreeMap<FailedStep, u64>,
    /// Content bytes of skipped files.
    pub bytes_skipped: u64,
    /// Content bytes sent over the network (or between two files of one host), including retries.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Content bytes of copied files that the destination had already.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Content bytes of copied files that source and destination share (reflinks).
    #[serde(default)]
    pub cloned_bytes: u64,
    /// Entries by action; in a dry run by the action that would be taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<EntryAction, Tally>,
    /// Metadata that the destination could not store, and excluded entries, by cause.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub warnings: EntryWarnings,
    /// Files that were read back and are correct.
    #[serde(default, skip_serializing_if = "is_default")]
    pub verified_files: u64,
    /// Files that were read back, differed, and were sent again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub repaired_files: u64,
    /// The number of files, ranges and documents that arrived corrupted and were sent again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub integrity_errors: u64,
    /// See [`SyncOptions`].
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// See [`SyncRequest::bwlimit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
    /// Whether the totals are final.
    pub scan_done: bool,
    /// Tasks that were reported as done without evidence: a success without digest and report, a page without the source
    /// root, any result of a worker without an incarnation. They exclude [`SyncOutcome::Full`].
    pub unverified: u64,
    /// Repeated assignments of tasks.
    pub retries: u64,
    /// The reason why it waits or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Present while the sync makes no progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<StallInfo>,
    /// The first failures.
    pub errors: Vec<EntryError>,
    /// The number of failures per cause.
    pub error_counts: BTreeMap<String, u64>,
    /// Failures after the first 1,000,000, which `GET /sync/{id}/files?state=failed` does not list.
    #[serde(default)]
    pub failures_unlisted: u64,
}

/// One of several destinations of a sync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationProgress {
    /// The sync that copies to this destination alone. It can be queried, and retried, like any other.
    pub request_id: RequestId,
    /// The storage.
    pub storage_id: StorageId,
    /// Workers that see it, at most eight.
    pub workers: Vec<WorkerId>,
    /// See [`SyncProgress::state`].
    pub state: SyncState,
    /// See [`SyncProgress::outcome`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SyncOutcome>,
    /// See [`SyncProgress::transferred_bytes`].
    pub transferred_bytes: u64,
    /// See [`SyncProgress::total_bytes`].
    pub total_bytes: u64,
    /// See [`SyncProgress::bytes_skipped`].
    pub bytes_skipped: u64,
    /// See [`SyncProgress::rate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// See [`SyncProgress::files_total`].
    pub files_total: u64,
    /// See [`SyncProgress::files_done`].
    pub files_done: u64,
    /// See [`SyncProgress::files_skipped`].
    pub files_skipped: u64,
    /// Failed files, directories and steps.
    pub failures: u64,
    /// See [`SyncProgress::integrity_errors`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub integrity_errors: u64,
    /// See [`SyncProgress::reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl SyncProgress {
    /// Failed files, directories and steps.
    pub fn failure_count(&self) -> u64 {
        let steps = self.failed_steps.values().copied();
        [self.files_failed, self.dirs_failed].into_iter().chain(steps).fold(0, u64::saturating_add)
    }
}

/// `POST /sync/{id}/reassign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReassignRequest {
    /// The worker that loses its tasks of the sync.
    pub worker_id: WorkerId,
}

/// The reply to `POST /sync/{id}/reassign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignReply {
    /// The id of the sync.
    pub request_id: RequestId,
    /// The worker that lost its tasks.
    pub worker_id: WorkerId,
    /// The number of these tasks.
    pub tasks: u64,
}

/// A sync without progress for minutes, although workers are available and it is not paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallInfo {
    /// The time of the last result, page or byte.
    pub since: Timestamp,
    /// The kind of the oldest active task, or else of the oldest waiting task, e.g. `copy`.
    pub task: String,
    /// The worker of that task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// The age of that task, in seconds.
    pub task_seconds: u64,
}

/// The reply to `POST /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitReply {
    /// Always `queued`.
    pub status: String,
    /// The id of the sync.
    pub request_id: RequestId,
    /// The progress of the sync: a reference relative to the URL of the request (RFC 3986).
    pub status_url: String,
    /// Present if the same request is active already, or if this sync waits for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// For each path that no active worker serves, the nearest storage paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
