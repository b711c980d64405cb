//! How an object at the destination gets its metadata: owner, then attributes and access control lists
//! (a change of owner clears file capabilities), then mode (it clears set-uid as well, and a list sets
//! the mode anew), then time.

use super::error::Cause;
use super::meta::{Owner, chmod, chown, lag, mode_of, same_mtime, set_mtime, type_of};
use super::notes::{Notebook, Shortfall};
use super::root::Dir;
use super::xattr::{self, Object};
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
pub(super) struct Outfit<'a> {
    path: &'a RelPath,
    meta: Meta,
    /// `None`: this is a directory above the entries of a batch. What stands in its own entry, and what
    /// is to be said of it, is the business of the batch that has that entry.
    xattrs: Option<&'a [Xattr]>,
}

impl<'a> From<&'a Entry> for Outfit<'a> {
    fn from(entry: &'a Entry) -> Self {
        Outfit { path: &entry.path, meta: entry.meta, xattrs: Some(&entry.xattrs) }
    }
}

impl<'a> From<&'a ManifestDir> for Outfit<'a> {
    fn from(dir: &'a ManifestDir) -> Self {
        Outfit { path: &dir.path, meta: dir.meta, xattrs: None }
    }
}

/// Where an object that is dressed comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// This process just made it. What is not preserved of group and mode it gets from the file that it
    /// replaces, where that has the owner which the new one gets.
    New(Option<Stat>),
    /// It was there. What is not preserved stays.
    There,
}

/// What new files are in one directory, before anything is done to them: looked at once, for the first
/// file that is made there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Birth {
    stat: Stat,
    /// They have no attributes that would have to be taken away, and just the mode that they are made
    /// with: the directory hands nothing down.
    bare: bool,
}

/// The directory that a file was made in last, and how files are born there. Files come in the order
/// of a walk, so one is enough.
#[derive(Debug, Default)]
pub(super) struct Births(Mutex<Option<(Dir, Birth)>>);

impl Births {
    pub(super) fn of(&self, dir: &Dir) -> Option<Birth> {
        let last = self.0.lock();
        last.as_ref().filter(|(known, _)| Arc::ptr_eq(known, dir)).map(|(_, birth)| *birth)
    }

    pub(super) fn keep(&self, dir: &Dir, birth: Birth) {
        let mut last = self.0.lock();
        *last = Some((Arc::clone(dir), birth));
    }
}

/// What of the metadata this process can and shall set.
#[derive(Debug)]
pub(super) struct Policy {
    keep: Preserve,
    chown: Chown,
    /// In nanoseconds.
    tolerance: u64,
    /// Owners are set (the process is root, or as good as).
    set_owner: bool,
    /// The file system would not take an owner from us (NFS with `root_squash`, an unmapped id in a
    /// user namespace): from then on as if `set_owner` were off.
    refused: AtomicBool,
    pub(super) euid: u32,
    /// The groups that this process may give its files to.
    groups: Vec<u32>,
    /// [`UNKNOWN`], [`FINE`] or [`COARSE`].
    clock: AtomicU8,
    umask: OnceLock<u32>,
    pub(super) book: Notebook,
}

/// Whether the file system keeps nanoseconds.
const UNKNOWN: u8 = 0;
const FINE: u8 = 1;
const COARSE: u8 = 2;

/// Every file system holds the times between, in seconds.
const SAFE_TIMES: std::ops::RangeInclusive<i64> = 0..=0x7fff_ffff;

/// What is to be done about owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OwnerPlan {
    set: Owner,
    /// The rest can't be had.
    short: bool,
}

impl Policy {
    pub(super) fn new(set_owner: bool, rules: &WriteRules) -> Self {
        let egid = rustix::process::getegid();
        let groups = rustix::process::getgroups().unwrap_or_default();
        Policy {
            keep: rules.preserve,
            chown: rules.chown,
            tolerance: rules.mtime_tolerance_ns,
            set_owner,
            refused: AtomicBool::new(false),
            euid: rustix::process::geteuid().as_raw(),
            groups: groups.into_iter().chain([egid]).map(|group| group.as_raw()).collect(),
            clock: AtomicU8::new(UNKNOWN),
            umask: OnceLock::new(),
            book: Notebook::new(rules.strict_metadata),
        }
    }

    /// Whether `one` is preserved.
    pub(super) fn keeps(&self, one: Attribute) -> bool {
        self.keep.contains(one)
    }

