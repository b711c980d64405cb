//! How an object at the destination gets its metadata: owner, then attributes and access control lists (a change of
//! owner clears file capabilities), then mode (chown clears set-uid as well, and a list sets the mode again), then
//! mtime.

use super::beneath::DirHandle;
use super::error::{Cause, CauseResult};
use super::inode::{
    OwnerChange, chmod, chown, has_same_mtime, mode_of, mtime_delta_ns, set_mtime, type_of,
};
use super::metadata_warnings::{MetadataWarning, MetadataWarnings};
use super::run_as::ActingUser;
use super::xattr::{self, XattrObject};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, ManifestDir, Meta, Xattr};
use crate::wire::options::{Chown, WriteRules};
use crate::wire::preserve::{Attribute, Preserve};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The metadata that an object must get.
#[derive(Debug, Clone, Copy)]
pub(super) struct DesiredMetadata<'a> {
    pub(super) path: &'a RelPath,
    pub(super) meta: Meta,
    /// `None` for a directory above the entries of a batch: another batch has its entry, sets its attributes and
    /// records its warnings.
    pub(super) xattrs: Option<&'a [Xattr]>,
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

/// Where an object comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum ObjectOrigin {
    /// This process created it. Group and mode that are not preserved come from the file that it replaces, where that
    /// has the same owner.
    Created(Option<Stat>),
    /// It existed. What is not preserved stays unchanged.
    Existing,
}

/// The state of new files in one directory right after creation, read for the first file that is created there.
#[derive(Debug, Clone, Copy)]
pub(super) struct CreateDefaults {
    stat: Stat,
    /// They have no attributes to remove and exactly the requested mode: the directory has no default ACL.
    inherits_nothing: bool,
}

/// Which metadata this process can and must set.
#[derive(Debug)]
pub(super) struct MetadataPolicy {
    preserve: Preserve,
    chown: Chown,
    /// Whether the file system stores nanoseconds.
    mtime_tolerance_ns: u64,
    /// Owners are set (the process is root, or has its capabilities).
    set_owner: bool,
    /// The file system rejected an owner (NFS with `root_squash`, an unmapped id in a user namespace): from then on
    /// as if `set_owner` were off.
    chown_refused: AtomicBool,
    pub(super) euid: u32,
    /// The groups to which this process may give its files.
    own_groups: Vec<u32>,
    /// Whether the file system keeps nanoseconds, once a file has shown it.
    keeps_nanoseconds: OnceLock<bool>,
    umask: OnceLock<u32>,
    pub(super) warnings: MetadataWarnings,
}

/// Every file system stores mtimes in this range, in seconds.
const PORTABLE_MTIME_SECS: std::ops::RangeInclusive<i64> = 0..=0x7fff_ffff;

/// The change of owner and group to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnerPlan {
    change: OwnerChange,
    /// The rest can't be set.
    is_incomplete: bool,
}

impl MetadataPolicy {
    /// That of work as `identity`.
    pub(super) fn new(set_owner: bool, rules: &WriteRules, identity: &ActingUser) -> Self {
        let (euid, own_groups) = match identity.user() {
            Some(user) => (user.uid, user.groups.iter().copied().chain([user.gid]).collect()),
            None => {
                let egid = rustix::process::getegid();
                let groups = rustix::process::getgroups().unwrap_or_default();
                let groups = groups.into_iter().chain([egid]).map(|group| group.as_raw()).collect();
                (rustix::process::geteuid().as_raw(), groups)
            }
        };
        MetadataPolicy {
            preserve: rules.preserve,
            chown: rules.chown,
            mtime_tolerance_ns: rules.mtime_tolerance_ns,
            set_owner,
            chown_refused: AtomicBool::new(false),
            euid,
            own_groups,
            keeps_nanoseconds: OnceLock::new(),
            umask: OnceLock::new(),
            warnings: MetadataWarnings::new(rules.strict_metadata),
        }
    }

    /// Whether `one` is preserved.
    pub(super) fn preserves(&self, one: Attribute) -> bool {
        self.preserve.contains(one)
    }

    /// Whether new files inherit metadata from the files that they replace.
    pub(super) fn inherits_from_replaced(&self) -> bool {
        use Attribute::{Group, Mode, Owner};
        [Mode, Owner, Group].iter().any(|one| !self.preserves(*one))
    }

