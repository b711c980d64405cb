//! Tickets: the permission, inside an assignment, to act on one destination root. The master signs
//! (Ed25519, RFC 8032), agents hold only the public half: one agent cannot forge for another.

use super::options::WriteRules;
use super::{AbsPath, AssignmentId, RequestId, SyncNo, WorkerId};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long a ticket is good for, in seconds: longer than any task should take, short enough that
/// one that leaks is soon worth nothing.
pub const TICKET_LIFETIME_SECONDS: i64 = 15 * 60;
/// How far expiry is stretched for clocks and queues, in seconds.
pub const CLOCK_LEEWAY_SECONDS: i64 = 60;

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Claims {
    /// The master's number of the sync; part of the names of part files.
    #[n(0)]
    pub sync: u64,
    /// The operator's name of the sync, for logs.
    #[n(1)]
    pub request_id: String,
    /// The lease under which the holder acts.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub assignment: [u8; 16],
    /// Its attempt, from 1.
    #[n(3)]
    pub attempt: u32,
    /// The agent that it was given to.
    #[n(4)]
    pub worker: String,
    /// The only root that may be written below (and at).
    #[cbor(n(5), with = "minicbor::bytes")]
    pub destination: Vec<u8>,
    /// Seconds since 1970 by the master's clock.
    #[n(6)]
    pub expires: i64,
    /// How it may be written.
    #[n(7)]
    pub rules: WriteRules,
    /// What may be pruned; `None`: nothing, also where `rules` are of a mirror.
    #[n(8)]
    pub prune: Option<PrunePermit>,
    /// By worker, the storage root that it may act on ([`Claims::restrict_to_root`]), both as their digests: there may be
    /// many workers.
    #[n(9)]
    pub roots: BTreeMap<u64, u64>,
}

/// What the ticket of a prune task allows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PrunePermit {
    /// Extra entries are counted.
    #[n(0)]
    Count,
    /// … and deleted.
    #[n(1)]
    Delete(#[n(0)] DeleteGrant),
}

/// How much may be deleted, and where. The agent counts what it deletes under a grant, over all tickets of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct DeleteGrant {
    /// Drawn for each grant.
    #[n(0)]
    pub grant_id: u64,
    /// At most so many entries are deleted under the grant.
    #[n(1)]
    pub max_entries: u64,
    /// The incarnation of the only agent that may delete: two agents would each delete as many.
    #[n(2)]
    pub incarnation: String,
}

impl Claims {
    /// The claims of an assignment, from `now` (seconds since 1970).
    #[expect(clippy::too_many_arguments, reason = "each is a claim of its own")]
    pub fn new(
        sync: SyncNo,
        request_id: &RequestId,
        assignment: AssignmentId,
        attempt: u32,
        worker: &WorkerId,
        destination: &AbsPath,
        now: i64,
        rules: WriteRules,
        prune: Option<PrunePermit>,
    ) -> Self {
        Claims {
            sync: sync.0,
            request_id: request_id.to_string(),
            assignment: assignment.0,
            attempt,
            worker: worker.to_string(),
            destination: destination.as_bytes().to_vec(),
            expires: now + TICKET_LIFETIME_SECONDS,
            rules,
            prune,
            roots: BTreeMap::new(),
        }
    }

    /// Lets `worker` act on the storage root with the id `root` only: what it did to another one would be taken for
    /// done to this one.
    pub fn restrict_to_root(&mut self, worker: &WorkerId, root: &str) {
        self.roots.insert(short_digest(worker.as_str()), short_digest(root));
    }

    /// Whether `worker` may act on the storage root with the id `root`; any, where none is named.
    pub fn allows_root(&self, worker: &WorkerId, root: &str) -> bool {
        let expected = self.roots.get(&short_digest(worker.as_str()));
        expected.is_none_or(|expected| *expected == short_digest(root))
    }
}

fn short_digest(text: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// Why a ticket was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not of the expected shape.
    #[error("the ticket cannot be read")]
    Malformed,
    /// Signed by nobody we know.
    #[error("the ticket's signature does not match the master's key")]
    Forged,
    /// Too old by the master's clock.
    #[error("the ticket expired {0} s ago")]
    Expired(i64),
}

/// The master's half.
pub struct Signer {
    pair: Ed25519KeyPair,
}

impl Signer {
    /// A new key as PKCS#8 (RFC 8410), to be kept in the store.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> Result<Vec<u8>, TicketError> {
        let document = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())
            .map_err(|_| TicketError::Malformed)?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads what [`Signer::generate`] made.
    ///
    /// # Errors
    /// Bytes that are no such key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, TicketError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| TicketError::Malformed)?;
        Ok(Signer { pair })
    }

    /// The public half, for heartbeat replies.
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

/// The agents' half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    key: Vec<u8>,
}

impl Verifier {
    /// Reads [`Signer::public_key`].
    ///
    /// # Errors
    /// Text that is no Ed25519 public key.
    pub fn new(public_key: &str) -> Result<Self, TicketError> {
        let key = B64.decode(public_key).map_err(|_| TicketError::Malformed)?;
        if key.len() != 32 {
            return Err(TicketError::Malformed);
        }
        Ok(Verifier { key })
    }

    /// What `ticket` allows, at `now` (seconds since 1970 by the master's clock).
    ///
    /// # Errors
    /// A ticket that is broken, forged or expired. Claims are looked at only after the signature.
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
    fn a_ticket_carries_its_assignment_and_expires() {
        let claims = Claims::new(
            SyncNo(7),
            &"demo-1".parse().unwrap(),
            AssignmentId([9; 16]),
            1,
            &"worker-a".parse().unwrap(),
            &AbsPath::new(b"/data/\xff".as_slice()).unwrap(),
            1_000 - TICKET_LIFETIME_SECONDS,
            WriteRules::default(),
            None,
        );
        assert_eq!(claims, self::claims());
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let verifier = Verifier::new(&signer.public_key()).unwrap();
        let ticket = signer.sign(&claims);
        assert!(verifier.verify(&ticket, 1_000 + CLOCK_LEEWAY_SECONDS).is_ok());
        assert!(verifier.verify(&ticket, 1_001 + CLOCK_LEEWAY_SECONDS).is_err());
        // An agent with a clock of its own far in the past is no reason to refuse.
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
            // Edits may take each other back.
            prop_assert!(other == ticket || verifier.verify(&other, 900).is_err(), "{}", other);
            prop_assert!(verifier.verify(&text, 900).is_err());
            let _ = Verifier::new(&text);
            let _ = Signer::from_pkcs8(text.as_bytes());
        }
    }
}
