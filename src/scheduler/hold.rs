//! Syncs that are kept from going on: by an operator, or because the destination is full.
//!
//! ```text
//! QUEUED, PROGRESS ──pause──▶ PAUSED ──resume──▶ where it was
//!        │ ▲                  PAUSED ◀─┐ a probe every now and then:
//!        │ └── a probe wrote ◀── │     │ one task is handed out
//!        └──no space left──▶ PAUSED ───┘ … in vain for too long ──▶ FAILED
//! ```
//!
//! Nothing of a paused sync is handed out. What was handed out before is finished and counts.

use super::requests::{refused, unknown};
use super::sync::Sync;
use super::task::Task;
use super::{Now, Reply, State};
use crate::wire::problem::Problem;
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::TaskSpec;
use crate::wire::{RequestId, SyncNo, TaskId};
use serde::{Deserialize, Serialize};

/// A full destination is tried again this often, in milliseconds.
const PROBE_MS: u64 = 15_000;
/// How the kernel says that a file system, or what somebody may use of it, is full.
const FULL: [&str; 2] = ["ENOSPC", "EDQUOT"];

/// Why nothing of a sync is handed out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub(super) enum Hold {
    /// An operator wants it so.
    Operator,
    /// The destination is full.
    NoSpace {
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

impl Hold {
    /// Whether nothing may be handed out at `now`.
    fn holds(&self, now: Now) -> bool {
        match self {
            Hold::Operator => true,
            Hold::NoSpace { probe_ms, .. } => now.mono_ms < *probe_ms,
        }
    }

    /// A sentence for operators.
    pub(super) fn reason(&self) -> String {
        match self {
            Hold::Operator => "paused by an operator; go on with: ctl sync resume".to_owned(),
            Hold::NoSpace { why, .. } => {
                format!("paused: {why}; it goes on by itself when there is room")
            }
        }
    }
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

    /// Whether errors of a task mean that its sync waits for room: then it does from now on, and the
    /// task is not to blame.
    pub(super) fn waits_for_room(&mut self, task: &Task, errors: &[FileError], now: Now) -> bool {
        let patience = self.settings.no_space_ms;
        let Some(error) = errors.iter().find(|e| is_full(e)) else { return false };
        // What a flush could not write is lost: to wait does not bring it back.
        if patience == 0 || task.spec == TaskSpec::Flush {
            return false;
        }
        let Some(sync) = self.syncs.get_mut(&task.sync).filter(|s| s.is_active()) else {
            return false;
        };
        if sync.waited_for_room {
            return false;
        }
        let since_ms = match &sync.hold {
            Some(Hold::Operator) => return true,
            Some(Hold::NoSpace { since_ms, .. }) => since_ms.unwrap_or(now.mono_ms),
            None => now.mono_ms,
        };
        let at = error.worker_id.as_ref().map_or_else(String::new, |w| format!(" (worker {w})"));
        let why = format!("{}{at}", error.message);
        let known = matches!(&sync.hold, Some(Hold::NoSpace { why: known, .. }) if *known == why);
        let probe_ms = now.mono_ms.saturating_add(PROBE_MS);
        if sync.hold.is_none() {
            tracing::warn!(sync = %sync.id, why, "the destination is full: the sync waits for room");
        }
        sync.hold = Some(Hold::NoSpace { why, since_ms: Some(since_ms), probe_ms });
        if !known {
            self.changed(task.sync, now);
        }
        true
    }

    /// Something of a sync was written: if it waited for room, there is some.
    pub(super) fn found_room(&mut self, no: SyncNo, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        if matches!(sync.hold, Some(Hold::NoSpace { .. })) {
            tracing::info!(sync = %sync.id, "there is room again: the sync goes on");
            sync.hold = None;
            self.changed(no, now);
            self.wake = true;
        }
    }

    /// A task of a sync was handed out: while it waits for room, the next one has to wait.
    pub(super) fn probes(&mut self, no: SyncNo, now: Now) {
        if let Some(Hold::NoSpace { probe_ms, .. }) =
            self.syncs.get_mut(&no).and_then(|sync| sync.hold.as_mut())
        {
            *probe_ms = now.mono_ms.saturating_add(PROBE_MS);
        }
    }

    /// Time passed: syncs that wait for room are tried again, or have waited for too long.
    pub(super) fn tend_holds(&mut self, now: Now) {
        let mut in_vain: Vec<(SyncNo, String)> = Vec::new();
        for no in &self.working {
            let Some(sync) = self.syncs.get_mut(no).filter(|s| s.is_active()) else { continue };
            let Some(Hold::NoSpace { why, since_ms, probe_ms }) = &mut sync.hold else { continue };
            let since = *since_ms.get_or_insert(now.mono_ms);
            if now.mono_ms.saturating_sub(since) > self.settings.no_space_ms {
                in_vain.push((*no, why.clone()));
            }
            self.wake |= *probe_ms <= now.mono_ms;
        }
        for (no, why) in in_vain {
            self.no_room(no, &why, now);
        }
    }

    /// When a sync that waits for room is tried again next.
    pub(super) fn next_probe_ms(&self, now: Now) -> Option<u64> {
        let holds = self.working.iter().filter_map(|no| self.syncs.get(no)?.hold.as_ref());
        let probes = holds.filter_map(|hold| match hold {
            Hold::NoSpace { probe_ms, .. } if *probe_ms > now.mono_ms => Some(*probe_ms),
            _ => None,
        });
        probes.min()
    }

    /// A sync has waited long enough: what nobody has in hand fails, and there is no more waiting.
    fn no_room(&mut self, no: SyncNo, why: &str, now: Now) {
        let Some(sync) = self.syncs.get_mut(&no) else { return };
        tracing::warn!(sync = %sync.id, why, "the destination stayed full: the sync gives up");
        (sync.hold, sync.waited_for_room) = (None, true);
        let minutes = self.settings.no_space_ms / 60_000;
        let why = format!("{why}; waited {minutes} minutes for room");
        let tasks: Vec<TaskId> = sync.tasks.iter().copied().collect();
        for id in tasks {
            let Some(task) = self.tasks.get(&id) else { continue };
            let fails = task.lease().is_none()
                && !matches!(task.spec, TaskSpec::Flush | TaskSpec::Discard | TaskSpec::Sweep);
            if fails {
                let error = FileError {
                    path: Default::default(),
                    operation: task.spec.kind().to_owned(),
                    errno: Some("ENOSPC".to_owned()),
                    message: why.clone(),
                    worker_id: None,
                    attempt: task.attempt,
                    class: ErrorClass::Transient,
                };
                self.give_up(id, &why, Some(error), now);
            }
        }
        self.touched.insert(no);
        self.changed(no, now);
        self.wake = true;
    }
}
