//! Tasks.

use super::relay_table::UnitNo;
use crate::util::units;
use crate::wire::outcome::EntryError;
use crate::wire::task::TaskSpec;
use crate::wire::{AssignmentId, BytePath, Digest, SyncNo, TaskId, WorkerId};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of failed attempts that are not charged; they are half a minute apart.
const MAX_UNCHARGED_RETRIES: u32 = 120;

/// Time for which other workers are preferred after a loss or a revoked lease.
pub(super) const DEPRIORITISED_MS: u64 = 5 * 60 * 1000;

/// A unit of work. A test walks the table of its states: what it is, what happens, what it is then.
///
/// ```text
/// Ready   | a worker polls                     | Leased
/// Leased  | the agent returns it               | Ready
/// Leased  | the lease expires                  | Ready
/// Leased  | its agent restarts                 | Ready
/// Leased  | an operator reassigns it           | Ready
/// Leased  | it fails, another worker is able   | Ready
/// Leased  | it fails, no other worker is able  | Delayed
/// Leased  | it fails for good                  | Removed
/// Leased  | it is done                         | Removed
/// Delayed | the delay ends                     | Ready
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) sync: SyncNo,
    pub(super) spec: TaskSpec,
    pub(super) manifest_key: Option<String>,
    /// The manifest's size in the store; counted against the window.
    pub(super) manifest_bytes: u64,
    /// A result must carry it.
    pub(super) digest: Digest,
    /// Number of leases.
    pub(super) attempt: u32,
    pub(super) history: RetryHistory,
    /// Its manifest could not be split: its entries stay one task.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_unsplittable: bool,
    /// For a range or commit: its file.
    pub(super) large_file: Option<TaskId>,
    /// For a flush: the worker that wrote.
    pub(super) pinned_to: Option<WorkerId>,
    /// For a flush: since when no worker can do it, on the scheduler's clock.
    #[serde(skip)]
    pub(super) waiting_since_ms: u64,
    /// Until then other workers are preferred, on the scheduler's clock. Not for ever: they may
    /// never poll.
    #[serde(skip)]
    pub(super) deprioritised_until_ms: u64,
    /// What other destinations of the sync get as well.
    #[serde(skip)]
    pub(super) unit: Option<UnitNo>,
    pub(super) state: TaskState,
}

/// The earlier attempts of a task, and of the task that it replaces.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RetryHistory {
    /// Number of failed attempts.
    pub(super) failures: u32,
    /// Failed attempts that are not charged: for lack of descriptors or memory, or while the workers of the destination
    /// may be restarting.
    #[serde(rename = "resource_retries")]
    pub(super) uncharged_retries: u32,
    /// Since when no worker of the destination could be reached, on the scheduler's clock, as far as that is not charged.
    #[serde(skip)]
    pub(super) unreached_since_ms: Option<u64>,
    /// Workers that failed it: others are preferred.
    pub(super) failed_on: BTreeSet<WorkerId>,
    /// Processes with which it was lost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) losses: Vec<WorkerLoss>,
    /// The name of its only entry, if it was isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<BytePath>,
    pub(super) last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TaskState {
    /// May be assigned.
    Ready,
    /// Waits before a retry. A restart of the master ends the delay.
    Delayed {
        /// On the scheduler's clock.
        #[serde(skip)]
        until_ms: u64,
    },
    /// Assigned to a worker.
    Leased(Lease),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Random and unique.
    pub(super) assignment: AssignmentId,
    pub(super) worker: WorkerId,
    /// The process of the worker.
    pub(super) incarnation: Option<String>,
    /// A repeat of this poll gets the lease again.
    pub(super) poll_id: Option<String>,
    /// On the scheduler's clock. Not stored: a restarted master grants a whole lease.
    #[serde(skip)]
    pub(super) deadline_ms: u64,
    /// On the scheduler's clock; after a restart of the master, the time of that.
    #[serde(skip)]
    pub(super) granted_ms: u64,
    pub(super) next_page: u64,
    /// Content bytes moved so far, as reported.
    #[serde(skip)]
    pub(super) moved_bytes: u64,
    /// The copy that is sent; `None`: the source is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) relay: Option<LeasedRelay>,
}

/// The copy of another destination that a worker sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LeasedRelay {
    /// The sync of that destination.
    pub(super) holder: SyncNo,
    /// Of a range: the digest that it has at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<Digest>,
}

