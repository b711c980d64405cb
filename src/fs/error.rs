//! Errors of operations on entries: operation, side, path, cause and hint.

use super::metadata_warnings::MetadataWarning;
use super::root_identity::RootUnavailable;
use super::root_mismatch::RootMismatch;
use crate::wire::errno::{classify_errno, errno_name, errno_text};
mod hint;

use crate::wire::BytePath;
pub use crate::wire::outcome::Side;
use crate::wire::outcome::{EntryError, ErrorClass};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::fmt;

/// Why an operation on an entry failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A system call failed.
    Os(Errno),
    /// The source file changed while it was read, or since it was scanned.
    Changed,
    /// The object is not, or no longer, a regular file.
    NotRegularFile,
    /// A file has another length than expected, in bytes.
    WrongSize {
        /// According to the entry.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A directory that is not empty has the name of another object.
    DirectoryNotEmpty,
    /// Another writer has the temporary file's name, and publishes.
    Superseded,
    /// Data written to a part file is missing: it must be sent again.
    PartDataLost,
    /// The content at a relay does not have the digest that it had at the source.
    Damaged,
    /// The digest at the source is not known, so that a relay can't verify the content.
    NoDigest,
    /// The file is in a file system like `proc`, without lengths of files to copy by.
    PseudoFileSystem,
    /// A link to be followed has no target.
    DanglingLink,
    /// A link to be followed points outside of the storage root.
    LinkOutsideRoot,
    /// Links to be followed form a cycle.
    LinkCycle,
    /// Another file system is mounted there.
    MountPoint,
    /// It is the destination directory itself.
    IsDestination,
    /// The source is no directory, but a list names entries of it.
    SourceNotDirectory,
    /// Its extended attributes are too long together.
    XattrsTooLarge,
    /// This process can't create an object of this kind there.
    CannotCreate(SpecialKind, Errno),
    /// The destination can't store some of its metadata, and strict metadata is required.
    MetadataUnsupported(MetadataWarning),
    /// The place of the trash, or of a directory above it, has an object of this type.
    TrashNotDirectory(FileType),
    /// The path of the storage root no longer leads to the open directory.
    RootUnavailable(RootUnavailable),
    /// The root of the source does not exist.
    SourceMissing,
    /// The root of the destination does not fit that of the source.
    RootMismatch(RootMismatch),
}

/// A kind of entry without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialKind {
    /// A symbolic link.
    Symlink,
    /// A FIFO or socket.
    FifoOrSocket,
    /// A device node.
    Device,
}

/// An operation on one entry that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsError {
    /// At which end.
    pub side: Side,
    /// The verb, e.g. `open`.
    pub operation: &'static str,
    /// Below the root of the sync; an absolute path for a root.
    pub path: BytePath,
    /// Why.
    pub cause: Cause,
}

/// The result of an operation on one entry.
pub type Result<T> = std::result::Result<T, FsError>;

/// The result of a part of an operation, which does not have its name or its path.
pub(super) type CauseResult<T> = std::result::Result<T, Cause>;

impl FsError {
    /// An error of `op` on `path`.
    pub fn new(side: Side, op: &'static str, path: &[u8], cause: impl Into<Cause>) -> Self {
        FsError { side, operation: op, path: BytePath(path.to_vec()), cause: cause.into() }
    }

    /// The error of a sync to `destination`, an absolute path that does not fit the root of the source.
    pub fn root_mismatch(mismatch: RootMismatch, destination: &[u8]) -> FsError {
        FsError::new(Side::Destination, "use", destination, Cause::RootMismatch(mismatch))
    }

    /// The system call's errno.
    pub fn errno(&self) -> Option<Errno> {
        match self.cause {
            Cause::Os(errno) | Cause::CannotCreate(_, errno) => Some(errno),
            Cause::DirectoryNotEmpty => Some(Errno::ISDIR),
            Cause::SourceMissing => Some(Errno::NOENT),
            _ => None,
        }
    }

