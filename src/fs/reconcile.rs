//! What can be done at the destination without content: in a repeated sync, nearly everything.

use super::beneath::{DirHandle, open_listable_below, split_parent};
use super::dir_list::is_dir_empty;
use super::error::{Cause, Result, SpecialKind};
use super::inode::{has_same_kind, lstat, meta_of, mtime_delta_ns, size_of, type_of};
use super::metadata::{DesiredMetadata, ObjectOrigin};
use super::root::ParentAndName;
use super::special_files::{MetadataRepair, special_kind_of};
use super::target::Target;
use super::thread_cwd::ThreadCwd;
use super::xattr::XattrObject;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, EntryKind, Manifest, ManifestDir, Meta};
use crate::wire::options::Compare;
use crate::wire::outcome::EntryError;
use crate::wire::{Digest, RelPath};
use minicbor::{Decode, Encode};
use rustix::fd::AsFd;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The shortest file with a part file, in bytes.
const MIN_PART_FILE_BYTES: u64 = 256 << 10;

/// The decision about one entry of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum OfferDecision {
    /// The entry is up to date now, or skipped. In a dry run: it needs no content to become so.
    #[n(0)]
    Done(#[n(0)] EntryAction),
    /// Its content is to be sent.
    #[n(1)]
    NeedsContent {
        /// [`EntryAction::Create`] or [`EntryAction::Update`].
        #[n(0)]
        action: EntryAction,
        /// There is something to compare blocks with ([`Target::hash_blocks`]): a regular file of this name, or a
        /// part file of this version.
        #[n(1)]
        has_basis: bool,
    },
    /// Content is compared and has the same length: the digest of the source is needed ([`Entry::digest`]).
    #[n(2)]
    NeedsDigest,
}

/// The outcome of a batch without its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReconcileResult {
    /// One for each entry, in order.
    pub decisions: Vec<std::result::Result<OfferDecision, EntryError>>,
    /// Likewise: the digests of the regular files at the destination, if requested and the decision is
    /// [`OfferDecision::Done`].
    pub digests: Vec<Option<Digest>>,
    /// Indices of directories of the batch that are new at the destination and have no entry in the batch. None in a
    /// dry run.
    pub created_dirs: Vec<u32>,
}

