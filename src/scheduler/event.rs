//! Events, replies and effects of the scheduler.

use super::Settings;
use super::agent_table::{AgentKey, AgentRecord, JoinTokenRecord};
use super::failure_list::FailurePages;
use super::grant::Grant;
use super::single_entries::SingleEntry;
use super::token_table::TokenRecord;
use crate::identity::SealedAuthority;
use crate::wire::admin::{AuthorityView, ConfirmClockReply, ReconcileReply, RotateTicketKeyReply};
use crate::wire::join::{JoinTokenView, RevokeWorkerReply};
use crate::wire::manifest::FileListPart;
use crate::wire::problem::Problem;
use crate::wire::storage::{StorageList, StorageView};
use crate::wire::sync::{
    ReassignReply, SubmitReply, SyncPatch, SyncProgress, SyncRequest, SyncState,
};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::token::{TokenId, TokenList, TokenView};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, HeartbeatReply, WorkerHeartbeat, WorkerList,
    WorkerView,
};
use crate::wire::{AbsPath, AssignmentId, Digest, RequestId, StorageId, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A caller that waits for a [`Reply`]; numbered by the owner of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// The time of an event. Decisions use `mono_ms` only, so a jump of the wall clock changes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never jumps and includes suspend, from any origin.
    pub mono_ms: u64,
    /// Milliseconds since 1970, for displayed times and tickets.
    pub wall_ms: i64,
}

/// Makes a repeated submit safe: the same key and body give the same reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's key, at most 128 bytes.
    pub key: String,
    /// The digest of the request body.
    pub body: Digest,
}

/// A query for syncs, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncQuery {
    /// Accepted states; empty: all.
    pub states: Vec<SyncState>,
    /// Only syncs submitted before this one.
    pub before: Option<SyncNo>,
    /// Only syncs with an id of this prefix.
    pub id_prefix: Option<RequestId>,
    /// Maximum number of syncs.
    pub limit: Option<usize>,
    /// Only syncs within its scopes.
    pub grant: Option<Arc<Grant>>,
}

/// The result of a query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SyncPage {
    /// Newest first.
    pub syncs: Vec<SyncProgress>,
    /// [`SyncQuery::before`] for the next page, if there is one.
    pub next: Option<SyncNo>,
}

/// The keys in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredKeys {
    /// Keys of records.
    pub records: BTreeSet<String>,
    /// Keys of blobs.
    pub blobs: BTreeSet<String>,
}

/// What is needed to read the record log of a sync.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordLogInfo {
    /// The sync.
    pub sync: SyncNo,
    /// Its id.
    pub id: RequestId,
    /// Committed bytes.
    pub length: u64,
    /// Offset of the lines of the read-back pass. They override earlier lines of the same file.
    pub readback_from: Option<u64>,
    /// Why it is incomplete.
    pub error: Option<String>,
    /// Whether the sync records files.
    pub is_recorded: bool,
    /// Whether each line has the digest of the file.
    pub has_digests: bool,
    /// Whether the sync has ended.
    pub has_ended: bool,
    /// The root of its paths.
    pub destination: AbsPath,
    /// The failures, which every sync lists.
    pub failures: FailurePages,
}

/// What of an ended sync is tried again.
#[derive(Debug, Clone, PartialEq)]
pub enum RetryScope {
    /// Everything.
    All,
    /// These names.
    Names(Vec<FileListPart>),
    /// The destinations that are not complete, of a sync with several.
    IncompleteDestinations,
}

/// The use of a join token.
#[derive(Debug, Clone, PartialEq)]
pub struct Join {
    /// The token.
    pub token: TokenId,
    /// BLAKE3 of its secret.
    pub secret_digest: Digest,
    /// The agent that uses it.
    pub agent: AgentKey,
}

impl Event {
    /// Whether it asks for a lease, or no longer: that changes nothing for others.
    pub(super) fn is_poll(&self) -> bool {
        match self {
            Event::OfAgent { event, .. } => event.is_poll(),
            other => matches!(other, Event::Poll { .. } | Event::CancelPoll(_)),
        }
    }
}

