//! Small things that every layer above needs and that know nothing of Longhaul's own work.
//!
//! - [`units`]: sizes, rates, counts and durations as people write and read them
//! - [`backoff`]: how long to wait before trying again
//! - [`boot`]: which boot of the kernel this is
//! - [`damage`]: what was found damaged, until the master knows
//! - [`limits`]: what the kernel lets this process use
//! - [`private`]: files that only this user may read
//! - [`rate`]: limits on bytes per second
//! - [`seal`]: a check on documents that travel
//! - [`shutdown`]: one token tells every task to stop
//! - [`timetable`]: limits by the time of the week
//! - [`telemetry`]: what the program says on standard error
//! - [`suggest`]: "did you mean …?"

pub mod backoff;
pub mod boot;
pub mod damage;
pub mod iface;
pub mod limits;
pub mod name;
pub mod private;
pub mod rate;
pub mod repeats;
pub mod seal;
pub mod shutdown;
pub mod suggest;
pub mod telemetry;
pub mod timetable;
pub mod units;
