//! What the world tells the scheduler ([`ProgressEvent`]), what it answers ([`FuseReply`]), and what it wants
//! done ([`Effect`]).

use super::Settings;
pub use super::file_records::RecordLogInfo;
use super::worker_losses::SingleEntry;
use crate::wire::admin::{ConfirmClockReply, ReconcileReply};
use crate::wire::manifest::FileListPart;
use crate::wire::problem::Problem;
use crate::wire::sync::{
    ReassignReply, SubmitReply, SyncPatch, SyncProgress, SyncRequest, SyncState,
};
use crate::wire::task::{Assignment, PageReply, ResultReply, ScanPage, TaskResult};
use crate::wire::worker::{
    DrainReply, DrainRequest, ForgetWorkerReply, HeartbeatReply, WorkerHeartbeat, WorkerList,
    WorkerView,
};
use crate::wire::{AssignmentId, Digest, RequestId, SyncNo, TaskId, WorkerId};
use std::collections::BTreeSet;

/// Names the caller that waits for a [`Reply`]; given out by the owner of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u64);

/// The time of an event. Decisions use `mono_ms` only, so that a clock that jumps changes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never jumps (it includes suspend), from any origin.
    pub mono_ms: u64,
    /// Milliseconds since 1970, for stamps that people read and for tickets.
    pub wall_ms: i64,
}

/// A key that makes a repeated submit safe: same key and body, same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The client's key, at most 128 bytes.
    pub key: String,
    /// The digest of the body that it came with.
    pub body: Digest,
}

/// Which syncs are wanted, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncQuery {
    /// Those in one of these states; none named: all.
    pub states: Vec<SyncState>,
    /// Those before this one.
    pub before: Option<SyncNo>,
    /// Those whose id begins so.
    pub id_prefix: Option<RequestId>,
    /// So many at most.
    pub limit: Option<usize>,
}

/// … and what is given of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SyncPage {
    /// Newest first.
    pub syncs: Vec<SyncProgress>,
    /// The [`SyncQuery::completed`] with which it goes on, where there are more.
    pub next: Option<SyncNo>,
}

/// The keys that a store holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredKeys {
    /// Of records.
    pub records: BTreeSet<String>,
    /// Of blobs.
    pub blobs: BTreeSet<String>,
}

/// What the world says.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new sync.
    Submit {
        /// What is asked for; its file list has been moved to `list`.
        request: SyncRequest,
        /// The checked file list in parts, where one was given.
        list: Option<Vec<FileListPart>>,
        /// For safe repeats.
        idempotency: Option<IdempotencyKey>,
    },
    /// How does a sync stand?
    GetProgress(RequestId),
    /// Where is the list of what became of each file?
    GetFileRecords(RequestId),
    /// The list of a sync can't be written.
    FileRecordsLost {
        /// Whose.
        sync: SyncNo,
        /// A sentence.
        reason: String,
    },
    /// How do all stand?
    ListSyncs(SyncQuery),
    /// Change a sync while it runs.
    ChangeSync {
        /// Which.
        id: RequestId,
        /// What.
        change: SyncPatch,
    },
    /// Submit what an ended sync asked for again.
    RetrySync {
        /// Which.
        id: RequestId,
        /// The name of the new sync.
        new: Option<RequestId>,
        /// Just these names of it.
        only: Option<Vec<FileListPart>>,
        /// For safe repeats.
        idempotency: Option<IdempotencyKey>,
    },
    /// Hand out nothing more of a sync.
    PauseSync(RequestId),
    /// Let a sync go on.
    ResumeSync(RequestId),
    /// Take the tasks of a sync away from a worker and leave them to others.
    ReassignTasks {
        /// Which.
        id: RequestId,
        /// From whom.
        worker: WorkerId,
    },
    /// Stop a sync, keep its record.
    CancelSync(RequestId),
    /// Stop a sync and forget it.
    DeleteSync(RequestId),
    /// A worker is alive.
    Heartbeat(WorkerHeartbeat),
    /// Which workers are there?
    ListWorkers,
    /// Return the view of one worker.
    GetWorker(WorkerId),
    /// Return the ids of the syncs of which a worker holds tasks.
    ListWorkerRequests(WorkerId),
    /// Give a worker nothing new (`order`), or let it work again.
    DrainWorker {
        /// Whom.
        worker: WorkerId,
        /// By whom and why; `None`: no longer.
        order: Option<DrainRequest>,
    },
    /// Forget a worker that has fallen silent.
    ForgetWorker(WorkerId),
    /// A worker asks for work.
    Poll {
        /// Who.
        worker: WorkerId,
        /// The process start of the agent, where it says so.
        incarnation: Option<String>,
        /// A repeat of the same poll gets the same lease.
        poll_id: Option<String>,
        /// Answer with nothing after so many milliseconds.
        wait_ms: u64,
    },
    /// The caller of a poll went away.
    CancelPoll(Caller),
    /// A worker asks for the manifest of an assignment.
    GetManifest {
        /// Who.
        worker: WorkerId,
        /// Which.
        assignment: AssignmentId,
    },
    /// A scan found something.
    Page {
        /// Who.
        worker: WorkerId,
        /// In which assignment.
        assignment: AssignmentId,
        /// What.
        page: ScanPage,
    },
    /// A task ended.
    Result(TaskResult),
    /// Compare the leases with who is there, and what is stored (looked up by who owns the state, after all
    /// that was decided before is written) with what is known.
    Reconcile(StoredKeys),
    /// The entries of a manifest, as [`Effect::ReadEntries`] asked for them.
    ManifestEntries {
        /// The task whose manifest it is.
        task: TaskId,
        /// Each entry as a batch of its own; none where the manifest cannot be read.
        entries: Vec<SingleEntry>,
    },
    /// The wall clock is right, whatever it was before.
    ConfirmClock,
    /// The store lost what was committed: everything not ended starts again from its scan.
    StoreLost,
    /// The configuration was read again.
    Configure(Box<Settings>),
    /// Time passes.
    Tick,
}

