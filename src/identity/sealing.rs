//! Seals secrets before they go to a store: AES-256-GCM under a key that no store holds. A copy of Redis, of its
//! append-only file or of the SQLite file then reveals none of them.

use crate::util::private_files;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the file of the key, in the data directory and in systemd's directory of credentials.
pub const KEY_FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;
/// The first byte of sealed text.
const FORMAT: u8 = 1;
const KEY_ID_BYTES: usize = 8;
/// See [`blake3::derive_key`].
const KEY_ID_CONTEXT: &str = "longhaul 2026 id of the key that seals secrets";

/// Why a key cannot be used, or sealed text not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealingError {
    /// The file cannot be read or made.
    #[error("the key that seals secrets, {}: {source}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The error, which says what to do.
        source: io::Error,
    },
    /// Another key has sealed it.
    #[error(
        "the secrets in the store were sealed with the key {sealed_with}, this master has the key {own}: copy {KEY_FILE} \
         of a master of this installation to this host, and name it with `secrets_file`"
    )]
    OtherKey {
        /// The id of the key that sealed it.
        sealed_with: String,
        /// The id of the key of this process.
        own: String,
    },
    /// It was changed, or sealed for another purpose.
    #[error(
        "a secret in the store is damaged: it does not open with the key that sealed it; restore the store from a backup"
    )]
    Damaged,
    /// No random numbers are available, or the cipher failed.
    #[error("a secret cannot be sealed: the system gives no random numbers")]
    Cipher,
}

/// Seals and opens secrets. Clones have the same key.
#[derive(Clone)]
pub struct Sealer {
    key: Arc<RandomizedNonceKey>,
    id: [u8; KEY_ID_BYTES],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.key_id())
    }
}

/// Sealers with the same key are equal.
impl PartialEq for Sealer {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Sealer {
    fn new(key: &[u8; KEY_BYTES]) -> Result<Self, SealingError> {
        let digest = blake3::derive_key(KEY_ID_CONTEXT, key);
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&digest[..KEY_ID_BYTES]);
        let key = RandomizedNonceKey::new(&AES_256_GCM, key).map_err(|_| SealingError::Cipher)?;
        Ok(Sealer { key: Arc::new(key), id })
    }

    /// One for this process only: its store ends with it.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn for_this_process() -> Result<Self, SealingError> {
        Sealer::new(&random_key()?)
    }

    /// The same in all tests.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Sealer::new(&[7; KEY_BYTES]).unwrap()
    }

    /// The key of `configured`, else of systemd's directory of `credentials`, else of `data_dir`, where one is made at
    /// the first start.
    ///
    /// # Errors
    /// The file cannot be read, is not private, or does not have 32 bytes; none can be made in `data_dir`.
    pub fn load(
        configured: Option<&Path>,
        credentials: Option<&Path>,
        data_dir: &Path,
    ) -> Result<Self, SealingError> {
        if let Some(file) = configured {
            return read_key(file).map_err(|e| describe_configured(file, e));
        }
        if let Some(file) = credentials.map(|dir| dir.join(KEY_FILE))
            && file.exists()
        {
            return read_key(&file);
        }
        let file = data_dir.join(KEY_FILE);
        match read_key(&file) {
            Err(SealingError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                private_files::replace_file(&file, &random_key()?)
                    .map_err(|source| SealingError::File { file: file.clone(), source })?;
                tracing::info!(file = %file.display(), "made the key that seals secrets in the store");
                // Of two masters that start at once in one directory, both use the key that remained.
                read_key(&file)
            }
            other => other,
        }
    }

    /// Identifies the key, which it does not reveal.
    pub fn key_id(&self) -> String {
        hex(&self.id)
    }

    /// Seals `secret`. Only [`open`](Self::open) with the same `purpose` returns it.
    ///
    /// # Errors
    /// The cipher failed.
    pub fn seal(&self, purpose: &str, secret: &[u8]) -> Result<Vec<u8>, SealingError> {
        let mut text = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut text)
            .map_err(|_| SealingError::Cipher)?;
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        Ok([&[FORMAT][..], &self.id, nonce, &text].concat())
    }

    /// What was sealed.
    ///
    /// # Errors
    /// Another key sealed it, or it was changed.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SealingError> {
        let (format, rest) = sealed.split_first().ok_or(SealingError::Damaged)?;
        let (id, rest) = rest.split_at_checked(KEY_ID_BYTES).ok_or(SealingError::Damaged)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(SealingError::Damaged)?;
        if *format != FORMAT {
            return Err(SealingError::Damaged);
        }
        if *id != self.id {
            return Err(SealingError::OtherKey { sealed_with: hex(id), own: self.key_id() });
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealingError::Damaged)?;
        let mut text = text.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut text);
        Ok(opened.map_err(|_| SealingError::Damaged)?.to_vec())
    }
}

