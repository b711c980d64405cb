//! The walk over the source directories of a prune.

use super::{PruneSpec, can_replace_directories};
use crate::agent::pages::{SubtreeBudget, WalkHalt, report_or_halt};
use crate::data::prune_messages::PruneRequest;
use crate::fs::{Filter, FsError, MAX_NAMES_HELD, MAX_PARENT_PATH_BYTES, NamePage, Tree};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, ManifestDir};
use crate::wire::options::{FilterSpec, Links, SyncOptions};
use crate::wire::outcome::{EntryError, ErrorClass, Side};
use crate::wire::task::{Cursor, RootIdentity, RootState};
use minicbor::bytes::ByteVec;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A destination answers long before its request times out.
const MAX_NAMES_PER_REQUEST: usize = 4096;

/// What the walk found, in order.
pub(super) enum WalkStep {
    /// Comes first.
    Root(RootState, Option<RootIdentity>),
    /// The names of the source in an interval of a directory.
    Names(PruneRequest),
    /// A directory can't be listed.
    Failed(EntryError),
    SplitOff(RelPath),
    /// All steps up to this position were sent.
    Completed(Cursor),
}

pub(super) struct PruneWalker {
    source: Tree,
    links: Links,
    filter: Arc<Filter>,
    filter_spec: FilterSpec,
    delete_excluded: bool,
    /// An entry of the source that is not a directory replaces a directory.
    replaces_directories: bool,
    apply: bool,
    start: RelPath,
    /// The directories above `start`, the root first.
    dirs_above_start: Vec<ManifestDir>,
    /// The directories from `start` to the current one.
    levels: Vec<DirLevel>,
    subtree_budget: SubtreeBudget,
    steps: mpsc::Sender<WalkStep>,
}

struct DirLevel {
    dir: ManifestDir,
    /// Device and inode.
    id: (u64, u64),
    /// Its path in the storage root, where it was reached through a followed link.
    real: Option<RelPath>,
    /// Directories in it that are entered next.
    subdirs: VecDeque<RelPath>,
    /// More of them may follow after this name; empty: from the start.
    resume_after: Option<Box<[u8]>>,
}

/// A name of the source, and whether it is a directory or a followed link to one.
type SourceName = (Box<[u8]>, bool);

impl PruneWalker {
    pub(super) fn new(
        source: Tree,
        options: &SyncOptions,
        spec: &PruneSpec,
        subtree_budget: SubtreeBudget,
        steps: mpsc::Sender<WalkStep>,
    ) -> Self {
        PruneWalker {
            source,
            links: options.links,
            filter: spec.filter.clone(),
            filter_spec: options.filter.clone(),
            delete_excluded: options.delete.as_ref().is_some_and(|d| d.delete_excluded),
            replaces_directories: can_replace_directories(options),
            apply: spec.apply,
            start: spec.dir.clone(),
            dirs_above_start: Vec::new(),
            levels: Vec::new(),
            subtree_budget,
            steps,
        }
    }

    pub(super) fn walk(mut self, cursor: Option<Cursor>) -> Result<(), WalkHalt> {
        self.send_step(WalkStep::Root(self.source.root_state()?, self.source.walk_start()))?;
        let (entry, above) = match self.source.find_entry(&self.start, self.links) {
            Ok(found) => found,
            Err(error) if self.start.is_root() => return Err(error.into()),
            // It vanished after it was split off.
            Err(error) => return self.report_unlisted(error),
        };
        if !entry.is_dir() {
            return Ok(());
        }
        self.dirs_above_start = above;
        match cursor {
            Some(cursor) => self.seek_to_cursor(entry, &cursor)?,
            None => self.enter_dir(entry)?,
        }
        while let Some(mut level) = self.levels.pop() {
            let Some(dir) = self.next_subdir(&mut level)? else { continue };
            self.levels.push(level);
            if self.subtree_budget.try_split_off(&self.start, &dir) {
                self.send_step(WalkStep::SplitOff(dir.clone()))?;
                self.send_step(WalkStep::Completed(Cursor { after: dir, skip_contents: true }))?;
                continue;
            }
            match self.source.find_entry(&dir, self.links) {
                Ok((entry, _)) if entry.is_dir() => self.enter_dir(entry)?,
                Ok(_) => {}
                Err(error) => self.report_unlisted(error)?,
            }
        }
        Ok(())
    }

