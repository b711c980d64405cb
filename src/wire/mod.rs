//! Documents that cross a process boundary. Serialisation only: nothing here reads a file, a
//! socket or a clock.
//!
//! - [`path`]: byte paths; [`RelPath`] is the security boundary (it cannot leave its root)
//! - [`ids`]: identifiers, each a separate type
//! - [`sync`]: the request and the progress of a sync
//! - [`options`], [`preserve`]: the options of a sync
//! - [`entry_report`]: actions, warnings and records of entries; [`outcome`]: the error of an entry;
//!   [`errno`], [`hint`]: sides, classes, names and words of errnos, and what to do about them
//! - [`worker`]: heartbeats, and the view of workers that operators get
//! - [`worker_selector`], [`address`]: workers and paths as operators name them
//! - [`leader`], [`admin`]: the view of the installation that operators get
//! - [`task`]: assignments, scan pages and results
//! - [`content`]: hash trees of content
//! - [`manifest`]: the entries of a batch, opaque to the master
//! - [`ticket`]: the signed permission to act on one destination root
//! - [`token`]: tokens of operators; [`join`]: those of agents, and their certificates; [`run_as`]: the user as which
//!   agents act
//! - [`problem`]: errors over HTTP (RFC 9457)

pub mod address;
pub mod admin;
pub mod content;
pub mod entry_report;
pub mod errno;
#[cfg(test)]
pub(crate) mod formats;
#[cfg(test)]
pub(crate) mod fuzz;
pub mod hint;
pub mod ids;
pub mod join;
pub mod leader;
pub mod manifest;
pub mod options;
pub mod outcome;
pub mod path;
pub mod preserve;
pub mod problem;
pub mod run_as;
#[cfg(test)]
pub(crate) mod samples;
pub mod storage;
pub mod sync;
pub mod task;
#[cfg(test)]
pub(crate) mod testing;
mod text_enum;
pub mod ticket;
pub mod token;
pub mod worker;
pub mod worker_selector;

pub use ids::{AssignmentId, Digest, RequestId, StorageId, SyncNo, TaskId, WorkerId};
pub use path::{AbsPath, BytePath, RelPath};

/// For `skip_serializing_if`: a field with its default value is left out of the document.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
