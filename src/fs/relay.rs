//! Where a relay finds the content of entries: a destination that sends on what was copied to it.

use super::errno::SysResult;
use super::file_io::READ_FLAGS;
use super::root::Tree;
use super::temp_names::part_file_name;
use crate::wire::manifest::Entry;
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;

impl Tree {
    /// Opens the file of `entry`; with `may_be_part` its part file, if it is not published yet.
    pub(super) fn open_published_or_part(
        &self,
        entry: &Entry,
        may_be_part: bool,
    ) -> SysResult<OwnedFd> {
        let place = self.locate(&entry.path)?;
        let open = |name: &[u8]| rustix::fs::openat(&place.dir, name, READ_FLAGS, Mode::empty());
        if may_be_part {
            let part = part_file_name(&self.part_name_key, &entry.path, entry.part_generation());
            match open(&part) {
                // It has its final name, or gets it just now.
                Err(Errno::NOENT) => {}
                opened => return opened,
            }
        }
        open(place.name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Cause, Side};
    use super::*;
    use crate::wire::Digest;
    use crate::wire::content::{ContentHasher, HashMode};
    use crate::wire::options::PartNameKey;
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    fn digest_of(content: &[u8]) -> Digest {
        let mut hasher = ContentHasher::new(HashMode::SkipZeros);
        hasher.update(content);
        hasher.digest()
    }

    #[test]
    fn ranges_are_read_from_the_part_file_while_others_are_written_and_after_it_is_published() {
        let site = TestSite::new();
        site.write_file("src/d/f", "0123456789");
        let (target, entry) = (site.target(), site.source().entry(&rel("d/f")).unwrap());
        let relay = || site.tree("dst").for_relay();
        let missing = relay().open_for_range(&entry).unwrap_err();
        assert_eq!(missing.cause, Errno::NOENT.into());
        let part = target.open_part_file(&entry).unwrap();
        part.write_at(b"01234", 0).unwrap();
        let file = relay().open_for_range(&entry).unwrap();
        part.write_at(b"56789", 5).unwrap();
        let other_key = relay().with_part_names(PartNameKey([7; 32]));
        assert_eq!(other_key.open_for_range(&entry).unwrap_err().cause, Errno::NOENT.into());
        // Only ranges may be in a part file.
        let whole = Entry { digest: Some(digest_of(b"0123456789")), ..entry.clone() };
        assert_eq!(relay().open_source(&whole).unwrap_err().cause, Errno::NOENT.into());
        target.publish_part_file(&entry, None).unwrap();
        assert_eq!(read_content(&file), b"0123456789");
        assert!(file.is_version(&entry), "it is that of the source, whatever its inode is here");
        assert_eq!(read_content(&relay().open_for_range(&entry).unwrap()), b"0123456789");
    }

    #[test]
    fn a_whole_file_has_the_metadata_of_its_entry_and_is_verified_by_its_digest() {
        let site = TestSite::new();
        site.write_file("src/f", "content");
        let scanned = site.source().entry(&rel("f")).unwrap();
        let path = site.write_file("dst/f", "content");
        let real = Some(rel("elsewhere"));
        let digest = Some(digest_of(b"content"));
        let entry = Entry { digest, content_path: real, ..scanned.clone() };
        let relay = site.tree("dst").for_relay();
        let file = relay.open_source(&entry).unwrap();
        assert_eq!(*file.entry(), scanned);
        // A new name moves the change time, and is no change of the content.
        fs::hard_link(&path, site.path("dst/g")).unwrap();
        file.verify_unchanged().unwrap();
        file.verify_digest(digest).unwrap();
        for found in [None, Some(digest_of(b"kontent"))] {
            assert_eq!(file.verify_digest(found).unwrap_err().cause, Cause::Damaged);
        }
        let unknown = relay.open_source(&scanned).unwrap_err();
        assert_eq!((unknown.side, unknown.cause), (Side::Relay, Cause::NoDigest));
        fs::File::options().append(true).open(&path).unwrap().write_at(b"!", 7).unwrap();
        let longer = relay.open_source(&entry).unwrap_err();
        assert_eq!(longer.cause, Cause::WrongSize { expected: 7, found: 8 });
    }
}
