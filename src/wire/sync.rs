//! What an operator asks for ([`SyncRequest`]) and sees ([`SyncProgress`]).

use super::options::{EntryAction, EntryWarnings, SyncOptions, Tally};
use super::{AbsPath, BytePath, RequestId, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The default of `chunk_size_mb`, in MiB.
pub const DEFAULT_CHUNK_MIB: u32 = 64;
/// The bounds of `chunk_size_mb`, in MiB, both inclusive.
pub const CHUNK_MIB_RANGE: std::ops::RangeInclusive<u32> = 1..=1024;

/// `POST /sync`: make `destination_path` hold what `source_path` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    /// The operator's name for it; the master makes a sortable one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// A directory (its contents are copied) or a file.
    pub source_path: AbsPath,
    /// Where the contents (or the file) shall be.
    pub destination_path: AbsPath,
    /// Batches and ranges hold at most this much, in MiB ([`CHUNK_MIB_RANGE`]).
    #[serde(default = "default_chunk_mib")]
    pub chunk_size_mb: u32,
    /// Copy just these: relative to the source, or absolute below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_list: Option<Vec<BytePath>>,
    /// How it is to be done.
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// All agents together send no more for it than this, in bytes per second; none: as much as they can.
    /// It can be changed while the sync runs ([`SyncPatch`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
}

/// `PATCH /sync/{id}`: what is to be different from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SyncPatch {
    /// See [`SyncRequest::bwlimit`].
    pub bwlimit: Option<u64>,
}

/// `POST /sync/{id}/retry`: submit what an ended sync asked for again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RetryRequest {
    /// The name of the new sync; the master makes one where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// Just the entries that failed.
    pub failed_only: bool,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn default_chunk_mib() -> u32 {
    DEFAULT_CHUNK_MIB
}

/// The state of a sync, as operators see it. `Completed`, `Failed` and `Cancelled` are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SyncState {
    /// Accepted; nothing handed out yet (`reason` says why).
    Queued,
    /// Tasks are handed out.
    Progress,
    /// Nothing more is handed out for now; `reason` says why, and what goes on.
    Paused,
    /// Everything is at the destination, checked and flushed.
    Completed,
    /// Ended with something missing; `errors` says what.
    Failed,
    /// Ended by an operator.
    Cancelled,
}

impl SyncState {
    /// Whether the state can't change any more.
    pub fn is_final(self) -> bool {
        matches!(self, SyncState::Completed | SyncState::Failed | SyncState::Cancelled)
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            SyncState::Queued => "QUEUED",
            SyncState::Progress => "PROGRESS",
            SyncState::Paused => "PAUSED",
            SyncState::Completed => "COMPLETED",
            SyncState::Failed => "FAILED",
            SyncState::Cancelled => "CANCELLED",
        }
    }
}

impl std::str::FromStr for SyncState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        use SyncState::*;
        let upper = s.to_ascii_uppercase();
        [Queued, Progress, Paused, Completed, Failed, Cancelled]
            .into_iter()
            .find(|state| state.as_str() == upper)
            .ok_or_else(|| {
                "must be one of QUEUED, PROGRESS, PAUSED, COMPLETED, FAILED, CANCELLED".to_owned()
            })
    }
}

/// Where a sync stands inside its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SyncPhase {
    /// Not begun.
    Waiting,
    /// The source is still being listed; copying goes on beside it.
    Scanning,
    /// Everything is listed; entries are being copied.
    Transferring,
    /// Everything is copied; it is read again and compared (`verify: readback`).
    Verifying,
    /// Everything is copied; what the source does not have is counted, then deleted.
    Pruning,
    /// Everything is copied; destination workers put it on stable storage.
    Flushing,
    /// Ended.
    Done,
}

