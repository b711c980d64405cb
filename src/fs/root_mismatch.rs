//! The kinds of roots of a sync, and how two roots do not fit each other.

use crate::wire::AbsPath;
use minicbor::{Decode, Encode};
use rustix::fs::FileType;
use std::os::unix::fs::MetadataExt as _;

/// What a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum RootKind {
    /// A directory.
    #[n(0)]
    Directory,
    /// A regular file.
    #[n(1)]
    File,
    /// Anything else.
    #[n(2)]
    Other,
}

/// How SRC and DST do not fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootMismatch {
    /// They are one directory or file.
    SamePath,
    /// DST is inside SRC.
    DestinationInside,
    /// SRC is inside DST.
    SourceInside,
    /// SRC is a directory, DST is none.
    DestinationNotDirectory,
    /// SRC is none, DST is a directory.
    DestinationIsDirectory,
    /// SRC is a file, and what DST is would be replaced by it.
    DestinationIsSpecial,
}

impl RootKind {
    pub(super) fn from_file_type(found: FileType) -> RootKind {
        match found {
            FileType::Directory => RootKind::Directory,
            FileType::RegularFile => RootKind::File,
            _ => RootKind::Other,
        }
    }

    /// Of what was found at a path.
    pub fn from_metadata(found: &std::fs::Metadata) -> RootKind {
        RootKind::from_file_type(FileType::from_raw_mode(found.mode()))
    }

    /// How a source of this kind does not fit a destination that is there.
    pub fn mismatch_with(self, destination: RootKind) -> Option<RootMismatch> {
        match (self, destination) {
            (RootKind::Directory, RootKind::Directory) => None,
            (RootKind::Directory, _) => Some(RootMismatch::DestinationNotDirectory),
            (_, RootKind::Directory) => Some(RootMismatch::DestinationIsDirectory),
            (RootKind::File, RootKind::Other) => Some(RootMismatch::DestinationIsSpecial),
            _ => None,
        }
    }
}

impl RootMismatch {
    /// How two paths without links do not fit. A copy into itself has no end, and one over what contains it
    /// overwrites its source.
    pub fn between_paths(source: &AbsPath, destination: &AbsPath) -> Option<RootMismatch> {
        if source == destination {
            Some(RootMismatch::SamePath)
        } else if source.contains(destination) {
            Some(RootMismatch::DestinationInside)
        } else if destination.contains(source) {
            Some(RootMismatch::SourceInside)
        } else {
            None
        }
    }

    /// What is wrong, of the destination that is shown as `dst`.
    pub(super) fn describe(self, dst: &str) -> String {
        match self {
            RootMismatch::SamePath => format!("SRC and DST are the same ({dst})"),
            RootMismatch::DestinationInside => {
                format!("DST {dst} is inside SRC: the copy would include itself")
            }
            RootMismatch::SourceInside => {
                format!("DST {dst} contains SRC: the copy would overwrite its source")
            }
            RootMismatch::DestinationNotDirectory => {
                format!("SRC is a directory, but DST {dst} is not")
            }
            RootMismatch::DestinationIsDirectory => {
                format!("SRC is a file, but DST {dst} is a directory")
            }
            RootMismatch::DestinationIsSpecial => format!(
                "SRC is a file, but DST {dst} is a device, FIFO or socket, which the copy would replace"
            ),
        }
    }
}