impl Task {
    /// A ready task without a manifest. It gets its number and digest when it is added.
    pub(super) fn new(sync: SyncNo, spec: TaskSpec) -> Task {
        Task {
            id: TaskId(0),
            sync,
            spec,
            manifest_key: None,
            manifest_bytes: 0,
            digest: Digest([0; 32]),
            attempt: 0,
            history: RetryHistory::default(),
            is_unsplittable: false,
            large_file: None,
            pinned_to: None,
            waiting_since_ms: 0,
            deprioritised_until_ms: 0,
            unit: None,
            state: TaskState::Ready,
        }
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            TaskState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether errors report a lack of descriptors or memory, so that the attempt is not charged
    /// (for about an hour).
    pub(super) fn hit_resource_shortage(&self, errors: &[EntryError]) -> bool {
        // A flush may have lost data with the memory; one that could not open its files did not
        // run.
        let may_have_lost_data =
            |e: &EntryError| self.spec == TaskSpec::Flush && e.os_error() == Some(Errno::NOMEM);
        self.may_retry_uncharged()
            && errors.iter().any(|e| e.is_resource_exhaustion() && !may_have_lost_data(e))
    }

    pub(super) fn may_retry_uncharged(&self) -> bool {
        self.history.uncharged_retries < MAX_UNCHARGED_RETRIES
    }

    /// Whether workers that serve the source do it (else: the destination).
    pub(super) fn runs_at_source(&self) -> bool {
        !matches!(self.spec, TaskSpec::Commit { .. } | TaskSpec::Discard | TaskSpec::Flush)
    }

    pub(super) fn writes_destination(&self) -> bool {
        use TaskSpec::{CleanUp, Commit, Copy, Discard, Flush, List, Prune, Range, Scan};
        match self.spec {
            // A comparison also creates parent directories or links.
            Copy { .. } | Range { .. } | Commit { .. } | CleanUp => true,
            Prune { apply, .. } => apply,
            Scan { .. } | List { .. } | Discard | Flush => false,
        }
    }

    /// Whether it walks a tree and posts pages.
    pub(super) fn is_scan(&self) -> bool {
        use TaskSpec::{List, Prune, Scan};
        matches!(self.spec, Scan { .. } | List { .. } | Prune { .. })
    }

    pub(super) fn may_leave_link_anchors(&self) -> bool {
        matches!(self.spec, TaskSpec::Copy { .. } | TaskSpec::Commit { .. })
    }

    pub(super) fn record_key(&self) -> String {
        format!("t/{}/{}", self.sync, self.id)
    }

    /// The workers with which it was lost, with the number of times if more than one.
    pub(super) fn describe_losses(&self) -> String {
        let mut times: BTreeMap<&WorkerId, usize> = BTreeMap::new();
        for loss in &self.history.losses {
            *times.entry(&loss.worker).or_default() += 1;
        }
        let words = times.into_iter().map(|(worker, n)| match n {
            1 => worker.to_string(),
            n => format!("{worker} ({n} times)"),
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// For messages.
    pub(super) fn description(&self) -> String {
        match (&self.spec, &self.history.entry) {
            (spec, Some(path)) if path.0.is_empty() => {
                format!("the {} task of the root", spec.kind())
            }
            (spec, Some(path)) => format!("the {} task of `{path}`", spec.kind()),
            (TaskSpec::Copy { files, dirs, .. }, None) => {
                format!("a copy task of {}", units::pluralize(files + dirs, "entry", "entries"))
            }
            (spec, None) => format!("a {} task", spec.kind()),
        }
    }

    /// Whether it is split into one task for each entry.
    pub(super) fn needs_split(&self) -> bool {
        matches!(self.spec, TaskSpec::Copy { files, dirs, .. } if files + dirs > 1)
            && !self.is_unsplittable
    }

    /// Whether its manifest names its entry.
    pub(super) fn has_entry_manifest(&self) -> bool {
        use TaskSpec::{Commit, Copy, Range};
        matches!(self.spec, Copy { .. } | Range { .. } | Commit { .. })
    }

    pub(super) fn failed_or_lost_on(&self, worker: &WorkerId) -> bool {
        self.history.failed_on.contains(worker)
            || self.history.losses.iter().any(|loss| loss.worker == *worker)
    }
}

/// The digest of all that identifies a task.
pub(super) fn task_digest(sync: SyncNo, id: TaskId, spec: &TaskSpec, manifest: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key("longhaul 2026 task digest");
    hasher.update(&sync.0.to_le_bytes());
    hasher.update(&id.0.to_le_bytes());
    hasher.update(&serde_json::to_vec(spec).unwrap_or_default());
    hasher.update(blake3::hash(manifest).as_bytes());
    hasher.finalize().into()
}

/// A process with which a task was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkerLoss {
    pub(super) worker: WorkerId,
    pub(super) incarnation: Option<String>,
}
