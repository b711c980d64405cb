//! Case folding: directories that do not distinguish `Foo` from `foo`, or one Unicode form from another. A name that
//! finds an object stored under another spelling is a collision: the object is not compared, replaced or written
//! into.
//!
//! Each directory is probed once while it is open, with an existing name: is it found in other letter case too? If
//! not (nearly everywhere), the directory is case-sensitive. If so, its names are listed, and a name exists only when
//! it is among them byte by byte. A name that the file system stores in a form of its own is a collision, too.

use super::beneath::{DirHandle, open_listable_below};
use super::dir_list::list_dir;
use super::errno::SysResult;
use super::inode::lstat;
use crate::wire::errno::NAME_COLLISION;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

type NameSet = Arc<HashSet<Box<[u8]>>>;

/// The directories used last.
#[derive(Debug, Default)]
pub(super) struct CaseFoldingCache(Mutex<Vec<(Weak<OwnedFd>, DirCase)>>);

#[derive(Debug, Clone)]
enum DirCase {
    /// Names that differ are different.
    Sensitive,
    /// Some names that differ are one; the names it had when it was listed.
    Insensitive(NameSet),
}

impl CaseFoldingCache {
    const MAX_CACHED_DIRS: usize = 16;

    /// For a `name` that finds an object in `dir`: fails with [`NAME_COLLISION`] where its stored spelling differs.
    pub(super) fn check_spelling(&self, dir: &DirHandle, name: &[u8]) -> SysResult<()> {
        let Some(DirCase::Insensitive(names)) = self.probe(dir, name)? else { return Ok(()) };
        if names.contains(name) || name == b"." {
            return Ok(());
        }
        // It may be new. Listed twice, because a name that is just being replaced may be missing.
        for _ in 0..2 {
            let names = self.list_names(dir)?;
            let found = names.contains(name);
            self.insert(dir, DirCase::Insensitive(names));
            if found {
                return Ok(());
            }
        }
        match lstat(dir, name) {
            // It is gone.
            Err(Errno::NOENT) => Ok(()),
            _ => Err(NAME_COLLISION),
        }
    }

    /// Whether some names that differ are one in `dir`; `witness` is an existing name.
    pub(super) fn is_case_insensitive(&self, dir: &DirHandle, witness: &[u8]) -> SysResult<bool> {
        let kind = match self.get(dir) {
            None => self.probe(dir, witness)?,
            known => known,
        };
        Ok(matches!(kind, Some(DirCase::Insensitive(_))))
    }

    /// Whether `dir` is known to distinguish all names.
    pub(super) fn is_known_case_sensitive(&self, dir: &DirHandle) -> bool {
        matches!(self.get(dir), Some(DirCase::Sensitive))
    }

    /// The kind of `dir`; `None` where the existing name `name` can't show it.
    fn probe(&self, dir: &DirHandle, name: &[u8]) -> SysResult<Option<DirCase>> {
        if let Some(kind) = self.get(dir) {
            return Ok(Some(kind));
        }
        let Some(other) = swap_last_letter_case(name) else { return Ok(None) };
        let kind = match lstat(dir, &other) {
            Ok(_) => {
                let names = self.list_names(dir)?;
                // Two files may have these names.
                match names.contains(name) && names.contains(other.as_slice()) {
                    true => DirCase::Sensitive,
                    false => DirCase::Insensitive(names),
                }
            }
            // If the name itself was removed, the result shows nothing.
            Err(Errno::NOENT) if lstat(dir, name).is_ok() => DirCase::Sensitive,
            Err(_) => return Ok(None),
        };
        self.insert(dir, kind.clone());
        Ok(Some(kind))
    }

    fn list_names(&self, dir: &DirHandle) -> SysResult<NameSet> {
        let dir = open_listable_below(dir.as_fd(), b"")?;
        let listing = list_dir(&dir, None, usize::MAX / 2, |_| true);
        match listing.error {
            Some(errno) => Err(errno),
            None => Ok(Arc::new(listing.names.into_iter().map(|(name, _)| name).collect())),
        }
    }

    fn get(&self, dir: &DirHandle) -> Option<DirCase> {
        let all = self.0.lock();
        let of = |(known, _): &&(Weak<OwnedFd>, DirCase)| known.as_ptr() == Arc::as_ptr(dir);
        all.iter().find(of).map(|(_, kind)| kind.clone())
    }

