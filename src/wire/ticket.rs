//! Tickets: the permission, as part of an assignment, to act on one destination root. The master signs them
//! (Ed25519, RFC 8032), agents have only the public key: an agent cannot forge a ticket.

use super::options::WriteRules;
use super::run_as::RunAs;
use super::{Digest, WorkerId};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Agents refuse a ticket that is valid for longer than this, in seconds: with a stolen key one could be signed for
/// years.
pub const MAX_TICKET_SECONDS: i64 = 15 * 60;
/// The tolerance for clocks and queues after the expiry, in seconds.
pub const CLOCK_LEEWAY_SECONDS: i64 = 60;

/// A ticket is a few hundred bytes, one path and some bytes for each receiver; nothing longer is read.
pub const MAX_TICKET_BYTES: usize = 16 << 10;

/// The lifetime of the ticket of an assignment with this lease, in seconds: two leases, so that a ticket outlives the
/// work of an agent that cannot reach a master. Heartbeat replies renew it.
pub fn lifetime_seconds(lease: Duration) -> i64 {
    let seconds = lease.as_millis().saturating_mul(2).div_ceil(1000);
    // The clocks of master and agent, as an agent compares them, differ by some seconds.
    let max = MAX_TICKET_SECONDS - CLOCK_LEEWAY_SECONDS;
    i64::try_from(seconds).unwrap_or(max).clamp(1, max)
}

/// A ticket as it is sent. Its holder may use it, so `Debug` does not show it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedTicket(String);

impl std::fmt::Debug for SignedTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignedTicket(…)")
    }
}

impl std::ops::Deref for SignedTicket {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<String> for SignedTicket {
    fn from(ticket: String) -> Self {
        SignedTicket(ticket)
    }
}

/// A request between agents that needs a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Compare a manifest with what is present, and make all that needs no content.
    Offer,
    /// Write small files.
    Pack,
    /// Write a range of a large file.
    Range,
    /// Read digests of the blocks of a present file.
    BlockDigests,
    /// Find, or delete, extraneous entries.
    Prune,
    /// Remove the auxiliary files for hard links.
    CleanUp,
    /// Check whether the root can be written.
    RootCheck,
}

/// The requests that a ticket allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Verbs(#[n(0)] u16);

impl Verbs {
    /// These.
    pub const fn of(verbs: &[Verb]) -> Verbs {
        let (mut bits, mut i) = (0, 0);
        while i < verbs.len() {
            bits |= 1 << verbs[i] as u16;
            i += 1;
        }
        Verbs(bits)
    }

    /// Whether `verb` is one of them.
    pub fn allows(self, verb: Verb) -> bool {
        self.0 & Verbs::of(&[verb]).0 != 0
    }

    /// Whether `others` has all of them.
    pub fn are_within(self, others: Verbs) -> bool {
        self.0 & !others.0 == 0
    }
}

#[cfg(test)]
impl Verbs {
    /// Every verb. No task needs that.
    pub(crate) const ALL: Verbs = Verbs::of(&[
        Verb::Offer,
        Verb::Pack,
        Verb::Range,
        Verb::BlockDigests,
        Verb::Prune,
        Verb::CleanUp,
        Verb::RootCheck,
    ]);
}

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
    /// The requests that the task needs.
    #[n(10)]
    pub verbs: Verbs,
    /// The only workers that accept it ([`Claims::allow_receiver`]), as digests, because there may be many.
    #[n(11)]
    pub receivers: BTreeSet<u64>,
    /// The user as which both ends act; `None`: each acts as its own.
    #[n(12)]
    pub run_as: Option<RunAs>,
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

    /// Lets `worker` accept the ticket.
    pub fn allow_receiver(&mut self, worker: &WorkerId) {
        self.receivers.insert(short_digest(worker.as_str()));
    }

    /// Whether `worker` may accept the ticket.
    pub fn allows_receiver(&self, worker: &WorkerId) -> bool {
        self.receivers.contains(&short_digest(worker.as_str()))
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
    /// The key that signed it is not one of the master's, or not any more.
    #[error("the ticket is signed with a key that the master does not use")]
    UnknownKey,
    /// The master signs no ticket for so long.
    #[error("the ticket is valid for {0} s; more than {MAX_TICKET_SECONDS} s are refused")]
    TooLong(i64),
}

