//! What can be done at the destination without content, which in a repeated sync is nearly everything.

use super::dress::{Origin, Outfit};
use super::error::{Cause, NodeKind, Result};
use super::links::Linked;
use super::meta::{lag, lstat, meta_of, size_of, type_of};
use super::near::Near;
use super::nodes::{TouchUp, node_kind};
use super::root::{Place, split};
use super::target::Target;
use super::xattr::Object;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir, Meta};
use crate::wire::options::{Compare, EntryAction};
use crate::wire::sync::FileError;
use crate::wire::{Digest, RelPath};
use rustix::fd::AsFd;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Part files are looked for from this length on, in bytes: shorter files never have one.
const MAY_BE_PARTED: u64 = 256 << 10;

/// What became of an entry without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it shall be, or is left alone. In a dry run: it would be.
    Done(EntryAction),
    /// Its content is needed.
    Needed {
        /// [`EntryAction::Create`] or [`EntryAction::Update`].
        action: EntryAction,
        /// There is something to compare blocks with ([`Target::block_count`]): a regular file of this name,
        /// or a part file of this version.
        base: bool,
    },
    /// Content is compared and has the same length: the digest of the source is needed
    /// ([`Entry::digest`]).
    Check,
    /// It can't be had.
    Failed(FileError),
}

/// What became of a batch without its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// One for each entry, in order.
    pub verdicts: Vec<Verdict>,
    /// Likewise: the digests of the regular files that are at the destination, where they are asked for
    /// and the verdict is [`Verdict::Done`].
    pub digests: Vec<Option<Digest>>,
    /// The directories of the batch, by their place in it, that are new at the destination and that no
    /// entry of the batch is about. None in a dry run.
    pub made: Vec<u32>,
}

impl Target {
    /// Does everything of a batch that needs no content, by the rules of this target: makes
    /// directories, links, special and empty files, compares the other files, repairs the metadata of
    /// those that are equal. Directories that it wrote into get their metadata afterwards.
    ///
    /// In a dry run the verdicts are the same, and nothing is changed.
    pub fn reconcile(&self, manifest: &Manifest) -> Reconciled {
        self.tree.forget();
        let _near = Near::begin();
        let mut batch = Batch {
            target: self,
            dirs: manifest.dirs.iter().map(|d| (d.path.as_bytes(), d)).collect(),
            found: HashMap::new(),
            stamps: BTreeMap::new(),
        };
        let mut made: Vec<u32> = Vec::new();
        for (dir, place) in manifest.dirs.iter().zip(0..) {
            let found = batch.enter(&dir.path, &dir.meta);
            batch.found.insert(dir.path.as_bytes(), found);
            if matches!(found, Found::New | Found::Replaced) {
                batch.stamps.entry(&dir.path).or_insert(dir.into());
                made.push(place);
            }
        }
        if self.rules.dry_run {
            made.clear();
        }
        if !made.is_empty() {
            let entries: HashSet<&RelPath> =
                manifest.entries.iter().filter(|e| e.is_dir()).map(|e| &e.path).collect();
            made.retain(|place| {
                manifest.dirs.get(*place as usize).is_some_and(|dir| !entries.contains(&dir.path))
            });
        }
        let (mut verdicts, digests): (Vec<_>, Vec<_>) = manifest
            .entries
            .iter()
            .map(|entry| {
                let settled = batch.settle(entry);
                settled.unwrap_or_else(|error| (Verdict::Failed(error.to_file_error()), None))
            })
            .unzip();
        if !self.rules.dry_run {
            if self.has_widened() {
                for dir in &manifest.dirs {
                    batch.stamps.entry(&dir.path).or_insert(dir.into());
                }
            }
            let origin = |path: &RelPath| match batch.found.get(path.as_bytes()) {
                Some(Found::New | Found::Replaced) => Origin::New(None),
                _ => Origin::There,
            };
            let failed = self.stamp_all(&batch.stamps, origin);
            for (entry, verdict) in manifest.entries.iter().zip(&mut verdicts) {
                if let (EntryKind::Dir, Some(error)) = (&entry.kind, failed.get(&entry.path)) {
                    *verdict = Verdict::Failed(error.to_file_error());
                }
            }
            // Of the other directories, the batch that has their entry tells.
        }
        Reconciled { verdicts, digests, made }
    }
}

