//! Files and directories that only the user of this process may read or write: the state that daemons and
//! commands keep, which names paths and holds secrets.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// For `custom_flags`: a link is not followed.
pub const OPEN_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Makes the directory `dir` and what is missing above it, with the mode 0700. One that is there keeps its
/// mode, which was chosen when it was made.
///
/// # Errors
/// It can't be made.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes the file `path` with the mode 0600. What has that name is removed first: it may be a link, or a
/// file that another user has open.
///
/// # Errors
/// It can't be made, or what is there not be removed.
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

/// Opens the file `path` to read and write, made with the mode 0600 where it is missing. One that is there keeps
/// its content and its mode.
///
/// # Errors
/// It can't be opened or made.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Replaces the file `path` by one that holds `bytes`, with the mode 0600; both names are on stable storage
/// when it returns. A crash leaves the old file or the new one.
///
/// # Errors
/// One of the steps failed.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file_via(path, &path.with_extension("new"), bytes)
}

/// The same for a file that several processes may replace at once: each needs its own temporary name `new`, in the
/// same directory.
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

/// The content of the file `path`, of at most `limit` bytes.
///
/// # Errors
/// It can't be read, or is a link; it belongs to another user, or others may read or write it
/// ([`io::ErrorKind::PermissionDenied`]).
pub fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let file = OpenOptions::new().read(true).custom_flags(OPEN_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    let own = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_file() || !own || meta.mode() & 0o077 != 0 {
        let why = format!(
            "{} belongs to uid {} and has the mode {:04o}: it must be a file of this user that no other user may \
             read or write (0600)",
            path.display(),
            meta.uid(),
            meta.mode() & 0o7777
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
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
        // A file that was wider is narrow once it is written again.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(read_file(&file, 10).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        replace_file(&file, b"3").unwrap();
        assert_eq!((mode(&file), read_file(&file, 1).unwrap()), (0o600, b"3".to_vec()));
        let link = home.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(read_file(&link, 10).is_err());
    }
}