    /// Whether new files take something from those that they replace.
    pub(super) fn inherits(&self) -> bool {
        use Attribute::{Group, Mode, Owner};
        [Mode, Owner, Group].iter().any(|one| !self.keeps(*one))
    }

    /// The mode that a directory is made with, before the umask. It is stamped later, where modes are
    /// preserved; else it follows the source's, where that is known, and its owner may fill it.
    pub(super) fn dir_birth_mode(&self, meta: Option<&Meta>) -> u32 {
        match meta {
            _ if self.keeps(Attribute::Mode) => 0o700,
            Some(meta) => meta.mode & 0o777 | 0o700,
            None => 0o777,
        }
    }

    /// The mode that a file which nobody else can reach is made with.
    pub(super) fn file_birth_mode(&self, entry: &Entry) -> u32 {
        if self.keeps(Attribute::Mode) { entry.meta.mode & 0o777 } else { 0o600 }
    }

    /// The mode that a special file is made with, likewise.
    pub(super) fn special_birth_mode(&self, meta: &Meta) -> u32 {
        if self.keeps(Attribute::Mode) { 0o600 } else { meta.mode & 0o777 }
    }

    fn owners(&self) -> bool {
        self.set_owner && !self.refused.load(Ordering::Relaxed)
    }

    /// The owner and group that are asked for.
    fn wanted_owner(&self, meta: &Meta) -> Owner {
        Owner {
            uid: self.chown.uid.or(self.keeps(Attribute::Owner).then_some(meta.uid)),
            gid: self.chown.gid.or(self.keeps(Attribute::Group).then_some(meta.gid)),
        }
    }

    /// The owner that an entry with `meta` is to have; `None` where that is not preserved.
    pub(super) fn wanted_uid(&self, meta: &Meta) -> Option<u32> {
        self.wanted_owner(meta).uid
    }

    fn owner_plan(&self, stat: &Stat, want: Owner) -> OwnerPlan {
        let uid = want.uid.filter(|uid| *uid != stat.st_uid);
        let gid = want.gid.filter(|gid| *gid != stat.st_gid);
        if self.owners() {
            return OwnerPlan { set: Owner { uid, gid }, short: false };
        }
        let may =
            |gid: &u32| !self.set_owner && stat.st_uid == self.euid && self.groups.contains(gid);
        let set = Owner { uid: None, gid: gid.filter(may) };
        OwnerPlan { set, short: uid.is_some() || set.gid != gid }
    }

    /// The mode that an object with this owner and group gets, and whether it is less than asked for.
    /// Set-uid and set-gid on a file are only given together with the owner that they speak of:
    /// another owner would hand *his* rights to everybody.
    fn mode(&self, uid: u32, gid: u32, file_type: FileType, meta: &Meta) -> (u32, bool) {
        let own = (self.chown.uid.unwrap_or(meta.uid), self.chown.gid.unwrap_or(meta.gid));
        let full = meta.mode & 0o7777;
        let mut mode = full;
        if file_type != FileType::Directory && (uid, gid) != own {
            mode &= 0o1777;
        }
        // The kernel drops it without a word.
        if !self.set_owner && !self.groups.contains(&gid) {
            mode &= !0o2000;
        }
        (mode, mode != full)
    }

    /// Whether `stat` has the time of `meta`, as exactly as it is asked for.
    pub(super) fn same_time(&self, stat: &Stat, meta: &Meta) -> bool {
        !self.keeps(Attribute::Times) || lag(stat, meta) <= u128::from(self.tolerance)
    }

