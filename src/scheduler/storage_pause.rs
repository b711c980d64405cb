//! Pauses for storage that is full or not served, and their end.

use super::pause::{Pause, StorageProblem};
use super::sync_job::SyncJob;
use super::task::Task;
use super::worker_registry::unavailable_path;
use super::{Now, State};
use crate::wire::outcome::EntryError;
use crate::wire::task::TaskSpec;
use crate::wire::worker::UnavailablePath;
use crate::wire::{SyncNo, TaskId, WorkerId};

const STORAGE_PROBE_INTERVAL_MS: u64 = 15_000;

pub(super) fn describe_unavailable(id: &WorkerId, lost: &UnavailablePath) -> String {
    format!("storage path {} of worker {id} is unavailable: {}", lost.path, lost.reason)
}

impl State {
    /// Pauses the sync if errors of a task report a storage problem. True: the task failed for that
    /// reason and is not charged for it.
    pub(super) fn pause_on_storage_errors(
        &mut self,
        task: &Task,
        errors: &[EntryError],
        now: Now,
    ) -> bool {
        let problems = errors
            .iter()
            .filter_map(|error| Some((StorageProblem::from_error(error, task)?, error)));
        let (elsewhere, problems): (Vec<_>, Vec<_>) = problems.partition(|(problem, _)| {
            self.is_served_elsewhere(task.sync, problem) || self.is_replaced(task.sync, problem)
        });
        // The report predates the detection of the lost or replaced path: other workers, or the
        // other root, are used from now on.
        let Some((problem, error)) = problems.into_iter().next() else {
            return !elsewhere.is_empty();
        };
        // Data that a flush could not write are lost: a pause does not restore them.
        if problem == StorageProblem::NoSpace && task.spec == TaskSpec::Flush {
            return false;
        }
        let at = error.worker_id.as_ref().map_or_else(String::new, |w| format!(" (worker {w})"));
        self.pause_for_storage(task.sync, problem, format!("{error}{at}"), now)
    }

    /// Pauses a sync until its storage is usable. False: it does not pause (any longer), or is not
    /// active.
    pub(super) fn pause_for_storage(
        &mut self,
        no: SyncNo,
        problem: StorageProblem,
        why: String,
        now: Now,
    ) -> bool {
        let patience = self.settings.no_space_ms;
        let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { return false };
        if patience == 0 || sync.pause_exhausted {
            return false;
        }
        let since_ms = match &sync.pause {
            Some(Pause::Operator) => return true,
            Some(Pause::Storage { since_ms, .. }) => since_ms.unwrap_or(now.mono_ms),
            None => now.mono_ms,
        };
        let known = matches!(
            &sync.pause,
            Some(Pause::Storage { reason: known, problem: before, .. })
                if *known == why && *before == problem
        );
        let probe_ms = now.mono_ms.saturating_add(STORAGE_PROBE_INTERVAL_MS);
        if sync.pause.is_none() {
            tracing::warn!(sync = %sync.id, why, "the sync waits for its storage");
        }
        sync.pause =
            Some(Pause::Storage { problem, reason: why, since_ms: Some(since_ms), probe_ms });
        if !known {
            self.mark_changed(no, now);
        }
        true
    }

    /// A write succeeded: a sync that was paused for a full destination continues.
    pub(super) fn resume_after_write(&mut self, no: SyncNo, now: Now) {
        let full =
            |hold: &Pause| matches!(hold, Pause::Storage { problem: StorageProblem::NoSpace, .. });
        if self.syncs.get(no).and_then(|sync| sync.pause.as_ref()).is_some_and(full) {
            self.end_storage_pause(no, now);
        }
    }

    pub(super) fn end_storage_pause(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(no) else { return };
        let Some(Pause::Storage { problem, .. }) = &sync.pause else { return };
        tracing::info!(sync = %sync.id, "{}: the sync continues", problem.resolution());
        sync.pause = None;
        self.mark_changed(no, now);
        self.outbox.request_dispatch();
    }

    /// A task of a paused sync was assigned as a probe: the next one waits an interval.
    pub(super) fn postpone_probe(&mut self, no: SyncNo, now: Now) {
        if let Some(Pause::Storage { probe_ms, .. }) =
            self.syncs.get_mut(no).and_then(|sync| sync.pause.as_mut())
        {
            *probe_ms = now.mono_ms.saturating_add(STORAGE_PROBE_INTERVAL_MS);
        }
    }

