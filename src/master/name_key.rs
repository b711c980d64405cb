//! The key from which the names of part files are derived. The master saves a copy outside of the store: if the store
//! loses everything, syncs that are submitted again still find and continue their part files.

use crate::util::private_files;
use crate::wire::options::PartNameKey;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the file in the `data_dir`.
const FILE_NAME: &str = "names.key";
/// The length of the file, in bytes.
const KEY_BYTES: usize = 32;

/// The file of the key. The default saves nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct NameKeyFile(Option<PathBuf>);

impl NameKeyFile {
    pub(super) fn in_dir(data_dir: &Path) -> Self {
        NameKeyFile(Some(data_dir.join(FILE_NAME)))
    }

    /// The saved key. A file that is not private or not a key is reported and ignored. Blocks.
    pub(super) fn load(&self) -> Option<PartNameKey> {
        let file = self.0.as_deref()?;
        match private_files::read_file(file, KEY_BYTES as u64 + 1).map(<[u8; KEY_BYTES]>::try_from)
        {
            Ok(Ok(key)) => Some(PartNameKey(key)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Ok(Err(_)) => {
                tracing::warn!(file = %file.display(), "not a key of {KEY_BYTES} bytes: it is replaced");
                None
            }
            Err(e) => {
                tracing::warn!(file = %file.display(), error = %e, "the key of part files is not used");
                None
            }
        }
    }

    /// Saves the key of the store, unless it is saved already. Blocks.
    pub(super) fn save(&self, key: PartNameKey) {
        let Some(file) = self.0.as_deref() else { return };
        if private_files::read_file(file, KEY_BYTES as u64 + 1).is_ok_and(|saved| saved == key.0) {
            return;
        }
        if let Err(e) = private_files::replace_file(file, &key.0) {
            tracing::warn!(
                file = %file.display(), error = %e,
                "the key of part files is not saved: if the store loses everything, they are sent again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_is_saved_and_a_file_of_another_length_is_ignored() {
        let home = tempfile::tempdir().unwrap();
        let file = NameKeyFile::in_dir(&home.path().join("data"));
        assert!(file.load().is_none());
        for key in [1, 1, 2] {
            file.save(PartNameKey([key; KEY_BYTES]));
            assert_eq!(file.load().map(|key| key.0), Some([key; KEY_BYTES]));
        }
        let path = home.path().join("data").join(FILE_NAME);
        std::fs::write(&path, "short").unwrap();
        assert!(file.load().is_none());
        NameKeyFile::default().save(PartNameKey([3; KEY_BYTES]));
        assert!(NameKeyFile::default().load().is_none());
    }
}
