//! Syncs that are kept from going on: by an operator, because the destination is full, or because a storage path does
//! not lead to what its worker opened ([`storage_tree`](super::storage)).
//!
//! ```text
//! QUEUED, PROGRESS ──pause──▶ PAUSED ──resume──▶ where it was
//!        │ ▲                  PAUSED ◀─┐ a probe every now and then:
//!        │ └── a probe wrote ◀── │     │ one task is handed out
//!        └──no space left,──▶ PAUSED ──┘ … in vain for too long ──▶ FAILED
//!           storage gone
//! ```
//!
//! Nothing of a paused sync is handed out. What was handed out before is finished and counts.

use super::requests::{refused, unknown};
use super::sync::Sync;
use super::task::Task;
use super::{Now, Reply, State};
use crate::util::units;
use crate::wire::problem::Problem;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::TaskSpec;
use crate::wire::{RequestId, SyncNo, TaskId, WorkerId};
use serde::{Deserialize, Serialize};

/// Storage that is full, or not there, is tried again this often, in milliseconds.
const PROBE_MS: u64 = 15_000;
/// How the kernel says that a file system, or what somebody may use of it, is full.
const FULL: [&str; 2] = ["ENOSPC", "EDQUOT"];

/// Why nothing of a sync is handed out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(super) enum Hold {
    /// An operator wants it so.
    Operator,
    /// It waits for its storage.
    Storage {
        /// What is missing.
        lack: Lack,
        /// What was found, in a sentence.
        why: String,
        /// Since when, on the scheduler's clock; a restarted master waits anew.
        #[serde(skip)]
        since_ms: Option<u64>,
        /// When it is tried again.
        #[serde(skip)]
        probe_ms: u64,
    },
}

/// What a sync lacks at its storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lack {
    /// The destination is full.
    Room,
    /// A storage path of a worker does not lead to what the worker opened.
    Root {
        /// Whose.
        worker: WorkerId,
        /// It holds the source (else: the destination).
        at_source: bool,
        /// It is what the worker wrote that is to be flushed: no other worker helps.
        flush: bool,
    },
}

impl Lack {
    /// What `error` of a task says is missing, if it says so.
    fn of(error: &FileError, task: &Task) -> Option<Lack> {
        if is_full(error) {
            return Some(Lack::Room);
        }
        let worker = error.worker_id.clone().filter(|_| is_storage_gone(error))?;
        let at_source = error.operation.ends_with("source");
        Some(Lack::Root { worker, at_source, flush: task.spec == TaskSpec::Flush })
    }

    /// What ends the waiting, in words.
    fn end(&self) -> &'static str {
        match self {
            Lack::Room => "there is room",
            Lack::Root { .. } => "it is there again",
        }
    }
}

impl Hold {
    /// Whether nothing may be handed out at `now`.
    fn holds(&self, now: Now) -> bool {
        match self {
            Hold::Operator => true,
            Hold::Storage { probe_ms, .. } => now.mono_ms < *probe_ms,
        }
    }

    /// A sentence for operators.
    pub(super) fn reason(&self) -> String {
        match self {
            Hold::Operator => "paused by an operator; continue with: ctl sync resume".to_owned(),
            Hold::Storage { why, lack, .. } => {
                format!("paused: {why}; it continues by itself when {}", lack.end())
            }
        }
    }
}

/// Whether an error says that a storage path does not lead to what its worker opened.
pub(super) fn is_storage_gone(error: &FileError) -> bool {
    error.class == ErrorClass::StorageGone
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &FileError) -> bool {
    error.errno.as_deref().is_some_and(|errno| FULL.contains(&errno))
}

impl Sync {
    /// Whether something of it may be handed out at `now`. What an ended sync leaves behind is removed
    /// in any case.
    pub(super) fn goes_on(&self, now: Now) -> bool {
        !self.is_active() || self.hold.as_ref().is_none_or(|hold| !hold.holds(now))
    }

    /// Whether it is shown as paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_active() && self.hold.is_some()
    }
}

impl State {
    /// Hands out nothing more of a sync until it is resumed.
    pub(super) fn pause(&mut self, id: &RequestId, now: Now) -> Reply {
        self.set_hold(id, Some(Hold::Operator), now)
    }

