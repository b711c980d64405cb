//! The table of mounts, `/proc/self/mountinfo`.

use super::errno::SysResult;
use super::inode::kernel_path;
use crate::wire::errno::is_resource_exhaustion;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;

/// How many components the mount point of a mount has, by the text of `/proc/self/mountinfo`.
pub(super) fn mount_depth(mountinfo: &[u8], id: u64) -> Option<usize> {
    let id = id.to_string();
    let mut lines = mountinfo.split(|byte| *byte == b'\n');
    let line = lines.find(|line| line.split(|b| *b == b' ').next() == Some(id.as_bytes()))?;
    let point = unescape_octal(line.split(|byte| *byte == b' ').nth(4)?);
    Some(point.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).count())
}

/// The paths below `dir` where something is mounted.
pub(super) fn list_mounts_below(dir: &OwnedFd) -> SysResult<Vec<Vec<u8>>> {
    let read = || {
        let here = kernel_path(dir.as_fd())?;
        let table = std::fs::read("/proc/self/mountinfo");
        Ok((here, table.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?))
    };
    let (mut prefix, table) = match read() {
        Ok(found) => found,
        Err(errno) if is_resource_exhaustion(errno) => return Err(errno),
        Err(_) => return Ok(Vec::new()),
    };
    if prefix != b"/" {
        prefix.push(b'/');
    }
    let points = table.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    let below = points
        .map(unescape_octal)
        .filter_map(|point| point.strip_prefix(prefix.as_slice()).map(<[u8]>::to_vec))
        .filter(|rest| !rest.is_empty());
    Ok(below.collect())
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| d.iter().all(|b| (b'0'..b'8').contains(b)));
        if let (b'\\', Some(d)) = (first, digits) {
            let value = d.iter().fold(0u32, |v, b| v * 8 + u32::from(b - b'0'));
            out.push(value.to_le_bytes()[0]);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_of_mountinfo_are_decoded() {
        assert_eq!(unescape_octal(b"/a\\040b\\134c\\0"), b"/a b\\c\\0");
    }

    #[test]
    fn the_depth_of_a_mount_point_is_read_from_mountinfo() {
        let table = b"20 1 8:1 / / rw - ext4 a rw\n31 20 0:5 / /mnt/a\\040b rw - tmpfs none rw\n";
        let depth = |id| mount_depth(table, id);
        assert_eq!((depth(20), depth(31), depth(3)), (Some(0), Some(2), None));
    }
}
