//! Tickets: the permission, as part of an assignment, to act on one destination root. The master signs them
//! (Ed25519, RFC 8032), agents have only the public key: an agent cannot forge a ticket.

use super::options::WriteRules;
use super::{Digest, WorkerId};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The lifetime of a ticket, in seconds: longer than any task should take, and short enough that
/// a leaked one soon becomes invalid.
pub const TICKET_LIFETIME_SECONDS: i64 = 15 * 60;
/// The tolerance for clocks and queues after the expiry, in seconds.
pub const CLOCK_LEEWAY_SECONDS: i64 = 60;

/// The content of a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Claims {
    /// The number of the sync; part of the names of part files.
    #[n(0)]
    pub sync: u64,
    /// The id of the sync, for logs.
    #[n(1)]
    pub request_id: String,
    /// The assignment that carries the ticket.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub assignment: [u8; 16],
    /// The attempt of the task, from 1.
    #[n(3)]
    pub attempt: u32,
    /// The agent that holds the assignment.
    #[n(4)]
    pub worker: String,
    /// The only root that may be written.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub destination: Vec<u8>,
    /// The expiry, in seconds since 1970 by the clock of the master.
    #[n(6)]
    pub expires: i64,
    /// The rules for all writes.
    #[n(7)]
    pub rules: WriteRules,
    /// The permission to prune; `None`: no permission, also with `rules` of a mirror.
    #[n(8)]
    pub prune: Option<PrunePermit>,
    /// The storage root of each worker ([`Claims::restrict_to_root`]), both as digests, because there may be many workers.
    #[n(9)]
    pub roots: BTreeMap<u64, u64>,
}

/// The permission of a prune task.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PrunePermit {
    /// Count extraneous entries.
    #[n(0)]
    Count,
    /// Count and delete them.
    #[n(1)]
    Delete(#[n(0)] DeleteGrant),
}

/// The limit of deletions. The agent counts its deletions for each grant, over all tickets with this grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct DeleteGrant {
    /// Random for each grant.
    #[n(0)]
    pub grant_id: u64,
    /// The maximum number of deletions for the grant.
    #[n(1)]
    pub max_entries: u64,
    /// The incarnation of the only agent that may delete: two agents would each delete the maximum.
    #[n(2)]
    pub incarnation: String,
}

impl Claims {
    /// Restricts `worker` to the storage root `root` (a [`boot_and_root`](super::worker::boot_and_root)): writes to
    /// another one would count as writes to this one.
    pub fn restrict_to_root(&mut self, worker: &WorkerId, root: &str) {
        self.roots.insert(short_digest(worker.as_str()), short_digest(root));
    }

    /// Whether `worker` may write to the storage root `root`. Without a restriction it may write to any.
    pub fn allows_root(&self, worker: &WorkerId, root: &str) -> bool {
        let expected = self.roots.get(&short_digest(worker.as_str()));
        expected.is_none_or(|expected| *expected == short_digest(root))
    }
}

fn short_digest(text: &str) -> u64 {
    u64::from_le_bytes(Digest::from(blake3::hash(text.as_bytes())).prefix())
}

/// The reason why a ticket is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Invalid encoding.
    #[error("the ticket cannot be read")]
    Malformed,
    /// The signature is not that of the master.
    #[error("the ticket's signature does not match the master's key")]
    Forged,
    /// Expired by the clock of the master.
    #[error("the ticket expired {0} s ago")]
    Expired(i64),
}

/// The private key of the master.
pub struct Signer {
    pair: Ed25519KeyPair,
}

impl Signer {
    /// Generates a key as PKCS#8 (RFC 8410), for the store.
    ///
    /// # Errors
    /// No random numbers are available.
    pub fn generate() -> Result<Vec<u8>, TicketError> {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())
            .map_err(|_| TicketError::Malformed)?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads a key of [`Signer::generate`].
    ///
    /// # Errors
    /// Bytes that are not such a key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, TicketError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| TicketError::Malformed)?;
        Ok(Signer { pair })
    }

    /// The public key, for heartbeat replies.
    pub fn public_key(&self) -> String {
        B64.encode(self.pair.public_key())
    }

    /// A ticket: `base64url(claims).base64url(signature)`.
    pub fn sign(&self, claims: &Claims) -> String {
        let body = minicbor::to_vec(claims).unwrap_or_default();
        let signature = self.pair.sign(&body);
        format!("{}.{}", B64.encode(&body), B64.encode(signature))
    }
}