    /// Lets a sync go on, whyever it was paused.
    pub(super) fn resume(&mut self, id: &RequestId, now: Now) -> Reply {
        self.set_hold(id, None, now)
    }

    fn set_hold(&mut self, id: &RequestId, hold: Option<Hold>, now: Now) -> Reply {
        let Some(sync) = self.by_id.get(id).and_then(|no| self.syncs.get_mut(no)) else {
            return unknown(id);
        };
        if !sync.is_active() {
            let state = sync.state.as_str();
            let verb = if hold.is_some() { "paused" } else { "resumed" };
            let detail = format!("sync `{id}` has ended, in state {state}: it cannot be {verb}");
            return refused(Problem::new(409, "Conflict", "sync_ended", detail));
        }
        if sync.hold != hold {
            let no = sync.no;
            sync.hold = hold;
            self.changed(no, now);
            self.wake = true;
        }
        self.progress(id)
    }

    /// Whether errors of a task mean that its sync waits for its storage: then it does from now on, and the
    /// task is not to blame.
    pub(super) fn waits_for_storage(
        &mut self,
        task: &Task,
        errors: &[FileError],
        now: Now,
    ) -> bool {
        let lacks = errors.iter().filter_map(|error| Some((Lack::of(error, task)?, error)));
        let (elsewhere, lacks): (Vec<_>, Vec<_>) = lacks.partition(|(lack, _)| {
            self.is_served_elsewhere(task.sync, lack) || self.is_replaced(task.sync, lack)
        });
        // The report is of a time before the path was known to be gone, or to lead elsewhere: other workers, or the
        // other root, are asked from now on.
        let Some((lack, error)) = lacks.into_iter().next() else { return !elsewhere.is_empty() };
        // What a flush could not write is lost: to wait does not bring it back.
        if lack == Lack::Room && task.spec == TaskSpec::Flush {
            return false;
        }
        let at = error.worker_id.as_ref().map_or_else(String::new, |w| format!(" (worker {w})"));
        self.hold(task.sync, lack, format!("{error}{at}"), now)
    }

    /// Has a sync wait for its storage. False: it does not wait (any longer), or is not active.
    pub(super) fn hold(&mut self, no: SyncNo, lack: Lack, why: String, now: Now) -> bool {
        let patience = self.settings.no_space_ms;
        let Some(sync) = self.syncs.get_mut(&no).filter(|s| s.is_active()) else { return false };
        if patience == 0 || sync.waited_for_room {
            return false;
        }
        let since_ms = match &sync.hold {
            Some(Hold::Operator) => return true,
            Some(Hold::Storage { since_ms, .. }) => since_ms.unwrap_or(now.mono_ms),
            None => now.mono_ms,
        };
        let known = matches!(&sync.hold, Some(Hold::Storage { why: known, .. }) if *known == why);
        let probe_ms = now.mono_ms.saturating_add(PROBE_MS);
        if sync.hold.is_none() {
            tracing::warn!(sync = %sync.id, why, "the sync waits for its storage");
        }
        sync.hold = Some(Hold::Storage { lack, why, since_ms: Some(since_ms), probe_ms });
        if !known {
            self.changed(no, now);
        }
        true
    }

    /// Something of a sync was written: if it waited for room, there is some.
    pub(super) fn found_room(&mut self, no: SyncNo, now: Now) {
        let full = |hold: &Hold| matches!(hold, Hold::Storage { lack: Lack::Room, .. });
        if self.syncs.get(&no).and_then(|sync| sync.hold.as_ref()).is_some_and(full) {
            self.release(no, now);
        }
    }

    /// A sync that waited for its storage goes on.
    pub(super) fn release(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        let Some(Hold::Storage { lack, .. }) = &sync.hold else { return };
        tracing::info!(sync = %sync.id, "{}: the sync continues", lack.end());
        sync.hold = None;
        self.changed(no, now);
        self.wake = true;
    }

    /// A task of a sync was handed out: while it waits for its storage, the next one has to wait.
    pub(super) fn probes(&mut self, no: SyncNo, now: Now) {
        if let Some(Hold::Storage { probe_ms, .. }) =
            self.syncs.get_mut(&no).and_then(|sync| sync.hold.as_mut())
        {
            *probe_ms = now.mono_ms.saturating_add(PROBE_MS);
        }
    }

