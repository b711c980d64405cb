//! Where the leader's state is kept, so that it outlives the leader.
//!
//! A store is small and dumb: leadership, all records, one atomic batch at a time, single blobs. The
//! master keeps its whole state in memory; the store is read once, when a reign begins, and written
//! ever after.
//!
//! # Why a commit is safe
//!
//! - **One writer.** [`Store::acquire`] begins a reign with a higher epoch than any before, and every commit first checks
//!   that its epoch still rules. A deposed leader cannot write and learns so ([`StoreError::Deposed`]).
//!   Epochs on Redis are not a plain counter, which would go back when Redis loses writes on a
//!   fail-over and would then be given twice: they follow the clock of the server, and the handle
//!   that acquired is part of the check.
//! - **No gap.** A commit names the number of the one before it. When the store does not hold exactly
//!   that one it was rolled back or emptied ([`StoreError::DataLost`]), and the leader, whose memory holds everything, writes
//!   everything back: see [`Fence::after_loss`].
//! - **A repeat is harmless.** A commit whose reply was lost is sent again as it was; the store knows
//!   the digest of the last batch and answers as it would have the first time. A copy that the
//!   network delivers late fits nowhere in the sequence and changes nothing.
//! - **All or nothing.** No reader and no crash sees half of a batch.
//!
//! # Backends
//!
//! | | for | leadership |
//! |---|---|---|
//! | [`RedisStore`] | several masters | a lease in Redis |
//! | [`EmbeddedStore`] | one master without Redis; one-shot use (in memory) | a lock on a file |
//! | `MemoryStore` | tests: strict, fails and forgets on demand | a lease in memory |
//!
//! One contract suite (`contract.rs`) runs on all three. Beside them stands the [`Spool`]: lists of files
//! that are too long for a store.

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
pub use embedded::{EmbeddedStore, Location};
pub use fence::{AcquireOutcome, Candidate, Fence};
#[cfg(test)]
pub(crate) use memory::MemoryStore;
pub use redis::{Installation, RedisStore};
pub use spool::Spool;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// A place for the leader's state. See the [module](self) for what a commit promises.
///
/// Every call may be repeated after [`StoreError::Unavailable`]; a commit must then be repeated
/// with the same fence and the same batch. Dropping a returned future leaves open whether the call took effect, as
/// an error of that kind does.
pub trait Store: Send + Sync + 'static {
    /// Asks for leadership for `ttl` from now. A candidate of the same name as the holder may take over
    /// at once, whoever else has to wait until the lease has run out: so a name must be used by one
    /// master only. A new reign has a higher epoch than every one before it.
    fn acquire(
        &self,
        candidate: &Candidate,
        ttl: Duration,
    ) -> impl Future<Output = Result<AcquireOutcome, StoreError>> + Send;

    /// Prolongs the lease to `ttl` from now. May run while a commit is under way.
    ///
    /// # Errors
    /// [`Deposed`](StoreError::Deposed), and [`Lost`](StoreError::DataLost) when the store is behind
    /// `fence`: a leader without work notices it here.
    fn renew(
        &self,
        fence: Fence,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the reign, so that the next master need not wait. Does nothing when another one rules.
    fn release(&self, fence: Fence) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// All records (no blobs), as of one instant.
    fn load(&self) -> impl Future<Output = Result<BTreeMap<String, Vec<u8>>, StoreError>> + Send;

    /// Writes `batch` atomically as the commit after `fence.seq` and answers with the fence of the
    /// next one. It prolongs the lease as well.
    ///
    /// # Errors
    /// [`Deposed`](StoreError::Deposed); [`Lost`](StoreError::DataLost), see [`Fence::after_loss`].
    fn commit(
        &self,
        fence: Fence,
        batch: &Batch,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send;

    /// One blob, `None` if there is none.
    fn blob(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, StoreError>> + Send;

    /// What keeps the store from accepting more than it must. Commits are written all the same, so that work in hand
    /// ends and room comes.
    ///
    /// # Errors
    /// [`Unusable`](StoreError::Unusable) where a later commit or read would be refused for good.
    fn check_admission(
        &self,
    ) -> impl Future<Output = Result<Option<AdmissionBlock>, StoreError>> + Send {
        std::future::ready(Ok(None))
    }

    /// A consistent copy of everything, taken while the store is in use. `None`: this store has means of its own
    /// for that, or nothing that outlives the process. No byte of what `redaction` removes is in it.
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

    /// Ends the use of this handle: every later call is [`Unavailable`](StoreError::Unavailable). What was committed is
    /// in its final place when this returns.
    fn close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// The keys of all blobs. After a loss the leader compares them with what its records need.
    fn blob_keys(&self) -> impl Future<Output = Result<BTreeSet<String>, StoreError>> + Send;
}

/// Why nothing more should be given to a store than it must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmissionBlock {
    /// Its memory is used up: why, and where.
    Full(String),
    /// It may lose what it acknowledges: why, where, and what to change.
    Unsafe(String),
}

impl AdmissionBlock {
    /// The sentence.
    pub fn reason(&self) -> &str {
        match self {
            AdmissionBlock::Full(why) | AdmissionBlock::Unsafe(why) => why,
        }
    }
}

/// What a copy of a store must not contain.
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
    /// Read from its beginning; it has no name, so it is gone when this is dropped.
    pub file: std::fs::File,
    /// Its length.
    pub bytes: u64,
    /// The [check](crate::util::checksum::CHECKSUM_HEADER) of its content.
    pub checksum: String,
    /// The next copy can be made when this is dropped.
    pub permit: OwnedSemaphorePermit,
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another reign has begun. This leader must stop deciding at once; nothing was written.
    #[error("another master leads now: {leader} (epoch {epoch})")]
    Deposed {
        /// The holder of the reign that counts.
        leader: String,
        /// Its epoch.
        epoch: u64,
    },
    /// The store is not where this leader left it: it lost or rolled back data. Nothing was written.
    #[error(
        "the store lost data: this master wrote commit {expected} last, the store holds commit {found}"
    )]
    DataLost {
        /// The last commit that this leader knows of.
        expected: u64,
        /// The last commit that the store holds; 0 for an empty store.
        found: u64,
    },
    /// The store cannot be reached or cannot work now; trying again later helps.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store refuses for a reason that only an operator can change: wrong settings, no
    /// permission, a newer schema, a damaged file.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
}

/// The version of what records, blobs and leadership look like in a store. Raised when an older
/// binary could not use what a newer one wrote.
const SCHEMA: u32 = 1;

/// Refuses what a newer Longhaul wrote: an older one would drop what it does not know.
fn check_schema(found: &str, place: &str) -> Result<(), StoreError> {
    if found.parse::<u32>().is_ok_and(|version| version >= 1 && version <= SCHEMA) {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "{place} was written with schema version {}, this program reads versions up to {SCHEMA}; \
         upgrade this binary, or give it a store of its own",
        found.escape_default(),
    )))
}

/// A random name of one handle, so that two that were given the same epoch are told apart.
fn new_session_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Milliseconds of a lease, at least 1: a lease of 0 would be no lease.
fn lease_ms(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40)
}