fn read_key(file: &Path) -> Result<Sealer, SealingError> {
    let error = |source| SealingError::File { file: file.to_owned(), source };
    let bytes = private_files::read_file(file, KEY_BYTES as u64 + 1).map_err(error)?;
    let key: [u8; KEY_BYTES] = bytes.try_into().map_err(|bytes: Vec<u8>| {
        let length = bytes.len();
        let more = if length > KEY_BYTES { "more than 32" } else { "fewer than 32" };
        error(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it has {more} bytes; a key has exactly {KEY_BYTES} random bytes"),
        ))
    })?;
    Sealer::new(&key)
}

/// A file that the configuration names is not made: each master would make one of its own.
fn describe_configured(file: &Path, error: SealingError) -> SealingError {
    match error {
        SealingError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            let shown = file.display();
            let message = format!(
                "it does not exist; copy the file of another master, or make it for the first one: (umask 077; head -c \
                 {KEY_BYTES} /dev/urandom > {shown})"
            );
            SealingError::File { file: file.to_owned(), source: io::Error::other(message) }
        }
        other => other,
    }
}

fn random_key() -> Result<[u8; KEY_BYTES], SealingError> {
    let mut key = [0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| SealingError::Cipher)?;
    Ok(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn sealed_text_opens_with_the_same_key_and_purpose_only() {
        let [one, two] = [1, 2].map(|n| Sealer::new(&[n; KEY_BYTES]).unwrap());
        let sealed = one.seal("ticket key", b"secret").unwrap();
        assert_eq!(one.open("ticket key", &sealed).unwrap(), b"secret");
        assert_ne!(one.seal("ticket key", b"secret").unwrap(), sealed, "a nonce is used once");
        assert!(matches!(one.open("name key", &sealed), Err(SealingError::Damaged)));
        let other = two.open("ticket key", &sealed).unwrap_err();
        assert!(matches!(other, SealingError::OtherKey { .. }), "{other}");
        let text = other.to_string();
        assert!(text.contains(&one.key_id()) && text.contains("secrets_file"), "{text}");
        for cut in 0..sealed.len() {
            assert!(one.open("ticket key", &sealed[..cut]).is_err(), "{cut}");
            let mut changed = sealed.clone();
            changed[cut] ^= 1;
            assert!(one.open("ticket key", &changed).is_err(), "{cut}");
        }
        assert_eq!(format!("{one:?}"), format!("Sealer({})", one.key_id()));
    }

    #[test]
    fn a_key_is_made_once_in_the_data_directory_and_others_are_given() {
        let home = tempfile::tempdir().unwrap();
        let (data, credentials) = (home.path().join("data"), home.path().join("credentials"));
        let own = Sealer::load(None, None, &data).unwrap();
        let file = data.join(KEY_FILE);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(Sealer::load(None, Some(&credentials), &data).unwrap(), own);
        fs::create_dir(&credentials).unwrap();
        private_files::replace_file(&credentials.join(KEY_FILE), &[1; KEY_BYTES]).unwrap();
        let given = Sealer::load(None, Some(&credentials), &data).unwrap();
        assert_eq!(given, Sealer::new(&[1; KEY_BYTES]).unwrap());
        let configured = home.path().join("shared.key");
        let missing = Sealer::load(Some(&configured), None, &data).unwrap_err().to_string();
        assert!(missing.contains("head -c 32 /dev/urandom") && !configured.exists(), "{missing}");
        private_files::replace_file(&configured, &[2; KEY_BYTES]).unwrap();
        let shared = Sealer::load(Some(&configured), Some(&credentials), &data).unwrap();
        assert_eq!(shared, Sealer::new(&[2; KEY_BYTES]).unwrap());
        for bytes in [&[2; 31][..], &[2; 33]] {
            private_files::replace_file(&configured, bytes).unwrap();
            let wrong = Sealer::load(Some(&configured), None, &data).unwrap_err().to_string();
            assert!(wrong.contains("exactly 32"), "{wrong}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let open = Sealer::load(None, None, &data).unwrap_err().to_string();
        assert!(open.contains("0600"), "{open}");
        assert_ne!(Sealer::for_this_process().unwrap(), Sealer::for_this_process().unwrap());
    }
}
