//! Entries without content: links and special files are made, and what is there already gets the
//! metadata that it shall have.

use super::dress::{Origin, Outfit};
use super::error::{Cause, NodeKind, Result};
use super::links::is_one;
use super::meta::type_of;
use super::root::Place;
use super::target::{Step, Target};
use super::xattr::Object;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::options::Attribute;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What became of the metadata of an object that is there with the right content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TouchUp {
    /// They were as they shall be.
    Same,
    /// They are now (or would be, in a dry run).
    Repaired,
    /// They can't be had in place: it has other names, or this process may not set them. It can be replaced
    /// by a copy of it.
    Replace,
    /// It belongs neither to this process nor to the owner that it is to have, who may write to it at any
    /// time: its content is not to be used.
    Foreign,
}

/// A descriptor of whatever has this name, which is not opened for use: a device or FIFO isn't
/// touched.
pub(super) fn open_object(place: &Place<'_>, name: &[u8]) -> Step<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.dir, name, flags, Mode::empty())
}

/// The kind of something that is neither a regular file nor a directory.
pub(super) fn node_kind(file_type: FileType) -> NodeKind {
    match file_type {
        FileType::Symlink => NodeKind::Link,
        FileType::CharacterDevice | FileType::BlockDevice => NodeKind::Device,
        _ => NodeKind::Special,
    }
}

impl Target {
    /// To be told of an object at `place` that has `entry`'s content; `stat` is its lstat. Brings its
    /// metadata to those of `entry`; if it is one of several names, it joins the others.
    ///
    /// # Errors
    /// A call failed, or the destination can't hold them and shall.
    pub(super) fn touch_up(
        &self,
        place: &Place<'_>,
        stat: &Stat,
        entry: &Entry,
    ) -> std::result::Result<TouchUp, Cause> {
        if !self.is_trusted(&place.dir, stat, &entry.meta) {
            return Ok(TouchUp::Foreign);
        }
        let member = self.is_member(entry) && !self.rules.dry_run;
        if member && !self.claim(stat, entry)? {
            return Ok(TouchUp::Replace);
        }
        let done = self.touch_up_one(place, stat, entry)?;
        if member && matches!(done, TouchUp::Same | TouchUp::Repaired) {
            let fd = open_object(place, place.name)?;
            // The other names of the file become names of this object.
            if !is_one(&rustix::fs::fstat(&fd)?, stat) {
                return Ok(TouchUp::Foreign);
            }
            self.join(&place.dir, place.name, &fd, entry)?;
        }
        Ok(done)
    }

    fn touch_up_one(
        &self,
        place: &Place<'_>,
        stat: &Stat,
        entry: &Entry,
    ) -> std::result::Result<TouchUp, Cause> {
        let outfit = Outfit::from(entry);
        let object = Object::Named(place.dir.as_fd(), place.name);
        if !self.policy.differs(object, stat, &outfit)? {
            return Ok(TouchUp::Same);
        }
        if stat.st_nlink > 1 && !self.is_member(entry) {
            // Another name of it, which may be none of this sync's business, would change as well.
            return Ok(TouchUp::Replace);
        }
        if self.rules.dry_run {
            return Ok(TouchUp::Repaired);
        }
        let fd = open_object(place, place.name)?;
        let now = rustix::fs::fstat(&fd)?;
        if !is_one(&now, stat) {
            return Ok(TouchUp::Foreign);
        }
        match self.policy.dress(&fd, &outfit, Origin::There) {
            // Somebody else's.
            Err(Cause::Os(Errno::PERM)) => Ok(TouchUp::Replace),
            Ok(true) => Ok(TouchUp::Repaired),
            Ok(false) => Ok(TouchUp::Same),
            Err(cause) => Err(cause),
        }
    }

    /// Whether `entry` is of a kind that the operator left out.
    pub(super) fn leaves_out(&self, entry: &Entry) -> bool {
        let EntryKind::Special { format, .. } = entry.kind else { return false };
        !self.rules.preserve.contains(match FileType::from_raw_mode(format) {
            FileType::CharacterDevice | FileType::BlockDevice => Attribute::Devices,
            _ => Attribute::Specials,
        })
    }

    /// Makes a link or special file under a temporary name and renames it; `false` where the operator left
    /// its kind out.
    ///
    /// # Errors
    /// One of the steps failed; no object of this kind can be made there ([`Cause::Unmakeable`]).
    pub(super) fn make(&self, entry: &Entry) -> Result<bool> {
        let path = &entry.path;
        let (op, file_type) = match &entry.kind {
            EntryKind::Special { format, .. } => {
                ("make special file", FileType::from_raw_mode(*format))
            }
            _ => ("make link", FileType::Symlink),
        };
        let failed = |cause: Cause| self.error(op, path, cause);
        if self.leaves_out(entry) {
            return Ok(false);
        }
        let temp = self.temp_name(path, 0, 0);
        let place = match self.retry_if_gone(|| self.make_node(entry, file_type, &temp)) {
            Ok(place) => place,
            Err(errno @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)) => {
                return Err(failed(Cause::Unmakeable(node_kind(file_type), errno)));
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let finish = || -> std::result::Result<(), Cause> {
            let fd = open_object(&place, &temp)?;
            let stat = rustix::fs::fstat(&fd)?;
            // Nobody shall draw our metadata onto something else by swapping the name.
            let device = matches!(&entry.kind, EntryKind::Special { rdev, .. } if
                matches!(file_type, FileType::CharacterDevice | FileType::BlockDevice)
                    && *rdev != stat.st_rdev);
            if type_of(&stat) != file_type
                || stat.st_nlink != 1
                || device
                || !self.is_made_by_us(&place.dir, &stat)
            {
                return Err(Cause::Overtaken);
            }
            self.policy.dress(&fd, &entry.into(), Origin::New(None))?;
            self.rename(&place.dir, &temp, place.name)?;
            self.join(&place.dir, place.name, &fd, entry)
        };
        finish().map(|()| true).map_err(|cause| {
            let _ = self.clear_away(&place.dir, &temp);
            failed(cause)
        })
    }

    fn make_node<'a>(
        &'a self,
        entry: &'a Entry,
        file_type: FileType,
        temp: &[u8],
    ) -> Step<Place<'a>> {
        let place = self.place(&entry.path)?;
        let make = || match &entry.kind {
            EntryKind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_slice(), &place.dir, temp)
            }
            EntryKind::Special { rdev, .. } => {
                let mode = Mode::from_raw_mode(self.policy.special_birth_mode(&entry.meta));
                rustix::fs::mknodat(&place.dir, temp, file_type, mode, *rdev)
            }
            EntryKind::File { .. } | EntryKind::Dir => Err(Errno::INVAL),
        };
        match self.writable(&place.dir, make) {
            Err(Errno::EXIST) => {
                self.clear_away(&place.dir, temp)?;
                self.writable(&place.dir, make)?;
            }
            other => other?,
        }
        Ok(place)
    }
}
