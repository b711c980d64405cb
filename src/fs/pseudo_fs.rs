//! File systems whose files have no content until somebody reads them: `proc`, `sysfs` and the like.
//! They say a length of nothing (or of a page) for what holds text, so a copy that goes by lengths
//! would make empty files and call them complete. Such a source is refused instead.

use super::errno::SysResult;
use rustix::fd::AsFd;

/// What `statfs` says of them, as `linux/magic.h` lists it.
const PSEUDO_FS_MAGIC: &[u64] = &[
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

/// Whether the file system of what is open makes its files up as they are read.
pub(super) fn is_pseudo_fs(fd: impl AsFd) -> SysResult<bool> {
    let kind = rustix::fs::fstatfs(fd)?.f_type;
    // The number has 32 bits; the field that it stands in is longer, and signed on some machines.
    Ok(PSEUDO_FS_MAGIC.contains(&(kind as u64 & 0xffff_ffff)))
}