/// The public key of the master.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    key: Vec<u8>,
}

impl Verifier {
    /// Reads [`Signer::public_key`].
    ///
    /// # Errors
    /// Text that is not an Ed25519 public key.
    pub fn new(public_key: &str) -> Result<Self, TicketError> {
        let key = B64.decode(public_key).map_err(|_| TicketError::Malformed)?;
        if key.len() != 32 {
            return Err(TicketError::Malformed);
        }
        Ok(Verifier { key })
    }

    /// The claims of `ticket`, at `now` (seconds since 1970 by the clock of the master).
    ///
    /// # Errors
    /// A malformed, forged or expired ticket. Claims are decoded only after the verification of the signature.
    pub fn verify(&self, ticket: &str, now: i64) -> Result<Claims, TicketError> {
        let (body, signature) = ticket.split_once('.').ok_or(TicketError::Malformed)?;
        let body = B64.decode(body).map_err(|_| TicketError::Malformed)?;
        let signature = B64.decode(signature).map_err(|_| TicketError::Malformed)?;
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(&body, &signature)
            .map_err(|_| TicketError::Forged)?;
        let claims: Claims = minicbor::decode(&body).map_err(|_| TicketError::Malformed)?;
        let late = now - claims.expires;
        if late > CLOCK_LEEWAY_SECONDS {
            return Err(TicketError::Expired(late));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims() -> Claims {
        Claims {
            sync: 7,
            request_id: "demo-1".into(),
            assignment: [9; 16],
            attempt: 1,
            worker: "worker-a".into(),
            destination: b"/data/\xff".to_vec(),
            expires: 1_000,
            rules: WriteRules::default(),
            prune: None,
            roots: BTreeMap::new(),
        }
    }

    #[test]
    fn a_ticket_expires_after_its_lifetime_and_the_tolerance() {
        let claims = claims();
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let verifier = Verifier::new(&signer.public_key()).unwrap();
        let ticket = signer.sign(&claims);
        assert!(verifier.verify(&ticket, 1_000 + CLOCK_LEEWAY_SECONDS).is_ok());
        assert!(verifier.verify(&ticket, 1_001 + CLOCK_LEEWAY_SECONDS).is_err());
        // A clock far in the past does not invalidate a ticket.
        assert!(verifier.verify(&ticket, 0).is_ok());
    }

    #[test]
    fn only_unexpired_tickets_signed_by_the_master_are_accepted() {
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let other = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let verifier = Verifier::new(&signer.public_key()).unwrap();
        let ticket = signer.sign(&claims());
        assert_eq!(verifier.verify(&ticket, 900), Ok(claims()));
        assert_eq!(verifier.verify(&ticket, 1_000 + CLOCK_LEEWAY_SECONDS), Ok(claims()));
        assert_eq!(verifier.verify(&ticket, 1_061), Err(TicketError::Expired(61)));
        assert_eq!(verifier.verify(&other.sign(&claims()), 900), Err(TicketError::Forged));
        // One bit of the claims flipped under the old signature.
        let (body, signature) = ticket.split_once('.').unwrap();
        let mut raw = B64.decode(body).unwrap();
        raw[3] ^= 1;
        let forged = format!("{}.{signature}", B64.encode(raw));
        assert_eq!(verifier.verify(&forged, 900), Err(TicketError::Forged));
        for bad in ["", ".", "x", "!.!"] {
            assert!(verifier.verify(bad, 900).is_err());
        }
    }

    proptest! {
        #[test]
        fn edited_tickets_are_rejected_without_a_panic(
            edits in crate::wire::fuzz::any_edits(),
            text: String,
        ) {
            let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
            let verifier = Verifier::new(&signer.public_key()).unwrap();
            let ticket = signer.sign(&claims());
            let other = crate::wire::fuzz::apply_edits(ticket.as_bytes(), &edits);
            let other = String::from_utf8_lossy(&other).into_owned();
            // Edits may cancel each other.
            prop_assert!(other == ticket || verifier.verify(&other, 900).is_err(), "{}", other);
            prop_assert!(verifier.verify(&text, 900).is_err());
            let _ = Verifier::new(&text);
            let _ = Signer::from_pkcs8(text.as_bytes());
        }
    }
}
