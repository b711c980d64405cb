//! The side of a failure ([`Side`]), whether a retry can succeed ([`ErrorClass`]), and the errnos that file systems
//! return: name, words, class on each side. The only table of them.

use super::text_enum::text_enum;
use ErrorClass::{Changed as C, Permanent as P, Transient as T, Vanished as V};
use minicbor::{Decode, Encode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

text_enum! {
    /// The end of a sync at which an operation failed.
    #[derive(PartialOrd, Ord, Hash, Encode, Decode)]
    #[cbor(index_only)]
    pub enum Side {
        /// Where entries are read.
        #[n(0)]
        Source = "source",
        /// Where entries are written.
        #[n(1)]
        Destination = "destination",
        /// Where a destination reads what it holds, to send it on to another one.
        #[n(2)]
        Relay = "relay",
    }
}

/// Determines whether a failed entry is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum ErrorClass {
    /// A retry may succeed (EIO, ENOSPC, a lost connection).
    #[default]
    #[n(0)]
    Transient,
    /// Only another worker or a change by an operator can help (EACCES, EROFS).
    #[n(1)]
    Permanent,
    /// The source changed during every attempt.
    #[n(2)]
    Changed,
    /// The source entry no longer exists.
    #[n(3)]
    Vanished,
    /// The storage path of a worker no longer leads to the directory that the worker opened: the
    /// sync waits until it does.
    #[n(4)]
    StorageGone,
    /// The request does not fit the file types of its paths: no retry can succeed.
    #[n(5)]
    InvalidRequest,
    /// A destination no longer holds what was copied to it: a relay found other content, another size or file type, or
    /// nothing. The copy of another destination, or the source, can be sent instead.
    #[n(6)]
    Damaged,
}

/// The errno of a name that exists in another spelling, in a directory that does not distinguish the two. No file
/// system returns it.
pub const NAME_COLLISION: Errno = Errno::NOTUNIQ;
const NAME_COLLISION_TEXT: &str = "its name, or one above it, exists in another spelling (letter case, Unicode form), \
                                   and the file system does not distinguish the two";

/// A row of the table.
struct ErrnoRow {
    errno: Errno,
    name: &'static str,
    text: &'static str,
    at_source: ErrorClass,
    at_destination: ErrorClass,
}

const fn row(
    errno: Errno,
    name: &'static str,
    text: &'static str,
    at_source: ErrorClass,
    at_destination: ErrorClass,
) -> ErrnoRow {
    ErrnoRow { errno, name, text, at_source, at_destination }
}

