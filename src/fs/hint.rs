//! What an operator can do about an error: the only table of it. Its texts hold for an agent and for `ctl copy`.

use super::error::{Cause, NodeKind, Side};
use super::spelling::TAKEN;
use crate::wire::sync::FileError;
use rustix::io::Errno;
use rustix::process::Uid;

/// What to do about `cause`, which a process of user `uid` met at `side`.
pub(super) fn hint(side: Side, cause: Cause, uid: Uid) -> Option<String> {
    let text = match cause {
        Cause::Changed => "stop writes to it during the copy",
        Cause::Occupied => {
            "a mirror (`--delete`) replaces it; else remove or rename that directory, then sync again"
        }
        Cause::RootGone(loss) => loss.hint(),
        Cause::Lost => "do not remove part files (`.ctl-….part`) while a sync runs",
        Cause::MadeUp => "leave it out, or unmount it",
        Cause::Dangling | Cause::Outside | Cause::Cycle => "exclude it, or keep links as they are",
        Cause::Mounted | Cause::Destination => "unmount it, or exclude it",
        Cause::NoDirectory => {
            "leave the list (`--files-from`) out, or name the directory as the source"
        }
        Cause::NoTrash(_) => "name another directory (`--trash`), or move away what is there",
        Cause::ManyXattrs => "remove some, or copy without them (`--preserve no-xattrs`)",
        Cause::Unmakeable(NodeKind::Link, _) => "leave links out (`--links skip`)",
        Cause::Unmakeable(NodeKind::Special, _) => {
            "leave FIFOs and sockets out (`--preserve no-specials`)"
        }
        Cause::Unmakeable(NodeKind::Device, _) if uid.is_root() => {
            "leave devices out (`--preserve no-devices`)"
        }
        Cause::Unmakeable(NodeKind::Device, _) => {
            "write there as root, or leave devices out (`--preserve no-devices`)"
        }
        Cause::Short(_) => "sync without `--strict-metadata` to have it counted instead",
        Cause::Os(errno) => return os_hint(side, errno, uid),
        Cause::NotRegular | Cause::WrongSize { .. } | Cause::Overtaken => return None,
    };
    Some(text.to_owned())
}

fn os_hint(side: Side, errno: Errno, uid: Uid) -> Option<String> {
    let text = match errno {
        Errno::NOSYS => "mount `/proc` on that host",
        Errno::ACCESS | Errno::PERM if uid.is_root() => {
            "root itself is refused: look at file flags (`lsattr`), root squashing (NFS) and the capabilities of the \
             process"
        }
        Errno::ACCESS | Errno::PERM => {
            return Some(match side {
                Side::Source => format!(
                    "grant the copying user (uid {uid}) access to these paths, or run as root"
                ),
                Side::Destination => {
                    format!(
                        "grant the copying user (uid {uid}) access to these paths, or run as root"
                    )
                }
            });
        }
        Errno::NOSPC => FileError::NO_ROOM_HINT,
        Errno::DQUOT => return Some(format!("raise the quota of user {uid}, or free some of it")),
        Errno::FBIG => {
            "its file system has no longer files, or the limit of file sizes (`ulimit -f`, LimitFSIZE=) is to be \
             raised"
        }
        Errno::ROFS => "mount the file system writable",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (`ulimit -n`, LimitNOFILE=)",
        Errno::LOOP => "a symbolic link stands in the path and is not followed: name the real path",
        TAKEN => {
            "nothing was overwritten: rename one of the two at the source, or copy to a file system that tells \
             them apart"
        }
        Errno::IO => "check the kernel log of that host for errors of the storage",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::notes::Shortfall;
    use crate::fs::presence::RootLoss;
    use rustix::fs::FileType;

    #[test]
    fn each_cause_has_what_to_do_on_each_side_for_root_and_for_others() {
        use Side::{Destination, Source};
        let device = Cause::Unmakeable(NodeKind::Device, Errno::PERM);
        let special = Cause::Unmakeable(NodeKind::Special, Errno::PERM);
        for (side, cause, uid, hint_part) in [
            (Destination, Cause::Occupied, 1000, "a mirror (`--delete`) replaces it"),
            (
                Destination,
                device,
                1000,
                "write there as root, or leave devices out (`--preserve no-devices`)",
            ),
            (Destination, device, 0, "leave devices out (`--preserve no-devices`)"),
            (Destination, special, 0, "`--preserve no-specials`"),
            (Destination, Cause::Unmakeable(NodeKind::Link, Errno::PERM), 0, "`--links skip`"),
            (Destination, Cause::Short(Shortfall::SetId), 0, "`--strict-metadata`"),
            (Source, Cause::Changed, 0, "stop writes to it"),
            (Source, Cause::Dangling, 0, "keep links as they are"),
            (Source, Cause::Mounted, 0, "unmount it"),
            (Source, Cause::NoDirectory, 0, "leave the list (`--files-from`) out"),
            (Destination, Cause::NoTrash(FileType::Symlink), 0, "`--trash`"),
            (Source, Cause::ManyXattrs, 0, "`--preserve no-xattrs`"),
            (Source, Cause::MadeUp, 0, "leave it out"),
            (Destination, Cause::Lost, 0, "part files"),
            (Source, Cause::RootGone(RootLoss::Replaced), 0, "put it back"),
            (Source, Cause::RootGone(RootLoss::Unmounted), 0, "mount it again"),
            (Source, Cause::RootGone(RootLoss::Mounted), 0, "until it is unmounted"),
            (Source, Errno::ACCESS.into(), 1000, "let user 1000 read it, or copy as root"),
            (
                Destination,
                Errno::PERM.into(),
                7,
                "let user 7 write there (or own it), or copy as root",
            ),
            (Source, Errno::ACCESS.into(), 0, "root itself is refused"),
            (Destination, Errno::PERM.into(), 0, "root itself is refused"),
            (Destination, Errno::NOSPC.into(), 0, "free space or inodes"),
            (Destination, Errno::DQUOT.into(), 7, "raise the quota of user 7"),
            (Destination, Errno::FBIG.into(), 0, "`ulimit -f`"),
            (Destination, Errno::ROFS.into(), 0, "writable"),
            (Source, Errno::MFILE.into(), 0, "`ulimit -n`"),
            (Source, Errno::LOOP.into(), 0, "name the real path"),
            (Destination, TAKEN.into(), 0, "rename one of the two"),
            (Source, Errno::IO.into(), 0, "kernel log"),
            (Source, Errno::NOSYS.into(), 0, "`/proc`"),
        ] {
            let found = hint(side, cause, Uid::from_raw(uid)).unwrap_or_default();
            assert!(found.contains(hint_part), "{side:?} {cause:?} {uid}: {found}");
            // Root is not advised to become root.
            assert!(uid != 0 || !found.contains("as root"), "{side:?} {cause:?}: {found}");
        }
        for cause in [Cause::Overtaken, Cause::NotRegular, Errno::BUSY.into()] {
            assert_eq!(hint(Side::Source, cause, Uid::ROOT), None, "{cause:?}");
        }
    }
}
