//! Stalled syncs: workers are active, but nothing progresses (a file system hangs, a worker is
//! extremely slow, or the master is wrong). They are only reported, with what an operator needs for
//! a diagnosis.

use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, State};
use crate::wire::SyncNo;
use crate::wire::sync::{StallInfo, SyncState};
use jiff::Timestamp;

/// Time without a result, page or byte. A normal range or batch takes seconds.
const STALL_MS: u64 = 5 * 60 * 1000;

impl State {
    pub(super) fn mark_progress(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        sync.last_progress_ms = Some(now.mono_ms);
        if sync.stalled_since_ms.take().is_some() {
            tracing::info!(sync = %sync.id, "the sync is no longer stalled");
        }
    }

    /// `slept_ms` is the time that the master was suspended.
    pub(super) fn tick_stalls(&mut self, slept_ms: u64, now: Now) {
        let mut stalled: Vec<SyncNo> = Vec::new();
        for no in &self.syncs_with_tasks {
            let Some(sync) = self.syncs.get_mut(no) else { continue };
            let request = &sync.request;
            let waits = sync.state != SyncState::Progress
                || sync.is_paused()
                || self.workers.accepting(&request.source_path).next().is_none()
                || self.workers.accepting(&request.destination_path).next().is_none();
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
                stalled.push(*no);
            }
        }
        for no in stalled {
            if let Some(sync) = self.syncs.get(&no)
                && let Some(found) = self.stall_report(sync)
            {
                let StallInfo { since, task, worker_id, task_seconds } = found;
                let worker = worker_id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
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
        let tasks = sync.tasks.iter().filter_map(|id| self.tasks.get(id));
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