    fn send_step(&self, step: WalkStep) -> Result<(), WalkHalt> {
        if matches!(step, WalkStep::Root(..) | WalkStep::Names(_)) {
            // Names that another directory lacks must not be deleted.
            self.source.check_root()?;
        }
        self.steps.blocking_send(step).map_err(|_| WalkHalt::ReceiverGone)
    }

    /// A directory can't be listed, so nothing counts as missing in it. One that vanished is no failure: the next
    /// sync deletes it.
    fn report_unlisted(&self, error: FsError) -> Result<(), WalkHalt> {
        let report = report_or_halt(error)?;
        if report.class == ErrorClass::Vanished {
            tracing::debug!("{report}");
            return Ok(());
        }
        self.send_step(WalkStep::Failed(report))
    }

    /// Descends to the cursor without sending names: those of all directories on the path were sent before.
    fn seek_to_cursor(&mut self, start: Entry, cursor: &Cursor) -> Result<(), WalkHalt> {
        let after = &cursor.after;
        if !self.start.contains(after) {
            // The cursor is before the whole subtree or after it.
            return if *after < self.start { self.enter_dir(start) } else { Ok(()) };
        }
        let depth = self.start.components().count();
        let mut names = after.components().skip(depth).peekable();
        let mut dir = start;
        loop {
            if names.peek().is_none() && cursor.skip_contents {
                return Ok(());
            }
            let path = dir.path.clone();
            let next_name = names.peek().map_or(&b""[..], |name| *name);
            self.levels.push(DirLevel::new(dir, next_name.into()));
            let Some(Ok(child)) = names.next().map(|name| path.child(name)) else { return Ok(()) };
            dir = match self.source.find_entry(&child, self.links) {
                Ok((entry, _)) if entry.is_dir() => entry,
                Ok(_) => return Ok(()),
                Err(error) => return self.report_unlisted(error),
            };
        }
    }

    /// Sends the names in a directory and makes it the current one.
    fn enter_dir(&mut self, entry: Entry) -> Result<(), WalkHalt> {
        let after = entry.path.clone();
        let mut level = DirLevel::new(entry, Box::default());
        if self.links == Links::Copy && self.levels.iter().any(|above| above.id == level.id) {
            // A cycle of links, which the scan has reported.
            return Ok(());
        }
        let above = self.dirs_above_start.iter().chain(self.levels.iter().map(|level| &level.dir));
        let dirs: Vec<ManifestDir> = above.chain([&level.dir]).cloned().collect();
        if dirs.iter().map(|dir| dir.path.as_bytes().len()).sum::<usize>() > MAX_PARENT_PATH_BYTES {
            let why = "the names of the directories above it are too long together; nothing is deleted in it";
            return self.send_step(WalkStep::Failed(EntryError {
                class: ErrorClass::Permanent,
                ..EntryError::new(after.as_bytes(), Side::Source, "list", why)
            }));
        }
        let mut last_name: Option<Box<[u8]>> = None;
        loop {
            let page = match self.list_names(&level, last_name.as_deref()) {
                Ok(page) => page,
                Err(error) => return self.report_unlisted(error),
            };
            let through = page.next_after.clone();
            if last_name.is_none() && through.is_none() {
                level.set_subdirs(&page, &self.filter);
            }
            self.send_names(&level, &dirs, last_name, through.clone(), page.names)?;
            last_name = through;
            if last_name.is_none() {
                break;
            }
        }
        self.levels.push(level);
        self.send_step(WalkStep::Completed(Cursor { after, skip_contents: false }))
    }

