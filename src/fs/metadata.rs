//! How an object at the destination gets its metadata: owner, then attributes and access control lists
//! (a change of owner clears file capabilities), then mode (it clears set-uid as well, and a list sets
//! the mode anew), then time.

use super::beneath::DirHandle;
use super::error::{Cause, CauseResult};
use super::inode::{
    OwnerChange, chmod, chown, has_same_mtime, mode_of, mtime_delta_ns, set_mtime, type_of,
};
use super::metadata_warnings::{MetadataWarning, MetadataWarnings};
use super::xattr::{self, XattrObject};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, ManifestDir, Meta, Xattr};
use crate::wire::options::{Attribute, Chown, Preserve, WriteRules};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

/// What an object shall have.
#[derive(Debug, Clone, Copy)]
pub(super) struct DesiredMetadata<'a> {
    path: &'a RelPath,
    meta: Meta,
    /// `None`: this is a directory above the entries of a batch. What stands in its own entry, and what
    /// is to be said of it, is the business of the batch that has that entry.
    xattrs: Option<&'a [Xattr]>,
}

impl<'a> From<&'a Entry> for DesiredMetadata<'a> {
    fn from(entry: &'a Entry) -> Self {
        DesiredMetadata { path: &entry.path, meta: entry.meta, xattrs: Some(&entry.xattrs) }
    }
}

impl<'a> From<&'a ManifestDir> for DesiredMetadata<'a> {
    fn from(dir: &'a ManifestDir) -> Self {
        DesiredMetadata { path: &dir.path, meta: dir.meta, xattrs: None }
    }
}

/// Where an object that is dressed comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum ObjectOrigin {
    /// This process just made it. What is not preserved of group and mode it gets from the file that it
    /// replaces, where that has the owner which the new one gets.
    Created(Option<Stat>),
    /// It was there. What is not preserved stays.
    Existing,
}

/// What new files are in one directory, before anything is done to them: looked at once, for the first
/// file that is made there.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreateDefaults {
    stat: Stat,
    /// They have no attributes that would have to be taken away, and just the mode that they are made
    /// with: the directory hands nothing down.
    inherits_nothing: bool,
}

/// The directory that a file was made in last, and how files are born there. Files come in the order
/// of a walk, so one is enough.
#[derive(Debug, Default)]
pub(super) struct CreateDefaultsCache(Mutex<Option<(DirHandle, CreateDefaults)>>);

impl CreateDefaultsCache {
    pub(super) fn get(&self, dir: &DirHandle) -> Option<CreateDefaults> {
        let last = self.0.lock();
        last.as_ref().filter(|(known, _)| Arc::ptr_eq(known, dir)).map(|(_, birth)| *birth)
    }

    pub(super) fn insert(&self, dir: &DirHandle, birth: CreateDefaults) {
        let mut last = self.0.lock();
        *last = Some((Arc::clone(dir), birth));
    }
}

/// What of the metadata this process can and shall set.
#[derive(Debug)]
pub(super) struct MetadataPolicy {
    preserve: Preserve,
    chown: Chown,
    /// In nanoseconds.
    mtime_tolerance_ns: u64,
    /// Owners are set (the process is root, or as good as).
    set_owner: bool,
    /// The file system would not take an owner from us (NFS with `root_squash`, an unmapped id in a
    /// user namespace): from then on as if `set_owner` were off.
    chown_refused: AtomicBool,
    pub(super) euid: u32,
    /// The groups that this process may give its files to.
    own_groups: Vec<u32>,
    /// [`PRECISION_UNKNOWN`], [`FINE`] or [`PRECISION_COARSE`].
    mtime_precision: AtomicU8,
    umask: OnceLock<u32>,
    pub(super) warnings: MetadataWarnings,
}

/// Whether the file system keeps nanoseconds.
const PRECISION_UNKNOWN: u8 = 0;
const PRECISION_NANOSECONDS: u8 = 1;
const PRECISION_COARSE: u8 = 2;

/// Every file system holds the times between, in seconds.
const PORTABLE_MTIME_SECS: std::ops::RangeInclusive<i64> = 0..=0x7fff_ffff;

