//! Workers that fail much more than others that do the same: they are set aside, so that they don't take
//! and spoil task after task, and tried again with one task every now and then.
//!
//! ```text
//! trusted ──half of the last tasks failed, of its peers' hardly any──▶ aside
//!    ▲                                                                  │
//!    └────────── a probe succeeded, its agent was started anew ─────────┘
//! ```
//!
//! Who is set aside still does what nobody else can. Nothing of this is stored: a restarted master trusts
//! everybody.

use super::pause::is_no_space;
use super::{Now, State};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::{TaskId, WorkerId};
use std::collections::{HashMap, VecDeque};

/// So many outcomes of a worker are remembered …
const MAX_OUTCOMES: usize = 24;
/// … and it is judged by no fewer than these, nor are its peers.
const MIN_OUTCOMES: usize = 8;
/// Its share of failures must be so many times that of its peers.
const MIN_FAILURE_RATIO: usize = 4;
/// Between two probes, in milliseconds; twice as long after each that failed …
const FIRST_PROBE_MS: u64 = 30_000;
/// … up to this.
const MAX_PROBE_MS: u64 = 8 * FIRST_PROBE_MS;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WorkerHealth(HashMap<WorkerId, OutcomeHistory>);

/// What became of the last tasks of a worker.
#[derive(Debug, Default)]
struct OutcomeHistory {
    /// Whether each failed, the latest last.
    failures: VecDeque<bool>,
    quarantine: Option<Quarantine>,
}

#[derive(Debug)]
struct Quarantine {
    reason: String,
    /// When it is tried again, on the scheduler's clock.
    probe_ms: u64,
    /// How long to wait after the next try.
    wait_ms: u64,
}

impl OutcomeHistory {
    /// How many failed, of how many.
    fn count_failures(&self) -> (usize, usize) {
        (self.failures.iter().filter(|failed| **failed).count(), self.failures.len())
    }
}

impl WorkerHealth {
    /// Whether a worker is to be given nothing at `now` that others can do.
    pub(super) fn is_quarantined(&self, worker: &WorkerId, now: Now) -> bool {
        let aside = self.0.get(worker).and_then(|record| record.quarantine.as_ref());
        aside.is_some_and(|aside| now.mono_ms < aside.probe_ms)
    }

    /// Why a worker is set aside.
    pub(super) fn quarantine_reason(&self, worker: &WorkerId) -> Option<String> {
        Some(self.0.get(worker)?.quarantine.as_ref()?.reason.clone())
    }

    /// A worker was given a task: if that is a probe, the next one has to wait.
    pub(super) fn postpone_probe(&mut self, worker: &WorkerId, now: Now) {
        if let Some(aside) = self.0.get_mut(worker).and_then(|record| record.quarantine.as_mut()) {
            aside.probe_ms = now.mono_ms.saturating_add(aside.wait_ms);
        }
    }

    /// A worker is gone, or began anew.
    pub(super) fn forget(&mut self, worker: &WorkerId) {
        self.0.remove(worker);
    }

    /// Notes an outcome; what was known of the worker before is given back.
    fn record_outcome(&mut self, worker: &WorkerId, failed: bool, now: Now) {
        let record = self.0.entry(worker.clone()).or_default();
        match (&mut record.quarantine, failed) {
            (Some(_), false) => {
                tracing::info!(%worker, "a probe succeeded: the quarantine ends");
                *record = OutcomeHistory::default();
            }
            (Some(aside), true) => {
                aside.wait_ms = aside.wait_ms.saturating_mul(2).min(MAX_PROBE_MS);
                aside.probe_ms = now.mono_ms.saturating_add(aside.wait_ms);
            }
            (None, _) => {}
        }
        if record.failures.len() == MAX_OUTCOMES {
            record.failures.pop_front();
        }
        record.failures.push_back(failed);
    }
}

/// Whether an error may be the fault of the worker that tells it. A full disk and a source that changes
/// are not.
pub(super) fn is_worker_fault(error: &FileError) -> bool {
    // `StorageGone` is none of the two.
    !is_no_space(error) && matches!(error.class, ErrorClass::Transient | ErrorClass::Permanent)
}

impl State {
    /// A task ended at a worker, or ran out of its lease there. It is still leased.
    pub(super) fn judge_worker(&mut self, id: TaskId, worker: &WorkerId, failed: bool, now: Now) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (no, at_source) = (task.sync, task.runs_at_source());
        self.worker_health.record_outcome(worker, failed, now);
        if !failed || self.worker_health.quarantine_reason(worker).is_some() {
            return;
        }
        let Some(sync) = self.syncs.get(&no) else { return };
        let request = &sync.request;
        let path = if at_source { &request.source_path } else { &request.destination_path };
        let others = self.capable_workers(sync, path).map(|other| &other.last_heartbeat.worker_id);
        let peers =
            others.filter(|id| *id != worker && self.worker_health.quarantine_reason(id).is_none());
        let counts = peers.filter_map(|id| Some(self.worker_health.0.get(id)?.count_failures()));
        let (peers_bad, peers_all) = counts.fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
        let Some(record) = self.worker_health.0.get_mut(worker) else { return };
        let (bad, all) = record.count_failures();
        let worse = bad * peers_all >= MIN_FAILURE_RATIO * peers_bad * all;
        if all < MIN_OUTCOMES || peers_all < MIN_OUTCOMES || bad * 2 < all || !worse {
            return;
        }
        let why = format!(
            "in quarantine: {bad} of its last {all} tasks failed, of those of others {peers_bad} of \
             {peers_all}; it is probed from time to time"
        );
        tracing::warn!(%worker, "{why}");
        let probe_ms = now.mono_ms.saturating_add(FIRST_PROBE_MS);
        record.quarantine = Some(Quarantine { reason: why, probe_ms, wait_ms: FIRST_PROBE_MS });
        // What was to be left to others may be for nobody else.
        self.needs_dispatch = true;
    }

    /// Time passed: who is set aside may be tried again, who is gone is forgotten.
    pub(super) fn tick_worker_health(&mut self, now: Now) {
        self.worker_health.0.retain(|worker, _| self.workers.get(worker).is_some());
        let mut asides =
            self.worker_health.0.values().filter_map(|record| record.quarantine.as_ref());
        self.needs_dispatch |= asides.any(|aside| aside.probe_ms <= now.mono_ms);
    }
}
