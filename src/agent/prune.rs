//! Pruning: finding (and deleting) what a subtree of the destination has and the source does not.
//!
//! A thread walks the directories of the source, in the order of a scan, and lists the names in each;
//! every interval of names goes to a destination, which finds what else it has there. A directory's
//! own names come before the directories in it, so a cursor says just which directory was done last.
//! Nothing of the source is taken for missing that could not be listed.

use super::batch::MAX_PAGE_SUBTREES;
use super::job::{DestinationPicker, Job, entry_error};
use super::scan::{PageSink, ScanEnd, try_split_off};
use crate::data::Destination;
use crate::data::control_messages::{PruneOutcome, PruneRequest};
use crate::fs::{EARLIER_TRASH_KEPT, Filter, FsError, NamePage, Tree};
use crate::wire::manifest::{Entry, MAX_MANIFEST_BYTES, ManifestDir};
use crate::wire::options::{
    Attribute, EntryAction, FileRecord, FileState, FilterSpec, Links, SyncOptions,
};
use crate::wire::sync::{ErrorClass, FileError};
use crate::wire::task::{
    Cursor, PageAction, PageReply, PruneReport, RootIdentity, RootState, ScanPage, TaskSpec,
};
use crate::wire::{BytePath, Digest, RelPath};
use minicbor::bytes::ByteVec;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Names of one directory that are held at a time, as in a walk.
const MAX_NAMES_IN_MEMORY: usize = 100_000;
/// Names that are sent at a time: a destination answers long before anybody gives it up.
const MAX_NAMES_PER_REQUEST: usize = 4096;
/// A page is posted after this, or after so many names …
const MAX_PAGE_AGE: Duration = Duration::from_secs(1);
const MAX_PAGE_NAMES: usize = 16_384;
/// … or with so many records or errors, then also in the middle of a directory.
const MAX_PAGE_RECORDS: usize = 2048;
/// The paths of all directories above a name, together, in bytes; a scan does not go deeper either.
const MAX_DIR_CHAIN_BYTES: usize = MAX_MANIFEST_BYTES / 2;

/// What is pruned.
pub struct PruneSpec {
    /// The subtree, below both roots.
    pub dir: RelPath,
    /// Go on behind this.
    pub cursor: Option<Cursor>,
    /// Delete, not only count.
    pub apply: bool,
    /// What is left out.
    pub filter: Arc<Filter>,
}

/// What the walking thread found, in order.
enum WalkStep {
    /// What the source root is; comes first.
    Root(RootState, Option<RootIdentity>),
    /// The names of the source in an interval of a directory.
    Names(PruneRequest),
    /// A directory can't be listed.
    Failed(FileError),
    /// A subtree is given away.
    SplitOff(RelPath),
    /// Everything up to here was said.
    Completed(Cursor),
}

/// Why the walking thread stopped.
enum WalkHalt {
    /// Nobody wants more.
    ReceiverGone,
    Failed(FsError),
}

/// Prunes, and posts pages of what it found.
pub async fn prune_subtree(
    job: Job<'_>,
    source: Tree,
    what: PruneSpec,
    pages: &impl PageSink,
) -> ScanEnd {
    let spawn = Arc::new(AtomicU32::new(0));
    let (to, mut steps) = mpsc::channel(1);
    let options = &job.assignment.options;
    let walker = PruneWalker {
        source,
        links: options.links,
        filter: what.filter,
        filter_spec: options.filter.clone(),
        delete_excluded: options.delete.as_ref().is_some_and(|d| d.delete_excluded),
        replaces_directories: can_replace_directories(options),
        apply: what.apply,
        start: what.dir.clone(),
        dirs_above_start: Vec::new(),
        levels: Vec::new(),
        subtree_budget: spawn.clone(),
        steps: to,
    };
    let cursor = what.cursor.clone();
    let walking = tokio::task::spawn_blocking(move || walker.walk(cursor));
    let mut pruner = Pruner {
        job,
        picker: job.destination_picker(),
        destination: None,
        dir: what.dir,
        cursor: what.cursor,
        apply: what.apply,
        page: empty_page(job.assignment.task_digest),
        names_in_page: 0,
        page_started: Instant::now(),
        subtree_budget: spawn,
    };
    while let Some(step) = steps.recv().await {
        match pruner.apply_step(step, pages).await {
            Ok(()) => {}
            Err(end) => return end,
        }
    }
    match walking.await {
        Ok(Err(WalkHalt::Failed(error))) => {
            let error = error.to_file_error();
            ScanEnd::Failed { message: error.to_string(), error: Some(error) }
        }
        Ok(_) => pruner.post_page(None, pages).await.err().unwrap_or(ScanEnd::Reported),
        Err(e) => scan_failed(format!("listing the source panicked: {e}")),
    }
}

