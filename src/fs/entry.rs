//! The entry of an object of a source.

use super::error::CauseResult;
use super::inode::{ident_of, meta_of, size_of, stored_bytes_of, type_of};
use super::xattr::{self, XattrObject};
use crate::wire::RelPath;
use crate::wire::manifest::{Entry, EntryKind};
use crate::wire::preserve::{Attribute, Preserve};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, Stat};

/// The entry for what `name` in `dir` is (or `dir` itself, where the name is empty): `stat` is its
/// lstat; a link's text is read here, and what else is kept.
pub(super) fn entry_of(
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: RelPath,
    stat: &Stat,
    keep: Preserve,
) -> CauseResult<Entry> {
    let kind = match type_of(stat) {
        FileType::RegularFile => EntryKind::File { size: size_of(stat) },
        FileType::Directory => EntryKind::Dir,
        FileType::Symlink => {
            let room = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(4096) + 1);
            EntryKind::Symlink { target: rustix::fs::readlinkat(dir, name, room)?.into_bytes() }
        }
        _ => EntryKind::Special { format: stat.st_mode & 0o170_000, rdev: stat.st_rdev },
    };
    let mut entry = Entry::new(path, kind, meta_of(stat), ident_of(stat));
    entry.stored_bytes = stored_bytes_of(stat).filter(|_| keep.contains(Attribute::Sparse));
    entry.is_hardlinked =
        stat.st_nlink > 1 && !entry.is_dir() && keep.contains(Attribute::Hardlinks);
    let object =
        if name.is_empty() { XattrObject::Open(dir) } else { XattrObject::Named(dir, name) };
    entry.xattrs = xattr::read(object, entry.is_dir(), keep)?;
    Ok(entry)
}
