//! Entries without content: creates links and special files, and repairs the metadata of existing objects.

use super::errno::SysResult;
use super::error::{Cause, CauseResult, Result, SpecialKind};
use super::inode::{is_device, is_same_object, type_of};
use super::metadata::{DesiredMetadata, ObjectOrigin};
use super::root::ParentAndName;
use super::target::Target;
use super::xattr::XattrObject;
use crate::wire::entry_report::EntryAction;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::preserve::Attribute;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The outcome of a metadata repair of an object with the right content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetadataRepair {
    /// The metadata were right ([`EntryAction::Skip`]), or are now; in a dry run: would be ([`EntryAction::Metadata`]).
    InPlace(EntryAction),
    /// They can't be changed in place: it has other names, or this process may not. A copy can replace it.
    NeedsReplacement,
    /// It belongs neither to this process nor to its desired owner, so its content can change at any time and is not
    /// used.
    ForeignOwner,
}

/// A descriptor of the object `name` that does not open it: devices and FIFOs are not touched.
pub(super) fn open_path_only(place: &ParentAndName<'_>, name: &[u8]) -> SysResult<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.dir, name, flags, Mode::empty())
}

/// The kind of an object that is neither a regular file nor a directory.
pub(super) fn special_kind_of(file_type: FileType) -> SpecialKind {
    match file_type {
        FileType::Symlink => SpecialKind::Symlink,
        device if is_device(device) => SpecialKind::Device,
        _ => SpecialKind::FifoOrSocket,
    }
}

impl Target {
    /// Repairs the metadata of an object at `place` with `entry`'s content; `stat` is its lstat. If it has several
    /// names, it is registered with their anchor.
    ///
    /// # Errors
    /// A call failed, or the destination can't store the metadata and they are strict.
    pub(super) fn repair_metadata(
        &self,
        place: &ParentAndName<'_>,
        stat: &Stat,
        entry: &Entry,
    ) -> CauseResult<MetadataRepair> {
        if !self.is_trusted(&place.dir, stat, &entry.meta) {
            return Ok(MetadataRepair::ForeignOwner);
        }
        let member = self.is_hardlinked(entry) && !self.rules.dry_run;
        if member && !self.claim_inode(stat, entry)? {
            return Ok(MetadataRepair::NeedsReplacement);
        }
        let done = self.repair_object(place, stat, entry)?;
        if member && matches!(done, MetadataRepair::InPlace(_)) {
            let fd = open_path_only(place, place.name)?;
            // The other names of the file become names of this object.
            if !is_same_object(&rustix::fs::fstat(&fd)?, stat) {
                return Ok(MetadataRepair::ForeignOwner);
            }
            self.register_anchor(&place.dir, place.name, &fd, entry)?;
        }
        Ok(done)
    }

    fn repair_object(
        &self,
        place: &ParentAndName<'_>,
        stat: &Stat,
        entry: &Entry,
    ) -> CauseResult<MetadataRepair> {
        let desired = DesiredMetadata::from(entry);
        let object = XattrObject::Named(place.dir.as_fd(), place.name);
        if !self.policy.needs_repair(object, stat, &desired)? {
            return Ok(MetadataRepair::InPlace(EntryAction::Skip));
        }
        if stat.st_nlink > 1 && !self.is_hardlinked(entry) {
            // Its other names, which may be outside of this sync, would change as well.
            return Ok(MetadataRepair::NeedsReplacement);
        }
        if self.rules.dry_run {
            return Ok(MetadataRepair::InPlace(EntryAction::Metadata));
        }
        let fd = open_path_only(place, place.name)?;
        let now = rustix::fs::fstat(&fd)?;
        if !is_same_object(&now, stat) {
            return Ok(MetadataRepair::ForeignOwner);
        }
        match self.policy.apply(&fd, &desired, ObjectOrigin::Existing) {
            // It belongs to another user.
            Err(Cause::Os(Errno::PERM)) => Ok(MetadataRepair::NeedsReplacement),
            Ok(true) => Ok(MetadataRepair::InPlace(EntryAction::Metadata)),
            Ok(false) => Ok(MetadataRepair::InPlace(EntryAction::Skip)),
            Err(cause) => Err(cause),
        }
    }

    /// Whether the kind of `entry` is not preserved.
    pub(super) fn excludes_kind(&self, entry: &Entry) -> bool {
        let EntryKind::Special { format, .. } = entry.kind else { return false };
        !self.rules.preserve.contains(match FileType::from_raw_mode(format) {
            device if is_device(device) => Attribute::Devices,
            _ => Attribute::Specials,
        })
    }

    /// Creates a link or special file under a temporary name and renames it; `false` where its kind is not preserved.
    ///
    /// # Errors
    /// One of the steps failed; this process can't create an object of this kind there ([`Cause::CannotCreate`]).
    pub(super) fn create_special(&self, entry: &Entry) -> Result<bool> {
        let path = &entry.path;
        let (op, file_type) = match &entry.kind {
            EntryKind::Special { format, .. } => {
                ("make special file", FileType::from_raw_mode(*format))
            }
            _ => ("make link", FileType::Symlink),
        };
        let failed = |cause: Cause| self.error(op, path, cause);
        if self.excludes_kind(entry) {
            return Ok(false);
        }
        let temp = self.temp_file_name(path, 0, 0);
        let place = match self
            .retry_with_fresh_cache(|| self.create_temp_special(entry, file_type, &temp))
        {
            Ok(place) => place,
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
                return Err(failed(Cause::CannotCreate(special_kind_of(file_type), errno)));
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let finish = || -> CauseResult<()> {
            let fd = open_path_only(&place, &temp)?;
            let stat = rustix::fs::fstat(&fd)?;
            // A swapped name must not get the metadata.
            let is_other_device = matches!(&entry.kind, EntryKind::Special { rdev, .. }
                if is_device(file_type) && *rdev != stat.st_rdev);
            if type_of(&stat) != file_type
                || stat.st_nlink != 1
                || is_other_device
                || !self.is_created_by_process(&place.dir, &stat)
            {
                return Err(Cause::Superseded);
            }
            self.policy.apply(&fd, &entry.into(), ObjectOrigin::Created(None))?;
            self.rename_into_place(&place.dir, &temp, place.name)?;
            self.register_anchor(&place.dir, place.name, &fd, entry)
        };
        finish().map(|()| true).map_err(|cause| {
            let _ = self.remove_non_directory(&place.dir, &temp);
            failed(cause)
        })
    }

    fn create_temp_special<'a>(
        &'a self,
        entry: &'a Entry,
        file_type: FileType,
        temp: &[u8],
    ) -> SysResult<ParentAndName<'a>> {
        let place = self.locate_or_create_parents(&entry.path)?;
        let make = || match &entry.kind {
            EntryKind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_slice(), &place.dir, temp)
            }
            EntryKind::Special { rdev, .. } => {
                let mode = Mode::from_raw_mode(self.policy.initial_special_mode(&entry.meta));
                rustix::fs::mknodat(&place.dir, temp, file_type, mode, *rdev)
            }
            EntryKind::File { .. } | EntryKind::Dir => Err(Errno::INVAL),
        };
        self.create_replacing(&place.dir, temp, make)?;
        Ok(place)
    }
}
