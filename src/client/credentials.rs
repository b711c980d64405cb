//! The tokens that a client sends. A token goes to the master it was stored for, and over plain HTTP only to this host.

use super::url_text::is_loopback;
use super::{ClientError, Result};
use reqwest::Url;
use std::collections::BTreeMap;
use std::fmt;

/// A token for each master.
#[derive(Clone, Default)]
pub enum Credentials {
    /// No token.
    #[default]
    Empty,
    /// One token for all masters of the client.
    Token(String),
    /// Tokens by the base URL of their master.
    ByUrl(BTreeMap<String, String>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// The token for a base URL.
    ///
    /// # Errors
    /// [`ClientError::InvalidUrl`]: it would be sent in clear to another host.
    pub(super) fn token_for(&self, base: &Url) -> Result<Option<String>> {
        let text = base.as_str().trim_end_matches('/');
        let token = match self {
            Credentials::Empty => None,
            Credentials::Token(token) => Some(token),
            Credentials::ByUrl(tokens) => tokens.get(text),
        };
        if token.is_some() && base.scheme() == "http" && !is_loopback(base) {
            return Err(ClientError::InvalidUrl {
                url: text.to_owned(),
                message: "a token is not sent over plain HTTP to another host, where others could read it; \
                          run the command on the master's host, or through a tunnel to it: \
                          ssh -L 8888:127.0.0.1:8888 HOST"
                    .to_owned(),
            });
        }
        Ok(token.cloned())
    }
}
