//! Pruning: finds, and deletes, what a subtree of the destination has and the source does not.
//!
//! A thread [walks](walker) the directories of the source in the order of a scan and lists the names in each. Every
//! interval of names is sent to a destination, which finds the other names that it has there. The names of a
//! directory come before the directories in it, so a cursor identifies the directory that was done last. Nothing
//! below a source directory that can't be listed counts as missing.

mod walker;

use super::batch::{MAX_PAGE_SUBTREES, merge_warnings};
use super::batch_outcome::file_record;
use super::job::{DestinationPicker, Job};
use super::pages::{MAX_PAGE_AGE, PagePoster, PageSink, ScanEnd, join_walk};
use crate::data::Destination;
use crate::data::PruneRequest;
use crate::fs::{EARLIER_TRASH_KEPT, Filter, PruneOutcome, Tree, spawn_blocking};
use crate::wire::RelPath;
use crate::wire::entry_report::{EntryAction, FileState};
use crate::wire::options::{FilterSpec, Links, SyncOptions};
use crate::wire::outcome::{EntryError, ErrorClass};
use crate::wire::preserve::Attribute;
use crate::wire::task::{Cursor, PruneReport, ScanPage, TaskSpec};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use walker::{PruneWalker, WalkStep};

const MAX_PAGE_NAMES: usize = 16_384;
/// A page with so many records or errors is posted even in the middle of a directory.
const MAX_PAGE_RECORDS: usize = 2048;

pub(super) struct PruneSpec {
    /// Below both roots.
    pub(super) dir: RelPath,
    pub(super) cursor: Option<Cursor>,
    /// Delete, not only count.
    pub(super) apply: bool,
    pub(super) filter: Arc<Filter>,
}

pub(super) async fn prune_subtree(
    job: Job<'_>,
    source: Tree,
    spec: PruneSpec,
    sink: &impl PageSink,
) -> ScanEnd {
    let poster = PagePoster::new(job.assignment.task_digest, sink);
    let (sender, mut steps) = mpsc::channel(1);
    let identity = source.identity().clone();
    let walker =
        PruneWalker::new(source, &job.assignment.options, &spec, poster.subtree_budget(), sender);
    let cursor = spec.cursor.clone();
    let walk = spawn_blocking(&identity, move || walker.walk(cursor));
    let mut pruner = Pruner {
        job,
        picker: job.destination_picker(),
        destination: None,
        poster,
        spec,
        page: prune_page(),
        names_in_page: 0,
        page_started: Instant::now(),
    };
    let pruned = async {
        while let Some(step) = steps.recv().await {
            pruner.apply_step(step).await?;
        }
        join_walk(walk).await?;
        pruner.post_page(None).await
    };
    pruned.await.err().unwrap_or(ScanEnd::Reported)
}

/// Whether every entry of the source that is not a directory and not excluded by a pattern is copied, even over a
/// directory.
pub(super) fn can_replace_directories(options: &SyncOptions) -> bool {
    let FilterSpec { rules: _, min_size, max_size, newer_than, older_than } = &options.filter;
    let sized = min_size.is_some() || max_size.is_some();
    let aged = newer_than.is_some() || older_than.is_some();
    let kinds = [Attribute::Specials, Attribute::Devices];
    !(sized || aged || options.ignore_existing || options.links == Links::Skip)
        && kinds.iter().all(|kind| options.preserve.contains(*kind))
}

fn prune_page() -> ScanPage {
    ScanPage { pruned: Some(PruneReport::default()), ..ScanPage::default() }
}

/// The part that sends requests to destinations and posts pages.
struct Pruner<'a, S> {
    job: Job<'a>,
    picker: DestinationPicker<'a>,
    /// The destination of the last request; it is used until it fails.
    destination: Option<Destination>,
    poster: PagePoster<'a, S>,
    /// Its cursor is after the last complete directory.
    spec: PruneSpec,
    page: ScanPage,
    names_in_page: usize,
    page_started: Instant,
}

