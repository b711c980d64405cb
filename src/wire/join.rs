//! Join tokens, with which an agent gets its first certificate, and the certificates.

use super::ids::TokenId;
use super::{AbsPath, Digest, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

/// The first part of a join token: its format.
const PREFIX: &str = "lhj1";
/// The hexadecimal digits of a secret of 256 bits.
pub const SECRET_DIGITS: usize = 64;
/// The maximum number of paths of a join token.
pub const MAX_JOIN_PATHS: usize = 1_024;

/// A join token: `lhj1.AUTHORITY.ID.SECRET`. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// BLAKE3 of the certificate by which an agent recognises its master before it sends the secret.
    pub authority: Digest,
    /// The public name.
    pub id: TokenId,
    /// 64 hexadecimal digits.
    pub secret: String,
}

impl JoinToken {
    /// The digest of the secret, as it is stored.
    pub fn secret_digest(&self) -> Digest {
        blake3::hash(self.secret.as_bytes()).into()
    }

    /// The text.
    pub fn to_text(&self) -> String {
        let JoinToken { authority, id, secret } = self;
        format!("{PREFIX}.{authority}.{id}.{secret}")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl FromStr for JoinToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('.');
            let (prefix, authority) = (parts.next()?, parts.next()?);
            let (id, secret) = (parts.next()?, parts.next()?);
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let is_secret = secret.len() == SECRET_DIGITS && secret.bytes().all(is_hex);
            (prefix == PREFIX && is_secret && parts.next().is_none()).then_some(())?;
            let authority = authority.parse().ok()?;
            Some(JoinToken { authority, id: id.parse().ok()?, secret: secret.to_owned() })
        };
        parse().ok_or("is not a join token (`lhj1.…`)")
    }
}

impl Serialize for JoinToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for JoinToken {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `POST /admin/join-tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRequest {
    /// The worker of the agent.
    pub worker_id: WorkerId,
    /// Its storage paths lie at or below one of these.
    pub storage_paths: Vec<AbsPath>,
    /// The token ends after this time, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
}

/// A join token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenView {
    /// The public name.
    pub id: TokenId,
    /// See [`JoinTokenRequest::worker_id`].
    pub worker_id: WorkerId,
    /// See [`JoinTokenRequest::storage_paths`].
    pub storage_paths: Vec<AbsPath>,
    /// When it was created.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// Since when it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
    /// Since when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// The reply to `POST /admin/join-tokens`: the only one that contains the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedJoinToken {
    /// The token for the agent's `join_token_file`.
    pub secret: JoinToken,
    /// What it allows.
    pub token: JoinTokenView,
}

/// `POST /join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The token.
    pub token: JoinToken,
    /// The worker of the agent, which must be that of the token.
    pub worker_id: WorkerId,
    /// A certificate signing request (PKCS #10) in PEM; only its key is used.
    pub signing_request: String,
}

/// The reply to `POST /join` and `POST /renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// The certificate of the agent, in PEM. While one authority replaces another, a certificate follows by which the former
    /// one vouches for the other one: the agent presents both.
    pub certificate: String,
    /// The certificate of the authority that issued it, in PEM.
    pub authority: String,
    /// That of the authority before it, while certificates of that one are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_authority: Option<String>,
    /// Until when it is valid.
    pub expires_at: Timestamp,
    /// The storage paths that were granted with the join token.
    pub storage_paths: Vec<AbsPath>,
}

/// The reply to `POST /workers/{id}/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeWorkerReply {
    /// The worker.
    pub worker_id: WorkerId,
    /// Since when its certificate is refused.
    pub revoked_at: Timestamp,
    /// The number of its tasks that were requeued.
    pub requeued: u64,
}

/// A worker in `GET /workers` with a certificate that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedWorker {
    /// The worker.
    pub worker_id: WorkerId,
    /// Since when.
    pub revoked_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_is_read_as_it_is_written_and_does_not_show_its_secret() {
        let (hash, secret) = ("ab".repeat(32), "0c".repeat(32));
        let text = format!("lhj1.{hash}.0123456789ab.{secret}");
        let token: JoinToken = text.parse().unwrap();
        assert_eq!(token.to_text(), text);
        assert!(!format!("{token:?}").contains(&secret));
        for bad in [
            "",
            "lhj1",
            &text.replace("lhj1", "lhj2"),
            &format!("{text}.x"),
            &format!("{text}0"),
            &text.replace("0123456789ab", "0123456789aB"),
            &text.replace(&hash, &hash[1..]),
            &text.replace(&secret, &secret.to_uppercase()),
            &text.replace('.', "_"),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
