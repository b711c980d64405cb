//! The store of the leader's state, which outlives the leader.
//!
//! A store has few functions: leadership, records, blobs, and one atomic batch of writes at a time. The master keeps
//! its whole state in memory; it reads the store once, after its election, and only writes after that.
//!
//! # Why a commit is safe
//!
//! - **One writer.** [`Store::acquire`] starts a term with a higher epoch than all terms before, and every commit first
//!   checks its epoch. A deposed leader cannot write, and gets [`StoreError::Deposed`]. Epochs in Redis are not a
//!   plain counter: if Redis loses writes on a fail-over, a counter goes back and returns an epoch twice. They follow the
//!   clock of the server, and the session id of the handle is part of the check.
//! - **No gap.** A commit names the number of the commit before it. If that is not the last one in the store, the store
//!   was rolled back or emptied ([`StoreError::DataLost`]), and the leader writes its whole state back
//!   ([`Fence::after_loss`]).
//! - **A repeat is harmless.** A commit is sent again unchanged after its reply was lost. The store knows the digest of
//!   the last batch and returns the same reply. A copy that the network delivers late has no place in the sequence and
//!   changes nothing.
//! - **All or nothing.** No reader and no crash sees half of a batch.
//!
//! # Backends
//!
//! | | use | leadership |
//! |---|---|---|
//! | [`RedisStore`] | several masters | a lease in Redis |
//! | [`EmbeddedStore`] | one master without Redis; one-shot use (in memory) | a lock on a file |
//! | `MemoryStore` | tests: strict, fails and loses data on demand | a lease in memory |
//!
//! One contract suite (`contract.rs`) runs on all three. File records, which are too long for a store, are in the
//! [`Spool`].

mod batch;
mod embedded;
mod fence;
mod redis;
mod spool;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod memory;

pub use batch::Batch;
pub use embedded::EmbeddedStore;
pub use fence::{AcquireOutcome, Candidate, Fence};
#[cfg(test)]
pub(crate) use memory::MemoryStore;
pub use redis::{Installation, RedisStore, RedisStoreConfig};
pub use spool::Spool;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A store. See the [module](self) for the guarantees of a commit.
///
/// Every call may be repeated after [`StoreError::Unavailable`]; a commit must then be repeated with the same fence and
/// the same batch. If a returned future is dropped, the call may or may not take effect, as after that error.
pub trait Store: Send + Sync + 'static {
    /// Requests leadership for `ttl` from now. A candidate with the name of the holder gets it at once, any other one
    /// after the lease has expired: a name must be unique among masters. A new term has a higher epoch than every
    /// earlier one.
    fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> impl Future<Output = Result<AcquireOutcome, StoreError>> + Send;

    /// Extends the lease to `ttl` from now. May run during a commit.
    ///
    /// # Errors
    /// [`Deposed`](StoreError::Deposed); [`DataLost`](StoreError::DataLost) if the store is behind `fence`, so that a
    /// leader without work detects it.
    fn renew(
        &self,
        fence: Fence,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the term, so that the next master need not wait. Has no effect on the term of another master.
    fn release(&self, fence: Fence) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All records (no blobs), as of one instant.
    fn load(&self) -> impl Future<Output = Result<BTreeMap<String, Vec<u8>>, StoreError>> + Send;

    /// One record; `None` if there is none.
    fn record(&self, key: &str)
    -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;

    /// Writes `batch` atomically as the commit after `fence.seq`, extends the lease, and returns the fence of the next
    /// commit.
    ///
    /// # Errors
    /// [`Deposed`](StoreError::Deposed); [`DataLost`](StoreError::DataLost), see [`Fence::after_loss`].
    fn commit(
        &self,
        fence: Fence,
        batch: &Batch,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send;

    /// One blob; `None` if there is none.
    fn blob(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;

    /// Why no new syncs should be accepted, if so. Commits are written all the same, so that active syncs end and free
    /// space.
    ///
    /// # Errors
    /// [`Unusable`](StoreError::Unusable) if a later commit or read would be refused until an operator intervenes.
    fn check_admission(
        &self,
    ) -> impl Future<Output = Result<Option<AdmissionBlock>, StoreError>> + Send {
        std::future::ready(Ok(None))
    }

    /// A consistent copy of the whole store, without the secret that `redaction` removes. It is made while the store is
    /// in use. `None`: the store has backups of its own, or does not outlive the process.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable) also while another copy is made or read.
    fn backup(
        &self,
        redaction: Redaction,
    ) -> impl Future<Output = Result<Option<Backup>, StoreError>> + Send {
        let _ = redaction;
        std::future::ready(Ok(None))
    }

    /// Closes this handle: every later call is [`Unavailable`](StoreError::Unavailable). All commits are in their final
    /// location when this returns.
    fn close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The keys of all blobs. After data loss the leader compares them with those that its records need.
    fn blob_keys(&self) -> impl Future<Output = Result<BTreeSet<String>, StoreError>> + Send;
}

/// Why a store accepts no new syncs. The text names the reason, the server, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionBlock {
    /// Its memory is used up.
    Full(String),
    /// It may lose acknowledged writes.
    Unsafe(String),
}

impl AdmissionBlock {
    /// The text.
    pub(crate) fn reason(&self) -> &str {
        match self {
            AdmissionBlock::Full(reason) | AdmissionBlock::Unsafe(reason) => reason,
        }
    }
}

/// The secret that a copy of a store must not contain.
#[derive(Debug, Clone, Copy)]
pub struct Redaction {
    /// The key of the record with the secret.
    pub key: &'static str,
    /// Computes the value without the secret. `None`: the value cannot be read.
    pub remove: fn(&[u8]) -> Option<Vec<u8>>,
}

/// A copy of a store.
#[derive(Debug)]
pub struct Backup {
    /// At its start. It has no name: its space is freed when it is closed.
    pub file: std::fs::File,
    /// The length.
    pub bytes: u64,
    /// The [checksum](crate::util::checksum::CHECKSUM_HEADER) of the content.
    pub checksum: String,
    /// Held until the copy was sent: a store makes one copy at a time.
    pub permit: OwnedSemaphorePermit,
}

/// Why a call on a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A newer term has started, and nothing was written. This leader must stop deciding at once.
    #[error("another master leads now: {leader} (epoch {epoch})")]
    Deposed {
        /// The name of the current leader.
        leader: String,
        /// The epoch of the current term.
        epoch: u64,
    },
    /// The store was emptied or rolled back, and nothing was written.
    #[error(
        "the store lost data: this master wrote commit {expected} last, the store holds commit {found}"
    )]
    DataLost {
        /// The last commit that this leader knows.
        expected: u64,
        /// The last commit in the store; 0 for an empty store.
        found: u64,
    },
    /// The store cannot be reached or cannot work now; a later attempt may succeed.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// Only an operator can remove the cause: wrong settings, no permission, another schema, a damaged file.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
}

/// The version of the format of records, blobs and leadership in a store.
const SCHEMA: u32 = 1;

/// Refuses a store with another format. A program that does not know all fields of a newer format would drop some.
fn check_schema(found: &str, location: &str) -> Result<(), StoreError> {
    if found == SCHEMA.to_string() {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "{location} was written with schema version {}, this program reads version {SCHEMA}; upgrade this binary, or \
         give it a store of its own",
        found.escape_default(),
    )))
}

/// A random id of one handle. It distinguishes two handles that got the same epoch.
fn new_session_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The milliseconds of a lease, at least 1.
fn lease_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40)
}
