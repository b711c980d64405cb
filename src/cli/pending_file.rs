//! A file that gets its final name when it is complete, and is removed otherwise.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

pub(super) struct PendingFile {
    pub(super) file: File,
    temp_path: PathBuf,
}

impl PendingFile {
    /// Creates it in the directory of `target` with this mode (restricted by the umask).
    ///
    /// # Errors
    /// It can't be created.
    pub(super) fn create(target: &Path, mode: u32) -> io::Result<PendingFile> {
        let name = format!(".ctl-{}", crate::util::unique_id::generate_id());
        let temp_path = parent_dir(target).join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp_path)?;
        Ok(PendingFile { file, temp_path })
    }

    /// Renames it to `target`, which may exist if `replace` is set. Content and name are on stable storage then.
    ///
    /// # Errors
    /// `target` exists ([`io::ErrorKind::AlreadyExists`]), or one of the steps failed.
    pub(super) fn publish(self, target: &Path, replace: bool) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        self.file.sync_all()?;
        if replace {
            std::fs::rename(&self.temp_path, target)?;
        } else {
            match renameat_with(CWD, &self.temp_path, CWD, target, RenameFlags::NOREPLACE) {
                // The file system does not support the flag.
                Err(rustix::io::Errno::INVAL) => std::fs::hard_link(&self.temp_path, target)?,
                renamed => renamed?,
            }
        }
        File::open(parent_dir(target))?.sync_all()
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // Does not exist any more after it was renamed.
        let _ = std::fs::remove_file(&self.temp_path);
    }
}

/// The directory of a file.
pub(super) fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
