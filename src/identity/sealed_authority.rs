//! The authority of an installation as it is stored: for the masters, which read it there, with its key sealed.
//!
//! In a rotation another authority replaces it in one commit. What is left of the former one is its certificate, and a
//! certificate of its successor that it has signed: by that, clients that have the former one trust the masters, and agents
//! each other, until they have the other one. The former key is not needed after that, and is kept nowhere.

use super::{CertificateAuthority, IdentityError, Sealer};
use crate::wire::Digest;
use crate::wire::task::Base64Bytes;
use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the sealed key is bound to.
const SEALING_PURPOSE: &str = "longhaul certificate authority";

/// An authority as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedAuthority {
    /// BLAKE3 of the certificate.
    pub hash: Digest,
    /// In PEM.
    pub(super) certificate: String,
    /// The key in PEM, sealed.
    sealed_key: Base64Bytes,
    /// The one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<ReplacedAuthority>,
}

/// An authority that another one replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedAuthority {
    /// BLAKE3 of its certificate.
    pub hash: Digest,
    /// In PEM.
    pub(super) certificate: String,
    /// A certificate of its successor that it signed, in PEM.
    pub(super) successor: String,
    /// When it was replaced. It issued nothing after that.
    pub replaced_at: Timestamp,
    /// When the last certificate of an agent that it issued expires.
    pub certificates_end_at: Timestamp,
    /// Since when its certificates are refused; `None`: they are accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

impl SealedAuthority {
    /// `authority`, which replaced no other one.
    ///
    /// # Errors
    /// The key cannot be sealed.
    pub fn seal(authority: &CertificateAuthority, sealer: &Sealer) -> Result<Self, IdentityError> {
        let sealed = sealer.seal(SEALING_PURPOSE, authority.key_pem().as_bytes());
        let sealed_key = sealed.map_err(|e| IdentityError(e.to_string()))?;
        Ok(SealedAuthority {
            hash: authority.hash().into(),
            certificate: authority.pem(),
            sealed_key: Base64Bytes(sealed_key),
            previous: None,
        })
    }

    /// An authority that replaces `former`, of which certificates of agents are valid for at most `lifetime`.
    ///
    /// # Errors
    /// It cannot be made, or its key cannot be sealed.
    pub fn replacing(
        former: &CertificateAuthority,
        sealer: &Sealer,
        lifetime: Duration,
    ) -> Result<Self, IdentityError> {
        let now = UnixTime::now();
        let (next, _) = CertificateAuthority::generate(former.installation(), now)?;
        let successor = former.sign_successor(&next, now)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let replaced_at = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
        let previous = ReplacedAuthority {
            hash: former.hash().into(),
            certificate: former.pem(),
            successor: super::authority::to_pem(&successor),
            replaced_at,
            certificates_end_at: replaced_at.checked_add(lifetime).unwrap_or(Timestamp::MAX),
            finished_at: None,
        };
        Ok(SealedAuthority { previous: Some(previous), ..Self::seal(&next, sealer)? })
    }

    /// The authority itself.
    ///
    /// # Errors
    /// The key was sealed with another one than that of `sealer`, or the record is damaged.
    pub fn open(&self, sealer: &Sealer) -> Result<CertificateAuthority, IdentityError> {
        let failed =
            |e: String| IdentityError(format!("the certificate authority in the store: {e}"));
        let key = sealer.open(SEALING_PURPOSE, &self.sealed_key.0);
        let key = key.map_err(|e| failed(e.to_string()))?;
        CertificateAuthority::from_pem(self.certificate.as_bytes(), &key).map_err(failed)
    }

    /// The hashes of the authorities of which certificates are accepted, the one that issues them first.
    pub fn accepted(&self) -> Vec<Digest> {
        let previous = self.previous.as_ref().filter(|previous| previous.finished_at.is_none());
        [self.hash].into_iter().chain(previous.map(|previous| previous.hash)).collect()
    }

    /// Whether a rotation has begun and not ended.
    pub fn is_rotating(&self) -> bool {
        self.accepted().len() > 1
    }

    /// The same, after the rotation is finished.
    #[must_use]
    pub fn finished(&self, at: Timestamp) -> Self {
        let previous = self.previous.clone();
        let previous = previous.map(|one| ReplacedAuthority { finished_at: Some(at), ..one });
        SealedAuthority { previous, ..self.clone() }
    }

    /// Whether it is this authority, or replaced it.
    pub fn succeeds(&self, hash: Digest) -> bool {
        self.hash == hash || self.previous.as_ref().is_some_and(|previous| previous.hash == hash)
    }
}