    /// Whether something of an existing object is to be changed; what it falls short of is noted where
    /// nothing is.
    ///
    /// # Errors
    /// Its attributes can't be read, or it falls short and may not.
    pub(super) fn differs(
        &self,
        object: Object<'_>,
        stat: &Stat,
        outfit: &Outfit<'_>,
    ) -> Result<bool, Cause> {
        let plan = self.owner_plan(stat, self.wanted_owner(&outfit.meta));
        let file_type = type_of(stat);
        let (mode, less) = self.mode(stat.st_uid, stat.st_gid, file_type, &outfit.meta);
        let moded = self.keeps(Attribute::Mode) && file_type != FileType::Symlink;
        if plan.set != Owner::default()
            || moded && mode != mode_of(stat)
            || !self.same_time(stat, &outfit.meta)
        {
            return Ok(true);
        }
        if let Some(want) = outfit.xattrs {
            match xattr::is_same(object, want, self.keep) {
                Ok(true) => {}
                // Our own object's mode forbids to look.
                Ok(false) | Err(Errno::ACCESS) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
        if plan.short {
            self.note(outfit, Shortfall::Owner(Errno::PERM))?;
        }
        if moded && less {
            self.note(outfit, Shortfall::SetId)?;
        }
        Ok(false)
    }

    /// Gives an object its metadata where it does not have them; tells whether something was changed
    /// that makes it another one than it was.
    ///
    /// # Errors
    /// A call failed: `EPERM` and `EACCES` for somebody else's object. Or it falls short and may not.
    pub(super) fn dress(
        &self,
        fd: impl AsFd,
        outfit: &Outfit<'_>,
        origin: Origin,
    ) -> Result<bool, Cause> {
        let fd = fd.as_fd();
        let stat = rustix::fs::fstat(fd)?;
        self.dress_from(fd, &stat, outfit, origin, false)
    }

    /// How new files are born in `dir`, where the one of `fd` was just made with the mode `asked`.
    ///
    /// # Errors
    /// `fstat` or `flistxattr` failed.
    pub(super) fn birth(&self, dir: &Dir, fd: impl AsFd, asked: u32) -> Result<Birth, Cause> {
        let mut stat = rustix::fs::fstat(&fd)?;
        let bare = mode_of(&stat) == asked & !self.umask()
            && !xattr::hands_down(Object::Open(dir.as_fd()))?
            && xattr::is_same(Object::Open(fd.as_fd()), &[], self.keep)?;
        // No file has this time, so each is given its own.
        stat.st_mtime_nsec = 1_000_000_000;
        Ok(Birth { stat, bare })
    }

    /// Gives a file that was just made with the mode `asked`, where files are born like this, its
    /// metadata.
    ///
    /// # Errors
    /// See [`Policy::dress`].
    pub(super) fn dress_newborn(
        &self,
        fd: impl AsFd,
        outfit: &Outfit<'_>,
        birth: &Birth,
        asked: u32,
    ) -> Result<(), Cause> {
        if !birth.bare || outfit.xattrs.is_some_and(|xattrs| !xattrs.is_empty()) {
            return self.dress(fd, outfit, Origin::New(None)).map(drop);
        }
        let mut stat = birth.stat;
        stat.st_mode = FileType::RegularFile.as_raw_mode() | asked & !self.umask();
        self.dress_from(fd.as_fd(), &stat, outfit, Origin::New(None), true).map(drop)
    }

    /// The same for an object whose `stat` is known, and perhaps that it has no attributes and none
    /// are to be set.
    fn dress_from(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &Outfit<'_>,
        origin: Origin,
        bare: bool,
    ) -> Result<bool, Cause> {
        let before = match origin {
            Origin::New(before) => before,
            Origin::There => None,
        };
        let owned = self.set_owner(fd, stat, outfit, before.as_ref())?;
        let mut mode = mode_of(stat);
        let mut changed = owned.changed;
        let mut dirty = owned.changed || owned.refused.is_some();
        if let (Some(want), false) = (outfit.xattrs, bare) {
            let widened = self.set_xattrs(fd, stat, want, outfit, &mut changed)?;
            mode = widened.unwrap_or(mode);
            dirty |= changed || widened.is_some();
        }
        let mut moded = true;
        if let Some((want, less)) = self.wanted_mode(&owned, stat, outfit, origin, mode) {
            moded = !(dirty || want != mode) || self.set_mode(fd, stat, want, &owned, outfit)?;
            changed |= moded && want != mode_of(stat);
            if less {
                self.note(outfit, Shortfall::SetId)?;
            }
        }
        if let Some(errno) = owned.refused {
            // Where it takes the mode, the object is ours: it takes no owners from us at all.
            self.refused.fetch_or(moded, Ordering::Relaxed);
            self.note(outfit, Shortfall::Owner(errno))?;
        } else if owned.short {
            self.note(outfit, Shortfall::Owner(Errno::PERM))?;
        }
        Ok(self.set_time(fd, stat, outfit)? || changed)
    }

    fn set_owner(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &Outfit<'_>,
        before: Option<&Stat>,
    ) -> Result<Owned, Cause> {
        let want = self.wanted_owner(&outfit.meta);
        // The kernel reads this id as "leave it".
        if want.uid == Some(u32::MAX) || want.gid == Some(u32::MAX) {
            return Err(Errno::OVERFLOW.into());
        }
        let mut plan = self.owner_plan(stat, want);
        if let Some(before) = before {
            let old = Owner { uid: None, gid: want.gid.is_none().then_some(before.st_gid) };
            plan.set.gid = plan.set.gid.or(self.owner_plan(stat, old).set.gid);
        }
        let mut owned = Owned {
            uid: stat.st_uid,
            gid: stat.st_gid,
            changed: false,
            short: plan.short,
            refused: None,
        };
        if plan.set == Owner::default() {
            return Ok(owned);
        }
        match chown(fd, plan.set) {
            Ok(()) => {
                owned.uid = plan.set.uid.unwrap_or(owned.uid);
                owned.gid = plan.set.gid.unwrap_or(owned.gid);
                owned.changed = true;
            }
            Err(errno @ (Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP)) => {
                owned.refused = Some(errno);
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
        outfit: &Outfit<'_>,
        changed: &mut bool,
    ) -> Result<Option<u32>, Cause> {
        let bring = |patient| {
            let short = |short| self.note(outfit, short);
            xattr::bring(Object::Open(fd), want, self.keep, patient, short)
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
    fn wanted_mode(
        &self,
        owned: &Owned,
        stat: &Stat,
        outfit: &Outfit<'_>,
        origin: Origin,
        now: u32,
    ) -> Option<(u32, bool)> {
        let file_type = type_of(stat);
        if file_type == FileType::Symlink {
            return None;
        }
        if self.keeps(Attribute::Mode) {
            return Some(self.mode(owned.uid, owned.gid, file_type, &outfit.meta));
        }
        let own = match origin {
            Origin::New(Some(before)) => mode_of(&before) & 0o1777,
            // The permission bits of the source, under the umask.
            Origin::New(None) if file_type == FileType::RegularFile => {
                outfit.meta.mode & 0o777 & !self.umask()
            }
            // See `dir_birth_mode`.
            Origin::New(None) if file_type == FileType::Directory => {
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
        owned: &Owned,
        outfit: &Outfit<'_>,
    ) -> Result<bool, Cause> {
        match chmod(fd, mode) {
            Ok(()) => Ok(true),
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP))
                if self.set_owner || stat.st_uid == self.euid =>
            {
                self.note(outfit, Shortfall::Mode(errno)).map(|()| false)
            }
            Err(Errno::PERM) => Err(owned.refused.unwrap_or(Errno::PERM).into()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn set_time(
        &self,
        fd: BorrowedFd<'_>,
        stat: &Stat,
        outfit: &Outfit<'_>,
    ) -> Result<bool, Cause> {
        let meta = &outfit.meta;
        if !self.keeps(Attribute::Times) || same_mtime(stat, meta) {
            return Ok(false);
        }
        match set_mtime(fd, meta) {
            Ok(()) => {}
            Err(errno @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                return self.note(outfit, Shortfall::Time(errno)).map(|()| false);
            }
            Err(errno) => return Err(errno.into()),
        }
        self.check_time(fd, outfit)?;
        Ok(!self.same_time(stat, meta))
    }

    /// Looks whether the time arrived, where that is in doubt: outside of [`SAFE_TIMES`], and until
    /// one shows whether the file system keeps nanoseconds.
    fn check_time(&self, fd: BorrowedFd<'_>, outfit: &Outfit<'_>) -> Result<(), Cause> {
        let meta = &outfit.meta;
        let safe = SAFE_TIMES.contains(&meta.mtime_sec);
        // Zeros at its end say nothing about the clock: some have steps of 100 ns.
        let telling = !meta.mtime_nsec.is_multiple_of(100);
        let clock = self.clock.load(Ordering::Relaxed);
        if safe && (clock == FINE || clock == UNKNOWN && !telling) {
            return Ok(());
        }
        let stat = rustix::fs::fstat(fd)?;
        if same_mtime(&stat, meta) {
            if telling {
                self.clock.store(FINE, Ordering::Relaxed);
            }
            return Ok(());
        }
        // The coarsest clock, FAT's, has steps of two seconds.
        if lag(&stat, meta) > 2_000_000_000 {
            return self.note(outfit, Shortfall::ClampedTime);
        }
        self.clock.store(COARSE, Ordering::Relaxed);
        self.note(outfit, Shortfall::RoundedTime)
    }

    fn note(&self, outfit: &Outfit<'_>, short: Shortfall) -> Result<(), Cause> {
        match outfit.xattrs {
            Some(_) => self.book.add(outfit.path, short),
            None => Ok(()),
        }
    }

    fn umask(&self) -> u32 {
        *self.umask.get_or_init(|| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
            line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
        })
    }
}

/// An object after its owner was set.
struct Owned {
    uid: u32,
    gid: u32,
    changed: bool,
    short: bool,
    refused: Option<Errno>,
}

#[cfg(test)]
mod tests;
