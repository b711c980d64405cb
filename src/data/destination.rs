//! Where an executor sends to: a peer, or this host itself.

use super::local::Local;
use super::outcome::{Offered, Packed, RangeSent, SendError};
use super::peers::Peer;
use crate::fs::Tree;
use crate::wire::WorkerId;
use crate::wire::manifest::{DirRef, Entry, Manifest};

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

    /// Has everything of `manifest` brought that needs no content, and asks what is needed.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn offer(&self, manifest: &Manifest) -> Result<Offered, SendError> {
        match self {
            Destination::Local { local, .. } => local.offer(manifest).await,
            Destination::Remote(peer) => peer.offer(manifest, manifest.encode().into()).await,
        }
    }

    /// Sends `files` of `source`, which lie in `dirs`, as what each of them is now.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn pack(
        &self,
        source: &Tree,
        dirs: Vec<DirRef>,
        files: Vec<Entry>,
    ) -> Result<Packed, SendError> {
        match self {
            Destination::Local { local, .. } => local.pack(source, dirs, files).await,
            Destination::Remote(peer) => peer.pack(source, dirs, files).await,
        }
    }

    /// Sends `(offset, length)` of `entry`, the only file of `manifest`, into its part file. The
    /// range must fit ([`range_fits`](super::protocol::range_fits)).
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn range(
        &self,
        source: &Tree,
        manifest: &Manifest,
        entry: &Entry,
        range: (u64, u64),
    ) -> Result<RangeSent, SendError> {
        match self {
            Destination::Local { local, .. } => local.range(source, entry, range).await,
            Destination::Remote(peer) => peer.range(source, manifest, entry, range).await,
        }
    }
}