/// The id of a public key in tickets: a prefix of its digest, in hexadecimal digits.
fn key_id(public_key: &[u8]) -> String {
    format!("{:016x}", u64::from_be_bytes(Digest::from(blake3::hash(public_key)).prefix()))
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

    /// The id of the key in tickets.
    pub fn key_id(&self) -> String {
        key_id(self.pair.public_key().as_ref())
    }

    /// A ticket: `key_id.base64url(claims).base64url(signature)`.
    pub fn sign(&self, claims: &Claims) -> String {
        let body = minicbor::to_vec(claims).unwrap_or_default();
        let signature = self.pair.sign(&body);
        let key = self.key_id();
        format!("{key}.{}.{}", B64.encode(&body), B64.encode(signature))
    }
}

/// The public keys of the master: while a key is replaced there are two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    /// By [`key_id`].
    keys: BTreeMap<String, Vec<u8>>,
}

impl Verifier {
    /// Reads one or more [`Signer::public_key`]s.
    ///
    /// # Errors
    /// No key, or text that is not an Ed25519 public key.
    pub fn new<T: AsRef<str>>(public_keys: &[T]) -> Result<Self, TicketError> {
        let mut keys = BTreeMap::new();
        for text in public_keys {
            let key = B64.decode(text.as_ref()).map_err(|_| TicketError::Malformed)?;
            if key.len() != 32 {
                return Err(TicketError::Malformed);
            }
            keys.insert(key_id(&key), key);
        }
        if keys.is_empty() { Err(TicketError::Malformed) } else { Ok(Verifier { keys }) }
    }

    /// Whether both have a key in common: then they are of one installation.
    pub fn shares_key_with(&self, other: &Verifier) -> bool {
        self.keys.keys().any(|id| other.keys.contains_key(id))
    }

    /// The claims of `ticket`, at `now` (seconds since 1970 by the clock of the master).
    ///
    /// # Errors
    /// A malformed, forged or expired ticket, or one that is valid for too long.
    pub fn verify(&self, ticket: &str, now: i64) -> Result<Claims, TicketError> {
        let claims = self.verify_signature(ticket)?;
        let late = now.saturating_sub(claims.expires);
        if late > CLOCK_LEEWAY_SECONDS {
            return Err(TicketError::Expired(late));
        }
        let left = claims.expires.saturating_sub(now);
        if left > MAX_TICKET_SECONDS {
            return Err(TicketError::TooLong(left));
        }
        Ok(claims)
    }