/// Whether each entry that is no directory and not left out by a pattern is copied, also over a directory.
pub(super) fn can_replace_directories(options: &SyncOptions) -> bool {
    let FilterSpec { rules: _, min_size, max_size, newer_than, older_than } = &options.filter;
    let sized = min_size.is_some() || max_size.is_some();
    let aged = newer_than.is_some() || older_than.is_some();
    let kinds = [Attribute::Specials, Attribute::Devices];
    !(sized || aged || options.ignore_existing || options.links == Links::Skip)
        && kinds.iter().all(|kind| options.preserve.contains(*kind))
}

fn scan_failed(message: String) -> ScanEnd {
    ScanEnd::Failed { message, error: None }
}

fn empty_page(task_digest: Digest) -> ScanPage {
    ScanPage {
        task_digest,
        page: 0,
        work: Vec::new(),
        subtrees: Vec::new(),
        errors: Vec::new(),
        unlisted_dirs: 0,
        root: None,
        root_identity: None,
        pruned: Some(PruneReport::default()),
        allowance_used_up: false,
        warnings: Default::default(),
        records: Vec::new(),
        integrity_errors: 0,
        next: None,
    }
}

/// The side that asks destinations and posts pages.
struct Pruner<'a> {
    job: Job<'a>,
    picker: DestinationPicker<'a>,
    /// Who was asked last; it is asked until it fails.
    destination: Option<Destination>,
    dir: RelPath,
    /// Behind this nothing was said yet.
    cursor: Option<Cursor>,
    apply: bool,
    /// The page that is being filled.
    page: ScanPage,
    /// Names since the last page.
    names_in_page: usize,
    page_started: Instant,
    subtree_budget: Arc<AtomicU32>,
}

