//! Whether the path of a storage root still leads to the open directory.
//!
//! A root is a descriptor: after `mount` over its path, `umount -l` or `mv`, all calls on it still succeed, on a
//! directory that is no longer found at the path. So the two are compared before the first write of a batch, at its
//! end, before a large file is published and around a flush, at the cost of one `stat` of the path.

use super::error::{Cause, Result};
use super::root::{RootDir, Tree};
use super::root_identity::RootUnavailable;
use super::run_as::as_agent;
use crate::util::boot::boot_id;
use crate::wire::worker::boot_and_root;

impl RootDir {
    /// Why its path leads elsewhere than to the open directory; `None` where it does not. The result is kept for
    /// [`RootDir::unavailable`].
    pub fn check_path(&self) -> Option<RootUnavailable> {
        let path = self.path().as_bytes();
        // The agent may search the directories above, whatever the user of a sync may.
        let unavailable = as_agent(|| match rustix::fs::stat(path) {
            Err(errno) => Some(RootUnavailable::Missing(errno)),
            Ok(stat) if self.identity.is_of(&stat) => None,
            Ok(_) => Some(self.identity.compare_with_path(path)),
        });
        *self.unavailable.lock() = unavailable;
        unavailable
    }

    /// Why `now`, which was opened at the same path, is another directory; `None` where it is the same one.
    pub fn compare_with_reopened(&self, now: &RootDir) -> Option<RootUnavailable> {
        (self.id() != now.id()).then(|| self.identity.compare_mounts(now.identity.mount))
    }

    /// A text that differs for another directory at the same path, and for another file system mounted there, as long
    /// as the kernel runs. After a reboot another directory may have it.
    pub fn id(&self) -> String {
        self.identity.to_string()
    }
}

impl Tree {
    /// Checks that its storage root is the one for which the work was assigned, and that the path still leads to it.
    ///
    /// # Errors
    /// [`Cause::RootUnavailable`].
    pub fn check_root(&self) -> Result<()> {
        let reopened = self.reopened.then_some(RootUnavailable::Reopened);
        let lost = self.root.check_path().or(reopened);
        let path = self.root.label();
        let failed = |loss| self.error("use storage path", &path, Cause::RootUnavailable(loss));
        lost.map_or(Ok(()), |loss| Err(failed(loss)))
    }

    /// Its storage root as the master names it in assignments and tickets: the [id](RootDir::id) and the kernel that
    /// gave it.
    pub fn root_id(&self) -> String {
        let id = self.root.id();
        boot_id().map_or_else(|| id.clone(), |boot| boot_and_root(boot, &id))
    }
}

#[cfg(test)]
mod tests;
