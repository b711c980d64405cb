//! The tokens of this user: the file that `CTL_TOKEN_FILE` names, or the tokens that `ctl auth login` stored.

use super::error::{CliError, Result};
use super::exit::Exit;
use super::sanitize::display_path;
use crate::client::Credentials;
use crate::util::private_files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Holds the path of a file with a token, which is used for every master.
pub(super) const TOKEN_FILE_VARIABLE: &str = "CTL_TOKEN_FILE";
/// A token is shorter.
const MAX_TOKEN_BYTES: u64 = 4_096;
const MAX_FILE_BYTES: u64 = 1 << 20;
/// The beginning of every token.
const TOKEN_PREFIX: &str = "lh1_";

/// The stored tokens by the URL of their master.
#[derive(Default, Serialize, Deserialize)]
struct StoredTokens {
    #[serde(default)]
    masters: BTreeMap<String, StoredToken>,
}

#[derive(Serialize, Deserialize)]
struct StoredToken {
    token: String,
}

/// The file of the tokens that are stored.
#[derive(Debug, Clone)]
pub(super) struct CredentialsFile(PathBuf);

impl CredentialsFile {
    /// `$XDG_CONFIG_HOME/longhaul/credentials.json`, or that below `~/.config`. `None`: this user has no home.
    pub(super) fn locate(var: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        // Relative values count as unset (XDG base directory specification).
        let dir = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let config = dir("XDG_CONFIG_HOME").or_else(|| Some(dir("HOME")?.join(".config")))?;
        Some(CredentialsFile(config.join("longhaul/credentials.json")))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    fn load(&self) -> Result<StoredTokens> {
        let shown = display_path(&self.0);
        let unusable = |reason: String| {
            CliError::new(format!("the stored tokens cannot be read: {reason}"))
                .with_exit(Exit::Config)
                .with_hint(format!("correct it (chmod 600 {shown}), or remove it and store the token again: ctl auth login"))
        };
        match private_files::read_file(&self.0, MAX_FILE_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                // The error may not quote the file.
                .map_err(|e| unusable(format!("{shown}: line {}", e.line()))),
            // A service may run with the home of another user, or with none.
            Err(e) if is_unreachable(&e) => Ok(StoredTokens::default()),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Err(unusable(e.to_string())),
            Err(e) => Err(unusable(format!("{shown}: {e}"))),
        }
    }

    fn save(&self, tokens: &StoredTokens) -> Result<()> {
        let shown = display_path(&self.0);
        let text = serde_json::to_vec_pretty(tokens)
            .map_err(|e| CliError::new(format!("cannot write {shown}: {e}")))?;
        let new = self.0.with_extension(format!("{}.new", std::process::id()));
        private_files::replace_file_via(&self.0, &new, &text)
            .map_err(|e| CliError::new(format!("cannot write {shown}: {e}")))
    }

    /// Stores `token` for each of `urls`.
    pub(super) fn store(&self, urls: &[String], token: &str) -> Result<()> {
        let mut tokens = self.load()?;
        for url in urls {
            tokens.masters.insert(url.clone(), StoredToken { token: token.to_owned() });
        }
        self.save(&tokens)
    }

    /// Removes the tokens for `urls`. Returns whether there were any.
    pub(super) fn remove(&self, urls: &[String]) -> Result<bool> {
        let mut tokens = self.load()?;
        let before = tokens.masters.len();
        tokens.masters.retain(|url, _| !urls.contains(url));
        let is_changed = tokens.masters.len() != before;
        if is_changed {
            self.save(&tokens)?;
        }
        Ok(is_changed)
    }
}

/// Whether there is no such file for this user: an error of the system, and not of the check of owner and mode.
fn is_unreachable(error: &std::io::Error) -> bool {
    let is_denied = error.raw_os_error() == Some(rustix::io::Errno::ACCESS.raw_os_error());
    is_denied || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The tokens that this user has for masters.
///
/// # Errors
/// A file cannot be read, or is open to other users.
pub(super) fn load_credentials() -> Result<Credentials> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = var(TOKEN_FILE_VARIABLE) {
        return read_token_file(Path::new(&file)).map(Credentials::Token);
    }
    let Some(file) = CredentialsFile::locate(var) else { return Ok(Credentials::Empty) };
    let stored = file.load()?.masters;
    Ok(Credentials::ByUrl(stored.into_iter().map(|(url, stored)| (url, stored.token)).collect()))
}

/// The token in a file, without white space around it.
pub(super) fn read_token_file(file: &Path) -> Result<String> {
    let shown = display_path(file);
    let open = std::fs::File::open(file)
        .map_err(|e| CliError::new(format!("the token file {shown} cannot be read: {e}")))?;
    read_token(open).map_err(|e| CliError { message: format!("{shown}: {}", e.message), ..e })
}

/// The token that `input` holds.
///
/// # Errors
/// It cannot be read, or holds something else.
pub(super) fn read_token(input: impl Read) -> Result<String> {
    let mut text = String::new();
    input
        .take(MAX_TOKEN_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| CliError::new(format!("the token cannot be read: {e}")))?;
    let token = text.trim();
    if token.starts_with(TOKEN_PREFIX) && token.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    Err(CliError::usage(format!("this is no token: it must begin with `{TOKEN_PREFIX}`"))
        .with_hint("an administrator creates one with: ctl token create"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn tokens_are_stored_by_url_in_a_private_file() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_owned();
        let file =
            CredentialsFile::locate(|name| (name == "HOME").then(|| dir.clone().into())).unwrap();
        assert_eq!(file.path(), home.path().join(".config/longhaul/credentials.json"));
        let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>();
        assert!(!file.remove(&urls(&["http://a"])).unwrap(), "there is no file");
        file.store(&urls(&["http://a", "http://b"]), "lh1_1").unwrap();
        file.store(&urls(&["http://a"]), "lh1_2").unwrap();
        let tokens = |file: &CredentialsFile| {
            let stored = file.load().unwrap().masters;
            stored
                .into_iter()
                .map(|(url, stored)| format!("{url} {}", stored.token))
                .collect::<Vec<_>>()
        };
        assert_eq!(tokens(&file), ["http://a lh1_2", "http://b lh1_1"]);
        assert_eq!(std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(file.remove(&urls(&["http://a", "http://c"])).unwrap());
        assert_eq!(tokens(&file), ["http://b lh1_1"]);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let below_file = CredentialsFile(file.path().join("longhaul/credentials.json"));
        assert!(below_file.load().unwrap().masters.is_empty(), "HOME=/dev/null");
        let open = file.load().err().unwrap();
        assert_eq!(open.exit, Exit::Config);
        assert!(open.hint.unwrap().contains("chmod 600"));
    }

    #[test]
    fn the_configuration_directory_overrides_the_home_and_relative_ones_do_not_count() {
        let locate = |config: Option<&str>, home: Option<&str>| {
            let found = CredentialsFile::locate(|name| {
                if name == "XDG_CONFIG_HOME" { config } else { home }.map(OsString::from)
            });
            found.map(|file| file.path().display().to_string())
        };
        let file = |dir: &str| Some(format!("{dir}/longhaul/credentials.json"));
        assert_eq!(locate(Some("/c"), Some("/h")), file("/c"));
        assert_eq!(locate(Some("c"), Some("/h")), file("/h/.config"));
        assert_eq!(locate(None, None), None);
    }

    #[test]
    fn only_a_token_is_read() {
        assert_eq!(read_token(&b" lh1_a_b\n"[..]).unwrap(), "lh1_a_b");
        for bad in ["", "password", "lh1_a b", "lh1_\u{e9}"] {
            let error = read_token(bad.as_bytes()).unwrap_err();
            assert_eq!(error.exit, Exit::Usage);
            assert!(bad.is_empty() || !error.message.contains(bad), "no secret in messages");
        }
    }
}
