//! The pages that a scan or a prune posts while its walk goes on.

use super::job::{Job, TaskOutcome};
use crate::fs::FsError;
use crate::wire::outcome::EntryError;
use crate::wire::task::{PageAction, PageReply, ScanPage, TaskReport};
use crate::wire::{Digest, RelPath, WorkerId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A page is posted at this age even when it is not full.
pub(super) const MAX_PAGE_AGE: Duration = Duration::from_secs(1);
/// Only directories this close to the start of a task are split off. Deeper ones are rarely worth a task.
const MAX_SPLIT_DEPTH: usize = 3;

pub(super) trait PageSink: Sync {
    /// Posts a page and retries until there is a reply. The error is a message; a retry has no effect then.
    fn post_page(&self, page: &ScanPage) -> impl Future<Output = Result<PageReply, String>> + Send;
}

/// How a scan or a prune ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ScanEnd {
    /// The pages contain everything: no result is sent.
    Reported,
    Failed {
        message: String,
        error: Option<EntryError>,
        /// See [`TaskReport::unreachable`].
        unreachable: Vec<WorkerId>,
    },
}

impl ScanEnd {
    pub(super) fn failed(message: String) -> Self {
        ScanEnd::Failed { message, error: None, unreachable: Vec::new() }
    }

    /// The outcome of the task; `None` where no result is sent.
    pub(super) fn into_outcome(self, job: Job<'_>) -> Option<TaskOutcome> {
        let ScanEnd::Failed { message, error, unreachable } = self else { return None };
        let worker = &job.cx.worker_id;
        let failures = error.into_iter().map(|error| match error.worker_id {
            Some(_) => error,
            None => job.with_observer(error, worker),
        });
        let failures = failures.collect();
        let report = TaskReport { failures, unreachable, ..TaskReport::default() };
        Some(TaskOutcome { report, ..TaskOutcome::failed(message) })
    }
}

impl From<EntryError> for ScanEnd {
    fn from(error: EntryError) -> Self {
        ScanEnd::Failed { message: error.to_string(), error: Some(error), unreachable: Vec::new() }
    }
}

/// Why the thread that walks the source stopped early.
pub(super) enum WalkHalt {
    ReceiverGone,
    Failed(FsError),
}

impl From<FsError> for WalkHalt {
    fn from(error: FsError) -> Self {
        WalkHalt::Failed(error)
    }
}

/// The report on an entry that can't be read. Where this host is out of descriptors or memory, the walk halts instead:
/// the retry of the task continues from the last page.
pub(super) fn report_or_halt(error: FsError) -> Result<EntryError, WalkHalt> {
    let report = error.to_entry_error();
    if report.is_resource_exhaustion() { Err(error.into()) } else { Ok(report) }
}

/// Waits for the walking thread after all its pages; the error is why it failed.
pub(super) async fn join_walk(walk: JoinHandle<Result<(), WalkHalt>>) -> Result<(), ScanEnd> {
    match walk.await {
        Ok(Err(WalkHalt::Failed(error))) => Err(error.to_entry_error().into()),
        Ok(_) => Ok(()),
        Err(e) => Err(ScanEnd::failed(format!("listing the source panicked: {e}"))),
    }
}

/// Posts the pages of one task in order.
pub(super) struct PagePoster<'a, S> {
    sink: &'a S,
    task_digest: Digest,
    next_page: u64,
    subtree_budget: SubtreeBudget,
}

impl<'a, S: PageSink> PagePoster<'a, S> {
    pub(super) fn new(task_digest: Digest, sink: &'a S) -> Self {
        PagePoster { sink, task_digest, next_page: 0, subtree_budget: SubtreeBudget::default() }
    }

    /// For the walking thread. Each reply of the master sets it.
    pub(super) fn subtree_budget(&self) -> SubtreeBudget {
        self.subtree_budget.clone()
    }

    /// The error is the end of the walk.
    pub(super) async fn post(&mut self, page: ScanPage) -> Result<(), ScanEnd> {
        let page = ScanPage { task_digest: self.task_digest, page: self.next_page, ..page };
        match self.sink.post_page(&page).await {
            Ok(PageReply { action: PageAction::Continue, max_subtrees }) => {
                self.subtree_budget.0.store(max_subtrees, Ordering::Relaxed);
                self.next_page += 1;
                Ok(())
            }
            Ok(_) => Err(ScanEnd::Reported),
            Err(message) => Err(ScanEnd::failed(message)),
        }
    }
}

/// How many more subtrees the walk may leave to tasks of their own.
#[derive(Clone, Default)]
pub(super) struct SubtreeBudget(Arc<AtomicU32>);

impl SubtreeBudget {
    /// Whether the contents of `dir` are left to another task, found by a task that started at `start`.
    pub(super) fn try_split_off(&self, start: &RelPath, dir: &RelPath) -> bool {
        let depth = dir.components().count().saturating_sub(start.components().count());
        let take = |budget: u32| budget.checked_sub(1);
        (1..=MAX_SPLIT_DEPTH).contains(&depth)
            && self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}
