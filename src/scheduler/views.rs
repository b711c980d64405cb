//! Documents for operators: progress, lists, wait reasons.

use super::phase::PhaseState;
use super::storage_types::StorageNo;
use super::sync_job::SyncJob;
use super::task::TaskState;
use super::{RecordLogInfo, State};
use crate::util::units;
use crate::wire::options::SyncOptions;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{SyncPhase, SyncProgress, SyncState};
use crate::wire::{RequestId, StorageId, WorkerId};
use jiff::Timestamp;
use std::collections::BTreeMap;

pub(super) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

impl State {
    /// The document of a sync without those of its destinations.
    pub(super) fn sync_document(&self, sync: &SyncJob) -> SyncProgress {
        let counters = &sync.counters;
        let listed = sync.phase > PhaseState::Copy || self.scan_tasks_left(sync) == 0;
        let phase = match (sync.state, sync.phase) {
            (SyncState::Queued, _) => SyncPhase::Waiting,
            (SyncState::Progress, PhaseState::Copy) if listed => SyncPhase::Transferring,
            (SyncState::Progress, PhaseState::Copy) => SyncPhase::Scanning,
            (SyncState::Progress, PhaseState::CopyBlocked) => SyncPhase::Transferring,
            (SyncState::Progress, PhaseState::Readback) => SyncPhase::Verifying,
            (SyncState::Progress, PhaseState::CountExtraneous | PhaseState::DeleteExtraneous) => {
                SyncPhase::Pruning
            }
            (
                SyncState::Progress,
                PhaseState::FlushBeforeDelete | PhaseState::CleanUp | PhaseState::Flush,
            ) => SyncPhase::Flushing,
            _ => SyncPhase::Done,
        };
        let scan_done =
            listed && (sync.phase > PhaseState::Copy || sync.state != SyncState::Cancelled);
        let transferred_bytes = counters.bytes_done.saturating_add(self.bytes_in_flight(sync));
        let left = counters.bytes_total.saturating_sub(transferred_bytes);
        let left = left.saturating_sub(counters.bytes_skipped);
        let runs = sync.displayed_state() == SyncState::Progress;
        let is_estimated = runs && scan_done && !self.has_no_progress(sync);
        let time_left = sync.speed.estimate_time(left).filter(|_| is_estimated);
        let rate = sync.speed.rate().filter(|_| runs).map(|rate| rate as u64);
        SyncProgress {
            request_id: sync.id.clone(),
            short_id: Some(self.syncs.short_id(&sync.id)),
            state: sync.displayed_state(),
            source_path: sync.request.source_path.clone(),
            destination_path: sync.request.destination_path.clone(),
            run_as: sync.request.run_as.clone(),
            source_workers: sync.request.source_workers.clone(),
            destination_workers: sync.request.destination_workers.clone(),
            source_storage: self.storage_id(sync.source_storage),
            destination_storage: self.storage_id(sync.destination_storage),
            destinations: Vec::new(),
            transferred_bytes,
            total_bytes: counters.bytes_total,
            rate,
            eta_seconds: time_left.map(|time| time.as_secs()),
            submitted_at: timestamp(sync.submitted_ms),
            started_at: sync.started_ms.map(timestamp),
            updated_at: timestamp(sync.updated_ms),
            ended_at: sync.ended_ms.map(timestamp),
            detail: self.worker_details(sync),
            phase,
            source_file_system: sync.source_root.as_ref().map(|root| root.file_system.clone()),
            outcome: sync.outcome,
            files_total: counters.files_total,
            files_done: counters.files_done,
            files_skipped: counters.files_skipped,
            files_failed: counters.files_failed,
            dirs_total: counters.dirs_total,
            dirs_done: counters.dirs_done,
            dirs_failed: counters.dirs_failed,
            failed_steps: counters.failed_steps.clone(),
            bytes_skipped: counters.bytes_skipped,
            sent_bytes: counters.sent_bytes,
            kept_bytes: counters.kept_bytes,
            cloned_bytes: counters.cloned_bytes,
            actions: counters.actions.clone(),
            warnings: sync.metadata_warnings.clone(),
            verified_files: counters.verified_files,
            repaired_files: counters.repaired_files,
            integrity_errors: counters.integrity_errors,
            options: SyncOptions { filter: sync.filter.clone(), ..sync.request.options.clone() },
            bwlimit: sync.bwlimit,
            scan_done,
            unverified: counters.unverified,
            retries: counters.retries,
            reason: sync.reason.clone().or_else(|| self.wait_reason(sync)),
            stalled: self.stall_report(sync),
            errors: sync.errors.clone(),
            error_counts: sync.error_counts.clone(),
            failures_unlisted: sync.failure_list.unlisted_count,
        }
    }

    /// The number of scan tasks of which it gets the work.
    fn scan_tasks_left(&self, sync: &SyncJob) -> usize {
        let of = |no| self.tasks.sync_tasks(no).scan_count();
        let of_group = sync.group().filter(|_| sync.follows_group()).map_or(0, of);
        of(sync.no) + of_group
    }

