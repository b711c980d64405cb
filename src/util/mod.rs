//! Small things that every layer above needs and that know nothing of Longhaul's own work.
//!
//! - [`units`]: sizes, rates, counts and durations as people write and read them
//! - [`backoff`]: how long to wait before trying again
//! - [`boot`]: which boot of the kernel this is
//! - [`corruption`]: what was found damaged, until the master knows
//! - [`rlimits`]: what the kernel lets this process use
//! - [`private_files`]: files that only this user may read
//! - [`rate`]: limits on bytes per second
//! - [`checksum`]: a check on documents that travel
//! - [`shutdown`]: one token tells every task to stop
//! - [`timetable`]: limits by the time of the week
//! - [`logging`]: what the program says on standard error
//! - [`suggest`]: "did you mean …?"

pub mod backoff;
pub mod boot;
pub mod checksum;
pub mod corruption;
pub mod iface;
pub mod logging;
pub mod private_files;
pub mod rate;
pub mod repeated_warnings;
pub mod rlimits;
pub mod shutdown;
pub mod suggest;
pub mod timetable;
pub mod unique_id;
pub mod units;
