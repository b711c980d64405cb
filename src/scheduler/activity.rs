//! Progress of syncs: moved bytes, rates, stalls.
//!
//! Agents report the bytes of leased tasks in heartbeats. The count is kept with the lease and ends with it, so the
//! bytes of a failed attempt are subtracted and a result counts once. A sync is stalled when workers are active but
//! nothing progresses (a file system hangs, a worker is extremely slow, or the master is wrong). That is only reported,
//! with what an operator needs for a diagnosis.

use super::phase::PhaseState;
use super::speed::Speed;
use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, State};
use crate::util::units;
use crate::wire::sync::{StallInfo, SyncState};
use crate::wire::{AssignmentId, RequestId, SyncNo, TaskId};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// A sync without progress for this time is idle.
const NO_PROGRESS_MS: u64 = 10_000;

/// A sync is watched if its progress was requested within this time.
const WATCH_TIMEOUT_MS: u64 = 5_000;

/// Time without a result, page or byte. A normal range or batch takes seconds.
const STALL_MS: u64 = 5 * 60 * 1000;

impl State {
    /// Records the content bytes that a worker has moved for its assignments.
    pub(super) fn record_moved_bytes(&mut self, moved: &BTreeMap<AssignmentId, u64>, now: Now) {
        let mut grew: Vec<SyncNo> = Vec::new();
        for (assignment, bytes) in moved {
            let Some(task) = self.tasks.by_assignment(*assignment) else { continue };
            let (id, no) = (task.id, task.sync);
            let bytes = (*bytes).min(task.spec.content_extent(None).1);
            if let Some(lease) = self.tasks.lease_mut(id) {
                if bytes > lease.moved_bytes {
                    grew.push(no);
                }
                lease.moved_bytes = bytes;
            }
        }
        grew.dedup();
        for no in grew {
            self.mark_progress(no, now);
        }
    }

    /// Content bytes that leased tasks have moved and that no result has counted.
    pub(super) fn bytes_in_flight(&self, sync: &SyncJob) -> u64 {
        // A second pass reads what was counted before.
        if sync.phase != PhaseState::Copy && sync.phase != PhaseState::CopyBlocked {
            return 0;
        }
        let moved =
            self.tasks.of_sync(sync.no).filter_map(Task::lease).map(|lease| lease.moved_bytes);
        let moved = moved.fold(0, u64::saturating_add);
        // Content may have grown since it was listed.
        let counters = &sync.counters;
        let counted = counters.bytes_done.saturating_add(counters.bytes_skipped);
        moved.min(counters.bytes_total.saturating_sub(counted))
    }

    pub(super) fn tick_speeds(&mut self, now: Now) {
        for no in self.tasks.syncs().collect::<Vec<_>>() {
            let Some(sync) = self.syncs.get(no) else { continue };
            let runs = sync.displayed_state() == SyncState::Progress;
            let bytes = sync.counters.bytes_done.saturating_add(self.bytes_in_flight(sync));
            if let Some(sync) = self.syncs.get_mut(no) {
                match runs {
                    true => sync.speed.sample(bytes, now.mono_ms),
                    false => sync.speed = Speed::default(),
                }
            }
        }
    }

    pub(super) fn has_no_progress(&self, sync: &SyncJob) -> bool {
        let since = |at_ms: u64| self.last_tick_ms.unwrap_or(0).saturating_sub(at_ms);
        sync.last_progress_ms.is_some_and(|at_ms| since(at_ms) >= NO_PROGRESS_MS)
    }

    /// Names a silent worker that a sync without progress waits for.
    pub(super) fn silence_reason(&self, sync: &SyncJob) -> Option<String> {
        if !self.has_no_progress(sync) {
            return None;
        }
        let silent = self.workers.silent().find(|worker| {
            [sync.source(), sync.destination()].iter().any(|at| self.workers.serves(worker, *at))
        })?;
        let since_ms = self.last_tick_ms.unwrap_or(0).saturating_sub(silent.last_seen_ms);
        let since = units::format_duration(Duration::from_secs(since_ms / 1000));
        Some(format!(
            "no byte moves; worker {} has sent no heartbeat for {since}",
            silent.last_heartbeat.worker_id
        ))
    }

    pub(super) fn mark_watched(&mut self, id: &RequestId, now: Now) {
        if let Some(sync) = self.syncs.find_mut(id) {
            sync.last_watched_ms = Some(now.mono_ms);
        }
    }

    pub(super) fn is_watched(&self, tasks: &[TaskId], now: Now) -> bool {
        let syncs = tasks.iter().filter_map(|id| self.syncs.get(self.tasks.get(*id)?.sync));
        syncs
            .filter_map(|sync| sync.last_watched_ms)
            .any(|at_ms| now.mono_ms.saturating_sub(at_ms) < WATCH_TIMEOUT_MS)
    }

    pub(super) fn mark_progress(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        sync.last_progress_ms = Some(now.mono_ms);
        if sync.stalled_since_ms.take().is_some() {
            tracing::info!(sync = %sync.id, "the sync is no longer stalled");
        }
    }

    /// `slept_ms` is the time that the master was suspended.
    pub(super) fn tick_stalls(&mut self, slept_ms: u64, now: Now) {
        let mut stalled: Vec<SyncNo> = Vec::new();
        for no in self.tasks.syncs() {
            let Some(sync) = self.syncs.get_mut(no) else { continue };
            let waits = sync.displayed_state() != SyncState::Progress
                || self.workers.accepting(sync.source()).next().is_none()
                || self.workers.accepting(sync.destination()).next().is_none();
            if waits {
                (sync.last_progress_ms, sync.stalled_since_ms) = (Some(now.mono_ms), None);
                continue;
            }
            let since = sync.last_progress_ms.get_or_insert(now.mono_ms);
            *since = since.saturating_add(slept_ms).min(now.mono_ms);
            let still_ms = now.mono_ms.saturating_sub(*since);
            if still_ms > STALL_MS && sync.stalled_since_ms.is_none() {
                let still_ms = i64::try_from(still_ms).unwrap_or(i64::MAX);
                sync.stalled_since_ms = Some(now.wall_ms.saturating_sub(still_ms));
                stalled.push(no);
            }
        }
        for no in stalled {
            if let Some(sync) = self.syncs.get(no)
                && let Some(found) = self.stall_report(sync)
            {
                let StallInfo { since, task, worker_id, task_seconds } = found;
                let worker = worker_id.map_or_else(|| "none".to_owned(), |id| id.to_string());
                tracing::warn!(
                    sync = %sync.id, %since, task, worker, task_seconds,
                    "the sync is stalled: workers are active, and no byte moves"
                );
            }
        }
    }

    pub(super) fn stall_report(&self, sync: &SyncJob) -> Option<StallInfo> {
        let since = Timestamp::from_millisecond(sync.stalled_since_ms?).unwrap_or_default();
        let since_ms =
            |task: &Task| task.lease().map_or(task.waiting_since_ms, |lease| lease.granted_ms);
        let tasks = self.tasks.of_sync(sync.no);
        let oldest = tasks.min_by_key(|task| (task.lease().is_none(), since_ms(task), task.id))?;
        let now_ms = self.last_tick_ms.unwrap_or(0);
        Some(StallInfo {
            since,
            task: oldest.spec.kind().to_owned(),
            worker_id: oldest.lease().map(|lease| lease.worker.clone()),
            task_seconds: now_ms.saturating_sub(since_ms(oldest)) / 1000,
        })
    }
}
