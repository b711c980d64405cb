//! Files that share their blocks with their source: where source and destination lie in one file system that can
//! (XFS, Btrfs, and others), content is neither read nor written. The new file has what the source had at one
//! moment, holes included.

use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Device numbers of a source and a destination that share nothing. They are not asked again.
static REFUSED: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// Whether two devices may share blocks, as far as is known.
pub(super) fn may_share(from: u64, to: u64) -> bool {
    !REFUSED.lock().unwrap_or_else(PoisonError::into_inner).contains(&(from, to))
}

/// Makes `to`, which is new, a clone of `from`, which lies on the device `dev`; `false` where that cannot be, and
/// `to` is empty.
pub(super) fn clone(from: &OwnedFd, dev: u64, to: &OwnedFd) -> Result<bool, Errno> {
    let own = rustix::fs::fstat(to)?.st_dev;
    if !may_share(dev, own) {
        return Ok(false);
    }
    match rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => return Ok(true),
        // Two file systems, or one that shares nothing.
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            REFUSED.lock().unwrap_or_else(PoisonError::into_inner).insert((dev, own));
        }
        // It may be about this file only. Whatever it is, the writes that follow report it.
        Err(_) => {}
    }
    rustix::fs::ftruncate(to, 0)?;
    Ok(false)
}
