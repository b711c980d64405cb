//! The names in a directory, sorted and in bounded memory, and what a source root is.

use super::errno::SysResult;
use super::temp_names::is_internal_name;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

/// Read at a time from a directory.
const LIST_BUFFER_BYTES: usize = 64 << 10;

/// A name in a directory, and what the directory says that it is (which it may not know).
pub(super) type ListedName = (Box<[u8]>, FileType);

/// Some names of a directory.
pub(super) struct Listing {
    pub(super) names: Vec<ListedName>,
    /// There are others behind the last of them.
    pub(super) has_more: bool,
    /// The list broke off.
    pub(super) error: Option<Errno>,
}

/// The first `keep` names of a directory behind `after`, sorted. The kernel gives them in no order, so
/// all are read and the greater ones dropped. Our own unfinished files are left out.
pub(super) fn list_dir(fd: &OwnedFd, after: Option<&[u8]>, keep: usize) -> Listing {
    list_dir_matching(fd, keep, |name| after.is_none_or(|a| name > a) && !is_internal_name(name))
}

/// The same with the names of our own unfinished files.
pub(super) fn list_dir_with_internal(fd: &OwnedFd, after: Option<&[u8]>, keep: usize) -> Listing {
    list_dir_matching(fd, keep, |name| after.is_none_or(|a| name > a))
}

/// The first `keep` names of a directory that are `wanted`, sorted.
pub(super) fn list_dir_matching(
    fd: &OwnedFd,
    keep: usize,
    wanted: impl Fn(&[u8]) -> bool,
) -> Listing {
    let mut listing = Listing { names: Vec::new(), has_more: false, error: None };
    let mut buffer = Vec::with_capacity(LIST_BUFFER_BYTES);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut bound: Option<Box<[u8]>> = None;
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(Errno::INTR) => continue,
            Err(errno) => {
                listing.error = Some(errno);
                break;
            }
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || !wanted(name) {
            continue;
        }
        if bound.as_ref().is_some_and(|b| *name > **b) {
            listing.has_more = true;
            continue;
        }
        listing.names.push((name.into(), entry.file_type()));
        if listing.names.len() >= 2 * keep {
            keep_smallest(&mut listing, keep);
            bound = listing.names.iter().map(|(name, _)| name).max().cloned();
        }
    }
    if listing.names.len() > keep {
        keep_smallest(&mut listing, keep);
    }
    listing.names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    // Some file systems give a name twice when the directory changes under the reader.
    listing.names.dedup_by(|a, b| a.0 == b.0);
    listing
}

/// Whether nothing is in a directory, our own unfinished files included.
pub(super) fn is_dir_empty(fd: &OwnedFd) -> SysResult<bool> {
    let listing = list_dir_matching(fd, 1, |_| true);
    listing.error.map_or(Ok(listing.names.is_empty()), Err)
}

/// Keeps the `keep` smallest names, in any order.
fn keep_smallest(listing: &mut Listing, keep: usize) {
    listing.names.select_nth_unstable_by(keep, |a, b| a.0.cmp(&b.0));
    listing.names.truncate(keep);
    listing.has_more = true;
}
