//! Quarantine for workers that fail much more often than their peers, so that they do not spoil
//! task after task. They are probed with one task from time to time.
//!
//! ```text
//! Normal     | it fails as often as its peers     | Normal
//! Normal     | it fails much more often           | Quarantine
//! Quarantine | a probe fails                      | Quarantine
//! Quarantine | a probe succeeds                   | Normal
//! Quarantine | its agent restarts                 | Normal
//! ```
//!
//! A worker in quarantine still gets what no other worker can do. Nothing is stored: a restarted
//! master has no quarantine.

use super::event::Now;
use crate::wire::WorkerId;
use std::collections::{HashMap, VecDeque};

/// Number of kept outcomes of a worker.
const MAX_OUTCOMES: usize = 24;

/// Minimum number of outcomes of a worker and of its peers for a decision.
const MIN_OUTCOMES: usize = 8;

/// Minimum ratio of its failure rate to that of its peers.
const MIN_FAILURE_RATIO: usize = 4;

/// First interval between probes; it doubles after each failure.
const FIRST_PROBE_MS: u64 = 30_000;

const MAX_PROBE_MS: u64 = 8 * FIRST_PROBE_MS;

#[derive(Debug, Default)]
pub(super) struct WorkerHealth(HashMap<WorkerId, OutcomeHistory>);

/// Outcomes of the last tasks of a worker.
#[derive(Debug, Default)]
struct OutcomeHistory {
    /// True: failed. The latest is last.
    failures: VecDeque<bool>,
    quarantine: Option<Quarantine>,
}

#[derive(Debug)]
struct Quarantine {
    reason: String,
    /// On the scheduler's clock.
    probe_ms: u64,
    /// Interval after the next probe.
    wait_ms: u64,
}

impl OutcomeHistory {
    /// Failures and total.
    fn count_failures(&self) -> (usize, usize) {
        (self.failures.iter().filter(|failed| **failed).count(), self.failures.len())
    }
}

impl WorkerHealth {
    /// Whether a worker gets only tasks that no other worker can do.
    pub(super) fn is_quarantined(&self, worker: &WorkerId, now: Now) -> bool {
        let quarantine = self.0.get(worker).and_then(|record| record.quarantine.as_ref());
        quarantine.is_some_and(|quarantine| now.mono_ms < quarantine.probe_ms)
    }

    pub(super) fn quarantine_reason(&self, worker: &WorkerId) -> Option<String> {
        Some(self.0.get(worker)?.quarantine.as_ref()?.reason.clone())
    }

    /// If the assigned task is a probe, the next one waits an interval.
    pub(super) fn postpone_probe(&mut self, worker: &WorkerId, now: Now) {
        if let Some(quarantine) =
            self.0.get_mut(worker).and_then(|record| record.quarantine.as_mut())
        {
            quarantine.probe_ms = now.mono_ms.saturating_add(quarantine.wait_ms);
        }
    }

    pub(super) fn forget(&mut self, worker: &WorkerId) {
        self.0.remove(worker);
    }

    pub(super) fn record_outcome(&mut self, worker: &WorkerId, failed: bool, now: Now) {
        let record = self.0.entry(worker.clone()).or_default();
        match (&mut record.quarantine, failed) {
            (Some(_), false) => {
                tracing::info!(%worker, "a probe succeeded: the quarantine ends");
                *record = OutcomeHistory::default();
            }
            (Some(quarantine), true) => {
                quarantine.wait_ms = quarantine.wait_ms.saturating_mul(2).min(MAX_PROBE_MS);
                quarantine.probe_ms = now.mono_ms.saturating_add(quarantine.wait_ms);
            }
            (None, _) => {}
        }
        if record.failures.len() == MAX_OUTCOMES {
            record.failures.pop_front();
        }
        record.failures.push_back(failed);
    }

    /// Puts a worker into quarantine if it fails much more often than its `peers`. True: it did.
    pub(super) fn quarantine_if_worse(
        &mut self,
        worker: &WorkerId,
        peers: &[WorkerId],
        now: Now,
    ) -> bool {
        let others = peers.iter().filter(|id| *id != worker).filter_map(|id| self.0.get(id));
        let counts =
            others.filter(|peer| peer.quarantine.is_none()).map(OutcomeHistory::count_failures);
        let (peers_bad, peers_all) = counts.fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
        let Some(record) = self.0.get_mut(worker) else { return false };
        let (bad, all) = record.count_failures();
        let worse = bad * peers_all >= MIN_FAILURE_RATIO * peers_bad * all;
        if all < MIN_OUTCOMES || peers_all < MIN_OUTCOMES || bad * 2 < all || !worse {
            return false;
        }
        let why = format!(
            "in quarantine: {bad} of its last {all} tasks failed, of those of others {peers_bad} of \
             {peers_all}; it is probed from time to time"
        );
        tracing::warn!(%worker, "{why}");
        let probe_ms = now.mono_ms.saturating_add(FIRST_PROBE_MS);
        record.quarantine = Some(Quarantine { reason: why, probe_ms, wait_ms: FIRST_PROBE_MS });
        true
    }

    /// Keeps the outcomes of known workers only. True: a probe is due.
    pub(super) fn prune_and_check_probes(
        &mut self,
        is_known: impl Fn(&WorkerId) -> bool,
        now: Now,
    ) -> bool {
        self.0.retain(|worker, _| is_known(worker));
        let mut quarantines = self.0.values().filter_map(|record| record.quarantine.as_ref());
        quarantines.any(|quarantine| quarantine.probe_ms <= now.mono_ms)
    }
}
