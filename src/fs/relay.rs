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