// `ENOENT` at the destination: the next attempt creates the missing directory again. `ENOTDIR` at the source: a
// directory was replaced.
const ERRNOS: &[ErrnoRow] = &[
    row(Errno::PERM, "EPERM", "Operation not permitted", P, P),
    row(Errno::NOENT, "ENOENT", "No such file or directory", V, T),
    row(Errno::INTR, "EINTR", "Interrupted system call", T, T),
    row(Errno::IO, "EIO", "Input/output error", T, T),
    row(Errno::NXIO, "ENXIO", "No such device or address", P, P),
    row(Errno::TOOBIG, "E2BIG", "Argument list too long", T, T),
    row(Errno::BADF, "EBADF", "Bad file descriptor", T, T),
    row(Errno::AGAIN, "EAGAIN", "Resource temporarily unavailable", T, T),
    row(Errno::NOMEM, "ENOMEM", "Cannot allocate memory", T, T),
    row(Errno::ACCESS, "EACCES", "Permission denied", P, P),
    row(Errno::FAULT, "EFAULT", "Bad address", T, T),
    row(Errno::BUSY, "EBUSY", "Device or resource busy", T, T),
    row(Errno::EXIST, "EEXIST", "File exists", P, P),
    row(Errno::XDEV, "EXDEV", "Invalid cross-device link", P, P),
    row(Errno::NODEV, "ENODEV", "No such device", P, P),
    row(Errno::NOTDIR, "ENOTDIR", "Not a directory", C, P),
    row(Errno::ISDIR, "EISDIR", "Is a directory", P, P),
    row(Errno::INVAL, "EINVAL", "Invalid argument", P, P),
    row(Errno::NFILE, "ENFILE", "Too many open files in system", T, T),
    row(Errno::MFILE, "EMFILE", "Too many open files", T, T),
    row(Errno::TXTBSY, "ETXTBSY", "Text file busy", T, T),
    row(Errno::FBIG, "EFBIG", "File too large", P, P),
    row(Errno::NOSPC, "ENOSPC", "No space left on device", T, T),
    row(Errno::SPIPE, "ESPIPE", "Illegal seek", T, T),
    row(Errno::ROFS, "EROFS", "Read-only file system", P, P),
    row(Errno::MLINK, "EMLINK", "Too many links", P, P),
    row(Errno::PIPE, "EPIPE", "Broken pipe", T, T),
    row(Errno::RANGE, "ERANGE", "Numerical result out of range", T, T),
    row(Errno::DEADLK, "EDEADLK", "Resource deadlock avoided", T, T),
    row(Errno::NAMETOOLONG, "ENAMETOOLONG", "File name too long", P, P),
    row(Errno::NOLCK, "ENOLCK", "No locks available", T, T),
    row(Errno::NOSYS, "ENOSYS", "Function not implemented", P, P),
    row(Errno::NOTEMPTY, "ENOTEMPTY", "Directory not empty", P, P),
    row(Errno::LOOP, "ELOOP", "A symbolic link in the path, which is not followed", P, P),
    row(Errno::NODATA, "ENODATA", "No data available", T, T),
    row(Errno::TIME, "ETIME", "Timer expired", T, T),
    row(Errno::NOLINK, "ENOLINK", "Link has been severed", T, T),
    row(NAME_COLLISION, "ENOTUNIQ", NAME_COLLISION_TEXT, P, P),
    row(Errno::COMM, "ECOMM", "Communication error on send", T, T),
    row(Errno::PROTO, "EPROTO", "Protocol error", T, T),
    row(Errno::BADMSG, "EBADMSG", "Bad message", T, T),
    row(Errno::OVERFLOW, "EOVERFLOW", "Value too large for defined data type", P, P),
    row(Errno::ILSEQ, "EILSEQ", "Invalid or incomplete multibyte or wide character", P, P),
    row(Errno::OPNOTSUPP, "EOPNOTSUPP", "Operation not supported", P, P),
    row(Errno::NETDOWN, "ENETDOWN", "Network is down", T, T),
    row(Errno::NETUNREACH, "ENETUNREACH", "Network is unreachable", T, T),
    row(Errno::CONNABORTED, "ECONNABORTED", "Software caused connection abort", T, T),
    row(Errno::CONNRESET, "ECONNRESET", "Connection reset by peer", T, T),
    row(Errno::NOBUFS, "ENOBUFS", "No buffer space available", T, T),
    row(Errno::NOTCONN, "ENOTCONN", "Transport endpoint is not connected", T, T),
    row(Errno::SHUTDOWN, "ESHUTDOWN", "Cannot send after transport endpoint shutdown", T, T),
    row(Errno::TIMEDOUT, "ETIMEDOUT", "Connection timed out", T, T),
    row(Errno::CONNREFUSED, "ECONNREFUSED", "Connection refused", T, T),
    row(Errno::HOSTDOWN, "EHOSTDOWN", "Host is down", T, T),
    row(Errno::HOSTUNREACH, "EHOSTUNREACH", "No route to host", T, T),
    row(Errno::STALE, "ESTALE", "Stale file handle", T, T),
    row(Errno::UCLEAN, "EUCLEAN", "Structure needs cleaning", T, T),
    row(Errno::REMOTEIO, "EREMOTEIO", "Remote I/O error", T, T),
    row(Errno::DQUOT, "EDQUOT", "Disk quota exceeded", T, T),
    row(Errno::NOMEDIUM, "ENOMEDIUM", "No medium found", T, T),
    row(Errno::CANCELED, "ECANCELED", "Operation canceled", T, T),
    row(Errno::NOKEY, "ENOKEY", "Required key not available", T, T),
    row(Errno::KEYEXPIRED, "EKEYEXPIRED", "Key has expired", T, T),
];

