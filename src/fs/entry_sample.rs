//! A digest of a storage root and of a sample of its entries: what two workers that can't write compare.
//!
//! What goes in is the same on every host that sees one file tree: nothing of the mount, of the device number or of the
//! order in which a directory is read. File servers and clients may return names in any order, so the sample is the
//! first names in the order of their bytes, and for that the directory is read to its end. A directory that is too long
//! for this gives a digest of itself alone: a choice among the names that were read first could differ between hosts.
//! Where the digests of one tree differ nevertheless (it changed meanwhile), it counts as two, which is safe.

use super::beneath::open_listable_below;
use super::errno::SysResult;
use super::error::{FsError, Result, Side};
use super::inode::{lstat, size_of, type_of};
use super::probe::read_up_to;
use super::root::RootDir;
use super::temp_names::is_internal_name;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

/// The most names that are read.
const MAX_NAMES_READ: usize = 10_000;
const MAX_ENTRIES: usize = 64;
const MAX_CONTENT_BYTES: usize = 64 << 10;
const LIST_BUFFER_BYTES: usize = 64 << 10;

impl RootDir {
    /// The digest, in hexadecimal digits; `None` where the directory is empty.
    ///
    /// # Errors
    /// A system call failed.
    pub fn sample_entries(&self) -> Result<Option<String>> {
        let failed = |errno| FsError::new(Side::Source, "read a sample of", &self.label(), errno);
        self.hash_sample(MAX_NAMES_READ).map_err(failed)
    }

    fn hash_sample(&self, max_names: usize) -> SysResult<Option<String>> {
        let dir = open_listable_below(self.fd(), b"")?;
        let names = list_names(&dir, max_names)?;
        if names.as_ref().is_some_and(Vec::is_empty) {
            return Ok(None);
        }
        let mut hasher = blake3::Hasher::new();
        let root = rustix::fs::fstat(&dir)?;
        let birth_time = self.identity.birth_time.unwrap_or_default();
        hash_number(&mut hasher, self.identity.birth_time.is_some());
        hash_number(&mut hasher, birth_time.0);
        hash_number(&mut hasher, birth_time.1);
        hash_object(&mut hasher, &root);
        // The directory alone, or with entries.
        hash_number(&mut hasher, names.is_some());
        let mut content = None;
        for name in names.unwrap_or_default() {
            let stat = match lstat(&dir, &name) {
                Ok(stat) => stat,
                // Removed since.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            hash_bytes(&mut hasher, &name);
            hash_object(&mut hasher, &stat);
            if type_of(&stat) == FileType::RegularFile && content.is_none() {
                content = Some(read_beginning(&dir, &name)?);
            }
        }
        hash_bytes(&mut hasher, &content.unwrap_or_default());
        Ok(Some(hasher.finalize().to_hex().to_string()))
    }
}

/// The first names of `dir` in the order of their bytes; `None` where it has more than `max_names`.
fn list_names(dir: &OwnedFd, max_names: usize) -> SysResult<Option<Vec<Box<[u8]>>>> {
    let mut buffer = Vec::with_capacity(LIST_BUFFER_BYTES);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names: Vec<Box<[u8]>> = Vec::new();
    let mut read = 0;
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::INTR) => continue,
            entry => entry?,
        };
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        read += 1;
        if read > max_names {
            return Ok(None);
        }
        // Probe files and unfinished files come and go.
        if !is_internal_name(name) {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    // Some file systems return a name twice when the directory changes during the listing.
    names.dedup();
    names.truncate(MAX_ENTRIES);
    Ok(Some(names))
}

/// The first bytes of a file; nothing of one that this process may not read.
fn read_beginning(dir: &OwnedFd, name: &[u8]) -> SysResult<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Err(Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::LOOP) => return Ok(Vec::new()),
        file => file?,
    };
    let mut content = vec![0; MAX_CONTENT_BYTES];
    // It may have been replaced since.
    let length = match type_of(&rustix::fs::fstat(&file)?) {
        FileType::RegularFile => read_up_to(&file, &mut content)?,
        _ => 0,
    };
    content.truncate(length);
    Ok(content)
}