impl Target {
    /// Does everything in a batch that needs no content, by the rules of this target: creates directories, links,
    /// special and empty files, compares the other files, repairs the metadata of equal ones. Directories that were
    /// written into get their metadata afterwards.
    ///
    /// In a dry run the decisions are the same, and nothing is changed.
    pub fn reconcile(&self, manifest: &Manifest) -> ReconcileResult {
        self.tree.dir_cache.clear();
        let _near = ThreadCwd::unshare();
        let mut batch = ReconcileBatch {
            target: self,
            dirs: manifest.dirs.iter().map(|d| (d.path.as_bytes(), d)).collect(),
            dir_states: HashMap::new(),
            pending_dir_metadata: BTreeMap::new(),
        };
        let mut made: Vec<u32> = Vec::new();
        for (dir, place) in manifest.dirs.iter().zip(0..) {
            let found = batch.ensure_dir(&dir.path, &dir.meta);
            batch.dir_states.insert(dir.path.as_bytes(), found);
            if matches!(found, DirState::New | DirState::Replaced) {
                batch.pending_dir_metadata.entry(&dir.path).or_insert(dir.into());
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
        let (mut decisions, digests): (Vec<_>, Vec<_>) = manifest
            .entries
            .iter()
            .map(|entry| match batch.reconcile_entry(entry) {
                Ok((decision, digest)) => (Ok(decision), digest),
                Err(error) => (Err(error.to_entry_error()), None),
            })
            .unzip();
        if !self.rules.dry_run {
            if self.has_widened_dirs() {
                for dir in &manifest.dirs {
                    batch.pending_dir_metadata.entry(&dir.path).or_insert(dir.into());
                }
            }
            let origin = |path: &RelPath| match batch.dir_states.get(path.as_bytes()) {
                Some(DirState::New | DirState::Replaced) => ObjectOrigin::Created(None),
                _ => ObjectOrigin::Existing,
            };
            let failed = self.apply_all_dir_metadata(&batch.pending_dir_metadata, origin);
            for (entry, decision) in manifest.entries.iter().zip(&mut decisions) {
                if let (EntryKind::Dir, Some(error)) = (&entry.kind, failed.get(&entry.path)) {
                    *decision = Err(error.to_entry_error());
                }
            }
            // Errors of other directories are reported by the batch with their entry.
        }
        ReconcileResult { decisions, digests, created_dirs: made }
    }
}

/// The state of the path of a directory.
#[derive(Clone, Copy)]
enum DirState {
    /// It exists; the stat is from before anything was written into it.
    Existing(Stat),
    /// It is created (in a dry run: would be).
    New,
    /// It replaces another object (in a dry run: would).
    Replaced,
    /// It is not to be created, so nothing below it is.
    Skipped,
    /// It can't be used: everything below it fails with this errno.
    Unavailable(Errno),
}

/// The result of a content comparison.
enum ContentComparison {
    /// Equal; with the digest, if it was read.
    Equal(Option<Digest>),
    Differs,
    /// The digest of the source is needed.
    DigestNeeded,
}

type EntryResult = (OfferDecision, Option<Digest>);

/// A batch in progress.
struct ReconcileBatch<'a> {
    target: &'a Target,
    /// The directories of the manifest by path.
    dirs: HashMap<&'a [u8], &'a ManifestDir>,
    /// What was found at their places.
    dir_states: HashMap<&'a [u8], DirState>,
    /// The metadata to apply to directories at the end; children sort after their parents.
    pending_dir_metadata: BTreeMap<&'a RelPath, DesiredMetadata<'a>>,
}

/// Directories.
impl<'a> ReconcileBatch<'a> {
    /// Creates a directory, unless it exists or its parent is unavailable.
    fn ensure_dir(&mut self, path: &'a RelPath, meta: &Meta) -> DirState {
        let rules = &self.target.rules;
        match self.parent_state(path) {
            Some(DirState::Unavailable(errno)) => return DirState::Unavailable(errno),
            Some(DirState::Skipped) => return DirState::Skipped,
            Some(DirState::New | DirState::Replaced) if rules.dry_run => return DirState::New,
            _ => {}
        }
        let there = |dir: &DirHandle| {
            rustix::fs::fstat(dir).map_or_else(DirState::Unavailable, DirState::Existing)
        };
        let new = match self.target.tree.cached_dir(path.as_bytes()) {
            Ok(dir) => return there(&dir),
            Err(errno) if self.target.is_dir_skipped(path, errno) => return DirState::Skipped,
            Err(Errno::NOTDIR | Errno::LOOP) if !path.is_root() => DirState::Replaced,
            Err(Errno::NOENT) => DirState::New,
            Err(Errno::ACCESS) if !rules.dry_run => DirState::New,
            Err(errno) => return DirState::Unavailable(errno),
        };
        if rules.dry_run {
            return new;
        }
        match self.target.ensure_dir_with_meta(path.as_bytes(), true, Some(meta)) {
            Ok((_, true)) => {
                self.mark_parent_written(path);
                new
            }
            Ok((dir, false)) => there(&dir),
            Err(errno) => DirState::Unavailable(errno),
        }
    }

    /// The state of the parent directory of `path`.
    fn parent_state(&self, path: &RelPath) -> Option<DirState> {
        if path.is_root() {
            None
        } else {
            self.dir_states.get(split_parent(path.as_bytes()).0).copied()
        }
    }

    /// The state of the parent directory of `path`.
    fn mark_parent_written(&mut self, path: &RelPath) {
        if !path.is_root()
            && let Some(dir) = self.dirs.get(split_parent(path.as_bytes()).0)
        {
            self.pending_dir_metadata.entry(&dir.path).or_insert((*dir).into());
        }
    }

