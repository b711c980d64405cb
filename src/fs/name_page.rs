//! The names of one directory of a source, in sorted pages.

use super::dir_list::{Listing, list_dir};
use super::error::Result;
use super::inode::{lstat, type_of};
use super::root::Tree;
use super::temp_names::is_internal_name;
use crate::wire::RelPath;
use rustix::fs::FileType;
use rustix::io::Errno;

/// Some names of a directory of a source; see [`Tree::list_names`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamePage {
    /// Sorted by bytes, each with whether it is a directory.
    pub names: Vec<(Box<[u8]>, bool)>,
    /// The name after which there are more.
    pub next_after: Option<Box<[u8]>>,
}

impl Tree {
    /// The first `keep` names of the directory `dir` after `after`, without internal names.
    ///
    /// # Errors
    /// It can't be read, or not to its end.
    pub fn list_names(&self, dir: &RelPath, after: Option<&[u8]>, keep: usize) -> Result<NamePage> {
        let failed = |errno| self.error("list", dir.as_bytes(), errno);
        let fd = self.open_listable_dir(dir.as_bytes()).map_err(failed)?;
        let Listing { names, next_after, error } =
            list_dir(&fd, after, keep.max(1), |name| !is_internal_name(name));
        error.map_or(Ok(()), |errno| Err(failed(errno)))?;
        let kind = |name: &[u8], listed_type: FileType| match listed_type {
            // Some file systems do not report the type.
            FileType::Unknown => lstat(&fd, name).map(|stat| type_of(&stat)),
            listed_type => Ok(listed_type),
        };
        let mut page = NamePage { names: Vec::with_capacity(names.len()), next_after };
        for (name, listed_type) in names {
            match kind(&name, listed_type) {
                Ok(is) => page.names.push((name, is == FileType::Directory)),
                // Removed since.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(page)
    }
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
            if page.next_after.is_none() {
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
}
