//! Syncs: the record of one, its counters, and its state.

use super::blocked::BlockedEntries;
use super::boot_ids::BootIds;
use super::event::Now;
use super::failure_list::FailureList;
use super::large_file::LargeFile;
use super::pause::Pause;
use super::phase::{PhaseState, Recheck};
use super::place::Place;
use super::speed::Speed;
use super::storage_types::StorageNo;
use super::worker_registry::Worker;
use crate::wire::entry_report::{EntryAction, EntryWarnings, Tally};
use crate::wire::options::FilterSpec;
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::sync::{FailedStep, SyncOutcome, SyncRequest, SyncState};
use crate::wire::task::{PruneReport, RootState};
use crate::wire::ticket::DeleteGrant;
use crate::wire::{AbsPath, Digest, RequestId, SyncNo, TaskId, WorkerId, is_default};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Every entry ends in exactly one of done, skipped and failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub(super) files_total: u64,
    pub(super) files_done: u64,
    pub(super) files_skipped: u64,
    pub(super) files_failed: u64,
    pub(super) dirs_total: u64,
    pub(super) dirs_done: u64,
    pub(super) dirs_failed: u64,
    pub(super) bytes_total: u64,
    pub(super) bytes_done: u64,
    pub(super) bytes_skipped: u64,
    pub(super) unverified: u64,
    pub(super) retries: u64,
    /// Content bytes sent over the network.
    pub(super) sent_bytes: u64,
    /// Content bytes of `bytes_done` that the destination already had.
    pub(super) kept_bytes: u64,
    /// Content bytes that source and destination share.
    pub(super) cloned_bytes: u64,
    /// Actions on entries that did not fail.
    pub(super) actions: BTreeMap<EntryAction, Tally>,
    /// Files that the read-back pass found correct …
    pub(super) verified_files: u64,
    /// … and those that it copied again.
    pub(super) repaired_files: u64,
    /// Data that were corrupted on the network.
    pub(super) integrity_errors: u64,
    /// Counted before the deletion.
    pub(super) extraneous: PruneReport,
    /// Failures that are not of entries.
    pub(super) failed_steps: BTreeMap<FailedStep, u64>,
}

impl Counters {
    /// A wrong sum of bytes is no reason to stop.
    pub(super) fn add_bytes_total(&mut self, bytes: u64) {
        self.bytes_total = self.bytes_total.saturating_add(bytes);
    }

    pub(super) fn add_actions(&mut self, actions: &BTreeMap<EntryAction, Tally>) {
        for (action, tally) in actions {
            self.actions.entry(*action).or_default().merge(*tally);
        }
    }

    /// Counts failed entries, which are in the totals.
    pub(super) fn add_failed(&mut self, files: u64, dirs: u64) {
        self.files_failed = self.files_failed.saturating_add(files);
        self.dirs_failed = self.dirs_failed.saturating_add(dirs);
    }

    pub(super) fn add_failed_steps(&mut self, step: FailedStep, count: u64) {
        if count > 0 {
            let known = self.failed_steps.entry(step).or_default();
            *known = known.saturating_add(count);
        }
    }
}

/// A guard that stopped a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MirrorStop {
    /// The finding, what was done so far, and how to allow it.
    pub(super) reason: String,
    /// Everything was copied before.
    pub(super) copy_complete: bool,
}

/// The agent through which the tasks of a sync delete. It counts the deleted entries: several agents would each delete
/// up to the limits of the sync.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Deleter {
    pub(super) worker: WorkerId,
    /// The grant that its tickets carry.
    pub(super) deletion: DeleteGrant,
    /// A task failed since it was chosen: another agent is tried next.
    pub(super) has_failed: bool,
}

impl Deleter {
    /// Whether `worker` is still the chosen process and can be reached.
    pub(super) fn is_same_process(&self, worker: &Worker) -> bool {
        worker.is_active
            && worker.drained.is_none()
            && worker.last_heartbeat.incarnation.as_ref() == Some(&self.deletion.incarnation)
    }
}

