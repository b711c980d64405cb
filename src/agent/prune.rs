//! Pruning: finding (and deleting) what a subtree of the destination has and the source does not.
//!
//! A thread walks the directories of the source, in the order of a scan, and lists the names in each;
//! every interval of names goes to a destination, which finds what else it has there. A directory's
//! own names come before the directories in it, so a cursor says just which directory was done last.
//! Nothing of the source is taken for missing that could not be listed.

use super::batch::PAGE_SPAWN;
use super::execute::{Choice, Job, entry_error};
use super::scan::{Pages, ScanEnd, may_give_away};
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
const NAMES: usize = 100_000;
/// Names that are sent at a time: a destination answers long before anybody gives it up.
const NAMES_SENT: usize = 4096;
/// A page is posted after this, or after so many names …
const PAGE_TIME: Duration = Duration::from_secs(1);
const PAGE_NAMES: usize = 16_384;
/// … or with so many records or errors, then also in the middle of a directory.
const PAGE_LINES: usize = 2048;
/// The paths of all directories above a name, together, in bytes; a scan does not go deeper either.
const MAX_CHAIN: usize = MAX_MANIFEST_BYTES / 2;

/// What is pruned.
pub struct Prune {
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
enum Step {
    /// What the source root is; comes first.
    Root(RootState, Option<RootIdentity>),
    /// The names of the source in an interval of a directory.
    Names(PruneRequest),
    /// A directory can't be listed.
    Failed(FileError),
    /// A subtree is given away.
    Given(RelPath),
    /// Everything up to here was said.
    Behind(Cursor),
}

/// Why the walking thread stopped.
enum Halt {
    /// Nobody wants more.
    Unwanted,
    Failed(FsError),
}

/// Prunes, and posts pages of what it found.
pub async fn prune(job: Job<'_>, source: Tree, what: Prune, pages: &impl Pages) -> ScanEnd {
    let spawn = Arc::new(AtomicU32::new(0));
    let (to, mut steps) = mpsc::channel(1);
    let options = &job.assignment.options;
    let walker = Walker {
        source,
        links: options.links,
        filter: what.filter,
        spec: options.filter.clone(),
        delete_excluded: options.delete.as_ref().is_some_and(|d| d.delete_excluded),
        replaces: replaces(options),
        apply: what.apply,
        from: what.dir.clone(),
        above: Vec::new(),
        levels: Vec::new(),
        spawn: spawn.clone(),
        to,
    };
    let cursor = what.cursor.clone();
    let walking = tokio::task::spawn_blocking(move || walker.walk(cursor));
    let mut pruner = Pruner {
        job,
        choice: job.destinations(),
        to: None,
        dir: what.dir,
        cursor: what.cursor,
        apply: what.apply,
        page: empty_page(job.assignment.task_digest),
        names: 0,
        since: Instant::now(),
        spawn,
    };
    while let Some(step) = steps.recv().await {
        match pruner.take(step, pages).await {
            Ok(()) => {}
            Err(end) => return end,
        }
    }
    match walking.await {
        Ok(Err(Halt::Failed(error))) => {
            let error = error.to_file_error();
            ScanEnd::Failed { message: error.to_string(), error: Some(error) }
        }
        Ok(_) => pruner.post(None, pages).await.err().unwrap_or(ScanEnd::Reported),
        Err(e) => failed(format!("listing the source panicked: {e}")),
    }
}

/// Whether each entry that is no directory and not left out by a pattern is copied, also over a directory.
pub(super) fn replaces(options: &SyncOptions) -> bool {
    let FilterSpec { rules: _, min_size, max_size, newer_than, older_than } = &options.filter;
    let sized = min_size.is_some() || max_size.is_some();
    let aged = newer_than.is_some() || older_than.is_some();
    let kinds = [Attribute::Specials, Attribute::Devices];
    !(sized || aged || options.ignore_existing || options.links == Links::Skip)
        && kinds.iter().all(|kind| options.preserve.contains(*kind))
}

fn failed(message: String) -> ScanEnd {
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
    choice: Choice<'a>,
    /// Who was asked last; it is asked until it fails.
    to: Option<Destination>,
    dir: RelPath,
    /// Behind this nothing was said yet.
    cursor: Option<Cursor>,
    apply: bool,
    /// The page that is being filled.
    page: ScanPage,
    /// Names since the last page.
    names: usize,
    since: Instant,
    spawn: Arc<AtomicU32>,
}

impl Pruner<'_> {
    /// Does a step. An error ends it all.
    async fn take(&mut self, step: Step, pages: &impl Pages) -> Result<(), ScanEnd> {
        match step {
            Step::Root(root, start) => {
                self.page.root = Some(root);
                self.page.root_identity = start;
                // The master compares it with the source that was copied, and stops where it is another
                // one or empty, before anything is deleted.
                return if self.apply { self.go_on(pages).await } else { Ok(()) };
            }
            Step::Names(ask) => return self.settle(ask, pages).await,
            Step::Failed(error) => {
                let error = self.job.seen(error, &self.job.cx.worker);
                self.page.errors.push(error);
                return Ok(());
            }
            Step::Given(dir) => {
                self.page.subtrees.push(dir);
                return Ok(());
            }
            Step::Behind(cursor) => {
                self.cursor = Some(cursor);
                let due = self.since.elapsed() >= PAGE_TIME
                    || self.names >= PAGE_NAMES
                    || self.page.subtrees.len() >= PAGE_SPAWN
                    || self.page.errors.len() >= PAGE_LINES;
                if !due {
                    return Ok(());
                }
            }
        }
        self.go_on(pages).await
    }