    /// Sends the names after `after`, through `through` or the end of the directory, in requests of bounded length.
    fn send_names(
        &self,
        level: &DirLevel,
        dirs: &[ManifestDir],
        mut after: Option<Box<[u8]>>,
        through: Option<Box<[u8]>>,
        mut names: Vec<SourceName>,
    ) -> Result<(), WalkHalt> {
        let excludes = |(name, is_dir): &SourceName| {
            level.dir.path.child(name).is_ok_and(|path| self.filter.excludes(&path, *is_dir))
        };
        if self.delete_excluded {
            names.retain(|name| !excludes(name));
        }
        let replaces = |name: &SourceName| {
            self.replaces_directories
                && !name.1
                && level.dir.path.child(&name.0).is_ok()
                && !excludes(name)
        };
        let mut names = names.into_iter().peekable();
        loop {
            let part: Vec<SourceName> = names.by_ref().take(MAX_NAMES_PER_REQUEST).collect();
            let is_last = names.peek().is_none();
            let last = || part.last().map(|(name, _)| name.clone());
            let until = if is_last { through.clone() } else { last() };
            let replacing = (0..).zip(&part).filter(|(_, name)| replaces(name));
            let bytes = |name: Box<[u8]>| ByteVec::from(name.into_vec());
            self.send_step(WalkStep::Names(PruneRequest {
                dir: level.dir.path.clone(),
                after: after.take().map(bytes),
                through: until.clone().map(bytes),
                replacing_dirs: replacing.map(|(at, _)| at).collect(),
                names: part.into_iter().map(|(name, _)| bytes(name)).collect(),
                filter: self.filter_spec.clone(),
                delete_excluded: self.delete_excluded,
                apply: self.apply,
                dirs: dirs.to_vec(),
                resume: None,
            }))?;
            if is_last {
                return Ok(());
            }
            after = until;
        }
    }

    fn next_subdir(&self, level: &mut DirLevel) -> Result<Option<RelPath>, WalkHalt> {
        while level.subdirs.is_empty() {
            let Some(after) = level.resume_after.take() else { return Ok(None) };
            match self.list_names(level, Some(&after)) {
                Ok(page) => level.set_subdirs(&page, &self.filter),
                Err(error) => return self.report_unlisted(error).map(|()| None),
            }
        }
        Ok(level.subdirs.pop_front())
    }

    fn list_names(&self, level: &DirLevel, after: Option<&[u8]>) -> Result<NamePage, FsError> {
        let dir = &level.dir.path;
        let mut page = match &level.real {
            None => self.source.list_names(dir, after, MAX_NAMES_HELD),
            Some(real) => self.source.storage_tree().list_names(real, after, MAX_NAMES_HELD),
        }?;
        if self.links == Links::Copy {
            let find = |path: RelPath| self.source.find_entry(&path, self.links).ok();
            for (name, is_dir) in page.names.iter_mut().filter(|(_, is_dir)| !is_dir) {
                *is_dir = dir.child(name).ok().and_then(find).is_some_and(|(e, _)| e.is_dir());
            }
        }
        Ok(page)
    }
}

impl DirLevel {
    /// The directory `entry`; what is after the name `resume_after` is entered next.
    fn new(entry: Entry, resume_after: Box<[u8]>) -> Self {
        DirLevel {
            dir: ManifestDir { path: entry.path, meta: entry.meta },
            id: (entry.version.dev, entry.version.ino),
            real: entry.content_path,
            subdirs: VecDeque::new(),
            resume_after: Some(resume_after),
        }
    }

    /// The directories in `page` are entered next, and then those after it.
    fn set_subdirs(&mut self, page: &NamePage, filter: &Filter) {
        self.resume_after = page.next_after.clone();
        let dirs = page.names.iter().filter(|(_, is_dir)| *is_dir);
        let paths = dirs.filter_map(|(name, _)| self.dir.path.child(name).ok());
        self.subdirs = paths.filter(|path| !filter.excludes(path, true)).collect();
    }
}