    fn insert(&self, dir: &DirHandle, kind: DirCase) {
        let mut all = self.0.lock();
        all.retain(|(known, _)| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(dir));
        all.truncate(Self::MAX_CACHED_DIRS - 1);
        all.insert(0, (Arc::downgrade(dir), kind));
    }
}

/// The name with its last letter in the other case; `None` where no letter has one.
fn swap_last_letter_case(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(at) = name.iter().rposition(u8::is_ascii_alphabetic) {
        let mut other = name.to_vec();
        other[at] ^= 0x20;
        return Some(other);
    }
    let text = std::str::from_utf8(name).ok()?;
    let (at, from, to) =
        text.char_indices().rev().find_map(|(at, c)| Some((at, c, swap_case(c)?)))?;
    let mut other = text.to_owned();
    other.replace_range(at..at + from.len_utf8(), to.encode_utf8(&mut [0; 4]));
    Some(other.into_bytes())
}

/// The other case of a letter that has just one.
fn swap_case(c: char) -> Option<char> {
    let one = |mut all: std::vec::IntoIter<char>| all.next().filter(|_| all.next().is_none());
    let upper = |c: char| one(c.to_uppercase().collect::<Vec<_>>().into_iter());
    let lower = |c: char| one(c.to_lowercase().collect::<Vec<_>>().into_iter());
    let other = if c.is_lowercase() { upper(c)? } else { lower(c)? };
    let back = if c.is_lowercase() { lower(other)? } else { upper(other)? };
    (other != c && back == c).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn open(site: &TestSite) -> DirHandle {
        Arc::new(open_listable_below(site.root.fd(), b"dst").unwrap())
    }

    #[test]
    fn a_directory_with_both_spellings_is_case_sensitive() {
        let site = TestSite::new();
        for name in ["foo", "foO", "bar"] {
            site.write_file(format!("dst/{name}"), name);
        }
        let (dir, known) = (open(&site), CaseFoldingCache::default());
        assert!(!known.is_known_case_sensitive(&dir));
        assert_eq!(known.check_spelling(&dir, b"foo"), Ok(()));
        assert!(known.is_known_case_sensitive(&dir));
        assert!(!known.is_case_insensitive(&dir, b"bar").unwrap());
    }

    #[test]
    fn a_missing_name_or_a_name_without_case_leaves_the_directory_unknown() {
        let site = TestSite::new();
        site.write_file("dst/00", "");
        let (dir, known) = (open(&site), CaseFoldingCache::default());
        assert!(!known.is_case_insensitive(&dir, b"gone").unwrap());
        assert_eq!(known.check_spelling(&dir, b"00"), Ok(()));
        assert!(!known.is_known_case_sensitive(&dir));
    }

    #[test]
    fn a_case_insensitive_directory_has_a_name_only_in_its_stored_spelling() {
        let site = TestSite::new();
        site.write_file("dst/Foo", "");
        site.write_file("dst/foo", "");
        let (dir, known) = (open(&site), CaseFoldingCache::default());
        known.insert(&dir, DirCase::Insensitive(Arc::default()));
        assert_eq!(known.check_spelling(&dir, b"Foo"), Ok(()));
        std::fs::remove_file(site.path("dst/foo")).unwrap();
        known.insert(&dir, DirCase::Insensitive(Arc::new([b"Foo".as_slice().into()].into())));
        assert_eq!(known.check_spelling(&dir, b"Foo"), Ok(()));
        assert_eq!(known.check_spelling(&dir, b"foo"), Ok(()), "it is gone");
        // What is known goes with the directory.
        let again = open(&site);
        assert!(known.get(&again).is_none());
    }

    #[test]
    fn the_case_of_the_last_letter_is_swapped() {
        let other = |name: &str| {
            swap_last_letter_case(name.as_bytes()).map(|b| String::from_utf8(b).unwrap())
        };
        assert_eq!(other("README"), Some("READMe".into()));
        assert_eq!(other("a.1"), Some("A.1".into()));
        assert_eq!(other("é"), Some("É".into()));
        assert_eq!(other("01ß文"), None);
        assert_eq!(swap_last_letter_case(b"\xff"), None);
    }
}
