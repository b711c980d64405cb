//! Documents that cross a process boundary. Serialisation only: nothing here reads a file, a
//! socket or a clock.
//!
//! - [`path`]: byte paths; [`RelPath`] is the security boundary (it cannot leave its root)
//! - [`ids`]: identifiers, each a type of its own
//! - [`sync`]: what an operator asks for and sees
//! - [`options`]: how a sync is to be done
//! - [`worker`]: what an agent says of itself
//! - [`admin`]: what operators of the installation see
//! - [`task`]: assignments, scan pages and results
//! - [`content`]: how content is hashed
//! - [`manifest`]: the entries of a batch, opaque to the master
//! - [`ticket`]: the signed permission to act on one destination root
//! - [`problem`]: errors over HTTP (RFC 9457)

pub mod admin;
pub mod content;
#[cfg(test)]
pub mod fuzz;
pub mod ids;
pub mod leader;
pub mod manifest;
pub mod options;
pub mod path;
pub mod problem;
pub mod sync;
pub mod task;
pub mod ticket;
pub mod worker;

pub use ids::{AssignmentId, Digest, RequestId, SyncNo, TaskId, WorkerId};
pub use path::{AbsPath, BytePath, RelPath};
