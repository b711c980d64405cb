//! Where an executor sends to: a peer, or this host itself.

use super::asks::{BLOCK_BYTES, BlockValue, BlocksAsk, PruneAsk, PrunedPage, WINDOW};
use super::delta::Ranged;
use super::local::{Cloned, Local};
use super::outcome::{Compared, Offered, Packed, RangeMode, RangeSent, SendError};
use super::peer::Peer;
use super::pool::Pool;
use super::read::Span;
use crate::fs::{RootKind, Tree};
use crate::wire::WorkerId;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use crate::wire::sync::FileError;
use bytes::Bytes;

/// A destination of content.
pub enum Destination {
    /// This host holds the destination as well.
    Local {
        /// Our own name.
        worker: WorkerId,
        /// What writes.
        local: Local,
    },
    /// Another agent.
    Remote(Peer),
}

impl Destination {
    /// Who writes.
    pub fn worker(&self) -> &WorkerId {
        match self {
            Destination::Local { worker, .. } => worker,
            Destination::Remote(peer) => peer.worker(),
        }
    }

    /// How content is compared.
    pub(super) fn hashing(&self) -> HashMode {
        match self {
            Destination::Local { local, .. } => local.hashing(),
            Destination::Remote(peer) => peer.hashing,
        }
    }

    /// Whether a range is sent over several pairs of NICs.
    pub(super) fn is_wide(&self) -> bool {
        matches!(self, Destination::Remote(peer) if peer.is_wide())
    }

    /// The buffers for what is read on its account.
    pub(super) fn pool(&self) -> &Pool {
        match self {
            Destination::Local { local, .. } => local.pool(),
            Destination::Remote(peer) => peer.peers.pool(),
        }
    }

    /// Has everything of `manifest` brought that needs no content, and asks what is needed. In a dry
    /// run nothing is brought.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer(&self, manifest: &Manifest) -> Result<Offered, SendError> {
        self.offer_encoded(manifest, || manifest.encode().into()).await
    }

    /// The same for a manifest of which `encoded` gives the bytes.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer_encoded(
        &self,
        manifest: &Manifest,
        encoded: impl FnOnce() -> Bytes,
    ) -> Result<Offered, SendError> {
        match self {
            Destination::Local { local, .. } => local.offer(manifest).await,
            Destination::Remote(peer) => peer.offer(manifest, encoded()).await,
        }
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn pack(
        &self,
        source: &Tree,
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        match self {
            Destination::Local { local, .. } => local.pack(source, dirs, files).await,
            Destination::Remote(peer) => peer.pack(source, dirs, files).await,
        }
    }

    /// Clones the file of `manifest`, its only entry, as a whole, where both ends are in one file system of this
    /// host that can.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn clone_file(
        &self,
        source: &Tree,
        manifest: &Manifest,
    ) -> Result<Cloned, SendError> {
        match self {
            Destination::Local { local, .. } => local.clone_file(source, manifest).await,
            Destination::Remote(_) => Ok(Cloned::No),
        }
    }

    /// Brings `(offset, length)` of `entry`, the only file of `manifest`, into its part file. The
    /// range must fit ([`range_fits`](super::protocol::range_fits)).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn range(
        &self,
        source: &Tree,
        manifest: &Manifest,
        entry: &Entry,
        (offset, length): (u64, u64),
        mode: RangeMode,
    ) -> Result<RangeSent, SendError> {
        let ranged = Ranged { source, manifest, entry, span: Span { offset, length } };
        match mode {
            RangeMode::Delta if offset.is_multiple_of(BLOCK_BYTES) => {
                self.windowed(ranged, mode).await
            }
            // A long hole is one request, not one for each of its pieces.
            _ if self.is_wide() && length > WINDOW => self.windowed(ranged, mode).await,
            _ => self.striped(ranged, None).await,
        }
    }

    /// Compares `(offset, length)` of `entry`, the only file of `manifest`, with the file that the
    /// destination has; nothing is written. The range must fit, its offset must be a multiple of
    /// [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn compare(
        &self,
        source: &Tree,
        manifest: &Manifest,
        entry: &Entry,
        (offset, length): (u64, u64),
    ) -> Result<Compared, SendError> {
        self.compared(Ranged { source, manifest, entry, span: Span { offset, length } }).await
    }

    /// Finds (and, where it is to be applied, removes) what the destination has beside the names of
    /// one page.
    ///
    /// # Errors
    /// See [`SendError`]; the ticket may not allow it.
    pub async fn prune(&self, ask: PruneAsk) -> Result<PrunedPage, SendError> {
        match self {
            Destination::Local { local, .. } => local.prune(ask).await,
            Destination::Remote(peer) => peer.prune(ask).await,
        }
    }

    /// Removes what the sync kept at the destination to find the names of one file, and gives `root`
    /// its metadata back; inside, why not all is removed.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn sweep(
        &self,
        root: Option<ManifestDir>,
    ) -> Result<Result<(), FileError>, SendError> {
        match self {
            Destination::Local { local, .. } => local.sweep(root).await,
            Destination::Remote(peer) => peer.sweep(root).await,
        }
    }

    /// Whether the root of a `source` of this kind can be written there; inside, why it can't be.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn check_root(&self, source: RootKind) -> Result<Result<(), FileError>, SendError> {
        match self {
            Destination::Local { local, .. } => local.check_root(source).await,
            Destination::Remote(peer) => peer.check_root(source).await,
        }
    }

    /// Sends a range; with `there` only what differs from those blocks.
    pub(super) async fn send_range(
        &self,
        ranged: Ranged<'_>,
        there: Option<Vec<BlockValue>>,
    ) -> Result<RangeSent, SendError> {
        match self {
            Destination::Local { local, .. } => local.range(ranged, there).await,
            Destination::Remote(peer) => peer.range(ranged, there).await,
        }
    }

    /// What is there of some blocks; inside, why it can't be read.
    pub(super) async fn blocks(
        &self,
        ask: BlocksAsk,
    ) -> Result<Result<Vec<BlockValue>, FileError>, SendError> {
        match self {
            Destination::Local { local, .. } => local.blocks(ask).await,
            Destination::Remote(peer) => peer.blocks(ask).await,
        }
    }
}
