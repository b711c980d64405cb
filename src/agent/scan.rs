//! Scans and lists: a thread walks (or looks up names) and cuts pages; each page is posted in order,
//! with the place to go on from, while the next one is made.

use super::batch::Cutter;
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
const PAGE_TIME: Duration = Duration::from_secs(1);
/// Only directories this close to where the scan began are given away: deeper ones are rarely worth
/// a task of their own.
const SPAWN_DEPTH: usize = 3;

/// Where pages go to.
pub trait Pages: Sync {
    /// Posts a page; tries again until it is answered.
    ///
    /// # Errors
    /// A sentence, when that is of no use.
    fn post(&self, page: &ScanPage) -> impl Future<Output = Result<PageReply, String>> + Send;
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
    pub fn is_first(&self) -> bool {
        match self {
            Listing::Subtree { dir, cursor } => dir.is_root() && cursor.is_none(),
            Listing::Names { start, .. } => *start == 0,
        }
    }
}

/// How it is listed.
#[derive(Clone, Default)]
pub struct Manner {
    /// What is left out.
    pub filter: Arc<Filter>,
    /// What is done with symbolic links.
    pub links: Links,
    /// What the destination is here, see [`WalkOptions`].
    pub destination: Option<(u64, u64)>,
    /// Directories of a list stand for all that is in them.
    pub recursive: bool,
    /// Nothing is going to be sent: no file is cut into ranges.
    pub uncut: bool,
    /// Files with holes are cut by their data ([`Cutter::by_data`]).
    pub by_data: bool,
}

/// A page without its number.
struct Draft {
    found: super::batch::Found,
    root: Option<RootState>,
    start: Option<RootIdentity>,
    next: Option<TaskSpec>,
}

/// The walking thread's side.
struct Walker {
    source: Tree,
    manner: Manner,
    cutter: Cutter,
    chunk: u64,
    /// What the root of the whole source is, until it is said.
    root: Option<RootState>,
    /// The identity of the source root, until it is in a page.
    start: Option<RootIdentity>,
    since: Instant,
    /// How many subtrees may be given away.
    spawn: Arc<AtomicU32>,
    to: mpsc::Sender<Draft>,
}

/// Why the walker stopped.
enum Halt {
    /// Nobody wants more.
    Unwanted,
    Failed(FsError),
}

