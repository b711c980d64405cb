//! Where an executor sends to: a peer, or this host itself.

use super::buffer_pool::BufferPool;
use super::control_messages::{BlockDigests, BlockDigestsRequest, PruneOutcome, PruneRequest};
use super::local::{CloneOutcome, Local};
use super::outcome::{OfferOutcome, PackOutcome, RangeOutcome, SendError};
use super::peer::Peer;
use super::source_reader::RangeTransfer;
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
    pub(super) fn is_multi_rail(&self) -> bool {
        matches!(self, Destination::Remote(peer) if peer.is_multi_rail())
    }

    /// The buffers for what is read on its account.
    pub(super) fn pool(&self) -> &BufferPool {
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
    pub async fn offer(&self, manifest: &Manifest) -> Result<OfferOutcome, SendError> {
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
    ) -> Result<OfferOutcome, SendError> {
        match self {
            Destination::Local { local, .. } => local.offer(manifest).await,
            Destination::Remote(peer) => peer.offer(manifest, encoded()).await,
        }
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn transfer_pack(
        &self,
        source: &Tree,
        dirs: Vec<ManifestDir>,
        files: Vec<Entry>,
    ) -> Result<PackOutcome, SendError> {
        match self {
            Destination::Local { local, .. } => local.transfer_pack(source, dirs, files).await,
            Destination::Remote(peer) => peer.transfer_pack(source, dirs, files).await,
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
    ) -> Result<CloneOutcome, SendError> {
        match self {
            Destination::Local { local, .. } => local.clone_file(source, manifest).await,
            Destination::Remote(_) => Ok(CloneOutcome::Unavailable),
        }
    }

    /// Finds (and, where it is to be applied, removes) what the destination has beside the names of
    /// one page.
    ///
    /// # Errors
    /// See [`SendError`]; the ticket may not allow it.
    pub async fn prune(&self, ask: PruneRequest) -> Result<PruneOutcome, SendError> {
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
    pub async fn clean_up(
        &self,
        root: Option<ManifestDir>,
    ) -> Result<Result<(), FileError>, SendError> {
        match self {
            Destination::Local { local, .. } => local.clean_up(root).await,
            Destination::Remote(peer) => peer.clean_up(root).await,
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
        ranged: RangeTransfer<'_>,
        there: Option<Vec<BlockDigests>>,
    ) -> Result<RangeOutcome, SendError> {
        match self {
            Destination::Local { local, .. } => local.transfer_range(ranged, there).await,
            Destination::Remote(peer) => peer.transfer_range(ranged, there).await,
        }
    }

    /// What is there of some blocks; inside, why it can't be read.
    pub(super) async fn block_digests(
        &self,
        ask: BlockDigestsRequest,
    ) -> Result<Result<Vec<BlockDigests>, FileError>, SendError> {
        match self {
            Destination::Local { local, .. } => local.block_digests(ask).await,
            Destination::Remote(peer) => peer.block_digests(ask).await,
        }
    }
}
