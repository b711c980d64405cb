//! Scans and lists: a thread walks the source, or looks up names, and fills pages. Each page is posted in order, with
//! the task that continues after it, while the next one is filled.

use super::batch::BatchBuilder;
use super::pages::{
    MAX_PAGE_AGE, PagePoster, PageSink, ScanEnd, SubtreeBudget, WalkHalt, join_walk, report_or_halt,
};
use crate::fs::{
    Cause, FsError, LINKS_SKIPPED, Side, ThreadCwd, Tree, Walk, WalkOptions, spawn_blocking,
};
use crate::wire::entry_report::EntryWarning;
use crate::wire::manifest::{Entry, EntryKind, FileListPart, ManifestDir};
use crate::wire::options::Links;
use crate::wire::outcome::ErrorClass;
use crate::wire::task::{Cursor, RootIdentity, RootState, ScanPage, TaskSpec};
use crate::wire::{BytePath, Digest, RelPath};
use std::collections::HashSet;
use std::time::Instant;
use tokio::sync::mpsc;

pub(super) enum Listing {
    /// The directory `dir` of the source, after `cursor`.
    Subtree { dir: RelPath, cursor: Option<Cursor> },
    /// The paths of `list` from the index `start`.
    Names { list: FileListPart, start: u64 },
}

