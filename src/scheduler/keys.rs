//! The keys of the master and its random bytes. The key that signs tickets is replaced in two steps, so that no ticket is
//! refused meanwhile: agents get the next public key before it signs, and keep the old one until its last ticket has
//! expired.

use crate::identity::{Sealer, SealingError};
use crate::wire::options::PartNameKey;
use crate::wire::task::Base64Bytes;
use crate::wire::ticket::{
    CLOCK_LEEWAY_SECONDS, Claims, MAX_TICKET_SECONDS, Signer, TicketError, Verifier,
};
use serde::{Deserialize, Serialize};

/// See [`blake3::derive_key`].
const NAME_KEY_CONTEXT: &str = "longhaul 2026 key of the names of unfinished files";
/// What sealed text is bound to.
const TICKET_KEY_PURPOSE: &str = "longhaul ticket key";
const NAME_KEY_PURPOSE: &str = "longhaul part name key";
/// No ticket is accepted for longer than this after it was signed, in milliseconds.
pub(super) const MAX_TICKET_USE_MS: u64 =
    ((MAX_TICKET_SECONDS + CLOCK_LEEWAY_SECONDS) * 1000) as u64;

/// Why a key cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is not a key, or none can be generated.
    #[error("the key that signs tickets: {0}")]
    Ticket(#[from] TicketError),
    /// It is sealed with another key than that of this master, or damaged.
    #[error(transparent)]
    Sealing(#[from] SealingError),
}

fn derive_name_key(signer_key: &[u8]) -> [u8; 32] {
    blake3::derive_key(NAME_KEY_CONTEXT, signer_key)
}

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyUse {
    /// Agents get to know it.
    Next,
    /// It signs.
    Current,
    /// Tickets that it signed are still valid.
    Retired,
}

/// A key in the record of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredTicketKey {
    id: String,
    #[serde(rename = "use")]
    usage: KeyUse,
    /// PKCS#8, sealed.
    sealed: Base64Bytes,
}

/// The keys as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SealedKeys {
    /// None in a backup: the next load generates one.
    pub(super) ticket_keys: Vec<StoredTicketKey>,
    /// Kept when the ticket key changes, so that part files are found again.
    pub(super) sealed_name_key: Option<Base64Bytes>,
    /// Of a store that was written before keys were sealed.
    pub(super) unsealed_ticket_key: Vec<u8>,
    pub(super) unsealed_name_key: Option<Vec<u8>>,
}

struct TicketKey {
    signer: Signer,
    stored: StoredTicketKey,
    /// When its present use ends, on the scheduler's clock. Not of the current one.
    until_ms: u64,
}

impl TicketKey {
    fn new(pkcs8: &[u8], usage: KeyUse, sealer: &Sealer) -> Result<Self, KeyError> {
        let signer = Signer::from_pkcs8(pkcs8)?;
        let sealed = Base64Bytes(sealer.seal(TICKET_KEY_PURPOSE, pkcs8)?);
        let stored = StoredTicketKey { id: signer.key_id(), usage, sealed };
        Ok(TicketKey { signer, stored, until_ms: 0 })
    }

    /// Opens a stored key, which stays sealed as it is.
    fn open(stored: StoredTicketKey, sealer: &Sealer) -> Result<Self, KeyError> {
        let signer = Signer::from_pkcs8(&sealer.open(TICKET_KEY_PURPOSE, &stored.sealed.0)?)?;
        Ok(TicketKey { signer, stored, until_ms: 0 })
    }
}

pub(super) struct Keys {
    current: TicketKey,
    next: Option<TicketKey>,
    retired: Vec<TicketKey>,
    /// Of all of them.
    verifier: Verifier,
    name_key: PartNameKey,
    sealed_name_key: Base64Bytes,
    /// Random bytes are derived from this and `draw_count`.
    seed: [u8; 32],
    draw_count: u64,
}