    /// Time passed: syncs that wait for their storage are tried again, or have waited for too long.
    pub(super) fn tend_holds(&mut self, now: Now) {
        let served = self.working.iter().filter(|no| match self.syncs.get(no).map(|s| &s.hold) {
            Some(Some(Hold::Storage { lack, .. })) => self.is_served_elsewhere(**no, lack),
            _ => false,
        });
        for no in served.copied().collect::<Vec<SyncNo>>() {
            self.release(no, now);
        }
        let mut in_vain: Vec<(SyncNo, Lack, String)> = Vec::new();
        let patience = self.settings.no_space_ms;
        for no in &self.working {
            let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { continue };
            match &mut sync.hold {
                Some(Hold::Storage { lack, why, since_ms, probe_ms }) => {
                    let since = *since_ms.get_or_insert(now.mono_ms);
                    if now.mono_ms.saturating_sub(since) > patience {
                        in_vain.push((*no, lack.clone(), why.clone()));
                    }
                    self.wake |= *probe_ms <= now.mono_ms;
                }
                // It does not wait (again): what needs storage that is not there fails at once.
                None if patience == 0 || sync.waited_for_room => {
                    let sync = self.syncs.get(no);
                    in_vain.extend(
                        sync.and_then(|sync| self.lost_storage(sync))
                            .map(|(lack, why)| (*no, lack, why)),
                    );
                }
                _ => {}
            }
        }
        for (no, lack, why) in in_vain {
            self.give_up_waiting(no, &lack, &why, now);
        }
    }

    /// When a sync that waits for its storage is tried again next.
    pub(super) fn next_probe_ms(&self, now: Now) -> Option<u64> {
        let holds = self.working.iter().filter_map(|no| self.syncs.get(no)?.hold.as_ref());
        let probes = holds.filter_map(|hold| match hold {
            Hold::Storage { probe_ms, .. } if *probe_ms > now.mono_ms => Some(*probe_ms),
            _ => None,
        });
        probes.min()
    }

    /// A sync has waited long enough: what nobody has in hand fails, and there is no more waiting.
    pub(super) fn give_up_waiting(&mut self, no: SyncNo, lack: &Lack, why: &str, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        tracing::warn!(sync = %sync.id, why, "the storage did not come back: the sync fails");
        (sync.hold, sync.waited_for_room) = (None, true);
        let waited = units::pluralize(self.settings.no_space_ms / 60_000, "minute", "minutes");
        let (why, errno, class) = match lack {
            Lack::Room => {
                (format!("{why}; waited {waited} for room"), Some("ENOSPC"), ErrorClass::Transient)
            }
            Lack::Root { .. } => {
                (format!("{why}; waited {waited} for it"), None, ErrorClass::StorageGone)
            }
        };
        // What is given up may leave a part file to be discarded: that can't be done either.
        while let Some(id) = self.next_to_give_up(no, lack) {
            let Some(task) = self.tasks.get(&id) else { return };
            let error = FileError {
                path: Default::default(),
                operation: task.spec.kind().to_owned(),
                errno: errno.map(str::to_owned),
                message: why.clone(),
                hint: (*lack == Lack::Room).then(|| FileError::NO_SPACE_HINT.to_owned()),
                worker_id: None,
                attempt: task.attempt,
                class,
            };
            self.give_up(id, &why, Some(error), now);
        }
        self.touched.insert(no);
        self.changed(no, now);
        self.wake = true;
    }

    /// A task of a sync that can't be done for want of its storage and that nobody has in hand.
    fn next_to_give_up(&self, no: SyncNo, lack: &Lack) -> Option<TaskId> {
        let mut tasks = self.syncs.get(&no)?.tasks.iter().filter_map(|id| self.tasks.get(id));
        let fails = |task: &&Task| {
            // Where there is no room, what needs none is done.
            let needs_room =
                !matches!(task.spec, TaskSpec::Flush | TaskSpec::Discard | TaskSpec::CleanUp);
            task.lease().is_none() && (*lack != Lack::Room || needs_room)
        };
        tasks.find(fails).map(|task| task.id)
    }
}
