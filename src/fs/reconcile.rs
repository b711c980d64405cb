//! What can be done at the destination without content, which in a repeated sync is nearly everything.

use super::dress::Outfit;
use super::error::{Cause, Result};
use super::links::Linked;
use super::meta::{lstat, same_mtime, size_of, type_of};
use super::nodes::TouchUp;
use super::root::{Place, split};
use super::target::Target;
use crate::wire::RelPath;
use crate::wire::manifest::{DirRef, Entry, Kind, Manifest};
use crate::wire::sync::FileError;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};

/// What became of an entry without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was there, with this size and time; owner and mode were repaired where they differed.
    Unchanged,
    /// It needs no content and was made.
    Made,
    /// Its content is needed.
    Needed,
    /// It can't be had.
    Failed(FileError),
}

impl Target {
    /// Does everything of a batch that needs no content: makes directories, links, special and empty
    /// files, and compares the other files by size and time. One verdict for each entry, in order.
    /// Directories that it wrote into get their metadata afterwards.
    pub fn reconcile(&self, manifest: &Manifest) -> Vec<Verdict> {
        self.tree.forget();
        let mut batch = Batch {
            target: self,
            dirs: manifest.dirs.iter().map(|d| (d.path.as_bytes(), d)).collect(),
            made: HashMap::new(),
            broken: HashMap::new(),
            stamps: BTreeMap::new(),
        };
        for dir in &manifest.dirs {
            batch.make_dir(dir);
        }
        let mut verdicts: Vec<Verdict> = manifest
            .entries
            .iter()
            .map(|entry| match batch.settle(entry) {
                Ok(verdict) => verdict,
                Err(error) => Verdict::Failed(error.to_file_error()),
            })
            .collect();
        if self.has_widened() {
            for dir in &manifest.dirs {
                batch.stamps.entry(&dir.path).or_insert(dir.into());
            }
        }
        let failed = self.stamp_all(&batch.stamps);
        for (entry, verdict) in manifest.entries.iter().zip(&mut verdicts) {
            if let (Kind::Dir, Some(error)) = (&entry.kind, failed.get(&entry.path)) {
                *verdict = Verdict::Failed(error.to_file_error());
            }
        }
        // Of the other directories, the batch that has their entry tells.
        verdicts
    }
}

/// One batch being reconciled.
struct Batch<'a> {
    target: &'a Target,
    /// The directories of the manifest by path.
    dirs: HashMap<&'a [u8], &'a DirRef>,
    /// Those of them that are there, and whether they are new.
    made: HashMap<&'a [u8], bool>,
    /// Those that could not be made, and why: what is below them fails alike.
    broken: HashMap<&'a [u8], Errno>,
    /// What directories shall have in the end; children behind their parents.
    stamps: BTreeMap<&'a RelPath, Outfit<'a>>,
}

impl<'a> Batch<'a> {
    fn make_dir(&mut self, dir: &'a DirRef) {
        let path = dir.path.as_bytes();
        match self.enter(&dir.path) {
            Ok(new) => {
                self.made.insert(path, new);
                if new {
                    self.stamps.entry(&dir.path).or_insert(dir.into());
                }
            }
            Err(errno) => {
                self.broken.insert(path, errno);
            }
        }
    }

    /// Makes a directory unless it, or one above it, is known to fail; tells whether it is new.
    fn enter(&mut self, path: &'a RelPath) -> std::result::Result<bool, Errno> {
        self.above(path).map_or(Ok(()), Err)?;
        let (_, new) = self.target.dir(path.as_bytes(), true)?;
        if new {
            self.wrote_beside(path);
        }
        Ok(new)
    }

    /// Why the directory above `path` could not be made.
    fn above(&self, path: &RelPath) -> Option<Errno> {
        if path.is_root() { None } else { self.broken.get(split(path.as_bytes()).0).copied() }
    }

    /// Notes that the directory above `path` was written into.
    fn wrote_beside(&mut self, path: &RelPath) {
        if !path.is_root()
            && let Some(dir) = self.dirs.get(split(path.as_bytes()).0)
        {
            self.stamps.entry(&dir.path).or_insert((*dir).into());
        }
    }

    fn settle(&mut self, entry: &'a Entry) -> Result<Verdict> {
        let (target, path) = (self.target, &entry.path);
        let failed = |op, cause: Cause| target.error(op, path, cause);
        if entry.is_dir() {
            return self.settle_dir(entry);
        }
        if let Some(errno) = self.above(path) {
            return Err(failed("make directory above", errno.into()));
        }
        let place = target.place(path).map_err(|e| failed("reach", e.into()))?;
        let there = match target.writable(&place.dir, || lstat(&place.dir, place.name)) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("compare", errno.into())),
        };
        match target.link_up(&place, entry, there.as_ref()) {
            Ok(Linked::No) => {}
            Ok(Linked::Already) => return Ok(Verdict::Unchanged),
            Ok(Linked::Now) => {
                self.wrote_beside(path);
                return Ok(Verdict::Made);
            }
            Err(cause) => return Err(failed("link", cause)),
        }
        if let Some(stat) = &there {
            if self
                .is_settled(entry, &place, stat)
                .map_err(|cause| failed("set metadata of", cause))?
            {
                return Ok(Verdict::Unchanged);
            }
            if type_of(stat) == FileType::Directory {
                self.wrote_beside(path);
                target
                    .clear_dir(&place.dir, place.name)
                    .map_err(|cause| failed("replace", cause))?;
            }
        }
        drop(place);
        if entry.size() > 0 {
            return Ok(Verdict::Needed);
        }
        self.wrote_beside(path);
        match &entry.kind {
            Kind::File { .. } => target.create(entry, 0)?.publish(entry)?,
            _ => drop(target.make(entry)?),
        }
        Ok(Verdict::Made)
    }

    fn settle_dir(&mut self, entry: &'a Entry) -> Result<Verdict> {
        let path = &entry.path;
        let known = self.made.get(path.as_bytes()).copied();
        let new = match (known, self.broken.get(path.as_bytes())) {
            (Some(new), _) => Ok(new),
            (None, Some(errno)) => Err(*errno),
            (None, None) => self.enter(path),
        };
        let new = new.map_err(|errno| self.target.error("make directory", path, errno))?;
        self.stamps.insert(path, entry.into());
        Ok(if new { Verdict::Made } else { Verdict::Unchanged })
    }

    /// Whether what is there has the entry's content; if so, its metadata are repaired.
    fn is_settled(
        &self,
        entry: &Entry,
        place: &Place<'_>,
        stat: &Stat,
    ) -> std::result::Result<bool, Cause> {
        let file_type = type_of(stat);
        let same = match &entry.kind {
            Kind::File { size } => {
                file_type == FileType::RegularFile
                    && size_of(stat) == *size
                    && same_mtime(stat, &entry.meta)
            }
            Kind::Symlink { target } => {
                file_type == FileType::Symlink
                    && rustix::fs::readlinkat(&place.dir, place.name, Vec::new())
                        .is_ok_and(|there| there.as_bytes() == target)
            }
            Kind::Special { format, rdev } => {
                let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
                stat.st_mode & 0o170_000 == *format && (!device || stat.st_rdev == *rdev)
            }
            Kind::Dir => false,
        };
        if !same {
            return Ok(false);
        }
        Ok(self.target.touch_up(place, stat, entry)? != TouchUp::Replace)
    }
}
