//! Scans and lists: a thread walks (or looks up names) and cuts pages; each page is posted in order,
//! with the place to go on from, while the next one is made.

use super::batch::BatchBuilder;
use crate::fs::{Cause, Filter, FsError, LINKS_SKIPPED, Side, ThreadCwd, Tree, Walk, WalkOptions};
use crate::wire::manifest::{Entry, EntryKind, FileListPart};
use crate::wire::options::{EntryWarnings, Links};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{
    Cursor, PageAction, PageReply, RootIdentity, RootState, ScanPage, TaskSpec,
};
use crate::wire::{BytePath, Digest, RelPath};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A page is posted after this, full or not.
const MAX_PAGE_AGE: Duration = Duration::from_secs(1);
/// Only directories this close to where the scan began are given away: deeper ones are rarely worth
/// a task of their own.
const MAX_SPLIT_DEPTH: usize = 3;

/// Where pages go to.
pub trait PageSink: Sync {
    /// Posts a page; tries again until it is answered.
    ///
    /// # Errors
    /// A sentence, when that is of no use.
    fn post_page(&self, page: &ScanPage) -> impl Future<Output = Result<PageReply, String>> + Send;
}

/// How a scan ended.
#[derive(Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// The master knows all there is to know: no result is to be sent.
    Reported,
    /// It could not begin, or not go on.
    Failed {
        /// A sentence.
        message: String,
        /// The entry at fault.
        error: Option<FileError>,
    },
}

/// What is walked.
pub enum Listing {
    /// A subtree.
    Subtree {
        /// Below the source root.
        dir: RelPath,
        /// Go on behind this.
        cursor: Option<Cursor>,
    },
    /// Names, from the one at `start`.
    Names {
        /// The part of the list.
        list: FileListPart,
        /// An index into it.
        start: u64,
    },
}

impl Listing {
    /// Whether nothing of the source was listed before.
    pub fn starts_at_root(&self) -> bool {
        match self {
            Listing::Subtree { dir, cursor } => dir.is_root() && cursor.is_none(),
            Listing::Names { start, .. } => *start == 0,
        }
    }
}

/// How it is listed.
#[derive(Clone, Default)]
pub struct ScanOptions {
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What is done with symbolic links.
    pub links: Links,
    /// What the destination is here, see [`WalkOptions`].
    pub destination: Option<(u64, u64)>,
    /// Directories of a list stand for all that is in them.
    pub recursive: bool,
    /// Nothing is going to be sent: no file is cut into ranges.
    pub without_ranges: bool,
    /// Files with holes are cut by their data ([`BatchBuilder::ranges_by_data`]).
    pub ranges_by_data: bool,
}

/// A page without its number.
struct PageDraft {
    content: super::batch::PageContent,
    root: Option<RootState>,
    start: Option<RootIdentity>,
    next: Option<TaskSpec>,
}

/// The walking thread's side.
struct ScanWalker {
    source: Tree,
    options: ScanOptions,
    builder: BatchBuilder,
    chunk_bytes: u64,
    /// What the root of the whole source is, until it is said.
    root: Option<RootState>,
    /// The identity of the source root, until it is in a page.
    start: Option<RootIdentity>,
    page_started: Instant,
    /// How many subtrees may be given away.
    subtree_budget: Arc<AtomicU32>,
    drafts: mpsc::Sender<PageDraft>,
}

/// Why the walker stopped.
enum WalkHalt {
    /// Nobody wants more.
    ReceiverGone,
    Failed(FsError),
}