    /// The mode with which a directory is created, before the umask. Its metadata is applied later where modes are
    /// preserved; otherwise the mode follows the source's, if known, and lets the owner write.
    pub(super) fn initial_dir_mode(&self, meta: Option<&Meta>) -> u32 {
        match meta {
            _ if self.preserves(Attribute::Mode) => 0o700,
            Some(meta) => meta.mode & 0o777 | 0o700,
            None => 0o777,
        }
    }

    /// The mode with which a file that no other process can reach is created.
    pub(super) fn initial_file_mode(&self, entry: &Entry) -> u32 {
        if self.preserves(Attribute::Mode) { entry.meta.mode & 0o777 } else { 0o600 }
    }

    /// Likewise for a special file.
    pub(super) fn initial_special_mode(&self, meta: &Meta) -> u32 {
        if self.preserves(Attribute::Mode) { 0o600 } else { meta.mode & 0o777 }
    }

    /// The requested owner and group.
    pub(super) fn desired_owner(&self, meta: &Meta) -> OwnerChange {
        OwnerChange {
            uid: self.chown.uid.or(self.preserves(Attribute::Owner).then_some(meta.uid)),
            gid: self.chown.gid.or(self.preserves(Attribute::Group).then_some(meta.gid)),
        }
    }

    fn plan_owner(&self, stat: &Stat, want: OwnerChange) -> OwnerPlan {
        let uid = want.uid.filter(|uid| *uid != stat.st_uid);
        let gid = want.gid.filter(|gid| *gid != stat.st_gid);
        if self.set_owner && !self.chown_refused.load(Ordering::Relaxed) {
            return OwnerPlan { change: OwnerChange { uid, gid }, is_incomplete: false };
        }
        let may = |gid: &u32| {
            !self.set_owner && stat.st_uid == self.euid && self.own_groups.contains(gid)
        };
        let set = OwnerChange { uid: None, gid: gid.filter(may) };
        OwnerPlan { change: set, is_incomplete: uid.is_some() || set.gid != gid }
    }

    /// The mode for an object with this owner and group, and whether it is less than requested. Set-uid and set-gid
    /// on a file are set only together with their owner: another owner would grant its rights to everyone.
    fn allowed_mode(&self, uid: u32, gid: u32, file_type: FileType, meta: &Meta) -> (u32, bool) {
        let own = (self.chown.uid.unwrap_or(meta.uid), self.chown.gid.unwrap_or(meta.gid));
        let full = meta.mode & 0o7777;
        let mut mode = full;
        if file_type != FileType::Directory && (uid, gid) != own {
            mode &= 0o1777;
        }
        // The kernel drops it silently.
        if !self.set_owner && !self.own_groups.contains(&gid) {
            mode &= !0o2000;
        }
        (mode, mode != full)
    }

    /// Whether the mtime of `stat` equals that of `meta` within the tolerance.
    pub(super) fn has_same_mtime(&self, stat: &Stat, meta: &Meta) -> bool {
        !self.preserves(Attribute::Times)
            || mtime_delta_ns(stat, meta) <= u128::from(self.mtime_tolerance_ns)
    }

