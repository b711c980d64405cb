//! The audit log: a file of JSON lines in the `data_dir` of a master, with a line for each change by an operator (its
//! principal, time and outcome) and for each request that was denied.
//!
//! Each line has the digest of the line before it, so that a line that was changed, removed, inserted or moved breaks
//! the chain ([`verify`](verify()) finds the first such line). A user that may write the file can also compute a new
//! chain to its end: the position that the master logs at each start and stop ([`Head`]) shows that, and is to be kept
//! on another host.
//!
//! - `record`: a line
//! - `files`: the names of the files, and reading lines
//! - `log`: appending lines; rotation; a file that is full, cut or replaced
//! - `verify`: the check of the chain

mod files;
mod log;
mod record;
mod verify;

pub use files::{open_files, read_lines};
pub use log::{AuditLog, Origin};
pub use record::{AuditAction, AuditEntry, AuditRecord, Head};
pub use verify::{Verification, verify};