/// An input of the scheduler.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Create a sync.
    Submit {
        /// The request; its file list has been moved to `list`.
        request: SyncRequest,
        /// The validated file list in parts, if one was given.
        list: Option<Vec<FileListPart>>,
        /// For safe repeats.
        idempotency: Option<IdempotencyKey>,
    },
    /// Return the progress of a sync.
    GetProgress(RequestId),
    /// Return where the outcome of each file is recorded.
    GetFileRecords(RequestId),
    /// The file with the outcomes of a sync cannot be written.
    FileRecordsLost {
        /// The sync.
        sync: SyncNo,
        /// The error message.
        reason: String,
    },
    /// Return the progress of several syncs.
    ListSyncs(SyncQuery),
    /// Change a running sync.
    ChangeSync {
        /// The sync.
        id: RequestId,
        /// The change.
        change: SyncPatch,
    },
    /// Submit the request of an ended sync again.
    RetrySync {
        /// The ended sync.
        id: RequestId,
        /// The id of the new sync.
        new: Option<RequestId>,
        /// What of it.
        only: RetryScope,
        /// For safe repeats.
        idempotency: Option<IdempotencyKey>,
    },
    /// Assign no further tasks of a sync.
    PauseSync(RequestId),
    /// Continue a paused sync.
    ResumeSync(RequestId),
    /// Revoke the tasks of a sync that a worker holds, and prefer other workers for them.
    ReassignTasks {
        /// The sync.
        id: RequestId,
        /// The worker that holds the tasks.
        worker: WorkerId,
    },
    /// End a sync, keep its record.
    CancelSync(RequestId),
    /// End a sync and remove it.
    DeleteSync(RequestId),
    /// A heartbeat of a worker.
    Heartbeat(WorkerHeartbeat),
    /// List all workers.
    ListWorkers,
    /// Return one worker.
    GetWorker(WorkerId),
    /// Return the ids of the syncs of which a worker holds tasks.
    ListWorkerRequests(WorkerId),
    /// List all storages.
    ListStorages,
    /// Return one storage.
    GetStorage(StorageId),
    /// Assign nothing new to a worker (`order`), or allow it again.
    DrainWorker {
        /// The worker.
        worker: WorkerId,
        /// Author and reason; `None` ends the drain.
        order: Option<DrainRequest>,
    },
    /// Remove a silent worker.
    ForgetWorker(WorkerId),
    /// A worker polls for work.
    Poll {
        /// The worker.
        worker: WorkerId,
        /// The id of the agent process, if reported.
        incarnation: Option<String>,
        /// A repeat of the same poll gets the same lease.
        poll_id: Option<String>,
        /// Reply without work after this time.
        wait_ms: u64,
    },
    /// The caller of a poll disconnected.
    CancelPoll(Caller),
    /// Return the manifest of an assignment.
    GetManifest {
        /// The worker.
        worker: WorkerId,
        /// The assignment.
        assignment: AssignmentId,
    },
    /// A page of a walk.
    Page {
        /// The worker.
        worker: WorkerId,
        /// The assignment.
        assignment: AssignmentId,
        /// The page.
        page: ScanPage,
    },
    /// The result of a task.
    Result(TaskResult),
    /// Compare leases with workers, and stored keys with known ones. The keys must be listed after
    /// all earlier decisions are written.
    Reconcile(StoredKeys),
    /// The reply to [`Effect::ReadEntries`].
    ManifestEntries {
        /// The task of the manifest.
        task: TaskId,
        /// Each entry as a batch of its own; empty if the manifest cannot be read.
        entries: Vec<SingleEntry>,
    },
    /// Store a new token.
    CreateToken(Box<TokenRecord>),
    /// List all tokens.
    ListTokens,
    /// Revoke a token.
    RevokeToken(TokenId),
    /// Store a new join token.
    CreateJoinToken(Box<JoinTokenRecord>),
    /// Revoke a join token.
    RevokeJoinToken(TokenId),
    /// An agent joins with a token.
    Join(Box<Join>),
    /// Store the certificate authority of the installation.
    StoreAuthority(Box<SealedAuthority>),
    /// Replace it by this one, unless a rotation is in progress already.
    RotateAuthority(Box<SealedAuthority>),
    /// Refuse the certificates of the one before it.
    FinishRotation {
        /// Also while agents use them.
        force: bool,
    },
    /// Get the state of the rotation.
    GetAuthority,
    /// Refuse the certificate of a worker from now on.
    RevokeWorker(WorkerId),
    /// An event of an agent that may use nothing else.
    OfAgent {
        /// Its certificate; `None`: it connects over loopback, as a user that runs agents.
        agent: Option<AgentKey>,
        /// The event.
        event: Box<Event>,
    },
    /// An event of an operator that is not an administrator.
    Restricted {
        /// Its rights.
        grant: Arc<Grant>,
        /// The event.
        event: Box<Event>,
    },
    /// Accept the wall clock as it is.
    ConfirmClock,
    /// Replace the key that signs tickets.
    RotateTicketKey,
    /// The store lost committed data: active syncs restart from their scan.
    StoreLost,
    /// The configuration was reloaded.
    Configure(Box<Settings>),
    /// Time passed.
    Tick,
}

