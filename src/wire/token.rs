//! Tokens of operators: what they may do, as the API shows it. The secret of a token is in one reply only; the master
//! keeps a digest of it.

use super::AbsPath;
pub use super::ids::TokenId;
use super::join::JoinTokenView;
use super::run_as::RunAs;
use super::text_enum::text_enum;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The longest label of a token, in bytes.
pub const MAX_LABEL_BYTES: usize = 128;
/// The most scopes of a token.
pub const MAX_SCOPES: usize = 64;

text_enum! {
    /// What the bearer of a token may do. Each role includes those before it.
    #[derive(PartialOrd, Ord)]
    pub enum Role {
        /// Read syncs within the scopes, workers and storages.
        Viewer = "viewer",
        /// Submit and change syncs within the scopes.
        Operator = "operator",
        /// Everything that an operator's command does, without scopes.
        Admin = "admin",
    }
}

text_enum! {
    /// An option of a sync that an operator may use only with this right.
    pub enum Right {
        /// Mirrors (`options.delete`).
        Delete = "delete",
        /// Another owner or group (`options.chown`).
        Chown = "chown",
        /// The targets of symbolic links (`options.links: copy`).
        FollowLinks = "follow_links",
    }
}

/// The paths of the syncs that a token is for: the source is `from` or below it, the destination `to` or below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathScope {
    /// The source.
    pub from: AbsPath,
    /// The destination.
    pub to: AbsPath,
}

impl PathScope {
    /// Whether a sync from `source` to `destination` lies within, by whole path components.
    pub fn contains(&self, source: &AbsPath, destination: &AbsPath) -> bool {
        self.from.contains(source) && self.to.contains(destination)
    }
}

/// `POST /admin/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The role.
    pub role: Role,
    /// Needed for each role but `admin`, which has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<PathScope>,
    /// For the role `operator`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may: Vec<Right>,
    /// The user as which agents act for its syncs; not for the role `admin`. Without it they act as themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<RunAs>,
    /// The token ends after this time, in seconds; without it it does not end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// The purpose or the bearer, for lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// The public name.
    pub id: TokenId,
    /// See [`TokenRequest::role`].
    pub role: Role,
    /// See [`TokenRequest::scopes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<PathScope>,
    /// See [`TokenRequest::may`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may: Vec<Right>,
    /// See [`TokenRequest::run_as`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<RunAs>,
    /// See [`TokenRequest::label`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Since when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// The reply to `POST /admin/tokens`: the only one that contains the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// The token for `Authorization: Bearer`.
    pub secret: String,
    /// What it may do.
    pub token: TokenView,
}

impl fmt::Debug for CreatedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedToken").field("token", &self.token).finish_non_exhaustive()
    }
}

/// `GET /admin/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// In the order of their creation; revoked and expired ones for a month.
    pub tokens: Vec<TokenView>,
    /// The join tokens of agents, in the order of their creation; used, revoked and expired ones for a month.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join_tokens: Vec<JoinTokenView>,
}

/// `GET /auth/status`: as what the master serves the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthStatus {
    /// In words, e.g. `uid 0 of this host`.
    pub principal: String,
    /// `None`: no route of operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The token, if one was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> AbsPath {
        AbsPath::new(text).unwrap()
    }

    #[test]
    fn a_scope_holds_whole_path_components_of_both_sides() {
        let scope = PathScope { from: path("/data/a"), to: path("/arch") };
        for (source, destination, expected) in [
            ("/data/a", "/arch", true),
            ("/data/a/x", "/arch/y/z", true),
            ("/data/ab", "/arch", false),
            ("/data/a", "/archive", false),
            ("/data", "/arch", false),
            ("/arch", "/data/a", false),
            ("/data/a", "/", false),
        ] {
            let found = scope.contains(&path(source), &path(destination));
            assert_eq!(found, expected, "{source} {destination}");
        }
        let all = PathScope { from: path("/"), to: path("/") };
        assert!(all.contains(&path("/x"), &path("/y")));
    }

    #[test]
    fn roles_include_those_before_them_and_ids_are_hexadecimal() {
        assert!(Role::Viewer < Role::Operator && Role::Operator < Role::Admin);
        assert!("0123456789ab".parse::<TokenId>().is_ok());
        for bad in ["", "0123456789a", "0123456789abc", "0123456789aB", "0123456789a_"] {
            assert!(bad.parse::<TokenId>().is_err(), "{bad}");
        }
    }
}
