//! Syncs that are paused: by an operator, because the destination is full, or because a storage
//! path does not lead to the directory that its worker opened
//! ([`storage_paths`](super::storage_paths)).
//!
//! ```text
//! QUEUED, PROGRESS ──pause──▶ PAUSED ──resume──▶ the state before
//!        │ ▲                  PAUSED ◀─┐ periodic probe:
//!        │ └── a probe wrote ◀── │     │ one task is assigned
//!        └──no space left,──▶ PAUSED ──┘ probes fail for too long ──▶ FAILED
//!           storage gone
//! ```
//!
//! No task of a paused sync is assigned. Tasks that were leased before are finished and count.

use super::sync_admin::{refuse, unknown_sync};
use super::sync_job::SyncJob;
use super::task::Task;
use super::{Now, Reply, State};
use crate::util::units;
use crate::wire::problem::{Problem, ProblemCode};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::TaskSpec;
use crate::wire::{RequestId, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};

const STORAGE_PROBE_INTERVAL_MS: u64 = 15_000;
/// The errnos of a full file system or an exhausted quota.
const NO_SPACE_ERRNOS: [&str; 2] = ["ENOSPC", "EDQUOT"];

/// Why no task of a sync is assigned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(super) enum Pause {
    /// An operator paused it.
    Operator,
    /// Its storage is not usable.
    Storage {
        problem: StorageProblem,
        /// The error message.
        reason: String,
        /// Start on the scheduler's clock; a restarted master waits again in full.
        #[serde(skip)]
        since_ms: Option<u64>,
        /// Time of the next probe.
        #[serde(skip)]
        probe_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StorageProblem {
    /// The destination is full.
    NoSpace,
    /// A storage path of a worker does not lead to the directory that the worker opened.
    PathUnavailable {
        worker: WorkerId,
        /// It holds the source (else: the destination).
        at_source: bool,
        /// The worker must flush what it wrote: no other worker can.
        flush: bool,
    },
}

impl StorageProblem {
    /// The storage problem that `error` of a task reports, if any.
    fn from_error(error: &FileError, task: &Task) -> Option<StorageProblem> {
        if is_no_space(error) {
            return Some(StorageProblem::NoSpace);
        }
        let worker = error.worker_id.clone().filter(|_| is_storage_gone(error))?;
        let at_source = error.operation.ends_with("source");
        Some(StorageProblem::PathUnavailable {
            worker,
            at_source,
            flush: task.spec == TaskSpec::Flush,
        })
    }

    /// The condition that ends the pause.
    fn resolution(&self) -> &'static str {
        match self {
            StorageProblem::NoSpace => "there is room",
            StorageProblem::PathUnavailable { .. } => "it is there again",
        }
    }
}

impl Pause {
    /// Whether no task may be assigned at `now`.
    fn is_blocking(&self, now: Now) -> bool {
        match self {
            Pause::Operator => true,
            Pause::Storage { probe_ms, .. } => now.mono_ms < *probe_ms,
        }
    }

    pub(super) fn reason(&self) -> String {
        match self {
            Pause::Operator => "paused by an operator; continue with: ctl sync resume".to_owned(),
            Pause::Storage { reason: why, problem: lack, .. } => {
                format!("paused: {why}; it continues by itself when {}", lack.resolution())
            }
        }
    }
}

pub(super) fn is_storage_gone(error: &FileError) -> bool {
    error.class == ErrorClass::StorageGone
}

pub(super) fn is_no_space(error: &FileError) -> bool {
    error.errno.as_deref().is_some_and(|errno| NO_SPACE_ERRNOS.contains(&errno))
}

impl SyncJob {
    /// Whether a task may be assigned at `now`. Clean-up of an ended sync is never paused.
    pub(super) fn can_dispatch(&self, now: Now) -> bool {
        !self.is_active() || self.pause.as_ref().is_none_or(|hold| !hold.is_blocking(now))
    }

    /// Whether it is displayed as paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_active() && self.pause.is_some()
    }
}

impl State {
    pub(super) fn pause_sync(&mut self, id: &RequestId, now: Now) -> Reply {
        self.set_operator_pause(id, Some(Pause::Operator), now)
    }

    /// Resumes a sync, whatever paused it.
    pub(super) fn resume_sync(&mut self, id: &RequestId, now: Now) -> Reply {
        self.set_operator_pause(id, None, now)
    }