impl Pruner<'_> {
    /// Does a step. An error ends it all.
    async fn apply_step(&mut self, step: WalkStep, pages: &impl PageSink) -> Result<(), ScanEnd> {
        match step {
            WalkStep::Root(root, start) => {
                self.page.root = Some(root);
                self.page.root_identity = start;
                // The master compares it with the source that was copied, and stops where it is another
                // one or empty, before anything is deleted.
                return if self.apply { self.post_and_continue(pages).await } else { Ok(()) };
            }
            WalkStep::Names(ask) => return self.prune_interval(ask, pages).await,
            WalkStep::Failed(error) => {
                let error = self.job.with_observer(error, &self.job.cx.worker_id);
                self.page.errors.push(error);
                return Ok(());
            }
            WalkStep::SplitOff(dir) => {
                self.page.subtrees.push(dir);
                return Ok(());
            }
            WalkStep::Completed(cursor) => {
                self.cursor = Some(cursor);
                let due = self.page_started.elapsed() >= MAX_PAGE_AGE
                    || self.names_in_page >= MAX_PAGE_NAMES
                    || self.page.subtrees.len() >= MAX_PAGE_SUBTREES
                    || self.page.errors.len() >= MAX_PAGE_RECORDS;
                if !due {
                    return Ok(());
                }
            }
        }
        self.post_and_continue(pages).await
    }

    /// Has the interval of `ask` pruned, in as many steps as the destination takes.
    async fn prune_interval(
        &mut self,
        mut ask: PruneRequest,
        pages: &impl PageSink,
    ) -> Result<(), ScanEnd> {
        self.names_in_page += ask.names.len();
        loop {
            let mut found = self.send_request(&ask).await?;
            ask.resume = found.resume.take();
            self.page.allowance_used_up = found.allowance_exhausted;
            self.add_result(found);
            if self.page.allowance_used_up {
                // The master ends the deletion.
                self.post_and_continue(pages).await?;
                return Err(scan_failed("more entries are extra than may be deleted".to_owned()));
            }
            if self.page.records.len() >= MAX_PAGE_RECORDS
                || self.page.errors.len() >= MAX_PAGE_RECORDS
            {
                // In the middle of a directory: its counts go with the page that ends behind it, so
                // that the task that goes on from the cursor does not count twice.
                let pruned = self.page.pruned.replace(PruneReport::default());
                let notes = std::mem::take(&mut self.page.warnings);
                self.post_and_continue(pages).await?;
                (self.page.pruned, self.page.warnings) = (pruned, notes);
            }
            if ask.resume.is_none() {
                return Ok(());
            }
        }
    }

    /// Asks a destination; when it fails, the next. What one has done already is just not found again.
    async fn send_request(&mut self, ask: &PruneRequest) -> Result<PruneOutcome, ScanEnd> {
        loop {
            let Some(to) = self.destination.take().or_else(|| self.picker.pick_next()) else {
                return Err(scan_failed(self.picker.fail_exhausted().message.unwrap_or_default()));
            };
            match to.prune(ask.clone()).await {
                Ok(mut found) => {
                    self.job.mark_wrote(to.worker());
                    for error in &mut found.errors {
                        *error = self.job.with_observer(error.clone(), to.worker());
                    }
                    let ends = |e: &&FileError| {
                        use ErrorClass::{InvalidRequest, StorageGone};
                        e.is_resource_exhaustion()
                            || matches!(e.class, StorageGone | InvalidRequest)
                    };
                    if let Some(error) = found.errors.iter().find(ends) {
                        let (message, error) = (error.to_string(), Some(error.clone()));
                        return Err(ScanEnd::Failed { message, error });
                    }
                    self.destination = Some(to);
                    return Ok(found);
                }
                Err(error) => self.picker.record_failure(to.worker(), &error),
            }
        }
    }

    fn add_result(&mut self, found: PruneOutcome) {
        let sum = self.page.pruned.get_or_insert_default();
        sum.checked = sum.checked.saturating_add(found.pruned.checked);
        sum.extraneous = sum.extraneous.saturating_add(found.pruned.extraneous);
        sum.bytes = sum.bytes.saturating_add(found.pruned.bytes);
        self.page.errors.extend(found.errors);
        // The walk that counts comes first, and is made also where nothing is to be deleted.
        if !self.apply && found.old_trash.count > 0 {
            self.page
                .warnings
                .entry(EARLIER_TRASH_KEPT.to_owned())
                .or_default()
                .merge(found.old_trash);
        }
        let options = &self.job.assignment.options;
        // What is only counted is deleted, and recorded, later; not so in a dry run.
        if options.record && (self.apply || options.dry_run) {
            self.page.records.extend(found.removed.into_iter().map(|(path, bytes)| FileRecord {
                path: BytePath(path.as_bytes().to_vec()),
                state: FileState::Deleted,
                action: Some(EntryAction::Delete),
                bytes,
                digest: None,
                message: None,
            }));
        }
    }

    async fn post_and_continue(&mut self, pages: &impl PageSink) -> Result<(), ScanEnd> {
        let (dir, cursor, apply) = (self.dir.clone(), self.cursor.clone(), self.apply);
        self.post_page(Some(TaskSpec::Prune { dir, cursor, apply }), pages).await
    }

    async fn post_page(
        &mut self,
        next: Option<TaskSpec>,
        pages: &impl PageSink,
    ) -> Result<(), ScanEnd> {
        self.page.next = next;
        match pages.post_page(&self.page).await {
            Ok(PageReply { action: PageAction::Continue, max_subtrees: spawn }) => {
                self.subtree_budget.store(spawn, Ordering::Relaxed);
                let number = self.page.page + 1;
                self.page = ScanPage { page: number, ..empty_page(self.page.task_digest) };
                (self.names_in_page, self.page_started) = (0, Instant::now());
                Ok(())
            }
            Ok(_) => Err(ScanEnd::Reported),
            Err(message) => Err(scan_failed(message)),
        }
    }
}

