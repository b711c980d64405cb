//! The names in a directory, sorted and in bounded memory, and what a source root is.

use super::errno::SysResult;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

/// Read at a time from a directory.
const LIST_BUFFER_BYTES: usize = 64 << 10;

/// A name in a directory, and its type as the directory reports it (possibly unknown).
pub(super) type ListedName = (Box<[u8]>, FileType);

/// Some names of a directory.
pub(super) struct Listing {
    pub(super) names: Vec<ListedName>,
    /// The last of them, where there are more names after it.
    pub(super) next_after: Option<Box<[u8]>>,
    /// The listing stopped early.
    pub(super) error: Option<Errno>,
}

/// The first `keep` names of a directory after `after` for which `wanted` is true, sorted. The kernel returns names in
/// no order, so all are read and the greater ones dropped.
pub(super) fn list_dir(
    fd: &OwnedFd,
    after: Option<&[u8]>,
    keep: usize,
    wanted: impl Fn(&[u8]) -> bool,
) -> Listing {
    let mut listing = Listing { names: Vec::new(), next_after: None, error: None };
    let mut has_more = false;
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
        let is_wanted = after.is_none_or(|after| name > after) && wanted(name);
        if name == b"." || name == b".." || !is_wanted {
            continue;
        }
        if bound.as_ref().is_some_and(|b| *name > **b) {
            has_more = true;
            continue;
        }
        listing.names.push((name.into(), entry.file_type()));
        if listing.names.len() >= 2 * keep {
            keep_smallest(&mut listing.names, keep);
            has_more = true;
            bound = listing.names.iter().map(|(name, _)| name).max().cloned();
        }
    }
    if listing.names.len() > keep {
        keep_smallest(&mut listing.names, keep);
        has_more = true;
    }
    listing.names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    // Some file systems return a name twice when the directory changes during the listing.
    listing.names.dedup_by(|a, b| a.0 == b.0);
    listing.next_after = listing.names.last().map(|(name, _)| name.clone()).filter(|_| has_more);
    listing
}

/// Whether a directory has no entry, not even an internal one.
pub(super) fn is_dir_empty(fd: &OwnedFd) -> SysResult<bool> {
    let listing = list_dir(fd, None, 1, |_| true);
    listing.error.map_or(Ok(listing.names.is_empty()), Err)
}

/// Keeps the `keep` smallest names, in any order.
fn keep_smallest(names: &mut Vec<ListedName>, keep: usize) {
    names.select_nth_unstable_by(keep, |a, b| a.0.cmp(&b.0));
    names.truncate(keep);
}