/// The reply to an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To `Submit` and `RetrySync`.
    Submitted(SubmitReply),
    /// To `GetProgress`, `ChangeSync`, `PauseSync`, `ResumeSync` and `CancelSync`.
    Progress(Box<SyncProgress>),
    /// To `ListSyncs`.
    Syncs(SyncPage),
    /// To `GetFileRecords`.
    FileRecords(Box<RecordLogInfo>),
    /// To `DeleteSync`.
    Deleted {
        /// It was active and was cancelled first.
        cancelled: bool,
    },
    /// To `Heartbeat`.
    Heartbeat(Box<HeartbeatReply>),
    /// To `ListWorkers`.
    Workers(WorkerList),
    /// To `GetWorker`.
    Worker(Box<WorkerView>),
    /// To `ListWorkerRequests`, in the order of submission.
    RequestIds(Vec<RequestId>),
    /// To `ListStorages`.
    Storages(StorageList),
    /// To `GetStorage`.
    Storage(Box<StorageView>),
    /// To `DrainWorker`.
    DrainUpdated(Box<DrainReply>),
    /// To `ForgetWorker`.
    Forgotten(ForgetWorkerReply),
    /// To `ReassignTasks`.
    Reassigned(ReassignReply),
    /// To `Reconcile`.
    Reconciled(Box<ReconcileReply>),
    /// To `CreateToken` and `RevokeToken`.
    Token(Box<TokenView>),
    /// To `ListTokens`.
    Tokens(TokenList),
    /// To `CreateJoinToken` and `RevokeJoinToken`.
    JoinToken(Box<JoinTokenView>),
    /// To `Join`.
    Joined(Box<AgentRecord>),
    /// To `RevokeWorker`.
    WorkerRevoked(RevokeWorkerReply),
    /// To `ConfirmClock`.
    ClockConfirmed(ConfirmClockReply),
    /// To `RotateTicketKey`.
    TicketKeyRotated(RotateTicketKeyReply),
    /// To `RotateAuthority`, `FinishRotation` and `GetAuthority`.
    Authority(Box<AuthorityView>),
    /// To `Poll`.
    Assignment(Option<Box<Assignment>>),
    /// To `GetManifest`: the key of the blob in the store.
    ManifestKey(String),
    /// To `Page`.
    Page(PageReply),
    /// To `Result`.
    Result(ResultReply),
    /// To `ManifestEntries`, `StoreLost`, `FileRecordsLost`, `StoreAuthority` and `Tick`.
    Done,
    /// To any event: it was refused and changed nothing.
    Refused(Box<Problem>),
}

/// An output of the scheduler. Writes name keys; the values are encoded when the batch is
/// committed, so a record that changes many times in a batch is written once.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write the record of this key, or delete it if the state has none any more.
    WriteRecord(String),
    /// Store a blob.
    PutBlob(String, Vec<u8>),
    /// Delete a blob.
    DeleteBlob(String),
    /// Read a manifest after all writes are durable, and return its entries with
    /// [`Event::ManifestEntries`].
    ReadEntries {
        /// The task of the manifest.
        task: TaskId,
        /// The key of the blob.
        key: String,
    },
    /// Append to the file records of a sync, before the decisions made with them are committed.
    AppendFileRecords {
        /// The sync.
        sync: SyncNo,
        /// The byte offset.
        at: u64,
        /// The lines.
        bytes: Vec<u8>,
    },
    /// Delete the file records of a removed sync.
    DeleteFileRecords(SyncNo),
    /// Reply to a caller after all writes are durable.
    Reply(Caller, Reply),
}
