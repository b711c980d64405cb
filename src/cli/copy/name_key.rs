//! The key for the names of part files. It is stored between runs, so that the next copy of the same paths finds the
//! part files of one that was killed.

use crate::cli::error::{CliError, Result};
use crate::config::Env;
use crate::util::private_files;
use crate::wire::options::PartNameKey;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// The name of the file in the state directory.
const KEY_FILE_NAME: &str = "copy.key";
/// The length of the file, in bytes.
const KEY_BYTES: usize = 32;

/// The key of this user, created if there is none. If it can't be stored or is not secret, this copy uses a key of its
/// own: it copies the same, but does not continue part files, and no later copy continues its part files.
///
/// # Errors
/// The system has no randomness.
pub(super) fn read_or_create_key() -> Result<PartNameKey> {
    let mut fresh = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut fresh)
        .map_err(|_| CliError::new("cannot get random bytes from the system".to_owned()))?;
    let kept = read_or_store_key(&state_dir(), &fresh).unwrap_or_else(|e| {
        tracing::warn!("part files of killed copies are not continued: {e}");
        fresh
    });
    Ok(PartNameKey(kept))
}

/// `$XDG_STATE_HOME/longhaul`, or the state directory of the services.
pub(super) fn state_dir() -> PathBuf {
    let home = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = home.filter(|dir| dir.is_absolute()).map(|dir| dir.join("longhaul"));
    home.unwrap_or_else(|| Env::from_process().state_dir)
}

/// The key in `dir`; if there is none, `fresh` is stored there. Copies that start at the same time all get the same key.
fn read_or_store_key(dir: &Path, fresh: &[u8; KEY_BYTES]) -> io::Result<[u8; KEY_BYTES]> {
    let file = dir.join(KEY_FILE_NAME);
    match read_key(&file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    private_files::create_dir(dir)?;
    let new = dir.join(format!("{KEY_FILE_NAME}.{}.new", std::process::id()));
    let linked = private_files::create_file(&new).and_then(|mut out| {
        out.write_all(fresh)?;
        out.sync_all()?;
        std::fs::hard_link(&new, &file)
    });
    let removed = std::fs::remove_file(&new);
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => read_key(&file),
        other => other.and(removed).map(|()| *fresh),
    }
}

fn read_key(file: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let bytes = private_files::read_file(file, KEY_BYTES as u64 + 1)?;
    <[u8; KEY_BYTES]>::try_from(bytes).map_err(|_| {
        let reason = format!("{} is not a key of {KEY_BYTES} bytes: remove it", file.display());
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_created_once_and_refused_if_others_can_read_it() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state/longhaul");
        let file = dir.join(KEY_FILE_NAME);
        assert_eq!(read_or_store_key(&dir, &[1; KEY_BYTES]).unwrap(), [1; KEY_BYTES]);
        assert_eq!(read_or_store_key(&dir, &[2; KEY_BYTES]).unwrap(), [1; KEY_BYTES]);
        let names = std::fs::read_dir(&dir).unwrap().count();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!((names, mode), (1, 0o600));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_or_store_key(&dir, &[3; KEY_BYTES]).unwrap_err().to_string().contains("0600"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&file, "short").unwrap();
        assert!(
            read_or_store_key(&dir, &[3; KEY_BYTES]).unwrap_err().to_string().contains("remove it")
        );
    }
}