/// What is stored of the [file records](super::file_records) of a sync.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RecordLog {
    /// Committed bytes; later bytes in the file are void.
    pub(super) length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub(super) readback_from: Option<u64>,
    /// Why it is incomplete.
    pub(super) error: Option<String>,
}

/// What a sync is of a request with several destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SyncPart {
    /// It has one destination.
    #[default]
    Whole,
    /// It has several destinations, with a sync for each ([`destinations`](super::destinations)).
    Group,
    /// It copies to one of the destinations of this sync.
    Destination { of: SyncNo },
}

/// Which scans find the work of a sync in the phase [`PhaseState::Copy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ScanOwner {
    /// Scans of its own.
    #[default]
    Itself,
    /// Those of its group ([`shared_scan`](super::shared_scan)).
    Group,
    /// Those of its group until they ended, or until it got their rest as scans of its own.
    GroupBefore,
}

/// A sync.
///
/// ```text
/// QUEUED ─first lease─▶ PROGRESS ─▶ COMPLETED     inside PROGRESS: see `PhaseState`
///   │                      │ └────▶ FAILED
///   └──────────┬───────────┘             shown as PAUSED while there is a `PauseSync`
///              ▼
///          CANCELLED
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SyncJob {
    pub(super) no: SyncNo,
    pub(super) id: RequestId,
    /// As submitted, without file list and filter.
    pub(super) request: SyncRequest,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) part: SyncPart,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) scan_owner: ScanOwner,
    /// The storage that it reads. Until its first lease it follows what is known of storages, then
    /// it stays.
    pub(super) source_storage: Option<StorageNo>,
    /// The storage that it writes; likewise.
    pub(super) destination_storage: Option<StorageNo>,
    /// Why one of them is not known.
    #[serde(skip)]
    pub(super) storage_reason: Option<String>,
    /// The filter may be long and never changes, so it has a record of its own that is not written
    /// with each counter.
    #[serde(skip)]
    pub(super) filter: FilterSpec,
    #[serde(skip)]
    filter_unsaved: bool,
    /// Limit of all agents together for this sync, in bytes per second. Separate from the request
    /// because it changes.
    pub(super) bwlimit: Option<u64>,
    /// Number of parts of the file list; `None`: the whole source.
    pub(super) name_list_parts: Option<u64>,
    /// The sync with the number under which the parts are stored, if another one.
    pub(super) name_list_stored_under: Option<SyncNo>,
    /// The digest of the file list, to recognise the same request.
    pub(super) name_list_digest: Option<Digest>,
    /// Whether it was submitted with a file list.
    pub(super) has_name_list: bool,
    pub(super) state: SyncState,
    pub(super) outcome: Option<SyncOutcome>,
    pub(super) reason: Option<String>,
    /// Milliseconds since 1970.
    pub(super) submitted_ms: i64,
    pub(super) started_ms: Option<i64>,
    pub(super) updated_ms: i64,
    pub(super) ended_ms: Option<i64>,
    /// In milliseconds of master uptime.
    pub(super) ended_uptime_ms: Option<u64>,
    pub(super) counters: Counters,
    /// The first failures, in full.
    pub(super) errors: Vec<EntryError>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) failure_list: FailureList,
    /// All failures, by cause.
    pub(super) error_counts: BTreeMap<String, u64>,
    /// Whether a failure was anything but a vanished or changed source file.
    pub(super) has_hard_failures: bool,
    /// The source itself could not be listed: nothing was copied.
    pub(super) source_root_failed: bool,
    /// Workers that wrote to the destination and have not flushed yet.
    #[serde(skip)]
    pub(super) unflushed_writers: BootIds,
    /// Workers through which its tasks may have written, with the boot id at their first use.
    /// Results and deaths of workers are judged by it, whatever happened since, and whichever
    /// master led then.
    #[serde(skip)]
    pub(super) possible_writers: BootIds,
    /// Workers that read its source.
    #[serde(skip)]
    pub(super) source_roots: BootIds,
    pub(super) phase: PhaseState,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(super) recheck: Recheck,
    /// By cause.
    pub(super) metadata_warnings: EntryWarnings,
    #[serde(default, skip_serializing_if = "BlockedEntries::is_empty")]
    pub(super) blocked: BlockedEntries,
    /// The source root, from its first page.
    pub(super) source_root: Option<RootState>,
    /// The guard that stopped it, if one did.
    pub(super) mirror_stop: Option<MirrorStop>,
    pub(super) deleter: Option<Deleter>,
    /// The destination has anchors of hard links.
    pub(super) needs_clean_up: bool,
    pub(super) record_log: RecordLog,
    pub(super) pause: Option<Pause>,
    pub(super) revoked_leases: Option<RevokedLeases>,
    /// It has waited the maximum time for its storage.
    pub(super) pause_exhausted: bool,
    /// Deleted by an operator: hidden; kept until its part files are gone.
    pub(super) is_deleted: bool,
    /// The key and body of the submit.
    pub(super) idempotency: Option<(String, Digest)>,

    /// Large files that are not published yet.
    #[serde(skip)]
    pub(super) large_files: BTreeMap<TaskId, LargeFile>,
    /// Large files with several names of which one is present: further names become links.
    #[serde(skip)]
    pub(super) hardlink_groups: BTreeSet<Digest>,
    /// On the scheduler's clock.
    #[serde(skip)]
    pub(super) last_progress_ms: Option<u64>,
    /// In milliseconds since 1970.
    #[serde(skip)]
    pub(super) stalled_since_ms: Option<i64>,
    #[serde(skip)]
    pub(super) speed: Speed,
    /// On the scheduler's clock.
    #[serde(skip)]
    pub(super) last_watched_ms: Option<u64>,
    /// Number of the last lease: the sync with the lowest is served first.
    #[serde(skip)]
    pub(super) last_served: u64,
}

