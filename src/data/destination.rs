//! Where an executor sends to: a peer, or this host itself.

use super::buffer_pool::BufferPool;
use super::control_messages::ControlRequest;
use super::local::{CloneOutcome, Local};
use super::outcome::{OfferOutcome, PackOutcome, RangeError, SendError, WrittenRange};
use super::peer::Peer;
use super::source_reader::RangeTransfer;
use crate::fs::{BlockHashes, Tree};
use crate::wire::WorkerId;
use crate::wire::content::HashMode;
use crate::wire::manifest::{Entry, Manifest, ManifestDir};
use bytes::Bytes;

/// A destination of content.
pub enum Destination {
    /// This host holds the destination as well.
    Local {
        /// The id of this worker.
        worker: WorkerId,
        /// What writes.
        local: Local,
    },
    /// Another agent.
    Remote(Peer),
}

impl Destination {
    /// The worker that writes.
    pub fn worker(&self) -> &WorkerId {
        match self {
            Destination::Local { worker, .. } => worker,
            Destination::Remote(peer) => &peer.worker,
        }
    }

    /// How content is compared.
    pub(super) fn hashing(&self) -> HashMode {
        match self {
            Destination::Local { local, .. } => local.rules().hash_mode(),
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
            Destination::Local { local, .. } => &local.pool,
            Destination::Remote(peer) => &peer.peers.pool,
        }
    }

    /// Has everything of `manifest` brought that needs no content, and asks what is needed. In a dry
    /// run nothing is brought.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer(&self, manifest: &Manifest) -> Result<OfferOutcome, SendError> {
        self.offer_encoded(manifest, || manifest.to_document()).await
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
            Destination::Local { local, .. } => local.request(manifest.clone()).await,
            Destination::Remote(peer) => peer.request(manifest, encoded()).await,
        }
    }

    /// Has a request executed at the destination.
    ///
    /// # Errors
    /// See [`SendError`]; the ticket may not allow it.
    pub async fn request<R: ControlRequest>(&self, request: R) -> Result<R::Outcome, SendError> {
        match self {
            Destination::Local { local, .. } => local.request(request).await,
            Destination::Remote(peer) => peer.request(&request, request.to_document()).await,
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

    /// Sends a range; with `existing` only what differs from those blocks.
    pub(super) async fn send_range(
        &self,
        transfer: RangeTransfer<'_>,
        existing: Option<Vec<BlockHashes>>,
    ) -> Result<WrittenRange, RangeError> {
        match self {
            Destination::Local { local, .. } => local.transfer_range(transfer, existing).await,
            Destination::Remote(peer) => peer.transfer_range(transfer, existing).await,
        }
    }
}