/// The walking thread's side.
struct PruneWalker {
    source: Tree,
    links: Links,
    filter: Arc<Filter>,
    filter_spec: FilterSpec,
    delete_excluded: bool,
    /// What is no directory replaces one.
    replaces_directories: bool,
    apply: bool,
    /// Where it begins.
    start: RelPath,
    /// The directories above that, the root first.
    dirs_above_start: Vec<ManifestDir>,
    /// The directories from there on that lead to what is next.
    levels: Vec<DirLevel>,
    /// How many subtrees may be given away.
    subtree_budget: Arc<AtomicU32>,
    steps: mpsc::Sender<WalkStep>,
}

/// A directory on the way.
struct DirLevel {
    dir: ManifestDir,
    /// Device and inode.
    id: (u64, u64),
    /// Where it really is, when it was reached through a link that is followed.
    real: Option<RelPath>,
    /// Directories in it that are to be entered next.
    subdirs: VecDeque<RelPath>,
    /// There may be others behind this name; empty: from the start.
    resume_after: Option<Box<[u8]>>,
}

/// A name of the source, and whether it is a directory, or a link to one that is followed.
type SourceName = (Box<[u8]>, bool);

impl PruneWalker {
    fn walk(mut self, cursor: Option<Cursor>) -> Result<(), WalkHalt> {
        let root = self.source.root_state().map_err(WalkHalt::Failed)?;
        self.send_step(WalkStep::Root(root, self.source.walk_start()))?;
        let from = self.start.clone();
        let (entry, above) = match self.source.find_entry(&from, self.links) {
            Ok(found) => found,
            Err(error) if from.is_root() => return Err(WalkHalt::Failed(error)),
            // Gone since it was given away.
            Err(error) => return self.report_unlisted(&error),
        };
        if !entry.is_dir() {
            return Ok(());
        }
        self.dirs_above_start = above;
        match cursor {
            Some(cursor) => self.seek_to_cursor(entry, &cursor)?,
            None => self.enter_dir(entry)?,
        }
        while !self.levels.is_empty() {
            match self.next_subdir()? {
                None => drop(self.levels.pop()),
                Some(dir) if try_split_off(&self.start, &dir, &self.subtree_budget) => {
                    self.send_step(WalkStep::SplitOff(dir.clone()))?;
                    self.send_step(WalkStep::Completed(Cursor {
                        after: dir,
                        skip_contents: true,
                    }))?;
                }
                Some(dir) => match self.source.find_entry(&dir, self.links) {
                    Ok((entry, _)) if entry.is_dir() => self.enter_dir(entry)?,
                    Ok(_) => {}
                    Err(error) => self.report_unlisted(&error)?,
                },
            }
        }
        Ok(())
    }

    fn send_step(&self, step: WalkStep) -> Result<(), WalkHalt> {
        if matches!(step, WalkStep::Root(..) | WalkStep::Names(_)) {
            // What is missing in another directory must not be deleted.
            self.source.check_root().map_err(WalkHalt::Failed)?;
        }
        self.steps.blocking_send(step).map_err(|_| WalkHalt::ReceiverGone)
    }

