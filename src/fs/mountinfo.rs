//! The table of mounts, `/proc/self/mountinfo`.

use super::errno::SysResult;
use super::inode::kernel_path;
use crate::wire::errno::is_resource_exhaustion;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::io::Errno;

/// The mount of a directory: a line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// E.g. `ext4`, `fuse.sshfs`.
    pub(super) fs_type: Vec<u8>,
    /// E.g. `/dev/sda1`, `server:/export`.
    pub(super) source: Vec<u8>,
    /// The directory of the file system that is mounted: `/`, unless it is a bind mount or a subvolume.
    pub(super) root: Vec<u8>,
    /// Where it is mounted.
    pub(super) point: Vec<u8>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Mount> {
        // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER_OPTIONS; spaces in fields are escaped.
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let (root, point) = (unescape_octal(fields.next()?), unescape_octal(fields.next()?));
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let (fs_type, source) =
            (unescape_octal(fields.next()?), unescape_octal(fields.next().unwrap_or_default()));
        Some(Mount { fs_type, source, root, point })
    }

    /// The place of `path` inside the mounted file system.
    pub(super) fn path_inside(&self, path: &[u8]) -> Vec<u8> {
        let below = strip_directory(path, &self.point).unwrap_or_default();
        let mut inside = self.root.strip_suffix(b"/").unwrap_or(&self.root).to_vec();
        if !below.is_empty() || inside.is_empty() {
            inside.push(b'/');
        }
        inside.extend_from_slice(below);
        inside
    }
}

/// The mount of the directory `path`, by the text of `/proc/self/mountinfo`: the one with this `id`. Kernels before 5.8
/// report no id of a directory; then it is the one with the longest mount point above `path`, and the last of several
/// on one mount point, which hides the others.
pub(super) fn find_mount(mountinfo: &[u8], id: Option<u64>, path: &[u8]) -> Option<Mount> {
    let mut lines = mountinfo.split(|byte| *byte == b'\n');
    if let Some(id) = id {
        let id = id.to_string();
        let line = lines.find(|line| line.split(|b| *b == b' ').next() == Some(id.as_bytes()))?;
        return Mount::parse(line);
    }
    let above = lines.filter_map(Mount::parse);
    // The last of several equal ones.
    above
        .filter(|mount| strip_directory(path, &mount.point).is_some())
        .max_by_key(|mount| mount.point.len())
}

/// What `path` has below `directory`; empty for the directory itself, `None` where it is elsewhere.
fn strip_directory<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let below = path.strip_prefix(directory.strip_suffix(b"/").unwrap_or(directory))?;
    match below {
        [] => Some(below),
        [b'/', below @ ..] => Some(below),
        _ => None,
    }
}

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

    const TABLE: &[u8] = b"\
        21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 21 0:25 / /dev/shm rw shared:4 master:2 - tmpfs tmpfs rw,size=8k\n\
        31 21 0:40 / /mnt/a\\040b rw - nfs4 fs1:/export/with\\040space rw,vers=4.2\n\
        32 21 8:1 /srv/data /data rw - ext4 /dev/sda1 rw\n\
        33 21 0:50 / /over rw - overlay overlay rw,lowerdir=/a - b,upperdir=/u\n\
        34 21 0:60 / /scratch rw - tmpfs none rw\n\
        35 34 0:61 /sub /scratch rw - fuse.sshfs gpu@host:/x rw\n\
        36 21 0:62 / /nosource rw - 9p  rw\n";

    fn found(id: Option<u64>, path: &str) -> [String; 3] {
        let mount = find_mount(TABLE, id, path.as_bytes()).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        [text(&mount.fs_type), text(&mount.source), text(&mount.path_inside(path.as_bytes()))]
    }

    #[test]
    fn the_mount_of_a_directory_is_found_by_its_id() {
        for (id, path, expected) in [
            (21, "/", ["ext4", "/dev/sda1", "/"]),
            (21, "/home/x", ["ext4", "/dev/sda1", "/home/x"]),
            (30, "/dev/shm", ["tmpfs", "tmpfs", "/"]),
            (31, "/mnt/a b/c d", ["nfs4", "fs1:/export/with space", "/c d"]),
            (32, "/data", ["ext4", "/dev/sda1", "/srv/data"]),
            (32, "/data/x/y", ["ext4", "/dev/sda1", "/srv/data/x/y"]),
            (33, "/over/x", ["overlay", "overlay", "/x"]),
            (34, "/scratch/x", ["tmpfs", "none", "/x"]),
            (36, "/nosource", ["9p", "", "/"]),
        ] {
            assert_eq!(found(Some(id), path), expected, "{id} {path}");
        }
        assert_eq!(find_mount(TABLE, Some(2), b"/"), None);
    }

    #[test]
    fn without_an_id_the_mount_is_the_last_one_on_the_longest_mount_point() {
        for (path, expected) in [
            ("/data/x", ["ext4", "/dev/sda1", "/srv/data/x"]),
            ("/database", ["ext4", "/dev/sda1", "/database"]),
            ("/dev/shm/x", ["tmpfs", "tmpfs", "/x"]),
            ("/scratch", ["fuse.sshfs", "gpu@host:/x", "/sub"]),
            ("/scratch/y", ["fuse.sshfs", "gpu@host:/x", "/sub/y"]),
        ] {
            assert_eq!(found(None, path), expected, "{path}");
        }
        assert_eq!(find_mount(b"1 2 3\n\n", None, b"/"), None);
    }

    #[test]
    fn the_depth_of_a_mount_point_is_read_from_mountinfo() {
        let table = b"20 1 8:1 / / rw - ext4 a rw\n31 20 0:5 / /mnt/a\\040b rw - tmpfs none rw\n";
        let depth = |id| mount_depth(table, id);
        assert_eq!((depth(20), depth(31), depth(3)), (Some(0), Some(2), None));
    }
}