/// What stood at the path of a directory.
#[derive(Clone, Copy)]
enum Found {
    /// It, before anything was written into it.
    There(Stat),
    /// Nothing: it is new (in a dry run: would be).
    New,
    /// Something else, which it replaced (in a dry run: would).
    Replaced,
    /// It is not to be made, so nothing below it is.
    Skipped,
    /// It can't be had: what is below it fails alike.
    Broken(Errno),
}

/// How the content of what is there compares.
enum Content {
    /// Equal; the digest, where it was read.
    Same(Option<Digest>),
    Differs,
    /// The digest of the source is needed.
    Unknown,
}

type Settled = (Verdict, Option<Digest>);

/// One batch being reconciled.
struct Batch<'a> {
    target: &'a Target,
    /// The directories of the manifest by path.
    dirs: HashMap<&'a [u8], &'a ManifestDir>,
    /// What was found at their places.
    found: HashMap<&'a [u8], Found>,
    /// What directories shall have in the end; children behind their parents.
    stamps: BTreeMap<&'a RelPath, Outfit<'a>>,
}

/// Directories.
impl<'a> Batch<'a> {
    /// Makes a directory, unless it is there or the one above it is not to be had.
    fn enter(&mut self, path: &'a RelPath, meta: &Meta) -> Found {
        let rules = &self.target.rules;
        match self.above(path) {
            Some(Found::Broken(errno)) => return Found::Broken(errno),
            Some(Found::Skipped) => return Found::Skipped,
            Some(Found::New | Found::Replaced) if rules.dry_run => return Found::New,
            _ => {}
        }
        let there = |dir: &super::root::Dir| {
            rustix::fs::fstat(dir).map_or_else(Found::Broken, Found::There)
        };
        let mut new = Found::New;
        match self.target.tree.dir(path.as_bytes()) {
            Ok(dir) => return there(&dir),
            Err(errno) if self.target.leaves_unmade(path, errno) => return Found::Skipped,
            Err(Errno::NOENT) if rules.dry_run => return Found::New,
            Err(Errno::NOTDIR | Errno::LOOP) if !path.is_root() => {
                if rules.dry_run {
                    return Found::Replaced;
                }
                new = Found::Replaced;
            }
            Err(Errno::NOENT | Errno::ACCESS) if !rules.dry_run => {}
            Err(errno) => return Found::Broken(errno),
        }
        match self.target.dir_like(path.as_bytes(), true, Some(meta)) {
            Ok((_, true)) => {
                self.wrote_beside(path);
                new
            }
            Ok((dir, false)) => there(&dir),
            Err(errno) => Found::Broken(errno),
        }
    }

    /// What was found of the directory above `path`.
    fn above(&self, path: &RelPath) -> Option<Found> {
        if path.is_root() { None } else { self.found.get(split(path.as_bytes()).0).copied() }
    }

    /// Notes that the directory above `path` was written into.
    fn wrote_beside(&mut self, path: &RelPath) {
        if !path.is_root()
            && let Some(dir) = self.dirs.get(split(path.as_bytes()).0)
        {
            self.stamps.entry(&dir.path).or_insert((*dir).into());
        }
    }

