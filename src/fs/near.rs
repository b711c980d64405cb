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
    /// Where this thread was before; `None` unless there is a [`Near`].
    static HOME: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// As long as it lives, names that this thread looks at are reached by its working directory. Where that
/// can't be had (a container may forbid it) it does nothing.
#[derive(Debug)]
#[must_use]
pub struct Near {
    began: bool,
    /// It is of this thread.
    here: PhantomData<*const ()>,
}

impl Near {
    /// Begins, unless it has begun.
    pub fn begin() -> Near {
        let began = HOME.with_borrow_mut(|home| {
            if home.is_none() {
                *home = own_place();
                return home.is_some();
            }
            false
        });
        Near { began, here: PhantomData }
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        if self.began
            && let Some(home) = HOME.take()
            && let Err(errno) = rustix::process::fchdir(&home)
        {
            tracing::warn!(%errno, "a thread cannot return to its working directory");
        }
    }
}

/// A working directory for this thread alone, as it is now.
fn own_place() -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let home = rustix::fs::openat(CWD, ".", flags, Mode::empty()).ok()?;
    // What was deprecated is that it also takes flags by which threads lose sight of each other's
    // descriptors. This one only parts the working directory, the root and the umask.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::FS).ok()?;
    Some(home)
}

/// Goes to `dir`; tells whether names in it can be looked at from here.
pub(super) fn go_to(dir: BorrowedFd<'_>) -> bool {
    HOME.with_borrow(Option::is_some) && rustix::process::fchdir(dir).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::xattr::{self, Object};
    use super::*;
    use crate::wire::options::Preserve;
    use rustix::fd::AsFd as _;

    fn names(dir: &std::fs::File, name: &[u8]) -> Vec<Vec<u8>> {
        let found = xattr::read(Object::Named(dir.as_fd(), name), false, Preserve::all());
        found.unwrap().into_iter().map(|x| x.name).collect()
    }

    #[test]
    fn names_have_the_same_attributes_from_near_and_from_afar() {
        let site = Site::new();
        for (dir, attribute) in [("a", "user.in_a"), ("b", "user.in_b")] {
            set_xattr(&site.write(format!("{dir}/f"), ""), attribute, b"");
        }
        std::os::unix::fs::symlink("f", site.at("a/l")).unwrap();
        let [a, b] = ["a", "b"].map(|dir| std::fs::File::open(site.at(dir)).unwrap());
        let looked = || {
            let missing = xattr::read(Object::Named(b.as_fd(), b"l"), false, Preserve::all());
            (names(&a, b"f"), names(&b, b"f"), names(&a, b"l"), missing)
        };
        let afar = looked();
        assert_eq!((&afar.0[0], &afar.1[0]), (&b"user.in_a".to_vec(), &b"user.in_b".to_vec()));
        let _near = Near::begin();
        assert!(go_to(a.as_fd()), "this thread has no place of its own");
        assert_eq!(looked(), afar);
    }

    #[test]
    fn a_thread_is_back_where_it_was_and_others_never_moved() {
        let site = Site::new();
        let dir = std::fs::File::open(site.write("a/f", "").parent().unwrap()).unwrap();
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
            let _near = Near::begin();
            {
                let _again = Near::begin();
                assert!(names(&dir, b"f").is_empty());
            }
            assert_eq!(std::env::current_dir().unwrap(), site.at("a"));
            ask.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), before);
        }
        other.join().unwrap();
        assert_eq!(std::env::current_dir().unwrap(), before);
        assert_eq!(elsewhere().unwrap(), before);
        assert!(!go_to(dir.as_fd()));
    }
}