/// Lists `listing` of `source` into pages with batches of at most `chunk` bytes.
pub async fn scan(
    source: Tree,
    listing: Listing,
    manner: Manner,
    chunk: u64,
    task_digest: Digest,
    pages: &impl Pages,
) -> ScanEnd {
    let spawn = Arc::new(AtomicU32::new(0));
    let (to, mut drafts) = mpsc::channel(1);
    let mut walker = Walker {
        source,
        cutter: if manner.uncut { Cutter::uncut(chunk) } else { Cutter::new(chunk) }
            .by_data(manner.by_data),
        chunk,
        manner,
        root: None,
        start: None,
        since: Instant::now(),
        spawn: spawn.clone(),
        to,
    };
    let walking = tokio::task::spawn_blocking(move || {
        walker.start = walker.source.walk_start();
        match listing {
            Listing::Subtree { dir, cursor } => walker.subtree(&dir, cursor),
            Listing::Names { list, start } => walker.names(&list, start),
        }
    });
    let mut number = 0;
    while let Some(Draft { found, root, start, next }) = drafts.recv().await {
        let page = ScanPage {
            task_digest,
            page: number,
            work: found.work,
            subtrees: found.spawn,
            errors: found.errors,
            unlisted_dirs: found.unlisted,
            root,
            root_identity: start,
            pruned: None,
            allowance_used_up: false,
            warnings: found.notes,
            records: Vec::new(),
            integrity_errors: 0,
            next,
        };
        match pages.post(&page).await {
            Ok(PageReply { action: PageAction::Continue, max_subtrees: budget }) => {
                spawn.store(budget, Ordering::Relaxed);
                number += 1;
            }
            Ok(_) => return ScanEnd::Reported,
            Err(message) => return ScanEnd::Failed { message, error: None },
        }
    }
    match walking.await {
        Ok(Err(Halt::Failed(error))) => {
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

impl Walker {
    fn subtree(mut self, dir: &RelPath, cursor: Option<Cursor>) -> Result<(), Halt> {
        let Manner { filter, links, destination, .. } = self.manner.clone();
        let options = WalkOptions { filter, links, destination };
        let _near = ThreadCwd::unshare();
        let mut walk = match self.source.walk_with(dir, cursor.as_ref(), options) {
            Ok(walk) => walk,
            // A subtree that can't be entered is one failed entry; without its root a sync is nothing.
            Err(error) if !dir.is_root() => {
                self.fail(error, true)?;
                return self.send(None);
            }
            Err(error) => return Err(Halt::Failed(error)),
        };
        if dir.is_root() && cursor.is_none() {
            self.root = Some(self.source.root_state().map_err(Halt::Failed)?);
        }
        while let Some(item) = walk.next() {
            match item {
                Ok(mut entry) => {
                    if entry.is_dir() && may_give_away(dir, &entry.path, &self.spawn) {
                        walk.skip_contents();
                        self.cutter.give_away(entry.path.clone());
                    }
                    self.measure(&mut entry);
                    self.cutter.add(entry, walk.dirs());
                }
                Err(error) => {
                    let is_listing = error.is_listing_error();
                    self.fail(error, is_listing)?;
                }
            }
            if self.is_due() {
                let cursor = walk.cursor().cloned();
                self.end_page(&mut walk, Some(TaskSpec::Scan { dir: dir.clone(), cursor }))?;
            }
        }
        self.end_page(&mut walk, None)
    }

    fn end_page(&mut self, walk: &mut Walk, next: Option<TaskSpec>) -> Result<(), Halt> {
        self.cutter.note(walk.take_exclusions());
        self.send(next)
    }

    fn names(mut self, list: &FileListPart, start: u64) -> Result<(), Halt> {
        let root = self.source.entry(&RelPath::root()).map_err(Halt::Failed)?;
        if !root.is_dir() {
            let error = FsError::new(Side::Source, "list", b"", Cause::SourceNotDirectory);
            return Err(Halt::Failed(error));
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        // With their contents, directories bring what is named below them.
        let recursive = self.manner.recursive;
        let all: HashSet<&RelPath> = list.paths.iter().filter(|_| recursive).collect();
        for (index, name) in list.paths.iter().enumerate().skip(start) {
            if !self.comes_with_another(name, &all) {
                self.name(name)?;
            }
            if self.is_due() {
                self.send(Some(TaskSpec::List { start: index as u64 + 1 }))?;
            }
        }
        self.send(None)
    }

    /// Whether a directory above `name` is one of `names`.
    fn comes_with_another(&self, name: &RelPath, names: &HashSet<&RelPath>) -> bool {
        let links = self.manner.links;
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
    fn fail(&mut self, error: FsError, is_listing: bool) -> Result<(), Halt> {
        let report = error.to_file_error();
        if report.is_resource_exhaustion() {
            return Err(Halt::Failed(error));
        }
        if is_listing {
            self.cutter.fail_listing(report);
        } else {
            self.cutter.fail(report);
        }
        Ok(())
    }

    fn name(&mut self, name: &RelPath) -> Result<(), Halt> {
        let Manner { filter, links, recursive, .. } = &self.manner;
        let (mut entry, dirs) = match self.source.find_entry(name, *links) {
            Ok(found) => found,
            Err(failed) => {
                let mut error = failed.to_file_error();
                if error.is_resource_exhaustion() {
                    return Err(Halt::Failed(failed));
                }
                // What was named, also where it is something above it that stands in the way.
                error.path = BytePath(name.as_bytes().to_vec());
                // It was never seen, so it neither vanished nor changed: the list names what is not there.
                if matches!(error.class, ErrorClass::Vanished | ErrorClass::Changed) {
                    error.class = ErrorClass::Permanent;
                }
                self.cutter.fail(error);
                return Ok(());
            }
        };
        if filter.excludes_with_parents(name, entry.is_dir()) || filter.exceeds_limits(&entry) {
            return Ok(());
        }
        if *links == Links::Skip && matches!(entry.kind, EntryKind::Symlink { .. }) {
            self.leave_out(LINKS_SKIPPED, &entry);
            return Ok(());
        }
        if entry.is_dir() && *recursive {
            self.cutter.give_away(name.clone());
            if name.is_root() {
                // The task that walks the root says what it is.
                return Ok(());
            }
        }
        self.measure(&mut entry);
        self.cutter.add(entry, &dirs);
        Ok(())
    }

    fn measure(&self, entry: &mut Entry) {
        if self.manner.by_data {
            self.source.measure_stored_bytes(entry, self.chunk);
        }
    }

    fn leave_out(&mut self, cause: &str, entry: &Entry) {
        let mut notes = EntryWarnings::new();
        notes.entry(cause.to_owned()).or_default().add(entry.path.as_bytes());
        self.cutter.note(notes);
    }

    fn is_due(&self) -> bool {
        self.cutter.is_full() || (self.since.elapsed() >= PAGE_TIME && !self.cutter.is_empty())
    }

    fn send(&mut self, next: Option<TaskSpec>) -> Result<(), Halt> {
        self.source.check_root().map_err(Halt::Failed)?;
        let (root, start) = (self.root.take(), self.start.take());
        let draft = Draft { found: self.cutter.cut(), root, start, next };
        self.to.blocking_send(draft).map_err(|_| Halt::Unwanted)?;
        self.since = Instant::now();
        Ok(())
    }
}

/// Whether the contents of `dir`, found by a task that began at `from`, are given away; takes one of
/// `spawn`.
pub fn may_give_away(from: &RelPath, dir: &RelPath, spawn: &AtomicU32) -> bool {
    let depth = dir.components().count().saturating_sub(from.components().count());
    (1..=SPAWN_DEPTH).contains(&depth)
        && spawn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests;
