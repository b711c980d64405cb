//! The installation of a master. Two installations that use one Redis and one namespace by mistake would share their
//! syncs, because the masters of one would follow those of the other. Therefore the store records the name of its
//! installation and refuses the masters of another one.
//!
//! The name is `installation` in the configuration, which all masters of an installation have in common. A single
//! master needs none: it generates a name at its first start and saves it in its `data_dir`.

use crate::store::StoreError;
use crate::util::private_files;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file in the `data_dir` with the name of the installation.
const INSTALLATION_FILE: &str = "installation";
const MAX_NAME_BYTES: usize = 64;

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub(super) name: String,
    /// The name that the store last accepted from this master. A store with that name is renamed.
    pub(super) former_name: String,
    file: Option<PathBuf>,
}

impl Installation {
    /// An installation that is not saved.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Installation { name: name.to_owned(), former_name: String::new(), file: None }
    }

    /// The name is that of the configuration, else that in `data_dir`, else a new one. Blocks for a few file
    /// operations.
    ///
    /// # Errors
    /// [`Unusable`](StoreError::Unusable): no name is configured, and none can be saved in `data_dir`.
    pub fn load(configured: Option<&str>, data_dir: &Path) -> Result<Self, StoreError> {
        let file = data_dir.join(INSTALLATION_FILE);
        let saved = match std::fs::read_to_string(&file) {
            Ok(text) if is_valid_name(text.trim()) => Some(text.trim().to_owned()),
            Ok(_) => {
                return Err(StoreError::Unusable(format!(
                    "{} does not contain the name of an installation; write `installation: NAME` in the configuration \
                     of all masters of this installation, and remove that file",
                    file.display()
                )));
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(e) if configured.is_none() => return Err(cannot_save(&file, &e)),
            Err(_) => None,
        };
        let name = match configured.or(saved.as_deref()) {
            Some(name) => name.to_owned(),
            None => {
                // Saved before the store gets it: a crash in between would leave a store that refuses every master.
                let name = uuid::Uuid::new_v4().simple().to_string();
                save_name(&file, &name).map_err(|e| cannot_save(&file, &e))?;
                name
            }
        };
        Ok(Installation { former_name: saved.unwrap_or_default(), name, file: Some(file) })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Saves a name that the store has accepted, for later starts without a configured name.
    pub(super) fn save(&self) {
        if let Some(file) = &self.file
            && self.name != self.former_name
            && let Err(e) = save_name(file, &self.name)
        {
            tracing::info!("the name of the installation is not saved in {}: {e}", file.display());
        }
    }
}

/// 1 to 64 characters out of `A-Z a-z 0-9 . _ -`.
fn is_valid_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(allowed)
}

fn cannot_save(file: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Unusable(format!(
        "the name of this installation cannot be saved in {}: {error}; write `installation: NAME` in the configuration, or \
         set a data_dir that the user of the master may write to",
        file.display()
    ))
}

fn save_name(file: &Path, name: &str) -> std::io::Result<()> {
    private_files::replace_file(file, format!("{name}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_generated_once_saved_and_overridden_by_the_configuration() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        let first = Installation::load(None, &dir).unwrap();
        assert!(is_valid_name(&first.name) && first.former_name.is_empty(), "{first:?}");
        let again = Installation::load(None, &dir).unwrap();
        assert_eq!((&again.name, &again.former_name), (&first.name, &first.name));
        let named = Installation::load(Some("site-a"), &dir).unwrap();
        assert_eq!((named.name.as_str(), &named.former_name), ("site-a", &first.name));
        // The store has not accepted it yet.
        assert_eq!(Installation::load(None, &dir).unwrap().name, first.name);
        named.save();
        assert_eq!(Installation::load(None, &dir).unwrap().name, "site-a");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    }

    #[test]
    fn a_name_must_be_configured_if_it_cannot_be_saved() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("file");
        std::fs::write(&dir, "").unwrap();
        let refused = Installation::load(None, &dir).unwrap_err().to_string();
        assert!(
            refused.contains("`installation: NAME`") && refused.contains("data_dir"),
            "{refused}"
        );
        let named = Installation::load(Some("site-a"), &dir).unwrap();
        named.save();
        assert_eq!(named.name, "site-a");
        let dir = home.path().join("state");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join(INSTALLATION_FILE), "no name\n").unwrap();
        assert!(Installation::load(Some("site-a"), &dir).is_err());
    }
}
