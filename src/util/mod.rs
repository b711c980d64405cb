//! Utilities for all layers above, independent of the work of Longhaul.
//!
//! - [`admission`]: which connections a server keeps
//! - [`units`]: text forms of sizes, rates, counts and durations
//! - [`backoff`]: delays between retries
//! - [`boot`]: the boot id of the kernel
//! - [`checksum`]: checksums of documents
//! - [`client_network`]: the address by which clients are counted
//! - [`corruption`]: counts of corrupted transfers
//! - [`heap`]: returns free memory to the kernel
//! - [`iface`]: network interfaces
//! - [`ip_network`]: networks of IP addresses
//! - [`logging`]: the log of the program
//! - [`private_files`]: files that only this user may read
//! - [`rate`]: limits on bytes per second
//! - [`repeated_warnings`]: rate-limited warnings
//! - [`rlimits`]: resource limits of this process
//! - `shell_quote`: words for a shell
//! - [`shutdown`]: the shutdown of the process
//! - [`socket_owner`]: the user at the other end of a connection within this host
//! - [`suggest`]: suggestions for mistyped words
//! - [`timetable`]: limits by the time of the week
//! - [`unique_id`]: random ids

pub mod admission;
pub mod backoff;
pub mod boot;
pub mod checksum;
pub mod client_network;
pub mod core_dumps;
pub mod corruption;
pub mod heap;
pub mod iface;
pub mod ip_network;
pub mod logging;
pub mod private_files;
pub mod rate;
pub mod repeated_warnings;
pub mod rlimits;
pub(crate) mod shell_quote;
pub mod shutdown;
pub mod socket_owner;
pub mod suggest;
pub mod timetable;
pub mod unique_id;
pub mod units;