    /// The errno's name, e.g. `EACCES`.
    pub fn errno_name(&self) -> Option<&'static str> {
        self.errno().and_then(errno_name)
    }

    /// The error without its path: equal for all entries with the same failure.
    pub fn describe_cause(&self) -> String {
        format!("cannot {} entries at the {}: {}", self.operation, self.side.as_str(), self.cause)
    }

    /// The error without its hint.
    fn message(&self) -> String {
        let FsError { side, operation, path, cause } = self;
        let side = side.as_str();
        match (cause, path.0.as_slice()) {
            (Cause::SourceMissing, _) => format!("SRC {path} does not exist"),
            (Cause::RootMismatch(mismatch), _) => mismatch.describe(&path.to_string()),
            (_, b"") => format!("cannot {operation} the {side}'s root: {cause}"),
            (_, [b'/', ..]) => format!("cannot {operation} `{path}`: {cause}"),
            _ => format!("cannot {operation} `{path}` at the {side}: {cause}"),
        }
    }

    /// Whether a directory could not be entered or listed: an error of its contents, in addition to its entry.
    pub fn is_listing_error(&self) -> bool {
        matches!(self.operation, "open" | "enter" | "list")
    }

    /// Whether a retry can help.
    pub fn class(&self) -> ErrorClass {
        match self.cause {
            Cause::Os(errno) | Cause::CannotCreate(_, errno) => classify_errno(errno, self.side),
            Cause::Changed => ErrorClass::Changed,
            Cause::NotRegularFile | Cause::WrongSize { .. } => match self.side {
                Side::Source => ErrorClass::Changed,
                Side::Destination => ErrorClass::Transient,
                Side::Relay => ErrorClass::Damaged,
            },
            Cause::Damaged => ErrorClass::Damaged,
            Cause::DirectoryNotEmpty
            | Cause::PseudoFileSystem
            | Cause::XattrsTooLarge
            | Cause::MetadataUnsupported(_)
            | Cause::DanglingLink
            | Cause::LinkOutsideRoot
            | Cause::LinkCycle
            | Cause::MountPoint
            | Cause::SourceMissing
            | Cause::NoDigest
            | Cause::IsDestination => ErrorClass::Permanent,
            Cause::SourceNotDirectory | Cause::TrashNotDirectory(_) | Cause::RootMismatch(_) => {
                ErrorClass::InvalidRequest
            }
            Cause::Superseded | Cause::PartDataLost => ErrorClass::Transient,
            Cause::RootUnavailable(_) => ErrorClass::StorageGone,
        }
    }

    /// The report; the caller sets `worker_id` and `attempt`.
    pub fn to_entry_error(&self) -> EntryError {
        let path = if self.path.0.starts_with(b"/") { b"" } else { self.path.0.as_slice() };
        EntryError {
            errno: self.errno_name().map(str::to_owned),
            hint: self.hint(),
            class: self.class(),
            ..EntryError::new(path, self.side, self.operation, self.message())
        }
    }

    /// What an operator can do about it.
    fn hint(&self) -> Option<String> {
        hint::operator_hint(self.cause, rustix::process::geteuid())
    }
}