    /// A directory can't be looked into, so nothing is missing there. One that is gone by now is no
    /// failure: it is found by the next sync.
    fn report_unlisted(&self, error: &FsError) -> Result<(), WalkHalt> {
        let report = error.to_file_error();
        if report.is_resource_exhaustion() {
            // It can be, a little later: the task is tried again.
            return Err(WalkHalt::Failed(error.clone()));
        }
        if report.class == ErrorClass::Vanished {
            tracing::debug!("{report}");
            return Ok(());
        }
        self.send_step(WalkStep::Failed(report))
    }

    /// Goes down to the cursor without saying again what was said: the names of every directory on
    /// the way were, before those of the directories in it.
    fn seek_to_cursor(&mut self, start: Entry, cursor: &Cursor) -> Result<(), WalkHalt> {
        let (from, after) = (self.start.clone(), &cursor.after);
        if !from.contains(after) {
            // Behind all of it, or before.
            return if *after < from { self.enter_dir(start) } else { Ok(()) };
        }
        let mut way = after.components().skip(from.components().count()).peekable();
        let mut here = start;
        loop {
            if way.peek().is_none() && cursor.skip_contents {
                return Ok(());
            }
            let path = here.path.clone();
            self.levels.push(DirLevel::new(here, way.peek().map_or(&b""[..], |name| *name).into()));
            let Some(Ok(next)) = way.next().map(|name| path.child(name)) else { return Ok(()) };
            here = match self.source.find_entry(&next, self.links) {
                Ok((entry, _)) if entry.is_dir() => entry,
                Ok(_) => return Ok(()),
                Err(error) => return self.report_unlisted(&error),
            };
        }
    }

    /// Says the names in a directory, and goes on with the directories in it.
    fn enter_dir(&mut self, entry: Entry) -> Result<(), WalkHalt> {
        let id = (entry.version.dev, entry.version.ino);
        if self.links == Links::Copy && self.levels.iter().any(|level| level.id == id) {
            // Links lead round in a circle; the scan has said so.
            return Ok(());
        }
        let after = entry.path.clone();
        let mut level = DirLevel::new(entry, Box::default());
        let dirs: Vec<ManifestDir> = self.dirs_above().chain([&level.dir]).cloned().collect();
        if dirs.iter().map(|dir| dir.path.as_bytes().len()).sum::<usize>() > MAX_DIR_CHAIN_BYTES {
            let why = "the names of the directories above it are too long together; nothing is deleted in it";
            return self.send_step(WalkStep::Failed(FileError {
                class: ErrorClass::Permanent,
                ..entry_error(after.as_bytes(), "list source", why)
            }));
        }
        let mut behind: Option<Box<[u8]>> = None;
        loop {
            let page = match self.list_names(&level, behind.as_deref()) {
                Ok(page) => page,
                Err(error) => return self.report_unlisted(&error),
            };
            let first = behind.is_none();
            let last = page.names.last().map(|(name, _)| name.clone()).filter(|_| page.has_more);
            if first && last.is_none() {
                level.set_subdirs(&page.names, &self.filter);
            }
            self.send_names(&level, &dirs, behind, last.clone(), page.names)?;
            match last {
                Some(last) => behind = Some(last),
                None => break,
            }
        }
        self.levels.push(level);
        self.send_step(WalkStep::Completed(Cursor { after, skip_contents: false }))
    }