    fn reconcile_dir(&mut self, entry: &'a Entry) -> Result<OfferDecision> {
        let path = &entry.path;
        let found = match self.dir_states.get(path.as_bytes()) {
            Some(found) => *found,
            None => {
                let found = self.ensure_dir(path, &entry.meta);
                self.dir_states.insert(path.as_bytes(), found);
                found
            }
        };
        let action = match found {
            DirState::Unavailable(errno) => {
                return Err(self.target.error("make directory", path, errno));
            }
            DirState::Skipped => return Ok(OfferDecision::Done(EntryAction::Skip)),
            DirState::New => EntryAction::Create,
            DirState::Replaced => EntryAction::Update,
            DirState::Existing(stat) => {
                let failed = |cause| self.target.error("compare", path, cause);
                let dir =
                    self.target.tree.cached_dir(path.as_bytes()).map_err(|e| failed(e.into()))?;
                // Its stat is from before this batch wrote into it.
                let differs = self.target.policy.needs_repair(
                    XattrObject::Open(dir.as_fd()),
                    &stat,
                    &DesiredMetadata::from(entry),
                );
                if !differs.map_err(failed)? {
                    return Ok(OfferDecision::Done(EntryAction::Skip));
                }
                // Another batch created it as a parent directory, and reported it.
                match self.target.tree.root.is_created_by_sync(self.target.sync_no, &stat) {
                    true => EntryAction::Skip,
                    false => EntryAction::Metadata,
                }
            }
        };
        self.pending_dir_metadata.insert(path, entry.into());
        Ok(OfferDecision::Done(action))
    }
}

/// Everything else.
impl<'a> ReconcileBatch<'a> {
    fn reconcile_entry(&mut self, entry: &'a Entry) -> Result<EntryResult> {
        if entry.is_dir() {
            return Ok((self.reconcile_dir(entry)?, None));
        }
        let (target, path) = (self.target, &entry.path);
        let rules = &target.rules;
        let skipped = (OfferDecision::Done(EntryAction::Skip), None);
        let place = match self.parent_state(path) {
            Some(DirState::Unavailable(errno)) => {
                return Err(target.error("make directory above", path, errno));
            }
            Some(DirState::Skipped) => return Ok(skipped),
            Some(DirState::New | DirState::Replaced) if rules.dry_run => None,
            _ => self.locate_entry(entry)?,
        };
        if target.excludes_kind(entry) {
            return Ok(skipped);
        }
        let stat = place.as_ref().and_then(|(_, stat)| *stat);
        let is_dir = stat.is_some_and(|stat| type_of(&stat) == FileType::Directory);
        match (&place, stat) {
            (_, None) if rules.existing => return Ok(skipped),
            (Some((place, _)), Some(stat)) if self.is_left_unchanged(&stat, entry) => {
                return Ok((
                    OfferDecision::Done(EntryAction::Skip),
                    self.hash_if_requested(entry, place)?,
                ));
            }
            _ => {}
        }
        let action = if stat.is_some() { EntryAction::Update } else { EntryAction::Create };
        if let Some((place, _)) = &place
            && let Some(done) = self.link_to_anchor(entry, place, stat.as_ref(), action)?
        {
            return Ok(done);
        }
        let Some((place, stat)) = place.and_then(|(place, stat)| Some((place, stat?))) else {
            return self.create_or_request(entry, action, self.has_part_file(entry));
        };
        match self.compare(entry, &place, &stat)? {
            ContentComparison::DigestNeeded => Ok((OfferDecision::NeedsDigest, None)),
            ContentComparison::Equal(digest) => self.keep_content(entry, &place, &stat, digest),
            ContentComparison::Differs => {
                if is_dir {
                    self.remove_obstructing_dir(entry, &place)?;
                }
                let regular = type_of(&stat) == FileType::RegularFile && size_of(&stat) > 0;
                drop(place);
                self.create_or_request(entry, action, regular || self.has_part_file(entry))
            }
        }
    }

    /// Links `entry` to another name of its file that is already here.
    fn link_to_anchor(
        &mut self,
        entry: &'a Entry,
        place: &ParentAndName<'_>,
        there: Option<&Stat>,
        action: EntryAction,
    ) -> Result<Option<EntryResult>> {
        let failed = |cause| self.target.error("link", &entry.path, cause);
        let linked = self.target.link_to_anchor(place, entry, there, action).map_err(failed)?;
        let Some(action) = linked else { return Ok(None) };
        if action != EntryAction::Skip {
            self.mark_parent_written(&entry.path);
        }
        let digest = match self.target.rules.dry_run {
            true => None,
            false => self.hash_if_requested(entry, place)?,
        };
        Ok(Some((OfferDecision::Done(action), digest)))
    }

