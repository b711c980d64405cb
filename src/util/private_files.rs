//! Files and directories that only the user of this process may read or write: the state of daemons and
//! commands, which contains paths and secrets.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// For `custom_flags`: a symbolic link is not followed.
pub const OPEN_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Creates the directory `dir` and missing ones above it, with the mode 0700. Existing directories keep their mode.
///
/// # Errors
/// The system call failed.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Creates the file `path` with the mode 0600. An existing entry is removed first: it may be a link, or a
/// file that another user has open.
///
/// # Errors
/// A system call failed.
pub fn create_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(OPEN_NOFOLLOW);
    match options.open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            options.open(path)
        }
        other => other,
    }
}

/// Opens the file `path` for reading and writing. A missing file is created with the mode 0600; an existing one keeps
/// its content and mode.
///
/// # Errors
/// The system call failed.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Replaces the content of the file `path` atomically, with the mode 0600. The new file is on stable storage
/// when it returns.
///
/// # Errors
/// A system call failed.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file_via(path, &path.with_extension("new"), bytes)
}

/// [`replace_file`] for a file that several processes may replace at the same time: each needs its own temporary file
/// `new`, in the same directory.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_file_via(path: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    create_dir(dir)?;
    let mut out = create_file(new)?;
    let replaced = out
        .write_all(bytes)
        .and_then(|()| out.sync_all())
        .and_then(|()| fs::rename(new, path))
        .and_then(|()| File::open(dir)?.sync_all());
    if replaced.is_err() {
        let _ = fs::remove_file(new);
    }
    replaced
}

/// Removes a file, if there is one.
///
/// # Errors
/// It cannot be removed.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The first `limit` bytes of the file `path`.
///
/// # Errors
/// A system call failed, or the file is a link; it belongs to another user, or other users may read or write it
/// ([`io::ErrorKind::PermissionDenied`]).
pub fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OPEN_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    let is_own = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_file() || !is_own || meta.mode() & 0o077 != 0 {
        let message = format!(
            "{} belongs to uid {} and has the mode {:04o}: it must be a file of this user that no other user may \
             read or write (0600)",
            path.display(),
            meta.uid(),
            meta.mode() & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks that users other than the owner and the group of the file `path` may not use it: a key that a service manager
/// hands over often belongs to a group.
///
/// # Errors
/// A system call failed; other users may read or write the file ([`io::ErrorKind::PermissionDenied`]).
pub fn check_closed_to_others(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    if mode & 0o007 == 0 {
        return Ok(());
    }
    let message = format!(
        "it has the mode {mode:04o}, so other users may use it; run: chmod o= {}",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn private_files_have_mode_0600_and_links_are_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("state/of/agent.json");
        let victim = home.path().join("victim");
        fs::write(&victim, "victim").unwrap();
        replace_file(&file, b"1").unwrap();
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert_eq!(read_file(&file, 10).unwrap(), b"1");
        for plant in
            [|at: &Path, to: &Path| symlink(to, at), |at: &Path, to: &Path| fs::hard_link(to, at)]
        {
            plant(&file.with_extension("new"), &victim).unwrap();
            replace_file(&file, b"2").unwrap();
            assert_eq!(fs::read(&victim).unwrap(), b"victim");
            assert_eq!((mode(&file), read_file(&file, 10).unwrap()), (0o600, b"2".to_vec()));
        }
        // A rewrite restricts the mode of a file again.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_file(&file, 10).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        replace_file(&file, b"3").unwrap();
        assert_eq!((mode(&file), read_file(&file, 1).unwrap()), (0o600, b"3".to_vec()));
        let link = home.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(read_file(&link, 10).is_err());
    }
}