const MAX_FULL_ERRORS: usize = 100;

/// See [`SyncJob::boot_ids`].
const BOOT_ID_KINDS: [&str; 3] = ["r", "w", "o"];

/// Maximum number of causes that are counted separately.
const MAX_CAUSES: usize = 64;

const MAX_CAUSE_CHARS: usize = 500;

impl SyncJob {
    pub(super) fn new(no: SyncNo, id: RequestId, mut request: SyncRequest, wall_ms: i64) -> Self {
        let bwlimit = request.bwlimit.take();
        // One worker sees one storage at a path.
        let is_group = match request.destination_workers.as_slice() {
            [] => false,
            [one] => one.id().is_none(),
            _ => true,
        };
        let mut sync = SyncJob {
            no,
            id,
            request,
            part: if is_group { SyncPart::Group } else { SyncPart::Whole },
            scan_owner: ScanOwner::Itself,
            source_storage: None,
            destination_storage: None,
            storage_reason: None,
            filter: FilterSpec::default(),
            filter_unsaved: false,
            bwlimit,
            name_list_parts: None,
            name_list_stored_under: None,
            name_list_digest: None,
            has_name_list: false,
            state: SyncState::Queued,
            outcome: None,
            reason: None,
            submitted_ms: wall_ms,
            started_ms: None,
            updated_ms: wall_ms,
            ended_ms: None,
            ended_uptime_ms: None,
            counters: Counters::default(),
            errors: Vec::new(),
            failure_list: FailureList::default(),
            error_counts: BTreeMap::new(),
            has_hard_failures: false,
            source_root_failed: false,
            unflushed_writers: BootIds::default(),
            possible_writers: BootIds::default(),
            source_roots: BootIds::default(),
            phase: PhaseState::default(),
            recheck: Recheck::default(),
            metadata_warnings: EntryWarnings::new(),
            blocked: BlockedEntries::default(),
            source_root: None,
            mirror_stop: None,
            deleter: None,
            needs_clean_up: false,
            record_log: RecordLog::default(),
            pause: None,
            revoked_leases: None,
            pause_exhausted: false,
            is_deleted: false,
            idempotency: None,
            large_files: BTreeMap::new(),
            hardlink_groups: BTreeSet::new(),
            last_progress_ms: None,
            stalled_since_ms: None,
            speed: Speed::default(),
            last_watched_ms: None,
            last_served: 0,
        };
        let filter = std::mem::take(&mut sync.request.options.filter);
        if filter != FilterSpec::default() {
            (sync.filter, sync.filter_unsaved) = (filter, true);
        }
        sync
    }