/// Lists `listing` of `source` into pages with batches of at most `chunk` bytes.
pub async fn scan_source(
    source: Tree,
    listing: Listing,
    manner: ScanOptions,
    chunk: u64,
    task_digest: Digest,
    pages: &impl PageSink,
) -> ScanEnd {
    let spawn = Arc::new(AtomicU32::new(0));
    let (to, mut drafts) = mpsc::channel(1);
    let mut walker = ScanWalker {
        source,
        builder: if manner.without_ranges {
            BatchBuilder::without_ranges(chunk)
        } else {
            BatchBuilder::new(chunk)
        }
        .ranges_by_data(manner.ranges_by_data),
        chunk_bytes: chunk,
        options: manner,
        root: None,
        start: None,
        page_started: Instant::now(),
        subtree_budget: spawn.clone(),
        drafts: to,
    };
    let walking = tokio::task::spawn_blocking(move || {
        walker.start = walker.source.walk_start();
        match listing {
            Listing::Subtree { dir, cursor } => walker.walk_subtree(&dir, cursor),
            Listing::Names { list, start } => walker.list_names(&list, start),
        }
    });
    let mut number = 0;
    while let Some(PageDraft { content: found, root, start, next }) = drafts.recv().await {
        let page = ScanPage {
            task_digest,
            page: number,
            work: found.work,
            subtrees: found.subtrees,
            errors: found.errors,
            unlisted_dirs: found.unlisted_dirs,
            root,
            root_identity: start,
            pruned: None,
            allowance_used_up: false,
            warnings: found.notes,
            records: Vec::new(),
            integrity_errors: 0,
            next,
        };
        match pages.post_page(&page).await {
            Ok(PageReply { action: PageAction::Continue, max_subtrees: budget }) => {
                spawn.store(budget, Ordering::Relaxed);
                number += 1;
            }
            Ok(_) => return ScanEnd::Reported,
            Err(message) => return ScanEnd::Failed { message, error: None },
        }
    }
    match walking.await {
        Ok(Err(WalkHalt::Failed(error))) => {
            let error = error.to_file_error();
            ScanEnd::Failed { message: error.to_string(), error: Some(error) }
        }
        // The last page says that there is no more: a request to go on after it makes no sense.
        Ok(_) => ScanEnd::Reported,
        Err(e) => {
            let message = format!("listing the source panicked: {e}");
            ScanEnd::Failed { message, error: None }
        }
    }
}

impl ScanWalker {
    fn walk_subtree(mut self, dir: &RelPath, cursor: Option<Cursor>) -> Result<(), WalkHalt> {
        let ScanOptions { filter, links, destination, .. } = self.options.clone();
        let options = WalkOptions { filter, links, destination };
        let _near = ThreadCwd::unshare();
        let mut walk = match self.source.walk_with(dir, cursor.as_ref(), options) {
            Ok(walk) => walk,
            // A subtree that can't be entered is one failed entry; without its root a sync is nothing.
            Err(error) if !dir.is_root() => {
                self.record_error(error, true)?;
                return self.send_page(None);
            }
            Err(error) => return Err(WalkHalt::Failed(error)),
        };
        if dir.is_root() && cursor.is_none() {
            self.root = Some(self.source.root_state().map_err(WalkHalt::Failed)?);
        }
        while let Some(item) = walk.next() {
            match item {
                Ok(mut entry) => {
                    if entry.is_dir() && try_split_off(dir, &entry.path, &self.subtree_budget) {
                        walk.skip_contents();
                        self.builder.split_off(entry.path.clone());
                    }
                    self.measure_data(&mut entry);
                    self.builder.add_entry(entry, walk.dirs());
                }
                Err(error) => {
                    let is_listing = error.is_listing_error();
                    self.record_error(error, is_listing)?;
                }
            }
            if self.is_page_due() {
                let cursor = walk.cursor().cloned();
                self.end_page(&mut walk, Some(TaskSpec::Scan { dir: dir.clone(), cursor }))?;
            }
        }
        self.end_page(&mut walk, None)
    }

    fn end_page(&mut self, walk: &mut Walk, next: Option<TaskSpec>) -> Result<(), WalkHalt> {
        self.builder.merge_notes(walk.take_exclusions());
        self.send_page(next)
    }