    fn set_operator_pause(&mut self, id: &RequestId, hold: Option<Pause>, now: Now) -> Reply {
        let Some(sync) = self.by_id.get(id).and_then(|no| self.syncs.get_mut(no)) else {
            return unknown_sync(id);
        };
        if !sync.is_active() {
            let state = sync.state.as_str();
            let verb = if hold.is_some() { "paused" } else { "resumed" };
            let detail = format!("sync `{id}` has ended, in state {state}: it cannot be {verb}");
            return refuse(Problem::new(ProblemCode::SyncEnded, detail));
        }
        if sync.pause != hold {
            let no = sync.no;
            sync.pause = hold;
            self.mark_changed(no, now);
            self.needs_dispatch = true;
        }
        self.progress_reply(id)
    }

    /// Pauses the sync if errors of a task report a storage problem. True: the task failed for that
    /// reason and is not charged for it.
    pub(super) fn pause_on_storage_errors(
        &mut self,
        task: &Task,
        errors: &[FileError],
        now: Now,
    ) -> bool {
        let lacks = errors
            .iter()
            .filter_map(|error| Some((StorageProblem::from_error(error, task)?, error)));
        let (elsewhere, lacks): (Vec<_>, Vec<_>) = lacks.partition(|(lack, _)| {
            self.is_served_elsewhere(task.sync, lack) || self.is_replaced(task.sync, lack)
        });
        // The report predates the detection of the lost or replaced path: other workers, or the
        // other root, are used from now on.
        let Some((lack, error)) = lacks.into_iter().next() else { return !elsewhere.is_empty() };
        // Data that a flush could not write are lost: a pause does not restore them.
        if lack == StorageProblem::NoSpace && task.spec == TaskSpec::Flush {
            return false;
        }
        let at = error.worker_id.as_ref().map_or_else(String::new, |w| format!(" (worker {w})"));
        self.pause_for_storage(task.sync, lack, format!("{error}{at}"), now)
    }

    /// Pauses a sync until its storage is usable. False: it does not pause (any longer), or is not
    /// active.
    pub(super) fn pause_for_storage(
        &mut self,
        no: SyncNo,
        lack: StorageProblem,
        why: String,
        now: Now,
    ) -> bool {
        let patience = self.settings.no_space_ms;
        let Some(sync) = self.syncs.get_mut(&no).filter(|s| s.is_active()) else { return false };
        if patience == 0 || sync.pause_exhausted {
            return false;
        }
        let since_ms = match &sync.pause {
            Some(Pause::Operator) => return true,
            Some(Pause::Storage { since_ms, .. }) => since_ms.unwrap_or(now.mono_ms),
            None => now.mono_ms,
        };
        let known =
            matches!(&sync.pause, Some(Pause::Storage { reason: known, .. }) if *known == why);
        let probe_ms = now.mono_ms.saturating_add(STORAGE_PROBE_INTERVAL_MS);
        if sync.pause.is_none() {
            tracing::warn!(sync = %sync.id, why, "the sync waits for its storage");
        }
        sync.pause =
            Some(Pause::Storage { problem: lack, reason: why, since_ms: Some(since_ms), probe_ms });
        if !known {
            self.mark_changed(no, now);
        }
        true
    }

    /// A write succeeded: a sync that was paused for a full destination continues.
    pub(super) fn resume_after_write(&mut self, no: SyncNo, now: Now) {
        let full =
            |hold: &Pause| matches!(hold, Pause::Storage { problem: StorageProblem::NoSpace, .. });
        if self.syncs.get(&no).and_then(|sync| sync.pause.as_ref()).is_some_and(full) {
            self.end_storage_pause(no, now);
        }
    }

    pub(super) fn end_storage_pause(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let Some(Pause::Storage { problem: lack, .. }) = &sync.pause else { return };
        tracing::info!(sync = %sync.id, "{}: the sync continues", lack.resolution());
        sync.pause = None;
        self.mark_changed(no, now);
        self.needs_dispatch = true;
    }

    /// A task of a paused sync was assigned as a probe: the next one waits an interval.
    pub(super) fn postpone_probe(&mut self, no: SyncNo, now: Now) {
        if let Some(Pause::Storage { probe_ms, .. }) =
            self.syncs.get_mut(&no).and_then(|sync| sync.pause.as_mut())
        {
            *probe_ms = now.mono_ms.saturating_add(STORAGE_PROBE_INTERVAL_MS);
        }
    }

