//! What identifies the directory of a storage path, as far as one host can say.

use super::error::{FsError, Result, Side};
use super::inode::kernel_path;
use super::mountinfo::find_mount;
use super::preflight::check_access;
use super::root::RootDir;
use crate::wire::path::escape_bytes;
use crate::wire::storage::StorageFingerprint;
use rustix::fs::{Access, StatVfsMountFlags};
use rustix::io::Errno;

impl RootDir {
    /// Its fingerprint as of now. It blocks as long as the file system does.
    ///
    /// # Errors
    /// The file system does not answer with its numbers, or `/proc` is not readable.
    pub fn storage_fingerprint(&self) -> Result<StorageFingerprint> {
        let failed = |errno: Errno| {
            FsError::new(Side::Destination, "identify the file system of", &self.label(), errno)
        };
        let numbers = rustix::fs::fstatvfs(self.fd()).map_err(failed)?;
        let place = kernel_path(self.fd()).map_err(failed)?;
        let table = std::fs::read("/proc/self/mountinfo");
        let table = table.map_err(|e| failed(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        let id = self.identity.mount.map(|mount| mount.id);
        // It is missing where it was unmounted since.
        let mount = find_mount(&table, id, &place).ok_or_else(|| failed(Errno::NODEV))?;
        let may_write = || check_access(self.fd(), b".", Access::WRITE_OK | Access::EXEC_OK);
        Ok(StorageFingerprint {
            fs_type: escape_bytes(&mount.fs_type),
            mount_source: escape_bytes(&mount.source),
            path_in_mount: escape_bytes(&mount.path_inside(&place)),
            fs_id: format!("{:x}", numbers.f_fsid),
            inode: self.identity.ino,
            birth_time: self.identity.birth_time,
            device: self.identity.dev,
            read_only: numbers.f_flag.contains(StatVfsMountFlags::RDONLY) || may_write().is_err(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::wire::AbsPath;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::Path;

    fn fingerprint(path: &Path) -> StorageFingerprint {
        let path = AbsPath::new(path.as_os_str().as_bytes()).unwrap();
        RootDir::open(&path).unwrap().storage_fingerprint().unwrap()
    }

    #[test]
    fn a_directory_is_identified_by_its_inode_and_its_mount() {
        let site = TestSite::new();
        let found = fingerprint(&site.path("src"));
        let meta = fs::metadata(site.path("src")).unwrap();
        assert_eq!((found.inode, found.device), (meta.ino(), meta.dev()));
        assert!(!found.read_only && !found.fs_type.is_empty(), "{found:?}");
        assert!(found.path_in_mount.ends_with("/src"), "{found:?}");
        assert_eq!(found, fingerprint(&site.path("src")), "it stays the same");
        let other = fingerprint(&site.path("canary"));
        assert_ne!(other.inode, found.inode);
        assert_eq!((other.fs_type, other.fs_id), (found.fs_type, found.fs_id));
    }

    #[test]
    fn a_tmpfs_has_its_type_and_another_file_system_than_proc() {
        let shm = Path::new("/dev/shm");
        if !shm.is_dir() {
            return;
        }
        let (shm, proc) = (fingerprint(shm), fingerprint(Path::new("/proc")));
        assert_eq!((shm.fs_type.as_str(), proc.fs_type.as_str()), ("tmpfs", "proc"));
        assert_eq!((shm.path_in_mount.as_str(), proc.path_in_mount.as_str()), ("/", "/"));
        assert_ne!(shm.device, proc.device);
    }

    #[test]
    fn a_bind_mount_has_the_fingerprint_of_what_is_mounted_and_may_be_read_only() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let site = TestSite::new();
        let (src, at) = (site.path("src"), site.path("canary"));
        let mount = |args: &[&str]| {
            let mut mount = std::process::Command::new("mount");
            mount.args(args).arg(&at).status().is_ok_and(|status| status.success())
        };
        if !mount(&["--bind", src.to_str().unwrap()]) {
            return; // Not allowed here.
        }
        let bound = fingerprint(&at);
        let read_only = mount(&["-o", "remount,bind,ro"]).then(|| fingerprint(&at));
        let _ = std::process::Command::new("umount").arg("-l").arg(&at).status();
        assert_eq!(bound, fingerprint(&src));
        assert_eq!(read_only, Some(StorageFingerprint { read_only: true, ..bound }));
    }

    #[test]
    fn a_directory_without_write_permission_is_read_only_for_others_than_root() {
        let site = TestSite::new();
        let path = site.path("src");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        assert_eq!(fingerprint(&path).read_only, !is_root);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!fingerprint(&path).read_only);
    }
}
