//! The keys of the master and its random bytes.

use crate::wire::options::PartNameKey;
use crate::wire::ticket::{Claims, Signer, TicketError, Verifier};

/// See [`blake3::derive_key`].
const NAME_KEY_CONTEXT: &str = "longhaul 2026 key of the names of unfinished files";

pub(super) fn derive_name_key(signer_key: &[u8]) -> [u8; 32] {
    blake3::derive_key(NAME_KEY_CONTEXT, signer_key)
}

pub(super) struct Keys {
    signer: Signer,
    /// Of the tickets of this master.
    verifier: Verifier,
    /// The key of `signer` as it is stored.
    signer_key: Vec<u8>,
    name_key: PartNameKey,
    /// Random bytes are derived from this and `draw_count`.
    seed: [u8; 32],
    draw_count: u64,
}

impl Keys {
    /// `name_key`: the key for names of part files, if it is not derived from the signer's key.
    pub(super) fn new(
        signer_key: Vec<u8>,
        name_key: Option<PartNameKey>,
        seed: [u8; 32],
    ) -> Result<Keys, TicketError> {
        let name_key = name_key.unwrap_or_else(|| PartNameKey(derive_name_key(&signer_key)));
        let signer = Signer::from_pkcs8(&signer_key)?;
        let verifier = Verifier::new(&[signer.public_key()])?;
        Ok(Keys { signer, verifier, signer_key, name_key, seed, draw_count: 0 })
    }

    pub(super) fn sign(&self, claims: &Claims) -> String {
        self.signer.sign(claims)
    }

    /// The claims of a ticket of this master, however old.
    pub(super) fn verify(&self, ticket: &str) -> Option<Claims> {
        self.verifier.verify_signature(ticket).ok()
    }

    /// The public keys that verify tickets.
    pub(super) fn public_keys(&self) -> Vec<String> {
        vec![self.signer.public_key()]
    }

    /// A random number of this start.
    pub(super) fn term(&self) -> u32 {
        let [a, b, c, d, ..] = *blake3::keyed_hash(&self.seed, b"term").as_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    pub(super) fn signer_key(&self) -> &[u8] {
        &self.signer_key
    }

    pub(super) fn name_key(&self) -> PartNameKey {
        self.name_key
    }

    /// Random bytes, at most 32, that are never repeated.
    pub(super) fn draw<const N: usize>(&mut self) -> [u8; N] {
        self.draw_count += 1;
        let drawn = blake3::keyed_hash(&self.seed, &self.draw_count.to_le_bytes());
        let mut bytes = [0; N];
        bytes.copy_from_slice(&drawn.as_bytes()[..N]);
        bytes
    }
}