impl Listing {
    /// Whether this is the first task that lists the source.
    pub(super) fn starts_at_root(&self) -> bool {
        match self {
            Listing::Subtree { dir, cursor } => dir.is_root() && cursor.is_none(),
            Listing::Names { start, .. } => *start == 0,
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct ScanOptions {
    pub(super) walk: WalkOptions,
    /// Listed directories are copied with their contents.
    pub(super) recursive: bool,
}

/// The part that runs on the walking thread.
struct ScanWalker {
    source: Tree,
    options: ScanOptions,
    builder: BatchBuilder,
    /// Both are sent with the first page that follows.
    root: Option<RootState>,
    root_identity: Option<RootIdentity>,
    page_started: Instant,
    subtree_budget: SubtreeBudget,
    pages: mpsc::Sender<ScanPage>,
}

/// Lists `listing` of `source` into pages of `builder`.
pub(super) async fn scan_source(
    source: Tree,
    listing: Listing,
    options: ScanOptions,
    builder: BatchBuilder,
    task_digest: Digest,
    sink: &impl PageSink,
) -> ScanEnd {
    let mut poster = PagePoster::new(task_digest, sink);
    let (sender, mut pages) = mpsc::channel(1);
    let mut walker = ScanWalker {
        source,
        options,
        builder,
        root: None,
        root_identity: None,
        page_started: Instant::now(),
        subtree_budget: poster.subtree_budget(),
        pages: sender,
    };
    let identity = walker.source.identity().clone();
    let walk = spawn_blocking(&identity, move || {
        walker.root_identity = walker.source.walk_start();
        match listing {
            Listing::Subtree { dir, cursor } => walker.walk_subtree(&dir, cursor),
            Listing::Names { list, start } => walker.list_names(&list, start),
        }
    });
    while let Some(page) = pages.recv().await {
        if let Err(end) = poster.post(page).await {
            return end;
        }
    }
    // The last page says that nothing follows, whatever its reply was.
    join_walk(walk).await.err().unwrap_or(ScanEnd::Reported)
}

impl ScanWalker {
    fn walk_subtree(mut self, dir: &RelPath, cursor: Option<Cursor>) -> Result<(), WalkHalt> {
        let _cwd = ThreadCwd::unshare();
        let options = self.options.walk.clone();
        let mut walk = match self.source.walk_with(dir, cursor.as_ref(), options) {
            Ok(walk) => walk,
            // A subtree that can't be entered is one failed entry. Without its root the whole scan fails.
            Err(error) if !dir.is_root() => {
                self.builder.add_error(report_or_halt(error)?, true);
                return self.send_page(None);
            }
            Err(error) => return Err(error.into()),
        };
        if dir.is_root() && cursor.is_none() {
            self.root = Some(self.source.root_state()?);
        }
        while let Some(item) = walk.next() {
            match item {
                Ok(entry) => {
                    if entry.is_dir() && self.subtree_budget.try_split_off(dir, &entry.path) {
                        walk.skip_contents();
                        self.builder.split_off(entry.path.clone());
                    }
                    self.add_entry(entry, walk.dirs());
                }
                Err(error) => {
                    let is_listing = error.is_listing_error();
                    self.builder.add_error(report_or_halt(error)?, is_listing);
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
        self.builder.add_warnings(walk.take_exclusions());
        self.send_page(next)
    }

    fn list_names(mut self, list: &FileListPart, start: u64) -> Result<(), WalkHalt> {
        if !self.source.entry(&RelPath::root())?.is_dir() {
            return Err(FsError::new(Side::Source, "list", b"", Cause::SourceNotDirectory).into());
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        // A directory that is copied with its contents includes the names listed below it.
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

    fn is_below_listed_dir(&self, name: &RelPath, names: &HashSet<&RelPath>) -> bool {
        let find = |path: &RelPath| self.source.find_entry(path, self.options.walk.links);
        let is_dir = |path: &RelPath| find(path).is_ok_and(|(entry, _)| entry.is_dir());
        let mut above = name.parent().filter(|_| !names.is_empty());
        while let Some(dir) = above {
            if names.contains(&dir) && is_dir(&dir) {
                return true;
            }
            above = dir.parent();
        }
        false
    }

    fn add_name(&mut self, name: &RelPath) -> Result<(), WalkHalt> {
        let ScanOptions { walk: WalkOptions { filter, links, .. }, recursive } = &self.options;
        let (entry, dirs) = match self.source.find_entry(name, *links) {
            Ok(found) => found,
            Err(failed) => {
                let mut error = report_or_halt(failed)?;
                // The listed name, even where a directory above it is the obstacle.
                error.path = BytePath(name.as_bytes().to_vec());
                // No scan has seen the name, so it neither vanished nor changed: the list is wrong.
                if matches!(error.class, ErrorClass::Vanished | ErrorClass::Changed) {
                    error.class = ErrorClass::Permanent;
                }
                self.builder.add_error(error, false);
                return Ok(());
            }
        };
        if filter.excludes_with_parents(name, entry.is_dir()) || filter.exceeds_limits(&entry) {
            return Ok(());
        }
        if *links == Links::Skip && matches!(entry.kind, EntryKind::Symlink { .. }) {
            let mut warning = EntryWarning::default();
            warning.add(entry.path.as_bytes());
            self.builder.add_warnings([(LINKS_SKIPPED.to_owned(), warning)].into());
            return Ok(());
        }
        if entry.is_dir() && *recursive {
            self.builder.split_off(name.clone());
            if name.is_root() {
                // The task that walks the root reports its entry.
                return Ok(());
            }
        }
        self.add_entry(entry, &dirs);
        Ok(())
    }

    fn add_entry(&mut self, mut entry: Entry, dirs: &[ManifestDir]) {
        self.builder.measure_data(&self.source, &mut entry);
        self.builder.add_entry(entry, dirs);
    }

    fn is_page_due(&self) -> bool {
        self.builder.is_full()
            || (self.page_started.elapsed() >= MAX_PAGE_AGE && !self.builder.is_empty())
    }

    fn send_page(&mut self, next: Option<TaskSpec>) -> Result<(), WalkHalt> {
        self.source.check_root()?;
        let (root, root_identity) = (self.root.take(), self.root_identity.take());
        let page = ScanPage { root, root_identity, next, ..self.builder.take_page() };
        self.pages.blocking_send(page).map_err(|_| WalkHalt::ReceiverGone)?;
        self.page_started = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