/// The cause in words, without the path.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Cause::Os(errno) => {
                return match (errno_text(errno), errno_name(errno)) {
                    (text, Some(name)) => write!(f, "{text} ({name})"),
                    (text, None) => write!(f, "{text} (errno {})", errno.raw_os_error()),
                };
            }
            Cause::WrongSize { expected, found } => {
                return write!(f, "it has {found} bytes instead of {expected}");
            }
            Cause::CannotCreate(kind, errno) => {
                let kind = match kind {
                    SpecialKind::Symlink => "symbolic link",
                    SpecialKind::FifoOrSocket => "FIFO or socket",
                    SpecialKind::Device => "device",
                };
                let name = errno_name(errno).unwrap_or("unknown error");
                return write!(f, "no {kind} can be made there ({name})");
            }
            Cause::MetadataUnsupported(warning) => return warning.fmt(f),
            Cause::RootUnavailable(reason) => return reason.fmt(f),
            Cause::TrashNotDirectory(found) => {
                let found = match found {
                    FileType::RegularFile => "a file",
                    FileType::Symlink => "a symbolic link",
                    _ => "a special file",
                };
                return write!(f, "{found} is there, and a trash is a directory");
            }
            Cause::Changed => "the file changed meanwhile",
            Cause::NotRegularFile => "it is not a regular file",
            Cause::DirectoryNotEmpty => {
                "a directory that is not empty stands in its place (EISDIR)"
            }
            Cause::Superseded => "another attempt is writing the same file",
            Cause::PartDataLost => "data written to its part file is gone",
            Cause::Damaged => "its content is not what was copied there (digest mismatch)",
            Cause::NoDigest => {
                "the digest of its content at the source is not known, so a relay can't verify it"
            }
            Cause::XattrsTooLarge => "its extended attributes are over 1 MiB together",
            Cause::PseudoFileSystem => {
                "its file system is one like /proc, where files have no length"
            }
            Cause::DanglingLink => "it is a link that leads to nothing",
            Cause::LinkOutsideRoot => {
                "it is a link that leads out of the storage path (of SRC, with `ctl copy`)"
            }
            Cause::LinkCycle => "links lead from it back to a directory above it",
            Cause::SourceNotDirectory => {
                "it is not a directory, and a list names entries of a directory"
            }
            Cause::MountPoint => "another file system is mounted there",
            Cause::IsDestination => "it is the destination itself, under another path",
            Cause::SourceMissing => "it does not exist",
            Cause::RootMismatch(_) => "it does not fit the root of the source",
        })
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for FsError {}

impl From<FsError> for EntryError {
    fn from(error: FsError) -> Self {
        error.to_entry_error()
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Cause::Os(errno)
    }
}

