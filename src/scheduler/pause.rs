//! Syncs that are paused: by an operator, because the destination is full, or because a storage path does not lead to
//! the directory that its worker opened ([`storage_watch`](super::storage_watch)).
//!
//! ```text
//! Running  | an operator pauses it               | Operator
//! Running  | its destination is full             | Storage
//! Operator | an operator resumes it              | Running
//! Storage  | an operator resumes it              | Running
//! Storage  | an operator pauses it               | Operator
//! Storage  | a probe writes                      | Running
//! Storage  | probes fail for too long            | Ended
//! ```
//!
//! No task of a paused sync is assigned. Tasks that were leased before are finished and count.

use super::event::Now;
use super::task::Task;
use crate::wire::WorkerId;
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::task::TaskSpec;
use serde::{Deserialize, Serialize};

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
    pub(super) fn from_error(error: &EntryError, task: &Task) -> Option<StorageProblem> {
        if error.is_no_space() {
            return Some(StorageProblem::NoSpace);
        }
        // The content can be read at the source.
        if error.side == Some(Side::Relay) {
            return None;
        }
        let is_gone = error.class == ErrorClass::StorageGone;
        Some(StorageProblem::PathUnavailable {
            worker: error.worker_id.clone().filter(|_| is_gone)?,
            at_source: error.is_source_error(),
            flush: task.spec == TaskSpec::Flush,
        })
    }

    /// The condition that ends the pause.
    pub(super) fn resolution(&self) -> &'static str {
        match self {
            StorageProblem::NoSpace => "there is room",
            StorageProblem::PathUnavailable { .. } => "it is there again",
        }
    }
}

impl Pause {
    /// Whether no task may be assigned at `now`.
    pub(super) fn is_blocking(&self, now: Now) -> bool {
        match self {
            Pause::Operator => true,
            Pause::Storage { probe_ms, .. } => now.mono_ms < *probe_ms,
        }
    }

    pub(super) fn reason(&self) -> String {
        match self {
            Pause::Operator => "paused by an operator; continue with: ctl sync resume".to_owned(),
            Pause::Storage { reason: why, problem, .. } => {
                format!("paused: {why}; it continues by itself when {}", problem.resolution())
            }
        }
    }
}