    /// The place of `entry` and its lstat. Missing parent directories are created, unless nothing may be: then there
    /// is no place.
    fn locate_entry(&self, entry: &'a Entry) -> Result<Option<(ParentAndName<'a>, Option<Stat>)>> {
        let target = self.target;
        let failed = |op: &'static str, errno: Errno| target.error(op, &entry.path, errno);
        let place = match target.tree.locate(&entry.path) {
            Err(Errno::NOENT) if target.rules.dry_run || target.rules.existing => return Ok(None),
            Err(Errno::NOENT | Errno::ACCESS) if !target.rules.dry_run => {
                target.locate_or_create_parents(&entry.path)
            }
            other => other,
        };
        let place = place.map_err(|errno| failed("reach", errno))?;
        // Created by this batch a moment ago, so it is empty. An object that another process created since is
        // replaced.
        if matches!(self.parent_state(&entry.path), Some(DirState::New | DirState::Replaced)) {
            return Ok(Some((place, None)));
        }
        match target.with_writable_dir(&place.dir, || lstat(&place.dir, place.name)) {
            Ok(stat) => {
                let checked = target.tree.check_spelling(&place.dir, place.name);
                checked.map_err(|errno| failed("compare", errno))?;
                Ok(Some((place, Some(stat))))
            }
            Err(Errno::NOENT) => Ok(Some((place, None))),
            Err(errno) => Err(failed("compare", errno)),
        }
    }

    /// Whether the existing object is left unchanged, whatever its content. Only of two regular files can one be the
    /// newer version of the other.
    fn is_left_unchanged(&self, stat: &Stat, entry: &Entry) -> bool {
        let (rules, meta) = (&self.target.rules, &entry.meta);
        let time = |meta: &Meta| (meta.mtime_sec, meta.mtime_nsec);
        let newer = time(&meta_of(stat)) > time(meta)
            && mtime_delta_ns(stat, meta) > u128::from(rules.mtime_tolerance_ns);
        let files =
            matches!(entry.kind, EntryKind::File { .. }) && type_of(stat) == FileType::RegularFile;
        rules.ignore_existing || rules.update && files && newer
    }

    /// The existing object with `entry`.
    fn compare(
        &self,
        entry: &Entry,
        place: &ParentAndName<'_>,
        stat: &Stat,
    ) -> Result<ContentComparison> {
        let rules = &self.target.rules;
        if !has_same_kind(&place.dir, place.name, stat, &entry.kind) {
            return Ok(ContentComparison::Differs);
        }
        if entry.size() == 0 {
            return Ok(ContentComparison::Equal(None));
        }
        let same = match rules.compare {
            Compare::Size => true,
            Compare::SizeTime => {
                mtime_delta_ns(stat, &entry.meta) <= u128::from(rules.mtime_tolerance_ns)
            }
            Compare::Checksum => return self.compare_digests(entry, place),
        };
        if !same {
            return Ok(ContentComparison::Differs);
        }
        if !self.target.is_suspect(stat) {
            return Ok(ContentComparison::Equal(None));
        }
        let content = self.compare_digests(entry, place)?;
        if matches!(content, ContentComparison::Equal(_)) && !rules.dry_run {
            // It is no longer suspect.
            let again = self.target.refresh_ctime(place, stat);
            again.map_err(|errno| self.target.error("set metadata of", &entry.path, errno))?;
        }
        Ok(content)
    }

    fn compare_digests(
        &self,
        entry: &Entry,
        place: &ParentAndName<'_>,
    ) -> Result<ContentComparison> {
        let Some(wanted) = entry.digest else { return Ok(ContentComparison::DigestNeeded) };
        match self.target.hash_file(place) {
            Ok(Some((size, digest))) if size == entry.size() && digest == wanted => {
                Ok(ContentComparison::Equal(Some(digest)))
            }
            // What can't be read can be replaced.
            Ok(_) | Err(Errno::ACCESS) => Ok(ContentComparison::Differs),
            Err(errno) => Err(self.target.error("read", &entry.path, errno)),
        }
    }

