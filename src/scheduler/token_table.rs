//! The tokens of operators. The API gets a snapshot of them after each commit that changed one.
//!
//! | key | record |
//! |---|---|
//! | `k/TOKEN` | a token with the digest of its secret |

use crate::wire::Digest;
use crate::wire::token::{TokenId, TokenView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What it may do.
    pub view: TokenView,
    /// BLAKE3 of the secret, which has 256 random bits.
    pub secret_digest: Digest,
}

/// Why a presented token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefusal {
    /// There is no such token, or its secret is another one.
    Unknown,
    /// It was revoked.
    Revoked,
    /// It has expired.
    Expired,
}

/// All tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenTable(BTreeMap<TokenId, TokenRecord>);

impl TokenTable {
    /// The token `id` if its secret has this digest and it is valid at `now_ms` (since 1970).
    ///
    /// # Errors
    /// See [`TokenRefusal`]; only the bearer of the secret learns more than [`TokenRefusal::Unknown`].
    pub fn verify(
        &self,
        id: &TokenId,
        secret_digest: blake3::Hash,
        now_ms: i64,
    ) -> Result<&TokenView, TokenRefusal> {
        let record = self.0.get(id).ok_or(TokenRefusal::Unknown)?;
        // The comparison of `Hash` takes the same time for all values.
        if blake3::Hash::from_bytes(record.secret_digest.0) != secret_digest {
            return Err(TokenRefusal::Unknown);
        }
        let view = &record.view;
        if view.revoked_at.is_some() {
            return Err(TokenRefusal::Revoked);
        }
        if view.expires_at.is_some_and(|end| end.as_millisecond() <= now_ms) {
            return Err(TokenRefusal::Expired);
        }
        Ok(view)
    }

    /// Whether no token was ever created, or all of them ended long ago.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn views(&self) -> impl Iterator<Item = &TokenView> {
        self.0.values().map(|record| &record.view)
    }

    /// Removes the tokens for which `is_outdated` holds, and returns their ids.
    pub(super) fn remove_if(&mut self, is_outdated: impl Fn(&TokenView) -> bool) -> Vec<TokenId> {
        self.0.extract_if(.., |_, record| is_outdated(&record.view)).map(|(id, _)| id).collect()
    }

    pub(super) fn get(&self, id: &TokenId) -> Option<&TokenRecord> {
        self.0.get(id)
    }

    pub(super) fn insert(&mut self, record: TokenRecord) {
        self.0.insert(record.view.id.clone(), record);
    }

    pub(super) fn record_keys(&self) -> impl Iterator<Item = String> {
        self.0.keys().map(token_key)
    }
}

pub(super) fn token_key(id: &TokenId) -> String {
    format!("k/{id}")
}
