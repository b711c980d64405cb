//! Extended attributes, and the access control lists that the kernel shows as such.

use super::errno::SysResult;
use super::error::{Cause, CauseResult};
use super::inode::proc_path;
use super::metadata_warnings::MetadataWarning;
use super::thread_cwd;
use crate::wire::manifest::Xattr;
use crate::wire::preserve::{Attribute, Preserve};
use rustix::buffer::spare_capacity;
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, XattrFlags};
use rustix::io::Errno;

/// The most bytes of the attributes of one entry, names and values: manifests contain them.
const MAX_XATTR_BYTES: usize = 1 << 20;

/// The access control lists. Their values have the kernel's format.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// The preserved namespaces.
const NAMESPACES: [&str; 3] = ["user.", "trusted.", "security."];
/// Attributes that security modules set on every object: copied where the source has them, never removed.
const SECURITY_LABELS: [&[u8]; 6] = [
    b"security.selinux",
    b"security.SMACK64",
    b"security.SMACK64TRANSMUTE",
    b"security.apparmor",
    b"security.ima",
    b"security.evm",
];

/// The kernel's longest list of names, and longest value.
const MAX_VALUE_BYTES: usize = 64 << 10;
/// Nearly every list is shorter.
const USUAL_LIST_BYTES: usize = 512;