/// What is to be done about owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnerPlan {
    change: OwnerChange,
    /// The rest can't be had.
    is_incomplete: bool,
}

impl MetadataPolicy {
    pub(super) fn new(set_owner: bool, rules: &WriteRules) -> Self {
        let egid = rustix::process::getegid();
        let groups = rustix::process::getgroups().unwrap_or_default();
        MetadataPolicy {
            preserve: rules.preserve,
            chown: rules.chown,
            mtime_tolerance_ns: rules.mtime_tolerance_ns,
            set_owner,
            chown_refused: AtomicBool::new(false),
            euid: rustix::process::geteuid().as_raw(),
            own_groups: groups.into_iter().chain([egid]).map(|group| group.as_raw()).collect(),
            mtime_precision: AtomicU8::new(PRECISION_UNKNOWN),
            umask: OnceLock::new(),
            warnings: MetadataWarnings::new(rules.strict_metadata),
        }
    }

    /// Whether `one` is preserved.
    pub(super) fn preserves(&self, one: Attribute) -> bool {
        self.preserve.contains(one)
    }

    /// Whether new files take something from those that they replace.
    pub(super) fn inherits_from_replaced(&self) -> bool {
        use Attribute::{Group, Mode, Owner};
        [Mode, Owner, Group].iter().any(|one| !self.preserves(*one))
    }

    /// The mode that a directory is made with, before the umask. It is stamped later, where modes are
    /// preserved; else it follows the source's, where that is known, and its owner may fill it.
    pub(super) fn initial_dir_mode(&self, meta: Option<&Meta>) -> u32 {
        match meta {
            _ if self.preserves(Attribute::Mode) => 0o700,
            Some(meta) => meta.mode & 0o777 | 0o700,
            None => 0o777,
        }
    }

    /// The mode that a file which nobody else can reach is made with.
    pub(super) fn initial_file_mode(&self, entry: &Entry) -> u32 {
        if self.preserves(Attribute::Mode) { entry.meta.mode & 0o777 } else { 0o600 }
    }

    /// The mode that a special file is made with, likewise.
    pub(super) fn initial_special_mode(&self, meta: &Meta) -> u32 {
        if self.preserves(Attribute::Mode) { 0o600 } else { meta.mode & 0o777 }
    }

    fn can_set_owner(&self) -> bool {
        self.set_owner && !self.chown_refused.load(Ordering::Relaxed)
    }

    /// The owner and group that are asked for.
    fn desired_owner(&self, meta: &Meta) -> OwnerChange {
        OwnerChange {
            uid: self.chown.uid.or(self.preserves(Attribute::Owner).then_some(meta.uid)),
            gid: self.chown.gid.or(self.preserves(Attribute::Group).then_some(meta.gid)),
        }
    }

    /// The owner that an entry with `meta` is to have; `None` where that is not preserved.
    pub(super) fn desired_uid(&self, meta: &Meta) -> Option<u32> {
        self.desired_owner(meta).uid
    }

    fn plan_owner(&self, stat: &Stat, want: OwnerChange) -> OwnerPlan {
        let uid = want.uid.filter(|uid| *uid != stat.st_uid);
        let gid = want.gid.filter(|gid| *gid != stat.st_gid);
        if self.can_set_owner() {
            return OwnerPlan { change: OwnerChange { uid, gid }, is_incomplete: false };
        }
        let may = |gid: &u32| {
            !self.set_owner && stat.st_uid == self.euid && self.own_groups.contains(gid)
        };
        let set = OwnerChange { uid: None, gid: gid.filter(may) };
        OwnerPlan { change: set, is_incomplete: uid.is_some() || set.gid != gid }
    }

    /// The mode that an object with this owner and group gets, and whether it is less than asked for.
    /// Set-uid and set-gid on a file are only given together with the owner that they speak of:
    /// another owner would hand *his* rights to everybody.
    fn allowed_mode(&self, uid: u32, gid: u32, file_type: FileType, meta: &Meta) -> (u32, bool) {
        let own = (self.chown.uid.unwrap_or(meta.uid), self.chown.gid.unwrap_or(meta.gid));
        let full = meta.mode & 0o7777;
        let mut mode = full;
        if file_type != FileType::Directory && (uid, gid) != own {
            mode &= 0o1777;
        }
        // The kernel drops it without a word.
        if !self.set_owner && !self.own_groups.contains(&gid) {
            mode &= !0o2000;
        }
        (mode, mode != full)
    }