    fn settle_dir(&mut self, entry: &'a Entry) -> Result<Verdict> {
        let path = &entry.path;
        let found = match self.found.get(path.as_bytes()) {
            Some(found) => *found,
            None => {
                let found = self.enter(path, &entry.meta);
                self.found.insert(path.as_bytes(), found);
                found
            }
        };
        let action = match found {
            Found::Broken(errno) => return Err(self.target.error("make directory", path, errno)),
            Found::Skipped => return Ok(Verdict::Done(EntryAction::Skip)),
            Found::New => EntryAction::Create,
            Found::Replaced => EntryAction::Update,
            Found::There(stat) => {
                let failed = |cause| self.target.error("compare", path, cause);
                let dir = self.target.tree.dir(path.as_bytes()).map_err(|e| failed(e.into()))?;
                // As it was before this batch wrote into it.
                let differs = self.target.policy.differs(
                    Object::Open(dir.as_fd()),
                    &stat,
                    &Outfit::from(entry),
                );
                if !differs.map_err(failed)? {
                    return Ok(Verdict::Done(EntryAction::Skip));
                }
                // Another batch made it on the way to something in it, and has said so.
                match self.target.tree.root.has_made(self.target.sync, &stat) {
                    true => EntryAction::Skip,
                    false => EntryAction::Metadata,
                }
            }
        };
        self.stamps.insert(path, entry.into());
        Ok(Verdict::Done(action))
    }
}

/// Everything else.
impl<'a> Batch<'a> {
    fn settle(&mut self, entry: &'a Entry) -> Result<Settled> {
        if entry.is_dir() {
            return Ok((self.settle_dir(entry)?, None));
        }
        let (target, path) = (self.target, &entry.path);
        let rules = &target.rules;
        let skipped = (Verdict::Done(EntryAction::Skip), None);
        let place = match self.above(path) {
            Some(Found::Broken(errno)) => {
                return Err(target.error("make directory above", path, errno));
            }
            Some(Found::Skipped) => return Ok(skipped),
            Some(Found::New | Found::Replaced) if rules.dry_run => None,
            _ => self.look(entry)?,
        };
        if target.leaves_out(entry) {
            return Ok(skipped);
        }
        let stat = place.as_ref().and_then(|(_, stat)| *stat);
        let is_dir = stat.is_some_and(|stat| type_of(&stat) == FileType::Directory);
        match (&place, stat) {
            (_, None) if rules.existing => return Ok(skipped),
            (Some((place, _)), Some(stat)) if self.leaves_alone(&stat, entry) => {
                return Ok((Verdict::Done(EntryAction::Skip), self.digest_there(entry, place)?));
            }
            _ => {}
        }
        let action = if stat.is_some() { EntryAction::Update } else { EntryAction::Create };
        if let Some((place, _)) = &place
            && let Some(done) = self.link_up(entry, place, stat.as_ref(), action)?
        {
            return Ok(done);
        }
        let Some((place, stat)) = place.and_then(|(place, stat)| Some((place, stat?))) else {
            return self.bring(entry, action, self.has_part(entry));
        };
        match self.compare(entry, &place, &stat)? {
            Content::Unknown => Ok((Verdict::Check, None)),
            Content::Same(digest) => self.keep(entry, &place, &stat, digest),
            Content::Differs => {
                if is_dir {
                    self.clear_dir(entry, &place)?;
                }
                let regular = type_of(&stat) == FileType::RegularFile && size_of(&stat) > 0;
                drop(place);
                self.bring(entry, action, regular || self.has_part(entry))
            }
        }
    }

    /// Makes `entry` one of the names of a file that is here under another of its names already.
    fn link_up(
        &mut self,
        entry: &'a Entry,
        place: &Place<'_>,
        there: Option<&Stat>,
        action: EntryAction,
    ) -> Result<Option<Settled>> {
        let failed = |cause| self.target.error("link", &entry.path, cause);
        let action = match self.target.link_up(place, entry, there).map_err(failed)? {
            Linked::No => return Ok(None),
            Linked::Already => EntryAction::Skip,
            Linked::Now => {
                self.wrote_beside(&entry.path);
                action
            }
        };
        let digest = match self.target.rules.dry_run {
            true => None,
            false => self.digest_there(entry, place)?,
        };
        Ok(Some((Verdict::Done(action), digest)))
    }

