//! A private working directory of a thread, for reading the attributes of many names.
//!
//! The calls that read the attributes of a name accept no directory descriptor. The kernel's path of it
//! (`/proc/self/fd/N`) always works, but resolving it costs more than the call. So a thread that reads thousands of
//! names unshares its working directory and changes to the directory of each name.
//!
//! Nothing else is resolved against the working directory in that time: the thread does only this work, returns to
//! its former working directory afterwards, and no other thread shares it.

use super::run_as::as_agent;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::UnshareFlags;
use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    /// The working directory before; `None` unless there is a [`ThreadCwd`].
    static ORIGINAL_CWD: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// While it lives, this thread reaches names by its working directory. Where that is impossible (a container may
/// forbid it) it does nothing.
#[derive(Debug)]
#[must_use]
pub struct ThreadCwd {
    is_owner: bool,
    /// It belongs to this thread.
    not_send: PhantomData<*const ()>,
}

impl ThreadCwd {
    /// Unshares the working directory, unless that is done.
    pub fn unshare() -> ThreadCwd {
        let began = ORIGINAL_CWD.with_borrow_mut(|home| {
            if home.is_none() {
                *home = unshare_cwd();
                return home.is_some();
            }
            false
        });
        ThreadCwd { is_owner: began, not_send: PhantomData }
    }
}

impl Drop for ThreadCwd {
    fn drop(&mut self) {
        if self.is_owner
            && let Some(home) = ORIGINAL_CWD.take()
            // A user may be kept out of it.
            && let Err(errno) = as_agent(|| rustix::process::fchdir(&home))
        {
            tracing::warn!(%errno, "a thread cannot return to its working directory");
        }
    }
}

/// Unshares the working directory of this thread; returns the current one.
fn unshare_cwd() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = as_agent(|| rustix::fs::openat(CWD, ".", flags, Mode::empty())).ok()?;
    // The call is deprecated because other flags unshare descriptors between threads. This one only unshares the
    // working directory, the root and the umask.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::FS).ok()?;
    Some(home)
}

/// Changes to `dir`; returns whether names in it can be reached from the working directory.
pub(super) fn enter_dir(dir: BorrowedFd<'_>) -> bool {
    ORIGINAL_CWD.with_borrow(Option::is_some) && rustix::process::fchdir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::xattr::{self, XattrObject};
    use super::*;
    use crate::wire::preserve::Preserve;
    use rustix::fd::AsFd as _;

    fn xattr_names(dir: &std::fs::File, name: &[u8]) -> Vec<Vec<u8>> {
        let found = xattr::read(XattrObject::Named(dir.as_fd(), name), false, Preserve::all());
        found.unwrap().into_iter().map(|x| x.name).collect()
    }

    #[test]
    fn xattrs_are_the_same_through_the_working_directory_and_through_proc() {
        let site = TestSite::new();
        for (dir, attribute) in [("a", "user.in_a"), ("b", "user.in_b")] {
            set_xattr(&site.write_file(format!("{dir}/f"), ""), attribute, b"");
        }
        std::os::unix::fs::symlink("f", site.path("a/l")).unwrap();
        let [a, b] = ["a", "b"].map(|dir| std::fs::File::open(site.path(dir)).unwrap());
        let looked = || {
            let missing = xattr::read(XattrObject::Named(b.as_fd(), b"l"), false, Preserve::all());
            (xattr_names(&a, b"f"), xattr_names(&b, b"f"), xattr_names(&a, b"l"), missing)
        };
        let afar = looked();
        assert_eq!((&afar.0[0], &afar.1[0]), (&b"user.in_a".to_vec(), &b"user.in_b".to_vec()));
        let _near = ThreadCwd::unshare();
        assert!(enter_dir(a.as_fd()), "this thread has no place of its own");
        assert_eq!(looked(), afar);
    }

    #[test]
    fn the_thread_returns_to_its_working_directory_and_other_threads_never_leave_it() {
        let site = TestSite::new();
        let dir = std::fs::File::open(site.write_file("a/f", "").parent().unwrap()).unwrap();
        let before = std::env::current_dir().unwrap();
        let elsewhere = || std::thread::scope(|s| s.spawn(std::env::current_dir).join().unwrap());
        // It shares the working directory of the thread that started it, so it is started before.
        let (request, requests) = std::sync::mpsc::channel::<()>();
        let (reply, replies) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            requests.recv().unwrap();
            reply.send(std::env::current_dir().unwrap()).unwrap();
        });
        {
            let _near = ThreadCwd::unshare();
            {
                let _again = ThreadCwd::unshare();
                assert!(xattr_names(&dir, b"f").is_empty());
            }
            assert_eq!(std::env::current_dir().unwrap(), site.path("a"));
            request.send(()).unwrap();
            assert_eq!(replies.recv().unwrap(), before);
        }
        other.join().unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert_eq!(elsewhere().unwrap(), before);
        assert!(!enter_dir(dir.as_fd()));
    }
}