/// The identity of an object. Some file systems compute the size of a directory with a delay.
fn hash_object(hasher: &mut blake3::Hasher, stat: &Stat) {
    let size = if type_of(stat) == FileType::Directory { 0 } else { size_of(stat) };
    hash_number(hasher, stat.st_ino);
    hash_number(hasher, size);
    hash_number(hasher, stat.st_ctime);
    hash_number(hasher, i64::try_from(stat.st_ctime_nsec).unwrap_or(0));
    hash_number(hasher, stat.st_mode & 0o170_000);
}

fn hash_number(hasher: &mut blake3::Hasher, number: impl Into<i128>) {
    hasher.update(&number.into().to_be_bytes());
}

fn hash_bytes(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hash_number(hasher, bytes.len() as u64);
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::wire::storage::ProbeSecret;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    fn root(site: &TestSite, path: &str) -> std::sync::Arc<RootDir> {
        let path = site.path(path);
        RootDir::open(&crate::wire::AbsPath::new(path.as_os_str().as_bytes()).unwrap()).unwrap()
    }

    fn sample(root: &RootDir) -> Option<String> {
        root.sample_entries().unwrap()
    }

    #[test]
    fn an_empty_directory_has_no_sample_whatever_probes_it_holds() {
        let site = TestSite::new();
        let src = root(&site, "src");
        assert_eq!(sample(&src), None);
        src.make_probe(&ProbeSecret::new([1; 16])).unwrap();
        assert_eq!(sample(&src), None);
    }

    #[test]
    fn two_views_of_one_directory_have_one_sample_and_other_directories_another() {
        let site = TestSite::new();
        for dir in ["src", "canary"] {
            for name in ["b", "a", "link-like", "z"] {
                site.write_file(format!("{dir}/{name}"), name);
            }
            fs::create_dir(site.path(dir).join("dir")).unwrap();
        }
        let first = sample(&root(&site, "src")).unwrap();
        assert_eq!(sample(&root(&site, "src")).as_ref(), Some(&first));
        assert_ne!(sample(&root(&site, "canary")).as_ref(), Some(&first));
        // Content that changes moves the ctime as well.
        site.write_file("src/a", "A");
        assert_ne!(sample(&root(&site, "src")).as_ref(), Some(&first));
    }

    #[test]
    fn only_the_first_entries_count_and_a_directory_that_is_too_long_counts_alone() {
        let site = TestSite::new();
        for number in 0..=MAX_ENTRIES {
            site.write_file(format!("src/{number:03}"), "x");
        }
        let src = root(&site, "src");
        let first = src.hash_sample(MAX_NAMES_READ).unwrap();
        let alone = src.hash_sample(MAX_ENTRIES).unwrap();
        assert!(first.is_some() && alone.is_some() && first != alone);
        // The last one is not in the sample, and an entry is not in that of a long directory.
        site.write_file(format!("src/{MAX_ENTRIES:03}"), "changed");
        assert_eq!(src.hash_sample(MAX_NAMES_READ).unwrap(), first);
        site.write_file("src/000", "changed");
        assert_ne!(src.hash_sample(MAX_NAMES_READ).unwrap(), first);
        assert_eq!(src.hash_sample(MAX_ENTRIES).unwrap(), alone);
    }

    #[test]
    fn a_file_that_can_not_be_read_as_a_file_does_not_stop_the_sample() {
        let site = TestSite::new();
        rustix::fs::mknodat(rustix::fs::CWD, site.path("src/fifo"), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        std::os::unix::fs::symlink("nowhere", site.path("src/link")).unwrap();
        assert!(sample(&root(&site, "src")).is_some());
    }
}
