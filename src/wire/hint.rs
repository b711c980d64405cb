//! What an operator can do about an errno, the only table of it. The texts apply to an agent and to `ctl copy`. Causes
//! other than errnos have their hints in `fs::error`.

use super::errno::NAME_COLLISION;
use rustix::io::Errno;
use rustix::process::Uid;

/// The hint for a full file system.
pub const NO_SPACE_HINT: &str = "free space or inodes on the destination";

/// What to do about `errno` in a process of the user `uid`.
pub fn errno_hint(errno: Errno, uid: Uid) -> Option<String> {
    let text = match errno {
        Errno::NOSYS => "mount `/proc` on that host",
        Errno::ACCESS | Errno::PERM if uid.is_root() => {
            "root itself is refused: look at file flags (`lsattr`), root squashing (NFS) and the capabilities of the \
             process"
        }
        Errno::ACCESS | Errno::PERM => {
            return Some(format!(
                "grant the copying user (uid {uid}) access to these paths, or run as root"
            ));
        }
        Errno::NOSPC => NO_SPACE_HINT,
        Errno::DQUOT => return Some(format!("raise the quota of user {uid}, or free some of it")),
        Errno::FBIG => {
            "its file system allows no larger files, or the limit of file sizes (`ulimit -f`, LimitFSIZE=) must be \
             raised"
        }
        Errno::ROFS => "mount the file system writable",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files (`ulimit -n`, LimitNOFILE=)",
        Errno::NOMEM => "give the host more memory",
        Errno::LOOP => "a symbolic link stands in the path and is not followed: name the real path",
        NAME_COLLISION => {
            "nothing was overwritten: rename one of the two at the source, or copy to a file system that \
             distinguishes them"
        }
        Errno::IO => "check the kernel log of that host for errors of the storage",
        _ => return None,
    };
    Some(text.to_owned())
}
