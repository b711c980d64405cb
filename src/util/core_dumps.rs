//! A core dump holds keys and tickets, and goes to a file or a service that others may read.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// From now on the kernel writes no core dump of this process, and only root may read its memory or attach a debugger.
/// Processes that it starts are not affected by the second part.
///
/// # Errors
/// The kernel refuses it.
pub fn disable() -> std::io::Result<()> {
    // Not sufficient where the kernel pipes dumps to a program: that ignores the limit.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