/// How a sync ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncOutcome {
    /// Every entry is there.
    Full,
    /// Some entries failed.
    Partial,
    /// The only failures are source files that vanished or changed under the copy each time.
    VanishedOnly,
    /// Everything was copied, and a guard stopped the deletion of what the source does not have.
    DeleteStopped,
    /// A guard stopped a mirror before everything was copied, in general before anything was.
    CopyStopped,
    /// Nothing is known to be missing, but tasks were reported done without evidence
    /// ([`SyncProgress::unverified`]).
    Unverified,
    /// An operator ended it.
    Cancelled,
}

/// A part of the work of a sync whose failures are no failures of counted entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedStep {
    /// A directory could not be entered or listed, or a part of a list of names not be looked up.
    List,
    /// An entry that was copied could not be compared again (`verify: readback`).
    ReadBack,
    /// Something that the source does not have could not be found or deleted.
    Delete,
    /// What was kept for the names of one file could not be removed.
    CleanUp,
    /// What a worker wrote could not be put on stable storage.
    Flush,
}

/// One failed entry (or batch).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileError {
    /// Below the source (and destination) root; empty for the root itself.
    pub path: BytePath,
    /// What was being done, as verb and side, e.g. `open source`, `rename destination`.
    pub operation: String,
    /// The name of the errno, e.g. `EACCES`, where a system call failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// What failed, where and why.
    pub message: String,
    /// What an operator can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Which worker saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// At which attempt, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// Whether trying again can help.
    #[serde(default)]
    pub class: ErrorClass,
}

impl FileError {
    /// What to do where there is no room.
    pub const NO_SPACE_HINT: &str = "free space or inodes on the destination";

    /// What went wrong without where: the same for all entries that fail alike.
    pub fn describe_cause(&self) -> String {
        let errno = self.errno.as_deref().unwrap_or("no errno");
        format!("cannot {}: {errno}", self.operation)
    }

    /// Whether it says that the host that saw it had no descriptor or no memory left. That is no fault
    /// of the entry.
    pub fn is_resource_exhaustion(&self) -> bool {
        matches!(self.errno.as_deref(), Some("EMFILE" | "ENFILE" | "ENOMEM"))
    }
}

/// The message and the hint, for a log or a reason.
impl std::fmt::Display for FileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

/// Whether trying a failed entry again can help.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// It may work at another time (EIO, ENOSPC, a lost connection).
    #[default]
    Transient,
    /// It can only work elsewhere or after somebody changes something (EACCES, EROFS).
    Permanent,
    /// The source changed under the copy each time.
    Changed,
    /// The source entry is gone.
    Vanished,
    /// The storage path of a worker leads elsewhere than to the directory that the worker opened: the
    /// sync waits until it is there again.
    StorageGone,
    /// The request contradicts what its paths lead to: no repetition of it can work.
    InvalidRequest,
}