    /// The claims of `ticket`, however old.
    ///
    /// # Errors
    /// A malformed or forged ticket. Claims are decoded only after the verification of the signature.
    pub fn verify_signature(&self, ticket: &str) -> Result<Claims, TicketError> {
        let (key, signed) = ticket.split_once('.').ok_or(TicketError::Malformed)?;
        let (body, signature) = signed.split_once('.').ok_or(TicketError::Malformed)?;
        let body = B64.decode(body).map_err(|_| TicketError::Malformed)?;
        let signature = B64.decode(signature).map_err(|_| TicketError::Malformed)?;
        let key = self.keys.get(key).ok_or(TicketError::UnknownKey)?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&body, &signature)
            .map_err(|_| TicketError::Forged)?;
        minicbor::decode(&body).map_err(|_| TicketError::Malformed)
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
            verbs: Verbs::ALL,
            receivers: BTreeSet::new(),
            run_as: None,
        }
    }

    #[test]
    fn a_ticket_expires_after_its_lifetime_and_the_tolerance() {
        let claims = claims();
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let verifier = Verifier::new(&[signer.public_key()]).unwrap();
        let ticket = signer.sign(&claims);
        assert!(verifier.verify(&ticket, 1_000 + CLOCK_LEEWAY_SECONDS).is_ok());
        assert!(verifier.verify(&ticket, 1_001 + CLOCK_LEEWAY_SECONDS).is_err());
        // A ticket for longer than the master signs one is refused, whatever its signature.
        assert!(verifier.verify(&ticket, 1_000 - MAX_TICKET_SECONDS).is_ok());
        let early = verifier.verify(&ticket, 999 - MAX_TICKET_SECONDS);
        assert_eq!(early, Err(TicketError::TooLong(MAX_TICKET_SECONDS + 1)));
        assert_eq!(verifier.verify_signature(&ticket), Ok(claims));
    }

    #[test]
    fn a_ticket_lives_for_two_leases_and_less_than_agents_refuse() {
        let life = |ms| lifetime_seconds(Duration::from_millis(ms));
        assert_eq!([0, 300, 501, 30_000].map(life), [1, 1, 2, 60]);
        assert_eq!(life(u64::MAX), MAX_TICKET_SECONDS - CLOCK_LEEWAY_SECONDS);
    }

    #[test]
    fn a_ticket_names_its_key_and_only_keys_of_the_master_are_accepted() {
        let [old, new, other] =
            [(); 3].map(|()| Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap());
        let both = Verifier::new(&[old.public_key(), new.public_key()]).unwrap();
        for signer in [&old, &new] {
            assert_eq!(both.verify(&signer.sign(&claims()), 900), Ok(claims()));
        }
        assert_eq!(both.verify(&other.sign(&claims()), 900), Err(TicketError::UnknownKey));
        // The id of a known key before the signature of another one.
        let (ours, theirs) = (old.sign(&claims()), other.sign(&claims()));
        let id = ours.split_once('.').unwrap().0;
        let mixed = format!("{id}.{}", theirs.split_once('.').unwrap().1);
        assert_eq!(both.verify(&mixed, 900), Err(TicketError::Forged));
        assert!(Verifier::new::<&str>(&[]).is_err());
        let only = |signer: &Signer| Verifier::new(&[signer.public_key()]).unwrap();
        assert!(both.shares_key_with(&only(&new)) && !both.shares_key_with(&only(&other)));
    }

    #[test]
    fn a_ticket_is_for_the_named_receivers_and_verbs() {
        let mut claims = claims();
        claims.verbs = Verbs::of(&[Verb::Offer, Verb::CleanUp]);
        let [b, c] = ["b", "c"].map(|id| id.parse::<WorkerId>().unwrap());
        assert!(!claims.allows_receiver(&b));
        claims.allow_receiver(&b);
        assert!(claims.allows_receiver(&b) && !claims.allows_receiver(&c));
        assert!(claims.verbs.allows(Verb::Offer) && !claims.verbs.allows(Verb::Pack));
        assert!(!claims.verbs.are_within(Verbs::of(&[Verb::Offer])));
        assert!(claims.verbs.are_within(Verbs::ALL) && Verbs::default().are_within(claims.verbs));
    }

    #[test]
    fn only_unexpired_tickets_signed_by_the_master_are_accepted() {
        let signer = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let other = Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap();
        let verifier = Verifier::new(&[signer.public_key()]).unwrap();
        let ticket = signer.sign(&claims());
        assert_eq!(verifier.verify(&ticket, 900), Ok(claims()));
        assert_eq!(verifier.verify(&ticket, 1_000 + CLOCK_LEEWAY_SECONDS), Ok(claims()));
        assert_eq!(verifier.verify(&ticket, 1_061), Err(TicketError::Expired(61)));
        assert_eq!(verifier.verify(&other.sign(&claims()), 900), Err(TicketError::UnknownKey));
        // One bit of the claims flipped under the old signature.
        let [key, body, signature] = ticket.split('.').collect::<Vec<_>>()[..] else { panic!() };
        let mut raw = B64.decode(body).unwrap();
        raw[3] ^= 1;
        let forged = format!("{key}.{}.{signature}", B64.encode(raw));
        assert_eq!(verifier.verify(&forged, 900), Err(TicketError::Forged));
        for bad in ["", ".", "x", "..", "!.!", "!.!.!", "0.AA.AA"] {
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
            let verifier = Verifier::new(&[signer.public_key()]).unwrap();
            let ticket = signer.sign(&claims());
            let other = crate::wire::fuzz::apply_edits(ticket.as_bytes(), &edits);
            let other = String::from_utf8_lossy(&other).into_owned();
            // Edits may cancel each other.
            prop_assert!(other == ticket || verifier.verify(&other, 900).is_err(), "{}", other);
            prop_assert!(verifier.verify(&text, 900).is_err());
            let _ = Verifier::new(&[&text]);
            let _ = Signer::from_pkcs8(text.as_bytes());
        }
    }
}