    pub(super) fn next_probe_ms(&self, now: Now) -> Option<u64> {
        let holds = self.tasks.syncs().filter_map(|no| self.syncs.get(no)?.pause.as_ref());
        let probes = holds.filter_map(|hold| match hold {
            Pause::Storage { probe_ms, .. } if *probe_ms > now.mono_ms => Some(*probe_ms),
            _ => None,
        });
        probes.min()
    }

    pub(super) fn resume_if_served(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get(no) else { return };
        let Some(Pause::Storage { problem, .. }) = &sync.pause else { return };
        let StorageProblem::PathUnavailable { worker, at_source, flush } = problem else { return };
        let place = sync.place(*at_source);
        let itself = self.workers.get(worker);
        let itself = itself.is_some_and(|w| w.is_ready() && self.workers.serves(w, place));
        if itself || !flush && self.workers.accepting(place).next().is_some() {
            self.end_storage_pause(no, now);
        }
    }

    /// Whether another worker serves the path and the named one does not (it is silent, or reports
    /// the path as unavailable): then there is nothing to wait for.
    pub(super) fn is_served_elsewhere(&self, no: SyncNo, problem: &StorageProblem) -> bool {
        let StorageProblem::PathUnavailable { worker, at_source, flush: false } = problem else {
            return false;
        };
        let Some(sync) = self.syncs.get(no) else { return false };
        let place = sync.place(*at_source);
        let serves = self.workers.get(worker);
        let serves = serves.is_some_and(|w| w.is_active && self.workers.serves(w, place));
        !serves && self.capable_workers(sync, place).next().is_some()
    }

    /// Whether the named worker serves the path again with another root than the one that the sync
    /// used, or under another boot: then there is nothing to wait for.
    fn is_replaced(&self, no: SyncNo, problem: &StorageProblem) -> bool {
        let StorageProblem::PathUnavailable { worker, at_source, .. } = problem else {
            return false;
        };
        let Some(sync) = self.syncs.get(no) else { return false };
        let path = sync.storage_path(*at_source);
        let known = if *at_source { &sync.source_roots } else { &sync.possible_writers };
        let here = self.workers.get(worker);
        let here = here.filter(|w| w.is_ready() && w.available_root(path).is_some());
        let here = here.and_then(|w| w.boot_and_root(path));
        let then = known.get(worker).and_then(Option::as_ref);
        then.zip(here).is_some_and(|(then, here)| *then != here)
    }

    /// The path that a worker reports as unavailable and that no other worker serves, if any.
    pub(super) fn find_unavailable_storage(
        &self,
        sync: &SyncJob,
    ) -> Option<(StorageProblem, String)> {
        [true, false].into_iter().find_map(|at_source| {
            let place = sync.place(at_source);
            if self.workers.accepting(place).next().is_some() {
                return None;
            }
            let path = place.path;
            let active = self.workers.seeing(place).filter(|w| w.is_active);
            let mut lost =
                active.filter_map(|w| Some((w, unavailable_path(&w.last_heartbeat, path)?)));
            let (worker, lost) = lost.next()?;
            let id = worker.last_heartbeat.worker_id.clone();
            let why = describe_unavailable(&id, lost);
            Some((StorageProblem::PathUnavailable { worker: id, at_source, flush: false }, why))
        })
    }

    /// A task was done by `by`, and through the workers `wrote`: a pause for storage of theirs
    /// ends.
    pub(super) fn resume_if_storage_works(
        &mut self,
        id: TaskId,
        by: &WorkerId,
        wrote: &[WorkerId],
        now: Now,
    ) {
        let Some(task) = self.tasks.get(id) else { return };
        let (no, reads) = (task.sync, task.runs_at_source());
        let Some(Pause::Storage { problem, .. }) =
            self.syncs.get(no).and_then(|s| s.pause.as_ref())
        else {
            return;
        };
        let StorageProblem::PathUnavailable { worker, at_source, .. } = problem else { return };
        let there = match at_source {
            true => reads && worker == by,
            false => wrote.contains(worker) || !reads && worker == by,
        };
        if there {
            self.end_storage_pause(no, now);
        }
    }
}