impl<S: PageSink> Pruner<'_, S> {
    async fn apply_step(&mut self, step: WalkStep) -> Result<(), ScanEnd> {
        match step {
            WalkStep::Root(root, identity) => {
                self.page.root = Some(root);
                self.page.root_identity = identity;
                // The master compares it with the source that was copied. It stops the prune before the first
                // deletion where the root is another one or empty.
                if self.spec.apply {
                    self.post_and_continue().await?;
                }
            }
            WalkStep::Names(request) => self.prune_interval(request).await?,
            WalkStep::Failed(error) => {
                let error = self.job.with_observer(error, &self.job.cx.worker_id);
                self.page.errors.push(error);
            }
            WalkStep::SplitOff(dir) => self.page.subtrees.push(dir),
            WalkStep::Completed(cursor) => {
                self.spec.cursor = Some(cursor);
                if self.page_started.elapsed() >= MAX_PAGE_AGE
                    || self.names_in_page >= MAX_PAGE_NAMES
                    || self.page.subtrees.len() >= MAX_PAGE_SUBTREES
                    || self.page.errors.len() >= MAX_PAGE_RECORDS
                {
                    self.post_and_continue().await?;
                }
            }
        }
        Ok(())
    }

    /// Prunes the interval of `request` in as many requests as the destination needs.
    async fn prune_interval(&mut self, mut request: PruneRequest) -> Result<(), ScanEnd> {
        self.names_in_page += request.names.len();
        loop {
            let mut outcome = self.send_request(&request).await?;
            request.resume = outcome.resume.take();
            self.page.allowance_used_up = outcome.allowance_exhausted;
            self.add_outcome(outcome);
            if self.page.allowance_used_up {
                // The master ends the deletion.
                self.post_and_continue().await?;
                let message = "more entries are extra than may be deleted";
                return Err(ScanEnd::failed(message.to_owned()));
            }
            if self.page.records.len() >= MAX_PAGE_RECORDS
                || self.page.errors.len() >= MAX_PAGE_RECORDS
            {
                // In the middle of a directory. Its counts go with the page that ends after the directory:
                // a task that continues from the cursor counts the directory again.
                let pruned = self.page.pruned.replace(PruneReport::default());
                let warnings = std::mem::take(&mut self.page.warnings);
                self.post_and_continue().await?;
                (self.page.pruned, self.page.warnings) = (pruned, warnings);
            }
            if request.resume.is_none() {
                return Ok(());
            }
        }
    }

    /// Sends a request to one destination after the other. What one has deleted, the next does not find.
    async fn send_request(&mut self, request: &PruneRequest) -> Result<PruneOutcome, ScanEnd> {
        loop {
            let Some(to) = self.destination.take().or_else(|| self.picker.pick_next()) else {
                let outcome = self.picker.fail_exhausted();
                return Err(ScanEnd::Failed {
                    message: outcome.message.unwrap_or_default(),
                    error: None,
                    unreachable: outcome.report.unreachable,
                });
            };
            match to.request(request.clone()).await {
                Ok(mut outcome) => {
                    self.job.mark_wrote(to.worker());
                    for error in &mut outcome.errors {
                        *error = self.job.with_observer(error.clone(), to.worker());
                    }
                    use ErrorClass::{InvalidRequest, StorageGone};
                    let ends_prune = |e: &&EntryError| {
                        e.is_resource_exhaustion()
                            || matches!(e.class, StorageGone | InvalidRequest)
                    };
                    if let Some(error) = outcome.errors.iter().find(ends_prune) {
                        return Err(error.clone().into());
                    }
                    self.destination = Some(to);
                    return Ok(outcome);
                }
                Err(error) => self.picker.record_failure(to.worker(), &error),
            }
        }
    }

    fn add_outcome(&mut self, outcome: PruneOutcome) {
        let sum = self.page.pruned.get_or_insert_default();
        sum.checked = sum.checked.saturating_add(outcome.pruned.checked);
        sum.extraneous = sum.extraneous.saturating_add(outcome.pruned.extraneous);
        sum.bytes = sum.bytes.saturating_add(outcome.pruned.bytes);
        self.page.errors.extend(outcome.errors);
        // Every prune counts first, even where nothing is to be deleted.
        if !self.spec.apply && outcome.old_trash.count > 0 {
            let warning = [(EARLIER_TRASH_KEPT.to_owned(), outcome.old_trash)].into();
            merge_warnings(&mut self.page.warnings, warning);
        }
        let options = &self.job.assignment.options;
        // Counted entries are deleted, and recorded, later; a dry run deletes nothing later.
        if options.record && (self.spec.apply || options.dry_run) {
            let (state, action) = (FileState::Deleted, EntryAction::Delete);
            let removed = outcome.removed.into_iter();
            let records =
                removed.map(|(path, bytes)| file_record(&path, state, action, bytes, None));
            self.page.records.extend(records);
        }
    }

    async fn post_and_continue(&mut self) -> Result<(), ScanEnd> {
        let PruneSpec { dir, cursor, apply, .. } = &self.spec;
        let next = TaskSpec::Prune { dir: dir.clone(), cursor: cursor.clone(), apply: *apply };
        self.post_page(Some(next)).await
    }

    async fn post_page(&mut self, next: Option<TaskSpec>) -> Result<(), ScanEnd> {
        let page = std::mem::replace(&mut self.page, prune_page());
        self.poster.post(ScanPage { next, ..page }).await?;
        (self.names_in_page, self.page_started) = (0, Instant::now());
        Ok(())
    }
}
