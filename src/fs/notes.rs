//! What a destination can't hold of an entry's metadata: counted by cause, or an error where the
//! operator wants it so.

use super::error::{Cause, errno_name};
use crate::wire::RelPath;
use crate::wire::options::EntryWarnings;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::fmt;

/// Something of an entry that the destination does not hold. Its text is a cause: the same for every
/// entry that it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortfall {
    /// Its owner or group is another one.
    Owner(Errno),
    /// Set-uid or set-gid is missing: it would speak of another owner.
    SetId,
    /// Its mode is another one.
    Mode(Errno),
    /// Its access control lists are missing.
    Acl(Errno),
    /// Extended attributes of a namespace are missing.
    Xattr(&'static str, Errno),
    /// Its time can't be set.
    Time(Errno),
    /// Its time was rounded.
    RoundedTime,
    /// Its time is outside of what the file system has numbers for.
    ClampedTime,
    /// It is a file of its own, instead of another name of one.
    HardLink(Errno),
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |errno| errno_name(errno).unwrap_or("unknown error");
        match *self {
            Shortfall::Owner(Errno::PERM) => f.write_str(
                "owner or group not set (EPERM): only root may set them (CAP_CHOWN); `--no-owner` leaves them out",
            ),
            Shortfall::Owner(errno) => write!(
                f,
                "owner or group not set ({}): the destination's file system takes no owners from \
                 this user",
                name(errno)
            ),
            Shortfall::SetId => f.write_str(
                "set-uid or set-gid left out: the file has another owner or group at the destination",
            ),
            Shortfall::Mode(errno) => write!(f, "mode not set ({})", name(errno)),
            Shortfall::Acl(errno) => write!(f, "access control list not set ({})", name(errno)),
            Shortfall::Xattr(space, errno) => {
                write!(f, "extended attribute `{space}*` not set ({})", name(errno))
            }
            Shortfall::Time(errno) => write!(f, "modification time not set ({})", name(errno)),
            Shortfall::RoundedTime => f.write_str(
                "modification time rounded by the destination's file system: give \
                 `--modify-window`, or later syncs will take these files for changed",
            ),
            Shortfall::ClampedTime => f.write_str(
                "modification time outside of what the destination's file system can hold: later \
                 syncs will take these files for changed, unless they are given `--size-only`, \
                 `--checksum` or a wide `--modify-window`",
            ),
            Shortfall::HardLink(errno) => {
                write!(f, "hard link not kept, copied as a file of its own ({})", name(errno))
            }
        }
    }
}

/// Gathers the shortfalls of one [`Target`](super::Target).
#[derive(Debug)]
pub(super) struct Notebook {
    strict: bool,
    notes: Mutex<EntryWarnings>,
}

impl Notebook {
    pub(super) fn new(strict: bool) -> Self {
        Notebook { strict, notes: Mutex::default() }
    }

    /// Counts what `path` fell short of.
    ///
    /// # Errors
    /// It is to be a failure of the entry.
    pub(super) fn add(&self, path: &RelPath, short: Shortfall) -> Result<(), Cause> {
        if self.strict {
            return Err(Cause::Short(short));
        }
        let cause = short.to_string();
        let mut notes = self.notes.lock();
        if !notes.contains_key(&cause) {
            // There is one of these for each request: the operator is told by the report of the sync.
            tracing::debug!(first = %path, "{cause}");
        }
        notes.entry(cause).or_default().add(path.as_bytes());
        Ok(())
    }

    /// What was counted since the last call.
    pub(super) fn take(&self) -> EntryWarnings {
        let mut notes = self.notes.lock();
        std::mem::take(&mut *notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_counted_and_keeps_its_first_paths() {
        let book = Notebook::new(false);
        for i in 0..20 {
            let path = RelPath::new(format!("f{i:02}")).unwrap();
            book.add(&path, Shortfall::SetId).unwrap();
        }
        book.add(&RelPath::root(), Shortfall::Xattr("user.", Errno::OPNOTSUPP)).unwrap();
        let notes = book.take();
        assert_eq!(notes.len(), 2);
        let note = &notes[&Shortfall::SetId.to_string()];
        assert_eq!((note.count, note.paths.len()), (20, 10));
        assert_eq!(note.paths[0].0, b"f00");
        assert!(notes.contains_key("extended attribute `user.*` not set (EOPNOTSUPP)"));
        assert!(book.take().is_empty());
    }

    #[test]
    fn strictly_nothing_is_only_noted() {
        let book = Notebook::new(true);
        let failed = book.add(&RelPath::root(), Shortfall::RoundedTime);
        assert_eq!(failed, Err(Cause::Short(Shortfall::RoundedTime)));
        assert!(book.take().is_empty());
    }
}
