//! The token of the first administrator, made at the first start: for commands from other hosts and of other users.

use super::http::new_token;
use crate::scheduler::TokenRecord;
use crate::util::private_files;
use crate::wire::token::{Role, TokenRequest};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// The name of the file in the `data_dir`.
const FILE_NAME: &str = "admin.token";

/// The file of the token. The default makes none.
#[derive(Debug, Clone, Default)]
pub(super) struct AdminTokenFile(Option<PathBuf>);

impl AdminTokenFile {
    pub(super) fn in_dir(data_dir: &Path) -> Self {
        AdminTokenFile(Some(data_dir.join(FILE_NAME)))
    }

    /// Makes a token and writes it to the file. `None`: no token is wanted, or the file cannot be written, which is
    /// reported. Blocks.
    pub(super) fn create(&self) -> Option<TokenRecord> {
        let file = self.0.as_deref()?;
        let request = TokenRequest {
            role: Role::Admin,
            scopes: Vec::new(),
            may: Vec::new(),
            run_as: None,
            ttl_seconds: None,
            label: Some("first administrator".to_owned()),
        };
        let made = new_token(request, Timestamp::now()).map_err(|problem| problem.detail);
        let written = made.and_then(|(record, text)| {
            let written = private_files::replace_file(file, format!("{text}\n").as_bytes());
            written.map(|()| record).map_err(|e| e.to_string())
        });
        match written {
            Ok(record) => {
                tracing::info!(file = %file.display(), token = %record.view.id, "the token of the first administrator");
                Some(record)
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "no token of an administrator is made; root and the master's user need none on this host");
                None
            }
        }
    }
}