    /// The place of `entry` and what stands there. Directories above it that are missing are made, unless
    /// nothing may be: then there is no place.
    fn look(&self, entry: &'a Entry) -> Result<Option<(Place<'a>, Option<Stat>)>> {
        let target = self.target;
        let failed = |op: &'static str, errno: Errno| target.error(op, &entry.path, errno);
        let place = match target.tree.place(&entry.path) {
            Err(Errno::NOENT) if target.rules.dry_run || target.rules.existing => return Ok(None),
            Err(Errno::NOENT | Errno::ACCESS) if !target.rules.dry_run => target.place(&entry.path),
            other => other,
        };
        let place = place.map_err(|errno| failed("reach", errno))?;
        // Made by this batch a moment ago: nothing is in there. Should somebody be that quick, what he
        // made is replaced.
        if matches!(self.above(&entry.path), Some(Found::New | Found::Replaced)) {
            return Ok(Some((place, None)));
        }
        match target.writable(&place.dir, || lstat(&place.dir, place.name)) {
            Ok(stat) => {
                let spelled = target.tree.check_name(&place.dir, place.name);
                spelled.map_err(|errno| failed("compare", errno))?;
                Ok(Some((place, Some(stat))))
            }
            Err(Errno::NOENT) => Ok(Some((place, None))),
            Err(errno) => Err(failed("compare", errno)),
        }
    }

    /// Whether what is there is left alone, whatever it holds. Only of two regular files can one be
    /// said to be the newer version of the other.
    fn leaves_alone(&self, stat: &Stat, entry: &Entry) -> bool {
        let (rules, meta) = (&self.target.rules, &entry.meta);
        let time = |meta: &Meta| (meta.mtime_sec, meta.mtime_nsec);
        let newer = time(&meta_of(stat)) > time(meta)
            && lag(stat, meta) > u128::from(rules.mtime_tolerance_ns);
        let files =
            matches!(entry.kind, EntryKind::File { .. }) && type_of(stat) == FileType::RegularFile;
        rules.ignore_existing || rules.update && files && newer
    }

    fn compare(&self, entry: &Entry, place: &Place<'_>, stat: &Stat) -> Result<Content> {
        let file_type = type_of(stat);
        let same = match &entry.kind {
            EntryKind::File { size } => {
                if file_type != FileType::RegularFile || size_of(stat) != *size {
                    return Ok(Content::Differs);
                }
                return if *size == 0 {
                    Ok(Content::Same(None))
                } else {
                    self.compare_content(entry, place, stat)
                };
            }
            EntryKind::Symlink { target } => {
                file_type == FileType::Symlink
                    && rustix::fs::readlinkat(&place.dir, place.name, Vec::new())
                        .is_ok_and(|there| there.as_bytes() == target)
            }
            EntryKind::Special { format, rdev } => {
                let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
                stat.st_mode & 0o170_000 == *format && (!device || stat.st_rdev == *rdev)
            }
            EntryKind::Dir => false,
        };
        Ok(if same { Content::Same(None) } else { Content::Differs })
    }

    /// Of a regular file of the right length.
    fn compare_content(&self, entry: &Entry, place: &Place<'_>, stat: &Stat) -> Result<Content> {
        let rules = &self.target.rules;
        let same = match rules.compare {
            Compare::Size => true,
            Compare::SizeTime => lag(stat, &entry.meta) <= u128::from(rules.mtime_tolerance_ns),
            Compare::Checksum => return self.compare_digests(entry, place),
        };
        if same && self.target.is_suspect(stat) {
            let content = self.compare_digests(entry, place)?;
            if matches!(content, Content::Same(_)) && !rules.dry_run {
                // It is suspect no more.
                let again = self.target.touch(place, stat);
                again.map_err(|errno| self.target.error("set metadata of", &entry.path, errno))?;
            }
            return Ok(content);
        }
        Ok(if same { Content::Same(None) } else { Content::Differs })
    }

    fn compare_digests(&self, entry: &Entry, place: &Place<'_>) -> Result<Content> {
        let Some(wanted) = entry.digest else { return Ok(Content::Unknown) };
        match self.target.digest(place) {
            Ok(Some((size, digest))) if size == entry.size() && digest == wanted => {
                Ok(Content::Same(Some(digest)))
            }
            // What can't be read can be replaced.
            Ok(_) | Err(Errno::ACCESS) => Ok(Content::Differs),
            Err(errno) => Err(self.target.error("read", &entry.path, errno)),
        }
    }

