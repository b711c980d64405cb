//! The names in a directory, sorted and in bounded memory, and what a source root is.

use super::error::Result;
use super::root::Tree;
use super::temp_names::is_internal_name;
use crate::wire::RelPath;
use crate::wire::task::RootState;
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

/// Some names of a directory of a source; see [`TreeBuilder::list_names`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamePage {
    /// Sorted by bytes, each with whether it is a directory.
    pub names: Vec<(Box<[u8]>, bool)>,
    /// There are others behind the last of them.
    pub has_more: bool,
}

impl Tree {
    /// The first `keep` names of the directory `dir` behind `after`, without those of our own unfinished
    /// files.
    ///
    /// # Errors
    /// It can't be read, or not to its end.
    pub fn list_names(&self, dir: &RelPath, after: Option<&[u8]>, keep: usize) -> Result<NamePage> {
        let failed = |errno| self.error("list", dir.as_bytes(), errno);
        let fd = self.open_listable_dir(dir.as_bytes()).map_err(failed)?;
        let Listing { names, has_more: more, error: broken } = list_dir(&fd, after, keep.max(1));
        if let Some(errno) = broken {
            return Err(failed(errno));
        }
        let kind = |name: &[u8], told: FileType| match told {
            // Some file systems don't tell.
            FileType::Unknown => {
                super::inode::lstat(&fd, name).map(|stat| super::inode::type_of(&stat))
            }
            told => Ok(told),
        };
        let mut page = NamePage { names: Vec::with_capacity(names.len()), has_more: more };
        for (name, told) in names {
            match kind(&name, told) {
                Ok(is) => page.names.push((name, is == FileType::Directory)),
                // Removed just now.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(page)
    }

    /// What this tree's root is: which file system it lies on, and whether it holds anything.
    ///
    /// # Errors
    /// It can't be opened or read.
    pub fn root_state(&self) -> Result<RootState> {
        let failed = |errno| self.error("read", b"", errno);
        let (fd, empty) = match self.open_listable_dir(b"") {
            Ok(fd) => {
                let listing = list_dir(&fd, None, 1);
                listing.error.map_or(Ok(()), |errno| Err(failed(errno)))?;
                (fd, listing.names.is_empty())
            }
            // A sync of one file.
            Err(Errno::NOTDIR) => {
                let above = self.base.parent().unwrap_or_default();
                let fd = super::root::open_dir_below(self.root.fd(), above.as_bytes());
                (fd.map_err(failed)?, false)
            }
            Err(errno) => return Err(failed(errno)),
        };
        let kind = rustix::fs::fstatfs(&fd).map_err(failed)?.f_type;
        // Local file systems make it of their UUID or device, so it outlives a restart; network file
        // systems often leave it at 0, and then their type tells them from an empty mount point.
        let id = rustix::fs::fstatvfs(&fd).map_err(failed)?.f_fsid;
        // The type has 32 bits; the field that it stands in is longer, and signed on some machines.
        Ok(RootState { file_system: format!("{:x}:{id:x}", kind as u64 & 0xffff_ffff), empty })
    }
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
pub(super) fn is_dir_empty(fd: &OwnedFd) -> std::result::Result<bool, Errno> {
    let listing = list_dir_matching(fd, 1, |_| true);
    listing.error.map_or(Ok(listing.names.is_empty()), Err)
}

/// Keeps the `keep` smallest names, in any order.
fn keep_smallest(listing: &mut Listing, keep: usize) {
    listing.names.select_nth_unstable_by(keep, |a, b| a.0.cmp(&b.0));
    listing.names.truncate(keep);
    listing.has_more = true;
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::wire::SyncNo;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_listed_in_sorted_pages_with_their_types() {
        let site = TestSite::new();
        for name in ["b", "c/x", "\u{e9}", "a/y"] {
            site.write_file(format!("src/{name}"), "");
        }
        symlink("a", site.path("src/link")).unwrap();
        let ours = super::super::temp_names::temp_file_name(
            &Default::default(),
            SyncNo(1),
            &rel("x"),
            1,
            0,
        );
        fs::write(site.path("src").join(os_str(&ours)), "").unwrap();
        let tree = site.source();
        let mut all = Vec::new();
        let mut after: Option<Box<[u8]>> = None;
        loop {
            let page = tree.list_names(&RelPath::root(), after.as_deref(), 2).unwrap();
            assert!(page.names.len() <= 2);
            after = page.names.last().map(|(name, _)| name.clone());
            all.extend(page.names);
            if !page.has_more {
                break;
            }
        }
        let want = [("a", true), ("b", false), ("c", true), ("link", false), ("\u{e9}", false)];
        assert_eq!(all, want.map(|(name, is_dir)| (name.as_bytes().into(), is_dir)));
        assert_eq!(
            tree.list_names(&rel("none"), None, 9).unwrap_err().errno_name(),
            Some("ENOENT")
        );
    }

    #[test]
    fn root_state_reports_an_empty_root_and_the_file_system() {
        let site = TestSite::new();
        let state = |base: &str| site.tree(base).root_state().unwrap();
        assert!(state("src").empty);
        assert!(!state("canary").empty && !state("canary/file").empty);
        assert_eq!(state("src").file_system, state("canary/file").file_system);
        assert!(site.tree("none").root_state().is_err());
        let proc =
            super::super::RootDir::open(&crate::wire::AbsPath::new("/proc").unwrap()).unwrap();
        let other = Tree::new(proc, RelPath::root()).root_state().unwrap();
        assert_ne!(other.file_system, state("src").file_system);
    }
}
