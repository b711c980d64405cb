//! Names that are one to the destination: file systems that tell no `Foo` from `foo`, nor one Unicode
//! form from another. A name that finds what stands there under another spelling is taken: nothing of
//! it is compared, replaced, or written into.
//!
//! Whether a directory does so is asked of it once while it is open, by a name that is there: is it
//! also found in other letter case? Where not (nearly everywhere) that is all; where it is, its names
//! are listed, and a name counts as there only when it is among them byte by byte. So one that the file
//! system keeps in a form of its own counts as taken, too.

use super::list::list_if;
use super::meta::lstat;
use super::root::{Dir, open_list_below};
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

/// What a name that is taken in another spelling fails with: no file system gives it.
pub(super) const TAKEN: Errno = Errno::NOTUNIQ;

type Names = Arc<HashSet<Box<[u8]>>>;

/// What is known of the directories used last.
#[derive(Debug, Default)]
pub(super) struct Spellings(Mutex<Vec<(Weak<OwnedFd>, Kind)>>);

#[derive(Debug, Clone)]
enum Kind {
    /// Names that differ are different.
    Apart,
    /// Some that differ are one; the names it had when it was listed.
    Folds(Names),
}

impl Spellings {
    const ROOM: usize = 16;

    /// Of a `name` that finds something in `dir`: [`TAKEN`] where that is spelled otherwise.
    pub(super) fn check(&self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        let Some(Kind::Folds(names)) = self.kind(dir, name)? else { return Ok(()) };
        if names.contains(name) || name == b"." {
            return Ok(());
        }
        // It may have come since. Twice, as a name that is just being replaced may be missed.
        for _ in 0..2 {
            let names = self.list(dir)?;
            let found = names.contains(name);
            self.keep(dir, Kind::Folds(names));
            if found {
                return Ok(());
            }
        }
        match lstat(dir, name) {
            // It is gone.
            Err(Errno::NOENT) => Ok(()),
            _ => Err(TAKEN),
        }
    }

    /// Whether some names that differ are one in `dir`; `witness` is one that is there.
    pub(super) fn folds(&self, dir: &Dir, witness: &[u8]) -> Result<bool, Errno> {
        let kind = match self.known(dir) {
            None => self.kind(dir, witness)?,
            known => known,
        };
        Ok(matches!(kind, Some(Kind::Folds(_))))
    }

    /// Whether `dir` is known to tell all names apart.
    pub(super) fn are_apart(&self, dir: &Dir) -> bool {
        matches!(self.known(dir), Some(Kind::Apart))
    }

    /// What `dir` does; `None` where `name`, which is there, can't tell.
    fn kind(&self, dir: &Dir, name: &[u8]) -> Result<Option<Kind>, Errno> {
        if let Some(kind) = self.known(dir) {
            return Ok(Some(kind));
        }
        let Some(other) = respelled(name) else { return Ok(None) };
        let kind = match lstat(dir, &other) {
            Ok(_) => {
                let names = self.list(dir)?;
                // Somebody may have named two files so.
                match names.contains(name) && names.contains(other.as_slice()) {
                    true => Kind::Apart,
                    false => Kind::Folds(names),
                }
            }
            // If the name itself has gone meanwhile, that tells nothing.
            Err(Errno::NOENT) if lstat(dir, name).is_ok() => Kind::Apart,
            Err(_) => return Ok(None),
        };
        self.keep(dir, kind.clone());
        Ok(Some(kind))
    }

    fn list(&self, dir: &Dir) -> Result<Names, Errno> {
        let listing = list_if(&open_list_below(dir.as_fd(), b"")?, usize::MAX / 2, |_| true);
        match listing.failed {
            Some(errno) => Err(errno),
            None => Ok(Arc::new(listing.names.into_iter().map(|(name, _)| name).collect())),
        }
    }

    fn known(&self, dir: &Dir) -> Option<Kind> {
        let all = self.0.lock();
        let of = |(known, _): &&(Weak<OwnedFd>, Kind)| known.as_ptr() == Arc::as_ptr(dir);
        all.iter().find(of).map(|(_, kind)| kind.clone())
    }

    fn keep(&self, dir: &Dir, kind: Kind) {
        let mut all = self.0.lock();
        all.retain(|(known, _)| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(dir));
        all.truncate(Self::ROOM - 1);
        all.insert(0, (Arc::downgrade(dir), kind));
    }
}

/// The same name with its last letter in the other case; `None` where no letter has one.
fn respelled(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(at) = name.iter().rposition(u8::is_ascii_alphabetic) {
        let mut other = name.to_vec();
        other[at] ^= 0x20;
        return Some(other);
    }
    let text = std::str::from_utf8(name).ok()?;
    let (at, from, to) = text.char_indices().rev().find_map(|(at, c)| Some((at, c, swap(c)?)))?;
    let mut other = text.to_owned();
    other.replace_range(at..at + from.len_utf8(), to.encode_utf8(&mut [0; 4]));
    Some(other.into_bytes())
}

/// The other case of a letter that has just one.
fn swap(c: char) -> Option<char> {
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

    fn open(site: &Site) -> Dir {
        Arc::new(open_list_below(site.root.fd(), b"dst").unwrap())
    }

    #[test]
    fn a_directory_with_both_spellings_tells_them_apart() {
        let site = Site::new();
        for name in ["foo", "foO", "bar"] {
            site.write(format!("dst/{name}"), name);
        }
        let (dir, known) = (open(&site), Spellings::default());
        assert!(!known.are_apart(&dir));
        assert_eq!(known.check(&dir, b"foo"), Ok(()));
        assert!(known.are_apart(&dir));
        assert!(!known.folds(&dir, b"bar").unwrap());
    }

    #[test]
    fn a_name_that_is_gone_or_has_no_case_tells_nothing() {
        let site = Site::new();
        site.write("dst/00", "");
        let (dir, known) = (open(&site), Spellings::default());
        assert!(!known.folds(&dir, b"gone").unwrap());
        assert_eq!(known.check(&dir, b"00"), Ok(()));
        assert!(!known.are_apart(&dir));
    }

    #[test]
    fn in_one_that_folds_a_name_is_there_only_as_it_is_spelled() {
        let site = Site::new();
        site.write("dst/Foo", "");
        site.write("dst/foo", "");
        let (dir, known) = (open(&site), Spellings::default());
        known.keep(&dir, Kind::Folds(Arc::default()));
        assert_eq!(known.check(&dir, b"Foo"), Ok(()));
        std::fs::remove_file(site.at("dst/foo")).unwrap();
        known.keep(&dir, Kind::Folds(Arc::new([b"Foo".as_slice().into()].into())));
        assert_eq!(known.check(&dir, b"Foo"), Ok(()));
        assert_eq!(known.check(&dir, b"foo"), Ok(()), "it is gone");
        // What is known goes with the directory.
        let again = open(&site);
        assert!(known.known(&again).is_none());
    }

    #[test]
    fn one_letter_is_spelled_otherwise_where_there_is_one() {
        let other = |name: &str| respelled(name.as_bytes()).map(|b| String::from_utf8(b).unwrap());
        assert_eq!(other("README"), Some("READMe".into()));
        assert_eq!(other("a.1"), Some("A.1".into()));
        assert_eq!(other("é"), Some("É".into()));
        assert_eq!(other("01ß文"), None);
        assert_eq!(respelled(b"\xff"), None);
    }
}