    /// What is there has the right content: it gets its metadata, in its place if possible.
    fn keep(
        &mut self,
        entry: &'a Entry,
        place: &Place<'_>,
        stat: &Stat,
        digest: Option<Digest>,
    ) -> Result<Settled> {
        let failed = |cause| self.target.error("set metadata of", &entry.path, cause);
        let action = match self.target.touch_up(place, stat, entry).map_err(failed)? {
            TouchUp::Same => EntryAction::Skip,
            TouchUp::Repaired => EntryAction::Metadata,
            TouchUp::Replace | TouchUp::Foreign if entry.size() > 0 => {
                return Ok((Verdict::Needed { action: EntryAction::Update, base: true }, None));
            }
            TouchUp::Replace => return self.bring(entry, EntryAction::Metadata, false),
            TouchUp::Foreign => return self.bring(entry, EntryAction::Update, false),
        };
        let digest = match digest {
            None => self.digest_there(entry, place)?,
            known => known.filter(|_| self.target.rules.returns_digests),
        };
        Ok((Verdict::Done(action), digest))
    }

    /// Makes what needs no content, says of the rest that it is needed.
    fn bring(&mut self, entry: &'a Entry, action: EntryAction, base: bool) -> Result<Settled> {
        let target = self.target;
        if entry.size() > 0 {
            return Ok((Verdict::Needed { action, base }, None));
        }
        let file = matches!(entry.kind, EntryKind::File { .. });
        let made = if target.rules.dry_run {
            self.may_make(entry)?
        } else {
            self.wrote_beside(&entry.path);
            match file {
                true => target.create(entry, 0)?.publish(entry).map(|()| true)?,
                false => target.make(entry)?,
            }
        };
        let digest = (file && target.rules.returns_digests).then(|| blake3::hash(b"").into());
        Ok((Verdict::Done(if made { action } else { EntryAction::Skip }), digest))
    }

    /// That a dry run may promise to make `entry`: device nodes are for root, but for 0:0, which marks
    /// removed files of an overlay.
    fn may_make(&self, entry: &Entry) -> Result<bool> {
        let EntryKind::Special { format, rdev } = entry.kind else { return Ok(true) };
        let kind = node_kind(FileType::from_raw_mode(format));
        if kind != NodeKind::Device || rdev == 0 || self.target.policy.euid == 0 {
            return Ok(true);
        }
        let cause = Cause::Unmakeable(kind, Errno::PERM);
        Err(self.target.error("make special file", &entry.path, cause))
    }

    /// Removes an empty directory that stands in the way; a full one is an error, also in a dry run.
    fn clear_dir(&mut self, entry: &'a Entry, place: &Place<'_>) -> Result<()> {
        let (target, path) = (self.target, &entry.path);
        let failed = |cause: Cause| target.error("replace", path, cause);
        if !target.rules.dry_run {
            self.wrote_beside(path);
            return target.clear_dir(&place.dir, place.name).map_err(failed);
        }
        let fd = super::root::open_list_below(place.dir.as_fd(), place.name);
        match super::list::is_empty(&fd.map_err(|e| failed(e.into()))?) {
            Err(errno) => Err(failed(errno.into())),
            Ok(false) => Err(failed(Cause::Occupied)),
            Ok(true) => Ok(()),
        }
    }

    /// Whether there is a part file of this version.
    fn has_part(&self, entry: &Entry) -> bool {
        let target = self.target;
        entry.size() >= MAY_BE_PARTED
            && target.tree.place(&entry.path).is_ok_and(|place| {
                lstat(&place.dir, &target.part_name(entry))
                    .is_ok_and(|stat| target.is_own_part(&place.dir, &stat))
            })
    }

    /// The digest of the regular file at `place`, where one is asked for.
    fn digest_there(&self, entry: &Entry, place: &Place<'_>) -> Result<Option<Digest>> {
        if !self.target.rules.returns_digests || !matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(None);
        }
        let failed = |errno| self.target.error("read", &entry.path, errno);
        Ok(self.target.digest(place).map_err(failed)?.map(|(_, digest)| digest))
    }
}

#[cfg(test)]
mod tests;