fn find(errno: Errno) -> Option<&'static ErrnoRow> {
    ERRNOS.iter().find(|row| row.errno == errno)
}

/// The name of an errno as in `errno(3)`; `None` for those that file systems do not return.
pub fn errno_name(errno: Errno) -> Option<&'static str> {
    find(errno).map(|row| row.name)
}

/// The errno with a name.
pub fn errno_by_name(name: &str) -> Option<Errno> {
    ERRNOS.iter().find(|row| row.name == name).map(|row| row.errno)
}

/// The errno in words, e.g. `Permission denied`.
pub fn errno_text(errno: Errno) -> String {
    if let Some(row) = find(errno) {
        return row.text.to_owned();
    }
    let text = std::io::Error::from(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The class of a failure with `errno` at `side`.
pub fn classify_errno(errno: Errno, side: Side) -> ErrorClass {
    // The file was there when it was copied.
    if side == Side::Relay && matches!(errno, Errno::NOENT | Errno::NOTDIR) {
        return ErrorClass::Damaged;
    }
    let class = |row: &ErrnoRow| match side {
        Side::Source => row.at_source,
        Side::Destination | Side::Relay => row.at_destination,
    };
    find(errno).map_or(ErrorClass::Transient, class)
}

/// Whether this process, or its host, is out of descriptors or memory.
pub fn is_resource_exhaustion(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// Whether the file system is full, or the quota exhausted.
pub fn is_no_space(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

#[cfg(test)]
mod tests {
    use super::super::hint::errno_hint;
    use super::super::outcome::EntryError;
    use super::*;
    use rustix::process::Uid;

    /// Every errno with a name: its class at the source and at the destination, and the hint for another user than root.
    #[test]
    fn each_errno_has_a_name_words_a_class_on_each_side_and_a_hint() {
        let table = [
            ("EPERM", P, P, "grant the copying user (uid 7) access to these paths, or run as root"),
            ("ENOENT", V, T, ""),
            ("EINTR", T, T, ""),
            ("EIO", T, T, "check the kernel log of that host for errors of the storage"),
            ("ENXIO", P, P, ""),
            ("E2BIG", T, T, ""),
            ("EBADF", T, T, ""),
            ("EAGAIN", T, T, ""),
            ("ENOMEM", T, T, "give the host more memory"),
            (
                "EACCES",
                P,
                P,
                "grant the copying user (uid 7) access to these paths, or run as root",
            ),
            ("EFAULT", T, T, ""),
            ("EBUSY", T, T, ""),
            ("EEXIST", P, P, ""),
            ("EXDEV", P, P, ""),
            ("ENODEV", P, P, ""),
            ("ENOTDIR", C, P, ""),
            ("EISDIR", P, P, ""),
            ("EINVAL", P, P, ""),
            ("ENFILE", T, T, "raise the limit of open files (`ulimit -n`, LimitNOFILE=)"),
            ("EMFILE", T, T, "raise the limit of open files (`ulimit -n`, LimitNOFILE=)"),
            ("ETXTBSY", T, T, ""),
            (
                "EFBIG",
                P,
                P,
                "its file system allows no larger files, or the limit of file sizes (`ulimit -f`, LimitFSIZE=) must be raised",
            ),
            ("ENOSPC", T, T, "free space or inodes on the destination"),
            ("ESPIPE", T, T, ""),
            ("EROFS", P, P, "mount the file system writable"),
            ("EMLINK", P, P, ""),
            ("EPIPE", T, T, ""),
            ("ERANGE", T, T, ""),
            ("EDEADLK", T, T, ""),
            ("ENAMETOOLONG", P, P, ""),
            ("ENOLCK", T, T, ""),
            ("ENOSYS", P, P, "mount `/proc` on that host"),
            ("ENOTEMPTY", P, P, ""),
            (
                "ELOOP",
                P,
                P,
                "a symbolic link stands in the path and is not followed: name the real path",
            ),
            ("ENODATA", T, T, ""),
            ("ETIME", T, T, ""),
            ("ENOLINK", T, T, ""),
            (
                "ENOTUNIQ",
                P,
                P,
                "nothing was overwritten: rename one of the two at the source, or copy to a file system that distinguishes them",
            ),
            ("ECOMM", T, T, ""),
            ("EPROTO", T, T, ""),
            ("EBADMSG", T, T, ""),
            ("EOVERFLOW", P, P, ""),
            ("EILSEQ", P, P, ""),
            ("EOPNOTSUPP", P, P, ""),
            ("ENETDOWN", T, T, ""),
            ("ENETUNREACH", T, T, ""),
            ("ECONNABORTED", T, T, ""),
            ("ECONNRESET", T, T, ""),
            ("ENOBUFS", T, T, ""),
            ("ENOTCONN", T, T, ""),
            ("ESHUTDOWN", T, T, ""),
            ("ETIMEDOUT", T, T, ""),
            ("ECONNREFUSED", T, T, ""),
            ("EHOSTDOWN", T, T, ""),
            ("EHOSTUNREACH", T, T, ""),
            ("ESTALE", T, T, ""),
            ("EUCLEAN", T, T, ""),
            ("EREMOTEIO", T, T, ""),
            ("EDQUOT", T, T, "raise the quota of user 7, or free some of it"),
            ("ENOMEDIUM", T, T, ""),
            ("ECANCELED", T, T, ""),
            ("ENOKEY", T, T, ""),
            ("EKEYEXPIRED", T, T, ""),
        ];
        let (user, root) = (Uid::from_raw(7), Uid::ROOT);
        assert_eq!(ERRNOS.len(), table.len());
        for (row, (name, source, destination, hint)) in ERRNOS.iter().zip(table) {
            let errno = row.errno;
            assert_eq!((errno_name(errno), errno_by_name(name)), (Some(name), Some(errno)));
            assert_eq!(classify_errno(errno, Side::Source), source, "{name}");
            assert_eq!(classify_errno(errno, Side::Destination), destination, "{name}");
            let is_missing = ["ENOENT", "ENOTDIR"].contains(&name);
            let relay = if is_missing { ErrorClass::Damaged } else { destination };
            assert_eq!(classify_errno(errno, Side::Relay), relay, "{name}");
            let expected = Some(hint.to_owned()).filter(|hint| !hint.is_empty());
            assert_eq!(errno_hint(errno, user), expected, "{name}");
            // Root is not advised to become root.
            let for_root = errno_hint(errno, root);
            assert_eq!(for_root.is_some(), expected.is_some(), "{name}");
            assert!(!for_root.unwrap_or_default().contains("as root"), "{name}");
            let words = errno_text(errno);
            let system = std::io::Error::from(errno).to_string();
            match name {
                "ELOOP" => assert!(words.contains("is not followed"), "{words}"),
                "ENOTUNIQ" => assert!(words.contains("exists in another spelling"), "{words}"),
                _ => assert!(system.starts_with(&format!("{words} (os error")), "{words}"),
            }
        }
    }

    #[test]
    fn an_errno_without_a_name_is_transient() {
        let unknown = Errno::from_raw_os_error(4_000);
        assert_eq!((errno_name(unknown), errno_by_name("E4000")), (None, None));
        assert_eq!(classify_errno(unknown, Side::Source), T);
        assert!(errno_text(unknown).contains("4000"), "{}", errno_text(unknown));
    }

    #[test]
    fn an_error_is_classified_by_its_fields() {
        for row in ERRNOS {
            let error =
                EntryError::new(b"x", Side::Destination, "open", "no").with_errno(row.errno);
            assert_eq!(error.errno.as_deref(), Some(row.name));
            let short = ["ENOMEM", "EMFILE", "ENFILE"].contains(&row.name);
            assert_eq!(error.is_resource_exhaustion(), short, "{}", row.name);
            assert_eq!(error.is_no_space(), ["ENOSPC", "EDQUOT"].contains(&row.name));
            assert_eq!(error.is_blocked_by_directory(), row.name == "EISDIR");
            let at_source = EntryError { side: Some(Side::Source), ..error };
            assert!(!at_source.is_blocked_by_directory());
        }
    }
}
