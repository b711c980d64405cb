//! Hints for operators about causes that are not errnos; those of errnos are in [`hint`](crate::wire::hint).

use super::{Cause, SpecialKind};
use crate::fs::root_identity::RootUnavailable;
use crate::fs::root_mismatch::RootMismatch;
use crate::wire::hint::errno_hint;
use rustix::process::Uid;

/// What to do about `cause` in a process of the user `uid`.
pub(super) fn operator_hint(cause: Cause, uid: Uid) -> Option<String> {
    let text = match cause {
        Cause::Changed => "stop writes to it during the copy",
        Cause::DirectoryNotEmpty => {
            "a mirror (`--delete`) replaces it; else remove or rename that directory, then sync again"
        }
        Cause::RootUnavailable(loss) => loss.hint(),
        Cause::PartDataLost => "do not remove part files (`.ctl-….part`) while a sync runs",
        Cause::Damaged => "check the storage of that host, and that nothing else writes there",
        Cause::PseudoFileSystem => "leave it out, or unmount it",
        Cause::DanglingLink | Cause::LinkOutsideRoot | Cause::LinkCycle => {
            "exclude it, or keep links as they are"
        }
        Cause::MountPoint | Cause::IsDestination => "unmount it, or exclude it",
        Cause::SourceNotDirectory => {
            "leave the list (`--files-from`) out, or name the directory as the source"
        }
        Cause::TrashNotDirectory(_) => {
            "name another directory (`--trash`), or move away what is there"
        }
        Cause::XattrsTooLarge => "remove some, or copy without them (`--preserve no-xattrs`)",
        Cause::CannotCreate(SpecialKind::Symlink, _) => "leave links out (`--links skip`)",
        Cause::CannotCreate(SpecialKind::FifoOrSocket, _) => {
            "leave FIFOs and sockets out (`--preserve no-specials`)"
        }
        Cause::CannotCreate(SpecialKind::Device, _) if uid.is_root() => {
            "leave devices out (`--preserve no-devices`)"
        }
        Cause::CannotCreate(SpecialKind::Device, _) => {
            "write there as root, or leave devices out (`--preserve no-devices`)"
        }
        Cause::MetadataUnsupported(_) => {
            "sync without `--strict-metadata` to have it counted instead"
        }
        Cause::Os(errno) => return errno_hint(errno, uid),
        Cause::RootMismatch(mismatch) => mismatch.hint(),
        Cause::NotRegularFile
        | Cause::WrongSize { .. }
        | Cause::NoDigest
        | Cause::Superseded
        | Cause::SourceMissing => {
            return None;
        }
    };
    Some(text.to_owned())
}

impl RootUnavailable {
    /// What an operator can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            RootUnavailable::MountedOver => {
                "nothing is written there until it is unmounted, or opened as the new storage at the next heartbeat"
            }
            RootUnavailable::Unmounted => {
                "mount it again, or start the program again to use that directory; nothing is written there until then"
            }
            RootUnavailable::Reopened => {
                "it is tried again when the next heartbeat has named that directory"
            }
            RootUnavailable::Missing(_) | RootUnavailable::Replaced => {
                "put it back, or start the program again to use what is there now; nothing is written there until then"
            }
        }
    }
}

impl RootMismatch {
    /// What to do about it.
    fn hint(self) -> &'static str {
        match self {
            RootMismatch::SamePath
            | RootMismatch::DestinationInside
            | RootMismatch::SourceInside => "choose a DST outside SRC",
            RootMismatch::DestinationNotDirectory => {
                "name a DST that is a directory or does not exist"
            }
            RootMismatch::DestinationIsDirectory => {
                "DST is the file's new path: add the file's name to it"
            }
            RootMismatch::DestinationIsSpecial => {
                "DST is the file's new path; to have it replaced, remove it first"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::metadata_warnings::MetadataWarning;
    use crate::wire::errno::NAME_COLLISION;
    use rustix::fs::FileType;
    use rustix::io::Errno;

    #[test]
    fn each_cause_has_a_hint_for_root_and_for_other_users() {
        let device = Cause::CannotCreate(SpecialKind::Device, Errno::PERM);
        let special = Cause::CannotCreate(SpecialKind::FifoOrSocket, Errno::PERM);
        for (cause, uid, hint_part) in [
            (Cause::DirectoryNotEmpty, 1000, "a mirror (`--delete`) replaces it"),
            (device, 1000, "write there as root, or leave devices out (`--preserve no-devices`)"),
            (device, 0, "leave devices out (`--preserve no-devices`)"),
            (special, 0, "`--preserve no-specials`"),
            (Cause::CannotCreate(SpecialKind::Symlink, Errno::PERM), 0, "`--links skip`"),
            (Cause::MetadataUnsupported(MetadataWarning::SetId), 0, "`--strict-metadata`"),
            (Cause::Changed, 0, "stop writes to it"),
            (Cause::DanglingLink, 0, "keep links as they are"),
            (Cause::MountPoint, 0, "unmount it"),
            (Cause::SourceNotDirectory, 0, "leave the list (`--files-from`) out"),
            (Cause::TrashNotDirectory(FileType::Symlink), 0, "`--trash`"),
            (Cause::XattrsTooLarge, 0, "`--preserve no-xattrs`"),
            (Cause::RootMismatch(RootMismatch::SamePath), 0, "outside SRC"),
            (Cause::PseudoFileSystem, 0, "leave it out"),
            (Cause::PartDataLost, 0, "part files"),
            (Cause::Damaged, 0, "nothing else writes there"),
            (Cause::RootUnavailable(RootUnavailable::Replaced), 0, "put it back"),
            (Cause::RootUnavailable(RootUnavailable::Unmounted), 0, "mount it again"),
            (Cause::RootUnavailable(RootUnavailable::MountedOver), 0, "until it is unmounted"),
            (Errno::ACCESS.into(), 1000, "grant the copying user (uid 1000) access"),
            (Errno::PERM.into(), 7, "(uid 7) access to these paths, or run as root"),
            (Errno::ACCESS.into(), 0, "root itself is refused"),
            (Errno::PERM.into(), 0, "root itself is refused"),
            (Errno::NOSPC.into(), 0, "free space or inodes"),
            (Errno::DQUOT.into(), 7, "raise the quota of user 7"),
            (Errno::FBIG.into(), 0, "`ulimit -f`"),
            (Errno::ROFS.into(), 0, "writable"),
            (Errno::MFILE.into(), 0, "`ulimit -n`"),
            (Errno::LOOP.into(), 0, "name the real path"),
            (NAME_COLLISION.into(), 0, "rename one of the two"),
            (Errno::IO.into(), 0, "kernel log"),
            (Errno::NOSYS.into(), 0, "`/proc`"),
        ] {
            let found = operator_hint(cause, Uid::from_raw(uid)).unwrap_or_default();
            assert!(found.contains(hint_part), "{cause:?} {uid}: {found}");
            // Root is not advised to become root.
            assert!(uid != 0 || !found.contains("as root"), "{cause:?}: {found}");
        }
        for cause in [Cause::Superseded, Cause::NotRegularFile, Errno::BUSY.into()] {
            assert_eq!(operator_hint(cause, Uid::ROOT), None, "{cause:?}");
        }
    }
}