    fn storage_id(&self, storage: Option<StorageNo>) -> Option<StorageId> {
        self.workers.storages.id(storage?).cloned()
    }

    /// The number of leased tasks by worker and kind.
    fn worker_details(&self, sync: &SyncJob) -> BTreeMap<String, String> {
        let mut kinds: BTreeMap<&WorkerId, BTreeMap<&str, u64>> = BTreeMap::new();
        for task in self.tasks.of_sync(sync.no) {
            if let Some(lease) = task.lease() {
                *kinds.entry(&lease.worker).or_default().entry(task.spec.kind()).or_default() += 1;
            }
        }
        let words = |kinds: BTreeMap<&str, u64>| {
            let parts: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            parts.join(", ")
        };
        kinds.into_iter().map(|(worker, kinds)| (worker.to_string(), words(kinds))).collect()
    }

    /// What an active sync waits for, if anything.
    fn wait_reason(&self, sync: &SyncJob) -> Option<String> {
        if !sync.is_active() {
            return None;
        }
        if let Some(hold) = &sync.pause {
            return Some(hold.reason());
        }
        if let Some(reason) = self.overlap_reason(sync).or_else(|| self.loss_reason(sync)) {
            return Some(reason);
        }
        if let Some(why) = self.explain_unserved_places(sync).into_iter().next() {
            return Some(why);
        }
        // It has no storage of its own to write to.
        if sync.is_group() {
            let mut active = self.destinations_of(sync.no).filter(|one| one.is_active());
            return active.find_map(|one| Some(format!("{}: {}", one.id, self.wait_reason(one)?)));
        }
        for (place, role) in [(sync.source(), "source"), (sync.destination(), "destination")] {
            let mut able = self.capable_workers(sync, place);
            let path = place.path;
            let source = role == "source" && sync.is_limited();
            if !able.any(|w| w.supports_options() || !source) {
                return Some(format!(
                    "no worker that holds the {role} path {path} is new enough for the options of \
                     this sync: install this version there"
                ));
            }
        }
        let shared = sync.group().filter(|_| sync.follows_group());
        let tasks = || {
            let shared = shared.into_iter().flat_map(|group| self.tasks.of_sync(group));
            self.tasks.of_sync(sync.no).chain(shared)
        };
        if tasks().any(|t| t.lease().is_some()) {
            return self.silence_reason(sync);
        }
        let delayed = tasks().find(|t| matches!(t.state, TaskState::Delayed { .. }));
        if let Some(error) = delayed.and_then(|t| t.history.last_error.as_ref()) {
            return Some(format!("waits to try again: {error}"));
        }
        if let Some(worker) = tasks().find_map(|t| t.pinned_to.as_ref()) {
            return Some(format!(
                "waits for worker {worker} to put what it wrote on stable storage"
            ));
        }
        Some("waits for a free worker".to_owned())
    }

    /// Describes the task of a sync with the most losses.
    fn loss_reason(&self, sync: &SyncJob) -> Option<String> {
        let tasks = self.tasks.of_sync(sync.no);
        let worst = tasks
            .max_by_key(|task| task.history.losses.len())
            .filter(|t| !t.history.losses.is_empty())?;
        let most = self.settings.max_worker_losses as usize;
        let next = match worst.history.losses.len() < most {
            true => {
                let times = units::pluralize(most as u64, "time", "times");
                format!("after {times} each entry of it runs alone on a worker")
            }
            false => "it runs alone on a worker, and fails if that one is lost too".to_owned(),
        };
        let (what, times) = (worst.description(), worst.history.losses.len());
        let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
        Some(format!(
            "{what} was lost with its worker {times} ({}): {next}",
            worst.describe_losses()
        ))
    }

    pub(super) fn record_log_info(&self, id: &RequestId) -> Result<RecordLogInfo, Problem> {
        let sync = self.syncs.require(id)?;
        if sync.is_group() {
            let first = self.destinations_of(sync.no).next().map(|one| one.id.to_string());
            let detail = format!("sync `{id}` has a list of files for each of its destinations");
            return Err(Problem::new(ProblemCode::NotRecorded, detail).with_hint(format!(
                "name a destination, e.g. {}: ctl sync status {id} lists them",
                first.as_deref().unwrap_or("ID@WORKER")
            )));
        }
        let options = &sync.request.options;
        Ok(RecordLogInfo {
            sync: sync.no,
            id: sync.id.clone(),
            length: sync.record_log.length,
            readback_from: sync.record_log.readback_from,
            error: sync.record_log.error.clone(),
            is_recorded: options.record || options.manifest,
            has_digests: options.manifest,
            has_ended: !sync.is_active(),
            destination: sync.request.destination_path.clone(),
            failures: sync.failure_pages(),
        })
    }
}