/// An object with attributes.
#[derive(Debug, Clone, Copy)]
pub(super) enum XattrObject<'a> {
    /// The object of a descriptor, of any kind.
    Open(BorrowedFd<'a>),
    /// A name in a directory; a link is not followed.
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// Whether attributes or lists are preserved at all.
pub(super) fn is_any_preserved(keep: Preserve) -> bool {
    keep.contains(Attribute::Xattrs) || preserves_acls(keep)
}

/// A list contains the mode, so it is preserved only with modes.
fn preserves_acls(keep: Preserve) -> bool {
    keep.contains(Attribute::Acls) && keep.contains(Attribute::Mode)
}

fn is_preserved(name: &[u8], keep: Preserve) -> bool {
    if ACLS.contains(&name) {
        return preserves_acls(keep);
    }
    keep.contains(Attribute::Xattrs)
        && NAMESPACES.iter().any(|space| name.starts_with(space.as_bytes()))
}

/// The preserved attributes of `object`, sorted by name. A file system without attributes has none.
///
/// `EACCES` on a value is skipped for a directory: its mode forbids reading it, which is an error of its own.
///
/// # Errors
/// [`Cause::XattrsTooLarge`] over [`MAX_XATTR_BYTES`]; one can't be read.
pub(super) fn read(
    object: XattrObject<'_>,
    is_dir: bool,
    keep: Preserve,
) -> CauseResult<Vec<Xattr>> {
    read_limited(MAX_XATTR_BYTES, object, is_dir, keep)
}

fn read_limited(
    limit: usize,
    object: XattrObject<'_>,
    is_dir: bool,
    keep: Preserve,
) -> CauseResult<Vec<Xattr>> {
    let mut all = Vec::new();
    if !is_any_preserved(keep) {
        return Ok(all);
    }
    let mut bytes = 0;
    let mut room = Vec::new();
    for name in object.list()?.into_iter().filter(|name| is_preserved(name, keep)) {
        let value = match object.get(&name, &mut room) {
            // Removed since it was listed.
            Ok(None) => continue,
            Err(Errno::ACCESS) if is_dir => continue,
            Ok(Some(value)) => value.to_vec(),
            Err(errno) => return Err(errno.into()),
        };
        bytes += name.len() + value.len();
        if bytes > limit {
            return Err(Cause::XattrsTooLarge);
        }
        all.push(Xattr { name, value });
    }
    all.sort_unstable();
    Ok(all)
}

/// Whether `object` has the attributes in `want` that are preserved, and no others.
///
/// # Errors
/// One can't be read.
pub(super) fn matches(object: XattrObject<'_>, want: &[Xattr], keep: Preserve) -> SysResult<bool> {
    if !is_any_preserved(keep) {
        return Ok(true);
    }
    let there = object.list()?;
    if there.iter().any(|name| is_extraneous(name, want, keep)) {
        return Ok(false);
    }
    let mut room = Vec::new();
    for xattr in want.iter().filter(|x| is_preserved(&x.name, keep)) {
        if !there.contains(&xattr.name)
            || object.get(&xattr.name, &mut room)? != Some(xattr.value.as_slice())
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the directory `object` has a default access control list.
///
/// # Errors
/// It can't be read.
pub(super) fn has_default_acl(object: XattrObject<'_>) -> SysResult<bool> {
    Ok(object.list()?.iter().any(|name| name == ACLS[1]))
}

/// Sets the attributes in `want` that are preserved on `object` and removes the others; returns whether something
/// changed. What can't be set is passed to `short`.
///
/// # Errors
/// A failure of the file system, or of `short`. `EACCES` if `patient`: the object's own mode may forbid it.
pub(super) fn apply(
    object: XattrObject<'_>,
    want: &[Xattr],
    keep: Preserve,
    patient: bool,
    mut short: impl FnMut(MetadataWarning) -> CauseResult<()>,
) -> CauseResult<bool> {
    if !is_any_preserved(keep) {
        return Ok(false);
    }
    let mut settle = |name: &[u8], done: SysResult<bool>| match done {
        Ok(changed) => Ok(changed),
        Err(errno) if patient && errno == Errno::ACCESS || !is_unsupported(errno) => {
            Err(Cause::Os(errno))
        }
        Err(errno) => short(warning_for(name, errno)).map(|()| false),
    };
    let there = object.list()?;
    let mut changed = false;
    for name in there.iter().filter(|name| is_extraneous(name, want, keep)) {
        let done = match object.remove(name) {
            Err(Errno::NODATA) => Ok(false),
            other => other.map(|()| true),
        };
        changed |= settle(name, done)?;
    }
    let mut room = Vec::new();
    for xattr in want.iter().filter(|x| is_preserved(&x.name, keep)) {
        let mut set = || {
            if there.contains(&xattr.name)
                && object.get(&xattr.name, &mut room)? == Some(xattr.value.as_slice())
            {
                return Ok(false);
            }
            object.set(&xattr.name, &xattr.value).map(|()| true)
        };
        changed |= settle(&xattr.name, set())?;
    }
    Ok(changed)
}

/// Whether `name` is to be removed.
fn is_extraneous(name: &[u8], want: &[Xattr], keep: Preserve) -> bool {
    is_preserved(name, keep)
        && !SECURITY_LABELS.contains(&name)
        && !want.iter().any(|x| x.name == name)
}

/// Whether the object can't have the attribute (as opposed to a failure).
fn is_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::RANGE
            | Errno::TOOBIG
            | Errno::NAMETOOLONG
            // ext4 returns this for an attribute that does not fit.
            | Errno::NOSPC
            | Errno::DQUOT
    )
}

fn warning_for(name: &[u8], errno: Errno) -> MetadataWarning {
    match NAMESPACES.iter().find(|space| name.starts_with(space.as_bytes())) {
        Some(space) => MetadataWarning::Xattr(space, errno),
        None => MetadataWarning::Acl(errno),
    }
}

impl XattrObject<'_> {
    /// The names of its attributes, in the file system's order; none without attributes.
    fn list(self) -> SysResult<Vec<Vec<u8>>> {
        let mut short = [0; USUAL_LIST_BYTES];
        let mut long = Vec::new();
        let listed = match self.list_into(&mut short) {
            Err(Errno::RANGE) => {
                long.resize(MAX_VALUE_BYTES, 0);
                self.list_into(&mut long).map(|n| &long[..n])
            }
            other => other.map(|n| &short[..n]),
        };
        match listed {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            Err(errno) => Err(errno),
            Ok(names) => Ok(names
                .split(|b| *b == 0)
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect()),
        }
    }

    fn list_into(self, buffer: &mut [u8]) -> SysResult<usize> {
        self.call_with_address(|way| match way {
            ObjectAddress::Descriptor(fd) => rustix::fs::flistxattr(fd, &mut *buffer),
            ObjectAddress::DescriptorPath(path) => rustix::fs::listxattr(path, &mut *buffer),
            ObjectAddress::Path(path) => rustix::fs::llistxattr(path, &mut *buffer),
        })
    }

    /// The value of `name`, in `room`; `None` if it does not exist.
    fn get<'r>(self, name: &[u8], room: &'r mut Vec<u8>) -> SysResult<Option<&'r [u8]>> {
        room.clear();
        room.reserve(MAX_VALUE_BYTES);
        let got = self.call_with_address(|way| match way {
            ObjectAddress::Descriptor(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(room)),
            ObjectAddress::DescriptorPath(path) => {
                rustix::fs::getxattr(path, name, spare_capacity(room))
            }
            ObjectAddress::Path(path) => rustix::fs::lgetxattr(path, name, spare_capacity(room)),
        });
        match got {
            Ok(_) => Ok(Some(room)),
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn set(self, name: &[u8], value: &[u8]) -> SysResult<()> {
        let flags = XattrFlags::empty();
        self.call_with_address(|way| match way {
            ObjectAddress::Descriptor(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
            ObjectAddress::DescriptorPath(path) => rustix::fs::setxattr(path, name, value, flags),
            ObjectAddress::Path(path) => rustix::fs::lsetxattr(path, name, value, flags),
        })
    }

    fn remove(self, name: &[u8]) -> SysResult<()> {
        self.call_with_address(|way| match way {
            ObjectAddress::Descriptor(fd) => rustix::fs::fremovexattr(fd, name),
            ObjectAddress::DescriptorPath(path) => rustix::fs::removexattr(path, name),
            ObjectAddress::Path(path) => rustix::fs::lremovexattr(path, name),
        })
    }

    fn call_with_address<T>(
        self,
        mut call: impl FnMut(ObjectAddress<'_>) -> SysResult<T>,
    ) -> SysResult<T> {
        let (done, fd, name) = match self {
            XattrObject::Open(fd) => match call(ObjectAddress::Descriptor(fd)) {
                Err(Errno::BADF) => {
                    (call(ObjectAddress::DescriptorPath(&proc_path(fd, b""))), fd, &b""[..])
                }
                other => return other,
            },
            XattrObject::Named(dir, name) if thread_cwd::enter_dir(dir) => {
                return call(ObjectAddress::Path(name));
            }
            XattrObject::Named(dir, name) => {
                (call(ObjectAddress::Path(&proc_path(dir, name))), dir, name)
            }
        };
        match done {
            // Without `/proc`, an existing object must not count as vanished.
            Err(Errno::NOENT) if exists(fd, name) => Err(Errno::NOSYS),
            other => other,
        }
    }
}

/// How a call addresses its object.
enum ObjectAddress<'a> {
    /// By the descriptor.
    Descriptor(BorrowedFd<'a>),
    /// By the kernel's path of a descriptor with `O_PATH`, which leads to a link itself, not through it.
    DescriptorPath(&'a [u8]),
    /// By a name in the working directory, or below the kernel's path of its directory, which is short for any depth.
    Path(&'a [u8]),
}

fn exists(fd: BorrowedFd<'_>, name: &[u8]) -> bool {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::statat(fd, name, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use rustix::fd::AsFd as _;
    use rustix::fs::{Mode, OFlags};
    use std::fs;

    fn xattr_names(all: &[Xattr]) -> Vec<&str> {
        all.iter().map(|x| std::str::from_utf8(&x.name).unwrap()).collect()
    }

    #[test]
    fn preserved_xattrs_are_read_in_sorted_order() {
        let site = TestSite::new();
        let path = site.write_file("src/f", "");
        for name in ["user.b", "user.a", "trusted.t", "security.x"] {
            set_xattr(&path, name, name.as_bytes());
        }
        set_xattr(&path, "system.posix_acl_access", &acl_bytes(6, (7, 4), 4, 4, 0));
        let dir = fs::File::open(site.path("src")).unwrap();
        let file = fs::File::open(&path).unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let place = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let all = Preserve::all();
        for object in [
            XattrObject::Named(dir.as_fd(), b"f"),
            XattrObject::Open(file.as_fd()),
            XattrObject::Open(place.as_fd()),
        ] {
            let found = read(object, false, all).unwrap();
            assert_eq!(
                xattr_names(&found),
                ["security.x", "system.posix_acl_access", "trusted.t", "user.a", "user.b"]
            );
            assert_eq!(found[3].value, b"user.a");
            let of = |keep| read(object, false, keep).unwrap();
            assert_eq!(xattr_names(&of(all.without(Attribute::Acls))).len(), 4);
            let lists = all.without(Attribute::Xattrs);
            assert_eq!(xattr_names(&of(lists)), ["system.posix_acl_access"]);
            assert_eq!(of(lists.without(Attribute::Mode)), []);
            assert_eq!(of(Preserve::NONE), []);
            assert_eq!(read_limited(30, object, false, all), Err(Cause::XattrsTooLarge));
        }
        let gone = read(XattrObject::Named(dir.as_fd(), b"none"), false, all);
        assert_eq!(gone, Err(Cause::Os(Errno::NOENT)));
    }

    #[test]
    fn a_symlink_has_its_own_xattrs() {
        let site = TestSite::new();
        let path = site.write_file("src/f", "");
        set_xattr(&path, "user.of_file", b"");
        std::os::unix::fs::symlink("f", site.path("src/l")).unwrap();
        set_xattr(&site.path("src/l"), "trusted.of_link", b"1");
        let dir = fs::File::open(site.path("src")).unwrap();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let link = rustix::fs::openat(&dir, "l", flags, Mode::empty()).unwrap();
        for object in [XattrObject::Named(dir.as_fd(), b"l"), XattrObject::Open(link.as_fd())] {
            assert_eq!(
                xattr_names(&read(object, false, Preserve::all()).unwrap()),
                ["trusted.of_link"]
            );
        }
    }

    #[test]
    fn extraneous_xattrs_are_removed_except_security_labels() {
        let site = TestSite::new();
        let path = site.write_file("src/f", "");
        for name in ["user.same", "user.other", "user.surplus", "security.ima"] {
            set_xattr(&path, name, b"1");
        }
        let long = vec![b'v'; 3000];
        let xattr = |name: &[u8], value: &[u8]| Xattr { name: name.into(), value: value.into() };
        let want = [
            xattr(b"system.nfs4_acl", b"not ours to set"),
            xattr(b"user.new", &long),
            xattr(b"user.other", b"2"),
            xattr(b"user.same", b"1"),
        ];
        let file = fs::File::open(&path).unwrap();
        let (object, all) = (XattrObject::Open(file.as_fd()), Preserve::all());
        let none = |short| panic!("{short:?}");
        assert!(!matches(object, &want, all).unwrap());
        assert_eq!(apply(object, &want, all, false, none), Ok(true));
        assert!(matches(object, &want, all).unwrap());
        assert_eq!(apply(object, &want, all, false, none), Ok(false));
        let there = read(object, false, all).unwrap();
        assert_eq!(xattr_names(&there), ["security.ima", "user.new", "user.other", "user.same"]);
        assert_eq!((there[1].value.as_slice(), there[2].value.as_slice()), (&*long, &b"2"[..]));
        // More than the file system can store.
        let mut short = Vec::new();
        let much = [xattr(b"user.much", &vec![0; 60_000])];
        apply(object, &much, all, false, |s| {
            short.push(s);
            Ok(())
        })
        .unwrap();
        let [MetadataWarning::Xattr("user.", Errno::NOSPC | Errno::TOOBIG)] = short[..] else {
            panic!("{short:?}")
        };
    }
}