    /// Says the names behind `after`, as many at a time as are sent; up to `upto`, or to the end.
    fn send_names(
        &self,
        level: &DirLevel,
        dirs: &[ManifestDir],
        mut after: Option<Box<[u8]>>,
        upto: Option<Box<[u8]>>,
        mut names: Vec<SourceName>,
    ) -> Result<(), WalkHalt> {
        if self.delete_excluded {
            let out = |(name, is_dir): &SourceName| {
                level.dir.path.child(name).is_ok_and(|path| self.filter.excludes(&path, *is_dir))
            };
            names.retain(|name| !out(name));
        }
        let mut names = names.into_iter().peekable();
        loop {
            let some: Vec<SourceName> = names.by_ref().take(MAX_NAMES_PER_REQUEST).collect();
            let end = names.peek().is_none();
            let until = if end { upto.clone() } else { some.last().map(|(name, _)| name.clone()) };
            let replacing =
                (0..).zip(&some).filter(|(_, name)| self.replaces_directory(level, name));
            let replacing = replacing.map(|(at, _)| at).collect();
            let bytes = |name: Box<[u8]>| ByteVec::from(name.into_vec());
            self.send_step(WalkStep::Names(PruneRequest {
                dir: level.dir.path.clone(),
                after: after.take().map(bytes),
                through: until.clone().map(bytes),
                names: some.into_iter().map(|(name, _)| bytes(name)).collect(),
                replacing_dirs: replacing,
                filter: self.filter_spec.clone(),
                delete_excluded: self.delete_excluded,
                apply: self.apply,
                dirs: dirs.to_vec(),
                resume: None,
            }))?;
            if end {
                return Ok(());
            }
            after = until;
        }
    }

    /// Whether the source copies this over a directory of its name.
    fn replaces_directory(&self, level: &DirLevel, (name, is_dir): &SourceName) -> bool {
        self.replaces_directories
            && !is_dir
            && level.dir.path.child(name).is_ok_and(|path| !self.filter.excludes(&path, false))
    }

    /// The directories that lead to what is next, the root first.
    fn dirs_above(&self) -> impl Iterator<Item = &ManifestDir> {
        self.dirs_above_start.iter().chain(self.levels.iter().map(|level| &level.dir))
    }

    /// The next directory in the current one.
    fn next_subdir(&mut self) -> Result<Option<RelPath>, WalkHalt> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if let Some(dir) = level.subdirs.pop_front() {
                return Ok(Some(dir));
            }
            let Some(behind) = level.resume_after.take() else { return Ok(None) };
            let Some(level) = self.levels.last() else { return Ok(None) };
            let page = match self.list_names(level, Some(&behind)) {
                Ok(page) => page,
                Err(error) => return self.report_unlisted(&error).map(|()| None),
            };
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            level.set_subdirs(&page.names, &self.filter);
            if page.has_more {
                level.resume_after = page.names.last().map(|(name, _)| name.clone());
            }
        }
    }

    fn list_names(&self, level: &DirLevel, behind: Option<&[u8]>) -> Result<NamePage, FsError> {
        let dir = &level.dir.path;
        let mut page = match &level.real {
            None => self.source.list_names(dir, behind, MAX_NAMES_IN_MEMORY),
            Some(real) => self.source.storage_tree().list_names(real, behind, MAX_NAMES_IN_MEMORY),
        }?;
        if self.links == Links::Copy {
            for (name, is_dir) in page.names.iter_mut().filter(|(_, is_dir)| !is_dir) {
                let found =
                    dir.child(name).ok().and_then(|p| self.source.find_entry(&p, self.links).ok());
                *is_dir = found.is_some_and(|(entry, _)| entry.is_dir());
            }
        }
        Ok(page)
    }
}

impl DirLevel {
    /// A directory of which what is `behind` a name is to be entered.
    fn new(entry: Entry, behind: Box<[u8]>) -> Self {
        DirLevel {
            dir: ManifestDir { path: entry.path, meta: entry.meta },
            id: (entry.version.dev, entry.version.ino),
            real: entry.content_path,
            subdirs: VecDeque::new(),
            resume_after: Some(behind),
        }
    }

    /// Has the directories among `names` entered, and no others.
    fn set_subdirs(&mut self, names: &[SourceName], filter: &Filter) {
        self.resume_after = None;
        let dirs = names.iter().filter(|(_, is_dir)| *is_dir);
        let paths = dirs.filter_map(|(name, _)| self.dir.path.child(name).ok());
        self.subdirs = paths.filter(|path| !filter.excludes(path, true)).collect();
    }
}
