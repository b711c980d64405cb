//! Metadata of entries that a destination can't store: counted by cause, or an error with strict metadata.

use crate::wire::RelPath;
use crate::wire::entry_report::EntryWarnings;
use crate::wire::errno::errno_name;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::fmt;

/// A part of an entry's metadata that the destination does not store. Its text is the cause, equal for all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataWarning {
    /// The owner or group differs.
    Owner(Errno),
    /// Set-uid or set-gid is missing, because it would apply to another owner.
    SetId,
    /// The mode differs.
    Mode(Errno),
    /// Access control lists are missing.
    Acl(Errno),
    /// Extended attributes of a namespace are missing.
    Xattr(&'static str, Errno),
    /// The mtime can't be set.
    Mtime(Errno),
    /// The mtime was rounded.
    RoundedMtime,
    /// The mtime is outside of the range of the file system.
    ClampedMtime,
    /// It is a separate file instead of another name of one.
    HardLink(Errno),
}

impl fmt::Display for MetadataWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |errno| errno_name(errno).unwrap_or("unknown error");
        match *self {
            MetadataWarning::Owner(Errno::PERM) => f.write_str(
                "owner or group not set (EPERM): only root may set them (CAP_CHOWN); `--no-owner` leaves them out",
            ),
            MetadataWarning::Owner(errno) => write!(
                f,
                "owner or group not set ({}): the destination's file system takes no owners from \
                 this user",
                name(errno)
            ),
            MetadataWarning::SetId => f.write_str(
                "set-uid or set-gid left out: the file has another owner or group at the destination",
            ),
            MetadataWarning::Mode(errno) => write!(f, "mode not set ({})", name(errno)),
            MetadataWarning::Acl(errno) => write!(f, "access control list not set ({})", name(errno)),
            MetadataWarning::Xattr(space, errno) => {
                write!(f, "extended attribute `{space}*` not set ({})", name(errno))
            }
            MetadataWarning::Mtime(errno) => write!(f, "modification time not set ({})", name(errno)),
            MetadataWarning::RoundedMtime => f.write_str(
                "modification time rounded by the destination's file system: give \
                 `--modify-window`, or later syncs will take these files for changed",
            ),
            MetadataWarning::ClampedMtime => f.write_str(
                "modification time outside of what the destination's file system can hold: later \
                 syncs will take these files for changed, unless they are given `--size-only`, \
                 `--checksum` or a wide `--modify-window`",
            ),
            MetadataWarning::HardLink(errno) => {
                write!(f, "hard link not kept, copied as a file of its own ({})", name(errno))
            }
        }
    }
}

/// Counts the warnings of one [`Target`](super::Target).
#[derive(Debug)]
pub(super) struct MetadataWarnings {
    strict: bool,
    counts: Mutex<EntryWarnings>,
}

impl MetadataWarnings {
    pub(super) fn new(strict: bool) -> Self {
        MetadataWarnings { strict, counts: Mutex::default() }
    }

    /// Counts a warning for `path`.
    ///
    /// # Errors
    /// Strict metadata is required.
    pub(super) fn record(
        &self,
        path: &RelPath,
        warning: MetadataWarning,
    ) -> Result<(), MetadataWarning> {
        if self.strict {
            return Err(warning);
        }
        let cause = warning.to_string();
        let mut counts = self.counts.lock();
        if !counts.contains_key(&cause) {
            // Only for debugging: there is one such line for each request, and the sync reports the counts.
            tracing::debug!(first = %path, "{cause}");
        }
        counts.entry(cause).or_default().add(path.as_bytes());
        Ok(())
    }

    /// Returns the counts since the last call.
    pub(super) fn take_counts(&self) -> EntryWarnings {
        std::mem::take(&mut *self.counts.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_counted_and_keeps_its_first_paths() {
        let book = MetadataWarnings::new(false);
        for i in 0..20 {
            let path = RelPath::new(format!("f{i:02}")).unwrap();
            book.record(&path, MetadataWarning::SetId).unwrap();
        }
        book.record(&RelPath::root(), MetadataWarning::Xattr("user.", Errno::OPNOTSUPP)).unwrap();
        let notes = book.take_counts();
        assert_eq!(notes.len(), 2);
        let note = &notes[&MetadataWarning::SetId.to_string()];
        assert_eq!((note.count, note.paths.len()), (20, 10));
        assert_eq!(note.paths[0].0, b"f00");
        assert!(notes.contains_key("extended attribute `user.*` not set (EOPNOTSUPP)"));
        assert!(book.take_counts().is_empty());
    }

    #[test]
    fn strict_metadata_turns_a_warning_into_an_error() {
        let book = MetadataWarnings::new(true);
        let failed = book.record(&RelPath::root(), MetadataWarning::RoundedMtime);
        assert_eq!(failed, Err(MetadataWarning::RoundedMtime));
        assert!(book.take_counts().is_empty());
    }
}