    /// Whether `stat` has the time of `meta`, as exactly as it is asked for.
    pub(super) fn has_same_mtime(&self, stat: &Stat, meta: &Meta) -> bool {
        !self.preserves(Attribute::Times)
            || mtime_delta_ns(stat, meta) <= u128::from(self.mtime_tolerance_ns)
    }

    /// Whether something of an existing object is to be changed; what it falls short of is noted where
    /// nothing is.
    ///
    /// # Errors
    /// Its attributes can't be read, or it falls short and may not.
    pub(super) fn needs_repair(
        &self,
        object: XattrObject<'_>,
        stat: &Stat,
        outfit: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        let plan = self.plan_owner(stat, self.desired_owner(&outfit.meta));
        let file_type = type_of(stat);
        let (mode, less) = self.allowed_mode(stat.st_uid, stat.st_gid, file_type, &outfit.meta);
        let moded = self.preserves(Attribute::Mode) && file_type != FileType::Symlink;
        if plan.change != OwnerChange::default()
            || moded && mode != mode_of(stat)
            || !self.has_same_mtime(stat, &outfit.meta)
        {
            return Ok(true);
        }
        if let Some(want) = outfit.xattrs {
            match xattr::matches(object, want, self.preserve) {
                Ok(true) => {}
                // Our own object's mode forbids to look.
                Ok(false) | Err(Errno::ACCESS) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
        if plan.is_incomplete {
            self.record_warning(outfit, MetadataWarning::Owner(Errno::PERM))?;
        }
        if moded && less {
            self.record_warning(outfit, MetadataWarning::SetId)?;
        }
        Ok(false)
    }

    /// Gives an object its metadata where it does not have them; tells whether something was changed
    /// that makes it another one than it was.
    ///
    /// # Errors
    /// A call failed: `EPERM` and `EACCES` for somebody else's object. Or it falls short and may not.
    pub(super) fn apply(
        &self,
        fd: impl AsFd,
        outfit: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
    ) -> CauseResult<bool> {
        let fd = fd.as_fd();
        let stat = rustix::fs::fstat(fd)?;
        self.apply_from_stat(fd, &stat, outfit, origin, false)
    }

    /// How new files are born in `dir`, where the one of `fd` was just made with the mode `asked`.
    ///
    /// # Errors
    /// `fstat` or `flistxattr` failed.
    pub(super) fn probe_create_defaults(
        &self,
        dir: &DirHandle,
        fd: impl AsFd,
        asked: u32,
    ) -> CauseResult<CreateDefaults> {
        let mut stat = rustix::fs::fstat(&fd)?;
        let bare = mode_of(&stat) == asked & !self.process_umask()
            && !xattr::has_default_acl(XattrObject::Open(dir.as_fd()))?
            && xattr::matches(XattrObject::Open(fd.as_fd()), &[], self.preserve)?;
        // No file has this time, so each is given its own.
        stat.st_mtime_nsec = 1_000_000_000;
        Ok(CreateDefaults { stat, inherits_nothing: bare })
    }

    /// Gives a file that was just made with the mode `asked`, where files are born like this, its
    /// metadata.
    ///
    /// # Errors
    /// See [`MetadataPolicy::dress`].
    pub(super) fn apply_to_new(
        &self,
        fd: impl AsFd,
        outfit: &DesiredMetadata<'_>,
        birth: &CreateDefaults,
        asked: u32,
    ) -> CauseResult<()> {
        if !birth.inherits_nothing || outfit.xattrs.is_some_and(|xattrs| !xattrs.is_empty()) {
            return self.apply(fd, outfit, ObjectOrigin::Created(None)).map(drop);
        }
        let mut stat = birth.stat;
        stat.st_mode = FileType::RegularFile.as_raw_mode() | asked & !self.process_umask();
        self.apply_from_stat(fd.as_fd(), &stat, outfit, ObjectOrigin::Created(None), true).map(drop)
    }

    /// The same for an object whose `stat` is known, and perhaps that it has no attributes and none
    /// are to be set.
    fn apply_from_stat(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
        bare: bool,
    ) -> CauseResult<bool> {
        let before = match origin {
            ObjectOrigin::Created(before) => before,
            ObjectOrigin::Existing => None,
        };
        let owned = self.set_owner(fd, stat, outfit, before.as_ref())?;
        let mut mode = mode_of(stat);
        let mut changed = owned.changed;
        let mut dirty = owned.changed || owned.refused_errno.is_some();
        if let (Some(want), false) = (outfit.xattrs, bare) {
            let widened = self.set_xattrs(fd, stat, want, outfit, &mut changed)?;
            mode = widened.unwrap_or(mode);
            dirty |= changed || widened.is_some();
        }
        let mut moded = true;
        if let Some((want, less)) = self.desired_mode(&owned, stat, outfit, origin, mode) {
            moded = !(dirty || want != mode) || self.set_mode(fd, stat, want, &owned, outfit)?;
            changed |= moded && want != mode_of(stat);
            if less {
                self.record_warning(outfit, MetadataWarning::SetId)?;
            }
        }
        if let Some(errno) = owned.refused_errno {
            // Where it takes the mode, the object is ours: it takes no owners from us at all.
            self.chown_refused.fetch_or(moded, Ordering::Relaxed);
            self.record_warning(outfit, MetadataWarning::Owner(errno))?;
        } else if owned.is_incomplete {
            self.record_warning(outfit, MetadataWarning::Owner(Errno::PERM))?;
        }
        Ok(self.set_mtime(fd, stat, outfit)? || changed)
    }

    fn set_owner(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &DesiredMetadata<'_>,
        before: Option<&Stat>,
    ) -> CauseResult<AppliedOwner> {
        let want = self.desired_owner(&outfit.meta);
        // The kernel reads this id as "leave it".
        if want.uid == Some(u32::MAX) || want.gid == Some(u32::MAX) {
            return Err(Errno::OVERFLOW.into());
        }
        let mut plan = self.plan_owner(stat, want);
        if let Some(before) = before {
            let old = OwnerChange { uid: None, gid: want.gid.is_none().then_some(before.st_gid) };
            plan.change.gid = plan.change.gid.or(self.plan_owner(stat, old).change.gid);
        }
        let mut owned = AppliedOwner {
            uid: stat.st_uid,
            gid: stat.st_gid,
            changed: false,
            is_incomplete: plan.is_incomplete,
            refused_errno: None,
        };
        if plan.change == OwnerChange::default() {
            return Ok(owned);
        }
        match chown(fd, plan.change) {
            Ok(()) => {
                owned.uid = plan.change.uid.unwrap_or(owned.uid);
                owned.gid = plan.change.gid.unwrap_or(owned.gid);
                owned.changed = true;
            }
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP)) => {
                owned.refused_errno = Some(errno);
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(owned)
    }

    /// Gives the mode to which the object was widened, where it had to be.
    fn set_xattrs(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        want: &[Xattr],
        outfit: &DesiredMetadata<'_>,
        changed: &mut bool,
    ) -> CauseResult<Option<u32>> {
        let bring = |patient| {
            let short = |short| self.record_warning(outfit, short);
            xattr::apply(XattrObject::Open(fd), want, self.preserve, patient, short)
        };
        let own = stat.st_uid == self.euid && type_of(stat) != FileType::Symlink;
        match bring(own) {
            Err(Cause::Os(Errno::ACCESS)) if own => {
                let wide = mode_of(stat) | 0o600;
                chmod(fd, wide)?;
                *changed |= bring(false)?;
                Ok(Some(wide))
            }
            other => {
                *changed |= other?;
                Ok(None)
            }
        }
    }

    /// The mode that it shall have, and whether that is less than asked for; `None` where it has none,
    /// or keeps its own. `now` is what it has.
    fn desired_mode(
        &self,
        owned: &AppliedOwner,
        stat: &Stat,
        outfit: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
        now: u32,
    ) -> Option<(u32, bool)> {
        let file_type = type_of(stat);
        if file_type == FileType::Symlink {
            return None;
        }
        if self.preserves(Attribute::Mode) {
            return Some(self.allowed_mode(owned.uid, owned.gid, file_type, &outfit.meta));
        }
        let own = match origin {
            ObjectOrigin::Created(Some(before)) => mode_of(&before) & 0o1777,
            // The permission bits of the source, under the umask.
            ObjectOrigin::Created(None) if file_type == FileType::RegularFile => {
                outfit.meta.mode & 0o777 & !self.process_umask()
            }
            // See `initial_dir_mode`.
            ObjectOrigin::Created(None) if file_type == FileType::Directory => {
                mode_of(stat) & !(0o700 & !outfit.meta.mode)
            }
            // All others are made with the mode that they keep.
            _ => mode_of(stat),
        };
        (own != now).then_some((own, false))
    }

    /// Sets the mode; `false` where the file system does not take it.
    fn set_mode(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        mode: u32,
        owned: &AppliedOwner,
        outfit: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        match chmod(fd, mode) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP))
                if self.set_owner || stat.st_uid == self.euid =>
            {
                self.record_warning(outfit, MetadataWarning::Mode(errno)).map(|()| false)
            }
            Err(Errno::PERM) => Err(owned.refused_errno.unwrap_or(Errno::PERM).into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_mtime(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        let meta = &outfit.meta;
        if !self.preserves(Attribute::Times) || has_same_mtime(stat, meta) {
            return Ok(false);
        }
        match set_mtime(fd, meta) {
            Ok(()) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                return self.record_warning(outfit, MetadataWarning::Mtime(errno)).map(|()| false);
            }
            Err(errno) => return Err(errno.into()),
        }
        self.verify_mtime(fd, outfit)?;
        Ok(!self.has_same_mtime(stat, meta))
    }

    /// Looks whether the time arrived, where that is in doubt: outside of [`PORTABLE_MTIME_SECS`], and until
    /// one shows whether the file system keeps nanoseconds.
    fn verify_mtime(&self, fd: BorrowedFd<'_>, outfit: &DesiredMetadata<'_>) -> CauseResult<()> {
        let meta = &outfit.meta;
        let safe = PORTABLE_MTIME_SECS.contains(&meta.mtime_sec);
        // Zeros at its end say nothing about the clock: some have steps of 100 ns.
        let telling = !meta.mtime_nsec.is_multiple_of(100);
        let clock = self.mtime_precision.load(Ordering::Relaxed);
        if safe && (clock == PRECISION_NANOSECONDS || clock == PRECISION_UNKNOWN && !telling) {
            return Ok(());
        }
        let stat = rustix::fs::fstat(fd)?;
        if has_same_mtime(&stat, meta) {
            if telling {
                self.mtime_precision.store(PRECISION_NANOSECONDS, Ordering::Relaxed);
            }
            return Ok(());
        }
        // The coarsest clock, FAT's, has steps of two seconds.
        if mtime_delta_ns(&stat, meta) > 2_000_000_000 {
            return self.record_warning(outfit, MetadataWarning::ClampedMtime);
        }
        self.mtime_precision.store(PRECISION_COARSE, Ordering::Relaxed);
        self.record_warning(outfit, MetadataWarning::RoundedMtime)
    }

    fn record_warning(
        &self,
        outfit: &DesiredMetadata<'_>,
        short: MetadataWarning,
    ) -> CauseResult<()> {
        if outfit.xattrs.is_some() {
            self.warnings.record(outfit.path, short)?;
        }
        Ok(())
    }

    fn process_umask(&self) -> u32 {
        *self.umask.get_or_init(|| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
            line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
        })
    }
}

/// An object after its owner was set.
struct AppliedOwner {
    uid: u32,
    gid: u32,
    changed: bool,
    is_incomplete: bool,
    refused_errno: Option<Errno>,
}

#[cfg(test)]
mod tests;