    /// Whether an existing object needs a change. If not, its warnings are recorded.
    ///
    /// # Errors
    /// Its attributes can't be read, or a warning is an error (strict metadata).
    pub(super) fn needs_repair(
        &self,
        object: XattrObject<'_>,
        stat: &Stat,
        desired: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        let plan = self.plan_owner(stat, self.desired_owner(&desired.meta));
        let file_type = type_of(stat);
        let (mode, less) = self.allowed_mode(stat.st_uid, stat.st_gid, file_type, &desired.meta);
        let sets_mode = self.preserves(Attribute::Mode) && file_type != FileType::Symlink;
        if plan.change != OwnerChange::default()
            || sets_mode && mode != mode_of(stat)
            || !self.has_same_mtime(stat, &desired.meta)
        {
            return Ok(true);
        }
        if let Some(want) = desired.xattrs {
            match xattr::matches(object, want, self.preserve) {
                Ok(true) => {}
                // The mode of our own object forbids reading them.
                Ok(false) | Err(Errno::ACCESS) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
        if plan.is_incomplete {
            self.record_warning(desired, MetadataWarning::Owner(Errno::PERM))?;
        }
        if sets_mode && less {
            self.record_warning(desired, MetadataWarning::SetId)?;
        }
        Ok(false)
    }

    /// Applies the metadata where they differ; returns whether something changed that makes it another object.
    ///
    /// # Errors
    /// A call failed (`EPERM` and `EACCES` for an object of another user), or a warning is an error.
    pub(super) fn apply(
        &self,
        fd: impl AsFd,
        desired: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
    ) -> CauseResult<bool> {
        let fd = fd.as_fd();
        let stat = rustix::fs::fstat(fd)?;
        self.apply_from_stat(fd, &stat, desired, origin, false)
    }

    /// The defaults of new files in `dir`, from the file `fd` that was just created with the mode `asked`.
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
        // No file has this time, so each gets its own.
        stat.st_mtime_nsec = 1_000_000_000;
        Ok(CreateDefaults { stat, inherits_nothing: bare })
    }

    /// Applies the metadata to a file that was just created with the mode `asked` under these defaults.
    ///
    /// # Errors
    /// See [`MetadataPolicy::apply`].
    pub(super) fn apply_to_new(
        &self,
        fd: impl AsFd,
        desired: &DesiredMetadata<'_>,
        birth: &CreateDefaults,
        asked: u32,
    ) -> CauseResult<()> {
        if !birth.inherits_nothing || desired.xattrs.is_some_and(|xattrs| !xattrs.is_empty()) {
            return self.apply(fd, desired, ObjectOrigin::Created(None)).map(drop);
        }
        let mut stat = birth.stat;
        stat.st_mode = FileType::RegularFile.as_raw_mode() | asked & !self.process_umask();
        self.apply_from_stat(fd.as_fd(), &stat, desired, ObjectOrigin::Created(None), true)
            .map(drop)
    }

    /// Applies metadata to an object with a known `stat`; `bare`: it has no attributes and none are to be set.
    fn apply_from_stat(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        desired: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
        bare: bool,
    ) -> CauseResult<bool> {
        let before = match origin {
            ObjectOrigin::Created(before) => before,
            ObjectOrigin::Existing => None,
        };
        let applied = self.set_owner(fd, stat, desired, before.as_ref())?;
        let mut mode = mode_of(stat);
        let mut changed = applied.changed;
        let mut dirty = applied.changed || applied.refused_errno.is_some();
        if let (Some(want), false) = (desired.xattrs, bare) {
            let widened = self.set_xattrs(fd, stat, want, desired, &mut changed)?;
            mode = widened.unwrap_or(mode);
            dirty |= changed || widened.is_some();
        }
        let mut sets_mode = true;
        if let Some((want, less)) = self.desired_mode(&applied, stat, desired, origin, mode) {
            sets_mode =
                !(dirty || want != mode) || self.set_mode(fd, stat, want, &applied, desired)?;
            changed |= sets_mode && want != mode_of(stat);
            if less {
                self.record_warning(desired, MetadataWarning::SetId)?;
            }
        }
        if let Some(errno) = applied.refused_errno {
            // If it accepts the mode, the object is our own: the file system accepts no owners from this user.
            self.chown_refused.fetch_or(sets_mode, Ordering::Relaxed);
            self.record_warning(desired, MetadataWarning::Owner(errno))?;
        } else if applied.is_incomplete {
            self.record_warning(desired, MetadataWarning::Owner(Errno::PERM))?;
        }
        Ok(self.set_mtime(fd, stat, desired)? || changed)
    }

    fn set_owner(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        desired: &DesiredMetadata<'_>,
        before: Option<&Stat>,
    ) -> CauseResult<AppliedOwner> {
        let want = self.desired_owner(&desired.meta);
        // The kernel reads this id as "unchanged".
        if want.uid == Some(u32::MAX) || want.gid == Some(u32::MAX) {
            return Err(Errno::OVERFLOW.into());
        }
        let mut plan = self.plan_owner(stat, want);
        if let Some(before) = before {
            let old = OwnerChange { uid: None, gid: want.gid.is_none().then_some(before.st_gid) };
            plan.change.gid = plan.change.gid.or(self.plan_owner(stat, old).change.gid);
        }
        let mut applied = AppliedOwner {
            uid: stat.st_uid,
            gid: stat.st_gid,
            changed: false,
            is_incomplete: plan.is_incomplete,
            refused_errno: None,
        };
        if plan.change == OwnerChange::default() {
            return Ok(applied);
        }
        match chown(fd, plan.change) {
            Ok(()) => {
                applied.uid = plan.change.uid.unwrap_or(applied.uid);
                applied.gid = plan.change.gid.unwrap_or(applied.gid);
                applied.changed = true;
            }
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP)) => {
                applied.refused_errno = Some(errno);
            }
            Err(errno) => return Err(errno.into()),
        }
        Ok(applied)
    }

    /// Returns the mode to which the object was widened, where that was necessary.
    fn set_xattrs(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        want: &[Xattr],
        desired: &DesiredMetadata<'_>,
        changed: &mut bool,
    ) -> CauseResult<Option<u32>> {
        let bring = |patient| {
            let short = |short| self.record_warning(desired, short);
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

    /// The mode to set, and whether it is less than requested; `None` where the object has none or keeps its own.
    /// `now` is its present mode.
    fn desired_mode(
        &self,
        applied: &AppliedOwner,
        stat: &Stat,
        desired: &DesiredMetadata<'_>,
        origin: ObjectOrigin,
        now: u32,
    ) -> Option<(u32, bool)> {
        let file_type = type_of(stat);
        if file_type == FileType::Symlink {
            return None;
        }
        if self.preserves(Attribute::Mode) {
            return Some(self.allowed_mode(applied.uid, applied.gid, file_type, &desired.meta));
        }
        let own = match origin {
            ObjectOrigin::Created(Some(before)) => mode_of(&before) & 0o1777,
            // The permission bits of the source, under the umask.
            ObjectOrigin::Created(None) if file_type == FileType::RegularFile => {
                desired.meta.mode & 0o777 & !self.process_umask()
            }
            // See `initial_dir_mode`.
            ObjectOrigin::Created(None) if file_type == FileType::Directory => {
                mode_of(stat) & !(0o700 & !desired.meta.mode)
            }
            // Others are created with their final mode.
            _ => mode_of(stat),
        };
        (own != now).then_some((own, false))
    }

    /// Sets the mode; `false` where the file system rejects it.
    fn set_mode(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        mode: u32,
        applied: &AppliedOwner,
        desired: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        match chmod(fd, mode) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP))
                if self.set_owner || stat.st_uid == self.euid =>
            {
                self.record_warning(desired, MetadataWarning::Mode(errno)).map(|()| false)
            }
            Err(Errno::PERM) => Err(applied.refused_errno.unwrap_or(Errno::PERM).into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_mtime(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        desired: &DesiredMetadata<'_>,
    ) -> CauseResult<bool> {
        let meta = &desired.meta;
        if !self.preserves(Attribute::Times) || has_same_mtime(stat, meta) {
            return Ok(false);
        }
        match set_mtime(fd, meta) {
            Ok(()) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                return self.record_warning(desired, MetadataWarning::Mtime(errno)).map(|()| false);
            }
            Err(errno) => return Err(errno.into()),
        }
        self.verify_mtime(fd, desired)?;
        Ok(!self.has_same_mtime(stat, meta))
    }

    /// Checks the stored mtime where it may differ: outside of [`PORTABLE_MTIME_SECS`], and until one file has shown
    /// the precision of the file system.
    fn verify_mtime(&self, fd: BorrowedFd<'_>, desired: &DesiredMetadata<'_>) -> CauseResult<()> {
        let meta = &desired.meta;
        let safe = PORTABLE_MTIME_SECS.contains(&meta.mtime_sec);
        // Trailing zeros do not show the precision: some file systems have steps of 100 ns.
        let shows_precision = !meta.mtime_nsec.is_multiple_of(100);
        if safe && self.keeps_nanoseconds.get().copied().unwrap_or(!shows_precision) {
            return Ok(());
        }
        let stat = rustix::fs::fstat(fd)?;
        if has_same_mtime(&stat, meta) {
            if shows_precision {
                let _ = self.keeps_nanoseconds.set(true);
            }
            return Ok(());
        }
        // The coarsest clock, FAT's, has steps of two seconds.
        if mtime_delta_ns(&stat, meta) > 2_000_000_000 {
            return self.record_warning(desired, MetadataWarning::ClampedMtime);
        }
        let _ = self.keeps_nanoseconds.set(false);
        self.record_warning(desired, MetadataWarning::RoundedMtime)
    }

    fn record_warning(
        &self,
        desired: &DesiredMetadata<'_>,
        short: MetadataWarning,
    ) -> CauseResult<()> {
        if desired.xattrs.is_some() {
            self.warnings.record(desired.path, short)?;
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