    /// Releases syncs whose storage is usable and fails those that were paused for too long.
    pub(super) fn tick_pauses(&mut self, now: Now) {
        let served =
            self.syncs_with_tasks.iter().filter(|no| match self.syncs.get(no).map(|s| &s.pause) {
                Some(Some(Pause::Storage { problem: lack, .. })) => {
                    self.is_served_elsewhere(**no, lack)
                }
                _ => false,
            });
        for no in served.copied().collect::<Vec<SyncNo>>() {
            self.end_storage_pause(no, now);
        }
        let mut in_vain: Vec<(SyncNo, StorageProblem, String)> = Vec::new();
        let patience = self.settings.no_space_ms;
        for no in &self.syncs_with_tasks {
            let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { continue };
            match &mut sync.pause {
                Some(Pause::Storage { problem: lack, reason: why, since_ms, probe_ms }) => {
                    let since = *since_ms.get_or_insert(now.mono_ms);
                    if now.mono_ms.saturating_sub(since) > patience {
                        in_vain.push((*no, lack.clone(), why.clone()));
                    }
                    self.needs_dispatch |= *probe_ms <= now.mono_ms;
                }
                // It does not pause (again): tasks without usable storage fail at once.
                None if patience == 0 || sync.pause_exhausted => {
                    let sync = self.syncs.get(no);
                    in_vain.extend(
                        sync.and_then(|sync| self.find_unavailable_storage(sync))
                            .map(|(lack, why)| (*no, lack, why)),
                    );
                }
                _ => {}
            }
        }
        for (no, lack, why) in in_vain {
            self.fail_paused_tasks(no, &lack, &why, now);
        }
    }

    pub(super) fn next_probe_ms(&self, now: Now) -> Option<u64> {
        let holds =
            self.syncs_with_tasks.iter().filter_map(|no| self.syncs.get(no)?.pause.as_ref());
        let probes = holds.filter_map(|hold| match hold {
            Pause::Storage { probe_ms, .. } if *probe_ms > now.mono_ms => Some(*probe_ms),
            _ => None,
        });
        probes.min()
    }

    /// The maximum pause is over: tasks without a lease fail, and the sync does not pause again.
    pub(super) fn fail_paused_tasks(
        &mut self,
        no: SyncNo,
        lack: &StorageProblem,
        why: &str,
        now: Now,
    ) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        tracing::warn!(sync = %sync.id, why, "the storage did not come back: the sync fails");
        (sync.pause, sync.pause_exhausted) = (None, true);
        let waited = units::pluralize(self.settings.no_space_ms / 60_000, "minute", "minutes");
        let (why, errno, class) = match lack {
            StorageProblem::NoSpace => {
                (format!("{why}; waited {waited} for room"), Some("ENOSPC"), ErrorClass::Transient)
            }
            StorageProblem::PathUnavailable { .. } => {
                (format!("{why}; waited {waited} for it"), None, ErrorClass::StorageGone)
            }
        };
        // A failed task may add a discard of its part file, which cannot be done either.
        while let Some(id) = self.next_task_to_fail(no, lack) {
            let Some(task) = self.tasks.get(&id) else { return };
            let error = FileError {
                path: Default::default(),
                operation: task.spec.kind().to_owned(),
                errno: errno.map(str::to_owned),
                message: why.clone(),
                hint: (*lack == StorageProblem::NoSpace)
                    .then(|| FileError::NO_SPACE_HINT.to_owned()),
                worker_id: None,
                attempt: task.attempt,
                class,
            };
            self.fail_task(id, &why, Some(error), now);
        }
        self.dirty_syncs.insert(no);
        self.mark_changed(no, now);
        self.needs_dispatch = true;
    }

    /// A task without a lease that cannot be done without the storage.
    fn next_task_to_fail(&self, no: SyncNo, lack: &StorageProblem) -> Option<TaskId> {
        let mut tasks = self.syncs.get(&no)?.tasks.iter().filter_map(|id| self.tasks.get(id));
        let fails = |task: &&Task| {
            // On a full destination tasks that need no space are still done.
            let needs_room =
                !matches!(task.spec, TaskSpec::Flush | TaskSpec::Discard | TaskSpec::CleanUp);
            task.lease().is_none() && (*lack != StorageProblem::NoSpace || needs_room)
        };
        tasks.find(fails).map(|task| task.id)
    }
}