impl Keys {
    /// Opens the keys of a record, and makes missing ones. `name_key`: the key for names of part files, if the record
    /// has none; by default it is derived from the ticket key. The uses of keys start again at `now_ms`: `notice_ms` is
    /// the time in which each agent that works gets a heartbeat's reply.
    pub(super) fn load(
        stored: SealedKeys,
        name_key: Option<PartNameKey>,
        sealer: &Sealer,
        seed: [u8; 32],
        (now_ms, notice_ms): (u64, u64),
    ) -> Result<Keys, KeyError> {
        let is_restored = stored.ticket_keys.is_empty();
        let (mut current, mut next, mut retired) = (None, None, Vec::new());
        for key in stored.ticket_keys {
            let mut key = TicketKey::open(key, sealer)?;
            match key.stored.usage {
                KeyUse::Current => current = Some(key),
                KeyUse::Next => {
                    key.until_ms = now_ms.saturating_add(notice_ms);
                    next = Some(key);
                }
                KeyUse::Retired => {
                    key.until_ms = now_ms.saturating_add(MAX_TICKET_USE_MS);
                    retired.push(key);
                }
            }
        }
        let current = match (current, stored.unsealed_ticket_key) {
            (Some(key), _) => key,
            (None, pkcs8) if !pkcs8.is_empty() => TicketKey::new(&pkcs8, KeyUse::Current, sealer)?,
            (None, _) => TicketKey::new(&Signer::generate()?, KeyUse::Current, sealer)?,
        };
        let opened = stored.sealed_name_key.map(|sealed| {
            let key = sealer.open(NAME_KEY_PURPOSE, &sealed.0)?;
            Ok::<_, SealingError>((sealed, read_name_key(key)?))
        });
        let (sealed_name_key, name_key) = match opened.transpose() {
            Ok(Some(opened)) => opened,
            Err(error) if !is_restored => return Err(error.into()),
            missing => {
                if let Err(error) = missing {
                    // Nothing else in a backup is sealed.
                    tracing::warn!(
                        "the key for the names of part files is replaced, files that are begun are sent anew: {error}"
                    );
                }
                let unsealed = stored.unsealed_name_key.map(read_name_key).transpose()?;
                let name_key = match unsealed.or(name_key) {
                    Some(key) => key,
                    None => {
                        let sealed = &current.stored.sealed.0;
                        let pkcs8 = sealer.open(TICKET_KEY_PURPOSE, sealed)?;
                        PartNameKey(derive_name_key(&pkcs8))
                    }
                };
                (Base64Bytes(sealer.seal(NAME_KEY_PURPOSE, &name_key.0)?), name_key)
            }
        };
        let verifier = Verifier::new(&[current.signer.public_key()])?;
        let mut keys = Keys {
            current,
            next,
            retired,
            verifier,
            name_key,
            sealed_name_key,
            seed,
            draw_count: 0,
        };
        keys.update_verifier()?;
        Ok(keys)
    }

    fn all(&self) -> impl Iterator<Item = &TicketKey> {
        std::iter::once(&self.current).chain(&self.next).chain(&self.retired)
    }

    fn update_verifier(&mut self) -> Result<(), TicketError> {
        self.verifier = Verifier::new(&self.public_keys())?;
        Ok(())
    }

    /// What the record of the keys holds.
    pub(super) fn stored(&self) -> SealedKeys {
        SealedKeys {
            ticket_keys: self.all().map(|key| key.stored.clone()).collect(),
            sealed_name_key: Some(self.sealed_name_key.clone()),
            ..SealedKeys::default()
        }
    }

    pub(super) fn sign(&self, claims: &Claims) -> String {
        self.current.signer.sign(claims)
    }

    /// The claims of a ticket of this master, however old.
    pub(super) fn verify(&self, ticket: &str) -> Option<Claims> {
        self.verifier.verify_signature(ticket).ok()
    }

    /// The public keys that verify tickets, the one that signs first.
    pub(super) fn public_keys(&self) -> Vec<String> {
        self.all().map(|key| key.signer.public_key()).collect()
    }

    /// Adds the key that signs from `signs_at_ms` on, unless there is one. Returns the ids of the current key and the
    /// next one, and when that signs.
    pub(super) fn add_next(
        &mut self,
        signs_at_ms: u64,
        sealer: &Sealer,
    ) -> Result<(String, String, u64), KeyError> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let mut key = TicketKey::new(&Signer::generate()?, KeyUse::Next, sealer)?;
                key.until_ms = signs_at_ms;
                key
            }
        };
        let next = self.next.insert(next);
        let planned = (self.current.stored.id.clone(), next.stored.id.clone(), next.until_ms);
        self.update_verifier()?;
        Ok(planned)
    }

    /// Begins and ends uses that are due. Returns whether the keys changed.
    pub(super) fn advance(&mut self, now_ms: u64) -> bool {
        let count = self.retired.len();
        self.retired.retain(|key| key.until_ms > now_ms);
        let mut has_changed = self.retired.len() != count;
        if let Some(mut next) = self.next.take_if(|next| next.until_ms <= now_ms) {
            next.stored.usage = KeyUse::Current;
            let mut old = std::mem::replace(&mut self.current, next);
            old.stored.usage = KeyUse::Retired;
            old.until_ms = now_ms.saturating_add(MAX_TICKET_USE_MS);
            self.retired.push(old);
            has_changed = true;
        }
        // The current key is never missing, so the verifier can be made.
        has_changed && self.update_verifier().is_ok()
    }

    pub(super) fn name_key(&self) -> PartNameKey {
        self.name_key
    }

    /// A random number of this start.
    pub(super) fn term(&self) -> u32 {
        let [a, b, c, d, ..] = *blake3::keyed_hash(&self.seed, b"term").as_bytes();
        u32::from_le_bytes([a, b, c, d])
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

fn read_name_key(bytes: Vec<u8>) -> Result<PartNameKey, SealingError> {
    bytes.try_into().map(PartNameKey).map_err(|_| SealingError::Damaged)
}
