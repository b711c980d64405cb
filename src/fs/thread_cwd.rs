//! Attributes of many names, without a detour for each.
//!
//! The calls that read the attributes of a name take no directory's descriptor. The kernel's name for it
//! (`/proc/self/fd/N`) always serves, but resolving that costs more than the call. So a thread that is
//! about to look at thousands of names gets a working directory of its own for that time, and goes to
//! where each name is.
//!
//! Nothing else is resolved against the working directory meanwhile: the thread does nothing but this
//! work, has its former working directory again afterwards, and no other thread shares it.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::UnshareFlags;
use std::cell::RefCell;
use std::marker::PhantomData;

thread_local! {
    /// Where this thread was before; `None` unless there is a [`ThreadCwd`].
    static ORIGINAL_CWD: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// As long as it lives, names that this thread looks at are reached by its working directory. Where that
/// can't be had (a container may forbid it) it does nothing.
#[derive(Debug)]
#[must_use]
pub struct ThreadCwd {
    is_owner: bool,
    /// It is of this thread.
    not_send: PhantomData<*const ()>,
}

impl ThreadCwd {
    /// Begins, unless it has begun.
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
            && let Err(errno) = rustix::process::fchdir(&home)
        {
            tracing::warn!(%errno, "a thread cannot return to its working directory");
        }
    }
}

/// A working directory for this thread alone, as it is now.
fn unshare_cwd() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = rustix::fs::openat(CWD, ".", flags, Mode::empty()).ok()?;
    // What was deprecated is that it also takes flags by which threads lose sight of each other's
    // descriptors. This one only parts the working directory, the root and the umask.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::FS).ok()?;
    Some(home)
}

/// Goes to `dir`; tells whether names in it can be looked at from here.
pub(super) fn enter_dir(dir: BorrowedFd<'_>) -> bool {
    ORIGINAL_CWD.with_borrow(Option::is_some) && rustix::process::fchdir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::xattr::{self, XattrObject};
    use super::*;
    use crate::wire::options::Preserve;
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
        // It shares the working directory of the thread that began it, so it is begun before.
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            asked.recv().unwrap();
            tell.send(std::env::current_dir().unwrap()).unwrap();
        });
        {
            let _near = ThreadCwd::unshare();
            {
                let _again = ThreadCwd::unshare();
                assert!(xattr_names(&dir, b"f").is_empty());
            }
            assert_eq!(std::env::current_dir().unwrap(), site.path("a"));
            ask.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), before);
        }
        other.join().unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert_eq!(elsewhere().unwrap(), before);
        assert!(!enter_dir(dir.as_fd()));
    }
}