    /// The content is right: applies the metadata, in place if possible.
    fn keep_content(
        &mut self,
        entry: &'a Entry,
        place: &ParentAndName<'_>,
        stat: &Stat,
        digest: Option<Digest>,
    ) -> Result<EntryResult> {
        let failed = |cause| self.target.error("set metadata of", &entry.path, cause);
        let action = match self.target.repair_metadata(place, stat, entry).map_err(failed)? {
            MetadataRepair::InPlace(action) => action,
            MetadataRepair::NeedsReplacement | MetadataRepair::ForeignOwner if entry.size() > 0 => {
                return Ok((
                    OfferDecision::NeedsContent { action: EntryAction::Update, has_basis: true },
                    None,
                ));
            }
            MetadataRepair::NeedsReplacement => {
                return self.create_or_request(entry, EntryAction::Metadata, false);
            }
            MetadataRepair::ForeignOwner => {
                return self.create_or_request(entry, EntryAction::Update, false);
            }
        };
        let digest = match digest {
            None => self.hash_if_requested(entry, place)?,
            known => known.filter(|_| self.target.rules.returns_digests),
        };
        Ok((OfferDecision::Done(action), digest))
    }

    /// Creates what needs no content; requests it for the rest.
    fn create_or_request(
        &mut self,
        entry: &'a Entry,
        action: EntryAction,
        base: bool,
    ) -> Result<EntryResult> {
        let target = self.target;
        if entry.size() > 0 {
            return Ok((OfferDecision::NeedsContent { action, has_basis: base }, None));
        }
        let file = matches!(entry.kind, EntryKind::File { .. });
        let made = if target.rules.dry_run {
            self.check_can_create(entry)?
        } else {
            self.mark_parent_written(&entry.path);
            match file {
                true => target.create(entry, 0)?.publish(entry).map(|()| true)?,
                false => target.create_special(entry)?,
            }
        };
        let digest = (file && target.rules.returns_digests).then(|| blake3::hash(b"").into());
        Ok((OfferDecision::Done(if made { action } else { EntryAction::Skip }), digest))
    }

    /// Whether a dry run may promise to create `entry`: device nodes need root, except 0:0, which marks removed files
    /// of an overlay.
    fn check_can_create(&self, entry: &Entry) -> Result<bool> {
        let EntryKind::Special { format, rdev } = entry.kind else { return Ok(true) };
        let kind = special_kind_of(FileType::from_raw_mode(format));
        if kind != SpecialKind::Device || rdev == 0 || self.target.policy.euid == 0 {
            return Ok(true);
        }
        let cause = Cause::CannotCreate(kind, Errno::PERM);
        Err(self.target.error("make special file", &entry.path, cause))
    }

    /// Removes an obstructing empty directory; a non-empty one is an error, also in a dry run.
    fn remove_obstructing_dir(
        &mut self,
        entry: &'a Entry,
        place: &ParentAndName<'_>,
    ) -> Result<()> {
        let (target, path) = (self.target, &entry.path);
        let failed = |cause: Cause| target.error("replace", path, cause);
        if !target.rules.dry_run {
            self.mark_parent_written(path);
            return target.remove_empty_dir(&place.dir, place.name).map_err(failed);
        }
        let fd = open_listable_below(place.dir.as_fd(), place.name);
        match is_dir_empty(&fd.map_err(|e| failed(e.into()))?) {
            Err(errno) => Err(failed(errno.into())),
            Ok(false) => Err(failed(Cause::DirectoryNotEmpty)),
            Ok(true) => Ok(()),
        }
    }

    /// Whether there is a part file of this version.
    fn has_part_file(&self, entry: &Entry) -> bool {
        let target = self.target;
        entry.size() >= MIN_PART_FILE_BYTES
            && target.tree.locate(&entry.path).is_ok_and(|place| {
                lstat(&place.dir, &target.part_file_name(entry))
                    .is_ok_and(|stat| target.is_own_part(&place.dir, &stat))
            })
    }

    /// The digest of the regular file at `place`, if requested.
    fn hash_if_requested(
        &self,
        entry: &Entry,
        place: &ParentAndName<'_>,
    ) -> Result<Option<Digest>> {
        if !self.target.rules.returns_digests || !matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(None);
        }
        let failed = |errno| self.target.error("read", &entry.path, errno);
        Ok(self.target.hash_file(place).map_err(failed)?.map(|(_, digest)| digest))
    }
}

#[cfg(test)]
mod tests;