    /// Has the interval of `ask` pruned, in as many steps as the destination takes.
    async fn settle(&mut self, mut ask: PruneRequest, pages: &impl Pages) -> Result<(), ScanEnd> {
        self.names += ask.names.len();
        loop {
            let mut found = self.ask(&ask).await?;
            ask.resume = found.resume.take();
            self.page.allowance_used_up = found.allowance_exhausted;
            self.add(found);
            if self.page.allowance_used_up {
                // The master ends the deletion.
                self.go_on(pages).await?;
                return Err(failed("more entries are extra than may be deleted".to_owned()));
            }
            if self.page.records.len() >= PAGE_LINES || self.page.errors.len() >= PAGE_LINES {
                // In the middle of a directory: its counts go with the page that ends behind it, so
                // that the task that goes on from the cursor does not count twice.
                let pruned = self.page.pruned.replace(PruneReport::default());
                let notes = std::mem::take(&mut self.page.warnings);
                self.go_on(pages).await?;
                (self.page.pruned, self.page.warnings) = (pruned, notes);
            }
            if ask.resume.is_none() {
                return Ok(());
            }
        }
    }

    /// Asks a destination; when it fails, the next. What one has done already is just not found again.
    async fn ask(&mut self, ask: &PruneRequest) -> Result<PruneOutcome, ScanEnd> {
        loop {
            let Some(to) = self.to.take().or_else(|| self.choice.pick()) else {
                return Err(failed(self.choice.exhausted().message.unwrap_or_default()));
            };
            match to.prune(ask.clone()).await {
                Ok(mut found) => {
                    self.job.wrote(to.worker());
                    for error in &mut found.errors {
                        *error = self.job.seen(error.clone(), to.worker());
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
                    self.to = Some(to);
                    return Ok(found);
                }
                Err(error) => self.choice.failed(to.worker(), &error),
            }
        }
    }

    fn add(&mut self, found: PruneOutcome) {
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

    async fn go_on(&mut self, pages: &impl Pages) -> Result<(), ScanEnd> {
        let (dir, cursor, apply) = (self.dir.clone(), self.cursor.clone(), self.apply);
        self.post(Some(TaskSpec::Prune { dir, cursor, apply }), pages).await
    }

    async fn post(&mut self, next: Option<TaskSpec>, pages: &impl Pages) -> Result<(), ScanEnd> {
        self.page.next = next;
        match pages.post(&self.page).await {
            Ok(PageReply { action: PageAction::Continue, max_subtrees: spawn }) => {
                self.spawn.store(spawn, Ordering::Relaxed);
                let number = self.page.page + 1;
                self.page = ScanPage { page: number, ..empty_page(self.page.task_digest) };
                (self.names, self.since) = (0, Instant::now());
                Ok(())
            }
            Ok(_) => Err(ScanEnd::Reported),
            Err(message) => Err(failed(message)),
        }
    }
}

/// The walking thread's side.
struct Walker {
    source: Tree,
    links: Links,
    filter: Arc<Filter>,
    spec: FilterSpec,
    delete_excluded: bool,
    /// What is no directory replaces one.
    replaces: bool,
    apply: bool,
    /// Where it begins.
    from: RelPath,
    /// The directories above that, the root first.
    above: Vec<ManifestDir>,
    /// The directories from there on that lead to what is next.
    levels: Vec<Level>,
    /// How many subtrees may be given away.
    spawn: Arc<AtomicU32>,
    to: mpsc::Sender<Step>,
}

/// A directory on the way.
struct Level {
    dir: ManifestDir,
    /// Device and inode.
    id: (u64, u64),
    /// Where it really is, when it was reached through a link that is followed.
    real: Option<RelPath>,
    /// Directories in it that are to be entered next.
    subdirs: VecDeque<RelPath>,
    /// There may be others behind this name; empty: from the start.
    behind: Option<Box<[u8]>>,
}

/// A name of the source, and whether it is a directory, or a link to one that is followed.
type Name = (Box<[u8]>, bool);

impl Walker {
    fn walk(mut self, cursor: Option<Cursor>) -> Result<(), Halt> {
        let root = self.source.root_state().map_err(Halt::Failed)?;
        self.send(Step::Root(root, self.source.walk_start()))?;
        let from = self.from.clone();
        let (entry, above) = match self.source.find_entry(&from, self.links) {
            Ok(found) => found,
            Err(error) if from.is_root() => return Err(Halt::Failed(error)),
            // Gone since it was given away.
            Err(error) => return self.unlisted(&error),
        };
        if !entry.is_dir() {
            return Ok(());
        }
        self.above = above;
        match cursor {
            Some(cursor) => self.resume(entry, &cursor)?,
            None => self.enter(entry)?,
        }
        while !self.levels.is_empty() {
            match self.next_subdir()? {
                None => drop(self.levels.pop()),
                Some(dir) if may_give_away(&self.from, &dir, &self.spawn) => {
                    self.send(Step::Given(dir.clone()))?;
                    self.send(Step::Behind(Cursor { after: dir, skip_contents: true }))?;
                }
                Some(dir) => match self.source.find_entry(&dir, self.links) {
                    Ok((entry, _)) if entry.is_dir() => self.enter(entry)?,
                    Ok(_) => {}
                    Err(error) => self.unlisted(&error)?,
                },
            }
        }
        Ok(())
    }

    fn send(&self, step: Step) -> Result<(), Halt> {
        if matches!(step, Step::Root(..) | Step::Names(_)) {
            // What is missing in another directory must not be deleted.
            self.source.check_root().map_err(Halt::Failed)?;
        }
        self.to.blocking_send(step).map_err(|_| Halt::Unwanted)
    }

    /// A directory can't be looked into, so nothing is missing there. One that is gone by now is no
    /// failure: it is found by the next sync.
    fn unlisted(&self, error: &FsError) -> Result<(), Halt> {
        let report = error.to_file_error();
        if report.is_resource_exhaustion() {
            // It can be, a little later: the task is tried again.
            return Err(Halt::Failed(error.clone()));
        }
        if report.class == ErrorClass::Vanished {
            tracing::debug!("{report}");
            return Ok(());
        }
        self.send(Step::Failed(report))
    }

    /// Goes down to the cursor without saying again what was said: the names of every directory on
    /// the way were, before those of the directories in it.
    fn resume(&mut self, start: Entry, cursor: &Cursor) -> Result<(), Halt> {
        let (from, after) = (self.from.clone(), &cursor.after);
        if !from.contains(after) {
            // Behind all of it, or before.
            return if *after < from { self.enter(start) } else { Ok(()) };
        }
        let mut way = after.components().skip(from.components().count()).peekable();
        let mut here = start;
        loop {
            if way.peek().is_none() && cursor.skip_contents {
                return Ok(());
            }
            let path = here.path.clone();
            self.levels.push(Level::new(here, way.peek().map_or(&b""[..], |name| *name).into()));
            let Some(Ok(next)) = way.next().map(|name| path.child(name)) else { return Ok(()) };
            here = match self.source.find_entry(&next, self.links) {
                Ok((entry, _)) if entry.is_dir() => entry,
                Ok(_) => return Ok(()),
                Err(error) => return self.unlisted(&error),
            };
        }
    }

    /// Says the names in a directory, and goes on with the directories in it.
    fn enter(&mut self, entry: Entry) -> Result<(), Halt> {
        let id = (entry.version.dev, entry.version.ino);
        if self.links == Links::Copy && self.levels.iter().any(|level| level.id == id) {
            // Links lead round in a circle; the scan has said so.
            return Ok(());
        }
        let after = entry.path.clone();
        let mut level = Level::new(entry, Box::default());
        let dirs: Vec<ManifestDir> = self.dirs().chain([&level.dir]).cloned().collect();
        if dirs.iter().map(|dir| dir.path.as_bytes().len()).sum::<usize>() > MAX_CHAIN {
            let why = "the names of the directories above it are too long together; nothing is deleted in it";
            return self.send(Step::Failed(FileError {
                class: ErrorClass::Permanent,
                ..entry_error(after.as_bytes(), "list source", why)
            }));
        }
        let mut behind: Option<Box<[u8]>> = None;
        loop {
            let page = match self.list(&level, behind.as_deref()) {
                Ok(page) => page,
                Err(error) => return self.unlisted(&error),
            };
            let first = behind.is_none();
            let last = page.names.last().map(|(name, _)| name.clone()).filter(|_| page.has_more);
            if first && last.is_none() {
                level.take(&page.names, &self.filter);
            }
            self.say(&level, &dirs, behind, last.clone(), page.names)?;
            match last {
                Some(last) => behind = Some(last),
                None => break,
            }
        }
        self.levels.push(level);
        self.send(Step::Behind(Cursor { after, skip_contents: false }))
    }

    /// Says the names behind `after`, as many at a time as are sent; up to `upto`, or to the end.
    fn say(
        &self,
        level: &Level,
        dirs: &[ManifestDir],
        mut after: Option<Box<[u8]>>,
        upto: Option<Box<[u8]>>,
        mut names: Vec<Name>,
    ) -> Result<(), Halt> {
        if self.delete_excluded {
            let out = |(name, is_dir): &Name| {
                level.dir.path.child(name).is_ok_and(|path| self.filter.excludes(&path, *is_dir))
            };
            names.retain(|name| !out(name));
        }
        let mut names = names.into_iter().peekable();
        loop {
            let some: Vec<Name> = names.by_ref().take(NAMES_SENT).collect();
            let end = names.peek().is_none();
            let until = if end { upto.clone() } else { some.last().map(|(name, _)| name.clone()) };
            let replacing = (0..).zip(&some).filter(|(_, name)| self.replaces(level, name));
            let replacing = replacing.map(|(at, _)| at).collect();
            let bytes = |name: Box<[u8]>| ByteVec::from(name.into_vec());
            self.send(Step::Names(PruneRequest {
                dir: level.dir.path.clone(),
                after: after.take().map(bytes),
                through: until.clone().map(bytes),
                names: some.into_iter().map(|(name, _)| bytes(name)).collect(),
                replacing_dirs: replacing,
                filter: self.spec.clone(),
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
    fn replaces(&self, level: &Level, (name, is_dir): &Name) -> bool {
        self.replaces
            && !is_dir
            && level.dir.path.child(name).is_ok_and(|path| !self.filter.excludes(&path, false))
    }

    /// The directories that lead to what is next, the root first.
    fn dirs(&self) -> impl Iterator<Item = &ManifestDir> {
        self.above.iter().chain(self.levels.iter().map(|level| &level.dir))
    }

    /// The next directory in the current one.
    fn next_subdir(&mut self) -> Result<Option<RelPath>, Halt> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if let Some(dir) = level.subdirs.pop_front() {
                return Ok(Some(dir));
            }
            let Some(behind) = level.behind.take() else { return Ok(None) };
            let Some(level) = self.levels.last() else { return Ok(None) };
            let page = match self.list(level, Some(&behind)) {
                Ok(page) => page,
                Err(error) => return self.unlisted(&error).map(|()| None),
            };
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            level.take(&page.names, &self.filter);
            if page.has_more {
                level.behind = page.names.last().map(|(name, _)| name.clone());
            }
        }
    }

    fn list(&self, level: &Level, behind: Option<&[u8]>) -> Result<NamePage, FsError> {
        let dir = &level.dir.path;
        let mut page = match &level.real {
            None => self.source.list_names(dir, behind, NAMES),
            Some(real) => self.source.storage_tree().list_names(real, behind, NAMES),
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

impl Level {
    /// A directory of which what is `behind` a name is to be entered.
    fn new(entry: Entry, behind: Box<[u8]>) -> Self {
        Level {
            dir: ManifestDir { path: entry.path, meta: entry.meta },
            id: (entry.version.dev, entry.version.ino),
            real: entry.content_path,
            subdirs: VecDeque::new(),
            behind: Some(behind),
        }
    }

    /// Has the directories among `names` entered, and no others.
    fn take(&mut self, names: &[Name], filter: &Filter) {
        self.behind = None;
        let dirs = names.iter().filter(|(_, is_dir)| *is_dir);
        let paths = dirs.filter_map(|(name, _)| self.dir.path.child(name).ok());
        self.subdirs = paths.filter(|path| !filter.excludes(path, true)).collect();
    }
}
