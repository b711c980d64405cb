//! Properties of file systems, by the type that `statfs` returns (`linux/magic.h`).

use super::errno::SysResult;
use rustix::fd::AsFd;

const EXT: u32 = 0xef53;
const XFS: u32 = 0x5846_5342;
const NFS: u32 = 0x6969;
const CEPH: u32 = 0x00c3_6400;
const CIFS: u32 = 0xff53_4d42;
const SMB2: u32 = 0xfe53_4d42;

/// File systems of files that have no content until they are read. They report the length 0, or a page, for files with
/// text: a copy by length would be empty. Such a source is rejected.
const PSEUDO: &[u32] = &[
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xf97c_ff8c, // selinuxfs
    0x6573_5543, // fusectl
    0x4249_4e4d, // binfmt_misc
];
/// File systems that return the owner with which a file was created: ext2 to ext4, XFS, Btrfs, F2FS, ZFS, bcachefs,
/// overlayfs and tmpfs. ZFS and bcachefs: by their own sources.
const OWNER_KEEPING: &[u32] =
    &[EXT, XFS, 0x9123_683e, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e, 0x794c_7630, 0x0102_1994];

/// The type has 32 bits; the field is longer, and signed on some machines.
pub(super) fn fs_type(fd: impl AsFd) -> SysResult<u32> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u32)
}

fn is_one_of(fd: impl AsFd, types: &[u32]) -> bool {
    fs_type(fd).is_ok_and(|found| types.contains(&found))
}

pub(super) fn is_pseudo_fs(fd: impl AsFd) -> SysResult<bool> {
    Ok(PSEUDO.contains(&fs_type(fd)?))
}

/// Whether the server can execute `copy_file_range`.
pub(super) fn can_copy_on_server(fd: impl AsFd) -> bool {
    is_one_of(fd, &[NFS, CEPH])
}

/// Whether a server stores what is written.
pub(super) fn is_remote_fs(fd: impl AsFd) -> bool {
    is_one_of(fd, &[NFS, CIFS, SMB2])
}

pub(super) fn keeps_owners(fd: impl AsFd) -> bool {
    is_one_of(fd, OWNER_KEEPING)
}

/// Whether the file system allocates blocks only at writeback and accepts a reservation. Others gain nothing: memory
/// file systems would zero the space, copy-on-write file systems allocate again.
pub(super) fn has_delayed_allocation(fd: impl AsFd) -> bool {
    is_one_of(fd, &[EXT, XFS])
}