    fn list_names(mut self, list: &FileListPart, start: u64) -> Result<(), WalkHalt> {
        let root = self.source.entry(&RelPath::root()).map_err(WalkHalt::Failed)?;
        if !root.is_dir() {
            let error = FsError::new(Side::Source, "list", b"", Cause::SourceNotDirectory);
            return Err(WalkHalt::Failed(error));
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        // With their contents, directories bring what is named below them.
        let recursive = self.options.recursive;
        let all: HashSet<&RelPath> = list.paths.iter().filter(|_| recursive).collect();
        for (index, name) in list.paths.iter().enumerate().skip(start) {
            if !self.is_below_listed_dir(name, &all) {
                self.add_name(name)?;
            }
            if self.is_page_due() {
                self.send_page(Some(TaskSpec::List { start: index as u64 + 1 }))?;
            }
        }
        self.send_page(None)
    }

    /// Whether a directory above `name` is one of `names`.
    fn is_below_listed_dir(&self, name: &RelPath, names: &HashSet<&RelPath>) -> bool {
        let links = self.options.links;
        let is_dir = |path: &RelPath| {
            self.source.find_entry(path, links).is_ok_and(|(entry, _)| entry.is_dir())
        };
        let mut above = name.parent().filter(|_| !names.is_empty());
        while let Some(dir) = above {
            if names.contains::<RelPath>(&dir) && is_dir(&dir) {
                return true;
            }
            above = dir.parent();
        }
        false
    }

    /// An entry can't be read. Where that is because this host is out of descriptors or memory, it is not
    /// reported: the task that continues from the last page finds it again. `is_listing`: it is a directory
    /// that can't be entered or listed.
    fn record_error(&mut self, error: FsError, is_listing: bool) -> Result<(), WalkHalt> {
        let report = error.to_file_error();
        if report.is_resource_exhaustion() {
            return Err(WalkHalt::Failed(error));
        }
        if is_listing {
            self.builder.add_listing_error(report);
        } else {
            self.builder.add_error(report);
        }
        Ok(())
    }

    fn add_name(&mut self, name: &RelPath) -> Result<(), WalkHalt> {
        let ScanOptions { filter, links, recursive, .. } = &self.options;
        let (mut entry, dirs) = match self.source.find_entry(name, *links) {
            Ok(found) => found,
            Err(failed) => {
                let mut error = failed.to_file_error();
                if error.is_resource_exhaustion() {
                    return Err(WalkHalt::Failed(failed));
                }
                // What was named, also where it is something above it that stands in the way.
                error.path = BytePath(name.as_bytes().to_vec());
                // It was never seen, so it neither vanished nor changed: the list names what is not there.
                if matches!(error.class, ErrorClass::Vanished | ErrorClass::Changed) {
                    error.class = ErrorClass::Permanent;
                }
                self.builder.add_error(error);
                return Ok(());
            }
        };
        if filter.excludes_with_parents(name, entry.is_dir()) || filter.exceeds_limits(&entry) {
            return Ok(());
        }
        if *links == Links::Skip && matches!(entry.kind, EntryKind::Symlink { .. }) {
            self.note_left_out(LINKS_SKIPPED, &entry);
            return Ok(());
        }
        if entry.is_dir() && *recursive {
            self.builder.split_off(name.clone());
            if name.is_root() {
                // The task that walks the root says what it is.
                return Ok(());
            }
        }
        self.measure_data(&mut entry);
        self.builder.add_entry(entry, &dirs);
        Ok(())
    }

    fn measure_data(&self, entry: &mut Entry) {
        if self.options.ranges_by_data {
            self.source.measure_stored_bytes(entry, self.chunk_bytes);
        }
    }

    fn note_left_out(&mut self, cause: &str, entry: &Entry) {
        let mut notes = EntryWarnings::new();
        notes.entry(cause.to_owned()).or_default().add(entry.path.as_bytes());
        self.builder.merge_notes(notes);
    }

    fn is_page_due(&self) -> bool {
        self.builder.is_full()
            || (self.page_started.elapsed() >= MAX_PAGE_AGE && !self.builder.is_empty())
    }

    fn send_page(&mut self, next: Option<TaskSpec>) -> Result<(), WalkHalt> {
        self.source.check_root().map_err(WalkHalt::Failed)?;
        let (root, start) = (self.root.take(), self.start.take());
        let draft = PageDraft { content: self.builder.take_page(), root, start, next };
        self.drafts.blocking_send(draft).map_err(|_| WalkHalt::ReceiverGone)?;
        self.page_started = Instant::now();
        Ok(())
    }
}

/// Whether the contents of `dir`, found by a task that began at `from`, are given away; takes one of
/// `spawn`.
pub fn try_split_off(from: &RelPath, dir: &RelPath, spawn: &AtomicU32) -> bool {
    let depth = dir.components().count().saturating_sub(from.components().count());
    (1..=MAX_SPLIT_DEPTH).contains(&depth)
        && spawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests;
