//! The channel to the actor that owns the state, for one term of leadership.

use crate::audit::AuditEntry;
use crate::scheduler::{AgentTable, Event, Reply, TokenTable};
use crate::store::{AdmissionBlock, Backup};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// An event and the sender of its reply. The receiver is dropped when the caller disconnects.
#[derive(Debug)]
pub(super) struct ActorRequest {
    pub(super) event: Event,
    pub(super) reply: oneshot::Sender<Reply>,
    /// The entry of the audit log, of a change by an operator.
    pub(super) change: Option<Box<AuditEntry>>,
}

/// Whether decisions can be made durable now; otherwise the reason.
pub(super) type ActorHealth = Result<(), String>;

/// Reads a blob of the store by its key. `None`: there is none. The error is a message.
pub(super) type BlobReader =
    Arc<dyn Fn(String) -> BoxFuture<'static, Result<Option<Vec<u8>>, String>> + Send + Sync>;

/// Copies the store. `None`: this store is not copied by the master. The error is a message.
pub(super) type BackupMaker =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Option<Backup>, String>> + Send + Sync>;

/// The channel to the state actor of one term of leadership.
#[derive(Clone)]
pub(super) struct ActorChannel {
    pub(super) requests: mpsc::Sender<ActorRequest>,
    pub(super) health: watch::Receiver<ActorHealth>,
    pub(super) blobs: BlobReader,
    pub(super) backup: BackupMaker,
    /// The tokens as they are stored.
    pub(super) tokens: watch::Receiver<Arc<TokenTable>>,
    /// The agents as they are stored.
    pub(super) agents: watch::Receiver<Arc<AgentTable>>,
    /// Why the store accepts no new syncs, if it does not.
    pub(super) admission_block: watch::Receiver<Option<AdmissionBlock>>,
}

impl ActorChannel {
    /// Whether decisions can be made now; otherwise the reason.
    pub(super) fn health(&self) -> ActorHealth {
        if self.requests.is_closed() {
            return Err("the master is stopping".to_owned());
        }
        self.health.borrow().clone()
    }

    /// Resolves when no decision can be made (any more), with the reason.
    pub(super) async fn wait_for_failure(&self) -> String {
        let mut health = self.health.clone();
        let failure = health.wait_for(Result::is_err).await.ok().and_then(|h| h.clone().err());
        failure.unwrap_or_else(|| "the master is stopping".to_owned())
    }
}