impl From<MetadataWarning> for Cause {
    fn from(warning: MetadataWarning) -> Self {
        Cause::MetadataUnsupported(warning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::errno::NAME_COLLISION;

    #[test]
    fn an_error_names_operation_path_cause_and_hint() {
        let error = FsError::new(Side::Source, "open", b"a\nb", Errno::ROFS);
        let text = "cannot open `a\\#012b` at the source: Read-only file system (EROFS)";
        let hint = "mount the file system writable";
        assert_eq!(error.to_string(), format!("{text}; {hint}"));
        let report = error.to_entry_error();
        assert_eq!((report.message.as_str(), report.hint.as_deref()), (text, Some(hint)));
        assert_eq!(report.to_string(), error.to_string());
        assert_eq!(
            (report.action().as_str(), report.errno.as_deref()),
            ("open source", Some("EROFS"))
        );
        assert_eq!((report.path.0.as_slice(), report.class), (&b"a\nb"[..], ErrorClass::Permanent));
    }

    #[test]
    fn an_errno_without_a_name_is_shown_by_its_number() {
        let unknown = FsError::new(Side::Source, "open", b"x", Errno::from_raw_os_error(4_000));
        assert_eq!((unknown.class(), unknown.errno_name()), (ErrorClass::Transient, None));
        assert!(unknown.to_string().contains("(errno 4000)"), "{unknown}");
    }

    /// Every other cause, with its class at the source and at the destination.
    #[test]
    fn each_cause_has_its_class_on_each_side() {
        use ErrorClass::{
            Changed as C, InvalidRequest as I, Permanent as P, StorageGone as G, Transient as T,
        };
        for (cause, source, destination) in [
            (Cause::Changed, C, C),
            (Cause::NotRegularFile, C, T),
            (Cause::WrongSize { expected: 1, found: 2 }, C, T),
            (Cause::NoDigest, P, P),
            (Cause::DirectoryNotEmpty, P, P),
            (Cause::Superseded, T, T),
            (Cause::PartDataLost, T, T),
            (Cause::PseudoFileSystem, P, P),
            (Cause::DanglingLink, P, P),
            (Cause::LinkOutsideRoot, P, P),
            (Cause::LinkCycle, P, P),
            (Cause::MountPoint, P, P),
            (Cause::IsDestination, P, P),
            (Cause::SourceNotDirectory, I, I),
            (Cause::SourceMissing, P, P),
            (Cause::RootMismatch(RootMismatch::SamePath), I, I),
            (Cause::TrashNotDirectory(FileType::Symlink), I, I),
            (Cause::XattrsTooLarge, P, P),
            (Cause::RootUnavailable(RootUnavailable::MountedOver), G, G),
            (Cause::RootUnavailable(RootUnavailable::Missing(Errno::NOENT)), G, G),
        ] {
            let class = |side| FsError::new(side, "open", b"x", cause).class();
            assert_eq!(
                (class(Side::Source), class(Side::Destination)),
                (source, destination),
                "{cause:?}"
            );
        }
    }

    #[test]
    fn a_missing_or_different_file_at_a_relay_is_damaged() {
        for cause in [
            Cause::Damaged,
            Cause::NotRegularFile,
            Cause::WrongSize { expected: 1, found: 2 },
            Errno::NOENT.into(),
            Errno::NOTDIR.into(),
        ] {
            let error = FsError::new(Side::Relay, "read", b"x", cause);
            assert_eq!(error.class(), ErrorClass::Damaged, "{cause:?}");
            assert!(error.to_string().contains("cannot read `x` at the relay: "), "{error}");
        }
        let class = |cause: Cause| FsError::new(Side::Relay, "read", b"x", cause).class();
        assert_eq!(class(Cause::NoDigest), ErrorClass::Permanent);
        assert_eq!(class(Errno::IO.into()), ErrorClass::Transient);
        assert_eq!(class(Errno::ACCESS.into()), ErrorClass::Permanent);
    }

    #[test]
    fn errors_of_entries_with_one_cause_have_one_description() {
        let describe = |path: &[u8], cause: Cause| {
            FsError::new(Side::Destination, "publish", path, cause).describe_cause()
        };
        let lost =
            "cannot publish entries at the destination: data written to its part file is gone";
        assert_eq!(describe(b"a", Cause::PartDataLost), lost);
        assert_eq!(describe(b"b", Cause::PartDataLost), lost);
        assert!(describe(b"a", Errno::ROFS.into()).ends_with("Read-only file system (EROFS)"));
    }

    #[test]
    fn a_missing_file_has_vanished_at_the_source_only() {
        let class = |side, cause: Cause| FsError::new(side, "open", b"x", cause).class();
        assert_eq!(class(Side::Source, Errno::NOENT.into()), ErrorClass::Vanished);
        assert_eq!(class(Side::Destination, Errno::NOENT.into()), ErrorClass::Transient);
        assert_eq!(class(Side::Destination, Errno::NOSPC.into()), ErrorClass::Transient);
        assert_eq!(class(Side::Destination, Errno::ROFS.into()), ErrorClass::Permanent);
        assert_eq!(class(Side::Source, Cause::Changed), ErrorClass::Changed);
        assert_eq!(class(Side::Destination, Cause::DirectoryNotEmpty), ErrorClass::Permanent);
    }

    #[test]
    fn a_name_collision_is_a_permanent_error() {
        let error = FsError::new(Side::Destination, "compare", b"Foo", NAME_COLLISION);
        assert_eq!((error.errno_name(), error.class()), (Some("ENOTUNIQ"), ErrorClass::Permanent));
        let text = error.to_string();
        assert!(text.contains("`Foo`") && text.contains("another spelling"), "{text}");
        assert!(text.contains("nothing was overwritten: rename one of the two"), "{text}");
    }

    #[test]
    fn a_non_empty_directory_in_the_way_has_the_errno_of_the_kernel() {
        let error = FsError::new(Side::Destination, "publish", b"x", Cause::DirectoryNotEmpty);
        assert_eq!(error.errno_name(), Some("EISDIR"));
    }
}