/// `GET /sync/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncProgress {
    /// The operator's name of the sync.
    pub request_id: RequestId,
    /// The shortest beginning of it, of at least [`MIN_ID_PREFIX_CHARS`] characters, with which no other id of the
    /// master begins; a shorter id is whole.
    ///
    /// [`MIN_ID_PREFIX_CHARS`]: super::ids::MIN_ID_PREFIX_CHARS
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_id: Option<String>,
    /// Where it stands.
    pub state: SyncState,
    /// What is copied from.
    pub source_path: AbsPath,
    /// What is copied to.
    pub destination_path: AbsPath,
    /// Content bytes that were sent and checked, and those of tasks under way; skipped ones are not in it. It
    /// falls where an attempt fails.
    pub transferred_bytes: u64,
    /// Content bytes found so far; final once `scan_done`.
    pub total_bytes: u64,
    /// Content bytes per second of late (about ten seconds), once a byte has moved and while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// When it may have copied the rest at that rate, in seconds from now; not before `scan_done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// When the first task was handed out.
    pub started_at: Option<Timestamp>,
    /// When anything of this last changed.
    pub updated_at: Timestamp,
    /// When it reached a final state.
    pub ended_at: Option<Timestamp>,
    /// What each worker does for it, in words.
    pub detail: BTreeMap<String, String>,
    /// Where it stands inside its state.
    pub phase: SyncPhase,
    /// The file system of the source root: the same text as long as it is the same file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_file_system: Option<String>,
    /// How it ended; `FAILED` without one: nothing was copied at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<SyncOutcome>,
    /// Files, links and special files found so far (directories are counted apart).
    pub files_total: u64,
    /// … copied.
    pub files_done: u64,
    /// … equal already.
    pub files_skipped: u64,
    /// … given up.
    pub files_failed: u64,
    /// Directories found so far.
    pub dirs_total: u64,
    /// … that exist at the destination with their metadata.
    pub dirs_done: u64,
    /// … given up.
    pub dirs_failed: u64,
    /// What failed beside entries. With `files_failed` and `dirs_failed` it is the sum of `error_counts`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed_steps: BTreeMap<FailedStep, u64>,
    /// Content bytes of the files skipped.
    pub bytes_skipped: u64,
    /// Content bytes that went over the wire (or between two files of one host), retries included.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Content bytes of copied files that the destination had already and that were kept.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Content bytes of copied files that source and destination share: nothing was read or written.
    #[serde(default)]
    pub cloned_bytes: u64,
    /// What was done (in a dry run: would be), by action.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub actions: BTreeMap<EntryAction, Tally>,
    /// Metadata that the destination could not hold, and what was left out, by cause.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub warnings: EntryWarnings,
    /// Files that were read back and are right.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub verified_files: u64,
    /// Files that were wrong when they were read back, and were sent again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repaired_files: u64,
    /// How often something came damaged over the network (a file, a range, a document), was found and was
    /// sent again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub integrity_errors: u64,
    /// How it was to be done.
    #[serde(default, skip_serializing_if = "SyncOptions::is_default")]
    pub options: SyncOptions,
    /// All agents together send no more for it than this, in bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bwlimit: Option<u64>,
    /// Whether the totals are final.
    pub scan_done: bool,
    /// Tasks reported done without evidence: a success without digest and report, a page without the source
    /// root, anything from a worker without an incarnation. The outcome is then never [`SyncOutcome::Full`].
    pub unverified: u64,
    /// Tasks that were handed out again.
    pub retries: u64,
    /// Why it waits, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// That nothing of it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<StallInfo>,
    /// The first failures in full.
    pub errors: Vec<FileError>,
    /// All failures, counted per cause.
    pub error_counts: BTreeMap<String, u64>,
    /// How many of them `GET /sync/{id}/files?state=failed` does not name: those after the first 1,000,000.
    #[serde(default)]
    pub failures_unlisted: u64,
}

impl SyncProgress {
    /// Everything that failed: files, directories, and steps that are about neither.
    pub fn failure_count(&self) -> u64 {
        let steps = self.failed_steps.values().copied();
        [self.files_failed, self.dirs_failed].into_iter().chain(steps).fold(0, u64::saturating_add)
    }
}

/// `POST /sync/{id}/reassign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReassignRequest {
    /// Whose tasks of the sync are for others.
    pub worker_id: WorkerId,
}

/// The reply to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassignReply {
    /// The sync.
    pub request_id: RequestId,
    /// Who had them.
    pub worker_id: WorkerId,
    /// How many tasks were taken away from it.
    pub tasks: u64,
}

/// That nothing of a sync has moved for minutes, though workers are there and nobody paused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallInfo {
    /// The last result, page or byte came then.
    pub since: Timestamp,
    /// What is longest under way, or waits longest where nothing is, e.g. `copy`.
    pub task: String,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerId>,
    /// For how long, in seconds.
    pub task_seconds: u64,
}

/// The reply to `POST /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitReply {
    /// Always `queued`.
    pub status: String,
    /// The name of the sync, given or made.
    pub request_id: RequestId,
    /// Where to ask for its progress: a reference relative to the URL of the request (RFC 3986).
    pub status_url: String,
    /// That the same request is active already, or for which sync this one waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why nothing of it can be done yet: for each path that no active worker serves, the nearest storage paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