    pub(super) fn is_group(&self) -> bool {
        self.part == SyncPart::Group
    }

    /// The sync of which it is one destination.
    pub(super) fn group(&self) -> Option<SyncNo> {
        match self.part {
            SyncPart::Destination { of } => Some(of),
            SyncPart::Whole | SyncPart::Group => None,
        }
    }

    /// Whether the scans of its group find more work for it.
    pub(super) fn follows_group(&self) -> bool {
        self.is_active() && self.scan_owner == ScanOwner::Group
    }

    /// Whether everything is at its destination.
    pub(super) fn is_complete(&self) -> bool {
        self.state == SyncState::Completed && self.outcome == Some(SyncOutcome::Full)
    }

    /// The path at the source, or at the destination.
    pub(super) fn storage_path(&self, at_source: bool) -> &AbsPath {
        self.place(at_source).path
    }

    /// Where it reads, or where it writes.
    pub(super) fn place(&self, at_source: bool) -> Place<'_> {
        if at_source { self.source() } else { self.destination() }
    }

    pub(super) fn source(&self) -> Place<'_> {
        Place { storage: self.source_storage, path: &self.request.source_path }
    }

    pub(super) fn destination(&self) -> Place<'_> {
        Place { storage: self.destination_storage, path: &self.request.destination_path }
    }

    /// Whether its copy is not finished (clean-up aside).
    pub(super) fn is_active(&self) -> bool {
        !self.state.is_final()
    }

    /// Records an error that stands for `count` failures, which [`Counters`] count.
    pub(super) fn record_error(&mut self, error: EntryError, count: u64) {
        let cause = bounded_cause(&self.error_counts, error.cause_key());
        let known = self.error_counts.entry(cause).or_default();
        *known = known.saturating_add(count);
        self.has_hard_failures |=
            !matches!(error.class, ErrorClass::Vanished | ErrorClass::Changed);
        if self.errors.len() < MAX_FULL_ERRORS {
            self.errors.push(error);
        }
    }

    pub(super) fn add_metadata_warnings(&mut self, notes: EntryWarnings) {
        for (cause, note) in notes {
            let cause = bounded_cause(&self.metadata_warnings, cause);
            self.metadata_warnings.entry(cause).or_default().merge(note);
        }
    }

    /// A worker may have written through any reachable worker and will not report it: each of them
    /// must flush.
    pub(super) fn mark_all_unflushed(&mut self) {
        for (worker, boot) in self.possible_writers.iter() {
            self.unflushed_writers.add(worker, boot.as_ref());
        }
    }

    /// Resets all progress except the count of corruptions.
    pub(super) fn reset_progress(&mut self) {
        // It describes the network, whatever has to be repeated.
        let integrity_errors = self.counters.integrity_errors;
        self.counters = Counters { integrity_errors, ..Counters::default() };
        self.errors.clear();
        self.error_counts.clear();
        self.has_hard_failures = false;
        self.source_root_failed = false;
        self.phase = PhaseState::Copy;
        // What is damaged at the destination looks like the source: it is still to be compared.
        let Recheck { is_pending, has_damage, .. } = self.recheck;
        let is_pending = is_pending || has_damage || self.recheck.has_begun();
        self.recheck = Recheck { is_pending, has_damage, ..Recheck::default() };
        self.metadata_warnings.clear();
        self.blocked = BlockedEntries::default();
        self.source_root = None;
        self.source_roots.clear();
        self.mirror_stop = None;
        self.deleter = None;
        self.record_log = RecordLog::default();
    }

    /// The request as submitted, without its name list.
    pub(super) fn as_submitted(&self) -> SyncRequest {
        let mut request = self.request.clone();
        request.bwlimit = self.bwlimit;
        request.options.filter = self.filter.clone();
        request
    }

    /// The sync with the number under which the parts of its name list are stored.
    pub(super) fn name_list_owner(&self) -> SyncNo {
        self.name_list_stored_under.unwrap_or(self.no)
    }

    pub(super) fn record_key(&self) -> String {
        format!("s/{}", self.no)
    }

    pub(super) fn filter_key(&self) -> Option<String> {
        (self.filter != FilterSpec::default()).then(|| format!("x/{}", self.no))
    }

    /// Its workers of a kind of records, the first part of their keys.
    pub(super) fn boot_ids(&self, kind: &str) -> Option<&BootIds> {
        match kind {
            "r" => Some(&self.possible_writers),
            "w" => Some(&self.unflushed_writers),
            "o" => Some(&self.source_roots),
            _ => None,
        }
    }

    pub(super) fn boot_ids_mut(&mut self, kind: &str) -> Option<&mut BootIds> {
        match kind {
            "r" => Some(&mut self.possible_writers),
            "w" => Some(&mut self.unflushed_writers),
            "o" => Some(&mut self.source_roots),
            _ => None,
        }
    }

    /// Keys of its other records that must be written.
    pub(super) fn take_unsaved_keys(&mut self) -> Vec<String> {
        let no = self.no;
        let mut keys = Vec::new();
        for kind in BOOT_ID_KINDS {
            let unsaved = self.boot_ids_mut(kind).map(BootIds::take_unsaved);
            keys.extend(
                unsaved.into_iter().flatten().map(|worker| format!("{kind}/{no}/{worker}")),
            );
        }
        keys.extend(std::mem::take(&mut self.filter_unsaved).then(|| self.filter_key()).flatten());
        keys
    }

    /// Keys of all its records of workers.
    pub(super) fn worker_record_keys(&self) -> impl Iterator<Item = String> {
        BOOT_ID_KINDS.into_iter().flat_map(move |kind| {
            let workers = self.boot_ids(kind).into_iter().flat_map(BootIds::iter);
            workers.map(move |(worker, _)| format!("{kind}/{}/{worker}", self.no))
        })
    }

    /// Whether a task may be assigned at `now`. Clean-up of an ended sync is never paused.
    pub(super) fn can_dispatch(&self, now: Now) -> bool {
        !self.is_active() || self.pause.as_ref().is_none_or(|hold| !hold.is_blocking(now))
    }

    /// Whether it is displayed as paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_active() && self.pause.is_some()
    }

    /// The state that operators see.
    pub(super) fn displayed_state(&self) -> SyncState {
        if self.is_paused() { SyncState::Paused } else { self.state }
    }
}

/// The line under which a cause is counted: its own, or a common one when there are too many.
fn bounded_cause<T>(known: &BTreeMap<String, T>, cause: String) -> String {
    let cause: String = cause.chars().take(MAX_CAUSE_CHARS).collect();
    if known.len() < MAX_CAUSES || known.contains_key(&cause) {
        cause
    } else {
        "other causes".to_owned()
    }
}

/// Revoked leases of a sync of which the workers may not be informed yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RevokedLeases {
    /// End of the last of these leases on the scheduler's clock. Not stored: a restarted master
    /// waits for a whole lease.
    #[serde(skip)]
    pub(super) until_ms: u64,
}
