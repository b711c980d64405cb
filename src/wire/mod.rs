//! Documents that cross a process boundary. Serialisation only: nothing here reads a file, a
//! socket or a clock.
//!
//! - [`record_path`]: byte paths; [`RelPath`] is the security boundary (it cannot leave its root)
//! - [`next_id`]: identifiers, each a type of its own
//! - [`sync_no`]: what an operator asks for and sees
//! - [`walk_options`]: how a sync is to be done
//! - [`worker_id`]: what an agent says of itself
//! - [`admin`]: what operators of the installation see
//! - [`task`]: assignments, scan pages and results
//! - [`content_left`]: how content is hashed
//! - [`full_manifest`]: the entries of a batch, opaque to the master
//! - [`ticket`]: the signed permission to act on one destination root
//! - [`into_problem`]: errors over HTTP (RFC 9457)

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