/// An answer to an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To `Submit` and `RetrySync`.
    Submitted(SubmitReply),
    /// To `GetProgress`, `Transition`, `PauseSync`, `PruneResume` and `CancelSync`.
    Progress(Box<SyncProgress>),
    /// To `List`.
    Syncs(SyncPage),
    /// To `Listing`.
    FileRecords(Box<RecordLogInfo>),
    /// To `Delete`.
    Deleted {
        /// It had not ended, and was cancelled.
        cancelled: bool,
    },
    /// To `Heartbeat`.
    Heartbeat(HeartbeatReply),
    /// To `Workers`.
    Workers(WorkerList),
    /// To `Worker`.
    Worker(Box<WorkerView>),
    /// To `ListWorkerRequests`, in the order of their submission.
    RequestIds(Vec<RequestId>),
    /// To `DrainWorker`.
    DrainUpdated(Box<DrainReply>),
    /// To `ForgetWorker`.
    Forgotten(ForgetWorkerReply),
    /// To `Reassign`.
    Reassigned(ReassignReply),
    /// To `Reconcile`.
    Reconciled(Box<ReconcileReply>),
    /// To `ConfirmClock`.
    ClockConfirmed(ConfirmClockReply),
    /// To `Poll`.
    Assignment(Option<Box<Assignment>>),
    /// To `GetManifest`: the key of the blob in the store.
    ManifestKey(String),
    /// To `OpenPage`.
    Page(PageReply),
    /// To `Result`.
    Result(ResultReply),
    /// To `ManifestEntries`, `StoreLost`, `FileRecordsLost` and `Tick`.
    Done,
    /// To any: no, and why. Nothing was changed.
    Refused(Box<Problem>),
}

/// What the scheduler wants done. Writes name keys; their values are asked for when the batch is
/// committed, so that a record changed a hundred times in a batch is written once.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The record of this key changed.
    PutRecord(String),
    /// The record of this key is gone.
    DeleteRecord(String),
    /// Store a blob.
    PutBlob(String, Vec<u8>),
    /// Drop a blob.
    DeleteBlob(String),
    /// Read a manifest once all writes are durable, and return its entries with [`ProgressEvent::ManifestEntries`].
    ReadEntries {
        /// The task whose manifest it is.
        task: TaskId,
        /// The key of the blob.
        key: String,
    },
    /// Write lines of a sync's list of files, before anything that was decided with them.
    AppendFileRecords {
        /// Whose list.
        sync: SyncNo,
        /// At which byte of it.
        at: u64,
        /// The lines.
        bytes: Vec<u8>,
    },
    /// A sync is gone, and its list with it.
    DeleteFileRecords(SyncNo),
    /// Answer a caller, once all writes are durable.
    Reply(Caller, Reply),
}
